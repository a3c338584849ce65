"""What the notebooks load, on the random pair: complete, matched, computed once."""

import pytest

from tokenshift_utils import analysis_cross as cross
from tokenshift_utils import analysis_divergence as divergence
from tokenshift_utils import executor, loading
from tokenshift_utils.study import load_study


@pytest.fixture
def study(mini_root):
    return load_study("mini")


def test_sections_without_models_or_checkpoints_load_what_there_is(study):
    shifts = loading.divergence_shifts(study)
    assert list(shifts) == ["tuned"] and list(shifts["tuned"]) == list(divergence.COLUMNS)
    texts = loading.token_texts(study, shifts)
    assert set(shifts["tuned"]["token"]) == set(texts)
    same, checkpoints = loading.mechanics_shifts(study)
    assert len(same["tuned"]) == len(shifts["tuned"]) and checkpoints == {}


def test_the_annotated_response_is_one_response_with_the_most_high_positions(study):
    rows, title = loading.annotated_response(study)
    assert rows["position"].tolist() == list(range(rows["n_tokens"].iloc[0]))
    everything = loading.divergence_shifts(study)["tuned"]
    first = everything[everything["sample"] == 0]
    high = (first["js"] > study.thresholds.high_js).groupby(first["problem"]).sum()
    assert (rows["js"] > study.thresholds.high_js).sum() == high.max()
    assert rows["problem"].iloc[0] in title


def test_cross_sampling_has_every_setting_and_its_random_controls(study, monkeypatch):
    runs, rollouts = loading.cross_runs(study)
    wanted = cross.curve_settings(study)
    for match in ("switched", "effective"):
        wanted += cross.control_settings(study, match)
    assert set(runs) == set(wanted) and set(rollouts) == {"base", "tuned"}
    for setting in cross.control_settings(study, "switched"):
        rule = cross.switched_rate(runs[setting._replace(rule="js", match="")])
        assert cross.switched_rate(runs[setting]) == pytest.approx(rule, abs=0.2)
    table = cross.curve_table(study, runs, rollouts)
    for example in loading.cross_examples(study, table):
        rows = [row for _, row, _ in example["columns"]]
        assert len({tuple(row["prompt_ids"]) for row in rows}) == 1

    def computed_again(*job):
        raise AssertionError(job)

    monkeypatch.setattr(executor, "compute", computed_again)
    loading.cross_runs(study)  # a second time everything is read
