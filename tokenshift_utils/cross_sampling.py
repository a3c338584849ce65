"""Cross-sampling: one policy writes, another takes over where a rule fires.

At every position both policies look at the same prefix; the token comes from the intervention where
the rule fires and from the primary elsewhere (paper section 3). Both draw with the same noise, so
what the primary would have emitted there is well defined: where it differs from the intervention's
token, the position is *effectively replaced*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from tokenshift_utils import executor, measures, records
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.kv_cache import COMPACT_BELOW, fill_gaps
from tokenshift_utils.noise import uniform
from tokenshift_utils.nucleus import Nucleus, log_softmax32, truncate
from tokenshift_utils.policy import Policy, Sampling, stop_ids
from tokenshift_utils.rollouts import (
    MODULES as ROLLOUT_MODULES,
)
from tokenshift_utils.rollouts import (
    benchmark_names,
    common_parts,
    items,
    outcome,
    shards_of,
    study_policy,
    study_sampling,
    verdict,
)
from tokenshift_utils.store import code_version
from tokenshift_utils.study import Study

MODULES = (*ROLLOUT_MODULES, "cross_sampling")
RuleName = Literal["js", "js_full", "random", "always", "never"]


@dataclass(frozen=True)
class Rule:
    """Where the intervention takes over.

    ``js`` and ``js_full`` fire where the divergence of the nucleus or the full distributions is
    above ``threshold`` (nats): a negative one always fires, ``inf`` never. ``random`` fires with
    chance ``rate``, by noise of its own.
    """

    name: RuleName = "js"
    threshold: float | None = 0.1
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.name not in ("js", "js_full", "random", "always", "never"):
            raise TokenshiftError(
                f"unknown rule '{self.name}'; give js, js_full, random, always or never"
            )
        if self.name in ("js", "js_full"):
            if self.threshold is None or math.isnan(self.threshold):
                raise TokenshiftError(f"rule {self.name} needs a threshold in nats")
        elif self.threshold is not None:
            object.__setattr__(self, "threshold", None)
        if self.name == "random":
            if self.rate is None or not 0.0 <= self.rate <= 1.0:
                raise TokenshiftError(f"rule random needs a rate within [0, 1], not {self.rate}")
        elif self.rate is not None:
            object.__setattr__(self, "rate", None)

    @property
    def label(self) -> str:
        """The rule in a few characters, ``js>0.1``."""
        if self.threshold is not None:
            return f"{self.name}>{self.threshold:g}"
        return self.name if self.rate is None else f"{self.name}:{self.rate:g}"


@dataclass(frozen=True)
class MixedRun:
    """One mixed response: its tokens, why it ended, and its sums over switched positions."""

    ids: list[int]
    finish_reason: Literal["eos", "length"]
    n_switched: int
    n_effective: int
    sum_tv: float
    sum_independent: float


def nucleus_js(primary: Nucleus, intervention: Nucleus) -> Tensor:
    """JS divergence of two truncations ``[B]``, nats.

    Most nuclei of trained models are one token; where both are, JS is 0 or ln 2 without a look at
    the vocabulary.
    """
    if primary.edge is None or primary.top_p <= 0.5:  # (two tied tokens could each reach p)
        return measures.js(primary.log_probs(), intervention.log_probs())
    single = (primary.size == 1) & (intervention.size == 1)
    same = primary.ids[:, 0] == intervention.ids[:, 0]
    value = torch.where(same, 0.0, measures.LN2).to(primary.logp.dtype)
    rest = (~single).nonzero().squeeze(-1)
    if len(rest):
        value[rest] = measures.js(
            primary.select(rest).log_probs(), intervention.select(rest).log_probs()
        )
    return value


def fires(
    rule: Rule, primary: Nucleus, intervention: Nucleus, keys: Tensor, positions: Tensor
) -> Tensor:
    """Rows ``[B]`` at which the rule fires."""
    if rule.name == "js":
        return nucleus_js(primary, intervention) > rule.threshold
    if rule.name == "js_full":
        return measures.js(primary.logp, intervention.logp) > rule.threshold
    if rule.name == "random":
        return uniform(keys, positions) < rule.rate
    return torch.full_like(keys, rule.name == "always", dtype=torch.bool)


SWITCH_COLUMNS = (
    "js",
    "js_full",
    "entropy_primary",
    "entropy_intervention",
    "logp_primary_of_primary",
    "logp_primary_of_intervention",
    "logp_intervention_of_primary",
    "logp_intervention_of_intervention",
    "tv",
    "independent",
)


def _describe_switch(p: Nucleus, q: Nucleus, token_p: Tensor, token_q: Tensor) -> Tensor:
    """``SWITCH_COLUMNS`` of some rows, float64 ``[n, columns]``."""
    inside_p, inside_q = p.log_probs(), q.log_probs()

    def at(logp: Tensor, token: Tensor) -> Tensor:
        return logp.gather(-1, token[:, None]).squeeze(-1)

    values = [
        measures.js(inside_p, inside_q),
        measures.js(p.logp, q.logp),
        measures.entropy(p.logp),
        measures.entropy(q.logp),
        at(p.logp, token_p),
        at(p.logp, token_q),
        at(q.logp, token_p),
        at(q.logp, token_q),
        measures.total_variation(inside_p, inside_q),
        measures.independent_disagreement(inside_p, inside_q),
    ]
    return torch.stack(values, dim=-1).to(torch.float64)


@torch.inference_mode()
def cross_sample(
    primary: Policy,
    intervention: Policy,
    prompts: Sequence[Sequence[int]],
    row_keys: Sequence[int],
    rule: Rule,
    sampling: Sampling,
    batch_size: int,
) -> tuple[list[MixedRun], dict[str, Tensor]]:
    """Mixed responses to ``prompts``, and every switch in them.

    The two policies go in lockstep, each with its own cache, on batches of rows of like prompt
    length; what a row gets does not depend on its batch. Generation stops at either's stop ids.

    Returns
    -------
    runs : one a prompt, in the order given
    switches : columns ``row`` (index into ``prompts``), ``position``, ``token_primary``,
        ``token_intervention`` (int64) and ``SWITCH_COLUMNS`` (float64), by row and position
    """
    if primary.vocab_size != intervention.vocab_size:
        raise TokenshiftError(
            f"{primary.name} has {primary.vocab_size} tokens and {intervention.name} "
            f"{intervention.vocab_size}; cross-sampling needs one vocabulary"
        )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    runs: list[MixedRun | None] = [None] * len(prompts)
    stops = torch.tensor(stop_ids(primary, intervention), dtype=torch.long)
    parts = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        keys = torch.tensor([row_keys[i] for i in rows], dtype=torch.long)
        some = [prompts[i] for i in rows]
        made, switched = _cross_batch(primary, intervention, some, keys, rule, sampling, stops)
        for i, run in zip(rows, made):
            runs[i] = run
        switched["row"] = torch.tensor(rows)[switched["row"]]
        parts.append(switched)
    switches = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    by_row = torch.argsort(switches["row"] * sampling.max_new_tokens + switches["position"])
    return runs, {name: column[by_row] for name, column in switches.items()}


def _cross_batch(
    primary: Policy,
    intervention: Policy,
    prompts: list[Sequence[int]],
    keys: Tensor,
    rule: Rule,
    sampling: Sampling,
    stops: Tensor,
) -> tuple[list[MixedRun], dict[str, Tensor]]:
    sessions = primary.open(prompts), intervention.open(prompts)
    device, limit, total = sessions[0].logits.device, sampling.max_new_tokens, len(prompts)
    keys, stops = keys.to(device), stops.to(device)
    ids = torch.zeros(total, limit, dtype=torch.long, device=device)
    length = torch.full((total,), limit, device=device)
    row = torch.arange(total, device=device)  # which prompt each session row belongs to
    running = torch.ones(total, dtype=torch.bool, device=device)
    found: list[tuple[Tensor, ...]] = []
    for t in range(limit):
        position = torch.full_like(row, t)
        p, q = (
            truncate(log_softmax32(s.logits, sampling.temperature), sampling.top_p)
            for s in sessions
        )
        tokens = p.draw(keys, position)
        switch = (fires(rule, p, q, keys, position) & running).nonzero().squeeze(-1)
        if len(switch):
            q_there = q.select(switch)
            token_q, token_p = q_there.draw(keys[switch], position[switch]), tokens[switch]
            values = _describe_switch(p.select(switch), q_there, token_p, token_q)
            found.append((row[switch], position[switch], token_p, token_q, values))
            tokens[switch] = token_q
        ids[row, t] = tokens
        ended = running & torch.isin(tokens, stops)
        length[row[ended]] = t + 1
        running &= ~ended
        alive = int(running.sum())
        if alive == 0 or t + 1 == limit:
            break
        if alive <= COMPACT_BELOW * len(row):
            keep = fill_gaps(running)
            for session in sessions:
                session.keep(keep)
            row, keys, tokens, running = row[keep], keys[keep], tokens[keep], running[keep]
        for session in sessions:
            session.step(tokens)
    return _gather(found, ids.cpu(), length.tolist(), set(stops.tolist()))


def _gather(
    found: list[tuple[Tensor, ...]], ids: Tensor, length: list[int], stopped: set[int]
) -> tuple[list[MixedRun], dict[str, Tensor]]:
    """Runs and switch columns of one batch, from what its steps left."""
    whole = torch.empty(0, dtype=torch.long)
    empty = (whole, whole, whole, whole, torch.empty(0, len(SWITCH_COLUMNS), dtype=torch.float64))
    joined = [torch.cat(part).cpu() for part in zip(*found)] if found else list(empty)
    names = ("row", "position", "token_primary", "token_intervention")
    switches = dict(zip(names, joined))
    switches |= {name: joined[4][:, i] for i, name in enumerate(SWITCH_COLUMNS)}
    changed = switches["token_primary"] != switches["token_intervention"]

    def per_row(values: Tensor) -> list:
        sums = torch.zeros(len(length), dtype=torch.float64)
        return sums.index_add(0, switches["row"], values.to(torch.float64)).tolist()

    sums = (
        per_row(torch.ones_like(switches["row"])),
        per_row(changed),
        per_row(switches["tv"]),
        per_row(switches["independent"]),
    )
    runs = []
    for r, n in enumerate(length):
        own = ids[r, :n].tolist()
        reason = "eos" if own[-1] in stopped else "length"
        switched, effective, tv, independent = (s[r] for s in sums)
        runs.append(MixedRun(own, reason, int(switched), int(effective), tv, independent))
    return runs, switches


# Records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossSampling:
    """All mixed responses of two models to one benchmark under one rule."""

    primary: str
    intervention: str
    rule: Rule
    benchmark: str
    samples: int
    sampling: Sampling
    kinds = ("cross_sampling", "switches")

    @property
    def source(self) -> str:
        """The name of these trajectories in shifts."""
        return f"mixed:{self.primary}<-{self.intervention}:{self.rule.label}"

    def parts(self, study: Study) -> dict:
        models = [self.primary, self.intervention]
        return common_parts(study, self.benchmark, models) | {
            "kind": "cross_sampling",
            "primary": self.primary,
            "direction": self._direction(study),
            "rule": {k: repr(v) for k, v in vars(self.rule).items()},
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "batch": study.batch.cross_sampling,
            "code": code_version(MODULES),
        }

    def _direction(self, study: Study) -> str:
        return "forward" if self.primary == study.base else "reverse"

    def _shards(self, study: Study) -> list:
        # A shard fills a batch, as far as the benchmark goes: lockstep pays for every step twice.
        full = study.batch.cross_sampling // self.samples
        return shards_of(study, self.benchmark, max(study.problems_per_shard, full))

    def weights(self, study: Study) -> list[int]:
        return [len(problems) * self.samples for problems in self._shards(study)]

    def needs(self, study: Study, shard: int) -> list[executor.Job]:
        return []

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
        )
        shared = {
            "primary": self.primary,
            "intervention": self.intervention,
            "rule": self.rule.name,
            "threshold": self.rule.threshold,
            "rate": self.rule.rate,
            "direction": self._direction(study),
            "benchmark": self.benchmark,
        }
        ids, reasons = [run.ids for run in runs], [run.finish_reason for run in runs]
        columns = {"study": study.name, **shared, **outcome(made, ids, reasons)}
        columns |= verdict(primary, ids, reasons, made)
        for name in ("n_switched", "n_effective", "sum_tv", "sum_independent"):
            columns[name] = [getattr(run, name) for run in runs]
        rows = switches.pop("row").tolist()
        del switches["independent"]
        spots = shared | {name: column.numpy() for name, column in switches.items()}
        spots["problem"] = [made[r].problem.id for r in rows]
        spots["sample"] = [made[r].sample for r in rows]
        spots["effective"] = spots["token_primary"] != spots["token_intervention"]
        return {
            "cross_sampling": records.table("cross_sampling", columns),
            "switches": records.table("switches", spots),
        }


def cross_sampling_artefacts(
    study: Study,
    primary: str,
    intervention: str,
    rule: str = "js",
    threshold: float | None = 0.1,
    rate: float | None = None,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> list[CrossSampling]:
    """The artefacts behind ``get_cross_sampling``, for ``prefetch``."""
    for model in (primary, intervention):
        study.model(model)
    if rule == "js" and study.divergence_support == "full":
        rule = "js_full"
    if sampling is None and study.cross_sampling.top_p is not None:
        sampling = {"top_p": study.cross_sampling.top_p}
    number = study.samples.cross_sampling if samples is None else samples
    made = Rule(rule, None if threshold is None else float(threshold), rate)
    return [
        CrossSampling(primary, intervention, made, b, number, study_sampling(study, sampling))
        for b in benchmark_names(study, benchmarks)
    ]


def get_cross_sampling(
    study: Study,
    primary: str,
    intervention: str,
    rule: str = "js",
    threshold: float | None = 0.1,
    rate: float | None = None,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mixed responses and the switches in them, computed where the store lacks them.

    Parameters
    ----------
    rule : ``js`` (on the support that the study names), ``js_full``, ``random``, ``always``,
        ``never``
    threshold : nats, for js rules; negative: always, ``inf``: never
    rate : chance of a switch at each position, for rule ``random``
    samples : mixed responses a problem; None for the study's
    sampling : what differs from the study's sampling; None for its ``cross_sampling.top_p``

    Returns
    -------
    runs, switches : DataFrames with the columns of ``records.describe("cross_sampling")`` and
        ``records.describe("switches")``
    """
    artefacts = cross_sampling_artefacts(
        study, primary, intervention, rule, threshold, rate, benchmarks, samples, sampling
    )
    executor.run(study, artefacts)
    runs, switches = (
        pa.concat_tables([executor.read(study, a, kind) for a in artefacts]).to_pandas()
        for kind in CrossSampling.kinds
    )
    return runs, switches
