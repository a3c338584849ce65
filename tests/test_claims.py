"""The claims: well formed, judged as their docstring says, honest about what is missing."""

import math

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tokenshift_utils.sections import claims, paper
from tokenshift_utils.sections.claims import CLAIMS, QUANTITIES, Check, evaluate, judge

ROLES = {
    "base": ("base",),
    "dapo": ("rl", "dapo"),
    "simplerl": ("rl", "simplerl"),
    "sft-far": ("sft",),
    "dapo-high-kl": ("weighted", "high-kl"),
    "dapo-low-kl": ("weighted", "low-kl"),
}


def evidence(*rows):
    return pd.DataFrame(rows, columns=list(claims.EVIDENCE_COLUMNS))


def verdict_of(table, claim, subject):
    row = table[(table["claim"] == claim) & (table["subject"] == subject)]
    assert len(row) == 1
    return row.iloc[0]["verdict"], row.iloc[0]["measured"]


def test_every_claim_states_a_fact_a_reason_and_known_quantities():
    assert all(claim.reason.endswith(".") for claim in CLAIMS)
    used = {check.quantity for claim in CLAIMS for check in claim.checks}
    assert used == set(QUANTITIES), "a quantity that no claim uses"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["claims"].append(c["claims"][0]), "is there twice"),
        (lambda c: c["claims"][0].update(fact="boost"), "its fact is of elsewhere"),
        (lambda c: c["claims"][0].update(fact="nothing"), "nothing"),
        (
            lambda c: c["claims"][0].update(checks=[{"quantity": "x", "above": 0}]),
            "no quantity 'x'",
        ),
        (lambda c: c["claims"][0].update(checks=[{"quantity": "rank1"}]), "needs a bound"),
        (lambda c: c["claims"][0].update(verdict="supported"), "Extra inputs"),
        (lambda c: c["claims"][0].update(subjects=["tuned"]), "Input should be"),
        (lambda c: c["claims"][0].update(grade="easy"), "Input should be"),
        (lambda c: c["claims"][0].pop("grade"), "Field required"),
    ],
)
def test_a_file_of_claims_that_is_not_sound_is_refused(change, message):
    content = yaml.safe_load(claims.FILE.read_text(encoding="utf-8"))
    change(content)
    with pytest.raises((ValidationError, KeyError), match=message):
        claims._File.model_validate(content)


@pytest.mark.parametrize(
    "interval, expected",
    [
        ((0.9, 0.85, 0.95), "supported"),
        ((0.9, 0.80, 0.95), "undecided"),
        ((0.5, 0.45, 0.55), "not supported"),
        ((math.nan, math.nan, math.nan), "not testable"),
    ],
)
def test_one_sided_judgement(interval, expected):
    assert judge(Check(quantity="near_zero_share", above=0.83), *interval) == expected


@pytest.mark.parametrize(
    "interval, expected",
    [
        ((0.3, 0.25, 0.35), "supported"),
        ((0.3, 0.15, 0.35), "undecided"),
        ((0.1, 0.05, 0.15), "not supported"),
        ((0.6, 0.45, 0.70), "not supported"),
    ],
)
def test_two_sided_judgement(interval, expected):
    assert judge(Check(quantity="rank1", above=0.2, below=0.4), *interval) == expected


def test_claims_need_all_of_their_checks():
    good = ("identity_variance", "dapo", 0.2, 0.1, 0.3, "")
    table = evaluate(ROLES, evidence(good, ("mostly_low_tokens", "dapo", 0.2, 0.1, 0.3, "")))
    assert verdict_of(table, "1-identity", "dapo")[0] == "not supported"
    table = evaluate(ROLES, evidence(good, ("mostly_low_tokens", "dapo", 0.6, 0.4, 0.8, "")))
    assert verdict_of(table, "1-identity", "dapo")[0] == "undecided"
    table = evaluate(ROLES, evidence(good, ("mostly_low_tokens", "dapo", 0.8, 0.7, 0.9, "")))
    assert verdict_of(table, "1-identity", "dapo")[0] == "supported"
    table = evaluate(ROLES, evidence(good))
    assert verdict_of(table, "1-identity", "dapo") == (
        "not testable",
        "0.2 [0.1, 0.3]; not measured in this study",
    )


def test_what_a_study_lacks_is_not_testable_and_said():
    table = evaluate({"base": ["base"], "dapo": ["rl", "dapo"]}, evidence())
    assert set(table["verdict"]) == {"not testable"}
    assert verdict_of(table, "1-sft-denser", "sft")[1] == "this study has no SFT control"
    lack = "this study has no model of recipe"
    assert verdict_of(table, "1-dapo-wider", "dapo")[1] == f"{lack} simplerl"
    assert verdict_of(table, "4-low-kl-gains", "low-kl")[1] == f"{lack} low-kl"


def test_claims_are_asked_by_role_whatever_models_are_called():
    roles = {"base": ["base"], "mine": ["rl", "dapo"], "other": ["rl", None], "far": ["sft", None]}
    found = [("rank1", m, 0.3, 0.25, 0.35, "") for m in ("mine", "other")]
    found += [
        ("rank3", "mine", 0.9, 0.85, 0.95, ""),
        ("sft_density_ratio", "far", 3.0, 2.5, 4.0, ""),
    ]
    table = evaluate(roles, evidence(*found))
    of = table.groupby("claim")["subject"].agg(list)
    assert of["3-rank1"] == ["mine", "other"] and of["3-rank3-dapo"] == ["mine"]
    assert of["3-rank3-simplerl"] == ["simplerl"]  # which no model is: it stands for itself
    assert set(table[table["verdict"] == "supported"]["subject"]) == {"mine", "other", "far"}


def test_p_values_follow_the_interval_and_are_corrected_within_a_section():
    z = 1.959964
    found = [
        ("near_zero_share", "dapo", 0.83 + 0.01 * z, 0.83, 0.83 + 0.02 * z, ""),  # p = 0.025
        ("rank3", "dapo", 0.8 + 0.01 * z, 0.8, 0.8 + 0.02 * z, ""),
        ("high_js_share", "dapo", 0.17, 0.16, 0.18, ""),  # p = 0.5
    ]
    table = evaluate(ROLES, evidence(*found)).set_index(["claim", "subject"])["p_holm"].dropna()
    assert len(table) == 3
    assert table["1-sparsity-dapo", "dapo"] == pytest.approx(0.05, abs=1e-6)
    assert table["1-few-high", "dapo"] == pytest.approx(0.5)
    assert table["3-rank3-dapo", "dapo"] == pytest.approx(0.025, abs=1e-6)
    two = Check(quantity="rank1", above=0.2, below=0.4)
    assert claims.chance(two, 0.3, 0.2, 0.4, 0.95, math.nan) == pytest.approx(0.025)
    student = claims.chance(two, 0.3, 0.2, 0.4, 0.95, 3)
    assert student == pytest.approx(0.025)
    assert math.isnan(claims.chance(two, 0.3, math.nan, math.nan, 0.95, math.nan))


@settings(max_examples=200)
@given(
    st.floats(-1, 1), st.floats(1e-3, 1), st.floats(1e-3, 1), st.sampled_from([math.nan, 2, 3, 9])
)
def test_p_and_verdict_agree_however_skewed_the_interval(value, below, above, seeds):
    triple = (value, value - below, value + above)
    for check in (Check(quantity="rank1", above=0.2), Check(quantity="rank1", below=0.2)):
        p = claims.chance(check, *triple, 0.95, seeds)
        if abs(p - 0.025) > 1e-6:
            assert (p < 0.025) == (claims.judge(check, *triple) == "supported")


def test_the_log_of_criteria_has_a_schema(tmp_path):
    assert list(claims.criteria_log()) == ["date", "claim", "old", "new", "why", "seen"]
    file = tmp_path / "log.yaml"
    entry = "{date: 2026-01-01, claim: 1-end, old: a, new: b, why: c, seen: after}"
    file.write_text(f'"1": [{entry}]')
    assert claims.criteria_log(file)["claim"].tolist() == ["1-end"]
    for text in (f'"2": [{entry}]', f'"1": [{entry.replace("after", "never")}]'):
        file.write_text(text)
        with pytest.raises(ValidationError):
            claims.criteria_log(file)


def test_a_note_explains_what_could_not_be_measured():
    nan = math.nan
    table = evaluate(ROLES, evidence(("rank1", "dapo", nan, nan, nan, "no position with JS > 0.1")))
    assert verdict_of(table, "3-rank1", "dapo") == ("not testable", "no position with JS > 0.1")


def test_only_known_numbers_of_the_paper_with_a_witness():
    keys = [fact.key for fact in paper.FACTS]
    assert len(set(keys)) == len(keys)
    assert {fact.witness for fact in paper.FACTS} == {paper.REVIEWS, paper.SUMMARY}
    assert len(paper.table1()) == 8 and paper.table1()["effective_percent"].max() == 10.1
    averages = paper.table2()[["AIME24", "AIME25", "AMC"]].mean(axis=1)
    assert (averages - paper.table2()["average"]).abs().max() < 0.06
