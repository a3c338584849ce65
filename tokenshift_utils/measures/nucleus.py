"""Temperature, then top-p: the distributions that are sampled from.

The nucleus is the smallest set of most probable tokens whose mass reaches p, the token that crosses
p included, ties broken by lower id, renormalised (DESIGN "Measures, exactly"). Its edge is found
from a top-k that grows where the mass is not covered, so a vocabulary is never sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.divergences import (
    DENSE,
    largest,
    refuse_nan,
    require_float,
    top_mask,
)
from tokenshift_utils.measures.noise import draw

FIRST_K = 16  # trained models rarely need more at top-p 0.7
GROWTH = 8


def check_top_p(top_p: float) -> None:
    """Refuse a top-p outside (0, 1]."""
    if not (isinstance(top_p, (int, float)) and 0.0 < top_p <= 1.0):
        raise TokenshiftError(f"top_p is {top_p!r}; give a number above 0 and at most 1")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive, finite number."""
    if not (isinstance(temperature, (int, float)) and 0.0 < temperature < math.inf):
        raise TokenshiftError(f"temperature is {temperature!r}; give a finite number above 0")


def log_softmax32(logits: Tensor, temperature: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Log-probabilities at ``temperature``, ``[..., V]``, float32 (float64 stays float64).

    Half-precision logits are widened before anything is summed. Logits that make a row's
    normaliser NaN raise, naming the row. With ``out`` they go there, and ``logits`` may be
    overwritten.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.to(torch.float32)
    if temperature != 1.0:
        logits = torch.div(logits, temperature, out=None if out is None else logits)
    logp = torch.log_softmax(logits, dim=-1, out=out)
    refuse_nan(logp[..., 0], "logits")  # a NaN or +inf anywhere in a row makes all of it NaN
    return logp


@dataclass(frozen=True)
class Nucleus:
    """The truncation of log-probabilities ``logp`` [..., V] at ``top_p``.

    ``size`` [...] is the number of tokens kept, ``mass`` [...] their probability before
    renormalisation (float64). ``ids`` and ``values`` [..., k] are the most probable tokens that
    were looked at first, descending; where the nucleus is no larger than k - 1 they hold it.
    """

    logp: Tensor
    top_p: float
    size: Tensor
    mass: Tensor
    edge: Tensor | None  # [rows, 1], value of the least probable token kept; None: all are kept
    ids: Tensor | None
    values: Tensor | None

    @property
    def mask(self) -> Tensor:
        """Which tokens are kept, bool ``[..., V]``."""
        if self.edge is None:
            return self.logp > -torch.inf
        flat = self.logp.reshape(-1, self.logp.shape[-1])
        return top_mask(flat, self.edge, self.size.reshape(-1)).view(self.logp.shape)

    def log_probs(self) -> Tensor:
        """Truncated, renormalised log-probabilities ``[..., V]``, -inf outside."""
        if self.edge is None:
            return self.logp
        shifted = self.logp - self.mass.log().to(self.logp.dtype).unsqueeze(-1)
        return shifted.masked_fill(~self.mask, -torch.inf)

    @property
    def listed(self) -> Tensor:
        """Rows ``[B]`` whose nucleus is known to be the first ``size`` of ``ids``."""
        if self.edge is None:
            return torch.zeros_like(self.size, dtype=torch.bool)
        k = self.ids.shape[-1]
        if k == self.logp.shape[-1]:  # (the list has an end, but ties need not be in order of id)
            return self.size < 0
        size = self.size.unsqueeze(-1)
        after = self.values.gather(-1, size.clamp_max(k - 1))  # a tie across the edge?
        return ((size < k) & (after != self.edge)).squeeze(-1)

    def select(self, rows: Tensor) -> Nucleus:
        """The nucleus of some rows of ``[B, V]``, by index."""
        parts = (self.edge, self.ids, self.values)
        some = [None if part is None else part[rows] for part in parts]
        return Nucleus(self.logp[rows], self.top_p, self.size[rows], self.mass[rows], *some)

    @staticmethod
    def concat(parts: Sequence[Nucleus]) -> Nucleus:
        """Nuclei of ``[n_i, V]`` with one top-p as one of ``[sum n_i, V]``."""
        return _join(parts, lambda values: torch.cat(values))

    @staticmethod
    def stack(parts: Sequence[Nucleus]) -> Nucleus:
        """n nuclei of ``[B, V]`` as one of ``[B n, V]``, those of a row together."""
        return _join(parts, lambda values: torch.stack(values, dim=1).flatten(0, 1))

    def draw(self, row_keys: Tensor, positions: Tensor) -> Tensor:
        """One token per row of ``[B, V]`` with the noise of those rows and positions, ids ``[B]``.

        The same tokens as ``noise.draw`` from ``log_probs()``. Noise is hashed for the candidates
        of a top-k only; rows whose nucleus the list does not show, or that tie across its edge, go
        on to a longer list.
        """
        if self.edge is None or self.ids.shape[-1] == self.logp.shape[-1]:
            return draw(self.logp.masked_fill(~self.mask, -torch.inf), row_keys, positions)
        k = self.ids.shape[-1]
        outside = torch.arange(k, device=self.logp.device) >= self.size.unsqueeze(-1)
        inside = self.values.masked_fill(outside, -torch.inf)
        tokens = draw(inside, row_keys, positions, self.ids)
        rest = (~self.listed).nonzero().squeeze(-1)
        if len(rest):
            longer = _truncate(self.logp[rest], self.top_p, k * GROWTH)
            tokens[rest] = longer.draw(row_keys[rest], positions[rest])
        return tokens


def on_supports(p: Nucleus, q: Nucleus) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What two nuclei of ``[n, V]`` keep: yields ``(rows, logp, logq)``, every row once.

    ``logp`` and ``logq`` [rows, m] are truncated and renormalised as by ``log_probs``, without most
    of the tokens that neither keeps: those of the two lists, of longer ones where they are too
    short, and the whole vocabulary where these are too.
    """
    everyone = torch.arange(len(p.logp), device=p.logp.device)
    k = p.logp.shape[-1] if p.edge is None else p.ids.shape[-1] * GROWTH
    if k >= p.logp.shape[-1]:
        yield everyone, p.log_probs(), q.log_probs()
        return
    listed = p.listed & q.listed
    wide = ~listed & (torch.maximum(p.size, q.size) >= k)  # also too long for the next list
    if bool(listed.any()):
        rows = everyone[listed]
        yield rows, *_union(p, q, rows)
    for rows in everyone[wide].split(max(1, DENSE // p.logp.shape[-1])):
        if len(rows):
            yield rows, p.select(rows).log_probs(), q.select(rows).log_probs()
    if not bool((listed | wide).all()):
        rows = everyone[~listed & ~wide]
        longer = [_truncate(x.logp[rows], x.top_p, k) for x in (p, q)]
        for some, logp, logq in on_supports(*longer):
            yield rows[some], logp, logq


def _union(p: Nucleus, q: Nucleus, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Truncated log-probabilities ``[rows, 2 k]`` on the tokens of the first list, and on those of
    the second that the first does not keep. Nothing ties across an edge here, so that a token is
    kept where it is no less probable than the last one kept."""
    # 1. p's list [rows, k]: its tokens under p, and under q where q keeps them too, else -inf.
    # 2. q's list [rows, k]: its tokens that p does not keep, so that none stands twice.
    parts: list[tuple[Tensor, Tensor]] = []
    for first, one, other in ((True, p, q), (False, q, p)):
        kept = torch.arange(one.ids.shape[-1], device=rows.device) < one.size[rows, None]
        theirs = other.logp[rows[:, None], one.ids[rows]]
        both = kept & (theirs >= other.edge[rows])
        if not first:  # those kept by both stand in the first part
            kept, both = kept & ~both, torch.zeros_like(both)
        mine, theirs = (
            (values - x.mass[rows].log().to(values.dtype).unsqueeze(-1)).masked_fill(
                ~inside, -torch.inf
            )
            for x, values, inside in ((one, one.values[rows], kept), (other, theirs, both))
        )
        parts.append((mine, theirs) if first else (theirs, mine))
    return torch.cat([a for a, _ in parts], -1), torch.cat([b for _, b in parts], -1)


def _join(parts: Sequence[Nucleus], join: Callable[[list[Tensor]], Tensor]) -> Nucleus:
    def field(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else join(values)

    names = ("size", "mass", "edge", "ids", "values")
    return Nucleus(field("logp"), parts[0].top_p, *map(field, names))


def truncate(logp: Tensor, top_p: float) -> Nucleus:
    """The nucleus of each row of ``logp`` [..., V] (float32 or float64) at ``top_p``.

    ``top_p = 1`` keeps every token and renormalises nothing.

    >>> truncate(torch.tensor([0.5, 0.3, 0.2]).log(), 0.7).log_probs().exp().tolist()
    [0.625, 0.375, 0.0]
    """
    check_top_p(top_p)
    require_float(logp, "log-probabilities")
    refuse_nan(logp.amax(-1), "log-probabilities")
    return _truncate(logp, top_p, FIRST_K)


def _truncate(logp: Tensor, top_p: float, k: int) -> Nucleus:
    if top_p >= 1.0:
        size = (logp > -torch.inf).sum(-1)
        mass = torch.ones_like(size, dtype=torch.float64)
        return Nucleus(logp, top_p, size, mass, None, None, None)
    flat = logp.reshape(-1, logp.shape[-1])
    values, ids = largest(flat, k)
    size, edge, mass = _edge(flat, values, top_p)
    shape = logp.shape[:-1]
    lists = (ids.view(*shape, -1), values.view(*shape, -1))
    return Nucleus(logp, top_p, size.view(shape), mass.view(shape), edge, *lists)


def _edge(logp: Tensor, values: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Size [B], value of the last token [B, 1] and mass [B] (float64) of each row's nucleus.

    ``values`` [B, k] are the largest entries of the rows ``logp`` [B, V]; rows that they do not
    cover are looked at again with more.
    """
    vocab, k = logp.shape[-1], values.shape[-1]
    mass = values.to(torch.float64).exp().cumsum(-1)
    size = (mass < top_p).sum(-1) + 1
    if k == vocab:  # rounding may leave the sum just below p; zero-probability tokens stay out
        size = torch.minimum(size, (values > -torch.inf).sum(-1).clamp_min(1))
    inside = size.clamp_max(k).unsqueeze(-1) - 1
    edge, total = values.gather(-1, inside), mass.gather(-1, inside).squeeze(-1)
    open_rows = (size > k).nonzero().squeeze(-1)
    if len(open_rows):
        some = logp[open_rows]
        more, _ = largest(some, k * GROWTH)
        size[open_rows], edge[open_rows], total[open_rows] = _edge(some, more, top_p)
    return size, edge, total


def nucleus_js(primary: Nucleus, intervention: Nucleus) -> Tensor:
    """JS divergence of the truncations of ``[n, V]``, nats, ``[n]``.

    Most nuclei of trained models are a few tokens, so it is found from the lists of the most
    probable ones; a row whose nucleus goes beyond its list is compared over the vocabulary.
    """
    short = primary.listed & intervention.listed
    value = torch.empty(len(short), dtype=primary.logp.dtype, device=short.device)
    where = short.nonzero().squeeze(-1)
    if len(where):
        value[where] = _listed_js(primary, intervention, where).to(value.dtype)
    rest = (~short).nonzero().squeeze(-1)
    if len(rest):
        value[rest] = divergences.js(
            primary.select(rest).log_probs(), intervention.select(rest).log_probs()
        )
    return value


def _listed_js(primary: Nucleus, intervention: Nucleus, rows: Tensor) -> Tensor:
    """JS, float64, of rows whose nuclei are the first ``size`` of their lists."""
    longest = int(torch.maximum(primary.size[rows], intervention.size[rows]).max())
    sides = []
    for nucleus in (primary, intervention):
        ids, values = nucleus.ids[rows, :longest], nucleus.values[rows, :longest]
        inside = torch.arange(longest, device=rows.device) < nucleus.size[rows, None]
        share = values.to(torch.float64).exp() / nucleus.mass[rows, None]
        sides.append((ids, share * inside))
    (p_ids, p), (q_ids, q) = sides
    same = (p_ids[:, :, None] == q_ids[:, None, :]).to(torch.float64)
    q_at_p, p_at_q = (same @ q[:, :, None]).squeeze(-1), (p[:, None, :] @ same).squeeze(-2)

    def part(own: Tensor, other: Tensor) -> Tensor:
        ratio = 2.0 * own / (own + other)  # NaN where the place is beyond the nucleus
        return torch.where(own > 0, own * ratio.log(), 0.0).sum(-1)

    return (0.5 * (part(p, q_at_p) + part(q, p_at_q))).clamp(0.0, divergences.LN2)
