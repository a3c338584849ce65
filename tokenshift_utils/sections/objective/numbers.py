"""Section 4: the divergence-weighted objective, from the runs of the comparison (numbers).

Nothing is trained here. ``tokenshift train --arms`` leaves one directory a run, and however many
are there are compared: every statement carries its number of seeds.

An arm's gain is its mean@k (mean over benchmarks of the mean over problems) minus the baseline's at
the same seed; its interval and test are over seeds, on the study's fixed problems.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from tokenshift_utils.measures.weighting import divergence_weights
from tokenshift_utils.report.seeds import Paired, holm, pass_at_k
from tokenshift_utils.sections.common import evidence
from tokenshift_utils.sections.objective.records import Run, Runs, _plan, _weighting
from tokenshift_utils.training.position_sets import unpack_positions
from tokenshift_utils.training.tiny.recipes import ARMS

__all__ = [
    "BASELINE",
    "COMPARED_WITH",
    "CONFIRMATORY",
    "configuration_table",
    "curves",
    "objective_evidence",
    "objective_table",
    "pass_table",
    "runs_table",
    "shift_table",
    "token_table",
    "weight_curves",
    "weights_table",
]

BASELINE = "dapo"
CONFIRMATORY = ("high-kl", "low-kl")
# The plain run that each arm is compared with, where it isn't the baseline.
COMPARED_WITH = {"grpo-high-kl": "grpo"}
# Arms of the comparison and the models whose claims they decide.
SUBJECTS = {"high-kl": "dapo-high-kl", "low-kl": "dapo-low-kl"}


# Reading ------------------------------------------------------------------------------------------


def paired(study, runs: Runs, arm: str, other: str, score=lambda run: run.score) -> Paired:
    """Differences of a score between two arms, at the seeds that both have."""
    shared = sorted(set(runs.get(arm, {})) & set(runs.get(other, {})))
    values = [score(runs[arm][seed]) - score(runs[other][seed]) for seed in shared]
    return Paired(np.array(values), study.statistics.confidence)


# Tables -------------------------------------------------------------------------------------------


def runs_table(runs: Runs) -> pd.DataFrame:
    """How many runs of each arm are there, of those planned."""
    rows = []
    for name, arm in ARMS.arms.items():
        own = list(runs.get(name, {}).values())
        rows.append(
            {
                "objective": arm.label,
                "arm": name,
                "role": arm.role,
                "seeds": len(own),
                "planned": arm.seeds,
                "tokens_generated": _mean(r.summary["totals"]["tokens_generated"] for r in own),
                "minutes": _mean(
                    r.summary["seconds"] / 60 for r in own if not r.summary["resumed"]
                ),
            }
        )
    return pd.DataFrame(rows)


def _mean(values) -> float:
    values = list(values)
    return float(np.mean(values)) if values else np.nan


def configuration_table(study) -> pd.DataFrame:
    """The baseline's settings, spelled out; the weighted arms differ in their weights alone."""
    recipe, sampling = _plan(BASELINE).recipe, study.sampling
    rows = {
        "start": study.models[study.base].label,
        "loss": f"{recipe.loss_type} (token mean), advantages normalised by group",
        "responses a rollout": f"{recipe.prompts_per_rollout} problems x "
        f"{recipe.responses_per_prompt}, temperature 1, at most {recipe.max_new_tokens} tokens",
        "dynamic sampling": "groups with equal correctness are dropped, others drawn",
        "overlong penalty": f"0 to -1 over the last {recipe.overlong_buffer} tokens",
        "clipping": f"{recipe.clip_low:g} below, {recipe.clip_high:g} above",
        "KL penalty": f"{recipe.kl_coefficient:g}",
        "optimiser": f"AdamW, constant rate {recipe.learning_rate:g}",
        "length": f"{recipe.rollouts} rollouts x {recipe.updates_per_rollout} updates",
        "weights": "w = 1 + s (sigmoid(alpha k3) - 1/2), "
        + "; ".join(
            f"{_plan(a).label}: alpha = {_weighting(a).alpha:g}, s = {_weighting(a).scale:g}"
            for a in CONFIRMATORY
        ),
        "evaluation": f"{ARMS.final_samples} responses a problem, temperature "
        f"{sampling.temperature:g}, top-p {sampling.top_p:g}",
    }
    return pd.DataFrame({"setting": list(rows), "value": list(rows.values())})


def weight_curves(arms=(*CONFIRMATORY, "high-kl-strong", "low-kl-strong")) -> pd.DataFrame:
    """The weight as a function of k3: arm, kl, weight."""
    grid = np.concatenate([[0.0], np.logspace(-9, -2, 200)])
    parts = [
        pd.DataFrame(
            {
                "arm": arm,
                "kl": grid,
                "weight": divergence_weights(torch.tensor(grid), _weighting(arm)).numpy(),
            }
        )
        for arm in arms
    ]
    return pd.concat(parts, ignore_index=True)


def weights_table(runs: Runs) -> pd.DataFrame:
    """What k3 and weights were in training: means over seeds and updates but each rollout's first.

    Percentiles of k3 over tokens are in micronats (1e-6 nats).
    """
    columns = ("weight_mean", "weight_std", "weight_share_above_1")
    rows = []
    for arm, own in runs.items():
        row = {"objective": _plan(arm).label, "arm": arm, "seeds": len(own)}
        for percent in (50, 90, 99):
            k3 = _mean(run.later[f"k3_p{percent}"].mean() for run in own.values())
            row[f"k3_p{percent}_micronats"] = 1e6 * k3
        for column in columns:
            row[column] = _mean(run.later[column].mean() for run in own.values())
        row["clipped"] = _mean(run.log["clip_fraction"].mean() for run in own.values())
        rows.append(row)
    return pd.DataFrame(rows)


def token_table(runs: Runs, arm: str, least: float = 0.002) -> pd.DataFrame:
    """Weights by token, early and late in the runs of an arm, pooled over its seeds.

    Tokens with at least the share ``least`` of positions in both phases; ``excess`` is the token's
    share of all the weight beyond 1 (or below, where weights are lowered).
    """
    parts = [run.tokens for run in runs.get(arm, {}).values()]
    if not parts:
        return pd.DataFrame()
    rows = pd.concat(parts)
    rows["weight"], rows["k3"] = (rows[f"{c}_mean"] * rows["count"] for c in ("weight", "k3"))
    sums = rows.groupby(["token", "phase"])[["count", "k3", "weight"]].sum().unstack(fill_value=0)
    table = pd.DataFrame({"token": [token.replace("\n", "\\n") for token in sums.index]})
    for phase in ("early", "late"):
        count = sums["count", phase].to_numpy()
        beyond = sums["weight", phase].to_numpy() - count
        with np.errstate(invalid="ignore", divide="ignore"):
            table[f"share_{phase}"] = count / count.sum()
            table[f"k3_{phase}"] = sums["k3", phase].to_numpy() / count
            table[f"weight_{phase}"] = sums["weight", phase].to_numpy() / count
            table[f"excess_{phase}"] = beyond / beyond.sum()
    common = table[["share_early", "share_late"]].min(axis=1) >= least
    return table[common].sort_values("excess_early", ascending=False).reset_index(drop=True)


def curves(
    runs: Runs, column: str, arms=(BASELINE, *CONFIRMATORY), against: str | None = None
) -> pd.DataFrame:
    """A quantity along training: arm, rollout, mean over seeds, and the range of the seeds.

    ``column`` is one of log.csv's, averaged over a rollout's updates, or "accuracy". With
    ``against``, differences to that arm at the seeds that both have.
    """
    parts = []
    for arm in arms:
        own = {seed: _course(run, column) for seed, run in runs.get(arm, {}).items()}
        if against is not None:
            other = {seed: _course(run, column) for seed, run in runs.get(against, {}).items()}
            own = {seed: own[seed] - other[seed] for seed in own if seed in other}
        if own:
            both = pd.concat(own.values(), axis=1)
            parts.append(
                pd.DataFrame(
                    {
                        "arm": arm,
                        "rollout": both.index,
                        "mean": both.mean(axis=1).to_numpy(),
                        "low": both.min(axis=1).to_numpy(),
                        "high": both.max(axis=1).to_numpy(),
                    }
                )
            )
    empty = pd.DataFrame(columns=["arm", "rollout", "mean", "low", "high"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def _course(run: Run, column: str) -> pd.Series:
    """A quantity of one run by rollout."""
    frame = run.evaluations if column == "accuracy" else run.log
    return frame.groupby("rollout")[column].mean().dropna()


def objective_table(study, runs: Runs) -> pd.DataFrame:
    """The paper's Table 2, with what it lacks; one row an arm that has a run.

    ``gain`` is the mean paired difference to the baseline (GRPO's boost: to plain GRPO), Student's
    interval over ``paired_seeds``. Only the confirmatory arms are tested: ``p`` of the sign-flip
    test, ``p_holm`` corrected for the two, and the smallest that so many seeds could give.
    ``detectable`` is the difference that four in five such experiments would find.
    """
    tests = {arm: paired(study, runs, arm, BASELINE) for arm in CONFIRMATORY}
    corrected = dict(zip(CONFIRMATORY, holm([tests[arm].p for arm in CONFIRMATORY])))
    rows = []
    for arm, own in runs.items():
        row = {"objective": _plan(arm).label, "arm": arm, "role": _plan(arm).role}
        row["seeds"] = len(own)
        for name, benchmark in study.benchmarks.items():
            row[benchmark.label] = _mean(run.scores.get(name, np.nan) for run in own.values())
        scores = [run.score for run in own.values()]
        row["average"] = _mean(scores)
        row["sd"] = float(np.std(scores, ddof=1)) if len(scores) > 1 else np.nan
        gain = paired(study, runs, arm, COMPARED_WITH.get(arm, BASELINE))
        compared = arm != BASELINE and gain.seeds
        row["paired_seeds"] = gain.seeds if compared else 0
        row["gain"] = gain.mean if compared else np.nan
        row["gain_low"], row["gain_high"] = gain.interval() if compared else (np.nan, np.nan)
        tested = arm in CONFIRMATORY
        row["p"] = gain.p if tested else np.nan
        row["p_holm"] = corrected[arm] if tested else np.nan
        row["smallest_p"] = gain.smallest_p if tested else np.nan
        row["smallest_p_holm"] = min(1.0, len(CONFIRMATORY) * gain.smallest_p) if tested else np.nan
        row["detectable"] = gain.detectable if compared else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def pass_table(study, runs: Runs, ks=(1, 8, 32)) -> pd.DataFrame:
    """pass@k by arm, mean over seeds, problems and benchmarks, and its paired gain."""
    rows = []
    for arm, own in runs.items():
        row = {"objective": _plan(arm).label, "arm": arm, "seeds": len(own)}
        for k in ks:
            score = _pass(k)
            row[f"pass@{k}"] = _mean(score(run) for run in own.values())
            if arm != BASELINE:
                gain = paired(study, runs, arm, COMPARED_WITH.get(arm, BASELINE), score)
                row[f"gain@{k}"] = gain.mean
                row[f"gain@{k}_low"], row[f"gain@{k}_high"] = gain.interval()
        rows.append(row)
    return pd.DataFrame(rows)


def _pass(k: int):
    def score(run: Run) -> float:
        chance = pass_at_k(run.final["correct"].to_numpy(), run.final["samples"].to_numpy(), k)
        return float(pd.Series(chance).groupby(run.final["benchmark"]).mean().mean())

    return score


def shift_table(study, runs: Runs) -> pd.DataFrame:
    """What each objective did to the shift from base.

    Shares of positions of the run's own responses by JS, means over seeds. ``overlap_seeds`` is the
    Jaccard overlap of the sets of high positions on base's responses between runs of the arm at
    different seeds, ``overlap_baseline`` between it and the baseline at the same seed.
    """
    cuts = [f"{cut:g}" for cut in study.thresholds.near_zero]
    high = {arm: {seed: _high_set(run) for seed, run in own.items()} for arm, own in runs.items()}
    rows = []
    for arm, own in runs.items():
        shifts = [run.summary["shift"]["own"] for run in own.values()]
        row = {"objective": _plan(arm).label, "arm": arm, "seeds": len(own)}
        for cut in cuts:
            row[f"below_{cut}"] = _mean(shift["near_zero"][cut] for shift in shifts)
        row["high"] = _mean(shift["high"] for shift in shifts)
        row["mean_js"] = _mean(shift["mean_js"] for shift in shifts)
        sets = list(high[arm].values())
        pairs = [(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
        row["overlap_seeds"] = _mean(_jaccard(a, b) for a, b in pairs)
        shared = [s for s in high[arm] if s in high.get(BASELINE, {})] if arm != BASELINE else []
        row["overlap_baseline"] = _mean(_jaccard(high[arm][s], high[BASELINE][s]) for s in shared)
        rows.append(row)
    return pd.DataFrame(rows)


def _high_set(run: Run) -> tuple[str, np.ndarray]:
    """Which of base's responses it is of, and the flags of their positions."""
    shift = run.summary["shift"]["base"]
    return shift["responses"], unpack_positions(shift["high_set"], shift["positions"])


def _jaccard(a: tuple[str, np.ndarray], b: tuple[str, np.ndarray]) -> float:
    """Overlap of two sets of positions; NaN where they are of different responses, or empty."""
    either = (a[1] | b[1]).sum() if a[0] == b[0] else 0
    return float((a[1] & b[1]).sum() / either) if either else np.nan


def objective_evidence(study, runs: Runs) -> pd.DataFrame:
    """What the claims of section 4 look at."""
    rows = []
    for arm, subject in SUBJECTS.items():
        rows.append(("boost_gain", subject, *_estimate(paired(study, runs, arm, BASELINE))))
    alike = paired(study, runs, *CONFIRMATORY)
    rows.append(("boost_difference", SUBJECTS["high-kl"], *_estimate(alike)))
    return evidence(rows)


def _estimate(difference: Paired) -> tuple[tuple[float, float, float] | None, str]:
    planned = _plan(BASELINE).seeds
    if (
        difference.seeds < planned
    ):  # no verdict on the way: the number of seeds was fixed beforehand
        return None, f"{difference.seeds} of {planned} paired seeds are there"
    return (difference.mean, *difference.interval()), f"{difference.seeds} seeds"


# Words --------------------------------------------------------------------------------------------
