"""Runs that section 4 compares, read from their training logs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import check_sums, read_csv, read_json
from tokenshift_utils.measures.weighting import Weighting
from tokenshift_utils.training.tiny import recipes
from tokenshift_utils.training.tiny.recipes import ARMS, Arm

FILES = ("log.csv", "eval.csv", "final.csv", "tokens.csv", "summary.json")
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
    remedy = (
        f"restore it, or remove {paths.display(directory)} and run tokenshift train --arm {arm} "
        f"--seed {seed}"
    )
    lacking = [name for name in FILES if not (directory / name).is_file()]
    if lacking:
        raise TokenshiftError(
            f"the run in {paths.display(directory)} has no file {lacking[0]}: {remedy}"
        )
    check_sums(directory, remedy)
    frames = [read_csv(directory / name, remedy) for name in FILES[:3]]
    tokens = read_csv(directory / "tokens.csv", remedy, keep_default_na=False)
    summary = read_json(directory / "summary.json", remedy)
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
