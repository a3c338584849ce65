"""Estimates with intervals: a bootstrap over problems.

A problem is drawn with all its samples (and all positions of those), within its benchmark, so the
spread between problems and between samples is in the interval and the spread between training runs
is not. Two estimates made with the same `Bootstrap` share their draws: their difference or ratio
is paired, problem by problem.

- accuracy: mean over problems of the mean over samples;
- share of positions: ratio of sums over the drawn problems, so that long responses count by length;
- quantile: of all positions of the drawn problems, values sorted once.

Intervals are percentile intervals. One from fewer than `MIN_PROBLEMS` problems or `MIN_EVENTS`
observations (responses or positions that count in the denominator) would be a number without
meaning: there is none then, and the estimate says why. Where every problem agrees (a share of exactly 0 or 1) they have
no width; that means "not seen to vary", not certainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

MIN_PROBLEMS = 2
MIN_EVENTS = 10
# Below this share of resamples in which a quantity exists, no interval is given.
MIN_DEFINED = 0.95
_CODES = "_problem"  # column of a frame whose problems were looked up


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap draws.

    Attributes
    ----------
    value : the estimate on all problems (NaN where it does not exist).
    draws : [resamples] the same statistic on the resampled problems.
    confidence : level of `low` and `high`.
    why : why there is no interval, where too little was observed for one; else "".
    """

    value: float
    draws: np.ndarray = field(repr=False)
    confidence: float = 0.95
    why: str = ""

    def interval(self, settings: int = 1) -> tuple[float, float]:
        """Percentile interval; for one of several `settings`, at a Bonferroni-corrected level."""
        defined = self.draws[np.isfinite(self.draws)]
        if not np.isfinite(self.value) or len(defined) < MIN_DEFINED * max(len(self.draws), 1):
            return np.nan, np.nan
        tail = (1.0 - self.confidence) / 2.0 / settings
        low, high = np.quantile(defined, [tail, 1.0 - tail])
        return float(low), float(high)

    @property
    def low(self) -> float:
        return self.interval()[0]

    @property
    def high(self) -> float:
        return self.interval()[1]

    @property
    def triple(self) -> tuple[float, float, float]:
        """(value, low, high)."""
        return (self.value, *self.interval())

    def columns(self, name: str) -> dict[str, float]:
        """{name, name_low, name_high}: how tables hold an estimate."""
        return columns_of(name, self.triple)

    def _with(self, other: Estimate | float, value: float, draws: np.ndarray) -> Estimate:
        why = self.why or (other.why if isinstance(other, Estimate) else "")
        return Estimate(float(value), draws, self.confidence, why)

    def __add__(self, other: Estimate | float) -> Estimate:
        return self._with(other, self.value + _value(other), self.draws + _draws(other))

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self._with(other, self.value - _value(other), self.draws - _draws(other))

    def __truediv__(self, other: Estimate | float) -> Estimate:
        value = _divide(self.value, _value(other))
        return self._with(other, value, _divide(self.draws, _draws(other)))


def columns_of(name: str, triple: tuple[float, float, float]) -> dict[str, float]:
    """{name, name_low, name_high} of a (value, low, high): how tables hold an estimate."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), triple))


def _value(x: Estimate | float) -> float:
    return x.value if isinstance(x, Estimate) else x


def _draws(x: Estimate | float) -> np.ndarray | float:
    return x.draws if isinstance(x, Estimate) else x


def _divide(a, b):
    """a / b with NaN where b is 0, without a warning."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b != 0)


def too_few(problems: int, events: int) -> str:
    """Why so many problems and observations give no interval; "" where they give one."""
    if problems >= MIN_PROBLEMS and events >= MIN_EVENTS:
        return ""
    counted = ", ".join(
        f"{number} {noun}{'' if number == 1 else 's'}"
        for noun, number in (("problem", problems), ("observation", events))
    )
    return f"too few for an interval ({counted}; at least {MIN_PROBLEMS} and {MIN_EVENTS})"


def simultaneous(estimates: list[Estimate], which: str) -> tuple[float, float, float]:
    """(value, low, high) of the smallest or largest of several estimates.

    The intervals of all are taken at a Bonferroni-corrected level, so that they hold together;
    then the least (greatest) of the lower and of the upper ends bound the least (greatest) value.
    """
    pick = {"smallest": min, "largest": max}[which]
    if not estimates:
        return np.nan, np.nan, np.nan
    intervals = [e.interval(len(estimates)) for e in estimates]
    value = pick(e.value for e in estimates)
    if any(np.isnan(low) for low, _ in intervals):
        return (value if all(np.isfinite(e.value) for e in estimates) else np.nan, np.nan, np.nan)
    return (
        value,
        pick(low for low, _ in intervals),
        pick(high for _, high in intervals),
    )


class Bootstrap:
    """Resamples of a fixed list of problems, stratified by benchmark.

    Parameters
    ----------
    problems : frame with columns benchmark and problem; duplicates are dropped, order is ignored.
    resamples, confidence, seed : number of resamples, level of the intervals, seed of the draws.

    >>> ten = pd.DataFrame({"benchmark": "aime", "problem": range(10), "correct": [True, False] * 5})
    >>> accuracy = Bootstrap(ten).accuracy(ten)
    >>> accuracy.value, [round(end, 1) for end in accuracy.interval()]
    (0.5, [0.2, 0.8])
    """

    def __init__(
        self, problems: pd.DataFrame, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
    ):
        index = pd.MultiIndex.from_frame(problems[["benchmark", "problem"]].astype(str))
        self.problems = index.unique().sort_values()
        self.confidence = confidence
        self.resamples = resamples
        rng = np.random.default_rng(seed)
        blocks = []
        for _, members in self.problems.to_frame(index=False).groupby("benchmark", sort=True):
            n = len(members)
            blocks.append(rng.multinomial(n, np.full(n, 1.0 / n), size=resamples))
        self.weights = np.concatenate(blocks, axis=1).astype(np.float64)  # [resamples, problems]

    def coded(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with its rows' problems looked up once for all estimates that follow."""
        return frame.assign(**{_CODES: self.codes(frame)})

    def codes(self, frame: pd.DataFrame) -> np.ndarray:
        """[rows] index of each row's problem in `self.problems`; a ValueError if one is unknown."""
        if _CODES in frame:
            return frame[_CODES].to_numpy()
        index = pd.MultiIndex.from_frame(frame[["benchmark", "problem"]].astype(str))
        codes = self.problems.get_indexer(index)
        if (codes < 0).any():
            raise ValueError(f"a problem outside the resampled ones: {index[codes < 0][0]}")
        return codes

    def _sum(self, codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """[problems] sums of values by problem."""
        return np.bincount(
            codes, weights=np.asarray(values, dtype=np.float64), minlength=len(self.problems)
        )

    def estimate(self, numerator: np.ndarray, denominator: np.ndarray, events: int) -> Estimate:
        """sum(numerator) / sum(denominator) over problems, both [problems], from `events` rows."""
        value = float(_divide(numerator.sum(), denominator.sum()))
        if why := too_few(int((denominator > 0).sum()), events):
            return self._without_interval(value, why)
        draws = _divide(self.weights @ numerator, self.weights @ denominator)
        return Estimate(value, draws, self.confidence)

    def _without_interval(self, value: float, why: str) -> Estimate:
        return Estimate(value, np.full(self.resamples, np.nan), self.confidence, why)

    def accuracy(self, frame: pd.DataFrame, column: str = "correct") -> Estimate:
        """Mean over problems of the mean over samples of `column` (one row a response)."""
        codes = self.codes(frame)
        count = self._sum(codes, np.ones(len(codes)))
        return self.estimate(
            np.where(count > 0, _divide(self._sum(codes, frame[column]), count), 0.0),
            (count > 0).astype(np.float64),
            len(codes),
        )

    def ratio(self, frame: pd.DataFrame, numerator, denominator=None) -> Estimate:
        """Ratio of sums over rows; `denominator` None counts rows. Both are arrays of [rows]."""
        codes = self.codes(frame)
        below = np.ones(len(codes)) if denominator is None else np.asarray(denominator)
        events = int(np.count_nonzero(below))
        return self.estimate(self._sum(codes, numerator), self._sum(codes, below), events)

    def ratios(self, frame: pd.DataFrame, parts: Mapping[str, Any]) -> dict[str, float]:
        """Columns of several ratios by their names; parts are numerators, or (numerator, denominator)."""
        row: dict[str, float] = {}
        for name, part in parts.items():
            above_and_below = part if isinstance(part, tuple) else (part,)
            row |= self.ratio(frame, *above_and_below).columns(name)
        return row

    def percentiles(self, frame: pd.DataFrame, values, levels) -> dict[str, float]:
        """Columns p50, p99.9, ... of `quantiles` at levels 0.5, 0.999, ..."""
        row: dict[str, float] = {}
        for level, estimate in zip(levels, self.quantiles(frame, values, levels)):
            row |= estimate.columns(f"p{100 * level:g}")
        return row

    def quantiles(self, frame: pd.DataFrame, values, levels) -> list[Estimate]:
        """Quantiles of values [rows] pooled over the drawn problems.

        The smallest value whose cumulated weight reaches level x total, as numpy's
        "inverted_cdf". Values are sorted once; per resample only a search is left: first over
        blocks of the sorted values (one matrix product), then inside the block found.
        """
        values, codes = np.asarray(values, dtype=np.float64), self.codes(frame)
        levels = np.asarray(levels, dtype=np.float64)
        why = too_few(len(np.unique(codes)), len(values))
        if len(values) == 0:
            return [self._without_interval(np.nan, why) for _ in levels]
        order = np.argsort(values, kind="stable")
        values, codes = values[order], codes[order]
        ones = np.ones((1, len(self.problems)))
        weights = ones if why else np.concatenate([ones, self.weights])
        found = _weighted_quantiles(values, codes, weights, levels)
        if why:
            return [self._without_interval(float(value), why) for value in found[0]]
        return [
            Estimate(float(found[0, i]), found[1:, i], self.confidence) for i in range(len(levels))
        ]

    def variance_explained(self, frame: pd.DataFrame, values, groups) -> Estimate:
        """Share of the variance of values that group membership explains, adjusted.

        1 - (within / (n - g)) / (total / (n - 1)) with n rows in g groups (epsilon squared), which
        is about 0, not positive, for groups that mean nothing. In a resample a row that comes w times
        brings one deviation, not w, so the degrees of freedom n - g are the sum over groups of W - S / W
        with W the sum of its rows' w and S that of their squares (n - 1 likewise, of all rows).
        """
        codes = self.codes(frame)
        values = np.asarray(values, dtype=np.float64)
        values = values - values.mean() if len(values) else values
        group, _ = pd.factorize(np.asarray(groups))
        shape = (len(self.problems), int(group.max(initial=-1)) + 1)
        cells = np.ravel_multi_index((codes, group), shape) if len(values) else codes
        size = int(np.prod(shape))
        n = np.bincount(cells, minlength=size).reshape(shape).astype(np.float64)
        s = np.bincount(cells, weights=values, minlength=size).reshape(shape)
        q = self._sum(codes, values**2)
        value = _epsilon_squared(np.ones((1, shape[0])), n, s, q)[0]
        if why := too_few(len(np.unique(codes)), len(values)):
            return self._without_interval(float(value), why)
        parts = [
            _epsilon_squared(block, n, s, q)
            for block in np.array_split(self.weights, max(1, self.resamples // 100))
        ]
        return Estimate(float(value), np.concatenate(parts), self.confidence)


def _weighted_quantiles(values, codes, weights, levels, block: int = 256) -> np.ndarray:
    """[draws, levels] quantiles of sorted values [n] whose rows weigh weights[:, codes]."""
    n, problems = len(values), weights.shape[1]
    starts = np.arange(0, n, block)
    counts = np.zeros((problems, len(starts)))
    np.add.at(counts, (codes, np.arange(n) // block), 1.0)
    cumulated = np.cumsum(weights @ counts, axis=1)  # [draws, blocks]
    total = cumulated[:, -1]
    out = np.full((len(weights), len(levels)), np.nan)
    for i, level in enumerate(levels):
        # Rounding up to a whole count keeps level x total from overshooting by one ulp.
        target = np.maximum(np.ceil(level * total - 1e-9), 1.0)
        which = np.minimum((cumulated < target[:, None]).sum(axis=1), len(starts) - 1)
        before = np.where(
            which > 0,
            np.take_along_axis(cumulated, np.maximum(which - 1, 0)[:, None], axis=1)[:, 0],
            0.0,
        )
        for b in np.unique(which):
            rows = np.flatnonzero((which == b) & (total > 0))
            inside = slice(starts[b], min(starts[b] + block, n))
            running = before[rows, None] + np.cumsum(weights[rows][:, codes[inside]], axis=1)
            place = np.minimum((running < target[rows, None]).sum(axis=1), running.shape[1] - 1)
            out[rows, i] = values[inside][place]
    return out


def _epsilon_squared(weights, n, s, q) -> np.ndarray:
    """[draws] adjusted variance share from counts n and sums s [problems, groups], squares q."""
    count, total, square, repeats = weights @ n, weights @ s, weights @ q, weights**2 @ n
    size = count.sum(axis=1)
    free = size - np.divide(repeats, count, out=np.zeros_like(count), where=count > 0).sum(axis=1)
    all_free = size - _divide(repeats.sum(axis=1), size)
    spread = square - _divide(total.sum(axis=1) ** 2, size)
    between = np.divide(total**2, count, out=np.zeros_like(total), where=count > 0).sum(axis=1)
    within = square - between
    # Rounding can leave a spread of 1e-18 where all values are equal: that is no variance.
    none = spread <= 1e-12 * square
    share = 1.0 - _divide(_divide(within, free), _divide(spread, all_free))
    return np.where(none | (free <= 1e-9 * size), np.nan, share)
