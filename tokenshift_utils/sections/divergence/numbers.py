"""Section 1: how large the shifts are, and where they are (numbers; drawing is elsewhere).

Frames of shifts hold one row a position of the tuned model's own responses, with its ``token_class``
(see ``records``). `js` is between the distributions sampled from (temperature, then top-p,
renormalised: the nucleus), `js_full` over the full vocabulary; both in nats. Entropies are over the
full vocabulary, in nats.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from tokenshift_utils.measures import divergences, nucleus
from tokenshift_utils.report.bootstrap import Bootstrap, Estimate, columns_of
from tokenshift_utils.sections.claims import HIGH_ENTROPY, HIGH_JS, LOW_ENTROPY, NEAR_ZERO
from tokenshift_utils.sections.common import (
    SUPPORTS,
    by,
    last_row,
    last_rows,
    of_kind,
    on_both_supports,
    on_shared_samples,
    percent,
    say,
    study_bootstrap,
)
from tokenshift_utils.sections.divergence.token_classes import CLASSES
from tokenshift_utils.sections.paper import fact
from tokenshift_utils.sections.seeds import measured, seeds_table
from tokenshift_utils.study.schema import CONTROLS

# The columns of the shifts records that this section needs.
COLUMNS = (
    *("benchmark", "problem", "sample", "position", "n_tokens", "token"),
    *("js", "js_full", "entropy_base", "entropy_tuned", "answer_start"),
)
JS_BINS = (0.0, 0.001, 0.01, 0.1, 0.3, 0.69315)  # nats; the last is above ln 2 in float32 too
STRUCTURAL, WORDS = ("structural", "numbers", "operators"), ("function", "reasoning")  # classes
FIRST = 5  # tokens that are left out of the start, to see whether it is they alone
# What a difference of recipes is of: quantity, recipe, other recipe (see `seeds.seeds_table`).
DIFFERENCES = {"wider_difference": ("not_near_zero_share", "dapo", "simplerl")}
_LEVELS = (0.50, 0.75, 0.90, 0.95, 0.99, 0.999)
_BINS = 20  # of the response
_AT_FIRST = 32  # tokens of the start that are shown one by one
_AROUND = (-24, 9)  # offsets from the position where the answer opens: first, last + 1
_CONTEXT = (16, 6)  # tokens shown before and behind an example


def sparsity_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Shares of positions by JS, mean and percentiles, per pair, benchmark and support."""

    def rows(boot: Bootstrap, model: str, benchmark: str, part: pd.DataFrame):
        for support, column in SUPPORTS.items():
            key = {"pair": study.models[model].label, "model": model, "benchmark": benchmark}
            key |= {"support": support, "positions": len(part)}
            yield key | sparsity_row(study, boot, part, part[column].to_numpy())

    return by(study, shifts, rows)


def sparsity_row(study, boot: Bootstrap, part: pd.DataFrame, js: np.ndarray) -> dict[str, float]:
    """Shares of the positions ``part`` by their JS [rows], its mean and percentiles."""
    shares = {f"share_le_{cut:g}": js <= cut for cut in study.thresholds.near_zero}
    high = study.thresholds.high_js
    shares |= {f"share_gt_{high:g}": js > high, "mean": js}
    return boot.ratios(part, shares) | boot.percentiles(part, js, _LEVELS)


def survival_table(study, shifts: dict[str, pd.DataFrame], grid: np.ndarray) -> pd.DataFrame:
    """Share of positions with JS above each of ``grid`` (nats): support, model, js, share."""
    boot, rows = study_bootstrap(study, *shifts.values()), []
    edges = [-np.inf, *grid, np.inf]
    for model, frame in shifts.items():
        codes, number = boot.codes(frame), len(boot.problems)
        for support, column in SUPPORTS.items():
            bins = np.searchsorted(edges, frame[column].to_numpy(), side="left") - 1
            counts = np.bincount(codes * (len(grid) + 1) + bins, minlength=number * (len(grid) + 1))
            counts = counts.reshape(number, -1)  # [problems, bins]
            for i, x in enumerate(grid):
                row = {"support": support, "model": model, "js": x}
                above = counts[:, i + 1 :].sum(axis=1)
                share = boot.estimate(above, counts.sum(axis=1), len(frame))
                rows.append(row | share.columns("share"))
    return pd.DataFrame(rows)


def relative_position(frame: pd.DataFrame) -> np.ndarray:
    """[rows] how far into its response a position is, 0 (first) to just under 1 (last)."""
    return frame["position"].to_numpy() / frame["n_tokens"].to_numpy()


def _from_answer(frame: pd.DataFrame) -> np.ndarray:
    """[rows] tokens after the one that opens the answer; NaN in responses without one."""
    opens = frame["answer_start"].to_numpy(dtype=np.float64, na_value=np.nan)
    return frame["position"].to_numpy() - opens


def start_and_middle(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """[rows] each: in the first tenth of a response; from .3 to .7 of it, before its answer."""
    place = relative_position(frame)
    return place < 0.1, (place >= 0.3) & (place < 0.7) & ~(_from_answer(frame) >= 0)


def answer_place(frame: pd.DataFrame) -> float:
    """Median of how far into a response its answer opens, 0 to 1; NaN where none has one."""
    places = relative_position(frame)[_from_answer(frame) == 0]
    return float(np.median(places)) if len(places) else np.nan


def position_profile(study, shifts: dict[str, pd.DataFrame], by: str) -> pd.DataFrame:
    """Mean JS by position, with intervals: model, x, positions, mean and full (of js_full).

    `by` is "relative" (x: middles of twentieths of the responses that ended by themselves, in %),
    "start" (the first tokens, one by one) or "answer" (offset from where the final answer opens). Of
    the last two, places that fewer than half of the responses have are left out: those are others.
    """
    boot, rows = study_bootstrap(study, *shifts.values()), []
    for model, frame in shifts.items():
        x = _places(study, frame, by)
        places, positions = np.unique(x[~np.isnan(x)], return_counts=True)
        if by != "relative":  # every response has its first token, or the one that opens its answer
            places = places[2 * positions >= positions[places == 0]]
        for place in places:
            part = frame[x == place]
            row = {"model": model, "x": place, "positions": len(part)}
            rows.append(row | boot.ratios(part, {"mean": part["js"], "full": part["js_full"]}))
    ends = [name + end for name in ("mean", "full") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["model", "x", "positions", *ends])


def _places(study, frame: pd.DataFrame, by: str) -> np.ndarray:
    """[rows] where on the axis `by` a position is drawn; NaN for nowhere."""
    if by == "relative":
        ended = (frame["n_tokens"] < study.sampling.max_new_tokens).to_numpy()
        middles = (np.floor(_BINS * relative_position(frame)) + 0.5) * 100 / _BINS
        return np.where(ended, middles, np.nan)
    if by == "start":
        position = frame["position"].to_numpy(dtype=np.float64)
        return np.where(position < _AT_FIRST, position, np.nan)
    if by == "answer":
        offset = _from_answer(frame)
        return np.where((offset >= _AROUND[0]) & (offset < _AROUND[1]), offset, np.nan)
    raise ValueError(f"unknown position axis: {by}")


def js_bins(js: pd.Series) -> pd.Categorical:
    """The bin of each JS, in words and in order; the last holds ln 2 in single precision too."""
    names = [f"≤ {JS_BINS[1]:g}"]
    names += [f"{low:g}–{high:.2g}" for low, high in pairwise(JS_BINS[1:])]
    return pd.cut(np.asarray(js), JS_BINS, labels=names, include_lowest=True)


def _frequent(js: np.ndarray, token: np.ndarray, cut: float, count: int = 10) -> list[int]:
    """The tokens most frequent at JS above the cut, most frequent first."""
    at_high = pd.Series(token[js > cut]).value_counts()
    return sorted(at_high.index, key=lambda t: (-at_high[t], t))[:count]


def identity_table(
    study, shifts: dict[str, pd.DataFrame], texts: dict[int, str], enriched_from: int | None = None
) -> pd.DataFrame:
    """The ten tokens most frequent, or most enriched, at high-JS positions, per model.

    Columns: model, token (text), occurrences, of which near_zero / between / high (shares by JS),
    share_of_high (of all high-JS positions) and enrichment (share among high-JS positions over
    share among all). Models without a high-JS position have no rows. With `enriched_from` the order
    is by enrichment, among tokens with at least so many high-JS occurrences.
    """
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    rows = []
    for model, frame in shifts.items():
        js, token = frame["js"].to_numpy(), frame["token"].to_numpy()
        at_high, everywhere = (pd.Series(t).value_counts() for t in (token[js > high], token))
        if enriched_from is None:
            chosen = _frequent(js, token, high)
        else:
            order = (at_high / everywhere[at_high.index])[at_high >= enriched_from]
            chosen = sorted(order.index, key=lambda t: (-order[t], t))[:10]
        for t in chosen:
            here, share = js[token == t], at_high[t] / at_high.sum()
            row = (model, texts[int(t)], len(here), (here <= low).mean())
            row += (((here > low) & (here <= high)).mean(), (here > high).mean())
            rows.append((*row, share, share / (len(here) / len(js))))
    names = ["model", "token", "occurrences", "near_zero", "between", "high"]
    return pd.DataFrame(rows, columns=[*names, "share_of_high", "enrichment"])


def examples_table(study, shifts: dict[str, pd.DataFrame], texts: dict[int, str]) -> pd.DataFrame:
    """The tokens most frequent at high JS, each where its JS is highest and where it is lowest.

    Columns: model, token, token_class, js, in_context (the token in double brackets). The first such
    position in the order of the records.
    """
    rows = []
    for model, frame in shifts.items():
        js, token = frame["js"].to_numpy(), frame["token"].to_numpy()
        for t in _frequent(js, token, study.thresholds.high_js):
            here = np.flatnonzero(token == t)
            for at in (here[js[here].argmax()], here[js[here].argmin()]):
                row = frame.iloc[at]
                first = max(at - min(int(row["position"]), _CONTEXT[0]), 0)
                last = at + min(int(row["n_tokens"] - row["position"]), _CONTEXT[1] + 1)
                before, own, after = (
                    "".join(texts[int(t)] for t in token[some])
                    for some in (slice(first, at), [at], slice(at + 1, last))
                )
                found = {"model": model, "token": own, "token_class": row["token_class"]}
                rows.append(found | {"js": js[at], "in_context": f"{before}[[{own}]]{after}"})
    return pd.DataFrame(rows, columns=["model", "token", "token_class", "js", "in_context"])


def class_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Shares of each class of tokens among near-zero, all and high-JS positions.

    Columns: model, token_class, positions, near_zero_share, share (of all), high_share, enrichment
    (high_share / share), with intervals.
    """
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    boot, rows = study_bootstrap(study, *shifts.values()), []
    for model, frame in shifts.items():
        js, of = frame["js"].to_numpy(), frame["token_class"].to_numpy()
        for name in (n for n in (*CLASSES, "structural") if (of == n).any()):
            among = {"near_zero_share": js <= low, "share": js >= 0, "high_share": js > high}
            found = {
                key: boot.ratio(frame, where & (of == name), where) for key, where in among.items()
            }
            found["enrichment"] = found["high_share"] / found["share"]
            row = {"model": model, "token_class": name, "positions": int((of == name).sum())}
            for key, estimate in found.items():
                row |= estimate.columns(key)
            rows.append(row)
    return pd.DataFrame(rows)


def why_js(top_p: float = 0.7) -> pd.DataFrame:
    """A worked example: what KL and JS say of five changes of one next-token distribution.

    Columns: change, base, tuned (probabilities), kl_base_tuned, kl_tuned_base, js (nats), all after
    truncation to the nucleus where the change says so.
    """
    cases = (
        ("a small shift", (0.60, 0.30, 0.10), (0.50, 0.38, 0.12), None),
        ("the choice flips", (0.90, 0.08, 0.02), (0.08, 0.90, 0.02), None),
        ("a tail token vanishes: 1e-6", (0.60, 0.39, 0.01), (0.60, 0.399999, 1e-6), None),
        ("the same, to 1e-30", (0.60, 0.39, 0.01), (0.60, 0.40, 1e-30), None),
        ("the small shift, after top-p", (0.60, 0.30, 0.10), (0.72, 0.20, 0.08), top_p),
        ("the flip, after top-p", (0.90, 0.08, 0.02), (0.08, 0.90, 0.02), top_p),
    )
    rows = []
    for change, base, tuned, p in cases:
        logs = [torch.log(torch.tensor([x], dtype=torch.float64)) for x in (base, tuned)]
        if p is not None:
            logs = [nucleus.truncate(x, p).log_probs() for x in logs]
        a, b = logs
        shown = [" ".join(f"{v:.3g}" for v in x.exp()[0].tolist()) for x in logs]
        row = {"change": change, "base": shown[0], "tuned": shown[1]}
        row |= {"kl_base_tuned": float(divergences.kl(a, b))}
        row |= {"kl_tuned_base": float(divergences.kl(b, a))}
        rows.append(row | {"js": float(divergences.js(a, b))})
    return pd.DataFrame(rows)


# What the claims look at --------------------------------------------------------------------------


def quantities(boot: Bootstrap, frame: pd.DataFrame, column: str = "js") -> dict[str, tuple]:
    """The quantities of section 1 on one support: name -> (estimate, the same at all positions, note).

    The second is the base rate of a share of a subset; None where there is none to compare with.
    """
    js, token = frame[column].to_numpy(), frame["token"].to_numpy()
    low, high, all_ = js <= NEAR_ZERO, js > HIGH_JS, np.ones(len(js), dtype=bool)
    base, tuned = frame["entropy_base"].to_numpy(), frame["entropy_tuned"].to_numpy()
    offset = _from_answer(frame)
    start, middle = start_and_middle(frame)
    later = frame["position"].to_numpy() >= FIRST
    long = frame["n_tokens"].to_numpy() > 10 * FIRST  # only these have a later start
    nothing = "" if high.any() else f"no position with JS > {HIGH_JS:g}"

    def mean(where):
        return boot.ratio(frame, js * where, where)

    def share(inside, among=all_):
        return boot.ratio(frame, among & inside, among)

    def shared(inside, among, note=""):
        return share(inside, among), share(inside), note

    found = {
        "near_zero_share": (share(low), None, ""),
        "not_near_zero_share": (share(~low), None, ""),
        "high_js_share": (share(high), None, ""),
        "start_ratio": (mean(start) / mean(middle), None, ""),
        "later_start_ratio": (mean(start & later) / mean(middle & long), None, ""),
        "answer_ratio": (mean(offset == 0) / mean(middle & ~np.isnan(offset)), None, ""),
        "low_js_low_entropy": shared(np.maximum(base, tuned) <= LOW_ENTROPY, low),
        "high_js_low_entropy": shared(base <= LOW_ENTROPY, high, nothing),
        "high_js_high_entropy": shared(base >= HIGH_ENTROPY, high, nothing),
        "identity_variance": (boot.variance_explained(frame, js, token), None, ""),
    }
    frequent = _frequent(js, token, HIGH_JS)
    mostly = [share(~high, token == t) for t in frequent]
    found["mostly_low_tokens"] = (_how_many(mostly, boot), None, nothing)
    classes, natural = frame["token_class"].to_numpy(), frame["token_class"].isin(CLASSES[:5]).any()
    for name, sort, sign in (("structural", STRUCTURAL, 1), ("words", WORDS, -1)):
        inside = np.isin(classes, sort)
        ends = [share(inside, among) for among in (low, high)[::sign]]
        found[f"{name}_difference"] = (ends[0] - ends[1], None, nothing)
    if not natural:
        why = "the study's texts are no natural language"
        found["words_difference"] = (None, None, why)
    return found


def _how_many(shares: list[Estimate], boot: Bootstrap) -> Estimate:
    """The share of some shares that are above one half."""
    if not shares:
        return boot.estimate(np.zeros(len(boot.problems)), np.zeros(len(boot.problems)), 0)
    draws = np.stack([s.draws for s in shares])
    over = np.where(np.isnan(draws), np.nan, draws > 0.5).mean(axis=0)
    value = np.mean([s.value > 0.5 for s in shares])
    return Estimate(float(value), over, boot.confidence, next((s.why for s in shares if s.why), ""))


def rows_on(study, shifts: dict[str, pd.DataFrame], column: str) -> list[tuple]:
    """(quantity, model, estimate, at all positions, note) of every RL model and SFT control."""
    boot, rows = study_bootstrap(study, *shifts.values()), []
    rl = [m for m in of_kind(study, "rl") if m in shifts]
    for model in rl:
        found = quantities(boot, shifts[model], column)
        rows += [(quantity, model, *parts) for quantity, parts in found.items()]
    dense = {m: boot.ratio(f, f[column].to_numpy() > HIGH_JS) for m, f in shifts.items()}
    if rl:
        widest = max(rl, key=lambda m: dense[m].value)
        note = f"against {study.models[widest].label}"
        for model in of_kind(study, "sft"):
            if model in shifts:
                ratio = dense[model] / dense[widest]
                rows.append(("sft_density_ratio", model, ratio, None, note))
    return rows


def section_evidence(study, shifts: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(evidence of section 1, the same quantities on both supports)."""
    return on_both_supports(study, lambda column: rows_on(study, shifts, column))


def over_seeds(study, runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The quantities over training seeds, DAPO against SimpleRL among them, see `seeds_table`."""
    return seeds_table(study, measured(study, runs, quantities), DIFFERENCES)


# Words --------------------------------------------------------------------------------------------


def say_sparsity(study, table: pd.DataFrame) -> str:
    """What the sparsity table shows on both supports, beside what the paper says."""
    cut, high, out = study.thresholds.near_zero[-1], study.thresholds.high_js, []
    for row, full in zip(*(last_rows(study, table, support=s) for s in SUPPORTS)):
        recipe = study.models[row["model"]].recipe
        paper = f" (the paper: more than {fact(f'sparsity_{recipe}').value:.0%})" if recipe else ""
        le, gt = f"share_le_{cut:g}", f"share_gt_{high:g}"
        out.append(
            f"{row['pair']}: JS is at most {cut:g} at {percent(row, le)} of positions{paper} and "
            f"above {high:g} at {percent(row, gt)}; over the full vocabulary at "
            f"{percent(full, le)} and {percent(full, gt)}."
        )
    return "\n".join(out)


def controls_table(study, table: pd.DataFrame, answers: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """RL models and controls, each with its accuracy on all benchmarks and how far it is from base.

    ``table`` is `sparsity_table`, ``answers`` are `records.answers`. Accuracies are on the samples that
    all of them have.
    """
    rows, high = [], f"share_gt_{study.thresholds.high_js:g}"
    answers = on_shared_samples(answers)
    for row in last_rows(study, table, ("rl", *CONTROLS), support="nucleus"):
        own = answers[row["model"]]
        accuracy = study_bootstrap(study, own).accuracy(own).columns("accuracy")
        names = {high: high, "mean_js": "mean"}
        shift = {a + end: row[b + end] for a, b in names.items() for end in ("", "_low", "_high")}
        kind = study.models[row["model"]].kind
        known = {"pair": row["pair"], "model": row["model"], "kind": kind}
        known |= {"samples": own["sample"].nunique()} | accuracy
        rows.append(known | shift)
    return pd.DataFrame(rows, columns=None if rows else ["kind"])


def say_controls(study, table: pd.DataFrame) -> str:
    """How dense the controls are against the RL models, and how accurate. ``table``: `controls_table`."""
    cut, high = study.thresholds.high_js, f"share_gt_{study.thresholds.high_js:g}"
    rows = table.to_dict("records")
    rl, controls = (
        [row for row in rows if (row["kind"] == "rl") == is_rl] for is_rl in (True, False)
    )
    if not controls:
        return "This study has no SFT control."
    if not rl:
        return "This study has no RL model to compare its controls with."
    widest = max(rl, key=lambda row: row[high])

    def times(row) -> str:
        ratio = row[high] / widest[high] if widest[high] > 0 else np.inf
        return f"{ratio:.1f}" if ratio >= 0.95 else f"{ratio:.2g}"

    return "\n".join(
        f"{row['pair']}: JS is above {cut:g} at {percent(row, high)} of positions, "
        f"{times(row)} times the share of "
        f"{widest['pair']}; it solves {percent(row, 'accuracy')}, {widest['pair']} "
        f"{percent(widest, 'accuracy')}."
        for row in controls
    )


def _say_evidence(study, found: pd.DataFrame, texts: dict[tuple[str, ...], str]) -> str:
    """A line an RL model: of the texts, by the quantities that each names, the first whose all are there.

    See `say`; base rates are NAME_note.
    """
    out = []
    for model in of_kind(study, "rl"):
        for quantities, text in texts.items():
            rows = {name: last_row(found, quantity=name, subject=model) for name in quantities}
            if any(row is None or np.isnan(row["value"]) for row in rows.values()):
                continue
            own = {"pair": study.models[model].label}
            for name, row in rows.items():
                own |= columns_of(name, tuple(row[["value", "low", "high"]]))
                own[f"{name}_note"] = row["note"]
            out.append(say("{pair}: " + text, own))
            break
    return "\n".join(out)


def say_position(study, found: pd.DataFrame) -> str:
    """Start and answer against the middle, from the evidence; without what has no interval."""
    unsure = found["quantity"].eq("later_start_ratio") & found["low"].isna()
    answer = "mean JS is {answer_ratio:.1f} times the middle's where the answer opens"
    start = "{start_ratio:.1f} times in the first tenth of a response"
    later = f"{{later_start_ratio:.2g}} times there without its first {FIRST} tokens"
    texts = {
        ("answer_ratio", "start_ratio", "later_start_ratio"): f"{answer}, {start}, and {later}.",
        ("answer_ratio", "start_ratio"): f"{answer} and {start}.",
        ("start_ratio",): "mean JS in the first tenth is {start_ratio:.1f} times the middle's.",
    }
    return _say_evidence(study, found[~unsure], texts)


def say_entropy(study, found: pd.DataFrame) -> str:
    """At which entropies low and high JS are found, beside all positions, from the evidence."""
    text = (
        "at high-JS positions base is unsure (at least a coin flip of entropy) at "
        "{high_js_high_entropy:%} ({high_js_high_entropy_note:}) and confident (at most half of one) at "
        "{high_js_low_entropy:%} ({high_js_low_entropy_note:}). At near-zero ones both models are "
        "confident at {low_js_low_entropy:%} ({low_js_low_entropy_note:})."
    )
    quantities = ("low_js_low_entropy", "high_js_low_entropy", "high_js_high_entropy")
    return _say_evidence(study, found, {quantities: text})


def say_identity(study, found: pd.DataFrame) -> str:
    """How much token identity decides, and which classes are where, from the evidence."""
    text = (
        "{mostly_low_tokens:.0%} of the ten tokens most frequent at high JS have JS of at most "
        f"{HIGH_JS:g} in most of their occurrences; "
        "token identity explains {identity_variance:%} of the variance of JS."
    )
    digits = "digits and operators: {structural_difference:points} of near-zero tokens against high-JS ones."
    words = "function and reasoning words: {words_difference:points} of high-JS tokens against near-zero ones."
    parts = [
        _say_evidence(study, found, {("mostly_low_tokens", "identity_variance"): text}),
        _say_evidence(study, found, {("structural_difference",): digits}),
        _say_evidence(study, found, {("words_difference",): words}),
    ]
    return "\n".join(part for part in parts if part)


def say_js_entropy(study, shifts: dict[str, pd.DataFrame]) -> str:
    """The other way round: how often JS is high where base is unsure, and where it is confident."""
    boot, out, cut = study_bootstrap(study, *shifts.values()), [], study.thresholds.high_js
    text = (
        "{pair}: JS is above {cut:g} at {open:%} of the positions where base has at least a coin flip "
        "of entropy, and at {closed:%} where it has at most half of one."
    )
    for model, frame in shifts.items():
        base, high = frame["entropy_base"].to_numpy(), (frame["js"] > cut).to_numpy()
        among = {"open": base >= HIGH_ENTROPY, "closed": base <= LOW_ENTROPY}
        row = boot.ratios(frame, {name: (where & high, where) for name, where in among.items()})
        out.append(say(text, row, pair=study.models[model].label, cut=cut))
    return "\n".join(out)
