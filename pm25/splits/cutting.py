"""Cutting of a panel's samples into the training, validation and test sets of one fold."""

from dataclasses import dataclass

import numpy as np

from pm25.errors import InputError
from pm25.geo import inside_conus, nearest_km, unit_vectors
from pm25.panel import Panel
from pm25.splits.grids import checkerboard, grid_origin, grid_square
from pm25.splits.kinds import (
    AnySplit,
    BlocksSplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    ClusterSplit,
    GroupSplit,
    KNNDMSplit,
    PeriodSplit,
    RandomSplit,
    RegionSplit,
    RollingSplit,
    SiteSplit,
    TemporalSplit,
)
from pm25.splits.knndm import MatchedFolds, matched_folds, random_folds

RESTARTS = 10
"""Runs of k-means, which ends in a local optimum; the best of ten runs hardly depends on the seed."""

BLOCKS_STREAM, ROTATION_STREAM = 1, 2
"""Numbers that keep the random draws of blocks and of rotating holdouts apart from all others of a split."""

BLOCK_ROWS = 10**6
"""Number above that of all rows of a grid, to give every block one number."""


@dataclass(frozen=True)
class SplitIndices:
    """Samples of the disjoint sets, each as ascending flat indices `site * days + day`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    wr: np.ndarray | None
    """Within-region test set: held-out sites of the training side; None except for out-of-region splits."""


def cut(split: AnySplit, fold: int, panel: Panel, window: int) -> SplitIndices:
    """Split the panel's samples. The split has its own seed and does not depend on that of the training.

    Raises InputError if a set is empty, a group is not in the table, or a gap is too short.
    """
    site, day = panel.samples(window)
    flat = site.astype(np.int64) * len(panel.dates) + day
    if isinstance(split, RandomSplit):
        indices = _by_sample(split, fold, flat)
    elif isinstance(split, PeriodSplit):
        indices = _by_time(split, fold, panel, window, flat, day)
    else:
        indices = _by_site(split, fold, panel, flat, site)
    for name in ("train", "validation", "test", "wr"):
        chosen = getattr(indices, name)
        if chosen is not None and not len(chosen):
            lacking = "days" if isinstance(split, PeriodSplit) else "sites"
            raise InputError(
                panel.name,
                f"split {split.label} fold {fold}",
                f"leaves its {name} part empty, with {len(flat)} samples at {len(np.unique(site))} sites",
                f"take another split, or a table with more {lacking}",
            )
    return indices


def regions(split: RegionSplit, panel: Panel, sites: np.ndarray, repeat: int = 0) -> np.ndarray:
    """Return, for each of `sites` (indices), the number of its region, or -1 if it is in no set.

    `SplitSettings.position` has the region that a fold tests, and the origin or deal `repeat` in which it is
    a region. The number `folds` stands for a region that no fold tests: values that a group split does not
    list. Raises InputError if a group is not in the table, or if there are fewer regions than folds.
    """
    if isinstance(split, CheckerboardSplit | CheckerboardsSplit):
        return checkerboard(panel.lat[sites], panel.lon[sites], split.degrees, shift(split, repeat))
    if isinstance(split, BlocksSplit):
        return _dealt_blocks(split, repeat, panel, sites)
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


def shift(
    split: CheckerboardSplit | CheckerboardsSplit | BlocksSplit, repeat: int = 0
) -> tuple[float, float] | None:
    """Return the shift (longitude, latitude) in degrees of the grid at an origin, or of a deal."""
    if isinstance(split, CheckerboardSplit):
        return split.origin
    return grid_origin(repeat, split.degrees)


def site_folds(split: SiteSplit, panel: Panel, sites: np.ndarray) -> np.ndarray:
    """Return the fold that tests each of `sites` (indices); (len(sites),)."""
    if isinstance(split, KNNDMSplit):
        return matched(split, panel, sites).fold
    return random_folds(len(sites), split.folds, split.seed)


def matched(split: KNNDMSplit, panel: Panel, sites: np.ndarray) -> MatchedFolds:
    """Match the folds of `sites` (indices) to the prediction domain of the panel."""
    return matched_folds(
        panel.lat[sites],
        panel.lon[sites],
        panel.prediction_places,
        folds=split.folds,
        max_share=split.max_share,
        seed=split.seed,
        where=f"{panel.name}: split {split.label}",
    )


def nearest_site_km(panel: Panel, sites: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Great-circle distance (km) from each of `sites` to the nearest of `others`; (len(sites),).

    Both are indices, and `others` is not empty. The distance from a site to itself is 0.
    """
    places = panel.lat[sites], panel.lon[sites]
    return nearest_km(*places, panel.lat[others], panel.lon[others])


def _by_sample(split: RandomSplit, fold: int, flat: np.ndarray) -> SplitIndices:
    # `partition` does not depend on the fold, so that the k test sets are disjoint.
    partition, rng = np.random.default_rng(split.seed), np.random.default_rng([split.seed, fold])
    test, validation = np.zeros((2, len(flat)), bool)
    test[np.array_split(partition.permutation(len(flat)), split.folds)[fold]] = True
    rest = np.flatnonzero(~test)
    validation[rng.permutation(rest)[: round(split.validation * len(rest))]] = True
    return SplitIndices(flat[~test & ~validation], flat[validation], flat[test], None)


def _by_time(
    split: TemporalSplit | RollingSplit,
    fold: int,
    panel: Panel,
    window: int,
    flat: np.ndarray,
    day: np.ndarray,
) -> SplitIndices:
    gap = window - 1 if split.gap_days is None else split.gap_days
    if gap < window - 1:
        raise InputError(
            panel.name,
            f"split {split.label}",
            f"with gap_days {gap}, a test window of {window} days reaches into the training period",
            f"leave gap_days out, or give at least {window - 1}",
        )
    start, end = _test_period(split, fold, panel)
    last = start - gap - 1  # last day of the training side
    days = max(last - (window - 1) + 1, 0)
    first = last - max(1, round(split.validation * days)) + 1  # first validation day
    return SplitIndices(
        train=flat[day < first - gap],
        validation=flat[(day >= first) & (day <= last)],
        test=flat[(day >= start) & (day < end)],
        wr=None,
    )


def _test_period(split: TemporalSplit | RollingSplit, fold: int, panel: Panel) -> tuple[int, int]:
    """Return the first day of the test period of a fold, and the day after its last one, as indices."""
    days = len(panel.dates)
    if isinstance(split, RollingSplit):
        length = (days - round(split.start * days)) // split.folds
        start = days - (split.folds - fold) * length
        return start, start + length
    start = int((np.datetime64(split.test_from, "D") - panel.dates[0]).astype(int))
    if not 0 < start < days:
        raise InputError(
            panel.name,
            f"split {split.label}",
            f"test_from {split.test_from} is not after the first and up to the last day of the table",
            f"give a day within {panel.dates[0]} to {panel.dates[-1]}",
        )
    return start, days


def _by_site(
    split: SiteSplit | RegionSplit, fold: int, panel: Panel, flat: np.ndarray, site: np.ndarray
) -> SplitIndices:
    rng = np.random.default_rng([split.seed, fold])
    # 0 train, 1 validation, 2 test, 3 within-region test, -1 in no set.
    role = np.full(len(panel.site_id), -1)
    with_samples = np.unique(site)
    if isinstance(split, SiteSplit):
        role[with_samples] = np.where(site_folds(split, panel, with_samples) == fold, 2, 0)
    else:
        position = split.position(fold)
        region = regions(split, panel, with_samples, position.repeat)
        role[with_samples[region == position.region]] = 2
        training_side = with_samples[(region != position.region) & (region >= 0)]
        role[training_side] = 0
        if split.holdout == "rotate":
            # All folds that test this colour divide its training side in the same way.
            deal = np.random.default_rng([split.seed, fold // split.parts, ROTATION_STREAM])
            parts = np.array_split(deal.permutation(training_side), split.parts)
            role[parts[position.part]] = 3
        else:
            role[rng.permutation(training_side)[: round(split.holdout * len(training_side))]] = 3
    rest = np.flatnonzero(role == 0)
    role[rng.permutation(rest)[: round(split.validation * len(rest))]] = 1
    test = np.flatnonzero(role == 2)
    if split.buffer_km is not None and len(test):
        role[rest[nearest_site_km(panel, rest, test) < split.buffer_km]] = -1
    train, validation, held_out, wr = (flat[role[site] == number] for number in range(4))
    return SplitIndices(train, validation, held_out, None if isinstance(split, SiteSplit) else wr)


def _dealt_blocks(split: BlocksSplit, deal: int, panel: Panel, sites: np.ndarray) -> np.ndarray:
    """Fold of a deal to which the block of each of `sites` is dealt, or -1 outside CONUS."""
    lat, lon = panel.lat[sites], panel.lon[sites]
    inside = inside_conus(lat, lon)
    square = grid_square(lat[inside], lon[inside], split.degrees, shift(split, deal))
    column, row = (number.astype(np.int64) for number in square)
    blocks, block = np.unique(column * BLOCK_ROWS + row, return_inverse=True)
    if len(blocks) < split.folds:
        raise InputError(
            panel.name,
            f"split {split.label}",
            f"{len(blocks)} blocks with sites cannot be dealt to {split.folds} folds",
            "give fewer folds or smaller blocks",
        )
    rng = np.random.default_rng([split.seed, deal, BLOCKS_STREAM])
    dealt = np.empty(len(blocks), int)
    dealt[rng.permutation(len(blocks))] = np.arange(len(blocks)) % split.folds
    region = np.full(len(sites), -1)
    region[inside] = dealt[block]
    return region


def _clusters(split: ClusterSplit, panel: Panel, sites: np.ndarray) -> np.ndarray:
    """Cluster of each of `sites`, numbered from west to east by mean longitude; equal in every fold."""
    from scipy.cluster.vq import ClusterError, kmeans2

    place = unit_vectors(panel.lat[sites], panel.lon[sites])
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
