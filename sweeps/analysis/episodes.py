"""The episode that moves a comparison most: a place and a few weeks, such as one fire season's smoke.

A squared error is large where PM2.5 is. So one episode may decide a difference of RMSE that is said to be
about a year and a continent. Monitors are put into the squares of a grid, and days into windows. An
*episode* is the samples of one square in one window. Where days are the unit of the test, it is the samples
of all monitors in one week. The most influential episode is the one without which the difference moves most.

A test without it says what the result depends on, and decides nothing: the episode is chosen for its effect.
In 260 simulated null studies of a spatial split (400 km, light tails; `sweeps.bench.calibration`) the test
rejected 4 %, and 8 % after the square that moved the difference most was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pm25.geo import CONUS
from sweeps.analysis import statistics
from sweeps.analysis.units import Array

DEGREES = 8.0
"""Edge of a square in degrees. The grid starts at the south-west corner of the CONUS box."""
DAYS = 14
"""Length of a window; smoke and stagnant air last for up to two weeks."""
WEEK = 7
"""Length of a window of all monitors."""
_MONDAY = 3
"""Days from the Monday before 1970-01-01 to that day; every window starts on a Monday."""


class Episode(NamedTuple):
    """Samples of one window, in one square of the grid or everywhere."""

    days: int
    """Length of the window: `DAYS` in a square, `WEEK` everywhere."""
    window: int
    """Number of the window, counted from the Monday before 1970-01-01."""
    column: int
    """Number of the square from west to east; 0 everywhere."""
    row: int
    """Number of the square from south to north; 0 everywhere."""

    @property
    def first(self) -> np.datetime64:
        """First day of the window, a Monday."""
        return np.datetime64(self.window * self.days - _MONDAY, "D")

    @property
    def label(self) -> str:
        """Dates and place, such as '2021-07-12 to 2021-07-25, 41 to 49 °N, 117 to 125 °W'."""
        dates = f"{self.first} to {self.first + self.days - 1}"
        if self.days == WEEK:
            return f"{dates}, all monitors"
        west, south = CONUS[0] + self.column * DEGREES, CONUS[1] + self.row * DEGREES
        return f"{dates}, {_range(south, 'N', 'S')}, {_range(west, 'E', 'W')}"


def of_samples(day: np.ndarray, lat: np.ndarray, lon: np.ndarray, *, everywhere: bool) -> np.ndarray:
    """Number the episode of each sample: window, column and row (n, 3), the last three fields of `Episode`.

    `day (n,)` is in days since 1970, `lat` and `lon` (n,) in degrees. With `everywhere`, an episode is a week
    of all monitors.
    """
    found = np.zeros((len(day), 3), np.int64)
    found[:, 0] = (day + _MONDAY) // (WEEK if everywhere else DAYS)
    if not everywhere:
        found[:, 1] = np.floor((lon - CONUS[0]) / DEGREES)
        found[:, 2] = np.floor((lat - CONUS[1]) / DEGREES)
    return found


class CellEpisodes(NamedTuple):
    """Sums over the predictions of one cell by episode."""

    episode: np.ndarray
    """(m, 3), as `of_samples` numbers them, each once."""
    totals: Array
    """(m, 6), with the columns of `statistics.score`."""


class Pair(NamedTuple):
    """Cells of the two arms on one fold and seed."""

    fold: int
    arm: CellEpisodes
    other: CellEpisodes


def most_influential(pairs: Sequence[Pair], metric: str, *, pooled: bool, everywhere: bool) -> Episode | None:
    """Find the episode without which the difference of two arms moves most.

    The difference is that of the pooled scores (`pooled`), or the mean over folds of the differences of
    their cells, averaged over seeds. A fold that has no samples beside the episode does not count without it.
    The RMSE by monitor (site_rmse) is taken for the RMSE here. The result is None if no episode can be left
    out; of equal episodes, the first in time is taken.
    """
    metric = "rmse" if metric == "site_rmse" else metric
    if not pairs:
        return None
    episodes = np.unique(
        np.concatenate([side.episode for pair in pairs for side in (pair.arm, pair.other)]), axis=0
    )
    if pooled:
        arm, other = (
            np.sum([_last_with_all(side, episodes) for side in sides], axis=0)
            for sides in ([pair.arm for pair in pairs], [pair.other for pair in pairs])
        )
        values = _difference(arm, other, metric)
    else:
        folds = sorted({pair.fold for pair in pairs})
        sums, counts = np.zeros((2, len(folds), len(episodes) + 1))
        for pair in pairs:
            arm, other = (_last_with_all(side, episodes) for side in (pair.arm, pair.other))
            value = _difference(arm, other, metric)
            at = folds.index(pair.fold)
            seen = np.isfinite(value)
            sums[at] += np.where(seen, value, 0)
            counts[at] += seen
        with np.errstate(invalid="ignore", divide="ignore"):  # folds without samples
            means = sums / counts
            seen = counts > 0
            values = np.where(seen, means, 0).sum(axis=0) / seen.sum(axis=0)
    moved = np.abs(values[:-1] - values[-1])
    if not np.isfinite(moved).any():
        return None
    place = int(np.nanargmax(moved))
    return Episode(WEEK if everywhere else DAYS, *map(int, episodes[place]))


def inside(episode: Episode, day: np.ndarray, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Return True for each sample (n,) of an episode."""
    numbers = of_samples(day, lat, lon, everywhere=episode.days == WEEK)
    return np.asarray((numbers == np.array(episode[1:])).all(axis=1))


def _last_with_all(cell: CellEpisodes, episodes: np.ndarray) -> Array:
    """Add up a cell without each of `episodes (e, 3)`, and last with all: (e + 1, 6)."""
    found = np.repeat(cell.totals.sum(axis=0)[None], len(episodes) + 1, axis=0)
    position = {tuple(episode): i for i, episode in enumerate(episodes.tolist())}
    places = [position[tuple(episode)] for episode in cell.episode.tolist()]
    found[places] -= cell.totals
    found[found[:, statistics.N] < 0.5] = 0  # rounding may leave a trace of the errors
    return found


def _difference(arm: Array, other: Array, metric: str) -> Array:
    return np.asarray(statistics.score(arm, metric) - statistics.score(other, metric))


def _range(low: float, positive: str, negative: str) -> str:
    """Write the edges of a square, rounded to degrees: '41 to 49 °N'."""
    edges = sorted(round(abs(edge)) for edge in (low, low + DEGREES))
    if low < 0 < low + DEGREES:
        return f"{round(low)} to {round(low + DEGREES)} °{positive}"
    return f"{edges[0]} to {edges[1]} °{positive if low >= 0 else negative}"
