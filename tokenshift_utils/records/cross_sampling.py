"""Cross-sampling runs of a study: mixed responses, judged, and the switches in them.

One policy writes and another takes over where a rule fires (``pairs.walks``). Both draw with the same
noise, so what the primary would have emitted at a switched position is well defined: where it
differs from the token that stands there, the position is *effectively replaced*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.mixer import INTERVENTION_TOKEN, Insertion
from tokenshift_utils.pairs.rules import PAPER_RULE, Rule
from tokenshift_utils.pairs.walks import Walk
from tokenshift_utils.records.mixture_trees import OWN_STREAM, MixtureTrees
from tokenshift_utils.records.requests import (
    Request,
    benchmark_names,
    common_parts,
    items,
    outcome,
    study_policy,
    study_sampling,
    verdict,
)
from tokenshift_utils.store import columns as records
from tokenshift_utils.study.study import Study

# Records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossSampling(Request):
    """All mixed responses of two models to one benchmark under one rule.

    Read off the pair's mixture trees, but where the rule compares what trees do not hold; then they
    are records of their own.
    """

    primary: str
    intervention: str
    rule: Rule
    insertion: Insertion
    benchmark: str
    samples: int
    sampling: Sampling
    kinds = ("cross_sampling", "switches")

    @classmethod
    def of(
        cls,
        study: Study,
        primary: str,
        intervention: str,
        rule: Rule = PAPER_RULE,
        insertion: Insertion = INTERVENTION_TOKEN,
        benchmarks: str | Sequence[str] | None = None,
        samples: int | None = None,
        sampling: Any = None,
    ) -> list[CrossSampling]:
        """Requests for mixed responses, and for the switches in them, one a benchmark.

        Parameters
        ----------
        rule : where to switch; ``js`` is on the support that the study names
        insertion : what stands at switched positions
        samples : mixed responses a problem; None for the study's
        sampling : what differs from the study's; None for its ``cross_sampling.top_p``

        Examples
        --------
        >>> mixed = CrossSampling.of(study, "base", "dapo", Rule("js", 0.1))  # doctest: +SKIP
        >>> fetch(study, mixed), fetch(study, mixed, "switches")  # doctest: +SKIP
        """
        for model in (primary, intervention):
            study.model(model)
        if rule.name == "js" and study.divergence_support == "full":
            rule = replace(rule, name="js_full")
        own = study.cross_sampling.top_p
        if sampling is None and own is not None:
            sampling = {"top_p": own}
        number = study.samples.cross_sampling if samples is None else samples
        chosen = study_sampling(study, sampling)
        return [
            cls(primary, intervention, rule, insertion, name, number, chosen)
            for name in benchmark_names(study, benchmarks)
        ]

    @property
    def source(self) -> str:
        """The name of these trajectories in shifts."""
        name = f"mixed:{self.primary}<-{self.intervention}:{self.rule.label}"
        return f"{name},{self.insertion.label}" if self.insertion.label else name

    def parts(self, study: Study) -> dict:
        models = [self.primary, self.intervention]
        return common_parts(study, self.benchmark, models, __name__) | {
            "kind": "cross_sampling",
            "primary": self.primary,
            "direction": self._direction(study),
            "rule": {k: repr(v) for k, v in vars(self.rule).items()},
            "insertion": {k: repr(v) for k, v in vars(self.insertion).items()},
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "batch": study.batch.cross_sampling,
        }

    def _direction(self, study: Study) -> str:
        return "forward" if self.primary == study.base else "reverse"

    def _walk(self, study: Study) -> Walk:
        return Walk(self.rule, self.primary == study.base, self.insertion)

    def underlying(self, study: Study) -> MixtureTrees | None:
        """The trees that hold it, grown for it; None where it has files of its own."""
        if self.rule.kind.columns is None:
            return None
        base, tuned = self.primary, self.intervention
        if self.primary != study.base:
            base, tuned = tuned, base
        samples = max(self.samples, study.samples.cross_sampling)
        asked = ((self._walk(study), self.samples),)
        return MixtureTrees(base, tuned, self.benchmark, samples, self.sampling, asked)

    def view(self, study: Study, key: str, shard: int, kind: str) -> pa.Table:
        """A shard of it, read off the trees."""
        trees, walk = self.underlying(study), self._walk(study)
        found = trees.runs(study, key, shard, walk, self.samples)
        if kind == "cross_sampling":
            some = [c.name for c in records.describe(kind) if c.name in found]
            return records.table(kind, self._key(study) | {name: found[name] for name in some})
        switches = trees.switches(study, key, shard, walk, self.samples)
        rows = switches["row"].tolist()
        problems, samples = found["problem"].to_pylist(), found["sample"].to_pylist()
        made = [problems[row] for row in rows], [samples[row] for row in rows]
        return records.table("switches", self._key(study) | _switch_columns(switches, *made))

    def _key(self, study: Study) -> dict:
        """The columns that all its rows share."""
        return {
            "primary": self.primary,
            "intervention": self.intervention,
            "rule": self.rule.name,
            "threshold": self.rule.threshold,
            "rate": self.rule.rate,
            "budget": self.rule.budget,
            "insert": self.insertion.name,
            "gain": self.insertion.gain,
            "direction": self._direction(study),
            "benchmark": self.benchmark,
        }

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        primary = study_policy(study, self.primary)
        intervention = study_policy(study, self.intervention)
        problems = self._shards(study)[shard]
        made = items(study, primary, self.benchmark, problems, self.samples)
        runs, switches = cross_sample(
            primary,
            intervention,
            [item.prompt_ids for item in made],
            [item.key for item in made],
            self.rule,
            self.sampling,
            study.batch.cross_sampling,
            insertion=self.insertion,
            null_keys=[
                row_key(study.seed, self.benchmark, item.problem.id, item.sample, OWN_STREAM)
                for item in made
            ],
        )
        shared = self._key(study)
        ids, reasons = [run.ids for run in runs], [run.finish_reason for run in runs]
        columns = {"study": study.name, **shared, **outcome(made, ids, reasons)}
        columns |= verdict(primary, ids, reasons, made)
        for name in ("n_switched", "n_effective", "sum_tv", "sum_independent"):
            columns[name] = [getattr(run, name) for run in runs]
        owners = [made[row] for row in switches["row"].tolist()]
        spots = _switch_columns(
            {name: column.numpy() for name, column in switches.items()},
            [item.problem.id for item in owners],
            [item.sample for item in owners],
        )
        return {
            "cross_sampling": records.table("cross_sampling", columns),
            "switches": records.table("switches", shared | spots),
        }


def _switch_columns(switches: dict[str, np.ndarray], problems: list, samples: list) -> dict:
    """The columns of ``switches`` that rows do not share."""
    columns = {n: v for n, v in switches.items() if n not in ("row", "independent")}
    effective = columns["token_primary"] != columns["token_intervention"]
    return columns | {"problem": problems, "sample": samples, "effective": effective}
