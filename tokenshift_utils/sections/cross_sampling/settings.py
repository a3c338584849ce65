"""Section 2: which mixtures of two models a study asks for."""

from __future__ import annotations

from typing import NamedTuple

FORWARD, REVERSE = "forward", "reverse"


class Setting(NamedTuple):
    """One way of mixing two models.

    `level` is the rule's number: a threshold in nats, the number of positions of rule "first", or the
    rate of rule "random". `insert` says where switched tokens come from: "intervention", "own" (the null
    control: the primary, with other noise) or "extrapolated" with its `gain`. Only the first
    `budget` firings of a response switch (None: all).
    """

    model: str
    direction: str
    level: float
    rule: str = "js"
    insert: str = "intervention"
    gain: float | None = None
    budget: int | None = None


def roles(study, setting: Setting) -> tuple[str, str]:
    """(primary, intervention) of a setting."""
    if setting.direction == FORWARD:
        return study.base, setting.model
    return setting.model, study.base


def _both_ways(models) -> list[tuple[str, str]]:
    return [(model, direction) for model in models for direction in (FORWARD, REVERSE)]


def _with_full(thresholds) -> list[float]:
    """Thresholds of the JS rule by size, with a negative one, which switches every position."""
    return sorted(thresholds if min(thresholds, default=-1.0) < 0 else (-1.0, *thresholds))


def curve_settings(study) -> list[Setting]:
    """What is run on all benchmarks: the JS rule and random positions, pairs both ways.

    Every position switched, a negative threshold, is among them: it is what full replacement is.
    """
    cross = study.cross_sampling
    return [
        setting
        for way in _both_ways(cross.pairs)
        for setting in (
            *(Setting(*way, float(eps)) for eps in _with_full(cross.thresholds)),
            *(Setting(*way, rate, "random") for rate in sorted(cross.random_rates)),
        )
    ]


def seeded_pairs(study) -> dict[str, list[str]]:
    """Names of the runs from other training seeds that are mixed, by pair; only pairs with some."""
    pairs = study.cross_sampling.pairs if study.cross_sampling.seeds else ()
    return {model: names for model in pairs if (names := study.seed_names(model))}


def seed_settings(study) -> list[Setting]:
    """What is run of the pairs' models from other training seeds, on one benchmark: their curves."""
    return [
        setting._replace(model=name)
        for model, names in seeded_pairs(study).items()
        for name in names
        for setting in curve_settings(study)
        if setting.model == model
    ]


def rule_settings(study) -> list[Setting]:
    """The rules that are compared with JS on one benchmark, and the JS rule within budgets."""
    cross = study.cross_sampling
    ways = _both_ways(cross.rules.pairs or cross.pairs)
    rules = [
        Setting(*way, float(value), rule)
        for way in ways
        for rule, values in cross.rules.thresholds.items()
        for value in sorted(values)
    ]
    high = study.thresholds.high_js
    return rules + [Setting(*way, high, budget=b) for way in ways for b in sorted(cross.budgets)]


def intervention_settings(study) -> list[Setting]:
    """Other tokens at the positions of the JS rule on one benchmark.

    SFT controls both ways, the null control both ways, extrapolation forward.
    """
    cross = study.cross_sampling
    made = []
    if cross.controls:
        made += [
            Setting(*way, float(eps))
            for way in _both_ways(cross.controls.models)
            for eps in _with_full(cross.controls.thresholds)
        ]
    made += [
        Setting(*way, float(eps), insert="own")
        for way in _both_ways(cross.pairs)
        for eps in sorted(cross.null_thresholds)
    ]
    if cross.extrapolation:
        made += [
            Setting(model, FORWARD, float(eps), insert="extrapolated", gain=gain)
            for model in cross.pairs
            for gain in sorted(cross.extrapolation.gains)
            for eps in sorted(cross.extrapolation.thresholds)
        ]
    return made


def focus_settings(study) -> list[Setting]:
    """Everything that is run on one benchmark only."""
    return rule_settings(study) + intervention_settings(study)


def threshold_name(eps: float) -> str:
    """ "JS > 0.1"; a negative threshold switches everywhere."""
    return "every position switched" if eps < 0 else f"JS > {eps:g}"
