"""Files stored next to the records of done cells, gathered by arm: predictions, histories, importances.

A cell has as many predictions as scored samples, too many to keep those of a study in memory. So each file is
read once and becomes sums by site and counts on a fixed grid, which add up over folds and seeds.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from pm25.errors import InputError
from pm25.metrics import EXCEEDANCE_UGM3
from sweeps.analysis import episodes, labels
from sweeps.analysis.episodes import CellEpisodes, Episode
from sweeps.analysis.estimands import JACKKNIFE_DEGREES
from sweeps.analysis.held_out_errors import HeldOutErrors
from sweeps.store.records import READERS, Store

COLUMNS = ("n", "e", "abs_e", "e2", "y", "y2")
"""Columns of the sums by site: n, error (predicted - observed), |error|, error^2, observed, observed^2."""

BEND_UGM3 = 5.0
"""Scale of the density's grid, which is even in arcsinh(y / 5).

It is linear near zero, where clean days may read below zero, and logarithmic above, where smoke is.
"""

DENSITY_EDGES = BEND_UGM3 * np.sinh(
    np.linspace(np.arcsinh(-10 / BEND_UGM3), np.arcsinh(1000 / BEND_UGM3), 121)
)
"""Edges (121,) in ug/m3; values beyond them are counted in the bins at the ends."""

CALIBRATION_EDGES = np.array([0, 2, 4, 6, 8, 10, 12.5, 15, 20, 25, 30, EXCEEDANCE_UGM3, 45, 60, 80, 120, 200])
"""Edges of bins of predicted values, in ug/m3, the lower edge included; the bins at the ends are open."""

ERROR_EDGES = np.geomspace(1e-3, 1e4, 701)
"""Edges of bins of the absolute error, in ug/m3, each 2.3 % wide; the bins at the ends are open."""

MONITORS = 10
"""Number of monitors whose share of the squared error is reported."""

BY_DAY = ("random", "temporal", "rolling")
"""Kinds of splits whose test sums up days."""


class Tail(NamedTuple):
    """Numbers of samples that are at or above 35.5 ug/m3: observed, predicted, and both."""

    observed: int
    predicted: int
    both: int


class Leverage(NamedTuple):
    """Shares of the squared error that few samples hold."""

    n: int
    """Number of predictions."""
    top_permille: float
    """Share of the .1 % of the predictions with the largest errors."""
    top_percent: float
    """Share of the 1 % of the predictions with the largest errors."""
    monitors: float
    """Share of the 10 monitors (`MONITORS`) with the largest sums."""
    week: float
    """Share of the week, from Monday to Sunday, with the largest sum."""
    week_first: str
    """First day of that week, such as 2021-07-12."""


class PredictionGroup(NamedTuple):
    """Cells whose predictions are pooled: one arm on one evaluation set of a split."""

    arm: str
    split: str
    part: str


@dataclass
class _Pool:
    """Counts and sums over the predictions of a group."""

    density: np.ndarray
    calibration: np.ndarray
    tail: np.ndarray
    errors: np.ndarray
    """(bins, 2), number and sum of squares of the errors in the bins of `ERROR_EDGES`."""
    weeks: dict[int, float]
    """Sum of the squared errors by week, counted from the Monday before 1970-01-01."""
    held_out: HeldOutErrors

    @classmethod
    def empty(cls, degrees: float) -> _Pool:
        side = len(DENSITY_EDGES) - 1
        bins = len(CALIBRATION_EDGES) + 1
        errors = np.zeros((len(ERROR_EDGES) - 1, 2))
        density, tail = np.zeros((side, side), np.int64), np.zeros(3, np.int64)
        return cls(density, np.zeros((bins, 3)), tail, errors, {}, HeldOutErrors(degrees))

    def add(self, truth: np.ndarray, prediction: np.ndarray, day: np.ndarray) -> None:
        side, bins = len(self.density), len(self.calibration)
        place = _density_bin(truth) * side + _density_bin(prediction)
        self.density += np.bincount(place, minlength=side * side).reshape(side, side)
        bin_ = np.searchsorted(CALIBRATION_EDGES, prediction, side="right")
        for column, weights in enumerate((None, truth, prediction)):
            self.calibration[:, column] += np.bincount(bin_, weights, minlength=bins)
        high, predicted_high = truth >= EXCEEDANCE_UGM3, prediction >= EXCEEDANCE_UGM3
        self.tail += [high.sum(), predicted_high.sum(), (high & predicted_high).sum()]
        square = (prediction - truth) ** 2
        size = _error_bin(square)
        for column, weights in enumerate((None, square)):
            self.errors[:, column] += np.bincount(size, weights, minlength=len(self.errors))
        week = episodes.of_samples(day, day, day, everywhere=True)[:, 0]
        for number, total in enumerate(np.bincount(week - week.min(), square), int(week.min())):
            self.weeks[number] = self.weeks.get(number, 0.0) + float(total)

    def share_of_largest(self, share: float) -> float:
        """Return the share of the squared error that the largest errors hold, a `share` of all predictions.

        A bin that is needed in part counts by its mean.
        """
        n, square = self.errors[::-1].T
        wanted = share * n.sum()
        before = np.cumsum(n) - n
        used = np.clip(wanted - before, 0, n)
        with np.errstate(invalid="ignore"):  # empty bins
            return float(np.where(n > 0, used / n * square, 0).sum() / square.sum())


class Predicted:
    """Sums over the predictions of a study's done cells, by cell and site and by arm and split.

    Both are by evaluation set (`part`, 'test' or 'wr') too. `site_id`, `lat` and `lon` (degrees) are
    (sites,), sorted by name.
    """

    def __init__(
        self,
        site_id: np.ndarray,
        lat: np.ndarray,
        lon: np.ndarray,
        sums: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]],
        days: Mapping[str, tuple[np.ndarray, np.ndarray]],
        pools: Mapping[PredictionGroup, _Pool],
        cells: pd.DataFrame,
        store: Store,
    ) -> None:
        self.site_id, self.lat, self.lon = site_id, lat, lon
        self._sums, self._days, self._pools, self._cells = sums, days, pools, cells
        self._store = store
        self._by_episode: dict[tuple[str, str, bool], CellEpisodes | None] = {}

    def of(self, key: str, part: str = "test") -> tuple[np.ndarray, np.ndarray] | None:
        """Look up the sums of one cell: site index (m,) int32 and totals (m, 6) float64, as in `COLUMNS`.

        The result is None if the cell stored no predictions of that evaluation set. From totals, added over
        sites, `rmse = sqrt(e2 / n)`, `mae = abs_e / n`, `mbe = e / n`, `r2 = 1 - e2 / (y2 - y^2 / n)`.
        """
        return self._sums.get((key, part))

    def by_day(self, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Look up the sums of a cell's test set by day: days since 1970 (m,) and totals (m, 6).

        The result is None for a cell without predictions, and for kinds of splits not in `BY_DAY`.
        """
        return self._days.get(key)

    def arms(self, split: str, part: str = "test") -> list[str]:
        """List the arms that have predictions on one evaluation set of a split."""
        return [group.arm for group in self._pools if (group.split, group.part) == (split, part)]

    def site_errors(self, arm: str, split: str, part: str = "test") -> pd.DataFrame:
        """Score every site over the pooled cells, in ug/m3: site_id, lat, lon, n, bias, rmse.

        The bias is the mean of predicted - observed. Sites without predictions are left out; the others are
        sorted by name.
        """
        totals = self._totals(self.keys(arm, split), part)
        seen = np.flatnonzero(totals[:, 0])
        n, error, squared = totals[seen][:, [0, 1, 3]].T
        return pd.DataFrame(
            {
                "site_id": self.site_id[seen],
                "lat": self.lat[seen],
                "lon": self.lon[seen],
                "n": n.astype("int64"),
                "bias": error / n,
                "rmse": np.sqrt(squared / n),
            }
        )

    def site_differences(self, arm: str, other: str, split: str) -> pd.DataFrame:
        """Subtract the RMSE of `other` from that of `arm`, site by site: site_id, lat, lon, n, difference.

        The scores (ug/m3) are over the folds and seeds that both arms have; n counts the predictions of one.
        """
        a, b = self.pair(arm, other, split)
        seen = np.flatnonzero((a[:, 0] > 0) & (b[:, 0] > 0))
        rmse = [np.sqrt(totals[seen, 3] / totals[seen, 0]) for totals in (a, b)]
        return pd.DataFrame(
            {
                "site_id": self.site_id[seen],
                "lat": self.lat[seen],
                "lon": self.lon[seen],
                "n": a[seen, 0].astype("int64"),
                "difference": rmse[0] - rmse[1],
            }
        )

    def pair(self, arm: str, other: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Add up two arms by site over the folds and seeds that both have: (sites, 6) each, as `COLUMNS`."""
        keys_a, keys_b = self.keys(arm, split), self.keys(other, split)
        places = [place for place in keys_a if place in keys_b]
        a, b = (self._totals({place: keys[place] for place in places}, "test") for keys in (keys_a, keys_b))
        return a, b

    def totals(self, arm: str, split: str) -> np.ndarray:
        """Add up the pooled cells: (6,), as in `COLUMNS`."""
        return self._totals(self.keys(arm, split), "test").sum(axis=0)

    def held_out_errors(self, arm: str, split: str, part: str = "test") -> HeldOutErrors:
        """Return the scores of the pooled predictions by fold and region."""
        return self._pools[PredictionGroup(arm, split, part)].held_out

    def density(self, arm: str, split: str, part: str = "test") -> np.ndarray:
        """Count the pooled predictions on `DENSITY_EDGES`: (observed bins, predicted bins)."""
        return self._pools[PredictionGroup(arm, split, part)].density

    def calibration(self, arm: str, split: str) -> pd.DataFrame:
        """Average the pooled samples by predicted bin: low, high, n, observed, predicted (ug/m3).

        Empty bins are left out.
        """
        n, observed, predicted = self._pools[PredictionGroup(arm, split, "test")].calibration.T
        edges = np.array([-np.inf, *CALIBRATION_EDGES, np.inf])
        frame = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": n.astype("int64")})
        some = n > 0
        return (
            frame[some]
            .assign(observed=observed[some] / n[some], predicted=predicted[some] / n[some])
            .reset_index(drop=True)
        )

    def tail(self, arm: str, split: str) -> Tail:
        """Count the exceedances among the pooled samples."""
        return Tail(*map(int, self._pools[PredictionGroup(arm, split, "test")].tail))

    def leverage(self) -> pd.DataFrame:
        """Share the squared error out to few samples: arm, split, part and the columns of `Leverage`.

        There is a line for every arm and evaluation set of a split, over its pooled folds and seeds.
        """
        lines = []
        for group, pool in self._pools.items():
            square = self._totals(self.keys(group.arm, group.split), group.part)[:, 3]
            total = square.sum()
            if total == 0:
                continue
            week = max(pool.weeks, key=lambda number: pool.weeks[number])
            first = episodes.Episode(episodes.WEEK, week, 0, 0).first
            found = Leverage(
                int(pool.errors[:, 0].sum()),
                pool.share_of_largest(0.001),
                pool.share_of_largest(0.01),
                float(np.sort(square)[-MONITORS:].sum() / total),
                pool.weeks[week] / total,
                str(first),
            )
            lines.append({**group._asdict(), **found._asdict()})
        return pd.DataFrame(lines, columns=[*PredictionGroup._fields, *Leverage._fields])

    def by_episode(
        self, keys: Sequence[str], part: str = "test", *, everywhere: bool
    ) -> dict[str, CellEpisodes] | None:
        """Read the sums of cells by episode (`sweeps.analysis.episodes`); None if a cell has no predictions.

        The files are read again, each once.
        """
        new = [key for key in dict.fromkeys(keys) if (key, part, everywhere) not in self._by_episode]
        for key, table in zip(new, _tables(self._store, new), strict=True):
            samples = _Samples.of(table, part)
            self._by_episode[key, part, everywhere] = None if samples is None else samples.sums(everywhere)
        found = {key: self._by_episode[key, part, everywhere] for key in keys}
        return {key: sums for key, sums in found.items() if sums} if all(found.values()) else None

    def without(self, keys: Sequence[str], episode: Episode, part: str = "test") -> Predicted:
        """Read the cells again, and sum up their predictions of one evaluation set beside an episode.

        A cell that has no predictions beside the episode has none in the result.
        """
        number = {name: i for i, name in enumerate(self.site_id.tolist())}
        sums: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        days: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        keys = list(dict.fromkeys(keys))
        for key, table in zip(keys, _tables(self._store, keys), strict=True):
            samples = _Samples.of(table, part)
            if samples is None:
                continue
            samples = samples.without(episode)
            if not len(samples.day):
                continue
            sites, site = np.unique(samples.site, return_inverse=True)
            index = np.array([number[name] for name in sites], np.int32)
            sums[key, part] = index, _totals(site, samples.truth, samples.prediction, len(sites))
            if (key in self._days) and part == "test":
                day, at = np.unique(samples.day, return_inverse=True)
                days[key] = day, _totals(at, samples.truth, samples.prediction, len(day))
        return Predicted(self.site_id, self.lat, self.lon, sums, days, {}, self._cells, self._store)

    def squared_errors(self, key: str, site_id: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Read the squared errors of a cell on test samples, by site and day since 1970; (n,).

        A sample without a prediction has NaN.
        """
        (table,) = _tables(self._store, [key])
        samples = _Samples.of(table, "test")
        if samples is None:
            return np.full(len(day), np.nan)
        square = pd.Series((samples.prediction - samples.truth) ** 2, [samples.site, samples.day])
        square = square[~square.index.duplicated()]
        return np.asarray(square.reindex(pd.MultiIndex.from_arrays([site_id, day])), np.float64)

    def keys(self, arm: str, split: str) -> dict[tuple[int, int], str]:
        """Return the keys of the pooled cells by fold and seed."""
        cells = self._cells[(self._cells["arm"] == arm) & (self._cells["split"] == split)]
        return {
            (fold, seed): key
            for fold, seed, key in zip(cells["fold"], cells["seed"], cells["key"], strict=True)
        }

    def _totals(self, keys: Mapping[tuple[int, int], str], part: str) -> np.ndarray:
        """Add up cells by site: (sites, 6)."""
        totals = np.zeros((len(self.site_id), len(COLUMNS)))
        for key in keys.values():
            if (found := self.of(key, part)) is not None:
                totals[found[0]] += found[1]
        return totals


class _Samples(NamedTuple):
    """Predictions of one evaluation set of a cell, an array per column (n,)."""

    site: np.ndarray
    """Names of the sites."""
    lat: np.ndarray
    lon: np.ndarray
    day: np.ndarray
    """Days since 1970."""
    truth: np.ndarray
    prediction: np.ndarray

    @classmethod
    def of(cls, table: pa.Table | None, part: str) -> _Samples | None:
        """Take the samples of one evaluation set from a table; None without any."""
        if table is None:
            return None
        parts, part_of = _coded(table["part"])
        chosen = part_of == (parts.index(part) if part in parts else -1)
        if not chosen.any():
            return None
        sites, site = _coded(table["site_id"])
        numbers = (table[name].to_numpy() for name in ("lat", "lon", "truth", "prediction"))
        lat, lon, truth, prediction = (values[chosen].astype("float64") for values in numbers)
        return cls(np.array(sites)[site[chosen]], lat, lon, _days(table)[chosen], truth, prediction)

    def sums(self, everywhere: bool) -> CellEpisodes:
        """Add up the samples by episode."""
        numbers = episodes.of_samples(self.day, self.lat, self.lon, everywhere=everywhere)
        found, at = np.unique(numbers, axis=0, return_inverse=True)
        return CellEpisodes(found, _totals(at.reshape(-1), self.truth, self.prediction, len(found)))

    def without(self, episode: Episode) -> _Samples:
        """Return the samples that are not of an episode."""
        rest = ~episodes.inside(episode, self.day, self.lat, self.lon)
        return _Samples(*(values[rest] for values in self))


def predictions(store: Store, rows: pd.DataFrame, *, degrees: float = JACKKNIFE_DEGREES) -> Predicted | None:
    """Read the predictions of the done cells of `rows`, each file once; None if no cell has a file.

    `degrees` is the edge of the regions by which the scores of intervals are counted.

    A done cell without a file is left out. Reading takes about 1 ms per file and 0.1 us per prediction. In
    memory a cell takes 52 bytes for each of its sites, and a fold of an arm 3 kB for each of its regions.
    Raises InputError for a file that is not such a table.
    """
    cells = labels.with_arm(rows)
    cells = cells.loc[cells["state"] == "done", ["key", "arm", "split", "kind", "fold", "seed"]]
    number: dict[str, int] = {}
    place: list[tuple[float, float]] = []
    sums: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    days: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    pools: dict[PredictionGroup, _Pool] = {}
    keys, tables = cells["key"].tolist(), _tables(store, cells["key"].tolist())
    for arm, split, kind, fold, key, table in zip(
        cells["arm"], cells["split"], cells["kind"], cells["fold"], keys, tables, strict=True
    ):
        if table is None or not table.num_rows:
            continue
        parts, part = _coded(table["part"])
        sites, site = _coded(table["site_id"])
        lat, lon = (table[name].to_numpy() for name in ("lat", "lon"))
        truth, prediction = (table[name].to_numpy().astype("float64") for name in ("truth", "prediction"))
        days_of = _days(table)
        if any(name not in number for name in sites):
            _, first = np.unique(site, return_index=True)
            for i in first:
                if number.setdefault(sites[site[i]], len(number)) == len(place):
                    place.append((float(lat[i]), float(lon[i])))
        index = np.array([number.get(name, -1) for name in sites], np.int32)
        for code, name in enumerate(parts):
            chosen = slice(None) if len(parts) == 1 else part == code
            own_site, own_truth, own_prediction = site[chosen], truth[chosen], prediction[chosen]
            if not len(own_site):
                continue
            totals = _totals(own_site, own_truth, own_prediction, len(sites))
            seen = np.flatnonzero(totals[:, 0])
            sums[key, name] = index[seen], totals[seen]
            if name == "test" and kind in BY_DAY:
                day = days_of[chosen]
                start = int(day.min())
                by_day = _totals(day - start, own_truth, own_prediction, int(day.max()) - start + 1)
                some = np.flatnonzero(by_day[:, 0])
                days[key] = some + start, by_day[some]
            group = PredictionGroup(arm, split, name)
            pool = pools.setdefault(group, _Pool.empty(degrees))
            pool.add(own_truth, own_prediction, days_of[chosen])
            pool.held_out.add(int(fold), lat[chosen], lon[chosen], own_truth, own_prediction)
    if not sums:
        return None
    names = np.array(list(number))
    order = np.argsort(names)
    new = np.empty(len(order), np.int32)
    new[order] = np.arange(len(order), dtype=np.int32)
    for at, (index, totals) in sums.items():
        sums[at] = new[index], totals
    lat, lon = np.array(place)[order].T
    return Predicted(names[order], lat, lon, sums, days, pools, cells, store)


def _tables(store: Store, keys: list[str]) -> Iterator[pa.Table | None]:
    """Read the tables of the cells in turn; None for a cell that has none."""
    system, _ = store.location()

    def read_one(key: str) -> pa.Table | None:
        with contextlib.suppress(FileNotFoundError):
            return store.read_result(key, "predictions")
        return None

    if isinstance(system, pyarrow.fs.LocalFileSystem):
        yield from map(read_one, keys)
        return
    with ThreadPoolExecutor(READERS) as pool:  # each read takes requests; a few at a time limits memory
        for start in range(0, len(keys), READERS):
            yield from pool.map(read_one, keys[start : start + READERS])


def _coded(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Encode a column of texts as its distinct texts and the index of each row's text."""
    array = column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return array.dictionary.to_pylist(), array.indices.to_numpy()


def _totals(group: np.ndarray, truth: np.ndarray, prediction: np.ndarray, groups: int) -> np.ndarray:
    """Add up samples by their group, a site or a day: (groups, 6), as in `COLUMNS`."""
    error = prediction - truth
    weights = (None, error, np.abs(error), error**2, truth, truth**2)
    return np.stack([np.bincount(group, w, minlength=groups).astype("float64") for w in weights], axis=1)


def _days(table: pa.Table) -> np.ndarray:
    """Return the days of a table's rows, since 1970."""
    return np.asarray(table["date"].cast(pa.int32()).to_numpy())


def _error_bin(square: np.ndarray) -> np.ndarray:
    """Find the bin of `ERROR_EDGES` of each squared error (n,)."""
    bins = len(ERROR_EDGES) - 1
    low, high = 2 * np.log(ERROR_EDGES[[0, -1]])
    place = (np.log(np.maximum(square, ERROR_EDGES[0] ** 2)) - low) * (bins / (high - low))
    return np.clip(place, 0, bins - 1).astype(np.int64)  # an infinite error is in the last bin


def _density_bin(values: np.ndarray) -> np.ndarray:
    low, high = np.arcsinh(DENSITY_EDGES[[0, -1]] / BEND_UGM3)
    bins = len(DENSITY_EDGES) - 1
    place = np.floor((np.arcsinh(values / BEND_UGM3) - low) * (bins / (high - low)))
    return np.clip(place, 0, bins - 1).astype(np.int64)


_IMPORTANCE = pa.schema([("what", pa.string()), ("rmse_increase", pa.float64()), ("sd", pa.float64())])

CURVES = 2000
"""Most cells whose histories are read: each is a file, and a mean over so many has settled."""


class Curves(NamedTuple):
    """Validation RMSE by epoch, with the number of cells that it comes from."""

    frame: pd.DataFrame
    """Columns arm, split, epoch, mean, low, high (ug/m3, over cells) and n (cells)."""
    read: int
    """Number of cells whose history was looked for."""
    done: int
    """Number of done cells."""


def curves(store: Store, rows: pd.DataFrame, most: int = CURVES) -> Curves:
    """Average the validation RMSE of an arm's cells on a split, epoch by epoch, with its range.

    A curve ends where fewer than half of the cells were still training. With more than `most` done cells,
    those with the first seeds are read. A cell without a history is left out.
    """
    cells = labels.with_arm(rows)
    cells = cells.loc[cells["state"] == "done", ["key", "arm", "split", "seed"]].reset_index(drop=True)
    read = cells.sort_values("seed", kind="stable").iloc[:most].sort_index()
    order = list(dict.fromkeys(zip(cells["arm"], cells["split"], strict=True)))
    values: dict[tuple[str, str], list[np.ndarray]] = {place: [] for place in order}
    for key, arm, split in zip(read["key"], read["arm"], read["split"], strict=True):
        with contextlib.suppress(FileNotFoundError):
            table = store.read_result(key, "history")
            values[arm, split].append(table["validation_rmse"].to_numpy().astype("float64"))
    lines = []
    for (arm, split), found in values.items():
        if not found:
            continue
        grid = np.full((len(found), max(map(len, found))), np.nan)
        for line, own in zip(grid, found, strict=True):
            line[: len(own)] = own
        n = np.isfinite(grid).sum(axis=0)
        for epoch in np.flatnonzero((n > 0) & (2 * n >= len(found))):
            at = grid[:, epoch][np.isfinite(grid[:, epoch])]
            lines.append((arm, split, epoch + 1, at.mean(), at.min(), at.max(), len(at)))
    frame = pd.DataFrame(lines, columns=["arm", "split", "epoch", "mean", "low", "high", "n"])
    return Curves(frame, len(read), len(cells))


def cell_importance(store: Store, key: str) -> pa.Table | None:
    """Read the stored permutation importances of a cell: what, rmse_increase, sd (ug/m3); None without any.

    Raises InputError for a file that is not such a table.
    """
    content = store.read_file(key, "importance.parquet")
    if content is None:
        return None
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        table = file.read([*_IMPORTANCE.names]).cast(_IMPORTANCE)
    except (OSError, ValueError, pa.ArrowException):
        table = None
    if table is None or not np.isfinite(table["rmse_increase"].to_numpy()).all():
        _, path = store.location(store.folder, key, "importance.parquet")
        fix = "delete the file; `sweep importance` measures it again"
        raise InputError(path, "", "damaged: not a table of importances", fix)
    return table


def importance(store: Store, rows: pd.DataFrame) -> pd.DataFrame:
    """Average permutation importances over cells: arm, split, what, rmse_increase, sd (ug/m3), n (cells).

    The column `what` names the permuted input. A cell's `importance.parquet` has the columns what,
    rmse_increase and sd. The result's sd is over the cells' increases, or that of the cell if it is the only
    one.
    """
    cells = labels.with_arm(rows)
    cells = cells[cells["state"] == "done"]
    found = []
    for key, arm, split in zip(cells["key"], cells["arm"], cells["split"], strict=True):
        if (table := cell_importance(store, key)) is not None:
            found.append(table.to_pandas().assign(arm=arm, split=split))
    columns = ["arm", "split", "what", "rmse_increase", "sd", "n"]
    if not found:
        return pd.DataFrame(columns=columns)
    by = pd.concat(found, ignore_index=True).groupby(["arm", "split", "what"], sort=False)
    frame = by.agg(
        rmse_increase=("rmse_increase", "mean"),
        over=("rmse_increase", "std"),
        own=("sd", "first"),
        n=("what", "size"),
    ).reset_index()
    return frame.assign(sd=frame["over"].where(frame["n"] > 1, frame["own"]))[columns]
