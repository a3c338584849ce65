"""The runs of a study's ``training`` section: which there are, their sizes, and where things are.

Under ``results/<study>/training``:

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
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.study.checkpoints import directory_fingerprint
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.training_schema import TrainingArm

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
        return digest(content)

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


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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


def problems_file(study: Study) -> Path:
    """The prompts and answers that every run of the study draws from."""
    return work_directory(study) / "problems.parquet"


def read_prepared(study: Study) -> dict:
    """What is known of the prepared problems: ``of``, ``digest`` and ``counts``."""
    file = work_directory(study) / "problems.json"
    return json.loads(file.read_text()) if file.is_file() else {"of": None, "digest": None}


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How responses are divided; ``group``, ``update`` and ``rollout`` count responses."""

    group: int  # to one problem
    update: int  # that one optimiser update trains on
    rollout: int  # sampled from one policy
    updates: int  # a rollout, over all its iterations
    iterations: int  # how often a rollout is trained on
    longest: int  # tokens of a response, at most

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
    iterations = of("num_iterations")
    updates = held // accumulated * iterations
    return Sizes(group, step * accumulated, step * held, updates, iterations, limit)


def _fields(module: str, name: str) -> dict[str, dataclasses.Field]:
    found = dataclasses.fields(getattr(import_module(module), name))
    return {field.name: field for field in found}
