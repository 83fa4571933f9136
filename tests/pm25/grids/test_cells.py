"""Cells are found on their regular grid, and days without a complete window are refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pm25.grids import cells
from pm25.grids.cells import RegularGrid, conus_cells, refuse_days
from pm25.sources.synthetic import inside_outline
from tests.errors import refuses


def test_a_grid_with_holes_by_hand() -> None:
    """Three cells on two rows and three columns, the middle column without any."""
    grid = RegularGrid.of(np.array([40.25, 39.75, 40.25]), np.array([-99.5, -98.5, -98.5]))
    assert grid is not None
    assert grid.lat.tolist() == [40.25, 39.75]
    assert grid.lon.tolist() == [-99.5, -98.5]
    assert (grid.row.tolist(), grid.column.tolist()) == ([0, 1, 0], [0, 1, 1])
    assert grid.step == (0.5, 1.0)
    filled = grid.fill(np.array([1.0, 2.0, 3.0], np.float32))
    np.testing.assert_array_equal(filled, [[1, 3], [np.nan, 2]])


def test_a_missing_column_keeps_its_place() -> None:
    lon = np.array([-100.0, -99.0, -97.0, -96.0])
    grid = RegularGrid.of(np.array([40.0, 41.0, 40.0, 41.0]), lon)
    assert grid is not None
    assert grid.lon.tolist() == [-100, -99, -98, -97, -96]
    assert grid.column.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("step", [0.04, 0.1, 1 / 3, 0.25])
def test_coordinates_of_32_bits_are_regular(step: float) -> None:
    lat, lon = (axis.ravel() for axis in np.meshgrid(25 + step * np.arange(80), -124 + step * np.arange(200)))
    rounded = lat.astype(np.float32).astype(np.float64), lon.astype(np.float32).astype(np.float64)
    grid = RegularGrid.of(*rounded)
    assert grid is not None
    assert grid.step == pytest.approx((step, step), rel=1e-4)
    np.testing.assert_allclose(grid.fill(lat)[:, 0], grid.lat, atol=1e-5)
    np.testing.assert_allclose(grid.fill(lon)[0], grid.lon, atol=2e-5)


def test_places_that_are_no_grid() -> None:
    rng = np.random.default_rng(0)
    assert RegularGrid.of(rng.uniform(25, 49, 50), rng.uniform(-124, -67, 50)) is None
    assert RegularGrid.of(np.array([40.0, 41.0, 42.5]), np.array([-99.0, -98.0, -97.0])) is None
    assert RegularGrid.of(np.array([40.0]), np.array([-99.0])) is None  # it has no size
    assert RegularGrid.of(np.array([40.0, 40.0]), np.array([-99.0, -98.0])) is not None
    # Places with four decimals are on a grid of 1e-4 degrees, whose raster would not fit the memory.
    for lat, lon in (
        ([25.0, 25.0001, 49.0], [-100.0, -99.9999, -80.0]),
        (np.round(rng.uniform(25, 49, 194), 4), np.round(rng.uniform(-124, -67, 194), 4)),
        (np.round(rng.uniform(25, 49, 50), 1), np.round(rng.uniform(-124, -67, 50), 1)),
    ):
        assert RegularGrid.of(np.array(lat), np.array(lon)) is None


def test_cells_of_the_contiguous_us() -> None:
    lat, lon = conus_cells(0.25)
    assert 12_000 < len(lat) < 14_000
    assert inside_outline(lat, lon).all()
    assert (np.round(lat / 0.125) % 2 == 1).all()
    np.testing.assert_array_equal(lat / 0.125, np.round(lat / 0.125))
    grid = RegularGrid.of(lat, lon)
    assert grid is not None
    assert grid.step == (0.25, 0.25)
    denver = (np.abs(lat - 39.74) < 0.125) & (np.abs(lon + 104.99) < 0.125)
    assert denver.sum() == 1
    with refuses("map", "--grid", "100 degrees"):
        conus_cells(100)
    with refuses("map", "--grid", "0.001 degrees", "0.25"):
        conus_cells(0.001)


def days_of(*spans: tuple[str, str]) -> Any:
    days = [np.arange(np.datetime64(first), np.datetime64(last) + 1) for first, last in spans]
    return SimpleNamespace(name="grid.parquet", days=np.concatenate(days))


def refused(days: Any, first: str, last: str | None = None) -> None:
    refuse_days(days, np.datetime64(first), np.datetime64(last or first), 21)


def test_every_window_has_all_its_days() -> None:
    january = days_of(("2021-01-01", "2021-01-31"))
    refused(january, "2021-01-21", "2021-01-31")
    with refuses("grid.parquet", "date", "2020-12-31", "2021-01-21 to 2021-01-31"):
        refused(january, "2021-01-20")
    with refuses("grid.parquet", "date", "2021-02-01"):
        refused(january, "2021-01-25", "2021-02-03")
    gap = days_of(("2021-01-01", "2021-01-21"), ("2021-01-23", "2021-03-01"))
    refused(gap, "2021-01-21")
    with refuses("grid.parquet", "date", "2021-01-22 is missing"):
        refused(gap, "2021-02-11")
    refused(gap, "2021-02-12")
    with refuses("grid.parquet", "date", "21 days in a row"):
        refused(days_of(("2021-01-01", "2021-01-05")), "2021-01-05")


def test_a_grid_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MOST_CELLS", 100)
    with refuses("map", "--grid"):
        conus_cells(0.25)
