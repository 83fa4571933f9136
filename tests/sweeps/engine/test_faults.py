"""Faults of the world while a study runs: no cell is blamed, the run ends with one line, and it resumes."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.cell import Cell, Tuning
from pm25.errors import InputError
from pm25.panel import Panel
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import RandomSplit
from sweeps.engine import connection, ray_internals, temp_folder, tune_events, worker
from sweeps.engine.cluster import RayLost
from sweeps.engine.connection import Watch
from sweeps.engine.scheduler import Task
from sweeps.engine.trainable import FAULT, RECORDED, StudyTrainable
from sweeps.engine.tune_events import TuneEvents
from sweeps.spec.design import Arm
from sweeps.store import records
from sweeps.store.records import StorageFault, Store
from tests import disks, worlds
from tests.errors import refuses

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "any"
CELL = Cell(
    variant="none",
    split=RandomSplit(folds=2),
    fold=0,
    seed=0,
    model=ModelSettings(width=4, depth=1, attention_units=4),
    train=TrainSettings(max_epochs=2, batch_size=64),
)
MORE = {"kind": "trial", "arm": "none", "number": 0, "params": {}, "point": "x"}
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE]


@pytest.fixture(scope="module")
def panel() -> Panel:
    return worlds.synthetic_panel()


class FailingStorage:
    """The storage's reads or writes: the one of this number fails, and so do all that follow."""

    def __init__(self, patch: pytest.MonkeyPatch, verb: str, number: int, error: Exception) -> None:
        self.calls, self.failed, self._works = 0, False, getattr(records, verb)
        self._number, self._error = number, error
        patch.setattr(records, verb, self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls >= self._number:
            self.failed = True
            raise self._error
        return self._works(*arguments)


def train_cell(panel: Panel, store: Store) -> None:
    worker.train_and_record(CELL, KEY, panel, store, keep_weights=True, checkpoint_seconds=0)


class Trainable(StudyTrainable):
    """A worker outside of Ray."""

    def __init__(self, panel: Panel, store: Store, kind: str) -> None:
        self._panel, self._store, self._embeddings, self._joined = panel, store, {}, False
        self._refusal = self._trial = self._stack = None
        self._train_cell, self._search_trial = worker.train_and_record, worker.SearchTrial
        self._keeps_weights = lambda cell: True
        self.config = {"key": KEY, "kind": kind, "gpu": 0.0}

    def _task(self) -> tuple[list[Cell], dict[str, Any], dict[str, Any]]:
        tuning = Tuning() if self.config["kind"] == "trial" else None
        return [CELL.model_copy(update={"tuning": tuning})], dict(MORE), {"checkpoint_seconds": 0}

    def end(self) -> dict[str, Any]:
        while not (result := self.step())["done"]:
            pass
        return result


@pytest.mark.parametrize("verb", ["read", "write"])
@pytest.mark.parametrize("kind", ["cell", "trial"])
@given(number=st.integers(1, 6), code=st.sampled_from(ERRORS))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_no_cell_and_no_trial_is_blamed_for_the_storage(
    panel: Panel, tmp_path_factory: pytest.TempPathFactory, kind: str, verb: str, number: int, code: int
) -> None:
    store = Store(str(tmp_path_factory.mktemp("storage")), "toy")
    mine = store if kind == "cell" else store.search
    with pytest.MonkeyPatch.context() as patch:
        monkeypatched = FailingStorage(patch, verb, number, OSError(code, "in the middle"))
        result = Trainable(panel, store, kind).end()
    if monkeypatched.failed:
        assert result["state"] == FAULT
        fault = result["why"]
        assert isinstance(fault, StorageFault)
        assert (fault.where, fault.field) == (store.storage, "storage")
        assert os.strerror(code) in fault.problem
        assert fault.fix.endswith("run the same command again")
        assert mine.record(KEY) is None, "the storage's fault became a failure"
    # The same task again, as the same command runs it.
    assert Trainable(panel, store, kind).end()["state"] == RECORDED
    assert mine.record(KEY)["state"] == "done"  # type: ignore[index]
    assert not list(Path(store.storage).rglob(".*.part"))


def test_the_seventh_write_of_a_cell_would_come_too_late(panel: Panel, tmp_path: Path) -> None:
    """The numbers above cover every read and write of a cell, and more."""
    for verb in ("read", "write"):
        with pytest.MonkeyPatch.context() as patch:
            counted = FailingStorage(patch, verb, 1000, OSError())
            train_cell(panel, Store(str(tmp_path / verb), "toy"))
        assert 2 < counted.calls <= 6


def test_an_error_of_the_training_is_not_one_of_the_storage(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pm25 import trial

    def fail(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trial.Training, "epoch", fail)
    store = Store(str(tmp_path), "toy")
    assert Trainable(panel, store, "cell").end()["state"] == RECORDED
    assert store.record(KEY)["error"]["type"] == "OSError"  # type: ignore[index]


def test_a_disk_that_fills_and_one_that_becomes_read_only(panel: Panel, tmp_path: Path) -> None:
    with disks.small_disk(tmp_path / "disk", "256k") as disk:
        _fill_and_forbid(panel, disk)


def _fill_and_forbid(panel: Panel, disk: Path) -> None:
    store = Store(str(disk / "results"), "toy")
    store.prepare()
    disks.fill(disk)
    with refuses(store.storage, "storage", "No space left on device", "free some space", kind=StorageFault):
        train_cell(panel, store)
    assert store.records([KEY]) == {}
    assert not list(Path(store.storage).rglob(".*.part"))
    disks.remount(disk, "size=8m")
    disks.remount(disk, "ro")
    with refuses(store.storage, "storage", "Read-only file system", "write access", kind=StorageFault):
        train_cell(panel, store)
    disks.remount(disk, "rw")
    train_cell(panel, store)
    assert store.record(KEY)["state"] == "done"  # type: ignore[index]


# Events of Tune


class Queue:
    fault: BaseException | None = None

    def __init__(self) -> None:
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: self.called.append(name)

    def end(self, error: BaseException) -> None:
        self.fault = self.fault or error

    def task(self, _: str) -> Task:
        return Task("cell", KEY, Arm.of(CELL), (CELL,), {})


def tune_trial(**result: Any) -> Any:
    return SimpleNamespace(trial_id="t", config={"key": KEY, "kind": "cell"}, last_result=result)


def events(store: Store, check_ray: Callable[[], None] = lambda: None) -> tuple[TuneEvents, Queue]:
    queue = Queue()
    data: Any = SimpleNamespace(fingerprint="f")
    return TuneEvents(queue, store, queue, data, check_ray), queue  # type: ignore[arg-type]


def test_a_fault_of_the_storage_ends_the_run_at_the_next_step(tmp_path: Path) -> None:
    made, queue = events(Store(str(tmp_path), "toy"))
    made.on_step_end(0, [])
    fault = StorageFault("results", "storage", "cannot be written (No space left on device)", "free space")
    made.on_trial_complete(0, [], tune_trial(state=FAULT, why=fault))
    made.on_trial_error(0, [], tune_trial())  # workers that end with the run are not losses
    made.on_trial_complete(0, [], tune_trial(state=RECORDED))
    assert queue.called == []
    with pytest.raises(StorageFault) as raised:
        made.on_step_end(0, [])
    assert raised.value is fault


def test_a_storage_that_the_driver_cannot_read_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), "toy")
    made, queue = events(store)
    FailingStorage(monkeypatch, "read", 1, OSError(errno.ESTALE, "Stale file handle"))
    made.on_trial_complete(0, [], tune_trial(state=RECORDED))
    with refuses(str(tmp_path), "storage", "mount it again", kind=StorageFault):
        made.on_step_end(0, [])
    assert queue.called == []


def test_a_dead_ray_is_not_the_loss_of_a_worker(tmp_path: Path) -> None:
    def check_ray() -> None:
        raise RayLost("Ray", problem="its process raylet has died")

    made, queue = events(Store(str(tmp_path), "toy"), check_ray)
    made.on_trial_error(0, [], tune_trial())
    assert queue.called == []
    with pytest.raises(RayLost):
        made.on_step_end(0, [])
    assert not [*tmp_path.rglob("result.json")]


def test_a_loss_that_cannot_be_recorded_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), "toy")
    made, queue = events(store)
    queue.lost = lambda *_, **__: False  # type: ignore[attr-defined]
    monkeypatch.setattr(tune_events.ray, "nodes", list)
    monkeypatch.setattr(ray_internals, "draining_nodes", set)
    monkeypatch.setattr(ray_internals, "trial_error", lambda trial: None)
    FailingStorage(monkeypatch, "write", 1, OSError(errno.EDQUOT, "Disk quota exceeded"))
    made.on_trial_error(0, [], tune_trial())
    with refuses(str(tmp_path), "storage", "quota", kind=StorageFault):
        made.on_step_end(0, [])
    assert store.record(KEY) is None


# The watch over a local Ray


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[psutil.Process]]:
    """Two processes in the place of Ray's; the run depends on the first."""
    started = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    found = [psutil.Process(process.pid) for process in started]
    monkeypatch.setattr(connection, "_ray_processes", lambda: {*found})
    monkeypatch.setattr(connection, "NEEDED", ("raylet",))
    monkeypatch.setattr(
        psutil.Process, "name", lambda self: "raylet" if self == found[0] else "worker", raising=True
    )
    yield found
    for process in started:
        process.kill()
        process.wait()


class Exit:
    """Takes the place of `os._exit`, and notes the status."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.called = threading.Event()

    def __call__(self, status: int) -> None:
        self.statuses.append(status)
        self.called.set()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Exit:
    made = Exit()
    monkeypatch.setattr(os, "_exit", made)
    return made


def test_a_process_of_ray_that_dies_ends_the_run_and_the_other_processes(
    sleepers: list[psutil.Process], tmp_path: Path, exits: Exit, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = sleepers
    watch = Watch(None, tmp_path)
    with refuses("Ray", "", "raylet", kind=RayLost), watch:
        watch.check()
        first.kill()
        exits.called.wait(30)
    assert exits.statuses == [3]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("sweep: Ray: ")
    assert "raylet" in line
    assert psutil.wait_procs([second], timeout=10)[1] == []


def test_a_check_finds_a_dead_process_itself(
    sleepers: list[psutil.Process], tmp_path: Path, exits: Exit
) -> None:
    watch = Watch(None, tmp_path)
    watch.check()
    sleepers[0].kill()
    psutil.wait_procs(sleepers[:1], timeout=10)
    with pytest.raises(RayLost):
        watch.check()
    assert exits.statuses == [3]


def test_a_process_that_the_run_does_not_depend_on_may_die(
    sleepers: list[psutil.Process], tmp_path: Path
) -> None:
    with Watch(None, tmp_path) as watch:
        watch.check()
        sleepers[1].kill()
        psutil.wait_procs(sleepers[1:], timeout=10)
        watch.check()


def test_processes_that_end_with_ray_are_no_fault(
    sleepers: list[psutil.Process], tmp_path: Path, exits: Exit
) -> None:
    with Watch(None, tmp_path) as watch:
        watch.check()
    sleepers[0].kill()
    assert not exits.called.wait(2 * connection.LOOK_EVERY_S)


def test_a_temporary_folder_that_fills_ends_the_run(
    sleepers: list[psutil.Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(connection, "PROBE_EVERY_S", 0.1)
    watch = Watch(None, tmp_path / "ray")
    with refuses(str(tmp_path / "ray"), "", "No space left on device", "TMPDIR") as raised, watch:
        monkeypatch.setattr(Path, "write_bytes", full)
        time.sleep(60)  # which the watch interrupts
    assert not isinstance(raised.value, RayLost)
    assert all(process.is_running() for process in sleepers), "Ray can be shut down as usual"


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    temp_folder.check_writable(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_main_thread_that_does_not_react_is_ended_with_the_same_line(
    sleepers: list[psutil.Process],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exits: Exit,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(folder: Path) -> None:
        raise InputError(str(folder), "", "cannot be written", "free some space")

    def wait_in(watch: Watch) -> None:
        with watch:
            assert exits.called.wait(30)

    monkeypatch.setattr(temp_folder, "check_writable", fail)
    monkeypatch.setattr(connection, "PROBE_EVERY_S", 0.0)
    monkeypatch.setattr(connection, "HEAD_EVERY_S", 0.1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        with refuses(str(tmp_path), "", "cannot be written"):
            wait_in(Watch(None, tmp_path))
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert exits.statuses == [2]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"sweep: {tmp_path}: ")


def test_errors_travel_from_a_worker_to_the_driver() -> None:
    import pickle

    fault = StorageFault("results", "storage", "cannot be written", "free some space")
    found = pickle.loads(pickle.dumps(fault))
    assert isinstance(found, StorageFault)
    assert isinstance(found, InputError)
    assert json.dumps(str(found)) == json.dumps(str(fault))
