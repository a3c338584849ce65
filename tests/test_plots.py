"""Figures: drawn without warnings on ordinary and on degenerate frames, labelled, reproducible."""

import warnings

import made_up
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tokenshift_utils.report import style
from tokenshift_utils.sections.cross_sampling import numbers as cross
from tokenshift_utils.sections.cross_sampling import plots as draw_cross
from tokenshift_utils.sections.cross_sampling import records as loading_cross
from tokenshift_utils.sections.cross_sampling import rules, settings, summary
from tokenshift_utils.sections.cross_sampling import single_token as single
from tokenshift_utils.sections.divergence import numbers as divergence
from tokenshift_utils.sections.divergence import plots as draw_divergence
from tokenshift_utils.sections.mechanics import numbers as mechanics
from tokenshift_utils.sections.mechanics import plots as draw_mechanics
from tokenshift_utils.sections.robustness import numbers as robustness
from tokenshift_utils.sections.robustness import plots as draw_robustness

STUDY = made_up.study()
SMALL = made_up.study(**{"statistics.resamples": 20})


def shifts(case):
    if case == "ordinary":
        return {
            "dapo": made_up.shifts(0),
            "simplerl": made_up.shifts(1),
            "sft-far": made_up.shifts(2, 0.5),
        }
    if case == "one benchmark, no controls":
        return {"dapo": made_up.shifts(0, benchmarks=("hard",))}
    if case == "no high JS":
        return {"dapo": made_up.shifts(0, share_high=0, problems=2, samples=1)}
    flat = made_up.shifts(0, problems=1, samples=1)
    return {"dapo": flat.assign(js=0.0, js_full=0.0, entropy_base=0.0, tv_full=0.0)}


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    plt.close("all")


CASES = ("ordinary", "one benchmark, no controls", "no high JS", "all zero")


def figures_of_shifts(study, data):
    table = divergence.sparsity_table(study, data)
    axes = ("relative", "start", "answer")
    profiles = {axis: divergence.position_profile(study, data, axis) for axis in axes}
    tokens = divergence.identity_table(study, data, made_up.TEXTS)
    classes = divergence.class_table(study, data)
    found, _ = divergence.section_evidence(study, data)
    floor = data["dapo"].assign(js=1e-5)
    flat = {model: mechanics.flat(frame) for model, frame in data.items()}
    overlap = mechanics.overlap_table(study, flat)
    rank, mass = mechanics.rank_table(study, flat), mechanics.mass_table(study, flat)
    support = robustness.support_table(study, data)
    sources = robustness.source_table(study, "dapo", {"own": data["dapo"], "base": data["dapo"]})
    frames = {s: data["dapo"].assign(js=data["dapo"]["js"] * s / 3) for s in (1, 2, 3)}
    evolution = mechanics.evolution_table(study, frames)
    right = {
        "benchmark": ["easy"] * 2,
        "problem": ["a", "b"],
        "sample": 0,
        "correct": [True, False],
    }
    answers = dict.fromkeys(data, pd.DataFrame(right))
    said = [
        divergence.say_sparsity(study, table),
        divergence.say_controls(study, divergence.controls_table(study, table, answers)),
        divergence.say_position(study, found),
        divergence.say_entropy(study, found),
        divergence.say_js_entropy(study, data),
        divergence.say_identity(study, found),
        mechanics.say_overlap(study, overlap),
        mechanics.say_rank(study, rank),
        mechanics.say_mass(study, mass),
        mechanics.say_evolution(study, evolution),
        robustness.say_support(study, support),
        robustness.say_sources(sources),
    ]
    mechanics.section_evidence(study, flat, frames)
    yield said
    yield draw_divergence.plot_js_distribution(study, data, floor)
    yield draw_divergence.plot_positions(study, data, profiles)
    yield draw_divergence.plot_entropy_bins(study, data)
    yield draw_divergence.plot_js_entropy(study, data)
    yield draw_divergence.plot_identity(study, tokens, classes)
    yield draw_mechanics.plot_overlap(study, overlap)
    yield draw_mechanics.plot_rank(study, rank, flat)
    yield draw_mechanics.plot_mass(study, mass)
    yield draw_mechanics.plot_evolution(study, evolution, "dapo")
    yield draw_robustness.plot_support(study, data)
    samplers = {(0.7, 1.0): data["dapo"], (1.0, 1.0): data["dapo"]}
    sampler = robustness.sampling_table(study, samplers, {key: {} for key in samplers})
    yield draw_robustness.plot_measured(study, sources, sampler, "dapo")


def save(fig, directory):
    assert any(ax.get_xlabel() for ax in fig.axes) or fig.get_suptitle()
    assert fig.get_size_inches()[0] <= 8  # half size on a page still leaves letters of 5 points
    small = [t for t in fig.findobj(plt.Text) if t.get_text() and t.get_fontsize() < 8]
    assert not small, small
    fig.set_dpi(40)
    fig.savefig(directory / "figure.png", dpi=40)
    ticks = [
        t for axes in fig.axes for axis in (axes.xaxis, axes.yaxis) for t in axis.get_major_ticks()
    ]
    labels = [label for t in ticks for label in (t.label1, t.label2) if label.get_visible()]
    assert all(label.get_parse_math() for label in labels if "mathdefault" in label.get_text())
    plt.close(fig)


@pytest.mark.parametrize("case", CASES)
def test_figures_of_shifts_are_drawn_without_warnings(case, tmp_path):
    style.use_style()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = figures_of_shifts(SMALL, shifts(case))
        said = next(made)
        for fig in made:
            save(fig, tmp_path)
    assert all("nan" not in text and text for text in said if text), said


def cross_case(base, rl, benchmarks):
    """(rollouts, JS runs and controls on all benchmarks, all other settings on the last one)."""
    rollouts = {
        "base": made_up.rollouts(base, 0, benchmarks=benchmarks),
        "dapo": made_up.rollouts(rl, 1, benchmarks=benchmarks),
        "simplerl": made_up.rollouts(rl, 2, benchmarks=benchmarks),
        "sft-far": made_up.rollouts(base, 3, benchmarks=benchmarks[-1:]),
    }
    share = 0.0 if base == rl else 0.02

    def made(some, where):
        return {
            s: made_up.runs((base + rl) / 2, share * (1 + i % 3), i, benchmarks=where)
            for i, s in enumerate(some)
        }

    runs = made(settings.curve_settings(SMALL), benchmarks)
    return rollouts, runs, made(settings.focus_settings(SMALL), benchmarks[-1:])


@pytest.mark.parametrize("base, rl, benchmarks", [
    (0.2, 0.8, ("easy", "hard")),
    (0.0, 0.0, ("hard",)),
    (1.0, 1.0, ("easy",)),
])  # fmt: skip
def test_figures_of_cross_sampling(base, rl, benchmarks, tmp_path):
    style.use_style()
    study = SMALL.with_overrides(**{"cross_sampling.benchmark": benchmarks[-1]})
    rollouts, runs, focus = cross_case(base, rl, benchmarks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = drawn_and_said(study, rollouts, runs, focus, tmp_path)
    assert all(text and "nan" not in text for text in said), said


def drawn_and_said(study, rollouts, runs, focus, tmp_path) -> list[str]:
    """All figures of section 2 saved but those of single tokens, and all its sentences."""
    table = cross.curve_table(cross.MixtureEstimates(study, runs, rollouts))
    reach = summary.summary_table(cross.MixtureEstimates(study, runs, rollouts), focus)
    oracle = summary.oracle_table(cross.MixtureEstimates(study, runs, rollouts), focus)
    matched = summary.matched_table(cross.MixtureEstimates(study, runs, rollouts))
    found = cross.cross_evidence(
        cross.MixtureEstimates(study, runs, rollouts), table, reach, matched
    )
    assert set(found["subject"]) == set(study.cross_sampling.pairs)
    save(draw_cross.plot_curves(study, table, oracle), tmp_path)
    save(draw_cross.plot_matched(study, matched), tmp_path)
    rule_runs, token_runs = loading_cross.on_focus(study, runs, focus)
    ahead = rules.rule_summary(cross.MixtureEstimates(study, rule_runs, rollouts))
    save(draw_cross.plot_rules(study, ahead), tmp_path)
    tokens = rules.intervention_table(cross.MixtureEstimates(study, token_runs, rollouts))
    save(draw_cross.plot_interventions(study, tokens), tmp_path)
    return [
        cross.say_budget(cross.budget_table(study, table)),
        summary.say_summary(reach),
        summary.say_matched(matched),
        rules.say_rules(ahead),
        rules.say_interventions(study, tokens),
    ]


@pytest.mark.parametrize("base, rl", [(0.2, 0.8), (0.5, 0.5)])
def test_figure_of_training_seeds(base, rl, tmp_path):
    style.use_style()
    seeds = {"seeds": [{"seed": n, "path": f"nowhere-{n}"} for n in (2, 3)]}
    changes = {f"models.{m}.{k}": v for m in ("dapo", "simplerl") for k, v in seeds.items()}
    study = SMALL.with_overrides(**changes, **{"cross_sampling.seeds": True})
    rollouts, runs, _ = cross_case(base, rl, ("hard",))
    for i, setting in enumerate(settings.seed_settings(study)):
        runs[setting] = made_up.runs((base + rl) / 2, 0.02 * (1 + i % 3), i, benchmarks=("hard",))
        rollouts[setting.model] = rollouts[setting.model.partition("@")[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves, _, found = summary.over_seeds(cross.MixtureEstimates(study, runs, rollouts))
        save(draw_cross.plot_seeds(study, curves), tmp_path)
    said = summary.say_seeds(study, found)
    assert len(said.splitlines()) == 2 and "nan" not in said


@pytest.mark.parametrize("records", [made_up.single_token(), pd.DataFrame()])
def test_figures_of_single_tokens(records, tmp_path):
    style.use_style()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = single.with_features(SMALL, records, lambda token: made_up.TEXTS.get(token, "?"))
        effects, ranking = (f(SMALL, found) for f in (single.effect_table, single.ranking_table))
        foretold = single.model_table(SMALL, found)
        decisions = single.decision_table(SMALL, found)
        save(draw_cross.plot_effects(SMALL, effects), tmp_path)
        save(draw_cross.plot_critical(SMALL, ranking, foretold), tmp_path)
        said = [single.say_effects(effects), single.say_critical(ranking, foretold, decisions)]
    assert all("nan" not in text for text in said), said


def test_cross_sampling_without_controls_and_other_rules(tmp_path):
    style.use_style()
    bare = {"random_rates": [], "rules": {}, "budgets": [], "controls": None}
    bare |= {"null_thresholds": [], "extrapolation": None}
    study = SMALL.with_overrides(**{f"cross_sampling.{key}": v for key, v in bare.items()})
    rollouts, runs, _ = cross_case(0.2, 0.8, ("easy", "hard"))
    runs = {s: frame for s, frame in runs.items() if s.rule == "js"}
    said = drawn_and_said(study, rollouts, runs, {}, tmp_path)
    assert "There are no random positions to compare with, or no gap." in said


def test_saved_figures_are_the_same_bytes_twice(tmp_path):
    style.use_style()
    written = []
    for directory in (tmp_path / "a", tmp_path / "b"):
        table = mechanics.mass_table(SMALL, {"dapo": mechanics.flat(made_up.shifts(0))})
        paths = style.save_figure(draw_mechanics.plot_mass(SMALL, table), directory, "03_mass")
        assert [p.name for p in paths] == ["03_mass.png", "03_mass.pdf"]
        written.append([p.read_bytes() for p in paths])
    assert written[0] == written[1]


def test_a_model_has_one_colour_and_all_differ():
    colours = [style.color(STUDY, model) for model in STUDY.models]
    assert len(set(colours)) == len(colours)
    assert style.color(STUDY, "dapo@3") == style.color(STUDY, "dapo") == "#0072B2"
    named = STUDY.with_overrides(**{"models.dapo.color": "#112233"})
    assert style.color(named, "dapo") == "#112233"


def test_models_without_a_usual_colour_get_spare_ones():
    content = STUDY.model_dump()
    content["models"] |= {
        name: content["models"]["simplerl"] | {"path": name, "label": name}
        for name in ("tulu", "other")
    }
    study = type(STUDY).model_validate(content)
    assert style.color(study, "tulu") != style.color(study, "other")


def test_bands_do_not_hide_behind_missing_intervals(tmp_path):
    style.use_style()
    data = {"dapo": mechanics.flat(made_up.shifts(0, problems=1, benchmarks=("easy",)))}
    table = mechanics.mass_table(SMALL, data)
    assert np.isnan(table["mass_moved_low"]).all()
    save(draw_mechanics.plot_mass(SMALL, table), tmp_path)


def test_a_table_without_rows_beside_others_leaves_numbers():
    """As of a study none of whose responses reaches its answer: seaborn refuses objects as places."""
    found = pd.DataFrame({"x": [0.5], "mean": [0.1], "mean_low": [0.0], "mean_high": [0.2]})
    none = pd.DataFrame({name: [] for name in found}, dtype=object)
    rows = style.as_interval(pd.concat([none, found]), "mean")
    assert rows["x"].dtype == float and rows["value"].tolist() == pytest.approx([10.0])
