"""The tracking process: the view is complete at the end, whatever fails; it ends with its driver."""

import os
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pm25.cell import Cell
from pm25.splits import RandomSplit
from sweeps.bench.engine import trivial
from sweeps.spec.study import Study
from sweeps.store.fencing import LockLost
from sweeps.store.records import Record, Store, default_tracking
from sweeps.tracking import mlflow_view, process
from sweeps.tracking.connection import DamagedDatabase, sqlite_file
from sweeps.tracking.parent_metrics import Aggregates
from sweeps.tracking.process import MlflowMirror, TrackingProcess
from tests.errors import refuses

PANEL: Any = SimpleNamespace(fingerprint="f")


def stored(store: Store, seed: int) -> Record:
    """A finished cell."""
    cell = Cell(variant="none", split=RandomSplit(), fold=0, seed=seed)
    return trivial(cell, cell.key("f"), PANEL, store)


def runs(store: Store) -> list[tuple[str, str]]:
    """(key, status) of MLflow's runs that are not deleted."""
    with sqlite3.connect(Path(store.storage) / "mlflow.db") as database:
        return sorted(
            database.execute(
                "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
                "where t.key = 'key' and r.lifecycle_stage = 'active'"
            )
        )


def planned(*records: Record) -> Any:
    """Stand-in for a study state as `TrackingProcess.plan` reads it: these cells and no searches."""
    cells = {record["key"]: Cell.model_validate(record["cell"]) for record in records}
    study = Study.model_validate(
        {
            "study": "toy",
            "data": {"synthetic": {}},
            "design": {"variant": "none", "split": {"kind": "random"}, "seed": 0},
        }
    )
    return SimpleNamespace(cells=cells, waiting=[], search_summaries=list, study=study)


def finished(*records: Record) -> list[tuple[str, str]]:
    return sorted((record["key"], "FINISHED") for record in records)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path), "toy")
    made.prepare()
    return made


@pytest.mark.slow
def test_all_is_written_by_the_end_although_a_process_was_killed(store: Store) -> None:
    first, second, *during = [stored(store, seed) for seed in range(4)]
    with TrackingProcess(store, None, []) as made:
        made.add(first)
        made._process.kill()
        made._process.wait()
        made.add(second)
    assert made.behind == "its process ended with -9"

    with TrackingProcess(store, None, [first, second]) as made:
        for record in during:
            made.add(record)
        made.plan(planned(first, second, *during))
        made.describe("RMSE 5")
    assert made.behind == ""
    assert runs(store) == finished(first, second, *during)
    with sqlite3.connect(Path(store.storage) / "mlflow.db") as database:
        counts = database.execute("select value from latest_metrics where key in ('n', 'n_expected')")
        assert counts.fetchall() == [(4.0,), (4.0,)]
        notes = database.execute("select value from experiment_tags where key = 'mlflow.note.content'")
        assert notes.fetchall() == [("RMSE 5",)]

    with TrackingProcess(store, None, [first, second, *during]) as made:
        pass  # nothing is new, and no summary is sent
    assert made.behind == ""
    assert runs(store) == finished(first, second, *during)


@pytest.mark.slow
def test_what_no_waiting_will_open_is_refused_before_anything_is_trained(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "OPENS_S", 120)  # on a busy machine, MLflow's import takes long
    (Path(store.storage) / "file").touch()
    uri = f"sqlite:///{store.storage}/file/mlflow.db"
    made = TrackingProcess(store, uri, [])
    with refuses("tracking", "", uri.removeprefix("sqlite:///")), made:
        made.opened()
    assert made._process.poll() is not None


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_refused_where_it_is_needed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(process, "OPENS_S", 120)
    made = TrackingProcess(store, "http://127.0.0.1:9", [])
    with made, refuses("tracking", "", "http://127.0.0.1:9", "--require-tracking"):
        made.opened(needed=True)
    assert made.behind


@pytest.mark.parametrize("needed", [False, True])
def test_a_server_that_cannot_be_reached_is_refused_only_where_it_is_needed(
    store: Store, monkeypatch: pytest.MonkeyPatch, needed: bool
) -> None:
    code = 'print(\'["open", ["no route to it", ""]]\'); print(\'["closed", "no route to it"]\')'
    monkeypatch.setattr(subprocess, "Popen", partial(_other, subprocess.Popen, code))
    with TrackingProcess(store, "http://127.0.0.1:9", []) as made:
        if needed:
            with refuses("tracking", "", "no route to it", "--require-tracking"):
                made.opened(needed=True)
        else:
            made.opened()
    assert made.behind == "no route to it"


@pytest.mark.slow
def test_it_ends_with_its_driver(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code = (
        "import sys, time; from sweeps.store.records import Store\n"
        "from sweeps.tracking.process import TrackingProcess\n"
        f"made = TrackingProcess(Store({store.storage!r}, 'toy'), 'http://127.0.0.1:9', [])\n"
        "made.opened(); print(made._process.pid, flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    child = psutil.Process(int(driver.stdout.readline()))
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    child.wait(10)


def test_a_store_that_does_not_answer_holds_up_no_training(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "OPENS_S", 0.2)
    # As one whose server accepts a connection and does not answer.
    monkeypatch.setattr(subprocess, "Popen", partial(_other, subprocess.Popen, "import time; time.sleep(60)"))
    made = TrackingProcess(store, "http://127.0.0.1:9", [])
    made.opened()
    made._process.kill()
    made.close()
    assert made.behind == "its process ended with -9"


def test_a_process_that_dies_at_once_is_told_at_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", partial(_other, subprocess.Popen, "import sys; sys.exit(3)"))
    made = TrackingProcess(store, None, [])
    made.opened()
    made.close()
    assert made.behind == "its process ended with 3"


def _other(popen: Any, code: str, command: list[str], **options: Any) -> Any:
    """Another process in the writer's place."""
    return popen([command[0], "-c", code], **options)


class Tracker:
    """One that refuses now and then."""

    def __init__(self) -> None:
        self.fails = False
        self.asked: list[tuple[str, Any]] = []

    def _ask(self, what: str, value: Any) -> None:
        self.asked.append((what, value))
        if self.fails:
            raise OSError("read-only")

    def write(self, records: list[Record]) -> None:
        self._ask("write", [record["key"] for record in records])

    def sync(self, records: list[Record]) -> None:
        self._ask("sync", [record["key"] for record in records])

    def answer(self, aggregates: Aggregates) -> None:
        self._ask("answer", aggregates)

    def show(self, figures: dict[str, bytes]) -> None:
        self._ask("show", sorted(figures))

    def describe(self, markdown: str) -> None:
        self._ask("describe", markdown)


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    made = Tracker()
    monkeypatch.setattr(MlflowMirror, "_open", lambda view: made)
    return made


def test_what_was_missed_is_written_when_the_tracking_store_answers_again(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = MlflowMirror(Store("nowhere", "toy"), None)

    def add(key: str) -> None:
        view.missed.append({"key": key})
        view.catch_up(at_leisure=False)

    add("a")  # what was recorded before is looked through with the first
    add("b")
    assert tracker.asked == [("sync", ["a"]), ("write", ["b"])]
    tracker.fails = True
    add("c")
    assert view.behind == "read-only"
    add("d")  # it is left in peace for a while
    assert tracker.asked[2:] == [("write", ["c"])]
    monkeypatch.setattr(process, "PAUSE_S", 0.0)
    view._rests_until = 0.0
    add("e")
    tracker.fails = False
    add("f")
    assert tracker.asked[3:] == [("sync", ["c", "d", "e"]), ("sync", ["c", "d", "e", "f"])]
    assert view.behind == ""
    add("g")
    assert tracker.asked[5:] == [("write", ["g"])]


def test_a_driver_that_has_lost_its_study_ends_the_view(
    tracker: Tracker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view is not behind, and nothing is tried again."""
    view = MlflowMirror(store, None)
    lost = LockLost("driver.json", "", "process 1 on host a has taken over study toy", "wait")

    def lose(records: list[Record]) -> None:
        raise lost

    monkeypatch.setattr(tracker, "sync", lose)
    for write in (lambda: view.catch_up(at_leisure=False), lambda: view.finish("note")):
        with refuses("driver.json", kind=LockLost):
            write()
    assert view.behind == ""
    assert tracker.asked == []


def test_the_reason_of_a_lost_study_is_passed_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        'print(\'["open", ["", ""]]\'); '
        'print(\'["refused", ["driver.json", "", "process 1 has taken over study toy", "wait"]]\')'
    )
    monkeypatch.setattr(subprocess, "Popen", partial(_other, subprocess.Popen, code))
    with TrackingProcess(store, "http://127.0.0.1:9", []) as made:
        made.opened()
    assert made.behind == "driver.json: process 1 has taken over study toy. Fix: wait."


class Database:
    """Stand-in for `Tracker`, with a file as its database."""

    def __init__(self, store: Store, uri: str | None, data: Any = None) -> None:
        self.file = sqlite_file(uri or default_tracking(store.storage))
        if self.file.exists() and self.file.read_text() == "damaged":
            raise DamagedDatabase("tracking", "", f"{self.file} is damaged", f"`mv {self.file} elsewhere`")
        self.file.touch()

    def sync(self, found: list[Record]) -> None:
        self.file.write_text(" ".join(sorted(record["key"] for record in found)))

    def write(self, found: list[Record]) -> None:
        with self.file.open("a") as file:
            file.write("".join(f" {record['key']}" for record in found))


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_view, "Tracker", Database)


def test_a_damaged_default_database_is_moved_aside_and_written_again(store: Store, database: None) -> None:
    first, second, third = (stored(store, seed) for seed in range(3))
    file, said = Path(store.storage, "mlflow.db"), list[str]()
    file.write_text("damaged")
    file.with_name("mlflow.db-journal").write_text("of the damaged one")
    view = MlflowMirror(store, default_tracking(store.storage), notice=said.append)
    assert view.behind == ""
    view.missed.append(first)
    view.catch_up(at_leisure=False)
    (aside,) = file.parent.glob("mlflow.db.damaged-*[0-9]")
    assert aside.read_text() == "damaged"
    assert Path(f"{aside}-journal").read_text() == "of the damaged one"
    assert [str(file) in line and str(aside) in line for line in said] == [True]

    file.write_text("damaged")  # again, in the middle of the run
    aside.rename(aside.with_name("older"))
    view._failed(OSError("malformed"))
    view._rests_until = 0.0
    view.missed += [second, third]
    view.finish(None)
    assert view.behind == ""
    assert file.read_text().split() == sorted(record["key"] for record in (first, second, third))
    assert len(said) == 2


def test_a_damaged_database_elsewhere_is_kept_and_stops_no_training(
    store: Store, database: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file, said = tmp_path_factory.mktemp("elsewhere") / "mlflow.db", list[str]()
    file.write_text("damaged")
    view = MlflowMirror(store, f"sqlite:///{file}", notice=said.append)
    view.missed.append(stored(store, 0))
    view.finish(None)
    assert [path.name for path in file.parent.iterdir()] == ["mlflow.db"]
    assert file.read_text() == "damaged"
    assert view.behind == f"{file} is damaged"
    assert view.fix == f"`mv {file} elsewhere`"
    assert said == []


def test_the_last_attempt_does_not_wait_and_describes_only_what_is_whole(tracker: Tracker) -> None:
    view = MlflowMirror(Store("nowhere", "toy"), None)
    tracker.fails = True
    view.missed.append({"key": "a"})
    view.catch_up(at_leisure=False)
    view.finish("note")
    assert tracker.asked == [("sync", ["a"]), ("sync", ["a"])]
    assert view.behind == "read-only"
    tracker.fails = False
    view.finish("note")
    assert tracker.asked[2:] == [("sync", ["a"]), ("describe", "note")]
    assert view.behind == ""


def test_records_that_nobody_passed_on_are_written_at_the_end(tracker: Tracker, store: Store) -> None:
    """The store had them before a search chose their settings, and the database is new."""
    passed, other = stored(store, 0), stored(store, 1)
    view = MlflowMirror(store, None)
    cells = {record["key"]: record["cell"] for record in (passed, other)}
    view.plan = [cells, [], [], {}, [], [], {"contrasts": [], "seeds": [0], "analysis": {}}]
    view.missed.append(passed)
    view.catch_up(at_leisure=True)
    assert [value for what, value in tracker.asked if what == "sync"] == [[passed["key"]]]
    view.finish("note")
    assert view.behind == ""
    assert [value for what, value in tracker.asked if what == "sync"] == [[passed["key"]], [other["key"]]]


def test_the_arms_are_compared_at_leisure_and_at_the_end(tracker: Tracker, store: Store) -> None:
    record = stored(store, 0)
    other = Cell(variant="none", split=RandomSplit(), fold=0, seed=1)
    view = MlflowMirror(store, None)
    view.catch_up(at_leisure=True)
    assert [what for what, _ in tracker.asked] == ["sync"], "nothing is planned as yet"
    cells = {record["key"]: record["cell"], other.key("f"): other.resolved()}
    declared = {"contrasts": [], "seeds": [0], "analysis": {}}
    view.plan = [cells, [], [["none", {"n": 3.0}]], {}, [], [], declared]
    view.missed.append(record)
    view.catch_up(at_leisure=False)
    assert [what for what, _ in tracker.asked][1:] == ["write"]
    view.catch_up(at_leisure=True)
    (_, told) = tracker.asked[-1]
    assert told["none", None] == {"n": 3.0}
    assert (told["none", "random"]["n"], told["none", "random"]["n_expected"]) == (1, 2)
    asked = len(tracker.asked)
    view.catch_up(at_leisure=True)  # not again so soon
    assert [what for what, _ in tracker.asked[asked:]] == ["write"]
    view.finish("note")
    assert [what for what, _ in tracker.asked[asked:]] == ["write", "write", "answer", "show", "describe"]
    assert "cells-rmse.png" in tracker.asked[-2][1]
