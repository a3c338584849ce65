"""What a study takes: counted by hand on small ones, and held to a run's records in test_smoke."""

import re

import pytest

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.run import plan as plans
from tokenshift_utils.run.cli import main
from tokenshift_utils.run.plan import Assumptions, count_work, plan, row_bytes, shape_of
from tokenshift_utils.study.study import load_study


def by_kind(study, **more):
    return {part.kind: part for part in count_work(study, **more)}


def test_a_small_study_counted_by_hand(mini_root):
    study = load_study("mini").with_overrides(
        **{
            "cross_sampling.thresholds": [-1, 0.1],
            "cross_sampling.random_rates": [0.5],
            "cross_sampling.rules.first": [2],
            "cross_sampling.rules.entropy": [],
            "cross_sampling.budgets": [],
            "cross_sampling.null_thresholds": [],
            "cross_sampling.extrapolation": None,
            "cross_sampling.single_token": None,
            "samples": {
                "accuracy": 4,
                "controls": 4,
                "shifts": 3,
                "checkpoints": 1,
                "cross_sampling": 2,
                "cross_controls": 1,
            },
        }
    )
    work, longest = by_kind(study), study.sampling.max_new_tokens
    assert set(work) == {"rollouts", "shifts", "cross_sampling", "explorer"}
    # two models, three problems
    assert work["rollouts"].responses == 2 * 3 * 4
    assert (work["shifts"].responses, work["shifts"].tokens) == (3 * 3, 3 * 3 * longest)
    # both directions: two thresholds with 2 samples, random positions and another rule with 1
    cross = work["cross_sampling"]
    assert cross.responses == 2 * (2 * 3 * 2 + 2 * 3 * 1)
    assert cross.tokens == cross.responses * longest
    # of three problems two samples: both models' own responses, and what was mixed
    assert work["explorer"].responses == 3 * 2 * (2 + 2 * (2 + 1 + 1))
    assert by_kind(study, mean_tokens=5)["cross_sampling"].tokens == cross.responses * 5
    assert by_kind(study, mean_tokens=10**6)["cross_sampling"].tokens == cross.tokens


def test_the_papers_study_counted_without_its_files():
    study = load_study("qwen2.5-32b-dapo")
    work = by_kind(study)
    problems = 30 + 30 + 40 + 198
    assert work["rollouts"].responses == 2 * problems * 32
    assert work["shifts"].responses == problems * study.samples.shifts
    assert work["shifts"].tokens == work["shifts"].responses * 8000
    cross = work["cross_sampling"]
    asked, few = study.cross_sampling, study.samples.cross_controls
    null = 2 * len(asked.null_thresholds) * 30 * few
    random = 2 * len(asked.random_rates) * problems * few
    everywhere = all(eps >= 0 for eps in asked.thresholds)  # is run in any case
    curve = 2 * (len(asked.thresholds) + everywhere) * problems * 32
    assert cross.responses == curve + random + null


def test_the_shape_is_that_of_the_files(tmp_path):
    study = load_study("tiny")
    shape = shape_of(study)
    assert 0.5e6 < shape.parameters < 1.5e6 and shape.layers == 4
    assert (shape.kv_heads, shape.head_dim) == (4, 32)
    paper = load_study("qwen2.5-32b-dapo")
    assert shape_of(paper) == paper.shape
    with pytest.raises(
        TokenshiftError, match="hf download Qwen/Qwen2.5-32B .*; or say in the study"
    ):
        shape_of(paper.model_copy(update={"shape": None}))


def test_a_benchmark_that_cant_be_counted_is_refused():
    study = load_study("qwen2.5-32b-dapo")
    uncounted = study.with_overrides(**{"benchmarks.gpqa.problems": None})
    with pytest.raises(TokenshiftError, match="benchmark 'gpqa' .* is not on this machine"):
        count_work(uncounted)


def test_hours_follow_from_the_assumptions_that_are_printed():
    study = load_study("qwen2.5-32b-dapo")
    work = by_kind(study, mean_tokens=1000)
    text = plan(study, Assumptions(50, 200, 3, 1000, 80))
    read = 2 * 2 * 32.76e9 / 200e12 / 3600  # a position, by both models
    hours = {
        "rollouts": work["rollouts"].tokens * 2 * 32.76e9 / 50e12 / 3600,
        "shifts": work["shifts"].tokens * read,
        "explorer": work["explorer"].tokens * read,
        "cross_sampling": 3 * work["cross_sampling"].tokens * 2 * 32.76e9 / 50e12 / 3600 / 8,
    }
    assert "assumed: 0.125 distinct prefixes a token" in text
    assert f"GPU-hours: {sum(hours.values()):,.1f}" in text
    for kind, value in hours.items():
        (shown,) = re.findall(rf"^  {kind} +([\d,.]+)$", text, re.MULTILINE)
        assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.05)
    assert "assumed: 50 TFLOP/s" in text and "200 while scoring" in text
    assert "65.5 GB a model, 131.0 GB for the two" in text
    assert "2.1 GB a model and response of 8,000 tokens" in text  # 2 x 64 x 8 x 128 x 2 bytes each
    assert "2 GPU(s) of 80 GB" in text
    assert "2 models to download, 131.0 GB" in text


def test_training_of_a_studys_own_models_is_planned():
    study = load_study("qwen2.5-math-7b-dwa")
    text = plan(study, Assumptions(50, 200, 3, 1000, 80))
    tokens = 200 * 512 * 16 * 1000  # a run
    generate = 2 * 7.62e9 * tokens / 50e12 / 3600
    learn = (2 + 2 + 4 + 2) * 7.62e9 * tokens / 200e12 / 3600
    assert "9 runs (3 arms, 3 seeds) of 200 rollouts of 8,192 responses and 16 updates" in text
    assert f"at most {tokens:,} tokens generated" in text
    assert f"{learn:,.1f} to learn; {9 * (generate + learn):,.1f} in all" in text
    assert "106.7 GB, weights" in text  # 14 bytes a parameter
    twice = study.with_overrides(**{"training.trl": study.training.trl | {"num_iterations": 2}})
    assert "32 updates" in plan(twice) and "18 operations" in plan(twice)


def test_a_row_of_records_is_as_wide_as_its_columns():
    assert row_bytes("rollouts", 10) < 60
    wide = row_bytes("shifts", 20) - row_bytes("shifts", 10)
    assert wide == 10 * 5 * 4  # five lists of that length, four bytes each


def test_the_command_prints_it(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--study", "tulu3-8b", "--mean-tokens", "500"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "assumed at 500 tokens a response" in text
    assert all(part in text for part in ("GPU memory, bfloat16", "GPU-hours: ", "Disk: "))


def test_every_notebook_is_counted():
    from tokenshift_utils.run.notebook import PARAMETERS

    # section 4 reads the logs of training runs and asks nothing of the store
    assert set(plans.SECTIONS) == set(PARAMETERS) - {"00_overview", "04_weighted_objective"}


def test_mixture_trees_are_planned_where_records_are_read_off_them():
    study = load_study("tiny")
    text = plan(study, Assumptions(distinct=0.2, mean_tokens=100))
    responses = by_kind(study)["cross_sampling"].responses
    trees = text.split("Mixture trees: ")[1]
    # robustness mixes one rule more, in trees of its own
    counted = float(trees.split(" distinct")[0].removeprefix("at most ").replace(",", ""))
    assert 0.9 * responses * 100 * 0.2 <= counted <= responses * 100 * 0.2
    assert "12 sets of trees" in trees and "assumed: 0.2 distinct prefixes a token" in trees
    assert "switches" not in text
    with_engines = plan(load_study("qwen2.5-32b-dapo"))
    assert re.search(r"Mixture trees: at most [\d,]+ distinct prefixes in 4 sets", with_engines)


def test_a_study_may_say_how_long_it_took(mini_root):
    study = load_study("mini")
    assert "processor time" not in plan(study)
    study = study.with_overrides(
        workers=2, cost={"processor_minutes": 65, "machine": "a 2-core laptop"}
    )
    said = "about 65 minutes of processor time on a 2-core laptop, so 33 with 2 processes"
    assert said in plan(study)
