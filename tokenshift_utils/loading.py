"""What each notebook needs of the records, in one call, so that one pool computes what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import pandas as pd

from tokenshift_utils import analysis_common as common
from tokenshift_utils import analysis_cross as cross
from tokenshift_utils import analysis_divergence as divergence
from tokenshift_utils import analysis_mechanics as mechanics
from tokenshift_utils import analysis_objective as objective
from tokenshift_utils import analysis_robustness as robustness
from tokenshift_utils import executor
from tokenshift_utils.analysis_cross import Setting
from tokenshift_utils.cross_sampling import cross_sampling_artefacts, get_cross_sampling
from tokenshift_utils.rollouts import get_rollouts, rollout_artefacts
from tokenshift_utils.shifts import Mixed, get_shifts, shift_artefacts
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


def _shifts_of_models(study, columns) -> dict[str, pd.DataFrame]:
    """Shifts of every RL model and SFT control on its own responses."""
    models = common.of_kind(study, "rl", "sft")
    executor.run(study, [a for model in models for a in shift_artefacts(study, model)])
    return {model: get_shifts(study, model, columns=list(columns)) for model in models}


def divergence_shifts(study) -> dict[str, pd.DataFrame]:
    """Shifts of every RL model and SFT control on its own responses, for section 1."""
    return _shifts_of_models(study, divergence.COLUMNS)


def annotated_response(study) -> tuple[pd.DataFrame, str]:
    """(shifts, title) of one response: of the first RL model's first samples the one with the most
    high-JS positions, the first such in the order of the records."""
    model = common.of_kind(study, "rl")[0]
    key = ["benchmark", "problem", "sample"]
    shifts = get_shifts(study, model, columns=[*key, "js"])
    shifts = shifts[shifts["sample"] == 0]
    high = (shifts["js"] > study.thresholds.high_js).groupby([shifts[k] for k in key]).sum()
    benchmark, problem, sample = high.idxmax()
    rows = get_shifts(study, model, benchmarks=[benchmark])
    rows = rows[(rows["problem"] == problem) & (rows["sample"] == sample)]
    return rows, f"{study.models[model].label} on problem {problem}, sample {sample}."


def mechanics_shifts(study) -> tuple[dict[str, pd.DataFrame], dict[int, pd.DataFrame]]:
    """(shifts by model, shifts by training step) for section 3.

    The checkpoints are scored on the final model's responses; it stands one interval after the
    last checkpoint. Without an evolution section the second is empty.
    """
    if study.evolution is None:
        return _shifts_of_models(study, mechanics.COLUMNS), {}
    final, columns = study.evolution.model, list(mechanics.EVOLUTION_COLUMNS)
    few = min(study.samples.checkpoints, study.samples.shifts)
    scored = {"source": final, "samples": few}
    names = study.checkpoint_names(final)
    own = [final, *common.of_kind(study, "rl", "sft")]
    wanted = [a for model in own for a in shift_artefacts(study, model)]
    wanted += [a for name in names for a in shift_artefacts(study, name, **scored)]
    executor.run(study, wanted)
    steps = [checkpoint.step for checkpoint in study.model(final).checkpoints]
    frames = {
        step: get_shifts(study, name, columns=columns, **scored)
        for step, name in zip(steps, names, strict=True)
    }
    last = steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else steps[-1])
    finished = get_shifts(study, final, columns=columns)
    frames[last] = finished[finished["sample"] < few].reset_index(drop=True)
    return _shifts_of_models(study, mechanics.COLUMNS), frames


def _own_sampling(study) -> dict[str, float] | None:
    """How the models of section 2 write by themselves: with the mixing's top-p."""
    top_p = study.cross_sampling.top_p
    return None if top_p is None else {"top_p": top_p}


def cross_runs(study) -> tuple[dict[Setting, pd.DataFrame], dict[str, pd.DataFrame]]:
    """(runs by setting, own responses by model) for section 2.

    First the JS rule everywhere; then random positions at its switched shares; then random
    positions that replace as many tokens effectively. How often a random switch is effective
    depends on its rate, so the rate comes from a trial of one sample a problem.
    """
    own, models = _own_sampling(study), (study.base, *study.cross_sampling.pairs)
    wanted = [a for m in models for a in rollout_artefacts(study, m, sampling=own)]
    runs = _runs(study, dict.fromkeys(cross.curve_settings(study)), also=wanted)
    switched = cross.control_settings(study, "switched")
    rule = {s: runs[s._replace(rule="js", match="")] for s in switched}
    runs |= _runs(study, {s: cross.switched_rate(rule[s]) for s in switched})
    rates = {s: cross.effective_rate(rule[s], runs[s]) for s in switched}
    trial = _runs(study, rates, samples=1)
    rates = {
        s._replace(match="effective"): cross.effective_rate(rule[s], trial[s]) for s in switched
    }
    return runs | _runs(study, rates), {m: get_rollouts(study, m, sampling=own) for m in models}


def _runs(
    study,
    rates: dict[Setting, float | None],
    samples: int | None = None,
    also: Iterable = (),
) -> dict[Setting, pd.DataFrame]:
    """Runs of some settings, those of random rules at the given rates; `also` is computed too."""
    calls = {
        setting: {
            "primary": cross.roles(study, setting)[0],
            "intervention": cross.roles(study, setting)[1],
            "rule": setting.rule,
            "threshold": setting.threshold,
            "rate": rate,
            "samples": samples,
        }
        for setting, rate in rates.items()
    }
    wanted = [a for call in calls.values() for a in cross_sampling_artefacts(study, **call)]
    executor.run(study, [*also, *wanted])
    return {setting: get_cross_sampling(study, **call)[0] for setting, call in calls.items()}


def cross_examples(study, table: pd.DataFrame, count: int = 3) -> list[dict]:
    """Examples for `show_trajectories`: the first pair's forward mixture within the budget.

    The first problem of each benchmark, in the order of the records, where base is wrong and the
    mixture and RL are right, then further ones; where there are none, any with a switch.
    """
    model = study.cross_sampling.pairs[0]
    eps = cross.within_budget(table, model, cross.FORWARD)
    eps = max(study.cross_sampling.thresholds) if eps is None else eps
    runs, switches = get_cross_sampling(study, study.base, model, threshold=eps)
    rows = {
        "base": get_rollouts(study, study.base, sampling=_own_sampling(study)),
        "mixed": runs,
        "tuned": get_rollouts(study, model, sampling=_own_sampling(study)),
    }
    names = {
        "base": study.models[study.base].label,
        "mixed": f"mixed, JS > {eps:g}",
        "tuned": study.models[model].label,
    }
    return cross.pick_examples(rows, switches, names, count)


def objective_rollouts(study) -> dict[str, pd.DataFrame]:
    """Responses of the baseline and its weighted variants, for section 4."""
    models = objective.arms(study)
    executor.run(study, [a for model in models for a in rollout_artefacts(study, model)])
    return {model: get_rollouts(study, model) for model in models}


def robustness_records(study):
    """(shifts by model, shifts by trajectories, (shifts, rollouts) by sampler) for section 5.

    Mixed trajectories are those of section 2, as many samples as that draws.
    """
    settings, columns = study.robustness, list(robustness.COLUMNS)
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
    wanted = [a for model in models for a in shift_artefacts(study, model)]
    wanted += [a for call in sources.values() for a in shift_artefacts(study, pair, **call)]
    for call in samplers.values():
        wanted += shift_artefacts(study, pair, **call)
        wanted += [a for m in (study.base, pair) for a in rollout_artefacts(study, m, **call)]
    executor.run(study, wanted)
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
