"""Section 2: what cross-sampling does to accuracy (numbers; drawing is elsewhere).

Runs hold one row a response with the counts of switched and effectively replaced tokens. A mixed
response is compared with both models' own responses to the same problem, sample and noise, so
differences are paired. Replacements are counted in those that switching every position makes, and
accuracy in the gap between the two models: full switching is (1, 1), doing nothing (0, 0).
"""

from __future__ import annotations

from copy import copy
from functools import cache, cached_property

import numpy as np
import pandas as pd

from tokenshift_utils.records.requests import RESPONSE_KEY
from tokenshift_utils.report.bootstrap import Bootstrap, Estimate, columns_of, simultaneous
from tokenshift_utils.report.seeds import holm
from tokenshift_utils.sections.claims import PAPER_BUDGET
from tokenshift_utils.sections.common import (
    by_benchmark,
    evidence,
    last_row,
    on_shared_samples,
    pooled,
    rows_with,
    say,
    study_bootstrap,
)
from tokenshift_utils.sections.cross_sampling.settings import (
    FORWARD,
    REVERSE,
    Setting,
    roles,
    threshold_name,
)

OF_SETTING = ("model", "insert", "gain", "budget")  # more columns of a setting
# Of the columns of runs.
RUN_COLUMNS = [*RESPONSE_KEY, "correct", "n_tokens", "n_switched", "n_effective"]
# Of full replacement: where a rule can be ahead of random positions at all.
COMPARED_RANGE = (0.1, 0.9)


def is_full(setting: Setting) -> bool:
    """Whether a setting switches every position."""
    return setting.rule == "js" and setting.level < 0 and setting.insert == "intervention"


class MixtureEstimates:
    """Estimates of some settings on one bootstrap, paired with the models' own responses.

    In its frames `before` and `goal` say whether the primary's and the intervention's own response to
    the same problem and sample, drawn with the same noise, is right.

    Parameters
    ----------
    runs : by setting; for every model and direction one that switches every position
    rollouts : own responses by model
    """

    def __init__(self, study, runs: dict[Setting, pd.DataFrame], rollouts: dict) -> None:
        self.study = study
        self.boot: Bootstrap = study_bootstrap(study, *rollouts.values(), *runs.values())
        own = {model: self._by_sample(frame) for model, frame in rollouts.items()}
        parts = {}
        for setting, frame in runs.items():
            frame = self.boot.coded(frame.filter(items=RUN_COLUMNS))
            at = self.boot.codes(frame), frame["sample"].to_numpy()
            before, goal = (own[model][at] for model in roles(study, setting))
            parts[setting] = dict(by_benchmark(study, frame.assign(before=before, goal=goal)))
        self._estimate(parts)

    def _estimate(self, parts: dict[Setting, dict[str, pd.DataFrame]]) -> None:
        self.parts = parts
        for name in ("accuracy", "gap", "gap_share", "count", "replaced"):  # asked for again
            setattr(self, name, cache(getattr(type(self), name).__get__(self)))
        self.ways = list(dict.fromkeys(setting[:2] for setting in parts))
        self.full = {setting[:2]: some for setting, some in parts.items() if is_full(setting)}

    @cached_property
    def alike(self) -> MixtureEstimates:
        """The same estimates on the samples that all settings have, for differences between them."""
        frames = {(s, name): part for s, some in self.parts.items() for name, part in some.items()}
        shared = on_shared_samples(frames)
        if all(len(part) == len(frames[key]) for key, part in shared.items()):
            return self
        parts: dict[Setting, dict[str, pd.DataFrame]] = {}
        for (setting, name), part in shared.items():
            parts.setdefault(setting, {})[name] = part
        cut = copy(self)
        cut._estimate(parts)
        return cut

    def _by_sample(self, own: pd.DataFrame) -> np.ndarray:
        """Whether own responses are right, [problems, samples]; NaN for those that are not there."""
        right = np.full((len(self.boot.problems), own["sample"].max() + 1), np.nan)
        right[self.boot.codes(own), own["sample"]] = own["correct"]
        return right

    def benchmarks(self, way: tuple[str, str]) -> list[str]:
        """Labels of the benchmarks of a (model, direction), the pool of them last."""
        return list(self.full[way])

    def accuracy(self, setting: Setting, benchmark: str, of: str = "correct") -> Estimate:
        """Of the mixed responses, or of own ones: "before" or "goal"."""
        return self.boot.accuracy(self.parts[setting][benchmark], of)

    def gap(self, setting: Setting, benchmark: str) -> Estimate:
        """The intervention's own accuracy minus the primary's."""
        return self.accuracy(setting, benchmark, "goal") - self.accuracy(
            setting, benchmark, "before"
        )

    def gap_share(self, setting: Setting, benchmark: str) -> Estimate:
        """How much of the gap the mixed responses make up."""
        change = self.accuracy(setting, benchmark) - self.accuracy(setting, benchmark, "before")
        return change / self.gap(setting, benchmark)

    def count(self, setting: Setting, benchmark: str, count="n_effective", per=None) -> Estimate:
        """Tokens switched or replaced a response, or ``per`` "n_tokens"."""
        part = self.parts[setting][benchmark]
        return self.boot.ratio(part, part[count], None if per is None else part[per])

    def replaced(self, setting: Setting, benchmark: str) -> Estimate:
        """Tokens effectively replaced, in those that switching every position replaces."""
        full = self.full[setting[:2]][benchmark]
        return self.count(setting, benchmark) / self.boot.ratio(full, full["n_effective"])

    def why_no_gap(self, way: tuple[str, str], benchmark: str) -> str:
        """Why nothing can be said in shares of the gap; "" where something can."""
        gap = self.gap(Setting(*way, -1.0), benchmark)
        low, high = gap.interval()
        if low > 0 or high < 0:
            return ""
        return gap.why or "RL and base do not differ in accuracy here"

    def rows(self, setting: Setting) -> list[dict]:
        """A row of the tables for every benchmark that the setting was run on."""
        out = []
        for benchmark, part in self.parts[setting].items():
            before, after = (self.accuracy(setting, benchmark, of) for of in ("before", "correct"))
            row = {"pair": self.study.model(setting.model).label, "direction": setting.direction}
            row |= {"rule": setting.rule, "threshold": setting.level, "benchmark": benchmark}
            row |= self.replaced(setting, benchmark).columns("replaced")
            row |= before.columns("before") | after.columns("after")
            row |= self.accuracy(setting, benchmark, "goal").columns("goal")
            row |= (after - before).columns("change")
            share = self.gap_share(setting, benchmark).triple
            none = self.why_no_gap(setting[:2], benchmark)  # what is divided by may be 0
            row |= columns_of("gap_share", (np.nan,) * 3 if none else share)
            for name in ("switched", "effective"):
                share = self.count(setting, benchmark, f"n_{name}", "n_tokens")
                row |= share.columns(f"{name}_share")
            row["effective_per_response"] = part["n_effective"].mean()
            row["responses"] = len(part)
            out.append(row | {name: getattr(setting, name) for name in OF_SETTING})
        return out


def run_table(mixed: MixtureEstimates) -> pd.DataFrame:
    """Every setting on every benchmark it was run on.

    Columns beside the setting's: shares of tokens switched and effectively replaced; `replaced`,
    the latter in those that full switching replaces; `before` and `goal`, the accuracy of the
    primary's and the intervention's own responses of the same samples; `after`, of the mixed ones;
    `change`, `after` - `before`; `gap_share`, `change` in `goal` - `before`, where these differ.
    """
    return pd.DataFrame([row for setting in mixed.parts for row in mixed.rows(setting)])


def curve_table(mixed: MixtureEstimates) -> pd.DataFrame:
    """The JS rule on all its samples and random positions on theirs, on every benchmark: see
    `run_table`."""
    rows = []
    for setting in mixed.parts:
        rows += (mixed.alike if setting.rule == "random" else mixed).rows(setting)
    return pd.DataFrame(rows).drop(columns=["insert", "gain", "budget"])


# The form of the paper's Table 1 ----------------------------------------------------------------


def within_budget(table: pd.DataFrame, model: str, direction: str) -> float | None:
    """Threshold of the JS setting with the largest pooled effective share up to `PAPER_BUDGET`.

    It looks at shares only, never at accuracies, and not at the setting that switches everywhere.
    None where every setting replaces more.
    """
    rows = rows_with(pooled(table), model=model, direction=direction, rule="js")
    rows = rows[(rows["threshold"] >= 0) & (rows["effective_share"] <= PAPER_BUDGET)]
    if rows.empty:
        return None
    return float(rows.sort_values("effective_share", kind="stable")["threshold"].iloc[-1])


def budget_setting(study, table: pd.DataFrame, model: str, direction: str) -> Setting:
    """The JS setting within the budget; where there is none, the largest threshold's."""
    eps = within_budget(table, model, direction)
    eps = max(study.cross_sampling.thresholds) if eps is None else eps
    return Setting(model, direction, float(eps))


def budget_table(study, table: pd.DataFrame) -> pd.DataFrame:
    """The form of the paper's Table 1: for each pair and direction, the setting within the budget.

    Where no threshold keeps within the budget, the largest threshold stands.
    """
    parts = []
    for model in study.cross_sampling.pairs:
        for direction in (FORWARD, REVERSE):
            eps = budget_setting(study, table, model, direction).level
            where = {"model": model, "direction": direction, "rule": "js", "threshold": eps}
            parts.append(rows_with(table, **where))
    return pd.concat(parts, ignore_index=True).drop(columns=["rule"])


def say_budget(table: pd.DataFrame) -> str:
    """Forward and reverse within the budget, pooled over benchmarks."""
    text = (
        "{pair}, {direction}, {name}: {effective_share:%} of tokens replaced move accuracy from "
        "{before:.1%} to {after:.1%}"
    )
    share = ", {gap_share:%0} of the gap. This is {replaced:%0} of all that can be replaced."
    out = []
    for _, row in pooled(table).iterrows():
        known = np.isfinite([row["gap_share"], row["replaced"]]).all()
        name = threshold_name(row["threshold"])
        out.append(say(text, row, name=name) + (say(share, row) if known else "; no gap is told."))
    return "\n".join(out)


# What the claims look at ------------------------------------------------------------------------


def p_below(estimate: Estimate) -> float:
    """One-sided bootstrap p-value of a value that is not above 0."""
    draws = estimate.draws[np.isfinite(estimate.draws)]
    return (1 + (draws <= 0).sum()) / (1 + len(draws)) if len(draws) else np.nan


def smallest_of(estimates: list[Estimate]) -> tuple[list[float], tuple[float, float, float]]:
    """(p-values that none is above 0, corrected by Holm; the smallest value with an interval).

    The interval's ends are the least over all estimates: of lower ends each at the level of its step, of
    upper ends all at Bonferroni's.
    """
    p = np.array([p_below(e) for e in estimates])
    if np.isnan(p).any():
        return list(p), (np.nan,) * 3
    steps = len(p) - p.argsort(kind="stable").argsort(kind="stable")
    low = min(e.interval(int(step))[0] for e, step in zip(estimates, steps))
    high = min(e.interval(len(estimates))[1] for e in estimates)
    return holm(p), (min(e.value for e in estimates), low, high)


def cross_evidence(
    mixed: MixtureEstimates, table: pd.DataFrame, summary: pd.DataFrame, matched: pd.DataFrame
) -> pd.DataFrame:
    """What the claims of section 2 look at, for every model that is mixed."""
    rows, pool = [], pooled(summary)
    for model in dict.fromkeys(model for model, _ in mixed.ways):
        for direction, paper in ((FORWARD, "recovered"), (REVERSE, "lost")):
            where = {"model": model, "direction": direction}
            row, eps = last_row(pool, **where), within_budget(table, model, direction)
            if eps is None:
                rows.append((paper, model, None, f"no threshold keeps within {PAPER_BUDGET:.1%}"))
            else:
                mine = last_row(pooled(table), **where, rule="js", threshold=eps)
                note = f"JS > {eps:g}, {mine['effective_share']:.2%} of tokens effectively replaced"
                triple = None if row["note"] else _triple(mine, "gap_share")
                rows.append((paper, model, triple, row["note"] or note))
            for name in ("share_for_95", "lead_at_95", "lead_over_random"):
                triple = None if np.isnan(row[name]) else _triple(row, name)
                rows.append((f"{direction}_{name}", model, triple, row["note"]))
        rows += _matched_evidence(
            matched, model, last_row(pool, model=model, direction=FORWARD)["note"]
        )
        rows.append(("best_mixed_gain", model, _best_gain(mixed, model), ""))
    return evidence(rows)


def _triple(row: pd.Series, name: str) -> tuple[float, float, float]:
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def _matched_evidence(matched: pd.DataFrame, model: str, why: str) -> list[tuple]:
    mine = matched[matched["model"] == model] if len(matched) else matched
    rows = []
    for match in ("effective", "switched"):
        name, smallest = f"smallest_lead_{match}", None
        note = why or "no threshold to compare at"
        here = mine[mine[f"{match}_smallest"].notna()] if len(mine) else mine
        if len(here):
            smallest = _triple(here.iloc[0], f"{match}_smallest")
            ahead = int(here[f"{match}_ahead"].sum())
            note = f"ahead at {ahead} of {len(here)} thresholds, both directions, by Holm"
        rows.append((name, model, smallest, note))
    return rows


def _best_gain(mixed: MixtureEstimates, model: str) -> tuple[float, float, float]:
    """The largest gain of a forward setting over RL's own responses of the same samples."""
    way = (model, FORWARD)
    label = mixed.benchmarks(way)[-1]
    gains = [
        mixed.accuracy(setting, label) - mixed.accuracy(setting, label, "goal")
        for setting in mixed.parts
        if setting[:2] == way and setting.rule == "js" and setting.level >= 0
    ]
    return simultaneous(gains, "largest")
