"""Records that section 5 asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.fetch import fetch_each
from tokenshift_utils.records.requests import Request, study_sampling
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Mixed, Shifts
from tokenshift_utils.sections.common import of_kind
from tokenshift_utils.sections.cross_sampling.records import mixture_requests
from tokenshift_utils.sections.robustness.numbers import (
    COLUMNS,
    PLACES,
    READ,
    SUPPORT,
    sampling_settings,
    with_forms,
)
from tokenshift_utils.store import executor
from tokenshift_utils.study.schema import CONTROLS


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


def top_p_requests(study) -> dict[float, list[Shifts]]:
    """The same responses of the pair measured at several top-p, on one benchmark.

    The responses are drawn as the study draws them; the nuclei compared are those of each top-p. At 1
    JS is that of the full distributions, which every record has.
    """
    settings, own = study.robustness, study.sampling.top_p
    here = Shifts.of(study, settings.pair, benchmarks=settings.benchmark, samples=settings.samples)
    moved = {p: study_sampling(study, {"top_p": p}) for p in settings.top_p if p not in (own, 1)}
    return {own: here} | {p: [replace(r, sampling=s) for r in here] for p, s in moved.items()}


def answer_requests(study) -> dict[str, list[Rollouts]]:
    """Responses of base, the RL models and the controls; of the first two those for pass@k."""
    most = study.samples.pass_at_k
    wanted = {m: Rollouts.of(study, m, samples=most) for m in (study.base, *of_kind(study, "rl"))}
    return wanted | {m: Rollouts.of(study, m) for m in of_kind(study, *CONTROLS)}


def requests(study) -> list[Request]:
    """All that section 5 asks of the store."""
    # Mixed trajectories are read off trees, which section 2 begins with all of these at once.
    mixed = mixture_requests(study, study.robustness.pair)
    wanted = [make(study) for make in (model_requests, top_p_requests, answer_requests)]
    wanted += [{"mixed": [request for request in mixed if request.underlying(study) is not None]}]
    wanted += [source_requests(study), *sampler_requests(study).values()]
    return [request for made in wanted for some in made.values() for request in some]


class Records(NamedTuple):
    """What section 5 reads: shifts by model, by top-p on the same responses, by trajectories; judged
    responses by model; shifts and responses by sampler, (top-p, temperature)."""

    models: dict[str, pd.DataFrame]
    top_p: dict[float, pd.DataFrame]
    answers: dict[str, pd.DataFrame]
    sources: dict[str, pd.DataFrame]
    samplers: tuple[dict[tuple, pd.DataFrame], dict[tuple, dict[str, pd.DataFrame]]]


def robustness_records(study) -> Records:
    """All records of section 5, computed where they lack."""
    executor.run(study, requests(study))
    samplers = sampler_requests(study)
    shifts = {sampler: own.pop("shifts") for sampler, own in samplers.items()}
    rollouts = {(s, m): some for s, own in samplers.items() for m, some in own.items()}
    by_sampler: dict[tuple, dict[str, pd.DataFrame]] = {sampler: {} for sampler in samplers}
    for (sampler, model), frame in fetch_each(study, rollouts, columns=READ).items():
        by_sampler[sampler][model] = frame
    texts = [*READ, "finish_reason", "text", "answer"]
    answers = fetch_each(study, answer_requests(study), columns=texts)
    return Records(
        fetch_each(study, model_requests(study), columns=[*COLUMNS, *SUPPORT]),
        fetch_each(study, top_p_requests(study), columns=[*COLUMNS, *SUPPORT, *PLACES]),
        {model: with_forms(study, frame) for model, frame in answers.items()},
        fetch_each(study, source_requests(study), columns=COLUMNS),
        (fetch_each(study, shifts, columns=COLUMNS), by_sampler),
    )
