"""Splits of a panel's samples into training, validation and test sets.

To add a kind of split:

1. add its settings class next to `ClusterSplit`, with `kind`, `folds`, `regime` and `label`;
2. add the class to the union `AnySplit`, from which study files and their errors take the kinds;
3. cut it in `cut`, or, if its test sites are regions, give them their numbers in `regions`;
4. name its promise in `pm25.leakage.audit`, if a site may be in two sets;
5. add it to `SPLITS`, `KEYS` and `BASES` in `tests/pm25/test_splits.py`.
"""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, model_validator

from pm25.errors import InputError, SettingError
from pm25.geo import CONUS, great_circle_km, inside_conus
from pm25.panel import Panel
from pm25.settings import Seed, Settings, Share

RESTARTS = 10
"""Runs of k-means, which ends in a local optimum; the best of ten runs hardly depends on the seed."""


def _all_different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise SettingError("", f"{twice!r} is given twice", "leave one out")
    return values


class RandomSplit(Settings):
    """k-fold split of the samples: a test sample's site and neighbouring days are in training too."""

    regime: ClassVar = "WR"
    kind: Literal["random"] = "random"
    folds: int = Field(5, ge=2)
    """Number of folds."""
    validation: Share = 0.1
    """Share of the training side that is used for validation."""
    seed: Seed = 0
    """Seed of the split's random draws."""

    @property
    def label(self) -> str:
        """Short name of the split."""
        return "random"


class TemporalSplit(Settings):
    """Split in time: train before a date and test from it on, at the same sites.

    The regime is within region (WR), because every test site is a training site. The last days before the
    test period are the validation set, with the share `validation`. `gap_days` days are left out before the
    test period, and again before the validation days. The default is window - 1, the smallest gap with
    which two sets share no input day. Nothing is drawn, so no seed is needed.
    """

    regime: ClassVar = "WR"
    folds: ClassVar[int] = 1
    kind: Literal["temporal"] = "temporal"
    test_from: date
    """First day of the test period."""
    gap_days: NonNegativeInt | None = None
    """Days left out before the test period and before the validation days. Default: window - 1."""
    validation: Share = 0.1
    """Share of the days before the test period, the last ones, that is used for validation."""

    @property
    def label(self) -> str:
        """Short name of the split, with its date."""
        gap = "" if self.gap_days is None else f"-gap{self.gap_days}"
        return f"temporal-{self.test_from}{gap}"


class SpatialSplit(Settings):
    """k-fold split of the sites: training has no sample of a test site, but samples of its neighbours.

    `buffer_km`, here and below, drops training and validation sites that are nearer than this to a test
    site. They are dropped after all draws, so that a buffer changes neither the test set nor the held-out
    sites.
    """

    regime: ClassVar = "WR"
    kind: Literal["spatial"] = "spatial"
    folds: int = Field(5, ge=2)
    """Number of folds."""
    buffer_km: PositiveFloat | None = None
    """Distance in km within which training and validation sites of a test site are dropped. Default: none."""
    validation: Share = 0.1
    """Share of the training side that is used for validation."""
    seed: Seed = 0
    """Seed of the split's random draws."""

    @property
    def label(self) -> str:
        """Short name of the split, with its buffer."""
        return f"spatial{_buffer(self.buffer_km)}"


class RegionSplit(Settings):
    """Split by region: fold i tests the sites of region i, out of region (OoR).

    `holdout` is the share of the training side's sites that become the within-region test set. `buffer_km`
    does not drop these sites, even near the border of the test region.
    """

    regime: ClassVar = "OoR"
    holdout: Share = 0.2
    """Share of the training side's sites that is held out as the within-region test set."""
    buffer_km: PositiveFloat | None = None
    """Distance in km within which training and validation sites of a test site are dropped. Default: none."""
    validation: Share = 0.1
    """Share of the training side that is used for validation."""
    seed: Seed = 0
    """Seed of the split's random draws."""


class CheckerboardSplit(RegionSplit):
    """Split by the colours of a checkerboard with square cells of `degrees`: fold 0 or 1 is the test colour.

    `origin` moves the grid by degrees of (longitude, latitude), to the east and north. It repeats the
    out-of-region test with other borders. Both values are less than `degrees`, because a move by one cell
    only swaps the colours.
    """

    folds: ClassVar[int] = 2
    kind: Literal["checkerboard"] = "checkerboard"
    degrees: PositiveFloat
    """Edge of a square cell in degrees."""
    # An origin of zero is stored as None, so that equal splits have equal keys.
    origin: Annotated[
        tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None,
        AfterValidator(lambda shift: (shift[0] + 0.0, shift[1] + 0.0) if shift and any(shift) else None),
    ] = None
    """Shift of the grid to the east and to the north, in degrees. Default: no shift."""

    @model_validator(mode="after")
    def _origin_within_a_cell(self) -> "CheckerboardSplit":
        if self.origin is not None and max(self.origin) >= self.degrees:
            raise SettingError(
                "origin",
                f"{max(self.origin):g} moves the grid by a cell or more, which only swaps the colours",
                f"give values below {self.degrees:g}",
            )
        return self

    @property
    def label(self) -> str:
        """Short name of the split, with its cell size, shift and buffer."""
        shift = "" if self.origin is None else f"-shift{self.origin[0]:.12g}x{self.origin[1]:.12g}"
        return f"checkerboard-{self.degrees:.12g}{shift}{_buffer(self.buffer_km)}"


class GroupSplit(RegionSplit):
    """Leave one group out: fold i tests the sites whose `column` in the table has the i-th of `values`.

    All other sites are on the training side, including those with a value that is not listed. The panel
    must have been read with `groups=(column,)`.
    """

    kind: Literal["group"] = "group"
    column: str = Field(min_length=1)
    """Column of the table that names the group of a site, such as its state."""
    values: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        Field(min_length=1),
        AfterValidator(_all_different),
    ]
    """Values of the column, each of which is held out in one fold."""

    @property
    def folds(self) -> int:
        """Number of folds, one for each value."""
        return len(self.values)

    @property
    def label(self) -> str:
        """Short name of the split, with up to three values, or with the number of values."""
        named = "+".join(self.values) if len(self.values) <= 3 else f"{len(self.values)}"
        return f"group-{self.column}-{named}{_buffer(self.buffer_km)}"


class ClusterSplit(RegionSplit):
    """k-fold split of `folds` clusters of sites, by k-means on the sphere, numbered from west to east."""

    kind: Literal["clusters"] = "clusters"
    folds: int = Field(5, ge=2)
    """Number of clusters, each of which is held out in one fold."""

    @property
    def label(self) -> str:
        """Short name of the split, with its number of clusters and buffer."""
        return f"clusters-{self.folds}{_buffer(self.buffer_km)}"


def _buffer(km: float | None) -> str:
    return "" if km is None else f"-buffer{km:.12g}km"


AnySplit = RandomSplit | TemporalSplit | SpatialSplit | CheckerboardSplit | GroupSplit | ClusterSplit
Split = Annotated[AnySplit, Field(discriminator="kind")]
"""A split as a setting; `kind` selects the class."""


@dataclass(frozen=True)
class SplitIndices:
    """Samples of the disjoint sets, each as ascending flat indices `site * days + day`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    wr: np.ndarray | None
    """Within-region test set: held-out sites of the training side; None except for out-of-region splits."""


def checkerboard(
    lat: np.ndarray, lon: np.ndarray, degrees: float, origin: tuple[float, float] | None = None
) -> np.ndarray:
    """Return the colour of each place, (column + row) mod 2 of its square cell, and -1 outside CONUS.

    `lat` and `lon` are in degrees and have any shape. The grid starts at the south-west corner of the CONUS
    box. `origin` moves the grid, but not the box, by degrees of (longitude, latitude).
    """
    east, north = origin or (0.0, 0.0)
    west, south = CONUS[0] + east, CONUS[1] + north
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    colour = (np.floor((lon - west) / degrees) + np.floor((lat - south) / degrees)) % 2
    return np.where(inside_conus(lat, lon), colour, -1).astype(int)


def cut(split: AnySplit, fold: int, panel: Panel, window: int) -> SplitIndices:
    """Split the panel's samples. The split has its own seed and does not depend on that of the training.

    Raises InputError if a set is empty, a group is not in the table, or a gap is too short.
    """
    site, day = panel.samples(window)
    flat = site.astype(np.int64) * len(panel.dates) + day
    if isinstance(split, RandomSplit):
        indices = _by_sample(split, fold, flat)
    elif isinstance(split, TemporalSplit):
        indices = _by_time(split, panel, window, flat, day)
    else:
        indices = _by_site(split, fold, panel, flat, site)
    for name in ("train", "validation", "test", "wr"):
        chosen = getattr(indices, name)
        if chosen is not None and not len(chosen):
            lacking = "days" if isinstance(split, TemporalSplit) else "sites"
            raise InputError(
                panel.name,
                f"split {split.label} fold {fold}",
                f"leaves its {name} part empty, with {len(flat)} samples at {len(np.unique(site))} sites",
                f"take another split, or a table with more {lacking}",
            )
    return indices


def regions(split: RegionSplit, panel: Panel, sites: np.ndarray) -> np.ndarray:
    """Return, for each of `sites` (indices), the fold that tests it, or -1 if it is in no set.

    The number of folds stands for a region that no fold tests: values that a group split does not list.
    Raises InputError if a group is not in the table.
    """
    if isinstance(split, CheckerboardSplit):
        return checkerboard(panel.lat[sites], panel.lon[sites], split.degrees, split.origin)
    if isinstance(split, GroupSplit):
        if split.column not in panel.groups:
            raise InputError(
                panel.name,
                split.column,
                f"split {split.label} needs this column, which was not read",
                f"read the panel with groups=({split.column!r},)",
            )
        known = panel.groups[split.column]
        for value in split.values:
            if value not in known:
                names = ", ".join(np.unique(known).tolist()[:60])
                raise InputError(
                    panel.name,
                    split.column,
                    f"no site has the value {value!r} of split {split.label}",
                    f"choose from {names}",
                )
        number = {value: fold for fold, value in enumerate(split.values)}
        return np.array([number.get(value, split.folds) for value in known[sites].tolist()], int)
    if isinstance(split, ClusterSplit):
        return _clusters(split, panel, sites)
    raise TypeError(f"{type(split).__name__} has no regions")


def nearest_site_km(panel: Panel, sites: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Great-circle distance (km) from each of `sites` to the nearest of `others`; (len(sites),).

    Both are indices, and `others` is not empty. The distance from a site to itself is 0.
    """
    place = _unit_vectors(panel.lat, panel.lon)
    nearest = np.empty(len(sites), np.int64)
    for start in range(0, len(sites), 1024):  # bounds the memory of a table with very many sites
        block = slice(start, start + 1024)
        nearest[block] = others[(place[sites[block]] @ place[others].T).argmax(axis=1)]
    return great_circle_km(panel.lat[sites], panel.lon[sites], panel.lat[nearest], panel.lon[nearest])


def _by_sample(split: RandomSplit, fold: int, flat: np.ndarray) -> SplitIndices:
    # `partition` does not depend on the fold, so that the k test sets are disjoint.
    partition, rng = np.random.default_rng(split.seed), np.random.default_rng([split.seed, fold])
    test, validation = np.zeros((2, len(flat)), bool)
    test[np.array_split(partition.permutation(len(flat)), split.folds)[fold]] = True
    rest = np.flatnonzero(~test)
    validation[rng.permutation(rest)[: round(split.validation * len(rest))]] = True
    return SplitIndices(flat[~test & ~validation], flat[validation], flat[test], None)


def _by_time(
    split: TemporalSplit, panel: Panel, window: int, flat: np.ndarray, day: np.ndarray
) -> SplitIndices:
    gap = window - 1 if split.gap_days is None else split.gap_days
    if gap < window - 1:
        raise InputError(
            panel.name,
            f"split {split.label}",
            f"with gap_days {gap}, a test window of {window} days reaches into the training period",
            f"leave gap_days out, or give at least {window - 1}",
        )
    start = int((np.datetime64(split.test_from, "D") - panel.dates[0]).astype(int))
    if not 0 < start < len(panel.dates):
        raise InputError(
            panel.name,
            f"split {split.label}",
            f"test_from {split.test_from} is not after the first and up to the last day of the table",
            f"give a day within {panel.dates[0]} to {panel.dates[-1]}",
        )
    last = start - gap - 1  # last day of the training side
    days = max(last - (window - 1) + 1, 0)
    first = last - max(1, round(split.validation * days)) + 1  # first validation day
    return SplitIndices(
        train=flat[day < first - gap],
        validation=flat[(day >= first) & (day <= last)],
        test=flat[day >= start],
        wr=None,
    )


def _by_site(
    split: SpatialSplit | RegionSplit, fold: int, panel: Panel, flat: np.ndarray, site: np.ndarray
) -> SplitIndices:
    partition, rng = np.random.default_rng(split.seed), np.random.default_rng([split.seed, fold])
    # 0 train, 1 validation, 2 test, 3 within-region test, -1 in no set.
    role = np.full(len(panel.site_id), -1)
    with_samples = np.unique(site)
    if isinstance(split, SpatialSplit):
        role[with_samples] = 0
        role[np.array_split(partition.permutation(with_samples), split.folds)[fold]] = 2
    else:
        region = regions(split, panel, with_samples)
        role[with_samples[region == fold]] = 2
        training_side = with_samples[(region != fold) & (region >= 0)]
        role[training_side] = 0
        role[rng.permutation(training_side)[: round(split.holdout * len(training_side))]] = 3
    rest = np.flatnonzero(role == 0)
    role[rng.permutation(rest)[: round(split.validation * len(rest))]] = 1
    test = np.flatnonzero(role == 2)
    if split.buffer_km is not None and len(test):
        role[rest[nearest_site_km(panel, rest, test) < split.buffer_km]] = -1
    train, validation, held_out, wr = (flat[role[site] == number] for number in range(4))
    return SplitIndices(train, validation, held_out, None if isinstance(split, SpatialSplit) else wr)


def _clusters(split: ClusterSplit, panel: Panel, sites: np.ndarray) -> np.ndarray:
    """Cluster of each of `sites`, numbered from west to east by mean longitude; equal in every fold."""
    from scipy.cluster.vq import ClusterError, kmeans2

    place = _unit_vectors(panel.lat[sites], panel.lon[sites])
    rng = np.random.default_rng(split.seed)
    best, code = np.inf, np.empty(0, int)
    for _ in range(RESTARTS if len(np.unique(place, axis=0)) >= split.folds else 0):
        try:
            centre, found = kmeans2(place, split.folds, iter=100, minit="++", missing="raise", rng=rng)
        except ClusterError:  # a cluster became empty
            continue
        spread = float(((place - centre[found]) ** 2).sum())
        if spread < best and len(np.unique(found)) == split.folds:
            best, code = spread, found
    if not len(code):
        raise InputError(
            panel.name,
            f"split {split.label}",
            f"{len(sites)} sites cannot be divided into {split.folds} clusters",
            "give fewer folds, or a table with more sites",
        )
    lon = np.bincount(code, panel.lon[sites]) / np.bincount(code)
    return np.argsort(np.argsort(lon, kind="stable"), kind="stable")[code]


def _unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Places on the unit sphere; (n, 3)."""
    lat, lon = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
