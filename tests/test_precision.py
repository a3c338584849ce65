"""What the dtype alone makes of JS: the records, and what is said of them."""

import numpy as np
import pandas as pd
import pytest
import torch

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.precision import Precision
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.sections.divergence.plots import plot_js_distribution
from tokenshift_utils.sections.divergence.precision import precision_table, say_precision
from tokenshift_utils.study.study import load_study


@pytest.fixture
def study(mini_root):
    return load_study("mini").with_overrides(precision={"model": "tuned", "samples": 1})


def test_records_of_one_model_in_two_dtypes(study):
    found = fetch(study, Precision.of(study))
    own = fetch(study, Shifts.of(study, "tuned", samples=1))
    assert set(found["base"]) == {"tuned (float32)"} and set(found["tuned"]) == {"tuned (bfloat16)"}
    assert found["token"].tolist() == own["token"].tolist()  # its own responses
    # float32 is the study's own dtype, and the other one is that of the weights rounded
    np.testing.assert_allclose(found["logp_base"], own["logp_tuned"], atol=2e-6)
    rounded = load_policy(study.with_overrides(dtype="bfloat16"), "tuned")
    assert rounded.model.dtype == torch.bfloat16
    apart = (found["logp_tuned"] - found["logp_base"]).abs()
    assert 1e-4 < apart.mean() < 0.1
    assert 0 < found["js_full"].mean() < own["js_full"].mean()
    assert fetch(study, Shifts.of(study, "tuned", samples=1)).equals(own)  # kept apart in the store


def test_nothing_where_the_study_asks_for_nothing(mini_root):
    study = load_study("mini")
    assert Precision.of(study) == []
    table = precision_table(study, None, {})
    assert table.empty and "does not measure" in say_precision(study, table)
    with pytest.raises(TokenshiftError, match="'precision.model' names the model 'other'"):
        study.with_overrides(precision={"model": "other", "samples": 1})


def frame(js, problems=4):
    js = np.asarray(js, dtype=float)
    return pd.DataFrame(
        {
            "benchmark": "sums",
            "problem": [f"p{i % problems}" for i in range(len(js))],
            "sample": 0,
            "js": js,
            "js_full": js / 10,
        }
    )


def test_table_and_sentence_by_hand(study):
    # of what training makes the same sample counts, and not a second one
    trained = pd.concat([frame([0.0, 0.3] * 10), frame([0.3] * 20).assign(sample=1)])
    floor = precision_table(study, frame([0.0, 1e-4, 2e-4, 0.2] * 5), {"tuned": trained})
    assert floor["support"].tolist() == ["nucleus", "full"] * 2
    assert floor["positions"].tolist() == [20] * 4
    nucleus, full, own, _ = floor.to_dict("records")
    assert own["between"] == "it and base" and own["share_gt_0.1"] == 0.5
    assert nucleus["share_le_0.001"] == 0.75 and nucleus["share_gt_0.1"] == 0.25
    assert nucleus["max"] == 0.2 and full["max"] == 0.02 and full["share_gt_0.1"] == 0
    said = say_precision(study, floor)
    assert "JS above 0.1 at 25.0%" in said and "of Tuned's positions" in said
    assert "training does at 50.0%" in said and "at most 0.02 nats" in said


def test_the_noise_floor_is_a_line_with_its_name(study):
    shifts = {"tuned": frame([0.0, 0.3] * 10)}
    plain = plot_js_distribution(study, shifts)
    figure = plot_js_distribution(study, shifts, frame([1e-4] * 20))
    for ax, without in zip(figure.axes, plain.axes, strict=True):
        assert len(ax.lines) == len(without.lines) + 1

    def named(some):
        return {text.get_text() for ax in some.axes for text in ax.texts}

    assert named(figure) - named(plain) == {"bfloat16 alone"}
