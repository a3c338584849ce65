"""Section 2: the causal effect of a single token against JS (numbers).

A record is a position of the primary's own response: after the prefix there the primary goes on
once from its own token and once from the intervention's, with the same noise. The effect is the
difference of the success rates; where both tokens are the same it is 0.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tokenshift_utils.sections.common import ALL, last_row, plan, say
from tokenshift_utils.sections.cross_sampling.settings import FORWARD


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
    text = (
        "{pair}, {direction}: at JS {js_stratum} one token changes the chance of success by "
        "{effect:points} on average ({effect_different:points} where the tokens differ)"
    )
    all_of_them = (
        "; over all positions as often as they occur {effect:points}, with equal tokens at "
        "{equal_tokens:%} of them."
    )
    out = []
    for _, part in table.groupby(["pair", "direction"], sort=False):
        strata = part[part["js_stratum"] != ALL]
        out.append(say(text, strata.iloc[-1]))
        if len(strata) > 1:
            out[-1] += say(", at JS {js_stratum} by {effect:points}", strata.iloc[0])
        out[-1] += say(all_of_them, last_row(part, js_stratum=ALL))
    return "\n".join(out) or "This study asks for no effects of single tokens."
