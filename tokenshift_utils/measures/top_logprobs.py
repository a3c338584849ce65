"""Distributions of which an engine gave only the most probable tokens.

What is known is used as it is, and nothing is made up for the rest. A nucleus inside the list is
exact, and so is every measure between two such nuclei. Measures of full distributions are taken of
what is known of both, with all that is left as one more token: by the data processing inequality
JS, KL and total variation are then lower bounds. ``unknown_mass``, the larger of the two
probabilities that are left, says how loose: JS is short by at most ln 2 times it, total variation
by at most it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import log_softmax32

ROUNDING = 1e-6  # mass left of a full distribution in float32 by rounding alone, at most


@dataclass(frozen=True)
class Listed:
    """Log-probabilities of some tokens at n places, nats, temperature 1.

    ``ids`` and ``logp`` [n, 1 + k]: the token that stands at the place, then the most probable ones,
    descending. A shorter list ends in the id ``vocabulary`` with -inf. ``rank`` [n]: the token's,
    from 1.
    """

    vocabulary: int
    ids: Tensor
    logp: Tensor
    rank: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def covers(self, top_p: float) -> Tensor:
        """Where the list holds the whole nucleus, bool ``[n]``."""
        best = self.ids[:, 1:]
        complete = (best < self.vocabulary).sum(-1) >= self.vocabulary
        return complete | (self.logp[:, 1:].to(torch.float64).exp().sum(-1) >= top_p)

    def select(self, rows: Tensor | slice) -> Listed:
        """Some places, by index."""
        return Listed(self.vocabulary, self.ids[rows], self.logp[rows], self.rank[rows])

    def widened(self, width: int) -> Listed:
        """The same lists in so many columns."""
        more = width - self.ids.shape[1]
        pad = torch.nn.functional.pad
        ids = pad(self.ids, (0, more), value=self.vocabulary)
        return Listed(self.vocabulary, ids, pad(self.logp, (0, more), value=-torch.inf), self.rank)


def join(parts: Sequence[Listed]) -> Listed:
    """The places of several lists, one after the other."""
    width = max(part.ids.shape[1] for part in parts)
    parts = [part.widened(width) for part in parts]
    fields = zip(*((part.ids, part.logp, part.rank) for part in parts))
    return Listed(parts[0].vocabulary, *map(torch.cat, fields))


@dataclass(frozen=True)
class Aligned:
    """Two models' distributions at n places over the tokens known of either.

    ``names`` int64 [n, W]: token ids, ascending, ``vocabulary`` where there are no more; ``p`` and
    ``q`` [n, W] their log-probs, -inf where not known. ``partial``: whether anything is not.
    """

    names: Tensor
    p: Tensor
    q: Tensor
    partial: bool

    def select(self, rows: Tensor) -> Aligned:
        """Some places, by index."""
        return Aligned(self.names[rows], self.p[rows], self.q[rows], self.partial)

    def columns(self, tokens: Tensor) -> Tensor:
        """Where the tokens ``[n]`` or ``[n, k]``, all known, stand in ``names``."""
        return torch.searchsorted(self.names, tokens.view(len(tokens), -1)).view(tokens.shape)

    def coarsened(self) -> tuple[Tensor, Tensor]:
        """Both distributions on what is known of both, and what is left as one more token."""
        if not self.partial:
            return self.p, self.q
        shared = (self.p > -torch.inf) & (self.q > -torch.inf)
        inside = [logp.masked_fill(~shared, -torch.inf) for logp in (self.p, self.q)]
        left = [1.0 - logp.to(torch.float64).exp().sum(-1, keepdim=True) for logp in inside]
        nothing = torch.minimum(*left) <= ROUNDING
        return tuple(
            torch.cat([logp, rest.masked_fill(nothing, 0.0).log().to(logp.dtype)], dim=-1)
            for logp, rest in zip(inside, left)
        )

    @property
    def unknown_mass(self) -> Tensor:
        """Probability outside what is known of both, the larger of the two, float64 ``[n]``."""
        if not self.partial:
            return torch.zeros(len(self.p), dtype=torch.float64)
        shared = (self.p > -torch.inf) & (self.q > -torch.inf)
        known = [logp.to(torch.float64).exp().mul(shared).sum(-1) for logp in (self.p, self.q)]
        left = 1.0 - torch.minimum(*known)
        return left.masked_fill(left <= ROUNDING, 0.0)

    def full_measures(self) -> dict[str, Tensor]:
        """The fields of ``divergences.PairMeasures`` by name, of what ``coarsened`` gives."""
        return divergences.exact_pair_measures(*self.coarsened())._asdict()


def align(p: Listed, q: Listed, temperature: float) -> Aligned:
    """Two lists over the same places side by side, at ``temperature``.

    A temperature other than 1 takes full distributions.
    """
    ids = torch.cat([p.ids, q.ids], dim=-1).sort(-1).values
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    names = ids.masked_fill(repeated, p.vocabulary).sort(-1).values
    width = int((names < p.vocabulary).sum(-1).max())
    names = names[:, :width].contiguous()
    sides = []
    for listed in (p, q):
        room = torch.full((len(names), width + 1), -torch.inf, dtype=listed.logp.dtype)
        place = torch.searchsorted(names, listed.ids)  # (that of `vocabulary` is the last column)
        place = place.masked_fill(listed.ids >= p.vocabulary, width)
        room.scatter_(1, place, listed.logp)
        sides.append(room[:, :width])
    partial = bool((names[:, -1] >= p.vocabulary).any()) or any(
        bool((side == -torch.inf).any()) for side in sides
    )
    partial = partial or width < p.vocabulary
    if not partial:
        sides = [log_softmax32(side, temperature) if temperature != 1.0 else side for side in sides]
    return Aligned(names, *sides, partial)
