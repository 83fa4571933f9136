"""Tests of two arms over blocks, monitors and days: known answers, invariances, size under the null."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pm25.geo import CONUS, great_circle_km
from pm25.metrics import scores
from sweeps.analysis import statistics
from sweeps.analysis.statistics import TestResult

WEST, SOUTH, EAST, NORTH = CONUS


def places(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(SOUTH, NORTH, n), rng.uniform(WEST, EAST, n)


def correlated(lat: np.ndarray, lon: np.ndarray, km: float) -> np.ndarray:
    """Root of the exponential covariance with range `km`: times standard normals it is a smooth field."""
    distance = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    return np.linalg.cholesky(np.exp(-distance / km) + 1e-9 * np.eye(len(lat)))


def same(found: TestResult, expected: TestResult, *, sign: float = 1.0, factor: float = 1.0) -> None:
    """Assert equal tests, up to a factor of all that has units; sign -1 turns the arms around."""
    bounds = (expected.low, expected.high) if sign > 0 else (-expected.high, -expected.low)
    assert found.estimate == pytest.approx(sign * factor * expected.estimate, rel=1e-8)
    assert (found.low, found.high) == pytest.approx([factor * bound for bound in bounds], rel=1e-8)
    assert (found.se, found.df, found.p) == pytest.approx(
        (factor * expected.se, expected.df, expected.p), rel=1e-8
    )


# Corrected t


def test_corrected_t_has_the_interval_of_its_level() -> None:
    values = np.array([-0.4, -0.3, -0.5, -0.2, -0.6])
    found = statistics.corrected_t(values, 0.25)
    assert (found.low, found.high) == pytest.approx(
        (-0.4 - 2.77645 * 0.106066, -0.4 + 2.77645 * 0.106066), abs=1e-5
    )
    narrow = statistics.corrected_t(values, 0.25, level=0.8)
    half = float(stats.t.ppf(0.9, 4)) * found.se
    assert (narrow.low, narrow.high) == pytest.approx((-0.4 - half, -0.4 + half))
    assert narrow.high - narrow.low < found.high - found.low
    assert narrow.p == found.p


def test_corrected_t_of_repeated_halves() -> None:
    """Five origins, each the mean of two halves: t = mean / sqrt((1/5 + 1) s^2) with 4 degrees of freedom."""
    means = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = statistics.corrected_t(means, 1.0)
    assert found.se == pytest.approx(math.sqrt(1.2 * 2.5))
    assert found.p == pytest.approx(2 * stats.t.sf(3 / math.sqrt(3), 4))


# Blocks


def test_blocks_start_at_the_south_west_corner() -> None:
    lat = np.array([SOUTH, SOUTH + 7.9, SOUTH + 8.1, SOUTH, SOUTH + 3.9])
    lon = np.array([WEST, WEST + 7.9, WEST, WEST + 8.1, WEST + 3.9])
    assert statistics.blocks(lat, lon, 8.0).tolist() == [0, 0, 2, 1, 0]
    moved = statistics.blocks(lat, lon, 8.0, (0.5, 0.5))
    assert len({*moved[[0, 4]].tolist()}) == 1, "within 4 degrees of the corner"
    assert len({*moved.tolist()}) == 4
    rng = np.random.default_rng(0)
    lat, lon = places(rng, 300)
    squares = [*zip((lat - SOUTH) // 3, (lon - WEST) // 3, strict=True)]
    order = sorted({*squares})
    assert statistics.blocks(lat, lon, 3.0).tolist() == [order.index(square) for square in squares]
    with pytest.raises(ValueError, match="degrees"):
        statistics.blocks(lat, lon, 0.0)


def test_effective_blocks_by_hand() -> None:
    assert statistics.effective_blocks(np.array([7, 7, 7])) == pytest.approx(3)
    assert statistics.effective_blocks(np.array([2, 1, 1])) == pytest.approx(16 / 6)
    assert math.isnan(statistics.effective_blocks(np.array([])))


ROW = {"lat": np.full(3, 30.0), "lon": np.array([-120.0, -110.0, -100.0])}
"""Three places in three blocks of 8 degrees, on every grid."""


def test_jackknife_of_a_mean_is_students_test() -> None:
    """Differences 1, 2 and 6: mean 3, without each 4, 3.5 and 1.5, so se^2 = 2/3 x 3.5 = s^2 / 3."""
    loss_b, difference = np.array([5.0, 1.0, 2.0]), np.array([1.0, 2.0, 6.0])
    found = statistics.block_jackknife(loss_b + difference, loss_b, **ROW, degrees=8.0, score=np.positive)
    assert found.estimate == pytest.approx(3)
    assert found.se == pytest.approx(math.sqrt(7 / 3))
    assert found.df == pytest.approx(2)
    assert found.p == pytest.approx(float(stats.ttest_1samp(difference, 0).pvalue))


def test_jackknife_of_the_rmse_by_hand() -> None:
    """Squares 1, 9 and 25 against 4, with 2, 1 and 1 samples: all, and without each block."""
    found = statistics.block_jackknife(
        np.array([1.0, 9.0, 25.0]), np.full(3, 4.0), **ROW, degrees=8.0, weight=np.array([2, 1, 1])
    )
    without = np.sqrt([34 / 2, 27 / 3, 11 / 3]) - 2
    assert found.estimate == pytest.approx(3 - 2)
    assert found.se == pytest.approx(math.sqrt(2 / 3 * ((without - 1) ** 2).sum()))
    assert found.df == pytest.approx(16 / 6 - 1)
    assert found.p == pytest.approx(2 * stats.t.sf(1 / found.se, 16 / 6 - 1))


def test_jackknife_sums_the_monitors_of_a_block() -> None:
    """Monitors that share their block on every grid count as one with all their samples."""
    lat, lon = np.repeat(ROW["lat"], 2), np.repeat(ROW["lon"], 2)
    a, b = np.array([1.0, 2, 3, 9, 4, 2]), np.array([2.0, 2, 1, 5, 3, 3])
    weight = np.array([1.0, 3, 2, 2, 5, 1])
    merged = weight.reshape(3, 2).sum(axis=1)
    ours = statistics.block_jackknife(a, b, lat, lon, degrees=8.0, weight=weight)
    a3, b3 = ((weight * x).reshape(3, 2).sum(axis=1) / merged for x in (a, b))
    same(ours, statistics.block_jackknife(a3, b3, **ROW, degrees=8.0, weight=merged))


@pytest.mark.parametrize(("offsets", "moves"), [(2, [(0, 0), (4, 4)]), (4, [(0, 0), (4, 4), (4, 0), (0, 4)])])
def test_jackknife_takes_the_larger_p_of_the_grids(offsets: int, moves: list[tuple[float, float]]) -> None:
    """A grid that moves by half a block to the west is the first grid with monitors moved to the east."""
    rng = np.random.default_rng(0)
    lat, lon = places(rng, 200)
    a, b = rng.gamma(2, size=(2, 200))
    each = [
        statistics.block_jackknife(a, b, lat + north, lon + east, degrees=8.0, offsets=1)
        for east, north in moves
    ]
    found = statistics.block_jackknife(a, b, lat, lon, degrees=8.0, offsets=offsets)
    assert found.p == pytest.approx(max(test.p for test in each))
    assert len({round(test.p, 6) for test in each}) == offsets
    assert (found.low, found.high) == pytest.approx((min(t.low for t in each), max(t.high for t in each)))


def test_jackknife_without_weights_has_equal_weights_and_leaves_out_what_is_missing() -> None:
    rng = np.random.default_rng(1)
    lat, lon = places(rng, 60)
    a, b = rng.gamma(2, size=(2, 60))
    plain = statistics.block_jackknife(a, b, lat, lon, degrees=8.0)
    same(statistics.block_jackknife(a, b, lat, lon, degrees=8.0, weight=np.full(60, 7)), plain)
    gaps = np.append(a, [math.nan, 3.0]), np.append(b, [1.0, math.nan]), np.append(lat, [30.0, 48.0])
    with_gaps = statistics.block_jackknife(*gaps, np.append(lon, [-90.0, -70.0]), degrees=8.0)
    same(with_gaps, plain)
    weight = np.append(np.ones(60), [0, 0])
    zero = np.append(a, [9.0, 9.0]), np.append(b, [1.0, 1.0]), gaps[2], np.append(lon, [-90.0, -70.0])
    same(statistics.block_jackknife(*zero, degrees=8.0, weight=weight), plain)


def test_jackknife_of_equal_losses() -> None:
    lat, lon = places(np.random.default_rng(2), 40)
    loss = np.random.default_rng(3).gamma(2, size=40)
    found = statistics.block_jackknife(loss, loss.copy(), lat, lon, degrees=8.0)
    assert (found.estimate, found.p, found.low, found.high) == (0, 1, 0, 0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_one_block_is_no_sample(n: int) -> None:
    loss = np.arange(1.0, 1 + n)
    found = statistics.block_jackknife(loss, 2 * loss, np.full(n, 26.0), np.full(n, -120.0), degrees=8.0)
    assert all(map(math.isnan, (found.p, found.low, found.high)))
    assert found.df == 0
    assert math.isnan(found.estimate) == (n == 0)


def test_noise_that_both_arms_share_cancels() -> None:
    rng = np.random.default_rng(4)
    lat, lon = places(rng, 80)
    a, b = rng.gamma(2, size=(2, 80))
    shared = 2.0 ** rng.integers(0, 6, 80)
    alone = statistics.block_jackknife(a, b, lat, lon, degrees=8.0, score=np.positive)
    same(statistics.block_jackknife(a + shared, b + shared, lat, lon, degrees=8.0, score=np.positive), alone)
    field = 100 * (correlated(lat, lon, 500) @ rng.normal(size=80)) ** 2
    rmse = statistics.block_jackknife(a + field, b + field, lat, lon, degrees=8.0)
    unpaired = statistics.block_jackknife(a + field, b + rng.permutation(field), lat, lon, degrees=8.0)
    assert rmse.se < unpaired.se / 20


def test_jackknife_keeps_digits_where_one_block_has_almost_all_the_loss() -> None:
    a, b = np.array([1e12, 1.0, 2.0]), np.array([1e12, 3.0, 1.0])
    found = statistics.block_jackknife(a, b, **ROW, degrees=8.0, score=np.positive)
    without_first = (1 + 2) / 2 - (3 + 1) / 2
    mean = (1 + 2 - 3 - 1) / 3
    changes = np.array([without_first - mean, 1 / 2 - mean, -2 / 2 - mean])
    assert found.se == pytest.approx(math.sqrt(2 / 3 * (changes**2).sum()), rel=1e-3)


def test_offsets_are_1_2_or_4() -> None:
    with pytest.raises(ValueError, match="offsets is 3"):
        statistics.block_jackknife(np.ones(3), np.ones(3), **ROW, degrees=8.0, offsets=3)


def sums(
    rng: np.random.Generator, n: int, error: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Totals (n, 6) of units with 1 to 9 samples, and the unit, truth and prediction of each sample."""
    unit = np.repeat(np.arange(n), rng.integers(1, 10, n))
    truth = rng.gamma(2, 4, len(unit)) + unit % 3
    predicted = truth + error * rng.normal(size=len(unit)) + 0.1 * (unit % 5)
    e = predicted - truth
    columns = np.stack([np.ones_like(e), e, np.abs(e), e**2, truth, truth**2], axis=1)
    totals = np.stack([np.bincount(unit, column, n) for column in columns.T], axis=1)
    return totals, unit, truth, predicted


@pytest.mark.parametrize("metric", ["rmse", "mae", "mbe", "r2"])
def test_jackknife_of_any_metric(metric: str) -> None:
    """Each leave-one-block-out difference is that of the samples outside the block."""
    rng = np.random.default_rng(5)
    a, unit_a, truth_a, predicted_a = sums(rng, 12, 1.0)
    b, unit_b, truth_b, predicted_b = sums(rng, 12, 2.0)
    lat, lon = places(rng, 12)
    found = statistics.block_jackknife_of_totals(a, b, lat, lon, degrees=12.0, metric=metric, offsets=1)
    block = statistics.blocks(lat, lon, 12.0)

    def difference(kept: np.ndarray) -> float:
        on_a, on_b = kept[unit_a], kept[unit_b]
        of_a = scores(truth_a[on_a], predicted_a[on_a])[metric]
        return of_a - scores(truth_b[on_b], predicted_b[on_b])[metric]

    estimate = difference(np.full(12, True))
    number = block.max() + 1
    changes = np.array([difference(block != k) - estimate for k in range(number)])
    assert found.estimate == pytest.approx(estimate)
    assert found.se == pytest.approx(math.sqrt((number - 1) / number * (changes**2).sum()))


def test_jackknife_of_totals_is_that_of_mean_squares() -> None:
    rng = np.random.default_rng(6)
    a = sums(rng, 50, 1.0)[0]
    b = a * [1, 2, 2, 4, 1, 1]  # twice the error
    lat, lon = places(rng, 50)
    n = a[:, statistics.N]
    of_losses = statistics.block_jackknife(
        a[:, statistics.E2] / n, b[:, statistics.E2] / n, lat, lon, degrees=8.0, weight=n
    )
    same(statistics.block_jackknife_of_totals(a, b, lat, lon, degrees=8.0, metric="rmse"), of_losses)


# Variogram


def test_the_variogram_is_recovered() -> None:
    km = np.linspace(1, 3000, 20_000)
    nugget, sill, length = statistics._exponential(km, 0.5 + 2 * -np.expm1(-km / 300))
    assert (nugget, sill, length) == pytest.approx((0.5, 2, 300), rel=0.01)


def test_the_variance_is_the_mean_covariance_of_all_pairs() -> None:
    rng = np.random.default_rng(7)
    lat, lon = places(rng, 90)
    difference = correlated(lat, lon, 400) @ rng.normal(size=90) + 0.5 * rng.normal(size=90)
    km = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    above = np.triu_indices(90, 1)
    semivariance = (difference[:, None] - difference) ** 2 / 2
    nugget, sill, length = statistics._exponential(km[above], semivariance[above])
    covariance = nugget * np.eye(90) + sill * np.exp(-km / length)
    found = statistics.hering_genton(difference, lat, lon)
    assert found.estimate == pytest.approx(difference.mean())
    assert found.se == pytest.approx(math.sqrt(covariance.mean()))
    assert found.df == 89
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.estimate) / found.se, 89))


def test_independent_monitors_have_the_standard_error_of_a_mean() -> None:
    rng = np.random.default_rng(8)
    lat, lon = places(rng, 400)
    difference = rng.normal(1, 2, 400)
    found = statistics.hering_genton(difference, lat, lon)
    assert found.se == pytest.approx(2 / math.sqrt(400), rel=0.15)


def test_noise_of_single_monitors_does_not_hide_a_smooth_difference() -> None:
    """A fifth of the variance is smooth: the standard error is near the true one, not that of a mean."""
    rng = np.random.default_rng(18)
    lat, lon = places(rng, 300)
    root = correlated(lat, lon, 600)
    true = math.sqrt(0.2 * (root @ root.T).mean() + 0.8 / 300)
    ratios = [
        statistics.hering_genton(math.sqrt(0.2) * root @ smooth + math.sqrt(0.8) * noise, lat, lon).se / true
        for smooth, noise in rng.normal(size=(20, 2, 300))
    ]
    assert np.median(ratios) == pytest.approx(1, abs=0.3)
    assert math.sqrt(1 / 300) / true < 0.4


def test_hering_genton_without_spread_or_places() -> None:
    lat, lon = places(np.random.default_rng(9), 20)
    assert statistics.hering_genton(np.zeros(20), lat, lon).p == 1
    assert statistics.hering_genton(np.full(20, 0.1), lat, lon).p == 0
    for n in (0, 2):
        assert math.isnan(statistics.hering_genton(np.arange(n) * 1.0, lat[:n], lon[:n]).p)
    assert math.isnan(statistics.hering_genton(np.arange(4.0), np.full(4, 40.0), np.full(4, -90.0)).p)
    triangle = np.array([30.0, 30.0, 38.0]), np.array([-100.0, -90.0, -95.0])
    assert math.isnan(statistics.hering_genton(np.arange(3.0), *triangle).p), (
        "no pair within half the distance"
    )


def test_hering_genton_leaves_out_missing_monitors() -> None:
    rng = np.random.default_rng(10)
    lat, lon = places(rng, 30)
    difference = rng.normal(size=30)
    difference[[3, 17]] = math.nan
    kept = np.isfinite(difference)
    same(
        statistics.hering_genton(difference, lat, lon),
        statistics.hering_genton(difference[kept], lat[kept], lon[kept]),
    )


# Days


def test_diebold_mariano_by_hand() -> None:
    """1 2 0 3 4: deviations -1 0 -2 1 2, g_0 = 2 and g_1 = 0; factor (5 + 1 - 4 + 2/5) / 5 = 0.48."""
    found = statistics.diebold_mariano(np.array([1.0, 2.0, 0.0, 3.0, 4.0]), lag=1)
    assert found.estimate == pytest.approx(2)
    assert found.se == pytest.approx(math.sqrt(2 / 5 / 0.48))
    assert found.df == 4
    assert found.p == pytest.approx(2 * stats.t.sf(2 / found.se, 4))


def test_without_lags_it_is_students_test() -> None:
    values = np.random.default_rng(11).normal(0.3, 1, 25)
    expected = stats.ttest_1samp(values, 0)
    found = statistics.diebold_mariano(values, lag=0)
    assert found.p == pytest.approx(float(expected.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_bartletts_weights_where_the_variance_is_not_positive() -> None:
    """+1 -1 six times: g_0 = 1, g_1 = -5/6. 1 - 10/6 < 0, so 1 - 5/6; factor (6 + 1 - 4 + 2/6) / 6 = 5/9."""
    found = statistics.diebold_mariano(np.array([1.0, -1.0] * 3), lag=1)
    assert found.estimate == 0
    assert found.se == pytest.approx(math.sqrt(1 / 6 / 6 / (5 / 9)))


def test_missing_days_keep_their_distance() -> None:
    """3 . 1 2 .: deviations 1, -1, 0; one pair of neighbours, g_1 = 0; factor (3 + 1 - 4 + 2/3) / 3."""
    nan = math.nan
    found = statistics.diebold_mariano(np.array([3.0, nan, 1.0, 2.0, nan]), lag=1)
    assert (found.estimate, found.df) == (pytest.approx(2), 2)
    assert found.se == pytest.approx(math.sqrt(2 / 3 / 3 / (2 / 9)))


def test_diebold_mariano_of_few_or_equal_days() -> None:
    for n, lag in ((0, 0), (2, 0), (5, 4)):
        found = statistics.diebold_mariano(np.arange(n) * 1.0, lag=lag)
        assert all(map(math.isnan, (found.p, found.low, found.high)))
        assert found.df == n - 1
    assert statistics.diebold_mariano(np.zeros(30), lag=3).p == 1
    assert statistics.diebold_mariano(np.full(30, 0.5), lag=3).p == 0
    with pytest.raises(ValueError, match="lag is -1"):
        statistics.diebold_mariano(np.zeros(30), lag=-1)


# What all of them keep

N_UNITS = 60
LAT, LON = places(np.random.default_rng(12), N_UNITS)


def jackknife(a: np.ndarray, b: np.ndarray, order: np.ndarray, level: float) -> TestResult:
    weight = np.arange(1.0, 1 + N_UNITS)[order]
    return statistics.block_jackknife(a, b, LAT[order], LON[order], degrees=8.0, weight=weight, level=level)


def variogram(a: np.ndarray, b: np.ndarray, order: np.ndarray, level: float) -> TestResult:
    return statistics.hering_genton(a - b, LAT[order], LON[order], level=level)


def days(a: np.ndarray, b: np.ndarray, order: np.ndarray, level: float) -> TestResult:
    return statistics.diebold_mariano((a - b)[np.argsort(order)], lag=5, level=level)


def folds(a: np.ndarray, b: np.ndarray, order: np.ndarray, level: float) -> TestResult:
    return statistics.corrected_t(a - b, 0.1, level=level)


EVERY = pytest.mark.parametrize(("test", "power"), [(jackknife, 0.5), (variogram, 1), (days, 1), (folds, 1)])
"""Tests with the power of the units of a loss that their estimate has."""


@EVERY
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.floats(-8, 8), st.floats(0.5, 0.99), st.floats(0, 1))
def test_invariances(
    test: Callable[..., TestResult], power: float, seed: int, digits: float, level: float, gain: float
) -> None:
    rng = np.random.default_rng(seed)
    b = rng.gamma(2, size=N_UNITS)
    a = b + gain + 0.5 * rng.gamma(2, size=N_UNITS)
    order = np.arange(N_UNITS)
    found = test(a, b, order, level)
    assert 0 <= found.p <= 1
    assert found.low <= found.estimate <= found.high
    assert (found.p <= 1 - level) == (found.low >= 0 or found.high <= 0)
    same(test(b, a, order, level), found, sign=-1)
    moved = rng.permutation(N_UNITS)
    same(test(a[moved], b[moved], moved, level), found)
    scale = 10.0**digits
    rescaled = test(scale * a, scale * b, order, level)
    assert rescaled.p == pytest.approx(found.p, rel=1e-5)
    assert rescaled[:2] == pytest.approx([scale**power * value for value in found[:2]], rel=1e-5)


# Metrics spread over units


@pytest.mark.parametrize("metric", ["rmse", "mae", "mbe", "r2"])
def test_pseudo_values_are_the_first_order_influence(metric: str) -> None:
    """Their mean is the difference; their deviation is n times the change for an infinitesimal weight."""
    rng = np.random.default_rng(13)
    a, b = sums(rng, 30, 1.0)[0], sums(rng, 30, 2.0)[0]

    def difference(weight: np.ndarray) -> float:
        of_a, of_b = (statistics.score((weight[:, None] * x).sum(axis=0), metric) for x in (a, b))
        return float(of_a - of_b)

    found = statistics.pseudo_values(a, b, metric)
    assert found.mean() == pytest.approx(difference(np.ones(30)))
    for unit in (0, 7, 29):
        step = np.zeros(30)
        step[unit] = 1e-5
        slope = (difference(1 + step) - difference(1 - step)) / 2e-5
        assert found[unit] - found.mean() == pytest.approx(30 * slope, rel=1e-5)


def test_units_without_samples_in_one_arm_are_left_out() -> None:
    a, b = sums(np.random.default_rng(14), 10, 1.0)[0], sums(np.random.default_rng(15), 10, 2.0)[0]
    full = statistics.pseudo_values(a, b, "rmse")
    padded = statistics.pseudo_values(*(np.vstack([x, np.zeros((2, 6))]) for x in (a, b)), "rmse")
    assert padded[:10] == pytest.approx(full)
    assert np.isnan(padded[10:]).all()
    only_a, only_b = np.vstack([a, a[:1]]), np.vstack([b, np.zeros((1, 6))])
    assert statistics.pseudo_values(only_a, only_b, "rmse")[:10] == pytest.approx(full)
    places = np.linspace(26, 48, 11), np.linspace(-120, -70, 11)
    alone, ours = (
        statistics.block_jackknife_of_totals(
            only_a[:n], only_b[:n], places[0][:n], places[1][:n], degrees=8.0, metric="mae"
        )
        for n in (10, 11)
    )
    same(ours, alone)
    assert (statistics.pseudo_values(a, a, "r2") == 0).all()
    for metric in ("rmse", "mae", "mbe", "r2"):
        nothing = statistics.pseudo_values(np.zeros((3, 6)), np.zeros((3, 6)), metric)
        assert np.isnan(nothing).all()
    same_truth = np.array([[2.0, 1.0, 1.0, 1.0, 6.0, 18.0], [1.0, 0.0, 0.0, 0.0, 3.0, 9.0]])
    assert np.isnan(statistics.pseudo_values(same_truth, same_truth, "r2")).all()


# Several tests of one difference


def result(estimate: float, p: float, low: float, high: float) -> TestResult:
    return TestResult(estimate, 1.0, 5, p, low, high, "by hand")


def test_larger_p_has_the_union_of_intervals() -> None:
    first, second = result(-2, 0.01, -3, -1), result(-1, 0.04, -1.9, -0.1)
    assert statistics.larger_p([first, second]) == second._replace(low=-3)
    assert statistics.larger_p([second, first]) == second._replace(low=-3)
    assert statistics.larger_p([first]) == first


def test_larger_p_of_estimates_of_different_sign() -> None:
    found = statistics.larger_p([result(-2, 0.01, -3, -1), result(2, 0.02, 1, 3)])
    assert (found.p, found.low, found.high) == (1, -3, 3)
    zero = result(0, 1, -1, 1)
    assert statistics.larger_p([result(2, 0.02, 1, 3), zero]).p == 1


def test_larger_p_of_a_test_that_was_not_possible() -> None:
    nan = math.nan
    found = statistics.larger_p([result(-2, 0.01, -3, -1), result(-2, nan, nan, nan)])
    assert all(map(math.isnan, (found.p, found.low, found.high)))
    assert found.estimate == -2


def test_margins_are_held_by_all_tests() -> None:
    narrow = TestResult(-1.0, 0.1, 7.5, math.nan, math.nan, math.nan, "narrow")
    wide = narrow._replace(se=0.4)
    found = statistics.equivalence([narrow, wide], 0.3)
    assert found == pytest.approx(stats.t.cdf(0.7 / 0.1, 7.5)), "the larger p of both"
    assert found == statistics.equivalence([wide, narrow], 0.3)
    assert statistics.equivalence([narrow, wide], 2.0) == pytest.approx(stats.t.sf(1.0 / 0.4, 7.5))
    below, inside, above = statistics.posterior(wide, 0.3)
    assert (below, above) == pytest.approx((stats.t.cdf(0.7 / 0.4, 7.5), stats.t.sf(1.3 / 0.4, 7.5)))
    assert below + inside + above == pytest.approx(1)


# Size: rejections of a true null at 5 %, and of tests that ignore the correlation


def rejections(p: list[float]) -> float:
    return float(np.mean(np.array(p) <= 0.05))


def test_size_under_spatial_correlation() -> None:
    """Exchangeable arms whose errors are smooth in space, at random places that are new every ten studies.

    A t-test over monitors takes them for independent. The bound of 0.085 is that of 5 % in 300 studies, plus
    2.8 binomial standard errors.
    """
    rng = np.random.default_rng(16)
    of_blocks, of_variogram, of_monitors = [], [], []
    for _ in range(30):
        lat, lon = places(rng, 120)
        root = correlated(lat, lon, 400)
        for study in range(10):
            residual, a, b = (root @ rng.normal(size=(120, 3))).T
            loss_a, loss_b = (residual + a / 2) ** 2, (residual + b / 2) ** 2
            of_blocks.append(statistics.block_jackknife(loss_a, loss_b, lat, lon, degrees=8.0).p)
            of_monitors.append(float(stats.ttest_1samp(loss_a - loss_b, 0).pvalue))
            if study < 5:
                of_variogram.append(statistics.hering_genton(loss_a - loss_b, lat, lon).p)
    assert rejections(of_blocks) <= 0.085
    assert rejections(of_variogram) <= 0.13
    assert rejections(of_monitors) >= 0.2


def test_size_under_correlation_of_days() -> None:
    """A year of daily differences, autoregressive with 0.6: with a lag of two weeks the size is near 5 %."""
    rng = np.random.default_rng(17)
    noise = rng.normal(size=(500, 365))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0] / 0.8
    for day in range(1, 365):
        values[:, day] = 0.6 * values[:, day - 1] + noise[:, day]
    assert rejections([statistics.diebold_mariano(study, lag=14).p for study in values]) <= 0.1
    assert rejections([statistics.diebold_mariano(study, lag=0).p for study in values]) >= 0.25
