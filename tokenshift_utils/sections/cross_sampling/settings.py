"""Section 2: which mixtures of two models a study asks for, and the rates of its random controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

__all__ = [
    "FORWARD",
    "REVERSE",
    "RateSearch",
    "Setting",
    "control_settings",
    "curve_settings",
    "effective_rate",
    "effective_share",
    "focus_settings",
    "intervention_settings",
    "roles",
    "rule_settings",
    "switched_rate",
]

FORWARD, REVERSE = "forward", "reverse"


class Setting(NamedTuple):
    """One way of mixing two models.

    `threshold` is the rule's: nats, or the number of positions of rule "first"; for random
    positions the JS threshold whose rate they match, with `match` "switched" or "effective" saying
    which rate. `insert` says where switched tokens come from: "intervention", "own" (the null
    control: the primary, with other noise) or "extrapolated" with its `gain`. Only the first
    `budget` firings of a response switch (None: all).
    """

    model: str
    direction: str
    threshold: float
    rule: str = "js"
    match: str = ""
    insert: str = "intervention"
    gain: float | None = None
    budget: int | None = None


def roles(study, setting: Setting) -> tuple[str, str]:
    """(primary, intervention) of a setting."""
    if setting.direction == FORWARD:
        return study.base, setting.model
    return setting.model, study.base


def _both_ways(models) -> list[tuple[str, str]]:
    return [(model, direction) for model in models for direction in (FORWARD, REVERSE)]


def curve_settings(study) -> list[Setting]:
    """All JS settings of the study: its pairs, both directions, all thresholds."""
    return [
        Setting(*way, float(eps))
        for way in _both_ways(study.cross_sampling.pairs)
        for eps in sorted(study.cross_sampling.thresholds)
    ]


def control_settings(study, match: str) -> list[Setting]:
    """The random-position controls of one matching."""
    return [
        Setting(*way, float(eps), "random", match)
        for way in _both_ways(study.cross_sampling.pairs)
        for eps in sorted(study.cross_sampling.random_control_thresholds)
    ]


def rule_settings(study) -> list[Setting]:
    """The rules that are compared with JS on one benchmark, and the JS rule within budgets."""
    cross = study.cross_sampling
    ways = _both_ways(cross.rules.pairs or cross.pairs)
    rules = [
        Setting(*way, float(value), rule)
        for way in ways
        for rule, values in cross.rules
        if rule != "pairs"
        for value in sorted(values)
    ]
    high = study.thresholds.high_js
    return rules + [Setting(*way, high, budget=b) for way in ways for b in sorted(cross.budgets)]


def intervention_settings(study) -> list[Setting]:
    """Other tokens at the positions of the JS rule on one benchmark.

    SFT controls both ways, the null control both ways, extrapolation forward.
    """
    cross = study.cross_sampling
    made = []
    if cross.controls:
        made += [
            Setting(*way, float(eps))
            for way in _both_ways(cross.controls.models)
            for eps in sorted(cross.controls.thresholds)
        ]
    made += [
        Setting(*way, float(eps), insert="own")
        for way in _both_ways(cross.pairs)
        for eps in sorted(cross.null_thresholds)
    ]
    if cross.extrapolation:
        made += [
            Setting(model, FORWARD, float(eps), insert="extrapolated", gain=gain)
            for model in cross.pairs
            for gain in sorted(cross.extrapolation.gains)
            for eps in sorted(cross.extrapolation.thresholds)
        ]
    return made


def focus_settings(study) -> list[Setting]:
    """Everything that is run on one benchmark only."""
    return rule_settings(study) + intervention_settings(study)


# Rates of the random controls -------------------------------------------------------------------


def _share(runs: pd.DataFrame, count: str) -> float:
    return float(runs[count].sum() / max(runs["n_tokens"].sum(), 1))


def _rate(value: float) -> float:
    """At most 1, and of four digits, so that the rate's records can be found again."""
    return float(f"{min(1.0, value):.4g}")


def switched_rate(runs: pd.DataFrame) -> float:
    """Share of tokens switched, for a random rule that switches as often."""
    return _rate(_share(runs, "n_switched"))


def effective_share(runs: pd.DataFrame) -> float:
    """Share of tokens effectively replaced."""
    return _share(runs, "n_effective")


def _yield(runs: pd.DataFrame) -> float:
    """How many switches are effective."""
    return float(runs["n_effective"].sum() / max(runs["n_switched"].sum(), 1))


def effective_rate(
    runs: pd.DataFrame, random_runs: pd.DataFrame, everywhere: pd.DataFrame | None = None
) -> float:
    """A first guess of the rate at which random switches replace as many tokens as `runs` did.

    `random_runs`, of low rates, and `everywhere`, where every position was switched, tell how often
    a switch is effective; in between that goes linearly with the rate. At most 1: where even
    switching everywhere replaces fewer tokens, the control is the intervention itself.
    """
    target, rare = effective_share(runs), _yield(random_runs)
    slope = 0.0 if everywhere is None else _yield(everywhere) - rare
    # the smaller root of rate * (rare + slope * rate) = target; none: the target is out of reach
    root = rare**2 + 4 * slope * target
    below = rare + root**0.5 if root >= 0 else 0.0
    return 1.0 if below <= 0 else _rate(2 * target / below)


@dataclass(frozen=True)
class RateSearch:
    """Bisection for the rate at which random switches replace the share `target` effectively.

    How often a random switch is effective depends on the rate, so no formula has the answer. `rate`
    is the one to try next, or once `done` the best of those tried. `low` and `high` are the rates
    tried that gave too little and too much; `left` is how many may still be tried.
    """

    target: float
    rate: float
    tolerance: float  # relative to the target
    left: int
    low: float = 0.0
    high: float | None = None
    best: tuple[float, float] | None = None  # (distance from the target, rate)
    done: bool = False

    def told(self, share: float) -> RateSearch:
        """The search after the rate it asked for replaced `share` of the tokens."""
        distance = abs(share - self.target)
        best = min(self.best or (distance, self.rate), (distance, self.rate))
        low, high, left = self.low, self.high, self.left - 1
        low, high = (self.rate, high) if share < self.target else (low, self.rate)
        if high is None or low == 0.0:  # not bracketed yet: linear, by a factor of two at most
            factor = self.target / share if share > 0 else 2.0
            rate = _rate(self.rate * min(max(factor, 0.5), 2.0))
        else:
            rate = _rate((low + high) / 2)
        stuck = left == 0 or rate in (self.rate, low, high)
        if distance <= self.tolerance * self.target or stuck:
            return replace(self, rate=best[1], best=best, left=left, done=True)
        return replace(self, rate=rate, best=best, low=low, high=high, left=left)

    def again(self, tolerance: float, left: int) -> RateSearch:
        """The same search on other responses, from the rate found."""
        return RateSearch(self.target, self.rate, tolerance, left)
