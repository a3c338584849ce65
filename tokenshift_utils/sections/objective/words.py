"""What section 4 says of its tables, in sentences made from their numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from tokenshift_utils.sections import paper
from tokenshift_utils.sections.common import say_each
from tokenshift_utils.sections.objective.numbers import curves
from tokenshift_utils.sections.objective.records import Runs
from tokenshift_utils.training.runs import ROLES

_LEVEL = 0.05


def say_runs(runs: Runs) -> str:
    """How many runs there are, of how many."""
    out = []
    for role in ROLES:
        planned = {n: len(runs.planned(n)) for n in runs.training.arms if runs.role(n) == role}
        there = {name: len(runs.get(name, {})) for name in planned}
        lacking = [runs.label(name) for name in planned if there[name] < planned[name]]
        text = f"{role}: {sum(there.values())} of {sum(planned.values())} runs"
        if planned:
            out.append(text + (f"; not complete: {' | '.join(lacking)}" if lacking else ""))
    answered = _answered(runs)
    if len(answered) > 1:
        shared = len(next(run.final for own in runs.values() for run in own.values()))
        out.append(
            f"Runs ended with answers to {_listed(answered)} problems: they are scored on the {shared} that "
            "all of them answered."
        )
    return "\n".join(out)


def _answered(runs: Runs) -> list[int]:
    """How many problems runs answered at their end, each number once."""
    return sorted({run.answered for own in runs.values() for run in own.values()})


def _listed(numbers: list[int]) -> str:
    """ "120 or 240"."""
    return " or ".join(map(str, numbers))


def _of(table: pd.DataFrame, arms: tuple[str, ...]) -> pd.DataFrame:
    """The rows of these arms; a table without a run has no columns either."""
    return table[table["arm"].isin(arms)] if len(table) else table


def say_weights(runs: Runs, table: pd.DataFrame) -> str:
    """What the confirmatory weights were in training."""
    text = (
        "{objective}: the mean weight is {weight_mean:.3f}; a tenth of the tokens have a k3 above "
        "{k3_p90_micronats:.2g} micronats, half below {k3_p50_micronats:.1g}; {clipped:.1e} of the "
        "tokens are clipped."
    )
    return say_each(text, _of(table, runs.confirmatory)) or "No weighted run is there yet."


def say_tokens(table: pd.DataFrame, count: int = 5) -> str:
    """Which tokens get most of the weight beyond 1, early and late."""
    if table.empty:
        return "No run of the high-KL boost that counts its tokens is there yet."
    out = []
    for phase in ("early", "late"):
        top = table.nlargest(count, f"excess_{phase}")
        named = ", ".join(f"'{t}' {w:.2f}" for t, w in zip(top["token"], top[f"weight_{phase}"]))
        out.append(
            f"{phase}: {len(top)} tokens have {top[f'excess_{phase}'].sum():.0%} of the weight beyond 1 "
            f"on {top[f'share_{phase}'].sum():.0%} of the positions (mean weight): {named}"
        )
    return "\n".join(out)


def say_power(runs: Runs, table: pd.DataFrame) -> str:
    """The smallest difference that the planned seeds would find, from the baseline's alone."""
    plain = runs.label(runs.baseline)
    if table.empty:
        return (
            f"Fewer than two runs of {plain} are there, so nothing is known of the spread of seeds."
        )
    row = table.iloc[0]
    least = min(1.0, 2 / 2 ** row["planned"] * max(1, len(runs.confirmatory)))
    nothing = (
        f" With {row['planned']} seeds the sign-flip test, corrected, gives no p below {least:.2g}: it can "
        "tell nothing, whatever the difference."
    )
    return (
        f"{plain}'s own seeds spread by {100 * row['sd']:.2f} points (standard deviation of {row['seeds']}). "
        f"So by Student's test {row['planned']} seeds an arm find a difference of "
        f"{100 * row['detectable']:.2f} points in four of five experiments, where pairing by seed gains "
        "nothing; it gains where seeds share problems." + (nothing if least > _LEVEL else "")
    )


def say_curves(runs: Runs) -> str:
    """Where the arms stand at their end."""
    out = []
    for arm in runs.shown:
        ends = {}
        for column in ("accuracy", "entropy", "kl_base"):
            course = curves(runs, column, (arm,))
            if len(course):
                ends[column] = course[course["rollout"] == course["rollout"].max()][
                    "value"
                ].median()
        texts = {"accuracy": "accuracy {:.1%}", "entropy": "entropy {:.3f} nats where it trained"}
        texts["kl_base"] = "KL to base {:.4f} nats"
        parts = [texts[column].format(value) for column, value in ends.items()]
        out.append(
            f"{runs.label(arm)} ends at {', '.join(parts)}, median of {len(runs[arm])} seeds."
        )
    return "\n".join(out) or "No run is there yet."


def _gain(row) -> str:
    """ "+0.40 points [-0.20, 1.00] over 8 seeds"."""
    text = f"{100 * row['gain']:+.2f} points"
    if not np.isnan(row["gain_low"]):
        text += f" [{100 * row['gain_low']:.2f}, {100 * row['gain_high']:.2f}]"
    seeds = f"{row['paired_seeds']} seed" + ("s" if row["paired_seeds"] != 1 else "")
    return f"{text} over {seeds}"


def say_objective(runs: Runs, table: pd.DataFrame) -> str:
    """The confirmatory arms against the baseline: what is found, and what could have been missed."""
    plain, tested = runs.label(runs.baseline), _of(table, runs.confirmatory)
    tested = tested[tested["paired_seeds"] > 1] if len(tested) else tested
    if not len(tested):
        return f"Too few runs of the boosts are there to compare one with {plain}."
    complete = all(
        row["paired_seeds"] == len(runs.planned(row["arm"])) for _, row in tested.iterrows()
    )
    out = []
    if len(tested) < len(runs.confirmatory) or not complete:
        out.append("The planned seeds are not all there, so this is a report on the way.")
    for _, row in tested.iterrows():
        test = (
            f"p = {row['p_holm']:.2g} after Holm, the least possible {row['smallest_p_holm']:.2g}"
        )
        if row["p_holm"] > _LEVEL:
            missed = f"{100 * row['detectable']:.2f} points could well have been missed"
            out.append(
                f"{row['objective']} is not told from {plain}: {_gain(row)} ({test}); a difference under "
                f"{missed}."
            )
            continue
        what = "gains" if row["gain"] > 0 else "loses"
        if row["gain_low"] <= 0 <= row["gain_high"]:  # the test and the interval disagree
            what = "is borderline, with 0 in its interval"
        out.append(f"{row['objective']} {what}: {_gain(row)} ({test}).")
    return "\n".join(out)


def _power(value: float) -> str:
    """3e5."""
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def say_sweep(table: pd.DataFrame) -> str:
    """Whether another alpha would have made the boosts gain."""
    out = []
    for objective, rows in table.groupby("objective", sort=False) if len(table) else ():
        at = rows.set_index(rows["alpha"].abs())["gain"]
        clear = rows[(rows["gain_low"] > 0) | (rows["gain_high"] < 0)]
        named = ", ".join(_power(abs(alpha)) for alpha in clear["alpha"])
        count = int(rows["seeds"].iloc[0])
        seeds = f"{count} seed" + "s" * (count > 1)
        text = (
            f"{objective}: from |alpha| = {_power(at.index.min())} to {_power(at.index.max())} the{' mean' * (count > 1)} gain lies "
            f"between {100 * at.min():+.2f} and {100 * at.max():+.2f} points ({seeds})"
        )
        told = f"told from 0 at {named} (of {len(rows)} alphas, not corrected)"
        told = told if named else "no alpha is told from 0"
        out.append(f"{text}; {told}." if count > 1 else f"{text}, which has no interval.")
    return "\n".join(out) or "The boosts have one alpha each."


def say_controls(runs: Runs, table: pd.DataFrame) -> str:
    """The controls that differ from a confirmatory arm, or from the baseline, in one setting."""
    rows = table.set_index("arm") if len(table) else table
    seen = {arm: rows.loc[arm] for arm in rows.index if rows.loc[arm, "paired_seeds"] > 1}
    plain, out = runs.trl(runs.baseline), []
    weights = {arm: runs.weighting(arm) for arm in seen if runs.trl(arm) == plain}
    for arm, weighting in weights.items():
        if weighting and weighting.shuffle:
            apart = seen[arm]["gain_low"] > 0 or seen[arm]["gain_high"] < 0
            end = "noise in the weights acts by itself." if apart else "not told from nothing."
            out.append(f"Weights dealt out at random give {_gain(seen[arm])}: {end}")
    tested = {arm: runs.weighting(arm) for arm in runs.confirmatory if runs.weighting(arm)}
    for setting, said in (("normalise", "With a mean weight of 1"), ("scale", "At s = {:g}")):
        for boost, own in tested.items():
            for arm, other in weights.items():
                value = other and getattr(other, setting)
                if other and other != own and other == replace(own, **{setting: value}):
                    label = runs.label(boost)
                    label = label[0].lower() + label[1:]
                    out.append(f"{said.format(value)} the {label} gives {_gain(seen[arm])}.")
    rates = [
        arm
        for arm in seen
        if runs.weighting(arm) is None
        and runs.trl(arm) != plain
        and runs.trl(arm) | {"learning_rate": plain.get("learning_rate")} == plain
    ]
    if rates:
        moved = " and ".join(f"{_gain(seen[arm])} ({runs.label(arm)})" for arm in rates)
        out.append(f"A yardstick: another learning rate moves the result by {moved}.")
    for arm, row in seen.items():
        other = runs.against(arm)
        upper = [{"epsilon_high": runs.trl(a).get("epsilon_high")} for a in (arm, other)]
        same = runs.trl(arm) | upper[1] == runs.trl(other) and runs.weighting(arm) is None
        if other in runs and upper[0] != upper[1] and same:
            clipped = np.mean([r.log["clip_fraction"].mean() for r in runs[other].values()])
            out.append(
                f"Where clipping bites ({clipped:.2%} of the tokens of {runs.label(other)}), an upper bound of "
                f"{upper[0]['epsilon_high']:g} instead of {upper[1]['epsilon_high']:g} gives {_gain(row)}."
            )
    return "\n".join(out) or "No control is there yet."


def say_shift(runs: Runs, table: pd.DataFrame) -> str:
    """Whether the objective changes which positions shift."""
    out = []
    for _, row in _of(table, runs.shown).iterrows():
        text = f"{row['objective']}: {row['high']:.2%} of positions are high"
        if not np.isnan(row["overlap_seeds"]):
            text += f"; two of its seeds share {row['overlap_seeds']:.0%} of them"
        if not np.isnan(row["overlap_baseline"]):
            text += f", it and the baseline of the same seed {row['overlap_baseline']:.0%}"
        out.append(text + ".")
    if out and len(answered := _answered(runs)) > 1:
        out.append(
            f"The shares are of responses to {_listed(answered)} problems, as each run ended."
        )
    return "\n".join(out) or "No run is there yet."


def say_scope(runs: Runs) -> str:
    """What the comparison is of, beside the paper's."""
    theirs = paper.table2().set_index("objective")["average"]
    gains = " and ".join(f"{gain:.1f}" for gain in (theirs - theirs["DAPO"]).drop("DAPO"))
    what = "one small task, one base model" if runs.training.task else "one base model"
    strengths = {abs(w.alpha) for w in map(runs.weighting, runs) if w and w.signal == "k3"}
    weights = (
        "weights of one alpha" if len(strengths) < 2 else f"weights of {len(strengths)} alphas"
    )
    return (
        f"This is {what} and {weights}; the paper's own gains ({gains} points, three runs, of "
        "which no interval is known) are neither confirmed nor refuted by it."
    )
