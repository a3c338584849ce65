"""Teacher forcing through a causal language model in two parts, its body and its head.

A batch of responses is read once, into hidden states; logits are then made of them at a few
positions at a time. The head is the model's own forward, run with a body that returns what it is
given: lm_head, and whatever scaling or capping follows it. Whether a model is these two parts is
tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenshift_utils.errors import first_line
from tokenshift_utils.models.memory import OutOfMemory, halving
from tokenshift_utils.models.policy import Session, Texts

CHUNK = 256  # tokens of a text that a session reads at once, on a CPU
CPU_PAIRS = 2**19  # pairs of positions that attention may hold at once, on a CPU
GPU_CHUNK = 4096  # on a GPU, where a text does not fit as a whole


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes token ids. One that is loaded module by module takes them on the CPU."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


class SplitModel:
    """A model's body and head. The model stays as it is."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.body = model.base_model
        self._place = model.get_submodule(model.base_model_prefix).__dict__
        self._output: Any = None  # class of what the body returns

    def states(self, ids: Tensor) -> Tensor:
        """Last hidden states ``[B, n, H]`` of texts ``[B, n]``, padded on the right if at all."""
        output = self.body(input_ids=ids, use_cache=False)
        self._output = type(output)
        return output[0]

    def logits(self, states: Tensor) -> Tensor:
        """Logits ``[n, V]`` of last hidden states ``[n, H]``."""
        if self._output is None:
            self.states(torch.zeros(1, 1, dtype=torch.long, device=input_device(self._model)))
        # The model's forward calls its body and then its head: 1) for this call the body returns the
        # states [1, n, H] that it is given, 2) the model runs on n placeholder ids, whose logits
        # [1, n, V] are the head's of those states, 3) the body's own forward is put back.
        given, before = self._output(last_hidden_state=states[None]), self._place.get("forward")
        self._place["forward"] = lambda *args, **kwargs: given
        try:
            ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
            return self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            del self._place["forward"]
            if before is not None:
                self._place["forward"] = before


@torch.inference_mode()
def split_fault(model: PreTrainedModel, vocabulary: int) -> str:
    """What is wrong with a model as a body and a head, "" where nothing is.

    One after the other on two rows, beside the model's plain forward. A damaged model, whose logits
    are not finite, is left to whoever reads them.
    """
    ids = torch.arange(12, device=input_device(model)).view(2, 6) % vocabulary
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-3}.get(model.dtype, 0.1)
    try:
        plain = model(input_ids=ids, use_cache=False).logits
        split = SplitModel(model)
        mine = split.logits(split.states(ids).flatten(0, 1)).view_as(plain)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        return f"it does not work as a body and a head ({first_line(error)})"
    if not bool(plain.isfinite().all()):
        return ""
    difference = (mine - plain).abs().max()
    if not difference <= tolerance * plain.abs().max().clamp_min(1.0):
        return f"with a body and a head its logits differ by {float(difference):.2g}"
    return ""


def enter_prompts(session: Session, prompts: Texts, responses: Texts) -> Tensor:
    """Let a session read all but the last token of each prompt; returns what is to be read next.

    Reading column t of it, ``[B, longest]``, gives what emits token t of the responses.
    """
    tokens = torch.zeros(len(prompts), max(map(len, responses)), dtype=torch.long)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        read = [prompt[-1], *response[:-1]]
        tokens[row, : len(read)] = torch.tensor(read, dtype=torch.long)
    everyone = torch.arange(len(prompts), device=session.device)
    session.enter(everyone, [prompt[:-1] for prompt in prompts])
    return tokens.to(session.device)


def read_states(
    split: SplitModel, opened: Callable[[int], Session] | None, prompts: Texts, responses: Texts
) -> Tensor:
    """Last hidden states ``[B, longest, H]`` that emit the responses' tokens.

    In one forward where that fits, so that attention needs neither mask nor cache, else piece by
    piece with cached keys and values: ``opened`` gives a session of the body (None: it has no
    cache). On a CPU, where attention may hold all pairs of positions, always piece by piece.
    """
    if opened is None or not _on_cpu(split):
        try:
            return _states_at_once(split, prompts, responses)
        except OutOfMemory:
            if opened is None:
                raise
    session = opened(len(prompts))
    tokens = enter_prompts(session, prompts, responses)
    size = GPU_CHUNK
    if _on_cpu(split):
        size = max(1, min(CHUNK, CPU_PAIRS // tokens.shape[1]))
    states = None
    for start, stop, some in halving(
        tokens.shape[1], size, lambda start, stop: session.read(tokens[:, start:stop])
    ):
        if states is None:
            states = some.new_empty(len(prompts), tokens.shape[1], some.shape[-1])
        states[:, start:stop] = some
    return states


def _on_cpu(split: SplitModel) -> bool:
    return input_device(split.body).type == "cpu"


def _states_at_once(split: SplitModel, prompts: Texts, responses: Texts) -> Tensor:
    texts = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses)]
    longest = max(map(len, responses))

    def read(start: int, stop: int) -> Tensor:
        width = max(map(len, texts[start:stop]))
        padded = [[*text, *[0] * (width - len(text))] for text in texts[start:stop]]
        states = split.states(torch.tensor(padded, device=input_device(split.body)))
        wanted = states.new_zeros(stop - start, longest, states.shape[-1])
        for row, number in enumerate(range(start, stop)):
            first, last = len(prompts[number]) - 1, len(texts[number])
            wanted[row, : last - first] = states[row, first:last]
        return wanted

    parts = [some for _, _, some in halving(len(texts), len(texts), read)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)  # (cat would copy a single one)
