"""What a cell costs beside its training, next to plain Ray Tune with the callback of MLflow."""

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

import pm25
from pm25.cell import Cell
from pm25.panel import Panel
from sweeps.bench import Measurement
from sweeps.state import State
from sweeps.store import Record, Store

LISTED = 10_000
"""Finished cells that `status` and `export` are asked of."""

PLAIN = """
import resource, sys, time
begin = time.monotonic()
cells, folder = int(sys.argv[1]), sys.argv[2]
import ray
from mlflow import MlflowClient
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

uri = f"sqlite:///{folder}/mlflow.db"
MlflowClient(tracking_uri=uri).create_experiment("plain")

class Trivial(tune.Trainable):
    def step(self):
        return {f"metric_{i}": i + self.config["param_0"] / 7 for i in range(20)} | {"done": True}

    def reset_config(self, new_config):
        return True

ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
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
print("MEASURED", time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def run(cells: tuple[int, ...], folder: Path) -> Iterator[Measurement]:
    """Both engines on so many trivial cells each, one after the other; then a restart, and many cells."""
    for count in cells:
        plain_folder, own = folder / f"plain-{count}", folder / f"own-{count}"
        plain_folder.mkdir()
        own.mkdir()
        seconds, megabytes = _child("-c", PLAIN, str(count), str(plain_folder))
        own_seconds, own_megabytes = _child("-m", "sweeps.bench_engine", str(count), str(own))
        words = (
            f"{1000 * own_seconds / count:.0f} over {1000 * seconds / count:.0f} ms a cell, "
            "Ray's start, store and MLflow included"
        )
        yield Measurement(f"engine over plain Ray Tune, {count} cells", own_seconds / seconds, "x", 1, words)
        words = f"peak; plain Ray Tune {megabytes:.0f} MB"
        yield Measurement(f"driver's memory, {count} cells", own_megabytes, "MB", 400, words)
        begin = datetime.now(UTC)
        _child("-m", "sweeps.bench_engine", str(count + 1), str(own))
        last = _study(own, count + 1)
        records = Store(str(own), "engine").records(last.cells).values()
        waited = max(datetime.fromisoformat(record["started"]) for record in records) - begin
        words = "from the command to the first missing cell"
        yield Measurement(f"restart on {count} finished cells", waited.total_seconds(), "s", 10, words)
    many = _study(folder / "many", LISTED)
    for key, cell in many.cells.items():
        trivial(cell, key, many.panel, many.store, tables=False)
    file = str(folder / "many" / "engine.yaml")
    for arguments, limit in ((["status", file], 2), (["export", file, str(folder / "cells.parquet")], 10)):
        took = time.monotonic()
        subprocess.run([sys.executable, "-m", "sweeps", *arguments], check=True, capture_output=True)
        took = time.monotonic() - took
        yield Measurement(f"sweep {arguments[0]}, {LISTED:,} finished cells", took, "s", limit, "one call")


def trivial(
    cell: Cell,
    key: str,
    panel: Panel,
    store: Store,
    *,
    tables: bool = True,
    more: Mapping[str, Any] = MappingProxyType({}),
    **_: Any,
) -> Record:
    """In the place of `work.run_and_record`: what a cell of two epochs leaves, without any training."""
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = iter(np.random.default_rng(cell.seed).uniform(1, 9, 20).tolist())
    if tables:
        made = {"truth": np.zeros(100, "float32"), "prediction": np.zeros(100, "float32")}
        store.write_table(key, "predictions", made)
        curves = ("train_loss", "validation_loss", "learning_rate", "validation_rmse")
        store.write_table(key, "history", {"epoch": [1, 2], **{name: [2.0, 1.0] for name in curves}})
    metrics = [f"{part}_{name}" for part in ("test", "val") for name in ("rmse", "r2", "mae", "mbe")]
    record = {
        "key": key,
        "state": "done",
        "cell": cell.resolved(),
        "encoder": None,
        "data": panel.fingerprint,
        "numerics": pm25.NUMERICS,
        "host": socket.gethostname(),
        "device": "none",
        "threads": 1,
        "versions": {"numpy": np.__version__},
        "started": began,
        **more,
        "metrics": {name: next(values) for name in metrics},
        "counts": {"n_train": 2, "n_val": 1, "n_test": 1, "epochs": 2, "best_epoch": 2},
        "audit": {"shared_sites": 0, "failed": []},
        "seconds": 0.0,
        "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    store.write_record(record)
    return record


def _child(*arguments: str) -> tuple[float, float]:
    """Wall time (s) and peak resident memory (MB) that a process measured of itself."""
    answer = subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True)
    told = [line.split()[1:] for line in answer.stdout.splitlines() if line.startswith("MEASURED ")]
    if answer.returncode or not told:
        raise RuntimeError(answer.stderr[-2000:])
    return float(told[0][0]), float(told[0][1])


def _study(folder: Path, cells: int) -> State:
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
    file.write_text(yaml.safe_dump(declared))
    return State(str(file))


def _own(cells: int, folder: Path) -> None:
    """A `sweep run` whose trainings are trivial."""
    from sweeps.agenda import Agenda
    from sweeps.hold import Hold
    from sweeps.run import train

    begin = time.monotonic()
    state = _study(folder, cells)
    state.store.prepare()
    with Hold(state.store):
        notices = train(state, Agenda(state), train_cell=trivial)
    if notices:
        raise RuntimeError("; ".join(notices))
    print("MEASURED", time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    # Workers import this module by its name, and not as the main program.
    from sweeps import bench_engine

    bench_engine._own(int(sys.argv[1]), Path(sys.argv[2]))
