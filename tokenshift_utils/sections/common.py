"""What the analyses of all sections share: the bootstrap, parts by benchmark, wording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

from tokenshift_utils.report.bootstrap import Bootstrap, Estimate, columns_of
from tokenshift_utils.report.tables import NO_INTERVAL
from tokenshift_utils.sections.claims import EVIDENCE_COLUMNS, QUANTITIES

SUPPORTS = {"nucleus": "js", "full": "js_full"}  # of the distributions that are compared
ALL = "all"  # the row of a table that pools the benchmarks

_STRUCTURAL = frozenset("0123456789+-*/=×÷^<>()")


def study_bootstrap(study, *frames: pd.DataFrame) -> Bootstrap:
    """The bootstrap over the problems that occur in any of the frames, as the study sets it.

    Estimates of the same bootstrap share their draws, so differences between them are paired.
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


def by(
    study,
    frames: Mapping[Any, pd.DataFrame],
    rows: Callable[[Bootstrap, Any, str, pd.DataFrame], Iterable[dict]],
    *others: pd.DataFrame,
) -> pd.DataFrame:
    """The table of all `rows(boot, key, benchmark, part)`, by the frames' keys and by benchmark.

    One bootstrap is behind all of it: over the problems of the frames and of the `others`.
    """
    boot = study_bootstrap(study, *frames.values(), *others)
    return pd.DataFrame(
        [
            row
            for key, frame in frames.items()
            for benchmark, part in by_benchmark(study, frame)
            for row in rows(boot, key, benchmark, part)
        ]
    )


def on_shared_samples(frames: Mapping[Any, pd.DataFrame]) -> dict[Any, pd.DataFrame]:
    """The rows of the samples that all frames have, so that what differs is not the samples.

    Samples of a problem are numbered from 0 without gaps.
    """
    last = min((frame["sample"].max() for frame in frames.values()), default=0)
    return {key: frame[frame["sample"] <= last] for key, frame in frames.items()}


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all benchmarks: of the last benchmark label, which pools if there are two."""
    return table[table["benchmark"] == table["benchmark"].iloc[-1]] if len(table) else table


def rows_with(table: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows with these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def last_row(table: pd.DataFrame, **values) -> pd.Series | None:
    """The last of the rows with these values; None where there is none."""
    rows = rows_with(table, **values)
    return None if rows.empty else rows.iloc[-1]


def last_rows(study, table: pd.DataFrame, kinds=("rl",), **values) -> list[pd.Series]:
    """The last row of every model of these kinds that has one with these values."""
    found = (last_row(table, model=model, **values) for model in of_kind(study, *kinds))
    return [row for row in found if row is not None]


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
        triple = (np.nan, np.nan, np.nan) if estimate is None else estimate
        if isinstance(estimate, Estimate):
            triple = estimate.triple
        if np.isnan(triple).any() and not (note and np.isnan(triple[0])):
            why = getattr(estimate, "why", "") or "too few problems show it for an interval"
            note = f"{note}; {why}" if note else why
        out.append((quantity, subject, *triple, note))
    return pd.DataFrame(out, columns=list(EVIDENCE_COLUMNS))


def on_both_supports(
    study, rows_on: Callable[[str], list[tuple]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(evidence on nuclei, the same quantities on both supports), from a section's rows.

    `rows_on(column)` gives (quantity, model, estimate, the same at all positions or None, note), with
    the JS of that column; only quantities that claims look at are kept. The second frame has a row a quantity and model: quantity (in words), model,
    nucleus, full, both with intervals, and all_positions, the base rate.
    """
    found = {
        support: [row for row in rows_on(column) if row[0] in QUANTITIES]
        for support, column in SUPPORTS.items()
    }
    shown: dict[tuple, dict] = {}
    for support, rows in found.items():
        for quantity, model, estimate, _, _ in rows:
            named = {"quantity": QUANTITIES[quantity], "model": study.models[model].label}
            row = shown.setdefault((quantity, model), named)
            triple = evidence([(quantity, model, estimate, "nothing")]).iloc[0]
            row |= columns_of(support, tuple(triple[["value", "low", "high"]]))
    noted = []
    for quantity, model, estimate, everywhere, note in found["nucleus"]:
        base = np.nan if everywhere is None else everywhere.value
        shown[quantity, model]["all_positions"] = base
        if not np.isnan(base):
            unit = " points" if "minus" in QUANTITIES[quantity] else "%"
            note = "; ".join(filter(None, [note, f"at all positions {100 * base:.3g}{unit}"]))
        noted.append((quantity, model, estimate, note))
    return evidence(noted), pd.DataFrame(shown.values())


def token_class(text: str) -> str:
    """ "structural" for digits and operators, "other" for all else, told from the text alone."""
    stripped = text.strip()
    return "structural" if stripped and set(stripped) <= _STRUCTURAL else "other"


def percent(row, name: str, decimals: int = 1) -> str:
    """ "87.1% [86.2, 88.0]" from the columns name, name_low, name_high (or low, high) of a row.

    A share that its interval tells from none, or an end of that, which so many decimals would show as
    none, has up to four.
    """
    ends = (f"{name}_low", f"{name}_high") if f"{name}_low" in row else ("low", "high")
    value, low, high = (100 * float(row[c]) for c in (name, *ends))
    if np.isnan(value):
        return "not measurable"
    small = [x for x in (abs(value),) if 0 < x < 10.0**-decimals and not low < 0 < high]
    small += [x for x in (abs(low), abs(high)) if 0 < x < 0.5 * 10.0**-decimals]
    if small:
        decimals = max(decimals, min(4, int(np.ceil(-np.log10(min(small))))))
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


class _Sentence(Formatter):
    """`str.format` of a row's columns, whose names may hold dots, with two formats more."""

    def get_field(self, name, args, row):
        return (row, name), name

    def format_field(self, field, spec):
        row, name = field
        if spec.startswith("%"):
            return percent(row, name, int(spec[1:] or 1))
        return points(row, name) if spec == "points" else format(row[name], spec)


def say(template: str, row: Mapping | pd.Series, **more) -> str:
    """A sentence from a row: `template` with its columns, and `more`, where it has {column:format}.

    Formats are Python's; "%" is `percent` with one decimal, "%2" with two; "points" is `points`.

    >>> say("{pair}: {share:%0} of {n:,}", {"pair": "RL", "n": 1200, "share": 0.5,
    ...     "share_low": 0.4, "share_high": 0.6})
    'RL: 50% [40, 60] of 1,200'
    """
    return _Sentence().vformat(template, (), {**row, **more})


def say_each(template: str, rows: pd.DataFrame, **more) -> str:
    """A line a row: see `say`."""
    return "\n".join(say(template, row, **more) for _, row in rows.iterrows())
