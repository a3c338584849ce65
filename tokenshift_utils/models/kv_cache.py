"""A key-value cache whose rows go on independently of each other.

transformers' ``DynamicCache`` gives all rows one length and copies itself at every token. Here each
row has a length of its own: a forward writes each token at the row and column that ``Place`` names,
into buffers with room to grow, and attends to what lies at or before its own column. Forgetting the
end of a row is then a matter of a smaller length, and a row can be given another text while the
others hold theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

FIRST_ROOM = 128  # columns that a layer makes room for at first


@dataclass
class Place:
    """Where the forward under way writes, shared by all layers of a cache."""

    rows: Tensor | slice | None = None  # rows of the cache that take part; None: all, in order
    columns: Tensor | None = None  # int64 [b, n]
    width: int = 0  # columns that are attended to
    total: int = 0  # rows of the cache


class RaggedLayer(DynamicLayer):
    """One layer's keys and values, ``[rows, heads, columns, head_dim]``."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self.rooms: list[Tensor] = []  # keys and values; none before the first forward

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        columns = self._place.width + FIRST_ROOM
        self.rooms = [self._room(states, columns) for states in (key_states, value_states)]
        self.is_initialized = True

    def _room(self, like: Tensor, columns: int) -> Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros(self._place.total, heads, columns, width)  # (junk times 0 may be NaN)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write ``[b, heads, n, head_dim]`` at the place named; return the rows up to its width."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self._place
        if place.width > self.rooms[0].shape[2]:
            self._grow(max(place.width, self.rooms[0].shape[2] * 3 // 2))
        rows = slice(None) if place.rows is None else place.rows  # (a slice is read without a copy)
        columns = place.columns.to(self.device)
        if isinstance(rows, slice):
            start = rows.start or 0
            at = torch.arange(start, start + len(key_states), device=self.device)
        else:
            rows = at = rows.to(self.device)
        for room, states in zip(self.rooms, (key_states, value_states)):
            if states.shape[2] == 1:
                room[at, :, columns[:, 0]] = states[:, :, 0]
            else:
                room[at[:, None], :, columns] = states.transpose(1, 2)
        self.keys, self.values = (room[rows, :, : place.width] for room in self.rooms)
        return self.keys, self.values

    def _grow(self, columns: int) -> None:
        for i, old in enumerate(self.rooms):
            new = self._room(old, columns)
            new[:, :, : old.shape[2]] = old
            self.rooms[i] = new

    def get_seq_length(self) -> int:
        return self._place.width


class RaggedCache(Cache):
    """A ``RaggedLayer`` for each layer of a model, and the place they share."""

    def __init__(self, config: PreTrainedConfig, rows: int) -> None:
        self.place = Place(total=rows)
        number = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[RaggedLayer(self.place) for _ in range(number)])

    @property
    def _rooms(self) -> list[Tensor]:
        return [room for layer in self.layers for room in layer.rooms]

    def copy_rows(self, source: Tensor, target: Tensor, width: int) -> None:
        """Give the rows ``target`` what the rows ``source`` hold in their first columns."""
        for room in self._rooms:
            room[target.to(room.device), :, :width] = room[source.to(room.device), :, :width]

    def copy_of(self, row: Tensor, width: int) -> list[Tensor]:
        """A copy of the first columns of a row, ``[heads, width, head_dim]`` each."""
        return [room[row.to(room.device), :, :width].clone() for room in self._rooms]

    def put(self, states: list[Tensor], rows: Tensor, width: int) -> None:
        """Give ``rows`` the first columns of what ``copy_of`` returned."""
        for room, some in zip(self._rooms, states, strict=True):
            room[rows.to(room.device), :, :width] = some[:, :width]

    def keep_rows(self, order: Tensor, width: int) -> None:
        """Keep only the rows listed, in that order; rows that stay where they are cost nothing."""
        moved = (order != torch.arange(len(order), device=order.device)).nonzero().squeeze(-1)
        self.copy_rows(order[moved], moved, width)
        self.place.total = len(order)
        for layer in self.layers:
            layer.rooms = [room[: len(order)] for room in layer.rooms]


def attention_windows(config: PreTrainedConfig) -> dict[str, int | None] | None:
    """How far back each kind of attention layer looks, in tokens (None: to the start).

    None for a model with layers of another kind (recurrent ones, say), whose state has no columns.
    A model without ``layer_types`` has one kind, here named "all".
    """
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    if types is None:
        return {"all": window}
    windows = {"full_attention": None, "sliding_attention": window}
    kinds = dict.fromkeys(types)
    return {kind: windows[kind] for kind in kinds} if kinds.keys() <= windows.keys() else None


def attention_mask(
    columns: Tensor, width: int, windows: dict[str, int | None], dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What a forward of tokens at ``columns`` [b, n] may look at, ``[b, 1, n, width]``, additive.

    A dict by kind of layer where a model's layers look back differently far.
    """
    there = torch.arange(width, device=columns.device)
    here = columns[:, None, :, None]
    masks = {}
    for kind, window in windows.items():
        hidden = there > here
        if window is not None:
            hidden |= there <= here - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=columns.device)
        masks[kind] = mask.masked_fill_(hidden, torch.finfo(dtype).min)
    return masks if len(masks) > 1 else next(iter(masks.values()))
