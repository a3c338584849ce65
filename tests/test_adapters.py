"""PEFT adapters as tuned models, on transformers: one base, the adapter switched on and off."""

import pytest
import torch
import yaml
from conftest import write_adapter

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.adapters import put_on
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import get_cross_sampling
from tokenshift_utils.records.requests import common_parts
from tokenshift_utils.records.rollouts import get_rollouts
from tokenshift_utils.records.shifts import get_shifts
from tokenshift_utils.study.study import load_study

PROMPTS = [[4, 5, 6, 7 + i] for i in range(8)]
KEYS = [row_key(3, "bench", str(i), 0) for i in range(8)]
SAMPLING = Sampling(1.0, 0.9, 24)


@pytest.fixture(scope="module")
def adapters(tiny_pair, tmp_path_factory):
    """(adapter, merged model) of two random adapters."""
    directory = tmp_path_factory.mktemp("adapters")
    return [write_adapter(tiny_pair.base, directory / str(seed), seed) for seed in (1, 2)]


def loaded(path, name):
    return HFPolicy.load(path, name, "float64")


@pytest.fixture
def base(tiny_pair):
    return loaded(tiny_pair.base, "base")


def logits(policy):
    responses = [[8, 9, 10, 11]] * len(PROMPTS)
    return torch.cat([block for _, block in policy.score(PROMPTS, responses)], dim=1)


def test_on_is_the_merged_model_and_off_is_the_base(tiny_pair, base, adapters):
    plain = loaded(tiny_pair.base, "plain")
    policies = [put_on(base, path, f"lora{i}") for i, (path, _) in enumerate(adapters)]
    merged = [loaded(path, "merged") for _, path in adapters]
    for _ in range(2):  # whatever ran before
        assert torch.equal(logits(base), logits(plain))
        for policy, whole in zip(policies, merged):
            assert (logits(policy) - logits(whole)).abs().max() < 1e-5
            assert (logits(policy) - logits(plain)).abs().max() > 0.01
            a, b = (p.sample(PROMPTS, KEYS, SAMPLING) for p in (policy, whole))
            assert [r.ids for r in a] == [r.ids for r in b]


def test_weights_are_in_memory_once(base, adapters):
    first, second = (put_on(base, path, "lora") for path, _ in adapters)
    own = {id(weight) for weight in base.model.parameters()}
    assert own == {id(weight) for weight in first.model.parameters()}
    assert own == {id(weight) for weight in second.model.parameters()}
    assert len({base.fingerprint, first.fingerprint, second.fingerprint}) == 3


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_mixing_switches_between_steps(tiny_pair, base, adapters, direction):
    path, whole = adapters[0]
    pairs = [base, put_on(base, path, "lora")], [base, loaded(whole, "merged")]
    pairs = [pair if direction == "forward" else pair[::-1] for pair in pairs]
    runs = [cross_sample(*pair, PROMPTS, KEYS, Rule("js", 0.02), SAMPLING, 8)[0] for pair in pairs]
    assert [r.ids for r in runs[0]] == [r.ids for r in runs[1]]
    assert sum(run.n_switched for run in runs[0]) > 0


@pytest.fixture
def study(mini_root, adapters):
    file = mini_root / "notebooks/studies/mini.yaml"
    content = yaml.safe_load(file.read_text())
    for name, path in zip(("tuned", "merged"), adapters[0]):
        content["models"][name] = {"path": str(path), "label": name, "kind": "rl"}
    file.write_text(yaml.safe_dump(content))
    return load_study("mini").with_overrides(dtype="float64")


def test_a_study_of_an_adapter_is_that_of_the_merged_model(study):
    for get in (get_rollouts, get_shifts):
        frames = [get(study, name) for name in ("tuned", "merged")]
        for column in ("response_ids",) if get is get_rollouts else ("token", "position"):
            assert [list(x) if get is get_rollouts else x for x in frames[0][column]] == [
                list(x) if get is get_rollouts else x for x in frames[1][column]
            ]
    runs = [get_cross_sampling(study, "base", name)[0] for name in ("tuned", "merged")]
    assert [list(x) for x in runs[0]["response_ids"]] == [list(x) for x in runs[1]["response_ids"]]
    assert load_policy(study, "base").model is not load_policy(study, "merged").model


def test_records_of_an_adapter_depend_on_its_base(study):
    assert set(common_parts(study, "sums", ["tuned"])["models"]) == {"tuned", "base"}
    assert set(common_parts(study, "sums", ["merged"])["models"]) == {"merged"}


def test_what_is_no_fitting_adapter_is_refused(base, adapters, tmp_path):
    from peft import LoraConfig

    LoraConfig(r=2, target_modules=["nothing"]).save_pretrained(tmp_path)
    with pytest.raises(TokenshiftError, match="has no \\*.safetensors"):
        put_on(base, tmp_path, "lora")
    (tmp_path / "adapter_model.safetensors").write_bytes(
        (adapters[0][0] / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(TokenshiftError, match="does not fit base"):
        put_on(base, tmp_path, "lora")
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(TokenshiftError, match="of type IA3"):
        put_on(base, tmp_path, "lora")
