"""Sessions of a transformers model: rows of text with a ragged key-value cache, or read again each time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenshift_utils.errors import first_line
from tokenshift_utils.models.kv_cache import RaggedCache, attention_mask
from tokenshift_utils.models.policy import Texts
from tokenshift_utils.models.teacher_forcing import CHUNK, input_device

SHARED = 64  # tokens that prompts must begin with alike for these to be read once


class HFSession:
    """Rows of text in a ragged cache. See ``policy.Session``.

    ``model`` may be the body of one; ``read`` then returns last hidden states in place of logits.
    ``positions`` is how many the model has. A text fits with the token that comes next, so that
    the last one is free; there what only fills a row up is put, where it would lie beyond.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        windows: dict[str, int | None],
        positions: int | None = None,
    ) -> None:
        self._model = model
        self._has_head = model.get_output_embeddings() is not None
        self._cache = RaggedCache(model.config, rows)
        self._windows, self._positions = windows, positions
        self._longest = 0  # at least the length of every row
        # What texts begin with, and its keys and values.
        self._beginning: tuple[tuple[int, ...], list[Tensor]] | None = None
        self.device = input_device(model)
        self.length = torch.zeros(rows, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def enter(self, rows: Tensor, texts: Texts) -> None:
        """Give ``rows`` these texts. One that several rows get, as samples do, is read once."""
        self.length[rows] = 0
        place = {text: i for i, text in enumerate(dict.fromkeys(map(tuple, texts)))}
        given = list(place)  # 1) each distinct text once: what they begin with, then the rest
        which = torch.tensor([place[tuple(text)] for text in texts], device=self.device)
        lengths = torch.tensor([len(text) for text in place], device=self.device)
        longest = int(lengths.max())
        if longest == 0:
            return
        of_text = torch.zeros(len(place), dtype=torch.long, device=self.device)
        of_text[which.flip(0)] = torch.arange(len(texts), device=self.device).flip(0)
        readers = rows[of_text]  # the first row of each text
        padded = [[*text, *[0] * (longest - len(text))] for text in given]
        tokens = torch.tensor(padded, device=self.device)
        shared = self._begin(given, readers)
        self.length[readers] = shared
        for start in range(shared, longest, CHUNK):
            here = (lengths - start).clamp(0, CHUNK)
            some = here.nonzero().squeeze(-1)
            part = tokens[some, start : start + CHUNK]
            self.read(part, readers[some], here[some], last=True)
        others = torch.ones(len(rows), dtype=torch.bool, device=self.device)  # 2) copied
        others[of_text] = False
        self._cache.copy_rows(readers[which[others]], rows[others], longest)
        self.length[rows] = lengths[which]
        self._longest = max(self._longest, longest)

    def _begin(self, texts: Sequence[tuple[int, ...]], rows: Tensor) -> int:
        """Give ``rows`` what all their texts begin with, the same instructions and examples say.

        It is read once and kept for texts that come later. Returns how many tokens that is.
        """
        if self._beginning is None and len(texts) > 1:
            shared = _shared(texts)
            if shared >= SHARED:
                first = torch.tensor([texts[0][:shared]], device=self.device)
                for start in range(0, shared, CHUNK):
                    self.read(first[:, start : start + CHUNK], rows[:1], last=True)
                self._beginning = texts[0][:shared], self._cache.copy_of(rows[0], shared)
        if self._beginning is None:
            return 0
        tokens, states = self._beginning
        shared = _shared([tokens, *texts])
        if shared < SHARED:
            return 0
        self._cache.put(states, rows, shared)
        return shared

    @torch.inference_mode()
    def read(
        self,
        tokens: Tensor,
        rows: Tensor | slice | None = None,
        counts: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Read ``tokens`` [b, n]; see ``policy.Session``."""
        n = tokens.shape[1]
        length = self.length if rows is None else self.length[rows]
        order = torch.arange(n, device=self.device).expand(len(tokens), n)
        if last and counts is not None:
            # Every row's last token comes last, so that logits are made for one column only; what
            # fills the row up goes behind it in the cache, where nothing looks.
            order = (order - (n - counts)[:, None]) % n
            tokens = tokens.gather(1, order)
        columns = _within(length[:, None] + order, self._positions)
        place = self._cache.place
        place.rows, place.columns = rows, columns
        place.width = (self._longest if rows is None else int(length.max())) + n
        if self._positions is not None:
            place.width = min(place.width, self._positions)
        kept = {"logits_to_keep": 1 if last else n} if self._has_head else {}
        output = self._model(
            input_ids=tokens,
            attention_mask=attention_mask(columns, place.width, self._windows, self._model.dtype),
            position_ids=columns,
            past_key_values=self._cache,
            use_cache=True,
            **kept,
        )
        new = length + (n if counts is None else counts)
        if rows is None:
            self.length = new
        else:
            self.length[rows] = new
        self._longest = max(self._longest, place.width)
        return output[0]

    def rewind(self, length: Tensor) -> None:
        """Forget what lies beyond ``length`` [B] in each row."""
        self.length = length.clone()
        self._longest = int(length.max())

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """Keep only the rows listed, in that order."""
        length = self.length[rows]
        moved = rows != torch.arange(len(rows), device=self.device)
        self._cache.keep_rows(rows, int((length * moved).max()))
        self.length, self._longest = length, int(length.max())


class UncachedSession:
    """Rows of text read anew from the start every time: slow, and right for any causal model.

    For models whose state cannot be cut (recurrent layers) or that take no mask of the caller's.
    """

    def __init__(self, model: PreTrainedModel, rows: int, positions: int | None = None) -> None:
        self._model, self._positions = model, positions
        self.device = input_device(model)
        self.length = torch.zeros(rows, dtype=torch.long, device=self.device)
        self._text = torch.zeros(rows, 0, dtype=torch.long, device=self.device)

    def _put(self, rows: Tensor, start: Tensor, tokens: Tensor) -> Tensor:
        columns = start[:, None] + torch.arange(tokens.shape[1], device=self.device)
        missing = int(columns.max()) + 1 - self._text.shape[1]
        if missing > 0:
            self._text = torch.nn.functional.pad(self._text, (0, missing))
        self._text[rows[:, None], columns] = tokens
        return columns

    @torch.inference_mode()
    def enter(self, rows: Tensor, texts: Texts) -> None:
        """Give ``rows`` these texts; they are read when more is."""
        for row, text in zip(rows, texts):
            if len(text):
                ids = torch.tensor([list(text)], device=self.device)
                self._put(row[None], torch.zeros_like(row[None]), ids)
            self.length[row] = len(text)

    @torch.inference_mode()
    def read(
        self,
        tokens: Tensor,
        rows: Tensor | slice | None = None,
        counts: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Read ``tokens`` [b, n]; see ``policy.Session``."""
        rows, columns = self._take(tokens, rows, counts, last)
        wanted, where = torch.unique(columns, return_inverse=True)
        logits = self._model(  # padding stands right, where a causal model cannot see it
            input_ids=self._text[rows, : int(wanted[-1]) + 1],
            use_cache=False,
            logits_to_keep=wanted,
        ).logits
        return logits[torch.arange(len(rows), device=self.device)[:, None], where]

    def _take(
        self, tokens: Tensor, rows: Tensor | slice | None, counts: Tensor | None, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Put what ``read`` is given behind the texts; the rows, and the columns asked about."""
        if rows is None or isinstance(rows, slice):
            rows = torch.arange(len(self.length), device=self.device)[rows or slice(None)]
        columns = self._put(rows, self.length[rows], tokens)
        self.length[rows] += tokens.shape[1] if counts is None else counts
        return rows, self.length[rows, None] - 1 if last else _within(columns, self._positions)

    def rewind(self, length: Tensor) -> None:
        """Forget what lies beyond ``length`` [B] in each row."""
        self.length = length.clone()

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows listed, in that order."""
        self.length, self._text = self.length[rows], self._text[rows]


def _cache_fault(model: PreTrainedModel, windows: dict[str, int | None], vocabulary: int) -> str:
    """What is wrong with the ragged cache on this model, "" where nothing is.

    Two rows of different lengths go through what sessions do, beside the model's plain forward.
    """
    device = input_device(model)
    ids = torch.arange(12, device=device).view(2, 6) % vocabulary
    texts, both = [ids[0, :2].tolist(), ids[1, :3].tolist()], torch.arange(2, device=device)
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-3}.get(model.dtype, 0.1)
    try:
        session = HFSession(model, 2, windows)
        session.enter(both, texts)
        session.read(ids.flip(0)[:, :2])
        session.rewind(torch.tensor([2, 3], device=device))
        mine = session.read(ids[:, 3:], both, torch.tensor([2, 3], device=device))
        for row, count in enumerate((2, 3)):
            text = torch.tensor([texts[row] + ids[row, 3 : 3 + count].tolist()])
            with torch.inference_mode():
                plain = model(input_ids=text.to(device), use_cache=False).logits[0, -count:]
            if not bool(plain.isfinite().all()):
                return ""  # a damaged model, as whoever reads its logits will say
            difference = (mine[row, :count] - plain).abs().max()
            if not difference <= tolerance * plain.abs().max().clamp_min(1.0):
                return f"with cached keys and values its logits differ by {float(difference):.2g}"
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        return f"it does not work with a cache of ours ({first_line(error)})"
    return ""


def _shared(texts: Sequence[tuple[int, ...]]) -> int:
    """With how many tokens all texts begin alike."""
    first, last = min(texts), max(texts)  # (the two furthest apart in the order of tokens)
    alike = zip(first, last)
    return next((i for i, (a, b) in enumerate(alike) if a != b), min(len(first), len(last)))


def _within(columns: Tensor, positions: int | None) -> Tensor:
    """Columns of tokens, those that no position is left for at the last one: they mean nothing."""
    return columns if positions is None else columns.clamp_max(positions - 1)
