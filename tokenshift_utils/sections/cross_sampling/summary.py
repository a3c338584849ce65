"""Section 2: one number for a curve. How far the JS rule is ahead of random positions, and how small
a share of replaced tokens does nearly all of it.

A curve is accuracy against the effectively replaced share of tokens, from the primary's own accuracy
at share 0; between its points it is linear. Both numbers are computed again in every resample of
the bootstrap, from all points of the curves: shares and accuracies of the same drawn problems.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tokenshift_utils.report.bootstrap import MIN_DEFINED, Bootstrap, Estimate
from tokenshift_utils.sections.common import by_benchmark, percent, plan
from tokenshift_utils.sections.cross_sampling.numbers import own_accuracy
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, Setting, roles

__all__ = [
    "LEVEL",
    "Curve",
    "area_between",
    "curve_of",
    "lead",
    "reaching_share",
    "say_summary",
    "share_to_reach",
    "summary_table",
]

LEVEL = 0.95  # of the accuracy gap between the two models


def _points(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of each curve [curves, points] by rising x; those of one x all get their mean y."""
    order = np.argsort(x, axis=1, kind="stable")
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    same = (x[:, :, None] == x[:, None, :]).astype(float)
    return x, (same @ y[:, :, None])[:, :, 0] / same.sum(axis=2)


def _at(knots: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each curve, linear between its points, at its own knots [curves, knots], none below x[0]."""
    left = (x[:, None, :] <= knots[:, :, None]).sum(axis=2) - 1
    right = np.minimum(left + 1, x.shape[1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, i, axis=1) for v in (x, y) for i in (left, right))
    width = x1 - x0
    part = np.divide(knots - x0, width, out=np.zeros_like(width), where=width > 0)
    return y0 + (y1 - y0) * part


def area_between(
    x: np.ndarray, y: np.ndarray, other_x: np.ndarray, other_y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(mean of y - other_y from 0 to the largest x that both curves reach, that x), [curves] each.

    Points are [curves, points], each curve with one at x = 0. Curves are linear between points, so
    the trapezia over the points of both are exact. NaN where a curve does not leave 0.
    """
    (x, y), (other_x, other_y) = _points(x, y), _points(other_x, other_y)
    end = np.minimum(x[:, -1], other_x[:, -1])
    knots = np.minimum(np.sort(np.concatenate([x, other_x], axis=1)), end[:, None])
    height = _at(knots, x, y) - _at(knots, other_x, other_y)
    area = np.trapezoid(height, knots, axis=1)
    return np.divide(area, end, out=np.full_like(end, np.nan), where=end > 0), end


def reaching_share(x: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
    """The smallest x at which each curve [curves, points] reaches `level`, inf where it never does.

    The curve is made monotone by taking at every point the largest y so far; it is linear between.
    """
    x, y = _points(x, y)
    y = np.maximum.accumulate(y, axis=1)
    right = np.argmax(y >= level, axis=1)[:, None]
    left = np.maximum(right - 1, 0)
    x0, x1, y0, y1 = (np.take_along_axis(v, i, axis=1)[:, 0] for v in (x, y) for i in (left, right))
    rise = y1 - y0
    part = np.divide(level - y0, rise, out=np.ones_like(rise), where=rise > 0)
    return np.where(y[:, -1] >= level, x0 + (x1 - x0) * part, np.inf)


@dataclass(frozen=True)
class Curve:
    """Shares and accuracies [1 + resamples, points]; the first row is of all problems."""

    shares: np.ndarray
    accuracies: np.ndarray


def _row(estimate: Estimate) -> np.ndarray:
    return np.concatenate([[estimate.value], estimate.draws])


def curve_of(boot: Bootstrap, before: Estimate, parts: list[pd.DataFrame]) -> Curve:
    """The curve through the primary's own accuracy at 0 and some runs on the same benchmark."""
    shares, accuracies = [np.zeros(1 + boot.resamples)], [_row(before)]
    for part in parts:
        shares.append(_row(boot.ratio(part, part["n_effective"], part["n_tokens"])))
        accuracies.append(_row(boot.accuracy(part)))
    return Curve(np.stack(shares, axis=1), np.stack(accuracies, axis=1))


def lead(curve: Curve, other: Curve, gap: Estimate) -> tuple[Estimate, float]:
    """(mean lead of a curve over another as a share of the accuracy gap, up to which share).

    The lead is the area between the curves over effective share, up to the largest share that both
    reach, divided by that share and by the gap (of either sign).
    """
    area, end = area_between(curve.shares, curve.accuracies, other.shares, other.accuracies)
    return Estimate(float(area[0]), area[1:], gap.confidence) / gap, float(end[0])


def share_to_reach(
    curve: Curve, before: Estimate, gap: Estimate, level: float = LEVEL
) -> tuple[float, float, float]:
    """(value, low, high) of the smallest effective share that makes up `level` of the gap.

    inf means that the curve does not reach it; as an upper end, that too many resamples do not.
    """
    size = _row(gap)
    some = np.isfinite(size) & (size != 0)  # a resample without a gap has no share of it
    if not some[0]:
        return np.nan, np.nan, np.nan
    done = (curve.accuracies - _row(before)[:, None])[some] / size[some, None]
    found = reaching_share(curve.shares[some], done, level)
    if some.mean() < MIN_DEFINED:
        return float(found[0]), np.nan, np.nan
    tail = (1.0 - gap.confidence) / 2.0
    low, high = np.quantile(found[1:], [tail, 1.0 - tail], method="inverted_cdf")
    return float(found[0]), float(low), float(high)


def _triple(name: str, triple: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), triple))


def summary_table(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """For every pair, direction and benchmark: lead over random positions, and the 95% share.

    The random curve goes through the controls that match effective shares (close or not, each at
    the share it has) and, where the study switches every position, ends there as the JS curve does.
    """
    boot, rows = plan(study, *rollouts.values(), *runs.values()), []
    own = own_accuracy(study, boot, rollouts)
    for model, direction in dict.fromkeys(setting[:2] for setting in runs):
        here = {
            s: dict(by_benchmark(study, f)) for s, f in runs.items() if s[:2] == (model, direction)
        }
        rule = [s for s in here if s.rule == "js"]
        random = [s for s in here if s.rule == "random" and s.match == "effective"]
        random += [s for s in rule if s.threshold < 0] if random else []
        primary, intervention = roles(study, rule[0])
        for benchmark in here[rule[0]]:
            before, goal = own[primary, benchmark], own[intervention, benchmark]
            curves = [
                curve_of(boot, before, [here[s][benchmark] for s in some])
                for some in (rule, random)
            ]
            row = {"pair": study.models[model].label, "model": model, "direction": direction}
            row |= {"benchmark": benchmark} | (goal - before).columns("gap")
            rows.append(row | _summary(*curves, before, goal - before, bool(random)))
    return pd.DataFrame(rows)


def _summary(curve: Curve, random: Curve, before: Estimate, gap: Estimate, controls: bool) -> dict:
    low, high = gap.interval()
    nothing = (np.nan,) * 3
    if not (low > 0 or high < 0):
        note = "RL and base do not differ in accuracy here"
        return _columns(nothing, np.nan, nothing, "–", note)
    to_reach = share_to_reach(curve, before, gap)
    reached = "yes" if np.isfinite(to_reach[0]) else "not reached"
    if not controls:
        return _columns(nothing, np.nan, to_reach, reached, "no random control")
    area, end = lead(curve, random, gap)
    return _columns((area.value, *area.interval()), end, to_reach, reached, "")


def _columns(area, end, to_reach, reached: str, note: str) -> dict:
    row = _triple("lead_over_random", area) | {"up_to_effective_share": end}
    row |= _triple("share_for_95", to_reach)
    return row | {"reaches_95": reached, "note": note}


def say_summary(study, table: pd.DataFrame) -> str:
    """Both numbers of every pair and direction, pooled over benchmarks."""
    out = []
    pooled = table[table["benchmark"] == table["benchmark"].iloc[-1]]
    for _, row in pooled.iterrows():
        name = f"{row['pair']}, {row['direction']}: "
        if row["note"] and row["reaches_95"] == "–":
            out.append(f"{name}{row['note']}.")
            continue
        verb = "recovers" if row["direction"] == FORWARD else "destroys"
        lead_text = (
            row["note"]
            or f"up to {row['up_to_effective_share']:.2%} of tokens effectively replaced the JS rule "
            f"is on average {percent(row, 'lead_over_random', 0)} of the gap ahead of random "
            "positions"
        )
        if row["reaches_95"] == "yes":
            reach = f"replacing {_share(row, 'share_for_95')} of tokens {verb} 95% of the gap"
        else:
            reach = f"no share of tokens tried {verb} 95% of the gap"
        out.append(f"{name}{lead_text}; {reach}.")
    return "\n".join(out)


def _share(row, name: str) -> str:
    """A share in percent with its interval, whose upper end may be "not reached"."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = ["not reached" if np.isinf(end) else f"{end:.2%}" for end in (low, high)]
    return f"{row[name]:.2%} [{', '.join(ends)}]"
