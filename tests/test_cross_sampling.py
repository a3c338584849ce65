"""Cross-sampling records of a study: against rollouts, and against each other."""

import math

import pytest

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.records.cross_sampling import get_cross_sampling
from tokenshift_utils.records.rollouts import get_rollouts
from tokenshift_utils.study.study import load_study


def test_records_agree_with_rollouts_and_with_each_other(mini_root):
    study = load_study("mini").with_overrides(dtype="float64")
    runs, switches = get_cross_sampling(study, "base", "tuned", threshold=math.inf)
    own = get_rollouts(study, "base", samples=study.samples.cross_sampling)
    key = ["benchmark", "problem", "sample"]
    assert runs[key].equals(own[key]) and len(switches) == 0
    assert [list(a) for a in runs["response_ids"]] == [list(b) for b in own["response_ids"]]
    assert runs["correct"].equals(own["correct"])

    runs, switches = get_cross_sampling(study, "tuned", "base", threshold=0.05)
    assert set(runs["direction"]) == {"reverse"}
    counted = switches.groupby(key)["effective"].agg(["size", "sum"]).reset_index()
    merged = runs.merge(counted, on=key, how="left").fillna({"size": 0, "sum": 0})
    assert (merged["size"] == merged["n_switched"]).all()
    assert (merged["sum"] == merged["n_effective"]).all()
    assert (switches["js"] > 0.05).all()
    emitted = {tuple(r[k] for k in key): r["response_ids"] for r in runs.to_dict("records")}
    for switch in switches.to_dict("records"):
        ids = emitted[tuple(switch[k] for k in key)]
        assert ids[switch["position"]] == switch["token_intervention"]
        assert switch["effective"] == (switch["token_primary"] != switch["token_intervention"])


def test_support_of_the_js_rule_is_the_studys(mini_root):
    study = load_study("mini")
    full = study.with_overrides(divergence_support="full")
    runs, _ = get_cross_sampling(full, "base", "tuned", threshold=0.05)
    assert set(runs["rule"]) == {"js_full"}
    same, _ = get_cross_sampling(study, "base", "tuned", rule="js_full", threshold=0.05)
    assert same.equals(runs)


def test_the_null_control_fires_with_the_run_it_accompanies_and_replaces_tokens(mini_root):
    study = load_study("mini").with_overrides(dtype="float64")
    call = {"threshold": 0.02}
    switches = get_cross_sampling(study, "base", "tuned", **call)[1]
    null, null_switches = get_cross_sampling(study, "base", "tuned", insert="own", **call)
    assert set(null["insert"]) == {"own"} and null["n_effective"].sum() > 0
    key = ["benchmark", "problem", "sample"]
    compared = 0
    for (_, a), (_, b) in zip(switches.groupby(key), null_switches.groupby(key)):
        # up to the first token that one of them replaced, both have seen the same text
        ends = [f["position"][f["effective"]].min() for f in (a, b)]
        end = min(999 if math.isnan(e) else e for e in ends)
        mine, theirs = (f["position"][f["position"] <= end].tolist() for f in (a, b))
        if a[key].iloc[0].equals(b[key].iloc[0]):
            assert mine == theirs
            compared += len(mine)
    assert compared > 0


def test_extrapolation_by_nothing_is_the_intervention(mini_root):
    study = load_study("mini").with_overrides(dtype="float64")
    runs, _ = get_cross_sampling(study, "base", "tuned", threshold=0.02)
    same, _ = get_cross_sampling(
        study, "base", "tuned", threshold=0.02, insert="extrapolated", gain=0.0
    )
    assert [list(a) for a in runs["response_ids"]] == [list(b) for b in same["response_ids"]]


@pytest.mark.parametrize(
    "call, message",
    [
        ({"threshold": math.nan}, "threshold that is a number"),
        ({"rule": "entropy", "threshold": -1.0}, "at least 0"),
        ({"budget": -1}, "budget is -1"),
        ({"rule": "nothing"}, "unknown rule 'nothing'"),
        ({"insert": "extrapolated"}, "finite gain"),
        ({"insert": "theirs"}, "unknown insertion"),
    ],
)
def test_bad_settings_are_refused_before_any_model_runs(mini_root, monkeypatch, call, message):
    monkeypatch.setattr(
        "tokenshift_utils.models.load.load_policy", lambda *_: pytest.fail("loaded")
    )
    with pytest.raises(TokenshiftError, match=message) as caught:
        get_cross_sampling(load_study("mini"), "base", "tuned", **call)
    assert "\n" not in str(caught.value)
