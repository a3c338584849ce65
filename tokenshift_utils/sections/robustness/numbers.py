"""Section 5, what reviewers asked for: do the findings hang on how they were measured? (numbers)

Three questions: is JS on truncated distributions an artefact of the truncation; does it matter on
whose trajectories it is measured; how does it change with top-p and temperature.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tokenshift_utils.report.bootstrap import Bootstrap
from tokenshift_utils.sections.common import by_benchmark, of_kind, percent, plan

__all__ = [
    "COLUMNS",
    "sampling_settings",
    "sampling_table",
    "say_robustness",
    "say_sampling",
    "say_sources",
    "say_support",
    "source_table",
    "support_table",
]

COLUMNS = ("benchmark", "problem", "sample", "position", "js", "js_full")


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where one is constant."""
    ranks = [pd.Series(x).rank().to_numpy() for x in (a, b)]
    if len(a) < 2 or min(r.std() for r in ranks) == 0:
        return np.nan
    return float(np.corrcoef(*ranks)[0, 1])


def support_table(study, shifts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """JS on the truncated distributions against JS on the full vocabulary, position by position.

    Columns: both_high, only_nucleus_high, only_full_high (shares of positions by the high-JS
    cut), nucleus_high_full_high and nucleus_high_full_near_zero (of the positions that are high on
    truncated distributions, the share that is high, or near zero, in full), nucleus_zero (share
    with truncated JS exactly 0), full_median_at_nucleus_high (nats), rank_correlation.
    """
    boot, rows = plan(study, *shifts.values()), []
    high, low = study.thresholds.high_js, study.thresholds.near_zero[-1]
    for model, frame in shifts.items():
        for benchmark, part in by_benchmark(study, frame):
            cut, full = part["js"].to_numpy(), part["js_full"].to_numpy()
            row = {
                "pair": study.models[model].label,
                "model": model,
                "benchmark": benchmark,
                "positions": len(part),
            }
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
            row["full_median_at_nucleus_high"] = (
                float(np.median(full[cut > high])) if (cut > high).any() else np.nan
            )
            rows.append(row | {"rank_correlation": _rank_correlation(cut, full)})
    return pd.DataFrame(rows)


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
    boot, rows = plan(study, *sources.values()), []
    for source, frame in sources.items():
        for benchmark, part in by_benchmark(study, frame):
            row = {"pair": study.models[model].label, "trajectories": source}
            row |= {"benchmark": benchmark, "positions": len(part)}
            rows.append(row | _measures(study, boot, part))
    return pd.DataFrame(rows)


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
    out = []
    for model in of_kind(study, "rl"):
        rows = table[table["model"] == model]
        if rows.empty:
            continue
        row = rows.iloc[-1]
        if np.isnan(row["nucleus_high_full_near_zero"]):
            out.append(f"{row['pair']} has no high-JS position.")
            continue
        most = row["nucleus_high_full_high"] < 0.5
        out.append(
            f"{row['pair']}: {percent(row, 'both_high', 2)} of positions are high by both "
            f"measures, {percent(row, 'only_nucleus_high')} only on the truncated distributions "
            f"and {percent(row, 'only_full_high', 2)} only on the full vocabulary. Of the "
            f"truncated-high positions {percent(row, 'nucleus_high_full_high')} are high in full "
            f"and {percent(row, 'nucleus_high_full_near_zero')} near zero; their median full JS is "
            f"{row['full_median_at_nucleus_high']:.3f} nats. So "
            + (
                "truncation makes most of them high: smaller shifts that cross the edge of the "
                "nucleus."
                if most
                else "most of them are high without truncation too."
            )
        )
    return "\n".join(out)


def say_sources(table: pd.DataFrame) -> str:
    """High-JS shares by trajectories, pooled over benchmarks."""
    rows = table[table["benchmark"] == table["benchmark"].iloc[-1]]
    parts = [
        f"{percent(r, 'nucleus_high')} on {r['trajectories']} responses" for _, r in rows.iterrows()
    ]
    return f"{rows['pair'].iloc[0]}: high-JS positions are {', '.join(parts)}."


def say_sampling(study, table: pd.DataFrame) -> str:
    """High-JS shares by sampler setting."""
    parts = [
        f"{percent(r, 'nucleus_high')} (full: {percent(r, 'full_high')}) at top-p "
        f"{r['top_p']:g}, temperature {r['temperature']:g}"
        for _, r in table.iterrows()
    ]
    label = study.models[study.robustness.pair].label
    return f"{label}: high-JS positions are {'; '.join(parts)}."


def say_robustness(by_source: pd.DataFrame, sampler: pd.DataFrame) -> str:
    """The range of the near-zero and high shares over trajectories and over samplers."""
    pooled = by_source[by_source["benchmark"] == by_source["benchmark"].iloc[-1]]
    out = []
    for rows, over in ((pooled, "trajectories"), (sampler, "sampler settings")):
        zero, high = rows["nucleus_near_zero"], rows["nucleus_high"]
        out.append(
            f"Over {len(rows)} {over} the near-zero share goes from {zero.min():.1%} to "
            f"{zero.max():.1%}, the high-JS share from {high.min():.1%} to {high.max():.1%}."
        )
    return "\n".join(out)
