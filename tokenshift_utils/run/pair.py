"""A study of any two models and any file of problems and answers."""

import math
import os
import re
import sys
from pathlib import Path

import psutil
import torch
import yaml

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import write_text
from tokenshift_utils.run.checks import check_inputs
from tokenshift_utils.study.checkpoints import is_adapter, load_config, weights_fingerprint
from tokenshift_utils.study.positions import alike_up_to, made_for
from tokenshift_utils.study.schema import MADE_OF, NAME
from tokenshift_utils.study.study import load_study
from tokenshift_utils.study.tokenizers import load_tokenizer, model_ends
from tokenshift_utils.tasks.benchmarks import load_benchmark
from tokenshift_utils.tasks.rows import read_rows

LONG_RESPONSE = 8000  # new tokens, as in the paper, of models that think and of competitions
SHORT_RESPONSE = 512  # of problems in plain words, whose solutions are of a few sentences
SOLUTION_FACTOR = 4  # times the longest solution in the file: models are wordier, some by far
PROBLEMS_PER_SHARD = 10  # problems, at most
MOST_WORKERS = 8
SOLUTIONS = ("solution", "response", "completion", "rationale", "reasoning", "generated_solution")

_LATEX = re.compile(r"\\[A-Za-z(\[]|\$[A-Za-z\\({|-]")  # (not $3, which is a price)
_ANSWER_LINE = re.compile(r"\bAnswer:(?!$)")  # as DAPO's prompts ask for it

_TEMPLATE = """\
# Written by `tokenshift pair`. Everything below is a choice that you may change; notebooks/guide and
# the other studies here say what the keys mean. Paths are relative to the root of the checkout. JS
# thresholds are in nats.
name: {name}
title: {title}
note: Written by tokenshift pair; its settings are defaults, not those of any paper.
backend: transformers # or vllm, or a module of your own (notebooks/guide/adding.md)
dtype: {dtype}
seed: 20260322
workers: {workers} # processes of one thread each, on a CPU; 0 computes in the notebook's own process

base: base
models: # more tuned models of the same base may stand here: kind rl (with recipe: dapo or
  # simplerl, claims of the paper on it are tested), or sft for a control
  base: {{path: {base}, label: Base, kind: base}}
  tuned: {{path: {tuned}, label: Tuned, kind: rl}}

benchmarks:
  {benchmark}:
    path: {problems}
    label: {label}
    columns: {columns} # id null: problems are numbered from 0
    duplicates: drop # a problem that stands in several rows counts once
prompt: # the whole prompt; for the user's turn of a chat template name a model: `chat: tuned`
  template: "{{problem}}"
stop_tokens: [] # more tokens that end a response, beside the models' own
verifier: boxed # boxed: two boxes are no answer; last_boxed: the last one counts; or answer_line

sampling: {{temperature: 1.0, top_p: 0.7, max_new_tokens: {length}}} # {why}
samples: {{accuracy: 8, controls: 8, shifts: 4, checkpoints: 4, cross_sampling: 4}} # a problem

thresholds: {{near_zero: [0.001, 0.01], high_js: 0.1}}
top_k: 10
cross_sampling:
  pairs: [tuned]
  thresholds: [-1, 0.01, 0.1, 0.2] # -1: every position switched
  random_rates: [0.05, 0.2, 0.4, 0.6, 0.8] # of positions switched by chance
explorer: {{responses: 8, rules: [js]}} # every path through them is drawn on: dear with a large model

statistics: {{resamples: 2000, confidence: 0.95, seed: 0}}
batch: {{rollout: 64, score: 16, cross_sampling: 64}} # rows
problems_per_shard: {shard} # what a process computes at a time
"""


def write_pair(base: Path, tuned: Path, problems: Path, name: str | None = None) -> Path:
    """Write a study file for a pair of model directories; returns it.

    ``tuned`` may hold a PEFT adapter on the base.

    ``problems`` has rows (JSON lines or Parquet) with ``problem`` and ``answer``, and an ``id`` where
    all have one; or rows as verl's data have them, with ``prompt`` and ``reward_model``. A problem
    that stands in several rows counts once, which is said. ``name`` None makes one of the
    directories' names.

    Raises
    ------
    TokenshiftError
        Where the two can't be compared, the problems are not as said, or there is a study of that
        name; nothing is left behind.
    """
    both = f"{tuned.resolve().name}-{base.resolve().name}"
    name = name or _plain(both) or "pair"
    if not NAME.fullmatch(name):
        raise TokenshiftError(f"--name is '{name}': it {MADE_OF}")
    file = paths.studies() / f"{name}.yaml"
    if file.exists():
        raise TokenshiftError(
            f"there is a study {paths.display(file)} already; give another --name, or remove it"
        )
    rows = [row for _, row in read_rows(problems)]
    draft = file.with_name(f"{file.name}.tmp.yaml")
    models = [base] if is_adapter(tuned) else [base, tuned]
    configs = [load_config(directory) for directory in models]
    content = _TEMPLATE.format(
        name=_quoted(name),
        title=_quoted(f"{tuned.resolve().name} against {base.resolve().name}"),
        dtype=_dtype(configs),
        base=_place(base),
        tuned=_place(tuned),
        benchmark=_quoted(_plain(problems.stem) or "problems"),
        problems=_place(problems),
        label=_quoted("".join(filter(str.isprintable, problems.stem)).strip() or "problems"),
        columns=_columns(rows),
        workers=(workers := _workers(models)),
        shard=_per_shard(len(rows), max(workers, 1)),
        length=LONG_RESPONSE,
        why="@",
    )
    try:
        write_text(draft, content)
        study = load_study(draft)
        check_inputs(study)
        if len(models) == 2:
            _check_ends(base, tuned)
        prompts = [p.problem for p in load_benchmark(study, next(iter(study.benchmarks)))]
        tokenizers = [load_tokenizer(directory) for directory in models]
        needed, why = _needed(rows, prompts, tokenizers)
        length = _length(configs, tokenizers[0], prompts, needed)
        if length < needed:
            why = "what fits behind the longest problem within the models' contexts"
        wanted = f"tokens: {length}}} # {why}"
        content = content.replace(f"tokens: {LONG_RESPONSE}}} # @", wanted)
        verifier = _verifier(prompts)
        write_text(draft, content.replace("\nverifier: boxed", f"\nverifier: {verifier}", 1))
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    if len(models) == 2 and weights_fingerprint(base) == weights_fingerprint(tuned):
        print(
            f"warning: {base} and {tuned} have the same weights, so nothing can differ: see whether "
            "they are the two that you mean",
            file=sys.stderr,
        )
    if len(prompts) < len(rows):
        print(
            f"{problems.name} has {len(prompts)} problems in {len(rows)} rows; each counts once",
            file=sys.stderr,
        )
    if verifier != "boxed":
        print(f"answers are found by the verifier {verifier}, as the problems ask", file=sys.stderr)
    if any("####" in text for text in prompts):
        print(
            "warning: problems ask for the answer behind '####', which no verifier reads, so that "
            "responses that obey count as wrong: let them ask for \\boxed{} or a line 'Answer:'",
            file=sys.stderr,
        )
    print(f"responses may have {length:,} tokens: {why}", file=sys.stderr)
    return file


def _plain(text: str) -> str:
    """A text with nothing in it that a name may not have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")


def _workers(models: list[Path]) -> int:
    """How many processes the cores and the free memory have room for; 0 where a GPU computes."""
    weights = sum(file.stat().st_size for d in models for file in d.glob("*.safetensors"))
    room = psutil.virtual_memory().available // (4 * weights + 2 * 2**30)
    workers = min(MOST_WORKERS, os.cpu_count() or 1, room)
    return 0 if torch.cuda.is_available() or workers < 2 else workers


def _per_shard(problems: int, workers: int) -> int:
    """At most ten problems, such that all processes have as many shards."""
    shards = workers * math.ceil(problems / (PROBLEMS_PER_SHARD * workers))
    return max(1, math.ceil(problems / max(shards, 1)))


def _columns(rows: list[dict]) -> str:
    """Where problem, answer and id stand, for the study file."""
    numbered = "" if all(row.get("id") is not None for row in rows) else "id: null, "
    if "problem" not in rows[0] and {"prompt", "reward_model"} <= set(rows[0]):
        return f"{{{numbered}problem: prompt, answer: reward_model}}"
    return f"{{{numbered}problem: problem, answer: answer}}"


def _verifier(prompts: list[str]) -> str:
    """By which rule to find answers: as most problems ask, where they say so themselves.

    A prompt that ends in ``Answer:`` asks to go on from there, not to write such a line.
    """
    lines = sum(
        bool(_ANSWER_LINE.search(text.rstrip())) and "\\boxed" not in text for text in prompts
    )
    return "answer_line" if 2 * lines > len(prompts) else "boxed"


def _place(path: Path) -> str:
    """A path as a study has it: relative to the root where it lies inside, else absolute."""
    return _quoted(paths.display(path.resolve()))


def _quoted(text: str) -> str:
    """Text as YAML on one line, whatever characters it has."""
    return yaml.safe_dump(text, default_style='"', width=float("inf")).rstrip("\n")


def _dtype(configs: list) -> str:
    """The weights' own dtype where it is bfloat16 of both, else float32."""
    own = {str(config.dtype).removeprefix("torch.") for config in configs}
    return "bfloat16" if own == {"bfloat16"} else "float32"


def _check_ends(base: Path, tuned: Path) -> None:
    """Refuse two models that don't end a response on any common token."""
    ends = [model_ends(directory) for directory in (base, tuned)]
    if not set(ends[0]) & set(ends[1]):
        raise TokenshiftError(
            f"{base} and {tuned} end a response on different tokens ({_ids(ends[0])} and "
            f"{_ids(ends[1])}), so one would never see the other end; name a common one as "
            "'eos_token_id' in their generation_config.json"
        )


def _ids(ids: tuple[int, ...]) -> str:
    return "ids " + ", ".join(map(str, ids)) if ids else "none"


def _needed(rows: list[dict], prompts: list[str], tokenizers: list) -> tuple[int, str]:
    """(new tokens that responses to such problems need, why)."""
    if any("<think>" in str(getattr(t, "chat_template", None) or "") for t in tokenizers):
        return LONG_RESPONSE, "the models think before they answer, by their chat template"
    solutions = [text for row in rows for text in _solutions(row)]
    if solutions:
        ids = (tokenizers[0].encode(text, add_special_tokens=False) for text in solutions)
        longest = max(map(len, ids))
        needed = min(LONG_RESPONSE, -(-SOLUTION_FACTOR * longest // 64) * 64)
        why = f"{SOLUTION_FACTOR} times the longest solution in the file ({longest} tokens)"
        return needed, why
    if 10 * sum(bool(_LATEX.search(text)) for text in prompts) >= len(prompts):
        return (
            LONG_RESPONSE,
            "problems have LaTeX in them, as those of competitions, and no solutions",
        )
    return SHORT_RESPONSE, "the problems are in plain words; the file has no solutions to say more"


def _solutions(row: dict) -> list[str]:
    """Texts of a row that solve its problem, under the names that data sets give them."""
    more = row.get("extra_info")
    cells = [row.get(name) for name in SOLUTIONS]
    cells += [more.get(name) for name in (*SOLUTIONS, "answer")] if isinstance(more, dict) else []
    return [cell for cell in cells if isinstance(cell, str) and len(cell.split()) > 1]


def _length(configs: list, tokenizer, prompts: list[str], needed: int) -> int:
    """New tokens that fit behind the longest prompt within both models' contexts, of those needed."""
    longest = max(len(tokenizer.encode(text, add_special_tokens=False)) for text in prompts)
    contexts = [n for of in (made_for, alike_up_to) for n in map(of, configs) if n is not None]
    if not contexts:
        return needed
    length = min(needed, min(contexts) - longest)
    if length < 1:
        raise TokenshiftError(
            f"the longest problem has {longest} tokens, which is all that the models can read "
            f"({min(contexts)}); leave it out"
        )
    return length
