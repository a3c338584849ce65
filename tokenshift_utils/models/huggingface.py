"""The Policy protocol on transformers: any causal language model, through its own forward.

The backend ``transformers`` of a study; the last few policies stay loaded.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.models.adapters import load_adapter
from tokenshift_utils.models.attention import group_queries
from tokenshift_utils.models.decoding import check_positions, check_prompts, generate
from tokenshift_utils.models.kv_cache import attention_windows
from tokenshift_utils.models.memory import keep_last
from tokenshift_utils.models.policy import Continuation, Sampling, Session, Texts
from tokenshift_utils.models.sessions import HFSession, UncachedSession, _cache_fault
from tokenshift_utils.models.teacher_forcing import (
    SplitModel,
    enter_prompts,
    read_states,
    split_fault,
)
from tokenshift_utils.study.checkpoints import directory_fingerprint, is_adapter, load_config
from tokenshift_utils.study.positions import position_limit
from tokenshift_utils.study.tokenizers import check_tokenizer, eos_ids, load_tokenizer
from tokenshift_utils.study.weights import check_files, check_loaded, quiet_loading

if TYPE_CHECKING:
    from tokenshift_utils.study.study import Study

DEFAULT_BATCH = 256
SCORED_LOGITS = 2**26  # logits that `score` holds at once, at most (256 MiB in float32)
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class HFPolicy:
    """A live transformers model and its tokenizer as a policy.

    The model is used as it stands: mode (train or eval), weights and attention implementation are
    the caller's business and may change between calls.
    """

    top_logprobs = -1
    draws_inside = False
    keeps_states = True
    directory: Path | None = None  # where it was loaded from

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
        config = load_config(directory, trust_remote_code)
        fingerprint = directory_fingerprint(directory)
        check_files(directory)
        tokenizer = load_tokenizer(directory)
        check_tokenizer(tokenizer, config.get_text_config(decoder=True).vocab_size, directory)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # On a CPU one token at a time, eager attention is the faster; in float64 only sdpa computes
        # its softmax in float64.
        attention = "eager" if device == "cpu" and dtype == "float32" else "sdpa"
        try:
            with quiet_loading():
                model, report = AutoModelForCausalLM.from_pretrained(
                    directory,
                    dtype=DTYPES[dtype],
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=trust_remote_code,
                    attn_implementation=attention,
                    device_map=device_map,
                    ignore_mismatched_sizes=True,  # (they are reported, and refused)
                    output_loading_info=True,
                )
        except Exception as error:
            cause = "its files may be damaged: fetch or train it again"
            if device_map is not None:
                cause = f"{cause}, or 'device_map' does not fit it"
            raise TokenshiftError(
                f"the model in {directory} cannot be loaded ({first_line(error)}); {cause}"
            ) from error
        check_loaded(model, report, directory)
        if attention == "eager":
            group_queries(model)
        if device_map is None:
            model = model.to(device)
        policy = cls(model.eval(), tokenizer, name)
        policy.fingerprint, policy.directory = fingerprint, directory
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
            return UncachedSession(self.model, rows, self.positions)
        return HFSession(self.model, rows, self._windows, self.positions)

    @cached_property
    def positions(self) -> int | None:
        """How many tokens a text may have; None where any number can be read."""
        return position_limit(self.model)

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
        prompts: Texts,
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
        self, prompts: Texts, responses: Texts, block: int = 256
    ) -> Iterator[tuple[slice, Tensor]]:
        """Teacher-forced logits by blocks of response positions. See ``policy.Policy``.

        The prompt fills the cache and gives position 0; then each block of the response is one
        forward, so that never more than ``SCORED_LOGITS`` logits are held.
        """
        self._check_given(prompts, responses)
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
    def scorer(self, prompts: Texts, responses: Texts) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Teacher forcing on hidden states that are kept. See ``policy.KeepsStates``."""
        self._check_given(prompts, responses)
        if not self._is_split:
            return None
        split, windows = SplitModel(self.model), self._windows
        settings = {"windows": windows, "positions": self.positions}
        opened = None if windows is None else partial(HFSession, split.body, **settings)
        states = read_states(split, opened, prompts, responses)

        @torch.inference_mode()
        def logits(rows: Tensor, positions: Tensor) -> Tensor:
            return split.logits(states[rows.to(states.device), positions.to(states.device)])

        return logits

    def _check_given(self, prompts: Texts, responses: Texts) -> None:
        check_prompts(prompts, responses=responses)
        check_positions(self, prompts, [len(response) for response in responses])

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


def load(study: Study, model_name: str) -> HFPolicy:
    """The policy of a model or checkpoint of the study. See ``load.load_policy``.

    One whose files have changed since is loaded again. A PEFT adapter goes on the base model, which
    is loaded once for both.
    """
    path, trusted = study.model_path(model_name), study.model(model_name).trust_remote_code
    if is_adapter(path):
        try:
            return load_adapter(load(study, study.base), path, model_name)
        except TokenshiftError:
            _loaded.forget()  # (the base may not be what it was)
            raise
    placed, fingerprint = json.dumps(study.device_map), directory_fingerprint(path)
    return _loaded(path, model_name, study.dtype, placed, trusted, fingerprint)


@keep_last
def _loaded(
    path: Path, name: str, dtype: str, device_map: str, trusted: bool, fingerprint: str
) -> HFPolicy:
    placed = json.loads(device_map)
    return HFPolicy.load(path, name, dtype, device_map=placed, trust_remote_code=trusted)
