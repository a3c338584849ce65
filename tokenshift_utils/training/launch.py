"""`tokenshift train` for a study with a ``training`` section: what is run, checked and prepared.

The run itself is ``training.grpo``, started by accelerate. Under ``results/<study>/training``:

- ``accelerate.yaml``         accelerate's config file;
- ``arms/<arm>/seed-<n>``     ``log.csv`` (one row an update) and ``summary.json`` of a finished run;
- ``work``                    what is prepared once, and checkpoints of runs that are not finished.

The model is left where the study's ``models`` have it, for the first seed; those of other seeds
beside it, with ``-seed-<n>`` behind their name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tokenshift_utils import hub, paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.fingerprints import FINGERPRINTED, directory_fingerprint
from tokenshift_utils.study import Study, TrainingArm, load_study
from tokenshift_utils.tokenizer_checks import load_tokenizer

MODULE = "tokenshift_utils.training.grpo"
# Of GRPOConfig: what follows from other keys of the study.
OURS = {
    "output_dir": "the study's name",
    "seed": "--seed",
    "shuffle_dataset": "--seed",
    "max_steps": "'training.rollouts'",
    "num_train_epochs": "'training.rollouts'",
    "save_steps": "'training.save_every'",
    "save_strategy": "'training.save_every'",
    "generation_batch_size": "'steps_per_generation'",
    "use_vllm": "'training.server'",
    "vllm_mode": "'training.server'",
    "vllm_server_host": "'training.server'",
    "vllm_server_port": "'training.server'",
}


@dataclass(frozen=True)
class Run:
    """One arm with one seed, and where its things are."""

    study: Study
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """As messages and directories call it."""
        return f"{self.arm}-seed-{self.seed}"

    @property
    def objective(self) -> TrainingArm:
        """What the study says of the arm."""
        return self.study.training.arms[self.arm]

    @property
    def work(self) -> Path:
        """Checkpoints while it is under way, and ``key``, that says of what."""
        return work_directory(self.study) / self.name

    @property
    def logs(self) -> Path:
        """Log and summary of the finished run."""
        return training_directory(self.study) / "arms" / self.arm / f"seed-{self.seed}"

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        path = paths.resolve(self.study.models[self.arm].path)
        first = self.seed == self.study.training.seeds[0]
        return path if first else path.with_name(f"{path.name}-seed-{self.seed}")

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Where models go that the study wants from along the way, by rollouts made."""
        if self.seed != self.study.training.seeds[0]:
            return {}
        steps = self.study.models[self.arm].checkpoints
        return {c.step: paths.resolve(c.path) for c in steps if c.path is not None}

    @cached_property
    def key(self) -> str:
        """What determines the run: base, problems, objective and settings."""
        content = self.study.training.model_dump(
            mode="json", include={"rollouts", "save_every", "overlong_buffer", "trl"}
        )
        content |= {
            "arm": self.objective.model_dump(),
            "seed": self.seed,
            "base": directory_fingerprint(start_directory(self.study)),
            "problems": read_prepared(self.study)["digest"],
            "verifier": self.study.verifier,
        }
        return _digest(content)

    def is_done(self) -> bool:
        """Whether its summary is there, of these settings, and its model."""
        summary = self.logs / "summary.json"
        return (
            summary.is_file()
            and json.loads(summary.read_text())["key"] == self.key
            and all(
                any(place.glob("*.safetensors"))
                for place in (self.model, *self.checkpoints.values())
            )
        )


def training_directory(study: Study) -> Path:
    """Config file, logs and unfinished work of a study's training."""
    return paths.results(study.name) / "training"


def work_directory(study: Study) -> Path:
    """What is prepared, and what is not finished."""
    return training_directory(study) / "work"


def start_directory(study: Study) -> Path:
    """The model that runs start from: the base, under the study's settings."""
    return work_directory(study) / "start"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def train_study(
    name: str,
    arm: str | None = None,
    seed: int | None = None,
    fresh: bool = False,
    dry: bool = False,
) -> None:
    """Make an arm's runs, or every arm's, one after the other; ``seed`` selects one.

    What is finished is left, what was stopped goes on from its last checkpoint. ``dry`` writes the
    config file and prints the commands, no more.

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
    config = write_accelerate(study)
    print(f"a rollout is {sizes.said}", flush=True)
    if study.training.server is not None:
        print(f"server:\n  {server_line(study)}", flush=True)
    for run in runs:
        print(f"{run.name}:\n  {_line(study, 'train', launch_command(run, name, config))}")
    if dry:
        return
    check_machine(study)
    hub.fetch(study, training=True)
    if moving := hub.unpinned(study, training=True):
        print(f"warning: {hub.unpinned_warning(study, moving)}", file=sys.stderr)
    for run in runs:
        prepare(run, fresh)
        if run.is_done():
            print(f"{run.name} is done: {paths.display(run.model)}", flush=True)
            continue
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


def select_runs(study: Study, arm: str | None, seed: int | None) -> list[Run]:
    """The runs asked for, seed by seed over the arms, so that what is compared comes together."""
    training = study.training
    if arm is not None and arm not in training.arms:
        raise TokenshiftError(
            f"study {study.name} has no arm '{arm}': it has {', '.join(training.arms)}"
        )
    if seed is not None and seed not in training.seeds:
        raise TokenshiftError(
            f"study {study.name} has no seed {seed}: it has {', '.join(map(str, training.seeds))}"
        )
    seeds = training.seeds if seed is None else (seed,)
    return [Run(study, a, s) for s in seeds for a in ([arm] if arm else training.arms)]


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How responses are divided: all counts but ``updates`` are of responses."""

    group: int  # to one problem
    update: int  # that one optimiser update trains on
    rollout: int  # sampled from one policy
    updates: int  # a rollout, over all its iterations

    @property
    def problems(self) -> int:
        """Problems a rollout."""
        return self.rollout // self.group

    @property
    def said(self) -> str:
        """In words."""
        return (
            f"{self.problems} problems x {self.group} responses, then {self.updates} "
            f"updates of {self.update // self.group} x {self.group}"
        )


def check_settings(study: Study) -> Sizes:
    """Refuse settings that TRL doesn't know or that leave a part of a rollout over."""
    training = study.training
    for key, known, what in (
        ("trl", _fields("trl", "GRPOConfig"), "trl.GRPOConfig"),
        ("server", _fields("trl.scripts.vllm_serve", "ScriptArguments"), "trl vllm-serve"),
    ):
        for name in getattr(training, key) or {}:
            if name not in known:
                raise TokenshiftError(
                    f"study {study.name}: 'training.{key}' has '{name}', which {what} doesn't know"
                )
    for name in OURS.keys() & training.trl.keys():
        raise TokenshiftError(
            f"study {study.name}: 'training.trl' has '{name}', which follows from {OURS[name]}"
        )
    if "model" in (training.server or {}):
        raise TokenshiftError(
            f"study {study.name}: 'training.server' has 'model', which is the study's base"
        )
    defaults = _fields("trl", "GRPOConfig")

    def of(name: str) -> int:
        return training.trl.get(name, defaults[name].default)

    accumulated, group = of("gradient_accumulation_steps"), of("num_generations")
    step = of("per_device_train_batch_size") * training.accelerate.get("num_processes", 1)
    held = training.trl.get("steps_per_generation", accumulated)
    if step * accumulated % group or held % accumulated:
        raise TokenshiftError(
            f"study {study.name}: an update of {step * accumulated} responses must be whole groups "
            f"of {group}, and 'steps_per_generation' ({held}) whole updates of {accumulated} steps"
        )
    buffer, limit = training.overlong_buffer or 0, of("max_completion_length")
    if buffer > limit:
        raise TokenshiftError(
            f"study {study.name}: 'training.overlong_buffer' is {buffer}, more than the "
            f"{limit} tokens of 'max_completion_length'"
        )
    updates = held // accumulated * of("num_iterations")
    return Sizes(group, step * accumulated, step * held, updates)


def _fields(module: str, name: str) -> dict[str, dataclasses.Field]:
    from importlib import import_module

    found = dataclasses.fields(getattr(import_module(module), name))
    return {field.name: field for field in found}


def write_accelerate(study: Study) -> Path:
    """Write accelerate's config file."""
    file = training_directory(study) / "accelerate.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(study.training.accelerate))
    return file


# Commands -----------------------------------------------------------------------------------------


def launch_command(run: Run, study: str, config: Path) -> list[str]:
    """Arguments of ``python -m`` that start a run."""
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


# What is prepared ---------------------------------------------------------------------------------


def prepare(run: Run, fresh: bool = False) -> None:
    """Make what the run starts from, where it isn't there: the start model, problems, a key.

    ``fresh`` forgets what was made of the run.

    Raises
    ------
    TokenshiftError
        Where the base or the data are missing or damaged, or what is left of a stopped run is of
        other settings.
    """
    study = run.study
    write_start(study)
    _prepare_problems(study)
    if fresh:
        shutil.rmtree(run.work, ignore_errors=True)
        (run.logs / "summary.json").unlink(missing_ok=True)
    begun = run.work / "key"
    if begun.is_file() and begun.read_text() != run.key:
        raise TokenshiftError(
            f"{paths.display(run.work)} holds a run of other settings that was stopped: put those "
            "back to go on with it, or add --fresh to drop it"
        )
    if not begun.is_file() and not run.is_done():
        run.work.mkdir(parents=True, exist_ok=True)
        begun.write_text(run.key)


def write_start(study: Study) -> None:
    """Write the model that training and server start from: links to the base's files, but for

    - ``config.json``, with the study's ``max_position_embeddings``;
    - ``generation_config.json``, with nothing but the tokens that end a response, the study's
      ``stop_tokens`` among them: a server takes its other entries for defaults and limits, and
      Qwen2.5-Math-7B's ends every response at 2048 tokens.
    """
    from tokenshift_utils.hf_policy import model_ends
    from tokenshift_utils.inputs import check_model
    from tokenshift_utils.prompts import stop_token_ids

    base, spec = study.model_path(study.base), study.model(study.base)
    check_model(base, spec.trust_remote_code)
    tokenizer = load_tokenizer(base)
    config = json.loads((base / "config.json").read_text())
    if spec.max_position_embeddings is not None:
        config["max_position_embeddings"] = spec.max_position_embeddings
    ends = {*model_ends(base), *stop_token_ids(tokenizer, study.stop_tokens)}
    written = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": sorted(ends)}
        | ({} if tokenizer.pad_token_id is None else {"pad_token_id": tokenizer.pad_token_id}),
    }
    start = start_directory(study)
    start.mkdir(parents=True, exist_ok=True)
    linked = {f.name: f.resolve() for pattern in FINGERPRINTED for f in base.glob(pattern)}
    for file in start.iterdir():
        if file.name not in linked and file.name not in written:
            file.unlink()
    for name, file in linked.items():
        link = start / name
        if name not in written and not (link.is_symlink() and link.readlink() == file):
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    for name, content in written.items():
        _write(start / name, json.dumps(content, indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    """Write where it says something else: another run may be reading."""
    if file.is_symlink() or not file.is_file() or file.read_text() != text:
        draft = file.with_name(f".{file.name}.partial")
        draft.write_text(text)
        draft.replace(file)


def problems_file(study: Study) -> Path:
    """The prompts and answers that every run of the study draws from."""
    return work_directory(study) / "problems.parquet"


def read_prepared(study: Study) -> dict:
    """What is known of the prepared problems: ``of``, ``digest`` and ``counts``."""
    file = work_directory(study) / "problems.json"
    return json.loads(file.read_text()) if file.is_file() else {"of": None, "digest": None}


def _prepare_problems(study: Study) -> None:
    import pyarrow.parquet as pq

    from tokenshift_utils.prompts import prompt_parts
    from tokenshift_utils.training.data import read_problems

    place = study.training_data_path()
    of = _digest(
        {
            "data": study.training.data.model_dump(mode="json"),
            "place": [str(place), place.stat().st_mtime_ns if place.is_file() else 0],
            "prompt": prompt_parts(study),
            "tokenizer": directory_fingerprint(study.model_path(study.base)),
        }
    )
    if read_prepared(study)["of"] == of and problems_file(study).is_file():
        return
    table, counts = read_problems(study)
    draft = problems_file(study).with_suffix(".partial")
    pq.write_table(table, draft)
    draft.replace(problems_file(study))
    known = {"of": of, "digest": _digest(table.to_pydict()), "counts": counts}
    _write(work_directory(study) / "problems.json", json.dumps(known, indent=1) + "\n")
    print(f"{counts['problems']} problems to train on, of {counts['rows']} rows", flush=True)
