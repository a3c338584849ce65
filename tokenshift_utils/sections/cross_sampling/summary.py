"""Section 2: a curve against its yardsticks. How far the JS rule is ahead of random positions, how
many replacements do nearly all of it, and how few would have done.

A curve is the share of the accuracy gap that is made up, against effective replacements in those
that full switching makes; it begins at (0, 0), and between its points it is linear, which is what
choosing between two settings by chance gives. All numbers are computed again in every resample of
the bootstrap, from shares and accuracies of the same drawn problems.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tokenshift_utils.records.requests import RESPONSE_KEY
from tokenshift_utils.report.bootstrap import MIN_DEFINED, Estimate, columns_of
from tokenshift_utils.report.tables import NO_INTERVAL
from tokenshift_utils.sections.common import pooled, say
from tokenshift_utils.sections.cross_sampling.numbers import (
    COMPARED_RANGE,
    MixtureEstimates,
    cross_evidence,
    curve_table,
    is_full,
    smallest_of,
)
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, REVERSE, Setting
from tokenshift_utils.sections.seeds import seeds_table

LEVEL = 0.95  # of the accuracy gap between the two models
# The smallest or largest of many noisy settings: a mean of those over seeds is off by what was picked.
EXTREMES = ("smallest_lead_effective", "smallest_lead_switched", "best_mixed_gain")


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


def _row(estimate: Estimate) -> np.ndarray:
    return np.concatenate([[estimate.value], estimate.draws])


def _estimate(values: np.ndarray, confidence: float) -> Estimate:
    return Estimate(float(values[0]), values[1:], confidence)


@dataclass(frozen=True)
class Curve:
    """Points [1 + resamples, points] of a curve; the first row is of all problems."""

    x: np.ndarray
    y: np.ndarray
    confidence: float = 0.95

    @classmethod
    def through(cls, points: list[tuple[Estimate, Estimate]]) -> Curve:
        """The curve from (0, 0) through some points."""
        x, y = (np.stack([0 * _row(v[0]), *map(_row, v)], axis=1) for v in zip(*points))
        return cls(x, y, points[0][0].confidence)

    def lead(self, other: Curve) -> Estimate:
        """Mean lead over another curve, up to the largest x that both reach."""
        return _estimate(area_between(self.x, self.y, other.x, other.y)[0], self.confidence)

    def at(self, x: Estimate | np.ndarray) -> Estimate:
        """Its height at some x, which may be another one in every resample."""
        knots = _row(x) if isinstance(x, Estimate) else x
        heights = _at(knots[:, None], *_points(self.x, self.y))[:, 0]
        return _estimate(np.where(np.isfinite(knots), heights, np.nan), self.confidence)

    def reach(self, level: float = LEVEL) -> np.ndarray:
        """The smallest x at ``level`` [1 + resamples]; inf where it is not reached."""
        known = np.isfinite(self.y).all(axis=1)
        return np.where(known, reaching_share(self.x, np.nan_to_num(self.y), level), np.nan)


def share_to_reach(curve: Curve, level: float = LEVEL) -> tuple[float, float, float]:
    """(value, low, high) of the smallest share of full replacement that makes up `level` of the gap.

    inf means that the curve does not reach it; as an upper end, that too many resamples do not.
    """
    found = curve.reach(level)
    value, draws = found[0], found[1:][~np.isnan(found[1:])]
    if np.isnan(value) or len(draws) < MIN_DEFINED * len(found[1:]):
        return float(value), np.nan, np.nan
    tail = (1.0 - curve.confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail], method="inverted_cdf")
    return float(value), float(low), float(high)


def curve_of(mixed: MixtureEstimates, settings: list[Setting], benchmark: str) -> Curve:
    """The curve through some settings."""
    return Curve.through(
        [(mixed.replaced(s, benchmark), mixed.gap_share(s, benchmark)) for s in settings]
    )


def _of_way(mixed: MixtureEstimates, way: tuple[str, str]) -> tuple[list[Setting], list[Setting]]:
    """(settings of the JS rule, those of random positions); full switching ends both curves."""
    here = [s for s in mixed.parts if s[:2] == way and s.budget is None]
    rule = [s for s in here if s.rule == "js" and s.insert == "intervention"]
    random = [s for s in here if s.rule == "random"]
    return rule, random + [s for s in rule if is_full(s)] if random else []


# The oracle -------------------------------------------------------------------------------------


def fewest(
    mixed: MixtureEstimates, way: tuple[str, str], *more: dict[Setting, pd.DataFrame]
) -> pd.DataFrame:
    """For every response that could turn, the fewest effective replacements that turned it.

    A response could turn where the primary's own is wrong (forward) or right (reverse). Looked at
    are all mixtures of the two models in the records, ``more`` among them: the best of the paths
    explored, chosen afterwards, so no rule can be held to reach it.

    Returns
    -------
    DataFrame of all responses with `could`, and `fewest`, inf where no path turns the response.
    """
    wanted = way[1] == FORWARD
    (full,) = (list(parts.values())[-1] for w, parts in mixed.full.items() if w == way)
    runs = [list(parts.values())[-1] for s, parts in mixed.parts.items() if s[:2] == way]
    runs += [
        f for some in more for s, f in some.items() if s[:2] == way and s.insert == "intervention"
    ]
    turned = pd.concat(
        [f.loc[f["correct"] == wanted, [*RESPONSE_KEY, "n_effective"]] for f in runs]
    )
    least = turned.groupby(RESPONSE_KEY)["n_effective"].min().rename("fewest")
    found = full.assign(could=full["before"] != wanted).join(least, on=RESPONSE_KEY)
    return found.assign(fewest=found["fewest"].astype(float).fillna(np.inf))


def oracle_curve(mixed: MixtureEstimates, way: tuple[str, str], found: pd.DataFrame) -> Curve:
    """Share of the gap against replacements where only those responses are turned that need the
    fewest: one, then two, and so on."""
    boot, sign = mixed.boot, 1 if way[1] == FORWARD else -1
    gap = boot.accuracy(found, "goal") - boot.accuracy(found, "before")
    full = boot.ratio(found, found["n_effective"])
    points = []
    for most in sorted(set(found.loc[found["could"] & np.isfinite(found["fewest"]), "fewest"])):
        turned = found["could"] & (found["fewest"] <= most)
        spent = np.where(turned, found["fewest"].replace(np.inf, 0), 0.0)
        done = boot.accuracy(found.assign(turned=sign * turned.astype(float)), "turned")
        points.append((boot.ratio(found, spent) / full, done / gap))
    return Curve.through(points or [(0 * full.value + full / full - 1, 0 * gap.value + gap - gap)])


# Tables -----------------------------------------------------------------------------------------


def summary_table(mixed: MixtureEstimates, *more: dict[Setting, pd.DataFrame]) -> pd.DataFrame:
    """For every pair, direction and benchmark: what 95% of the gap takes, and the lead over random.

    `share_for_95` is in the replacements of full switching; `random_at_95` is the share of the gap
    that random positions make up with as many, `lead_at_95` how far the rule is ahead there, both at
    the same number of replacements in every resample; `lead_over_random` the
    mean lead over the whole range; `oracle_for_95` what the best paths would need (see `fewest`,
    over all benchmarks). All of it is on the samples that the rule and random positions both have.
    """
    mixed, rows = mixed.alike, []
    for way in mixed.ways:
        rule, random = _of_way(mixed, way)
        for benchmark in mixed.benchmarks(way):
            full = next(s for s in rule if is_full(s))
            row = {"pair": mixed.study.model(way[0]).label, "direction": way[1]}
            row |= {"benchmark": benchmark} | mixed.gap(full, benchmark).columns("gap")
            why = mixed.why_no_gap(way, benchmark)
            nothing = (np.nan,) * 3
            reach = ahead = at_95 = lead_95 = nothing
            if not why:
                curve = curve_of(mixed, rule, benchmark)
                reach = share_to_reach(curve)
                if random:
                    chance = curve_of(mixed, random, benchmark)
                    # one place in all resamples: first crossings of noise come early
                    place = np.full_like(curve.reach(), curve.reach()[0])
                    there = chance.at(place)
                    at_95, lead_95 = there.triple, (curve.at(place) - there).triple
                    ahead = curve.lead(chance).triple
            row |= columns_of("share_for_95", reach) | columns_of("random_at_95", at_95)
            oracle = nothing
            if not why and benchmark == mixed.benchmarks(way)[-1]:
                oracle = share_to_reach(oracle_curve(mixed, way, fewest(mixed, way, *more)))
            row |= columns_of("oracle_for_95", oracle) | columns_of("lead_over_random", ahead)
            row |= columns_of("lead_at_95", lead_95)
            row["model"] = way[0]
            row["note"] = why or ("" if random else "no random control")
            rows.append(row)
    return pd.DataFrame(rows)


def oracle_table(mixed: MixtureEstimates, *more: dict[Setting, pd.DataFrame]) -> pd.DataFrame:
    """The oracle's curve of every pair and direction, on all benchmarks: see `oracle_curve`. On the
    samples that the rule and random positions both have."""
    mixed, rows = mixed.alike, []
    for way in mixed.ways:
        if mixed.why_no_gap(way, mixed.benchmarks(way)[-1]):
            continue
        curve = oracle_curve(mixed, way, fewest(mixed, way, *more))
        for x, y in zip(curve.x.T, curve.y.T):
            row = {"pair": mixed.study.model(way[0]).label, "direction": way[1]}
            row |= {"replaced": x[0]}
            rows.append(
                row | _estimate(y, curve.confidence).columns("gap_share") | {"model": way[0]}
            )
    return pd.DataFrame(rows, columns=["pair", "model", "direction", "replaced", "gap_share"]
                        if not rows else None)  # fmt: skip


def matched_table(mixed: MixtureEstimates) -> pd.DataFrame:
    """The JS rule at every threshold against random positions, on all benchmarks together.

    `effective_lead` is the lead in shares of the gap over random positions that replace as many
    tokens effectively, `switched_lead` over random positions that switch as many. Where the rule
    makes between 10 and 90% of full replacement, `..._p_holm` is the p-value against no lead,
    corrected over a pair's thresholds and both directions, `..._ahead` whether that tells it from
    none, at the level of a one-sided end of the intervals, and `..._smallest` the smallest of these
    leads with its corrected interval. All of it is on the samples that both have.
    """
    mixed = mixed.alike
    rows: list[dict] = []
    leads: dict[tuple[str, str], list] = {}
    for way in mixed.ways:
        rule, random = _of_way(mixed, way)
        label = mixed.benchmarks(way)[-1]
        if not random or mixed.why_no_gap(way, label):
            continue
        switched = [(mixed.count(s, label, "n_switched", "n_tokens"), s) for s in random]
        curves = {
            "effective": curve_of(mixed, random, label),
            "switched": Curve.through([(x, mixed.gap_share(s, label)) for x, s in switched]),
        }
        for setting in rule:
            if is_full(setting):
                continue
            x, y = mixed.replaced(setting, label), mixed.gap_share(setting, label)
            row = {"pair": mixed.study.model(way[0]).label, "direction": way[1]}
            row |= {"threshold": setting.level} | x.columns("replaced")
            row |= y.columns("gap_share")
            share = mixed.count(setting, label, "n_switched", "n_tokens")
            for match, at in (("effective", x), ("switched", share)):
                lead = y - curves[match].at(at)
                row |= lead.columns(f"{match}_lead")
                if COMPARED_RANGE[0] <= x.value <= COMPARED_RANGE[1]:
                    leads.setdefault((way[0], match), []).append((len(rows), lead))
            rows.append(row | {"model": way[0]})
    table = pd.DataFrame(rows, columns=None if rows else ["pair", "direction", "model"])
    for (_model, match), some in leads.items():
        where, estimates = zip(*some)
        p, smallest = smallest_of(list(estimates))
        table.loc[list(where), f"{match}_p_holm"] = p
        table[f"{match}_ahead"] = table[f"{match}_p_holm"] < (1 - mixed.boot.confidence) / 2
        for name, value in columns_of(f"{match}_smallest", smallest).items():
            table.loc[list(where), name] = value
    return table


def over_seeds(mixed: MixtureEstimates) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What the claims look at over training seeds, every run measured on the same one benchmark.

    Returns
    -------
    The curves of every run (see `curve_table`), its `summary_table`, and the quantities over seeds (see
    `seeds_table`), whose notes say how many runs have them and on what.
    """
    if not mixed.parts:
        return pd.DataFrame(), pd.DataFrame(), seeds_table(mixed.study, {}, {})
    curves, reach = curve_table(mixed), summary_table(mixed)
    found = cross_evidence(mixed, curves, reach, matched_table(mixed))
    found = found[~found["quantity"].isin(EXTREMES)].set_index("quantity").replace(np.inf, np.nan)
    runs = {name: own["value"].to_dict() for name, own in found.groupby("subject", sort=False)}
    seeds, where = seeds_table(mixed.study, runs, {}), mixed.benchmarks(mixed.ways[0])[-1]
    said = np.where(seeds["seeds"] > 1, "seeds", "seed")
    count = (seeds["seeds"].astype(str) + " " + said).mask(
        seeds["value"].isna(), "no seed shows it"
    )
    return curves, reach, seeds.assign(note=count + f", {where} alone")


def say_summary(table: pd.DataFrame) -> str:
    """What 95% of the gap takes by the rule, by chance and at best, over all benchmarks."""
    text = (
        "**{pair}, {direction}: {verb} 95% of the gap takes {reach} of the replacements that full "
        "switching makes; {random}{oracle}"
    )
    chance = "random positions make up {random_at_95:%0} with as many.**"
    out = []
    for _, row in pooled(table).iterrows():
        if np.isnan(row["share_for_95"]):
            out.append(f"{row['pair']}, {row['direction']}: {row['note']}.")
            continue
        more = {"verb": "recovering" if row["direction"] == FORWARD else "destroying"}
        known = np.isfinite(row["random_at_95"])
        more["random"] = say(chance, row) if known else f"{row['note'] or 'not reached'}.**"
        best = row["oracle_for_95"]
        more["oracle"] = f" The best paths explored, chosen afterwards, need {best:.0%}." * bool(
            np.isfinite(best)
        )
        out.append(say(text, row, reach=_share(row, "share_for_95"), **more))
    return "\n".join(out)


def say_seeds(study, seeds: pd.DataFrame) -> str:
    """How far the JS rule is ahead of random positions over training seeds, and what it takes."""
    if seeds.empty:
        why = (
            "`cross_sampling.seeds` is off"
            if not study.cross_sampling.seeds
            else "no model of `cross_sampling.pairs` has `seeds`"
        )
        return f"This study mixes no models from other training seeds: {why}."
    text = (
        "**{pair}, {note}, Student's intervals: where the JS rule makes 95% of the gap, it is ahead of random positions with as "
        "many replacements by {forward_lead_at_95:points} of the gap forward and by "
        "{reverse_lead_at_95:points} in reverse.** That takes {forward_share_for_95:%0} and "
        "{reverse_share_for_95:%0} of the replacements that full switching makes."
    )
    out = []
    for model, own in seeds.groupby("subject", sort=False):
        own = own.set_index("quantity")
        row = {"pair": study.models[model].label, "note": own.loc["forward_share_for_95", "note"]}
        for quantity, at in own.iterrows():
            row |= columns_of(quantity, tuple(at[["value", "low", "high"]]))
        shown = any(np.isfinite(row[f"{way}_share_for_95"]) for way in (FORWARD, REVERSE))
        none = "{pair}: no training seed differs from base clearly enough to speak of shares of the gap."
        out.append(say(text if shown else none, row))
    return "\n".join(out)


def _share(row, name: str) -> str:
    """A share in percent with its interval, whose upper end may be "not reached"."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if np.isinf(row[name]):
        return "more than all"
    if np.isnan(low):
        return f"{row[name]:.0%} ({NO_INTERVAL})"
    ends = ["not reached" if np.isinf(end) else f"{100 * end:.0f}" for end in (low, high)]
    return f"{row[name]:.0%} [{', '.join(ends)}]"


def say_matched(table: pd.DataFrame) -> str:
    """At how many thresholds the rule is ahead of random positions, and by how much."""
    out = []
    groups = table.groupby(["pair", "direction"], sort=False) if len(table) else ()
    for (pair, direction), part in groups:
        part = part[part["effective_p_holm"].notna()] if "effective_p_holm" in part else part[:0]
        if part.empty:
            out.append(f"{pair}, {direction}: no threshold makes 10 to 90% of full replacement.")
            continue
        ahead = int(part["effective_ahead"].sum())
        middle = part.iloc[(part["replaced"] - 0.5).abs().argmin()]
        text = (
            "{pair}, {direction}: ahead of random positions that replace as many tokens at {ahead} "
            "of {n} thresholds (Holm); where the rule makes {replaced:.0%} of full replacement the "
            "lead is {effective_lead:points} of the gap, and over random positions that only "
            "*switch* as many {switched_lead:points}."
        )
        out.append(say(text, middle, ahead=ahead, n=len(part)))
    return "\n".join(out) or "There are no random positions to compare with, or no gap."
