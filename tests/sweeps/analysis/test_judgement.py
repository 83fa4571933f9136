"""Pairs, region of practical equivalence, verdict and stopping rule of one contrast, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.analysis import estimands, judgement, statistics, units
from sweeps.analysis.estimands import Evidence
from sweeps.analysis.statistics import TestResult
from sweeps.spec.claims import NONE, Analysis, Contrast
from sweeps.spec.design import Arm

ARM = np.array([[3.0, 5.0], [7.0, math.nan], [math.nan, 9.0]])
OTHER = np.array([[2.0, 2.0], [4.0, 8.0], [6.0, math.nan]])


def contrast(metric: str = "rmse", part: str = "test") -> Contrast:
    return Contrast(Arm("latlon", None), NONE, "random", part, None, metric)


def scores(metric: str = "rmse", part: str = "test") -> judgement.PairedScores:
    return judgement.paired_scores(contrast(metric, part), ARM, OTHER, Analysis(rope=0.1))


def test_only_pairs_count() -> None:
    found = scores()
    np.testing.assert_array_equal(found.differences, [[1, 3], [3, math.nan], [math.nan, math.nan]])
    assert units.unit_means(found.differences).tolist() == [2.0, 3.0]
    assert (found.mean_arm, found.mean_other) == (5.5, 3.0)  # (4 + 7) / 2 and (2 + 4) / 2


REGIONS = [
    ("rmse", "test", 0.3),
    ("mae", "wr", 0.3),
    ("r2", "test", 0.1),
    ("mbe", "test", math.nan),
    ("rmse", "gap", math.nan),
]


@pytest.mark.parametrize(("metric", "part", "rope"), REGIONS)
def test_the_region_is_a_share_of_an_error_and_absolute_for_r2(metric: str, part: str, rope: float) -> None:
    assert scores(metric, part).rope == pytest.approx(rope, nan_ok=True)
    pooled = judgement.with_means(contrast(metric, part), scores(metric, part), 5.0, 6.0, Analysis(rope=0.1))
    assert (pooled.mean_arm, pooled.mean_other) == (5.0, 6.0)
    assert pooled.rope == pytest.approx(0.6 if rope == 0.3 else rope, nan_ok=True), "that of the pooled score"


@pytest.mark.parametrize(
    ("kind", "part", "needed"),
    [
        ("random", "test", 3),
        ("spatial", "test", 1),  # its blocks are counted when the predictions are there
        ("temporal", "test", 5),
        ("rolling", "test", 5),
        ("blocks", "test", 3),
        ("clusters", "test", 3),
        ("clusters", "wr", 5),
        ("checkerboards", "test", 5),
        ("checkerboards", "wr", 5),
        ("checkerboards", "gap", 5),
    ],
)
def test_each_kind_needs_units_of_its_own(kind: str, part: str, needed: int) -> None:
    assert judgement.may_be_tested(kind, part, np.arange(needed))
    assert not judgement.may_be_tested(kind, part, np.arange(needed - 1))


def test_halves_of_an_origin_are_one_unit() -> None:
    assert not judgement.may_be_tested("checkerboard", "test", np.zeros(2, int))
    assert not judgement.may_be_tested("checkerboards", "test", np.arange(8) // 2)
    assert judgement.may_be_tested("checkerboards", "test", np.arange(10) // 2)


def test_overlap_is_test_over_training_samples() -> None:
    assert units.overlap(5) == pytest.approx(0.2 / 0.8)
    assert units.overlap(1) == 1


# Verdicts


def verdict(values: np.ndarray, rope: float, metric: str = "rmse", alpha: float = 0.05) -> str:
    test = statistics.corrected_t(values, 0.25)
    inside = statistics.equivalence([test], rope)
    return judgement.verdict(contrast(metric), test.estimate, test.p, inside, alpha)


SPREAD = 0.1 * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("mean", "rope", "metric", "expected"),
    [
        (-1.0, 0.1, "rmse", "better"),
        (1.0, 0.1, "mae", "worse"),
        (1.0, 0.1, "r2", "better"),
        (-1.0, 0.1, "r2", "worse"),
        (0.0, 0.5, "rmse", "equal"),
        (-0.1, 0.1, "rmse", "undecided"),  # neither apart from zero nor inside the region
        (-1.0, 1.0, "rmse", "better"),  # apart from zero, and on the edge of the region
        (-1.0, 2.0, "rmse", "equal"),  # apart from zero, and inside it
        (-1.0, math.nan, "rmse", "better"),  # without a region there is no equality
        (-1.0, math.nan, "mbe", "undecided"),  # no direction is better
    ],
)
def test_verdicts(mean: float, rope: float, metric: str, expected: str) -> None:
    assert verdict(mean + SPREAD, rope, metric) == expected


def test_a_gap_has_no_better() -> None:
    assert judgement.verdict(contrast(part="gap"), -1.0, 1e-9, math.nan, 0.05) == "undecided"


def test_a_number_that_is_missing_decides_nothing() -> None:
    assert judgement.verdict(contrast(), -1.0, math.nan, math.nan, 0.05) == "undecided"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-9, 9).map(lambda x: round(x, 3)), min_size=3, max_size=9).map(np.array),
    st.floats(0, 9),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_a_verdict_is_where_the_interval_lies(values: np.ndarray, rope: float, alpha: float) -> None:
    """equal by the interval of level 1 - 2 alpha, better and worse by that of 1 - alpha."""
    outer, inner = (statistics.corrected_t(values, 0.25, level=1 - k * alpha) for k in (1, 2))
    if min(abs(outer.low), abs(outer.high), abs(inner.low + rope), abs(inner.high - rope)) < 1e-9:
        return  # on the edge
    expected = "better" if outer.high < 0 else "worse" if outer.low > 0 else "undecided"
    if -rope < inner.low and inner.high < rope:
        expected = "equal"
    assert verdict(values, rope, alpha=alpha) == expected


# When seeds stop


def evidence(values: np.ndarray) -> Evidence:
    test = statistics.corrected_t(values, 0.25)
    return Evidence(test, (test,), (), len(values), "")


def test_what_cannot_be_tested_stops_at_once() -> None:
    nan = math.nan
    nothing = Evidence(TestResult(-1.0, nan, nan, nan, nan, nan, ""), (), (), 2, "2 folds, and 3 are needed")
    assert judgement.stops(contrast(), scores(), nothing, Analysis(), 3, 4)
    undecided = evidence(np.array([0.3, -0.4, 0.1, -0.2, 0.25]))
    assert not judgement.stops(contrast(), scores(), undecided, Analysis(), 3, 4)


def test_the_level_is_divided_by_looks_and_family() -> None:
    test = evidence(np.array([-0.4, -0.3, -0.5, -0.2, -0.6]))  # p = 0.0196
    region = scores()._replace(rope=0.01)
    assert judgement.stops(contrast(), region, test, Analysis(), 1, 2)
    assert not judgement.stops(contrast(), region, test, Analysis(), 2, 2)
    assert not judgement.stops(contrast(), region, test, Analysis(), 1, 3)
    assert judgement.stops(contrast(), region, test, Analysis(alpha=0.1), 2, 2)


def test_what_stops_at_a_look_stays_decided_at_the_end() -> None:
    """The stopping rule is the first step of Holm's method on p times looks."""
    rng = np.random.default_rng(0)
    looks, family, analysis = 3, 4, Analysis(alpha=0.05)
    region = scores()._replace(rope=0.05)
    stopped = 0
    for _ in range(200):
        contrasts = rng.normal(rng.uniform(-1, 1, (family, 1, 1)), 0.3, (family, 5, 3))
        found = [evidence(units.unit_means(values)) for values in contrasts]
        adjusted = statistics.holm([min(1.0, looks * one.result.p) for one in found])
        inside = statistics.holm(
            [min(1.0, looks * statistics.equivalence(one.tests, region.rope)) for one in found]
        )
        for one, p, equal in zip(found, adjusted, inside, strict=True):
            if judgement.stops(contrast(), region, one, analysis, looks, family):
                stopped += 1
                assert judgement.verdict(contrast(), one.result.estimate, p, equal, 0.05) != "undecided"
    assert stopped > 50


# How many seeds would do


DIFFERENCES = -1.0 + np.random.default_rng(4).normal(0, 1, (10, 3))


def test_more_seeds_of_folds_and_of_origins() -> None:
    folds = np.arange(10)
    how = {"rope": 0.1, "level": 0.01}
    of_folds = judgement.more_seeds("clusters", "test", folds, 10, DIFFERENCES, **how)
    assert of_folds == statistics.more_seeds(DIFFERENCES, 1 / 9, 0.1, 0.01) is not None
    means = DIFFERENCES.reshape(5, 2, 3).mean(axis=1)
    of_origins = judgement.more_seeds("checkerboards", "test", folds // 2, 2, DIFFERENCES, **how)
    assert of_origins == statistics.more_seeds(means, 1.0, 0.1, 0.01) is not None
    assert of_origins != of_folds
    for kind in ("random", "spatial"):
        assert judgement.more_seeds(kind, "test", folds, 10, DIFFERENCES, **how) is None


def test_an_origin_with_fewer_folds_than_others_is_not_counted() -> None:
    assert judgement.complete_units(np.array([0, 0, 1, 2, 3, 4])) == 1
    assert judgement.complete_units(np.arange(10) // 2) == 5
    assert judgement.complete_units(np.empty(0, int)) == 0
    assert not judgement.may_be_tested("checkerboards", "test", np.array([0, 0, 1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("kind", "part", "expected"),
    [("rolling", "test", 0), ("checkerboards", "test", 1), ("blocks", "test", 0.25), ("blocks", "wr", 1)],
)
def test_predictions_have_the_variance_of_the_test(kind: str, part: str, expected: float) -> None:
    """The effect of more seeds is computed with the variance factor of the test that decides."""
    assert judgement.shared_variance(kind, part, 5) == pytest.approx(expected)
    _, shared = judgement.by_unit(kind, part, np.arange(6), 5, np.zeros((6, 2)))
    assert shared == pytest.approx(expected)
    values = np.array([-0.4, -0.3, -0.5, -0.2, -0.6, -0.4])
    sample = estimands.Sample(kind=kind, unit=np.arange(6), parts=5, values=values, metric="rmse")
    test, *_ = estimands.compare(sample, part).tests
    assert test.se == pytest.approx(np.std(values, ddof=1) * np.sqrt(1 / 6 + expected))
