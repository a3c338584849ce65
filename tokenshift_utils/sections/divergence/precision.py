"""Section 1: how much of JS a model's dtype alone makes (the records are those of ``precision``)."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.sections.common import percent, plan
from tokenshift_utils.sections.divergence.numbers import SUPPORTS, sparsity_row

__all__ = ["precision_table", "say_precision"]


def precision_table(study, floor: pd.DataFrame | None) -> pd.DataFrame:
    """Shares of positions by JS between one model's weights in float32 and in bfloat16.

    A row a support, with the columns of ``sparsity_table`` and the largest JS; none without
    ``floor``.
    """
    rows = []
    for column, support in SUPPORTS.items() if floor is not None else ():
        js = floor[column].to_numpy()
        rows.append(
            {
                "model": study.models[study.precision.model].label,
                "between": "bfloat16 and float32",
                "support": support,
                "positions": len(floor),
                **sparsity_row(study, plan(study, floor), floor, js),
                "max": float(js.max()),
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["model", "between", "support"])


def say_precision(study, table: pd.DataFrame, sparsity: pd.DataFrame) -> str:
    """The noise floor beside what training makes, from the two tables."""
    if table.empty:
        return "This study does not measure what bfloat16 alone makes (key 'precision')."
    cut, high = study.thresholds.near_zero[0], study.thresholds.high_js
    row, full = (table[table["support"] == support].iloc[0] for support in ("nucleus", "full"))
    model = study.precision.model
    pooled = sparsity[(sparsity["model"] == model) & (sparsity["support"] == "nucleus")].iloc[-1:]
    out = (
        f"{row['model']}'s own weights in bfloat16 against float32 ({row['positions']:,} positions): "
        f"JS is at most {cut:g} at {percent(row, f'share_le_{cut:g}')}, above {high:g} at "
        f"{percent(row, f'share_gt_{high:g}', 2)}, where a token left or entered a nucleus; its mean "
        f"is {row['mean']:.2g}, on the full vocabulary {full['mean']:.2g} and at most "
        f"{full['max']:.2g}."
    )
    for _, trained in pooled.iterrows():
        out += (
            f" Between base and {row['model']} the mean is {trained['mean']:.2g}, and JS is above "
            f"{high:g} at {percent(trained, f'share_gt_{high:g}', 2)}."
        )
    return out
