"""What each notebook needs of the records, in one call, so that one pool computes what is missing."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd

from tokenshift_utils import analysis_common as common
from tokenshift_utils import analysis_cross as cross
from tokenshift_utils import analysis_divergence as divergence
from tokenshift_utils import analysis_mechanics as mechanics
from tokenshift_utils import analysis_objective as objective
from tokenshift_utils import analysis_robustness as robustness
from tokenshift_utils import get_cross_sampling, get_rollouts, get_shifts
from tokenshift_utils.analysis_cross import Setting
from tokenshift_utils.tokenizer_checks import load_tokenizer

__all__ = [
    "annotated_response",
    "cross_examples",
    "cross_runs",
    "divergence_shifts",
    "mechanics_shifts",
    "objective_rollouts",
    "robustness_records",
    "token_texts",
    "tokenizer",
]


@lru_cache(maxsize=4)
def tokenizer(study):
    """The tokenizer of the study's base, which all its models share."""
    return load_tokenizer(study.model_path(study.base))


def token_texts(study, shifts: dict[str, pd.DataFrame]) -> dict[int, str]:
    """Token id -> its text, of all tokens in some shifts, with line breaks made visible."""
    ids = {int(i) for frame in shifts.values() for i in frame["token"].unique()}
    return {i: tokenizer(study).decode([i]).replace("\n", "\\n") for i in sorted(ids)}


def divergence_shifts(study) -> dict[str, pd.DataFrame]:
    """Shifts of every RL model and SFT control on its own responses, for section 1."""
    columns = list(divergence.COLUMNS)
    models = common.of_kind(study, "rl", "sft")
    return {model: get_shifts(study, model, columns=columns) for model in models}


def annotated_response(study) -> tuple[pd.DataFrame, str]:
    """(shifts, title) of one response: of the first RL model's first samples the one with the most
    high-JS positions, the first such in the order of the records."""
    model = common.of_kind(study, "rl")[0]
    shifts = get_shifts(study, model, samples=1)
    key = ["benchmark", "problem", "sample"]
    high = (shifts["js"] > study.thresholds.high_js).groupby([shifts[k] for k in key]).sum()
    benchmark, problem, sample = high.idxmax()
    rows = shifts[(shifts[key] == [benchmark, problem, sample]).all(axis=1)]
    title = f"{study.models[model].label} on problem {problem}, sample {sample}."
    return rows, title


def mechanics_shifts(study) -> tuple[dict[str, pd.DataFrame], dict[int, pd.DataFrame]]:
    """(shifts by model, shifts by training step) for section 3.

    The checkpoints are scored on the final model's responses; it stands one interval after the
    last checkpoint. Without an evolution section the second is empty.
    """
    columns = list(mechanics.COLUMNS)
    models = common.of_kind(study, "rl", "sft")
    shifts = {model: get_shifts(study, model, columns=columns) for model in models}
    if study.evolution is None:
        return shifts, {}
    final, columns = study.evolution.model, list(mechanics.EVOLUTION_COLUMNS)
    names = [*study.checkpoint_names(final), final]
    steps = [checkpoint.step for checkpoint in study.model(final).checkpoints]
    steps.append(steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else steps[-1]))
    few = study.samples.checkpoints
    return shifts, {
        step: get_shifts(study, name, source=final, samples=few, columns=columns)
        for step, name in zip(steps, names, strict=True)
    }


def _own(study):
    """The study as its models write by themselves in section 2: with the mixing's top-p."""
    top_p = study.cross_sampling.top_p
    return study if top_p is None else study.with_overrides(**{"sampling.top_p": top_p})


def cross_runs(study) -> tuple[dict[Setting, pd.DataFrame], dict[str, pd.DataFrame]]:
    """(runs by setting, own responses by model) for section 2.

    First the JS rule everywhere; then random positions at its switched shares; then random
    positions at the rates that replace as many tokens effectively.
    """
    own = _own(study)
    rollouts = {
        model: get_rollouts(own, model) for model in (study.base, *study.cross_sampling.pairs)
    }
    runs = {setting: _run(study, setting, None) for setting in cross.curve_settings(study)}
    for setting in cross.control_settings(study, "switched"):
        rule = runs[setting._replace(rule="js", match="")]
        runs[setting] = _run(study, setting, cross.switched_rate(rule))
    for setting in cross.control_settings(study, "effective"):
        rule = runs[setting._replace(rule="js", match="")]
        rate = cross.effective_rate(rule, runs[setting._replace(match="switched")])
        runs[setting] = _run(study, setting, rate)
    return runs, rollouts


def _run(study, setting: Setting, rate: float | None) -> pd.DataFrame:
    primary, intervention = cross.roles(study, setting)
    return get_cross_sampling(
        study, primary, intervention, rule=setting.rule, threshold=setting.threshold, rate=rate
    )[0]


def cross_examples(study, table: pd.DataFrame, count: int = 3) -> list[dict]:
    """Examples for `show_trajectories`: the first pair's forward mixture within the budget.

    The first problem of each benchmark, in the order of the records, where base is wrong and the
    mixture and RL are right, then further ones; where there are none, any with a switch.
    """
    model = study.cross_sampling.pairs[0]
    eps = cross.within_budget(table, model, cross.FORWARD)
    eps = max(study.cross_sampling.thresholds) if eps is None else eps
    runs, switches = get_cross_sampling(study, study.base, model, threshold=eps)
    own = _own(study)
    return cross.pick_examples(
        {"base": get_rollouts(own, study.base), "mixed": runs, "tuned": get_rollouts(own, model)},
        switches,
        names={
            "base": study.models[study.base].label,
            "mixed": f"mixed, JS > {eps:g}",
            "tuned": study.models[model].label,
        },
        count=count,
    )


def objective_rollouts(study) -> dict[str, pd.DataFrame]:
    """Responses of the baseline and its weighted variants, for section 4."""
    return {model: get_rollouts(study, model) for model in objective.arms(study)}


def robustness_records(study):
    """(shifts by model, shifts by trajectories, (shifts, rollouts) by sampler) for section 5."""
    columns, settings = list(robustness.COLUMNS), study.robustness
    pair = settings.pair
    models = list(dict.fromkeys([pair, *common.of_kind(study, "rl")]))
    shifts = {model: get_shifts(study, model, columns=columns) for model in models}
    mixed = f"mixed:{settings.mixed_threshold:g}"
    sources = {"its own": shifts[pair]} | {
        name: get_shifts(study, pair, source=source, columns=columns)
        for name, source in (("base's", study.base), ("mixed", mixed))
    }
    by_sampler, responses = {}, {}
    for setting in robustness.sampling_settings(study):
        here = study.with_overrides(**{f"sampling.{key}": v for key, v in setting.items()})
        where = {"benchmarks": [settings.benchmark], "samples": settings.samples}
        key = (setting["top_p"], setting["temperature"])
        by_sampler[key] = get_shifts(here, pair, columns=columns, **where)
        responses[key] = {m: get_rollouts(here, m, **where) for m in (study.base, pair)}
    return shifts, sources, (by_sampler, responses)
