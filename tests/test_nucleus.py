"""Truncation against a plain loop, against transformers, and its edge cases."""

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences, nucleus
from tokenshift_utils.measures.noise import draw
from tokenshift_utils.measures.nucleus import log_softmax32, on_supports, truncate


def plain_nucleus(logp: torch.Tensor, top_p: float) -> list[int]:
    """The definition as a loop over tokens from the most probable, ties by lower id."""
    ids, mass = [], 0.0
    for i in sorted(range(len(logp)), key=lambda i: (-float(logp[i]), i)):
        if float(logp[i]) == -math.inf:
            break
        ids.append(i)
        mass += math.exp(float(logp[i]))
        if mass >= top_p:
            break
    return sorted(ids)


def random_logp(rows: int, vocab: int, scale: float, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return log_softmax32(scale * torch.randn(rows, vocab, generator=generator, dtype=dtype))


def test_by_hand():
    logp = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64).log()
    kept = truncate(logp, 0.7)  # .5 does not reach .7; the token that crosses is included
    assert kept.size == 2 and kept.mask.tolist() == [True, True, False, False]
    assert kept.mass == pytest.approx(0.75)
    assert kept.log_probs().exp().tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert truncate(logp, 0.4).size == 1


def test_ties_go_to_lower_ids():
    logp = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2], dtype=torch.float64).log()
    assert truncate(logp, 0.5).mask.tolist() == [True, True, True, False, False]
    logp = torch.tensor([0.1, 0.4, 0.1, 0.3, 0.1], dtype=torch.float64).log()
    assert truncate(logp, 0.75).mask.tolist() == [True, True, False, True, False]


def test_top_p_one_keeps_everything_as_it_is():
    logp = random_logp(3, 40, 3.0)
    kept = truncate(logp, 1.0)
    assert torch.equal(kept.log_probs(), logp) and (kept.size == 40).all()


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=60),
    st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999999]),
)
def test_smallest_set_that_reaches_p(weights, top_p):
    if not any(weights):
        weights[0] = 1
    sums = accumulate(sorted(weights, reverse=True))  # whether one is p is a matter of rounding
    assume(all(abs(mass - top_p * sum(weights)) > 1e-9 for mass in sums))
    logp = (torch.tensor(weights, dtype=torch.float64) / sum(weights)).log()
    kept = truncate(logp, top_p)
    assert kept.mask.nonzero().squeeze(-1).tolist() == plain_nucleus(logp, top_p)
    assert kept.size == kept.mask.sum()
    assert kept.log_probs().exp().sum() == pytest.approx(1.0)
    assert truncate(logp.expand(2, 3, -1), top_p).mask.equal(kept.mask.expand(2, 3, -1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.7, 0.95])
def test_agrees_with_transformers_away_from_ties(scale, top_p):
    # 1000 tokens, flat to peaked: lists of 16, 128 and all tokens are all needed somewhere
    logp = random_logp(64, 1000, scale)
    theirs = TopPLogitsWarper(top_p)(None, logp.clone()) > -torch.inf
    ours = truncate(logp, top_p).mask
    near_edge = (truncate(logp, top_p).mass - top_p).abs() < 1e-5  # float32 sums may part there
    assert torch.equal(ours[~near_edge], theirs[~near_edge])
    assert near_edge.float().mean() < 0.5
    assert (ours.sum(-1) - theirs.sum(-1)).abs().max() <= 1


def test_never_sorts(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a vocabulary was sorted")

    monkeypatch.setattr(torch, "sort", refuse)
    monkeypatch.setattr(torch.Tensor, "sort", refuse)
    largest = []
    topk = torch.topk
    monkeypatch.setattr(torch, "topk", lambda x, k, **kw: largest.append(k) or topk(x, k, **kw))
    truncate(random_logp(4, 20_000, 5.0), 0.7).log_probs()
    assert max(largest) <= 1024


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.5, math.nan, "0.7", None])
def test_top_p_out_of_range_is_refused(top_p):
    with pytest.raises(TokenshiftError, match="above 0 and at most 1"):
        truncate(random_logp(1, 5, 1.0), top_p)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(TokenshiftError, match="above 0"):
        nucleus.check_temperature(temperature)


def test_log_softmax_widens_half_precision_and_keeps_float64():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert log_softmax32(logits.bfloat16()).dtype == torch.float32
    assert log_softmax32(logits.double()).dtype == torch.float64
    assert log_softmax32(logits.bfloat16()).exp().sum(-1).tolist() == pytest.approx(
        [1, 1], abs=1e-6
    )
    want = torch.log_softmax(logits.double() / 0.6, -1)
    torch.testing.assert_close(log_softmax32(logits.double(), 0.6), want)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = torch.zeros(3, 70)
    logits[2, 65] = bad
    with pytest.raises(TokenshiftError, match="logits are NaN at row 2"):
        log_softmax32(logits)
    with pytest.raises(TokenshiftError, match="NaN at row 2"):
        truncate(torch.log_softmax(logits, -1), 0.7)


@pytest.mark.parametrize("vocab, scale", [(40, 0.2), (1000, 0.5), (1000, 4.0), (12, 1.0)])
@pytest.mark.parametrize("top_p", [0.2, 0.7, 1.0])
def test_sparse_draws_equal_dense_ones(vocab, scale, top_p):
    logp = random_logp(200, vocab, scale, dtype=torch.float64)
    logp[::3] = (logp[::3] * 2).round() / 2  # rows with ties, at the nucleus edge too
    keys, positions = torch.arange(200) * 7919, torch.arange(200) % 5
    dense = draw(truncate(logp, top_p).log_probs(), keys, positions)
    kept = truncate(logp, top_p)
    assert torch.equal(kept.draw(keys, positions), dense)
    some = torch.tensor([3, 150, 0])
    assert torch.equal(kept.select(some).draw(keys[some], positions[some]), dense[some])


@pytest.mark.parametrize("vocab, scale", [(40, 2.0), (3000, 8.0), (3000, 4.0), (3000, 0.5)])
@pytest.mark.parametrize("top_p", [0.2, 0.7, 0.95, 1.0])
def test_what_two_nuclei_keep(vocab, scale, top_p):
    # peaked to flat: in lists of 16, in longer ones, and only in the whole vocabulary
    p = random_logp(60, vocab, scale, seed=1, dtype=torch.float64)
    q = log_softmax32(p + 0.5 * torch.randn(p.shape, dtype=p.dtype))
    p[::3] = (p[::3] * 2).round() / 2  # ties, across the edges too
    first, second = truncate(p, top_p), truncate(q, top_p)
    want = divergences.js(first.log_probs(), second.log_probs())
    tv = divergences.total_variation(first.log_probs(), second.log_probs())
    seen = []
    for rows, *both in on_supports(first, second):
        seen += rows.tolist()
        torch.testing.assert_close(divergences.js(*both), want[rows], rtol=0, atol=1e-13)
        torch.testing.assert_close(divergences.total_variation(*both), tv[rows], rtol=0, atol=1e-13)
    assert sorted(seen) == list(range(60))
