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

if TYPE_CHECKING:
    from tokenshift_utils.study.study import Benchmark, Study


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


def _read_parquet(file: Path) -> list[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        raise TokenshiftError(f"there is no file {paths.display(file)}; correct the path")
    try:
        return pq.read_table(file).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise TokenshiftError(f"{paths.display(file)} can't be read ({error})") from None


def _read_data_set(directory: Path, spec: Benchmark) -> list[dict]:
    """The rows of a data set whose files are in the hub's local cache; no script of it is run."""
    from datasets import disable_progress_bars, load_dataset

    from tokenshift_utils.errors import first_line

    disable_progress_bars()
    try:
        return load_dataset(str(directory), name=spec.config, split=spec.split).to_list()
    except Exception as error:
        raise TokenshiftError(
            f"the data set {spec.hub} in {directory} can't be read ({first_line(error)}); see that "
            "'config' and 'split' are its own, or download it again"
        ) from error


def option_order(seed: int, benchmark: str, problem: str, number: int) -> tuple[int, ...]:
    """In which order a problem's options are shown: a permutation of 0 to ``number`` - 1.

    The options sorted by the sha256 of the JSON list [seed, benchmark, problem id, index], so it
    depends on nothing else.
    """

    def luck(index: int) -> str:
        return hashlib.sha256(json.dumps([seed, benchmark, problem, index]).encode()).hexdigest()

    return tuple(sorted(range(number), key=luck))


def _choice(spec: Benchmark, cells: dict[str, str], seed: int, name: str) -> dict:
    """Text, answer and options of a problem of multiple choice, from the columns it needs."""
    shown = [cells["answer"], *(cells[column] for column in spec.choices.wrong)]
    order = option_order(seed, name, cells["id"], len(shown))
    lines = [f"({string.ascii_uppercase[i]}) {shown[index]}" for i, index in enumerate(order)]
    text = spec.choices.template.format(problem=cells["problem"], options="\n".join(lines))
    return {"problem": text, "answer": string.ascii_uppercase[order.index(0)], "options": order}


def _problems(
    rows: list[dict], where: str, spec: Benchmark, name: str, seed: int, verifier: str
) -> tuple[Problem, ...]:
    """Rows as problems. Ids and answers may be numbers; they become text."""
    named = {key: column for key, column in spec.columns if column is not None}
    named |= {column: column for column in spec.choices.wrong} if spec.choices else {}
    problems, seen = [], set()
    for number, row in enumerate(rows):
        missing = [column for column in named.values() if row.get(column) in (None, "")]
        if missing:
            raise TokenshiftError(
                f"{where}, row {number + 1} has no '{missing[0]}'; every problem needs "
                f"{', '.join(named.values())}, and this one has {', '.join(map(str, row))}"
            )
        cells = {"id": str(number)} | {key: str(row[column]) for key, column in named.items()}
        if cells["id"] in seen:
            raise TokenshiftError(
                f"{where}, row {number + 1} repeats the id '{cells['id']}'; make ids unique"
            )
        seen.add(cells["id"])
        content = {key: cells[key] for key in ("id", "problem", "answer")}
        content |= _choice(spec, cells, seed, name) if spec.choices else {}
        problems.append(Problem(verifier=verifier, **content))
    return tuple(problems)


def load_benchmark(study: Study, name: str) -> list[Problem]:
    """The problems of a benchmark of the study, the first ``limit`` of them where it has a limit.

    Raises
    ------
    TokenshiftError
        Where the benchmark is missing, empty or not as the study says.
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
    where = paths.display(place)
    if spec.hub is not None:
        rows, where = _read_data_set(place, spec), f"the data set {spec.hub}"
    else:
        rows = _read_parquet(place) if place.suffix == ".parquet" else read_rows(place)
    if not rows:
        raise TokenshiftError(f"{where} is empty; give at least one problem")
    if spec.problems not in (None, len(rows)):
        raise TokenshiftError(
            f"{where} has {len(rows)} rows where the study says 'problems: {spec.problems}'; see "
            "whether it is the version and the split that you mean"
        )
    return _problems(rows, where, spec, name, seed, verifier)


def digest(problems: list[Problem]) -> str:
    """A hash of the problems and their options' order, for the keys of what is computed on them."""
    text = json.dumps([[p.id, p.problem, p.answer, p.options] for p in problems])
    return hashlib.sha256(text.encode()).hexdigest()
