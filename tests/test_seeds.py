"""Statistics over training seeds: by hand, and against tabled quantiles."""

import math

import numpy as np
import pytest

from tokenshift_utils.report.seeds import Paired, holm, pass_at_k


@pytest.mark.parametrize(
    "level, freedom, tabled",
    [
        (0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 4, 2.77645), (0.975, 7, 2.36462),
        (0.8, 7, 0.896030), (0.995, 3, 5.84091), (0.975, 30, 2.04227),
    ],
)  # fmt: skip
def test_an_interval_is_as_wide_as_the_table_of_students_quantiles_says(level, freedom, tabled):
    paired = Paired(np.arange(freedom + 1.0), confidence=2 * level - 1)
    low, high = paired.interval()
    error = np.std(paired.differences, ddof=1) / math.sqrt(freedom + 1)
    assert (high - low) / (2 * error) == pytest.approx(tabled, rel=1e-5)


def test_the_sign_flip_test_by_hand():
    assert Paired(np.full(8, 0.01)).p == Paired(np.full(8, 0.01)).smallest_p == 2 / 256
    # signs that give |sum| >= 2 of (1, 2, -1): the observed pattern, five more, and all negated
    sums = [a + 2 * b - c for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    expected = np.mean([abs(s) >= 2 for s in sums])
    assert Paired(np.array([1.0, 2.0, -1.0])).p == expected
    assert Paired(np.zeros(5)).p == 1
    assert Paired(np.full(5, 1.0)).smallest_p == pytest.approx(0.0625)  # so no test on five seeds


def test_equal_means_count_whatever_the_rounding():
    assert Paired(np.array([0.1, 0.2, 0.3, -0.3])).p == Paired(np.array([1.0, 2.0, 3.0, -3.0])).p


def test_the_interval_and_the_detectable_difference_by_hand():
    paired = Paired(np.array([0.0, 0.02, 0.01, 0.03]))
    error = np.std(paired.differences, ddof=1) / 2
    assert paired.interval() == pytest.approx(
        (0.015 - 3.182446 * error, 0.015 + 3.182446 * error), rel=1e-5
    )
    assert paired.detectable == pytest.approx((3.182446 + 0.978472) * error, rel=1e-5)


def test_the_test_keeps_its_level_and_the_detectable_difference_its_power():
    rng = np.random.default_rng(0)
    null = rng.normal(0, 1, (2000, 8))
    assert np.mean([Paired(row).p <= 0.05 for row in null]) == pytest.approx(0.05, abs=0.015)
    effect = (2.36462 + 0.89603) / math.sqrt(8)  # of a true spread of 1
    found = np.mean([Paired(row + effect).p <= 0.05 for row in null])
    assert found == pytest.approx(0.8, abs=0.05)


def test_one_seed_has_no_interval_and_none_no_mean():
    one, none = Paired(np.array([0.1])), Paired(np.array([]))
    assert one.mean == 0.1 and math.isnan(one.interval()[0]) and math.isnan(one.detectable)
    assert one.p == one.smallest_p == 1
    assert math.isnan(none.mean) and math.isnan(none.p)


def test_holm_by_hand():
    assert holm([0.01, 0.04]) == pytest.approx([0.02, 0.04])
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])  # never less than a smaller one's
    assert holm([2 / 256, 2 / 256]) == pytest.approx([0.015625, 0.015625])
    corrected = holm([math.nan, 0.02])
    assert math.isnan(corrected[0]) and corrected[1] == 0.02


def test_pass_at_k_by_hand():
    correct, samples = np.array([0, 1, 4]), np.array([4, 4, 4])
    assert pass_at_k(correct, samples, 1) == pytest.approx([0, 0.25, 1])
    assert pass_at_k(correct, samples, 2) == pytest.approx([0, 0.5, 1])
    assert np.isnan(pass_at_k(correct, samples, 5)).all()
