"""A key-value cache written in place.

transformers' ``DynamicCache`` concatenates every layer at every step, which copies the whole cache
for each token. ``PreallocatedLayer`` keeps room to grow, writes new keys and values into it and
hands the model views; dropping rows moves only the rows that fill the gaps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

COMPACT_BELOW = 0.95  # share of rows still running at which callers drop the finished ones
FIRST_ROOM = 128  # positions beyond the prompt that a layer makes room for at first


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values ``[B, heads, length, head_dim]`` inside larger buffers."""

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        self._rows = 0
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._rows = key_states.shape[0]
        capacity = key_states.shape[2] + FIRST_ROOM
        self._key_room = self._buffer(key_states, capacity)
        self._value_room = self._buffer(value_states, capacity)
        self.is_initialized = True

    @staticmethod
    def _buffer(like: Tensor, capacity: int) -> Tensor:
        rows, heads, _, width = like.shape
        return like.new_empty(rows, heads, capacity, width)

    def _grow(self, needed: int) -> None:
        capacity = max(needed, self._key_room.shape[2] * 3 // 2)
        for name in ("_key_room", "_value_room"):
            old = getattr(self, name)[: self._rows]
            new = self._buffer(old, capacity)
            new[:, :, : self._length] = old[:, :, : self._length]
            setattr(self, name, new)

    def _expose(self) -> None:
        self.keys = self._key_room[: self._rows, :, : self._length]
        self.values = self._value_room[: self._rows, :, : self._length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Append ``[B, heads, n, head_dim]`` and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[2]
        if end > self._key_room.shape[2]:
            self._grow(end)
        self._key_room[: self._rows, :, self._length : end] = key_states
        self._value_room[: self._rows, :, self._length : end] = value_states
        self._length = end
        self._expose()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``tokens_to_remove`` positions (given as a negative number, or 0)."""
        if tokens_to_remove > 0:
            raise ValueError("give the number of positions to remove as a negative number")
        self._length += tokens_to_remove
        if self.is_initialized:
            self._expose()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Make row i what row ``indices[i]`` is now; rows may be dropped, moved and repeated.

        Without more rows than before, only those that change are copied.
        """
        if not self.is_initialized:
            return
        indices = indices.to(self.device)
        rows, length = len(indices), self._length
        if rows > self._rows:
            for name in ("_key_room", "_value_room"):
                old = getattr(self, name)
                new = self._buffer(old[:1].expand(rows, -1, -1, -1), old.shape[2])
                new[:, :, :length] = old[indices, :, :length]
                setattr(self, name, new)
        else:
            changed = indices != torch.arange(rows, device=self.device)
            moved = changed.nonzero().squeeze(-1)
            for room in (self._key_room, self._value_room):
                room[moved, :, :length] = room[indices[moved], :, :length]
        self._rows = rows
        self._expose()


def make_cache(config: PreTrainedConfig) -> Cache:
    """An empty cache for a model of this configuration.

    Preallocated where every layer attends to everything; transformers' own where some layers slide
    or keep another kind of state.
    """
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(text, "sliding_window", None) is not None:
        return DynamicCache(config=config)
    return Cache(layers=[PreallocatedLayer() for _ in range(text.num_hidden_layers)])


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
