"""Benchmarks: files of problems with answers, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError

if TYPE_CHECKING:
    from tokenshift_utils.study import Study

KEYS = ("id", "problem", "answer")


@dataclass(frozen=True)
class Problem:
    """One problem: its id, unique in the benchmark, its text and its answer."""

    id: str
    problem: str
    answer: str


def read_rows(file: Path) -> list[dict]:
    """The JSON objects of a .jsonl file, one a line; blank lines are skipped."""
    if not file.is_file():
        raise TokenshiftError(f"there is no file {paths.display(file)}; correct the path")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TokenshiftError(
                f"{paths.display(file)}, line {number} is not JSON ({error.msg}); "
                "give one JSON object a line"
            ) from error
        if not isinstance(row, dict):
            raise TokenshiftError(f"{paths.display(file)}, line {number} is not a JSON object")
        rows.append(row)
    if not rows:
        raise TokenshiftError(f"{paths.display(file)} is empty; give one JSON object a line")
    return rows


def read_benchmark(file: Path) -> list[Problem]:
    """All problems of a benchmark file. ``id`` and ``answer`` may be numbers; they become text."""
    problems, seen = [], set()
    for number, row in enumerate(read_rows(file), start=1):
        missing = [key for key in KEYS if key not in row or row[key] in (None, "")]
        if missing:
            raise TokenshiftError(
                f"{paths.display(file)}, row {number} has no '{missing[0]}'; "
                f"every problem needs {', '.join(KEYS)}"
            )
        problem = Problem(*(str(row[key]) for key in KEYS))
        if problem.id in seen:
            raise TokenshiftError(
                f"{paths.display(file)}, row {number} repeats the id '{problem.id}'; make ids unique"
            )
        seen.add(problem.id)
        problems.append(problem)
    return problems


def load_benchmark(study: Study, name: str) -> list[Problem]:
    """The problems of a benchmark of the study, the first ``limit`` of them where it has a limit."""
    file = study.benchmark_path(name)
    modified = file.stat().st_mtime_ns if file.is_file() else 0
    return list(_read(file, modified)[: study.benchmarks[name].limit])


@lru_cache(maxsize=64)
def _read(file: Path, modified_ns: int) -> tuple[Problem, ...]:
    """A benchmark file, read once while it stays as it is."""
    return tuple(read_benchmark(file))


def digest(problems: list[Problem]) -> str:
    """A hash of the problems' ids, texts and answers, for the keys of what is computed on them."""
    text = json.dumps([[p.id, p.problem, p.answer] for p in problems])
    return hashlib.sha256(text.encode()).hexdigest()
