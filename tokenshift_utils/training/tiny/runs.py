"""The two kinds of runs that the embedded task has: the models that are shipped, and arms.

An arm (``arms/<arm>/seed-<n>``) leaves no weights, but

- ``log.csv``      one row an update, as of the shipped models;
- ``eval.csv``     accuracy along training;
- ``final.csv``    right answers of each problem at the end, for pass@k, intervals and paired tests;
- ``tokens.csv``   k3 and weight by token, early and late in the run, without each rollout's first
  update, where both are trivial;
- ``summary.json`` recipe, totals, and the shift from base: shares of positions by JS on the run's
  own responses and on base's, and on base's the set of high ones, so that arms can be compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tokenshift_utils.records.requests import study_sampling
from tokenshift_utils.study.checkpoints import directory_fingerprint
from tokenshift_utils.training.position_sets import SHIFT_SAMPLES
from tokenshift_utils.training.runs import ArmRun, TrainingRun, digest, training_directory
from tokenshift_utils.training.tiny import recipes
from tokenshift_utils.training.tiny.recipes import (
    OwnAnswersRecipe,
    Plan,
    RLRecipe,
    SupervisedRecipe,
)


@dataclass(frozen=True)
class ModelRun(TrainingRun):
    """A shipped model: next-token training of the base and the controls, or RLVR."""

    model: str
    plan: Plan

    @property
    def name(self) -> str:
        return self.model

    @property
    def replicated(self) -> tuple[str, int]:
        """The model of which it is a replicate, or itself, and the seed that it is trained with."""
        stem, _, seed = self.name.partition("-seed-")
        return stem, int(seed or self.plan.seed)

    @property
    def recipe(self) -> SupervisedRecipe | RLRecipe | OwnAnswersRecipe:
        """How it is trained."""
        is_base = self.name == self.study.base
        return self.plan.base if is_base else self.plan.recipes[self.replicated[0]]

    @property
    def logs(self) -> Path:
        return training_directory(self.study) / self.name

    @property
    def line(self) -> str:
        return f"tokenshift train --study {self.study.name} --only {self.name}"

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Where models from along the way go, by rollouts made."""
        steps = self.plan.checkpoints.get(self.name, ())
        return {step: self.study.model_path(f"{self.name}@{step}") for step in steps}

    @property
    def models(self) -> tuple[Path, ...]:
        stem, _ = self.replicated
        place = self.study.model_path(stem).with_name(self.name)
        more = {f"{self.name}-accuracy"} & self.study.models.keys()
        return (place, *self.checkpoints.values(), *map(place.with_name, more))

    @property
    def kept(self) -> dict[str, Path]:
        """Where a control of own answers leaves the models of ``models`` before they are shipped."""
        return {name: self.work / name for name in ("kl", "accuracy")}

    @property
    def updates(self) -> int:
        """Updates that it makes; of the others they are known once it has begun."""
        recipe = self.recipe
        return recipe.updates if isinstance(recipe, RLRecipe) else 0

    def of(self, name: str) -> ModelRun:
        """The run of another model of the plan."""
        return replace(self, model=name)

    @property
    def key(self) -> str:
        """A digest of recipe and seed and, but for the base, the base's key; of one that is trained
        until it is where an RL model is, that one's too."""
        is_base, recipe = self.name == self.study.base, self.recipe
        content = {
            "recipe": recipes.settings(recipe),
            "architecture": recipes.ARCHITECTURE,
            "seed": self.replicated[1],
            "checkpoints": self.plan.checkpoints.get(self.name, ()),
            "base": None if is_base else self.of(self.study.base).key,
        }
        if isinstance(recipe, OwnAnswersRecipe):
            content["like"] = self.of(recipe.like).key
        return digest(content)

    def make(self, progress) -> None:
        """Train it, and leave model, checkpoints, log and summary."""
        from tokenshift_utils.training.tiny.models import make_model

        make_model(self, progress)


@dataclass(frozen=True)
class TaskArm(ArmRun):
    """An arm of a study whose training is on the embedded task."""

    tables: ClassVar[tuple[str, ...]] = ("log", "eval", "final", "tokens")

    @property
    def settings(self) -> dict[str, Any]:
        return {"recipe": recipes.settings(self.recipe), "measured": self.measured}

    @property
    def updates(self) -> int:
        return self.recipe.updates

    @property
    def token_rollouts(self) -> dict[str, tuple[int, ...]]:
        """The rollouts whose k3 and weights are summed by token: four of either half, if there are.

        The first is left out where there is another: the policy is base, and weights just begin.
        """
        last = self.rollouts
        early = tuple(range(2, 1 + min(5, last // 2))) or (1,)
        return {"early": early, "late": tuple(range(max(early[-1], last - 4) + 1, last + 1))}

    def prepare(self) -> None:
        """Refuse a base that is not there."""
        directory_fingerprint(self.study.model_path(self.study.base))

    @cached_property
    def key(self) -> str:
        """A digest of recipe and seed, the base model, and how the run is measured."""
        evaluate = self.study.training.evaluate
        measured = {
            "evaluations": self.evaluations,
            "evaluation_samples": evaluate.samples,
            "final_samples": evaluate.final_samples,
            "shift_samples": SHIFT_SAMPLES,
            "token_tables": tuple(self.token_rollouts.values()),
        }
        return digest(
            {
                "recipe": recipes.settings(self.recipe),
                "seed": self.seed,
                "base": directory_fingerprint(self.study.model_path(self.study.base)),
                "measured": measured,
                "sampling": asdict(study_sampling(self.study)),
                "thresholds": self.study.thresholds.model_dump(mode="json"),
            }
        )

    def make(self, progress) -> None:
        """Train from the base model, measure, and leave the tables."""
        from tokenshift_utils.training.tiny.models import make_arm

        make_arm(self, progress)
