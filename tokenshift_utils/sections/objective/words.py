"""What section 4 says of its tables, in sentences made from their numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from tokenshift_utils.sections import paper
from tokenshift_utils.sections.objective.numbers import curves
from tokenshift_utils.sections.objective.records import Runs
from tokenshift_utils.training.runs import ROLES


def say_runs(runs: Runs) -> str:
    """How many runs there are, of how many."""
    out = []
    for role in ROLES:
        planned = {n: len(runs.planned(n)) for n in runs.training.arms if runs.role(n) == role}
        if not planned:
            continue
        there = {name: len(runs.get(name, {})) for name in planned}
        lacking = [runs.label(name) for name in planned if there[name] < planned[name]]
        text = f"{role}: {sum(there.values())} of {sum(planned.values())} runs"
        out.append(text + (f"; not complete: {' | '.join(lacking)}" if lacking else ""))
    return "\n".join(out)


def _of(table: pd.DataFrame, arms: tuple[str, ...]) -> pd.DataFrame:
    """The rows of these arms; a table without a run has no columns either."""
    return table[table["arm"].isin(arms)] if len(table) else table


def say_weights(runs: Runs, table: pd.DataFrame) -> str:
    """What the confirmatory weights were in training."""
    out = []
    for _, row in _of(table, runs.confirmatory).iterrows():
        out.append(
            f"{row['objective']} ({row['seeds']} seeds): half of the tokens have a k3 below "
            f"{row['k3_p50_micronats']:.1g} micronats, a tenth above {row['k3_p90_micronats']:.2g}, a "
            f"hundredth above {row['k3_p99_micronats']:.2g}; the mean weight is {row['weight_mean']:.3f} (standard deviation "
            f"over tokens {row['weight_std']:.3f}); {row['clipped']:.1e} of the tokens are clipped."
        )
    return "\n".join(out) or "No weighted run is there yet."


def say_tokens(table: pd.DataFrame, count: int = 5) -> str:
    """Which tokens get most of the weight beyond 1, early and late."""
    if table.empty:
        return "No run of the high-KL boost that counts its tokens is there yet."
    out = []
    for phase in ("early", "late"):
        top = table.nlargest(count, f"excess_{phase}")
        named = ", ".join(f"'{t}' {w:.2f}" for t, w in zip(top["token"], top[f"weight_{phase}"]))
        out.append(
            f"{phase}: these {len(top)} tokens have {top[f'excess_{phase}'].sum():.0%} of the weight "
            f"beyond 1 on {top[f'share_{phase}'].sum():.0%} of the positions (mean weight): {named}"
        )
    rank = table["weight_early"].rank().corr(table["weight_late"].rank())
    if len(table) > 2 and not np.isnan(rank):
        out.append(f"Rank correlation of early and late mean weights over tokens: {rank:.2f}.")
    return "\n".join(out)


def say_curves(runs: Runs) -> str:
    """Where the confirmatory arms stand at their end."""
    out = []
    for arm in (runs.baseline, *runs.confirmatory):
        if arm not in runs:
            continue
        parts = []
        for column, scale, text in (
            ("accuracy", 100, "accuracy {:.1f}%"),
            ("length_mean", 1, "{:.0f} tokens"),
            ("entropy", 1, "entropy {:.3f} nats"),
            ("kl_base", 1000, "KL to base {:.2f} millinats"),
        ):
            course = curves(runs, column, (arm,))["mean"]
            if len(course):
                parts.append(text.format(scale * course.iloc[-1]))
        out.append(f"{runs.label(arm)} ({len(runs[arm])} seeds): {', '.join(parts)}.")
    return "At the last point of the curves:\n" + "\n".join(out) if out else "No run is there yet."


def _gain(row) -> str:
    """ "+0.4 points [-0.2, 1.0] over 8 seeds"."""
    text = f"{100 * row['gain']:+.2f} points"
    if not np.isnan(row["gain_low"]):
        text += f" [{100 * row['gain_low']:.2f}, {100 * row['gain_high']:.2f}]"
    seeds = f"{row['paired_seeds']} seed" + ("s" if row["paired_seeds"] != 1 else "")
    return f"{text} over {seeds}"


def say_objective(runs: Runs, table: pd.DataFrame) -> str:
    """The confirmatory arms against the baseline."""
    out = []
    for arm in runs.confirmatory:
        rows = _of(table, (arm,))
        if not len(rows) or not rows.iloc[0]["paired_seeds"]:
            out.append(f"{runs.label(arm)}: no seed is there that the baseline has too.")
            continue
        row = rows.iloc[0]
        out.append(
            f"{row['objective']}: {_gain(row)}; p = {row['p']:.3g}, after Holm {row['p_holm']:.3g} "
            f"(the least possible: {row['smallest_p_holm']:.3g})"
            + (
                f"; a difference of {100 * row['detectable']:.2f} points would be found in four of"
                " five such experiments."
                if not np.isnan(row["detectable"])
                else "."
            )
        )
    return "\n".join(out)


def say_controls(runs: Runs, table: pd.DataFrame) -> str:
    """Controls and exploratory arms: gains with intervals, no tests."""
    out = []
    for _, row in table.iterrows():
        if row["role"] != "confirmatory" and row["paired_seeds"]:
            other = runs.label(runs.against(row["arm"]))
            out.append(f"{row['objective']}: {_gain(row)} against {other}.")
    return "\n".join(out) or "No control is there yet."


def say_shift(runs: Runs, table: pd.DataFrame) -> str:
    """Whether the objective changes which positions shift."""
    out = []
    for _, row in _of(table, (runs.baseline, *runs.confirmatory)).iterrows():
        text = f"{row['objective']} ({row['seeds']} seeds): {row['high']:.2%} of positions are high"
        if not np.isnan(row["overlap_seeds"]):
            text += f"; two of its seeds share {row['overlap_seeds']:.0%} of their high positions"
        if not np.isnan(row["overlap_baseline"]):
            text += f", the baseline of the same seed and it {row['overlap_baseline']:.0%}"
        out.append(text + ".")
    return "\n".join(out) or "No run is there yet."


def say_closing(runs: Runs, table: pd.DataFrame) -> str:
    """What the comparison shows and does not, from Table 2."""
    if not len(table) or not (table["paired_seeds"] > 1).any():
        return "Too few runs are there for a conclusion."
    rows = table.set_index("arm")
    confirmatory, plain = runs.confirmatory, runs.label(runs.baseline)
    tested = [
        arm for arm in confirmatory if arm in rows.index and rows.loc[arm, "paired_seeds"] > 1
    ]
    level = 0.05
    out = []
    complete = all(rows.loc[arm, "paired_seeds"] == len(runs.planned(arm)) for arm in tested)
    if len(tested) < len(confirmatory) or not complete:
        out.append("The planned seeds are not all there, so this is a report on the way.")
    for arm in tested:
        row = rows.loc[arm]
        if row["p_holm"] <= level:
            found = "gains" if row["gain"] > 0 else "loses"
            if row["gain_low"] <= 0 <= row["gain_high"]:
                sure = "by the permutation test (after Holm), while its interval includes 0: borderline"
            else:
                sure = "more than chance over seeds would (after Holm)"
            out.append(f"{row['objective']} {found} against {plain} ({_gain(row)}), {sure}.")
        else:
            out.append(
                f"{row['objective']} is not told from {plain} ({_gain(row)}); a difference under "
                f"{100 * row['detectable']:.2f} points could well have been missed."
            )
    largest = max((abs(rows.loc[arm, "gain"]) for arm in tested), default=np.nan)
    out += _beside(runs, rows, largest)
    theirs = paper.table2().set_index("objective")["average"]
    gains = " and ".join(f"{gain:.1f}" for gain in (theirs - theirs["DAPO"]).drop("DAPO"))
    if runs.training.task:
        out.append(
            "All of this is one small task, one base model and weights of one alpha; it says "
            f"nothing about a large model, and the paper's own gains ({gains} points, three runs) are "
            "neither confirmed nor refuted by it."
        )
    else:
        out.append(
            f"All of this is one base model and weights of one alpha; the paper's own gains are {gains} "
            "points, over three runs."
        )
    return "\n".join(out)


def _beside(runs: Runs, rows: pd.DataFrame, largest: float) -> list[str]:
    """The controls that bear on the reading of the confirmatory arms: those that differ from one of
    them, or from the baseline, in one setting."""
    out, plain = [], runs.trl(runs.baseline)
    weights = {arm: runs.weighting(arm) for arm in rows.index if runs.trl(arm) == plain}
    seen = {
        arm: weighting for arm, weighting in weights.items() if rows.loc[arm, "paired_seeds"] > 1
    }
    for arm, weighting in seen.items():
        if weighting and weighting.shuffle:
            apart = rows.loc[arm, "gain_low"] > 0 or rows.loc[arm, "gain_high"] < 0
            out.append(
                f"Weights dealt out at random give {_gain(rows.loc[arm])}: "
                + ("noise in the weights acts by itself." if apart else "not told from nothing.")
            )
    tested = {arm: runs.weighting(arm) for arm in runs.confirmatory if runs.weighting(arm)}
    for setting, said in (("normalise", "With a mean weight of 1"), ("scale", "At s = {:g}")):
        for boost, own in tested.items():
            for arm, other in seen.items():
                value = other and getattr(other, setting)
                if other and other != own and other == replace(own, **{setting: value}):
                    label = runs.label(boost)
                    out.append(
                        f"{said.format(value)} the {label[0].lower()}{label[1:]} gives "
                        f"{_gain(rows.loc[arm])}."
                    )
    rates = {
        arm: runs.trl(arm)["learning_rate"] / plain["learning_rate"]
        for arm in rows.index
        if runs.weighting(arm) is None
        and runs.trl(arm) != plain
        and runs.trl(arm) | {"learning_rate": plain.get("learning_rate")} == plain
    }
    if rates:
        moved = max(abs(rows.loc[arm, "gain"]) for arm in rates)
        more = "more" if moved > largest else "less"
        fifth = all(math.isclose(abs(rate - 1), 0.2) for rate in rates.values())
        out.append(
            f"{'A learning rate a fifth lower or higher' if fifth else 'Another learning rate'} moves "
            f"the result by up to {100 * moved:.2f} points, {more} than either boost: "
            + "; ".join(f"{rows.loc[arm, 'objective']} {_gain(rows.loc[arm])}" for arm in rates)
            + "."
        )
    return out
