"""The Policy protocol on transformers: any causal language model, through its own forward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.kv_cache import COMPACT_BELOW, fill_gaps, make_cache
from tokenshift_utils.nucleus import log_softmax32, truncate
from tokenshift_utils.policy import Continuation, Sampling
from tokenshift_utils.tokenizer_checks import check_tokenizer, first_line, load_tokenizer

DEFAULT_BATCH = 256
SCORED_LOGITS = 2**26  # logits that `score` holds at once, at most (256 MiB in float32)
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
FINGERPRINTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


class HFSession:
    """Rows of one batch: left-padded prompts, then one token a step. See ``policy.Session``."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._cache = make_cache(model.config)
        # A prompt that stands in several rows, as that of a problem's samples does, is read once.
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        ids, self._mask = left_pad(list(place), model.device)
        self._padded = bool((self._mask == 0).any())
        positions = (self._mask.cumsum(-1) - 1).clamp_min(0)
        self._next = positions[:, -1] + 1
        self.logits = self._forward(ids, positions)
        if len(place) < len(prompts):
            self.keep(torch.tensor([place[tuple(prompt)] for prompt in prompts]).to(model.device))

    @torch.inference_mode()
    def _forward(self, ids: Tensor, positions: Tensor, last: int = 1) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask if self._padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=last,
        )
        return output.logits[:, -1] if last == 1 else output.logits

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Append one token a row, ``[B]``, and return the next-token logits ``[B, V]``."""
        if self._padded:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        self.logits = self._forward(tokens[:, None], self._next[:, None])
        self._next = self._next + 1
        return self.logits

    @torch.inference_mode()
    def extend(self, tokens: Tensor) -> Tensor:
        """Append ``tokens`` [B, n] and return the logits after each, ``[B, n, V]``."""
        rows, n = tokens.shape
        if self._padded:
            self._mask = torch.cat([self._mask, self._mask.new_ones(rows, n)], dim=-1)
        positions = self._next[:, None] + torch.arange(n, device=tokens.device)
        logits = self._forward(tokens, positions, last=n).view(rows, n, -1)
        self._next = self._next + n
        self.logits = logits[:, -1]
        return logits

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """Keep only the rows listed, in that order; a row listed twice is there twice."""
        self._cache.batch_select_indices(rows)
        self._mask, self._next, self.logits = self._mask[rows], self._next[rows], self.logits[rows]


def left_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[B, longest]``, int64; padding stands left and is 0 in both."""
    if not len(sequences) or not all(len(s) for s in sequences):
        raise TokenshiftError("a prompt has no tokens; give every prompt at least one")
    width = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


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
        self.eos_ids = _eos_ids(model, tokenizer)

    @classmethod
    def load(
        cls, path: str | Path, name: str, dtype: str = "float32", device: str | None = None
    ) -> HFPolicy:
        """Load a local model directory, safetensors only, and check its tokenizer.

        ``dtype`` is the compute dtype: float32, float64 or bfloat16. Raises ``TokenshiftError``
        where the directory, its weights or its tokenizer are missing or damaged.
        """
        directory = Path(path)
        config, fingerprint = load_config(directory), directory_fingerprint(directory)
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
                    attn_implementation=attention,
                    output_loading_info=True,
                )
        except Exception as error:
            raise TokenshiftError(
                f"the model in {directory} cannot be loaded ({first_line(error)}); "
                "its files may be damaged: fetch or train it again"
            ) from error
        absent = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
        if absent:
            raise TokenshiftError(
                f"the weights in {directory} lack or misshape {len(absent)} tensors, the first "
                f"{absent[0]}; the directory is incomplete: fetch or train it again"
            )
        policy = cls(model.to(device).eval(), tokenizer, name)
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

    def open(self, prompts: Sequence[Sequence[int]]) -> HFSession:
        """Start a session after ``prompts`` (token ids, none empty)."""
        return HFSession(self.model, prompts)

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        row_keys: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> list[Continuation]:
        """One response a prompt, in the order given. See ``policy.Policy``.

        Rows of like prompt length share a batch; what a row gets does not depend on which.
        """
        if len(prompts) != len(row_keys):
            raise TokenshiftError(f"{len(prompts)} prompts came with {len(row_keys)} row keys")
        stops = torch.tensor(
            self.eos_ids if stop_ids is None else tuple(stop_ids), dtype=torch.long
        )
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out: list[Continuation | None] = [None] * len(prompts)
        size = batch_size or DEFAULT_BATCH
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            keys = torch.tensor([row_keys[i] for i in rows], dtype=torch.long)
            for i, response in zip(
                rows, self._sample([prompts[i] for i in rows], keys, sampling, stops)
            ):
                out[i] = response
        return out

    def _sample(
        self, prompts: list[Sequence[int]], keys: Tensor, sampling: Sampling, stops: Tensor
    ) -> list[Continuation]:
        session = self.open(prompts)
        device, limit, total = session.logits.device, sampling.max_new_tokens, len(prompts)
        keys, stops = keys.to(device), stops.to(device)
        ids = torch.zeros(total, limit, dtype=torch.long, device=device)
        logprobs = torch.zeros(total, limit, dtype=torch.float64, device=device)
        length = torch.full((total,), limit, device=device)
        row = torch.arange(total, device=device)  # which row of the output each session row is
        running = torch.ones(total, dtype=torch.bool, device=device)
        for t in range(limit):
            logp = log_softmax32(session.logits, sampling.temperature)
            tokens = truncate(logp, sampling.top_p).draw(keys, torch.full_like(row, t))
            ids[row, t] = tokens
            logprobs[row, t] = logp.gather(-1, tokens[:, None]).squeeze(-1).to(torch.float64)
            ended = running & torch.isin(tokens, stops)
            length[row[ended]] = t + 1
            running &= ~ended
            alive = int(running.sum())
            if alive == 0 or t + 1 == limit:
                break
            if alive <= COMPACT_BELOW * len(row):
                keep = fill_gaps(running)
                session.keep(keep)
                row, keys, tokens, running = row[keep], keys[keep], tokens[keep], running[keep]
            session.step(tokens)
        stopped = set(stops.tolist())
        responses = []
        for r, n in enumerate(length.tolist()):
            own = ids[r, :n].tolist()
            reason = "eos" if own[-1] in stopped else "length"
            responses.append(Continuation(own, logprobs[r, :n].tolist(), reason))
        return responses

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
        if len(prompts) != len(responses):
            raise TokenshiftError(f"{len(prompts)} prompts came with {len(responses)} responses")
        longest = max((len(response) for response in responses), default=0)
        block = max(1, min(block, SCORED_LOGITS // (max(1, len(prompts)) * self.vocab_size)))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, response in enumerate(responses):
            tokens[row, : len(response)] = torch.tensor(response, dtype=torch.long)
        session = self.open(prompts) if longest else None
        for start in range(0, longest, block):
            stop = min(start + block, longest)
            fed = tokens[:, max(start, 1) - 1 : stop - 1].to(session.logits.device)
            parts = [session.logits[:, None]] if start == 0 else []
            if fed.shape[1]:
                parts.append(session.extend(fed))
            yield slice(start, stop), torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a response: by the configurations and by the tokenizer."""
    generation = getattr(model, "generation_config", None)
    named = [model.config.get_text_config(decoder=True).eos_token_id, tokenizer.eos_token_id]
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


def load_config(directory: Path) -> PreTrainedConfig:
    """A model directory's configuration; refuses what is missing or cannot be read."""
    if not directory.is_dir():
        raise TokenshiftError(
            f"there is no model directory {directory}; correct the path, or train or fetch the model"
        )
    for pattern in ("config.json", "*.safetensors"):
        if not any(directory.glob(pattern)):
            raise TokenshiftError(
                f"the model directory {directory} has no {pattern}; the model is incomplete: "
                "train or fetch it again"
            )
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise TokenshiftError(
            f"{directory}/config.json cannot be read ({first_line(error)}); fetch or train it again"
        ) from error


@lru_cache(maxsize=4096)
def _file_digest(file: Path, size: int, modified_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def directory_fingerprint(directory: str | Path) -> str:
    """sha256 over the names and contents of a model's weights, configuration and tokenizer files."""
    directory = Path(directory)
    files = sorted({f for pattern in FINGERPRINTED for f in directory.glob(pattern)})
    whole = {"config.json"} <= {f.name for f in files} and ".safetensors" in {
        f.suffix for f in files
    }
    if not whole:
        load_config(directory)  # says what is missing
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        content = _file_digest(file.resolve(), status.st_size, status.st_mtime_ns)
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()
