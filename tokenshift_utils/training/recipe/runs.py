"""Runs of a study's own data: TRL's trainer under accelerate, one process group a run.

Beside what ``training.runs`` says, ``results/<study>/training`` has ``accelerate.yaml`` (accelerate's
config file) and in ``work`` what is prepared once. The model is left where the study's ``models``
have it, for the first seed; those of other seeds beside it, with ``-seed-<n>`` behind their name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tokenshift_utils import paths
from tokenshift_utils.files import read_json
from tokenshift_utils.study.checkpoints import directory_fingerprint, weights_digest
from tokenshift_utils.study.study import Study
from tokenshift_utils.study.training_schema import ADAPTER_ARM, WEIGHTING
from tokenshift_utils.training.runs import ArmRun, digest, work_directory
from tokenshift_utils.training.settings import sizes_of

COMMAND_VARIABLE = "TOKENSHIFT_COMMAND"  # the process that started a run, with which it ends


@dataclass(frozen=True)
class RecipeArm(ArmRun):
    """An arm that makes a tuned model of the study."""

    launches: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = ("log",)

    @property
    def _first(self) -> bool:
        return self.seed == (self.objective.seeds or self.study.training.seeds)[0]

    @property
    def model_name(self) -> str:
        """What the model is called in records."""
        return self.arm if self._first else self.name

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        path = paths.resolve(self.study.trained_model(self.arm).path)
        return path if self._first else path.with_name(f"{path.name}-seed-{self.seed}")

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Where models go that the study wants from along the way, by rollouts made."""
        steps = self.study.trained_model(self.arm).checkpoints if self._first else ()
        return {c.step: paths.resolve(c.path) for c in steps if c.path is not None}

    @property
    def models(self) -> tuple[Path, ...]:
        return (self.model, *self.checkpoints.values())

    @property
    def updates(self) -> int:
        return self.rollouts * sizes_of(self.study).updates

    @property
    def settings(self) -> dict[str, Any]:
        training, weighting = self.study.training, self.objective.weighting
        settings = training.model_dump(mode="json", include={"rollouts", "accelerate"})
        settings |= {"overlong_buffer": self.overlong_buffer, "trl": self.trl}
        return {"weighting": weighting and asdict(weighting), "settings": settings}

    @cached_property
    def key(self) -> str:
        """A digest of base, problems, objective and settings."""
        training = self.study.training
        return digest(
            {
                "rollouts": training.rollouts,
                "save_every": training.save_every,
                "accelerate": training.accelerate,  # processes make an update larger
                "overlong_buffer": self.overlong_buffer,
                "trl": self.trl,
                "arm": self.objective.model_dump(include={*WEIGHTING}),
                "seed": self.seed,
                "base": directory_fingerprint(start_directory(self.study)),
                "problems": read_prepared(self.study)["digest"],
                "verifier": self.study.verifier,
            }
        )

    def prepare(self) -> None:
        """Make the start model and the problems, where they aren't there."""
        from tokenshift_utils.training.recipe.prepare import prepare

        prepare(self.study)

    def make(self, progress) -> None:
        """Start the processes that train, and wait for them."""
        from tokenshift_utils.training.recipe.launch import launch

        launch(self)


@dataclass(frozen=True)
class AdapterArm(RecipeArm):
    """An arm that makes a LoRA adapter on the study's base, by RL, SFT or DPO, in one process.

    The adapter of a weighted arm's later seeds may be left out: its logs are what is compared.
    """

    threads: int = field(default=1, compare=False)  # of its process

    apart: ClassVar[bool] = True

    @property
    def tables(self) -> tuple[str, ...]:
        """What it leaves: k3 and weights by token of RL alone."""
        rl = self.objective.kind == "rl"
        return ("log", "eval", "final", "tokens") if rl else ("log", "eval", "final")

    @property
    def models(self) -> tuple[Path, ...]:
        return () if self.objective.weighting and not self._first else super().models

    @property
    def updates(self) -> int:
        return super().updates if self.objective.kind == "rl" else 0

    @property
    def token_rollouts(self) -> dict[str, tuple[int, ...]]:
        if self.objective.kind != "rl":
            return {}
        last = self.rollouts
        early = tuple(r for r in (2, 3, 4) if r < last)
        late = (r for r in (last - 2, last - 1, last) if r > max(early, default=0))
        return {"early": early, "late": tuple(late)}

    @property
    def settings(self) -> dict[str, Any]:
        weighting = self.objective.weighting
        settings = {
            "rollouts": self.rollouts,
            "lora": self.study.training.lora.model_dump(),
            "arm": self.objective.model_dump(mode="json", include=ADAPTER_ARM),
            "trl": self.trl,
        }
        return {
            "weighting": weighting and asdict(weighting),
            "settings": settings,
            "measured": self.measured,
        }

    @cached_property
    def key(self) -> str:
        """A digest of base, problems, objective, settings, and how the run is measured."""
        only = {"rollouts", "save_every", "trl", "lora", "evaluate", "answers"}
        return digest(
            self.study.training.model_dump(mode="json", include=only)
            | {
                "overlong_buffer": self.overlong_buffer,
                "arm": self.objective.model_dump(mode="json", include=ADAPTER_ARM),
                "seed": self.seed,
                # Not the files around them, which another version of transformers words differently.
                "base": weights_digest(start_directory(self.study)),
                "problems": read_prepared(self.study)["digest"],
                "verifier": self.study.verifier,
                "measured": self.measured,  # SFT and DPO learn from answers that are so drawn
            }
        )

    def make(self, progress) -> None:
        """Start the process that trains, with its output in a file, and wait for it."""
        from tokenshift_utils.training.recipe.launch import launch_apart

        launch_apart(self)


def start_directory(study: Study) -> Path:
    """The model that runs start from: the base, under the study's settings."""
    return work_directory(study) / "start"


def problems_file(study: Study) -> Path:
    """The prompts and answers that every run of the study draws from."""
    return work_directory(study) / "problems.parquet"


def read_prepared(study: Study) -> dict:
    """What is known of the prepared problems: ``of``, ``digest`` and ``counts``."""
    file = work_directory(study) / "problems.json"
    if not file.is_file():
        return {"of": None, "digest": None}
    return read_json(file, "remove it and run the same command again")
