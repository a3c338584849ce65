"""What a model's dtype alone does to the measures: the same weights in float32 and in bfloat16.

The noise floor of a study of models that run in bfloat16: divergences no larger than these say
nothing about training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from tokenshift_utils.models.policy import Policy
from tokenshift_utils.records.requests import study_policy
from tokenshift_utils.records.shifts import MODULES as SHIFTS_MODULES
from tokenshift_utils.records.shifts import Shifts, computed_shifts, shift_artefacts
from tokenshift_utils.store.store import code_version
from tokenshift_utils.study.study import Study

MODULES = (*SHIFTS_MODULES, "records.precision")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Precision(Shifts):
    """Shifts from a model in float32 to its own weights in bfloat16, on its own responses."""

    def parts(self, study: Study) -> dict:
        own = {"kind": "precision", "dtypes": DTYPES, "code": code_version(MODULES)}
        return super().parts(study) | own

    def policies(self, study: Study) -> list[Policy]:
        return [study_policy(study.with_overrides(dtype=dtype), self.tuned) for dtype in DTYPES]

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        table = super().compute(study, shard)["shifts"]
        for name, dtype in zip(("base", "tuned"), DTYPES):
            place = table.schema.get_field_index(name)
            values = pa.array([f"{self.tuned} ({dtype})"] * len(table))
            table = table.set_column(place, table.schema.field(place), values)
        return {"shifts": table}


def precision_artefacts(study: Study) -> list[Precision]:
    """The artefacts behind ``get_precision``; none where the study says nothing of it."""
    if study.precision is None:
        return []
    model, samples = study.precision.model, study.precision.samples
    return [Precision(**vars(a)) for a in shift_artefacts(study, model, samples=samples)]


def get_precision(study: Study, columns: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Shifts that the dtype alone makes, computed where the store lacks them.

    Of the model and as many responses a problem as the study's ``precision`` says; None where it
    says nothing.
    """
    artefacts = precision_artefacts(study)
    return computed_shifts(study, artefacts, columns) if artefacts else None
