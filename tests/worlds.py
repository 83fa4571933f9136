"""Small worlds that tests share: panels with known content, and records as a worker writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from pm25 import panel as panels
from pm25.panel import Panel
from pm25.sources import synthetic
from sweeps.store.records import Record

START = "2021-01-01"


def panel(
    features: ArrayLike,
    target: ArrayLike,
    lat: ArrayLike,
    lon: ArrayLike,
    *,
    channels: Sequence[str] | None = None,
    start: str = START,
    groups: Mapping[str, np.ndarray] | None = None,
    name: str = "toy",
) -> Panel:
    """Panel of `features` (sites, days, channels) and `target` (sites, days), days in a row from `start`.

    Sites are named s000, s001, ...; channels a, b, ... unless they are given.
    """
    x = np.asarray(features, np.float32)
    return Panel(
        features=x,
        target=np.asarray(target, np.float32),
        lat=np.asarray(lat, np.float64),
        lon=np.asarray(lon, np.float64),
        site_id=np.array([f"s{i:03}" for i in range(x.shape[0])]),
        dates=np.datetime64(start) + np.arange(x.shape[1]),
        channels=tuple(channels or "abcdefghij"[: x.shape[2]]),
        name=name,
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


def synthetic_panel(sites: int = 12, days: int = 40, seed: int = 0, name: str = "toy") -> Panel:
    """The built-in synthetic world as a panel."""
    table = synthetic.synthesize(sites=sites, days=days, seed=seed)
    return panels.from_table(pa.Table.from_pandas(table, preserve_index=False), name)


def record(key: str, state: str = "done", **more: Any) -> Record:
    """A record of a cell or a search trial, with the fields that every one has."""
    return {"key": key, "state": state, "seconds": 1.0, **more}
