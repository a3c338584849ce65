"""What section 2 needs of the records: everything that does not depend on a rate at once, then the
random controls, whose rates come from the runs that they are to match."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tokenshift_utils.records.cross_sampling import cross_sampling_artefacts, get_cross_sampling
from tokenshift_utils.records.rollouts import get_rollouts, rollout_artefacts
from tokenshift_utils.records.single_token import get_single_token, single_token_artefacts
from tokenshift_utils.sections.cross_sampling import rates as cross_sampling_rates
from tokenshift_utils.sections.cross_sampling import settings
from tokenshift_utils.sections.cross_sampling.rates import RateSearch
from tokenshift_utils.sections.cross_sampling.settings import (
    FORWARD,
    REVERSE,
    Setting,
    roles,
)
from tokenshift_utils.store import executor

__all__ = [
    "CrossRecords",
    "control_artefacts",
    "cross_artefacts",
    "cross_records",
]

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


def _own_sampling(study) -> dict[str, float] | None:
    """How the models of section 2 write by themselves: with the mixing's top-p."""
    top_p = study.cross_sampling.top_p
    return None if top_p is None else {"top_p": top_p}


def _rollout_calls(study) -> dict[str, dict]:
    """Arguments of `get_rollouts` by model; controls are needed on one benchmark only."""
    cross, own = study.cross_sampling, {"sampling": _own_sampling(study)}
    calls = {model: own for model in (study.base, *cross.pairs)}
    for model in cross.controls.models if cross.controls else ():
        calls.setdefault(model, own | {"benchmarks": [study.cross_benchmark]})
    return calls


def _samples(study, setting: Setting) -> int:
    """Mixed responses a problem: the JS rule of the study's pairs has more than what is beside it."""
    own = setting == Setting(*setting[:3]) and setting.model in study.cross_sampling.pairs
    return study.samples.cross_sampling if own else study.samples.of_cross_controls


def _call(study, setting: Setting, rate: float | None, **more) -> dict:
    """Arguments of `get_cross_sampling` for a setting."""
    primary, intervention = roles(study, setting)
    return {
        "study": study,
        "primary": primary,
        "intervention": intervention,
        "rule": setting.rule,
        "threshold": setting.threshold,
        "rate": rate,
        "budget": setting.budget,
        "insert": setting.insert,
        "gain": setting.gain,
        "samples": _samples(study, setting),
        **more,
    }


def _runs(study, rates: dict[Setting, float | None], **more) -> dict[Setting, pd.DataFrame]:
    """Runs of some settings, those of random rules at the given rates."""
    calls = {setting: _call(study, setting, rate, **more) for setting, rate in rates.items()}
    executor.run(study, [a for call in calls.values() for a in cross_sampling_artefacts(**call)])
    return {setting: get_cross_sampling(**call)[0] for setting, call in calls.items()}


def cross_records(study) -> CrossRecords:
    """The records of section 2, computed where the store lacks them.

    First everything but the random positions; then random positions that switch as often as the JS
    rule; then those that replace as many tokens effectively, at rates found by bisection.
    """
    rollout_calls, single = _rollout_calls(study), _single_token_pairs(study)
    executor.run(study, cross_artefacts(study))
    runs = _runs(study, dict.fromkeys(settings.curve_settings(study)))
    focus = _runs(study, dict.fromkeys(settings.focus_settings(study)), **_here(study))
    runs |= _random_runs(study, runs)
    rules, interventions = _on_focus(study, runs, focus)
    return CrossRecords(
        runs,
        rules,
        interventions,
        {model: get_rollouts(study, model, **call) for model, call in rollout_calls.items()},
        pd.concat([get_single_token(study, *pair) for pair in single], ignore_index=True)
        if single
        else pd.DataFrame(),
    )


def _single_token_pairs(study) -> list[tuple[str, str]]:
    """(primary, intervention) of every pair, both ways, where the study asks for effects."""
    if study.cross_sampling.single_token is None:
        return []
    return [
        roles(study, Setting(model, direction, 0.0))
        for model in study.cross_sampling.pairs
        for direction in (FORWARD, REVERSE)
    ]


def _here(study) -> dict[str, list[str]]:
    return {"benchmarks": [study.cross_benchmark]}


def cross_artefacts(study) -> list[executor.Artefact]:
    """What section 2 asks of the store first: everything but the random controls."""
    calls = _rollout_calls(study)
    wanted = [a for m, call in calls.items() for a in rollout_artefacts(study, m, **call)]
    for pair in _single_token_pairs(study):
        wanted += single_token_artefacts(study, *pair)
    calls = [_call(study, s, None) for s in settings.curve_settings(study)]
    calls += [_call(study, s, None, **_here(study)) for s in settings.focus_settings(study)]
    return wanted + [a for call in calls for a in cross_sampling_artefacts(**call)]


def control_artefacts(study) -> list[tuple[executor.Artefact, int]]:
    """Artefacts like those of the random controls, with how many there are at most.

    Their rates come from the runs that they match, so here they have another.
    """
    pilot = {"samples": 1}
    tries = [("switched", {}, 1), ("effective", pilot, PILOT_TRIES), ("effective", {}, FULL_TRIES)]
    return [
        (artefact, most)
        for match, call, most in tries
        for setting in settings.control_settings(study, match)
        for artefact in cross_sampling_artefacts(**_call(study, setting, 0.5) | call)
    ]


def _random_runs(study, runs: dict[Setting, pd.DataFrame]) -> dict[Setting, pd.DataFrame]:
    """Both random controls of the JS runs."""
    switched = settings.control_settings(study, "switched")
    rule = {s: runs[s._replace(rule="js", match="")] for s in switched}
    made = _runs(study, {s: cross_sampling_rates.switched_rate(rule[s]) for s in switched})
    searches = {
        s._replace(match="effective"): RateSearch(
            target=cross_sampling_rates.effective_share(rule[s]),
            rate=_guess(rule[s], s, runs, made),
            tolerance=max(PILOT_TOLERANCE, _noise(rule[s][rule[s]["sample"] == 0])),
            left=PILOT_TRIES,
        )
        for s in switched
    }
    searches = _search(study, searches, samples=1)
    searches = {
        s: found.again(max(FULL_TOLERANCE, _noise(rule[s._replace(match="switched")])), FULL_TRIES)
        for s, found in searches.items()
    }
    searches = _search(study, searches)
    return made | _runs(study, {s: found.rate for s, found in searches.items()})


def _guess(rule: pd.DataFrame, control: Setting, runs: dict, random: dict) -> float:
    """Where the search begins, from all random runs of the pair and direction."""
    rare = pd.concat([frame for s, frame in random.items() if s[:2] == control[:2]])
    all_of_it = [f for s, f in runs.items() if s[:2] == control[:2] and s.threshold < 0]
    return cross_sampling_rates.effective_rate(rule, rare, *all_of_it[:1])


def _noise(runs: pd.DataFrame) -> float:
    """Relative standard error between two counts like theirs: a search can't ask for less."""
    return float((2.0 / max(runs["n_effective"].sum(), 1)) ** 0.5)


def _search(study, searches: dict[Setting, RateSearch], **more) -> dict[Setting, RateSearch]:
    """All searches to their end, one try of each at a time, so that workers stay busy."""
    searches = dict(searches)
    while rates := {s: search.rate for s, search in searches.items() if not search.done}:
        for setting, tried in _runs(study, rates, **more).items():
            share = cross_sampling_rates.effective_share(tried)
            searches[setting] = searches[setting].told(share)
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
