"""Records that section 1 asks for."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.records.fetch import fetch, fetch_each
from tokenshift_utils.records.precision import Precision
from tokenshift_utils.records.requests import RESPONSE_KEY, Request
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.records.tokens import is_natural_language, token_texts
from tokenshift_utils.sections.common import of_kind, token_class
from tokenshift_utils.sections.divergence.numbers import COLUMNS
from tokenshift_utils.sections.divergence.token_classes import classes_of
from tokenshift_utils.sections.seeds import seed_requests
from tokenshift_utils.study.schema import CONTROLS


def model_requests(study) -> dict[str, list[Shifts]]:
    """Shifts of every RL model and control on its own responses."""
    return {model: Shifts.of(study, model) for model in of_kind(study, "rl", *CONTROLS)}


def requests(study) -> list[Request]:
    """All that section 1 asks of the store."""
    wanted = [*model_requests(study).values(), *seed_requests(study).values()]
    return [r for some in wanted for r in some] + Precision.of(study)


def classed_shifts(
    study,
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame], dict[int, str]]:
    """(shifts by model, shifts by run from every seed, texts of their tokens).

    Shifts have the class of every token in ``token_class``: of natural language by
    ``token_classes``, else structural or other.
    """
    wanted, runs = model_requests(study), seed_requests(study)
    keyed = {("model", m): r for m, r in wanted.items()} | {("run", n): r for n, r in runs.items()}
    found = fetch_each(study, keyed, columns=COLUMNS)
    texts = token_texts(study, found)
    natural = is_natural_language(study)
    plain = pd.Series({token: token_class(text) for token, text in texts.items()})
    for key, frame in found.items():
        classes = classes_of(frame, texts) if natural else plain[frame["token"]].to_numpy()
        found[key] = frame.assign(token_class=classes)
    models, others = (
        {n: f for (k, n), f in found.items() if k == kind} for kind in ("model", "run")
    )
    return models, others, texts


def answers(study) -> dict[str, pd.DataFrame]:
    """Whether each of their own responses is correct, by model: RL and controls."""
    wanted = {model: Rollouts.of(study, model) for model in of_kind(study, "rl", *CONTROLS)}
    return fetch_each(study, wanted, columns=[*RESPONSE_KEY, "correct"])


def precision_shifts(study) -> pd.DataFrame | None:
    """Shifts that bfloat16 alone makes; None where the study asks for none."""
    wanted = Precision.of(study)
    columns = [*RESPONSE_KEY, "js", "js_full"]
    return fetch(study, wanted, columns=columns) if wanted else None


def annotated_response(study) -> tuple[pd.DataFrame, str]:
    """(shifts, title) of one response: of the first RL model's first samples the one with the most
    high-JS positions, the first such in the order of the records."""
    model = of_kind(study, "rl")[0]
    shifts = fetch(study, Shifts.of(study, model), columns=[*RESPONSE_KEY, "js"])
    shifts = shifts[shifts["sample"] == 0]
    high = (
        (shifts["js"] > study.thresholds.high_js).groupby([shifts[k] for k in RESPONSE_KEY]).sum()
    )
    benchmark, problem, sample = high.idxmax()
    rows = fetch(study, Shifts.of(study, model, benchmarks=benchmark))
    rows = rows[(rows["problem"] == problem) & (rows["sample"] == sample)]
    return rows, f"{study.models[model].label} on problem {problem}, sample {sample}."
