"""Measures between next-token distributions: pure functions of log-probabilities.

Everything is in nats. Inputs are natural log-probabilities ``[..., V]`` in float32 or float64, and
the dtype is kept; half precision is refused, because a sum over a large vocabulary in bfloat16 is
off by more than the divergences that matter. ``-inf`` entries (zero probability, as truncation
leaves them) are legal and handled exactly; NaN is refused with the place where it was found.

The paper's divergence (section 2) is the Jensen-Shannon divergence of the two truncated and
renormalised distributions: ``js`` applied to what ``nucleus.truncate(...).log_probs()`` returns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError

LN2 = math.log(2.0)
CPU_ROWS = 2**18  # log-probabilities that ``pair_measures`` works on at once, on a CPU
DENSE = 2**22  # log-probabilities that ways with many intermediate results work on at once
BLOCK = 128  # tokens; ``largest`` first looks for the blocks that can hold the largest entries


def require_float(x: Tensor, what: str) -> None:
    """Refuse half precision and integers: ``what`` names the tensor in the message."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TokenshiftError(
            f"{what} are {str(x.dtype).removeprefix('torch.')}; give float32 or float64 log-probabilities"
        )


def refuse_nan(values: Tensor, what: str) -> Tensor:
    """Return ``values``, or raise naming the first index at which they are NaN."""
    bad = torch.isnan(values)
    if bool(bad.any()):
        index = [int(i) for i in bad.nonzero()[0]]
        place = {0: "", 1: " at row {}", 2: " at row {}, position {}"}.get(
            len(index), " at index " + ", ".join(["{}"] * len(index))
        ).format(*index)
        raise TokenshiftError(f"{what} are NaN{place}; the model's logits there are not finite")
    return values


def _pair(logp: Tensor, logq: Tensor) -> None:
    require_float(logp, "log-probabilities")
    require_float(logq, "log-probabilities")
    if logp.shape[-1] != logq.shape[-1]:
        raise TokenshiftError(
            f"the two distributions have {logp.shape[-1]} and {logq.shape[-1]} tokens; "
            "compare models with one vocabulary"
        )


def _weighted(p: Tensor, logp: Tensor, value: Tensor) -> Tensor:
    """``sum p * value`` over the last axis, 0 where ``logp`` is -inf; NaN in ``logp`` stays NaN."""
    return (p * value.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def entropy(logp: Tensor) -> Tensor:
    """Shannon entropy, ``[..., V] -> [...]``, nats, at least 0."""
    require_float(logp, "log-probabilities")
    return refuse_nan(_weighted(logp.exp(), logp, -logp), "entropies").clamp_min(0.0)


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q), ``[..., V] -> [...]``, nats; ``inf`` where p has a token that q lacks.

    No epsilon: the value is exact up to rounding however large it is. Rounding below 0 is clamped.
    """
    _pair(logp, logq)
    missing = ((logq == -torch.inf) & (logp != -torch.inf) & ~torch.isnan(logp)).any(-1)
    difference = (logp - logq).masked_fill(logq == -torch.inf, 0.0)
    value = _weighted(logp.exp(), logp, difference)
    return refuse_nan(value, "KL divergences").clamp_min(0.0).masked_fill(missing, torch.inf)


def js_unclamped(logp: Tensor, logq: Tensor) -> Tensor:
    """``js`` before rounding is clamped away; exists so that a test can bound the rounding."""
    _pair(logp, logq)
    mixture = torch.logaddexp(logp, logq) - LN2
    value = 0.5 * (
        _weighted(logp.exp(), logp, logp - mixture) + _weighted(logq.exp(), logq, logq - mixture)
    )
    return refuse_nan(value, "JS divergences")


def js(logp: Tensor, logq: Tensor) -> Tensor:
    """Jensen-Shannon divergence, ``[..., V] -> [...]``, nats, within [0, ln 2].

    ``1/2 KL(p || m) + 1/2 KL(q || m)`` with ``m = (p + q) / 2`` found by log-sum-exp (paper section
    2). The clamp only removes rounding.

    >>> p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    >>> js(p.log(), q.log()).div(LN2).tolist()  # alike; nothing in common: ln 2
    [0.0, 1.0]
    """
    return js_unclamped(logp, logq).clamp(0.0, LN2)


def total_variation(logp: Tensor, logq: Tensor) -> Tensor:
    """Total variation distance ``1/2 sum |p - q|``, ``[..., V] -> [...]``, within [0, 1]."""
    _pair(logp, logq)
    value = 0.5 * (logp.exp() - logq.exp()).abs().sum(-1)
    return refuse_nan(value, "total variation distances").clamp(0.0, 1.0)


def independent_disagreement(logp: Tensor, logq: Tensor) -> Tensor:
    """Chance that independent draws differ, ``1 - sum p q``, ``[..., V] -> [...]``."""
    _pair(logp, logq)
    value = 1.0 - (logp.exp() * logq.exp()).sum(-1)
    return refuse_nan(value, "disagreements").clamp(0.0, 1.0)


class PairMeasures(NamedTuple):
    """What ``pair_measures`` finds, each ``[n]``: nats, but for the total variation distance ``tv``."""

    entropy_p: Tensor
    entropy_q: Tensor
    kl_pq: Tensor
    kl_qp: Tensor
    js: Tensor
    tv: Tensor


def pair_measures(logp: Tensor, logq: Tensor) -> PairMeasures:
    """All measures between the rows of ``logp`` and ``logq`` [n, V] in few passes over them.

    The same as the functions above up to rounding. Rows with impossible tokens, or with tokens
    whose log-probabilities are 88 nats apart, are left to those functions.
    """
    _pair(logp, logq)
    found = PairMeasures(*_sums(logp, logq))
    odd = (~torch.stack(found).isfinite().all(0)).nonzero().squeeze(-1)
    for rows in odd.split(max(1, DENSE // logp.shape[-1])):
        if len(rows):
            for values, some in zip(
                found, exact_pair_measures(logp[rows], logq[rows]), strict=True
            ):
                values[rows] = some
    return found


def exact_pair_measures(p: Tensor, q: Tensor) -> PairMeasures:
    """All measures between log-probabilities ``[..., V]``, by the functions above one by one."""
    return PairMeasures(entropy(p), entropy(q), kl(p, q), kl(q, p), js(p, q), total_variation(p, q))


def _plain_sums(logp: Tensor, logq: Tensor, scratch: Sequence[Tensor | None] = (None,) * 4):
    """``PairMeasures`` of rows where everything is finite; elsewhere something comes out NaN or inf.

    ``scratch`` is memory to work in, four tensors shaped as ``logp``.
    """
    p, q = torch.exp(logp, out=scratch[0]), torch.exp(logq, out=scratch[1])
    apart = torch.sub(logp, logq, out=scratch[2])

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return torch.mul(x, y, out=scratch[3]).sum(-1)

    entropies = -dot(p, logp), -dot(q, logq)
    kl_pq, kl_qp = dot(p, apart), -dot(q, apart)
    # log (p + q) / 2p, which is exact where the two are nearly equal; with it JS is
    # 1/2 sum [p log 2p/(p + q) + q log 2q/(p + q)] = 1/2 [KL(q || p) - sum (p + q) log (p + q)/2p]
    ratio = apart.neg_().expm1_().mul_(0.5).log1p_()
    js = (kl_qp - dot(p, ratio) - dot(q, ratio)) / 2
    moved = p.sub_(q)
    total = moved.sum(-1)  # 0 up to rounding
    tv = moved.clamp_min_(0.0).sum(-1) - total / 2  # (abs takes twenty times longer on a CPU)
    least = (value.clamp_min(0.0) for value in (*entropies, kl_pq, kl_qp))
    return *least, js.clamp(0.0, LN2), tv.clamp(0.0, 1.0)


_kernels: list[Callable] = []  # `_plain_sums` for a GPU, once it was asked for


def _sums(logp: Tensor, logq: Tensor) -> Sequence[Tensor]:
    """``_plain_sums`` as fast as the device has it.

    On a CPU a few rows at a time in the same memory, since new memory takes longer than the
    arithmetic; on a GPU as one kernel that reads a row once or twice, if there is a compiler.
    """
    if not logp.is_cuda:
        rows = max(1, CPU_ROWS // logp.shape[-1])
        scratch = logp.new_empty(4, min(rows, len(logp)), logp.shape[-1])
        parts = [
            _plain_sums(p, q, [part[: len(p)] for part in scratch])
            for p, q in zip(logp.split(rows), logq.split(rows))
        ]
        return [torch.cat(values) for values in zip(*parts)]
    if not _kernels:
        _kernels.append(torch.compile(_plain_sums, dynamic=True))
    try:
        return _kernels[0](logp, logq)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError, ImportError) as error:  # a compiler is missing or broken
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"measures cannot be compiled, which is slower: {reason}", stacklevel=2)
        _kernels[0] = _plain_sums
        return _plain_sums(logp, logq)


def largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest entries of each row of ``[B, V]``: values and ids ``[B, k]``, descending.

    What ``torch.topk`` returns, but a large vocabulary is read only once: the k largest entries are
    within the k blocks with the largest maxima (among equal entries, any may be returned).
    """
    vocab = rows.shape[-1]
    if 4 * k * BLOCK > vocab:
        return torch.topk(rows, min(k, vocab), dim=-1)
    blocked = vocab // BLOCK * BLOCK
    blocks = torch.topk(rows[:, :blocked].unflatten(-1, (-1, BLOCK)).amax(-1), k, dim=-1).indices
    inside = torch.arange(BLOCK, device=rows.device)
    rest = torch.arange(blocked, vocab, device=rows.device).expand(len(rows), -1)
    ids = torch.cat([(blocks.unsqueeze(-1) * BLOCK + inside).flatten(1), rest], dim=-1)
    values, place = torch.topk(rows.gather(-1, ids), k, dim=-1)
    return values, ids.gather(-1, place)


def top_k(logp: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` most probable tokens, ids and log-probs ``[..., k]``, descending, ties by lower id.

    ``k`` is cut to V. Rows without ties among the first k + 1 cost one ``topk``; the others are
    settled by comparing with the k-th value, so no row is ever sorted in full.
    """
    vocab = logp.shape[-1]
    k = min(k, vocab)
    rows = logp.reshape(-1, vocab)
    values, ids = largest(rows, k + 1)
    tied = (values[:, 1:] == values[:, :-1]).any(-1)
    values, ids = values[:, :k].contiguous(), ids[:, :k].contiguous()
    if bool(tied.any()):
        some = rows[tied]
        member = top_mask(
            some, values[tied][:, -1:], torch.full((len(some),), k, device=rows.device)
        )
        member_ids = member.nonzero()[:, 1].view(-1, k)  # ascending ids
        member_values = some.gather(-1, member_ids)
        member_values, order = torch.sort(member_values, dim=-1, descending=True, stable=True)
        ids[tied], values[tied] = member_ids.gather(-1, order), member_values
    return ids.view(*logp.shape[:-1], k), values.view(*logp.shape[:-1], k)


def top_mask(logp: Tensor, edge: Tensor, size: Tensor) -> Tensor:
    """Mask ``[B, V]`` of the ``size`` [B] most probable tokens, given the last one's value ``edge``.

    ``edge`` [B, 1] is the size-th largest entry of the row; among entries equal to it, lower ids
    are taken first.
    """
    mask = logp >= edge
    excess = mask.sum(-1) > size
    if bool(excess.any()):
        some = logp[excess]
        above, equal = some > edge[excess], some == edge[excess]
        room = size[excess, None] - above.sum(-1, keepdim=True)
        mask[excess] = above | (equal & (equal.cumsum(-1) <= room))
    return mask


def topk_overlap(ids_p: Tensor, ids_q: Tensor) -> Tensor:
    """Overlap of two ranked lists for every depth: ``[..., K] -> [..., K]``.

    Entry k - 1 is ``|top-k(p) & top-k(q)| / k`` (paper section 4).

    >>> topk_overlap(torch.tensor([7, 5, 3]), torch.tensor([5, 7, 9])).round(decimals=2).tolist()
    [0.0, 1.0, 0.67]
    """
    same = (ids_p.unsqueeze(-1) == ids_q.unsqueeze(-2)).to(torch.float64)
    common = same.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)
    return common / torch.arange(1, common.shape[-1] + 1, device=common.device)


def rank_of(logp: Tensor, ids: Tensor) -> Tensor:
    """Rank of token ``ids`` [...] in ``logp`` [..., V]; 1 is the most probable, ties by lower id.

    >>> rank_of(torch.tensor([0.2, 0.5, 0.2, 0.1]).log(), torch.tensor(2)).item()
    3
    """
    value = logp.gather(-1, ids.unsqueeze(-1))
    before = torch.arange(logp.shape[-1], device=logp.device) < ids.unsqueeze(-1)
    return 1 + ((logp > value) | ((logp == value) & before)).sum(-1)


def mass_gained(logp: Tensor, logq: Tensor, ids: Tensor) -> Tensor:
    """Probability that tokens gain on going from ``p`` to ``q``, summed along a ranked list.

    Entry k - 1 of the result ``[..., K]`` is what the first k of ``ids`` [..., K] gain together.
    """
    _pair(logp, logq)
    gain = (logq.gather(-1, ids).exp() - logp.gather(-1, ids).exp()).clamp_min(0.0)
    gained = gain.cumsum(-1)
    refuse_nan(gained[..., -1], "mass gains")
    return gained
