"""The causal effect of one token: which positions, what is continued, and the effect itself."""

import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_benchmark
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import gumbel, row_key
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Continuation, Sampling
from tokenshift_utils.records import single_token
from tokenshift_utils.records.fetch import fetch
from tokenshift_utils.records.requests import Item
from tokenshift_utils.records.rollouts import Rollouts
from tokenshift_utils.records.shifts import Shifts
from tokenshift_utils.records.single_token import (
    Fork,
    SingleToken,
    choose,
    continue_forks,
    shares,
    strata_of,
    successes,
)
from tokenshift_utils.store import columns, executor
from tokenshift_utils.study.study import load_study
from tokenshift_utils.tasks.benchmarks import Problem

EDGES = (0.0, 0.01, 0.1, 0.3)
KEY = ["problem", "sample", "position"]


def checksum_is_odd(text: str, answer: str, *rule) -> bool:
    """A stand-in for the verifier: random models box no answers."""
    return zlib.crc32((text + answer).encode()) % 2 == 1


# Which positions --------------------------------------------------------------------------------


def test_strata_contain_their_lower_edge():
    js = np.array([0.0, 0.0099, 0.01, 0.0999, 0.1, 0.3, 0.6931])
    assert strata_of(js, EDGES).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert strata_of(np.array([0.0, 0.2]), (0.1,)).tolist() == [-1, 0]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 60))
def test_shares_are_as_even_as_sizes_allow(sizes, number):
    given = shares(sizes, number)
    assert sum(given) == min(number, sum(sizes))
    assert all(0 <= g <= size for g, size in zip(given, sizes))
    for g, size in zip(given, sizes):
        if g < size:  # only a stratum that is exhausted gives less than another, but for one
            assert g >= max(given) - 1
    assert shares([5, 5], 3) == [1, 2] and shares([0, 2, 9, 9], 11) == [0, 2, 4, 5]


def pool_of(seed=0, problems=7):
    """Positions of made-up responses; problems differ in how many they have."""
    rng = np.random.default_rng(seed)
    rows = [
        ("bench", f"p{p}", s, t)
        for p in range(problems)
        for s in range(2)
        for t in range(int(rng.integers(3, 40)))
    ]
    pool = pd.DataFrame(rows, columns=["benchmark", "problem", "sample", "position"])
    js = rng.choice([0.0, 0.005, 0.05, 0.2, 0.5], len(pool), p=[0.5, 0.3, 0.1, 0.07, 0.03])
    return pool, js


def test_choice_is_even_over_strata_and_over_problems():
    pool, js = pool_of()
    sizes = np.bincount(strata_of(js, EDGES), minlength=4)
    chosen = choose(pool, js, EDGES, 30, seed=3)
    assert len(chosen) == 30 and not chosen.duplicated(KEY).any()
    assert chosen["stratum"].value_counts().reindex(range(4)).tolist() == shares(sizes, 30)
    assert (chosen["stratum_positions"] == sizes[chosen["stratum"]]).all()
    assert chosen["stratum"].is_monotonic_increasing
    held = pool.assign(stratum=strata_of(js, EDGES)).groupby(["stratum", "problem"]).size()
    taken = chosen.groupby(["stratum", "problem"]).size().reindex(held.index, fill_value=0)
    fair = held * taken.groupby("stratum").sum() / held.groupby("stratum").sum()
    assert ((taken - fair).abs() < 1).all()  # in proportion
    values = dict(zip(pool[KEY].itertuples(index=False, name=None), js))
    for row in chosen.itertuples():
        js_here = values[row.problem, row.sample, row.position]
        assert strata_of(np.array([js_here]), EDGES)[0] == row.stratum


def test_choice_depends_on_the_seed_and_on_nothing_else():
    pool, js = pool_of()
    chosen = choose(pool, js, EDGES, 12, seed=3)
    np.random.seed(7)
    order = np.random.default_rng(5).permutation(len(pool))
    again = choose(pool.iloc[order].reset_index(drop=True), js[order], EDGES, 12, seed=3)
    pd.testing.assert_frame_equal(chosen, again)
    other = choose(pool, js, EDGES, 12, seed=4)
    assert not chosen[KEY].equals(other[KEY])


def test_every_position_of_a_stratum_has_the_same_chance():
    pool, js = pool_of(problems=4)
    part = strata_of(js, EDGES) == 1
    hits = np.zeros(len(pool))
    where = {key: i for i, key in enumerate(pool[KEY].itertuples(index=False, name=None))}
    for seed in range(150):
        for row in choose(pool[part], js[part], EDGES, 6, seed).itertuples():
            hits[where[row.problem, row.sample, row.position]] += 1
    expected = 150 * 6 / part.sum()
    assert hits[~part].sum() == 0
    assert ((hits[part] - expected) ** 2 / expected).sum() < 2 * part.sum()  # chi-squared
    assert hits[part].min() > 0


def test_choice_from_a_small_pool_is_all_of_it():
    pool, js = pool_of(problems=1)
    assert len(choose(pool, js, EDGES, 10_000, seed=0)) == len(pool)
    assert len(choose(pool, np.full(len(pool), 0.001), EDGES, 5, seed=0)) == 5
    assert len(choose(pool, js, (2.0,), 5, seed=0)) == 0


# What follows -----------------------------------------------------------------------------------


class Script:
    """A policy that notes what it is asked, and writes its row's key and a stop."""

    name, eos_ids, vocab_size = "script", (1,), 100

    def __init__(self):
        self.calls = []

    def sample(self, prompts, row_keys, sampling, stop_ids, batch_size, first):
        self.calls.append((prompts, row_keys, first))
        return [Continuation([key, 1], [0.0, 0.0], "eos") for key in row_keys]


def item(key=0, answer="0"):
    return Item(Problem("p", "question", answer), 0, (7, 8), key)


def test_only_what_has_not_ended_is_continued():
    forks = [
        Fork(item(), (), (4, 1)),  # the intervention's token ends the response
        Fork(item(), (2, 3), (4, 5)),
        Fork(item(), (2, 3, 4), (5, 1)),  # the limit is reached
    ]
    script = Script()
    keys = [[10, 11], [20, 21], [30, 31]]
    sampling = Sampling(max_new_tokens=4)
    made = continue_forks(script, forks, keys, sampling, script.eos_ids, 8)
    assert made == [
        [[([4, 10, 1], "eos"), ([4, 11, 1], "eos")], [([1], "eos")] * 2],
        [
            [([2, 3, 4, 20, 1], "eos"), ([2, 3, 4, 21, 1], "eos")],
            [([2, 3, 5, 20, 1], "eos"), ([2, 3, 5, 21, 1], "eos")],
        ],
        [[([2, 3, 4, 5], "length")] * 2, [([2, 3, 4, 1], "eos")] * 2],
    ]
    ((prompts, row_keys, first),) = script.calls
    assert prompts == [[7, 8, 4]] * 2 + [[7, 8, 2, 3, 4]] * 2 + [[7, 8, 2, 3, 5]] * 2
    assert row_keys == [10, 11, 20, 21, 20, 21] and first == [1, 1, 3, 3, 3, 3]


def test_nothing_to_continue_asks_for_nothing():
    script = Script()
    assert continue_forks(script, [], [], Sampling(), (1,), 8) == []
    done = continue_forks(script, [Fork(item(), (), (1, 1))], [[5]], Sampling(), (1,), 8)
    assert done == [[[([1], "eos")], [([1], "eos")]]] and script.calls == []


SAMPLING = Sampling(temperature=0.9, top_p=0.7, max_new_tokens=16)


def write_plainly(policy, prompt, head, key, sampling):
    """A response that begins with ``head``: one forward over the whole prefix a token, in numpy."""
    ids, everything = list(head), torch.arange(policy.vocab_size)
    while ids[-1:] != list(policy.eos_ids) and len(ids) < sampling.max_new_tokens:
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
        p = np.exp(logits.numpy() / sampling.temperature)
        p /= p.sum()
        order = np.lexsort((np.arange(len(p)), -p))
        kept = order[: int(np.searchsorted(np.cumsum(p[order]), sampling.top_p)) + 1]
        noise = gumbel(torch.tensor([key]), torch.tensor([len(ids)]), everything)[0].numpy()
        ids.append(int(max(kept, key=lambda i: (np.log(p[i]) + noise[i], -i))))
    return ids


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return (
        HFPolicy.load(tiny_pair.base, "base", "float64"),
        HFPolicy.load(tiny_pair.tuned, "tuned", "float64"),
    )


def test_effect_equals_a_plain_loop(pair, monkeypatch):
    monkeypatch.setattr("tokenshift_utils.records.requests.is_correct", checksum_is_odd)
    primary, prompt = pair[0], [4, 5, 6, 17, 25, 20, 26]
    keys = [[row_key(1, "bench", f"p{i}", 0, c) for c in range(2, 10)] for i in range(2)]
    one = Item(Problem("p", "question", "3"), 0, tuple(prompt), 0)
    forks = [Fork(one, (8, 9), (10, 11)), Fork(one, (8,), (12, 9))]
    made = continue_forks(primary, forks, keys, SAMPLING, primary.eos_ids, 5)
    counts = successes(primary, forks, made)
    for fork, own, both, count in zip(forks, keys, made, counts):
        for side, token in enumerate(fork.tokens):
            right = 0
            for key, (ids, reason) in zip(own, both[side], strict=True):
                plain = write_plainly(primary, prompt, [*fork.written, token], key, SAMPLING)
                assert ids == plain
                assert reason == ("eos" if plain[-1] in primary.eos_ids else "length")
                text = primary.tokenizer.decode(plain, skip_special_tokens=True)
                right += reason == "eos" and checksum_is_odd(text, "3")
            assert count[side] == right
    assert any(a != b for a, b, _ in counts)


def test_the_same_token_on_both_sides_has_no_effect(pair):
    keys = [[row_key(1, "bench", "p", 0, c) for c in range(2, 8)]]
    fork = Fork(Item(Problem("p", "q", "3"), 0, (4, 5, 6), 0), (8,), (10, 10))
    ((first, second),) = continue_forks(pair[0], [fork], keys, SAMPLING, pair[0].eos_ids, 4)
    assert first == second and len({tuple(ids) for ids, _ in first}) > 1


# Records ----------------------------------------------------------------------------------------


@pytest.fixture
def study(mini_root):
    write_benchmark(mini_root / "benchmarks/sums.jsonl", 4)
    changes = {
        "dtype": "float64",
        "cross_sampling.single_token": {
            "positions": 30,
            "continuations": 4,
            "strata": [0, 0.01, 0.1],
            "samples": 2,
        },
    }
    return load_study("mini").with_overrides(**changes)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_records_are_what_they_say(study, direction, monkeypatch):
    monkeypatch.setattr("tokenshift_utils.records.requests.is_correct", checksum_is_odd)
    names = ("base", "tuned") if direction == "forward" else ("tuned", "base")
    frame = fetch(study, SingleToken.of(study, *names))
    assert list(frame.columns) == [c.name for c in columns.describe("single_token")]
    assert len(frame) == 30 and not frame.duplicated(KEY).any()
    assert set(frame["direction"]) == {direction} and set(frame["sample"]) <= {0, 1}
    assert (frame["js"] >= frame["stratum_low"]).all()
    assert (frame["js"] <= frame["stratum_high"] + 1e-6).all()

    own = fetch(study, Rollouts.of(study, names[0], samples=2)).set_index(["problem", "sample"])
    shifts = fetch(study, Shifts.of(study, "tuned", names[0], samples=2)).set_index(KEY)
    assert frame.groupby("stratum")["stratum_positions"].first().sum() == len(shifts)
    policies = [HFPolicy.load(study.model_path(name), name, "float64") for name in names]
    swap = {"base": "primary", "tuned": "intervention"}
    if direction == "reverse":
        swap = {"tuned": "primary", "base": "intervention"}
    effects = []
    for row in frame.to_dict("records"):
        response = own.loc[(row["problem"], row["sample"])]
        prompt, ids = list(response["prompt_ids"]), list(response["response_ids"])
        t = row["position"]
        assert row["token_primary"] == ids[t] and row["n_tokens"] == len(ids)
        measured = shifts.loc[(row["problem"], row["sample"], t)]
        assert row["js"] == measured["js"] and row["js_full"] == measured["js_full"]
        assert row["tv"] == measured["tv"]
        for model, role in swap.items():
            top = measured[f"top_logp_{model}"]
            assert row[f"margin_{role}"] == pytest.approx(top[0] - top[1], abs=1e-5)
            assert row[f"entropy_{role}"] == measured[f"entropy_{model}"]
            ours, theirs = row[f"logp_{role}_of_primary"], measured[f"logp_{model}"]
            assert ours == pytest.approx(theirs, abs=1e-5)
        key = row_key(study.seed, "sums", row["problem"], row["sample"])
        one = Sampling(**vars(study.sampling) | {"max_new_tokens": t + 1})
        other = write_plainly(policies[1], prompt, ids[:t], key, one)[-1]
        assert row["token_intervention"] == other
        assert row["effective"] == (other != ids[t])
        ranked = list(measured[f"top_ids_{names[0]}"])
        assert other not in ranked or row["rank_primary_of_intervention"] == 1 + ranked.index(other)
        if not row["effective"]:
            assert row["effect"] == 0 and row["continuations"] == 0
            assert pd.isna(row["successes_primary"]) and pd.isna(row["successes_intervention"])
            continue
        right = [
            [
                succeeds(policies[0], study, prompt, [*ids[:t], token], row, stream)
                for stream in range(2, 6)
            ]
            for token in (ids[t], other)
        ]
        counts = [sum(side) for side in right]
        assert [row["successes_primary"], row["successes_intervention"]] == counts
        assert row["successes_both"] == sum(map(all, zip(*right)))
        assert row["continuations"] == 4
        assert row["effect"] == pytest.approx((counts[1] - counts[0]) / 4)
        effects.append(row["effect"])
    assert 3 < len(effects) < 30 and any(effects)


def succeeds(policy, study, prompt, head, row, stream):
    key = row_key(study.seed, "sums", row["problem"], row["sample"], stream)
    ids = write_plainly(policy, prompt, head, key, Sampling(**vars(study.sampling)))
    number = int(row["problem"][1:])
    text = policy.tokenizer.decode(ids, skip_special_tokens=True)
    return ids[-1] in policy.eos_ids and checksum_is_odd(text, str(2 * number + 1))


def test_shards_share_the_work_and_change_nothing(study, monkeypatch):
    whole = fetch(study, SingleToken.of(study, "base", "tuned"))
    (artefact,) = SingleToken.of(study, "base", "tuned")
    assert len(artefact.weights(study)) == 2  # 30 positions
    assert sum(artefact.weights(study)) == 30 * 2 * 4
    first, second = (
        executor.read_shard(study, executor.Job(artefact, shard), "single_token").to_pandas()
        for shard in range(2)
    )
    counts = [part["stratum"].value_counts().sort_index() for part in (first, second)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    monkeypatch.setattr(single_token, "POSITIONS_PER_SHARD", 7)
    monkeypatch.setattr("tokenshift_utils.records.requests.code_version", lambda *_: "another")
    again = fetch(study, SingleToken.of(study, "base", "tuned"))
    numbers = ["logp_primary_of_primary", "logp_intervention_of_intervention"]
    pd.testing.assert_frame_equal(whole, again, check_exact=False, atol=1e-5)
    assert (whole[numbers].to_numpy() <= 0).all()


def test_more_positions_than_there_are_takes_all(study):
    many = {"positions": 200, "continuations": 1, "strata": [0], "samples": 1}
    wide = study.with_overrides(
        **{"cross_sampling.single_token": many, "sampling.max_new_tokens": 3}
    )
    frame = fetch(wide, SingleToken.of(wide, "tuned", "base"))
    assert len(frame) == fetch(wide, Rollouts.of(wide, "tuned", samples=1))["n_tokens"].sum()
    assert frame["effect"].abs().max() <= 1


def test_key_follows_the_settings(study):
    def key(changed):
        (artefact,) = SingleToken.of(changed, "base", "tuned")
        return executor.key_of(changed, artefact)

    settings = study.cross_sampling.single_token.model_dump()
    changes = {"positions": 31, "continuations": 6, "samples": 1, "strata": [0, 0.2]}
    keys = {
        key(study.with_overrides(**{"cross_sampling.single_token": settings | {name: value}}))
        for name, value in changes.items()
    }
    keys |= {key(study.with_overrides(divergence_support="full"))}
    keys |= {key(study.with_overrides(**{"cross_sampling.top_p": 0.5}))}
    assert len(keys | {key(study)}) == 7
    assert key(study) == key(study.with_overrides(**{"statistics.resamples": 9}))


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (("base", "base"), "between base and another model"),
        (("tuned", "tuned"), "between base and another model"),
        (("base", "nobody"), "no model 'nobody'"),
    ],
)
def test_other_pairs_are_refused(study, models, expected, mini_root):
    with pytest.raises(TokenshiftError, match=expected):
        fetch(study, SingleToken.of(study, *models))
    assert not (mini_root / "results").exists()


def test_a_study_without_settings_is_told(study, mini_root):
    without = study.with_overrides(**{"cross_sampling.single_token": None})
    with pytest.raises(TokenshiftError, match="no 'cross_sampling.single_token'"):
        fetch(without, SingleToken.of(without, "base", "tuned"))
    with pytest.raises(TokenshiftError, match="no benchmark 'huge'"):
        fetch(study, SingleToken.of(study, "base", "tuned", "huge"))
    assert not (mini_root / "results").exists()
