"""Which samples train, validate and test a cell, and what those parts share."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from pm25.errors import InputError
from pm25.geo import CONUS, great_circle_km, inside_conus
from pm25.panel import Panel
from pm25.settings import Seed, Settings, Share


class RandomSplit(Settings):
    """k-fold over samples: a test sample's site and neighbouring days stand in training too."""

    regime: ClassVar = "WR"
    kind: Literal["random"] = "random"
    folds: int = Field(5, ge=2)
    validation: Share = 0.1
    seed: Seed = 0

    @property
    def label(self) -> str:
        return "random"


class SpatialSplit(Settings):
    """k-fold over sites: a test site gave no sample to training, its neighbours did."""

    regime: ClassVar = "WR"
    kind: Literal["spatial"] = "spatial"
    folds: int = Field(5, ge=2)
    validation: Share = 0.1
    seed: Seed = 0

    @property
    def label(self) -> str:
        return "spatial"


class CheckerboardSplit(Settings):
    """Square cells of `degrees` in two colours: fold 0 or 1 is the colour held out (out of region).

    `holdout` is the share of the training colour's sites kept back as the paired within-region test.
    """

    regime: ClassVar = "OoR"
    folds: ClassVar[int] = 2
    kind: Literal["checkerboard"] = "checkerboard"
    degrees: PositiveFloat
    holdout: Share = 0.2
    validation: Share = 0.1
    seed: Seed = 0

    @property
    def label(self) -> str:
        return f"checkerboard-{self.degrees:g}"


Split = Annotated[RandomSplit | SpatialSplit | CheckerboardSplit, Field(discriminator="kind")]


@dataclass(frozen=True)
class Parts:
    """Samples as flat indices `site * days + day`, ascending in each part; the parts are disjoint."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    within: np.ndarray | None
    """Checkerboard only: held-out sites inside the training region, the paired within-region test."""


def checkerboard(lat: np.ndarray, lon: np.ndarray, degrees: float) -> np.ndarray:
    """Colour of each place: (column + row) mod 2 of square cells anchored at the CONUS box's south-west.

    -1 outside the box. `lat`, `lon` in degrees, any shape.
    """
    west, south, _, _ = CONUS
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    colour = (np.floor((lon - west) / degrees) + np.floor((lat - south) / degrees)) % 2
    return np.where(inside_conus(lat, lon), colour, -1).astype(int)


def cut(split: RandomSplit | SpatialSplit | CheckerboardSplit, fold: int, panel: Panel, window: int) -> Parts:
    """Cut the panel's samples. The cut depends on the split's own seed, never on the training's.

    Raises InputError when a part is empty.
    """
    site, day = panel.samples(window)
    flat = site.astype(np.int64) * len(panel.dates) + day
    rng = np.random.default_rng([split.seed, fold])
    # The k folds are one partition, whichever of them is asked for.
    partition = np.random.default_rng(split.seed)
    if isinstance(split, RandomSplit):
        test = np.zeros(len(flat), bool)
        test[np.array_split(partition.permutation(len(flat)), split.folds)[fold]] = True
        rest = np.flatnonzero(~test)
        validation = np.zeros(len(flat), bool)
        validation[rng.permutation(rest)[: round(split.validation * len(rest))]] = True
        within = None
    else:
        # By site: 0 train, 1 validation, 2 test, 3 within-region test, -1 none.
        role = np.full(len(panel.site_id), -1)
        with_samples = np.unique(site)
        if isinstance(split, SpatialSplit):
            role[with_samples] = 0
            role[np.array_split(partition.permutation(with_samples), split.folds)[fold]] = 2
        else:
            colour = checkerboard(panel.lat, panel.lon, split.degrees)[with_samples]
            role[with_samples[colour == fold]] = 2
            inside = with_samples[colour == 1 - fold]
            role[inside] = 0
            role[rng.permutation(inside)[: round(split.holdout * len(inside))]] = 3
        rest = np.flatnonzero(role == 0)
        role[rng.permutation(rest)[: round(split.validation * len(rest))]] = 1
        test, validation = role[site] == 2, role[site] == 1
        within = flat[role[site] == 3] if isinstance(split, CheckerboardSplit) else None
    train = ~test & ~validation
    if not isinstance(split, RandomSplit):
        train &= role[site] == 0
    parts = Parts(flat[train], flat[validation], flat[test], within)
    for name in ("train", "validation", "test", "within"):
        part = getattr(parts, name)
        if part is not None and not len(part):
            raise InputError(
                f"{panel.name}: split {split.label} fold {fold} leaves its {name} part empty "
                f"({len(flat)} samples at {len(np.unique(site))} sites); "
                "take another split, or a table with more sites"
            )
    return parts


def audit(parts: Parts, panel: Panel, window: int) -> dict[str, float | int]:
    """What training and the test set share: sites, overlapping windows, and how far apart they lie.

    `nearest_km_*`: over test sites, the great-circle distance to the nearest training site.
    """
    days = len(panel.dates)
    trained = np.zeros(panel.target.shape, bool)
    trained.reshape(-1)[parts.train] = True
    site, day = parts.test // days, parts.test % days
    # A training sample within window - 1 days at the same site shares input days with a test sample.
    total = np.pad(np.cumsum(trained, axis=1), ((0, 0), (1, 0)))
    near = total[site, np.minimum(day + window, days)] - total[site, np.maximum(day - window + 1, 0)]
    train_sites, test_sites = np.unique(parts.train // days), np.unique(site)
    nearest = great_circle_km(
        panel.lat[test_sites, None],
        panel.lon[test_sites, None],
        panel.lat[train_sites],
        panel.lon[train_sites],
    ).min(axis=1)
    return {
        "train_sites": len(train_sites),
        "test_sites": len(test_sites),
        "shared_sites": len(np.intersect1d(train_sites, test_sites)),
        "overlapping_test_windows": int((near > 0).sum()),
        "nearest_km_min": round(float(nearest.min()), 3),
        "nearest_km_median": round(float(np.median(nearest)), 3),
    }
