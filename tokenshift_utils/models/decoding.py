"""Texts being written, each at its own pace: finished ones leave the batch and new ones enter.

``Lanes`` does the bookkeeping that sampling by one policy and mixing of two share; ``generate`` is
the former. A lane's sessions have read all of its text but the last token, so that reading this
gives the distribution of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.nucleus import log_softmax32, truncate
from tokenshift_utils.models.policy import Continuation, Policy, Sampling, Session, Texts

# log-probabilities [B, V] at the temperature, row keys [B] and response positions [B]: ids [B]
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]

COMPACT_BELOW = 0.95  # share of lanes still busy at which idle ones are dropped, if none can enter
REFILL_AT = 1 / 16  # share of lanes that must be idle before new texts enter: entering costs a read


class Lanes:
    """The texts that the rows of some sessions are at.

    Any number of tokens may be written behind a text: what lies beyond its limit is dropped. An
    idle lane has a text of one token that means nothing, so that what is read and written along
    with busy lanes starts anew every time, at the left, and never grows.

    Attributes
    ----------
    item : int64 [B], which text each lane writes; -1: idle
    text : int64 [B, columns], prompt and response; what lies beyond ``size`` means nothing, and
        the last column never does: it takes what is dropped
    size : int64 [B], tokens of the text so far; 1 in idle lanes
    keys : int64 [B], the noise's row keys
    """

    def __init__(
        self,
        prompts: Texts,
        keys: Sequence[int],
        first: Sequence[int] | None,
        limit: int,
        stops: Sequence[int],
        rows: int,
        device: torch.device,
    ) -> None:
        check_prompts(prompts)
        self._prompts = prompts
        self.all_keys = torch.tensor(keys, dtype=torch.long, device=device)
        first = torch.tensor([0] * len(prompts) if first is None else first)
        lengths = torch.tensor([len(p) for p in prompts], dtype=torch.long)
        # A text of size s writes response position s - origin next.
        self._all_origins = (lengths - first).to(device)
        self._next = 0
        self._limit, self._stops = limit, torch.tensor(stops, dtype=torch.long, device=device)
        rows = min(rows, len(prompts))
        columns = int(lengths.max()) + limit - int(first.min()) + 1
        int64 = {"dtype": torch.long, "device": device}
        self.item = torch.full((rows,), -1, **int64)
        self.text = torch.zeros(rows, columns, **int64)
        self.size = torch.ones(rows, **int64)
        self.keys = torch.zeros(rows, **int64)
        self._origin = torch.zeros(rows, **int64)
        self._values = torch.zeros(rows, columns, dtype=torch.float64, device=device)
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.values: list[list[float]] = [[] for _ in prompts]

    def __len__(self) -> int:
        return len(self.item)

    @property
    def busy(self) -> Tensor:
        """Which lanes are writing, bool ``[B]``."""
        return self.item >= 0

    @property
    def position(self) -> Tensor:
        """The response position that each lane writes next, int64 ``[B]``."""
        return self.size - self._origin

    @property
    def pending(self) -> Tensor:
        """The last token of each text, not read yet, int64 ``[B]``."""
        return self.text.gather(1, self.size[:, None] - 1).squeeze(1)

    @property
    def room(self) -> int:
        """How many tokens every busy lane may still write."""
        return self._limit - int(self.position[self.busy].max())

    def write(self, tokens: Tensor, values: Tensor | None = None) -> None:
        """Put ``tokens`` [B, n] behind the texts without making them longer."""
        columns = self.size[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        columns = columns.clamp_max(self.text.shape[1] - 1)
        self.text.scatter_(1, columns, tokens)
        if values is not None:
            self._values.scatter_(1, columns, values.to(torch.float64))

    def advance(self, tokens: Tensor, counts: Tensor, values: Tensor | None = None) -> int:
        """Add the first ``counts`` [B] of ``tokens`` [B, n] to the texts of busy lanes.

        A text whose last token is a stop id, or that is at its limit, is finished and its lane
        idle; a stop id further ahead is the caller's to cut at. Returns the number finished.
        """
        self.write(tokens, values)
        self.size += torch.minimum(counts, self._limit - self.position) * self.busy
        done = self.busy & (torch.isin(self.pending, self._stops) | (self.position >= self._limit))
        lanes = done.nonzero().squeeze(-1)
        if len(lanes):
            ends = self.size[lanes].tolist()
            items = self.item[lanes].tolist()
            starts = [len(self._prompts[i]) for i in items]
            texts, values_ = self.text[lanes].cpu(), self._values[lanes].cpu()
            for row, (i, start, end) in enumerate(zip(items, starts, ends)):
                self.ids[i] = texts[row, start:end].tolist()
                self.values[i] = values_[row, start:end].tolist()
            self.item[lanes] = -1
            self.size[lanes], self._origin[lanes] = 1, 0
        return len(lanes)

    def refill(self, eager: Sequence[Session], lagging: Sequence[Session] = ()) -> bool:
        """Let sessions forget what was not taken, and texts enter; False when all are finished.

        ``eager`` sessions have read as far as the texts go, ``lagging`` ones read when asked to.
        """
        busy = self.busy
        idle = (~busy).nonzero().squeeze(-1)
        waiting = len(self._prompts) - self._next
        if len(idle) == len(self) and not waiting:
            return False
        for session in eager:
            session.rewind(self.size - 1)
        if waiting and len(idle) >= max(1, int(REFILL_AT * len(self))):
            self._enter(idle[:waiting], eager, lagging)
        elif not waiting and len(self) - len(idle) <= COMPACT_BELOW * len(self):
            order = fill_gaps(busy)
            for name in ("item", "text", "size", "keys", "_origin", "_values"):
                setattr(self, name, getattr(self, name)[order])
            for session in (*eager, *lagging):
                session.keep(order)
        return True

    def _enter(self, lanes: Tensor, eager: Sequence[Session], lagging: Sequence[Session]) -> None:
        chosen = slice(self._next, self._next + len(lanes))
        self._next = chosen.stop
        prompts = self._prompts[chosen]
        sizes = torch.tensor([len(p) for p in prompts], device=lanes.device)
        longest = int(sizes.max())
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        self.text[lanes, :longest] = torch.tensor(padded, device=lanes.device)
        self.item[lanes] = torch.arange(chosen.start, chosen.stop, device=lanes.device)
        self.size[lanes] = sizes
        self.keys[lanes] = self.all_keys[chosen]
        self._origin[lanes] = self._all_origins[chosen]
        for session in eager:
            session.enter(lanes, [prompt[:-1] for prompt in prompts])
        for session in lagging:
            session.enter(lanes, [[]] * len(prompts))

    def reasons(self) -> list[str]:
        """Why each text ended: "eos" at a stop id, else "length"."""
        stopped = set(self._stops.tolist())
        return ["eos" if ids and ids[-1] in stopped else "length" for ids in self.ids]


def fill_gaps(alive: Tensor) -> Tensor:
    """Row order that keeps the rows of the bool mask ``alive`` [B] and moves as few as possible.

    Survivors among the first ``n`` rows (n of them alive) stay where they are; later ones fill the
    gaps.
    """
    kept = int(alive.sum())
    order = torch.arange(kept, device=alive.device)
    gaps = (~alive[:kept]).nonzero().squeeze(-1)
    order[gaps] = alive[kept:].nonzero().squeeze(-1) + kept
    return order


def check_prompts(prompts: Texts, **beside: Sequence | None) -> None:
    """Refuse prompts without tokens, and what stands beside them in another number."""
    for what, given in beside.items():
        if given is not None and len(given) != len(prompts):
            name = what.replace("_", " ")
            raise TokenshiftError(f"{len(prompts)} prompts came with {len(given)} {name}")
    if not all(len(prompt) for prompt in prompts):
        raise TokenshiftError("a prompt has no tokens; give every prompt at least one")


def check_positions(policy: Policy, prompts: Texts, new: Sequence[int] | int) -> None:
    """Refuse texts of more tokens than a policy has positions for.

    ``new`` is how many tokens stand behind each prompt, at most.
    """
    if policy.positions is None or not len(prompts):
        return
    news = [new] * len(prompts) if isinstance(new, int) else new
    longest = max(len(prompt) + more for prompt, more in zip(prompts, news))
    if longest > policy.positions:
        raise TokenshiftError(
            f"a text of {longest} tokens, prompt and response, is asked of {policy.name}, which has "
            f"positions for {policy.positions}: shorten prompts or responses"
        )


def check_rows(
    prompts: Texts, row_keys: Sequence[int], sampling: Sampling, first: Sequence[int] | None
) -> None:
    """Refuse what ``policy.Policy.sample`` cannot go on from."""
    check_prompts(prompts, row_keys=row_keys, first_positions=first)
    if first is not None and not all(0 <= f < sampling.max_new_tokens for f in first):
        raise TokenshiftError(
            f"first positions must be within 0 and {sampling.max_new_tokens - 1}, "
            "the last position of a response"
        )


@torch.inference_mode()
def generate(
    policy: Policy,
    prompts: Texts,
    row_keys: Sequence[int],
    sampling: Sampling,
    stop_ids: Sequence[int],
    batch_size: int,
    first: Sequence[int] | None = None,
    draw: Draw | None = None,
) -> list[Continuation]:
    """One response a prompt, in the order given. See ``policy.Policy.sample``.

    ``draw`` chooses the tokens; None: by Gumbel-max in the nucleus, as the analyses need it.

    What a row gets does not depend on its batch; texts enter in the order given, so those with one
    prompt should stand together: it is read once for all that enter at one time.
    """
    check_rows(prompts, row_keys, sampling, first)
    limit = sampling.max_new_tokens
    check_positions(policy, prompts, limit if first is None else [limit - f for f in first])
    if not len(prompts):
        return []
    session = policy.open(min(batch_size, len(prompts)))
    lanes = Lanes(prompts, row_keys, first, limit, stop_ids, batch_size, session.device)
    while lanes.refill([session]):
        logp = log_softmax32(session.read(lanes.pending[:, None])[:, 0], sampling.temperature)
        choose = truncate(logp, sampling.top_p).draw if draw is None else partial(draw, logp)
        tokens = choose(lanes.keys, lanes.position)[:, None]
        lanes.advance(tokens, torch.ones_like(lanes.size), logp.gather(1, tokens))
    return [Continuation(*row) for row in zip(lanes.ids, lanes.values, lanes.reasons())]
