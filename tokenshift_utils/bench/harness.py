"""What all benches share: pairs of models, a clock, the choice of cases, and rows as they come.

Methods take turns, and each keeps its best time, since other processes can only slow a run down; on
a CPU time is the process's own, so that waiting for a turn does not count either.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.adapters import load_adapter
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.study.checkpoints import is_adapter
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.prompts import prompt_text

TOP_P = 0.7
WIDTH = 1.6  # spread of a random model's weights times the root of its hidden size: wide enough
# that attention picks out tokens, or the model would soon repeat itself
SURENESS = 12.0  # spread of a random model's logits over the temperature: entropy below 1 nat
NOISE = 0.001  # of a random pair's tuned model, relative to the spread of each weight matrix
PROMPT = 32  # tokens of a random pair's prompts
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
SHAPES: dict[str, tuple] = {
    "random-30m": (LlamaConfig, 32_000, 384, 1024, 4, 6, 6),
    "small-152k": (Qwen2Config, 151_936, 64, 256, 2, 2, 1),
    "qwen2.5-1.5b-shape": (Qwen2Config, 151_936, 1536, 8960, 28, 12, 2),
    "qwen2.5-7b-shape": (Qwen2Config, 152_064, 3584, 18_944, 28, 28, 4),
}


@dataclass(frozen=True)
class PolicyPair:
    """Two policies, prompts for them, and the temperature at which they are sampled."""

    primary: HFPolicy
    intervention: HFPolicy
    prompts: list[list[int]]
    temperature: float


def shape(name: str) -> PretrainedConfig:
    """The configuration of random models of this name."""
    kind, *sizes = SHAPES[name]
    return kind(**dict(zip(_SIZES, sizes, strict=True)))


class _NoTokenizer:
    """Prompts of random models are token ids."""

    eos_token_id = None


def study_pair(name: str, rows: int) -> PolicyPair:
    """A study's base and first RL model on a CPU, on its last benchmark's problems."""
    study = load_study(name)
    base, tuned = (study.model_path(m) for m in (study.base, study.cross_sampling.pairs[0]))
    primary = HFPolicy.load(base, "base", study.dtype, "cpu")
    intervention = (
        load_adapter(primary, tuned, "tuned")
        if is_adapter(tuned)
        else HFPolicy.load(tuned, "tuned", study.dtype, "cpu")
    )
    problems = load_benchmark(study, list(study.benchmarks)[-1])
    texts = [prompt_text(study, problem.problem) for problem in problems]
    prompts = [primary.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    several = [prompts[i % len(prompts)] for i in range(rows)]
    return PolicyPair(primary, intervention, several, study.sampling.temperature)


def random_pair(config: Any, device: str, rows: int) -> PolicyPair:
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
    return PolicyPair(*policies, prompts, spread / SURENESS)


def make_pair(name: str, device: str, rows: int) -> PolicyPair:
    """The pair of a case: of a study of that name, or random models of a shape of that name."""
    if name in SHAPES:
        return random_pair(shape(name), device, rows)
    return study_pair(name, rows)


# Measuring --------------------------------------------------------------------------------------


def js_along(
    pair: PolicyPair, responses: list[list[int]], sampling: Sampling, batch: int
) -> np.ndarray:
    """[positions] JS between a pair at every position of the primary's own responses."""
    policies = pair.primary, pair.intervention
    scored = score_pair(*policies, pair.prompts, responses, sampling, 1, batch)
    return np.concatenate([columns["js"] for _, columns in scored])


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


class Clock:
    """The best time of each of several calls that take turns, by name."""

    def __init__(self, device: str, progress: Callable[[], Any] = lambda: None) -> None:
        self.device = device
        self.progress = progress  # called after every timed call
        self.best: dict[Any, float] = {}

    def time(self, name: Any, call: Callable[[], Any], units: Callable[[Any], int] | None = None):
        """Call, keep its seconds (a unit of its result) if they are the least; returns the result."""
        taken, result = seconds(call, self.device)
        taken /= units(result) if units else 1
        self.best[name] = min(taken, self.best.get(name, taken))
        self.progress()
        return result


# The command ------------------------------------------------------------------------------------


def select_cases(
    cases: Sequence[Any], pairs: Sequence[str], batches: Sequence[int] = ()
) -> list[Any]:
    """The cases of some pairs and batch sizes, all where none is named.

    Those that need a CUDA device are left out where there is none.

    Raises
    ------
    TokenshiftError
        For a pair that isn't known, and where nothing is left to measure.
    """
    known = dict.fromkeys(case.pair for case in cases)
    for pair in pairs:
        if pair not in known:
            raise TokenshiftError(
                f"there is no pair '{pair}' to measure: there are {', '.join(known)}"
            )
    cases = [case for case in cases if not pairs or case.pair in pairs]
    cases = [case for case in cases if not batches or case.batch in batches]
    here = [case for case in cases if case.device == "cpu" or torch.cuda.is_available()]
    if not here:
        reason = "they need a CUDA device" if cases else "no pair is measured at that batch size"
        raise TokenshiftError(f"there is nothing to measure: {reason}")
    return here


def describe_machine() -> str:
    """Processor, GPU and versions, in a line."""
    parts = [f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, one thread used"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    return ", ".join(parts)


@dataclass(frozen=True)
class PrintedColumn:
    """How a field is printed: under which title, in which format and width ("<8": flush left)."""

    field: str
    title: str
    format: str = ""
    width: str = ">8"
    scale: float = 1.0

    def cell(self, row: dict) -> str:
        """A row's cell, without anything for None."""
        value = row[self.field]
        text = "" if value is None else str(value)
        if self.format and value is not None:
            text = format(self.scale * value, self.format)
        return format(text, self.width)


def field_names(columns: Sequence[PrintedColumn]) -> tuple[str, ...]:
    """What rows hold: the columns' fields."""
    return tuple(column.field for column in columns)


def filled(columns: Sequence[PrintedColumn], *values) -> dict:
    """A row: values in the order of the columns, by their fields."""
    return dict(zip(field_names(columns), values, strict=True))


def line(columns: Sequence[PrintedColumn], row: dict) -> str:
    """A row of a table: fields that the columns don't name are not shown."""
    return "  ".join(column.cell(row) for column in columns).rstrip()


def show(columns: Sequence[PrintedColumn], rows: Iterator[dict], as_json: bool = False) -> None:
    """Print each row as soon as it is measured: a table of text, or a JSON list with all fields.

    The list is closed also where measuring is stopped.
    """
    if not as_json:
        titles = "  ".join(format(column.title, column.width) for column in columns)
        tqdm.write(f"{describe_machine()}\n\n{titles.rstrip()}")
        for row in rows:
            tqdm.write(line(columns, row))
        return
    opened = "["
    try:
        for row in rows:
            tqdm.write(f"{opened}\n {json.dumps(row)}", end="")
            opened = ","
    finally:
        tqdm.write("[]" if opened == "[" else "\n]")
