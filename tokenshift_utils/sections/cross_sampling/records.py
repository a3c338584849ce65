"""The requests of section 2: mixtures of every pair, their baselines, single tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain

import pandas as pd

from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch_each
from tokenshift_utils.records.requests import Request
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.single_token import SingleToken
from tokenshift_utils.records.tokens import is_natural_language, token_decoder
from tokenshift_utils.sections.cross_sampling import settings
from tokenshift_utils.sections.cross_sampling.decisions import token_kind
from tokenshift_utils.sections.cross_sampling.settings import (
    FORWARD,
    REVERSE,
    Setting,
    roles,
)
from tokenshift_utils.sections.divergence.token_classes import token_classes
from tokenshift_utils.store import executor


@dataclass(frozen=True)
class CrossRecords:
    """The records of section 2.

    Attributes
    ----------
    runs : by setting, the JS rule and random positions on all benchmarks.
    rules : by setting, every rule on one benchmark, JS and random positions included.
    interventions : by setting, other tokens at JS positions on that benchmark, RL's included.
    seeds : by setting, JS rule and random positions on that benchmark, of the pairs that are mixed from
        other training seeds too and of these runs (``dapo``, ``dapo@seed-2``); empty without any.
    rollouts : own responses by model, the samples that are mixed.
    single_token : effects of single tokens, both ways, with `class_base`, the class of base's token
        there; empty where the study asks for none.
    """

    runs: dict[Setting, pd.DataFrame]
    rules: dict[Setting, pd.DataFrame]
    interventions: dict[Setting, pd.DataFrame]
    seeds: dict[Setting, pd.DataFrame]
    rollouts: dict[str, pd.DataFrame]
    single_token: pd.DataFrame


def own_requests(study, model: str, benchmarks: str | None = None) -> list[Rollouts]:
    """A model's own responses of the samples that are mixed: same noise, same top-p."""
    samples = study.samples.cross_sampling
    return Rollouts.of(study, model, benchmarks, samples, own_sampling(study))


def own_sampling(study) -> dict | None:
    """What mixing's sampling differs in from the study's."""
    top_p = study.cross_sampling.top_p
    return None if top_p is None else {"top_p": top_p}


def rollout_requests(study) -> dict[str, list[Rollouts]]:
    """Own responses by model; controls and other seeds are needed on one benchmark only."""
    cross = study.cross_sampling
    made = {model: own_requests(study, model) for model in (study.base, *cross.pairs)}
    controls = cross.controls.models if cross.controls else ()
    for model in (*controls, *chain(*settings.seeded_pairs(study).values())):
        made.setdefault(model, own_requests(study, model, study.cross_benchmark))
    return made


def _samples(study, setting: Setting) -> int:
    """Mixed responses a problem: the JS rule of the study's pairs has more than what is beside it."""
    pair = setting.model.partition("@")[0]
    own = setting == Setting(*setting[:3]) and pair in study.cross_sampling.pairs
    return study.samples.cross_sampling if own else study.samples.of_cross_controls


def setting_requests(
    study,
    setting: Setting,
    benchmarks: str | None = None,
) -> list[CrossSampling]:
    """Requests for the mixed responses of a setting."""
    primary, intervention = roles(study, setting)
    return CrossSampling.of(
        study,
        primary,
        intervention,
        Rule(setting.rule, setting.level, setting.level, setting.budget),
        Insertion(setting.insert, setting.gain),
        benchmarks,
        _samples(study, setting),
    )


def cross_records(study) -> CrossRecords:
    """The records of section 2, computed where the store lacks them."""
    executor.run(study, requests(study))
    here, curves, focus = study.cross_benchmark, settings.curve_settings, settings.focus_settings
    runs = fetch_each(study, {s: setting_requests(study, s) for s in curves(study)})
    focus, others = (
        fetch_each(study, {s: setting_requests(study, s, here) for s in some(study)})
        for some in (focus, settings.seed_settings)
    )
    rules, interventions = on_focus(study, runs, focus)
    seeded = settings.seeded_pairs(study)
    first = {s: _here(study, frame) for s, frame in runs.items() if s.model in seeded}
    single = single_token_requests(study)
    return CrossRecords(
        runs,
        rules,
        interventions,
        first | others,
        fetch_each(study, rollout_requests(study)),
        # pair by pair, each in the order of its strata
        _with_classes(study, pd.concat(fetch_each(study, single).values(), ignore_index=True))
        if single
        else pd.DataFrame(),
    )


def _with_classes(study, effects: pd.DataFrame) -> pd.DataFrame:
    """Effects with `class_base`, of base's token: in its response where texts are natural language."""
    decode = cache(token_decoder(study))
    forward = effects["direction"] == FORWARD
    token = effects["token_primary"].where(forward, effects["token_intervention"])
    if not is_natural_language(study):
        return effects.assign(class_base=[token_kind(decode(t)) for t in token])
    samples, sampling = study.cross_sampling.single_token.samples, own_sampling(study)
    wanted = {
        model: Rollouts.of(study, model, study.cross_benchmark, samples, sampling)
        for model in effects["primary"].unique()
    }
    responses = {
        (model, *key): ids
        for model, frame in fetch_each(study, wanted).items()
        for *key, ids in frame[["problem", "sample", "response_ids"]].itertuples(index=False)
    }
    found = []
    where = effects[["primary", "problem", "sample", "position"]].itertuples(index=False)
    for (*key, position), new in zip(where, token):
        ids = [*responses[tuple(key)]]
        ids[position] = new
        found.append(token_classes([decode(int(i)) for i in ids])[position])
    return effects.assign(class_base=found)


def single_token_requests(study) -> dict[tuple[str, str], list[SingleToken]]:
    """Effects by (primary, intervention), pairs both ways; none where none are asked for."""
    cross = study.cross_sampling
    if cross.single_token is None:
        return {}
    ways = [
        roles(study, Setting(model, direction, 0.0))
        for model in cross.single_token.pairs or cross.pairs
        for direction in (FORWARD, REVERSE)
    ]
    return {way: SingleToken.of(study, *way) for way in ways}


def requests(study) -> list[Request]:
    """All that section 2 asks of the store."""
    wanted = [*rollout_requests(study).values(), *single_token_requests(study).values()]
    return [request for some in wanted for request in some] + mixture_requests(study)


def mixture_requests(study, model: str | None = None) -> list[CrossSampling]:
    """All mixtures, or those with one model.

    Who needs some of them asks for all that share their trees: what is asked for at once is read
    together, and so the records are the same whichever notebook runs first.
    """
    here = study.cross_benchmark
    curve = dict.fromkeys(settings.curve_settings(study))
    if (robust := study.robustness) and robust.pair in study.cross_sampling.pairs:
        curve |= {Setting(robust.pair, FORWARD, robust.mixed_threshold): None}
    focus = settings.focus_settings(study) + settings.seed_settings(study)
    wanted = [(s, None) for s in curve] + [(s, here) for s in focus]
    return [
        request
        for setting, benchmarks in wanted
        if model in (None, setting.model)
        for request in setting_requests(study, setting, benchmarks)
    ]


def on_focus(study, runs: dict, focus: dict) -> tuple[dict, dict]:
    """(rules, interventions) on the one benchmark, with what the JS and random runs have there."""
    here = {s: _here(study, frame) for s, frame in runs.items()}
    rule = {s: frame for s, frame in here.items() if s.rule == "js"}
    others = {s: focus[s] for s in settings.rule_settings(study)}
    pairs = study.cross_sampling.rules.pairs or study.cross_sampling.pairs
    beside = {s: frame for s, frame in here.items() if s.model in pairs}
    put_in = {s: focus[s] for s in settings.intervention_settings(study)}
    return beside | others, rule | put_in


def _here(study, frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["benchmark"] == study.cross_benchmark]
