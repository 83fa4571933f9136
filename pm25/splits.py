"""Which samples train, validate and test a cell."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, model_validator

from pm25.errors import InputError
from pm25.geo import CONUS, great_circle_km, inside_conus
from pm25.panel import Panel
from pm25.settings import Seed, Settings, Share

RESTARTS = 10
"""Of k-means: it ends in a local optimum, and the best of ten hardly depends on the seed."""


def _all_different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("a value stands there twice")
    return values


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


class TemporalSplit(Settings):
    """Test from a date on, train before it, at the same sites: the future of the places that are known.

    Within region (WR), because every test site is a training site. `validation` is the share of the days
    before the test period, the last ones. `gap_days` are left out before the test period, and as many
    before the validation days: window - 1 of them by default, the fewest that keep a window of one part
    from sharing an input day with a window of the other. Nothing is drawn, so there is no seed.
    """

    regime: ClassVar = "WR"
    folds: ClassVar[int] = 1
    kind: Literal["temporal"] = "temporal"
    test_from: date
    gap_days: NonNegativeInt | None = None
    validation: Share = 0.1

    @property
    def label(self) -> str:
        gap = "" if self.gap_days is None else f"-gap{self.gap_days}"
        return f"temporal-{self.test_from}{gap}"


class SpatialSplit(Settings):
    """k-fold over sites: a test site gave no sample to training, its neighbours did.

    `buffer_km`, here and below: training and validation sites nearer than that to any test site are
    dropped, after all draws, so that a buffer changes no test set and no held-out site.
    """

    regime: ClassVar = "WR"
    kind: Literal["spatial"] = "spatial"
    folds: int = Field(5, ge=2)
    buffer_km: PositiveFloat | None = None
    validation: Share = 0.1
    seed: Seed = 0

    @property
    def label(self) -> str:
        return f"spatial{_buffer(self.buffer_km)}"


class RegionSplit(Settings):
    """Sites of one region are held out: fold i tests region i, out of region (OoR).

    `holdout` is the share of the training side's sites kept back as the paired within-region test. Those
    near the border of the test region stay in it: `buffer_km` drops training and validation sites only.
    """

    regime: ClassVar = "OoR"
    holdout: Share = 0.2
    buffer_km: PositiveFloat | None = None
    validation: Share = 0.1
    seed: Seed = 0


class CheckerboardSplit(RegionSplit):
    """Square cells of `degrees` in two colours: fold 0 or 1 is the colour held out.

    `origin` moves the grid by so many degrees of (longitude, latitude), east and north: repeats of the
    out-of-region test over other borders. A move of a whole cell only swaps the colours, so each is less.
    """

    folds: ClassVar[int] = 2
    kind: Literal["checkerboard"] = "checkerboard"
    degrees: PositiveFloat
    # No shift is no setting: one cut has one key.
    origin: Annotated[
        tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None,
        AfterValidator(lambda shift: (shift[0] + 0.0, shift[1] + 0.0) if shift and any(shift) else None),
    ] = None

    @model_validator(mode="after")
    def _within_a_cell(self) -> "CheckerboardSplit":
        if self.origin is not None and max(self.origin) >= self.degrees:
            raise ValueError(f"origin: a whole cell only swaps the colours; stay below {self.degrees:g}")
        return self

    @property
    def label(self) -> str:
        shift = "" if self.origin is None else f"-shift{self.origin[0]:.12g}x{self.origin[1]:.12g}"
        return f"checkerboard-{self.degrees:.12g}{shift}{_buffer(self.buffer_km)}"


class GroupSplit(RegionSplit):
    """Leave one group out: fold i tests the sites whose `column` of the table holds the i-th of `values`.

    All other sites are on the training side, those of values that are not listed too. The panel must have
    been read with `groups=(column,)`.
    """

    kind: Literal["group"] = "group"
    column: str = Field(min_length=1)
    values: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        Field(min_length=1),
        AfterValidator(_all_different),
    ]

    @property
    def folds(self) -> int:
        return len(self.values)

    @property
    def label(self) -> str:
        """Names up to three values; of more, their number."""
        named = "+".join(self.values) if len(self.values) <= 3 else f"{len(self.values)}"
        return f"group-{self.column}-{named}{_buffer(self.buffer_km)}"


class ClusterSplit(RegionSplit):
    """k-fold over `folds` clusters of sites by k-means on the sphere, numbered from west to east."""

    kind: Literal["clusters"] = "clusters"
    folds: int = Field(5, ge=2)

    @property
    def label(self) -> str:
        return f"clusters-{self.folds}{_buffer(self.buffer_km)}"


def _buffer(km: float | None) -> str:
    return "" if km is None else f"-buffer{km:.12g}km"


AnySplit = RandomSplit | TemporalSplit | SpatialSplit | CheckerboardSplit | GroupSplit | ClusterSplit
Split = Annotated[AnySplit, Field(discriminator="kind")]


@dataclass(frozen=True)
class SplitIndices:
    """Samples as flat indices `site * days + day`, ascending in each part; the parts are disjoint."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    wr: np.ndarray | None
    """Out-of-region splits only: held-out sites of the training side, the paired within-region test."""


def checkerboard(
    lat: np.ndarray, lon: np.ndarray, degrees: float, origin: tuple[float, float] | None = None
) -> np.ndarray:
    """Colour of each place: (column + row) mod 2 of square cells anchored at the CONUS box's south-west.

    -1 outside the box. `lat`, `lon` in degrees, any shape. `origin` moves the anchor by degrees of
    (longitude, latitude), never the box.
    """
    east, north = origin or (0.0, 0.0)
    west, south = CONUS[0] + east, CONUS[1] + north
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    colour = (np.floor((lon - west) / degrees) + np.floor((lat - south) / degrees)) % 2
    return np.where(inside_conus(lat, lon), colour, -1).astype(int)


def cut(split: AnySplit, fold: int, panel: Panel, window: int) -> SplitIndices:
    """Cut the panel's samples. The cut depends on the split's own seed, never on the training's.

    Raises InputError when a part is empty, when a group is not in the table, and when a gap is too short.
    """
    site, day = panel.samples(window)
    flat = site.astype(np.int64) * len(panel.dates) + day
    if isinstance(split, RandomSplit):
        parts = _by_sample(split, fold, flat)
    elif isinstance(split, TemporalSplit):
        parts = _by_time(split, panel, window, flat, day)
    else:
        parts = _by_site(split, fold, panel, flat, site)
    for name in ("train", "validation", "test", "wr"):
        part = getattr(parts, name)
        if part is not None and not len(part):
            raise InputError(
                f"{panel.name}: split {split.label} fold {fold} leaves its {name} part empty "
                f"({len(flat)} samples at {len(np.unique(site))} sites); "
                "take another split, or a table with more "
                + ("days" if isinstance(split, TemporalSplit) else "sites")
            )
    return parts


def regions(split: RegionSplit, panel: Panel, sites: np.ndarray) -> np.ndarray:
    """For each of `sites` (indices) the fold that tests it, -1 where it takes no part.

    A number beyond the folds is a region that no fold tests: the values that a group split does not list.
    """
    if isinstance(split, CheckerboardSplit):
        return checkerboard(panel.lat[sites], panel.lon[sites], split.degrees, split.origin)
    if isinstance(split, GroupSplit):
        if split.column not in panel.groups:
            raise InputError(
                f"{panel.name}: split {split.label} needs the column {split.column}, "
                f"which was not read; read the panel with groups=({split.column!r},)"
            )
        known = panel.groups[split.column]
        for value in split.values:
            if value not in known:
                names = ", ".join(np.unique(known).tolist()[:60])
                raise InputError(
                    f"{panel.name}: split {split.label}: no site has {split.column} {value!r}; it has {names}"
                )
        number = {value: fold for fold, value in enumerate(split.values)}
        return np.array([number.get(value, split.folds) for value in known[sites].tolist()], int)
    if isinstance(split, ClusterSplit):
        return _clusters(split, panel, sites)
    raise TypeError(f"no regions in a {type(split).__name__}")


def nearest_site_km(panel: Panel, sites: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(len(sites),) great-circle km from each of `sites` to the nearest of `others` (indices, not empty)."""
    place = _unit_vectors(panel.lat, panel.lon)
    nearest = np.empty(len(sites), np.int64)
    for start in range(0, len(sites), 1024):  # bounds the memory of a table with very many sites
        block = slice(start, start + 1024)
        nearest[block] = others[(place[sites[block]] @ place[others].T).argmax(axis=1)]
    return great_circle_km(panel.lat[sites], panel.lon[sites], panel.lat[nearest], panel.lon[nearest])


def _by_sample(split: RandomSplit, fold: int, flat: np.ndarray) -> SplitIndices:
    # The k folds are one partition, whichever of them is asked for.
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
            f"{panel.name}: split {split.label}: with gap_days {gap} a test window of {window} days reaches "
            f"into the training period; leave gap_days out, or give at least {window - 1}"
        )
    start = int((np.datetime64(split.test_from, "D") - panel.dates[0]).astype(int))
    if not 0 < start < len(panel.dates):
        raise InputError(
            f"{panel.name}: split {split.label}: test_from must lie within the table's days, "
            f"{panel.dates[0]} to {panel.dates[-1]}"
        )
    last = start - gap - 1  # day of the training side
    days = max(last - (window - 1) + 1, 0)
    validated = last - max(1, round(split.validation * days)) + 1  # the first validation day
    return SplitIndices(
        train=flat[day < validated - gap],
        validation=flat[(day >= validated) & (day <= last)],
        test=flat[day >= start],
        wr=None,
    )


def _by_site(
    split: SpatialSplit | RegionSplit, fold: int, panel: Panel, flat: np.ndarray, site: np.ndarray
) -> SplitIndices:
    partition, rng = np.random.default_rng(split.seed), np.random.default_rng([split.seed, fold])
    # 0 train, 1 validation, 2 test, 3 within-region test, -1 none.
    role = np.full(len(panel.site_id), -1)
    with_samples = np.unique(site)
    if isinstance(split, SpatialSplit):
        role[with_samples] = 0
        role[np.array_split(partition.permutation(with_samples), split.folds)[fold]] = 2
    else:
        region = regions(split, panel, with_samples)
        role[with_samples[region == fold]] = 2
        inside = with_samples[(region != fold) & (region >= 0)]
        role[inside] = 0
        role[rng.permutation(inside)[: round(split.holdout * len(inside))]] = 3
    rest = np.flatnonzero(role == 0)
    role[rng.permutation(rest)[: round(split.validation * len(rest))]] = 1
    test = np.flatnonzero(role == 2)
    if split.buffer_km is not None and len(test):
        role[rest[nearest_site_km(panel, rest, test) < split.buffer_km]] = -1
    of = [flat[role[site] == number] for number in range(4)]
    return SplitIndices(of[0], of[1], of[2], None if isinstance(split, SpatialSplit) else of[3])


def _clusters(split: ClusterSplit, panel: Panel, sites: np.ndarray) -> np.ndarray:
    """Cluster of each of `sites`, 0 the westernmost by mean longitude; the same for every fold."""
    from scipy.cluster.vq import ClusterError, kmeans2

    place = _unit_vectors(panel.lat[sites], panel.lon[sites])
    rng = np.random.default_rng(split.seed)
    best, code = np.inf, np.empty(0, int)
    for _ in range(RESTARTS if len(np.unique(place, axis=0)) >= split.folds else 0):
        try:
            centre, found = kmeans2(place, split.folds, iter=100, minit="++", missing="raise", rng=rng)
        except ClusterError:  # a centre lost all its sites
            continue
        spread = float(((place - centre[found]) ** 2).sum())
        if spread < best and len(np.unique(found)) == split.folds:
            best, code = spread, found
    if not len(code):
        raise InputError(
            f"{panel.name}: split {split.label}: {len(sites)} sites make no {split.folds} clusters; "
            "give fewer folds, or a table with more sites"
        )
    lon = np.bincount(code, panel.lon[sites]) / np.bincount(code)
    return np.argsort(np.argsort(lon, kind="stable"), kind="stable")[code]


def _unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """(n, 3) places on the unit sphere."""
    lat, lon = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
