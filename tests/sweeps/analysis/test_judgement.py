"""Pairs, region of practical equivalence and units of one contrast, by hand."""

import math

import numpy as np
import pytest

from sweeps.analysis import judgement, units
from sweeps.spec.claims import NONE, Analysis, Contrast
from sweeps.spec.design import Arm

ARM = np.array([[3.0, 5.0], [7.0, math.nan], [math.nan, 9.0]])
OTHER = np.array([[2.0, 2.0], [4.0, 8.0], [6.0, math.nan]])


def scores(metric: str = "rmse", part: str = "test") -> judgement.PairedScores:
    contrast = Contrast(Arm("latlon", None), NONE, "random", part, None, metric)
    return judgement.paired_scores(contrast, ARM, OTHER, Analysis(rope=0.1))


def test_only_pairs_count() -> None:
    found = scores()
    np.testing.assert_array_equal(found.differences, [[1, 3], [3, math.nan], [math.nan, math.nan]])
    assert found.units.tolist() == [2.0, 3.0]
    assert (found.mean_arm, found.mean_other) == (5.5, 3.0)  # (4 + 7) / 2 and (2 + 4) / 2


@pytest.mark.parametrize(
    ("metric", "part", "rope"),
    [
        ("rmse", "test", 0.3),
        ("mae", "wr", 0.3),
        ("r2", "test", 0.1),
        ("mbe", "test", math.nan),
        ("rmse", "gap", math.nan),
    ],
)
def test_the_region_is_a_share_of_an_error_and_absolute_for_r2(metric: str, part: str, rope: float) -> None:
    assert scores(metric, part).rope == pytest.approx(rope, nan_ok=True)


def test_each_look_needs_enough_units() -> None:
    assert not judgement.too_few(3, Analysis(), looks=9)
    assert judgement.too_few(2, Analysis(), looks=1)
    ranks = Analysis(test="wilcoxon")
    assert [judgement.too_few(n, ranks, looks=1) for n in (5, 6)] == [True, False]
    assert [judgement.too_few(n, ranks, looks=3) for n in (6, 7)] == [True, False]


def test_overlap_is_test_over_training_samples() -> None:
    assert units.overlap(5) == pytest.approx(0.2 / 0.8)
    assert units.overlap(1) == 1
