"""Comparing training objectives over seeds: paired differences, an exact test, and its limits.

Runs of one seed share problems and noise, so arms are compared by their differences seed by seed.
What is tested is that an arm makes no difference: then each difference is as likely to have either
sign. With n seeds there are 2^n sign patterns and no p below 2 / 2^n can come out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """Differences of an arm to another, one a seed that both have.

    >>> gains = Paired(np.array([0.01, 0.03, 0.02]))
    >>> round(gains.mean, 3), gains.p, gains.smallest_p
    (0.02, 0.25, 0.25)
    """

    differences: np.ndarray
    confidence: float = 0.95

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return float(self.differences.mean()) if self.seeds else math.nan

    def _times_error(self, *levels: float) -> float:
        """Standard error of the mean times these quantiles of Student's t; NaN for one seed."""
        if self.seeds < 2:
            return math.nan
        return float(stats.t.ppf(levels, self.seeds - 1).sum() * stats.sem(self.differences))

    def interval(self) -> tuple[float, float]:
        """Student's interval for the mean difference; NaN with fewer than two seeds."""
        half = self._times_error(0.5 + self.confidence / 2)
        return self.mean - half, self.mean + half

    @property
    def triple(self) -> tuple[float, float, float]:
        """(mean, low, high)."""
        return (self.mean, *self.interval())

    @property
    def p(self) -> float:
        """Two-sided p of the sign-flip permutation test, all 2^n patterns counted."""
        if self.seeds < 2:
            return self.smallest_p
        test = stats.permutation_test(
            (self.differences,), np.sum, permutation_type="samples", n_resamples=np.inf
        )
        # Equal sums may differ by rounding, also where they are 0.
        reached = np.abs(test.null_distribution) >= abs(test.statistic) * (1 - 1e-9) - 1e-15
        return float(reached.mean())

    @property
    def smallest_p(self) -> float:
        """The least p that so many seeds could give."""
        return min(1.0, 2 / 2**self.seeds) if self.seeds else math.nan

    @property
    def detectable(self) -> float:
        """The mean difference that four in five such experiments would find, at this spread."""
        return self._times_error(0.5 + self.confidence / 2, POWER)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in the order given; NaN stays NaN, uncounted."""
    from statsmodels.stats.multitest import multipletests

    corrected = np.array(values, dtype=float)
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected.tolist()


def pass_at_k(correct: np.ndarray, samples: np.ndarray, k: int) -> np.ndarray:
    """Unbiased chance that one of ``k`` of a problem's responses is right (Chen et al. 2021).

    ``1 - C(n - c, k) / C(n, k)`` for c right ones among n samples, elementwise; NaN where k > n.

    >>> pass_at_k(np.array([1]), np.array([4]), 2).round(3).tolist()
    [0.5]
    """
    drawn_right = stats.hypergeom.sf(0, samples, correct, np.minimum(k, samples))
    return np.where(k <= np.asarray(samples), drawn_right, math.nan)
