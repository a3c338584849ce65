"""Tables: a value with its interval in three columns for machines, in one cell for readers.

A frame holds an estimate as columns x, x_low, x_high. The csv keeps them; text, Markdown and LaTeX
show "0.83 [0.80, 0.86]".
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["text_table", "to_latex", "to_markdown", "write_table"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


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


def text_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as readers see it: strings, intervals folded in, spaces for underscores."""
    names = list(frame.columns)
    folded = {f"{n}_{end}" for n in names for end in ("low", "high") if f"{n}_low" in names}
    out: dict[str, list[str]] = {}
    for name in names:
        if name in folded:
            continue
        column, title = frame[name], str(name).replace("_", " ")
        if f"{name}_low" in names:
            values = frame[[name, f"{name}_low", f"{name}_high"]].to_numpy(dtype=np.float64)
            column_decimals = _decimals(values)
            out[title] = []
            for v, a, b in values:
                d = _at_least_two_digits(v, column_decimals)
                interval = "" if math.isnan(a) else f" [{_number(a, d)}, {_number(b, d)}]"
                out[title].append(_number(v, d) + interval)
        elif name in SETTINGS and pd.api.types.is_float_dtype(column):
            out[title] = ["–" if math.isnan(v) else f"{v:g}" for v in column]
        elif pd.api.types.is_bool_dtype(column):
            out[title] = ["yes" if v else "no" for v in column]
        elif pd.api.types.is_float_dtype(column):
            values = column.to_numpy(dtype=np.float64)
            # Rows of different quantities have no scale in common.
            rows = values[:, None] if "quantity" in names else [values] * len(values)
            out[title] = [
                _number(v, _at_least_two_digits(v, _decimals(r))) for v, r in zip(values, rows)
            ]
        else:
            out[title] = ["" if v is None else str(v) for v in column]
    return pd.DataFrame(out, dtype=object)


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

    def escape(cell):
        text = "".join(_LATEX.get(c, c) for c in str(cell).replace("\n", " "))
        return text.replace("–", "--").replace("−", "$-$").replace("∞", r"$\infty$")

    def row(cells):
        return " & ".join(escape(c) for c in cells) + r" \\"

    text = text_table(frame)
    lines = [
        rf"\begin{{tabular}}{{{'l' * len(text.columns)}}}",
        r"\toprule",
        row(text.columns),
        r"\midrule",
        *(row(r) for r in text.itertuples(index=False)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def write_table(frame: pd.DataFrame, directory: Path, name: str) -> list[Path]:
    """Write directory/name.csv (all columns), .md and .tex (as read); returns the paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.{ending}" for ending in ("csv", "md", "tex")]
    frame.to_csv(paths[0], index=False, float_format="%.8g", lineterminator="\n")
    paths[1].write_text(to_markdown(frame), encoding="utf-8")
    paths[2].write_text(to_latex(frame), encoding="utf-8")
    return paths
