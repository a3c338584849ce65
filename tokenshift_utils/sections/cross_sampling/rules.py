"""Section 2 on one benchmark: other rules than JS, and other tokens than RL's (numbers)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tokenshift_utils.sections.common import percent, plan, points
from tokenshift_utils.sections.cross_sampling.numbers import own_accuracy, run_table
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, Setting, roles
from tokenshift_utils.sections.cross_sampling.summary import curve_of, lead, share_to_reach

__all__ = [
    "RULES",
    "intervention_name",
    "intervention_table",
    "rule_name",
    "rule_summary",
    "rule_table",
    "say_interventions",
    "say_rules",
]

RULES = {
    "js": "JS",
    "js_full": "JS, full",
    "kl": "KL(primary || other)",
    "kl_reverse": "KL(other || primary)",
    "entropy": "primary's entropy",
    "signed_logp": "signed log-prob",
    "first": "first n positions",
    "budget": "first n JS switches",
    "random": "random positions",
}


def rule_name(rule: str, budget: float | None = None) -> str:
    """How tables and figures call a rule; one with a budget is a rule of its own."""
    return RULES["budget" if budget is not None and not np.isnan(budget) else rule]


def rule_table(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Every rule at every threshold: shares, counts a response, accuracy.

    `threshold` is in nats, but the number of positions for "first n positions"; random positions
    are those that match the effective share of the JS rule at it.
    """
    table = run_table(study, runs, rollouts)
    names = [rule_name(rule, budget) for rule, budget in zip(table["rule"], table["budget"])]
    table.insert(0, "pair", [study.models[m].label for m in table["model"]])
    table["rule"] = names
    table["budget"] = ["" if pd.isna(b) else str(int(b)) for b in table["budget"]]
    return table.drop(columns=["match", "insert", "gain"])


def _name(setting: Setting) -> str:
    return rule_name(setting.rule, setting.budget)


def rule_summary(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """The JS rule's lead over every other one (see `lead`), and the share each needs for 95%.

    Negative: the other rule does more with as few tokens. Curves with the same resamples are
    compared, so the lead is paired. Settings that switch every position are no rule's own.
    """
    boot, rows = plan(study, *rollouts.values(), *runs.values()), []
    own = own_accuracy(study, boot, rollouts)
    label = study.benchmarks[study.cross_benchmark].label
    runs = {s: frame for s, frame in runs.items() if not (s.rule == "js" and s.threshold < 0)}
    for model, direction in dict.fromkeys(setting[:2] for setting in runs):
        primary, intervention = roles(study, Setting(model, direction, 0.0))
        before = own[primary, label]
        gap = own[intervention, label] - before
        parts: dict[str, list[pd.DataFrame]] = {}
        for setting, frame in runs.items():
            if setting[:2] == (model, direction):
                parts.setdefault(_name(setting), []).append(frame)
        curves = {name: curve_of(boot, before, some) for name, some in parts.items()}
        low, high = gap.interval()
        for name, curve in curves.items():
            row = {"pair": study.models[model].label, "model": model, "direction": direction}
            row |= {"rule": name, "settings": len(parts[name])} | gap.columns("gap")
            ahead, reach, end = [(np.nan,) * 3, (np.nan,) * 3, np.nan]
            if low > 0 or high < 0:
                reach = share_to_reach(curve, before, gap)
                if name != RULES["js"]:
                    estimate, end = lead(curves[RULES["js"]], curve, gap)
                    ahead = (estimate.value, *estimate.interval())
            for column, triple in (("js_lead", ahead), ("share_for_95", reach)):
                row |= dict(zip((column, f"{column}_low", f"{column}_high"), triple))
            rows.append(row | {"up_to_effective_share": end})
    return pd.DataFrame(rows)


def say_rules(study, summary: pd.DataFrame) -> str:
    """Which rules JS is ahead of, with which it is level, and which are ahead of it."""
    out = []
    for (pair, direction), part in summary.groupby(["pair", "direction"], sort=False):
        rest = part[part["rule"] != RULES["js"]]
        if rest.empty:
            continue
        measured = rest.dropna(subset=["js_lead_low"])
        kinds = {
            "ahead of": measured[measured["js_lead_low"] > 0],
            "behind": measured[measured["js_lead_high"] < 0],
        }
        told = measured.index.difference(kinds["ahead of"].index.union(kinds["behind"].index))
        kinds["not told apart from"] = measured.loc[told]
        said = [
            f"{word} " + ", ".join(f"{r['rule']} ({percent(r, 'js_lead', 0)})" for r in some)
            for word, some in ((w, [r for _, r in f.iterrows()]) for w, f in kinds.items())
            if some
        ]
        unmeasured = [r for r in rest["rule"] if r not in set(measured["rule"])]
        if unmeasured:
            said.append(f"not measurable against {', '.join(unmeasured)}")
        out.append(
            f"{pair}, {direction}; mean lead of JS at the same effective share, in % of the "
            f"accuracy gap: {'; '.join(said)}."
        )
    return "\n".join(out) or "This study compares JS with no other rule."


# Interventions ----------------------------------------------------------------------------------


def intervention_name(study, model: str, direction: str, insert: str, gain: float | None) -> str:
    """Whose tokens are put in."""
    if insert == "own":
        return "null: own token, other luck"
    other = study.models[model if direction == FORWARD else study.base].label
    if insert == "extrapolated":
        return f"{other} extrapolated, g = {gain:g}"
    return other


def intervention_table(
    study, runs: dict[Setting, pd.DataFrame], rollouts: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Tokens of RL models, SFT controls, the primary itself and of extrapolations, at JS positions.

    `pair` is the model whose divergence from base decides where, `tokens_of` whose tokens come
    there; for the null control `goal` is still the other model's own accuracy.
    """
    table = run_table(study, runs, rollouts)
    columns = ["model", "direction", "insert", "gain"]
    names = [intervention_name(study, *row) for row in table[columns].itertuples(index=False)]
    table.insert(0, "pair", [study.models[m].label for m in table["model"]])
    table.insert(3, "tokens_of", names)
    return table.drop(columns=["rule", "match", "budget"])


def say_interventions(study, table: pd.DataFrame) -> str:
    """What each kind of token does, where it replaces most; the null control's count as well."""
    table = table[table["threshold"] >= 0]
    out = []
    for _, part in table.groupby(["model", "direction", "tokens_of"], sort=False):
        row = part.loc[part["effective_share"].idxmax()]
        where = f"{row['pair']}, {row['direction']}, JS > {row['threshold']:g}"
        told = (
            f"{row['effective_per_response']:.3g} tokens a response effectively replaced, accuracy "
            f"{points(row, 'change')}"
        )
        if row["insert"] == "own":
            out.append(f"{where}, the primary's own token drawn again: {told}.")
        else:
            out.append(
                f"{where}, tokens of {row['tokens_of']}: {told}, to {percent(row, 'after')}."
            )
    return "\n".join(out)
