"""Switches and example responses of the settings within the budget; verdicts in words."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.tokens import tokenizer  # noqa: F401 (notebook 02)
from tokenshift_utils.report.heatmap import show_trajectories  # noqa: F401 (notebook 02)
from tokenshift_utils.sections.common import ALL, last_row
from tokenshift_utils.sections.cross_sampling import swaps
from tokenshift_utils.sections.cross_sampling.numbers import budget_setting
from tokenshift_utils.sections.cross_sampling.records import own_requests, setting_requests
from tokenshift_utils.sections.cross_sampling.settings import (
    FORWARD,
    REVERSE,
    roles,
    threshold_name,
)
from tokenshift_utils.sections.overview import say_claims, section_claims
from tokenshift_utils.sections.paper import table1  # noqa: F401 (notebook 02)


def say_reproduced(study, found: pd.DataFrame, seeds: pd.DataFrame) -> str:
    """The verdicts on the claims of section 2."""
    return say_claims(study, section_claims(study, found, 2, seeds))


def cross_switches(study, table: pd.DataFrame) -> dict[tuple[str, str, float], pd.DataFrame]:
    """Switches of every pair's and direction's setting within the budget."""
    chosen = [
        budget_setting(study, table, model, direction)
        for model in study.cross_sampling.pairs
        for direction in (FORWARD, REVERSE)
    ]
    return {s[:3]: fetch(study, setting_requests(study, s), "switches") for s in chosen}


def cross_examples(
    study, table: pd.DataFrame, effects: pd.DataFrame, count: int = 2
) -> tuple[list[dict], str]:
    """(examples for `show_trajectories`, how often one swap decides) of the first pair, both ways.

    The mixture is that within the budget; see `pick_examples` for which responses are shown.
    """
    model, examples, said = study.cross_sampling.pairs[0], [], []
    for direction in (FORWARD, REVERSE):
        setting = budget_setting(study, table, model, direction)
        wanted = setting_requests(study, setting)
        runs, switches = fetch(study, wanted), fetch(study, wanted, "switches")
        primary, intervention = roles(study, setting)
        own = {m: fetch(study, own_requests(study, m)) for m in (primary, intervention)}
        rows = {"primary": own[primary], "mixed": runs, "intervention": own[intervention]}
        names = {
            "primary": study.models[primary].label,
            "mixed": f"mixed, {threshold_name(setting.level)}",
            "intervention": study.models[intervention].label,
        }
        found = swaps.pick_examples(rows, switches, names, direction, count)
        examples += found
        here = runs[runs["benchmark"] == study.cross_benchmark]  # where single tokens were drawn
        turned = swaps.mark_turned(own[primary], here, direction)
        where = {"model": model, "direction": direction, "js_stratum": ALL}
        drawn = last_row(effects, **where) if len(effects) else None
        said.append(swaps.say_deciding(study, turned, direction, drawn))
        said[-1] += swaps.say_shown(found)
    return examples, "\n".join(said)
