"""Area of applicability: the published example of CAST, cases by hand, and properties of the index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.applicability import (
    Applicability,
    evenly_spaced,
    largest_inside,
    monitor_folds,
    predictor_weights,
    window_predictors,
)
from tests.errors import refuses

COOKFARM = np.array(
    [
        (788.19061, 0.2506899, 4.304258), (788.38135, 0.1754623, 3.863605),
        (790.52435, 0.2225785, 3.947488), (775.72290, 0.2099845, 5.395786),
        (796.76184, 0.2002646, 3.534822), (795.83704, 0.2180606, 3.815516),
        (792.73871, 0.3302236, 3.838657), (796.30054, 0.3375030, 4.417290),
        (804.95020, 0.3163681, 3.740800), (793.09698, 0.2128946, 3.293105),
        (797.79736, 0.1598898, 3.390661), (774.49786, 0.2569573, 5.844510),
        (811.68866, 0.4126095, 3.839960), (781.71045, 0.2592306, 4.274658),
        (785.73065, 0.2019661, 3.847711), (790.78021, 0.1565798, 3.643605),
        (795.53662, 0.2714276, 3.481275), (805.87317, 0.2969886, 4.373157),
        (810.93109, 0.2694210, 3.969839), (800.29333, 0.3104551, 3.711917),
        (813.02368, 0.3322543, 3.843758), (812.26093, 0.3070323, 4.019693),
        (779.64728, 0.1511362, 6.136501), (784.85376, 0.2610694, 4.244038),
        (790.16913, 0.1820816, 3.979469), (804.57269, 0.2588349, 3.689173),
        (809.85712, 0.3848178, 3.489996), (790.69897, 0.2521411, 3.650577),
        (798.28186, 0.1282165, 3.463331), (802.56970, 0.4045954, 3.788776),
    ]
)  # fmt: skip
"""DEM, NDRE.Sd and TWI at the first 30 sites of CAST's data set `cookfarm` (Gasch et al. 2015)."""

COOKFARM_DI = np.array(
    [
        0.09043580, 0.14046341, 0.16584582, 0.57617177, 0.26840303, 0.14353894, 0.19768329, 0.24022059,
        0.06832037, 0.29150668, 0.18471625, 0.57617177, 0.12344463, 0.09043580, 0.14353894, 0.26896008,
        0.22713731, 0.24022059, 0.20388725, 0.06832037, 0.23604264, 0.20388725, 0.91513568, 0.09558666,
        0.14046341, 0.16214832, 0.37107762, 0.16214832, 0.18471625, 0.12344463,
    ]
)  # fmt: skip
"""DI of the same samples with the importances of a random forest; tests/testthat/test-trainDI.R of CAST."""

LINE = np.array([[0.0], [2.0], [6.0]])
"""Distances 2, 4 and 6; their mean is 4."""


def test_the_published_threshold_of_cast() -> None:
    # test-aoa.R, "AOA works without a trained model": 0.52872, and column means in test-trainDI.R.
    assert COOKFARM.mean(axis=0).round(4).tolist() == [795.4426, 0.2577, 4.0278]
    area = Applicability.fit(COOKFARM)
    assert round(area.threshold, 5) == 0.52872
    # Other units, another order of predictors and of samples change nothing.
    other = Applicability.fit(COOKFARM[::-1, ::-1] * [1000, -1, 0.3048] + [273.15, 5, -7])
    assert other.threshold == pytest.approx(area.threshold)


def test_the_published_threshold_of_published_dissimilarities() -> None:
    assert round(largest_inside(COOKFARM_DI), 5) == 0.38986  # test-trainDI.R


def test_three_samples_by_hand() -> None:
    area = Applicability.fit(LINE)
    assert area.training == pytest.approx([0.5, 0.5, 1.0])
    assert area.threshold == pytest.approx(1.0)  # the maximum, less than 0.75 + 1.5 * 0.25
    new = np.array([[3.0], [9.0], [9.9], [10.1], [-3.9]])
    assert area.dissimilarity(new) == pytest.approx([0.25, 0.75, 0.975, 1.025, 0.975])
    assert area.inside(new).tolist() == [True, True, True, False, True]


def test_folds_keep_neighbours_of_the_same_fold_out_of_the_threshold() -> None:
    area = Applicability.fit(LINE, folds=np.array([7, 7, 9]))
    assert area.training == pytest.approx([1.5, 1.0, 1.0])
    assert area.threshold == pytest.approx(1.5)


def test_the_whisker_is_below_an_outlier() -> None:
    points = np.array([[0.0], [1], [2], [3], [4], [5], [6], [7], [100]])
    area = Applicability.fit(points)
    step = 36 / (84 + 772)  # 36 pairs: 84 between the first eight, 772 to the last one
    assert area.training == pytest.approx(np.array([1, 1, 1, 1, 1, 1, 1, 1, 93]) * step)
    assert area.threshold == pytest.approx(step)


def test_weights_stretch_the_space() -> None:
    square = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    # Weights 3 and 4: sides 3 and 4, diagonals 5, in the common unit of both predictors; mean 4.
    area = Applicability.fit(square, weights=np.array([3.0, 4.0]))
    assert area.dissimilarity(np.array([[2.0, 0], [0, 2]])) == pytest.approx([3 / 4, 4 / 4])
    ignored = Applicability.fit(square, weights=np.array([1.0, 0.0]))
    assert ignored.used.tolist() == [True, False]
    assert ignored.dissimilarity(np.array([[1.0, 50.0], [0, np.nan]])) == pytest.approx([0, 0])


def test_constant_predictors_are_left_out() -> None:
    constant = np.column_stack([LINE, np.full(3, 0.1)])
    area = Applicability.fit(constant)
    assert area.used.tolist() == [True, False]
    assert area.threshold == pytest.approx(1.0)
    with refuses(None, "weights"):
        Applicability.fit(np.ones((4, 2)))
    with refuses(None, "weights"):
        Applicability.fit(constant, weights=np.array([0.0, 1.0]))


def test_bad_input() -> None:
    with refuses(None, "predictors", 1):
        Applicability.fit(LINE[:1])
    with refuses(None, "predictors", (3,)):
        Applicability.fit(LINE[:, 0])
    with refuses(None, "predictors", "sample 1, predictor 0"):
        Applicability.fit(np.array([[0.0], [np.nan], [1]]))
    for weights in ([1.0, 1.0], [-1.0], [np.nan], [0.0]):
        with refuses(None, "weights"):
            Applicability.fit(LINE, weights=np.array(weights))
    for folds in ([1, 1, 1], [0, 1]):
        with refuses(None, "folds"):
            Applicability.fit(LINE, folds=np.array(folds))
    with refuses(None, "predictors", 2):
        Applicability.fit(LINE).dissimilarity(np.ones((5, 2)))


def test_a_missing_predictor_is_outside() -> None:
    area = Applicability.fit(LINE)
    new = np.array([[np.nan], [2.0], [np.inf]])
    assert np.isnan(area.dissimilarity(new)).tolist() == [True, False, True]
    assert area.inside(new).tolist() == [False, True, False]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 60), st.integers(1, 24))
def test_properties(seed: int, n: int, p: int) -> None:
    rng = np.random.default_rng(seed)
    points, new = rng.normal(size=(n, p)), 2 * rng.normal(size=(40, p))
    weights, folds = rng.uniform(0.1, 1, p), rng.permutation(np.arange(n) % 3)
    area = Applicability.fit(points, weights, folds)
    assert (area.dissimilarity(points) == 0).all()
    scaled = (points - points.mean(axis=0)) / points.std(axis=0, ddof=1) * weights
    pairs = np.linalg.norm(scaled[:, None] - scaled, axis=2)
    mean = pairs.sum() / (n * (n - 1))
    across = np.where(folds[:, None] == folds, np.inf, pairs).min(axis=1)
    assert area.training == pytest.approx(across / mean)
    # The dissimilarity knows no units: neither those of the predictors nor that of the weights.
    scale, shift = rng.uniform(0.01, 100, p) * rng.choice([-1, 1], p), rng.normal(size=p)
    other = Applicability.fit(points * scale + shift, weights * 17, folds)
    assert other.threshold == pytest.approx(area.threshold)
    assert other.dissimilarity(new * scale + shift) == pytest.approx(area.dissimilarity(new))
    # A sample of the same fold can only be nearer.
    assert (area.training >= Applicability.fit(points, weights).training - 1e-12).all()


def test_window_predictors() -> None:
    windows = np.array([[[1.0, 10], [3, np.nan]], [[5, 20], [np.nan, 40]]])  # (2 samples, 2 days, 2 channels)
    filled = window_predictors(windows, missing=np.array([7.0, 0.0]), place=np.array([[40, -100], [41, -90]]))
    assert filled.tolist() == [[3, 0, 2, 5, 40, -100], [7, 40, 6, 30, 41, -90]]
    kept = window_predictors(windows)
    assert kept.shape == (2, 4)
    assert np.isnan(kept).tolist() == [[False, True, False, True], [True, False, True, False]]


def test_predictor_weights() -> None:
    importance = {"wind": 0.5, "aod": -0.1, "embedding": 2.0}
    assert predictor_weights(["aod", "wind"], importance, with_place=True).tolist() == [0, 0.5, 0, 0.5, 2, 2]
    assert predictor_weights(["wind"], importance, with_place=False).tolist() == [0.5, 0.5]
    with refuses(None, "weights", "smoke, place"):
        predictor_weights(["wind", "smoke"], {"wind": 1.0}, with_place=True)


def test_monitors_stay_together() -> None:
    site = np.repeat(np.arange(23), 4)
    fold = monitor_folds(site, seed=3).reshape(23, 4)
    assert (fold == fold[:, :1]).all()
    assert sorted(np.bincount(fold[:, 0])) == [4, 4, 5, 5, 5]
    assert (monitor_folds(site, seed=3).reshape(23, 4) == fold).all()


def test_evenly_spaced() -> None:
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    assert evenly_spaced(11, 3).tolist() == [0, 5, 10]
