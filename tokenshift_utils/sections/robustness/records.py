"""Records that section 5 asks for."""

from __future__ import annotations

import pandas as pd

from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.fetch import fetch_each
from tokenshift_utils.records.requests import Request
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Mixed, Shifts
from tokenshift_utils.sections.common import of_kind
from tokenshift_utils.sections.cross_sampling.records import mixture_requests
from tokenshift_utils.sections.robustness.numbers import COLUMNS, sampling_settings
from tokenshift_utils.store import executor


def model_requests(study) -> dict[str, list[Shifts]]:
    """Shifts of the RL models, the section's pair first, on their own responses."""
    models = dict.fromkeys([study.robustness.pair, *of_kind(study, "rl")])
    return {model: Shifts.of(study, model) for model in models}


def source_requests(study) -> dict[str, list[Shifts]]:
    """Shifts of the pair by whose trajectories they are on.

    Mixed trajectories are those of section 2, as many samples as that draws.
    """
    settings = study.robustness
    pair, rule = settings.pair, Rule("js", settings.mixed_threshold)
    few = min(study.samples.shifts, study.samples.cross_sampling)
    return {
        "its own": Shifts.of(study, pair),
        "base's": Shifts.of(study, pair, source=study.base),
        "mixed": Shifts.of(study, pair, source=Mixed(study.base, pair, rule), samples=few),
    }


def sampler_requests(study) -> dict[tuple, dict[str, list[Request]]]:
    """Requests by sampler, (top-p, temperature): "shifts", and responses by model."""
    settings = study.robustness
    made: dict[tuple, dict[str, list[Request]]] = {}
    for sampling in sampling_settings(study):
        here = {
            "benchmarks": settings.benchmark,
            "samples": settings.samples,
            "sampling": sampling,
        }
        own: dict[str, list[Request]] = {"shifts": Shifts.of(study, settings.pair, **here)}
        own |= {m: Rollouts.of(study, m, **here) for m in (study.base, settings.pair)}
        made[sampling["top_p"], sampling["temperature"]] = own
    return made


def requests(study) -> list[Request]:
    """All that section 5 asks of the store."""
    # Mixed trajectories are read off trees, which section 2 begins with all of these at once.
    mixed = mixture_requests(study, study.robustness.pair)
    grown = [request for request in mixed if request.behind(study) is not None]
    wanted = [*model_requests(study).values(), grown, *source_requests(study).values()]
    wanted += [some for own in sampler_requests(study).values() for some in own.values()]
    return [request for some in wanted for request in some]


def robustness_records(study) -> tuple[dict, dict, tuple[dict, dict]]:
    """(shifts by model, shifts by trajectories, (shifts, responses by model) by sampler)."""
    executor.run(study, requests(study))
    samplers = sampler_requests(study)
    shifts = {sampler: own.pop("shifts") for sampler, own in samplers.items()}
    rollouts = {(s, m): some for s, own in samplers.items() for m, some in own.items()}
    by_sampler: dict[tuple, dict[str, pd.DataFrame]] = {sampler: {} for sampler in samplers}
    for (sampler, model), frame in fetch_each(study, rollouts).items():
        by_sampler[sampler][model] = frame
    return (
        fetch_each(study, model_requests(study), columns=COLUMNS),
        fetch_each(study, source_requests(study), columns=COLUMNS),
        (fetch_each(study, shifts, columns=COLUMNS), by_sampler),
    )
