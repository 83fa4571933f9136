"""Small worlds that tests share: panels with known content, small cells, and records of workers."""

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from pm25 import panel as panels
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.settings import ModelSettings, TrainSettings
from pm25.sources import synthetic
from pm25.splits import RandomSplit
from sweeps.store import integrity
from sweeps.store.records import Record, Store

NOTHING: Mapping[str, Any] = {}
START = "2021-01-01"
EPOCH = "1970-01-01"
"""Start of a panel whose days are counted from 0."""


def panel(
    features: ArrayLike,
    target: ArrayLike,
    lat: ArrayLike,
    lon: ArrayLike,
    *,
    channels: Sequence[str] | None = None,
    start: str = START,
    sites: Sequence[str] | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
) -> Panel:
    """Panel of `features` (sites, days, channels) and `target` (sites, days), days in a row from `start`.

    Sites are named s000, s001, ... and channels a, b, ... unless names are given.
    """
    x = np.asarray(features, np.float32)
    return Panel(
        features=x,
        target=np.asarray(target, np.float32),
        lat=np.asarray(lat, np.float64),
        lon=np.asarray(lon, np.float64),
        site_id=np.array(sites or [f"s{i:03}" for i in range(x.shape[0])]),
        dates=np.datetime64(start) + np.arange(x.shape[1]),
        channels=tuple(channels or "abcdefghij"[: x.shape[2]]),
        name="toy",
        groups=dict(groups or {}),
    )


def two_halves(sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of `sites` places, half of them in the west of CONUS and half in the east."""
    half = sites // 2
    lat = np.tile(np.linspace(28, 47, half), 2)
    return lat, np.concatenate([np.linspace(-120, -100, half), np.linspace(-90, -70, half)])


def without(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The same array with a share of its values missing."""
    values[rng.random(values.shape) < share] = np.nan
    return values


def synthetic_panel(sites: int = 12, days: int = 40, name: str = "toy", **columns: Any) -> Panel:
    """The built-in synthetic world as a panel, with some columns of its table replaced."""
    table = synthetic.synthesize(sites=sites, days=days).assign(**columns)
    return panels.from_table(pa.Table.from_pandas(table, preserve_index=False), name)


def cell(
    variant: str = "none",
    fusion: str | None = None,
    *,
    train: Mapping[str, Any] = NOTHING,
    **changes: Any,
) -> Cell:
    """Small cell of two epochs; `train` replaces training settings one by one, `changes` other fields."""
    settings = {"batch_size": 32, "max_epochs": 2, "learning_rate": 0.01, **train}
    fields = {
        "split": RandomSplit(folds=3),
        "fold": 0,
        "seed": 3,
        "window": 5,
        "model": ModelSettings(width=4, depth=2, attention_units=4),
        **changes,
    }
    return Cell(variant=variant, fusion=fusion, train=TrainSettings(**settings), **fields)


def tiny_cell(
    variant: str = "none",
    fusion: str | None = None,
    *,
    train: Mapping[str, Any] = NOTHING,
    **changes: Any,
) -> Cell:
    """Cell of one epoch and windows of three days, smaller than `cell`."""
    settings = {"batch_size": 64, "max_epochs": 1, **train}
    small = {"window": 3, "model": ModelSettings(width=2, depth=1, attention_units=4)}
    return cell(variant, fusion, train=settings, **small | changes)


ENDED = "2026-01-01T00:00:00.000+00:00"


def record(key: str, state: str = "done", **more: Any) -> Record:
    """Record of a cell or a search trial, with the fields that every record has."""
    return {"key": key, "state": state, "seconds": 1.0, "ended": ENDED, **more}


def cell_record(key: str, cell: Cell | Mapping[str, Any], **more: Any) -> Record:
    """Record of a finished cell, with the fields that comparisons of cells read."""
    fields = {
        "cell": cell.resolved() if isinstance(cell, Cell) else dict(cell),
        "data": "d" * 32,
        "encoder": None,
        "numerics": 3,
        "device": "x86_64",
        "threads": 1,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "counts": {"n_train": 70, "n_val": 10, "n_test": 20, "epochs": 4, "best_epoch": 3},
        "audit": {"shared_sites": 0, "failed": []},
        "metrics": {"test_rmse": 7.0, "test_r2": 0.5, "val_rmse": 7.5},
    }
    return record(key, **fields | more)


FILES = MappingProxyType(dict.fromkeys(integrity.TABLES, integrity.UNSET))
"""Digests of the tables of a done cell, for tests that read only its record."""


def empty_tables(store: Store, key: str) -> dict[str, str]:
    """Store tables without rows for a done cell, and return their digests."""
    columns: dict[str, list[Any]] = {name: [] for name in integrity.PREDICTION_COLUMNS}
    kinds = {"part": pa.string(), "site_id": pa.string(), "date": pa.date32()}
    predictions = {name: pa.array(values, kinds.get(name, pa.float32())) for name, values in columns.items()}
    history = {"epoch": pa.array([], pa.int64()), "validation_rmse": pa.array([], pa.float64())}
    made = {"predictions": predictions, "history": history}
    return {f"{name}.parquet": store.write_table(key, name, table) for name, table in made.items()}


def trial_record(
    number: int, params: Mapping[str, Any], wr: float = 1.0, oor: float = 1.0, **more: Any
) -> Record:
    """Record of a search trial whose RMSEs are `wr` and `oor`; only a finished trial has scores."""
    made = record(f"key-{number}", number=number, params=dict(params), epochs=2, reported=[]) | more
    if made["state"] != "done":
        return made
    losses = {"wr": wr, "oor": oor}
    return {"scores": {name: {"rmse": x, "r2": -x, "mae": 2 * x} for name, x in losses.items()}, **made}


def error(kind: str, message: str, traceback: str = "", **more: str) -> dict[str, str]:
    """The field `error` of a failed record."""
    return {"type": kind, "message": message, "traceback": traceback, **more}


def changed(base: Record, name: str, value: Any) -> Record:
    """Copy of a record with one value replaced, by its dotted name."""
    made = copy.deepcopy(base)
    *blocks, last = name.split(".")
    block = made
    for inner in blocks:
        block = block[inner]
    block[last] = value
    return made
