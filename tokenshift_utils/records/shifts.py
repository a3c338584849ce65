"""Shifts: how two models' next-token distributions differ at every position of given responses.

One row a position. Both models read the same token ids (the prompt's and the response's, never
decoded and encoded again) by teacher forcing; the row at position t compares the distributions that
emit token t. Whose responses they are is the ``source``: the tuned model's own, as in the paper,
another model's, or mixed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.policy import Policy, Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.records.cross_sampling import CrossSampling, cross_sampling_artefacts
from tokenshift_utils.records.requests import (
    SAMPLER,
    benchmark_names,
    common_parts,
    shards_of,
    study_policy,
    study_sampling,
)
from tokenshift_utils.records.rollouts import Rollouts, rollout_artefacts
from tokenshift_utils.store import columns as records
from tokenshift_utils.store import executor
from tokenshift_utils.store.store import code_version
from tokenshift_utils.study.study import Study
from tokenshift_utils.tasks.verifier import answer_opening

MODULES = (*SAMPLER, "models.memory", "store.columns", "records.shifts")


def answer_start(tokenizer: Any, ids: Sequence[int], verifier: str = "boxed") -> int | None:
    """Position of the token with which the final answer of a response opens, or None."""
    start = answer_opening(tokenizer.decode(list(ids), skip_special_tokens=True), verifier)
    if start is None:
        return None
    low, high = 0, len(ids) - 1  # the first position whose prefix reaches beyond `start`
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(list(ids[: middle + 1]), skip_special_tokens=True)) > start:
            high = middle
        else:
            low = middle + 1
    return low


def shift_table(
    base: Policy,
    tuned: Policy,
    source: str,
    trajectories: pd.DataFrame,
    sampling: Sampling,
    top_k: int,
    batch_size: int,
    progress: Any = None,
    verifier: str = "boxed",
) -> pa.Table:
    """Shifts of all trajectories, ordered as they are.

    ``trajectories`` has columns benchmark, problem, sample, prompt_ids and response_ids.
    ``progress`` is called with the number of positions of each block done; ``verifier`` is the rule
    by which a response's final answer is found.
    """
    prompts = [list(map(int, ids)) for ids in trajectories["prompt_ids"]]
    responses = [list(map(int, ids)) for ids in trajectories["response_ids"]]
    scored = score_pair
    if getattr(base, "top_logprobs", -1) != -1:
        from tokenshift_utils.pairs.compare_top_logprobs import score_pair as scored
    owners, blocks = [], []
    for owner, columns in scored(base, tuned, prompts, responses, sampling, top_k, batch_size):
        owners.append(owner)
        blocks.append(columns)
        if progress is not None:
            progress(len(owner))
    if not blocks:
        raise TokenshiftError("no response has a token; there is nothing to compare")
    owner = np.concatenate(owners)
    measured = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    by_row = np.lexsort((measured["position"], owner))
    owner = owner[by_row]
    columns = {name: values[by_row] for name, values in measured.items()}
    columns |= {"base": base.name, "tuned": tuned.name, "source": source}
    for name in ("benchmark", "problem", "sample"):
        columns[name] = trajectories[name].to_numpy()[owner]
    columns["n_tokens"] = np.array([len(r) for r in responses])[owner]
    starts = [answer_start(base.tokenizer, ids, verifier) for ids in responses]
    columns["answer_start"] = [starts[i] for i in owner]
    return records.table("shifts", columns)


# Records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """Mixed trajectories as a source of shifts: the arguments of ``get_cross_sampling``."""

    primary: str
    intervention: str
    rule: str = "js"
    threshold: float | None = 0.1
    rate: float | None = None


@dataclass(frozen=True)
class Shifts:
    """Shifts of one tuned model against the base on one benchmark's trajectories of a source."""

    tuned: str
    trajectories: Rollouts | CrossSampling
    samples: int
    sampling: Sampling
    kinds = ("shifts",)

    @property
    def source(self) -> str:
        """The source's name in the records."""
        made = self.trajectories
        return made.model if isinstance(made, Rollouts) else made.source

    def parts(self, study: Study) -> dict:
        return common_parts(study, self.trajectories.benchmark, [study.base, self.tuned]) | {
            "kind": "shifts",
            "tuned": self.tuned,
            "trajectories": self.trajectories.parts(study),
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "top_k": study.top_k,
            "batch": study.batch.score,
            "code": code_version(MODULES),
        }

    def weights(self, study: Study) -> list[int]:
        problems = shards_of(study, self.trajectories.benchmark, study.problems_per_shard)
        return [len(some) * self.samples for some in problems]

    def _sources(self, study: Study, shard: int) -> list[executor.Job]:
        # Shards of trajectories may hold more problems than ours.
        done = sum(self.weights(study)[:shard]) // self.samples
        here = self.weights(study)[shard] // self.samples
        jobs, first = [], 0
        for number, weight in enumerate(self.trajectories.weights(study)):
            last = first + weight // self.trajectories.samples
            if first < done + here and last > done:
                jobs.append(executor.Job(self.trajectories, number))
            first = last
        return jobs

    def needs(self, study: Study, shard: int) -> list[executor.Job]:
        return self._sources(study, shard)

    def policies(self, study: Study) -> Sequence[Policy]:
        """The two that are compared."""
        return study_policy(study, study.base), study_policy(study, self.tuned)

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        kind = self.trajectories.kinds[0]
        names = ["benchmark", "problem", "sample", "prompt_ids", "response_ids"]
        found = pa.concat_tables(
            [executor.read_shard(study, job, kind, names) for job in self._sources(study, shard)]
        ).to_pandas()
        benchmark = self.trajectories.benchmark
        problems = shards_of(study, benchmark, study.problems_per_shard)[shard]
        mine = found["problem"].isin({p.id for p in problems}) & (found["sample"] < self.samples)
        table = shift_table(
            *self.policies(study),
            self.source,
            found[mine].reset_index(drop=True),
            self.sampling,
            study.top_k,
            study.batch.score,
            verifier=study.verifier,
        )
        return {"shifts": table}


def shift_artefacts(
    study: Study,
    tuned: str,
    source: str | Mixed | None = None,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> list[Shifts]:
    """The artefacts behind ``get_shifts``, for ``prefetch``."""
    study.model(tuned)
    if samples is None:
        samples = study.samples.checkpoints if "@" in tuned else study.samples.shifts
    chosen = study_sampling(study, sampling)
    source = tuned if source is None else source
    names = benchmark_names(study, benchmarks)
    if isinstance(source, Mixed):
        number = max(samples, study.samples.cross_sampling)
        made = cross_sampling_artefacts(
            study, **vars(source), benchmarks=names, samples=number, sampling=sampling
        )
    else:
        made = rollout_artefacts(study, source, names, samples, sampling)
    return [Shifts(tuned, trajectories, samples, chosen) for trajectories in made]


def get_shifts(
    study: Study,
    tuned: str,
    source: str | Mixed | None = None,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    columns: Sequence[str] | None = None,
    sampling: Any = None,
) -> pd.DataFrame:
    """Shifts from the study's base to ``tuned``, computed where the store lacks them.

    Parameters
    ----------
    tuned : a model, or a checkpoint as ``dapo@12``
    source : whose trajectories: a model's name, or ``Mixed``; None for the tuned model's own
    samples : the first so many responses a problem; None for the study's
    columns : names to read; None for all (the lists of most probable tokens are large)
    sampling : what differs from the study's sampling, for the trajectories and the measures alike

    Returns
    -------
    DataFrame with the columns of ``records.describe("shifts")``, one row a position.
    """
    artefacts = shift_artefacts(study, tuned, source, benchmarks, samples, sampling)
    return computed_shifts(study, artefacts, columns)


def computed_shifts(
    study: Study, artefacts: Sequence[Shifts], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Some columns of shifts, or all of them, computed where the store lacks them."""
    executor.run(study, artefacts)
    tables = [executor.read(study, artefact, "shifts", columns) for artefact in artefacts]
    frame = pa.concat_tables(tables).to_pandas()
    if "answer_start" in frame:
        frame["answer_start"] = frame["answer_start"].astype("Int32")
    return frame


# Any pair of checkpoints ------------------------------------------------------------------------
