"""The package's own draws inside vLLM: a logits processor, which vLLM loads by name.

vLLM's sampler has noise of its own, restarted by every request. So a request draws greedily here,
and this processor leaves it nothing to choose: the token is the one that the package's noise draws
at that position (``noise``, ``nucleus``), or one that is given. Log-probabilities that vLLM returns
are those of the model, from before any processor. That makes an engine's responses those of the
transformers policy up to rounding, gives every request noise of its own (its row key), and lets two
engines share it, whatever is restarted where.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from tokenshift_utils.measures.nucleus import log_softmax32, truncate
from tokenshift_utils.models.vllm_engine import ORDER


class SharedNoise(LogitsProcessor):
    """Puts the token that a request's order asks for.

    An order is ``{"forced": [ids]}``, or ``{"key", "first", "temperature", "top_p"}``: a row key, the
    response position of the request's first token, and the distribution drawn from.
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        self._orders: dict[int, tuple[dict, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they enter, leave and change places in the batch."""

        def enter(params, prompt: list[int] | None, output: list[int]):
            order = (params.extra_args or {}).get(ORDER)
            return None if order is None else (order, output)  # vLLM makes `output` longer

        process_dict_updates(self._orders, batch_update, enter)

    def apply(self, logits: Tensor) -> Tensor:
        """Logits ``[B, V]`` that leave each request with an order one token."""
        chosen: dict[int, int] = {}
        drawn: dict[tuple[float, float], list[tuple[int, int, int]]] = {}
        for row, (order, output) in self._orders.items():
            if "forced" in order:
                chosen[row] = order["forced"][min(len(output), len(order["forced"]) - 1)]
            else:
                kind = order["temperature"], order["top_p"]
                place = row, order["key"], order["first"] + len(output)
                drawn.setdefault(kind, []).append(place)
        for (temperature, top_p), places in drawn.items():
            rows, keys, positions = torch.tensor(places, device=logits.device).T
            nucleus = truncate(log_softmax32(logits[rows], temperature), top_p)
            chosen |= zip(rows.tolist(), nucleus.draw(keys, positions).tolist())
        if chosen:
            rows, tokens = torch.tensor(list(chosen.items()), device=logits.device).T
            logits[rows] = -torch.inf
            logits[rows, tokens] = 0.0
        return logits
