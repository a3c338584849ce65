"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.policy import Policy, Sampling
from tokenshift_utils.store.store import code_version
from tokenshift_utils.study.checkpoints import directory_fingerprint, is_adapter
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import check_same_tokenizer
from tokenshift_utils.tasks import benchmarks as files
from tokenshift_utils.tasks.prompts import prompt_parts, prompt_text
from tokenshift_utils.tasks.verifier import extract_answer, is_correct

SAMPLER = (
    *(
        "models.decoding",
        "models.huggingface",
        "models.kv_cache",
        "measures.divergences",
        "measures.noise",
        "measures.nucleus",
        "models.policy",
    ),
    "models.teacher_forcing",
)


ENGINE = (
    "models.vllm_engine",
    "measures.top_logprobs",
    "pairs.engine_mixer",
    "models.vllm",
    "models.vllm_sampler",
    "pairs.compare_top_logprobs",
)


@dataclass(frozen=True)
class Item:
    """One response to be made: a problem, a sample number, the prompt's ids and the noise's key."""

    problem: files.Problem
    sample: int
    prompt_ids: tuple[int, ...]
    key: int


def study_sampling(study: Study, sampling: Any = None) -> Sampling:
    """The study's sampling, or another: a ``Sampling``, or a dict of what differs."""
    if isinstance(sampling, Sampling):
        return sampling
    return Sampling(**(study.sampling.model_dump() | (sampling or {})))


def benchmark_names(study: Study, benchmarks: str | Sequence[str] | None) -> list[str]:
    """Benchmarks asked for, all of the study's where None."""
    if benchmarks is None:
        return list(study.benchmarks)
    return [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)


@lru_cache(maxsize=64)
def check_pair(first: Path, second: Path) -> None:
    """Refuse two models whose tokenizers differ (checked once a process)."""
    if first != second:
        check_same_tokenizer(first, second)


def study_policy(study: Study, model: str) -> Policy:
    """The policy of a model of the study, known to share the base model's tokenizer."""
    path = study.model_path(model)
    if not is_adapter(path):  # (which has the base model's)
        check_pair(study.model_path(study.base), path)
    return load_policy(study, model)


def shards_of(study: Study, benchmark: str, per_shard: int) -> list[list[files.Problem]]:
    """A benchmark's problems in runs of ``per_shard``."""
    problems = files.load_benchmark(study, benchmark)
    return [problems[i : i + per_shard] for i in range(0, len(problems), per_shard)]


def items(
    study: Study, policy: Policy, benchmark: str, problems: list[files.Problem], samples: int
) -> list[Item]:
    """What to sample: every problem ``samples`` times, problem by problem."""
    made = []
    for problem in problems:
        text = prompt_text(study, problem.problem)
        prompt = tuple(policy.tokenizer.encode(text, add_special_tokens=False))
        if not prompt:
            raise TokenshiftError(
                f"problem '{problem.id}' of benchmark {benchmark} has no tokens; remove it"
            )
        for sample in range(samples):
            key = row_key(study.seed, benchmark, problem.id, sample)
            made.append(Item(problem, sample, prompt, key))
    return made


def common_parts(study: Study, benchmark: str, models: Sequence[str]) -> dict:
    """What every record of a benchmark and some models depends on."""
    used = {m: study.model_path(m) for m in models}
    if any(map(is_adapter, used.values())):
        used[study.base] = study.model_path(study.base)
    engine = {}
    if study.backend == "vllm":
        engine = {"engine": {"settings": study.vllm.model_dump(), "code": code_version(ENGINE)}}
    return engine | {
        "benchmark": benchmark,
        "problems": files.digest(files.load_benchmark(study, benchmark)),
        "models": {m: directory_fingerprint(path) for m, path in used.items()},
        "backend": study.backend,
        "dtype": study.dtype,
        "seed": study.seed,
        "prompt": prompt_parts(study),
        "verifier": study.verifier,
        "problems_per_shard": study.problems_per_shard,
    }


def verdict(
    policy: Policy, ids: Sequence[Sequence[int]], reasons: Sequence[str], made: Sequence[Item]
) -> dict[str, list]:
    """Columns ``text``, ``answer``, ``correct`` and ``options``, by each problem's own rule.

    A response cut at its limit is not correct.
    """
    texts = policy.tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True)
    problems = [item.problem for item in made]
    return {
        "text": texts,
        "answer": [extract_answer(text, p.verifier) for text, p in zip(texts, problems)],
        "correct": [
            reason == "eos" and is_correct(text, p.answer, p.verifier, p.options is not None)
            for text, reason, p in zip(texts, reasons, problems)
        ],
        "options": [p.options and list(p.options) for p in problems],
    }


def outcome(made: Sequence[Item], ids: list[list[int]], reasons: list[str]) -> dict[str, list]:
    """The columns that rollouts and cross-sampling runs share."""
    return {
        "problem": [item.problem.id for item in made],
        "sample": [item.sample for item in made],
        "prompt_ids": [list(item.prompt_ids) for item in made],
        "response_ids": ids,
        "finish_reason": reasons,
        "n_tokens": [len(i) for i in ids],
    }


def stop_models(study: Study, *models: str) -> list[str]:
    """Fingerprints of the models whose stop ids end a response: those named and the base."""
    return sorted({directory_fingerprint(study.model_path(m)) for m in (study.base, *models)})
