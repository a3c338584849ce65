"""Rollouts: a model's responses to a benchmark, judged. One row a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tokenshift_utils import benchmarks as files
from tokenshift_utils import executor, records
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.fingerprints import directory_fingerprint, is_adapter
from tokenshift_utils.noise import row_key
from tokenshift_utils.policy import Policy, Sampling, load_policy, stop_ids
from tokenshift_utils.prompts import prompt_parts, prompt_text
from tokenshift_utils.store import code_version
from tokenshift_utils.study import Study
from tokenshift_utils.tokenizer_checks import check_same_tokenizer
from tokenshift_utils.verify import extract_answer, is_correct

SAMPLER = (
    *("adapters", "decoding", "hf_policy", "kv_cache", "measures", "noise", "nucleus", "policy"),
    "teacher_forcing",
)
ENGINE = ("engines", "listed", "vllm_mixing", "vllm_policy", "vllm_sampler", "vllm_scoring")
MODULES = (*SAMPLER, "benchmarks", "judge", "prompts", "records", "rollouts", "verify")


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


@dataclass(frozen=True)
class Rollouts:
    """All responses of one model to one benchmark under one sampling."""

    model: str
    benchmark: str
    samples: int
    sampling: Sampling
    kinds = ("rollouts",)

    def parts(self, study: Study) -> dict:
        return common_parts(study, self.benchmark, [self.model]) | {
            "kind": "rollouts",
            "samples": self.samples,
            "sampling": vars(self.sampling),
            "stop": stop_models(study, self.model),
            "batch": study.batch.rollout,
            "code": code_version(MODULES),
        }

    def weights(self, study: Study) -> list[int]:
        shards = shards_of(study, self.benchmark, study.problems_per_shard)
        return [len(problems) * self.samples for problems in shards]

    def needs(self, study: Study, shard: int) -> list[executor.Job]:
        return []

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        policy = study_policy(study, self.model)
        problems = shards_of(study, self.benchmark, study.problems_per_shard)[shard]
        made = items(study, policy, self.benchmark, problems, self.samples)
        responses = policy.sample(
            [item.prompt_ids for item in made],
            [item.key for item in made],
            self.sampling,
            stop_ids=stop_ids(policy, study_policy(study, study.base)),
            batch_size=study.batch.rollout,
        )
        ids, reasons = [r.ids for r in responses], [r.finish_reason for r in responses]
        columns = {
            "study": study.name,
            "model": self.model,
            "benchmark": self.benchmark,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
        }
        columns |= outcome(made, ids, reasons) | verdict(policy, ids, reasons, made)
        return {"rollouts": records.table("rollouts", columns)}


def stop_models(study: Study, *models: str) -> list[str]:
    """Fingerprints of the models whose stop ids end a response: those named and the base."""
    return sorted({directory_fingerprint(study.model_path(m)) for m in (study.base, *models)})


def rollout_artefacts(
    study: Study,
    model: str,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> list[Rollouts]:
    """The artefacts behind ``get_rollouts``, for ``prefetch``.

    Under the study's own sampling the responses are drawn once, as many as accuracy takes, and
    fewer are a part of them.
    """
    study.model(model)
    drawn = study.accuracy_samples(model)
    own = study_sampling(study)
    chosen = study_sampling(study, sampling)
    number = drawn if samples is None else samples
    if chosen == own:
        number = max(number, drawn)
    return [Rollouts(model, b, number, chosen) for b in benchmark_names(study, benchmarks)]


def get_rollouts(
    study: Study,
    model: str,
    benchmarks: str | Sequence[str] | None = None,
    samples: int | None = None,
    sampling: Any = None,
) -> pd.DataFrame:
    """Responses of a model or checkpoint, computed where the store lacks them.

    Parameters
    ----------
    benchmarks : names; None for all of the study's
    samples : the first so many responses a problem; None for as many as accuracy takes
    sampling : a ``Sampling`` or a dict of what differs from the study's; None for the study's

    Returns
    -------
    DataFrame with the columns of ``records.describe("rollouts")``, one row a response.
    """
    artefacts = rollout_artefacts(study, model, benchmarks, samples, sampling)
    executor.run(study, artefacts)
    number = study.accuracy_samples(model) if samples is None else samples
    frame = pa.concat_tables([executor.read(study, a, "rollouts") for a in artefacts]).to_pandas()
    return frame[frame["sample"] < number].reset_index(drop=True)
