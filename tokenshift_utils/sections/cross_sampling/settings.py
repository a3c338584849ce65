"""Section 2: which mixtures of two models a study asks for, and the rates of its random controls."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "FORWARD",
    "REVERSE",
    "Setting",
    "control_settings",
    "curve_settings",
    "focus_settings",
    "intervention_settings",
    "roles",
    "rule_settings",
]

FORWARD, REVERSE = "forward", "reverse"


class Setting(NamedTuple):
    """One way of mixing two models.

    `threshold` is the rule's: nats, or the number of positions of rule "first"; for random
    positions the JS threshold whose rate they match, with `match` "switched" or "effective" saying
    which rate. `insert` says where switched tokens come from: "intervention", "own" (the null
    control: the primary, with other noise) or "extrapolated" with its `gain`. Only the first
    `budget` firings of a response switch (None: all).
    """

    model: str
    direction: str
    threshold: float
    rule: str = "js"
    match: str = ""
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


def curve_settings(study) -> list[Setting]:
    """All JS settings of the study: its pairs, both directions, all thresholds."""
    return [
        Setting(*way, float(eps))
        for way in _both_ways(study.cross_sampling.pairs)
        for eps in sorted(study.cross_sampling.thresholds)
    ]


def control_settings(study, match: str) -> list[Setting]:
    """The random-position controls of one matching."""
    return [
        Setting(*way, float(eps), "random", match)
        for way in _both_ways(study.cross_sampling.pairs)
        for eps in sorted(study.cross_sampling.random_control_thresholds)
    ]


def rule_settings(study) -> list[Setting]:
    """The rules that are compared with JS on one benchmark, and the JS rule within budgets."""
    cross = study.cross_sampling
    ways = _both_ways(cross.rules.pairs or cross.pairs)
    rules = [
        Setting(*way, float(value), rule)
        for way in ways
        for rule, values in cross.rules
        if rule != "pairs"
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
            for eps in sorted(cross.controls.thresholds)
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


# Rates of the random controls -------------------------------------------------------------------


def threshold_name(eps: float) -> str:
    """ "JS > 0.1"; a negative threshold switches everywhere."""
    return "every position switched" if eps < 0 else f"JS > {eps:g}"
