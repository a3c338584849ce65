"""What cross-sampling costs beside plain generation, measured on the machine at hand.

Costs are per emitted token, as a multiple of the primary's own generation at the same batch size in
the same run. Beside each stands the floor of its method: what the models' forwards alone would
cost, K steps of plain generation and one forward of the intervention over K tokens, spread over the
tokens that such a round emits at the switch rate achieved.

The tiny study's pair ends responses as it does in the study, and other texts enter; random pairs
write a fixed number of tokens. Rules need both models (JS), with thresholds set for a wanted switch
rate. Methods take turns, and each keeps its best time, since other processes can only slow a run
down; on a CPU time is the process's own, so that waiting for a turn does not count either.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen2Config

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling, stop_ids
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.store.executor import one_thread
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import load_benchmark

RATES = (0.0, 0.01, 0.04, 0.1)  # shares of switched positions aimed at
BLOCKS = (1, 4, 8, 16, "auto")  # 1: lockstep
QUICK = ((0.0, 0.04), (1, 8, "auto"))  # rates and blocks of a rough table
TOP_P = 0.7
WIDTH = 1.6  # spread of a random model's weights times the root of its hidden size: wide enough
# that attention picks out tokens, or the model would soon repeat itself
SURENESS = 12.0  # spread of a random model's logits over the temperature: entropy below 1 nat
NOISE = 0.001  # of a random pair's tuned model, relative to the spread of each weight matrix
PROMPT = 32  # tokens of a random pair's prompts
NEVER = 0.7  # nats, above what JS can be
TRIALS = 6  # to meet a switch rate
CLOSE = 0.15  # relative error at which a switch rate is met
KEYS = (
    *("pair", "device", "batch", "method", "block"),
    *("switch_rate", "tokens_per_s", "cost_ratio", "floor"),
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


@dataclass(frozen=True)
class Pair:
    """Two policies, prompts for them, and the temperature at which they are sampled."""

    primary: HFPolicy
    intervention: HFPolicy
    prompts: list[list[int]]
    temperature: float


CASES = (
    Case("tiny", "cpu", 16, rows=96, tokens=320, fixed=120, repeats=3),
    Case("random-30m", "cpu", 1, rows=2, tokens=192, fixed=64, repeats=3),
    Case("qwen2.5-1.5b-shape", "cuda", 16, rows=16, tokens=384, fixed=64, repeats=1),
    Case("qwen2.5-1.5b-shape", "cuda", 64, rows=64, tokens=384, fixed=64, repeats=1),
    Case("qwen2.5-7b-shape", "cuda", 16, rows=16, tokens=384, fixed=64, repeats=1),
    Case("qwen2.5-7b-shape", "cuda", 64, rows=64, tokens=384, fixed=64, repeats=1),
)
SHAPES: dict[str, Callable[[], Any]] = {
    "random-30m": lambda: LlamaConfig(
        vocab_size=32_000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
    ),
    "qwen2.5-1.5b-shape": lambda: Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
    ),
    "qwen2.5-7b-shape": lambda: Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
}


# Pairs ------------------------------------------------------------------------------------------


class _NoTokenizer:
    """Prompts of random models are token ids."""

    eos_token_id = None


def tiny_pair(rows: int) -> Pair:
    """The tiny study's base and first RL model, on its last benchmark's problems."""
    study = load_study("tiny")
    primary, intervention = (
        HFPolicy.load(study.model_path(name), name, study.dtype, "cpu")
        for name in (study.base, study.cross_sampling.pairs[0])
    )
    problems = load_benchmark(study, list(study.benchmarks)[-1])
    texts = [study.prompt.template.format(problem=problem.problem) for problem in problems]
    prompts = [primary.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    several = [prompts[i % len(prompts)] for i in range(rows)]
    return Pair(primary, intervention, several, study.sampling.temperature)


def random_pair(config: Any, device: str, rows: int) -> Pair:
    """Random weights of a given shape, and the same with a little noise; bfloat16 on a GPU.

    Input and output embeddings are not tied, since a random model with tied ones only repeats
    itself. The temperature makes the two about as sure as trained models are, and an end that no
    model draws lets responses go on to the limit.
    """
    config.tie_word_embeddings = False
    config.initializer_range = WIDTH / config.hidden_size**0.5
    config.bos_token_id = config.eos_token_id = None
    config._attn_implementation = "eager" if device == "cpu" else "sdpa"
    policies = []
    for name, noise in (("base", 0.0), ("tuned", NOISE)):
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32 if device == "cpu" else torch.bfloat16
            ).eval()
            with torch.no_grad():
                for weight in model.parameters():
                    if noise and weight.dim() > 1:
                        weight += noise * weight.std() * torch.randn_like(weight)
        policies.append(HFPolicy(model, _NoTokenizer(), name))
        policies[-1].eos_ids = (config.vocab_size,)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(config.vocab_size, (rows, PROMPT), generator=generator).tolist()
    with torch.inference_mode():
        some = torch.tensor(prompts[:8], device=device)
        spread = float(policies[0].model(some, logits_to_keep=1).logits.float().std())
    return Pair(*policies, prompts, spread / SURENESS)


def make_pair(case: Case) -> Pair:
    """The pair of a case."""
    if case.pair == "tiny":
        return tiny_pair(case.rows)
    return random_pair(SHAPES[case.pair](), case.device, case.rows)


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


def seconds(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """How long a call takes, and what it returns.

    On a CPU the time that this process was given, which on one thread and an idle machine is the
    time that passes; on a GPU the time that passes until it is done.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    result = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start, result


class _Measurement:
    """One case being measured: what takes turns, and the best time a token of each."""

    def __init__(self, case: Case, pair: Pair) -> None:
        self.case = case
        self.pair = pair
        self.sampling = Sampling(pair.temperature, TOP_P, case.tokens)
        self.keys = list(range(case.rows))
        self.best: dict[Any, float] = {}

    def time(self, name: Any, call: Callable[[], Any], tokens: Callable[[Any], int]) -> Any:
        """Call, keep the time a token under a name if it is the best, and return the result."""
        taken, result = seconds(call, self.case.device)
        self.best[name] = min(taken / tokens(result), self.best.get(name, np.inf))
        return result

    def plain(self) -> list[list[int]]:
        """Responses of the primary alone, as token ids."""
        pair, stops = self.pair, stop_ids(self.pair.primary, self.pair.intervention)
        drawn = pair.primary.sample(pair.prompts, self.keys, self.sampling, stops, self.case.batch)
        return [response.ids for response in drawn]

    def mixed(self, threshold: float, block: int | str) -> tuple[int, float]:
        """Cross-sample; returns the number of tokens and the share of positions switched."""
        pair, rule = self.pair, Rule("js", threshold)
        runs, _ = cross_sample(
            *(pair.primary, pair.intervention, pair.prompts, self.keys),
            *(rule, self.sampling, self.case.batch),
            block=block,
        )
        emitted = sum(len(run.ids) for run in runs)
        return emitted, sum(run.n_switched for run in runs) / emitted

    def fixed(self) -> int:
        """Write one batch of responses of a fixed length; returns the number of tokens."""
        case, pair = self.case, self.pair
        sampling = Sampling(pair.temperature, TOP_P, case.fixed)
        never = [pair.primary.vocab_size]  # no model draws it
        drawn = pair.primary.sample(
            pair.prompts[: case.batch], self.keys[: case.batch], sampling, never, case.batch
        )
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

        self.time(("forward", block), feed, lambda _: calls)

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

    def thresholds(self, rates: Sequence[float], responses: list[list[int]]) -> list[float]:
        """The threshold of each switch rate."""
        pair, batch = self.pair, self.case.batch
        scored = score_pair(
            *(pair.primary, pair.intervention, pair.prompts, responses, self.sampling),
            *(1, batch),
        )
        js = np.concatenate([columns["js"] for _, columns in scored])
        return [self.threshold(rate, js) for rate in rates]


def attentions(case: Case) -> tuple[str, ...]:
    """Implementations of attention that ``generate`` is tried with; the faster one counts."""
    return ("eager", "sdpa") if case.device == "cpu" else ("sdpa",)


def measure(
    case: Case,
    pair: Pair,
    rates: Sequence[float],
    blocks: Sequence[int | str],
    progress: Callable[[], Any] = lambda: None,
) -> Iterator[dict]:
    """Results of a case, the rows of ``bench``, each as soon as it is measured.

    ``progress`` is called once a timed call. What is compared takes turns, rate by rate.
    """
    m = _Measurement(case, pair)
    whole = sorted({block for block in blocks if block != "auto"})
    responses = m.plain()
    for _ in range(case.repeats):
        m.time("plain-fixed", m.fixed, int)
        progress()
        for attention in attentions(case):
            m.time("generate", partial(m.generate, attention), int)
            progress()
        for block in whole:
            m.forward(block, responses)
    fixed = m.best["plain-fixed"]
    yield _row(case, "plain-fixed", fixed, fixed)
    yield _row(case, "generate", m.best["generate"], fixed)
    for rate, threshold in zip(rates, m.thresholds(rates, responses)):
        switched = {}
        for _ in range(case.repeats):
            m.time(("plain", rate), m.plain, lambda found: sum(map(len, found)))
            progress()
            for block in blocks:
                call = partial(m.mixed, threshold, block)
                _, switched[block] = m.time((rate, block), call, itemgetter(0))
                progress()
        beside = m.best["plain", rate]
        least = {k: floor(k, switched[k], case.batch * beside, m.best["forward", k]) for k in whole}
        for block in blocks:
            method = "lockstep" if block == 1 else "block"
            lowest = least[block] if block in least else min(least.values())
            cost = m.best[rate, block]
            yield _row(case, method, cost, beside, block, switched[block], lowest)
    plain = min(m.best["plain", rate] for rate in rates)
    yield _row(case, "plain", plain, plain)


def calls(case: Case, rates: Sequence[float], blocks: Sequence[int | str]) -> int:
    """How often ``measure`` reports progress."""
    return case.repeats * (1 + len(attentions(case)) + len(rates) * (1 + len(blocks)))


def _row(case: Case, method, cost, beside, block=None, rate=None, least=None) -> dict:
    where = (case.pair, case.device, case.batch, method, block, rate)
    return dict(zip(KEYS, (*where, 1.0 / cost, cost / beside, least), strict=True))


# The command ------------------------------------------------------------------------------------


def cases_of(cases: Sequence[Any], pairs: Sequence[str]) -> list[Any]:
    """The cases of some pairs, all where none is named; a pair that isn't known is refused."""
    known = list(dict.fromkeys(case.pair for case in cases))
    for pair in pairs:
        if pair not in known:
            raise TokenshiftError(
                f"there is no pair '{pair}' to measure: there are {', '.join(known)}"
            )
    return [case for case in cases if not pairs or case.pair in pairs]


def chosen_cases(pairs: Sequence[str] = (), batches: Sequence[int] = ()) -> list[Case]:
    """The cases of some pairs and batch sizes, all where none is named.

    Those that need a CUDA device are left out where there is none.

    Raises
    ------
    TokenshiftError
        For a pair that isn't known, and where nothing is left to measure.
    """
    cases = [case for case in cases_of(CASES, pairs) if not batches or case.batch in batches]
    here = [case for case in cases if case.device == "cpu" or torch.cuda.is_available()]
    if not here:
        reason = "they need a CUDA device" if cases else "no pair is measured at that batch size"
        raise TokenshiftError(f"there is nothing to measure: {reason}")
    return here


def bench(
    pairs: Sequence[str] = (), batches: Sequence[int] = (), quick: bool = False
) -> Iterator[dict]:
    """Measure cross-sampling on some pairs at some batch sizes, all where none is named.

    ``quick`` measures less, once.

    Returns
    -------
    One dict a measurement when it is made, with ``KEYS``. ``method`` is plain (the primary alone),
    lockstep or block, or plain-fixed and generate (transformers' own): one batch each of responses
    of one length. ``block`` is the drafts a round or "auto"; ``switch_rate`` the share of positions
    switched; ``cost_ratio`` the cost of an emitted token in plain ones (generate's in those of
    plain-fixed); ``floor`` its least by the models' forwards alone, for "auto" that of the best of
    the fixed blocks. None where a column has no meaning.
    """
    cases = chosen_cases(pairs, batches)
    rates, blocks = QUICK if quick else (RATES, BLOCKS)
    if quick:
        cases = [replace(case, rows=max(case.batch, case.rows // 4), repeats=1) for case in cases]
    return _measured(cases, rates, blocks)


def _measured(cases: list[Case], rates, blocks) -> Iterator[dict]:
    total = sum(calls(case, rates, blocks) for case in cases)
    with one_thread(), tqdm(total=total, unit="call", desc="bench") as bar:
        for case in cases:
            bar.set_description(f"{case.pair}, batch {case.batch}")
            try:
                yield from measure(case, make_pair(case), rates, blocks, bar.update)
            except torch.OutOfMemoryError:
                bar.write(
                    f"{case.pair} at batch {case.batch} needs more GPU memory: left out",
                    file=sys.stderr,
                )


def describe_machine() -> str:
    """Processor, GPU and versions, in a line."""
    parts = [f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, one thread used"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    return ", ".join(parts)


HEAD = ("pair", "device", "batch", "method", "block", "switched", "tokens/s", "cost", "floor")
WIDTHS = (18, 6, 5, 11, 5, 8, 8, 5, 5)


def cells(row: dict) -> tuple[str, ...]:
    """A result of ``bench`` as it stands in the table."""
    numbers = (
        "" if row["switch_rate"] is None else f"{row['switch_rate']:.1%}",
        f"{row['tokens_per_s']:.0f}",
        f"{row['cost_ratio']:.2f}",
        "" if row["floor"] is None else f"{row['floor']:.2f}",
    )
    block = "" if row["block"] is None else str(row["block"])
    return (row["pair"], row["device"], str(row["batch"]), row["method"], block, *numbers)


def lines(
    rows: Iterable[dict], head: Sequence[str], widths: Sequence[int], cells: Callable, left
) -> Iterator[str]:
    """A table of text, line by line, each as soon as its row is there."""
    yield align([head], left, widths)
    for row in rows:
        yield align([cells(row)], left, widths)


def json_lines(rows: Iterable[dict]) -> Iterator[str]:
    """A JSON list, line by line."""
    before = "["
    for row in rows:
        yield before + json.dumps(row)
        before = ","
    yield "]" if before == "," else "[]"


def render(rows: Iterable[dict]) -> Iterator[str]:
    """Results of ``bench`` as a table of text, line by line."""
    return lines(rows, HEAD, WIDTHS, cells, (0, 1, 3))


def align(
    lines: Sequence[Sequence[str]], left: Sequence[int], widths: Sequence[int] | None = None
) -> str:
    """Lines of cells as columns of text, flush right but for the columns listed."""
    widths = widths or [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )
