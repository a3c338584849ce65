"""Section 5, what reviewers asked for: do the findings hang on how they were measured? (numbers)

Three questions: is JS on truncated distributions an artefact of the truncation; does it matter on
whose trajectories it is measured; how does it change with top-p and temperature.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tokenshift_utils.report.bootstrap import Bootstrap
from tokenshift_utils.sections.common import by, last_row, of_kind, plan, pooled, say, say_each

COLUMNS = ("benchmark", "problem", "sample", "position", "js", "js_full")


def support_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """JS on the truncated distributions against JS on the full vocabulary, position by position.

    Columns: both_high, only_nucleus_high, only_full_high (shares of positions by the high-JS
    cut), nucleus_high_full_high and nucleus_high_full_near_zero (of the positions that are high on
    truncated distributions, the share that is high, or near zero, in full), nucleus_zero (share
    with truncated JS exactly 0), full_median_at_nucleus_high (nats), rank_correlation.
    """
    high, low = study.thresholds.high_js, study.thresholds.near_zero[-1]

    def rows(boot: Bootstrap, model: str, benchmark: str, part: pd.DataFrame):
        cut, full = part["js"].to_numpy(), part["js_full"].to_numpy()
        row = {"pair": study.models[model].label, "model": model, "benchmark": benchmark}
        row["positions"] = len(part)
        shares = {
            "both_high": ((cut > high) & (full > high), None),
            "only_nucleus_high": ((cut > high) & (full <= high), None),
            "only_full_high": ((cut <= high) & (full > high), None),
            "nucleus_high_full_high": ((cut > high) & (full > high), cut > high),
            "nucleus_high_full_near_zero": ((cut > high) & (full <= low), cut > high),
            "nucleus_zero": (cut == 0, None),
        }
        for name, (inside, among) in shares.items():
            row |= boot.ratio(part, inside, among).columns(name)
        at_high = full[cut > high]
        row["full_median_at_nucleus_high"] = float(np.median(at_high)) if len(at_high) else np.nan
        rank = part[["js", "js_full"]].corr(method="spearman").iloc[0, 1]
        yield row | {"rank_correlation": rank}

    return by(study, shifts, rows)


def _measures(study, boot: Bootstrap, part: pd.DataFrame) -> dict[str, float]:
    low, high = study.thresholds.near_zero[-1], study.thresholds.high_js
    row: dict[str, float] = {}
    for column, support in (("js", "nucleus"), ("js_full", "full")):
        js = part[column].to_numpy()
        row |= boot.ratio(part, js <= low).columns(f"{support}_near_zero")
        row |= boot.ratio(part, js > high).columns(f"{support}_high")
        row |= boot.ratio(part, js).columns(f"{support}_mean")
    return row


def source_table(study, model: str, sources: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The same pair measured on different trajectories; `sources` maps their name to shifts."""

    def rows(boot: Bootstrap, source: str, benchmark: str, part: pd.DataFrame):
        row = {"pair": study.models[model].label, "trajectories": source}
        row |= {"benchmark": benchmark, "positions": len(part)}
        yield row | _measures(study, boot, part)

    return by(study, sources, rows)


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
    boot, rows = plan(study, *shifts.values()), []
    for (top_p, temperature), frame in shifts.items():
        row = {"top_p": top_p, "temperature": temperature, "positions": len(frame)}
        row |= _measures(study, boot, frame)
        for model, responses in rollouts[top_p, temperature].items():
            side = "base" if model == study.base else "tuned"
            row |= boot.accuracy(responses).columns(f"accuracy_{side}")
        rows.append(row)
    return pd.DataFrame(rows)


def say_support(study, table: pd.DataFrame) -> str:
    """Whether truncation makes the high-JS positions, pooled over benchmarks."""
    text = (
        "{pair}: {both_high:%2} of positions are high by both measures, {only_nucleus_high:%} only "
        "on the truncated distributions and {only_full_high:%2} only on the full vocabulary. Of the "
        "truncated-high positions {nucleus_high_full_high:%} are high in full and "
        "{nucleus_high_full_near_zero:%} near zero; their median full JS is "
        "{full_median_at_nucleus_high:.3f} nats. So "
    )
    out = []
    for model in of_kind(study, "rl"):
        row = last_row(table, model=model)
        if row is None:
            continue
        if np.isnan(row["nucleus_high_full_near_zero"]):
            out.append(f"{row['pair']} has no high-JS position.")
        elif row["nucleus_high_full_high"] < 0.5:
            out.append(
                f"{say(text, row)}truncation makes most of them high: smaller shifts that cross the "
                "edge of the nucleus."
            )
        else:
            out.append(f"{say(text, row)}most of them are high without truncation too.")
    return "\n".join(out)


def say_sources(table: pd.DataFrame) -> str:
    """High-JS shares by trajectories, pooled over benchmarks."""
    parts = say_each("{nucleus_high:%} on {trajectories} responses", pooled(table))
    return f"{table['pair'].iloc[-1]}: high-JS positions are {', '.join(parts.splitlines())}."


def say_sampling(study, table: pd.DataFrame) -> str:
    """High-JS shares by sampler setting."""
    text = "{nucleus_high:%} (full: {full_high:%}) at top-p {top_p:g}, temperature {temperature:g}"
    parts = say_each(text, table).splitlines()
    label = study.models[study.robustness.pair].label
    return f"{label}: high-JS positions are {'; '.join(parts)}."


def say_robustness(by_source: pd.DataFrame, sampler: pd.DataFrame) -> str:
    """The range of the near-zero and high shares over trajectories and over samplers."""
    out = []
    for rows, over in ((pooled(by_source), "trajectories"), (sampler, "sampler settings")):
        zero, high = rows["nucleus_near_zero"], rows["nucleus_high"]
        out.append(
            f"Over {len(rows)} {over} the near-zero share goes from {zero.min():.1%} to "
            f"{zero.max():.1%}, the high-JS share from {high.min():.1%} to {high.max():.1%}."
        )
    return "\n".join(out)
