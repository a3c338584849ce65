"""Section 2 against answers worked out by hand on small made-up frames."""

import math

import made_up
import numpy as np
import pandas as pd
import pytest
from made_up import measured, value

from tokenshift_utils.report.bootstrap import Estimate
from tokenshift_utils.sections import overview
from tokenshift_utils.sections.cross_sampling import numbers as cross
from tokenshift_utils.sections.cross_sampling import records, rules, settings, summary, swaps
from tokenshift_utils.sections.cross_sampling import single_token as single
from tokenshift_utils.sections.cross_sampling.decisions import decides
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


# ---- settings


def test_roles():
    assert settings.roles(STUDY, Setting("dapo", "forward", 0.1)) == ("base", "dapo")
    assert settings.roles(STUDY, Setting("dapo", "reverse", 0.1)) == ("dapo", "base")


def test_a_study_names_its_settings():
    curves = settings.curve_settings(STUDY)
    assert len(curves) == len(set(curves)) == 2 * 2 * (3 + 1 + 2)  # JS, every position, random
    assert Setting("dapo", "forward", -1.0) in curves
    assert Setting("simplerl", "reverse", 0.6, "random") in curves
    always = STUDY.with_overrides(**{"cross_sampling.thresholds": [-2, 0.1]})
    assert Setting("dapo", "forward", -1.0) not in settings.curve_settings(always)
    rule = settings.rule_settings(STUDY)
    assert len(rule) == 2 * 2 * (2 + 1 + 2 + 2) and len(set(rule)) == len(rule)
    assert Setting("simplerl", "reverse", 4.0, "first") in rule
    assert Setting("dapo", "forward", 0.1, budget=2) in rule
    put_in = settings.intervention_settings(STUDY)
    assert len(put_in) == 2 * 2 + 2 * 2 * 2 + 2 * 2 * 1
    assert {s.direction for s in put_in if s.gain} == {"forward"}
    assert Setting("sft-far", "reverse", 0.1) in put_in
    assert Setting("sft-far", "reverse", -1.0) in put_in
    assert Setting("dapo", "forward", 0.01, insert="own") in put_in
    one = STUDY.with_overrides(**{"cross_sampling.rules.pairs": ["dapo"]})
    assert settings.rule_settings(one) == [s for s in rule if s.model == "dapo"]
    bare = {"rules": {}, "budgets": [], "controls": None, "null_thresholds": []}
    bare = {f"cross_sampling.{k}": v for k, v in bare.items()} | {
        "cross_sampling.extrapolation": None
    }
    assert settings.focus_settings(STUDY.with_overrides(**bare)) == []


def test_single_tokens_are_asked_for_of_the_pairs_named():
    assert len(records.single_token_requests(STUDY)) == 4
    settings_of = STUDY.cross_sampling.single_token.model_dump() | {"pairs": ["dapo"]}
    one = STUDY.with_overrides(**{"cross_sampling.single_token": settings_of})
    assert list(records.single_token_requests(one)) == [("base", "dapo"), ("dapo", "base")]


# ---- curves, controls, Table 1


def cross_case():
    """Every problem alike. Of 100 tokens full switching replaces 20, which makes all of the gap.

    Curves (replaced, share of the gap), the same both ways: JS (.1, 1/3), (.4, 2/3), (.8, 1);
    random positions (.2, 0), (.5, 1/3).
    """
    study = ONE
    rollouts = {
        "base": made_up.exact_rollouts([0, 0, 0, 0]),
        "dapo": made_up.exact_rollouts([1, 1, 1, 0]),
    }
    runs = {}
    for threshold, rule, effective, forward, reverse in (
        (-1.0, "js", 20, [1, 1, 1, 0], [0, 0, 0, 0]),
        (0.01, "js", 16, [1, 1, 1, 0], [0, 0, 0, 0]),
        (0.1, "js", 8, [1, 1, 0, 0], [1, 0, 0, 0]),
        (0.3, "js", 2, [1, 0, 0, 0], [1, 1, 0, 0]),
        (0.2, "random", 4, [0, 0, 0, 0], [1, 1, 1, 0]),
        (0.6, "random", 10, [1, 0, 0, 0], [1, 1, 0, 0]),
    ):
        runs[Setting("dapo", "forward", threshold, rule)] = made_up.exact_runs(forward, effective)
        runs[Setting("dapo", "reverse", threshold, rule)] = made_up.exact_runs(reverse, effective)
    return study, runs, rollouts


def evidence_of(study, runs, rollouts):
    mixed = cross.MixtureEstimates(study, runs, rollouts)
    return cross.cross_evidence(
        mixed,
        cross.curve_table(mixed),
        summary.summary_table(mixed),
        summary.matched_table(mixed),
    )


def test_curves_hold_shares_counts_and_levels():
    study, runs, rollouts = cross_case()
    table = cross.curve_table(cross.MixtureEstimates(study, runs, rollouts))
    row = table[(table["direction"] == "forward") & (table["threshold"] == 0.1)].iloc[0]
    assert (row["switched_share"], row["effective_share"]) == (0.16, 0.08)
    assert (row["replaced"], row["effective_per_response"]) == (0.4, 8)
    assert (row["before"], row["after"], row["goal"]) == (0.0, 0.5, 0.75)
    assert row["gap_share"] == pytest.approx(2 / 3)
    reverse = table[(table["direction"] == "reverse") & (table["threshold"] == 0.3)].iloc[0]
    assert (reverse["before"], reverse["after"], reverse["goal"]) == (0.75, 0.5, 0.0)
    assert reverse["gap_share"] == pytest.approx(1 / 3)


def test_a_mixture_is_compared_with_own_responses_of_the_same_samples():
    study, runs, rollouts = cross_case()
    few = Setting("dapo", "forward", 0.2, "random")
    runs[few] = runs[few][runs[few]["sample"].isin([2, 3])]
    rollouts["dapo"] = rollouts["dapo"].sample(frac=1, random_state=0)
    table = cross.curve_table(cross.MixtureEstimates(study, runs, rollouts))
    row = table[(table["direction"] == "forward") & (table["rule"] == "random")].iloc[0]
    assert (row["responses"], row["before"], row["goal"]) == (12, 0.0, 0.5)


def test_the_setting_within_the_budget_is_chosen_by_share_not_accuracy():
    study, runs, rollouts = cross_case()
    table = cross.curve_table(cross.MixtureEstimates(study, runs, rollouts))
    assert cross.within_budget(table, "dapo", "forward") == 0.1  # 0.01 replaces 16%
    shuffled = table.assign(after=table["after"].to_numpy()[::-1])
    assert cross.within_budget(shuffled, "dapo", "forward") == 0.1
    shown = cross.budget_table(study, table)
    assert list(shown["threshold"]) == [0.1, 0.1]
    assert list(shown["direction"]) == ["forward", "reverse"]
    assert "This is 40% of all that can be replaced" in (
        cross.say_budget(shown).replace("40% [40, 40]", "40%")
    )


def test_switching_everywhere_is_no_setting_within_the_budget():
    study, runs, rollouts = cross_case()
    runs = {s: frame.assign(n_effective=frame["n_effective"] / 4) for s, frame in runs.items()}
    table = cross.curve_table(cross.MixtureEstimates(study, runs, rollouts))
    assert cross.within_budget(table, "dapo", "forward") == 0.01
    assert cross.budget_setting(study, table, "dapo", "forward").level == 0.01
    assert settings.threshold_name(-1.0) == "every position switched"


def test_cross_evidence_by_hand():
    study, *case = cross_case()
    study = study.with_overrides(**{"statistics.resamples": 2000})  # Holm's least p is below 0.025
    found = evidence_of(study, *case)
    assert value(found, "recovered") == pytest.approx(2 / 3)
    assert value(found, "lost") == pytest.approx(2 / 3)
    for direction in ("forward", "reverse"):
        assert value(found, f"{direction}_share_for_95") == pytest.approx(0.74)
        assert value(found, f"{direction}_lead_at_95") == pytest.approx(0.95 - 0.32 - 1 / 3)
        assert value(found, f"{direction}_lead_over_random") == pytest.approx(0.7 - 0.05 - 1 / 3)
    # of (.1, 1/3), (.4, 2/3) and (.8, 1), the last is least ahead: 1 - (1/3 + .6 * 2/3)
    smallest = measured(found, "smallest_lead_effective")
    assert smallest["value"] == pytest.approx(1 - 1 / 3 - 0.4)
    assert "6 of 6" in smallest["note"]
    assert value(found, "best_mixed_gain") == 0.0


def test_nothing_is_recovered_where_there_is_nothing_to_recover():
    study, runs, rollouts = cross_case()
    rollouts["dapo"] = rollouts["base"]
    row = measured(evidence_of(study, runs, rollouts), "recovered")
    assert math.isnan(row["value"]) and "do not differ" in row["note"]
    said = summary.say_summary(summary.summary_table(cross.MixtureEstimates(study, runs, rollouts)))
    assert "do not differ in accuracy" in said


def test_a_study_without_random_positions_says_so():
    study, runs, rollouts = cross_case()
    runs = {s: frame for s, frame in runs.items() if s.rule == "js"}
    found = evidence_of(study, runs, rollouts)
    assert "no random control" in measured(found, "smallest_lead_effective")["note"]
    assert "no random control" in measured(found, "forward_lead_at_95")["note"]
    assert value(found, "forward_share_for_95") == pytest.approx(0.74)
    table = summary.matched_table(cross.MixtureEstimates(study, runs, rollouts))
    assert summary.say_matched(table) == "There are no random positions to compare with, or no gap."


def test_leads_are_on_the_samples_that_both_have():
    study, runs, rollouts = cross_case()
    few = evidence_of(study, runs, rollouts)
    # the JS rule and both models have four samples more, in which JS > 0.3 does all
    rollouts = {
        "base": made_up.exact_rollouts([0] * 8),
        "dapo": made_up.exact_rollouts([1, 1, 1, 0, 1, 1, 1, 1]),
    }
    for setting, frame in runs.items():
        if setting.rule == "js":
            own = list(frame.loc[frame["problem"] == "p0", "correct"])
            effective = frame["n_effective"].iloc[0]
            runs[setting] = made_up.exact_runs(
                own + [setting.direction == "forward"] * 4, effective
            )
    many = evidence_of(study, runs, rollouts)
    for lead in ("forward_lead_at_95", "reverse_lead_at_95", "forward_lead_over_random",
                 "reverse_lead_over_random", "smallest_lead_effective",
                 "smallest_lead_switched"):  # fmt: skip
        assert value(many, lead) == pytest.approx(value(few, lead))
    # what is not compared is on all samples
    mixed = cross.MixtureEstimates(study, runs, rollouts)
    curves = cross.curve_table(mixed).groupby("rule")["responses"].unique()
    assert list(curves["js"]) == [48] and list(curves["random"]) == [24]
    at = cross.curve_table(mixed).set_index(["direction", "rule", "threshold"])
    assert at.loc[("forward", "js", 0.1), "gap_share"] == pytest.approx(6 / 7)
    assert at.loc[("forward", "random", 0.2), "replaced"] == pytest.approx(0.2)
    assert mixed.alike.alike is mixed.alike is not mixed
    found = rules.rule_summary(mixed).set_index(["direction", "rule"])
    js = rules.rule_summary(cross.MixtureEstimates(*cross_case())).set_index(["direction", "rule"])
    pd.testing.assert_frame_equal(found, js)
    assert set(rules.rule_table(mixed)["responses"]) == {24}
    assert set(rules.intervention_table(mixed)["responses"]) == {24}


def test_the_smallest_of_several_holds_at_holms_levels():
    draws = np.linspace(-0.1, 0.9, 1001)
    clear, weak = Estimate(0.9, draws + 0.5), Estimate(0.4, draws)
    p, (smallest, low, high) = cross.smallest_of([weak, clear])
    assert p == pytest.approx([102 / 1002, 2 / 1002]) and smallest == 0.4
    ends = weak.interval(1)[0], weak.interval(2)[1]  # Holm's step; Bonferroni
    assert (low, high) == pytest.approx(ends, abs=1e-9)
    p, triple = cross.smallest_of([weak, Estimate(math.nan, draws * math.nan)])
    assert math.isnan(triple[0])


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
    table = summary.summary_table(cross.MixtureEstimates(study, runs, rollouts))
    for direction in ("forward", "reverse"):
        row = row_of(table, direction)
        # JS reaches .95 between (.4, 2/3) and (.8, 1); random positions between (.5, 1/3) and (1, 1)
        assert row["share_for_95"] == pytest.approx(0.74)
        assert row["random_at_95"] == pytest.approx(1 / 3 + 0.32)
        # all problems are alike, so every resample gives the same
        for name in ("lead_over_random", "share_for_95"):
            assert row[f"{name}_low"] == pytest.approx(row[name])
            assert row[f"{name}_high"] == pytest.approx(row[name])
    assert "recovering 95% of the gap takes 74%" in summary.say_summary(table)


def test_the_oracle_takes_the_fewest_replacements_among_all_mixtures():
    study, runs, rollouts = cross_case()
    # sample 0 turns with 2 replacements, 1 with 8, 2 with 16; sample 3 never
    table = summary.oracle_table(cross.MixtureEstimates(study, runs, rollouts))
    forward = table[table["direction"] == "forward"]
    assert list(forward["replaced"]) == pytest.approx([0, 0.5 / 20, 2.5 / 20, 6.5 / 20])
    assert list(forward["gap_share"]) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    oracle = row_of(
        summary.summary_table(cross.MixtureEstimates(study, runs, rollouts)), "forward"
    )["oracle_for_95"]
    assert oracle == pytest.approx(0.125 + 0.2 * (0.95 - 2 / 3) * 3)
    other = {
        Setting("dapo", "forward", 1.0, "first"): made_up.exact_runs([0, 1, 0, 0], 1),
        Setting("dapo", "forward", 0.1, insert="own"): made_up.exact_runs([0, 0, 1, 1], 1),
    }
    table = summary.oracle_table(cross.MixtureEstimates(study, runs, rollouts), other)
    forward = table[table["direction"] == "forward"]  # one's own tokens are no replacement by RL's
    assert list(forward["replaced"]) == pytest.approx([0, 0.25 / 20, 0.75 / 20, 4.75 / 20])


def test_not_reached_is_a_result():
    study, runs, rollouts = cross_case()
    for setting in [s for s in runs if s.rule == "js" and s.direction == "forward"]:
        runs[setting] = made_up.exact_runs([1, 0, 0, 0], 5)
    table = summary.summary_table(cross.MixtureEstimates(study, runs, rollouts))
    row = row_of(table, "forward")
    assert row["share_for_95"] == math.inf and math.isnan(row["random_at_95"])
    assert "more than all" in summary.say_summary(table)


def test_resamples_without_a_gap_are_left_out():
    rows = np.ones((41, 1))
    curve = summary.Curve(rows * [0.0, 0.1], rows * [0.0, 1.0])
    curve.y[-1] = np.nan
    assert summary.share_to_reach(curve) == pytest.approx((0.095, 0.095, 0.095))
    curve.y[10:] = np.nan
    value, low, high = summary.share_to_reach(curve)
    assert value == pytest.approx(0.095) and math.isnan(low) and math.isnan(high)


def test_summaries_are_computed_again_in_every_resample():
    study, runs, rollouts = cross_case()
    rng = np.random.default_rng(0)
    for setting, frame in runs.items():
        noise = rng.random(len(frame)) < 0.3
        runs[setting] = frame.assign(
            correct=np.where(noise, 1 - frame["correct"], frame["correct"]),
            n_effective=frame["n_effective"] + rng.integers(0, 3, len(frame)),
        )
    table = summary.summary_table(cross.MixtureEstimates(study, runs, rollouts))
    for name in ("lead_over_random", "share_for_95"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
    assert (table["lead_over_random_low"] < table["lead_over_random_high"]).all()


# ---- training seeds


SEEDED = {
    "models.dapo.seeds": [{"seed": n, "path": f"nowhere-{n}"} for n in (2, 3)],
    "cross_sampling.seeds": True,
}


def seeded_case():
    """`cross_case` of two training seeds: the second replaces 12 where the first replaces 16."""
    study, runs, rollouts = cross_case()
    again = {s._replace(model="dapo@seed-2"): frame for s, frame in runs.items()}
    for setting, frame in again.items():
        if setting.level == 0.01:
            again[setting] = frame.assign(n_effective=12)
    rollouts["dapo@seed-2"] = rollouts["dapo"]
    return study.with_overrides(**SEEDED), runs | again, rollouts


def test_only_the_runs_of_pairs_are_mixed_and_only_where_asked():
    seeded = STUDY.with_overrides(**SEEDED)
    of = settings.seed_settings(seeded)
    curves = [s for s in settings.curve_settings(seeded) if s.model == "dapo"]
    assert {s.model for s in of} == {"dapo@seed-2", "dapo@seed-3"} and len(of) == 2 * len(curves)
    assert {s._replace(model="dapo") for s in of} == set(curves)
    for off in ({"cross_sampling.seeds": False}, {"cross_sampling.pairs": ["simplerl"]}):
        assert settings.seed_settings(seeded.with_overrides(**off)) == []


def test_over_seeds_by_hand():
    study, runs, rollouts = seeded_case()
    curves, reach, seeds = summary.over_seeds(cross.MixtureEstimates(study, runs, rollouts))
    assert set(curves["model"]) == {"dapo", "dapo@seed-2"}
    # as in `cross_case`; of the second from (.4, 2/3) to (.6, 1)
    first, second = 0.4 + 0.4 * 0.85, 0.4 + 0.2 * 0.85
    for direction in ("forward", "reverse"):
        each = reach[reach["direction"] == direction].set_index("pair")["share_for_95"]
        assert dict(each) == pytest.approx({"DAPO": first, "DAPO, seed 2": second})
        row = measured(seeds, f"{direction}_share_for_95")
        half = 12.7062 * (first - second) / 2  # Student's t times the standard error of two
        middle = (first + second) / 2
        assert row["value"] == pytest.approx(middle)
        assert (row["low"], row["high"]) == pytest.approx((middle - half, middle + half), abs=1e-4)
        assert row["seeds"] == 2 and row["note"] == "2 seeds, Easy alone"
    said = summary.say_seeds(study, seeds)
    assert "DAPO, 2 seeds, Easy alone" in said and "66% [" in said


def test_claims_have_the_interval_over_seeds_beside_that_over_problems():
    study, runs, rollouts = seeded_case()
    seeds = summary.over_seeds(cross.MixtureEstimates(study, runs, rollouts))[2]
    own = {s: frame for s, frame in runs.items() if s.model == "dapo"}
    claims = overview.section_claims(study, evidence_of(study, own, rollouts), 2, seeds)
    row = claims[(claims["claim"] == "2-sufficiency") & (claims["subject"] == "dapo")].iloc[0]
    assert row["measured"].startswith("0.74 [0.74, 0.74]") and row["verdict"] == "supported"
    assert row["seeds"].startswith("0.655 [-0.425, 1.74] (2 seeds, Easy alone)")


def test_a_study_without_other_seeds_says_so():
    empty = summary.over_seeds(cross.MixtureEstimates(STUDY, {}, cross_case()[2]))
    assert all(table.empty for table in empty)
    assert "`cross_sampling.seeds` is off" in summary.say_seeds(STUDY, empty[2])
    asked = STUDY.with_overrides(**{"cross_sampling.seeds": True})
    assert "no model of `cross_sampling.pairs` has `seeds`" in summary.say_seeds(asked, empty[2])


def test_seeds_without_a_gap_have_no_shares_of_it():
    study, runs, rollouts = seeded_case()
    rollouts["dapo@seed-2"] = rollouts["base"]
    seeds = summary.over_seeds(cross.MixtureEstimates(study, runs, rollouts))[2]
    row = measured(seeds, "forward_share_for_95")
    assert (row["value"], row["seeds"]) == (pytest.approx(0.74), 1) and math.isnan(row["low"])
    assert row["note"] == "1 seed, Easy alone"
    rollouts["dapo"] = rollouts["base"]
    seeds = summary.over_seeds(cross.MixtureEstimates(study, runs, rollouts))[2]
    assert measured(seeds, "lost")["note"] == "no seed shows it, Easy alone"
    assert "no training seed differs from base" in summary.say_seeds(study, seeds)


# ---- rules and interventions


def test_rules_against_js_by_hand():
    study, runs, rollouts = cross_case()
    forward = {s: f for s, f in runs.items() if s.direction == "forward"}
    forward[Setting("dapo", "forward", 0.2, "kl")] = made_up.exact_runs([1, 1, 1, 0], 4)
    forward[Setting("dapo", "forward", 0.1, budget=1)] = made_up.exact_runs([1, 0, 0, 0], 2)
    table = rules.rule_table(cross.MixtureEstimates(study, forward, rollouts))
    assert list(table["rule"].unique()) == [
        "JS", "random positions", "KL(primary || other)", "first n JS switches"
    ]  # fmt: skip
    assert list(table["budget"])[-2:] == ["", "1"]
    found = rules.rule_summary(cross.MixtureEstimates(study, forward, rollouts)).set_index("rule")
    # up to .2: JS (.1, 1/3), (.2, 4/9); KL goes straight to (.2, 1)
    kl = found.loc["KL(primary || other)"]
    assert kl["js_lead"] == pytest.approx((0.1 / 6 + 0.1 * 7 / 18) / 0.2 - 0.5)
    assert kl["share_for_95"] == pytest.approx(0.95 * 0.2)
    assert found.loc["first n JS switches", "js_lead"] == pytest.approx(0)
    assert math.isnan(found.loc["JS", "js_lead"]) and found.loc["JS", "settings"] == 3
    said = rules.say_rules(found.reset_index())
    assert "ahead of random positions" in said and "behind KL(primary || other)" in said


def test_interventions_name_whose_tokens_are_put_in():
    study, runs, rollouts = cross_case()
    rollouts["sft-far"] = made_up.exact_rollouts([0, 0, 1, 1])
    runs = {s: frame for s, frame in runs.items() if s.rule == "js"}
    runs[Setting("sft-far", "reverse", -1.0)] = made_up.exact_runs([0, 0, 0, 0], 9)
    runs[Setting("sft-far", "reverse", 0.1)] = made_up.exact_runs([0, 0, 0, 1], 3)
    runs[Setting("dapo", "forward", 0.1, insert="own")] = made_up.exact_runs([0, 0, 0, 1], 3)
    more = Setting("dapo", "forward", 0.1, insert="extrapolated", gain=0.5)
    runs[more] = made_up.exact_runs([1, 1, 1, 1], 3)
    table = rules.intervention_table(cross.MixtureEstimates(study, runs, rollouts))
    assert list(table["tokens_of"])[-3:] == [
        "Base", "Base, other luck (null)", "DAPO extrapolated, g = 0.5"
    ]  # fmt: skip
    assert list(table["change"])[-3:] == [-0.25, 0.25, 1.0]
    null = table[table["insert"] == "own"].iloc[0]
    assert null["effective_per_response"] == 3
    said = rules.say_interventions(study, table)
    assert "DAPO, forward, JS > 0.1, by whose tokens: " in said
    assert "Base, other luck (null) +25.0 points [25.0, 25.0] (3 a response)" in said


# ---- single tokens


def single_records():
    frame = pd.DataFrame(
        [
            ("p", 0, 0.0, 0.1, 90, 0.0, False, 0.0),
            ("q", 0, 0.0, 0.1, 90, 0.02, False, 0.0),
            ("p", 1, 0.1, 0.7, 10, 0.2, False, 0.0),
            ("q", 1, 0.1, 0.7, 10, 0.4, True, 0.5),
        ],
        columns=["problem", "stratum", "stratum_low", "stratum_high", "stratum_positions", "js",
                 "effective", "effect"],
    )  # fmt: skip
    frame = pd.concat([frame] * 50, ignore_index=True)
    return frame.assign(model="dapo", direction="forward", benchmark="easy", sample=0)


def test_single_token_effects_by_hand():
    table = single.effect_table(STUDY, single_records()).set_index("js_stratum")
    assert list(table.index) == ["0 to 0.1", "0.1 to 0.7", "all"]
    assert list(table["effect"]) == pytest.approx([0.0, 0.25, 0.025])
    assert list(table["equal_tokens"]) == pytest.approx([1.0, 0.5, 0.95])
    assert math.isnan(table["effect_different"].iloc[0])
    assert list(table["effect_different"])[1:] == pytest.approx([0.5, 0.5])
    assert list(table["decisive"]) == pytest.approx([0.0, 0.5, 0.05])
    assert list(table["js"]) == pytest.approx([0.01, 0.3, 0.9 * 0.01 + 0.1 * 0.3])
    assert list(table["positions"]) == [100, 100, 200] and list(table["pool"]) == [90, 10, 100]
    assert list(table["different"]) == [0, 50, 50]
    low, high = table.loc["0.1 to 0.7", ["effect_low", "effect_high"]]
    assert (low, high) == (0.0, 0.5)  # problem p alone, and problem q alone
    said = single.say_effects(table.reset_index())
    assert (
        "+50.0 points" in said and "at JS 0.1 to 0.7 (100 positions, 50 of them different)" in said
    )


def test_strata_of_few_positions_are_not_quoted():
    few = single_records().groupby("stratum").head(60)
    said = single.say_effects(single.effect_table(STUDY, few))
    assert "+50.0 points" in said and "at JS 0.1" not in said


def test_a_study_without_single_tokens_says_so():
    table = single.effect_table(STUDY, single.with_features(STUDY, pd.DataFrame(), str))
    assert single.say_effects(table) == "This study asks for no effects of single tokens."


def critical_case():
    frame = made_up.single_token(positions=600)
    frame = frame[
        frame["primary"].isin(["base", "dapo"]) & frame["intervention"].isin(["base", "dapo"])
    ]
    frame = frame.assign(effective=True, successes_primary=0, successes_both=0)
    # the larger its entropy and the surer of success, by the intervention's token
    gain = np.round(8 * frame["entropy_primary"])
    forward = frame["direction"] == "forward"
    frame["successes_intervention"] = np.where(forward, gain, 0)
    frame["successes_primary"] = np.where(forward, 0, gain)
    frame["effect"] = np.where(forward, gain, -gain) / 8
    return single.with_features(STUDY, frame, lambda token: made_up.TEXTS.get(token, "?"))


def test_what_ranks_positions_best_is_found_both_ways():
    table = single.ranking_table(STUDY, critical_case())
    best = table.groupby("direction").head(1)
    assert set(best["measure"]) == {"primary's entropy"} and (best["spearman"] > 0.97).all()
    assert (table.loc[table["measure"] == "JS, nuclei", "spearman"].abs() < 0.2).all()
    assert (best["spearman_low"] <= best["spearman"]).all()
    # a measure that ranks them the other way round ranks them as well
    turned = critical_case().assign(toward=lambda rows: -rows["toward"])
    against = single.ranking_table(STUDY, turned).groupby("direction").head(1)
    assert set(against["measure"]) == {"primary's entropy"} and (against["spearman"] < -0.97).all()
    empty = pd.DataFrame(columns=["pair", "direction", "different"])
    assert "primary's entropy ranks" in single.say_critical(table, pd.DataFrame(), empty)
    weak = table.assign(spearman_low=table["spearman"] - 2, spearman_high=table["spearman"] + 2)
    assert "is told from chance; the strongest" in single.say_critical(weak, pd.DataFrame(), empty)


def test_the_model_foretells_what_can_be_foretold_and_no_more():
    table = single.model_table(STUDY, critical_case()).set_index(["direction", "known"])
    assert table.loc[("forward", "base alone"), "explained"] > 0.95  # base is the primary there
    assert table.loc[("reverse", "base alone"), "explained"] < 0.1
    assert table.loc[("reverse", "all of these"), "explained"] > 0.95
    assert (table.xs("JS alone", level="known")["explained"] < 0.1).all()
    assert (table.xs("ceiling", level="known")["explained"] < 1).all()


def test_the_ceiling_is_what_noise_leaves():
    rng = np.random.default_rng(0)
    rows, true = critical_case(), rng.choice([0.2, 0.8], 1200)
    wins = rng.binomial(8, true)
    rows = rows.assign(
        successes_primary=0, successes_both=0, successes_intervention=wins,
        effect=wins / 8, toward=wins / 8,
    )  # fmt: skip
    found = single.model_table(STUDY, rows)
    ceiling = found.loc[found["known"] == "ceiling", "explained"]
    assert ceiling.to_numpy() == pytest.approx(0.09 / (0.09 + 0.16 / 8), abs=0.04)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (" 1", "2", "arithmetic"),
        (" 42", " answer", "format"),
        ("\\boxed{", "7", "format"),
        ("<eos>", ".", "format"),
        (" multiply", " work", "strategy"),
        (":", "=", "strategy"),
        (" we", " this", "wording"),
        (",", ".", "wording"),
    ],
)
def test_what_two_tokens_decide(one, other, expected):
    assert decides(one, other) == decides(other, one) == expected


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
    rows = swaps.mark_turned(
        frame([False, False, True, False]),
        frame([True, False, True, True], [1, 1, 1, 2]),
        "forward",
    )
    assert list(rows["turns"]) == [True, False, False, True]
    said = swaps.say_deciding(STUDY, rows, "forward", None)
    assert "Forward, Hard: of 2 responses that could turn" in said and "50%" in said
    drawn = pd.Series(
        {"effect_different": 0.12, "effect_different_low": 0.1, "effect_different_high": 0.2}
    )
    assert "+12.0 points" in swaps.say_deciding(STUDY, rows, "forward", drawn)
    assert "no response that could" in swaps.say_deciding(STUDY, rows.head(0), "forward", None)
