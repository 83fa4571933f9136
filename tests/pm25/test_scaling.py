"""The target's scale is what it says, and goes back to ug/m3."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.scaling import Scaler, TargetScale

targets = st.lists(st.floats(-5, 900, width=32), min_size=1, max_size=30).map(
    lambda values: np.array(values, np.float32)
)


def test_standard_by_hand():
    scale = TargetScale.fit_standard(np.array([2, 4, 4, 4, 5, 5, 7, 9], np.float32), log1p=False)
    assert (scale.shift, scale.scale) == (5, 2)
    assert scale.transform(np.array([1, 5, 9])).tolist() == [-2, 0, 2]
    assert scale.inverse_transform(np.array([-2, 0, 2])).tolist() == [1, 5, 9]


def test_log1p_by_hand():
    # log(1 + e - 1) = 1 and log(1 + e^3 - 1) = 3: mean 2, deviation 1.
    scale = TargetScale.fit_standard(np.expm1([1.0, 3.0]), log1p=True)
    assert (scale.shift, scale.scale) == pytest.approx((2, 1))
    np.testing.assert_allclose(scale.transform(np.expm1([1.0, 2.0, 5.0])), [-1, 0, 3])
    np.testing.assert_allclose(scale.inverse_transform(np.array([-1.0, 0.0, 3.0])), np.expm1([1.0, 2.0, 5.0]))


def test_log1p_of_a_negative_value_is_minus_that_of_its_size():
    scale = TargetScale(0.0, 1.0, log1p=True)
    values = np.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(scale.transform(values), np.log([1 / 4, 1 / 1.5, 1, 1.5, 4]))
    np.testing.assert_allclose(scale.inverse_transform(scale.transform(values)), values)


def test_largest_by_hand():
    scale = TargetScale.fit_maximum(np.array([3, 50, 12], np.float32))
    assert scale == TargetScale(0.0, 50.0)
    assert scale.transform(np.array([0, 25, 50])).tolist() == [0, 0.5, 1]
    assert scale.inverse_transform(np.array([0, 0.5, 2])).tolist() == [0, 25, 100]


def test_ranges_by_hand():
    values = np.array([[2, 7, np.nan, -1], [99, 7, np.nan, np.nan], [6, 7, np.nan, 3]], np.float32)
    scaler = Scaler.fit_range(values, np.array([1, 0, 5]))  # the second row does not count
    # 2 to 6 becomes -1 to 1; what is constant becomes -1, as in scikit-learn; a missing value becomes 0.
    expected = [[-1, -1, 0, -1], [47.5, -1, 0, 0], [1, -1, 0, 1]]
    np.testing.assert_allclose(scaler.transform(values), expected, rtol=1e-6)
    assert np.isnan(scaler.mean).tolist() == [False, False, True, False]


@given(st.floats(-5, 900, width=32), st.integers(1, 50), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_target_without_deviation_keeps_its_unit(value, n, log1p):
    train = np.full(n, value, np.float32)
    scale = TargetScale.fit_standard(train, log1p)
    assert scale.scale == 1
    assert not scale.transform(train).any()
    np.testing.assert_allclose(scale.inverse_transform(np.zeros(n, np.float32)), train, rtol=1e-5, atol=1e-30)


@given(targets, targets, st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_scale_goes_back(train, values, log1p):
    scale = TargetScale.fit_standard(train, log1p)
    there = scale.transform(values.astype(np.float64))
    assert np.isfinite(there).all()
    # As exact as the shift and the largest value leave room for.
    np.testing.assert_allclose(scale.inverse_transform(there), values, rtol=1e-9, atol=1e-9)


@given(targets, st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_scale_keeps_the_order(train, log1p):
    scale = TargetScale.fit_standard(train, log1p)
    there = scale.transform(np.sort(train).astype(np.float64))
    assert (np.diff(there) >= 0).all()


@given(targets.filter(lambda values: np.ptp(values) > 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_training_targets_have_mean_0_and_deviation_1(train, log1p):
    scaled = TargetScale.fit_standard(train, log1p).transform(train.astype(np.float64))
    assert scaled.mean() == pytest.approx(0, abs=1e-4)
    assert scaled.std() == pytest.approx(1, rel=1e-4)


def test_float32_stays_float32():
    # The network is fed float32; a scale that made float64 of it would move every number.
    train = np.array([1, 2, 4], np.float32)
    for scale in (TargetScale.fit_standard(train, log1p) for log1p in (False, True)):
        assert scale.transform(train).dtype == np.float32
        assert scale.inverse_transform(train).dtype == np.float32
