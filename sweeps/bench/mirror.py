"""What it costs to mirror a finished cell in MLflow: to SQLite, and to a server."""

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pm25.cell import Cell
from pm25.splits import RandomSplit, SpatialSplit
from sweeps.bench.engine import trivial
from sweeps.bench.trial import Measurement
from sweeps.store.records import Record, Store

CELLS = 2000
LIMITS = {"SQLite": 25, "a server": 60}
"""ms a cell."""

_PANEL: Any = SimpleNamespace(fingerprint="0123456789abcdef" * 2)
_DATA = {
    "name": "panel.parquet",
    "source": {"uri": "panel.parquet"},
    "schema": {"mlflow_colspec": [{"name": f"channel_{i}", "type": "float"} for i in range(10)]},
    "profile": {"num_rows": 366_298, "sites": 1414, "days": 365},
}


def run(folder: Path, server: str | None = None) -> Iterator[Measurement]:
    """Mirror so many cells of four arms on two splits to SQLite, and to `server` (its address), if given."""
    store = Store(str(folder), f"mirror-{secrets.token_hex(4)}")
    for _ in _recorded(store):
        pass
    for where, uri in (("SQLite", None), ("a server", server)):
        if where == "SQLite" or uri is not None:
            yield _measured(where, store, uri)


def _measured(where: str, store: Store, uri: str | None) -> Measurement:
    """In a process of its own, as the writer is; importing MLflow and opening the store are not counted."""
    command = [sys.executable, "-W", "ignore", "-m", "sweeps.bench.mirror", store.storage, store.study]
    answer = subprocess.run([*command, *([uri] if uri else [])], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(answer.stderr[-2000:])
    took, busy, again, _ = map(float, answer.stdout.split())
    words = (
        f"{CELLS:,} runs with tags, numbers, data set and predictions, {1000 * busy / CELLS:.0f} ms of "
        f"this side's processor each; synced again in {again:.1f} s"
    )
    return Measurement(f"a cell mirrored to {where}", 1000 * took / CELLS, "ms", LIMITS[where], words)


def _recorded(store: Store) -> Iterator[Record]:
    splits = (RandomSplit(), SpatialSplit())
    arms: tuple[dict[str, Any], ...] = (
        *({"variant": variant} for variant in ("none", "latlon")),
        *({"variant": "geoclip", "fusion": fusion} for fusion in ("hadamard", "concat")),
    )
    for place in range(CELLS):
        cell = Cell(**arms[place % 4], split=splits[place // 4 % 2], fold=place // 8 % 5, seed=place // 40)
        yield trivial(cell, cell.key(_PANEL.fingerprint, "e"), _PANEL, store)


def _mirror(storage: str, study: str, uri: str | None = None) -> None:
    from sweeps.tracking.mlflow_view import Tracker

    store = Store(storage, study)
    records = [*store.records(store.keys()).values()]
    tracker = Tracker(store, uri, _DATA)
    for _ in range(2):
        begin, busy = time.perf_counter(), time.process_time()
        tracker.sync(records)
        print(time.perf_counter() - begin, time.process_time() - busy)


if __name__ == "__main__":
    _mirror(*sys.argv[1:])
