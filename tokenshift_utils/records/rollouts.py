"""Rollouts: a model's responses to a benchmark, judged. One row a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tokenshift_utils.models.policy import Sampling, stop_ids
from tokenshift_utils.records.requests import (
    Request,
    benchmark_names,
    common_parts,
    items,
    outcome,
    stop_models,
    study_policy,
    study_sampling,
    verdict,
)
from tokenshift_utils.store import columns as records
from tokenshift_utils.study.study import Study


@dataclass(frozen=True)
class Rollouts(Request):
    """All responses of one model to one benchmark under one sampling, or the ``first`` of them."""

    model: str
    benchmark: str
    samples: int
    sampling: Sampling
    first: int | None = field(default=None, compare=False)
    kinds = ("rollouts",)

    @classmethod
    def of(
        cls,
        study: Study,
        model: str,
        benchmarks: str | Sequence[str] | None = None,
        samples: int | None = None,
        sampling: Any = None,
    ) -> list[Rollouts]:
        """Requests for responses of a model or checkpoint, one a benchmark.

        Under the study's own sampling responses are drawn once, as many as accuracy takes, and
        fewer are the first of them.

        Parameters
        ----------
        benchmarks : names; None for all of the study's
        samples : the first so many responses a problem; None for as many as accuracy takes
        sampling : a ``Sampling`` or a dict of what differs from the study's; None for the study's

        Examples
        --------
        >>> fetch(study, Rollouts.of(study, "dapo", samples=4))  # doctest: +SKIP
        """
        study.model(model)
        drawn = study.accuracy_samples(model)
        chosen = study_sampling(study, sampling)
        wanted = drawn if samples is None else samples
        number = max(wanted, drawn) if chosen == study_sampling(study) else wanted
        return [
            cls(model, name, number, chosen, wanted) for name in benchmark_names(study, benchmarks)
        ]

    def parts(self, study: Study) -> dict:
        return common_parts(study, self.benchmark, [self.model], __name__) | {
            "kind": "rollouts",
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "stop": stop_models(study, self.model),
            "batch": study.batch.rollout,
        }

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        policy = study_policy(study, self.model)
        made = items(study, policy, self.benchmark, self._shards(study)[shard], self.samples)
        responses = policy.sample(
            [item.prompt_ids for item in made],
            [item.key for item in made],
            self.sampling,
            stop_ids=stop_ids(policy, study_policy(study, study.base)),
            batch_size=study.batch.rollout,
        )
        ids, reasons = [r.ids for r in responses], [r.finish_reason for r in responses]
        columns = {"study": study.name, "model": self.model, "benchmark": self.benchmark}
        columns |= {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        columns |= outcome(made, ids, reasons) | verdict(policy, ids, reasons, made)
        return {"rollouts": records.table("rollouts", columns)}
