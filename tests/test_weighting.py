"""Divergence weights: the estimator against the exact KL, and the weight function by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.measures.divergences import kl
from tokenshift_utils.measures.weighting import Weighting, divergence_weights, k3, one_minus_p


def test_k3_is_unbiased_for_kl_of_old_and_new():
    old = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64).log()
    new = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64).log()
    exact = (old.exp() * (old - new)).sum()
    reverse = (new.exp() * (new - old)).sum()
    expected = (old.exp() * k3(new, old)).sum()  # the mean over y drawn from pi_old, exactly
    assert expected.item() == pytest.approx(exact.item(), rel=1e-12)
    assert abs(exact - reverse) > 0.1  # so that the direction matters here


def test_k3_by_hand():
    # r = 1/2: 1/2 - 1 + log 2
    value = k3(torch.tensor(math.log(0.25)), torch.tensor(math.log(0.5)))
    assert value.item() == pytest.approx(-0.5 + math.log(2), rel=1e-6)
    assert k3(torch.tensor(-1.3), torch.tensor(-1.3)).item() == 0


def test_the_mean_of_k3_over_draws_approaches_the_exact_kl():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(20, generator=generator, dtype=torch.float64).log_softmax(-1)
    new = (old + 0.3 * torch.randn(20, generator=generator)).log_softmax(-1)
    draws = torch.multinomial(old.exp(), 200_000, replacement=True, generator=generator)
    values = k3(new[draws], old[draws])
    error = values.std() / len(draws) ** 0.5
    assert abs(values.mean() - kl(old, new)) < 4 * error < 0.1 * kl(old, new)


@given(st.floats(width=32), st.floats(width=32), st.sampled_from([torch.float32, torch.bfloat16]))
def test_k3_is_finite_and_not_negative_for_any_input(new, old, dtype):
    value = k3(torch.tensor(new, dtype=dtype), torch.tensor(old, dtype=dtype)).item()
    assert math.isfinite(value) and value >= -1e-6


def test_k3_resolves_small_moves_in_half_precision():
    new, old = (torch.tensor([value], dtype=torch.bfloat16) for value in (-1.0, -1.0078125))
    step = 0.0078125
    assert k3(new, old).item() == pytest.approx(math.expm1(step) - step, rel=1e-3)


@given(st.floats(-1e3, 1e3), st.floats(-1.99, 1.99), st.floats(width=32))
def test_weights_are_within_their_bounds_for_any_signal(alpha, scale, signal):
    weight = divergence_weights(torch.tensor(signal), Weighting(alpha, scale)).item()
    assert abs(weight - 1) <= abs(scale) / 2 + 1e-6 and weight > 0


def test_what_does_not_exist_weighs_1():
    signal = torch.tensor([math.nan, 0.0])
    assert divergence_weights(signal, Weighting(5.0, 1.0)).tolist() == [1, 1]


def test_one_minus_p_by_hand():
    logp = torch.tensor([0.25, 1.0, 0.0]).log()
    assert one_minus_p(logp).tolist() == pytest.approx([0.75, 0.0, 1.0])


def test_weights_by_hand_and_direction():
    divergence = torch.tensor([0.0, 0.01, 10.0])
    high = divergence_weights(divergence, Weighting(alpha=100.0, scale=1.0))
    low = divergence_weights(divergence, Weighting(alpha=-100.0, scale=1.0))
    expected = 1 + 1 / (1 + math.exp(-1)) - 0.5
    assert high.tolist() == pytest.approx([1.0, expected, 1.5], rel=1e-6)
    assert (high + low).tolist() == pytest.approx([2.0, 2.0, 2.0], rel=1e-6)


def test_no_gradient_flows_through_the_weights():
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    weights = divergence_weights(k3(new, torch.tensor([-1.5, -1.0])), Weighting(10.0, 1.0))
    assert not weights.requires_grad


@pytest.mark.parametrize(
    "settings, said",
    [
        ((math.nan, 1.0), "alpha must be finite, got nan"),
        ((math.inf, 1.0), "alpha must be finite, got inf"),
        ((1.0, math.nan), "scale must be finite"),
        ((1.0, 2.0), r"\|scale\| must be below 2, got 2.0"),
        ((1.0, -2.5), r"\|scale\| must be below 2, got -2.5"),
        (("1e4", 1.0), "alpha must be a number, got '1e4'"),
        ((1.0, None), "scale must be a number, got None"),
        (
            (1.0, 1.0, "kl"),
            "unknown signal 'kl'; there are k3, kl_ref, js_ref, entropy, one_minus_p",
        ),
    ],
)
def test_bad_weightings_are_refused(settings, said):
    with pytest.raises(TokenshiftError, match=said):
        Weighting(*settings)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(TokenshiftError, match=r"shapes do not match: logp_new \(2, 3\), logp_old"):
        k3(torch.zeros(2, 3), torch.zeros(2, 1))
