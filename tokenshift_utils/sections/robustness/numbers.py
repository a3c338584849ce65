"""Section 5, what reviewers asked for: do the findings hang on how they were measured? (numbers)

Is high JS the edge of the nucleus, and which findings hold at another top-p; does it matter on whose
trajectories, and with which sampler, it is measured; how much of the accuracy gained is the form of
the answer; does RL solve problems that base never solves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

import numpy as np
import pandas as pd

from tokenshift_utils.report.bootstrap import Bootstrap, Estimate
from tokenshift_utils.report.seeds import pass_at_k
from tokenshift_utils.sections.claims import LOW_ENTROPY
from tokenshift_utils.sections.common import (
    SUPPORTS,
    by,
    last_row,
    last_rows,
    on_shared_samples,
    pooled,
    rows_with,
    say,
    say_each,
    study_bootstrap,
)
from tokenshift_utils.sections.divergence.numbers import start_and_middle
from tokenshift_utils.sections.paper import fact
from tokenshift_utils.tasks.benchmarks import load_benchmark

COLUMNS = ("benchmark", "problem", "sample", "position", "js", "js_full")
SUPPORT = ("nucleus_base", "nucleus_tuned")
PLACES = (
    *("n_tokens", "answer_start", "entropy_base", "entropy_tuned"),
    *("rank_base_of_tuned_top1", "logp_base_of_tuned_top1"),
)
READ = ("benchmark", "problem", "sample", "correct")
# No sign where a number stands before it: 5-3 ends in 3.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\d+(?:,\d{3})*(?:\.\d+)?")


def support_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """JS on the truncated distributions against JS on the full vocabulary, position by position.

    Columns: both_high, only_nucleus_high, only_full_high (shares of positions by the high-JS
    cut), nucleus_high_full_high and nucleus_high_full_near_zero (of the positions that are high on
    truncated distributions, the share that is high, or near zero, in full), nuclei_differ_share and
    nuclei_differ_share_at_high (share whose two nuclei differ in size, of all and of the high ones),
    nucleus_zero (share with truncated JS exactly 0), full_median_at_nucleus_high (nats),
    rank_correlation.
    """
    high, low = study.thresholds.high_js, study.thresholds.near_zero[-1]

    def rows(boot: Bootstrap, model: str, benchmark: str, part: pd.DataFrame):
        cut, full = part["js"].to_numpy(), part["js_full"].to_numpy()
        row = {"pair": study.models[model].label, "model": model, "benchmark": benchmark}
        row["positions"] = len(part)
        differ = (part["nucleus_base"] != part["nucleus_tuned"]).to_numpy()
        shares = {
            "both_high": (cut > high) & (full > high),
            "only_nucleus_high": (cut > high) & (full <= high),
            "only_full_high": (cut <= high) & (full > high),
            "nucleus_high_full_high": ((cut > high) & (full > high), cut > high),
            "nucleus_high_full_near_zero": ((cut > high) & (full <= low), cut > high),
            "nuclei_differ_share_at_high": ((cut > high) & differ, cut > high),
            "nuclei_differ_share": differ,
            "nucleus_zero": cut == 0,
        }
        row |= boot.ratios(part, shares)
        at_high = full[cut > high]
        row["full_median_at_nucleus_high"] = float(np.median(at_high)) if len(at_high) else np.nan
        rank = part[["js", "js_full"]].corr(method="spearman").iloc[0, 1]
        yield row | {"rank_correlation": rank}

    return by(study, shifts, rows)


def _measures(study, boot: Bootstrap, part: pd.DataFrame) -> dict[str, float]:
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    row: dict[str, float] = {}
    for support, column in SUPPORTS.items():
        js = part[column].to_numpy()
        shares = {"near_zero": js <= low, "high": js > high, "mean": js}
        row |= boot.ratios(part, {f"{support}_{name}": share for name, share in shares.items()})
    return row


def source_table(study, model: str, sources: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The same pair measured on different trajectories; `sources` maps their name to shifts. On the
    samples that all have."""

    def rows(boot: Bootstrap, source: str, benchmark: str, part: pd.DataFrame):
        row = {"pair": study.models[model].label, "trajectories": source}
        row |= {"benchmark": benchmark, "positions": len(part)}
        yield row | _measures(study, boot, part)

    return by(study, on_shared_samples(sources), rows)


def sampling_settings(study) -> list[dict[str, float]]:
    """The sampler settings to compare: one of top-p and temperature varies, the other stays."""
    kept = {"top_p": study.sampling.top_p, "temperature": study.sampling.temperature}
    found = [kept | {"top_p": p} for p in sorted(study.robustness.top_p)]
    found += [kept | {"temperature": t} for t in sorted(study.robustness.temperature)]
    return list({tuple(s.values()): s for s in found}.values())


def sampling_table(
    study,
    shifts: Mapping[tuple[float, float], pd.DataFrame],
    rollouts: Mapping[tuple[float, float], dict[str, pd.DataFrame]],
) -> pd.DataFrame:
    """Shifts and accuracies of one pair on one benchmark under other samplers.

    Both mappings go from (top_p, temperature) to shifts, and to the rollouts of base and tuned.
    """
    boot, rows = study_bootstrap(study, *shifts.values()), []
    for (top_p, temperature), frame in shifts.items():
        row = {"top_p": top_p, "temperature": temperature, "positions": len(frame)}
        row |= _measures(study, boot, frame)
        for model, responses in rollouts[top_p, temperature].items():
            side = "base" if model == study.base else "tuned"
            row |= boot.accuracy(responses).columns(f"accuracy_{side}")
        rows.append(row)
    return pd.DataFrame(rows)


def top_p_table(study, by_top_p: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    """Headlines of sections 1 and 3 at the same positions, with nuclei of another top-p: a row each.

    Of all positions near_zero, high and start_ratio (mean JS of a response's first tenth / of its
    middle, as in section 1); low_entropy_share_at_low (both models' entropy is low, of those near zero); of the high ones
    top1_share_at_high, top3_share_at_high (RL's first choice is base's first, in base's top 3) and
    unlikely_share_at_high; of those that are high at the study's own top-p stays_high_share and the
    median js_there (nats). Top-p 1 is the full distribution.
    """
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    here = by_top_p[study.sampling.top_p].reset_index(drop=True)
    boot = study_bootstrap(study, here)
    key = ["benchmark", "problem", "sample", "position"]
    moved = {
        p: here[key].merge(frame[[*key, "js"]], "left", key)["js"].to_numpy()
        for p, frame in by_top_p.items()
    }
    moved |= {1.0: here["js_full"].to_numpy()} if 1.0 in study.robustness.top_p else {}
    start, middle = start_and_middle(here)
    calm = (here[["entropy_base", "entropy_tuned"]] <= LOW_ENTROPY).all(axis=1).to_numpy()
    rank = here["rank_base_of_tuned_top1"].to_numpy()
    unlikely = here["logp_base_of_tuned_top1"].to_numpy() < np.log(0.01)
    before, rows = here["js"].to_numpy() > high, []
    for p, js in sorted(moved.items()):
        at, zero = js > high, js <= low
        shares = {
            "near_zero": zero,
            "high": at,
            "stays_high_share": (at & before, before),
            "low_entropy_share_at_low": (zero & calm, zero),
            "top1_share_at_high": (at & (rank <= 1), at),
            "top3_share_at_high": (at & (rank <= 3), at),
            "unlikely_share_at_high": (at & unlikely, at),
        }
        row = {"top_p": p, "positions": len(here)} | boot.ratios(here, shares)
        opening = boot.ratio(here, js * start, start) / boot.ratio(here, js * middle, middle)
        row |= opening.columns("start_ratio") | {"mean_js": js.mean()}
        rows.append(row | {"js_there": float(np.median(js[before])) if before.any() else np.nan})
    return pd.DataFrame(rows)


# Answers ------------------------------------------------------------------------------------------


def with_forms(study, responses: pd.DataFrame) -> pd.DataFrame:
    """Judged responses with `answered` (an answer in the form asked for) and `last_number`.

    last_number : whether the last number of the response's text is the answer, whatever its form; NaN
        where what is asked is no number. As for `correct`, a response cut at its limit is wrong.
    """
    asked = {
        (name, p.id): p.answer.replace(",", "")
        for name in responses["benchmark"].unique()
        for p in load_benchmark(study, name)
    }

    def last(text: str, answer: str) -> float:
        if not _NUMBER.fullmatch(answer):
            return np.nan
        found = _NUMBER.findall(text)
        return float(bool(found) and Decimal(found[-1].replace(",", "")) == Decimal(answer))

    ended = responses["finish_reason"] == "eos"
    keys = zip(responses["benchmark"], responses["problem"])
    right = [last(text, asked[key]) for text, key in zip(responses["text"], keys)]
    return responses.assign(
        answered=ended & responses["answer"].notna(), last_number=np.array(right) * ended
    ).drop(columns=["text", "answer", "finish_reason"])


def answers_table(study, answers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """mean@k of every model beside pass@k, and beside what it is where the last number is judged.

    `answered` is the share of responses that have an answer in the form asked for. Two k: the fewest
    and the most responses a problem that a model has, `samples`. `accuracy_last_number` is on the
    benchmarks whose answers are numbers.
    """
    sizes = [_samples(frame) for frame in answers.values()]
    ks = sorted({min(sizes), max(sizes)})

    def rows(boot: Bootstrap, model: str, benchmark: str, part: pd.DataFrame):
        row = {"label": study.models[model].label, "model": model, "benchmark": benchmark}
        row |= {"samples": _samples(part)} | boot.accuracy(part).columns("accuracy")
        for k in ks:
            row |= _pass(boot, part, k).columns(f"pass@{k}")
        row |= boot.accuracy(part, "answered").columns("answered_share")
        number = part.dropna(subset="last_number")
        if len(number):
            row |= boot.accuracy(number, "last_number").columns("accuracy_last_number")
        yield row

    return by(study, answers, rows)


def _samples(responses: pd.DataFrame) -> int:
    """The fewest responses that a problem has."""
    return int(responses.groupby(["benchmark", "problem"]).size().min())


def _pass(boot: Bootstrap, responses: pd.DataFrame, k: int) -> Estimate:
    """pass@k, mean over problems; NaN where there are fewer than k responses."""
    counts = responses.groupby(["benchmark", "problem"])["correct"].agg(["sum", "size"])
    chance = pass_at_k(counts["sum"].to_numpy(), counts["size"].to_numpy(), k)
    return boot.ratio(counts.reset_index(), chance)


def format_table(study, answers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How much of each model's gap to base is the form of the answer.

    `gap` as judged, and `pass_points` in pass@k. On the benchmarks whose answers are numbers alone:
    `judged_points` as judged, `last_number_points` where the last number is judged instead, and what lies
    between them, `form_points`. All on the k samples that both models have.
    """
    base = answers[study.base]
    tuned = {model: frame for model, frame in answers.items() if model != study.base}

    def rows(boot: Bootstrap, model: str, benchmark: str, part: pd.DataFrame):
        own = base[base["benchmark"].isin(part["benchmark"].unique())]
        part, own = on_shared_samples({model: part, study.base: own}).values()
        row = {"pair": study.models[model].label, "model": model, "benchmark": benchmark}
        k = _samples(part)
        row |= {"k": k} | (_pass(boot, part, k) - _pass(boot, own, k)).columns("pass_points")
        row |= (boot.accuracy(part) - boot.accuracy(own)).columns("gap")
        part, own = (frame.dropna(subset="last_number") for frame in (part, own))
        if len(part) and len(own):
            judged, last = (
                boot.accuracy(part, c) - boot.accuracy(own, c) for c in ("correct", "last_number")
            )
            row |= judged.columns("judged_points") | last.columns("last_number_points")
            row |= (judged - last).columns("form_points")
        yield row

    return by(study, tuned, rows, base)


# Sentences ----------------------------------------------------------------------------------------


def say_support(study, table: pd.DataFrame) -> str:
    """Whether truncation makes the high-JS positions, pooled over benchmarks."""
    edge = (
        "{pair}: high JS is mostly the edge of the nucleus: of the high positions "
        "{nucleus_high_full_high:%} are high on the full vocabulary too (the median JS there of all of them "
        "is {full_median_at_nucleus_high:.3f} nats), and at {nuclei_differ_share_at_high:%0} the two nuclei "
        "differ in size, where at all positions {nuclei_differ_share:%} do."
    )
    kept = (
        "{pair}: most high positions are high without truncation too ({nucleus_high_full_high:%}); at "
        "{nuclei_differ_share_at_high:%0} of them the two nuclei differ in size, at all positions at "
        "{nuclei_differ_share:%}."
    )
    out = []
    for row in last_rows(study, table):
        if np.isnan(row["nucleus_high_full_high"]):
            out.append(f"{row['pair']} has no high-JS position.")
        else:
            out.append(say(edge if row["nucleus_high_full_high"] < 0.5 else kept, row))
    return "\n".join(out)


def say_top_p(study, table: pd.DataFrame) -> str:
    """How the same positions are judged as top-p moves."""
    settings, own = study.robustness, study.sampling.top_p
    label = study.models[settings.pair].label
    parts = say_each("{high:%2} at top-p {top_p:g}", table).splitlines()
    out = [f"{label}, the same positions: JS > {study.thresholds.high_js:g} at {'; '.join(parts)}."]
    others = table[table["top_p"] != own]
    if others["stays_high_share"].notna().any():
        parts = say_each("{stays_high_share:%} at {top_p:g}", others).splitlines()
        out.append(f"Of those that are high at top-p {own:g}, as many stay: {'; '.join(parts)}.")
    near = table["near_zero"]
    out.append(
        f"At every top-p {near.min():.1%} to {near.max():.1%} of positions are near zero; in the first "
        f"tenth of a response JS is {table['start_ratio'].min():.1f} to "
        f"{table['start_ratio'].max():.1f} times the middle's."
    )
    return "\n".join(out)


def say_form(study, table: pd.DataFrame) -> str:
    """How much of the RL models' gaps is the answer's form, pooled over benchmarks."""
    text = (
        "{pair}, where answers are numbers: judged by the last number in place of the answer's form, the "
        "gap to base is {last_number_points:points}; of the {judged_points:points} that are judged, "
        "{form_points:points} are form."
    )
    out = []
    for row in last_rows(study, table):
        if np.isnan(row.get("form_points", np.nan)):
            continue
        easy = rows_with(table, model=row["model"])
        easy = easy[easy["benchmark"] != row["benchmark"]]
        most = easy.loc[easy["form_points"].idxmax()] if easy["form_points"].notna().any() else None
        more = "" if most is None else say(" Most on {benchmark}: {form_points:points}.", most)
        out.append(say(text, row) + more)
    return "\n".join(out) or "No benchmark asks for a number, so the form cannot be told apart."


def say_passes(study, answers: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Whether RL sharpens what base can already do, pooled over benchmarks."""
    out = []
    for row in last_rows(study, gaps):
        base = last_row(answers, model=study.base)[f"pass@{row['k']}"]
        text = (
            "{pair} gains {gap:points} in the mean and {pass_points:points} in pass@{k}, where base has "
            f"{base:.1%}: "
        )
        little = row["gap"] / 4  # in pass@k; more is what base does not solve
        if not row["gap_low"] > 0:
            end = "that it gains at all is not told."
        elif 1 - base < little:
            end = (
                "base solves nearly all in so many tries, so it can hardly be more than sharpening."
            )
        elif row["pass_points_high"] < little:
            end = "it sharpens what base can do."
        elif row["pass_points_low"] > 0 and row["pass_points"] >= little:
            end = "it also solves what base does not."
        else:
            end = "whether it does more than sharpen what base can do is not told."
        out.append(say(text, row) + end)
    return "\n".join(out)


def say_sources(table: pd.DataFrame) -> str:
    """High-JS shares by trajectories, pooled over benchmarks."""
    parts = say_each("{nucleus_high:%} on {trajectories} responses", pooled(table))
    return f"{table['pair'].iloc[-1]}: high-JS positions are {', '.join(parts.splitlines())}."


def say_robustness(by_source: pd.DataFrame, sampler: pd.DataFrame) -> str:
    """The range of the near-zero and high shares over trajectories and over samplers."""
    out = []
    for rows, over in ((pooled(by_source), "trajectories"), (sampler, "sampler settings")):
        zero, high = rows["nucleus_near_zero"], rows["nucleus_high"]
        out.append(
            f"Over {len(rows)} {over} the near-zero share goes from {zero.min():.1%} to "
            f"{zero.max():.1%}, the high-JS share from {100 * high.min():.2g}% to {100 * high.max():.2g}%."
        )
    return "\n".join(out)


def say_holds(study, support: pd.DataFrame, moved: pd.DataFrame, gaps, by_source) -> str:
    """What of the findings stands whichever way it is measured, and what doesn't."""
    own = study.sampling.top_p
    row = last_row(support, model=study.robustness.pair)
    label = study.benchmarks[study.robustness.benchmark].label
    sources = rows_with(by_source, benchmark=label)
    near = pd.concat([moved["near_zero"], sources["nucleus_near_zero"]])
    zero = f"on {label} {near.min():.1%} to {near.max():.1%} of positions are near zero"
    paper = fact("sparsity_dapo").value
    sparse = near > paper
    how = (
        "Sparse at every" if sparse.all() else "Sparse at some" if sparse.any() else "Sparse at no"
    )
    out = [f"{how} top-p and trajectory by the paper's {paper:.0%}: {zero}."]
    if row is not None and np.isfinite(row["nucleus_high_full_high"]):
        full = row["both_high"] + row["only_full_high"]
        back = row["both_high"] / full if full > 0 else 0.0
        same = min(row["nucleus_high_full_high"], back) > 0.5
        kept = "is mostly the same in full" if same else "hangs on the truncation"
        other = f"{back:.1%} the other way round" if full > 0 else "no other position is"
        out.append(
            f"Which positions are high {kept}: {row['nucleus_high_full_high']:.1%} of those high at "
            f"top-p {own:g} are high in full, and {other}."
        )
    form = last_row(gaps, model=study.robustness.pair)
    if form is not None and np.isfinite(form.get("form_points", np.nan)):
        share = form["form_points"] / form["judged_points"]
        out.append(
            f"Of {form['pair']}'s accuracy gap where answers are numbers {share:.0%} is their form."
        )
    return "\n".join(out)
