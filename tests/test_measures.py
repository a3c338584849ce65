"""Measures against hand values, an independent float64 formula, and properties."""

import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures import divergences

LN2 = math.log(2)


def logs(*probabilities, dtype=torch.float64):
    return torch.tensor(probabilities, dtype=dtype).log()


def js_plain(p, q):
    """JS by its definition, in probabilities and numpy: shares no code with the package."""
    p, q = np.asarray(p, float), np.asarray(q, float)
    m = (p + q) / 2

    def divergence(a):
        return sum(x * math.log(x / y) for x, y in zip(a, m) if x > 0)

    return (divergence(p) + divergence(q)) / 2


@st.composite
def distributions(draw, number=2, sparse=True):
    """Log-probabilities of a few distributions over one vocabulary, some tokens impossible."""
    size = draw(st.integers(2, 12))
    rows = []
    for _ in range(number):
        weights = draw(st.lists(st.floats(1e-6, 1.0), min_size=size, max_size=size))
        gone = draw(st.lists(st.booleans(), min_size=size, max_size=size)) if sparse else []
        weights = [0.0 if g else w for w, g in zip(weights, gone or [False] * size)]
        if not any(weights):
            weights[draw(st.integers(0, size - 1))] = 1.0
        rows.append(torch.tensor(weights, dtype=torch.float64) / sum(weights))
    return [row.log() for row in rows]


def test_hand_values():
    p, q = logs(0.5, 0.5), logs(1.0, 0.0)
    assert divergences.entropy(p) == pytest.approx(LN2)
    assert divergences.entropy(q) == 0
    assert divergences.kl(q, p) == pytest.approx(LN2)
    assert divergences.kl(p, q) == math.inf
    assert divergences.js(p, q) == pytest.approx(js_plain([0.5, 0.5], [1, 0]), abs=1e-15)
    assert divergences.total_variation(p, q) == pytest.approx(0.5)
    assert divergences.independent_disagreement(p, q) == pytest.approx(0.5)


def test_disjoint_supports_are_ln2_apart():
    assert divergences.js(logs(1.0, 0.0), logs(0.0, 1.0)) == pytest.approx(LN2, abs=1e-15)
    assert divergences.total_variation(logs(1.0, 0.0), logs(0.0, 1.0)) == 1


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_agrees_with_the_plain_formula(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    a = torch.log_softmax(4 * torch.randn(50, 128, generator=generator, dtype=torch.float64), -1)
    b = torch.log_softmax(4 * torch.randn(50, 128, generator=generator, dtype=torch.float64), -1)
    got = divergences.js(a.to(dtype), b.to(dtype))
    assert got.dtype == dtype
    want = [js_plain(x, y) for x, y in zip(a.exp().numpy(), b.exp().numpy())]
    np.testing.assert_allclose(got.numpy(), want, atol=tolerance)
    np.testing.assert_allclose(
        divergences.kl(a, b).numpy(), (a.exp() * (a - b)).sum(-1).numpy(), rtol=1e-12
    )


@given(distributions())
def test_bounds_and_symmetry(pair):
    p, q = pair
    js = divergences.js(p, q)
    assert 0 <= js <= LN2
    assert torch.equal(js, divergences.js(q, p))
    assert divergences.js(p, p) <= 1e-15 and divergences.kl(p, p) == 0
    assert 0 <= divergences.entropy(p) <= math.log(len(p)) + 1e-12
    assert divergences.kl(p, q) >= 0
    tv = float(divergences.total_variation(p, q))
    assert 0 <= tv <= 1
    assert tv**2 / 2 <= float(js) + 1e-12 and float(js) <= LN2 * tv + 1e-12  # known bounds


@given(distributions())
def test_only_rounding_is_clamped(pair):
    for dtype, rounding in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        value = float(divergences.js_unclamped(pair[0].to(dtype), pair[1].to(dtype)))
        assert -rounding <= value <= LN2 + rounding


def test_fault_01_js_is_bounded_and_exact_on_the_whole_vocabulary():
    # two models sure of different tokens: ln 2, not the 3.9 nats of padded top-50 lists
    p, q = torch.full((1000,), -40.0), torch.full((1000,), -40.0)
    p[3] = q[700] = 0.0
    p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    assert divergences.js(p, q) == pytest.approx(LN2, abs=1e-6)
    # and a small change is small: mass .01 moved between two tokens out of 1000
    flat = torch.full((1000,), 1e-3, dtype=torch.float64)
    other = flat.clone()
    other[0], other[1] = 2e-3, 0.0
    assert divergences.js(flat.log(), other.log()) == pytest.approx(
        js_plain(flat, other), abs=1e-15
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fault_05_half_precision_is_refused_and_float32_is_accurate(dtype):
    logits = torch.randn(128_000, generator=torch.Generator().manual_seed(1))
    moved = logits + 0.05 * torch.randn(128_000, generator=torch.Generator().manual_seed(2))
    p, q = (torch.log_softmax(x.double(), -1) for x in (logits, moved))
    exact = js_plain(p.exp().numpy(), q.exp().numpy())
    assert 1e-4 < exact < 1e-3
    assert divergences.js(p.float(), q.float()) == pytest.approx(exact, abs=2e-7)
    with pytest.raises(TokenshiftError, match="give float32 or float64"):
        divergences.js(p.to(dtype), q.to(dtype))


def test_fault_06_kl_is_not_saturated_by_an_epsilon():
    p = torch.log_softmax(torch.tensor([60.0, 0.0], dtype=torch.float64), -1)
    q = torch.log_softmax(torch.tensor([0.0, 60.0], dtype=torch.float64), -1)
    assert divergences.kl(p, q) == pytest.approx(60.0, abs=1e-9)
    assert divergences.kl(p.float(), q.float()) == pytest.approx(60.0, abs=1e-4)


def test_kl_of_underflowing_support():
    p = torch.tensor([0.0, -200.0])  # exp(-200) is 0 in float32, yet the token is possible
    assert divergences.kl(p, torch.tensor([0.0, -300.0])) == 0
    assert divergences.kl(p, torch.tensor([0.0, -torch.inf])) == math.inf


def test_nan_is_refused_with_its_place():
    p = torch.log_softmax(torch.zeros(2, 3, 5), -1)
    bad = p.clone()
    bad[1, 2, 4] = torch.nan
    calls = [
        lambda: divergences.entropy(bad),
        lambda: divergences.js(p, bad),
        lambda: divergences.kl(bad, p),
        lambda: divergences.kl(p, bad),
        lambda: divergences.total_variation(p, bad),
        lambda: divergences.mass_gained(p, bad, torch.full((2, 3, 1), 4)),
    ]
    for call in calls:
        with pytest.raises(TokenshiftError, match="row 1, position 2"):
            call()


def test_different_vocabularies_are_refused():
    with pytest.raises(TokenshiftError, match="3 and 2 tokens"):
        divergences.js(logs(0.2, 0.3, 0.5), logs(0.5, 0.5))


def test_top_k_breaks_ties_by_lower_id():
    logp = logs(0.1, 0.3, 0.1, 0.3, 0.1, 0.1)
    ids, values = divergences.top_k(logp, 4)
    assert ids.tolist() == [1, 3, 0, 2]
    assert torch.equal(values, logp[ids])
    assert divergences.top_k(logp, 10)[0].tolist() == [1, 3, 0, 2, 4, 5]


@given(distributions(number=1), st.integers(1, 12))
def test_top_k_equals_a_stable_sort(one, k):
    rounded = (one[0] * 2).round() / 2  # many ties
    ids, _ = divergences.top_k(rounded.expand(3, -1), k)
    want = torch.sort(rounded, descending=True, stable=True).indices[:k]
    assert torch.equal(ids, want.expand(3, -1))


def test_overlap_by_hand():
    overlap = divergences.topk_overlap(torch.tensor([5, 1, 2, 9]), torch.tensor([1, 5, 3, 2]))
    assert overlap.tolist() == pytest.approx([0, 1, 2 / 3, 3 / 4])


def test_rank_by_hand():
    logp = logs(0.1, 0.3, 0.1, 0.3, 0.2)
    ranks = divergences.rank_of(logp.expand(5, 5), torch.arange(5))
    assert ranks.tolist() == [4, 1, 5, 2, 3]


def test_mass_gained_by_hand():
    base, tuned = logs(0.5, 0.3, 0.15, 0.05), logs(0.2, 0.4, 0.15, 0.25)
    gained = divergences.mass_gained(base, tuned, torch.arange(4))
    assert gained.tolist() == pytest.approx([0.0, 0.1, 0.1, 0.3])


@given(distributions(sparse=False))
def test_all_the_mass_gained_is_total_variation(pair):
    gained = divergences.mass_gained(*pair, torch.arange(len(pair[0])))
    assert gained[-1] == pytest.approx(float(divergences.total_variation(*pair)), abs=1e-12)
    assert (gained.diff() >= 0).all()


# Large vocabularies -----------------------------------------------------------------------------


def both(dtype, vocab=3000, rows=7, scale=4.0, noise=0.5):
    """Two distributions near each other, ``[rows, vocab]`` each."""
    generator = torch.Generator().manual_seed(3)
    one = scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    other = one + noise * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    return [torch.log_softmax(x, -1).to(dtype) for x in (one, other)]


def one_by_one(p, q):
    exact = (
        divergences.entropy(p),
        divergences.entropy(q),
        divergences.kl(p, q),
        divergences.kl(q, p),
    )
    return divergences.PairMeasures(*exact, divergences.js(p, q), divergences.total_variation(p, q))


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.5, 8.0])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_all_measures_of_a_pair_are_those_of_the_functions(dtype, tolerance, noise):
    p, q = both(dtype, noise=noise)
    for name, got, want in zip(
        divergences.PairMeasures._fields, divergences.pair_measures(p, q), one_by_one(p, q)
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)


def test_small_divergences_of_a_pair_are_exact():
    # relative to their own size, not only to 1: the histogram of JS goes down to 1e-6
    p, q = both(torch.float32, noise=2e-3)
    want = divergences.js(p.double(), q.double())
    assert (want < 2e-6).all()
    np.testing.assert_allclose(divergences.pair_measures(p, q).js, want, rtol=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_measures_of_a_pair_as_one_kernel():
    p, q = both(torch.float32)
    with torch.inference_mode():
        kernel = torch.compile(divergences._plain_sums, dynamic=True, fullgraph=True)
        for rows in (7, 3):
            for got, want in zip(
                kernel(p[:rows], q[:rows]), divergences.pair_measures(p[:rows], q[:rows])
            ):
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@given(distributions())
def test_measures_of_a_pair_with_impossible_tokens(pair):
    p, q = (x.expand(3, -1) for x in pair)
    for got, want in zip(divergences.pair_measures(p, q), one_by_one(p, q)):
        np.testing.assert_allclose(got, want, atol=1e-14)


def test_measures_of_a_pair_far_apart():
    p, q = both(torch.float32, vocab=50, scale=200.0, noise=300.0)
    for got, want in zip(divergences.pair_measures(p, q), one_by_one(p, q)):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_measures_of_a_pair_do_not_depend_on_the_rows_beside(monkeypatch):
    p, q = both(torch.float32)
    whole = divergences.pair_measures(p, q)
    monkeypatch.setattr(divergences, "CPU_ROWS", 2 * 3000)
    for got, want in zip(divergences.pair_measures(p, q), whole):
        assert torch.equal(got, want)


@pytest.mark.parametrize("vocab", [40, 8191, 8192, 20_000, 151_936])
def test_the_largest_are_those_of_topk(vocab):
    generator = torch.Generator().manual_seed(vocab)
    rows = torch.randn(4, vocab, generator=generator)
    rows[1] = (rows[1] * 2).round()  # ties
    rows[2, : vocab // 2] = -torch.inf
    rows[3, -1] = 9.0
    for k in (1, 16, 17, 128):
        values, ids = divergences.largest(rows, k)
        assert torch.equal(values, torch.topk(rows, min(k, vocab)).values)
        assert torch.equal(values, rows.gather(-1, ids))
        assert all(len(set(row)) == len(row) for row in ids.tolist())


def test_top_k_of_a_large_vocabulary_breaks_ties_by_lower_id():
    logp = torch.log_softmax(torch.randn(3, 20_000, dtype=torch.float64).round(), -1)
    ids, _ = divergences.top_k(logp, 10)
    assert torch.equal(ids, torch.sort(logp, descending=True, stable=True).indices[:, :10])
