"""Shifts: how two models' next-token distributions differ at every position of given responses.

One row a position. Both models read the same token ids (the prompt's and the response's, never
decoded and encoded again) by teacher forcing; the row at position t compares the distributions that
emit token t. Whose responses they are is the ``source``: the tuned model's own, as in the paper,
another model's, or mixed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.policy import Policy, Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.pairs.rules import PAPER_RULE, Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.requests import (
    RESPONSE_KEY,
    Request,
    common_parts,
    study_policy,
    study_sampling,
)
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.store import columns as records
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import Study
from tokenshift_utils.tasks.verifier import answer_opening


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
    owners, blocks = [], []
    for owner, columns in score_pair(base, tuned, prompts, responses, sampling, top_k, batch_size):
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
    for name in RESPONSE_KEY:
        columns[name] = trajectories[name].to_numpy()[owner]
    columns["n_tokens"] = np.array([len(r) for r in responses])[owner]
    starts = [answer_start(base.tokenizer, ids, verifier) for ids in responses]
    columns["answer_start"] = [starts[i] for i in owner]
    return records.table("shifts", columns)


# Records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """Mixed trajectories as a source of shifts, see ``CrossSampling.of``."""

    primary: str
    intervention: str
    rule: Rule = PAPER_RULE


@dataclass(frozen=True)
class Shifts(Request):
    """Shifts of one tuned model against the base on one benchmark's trajectories of a source."""

    tuned: str
    trajectories: Rollouts | CrossSampling
    samples: int
    sampling: Sampling
    first: int | None = field(default=None, compare=False)
    kinds = ("shifts",)

    @classmethod
    def of(
        cls,
        study: Study,
        tuned: str,
        source: str | Mixed | None = None,
        benchmarks: str | Sequence[str] | None = None,
        samples: int | None = None,
        sampling: Any = None,
    ) -> list[Self]:
        """Requests for shifts from the study's base to ``tuned``, one a benchmark.

        Parameters
        ----------
        tuned : a model, or a checkpoint as ``dapo@12``
        source : whose trajectories: a model's name, or ``Mixed``; None for the tuned model's own
        samples : the first so many responses a problem; None for the study's
        sampling : what differs from the study's, for the trajectories and the measures alike

        Examples
        --------
        >>> fetch(study, Shifts.of(study, "dapo"), columns=["token", "js"])  # doctest: +SKIP
        """
        study.model(tuned)
        if samples is None:
            samples = study.samples.checkpoints if "@" in tuned else study.samples.shifts
        chosen = study_sampling(study, sampling)
        source = tuned if source is None else source
        if isinstance(source, Mixed):
            number = max(samples, study.samples.cross_sampling)
            made = CrossSampling.of(
                study, **vars(source), benchmarks=benchmarks, samples=number, sampling=sampling
            )
        else:
            made = Rollouts.of(study, source, benchmarks, samples, sampling)
        return [cls(tuned, trajectories, samples, chosen) for trajectories in made]

    @property
    def benchmark(self) -> str:
        """The benchmark of the trajectories."""
        return self.trajectories.benchmark

    @property
    def source(self) -> str:
        """The source's name in the records."""
        made = self.trajectories
        return made.model if isinstance(made, Rollouts) else made.source

    def parts(self, study: Study) -> dict:
        models = [study.base, self.tuned]
        return common_parts(study, self.benchmark, models, __name__) | {
            "kind": "shifts",
            "tuned": self.tuned,
            "trajectories": self.trajectories.parts(study),
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "top_k": study.top_k,
            "batch": study.batch.score,
        }

    def _sources(self, study: Study, shard: int) -> list[executor.Job]:
        # Shards of trajectories may hold more problems than ours.
        sizes = [len(problems) for problems in self._shards(study)]
        done, here = sum(sizes[:shard]), sizes[shard]
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
        names = [*RESPONSE_KEY, "prompt_ids", "response_ids"]
        found = pa.concat_tables(
            [executor.read_shard(study, job, kind, names) for job in self._sources(study, shard)]
        ).to_pandas()
        problems = [problem.id for problem in self._shards(study)[shard]]
        mine = found["problem"].isin(problems) & (found["sample"] < self.samples)
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
