"""Runs that section 4 compares: read from what training left, and asked for as records otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, reduce

import pandas as pd

from tokenshift_utils import paths
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.files import check_sums, read_csv, read_json
from tokenshift_utils.measures.weighting import Weighting
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.study.study import Study, load_study
from tokenshift_utils.study.training_schema import Training
from tokenshift_utils.training.position_sets import high_set, shift_summary
from tokenshift_utils.training.runs import ArmRun, arm_runs
from tokenshift_utils.training.settings import Sizes, sizes_of

RUN_AGAIN = "run tokenshift train --arm {arm} --seed {seed}"


@dataclass(frozen=True)
class FinishedRun:
    """What one run left; see ``training.tiny.runs``. A kind of runs may leave some tables empty."""

    arm: str
    seed: int
    log: pd.DataFrame
    evaluations: pd.DataFrame
    final: pd.DataFrame
    tokens: pd.DataFrame
    summary: dict
    answered: int  # problems at its end, of which ``final`` has those that all runs answered

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


class Runs(dict[str, dict[int, FinishedRun]]):
    """Finished runs by arm and seed, and the training that they are of: arms by what they are for."""

    def __init__(self, study: Study):
        super().__init__()
        self.study = study if study.trained_in is None else load_study(study.trained_in)

    @cached_property
    def training(self) -> Training:
        """What the study says of all arms that are compared: those of RL."""
        training = self.study.training
        arms = {name: arm for name, arm in training.arms.items() if arm.kind == "rl"}
        return training.model_copy(update={"arms": arms})

    @property
    def baseline(self) -> str:
        """The arm that others are compared with."""
        return self.training.plain

    @cached_property
    def confirmatory(self) -> tuple[str, ...]:
        """The arms that are tested against the baseline, each once."""
        arms = self.training.arms.items()
        return tuple(n for n, a in arms if a.role == "confirmatory" and n != self.baseline)

    @property
    def shown(self) -> tuple[str, ...]:
        """The arms that figures are about: baseline and confirmatory ones; all where it is alone."""
        there = tuple(n for n in (self.baseline, *self.confirmatory) if n in self)
        return there if len(there) > 1 else tuple(self)

    def boost(self, recipe: str) -> str | None:
        """The confirmatory arm of a recipe: high-kl (alpha above 0) or low-kl (below)."""
        sign = {"high-kl": 1, "low-kl": -1}[recipe]
        weighted = [n for n in self.confirmatory if self.weighting(n)]
        return next((n for n in weighted if sign * self.weighting(n).alpha > 0), None)

    def label(self, arm: str) -> str:
        """The arm in words: its own label, or its model's."""
        model = self.study.models.get(arm)
        return self.training.arms[arm].label or (model.label if model else arm)

    def role(self, arm: str) -> str:
        """What the arm is for."""
        return self.training.arms[arm].role

    def against(self, arm: str) -> str:
        """The arm that it is compared with."""
        return self.training.arms[arm].against or self.baseline

    def weighting(self, arm: str) -> Weighting | None:
        """The arm's weights; None where it has none."""
        return self.training.arms[arm].weighting

    def strengths(self, boost: str) -> list[str]:
        """Arms that are a confirmatory boost at some ``|alpha|``, itself among them, by that."""
        own, same = self.weighting(boost), []
        for arm, settings in self.training.arms.items():
            weighting = settings.weighting
            alike = weighting and replace(weighting, alpha=own.alpha) == own
            if alike and weighting.alpha * own.alpha > 0 and self.trl(arm) == self.trl(boost):
                same.append(arm)
        return sorted(same, key=lambda arm: abs(self.weighting(arm).alpha))

    @cached_property
    def swept(self) -> set[str]:
        """Arms that are a confirmatory boost at another ``|alpha|``."""
        boosts = [arm for arm in self.confirmatory if self.weighting(arm)]
        return {arm for boost in boosts for arm in self.strengths(boost)}.difference(boosts)

    def planned(self, arm: str) -> tuple[int, ...]:
        """The arm's seeds."""
        return self.training.arms[arm].seeds or self.training.seeds

    @cached_property
    def sizes(self) -> Sizes:
        """How a rollout is divided."""
        return sizes_of(self.study)

    @property
    def samples(self) -> int:
        """Responses a problem at the end of a run."""
        evaluate = self.training.evaluate
        return evaluate.final_samples if evaluate else self.study.samples.accuracy

    def trl(self, arm: str) -> dict:
        """The arm's settings of TRL."""
        return self.training.trl | self.training.arms[arm].trl


def read_runs(study: Study) -> Runs:
    """Every finished run, arms in the study's order, seeds ascending.

    Of runs that leave a model and a log alone, responses to the benchmarks and shifts are records.
    All are scored on the problems that each of them answered.

    Raises
    ------
    TokenshiftError
        Where a run's directory lacks a file, one cannot be read, or it is of another recipe.
    """
    found, there = Runs(study), {}
    for run in arm_runs(found.study):
        if run.logs.is_dir():
            there.setdefault(run.arm, {})[run.seed] = run
    for arm in found.training.arms:
        if arm in there:
            found[arm] = {seed: _read_run(there[arm][seed]) for seed in sorted(there[arm])}
    _keep_shared(found)
    return found


def _keep_shared(runs: Runs) -> None:
    """Leave of every run's last answers those to problems that all runs answered."""
    problem = ["benchmark", "problem"]
    finals = [run.final.set_index(problem).index for own in runs.values() for run in own.values()]
    shared = reduce(pd.Index.intersection, finals) if finals else ()
    if all(len(final) == len(shared) for final in finals):
        return
    for own in runs.values():
        for seed, run in own.items():
            kept = run.final.set_index(problem).index.isin(shared)
            own[seed] = replace(run, final=run.final[kept].reset_index(drop=True))


def _read_run(run: ArmRun) -> FinishedRun:
    again = RUN_AGAIN.format(arm=run.arm, seed=run.seed)
    remedy = f"restore it, or remove {paths.display(run.logs)} and {again}"
    for name in (*(f"{name}.csv" for name in run.tables), "summary.json"):
        if not (run.logs / name).is_file():
            raise TokenshiftError(
                f"the run in {paths.display(run.logs)} has no file {name}: {remedy}"
            )
    check_sums(run.logs, remedy)
    frames = {  # a token may read "null"
        name: read_csv(run.logs / f"{name}.csv", remedy, keep_default_na=name != "tokens")
        for name in run.tables
    }
    summary = read_json(run.logs / "summary.json", remedy)
    if not run.made(summary):
        raise TokenshiftError(
            f"the run in {paths.display(run.logs)} is of another recipe than arm '{run.arm}' has "
            f"now, or measured by other settings than study {run.study.name} has: {again}"
        )
    if "final" not in frames:
        frames["final"], summary["shift"] = _of_model(run)
    empty = {
        "eval": pd.DataFrame(columns=["rollout", "benchmark", "accuracy"]),
        "tokens": pd.DataFrame(),
    }
    log, evaluations, final, tokens = (
        (empty | frames)[n] for n in ("log", "eval", "final", "tokens")
    )
    return FinishedRun(run.arm, run.seed, log, evaluations, final, tokens, summary, len(final))


def _of_model(run: ArmRun) -> tuple[pd.DataFrame, dict]:
    """What an arm of the embedded task writes at its end, from records of the model a run left."""
    study, name = run.study, run.model_name
    spec = study.models[run.arm].model_copy(update={"path": str(run.model), "checkpoints": ()})
    study = study.model_copy(update={"models": {**study.models, name: spec}})
    columns = ["benchmark", "problem", "correct", "n_tokens"]
    rollouts = fetch(study, Rollouts.of(study, name), columns=columns)
    grouped = rollouts.groupby(["benchmark", "problem"], sort=False)
    final = grouped.agg(
        samples=("correct", "size"), correct=("correct", "sum"), length_mean=("n_tokens", "mean")
    )
    shift = {}
    for place, source in (("own", name), ("base", study.base)):
        columns = ["benchmark", "problem", "sample", "position", "token", "js"]
        frame = fetch(study, Shifts.of(study, name, source), columns=columns)
        js = frame["js"].to_numpy()
        shift[place] = shift_summary(js, study.thresholds)
    responses = frame.drop(columns="js").to_csv(index=False)  # base's, the last ones
    shift["base"] |= high_set(js, study.thresholds, responses)
    return final.reset_index(), shift
