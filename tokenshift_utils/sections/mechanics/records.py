"""TODO."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.records.shifts import get_shifts, shift_artefacts
from tokenshift_utils.sections.divergence.records import _model_artefacts, _shifts_of_models
from tokenshift_utils.sections.mechanics import numbers as mechanics
from tokenshift_utils.store import executor


def _checkpoint_call(study) -> dict:
    """Arguments of ``get_shifts`` for checkpoints: the final model's first responses."""
    few = min(study.samples.checkpoints, study.samples.shifts)
    return {"source": study.evolution.model, "samples": few}


def mechanics_artefacts(study) -> list[executor.Artefact]:
    """What section 3 asks of the store."""
    if study.evolution is None:
        return _model_artefacts(study)
    final, call = study.evolution.model, _checkpoint_call(study)
    wanted = [*shift_artefacts(study, final), *_model_artefacts(study)]
    names = study.checkpoint_names(final)
    return wanted + [a for name in names for a in shift_artefacts(study, name, **call)]


def mechanics_shifts(study) -> tuple[dict[str, pd.DataFrame], dict[int, pd.DataFrame]]:
    """(shifts by model, shifts by training step) for section 3.

    The checkpoints are scored on the final model's responses; it stands one interval after the
    last checkpoint. Without an evolution section the second is empty.
    """
    if study.evolution is None:
        return _shifts_of_models(study, mechanics.COLUMNS), {}
    executor.run(study, mechanics_artefacts(study))
    final, columns = study.evolution.model, list(mechanics.EVOLUTION_COLUMNS)
    names, scored = study.checkpoint_names(final), _checkpoint_call(study)
    steps = [checkpoint.step for checkpoint in study.model(final).checkpoints]
    frames = {
        step: get_shifts(study, name, columns=columns, **scored)
        for step, name in zip(steps, names, strict=True)
    }
    last = steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else steps[-1])
    finished = get_shifts(study, final, columns=columns)
    frames[last] = finished[finished["sample"] < scored["samples"]].reset_index(drop=True)
    return _shifts_of_models(study, mechanics.COLUMNS), frames
