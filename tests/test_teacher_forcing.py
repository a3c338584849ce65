"""A model's body once, its head in pieces: against the plain forward, whatever the pieces are."""

import numpy as np
import pytest
import torch
import transformers
from test_huggingface import SMALL, NoTokenizer, plain_logits

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.models import memory, teacher_forcing
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.memory import OutOfMemory, halving, keep_last, positions_at_once
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.models.sessions import HFSession
from tokenshift_utils.models.teacher_forcing import SplitModel
from tokenshift_utils.pairs.compare import score_pair
from tokenshift_utils.study.study import load_study

PROMPTS = [[4, 13, 5, 6], [7], [4, 5, 16, 24, 20, 25, 17, 3]]
RESPONSES = [list(range(5, 14)), [9, 8, 7], list(range(20, 36))]
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
ARCHITECTURES = {
    "qwen 2": ("Qwen2", SMALL),
    "gemma 2, logits capped": (
        "Gemma2",
        SMALL | {"sliding_window": 5, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},
    ),
    "cohere, logits scaled": ("Cohere", SMALL | {"logit_scale": 0.3}),
    "granite, logits scaled": ("Granite", SMALL | {"logits_scaling": 7.0}),
    "gpt 2, another output": ("GPT2", GPT2 | {"initializer_range": 0.3}),
    "olmo 2, norms elsewhere": ("Olmo2", SMALL),
    "mamba, no cache of ours": (
        "Mamba",
        {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
}


def build(name: str, dtype=torch.float64, seed: int = 0) -> HFPolicy:
    stem, arguments = ARCHITECTURES[name]
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = getattr(transformers, f"{stem}Config")(**(arguments | special))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    return HFPolicy(model, NoTokenizer(), name)


def places():
    rows = [row for row, response in enumerate(RESPONSES) for _ in response]
    positions = [t for response in RESPONSES for t in range(len(response))]
    return torch.tensor(rows), torch.tensor(positions)


def scored(policy):
    """Logits at all real positions, ``[n, V]``."""
    return policy.scorer(PROMPTS, RESPONSES)(*places())


def plain(policy):
    whole = [
        plain_logits(policy, prompt + response)[len(prompt) - 1 : -1]
        for prompt, response in zip(PROMPTS, RESPONSES)
    ]
    return torch.cat(whole)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.*reads every text anew")
def test_any_architecture_is_scored_as_by_its_plain_forward(name, monkeypatch):
    policy = build(name)
    assert policy.keeps_states and policy._is_split
    want = plain(policy)
    torch.testing.assert_close(scored(policy), want, rtol=0, atol=1e-10)
    monkeypatch.setattr(teacher_forcing, "CHUNK", 3)  # pieces of the body
    torch.testing.assert_close(scored(policy), want, rtol=0, atol=1e-10)
    monkeypatch.setattr(policy, "_windows", None)  # the body at once, as on a GPU
    torch.testing.assert_close(scored(policy), want, rtol=0, atol=1e-10)
    read = policy.scorer(PROMPTS, RESPONSES)
    rows, positions = places()
    some = torch.tensor([20, 3, 3, 11])  # any places, in any order
    torch.testing.assert_close(read(rows[some], positions[some]), want[some], rtol=0, atol=1e-10)


def test_the_model_is_left_as_it_was():
    policy = build("qwen 2")
    before = plain_logits(policy, PROMPTS[0])
    scored(policy)
    assert "forward" not in policy.model.base_model.__dict__
    assert torch.equal(plain_logits(policy, PROMPTS[0]), before)
    own = policy.model.base_model.forward
    policy.model.base_model.forward = own  # as hooks that move weights between devices do
    with pytest.raises(IndexError):
        policy.scorer(PROMPTS, RESPONSES)(torch.tensor([5]), torch.tensor([0]))
    assert policy.model.base_model.__dict__["forward"] is own


def pair_of(name, dtype=torch.float64):
    tuned = build(name, dtype)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in tuned.model.parameters():
            weight += 0.05 * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0.0
    return build(name, dtype), tuned


def compared(pair, rows=3):
    parts = list(score_pair(*pair, PROMPTS, RESPONSES, Sampling(1.0, 0.7), 4, rows))
    owner = np.concatenate([o for o, _ in parts])
    merged = {n: np.concatenate([c[n] for _, c in parts]) for n in parts[0][1]}
    order = np.lexsort((merged["position"], owner))
    return [len(o) for o, _ in parts], {n: v[order] for n, v in merged.items()}


def assert_same(one, other, atol):
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=0, atol=atol, err_msg=name)


def test_a_model_that_is_more_than_body_and_head_is_scored_by_its_forward():
    pair = pair_of("qwen 2")
    _, want = compared(pair)
    biased = pair_of("qwen 2")
    for policy in biased:
        forward = policy.model.forward

        def more(input_ids, forward=forward, **kwargs):  # what is added is none of the body's
            output = forward(input_ids, **kwargs)
            ids = input_ids[:, -output.logits.shape[1] :]
            output.logits[..., 3] += (ids % 3).to(output.logits.dtype)
            return output

        policy.model.forward = more
    with pytest.warns(UserWarning, match="scored by whole forwards.*logits differ"):
        _, found = compared(biased)
    assert np.abs(found["js_full"] - want["js_full"]).max() > 1e-4
    expected = [torch.log_softmax(plain(policy), -1) for policy in biased]
    for policy, logp, side in zip(biased, expected, ("base", "tuned")):
        ids = torch.tensor(found["token"])
        of_tokens = logp.gather(-1, ids[:, None]).squeeze(-1)
        np.testing.assert_allclose(found[f"logp_{side}"], of_tokens, atol=1e-10)


# How much at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 5, 28])
def test_results_do_not_depend_on_how_much_is_done_at_once(at_once, monkeypatch):
    pair = pair_of("gemma 2, logits capped")
    sizes, want = compared(pair)
    assert sizes == [28]
    monkeypatch.setattr(memory, "CPU_LOGITS", at_once * 40)
    sizes, found = compared(pair)
    assert max(sizes) == at_once and sum(sizes) == 28
    assert_same(want, found, 1e-12)
    assert_same(want, compared(pair, rows=1)[1], 1e-12)


def test_no_more_logits_than_that_are_ever_made(monkeypatch):
    policy, tuned = pair_of("qwen 2")
    made = []
    for part in (policy, tuned):
        assert part._is_split and part._windows  # trials, made once
        part.model.lm_head.register_forward_hook(lambda _, __, logits: made.append(logits.numel()))
    monkeypatch.setattr(memory, "CPU_LOGITS", 4 * 40)
    compared((policy, tuned))
    assert max(made) == 4 * 40 and len(made) == 2 * 7 + 1


def test_the_pieces_of_a_long_text_are_shorter(monkeypatch):
    policy, shapes = build("qwen 2"), []
    assert policy._is_split and policy._windows
    want = plain(policy)
    monkeypatch.setattr(teacher_forcing, "CPU_PAIRS", 4 * 16)
    read = HFSession.read
    monkeypatch.setattr(
        HFSession,
        "read",
        lambda s, ids, *a, **kw: shapes.append(ids.shape[1]) or read(s, ids, *a, **kw),
    )
    torch.testing.assert_close(scored(policy), want, rtol=0, atol=1e-10)
    assert shapes[1:] == [4, 4, 4, 4]  # after the prompts


def test_out_of_memory_halves_and_goes_on(monkeypatch):
    pair = pair_of("qwen 2")
    _, want = compared(pair)
    head, failed = SplitModel.logits, []

    def short_of_memory(split, states):
        if len(states) > 10:
            failed.append(len(states))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return head(split, states)

    monkeypatch.setattr(SplitModel, "logits", short_of_memory)
    sizes, found = compared(pair)
    assert failed == [28, 14] and sizes == [7, 7, 7, 7]
    assert_same(want, found, 1e-12)


def test_a_body_out_of_memory_is_read_row_by_row_then_by_pieces(monkeypatch):
    policy = build("qwen 2")
    want, body, shapes = plain(policy), SplitModel.states, []
    assert policy._is_split

    def short_of_memory(limit):
        def states(split, ids):
            shapes.append(tuple(ids.shape))
            if ids.numel() > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return body(split, ids)

        return states

    monkeypatch.setattr(teacher_forcing, "_on_cpu", lambda split: False)
    monkeypatch.setattr(SplitModel, "states", short_of_memory(30))
    torch.testing.assert_close(scored(policy), want, rtol=0, atol=1e-10)
    assert shapes == [(3, 23), (1, 12), (1, 3), (1, 23)]
    monkeypatch.setattr(SplitModel, "states", short_of_memory(13))
    torch.testing.assert_close(scored(policy), want, rtol=0, atol=1e-10)
    monkeypatch.setattr(policy, "_windows", None)
    with pytest.raises(OutOfMemory, match="'batch.score'"):
        scored(policy)


def test_halving():
    def work(start, stop):
        if stop - start > limit[0]:
            raise torch.OutOfMemoryError
        return stop - start

    limit = [3]
    assert list(halving(10, 8, work)) == [(0, 2, 2), (2, 4, 2), (4, 6, 2), (6, 8, 2), (8, 10, 2)]
    assert list(halving(7, 3, work)) == [(0, 3, 3), (3, 6, 3), (6, 7, 1)]
    limit[0] = 0
    with pytest.raises(TokenshiftError, match="'device_map'"):
        list(halving(4, 4, work))


def test_how_much_at_once_follows_the_memory_there_is(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    free = [80 * 2**30]
    monkeypatch.setattr(memory, "available", lambda device: free[0])
    much = positions_at_once(151_936, torch.bfloat16, cuda)
    assert much * 151_936 * 4 * memory.ARRAYS <= 2**30 and much > 128
    assert positions_at_once(151_936, torch.float64, cuda) == much // 2
    assert positions_at_once(151_936, torch.float32, cpu) < 64
    free[0] = 2**28
    assert positions_at_once(151_936, torch.bfloat16, cuda) < much // 4
    free[0] = 0
    assert positions_at_once(151_936, torch.bfloat16, cuda) == 1


def test_the_memory_there_is():
    assert 2**20 < memory.available(torch.device("cpu")) < 2**50


# Over several devices ---------------------------------------------------------------------------


MODULES = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm")
MODULES += ("model.rotary_emb", "lm_head")


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "cpu"},
        dict.fromkeys(MODULES, "cpu") | {"model.layers.1": "disk"},
        dict.fromkeys(MODULES, "disk") | {"model.rotary_emb": "cpu"},
    ],
    ids=["one device", "a layer on disk", "all on disk"],
)
def test_a_model_spread_over_devices_scores_alike(tiny_pair, device_map):
    whole = HFPolicy.load(tiny_pair.base, "whole", "float64")
    spread = HFPolicy.load(tiny_pair.base, "spread", "float64", device_map=device_map)
    there = {weight.device.type for weight in spread.model.parameters()}
    assert ("meta" in there) == ("disk" in device_map.values())
    assert spread._windows is not None and spread._is_split
    want = scored(whole)
    torch.testing.assert_close(scored(spread), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(scored(spread), want, rtol=0, atol=1e-10)  # hooks are still there
    split = SplitModel(spread.model)
    at_once = teacher_forcing._states_at_once(split, PROMPTS, RESPONSES)
    torch.testing.assert_close(split.logits(at_once[places()]), want, rtol=0, atol=1e-10)
    keys = [3, 4, 5]
    drawn = [p.sample(PROMPTS, keys, Sampling(1.0, 0.7, 6)) for p in (whole, spread)]
    assert [c.ids for c in drawn[0]] == [c.ids for c in drawn[1]]


def test_a_device_map_with_a_device_that_is_not_there_is_refused(tiny_pair):
    with pytest.raises(TokenshiftError, match="'device_map'"):
        HFPolicy.load(tiny_pair.base, "base", device_map={"": "nowhere"})


def test_a_study_spreads_its_models(mini_root, monkeypatch):
    given = []
    load = HFPolicy.load
    monkeypatch.setattr(HFPolicy, "load", lambda *a, **kw: given.append(kw) or load(*a, **kw))
    study = load_study("mini").with_overrides(device_map={"": "cpu"})
    assert load_policy(study, "base") is load_policy(study, "base")
    assert [call["device_map"] for call in given] == [{"": "cpu"}]
    assert load_policy(load_study("mini"), "base") is not load_policy(study, "base")
    with pytest.raises(TokenshiftError, match="'device_map"):
        study.with_overrides(device_map="everywhere")


@pytest.mark.parametrize("on_gpus, kept", [(True, 2), (False, 4)])
def test_few_policies_stay_loaded(on_gpus, kept, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpus)
    loaded = []
    load = keep_last(lambda name: loaded.append(name) or name)
    for name in ("base", *"abcd"):
        load(name)
        load("base")  # in use all the time
    assert loaded == ["base", *"abcd"]
    for name in "abcd"[: 5 - kept]:  # those that were unused longest, beside the base
        assert load(name) == name
    assert loaded == ["base", *"abcd", *"abcd"[: 5 - kept]]
