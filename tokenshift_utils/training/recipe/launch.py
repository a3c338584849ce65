"""Starting runs of a study's own data: the commands, and what they need.

The run itself is ``recipe.grpo``, started by accelerate.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import write_text
from tokenshift_utils.study import pins
from tokenshift_utils.study.study import Study
from tokenshift_utils.training.recipe.runs import (
    COMMAND_VARIABLE,
    AdapterArm,
    RecipeArm,
    start_directory,
)
from tokenshift_utils.training.runs import training_directory

MODULE = "tokenshift_utils.training.recipe.grpo"

# Of glibc: freed blocks of any size are kept, whose pages would otherwise be cleared anew in each forward.
KEEP_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**29),
}

_going: set[subprocess.Popen] = set()  # of runs under way


def announce(study: Study, runs: Sequence[RecipeArm]) -> None:
    """Write the config file of accelerate, where it starts the runs, and print the commands."""
    if study.training.lora is None:
        file = config_file(study)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, yaml.safe_dump(study.training.accelerate))
    if study.training.server is not None:
        print(f"server:\n  {server_line(study)}", flush=True)
    for run in runs:
        print(f"{run.name}:\n  {_line(study, 'train', launch_command(run))}", flush=True)


def fetch_inputs(study: Study) -> None:
    """Download what runs start from, or refuse: a machine that is too small, a hub out of reach."""
    check_machine(study)
    pins.fetch_sources(study, training=True)
    if moving := pins.unpinned(study, training=True):
        print(f"warning: {pins.unpinned_warning(study, moving)}", file=sys.stderr)


def launch(run: RecipeArm) -> None:
    """Start a run's processes and wait for them.

    Raises
    ------
    TokenshiftError
        Where the server doesn't answer, or the run stopped.
    """
    check_server(run.study)
    code = _wait(run, _visible(run.study, "train"))
    if code or not run.is_done():
        raise TokenshiftError(
            f"the run {run.name} stopped (exit code {code}), as its own messages above say; the same "
            "command goes on from its last checkpoint"
        )


def launch_apart(run: AdapterArm) -> None:
    """Start a run's process, with its output in a file, and wait for it.

    Raises
    ------
    TokenshiftError
        Where the run stopped; this says where it says why.
    """
    file = run.work / "output.log"
    print(f"{run.name} started; its output: {paths.display(file)}", flush=True)
    with file.open("ab") as output:
        settings = KEEP_BLOCKS | {"OMP_NUM_THREADS": str(run.threads)}
        code = _wait(run, settings, stdout=output, stderr=output)
    if code or not run.is_done():
        lines = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        raise TokenshiftError(
            f"{run.name} stopped; its output, {paths.display(file)}, ends with: "
            f"{' '.join(lines.strip().splitlines()[-1:])}; the same command goes on from its last "
            "checkpoint"
        )


def _wait(run: RecipeArm, settings: dict[str, str], **options) -> int:
    """The exit code of a run's process, with settings of its environment."""
    own = {paths.HOME_VARIABLE: str(paths.root()), COMMAND_VARIABLE: str(os.getpid())}
    env = os.environ | own | settings
    command = [sys.executable, "-m", *launch_command(run)]
    with subprocess.Popen(command, env=env, **options) as process:
        _going.add(process)
        try:
            return process.wait()
        finally:
            _going.remove(process)


def stop_runs() -> None:
    """End the processes of all runs that are going."""
    for process in list(_going):
        process.terminate()


def config_file(study: Study) -> Path:
    """Accelerate's config file."""
    return training_directory(study) / "accelerate.yaml"


# Commands -----------------------------------------------------------------------------------------


def launch_command(run: RecipeArm) -> list[str]:
    """Arguments of ``python -m`` that start a run, by accelerate but for adapters."""
    words = [MODULE]
    if run.study.training.lora is None:
        config = str(config_file(run.study))
        words = ["accelerate.commands.launch", "--config_file", config, "-m", MODULE]
    return [*words, "--study", run.called, "--arm", run.arm, "--seed", str(run.seed)]


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
    settings = [f"{name}={value}" for name, value in _visible(study, use).items()]
    return " ".join([*settings, shlex.join(words)])


# What must be there -------------------------------------------------------------------------------


def check_machine(study: Study) -> None:
    """Refuse a machine without the GPUs that the study names, or without a package it takes."""
    training = study.training
    for package, is_taken in (
        ("deepspeed", training.accelerate.get("distributed_type") == "DEEPSPEED"),
        ("vllm", training.server is not None),
    ):
        if is_taken and find_spec(package) is None:
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
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise TokenshiftError(
            f"no server answers at {url} ({reason}): start it in another terminal with "
            f"'{server_line(study)}' and wait until it is up"
        ) from None
