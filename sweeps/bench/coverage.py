"""Coverage of prediction intervals by region, from simulated errors on the positions of monitors.

A study has the errors of one arm at all monitors on many days. The errors of a day are smooth in space. The
size of a region's errors is lognormal, in one of three worlds. In the *exchangeable* world it is drawn for
each region independently. In the *smooth* world it is an exponential field, so near regions are alike. In the
*sparse* world it is exchangeable too, but larger in regions with few monitors.

`sweeps.analysis.coverage.measure` judges every region by intervals that the others calibrate, as in a report.
If regions are exchangeable, the expected mean is the coverage of a new region. Beside it stands the same
with single days as the units: all days of the other regions are pooled, and the level is the nominal one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from pm25.geo import great_circle_km
from pm25.intervals import spread
from sweeps.analysis import coverage, statistics
from sweeps.analysis.coverage import TooFew
from sweeps.analysis.estimands import JACKKNIFE_DEGREES
from sweeps.analysis.held_out_errors import HeldOutErrors
from sweeps.analysis.units import Array
from sweeps.bench.calibration import positions
from sweeps.bench.harness import Measurement

LEVEL = 0.9
DAYS = 60
"""Days of a study, each with a field of errors of its own."""
FOLDS = 5
"""Folds to which the monitors are dealt."""
RANGE_KM = 400.0
"""Range of the exponential correlation, in km."""
SHARED = 0.7
"""Share of the variance of a day's errors that is smooth in space."""
MEAN_UGM3 = 8.0
"""Mean prediction; predictions are gamma-distributed with shape 4."""
BY_NUMBER = 0.8
"""Correlation of the size of errors with the number of monitors, in the sparse world."""
POOR = 0.8
"""Coverage below which a region is called poorly covered."""
PROMISED = 88.0
"""Lowest mean coverage in percent that is promised where regions are exchangeable."""


class World(NamedTuple):
    """Kind of the simulated studies."""

    kind: Literal["exchangeable", "smooth", "sparse"]
    between: float
    """Standard deviation of the logarithm of the size of a region's errors."""

    @property
    def name(self) -> str:
        """Name of the row, such as `sparse, sd 0.5`."""
        return f"{self.kind}, sd {self.between:g}"


WORLDS = (
    *(World("exchangeable", between) for between in (0.0, 0.25, 0.5, 1.0)),
    *(World("smooth", between) for between in (0.25, 0.5, 1.0)),
    *(World("sparse", between) for between in (0.25, 0.5, 1.0)),
)


class Found(NamedTuple):
    """Coverage over simulated studies; its arrays are (studies, 2), for regions and for single days."""

    world: World
    mean: Array
    """Mean coverage of the regions."""
    poor: Array
    """Share of the regions whose coverage is below `POOR`."""


def simulate(
    studies: int,
    lat: Array,
    lon: Array,
    worlds: tuple[World, ...] = WORLDS,
    degrees: float = JACKKNIFE_DEGREES,
) -> Iterator[Found]:
    """Simulate studies on monitors at `lat` and `lon` (sites,), in degrees.

    The same arguments give the same coverage.
    """
    region, factor = statistics.blocks(lat, lon, degrees), _factor(lat, lon)
    for world in worlds:
        found = np.empty((studies, 2, 2))
        for number in range(studies):
            errors = _errors(np.random.default_rng(number), world, lat, lon, region, factor, degrees)
            for unit, choose in enumerate((coverage.radius_bins, day_bins)):
                measured = coverage.measure(errors, LEVEL, choose)
                if isinstance(measured, TooFew):
                    raise ValueError(measured.why)
                found[number, unit] = measured.coverage, (measured.by_region < POOR).mean()
        yield Found(world, found[..., 0], found[..., 1])


def _errors(
    rng: np.random.Generator,
    world: World,
    lat: Array,
    lon: Array,
    region: np.ndarray,
    factor: Array,
    degrees: float,
) -> HeldOutErrors:
    """Draw the errors of a study."""
    sites = len(lat)
    smooth = factor @ rng.standard_normal((sites, DAYS + 1))
    size = rng.standard_normal(region.max() + 1)[region]
    if world.kind == "smooth":
        size = smooth[:, DAYS]
    elif world.kind == "sparse":
        ranks = stats.rankdata(-np.bincount(region)) / (region.max() + 2)
        size = BY_NUMBER * stats.norm.ppf(ranks)[region] + math.sqrt(1 - BY_NUMBER**2) * size
    errors = math.sqrt(SHARED) * smooth[:, :DAYS] + math.sqrt(1 - SHARED) * rng.standard_normal((sites, DAYS))
    prediction = rng.gamma(4, MEAN_UGM3 / 4, (sites, DAYS))
    truth = prediction + 0.3 * spread(prediction) * errors * np.exp(world.between * size)[:, None]
    fold = rng.permutation(sites) % FOLDS
    found = HeldOutErrors(degrees)
    for number in range(FOLDS):
        own = fold == number
        places = np.repeat(lat[own], DAYS), np.repeat(lon[own], DAYS)
        found.add(number, *places, truth[own].ravel(), prediction[own].ravel())
    return found


def day_bins(counts: np.ndarray, sets: np.ndarray, level: float) -> np.ndarray:
    """Find the bin of the radius with single days as the units: split conformal over all days of a set.

    The arguments and the result are those of `sweeps.analysis.coverage.radius_bins`.
    """
    total = sets.astype(np.int64) @ counts
    wanted = np.ceil(level * (total.sum(axis=1, keepdims=True) + 1))
    return np.asarray((total.cumsum(axis=1) >= wanted).argmax(axis=1))


def run(table: Path | None, studies: int) -> Iterator[Measurement]:
    """Measure the coverage of intervals calibrated on regions and on single days, in percent."""
    for found in simulate(studies, *positions(table)):
        for unit, words in enumerate(("regions", "single days")):
            mean, poor = found.mean[:, unit], found.poor[:, unit]
            error = mean.std(ddof=1) / math.sqrt(studies)
            promised = unit == 0 and found.world.kind != "smooth"
            yield Measurement(
                f"coverage of {LEVEL:.0%} intervals: {found.world.name}, calibrated on {words}",
                100 * float(mean.mean()),
                "%",
                PROMISED if promised else math.inf,
                f"standard error {error:.2%}, {studies} studies; "
                f"below {POOR:.0%} in {poor.mean():.0%} of the regions",
                at_least=True,
            )


def _factor(lat: Array, lon: Array) -> Array:
    """Return a factor of the exponential correlation of the positions: (sites, sites)."""
    km = great_circle_km(lat[:, None], lon[:, None], lat[None], lon[None])
    return np.asarray(np.linalg.cholesky(np.exp(-km / RANGE_KM) + 1e-8 * np.eye(len(lat))), np.float64)
