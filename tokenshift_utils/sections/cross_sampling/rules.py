"""Section 2 on one benchmark: other rules than JS, and other tokens than RL's (numbers)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tokenshift_utils.pairs.rules import RULE_KINDS
from tokenshift_utils.report.bootstrap import columns_of
from tokenshift_utils.sections.common import say, say_each
from tokenshift_utils.sections.cross_sampling.numbers import MixtureEstimates, is_full, run_table
from tokenshift_utils.sections.cross_sampling.settings import FORWARD, Setting
from tokenshift_utils.sections.cross_sampling.summary import curve_of, share_to_reach

JS = RULE_KINDS["js"].label
BUDGET_LABEL = "first n JS switches"


def rule_name(rule: str, budget: float | None = None) -> str:
    """How tables and figures call a rule; one with a budget is a rule of its own."""
    return BUDGET_LABEL if budget is not None and not np.isnan(budget) else RULE_KINDS[rule].label


def rule_table(mixed: MixtureEstimates) -> pd.DataFrame:
    """Every rule at every threshold, on the samples that all have: see `run_table`. `threshold` is
    the rule's number, in nats, positions or as a rate."""
    table = run_table(mixed.alike)
    table["rule"] = [rule_name(*row) for row in zip(table["rule"], table["budget"])]
    table["budget"] = ["" if pd.isna(b) else str(int(b)) for b in table["budget"]]
    return table.drop(columns=["insert", "gain"])


def rule_summary(mixed: MixtureEstimates) -> pd.DataFrame:
    """The JS rule's mean lead over every other one, and what each needs for 95% of the gap.

    Leads are in shares of the gap, at equal numbers of effective replacements up to the most that
    both rules make; negative: the other rule does more with as few. `share_for_95` is in the
    replacements of full switching, which is no rule's own setting. All of it is on the samples that
    every rule has.
    """
    mixed, rows = mixed.alike, []
    for way in mixed.ways:
        label = mixed.benchmarks(way)[-1]
        parts: dict[str, list[Setting]] = {}
        for setting in mixed.parts:
            if setting[:2] == way and not is_full(setting):
                name = rule_name(setting.rule, setting.budget)
                parts.setdefault(name, []).append(setting)
        known = not mixed.why_no_gap(way, label)
        curves = {name: curve_of(mixed, some, label) for name, some in parts.items()}
        for name, curve in curves.items():
            row = {"pair": mixed.study.models[way[0]].label, "direction": way[1], "rule": name}
            other = known and name != JS and JS in curves
            lead = curves[JS].lead(curve).columns("js_lead") if other else {}
            reach = share_to_reach(curve) if known else (np.nan,) * 3
            row |= columns_of("js_lead", (np.nan,) * 3) | lead
            row["up_to_replaced"] = (
                min(curve.x[0].max(), curves[JS].x[0].max()) if other else np.nan
            )
            row |= columns_of("share_for_95", reach)
            rows.append(row | {"settings": len(parts[name]), "model": way[0]})
    return pd.DataFrame(rows)


def say_rules(summary: pd.DataFrame) -> str:
    """Which rules JS is ahead of, with which it is level, and which are ahead of it."""
    out = []
    for (pair, direction), part in summary.groupby(["pair", "direction"], sort=False):
        rest = part[part["rule"] != JS].dropna(subset=["js_lead_low"])
        if rest.empty:
            continue
        ahead, behind = rest["js_lead_low"] > 0, rest["js_lead_high"] < 0
        kinds = {"ahead of": ahead, "behind": behind, "not told apart from": ~(ahead | behind)}
        said = [
            f"{word} {', '.join(say_each('{rule} ({js_lead:points})', rest[which]).splitlines())}"
            for word, which in kinds.items()
            if which.any()
        ]
        each = "; intervals of each rule by itself" if len(rest) > 1 else ""
        out.append(f"{pair}, {direction}: JS is {'; '.join(said)}{each}.")
    return "\n".join(out) or "JS can be compared with no other rule here."


# Interventions ----------------------------------------------------------------------------------


def intervention_name(study, model: str, direction: str, insert: str, gain: float | None) -> str:
    """Whose tokens are put in."""
    if insert == "own":
        return f"{study.models[study.base if direction == FORWARD else model].label}, other luck (null)"
    other = study.models[model if direction == FORWARD else study.base].label
    if insert == "extrapolated":
        return f"{other} extrapolated, g = {gain:g}"
    return other


def intervention_table(mixed: MixtureEstimates) -> pd.DataFrame:
    """Tokens of RL models, SFT controls, the primary itself and of extrapolations, at JS positions.

    `pair` is the model whose divergence from base decides where, `tokens_of` whose tokens come
    there; for the null control `goal` is still the other model's own accuracy. All are on the samples
    that every one has. See `run_table`.
    """
    table = run_table(mixed.alike)
    rows = table[["model", "direction", "insert", "gain"]].itertuples(index=False)
    names = [intervention_name(mixed.study, *row) for row in rows]
    table.insert(2, "tokens_of", names)
    return table.drop(columns=["rule", "budget"])


def say_interventions(study, table: pd.DataFrame) -> str:
    """What each kind of token does at the threshold nearest to the study's high JS: of the first pair and
    the first SFT control, both directions."""
    kind = "{tokens_of} {change:points} ({effective_per_response:.3g} a response)"
    table = table[table["threshold"] >= 0]
    distance = (table["threshold"] - study.thresholds.high_js).abs()
    controls = [m for m in table["model"] if m not in study.cross_sampling.pairs]
    out = []
    for model in (study.cross_sampling.pairs[0], *controls[:1]):
        for direction, part in table[table["model"] == model].groupby("direction"):
            nearest = [
                table.loc[distance[some.index].idxmin()]
                for _, some in part.groupby("tokens_of", sort=False)
            ]
            said = "; ".join(say(kind, row) for row in nearest)
            out.append(say("{pair}, {way}, JS > {threshold:g}, by whose tokens: ", nearest[0],
                           way=direction) + said + ".")  # fmt: skip
    return "\n".join(out)
