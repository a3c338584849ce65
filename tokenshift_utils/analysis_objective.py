"""Section 4: the divergence-weighted objective, from training logs and finished models (numbers).

Nothing is trained here. Training leaves log.csv (one row an update; what is known once a rollout
stands in the row of its first update), eval.csv and summary.json for each model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from tokenshift_utils import paths
from tokenshift_utils.analysis_common import by_benchmark, evidence, percent, plan, points
from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.weighting import Weighting, divergence_weights

__all__ = [
    "Training",
    "arms",
    "objective_evidence",
    "objective_table",
    "read_training",
    "say_objective",
    "say_training",
    "say_weights",
    "training_table",
    "weight_curves",
]


@dataclass(frozen=True)
class Training:
    """What training one model left: log by update, evaluations by rollout, summary."""

    log: pd.DataFrame
    evaluations: pd.DataFrame
    summary: dict

    @property
    def weighting(self) -> Weighting | None:
        """The divergence weighting of the recipe; None for a plain run."""
        found = self.summary.get("recipe", {}).get("weighting")
        return Weighting(found["alpha"], found["scale"]) if found else None

    def by_rollout(self, column: str) -> pd.Series:
        """Mean over a rollout's updates of a column, empty where the log lacks it."""
        if column not in self.log:
            return pd.Series(dtype=float)
        return self.log.groupby("rollout")[column].mean().dropna()


def arms(study) -> list[str]:
    """The baseline and its weighted variants."""
    return [study.weighted.baseline, *study.weighted.arms]


def read_training(study) -> dict[str, Training]:
    """Training logs of the baseline and the arms; a model without logs is left out.

    Raises
    ------
    TokenshiftError
        Where a log is there but its summary is not, or is not JSON.
    """
    found = {}
    for model in arms(study):
        directory = paths.resolve(study.weighted.log_dir) / model
        if not (directory / "log.csv").is_file():
            continue
        try:
            summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise TokenshiftError(
                f"{paths.display(directory / 'summary.json')} cannot be read ({error}): train the "
                f"model '{model}' again, or remove its directory"
            ) from None
        evaluations = directory / "eval.csv"
        found[model] = Training(
            pd.read_csv(directory / "log.csv"),
            pd.read_csv(evaluations) if evaluations.is_file() else pd.DataFrame(),
            summary,
        )
    return found


def weight_curves(training: dict[str, Training], points: int = 200) -> pd.DataFrame:
    """The weight as a function of the KL estimate, for each weighted arm: model, kl, weight."""
    grid = np.concatenate([[0.0], np.logspace(-6, 0, points - 1)])
    parts = [
        pd.DataFrame(
            {
                "model": model,
                "kl": grid,
                "weight": divergence_weights(torch.tensor(grid), run.weighting).numpy(),
            }
        )
        for model, run in training.items()
        if run.weighting is not None
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"model": []})


def training_table(study, training: dict[str, Training]) -> pd.DataFrame:
    """How each run was trained and what its weights did.

    Means over updates, without the first update of each rollout for weights and KL: there the
    policy is still the one that sampled, so KL is 0 and every weight 1.
    """
    rows = []
    for model, run in training.items():
        later = run.log[run.log["rollout"].duplicated()]
        weighting = run.weighting
        discarded, sampled = (
            run.log[c].sum() if c in run.log else np.nan
            for c in ("groups_discarded", "groups_sampled")
        )
        row = {
            "objective": study.models[model].label,
            "model": model,
            "alpha": weighting.alpha if weighting else np.nan,
            "scale": weighting.scale if weighting else np.nan,
            "updates": len(run.log),
            "tokens_generated": int(run.log["tokens_generated"].sum()),
            "tokens_trained": int(run.log["tokens_trained"].sum()),
            "groups_discarded_share": discarded / sampled if sampled else np.nan,
        }
        for column in ("k3_mean", "k3_p90", "k3_p99", "weight_mean", "weight_std"):
            row[column] = float(later[column].mean()) if column in later else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def objective_table(study, rollouts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The form of the paper's Table 2: accuracy of each arm per benchmark and on average.

    `average` is the mean of the benchmarks; `gain` its paired difference to the baseline.
    """
    boot, rows = plan(study, *rollouts.values()), []
    baseline = boot.mean_of_benchmarks(rollouts[study.weighted.baseline])
    for model, frame in rollouts.items():
        row = {"objective": study.models[model].label, "model": model}
        row["samples"] = int(frame.groupby(["benchmark", "problem"]).size().max())
        for benchmark, part in by_benchmark(study, frame):
            if part["benchmark"].nunique() == 1:
                row |= boot.accuracy(part).columns(benchmark)
        average = boot.mean_of_benchmarks(frame)
        gain = (average - baseline).columns("gain")
        if model == study.weighted.baseline:
            gain = dict.fromkeys(gain, np.nan)
        rows.append(row | average.columns("average") | gain)
    return pd.DataFrame(rows)


def objective_evidence(study, rollouts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What the claims of section 4 look at."""
    boot, base = plan(study, *rollouts.values()), study.weighted.baseline
    mean = {model: boot.mean_of_benchmarks(frame) for model, frame in rollouts.items()}
    rows = [("boost_gain", arm, mean[arm] - mean[base], "") for arm in study.weighted.arms]
    if {"dapo-high-kl", "dapo-low-kl"} <= set(mean):
        difference = mean["dapo-high-kl"] - mean["dapo-low-kl"]
        rows.append(("boost_difference", "dapo-high-kl", difference, ""))
    return evidence(rows)


def say_weights(study, table: pd.DataFrame) -> str:
    """What the weights were in training, from the training table."""
    if table.empty:
        return "This study has no training logs."
    out = []
    for _, row in table[table["alpha"].notna()].iterrows():
        out.append(
            f"{row['objective']} (alpha {row['alpha']:g}, scale {row['scale']:g}): after the first "
            f"update of a rollout the mean KL estimate is {row['k3_mean']:.2g} nats and the mean "
            f"weight {row['weight_mean']:.3f} (standard deviation over tokens "
            f"{row['weight_std']:.3f}), so the step size changes by that factor too."
        )
    return "\n".join(out) or "None of the runs with logs is weighted."


def say_training(study, training: dict[str, Training]) -> str:
    """Where the runs ended, over the last quarter of their rollouts."""
    out = []
    for model, run in training.items():
        parts = []
        for column, text in (("correct_mean", "{:.1%} right"), ("length_mean", "{:.0f} tokens"),
                             ("entropy", "entropy {:.3f} nats")):  # fmt: skip
            values = run.by_rollout(column)
            if len(values):
                parts.append(text.format(values.iloc[-max(1, len(values) // 4) :].mean()))
        out.append(f"{study.models[model].label}: {', '.join(parts)}.")
    if not out:
        return "This study has no training logs."
    return "Over the last quarter of the rollouts, among sampled responses:\n" + "\n".join(out)


def say_objective(study, table: pd.DataFrame) -> str:
    """Accuracies and gains, from the objective table."""
    base = table[table["model"] == study.weighted.baseline].iloc[0]
    out = [f"{base['objective']} reaches {percent(base, 'average')} on average."]
    for _, row in table[table["model"] != study.weighted.baseline].iterrows():
        low, high = row["gain_low"], row["gain_high"]
        if np.isnan(low):
            verdict = "too few problems for an interval"
        elif low > 0:
            verdict = "higher, for this one pair of runs"
        elif high < 0:
            verdict = "lower, for this one pair of runs"
        else:
            verdict = "no difference that these problems could show"
        out.append(f"{row['objective']}: {points(row, 'gain')} against it, {verdict}.")
    return "\n".join(out)
