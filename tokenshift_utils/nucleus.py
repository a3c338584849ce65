"""Temperature, then top-p: the distributions that are sampled from.

The nucleus is the smallest set of most probable tokens whose mass reaches p, the token that crosses
p included, ties broken by lower id, renormalised (DESIGN "Measures, exactly"). Its edge is found
from a top-k that grows where the mass is not covered, so a vocabulary is never sorted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import refuse_nan, require_float, top_mask
from tokenshift_utils.noise import argmax_lowest, gumbel

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


def log_softmax32(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities at ``temperature``, ``[..., V]``, float32 (float64 stays float64).

    Half-precision logits are widened before anything is summed. Logits that make a row's
    normaliser NaN raise, naming the row.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.to(torch.float32)
    if temperature != 1.0:
        logits = logits / temperature
    logp = torch.log_softmax(logits, dim=-1)
    refuse_nan(logp[..., 0], "logits")  # a NaN or +inf anywhere in a row makes all of it NaN
    return logp


def _edge(logp: Tensor, top_p: float, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nucleus size [B], value of its last token [B, 1] and mass [B] (float64) of rows ``[B, V]``."""
    vocab = logp.shape[-1]
    k = min(k, vocab)
    values = torch.topk(logp, k, dim=-1).values
    mass = values.to(torch.float64).exp().cumsum(-1)
    size = (mass < top_p).sum(-1) + 1
    if k == vocab:  # rounding may leave the sum just below p; zero-probability tokens stay out
        size = torch.minimum(size, (values > -torch.inf).sum(-1).clamp_min(1))
    inside = size.clamp_max(k).unsqueeze(-1) - 1
    edge, total = values.gather(-1, inside), mass.gather(-1, inside).squeeze(-1)
    if k < vocab:
        open_rows = (size > k).nonzero().squeeze(-1)
        if len(open_rows):
            more = _edge(logp[open_rows], top_p, k * GROWTH)
            size[open_rows], edge[open_rows], total[open_rows] = more
    return size, edge, total


@dataclass(frozen=True)
class Nucleus:
    """The truncation of log-probabilities ``logp`` [..., V].

    ``size`` [...] is the number of tokens kept, ``mass`` [...] their probability before
    renormalisation (float64).
    """

    logp: Tensor
    size: Tensor
    mass: Tensor
    edge: Tensor | None  # [rows, 1], value of the least probable token kept; None: all are kept

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


def truncate(logp: Tensor, top_p: float) -> Nucleus:
    """The nucleus of each row of ``logp`` [..., V] (float32 or float64) at ``top_p``.

    ``top_p = 1`` keeps every token and renormalises nothing.
    """
    check_top_p(top_p)
    require_float(logp, "log-probabilities")
    refuse_nan(logp.amax(-1), "log-probabilities")
    return _truncate(logp, top_p, FIRST_K)


def _truncate(logp: Tensor, top_p: float, k: int) -> Nucleus:
    if top_p >= 1.0:
        size = (logp > -torch.inf).sum(-1)
        return Nucleus(logp, size, torch.ones_like(size, dtype=torch.float64), None)
    size, edge, mass = _edge(logp.reshape(-1, logp.shape[-1]), top_p, k)
    shape = logp.shape[:-1]
    return Nucleus(logp, size.view(shape), mass.view(shape), edge)


def draw_truncated(logp: Tensor, top_p: float, row_keys: Tensor, positions: Tensor) -> Tensor:
    """One token per row from the nucleus of ``logp`` [B, V], ids ``[B]``.

    The same tokens as ``draw(truncate(logp, top_p).log_probs(), ...)``, with noise hashed only for
    the candidates of a top-k.
    """
    return _draw(logp, top_p, row_keys, positions, FIRST_K)


def _draw(logp: Tensor, top_p: float, row_keys: Tensor, positions: Tensor, k: int) -> Tensor:
    vocab = logp.shape[-1]
    if k >= vocab or top_p >= 1.0:
        kept = logp.masked_fill(~_truncate(logp, top_p, k).mask, -torch.inf)
        ids = torch.arange(vocab, device=logp.device)
        return argmax_lowest(kept + gumbel(row_keys, positions, ids), ids)
    values, ids = torch.topk(logp, k, dim=-1)
    mass = values.to(torch.float64).exp().cumsum(-1)
    size = (mass < top_p).sum(-1, keepdim=True) + 1
    outside = torch.arange(k, device=logp.device) >= size
    # a tie across the edge, or an edge that the list does not show, is left to a longer list
    last = values.gather(-1, size.clamp_max(k) - 1)
    after = values.gather(-1, size.clamp_max(k - 1))
    unsettled = ((size >= k) | (last == after)).squeeze(-1)
    scores = (values + gumbel(row_keys, positions, ids)).masked_fill(outside, -torch.inf)
    tokens = argmax_lowest(scores, ids)
    rest = unsettled.nonzero().squeeze(-1)
    if len(rest):
        tokens[rest] = _draw(
            logp[rest], top_p, row_keys[rest], positions[rest], min(k * GROWTH, vocab)
        )
    return tokens
