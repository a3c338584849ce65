"""What scoring long responses costs beside two bare passes, measured on the machine at hand.

Two random models of one shape read one response. A bare pass is a forward of one model with lm_head
at every position, its logits dropped: on a CPU in blocks, with cached keys and values, whichever
size of block is faster; on a GPU at once. Scoring is ``compare.score_pair``: both models and all
measures. Each case runs in a process of its own, on one thread, so that no memory is left over from
another.
"""

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil
import torch

from tokenshift_utils.bench import harness
from tokenshift_utils.bench.harness import TOP_P, Clock, PolicyPair, PrintedColumn
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.store.executor import one_thread
from tokenshift_utils.store.progress import Progress, repeating

TOP_K = 10
BARE_BLOCKS = (32, 256)  # positions, on a CPU
# Positions that both models read before anything is measured. On a CPU one, since memory that was
# freed may stay with the process and hide what is needed later; on a GPU kernels are compiled.
WARM_UP = {"cpu": 1, "cuda": 600}
POLL = 0.001  # seconds between two looks at the memory of a process
COLUMNS = (
    PrintedColumn("pair", "pair", width="<18"),
    PrintedColumn("device", "device", width="<6"),
    PrintedColumn("vocabulary", "vocabulary", width=">10"),
    PrintedColumn("length", "length", width=">6"),
    PrintedColumn("cost_ratio", "cost", ".2f", ">5"),
    PrintedColumn("extra_ms_per_position", "extra ms", ".3f"),
    PrintedColumn("extra_peak_bytes", "extra MiB", ".0f", ">9", 2**-20),
    PrintedColumn("body_peak_bytes", "body MiB", ".0f", scale=2**-20),
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


# Measuring --------------------------------------------------------------------------------------


def score(pair: PolicyPair, response: list[int]) -> int:
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
    process = psutil.Process()
    before = process.memory_info().rss

    def look() -> None:
        found.bytes = max(found.bytes, process.memory_info().rss - before)

    with repeating(look, POLL):
        yield found


def measure(case: Case, pair: PolicyPair, progress: Callable[[], Any] = lambda: None) -> dict:
    """A row of ``bench``. ``progress`` is called once a timed call."""
    policies, prompt = (pair.primary, pair.intervention), pair.prompts[0]
    vocabulary = pair.primary.vocab_size
    generator = torch.Generator().manual_seed(1)
    response = torch.randint(vocabulary, (case.length,), generator=generator).tolist()
    blocks = BARE_BLOCKS if case.device == "cpu" else (None,)
    score(pair, response[: WARM_UP[case.device]])
    with peak(case.device) as full:
        score(pair, response)
    with peak(case.device) as body:
        kept = [policy.scorer([prompt], [response]) for policy in policies]
        del kept
    progress()

    def bare_passes(block: int | None) -> None:
        for policy in policies:
            bare(policy, prompt, response, block)

    clock = Clock(case.device, progress)
    for _ in range(case.repeats):
        clock.time("score", partial(score, pair, response))
        for block in blocks:
            clock.time(block, partial(bare_passes, block))
    best = clock.best.pop("score")
    two_bare = min(clock.best.values())
    width = pair.primary.model.config.hidden_size
    hidden = len(policies) * case.length * width * pair.primary.model.dtype.itemsize
    return harness.filled(
        *(COLUMNS, case.pair, case.device, vocabulary, case.length),
        *(best / two_bare, 1000 * (best - two_bare) / case.length),
        *(full.bytes - hidden, body.bytes - hidden),
    )


def calls(case: Case) -> int:
    """How often ``measure`` reports progress."""
    return 1 + case.repeats * (1 + (len(BARE_BLOCKS) if case.device == "cpu" else 1))


def measure_alone(case: Case) -> dict | None:
    """``measure`` on the case's own pair; None where a GPU's memory does not suffice."""
    name = f"{case.pair}, {case.length} tokens"
    with one_thread(), Progress(calls(case), "call", name) as progress:
        try:
            return measure(case, harness.make_pair(case.pair, case.device, 1), progress.advance)
        except torch.OutOfMemoryError:
            progress.say(f"{name} need more GPU memory: left out")
            return None


# The command ------------------------------------------------------------------------------------


def bench(pairs: Sequence[str] = (), quick: bool = False) -> Iterator[dict]:
    """Measure scoring on some pairs, all where none is named.

    ``quick`` measures the shortest responses of each pair, once.

    Returns
    -------
    An iterator of one dict a case, with the fields of ``COLUMNS``: ``cost_ratio`` is the time of scoring in those of
    two bare passes, ``extra_ms_per_position`` what it takes beyond them, ``extra_peak_bytes`` the
    most memory it holds beyond the models and their last hidden states, and ``body_peak_bytes`` what
    of that is held already while the bodies alone read the response, one after the other, as bare
    passes do.
    """
    cases = harness.select_cases(CASES, pairs)
    if quick:
        least = min(case.length for case in cases)
        cases = [replace(case, repeats=1) for case in cases if case.length == least]
    return _measure_all(cases)


def _measure_all(cases: list[Case]) -> Iterator[dict]:
    for case in cases:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            row = alone.submit(measure_alone, case).result()
        if row is not None:
            yield row
