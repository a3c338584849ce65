"""Section 1: how much of JS a model's dtype alone makes (the records are those of ``precision``)."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.sections.common import (
    SUPPORTS,
    last_row,
    on_shared_samples,
    percent,
    study_bootstrap,
)
from tokenshift_utils.sections.divergence.numbers import sparsity_row

ROUNDING = "bfloat16 and float32"


def precision_table(
    study, floor: pd.DataFrame | None, shifts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Shares of positions by JS between one model's weights in float32 and in bfloat16, and between
    it and base (``shifts``) on the samples that both have.

    A row a support and comparison, with the columns of ``sparsity_table`` and the largest JS; none
    without ``floor``.
    """
    if floor is None:
        return pd.DataFrame(columns=["model", "between", "support"])
    model = study.precision.model
    frames = {ROUNDING: floor} | ({"it and base": shifts[model]} if model in shifts else {})
    boot, rows = study_bootstrap(study, floor), []
    for between, frame in on_shared_samples(frames).items():
        for support, column in SUPPORTS.items():
            js = frame[column].to_numpy()
            row = {"model": study.models[model].label, "between": between, "support": support}
            row |= {"positions": len(frame)} | sparsity_row(study, boot, frame, js)
            rows.append(row | {"max": float(js.max())})
    return pd.DataFrame(rows)


def say_precision(study, table: pd.DataFrame) -> str:
    """The noise floor beside what training makes, from `precision_table`."""
    if table.empty:
        return "This study does not measure what bfloat16 alone makes (key 'precision')."
    high = study.thresholds.high_js
    share = f"share_gt_{high:g}"
    row, full = (last_row(table, support=support, between=ROUNDING) for support in SUPPORTS)
    trained = table[(table["between"] != ROUNDING) & (table["support"] == "nucleus")]
    beside = f"; training does at {percent(trained.iloc[0], share)}" if len(trained) else ""
    return (
        f"Rounding to bfloat16 alone lifts JS above {high:g} at {percent(row, share)} of {row['model']}'s "
        f"positions, where a token crosses the edge of a nucleus{beside}. Over the full vocabulary "
        f"rounding makes at most {full['max']:.2g} nats."
    )
