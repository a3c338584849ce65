"""TODO."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.weighting import Weighting
from tokenshift_utils.training.tiny import recipes
from tokenshift_utils.training.tiny.recipes import ARMS, Arm

Runs = dict[str, dict[int, "Run"]]  # by arm, then by seed


@dataclass(frozen=True)
class Run:
    """What one run left; see ``training.arms``."""

    arm: str
    seed: int
    log: pd.DataFrame
    evaluations: pd.DataFrame
    final: pd.DataFrame
    tokens: pd.DataFrame
    summary: dict

    @cached_property
    def scores(self) -> pd.Series:
        """mean@k by benchmark."""
        share = self.final["correct"] / self.final["samples"]
        return share.groupby(self.final["benchmark"]).mean()

    @property
    def score(self) -> float:
        """mean@k, mean of the benchmarks."""
        return float(self.scores.mean())

    @property
    def later(self) -> pd.DataFrame:
        """The log without the first update of each rollout, where k3 is 0 and every weight 1."""
        return self.log[self.log["rollout"].duplicated()]


def read_runs(study) -> Runs:
    """Every finished run of the comparison, arms in the plan's order, seeds ascending.

    Raises
    ------
    TokenshiftError
        Where a run's directory lacks a file, one cannot be read, or it is of another recipe.
    """
    root = paths.resolve(study.weighted.log_dir) / "arms"
    found: Runs = {}
    for arm in ARMS.arms:
        directories = {int(d.name.removeprefix("seed-")): d for d in root.glob(f"{arm}/seed-*")}
        if directories:
            found[arm] = {
                seed: _read_run(arm, seed, directories[seed]) for seed in sorted(directories)
            }
    return found


def _read_run(arm: str, seed: int, directory: Path) -> Run:
    try:
        frames = [pd.read_csv(directory / f"{n}.csv") for n in ("log", "eval", "final")]
        tokens = pd.read_csv(directory / "tokens.csv", keep_default_na=False)
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenshiftError(
            f"the run in {paths.display(directory)} cannot be read ({error}): remove the directory "
            f"and run tokenshift train --arm {arm} --seed {seed}"
        ) from None
    if summary["recipe"] != recipes.settings(_plan(arm).recipe):
        raise TokenshiftError(
            f"the run in {paths.display(directory)} is of another recipe than arm '{arm}' has now: "
            f"run tokenshift train --arm {arm} --seed {seed}"
        )
    return Run(arm, seed, *frames, tokens, summary)


def _plan(arm: str) -> Arm:
    return ARMS.arms[arm]


def _weighting(arm: str) -> Weighting | None:
    return _plan(arm).recipe.weighting
