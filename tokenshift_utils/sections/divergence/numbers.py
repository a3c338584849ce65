"""Section 1: how large the shifts are, and where they are (numbers; drawing is elsewhere).

Frames of shifts hold one row a position of the tuned model's own responses. `js` is between the
distributions sampled from (temperature, then top-p, renormalised), `js_full` over the full
vocabulary; both in nats. Entropies are over the full vocabulary, in nats.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from tokenshift_utils.measures import divergences, nucleus
from tokenshift_utils.report.bootstrap import Bootstrap, Estimate
from tokenshift_utils.sections.claims import HIGH_ENTROPY, HIGH_JS, LOW_ENTROPY, NEAR_ZERO
from tokenshift_utils.sections.common import (
    by,
    evidence,
    last_row,
    of_kind,
    of_recipe,
    percent,
    plan,
    say,
    token_class,
)
from tokenshift_utils.sections.paper import fact

# The columns of the shifts records that this section needs.
COLUMNS = (
    *("benchmark", "problem", "sample", "position", "n_tokens", "token"),
    *("js", "js_full", "entropy_base", "entropy_tuned", "answer_start"),
)
SUPPORTS = {"js": "nucleus", "js_full": "full"}
JS_BINS = (0.0, 0.001, 0.01, 0.1, 0.3, 0.69315)  # nats; the last is above ln 2 in float32 too
_LEVELS = (0.50, 0.75, 0.90, 0.95, 0.99, 0.999)
_ABSOLUTE = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513, 1025, 2049, 4097, 8193, 16385, 32769)
_AROUND = (-24, 9)  # offsets from the position where the answer opens: first, last + 1


def sparsity_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Shares of positions by JS, mean and percentiles, per pair, benchmark and support."""

    def rows(boot: Bootstrap, model: str, benchmark: str, part: pd.DataFrame):
        for column, support in SUPPORTS.items():
            key = {"pair": study.models[model].label, "model": model, "benchmark": benchmark}
            key |= {"support": support, "positions": len(part)}
            yield key | sparsity_row(study, boot, part, part[column].to_numpy())

    return by(study, shifts, rows)


def sparsity_row(study, boot: Bootstrap, part: pd.DataFrame, js: np.ndarray) -> dict[str, float]:
    """Shares of the positions ``part`` by their JS [rows], its mean and percentiles."""
    row: dict[str, float] = {}
    for cut in study.thresholds.near_zero:
        row |= boot.ratio(part, js <= cut).columns(f"share_le_{cut:g}")
    high = study.thresholds.high_js
    row |= boot.ratio(part, js > high).columns(f"share_gt_{high:g}")
    row |= boot.ratio(part, js).columns("mean")
    for level, estimate in zip(_LEVELS, boot.quantiles(part, js, _LEVELS)):
        row |= estimate.columns(f"p{100 * level:g}")
    return row


def relative_position(frame: pd.DataFrame) -> np.ndarray:
    """[rows] how far into its response a position is, 0 (first) to just under 1 (last)."""
    return frame["position"].to_numpy() / frame["n_tokens"].to_numpy()


def _finished(study, frame: pd.DataFrame) -> np.ndarray:
    """[rows] whether the response ended by itself: only then is its end an end."""
    return (frame["n_tokens"] < study.sampling.max_new_tokens).to_numpy()


def position_profile(study, shifts: dict[str, pd.DataFrame], by: str) -> pd.DataFrame:
    """Mean JS by position, with intervals: model, x, label, mean(_low, _high), positions.

    `by` is "relative" (tenths of the response, only of responses that ended by themselves),
    "absolute" (bins that double) or "answer" (offset from where the final answer opens).
    """
    boot, rows = plan(study, *shifts.values()), []
    for model, frame in shifts.items():
        frame, bins, labels = _bins(study, frame, by)
        js = frame["js"].to_numpy()
        for b in np.unique(bins):
            inside = bins == b
            row = {"model": model, "x": int(b), "label": labels(int(b))}
            row["positions"] = int(inside.sum())
            rows.append(row | boot.ratio(frame[inside], js[inside]).columns("mean"))
    names = ["model", "x", "label", "positions", "mean", "mean_low", "mean_high"]
    return pd.DataFrame(rows, columns=names)


def _bins(study, frame: pd.DataFrame, by: str):
    """(rows used, [rows] bin of each, bin -> label)."""
    if by == "relative":
        frame = frame[_finished(study, frame)]
        tenths = np.minimum((10 * relative_position(frame)).astype(int), 9)
        return frame, tenths, lambda b: f"{10 * b}–{10 * b + 10}%"
    if by == "absolute":
        edges = np.asarray(_ABSOLUTE)
        bins = np.searchsorted(edges, frame["position"].to_numpy(), side="right") - 1

        def name(b: int) -> str:
            first, last = edges[b], edges[b + 1] - 1 if b + 1 < len(edges) else None
            return f"{first}" if first == last else f"{first}–{'' if last is None else last}"

        return frame, bins, name
    if by == "answer":
        frame = frame[frame["answer_start"].notna()]
        offset = (frame["position"] - frame["answer_start"].astype(int)).to_numpy()
        near = (offset >= _AROUND[0]) & (offset < _AROUND[1])
        return frame[near], offset[near], lambda b: f"{b:+d}"
    raise ValueError(f"unknown position axis: {by}")


def entropy_by_js(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Quantiles of both models' entropies in bins of JS.

    One row a model, JS bin and side ("base" or the model): positions, p10, p25, p50, p75, p90.
    Empty bins are left out.
    """
    quantiles = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}
    rows = []
    for model, frame in shifts.items():
        which = np.searchsorted(JS_BINS[1:-1], frame["js"].to_numpy(), side="left")
        for b, inside in frame.groupby(which):
            name = f"≤ {JS_BINS[1]:g}" if b == 0 else f"{JS_BINS[b]:g}–{JS_BINS[b + 1]:.2g}"
            for side in ("base", "tuned"):
                row = {"model": model, "js_bin": name, "bin": b, "side": side}
                levels = np.quantile(inside[f"entropy_{side}"], list(quantiles.values()))
                rows.append(row | {"positions": len(inside)} | dict(zip(quantiles, levels)))
    return pd.DataFrame(rows)


def identity_table(
    study,
    shifts: dict[str, pd.DataFrame],
    texts: dict[int, str],
    count: int = 10,
    enriched_from: int | None = None,
) -> pd.DataFrame:
    """The tokens most frequent, or most enriched, at high-JS positions, per model.

    Columns: model, token (text), occurrences, of which near_zero / between / high (shares by JS),
    share_of_high (of all high-JS positions) and enrichment (share among high-JS positions over
    share among all). Models without a high-JS position have no rows. With `enriched_from` the order
    is by enrichment, among tokens with at least so many high-JS occurrences.
    """
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    rows = []
    for model, frame in shifts.items():
        js, token = frame["js"].to_numpy(), frame["token"].to_numpy()
        total_high = int((js > high).sum())
        at_high, everywhere = (pd.Series(t).value_counts() for t in (token[js > high], token))
        order = at_high
        if enriched_from is not None:
            order = (at_high / everywhere[at_high.index])[at_high >= enriched_from]
        for t in sorted(order.index, key=lambda t: (-order[t], t))[:count]:
            here = js[token == t]
            share = at_high[t] / total_high
            row = {"model": model, "token": texts[int(t)], "occurrences": len(here)}
            row["near_zero"] = (here <= low).mean()
            row["between"] = ((here > low) & (here <= high)).mean()
            row["high"] = (here > high).mean()
            row["share_of_high"] = share
            row["enrichment"] = share / (len(here) / len(js))
            rows.append(row)
    names = ["model", "token", "occurrences", "near_zero", "between", "high"]
    return pd.DataFrame(rows, columns=[*names, "share_of_high", "enrichment"])


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


def _shares(boot: Bootstrap, frame: pd.DataFrame, among, inside) -> Estimate:
    """Share of the rows `among` that are also `inside`."""
    return boot.ratio(frame, among & inside, among)


def divergence_evidence(
    study, shifts: dict[str, pd.DataFrame], texts: dict[int, str]
) -> pd.DataFrame:
    """What the claims of section 1 look at, for every RL model and SFT control."""
    boot, rows = plan(study, *shifts.values()), []
    rl = [m for m in of_kind(study, "rl") if m in shifts]
    structural = {t for t, text in texts.items() if token_class(text) == "structural"}
    for model in rl:
        rows += _evidence_of(study, boot, model, shifts[model], structural)
    pair = [of_recipe(study, recipe, rl) for recipe in ("dapo", "simplerl")]
    if None not in pair:
        wide = [boot.ratio(shifts[m], shifts[m]["js"].to_numpy() > NEAR_ZERO) for m in pair]
        rows.append(("wider_difference", pair[0], wide[0] - wide[1], ""))
    dense = {m: boot.ratio(f, f["js"].to_numpy() > HIGH_JS) for m, f in shifts.items()}
    if rl:
        widest = max(rl, key=lambda m: dense[m].value)
        note = f"against {study.models[widest].label}"
        for model in of_kind(study, "sft"):
            if model in shifts:
                rows.append(("sft_density_ratio", model, dense[model] / dense[widest], note))
    return evidence(rows)


def _evidence_of(study, boot: Bootstrap, model: str, frame: pd.DataFrame, structural: set) -> list:
    js = frame["js"].to_numpy()
    low, high = js <= NEAR_ZERO, js > HIGH_JS
    base, tuned = frame["entropy_base"].to_numpy(), frame["entropy_tuned"].to_numpy()
    token = frame["token"].to_numpy()
    place, ended = relative_position(frame), _finished(study, frame)
    middle = (place >= 0.3) & (place < 0.7)
    start, end = place < 0.1, (place >= 0.9) & ended
    of_structure = np.isin(token, list(structural))
    nothing = "" if high.any() else f"no position with JS > {HIGH_JS:g}"

    def mean(where):
        return boot.ratio(frame, js * where, where)

    among_high = pd.Series(token[high]).value_counts()
    frequent = sorted(among_high.index, key=lambda t: (-among_high[t], t))[:10]
    often = np.isin(token, frequent)
    sure = np.maximum(base, tuned) <= LOW_ENTROPY
    structural_share = [_shares(boot, frame, among, of_structure) for among in (low, high)]
    measured = {
        "near_zero_share": (boot.ratio(frame, low), ""),
        "high_js_share": (boot.ratio(frame, high), ""),
        "start_ratio": (mean(start) / mean(middle), ""),
        "end_ratio": (mean(end) / mean(middle & ended), ""),
        "low_js_low_entropy": (_shares(boot, frame, low, sure), ""),
        "high_js_low_entropy": (_shares(boot, frame, high, base <= LOW_ENTROPY), nothing),
        "high_js_high_entropy": (_shares(boot, frame, high, base >= HIGH_ENTROPY), nothing),
        "structural_difference": (structural_share[0] - structural_share[1], nothing),
        "identity_variance": (boot.variance_explained(frame, js, token), ""),
        "frequent_low_share": (_shares(boot, frame, often, ~high), nothing),
    }
    return [(quantity, model, *found) for quantity, found in measured.items()]


# Words --------------------------------------------------------------------------------------------


def say_sparsity(study, table: pd.DataFrame) -> str:
    """What the sparsity table shows, beside what the paper says."""
    cut, high, out = study.thresholds.near_zero[-1], study.thresholds.high_js, []
    for model in of_kind(study, "rl"):
        row = last_row(table, model=model, support="nucleus")
        if row is None:
            continue
        recipe = study.models[model].recipe
        theirs = fact(f"sparsity_{recipe}").value if recipe else None
        paper = f" (the paper: more than {theirs:.0%})" if recipe else ""
        text = (
            "{pair}: at {share_le_%g:%%} of {positions:,} positions JS is at most {cut:g}{paper}, "
            "at {share_gt_%g:%%} it is above {high:g}."
        )
        out.append(say(text % (cut, high), row, cut=cut, high=high, paper=paper))
    return "\n".join(out)


def say_controls(study, table: pd.DataFrame) -> str:
    """How dense the SFT controls are against the RL models."""
    cut, high = study.thresholds.high_js, f"share_gt_{study.thresholds.high_js:g}"
    rows = {m: last_row(table, model=m, support="nucleus") for m in of_kind(study, "rl", "sft")}
    rl, sft = (
        [rows[m] for m in of_kind(study, kind) if rows[m] is not None] for kind in ("rl", "sft")
    )
    if not sft:
        return "This study has no SFT control."
    if not rl:
        return "This study has no RL model to compare its SFT controls with."
    widest = max(rl, key=lambda row: row[high])
    return "\n".join(
        f"{row['pair']}: JS is above {cut:g} at {percent(row, high)} of positions, "
        f"{row[high] / widest[high] if widest[high] > 0 else np.inf:.1f} times the share of "
        f"{widest['pair']}."
        for row in sft
    )


def say_position(study, found: pd.DataFrame) -> str:
    """Start and end against the middle, from the evidence."""
    text = (
        "{pair}: mean JS in the {part} tenth is {value:.2f} [{low:.2f}, {high:.2f}] times that of "
        "the middle."
    )
    return "\n".join(
        say(text, row, pair=study.models[model].label, part=part)
        for model in of_kind(study, "rl")
        for quantity, part in (("start_ratio", "first"), ("end_ratio", "last"))
        if (row := last_row(found, quantity=quantity, subject=model)) is not None
        and not np.isnan(row["value"])
    )


def _say_evidence(study, found: pd.DataFrame, text: str, *quantities: str) -> str:
    """A line an RL model of which all quantities are there: {0}, {1}, ... in the text."""
    out = []
    for model in of_kind(study, "rl"):
        rows = [last_row(found, quantity=quantity, subject=model) for quantity in quantities]
        if all(row is not None for row in rows):
            shares = (percent(row, "value") for row in rows)
            out.append(f"{study.models[model].label}: " + text.format(*shares))
    return "\n".join(out)


def say_entropy(study, found: pd.DataFrame) -> str:
    """At which entropies low and high JS are found, from the evidence."""
    text = (
        "of the near-zero positions {0} have both entropies under half a coin flip; of the high-JS "
        "positions base is that confident at {1} and has at least a coin flip of entropy at {2}."
    )
    quantities = ("low_js_low_entropy", "high_js_low_entropy", "high_js_high_entropy")
    return _say_evidence(study, found, text, *quantities)


def say_identity(study, found: pd.DataFrame) -> str:
    """How much token identity decides, from the evidence."""
    text = (
        "token identity explains {0} of the variance of JS; the ten tokens most frequent at high "
        "JS are not high-JS in {1} of their occurrences."
    )
    return _say_evidence(study, found, text, "identity_variance", "frequent_low_share")


def say_js_entropy(study, shifts: dict[str, pd.DataFrame]) -> str:
    """The other way round: how often JS is high where base is unsure, and where it is confident."""
    boot, out, cut = plan(study, *shifts.values()), [], study.thresholds.high_js
    text = (
        "{pair}: where base has at least a coin flip of entropy ({unsure:,} positions) JS is above "
        "{cut:g} at {open:%}; where it has at most half of one ({sure:,}) at {closed:%}."
    )
    for model, frame in shifts.items():
        base, high = frame["entropy_base"].to_numpy(), (frame["js"] > cut).to_numpy()
        unsure, sure = base >= HIGH_ENTROPY, base <= LOW_ENTROPY
        row = {"pair": study.models[model].label, "cut": cut}
        row |= {"unsure": unsure.sum(), "sure": sure.sum()}
        row |= _shares(boot, frame, unsure, high).columns("open")
        out.append(say(text, row | _shares(boot, frame, sure, high).columns("closed")))
    return "\n".join(out)
