"""Study that `chaos` runs: real trainings of 0.1 to 1 s, whose metrics are a pure function of the cell.

Everything that is stored is written by the code of a real run: checkpoints, progress, predictions, history,
weights and records. Only the metrics are replaced, so that a referee can compute them from the cell alone.
"""

import functools
import hashlib
import json
import os
import runpy
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from pm25 import trial
from pm25.cell import Cell
from pm25.panel import Panel
from sweeps.engine import worker
from sweeps.store.records import Record, Store

NAME = "chaos"
"""Name of the study."""
FILE = f"{NAME}.yaml"
"""Name of the study file."""
ARMS = ("none", "latlon")
TRIALS = 4
"""Search trials of each arm."""
SEEDS = 8
"""Seeds of each fold; each arm has three folds."""
EPOCHS = 5
SHORTEST_S, LONGEST_S = 0.1, 1.0
"""Range of the seconds that a training sleeps in its epochs."""
LEDGER = "SWEEP_CHAOS_LEDGER"
"""Environment variable with the file to which each worker appends the tasks that it starts.

It is outside the storage, so that no fault of the storage touches it.
"""


def declared(seeds: int = SEEDS) -> dict[str, Any]:
    """Return the content of the study file; paths in it are relative to the file."""
    return {
        "study": NAME,
        "data": {"synthetic": {"sites": 16, "days": 40}},
        "design": {
            "variant": [*ARMS],
            "split": [{"kind": "random", "folds": 2}, {"kind": "spatial", "folds": 2, "fold": 0}],
            "seed": [*range(seeds)],
        },
        "search": {
            "trials": TRIALS,
            "space": {"train.learning_rate": {"float": [1e-4, 1e-2], "log": True}},
            "split": [{"kind": "random", "folds": 2, "fold": 0}],
            "pruner": "median",
        },
        "model": {"width": 8, "depth": 1, "attention_units": 8},
        "train": {
            "max_epochs": EPOCHS,
            "patience": EPOCHS,
            "max_windows": 32,
            "max_validation_windows": 32,
        },
        "checkpoint_seconds": 0,
        "max_equal_failures": 1000,
    }


def write(folder: Path, storage: str = "results", seeds: int = SEEDS) -> Path:
    """Write the study file into `folder`, with a storage relative to it, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    file.write_text(yaml.safe_dump({**declared(seeds), "storage": storage}), encoding="utf-8")
    return file


def truth(cell: Cell, names: Iterable[str]) -> dict[str, float]:
    """Return the metrics that a training of `cell` must store, each a number from 1 to 9."""
    text = json.dumps(cell.resolved(), sort_keys=True)
    return {name: float(_generator(f"{name} {text}").uniform(1, 9)) for name in names}


def seconds(cell: Cell) -> float:
    """Return how long a training of `cell` sleeps in its epochs."""
    return float(_generator(f"seconds {cell.label}").uniform(SHORTEST_S, LONGEST_S))


def _generator(text: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))


class ChaosTraining(trial.Training):
    """Training that sleeps in its epochs, and whose metrics are the `truth` of its cell."""

    def __init__(self, cell: Cell, panel: Panel, **how: Any) -> None:
        super().__init__(cell, panel, **how)
        self._cell = cell

    def epoch(self) -> trial.Epoch:
        """Sleep, and train one epoch."""
        time.sleep(seconds(self._cell) / EPOCHS)
        return super().epoch()

    def result(self) -> trial.Result:
        """Replace the metrics of the real result."""
        found = super().result()
        return replace(found, metrics=truth(self._cell, found.metrics))


def train_cell(cell: Cell, key: str, panel: Panel, store: Store, **how: Any) -> Record:
    """Call `worker.train_and_record` with a `ChaosTraining`, and note its start in the ledger."""
    note_start(key)
    with mock.patch.object(trial, "Training", ChaosTraining):
        return worker.train_and_record(cell, key, panel, store, **how)


class ChaosTrial(worker.SearchTrial):
    """Search trial with trainings of `ChaosTraining`, which notes its start in the ledger."""

    def _prepare(self) -> None:
        if self._to_prepare:
            note_start(self.draft["key"])
        with mock.patch.object(trial, "Training", ChaosTraining):
            super()._prepare()


def note_start(key: str) -> None:
    """Append the key of a task, this process and the time to the ledger."""
    line = f"{key} {os.getpid()} {time.time():.6f}\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _run(arguments: list[str]) -> None:
    """Do what `sweep run` does, with these trainings."""
    from sweeps import driver

    train = functools.partial(driver.train, train_cell=train_cell, search_trial=ChaosTrial)
    sys.argv = ["sweep", "run", *arguments]
    with mock.patch.object(driver, "train", train):
        runpy.run_module("sweeps", run_name="__main__")


if __name__ == "__main__":
    # Workers must import this module under its own name, not as `__main__`.
    from sweeps.bench import chaos_study

    chaos_study._run(sys.argv[1:])
