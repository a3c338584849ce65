"""Section 2: the causal effect of a single token against JS (numbers).

A record is a position of the primary's own response: after the prefix there the primary goes on
once from its own token and once from the intervention's, with the same noise. The effect is the
difference of the success rates; where both tokens are the same it is 0.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tokenshift_utils.sections.common import ALL, percent, plan, points
from tokenshift_utils.sections.cross_sampling.settings import FORWARD

__all__ = ["effect_table", "say_effects"]


def _edges(row) -> str:
    return f"{row['stratum_low']:g} to {row['stratum_high']:.3g}"


def _effects(boot, part: pd.DataFrame, weights: np.ndarray) -> dict:
    """Share of equal tokens, mean effect of all positions and of those whose tokens differ."""
    differ = part["effective"].to_numpy(dtype=float)
    effect = part["effect"].to_numpy(dtype=float)
    row = boot.ratio(part, weights * (1 - differ), weights).columns("equal_tokens")
    row |= boot.ratio(part, weights * effect, weights).columns("effect")
    row |= boot.ratio(part, weights * effect * differ, weights * differ).columns("effect_different")
    decisive = np.abs(effect) >= 0.5
    return row | boot.ratio(part, weights * decisive, weights).columns("decisive")


def effect_table(study, records: pd.DataFrame) -> pd.DataFrame:
    """Every pair, direction and stratum of JS, and all strata weighed as often as they occur.

    Columns beside the key: positions; `pool`, the positions of the stratum they were drawn from;
    `js`, their mean; `equal_tokens`, the share at which both models write the same token; `effect`,
    the mean difference of success rates with 0 for equal tokens, and `effect_different` without
    them; `decisive`, the share at which the token changes success by half or more. Intervals
    resample problems.
    """
    if records.empty:
        return pd.DataFrame(columns=["pair", "model", "direction", "js_stratum", "js"])
    records = records.assign(
        model=np.where(records["direction"] == FORWARD, records["intervention"], records["primary"])
    )
    boot, rows = plan(study, records), []
    for (model, direction), mine in records.groupby(["model", "direction"], sort=False):
        drawn = mine.groupby("stratum")["stratum"].transform("size")
        weight = (mine["stratum_positions"] / drawn).to_numpy(dtype=float)
        parts = [(_edges(part.iloc[0]), part) for _, part in mine.groupby("stratum")]
        for name, part in [*parts, (ALL, mine)]:
            within = np.isin(mine.index, part.index)
            key = {"pair": study.models[model].label, "model": model, "direction": direction}
            pool = part.groupby("stratum")["stratum_positions"].first().sum()
            js = np.average(part["js"], weights=weight[within])
            key |= {"js_stratum": name, "positions": len(part), "pool": int(pool), "js": js}
            rows.append(key | _effects(boot, part, weight[within]))
    return pd.DataFrame(rows)


def say_effects(table: pd.DataFrame) -> str:
    """The effect in the lowest and the highest stratum, and over all positions."""
    out = []
    for (pair, direction), part in table.groupby(["pair", "direction"], sort=False):
        strata, whole = part[part["js_stratum"] != ALL], part[part["js_stratum"] == ALL].iloc[0]
        top = strata.iloc[-1]
        text = (
            f"{pair}, {direction}: at JS {top['js_stratum']} one token changes the chance of "
            f"success by {points(top, 'effect')} on average ({points(top, 'effect_different')} where "
            f"the tokens differ)"
        )
        if len(strata) > 1:
            low = strata.iloc[0]
            text += f", at JS {low['js_stratum']} by {points(low, 'effect')}"
        out.append(
            f"{text}; over all positions as often as they occur {points(whole, 'effect')}, with equal "
            f"tokens at {percent(whole, 'equal_tokens')} of them."
        )
    return "\n".join(out) or "This study asks for no effects of single tokens."
