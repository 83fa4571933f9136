"""The statistics of a comparison: pure functions of arrays, each with its source.

A *unit* is an independent test set, one fold of a split; seeds are averaged within their unit before anything
is tested, for trainings that share a test set are no independent evidence. `overlap` is n_test / n_train of
the split's partition, 1 / (folds - 1): folds share training samples, which plain standard errors leave out.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Verdict = Literal["better", "worse", "equal", "undecided", "too few"]
Test = Literal["corrected_t", "wilcoxon"]
MIN_UNITS = 3
"""Of a corrected t-test: with two units the interval is 12.7 standard errors wide on either side."""

N, E, ABS_E, E2, Y, Y2 = range(6)
"""Totals of a cluster's samples: their number, sums of error, |error|, error^2, truth, truth^2."""


class TTest(NamedTuple):
    """A mean with its corrected standard error; NaN of fewer than `MIN_UNITS` units."""

    mean: float
    se: float
    df: int
    p: float
    """Two-sided, of a mean of zero."""


def corrected_t(differences: Array, overlap: float) -> TTest:
    """The corrected resampled t-test of Nadeau and Bengio (2003, doi 10.1023/A:1024068626366, eq. 20).

    `differences (n,)`, one a unit. The variance of their mean is (1 / n + overlap) times their sample
    variance. Differences that are all equal have p 0, or 1 where they are zero.
    """
    n = len(differences)
    mean = float(np.mean(differences)) if n else math.nan
    if n < MIN_UNITS:
        return TTest(mean, math.nan, n - 1, math.nan)
    se = float(np.sqrt((1 / n + overlap) * np.var(differences, ddof=1)))
    return TTest(mean, se, n - 1, 2 * _upper(abs(mean), se, n - 1))


def interval(test: TTest, level: float) -> tuple[float, float]:
    """The test's interval of the mean, (low, high); NaN where there is none."""
    half = float(stats.t.ppf((1 + level) / 2, test.df)) * test.se if test.df >= MIN_UNITS - 1 else math.nan
    return test.mean - half, test.mean + half


def wilcoxon(differences: Array, alternative: Literal["two-sided", "less", "greater"] = "two-sided") -> float:
    """p of Wilcoxon's signed rank test (scipy), of `differences (n,)`.

    Zeros are ranked and left out of the sum (Pratt 1959). Exact, over all sign patterns, up to 13
    differences, and up to 50 without ties and zeros. It takes the units for independent and corrects nothing
    for what folds share: where a training hangs much on its training samples it finds too much, as a plain
    t-test does (at a level of 5 % in 13 % of null studies of eight folds, says a test).
    """
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt", alternative=alternative).pvalue)


def walsh_interval(differences: Array, level: float) -> tuple[float, float]:
    """The interval of the median that belongs to Wilcoxon's test, of Walsh averages (Hodges and Lehmann
    1963).

    Exact: its level is at least `level`. NaN where so few differences allow none (`wilcoxon_reaches`).
    """
    n = len(differences)
    if not wilcoxon_reaches(n, 1 - level):
        return math.nan, math.nan
    i, j = np.triu_indices(n)
    averages = np.sort((differences[i] + differences[j]) / 2)
    count = np.zeros(n * (n + 1) // 2 + 1)  # of sign patterns by their rank sum
    count[0] = 1
    for rank in range(1, n + 1):
        count[rank:] += count[: len(count) - rank].copy()
    below = np.cumsum(count) / 2.0**n
    cut = int(np.searchsorted(below, (1 - level) / 2, side="right")) - 1  # so many are left out at either end
    return float(averages[cut]), float(averages[-1 - cut])


def wilcoxon_reaches(n: int, alpha: float) -> bool:
    """Whether n pairs can give a two-sided p of `alpha` at all: the smallest is 2 / 2^n."""
    return n > 0 and 2 / 2**n <= alpha


def enough_units(n: int, alpha: float, test: Test) -> bool:
    """Whether n units can be tested at all."""
    return wilcoxon_reaches(n, alpha) if test == "wilcoxon" else n >= MIN_UNITS


def holm(p: Sequence[float]) -> Array:
    """p adjusted for their number (Holm 1979): the family-wise error stays within the level. (n,) -> (n,)."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, steps)
    return adjusted


class Shifted(NamedTuple):
    """One-sided p of the four hypotheses about a margin; small rejects."""

    below: float
    """Of `the difference is -rope or more`: small says that it lies below the margin."""
    above: float
    """Of `the difference is rope or less`."""
    inside: float
    """Of `the difference is as large as rope`, the larger of two one-sided tests (TOST, Schuirmann 1987)."""


def shifted(differences: Array, overlap: float, rope: float, test: Test = "corrected_t") -> Shifted:
    """Where the difference lies against a region of practical equivalence from -rope to rope."""
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
    """The verdict on one contrast from its (adjusted) one-sided p, as `Shifted` names them.

    better or worse: the two-sided interval of level 1 - alpha lies beyond the region of practical
    equivalence; equal: both one-sided tests place the difference inside it (Kruschke 2018, doi
    10.1177/2515245918771304). Wherever the difference of one contrast lies, one of the three is false with a
    chance of at most alpha. Over a family, p adjusted by Holm's method hold alpha for false `better` and
    `worse` together, and for false `equal` by itself.
    """
    if math.isnan(below):
        return "too few"
    if 2 * min(below, above) <= alpha:
        return "better" if (below < above) == smaller_is_better else "worse"
    return "equal" if inside <= alpha else "undecided"


def posterior(test: TTest, rope: float) -> tuple[float, float, float]:
    """Probabilities that the difference lies below -rope, within it, and above rope.

    The Bayesian correlated t-test of Corani and Benavoli (2015, doi 10.1007/s10994-015-5486-z): with the
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
    """Whether a contrast needs no further seeds: the stopping rule of adaptive seeds.

    `differences (units, seeds)`, NaN where a pair is missing. It is judged by itself at alpha / (looks x
    family), so that no contrast waits for another. The final p are multiplied by `looks` and then adjusted by
    Holm's method. A contrast stops at some look; the chance that at any of its looks p falls to x / looks is
    x at most (the sum of its looks' chances), whatever the rule, so `looks` times the p at the stop is a
    valid p, and Holm's method holds for any valid p. Its first step is this rule's level and the others are
    milder, so what stopped here stays decided. Too few units cannot be decided by seeds: they stop at once.
    """
    means = unit_means(differences)
    if not enough_units(len(means), alpha / looks, test):
        return True
    found = shifted(means, overlap, rope, test)
    return decided(*found, alpha / (looks * family)) != "undecided"


def unit_means(differences: Array) -> Array:
    """(units, seeds) -> (units with a value,): means over the seeds that have one."""
    differences = np.asarray(differences, np.float64)
    seen = np.isfinite(differences)
    some = seen.any(axis=1)
    total = np.where(seen, differences, 0).sum(axis=1)
    means: Array = total[some] / seen.sum(axis=1)[some]
    return means


def more_seeds(differences: Array, overlap: float, rope: float, alpha: float, most: int = 100) -> int | None:
    """How many further seeds would decide a contrast if its mean stayed: None where none of up to `most`
    would.

    `differences (units, seeds)`, NaN where a pair is missing. The variance of a unit's mean over S seeds is
    that between units plus that between seeds over S, by the analysis of variance (its method of moments, not
    below zero); more seeds shrink the second alone. One seed cannot tell them apart: None.
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
    for more in range(1, most - seeds + 1):
        variance = between_units + between_seeds / (seeds + more)
        se = math.sqrt((1 / units + overlap) * variance)
        less, above = _upper(-rope - mean, se, units - 1), _upper(mean - rope, se, units - 1)
        if decided(less, above, max(1 - less, 1 - above), alpha) != "undecided":
            return more
    return None


def paired_intervals(values: Array, overlap: float, level: float) -> Array:
    """Intervals of arms' means that leave out what the units do to all arms alike: (arms, units) -> (arms,
    2).

    The normalised interval of Cousineau (2005) with the correction of Morey (2008, Tutorials in Quantitative
    Methods for Psychology 4, 61-64), whose standard error is the corrected one (`corrected_t`). It shows
    which arms differ, and not how far the mean would move on other units. A single arm has the plain
    interval. NaN for fewer than `MIN_UNITS` units.
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
    mean: Array
    """(arms,); 1 is the best."""
    friedman_p: float
    critical_difference: float
    """Mean ranks further apart than this differ (Nemenyi)."""


def ranks(losses: Array, alpha: float = 0.05) -> Ranks:
    """Friedman's test and Nemenyi's critical difference (Demsar 2006, JMLR 7, section 3.2.2).

    `losses (units, arms)`, smaller being better; ties share their mean rank. NaN below `MIN_UNITS` units or
    three arms.
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
    """The mean of the middle half (Agarwal et al. 2021, arXiv 2108.13264); NaN of none."""
    return float(stats.trim_mean(values, 0.25)) if len(values) else math.nan


def bootstrap_weights(clusters: int, resamples: int, seed: int | Sequence[int]) -> NDArray[np.float32]:
    """(resamples, clusters): how often each cluster is drawn, as many with replacement as there are."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(clusters, size=(resamples, clusters))
    flat = draws + clusters * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * clusters)
    return counts.reshape(resamples, clusters).astype(np.float32)


def cluster_totals(cluster: NDArray[np.integer], totals: Array, clusters: int) -> Array:
    """Totals of sites as totals of clusters: cluster (m,), totals (m, 6) -> (clusters, 6)."""
    return np.stack([np.bincount(cluster, column, clusters) for column in totals.T], axis=1)


def score(totals: Array, metric: str) -> Array:
    """rmse, mae, mbe or r2 from totals (..., 6); NaN without a sample, and for r2 without variance."""
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
    """The metric of trainings on every resample of clusters of test samples: (trainings, resamples).

    `weights (resamples, clusters)` are `bootstrap_weights`, `totals (trainings, clusters, 6)`. Trainings that
    are compared share their weights, so their differences are paired. Whole clusters are drawn because the
    samples of one are no independent evidence (Cameron, Gelbach and Miller 2008). NaN of a resample without a
    sample of the training.
    """
    needed = list(_NEEDS[metric])
    drawn = np.zeros((len(totals), len(weights), 6))
    drawn[:, :, needed] = np.tensordot(totals[:, :, needed], weights.astype(np.float64), (1, 1)).swapaxes(
        1, 2
    )
    return score(drawn, metric)


def _upper(distance: float, se: float, df: int) -> float:
    """P(T > distance / se) of Student's t; of no spread at all 0, or 1 where the distance is not above 0."""
    if math.isnan(se):
        return math.nan
    if se == 0:
        return 0.0 if distance > 0 else 1.0 if distance < 0 else 0.5
    return float(stats.t.sf(distance / se, df))
