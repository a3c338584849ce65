"""How far long work is: a bar at a terminal, a plain line every half minute in a log.

What a process computes for another one, as a notebook's kernel does, it tells that one instead: in
the file that ``TOKENSHIFT_PROGRESS`` names, one JSON object a line.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from uuid import uuid4

from tqdm import tqdm

PROGRESS_VARIABLE = "TOKENSHIFT_PROGRESS"
EVERY = 30.0  # seconds between two lines of a log


class Progress:
    """Work of ``total`` units, of which some are done; shown while the context is entered.

    Parameters
    ----------
    unit : in the singular, "response"
    what : what is computed now, in a few words

    Examples
    --------
    >>> with Progress(2, "response") as progress:  # doctest: +SKIP
    ...     progress.now("rollouts of dapo on hard")
    ...     progress.advance()
    """

    def __init__(self, total: int, unit: str, what: str = "") -> None:
        self.done, self.before, self.total, self.unit, self.what = 0, 0, total, unit, what
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        self._ended = ExitStack()
        if os.environ.get(PROGRESS_VARIABLE):
            work = uuid4().hex
            self._show = lambda: tell(work=work, what=self.what, done=self.done, total=self.total)
            self._ended.callback(lambda: self.now(""))
        elif is_live():
            bar = tqdm(total=self.total, unit=self.unit, dynamic_ncols=True)
            self._show = lambda: self._move(bar)
            self._ended.callback(bar.close)
        else:
            self._show = lambda: None  # the next line says it
            self._ended.callback(lambda: print_line(self))
            self._ended.enter_context(repeating(lambda: print_line(self), EVERY))
        self._show()
        return self

    def __exit__(self, *raised) -> None:
        self._ended.close()

    def _move(self, bar: tqdm) -> None:
        changed = (bar.total, bar.desc) != (self.total, self.what and f"{self.what}: ")
        bar.total = self.total
        bar.set_description(self.what, refresh=False)
        if self.before and not bar.initial:
            bar.initial = bar.n = self.before
        bar.update(self.done - bar.n)
        if changed:
            bar.refresh()

    def advance(self, number: int = 1) -> None:
        """So many more units are done."""
        self.at(self.done + number)

    def at(self, done: int, total: int | None = None) -> None:
        """So many units are done, of so many."""
        self.done, self.total = done, self.total if total is None else total
        self._show()

    def resumed_at(self, done: int) -> None:
        """So many were done before this began: they say nothing of the rate."""
        self.before = done
        self.at(done)

    def now(self, what: str) -> None:
        """What is computed from now on."""
        if what != self.what:
            self.what = what
            self._show()

    def say(self, text: str) -> None:
        """A line of its own, on stderr."""
        tqdm.write(text, file=sys.stderr)

    def __str__(self) -> str:
        seconds = time.monotonic() - self.started
        said = amount(self.done, self.total, self.unit, seconds, self.before)
        return f"{self.what}: {said}" if self.what else said


def amount(done: int, total: int, unit: str, seconds: float, before: int = 0) -> str:
    """How much is done of how much, and after so many seconds the rate and the time left.

    What was done ``before`` says nothing of the rate.

    >>> amount(120, 480, "response", 60)
    '120 of 480 responses, 2.0/s, 03:00 left'
    >>> amount(5, 6, "run", 300, before=2)
    '5 of 6 runs, 0.6/min, 01:40 left'
    >>> amount(0, 480, "response", 60)
    '0 of 480 responses in 01:00'
    """
    counted = f"{done:,} of {total:,} {unit}s"
    new = done - before
    if new <= 0 or seconds <= 0 or done >= total:
        return f"{counted} in {tqdm.format_interval(seconds)}"
    rate = new / seconds
    said = f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
    return f"{counted}, {said}, {tqdm.format_interval((total - done) / rate)} left"


def is_live() -> bool:
    """Whether stderr goes to somebody who sees a bar move: a terminal, or a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


@contextmanager
def repeating(call: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call something every so many seconds while the context is entered, in a thread."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def print_line(what: object) -> None:
    """A line on stderr, at once; one that cannot be written is no reason to stop the work."""
    with suppress(OSError, ValueError):
        print(what, file=sys.stderr, flush=True)


@contextmanager
def gathering(environ: MutableMapping[str, str], variable: str) -> Iterator[Path]:
    """A file to which processes with this environment add lines: its variable names it meanwhile."""
    with TemporaryDirectory(prefix="tokenshift-") as directory:
        file = Path(directory) / "lines"
        environ[variable] = str(file)
        try:
            yield file
        finally:
            del environ[variable]


def tell(**said) -> None:
    """Add a line to the file of the process that this one works for, if it does."""
    if file := os.environ.get(PROGRESS_VARIABLE):
        with suppress(OSError), open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(said) + "\n")
