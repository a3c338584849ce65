"""TODO."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd


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
