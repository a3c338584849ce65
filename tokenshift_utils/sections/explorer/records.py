"""What the explorer needs of the records: the first responses of every pair and benchmark."""

from __future__ import annotations

from tokenshift_utils.pairs.rules import RULE_KINDS
from tokenshift_utils.sections.cross_sampling.records import (
    mixture_requests,
    own_requests,
    setting_requests,
)
from tokenshift_utils.sections.cross_sampling.settings import (
    Setting,
    curve_settings,
    rule_settings,
)
from tokenshift_utils.sections.explorer.responses import ExplorerResponses
from tokenshift_utils.study.study import Study

SAMPLES = 2  # shown of each problem
RISING = ("first", "random")  # rules that switch more often the larger their number is


def problems_shown(study: Study) -> int:
    """How many problems of each benchmark are shown: the first ones."""
    return max(1, study.explorer.responses // (samples_shown(study) * len(study.benchmarks)))


def samples_shown(study: Study) -> int:
    """How many samples of each problem are shown: the first ones."""
    return min(SAMPLES, study.samples.cross_sampling)


def settings_shown(study: Study) -> list[Setting]:
    """Every rule that puts in the other model's token, few switches first."""
    curves, beside = curve_settings(study), study.cross_sampling.rules.pairs
    compared = [s for s in curves if not beside or s.model in beside] + rule_settings(study)
    found = [
        setting
        for setting in dict.fromkeys([*compared, *curves])
        if setting.budget is None
        and (study.explorer.rules is None or setting.rule in study.explorer.rules)
        and setting.model in study.cross_sampling.pairs
        and setting_requests(study, setting)[0].underlying(study) is not None
    ]
    order = list(RULE_KINDS)
    ways = list(dict.fromkeys(s[:2] for s in found))

    def place(setting: Setting) -> tuple:
        rising = setting.level if setting.rule in RISING else -setting.level
        return (ways.index(setting[:2]), order.index(setting.rule), rising)

    return sorted(found, key=place)


def requests(study: Study) -> dict[ExplorerResponses, list[Setting]]:
    """The responses shown, by pair and benchmark, with the settings of their mixtures.

    Mixtures under a rule that trees don't know are not shown.
    """
    settings, everywhere, asked = settings_shown(study), {*curve_settings(study)}, {}
    for model in study.cross_sampling.pairs:
        mixed = [r for r in mixture_requests(study, model) if r.underlying(study) is not None]
        for name in study.benchmarks:
            here = [
                setting
                for setting in settings
                if setting.model == model
                and (setting in everywhere or name == study.cross_benchmark)
            ]
            if here:
                request = ExplorerResponses(
                    study.base,
                    model,
                    name,
                    tuple(own_requests(study, m, name)[0] for m in (study.base, model)),
                    tuple(setting_requests(study, setting, name)[0] for setting in here),
                    tuple(request for request in mixed if request.benchmark == name),
                    problems_shown(study),
                    samples_shown(study),
                )
                asked[request] = here
    return asked
