"""What a model's dtype alone does to the measures: the same weights in float32 and in bfloat16.

The noise floor of a study of models that run in bfloat16: divergences no larger than these say
nothing about training.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from tokenshift_utils.models.policy import Policy
from tokenshift_utils.records.requests import study_policy
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.store.code import code_version
from tokenshift_utils.study.study import Study

COMPARED_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Precision(Shifts):
    """Shifts from a model in float32 to its own weights in bfloat16, on its own responses."""

    @classmethod
    def of(cls, study: Study) -> list[Precision]:
        """Requests for the model and as many responses a problem as the study's ``precision``
        says; none where it says nothing."""
        if study.precision is None:
            return []
        return super().of(study, study.precision.model, samples=study.precision.samples)

    def parts(self, study: Study) -> dict:
        own = {"kind": "precision", "dtypes": COMPARED_DTYPES, "precision": code_version(__name__)}
        return super().parts(study) | own

    def policies(self, study: Study) -> list[Policy]:
        return [
            study_policy(study.with_overrides(dtype=dtype), self.tuned) for dtype in COMPARED_DTYPES
        ]

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        table = super().compute(study, shard)["shifts"]
        for name, dtype in zip(("base", "tuned"), COMPARED_DTYPES):
            place = table.schema.get_field_index(name)
            values = pa.array([f"{self.tuned} ({dtype})"] * len(table))
            table = table.set_column(place, table.schema.field(place), values)
        return {"shifts": table}
