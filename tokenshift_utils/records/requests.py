"""What requests for records share: the items of a shard, the parts of a key, the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.load import backend_code, load_policy
from tokenshift_utils.models.policy import Policy, Sampling
from tokenshift_utils.store.code import code_version
from tokenshift_utils.store.executor import Job
from tokenshift_utils.study.checkpoints import directory_fingerprint, is_adapter
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.tokenizers import check_same_tokenizer
from tokenshift_utils.tasks import benchmarks as files
from tokenshift_utils.tasks.prompts import prompt_parts, prompt_text
from tokenshift_utils.tasks.verifier import extract_answer, is_correct

RESPONSE_KEY = ["benchmark", "problem", "sample"]  # columns that say whose row it is


class Request:
    """What artefacts share. A request is the artefact itself: ask ``fetch`` for it.

    Attributes
    ----------
    kinds : record kinds that computing a shard writes
    order : columns by which the rows of all shards are put in order; none: as they are written
    first : only the first so many samples a problem are asked for, of all that are computed

    One that has ``benchmark`` and ``samples`` is cut into shards by problems, unless it says else.
    """

    kinds: tuple[str, ...]
    order: tuple[str, ...] = ()
    first: int | None = None

    def _shards(self, study: Study) -> list[list[files.Problem]]:
        return shards_of(study, self.benchmark, study.problems_per_shard)

    def weights(self, study: Study) -> list[int]:
        """How many responses each shard holds."""
        return [len(problems) * self.samples for problems in self._shards(study)]

    def needs(self, study: Study, shard: int) -> list[Job]:
        """Shards of other artefacts that must be there before one of these."""
        return []


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
def check_tokenizers(first: Path, second: Path) -> None:
    """Refuse two models whose tokenizers differ (checked once a process)."""
    if first != second:
        check_same_tokenizer(first, second)


def study_policy(study: Study, model: str) -> Policy:
    """The policy of a model of the study, known to share the base model's tokenizer."""
    check_tokenizers(study.model_path(study.base), study.model_path(model))
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


def common_parts(study: Study, benchmark: str, models: Sequence[str], code: str) -> dict:
    """What every record of a benchmark and some models depends on; ``code`` is the module that
    computes it, by its ``__name__``."""
    used = {m: study.model_path(m) for m in models}
    if any(map(is_adapter, used.values())):
        used[study.base] = study.model_path(study.base)
    engine = {} if study.engines is None else {"engine": study.engines.model_dump()}
    return engine | {
        "benchmark": benchmark,
        "problems": files.problems_digest(files.load_benchmark(study, benchmark)),
        "models": {m: directory_fingerprint(path) for m, path in used.items()},
        "backend": study.backend,
        "backend_code": backend_code(study),
        "dtype": study.dtype,
        "seed": study.seed,
        "prompt": prompt_parts(study),
        "verifier": study.verifier,
        "problems_per_shard": study.problems_per_shard,
        "code": code_version(code),
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
