"""What a GPU must do as a CPU does, in float32; and two engines on one GPU. ``-m gpu``, with CUDA."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import CHECKOUT, margin
from test_teacher_forcing import compared

from tokenshift_utils.bench import scoring
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.requests import items
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import load_benchmark

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SAMPLING, RULE = Sampling(1.0, 0.7, 160), Rule("js", 0.1)
NAMES = "base", "dapo"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setenv("TOKENSHIFT_HOME", str(CHECKOUT))
    return load_study("smoke").with_overrides(workers=0)


def pair_on(study, device, dtype="float32"):
    return [HFPolicy.load(study.model_path(n), n, dtype, device) for n in NAMES]


def prompts_and_keys(study, policy):
    made = items(study, policy, "hard", load_benchmark(study, "hard"), 4)
    return [list(m.prompt_ids) for m in made], [m.key for m in made]


def assert_part_only_where_close(study, given, one, other):
    """Mixed responses that part do so where the choice was within rounding; few do."""
    exact, parted = pair_on(study, "cpu", "float64"), 0
    for prompt, key, a, b in zip(*given, one, other, strict=True):
        if a.ids != b.ids:
            at = next(i for i, (x, y) in enumerate(zip(a.ids, b.ids)) if x != y)
            assert margin(exact, prompt, a.ids[:at], key, RULE, SAMPLING) < 1e-4
            parted += 1
    assert parted <= len(one) // 6


def test_a_gpu_finds_what_a_cpu_finds(tiny_pair):
    directories = tiny_pair.base, tiny_pair.tuned
    pairs = [[HFPolicy.load(d, d.name, device=where) for d in directories] for where in ("cpu", "cuda")]  # fmt: skip
    (_, want), (_, found) = (compared(pair) for pair in pairs)
    names = ("logp_base", "logp_tuned", "js_full", "kl_base_tuned", "entropy_base", "tv_full")
    for name in names:  # (the nucleus may part at an edge)
        np.testing.assert_allclose(found[name], want[name], rtol=0, atol=1e-4, err_msg=name)


def test_a_gpu_writes_what_a_cpu_writes(study):
    cpu, gpu = (pair_on(study, device) for device in ("cpu", "cuda"))
    given = prompts_and_keys(study, cpu[0])
    (a, of_a), (b, _) = (cross_sample(*pair, *given, RULE, SAMPLING, 8) for pair in (cpu, gpu))
    assert len(of_a["row"])
    assert_part_only_where_close(study, given, a, b)


def test_a_gpu_needs_no_more_memory_for_a_longer_response():
    short, long = (
        scoring.measure_alone(scoring.Case("small-152k", "cuda", length, repeats=1))
        for length in (1024, 8192)
    )
    assert short["extra_peak_bytes"] < 2**30 and long["extra_peak_bytes"] < 2**30
    assert long["extra_peak_bytes"] - short["extra_peak_bytes"] < 2**26


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm: pip install -e '.[test,vllm]'")  # fmt: skip
@pytest.mark.parametrize("apart", [False, True], ids=["one GPU", "two GPUs"])
def test_two_engines_share_a_gpu_or_have_one_each(study, apart):
    from tokenshift_utils.models import vllm_engine

    if apart and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    own = {n: {"devices": [i]} for i, n in enumerate(NAMES)} if apart else {}
    settings = {"gpu_memory_utilization": 0.2, "models": own}
    served = study.with_overrides(backend="vllm", vllm=settings)
    vllm_engine.stop_engines()
    pair = [load_policy(served, name) for name in NAMES]
    cpu = pair_on(study, "cpu")
    given = prompts_and_keys(study, cpu[0])
    (a, _), (b, _) = (cross_sample(*each, *given, RULE, SAMPLING, 8) for each in (cpu, pair))
    assert [policy.setup in vllm_engine._running for policy in pair] == [True, True]
    assert_part_only_where_close(study, given, a, b)
