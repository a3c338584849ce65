"""Benchmarks: problems with answers, from a .jsonl or .parquet file or a data set of the hub."""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.tasks.cells import text_of
from tokenshift_utils.tasks.rows import read_rows

if TYPE_CHECKING:
    from tokenshift_utils.study.schema import Benchmark
    from tokenshift_utils.study.study import Study


@dataclass(frozen=True)
class Problem:
    """One problem.

    ``id`` is unique in the benchmark and ``verifier`` the rule by which a response is judged. Of
    multiple choice, ``answer`` is the right option's letter, and ``options`` says which of the
    source's options stands at A, B and so on; 0 is the right one.
    """

    id: str
    problem: str
    answer: str
    verifier: str = "boxed"
    options: tuple[int, ...] | None = None


def option_order(seed: int, benchmark: str, problem: str, number: int) -> tuple[int, ...]:
    """In which order a problem's options are shown: a permutation of 0 to ``number`` - 1.

    The options sorted by the sha256 of the JSON list [seed, benchmark, problem id, index], so it
    depends on nothing else.
    """

    def sort_key(index: int) -> str:
        return hashlib.sha256(json.dumps([seed, benchmark, problem, index]).encode()).hexdigest()

    return tuple(sorted(range(number), key=sort_key))


def _choice(spec: Benchmark, cells: dict[str, str], seed: int, name: str) -> dict:
    """Text, answer and options of a problem of multiple choice, from the columns it needs."""
    shown = [cells["answer"], *(cells[column] for column in spec.choices.wrong)]
    order = option_order(seed, name, cells["id"], len(shown))
    lines = [f"({string.ascii_uppercase[i]}) {shown[index]}" for i, index in enumerate(order)]
    text = spec.choices.template.format(problem=cells["problem"], options="\n".join(lines))
    return {"problem": text, "answer": string.ascii_uppercase[order.index(0)], "options": order}


def _problems(
    place: Path, spec: Benchmark, name: str, seed: int, verifier: str
) -> tuple[int, tuple[Problem, ...]]:
    """How many rows there are, and their problems: of repeated ones the first, or none allowed.

    Intervals resample problems, so one that counts several times would make them too narrow.
    """
    where = f"the data set {spec.hub}" if spec.hub else paths.display(place)
    named = {key: column for key, column in spec.columns if column is not None}
    named |= {column: column for column in spec.choices.wrong} if spec.choices else {}
    problems: list[Problem] = []
    ids: set[str] = set()
    first_of: dict[tuple[str, ...], tuple[str, str]] = {}  # a problem's texts: row and answer
    repeats: list[tuple[str, str]] = []
    number = 0
    for number, (row_name, row) in enumerate(read_rows(place, spec), start=1):
        at = f"{where}, {row_name}"
        missing = [column for column in named.values() if column not in row]
        if missing:
            raise TokenshiftError(
                f"{at} has no '{missing[0]}'; every problem needs "
                f"{', '.join(named.values())}, and this one has {', '.join(map(str, row))}"
            )
        cells = {"id": str(number - 1)}
        cells |= {key: text_of(row[column], at, column) for key, column in named.items()}
        options = [cells[column] for column in spec.choices.wrong] if spec.choices else []
        answer = _normal(cells["answer"])
        shown = sorted(map(_normal, (cells["answer"], *options))) if options else []
        content = (_normal(cells["problem"]), *shown)
        first, known = first_of.setdefault(content, (row_name, answer))
        if first != row_name:
            if known != answer:
                raise TokenshiftError(
                    f"{where} has one problem with two answers, {known[:40]!r} in {first} and "
                    f"{answer[:40]!r} in {row_name}; keep the right one"
                )
            repeats.append((first, row_name))
            continue
        if cells["id"] in ids:
            raise TokenshiftError(f"{at} repeats the id '{cells['id']}'; make ids unique")
        ids.add(cells["id"])
        kept = {key: cells[key] for key in ("id", "problem", "answer")}
        kept |= _choice(spec, cells, seed, name) if spec.choices else {}
        problems.append(Problem(verifier=verifier, **kept))
    if repeats and spec.duplicates == "refuse":
        first, again = repeats[0]
        others = f" (and {len(repeats) - 1} more repeat one)" if len(repeats) > 1 else ""
        raise TokenshiftError(
            f"{where} has the same problem in {first} and {again}{others}, which would make "
            "intervals too narrow; leave the repeated rows out, or say 'duplicates: drop' of this "
            f"benchmark to keep the first of each, {len(problems)} of {number}"
        )
    return number, tuple(problems)


def _normal(text: str) -> str:
    return " ".join(text.split())


def load_benchmark(study: Study, name: str) -> list[Problem]:
    """The problems of a benchmark of the study, the first ``limit`` of them where it has a limit.

    Raises
    ------
    TokenshiftError
        Where the benchmark is missing, empty or not as the study says, where a cell is no text and
        no number, and where a problem or an id is repeated.
    """
    place = study.benchmark_path(name)
    modified = place.stat().st_mtime_ns if place.is_file() else 0
    spec = study.benchmarks[name]
    return list(_read(place, modified, spec, name, study.seed, study.verifier)[: spec.limit])


@lru_cache(maxsize=64)
def _read(
    place: Path, modified_ns: int, spec: Benchmark, name: str, seed: int, verifier: str
) -> tuple[Problem, ...]:
    """A benchmark, read once while it stays as it is."""
    rows, problems = _problems(place, spec, name, seed, verifier)
    if spec.problems not in (None, len(problems)):
        where = f"the data set {spec.hub}" if spec.hub else paths.display(place)
        dropped = "" if rows == len(problems) else f", {len(problems)} of them distinct,"
        raise TokenshiftError(
            f"{where} has {rows} rows{dropped} where the study says 'problems: {spec.problems}'; "
            "see whether it is the version and the split that you mean"
        )
    return problems


def problems_digest(problems: list[Problem]) -> str:
    """A hash of the problems and their options' order, for the keys of what is computed on them."""
    text = json.dumps([[p.id, p.problem, p.answer, p.options] for p in problems])
    return hashlib.sha256(text.encode()).hexdigest()
