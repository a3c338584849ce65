"""`tokenshift train` for a study with a ``training`` section: the commands, and what they need.

The run itself is ``training.grpo``, started by accelerate.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import yaml

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import write_text
from tokenshift_utils.study import pins
from tokenshift_utils.study.study import Study, load_study
from tokenshift_utils.training.recipe.prepare import prepare
from tokenshift_utils.training.recipe.runs import (
    Run,
    check_settings,
    select_runs,
    start_directory,
    training_directory,
)

MODULE = "tokenshift_utils.training.recipe.grpo"


def train_study(
    name: str,
    arm: str | None = None,
    seed: int | None = None,
    fresh: bool = False,
    dry: bool = False,
    processes: int = 1,
) -> None:
    """Make an arm's runs, or every arm's, one after the other; ``seed`` selects one.

    What is finished is left, what was stopped goes on from its last checkpoint. ``dry`` writes the
    config file and prints the commands, no more. ``processes`` runs of adapters go side by side,
    each with its output in a file.

    Raises
    ------
    TokenshiftError
        For an arm or seed that is not there, settings that TRL doesn't know or that don't multiply
        out, a model or data that are missing, fewer GPUs than named, a package or server that is
        not there, a checkpoint of other settings; or a run that stopped.
    """
    study = load_study(name)
    runs = select_runs(study, arm, seed)
    sizes = check_settings(study)
    if processes > 1 and study.training.lora is None:
        raise TokenshiftError(
            f"study {study.name} trains whole models, one run at a time: leave --processes out"
        )
    config = None if study.training.lora is not None else write_accelerate(study)
    print(f"a rollout is {sizes.said}", flush=True)
    if study.training.server is not None:
        print(f"server:\n  {server_line(study)}", flush=True)
    for run in runs:
        print(f"{run.name}:\n  {_line(study, 'train', launch_command(run, name, config))}")
    if dry:
        return
    check_machine(study)
    pins.fetch(study, training=True)
    if moving := pins.unpinned(study, training=True):
        print(f"warning: {pins.unpinned_warning(study, moving)}", file=sys.stderr)
    todo = []
    for run in runs:
        prepare(run, fresh)
        if run.is_done():
            print(f"{run.name} is done: {paths.display(run.model)}", flush=True)
        else:
            todo.append(run)
    if study.training.lora is not None:
        # What is compared without weights comes first, whatever the seed.
        todo.sort(key=lambda run: run.objective.weighting is not None)
        commands = {run: [sys.executable, "-m", *launch_command(run, name, config)] for run in todo}
        train_side_by_side(commands, processes)
        return
    for run in todo:
        check_server(study)
        finished = subprocess.run(
            [sys.executable, "-m", *launch_command(run, name, config)],
            env=os.environ | {paths.HOME_VARIABLE: str(paths.root())} | _visible(study, "train"),
            check=False,
        )
        if finished.returncode or not run.is_done():
            raise TokenshiftError(
                f"the run {run.name} stopped (exit code {finished.returncode}), as its own messages "
                "above say; the same command goes on from its last checkpoint"
            )


def train_side_by_side(commands: dict[Run, list[str]], processes: int) -> None:
    """Run so many commands at a time, in order; a run that stops doesn't stop the others.

    Raises
    ------
    TokenshiftError
        At the end, where runs stopped; this names them, and where they say why.
    """
    waiting, going, stopped = list(commands), {}, []
    import torch

    threads = max(1, (os.cpu_count() or 1) // processes) if torch.cuda.is_available() else 1
    settings = {paths.HOME_VARIABLE: str(paths.root()), "OMP_NUM_THREADS": str(threads)}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while waiting or going:
            while waiting and len(going) < processes:
                run = waiting.pop(0)
                log = run.work / "output.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a") as output:
                    going[run] = subprocess.Popen(
                        commands[run], env=os.environ | settings, stdout=output, stderr=output
                    )
                print(f"{run.name} started; its output: {paths.display(log)}", flush=True)
            time.sleep(0.5)
            for run in [run for run, process in going.items() if process.poll() is not None]:
                code = going.pop(run).returncode
                if code or not run.is_done():
                    stopped.append(run)
                print(f"{run.name} {'stopped' if run in stopped else 'is done'}", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in going.values():
            process.terminate()
        for process in going.values():
            process.wait()
    if stopped:
        last = (stopped[0].work / "output.log").read_text().strip().splitlines()[-1:]
        raise TokenshiftError(
            f"{', '.join(run.name for run in stopped)} stopped; the first one's output, "
            f"{paths.display(stopped[0].work / 'output.log')}, ends with: {' '.join(last)}; the same "
            "command goes on from the last checkpoints"
        )


def write_accelerate(study: Study) -> Path:
    """Write accelerate's config file."""
    file = training_directory(study) / "accelerate.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(study.training.accelerate))
    return file


# Commands -----------------------------------------------------------------------------------------


def launch_command(run: Run, study: str, config: Path | None) -> list[str]:
    """Arguments of ``python -m`` that start a run, by accelerate where there is a config file."""
    launch = [MODULE]
    if config is not None:
        launch = ["accelerate.commands.launch", "--config_file", str(config), "-m", MODULE]
    return [*launch, "--study", study, "--arm", run.arm, "--seed", str(run.seed)]


def server_command(study: Study) -> list[str]:
    """Arguments of ``trl`` that start the server."""
    words = ["vllm-serve", "--model", str(start_directory(study))]
    for name, value in study.training.server.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


def server_line(study: Study) -> str:
    """The server's command line, for a shell."""
    return _line(study, "serve", ["trl", *server_command(study)])


def _visible(study: Study, use: str) -> dict[str, str]:
    gpus = study.training.gpus
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, getattr(gpus, use)))} if gpus else {}


def _line(study: Study, use: str, words: list[str]) -> str:
    if words[0] == "accelerate.commands.launch":
        words = ["accelerate", "launch", *words[1:]]
    elif words[0] == MODULE:
        words = ["python", "-m", *words]
    settings = [f"{name}={value}" for name, value in _visible(study, use).items()]
    return " ".join([*settings, shlex.join(words)])


# What must be there -------------------------------------------------------------------------------


def check_machine(study: Study) -> None:
    """Refuse a machine without the GPUs that the study names, or without a package it takes."""
    training = study.training
    wanted = []
    if training.accelerate.get("distributed_type") == "DEEPSPEED":
        wanted.append("deepspeed")
    if training.server is not None:
        wanted.append("vllm")
    for package in wanted:
        if find_spec(package) is None:
            raise TokenshiftError(
                f"study {study.name} trains with {package}, which is not installed here: "
                f"pip install {package}"
            )
    if training.gpus is None:
        return
    import torch

    there, named = torch.cuda.device_count(), (*training.gpus.train, *training.gpus.serve)
    if there <= max(named):
        raise TokenshiftError(
            f"study {study.name} takes {len(named)} GPUs, up to number {max(named)}, but there are "
            f"{there} here: change 'training.gpus', and what follows from it in 'training'"
        )


def check_server(study: Study) -> None:
    """Refuse to start without the server that draws responses."""
    if study.training.server is None:
        return
    from trl.scripts.vllm_serve import ScriptArguments

    given = ScriptArguments(model="", **study.training.server)
    url = f"http://{given.host}:{given.port}/health"
    try:
        with urllib.request.urlopen(url, timeout=10):
            return
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise TokenshiftError(
            f"no server answers at {url} ({reason}): start it in another terminal with "
            f"'{server_line(study)}' and wait until it is up"
        ) from None
