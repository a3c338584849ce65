"""Logs of training runs as tables: one row a rollout and minibatch, and the evaluations between."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenshift_utils.files import read_csv, read_json, unusable

if TYPE_CHECKING:
    from tokenshift_utils.training.runs import ArmRun

TRAIN_AGAIN = "restore it, or remove it and run tokenshift train, which makes it anew"


def summary_key(summary: Path) -> str | None:
    """The key of a finished run's ``summary.json``: of what it was made; None where there is none."""
    if not summary.is_file():
        return None
    content = read_json(summary, TRAIN_AGAIN)
    if not isinstance(content, dict) or not isinstance(content.get("key"), str):
        raise unusable(summary, ValueError("it has no 'key'"), TRAIN_AGAIN)
    return content["key"]


def overlong_penalty(limit: int, buffer: int):
    """DAPO's soft overlong punishment: from 0 to -1 over the last ``buffer`` of ``limit`` tokens."""

    def overlong(completions, completion_ids, **kwargs) -> list[float]:
        over = [len(ids) - (limit - buffer) for ids in completion_ids]
        return [-min(1.0, max(0.0, excess / buffer)) for excess in over]

    return overlong


LOG_COLUMNS = {  # of log.csv -> TRL's and our metrics
    "reward_mean": "reward",
    "correct_mean": "correct/sampled",
    "length_mean": "completions/mean_length",
    "entropy": "entropy",
    "kl_ref": "kl",
    "kl_base": "kl_base",
    "clip_fraction": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
    "weight_mean": "weights/mean",
    "weight_std": "weights/std",
    "weight_share_above_1": "weights/share_above_1",
    "k3_mean": "k3/mean",
    "k3_p50": "k3/p50",
    "k3_p90": "k3/p90",
    "k3_p99": "k3/p99",
    "tokens_generated": "tokens_generated",
    "tokens_trained": "tokens_trained",
    "groups_sampled": "groups_sampled",
    "groups_discarded": "groups_discarded",
}


def tidy_log(
    history: list[dict], updates_per_rollout: int, columns: dict[str, str] = LOG_COLUMNS
) -> pd.DataFrame:
    """One row an update; what is known once a rollout stands in the row of its first update."""
    rows = [row for row in history if "entropy" in row]
    return pd.DataFrame(
        {
            "rollout": [(row["step"] - 1) // updates_per_rollout + 1 for row in rows],
            "update": [row["step"] for row in rows],
        }
        | {column: [row.get(key) for row in rows] for column, key in columns.items()}
    ).astype(dict.fromkeys(columns, float))


def weights_by_token(run: ArmRun, tokenizer) -> pd.DataFrame:
    """Mean k3 and weight by token, over the sums of each phase's rollouts."""
    parts = []
    for phase, rollouts in run.token_rollouts.items():
        if not rollouts:
            continue
        files = [run.token_tables[rollout] for rollout in rollouts]
        sums = [read_csv(file, f"remove {file.parent}") for file in files]
        sums = pd.concat(sums).groupby("token").sum()
        parts.append(
            pd.DataFrame(
                {
                    "phase": phase,
                    "token": tokenizer.convert_ids_to_tokens(sums.index.tolist()),
                    "count": sums["count"].astype(int),
                    "k3_mean": sums["k3"] / sums["count"],
                    "weight_mean": sums["weight"] / sums["count"],
                }
            ).sort_values("count", ascending=False)
        )
    return pd.concat(parts)


def totals(log: pd.DataFrame) -> dict[str, int]:
    """What a run took, over all its rollouts."""
    names = ("tokens_generated", "tokens_trained", "groups_sampled")
    return {name: int(log[name].sum()) for name in names}


def tidy_evaluations(
    history: list[dict], updates_per_rollout: int, benchmarks: Iterable[str]
) -> pd.DataFrame:
    """One row a benchmark and evaluation; ``rollout`` is how many rollouts came before it."""
    rows = []
    for entry in history:
        # The row of a rollout's first update holds the evaluation made before that update.
        done = (entry.get("step", 0) - ("entropy" in entry)) // updates_per_rollout
        found = [name for name in benchmarks if f"accuracy/{name}" in entry]
        rows += [(done, name, entry[f"accuracy/{name}"]) for name in found]
    return pd.DataFrame(rows, columns=["rollout", "benchmark", "accuracy"])


def accuracy(answers: pd.DataFrame) -> dict[str, float]:
    """Accuracy by benchmark, of `Evaluator.answers`."""
    return answers.groupby("benchmark", sort=False)["correct"].mean().astype(float).to_dict()


def final_table(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a problem: benchmark, problem, samples, how many are right, mean length in tokens."""
    grouped = answers.groupby(["benchmark", "problem"], sort=False)
    table = grouped.agg(
        samples=("correct", "size"), correct=("correct", "sum"), length_mean=("length", "mean")
    )
    return table.round({"length_mean": 2}).reset_index()


def arm_tables(
    run: ArmRun, tokenizer, log: pd.DataFrame, curve: pd.DataFrame, answers: pd.DataFrame
) -> dict[str, tuple[pd.DataFrame, str | None]]:
    """The tables of an arm's run, as ``TrainingRun.finish`` takes them.

    The curve of a run of RL ends with the responses that an evaluation on the way would have drawn.
    """
    tables = {"log": (log, "%.5g"), "eval": (curve, "%.6g"), "final": (final_table(answers), None)}
    if run.objective.kind == "rl":
        few = run.study.training.evaluate
        part = answers[answers["sample"] < few.samples]
        if few.problems:
            part = part.groupby("benchmark", sort=False).head(few.problems * few.samples)
        last = [(run.rollouts, name, value) for name, value in accuracy(part).items()]
        curve = pd.concat([curve, pd.DataFrame(last, columns=curve.columns)])
        tables |= {"eval": (curve, "%.6g"), "tokens": (weights_by_token(run, tokenizer), "%.5g")}
    return tables


def settings_table(settings: dict[str, Any]) -> pd.DataFrame:
    """One row a setting, for a model's card."""
    return pd.DataFrame({"setting": settings.keys(), "value": [*map(str, settings.values())]})
