"""What each notebook needs of the records, in one call, so that one pool computes what is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pandas as pd

from tokenshift_utils.records.precision import get_precision, precision_artefacts
from tokenshift_utils.records.rollouts import get_rollouts, rollout_artefacts
from tokenshift_utils.records.shifts import Mixed, get_shifts, shift_artefacts
from tokenshift_utils.sections import common
from tokenshift_utils.sections.cross_sampling.records import (
    control_artefacts,
    cross_artefacts,
    cross_examples,
    cross_records,
    cross_switches,
)
from tokenshift_utils.sections.divergence import numbers as divergence
from tokenshift_utils.sections.mechanics import numbers as mechanics
from tokenshift_utils.sections.robustness import numbers as robustness
from tokenshift_utils.store import executor
from tokenshift_utils.study.tokenizers import load_tokenizer

__all__ = [
    "annotated_response",
    "control_artefacts",
    "cross_artefacts",
    "cross_examples",
    "cross_records",
    "cross_switches",
    "divergence_artefacts",
    "divergence_shifts",
    "mechanics_artefacts",
    "mechanics_shifts",
    "precision_shifts",
    "robustness_artefacts",
    "robustness_records",
    "token_decoder",
    "token_texts",
    "tokenizer",
]


@lru_cache(maxsize=4)
def tokenizer(study):
    """The tokenizer of the study's base, which all its models share."""
    return load_tokenizer(study.model_path(study.base))


def token_decoder(study) -> Callable[[int], str]:
    """What tells the text of a token from its id."""
    return lambda token: tokenizer(study).decode([int(token)])


def token_texts(study, shifts: dict[str, pd.DataFrame]) -> dict[int, str]:
    """Token id -> its text, of all tokens in some shifts, with line breaks made visible."""
    ids = {int(i) for frame in shifts.values() for i in frame["token"].unique()}
    return {i: tokenizer(study).decode([i]).replace("\n", "\\n") for i in sorted(ids)}


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


def _robustness_calls(study) -> tuple[list[str], dict[str, dict], dict[tuple, dict]]:
    """(models, arguments by trajectories, arguments by sampler) of section 5.

    Mixed trajectories are those of section 2, as many samples as that draws.
    """
    settings = study.robustness
    pair = settings.pair
    models = list(dict.fromkeys([pair, *common.of_kind(study, "rl")]))
    mixed = {
        "source": Mixed(study.base, pair, threshold=settings.mixed_threshold),
        "samples": min(study.samples.shifts, study.samples.cross_sampling),
    }
    sources = {"its own": {}, "base's": {"source": study.base}, "mixed": mixed}
    samplers = {
        (setting["top_p"], setting["temperature"]): {
            "benchmarks": [settings.benchmark],
            "samples": settings.samples,
            "sampling": setting,
        }
        for setting in robustness.sampling_settings(study)
    }
    return models, sources, samplers


def robustness_artefacts(study) -> list[executor.Artefact]:
    """What section 5 asks of the store."""
    pair = study.robustness.pair
    models, sources, samplers = _robustness_calls(study)
    wanted = [a for model in models for a in shift_artefacts(study, model)]
    wanted += [a for call in sources.values() for a in shift_artefacts(study, pair, **call)]
    for call in samplers.values():
        wanted += shift_artefacts(study, pair, **call)
        wanted += [a for m in (study.base, pair) for a in rollout_artefacts(study, m, **call)]
    return wanted


def robustness_records(study):
    """(shifts by model, shifts by trajectories, (shifts, rollouts) by sampler) for section 5."""
    executor.run(study, robustness_artefacts(study))
    pair, columns = study.robustness.pair, list(robustness.COLUMNS)
    models, sources, samplers = _robustness_calls(study)
    return (
        {model: get_shifts(study, model, columns=columns) for model in models},
        {n: get_shifts(study, pair, columns=columns, **call) for n, call in sources.items()},
        (
            {k: get_shifts(study, pair, columns=columns, **c) for k, c in samplers.items()},
            {
                k: {m: get_rollouts(study, m, **c) for m in (study.base, pair)}
                for k, c in samplers.items()
            },
        ),
    )
