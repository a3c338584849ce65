"""The bootstrap over problems, against hand values and independent formulas."""

import numpy as np
import pandas as pd
import pytest

from tokenshift_utils.report.bootstrap import Bootstrap, Estimate, simultaneous


def responses(by_problem, benchmark="b"):
    """One row a sample: {problem: [correct, ...]}."""
    return pd.DataFrame(
        [(benchmark, p, i, float(c)) for p, cs in by_problem.items() for i, c in enumerate(cs)],
        columns=["benchmark", "problem", "sample", "correct"],
    )


def many(problems=40, samples=8, seed=0, benchmark="b", chance=None):
    rng = np.random.default_rng(seed)
    p = rng.beta(0.5, 0.5, problems) if chance is None else np.full(problems, chance)
    return responses(
        {f"{benchmark}-{i:03d}": rng.random(samples) < p[i] for i in range(problems)}, benchmark
    )


def test_accuracy_is_the_mean_over_problems_of_the_mean_over_samples():
    frame = responses({"p": [1, 1, 1, 1, 1, 1, 1, 1], "q": [0, 1]})
    assert Bootstrap(frame).accuracy(frame).value == pytest.approx(0.75)  # pooled it would be 0.9


def test_shares_are_ratios_of_sums():
    frame = pd.DataFrame({"benchmark": "b", "problem": ["p"] * 3 + ["q"], "n": [1, 0, 0, 1]})
    assert Bootstrap(frame).ratio(frame, frame["n"]).value == pytest.approx(0.5)
    assert Bootstrap(frame).ratio(frame, frame["n"], [2, 2, 2, 2]).value == pytest.approx(0.25)


def test_interval_agrees_with_the_normal_theory_of_the_mean_over_problems():
    frame = many(problems=200)
    per_problem = frame.groupby("problem")["correct"].mean()
    estimate = Bootstrap(frame, resamples=4000).accuracy(frame)
    half = 1.96 * per_problem.std() / np.sqrt(200)
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.15 * half)


def test_interval_is_uncertainty_of_the_mean_not_the_spread_over_problems():
    """A known fault: '±' that is a standard deviation over prompts, called uncertainty."""
    widths = {}
    for n in (50, 800):
        frame = many(problems=n)
        estimate = Bootstrap(frame).accuracy(frame)
        widths[n] = estimate.high - estimate.low
        spread = frame.groupby("problem")["correct"].mean().std()
        assert widths[n] < 2 * spread * 2.2 / np.sqrt(n) * 1.1
    assert widths[50] / widths[800] == pytest.approx(4, rel=0.25)


def test_samples_of_a_problem_stay_together():
    """Copies of one sample add no information, so they must not narrow the interval."""
    one = many(samples=1)
    copies = pd.concat([one.assign(sample=i) for i in range(16)])
    a, b = Bootstrap(one).accuracy(one), Bootstrap(copies).accuracy(copies)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_benchmarks_are_strata():
    frame = pd.concat([many(benchmark="a", chance=0.0), many(benchmark="z", chance=1.0)])
    estimate = Bootstrap(frame).accuracy(frame)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_differences_are_paired():
    frame = many()
    better = frame.assign(correct=np.minimum(frame["correct"] + 0.1, 1.1))
    boot = Bootstrap(frame)
    gain = boot.accuracy(better) - boot.accuracy(frame)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))


def test_draws_do_not_depend_on_the_order_of_rows():
    frame = many()
    shuffled = frame.sample(frac=1.0, random_state=1)
    a, b = Bootstrap(frame, seed=3).accuracy(frame), Bootstrap(shuffled, seed=3).accuracy(shuffled)
    assert np.allclose(a.draws, b.draws)


def test_quantiles_against_numpy_on_every_resample():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"benchmark": "b", "problem": rng.integers(0, 12, 1500).astype(str)})
    values = np.round(rng.exponential(size=1500), 2) * (rng.random(1500) > 0.6)  # ties and zeros
    boot = Bootstrap(frame, resamples=50)
    levels = [0.0, 0.5, 0.9, 0.99, 1.0]
    got = boot.quantiles(frame, values, levels)
    codes = boot.codes(frame)
    for estimate, level in zip(got, levels):
        assert estimate.value == np.quantile(values, level, method="inverted_cdf")
        for draw in range(0, 50, 7):
            repeated = np.repeat(values, boot.weights[draw][codes].astype(int))
            assert estimate.draws[draw] == np.quantile(repeated, level, method="inverted_cdf")


def test_variance_explained_by_hand_and_for_meaningless_groups():
    frame = pd.DataFrame({"benchmark": "b", "problem": list("ppqq")})
    # total spread 4 on 3 degrees of freedom, within groups 0
    assert Bootstrap(frame).variance_explained(frame, [0, 2, 0, 2], list("xyxy")).value == 1.0
    # group means 0.5 and 1.5 -> within 2.0 on 2, total 4 (values 0,1,1,2: 2.0) on 3
    by_hand = 1 - (1.0 / 2) / (2.0 / 3)
    assert Bootstrap(frame).variance_explained(
        frame, [0, 1, 1, 2], list("xxyy")
    ).value == pytest.approx(by_hand)
    rng = np.random.default_rng(1)
    big = pd.DataFrame({"benchmark": "b", "problem": rng.integers(0, 30, 4000).astype(str)})
    noise = Bootstrap(big, resamples=100).variance_explained(
        big, rng.normal(size=4000), rng.integers(0, 40, 4000)
    )
    assert abs(noise.value) < 0.01 and noise.low < 0.02
    # as many groups as half of the rows: a problem drawn twice brings rows, and no new groups
    many_groups = Bootstrap(big, resamples=200).variance_explained(
        big, rng.normal(size=4000), rng.integers(0, 2000, 4000)
    )
    assert many_groups.low < many_groups.value < many_groups.high and many_groups.low < 0


def test_nothing_to_measure_gives_nan_and_no_warning():
    frame = many(problems=3)
    boot, empty = Bootstrap(frame, resamples=20), many(problems=3).iloc[:0]
    with np.errstate(all="raise"):
        for estimate in (
            boot.accuracy(empty),
            boot.ratio(empty, empty["correct"]),
            *boot.quantiles(empty, empty["correct"], [0.5]),
            boot.variance_explained(empty, empty["correct"], empty["problem"]),
        ):
            assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_one_problem_has_a_value_but_no_interval():
    frame = many(problems=1, chance=1.0)
    boot = Bootstrap(frame, resamples=20)
    for estimate in (boot.accuracy(frame), boot.quantiles(frame, frame["correct"], [0.5])[0]):
        assert estimate.value == 1.0 and np.isnan(estimate.low)


def test_a_quantity_missing_from_many_resamples_gets_no_interval():
    frame = many(problems=6, chance=1.0)
    only_two = np.isin(frame["problem"], ["b-000", "b-001"]).astype(float)
    estimate = Bootstrap(frame).ratio(frame, only_two, only_two)
    assert estimate.value == 1.0 and np.isnan(estimate.low)


def test_unknown_problem_is_an_error():
    with pytest.raises(ValueError, match="outside"):
        Bootstrap(many(problems=3)).accuracy(many(problems=4))


def test_simultaneous_interval_of_the_largest_is_wider_than_its_own():
    rng = np.random.default_rng(0)
    parts = [Estimate(m, m + rng.normal(size=2000)) for m in (0.0, 0.5, 1.0)]
    value, low, high = simultaneous(parts, "largest")
    assert value == 1.0 and low < parts[2].low and high > parts[2].high
    assert simultaneous(parts, "smallest")[0] == 0.0
    assert np.isnan(simultaneous([], "largest")).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Problems that differ a lot, samples that differ a little: 95% intervals of mean and share."""
    rng, hits = np.random.default_rng(0), {"accuracy": 0, "ratio": 0, "quantile": 0}
    trials, problems, samples = 300, 40, 4
    for _ in range(trials):
        chance = rng.beta(1, 1, problems)
        right = rng.random((problems, samples)) < chance[:, None]
        length = rng.integers(5, 15, (problems, samples))
        marked = rng.binomial(length, chance[:, None] ** 2)
        frame = pd.DataFrame(
            {
                "benchmark": "b",
                "problem": np.repeat(np.arange(problems), samples).astype(str),
                "correct": right.ravel(),
            }
        )
        boot = Bootstrap(frame, resamples=300)
        noisy = np.repeat(rng.normal(size=problems), samples) + rng.normal(size=len(frame))
        for name, estimate, truth in (
            ("accuracy", boot.accuracy(frame), 1 / 2),
            ("ratio", boot.ratio(frame, marked.ravel(), length.ravel()), 1 / 3),
            ("quantile", boot.quantiles(frame, noisy, [0.5])[0], 0.0),
        ):
            hits[name] += estimate.low <= truth <= estimate.high
    assert all(0.90 <= count / trials <= 0.98 for count in hits.values()), hits


@pytest.mark.parametrize("problems, samples", [(1, 40), (3, 3), (9, 1)])
def test_too_little_is_said_in_place_of_an_interval(problems, samples):
    frame = many(problems=problems, samples=samples)
    boot, rows = Bootstrap(frame, resamples=50), np.ones(problems * samples)
    parts = (
        boot.accuracy(frame),
        boot.ratio(frame, frame["correct"]),
        boot.quantiles(frame, frame["correct"], [0.5])[0],
        boot.variance_explained(frame, rows, frame["sample"]),
        boot.accuracy(frame) - boot.accuracy(frame),
        boot.accuracy(frame) / 2.0,
    )
    for estimate in parts:
        assert np.isnan(estimate.interval()).all()
        assert f"{problems} problem" in estimate.why
        assert f"{problems * samples} observations" in estimate.why


def test_a_share_counts_the_rows_of_its_denominator_as_observations():
    """Nine high-JS positions among a thousand carry no interval of what share of them is so."""
    frame = many(problems=50, samples=20)
    among = np.zeros(len(frame))
    among[np.arange(0, 900, 100)] = 1
    boot = Bootstrap(frame)
    few = boot.ratio(frame, among * frame["correct"], among)
    assert np.isfinite(few.value) and np.isnan(few.low) and "9 observations" in few.why
    among[950] = 1
    enough = boot.ratio(frame, among * frame["correct"], among)
    assert enough.why == "" and np.isfinite(enough.interval()).all()


def test_a_claim_from_too_little_is_not_testable_and_says_why():
    from tokenshift_utils.sections.claims import evaluate
    from tokenshift_utils.sections.common import evidence

    frame = many(problems=3, samples=2)
    estimate = Bootstrap(frame).accuracy(frame)
    for note, opening in (("", "too few"), ("JS > 0.1", "JS > 0.1; too few")):
        found = evidence([("near_zero_share", "dapo", estimate, note)])
        table = evaluate({"base": ["base"], "dapo": ["rl", "dapo"]}, found).set_index(
            ["claim", "subject"]
        )
        row = table.loc[("1-sparsity-dapo", "dapo")]
        assert row["verdict"] == "not testable"
        assert (
            row["measured"].startswith(opening) and "3 problems, 6 observations" in row["measured"]
        )
