"""Section 2: the causal effect of a single token, and what makes it large (numbers).

A record is a position of the primary's own response: after the prefix there the primary goes on
from its own token and from the intervention's, with the same noise. The effect is the difference of
the success rates; where both tokens are the same it is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.stats import rankdata

from tokenshift_utils.report.bootstrap import Bootstrap, Estimate
from tokenshift_utils.sections.common import ALL, last_row, say, study_bootstrap
from tokenshift_utils.sections.cross_sampling.decisions import decides
from tokenshift_utils.sections.cross_sampling.settings import FORWARD

ENOUGH = 100  # positions of a stratum that a sentence may quote
FOLDS, RIDGE = 10, 1e-3
MEASURE_LABELS = {
    "js": "JS, nuclei",
    "js_full": "JS, full",
    "tv": "total variation, nuclei",
    "kl_primary": "KL(primary || other)",
    "kl_other": "KL(other || primary)",
    "log_ratio": "signed log-prob difference",
    "entropy_primary": "primary's entropy",
    "entropy_intervention": "other's entropy",
    "doubt_primary": "primary's margin, negative",
    "rank": "primary's rank of other's token",
}


def with_features(study, records: pd.DataFrame, decode: Callable[[int], str]) -> pd.DataFrame:
    """The records with `model` (the tuned one), and what is known of a position (see `MEASURE_LABELS`).

    `toward` is the effect towards the intervention's accuracy: the effect forward, minus it in
    reverse, where RL's token is the better one. `decides` is what the choice between the two tokens
    decides.
    """
    if records.empty:
        return records
    r, forward = records, (records["direction"] == FORWARD).to_numpy()
    kls = r["kl_base_tuned"], r["kl_tuned_base"]
    texts = {
        int(token): decode(int(token))
        for token in np.unique(r[["token_primary", "token_intervention"]])
    }
    written, put_in = (
        [texts[token] for token in r[f"token_{of}"]] for of in ("primary", "intervention")
    )
    return r.assign(
        model=np.where(forward, r["intervention"], r["primary"]),
        toward=np.where(forward, 1.0, -1.0) * r["effect"],
        kl_primary=np.where(forward, *kls),
        kl_other=np.where(forward, *kls[::-1]),
        log_ratio=r["logp_primary_of_primary"] - r["logp_intervention_of_primary"],
        entropy_base=np.where(forward, r["entropy_primary"], r["entropy_intervention"]),
        margin_base=np.where(forward, r["margin_primary"], r["margin_intervention"]),
        doubt_primary=-r["margin_primary"],
        rank=r["rank_primary_of_intervention"].astype(float),
        relative_position=r["position"] / r["n_tokens"],
        decides=[decides(a, b) for a, b in zip(written, put_in)],
    )


def _ways(study, records: pd.DataFrame):
    """(boot, key columns, records) of every pair and direction."""
    if records.empty:
        return
    boot = study_bootstrap(study, records)
    for (model, direction), mine in records.groupby(["model", "direction"], sort=False):
        label = study.models[model].label
        yield boot, {"pair": label, "direction": direction, "model": model}, mine


def _table(rows: list[dict]) -> pd.DataFrame:
    """The rows, with the model's name last: readers see its pair."""
    table = pd.DataFrame(rows)
    return table[[*table.columns.drop("model"), "model"]] if rows else table


# By stratum and by what is decided --------------------------------------------------------------


def _effects(boot: Bootstrap, part: pd.DataFrame, weights: np.ndarray) -> dict:
    """Share of equal tokens, mean effect of all positions and of those whose tokens differ."""
    differ, effect = (part[name].to_numpy(dtype=float) for name in ("effective", "effect"))
    row = {"positions": len(part), "different": int(differ.sum())}
    ratios = {
        "equal_tokens": (weights * (1 - differ), weights),
        "effect": (weights * effect, weights),
        "effect_different": (weights * effect * differ, weights * differ),
        "decisive": (weights * (np.abs(effect) >= 0.5), weights),
    }
    return row | boot.ratios(part, ratios)


def effect_table(study, records: pd.DataFrame) -> pd.DataFrame:
    """Every pair, direction and stratum of JS, and all strata weighed as often as they occur.

    Columns beside the key: `pool`, the positions of the stratum that were drawn from; `js`, their
    mean; `positions` drawn, and of those `different`, with unequal tokens; `equal_tokens`, the
    share at which both models write the same token; `effect`, the mean difference of success rates
    with 0 for equal tokens, and `effect_different` without them; `decisive`, the share at which the
    token changes success by half or more. Intervals resample problems.
    """
    rows = []
    for boot, key, mine in _ways(study, records):
        drawn = mine.groupby("stratum")["stratum"].transform("size")
        weight = mine["stratum_positions"] / drawn
        parts = [(_edges(part.iloc[0]), part) for _, part in mine.groupby("stratum")]
        for name, part in [*parts, (ALL, mine)]:
            own = weight[part.index].to_numpy(dtype=float)
            pool = int(part.groupby("stratum")["stratum_positions"].first().sum())
            js = np.average(part["js"], weights=own)
            row = key | {"js_stratum": name} | _effects(boot, part, own)
            rows.append(row | {"pool": pool, "js": js})
    return _table(rows)


def _edges(row) -> str:
    return f"{row['stratum_low']:g} to {row['stratum_high']:.3g}"


def decision_table(study, records: pd.DataFrame) -> pd.DataFrame:
    """Effects at tokens that differ, by what the choice decides; positions of all strata alike."""
    rows = []
    for boot, key, mine in _ways(study, records):
        mine = mine[mine["effective"]]
        for name, part in mine.groupby("decides", sort=True):
            row = key | {"decides": name, "different": len(part)}
            effect = part["effect"]
            ratios = {"effect_different": effect, "decisive": effect.abs() >= 0.5}
            rows.append(row | boot.ratios(part, ratios))
    return _table(rows)


# Which measure ranks positions best -------------------------------------------------------------


def _rank_correlation(boot: Bootstrap, rows: pd.DataFrame, x, y) -> Estimate:
    """Spearman's correlation, ranks taken among all rows; resamples weigh the rows' problems."""
    x, y = (rankdata(v) - (len(rows) + 1) / 2 for v in (x, y))
    codes, n = boot.codes(rows), len(boot.problems)
    sums = [
        np.bincount(codes, weights=v, minlength=n)
        for v in (np.ones(len(x)), x, y, x * y, x * x, y * y)
    ]
    weights = np.concatenate([np.ones((1, n)), boot.weights])
    total, sx, sy, sxy, sxx, syy = (weights @ v for v in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        mx, my = sx / total, sy / total
        found = (sxy / total - mx * my) / np.sqrt(
            np.maximum(sxx / total - mx**2, 0) * np.maximum(syy / total - my**2, 0)
        )
    return Estimate(float(found[0]), found[1:], boot.confidence)


def ranking_table(study, records: pd.DataFrame) -> pd.DataFrame:
    """How well each measure ranks positions by the effect towards the intervention.

    Spearman's correlation at positions whose tokens differ, the strongest first, whatever its sign.
    Positions were drawn evenly over strata of JS, so they are not those of a response, but the same
    ones for every measure.
    """
    rows = []
    for boot, key, mine in _ways(study, records):
        mine = mine[mine["effective"]]
        for name, label in MEASURE_LABELS.items():
            row = key | {"measure": label, "different": len(mine)}
            found = _rank_correlation(boot, mine, mine[name], mine["toward"])
            rows.append(row | found.columns("spearman"))
    table = _table(rows)
    if table.empty:
        return table
    order = {"key": lambda column: column.abs() if column.name == "spearman" else column}
    return table.sort_values(
        ["model", "direction", "spearman"], ascending=[True, True, False], **order
    )


# A model of the effect --------------------------------------------------------------------------

_BASE = ["entropy_base", "margin_base", "relative_position", "class_base"]
_DISTRIBUTIONS = [*MEASURE_LABELS, "margin_intervention"]
FEATURES = {
    "base alone": _BASE,
    "JS alone": ["js"],
    "distributions of both": _DISTRIBUTIONS,
    "what the tokens decide": ["decides"],
    "all of these": [*_BASE, *_DISTRIBUTIONS, "decides"],
}


def _out_of_fold(rows: pd.DataFrame, names: list[str], folds: np.ndarray) -> np.ndarray:
    """Predictions of the effect by least squares, each from the problems of other folds."""
    x = pd.get_dummies(rows[names], drop_first=True, dtype=float).clip(-30, 30)
    x, y = (x - x.mean()) / x.std().replace(0, 1), rows["toward"].to_numpy(dtype=float)
    x = sm.add_constant(x.to_numpy(), has_constant="add")
    ridge = np.r_[0.0, np.full(x.shape[1] - 1, RIDGE)]  # features may say the same
    found = np.empty(len(y))
    for fold in np.unique(folds):
        test = folds == fold
        fit = sm.OLS(y[~test], x[~test]).fit_regularized(alpha=ridge, L1_wt=0.0)
        found[test] = x[test] @ fit.params
    return found.clip(-1, 1)


def model_table(study, records: pd.DataFrame) -> pd.DataFrame:
    """How much of the effect's variance is foretold, by what is known of a position.

    Least squares (with a slight ridge) at positions whose tokens differ, judged on problems that the fit did not see
    (`explained`, at most 1, negative where the mean foretells better). `ceiling` is what the noise
    of so few continuations leaves to be explained.
    """
    rows = []
    for boot, key, mine in _ways(study, records):
        mine = mine[mine["effective"]]
        folds = boot.codes(mine) % FOLDS
        if len(np.unique(folds)) < 2:
            continue
        spread = (mine["toward"] - mine["toward"].mean()) ** 2
        n = mine["continuations"].astype(float)
        one, other, both = (
            mine[f"successes_{of}"].astype(float) for of in ("primary", "intervention", "both")
        )
        # Of n paired differences of 0 or 1, those that are not 0 are where one alone is right.
        noise = ((one + other - 2 * both) / n - mine["effect"] ** 2) / (n - 1).clip(lower=1)
        wrong = {name: _wrong(mine, names, folds) for name, names in FEATURES.items()}
        for name, error in (wrong | {"ceiling": noise}).items():
            left = boot.ratio(mine, error, spread)
            row = key | {"known": name, "different": len(mine)}
            rows.append(row | (left / -1.0 + 1.0).columns("explained"))
    return _table(rows)


def _wrong(rows: pd.DataFrame, names: list[str], folds: np.ndarray) -> np.ndarray:
    return (rows["toward"].to_numpy(dtype=float) - _out_of_fold(rows, names, folds)) ** 2


# Words ------------------------------------------------------------------------------------------


def say_effects(table: pd.DataFrame) -> str:
    """The effect at tokens that differ in the highest stratum of enough positions, and over all."""
    text = (
        "{pair}, {direction}: where the two tokens differ, putting in the other model's changes the "
        "chance of success by {effect_different:points} on average over all positions as often as "
        "they occur"
    )
    high = (
        "; at JS {js_stratum} ({positions} positions, {different} of them different) by "
        "{effect_different:points}, and the tokens are the same at {equal_tokens:%0}"
    )
    out = []
    for _, part in table.groupby(["pair", "direction"], sort=False) if len(table) else ():
        strata = part[(part["js_stratum"] != ALL) & (part["positions"] >= ENOUGH)]
        out.append(say(text, last_row(part, js_stratum=ALL)))
        out[-1] += (say(high, strata.iloc[-1]) if len(strata) else "") + "."
    return "\n".join(out) or "This study asks for no effects of single tokens."


def say_critical(ranking: pd.DataFrame, models: pd.DataFrame, decisions: pd.DataFrame) -> str:
    """What ranks positions best, what foretells the effect, and which decisions weigh most."""
    out = []
    for key, part in ranking.groupby(["pair", "direction"], sort=False) if len(ranking) else ():
        where = dict(zip(("pair", "direction"), key))
        js = last_row(part, measure=MEASURE_LABELS["js"])
        best = part.dropna(subset=["spearman_low"])
        if best.empty or best.iloc[0]["different"] < ENOUGH:
            continue
        told = best[(best["spearman_low"] > 0) | (best["spearman_high"] < 0)]
        said = (
            "{pair}, {direction}: of all measures {measure} ranks the {different} positions best "
        )
        if told.empty:
            said = (
                "{pair}, {direction}: no measure's ranking of the {different} positions is told from chance; "
                "the strongest is {measure} "
            )
        best = (best if told.empty else told).iloc[0]
        said += "(Spearman {spearman:.2g} [{spearman_low:.2g}, {spearman_high:.2g}], each by itself"
        said += ")" if best["measure"] == js["measure"] else "; JS {js:.2g})"
        out.append(say(said, best, js=js["spearman"]))
        if len(models):
            mine = {
                n: last_row(models, known=n, **where)
                for n in ("all of these", "base alone", "ceiling")
            }
            if all(row is not None for row in mine.values()):
                share = {  # worse than the mean: nothing is foretold
                    n.split()[0]: say("{explained:%0}", row) if row["explained"] > 0 else "none"
                    for n, row in mine.items()
                }
                out[-1] += (
                    "; all that is known of a position foretells {all} of the effect's variance on new "
                    "problems, base alone {base}, where the noise of the continuations leaves {ceiling}"
                ).format(**share)
        kinds = decisions[(decisions[list(where)] == list(where.values())).all(axis=1)]
        kinds = kinds[kinds["different"] >= ENOUGH]
        if len(kinds):
            most = kinds.loc[kinds["effect_different"].abs().idxmax()]
            out[-1] += say(
                "; the largest effects are of choices of {decides} ({effect_different:points}, "
                "{different} positions)",
                most,
            )
        out[-1] += "."
    return "\n".join(out) or f"Fewer than {ENOUGH} positions with unequal tokens: nothing is said."
