"""Prediction intervals around a prediction, with a width that grows with the predicted level.

The *score* of a sample is its absolute error over the *spread* of its prediction, sqrt(prediction^2 + 5^2).
An interval is the prediction plus or minus a *radius* times its spread. The radius is a quantile of the
scores of samples that no model was trained on (`sweeps.analysis.coverage`). So intervals are split-conformal
(Vovk, Gammerman and Shafer 2005; Lei et al. 2018), with normalised errors.

Errors of smoke days are larger than those of clean days. On the monitors of 2021 this score was chosen from
six: it has the narrowest intervals at equal coverage, and its coverage differs least between regions. The
table is in `sweeps/bench/README.md`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.errors import InputError
from pm25.geo import great_circle_km

Array = NDArray[np.float64]

SPREAD_UGM3 = 5.0
"""Predicted level in ug/m3 below which the width of an interval hardly changes."""

OUTPUTS = ("pm25_ugm3", "lower", "upper")
"""Columns of a model's output: the prediction and the bounds of its interval, in ug/m3."""

FILE = "intervals.json"
"""File of a calibration in a model's folder."""

SAME_PLACE_KM = 1.0
"""Distance in km up to which a place is that of a training monitor."""

ROWS = 2048
"""Places whose distances to all training monitors are computed at a time."""


def spread(prediction: ArrayLike) -> Array:
    """Return the factor (n,) in ug/m3 by which the interval of each prediction is scaled."""
    found: Array = np.hypot(np.asarray(prediction, np.float64), SPREAD_UGM3)
    return found


class Radius(NamedTuple):
    """Radius of the intervals of places that are as far from the training monitors as a split's test sets."""

    split: str
    regime: str
    """'WR' or 'OoR'."""
    reach_km: float
    """Distance in km to the nearest training monitor that 95 % of the split's test monitors do not exceed."""
    radius: float
    """Half of an interval's width over the spread of its prediction."""
    regions: int
    """Number of regions whose errors calibrated it."""


@dataclass(frozen=True)
class Calibration:
    """Radii of a model's intervals, by distance to its training monitors.

    A place takes the radius of the split with the smallest reach that includes its distance. Beyond all
    reaches, it takes that of the largest reach, which was not tested there.
    """

    level: float
    """Share of the days that the intervals are to hold, such as 0.9."""
    lowest_ugm3: float
    """Lowest measured value of the study's table; no lower bound is below it."""
    monitors: tuple[tuple[float, float], ...]
    """Latitude and longitude of the training monitors, in degrees."""
    radii: tuple[Radius, ...]
    """Radii by ascending reach; empty if the model has no intervals."""
    absent: str = ""
    """Reason why there are no intervals; empty if there are."""

    def bounds(self, prediction: ArrayLike, lat: ArrayLike, lon: ArrayLike) -> tuple[Array, Array]:
        """Return lower and upper bounds (n,) in ug/m3 of predictions (n,) at places (n,) in degrees.

        A lower bound is at least `lowest_ugm3`. Raises ValueError if the model has no intervals.
        """
        if not self.radii:
            raise ValueError(f"no interval: {self.absent}")
        centre = np.asarray(prediction, np.float64)
        reaches = [max(one.reach_km, SAME_PLACE_KM) for one in self.radii]
        at = np.searchsorted(reaches, self._nearest_km(lat, lon)).clip(max=len(reaches) - 1)
        half = np.array([one.radius for one in self.radii])[at] * spread(centre)
        lower = np.maximum(centre - half, self.lowest_ugm3)
        return lower, np.maximum(centre + half, lower)

    def _nearest_km(self, lat: ArrayLike, lon: ArrayLike) -> Array:
        """Return the distance (n,) in km from each place to the nearest training monitor."""
        places = np.stack([np.asarray(lat, np.float64), np.asarray(lon, np.float64)], axis=1)
        places, row = np.unique(places, axis=0, return_inverse=True)
        monitors = np.array(self.monitors, np.float64)
        nearest = np.empty(len(places))
        for begin in range(0, len(places), ROWS):
            some = places[begin : begin + ROWS]
            km = great_circle_km(some[:, :1], some[:, 1:], monitors[:, 0], monitors[:, 1])
            nearest[begin : begin + ROWS] = km.min(axis=1)
        found: Array = nearest[row.reshape(-1)]
        return found

    def to_json(self) -> str:
        """Return the calibration as text, which is the same for equal calibrations."""
        content = asdict(self) | {"radii": [radius._asdict() for radius in self.radii]}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read the text of `to_json`."""
        content = json.loads(text)
        content["radii"] = tuple(Radius(**radius) for radius in content["radii"])
        content["monitors"] = tuple((lat, lon) for lat, lon in content["monitors"])
        return cls(**content)

    def write(self, folder: Path) -> None:
        """Write the calibration into a model's folder."""
        (folder / FILE).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Calibration | None:
        """Read the calibration of a model's folder; None if the folder has none. Raises InputError."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            found = cls.from_json(path.read_text(encoding="utf-8"))
            numbers = [found.level, found.lowest_ugm3, *(n for one in found.radii for n in one[2:])]
            intact = bool(np.isfinite([*numbers, *np.ravel(found.monitors)]).all())
        except (ValueError, KeyError, TypeError):
            intact = False
        if intact:
            return found
        fix = "register the model again with `sweep sync`"
        raise InputError(str(path), "", "damaged: not the calibration of prediction intervals", fix)
