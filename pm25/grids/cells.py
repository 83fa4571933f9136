"""Cells of a map: their places, their order in a raster, and their covariates by day."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pm25.errors import InputError
from pm25.sources.synthetic import inside_outline

MOST_CELLS = 2_000_000
"""Most cells of a map: CONUS has 1.3 million of 0.025 degrees, the size of the finest weather grids."""

MOST_BLOCK_DAYS = 32
"""Most days that are predicted from one block, or written together."""

SPARSE = 1000
"""Most cells of a raster for each place that is given; with more, the places are on no regular grid."""

_TOLERANCE = 1e-3
"""Share of the spacing by which a coordinate may differ from that of a regular grid, as 32-bit numbers do."""


@dataclass(frozen=True)
class Block:
    """Covariates of all cells on some days in a row."""

    features: np.ndarray
    """(cells, days, channels) float32, NaN where missing."""
    truth: np.ndarray | None
    """(cells, days) float32, the true PM2.5 in ug/m3, where a synthetic world knows it."""


class Covariates(Protocol):
    """Covariates of cells, which are read a few days at a time."""

    name: str
    """Name of the data in messages, such as a path."""
    origin: str
    """Sentence about where the covariates are from, for titles and metadata."""
    lat: np.ndarray
    """(cells,) float64, degrees north of the centres."""
    lon: np.ndarray
    """(cells,) float64, degrees east."""
    days: np.ndarray
    """Days with covariates, datetime64[D], ascending."""
    channels: tuple[str, ...]
    """Names of the channels, in the order of `Block.features`."""
    far: np.ndarray | None
    """True for cells whose covariates are not to be believed; (cells,), or None without such cells."""

    def read(self, first: np.datetime64, last: np.datetime64) -> Block:
        """Read the days from `first` to `last`."""


@dataclass(frozen=True)
class RegularGrid:
    """Rows and columns of cells on a regular grid of degrees. Cells may be missing, such as those at sea."""

    lat: np.ndarray
    """(rows,) float64, degrees north of the centres, from north to south."""
    lon: np.ndarray
    """(columns,) float64, degrees east, from west to east."""
    row: np.ndarray
    """Row of each cell, (cells,)."""
    column: np.ndarray
    """Column of each cell, (cells,)."""
    step: tuple[float, float]
    """Height and width of a cell in degrees."""

    @classmethod
    def of(cls, lat: np.ndarray, lon: np.ndarray) -> "RegularGrid | None":
        """Find the grid of the centres `lat` and `lon` (cells,), or None if they are on no regular one."""
        rows, columns = _axis(lat), _axis(lon)
        if rows is None or columns is None:
            return None
        if len(rows[0]) * len(columns[0]) > min(8 * MOST_CELLS, max(SPARSE * len(lat), 10_000)):
            return None
        height, width = rows[1] or columns[1], columns[1] or rows[1]
        if not height:  # a single cell has no size
            return None
        down, right = len(rows[0]) - 1 - _nearest(lat, *rows), _nearest(lon, *columns)
        if len(np.unique(down * len(columns[0]) + right)) != len(lat):
            return None
        return cls(rows[0][::-1], columns[0], down, right, (height, width))

    def fill(self, values: np.ndarray, missing: float = np.nan) -> np.ndarray:
        """Arrange values (cells,) as (rows, columns), with `missing` where the grid has no cell."""
        found = np.full((len(self.lat), len(self.lon)), missing, values.dtype)
        found[self.row, self.column] = values
        return found


def conus_cells(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lat and lon (cells,) of the land cells of the contiguous US, by row from the south.

    The centres are at odd multiples of half the spacing, so that cells of 0.25 degrees divide those of 0.5.
    Raises InputError for a spacing with no cell, or with more than `MOST_CELLS`.
    """
    if (50 / degrees) * (130 / degrees) > 8 * MOST_CELLS:
        problem = f"cells of {degrees:g} degrees are more than {MOST_CELLS:,}"
        raise InputError("map", "--grid", problem, "give a larger spacing, such as 0.25")
    down, right = (
        (np.arange(np.floor(low / degrees), np.ceil(high / degrees)) + 0.5) * degrees
        for low, high in ((24, 50), (-126, -66))
    )
    lat, lon = (axis.ravel() for axis in np.meshgrid(down, right, indexing="ij"))
    parts = np.array_split(np.arange(len(lat)), len(lat) // 65_536 + 1)  # an array of cells x edges each
    inside = np.concatenate([inside_outline(lat[part], lon[part]) for part in parts])
    if not inside.any():
        problem = f"no cell of {degrees:g} degrees has its centre on land"
        raise InputError("map", "--grid", problem, "give a smaller spacing, such as 0.25")
    return lat[inside], lon[inside]


def refuse_days(covariates: Covariates, first: np.datetime64, last: np.datetime64, window: int) -> None:
    """Raise InputError unless every day of the windows that end on `first` to `last` has covariates."""
    begin = first - (window - 1)
    needed = np.arange(begin, last + 1)
    missing = np.setdiff1d(needed, covariates.days)
    if not len(missing):
        return
    has = f"the covariates have {covariates.days[0]} to {covariates.days[-1]}"
    problem = f"{first} needs the {window} days from {begin}, and {missing[0]} is missing; {has}"
    possible = _complete_days(covariates.days, window)
    fix = f"give covariates of {window} days in a row"
    if len(possible):
        fix = f"choose days from {possible[0]} to {possible[-1]}, or give covariates of more days"
    raise InputError(covariates.name, "date", problem, fix)


def _complete_days(days: np.ndarray, window: int) -> np.ndarray:
    """Days that end a window without a gap."""
    at = np.arange(window - 1, len(days))
    return days[at[days[at] - days[at - window + 1] == np.timedelta64(window - 1, "D")]]


def _axis(values: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Ascending centres and spacing of one axis, 0 for a single centre; None if it is not regular."""
    distinct = np.unique(np.round(values, 6))
    if len(distinct) == 1:
        return distinct, 0.0
    step = float(np.diff(distinct).min())
    places = (distinct - distinct[0]) / step
    # The smallest difference has the largest rounding error, so the spacing is that of the ends.
    count = round(float(places[-1]))
    step = float(distinct[-1] - distinct[0]) / count
    if count > MOST_CELLS or (np.abs((distinct - distinct[0]) / step - np.rint(places)) > _TOLERANCE).any():
        return None
    return distinct[0] + step * np.arange(count + 1), step


def _nearest(values: np.ndarray, centres: np.ndarray, step: float) -> np.ndarray:
    """Index of the centre of each value."""
    if not step:
        return np.zeros(len(values), np.int64)
    return np.rint((values - centres[0]) / step).astype(np.int64)
