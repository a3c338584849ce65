"""Two models on the same given responses, position by position: every measured column of shifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.nucleus import log_softmax32
from tokenshift_utils.measures.table import MEASURES, Compared, measure
from tokenshift_utils.measures.top_logprobs import Aligned, align
from tokenshift_utils.models.memory import halving, positions_at_once
from tokenshift_utils.models.policy import Engine, Policy, Sampling, list_tokens


def compare(logp_base: Tensor, logp_tuned: Tensor, tokens: Tensor, top_p: float, k: int) -> dict:
    """Every measured column of ``shifts`` at n positions, see ``measures.table``.

    Parameters
    ----------
    logp_base, logp_tuned : full log-probabilities ``[n, V]`` at the sampling temperature
    tokens : the tokens that stand there, int64 ``[n]``
    top_p : nucleus mass
    k : length of the lists of most probable tokens

    Returns
    -------
    dict of numpy arrays ``[n]``, lists ``[n, min(k, V)]``
    """
    return _arrays(measure(Compared(logp_base, logp_tuned, tokens, top_p, k)))


def _arrays(columns: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Columns ``[n]`` and ``[n, m]`` as arrays, fetched from a device all at once."""
    arrays = {}
    for dtype in {column.dtype for column in columns.values()}:
        some = {name: column for name, column in columns.items() if column.dtype == dtype}
        wide = [column.reshape(len(column), -1) for column in some.values()]
        ends = np.cumsum([column.shape[1] for column in wide])
        together = torch.cat(wide, dim=1).cpu().numpy()
        for (name, column), end in zip(some.items(), ends):
            part = together[:, end - column[0].numel() : end]
            arrays[name] = part if column.dim() > 1 else part[:, 0]
    return arrays


Read = Callable[[Tensor, Tensor], Tensor]  # rows [n], positions [n] -> logits [n, V]


def _readers(
    policies: Sequence[Policy], prompts: Sequence[list[int]], responses: Sequence[list[int]]
) -> Iterator[tuple[slice, list[Read]]]:
    """Stretches of positions, and what reads each policy's logits there.

    All positions are one stretch where the policies keep hidden states, so that no more logits need
    to be held than are compared at once; else stretches are the blocks of ``Policy.score``.
    """
    readers = []
    for policy in policies:
        reader = policy.scorer(prompts, responses) if policy.keeps_states else None
        if reader is None:
            break
        readers.append(reader)
    else:
        yield slice(0, max(map(len, responses))), readers
        return
    for parts in zip(*(policy.score(prompts, responses) for policy in policies), strict=True):
        where, *others = (part for part, _ in parts)
        if any(part != where for part in others):
            raise ValueError("two policies score in blocks that differ")

        def reader(logits: Tensor, first: int = where.start) -> Read:
            return lambda rows, positions: logits[
                rows.to(logits.device), positions.to(logits.device) - first
            ]

        yield where, [reader(logits) for _, logits in parts]


@torch.inference_mode()
def score_pair(
    base: Policy,
    tuned: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampling: Sampling,
    top_k: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, dict]]:
    """Compare two policies on given responses, a few positions of a batch of rows at a time.

    Yields ``(rows, columns)``: the index of the response that each position belongs to, and the
    columns of ``compare`` with ``position`` beside them. Rows of like length share a batch; within
    a response, positions come in order. How many positions are compared at once follows the memory
    there is, and changes no result by more than rounding.

    Of engines that list the most probable tokens only, nuclei are covered, so that what is measured
    between them is exact; measures of full distributions are those of ``measures.top_logprobs``.
    """
    if base.vocab_size != tuned.vocab_size:
        raise TokenshiftError(
            f"{base.name} and {tuned.name} have vocabularies of different sizes "
            f"({base.vocab_size} and {tuned.vocab_size}); compare models that share one"
        )
    score_batch, order = _score_batch, [i for i, response in enumerate(responses) if len(response)]
    if base.top_logprobs != -1:
        score_batch = _score_listed
        for engine in (base, tuned):
            engine.check(sampling)
            engine.forget()
    else:
        order.sort(key=lambda i: (len(responses[i]), len(prompts[i])))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        some = [prompts[i] for i in rows], [responses[i] for i in rows]
        for owner, columns in score_batch((base, tuned), *some, sampling, top_k):
            yield np.array(rows)[owner], columns


def _score_batch(
    policies: Sequence[Policy],
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    sampling: Sampling,
    top_k: int,
) -> Iterator[tuple[np.ndarray, dict]]:
    """``score_pair`` on rows that are read together; what the models keep of them goes with it."""
    lengths = torch.tensor([len(response) for response in responses])
    tokens = torch.zeros(len(responses), int(lengths.max()), dtype=torch.long)
    for row, response in zip(tokens, responses):
        row[: len(response)] = torch.tensor(response)
    for where, readers in _readers(policies, prompts, responses):
        real = torch.arange(where.start, where.stop) < lengths[:, None]
        row, position = real.nonzero(as_tuple=True)
        places = row, position + where.start
        for part, columns in _compared(readers, places, tokens, sampling, top_k):
            yield row[part].numpy(), columns


def _compared(
    readers: Sequence[Read],
    places: tuple[Tensor, Tensor],
    tokens: Tensor,
    sampling: Sampling,
    top_k: int,
) -> Iterator[tuple[slice, dict]]:
    """The columns of ``score_pair`` at rows and positions [n], as many at once as memory allows."""
    row, position = places
    one = readers[0](row[:1], position[:1])
    size = min(len(row), positions_at_once(one.shape[-1], one.dtype, one.device))
    rooms: dict[Read, Tensor] = {}  # for log-probabilities; new memory takes time on a CPU

    def log_probs(read: Read, at: tuple[Tensor, Tensor]) -> Tensor:
        logits = read(*at)
        room = rooms.get(read)
        if room is None or len(room) < len(logits):
            dtype = torch.promote_types(logits.dtype, torch.float32)
            room = rooms[read] = torch.empty_like(logits, dtype=dtype)
        return log_softmax32(logits, sampling.temperature, room[: len(logits)]).to(one.device)

    def compared(start: int, stop: int) -> dict:
        at = row[start:stop], position[start:stop]
        logp = [log_probs(read, at) for read in readers]
        return compare(*logp, tokens[at].to(one.device), sampling.top_p, top_k)

    for start, stop, columns in halving(len(row), size, compared):
        columns["position"] = position[start:stop].numpy()
        yield slice(start, stop), columns


# The most probable tokens only ------------------------------------------------------------------


def _score_listed(
    engines: Sequence[Engine],
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    sampling: Sampling,
    top_k: int,
) -> Iterator[tuple[np.ndarray, dict]]:
    """``_score_batch`` of engines that list the most probable tokens' log-probs."""
    lists = [engine.score_listed(prompts, responses, sampling.top_p) for engine in engines]
    for row, (of_base, of_tuned) in enumerate(zip(*lists)):
        pair = align(of_base, of_tuned, sampling.temperature)
        tokens = torch.tensor(responses[row], dtype=torch.long)
        columns = compare(pair.p, pair.q, pair.columns(tokens), sampling.top_p, top_k)
        _fill_in(columns, pair, engines[0], prompts[row], responses[row])
        columns["position"] = np.arange(len(tokens))
        yield np.full(len(tokens), row), columns


def _fill_in(
    columns: dict, pair: Aligned, base: Engine, prompt: Sequence[int], response: Sequence[int]
) -> None:
    """Give tokens their ids, and measures of full distributions what is known of these."""
    names = pair.names.numpy()
    best = torch.from_numpy(columns["top_ids_tuned"][:, :1])
    for name in ("token", "top_ids_base", "top_ids_tuned"):
        at = columns[name].reshape(len(names), -1)
        columns[name] = np.take_along_axis(names, at, axis=1).reshape(columns[name].shape)
    if not pair.partial:
        return
    full = pair.full_measures()
    for m in MEASURES:
        if m.from_lists != "exact":
            unknown = np.full_like(columns[m.name], np.nan)
            columns[m.name] = full[m.from_lists].numpy() if m.from_lists else unknown
    columns["unknown_mass"] = pair.unknown_mass.numpy()
    # Tuned's first choice may be on no list of base, which is asked about it then.
    at = (pair.p.gather(1, best) == -torch.inf).squeeze(1).nonzero().squeeze(1).tolist()
    if at:
        texts = [[*prompt, *response[:i]] for i in at]
        listed = list_tokens(base, texts, columns["top_ids_tuned"][at, 0])
        columns["logp_base_of_tuned_top1"][at] = listed.logp[:, 0].numpy()
        columns["rank_base_of_tuned_top1"][at] = listed.rank.numpy()
