"""What the analyses need from a model, and nothing more.

A policy samples continuations, scores given ones position by position, and reads a batch of texts
token by token or block by block. Analyses know only this protocol, so that another engine can stand behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.nucleus import (
    Nucleus,
    check_temperature,
    check_top_p,
    log_softmax32,
    truncate,
)
from tokenshift_utils.measures.top_logprobs import Listed, join

Texts = Sequence[Sequence[int]]  # token ids, text by text


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: temperature, then top-p, at most ``max_new_tokens`` tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_top_p(self.top_p)
        if self.max_new_tokens < 1:
            raise TokenshiftError(f"max_new_tokens is {self.max_new_tokens}; give at least 1")

    def nucleus(self, logits: Tensor) -> Nucleus:
        """The distributions drawn from, of logits ``[n, V]``."""
        return truncate(log_softmax32(logits, self.temperature), self.top_p)


@dataclass(frozen=True)
class Continuation:
    """A sampled response.

    ``logprobs`` are the emitted tokens' under the untruncated distribution at the sampling
    temperature, nats. ``finish_reason`` is "eos" where the last id is a stop id, else "length".
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["eos", "length"]


class Session(Protocol):
    """A batch of rows of text that a model has read, with its key-value cache inside.

    Rows go on independently: each has a length of its own, can forget its end, and can be given
    another text.
    """

    device: torch.device
    length: Tensor  # int64 [B], tokens that each row has read

    def enter(self, rows: Tensor, texts: Texts) -> None:
        """Give ``rows`` (int64) these texts in place of theirs, and read them; some may be empty."""

    def read(
        self,
        tokens: Tensor,
        rows: Tensor | slice | None = None,
        counts: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Read ``tokens`` [b, n] behind the texts of ``rows`` [b] (None: all; a slice is cheapest).

        Returns the logits after each token, ``[b, n, V]``. With ``counts`` [b] only the first so
        many tokens of a row are meant; what stands in the other places means nothing. ``last``
        returns the logits after each row's last token only, ``[b, 1, V]``.
        """

    def rewind(self, length: Tensor) -> None:
        """Forget what lies beyond ``length`` [B] in each row."""

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows listed (int64), in that order.

        One listed twice goes on as two: a fork, which costs a copy of what the row has read.
        """


class Policy(Protocol):
    """A model with its tokenizer. ``fingerprint`` changes whenever its outputs could.

    What it can do it declares, and nothing is found out by trying:

    - ``top_logprobs``: how many log-probs it returns for a position (-1: of the whole vocabulary);
    - ``draws_inside``: tokens are drawn inside an engine, which a mixture asks for drafts in place
      of logits: it is an ``Engine`` too;
    - ``keeps_states``: it can keep a model's hidden states: it ``KeepsStates`` too;
    - ``positions``: how many tokens a text may have, None where any number can be read.
    """

    name: str
    vocab_size: int
    eos_ids: tuple[int, ...]
    tokenizer: Any
    top_logprobs: int
    draws_inside: bool
    keeps_states: bool

    @property
    def fingerprint(self) -> str: ...

    @property
    def positions(self) -> int | None: ...

    def open(self, rows: int) -> Session:
        """A session of so many rows without text."""

    def sample(
        self,
        prompts: Texts,
        row_keys: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        first: Sequence[int] | None = None,
    ) -> list[Continuation]:
        """One response a prompt, with the noise of ``row_keys`` (see ``noise.row_key``).

        Where a prompt holds the beginning of a response already, ``first`` says at which response
        position it goes on: noise is that of the true position, and the response ends at position
        ``max_new_tokens`` - 1 at the latest.
        """

    def score(
        self, prompts: Texts, responses: Texts, block: int = 256
    ) -> Iterator[tuple[slice, Tensor]]:
        """Teacher forcing: yield ``(positions, logits [B, n, V])`` over the response positions.

        The logits at response position t are those that emit ``responses[b][t]``, given the prompt
        and ``responses[b][:t]``. Rows are padded on the right; what stands beyond a row's own
        length means nothing.
        """


class KeepsStates(Policy, Protocol):
    """A policy that can keep a model's hidden states, and make logits of them where wanted."""

    def scorer(self, prompts: Texts, responses: Texts) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Teacher forcing: read the responses once, and return what gives their logits.

        That is called with rows and response positions, int64 ``[n]`` each, and returns the logits
        ``[n, V]`` that emit the tokens there, as ``Policy.score`` does. None where a model cannot
        be used so.
        """


class Engine(Policy, Protocol):
    """A policy that draws inside (``draws_inside``), and may list the most probable tokens only.

    A list (``Listed``) is what is known of the distributions at some places; it covers the nucleus
    at ``top_p``, however few log-probs ``top_logprobs`` asks for.
    """

    def check(self, sampling: Sampling) -> None:
        """Refuse (``TokenshiftError``) sampling that lists of this length do not suffice for."""

    def forget(self) -> None:
        """Drop cached texts, so that what comes does not depend on what was."""

    def draft(
        self,
        texts: Texts,
        row_keys: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        sampling: Sampling,
        stops: Sequence[int],
    ) -> list[tuple[list[int], Listed]]:
        """Up to so many ``tokens`` behind each text, drawn with the noise of ``row_keys`` from response
        position ``positions`` on, up to a stop id, and the lists that they come from."""

    def read(
        self, texts: Texts, tokens: Texts, top_p: float | None = None, count: int | None = None
    ) -> list[Listed]:
        """The lists from which ``tokens`` behind each text would come; ``count`` log-probs a place,
        ``top_logprobs`` where None."""

    def score_listed(
        self, prompts: Texts, responses: Texts, top_p: float | None = None
    ) -> list[Listed]:
        """The lists at every position of given responses, one a response."""


def list_tokens(engine: Engine, texts: Texts, tokens: Sequence[int]) -> Listed:
    """What an engine says of one token after each text, which may be on none of its lists."""
    return join(engine.read(texts, [[int(token)] for token in tokens], None, 1))


def stop_ids(*policies: Policy) -> tuple[int, ...]:
    """The union of the policies' stop ids, sorted."""
    return tuple(sorted({i for policy in policies for i in policy.eos_ids}))
