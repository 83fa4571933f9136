"""Who gains and who loses: differences of two arms by the kind of monitor.

A *factor* divides the monitors into *groups*: by region, by the number of monitors around them, or by the
distance to the nearest training monitor. A column of the table, such as the setting, is a factor too. Every
group has the difference of the pooled RMSE of its monitors, with an interval.

The groups are exploratory. Many are looked at, so some differ by chance, and none is tested.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from pm25.geo import great_circle_km
from pm25.leakage import distance_to_training_km
from pm25.panel import Panel
from pm25.splits import SplitIndices
from sweeps.analysis import estimands, labels, statistics
from sweeps.analysis.artifacts import Predicted
from sweeps.analysis.statistics import TestResult
from sweeps.analysis.units import MIN_BLOCKS, MIN_ORIGINS
from sweeps.spec.claims import Analysis

AROUND_KM = 100.0
"""Radius in km in which the monitors around a monitor are counted."""

CENTRE = 39.0, -98.0
"""Latitude and longitude that divide the contiguous US into four regions, in degrees."""

REGIONS = ("Southwest", "Southeast", "Northwest", "Northeast")

FEWEST = 5
"""Fewest monitors of a group; smaller ones are left out."""

COLUMNS = ("split", "arm", "other", "factor", "group", "monitors", "n", "gain", "rmse", "diff", "low", "high")
"""Columns of `differences`."""


class Factor(NamedTuple):
    """Division of the monitors into groups."""

    name: str
    """Name as a heading, such as "nearest training monitor"."""
    groups: Sequence[str]
    """Names of the groups, in order."""
    group: np.ndarray
    """(sites,) index of each monitor's group; -1 for a monitor without one."""


class Monitors(NamedTuple):
    """Monitors of a panel with what divides them into groups."""

    site_id: np.ndarray
    """(sites,) names, ascending."""
    columns: Mapping[str, np.ndarray]
    """Texts (sites,) by the column of the table that divides the monitors; a missing one is empty."""
    around: np.ndarray
    """(sites,) number of other monitors within `AROUND_KM`."""
    nearest_km: Mapping[str, np.ndarray]
    """Distance in km to the nearest training monitor by split label, (sites,).

    It is the mean over the folds that test the monitor, and NaN for a monitor that no fold tests.
    """


def monitors(
    panel: Panel, columns: Mapping[str, np.ndarray], splits: Mapping[tuple[str, int], SplitIndices]
) -> Monitors:
    """Describe the monitors of a panel.

    `columns` has the texts (sites,) of columns of the table, and `splits` the samples of every fold by split
    label and fold.
    """
    sums: dict[str, np.ndarray] = {}
    days, sites = len(panel.dates), len(panel.site_id)
    for (label, _), indices in splits.items():
        total = sums.setdefault(label, np.zeros((2, sites)))
        tested = np.unique(indices.test // days)
        total[0, tested] += distance_to_training_km(indices, panel)[tested]
        total[1, tested] += 1
    with np.errstate(invalid="ignore"):  # 0 / 0 for a monitor that is never tested
        nearest = {label: km / folds for label, (km, folds) in sums.items()}
    km = great_circle_km(panel.lat[:, None], panel.lon[:, None], panel.lat, panel.lon)
    observed = np.isfinite(panel.target).any(axis=1)
    around = (km[:, observed] <= AROUND_KM).sum(axis=1) - observed  # without itself
    return Monitors(panel.site_id, columns, around, nearest)


def differences(sums: Predicted, rows: pd.DataFrame, analysis: Analysis, found: Monitors) -> pd.DataFrame:
    """Compare every arm with 'none' on the test samples of each group of monitors.

    The result has the columns `COLUMNS`, with a line for each group. `monitors` and `n` are its numbers of
    monitors and of predictions, `rmse` is that of `other`, and `diff` is arm minus other, in ug/m3. Both are
    over the folds and seeds that both arms have. `gain` is the share of its monitors whose own RMSE is lower
    with the arm.

    The difference is that of the pooled RMSE, with the interval of the jackknife over blocks of monitors. On
    checkerboards it is the mean over origins, with the interval of the corrected repeated t-test. `low` and
    `high` are NaN for fewer than `MIN_BLOCKS` effective blocks, or `MIN_ORIGINS` origins.
    """
    arms = list(dict.fromkeys(labels.with_arm(rows)["arm"]))
    level, lines = 1 - analysis.alpha, []
    for split in dict.fromkeys(rows["split"].tolist()):
        of_split = rows[rows["split"] == split]
        kind, regime = of_split[["kind", "regime"]].iloc[0]
        degrees = analysis.block_degrees if regime == labels.WR else estimands.far_degrees(kind)
        origins = (
            dict(zip(of_split["fold"], of_split["unit"], strict=True)) if kind in estimands.BOARDS else {}
        )
        for arm in arms:
            if arm != labels.BASELINE and {arm, labels.BASELINE} <= {*sums.arms(split)}:
                pair = _Pair.read(sums, arm, split)
                test = (
                    partial(_Pair.over_origins, origins=origins, level=level)
                    if origins
                    else partial(_Pair.over_blocks, degrees=degrees, level=level)
                )
                of_pair = _of_pair(pair, found, split, test)
                lines += [{"split": split, "arm": arm, "other": labels.BASELINE, **line} for line in of_pair]
    return pd.DataFrame(lines, columns=list(COLUMNS))


class _Pair(NamedTuple):
    """Sums of an arm and of 'none' by monitor."""

    site_id: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    folds: Sequence[int]
    """Fold of each pair of cells."""
    by_cell: np.ndarray
    """(cells, 2, sites, 6) sums of the arm and of 'none', with the columns of `statistics.score`."""

    @classmethod
    def read(cls, sums: Predicted, arm: str, split: str) -> _Pair:
        """Take the sums of the folds and seeds that both arms have."""
        ours, theirs = (sums.keys(name, split) for name in (arm, labels.BASELINE))
        places = [place for place in ours if place in theirs]
        by_cell = np.zeros((len(places), 2, len(sums.site_id), 6))
        for totals, place in zip(by_cell, places, strict=True):
            for side, key in zip(totals, (ours[place], theirs[place]), strict=True):
                if (stored := sums.of(key)) is not None:
                    side[stored[0]] = stored[1]
        return cls(sums.site_id, sums.lat, sums.lon, [fold for fold, _ in places], by_cell)

    def of(self, chosen: np.ndarray) -> _Pair:
        """Return the pair with some of its monitors."""
        site_id, lat, lon = self.site_id[chosen], self.lat[chosen], self.lon[chosen]
        return _Pair(site_id, lat, lon, self.folds, self.by_cell[:, :, chosen])

    @property
    def totals(self) -> np.ndarray:
        """(2, sites, 6) sums over folds and seeds."""
        return np.asarray(self.by_cell.sum(axis=0))

    def over_blocks(self, degrees: float, level: float) -> TestResult:
        """Test the difference of the pooled RMSE by the jackknife over blocks of monitors."""
        ours, theirs = self.totals
        found = statistics.block_jackknife_of_totals(
            ours,
            theirs,
            self.lat,
            self.lon,
            degrees=degrees,
            metric="rmse",
            offsets=estimands.GRIDS,
            level=level,
        )
        blocks = estimands.blocks_of_monitors(self.lat, self.lon, ours[:, statistics.N], degrees)
        return found if blocks >= MIN_BLOCKS else found._replace(low=math.nan, high=math.nan)

    def over_origins(self, origins: Mapping[int, int], level: float) -> TestResult:
        """Test the mean difference of the RMSE over origins, each the mean of its folds with samples."""
        ours, theirs = (
            statistics.score(side, "rmse") for side in self.by_cell.sum(axis=2).transpose(1, 0, 2)
        )
        by_fold = pd.DataFrame({"fold": self.folds, "diff": ours - theirs}).groupby("fold")["diff"].mean()
        frame = by_fold.dropna().reset_index()
        means = frame["diff"].groupby(frame["fold"].map(origins)).mean().to_numpy()
        found = statistics.corrected_t(means, 1.0, level=level)
        return found if len(means) >= MIN_ORIGINS else found._replace(low=math.nan, high=math.nan)


def _of_pair(
    pair: _Pair, found: Monitors, split: str, test: Callable[[_Pair], TestResult]
) -> Iterator[dict[str, object]]:
    """Yield the line of every group of monitors of one arm and split."""
    pair = pair.of(np.all(pair.totals[:, :, statistics.N] > 0, axis=0))
    for factor in _factors(found, pair, split):
        for number, name in enumerate(factor.groups):
            own = pair.of(factor.group == number)
            if len(own.site_id) < FEWEST:
                continue
            ours, theirs = own.totals
            result = test(own)
            yield {
                "factor": factor.name,
                "group": name,
                "monitors": len(own.site_id),
                "n": int(ours[:, statistics.N].sum()),
                "gain": float((statistics.score(ours, "rmse") < statistics.score(theirs, "rmse")).mean()),
                "rmse": float(statistics.score(theirs.sum(axis=0), "rmse")),
                "diff": result.estimate,
                "low": result.low,
                "high": result.high,
            }


def _factors(found: Monitors, pair: _Pair, split: str) -> Iterator[Factor]:
    """Yield the factors that divide the monitors of a pair into two groups or more."""
    place = np.searchsorted(found.site_id, pair.site_id)
    region = Factor("region", REGIONS, 2 * (pair.lat >= CENTRE[0]) + (pair.lon >= CENTRE[1]))
    nearest = found.nearest_km.get(split, np.full(len(found.site_id), np.nan))[place]
    factors = [
        *(_of_column(name, values[place]) for name, values in found.columns.items()),
        region,
        _in_thirds("nearest training monitor", nearest, "km"),
        _in_thirds(f"monitors within {AROUND_KM:g} km", found.around[place], ""),
    ]
    for factor in factors:
        if len(np.unique(factor.group[factor.group >= 0])) > 1:
            yield factor


def _of_column(name: str, values: np.ndarray) -> Factor:
    """Make a factor of the texts of a column, in their order; an empty text makes no group."""
    groups = np.unique(values[values != ""])
    group = np.where(values == "", -1, np.searchsorted(groups, values))
    return Factor(name, groups.tolist(), group)


def _in_thirds(name: str, values: np.ndarray, unit: str) -> Factor:
    """Divide monitors into thirds of their numbers; equal numbers are in one group."""
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], [1 / 3, 2 / 3]).round()) if known.any() else np.empty(0)
    unit = f" {unit}" if unit else ""
    texts = [f"{edge:,.0f}" for edge in edges]
    names = [f"below {texts[0]}{unit}"] if texts else ["all"]
    names += [f"{low} to {high}{unit}" for low, high in itertools.pairwise(texts)]
    names += [f"{texts[-1]}{unit} or more"] if texts else []
    if not unit:  # a number of monitors: one of [0, 1) is none
        names = ["none" if name in ("below 1", "0 to 1") else name for name in names]
    group = np.where(known, np.searchsorted(edges, values, side="right"), -1)
    return Factor(name, names, group)
