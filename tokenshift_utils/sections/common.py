"""What the analyses of all sections share: the resampling plan, parts by benchmark, wording."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
import pandas as pd

from tokenshift_utils.report.bootstrap import Bootstrap, Estimate
from tokenshift_utils.report.tables import NO_INTERVAL
from tokenshift_utils.sections.claims import EVIDENCE_COLUMNS

__all__ = [
    "ALL",
    "by_benchmark",
    "evidence",
    "of_kind",
    "of_recipe",
    "paragraph",
    "percent",
    "plan",
    "points",
    "token_class",
]

ALL = "all"  # the row of a table that pools the benchmarks

_STRUCTURAL = frozenset("0123456789+-*/=×÷^<>()")


def plan(study, *frames: pd.DataFrame) -> Bootstrap:
    """The bootstrap over the problems that occur in any of the frames, as the study sets it.

    Estimates of the same plan share their draws, so differences between them are paired.
    """
    pairs = [frame[["benchmark", "problem"]].drop_duplicates() for frame in frames]
    return Bootstrap(pd.concat(pairs), **study.statistics.model_dump())


def by_benchmark(study, frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(label, rows) of every benchmark in the study's order; then all pooled, if there are two."""
    found = [name for name in study.benchmarks if (frame["benchmark"] == name).any()]
    for name in found:
        yield study.benchmarks[name].label, frame[frame["benchmark"] == name]
    if len(found) > 1:
        yield ALL, frame


def of_kind(study, *kinds: str) -> list[str]:
    """Names of the study's models of these kinds, in the study's order."""
    return [name for name, spec in study.models.items() if spec.kind in kinds]


def of_recipe(study, recipe: str, among) -> str | None:
    """The first of the models ``among`` that is of a recipe of the paper."""
    return next((name for name in among if study.models[name].recipe == recipe), None)


def evidence(rows: list[tuple]) -> pd.DataFrame:
    """Evidence for the claims, from rows (quantity, subject, estimate, note).

    `estimate` is an Estimate, a triple (value, low, high), or None where nothing can be measured:
    the note then says why.
    """
    out = []
    for quantity, subject, estimate, note in rows:
        if estimate is None:
            triple = (np.nan, np.nan, np.nan)
        elif isinstance(estimate, Estimate):
            triple = (estimate.value, *estimate.interval())
        else:
            triple = estimate
        if np.isnan(triple).any() and not (note and np.isnan(triple[0])):
            why = getattr(estimate, "why", "") or "too few problems show it for an interval"
            note = f"{note}; {why}" if note else why
        out.append((quantity, subject, *triple, note))
    return pd.DataFrame(out, columns=list(EVIDENCE_COLUMNS))


def token_class(text: str) -> str:
    """ "structural" for digits and operators, "other" for all else, told from the text alone."""
    stripped = text.strip()
    return "structural" if stripped and set(stripped) <= _STRUCTURAL else "other"


def percent(row, name: str, decimals: int = 1) -> str:
    """ "87.1% [86.2, 88.0]" from the columns name, name_low, name_high (or low, high) of a row."""
    ends = (f"{name}_low", f"{name}_high") if f"{name}_low" in row.index else ("low", "high")
    value, low, high = (100 * float(row[c]) for c in (name, *ends))
    if np.isnan(value):
        return "not measurable"
    if np.isnan(low):
        return f"{value:.{decimals}f}% ({NO_INTERVAL})"
    return f"{value:.{decimals}f}% [{low:.{decimals}f}, {high:.{decimals}f}]"


def points(row, name: str) -> str:
    """ "+2.5 points [0.3, 4.8]": a difference of shares in percentage points."""
    text = percent(row, name)
    if "%" not in text:
        return text
    sign = "+" if float(row[name]) > 0 else ""
    return sign + text.replace("%", " points", 1)


def paragraph(text: str) -> None:
    """Print text, each of its lines wrapped to a readable width."""
    for line in text.splitlines():
        print(textwrap.fill(line, width=96, subsequent_indent="  ", break_on_hyphens=False))
