"""Records that section 1 asks for."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.records.fetch import fetch, fetch_each
from tokenshift_utils.records.precision import Precision
from tokenshift_utils.records.requests import Request
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.sections.common import of_kind
from tokenshift_utils.sections.divergence.numbers import COLUMNS


def model_requests(study) -> dict[str, list[Shifts]]:
    """Shifts of every RL model and SFT control on its own responses."""
    return {model: Shifts.of(study, model) for model in of_kind(study, "rl", "sft")}


def requests(study) -> list[Request]:
    """All that section 1 asks of the store."""
    return [r for some in model_requests(study).values() for r in some] + Precision.of(study)


def shifts_by_model(study) -> dict[str, pd.DataFrame]:
    """Shifts of every RL model and SFT control on its own responses."""
    return fetch_each(study, model_requests(study), columns=COLUMNS)


def precision_shifts(study) -> pd.DataFrame | None:
    """Shifts that bfloat16 alone makes; None where the study asks for none."""
    wanted = Precision.of(study)
    columns = ["benchmark", "problem", "sample", "js", "js_full"]
    return fetch(study, wanted, columns=columns) if wanted else None


def annotated_response(study) -> tuple[pd.DataFrame, str]:
    """(shifts, title) of one response: of the first RL model's first samples the one with the most
    high-JS positions, the first such in the order of the records."""
    model = of_kind(study, "rl")[0]
    key = ["benchmark", "problem", "sample"]
    shifts = fetch(study, Shifts.of(study, model), columns=[*key, "js"])
    shifts = shifts[shifts["sample"] == 0]
    high = (shifts["js"] > study.thresholds.high_js).groupby([shifts[k] for k in key]).sum()
    benchmark, problem, sample = high.idxmax()
    rows = fetch(study, Shifts.of(study, model, benchmarks=benchmark))
    rows = rows[(rows["problem"] == problem) & (rows["sample"] == sample)]
    return rows, f"{study.models[model].label} on problem {problem}, sample {sample}."
