"""Scores of test samples, counted by fold and region, from which prediction intervals are calibrated.

Scores are counted in bins, each 2.3 % wide, so that a study's predictions need not be kept in memory.
"""

from __future__ import annotations

import math

import numpy as np

from pm25.geo import CONUS
from pm25.intervals import spread
from pm25.metrics import EXCEEDANCE_UGM3
from sweeps.analysis.units import Array

EDGES = np.geomspace(0.01, 20, 341)
"""Upper edges of the bins of scores; a last bin without an edge has the larger scores."""

_SLACK = 1e-9
"""Rounding error of the number of a bin; a score on an edge is in the bin below it."""


class HeldOutErrors:
    """Scores of test samples, counted by fold and region; they add up over seeds.

    A region is a square of `degrees`, on the grid that starts at the south-west corner of the CONUS box.
    """

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees
        self._counts: dict[tuple[int, int, int], np.ndarray] = {}
        self._spread: dict[tuple[int, int, int], float] = {}

    def add(self, fold: int, lat: Array, lon: Array, truth: Array, prediction: Array) -> None:
        """Count the samples (n,) of one fold, in degrees and ug/m3; NaN counts as an infinite score."""
        if not len(lat):
            return
        row = np.floor((lat - CONUS[1]) / self.degrees).astype(np.int64)
        column = np.floor((lon - CONUS[0]) / self.degrees).astype(np.int64)
        south, west = int(row.min()), int(column.min())
        across = int(column.max()) - west + 1
        square = (row - south) * across + column - west
        scale = spread(np.where(np.isfinite(prediction), prediction, 0))
        with np.errstate(invalid="ignore"):
            bin_ = _bins(np.abs(prediction - truth) / scale)
        high = truth >= EXCEEDANCE_UGM3
        size, bins = int(square.max()) + 1, len(EDGES) + 1
        place = square * bins + bin_
        counts = np.stack(
            [np.bincount(one, minlength=size * bins).reshape(size, bins) for one in (place, place[high])],
            axis=1,
        )
        scales = np.bincount(square, scale, minlength=size)
        for number in np.flatnonzero(counts[:, 0].sum(axis=1)).tolist():
            key = fold, south + number // across, west + number % across
            if key in self._counts:
                self._counts[key] += counts[number].astype(np.uint32)
                self._spread[key] += float(scales[number])
            else:
                self._counts[key] = counts[number].astype(np.uint32)
                self._spread[key] = float(scales[number])

    @property
    def folds(self) -> list[int]:
        """Folds with samples, ascending."""
        return sorted({fold for fold, _, _ in self._counts})

    @property
    def regions(self) -> list[tuple[int, int]]:
        """Row and column of every region with samples, from the south-west."""
        return sorted({(row, column) for _, row, column in self._counts})

    def counts(self) -> np.ndarray:
        """Return the counts (folds, regions, 2, bins), of all samples and of those from 35.5 ug/m3 on."""
        folds, regions = self.folds, self.regions
        found = np.zeros((len(folds), len(regions), 2, len(EDGES) + 1), np.int64)
        for (fold, row, column), counts in self._counts.items():
            found[folds.index(fold), regions.index((row, column))] = counts
        return found

    def spreads(self) -> Array:
        """Return the sums of the spreads of the predictions (folds, regions), in ug/m3."""
        folds, regions = self.folds, self.regions
        found = np.zeros((len(folds), len(regions)))
        for (fold, row, column), total in self._spread.items():
            found[folds.index(fold), regions.index((row, column))] = total
        return found

    def centre(self, region: tuple[int, int]) -> tuple[float, float]:
        """Return latitude and longitude of a region's centre, in degrees."""
        row, column = region
        return CONUS[1] + (row + 0.5) * self.degrees, CONUS[0] + (column + 0.5) * self.degrees


def _bins(score: Array) -> np.ndarray:
    """Find the bin of each score (n,): the first whose edge is not below it."""
    step = (math.log(EDGES[-1]) - math.log(EDGES[0])) / (len(EDGES) - 1)
    with np.errstate(divide="ignore"):
        place = np.ceil((np.log(score) - math.log(EDGES[0])) / step - _SLACK)
    return (
        np.nan_to_num(place, nan=len(EDGES), posinf=len(EDGES), neginf=0).clip(0, len(EDGES)).astype(np.int64)
    )
