"""Interpolated covariates are means of the nearest monitors with a value, weighted by 1 / distance^2."""

import numpy as np
import pytest

from pm25.geo import great_circle_km
from pm25.grids import monitors
from pm25.grids.monitors import FAR_KM, NEIGHBOURS, MonitorGrid
from pm25.panel import Panel
from tests import worlds
from tests.errors import refuses


def panel(sites: int, seed: int = 0) -> Panel:
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(33, 44, sites), rng.uniform(-110, -85, sites)
    return worlds.panel(rng.normal(size=(sites, 6, 2)), np.ones((sites, 6)), lat, lon)


def by_hand(made: Panel, lat: float, lon: float, day: int, channel: int) -> float:
    km = great_circle_km(lat, lon, made.lat, made.lon)
    values = made.features[:, day, channel]
    near = [site for site in np.argsort(km) if np.isfinite(values[site])][:NEIGHBOURS]
    weight = 1 / km[near] ** 2
    return float((weight * values[near]).sum() / weight.sum())


def test_the_mean_by_hand() -> None:
    made = panel(30)
    made.features[::3, 2, 1] = np.nan
    grid = MonitorGrid(made, 2.0, ("b", "a"), needs="arm none")
    first, last = made.dates[1], made.dates[3]
    block = grid.read(first, last)
    assert block.truth is None
    assert block.features.shape == (len(grid.lat), 3, 2)
    for cell in (0, 50, len(grid.lat) - 1):
        for day in range(3):
            wanted = [by_hand(made, grid.lat[cell], grid.lon[cell], day + 1, at) for at in (1, 0)]
            np.testing.assert_allclose(block.features[cell, day], wanted, rtol=1e-5)


def test_a_channel_without_values_stays_missing() -> None:
    made = panel(10)
    made.features[:, 2, 0] = np.nan
    block = MonitorGrid(made, 5.0, ("a", "b"), needs="arm none").read(made.dates[2], made.dates[2])
    assert np.isnan(block.features[:, 0, 0]).all()
    assert np.isfinite(block.features[:, 0, 1]).all()


def test_cells_far_from_every_monitor_are_marked() -> None:
    made = panel(12)
    grid = MonitorGrid(made, 1.0, ("a",), needs="arm none")
    km = great_circle_km(grid.lat[:, None], grid.lon[:, None], made.lat, made.lon).min(axis=1)
    assert grid.far is not None
    np.testing.assert_array_equal(grid.far, km > FAR_KM)
    assert 0 < grid.far.sum() < len(km)
    assert "interpolated from monitors" in grid.origin


def test_what_cannot_be_interpolated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = panel(12)
    with refuses("toy", "wind", "arm none needs it", "--covariates"):
        MonitorGrid(made, 1.0, ("a", "wind"), needs="arm none")
    monkeypatch.setattr(monitors, "FAR_KM", 0.0)
    with refuses("toy", "lat, lon", "--covariates"):
        MonitorGrid(made, 1.0, ("a",), needs="arm none")
