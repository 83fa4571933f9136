"""A study under fire: MLflow, a worker and a driver killed at random moments, MLflow's database closed."""

import contextlib
import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests import processes

pytestmark = pytest.mark.slow

STUDY = {
    "study": "chaos",
    "data": {"synthetic": {"sites": 16, "days": 40}},
    "design": {
        "variant": ["none", "latlon"],
        "split": [{"kind": "random", "folds": 2}, {"kind": "spatial", "folds": 2, "fold": 0}],
        "seed": [0, 1],
    },
    "search": {
        "trials": 5,
        "space": {"train.learning_rate": {"float": [1e-4, 1e-2], "log": True}},
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "pruner": "median",
    },
    "model": {"width": 8, "depth": 1, "attention_units": 8},
    "train": {"max_epochs": 40, "patience": 40},
    "checkpoint_seconds": 0,
}
ARMS, CELLS, TRIALS = ("none", "latlon"), 12, 10


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


@contextlib.contextmanager
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
    """The study, and the driver that was started last."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results = folder, folder / "results" / "chaos"
        (folder / "chaos.yaml").write_text(yaml.safe_dump(STUDY))

    def start(self) -> None:
        self.driver = processes.sweep(self.folder, "run", "chaos.yaml", log=self.folder / "log")

    def log(self) -> str:
        return (self.folder / "log").read_text()[-3000:]

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """The first true value of a condition, while the driver is alive."""

        def found() -> Any:
            assert self.driver.poll() is None, self.log()
            return condition()

        return processes.wait_for(found, self.log, seconds=240)

    def wait_for_more(self, number: int) -> None:
        """Wait until so many further tasks have ended."""
        before = self.ended()
        self.wait_for(lambda: self.ended() >= before + number)

    def wait_for_unfinished(self) -> None:
        """Wait until a training has a checkpoint and no record."""
        self.wait_for(
            lambda: any(
                not path.with_name("result.json").exists() for path in self.results.glob("*/*/checkpoint.pt")
            )
        )

    def kill_worker_in_mid_training(self) -> None:
        """Kill a worker whose training has a checkpoint and no record, and so will be resumed."""

        def suspended() -> psutil.Process | None:
            for path in self.results.glob("*/*/checkpoint.pt"):
                with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
                    progress = json.loads((self.results / "running" / f"{path.parent.name}.json").read_text())
                    worker = psutil.Process(progress["process"])
                    worker.suspend()
                    if path.exists() and not path.with_name("result.json").exists():
                        return worker
                    worker.resume()
            return None

        self.wait_for(suspended).kill()

    def mlflow_processes(self) -> list[psutil.Process]:
        children = psutil.Process(self.driver.pid).children()
        return [child for child in children if "sweeps.tracking.process" in " ".join(child.cmdline())]

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


def winners(records: list[dict[str, Any]]) -> set[str]:
    """Keys of each arm's winner: the first fold of the seed with the lowest pooled validation error."""
    found = set()
    for variant in ARMS:
        seeds: dict[int, list[dict[str, Any]]] = {}
        for record in records:
            if record["cell"]["variant"] == variant:
                seeds.setdefault(record["cell"]["seed"], []).append(record)

        def pooled(folds: list[dict[str, Any]]) -> float:
            squares = sum(r["counts"]["n_val"] * r["metrics"]["val_rmse"] ** 2 for r in folds)
            return float(squares / sum(r["counts"]["n_val"] for r in folds))

        best = min(seeds.values(), key=pooled)
        found.add(min(best, key=lambda r: int(r["cell"]["fold"]))["key"])
    return found


def test_every_cell_is_done_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    chaos, dice = Chaos(tmp_path), random.Random(20211121)
    watch = Watch(chaos.results)
    watch.start()

    chaos.start()
    chaos.wait_for_more(1)
    (mlflow,) = chaos.mlflow_processes()
    mlflow.kill()
    chaos.wait_for_more(dice.randint(1, 3))  # the training continues without MLflow
    time.sleep(dice.uniform(0, 0.5))
    chaos.kill_worker_in_mid_training()
    chaos.wait_for_more(dice.randint(1, 3))
    chaos.wait_for_unfinished()
    chaos.driver.kill()
    chaos.driver.wait()
    assert 0 < chaos.ended() < CELLS + TRIALS

    chaos.start()
    chaos.wait_for_more(1)
    with closed_to_writers(tmp_path / "results" / "mlflow.db"):
        chaos.wait_for_more(min(4, CELLS + TRIALS - chaos.ended()))  # the training continues
    assert chaos.driver.wait(timeout=300) == 0, chaos.log()
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
    assert {path.parent.name for path in chaos.results.glob("*/*/weights.pt")} == winners(judged)

    storage = JournalStorage(JournalFileBackend(str(chaos.results / "optuna.journal")))
    for arm in ARMS:
        trials = optuna.load_study(storage=storage, study_name=f"chaos/{arm}").get_trials()
        assert len(trials) == TRIALS // 2
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        own = [record for record in records if record.get("arm") == arm]
        assert sorted(record["number"] for record in own) == [*range(TRIALS // 2)]
