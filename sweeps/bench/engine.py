"""Time and memory of a cell beside its training, next to plain Ray Tune with MLflow's callback."""

import socket
import sqlite3
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import yaml

from pm25.cell import Cell
from pm25.encoders import Embedded
from pm25.metrics import SCORES
from pm25.panel import Panel
from sweeps.bench import harness
from sweeps.bench.harness import FinishedProcess, Measurement
from sweeps.state import StudyState
from sweeps.store import integrity
from sweeps.store.records import Record, Store

PAIRS = 2
"""Number of pairs of runs, whose ratio is far from its limit."""
ROUNDS = 3
"""Number of restarts, and of calls of a command."""
MANY = 1000
"""Smallest number of cells that is run only once, since plain Ray Tune takes minutes."""
ROWS = 200
"""Rows of the predictions that a trivial cell stores."""
LISTED = 10_000
"""Number of finished cells that `status` and `export` read."""

PLAIN = """
import sys
cells, folder = int(sys.argv[1]), sys.argv[2]
import ray
from mlflow import MlflowClient
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from pm25.scratch import scratch
from sweeps.engine import ray_internals, temp_folder

uri = f"sqlite:///{folder}/mlflow.db"
MlflowClient(tracking_uri=uri).create_experiment("plain")

class Trivial(tune.Trainable):
    def step(self):
        return {f"metric_{i}": i + self.config["param_0"] / 7 for i in range(20)} | {"done": True}

    def reset_config(self, new_config):
        return True

with scratch(temp_folder.choose()[0]) as private, ray_internals.private_token(private):
    with ray_internals.loopback_only():
        quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
        ray.init(**quiet, _temp_dir=str(private / "ray"))
    tune.Tuner(
        Trivial,
        param_space={f"param_{i}": i for i in range(15)} | {"param_0": tune.grid_search(list(range(cells)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=folder,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[MLflowLoggerCallback(tracking_uri=uri, experiment_name="plain")],
        ),
    ).fit()
    ray.shutdown()
from sweeps.bench.harness import peak_mb
print(peak_mb())
"""


def run(cells: Sequence[int], folder: Path) -> Iterator[Measurement]:
    """Measure both engines on each number of trivial cells, then restarts, then commands on many cells."""
    for count in cells:
        rounds = PAIRS if count < MANY else 1
        pairs = [
            (
                _run_engine("own", count, folder / f"own-{count}-{i}"),
                _run_engine("plain", count, folder / f"plain-{count}-{i}"),
            )
            for i in range(rounds)
        ]
        ratio = statistics.median(own.seconds / plain.seconds for own, plain in pairs)
        own_s, plain_s = (statistics.median(run.seconds for run in side) for side in zip(*pairs, strict=True))
        own_mb, plain_mb = (max(run.last_number for run in side) for side in zip(*pairs, strict=True))
        words = (
            f"{1000 * own_s / count:.0f} over {1000 * plain_s / count:.0f} ms per cell, the complete command "
            f"with Ray's start, store and MLflow; {harness.times(rounds, 'pair')}"
        )
        yield Measurement(f"engine over plain Ray Tune, {count:,} cells", ratio, "x", 1, words)
        words = f"peak; plain Ray Tune {plain_mb:.0f} MB"
        yield Measurement(f"driver's memory, {count:,} cells", own_mb, "MB", 400, words)
        waits = [_restart(folder / f"own-{count}-0", count + i + 1) for i in range(ROUNDS)]
        words = f"from the command to the first missing cell; {harness.times(ROUNDS, 'restart')}"
        yield Measurement(f"restart on {count:,} finished cells", statistics.median(waits), "s", 10, words)
    many = study(folder / "many", LISTED)
    for key, cell in many.cells.items():
        trivial(cell, key, many.panel, many.store, tables=False)
    file = str(folder / "many" / "engine.yaml")
    for arguments, limit in ((["status", file], 2), (["export", file, str(folder / "cells.parquet")], 10)):
        took = statistics.median(harness.run_sweep(*arguments).seconds for _ in range(ROUNDS))
        name = f"sweep {arguments[0]}, {LISTED:,} finished cells"
        yield Measurement(name, took, "s", limit, harness.times(ROUNDS, "call"))


def trivial(
    cell: Cell,
    key: str,
    panel: Panel,
    store: Store,
    *,
    tables: bool = True,
    files: Mapping[str, str] = MappingProxyType({}),
    embedded: Embedded | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
    **_: Any,
) -> Record:
    """Replace `worker.train_and_record`: store what a cell of two epochs stores, without any training.

    Without `tables`, no table is stored, and the record names those in `files` by their digests. Tables that
    are not in `files` are then missing, which commands that read only records do not see.
    """
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = iter(np.random.default_rng(cell.seed).uniform(1, 9, 40).tolist())
    digests = {**dict.fromkeys(integrity.TABLES, integrity.UNSET), **files}
    if tables:
        names = {"part": "test", "site_id": "site-001", "date": np.datetime64("2021-06-01")}
        made = {name: np.full(ROWS, value) for name, value in names.items()}
        numbers = ("lat", "lon", "truth", "prediction")
        digests["predictions.parquet"] = store.write_table(
            key, "predictions", made | dict.fromkeys(numbers, np.ones(ROWS, "float32"))
        )
        curves = ("train_loss", "validation_loss", "learning_rate", "validation_rmse")
        history = {"epoch": [1, 2], **{name: [2.0, 1.0] for name in curves}}
        digests["history.parquet"] = store.write_table(key, "history", history)
    metrics = [f"{part}_{name}" for part in ("test", "wr", "val") for name in SCORES]
    record = {
        "key": key,
        "state": "done",
        "cell": cell.resolved(),
        "encoder": embedded.fingerprint if embedded else None,
        "data": panel.fingerprint,
        "numerics": cell.numerics,
        "host": socket.gethostname(),
        "device": "none",
        "threads": 1,
        "versions": {"numpy": np.__version__},
        "started": began,
        **more,
        "metrics": {name: next(values) for name in metrics},
        "counts": {"n_train": 2, "n_val": 1, "n_test": 1, "epochs": 2, "best_epoch": 2},
        "audit": {**{f"shared_{name}": next(values) for name in "abcdefghij"}, "failed": []},
        "seconds": 0.0,
        "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    return store.write_record(record, digests)


def _run_engine(name: Literal["own", "plain"], cells: int, folder: Path) -> FinishedProcess:
    """Run cells in a new process, which prints its peak memory; cells stored in `folder` are not repeated.

    The memory of workers and servers is not included, since they are other processes.
    """
    folder.mkdir(exist_ok=True)
    program = ["-c", PLAIN] if name == "plain" else ["-m", "sweeps.bench.engine"]
    process = harness.run_python(*program, cells, folder)
    with sqlite3.connect(folder / "mlflow.db") as database:
        parents = "select run_uuid from tags where key = 'kind' and value = 'arm'"
        (finished,) = database.execute(
            f"select count(*) from runs where status = 'FINISHED' and run_uuid not in ({parents})"
        ).fetchone()
    if finished != cells:
        raise RuntimeError(f"{name}: MLflow has {finished} finished runs of {cells}")
    return process


def _restart(folder: Path, cells: int) -> float:
    """Measure the seconds from the command to the start of the only missing cell."""
    begin = datetime.now(UTC)
    _run_engine("own", cells, folder)
    records = study(folder, cells).records().values()
    return (max(datetime.fromisoformat(record["started"]) for record in records) - begin).total_seconds()


def study(folder: Path, cells: int) -> StudyState:
    """Write a study of so many cells into `folder`, and open it."""
    folder.mkdir(exist_ok=True)
    file = folder / "engine.yaml"
    declared = {
        "study": "engine",
        "data": {"synthetic": {"sites": 24, "days": 60}},
        "design": {
            "variant": ["none"],
            "split": [{"kind": "random", "folds": 5, "fold": 0}],
            "seed": list(range(cells)),
        },
        "storage": str(folder),
        "resources": {"cpu": 1, "gpu": 0},
    }
    file.write_text(yaml.safe_dump(declared), encoding="utf-8")
    return StudyState(str(file))


def _own(cells: int, folder: Path) -> None:
    """Do what `sweep run` does, with trivial trainings, and print the peak memory."""
    from sweeps.driver import train
    from sweeps.engine.scheduler import Scheduler
    from sweeps.store.lock import StudyLock

    state = study(folder, cells)
    state.store.prepare()
    with StudyLock(state.store) as lock:
        state.store = lock.store
        notices = train(state, Scheduler(state), train_cell=trivial).notices
    if notices:
        raise RuntimeError("; ".join(notices))
    print(harness.peak_mb())


if __name__ == "__main__":
    # Workers must import this module under its own name, not as `__main__`.
    from sweeps.bench import engine

    engine._own(int(sys.argv[1]), Path(sys.argv[2]))
