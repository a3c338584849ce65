"""How much is computed at once: as much as memory allows, and half of it where it did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import psutil
import torch

from tokenshift_utils.errors import TokenshiftError

EXTRA = 13 * 2**26  # bytes, 0.8 GiB: that much comparing takes beyond models and hidden states
ARRAYS = 6  # of positions x vocabulary that it holds at once, about
CPU_LOGITS = 2**23  # logits of a model at once on a CPU: more of them gain no speed

T = TypeVar("T")


class OutOfMemory(TokenshiftError):
    """Not even the smallest piece of a computation fits."""


def available(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    return psutil.virtual_memory().available


def positions_at_once(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Positions at which two models of a vocabulary are compared at once, at least 1.

    Half of the memory there is, and ``EXTRA`` at most. ``dtype`` is the models'; what is narrower
    than float32 is compared in float32.
    """
    each = vocabulary * ARRAYS * max(4, dtype.itemsize)
    fitting = min(EXTRA, available(device) // 2) // each
    if device.type == "cpu":
        fitting = min(fitting, CPU_LOGITS // vocabulary)
    return max(1, fitting)


def halving(total: int, size: int, work: Callable[[int, int], T]) -> Iterator[tuple[int, int, T]]:
    """Yield ``(start, stop, work(start, stop))`` over 0 to ``total`` in pieces of at most ``size``.

    Where the device is out of memory the piece is tried again at half its size, and so are all
    that follow; ``work`` must bear being called again. Raises ``OutOfMemory`` where not even a
    piece of 1 fits.
    """
    start = 0
    while start < total:
        stop, done = min(start + size, total), []
        try:
            done.append(work(start, stop))
        except torch.OutOfMemoryError as error:
            if stop - start == 1:
                raise OutOfMemory(
                    "the device's memory does not suffice to score these responses even piece by "
                    "piece; lower the study's 'batch.score', or spread the models over devices "
                    "with its 'device_map'"
                ) from error
        if not done:  # (out of the except clause, which keeps hold of what was allocated)
            size = (stop - start) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield start, stop, done.pop()
        start = stop
