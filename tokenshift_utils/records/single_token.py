"""The causal effect of a single token: what a response's success owes to one choice.

At a position of the primary's own response two tokens are tried: the one that the primary emitted
there, and the one that the intervention would have emitted with the same noise. The primary goes on
from both, on the same fresh noise streams, so that only the token differs. The effect is the success
rate after the intervention's token minus that after the primary's; where both models emit the same
token it is 0, and nothing is continued.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.divergences import LN2, rank_of, top_k
from tokenshift_utils.measures.noise import row_key, uniform
from tokenshift_utils.measures.nucleus import log_softmax32, truncate
from tokenshift_utils.models.policy import Policy, Sampling, stop_ids
from tokenshift_utils.records.requests import (
    RESPONSE_KEY,
    Item,
    Request,
    common_parts,
    study_policy,
    study_sampling,
    verdict,
)
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.store import columns as records
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import Study
from tokenshift_utils.tasks import benchmarks as files

FRESH = 2  # first stream of the continuations' noise: 0 is the response's, 1 the null control's
CHOICE = -1  # stream that decides which positions are taken
POSITIONS_PER_SHARD = 25  # positions computed together; most have equal tokens and cost nothing
DIVERGENCES = ["js", "js_full", "kl_base_tuned", "kl_tuned_base", "tv"]
MEASURED = [*DIVERGENCES, "entropy_base", "entropy_tuned"]


# Which positions --------------------------------------------------------------------------------


def strata_of(js: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Stratum of each JS [n]: the last whose lower edge (nats) is not above it; -1 below all."""
    return np.searchsorted(np.asarray(edges, dtype=float), js, side="right") - 1


def shares(sizes: Sequence[int], number: int) -> list[int]:
    """How many of ``number`` positions each stratum of the given sizes gives, as evenly as can be.

    A stratum that is too small gives all it has; what does not go up evenly goes to the upper ones.
    """
    given = [0] * len(sizes)
    for _ in range(min(number, sum(sizes))):
        unspent = [i for i, size in enumerate(sizes) if given[i] < size]
        given[min(unspent, key=lambda i: (given[i], -i))] += 1
    return given


def choose(
    pool: pd.DataFrame, js: np.ndarray, edges: Sequence[float], number: int, seed: int
) -> pd.DataFrame:
    """``number`` positions of a pool, evenly over strata of JS.

    Within a stratum every position has the same chance, and problems give positions in proportion
    to how many they have there: a systematic sample of the positions by problem, in which hashed
    noise decides where it starts and which positions of a problem come first.

    Parameters
    ----------
    pool : columns benchmark, problem, sample and position
    js : JS of its rows, nats
    edges : lower edges of the strata, rising

    Returns
    -------
    DataFrame of the rows chosen, stratum by stratum, with ``stratum`` (index into ``edges``) and
    ``stratum_positions`` (rows of the pool that lie in it)
    """
    owners = list(zip(*(pool[name] for name in RESPONSE_KEY)))
    keys = {owner: row_key(seed, *owner, stream=CHOICE) for owner in set(owners)}
    uniforms = uniform(
        torch.tensor([keys[owner] for owner in owners], dtype=torch.long),
        torch.tensor(pool["position"].to_numpy(), dtype=torch.long),
    )
    pool = pool.assign(stratum=strata_of(js, edges), noise=uniforms.numpy())
    pool = pool.sort_values(["benchmark", "problem", "noise"], kind="stable")
    parts = [pool[pool["stratum"] == stratum] for stratum in range(len(edges))]
    sizes = [len(part) for part in parts]
    starts = uniform(
        torch.tensor([row_key(seed, "", "", 0, stream=CHOICE)] * len(edges), dtype=torch.long),
        torch.arange(len(edges)),
    ).numpy()
    chosen = []
    for part, size, own, start in zip(parts, sizes, shares(sizes, number), starts):
        rows = ((np.arange(own) + start) * (size / max(own, 1))).astype(int)
        chosen.append(part.iloc[rows].assign(stratum_positions=size))
    return pd.concat(chosen).drop(columns="noise").reset_index(drop=True)


# What follows -----------------------------------------------------------------------------------


Response = tuple[list[int], str]  # its ids, and why it ended


@dataclass(frozen=True)
class Fork:
    """A prefix and the two tokens that are tried after it."""

    item: Item  # the response's problem, prompt and own noise
    written: tuple[int, ...]  # the response before the position
    tokens: tuple[int, int]  # the primary's and the intervention's


def next_logits(policy: Policy, texts: Sequence[Sequence[int]]) -> Tensor:
    """Logits of the token after each text, ``[n, V]``."""
    session = policy.open(len(texts))
    rows = torch.arange(len(texts), device=session.device)
    session.enter(rows, [text[:-1] for text in texts])
    return session.read(torch.tensor([text[-1:] for text in texts], device=session.device))[:, 0]


@torch.inference_mode()
def compare_tokens(
    primary: Policy,
    intervention: Policy,
    items: Sequence[Item],
    written: Sequence[tuple[int, ...]],
    tokens: Sequence[int],
    sampling: Sampling,
    batch_size: int,
) -> dict[str, list]:
    """What the intervention emits after each prefix with the response's own noise.

    ``tokens`` are those that the primary emitted there. Returns columns of the record:
    ``token_intervention``, its rank under the primary, the log-probabilities of both tokens under
    both models, and each model's margin of its top token, all of the full distributions.
    """
    both = {"primary": primary, "intervention": intervention}
    found: dict[str, list] = defaultdict(list)
    for start in range(0, len(items), batch_size):
        rows = slice(start, start + batch_size)
        prefixes = [[*item.prompt_ids, *ids] for item, ids in zip(items[rows], written[rows])]
        logp = {
            name: log_softmax32(next_logits(policy, prefixes), sampling.temperature)
            for name, policy in both.items()
        }
        put = partial(torch.tensor, dtype=torch.long, device=logp["primary"].device)
        keys, positions = put([i.key for i in items[rows]]), put([len(w) for w in written[rows]])
        token = {
            "primary": put(list(tokens[rows])),
            "intervention": truncate(logp["intervention"], sampling.top_p).draw(keys, positions),
        }
        found["token_intervention"] += token["intervention"].tolist()
        rank = rank_of(logp["primary"], token["intervention"])
        found["rank_primary_of_intervention"] += rank.tolist()
        for under, values in logp.items():
            _, best = top_k(values, 2)
            found[f"margin_{under}"] += (best[:, 0] - best[:, 1]).tolist()
            for of, ids in token.items():
                column = values.gather(-1, ids[:, None]).squeeze(-1)
                found[f"logp_{under}_of_{of}"] += column.tolist()
    return found


def continue_forks(
    primary: Policy,
    forks: Sequence[Fork],
    streams: Sequence[Sequence[int]],
    sampling: Sampling,
    stops: Sequence[int],
    batch_size: int,
) -> list[list[list[Response]]]:
    """Whole responses after both tokens of each fork, with the finish reason of each.

    ``streams`` has a fork's row keys: the continuations after its two tokens share them. A token
    that ends the response, or stands at the limit, leaves nothing to continue. Indices of the
    result: fork, token (0 the primary's, 1 the intervention's), stream.
    """
    responses: list[list[list[Response]]] = [[[], []] for _ in forks]
    prompts, keys, first, owners = [], [], [], []
    for fork, own, both in zip(forks, streams, responses, strict=True):
        for token, mine in zip(fork.tokens, both):
            head, ended = [*fork.written, token], token in stops
            if ended or len(head) >= sampling.max_new_tokens:
                mine += [(head, "eos" if ended else "length")] * len(own)
                continue
            prompts += [[*fork.item.prompt_ids, *head]] * len(own)  # side by side: read once
            keys += own
            first += [len(head)] * len(own)
            owners += [(mine, head)] * len(own)
    if prompts:
        drawn = primary.sample(prompts, keys, sampling, stops, batch_size, first)
        for (mine, head), rest in zip(owners, drawn, strict=True):
            mine.append(([*head, *rest.ids], rest.finish_reason))
    return responses


def successes(
    primary: Policy, forks: Sequence[Fork], responses: list[list[list[Response]]]
) -> list[tuple[int, int, int]]:
    """How many responses are correct after each fork's first token, its second, and both."""
    flat = [(*r, fork.item) for fork, both in zip(forks, responses) for rows in both for r in rows]
    correct = iter(verdict(primary, *map(list, zip(*flat)))["correct"] if flat else ())
    counts = []
    for both in responses:
        first, second = ([next(correct) for _ in rows] for rows in both)
        counts.append((sum(first), sum(second), sum(a and b for a, b in zip(first, second))))
    return counts


# Records ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SingleToken(Request):
    """Effects of single tokens of one pair on one benchmark, at positions of the primary's own."""

    primary: str
    intervention: str
    benchmark: str
    scored: Shifts  # of the primary's own responses
    samples: int
    positions: int
    continuations: int
    strata: tuple[float, ...]
    support: str
    sampling: Sampling
    kinds = ("single_token",)
    order = ("stratum", "problem", "sample", "position")

    @classmethod
    def of(
        cls, study: Study, primary: str, intervention: str, benchmark: str | None = None
    ) -> list[SingleToken]:
        """Requests for causal effects of single tokens.

        One of the two models is the study's base. Numbers of positions and continuations and the
        strata of JS are those of the study's ``cross_sampling.single_token``; with fewer positions
        in the pool than are wanted, all of them are taken. Within a stratum every position of the
        pool has the same chance to be taken.

        Parameters
        ----------
        benchmark : None for the study's ``cross_sampling.benchmark``

        Raises
        ------
        TokenshiftError
            Where neither model is the base, or the study asks for no effects.
        """
        for model in (primary, intervention):
            study.model(model)
        if primary == intervention or study.base not in (primary, intervention):
            raise TokenshiftError(
                f"single-token effects are between {study.base} and another model, not between "
                f"{primary} and {intervention}: give {study.base} as one of the two"
            )
        settings = study.cross_sampling.single_token
        if settings is None:
            raise TokenshiftError(
                f"study {study.name} has no 'cross_sampling.single_token': say there how many "
                "positions and continuations to take"
            )
        own = study.cross_sampling.top_p
        sampling = study_sampling(study, None if own is None else {"top_p": own})
        tuned = intervention if primary == study.base else primary
        name = study.cross_benchmark if benchmark is None else benchmark
        # As many samples as other shifts have, where that is enough: they may be there already.
        samples = max(study.samples.shifts, settings.samples)
        (scored,) = Shifts.of(study, tuned, primary, name, samples, sampling)
        numbers = settings.samples, settings.positions, settings.continuations
        strata, support = tuple(settings.strata), study.divergence_support
        return [cls(primary, intervention, name, scored, *numbers, strata, support, sampling)]

    def parts(self, study: Study) -> dict:
        models = [self.primary, self.intervention]
        return common_parts(study, self.benchmark, models, __name__) | {
            "kind": "single_token",
            "primary": self.primary,
            "scored": self.scored.parts(study),
            "samples": self.samples,
            "positions": self.positions,
            "continuations": self.continuations,
            "strata": list(self.strata),
            "support": self.support,
            "sampling": vars(self.sampling),
            "batch": study.batch.rollout,
        }

    def _sizes(self) -> list[int]:
        # Positions of each shard where the pool has as many as are wanted. Dealt out one by one,
        # so that strata, of which the upper ones cost most, are spread over the shards.
        shards = math.ceil(self.positions / POSITIONS_PER_SHARD)
        return [len(range(shard, self.positions, shards)) for shard in range(shards)]

    def weights(self, study: Study) -> list[int]:
        return [2 * self.continuations * size for size in self._sizes()]

    def needs(self, study: Study, shard: int) -> list[executor.Job]:
        return executor.jobs_of(study, [self.scored.trajectories, self.scored])

    def _chosen(self, study: Study) -> pd.DataFrame:
        """All positions chosen, with what was measured at them."""
        columns = [*RESPONSE_KEY, "position", "n_tokens", "token", *MEASURED]
        pool = executor.read(study, self.scored, "shifts", columns).to_pandas()
        pool = pool[pool["sample"] < self.samples]
        js = pool["js" if self.support == "nucleus" else "js_full"].to_numpy()
        return choose(pool, js, self.strata, self.positions, study.seed)

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        chosen = self._chosen(study).iloc[shard :: len(self._sizes())]
        own = executor.read(
            study,
            self.scored.trajectories,
            "rollouts",
            [*RESPONSE_KEY, "prompt_ids", "response_ids"],
        ).to_pandas()
        own = own[own["sample"] < self.samples].set_index(["problem", "sample"])
        problems = {p.id: p for p in files.load_benchmark(study, self.benchmark)}
        items, written, streams = [], [], []
        for at in chosen.itertuples():
            response = own.loc[(at.problem, at.sample)]
            keys = [
                row_key(study.seed, self.benchmark, at.problem, at.sample, stream)
                for stream in (0, *range(FRESH, FRESH + self.continuations))
            ]
            prompt = tuple(response["prompt_ids"].tolist())
            items.append(Item(problems[at.problem], at.sample, prompt, keys[0]))
            written.append(tuple(response["response_ids"][: at.position].tolist()))
            streams.append(keys[1:])
        policies = study_policy(study, self.primary), study_policy(study, self.intervention)
        tokens = chosen["token"].tolist()
        seen = compare_tokens(*policies, items, written, tokens, self.sampling, study.batch.score)
        other = seen["token_intervention"]
        effective = [i for i, token in enumerate(tokens) if token != other[i]]
        forks = [Fork(items[i], written[i], (tokens[i], other[i])) for i in effective]
        own_streams, stops = [streams[i] for i in effective], stop_ids(*policies)
        responses = continue_forks(
            policies[0], forks, own_streams, self.sampling, stops, study.batch.rollout
        )
        counts = dict(zip(effective, successes(policies[0], forks, responses)))
        return {"single_token": self._table(study, chosen, seen, counts)}

    def _table(
        self,
        study: Study,
        chosen: pd.DataFrame,
        seen: dict[str, list],
        counts: dict[int, tuple[int, int, int]],
    ) -> pa.Table:
        forward = self.primary == study.base
        names = ("base", "tuned") if forward else ("tuned", "base")
        stratum = chosen["stratum"].to_numpy()
        rows = range(len(chosen))
        taken = [*RESPONSE_KEY, "position", "n_tokens", *DIVERGENCES, "stratum_positions"]
        return records.table(
            "single_token",
            {name: chosen[name].to_numpy() for name in taken}
            | seen
            | {
                "study": study.name,
                "primary": self.primary,
                "intervention": self.intervention,
                "direction": "forward" if forward else "reverse",
                "stratum": stratum,
                "stratum_low": np.array(self.strata)[stratum],
                "stratum_high": np.array([*self.strata[1:], LN2])[stratum],
                "entropy_primary": chosen[f"entropy_{names[0]}"].to_numpy(),
                "entropy_intervention": chosen[f"entropy_{names[1]}"].to_numpy(),
                "token_primary": chosen["token"].to_numpy(),
                "effective": [i in counts for i in rows],
                "continuations": [self.continuations if i in counts else 0 for i in rows],
                **{
                    f"successes_{of}": [counts[i][k] if i in counts else None for i in rows]
                    for k, of in enumerate(("primary", "intervention", "both"))
                },
                "effect": [
                    (counts[i][1] - counts[i][0]) / self.continuations if i in counts else 0.0
                    for i in rows
                ],
            },
        )
