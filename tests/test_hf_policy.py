"""The transformers policy against the model's own forward and generate, on a real tiny model."""

import shutil

import numpy as np
import pytest
import torch

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.hf_policy import HFPolicy, directory_fingerprint
from tokenshift_utils.kv_cache import PreallocatedLayer, fill_gaps, make_cache
from tokenshift_utils.noise import row_key
from tokenshift_utils.policy import Sampling, load_policy, stop_ids
from tokenshift_utils.study import load_study

PROMPTS = [[4, 13, 5, 6], [7], [4, 5, 16, 24, 20, 25, 17, 3], [9, 9], [4, 13, 5, 6, 16, 30]]


@pytest.fixture(scope="module")
def policy(tiny_pair) -> HFPolicy:
    return HFPolicy.load(tiny_pair.base, "base", "float64")


def keys(n: int) -> list[int]:
    return [row_key(3, "bench", f"p{i}", 0) for i in range(n)]


def plain_logits(policy: HFPolicy, ids: list[int]) -> torch.Tensor:
    """Logits of one unpadded sequence, no cache: ``[len(ids), V]``."""
    with torch.no_grad():
        return policy.model(torch.tensor([ids]), use_cache=False).logits[0]


def make(policy, number=40, seed=0):
    generator = np.random.default_rng(seed)
    return [
        generator.integers(3, policy.vocab_size, generator.integers(1, 12)).tolist()
        for _ in range(number)
    ]


def test_greedy_steps_equal_generate(policy):
    tokens = [[] for _ in PROMPTS]
    session = policy.open(PROMPTS)
    for _ in range(12):
        best = session.logits.argmax(-1)
        for row, token in zip(tokens, best.tolist()):
            row.append(token)
        session.step(best)
    for prompt, row in zip(PROMPTS, tokens):
        theirs = policy.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=policy.vocab_size + 1,
        )
        assert row == theirs[0, len(prompt) :].tolist()


def test_steps_equal_the_plain_forward(policy):
    session = policy.open(PROMPTS)
    fed = [[5, 6, 7, 8], [10, 11, 12, 13], [3, 3, 3, 3], [24, 25, 26, 27], [30, 31, 30, 31]]
    for t in range(5):
        for row, prompt in enumerate(PROMPTS):
            want = plain_logits(policy, prompt + fed[row][:t])[-1]
            torch.testing.assert_close(session.logits[row], want, rtol=0, atol=1e-6)
        if t < 4:
            session.step(torch.tensor([f[t] for f in fed]))


def test_kept_rows_go_on_as_if_alone(policy):
    session = policy.open(PROMPTS)
    session.step(torch.tensor([5, 6, 7, 8, 9]))
    session.keep(torch.tensor([4, 1]))
    session.step(torch.tensor([10, 11]))
    for row, ids in enumerate([PROMPTS[4] + [9, 10], PROMPTS[1] + [6, 11]]):
        torch.testing.assert_close(
            session.logits[row], plain_logits(policy, ids)[-1], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("block", [1, 3, 256])
def test_score_equals_the_plain_forward(policy, block):
    responses = [[5, 6, 7, 8, 1], [10], [], [24, 25, 26, 27], [30, 31]]
    blocks = list(policy.score(PROMPTS, responses, block=block))
    assert [s.start for s, _ in blocks] == list(range(0, 5, block))
    assert all(logits.shape[1] == s.stop - s.start <= block for s, logits in blocks)
    logits = torch.cat([part for _, part in blocks], dim=1)
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses)):
        want = plain_logits(policy, prompt + response)[len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(response)], want, rtol=0, atol=1e-6)


def test_score_never_holds_the_logits_of_a_long_sequence(policy, monkeypatch):
    monkeypatch.setattr("tokenshift_utils.hf_policy.SCORED_LOGITS", 4 * policy.vocab_size)
    sizes = [len(x.flatten()) for _, x in policy.score(PROMPTS[:2], [[5] * 9, [6] * 7])]
    assert max(sizes) <= 4 * policy.vocab_size and len(sizes) == 5


def test_fault_04_logits_at_a_position_emit_that_position(policy):
    # position 0, the first response token, is there, and is what the prompt alone predicts
    sampled = policy.sample(PROMPTS, keys(5), Sampling(1.0, 1.0, 6))
    responses = [c.ids for c in sampled]
    logits = torch.cat([x for _, x in policy.score(PROMPTS, responses)], dim=1)
    for row, c in enumerate(sampled):
        logp = torch.log_softmax(logits[row], -1)
        assert [float(logp[t, token]) for t, token in enumerate(c.ids)] == pytest.approx(
            c.logprobs, abs=1e-6
        )
        torch.testing.assert_close(
            logits[row, 0], plain_logits(policy, PROMPTS[row])[-1], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("sampling", [Sampling(1.0, 0.7, 30), Sampling(0.6, 1.0, 30)])
def test_samples_do_not_depend_on_batch_or_order(policy, sampling):
    prompts, row_keys = make(policy), keys(40)
    whole = policy.sample(prompts, row_keys, sampling)
    assert {c.finish_reason for c in whole} == {"eos", "length"}  # rows end at many lengths
    for batch_size in (1, 3, 17):
        some = slice(0, 12) if batch_size == 1 else slice(None)
        again = policy.sample(prompts[some], row_keys[some], sampling, batch_size=batch_size)
        assert [c.ids for c in again] == [c.ids for c in whole[some]]
        assert [c.finish_reason for c in again] == [c.finish_reason for c in whole[some]]
        for a, b in zip(again, whole[some]):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-6)
    back = policy.sample(prompts[::-1], row_keys[::-1], sampling, batch_size=7)
    assert [c.ids for c in back[::-1]] == [c.ids for c in whole]


def test_a_prompt_in_several_rows_is_read_once(policy):
    prompts = [PROMPTS[i] for i in (0, 2, 0, 1, 2, 0)]
    session = policy.open(prompts)
    assert session._cache.layers[0].keys.shape[0] == 6
    session.step(torch.tensor([5, 6, 7, 8, 9, 10]))
    for row, token in enumerate([5, 6, 7, 8, 9, 10]):
        want = plain_logits(policy, prompts[row] + [token])[-1]
        torch.testing.assert_close(session.logits[row], want, rtol=0, atol=1e-6)


def test_fault_02_samples_of_one_prompt_differ(policy):
    row_keys = [row_key(3, "bench", "p0", sample) for sample in range(4)]
    texts = {
        tuple(c.ids) for c in policy.sample([PROMPTS[0]] * 4, row_keys, Sampling(1.0, 1.0, 20))
    }
    assert len(texts) == 4


def test_fault_09_padding_is_left_and_hides_nothing(policy):
    # the end token is also the padding token of many models: neither a real one inside a prompt
    # nor padding beside it may change a row
    prompts = [[1, 5, 1, 6], [7], [0, 0, 8, 9, 1, 1, 5]]
    session = policy.open(prompts)
    for row, prompt in enumerate(prompts):
        want = plain_logits(policy, prompt)[-1]
        torch.testing.assert_close(session.logits[row], want, rtol=0, atol=1e-6)


def test_frequencies_agree_with_probabilities(policy):
    n = 4000
    row_keys = [row_key(9, "bench", "p", sample) for sample in range(n)]
    sampled = policy.sample([PROMPTS[2]] * n, row_keys, Sampling(1.0, 1.0, 1), batch_size=1000)
    counts = np.bincount([c.ids[0] for c in sampled], minlength=policy.vocab_size)
    probabilities = torch.softmax(plain_logits(policy, PROMPTS[2])[-1], -1).numpy()
    common = probabilities * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probabilities[common], probabilities[~common].sum()) * n
    chi_square = ((observed - expected) ** 2 / expected).sum()
    k = len(observed) - 1
    assert chi_square < k + 3.1 * np.sqrt(2 * k) + 4  # about once in a thousand


def test_stops_at_a_stop_id_and_counts_it(policy):
    plain = policy.sample(PROMPTS, keys(5), Sampling(1.0, 1.0, 20), stop_ids=[])
    assert {len(c.ids) for c in plain} == {20} and {c.finish_reason for c in plain} == {"length"}
    stop = plain[2].ids[7]
    stopped = policy.sample(PROMPTS, keys(5), Sampling(1.0, 1.0, 20), stop_ids=[stop])
    for a, b in zip(plain, stopped):
        n = a.ids.index(stop) + 1 if stop in a.ids else 20
        assert b.ids == a.ids[:n]
        assert b.finish_reason == ("eos" if stop in a.ids else "length")


def test_weights_may_change_between_calls(tiny_pair):
    policy = HFPolicy.load(tiny_pair.base, "live", "float32")
    other = HFPolicy.load(tiny_pair.tuned, "other", "float32")
    sampling = Sampling(1.0, 1.0, 10)
    policy.model.train()
    before = policy.sample(PROMPTS, keys(5), sampling)
    policy.model.load_state_dict(other.model.state_dict())
    after = policy.sample(PROMPTS, keys(5), sampling)
    assert policy.model.training
    assert [c.ids for c in after] == [c.ids for c in other.sample(PROMPTS, keys(5), sampling)]
    assert [c.logprobs for c in before] != [c.logprobs for c in after]


def test_stop_ids_are_the_union(policy, tiny_pair):
    other = HFPolicy.load(tiny_pair.tuned, "tuned")
    other.eos_ids = (2, 1)
    assert policy.eos_ids == (1,) and stop_ids(policy, other) == (1, 2)


def test_empty_prompt_is_refused(policy):
    with pytest.raises(TokenshiftError, match="no tokens"):
        policy.open([[4, 5], []])


def test_sampling_out_of_range_is_refused():
    for bad in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.2}, {"max_new_tokens": 0}):
        with pytest.raises(TokenshiftError):
            Sampling(**bad)


def test_nan_logits_are_refused(tiny_pair):
    policy = HFPolicy.load(tiny_pair.base, "damaged")
    with torch.no_grad():
        policy.model.model.norm.weight[3] = torch.nan
    with pytest.raises(TokenshiftError, match="logits are NaN at row 0"):
        policy.sample(PROMPTS, keys(5), Sampling())


# Directories ------------------------------------------------------------------------------------


def test_fingerprint_follows_the_files(tiny_pair, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.base, copy)
    first = directory_fingerprint(copy)
    assert first == directory_fingerprint(tiny_pair.base) != directory_fingerprint(tiny_pair.tuned)
    assert HFPolicy.load(copy, "copy").fingerprint == first
    (copy / "README.md").write_text("a card changes nothing")
    assert directory_fingerprint(copy) == first
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert directory_fingerprint(copy) != first


def test_a_model_whose_files_changed_is_loaded_again(mini_root, tiny_pair):
    study = load_study("mini")
    copy = mini_root / "copy"
    shutil.copytree(tiny_pair.base, copy)
    study = study.with_overrides(**{"models.tuned.path": str(copy)})
    first = load_policy(study, "tuned")
    assert load_policy(study, "tuned") is first
    shutil.copy(tiny_pair.tuned / "model.safetensors", copy / "model.safetensors")
    second = load_policy(study, "tuned")
    assert second is not first and second.fingerprint != first.fingerprint


def test_fingerprint_of_a_live_model_follows_its_weights(tiny_pair):
    loaded = HFPolicy.load(tiny_pair.base, "a")
    live = HFPolicy(loaded.model, loaded.tokenizer, "live").fingerprint
    assert HFPolicy(loaded.model, loaded.tokenizer, "again").fingerprint == live
    with torch.no_grad():
        loaded.model.model.norm.weight[0] += 1
    assert HFPolicy(loaded.model, loaded.tokenizer, "changed").fingerprint != live


def _without(name):
    return lambda directory: (directory / name).unlink()


def _cut(name):
    def damage(directory):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return damage


def _drop_tensor(directory):
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "no model directory"),
        (_without("config.json"), "no config.json"),
        (_without("model.safetensors"), "no .*safetensors"),
        (_without("tokenizer.json"), "tokenizer"),
        (_cut("config.json"), "config.json cannot be read"),
        (_cut("model.safetensors"), "cannot be loaded"),
        (_cut("tokenizer.json"), "tokenizer .*cannot be loaded"),
        (_drop_tensor, "lack or misshape 1 tensors, the first model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_damaged_directories_are_refused(tiny_pair, tmp_path, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair.base, copy)
    damage(copy)
    with pytest.raises(TokenshiftError, match=message) as caught:
        HFPolicy.load(copy, "copy")
    assert "\n" not in str(caught.value)


# The cache --------------------------------------------------------------------------------------


def test_cache_grows_crops_and_selects():
    layer = PreallocatedLayer()
    parts = [torch.randn(5, 2, n, 3) for n in (4, 70, 1, 120)]
    for i in range(4):
        keys_, values = layer.update(parts[i], -parts[i])
        want = torch.cat(parts[: i + 1], dim=2)
        assert torch.equal(keys_, want) and torch.equal(values, -want)
    layer.crop(-100)
    assert layer.get_seq_length() == 95 and torch.equal(layer.keys, want[:, :, :95])
    order = torch.tensor([3, 1, 0])
    layer.batch_select_indices(order)
    assert torch.equal(layer.keys, want[order, :, :95])
    more = torch.randn(3, 2, 200, 3)
    keys_, _ = layer.update(more, more)
    want = torch.cat([want[order, :, :95], more], dim=2)
    assert torch.equal(keys_, want)
    repeated = torch.tensor([0, 0, 2, 1, 2, 0, 1])
    layer.batch_select_indices(repeated)
    assert torch.equal(layer.keys, want[repeated]) and torch.equal(
        layer.values[:, :, 95:], more[repeated]
    )
    layer.batch_select_indices(torch.tensor([6, 6, 0]))
    assert torch.equal(layer.keys, want[repeated][[6, 6, 0]])
    with pytest.raises(ValueError):
        layer.crop(5)


def test_gaps_are_filled_from_the_end():
    alive = torch.tensor([True, False, True, False, False, True, True])
    order = fill_gaps(alive)
    assert order.tolist() == [0, 5, 2, 6]
    assert fill_gaps(torch.ones(4, dtype=torch.bool)).tolist() == [0, 1, 2, 3]


def test_sliding_window_models_fall_back_to_their_own_cache():
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=6,
        initializer_range=0.3,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval().double()

    class Tokenizer:
        eos_token_id = 1

    policy = HFPolicy(model, Tokenizer(), "sliding")
    assert not isinstance(make_cache(config).layers[0], PreallocatedLayer)
    responses = [list(range(5, 20)), list(range(20, 32))]
    logits = torch.cat([x for _, x in policy.score(PROMPTS[:2], responses, block=4)], dim=1)
    for row in range(2):
        ids = PROMPTS[row] + responses[row]
        want = plain_logits(policy, ids)[len(PROMPTS[row]) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(responses[row])], want, rtol=0, atol=1e-6)
