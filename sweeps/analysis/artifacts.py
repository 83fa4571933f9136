"""The stored predictions of a study's done cells, read once and kept as sums.

A cell's predictions are as many as its scored samples, so that they are never held together: each file
becomes sums by site, counts on a fixed grid and the like, which add up over folds and seeds.
"""

from __future__ import annotations

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
"""Of the sums by site: n, errors (predicted - observed), their size and square, observed, its square."""

BEND_UGM3 = 5.0
"""The density's grid is even in arcsinh(y / 5): linear near zero, where a clean day may read below it, and
logarithmic above, where smoke is."""

DENSITY_EDGES = BEND_UGM3 * np.sinh(
    np.linspace(np.arcsinh(-10 / BEND_UGM3), np.arcsinh(1000 / BEND_UGM3), 121)
)
"""(121,) in ug/m3; what lies beyond is counted in the bins at the ends."""

CALIBRATION_EDGES = np.array([0, 2, 4, 6, 8, 10, 12.5, 15, 20, 25, 30, EXCEEDANCE_UGM3, 45, 60, 80, 120, 200])
"""Of the predicted values, in ug/m3, the lower edge included; the bins at the ends are open."""

_READ = ["part", "site_id", "lat", "lon", "truth", "prediction"]


class Tail(NamedTuple):
    """Samples at or above 35.5 ug/m3: observed so, predicted so, and both."""

    observed: int
    predicted: int
    both: int


class PredictionGroup(NamedTuple):
    """The cells that are pooled: an arm on one part of a split's predictions."""

    arm: str
    split: str
    part: str


@dataclass
class _Pool:
    """What a group's cells add up to."""

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
    """Sums over the predictions of a study's done cells: by cell, part and site, and by arm, split and part.

    `site_id`, `lat`, `lon` (degrees) are (sites,), in the order of the names.
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
        """One cell's sums: (site index int32 (m,), totals float64 (m, 6)), the columns as in `COLUMNS`.

        None where the cell stored no predictions of that part. From summed totals: rmse = sqrt(e2 / n),
        mae = abs_e / n, mbe = e / n, r2 = 1 - e2 / (y2 - y^2 / n).
        """
        return self._sums.get((key, part))

    @property
    def groups(self) -> list[PredictionGroup]:
        """What has predictions, in the order of the rows."""
        return list(self._pools)

    def arms(self, split: str, part: str = "test") -> list[str]:
        """Arms that have predictions there."""
        return [group.arm for group in self._pools if (group.split, group.part) == (split, part)]

    def site_errors(self, arm: str, split: str, part: str = "test") -> pd.DataFrame:
        """Per site over the pooled cells: site_id, lat, lon, n, bias (mean of predicted - observed), rmse.

        In ug/m3, a line for each site with predictions, in the order of the names.
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

    def site_differences(self, arm: str, other: str, split: str, part: str = "test") -> pd.DataFrame:
        """Per site the RMSE of `arm` minus that of `other`: site_id, lat, lon, n, difference (ug/m3).

        Over the folds and seeds that both have; n counts the predictions of one of them.
        """
        mine, theirs = self._keys(arm, split), self._keys(other, split)
        places = [place for place in mine if place in theirs]
        own = self._totals({place: mine[place] for place in places}, part)
        against = self._totals({place: theirs[place] for place in places}, part)
        seen = np.flatnonzero((own[:, 0] > 0) & (against[:, 0] > 0))
        rmse = [np.sqrt(totals[seen, 3] / totals[seen, 0]) for totals in (own, against)]
        return pd.DataFrame(
            {
                "site_id": self.site_id[seen],
                "lat": self.lat[seen],
                "lon": self.lon[seen],
                "n": own[seen, 0].astype("int64"),
                "difference": rmse[0] - rmse[1],
            }
        )

    def totals(self, arm: str, split: str, part: str = "test") -> np.ndarray:
        """(6,) sums over the pooled cells, as in `COLUMNS`."""
        return self._totals(self._keys(arm, split), part).sum(axis=0)

    def density(self, arm: str, split: str, part: str = "test") -> np.ndarray:
        """Counts of the pooled predictions on `DENSITY_EDGES`: (observed, predicted)."""
        return self._pools[PredictionGroup(arm, split, part)].density

    def calibration(self, arm: str, split: str, part: str = "test") -> pd.DataFrame:
        """By predicted bin: low, high, n, and the means observed and predicted (ug/m3), where n > 0."""
        n, observed, predicted = self._pools[PredictionGroup(arm, split, part)].calibration.T
        edges = np.array([-np.inf, *CALIBRATION_EDGES, np.inf])
        frame = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": n.astype("int64")})
        some = n > 0
        return (
            frame[some]
            .assign(observed=observed[some] / n[some], predicted=predicted[some] / n[some])
            .reset_index(drop=True)
        )

    def tail(self, arm: str, split: str, part: str = "test") -> Tail:
        """How many pooled samples are exceedances, and how many of them were predicted so."""
        return Tail(*map(int, self._pools[PredictionGroup(arm, split, part)].tail))

    def _keys(self, arm: str, split: str) -> dict[tuple[int, int], str]:
        cells = self._cells[(self._cells["arm"] == arm) & (self._cells["split"] == split)]
        return {
            (fold, seed): key
            for fold, seed, key in zip(cells["fold"], cells["seed"], cells["key"], strict=True)
        }

    def _totals(self, keys: Mapping[tuple[int, int], str], part: str) -> np.ndarray:
        """(sites, 6) summed over cells."""
        totals = np.zeros((len(self.site_id), len(COLUMNS)))
        for key in keys.values():
            if (found := self.of(key, part)) is not None:
                totals[found[0]] += found[1]
        return totals


def read(store: Store, rows: pd.DataFrame) -> Predicted | None:
    """Read the predictions of the done cells of `rows`, each file once; None where there are none.

    A done cell without a file is left out. Takes about 1 ms a file and 0.1 us a prediction; a cell stays
    in memory as 52 bytes for each of its sites. Raises InputError for a file that is not such a table.
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
            mine = slice(None) if len(parts) == 1 else part == code
            own_site, own_truth, own_prediction = site[mine], truth[mine], prediction[mine]
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
    """The cells' tables in turn; None for a cell that has none."""
    system, folder = store.location(store.folder)

    def read_one(key: str) -> pa.Table | None:
        path = f"{folder}/{key}/predictions.parquet"
        try:
            # Without the data set's machinery of `read_table`: twice as quick for a small file.
            with system.open_input_file(path) as file:
                return pyarrow.parquet.ParquetFile(file).read(_READ, use_threads=False)
        except FileNotFoundError:
            return None
        except (pa.ArrowException, KeyError) as error:
            raise InputError(
                f"{path}: not a cell's predictions ({' '.join(str(error).split())}); "
                "delete the cell's folder, and it runs again"
            ) from None

    if isinstance(system, pyarrow.fs.LocalFileSystem):
        yield from map(read_one, keys)
        return
    with ThreadPoolExecutor(READERS) as pool:  # where each takes requests; a few at a time, for the memory
        for start in range(0, len(keys), READERS):
            yield from pool.map(read_one, keys[start : start + READERS])


def _coded(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """A column of texts as (the different ones, which of them each row holds)."""
    array = column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return array.dictionary.to_pylist(), array.indices.to_numpy()


def _by_site(site: np.ndarray, truth: np.ndarray, prediction: np.ndarray, sites: int) -> np.ndarray:
    """(sites, 6) sums of `COLUMNS`."""
    error = prediction - truth
    weights = (None, error, np.abs(error), error**2, truth, truth**2)
    return np.stack([np.bincount(site, w, minlength=sites).astype("float64") for w in weights], axis=1)


def _density_bin(values: np.ndarray) -> np.ndarray:
    low, high = np.arcsinh(DENSITY_EDGES[[0, -1]] / BEND_UGM3)
    bins = len(DENSITY_EDGES) - 1
    place = np.floor((np.arcsinh(values / BEND_UGM3) - low) * (bins / (high - low)))
    return np.clip(place, 0, bins - 1).astype(np.int64)
