"""The statistics of a comparison: pure functions of arrays, each with its source.

`units` explains what a unit is, and `overlap` is its function of that name. Throughout, `differences` is an
array (n,) with one value per unit, and p is a p-value: the chance of a result at least as extreme if the
hypothesis it belongs to holds.

A test of two arms returns a `TestResult` of arm a minus arm b, in the units of its input. The unit of
replication names the test: folds or origins (`corrected_t`), blocks of monitors (`block_jackknife`), monitors
with a fitted variogram (`hering_genton`), days (`diebold_mariano`). No test refuses a small sample. A test
that cannot be computed has NaN bounds and a NaN p-value, and its `df` says how little there was.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from pm25.geo import CONUS, great_circle_km
from sweeps.analysis.units import MIN_UNITS, Array, unit_means

MOST_SEEDS = 100
"""Largest number of seeds that `more_seeds` considers, present ones included."""

N, E, ABS_E, E2, Y, Y2 = range(6)
"""Columns of the totals of a cluster: number of samples, sums of error, |error|, error^2, truth, truth^2."""


OFFSETS = {1: ((0.0, 0.0),), 2: ((0.0, 0.0), (0.5, 0.5)), 4: ((0.0, 0.0), (0.5, 0.5), (0.5, 0.0), (0.0, 0.5))}
"""Moves of the block grid by their number, as shares of a block: (east, north)."""

BINS = 100
"""Distance bins of the empirical variogram."""


class TestResult(NamedTuple):
    """Estimated difference with its test and confidence interval; NaN where it cannot be tested."""

    estimate: float
    """Difference, in the units of the input."""
    se: float
    """Standard error of the difference."""
    df: float
    """Degrees of freedom of Student's t; a fraction where they come from an effective number of blocks."""
    p: float
    """Two-sided p-value of a difference of zero."""
    low: float
    """Lower bound of the confidence interval."""
    high: float
    """Upper bound of the confidence interval."""
    name: str
    """Name of the test for a table."""


TestResult.__test__ = False  # type: ignore[attr-defined]  # not a class that pytest collects


def _student(name: str, estimate: float, se: float, df: float, level: float) -> TestResult:
    """Test `estimate` against zero with Student's t, and add its interval at `level`."""
    half = float(special.stdtrit(df, (1 + level) / 2)) * se
    p = 2 * _upper(abs(estimate), se, df)
    return TestResult(estimate, se, df, p, estimate - half, estimate + half, name)


def corrected_t(differences: Array, overlap: float, *, level: float = 0.95) -> TestResult:
    """Test that the mean of `differences (n,)` is zero, corrected for shared training samples.

    The corrected resampled t-test of Nadeau and Bengio (2003, doi 10.1023/A:1024068626366, eq. 20). The
    squared standard error of the mean is (1 / n + overlap) times the sample variance. The statistic, mean
    over standard error, has n - 1 degrees of freedom. Differences that are all equal have p = 0, or p = 1 if
    they are zero. With fewer than `MIN_UNITS` differences the test is NaN.

    Repeated cross-validation of R repeats and K folds has R x K differences, and its `overlap` is
    `1 / (K - 1)` (Bouckaert and Frank 2004, doi 10.1007/978-3-540-24775-3_3). A repeat of two halves, each
    tested by a training on the other, counts by the mean of its halves. Its `overlap` is 1.
    """
    differences = np.asarray(differences, np.float64)
    n = len(differences)
    mean = float(np.mean(differences)) if n else math.nan
    variance = np.var(differences, ddof=1) if n >= MIN_UNITS else math.nan
    return _student("corrected t", mean, float(np.sqrt((1 / max(n, 1) + overlap) * variance)), n - 1, level)


def block_jackknife(
    loss_a: Array,
    loss_b: Array,
    lat: ArrayLike,
    lon: ArrayLike,
    *,
    degrees: float,
    weight: Array | None = None,
    offsets: int = 2,
    level: float = 0.95,
    score: Callable[[Array], Array] = np.sqrt,
) -> TestResult:
    """Test the difference of two arms' pooled RMSE by the jackknife over square blocks of monitors.

    A pooled score is `score` of the weighted mean of the losses. Blocks are the squares of a grid that starts
    at the south-west corner of the CONUS box. One of the K blocks with monitors at a time is left out of both
    arms, so what the arms share cancels. The squared standard error is (K - 1) / K times the sum of the
    squared changes of the difference. This is the cluster jackknife CV3 of MacKinnon, Nielsen and Webb (2023,
    doi 10.1002/jae.2969), centred at the full estimate. It allows any correlation within a block.

    The degrees of freedom are the effective number of blocks less one, by the blocks' shares of the samples
    (`effective_blocks`). The test is repeated with the grid moved by half a block, and the result is
    `larger_p` of the tests.

    Parameters
    ----------
    loss_a, loss_b : array (n,)
        Mean loss of each monitor in either arm: squared errors for the RMSE. Monitors with NaN in either arm
        are left out.
    lat, lon : array (n,)
        Positions in degrees.
    degrees : float
        Side of a block in degrees of latitude and of longitude.
    weight : array (n,), optional
        Number of samples of each monitor; equal weights if None. Monitors with weight 0 are left out.
    offsets : {1, 2, 4}
        Number of grids (`OFFSETS`). The second is moved by half a block both ways. The third and the fourth
        are moved by half a block one way.
    level : float
        Level of the confidence interval.
    score : callable
        Function of the pooled mean loss, element by element. The default is the root, for the RMSE; use
        `numpy.positive` for the MAE of absolute errors.

    Returns
    -------
    TestResult
        Score of arm a minus score of arm b. With fewer than two blocks it has NaN bounds and p-value. The
        caller decides how many effective blocks are enough.
    """
    loss = np.stack([np.asarray(loss_a, np.float64), np.asarray(loss_b, np.float64)], axis=1)
    weight = np.ones(len(loss)) if weight is None else np.asarray(weight, np.float64)
    seen = np.isfinite(loss).all(axis=1) & (weight > 0)
    total = np.where(seen, weight, 0)[:, None]
    columns = np.stack([np.broadcast_to(total, loss.shape), np.where(seen[:, None], loss, 0) * total], axis=2)

    def pooled(totals: Array) -> Array:
        with np.errstate(invalid="ignore"):  # without samples
            return score(totals[..., 1] / totals[..., 0])

    return _jackknife(columns, lat, lon, degrees, offsets, level, pooled)


def block_jackknife_of_totals(
    totals_a: Array,
    totals_b: Array | None,
    lat: ArrayLike,
    lon: ArrayLike,
    *,
    degrees: float,
    metric: str,
    offsets: int = 2,
    level: float = 0.95,
) -> TestResult:
    """Test the difference of any metric of `score` by the jackknife over square blocks of monitors.

    `totals_a` and `totals_b` (n, 6) are the sums of each monitor, in columns N to Y2. Monitors
    without samples in one of the arms are left out. For "rmse" this is `block_jackknife` of E2 / N with
    weight N. Without `totals_b`, the metric of arm a is tested against zero.
    """
    arms = [np.asarray(arm, np.float64) for arm in (totals_a, totals_b) if arm is not None]
    totals = np.stack(arms, axis=1)
    return _jackknife(totals, lat, lon, degrees, offsets, level, lambda sums: score(sums, metric))


def _jackknife(
    columns: Array,
    lat: ArrayLike,
    lon: ArrayLike,
    degrees: float,
    offsets: int,
    level: float,
    pooled: Callable[[Array], Array],
) -> TestResult:
    """Leave out each block once, on each grid: columns (n, 1 or 2 arms, c), of which the first is N."""
    if offsets not in OFFSETS:
        raise ValueError(f"offsets is {offsets}, not one of {[*OFFSETS]}")
    used = (columns[..., 0] > 0).all(axis=1)
    columns = columns[used]
    lat, lon = np.asarray(lat, np.float64)[used], np.asarray(lon, np.float64)[used]

    def difference(totals: Array) -> Array:
        scores = pooled(totals)
        return scores[..., 0] - scores[..., 1] if scores.shape[-1] == 2 else scores[..., 0]

    estimate = float(difference(columns.sum(axis=0)))
    name = f"jackknife of {degrees:g}-degree blocks"
    tests = []
    for offset in OFFSETS[offsets]:
        sums = _by_block(blocks(lat, lon, degrees, offset), columns)
        number = len(sums)
        se, df = math.nan, 0.0
        if number > 1:
            changes = difference(_without_each(sums)) - estimate
            se = math.sqrt((number - 1) / number * float((changes**2).sum()))
            df = effective_blocks(sums[..., 0].sum(axis=1)) - 1
        tests.append(_student(name, estimate, se, df, level))
    return larger_p(tests)


def blocks(
    lat: ArrayLike, lon: ArrayLike, degrees: float, offset: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.integer]:
    """Number the square blocks that hold monitors: `lat` and `lon` (n,) in degrees -> (n,), from 0.

    The grid starts at the south-west corner of the CONUS box, less `offset` (east, north), in shares of a
    block.
    """
    if not degrees > 0:
        raise ValueError(f"degrees is {degrees}, but the side of a block")
    west, south = CONUS[0] / degrees - offset[0], CONUS[1] / degrees - offset[1]
    column = np.floor(np.asarray(lon, np.float64) / degrees - west)
    row = np.floor(np.asarray(lat, np.float64) / degrees - south)
    square = row * (np.ptp(column) + 1) + column if len(row) else row
    return np.unique(square, return_inverse=True)[1]


def effective_blocks(samples: Array) -> float:
    """Effective number of blocks, (sum w)^2 / sum w^2 of their numbers of samples (K,): at most K.

    The number of equal blocks whose mean would vary as much (Kish 1965, Survey Sampling); NaN without
    samples. It depends on the monitors alone, so it is known before anything is trained. In simulated null
    studies `block_jackknife` kept its size with it. Shares of the loss made it less powerful, not safer.
    """
    samples = np.asarray(samples, np.float64)
    return float(samples.sum() ** 2 / (samples**2).sum()) if samples.any() else math.nan


def _by_block(block: NDArray[np.integer], values: Array) -> Array:
    """Add up `values (n, ...)` by block: (blocks, ...)."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    sums: Array = np.stack([np.bincount(block, column) for column in flat.T], axis=1)
    return sums.reshape(len(sums), *values.shape[1:])


def _without_each(sums: Array) -> Array:
    """Add up all blocks but one, for each: (K, ...) -> (K, ...). Sums from both ends lose no digits."""
    below, above = np.zeros_like(sums), np.zeros_like(sums)
    below[1:] = np.cumsum(sums[:-1], axis=0)
    above[:-1] = np.cumsum(sums[:0:-1], axis=0)[::-1]
    return below + above


def hering_genton(difference: Array, lat: ArrayLike, lon: ArrayLike, *, level: float = 0.95) -> TestResult:
    """Test that the mean of `difference (n,)` over monitors is zero, with a fitted spatial covariance.

    The spatial prediction comparison test of Hering and Genton (2011, doi 10.1198/TECH.2011.10136). The
    variance of the mean is the mean of the fitted covariance over all pairs of monitors, each with itself
    included. The covariance is a nugget plus an exponential, s exp(-distance / r). It is fitted to the
    empirical variogram up to half of the largest distance, weighted by pairs. The range r is at most that
    distance. The statistic has n - 1 degrees of freedom.

    R's SpatialVx::spct fits the exponential without a nugget. Its variance is the mean of the fitted
    variogram, near the variance of one monitor. So its p-values are not those of the paper. Without
    a nugget, noise of single monitors hides smooth differences, and the test rejects far too often.

    Parameters
    ----------
    difference : array (n,)
        Loss of arm a minus loss of arm b at each monitor; NaN is left out. `pseudo_values` makes it from any
        metric.
    lat, lon : array (n,)
        Positions in degrees. Distances are on the great circle, in km (`pm25.geo`).
    level : float
        Level of the confidence interval.

    Returns
    -------
    TestResult
        Mean difference. With fewer than `MIN_UNITS` monitors, all at one place, or none within half of the
        largest distance, it has NaN bounds and p-value.
    """
    difference = np.asarray(difference, np.float64)
    seen = np.isfinite(difference)
    difference, n = difference[seen], int(seen.sum())
    lat, lon = np.asarray(lat, np.float64)[seen], np.asarray(lon, np.float64)[seen]
    mean = float(difference.mean()) if n else math.nan
    i, j, km = _pairs(lat.tobytes(), lon.tobytes())
    if n < MIN_UNITS or km.max() == 0 or km.max() / 2 < km.min():
        return _student("Hering-Genton", mean, math.nan, n - 1, level)
    nugget, sill, length = _exponential(km, (difference[i] - difference[j]) ** 2 / 2)
    variance = (nugget + sill * (1 + 2 * float(np.exp(-km / length).sum()) / n)) / n
    return _student("Hering-Genton", mean, math.sqrt(variance), n - 1, level)


@functools.lru_cache(maxsize=4)
def _pairs(lat: bytes, lon: bytes) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """List all pairs of places, first and second, with their distance in km.

    The coordinates are the bytes of float64 arrays (n,). A report makes the test for many contrasts of the
    same monitors, and the distances are most of its time.
    """
    north, east = np.frombuffer(lat), np.frombuffer(lon)
    i, j = np.triu_indices(len(north), 1)
    return i, j, great_circle_km(north[i], east[i], north[j], east[j])


def _exponential(km: Array, semivariance: Array) -> tuple[float, float, float]:
    """Fit nugget + s (1 - exp(-distance / r)) to the variogram of pairs (m,): nugget, s and r in km.

    Least squares over pairs, in bins of distance up to half of the largest one. For each r the fit is linear,
    with neither term negative. The best r is searched on a logarithmic scale.
    """
    from scipy import optimize  # slow to import

    reach = km.max() / 2
    near = km <= reach
    km, semivariance = km[near], semivariance[near]
    place = np.minimum((km / reach * BINS).astype(int), BINS - 1)
    pairs, far, gamma = np.stack([np.bincount(place, x, BINS) for x in (np.ones_like(km), km, semivariance)])
    some = pairs > 0
    far, gamma, root = far[some] / pairs[some], gamma[some] / pairs[some], np.sqrt(pairs[some])
    scale = gamma.max()
    if scale == 0:
        return 0.0, 0.0, reach

    def fit(log_r: float) -> tuple[Array, float]:
        shape = np.stack([root, -np.expm1(-far / math.exp(log_r)) * root], axis=1)
        terms, error = optimize.nnls(shape, gamma / scale * root)
        return terms, error

    grid = np.linspace(math.log(reach / BINS / 2), math.log(reach), 40)
    best = int(np.argmin([fit(log_r)[1] for log_r in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    log_r = float(optimize.minimize_scalar(lambda x: fit(x)[1], bounds=bounds, method="bounded").x)
    nugget, sill = scale * fit(log_r)[0]
    return float(nugget), float(sill), math.exp(log_r)


def diebold_mariano(difference: Array, *, lag: int, level: float = 0.95) -> TestResult:
    """Test that the mean of `difference (days,)` is zero, with autocorrelation up to `lag` days.

    The test of Diebold and Mariano (1995, doi 10.1080/07350015.1995.10524599), with the small-sample
    correction of Harvey, Leybourne and Newbold (1997, doi 10.1016/S0169-2070(96)00719-4). It divides the
    variance by `(n + 1 - 2 * h + h * (h - 1) / n) / n` with h = lag + 1. The statistic has n - 1 degrees of
    freedom.

    The variance of the mean is `(g_0 + 2 * (g_1 + ... + g_lag)) / n`. The autocovariance g_k has divisor n.
    If the sum is not positive, g_k has Bartlett's weight 1 - k / h, and the sum is never negative. R's
    forecast::dm.test agrees, but for that case.

    Parameters
    ----------
    difference : array (days,)
        Loss of arm a minus loss of arm b, one value per day in order. NaN days are left out, and the other
        days keep their distance in time.
    lag : int
        Largest lag in days with autocorrelation; 0 for none.
    level : float
        Level of the confidence interval.

    Returns
    -------
    TestResult
        Mean difference. With fewer than `MIN_UNITS` or not more than `lag` + 1 days it has NaN bounds and
        p-value.
    """
    if lag < 0:
        raise ValueError(f"lag is {lag}, but a number of days")
    difference = np.asarray(difference, np.float64)
    seen = np.isfinite(difference)
    n, h = int(seen.sum()), lag + 1
    mean = float(difference[seen].mean()) if n else math.nan
    name = f"Diebold-Mariano, lag {lag}"
    if n < MIN_UNITS or n <= h:
        return _student(name, mean, math.nan, n - 1, level)
    centred = np.where(seen, difference - mean, 0)
    covariance = np.array([centred[k:] @ centred[: len(centred) - k] for k in range(h)]) / n
    variance = covariance[0] + 2 * covariance[1:].sum()
    if variance <= 1e-12 * covariance[0]:  # zero, but for rounding
        variance = covariance[0] + 2 * (1 - np.arange(1, h) / h) @ covariance[1:]
    factor = (n + 1 - 2 * h + h * (h - 1) / n) / n
    return _student(name, mean, math.sqrt(max(variance, 0.0) / n / factor), n - 1, level)


def pseudo_values(totals_a: Array, totals_b: Array | None, metric: str) -> Array:
    """Spread the difference of a pooled metric over its units: totals (n, 6) of each arm -> (n,).

    The mean of the values is the metric of arm a minus that of arm b. Their deviations from the mean are the
    first-order influence of the units (infinitesimal jackknife, Jaeckel 1972). So `hering_genton` of
    monitors and `diebold_mariano` of days test the metric itself, in its units. A unit without samples in
    one of the arms is left out and NaN. Without `totals_b`, the values are those of the metric of arm a.
    """
    arms = [np.asarray(arm, np.float64) for arm in (totals_a, totals_b) if arm is not None]
    seen = np.all([arm[:, N] > 0 for arm in arms], axis=0)
    values = np.full(seen.shape, math.nan)
    with np.errstate(invalid="ignore", divide="ignore"):  # without samples, or r2 without variance
        each = [_pseudo_values(arm[seen], metric) for arm in arms]
    values[seen] = each[0] - each[1] if len(each) == 2 else each[0]
    return values


def _pseudo_values(totals: Array, metric: str) -> Array:
    """Metric of one arm plus the influence of each unit times their number: (n, 6) -> (n,)."""
    pooled = totals.sum(axis=0)
    n = pooled[N]
    value = float(score(pooled, metric))
    slope = np.zeros(6)
    if metric == "rmse":
        slope[E2], slope[N] = 1, -(value**2)
        slope /= 2 * n * value if value > 0 else math.inf
    elif metric in ("mae", "mbe", "site_rmse"):
        slope[E if metric == "mbe" else ABS_E], slope[N] = 1 / n, -value / n
    else:
        sst = pooled[Y2] - pooled[Y] ** 2 / n
        mean = pooled[Y] / n
        slope[[E2, Y2, Y, N]] = -1, 1 - value, -2 * mean * (1 - value), mean**2 * (1 - value)
        slope /= sst
    return value + len(totals) * (totals @ slope)


def larger_p(tests: Sequence[TestResult]) -> TestResult:
    """Combine tests of one difference: the one with the largest p, with the union of all intervals.

    The result is significant only if all tests are, so its size is at most that of the best one. Estimates
    of different sign show no direction: p is 1. A test that cannot be computed makes p and both bounds NaN.
    The tests need the same units and level.
    """
    p = np.array([test.p for test in tests])
    largest = tests[int(np.argmax(p))]  # the first NaN, if there is one
    if math.isnan(largest.p):
        return largest._replace(low=math.nan, high=math.nan)
    signs = {math.copysign(1, test.estimate) for test in tests if test.estimate}
    low, high = min(test.low for test in tests), max(test.high for test in tests)
    return largest._replace(p=1.0 if len(signs) > 1 else largest.p, low=low, high=high)


def holm(p: Sequence[float]) -> Array:
    """Adjust the p-values of a family by Holm's step-down method (Holm 1979): (n,) -> (n,).

    The i-th smallest of n p-values is multiplied by n - i + 1, then made monotone and capped at 1. Rejecting
    where the adjusted p-value is at most alpha keeps the family-wise error within alpha.
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, steps)
    return adjusted


def equivalence(tests: Sequence[TestResult], rope: float) -> float:
    """Compute the p-value of a difference of at least `rope` in size, small if the difference is inside.

    The larger of two one-sided p-values (TOST, Schuirmann 1987), and the largest over `tests`. NaN without a
    region.
    """
    if math.isnan(rope):
        return math.nan
    return max(_upper(rope - sign * one.estimate, one.se, one.df) for one in tests for sign in (1, -1))


def posterior(test: TestResult, rope: float) -> tuple[float, float, float]:
    """Compute the probabilities that the difference is below -rope, inside the region, and above rope.

    The Bayesian correlated t-test of Corani and Benavoli (2015, doi 10.1007/s10994-015-5486-z). With the
    improper prior the posterior is Student's t about the estimate, with the test's standard error. It is NaN
    for a test that could not be computed.
    """
    below = _upper(rope + test.estimate, test.se, test.df)
    above = _upper(rope - test.estimate, test.se, test.df)
    inside = 1 - below - above
    return below, inside if math.isnan(inside) else max(0.0, inside), above


def seed_variance(differences: Array) -> float | None:
    """Estimate the variance between the seeds of one unit: `differences (units, seeds)` with NaN.

    The mean square within units of the analysis of variance. None with a single seed.
    """
    seen = np.isfinite(differences)
    differences, seen = differences[seen.any(axis=1)], seen[seen.any(axis=1)]
    freedom = int((seen.sum(axis=1) - 1).sum())
    if freedom < 1:
        return None
    residuals = (differences - unit_means(differences)[:, None])[seen]
    return float((residuals**2).sum()) / freedom


def variances(differences: Array) -> tuple[float, float] | None:
    """Estimate the variances between units and between the seeds of a unit: `differences (units, seeds)`.

    The analysis of variance (method of moments, not below zero). None with fewer than `MIN_UNITS` units, and
    with a single seed, which cannot tell the two apart.
    """
    between_seeds, means = seed_variance(differences), unit_means(differences)
    if len(means) < MIN_UNITS or between_seeds is None:
        return None
    each = np.isfinite(differences).sum(axis=1)
    share = float(np.mean(1 / each[each > 0]))
    return max(0.0, float(np.var(means, ddof=1)) - between_seeds * share), between_seeds


def more_seeds(differences: Array, overlap: float, rope: float, alpha: float) -> int | None:
    """Predict how many further seeds would decide a contrast if its mean stayed.

    `differences (units, seeds)`, NaN where a pair is missing. The variance of a unit's mean over S seeds is
    v_units + v_seeds / S, and more seeds shrink the second term alone. The result is None if no number up to
    `MOST_SEEDS` would do, and where `variances` has none.
    """
    found, means = variances(differences), unit_means(differences)
    units = len(means)
    if found is None:
        return None
    between_units, between_seeds = found
    seeds = int(np.isfinite(differences).sum(axis=1).max())
    mean = float(means.mean())
    for more in range(1, MOST_SEEDS - seeds + 1):
        variance = between_units + between_seeds / (seeds + more)
        then = _student("", mean, math.sqrt((1 / units + overlap) * variance), units - 1, 0.95)
        if then.p <= alpha or equivalence([then], rope) <= alpha:
            return more
    return None


def interquartile_mean(values: Array) -> float:
    """Average the middle half of `values (n,)` (Agarwal et al. 2021, arXiv 2108.13264); NaN of none."""
    from scipy import stats  # slow to import

    return float(stats.trim_mean(values, 0.25)) if len(values) else math.nan


def score(totals: Array, metric: str) -> Array:
    """Compute rmse, mae, mbe or r2 from totals (..., 6); NaN without samples, and r2 without variance.

    For site_rmse the totals are those of `one_per_monitor`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        n = totals[..., N]
        if metric == "rmse":
            return np.sqrt(totals[..., E2] / n)
        if metric in ("mae", "site_rmse"):
            return totals[..., ABS_E] / n
        if metric == "mbe":
            return totals[..., E] / n
        sst = totals[..., Y2] - totals[..., Y] ** 2 / n
        return np.where(sst > 0, 1 - totals[..., E2] / sst, math.nan)


def one_per_monitor(totals: Array, samples: ArrayLike) -> Array:
    """Replace the samples of each monitor by one of the size of its RMSE: (n, 6) -> (n, 6).

    The mean absolute error of the result is the mean over monitors of their RMSE, the metric site_rmse.
    Monitors with fewer than `samples` samples, one number or one for each (n,), are left out: their totals
    are zero.
    """
    seen = totals[:, N] >= np.maximum(samples, 1)
    rmse = np.sqrt(totals[seen, E2] / totals[seen, N])
    found = np.zeros_like(totals)
    found[seen] = np.stack([np.ones_like(rmse), rmse, rmse, rmse**2, 0 * rmse, 0 * rmse], axis=1)
    return found


def _upper(distance: float, se: float, df: float) -> float:
    """Compute P(T > distance / se) for Student's t with `df` degrees of freedom.

    Without any spread it is 0 for a positive distance, 1 for a negative one and 0.5 for none.
    """
    if math.isnan(se):
        return math.nan
    if se == 0:
        return 0.0 if distance > 0 else 1.0 if distance < 0 else 0.5
    return float(special.stdtr(df, -distance / se))  # `stats.t.sf` gives the same bits, 20 times slower
