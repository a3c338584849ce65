"""Section 2 against answers worked out by hand on small made-up frames."""

import math

import made_up
import numpy as np
import pandas as pd
import pytest

from tokenshift_utils.report.bootstrap import Estimate
from tokenshift_utils.sections.cross_sampling import numbers as cross
from tokenshift_utils.sections.cross_sampling import rates as cross_sampling_rates
from tokenshift_utils.sections.cross_sampling import rules, settings, summary, swaps
from tokenshift_utils.sections.cross_sampling import single_token as single
from tokenshift_utils.sections.cross_sampling.rates import RateSearch
from tokenshift_utils.sections.cross_sampling.settings import Setting

STUDY = made_up.study()
ONE = made_up.study(
    **{
        "benchmarks": {"easy": {"path": "easy.jsonl", "label": "Easy"}},
        "robustness": None,
        "cross_sampling.pairs": ["dapo"],
        "cross_sampling.thresholds": [0.01, 0.1, 0.3],
    }
)


def measured(found, quantity, subject="dapo"):
    row = found[(found["quantity"] == quantity) & (found["subject"] == subject)]
    assert len(row) == 1, (quantity, subject)
    return row.iloc[0]


def value(found, quantity, subject="dapo"):
    return measured(found, quantity, subject)["value"]


# ---- settings and rates


def test_roles():
    assert settings.roles(STUDY, Setting("dapo", "forward", 0.1)) == ("base", "dapo")
    assert settings.roles(STUDY, Setting("dapo", "reverse", 0.1)) == ("dapo", "base")


def test_a_study_names_its_settings():
    assert len(settings.curve_settings(STUDY)) == 2 * 2 * 3
    assert len(settings.control_settings(STUDY, "switched")) == 2 * 2
    rule = settings.rule_settings(STUDY)
    assert len(rule) == 2 * 2 * (2 + 1 + 2 + 2) and len(set(rule)) == len(rule)
    assert Setting("simplerl", "reverse", 4.0, "first") in rule
    assert Setting("dapo", "forward", 0.1, budget=2) in rule
    put_in = settings.intervention_settings(STUDY)
    assert len(put_in) == 2 * 1 + 2 * 2 * 2 + 2 * 2 * 1
    assert {s.direction for s in put_in if s.gain} == {"forward"}
    assert Setting("sft-far", "reverse", 0.1) in put_in
    assert Setting("dapo", "forward", 0.01, insert="own") in put_in
    one = STUDY.with_overrides(**{"cross_sampling.rules.pairs": ["dapo"]})
    assert settings.rule_settings(one) == [s for s in rule if s.model == "dapo"]
    bare = {"rules": {}, "budgets": [], "controls": None, "null_thresholds": []}
    bare = {f"cross_sampling.{k}": v for k, v in bare.items()} | {
        "cross_sampling.extrapolation": None
    }
    assert settings.focus_settings(STUDY.with_overrides(**bare)) == []


def test_rates_of_the_random_controls():
    rule = pd.DataFrame({"n_tokens": [100, 300], "n_switched": [10, 30], "n_effective": [5, 15]})
    random = pd.DataFrame({"n_tokens": [400], "n_switched": [40], "n_effective": [4]})
    assert cross_sampling_rates.switched_rate(rule) == 0.1
    assert (
        cross_sampling_rates.effective_rate(rule, random) == 0.5
    )  # 5% wanted, one in ten effective
    assert cross_sampling_rates.effective_rate(rule, random.assign(n_effective=0)) == 1.0
    everywhere = pd.DataFrame({"n_tokens": [400], "n_switched": [400], "n_effective": [20]})
    # of switches 10% are effective at low rates and 5% at rate 1: 0.5 * (0.1 - 0.05 * 0.5) = 3.75%
    wanted = pd.DataFrame({"n_tokens": [800], "n_switched": [60], "n_effective": [30]})
    assert cross_sampling_rates.effective_rate(wanted, random, everywhere) == 0.5
    assert (
        cross_sampling_rates.effective_rate(wanted.assign(n_effective=80), random, everywhere)
        == 1.0
    )
    assert (
        cross_sampling_rates.effective_rate(wanted.assign(n_effective=0), random, everywhere) == 0.0
    )
    few = pd.DataFrame({"n_tokens": [90001], "n_switched": [7], "n_effective": [1]})
    assert cross_sampling_rates.switched_rate(few) == 7.778e-05  # four digits, not four decimals


def tried(search, share_of):
    """The rates that a search tries, and the search at its end."""
    rates = []
    while not search.done:
        rates.append(search.rate)
        search = search.told(share_of(search.rate))
    return rates, search


def test_search_ends_where_the_share_is_close_enough():
    rates, found = tried(RateSearch(0.04, 0.1, 0.03, 6), lambda rate: rate**2)
    assert rates == [0.1, 0.2] and found.rate == 0.2  # by a factor of two at most


def test_search_halves_once_it_has_the_rate_between_two():
    rates, found = tried(RateSearch(0.04, 0.5, 0.03, 6), lambda rate: rate**2)
    # 0.5 and 0.25 are too much; linear to 0.25 * 0.04 / 0.0625 = 0.16, too little; then halves
    assert rates == [0.5, 0.25, 0.16, 0.205, 0.1825, 0.1937]
    assert found.rate == 0.205 and found.left == 0  # the nearest, 5% off
    rates, _ = tried(found.again(0.1, 3), lambda rate: rate**2)
    assert rates == [0.205]


def test_search_gives_up_where_switching_everywhere_is_too_little():
    rates, found = tried(RateSearch(0.5, 0.6, 0.03, 6), lambda rate: 0.3 * rate)
    assert rates == [0.6, 1.0] and found.rate == 1.0
    rates, found = tried(RateSearch(0.0, 0.0, 0.03, 6), lambda rate: rate)
    assert rates == [0.0] and found.rate == 0.0


# ---- curves, controls, Table 1


def cross_case():
    study = ONE
    rollouts = {
        "base": made_up.exact_rollouts([0, 0, 0, 0]),
        "dapo": made_up.exact_rollouts([1, 1, 1, 0]),
    }
    runs = {}
    for eps, effective, forward, reverse in (
        (0.01, 20, [1, 1, 1, 1], [0, 0, 0, 0]),
        (0.1, 8, [1, 1, 1, 0], [1, 0, 0, 0]),
        (0.3, 2, [1, 0, 0, 0], [1, 1, 0, 0]),
    ):
        runs[Setting("dapo", "forward", eps)] = made_up.exact_runs(forward, effective)
        runs[Setting("dapo", "reverse", eps)] = made_up.exact_runs(reverse, effective)
    for match in ("switched", "effective"):
        for direction in ("forward", "reverse"):
            key = Setting("dapo", direction, 0.1, "random", match)
            runs[key] = made_up.exact_runs([1, 0, 0, 0], 8)
    return study, runs, rollouts


def test_curves_hold_shares_counts_and_levels():
    study, runs, rollouts = cross_case()
    table = cross.curve_table(study, runs, rollouts)
    row = table[(table["direction"] == "forward") & (table["threshold"] == 0.1)].iloc[0]
    assert (row["switched_share"], row["effective_share"]) == (0.16, 0.08)
    assert (row["switched_per_response"], row["effective_per_response"]) == (16, 8)
    assert (row["before"], row["after"], row["goal"]) == (0.0, 0.75, 0.75)
    reverse = table[(table["direction"] == "reverse") & (table["threshold"] == 0.3)].iloc[0]
    assert (reverse["before"], reverse["after"], reverse["goal"]) == (0.75, 0.5, 0.0)


def test_the_setting_within_the_budget_is_chosen_by_share_not_accuracy():
    study, runs, rollouts = cross_case()
    table = cross.curve_table(study, runs, rollouts)
    assert cross.within_budget(table, "dapo", "forward") == 0.1  # 0.01 replaces 20%
    shuffled = table.assign(after=table["after"].to_numpy()[::-1])
    assert cross.within_budget(shuffled, "dapo", "forward") == 0.1
    assert cross.within_budget(table, "dapo", "forward", [0.01]) is None
    shown = cross.budget_table(study, table)
    assert list(shown["threshold"]) == [0.1, 0.1] and list(shown["direction"]) == [
        "forward",
        "reverse",
    ]


def test_cross_evidence_by_hand():
    study, runs, rollouts = cross_case()
    table = cross.curve_table(study, runs, rollouts)
    found = cross.cross_evidence(study, runs, rollouts, table)
    assert value(found, "recovered") == pytest.approx(1.0)
    assert value(found, "lost") == pytest.approx(2 / 3)
    assert value(found, "random_gap_switches") == pytest.approx(0.5)
    assert value(found, "random_gap_effective") == pytest.approx(0.5)
    assert value(found, "best_mixed_gain") == pytest.approx(0.25)


def test_nothing_is_recovered_where_there_is_nothing_to_recover():
    study, runs, rollouts = cross_case()
    rollouts["dapo"] = rollouts["base"]
    table = cross.curve_table(study, runs, rollouts)
    row = measured(cross.cross_evidence(study, runs, rollouts, table), "recovered")
    assert math.isnan(row["value"]) and "do not differ" in row["note"]


def test_controls_are_matched_within_a_tenth():
    study, runs, rollouts = cross_case()
    rule = Setting("dapo", "forward", 0.1)
    runs[rule] = made_up.exact_runs([1, 1, 1, 0], 10)
    for effective, flag in ((8, "not matched"), (9, "yes"), (11, "yes"), (12, "not matched")):
        for match in ("switched", "effective"):
            control = rule._replace(rule="random", match=match)
            other = made_up.exact_runs([1, 0, 0, 0], 10)
            other[f"n_{match}"] = effective * (2 if match == "switched" else 1)
            table = cross.curve_table(study, runs | {control: other}, rollouts)
            row = table[(table["match"] == match) & (table["direction"] == "forward")].iloc[0]
            assert row["matched"] == flag, (match, effective)
    assert set(table[table["rule"] == "js"]["matched"]) == {""}


def test_a_control_that_is_not_matched_is_no_evidence():
    study, runs, rollouts = cross_case()
    runs[Setting("dapo", "forward", 0.1, "random", "effective")] = made_up.exact_runs([0], 4)
    table = cross.curve_table(study, runs, rollouts)
    found = cross.cross_evidence(study, runs, rollouts, table)
    row = measured(found, "random_gap_effective")
    assert math.isnan(row["value"]) and "not matched" in row["note"]
    assert value(found, "random_gap_switches") == pytest.approx(0.5)
    assert "not matched" in cross.say_controls(study, table)


def test_switching_everywhere_is_no_setting_within_the_budget():
    study, runs, rollouts = cross_case()
    runs[Setting("dapo", "forward", -1.0)] = made_up.exact_runs([1, 1, 1, 1], 9)
    table = cross.curve_table(study, runs, rollouts)
    assert cross.within_budget(table, "dapo", "forward") == 0.1
    assert cross.budget_setting(study, table, "dapo", "forward").threshold == 0.1
    assert "Switching every position replaces 9.0%" in cross.say_curves(study, table)
    assert settings.threshold_name(-1.0) == "every position switched"


# ---- summaries


def area(x, y, other_x, other_y):
    points = (np.array([values], dtype=float) for values in (x, y, other_x, other_y))
    return tuple(float(v[0]) for v in summary.area_between(*points))


def reaching(x, y, level):
    return float(summary.reaching_share(np.array([x]), np.array([y], dtype=float), level)[0])


def test_area_between_two_curves():
    assert area([0, 0.1], [0, 1], [0, 0.2], [0, 1]) == pytest.approx((0.25, 0.1))
    # up to 0.1: 0.05 * 0.4 + 0.05 * (0.8 + 0.84) / 2 = 0.061, less 0.01, over 0.1
    assert area([0.3, 0, 0.05], [1, 0, 0.8], [0, 0.1], [0, 0.2]) == pytest.approx((0.51, 0.1))
    assert area([0, 0.1], [0, 1], [0, 0.1], [0, 1]) == (0.0, 0.1)
    assert math.isnan(area([0, 0], [0.5, 0.7], [0, 0.1], [0, 1])[0])


def test_points_of_one_share_are_averaged():
    assert area([0, 0, 0.1], [0, 0.2, 0.3], [0, 0.1], [0, 0]) == pytest.approx((0.2, 0.1))
    assert reaching([0, 0, 0.1], [0, 0.2, 0.3], 0.2) == pytest.approx(0.05)


def test_every_curve_is_measured_by_itself():
    x = np.array([[0.0, 0.1], [0.2, 0.0]])
    y = np.array([[0.0, 1.0], [1.0, 0.5]])
    other = np.array([[0.0, 0.2], [0.0, 0.1]])
    found, end = summary.area_between(x, y, other, 0 * other)
    assert list(found) == pytest.approx([0.5, 0.625]) and list(end) == [0.1, 0.1]
    assert list(summary.reaching_share(x, y, 0.75)) == pytest.approx([0.075, 0.1])


def test_smallest_share_that_reaches_a_level():
    x, y = [0.0, 0.1, 0.2, 0.3], [0.0, 0.5, 0.4, 1.0]
    assert reaching(x, y, 0.75) == pytest.approx(0.25)  # from 0.5, the largest so far
    assert reaching(x, y, 0.25) == pytest.approx(0.05)
    assert reaching(x, y, 0.5) == pytest.approx(0.1)
    assert reaching(x, y, 1.1) == math.inf
    assert reaching(x, y, 0.0) == 0.0


def row_of(table, direction):
    return table[table["direction"] == direction].iloc[0]


def test_summary_by_hand():
    study, runs, rollouts = cross_case()
    table = summary.summary_table(study, runs, rollouts)
    forward, reverse = row_of(table, "forward"), row_of(table, "reverse")
    # JS through (0, 0), (.02, .25), (.08, .75), (.2, 1); random to (.08, .25); gap .75
    assert forward["lead_over_random"] == pytest.approx((0.0325 - 0.01) / 0.08 / 0.75)
    assert forward["up_to_effective_share"] == 0.08
    assert forward["share_for_95"] == pytest.approx(0.02 + 0.06 * (0.95 - 1 / 3) / (2 / 3))
    # JS through (0, .75), (.02, .5), (.08, .25), (.2, 0); random to (.08, .25); gap -.75
    assert reverse["lead_over_random"] == pytest.approx((0.035 - 0.04) / 0.08 / -0.75)
    assert reverse["share_for_95"] == pytest.approx(0.08 + 0.12 * (0.95 - 2 / 3) * 3)
    assert list(table["reaches_95"]) == ["yes", "yes"]
    # all problems are alike, so every resample gives the same
    for name in ("lead_over_random", "share_for_95"):
        assert forward[f"{name}_low"] == pytest.approx(forward[name])
        assert forward[f"{name}_high"] == pytest.approx(forward[name])
    assert "recovers 95%" in summary.say_summary(study, table)


def test_both_curves_end_where_every_position_is_switched():
    study, runs, rollouts = cross_case()
    runs[Setting("dapo", "forward", -1.0)] = made_up.exact_runs([1, 1, 1, 0], 25)
    row = row_of(summary.summary_table(study, runs, rollouts), "forward")
    js = 0.02 * 0.125 + 0.06 * 0.5 + 0.12 * 0.875 + 0.05 * 0.875
    random = 0.08 * 0.125 + 0.17 * 0.5
    assert row["lead_over_random"] == pytest.approx((js - random) / 0.25 / 0.75)
    assert row["up_to_effective_share"] == 0.25


def test_not_reached_is_a_result():
    study, runs, rollouts = cross_case()
    for setting in [s for s in runs if s.rule == "js" and s.direction == "forward"]:
        runs[setting] = made_up.exact_runs([1, 0, 0, 0], 5)
    table = summary.summary_table(study, runs, rollouts)
    row = row_of(table, "forward")
    assert row["reaches_95"] == "not reached" and row["share_for_95"] == math.inf
    assert "no share of tokens tried recovers 95%" in summary.say_summary(study, table)


def test_resamples_without_a_gap_are_left_out():
    draws = np.array([0.5] * 39 + [0.0])
    gap, before = Estimate(0.5, draws), Estimate(0.0, 0 * draws)
    rows = np.ones((41, 1))
    curve = summary.Curve(rows * [0.0, 0.1], rows * [0.0, 0.5])
    assert summary.share_to_reach(curve, before, gap) == pytest.approx((0.095, 0.095, 0.095))
    few = Estimate(0.5, np.where(np.arange(40) < 10, 0.0, 0.5))
    value, low, high = summary.share_to_reach(curve, before, few)
    assert value == pytest.approx(0.095) and math.isnan(low) and math.isnan(high)


def test_summary_without_gap_or_controls_says_so():
    study, runs, rollouts = cross_case()
    rule = {s: frame for s, frame in runs.items() if s.rule == "js"}
    table = summary.summary_table(study, rule, rollouts)
    assert set(table["note"]) == {"no random control"} and np.isfinite(table["share_for_95"]).all()
    table = summary.summary_table(study, runs, rollouts | {"dapo": rollouts["base"]})
    assert table["lead_over_random"].isna().all()
    assert "do not differ" in summary.say_summary(study, table)


def test_summaries_are_computed_again_in_every_resample():
    study, runs, rollouts = cross_case()
    rng = np.random.default_rng(0)
    for setting, frame in runs.items():
        noise = rng.random(len(frame)) < 0.3
        runs[setting] = frame.assign(
            correct=np.where(noise, 1 - frame["correct"], frame["correct"]),
            n_effective=frame["n_effective"] + rng.integers(0, 3, len(frame)),
        )
    table = summary.summary_table(study, runs, rollouts)
    for name in ("lead_over_random", "share_for_95"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
    assert (table["lead_over_random_low"] < table["lead_over_random_high"]).all()


# ---- rules and interventions


def test_rules_against_js_by_hand():
    study, runs, rollouts = cross_case()
    forward = {s: f for s, f in runs.items() if s.direction == "forward" and s.match != "switched"}
    forward[Setting("dapo", "forward", 0.2, "kl")] = made_up.exact_runs([1, 1, 1, 0], 4)
    forward[Setting("dapo", "forward", 0.1, budget=1)] = made_up.exact_runs([1, 0, 0, 0], 2)
    table = rules.rule_table(study, forward, rollouts)
    assert list(table["rule"]) == [
        *["JS"] * 3, "random positions", "KL(primary || other)", "first n JS switches"
    ]  # fmt: skip
    assert list(table["budget"]) == [""] * 5 + ["1"]
    found = rules.rule_summary(study, forward, rollouts).set_index("rule")
    # JS at .04 is .25 + .5 / 3; KL goes straight to .75
    js = 0.02 * 0.125 + 0.02 * (0.25 + 0.5 / 6)
    kl = found.loc["KL(primary || other)"]
    assert kl["js_lead"] == pytest.approx((js - 0.04 * 0.375) / 0.04 / 0.75)
    assert kl["share_for_95"] == pytest.approx(0.95 * 0.04)
    assert found.loc["first n JS switches", "js_lead"] == pytest.approx(0)
    assert math.isnan(found.loc["JS", "js_lead"]) and found.loc["JS", "settings"] == 3
    said = rules.say_rules(study, found.reset_index())
    assert "ahead of random positions" in said and "behind KL(primary || other)" in said


def test_interventions_name_whose_tokens_are_put_in():
    study, runs, rollouts = cross_case()
    rollouts["sft-far"] = made_up.exact_rollouts([0, 0, 1, 1])
    runs = {s: frame for s, frame in runs.items() if s.rule == "js"}
    runs[Setting("sft-far", "reverse", 0.1)] = made_up.exact_runs([0, 0, 0, 1], 3)
    runs[Setting("dapo", "forward", 0.1, insert="own")] = made_up.exact_runs([0, 0, 0, 1], 3)
    more = Setting("dapo", "forward", 0.1, insert="extrapolated", gain=0.5)
    runs[more] = made_up.exact_runs([1, 1, 1, 1], 3)
    table = rules.intervention_table(study, runs, rollouts)
    assert list(table["tokens_of"])[-3:] == [
        "Base", "null: own token, other luck", "DAPO extrapolated, g = 0.5"
    ]  # fmt: skip
    assert list(table["change"])[-3:] == [-0.25, 0.25, 1.0]
    null = table[table["insert"] == "own"].iloc[0]
    assert null["effective_per_response"] == 3
    said = rules.say_interventions(study, table)
    assert "DAPO, forward, JS > 0.1, the primary's own token drawn again: 3 tokens" in said


# ---- single tokens


def test_single_token_effects_by_hand():
    records = pd.DataFrame(
        [
            ("p", 0, 0.0, 0.1, 90, 0.0, False, 0.0),
            ("q", 0, 0.0, 0.1, 90, 0.02, False, 0.0),
            ("p", 1, 0.1, 0.7, 10, 0.2, False, 0.0),
            ("q", 1, 0.1, 0.7, 10, 0.4, True, 0.5),
        ],
        columns=["problem", "stratum", "stratum_low", "stratum_high", "stratum_positions", "js",
                 "effective", "effect"],
    )  # fmt: skip
    records = records.assign(
        primary="base", intervention="dapo", direction="forward", benchmark="easy", sample=0
    )
    table = single.effect_table(STUDY, records).set_index("js_stratum")
    assert list(table.index) == ["0 to 0.1", "0.1 to 0.7", "all"]
    assert list(table["effect"]) == pytest.approx([0.0, 0.25, 0.025])
    assert list(table["equal_tokens"]) == pytest.approx([1.0, 0.5, 0.95])
    assert math.isnan(table["effect_different"].iloc[0])
    assert list(table["effect_different"])[1:] == pytest.approx([0.5, 0.5])
    assert list(table["decisive"]) == pytest.approx([0.0, 0.5, 0.05])
    assert list(table["js"]) == pytest.approx([0.01, 0.3, 0.9 * 0.01 + 0.1 * 0.3])
    assert list(table["positions"]) == [2, 2, 4] and list(table["pool"]) == [90, 10, 100]
    low, high = table.loc["0.1 to 0.7", ["effect_low", "effect_high"]]
    assert (low, high) == (0.0, 0.5)  # problem p alone, and problem q alone
    assert "+25.0 points" in single.say_effects(table.reset_index())


def test_a_study_without_single_tokens_says_so():
    table = single.effect_table(STUDY, pd.DataFrame())
    assert single.say_effects(table) == "This study asks for no effects of single tokens."


# ---- swaps


def test_swaps_are_counted_among_effective_switches():
    rows = [("easy", "p", 1, 2, True), ("easy", "p", 1, 2, True), ("easy", "q", 1, 2, True)]
    rows += [("easy", "p", 3, 13, True), ("easy", "p", 2, 2, False)]
    names = ["benchmark", "problem", "token_primary", "token_intervention", "effective"]
    frame = pd.DataFrame(rows, columns=names)
    table = swaps.swap_table(STUDY, {("dapo", "forward", 0.1): frame}, made_up.TEXTS.get, top=2)
    assert table[["written", "put_in"]].to_numpy().tolist() == [["'1'", "'2'"], ["'3'", "'\\n'"]]
    assert list(table["count"]) == [3, 1] and list(table["share"]) == [0.75, 0.25]
    assert list(table["problems"]) == [2, 1]
    assert "most often '2' for '1' (75.0%" in swaps.say_swaps(table)
    none = swaps.swap_table(STUDY, {("dapo", "forward", 0.1): frame.tail(1)}, str)
    assert none.empty and swaps.say_swaps(none) == "No token was effectively replaced."


def swap_case():
    key = [("easy", "p0", 0), ("easy", "p0", 1), ("hard", "h0", 0), ("hard", "h1", 0)]

    def frame(correct, effective=0):
        rows = [(*k, c, n) for k, c, n in zip(key, correct, np.broadcast_to(effective, 4))]
        names = ["benchmark", "problem", "sample", "correct", "n_effective"]
        return pd.DataFrame(rows, columns=names)

    return frame


def picked(frame, own, mixed, effective, direction="forward", count=3):
    own = frame(own).drop(columns="n_effective")
    rows = {"primary": own, "mixed": frame(mixed, effective), "intervention": own}
    switches = frame([True] * 4).assign(position=3)
    return swaps.pick_examples(rows, switches, dict.fromkeys(rows, "x"), direction, count)


def test_examples_are_turned_by_the_fewest_replacements():
    frame = swap_case()
    found = picked(frame, [False] * 4, [True] * 4, [1, 1, 1, 3])
    assert [example["title"] for example in found] == [
        "forward: easy, problem p0, sample 0, 1 token effectively replaced",
        "forward: hard, problem h0, sample 0, 1 token effectively replaced",
        "forward: easy, problem p0, sample 1, 1 token effectively replaced",
    ]
    _names, rows, switches = zip(*found[0]["columns"])
    assert switches[0] is None and list(switches[1]["problem"]) == ["p0"] and switches[2] is None
    assert rows[1]["correct"] and not rows[0]["correct"]
    assert swaps.say_shown(found) == ""


def test_examples_fall_back_to_more_replacements_and_say_so():
    frame = swap_case()
    found = picked(frame, [False, False, True, False], [True] * 4, [4, 2, 1, 0])
    assert [example["replaced"] for example in found] == [2, 4]
    assert "up to 4 effective replacements" in swaps.say_shown(found)
    assert "no response turns" in swaps.say_shown(picked(frame, [True] * 4, [True] * 4, 1)).lower()


def test_in_reverse_a_swap_turns_right_into_wrong():
    frame = swap_case()
    found = picked(frame, [True, True, False, True], [False, True, False, False], 1, "reverse")
    assert [example["columns"][1][1].name for example in found] == [
        ("easy", "p0", 0),
        ("hard", "h1", 0),
    ]


def test_how_often_one_swap_decides():
    frame = swap_case()
    rows = swaps.turned(
        frame([False, False, True, False]),
        frame([True, False, True, True], [1, 1, 1, 2]),
        "forward",
    )
    assert list(rows["turns"]) == [True, False, False, True]
    said = swaps.say_deciding(STUDY, rows, "forward")
    assert "could turn (2), 50%" in said
    assert "no response that could turn" in swaps.say_deciding(STUDY, rows.head(0), "forward")
