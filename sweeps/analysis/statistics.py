"""The statistics of a comparison: pure functions of arrays, each with its source.

`units` explains what a unit is, and `overlap` is its function of that name. Throughout, `differences` is an
array (n,) with one value per unit, and p is a p-value: the chance of a result at least as extreme if the
hypothesis it belongs to holds.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from sweeps.analysis.units import MIN_UNITS, Array, Test, enough_units, unit_means, wilcoxon_reaches

Verdict = Literal["better", "worse", "equal", "undecided", "too few"]

MOST_SEEDS = 100
"""Largest number of seeds that `more_seeds` considers, present ones included."""

N, E, ABS_E, E2, Y, Y2 = range(6)
"""Columns of the totals of a cluster: number of samples, sums of error, |error|, error^2, truth, truth^2."""


class TTest(NamedTuple):
    """Mean of the differences with its corrected standard error; NaN with fewer than `MIN_UNITS` units."""

    mean: float
    se: float
    """Standard error of the mean."""
    df: int
    """Degrees of freedom, units minus one."""
    p: float
    """Two-sided p-value of a mean of zero."""


def corrected_t(differences: Array, overlap: float) -> TTest:
    """Test that the mean of `differences (n,)` is zero, corrected for shared training samples.

    The corrected resampled t-test of Nadeau and Bengio (2003, doi 10.1023/A:1024068626366, eq. 20). The
    squared standard error of the mean is (1 / n + overlap) times the sample variance. The statistic, mean
    over standard error, has n - 1 degrees of freedom. Differences that are all equal have p = 0, or p = 1 if
    they are zero.
    """
    n = len(differences)
    mean = float(np.mean(differences)) if n else math.nan
    if n < MIN_UNITS:
        return TTest(mean, math.nan, n - 1, math.nan)
    se = float(np.sqrt((1 / n + overlap) * np.var(differences, ddof=1)))
    return TTest(mean, se, n - 1, 2 * _upper(abs(mean), se, n - 1))


def interval(test: TTest, level: float) -> tuple[float, float]:
    """Compute the confidence interval of the mean at `level`: (low, high), NaN with too few units.

    The bounds are mean -/+ t se, where t is the (1 + level) / 2 quantile of Student's t.
    """
    half = float(stats.t.ppf((1 + level) / 2, test.df)) * test.se if test.df >= MIN_UNITS - 1 else math.nan
    return test.mean - half, test.mean + half


def wilcoxon(differences: Array, alternative: Literal["two-sided", "less", "greater"] = "two-sided") -> float:
    """Compute the p-value of Wilcoxon's signed rank test of `differences (n,)` (scipy).

    Zeros are ranked but left out of the sum (Pratt 1959). The p-value is exact, over all sign patterns, with
    up to 13 differences, and with up to 50 that have no ties and zeros. Units are taken as independent, so
    shared training samples are not corrected for. Where a training depends strongly on its training samples,
    the test rejects too often, as a plain t-test does: at a level of 5 % in 13 % of null studies of eight
    folds (`test_signed_ranks_take_folds_for_independent`).
    """
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt", alternative=alternative).pvalue)


def walsh_interval(differences: Array, level: float) -> tuple[float, float]:
    """Compute the interval of the median that inverts Wilcoxon's test: (low, high).

    The bounds are order statistics of the Walsh averages (d_i + d_j) / 2, i <= j (Hodges and Lehmann 1963).
    The interval is exact: its level is at least `level`. NaN with too few differences (`wilcoxon_reaches`).
    """
    n = len(differences)
    if not wilcoxon_reaches(n, 1 - level):
        return math.nan, math.nan
    i, j = np.triu_indices(n)
    averages = np.sort((differences[i] + differences[j]) / 2)
    count = np.zeros(n * (n + 1) // 2 + 1)  # number of sign patterns by rank sum
    count[0] = 1
    for rank in range(1, n + 1):
        count[rank:] += count[: len(count) - rank].copy()
    below = np.cumsum(count) / 2.0**n
    cut = int(np.searchsorted(below, (1 - level) / 2, side="right")) - 1  # averages left out at either end
    return float(averages[cut]), float(averages[-1 - cut])


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


class Shifted(NamedTuple):
    """One-sided p-values of hypotheses about the region of practical equivalence from -rope to rope."""

    below: float
    """p of 'the difference is -rope or more': small if the difference is below the region."""
    above: float
    """p of 'the difference is rope or less': small if the difference is above the region."""
    inside: float
    """p of 'the difference is at least as large as rope': the larger of two one-sided p-values (TOST,
    Schuirmann 1987)."""


def shifted(differences: Array, overlap: float, rope: float, test: Test = "corrected_t") -> Shifted:
    """Test `differences (n,)` against the margins -rope and rope instead of zero."""
    if test == "wilcoxon":
        low, high = differences + rope, differences - rope

        def below(values: Array) -> float:
            return wilcoxon(values, "less")

        def above(values: Array) -> float:
            return wilcoxon(values, "greater")

        return Shifted(below(low), above(high), max(above(low), below(high)))
    mean, se, df, _ = corrected_t(differences, overlap)
    less, more = _upper(-rope - mean, se, df), _upper(mean - rope, se, df)
    return Shifted(less, more, max(1 - less, 1 - more))


def decided(
    below: float, above: float, inside: float, alpha: float, *, smaller_is_better: bool = True
) -> Verdict:
    """Make the verdict on one contrast from its (adjusted) one-sided p-values, named as in `Shifted`.

    'better' and 'worse': the two-sided interval of level 1 - alpha is beyond the region of practical
    equivalence. 'equal': both one-sided tests place the difference inside it (Kruschke 2018, doi
    10.1177/2515245918771304). Whatever the true difference of one contrast, the chance of a false verdict is
    at most alpha. Over a family, Holm's method keeps false 'better' and 'worse' together within alpha, and
    false 'equal' by itself. Without p-values (NaN) the verdict is 'too few'.
    """
    if math.isnan(below):
        return "too few"
    if 2 * min(below, above) <= alpha:
        return "better" if (below < above) == smaller_is_better else "worse"
    return "equal" if inside <= alpha else "undecided"


def posterior(test: TTest, rope: float) -> tuple[float, float, float]:
    """Compute the probabilities that the difference is below -rope, inside the region, and above rope.

    The Bayesian correlated t-test of Corani and Benavoli (2015, doi 10.1007/s10994-015-5486-z). With the
    improper prior the posterior is Student's t about the mean, with the corrected standard error.
    """
    if not test.df >= MIN_UNITS - 1:
        return math.nan, math.nan, math.nan
    below, above = _upper(rope + test.mean, test.se, test.df), _upper(rope - test.mean, test.se, test.df)
    return below, max(0.0, 1 - below - above), above


def stopped(
    differences: Array,
    overlap: float,
    rope: float,
    alpha: float,
    looks: int,
    family: int,
    test: Test = "corrected_t",
) -> bool:
    """Return True if a contrast needs no further seeds: the stopping rule of adaptive seeds.

    `differences (units, seeds)`, NaN where a pair is missing. The contrast is tested by itself at level
    alpha / (looks x family), so that no contrast waits for another. Too few units cannot be decided by more
    seeds, so they stop at once.

    Reported p-values are multiplied by `looks` and then adjusted by Holm's method. This is valid for any
    stopping rule. The chance that p falls to x / looks at one of the looks is at most x, the sum of the
    chances at each. So `looks` times the p at the stop is a valid p-value, and Holm's method needs no more.
    The first step of Holm's method has the level used here, and its other steps are milder. So a contrast
    that stopped here is decided in the report.
    """
    means = unit_means(differences)
    if not enough_units(len(means), alpha / looks, test):
        return True
    found = shifted(means, overlap, rope, test)
    return decided(*found, alpha / (looks * family)) != "undecided"


def more_seeds(differences: Array, overlap: float, rope: float, alpha: float) -> int | None:
    """Predict how many further seeds would decide a contrast if its mean stayed.

    `differences (units, seeds)`, NaN where a pair is missing. The variance of a unit's mean over S seeds is
    v_units + v_seeds / S. Both are estimated by the analysis of variance (method of moments, not below zero),
    and more seeds shrink the second term alone. The result is None if no number up to `MOST_SEEDS` would
    do, and with a single seed, which cannot tell the two variances apart.
    """
    seen = np.isfinite(differences)
    differences, seen = differences[seen.any(axis=1)], seen[seen.any(axis=1)]
    each, means = seen.sum(axis=1), unit_means(differences)
    units, freedom = len(means), int((each - 1).sum())
    if units < MIN_UNITS or not freedom:
        return None
    seeds = int(each.max())
    residuals = (differences - means[:, None])[seen]
    between_seeds = float((residuals**2).sum()) / freedom
    between_units = max(0.0, float(np.var(means, ddof=1)) - between_seeds * float(np.mean(1 / each)))
    mean = float(means.mean())
    for more in range(1, MOST_SEEDS - seeds + 1):
        variance = between_units + between_seeds / (seeds + more)
        se = math.sqrt((1 / units + overlap) * variance)
        less, above = _upper(-rope - mean, se, units - 1), _upper(mean - rope, se, units - 1)
        if decided(less, above, max(1 - less, 1 - above), alpha) != "undecided":
            return more
    return None


def paired_intervals(values: Array, overlap: float, level: float) -> Array:
    """Compute intervals of arms' means without what the units do to all arms alike.

    `values (arms, units)` -> (arms, 2), low and high. The normalised interval of Cousineau (2005) with the
    correction of Morey (2008, Tutorials in Quantitative Methods for Psychology 4, 61-64). Its standard error
    is that of `corrected_t`. The interval shows which arms differ, not how far a mean would move on
    other units. A single arm has the plain interval. NaN with fewer than `MIN_UNITS` units.
    """
    arms, units = values.shape
    if units < MIN_UNITS:
        return np.full((arms, 2), math.nan)
    normalised, factor = values, 1.0
    if arms > 1:
        normalised = values - values.mean(axis=0) + values.mean()
        factor = arms / (arms - 1)
    se = np.sqrt(factor * (1 / units + overlap) * np.var(normalised, axis=1, ddof=1))
    half = stats.t.ppf((1 + level) / 2, units - 1) * se
    mean = values.mean(axis=1)
    return np.stack([mean - half, mean + half], axis=1)


class Ranks(NamedTuple):
    """Mean ranks of arms, and the tests that they are equal."""

    mean: Array
    """(arms,), mean rank over units; 1 is the best."""
    friedman_p: float
    """p-value of Friedman's test that all arms have equal ranks."""
    critical_difference: float
    """Mean ranks further apart than this differ at level alpha (Nemenyi)."""


def ranks(losses: Array, alpha: float = 0.05) -> Ranks:
    """Rank arms on every unit, with Friedman's test and Nemenyi's critical difference.

    `losses (units, arms)`, of which smaller ones are better; ties share their mean rank. With k arms and n
    units the critical difference is q sqrt(k (k + 1) / (6 n)) (Demsar 2006, JMLR 7, section 3.2.2). There q
    is the 1 - alpha quantile of the studentised range over sqrt(2). NaN below `MIN_UNITS` units or three
    arms.
    """
    units, arms = losses.shape
    mean = stats.rankdata(losses, axis=1).mean(axis=0)
    if units < MIN_UNITS or arms < 3:
        return Ranks(mean, math.nan, math.nan)
    alike = bool((losses == losses[:, :1]).all())
    p = 1.0 if alike else float(stats.friedmanchisquare(*losses.T).pvalue)
    q = float(stats.studentized_range.ppf(1 - alpha, arms, math.inf)) / math.sqrt(2)
    return Ranks(mean, p, q * math.sqrt(arms * (arms + 1) / (6 * units)))


def interquartile_mean(values: Array) -> float:
    """Average the middle half of `values (n,)` (Agarwal et al. 2021, arXiv 2108.13264); NaN of none."""
    return float(stats.trim_mean(values, 0.25)) if len(values) else math.nan


def bootstrap_weights(clusters: int, resamples: int, seed: int | Sequence[int]) -> NDArray[np.float32]:
    """Draw as many clusters as there are, with replacement: (resamples, clusters) counts of each cluster."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(clusters, size=(resamples, clusters))
    flat = draws + clusters * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * clusters)
    return counts.reshape(resamples, clusters).astype(np.float32)


def cluster_totals(cluster: NDArray[np.integer], totals: Array, clusters: int) -> Array:
    """Add up totals of sites by cluster: cluster (m,), totals (m, 6) -> (clusters, 6)."""
    return np.stack([np.bincount(cluster, column, clusters) for column in totals.T], axis=1)


def score(totals: Array, metric: str) -> Array:
    """Compute rmse, mae, mbe or r2 from totals (..., 6); NaN without samples, and r2 without variance."""
    with np.errstate(invalid="ignore", divide="ignore"):
        n = totals[..., N]
        if metric == "rmse":
            return np.sqrt(totals[..., E2] / n)
        if metric == "mae":
            return totals[..., ABS_E] / n
        if metric == "mbe":
            return totals[..., E] / n
        sst = totals[..., Y2] - totals[..., Y] ** 2 / n
        return np.where(sst > 0, 1 - totals[..., E2] / sst, math.nan)


_NEEDS = {"rmse": (N, E2), "mae": (N, ABS_E), "mbe": (N, E), "r2": (N, E2, Y, Y2)}


def cluster_bootstrap(weights: NDArray[np.float32], totals: Array, metric: str) -> Array:
    """Score trainings on every resample of clusters of test samples: (trainings, resamples).

    `weights (resamples, clusters)` are those of `bootstrap_weights`, and `totals` is (trainings, clusters,
    6). Trainings that are compared share their weights, so their differences are paired. Complete clusters
    are drawn because samples of one cluster are not independent (Cameron, Gelbach and Miller 2008). The score
    is NaN on a resample without a sample of the training.
    """
    needed = list(_NEEDS[metric])
    drawn = np.zeros((len(totals), len(weights), 6))
    drawn[:, :, needed] = np.tensordot(totals[:, :, needed], weights.astype(np.float64), (1, 1)).swapaxes(
        1, 2
    )
    return score(drawn, metric)


def _upper(distance: float, se: float, df: int) -> float:
    """Compute P(T > distance / se) for Student's t with `df` degrees of freedom.

    Without any spread it is 0 for a positive distance, 1 for a negative one and 0.5 for none.
    """
    if math.isnan(se):
        return math.nan
    if se == 0:
        return 0.0 if distance > 0 else 1.0 if distance < 0 else 0.5
    return float(special.stdtr(df, -distance / se))  # `stats.t.sf` gives the same bits, 20 times slower
