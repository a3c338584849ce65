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
from statsmodels.stats.power import TTestPower

from tokenshift_utils.measures.weighting import divergence_weights
from tokenshift_utils.report.bootstrap import columns_of
from tokenshift_utils.report.seeds import POWER, Paired, holm, pass_at_k
from tokenshift_utils.sections.common import evidence, of_recipe
from tokenshift_utils.sections.objective.records import FinishedRun, Runs
from tokenshift_utils.training.position_sets import unpack_positions


def paired(study, runs: Runs, arm: str, other: str, score=lambda run: run.score) -> Paired:
    """Differences of a score between two arms, at the seeds that both have."""
    shared = sorted(set(runs.get(arm, {})) & set(runs.get(other, {})))
    values = [score(runs[arm][seed]) - score(runs[other][seed]) for seed in shared]
    return Paired(np.array(values), study.statistics.confidence)


# Tables -------------------------------------------------------------------------------------------


def runs_table(runs: Runs) -> pd.DataFrame:
    """How many runs of each arm are there, of those planned."""
    rows = []
    for name in runs.training.arms:
        own = list(runs.get(name, {}).values())
        rows.append(
            {
                "objective": runs.label(name),
                "arm": name,
                "role": runs.role(name),
                "seeds": len(own),
                "planned": len(runs.planned(name)),
                "tokens_generated": _mean(r.summary["totals"]["tokens_generated"] for r in own),
                "minutes": _mean(
                    r.summary["seconds"] / 60 for r in own if not r.summary["resumed"]
                ),
            }
        )
    return pd.DataFrame(rows)


def _mean(values) -> float:
    """The mean of those that there are; NaN of none."""
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else np.nan


def configuration_table(study, runs: Runs) -> pd.DataFrame:
    """The baseline's settings, spelled out; the weighted arms differ in their weights alone."""
    training, arm, trl = runs.training, runs.training.arms[runs.baseline], runs.trl(runs.baseline)
    own = arm.overlong_buffer
    sizes, buffer = runs.sizes, training.overlong_buffer if own is None else own
    schedule = trl.get("lr_scheduler_type", "constant" if training.task else "linear")
    means = {"dapo": "dapo (token mean)", "grpo": "grpo (sample mean)"}
    loss, below = trl.get("loss_type", "dapo"), trl.get("epsilon", 0.2)
    normalised = {"group": "by group", "batch": "by batch"}.get(
        trl.get("scale_rewards", "group"), "not at all"
    )
    weights = {n: runs.weighting(n) for n in runs.confirmatory if runs.weighting(n)}
    rows = {
        "start": runs.study.models[runs.study.base].label,
        "loss": f"{means.get(loss, loss)}, advantages normalised {normalised}",
        "responses a rollout": f"{sizes.problems} problems x {sizes.group}, temperature "
        f"{trl.get('temperature', 1):g}, at most {sizes.longest} tokens",
        "dynamic sampling": "groups with equal correctness are dropped, others drawn"
        if arm.dynamic_sampling
        else "none",
        "overlong penalty": f"0 to -1 over the last {buffer} tokens" if buffer else "none",
        "clipping": f"{below:g} below, {trl.get('epsilon_high', below):g} above",
        "KL penalty": f"{trl.get('beta', 0):g}",
        "optimiser": f"AdamW, {schedule.replace('_', ' ')} rate {trl.get('learning_rate', 1e-6):g}",
        "length": f"{training.rollouts} rollouts x {sizes.updates} updates",
        "weights": "w = 1 + s (sigmoid(alpha k3) - 1/2), "
        + "; ".join(
            f"{runs.label(n)}: alpha = {w.alpha:g}, s = {w.scale:g}" for n, w in weights.items()
        ),
        "evaluation": f"{runs.samples} responses a problem, temperature "
        f"{study.sampling.temperature:g}, top-p {study.sampling.top_p:g}",
    }
    return pd.DataFrame({"setting": list(rows), "value": list(rows.values())})


def weight_curves(runs: Runs) -> pd.DataFrame:
    """The weight as a function of k3 (arm, kl, weight) of the arms that weigh by it in full: the
    confirmatory ones, and the others of another strength but those of the sweep of alpha."""
    shown = {}
    for arm in (*runs.confirmatory, *runs.training.arms):
        weighting = runs.weighting(arm)
        if weighting and weighting.signal == "k3" and arm not in runs.swept:
            shown.setdefault((weighting.alpha, weighting.scale), arm)
    arms = list(shown.values())
    grid = np.concatenate([[0.0], np.logspace(-9, -2, 200)])
    rows = [
        (arm, kl, float(weight))
        for arm in arms
        for kl, weight in zip(grid, divergence_weights(torch.tensor(grid), runs.weighting(arm)))
    ]
    return pd.DataFrame(rows, columns=["arm", "kl", "weight"])


def weights_table(runs: Runs) -> pd.DataFrame:
    """What k3 and weights were in training: means over seeds and updates but each rollout's first.

    Percentiles of k3 over tokens are in micronats (1e-6 nats).
    """
    columns = ("weight_mean", "weight_std", "weight_share_above_1")
    rows = []
    for arm, own in runs.items():
        row = {"objective": runs.label(arm), "arm": arm, "seeds": len(own)}
        for percent in (50, 90, 99):
            k3 = _mean(run.later[f"k3_p{percent}"].mean() for run in own.values())
            row[f"k3_p{percent}_micronats"] = 1e6 * k3
        for column in columns:
            row[column] = _mean(run.later[column].mean() for run in own.values())
        row["clipped"] = _mean(run.log["clip_fraction"].mean() for run in own.values())
        rows.append(row)
    return pd.DataFrame(rows)


def token_table(runs: Runs, arm: str | None, least: float = 0.002) -> pd.DataFrame:
    """Weights by token, early and late in the runs of an arm, pooled over its seeds.

    Tokens with at least the share ``least`` of positions in both phases; ``excess`` is the token's
    share of all the weight beyond 1 (or below, where weights are lowered).
    """
    parts = [run.tokens for run in runs.get(arm, {}).values() if len(run.tokens)]
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
    runs: Runs, column: str, arms: tuple[str, ...] | None = None, against: str | None = None
) -> pd.DataFrame:
    """A quantity along training: arm, label, seed, rollout, value.

    ``column`` is one of log.csv's, averaged over a rollout's updates, or "accuracy"; ``arms`` None:
    those that are shown. With ``against``, differences to that arm at the seeds that both have.
    """
    parts = []
    for arm in runs.shown if arms is None else arms:
        for seed, run in runs.get(arm, {}).items():
            course = _course(run, column)
            if against is not None:
                if seed not in runs.get(against, {}):
                    continue
                course = (course - _course(runs[against][seed], column)).dropna()
            rows = course.rename("value").reset_index()
            parts.append(rows.assign(arm=arm, label=runs.label(arm), seed=seed))
    empty = pd.DataFrame(columns=["arm", "label", "seed", "rollout", "value"])
    return pd.concat(parts, ignore_index=True)[empty.columns] if parts else empty


def power_table(study, runs: Runs) -> pd.DataFrame:
    """The smallest detectable effect, from the baseline's seeds alone: known before any other arm ran.

    ``sd`` is of the baseline's mean@k over its ``seeds``; ``detectable`` is the difference to another
    arm that ``planned`` seeds find with power 0.8, as if seeds shared nothing (sd of a difference:
    sqrt(2) sd). No row without two runs.
    """
    scores = [run.score for run in runs.get(runs.baseline, {}).values()]
    planned = len(runs.planned(runs.baseline))
    if len(scores) < 2 or planned < 2:
        return pd.DataFrame()
    alpha, sd = 1 - study.statistics.confidence, float(np.std(scores, ddof=1))
    effect = TTestPower().solve_power(nobs=planned, alpha=alpha, power=POWER)
    row = {"objective": runs.label(runs.baseline), "seeds": len(scores), "planned": planned}
    return pd.DataFrame([row | {"sd": sd, "detectable": float(effect) * np.sqrt(2) * sd}])


def _course(run: FinishedRun, column: str) -> pd.Series:
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
    tested = runs.confirmatory
    tests = [paired(study, runs, arm, runs.baseline).p for arm in tested]
    corrected = dict(zip(tested, holm(tests)))
    rows = []
    for arm, own in runs.items():
        row = {"objective": runs.label(arm), "arm": arm, "role": runs.role(arm)}
        row["seeds"] = len(own)
        for name, benchmark in study.benchmarks.items():
            row[benchmark.label] = _mean(run.scores.get(name, np.nan) for run in own.values())
        scores = [run.score for run in own.values()]
        row["average"] = _mean(scores)
        row["sd"] = float(np.std(scores, ddof=1)) if len(scores) > 1 else np.nan
        gain = paired(study, runs, arm, runs.against(arm))
        compared = arm != runs.baseline and gain.seeds
        row["paired_seeds"] = gain.seeds if compared else 0
        row |= columns_of("gain", gain.triple if compared else (np.nan,) * 3)
        row |= dict.fromkeys(("p", "p_holm", "smallest_p", "smallest_p_holm"), np.nan)
        if arm in tested:
            least = gain.smallest_p
            row |= {"p": gain.p, "p_holm": corrected[arm], "smallest_p": least}
            row["smallest_p_holm"] = min(1.0, len(tested) * least)
        rows.append(row | {"detectable": gain.detectable if compared else np.nan})
    return pd.DataFrame(rows)


def sweep_table(study, runs: Runs) -> pd.DataFrame:
    """Gain of the boosts at every alpha that the study has runs of, a row an arm.

    All at the same ``seeds``, those that every one of these arms and the baseline have; ``gains`` lists
    them seed by seed. No row where a boost has one alpha alone.
    """
    boosts = {boost: [arm for arm in runs.strengths(boost) if arm in runs]
              for boost in runs.confirmatory if runs.weighting(boost)}  # fmt: skip
    boosts = {boost: arms for boost, arms in boosts.items() if len(arms) > 1}
    shared = set(runs.get(runs.baseline, {}))
    shared = sorted(shared.intersection(*(runs[arm] for arms in boosts.values() for arm in arms)))
    rows = []
    for boost, arms in boosts.items() if shared else ():
        for arm in arms:
            gains = [runs[arm][seed].score - runs[runs.baseline][seed].score for seed in shared]
            over = Paired(np.array(gains), study.statistics.confidence)
            later = [runs[arm][seed].later for seed in shared]
            row = {"objective": runs.label(boost), "arm": arm, "alpha": runs.weighting(arm).alpha}
            row["weight_mean"] = _mean(log["weight_mean"].mean() for log in later)
            row["weight_std"] = _mean(log["weight_std"].mean() for log in later)
            row |= {"seeds": len(shared)} | columns_of("gain", over.triple)
            rows.append(row | {"gains": " ".join(f"{gain:.6f}" for gain in gains)})
    return pd.DataFrame(rows)


def pass_table(study, runs: Runs, ks=(1, 8, 32)) -> pd.DataFrame:
    """pass@k by arm, mean over seeds, problems and benchmarks, and its paired gain."""
    rows = []
    for arm, own in runs.items():
        row = {"objective": runs.label(arm), "arm": arm, "seeds": len(own)}
        for k in ks:
            score = _pass(k)
            row[f"pass@{k}"] = _mean(score(run) for run in own.values())
            if arm != runs.baseline:
                gain = paired(study, runs, arm, runs.against(arm), score)
                row |= columns_of(f"gain@{k}", gain.triple)
        rows.append(row)
    return pd.DataFrame(rows)


def _pass(k: int):
    def score(run: FinishedRun) -> float:
        chance = pass_at_k(run.final["correct"].to_numpy(), run.final["samples"].to_numpy(), k)
        return float(pd.Series(chance).groupby(run.final["benchmark"]).mean().mean())

    return score


def objective_shifts(study, runs: Runs) -> pd.DataFrame:
    """What each objective did to the shift from base.

    Shares of positions of the run's own responses by JS, means over seeds. ``overlap_seeds`` is the
    Jaccard overlap of the sets of high positions on base's responses between runs of the arm at
    different seeds, ``overlap_baseline`` between it and the baseline at the same seed; both of those
    pairs that were measured on the same responses.
    """
    cuts = [f"{cut:g}" for cut in study.thresholds.near_zero]
    high = {arm: {seed: _high_set(run) for seed, run in own.items()} for arm, own in runs.items()}
    rows = []
    for arm, own in runs.items():
        shifts = [run.summary["shift"]["own"] for run in own.values()]
        row = {"objective": runs.label(arm), "arm": arm, "seeds": len(own)}
        for cut in cuts:
            row[f"below_{cut}"] = _mean(shift["near_zero"][cut] for shift in shifts)
        row["high"] = _mean(shift["high"] for shift in shifts)
        row["mean_js"] = _mean(shift["mean_js"] for shift in shifts)
        sets = list(high[arm].values())
        pairs = [(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
        row["overlap_seeds"] = _mean(_jaccard(a, b) for a, b in pairs)
        plain = high.get(runs.baseline, {}) if arm != runs.baseline else {}
        shared = [s for s in high[arm] if s in plain]
        row["overlap_baseline"] = _mean(_jaccard(high[arm][s], plain[s]) for s in shared)
        rows.append(row)
    return pd.DataFrame(rows)


def _high_set(run: FinishedRun) -> tuple[str, np.ndarray]:
    """Which of base's responses it is of, and the flags of their positions."""
    shift = run.summary["shift"]["base"]
    return shift["responses"], unpack_positions(shift["high_set"], shift["positions"])


def _jaccard(a: tuple[str, np.ndarray], b: tuple[str, np.ndarray]) -> float:
    """Overlap of two sets of positions; NaN where they are of different responses, or empty."""
    either = (a[1] | b[1]).sum() if a[0] == b[0] else 0
    return float((a[1] & b[1]).sum() / either) if either else np.nan


def objective_evidence(study, runs: Runs) -> pd.DataFrame:
    """What the claims of section 4 look at: the boosts' arms, for the models of their recipes.

    All intervals are over ``seeds``. There is no estimate before all planned seeds are there: their
    number was fixed beforehand.
    """
    arms = {recipe: runs.boost(recipe) for recipe in ("high-kl", "low-kl")}
    subjects = {recipe: of_recipe(study, recipe, study.models) for recipe in arms}
    gains = {r: paired(study, runs, arm, runs.baseline) for r, arm in arms.items() if arm}
    found = [("boost_gain", subjects[r], gain) for r, gain in gains.items() if subjects[r]]
    if len(gains) == 2 and subjects["high-kl"]:
        alike = paired(study, runs, *arms.values())
        least = min(gains.values(), key=lambda gain: (gain.seeds > 0, gain.mean))
        found += [("boost_difference", subjects["high-kl"], alike)]
        found += [("least_boost_gain", subjects["high-kl"], least)]
    planned, rows = len(runs.planned(runs.baseline)), []
    for quantity, subject, gain in found:
        estimate, note = gain.triple, ""
        if gain.seeds < planned:
            estimate, note = None, f"{gain.seeds} of {planned} paired seeds are there"
        rows.append((quantity, subject, estimate, note))
    return evidence(rows).assign(seeds=[gain.seeds for *_, gain in found])
