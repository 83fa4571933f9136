"""Each statistic against a number that was worked out by hand, or by another program."""

import math

import baycomp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sweeps.analysis import statistics, units

DIFFERENCES = np.array([-0.4, -0.3, -0.5, -0.2, -0.6])  # mean -0.4, sum of squares 0.1, sd 0.1581


def test_corrected_t_by_hand() -> None:
    """Five folds: variance 0.025, times 1/5 + 1/4; t = -0.4 / 0.10607 = -3.7712 with 4 degrees of freedom."""
    found = statistics.corrected_t(DIFFERENCES, 0.25)
    assert found.estimate == pytest.approx(-0.4)
    assert found.se == pytest.approx(math.sqrt(0.45 * 0.025))
    assert found.df == 4
    assert found.p == pytest.approx(2 * stats.t.sf(0.4 / math.sqrt(0.01125), 4))
    assert found.p == pytest.approx(0.01959, abs=5e-5)
    assert (found.low, found.high) == pytest.approx(
        (-0.4 - 2.77645 * 0.106066, -0.4 + 2.77645 * 0.106066), abs=1e-5
    )


def test_without_overlap_it_is_students_test() -> None:
    found = statistics.corrected_t(DIFFERENCES, 0.0)
    assert found.p == pytest.approx(float(stats.ttest_1samp(DIFFERENCES, 0).pvalue))


def test_the_posterior_is_baycomps() -> None:
    arm, other = 7 + DIFFERENCES, np.full(5, 7.0)
    theirs = baycomp.two_on_single(arm, other, rope=0.1)  # left: the second is lower by more than the rope
    ours = statistics.posterior(statistics.corrected_t(DIFFERENCES, 1 / 4), 0.1)
    assert ours == pytest.approx((theirs[2], theirs[1], theirs[0]), abs=1e-9)
    assert sum(ours) == pytest.approx(1)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_two_test_sets_are_too_few(n: int) -> None:
    found = statistics.corrected_t(DIFFERENCES[:n], 1.0)
    assert math.isnan(found.p)
    assert all(map(math.isnan, (found.low, found.high)))
    assert all(map(math.isnan, statistics.posterior(found, 0.1)))


def test_differences_that_are_all_equal() -> None:
    assert statistics.corrected_t(np.full(4, 0.1), 0.3).p == 0
    assert statistics.corrected_t(np.zeros(4), 0.3).p == 1


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert len(statistics.holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni(p: list[float]) -> None:
    adjusted = statistics.holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()


@pytest.mark.parametrize("rope", [0.1, 0.7])
def test_equivalence_is_scipys_two_shifted_tests(rope: float) -> None:
    expected = max(
        stats.ttest_1samp(DIFFERENCES, -rope, alternative="greater").pvalue,
        stats.ttest_1samp(DIFFERENCES, rope, alternative="less").pvalue,
    )
    found = statistics.equivalence([statistics.corrected_t(DIFFERENCES, 0.0)], rope)
    assert found == pytest.approx(float(expected))
    assert math.isnan(statistics.equivalence([statistics.corrected_t(DIFFERENCES, 0.0)], math.nan))


def test_seeds_are_averaged_within_their_unit() -> None:
    nan = math.nan
    found = units.unit_means(np.array([[1.0, 3.0], [nan, 5.0], [nan, nan]]))
    assert found.tolist() == [2.0, 5.0]


def test_more_seeds_by_hand() -> None:
    """No variance between units, seed variance 2: with S seeds the variance of a unit's mean is 2 / S."""
    signs = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    differences = -1.0 + signs  # sample variance within units: 2
    overlap = 1 / 3

    def decides(seeds: int) -> bool:
        se = math.sqrt((1 / 4 + overlap) * 2 / seeds)
        return bool(2 * stats.t.sf(1.0 / se, 3) <= 0.05)

    expected = next(seeds for seeds in range(3, 100) if decides(seeds)) - 2
    assert statistics.more_seeds(differences, overlap, 0.1, 0.05) == expected
    assert statistics.more_seeds(differences[:, :1], overlap, 0.1, 0.05) is None, "one seed cannot tell"
    units = -1.0 + np.array([3.0, -3.0, 1.0, -1.0])[:, None] + 0.01 * signs
    assert statistics.more_seeds(units, overlap, 0.1, 0.05) is None, "the folds differ, not the seeds"


def test_more_seeds_of_pairs_that_are_missing() -> None:
    """Where there are two seeds they are 1 from their mean of 2: 6 over 3 freedoms; all folds are alike."""
    nan = math.nan
    differences = np.array([[1.0, 3.0], [1.0, 3.0], [2.0, nan], [nan, nan], [1.0, 3.0]])
    se = [math.sqrt((1 / 4 + 1 / 4) * 2 / seeds) for seeds in range(3, 100)]
    expected = next(more for more, s in enumerate(se, 1) if 2 - stats.t.ppf(0.975, 3) * s >= 0)
    assert statistics.more_seeds(differences, 1 / 4, 0.5, 0.05) == expected
    assert statistics.more_seeds(differences[2:], 1 / 4, 0.5, 0.05) is None, "two folds"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_as_many_more_seeds_as_said_decide_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = 1 + rng.normal(0, 0.3, (5, 1)) + rng.normal(0, 1, (5, 3))
    within = float(np.var(differences, axis=1, ddof=1).mean())
    between = max(0.0, float(np.var(differences.mean(axis=1), ddof=1)) - within / 3)

    def decides(seeds: int) -> bool:
        se = math.sqrt((1 / 5 + 1 / 4) * (between + within / seeds))
        mean, half, inner = float(differences.mean()), *(stats.t.ppf([0.975, 0.95], 4) * se)
        return bool(abs(mean) > half or abs(mean) + inner < 0.2)

    enough = [seeds - 3 for seeds in range(4, 101) if decides(seeds)]
    assert statistics.more_seeds(differences, 1 / 4, 0.2, 0.05) == (enough[0] if enough else None)


def test_interquartile_mean() -> None:
    assert statistics.interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == 3.5
    assert math.isnan(statistics.interquartile_mean(np.array([])))
