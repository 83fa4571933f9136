"""Time to mirror a finished cell in MLflow: in SQLite, and on a server."""

import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pm25.cell import Cell
from pm25.splits import RandomSplit, SpatialSplit
from sweeps.bench import harness
from sweeps.bench.engine import trivial
from sweeps.bench.harness import Measurement
from sweeps.store.records import Record, Store

CELLS = 2000
"""Number of cells that are mirrored."""
LIMITS = {"SQLite": 25, "a server": 60}
"""Limits in ms per cell."""

_PANEL: Any = SimpleNamespace(fingerprint="0123456789abcdef" * 2)
_DATA = {
    "name": "panel.parquet",
    "source": {"uri": "panel.parquet"},
    "schema": {"mlflow_colspec": [{"name": f"channel_{i}", "type": "float"} for i in range(10)]},
    "profile": {"num_rows": 366_298, "sites": 1414, "days": 365},
}


def run(folder: Path, server: str | None = None) -> Iterator[Measurement]:
    """Mirror cells of four arms on two splits to SQLite, and to the address `server` if it is given."""
    store = Store(str(folder), f"mirror-{secrets.token_hex(4)}")
    for _ in _recorded(store):
        pass
    for where, uri in (("SQLite", None), ("a server", server)):
        if where == "SQLite" or uri is not None:
            yield _measured(where, store, uri)


def _measured(where: str, store: Store, uri: str | None) -> Measurement:
    """Measure in a new process, like the one of a run; MLflow's import and opening the store are excluded."""
    arguments = [store.storage, store.study, *([uri] if uri else [])]
    process = harness.run_python("-m", "sweeps.bench.mirror", *arguments)
    took, cpu, again, _ = map(float, process.output.split())
    words = (
        f"{CELLS:,} runs with tags, numbers, data set and predictions, {1000 * cpu / CELLS:.0f} ms of "
        f"the client's CPU time each; a second sync takes {again:.1f} s"
    )
    return Measurement(f"a cell mirrored to {where}", 1000 * took / CELLS, "ms", LIMITS[where], words)


def _recorded(store: Store) -> Iterator[Record]:
    """Store the records of finished cells."""
    splits = (RandomSplit(), SpatialSplit())
    arms: tuple[dict[str, Any], ...] = (
        *({"variant": variant} for variant in ("none", "latlon")),
        *({"variant": "geoclip", "fusion": fusion} for fusion in ("hadamard", "concat")),
    )
    for place in range(CELLS):
        cell = Cell(**arms[place % 4], split=splits[place // 4 % 2], fold=place // 8 % 5, seed=place // 40)
        yield trivial(cell, cell.key(_PANEL.fingerprint, "e"), _PANEL, store, more={"encoder": "e"})


def _mirror(storage: str, study: str, uri: str | None = None) -> None:
    """Sync twice, and print the wall time and the CPU time of each."""
    from sweeps.tracking.mlflow_view import Tracker

    store = Store(storage, study)
    records = [*store.records(store.keys()).values()]
    tracker = Tracker(store, uri, _DATA)
    for _ in range(2):
        began, cpu = time.perf_counter(), time.process_time()
        tracker.sync(records)
        print(time.perf_counter() - began, time.process_time() - cpu)


if __name__ == "__main__":
    _mirror(*sys.argv[1:])
