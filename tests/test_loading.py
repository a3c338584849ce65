"""What the notebooks load, on the random pair: complete, computed once."""

import pandas as pd
import pytest
from conftest import write_benchmark, write_model

from tokenshift_utils.run.plan import count_work
from tokenshift_utils.sections.cross_sampling import examples, settings, summary
from tokenshift_utils.sections.cross_sampling import numbers as cross
from tokenshift_utils.sections.cross_sampling import records as cross_records
from tokenshift_utils.sections.cross_sampling.settings import Setting
from tokenshift_utils.sections.divergence import numbers as divergence
from tokenshift_utils.sections.divergence import records as divergence_records
from tokenshift_utils.sections.divergence.token_classes import CLASSES
from tokenshift_utils.sections.explorer import records as explorer_records
from tokenshift_utils.sections.mechanics import records as mechanics_records
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import load_study


@pytest.fixture
def study(mini_root):
    return load_study("mini")


def test_sections_without_models_or_checkpoints_load_what_there_is(study):
    shifts, runs, texts = divergence_records.classed_shifts(study)
    assert list(shifts) == ["tuned"] and runs == {}
    assert list(shifts["tuned"]) == [*divergence.COLUMNS, "token_class"]
    assert set(shifts["tuned"]["token"]) == set(texts)
    same, checkpoints, runs = mechanics_records.mechanics_shifts(study)
    assert len(same["tuned"]) == len(shifts["tuned"]) and checkpoints == runs == {}


def test_runs_from_other_seeds_are_measured_on_their_own_few_responses(study):
    other = [{"seed": 2, "path": study.models["tuned"].path}]
    seeded = study.with_overrides(**{"models.tuned.seeds": other})
    _, runs, _ = divergence_records.classed_shifts(seeded)
    few = min(study.samples.checkpoints, study.samples.shifts)
    assert list(runs) == ["tuned", "tuned@seed-2"]
    assert all(set(run["sample"]) == set(range(few)) for run in runs.values())
    table = divergence.over_seeds(seeded, runs).set_index("quantity")
    assert (table["subject"] == "tuned").all() and table.loc["near_zero_share", "seeds"] == 2
    # the weights are the same, and so are the responses and the shifts
    assert table.loc["near_zero_share", "low"] == table.loc["near_zero_share", "high"]


@pytest.fixture
def seeded(study, mini_root):
    """The study with a second benchmark, and a run of its tuned model from another seed."""
    write_model(mini_root / "other", noise=0.04)
    write_benchmark(mini_root / "benchmarks/more.jsonl", 2)
    more = {"path": "benchmarks/more.jsonl", "label": "More"}
    return study.with_overrides(
        **{
            "benchmarks": {"more": more, "sums": study.benchmarks["sums"].model_dump()},
            "models.tuned.seeds": [{"seed": 2, "path": str(mini_root / "other")}],
            "cross_sampling.benchmark": "sums",
        }
    )


def test_mixtures_of_another_seed_are_of_its_model(seeded, mini_root):
    """Held to those of a study whose pair that model is."""
    records = cross_records.cross_records(seeded)
    alone = seeded.with_overrides(
        **{"models.tuned.seeds": [], "models.tuned.path": str(mini_root / "other")}
    )
    expected = cross_records.cross_records(alone)
    assert expected.seeds == {}
    columns = ["problem", "sample", "text", "n_switched", "n_effective", "correct"]
    differ = 0
    for setting, first in records.runs.items():
        of_seed = records.seeds[setting._replace(model="tuned@seed-2")]
        there = expected.runs[setting]
        there = there[there["benchmark"] == "sums"].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_seed[columns].reset_index(drop=True), there[columns])
        # the first run stands beside it on the same problems, samples and noise
        here = records.seeds[setting]
        assert set(here["benchmark"]) == set(of_seed["benchmark"]) == {"sums"}
        assert here[columns[:2]].values.tolist() == of_seed[columns[:2]].values.tolist()
        pd.testing.assert_frame_equal(here, first[first["benchmark"] == "sums"])
        differ += (here["text"].to_numpy() != of_seed["text"].to_numpy()).sum()
    assert differ > 0 and len(records.seeds) == 2 * len(records.runs)
    curves, _, seeds = summary.over_seeds(
        cross.MixtureEstimates(seeded, records.seeds, records.rollouts)
    )
    assert set(curves["model"]) == {"tuned", "tuned@seed-2"} and set(seeds["subject"]) == {"tuned"}


def test_other_seeds_are_planned_once_each_and_the_explorer_does_not_show_them(seeded):
    without = seeded.with_overrides(**{"cross_sampling.seeds": False})
    more, less = ({p.kind: p.responses for p in count_work(s)} for s in (seeded, without))
    curves, problems = len(settings.curve_settings(seeded)), 3
    added = curves * problems * seeded.samples.cross_sampling
    assert more["cross_sampling"] - less["cross_sampling"] == added
    assert more["explorer"] == less["explorer"]
    assert explorer_records.requests(seeded) == explorer_records.requests(without)


def test_the_annotated_response_is_one_response_with_the_most_high_positions(study):
    rows, title = divergence_records.annotated_response(study)
    assert rows["position"].tolist() == list(range(rows["n_tokens"].iloc[0]))
    everything = divergence_records.classed_shifts(study)[0]["tuned"]
    first = everything[everything["sample"] == 0]
    high = (first["js"] > study.thresholds.high_js).groupby(first["problem"]).sum()
    assert (rows["js"] > study.thresholds.high_js).sum() == high.max()
    assert rows["problem"].iloc[0] in title


def test_cross_sampling_has_every_setting_and_its_random_controls(study, monkeypatch):
    records = cross_records.cross_records(study)
    wanted = settings.curve_settings(study)
    assert set(records.runs) == set(wanted) and set(records.rollouts) == {"base", "tuned"}
    key = ["problem", "sample"]
    for setting, frame in records.runs.items():
        assert set(frame["sample"]) == set(range(study.samples.cross_sampling))
        if setting.rule == "random":
            switched = frame["n_switched"].sum() / frame["n_tokens"].sum()
            assert switched == pytest.approx(setting.level, abs=0.2)
        if setting.level < 0:  # the other model's own response to the same noise
            other = settings.roles(study, setting)[1]
            both = frame.merge(records.rollouts[other], on=key, suffixes=("", "_own"))
            assert len(both) == len(frame) and (both["text"] == both["text_own"]).all()
    everything = [s for s, frame in records.runs.items() if s.level < 0]
    assert all(records.runs[s].eval("n_switched == n_tokens").all() for s in everything)
    table = cross.curve_table(cross.MixtureEstimates(study, records.runs, records.rollouts))
    switches = examples.cross_switches(study, table)
    assert [key[:2] for key in switches] == [("tuned", "forward"), ("tuned", "reverse")]
    shown, said = examples.cross_examples(study, table, pd.DataFrame())
    assert said.startswith("Forward, Sums:") and "Reverse, Sums:" in said
    for example in shown:
        rows = [row for _, row, _ in example["columns"]]
        assert len({tuple(row["prompt_ids"]) for row in rows}) == 1

    def computed_again(*job):
        raise AssertionError(job)

    monkeypatch.setattr(executor, "compute", computed_again)
    cross_records.cross_records(study)  # a second time everything is read


def test_cross_sampling_has_other_rules_tokens_and_single_tokens(study, monkeypatch):
    records = cross_records.cross_records(study)
    assert set(settings.rule_settings(study)) <= set(records.rules)
    assert set(settings.intervention_settings(study)) <= set(records.interventions)
    first = records.rules[Setting("tuned", "forward", 2.0, "first")]
    assert (first["n_switched"] == first["n_tokens"].clip(upper=2)).all()
    budget = records.rules[Setting("tuned", "forward", study.thresholds.high_js, budget=1)]
    assert set(budget["n_switched"]) <= {0, 1}
    null = [records.interventions[s] for s in records.interventions if s.insert == "own"]
    assert sum(frame["n_effective"].sum() for frame in null) > 0
    assert set(records.single_token["direction"]) == {"forward", "reverse"}
    assert set(records.single_token["class_base"]) <= {"number", "sign", "word", "punctuation"}
    monkeypatch.setattr(cross_records, "is_natural_language", lambda study: True)
    assert set(cross_records.cross_records(study).single_token["class_base"]) <= set(CLASSES)
    bare = {"rules": {}, "budgets": [], "null_thresholds": [], "extrapolation": None}
    bare |= {"single_token": None, "random_rates": [], "thresholds": [0.1]}
    few = study.with_overrides(**{f"cross_sampling.{key}": v for key, v in bare.items()})
    records = cross_records.cross_records(few)
    assert len(records.runs) == 4  # every position switched is run in any case
    assert records.rules.keys() == records.runs.keys()
    assert records.interventions.keys() == records.runs.keys() and records.single_token.empty
