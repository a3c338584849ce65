"""What scoring long responses costs beside two bare passes, measured on the machine at hand.

Two random models of one shape read one response. A bare pass is a forward of one model with lm_head
at every position, its logits dropped: on a CPU in blocks, with cached keys and values, whichever
size of block is faster; on a GPU at once. Scoring is ``shifts.score_pair``: both models and all
measures. Each case runs in a process of its own, on one thread, so that no memory is left over from
another. Methods take turns, and each keeps its best time (see ``bench``).
"""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import Qwen2Config

from tokenshift_utils.bench.cross_sampling import (
    SHAPES,
    TOP_P,
    Pair,
    align,
    cases_of,
    random_pair,
    seconds,
)
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.store.executor import one_thread

TOP_K = 10
BARE_BLOCKS = (32, 256)  # positions, on a CPU
# Positions that both models read before anything is measured. On a CPU one, since memory that was
# freed may stay with the process and hide what is needed later; on a GPU kernels are compiled.
WARM_UP = {"cpu": 1, "cuda": 600}
POLL = 0.001  # seconds between two looks at the memory of a process
KEYS = (
    *("pair", "device", "vocabulary", "length", "cost_ratio", "extra_ms_per_position"),
    *("extra_peak_bytes", "body_peak_bytes"),
)


@dataclass(frozen=True)
class Case:
    """A pair of models, and the length of the response that they read."""

    pair: str
    device: str
    length: int
    repeats: int


CASES = (
    Case("small-152k", "cpu", 2048, repeats=3),
    Case("small-152k", "cpu", 8192, repeats=2),
    Case("qwen2.5-1.5b-shape", "cuda", 2048, repeats=5),
    Case("qwen2.5-1.5b-shape", "cuda", 8192, repeats=3),
    Case("qwen2.5-7b-shape", "cuda", 2048, repeats=5),
    Case("qwen2.5-7b-shape", "cuda", 8192, repeats=3),
)


def shape(name: str) -> Any:
    """The configuration of a pair: a small one with a large vocabulary, or one of ``bench``'s."""
    if name == "small-152k":
        return Qwen2Config(
            vocab_size=151_936,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    return SHAPES[name]()


# Measuring --------------------------------------------------------------------------------------


def score(pair: Pair, response: list[int]) -> int:
    """Compare the two models at every position of a response; returns how many there were."""
    sampling = Sampling(pair.temperature, TOP_P)
    policies = pair.primary, pair.intervention
    blocks = score_pair(*policies, pair.prompts, [response], sampling, TOP_K, 1)
    return sum(len(owner) for owner, _ in blocks)


@torch.inference_mode()
def bare(policy: HFPolicy, prompt: list[int], response: list[int], block: int | None) -> None:
    """One model's forward, lm_head at every position, in blocks or at once."""
    if block is None:
        ids = torch.tensor([prompt + response], device=policy.model.device)
        policy.model(input_ids=ids, use_cache=False)
    else:
        for _ in policy.score([prompt], [response], block):
            pass


class Peak:
    """``bytes``: the most memory that a process held within ``peak``, above what it held before."""

    bytes = 0


@contextmanager
def peak(device: str) -> Iterator[Peak]:
    """Watch the memory of a device; on a CPU what of this process is resident, every millisecond."""
    found = Peak()
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        torch.cuda.synchronize()
        found.bytes = torch.cuda.max_memory_allocated() - before
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(POLL):
            found.bytes = max(found.bytes, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def measure(case: Case, pair: Pair, progress: Callable[[], Any] = lambda: None) -> dict:
    """A row of ``bench``. ``progress`` is called once a timed call."""
    policies, prompt = (pair.primary, pair.intervention), pair.prompts[0]
    vocabulary = pair.primary.vocab_size
    generator = torch.Generator().manual_seed(1)
    response = torch.randint(vocabulary, (case.length,), generator=generator).tolist()
    blocks = BARE_BLOCKS if case.device == "cpu" else (None,)
    score(pair, response[: WARM_UP[case.device]])
    with peak(case.device) as whole:
        score(pair, response)
    with peak(case.device) as body:
        kept = [policy.scorer([prompt], [response]) for policy in policies]
        del kept
    progress()
    scoring, passes = [], {block: [] for block in blocks}
    for _ in range(case.repeats):
        scoring.append(seconds(partial(score, pair, response), case.device)[0])
        progress()
        for block in blocks:
            two = [
                seconds(partial(bare, policy, prompt, response, block), case.device)[0]
                for policy in policies
            ]
            passes[block].append(sum(two))
            progress()
    best, two_bare = min(scoring), min(min(taken) for taken in passes.values())
    width = pair.primary.model.config.hidden_size
    hidden = len(policies) * case.length * width * pair.primary.model.dtype.itemsize
    numbers = (
        best / two_bare,
        1000 * (best - two_bare) / case.length,
        whole.bytes - hidden,
        body.bytes - hidden,
    )
    row = (case.pair, case.device, vocabulary, case.length, *numbers)
    return dict(zip(KEYS, row, strict=True))


def calls(case: Case) -> int:
    """How often ``measure`` reports progress."""
    return 1 + case.repeats * (1 + (len(BARE_BLOCKS) if case.device == "cpu" else 1))


def measure_alone(case: Case) -> dict | None:
    """``measure`` on the case's own pair; None where a GPU's memory does not suffice."""
    name = f"{case.pair}, {case.length} tokens"
    with one_thread(), tqdm(total=calls(case), unit="call", desc=name) as bar:
        try:
            return measure(case, random_pair(shape(case.pair), case.device, 1), bar.update)
        except torch.OutOfMemoryError:
            bar.write(f"{name} need more GPU memory: left out")
            return None


# The command ------------------------------------------------------------------------------------


def chosen_cases(pairs: Sequence[str] = ()) -> list[Case]:
    """The cases of some pairs, all where none is named, without those that have no device here.

    Raises
    ------
    TokenshiftError
        For a pair that isn't known, and where nothing is left to measure.
    """
    cases = cases_of(CASES, pairs)
    here = [case for case in cases if case.device == "cpu" or torch.cuda.is_available()]
    if not here:
        raise TokenshiftError("there is nothing to measure: they need a CUDA device")
    return here


def bench(pairs: Sequence[str] = ()) -> list[dict]:
    """Measure scoring on some pairs, all where none is named.

    Returns
    -------
    One dict a case, with ``KEYS``: ``cost_ratio`` is the time of scoring in those of two bare
    passes, ``extra_ms_per_position`` what it takes beyond them, ``extra_peak_bytes`` the most memory
    it holds beyond the models and their last hidden states, and ``body_peak_bytes`` what of that is
    held already while the bodies alone read the response, one after the other, as bare passes do.
    """
    rows = []
    for case in chosen_cases(pairs):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            rows.append(alone.submit(measure_alone, case).result())
    return [row for row in rows if row is not None]


def render(rows: Sequence[dict]) -> str:
    """Results of ``bench`` as a table of text."""
    lines = [
        ("pair", "device", "vocabulary", "length", "cost", "extra ms", "extra MiB", "body MiB")
    ]
    for row in rows:
        numbers = (
            f"{row['cost_ratio']:.2f}",
            f"{row['extra_ms_per_position']:.3f}",
            f"{row['extra_peak_bytes'] / 2**20:.0f}",
            f"{row['body_peak_bytes'] / 2**20:.0f}",
        )
        counts = str(row["vocabulary"]), str(row["length"])
        lines.append((row["pair"], row["device"], *counts, *numbers))
    return align(lines, left=(0, 1))
