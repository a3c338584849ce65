"""TODO."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.records.precision import get_precision, precision_artefacts
from tokenshift_utils.records.shifts import get_shifts, shift_artefacts
from tokenshift_utils.sections import common
from tokenshift_utils.sections.divergence import numbers as divergence
from tokenshift_utils.store import executor


def divergence_artefacts(study) -> list[executor.Artefact]:
    """What section 1 asks of the store."""
    return [*_model_artefacts(study), *precision_artefacts(study)]


def _model_artefacts(study) -> list[executor.Artefact]:
    models = common.of_kind(study, "rl", "sft")
    return [a for model in models for a in shift_artefacts(study, model)]


def _shifts_of_models(study, columns) -> dict[str, pd.DataFrame]:
    """Shifts of every RL model and SFT control on its own responses."""
    executor.run(study, _model_artefacts(study))
    models = common.of_kind(study, "rl", "sft")
    return {model: get_shifts(study, model, columns=list(columns)) for model in models}


def divergence_shifts(study) -> dict[str, pd.DataFrame]:
    """Shifts of every RL model and SFT control on its own responses, for section 1."""
    return _shifts_of_models(study, divergence.COLUMNS)


def precision_shifts(study) -> pd.DataFrame | None:
    """Shifts that bfloat16 alone makes, for section 1; None where the study asks for none."""
    return get_precision(study, ["benchmark", "problem", "sample", "js", "js_full"])


def annotated_response(study) -> tuple[pd.DataFrame, str]:
    """(shifts, title) of one response: of the first RL model's first samples the one with the most
    high-JS positions, the first such in the order of the records."""
    model = common.of_kind(study, "rl")[0]
    key = ["benchmark", "problem", "sample"]
    shifts = get_shifts(study, model, columns=[*key, "js"])
    shifts = shifts[shifts["sample"] == 0]
    high = (shifts["js"] > study.thresholds.high_js).groupby([shifts[k] for k in key]).sum()
    benchmark, problem, sample = high.idxmax()
    rows = get_shifts(study, model, benchmarks=[benchmark])
    rows = rows[(rows["problem"] == problem) & (rows["sample"] == sample)]
    return rows, f"{study.models[model].label} on problem {problem}, sample {sample}."
