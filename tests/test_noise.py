"""Noise that depends on its counter only, and has the distribution it claims."""

import numpy as np
import pytest
import torch

from tokenshift_utils.measures.noise import argmax_lowest, draw, gumbel, row_key, uniform


def keys(n: int, **changes) -> torch.Tensor:
    settings = {"seed": 1, "benchmark": "b", "problem": "p", "stream": 0} | changes
    return torch.tensor([row_key(sample=i, **settings) for i in range(n)])


def ks_distance(values: np.ndarray, cdf) -> float:
    """Kolmogorov-Smirnov distance times sqrt(n): above 1.95 once in a thousand true samples."""
    values = np.sort(values)
    steps = np.arange(1, len(values) + 1) / len(values)
    return float(np.abs(steps - cdf(values)).max() * np.sqrt(len(values)))


def test_row_keys_are_pinned():
    # a change here would change every record: it needs a reason
    assert row_key(20260322, "hard", "hard-000", 0) == row_key(20260322, "hard", "hard-000", 0, 0)
    assert row_key(1, "b", "p", 2) == -4191878128825831470
    value = float(gumbel(torch.tensor([5]), torch.tensor([7]), torch.tensor([11])))
    assert value == pytest.approx(-0.23581131004917005, abs=1e-12)


def test_every_part_of_the_key_counts():
    whole = {
        row_key(s, b, p, i, k)
        for s in (1, 2)
        for b in ("a", "b")
        for p in ("1", "2")
        for i in (0, 1)
        for k in (0, 1)
    }
    assert len(whole) == 32
    assert row_key(1, "a", "b1", 0) != row_key(1, "ab", "1", 0)


def test_noise_does_not_depend_on_its_neighbours():
    rows, positions = keys(6), torch.tensor([0, 1, 2, 3, 4, 5])
    whole = gumbel(rows, positions, torch.arange(50))
    assert torch.equal(gumbel(rows[2:4], positions[2:4], torch.arange(50)), whole[2:4])
    assert torch.equal(gumbel(rows, positions, torch.tensor([9, 3])), whole[:, [9, 3]])
    chosen = torch.tensor([[4, 7], [1, 1], [0, 49], [2, 3], [5, 6], [8, 9]])
    assert torch.equal(gumbel(rows, positions, chosen), whole.gather(1, chosen))


def test_fault_02_positions_samples_and_streams_have_noise_of_their_own():
    ids = torch.arange(40)
    flat = torch.full((40,), -np.log(40.0), dtype=torch.float64).expand(200, -1)
    by_position = draw(flat, keys(1).expand(200), torch.arange(200))
    by_sample = draw(flat, keys(200), torch.zeros(200, dtype=torch.long))
    for tokens in (by_position, by_sample):
        assert len(set(tokens.tolist())) > 30  # one shared seed would give a single token
    other = draw(flat, keys(200, stream=1), torch.zeros(200, dtype=torch.long))
    assert (other == by_sample).float().mean() < 0.1
    a, b = (gumbel(keys(1, stream=s), torch.zeros(1, dtype=torch.long), ids) for s in (0, 1))
    assert not torch.isclose(a, b).any()


def test_gumbel_and_uniform_have_their_distributions():
    positions = torch.arange(20) // 2
    noise = gumbel(keys(20), positions, torch.arange(1000)).flatten().numpy()
    assert np.isfinite(noise).all()
    assert ks_distance(noise, lambda x: np.exp(-np.exp(-x))) < 1.95
    values = uniform(keys(5000), torch.zeros(5000, dtype=torch.long)).numpy()
    assert ks_distance(values, lambda x: x) < 1.95
    assert 0 < values.min() and values.max() < 1


def test_neighbouring_positions_and_tokens_are_uncorrelated():
    noise = gumbel(keys(1).expand(2000), torch.arange(2000), torch.arange(20)).numpy()
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frequencies_agree_with_probabilities(dtype):
    probabilities = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.04, 0.01, 0.0], dtype=dtype)
    n = 20_000
    tokens = draw(probabilities.log().expand(n, -1), keys(n), torch.zeros(n, dtype=torch.long))
    counts = np.bincount(tokens.numpy(), minlength=7)
    assert counts[6] == 0
    expected = n * probabilities[:6].double().numpy()
    chi_square = ((counts[:6] - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 5 degrees of freedom, once in a thousand


def test_equal_scores_go_to_the_lower_id():
    scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
    assert argmax_lowest(scores, torch.tensor([[9, 8, 4], [7, 6, 5]])).tolist() == [4, 6]
