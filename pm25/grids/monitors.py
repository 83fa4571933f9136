"""Covariates on a grid, interpolated from those of the monitors of a panel."""

from collections.abc import Sequence

import numpy as np

from pm25.errors import InputError
from pm25.geo import EARTH_KM, great_circle_km
from pm25.grids.cells import Block, conus_cells
from pm25.panel import Panel

NEIGHBOURS = 8
"""Nearest monitors with a value, whose mean a cell gets."""

SEARCHED = 24
"""Nearest monitors among which those with a value are looked for."""

FAR_KM = 150.0
"""Distance to the nearest monitor beyond which covariates are not believed: half of that at which `sweep data
aqs` still takes the weather of a station."""


class MonitorGrid:
    """Covariates of cells as means over the nearest monitors, weighted by 1 / distance^2 on each day.

    The cells are those of `conus_cells`. A cell that is more than `FAR_KM` from every monitor is `far`.
    Raises InputError if no cell is near a monitor, and for a channel that the panel lacks.
    """

    origin = "covariates interpolated from monitors"

    def __init__(self, panel: Panel, degrees: float, channels: Sequence[str], *, needs: str) -> None:
        missing = [name for name in channels if name not in panel.channels]
        if missing:
            problem = f"{needs} needs it, and it is not a channel of the monitors"
            raise InputError(panel.name, missing[0], problem, "give a table of the grid with --covariates")
        self.name, self.channels, self._panel = panel.name, tuple(channels), panel
        self.lat, self.lon = conus_cells(degrees)
        self.days = panel.dates
        self._site, self._km = _nearest_sites(panel, self.lat, self.lon)
        far = self._km[:, 0] > FAR_KM
        self.far: np.ndarray | None = far
        if far.all():
            problem = f"no monitor is within {FAR_KM:g} km of a cell in the contiguous US"
            fix = "give a table of the grid with --covariates"
            raise InputError(panel.name, "lat, lon", problem, fix)

    def read(self, first: np.datetime64, last: np.datetime64) -> Block:
        """Interpolate the days from `first` to `last`."""
        at = (np.array([first, last], "datetime64[D]") - self._panel.dates[0]).astype(int)
        days = range(at[0], at[1] + 1)
        weight = 1 / np.maximum(self._km, 0.1) ** 2
        features = np.full((len(self.lat), len(days), len(self.channels)), np.nan, np.float32)
        for place, name in enumerate(self.channels):
            values = self._panel.features[:, :, self._panel.channels.index(name)]
            for index, day in enumerate(days):
                features[:, index, place] = _weighted_mean(values[self._site, day], weight)
        return Block(features, None)


def _weighted_mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean of the first `NEIGHBOURS` values (cells, SEARCHED) of each cell that are not NaN."""
    has = np.isfinite(values)
    used = np.where(has & (has.cumsum(axis=1) <= NEIGHBOURS), weight, 0)
    total = used.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a cell without a value stays NaN
        return np.asarray((used * np.nan_to_num(values)).sum(axis=1) / total)


def _nearest_sites(panel: Panel, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the nearest sites and their distances in km, both (cells, SEARCHED), the nearest first."""
    from scipy.spatial import cKDTree

    count = min(SEARCHED, len(panel.site_id))
    _, site = cKDTree(_sphere(panel.lat, panel.lon)).query(_sphere(lat, lon), k=[*range(1, count + 1)])
    km = great_circle_km(lat[:, None], lon[:, None], panel.lat[site], panel.lon[site])
    return np.asarray(site), km


def _sphere(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Places in km from the centre of the Earth, (n, 3)."""
    lat, lon = np.radians(lat), np.radians(lon)
    along = np.cos(lat)
    return EARTH_KM * np.stack([along * np.cos(lon), along * np.sin(lon), np.sin(lat)], axis=1)
