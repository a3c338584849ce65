"""What section 2 needs of the records: everything that does not depend on a rate at once, then the
random controls, whose rates come from the runs that they are to match."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch_each
from tokenshift_utils.records.requests import Request
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.single_token import SingleToken
from tokenshift_utils.sections.cross_sampling import settings
from tokenshift_utils.sections.cross_sampling.rates import (
    RateSearch,
    effective_rate,
    effective_share,
    switched_rate,
)
from tokenshift_utils.sections.cross_sampling.settings import (
    FORWARD,
    REVERSE,
    Setting,
    roles,
)
from tokenshift_utils.store import executor

# A pilot of one sample a problem ends the search for a rate at this distance from the target
# (relative), at the noise of counting it there, or after so many tries; on all samples matched is
# matched, and a try costs more.
PILOT_TOLERANCE, PILOT_TRIES = 0.03, 6
FULL_TOLERANCE, FULL_TRIES = 0.1, 3


@dataclass(frozen=True)
class CrossRecords:
    """The records of section 2.

    Attributes
    ----------
    runs : by setting, the JS rule and its random controls on all benchmarks.
    rules : by setting, every rule on one benchmark, JS and random positions included.
    interventions : by setting, other tokens at JS positions on that benchmark, RL's included.
    rollouts : own responses by model.
    single_token : effects of single tokens, both ways, of all pairs; empty where the study asks
        for none.
    """

    runs: dict[Setting, pd.DataFrame]
    rules: dict[Setting, pd.DataFrame]
    interventions: dict[Setting, pd.DataFrame]
    rollouts: dict[str, pd.DataFrame]
    single_token: pd.DataFrame


def own_requests(study, model: str, benchmarks: str | None = None) -> list[Rollouts]:
    """A model's own responses, with the mixing's top-p."""
    top_p = study.cross_sampling.top_p
    sampling = None if top_p is None else {"top_p": top_p}
    return Rollouts.of(study, model, benchmarks, sampling=sampling)


def rollout_requests(study) -> dict[str, list[Rollouts]]:
    """Own responses by model; controls are needed on one benchmark only."""
    cross = study.cross_sampling
    made = {model: own_requests(study, model) for model in (study.base, *cross.pairs)}
    for model in cross.controls.models if cross.controls else ():
        made.setdefault(model, own_requests(study, model, study.cross_benchmark))
    return made


def _samples(study, setting: Setting) -> int:
    """Mixed responses a problem: the JS rule of the study's pairs has more than what is beside it."""
    own = setting == Setting(*setting[:3]) and setting.model in study.cross_sampling.pairs
    return study.samples.cross_sampling if own else study.samples.of_cross_controls


def setting_requests(
    study,
    setting: Setting,
    rate: float | None = None,
    benchmarks: str | None = None,
    samples: int | None = None,
) -> list[CrossSampling]:
    """Requests for the mixed responses of a setting, of a random rule at the given rate."""
    primary, intervention = roles(study, setting)
    return CrossSampling.of(
        study,
        primary,
        intervention,
        Rule(setting.rule, setting.threshold, rate, setting.budget),
        Insertion(setting.insert, setting.gain),
        benchmarks,
        _samples(study, setting) if samples is None else samples,
    )


def _runs(study, rates: dict[Setting, float | None], **more) -> dict[Setting, pd.DataFrame]:
    """Runs of some settings, those of random rules at the given rates."""
    return fetch_each(study, {s: setting_requests(study, s, r, **more) for s, r in rates.items()})


def cross_records(study) -> CrossRecords:
    """The records of section 2, computed where the store lacks them.

    First everything but the random positions; then random positions that switch as often as the JS
    rule; then those that replace as many tokens effectively, at rates found by bisection.
    """
    executor.run(study, requests(study))
    runs = _runs(study, dict.fromkeys(settings.curve_settings(study)))
    focus = dict.fromkeys(settings.focus_settings(study))
    focus = _runs(study, focus, benchmarks=study.cross_benchmark)
    runs |= _random_runs(study, runs)
    rules, interventions = _on_focus(study, runs, focus)
    single = single_token_requests(study)
    return CrossRecords(
        runs,
        rules,
        interventions,
        fetch_each(study, rollout_requests(study)),
        # pair by pair, each in the order of its strata
        pd.concat(fetch_each(study, single).values(), ignore_index=True)
        if single
        else pd.DataFrame(),
    )


def single_token_requests(study) -> dict[tuple[str, str], list[SingleToken]]:
    """Effects by (primary, intervention), both ways of every pair; none where none are asked for."""
    if study.cross_sampling.single_token is None:
        return {}
    ways = [
        roles(study, Setting(model, direction, 0.0))
        for model in study.cross_sampling.pairs
        for direction in (FORWARD, REVERSE)
    ]
    return {way: SingleToken.of(study, *way) for way in ways}


def requests(study) -> list[Request]:
    """All that section 2 asks of the store but the random controls."""
    wanted = [*rollout_requests(study).values(), *single_token_requests(study).values()]
    return [request for some in wanted for request in some] + mixture_requests(study)


def mixture_requests(study, model: str | None = None) -> list[CrossSampling]:
    """All mixtures whose rules have numbers of their own, or those with one model.

    Who needs some of them asks for all that share their trees: what is asked for at once is read
    together, and so the records are the same whichever notebook runs first.
    """
    here = study.cross_benchmark
    curve = dict.fromkeys(settings.curve_settings(study))
    if (robust := study.robustness) and robust.pair in study.cross_sampling.pairs:
        curve |= {Setting(robust.pair, FORWARD, robust.mixed_threshold): None}
    wanted = [(s, None) for s in curve] + [(s, here) for s in settings.focus_settings(study)]
    return [
        request
        for setting, benchmarks in wanted
        if model in (None, setting.model)
        for request in setting_requests(study, setting, benchmarks=benchmarks)
    ]


def control_requests(study) -> list[tuple[CrossSampling, int]]:
    """Requests like those of the random controls, with how many there are at most.

    Their rates come from the runs that they match, so here they have another.
    """
    tries = [("switched", None, 1), ("effective", 1, PILOT_TRIES), ("effective", None, FULL_TRIES)]
    return [
        (request, most)
        for match, samples, most in tries
        for setting in settings.control_settings(study, match)
        for request in setting_requests(study, setting, 0.5, samples=samples)
    ]


def _random_runs(study, runs: dict[Setting, pd.DataFrame]) -> dict[Setting, pd.DataFrame]:
    """Both random controls of the JS runs."""
    switched = settings.control_settings(study, "switched")
    rule = {s: runs[s._replace(rule="js", match="")] for s in switched}
    made = _runs(study, {s: switched_rate(rule[s]) for s in switched})
    searches = {
        s._replace(match="effective"): RateSearch(
            target=effective_share(rule[s]),
            rate=_guess(rule[s], s, runs, made),
            tolerance=max(PILOT_TOLERANCE, _noise(rule[s][rule[s]["sample"] == 0])),
            left=PILOT_TRIES,
        )
        for s in switched
    }
    searches = _search(study, searches, samples=1)
    searches = {
        s: found.restart(
            max(FULL_TOLERANCE, _noise(rule[s._replace(match="switched")])), FULL_TRIES
        )
        for s, found in searches.items()
    }
    searches = _search(study, searches)
    return made | _runs(study, {s: found.rate for s, found in searches.items()})


def _guess(rule: pd.DataFrame, control: Setting, runs: dict, random: dict) -> float:
    """Where the search begins, from all random runs of the pair and direction."""
    rare = pd.concat([frame for s, frame in random.items() if s[:2] == control[:2]])
    all_of_it = [f for s, f in runs.items() if s[:2] == control[:2] and s.threshold < 0]
    return effective_rate(rule, rare, *all_of_it[:1])


def _noise(runs: pd.DataFrame) -> float:
    """Relative standard error between two counts like theirs: a search can't ask for less."""
    return float((2.0 / max(runs["n_effective"].sum(), 1)) ** 0.5)


def _search(study, searches: dict[Setting, RateSearch], **more) -> dict[Setting, RateSearch]:
    """All searches to their end, one try of each at a time, so that workers stay busy."""
    searches = dict(searches)
    while rates := {s: search.rate for s, search in searches.items() if not search.done}:
        for setting, tried in _runs(study, rates, **more).items():
            share = effective_share(tried)
            searches[setting] = searches[setting].update(share)
    return searches


def _on_focus(study, runs: dict, focus: dict) -> tuple[dict, dict]:
    """(rules, interventions) on the one benchmark, with what the JS and random runs have there."""
    here = {s: frame[frame["benchmark"] == study.cross_benchmark] for s, frame in runs.items()}
    rule = {s: frame for s, frame in here.items() if s.rule == "js"}
    random = {s: frame for s, frame in here.items() if s.match == "effective"}
    others = {s: focus[s] for s in settings.rule_settings(study)}
    pairs = study.cross_sampling.rules.pairs or study.cross_sampling.pairs
    beside = {s: frame for s, frame in (rule | random).items() if s.model in pairs}
    put_in = {s: focus[s] for s in settings.intervention_settings(study)}
    return beside | others, rule | put_in


# Switches and examples --------------------------------------------------------------------------
