"""Each statistic against a number that was worked out by hand, or by another program."""

import itertools
import math

import baycomp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sweeps.analysis import statistics, units
from sweeps.analysis.statistics import Shifted

DIFFERENCES = np.array([-0.4, -0.3, -0.5, -0.2, -0.6])  # mean -0.4, sum of squares 0.1, sd 0.1581


def test_corrected_t_by_hand() -> None:
    """Five folds: variance 0.025, times 1/5 + 1/4; t = -0.4 / 0.10607 = -3.7712 with 4 degrees of freedom."""
    found = statistics.corrected_t(DIFFERENCES, 0.25)
    assert found.mean == pytest.approx(-0.4)
    assert found.se == pytest.approx(math.sqrt(0.45 * 0.025))
    assert found.df == 4
    assert found.p == pytest.approx(2 * stats.t.sf(0.4 / math.sqrt(0.01125), 4))
    assert found.p == pytest.approx(0.01959, abs=5e-5)
    low, high = statistics.interval(found, 0.95)
    assert (low, high) == pytest.approx((-0.4 - 2.77645 * 0.106066, -0.4 + 2.77645 * 0.106066), abs=1e-5)


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
    assert all(map(math.isnan, statistics.interval(found, 0.95)))
    assert all(map(math.isnan, statistics.posterior(found, 0.1)))


def test_differences_that_are_all_equal() -> None:
    assert statistics.corrected_t(np.full(4, 0.1), 0.3).p == 0
    assert statistics.corrected_t(np.zeros(4), 0.3).p == 1


def test_wilcoxon_by_hand_and_by_scipy() -> None:
    assert statistics.wilcoxon(DIFFERENCES) == pytest.approx(2 / 2**5)  # all of one sign
    mixed = np.array([0.3, -0.1, 0.5, 0.7, -0.2, 0.9, 1.1])
    assert statistics.wilcoxon(mixed) == pytest.approx(float(stats.wilcoxon(mixed).pvalue))
    assert statistics.wilcoxon(np.zeros(4)) == 1
    assert units.wilcoxon_reaches(6, 0.05)
    assert not units.wilcoxon_reaches(5, 0.05)


@settings(deadline=None, max_examples=20)  # scipy takes 0.1 s where there are ties
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
def test_wilcoxon_with_ties_and_zeros_is_over_all_patterns_of_signs(values: list[int]) -> None:
    sample = np.array(values, float)
    ranks = np.where(sample == 0, 0, stats.rankdata(np.abs(sample)))
    patterns = np.array(list(itertools.product([0, 1], repeat=len(ranks)))) @ ranks
    less, greater = (patterns <= ranks[sample > 0].sum()).mean(), (patterns >= ranks[sample > 0].sum()).mean()
    assert statistics.wilcoxon(sample) == pytest.approx(min(1, 2 * less, 2 * greater))
    if sample.any():
        assert statistics.wilcoxon(sample, "less") == pytest.approx(less)


def test_walsh_interval_of_six() -> None:
    """Of 2^6 = 64 sign patterns one has a rank sum of 0, two at most 1, three at most 2, five at most 3.

    At 95 % only the first may be rejected (1 / 64 a side), so no average is left out; at 90 % two are.
    """
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert statistics.walsh_interval(values, 0.95) == (1.0, 32.0)
    assert statistics.walsh_interval(values, 0.90) == (2.0, 20.0)  # after 1 and 1.5; before 24 and 32
    assert all(map(math.isnan, statistics.walsh_interval(values[:5], 0.95)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=7, max_size=12, unique=True), st.floats(-1, 1))
def test_walsh_interval_holds_what_wilcoxon_does_not_reject(values: list[float], shift: float) -> None:
    sample = np.array(values)
    low, high = statistics.walsh_interval(sample, 0.95)
    moved = sample - shift
    averages = np.abs((moved[:, None] + moved[None, :]) / 2)
    if averages.min() < 1e-6:
        return  # a tie at zero, where the test splits hairs
    rejects = stats.wilcoxon(moved, method="exact").pvalue <= 0.05
    assert rejects == (shift < low or shift > high)


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert len(statistics.holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni(p: list[float]) -> None:
    adjusted = statistics.holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()


@pytest.mark.parametrize(
    ("mean", "rope", "smaller", "verdict"),
    [
        (-1.0, 0.1, True, "better"),
        (1.0, 0.1, True, "worse"),
        (1.0, 0.1, False, "better"),
        (-1.0, 0.1, False, "worse"),
        (0.0, 0.5, True, "equal"),
        (-0.1, 0.1, True, "undecided"),
        (-1.0, 1.0, True, "undecided"),  # it stands on the margin
    ],
)
def test_verdicts(mean: float, rope: float, smaller: bool, verdict: str) -> None:
    spread = 0.1 * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    found = statistics.shifted(mean + spread, 0.25, rope)
    assert statistics.decided(*found, 0.05, smaller_is_better=smaller) == verdict


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-9, 9).map(lambda x: round(x, 3)), min_size=3, max_size=9).map(np.array),
    st.floats(0, 0.5),
    st.floats(0, 9),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_a_verdict_is_where_the_interval_lies(
    values: np.ndarray, overlap: float, rope: float, alpha: float
) -> None:
    """better and worse by the interval of level 1 - alpha, equal by that of 1 - 2 alpha."""
    test = statistics.corrected_t(values, overlap)
    (low, high), (inner_low, inner_high) = (statistics.interval(test, 1 - k * alpha) for k in (1, 2))
    if min(abs(high + rope), abs(low - rope), abs(inner_low + rope), abs(inner_high - rope)) < 1e-9:
        return  # on the edge
    equal = -rope < inner_low and inner_high < rope
    expected = "better" if high < -rope else "worse" if low > rope else "equal" if equal else "undecided"
    assert statistics.decided(*statistics.shifted(values, overlap, rope), alpha) == expected


def test_a_difference_without_doubt_may_be_too_small_to_matter() -> None:
    spread = 0.001 * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    assert statistics.corrected_t(-0.05 + spread, 0.25).p < 1e-5
    assert statistics.decided(*statistics.shifted(-0.05 + spread, 0.25, 0.1), 0.05) == "equal"


def test_the_margins_are_scipys_shifted_tests() -> None:
    found = statistics.shifted(DIFFERENCES, 0.0, 0.1)
    below = stats.ttest_1samp(DIFFERENCES, -0.1, alternative="less").pvalue
    above = stats.ttest_1samp(DIFFERENCES, 0.1, alternative="greater").pvalue
    inside = max(
        stats.ttest_1samp(DIFFERENCES, -0.1, alternative="greater").pvalue,
        stats.ttest_1samp(DIFFERENCES, 0.1, alternative="less").pvalue,
    )
    assert found == pytest.approx(Shifted(below, above, inside))
    ranks = statistics.shifted(DIFFERENCES, 0.0, 0.1, "wilcoxon")
    assert ranks.below == pytest.approx(stats.wilcoxon(DIFFERENCES + 0.1, alternative="less").pvalue)


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
        return bool(2 * stats.t.sf((1.0 - 0.1) / se, 3) <= 0.05)

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
    expected = next(more for more, s in enumerate(se, 1) if 2 - stats.t.ppf(0.975, 3) * s >= 0.5)
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
        test = statistics.TTest(float(differences.mean()), se, 4, math.nan)
        (low, high), (inner_low, inner_high) = (statistics.interval(test, level) for level in (0.95, 0.9))
        return high < -0.2 or low > 0.2 or (inner_low > -0.2 and inner_high < 0.2)

    enough = [seeds - 3 for seeds in range(4, 101) if decides(seeds)]
    assert statistics.more_seeds(differences, 1 / 4, 0.2, 0.05) == (enough[0] if enough else None)


def test_paired_intervals_of_two_arms_are_that_of_their_difference() -> None:
    """Each is as wide as it over the square root of 2 (Morey 2008)."""
    values = np.random.default_rng(0).normal(size=(2, 6))
    low, high = statistics.interval(statistics.corrected_t(values[0] - values[1], 0.2), 0.9)
    found = statistics.paired_intervals(values, 0.2, 0.9)
    assert found[:, 1] - found[:, 0] == pytest.approx(np.full(2, (high - low) / math.sqrt(2)))


def test_paired_intervals_leave_out_what_units_share() -> None:
    """Two arms that differ by exactly 1 on units of very different difficulty: no interval is left."""
    units = np.array([5.0, 9.0, 7.0, 30.0])
    found = statistics.paired_intervals(np.stack([units, units + 1]), 1 / 3, 0.95)
    assert found == pytest.approx(np.array([[12.75, 12.75], [13.75, 13.75]]))


def test_paired_intervals_by_hand() -> None:
    values = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 5.0]])
    # Unit means 1.5, 2, 4, together 2.5; the first arm is 2, 2.5, 1.5 then: variance 0.25, Morey's factor 2.
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 * (1 / 3 + 0.5) * 0.25)
    found = statistics.paired_intervals(values, 0.5, 0.95)
    assert found[0] == pytest.approx([2 - half, 2 + half])
    alone = statistics.paired_intervals(values[:1], 0.5, 0.95)[0]
    assert alone == pytest.approx(statistics.interval(statistics.corrected_t(values[0], 0.5), 0.95))
    assert np.isnan(statistics.paired_intervals(values[:, :2], 0.5, 0.95)).all()


def test_ranks_of_demsars_table() -> None:
    """Demsar 2006, section 3.2.2: four classifiers on 14 data sets, mean ranks 3.143, 2.000, 2.893, 1.964.

    Two that are printed alike have different ranks there: 0.975 and 0.9749 here.
    """
    accuracy = np.array(
        [
            (0.763, 0.768, 0.771, 0.798), (0.599, 0.591, 0.590, 0.569), (0.954, 0.971, 0.968, 0.967),
            (0.628, 0.661, 0.654, 0.657), (0.882, 0.888, 0.886, 0.898), (0.936, 0.931, 0.916, 0.931),
            (0.661, 0.668, 0.609, 0.685), (0.583, 0.583, 0.563, 0.625), (0.775, 0.838, 0.866, 0.875),
            (1.000, 1.000, 1.000, 1.000), (0.940, 0.962, 0.965, 0.962), (0.619, 0.666, 0.614, 0.669),
            (0.972, 0.981, 0.975, 0.9749), (0.957, 0.978, 0.946, 0.970),
        ]
    )  # fmt: skip
    found = statistics.ranks(-accuracy)
    assert found.mean == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert found.friedman_p == pytest.approx(float(stats.friedmanchisquare(*accuracy.T).pvalue))
    assert 0.01 < found.friedman_p < 0.05  # his F of 3.69 lies beyond the critical 2.85


def test_interquartile_mean() -> None:
    assert statistics.interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == 3.5
    assert math.isnan(statistics.interquartile_mean(np.array([])))


def samples(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    site = rng.integers(6, size=n)
    truth = rng.gamma(2, 4, n)
    return site, truth, truth + rng.normal(size=n) + site / 3


def totals(site: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    error = predicted - truth
    columns = np.stack([np.ones_like(error), error, np.abs(error), error**2, truth, truth**2], axis=1)
    return statistics.cluster_totals(site, columns, 6)


@pytest.mark.parametrize("metric", ["rmse", "mae", "mbe", "r2"])
def test_a_resample_is_the_metric_of_the_samples_drawn(metric: str) -> None:
    from pm25.metrics import scores

    site, truth, predicted = samples(np.random.default_rng(0), 200)
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 0, 1, 0, 3]], np.float32)
    found = statistics.cluster_bootstrap(weights, totals(site, truth, predicted)[None], metric)
    for resample, drawn in zip(weights, found[0], strict=True):
        rows = np.repeat(np.arange(200), resample[site].astype(int))
        assert drawn == pytest.approx(scores(truth[rows], predicted[rows])[metric])


def test_weights_draw_as_many_clusters_as_there_are() -> None:
    weights = statistics.bootstrap_weights(7, 500, 0)
    assert weights.shape == (500, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean() == pytest.approx(1)
    assert (weights == statistics.bootstrap_weights(7, 500, 0)).all()
    assert (weights != statistics.bootstrap_weights(7, 500, 1)).any()


def test_the_bootstrap_knows_that_samples_of_a_site_hang_together() -> None:
    """Every site's error is one draw: the spread is that of six draws, not of six hundred."""
    rng = np.random.default_rng(1)
    site = np.repeat(np.arange(6), 100)
    truth = np.zeros(600)
    predicted = rng.normal(size=6)[site]
    weights = statistics.bootstrap_weights(6, 4000, 0)
    drawn = statistics.cluster_bootstrap(weights, totals(site, truth, predicted)[None], "mbe")[0]
    expected = np.std(predicted[::100]) / math.sqrt(6)  # of the mean of six draws with replacement
    assert drawn.std() == pytest.approx(expected, rel=0.05)


def test_what_stops_at_a_look_stays_decided_at_the_end() -> None:
    """The stopping rule is the first step of Holm's method on p times looks."""
    rng = np.random.default_rng(0)
    looks, family, alpha = 3, 4, 0.05
    stopped = 0
    for _ in range(200):
        contrasts = rng.normal(rng.uniform(-1, 1, (family, 1, 1)), 0.3, (family, 5, 3))
        found = [statistics.shifted(units.unit_means(d), 0.25, 0.05) for d in contrasts]
        adjusted = statistics.holm([min(1.0, 2 * looks * min(f[:2])) for f in found])
        inside = statistics.holm([min(1.0, looks * f.inside) for f in found])
        for differences, p, equal in zip(contrasts, adjusted, inside, strict=True):
            if statistics.stopped(differences, 0.25, 0.05, alpha, looks, family):
                stopped += 1
                assert p <= alpha or equal <= alpha
    assert stopped > 50


def test_too_few_units_stop_at_once() -> None:
    undecided = np.array([[0.3, -0.4], [-0.2, 0.5]])
    assert statistics.stopped(undecided, 1.0, 0.1, 0.05, 3, 4)
    more = np.array([[0.3, -0.4], [-0.2, 0.5], [-0.3, 0.1], [0.5, -0.1], [0.2, -0.4]])
    assert not statistics.stopped(more, 0.25, 0.01, 0.05, 3, 4)
    assert statistics.stopped(more, 0.25, 0.01, 0.05, 3, 4, "wilcoxon"), "5 pairs cannot reach 0.05"
