"""Weight files: what the model needs and doesn't find, or drops, is refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.study.weights import check_weights

Q = "model.layers.0.self_attn.q_proj"
LORA = {f"{Q}.lora_A.default.weight": torch.ones(4, 32), f"{Q}.lora_B.weight": torch.ones(32, 4)}
REFUSED = {  # by what the sentence says: what was done to the tensors
    "'_orig_mod.' in the names .* torch.compile": lambda w: prefixed(w, "_orig_mod."),
    "'module.' in the names .* DistributedData": lambda w: prefixed(w, "module."),
    "'base_model.model.' in the names .* PEFT": lambda w: prefixed(w, "base_model.model."),
    "'_fsdp_wrapped_module.' in the names .* FSDP": lambda w: {
        key.replace("layers.", "layers._fsdp_wrapped_module."): x for key, x in w.items()
    },
    "'actor.' before the names": lambda w: prefixed(w, "actor."),
    "an adapter that is not merged .2 tensors": lambda w: w | LORA,
    "an adapter that is not merged .1 tensors": lambda w: renamed(w, f"{Q}.base_layer.weight"),
    "lack or misshape 1 tensors, the first " + Q: lambda w: renamed(w, None),
    "lack or misshape 1 tensors, the first .*shape .36, 16. in the file": lambda w: (
        w | {"model.embed_tokens.weight": torch.ones(36, 16)}
    ),
    "hold 1 tensors .* no place, the first model.layers.2": lambda w: (
        w | {"model.layers.2.mlp.up_proj.weight": torch.ones(64, 32)}
    ),
    "hold 1 tensors .* no place, the first model.layers.0.attn.bias": lambda w: (
        w | {"model.layers.0.attn.bias": torch.ones(32)}
    ),
    "hold another lm_head.weight than model.embed_tokens.weight": lambda w: (
        w | {"lm_head.weight": -w["model.embed_tokens.weight"]}
    ),
    # transformers takes names without "model." too
    "hold another lm_head.weight than .*embed_tokens.weight, though": lambda w: (
        {key.removeprefix("model."): x for key, x in w.items()}
        | {"lm_head.weight": -w["model.embed_tokens.weight"]}
    ),
    "hold " + Q + ".weight as I8, whole numbers": lambda w: (
        w | {f"{Q}.weight": w[f"{Q}.weight"].to(torch.int8)}
    ),
}


def prefixed(weights, prefix):
    return {prefix + key: tensor for key, tensor in weights.items()}


def renamed(weights, name):
    """The weights with one of another name, or without it."""
    others = {key: tensor for key, tensor in weights.items() if key != f"{Q}.weight"}
    return others | ({name: weights[f"{Q}.weight"]} if name else {})


@pytest.fixture
def directory(tiny_pair, tmp_path):
    return shutil.copytree(tiny_pair.base, tmp_path / "model")


def change(directory, how):
    file = directory / "model.safetensors"
    made = {key: tensor.contiguous().clone() for key, tensor in how(load_file(file)).items()}
    save_file(made, file, {"format": "pt"})


@pytest.mark.parametrize("said", REFUSED)
def test_tensors_that_the_model_lacks_or_drops_are_refused(said, directory):
    change(directory, REFUSED[said])
    for look in (check_weights, lambda d: HFPolicy.load(d, "model")):
        with pytest.raises(TokenshiftError, match=said):
            look(directory)


@pytest.mark.parametrize(
    "more",
    [
        {"v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,)},
        {"score.weight": (1, 32)},
        {"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)},
        {"model.layers.0.attn.bias": (1, 1, 4, 4), "model.layers.0.attn.masked_bias": ()},
        {"lm_head.weight": None},  # the very embeddings
    ],
)
@torch.no_grad()
def test_what_is_harmless_changes_nothing(more, directory, tiny_pair):
    def add(weights):
        own = weights["model.embed_tokens.weight"]
        return weights | {k: own if s is None else torch.ones(s) for k, s in more.items()}

    change(directory, add)
    check_weights(directory)
    ids = torch.tensor([[4, 5, 6]])
    plain, mine = (HFPolicy.load(d, "m").model(ids).logits for d in (tiny_pair.base, directory))
    assert torch.equal(plain, mine)


def test_an_absent_head_that_is_not_tied_is_refused(directory):
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(TokenshiftError, match="the first lm_head.weight"):
        check_weights(directory)


def test_files_that_are_none_or_two_sets_are_named(directory):
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 98765\n"
    for name in ("model.safetensors", "tokenizer.json"):
        kept = (directory / name).read_bytes()
        (directory / name).write_bytes(pointer)
        with pytest.raises(TokenshiftError, match=f"{name} is not the file itself but git-lfs"):
            check_weights(directory)
        (directory / name).write_bytes(kept)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(TokenshiftError, match="lacks model-00001-of-00002.safetensors"):
        check_weights(directory)
    (directory / "model-00001-of-00002.safetensors").write_bytes(content)
    with pytest.raises(TokenshiftError, match="has model.safetensors beside the files"):
        check_weights(directory)
    index.write_text("[]")
    with pytest.raises(TokenshiftError, match="is no list of weight files"):
        check_weights(directory)
    index.unlink(), weights.unlink()
    with pytest.raises(TokenshiftError, match="neither model.safetensors nor"):
        check_weights(directory)
    (directory / "model-00001-of-00002.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(TokenshiftError, match="pytorch_model.bin may hold code"):
        check_weights(directory)


def test_a_list_of_files_that_lacks_a_tensor_is_refused(directory):
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    first, *others = sorted(weights)
    for number, names in enumerate(([first], others[1:]), 1):
        part = {name: weights[name] for name in names}
        save_file(part, directory / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})
    shards = {name: "model-00002-of-00002.safetensors" for name in others}
    listed = {"metadata": {}, "weight_map": shards | {first: "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(listed))
    with pytest.raises(TokenshiftError, match=f"the first {others[0]}"):
        check_weights(directory)


CONFIG, GENERATION = "config.json", "generation_config.json"
BAD = {  # what is in a file
    "no JSON": (CONFIG, b"{"),
    "null": (CONFIG, b"null"),
    "nested": (CONFIG, b"[" * 100_000),
    "a byte order mark": (CONFIG, b"\xef\xbb\xbf{}"),
    "a text for a number": (CONFIG, {"hidden_size": "32"}),
    "no layers": (CONFIG, {"num_hidden_layers": -1}),
    "an unknown dtype": (CONFIG, {"dtype": "float99"}),
    "an end that is no id": (CONFIG, {"eos_token_id": "1"}),
    "ends that are no JSON": (GENERATION, b"{"),
    "a list of ends": (GENERATION, b"[1]"),
    "ends that are no ids": (GENERATION, {"eos_token_id": ["<eos>"]}),
    "ends in UTF-16": (GENERATION, '{"eos_token_id": 1}'.encode("utf-16")),
    "ends behind a byte order mark": (GENERATION, b'\xef\xbb\xbf{"eos_token_id": 1}'),
}


@pytest.mark.parametrize("what", BAD)
def test_a_configuration_that_cannot_be_used_is_one_sentence(what, directory):
    name, content = BAD[what]
    file = directory / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content).encode()
    file.write_bytes(content)
    with pytest.raises(TokenshiftError, match=f"{directory}(/{name})? ") as refused:
        HFPolicy.load(directory, "model")
    assert "\n" not in str(refused.value)


def test_a_list_of_files_of_numbers_is_refused(directory):
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}')
    with pytest.raises(TokenshiftError, match="is no list of weight files"):
        check_weights(directory)
