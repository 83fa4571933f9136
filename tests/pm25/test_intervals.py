"""Bounds of prediction intervals: hand-computed ones, and the radius by distance to the training monitors."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pm25.geo import great_circle_km
from pm25.intervals import FILE, Calibration, Radius, spread
from tests.errors import refuses

NEAR = Radius("random", "WR", 0.0, 0.4, 20)
MIDDLE = Radius("spatial", "WR", 50.0, 0.5, 20)
FAR = Radius("checkerboards-16", "OoR", 600.0, 0.75, 18)
MADE = Calibration(0.9, -4.5, ((40.0, -100.0), (41.0, -100.0)), (NEAR, MIDDLE, FAR))


def test_the_spread_grows_with_the_prediction() -> None:
    assert spread([0.0, 12.0, -12.0]).tolist() == [5.0, 13.0, 13.0]


def test_bounds_are_the_prediction_and_a_multiple_of_its_spread() -> None:
    lower, upper = MADE.bounds([12.0], [40.0], [-100.0])
    assert lower.tolist() == pytest.approx([12 - 0.4 * 13])
    assert upper.tolist() == pytest.approx([12 + 0.4 * 13])


def test_a_place_takes_the_radius_of_the_smallest_reach_that_includes_it() -> None:
    """A degree of latitude is 111.2 km: the monitor itself, 11 m, 44 km, 56 km, 556 km and 2,224 km away."""
    lat = np.array([40.0, 39.9999, 39.6, 39.5, 35.0, 20.0])
    km = great_circle_km(lat, -100.0, 40.0, -100.0)
    assert km.round(1).tolist() == [0, 0, 44.5, 55.6, 556.0, 2223.9]
    lower, upper = MADE.bounds(np.full(6, 12.0), lat, np.full(6, -100.0))
    radii = (upper - lower) / 2 / 13
    assert radii[:5].tolist() == pytest.approx([0.4, 0.4, 0.5, 0.75, 0.75])
    assert (upper[5] - 12) / 13 == pytest.approx(0.75), "beyond all reaches"


def test_many_places_are_those_one_by_one() -> None:
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(34, 46, 5000).round(1), rng.uniform(-106, -94, 5000).round(1)
    prediction = rng.gamma(4, 3, 5000)
    lower, upper = MADE.bounds(prediction, lat, lon)
    for at in range(0, 5000, 500):
        alone = MADE.bounds(prediction[at : at + 1], lat[at : at + 1], lon[at : at + 1])
        assert (lower[at], upper[at]) == (alone[0][0], alone[1][0])


def test_a_lower_bound_is_never_below_the_lowest_measured_value() -> None:
    lower, upper = MADE.bounds([0.0, 1.0, -20.0], [35.0] * 3, [-100.0] * 3)
    assert lower.tolist() == pytest.approx([-3.75, 1 - 0.75 * math.sqrt(26), -4.5])
    lower, upper = Calibration(0.9, 0.0, ((40.0, -100.0),), (FAR,)).bounds(
        [1.0, -2.0], [35.0] * 2, [-100.0] * 2
    )
    assert lower.tolist() == [0.0, 0.0]
    assert (upper >= lower).all()


def test_no_places_no_bounds() -> None:
    lower, upper = MADE.bounds([], [], [])
    assert (lower.shape, upper.shape) == ((0,), (0,))


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Calibration.read(tmp_path) is None
    MADE.write(tmp_path)
    assert Calibration.read(tmp_path) == MADE
    assert json.loads(MADE.to_json())["radii"][1]["reach_km"] == 50
    assert Calibration.from_json(MADE.to_json()).to_json() == MADE.to_json()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:50],
        lambda text: "{}",
        lambda text: text.replace('"level"', '"levels"'),
        lambda text: text.replace('"reach_km": 50', '"reach_km": NaN'),
        lambda text: text.replace('"reach_km": 50', '"reach_km": "far"'),
    ],
)
def test_a_damaged_calibration_is_one_line(change: Callable[[str], str], tmp_path: Path) -> None:
    text = change(MADE.to_json())
    assert text != MADE.to_json()
    (tmp_path / FILE).write_text(text)
    with refuses(FILE, "", "sweep sync"):
        Calibration.read(tmp_path)


def test_without_radii_there_are_no_bounds() -> None:
    with pytest.raises(ValueError, match="too few"):
        Calibration(0.9, 0.0, (), (), "too few").bounds([1.0], [40.0], [-100.0])
