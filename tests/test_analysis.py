"""The analyses of all sections against answers worked out by hand on small made-up frames."""

import math

import made_up
import numpy as np
import pandas as pd
import pytest
from made_up import measured, value

from tokenshift_utils.report.bootstrap import Bootstrap, columns_of
from tokenshift_utils.sections.claims import EVIDENCE_COLUMNS, QUANTITIES
from tokenshift_utils.sections.common import by_benchmark, evidence, percent, points, token_class
from tokenshift_utils.sections.divergence import numbers
from tokenshift_utils.sections.mechanics import numbers as analysis_mechanics
from tokenshift_utils.sections.robustness import numbers as analysis_robustness
from tokenshift_utils.sections.robustness.records import answer_requests
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import Problem

STUDY = made_up.study()
ONE = made_up.study(benchmarks={"easy": {"path": "easy.jsonl", "label": "Easy"}}, robustness=None)


def positions(js, **columns):
    """One benchmark, two problems: the first half of the positions belongs to p, the rest to q."""
    n = len(js)
    frame = pd.DataFrame(
        {
            "benchmark": "easy",
            "problem": ["p"] * (n // 2) + ["q"] * (n - n // 2),
            "sample": 0,
            "position": [*range(n // 2), *range(n - n // 2)],
            "n_tokens": n // 2,
            "token": 0,
            "js": js,
            "js_full": js,
            "entropy_base": 0.0,
            "entropy_tuned": 0.0,
            "token_class": "other",
            "nucleus_base": 1,
            "nucleus_tuned": 1,
            "rank_base_of_tuned_top1": 1,
            "logp_base_of_tuned_top1": -0.1,
        }
    )
    frame["answer_start"] = pd.array([None] * n, dtype="Int32")
    return frame.assign(**columns)


# ---- common


def test_benchmarks_are_pooled_only_where_there_are_two():
    frame = made_up.rollouts(0.5)
    assert [name for name, _ in by_benchmark(STUDY, frame)] == ["Easy", "Hard", "all"]
    assert [n for n, _ in by_benchmark(STUDY, frame[frame["benchmark"] == "hard"])] == ["Hard"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("7", "structural"),
        (" +", "structural"),
        ("(", "structural"),
        ("17", "structural"),
        ("so", "other"),
        ("\\boxed{", "other"),
        ("", "other"),
        ("\n", "other"),
    ],
)
def test_token_class(text, expected):
    assert token_class(text) == expected


def test_wording_of_shares():
    row = pd.Series({"x": 0.5, "x_low": 0.4, "x_high": 0.6, "y": 0.025, "low": 0.01, "high": 0.04})
    assert percent(row, "x") == "50.0% [40.0, 60.0]"
    assert points(row, "y") == "+2.5 points [1.0, 4.0]"
    assert percent(pd.Series({"x": 0.0003, "low": 0.0001, "high": 0.0006}), "x") == (
        "0.03% [0.01, 0.06]"
    )  # never rounded to nothing
    assert percent(pd.Series({"x": math.nan, "low": 0, "high": 0}), "x") == "not measurable"
    ends = pd.Series({"x": -0.002, "low": -0.003, "high": 0.0002})  # whose sign shows
    assert percent(ends, "x") == "-0.20% [-0.30, 0.02]"
    ends = pd.Series({"x": 0.0005, "low": -0.2273, "high": 0.2062})  # whose sign says nothing
    assert percent(ends, "x", 0) == "0% [-23, 21]"
    ends = pd.Series({"x": 0.06, "low": 0.0, "high": 0.2})
    assert percent(ends, "x", 0) == "6% [0, 20]"


def test_evidence_says_why_there_is_no_interval():
    found = evidence(
        [("rank1", "dapo", (0.5, math.nan, math.nan), ""), ("rank3", "dapo", None, "no")]
    )
    assert list(found.columns) == list(EVIDENCE_COLUMNS)
    assert list(found["note"]) == ["too few problems show it for an interval", "no"]


# ---- 1 divergence


def test_sparsity_shares_and_percentiles():
    js = [0.0, 0.0005, 0.005, 0.2] * 5
    row = numbers.sparsity_table(ONE, {"dapo": positions(js)}).iloc[0]
    assert row["support"] == "nucleus" and row["positions"] == 20
    shares = [row[c] for c in ("share_le_0.001", "share_le_0.01", "share_gt_0.1")]
    assert shares == [0.5, 0.75, 0.25]
    assert row["mean"] == pytest.approx(np.mean(js))
    assert (row["p50"], row["p75"], row["p90"]) == (0.0005, 0.005, 0.2)


def test_position_bins():
    js = np.concatenate([np.arange(20), np.arange(20)]).astype(float)
    frame = positions(js).assign(answer_start=pd.array([15] * 40, dtype="Int32"))
    relative = numbers.position_profile(ONE, {"dapo": frame}, "relative")
    assert list(relative["mean"]) == list(range(20)) and relative["x"].iloc[0] == 2.5
    assert numbers.answer_place(frame) == 15 / 20
    start = numbers.position_profile(ONE, {"dapo": frame}, "start")
    assert list(start["x"]) == list(start["mean"]) == list(range(20))
    full = numbers.position_profile(ONE, {"dapo": frame.assign(js_full=1.0)}, "start")
    assert (full["full"] == 1).all()
    answer = numbers.position_profile(ONE, {"dapo": frame}, "answer")
    assert answer.loc[answer["x"] == 0, "mean"].item() == 15 and answer["x"].max() == 4


def test_responses_cut_off_by_the_length_limit_have_no_end():
    frame = positions(np.ones(20), n_tokens=ONE.sampling.max_new_tokens)
    assert numbers.position_profile(ONE, {"dapo": frame}, "relative").empty


def test_bins_of_js_end_with_the_largest_js_in_single_precision():
    largest = np.float32(math.log(2))
    assert float(largest) > math.log(2)
    assert list(numbers.js_bins([0.0, 0.001, 0.05, largest])) == [
        "≤ 0.001", "≤ 0.001", "0.01–0.1", "0.3–0.69"]  # fmt: skip


def test_survival_is_the_share_above():
    table = numbers.survival_table(ONE, {"dapo": positions([0.0, 0.1, 0.2, 0.2])}, [0.0, 0.1, 0.2])
    assert list(table.loc[table["support"] == "nucleus", "share"]) == [0.75, 0.5, 0.0]


def test_examples_are_the_occurrences_of_highest_and_lowest_js():
    frame = positions([0.0, 0.2, 0.0, 0.3], token=[0, 1, 0, 1])
    table = numbers.examples_table(ONE, {"dapo": frame}, {0: "a", 1: " so"})
    assert list(table["js"]) == [0.3, 0.2] and (table["in_context"] == "a[[ so]]").all()


def test_classes_among_all_and_among_high_positions():
    of = ["numbers", "function", "numbers", "numbers"]
    frame = positions([0.0, 0.5, 0.0, 0.5], token_class=of)
    table = numbers.class_table(ONE, {"dapo": frame}).set_index("token_class")
    assert list(table.index) == ["function", "numbers"]
    assert list(table.loc["function", ["near_zero_share", "share", "high_share"]]) == [0, 0.25, 0.5]
    assert table.loc["function", "enrichment"] == 2


def test_identity_table_counts_occurrences_and_enrichment():
    frame = positions([0.5, 0.0, 0.0, 0.05, 0.5, 0.0, 0.0, 0.0], token=[1, 1, 1, 1, 2, 3, 3, 3])
    table = numbers.identity_table(ONE, {"dapo": frame}, {1: "the", 2: "so", 3: "7"})
    assert list(table["token"]) == ["the", "so"]
    the = table.iloc[0]
    assert (the["occurrences"], the["near_zero"], the["between"], the["high"]) == (
        4,
        0.5,
        0.25,
        0.25,
    )
    assert the["share_of_high"] == 0.5 and the["enrichment"] == 1.0
    assert table.iloc[1]["enrichment"] == pytest.approx(0.5 / (1 / 8))
    texts = {1: "the", 2: "so", 3: "7"}
    enriched = numbers.identity_table(ONE, {"dapo": frame}, texts, enriched_from=1)
    assert list(enriched["token"]) == ["so", "the"]
    assert numbers.identity_table(ONE, {"dapo": frame}, texts, enriched_from=2).empty


def test_divergence_evidence_by_hand():
    js = np.tile([0.4, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.2], 2)  # 10 positions a response
    base = np.where(js > 0.3, 0.0, np.where(js > 0.15, 1.0, 0.1))
    classes = ["numbers", *["function"] * 9] * 2
    frame = positions(js, entropy_base=base, entropy_tuned=base, token=[1, *[0] * 9] * 2)
    frame = frame.assign(token_class=classes, answer_start=pd.array([9] * 20, dtype="Int32"))
    frame["js_full"] = js / 8
    wider = positions(np.where(js > 0, 0.3, 0.0))
    shifts = {"dapo": frame, "simplerl": positions(js * 0.0), "sft-far": wider}
    found, both = numbers.section_evidence(ONE, shifts)
    assert value(found, "near_zero_share") == pytest.approx(0.4)
    assert value(found, "high_js_share") == pytest.approx(0.2)
    assert value(found, "start_ratio") == pytest.approx(4.0)
    assert math.isnan(value(found, "later_start_ratio"))  # its first tenth is one token
    assert value(found, "answer_ratio") == pytest.approx(2.0)
    assert value(found, "low_js_low_entropy") == 1.0
    assert measured(found, "low_js_low_entropy")["note"].startswith("at all positions 90%")
    assert value(found, "high_js_low_entropy") == 0.5
    assert value(found, "high_js_high_entropy") == 0.5
    assert value(found, "structural_difference") == pytest.approx(-0.5)
    assert value(found, "words_difference") == pytest.approx(-0.5)
    assert value(found, "mostly_low_tokens") == 0.5
    assert value(found, "sft_density_ratio", "sft-far") == pytest.approx(0.6 / 0.2)
    assert measured(found, "sft_density_ratio", "sft-far")["note"] == "against DAPO"
    row = both[(both["quantity"] == QUANTITIES["high_js_share"]) & (both["model"] == "DAPO")].iloc[
        0
    ]
    assert (row["nucleus"], row["full"]) == (0.2, 0.0)


def test_words_are_not_compared_where_texts_are_no_language():
    found, _ = numbers.section_evidence(ONE, {"dapo": positions([0.5, 0.0] * 10)})
    row = measured(found, "words_difference")
    assert math.isnan(row["value"]) and "no natural language" in row["note"]


def test_a_pair_without_high_js_positions_is_not_testable_and_says_why():
    found, _ = numbers.section_evidence(STUDY, {"dapo": made_up.shifts(share_high=0)})
    row = measured(found, "high_js_low_entropy")
    assert math.isnan(row["value"]) and "no position with JS > 0.1" in row["note"]


def test_recipes_are_compared_over_seeds_and_only_over_seeds():
    shares = {"dapo": 0.4, "dapo@seed-2": 0.6, "simplerl": 0.2, "simplerl@seed-2": 0.1}
    runs = {
        name: positions([0.5] * int(20 * s) + [0.0] * int(20 - 20 * s))
        for name, s in shares.items()
    }
    table = numbers.over_seeds(ONE, runs)
    row = measured(table, "wider_difference")
    assert row["value"] == pytest.approx(0.35) and row["seeds"] == 2  # of 0.2 and 0.5
    half = 0.15 * 12.7062  # Student's t with one degree of freedom times the standard error
    assert (row["low"], row["high"]) == pytest.approx((0.35 - half, 0.35 + half), abs=1e-4)
    assert measured(table, "high_js_share", "simplerl")["value"] == pytest.approx(0.15)
    for few in ({}, {"dapo": runs["dapo"], "simplerl": runs["simplerl"]}):
        row = measured(numbers.over_seeds(ONE, few), "wider_difference")
        assert math.isnan(row["low"]) and row["note"].startswith("one training seed")


def test_worked_example_kl_is_infinite_where_js_is_not():
    table = numbers.why_js(0.7).set_index("change")
    assert table["js"].between(0, math.log(2)).all()
    assert np.isinf(table.loc["the flip, after top-p", ["kl_base_tuned", "kl_tuned_base"]]).all()
    assert table.loc["the flip, after top-p", "js"] == pytest.approx(math.log(2))
    vanish = table.loc["a tail token vanishes: 1e-6"], table.loc["the same, to 1e-30"]
    assert vanish[1]["kl_base_tuned"] > 5 * vanish[0]["kl_base_tuned"]
    assert vanish[1]["js"] == pytest.approx(vanish[0]["js"], abs=1e-4)


# ---- 3 mechanics


def candidates(n=4, **columns):
    frame = positions([0.5] * n)
    base = [[1, 2, 3, 4, 5]] * n
    tuned = [[2, 1, 3, 4, 5]] * (n // 2) + [[2, 1, 9, 8, 7]] * (n - n // 2)
    more = {
        "tv_full": 0.4,
        "rank_base_of_tuned_top1": 2,
        "logp_base_of_tuned_top1": [math.log(0.2)] * (n - 1) + [math.log(0.005)],
        "top_ids_base": base,
        "top_ids_tuned": tuned,
        "gain_in_base_topk": [[0.1, 0.2, 0.4, 0.4, 0.4]] * n,
    }
    return analysis_mechanics.flat(frame.assign(**more).assign(**columns))


def test_overlap_rank_and_mass_by_hand():
    shifts = {"dapo": candidates()}
    row = analysis_mechanics.overlap_table(ONE, shifts).iloc[0]
    assert [row[f"k{k}"] for k in (1, 2, 3, 5)] == pytest.approx([0, 1, (1 + 2 / 3) / 2, 0.7])
    rank = analysis_mechanics.rank_table(ONE, shifts).iloc[0]
    assert (rank["top1"], rank["top2"], rank["base_prob_below_0.01"]) == (0, 1, 0.25)
    mass = analysis_mechanics.mass_table(ONE, shifts).iloc[0]
    assert (mass["mass_moved"], mass["gained_in_top2"]) == pytest.approx((0.4, 0.5))
    found, _ = analysis_mechanics.section_evidence(ONE, shifts, {})
    assert value(found, "overlap_rise") == pytest.approx(1 - (5 / 6 - 1))
    assert value(found, "gain_inside") == pytest.approx(1.0)
    assert value(found, "rank3") == 1.0 and value(found, "rank1") == 0.0
    assert measured(found, "rank3")["note"].startswith("at all positions 100%")


def test_overlap_against_python_sets():
    frame = made_up.shifts(problems=2)
    overlap = analysis_mechanics.flat(frame)
    for i in range(0, len(frame), 37):
        a, b = frame["top_ids_base"].iloc[i], frame["top_ids_tuned"].iloc[i]
        expected = [len(set(a[:k]) & set(b[:k])) / k for k in range(1, 11)]
        assert [overlap[f"k{k}"].iloc[i] for k in range(1, 11)] == pytest.approx(expected)


def test_evolution_by_hand():
    steps = {1: [0.05, 0.0, 0.2, 0.0], 2: [0.2, 0.0, 0.2, 0.0], 3: [0.3, 0.2, 0.3, 0.0]}
    frames = {s: positions(js) for s, js in steps.items()}
    table = analysis_mechanics.evolution_table(ONE, frames)
    assert list(table["support"]) == ["nucleus"] * 3 + ["full"] * 3
    table = table[table["support"] == "nucleus"]
    assert list(table["jaccard"]) == pytest.approx([1 / 3, 2 / 3, 1])
    assert list(table["share_gt_0.1"]) == [0.25, 0.5, 0.75]
    final = {"dapo": candidates().assign(js=0.5)}
    found, _ = analysis_mechanics.section_evidence(ONE, final, frames)
    assert value(found, "js_smallest_step") == pytest.approx(0.15 / 4)
    assert value(found, "jaccard_rise") == pytest.approx(1 / 3)
    assert value(found, "jaccard_late") == pytest.approx(0, abs=1e-12)
    # the 75th percentile goes from 0.05 to 0.3, the 95th from 0.2 to 0.3
    assert value(found, "p95_faster") == pytest.approx(math.log10(1.5) - math.log10(6))
    assert measured(found, "p99_faster")["note"].startswith("p75 x 6, p95 x 1.5, p99 x 1.5")


def test_a_later_start_is_compared_with_the_middle_of_such_responses():
    long, short = np.zeros(100), np.full(20, 0.6)
    long[5:10], long[30:70] = 0.4, 0.2

    def response(js, problem):
        return positions(js, problem=problem, position=range(len(js)), n_tokens=len(js))

    shifts = {"dapo": pd.concat([response(long, "long"), response(short, "short")])}
    found, _ = numbers.section_evidence(ONE, shifts)
    assert value(found, "later_start_ratio") == pytest.approx(2.0)
    profile = numbers.position_profile(ONE, shifts, "start")
    assert list(profile["x"]) == list(range(32))  # half of the responses have 20 to 31
    more = pd.concat([shifts["dapo"], response(short, "other")])
    profile = numbers.position_profile(ONE, {"dapo": more}, "start")
    assert list(profile["x"]) == list(range(20))


def test_growth_from_nothing_counts_from_the_floor():
    frames = {1: positions([0.0] * 4), 2: positions([0.0, 0.0, 0.0, 0.2])}
    found, _ = analysis_mechanics.section_evidence(ONE, {"dapo": candidates()}, frames)
    assert value(found, "p95_faster") == pytest.approx(math.log10(0.2 / 1e-6))


def test_checkpoints_must_share_their_positions():
    with pytest.raises(ValueError, match="other positions"):
        analysis_mechanics.evolution_table(ONE, {1: positions([0.1] * 4), 2: positions([0.1] * 6)})


def test_a_study_without_checkpoints_says_so():
    table = analysis_mechanics.evolution_table(ONE, {})
    assert (
        analysis_mechanics.say_evolution(ONE, table) == "This study has no checkpoints to follow."
    )


def test_claims_on_sft_are_not_asked_of_dpo():
    study = ONE.with_overrides(**{"models.sft-far.kind": "dpo"})
    js = np.array([0.3] * 4 + [0.0] * 16)
    shifts = {"dapo": positions(js), "sft-far": positions(np.where(js > 0, 0.3, 0.0))}
    found, _ = numbers.section_evidence(study, shifts)
    assert (
        "sft_density_ratio" not in set(found["quantity"]) and study.accuracy_samples("sft-far") == 4
    )
    right = {"dapo": [True, True, True, False], "sft-far": [True, False, False, False]}
    key = {"benchmark": "easy", "problem": list("aabb"), "sample": [0, 1, 0, 1]}
    answers = {model: pd.DataFrame(key | {"correct": own}) for model, own in right.items()}
    more = pd.DataFrame({"benchmark": "easy", "problem": list("ab"), "sample": 2, "correct": False})
    answers["dapo"] = pd.concat([answers["dapo"], more])  # which the control has no sample beside
    table = numbers.controls_table(study, numbers.sparsity_table(study, shifts), answers)
    assert list(table["samples"]) == [2, 2]
    assert list(table["kind"]) == ["rl", "dpo"] and list(table["accuracy"]) == [0.75, 0.25]
    assert list(table["share_gt_0.1"]) == [0.2, 0.2] and list(table["mean_js"]) == [0.06, 0.06]
    said = numbers.say_controls(study, table)
    assert said.startswith("SFT far: JS is above 0.1 at 20.0%") and "1.0 times the share of" in said
    assert "; it solves 25.0%" in said and "DAPO 75.0%" in said


# ---- 5 robustness


def test_support_table_by_hand():
    frame = positions([0.5, 0.5, 0.0, 0.0], js_full=[0.5, 0.005, 0.2, 0.0])
    row = analysis_robustness.support_table(ONE, {"dapo": frame}).iloc[0]
    names = ("both_high", "only_nucleus_high", "only_full_high", "nucleus_high_full_near_zero")
    assert [row[n] for n in names] == [0.25, 0.25, 0.25, 0.5]
    assert row["nucleus_zero"] == 0.5 and row["nucleus_high_full_high"] == 0.5
    assert row["full_median_at_nucleus_high"] == pytest.approx(0.2525)
    assert row["nuclei_differ_share_at_high"] == row["nuclei_differ_share"] == 0
    row = analysis_robustness.support_table(ONE, {"dapo": frame.assign(nucleus_base=[2, 1, 2, 2])})
    assert row["nuclei_differ_share_at_high"][0] == 0.5 and row["nuclei_differ_share"][0] == 0.75


def test_the_same_positions_at_another_top_p():
    here = positions(
        [0.5, 0.5, 0.0, 0.0], js_full=[0.0, 0.2, 0.2, 0.0], rank_base_of_tuned_top1=[1, 2, 3, 4]
    )
    wider = positions([0.3, 0.0, 0.0, 0.0]).sample(frac=1, random_state=0)
    table = analysis_robustness.top_p_table(STUDY, {0.7: here, 0.9: wider}).set_index("top_p")
    assert list(table.index) == [0.7, 0.9, 1.0]
    assert list(table["high"]) == [0.5, 0.25, 0.5] and list(table["near_zero"]) == [0.5, 0.75, 0.5]
    assert list(table["stays_high_share"]) == [1.0, 0.5, 0.5]
    assert list(table["top1_share_at_high"]) == [0.5, 1.0, 0.0]
    assert "50.00%" in analysis_robustness.say_top_p(STUDY, table.reset_index())


@pytest.mark.parametrize(
    "text, right",
    [
        ("so it is 1,234", 1), ("1234 it is", 1), ("5-1234", 1), ("it is -1234", 0), ("1234.5", 0),
        ("1234. So 5", 0), ("none", 0),
    ],
)  # fmt: skip
def test_the_last_number_is_judged_whatever_its_form(text, right, monkeypatch):
    problems = [Problem("p", "", "1234"), Problem("q", "", "Tom")]
    monkeypatch.setattr(analysis_robustness, "load_benchmark", lambda study, name: problems)
    frame = pd.DataFrame(
        {
            "benchmark": "easy", "problem": ["p", "p", "q"], "correct": False, "answer": [None, "1", "Tom"],
            "finish_reason": ["eos", "length", "eos"], "text": text,
        }
    )  # fmt: skip
    found = analysis_robustness.with_forms(ONE, frame)
    assert found["last_number"].tolist()[:2] == [right, 0] and np.isnan(found["last_number"][2])
    assert found["answered"].tolist() == [False, False, True]


@pytest.mark.parametrize(("own", "most"), [(None, 4), (5, 5)])
def test_base_and_rl_may_have_more_responses_for_pass_at_k(own, most):
    study = load_study("smoke").with_overrides(**{"samples.pass_at_k": own})
    asked = {m: {r.samples for r in some} for m, some in answer_requests(study).items()}
    assert asked == {
        "base": {most},
        "dapo": {most},
        "simplerl": {most},
        "sft-far": {2},
        "sft-near": {2},
    }


def test_form_and_pass_at_k_of_a_gap():
    problems = [("easy", str(i)) for i in range(4) for _ in range(4)]
    frame = pd.DataFrame(problems, columns=["benchmark", "problem"]).assign(sample=[0, 1, 2, 3] * 4)
    base = frame.assign(correct=[True, False, False, False] * 4, answered=[True, False] * 8)
    base["last_number"] = [1.0, 1.0, 0.0, 0.0] * 4
    tuned = frame.assign(correct=True, answered=True, last_number=1.0)
    answers = {"base": base, "dapo": tuned}
    gap = analysis_robustness.format_table(ONE, answers).iloc[0]
    assert [gap["gap"], gap["last_number_points"], gap["form_points"]] == [0.75, 0.5, 0.25]
    assert gap["k"] == 4 and gap["pass_points"] == 0
    table = analysis_robustness.answers_table(ONE, answers).set_index("model")
    assert table.loc["base", "accuracy"] == 0.25 and table.loc["base", "pass@4"] == 1
    assert (
        table.loc["base", "answered_share"] == 0.5
        and table.loc["base", "accuracy_last_number"] == 0.5
    )
    # on the samples that both have: base is right in its first of two
    few = answers | {"dapo": tuned[tuned["sample"] < 2]}
    gap = analysis_robustness.format_table(ONE, few).iloc[0]
    assert gap["k"] == 2 and gap["gap"] == 0.5 and gap["last_number_points"] == 0
    gap = analysis_robustness.format_table(ONE, answers).iloc[0]
    assert list(analysis_robustness.answers_table(ONE, few)["samples"]) == [4, 2]
    said = analysis_robustness.say_passes(ONE, table.reset_index(), pd.DataFrame([gap]))
    assert "it can hardly be more than sharpening" in said and "100.0%" in said


@pytest.mark.parametrize(
    ("base", "gap", "passes", "said"),
    [
        (0.7, (0.4, 0.3, 0.5), (0.02, -0.03, 0.05), "it sharpens what base can do."),
        (0.7, (0.4, 0.3, 0.5), (0.2, 0.1, 0.3), "it also solves what base does not."),
        (0.7, (0.4, 0.3, 0.5), (0.02, -0.06, 0.12), "whether it does more than sharpen"),
        (0.7, (0.4, 0.3, 0.5), (0.05, 0.02, 0.12), "whether it does more than sharpen"),
        (0.95, (0.4, 0.3, 0.5), (0.02, 0.0, 0.05), "can hardly be more than sharpening"),
        (0.7, (0.1, -0.1, 0.3), (0.2, 0.1, 0.3), "that it gains at all is not told"),
    ],
)
def test_more_than_sharpening_is_told_by_its_interval(base, gap, passes, said):
    row = {"pair": "DAPO", "model": "dapo", "k": 8}
    row |= columns_of("gap", gap) | columns_of("pass_points", passes)
    answers = pd.DataFrame({"model": ["base"], "pass@8": [base]})
    assert said in analysis_robustness.say_passes(ONE, answers, pd.DataFrame([row]))


def test_form_is_a_share_of_the_gap_where_answers_are_numbers():
    frame = pd.DataFrame(
        [(b, str(i), s) for b in ("easy", "hard") for i in range(4) for s in range(4)],
        columns=["benchmark", "problem", "sample"],
    )
    easy = frame["benchmark"] == "easy"
    base = frame.assign(correct=False, answered=True, last_number=np.where(easy, 0.0, np.nan))
    base.loc[easy & (frame["sample"] == 0), "last_number"] = 1.0  # right, in another form
    tuned = base.assign(
        correct=easy | (frame["sample"] == 0), last_number=np.where(easy, 1.0, np.nan)
    )
    gap = analysis_robustness.format_table(STUDY, {"base": base, "dapo": tuned})
    easy_row, hard_row, all_ = gap.to_dict("records")
    assert all_["gap"] == 0.625 and all_["judged_points"] == easy_row["judged_points"] == 1.0
    assert all_["last_number_points"] == 0.75 and all_["form_points"] == 0.25
    assert np.isnan(hard_row["judged_points"])
    moved = pd.DataFrame({"near_zero": [0.5, 0.6]})
    sources = [("Easy", 0.7), ("Hard", 0.2), ("all", 0.4)]
    by_source = pd.DataFrame(sources, columns=["benchmark", "nucleus_near_zero"])
    support = pd.DataFrame({"model": ["dapo"], "nucleus_high_full_high": [np.nan]})
    study = STUDY.with_overrides(**{"robustness.benchmark": "easy", "robustness.pair": "dapo"})
    said = analysis_robustness.say_holds(study, support, moved, gap, by_source)
    assert "25% is their form" in said and "on Easy 50.0% to 70.0% of positions" in said
    for both, only, text in ((0.1, 0.02, "is mostly the same in full: 90.0%"), (0.1, 0.3, "hangs on"),
                             (0.0, 0.0, "no other position is")):  # fmt: skip
        shares = {"nucleus_high_full_high": 0.9 * bool(both), "both_high": both}
        told = support.assign(only_full_high=only, **shares)
        assert text in analysis_robustness.say_holds(study, told, moved, gap, by_source)
    assert "+100.0 points" in analysis_robustness.say_form(STUDY, gap)


def test_trajectories_are_compared_on_the_samples_that_all_have():
    own = positions([0.5, 0.0] * 4).assign(sample=[0] * 4 + [1] * 4)
    table = analysis_robustness.source_table(ONE, "dapo", {"its own": own, "mixed": own[:4]})
    assert list(table["positions"]) == [4, 4]


def test_sampler_settings_vary_one_thing_at_a_time():
    settings = analysis_robustness.sampling_settings(STUDY)
    assert settings == [
        {"top_p": 0.7, "temperature": 1.0},
        {"top_p": 1.0, "temperature": 1.0},
        {"top_p": 0.7, "temperature": 0.6},
    ]


@pytest.mark.parametrize("full, expected", [(1, 1.0), (-1, -1.0), (0, math.nan)])
def test_rank_correlation_of_both_supports(full, expected):
    js = np.array([0.1, 0.2, 0.3, 0.4])
    frame = positions(js, js_full=0.5 + full * js**3)
    found = analysis_robustness.support_table(ONE, {"dapo": frame})["rank_correlation"].iloc[0]
    assert found == pytest.approx(expected, nan_ok=True)


def test_plan_covers_problems_of_all_frames():
    from tokenshift_utils.sections.common import study_bootstrap

    boot = study_bootstrap(
        STUDY, made_up.rollouts(0.5, problems=3), made_up.rollouts(0.5, problems=5)
    )
    assert isinstance(boot, Bootstrap) and len(boot.problems) == 10
