"""The bench of scoring: what it counts and how it reports. Nothing here asserts a time."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tokenshift_utils.bench import harness, scoring
from tokenshift_utils.bench.harness import PolicyPair, field_names, select_cases, shape
from tokenshift_utils.bench.scoring import Case, peak
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.run.cli import main

SMALL = Case("small-152k", "cpu", 30, repeats=2)


@pytest.fixture
def small(tiny_pair):
    policies = [HFPolicy.load(d, d.name) for d in (tiny_pair.base, tiny_pair.tuned)]
    return PolicyPair(*policies, [[4, 5, 6]], 1.0)


def test_a_measurement_has_the_form_that_is_promised(small):
    called = []
    row = scoring.measure(SMALL, small, lambda: called.append(1))
    assert len(called) == scoring.calls(SMALL)
    assert tuple(row) == field_names(scoring.COLUMNS)
    assert (row["device"], row["vocabulary"], row["length"]) == ("cpu", 36, 30)
    assert row["cost_ratio"] > 0
    assert (row["cost_ratio"] > 1) == (row["extra_ms_per_position"] > 0)


def test_both_ways_read_every_position(small):
    response, seen = list(range(3, 33)), []
    assert scoring.score(small, response) == 30
    small.primary.model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    scoring.bare(small.primary, [4, 5, 6], response, 8)
    assert seen[-4:] == [8, 8, 8, 6]
    scoring.bare(small.primary, [4, 5, 6], response, None)
    assert seen[-1] == 33


def test_the_peak_of_a_process_is_seen():
    with peak("cpu") as found:
        held = torch.ones(2**25)  # 128 MiB
        ends = time.monotonic() + 60  # a busy machine looks late
        while found.bytes < 2**27 - 2**20 and time.monotonic() < ends:
            time.sleep(0.001)
    assert 2**27 - 2**20 <= found.bytes < 2**28
    del held
    with peak("cpu") as found:
        pass
    assert found.bytes < 2**24


def test_cases_without_their_device_are_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [case.length for case in select_cases(scoring.CASES, ())] == [2048, 8192]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    big = select_cases(scoring.CASES, ["qwen2.5-7b-shape"])
    assert [(case.device, case.length) for case in big] == [("cuda", 2048), ("cuda", 8192)]
    assert shape("qwen2.5-7b-shape").hidden_size == 3584


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_its_results_alone(as_json, small, capsys, monkeypatch):
    monkeypatch.setattr(scoring, "CASES", (SMALL,))
    monkeypatch.setattr(harness, "make_pair", lambda *_: small)
    monkeypatch.setattr(scoring, "ProcessPoolExecutor", lambda n, _: ThreadPoolExecutor(n))
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "scoring", *(["--json"] if as_json else [])])
    assert stopped.value.code == 0
    captured = capsys.readouterr()
    assert "small-152k, 30 tokens" in captured.err  # progress
    if as_json:
        assert [tuple(row) for row in json.loads(captured.out)] == [field_names(scoring.COLUMNS)]
    else:
        lines = captured.out.strip().splitlines()
        assert "torch" in lines[0] and lines[2].split()[:3] == ["pair", "device", "vocabulary"]
        assert lines[3].split()[:4] == ["small-152k", "cpu", "36", "30"]


@pytest.mark.slow
def test_memory_at_a_vocabulary_of_152k_does_not_grow_with_the_response(monkeypatch):
    lengths = (300, 1200)
    cases = tuple(Case("small-152k", "cpu", length, repeats=1) for length in lengths)
    monkeypatch.setattr(scoring, "CASES", cases)
    short, long = scoring.bench()  # each in a process of its own
    assert (short["vocabulary"], long["length"]) == (151_936, 1200)
    logits = 2 * 1200 * 151_936 * 4  # of both models, at once
    assert long["extra_peak_bytes"] < 2**30 < logits
    assert abs(long["extra_peak_bytes"] - short["extra_peak_bytes"]) < 2**26
