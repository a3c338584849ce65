"""Section 2: what cross-sampling does to accuracy (numbers; drawing is elsewhere).

A setting is one tuned model, direction, rule and threshold. Its runs hold one row a response with
the counts of switched and effectively replaced tokens. Shares are pooled: tokens replaced over
tokens emitted.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tokenshift_utils.report.bootstrap import Bootstrap, Estimate, simultaneous
from tokenshift_utils.sections.claims import BUDGET
from tokenshift_utils.sections.common import by_benchmark, evidence, percent, plan
from tokenshift_utils.sections.cross_sampling.settings import (
    FORWARD,
    REVERSE,
    Setting,
    roles,
    threshold_name,
)

__all__ = [
    "MATCHED_WITHIN",
    "budget_setting",
    "budget_table",
    "cross_evidence",
    "curve_table",
    "gap_share",
    "own_accuracy",
    "run_table",
    "say_budget",
    "say_controls",
    "say_curves",
    "within_budget",
]

MATCHED_WITHIN = 0.1  # relative difference of rates at which a random control counts as matched


def _counts(boot: Bootstrap, part: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {}
    for count in ("switched", "effective"):
        n = part[f"n_{count}"].to_numpy()
        row |= boot.ratio(part, n, part["n_tokens"].to_numpy()).columns(f"{count}_share")
        row[f"{count}_per_response"] = float(n.mean())
    return row


def own_accuracy(
    study, boot: Bootstrap, rollouts: dict[str, pd.DataFrame]
) -> dict[tuple[str, str], Estimate]:
    """Accuracy of the models' own responses by (model, benchmark label)."""
    return {
        (model, benchmark): boot.accuracy(part)
        for model, frame in rollouts.items()
        for benchmark, part in by_benchmark(study, frame)
    }


def run_table(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Every setting on every benchmark it was run on: shares, counts a response, accuracy.

    `rollouts` holds the models' own responses; `before` is the accuracy of the primary's, `goal`
    of the intervention's, `change` is `after` - `before`, paired by problem.
    """
    boot, rows = plan(study, *rollouts.values(), *runs.values()), []
    own = own_accuracy(study, boot, rollouts)
    for setting, frame in runs.items():
        primary, intervention = roles(study, setting)
        for benchmark, part in by_benchmark(study, frame):
            before, after = own[primary, benchmark], boot.accuracy(part)
            rows.append(
                setting._asdict()
                | {"benchmark": benchmark, "responses": len(part)}
                | _counts(boot, part)
                | before.columns("before")
                | after.columns("after")
                | own[intervention, benchmark].columns("goal")
                | (after - before).columns("change")
            )
    return pd.DataFrame(rows)


def curve_table(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """The JS rule and its random controls on every benchmark.

    `matched` says of a control, row by row, whether the rate it is to match ("switched" or
    "effective") is within `MATCHED_WITHIN` of the JS rule's; it is empty for the rule itself.
    """
    table = run_table(study, runs, rollouts)
    extra = ["insert", "gain", "budget", *(f"change{end}" for end in ("", "_low", "_high"))]
    table = table.drop(columns=extra)
    table.insert(5, "matched", _matched(table))
    return table


def _matched(table: pd.DataFrame) -> list[str]:
    key = ["model", "direction", "threshold", "benchmark"]
    rule = table[table["rule"] == "js"].set_index(key)
    out = []
    for _, row in table.iterrows():
        if row["rule"] != "random":
            out.append("")
            continue
        share = f"{row['match']}_share"
        target = float(rule.loc[tuple(row[key]), share])
        # A share of exactly the edge is matched; the slack is for its rounding.
        near = abs(row[share] - target) <= MATCHED_WITHIN * target * (1 + 1e-9)
        out.append("yes" if near else "not matched")
    return out


def _pooled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all benchmarks: of the last benchmark label, which pools if there are two."""
    return table[table["benchmark"] == table["benchmark"].iloc[-1]]


def within_budget(table: pd.DataFrame, model: str, direction: str, among=None) -> float | None:
    """Threshold of the JS setting with the largest pooled effective share up to `BUDGET`.

    It looks at shares only, never at accuracies, and not at the setting that switches everywhere.
    None where every setting replaces more.
    """
    rows = _pooled(table)
    rows = rows[
        (rows["model"] == model)
        & (rows["direction"] == direction)
        & (rows["rule"] == "js")
        & (rows["threshold"] >= 0)
        & (rows["effective_share"] <= BUDGET)
    ]
    if among is not None:
        rows = rows[rows["threshold"].isin([float(eps) for eps in among])]
    if rows.empty:
        return None
    return float(rows.sort_values("effective_share", kind="stable")["threshold"].iloc[-1])


def budget_setting(study, table: pd.DataFrame, model: str, direction: str) -> Setting:
    """The JS setting within the budget; where there is none, the largest threshold's."""
    eps = within_budget(table, model, direction)
    eps = max(study.cross_sampling.thresholds) if eps is None else eps
    return Setting(model, direction, float(eps))


def budget_table(study, table: pd.DataFrame) -> pd.DataFrame:
    """The form of the paper's Table 1: for each pair and direction, the setting within the budget.

    Both shares and both counts a response are pooled over responses. Where no threshold keeps
    within the budget, the largest threshold stands.
    """
    parts = []
    for model in study.cross_sampling.pairs:
        for direction in (FORWARD, REVERSE):
            eps = budget_setting(study, table, model, direction).threshold
            here = table[(table["model"] == model) & (table["direction"] == direction)]
            parts.append(here[(here["rule"] == "js") & (here["threshold"] == eps)])
    out = pd.concat(parts, ignore_index=True)
    out.insert(0, "pair", [study.models[m].label for m in out["model"]])
    return out.drop(columns=["rule", "match", "matched"])


def gap_share(after: Estimate, before: Estimate, goal: Estimate) -> tuple[Estimate | None, str]:
    """How much of the way from `before` to `goal` the accuracy went; None where there is no way."""
    gap = goal - before
    low, high = gap.interval()
    if not (low > 0 or high < 0):
        return None, "RL and base do not differ in accuracy here"
    return (after - before) / gap, ""


def cross_evidence(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame], table: pd.DataFrame
) -> pd.DataFrame:
    """What the claims of section 2 look at, for every pair of the study."""
    boot, rows = plan(study, *rollouts.values(), *runs.values()), []
    own = {model: boot.accuracy(frame) for model, frame in rollouts.items()}
    for model in study.cross_sampling.pairs:
        for direction, quantity in ((FORWARD, "recovered"), (REVERSE, "lost")):
            eps = within_budget(table, model, direction)
            if eps is None:
                rows.append((quantity, model, None, f"no threshold keeps within {BUDGET:.1%}"))
                continue
            here = runs[Setting(model, direction, eps)]
            primary, intervention = roles(study, Setting(model, direction, eps))
            share, why = gap_share(boot.accuracy(here), own[primary], own[intervention])
            spent = here["n_effective"].sum() / max(here["n_tokens"].sum(), 1)
            note = why or f"JS > {eps:g}, {spent:.2%} of tokens effectively replaced"
            rows.append((quantity, model, share, note))
        rows += _control_evidence(study, boot, runs, table, model)
        gains = [
            boot.accuracy(frame) - own[model]
            for setting, frame in runs.items()
            if setting[:2] == (model, FORWARD) and setting.rule == "js" and setting.threshold >= 0
        ]
        rows.append(("best_mixed_gain", model, simultaneous(gains, "largest"), ""))
    return evidence(rows)


def _control_evidence(study, boot: Bootstrap, runs, table: pd.DataFrame, model: str) -> list:
    controls = study.cross_sampling.random_control_thresholds
    names = {"switched": "random_gap_switches", "effective": "random_gap_effective"}
    eps = within_budget(table, model, FORWARD, controls) if controls else None
    if eps is None:
        why = "no control threshold keeps within the budget" if controls else "no random control"
        return [(quantity, model, None, why) for quantity in names.values()]
    rule = boot.accuracy(runs[Setting(model, FORWARD, eps)])
    rows, pooled = [], _pooled(table)
    for match, quantity in names.items():
        control = Setting(model, FORWARD, eps, "random", match)
        same = (pooled[list(control._fields[:5])] == list(control[:5])).all(axis=1)
        if pooled[same]["matched"].iloc[0] == "yes":
            gap = rule - boot.accuracy(runs[control])
            rows.append((quantity, model, gap, f"JS > {eps:g}"))
        else:
            rows.append((quantity, model, None, f"random positions not matched at JS > {eps:g}"))
    return rows


def say_curves(study, table: pd.DataFrame) -> str:
    """How far each curve goes, pooled over benchmarks, and where switching everywhere ends."""
    rows, out = _pooled(table), []
    rows = rows[rows["rule"] == "js"]
    for (model, direction), part in rows.groupby(["model", "direction"], sort=False):
        forward = direction == FORWARD
        best = part["after"].idxmax() if forward else part["after"].idxmin()
        row = part.loc[best]
        out.append(
            f"{study.models[model].label}, {direction}: accuracy goes from {row['before']:.1%} "
            f"with nothing replaced to at {'most' if forward else 'least'} "
            f"{percent(row, 'after')}, with {threshold_name(row['threshold'])} and "
            f"{percent(row, 'effective_share')} of tokens effectively replaced; the other model's "
            f"own is {row['goal']:.1%}."
        )
        for _, end in part[part["threshold"] < 0].iterrows():
            out[-1] += (
                f" Switching every position replaces {percent(end, 'effective_share')} effectively "
                f"and gives {percent(end, 'after')}."
            )
    return "\n".join(out)


def say_budget(study, table: pd.DataFrame, found: pd.DataFrame) -> str:
    """Forward and reverse within the budget, pooled over benchmarks."""
    out = []
    for _, row in _pooled(table).iterrows():
        quantity = "recovered" if row["direction"] == FORWARD else "lost"
        share = found[(found["quantity"] == quantity) & (found["subject"] == row["model"])].iloc[0]
        if np.isnan(share["value"]):
            verdict = f"{share['note']}."
        else:
            verdict = f"{percent(share, 'value', 0)} of the gain is {quantity}."
        out.append(
            f"{row['pair']}, {row['direction']}, {threshold_name(row['threshold'])}: "
            f"{percent(row, 'switched_share')} of tokens switched, "
            f"{percent(row, 'effective_share')} effectively replaced; accuracy goes from "
            f"{percent(row, 'before')} to {percent(row, 'after')}, the other model's own being "
            f"{percent(row, 'goal')}: {verdict}"
        )
    return "\n".join(out)


def say_controls(study, table: pd.DataFrame) -> str:
    """Random positions against the JS rule, pooled over benchmarks."""
    rows, out = _pooled(table), []
    controls = rows[rows["rule"] == "random"]
    if controls.empty:
        return "This study has no random-position control."
    for key, pair in controls.groupby(["model", "direction", "threshold"], sort=False):
        model, direction, eps = key
        same = (rows[["model", "direction", "threshold"]] == list(key)).all(axis=1)
        rule = rows[same & (rows["rule"] == "js")].iloc[0]
        random = "; ".join(
            f"random positions of the same {row['match']} share {percent(row, 'after')} "
            f"({row['switched_share']:.1%}, {row['effective_share']:.2%}"
            f"{'' if row['matched'] == 'yes' else ', not matched'})"
            for _, row in pair.iterrows()
        )
        out.append(
            f"{study.models[model].label}, {direction}, {threshold_name(eps)}: the rule reaches "
            f"{percent(rule, 'after')} ({rule['switched_share']:.1%} of tokens switched, "
            f"{rule['effective_share']:.2%} effectively replaced); {random}."
        )
    return "\n".join(out)
