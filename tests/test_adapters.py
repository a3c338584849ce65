"""PEFT adapters as tuned models, on transformers: beside their base, over the same weights."""

import json
import shutil
import warnings

import pandas as pd
import peft
import pytest
import torch
import yaml
from conftest import WORDS, fetch_both, write_adapter, write_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.adapters import check_adapter, load_adapter
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.records.cross_sampling import CrossSampling
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.requests import common_parts
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.records.shifts_of_files import shifts_of_files
from tokenshift_utils.run.pair import write_pair
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
    policies = [load_adapter(base, path, f"lora{i}") for i, (path, _) in enumerate(adapters)]
    merged = [loaded(path, "merged") for _, path in adapters]
    for _ in range(2):  # whatever ran before
        assert torch.equal(logits(base), logits(plain))
        for policy, whole in zip(policies, merged):
            assert (logits(policy) - logits(whole)).abs().max() < 1e-5
            assert (logits(policy) - logits(plain)).abs().max() > 0.01
            a, b = (p.sample(PROMPTS, KEYS, SAMPLING) for p in (policy, whole))
            assert [r.ids for r in a] == [r.ids for r in b]


def test_weights_are_in_memory_once(base, adapters):
    first, second = (load_adapter(base, path, "lora") for path, _ in adapters)
    own = {weight.data_ptr() for weight in base.model.parameters() if weight.dim() > 1}
    assert own <= {weight.data_ptr() for weight in first.model.parameters()}
    assert own <= {weight.data_ptr() for weight in second.model.parameters()}
    assert load_adapter(base, adapters[0][0], "lora") is first
    assert len({base.fingerprint, first.fingerprint, second.fingerprint}) == 3


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_mixing_switches_between_steps(tiny_pair, base, adapters, direction):
    path, whole = adapters[0]
    pairs = [base, load_adapter(base, path, "lora")], [base, loaded(whole, "merged")]
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
    for request, columns in ((Rollouts, ["response_ids"]), (Shifts, ["token", "position"])):
        frames = [
            fetch(study, request.of(study, name), columns=columns) for name in ("tuned", "merged")
        ]
        assert frames[0].map(repr).equals(frames[1].map(repr))
    runs = [
        fetch_both(study, CrossSampling.of(study, "base", name))[0] for name in ("tuned", "merged")
    ]
    assert [list(x) for x in runs[0]["response_ids"]] == [list(x) for x in runs[1]["response_ids"]]
    assert load_policy(study, "base").model is not load_policy(study, "merged").model


def test_records_of_an_adapter_depend_on_its_base(study):
    assert set(common_parts(study, "sums", ["tuned"], "records.rollouts")["models"]) == {
        "tuned",
        "base",
    }
    assert set(common_parts(study, "sums", ["merged"], "records.rollouts")["models"]) == {"merged"}


def option(**settings):
    """A LoRA option by name, for a list of parameters."""
    return {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings}


OPTIONS = {  # what PEFT can save, by a name: its configuration's class and settings
    "plain": ("LoraConfig", option()),
    "bias of all": ("LoraConfig", option(bias="all")),
    "bias of lora only": ("LoraConfig", option(bias="lora_only")),
    "bias in lora": ("LoraConfig", option(lora_bias=True)),
    "dora": ("LoraConfig", option(use_dora=True)),
    "rslora": ("LoraConfig", option(use_rslora=True)),
    "head saved": ("LoraConfig", option(modules_to_save=["lm_head"])),
    "all ends saved": ("LoraConfig", option(modules_to_save=["lm_head", "embed_tokens"])),
    "norm saved": ("LoraConfig", option(modules_to_save=["norm"])),
    "trainable tokens": ("LoraConfig", option(trainable_token_indices=[4, 5])),
    "on embeddings": ("LoraConfig", option(target_modules=["embed_tokens", "q_proj"])),
    "on the head": ("LoraConfig", option(target_modules=["lm_head", "q_proj"])),
    "on tied ends": (
        "LoraConfig",
        option(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    ),
    "patterns": ("LoraConfig", option(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3})),
    "one layer": ("LoraConfig", option(layers_to_transform=[1], layers_pattern="layers")),
    "expression": ("LoraConfig", option(target_modules=r".*layers\.0\..*(q|k)_proj")),
    "all linear": ("LoraConfig", option(target_modules="all-linear")),
    "parameters": (
        "LoraConfig",
        option(target_modules=[], target_parameters=["mlp.down_proj.weight"]),
    ),
    "pissa": ("LoraConfig", option(init_lora_weights="pissa")),
    "olora": ("LoraConfig", option(init_lora_weights="olora")),
    "layers replicated": ("LoraConfig", option(layer_replication=[[0, 2], [1, 2]])),
    "adalora": ("AdaLoraConfig", {"total_step": 9, "target_modules": ["q_proj", "v_proj"]}),
    "ia3": (
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "loha": ("LoHaConfig", {"target_modules": ["q_proj", "v_proj"]}),
    "lokr": ("LoKrConfig", {"target_modules": ["q_proj", "v_proj"]}),
    "vera": ("VeraConfig", {"r": 4, "target_modules": ["q_proj", "v_proj"]}),
    "vera without projection": (
        "VeraConfig",
        {"r": 4, "target_modules": ["q_proj"], "save_projection": False},
    ),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "target_modules": ["q_proj"]}),
    "oft with bias": (
        "OFTConfig",
        {"r": 0, "oft_block_size": 4, "target_modules": ["q_proj"], "bias": "all"},
    ),
    "boft": ("BOFTConfig", {"boft_block_size": 4, "target_modules": ["q_proj"]}),
    "norms": ("LNTuningConfig", {}),
    "fourier": ("FourierFTConfig", {"n_frequency": 20, "target_modules": ["q_proj"]}),
    "householder": ("HRAConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "tokens": ("TrainableTokensConfig", {"token_indices": [4, 5]}),
    "vector bank": (
        "VBLoRAConfig",
        {"r": 2, "num_vectors": 8, "vector_length": 8, "target_modules": ["q_proj"]},
    ),
    "random bases": ("RandLoraConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "sparse": ("ShiraConfig", {"r": 2, "target_modules": ["q_proj"]}),
    "circular": ("C3AConfig", {"block_size": 4, "target_modules": ["q_proj"]}),
    "shards": ("MissConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "rotations": ("RoadConfig", {"group_size": 8, "target_modules": ["q_proj"]}),
    "wavelets": ("WaveFTConfig", {"n_frequency": 10, "target_modules": ["q_proj"]}),
    "delora": ("DeloraConfig", {"r": 4, "target_modules": ["q_proj"]}),
}
IDS = torch.tensor([[4, 5, 6, 7, 8, 9, 30, 12], [4, 1, 30, 31, 5, 9, 5, 4]])


def save_adapter(base, directory, kind="LoraConfig", resize=None, **settings):
    """Save a random adapter of any kind, its base resized or not."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if resize:
        model.resize_token_embeddings(resize)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.1 * torch.randn_like(weight)
        model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A model with biases, grouped heads and a head of its own."""
    directory = tmp_path_factory.mktemp("untied") / "base"
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,
        eos_token_id=1,
        tie_word_embeddings=False,
        attention_bias=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def live(tiny_pair, untied):
    """Bases that all options share, by whether they are tied, and their first logits."""
    made = {}
    for name, path in (("tied", tiny_pair.base), ("untied", untied)):
        policy = HFPolicy.load(path, name)
        with torch.no_grad():
            made[name] = path, policy, policy.model(input_ids=IDS).logits
    return made


@pytest.mark.parametrize("ends", ["tied", "untied"])
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_every_option_gives_pefts_own_logits_and_leaves_the_base(name, ends, live, tmp_path):
    path, base, plain = live[ends]
    kind, settings = OPTIONS[name]
    directory = save_adapter(path, tmp_path, kind, **settings)
    check_adapter(directory, path)
    on = load_adapter(base, directory, name)
    fresh = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    fresh = peft.PeftModel.from_pretrained(fresh, str(directory)).eval()
    fresh.set_attn_implementation(base.model.config._attn_implementation)  # the same rounding
    own = on.model(input_ids=IDS).logits
    theirs = fresh(input_ids=IDS).logits
    if name == "layers replicated":  # the copies keep the attention that they were copied with
        assert (own - theirs).abs().max() < 1e-5
    else:
        assert torch.equal(own, theirs)
    assert torch.equal(base.model(input_ids=IDS).logits, plain)
    assert (own - plain).abs().max() > 1e-4
    prompts, responses = IDS[:, :3].tolist(), IDS[:, 3:].tolist()
    scored = torch.cat([logits for _, logits in on.score(prompts, responses)], dim=1)
    assert (scored - own[:, 2:-1]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@torch.no_grad()
def test_other_dtypes_give_pefts_own_logits(dtype, tiny_pair, adapters):
    on = load_adapter(HFPolicy.load(tiny_pair.base, "base", dtype), adapters[0][0], "lora")
    fresh = AutoModelForCausalLM.from_pretrained(tiny_pair.base, dtype=getattr(torch, dtype))
    fresh = peft.PeftModel.from_pretrained(fresh, str(adapters[0][0])).eval()
    assert torch.equal(on.model(input_ids=IDS).logits, fresh(input_ids=IDS).logits)


@torch.no_grad()
def test_a_base_that_is_spread_keeps_its_devices(tiny_pair, adapters):
    plain, spread = (
        load_adapter(
            HFPolicy.load(tiny_pair.base, "base", device_map=placed), adapters[0][0], "lora"
        )
        for placed in (None, {"": "cpu"})
    )
    assert torch.equal(plain.model(input_ids=IDS).logits, spread.model(input_ids=IDS).logits)


RENAMED = {  # by what the sentence says: how the tensors were named
    "find no module": lambda key: key.replace(".weight", ".actor.weight"),
    "_fsdp_wrapped_module": lambda key: key.replace(
        "model.model.", "model._fsdp_wrapped_module.model."
    ),
    "find no module, the first base_model.model.model.language_model": lambda key: key.replace(
        "model.layers", "model.language_model.layers"
    ),
    "PEFT looks for base_model.model": lambda key: key.replace("base_model.model.", ""),
    "are not in its file": lambda key: None if "layers.1." in key else key,
    "find no module, the first base_model.model.model.layers.0.mlp.down_proj.lora_A.default": (
        lambda key: key.replace(".weight", ".default.weight")
    ),
}


@pytest.mark.parametrize("said", RENAMED)
def test_tensors_that_do_not_find_their_modules_are_refused(
    said, tiny_pair, base, adapters, tmp_path
):
    directory = shutil.copytree(adapters[0][0], tmp_path / "adapter")
    weights = load_file(directory / "adapter_model.safetensors")
    named = {RENAMED[said](key): tensor for key, tensor in weights.items()}
    named.pop(None, None)
    save_file(named, directory / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(TokenshiftError, match=f"does not fit base: .*{said}"):
        check_adapter(directory, tiny_pair.base)
    with pytest.raises(TokenshiftError, match=f"does not fit base: .*{said}"):
        load_adapter(base, directory, "lora")


NUMBERS = {  # by what the sentence says
    "holds NaN or infinity": lambda tensor: tensor / 0,
    "is of torch.int8": lambda tensor: tensor.to(torch.int8),
    "the logits with it are NaN or infinity": lambda tensor: torch.full_like(tensor, 1e30),
}


@pytest.mark.parametrize("said", NUMBERS)
def test_numbers_that_mean_nothing_are_refused(said, base, adapters, tmp_path):
    directory = shutil.copytree(adapters[0][0], tmp_path / "adapter")
    weights = load_file(directory / "adapter_model.safetensors")
    save_file(
        {k: NUMBERS[said](t) for k, t in weights.items()}, directory / "adapter_model.safetensors"
    )
    with pytest.raises(TokenshiftError, match=f"does not fit base: .*{said}"):
        load_adapter(base, directory, "lora")


def test_one_whose_model_runs_no_text_is_refused(tmp_path):
    """transformers' Qwen2 lists its layers in its configuration, which PEFT leaves as it is."""
    base = tmp_path / "qwen"
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(base)
    write_tokenizer(base)
    directory = save_adapter(base, tmp_path, **option(layer_replication=[[0, 2], [1, 2]]))
    with pytest.raises(TokenshiftError, match="the model with it runs no text"):
        load_adapter(HFPolicy.load(base, "base"), directory, "lora")


def test_a_name_of_the_base_too_long_for_a_path_is_a_name(tiny_pair, base, adapters, tmp_path):
    directory = shutil.copytree(adapters[0][0], tmp_path / "adapter")
    edit(directory, base_model_name_or_path="x" * 5000)
    with pytest.warns(UserWarning, match="was trained on xxx"):
        load_adapter(base, directory, "lora")


def test_another_shape_or_vocabulary_is_refused(tiny_pair, base, adapters, tmp_path):
    directory = shutil.copytree(adapters[0][0], tmp_path / "adapter")
    edit(directory, r=8)
    for refuse in (
        lambda d: check_adapter(d, tiny_pair.base),
        lambda d: load_adapter(base, d, "lora"),
    ):
        with pytest.raises(TokenshiftError, match="does not fit base: .*shape"):
            refuse(directory)
    resized = save_adapter(
        tiny_pair.base, tmp_path / "resized", resize=80, **option(modules_to_save=["lm_head"])
    )
    for refuse in (
        lambda d: check_adapter(d, tiny_pair.base),
        lambda d: load_adapter(base, d, "lora"),
    ):
        with pytest.raises(TokenshiftError, match="was resized to 80 tokens"):
            refuse(resized)


def edit(directory, **changes):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


KINDS = {  # by what the sentence says
    "type PREFIX_TUNING: it puts": ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "type PROMPT_TUNING: it puts": ("PromptTuningConfig", {"num_virtual_tokens": 4}),
    "activated LoRA": ("LoraConfig", option(alora_invocation_tokens=[4, 5])),
    "begun by 'pissa_niter_4'": ("LoraConfig", option(init_lora_weights="pissa_niter_4")),
    "type GRALORA, which is not known": ("GraloraConfig", {"r": 4, "target_modules": ["q_proj"]}),
}


@pytest.mark.parametrize("said", KINDS)
def test_kinds_that_cannot_be_shown_equal_are_refused(said, tiny_pair, base, tmp_path):
    kind, settings = KINDS[said]
    directory = save_adapter(tiny_pair.base, tmp_path, kind, **settings)
    for refuse in (
        lambda d: check_adapter(d, tiny_pair.base),
        lambda d: load_adapter(base, d, "lora"),
    ):
        with pytest.raises(TokenshiftError, match=said):
            refuse(directory)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"peft_type": "NEXT_YEARS"}, "of type NEXT_YEARS"),
        ({"task_type": "SEQ_CLS"}, "task SEQ_CLS"),
        ({"use_next_years": True}, "does not know .use_next_years."),
        ({"peft_type": None}, "names no 'peft_type'"),
        ({"target_modules": ["nothing"]}, "does not fit base"),
        ({"base_model_name_or_path": 5}, "names no model in base_model_name_or_path"),
        ({"base_model_name_or_path": "a\0b"}, "names no model in base_model_name_or_path"),
    ],
)
def test_configurations_that_mean_something_else_are_refused(
    changes, said, tiny_pair, base, adapters, tmp_path
):
    directory = shutil.copytree(adapters[0][0], tmp_path / "adapter")
    edit(directory, **changes)
    for refuse in (
        lambda d: check_adapter(d, tiny_pair.base),
        lambda d: load_adapter(base, d, "lora"),
    ):
        with pytest.raises(TokenshiftError, match=said):
            refuse(directory)


@pytest.mark.parametrize("option", ["use_dora", "alpha_pattern", "bias", "modules_to_save"])
def test_what_vllm_does_not_apply_is_refused_there(option, tiny_pair, adapters, tmp_path):
    value = {"alpha_pattern": {"q_proj": 3}, "bias": "all", "modules_to_save": ["lm_head"]}
    directory = save_adapter(
        tiny_pair.base,
        tmp_path,
        **{"target_modules": ["q_proj"], option: value.get(option, True)},
    )
    check_adapter(directory, tiny_pair.base)
    with pytest.raises(TokenshiftError, match=f"uses {option}, which vllm does not apply"):
        check_adapter(directory, tiny_pair.base, vllm=True)
    check_adapter(adapters[0][0], tiny_pair.base, vllm=True)


def test_another_base_is_said_and_refused_where_its_weights_are_here(
    tiny_pair, base, adapters, tmp_path
):
    directory = shutil.copytree(adapters[0][0], tmp_path / "adapter")
    looks = (
        lambda: check_adapter(directory, tiny_pair.base),
        lambda: load_adapter(base, directory, "a"),
    )
    edit(directory, base_model_name_or_path=str(tiny_pair.tuned))
    for look in looks:
        with pytest.raises(TokenshiftError, match="whose weights are not those of"):
            look()
    same = shutil.copytree(tiny_pair.base, tmp_path / "elsewhere")
    for named in (str(same), "somebody/base", "/not/here/Base"):
        edit(directory, base_model_name_or_path=named)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            looks[0](), looks[1]()
    for named, said in (("Qwen/Qwen2.5-7B", "trained on Qwen/Qwen2.5-7B"), (None, "does not say")):
        edit(directory, base_model_name_or_path=named)
        for look in looks:
            with pytest.warns(UserWarning, match=said):
                look()


def test_one_that_changes_nothing_is_said(tiny_pair, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_pair.base)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="may never have been trained"):
        load_adapter(base, tmp_path, "lora")


def test_a_folder_of_adapters_and_one_beside_a_model_are_said(tiny_pair, adapters, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(adapters[0][0], tmp_path / "several" / name)
    with pytest.raises(TokenshiftError, match="folders of their own .first, second."):
        check_adapter(tmp_path / "several", tiny_pair.base)
    both = shutil.copytree(adapters[0][0], tmp_path / "both")
    shutil.copytree(tiny_pair.base, both, dirs_exist_ok=True)
    with pytest.raises(TokenshiftError, match="a whole model .* beside an adapter"):
        check_adapter(both, tiny_pair.base)
    pickled = shutil.copytree(adapters[0][0], tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(TokenshiftError, match="adapter_model.bin may hold code"):
        check_adapter(pickled, tiny_pair.base)


def test_commands_take_an_adapter_as_the_tuned_model(tiny_pair, adapters, mini_root):
    adapter, merged = adapters[0]
    given = mini_root / "given.jsonl"
    given.write_text(json.dumps({"prompt": "question: what", "response": " is 1+1?"}) + "\n")
    tables = []
    for path in (adapter, merged):
        shifts_of_files(tiny_pair.base, path, given, mini_root / "out.parquet", dtype="float64")
        tables.append(pd.read_parquet(mini_root / "out.parquet"))
    assert (tables[0].js_full - tables[1].js_full).abs().max() < 1e-6
    assert tables[0].js_full.max() > 1e-4
    problems = mini_root / "problems.jsonl"
    problems.write_text(json.dumps({"problem": "question: what is 1+1?", "answer": "2"}) + "\n")
    file = write_pair(tiny_pair.base, adapter, problems, "with-adapter")
    assert yaml.safe_load(file.read_text())["models"]["tuned"]["path"] == str(adapter)
    with pytest.raises(TokenshiftError, match="no model of its own: give it as the tuned model"):
        write_pair(adapter, tiny_pair.base, problems, "upside-down")
    with pytest.raises(TokenshiftError, match="no model of its own: give it as the tuned model"):
        shifts_of_files(adapter, tiny_pair.base, given, mini_root / "out.parquet")
