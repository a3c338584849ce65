"""Measures against hand values, an independent float64 formula, and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils import measures
from tokenshift_utils.errors import TokenshiftError

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
    assert measures.entropy(p) == pytest.approx(LN2)
    assert measures.entropy(q) == 0
    assert measures.kl(q, p) == pytest.approx(LN2)
    assert measures.kl(p, q) == math.inf
    assert measures.js(p, q) == pytest.approx(js_plain([0.5, 0.5], [1, 0]), abs=1e-15)
    assert measures.total_variation(p, q) == pytest.approx(0.5)
    assert measures.independent_disagreement(p, q) == pytest.approx(0.5)


def test_disjoint_supports_are_ln2_apart():
    assert measures.js(logs(1.0, 0.0), logs(0.0, 1.0)) == pytest.approx(LN2, abs=1e-15)
    assert measures.total_variation(logs(1.0, 0.0), logs(0.0, 1.0)) == 1


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_agrees_with_the_plain_formula(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    a = torch.log_softmax(4 * torch.randn(50, 128, generator=generator, dtype=torch.float64), -1)
    b = torch.log_softmax(4 * torch.randn(50, 128, generator=generator, dtype=torch.float64), -1)
    got = measures.js(a.to(dtype), b.to(dtype))
    assert got.dtype == dtype
    want = [js_plain(x, y) for x, y in zip(a.exp().numpy(), b.exp().numpy())]
    np.testing.assert_allclose(got.numpy(), want, atol=tolerance)
    np.testing.assert_allclose(
        measures.kl(a, b).numpy(), (a.exp() * (a - b)).sum(-1).numpy(), rtol=1e-12
    )


@given(distributions())
def test_bounds_and_symmetry(pair):
    p, q = pair
    js = measures.js(p, q)
    assert 0 <= js <= LN2
    assert torch.equal(js, measures.js(q, p))
    assert measures.js(p, p) <= 1e-15 and measures.kl(p, p) == 0
    assert 0 <= measures.entropy(p) <= math.log(len(p)) + 1e-12
    assert measures.kl(p, q) >= 0
    tv = float(measures.total_variation(p, q))
    assert 0 <= tv <= 1
    assert tv**2 / 2 <= float(js) + 1e-12 and float(js) <= LN2 * tv + 1e-12  # known bounds


@given(distributions())
def test_only_rounding_is_clamped(pair):
    for dtype, rounding in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        value = float(measures.js_unclamped(pair[0].to(dtype), pair[1].to(dtype)))
        assert -rounding <= value <= LN2 + rounding


def test_fault_01_js_is_bounded_and_exact_on_the_whole_vocabulary():
    # two models sure of different tokens: ln 2, not the 3.9 nats of padded top-50 lists
    p, q = torch.full((1000,), -40.0), torch.full((1000,), -40.0)
    p[3] = q[700] = 0.0
    p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    assert measures.js(p, q) == pytest.approx(LN2, abs=1e-6)
    # and a small change is small: mass .01 moved between two tokens out of 1000
    flat = torch.full((1000,), 1e-3, dtype=torch.float64)
    other = flat.clone()
    other[0], other[1] = 2e-3, 0.0
    assert measures.js(flat.log(), other.log()) == pytest.approx(js_plain(flat, other), abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fault_05_half_precision_is_refused_and_float32_is_accurate(dtype):
    logits = torch.randn(128_000, generator=torch.Generator().manual_seed(1))
    moved = logits + 0.05 * torch.randn(128_000, generator=torch.Generator().manual_seed(2))
    p, q = (torch.log_softmax(x.double(), -1) for x in (logits, moved))
    exact = js_plain(p.exp().numpy(), q.exp().numpy())
    assert 1e-4 < exact < 1e-3
    assert measures.js(p.float(), q.float()) == pytest.approx(exact, abs=2e-7)
    with pytest.raises(TokenshiftError, match="give float32 or float64"):
        measures.js(p.to(dtype), q.to(dtype))


def test_fault_06_kl_is_not_saturated_by_an_epsilon():
    p = torch.log_softmax(torch.tensor([60.0, 0.0], dtype=torch.float64), -1)
    q = torch.log_softmax(torch.tensor([0.0, 60.0], dtype=torch.float64), -1)
    assert measures.kl(p, q) == pytest.approx(60.0, abs=1e-9)
    assert measures.kl(p.float(), q.float()) == pytest.approx(60.0, abs=1e-4)


def test_kl_of_underflowing_support():
    p = torch.tensor([0.0, -200.0])  # exp(-200) is 0 in float32, yet the token is possible
    assert measures.kl(p, torch.tensor([0.0, -300.0])) == 0
    assert measures.kl(p, torch.tensor([0.0, -torch.inf])) == math.inf


def test_nan_is_refused_with_its_place():
    p = torch.log_softmax(torch.zeros(2, 3, 5), -1)
    bad = p.clone()
    bad[1, 2, 4] = torch.nan
    calls = [
        lambda: measures.entropy(bad),
        lambda: measures.js(p, bad),
        lambda: measures.kl(bad, p),
        lambda: measures.kl(p, bad),
        lambda: measures.total_variation(p, bad),
        lambda: measures.mass_moved(p, bad, [1]),
    ]
    for call in calls:
        with pytest.raises(TokenshiftError, match="row 1, position 2"):
            call()


def test_different_vocabularies_are_refused():
    with pytest.raises(TokenshiftError, match="3 and 2 tokens"):
        measures.js(logs(0.2, 0.3, 0.5), logs(0.5, 0.5))


def test_top_k_breaks_ties_by_lower_id():
    logp = logs(0.1, 0.3, 0.1, 0.3, 0.1, 0.1)
    ids, values = measures.top_k(logp, 4)
    assert ids.tolist() == [1, 3, 0, 2]
    assert torch.equal(values, logp[ids])
    assert measures.top_k(logp, 10)[0].tolist() == [1, 3, 0, 2, 4, 5]


@given(distributions(number=1), st.integers(1, 12))
def test_top_k_equals_a_stable_sort(one, k):
    rounded = (one[0] * 2).round() / 2  # many ties
    ids, _ = measures.top_k(rounded.expand(3, -1), k)
    want = torch.sort(rounded, descending=True, stable=True).indices[:k]
    assert torch.equal(ids, want.expand(3, -1))


def test_overlap_by_hand():
    overlap = measures.topk_overlap(torch.tensor([5, 1, 2, 9]), torch.tensor([1, 5, 3, 2]))
    assert overlap.tolist() == pytest.approx([0, 1, 2 / 3, 3 / 4])


def test_rank_by_hand():
    logp = logs(0.1, 0.3, 0.1, 0.3, 0.2)
    ranks = measures.rank_of(logp.expand(5, 5), torch.arange(5))
    assert ranks.tolist() == [4, 1, 5, 2, 3]


def test_mass_moved_by_hand():
    base, tuned = logs(0.5, 0.3, 0.15, 0.05), logs(0.2, 0.4, 0.15, 0.25)
    inside, total = measures.mass_moved(base, tuned, [1, 2, 4])
    assert inside.tolist() == pytest.approx([0.0, 0.1, 0.3])
    assert total == pytest.approx(0.3)


@given(distributions(sparse=False))
def test_mass_moved_is_total_variation(pair):
    inside, total = measures.mass_moved(*pair, range(1, 6))
    assert total == pytest.approx(float(measures.total_variation(*pair)), abs=1e-12)
    assert (inside.diff() >= 0).all() and (inside <= total + 1e-12).all()
