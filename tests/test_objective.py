"""Section 4's numbers and figures on made-up runs: by hand, and with any part of them missing."""

import json
import math
import shutil
import warnings

import made_up
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.report import style
from tokenshift_utils.sections.objective import numbers as objective
from tokenshift_utils.sections.objective import plots as draw
from tokenshift_utils.sections.objective import records, words
from tokenshift_utils.study.study import load_study
from tokenshift_utils.training.position_sets import pack_positions
from tokenshift_utils.training.runs import arm_runs

TINY = load_study("tiny")


def log_of(seed):
    """A training log of two rollouts."""
    return pd.DataFrame(
        {
            "rollout": [1, 1, 2, 2], "k3_p50": [0, 1e-8, 0, 3e-8], "k3_p90": [0, 1e-6, 0, 3e-6],
            "k3_p99": [0, 1e-4, 0, 3e-4], "weight_mean": [1, 1.1, 1, 1.3],
            "weight_std": [0, 0.1, 0, 0.1], "weight_share_above_1": [0, 0.5, 0, 0.5],
            "clip_fraction": [0, 0.01, 0, 0.01], "length_mean": [50, None, 40 + seed, None],
            "entropy": [0.5, 0.4, 0.3, 0.2], "kl_base": [0, None, 0.1, None],
        }
    )  # fmt: skip


def write_run(root, arm, seed, right, high=(True, False, False, False), responses="same"):
    """A run whose problems have ``right`` of 4 responses right, the same on every benchmark."""
    directory = root / "results/made-up/training/arms" / arm / f"seed-{seed}"
    directory.mkdir(parents=True)
    log_of(seed).to_csv(directory / "log.csv", index=False)
    evaluations = [(r, b, 0.1 * r) for r in (0, 2) for b in ("easy", "hard")]
    pd.DataFrame(evaluations, columns=["rollout", "benchmark", "accuracy"]).to_csv(
        directory / "eval.csv", index=False
    )
    final = [(b, f"{b}-{i}", 4, c) for b in ("easy", "hard") for i, c in enumerate(right)]
    pd.DataFrame(final, columns=["benchmark", "problem", "samples", "correct"]).to_csv(
        directory / "final.csv", index=False
    )
    tokens = [
        ("early", " so", 90, 1e-6, 1.4), ("early", "\n", 10, 0, 1.0), ("late", " so", 50, 0, 1.2),
        ("late", "\n", 50, 0, 1.2), ("late", "null", 1, 0, 1.5),
    ]  # fmt: skip
    names = ["phase", "token", "count", "k3_mean", "weight_mean"]
    pd.DataFrame(tokens, columns=names).to_csv(directory / "tokens.csv", index=False)
    shift = {"near_zero": {"0.001": 0.9, "0.01": 0.95}, "high": 0.02, "mean_js": 0.01}
    flags = np.array(high)
    summary = {
        **arm_runs(TINY, arm)[0].settings, "totals": {"tokens_generated": 100}, "seconds": 60, "resumed": False,
        "shift": {"own": shift, "base": {
            "positions": len(flags), "responses": responses, "high_set": pack_positions(flags)}},
    }  # fmt: skip
    (directory / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The made-up study with tiny's arms."""
    (tmp_path / "notebooks/studies").mkdir(parents=True)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))
    same = {
        name: getattr(TINY, name).model_dump() for name in ("training", "sampling", "thresholds")
    }
    return made_up.study(**same)


@pytest.fixture
def runs(study, tmp_path):
    """DAPO with .25, .5, .25; the boost better by .25, .125 and .375; an arm of one seed."""
    for seed, (plain, boosted) in enumerate(
        [((1, 1), (2, 2)), ((2, 2), (2, 3)), ((1, 1), (2, 3))], start=1
    ):
        write_run(tmp_path, "dapo", seed, plain)
        write_run(tmp_path, "high-kl", seed, boosted, high=(True, True, False, False))
    write_run(tmp_path, "low-kl", 2, (2, 2))
    write_run(tmp_path, "placebo", 4, (1, 1), responses="others")
    return records.read_runs(study)


def test_table_2_pairs_by_seed_and_tests_the_confirmatory_arms(study, runs):
    table = objective.objective_table(study, runs).set_index("arm")
    assert list(table["seeds"]) == [3, 3, 1, 1]
    assert table.loc["dapo", "average"] == pytest.approx(1 / 3)
    assert np.isnan(table.loc["dapo", "gain"]) and table.loc["dapo", "paired_seeds"] == 0
    boost = table.loc["high-kl"]
    assert boost["gain"] == pytest.approx(0.25) and boost["paired_seeds"] == 3
    half = 4.302653 * np.std([0.25, 0.125, 0.375], ddof=1) / math.sqrt(3)
    assert boost["gain_low"] == pytest.approx(0.25 - half, rel=1e-5)
    assert boost["p"] == boost["smallest_p"] == 0.25
    assert boost["p_holm"] == boost["smallest_p_holm"] == 0.5
    low = table.loc["low-kl"]
    assert low["paired_seeds"] == 1 and low["gain"] == 0 and np.isnan(low["gain_low"])
    assert table.loc["placebo", "paired_seeds"] == 0  # its seed has no baseline
    assert np.isnan(table.loc["placebo", "p"])


def test_claims_are_looked_at_once_when_all_planned_seeds_are_there(study, runs):
    found = objective.objective_evidence(study, runs).set_index(["quantity", "subject"])
    boost = found.loc[("boost_gain", "dapo-high-kl")]
    assert np.isnan(boost["value"]) and boost["note"] == "3 of 8 paired seeds are there"
    study = study.with_overrides(**{"training.arms.dapo.seeds": [1, 2, 3]})
    found = objective.objective_evidence(study, records.read_runs(study)).set_index(
        ["quantity", "subject"]
    )
    boost = found.loc[("boost_gain", "dapo-high-kl")]
    assert boost["value"] == pytest.approx(0.25) and boost["seeds"] == 3
    low = found.loc[("boost_gain", "dapo-low-kl")]
    assert np.isnan(low["value"]) and low["note"] == "1 of 3 paired seeds are there"


def test_pass_at_k_by_arm(study, runs):
    table = objective.pass_table(study, runs, ks=(1, 2)).set_index("arm")
    assert table.loc["dapo", "pass@1"] == pytest.approx(1 / 3)
    assert table.loc["dapo", "pass@2"] == pytest.approx((0.5 + 5 / 6 + 0.5) / 3)
    assert table.loc["high-kl", "gain@1"] == pytest.approx(0.25)


def test_tokens_are_pooled_over_seeds_and_rare_ones_left_out(runs):
    table = objective.token_table(runs, "high-kl")
    assert list(table["token"]) == [" so", "\\n"]
    so = table.iloc[0]
    assert so["share_early"] == 0.9 and so["weight_early"] == pytest.approx(1.4)
    assert so["excess_early"] == pytest.approx(1.0)
    assert so["excess_late"] == pytest.approx(10 / 20.5)
    text = words.say_tokens(table)
    assert "' so' 1.40" in text and "on 100% of the positions" in text


def test_weights_leave_out_the_first_update_of_a_rollout(runs):
    row = objective.weights_table(runs).set_index("arm").loc["high-kl"]
    assert row["weight_mean"] == pytest.approx(1.2) and row["k3_p90_micronats"] == pytest.approx(2)


def test_the_weight_curve_is_the_arms(runs):
    curve = objective.weight_curves(runs)
    assert list(curve["arm"].unique()) == ["high-kl", "low-kl", "high-kl-strong", "low-kl-strong"]
    for arm, rows in curve.groupby("arm"):
        weighting = TINY.training.arms[arm].weighting
        at = rows.iloc[100]
        expected = 1 + weighting.scale * (1 / (1 + math.exp(-weighting.alpha * at["kl"])) - 0.5)
        assert at["weight"] == pytest.approx(expected) and rows["weight"].iloc[0] == 1


def test_the_sweep_has_the_boosts_alone_at_seeds_that_all_of_them_have(study, runs, tmp_path):
    assert objective.sweep_table(study, runs).empty  # one alpha each
    assert words.say_sweep(objective.sweep_table(study, runs)) == "The boosts have one alpha each."
    for seed, right in ((1, (3, 3)), (2, (1, 2))):
        write_run(tmp_path, "high-kl-alpha-3e6", seed, right)
        write_run(tmp_path, "high-kl-strong", seed, right)  # of another strength, not alpha
    runs = records.read_runs(study)
    table = objective.sweep_table(study, runs)
    assert list(table["arm"]) == ["high-kl", "high-kl-alpha-3e6"] and set(table["seeds"]) == {2}
    assert list(table["alpha"]) == [3e5, 3e6]
    first, second = ([float(gain) for gain in text.split()] for text in table["gains"])
    assert first == [0.25, 0.125] and second == [0.5, -0.125]
    assert list(table["gain"]) == [0.1875, 0.1875]
    assert runs.swept == {f"{a}-kl-alpha-3e{n}" for a in ("high", "low") for n in (3, 4, 6, 7)}
    said = words.say_sweep(table)
    assert "from |alpha| = 3e5 to 3e6 the mean gain lies between +18.75 and +18.75" in said
    assert said.endswith("no alpha is told from 0.")
    shutil.rmtree(tmp_path / "results/made-up/training/arms/high-kl-alpha-3e6/seed-2")
    said = words.say_sweep(objective.sweep_table(study, records.read_runs(study)))
    assert said.endswith("points (1 seed), which has no interval.")


def test_curves_have_a_row_a_seed_and_rollout(runs):
    rows = objective.curves(runs, "length_mean", ("dapo",))
    assert rows[rows["rollout"] == 1]["value"].tolist() == [50, 50, 50]
    assert rows[rows["rollout"] == 2]["value"].tolist() == [41, 42, 43]
    assert rows["label"].unique().tolist() == ["DAPO"]


def test_differences_along_training_are_taken_seed_by_seed(study, runs, tmp_path):
    write_run(tmp_path, "high-kl-strong", 3, (1, 1))
    runs, arms = records.read_runs(study), ("high-kl-strong",)
    assert objective.curves(runs, "length_mean", arms)["value"].tolist() == [50, 43]
    paired = objective.curves(runs, "length_mean", arms, against="dapo")
    assert paired[["seed", "rollout", "value"]].to_numpy().tolist() == [[3, 1, 0], [3, 2, 0]]
    assert objective.curves(runs, "accuracy", ("placebo",), against="dapo").empty


def test_the_smallest_detectable_effect_comes_from_the_baseline_alone(study, runs):
    row = objective.power_table(study, runs).iloc[0]
    sd = np.std([0.25, 0.5, 0.25], ddof=1)
    assert (row["seeds"], row["planned"], row["sd"]) == (3, 8, pytest.approx(sd))
    shift = row["detectable"] / (math.sqrt(2) * sd) * math.sqrt(8)
    critical = stats.t.ppf(0.975, 7)
    power = stats.nct.sf(critical, 7, shift) + stats.nct.cdf(-critical, 7, shift)
    assert power == pytest.approx(0.8, abs=1e-4)
    said = words.say_power(runs, objective.power_table(study, runs))
    assert "can tell nothing" not in said
    few = objective.power_table(study, runs).assign(planned=3)
    assert "no p below 0.5: it can tell nothing" in words.say_power(runs, few)
    del runs["dapo"][1], runs["dapo"][2]
    assert objective.power_table(study, runs).empty


def test_the_baseline_alone_is_shown_beside_whatever_is_there(study, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "dapo", seed, (1, 1))
        write_run(tmp_path, "grpo", seed, (2, 1))
    runs = records.read_runs(study)
    assert runs.shown == ("dapo", "grpo")
    assert "GRPO with KL penalty ends at accuracy" in words.say_curves(runs)


def test_overlaps_of_high_positions(study, runs):
    table = objective.objective_shifts(study, runs).set_index("arm")
    assert table.loc["high-kl", "overlap_baseline"] == 0.5
    assert table.loc["high-kl", "overlap_seeds"] == 1
    assert np.isnan(table.loc["placebo", "overlap_baseline"])  # no baseline at its seed
    runs["placebo"][1] = runs["placebo"].pop(4)  # which is of other responses than the baseline
    table = objective.objective_shifts(study, runs).set_index("arm")
    assert np.isnan(table.loc["placebo", "overlap_baseline"])


def test_a_run_that_cannot_be_read_is_one_clear_sentence(study, runs, tmp_path):
    (tmp_path / "results/made-up/training/arms/dapo/seed-2/summary.json").write_text("{")
    with pytest.raises(TokenshiftError, match="tokenshift train --arm dapo --seed 2"):
        records.read_runs(study)


def test_a_run_of_another_recipe_is_refused(study, runs, tmp_path):
    file = tmp_path / "results/made-up/training/arms/high-kl/seed-1/summary.json"
    summary = json.loads(file.read_text())
    summary["recipe"]["weighting"]["alpha"] = 1.0
    file.write_text(json.dumps(summary))
    with pytest.raises(TokenshiftError, match="another recipe than arm 'high-kl' has now"):
        records.read_runs(study)


def everything(study, runs):
    """All words, after all tables and figures."""
    table, met = objective.objective_table(study, runs), objective.weights_table(runs)
    tokens, shift = (
        objective.token_table(runs, runs.boost("high-kl")),
        objective.objective_shifts(study, runs),
    )
    objective.pass_table(study, runs), objective.runs_table(runs)
    objective.configuration_table(study, runs)
    draw.plot_weights(runs, objective.weight_curves(runs), met).draw_without_rendering()
    for figure in (
        draw.plot_tokens(tokens),
        draw.plot_training(runs),
        draw.plot_gains(runs, table),
    ):
        figure.draw_without_rendering()
    plt.close("all")
    return "\n".join(
        [
            words.say_runs(runs), words.say_weights(runs, met), words.say_tokens(tokens),
            words.say_power(runs, objective.power_table(study, runs)), words.say_curves(runs),
            words.say_objective(runs, table), words.say_controls(runs, table),
            words.say_shift(runs, shift), words.say_scope(runs),
        ]
    )  # fmt: skip


def test_any_part_of_the_runs_will_do(study, runs, tmp_path):
    style.use_style()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = everything(study, runs)
        assert "confirmatory: 7 of 24 runs; not complete: DAPO | High-KL boost" in text
        assert "a report on the way" in text and "nan" not in text.lower()
        for arm in ("dapo", "placebo", "high-kl", "low-kl"):
            shutil.rmtree(tmp_path / "results/made-up/training/arms" / arm)
            text = everything(study, records.read_runs(study))
            assert "nan" not in text.lower()
    assert "confirmatory: 0 of 24 runs" in text and "Too few runs" in text


def test_the_words_follow_the_numbers(study, tmp_path):
    for seed in range(1, 9):
        write_run(tmp_path, "dapo", seed, (1, 1))
        write_run(tmp_path, "high-kl", seed, (2, 2 + seed % 2))
        write_run(tmp_path, "low-kl", seed, (1, seed % 3))
    for seed in (1, 2):
        write_run(tmp_path, "low-kl-strong", seed, (0, 0))
        write_run(tmp_path, "dapo-lr-0.8", seed, (0, 1))
    runs = records.read_runs(study)
    table = objective.objective_table(study, runs)
    text = words.say_controls(runs, table)
    assert "At s = 1.9 the low-KL boost gives -25.00 points [-25.00, -25.00] over 2 seeds." in text
    assert "another learning rate moves the result by -12.50 points" in text
    text = words.say_objective(runs, table)
    assert "High-KL boost gains" in text and "Low-KL boost is not told from DAPO" in text
    assert "on the way" not in text


def test_where_test_and_interval_part_the_words_say_so(study, tmp_path):
    for seed in range(1, 9):  # better at every seed, at one by far
        write_run(tmp_path, "dapo", seed, (0, 0) if seed == 8 else (1, 1))
        write_run(tmp_path, "high-kl", seed, (4, 4) if seed == 8 else (1, 2))
        write_run(tmp_path, "low-kl", seed, (1, 1))
    runs = records.read_runs(study)
    table = objective.objective_table(study, runs).set_index("arm")
    assert table.loc["high-kl", "p_holm"] < 0.05 and table.loc["high-kl", "gain_low"] < 0
    assert "is borderline, with 0 in its interval" in words.say_objective(runs, table.reset_index())


def test_runs_are_scored_on_the_problems_that_all_answered(study, tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "dapo", seed, (1, 1, 4, 4))
        write_run(tmp_path, "grpo", seed, (2, 1))
    runs = records.read_runs(study)
    assert [runs[arm][1].score for arm in ("dapo", "grpo")] == [0.25, 0.375]
    assert "answers to 4 or 8 problems: they are scored on the 4" in words.say_runs(runs)
    shift = objective.objective_shifts(study, runs)
    assert "responses to 4 or 8 problems" in words.say_shift(runs, shift)
    del runs["dapo"]
    assert "scored on" not in words.say_runs(runs)
