"""The transformers policy against the model's own forward and generate, on a real tiny model."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models import attention
from tokenshift_utils.models.decoding import fill_gaps
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.load import load_policy
from tokenshift_utils.models.policy import Sampling, stop_ids
from tokenshift_utils.models.sessions import UncachedSession
from tokenshift_utils.study.checkpoints import directory_fingerprint
from tokenshift_utils.study.study import load_study

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


def opened(policy, prompts):
    """A session that has read the prompts, and the logits after each, ``[B, V]``."""
    session = policy.open(len(prompts))
    session.enter(torch.arange(len(prompts)), [prompt[:-1] for prompt in prompts])
    return session, session.read(torch.tensor([[prompt[-1]] for prompt in prompts]))[:, 0]


def close(mine, theirs):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_greedy_steps_equal_generate(policy):
    tokens = [[] for _ in PROMPTS]
    session, logits = opened(policy, PROMPTS)
    for _ in range(12):
        best = logits.argmax(-1)
        for row, token in zip(tokens, best.tolist()):
            row.append(token)
        logits = session.read(best[:, None])[:, 0]
    for prompt, row in zip(PROMPTS, tokens):
        theirs = policy.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=policy.vocab_size + 1,
        )
        assert row == theirs[0, len(prompt) :].tolist()


def walk(policy, seed, moves=40, rows=5):
    """Random moves of a session, each compared with plain forwards over the texts it stands for."""
    generator = np.random.default_rng(seed)

    def text(low, high):
        return generator.integers(3, policy.vocab_size, generator.integers(low, high)).tolist()

    session = policy.open(rows)
    texts = [text(0, 9) for _ in range(rows)]
    session.enter(torch.arange(rows), texts)
    for _ in range(moves):
        move = generator.integers(5)
        if move == 0:
            lengths = [int(generator.integers(len(t) // 2, len(t) + 1)) for t in texts]
            session.rewind(torch.tensor(lengths))
            texts = [t[:n] for t, n in zip(texts, lengths)]
        elif move == 1:
            some = generator.permutation(len(texts))[: generator.integers(1, len(texts) + 1)]
            shared = text(0, 6)
            new = [shared if generator.integers(2) else text(0, 12) for _ in some]
            session.enter(torch.tensor(some), new)
            for row, t in zip(some, new):
                texts[row] = t
        elif move == 2 and len(texts) > 2 and generator.integers(4) == 0:
            order = generator.permutation(len(texts))[: len(texts) - 1]
            session.keep(torch.tensor(order))
            texts = [texts[i] for i in order]
        else:
            all_rows = bool(generator.integers(2))
            rows_ = generator.permutation(len(texts))[: generator.integers(1, len(texts) + 1)]
            rows_ = list(range(len(texts))) if all_rows else rows_.tolist()
            n = int(generator.integers(1, 7))
            block = generator.integers(3, policy.vocab_size, (len(rows_), n))
            counts = generator.integers(0 if len(rows_) > 1 else 1, n + 1, len(rows_))
            counts[0] = n
            last = bool(generator.integers(2)) and counts.min() > 0
            logits = session.read(
                torch.tensor(block),
                None if all_rows else torch.tensor(rows_),
                torch.tensor(counts),
                last,
            )
            assert logits.shape[1] == (1 if last else n)
            for i, row in enumerate(rows_):
                texts[row] = texts[row] + block[i, : counts[i]].tolist()
                if counts[i]:
                    want = plain_logits(policy, texts[row])[-counts[i] :]
                    close(logits[i, -1] if last else logits[i, : counts[i]],
                          want[-1] if last else want)  # fmt: skip
        assert session.length.tolist() == [len(t) for t in texts]


@pytest.mark.parametrize("seed", range(4))
def test_sessions_equal_the_plain_forward_whatever_was_done_to_them(policy, seed):
    walk(policy, seed)


@pytest.mark.parametrize("seed", range(2))
def test_uncached_sessions_do_too(policy, seed, monkeypatch):
    uncached = HFPolicy(policy.model, policy.tokenizer, "uncached")
    uncached._windows = None
    assert isinstance(uncached.open(2), UncachedSession)
    walk(uncached, seed)


def test_long_texts_are_read_in_pieces(policy, monkeypatch):
    monkeypatch.setattr("tokenshift_utils.models.sessions.CHUNK", 3)
    prompts = [PROMPTS[2] * 2, PROMPTS[1], PROMPTS[0], PROMPTS[2] * 2]
    _, logits = opened(policy, prompts)
    for row, prompt in enumerate(prompts):
        close(logits[row], plain_logits(policy, prompt)[-1])


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
    monkeypatch.setattr("tokenshift_utils.models.huggingface.SCORED_LOGITS", 4 * policy.vocab_size)
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


def test_a_prompt_in_several_rows_is_read_once(policy, monkeypatch):
    prompts = [PROMPTS[i] for i in (0, 2, 0, 1, 2, 0)]
    read = []
    forward = policy.model.forward
    monkeypatch.setattr(
        policy.model, "forward", lambda **kw: read.append(kw["input_ids"].shape) or forward(**kw)
    )
    session, logits = opened(policy, prompts)
    assert [shape[0] for shape in read] == [2, 6]  # (a prompt of one token is not entered)
    logits = session.read(torch.tensor([[5], [6], [7], [8], [9], [10]]))[:, 0]
    monkeypatch.undo()
    for row, token in enumerate([5, 6, 7, 8, 9, 10]):
        close(logits[row], plain_logits(policy, prompts[row] + [token])[-1])


def test_what_prompts_begin_with_alike_is_read_once(policy, monkeypatch):
    begin = [3 + i * i % 31 for i in range(90)]
    prompts = [begin + end for end in ([4, 13, 5], [7], [4, 5, 16, 24, 20], [7, 8])]
    policy.open(1)  # (it tries its cache once)
    read, forward = [], policy.model.forward

    def counted(*args, **kw):
        if "past_key_values" in kw:
            read.append(kw["input_ids"].numel())
        return forward(*args, **kw)

    monkeypatch.setattr(policy.model, "forward", counted)
    session, logits = opened(policy, prompts)
    assert sum(read[:-1]) < 90 + 4 * 5
    for row, prompt in enumerate(prompts):
        close(logits[row], plain_logits(policy, prompt)[-1])
    read.clear()
    later = {1: begin + [9, 10, 11], 3: begin[:85] + [5, 5], 2: begin[:9] + [6], 0: begin}
    for rows in ([1, 3], [2], [0]):  # together, little in common, nothing but what was kept
        session.enter(torch.tensor(rows), [later[row][:-1] for row in rows])
        texts = [later[i] if i in rows else prompt + [12] for i, prompt in enumerate(prompts)]
        logits = session.read(torch.tensor([[text[-1]] for text in texts]))[:, 0]
        for row, text in enumerate(texts):
            close(logits[row], plain_logits(policy, text)[-1])
        prompts = texts
    assert sum(read) < 90


def test_rows_leave_and_enter_so_that_the_batch_stays_full(policy, monkeypatch):
    prompts, row_keys, sizes = make(policy), keys(40), []
    forward = policy.model.forward

    def counted(**kw):
        if kw["input_ids"].shape[1] == 1:
            sizes.append(len(kw["input_ids"]))
        return forward(**kw)

    monkeypatch.setattr(policy.model, "forward", counted)
    made = policy.sample(prompts, row_keys, Sampling(1.0, 1.0, 30), batch_size=8)
    tokens = sum(len(c.ids) for c in made)
    steps = sizes.index(next(size for size in sizes if size < 8))  # until nothing waits any more
    assert sum(sizes[:steps]) == 8 * steps
    assert tokens / sum(sizes) > 0.85  # of the lanes' steps, those that wrote a token


def test_a_response_goes_on_where_its_prompt_ends(policy):
    sampling = Sampling(1.0, 0.9, 20)
    whole = policy.sample(PROMPTS, keys(5), sampling)
    for cut in (1, 4):
        some = [i for i, c in enumerate(whole) if len(c.ids) > cut]
        rest = policy.sample(
            [PROMPTS[i] + whole[i].ids[:cut] for i in some],
            [keys(5)[i] for i in some],
            sampling,
            first=[cut] * len(some),
        )
        assert [c.ids for c in rest] == [whole[i].ids[cut:] for i in some]
        assert [c.finish_reason for c in rest] == [whole[i].finish_reason for i in some]
    with pytest.raises(TokenshiftError, match="first positions"):
        policy.sample(PROMPTS, keys(5), sampling, first=[20] * 5)


def test_fault_02_samples_of_one_prompt_differ(policy):
    row_keys = [row_key(3, "bench", "p0", sample) for sample in range(4)]
    texts = {
        tuple(c.ids) for c in policy.sample([PROMPTS[0]] * 4, row_keys, Sampling(1.0, 1.0, 20))
    }
    assert len(texts) == 4


def test_fault_09_padding_hides_nothing(policy):
    # the end token is also the padding token of many models: neither a real one inside a prompt
    # nor padding beside it may change a row
    prompts = [[1, 5, 1, 6], [7], [0, 0, 8, 9, 1, 1, 5]]
    _, logits = opened(policy, prompts)
    for row, prompt in enumerate(prompts):
        close(logits[row], plain_logits(policy, prompt)[-1])


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
        policy.sample([[4, 5], []], keys(2), Sampling())
    with pytest.raises(TokenshiftError, match="no tokens"):
        list(policy.score([[4, 5], []], [[6], [7]]))


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
        (_cut("model.safetensors"), "model.safetensors are damaged"),
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


# Other architectures ----------------------------------------------------------------------------


SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
SMALL |= {"initializer_range": 0.3, "attn_implementation": "sdpa"}


class NoTokenizer:
    eos_token_id = 1


def build(name: str) -> torch.nn.Module:
    import transformers

    configs = {
        "mistral, all layers slide": ("Mistral", SMALL | {"sliding_window": 6}),
        "gemma 3, some layers slide": (
            "Gemma3Text",
            SMALL | {"sliding_window": 5, "query_pre_attn_scalar": 16},
        ),
        "qwen 3": ("Qwen3", SMALL),
        "gpt 2, learned positions": (
            "GPT2",
            {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
            | {"initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 1},
        ),
        "mamba, recurrent": (
            "Mamba",
            {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        ),
    }
    stem, arguments = configs[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(**arguments)
    return transformers.AutoModelForCausalLM.from_config(config).eval().double()


@pytest.mark.parametrize(
    "name, cached",
    [
        ("mistral, all layers slide", True),
        ("gemma 3, some layers slide", True),
        ("qwen 3", True),
        ("gpt 2, learned positions", True),
        ("mamba, recurrent", False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*reads every text anew")
def test_any_architecture_is_read_rightly(name, cached):
    policy = HFPolicy(build(name), NoTokenizer(), name)
    assert (policy._windows is not None) == cached
    walk(policy, 1, moves=25)
    responses = [list(range(5, 20)), list(range(20, 32))]
    logits = torch.cat([x for _, x in policy.score(PROMPTS[:2], responses, block=4)], dim=1)
    for row in range(2):
        ids = PROMPTS[row] + responses[row]
        want = plain_logits(policy, ids)[len(PROMPTS[row]) - 1 : -1]
        close(logits[row, : len(responses[row])], want)


def test_a_model_that_misreads_the_cache_is_read_anew():
    model = build("qwen 3")
    forward = model.forward

    def deaf(**kwargs):  # takes positions and a cache, and makes nothing of the positions
        if kwargs.get("past_key_values") is not None:
            kwargs["position_ids"] = torch.zeros_like(kwargs["position_ids"])
        return forward(**kwargs)

    model.forward = deaf
    policy = HFPolicy(model, NoTokenizer(), "deaf")
    with pytest.warns(UserWarning, match="deaf .* reads every text anew.*logits differ"):
        session = policy.open(2)
    assert isinstance(session, UncachedSession)


def test_gaps_are_filled_from_the_end():
    alive = torch.tensor([True, False, True, False, False, True, True])
    order = fill_gaps(alive)
    assert order.tolist() == [0, 5, 2, 6]
    assert fill_gaps(torch.ones(4, dtype=torch.bool)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2"])
def test_grouped_queries_attend_as_in_transformers_own_forward(kind, tiny_pair, tmp_path):
    sizes = {
        "hidden_size": 36,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    if kind in ("mistral", "gemma2"):
        sizes["sliding_window"] = 5
    vocabulary = HFPolicy.load(tiny_pair.base, "base").vocab_size
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for file in tiny_pair.base.glob("token*"):
        shutil.copy(file, tmp_path)
    policy = HFPolicy.load(tmp_path, kind)
    plainly = kind != "gemma2"  # whose scores are capped
    assert (policy.model.config._attn_implementation == attention.NAME) == plainly
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(3, vocabulary, (3, 12), generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(ids)
    seen[1, :4] = 0
    with torch.no_grad():
        for more in ({}, {"attention_mask": seen}):
            expected = eager(ids, **more).logits[seen > 0]
            torch.testing.assert_close(policy.model(ids, **more).logits[seen > 0], expected)
        session, logits = opened(policy, [row[:7].tolist() for row in ids])
        rest = session.read(ids[:, 7:])
        expected = eager(ids).logits
    torch.testing.assert_close(logits, expected[:, 6])
    torch.testing.assert_close(rest, expected[:, 7:])
