"""Lists of the most probable tokens beside the distributions that they are of."""

import math

import pytest
import torch

from tokenshift_utils.measures import divergences
from tokenshift_utils.measures.nucleus import log_softmax32, truncate
from tokenshift_utils.measures.top_logprobs import Aligned, Listed, align, join

V, N = 60, 200


def distributions(sharpness, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(N, V, generator=generator)
    other = base + 0.7 * torch.randn(N, V, generator=generator)
    return [torch.log_softmax(sharpness * x, -1) for x in (base, other)]


def listing(logp, tokens, k):
    values, ids = logp.topk(k)
    own = logp.gather(1, tokens[:, None])
    rank = 1 + (logp > own).sum(-1)
    return Listed(V, torch.cat([tokens[:, None], ids], 1), torch.cat([own, values], 1), rank)


@pytest.fixture(params=[(3.0, 4), (1.0, 16), (3.0, V)])
def case(request):
    sharpness, k = request.param
    both = distributions(sharpness, k)
    tokens = torch.arange(N) % V
    lists = [listing(logp, tokens, k) for logp in both]
    return both, tokens, lists, align(*lists, 1.0), k


def test_everything_known_stands_at_its_name(case):
    both, tokens, lists, pair, k = case
    assert pair.partial == (k < V)
    for logp, known, listed in zip(both, (pair.p, pair.q), lists):
        shown = known > -torch.inf
        rows = torch.arange(N)[:, None].expand_as(pair.names)[shown]
        assert torch.equal(logp[rows, pair.names[shown]], known[shown])
        assert shown.sum(-1).tolist() == [len(set(row)) for row in listed.ids.tolist()]
    assert torch.equal(pair.names.gather(1, pair.columns(tokens)[:, None])[:, 0], tokens)
    assert (pair.names[:, 1:] > pair.names[:, :-1])[pair.names[:, 1:] < V].all()


def test_covered_nuclei_are_exact_and_others_are_known_to_be_short(case):
    both, _, lists, pair, k = case
    covered = lists[0].covers(0.7) & lists[1].covers(0.7)
    whole = [truncate(logp, 0.7) for logp in both]
    for listed, nucleus in zip(lists, whole):
        assert torch.equal(listed.covers(0.7), nucleus.size <= k)
    assert covered.any() and (k == V or not covered.all())
    mine = [truncate(logp[covered], 0.7) for logp in (pair.p, pair.q)]
    js = divergences.js(*(n.log_probs() for n in mine))
    expected = divergences.js(*(n.log_probs() for n in whole))[covered]
    assert torch.allclose(js, expected, atol=1e-6)
    for a, b in zip(mine, whole):
        assert torch.equal(a.size, b.size[covered])


def test_whole_measures_are_lower_bounds_by_the_mass_that_is_not_known(case):
    both, _, _, pair, k = case
    p, q = both
    found, unknown = pair.full_measures(), pair.unknown_mass
    exact = {
        "js": divergences.js(p, q),
        "kl_pq": divergences.kl(p, q),
        "kl_qp": divergences.kl(q, p),
        "tv": divergences.total_variation(p, q),
        "entropy_p": divergences.entropy(p),
        "entropy_q": divergences.entropy(q),
    }
    short = {name: exact[name] - found[name] for name in exact}
    assert all((value > -1e-5).all() for value in short.values())
    assert (short["js"] <= math.log(2) * unknown + 1e-6).all()
    assert (short["tv"] <= unknown + 1e-6).all()
    assert bool((unknown > 0).any()) == (k < V)
    if k == V:
        assert max(float(value.abs().max()) for value in short.values()) < 1e-6


def test_temperature_of_whole_lists():
    both = distributions(2.0, 1)
    lists = [listing(logp, torch.zeros(N, dtype=torch.long), V) for logp in both]
    pair = align(*lists, 0.6)
    assert torch.allclose(pair.p, log_softmax32(both[0], 0.6), atol=1e-6)


def test_lists_of_different_lengths_join():
    logp = distributions(1.0, 2)[0]
    tokens = torch.zeros(N, dtype=torch.long)
    short, long = listing(logp, tokens, 4).select(slice(0, 3)), listing(logp, tokens, 9)
    both = join([short, long])
    assert both.ids.shape == (N + 3, 10) and len(both) == N + 3
    assert (both.ids[:3, 5:] == V).all() and (both.logp[:3, 5:] == -torch.inf).all()
    pair = align(both, both, 1.0)
    assert isinstance(pair.select(torch.arange(3)), Aligned)
    assert ((pair.p > -torch.inf).sum(-1)[:3] <= 5).all()
