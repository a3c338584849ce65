"""The bench: what it counts and how it reports. Nothing here asserts a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from tokenshift_utils.bench import cross_sampling, harness, sweep, weighting
from tokenshift_utils.bench.cross_sampling import Case, Measurement, expected_tokens, floor
from tokenshift_utils.bench.harness import PolicyPair, field_names, filled, select_cases
from tokenshift_utils.bench.sweep import Sweep
from tokenshift_utils.measures.weighting import SIGNALS
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.run.cli import main

SMALL = Case("small", "cpu", 2, rows=4, tokens=20, fixed=7, repeats=2)


@pytest.fixture
def small(tiny_pair):
    """The random pair of the tests, as `make_pair` leaves pairs."""
    policies = [HFPolicy.load(path, "p") for path in (tiny_pair.base, tiny_pair.tuned)]
    for policy in policies:
        policy.eos_ids = (policy.vocab_size,)  # no response ends before the limit
    return PolicyPair(*policies, [[4, 5, 6, 7 + i] for i in range(4)], 1.0)


def test_expected_tokens_of_a_round():
    assert expected_tokens(8, 0.0) == 8 and expected_tokens(8, 1.0) == 1
    assert expected_tokens(1, 0.3) == pytest.approx(1)
    assert expected_tokens(3, 0.5) == pytest.approx(1 + 0.5 + 0.25)
    fires = np.random.default_rng(0).random((100_000, 8)) < 0.1
    emitted = np.where(fires.any(1), fires.argmax(1) + 1, 8)
    assert expected_tokens(8, 0.1) == pytest.approx(emitted.mean(), rel=0.01)


def test_floor_by_hand():
    assert floor(1, 0.2, step=3.0, forward=3.0) == pytest.approx(2)  # lockstep pays twice
    assert floor(8, 0.0, step=1.0, forward=2.0) == pytest.approx(10 / 8)
    assert floor(2, 1.0, step=1.0, forward=1.0) == pytest.approx(3)  # three forwards, one token


def test_measurements_have_the_form_that_is_promised(small):
    called = []
    measured = cross_sampling.measure(
        SMALL, small, (0.0, 0.2), (1, 4, "auto"), lambda: called.append(1)
    )
    rows = [next(measured)]
    assert len(called) == 2 * 4  # a row comes as soon as it is measured
    rows += measured
    assert len(called) == cross_sampling.calls(SMALL, (0.0, 0.2), (1, 4, "auto"))
    assert all(tuple(row) == field_names(cross_sampling.COLUMNS) for row in rows)
    methods = [(row["method"], row["block"]) for row in rows]
    alone = [("plain-fixed", None), ("generate", None), ("plain", None)]
    mixed = [("lockstep", 1), ("block", 4), ("block", "auto")]
    assert methods == [*alone, *mixed, *mixed]
    assert {(row["pair"], row["device"], row["batch"]) for row in rows} == {("small", "cpu", 2)}
    assert all(row["tokens_per_s"] > 0 and row["cost_ratio"] > 0 for row in rows)
    fixed, generate, plain = rows[:3]
    assert fixed["cost_ratio"] == plain["cost_ratio"] == 1.0
    ratio = fixed["tokens_per_s"] / generate["tokens_per_s"]
    assert generate["cost_ratio"] == pytest.approx(ratio)
    assert [row["switch_rate"] for row in rows[:6]] == [None, None, None, 0, 0, 0]
    assert len({row["switch_rate"] for row in rows[6:]}) == 1 and 0 < rows[6]["switch_rate"] < 1
    for lockstep, block, auto in (rows[3:6], rows[6:]):
        assert lockstep["floor"] > 1 and block["floor"] > 1
        assert auto["floor"] == min(lockstep["floor"], block["floor"])


def test_a_threshold_meets_its_switch_rate(small):
    case = Case("small", "cpu", 4, rows=4, tokens=40, fixed=9, repeats=1)
    m = Measurement(case, small)
    responses = m.plain()
    assert {len(ids) for ids in responses} == {40}
    js = harness.js_along(small, responses, m.sampling, 4)
    zero, some = (m.threshold(rate, js) for rate in (0.0, 0.2))
    assert m.mixed(zero, 1) == (160, 0.0)
    assert 0.05 < m.mixed(some, 1)[1] < 0.5


def test_one_batch_of_one_length_by_both(small):
    m = Measurement(SMALL, small)
    before = small.primary.model.config._attn_implementation
    assert m.fixed() == m.generate("eager") == m.generate("sdpa") == 2 * 7
    assert small.primary.model.config._attn_implementation == before


def test_a_random_pair_is_one_model_and_one_near_it():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    pair = harness.random_pair(config, "cpu", rows=3)
    assert [len(prompt) for prompt in pair.prompts] == [harness.PROMPT] * 3
    for (name, a), (_, b) in zip(
        pair.primary.model.named_parameters(), pair.intervention.model.named_parameters()
    ):
        apart = float((a - b).detach().std() / a.detach().std()) if a.dim() > 1 else 0.0
        assert a.dim() < 2 or 0.5 * harness.NOISE < apart < 2 * harness.NOISE, name
    with torch.no_grad():
        logits = pair.primary.model(torch.tensor(pair.prompts)).logits[:, -1]
    assert float((logits / pair.temperature).std()) == pytest.approx(harness.SURENESS, rel=0.1)


def test_the_tiny_pair_writes_as_in_the_study():
    case = Case("tiny", "cpu", 4, rows=4, tokens=320, fixed=5, repeats=1)
    pair = harness.make_pair("tiny", "cpu", 4)
    assert len(pair.prompts) == 4 and pair.primary.name == "base"
    m = Measurement(case, pair)
    ends = set(pair.primary.eos_ids)
    assert all(len(ids) < 320 and ids[-1] in ends for ids in m.plain())
    assert m.fixed() == 4 * 5


def test_cases_without_their_device_are_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {case.device for case in select_cases(cross_sampling.CASES, ())} == {"cpu"}
    assert [case.pair for case in select_cases(cross_sampling.CASES, ["tiny"])] == ["tiny"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    big = select_cases(cross_sampling.CASES, ["qwen2.5-7b-shape"])
    assert [(case.device, case.batch) for case in big] == [("cuda", 16), ("cuda", 64)]
    assert [
        case.batch for case in select_cases(cross_sampling.CASES, ["qwen2.5-7b-shape"], [64])
    ] == [64]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cross-sampling", "--pair", "huge"], "no pair 'huge'"),
        (["cross-sampling", "--pair", "qwen2.5-7b-shape"], "need a CUDA device"),
        (["cross-sampling", "--pair", "tiny", "--batch", "5"], "no pair is measured at that batch"),
        (["scoring", "--pair", "huge"], "no pair 'huge'"),
        (["scoring", "--pair", "qwen2.5-7b-shape"], "need a CUDA device"),
        (["sweep", "--pair", "huge"], "no pair 'huge'"),
    ],
)
def test_the_command_refuses(arguments, expected, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_its_results_alone(as_json, small, capsys, monkeypatch):
    monkeypatch.setattr(cross_sampling, "CASES", (SMALL,))
    monkeypatch.setattr(harness, "make_pair", lambda *_: small)
    monkeypatch.setattr(cross_sampling, "RATES", (0.0,))
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "cross-sampling", *(["--json"] if as_json else [])])
    assert stopped.value.code == 0
    captured = capsys.readouterr()
    assert "small, batch 2" in captured.err  # progress
    if as_json:
        rows = json.loads(captured.out)
        assert [tuple(row) for row in rows] == [field_names(cross_sampling.COLUMNS)] * 8
    else:
        lines = captured.out.strip().splitlines()
        assert "torch" in lines[0] and lines[2].split()[:3] == ["pair", "device", "batch"]
        assert len(lines) == 3 + 8


def test_padding_stands_left():
    ids, mask = cross_sampling.left_pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_rows_as_text():
    row = filled(cross_sampling.COLUMNS, *("p", "cpu", 16, "block", 8, 0.0401, 1234.5, 1.318, 1.2))
    plain = filled(
        cross_sampling.COLUMNS, *("p", "cpu", 16, "plain", None, None, 2000.0, 1.0, None)
    )
    lines = [harness.line(cross_sampling.COLUMNS, row) for row in (plain, row)]
    assert lines[0].split() == ["p", "cpu", "16", "plain", "2000", "1.00"]
    assert lines[1].split() == ["p", "cpu", "16", "block", "8", "4.0%", "1234", "1.32", "1.20"]
    assert len({line.index("1.") for line in lines}) == 1


def test_a_list_that_is_stopped_is_a_list_of_what_was_measured(capsys):
    def stopped():
        yield {"a": 1}
        yield {"a": None}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.show((), stopped(), as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"a": 1}, {"a": None}]
    harness.show((), iter(()), as_json=True)
    assert json.loads(capsys.readouterr().out) == []


def test_a_quick_bench_measures_less(small, monkeypatch):
    seen, few = [], replace(small, prompts=small.prompts[:2])
    measure = cross_sampling.measure
    monkeypatch.setattr(
        cross_sampling, "measure", lambda case, *rest: seen.append(case) or measure(case, *rest)
    )
    monkeypatch.setattr(cross_sampling, "CASES", (SMALL,))
    monkeypatch.setattr(harness, "make_pair", lambda *_: few)
    rows = list(cross_sampling.bench(quick=True))
    assert (seen[0].rows, seen[0].repeats) == (2, 1) and len(rows) == 3 + 2 * 2


def test_every_signal_of_the_weighted_trainer_is_measured_beside_trls_own():
    rows = list(weighting.bench(repeats=1, rows=2))
    assert [row["signal"] for row in rows] == [weighting.UNWEIGHTED, *SIGNALS]
    assert rows[0]["extra"] == 0 and all(row["ms_per_step"] > 0 for row in rows)
    assert all(0 < row["ms_of_weights"] < row["ms_per_step"] for row in rows[1:])
    assert all(tuple(row) == field_names(weighting.COLUMNS) for row in rows)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_sweep_is_counted_and_printed(as_json, small, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "SWEEPS", (Sweep("small", 2, rows=4, tokens=20),))
    monkeypatch.setattr(harness, "make_pair", lambda *_: small)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "sweep", *(["--json"] if as_json else [])])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    if not as_json:
        assert out.strip().splitlines()[-1].split()[:4] == ["small", "cpu", "10", "40"]
        return
    (row,) = json.loads(out)
    assert tuple(row) == field_names(sweep.COLUMNS)
    assert row["settings"] == 2 * (1 + len(sweep.RATES))
    assert row["responses"] == 4 * row["settings"] and row["tokens"] == 20 * row["responses"]
    assert 4 * 20 <= row["distinct_prefixes"] < row["tokens"]
    assert row["cost_ratio"] > 0 and row["cost_ratio_separate"] > 0


def test_the_sweep_of_the_tiny_study_is_what_it_asks_for():
    walks = sweep.study_walks()
    assert len(set(walks)) == len(walks) > 50
    assert {walk.insertion.name for walk in walks} == {"intervention", "own", "extrapolated"}
