"""Section 2: what cross-sampling does to accuracy (numbers; drawing is elsewhere).

A setting is one tuned model, direction, rule and threshold. Its runs hold one row a response with
the counts of switched and effectively replaced tokens. Shares are pooled: tokens replaced over
tokens emitted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from tokenshift_utils.analysis_common import by_benchmark, evidence, percent, plan
from tokenshift_utils.claims import BUDGET
from tokenshift_utils.stats import Bootstrap, Estimate, simultaneous

__all__ = [
    "Setting",
    "budget_table",
    "control_settings",
    "cross_evidence",
    "curve_settings",
    "curve_table",
    "effective_rate",
    "pick_examples",
    "roles",
    "say_budget",
    "say_controls",
    "say_curves",
    "switched_rate",
    "within_budget",
]

FORWARD, REVERSE = "forward", "reverse"


class Setting(NamedTuple):
    """One way of mixing two models.

    `threshold` is the JS threshold in nats; for random positions the one whose rate they match,
    with `match` "switched" or "effective" saying which rate.
    """

    model: str
    direction: str
    threshold: float
    rule: str = "js"
    match: str = ""


def roles(study, setting: Setting) -> tuple[str, str]:
    """(primary, intervention) of a setting."""
    if setting.direction == FORWARD:
        return study.base, setting.model
    return setting.model, study.base


def curve_settings(study) -> list[Setting]:
    """All JS settings of the study: its pairs, both directions, all thresholds."""
    return [
        Setting(model, direction, float(eps))
        for model in study.cross_sampling.pairs
        for direction in (FORWARD, REVERSE)
        for eps in sorted(study.cross_sampling.thresholds)
    ]


def control_settings(study, match: str) -> list[Setting]:
    """The random-position controls of one matching."""
    return [
        Setting(model, direction, float(eps), "random", match)
        for model in study.cross_sampling.pairs
        for direction in (FORWARD, REVERSE)
        for eps in sorted(study.cross_sampling.random_control_thresholds)
    ]


def switched_rate(runs: pd.DataFrame) -> float:
    """Share of tokens switched, for a random rule that switches as often."""
    return round(float(runs["n_switched"].sum() / max(runs["n_tokens"].sum(), 1)), 4)


def effective_rate(runs: pd.DataFrame, random_runs: pd.DataFrame) -> float:
    """Rate at which random switches would replace as many tokens effectively as `runs` did.

    `random_runs` tells how often a random switch is effective. At most 1: where even switching
    everywhere replaces fewer tokens, the control is the intervention itself.
    """
    wanted = runs["n_effective"].sum() / max(runs["n_tokens"].sum(), 1)
    yielded = random_runs["n_effective"].sum() / max(random_runs["n_switched"].sum(), 1)
    return 1.0 if yielded <= 0 else round(float(min(1.0, wanted / yielded)), 4)


def _counts(boot: Bootstrap, part: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {}
    for count in ("switched", "effective"):
        n = part[f"n_{count}"].to_numpy()
        row |= boot.ratio(part, n, part["n_tokens"].to_numpy()).columns(f"{count}_share")
        row[f"{count}_per_response"] = float(n.mean())
    return row


def curve_table(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Every setting on every benchmark: shares, counts a response, accuracy.

    `rollouts` holds the models' own responses; `before` is the accuracy of the primary's, `goal`
    of the intervention's.
    """
    boot, rows = plan(study, *rollouts.values(), *runs.values()), []
    own = {
        (model, benchmark): boot.accuracy(part)
        for model, frame in rollouts.items()
        for benchmark, part in by_benchmark(study, frame)
    }
    for setting, frame in runs.items():
        primary, intervention = roles(study, setting)
        for benchmark, part in by_benchmark(study, frame):
            rows.append(
                setting._asdict()
                | {"benchmark": benchmark, "responses": len(part)}
                | _counts(boot, part)
                | own[primary, benchmark].columns("before")
                | boot.accuracy(part).columns("after")
                | own[intervention, benchmark].columns("goal")
            )
    return pd.DataFrame(rows)


def _pooled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all benchmarks: of the last benchmark label, which pools if there are two."""
    return table[table["benchmark"] == table["benchmark"].iloc[-1]]


def within_budget(table: pd.DataFrame, model: str, direction: str, among=None) -> float | None:
    """Threshold of the JS setting with the largest pooled effective share up to `BUDGET`.

    It looks at shares only, never at accuracies. None where every setting replaces more.
    """
    rows = _pooled(table)
    rows = rows[
        (rows["model"] == model)
        & (rows["direction"] == direction)
        & (rows["rule"] == "js")
        & (rows["effective_share"] <= BUDGET)
    ]
    if among is not None:
        rows = rows[rows["threshold"].isin([float(eps) for eps in among])]
    if rows.empty:
        return None
    return float(rows.sort_values("effective_share", kind="stable")["threshold"].iloc[-1])


def budget_table(study, table: pd.DataFrame) -> pd.DataFrame:
    """The form of the paper's Table 1: for each pair and direction, the setting within the budget.

    Both shares and both counts a response are pooled over responses. Where no threshold keeps
    within the budget, the largest threshold stands.
    """
    parts = []
    for model in study.cross_sampling.pairs:
        for direction in (FORWARD, REVERSE):
            eps = within_budget(table, model, direction)
            eps = max(study.cross_sampling.thresholds) if eps is None else eps
            here = table[(table["model"] == model) & (table["direction"] == direction)]
            parts.append(here[(here["rule"] == "js") & (here["threshold"] == eps)])
    out = pd.concat(parts, ignore_index=True)
    out.insert(0, "pair", [study.models[m].label for m in out["model"]])
    return out.drop(columns=["rule", "match"])


def pick_examples(
    rows: dict[str, pd.DataFrame],
    switches: pd.DataFrame,
    names: dict[str, str],
    count: int,
) -> list[dict]:
    """Responses to one problem and sample by base, the mixture and the tuned model, side by side.

    `rows` maps "base", "mixed" and "tuned" to rollouts or runs, `names` to their titles. Responses
    where base is wrong and the other two are right come first, one a benchmark before a second of
    any; without any, mixed responses with a switch. The order is that of the records.
    """
    key = ["benchmark", "problem", "sample"]
    indexed = {name: frame.set_index(key) for name, frame in rows.items()}
    mixed = indexed["mixed"]
    common = mixed.index[
        mixed.index.isin(indexed["base"].index.intersection(indexed["tuned"].index))
    ]
    right = {name: i.loc[common, "correct"].to_numpy(dtype=bool) for name, i in indexed.items()}
    turned = common[~right["base"] & right["mixed"] & right["tuned"]]
    chosen = list(turned) or list(common[(mixed.loc[common, "n_switched"] > 0).to_numpy()])
    seen: dict[str, int] = {}
    rank = {}
    for k in chosen:
        rank[k] = seen.get(k[0], 0)
        seen[k[0]] = rank[k] + 1
    chosen = sorted(chosen, key=lambda k: rank[k])[:count]
    marks = {k: part for k, part in switches.groupby(key)}
    return [
        {
            "title": f"{benchmark}, problem {problem}, sample {sample}",
            "columns": [
                (names[n], i.loc[(benchmark, problem, sample)],
                 marks.get((benchmark, problem, sample)) if n == "mixed" else None)
                for n, i in indexed.items()
            ],
        }
        for benchmark, problem, sample in chosen
    ]  # fmt: skip


def _gap_share(after: Estimate, before: Estimate, goal: Estimate) -> tuple[Estimate | None, str]:
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
            share, why = _gap_share(boot.accuracy(here), own[primary], own[intervention])
            spent = here["n_effective"].sum() / max(here["n_tokens"].sum(), 1)
            note = why or f"JS > {eps:g}, {spent:.2%} of tokens effectively replaced"
            rows.append((quantity, model, share, note))
        rows += _control_evidence(study, boot, runs, table, model)
        gains = [
            boot.accuracy(frame) - own[model]
            for setting, frame in runs.items()
            if setting[:2] == (model, FORWARD) and setting.rule == "js"
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
    return [
        (
            quantity,
            model,
            rule - boot.accuracy(runs[Setting(model, FORWARD, eps, "random", match)]),
            f"JS > {eps:g}",
        )
        for match, quantity in names.items()
    ]


def say_curves(study, table: pd.DataFrame) -> str:
    """How far each curve goes, pooled over benchmarks."""
    rows, out = _pooled(table), []
    rows = rows[rows["rule"] == "js"]
    for (model, direction), part in rows.groupby(["model", "direction"], sort=False):
        forward = direction == FORWARD
        best = part["after"].idxmax() if forward else part["after"].idxmin()
        row = part.loc[best]
        out.append(
            f"{study.models[model].label}, {direction}: accuracy goes from {row['before']:.1%} "
            f"with nothing replaced to at {'most' if forward else 'least'} "
            f"{percent(row, 'after')}, at JS > {row['threshold']:g} and "
            f"{percent(row, 'effective_share')} of tokens effectively replaced; the other model's "
            f"own is {row['goal']:.1%}."
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
            f"{row['pair']}, {row['direction']}, JS > {row['threshold']:g}: "
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
            f"({row['switched_share']:.1%}, {row['effective_share']:.1%})"
            for _, row in pair.iterrows()
        )
        out.append(
            f"{study.models[model].label}, {direction}, JS > {eps:g}: the rule reaches "
            f"{percent(rule, 'after')} ({rule['switched_share']:.1%} of tokens switched, "
            f"{rule['effective_share']:.1%} effectively replaced); {random}."
        )
    return "\n".join(out)
