"""The measures at a position: one row a column of the ``shifts`` records.

To add one, write its function and a row of ``MEASURES``; the records, their data dictionary and the
samples follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import Nucleus, on_supports, truncate


@dataclass(eq=False)
class Compared:
    """Base's and tuned's distributions at n positions, and what several measures share of them."""

    base: Tensor  # full log-probabilities [n, V] at the sampling temperature
    tuned: Tensor
    tokens: Tensor  # that stand there, int64 [n]
    top_p: float  # nucleus mass
    k: int  # length of the lists of most probable tokens

    @cached_property
    def full(self) -> divergences.PairMeasures:
        """JS, KL both ways, entropies and total variation distance of the full distributions."""
        return divergences.pair_measures(self.base, self.tuned)

    @cached_property
    def nuclei(self) -> tuple[Nucleus, Nucleus]:
        """Base's and tuned's nucleus."""
        return truncate(self.base, self.top_p), truncate(self.tuned, self.top_p)

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """(JS, total variation distance) of the distributions sampled from, ``[n]`` each."""
        js, tv = self.full.js.clone(), self.full.tv.clone()
        if self.top_p < 1.0:
            for rows, *inside in on_supports(*self.nuclei):
                js[rows] = divergences.js(*inside)
                tv[rows] = divergences.total_variation(*inside)
        return js, tv

    @cached_property
    def tops(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(ids, log-probs) ``[n, k]`` of base's and of tuned's most probable tokens."""
        return divergences.top_k(self.base, self.k), divergences.top_k(self.tuned, self.k)

    @property
    def tuned_top1(self) -> Tensor:
        """Tuned's most probable token, int64 ``[n]``."""
        return self.tops[1][0][:, 0]


def _logp(logp: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities ``[n]`` of the tokens ``ids`` [n]."""
    return logp.gather(-1, ids[:, None]).squeeze(-1)


def _rank(logp: Tensor, ranked: Tensor, ids: Tensor) -> Tensor:
    """``divergences.rank_of``, read off the most probable tokens ``ranked`` [n, k] where these hold
    it: a look at the whole vocabulary is needed for the others only."""
    same = ranked == ids[:, None]
    rank = 1 + same.int().argmax(-1)
    beyond = (~same.any(-1)).nonzero().squeeze(-1)
    if len(beyond):
        rank[beyond] = divergences.rank_of(logp[beyond], ids[beyond])
    return rank


class Measure(NamedTuple):
    """A measure at a position.

    Attributes
    ----------
    name : of the column
    type : "real", "count", "reals" or "ids": a number a position, or a list of them
    of : what computes it, ``[n]`` or ``[n, k]``
    doc : what it is, with its unit, for the data dictionary
    from_lists : where an engine gives the most probable tokens only: the name in
        ``Aligned.full_measures`` of what is known then; "exact" where the lists suffice; "" where
        nothing is known, so that it is NaN there
    """

    name: str
    type: Literal["real", "count", "reals", "ids"]
    of: Callable[[Compared], Tensor]
    doc: str
    from_lists: str = ""


MEASURES = (
    Measure("js", "real", lambda at: at.sampled[0],
            "JS divergence of the nucleus distributions, nats, the paper's measure", "exact"),
    Measure("js_full", "real", lambda at: at.full.js,
            "JS divergence of the full distributions, nats", "js"),
    Measure("kl_base_tuned", "real", lambda at: at.full.kl_pq,
            "KL(base || tuned), full, nats; may be inf", "kl_pq"),
    Measure("kl_tuned_base", "real", lambda at: at.full.kl_qp,
            "KL(tuned || base), full, nats; may be inf", "kl_qp"),
    Measure("entropy_base", "real", lambda at: at.full.entropy_p,
            "Entropy of the base model's full distribution, nats", "entropy_p"),
    Measure("entropy_tuned", "real", lambda at: at.full.entropy_q,
            "Entropy of the tuned model's full distribution, nats", "entropy_q"),
    Measure("logp_base", "real", lambda at: _logp(at.base, at.tokens),
            "Log-probability of the token under base, full", "exact"),
    Measure("logp_tuned", "real", lambda at: _logp(at.tuned, at.tokens),
            "Log-probability of the token under tuned, full", "exact"),
    Measure("tv", "real", lambda at: at.sampled[1],
            "Total variation distance of the nucleus distributions", "exact"),
    Measure("tv_full", "real", lambda at: at.full.tv,
            "Total variation distance of the full distributions", "tv"),
    Measure("nucleus_base", "count", lambda at: at.nuclei[0].size,
            "Tokens in base's nucleus", "exact"),
    Measure("nucleus_tuned", "count", lambda at: at.nuclei[1].size,
            "Tokens in tuned's nucleus", "exact"),
    Measure("rank_base_of_tuned_top1", "count",
            lambda at: _rank(at.base, at.tops[0][0], at.tuned_top1),
            "Rank under base of tuned's most probable token; 1 is the top, ties by lower id",
            "exact"),
    Measure("logp_base_of_tuned_top1", "real", lambda at: _logp(at.base, at.tuned_top1),
            "Log-probability of that token under base, full", "exact"),
    Measure("top_ids_base", "ids", lambda at: at.tops[0][0],
            "Base's most probable tokens, descending, ties by lower id", "exact"),
    Measure("top_logp_base", "reals", lambda at: at.tops[0][1],
            "Their log-probabilities, full", "exact"),
    Measure("top_ids_tuned", "ids", lambda at: at.tops[1][0],
            "Tuned's most probable tokens, descending, ties by lower id", "exact"),
    Measure("top_logp_tuned", "reals", lambda at: at.tops[1][1],
            "Their log-probabilities, full", "exact"),
    Measure("gain_in_base_topk", "reals",
            lambda at: divergences.mass_gained(at.base, at.tuned, at.tops[0][0]),
            "Entry k-1: probability gained from base to tuned by tokens"
            " within base's top k, full; tv_full less this came from outside", "exact"),
)  # fmt: skip


def measure(at: Compared) -> dict[str, Tensor]:
    """Every measure at n positions by name, ``[n]`` or ``[n, min(k, V)]``, and the token there.

    Nothing of the distributions is unknown: ``unknown_mass`` is 0.
    """
    columns = {"token": at.tokens} | {m.name: m.of(at) for m in MEASURES}
    return columns | {"unknown_mass": torch.zeros(len(at.tokens), device=at.tokens.device)}
