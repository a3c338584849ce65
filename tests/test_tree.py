"""Walks through trees of prefixes: each against the engine that decodes one mixture by itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import margin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cross_sample import NoTokenizer, counting, models, rules

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.noise import row_key
from tokenshift_utils.models.huggingface import HFPolicy
from tokenshift_utils.models.policy import Sampling
from tokenshift_utils.pairs.cross_sample import cross_sample
from tokenshift_utils.pairs.grow import grow
from tokenshift_utils.pairs.mixer import Insertion
from tokenshift_utils.pairs.rules import Rule
from tokenshift_utils.pairs.walks import Walk

CHECKOUT = Path(__file__).resolve().parents[1]
SAMPLING = Sampling(temperature=0.9, top_p=0.7, max_new_tokens=24)
N = 8
KEYS = [row_key(5, "bench", f"p{i}", 0) for i in range(N)]
NULL_KEYS = [row_key(5, "bench", f"p{i}", 0, stream=1) for i in range(N)]
SWEEP = [
    Walk(Rule(*rule), forward)
    for forward in (True, False)
    for rule in (
        *(("js", t) for t in (-1.0, 0.02, 0.05, 0.2)),
        *(("random", None, r) for r in (0.02, 0.3)),
        ("js_full", 0.02), ("kl", 0.1), ("kl_reverse", 0.1), ("entropy", 2.0),
        ("signed_logp", 0.3), ("first", 3), ("always", None), ("never", None),
        ("js", 0.05, None, 2), ("random", None, 0.3, 1), ("entropy", 1.0, None, 0),
    )
]  # fmt: skip
SWEEP += [
    Walk(Rule("js", 0.05), forward, insertion)
    for forward in (True, False)
    for insertion in (Insertion("own"), Insertion("extrapolated", 1.5))
]
SWEEP.append(Walk(Rule("random", None, 0.1), True, Insertion("own")))


def take(pair, prompts, walks, sampling=SAMPLING, batch_size=5, **more):
    n = len(prompts)
    return grow(*pair, prompts, KEYS[:n], walks, sampling, batch_size, NULL_KEYS[:n], **more)


def alone(pair, prompts, walk, sampling=SAMPLING, batch_size=8):
    """The walk's mixture, decoded by itself."""
    n = len(prompts)
    both = pair if walk.forward else pair[::-1]
    return cross_sample(
        *(*both, prompts, KEYS[:n], walk.rule, sampling, batch_size),
        insertion=walk.insertion,
        null_keys=NULL_KEYS[:n],
    )


def assert_same(walkers, index, expected):
    """Runs and switches of one of the walks, prompt by prompt."""
    runs, switches = walkers.result()
    mine = np.flatnonzero(walkers.walk == index)
    for run, other in zip([runs[i] for i in mine], expected[0], strict=True):
        assert (run.ids, run.finish_reason) == (other.ids, other.finish_reason)
        assert (run.n_switched, run.n_effective) == (other.n_switched, other.n_effective)
        assert run.sum_tv == pytest.approx(other.sum_tv, abs=1e-4)
        assert run.sum_independent == pytest.approx(other.sum_independent, abs=1e-4)
    rows = np.isin(switches["row"], mine)
    assert walkers.tree[switches["row"][rows]].tolist() == expected[1]["row"].tolist()
    for name in expected[1].keys() - {"row"}:
        np.testing.assert_allclose(switches[name][rows], expected[1][name], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("index", range(len(SWEEP)), ids=lambda i: SWEEP[i].rule.label)
def test_a_walk_is_the_mixture_decoded_by_itself(pair, prompts, swept, index):
    assert_same(swept, index, alone(pair, prompts, SWEEP[index]))


@pytest.fixture(scope="module")
def swept(pair, prompts):
    return take(pair, prompts, SWEEP)


@st.composite
def sweeps(draw):
    """A random tiny pair, some walks, ragged prompts, a batch and a block."""
    both = draw(models())
    insertions = st.sampled_from(
        [Insertion()] * 3 + [Insertion("own"), Insertion("extrapolated", 0.5)]
    )
    made = st.builds(Walk, rules(), st.booleans(), insertions)
    walks = draw(st.lists(made, min_size=1, max_size=6))
    token = st.integers(0, both[0].config.vocab_size - 1)
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4))
    sampling = Sampling(draw(st.floats(0.3, 2.0)), draw(st.sampled_from([0.3, 0.7, 0.95, 1.0])), 17)
    block = draw(st.sampled_from(["auto", 1, 2, 5, 20]))
    return both, walks, prompts, sampling, draw(st.integers(1, 9)), block


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(sweeps(), st.data())
def test_walks_emit_what_mixtures_decoded_by_themselves_emit(case, data):
    both, walks, prompts, sampling, batch_size, block = case
    pair = [HFPolicy(model, NoTokenizer(), name) for model, name in zip(both, ("p", "q"))]
    first = data.draw(st.integers(0, len(walks)))
    trees = None
    if first:  # some come first, and the others go on in their trees
        trees = take(pair, prompts, walks[:first], sampling, batch_size, block=block).trees
    walkers = take(pair, prompts, walks, sampling, batch_size, block=block, trees=trees)
    for index, walk in enumerate(walks):
        assert_same(walkers, index, alone(pair, prompts, walk, sampling))


def test_what_is_there_is_not_read_again(pair, prompts, monkeypatch):
    for policy in pair:
        policy.open(1)  # (a policy tries its cache once)
    calls = [counting(policy, monkeypatch) for policy in pair]

    def tokens_read():
        total = sum(rows * tokens for some in calls for rows, tokens in some)
        for some in calls:
            some.clear()
        return total

    coarse = [Walk(Rule("js", t), f) for t in (-1.0, 0.02, 0.2) for f in (True, False)]
    fine = Walk(Rule("js", 0.05))
    trees = take(pair, prompts, coarse).trees
    first = tokens_read()
    walkers = take(pair, prompts, coarse, trees=trees)
    assert tokens_read() == 0 and walkers.done.all()
    assert_same(walkers, 3, alone(pair, prompts, coarse[3]))
    tokens_read()
    walkers = take(pair, prompts, [*coarse, fine], trees=trees)
    assert 0 < tokens_read() < first / 2
    assert_same(walkers, len(coarse), alone(pair, prompts, fine))
    between = Rule("js", 0.0500001)  # takes the same tokens, so that nothing is new
    tokens_read()
    assert take(pair, prompts, [Walk(between)], trees=trees).done.all() and tokens_read() == 0


def test_a_sweep_reads_each_prefix_once(pair, prompts, monkeypatch):
    walks = [Walk(Rule("js", t), f) for t in (-1.0, 0.02, 0.05, 0.2) for f in (True, False)]
    for policy in pair:
        policy.open(1)
    calls = [counting(policy, monkeypatch) for policy in pair]
    walkers = take(pair, prompts, walks, batch_size=1, block=1)  # no draft can be in vain
    trees = walkers.trees
    assert trees.visited.all() and (trees.known == 7).all()
    prompt_tokens = sum(len(prompt) - 1 for prompt in prompts)
    for some in calls:
        assert sum(rows * tokens for rows, tokens in some) == len(trees) + prompt_tokens
    assert len(trees) < 0.6 * sum(len(run.ids) for run in walkers.result()[0])


def test_no_lane_waits_while_another_has_two_places(pair, prompts):
    """One prompt on many lanes: branches are shared out, and what comes of them is the same."""
    one = take(pair, prompts[:1], SWEEP, batch_size=1)
    many = take(pair, prompts[:1], SWEEP, batch_size=32)
    assert [run.ids for run in many.result()[0]] == [run.ids for run in one.result()[0]]


@pytest.mark.parametrize("tuned", ["dapo", "simplerl"])
def test_float32_parts_from_the_single_engine_only_where_the_margin_is_small(tuned):
    """The shipped pairs, as the tiny study computes with them."""
    models = CHECKOUT / "results/tiny/models"
    lines = (CHECKOUT / "results/tiny/benchmarks/hard.jsonl").read_text().splitlines()[:12]
    single = [HFPolicy.load(models / n, n) for n in ("base", tuned)]
    exact = [HFPolicy.load(models / n, n, "float64") for n in ("base", tuned)]
    prompts = [single[0].tokenizer.encode(json.loads(line)["problem"]) for line in lines]
    row_keys = [row_key(7, "hard", str(i), 0) for i in range(len(prompts))]
    sampling = Sampling(1.0, 0.7, 160)
    walks = [Walk(Rule("js", t), f) for t in (0.01, 0.1, 0.2) for f in (True, False)]
    walks.append(Walk(Rule("js_full", 0.02)))
    walkers = grow(*single, prompts, row_keys, walks, sampling, 24)
    runs = walkers.result()[0]
    parted = 0
    for i, walk in enumerate(walks):
        order, precise = (single, exact) if walk.forward else (single[::-1], exact[::-1])
        expected, _ = cross_sample(*order, prompts, row_keys, walk.rule, sampling, 12)
        for j, other in enumerate(expected):
            mine = runs[j * len(walks) + i].ids
            if mine != other.ids:
                at = next(t for t, (x, y) in enumerate(zip(mine, other.ids)) if x != y)
                prefix = (prompts[j], mine[:at], row_keys[j])
                assert margin(precise, *prefix, walk.rule, sampling) < 1e-4
                parted += 1
    print(f"base and {tuned}: {parted} of {len(runs)} responses part")
    assert parted <= 2


def test_what_cannot_be_walked_is_refused(pair, prompts):
    with pytest.raises(TokenshiftError, match="null_keys"):
        grow(*pair, prompts, KEYS, [Walk(Rule("js", 0.1), True, Insertion("own"))], SAMPLING, 4)
    with pytest.raises(TokenshiftError, match="no prompts or no walks"):
        grow(*pair, prompts, KEYS, [], SAMPLING, 4)
    with pytest.raises(TokenshiftError, match="8 prompts came with 2 row keys"):
        grow(*pair, prompts, KEYS[:2], [Walk(Rule("js", 0.1))], SAMPLING, 4)
    with pytest.raises(TokenshiftError, match="a prompt has no tokens"):
        grow(*pair, [[]], KEYS[:1], [Walk(Rule("js", 0.1))], SAMPLING, 4)
