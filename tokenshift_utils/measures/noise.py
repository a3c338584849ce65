"""Counter-based random numbers: noise that depends only on what it is for.

A token is drawn by Gumbel-max with noise that is a hash of (run seed, benchmark, problem, sample,
stream, position, token id), as DESIGN "Measures, exactly" asks. So a draw does not depend on batch
size, on block size, on the order of the work or on what else the process did, and two policies can
share their noise. Stream 0 is the run's own; other streams give independent second draws.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

_STEP = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer (splitmix64's increment)
_MULTIPLY_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MULTIPLY_2 = -7723592293110705685  # 0x94D049BB133111EB
_TOKEN_STEP = -2643881736870682267  # 0xDB4F0B9175AE2165, an odd constant of its own for token ids
_UNIFORM = 7520897531462815301  # separates `uniform` from `gumbel`


def row_key(seed: int, benchmark: str, problem: str, sample: int, stream: int = 0) -> int:
    """A signed 64-bit key for one response, the same on every machine."""
    text = json.dumps([int(seed), str(benchmark), str(problem), int(sample), int(stream)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's ``>>`` keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea and Flood 2014) on int64 with wrap-around."""
    x = (x ^ _shift(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift(x, 27)) * _MULTIPLY_2
    return x ^ _shift(x, 31)


def _unit(x: Tensor) -> Tensor:
    """52 bits of a hash as float64 strictly inside (0, 1)."""
    return (_shift(x, 12).to(torch.float64) + 0.5) * 2.0**-52


def gumbel(row_keys: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 ``[B, n]``.

    Parameters
    ----------
    row_keys : int64 [B], from ``row_key``
    positions : int64 [B], 0-based position in the response
    token_ids : int64 [n] or [B, n]
    """
    state = _mix(row_keys + (positions + 1) * _STEP)
    return -torch.log(-torch.log(_unit(_mix(state[:, None] + (token_ids + 1) * _TOKEN_STEP))))


def uniform(row_keys: Tensor, positions: Tensor) -> Tensor:
    """Uniform noise in (0, 1), float64 ``[B]``, independent of ``gumbel``'s for the same rows."""
    return _unit(_mix(_mix((row_keys ^ _UNIFORM) + (positions + 1) * _STEP)))


def argmax_lowest(scores: Tensor, token_ids: Tensor) -> Tensor:
    """Token id with the highest score per row; among equal scores the lower id. ``[B, n] -> [B]``."""
    best = scores == scores.amax(-1, keepdim=True)
    return torch.where(best, token_ids, torch.iinfo(torch.int64).max).amin(-1)


def draw(
    logp: Tensor, row_keys: Tensor, positions: Tensor, token_ids: Tensor | None = None
) -> Tensor:
    """One token per row by Gumbel-max from log-probabilities, ids ``[B]``.

    ``logp`` is [B, V], or [B, n] for the ``token_ids`` [B, n] given; a constant added to a row
    changes nothing, so it need not be normalised. ``-inf`` is never drawn.

    >>> key = torch.tensor([row_key(0, "aime", "p1", sample) for sample in range(2)])
    >>> same = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> first = draw(same, key, torch.tensor([0, 0]))
    >>> bool((draw(same, key, torch.tensor([0, 0])) == first).all())  # the same noise, the same token
    True
    """
    if token_ids is None:
        token_ids = torch.arange(logp.shape[-1], device=logp.device)
    return argmax_lowest(logp + gumbel(row_keys, positions, token_ids), token_ids)
