"""Records that section 3 asks for."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from tokenshift_utils.records.fetch import fetch_each
from tokenshift_utils.records.requests import Request
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.sections.divergence.records import model_requests
from tokenshift_utils.sections.mechanics.numbers import COLUMNS, EVOLUTION_COLUMNS, flat
from tokenshift_utils.sections.seeds import seed_requests
from tokenshift_utils.store import executor


def checkpoint_requests(study) -> dict[int, list[Shifts]]:
    """Shifts of the checkpoints along training, by step, on the final model's first responses.

    The final model itself stands one interval after the last checkpoint. Empty without an
    evolution section.
    """
    if study.evolution is None:
        return {}
    final = study.evolution.model
    few = min(study.samples.checkpoints, study.samples.shifts)
    steps = [checkpoint.step for checkpoint in study.model(final).checkpoints]
    names = study.checkpoint_names(final)
    made = {
        step: Shifts.of(study, name, source=final, samples=few)
        for step, name in zip(steps, names, strict=True)
    }
    last = steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else steps[-1])
    return made | {last: [replace(r, first=few) for r in Shifts.of(study, final)]}


def requests(study) -> list[Request]:
    """All that section 3 asks of the store."""
    asked = (checkpoint_requests, model_requests, seed_requests)
    return [request for of in asked for some in of(study).values() for request in some]


def mechanics_shifts(
    study,
) -> tuple[dict[str, pd.DataFrame], dict[int, pd.DataFrame], dict[str, pd.DataFrame]]:
    """(shifts by model, shifts by training step, shifts by run from every seed)."""
    executor.run(study, requests(study))
    checkpoints = fetch_each(study, checkpoint_requests(study), columns=EVOLUTION_COLUMNS)
    shifts, runs = (
        {
            name: flat(fetch_each(study, {name: some}, columns=COLUMNS)[name])
            for name, some in of(study).items()
        }
        for of in (model_requests, seed_requests)
    )
    return shifts, checkpoints, runs
