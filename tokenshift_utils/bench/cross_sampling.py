"""What cross-sampling costs beside plain generation, measured on the machine at hand.

Costs are per emitted token, as a multiple of the primary's own generation at the same batch size in
the same run. Beside each stands the floor of its method: what the models' forwards alone would
cost, K steps of plain generation and one forward of the intervention over K tokens, spread over the
tokens that such a round emits at the switch rate achieved.

Pairs of studies end responses as they do there, and other texts enter; random pairs
write a fixed number of tokens. Rules need both models (JS), with thresholds set for a wanted switch
rate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from tokenshift_utils.bench import harness
from tokenshift_utils.bench.harness import TOP_P, Clock, PolicyPair, PrintedColumn
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.policy import Sampling, stop_ids
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.store.executor import one_thread
from tokenshift_utils.store.progress import Progress

RATES = (0.0, 0.01, 0.04, 0.1)  # shares of switched positions aimed at
BLOCKS = (1, 4, 8, 16, "auto")  # 1: lockstep
QUICK_RATES, QUICK_BLOCKS, QUICK_BATCH = (0.0, 0.04), (1, 8), 8
NEVER = 0.7  # nats, above what JS can be
TRIALS = 6  # to meet a switch rate
CLOSE = 0.15  # relative error at which a switch rate is met
COLUMNS = (
    PrintedColumn("pair", "pair", width="<18"),
    PrintedColumn("device", "device", width="<6"),
    PrintedColumn("batch", "batch", width=">5"),
    PrintedColumn("method", "method", width="<11"),
    PrintedColumn("block", "block", width=">5"),
    PrintedColumn("switch_rate", "switched", ".1%"),
    PrintedColumn("tokens_per_s", "tokens/s", ".0f"),
    PrintedColumn("cost_ratio", "cost", ".2f", ">5"),
    PrintedColumn("floor", "floor", ".2f", ">5"),
)


@dataclass(frozen=True)
class Case:
    """A pair at a batch size: how many responses of at most how many tokens, how often.

    ``fixed`` is the length of those that ``generate`` writes too, all alike.
    """

    pair: str
    device: str
    batch: int
    rows: int
    tokens: int
    fixed: int
    repeats: int


CASES = (
    Case("tiny", "cpu", 16, rows=96, tokens=320, fixed=120, repeats=3),
    Case("smollm2", "cpu", 32, rows=32, tokens=80, fixed=40, repeats=2),
    Case("random-30m", "cpu", 1, rows=2, tokens=192, fixed=64, repeats=3),
    Case("qwen2.5-1.5b-shape", "cuda", 16, rows=16, tokens=384, fixed=64, repeats=1),
    Case("qwen2.5-1.5b-shape", "cuda", 64, rows=64, tokens=384, fixed=64, repeats=1),
    Case("qwen2.5-7b-shape", "cuda", 16, rows=16, tokens=384, fixed=64, repeats=1),
    Case("qwen2.5-7b-shape", "cuda", 64, rows=64, tokens=384, fixed=64, repeats=1),
)


# Measuring --------------------------------------------------------------------------------------


def expected_tokens(block: int, switch_rate: float) -> float:
    """Tokens that a round of ``block`` drafts emits where each position switches by chance.

    The drafts up to the first switch, that one included: (1 - (1 - s)^K) / s.
    """
    if switch_rate <= 0.0:
        return float(block)
    return (1.0 - (1.0 - switch_rate) ** block) / switch_rate


def floor(block: int, switch_rate: float, step: float, forward: float) -> float:
    """Least cost of an emitted token, as a multiple of a plain one.

    ``step`` is the time of a step of plain generation, ``forward`` that of the intervention's
    forward over ``block`` tokens, at the same batch size and in one unit.
    """
    round_cost = (block * step + forward) / (block * step)
    return round_cost * block / expected_tokens(block, switch_rate)


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask ``[B, longest]`` as ``generate`` takes them; padding stands left, 0 in both."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, (torch.arange(width) >= width - lengths[:, None]).long()


class Measurement:
    """One case being measured: what takes turns, and the best time a token of each (``clock``)."""

    def __init__(
        self, case: Case, pair: PolicyPair, progress: Callable[[], Any] = lambda: None
    ) -> None:
        self.case = case
        self.pair = pair
        self.sampling = Sampling(pair.temperature, TOP_P, case.tokens)
        self.keys = list(range(case.rows))
        self.clock = Clock(case.device, progress)

    def plain(self) -> list[list[int]]:
        """Responses of the primary alone, as token ids."""
        pair, stops = self.pair, stop_ids(self.pair.primary, self.pair.intervention)
        drawn = pair.primary.sample(pair.prompts, self.keys, self.sampling, stops, self.case.batch)
        return [response.ids for response in drawn]

    def mixed(self, threshold: float, block: int | str) -> tuple[int, float]:
        """Cross-sample; returns the number of tokens and the share of positions switched."""
        pair, rule = self.pair, Rule("js", threshold)
        given = pair.primary, pair.intervention, pair.prompts, self.keys, rule, self.sampling
        runs, _ = cross_sample(*given, self.case.batch, block=block)
        emitted = sum(len(run.ids) for run in runs)
        return emitted, sum(run.n_switched for run in runs) / emitted

    def fixed(self) -> int:
        """Write one batch of responses of a fixed length; returns the number of tokens."""
        case, pair = self.case, self.pair
        sampling = Sampling(pair.temperature, TOP_P, case.fixed)
        never = [pair.primary.vocab_size]  # no model draws it
        prompts, keys = pair.prompts[: case.batch], self.keys[: case.batch]
        drawn = pair.primary.sample(prompts, keys, sampling, never, case.batch)
        return sum(len(response.ids) for response in drawn)

    def generate(self, attention: str) -> int:
        """The same number of tokens by transformers' own ``generate``."""
        case, model = self.case, self.pair.primary.model
        settings = GenerationConfig(
            do_sample=True,
            temperature=self.pair.temperature,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=case.fixed,
            eos_token_id=self.pair.primary.vocab_size,
            pad_token_id=0,
        )
        ids, mask = (x.to(model.device) for x in left_pad(self.pair.prompts[: case.batch]))
        before = model.config._attn_implementation
        model.set_attn_implementation(attention)
        try:
            out = model.generate(ids, attention_mask=mask, generation_config=settings)
        finally:
            model.set_attn_implementation(before)
        return out[:, ids.shape[1] :].numel()

    def forward(self, block: int, responses: list[list[int]]) -> None:
        """Time the intervention's forward over ``block`` tokens, along the first responses."""
        batch, policy = self.case.batch, self.pair.intervention
        session = policy.open(batch)
        session.enter(torch.arange(batch, device=session.device), self.pair.prompts[:batch])
        shortest = min(map(len, responses[:batch]))
        tokens = torch.tensor([r[:shortest] for r in responses[:batch]], device=session.device)
        calls = shortest // block

        def feed() -> None:
            for i in range(calls):
                session.read(tokens[:, i * block : (i + 1) * block])

        self.clock.time(("forward", block), feed, lambda _: calls)

    def threshold(self, rate: float, js: np.ndarray) -> float:
        """The JS threshold that switches about the wanted share of positions.

        A quantile of ``js``, that along the primary's own responses, to begin with, then halved
        between until mixed ones meet the share. For 0 it is above ln 2: JS is looked at and never
        there.
        """
        if rate == 0:
            return NEVER
        low, high, level, tried = 0.0, 1.0, rate, []
        for _ in range(TRIALS):
            threshold = float(np.quantile(js, 1.0 - level))
            emitted, achieved = self.mixed(threshold, "auto")
            tried.append((abs(achieved - rate), threshold))
            if tried[-1][0] <= max(CLOSE * rate, 1.0 / emitted):
                break
            low, high = (level, high) if achieved < rate else (low, level)
            level = min(2 * level, (low + high) / 2)
        return min(tried)[1]


def attentions(case: Case) -> tuple[str, ...]:
    """Implementations of attention that ``generate`` is tried with; the faster one counts."""
    return ("eager", "sdpa") if case.device == "cpu" else ("sdpa",)


def measure(
    case: Case,
    pair: PolicyPair,
    rates: Sequence[float],
    blocks: Sequence[int | str],
    progress: Callable[[], Any] = lambda: None,
) -> Iterator[dict]:
    """The rows of ``bench`` of a case, as soon as each is known. ``progress``: see ``Clock``."""
    m = Measurement(case, pair, progress)
    best, sizes = m.clock.best, sorted({block for block in blocks if block != "auto"})

    def row(method, cost, beside, block=None, rate=None, least=None) -> dict:
        where = (case.pair, case.device, case.batch, method, block, rate)
        return harness.filled(COLUMNS, *where, 1.0 / cost, cost / beside, least)

    def count(responses: list[list[int]]) -> int:
        return sum(map(len, responses))

    # 1) plain generation, and transformers' own on one batch of one length
    for _ in range(case.repeats):
        responses = m.clock.time("plain", m.plain, count)
        m.clock.time("plain-fixed", m.fixed, int)
        for attention in attentions(case):
            m.clock.time("generate", partial(m.generate, attention), int)
    yield row("plain-fixed", best["plain-fixed"], best["plain-fixed"])
    yield row("generate", best["generate"], best["plain-fixed"])
    yield row("plain", best["plain"], best["plain"])
    # 2) rate by rate: plain generation, each block's forward alone and each block take turns
    js, switched = harness.js_along(pair, responses, m.sampling, case.batch), {}
    for rate in rates:
        threshold = m.threshold(rate, js)
        for _ in range(case.repeats):
            m.clock.time(("plain", rate), m.plain, count)
            for block in sizes:
                m.forward(block, responses)
            for block in blocks:
                mixed = partial(m.mixed, threshold, block)
                _, switched[block] = m.clock.time((rate, block), mixed, itemgetter(0))
        beside = best["plain", rate]
        for block in blocks:
            achieved = switched[block]
            least = {k: floor(k, achieved, case.batch * beside, best["forward", k]) for k in sizes}
            method = "lockstep" if block == 1 else "block"
            lowest = least[block] if block in least else min(least.values())
            yield row(method, best[rate, block], beside, block, achieved, lowest)


def calls(case: Case, rates: Sequence[float], blocks: Sequence[int | str]) -> int:
    """How often ``measure`` reports progress."""
    alone = 2 + len(attentions(case))
    fixed = sum(block != "auto" for block in blocks)
    return case.repeats * (alone + len(rates) * (1 + fixed + len(blocks)))


# The command ------------------------------------------------------------------------------------


def bench(
    pairs: Sequence[str] = (), batches: Sequence[int] = (), quick: bool = False
) -> Iterator[dict]:
    """Measure cross-sampling on some pairs at some batch sizes, all where none is named.

    ``quick`` measures each thing once, on one small batch of responses half as long, and fewer rates
    and blocks.

    Returns
    -------
    An iterator of one dict a measurement, with the fields of ``COLUMNS``. ``method`` is plain (the primary alone),
    lockstep or block, or plain-fixed and generate (transformers' own): one batch each of responses
    of one length. ``block`` is the drafts a round or "auto"; ``switch_rate`` the share of positions
    switched; ``cost_ratio`` the cost of an emitted token in plain ones (generate's in those of
    plain-fixed); ``floor`` its least by the models' forwards alone, for "auto" that of the best of
    the fixed blocks. None where a column has no meaning.
    """
    cases, rates, blocks = harness.select_cases(CASES, pairs, batches), RATES, BLOCKS
    if quick:
        rates, blocks = QUICK_RATES, QUICK_BLOCKS
        sizes = [min(case.batch, QUICK_BATCH) for case in cases]
        cases = [
            replace(c, batch=n, rows=n, repeats=1, tokens=c.tokens // 2, fixed=c.fixed // 2)
            for c, n in zip(cases, sizes)
        ]
    return _measure_all(cases, rates, blocks)


def _measure_all(cases: list[Case], rates, blocks) -> Iterator[dict]:
    total = sum(calls(case, rates, blocks) for case in cases)
    with one_thread(), Progress(total, "call", "bench") as progress:
        for case in cases:
            progress.now(f"{case.pair}, batch {case.batch}")
            try:
                pair = harness.make_pair(case.pair, case.device, case.rows)
                yield from measure(case, pair, rates, blocks, progress.advance)
            except TokenshiftError as missing:
                if len({case.pair for case in cases}) == 1:
                    raise
                progress.say(f"{case.pair} is left out: {missing}")
            except torch.OutOfMemoryError:
                progress.say(f"{case.pair} at batch {case.batch} needs more GPU memory: left out")
