"""What else lies beside the cells' records and goes into figures: learning curves, importances."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet

from sweeps.analysis import labels
from sweeps.store.records import Store

CURVES = 2000
"""Cells whose epochs are read at most: their mean has long settled, and each is a file."""


class Curves(NamedTuple):
    """Validation RMSE by epoch (ug/m3) over `read` of `done` cells: arm, split, epoch, mean, low, high, n."""

    frame: pd.DataFrame
    read: int
    done: int


def curves(store: Store, rows: pd.DataFrame, most: int = CURVES) -> Curves:
    """The mean and the range over an arm's cells of a split, as far as half of those cells were trained.

    Of more than `most` done cells those with the first seeds are read. A cell without a history is left out.
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
    """By what was permuted, over the cells that stored it: arm, split, what, rmse_increase, sd (ug/m3), n.

    A cell's `importance.parquet` has the columns what, rmse_increase, sd. The mean is over cells; sd is that
    over the cells' means, or the one cell's own.
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
