"""What a cell costs beside its training, next to plain Ray Tune with the callback of MLflow."""

import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

import pm25
from pm25.cell import Cell
from pm25.metrics import SCORES
from pm25.panel import Panel
from sweeps.bench.trial import Measurement, peak_mb
from sweeps.state import StudyState
from sweeps.store.records import Record, Store

ROUNDS = 3
MANY = 1000
"""So many cells, and more, are run once: plain Ray Tune is minutes about them."""
ROWS = 200
"""Of the predictions that a trivial cell stores."""
LISTED = 10_000
"""Finished cells that `status` and `export` are asked of."""

PLAIN = """
import sys
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

ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
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
from sweeps.bench.trial import peak_mb
print(peak_mb())
"""


def run(cells: tuple[int, ...], folder: Path) -> Iterator[Measurement]:
    """Both engines on so many trivial cells each, in turns; then restarts, and many finished cells."""
    for count in cells:
        rounds = ROUNDS if count < MANY else 1
        pairs = [
            (
                _engine("own", count, folder / f"own-{count}-{i}"),
                _engine("plain", count, folder / f"plain-{count}-{i}"),
            )
            for i in range(rounds)
        ]
        ratio = statistics.median(own.seconds / plain.seconds for own, plain in pairs)
        own, plain = (
            _Engine(statistics.median(run.seconds for run in side), max(run.megabytes for run in side))
            for side in zip(*pairs, strict=True)
        )
        words = (
            f"{1000 * own.seconds / count:.0f} over {1000 * plain.seconds / count:.0f} ms a cell, from the "
            f"command to its end, Ray's start, store and MLflow included; {_counted(rounds, 'pair')}"
        )
        yield Measurement(f"engine over plain Ray Tune, {count:,} cells", ratio, "x", 1, words)
        words = f"peak; plain Ray Tune {plain.megabytes:.0f} MB"
        yield Measurement(f"driver's memory, {count:,} cells", own.megabytes, "MB", 400, words)
        waits = [_restart(folder / f"own-{count}-0", count + i + 1) for i in range(ROUNDS)]
        words = f"from the command to the first missing cell; {_counted(ROUNDS, 'restart')}"
        yield Measurement(f"restart on {count:,} finished cells", statistics.median(waits), "s", 10, words)
    many = _study(folder / "many", LISTED)
    for key, cell in many.cells.items():
        trivial(cell, key, many.panel, many.store, tables=False)
    file = str(folder / "many" / "engine.yaml")
    for arguments, limit in ((["status", file], 2), (["export", file, str(folder / "cells.parquet")], 10)):
        took = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "sweeps", *arguments], check=True, capture_output=True)
            took.append(time.perf_counter() - begin)
        name = f"sweep {arguments[0]}, {LISTED:,} finished cells"
        yield Measurement(name, statistics.median(took), "s", limit, _counted(ROUNDS, "call"))


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
    """In the place of `worker.train_and_record`: what a cell of two epochs leaves, without any training."""
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = iter(np.random.default_rng(cell.seed).uniform(1, 9, 40).tolist())
    if tables:
        names = {"part": "test", "site_id": "site-001", "date": np.datetime64("2021-06-01")}
        made = {name: np.full(ROWS, value) for name, value in names.items()}
        numbers = ("lat", "lon", "truth", "prediction")
        store.write_table(key, "predictions", made | dict.fromkeys(numbers, np.ones(ROWS, "float32")))
        curves = ("train_loss", "validation_loss", "learning_rate", "validation_rmse")
        store.write_table(key, "history", {"epoch": [1, 2], **{name: [2.0, 1.0] for name in curves}})
    metrics = [f"{part}_{name}" for part in ("test", "wr", "val") for name in SCORES]
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
        "audit": {**{f"shared_{name}": next(values) for name in "abcdefghij"}, "failed": []},
        "seconds": 0.0,
        "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    store.write_record(record)
    return record


class _Engine(NamedTuple):
    """What a process took that ran so many cells."""

    seconds: float
    """From its start to its end."""
    megabytes: float
    """Its peak; workers and servers are processes of their own."""


def _engine(name: Literal["own", "plain"], cells: int, folder: Path) -> _Engine:
    """Run the cells, of which those that `folder` holds are finished; all are to be in MLflow then."""
    folder.mkdir(exist_ok=True)
    program = ["-c", PLAIN] if name == "plain" else ["-m", "sweeps.bench.engine"]
    begin = time.perf_counter()
    command = [sys.executable, "-W", "ignore", *program, str(cells), str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - begin
    if answer.returncode:
        raise RuntimeError(answer.stderr[-2000:])
    with sqlite3.connect(folder / "mlflow.db") as database:
        parents = "select run_uuid from tags where key = 'kind' and value = 'arm'"
        (finished,) = database.execute(
            f"select count(*) from runs where status = 'FINISHED' and run_uuid not in ({parents})"
        ).fetchone()
    if finished != cells:
        raise RuntimeError(f"{name}: MLflow has {finished} finished runs of {cells}")
    return _Engine(took, float(answer.stdout.split()[-1]))


def _restart(folder: Path, cells: int) -> float:
    """Seconds until the cell that is missing is begun."""
    begin = datetime.now(UTC)
    _engine("own", cells, folder)
    records = _study(folder, cells).records().values()
    return (max(datetime.fromisoformat(record["started"]) for record in records) - begin).total_seconds()


def _counted(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"median of {number} {what}s"


def _study(folder: Path, cells: int) -> StudyState:
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
    return StudyState(str(file))


def _own(cells: int, folder: Path) -> None:
    """A `sweep run` whose trainings are trivial."""
    from sweeps.driver import train
    from sweeps.engine.scheduler import Scheduler
    from sweeps.store.lock import StudyLock

    state = _study(folder, cells)
    state.store.prepare()
    with StudyLock(state.store):
        notices = train(state, Scheduler(state), train_cell=trivial)
    if notices:
        raise RuntimeError("; ".join(notices))
    print(peak_mb())


if __name__ == "__main__":
    # Workers import this module by its name, and not as the main program.
    from sweeps.bench import engine

    engine._own(int(sys.argv[1]), Path(sys.argv[2]))
