"""Mixture trees as records: what is read off them, and what they cost to add to."""

import numpy as np
import pandas as pd
import pytest
from test_mixing import counting

from tokenshift_utils.measures.nucleus import nucleus_js
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.pairs import rules
from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.store import executor
from tokenshift_utils.study.study import load_study

CALLS = [
    {"rule": Rule("js", -1.0)},
    {"rule": Rule("js", 0.05)},
    {"rule": Rule("random", rate=0.1)},
    {"rule": Rule("entropy", 1.0, budget=2)},
    {"rule": Rule("signed_logp", 0.1)},
    {"rule": Rule("js", 0.02), "insertion": Insertion("own")},
    {"rule": Rule("js", 0.02), "insertion": Insertion("extrapolated", 0.5)},
]


def mixed(study, rule, **more):
    """(runs, switches) of base, with tuned taking over by a rule."""
    requests = CrossSampling.of(study, "base", "tuned", rule, **more)
    return fetch(study, requests), fetch(study, requests, "switches")


@pytest.fixture
def study(mini_root):
    return load_study("mini").with_overrides(dtype="float64")


@pytest.fixture
def read(study, monkeypatch):
    """How many tokens the study's models read since it was last asked."""
    calls = []
    for model in ("base", "tuned"):
        policy = load_policy(study, model)
        policy.open(1)  # (it tries its cache once)
        calls.append(counting(policy, monkeypatch))

    def tokens():
        total = sum(rows * tokens for some in calls for rows, tokens in some)
        for some in calls:
            some.clear()
        return total

    return tokens


@pytest.mark.parametrize("both", [("base", "tuned"), ("tuned", "base")], ids=["forward", "reverse"])
def test_what_is_read_off_trees_is_what_each_mixture_gives(study, both):
    artefacts = [a for call in CALLS for a in CrossSampling.of(study, *both, **call)]
    executor.run(study, artefacts)
    for artefact in artefacts:
        for shard in range(len(artefact.weights(study))):
            alone = artefact.compute(study, shard)  # by itself, as where an engine mixes
            for kind, table in alone.items():
                found = executor.read_shard(study, executor.Job(artefact, shard), kind)
                assert found.schema == table.schema
                pd.testing.assert_frame_equal(
                    found.to_pandas(), table.to_pandas(), check_exact=False, atol=1e-5, rtol=1e-5
                )


def test_adding_a_mixture_computes_what_is_new_and_nothing_else(study, read):
    thresholds = [-1.0, 0.02, 0.2]
    both = [("base", "tuned"), ("tuned", "base")]
    wanted = [
        artefact
        for pair in both
        for threshold in thresholds
        for artefact in CrossSampling.of(study, *pair, Rule("js", threshold))
    ]
    executor.run(study, wanted)
    first = read()
    before = {t: mixed(study, Rule("js", t)) for t in thresholds}
    assert first > 0 and read() == 0
    mixed(study, Rule("js", 0.05))
    assert 0 < read() < first / 3
    mixed(study, Rule("js", 0.0500001))  # takes the same tokens
    assert read() == 0
    mixed(study, Rule("never"))  # base's own text, which is there
    assert read() == 0
    for threshold, frames in before.items():
        for old, new in zip(frames, mixed(study, Rule("js", threshold))):
            pd.testing.assert_frame_equal(old, new)


def test_fewer_samples_are_a_part_of_the_same_trees(study, read):
    one, _ = mixed(study, Rule("js", 0.05), samples=1)
    assert set(one["sample"]) == {0}
    spent = read()
    runs, switches = mixed(study, Rule("js", 0.05))
    assert set(runs["sample"]) == set(range(study.samples.cross_sampling))
    assert 0 < read() and spent > 0
    same = runs[runs["sample"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, same)
    key = ["benchmark", "problem", "sample"]
    assert runs[key].equals(runs[key].sort_values(key, kind="stable").reset_index(drop=True))
    counted = switches.groupby(key).size()
    merged = runs.set_index(key)["n_switched"]
    assert (counted.reindex(merged.index, fill_value=0) == merged).all()


def test_distinct_responses_are_judged_once(study, monkeypatch):
    judged = []
    from tokenshift_utils.records import mixture_trees

    verdict = mixture_trees.verdict
    monkeypatch.setattr(
        mixture_trees, "verdict", lambda p, ids, *a: judged.extend(ids) or verdict(p, ids, *a)
    )
    for threshold in (0.02, 0.05, 0.2):
        mixed(study, Rule("js", threshold))
    runs = pd.concat(mixed(study, Rule("js", t))[0] for t in (0.02, 0.05, 0.2))
    distinct = {(r.problem, r.sample, *r.response_ids) for r in runs.itertuples()}
    assert len(judged) == len(distinct) < len(runs)


def test_a_damaged_file_is_computed_again(study, mini_root):
    runs, _ = mixed(study, Rule("js", 0.05))
    file = next((mini_root / "results/mini/records/mixture_trees").glob("*/*.parquet"))
    file.write_bytes(file.read_bytes()[:-50])
    again, switches = mixed(study, Rule("js", 0.05))
    pd.testing.assert_frame_equal(runs, again)
    assert len(switches) == runs["n_switched"].sum() and np.isfinite(switches["js"]).all()


def test_a_rule_that_trees_do_not_know_is_decoded_by_itself(study, mini_root, monkeypatch):
    monkeypatch.setattr(rules, "KINDS", dict(rules.KINDS))

    class Double(rules.Kind):
        name, label = "double", "twice JS"

        @staticmethod
        def value(at):
            return 2 * nucleus_js(at.primary, at.intervention)

    runs, switches = mixed(study, Rule("double", 0.1))
    assert not list((mini_root / "results/mini/records").glob("mixture_*"))
    same, _ = mixed(study, Rule("js", 0.05))
    key = ["benchmark", "problem", "sample"]
    assert runs[key].equals(same[key]) and 0 < len(switches) == runs["n_switched"].sum()
    ids = [[list(row) for row in frame["response_ids"]] for frame in (runs, same)]
    assert ids[0] == ids[1]
