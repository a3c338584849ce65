"""Divergence weights: the estimator against the exact KL, and the weight function by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenshift_utils.errors import TokenshiftError
from tokenshift_utils.weighting import Weighting, divergence_weights, k3


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


@given(st.floats(-1e4, 0), st.floats(-1e4, 0))
def test_k3_is_finite_and_not_negative(new, old):
    value = k3(torch.tensor(new), torch.tensor(old)).item()
    assert math.isfinite(value) and value >= -1e-6


@given(st.floats(-1e3, 1e3), st.floats(-1.99, 1.99), st.floats(0, 1e5))
def test_weights_are_within_their_bounds(alpha, scale, divergence):
    weight = divergence_weights(torch.tensor(divergence), Weighting(alpha, scale)).item()
    assert abs(weight - 1) <= abs(scale) / 2 + 1e-6 and weight > 0


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
    "alpha, scale", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, 2.0), (1.0, -2.5)]
)
def test_bad_weightings_are_refused(alpha, scale):
    with pytest.raises(TokenshiftError):
        Weighting(alpha, scale)
