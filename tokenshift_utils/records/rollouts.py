"""Rollouts: a model's responses to a benchmark, judged. One row a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from tokenshift_utils.models.policy import Sampling, stop_ids
from tokenshift_utils.records.requests import (
    SAMPLER,
    benchmark_names,
    common_parts,
    items,
    outcome,
    shards_of,
    stop_models,
    study_policy,
    study_sampling,
    verdict,
)
from tokenshift_utils.store import columns as records
from tokenshift_utils.store import executor
from tokenshift_utils.store.store import code_version
from tokenshift_utils.study.study import Study

MODULES = (
    *SAMPLER,
    "tasks.benchmarks",
    "tasks.math_judge",
    "tasks.prompts",
    "store.columns",
    "records.rollouts",
    "tasks.verifier",
)


@dataclass(frozen=True)
class Rollouts:
    """All responses of one model to one benchmark under one sampling."""

    model: str
    benchmark: str
    samples: int
    sampling: Sampling
    kinds = ("rollouts",)

    def parts(self, study: Study) -> dict:
        return common_parts(study, self.benchmark, [self.model]) | {
            "kind": "rollouts",
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "stop": stop_models(study, self.model),
            "batch": study.batch.rollout,
            "code": code_version(MODULES),
        }

    def weights(self, study: Study) -> list[int]:
        shards = shards_of(study, self.benchmark, study.problems_per_shard)
        return [len(problems) * self.samples for problems in shards]

    def needs(self, study: Study, shard: int) -> list[executor.Job]:
        return []

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        policy = study_policy(study, self.model)
        problems = shards_of(study, self.benchmark, study.problems_per_shard)[shard]
        made = items(study, policy, self.benchmark, problems, self.samples)
        responses = policy.sample(
            [item.prompt_ids for item in made],
            [item.key for item in made],
            self.sampling,
            stop_ids=stop_ids(policy, study_policy(study, study.base)),
            batch_size=study.batch.rollout,
        )
        ids, reasons = [r.ids for r in responses], [r.finish_reason for r in responses]
        columns = {
            "study": study.name,
            "model": self.model,
            "benchmark": self.benchmark,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
        }
        columns |= outcome(made, ids, reasons) | verdict(policy, ids, reasons, made)
        return {"rollouts": records.table("rollouts", columns)}


def rollout_artefacts(
    study: Study,
    model: str,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> list[Rollouts]:
    """The artefacts behind ``get_rollouts``, for ``prefetch``.

    Under the study's own sampling the responses are drawn once, as many as accuracy takes, and
    fewer are a part of them.
    """
    study.model(model)
    drawn = study.accuracy_samples(model)
    own = study_sampling(study)
    chosen = study_sampling(study, sampling)
    number = drawn if samples is None else samples
    if chosen == own:
        number = max(number, drawn)
    return [Rollouts(model, b, number, chosen) for b in benchmark_names(study, benchmarks)]


def get_rollouts(
    study: Study,
    model: str,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> pd.DataFrame:
    """Responses of a model or checkpoint, computed where the store lacks them.

    Parameters
    ----------
    benchmarks : names; None for all of the study's
    samples : the first so many responses a problem; None for as many as accuracy takes
    sampling : a ``Sampling`` or a dict of what differs from the study's; None for the study's

    Returns
    -------
    DataFrame with the columns of ``records.describe("rollouts")``, one row a response.
    """
    artefacts = rollout_artefacts(study, model, benchmarks, samples, sampling)
    executor.run(study, artefacts)
    number = study.accuracy_samples(model) if samples is None else samples
    frame = pa.concat_tables([executor.read(study, a, "rollouts") for a in artefacts]).to_pandas()
    return frame[frame["sample"] < number].reset_index(drop=True)
