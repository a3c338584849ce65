"""Worker processes of this machine, for the executor."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType

import torch

from tokenshift_utils.errors import TokenshiftError


class LocalPool:
    """A ``Pool`` of so many processes, started once: loading torch takes one seconds."""

    def __init__(self, workers: int, work: Callable) -> None:
        self._processes, self._work = _processes(workers), work

    def submit(self, *arguments) -> Future:
        with _all_alive(), _alone():
            return self._processes.submit(self._work, *arguments)

    def finished(self, tasks: Collection[Future]) -> Collection[Future]:
        done, _ = wait(tasks, return_when=FIRST_COMPLETED)
        with _all_alive():
            for task in done:
                task.result()
        return done

    def stop(self, tasks: Collection[Future]) -> None:
        stop_workers()


@contextmanager
def _all_alive() -> Iterator[None]:
    """A lost worker as a sentence: one of this machine is not replaced."""
    try:
        yield
    except BrokenProcessPool:
        raise TokenshiftError(
            "a worker process was ended from outside, most likely for lack of memory; "
            "lower the study's 'workers' or 'batch' and run again: finished shards are kept"
        ) from None


@contextmanager
def _alone() -> Iterator[None]:
    """Processes that start meanwhile don't run the caller's script again, of which they need nothing.

    multiprocessing would have them import it: a plain script, without ``if __name__``, would fetch
    inside each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    torch.set_num_threads(1)
    end_with_parent()


def end_with_parent() -> None:
    """In a worker: end it when its parent was killed, for it would go on, or wait, for ever."""
    parent = os.getppid()
    _end_once(lambda: os.getppid() != parent)


def end_with(process: int) -> None:
    """End this process when another, on this machine, is gone."""

    def is_gone() -> bool:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        return False

    _end_once(is_gone)


def _end_once(is_gone: Callable[[], bool]) -> None:
    def watch() -> None:
        while not is_gone():
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_pools: dict[int, ProcessPoolExecutor] = {}


def _processes(workers: int) -> ProcessPoolExecutor:
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
