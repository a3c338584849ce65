"""TODO."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.records.cross_sampling import get_cross_sampling
from tokenshift_utils.records.rollouts import get_rollouts
from tokenshift_utils.sections.cross_sampling import swaps
from tokenshift_utils.sections.cross_sampling.numbers import budget_setting
from tokenshift_utils.sections.cross_sampling.records import _call, _own_sampling
from tokenshift_utils.sections.cross_sampling.settings import (
    FORWARD,
    REVERSE,
    Setting,
    roles,
    threshold_name,
)


def _in_budget(study, table: pd.DataFrame, model: str, direction: str) -> tuple[Setting, tuple]:
    setting = budget_setting(study, table, model, direction)
    return setting, get_cross_sampling(**_call(study, setting, None))


def cross_switches(study, table: pd.DataFrame) -> dict[tuple[str, str, float], pd.DataFrame]:
    """Switches of every pair's and direction's setting within the budget."""
    return {
        setting[:3]: switches
        for model in study.cross_sampling.pairs
        for direction in (FORWARD, REVERSE)
        for setting, (_, switches) in [_in_budget(study, table, model, direction)]
    }


def cross_examples(study, table: pd.DataFrame, count: int = 2) -> tuple[list[dict], str]:
    """(examples for `show_trajectories`, how often one swap decides) of the first pair, both ways.

    The mixture is that within the budget; see `pick_examples` for which responses are shown.
    """
    model, examples, said = study.cross_sampling.pairs[0], [], []
    for direction in (FORWARD, REVERSE):
        setting, (runs, switches) = _in_budget(study, table, model, direction)
        primary, intervention = roles(study, setting)
        own = {
            m: get_rollouts(study, m, sampling=_own_sampling(study))
            for m in (primary, intervention)
        }
        rows = {"primary": own[primary], "mixed": runs, "intervention": own[intervention]}
        names = {
            "primary": study.models[primary].label,
            "mixed": f"mixed, {threshold_name(setting.threshold)}",
            "intervention": study.models[intervention].label,
        }
        found = swaps.pick_examples(rows, switches, names, direction, count)
        examples += found
        said.append(
            swaps.say_deciding(study, swaps.turned(own[primary], runs, direction), direction)
        )
        said[-1] += swaps.say_shown(found)
    return examples, "\n".join(said)
