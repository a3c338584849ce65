"""Comparing training objectives over seeds: paired differences, an exact test, and its limits.

Runs of one seed share problems and noise, so arms are compared by their differences seed by seed.
What is tested is that an arm makes no difference: then each difference is as likely to have either
sign. With n seeds there are 2^n sign patterns and no p below 2 / 2^n can come out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

__all__ = ["Paired", "holm", "pass_at_k", "t_quantile"]

POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """Differences of an arm to another, one a seed that both have."""

    differences: np.ndarray
    confidence: float = 0.95

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return float(self.differences.mean()) if self.seeds else math.nan

    @property
    def _error(self) -> float:
        """Standard error of the mean."""
        if self.seeds < 2:
            return math.nan
        return float(self.differences.std(ddof=1) / math.sqrt(self.seeds))

    def interval(self) -> tuple[float, float]:
        """Student's interval for the mean difference; NaN with fewer than two seeds."""
        if self.seeds < 2:
            return math.nan, math.nan
        half = t_quantile(0.5 + self.confidence / 2, self.seeds - 1) * self._error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided p of the sign-flip permutation test, all 2^n patterns counted."""
        if not self.seeds:
            return math.nan
        signs = np.array(list(product((1, -1), repeat=self.seeds)))
        means = np.abs(signs @ self.differences)
        # Equal means may differ by rounding.
        return float((means >= abs(self.differences.sum()) * (1 - 1e-9) - 1e-15).mean())

    @property
    def smallest_p(self) -> float:
        """The least p that so many seeds could give."""
        return min(1.0, 2 / 2**self.seeds) if self.seeds else math.nan

    @property
    def detectable(self) -> float:
        """The mean difference that four in five such experiments would find, at this spread."""
        if self.seeds < 2:
            return math.nan
        freedom = self.seeds - 1
        quantiles = t_quantile(0.5 + self.confidence / 2, freedom) + t_quantile(POWER, freedom)
        return quantiles * self._error


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in the order given; NaN stays NaN, uncounted."""
    known = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    corrected, running = [math.nan] * len(values), 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        corrected[i] = running
    return corrected


def pass_at_k(correct: np.ndarray, samples: np.ndarray, k: int) -> np.ndarray:
    """Unbiased chance that one of ``k`` of a problem's responses is right (Chen et al. 2021).

    ``1 - C(n - c, k) / C(n, k)`` for c right ones among n samples, elementwise; NaN where k > n.
    """
    result = []
    for c, n in zip(correct.tolist(), samples.tolist()):
        result.append(1 - math.comb(n - c, k) / math.comb(n, k) if k <= n else math.nan)
    return np.array(result)


def t_quantile(level: float, freedom: int) -> float:
    """Quantile of Student's t, by bisection on its distribution; ``level`` in [0.5, 1)."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_upper_half(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _t_upper_half(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: 1/2 plus the finite trigonometric sum of integer degrees of freedom."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for j in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (j + 1) / (j + 2)
    inside = math.sin(angle) * total
    return 0.5 + ((angle + inside) / math.pi if odd else inside / 2)
