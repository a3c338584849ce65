"""``tokenshift train``: which runs are asked for, and making those that are not there yet."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)

from filelock import Timeout
from tqdm import tqdm

from tokenshift_utils import paths
from tokenshift_utils.study.study import Study
from tokenshift_utils.training.progress import Progress
from tokenshift_utils.training.runs import Run, arm_runs
from tokenshift_utils.training.settings import check_settings

PROCESSES = 2  # of one thread each, for runs on a CPU


def train_arms(
    study: Study,
    arm: str | None = None,
    seed: int | None = None,
    fresh: bool = False,
    dry: bool = False,
    named: str | None = None,
) -> None:
    """Make the runs of the study's ``training`` section; ``arm`` and ``seed`` select some.

    What is finished is left, what was stopped goes on from its last checkpoint. ``dry`` prints what
    would be run, and writes no more than a config file. ``named`` is how a command line names the
    study.

    Raises
    ------
    TokenshiftError
        For an arm or seed that is not there, settings that TRL doesn't know or that don't multiply
        out, a model, data, package, GPU or server that is missing, a checkpoint of other settings, a
        run to be made afresh that another command is making; or a run that stopped.
    """
    runs = arm_runs(study, arm, seed, named)
    sizes = check_settings(study)
    print(f"a rollout is {sizes.said}", flush=True)
    if study.training.data is not None:
        from tokenshift_utils.training.recipe.launch import announce, fetch_inputs

        announce(study, runs)
        if not dry:
            fetch_inputs(study)
    elif dry:
        print("\n".join(run.line for run in runs))
    if not dry:
        make_runs(runs, fresh, 1 if runs[0].launches else PROCESSES)


def make_runs(runs: Sequence[Run], fresh: bool = False, processes: int = PROCESSES) -> None:
    """Make the runs that are not there yet, in their order, ``processes`` at a time.

    Each process takes the next run that is neither done nor under way, so that several commands can
    share the work.
    """
    for run in runs:
        run.prepare()
        if fresh:
            run.forget()
    todo = [run for run in runs if not run.is_done()]
    for run in runs if len(runs) < 10 else ():
        if run not in todo:
            print(f"{run.name} is done: {paths.display((*run.models, run.logs)[0])}", flush=True)
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done; {len(todo)} to go", flush=True)
    for run in todo:
        run.check_begun()
    if not todo:
        return
    processes = min(processes, len(todo))
    if todo[0].launches:
        pool = ThreadPoolExecutor(processes)
    else:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(processes, context, _one_thread)
    with pool:
        _watch(todo, [pool.submit(work_through, todo) for _ in range(processes)])


def work_through(runs: Sequence[Run]) -> None:
    """Make every run that nobody else has made or is making."""
    for run in runs:
        try:
            with run.lock():
                if not run.is_done():
                    run.begin()
                    run.make(Progress(run.progress_file))
        except Timeout:
            continue


def _one_thread() -> None:
    """Set a worker process up."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental; TRL is pinned
    logging.disable_progress_bar()


def _watch(runs: Sequence[Run], futures: list[Future]) -> None:
    """Show progress until the processes are through; raise what stopped one."""
    counts, finished, pending = {run.name: (0, run.updates) for run in runs}, set(), set(futures)
    with tqdm(total=0, unit="update", smoothing=0.05, mininterval=2) as bar:
        while pending:
            done, pending = wait(pending, timeout=3, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            for run in runs:
                if run.name in finished:
                    continue
                count, total = Progress.read(run.progress_file)
                total = total or counts[run.name][1]
                if run.is_done():
                    finished.add(run.name)
                    count = total
                    tqdm.write(f"trained {run.name}")
                counts[run.name] = count, total
            count, bar.total = (sum(column) for column in zip(*counts.values()))
            if count and not bar.n:
                bar.initial = bar.n = count  # what an earlier command did says nothing of the rate
            bar.set_description(f"{len(finished)} of {len(runs)} runs", refresh=False)
            bar.update(count - bar.n)
