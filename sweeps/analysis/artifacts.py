"""Files stored next to the records of done cells, gathered by arm: predictions, histories, importances.

A cell has as many predictions as scored samples, too many to keep those of a study in memory. So each file is
read once and becomes sums by site and counts on a fixed grid, which add up over folds and seeds.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
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
from sweeps.analysis import labels
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

_READ = ["part", "site_id", "lat", "lon", "truth", "prediction"]


class Tail(NamedTuple):
    """Numbers of samples that are at or above 35.5 ug/m3: observed, predicted, and both."""

    observed: int
    predicted: int
    both: int


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

    @classmethod
    def empty(cls) -> _Pool:
        side = len(DENSITY_EDGES) - 1
        bins = len(CALIBRATION_EDGES) + 1
        return cls(np.zeros((side, side), np.int64), np.zeros((bins, 3)), np.zeros(3, np.int64))

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        side, bins = len(self.density), len(self.calibration)
        place = _density_bin(truth) * side + _density_bin(prediction)
        self.density += np.bincount(place, minlength=side * side).reshape(side, side)
        bin_ = np.searchsorted(CALIBRATION_EDGES, prediction, side="right")
        for column, weights in enumerate((None, truth, prediction)):
            self.calibration[:, column] += np.bincount(bin_, weights, minlength=bins)
        high, predicted_high = truth >= EXCEEDANCE_UGM3, prediction >= EXCEEDANCE_UGM3
        self.tail += [high.sum(), predicted_high.sum(), (high & predicted_high).sum()]


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
        pools: Mapping[PredictionGroup, _Pool],
        cells: pd.DataFrame,
    ) -> None:
        self.site_id, self.lat, self.lon = site_id, lat, lon
        self._sums, self._pools, self._cells = sums, pools, cells

    def of(self, key: str, part: str = "test") -> tuple[np.ndarray, np.ndarray] | None:
        """Look up the sums of one cell: site index (m,) int32 and totals (m, 6) float64, as in `COLUMNS`.

        The result is None if the cell stored no predictions of that evaluation set. From totals, added over
        sites, `rmse = sqrt(e2 / n)`, `mae = abs_e / n`, `mbe = e / n`, `r2 = 1 - e2 / (y2 - y^2 / n)`.
        """
        return self._sums.get((key, part))

    def arms(self, split: str, part: str = "test") -> list[str]:
        """List the arms that have predictions on one evaluation set of a split."""
        return [group.arm for group in self._pools if (group.split, group.part) == (split, part)]

    def site_errors(self, arm: str, split: str, part: str = "test") -> pd.DataFrame:
        """Score every site over the pooled cells, in ug/m3: site_id, lat, lon, n, bias, rmse.

        The bias is the mean of predicted - observed. Sites without predictions are left out; the others are
        sorted by name.
        """
        totals = self._totals(self._keys(arm, split), part)
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
        keys_a, keys_b = self._keys(arm, split), self._keys(other, split)
        places = [place for place in keys_a if place in keys_b]
        a, b = (self._totals({place: keys[place] for place in places}, "test") for keys in (keys_a, keys_b))
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

    def totals(self, arm: str, split: str) -> np.ndarray:
        """Add up the pooled cells: (6,), as in `COLUMNS`."""
        return self._totals(self._keys(arm, split), "test").sum(axis=0)

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

    def _keys(self, arm: str, split: str) -> dict[tuple[int, int], str]:
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


def predictions(store: Store, rows: pd.DataFrame) -> Predicted | None:
    """Read the predictions of the done cells of `rows`, each file once; None if no cell has a file.

    A done cell without a file is left out. Reading takes about 1 ms per file and 0.1 us per prediction. In
    memory a cell takes 52 bytes for each of its sites. Raises InputError for a file that is not such a table.
    """
    cells = labels.with_arm(rows)
    cells = cells.loc[cells["state"] == "done", ["key", "arm", "split", "fold", "seed"]]
    number: dict[str, int] = {}
    place: list[tuple[float, float]] = []
    sums: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    pools: dict[PredictionGroup, _Pool] = {}
    keys = cells["key"].tolist()
    for arm, split, key, table in zip(cells["arm"], cells["split"], keys, _tables(store, keys), strict=True):
        if table is None or not table.num_rows:
            continue
        parts, part = _coded(table["part"])
        sites, site = _coded(table["site_id"])
        lat, lon = (table[name].to_numpy() for name in ("lat", "lon"))
        truth, prediction = (table[name].to_numpy().astype("float64") for name in ("truth", "prediction"))
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
            totals = _by_site(own_site, own_truth, own_prediction, len(sites))
            seen = np.flatnonzero(totals[:, 0])
            sums[key, name] = index[seen], totals[seen]
            pools.setdefault(PredictionGroup(arm, split, name), _Pool.empty()).add(own_truth, own_prediction)
    if not sums:
        return None
    names = np.array(list(number))
    order = np.argsort(names)
    new = np.empty(len(order), np.int32)
    new[order] = np.arange(len(order), dtype=np.int32)
    for at, (index, totals) in sums.items():
        sums[at] = new[index], totals
    lat, lon = np.array(place)[order].T
    return Predicted(names[order], lat, lon, sums, pools, cells)


def _tables(store: Store, keys: list[str]) -> Iterator[pa.Table | None]:
    """Read the tables of the cells in turn; None for a cell that has none."""
    system, folder = store.location(store.folder)

    def read_one(key: str) -> pa.Table | None:
        path = f"{folder}/{key}/predictions.parquet"
        try:
            # `ParquetFile` is twice as fast for a small file as `read_table`, which makes a data set of it.
            with system.open_input_file(path) as file:
                return pyarrow.parquet.ParquetFile(file).read(_READ, use_threads=False)
        except FileNotFoundError:
            return None
        except (pa.ArrowException, KeyError) as error:
            problem = f"the file is not a cell's predictions: {error}"
            fix = f"delete the folder of cell {key}, then run the study again"
            raise InputError(path, "", problem, fix) from None

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


def _by_site(site: np.ndarray, truth: np.ndarray, prediction: np.ndarray, sites: int) -> np.ndarray:
    """Add up samples by site: (sites, 6), as in `COLUMNS`."""
    error = prediction - truth
    weights = (None, error, np.abs(error), error**2, truth, truth**2)
    return np.stack([np.bincount(site, w, minlength=sites).astype("float64") for w in weights], axis=1)


def _density_bin(values: np.ndarray) -> np.ndarray:
    low, high = np.arcsinh(DENSITY_EDGES[[0, -1]] / BEND_UGM3)
    bins = len(DENSITY_EDGES) - 1
    place = np.floor((np.arcsinh(values / BEND_UGM3) - low) * (bins / (high - low)))
    return np.clip(place, 0, bins - 1).astype(np.int64)


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
        if (content := store.read_file(key, "history.parquet")) is not None:
            table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read(["validation_rmse"])
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
        if (content := store.read_file(key, "importance.parquet")) is not None:
            table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read(["what", "rmse_increase", "sd"])
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
