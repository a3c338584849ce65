"""Tables: a value with its interval in three columns for machines, in one cell for readers.

A frame holds an estimate as columns x, x_low, x_high. The csv keeps them; text, Markdown and LaTeX
show "0.83 [0.80, 0.86]", or "0.83 (too few for an interval)" where there is none; HTML has the
interval on a smaller second line. Shares are shown in percent, their differences in points.
"""

from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from tokenshift_utils.files import write_text

_LATEX = str.maketrans(
    {
        **{c: rf"\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "–": "--",
        "−": "$-$",
        "∞": r"$\infty$",
        "\n": " ",
    }
)
NO_INTERVAL = "too few for an interval"
ROWS, COLUMNS = 12, 8  # of a table that a notebook shows; the files have all
# Columns that readers see in percent, and differences of such, which they see in points.
SHARES = re.compile(
    r"(.*_)?share(_.*)?|accuracy.*|before|after|goal|top\d+|k\d+|pass@\d+|gained_in_.*"
    r"|mass_moved|jaccard|(nucleus_|full_)?(near_zero|high)|both_high|only_(nucleus|full)_high"
    r"|nucleus_(zero|high_full_.*)|replaced|explained|(random_at|oracle_for)_95"
    r"|between|below_0.*|base_prob_below_.*|equal_tokens|decisive|recovered|lost"
)
DIFFERENCE_COLUMNS = re.compile(
    r"change|gap|effect|effect_different|gain(@\d+)?|.*_gain|.*_points|.*_lead|lead_.*"
)
SETTINGS = ("threshold", "gain", "rate", "temperature", "top_p")  # shown as the study gives them


def _decimals(values: np.ndarray) -> int:
    """Decimals that give the largest value of a column three significant digits, 0 to 6."""
    finite = np.abs(values[np.isfinite(values)])
    top = finite.max() if len(finite) else 0.0
    return 3 if top == 0 else int(np.clip(2 - math.floor(math.log10(top)), 0, 6))


def _at_least_two_digits(value: float, decimals: int) -> int:
    """More decimals than the column's where a value far below its largest would show none."""
    if value == 0 or not abs(value) < 1:
        return decimals
    return max(decimals, min(6, 1 - math.floor(math.log10(abs(value)))))


def _number(value: float, decimals: int) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{decimals}f}"
    return text[1:] if text.strip("-0.") == "" and text.startswith("-") else text


def _cells(frame: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """The frame as readers see it: by title, (value, interval) in words, "" for no interval."""
    names = list(frame.columns)
    folded = {f"{n}_{end}" for n in names for end in ("low", "high") if f"{n}_low" in names}
    out: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if name in folded:
            continue
        column, title = frame[name], str(name).replace("_", " ")
        number = pd.api.types.is_float_dtype(column)
        ends = [f"{name}_low", f"{name}_high"] if f"{name}_low" in names else []
        if number and name in SETTINGS and not ends:
            out[title] = [("–" if math.isnan(v) else f"{v:g}", "") for v in column]
        elif number:
            mixed = "quantity" in names  # rows of different quantities have no unit in common
            share = not mixed and SHARES.fullmatch(str(name))
            points = not mixed and DIFFERENCE_COLUMNS.fullmatch(str(name))
            values = frame[[name, *ends]].to_numpy(dtype=np.float64) * (
                100 if share or points else 1
            )
            rows = values[:, None] if mixed else [values] * len(values)
            least = 1 if share or points else 0
            written = [
                _estimate(v, max(least, _decimals(r)), "%" if share else "")
                for v, r in zip(values, rows)
            ]
            out[title + " (points)" * bool(points)] = written
        elif pd.api.types.is_bool_dtype(column):
            out[title] = [("yes" if v else "no", "") for v in column]
        else:
            out[title] = [("" if v is None else str(v), "") for v in column]
    return out


def _estimate(values: np.ndarray, decimals: int, unit: str) -> tuple[str, str]:
    """(value, interval) of an array (value,) or (value, low, high)."""
    values = np.where(np.abs(values) < 1e-12, 0.0, values)  # rounding of a difference of equals
    v, decimals = values[0], _at_least_two_digits(values[0], decimals)
    text = _number(v, decimals) + unit * bool(np.isfinite(v))
    if len(values) == 1 or math.isnan(v):
        return text, ""
    if math.isnan(values[1]):
        return text, f"({NO_INTERVAL})"
    return text, f"[{_number(values[1], decimals)}, {_number(values[2], decimals)}]"


def text_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as readers see it: strings, intervals folded in, spaces for underscores.

    >>> frame = pd.DataFrame({"share_high": [0.12], "mean_js": [0.034]})
    >>> text_table(frame.assign(mean_js_low=0.03, mean_js_high=0.04)).iloc[0].to_dict()
    {'share high': '12.0%', 'mean js': '0.0340 [0.0300, 0.0400]'}
    """
    cells = _cells(frame)
    joined = {title: [" ".join(filter(None, c)) for c in column] for title, column in cells.items()}
    return pd.DataFrame(joined, dtype=object)


def to_html(frame: pd.DataFrame) -> str:
    """A table whose intervals stand on a smaller second line and don't wrap."""

    def cell(value: str, interval: str) -> str:
        second = f'<br><small style="white-space:nowrap">{escape(interval)}</small>'
        return f"<td>{escape(value)}{second if interval else ''}</td>"

    cells = _cells(frame)
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in cells)
    rows = ("".join(cell(*c) for c in row) for row in zip(*cells.values()))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def to_markdown(frame: pd.DataFrame) -> str:
    """GitHub Markdown; pipes and line breaks in cells are escaped."""

    def row(cells):
        return (
            "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )

    text = text_table(frame)
    lines = [row(text.columns), row("---" for _ in text.columns)]
    return "\n".join(lines + [row(r) for r in text.itertuples(index=False)]) + "\n"


def to_latex(frame: pd.DataFrame) -> str:
    """A booktabs tabular, to be included with \\input; needs no package beside booktabs."""

    def escape(cell) -> str:
        return str(cell).translate(_LATEX)

    shown = text_table(frame).style.hide(axis="index")
    shown = shown.format(escape).format_index(escape, axis="columns")
    return shown.to_latex(hrules=True, column_format="l" * len(shown.columns))


def write_table(frame: pd.DataFrame, directory: Path, name: str) -> list[Path]:
    """Write directory/name.csv (all columns), .md and .tex (as read); returns the paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.{ending}" for ending in ("csv", "md", "tex")]
    csv = frame.to_csv(index=False, float_format="%.8g", lineterminator="\n")
    for path, text in zip(paths, (csv, to_markdown(frame), to_latex(frame))):
        write_text(path, text)
    return paths
