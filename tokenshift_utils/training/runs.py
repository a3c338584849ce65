"""Training runs: what one is of, where its things are, and whether it is done.

Under ``results/<study>/training``:

- ``<model>`` or ``arms/<arm>/seed-<n>``  tables and ``summary.json`` of a finished run, and their
  ``SHA256SUMS``, so that a damaged one is refused;
- ``work/<run>``                          its checkpoints while it is not finished, with ``<run>.lock``
  and ``<run>.progress`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock, Timeout

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import atomic_directory, write_sums, write_text
from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.training_schema import TrainingArm
from tokenshift_utils.training.logs import summary_key
from tokenshift_utils.training.settings import TASK_SETTINGS, sizes_of
from tokenshift_utils.training.tiny.recipes import RLRecipe

if TYPE_CHECKING:
    import pandas as pd

    from tokenshift_utils.training.updates import Updates


@dataclass(frozen=True)
class TrainingRun(ABC):
    """One run of a study. A kind of runs says what it is made of, how, and what it leaves."""

    study: Study

    launches: ClassVar[bool] = False  # ``make`` starts a process of its own
    apart: ClassVar[bool] = False  # one that stops doesn't stop the others
    models: ClassVar[tuple[Path, ...]] = ()  # directories of the models that it leaves
    updates: ClassVar[int] = 0  # that it makes; 0: known once it has begun

    @property
    @abstractmethod
    def name(self) -> str:
        """As messages and directories call it."""

    @property
    @abstractmethod
    def logs(self) -> Path:
        """Tables and summary of the finished run."""

    @property
    @abstractmethod
    def key(self) -> str:
        """A digest of what determines the run."""

    @abstractmethod
    def make(self, progress: Updates) -> None:
        """Train, from the last checkpoint where there is one, and leave everything."""

    def prepare(self) -> None:
        """Make what it starts from, or refuse where that can't be."""

    @property
    def work(self) -> Path:
        """Checkpoints while it is under way, and ``key``, that says of what."""
        return work_directory(self.study) / self.name

    @property
    def progress_file(self) -> Path:
        """How far it is; see ``updates``."""
        return self.work.with_name(f"{self.work.name}.progress")  # a name may have a dot in it

    @property
    def output(self) -> Path:
        """Where the trainer writes its checkpoints."""
        return self.work / "checkpoints"

    def is_done(self) -> bool:
        """Whether its summary is there, of this key, and its models."""
        return summary_key(self.logs / "summary.json") == self.key and all(
            any(place.glob("*.safetensors")) for place in self.models
        )

    def lock(self) -> FileLock:
        """Held while the run is made; a second one to ask for it gets a ``Timeout`` at once."""
        file = self.work.with_name(f"{self.work.name}.lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(file, timeout=0)

    def forget(self) -> None:
        """Drop what is left of it, so that it is made afresh.

        Raises
        ------
        TokenshiftError
            Where another command is making it.
        """
        try:
            with self.lock():
                shutil.rmtree(self.work, ignore_errors=True)
                self.progress_file.unlink(missing_ok=True)
                (self.logs / "summary.json").unlink(missing_ok=True)
        except Timeout:
            raise TokenshiftError(
                f"the run {self.name} is under way in another command: stop that one, or leave out "
                "--fresh"
            ) from None

    def check_begun(self) -> None:
        """Refuse to go on from checkpoints of other settings."""
        begun = self.work / "key"
        if begun.is_file() and begun.read_bytes() != self.key.encode():
            raise TokenshiftError(
                f"{paths.display(self.work)} holds a run of other settings that was stopped: put "
                "those back to go on with it, or add --fresh to drop it"
            )

    def begin(self) -> None:
        """Open the place of its checkpoints."""
        self.check_begun()
        self.work.mkdir(parents=True, exist_ok=True)
        write_text(self.work / "key", self.key)

    def finish(self, summary: dict[str, Any], **tables: tuple[pd.DataFrame, str | None]) -> None:
        """Write ``summary.json`` and tables (name: frame, format of floats), all or nothing."""
        with atomic_directory(self.logs) as draft:
            for name, (table, digits) in tables.items():
                table.to_csv(draft / f"{name}.csv", index=False, float_format=digits)
            write_text(draft / "summary.json", json.dumps(summary, indent=1) + "\n")
            write_sums(draft)
        shutil.rmtree(self.work)
        self.progress_file.unlink(missing_ok=True)


@dataclass(frozen=True)
class ArmRun(TrainingRun):
    """One arm of the study's ``training`` section with one seed."""

    arm: str
    seed: int
    named: str | None = field(default=None, compare=False)  # the study, on a command line

    tables: ClassVar[tuple[str, ...]]  # that it leaves

    @property
    def name(self) -> str:
        return f"{self.arm}-seed-{self.seed}"

    @property
    def logs(self) -> Path:
        return training_directory(self.study) / "arms" / self.arm / f"seed-{self.seed}"

    @property
    def called(self) -> str:
        """The study, on a command line."""
        return self.named or self.study.name

    @property
    def line(self) -> str:
        """The command that makes it, for a shell."""
        return f"tokenshift train --study {self.called} --arm {self.arm} --seed {self.seed}"

    @property
    def objective(self) -> TrainingArm:
        """What the study says of the arm."""
        return self.study.training.arms[self.arm]

    @cached_property
    def trl(self) -> dict[str, Any]:
        """The arm's settings of TRL."""
        shared = self.study.training.trl if self.objective.kind == "rl" else {}
        return shared | self.objective.trl

    @cached_property
    def recipe(self) -> RLRecipe:
        """The settings of RL as the trainer reads them; where the study leaves one out, TRL's own."""
        sizes, own = sizes_of(self.study), {"loss_type": "dapo", "epsilon": 0.2, "beta": 0.0}
        trl = own | {"epsilon_high": self.trl.get("epsilon", 0.2)} | self.trl
        return RLRecipe(
            prompts_per_rollout=sizes.problems,
            responses_per_prompt=sizes.group,
            dynamic_sampling=self.objective.dynamic_sampling,
            overlong_buffer=self.overlong_buffer,
            weighting=self.objective.weighting,
            refill_whole=False,
            rollouts=self.rollouts,
            updates_per_rollout=sizes.updates,
            max_new_tokens=sizes.longest,
            **{field: trl[name] for name, field in TASK_SETTINGS.items() if name in trl},
        )

    @property
    def rollouts(self) -> int:
        """How many the run makes."""
        return self.objective.rollouts or self.study.training.rollouts

    @property
    def evaluations(self) -> tuple[int, ...]:
        """The rollouts after which it is evaluated, the last one apart."""
        return tuple(range(0, self.rollouts, self.study.training.evaluate.every))

    @property
    def token_rollouts(self) -> dict[str, tuple[int, ...]]:
        """The rollouts whose k3 and weights are summed by token: early ones and late ones."""
        return {}

    @property
    def token_tables(self) -> dict[int, Path]:
        """Where those sums go, by rollout."""
        wanted = chain.from_iterable(self.token_rollouts.values())
        return {rollout: self.work / f"tokens-{rollout}.csv" for rollout in wanted}

    @property
    def overlong_buffer(self) -> int | None:
        """Tokens over which DAPO's length penalty grows; None: there is none."""
        own = self.objective.overlong_buffer
        return (self.study.training.overlong_buffer if own is None else own) or None

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The part of the summary that is the recipe: a run of another one isn't of the arm."""

    @property
    def measured(self) -> dict[str, Any]:
        """How the answers and the shift of a run that leaves these are measured."""
        study = self.study
        return {
            "sampling": asdict(study_sampling(study)),
            "stop_tokens": [*study.stop_tokens],
            "final_samples": study.training.evaluate.final_samples,
            "thresholds": study.thresholds.model_dump(mode="json"),
        }

    def made(self, summary: dict[str, Any]) -> bool:
        """Whether a summary is of this run as the study has it now, as far as committed files say."""
        settings = json.loads(json.dumps(self.settings))
        return {name: summary.get(name) for name in settings} == settings


def arm_runs(
    study: Study, arm: str | None = None, seed: int | None = None, named: str | None = None
) -> list[ArmRun]:
    """The runs asked for, by priority: role by role, and within a role seed by seed over its arms.

    ``arm`` names one, or several with commas between them; None: all. ``named`` is how a command line
    names the study. Of adapters, what is compared without weights comes first.

    Raises
    ------
    TokenshiftError
        For a study without a training, or an arm or a seed that is not there.
    """
    training = study.training
    if training is None:
        raise TokenshiftError(
            f"study {study.name} has nothing to train: it has no 'training' section"
            + (f", and its models are made by study {study.trained_in}" if study.trained_in else "")
        )
    if training.task is not None:
        from tokenshift_utils.training.tiny.runs import TaskArm as kind
    elif training.lora is not None:
        from tokenshift_utils.training.recipe.runs import AdapterArm as kind
    else:
        from tokenshift_utils.training.recipe.runs import RecipeArm as kind
    arms = arm.split(",") if arm else list(training.arms)
    for name in arms:
        if name not in training.arms:
            raise TokenshiftError(
                f"study {study.name} has no arm '{name}': it has {', '.join(training.arms)}"
            )
    own = {name: training.arms[name].seeds or training.seeds for name in arms}
    every = sorted({s for seeds in own.values() for s in seeds})
    if seed is not None and seed not in every:
        raise TokenshiftError(
            f"study {study.name} has no seed {seed}: it has {', '.join(map(str, every))}"
        )
    runs = [
        kind(study, name, s, named)
        for role in ROLES
        for s in every
        for name, seeds in own.items()
        if training.arms[name].role == role and s in seeds and seed in (None, s)
    ]
    if training.lora is not None:
        runs.sort(key=lambda run: run.objective.weighting is not None)
    return runs


ROLES = ("confirmatory", "control", "exploratory")  # in the order in which their runs are made


def training_directory(study: Study) -> Path:
    """Logs and unfinished work of a study's training."""
    return paths.results(study.name) / "training"


def work_directory(study: Study) -> Path:
    """What is prepared, and what is not finished."""
    return training_directory(study) / "work"


def digest(content: Any) -> str:
    """The first 16 digits of the sha256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
