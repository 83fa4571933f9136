"""Points are numbered by place as a comparison of all pairs numbers them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.geo import distance_text, is_same_place, place_codes, place_text

STEPS = st.integers(-6, 6).map(lambda step: step * 0.4e-4)
POINTS = st.lists(
    st.tuples(st.sampled_from([0.0, 34.5, 34.50031]), st.sampled_from([-179.9999, 0.0, 180.0]), STEPS, STEPS),
    min_size=1,
    max_size=12,
)


def by_pairs(lat: np.ndarray, lon: np.ndarray) -> list[set[int]]:
    """Sets of points that steps of less than 1e-4 degrees connect, from every pair."""
    parts = [{i} for i in range(len(lat))]
    for i, j in itertools.combinations(range(len(lat)), 2):
        east = abs(lon[i] - lon[j]) % 360
        if max(abs(lat[i] - lat[j]), min(east, 360 - east)) < 0.99999e-4:
            one, two = (next(part for part in parts if k in part) for k in (i, j))
            if one is not two:
                parts.remove(two)
                one |= two
    return parts


@given(POINTS)
@settings(max_examples=200, deadline=None)
def test_places_are_those_of_all_pairs(points):
    lat = np.array([p[0] + p[2] for p in points])
    lon = np.array([(p[1] + p[3] + 180) % 360 - 180 for p in points])
    code = place_codes(lat, lon)
    assert sorted(set(code.tolist())) == [*range(code.max() + 1)]
    expected = by_pairs(lat, lon)
    assert len(expected) == code.max() + 1
    for part in expected:
        assert len({code[i] for i in part}) == 1


def test_a_place_of_a_table_without_sites():
    assert place_codes(np.empty(0), np.empty(0)).tolist() == []


@pytest.mark.parametrize(
    ("north", "east", "same"),
    [(1e-7, 0, True), (1e-4, -1e-4, True), (1.1e-4, 0, False), (0, 1.1e-4, False), (0, 360, True)],
)
def test_rounding_is_four_decimals(north, east, same):
    assert bool(is_same_place(36.5, -119.5, 36.5 + north, -119.5 + east)) is same


@pytest.mark.parametrize(
    ("km", "text"),
    [(0, "0 m"), (1e-6, "less than 1 cm"), (1.11e-5, "1.11 cm"), (0.0556, "55.6 m"), (12.34, "12.3 km")],
)
def test_a_distance_has_its_unit(km, text):
    assert distance_text(km) == text


def test_a_place_shows_five_decimals():
    assert place_text(36.5, -119.123456) == "(36.5, -119.12346)"
    assert place_text(-1e-9, 10) == "(0, 10)"
