"""Compute what the store lacks, shard by shard, on a few worker processes.

An artefact (``Artefact`` protocol) knows its key, its shards, the shards of other artefacts that
each of its own needs, and how to compute one. ``run`` computes every missing shard in an order that
respects those needs. A shard is written as soon as it is done, so whatever ends a run early, the
next one goes on from there. Every process computes with one torch thread, so that records do not
depend on how many processes there are.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import torch
from tqdm import tqdm

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.store import Store, artefact_key
from tokenshift_utils.study import Study


class Artefact(Protocol):
    """A frozen, picklable description of records of one study."""

    kinds: tuple[str, ...]  # record kinds that computing a shard writes

    def parts(self, study: Study) -> dict:
        """All that determines the records, JSON-like: the store's key is a hash of it."""
        ...

    def weights(self, study: Study) -> list[int]:
        """Rows of each shard, for the progress bar; its length is the number of shards."""
        ...

    def needs(self, study: Study, shard: int) -> list[Job]:
        """Shards that must be in the store before this one is computed."""
        ...

    def compute(self, study: Study, shard: int) -> dict[str, pa.Table]:
        """The tables of one shard, one for each of ``kinds``."""
        ...


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
    return artefact_key(artefact.parts(study))


def is_done(study: Study, job: Job) -> bool:
    """Whether all the files of a job are in the store and intact."""
    key, files = key_of(study, job.artefact), store(study)
    return all(files.intact(kind, key, job.shard) for kind in job.artefact.kinds)


def read(study: Study, artefact: Artefact, kind: str, columns=None) -> pa.Table:
    """All shards of a computed artefact, in order, as one table."""
    key, files = key_of(study, artefact), store(study)
    shards = range(len(artefact.weights(study)))
    return pa.concat_tables([files.read(kind, key, shard, columns) for shard in shards])


def read_shard(study: Study, job: Job, kind: str, columns=None) -> pa.Table:
    """One computed shard."""
    return store(study).read(kind, key_of(study, job.artefact), job.shard, columns)


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


# Workers ----------------------------------------------------------------------------------------


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End a worker whose parent was killed: it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _work(root: str, study: Study, job: Job) -> None:
    os.environ[paths.HOME_VARIABLE] = root
    compute(study, job)


_pools: dict[int, ProcessPoolExecutor] = {}


def _pool(workers: int) -> ProcessPoolExecutor:
    """The pool of this process, started once: loading torch takes a worker seconds."""
    if workers not in _pools:
        context = multiprocessing.get_context("spawn")
        _pools[workers] = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    return _pools[workers]


@atexit.register
def stop_workers() -> None:
    """End all worker processes, whatever they are at."""
    for pool in _pools.values():
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    _pools.clear()


# Running ----------------------------------------------------------------------------------------


def missing(study: Study, jobs: Iterable[Job]) -> dict[Job, list[Job]]:
    """Every job that must be computed, needs first, with those of its needs that must be too."""
    plan: dict[Job, list[Job]] = {}
    seen: set[Job] = set()

    def visit(job: Job) -> None:
        if job in seen:
            return
        seen.add(job)
        if is_done(study, job):
            return
        needs = job.artefact.needs(study, job.shard)
        for need in needs:
            visit(need)
        plan[job] = [need for need in needs if need in plan]

    for job in jobs:
        visit(job)
    return plan


def jobs_of(study: Study, artefacts: Iterable[Artefact]) -> list[Job]:
    """All shards of the artefacts."""
    return [Job(a, shard) for a in artefacts for shard in range(len(a.weights(study)))]


def run(study: Study, artefacts: Iterable[Artefact]) -> None:
    """Compute every shard of the artefacts that the study's store lacks, with a progress bar.

    Interrupting it stops the workers and leaves the finished shards.
    """
    plan = missing(study, jobs_of(study, artefacts))
    if not plan:
        return
    weights = {job: job.artefact.weights(study)[job.shard] for job in plan}
    kinds = sorted({job.artefact.kinds[0] for job in plan})
    with tqdm(total=sum(weights.values()), unit="response", desc=" + ".join(kinds)) as bar:
        finished = _in_process(study, plan) if study.workers <= 1 else _in_pool(study, plan)
        for job in finished:
            bar.update(weights[job])


def _in_process(study: Study, plan: dict[Job, list[Job]]) -> Iterator[Job]:
    for job in plan:
        compute(study, job)
        yield job


def _in_pool(study: Study, plan: dict[Job, list[Job]]) -> Iterator[Job]:
    pool, root = _pool(study.workers), str(paths.root())
    waiting = {job: set(needs) for job, needs in plan.items()}
    running: dict[Future, Job] = {}
    try:
        while waiting or running:
            for job in [job for job, needs in waiting.items() if not needs]:
                del waiting[job]
                running[pool.submit(_work, root, study, job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                future.result()
                for needs in waiting.values():
                    needs.discard(job)
                yield job
    except BrokenProcessPool:
        stop_workers()
        raise TokenshiftError(
            "a worker process was ended from outside, most likely for lack of memory; "
            "lower the study's 'workers' or 'batch' and run again: finished shards are kept"
        ) from None
    except BaseException:
        stop_workers()
        raise
