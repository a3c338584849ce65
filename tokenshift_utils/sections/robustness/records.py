"""TODO."""

from __future__ import annotations

from tokenshift_utils.records.rollouts import get_rollouts, rollout_artefacts
from tokenshift_utils.records.shifts import Mixed, get_shifts, shift_artefacts
from tokenshift_utils.sections import common
from tokenshift_utils.sections.robustness import numbers as robustness
from tokenshift_utils.store import executor


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
