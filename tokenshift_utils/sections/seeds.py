"""What a section measures, over training seeds: the records of the runs, and the quantities.

A model's runs from other seeds stand in the study, see ``ModelSpec.seeds``. Every run is measured on
its own first responses, as many as of checkpoints, so that all count alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.report.seeds import Paired
from tokenshift_utils.sections.claims import SEEDS_COLUMNS
from tokenshift_utils.sections.common import of_kind, of_recipe, study_bootstrap

_ONE = "one training seed of each: what one run has over another says nothing of the recipes"


def seed_requests(study) -> dict[str, list[Shifts]]:
    """Shifts of every run of the RL models that have several, by name (``dapo``, ``dapo@seed-2``)."""
    few = min(study.samples.checkpoints, study.samples.shifts)
    wanted = {}
    for model in of_kind(study, "rl"):
        if others := study.seed_names(model):
            wanted[model] = [replace(r, first=few) for r in Shifts.of(study, model)]
            wanted |= {name: Shifts.of(study, name, samples=few) for name in others}
    return wanted


def measured(
    study, runs: Mapping[str, pd.DataFrame], measure: Callable
) -> dict[str, dict[str, float]]:
    """A section's quantities by name of the run.

    Parameters
    ----------
    runs : shifts by name of the run, as ``seed_requests`` has them; of too little to measure is NaN
    measure : what the section measures of a frame: (bootstrap, frame) -> {quantity: (estimate, ...)}
    """
    once = study.with_overrides(**{"statistics.resamples": 1})  # no interval over problems is asked
    return {
        name: {
            quantity: np.nan if estimate is None or estimate.why else estimate.value
            for quantity, (estimate, *_) in measure(study_bootstrap(once, frame), frame).items()
        }
        for name, frame in runs.items()
    }


def seeds_table(
    study,
    runs: Mapping[str, Mapping[str, float]],
    differences: Mapping[str, tuple[str, str, str]],
) -> pd.DataFrame:
    """A section's quantities over training seeds, each with Student's interval for their mean.

    Parameters
    ----------
    runs : quantities by name of the run, as ``measured`` has them
    differences : of two recipes: name -> (quantity, recipe, other recipe), paired by seed

    Returns
    -------
    Columns `SEEDS_COLUMNS` and note; a row a quantity and model. A difference that both recipes' models
    are there for has a row in any case: without an interval, and a note why, where seeds are too few.
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    for name, found in runs.items():
        model, _, seed = name.partition("@seed-")
        for quantity, value in found.items():
            values.setdefault((quantity, model), {})[int(seed or 1)] = value
    notes = {}
    for name, (quantity, *recipes) in differences.items():
        pair = [of_recipe(study, recipe, of_kind(study, "rl")) for recipe in recipes]
        if None not in pair:
            first, second = (values.get((quantity, model), {}) for model in pair)
            both = first.keys() & second.keys()
            values[name, pair[0]] = {seed: first[seed] - second[seed] for seed in both}
            notes[name] = _ONE if len(both) < 2 else ""
    rows = []
    for (quantity, model), by_seed in values.items():
        over = Paired(
            np.array([v for v in by_seed.values() if not np.isnan(v)]), study.statistics.confidence
        )
        note = notes.get(quantity) or ("" if over.seeds else "no seed shows it")
        rows.append((quantity, model, over.seeds, *over.triple, note))
    return pd.DataFrame(rows, columns=[*SEEDS_COLUMNS, "note"])
