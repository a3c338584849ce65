"""What `reproduce` shows while notebooks run: how far the notebook is, and the whole run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
from tqdm import tqdm

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run.notebook import PARAMETERS
from tokenshift_utils.run.plan import SECTIONS
from tokenshift_utils.store import executor
from tokenshift_utils.store.progress import (
    EVERY,
    PROGRESS_VARIABLE,
    amount,
    gathering,
    is_live,
    print_line,
    repeating,
)
from tokenshift_utils.study.study import Study

UNIT = "response"


def requests_of(
    study: Study, given: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Study, list[executor.Artefact]]]:
    """What each notebook reads of the store, and the study as its parameters make it.

    One that cannot say is left out: it stops at that itself, and says where.

    Parameters
    ----------
    given : parameters of each notebook, in the order they run
    """
    found = {}
    for name, parameters in given.items():
        changed = {PARAMETERS[name][key]: v for key, v in parameters.items() if v is not None}
        with suppress(TokenshiftError):
            here = study.with_overrides(**changed) if changed else study
            found[name] = here, SECTIONS[name](here) if name in SECTIONS else []
    return found


def count_missing(study: Study, given: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Responses that each notebook will compute, those of earlier ones too."""
    seen, counts = set(), dict.fromkeys(given, 0)
    with executor.keys_kept():
        for name, (here, requests) in requests_of(study, given).items():
            with suppress(TokenshiftError):
                for job in executor.missing(here, executor.jobs_of(here, requests)):
                    identity = job.artefact.kinds[0], executor.key_of(here, job.artefact), job.shard
                    if identity not in seen:
                        seen.add(identity)
                        counts[name] += job.artefact.weights(here)[job.shard]
    return counts


class Shown:
    """Shows a run of some notebooks: two bars at a terminal, else a line every half minute.

    Parameters
    ----------
    planned : as `count_missing` gives it; more may turn out to be needed
    """

    def __init__(self, planned: Mapping[str, int]) -> None:
        self._planned = dict(planned)
        self._started = time.monotonic()
        self._done: dict[str, int] = {}  # of finished notebooks
        self._running = 0

    @contextmanager
    def notebook(
        self, source: Path, environ: MutableMapping[str, str] = os.environ
    ) -> Iterator[Said]:
        """Show how far a notebook is that processes with this environment execute meanwhile.

        Beside another one it has one bar, below those of the other.
        """
        said, beside = Said(source), self._running
        self._running += 1
        with ExitStack() as stack:
            stack.enter_context(said.listening(environ))
            bars, places = [], (beside + 1,) if beside else (0, 1)
            for place in places if is_live() else ():
                bar = tqdm(total=0, unit=UNIT, dynamic_ncols=True, position=place, leave=False)
                bars.append(stack.enter_context(bar))
            stack.enter_context(repeating(lambda: self._show(bars, said), 1.0 if bars else EVERY))
            self._show(bars, said)
            try:
                yield said
            finally:
                self._running -= 1
        self._done[source.stem] = said.counts()[0]
        print_line(f"{source.stem} done in {tqdm.format_interval(said.seconds)}")

    def line(self, said: Said) -> str:
        """Both, the notebook and the run, in a line."""
        (here, total), seconds = self._counts(said), time.monotonic() - self._started
        words = [self._where(said)]
        if here[1]:
            words.append(amount(*here, UNIT, said.seconds))
        run = f"whole run: {len(self._done)} of {len(self._planned)} notebooks"
        if total[1]:
            run += f", {amount(*total, UNIT, seconds)}"
        return f"{': '.join(words)} | {run}"

    def _where(self, said: Said) -> str:
        name, (cell, cells) = said.source.stem, said.cells()
        number = [*self._planned].index(name) + 1
        text = f"{name} ({number} of {len(self._planned)}), cell {cell} of {cells}"
        return f"{text}, {said.what()}" if said.what() else text

    def _counts(self, said: Said) -> tuple[tuple[int, int], tuple[int, int]]:
        """(done, total) of the notebook and of the run."""
        name, (done, asked) = said.source.stem, said.counts()
        here = (done, max(asked, self._planned[name]))
        later = [n for n in self._planned if n not in self._done and n != name]
        before = sum(self._done.values())
        total = before + here[1] + sum(self._planned[n] for n in later)
        return here, (before + done, total)

    def _show(self, bars: list[tqdm], said: Said) -> None:
        if not bars:
            print_line(self.line(said))
        words = self._where(said), f"whole run, {len(self._done)} of {len(self._planned)} notebooks"
        for bar, text, (done, total) in zip(bars, words, self._counts(said)):  # (one bar or both)
            bar.set_description(text, refresh=False)
            bar.n, bar.total = done, total
            bar.refresh()


class Said:
    """What a notebook's kernel has told so far, through `store.progress.tell`."""

    def __init__(self, source: Path) -> None:
        self.source, self._started = source, time.monotonic()
        self._works: dict[str, dict] = {}
        self._cell, self._read, self._file = 0, 0, None
        cells = nbformat.read(source, as_version=4).cells
        self._cells = 1 + sum(cell.cell_type == "code" for cell in cells)

    @property
    def seconds(self) -> float:
        """Since the notebook began."""
        return time.monotonic() - self._started

    @contextmanager
    def listening(self, environ: MutableMapping[str, str]) -> Iterator[None]:
        """Have processes with this environment tell their progress here."""
        with gathering(environ, PROGRESS_VARIABLE) as self._file:
            try:
                yield
            finally:
                self._listen()

    def _listen(self) -> None:
        if not self._file.exists():
            return
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        lines = data[: data.rfind(b"\n") + 1]  # the rest is still being written
        self._read += len(lines)
        for line in lines.splitlines():
            with suppress(ValueError):  # of a full disk a piece
                said = json.loads(line)
                if "work" in said:
                    self._works[said["work"]] = said
                self._cell = said.get("cell", self._cell)

    def counts(self) -> tuple[int, int]:
        """Responses done, and asked for so far."""
        self._listen()
        works = self._works.values()
        return sum(w["done"] for w in works), sum(w["total"] for w in works)

    def what(self) -> str:
        """What is computed now; "" between two computations."""
        return [*self._works.values()][-1]["what"] if self._works else ""

    def cells(self) -> tuple[int, int]:
        """The number of the cell that runs, and of cells in all, the injected parameters' too."""
        return self._cell, self._cells
