"""The Policy protocol on transformers: any causal language model, through its own forward."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tokenshift_utils.decoding import check_prompts, generate
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.fingerprints import check_model_directory, directory_fingerprint
from tokenshift_utils.kv_cache import RaggedCache, attention_mask, attention_windows
from tokenshift_utils.policy import Continuation, Sampling, Session
from tokenshift_utils.teacher_forcing import (
    CHUNK,
    SplitModel,
    enter_prompts,
    input_device,
    read_states,
    split_fault,
)
from tokenshift_utils.tokenizer_checks import check_tokenizer, first_line, load_tokenizer

DEFAULT_BATCH = 256
SCORED_LOGITS = 2**26  # logits that `score` holds at once, at most (256 MiB in float32)
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class HFSession:
    """Rows of text in a ragged cache. See ``policy.Session``.

    ``model`` may be the body of one; ``read`` then returns last hidden states in place of logits.
    """

    def __init__(self, model: PreTrainedModel, rows: int, windows: dict[str, int | None]) -> None:
        self._model = model
        self._has_head = model.get_output_embeddings() is not None
        self._cache = RaggedCache(model.config, rows)
        self._windows = windows
        self._longest = 0  # at least the length of every row
        self.device = input_device(model)
        self.length = torch.zeros(rows, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def enter(self, rows: Tensor, texts: Sequence[Sequence[int]]) -> None:
        """Give ``rows`` these texts. One that several rows get, as samples do, is read once."""
        self.length[rows] = 0
        place = {text: i for i, text in enumerate(dict.fromkeys(map(tuple, texts)))}
        which = torch.tensor([place[tuple(text)] for text in texts], device=self.device)
        lengths = torch.tensor([len(text) for text in place], device=self.device)
        longest = int(lengths.max())
        if longest == 0:
            return
        of_text = torch.zeros(len(place), dtype=torch.long, device=self.device)
        of_text[which.flip(0)] = torch.arange(len(texts), device=self.device).flip(0)
        readers = rows[of_text]  # the first row of each text
        padded = [[*text, *[0] * (longest - len(text))] for text in place]
        tokens = torch.tensor(padded, device=self.device)
        for start in range(0, longest, CHUNK):
            here = (lengths - start).clamp(0, CHUNK)
            some = here.nonzero().squeeze(-1)
            part = tokens[some, start : start + CHUNK]
            self.read(part, readers[some], here[some], last=True)
        others = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        others[of_text] = False
        self._cache.copy_rows(readers[which[others]], rows[others], longest)
        self.length[rows] = lengths[which]

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
        columns = length[:, None] + order
        place = self._cache.place
        place.rows, place.columns = rows, columns
        place.width = (self._longest if rows is None else int(length.max())) + n
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

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self._model = model
        self.device = input_device(model)
        self.length = torch.zeros(rows, dtype=torch.long, device=self.device)
        self._text = torch.zeros(rows, 0, dtype=torch.long, device=self.device)

    def _put(self, rows: Tensor, start: Tensor, tokens: Tensor) -> Tensor:
        columns = start[:, None] + torch.arange(tokens.shape[1], device=self.device)
        missing = int(columns.max()) + 1 - self._text.shape[1]
        if missing > 0:
            more = self._text.new_zeros(len(self._text), missing)
            self._text = torch.cat([self._text, more], dim=1)
        self._text[rows[:, None], columns] = tokens
        return columns

    @torch.inference_mode()
    def enter(self, rows: Tensor, texts: Sequence[Sequence[int]]) -> None:
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
        return rows, self.length[rows, None] - 1 if last else columns

    def rewind(self, length: Tensor) -> None:
        """Forget what lies beyond ``length`` [B] in each row."""
        self.length = length.clone()

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows listed, in that order."""
        self.length, self._text = self.length[rows], self._text[rows]


class HFPolicy:
    """A live transformers model and its tokenizer as a policy.

    The model is used as it stands: mode (train or eval), weights and attention implementation are
    the caller's business and may change between calls.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        self.eos_ids = eos_ids(model.config, getattr(model, "generation_config", None), tokenizer)

    @classmethod
    def load(
        cls,
        path: str | Path,
        name: str,
        dtype: str = "float32",
        device: str | None = None,
        device_map: str | dict[str, int | str] | None = None,
        trust_remote_code: bool = False,
    ) -> HFPolicy:
        """Load a local model directory, safetensors only, and check its tokenizer.

        ``dtype`` is the compute dtype: float32, float64 or bfloat16. ``device_map`` spreads the
        model over several devices, see accelerate; ``device`` then only says which kind they are.
        Code that lies beside the weights runs only with ``trust_remote_code``. Raises
        ``TokenshiftError`` where the directory, its weights or its tokenizer are missing or
        damaged.
        """
        directory = Path(path)
        config, fingerprint = (
            load_config(directory, trust_remote_code),
            directory_fingerprint(directory),
        )
        tokenizer = load_tokenizer(directory)
        check_tokenizer(tokenizer, config.get_text_config(decoder=True).vocab_size, directory)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # On a CPU one token at a time, eager attention is the faster; in float64 only sdpa computes
        # its softmax in float64.
        attention = "eager" if device == "cpu" and dtype == "float32" else "sdpa"
        try:
            with _no_progress_bars():
                model, report = AutoModelForCausalLM.from_pretrained(
                    directory,
                    dtype=DTYPES[dtype],
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=trust_remote_code,
                    attn_implementation=attention,
                    device_map=device_map,
                    output_loading_info=True,
                )
        except Exception as error:
            cause = "its files may be damaged: fetch or train it again"
            if device_map is not None:
                cause = f"{cause}, or 'device_map' does not fit it"
            raise TokenshiftError(
                f"the model in {directory} cannot be loaded ({first_line(error)}); {cause}"
            ) from error
        absent = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
        if absent:
            raise TokenshiftError(
                f"the weights in {directory} lack or misshape {len(absent)} tensors, the first "
                f"{absent[0]}; the directory is incomplete: fetch or train it again"
            )
        if device_map is None:
            model = model.to(device)
        policy = cls(model.eval(), tokenizer, name)
        policy.fingerprint = fingerprint
        return policy

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, configuration and tokenizer; of the files, where it was loaded."""
        digest = hashlib.sha256(json.dumps(self.model.config.to_dict(), default=str).encode())
        digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def open(self, rows: int) -> Session:
        """A session of so many rows without text."""
        if self._windows is None:
            return UncachedSession(self.model, rows)
        return HFSession(self.model, rows, self._windows)

    @cached_property
    def _windows(self) -> dict[str, int | None] | None:
        """How the model's layers look back; None where it must read every text anew.

        Found by trial, since a model may take a mask and a cache and make other use of them.
        """
        windows = attention_windows(self.model.config)
        fault = "its layers keep a state that has no positions"
        if windows is not None:
            fault = _cache_fault(self.model, windows, self.vocab_size)
        if fault:
            warnings.warn(
                f"{self.name} ({self.model.config.model_type}) reads every text anew, which is "
                f"slow: {fault}",
                stacklevel=2,
            )
            return None
        return windows

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_keys: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        first: Sequence[int] | None = None,
    ) -> list[Continuation]:
        """One response a prompt, in the order given. See ``policy.Policy``."""
        stops = self.eos_ids if stop_ids is None else tuple(stop_ids)
        size = batch_size or DEFAULT_BATCH
        return generate(self, prompts, row_keys, sampling, stops, size, first)

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        block: int = 256,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Teacher-forced logits by blocks of response positions. See ``policy.Policy``.

        The prompt fills the cache and gives position 0; then each block of the response is one
        forward, so that never more than ``SCORED_LOGITS`` logits are held.
        """
        check_prompts(prompts, responses=responses)
        longest = max((len(response) for response in responses), default=0)
        if not longest:
            return
        block = max(1, min(block, SCORED_LOGITS // (len(prompts) * self.vocab_size)))
        session = self.open(len(prompts))
        tokens = enter_prompts(session, prompts, responses)
        for start in range(0, longest, block):
            stop = min(start + block, longest)
            yield slice(start, stop), session.read(tokens[:, start:stop])

    @torch.inference_mode()
    def scorer(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Teacher forcing on hidden states that are kept. See ``policy.KeepsStates``."""
        check_prompts(prompts, responses=responses)
        if not self._is_split:
            return None
        split, windows = SplitModel(self.model), self._windows
        opened = None if windows is None else partial(HFSession, split.body, windows=windows)
        states = read_states(split, opened, prompts, responses)

        @torch.inference_mode()
        def logits(rows: Tensor, positions: Tensor) -> Tensor:
            return split.logits(states[rows.to(states.device), positions.to(states.device)])

        return logits

    @cached_property
    def _is_split(self) -> bool:
        """Whether the model is a body and a head, found by trial."""
        fault = split_fault(self.model, self.vocab_size)
        if fault:
            warnings.warn(
                f"{self.name} ({self.model.config.model_type}) is scored by whole forwards, whose "
                f"logits take more memory: {fault}",
                stacklevel=2,
            )
        return not fault


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
            whole = torch.tensor([texts[row] + ids[row, 3 : 3 + count].tolist()])
            with torch.inference_mode():
                plain = model(input_ids=whole.to(device), use_cache=False).logits[0, -count:]
            if not bool(plain.isfinite().all()):
                return ""  # a damaged model, as whoever reads its logits will say
            difference = (mine[row, :count] - plain).abs().max()
            if not difference <= tolerance * plain.abs().max().clamp_min(1.0):
                return f"with cached keys and values its logits differ by {float(difference):.2g}"
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        return f"it does not work with a cache of ours ({first_line(error)})"
    return ""


def eos_ids(
    config: PreTrainedConfig,
    generation: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, ...]:
    """Every id that ends a response: by both configurations (or None) and by the tokenizer."""
    named = [config.get_text_config(decoder=True).eos_token_id, tokenizer.eos_token_id]
    named.append(generation.eos_token_id if generation is not None else None)
    ids: set[int] = set()
    for value in named:
        ids.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return tuple(sorted(int(i) for i in ids))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Load without transformers' bar: a tiny model is there at once."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_config(directory: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A model directory's configuration; refuses what is missing or cannot be read."""
    check_model_directory(directory)
    try:
        return AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (ValueError, KeyError, OSError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise TokenshiftError(
                f"the model in {directory} needs code that lies beside it, which is not run: read "
                "it, and where you trust it say 'trust_remote_code: true' of the model in the study"
            ) from None
        raise TokenshiftError(
            f"{directory}/config.json cannot be read ({first_line(error)}); fetch or train it again"
        ) from error


def model_ends(directory: Path) -> tuple[int, ...]:
    """Ids of the tokens that end a model's response, read without its weights."""
    generation = None
    if (directory / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return eos_ids(load_config(directory), generation, load_tokenizer(directory))
