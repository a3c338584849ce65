"""Mixture trees as records: what is read off them, and what they cost to add to."""

import hashlib
import multiprocessing
import random

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import write_benchmark, write_mini_root, write_smoke_root
from test_cross_sample import counting

from tokenshift_utils.measures.nucleus import nucleus_js
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.sessions import HFSession
from tokenshift_utils.pairs import rules
from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.mixture_trees import MixtureTrees
from tokenshift_utils.sections.cross_sampling import records as section_2
from tokenshift_utils.sections.robustness import records as section_5
from tokenshift_utils.store import executor
from tokenshift_utils.store.store import Store
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
    monkeypatch.setattr(rules, "RULE_KINDS", dict(rules.RULE_KINDS))

    class Double(rules.RuleKind):
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


@pytest.fixture
def swept_root(tmp_path, tiny_pair, monkeypatch):
    """Makes roots where section 2 of ``mini`` is wanted, in float32, and is in use there."""

    def make(name):
        root = tmp_path / name
        write_mini_root(root, tiny_pair, problems_per_shard=3)
        write_benchmark(root / "benchmarks/sums.jsonl", 5)
        file = root / "notebooks/studies/mini.yaml"
        study = yaml.safe_load(file.read_text())
        study["batch"]["cross_sampling"] = 7
        study["cross_sampling"] |= {"single_token": None, "thresholds": [-1, 0.02, 0.05]}
        study["cross_sampling"]["random_rates"] = [0.02, 0.05]
        file.write_text(yaml.safe_dump(study, sort_keys=False))
        monkeypatch.setenv("TOKENSHIFT_HOME", str(root))
        return root

    return make


def run_section_2():
    section_2.cross_records(load_study("mini"))


def mixture_digests(root):
    records = root / "results/mini/records"
    files = sorted(file for file in records.glob("mixture_*/*/*.parquet"))
    return {f.relative_to(records): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_section_2_stopped_anywhere_has_the_records_of_an_undisturbed_run(swept_root, monkeypatch):
    calm = swept_root("calm")
    run_section_2()
    expected = mixture_digests(calm)
    assert len(expected) == 3 * 2
    rough = swept_root("rough")
    luck, left = random.Random(0), [0]

    def stopping(method):
        def stopped(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return method(*args, **more)

        return stopped

    for owner, name in ((HFSession, "read"), (Store, "write")):
        monkeypatch.setattr(owner, name, stopping(getattr(owner, name)))
    for _ in range(8):
        left[0] = luck.randrange(1, 150)
        with pytest.raises(KeyboardInterrupt):
            run_section_2()
    left[0] = 0  # undisturbed from here on
    run_section_2()
    assert mixture_digests(rough) == expected


def test_two_drivers_of_section_2_have_the_records_of_one(swept_root):
    alone = swept_root("alone")
    run_section_2()
    both = swept_root("both")
    spawn = multiprocessing.get_context("spawn")
    drivers = [spawn.Process(target=run_section_2) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(1200)
        driver.kill()  # one that hangs
    assert [driver.exitcode for driver in drivers] == [0, 0]
    assert mixture_digests(both) == mixture_digests(alone)


def test_sections_2_and_5_begin_trees_alike(tmp_path, monkeypatch):
    write_smoke_root(tmp_path)
    monkeypatch.setenv("TOKENSHIFT_HOME", str(tmp_path))
    study = load_study("smoke")
    first, other = (
        {
            (job.artefact.canonical, job.shard): job.artefact.walks
            for job in executor.missing(study, executor.jobs_of(study, section.requests(study)))
            if isinstance(job.artefact, MixtureTrees)
        }
        for section in (section_2, section_5)
    )
    assert other and {where: first[where] for where in other} == other
