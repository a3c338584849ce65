"""Section 1: how much of JS a model's dtype alone makes (the records are those of ``precision``)."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.sections.common import SUPPORTS, last_row, percent, study_bootstrap
from tokenshift_utils.sections.divergence.numbers import sparsity_row


def precision_table(study, floor: pd.DataFrame | None) -> pd.DataFrame:
    """Shares of positions by JS between one model's weights in float32 and in bfloat16.

    A row a support, with the columns of ``sparsity_table`` and the largest JS; none without
    ``floor``.
    """
    if floor is None:
        return pd.DataFrame(columns=["model", "between", "support"])
    boot, rows = study_bootstrap(study, floor), []
    for support, column in SUPPORTS.items():
        js = floor[column].to_numpy()
        row = {"model": study.models[study.precision.model].label}
        row |= {"between": "bfloat16 and float32", "support": support, "positions": len(floor)}
        rows.append(row | sparsity_row(study, boot, floor, js) | {"max": float(js.max())})
    return pd.DataFrame(rows)


def say_precision(study, table: pd.DataFrame, sparsity: pd.DataFrame) -> str:
    """The noise floor beside what training makes, from the two tables."""
    if table.empty:
        return "This study does not measure what bfloat16 alone makes (key 'precision')."
    high = study.thresholds.high_js
    share = f"share_gt_{high:g}"
    row, full = (last_row(table, support=support) for support in SUPPORTS)
    trained = last_row(sparsity, model=study.precision.model, support="nucleus")
    beside = "" if trained is None else f"; training does at {percent(trained, share)}"
    return (
        f"Rounding to bfloat16 alone lifts JS above {high:g} at {percent(row, share)} of {row['model']}'s "
        f"positions, where a token crosses the edge of a nucleus{beside}. Over the full vocabulary "
        f"rounding makes at most {full['max']:.2g} nats."
    )
