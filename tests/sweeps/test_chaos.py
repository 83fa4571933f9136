"""A study under fire: drivers and workers killed at random moments, MLflow's database closed to writers."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests import processes

pytestmark = pytest.mark.slow

STUDY = {
    "study": "chaos",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "geoclip"],
        "split": [{"kind": "random", "folds": 2}, {"kind": "spatial", "folds": 2}],
        "seed": [0, 1, 2, 3, 4],
    },
    "search": {
        "trials": 8,
        "space": {"train.learning_rate": {"float": [1e-4, 1e-2], "log": True}},
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "pruner": "median",
    },
    "model": {"width": 8, "depth": 1, "attention_units": 8},
    "train": {"max_epochs": 40, "patience": 40},
    "checkpoint_seconds": 0.2,
}
CELLS, TRIALS = 40, 16
DRIVERS_KILLED, WORKERS_KILLED = 5, 3


class Watch(threading.Thread):
    """Notes every record when it is first seen, and whether it is another one later."""

    def __init__(self, results: Path) -> None:
        super().__init__(daemon=True)
        self.first: dict[Path, tuple[bytes, int]] = {}
        self.changed: list[Path] = []
        self._results, self._end = results, threading.Event()

    def look(self) -> None:
        for path in self._results.glob("*/*/result.json"):
            now = path.read_bytes(), path.stat().st_mtime_ns
            if self.first.setdefault(path, now) != now:
                self.changed.append(path)

    def run(self) -> None:
        while not self._end.wait(0.1):
            self.look()

    def stop(self) -> None:
        self._end.set()
        self.join()
        self.look()


@contextmanager
def closed_to_writers(database: Path) -> Iterator[None]:
    """Refuse every write to an MLflow database, as if it were read-only, also for root."""
    tables = ("runs", "tags", "params", "metrics", "latest_metrics", "experiment_tags")
    with sqlite3.connect(database, timeout=60) as connection:
        for table in tables:
            for verb in ("insert", "update", "delete"):
                connection.execute(
                    f"create trigger shut_{table}_{verb} before {verb} on {table} "
                    "begin select raise(abort, 'attempt to write a readonly database'); end"
                )
    try:
        yield
    finally:
        with sqlite3.connect(database, timeout=60) as connection:
            for table in tables:
                for verb in ("insert", "update", "delete"):
                    connection.execute(f"drop trigger shut_{table}_{verb}")


class Chaos:
    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results" / "chaos"
        (folder / "chaos.yaml").write_text(yaml.safe_dump(STUDY))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return processes.sweep(self.folder, *arguments, log=self.folder / "log")

    def ended(self, folder: str = "*") -> int:
        return len(list(self.results.glob(f"{folder}/*/result.json")))

    def runs(self, kind: str) -> list[tuple[str, str]]:
        """(key, status) of MLflow's runs of a kind."""
        with sqlite3.connect(self.folder / "results" / "mlflow.db") as database:
            return sorted(
                database.execute(
                    "select k.value, r.status from runs r "
                    "join tags k on k.run_uuid = r.run_uuid and k.key = 'key' "
                    "join tags t on t.run_uuid = r.run_uuid and t.key = 'kind' "
                    "where r.lifecycle_stage = 'active' and t.value = ?",
                    [kind],
                )
            )


def test_every_cell_is_done_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    chaos, dice = Chaos(tmp_path), random.Random(20211121)
    watch = Watch(chaos.results)
    watch.start()
    rounds = [True] * WORKERS_KILLED + [False] * (DRIVERS_KILLED - WORKERS_KILLED)
    dice.shuffle(rounds)
    drivers = workers = 0
    for kill_worker in rounds:
        before, driver = chaos.ended(), chaos.start("run", "chaos.yaml")
        until = time.monotonic() + 120
        more = dice.randint(1, 6)
        while chaos.ended() < before + more and driver.poll() is None:
            assert time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 1.5))
        if kill_worker:
            while not (alive := processes.workers_of(driver.pid)):  # one is being started
                assert driver.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < until, "no worker is started"
                time.sleep(0.02)
            dice.choice(alive).kill()
            workers += 1
            time.sleep(dice.uniform(0, 3))
        assert driver.poll() is None, (tmp_path / "log").read_text()[-3000:]
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        drivers += 1
    assert (drivers, workers) == (DRIVERS_KILLED, WORKERS_KILLED)
    assert 0 < chaos.ended() < CELLS + TRIALS

    driver, before = chaos.start("run", "chaos.yaml"), chaos.ended()
    while chaos.ended() == before:
        assert driver.poll() is None
        time.sleep(0.02)
    with closed_to_writers(tmp_path / "results" / "mlflow.db"):
        shut, until = chaos.ended(), time.monotonic() + 120
        while chaos.ended() < min(shut + 4, CELLS + TRIALS):  # training continues
            assert time.monotonic() < until, "the training waits for MLflow"
            time.sleep(0.05)
    assert driver.wait(timeout=300) == 0, (tmp_path / "log").read_text()[-3000:]
    assert chaos.start("sync", "chaos.yaml").wait(timeout=120) == 0
    watch.stop()

    assert (chaos.ended("cells"), chaos.ended("search")) == (CELLS, TRIALS)
    assert not watch.changed, "a finished cell or trial ran again"
    records = [json.loads(content) for content, _ in watch.first.values()]
    assert {record["state"] for record in records} <= {"done", "pruned"}
    keys = {
        kind: sorted(p.parent.name for p in watch.first if p.parts[-3] == kind)
        for kind in ("cells", "search")
    }
    assert chaos.runs("cell") == [(key, "FINISHED") for key in keys["cells"]]
    assert chaos.runs("trial") == [(key, "FINISHED") for key in keys["search"]]
    assert not list(chaos.results.glob("*/*/checkpoint.pt")), "a checkpoint outlived its training"
    assert any("resumed" in record for record in records), "no training went on from its last epoch"

    judged = [r for r in records if r.get("cell", {}).get("split", {}).get("kind") == "random"]
    best = {
        min((r["metrics"]["val_rmse"], r["key"]) for r in judged if r["cell"]["variant"] == variant)[1]
        for variant in ("none", "geoclip")
    }
    assert {path.parent.name for path in chaos.results.glob("*/*/weights.pt")} == best

    storage = JournalStorage(JournalFileBackend(str(chaos.results / "optuna.journal")))
    for arm in ("none", "geoclip-hadamard"):
        trials = optuna.load_study(storage=storage, study_name=f"chaos/{arm}").get_trials()
        assert len(trials) == 8
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        own = [record for record in records if record.get("arm") == arm]
        assert sorted(record["number"] for record in own) == [*range(8)]
