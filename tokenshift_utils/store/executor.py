"""Compute what the store lacks, shard by shard, here or in other processes.

An artefact (``Artefact`` protocol) knows its key, its shards, the shards of other artefacts that
each of its own needs, and how to compute one. ``run`` computes every missing shard in an order that
respects those needs: in this process, in a few of this machine (``local_pool``), or as tasks of a
Ray cluster (``ray_pool``), as ``TOKENSHIFT_EXECUTOR`` says. A shard is written as soon as it
is done, so whatever ends a run early, the next one goes on from there. Every process computes with
one torch thread, so that records do not depend on how many processes there are, or where.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from graphlib import TopologicalSorter
from typing import Protocol, runtime_checkable

import pyarrow as pa
import torch

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.store.progress import Progress, gathering
from tokenshift_utils.store.store import Store, artefact_key
from tokenshift_utils.study.study import Study

EXECUTOR_VARIABLE = "TOKENSHIFT_EXECUTOR"
READS_VARIABLE = "TOKENSHIFT_READS"  # a file that gathers what is read, see noting_reads
EXECUTORS = ("local", "ray")
SEEN_WITHIN = 120.0  # seconds; network file systems hide another machine's new file for up to 60


class Artefact(Protocol):
    """A frozen, picklable description of records of one study."""

    kinds: tuple[str, ...]  # record kinds that computing a shard writes

    def parts(self, study: Study) -> dict:
        """All that determines the records, JSON-like: the store's key is a hash of it."""

    def weights(self, study: Study) -> list[int]:
        """Rows of each shard, for the progress bar; its length is the number of shards."""

    def needs(self, study: Study, shard: int) -> list[Job]:
        """Shards that must be in the store before this one is computed."""

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        """The tables of one shard, one for each of ``kinds``."""


@runtime_checkable
class Grows(Protocol):
    """An artefact whose records are added to: one key holds all that was asked for so far."""

    @property
    def canonical(self) -> Artefact:
        """The artefact of the same key of which nothing is asked."""

    def merge(self, other: Artefact) -> Artefact:
        """One of the same key that asks for what both ask for."""

    def covers(self, study: Study, shard: int) -> bool:
        """Whether a shard that is in the store has what is asked."""


@runtime_checkable
class View(Protocol):
    """An artefact without files of its own, that is read off another."""

    def underlying(self, study: Study) -> Artefact | None:
        """The other; None where in this study it has files of its own."""

    def view(self, study: Study, key: str, shard: int, kind: str) -> pa.Table:
        """A shard of it; ``key`` is that of the underlying artefact."""


@dataclass(frozen=True)
class Job:
    """One shard of an artefact."""

    artefact: Artefact
    shard: int


def store(study: Study) -> Store:
    """The study's store."""
    return Store(paths.records(study.name))


def key_of(study: Study, artefact: Artefact) -> str:
    """The artefact's key in the study's store."""
    kept = _keys.get()
    if kept is None:
        return artefact_key(artefact.parts(study))
    of = id(study), artefact
    if of not in kept:  # with the study, so that no other one gets its id meanwhile
        kept[of] = artefact_key(artefact.parts(study)), study
    return kept[of][0]


_keys: ContextVar[dict[tuple, tuple[str, Study]] | None] = ContextVar("_keys", default=None)


@contextmanager
def keys_kept() -> Iterator[None]:
    """While many records are looked for or read: each key is made of the files once."""
    token = _keys.set({} if _keys.get() is None else _keys.get())
    try:
        yield
    finally:
        _keys.reset(token)


def in_words(parts: dict) -> str:
    """What records of these parts are, in a few words; "" where the parts do not say."""
    models, benchmark = ", ".join(parts.get("models", ())), parts.get("benchmark")
    words = [parts.get("kind", ""), f"of {models}" if models else ""]
    return " ".join([word for word in words if word] + ([f"on {benchmark}"] if benchmark else []))


def is_done(study: Study, job: Job) -> bool:
    """Whether all the files of a job are in the store and intact, and hold what it asks for."""
    job = _stored(study, job)
    key, files = key_of(study, job.artefact), store(study)
    there = all(files.intact(kind, key, job.shard) for kind in job.artefact.kinds)
    return there and (not isinstance(job.artefact, Grows) or job.artefact.covers(study, job.shard))


def _underlying(study: Study, artefact: Artefact) -> Artefact | None:
    return artefact.underlying(study) if isinstance(artefact, View) else None


def _stored(study: Study, job: Job) -> Job:
    """The job whose files a job's records are in."""
    underlying = _underlying(study, job.artefact)
    return job if underlying is None else Job(underlying, job.shard)


def read(study: Study, artefact: Artefact, kind: str, columns=None) -> pa.Table:
    """All shards of a computed artefact, in order, as one table."""
    note_read(study, artefact)
    jobs = jobs_of(study, [artefact])
    return pa.concat_tables([read_shard(study, job, kind, columns) for job in jobs])


@contextmanager
def noting_reads(environ: MutableMapping[str, str]) -> Iterator[list[str]]:
    """Note what processes with this environment read of the store: ``kind/key``, sorted.

    The list is filled at the end. What was needed to compute a record counts as read with it.
    """
    found: list[str] = []
    with gathering(environ, READS_VARIABLE) as file:
        yield found
        if file.exists():
            found += sorted(set(file.read_text(encoding="utf-8").split()))


def note_read(study: Study, artefact: Artefact) -> None:
    """Say that an artefact was read: to `noting_reads`, and by the time of its key.json."""
    kept, waiting = set(), [artefact]
    while waiting:
        one = waiting.pop()
        one = _underlying(study, one) or one
        one = one.canonical if isinstance(one, Grows) else one
        if one in kept:
            continue
        kept.add(one)
        waiting += {
            job.artefact
            for shard in range(len(one.weights(study)))
            for job in one.needs(study, shard)
        }
    keys = [f"{kind}/{key_of(study, one)}" for one in kept for kind in one.kinds]
    for key in keys:
        with suppress(OSError):  # a store that can only be read
            os.utime(paths.records(study.name) / key / "key.json")
    if noted := os.environ.get(READS_VARIABLE):
        with open(noted, "a", encoding="utf-8") as stream:
            stream.write("".join(f"{key}\n" for key in keys))


def read_shard(study: Study, job: Job, kind: str, columns=None) -> pa.Table:
    """One computed shard."""
    there = _stored(study, job)
    key = key_of(study, there.artefact)
    if there is job:
        return store(study).read(kind, key, job.shard, columns)
    table = job.artefact.view(study, key, job.shard, kind)
    return table if columns is None else table.select(list(columns))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread, and leave the setting as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute(study: Study, job: Job) -> None:
    """Compute a job and write it, unless another process did so meanwhile."""
    artefact, files = job.artefact, store(study)
    parts = artefact.parts(study)
    key = artefact_key(parts)
    with files.lock(artefact.kinds[0], key, job.shard):
        if is_done(study, job):
            return
        with one_thread():
            tables = artefact.compute(study, job.shard)
        for kind in reversed(artefact.kinds):
            files.write(kind, key, job.shard, tables[kind], parts)


# Other processes --------------------------------------------------------------------------------


class Pool(Protocol):
    """Processes that do ``work``."""

    def submit(self, *arguments) -> Hashable:
        """Have a process call ``work`` with the arguments; what is returned stands for that."""

    def finished(self, tasks: Collection) -> Collection:
        """Wait until at least one of the tasks is done; those that are.

        Raises what ``work`` raised, and ``TokenshiftError`` where its process was lost for good.
        """

    def stop(self, tasks: Collection) -> None:
        """End the tasks, whatever they are at."""


def work(root: str, study: Study, job: Job, key: str) -> None:
    """Compute a job in another process; ``key`` is what the process that asks calls its records."""
    os.environ[paths.HOME_VARIABLE] = root
    if key_of(study, job.artefact) != key:
        raise TokenshiftError(
            f"a worker on {socket.gethostname()} reads other code, models or benchmarks than the "
            "process that it works for: let both use one checkout that nothing changes meanwhile"
        )
    for need in job.artefact.needs(study, job.shard):
        await_shard(study, need)
    compute(study, job)


def await_shard(study: Study, job: Job) -> None:
    """Wait for a shard that another machine wrote to be seen on this one."""
    end = time.monotonic() + SEEN_WITHIN
    while not is_done(study, job):
        if time.monotonic() > end:
            there = _stored(study, job).artefact
            file = store(study).file(there.kinds[0], key_of(study, there), job.shard)
            raise TokenshiftError(
                f"a worker wrote {file}, but it is not to be seen on {socket.gethostname()}: all "
                "machines must reach the checkout at the same path, on storage that they share"
            )
        time.sleep(0.2)


def chosen_executor() -> str:
    """The executor that ``TOKENSHIFT_EXECUTOR`` names; ``local`` where it is not set."""
    name = os.environ.get(EXECUTOR_VARIABLE) or "local"
    if name not in EXECUTORS:
        raise TokenshiftError(
            f"there is no executor '{name}' ({EXECUTOR_VARIABLE}, --executor): there are "
            f"{', '.join(EXECUTORS)}"
        )
    return name


def executor_running(study: Study) -> AbstractContextManager:
    """A context in which the chosen executor is up, for this process and those it starts.

    Raises
    ------
    TokenshiftError
        On entering, where it cannot be: Ray is not installed, not reached, or too small.
    """
    return _ray().cluster(study) if chosen_executor() == "ray" else nullcontext()


def _ray():
    logging.disable(logging.INFO)  # in a notebook Ray would name a package that it misses
    try:
        from tokenshift_utils.store import ray_pool
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise TokenshiftError(
            "the executor 'ray' needs the package ray: pip install 'tokenshift_utils[ray]'"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return ray_pool


def _pool(study: Study) -> Pool | None:
    """The processes to compute in; None for this one."""
    if chosen_executor() == "ray":
        return _ray().RayPool(study, work)
    if study.workers <= 1:
        return None
    from tokenshift_utils.store.local_pool import LocalPool

    return LocalPool(study.workers, work)


# Running ----------------------------------------------------------------------------------------


def missing(study: Study, jobs: Iterable[Job]) -> dict[Job, list[Job]]:
    """Every job that must be computed, needs first, with those of its needs that must be too.

    What several jobs ask of one shard that grows is one job.
    """
    needs: dict[Job, list[Job]] = {}
    asked: dict[tuple[Artefact, int], Artefact] = {}
    is_there = cache(partial(is_done, study))

    def collect(job: Job) -> None:
        if job in needs:
            return
        needs[job] = []
        artefact = job.artefact
        if isinstance(artefact, Grows):
            of = artefact.canonical, job.shard
            asked[of] = asked[of].merge(artefact) if of in asked else artefact
        elif is_there(job):
            return
        needs[job] = [_stored(study, need) for need in artefact.needs(study, job.shard)]
        for need in needs[job]:
            collect(need)

    def merged(job: Job) -> Job:
        if not isinstance(job.artefact, Grows):
            return job
        return Job(asked[job.artefact.canonical, job.shard], job.shard)

    for job in jobs:
        collect(_stored(study, job))
    plan: dict[Job, list[Job]] = {}
    seen: set[Job] = set()

    def visit(job: Job) -> None:
        if merged(job) in seen:
            return
        seen.add(merged(job))
        if is_there(merged(job)):
            return
        for need in needs[job]:
            visit(need)
        plan[merged(job)] = [merged(need) for need in needs[job] if merged(need) in plan]

    for job in list(needs):
        visit(job)
    return plan


def jobs_of(study: Study, artefacts: Iterable[Artefact]) -> list[Job]:
    """All shards of the artefacts."""
    return [Job(a, shard) for a in artefacts for shard in range(len(a.weights(study)))]


def run(study: Study, artefacts: Iterable[Artefact]) -> None:
    """Compute every shard of the artefacts that the study's store lacks, and show how far it is.

    Interrupting it stops the workers and leaves the finished shards.
    """
    with keys_kept():
        plan = missing(study, jobs_of(study, artefacts))
    if not plan:
        return
    from tokenshift_utils.tasks.context import tell_lengths  # (transformers, where work is done)

    tell_lengths(study, [artefact.parts(study) for artefact in {job.artefact for job in plan}])
    weights = {job: job.artefact.weights(study)[job.shard] for job in plan}
    pool = _pool(study)
    with Progress(sum(weights.values()), "response") as progress:

        def begun(job: Job) -> None:
            progress.now(in_words(job.artefact.parts(study)) or job.artefact.kinds[0])

        finished = _in_process if pool is None else partial(_in_pool, pool)
        for job in finished(study, plan, begun):
            progress.advance(weights[job])


Begun = Callable[[Job], None]  # told which job is under way, of several the one begun first


def _in_process(study: Study, plan: dict[Job, list[Job]], begun: Begun) -> Iterator[Job]:
    for job in plan:
        begun(job)
        compute(study, job)
        yield job


def _in_pool(pool: Pool, study: Study, plan: dict[Job, list[Job]], begun: Begun) -> Iterator[Job]:
    root, order = str(paths.root()), TopologicalSorter(plan)
    running: dict[Hashable, Job] = {}
    order.prepare()
    try:
        while order.is_active():
            for job in order.get_ready():
                task = pool.submit(root, study, job, key_of(study, job.artefact))
                running[task] = job
            begun(next(iter(running.values())))
            for task in pool.finished(running):
                job = running.pop(task)
                await_shard(study, job)
                order.done(job)
                yield job
    except BaseException:
        pool.stop(running)
        raise
