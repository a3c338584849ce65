"""``tokenshift train``: which runs are asked for, and making those that are not there yet."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent import futures
from dataclasses import replace

from filelock import Timeout

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.store.local_pool import end_with_parent
from tokenshift_utils.store.progress import Progress
from tokenshift_utils.study.study import Study
from tokenshift_utils.training.runs import TrainingRun, arm_runs
from tokenshift_utils.training.settings import check_settings
from tokenshift_utils.training.updates import Updates

PROCESSES = 2  # of one thread each, for runs on a CPU


def train_arms(
    study: Study,
    arm: str | None = None,
    seed: int | None = None,
    fresh: bool = False,
    dry: bool = False,
    named: str | None = None,
    processes: int | None = None,
) -> None:
    """Make the runs of the study's ``training`` section; ``arm`` and ``seed`` select some.

    What is finished is left, what was stopped goes on from its last checkpoint. ``dry`` prints what
    would be run, and writes no more than a config file. ``named`` is how a command line names the
    study. ``processes`` runs go side by side (None: two of a task, else one), each with threads of its
    own; of adapters one that stops doesn't stop the others, and the output of each is in a file.

    Raises
    ------
    TokenshiftError
        For an arm or seed that is not there, settings that TRL doesn't know or that don't multiply
        out, a model, data, package, GPU or server that is missing, a checkpoint of other settings, a
        run to be made afresh that another command is making; or a run that stopped.
    """
    runs = arm_runs(study, arm, seed, named)
    sizes = check_settings(study)
    full_model = study.training.data is not None and study.training.lora is None
    if full_model and (processes or 1) > 1:
        raise TokenshiftError(
            f"study {study.name} trains whole models, one run at a time: leave --processes out"
        )
    print(f"a rollout is {sizes.said}", flush=True)
    if study.training.data is not None:
        from tokenshift_utils.training.recipe.launch import announce, fetch_inputs

        announce(study, runs)
        if not dry:
            fetch_inputs(study)
    elif dry:
        print("\n".join(run.line for run in runs))
    if dry:
        return
    processes = processes or (1 if runs[0].launches else PROCESSES)
    if study.training.lora is not None:
        import torch

        threads = max(1, (os.cpu_count() or 1) // processes) if torch.cuda.is_available() else 1
        runs = [replace(run, threads=threads) for run in runs]
    make_runs(runs, fresh, processes)


def make_runs(runs: Sequence[TrainingRun], fresh: bool = False, processes: int = PROCESSES) -> None:
    """Make the runs that are not there yet, in their order, ``processes`` at a time.

    Each process takes the next run that is neither done nor under way, so that several commands can
    share the work.

    Raises
    ------
    TokenshiftError
        Where a run stopped, or another command is still at one when the others are made.
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
        _launch(todo, processes)
    else:
        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(processes, context, _one_thread) as pool:
            _watch(todo, [pool.submit(work_through, todo) for _ in range(processes)])
    if elsewhere := [run.name for run in todo if not run.is_done()]:
        raise TokenshiftError(
            f"{', '.join(elsewhere)} {'is' if len(elsewhere) == 1 else 'are'} under way in another "
            "command: give this one again once that is through"
        )


def _launch(runs: Sequence[TrainingRun], processes: int) -> None:
    """Make runs that start processes of their own, and end those where this command is stopped."""
    from tokenshift_utils.training.recipe.launch import stop_runs

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pool = futures.ThreadPoolExecutor(processes)
    try:
        _watch(runs, [pool.submit(work_through, [run]) for run in runs])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_runs()
        pool.shutdown()
        signal.signal(signal.SIGTERM, before)


def work_through(runs: Sequence[TrainingRun]) -> None:
    """Make every run that nobody else has made or is making."""
    for run in runs:
        try:
            with run.lock():
                if not run.is_done():
                    run.begin()
                    run.make(Updates(run.progress_file))
        except Timeout:
            continue


def _one_thread() -> None:
    """Set a worker process up."""
    import datasets
    import torch
    from transformers.utils import logging

    end_with_parent()
    torch.set_num_threads(1)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental; TRL is pinned
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _watch(runs: Sequence[TrainingRun], tasks: list[futures.Future]) -> None:
    """Show progress until the processes are through; raise what stopped one."""
    counts, finished, pending = {run.name: (0, run.updates) for run in runs}, set(), set(tasks)
    stopped = []
    with Progress(sum(run.updates for run in runs), "update") as progress:
        while pending:
            done, pending = futures.wait(pending, timeout=3, return_when=futures.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if isinstance(error, TokenshiftError) and runs[0].apart:
                    stopped.append(error)
                    progress.say(str(error))
                elif error is not None:
                    raise error
            for run in runs:
                if run.name in finished:
                    continue
                count, total = Updates.read(run.progress_file)
                total = total or counts[run.name][1]
                if run.is_done():
                    finished.add(run.name)
                    count = total
                    progress.say(f"trained {run.name}")
                counts[run.name] = count, total
            count, total = (sum(column) for column in zip(*counts.values()))
            if count and not progress.done:
                progress.resumed_at(count)  # what an earlier command did says nothing of the rate
            progress.now(f"{len(finished)} of {len(runs)} runs")
            progress.at(count, total)
    if len(stopped) > 1:
        raise TokenshiftError(f"{len(stopped)} runs stopped; the first: {stopped[0]}")
    if stopped:
        raise stopped[0]
