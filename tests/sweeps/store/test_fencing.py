"""Fencing: who has lost a study writes nothing more to it, whatever the clocks and the suspensions were."""

import os
import pickle
import threading
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.engine import cluster, worker
from sweeps.engine.optuna_study import OptunaJournal
from sweeps.spec.design import Arm
from sweeps.spec.study import Study
from sweeps.store import declarations, driver_process, lock, records, running
from sweeps.store.fencing import LockLost
from sweeps.store.lock import StudyLock
from sweeps.store.records import StorageFault, Store
from sweeps.store.running import Progress, ProgressWriter
from tests.errors import refuses
from tests.sweeps.cli.commands import tree
from tests.sweeps.store.test_lock import Elsewhere, put, take_over

RECORD = {"key": "k1", "state": "done"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=[Store, Elsewhere], ids=["folder", "object storage"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store with one file of each kind."""
    made: Store = request.param(str(tmp_path), "toy")
    made.prepare()
    made.write_file("k1", worker.CHECKPOINT, b"state")
    made.write_record(RECORD)
    made.search.write_record(RECORD)
    progress(made)
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 0.0)


def progress(store: Store, epoch: int = 0) -> ProgressWriter:
    place: dict[str, Any] = {"host": "alpha", "process": 7, "started": NOW, "updated": NOW, "epoch": epoch}
    return ProgressWriter(store, Progress(key="k1", label="none random", max_epochs=8, **place))


def study() -> Study:
    return Study.model_validate(
        {
            "study": "toy",
            "data": {"synthetic": {}},
            "design": {"variant": "none", "split": {"kind": "random"}, "seed": 0},
        }
    )


WRITES: dict[str, Callable[[Store], Any]] = {
    "file": lambda store: store.write_file("k2", "weights.pt", b"weights"),
    "record": lambda store: store.write_record({"key": "k2", "state": "done"}),
    "trial": lambda store: store.search.write_record({"key": "k2", "state": "pruned"}),
    "table": lambda store: store.write_table("k2", "history", {"epoch": [1]}),
    "same file": lambda store: store.write_record(RECORD),
    "deletion": lambda store: store.delete_file("k1", "result.json"),
    "retry": lambda store: store.forget("k1"),
    "checkpoints": lambda store: worker.delete_checkpoints(store, ["k1"]),
    "failure": lambda store: worker.record_loss({"key": "k2"}, store, "its worker died"),
    "declaration": lambda store: declarations.declare(study(), store),
    "progress": lambda store: progress(store, epoch=1),
    "end of progress": lambda store: running.ended(store, "k1"),
    "all progress": running.clear,
    "probe": cluster.StorageProbe.put,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_is_written_after_a_take_over(
    store: Store, tmp_path: Path, write: Callable[[Store], Any]
) -> None:
    with refuses(kind=LockLost), StudyLock(store) as own:
        take_over(tmp_path / "toy" / "driver.json")
        before, folders = tree(tmp_path), [*tmp_path.rglob("*")]
        with refuses("toy/driver.json", "", "process 1 on host node7", kind=LockLost):
            write(own.store)
        assert tree(tmp_path) == before
        assert [*tmp_path.rglob("*")] == folders


@pytest.mark.parametrize("lost", ["deleted", "damaged", "released and taken"])
def test_nothing_is_written_without_the_lock(store: Store, tmp_path: Path, lost: str) -> None:
    file = tmp_path / "toy" / "driver.json"
    with refuses(kind=LockLost), StudyLock(store) as own:
        file.unlink()
        if lost != "deleted":
            put(file, {**own._me.model_dump(mode="json"), "id": "another"} if lost != "damaged" else {})
        before = tree(tmp_path)
        with refuses("toy/driver.json", "", "study toy", kind=LockLost):
            own.store.write_record(RECORD)
        assert tree(tmp_path) == before


def test_nothing_is_written_to_a_study_whose_folder_was_deleted(tmp_path: Path) -> None:
    with refuses(str(tmp_path), "storage", kind=StorageFault), StudyLock(Store(str(tmp_path), "toy")) as own:
        (tmp_path / "toy" / "driver.json").unlink()
        (tmp_path / "toy").rmdir()
        with refuses(str(tmp_path), "storage", "written", "mount it again", kind=StorageFault):
            own.store.write_record(RECORD)
        assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("store", [Store], indirect=True, ids=["folder"])
def test_the_driver_itself_may_write(store: Store, tmp_path: Path, write: Callable[[Store], Any]) -> None:
    with StudyLock(store) as own:
        before = tree(tmp_path)
        write(own.store)
        assert write is WRITES["same file"] or tree(tmp_path) != before


def test_a_probe_of_a_node_refuses_the_node(store: Store, tmp_path: Path) -> None:
    with refuses(kind=LockLost), StudyLock(store) as own:
        probe = cluster.StorageProbe.put(own.store)
        assert probe.problem() == ""
        take_over(tmp_path / "toy" / "driver.json")
        before = tree(tmp_path)
        assert "has taken over study toy" in probe.problem()
        probe.remove()
        assert tree(tmp_path) == before


def test_the_journal_gets_no_trial_without_the_lock(tmp_path: Path) -> None:
    trials = SimpleNamespace(
        scope=Arm("none", None, None),
        search=SimpleNamespace(objective=["oor"], smaller_is_better=True),
        space={},
        ended=[],
    )
    searches: Any = [trials]
    with refuses(kind=LockLost), StudyLock(Store(str(tmp_path), "toy")) as own:
        journal = OptunaJournal(own.store)
        journal.write(searches)
        late = OptunaJournal(own.store)
        take_over(tmp_path / "toy" / "driver.json")
        before = tree(tmp_path)
        assert "toy/optuna.journal" in before
        trials.ended.append({"key": "k1", "state": "failed", "params": {}, "number": 0, "reported": []})
        for each in (journal, late):
            with refuses("driver.json", kind=LockLost):
                each.write(searches)
        assert tree(tmp_path) == before


def test_the_check_comes_after_the_content_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Immediately before the file gets its name: the study is taken over while the content is written."""
    store = Store(str(tmp_path), "toy")
    with refuses(kind=LockLost), StudyLock(store) as own:
        monkeypatch.setattr(os, "fsync", lambda file: take_over(tmp_path / "toy" / "driver.json"))
        with refuses("driver.json", kind=LockLost):
            own.store.write_file("k1", "weights.pt", b"weights")
        assert [*(tmp_path / "toy" / "cells" / "k1").iterdir()] == []


def test_a_stale_file_of_nfs_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stale, read = [1, 2, 3], records.read

    def sometimes(*place: Any) -> bytes:
        if stale:
            raise OSError(116, f"Stale file handle {stale.pop()}")
        return read(*place)

    with StudyLock(store) as own:
        monkeypatch.setattr(records, "read", sometimes)
        own.store.check_lock()
        assert not stale
        stale += range(9)
        with pytest.raises(OSError, match="Stale"):
            own.store.check_lock()
        stale.clear()


def test_the_error_travels_between_processes() -> None:
    error = LockLost("driver.json", "", "process 1 on host a has taken over study toy", "wait")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, again.status) == (LockLost, error.args, 4)


# Sequences of events


class Drivers:
    """Three drivers of one study on as many machines, in simulated time, and what they write.

    A driver on another machine is seen through its heartbeats alone. `_watch` is what the waiting driver does
    between two readings: time passes, and every driver that is not suspended writes its heartbeat.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._holds: dict[int, StudyLock] = {}
        self._suspended: set[int] = set()
        self.now, self.wall = 0.0, NOW
        self._number = 0
        self.written: list[str] = []
        """Tokens of the drivers that wrote, in order."""
        self.lost = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.wall += timedelta(seconds=seconds)
        for number in self._holds.keys() - self._suspended:
            self._renew(number)

    def _renew(self, number: int) -> None:
        try:
            self._holds[number]._renew()
        except LockLost:
            self._end(number)

    def _end(self, number: int) -> None:
        self.lost += 1
        del self._holds[number]

    def step_clock(self, number: int) -> None:
        self.wall += timedelta(days=400 * (number - 1))

    def suspend(self, number: int) -> None:
        self._suspended.add(number)

    def resume(self, number: int) -> None:
        self._suspended.discard(number)

    def kill(self, number: int) -> None:
        self._holds.pop(number, None)

    def start(self, number: int) -> None:
        """Take the study, or be refused because another driver runs it."""
        if number in self._holds or number in self._suspended:
            return
        made = StudyLock(self._store)
        running_ = [one for one in self._holds.keys() - self._suspended if self._has_lock(one)]
        try:
            made.__enter__()
        except lock.InputError:
            assert running_, "nobody runs the study, and the lock was refused"
            return
        assert not running_, "a driver that beats lost its study"
        self._holds[number] = made

    def release(self, number: int) -> None:
        if number in self._holds and number not in self._suspended:
            with self._may_lose(number):
                self._holds[number].__exit__(None, None, None)
                del self._holds[number]

    def write(self, number: int, during: list[tuple[str, int]] | None = None) -> None:
        """Write a record; the events `during` happen between its content and its name."""
        if number not in self._holds or number in self._suspended:
            return
        own = self._holds[number]
        self._number += 1
        key = f"k{self._number}"
        fsync = os.fsync

        def meanwhile(file: int) -> None:
            os.fsync = fsync
            self.suspend(number)
            self.run(during or [])
            self.resume(number)

        if during:
            os.fsync = meanwhile
        try:
            with self._may_lose(number):
                own.store.write_record({"key": key, "state": "done"})
                self.written.append(own.store.token)
        finally:
            os.fsync = fsync
        assert (own.store.record(key) is None) == (self.written[-1:] != [own.store.token])

    def run(self, events: list[tuple[str, int]]) -> None:
        for name, number in events:
            getattr(self, name)(number)

    def _has_lock(self, number: int) -> bool:
        found = lock.driver(self._store)
        return found is not None and found.token == self._holds[number].store.token

    @contextmanager
    def _may_lose(self, number: int) -> Any:
        try:
            yield
        except LockLost:
            if number in self._holds:
                self._end(number)


EVENT = st.tuples(
    st.sampled_from(["step_clock", "suspend", "resume", "kill", "start", "release", "write"]),
    st.integers(0, 2),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(EVENT, st.tuples(st.integers(0, 2), st.lists(EVENT, max_size=6))), max_size=30),
    st.sampled_from([Store, Elsewhere]),
)
def test_writes_of_two_drivers_never_interleave(events: list[Any], kind: type[Store]) -> None:
    """Neither after a step of a clock, nor after a suspension, even one in the middle of a write."""
    interleave(events, kind)


def test_a_take_over_in_the_middle_of_a_write() -> None:
    """The sequence that the property must be able to meet."""
    middle = (0, [("start", 1), ("write", 1)])
    drivers = interleave([("start", 0), ("write", 0), middle, ("write", 1), ("write", 0)], Store)
    assert drivers.lost == 1
    assert len(drivers.written) == 3


def interleave(events: list[Any], kind: type[Store]) -> Drivers:
    import tempfile

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        drivers = Drivers(kind(folder, "toy"))
        patch.setattr(lock, "time", drivers)
        patch.setattr(lock, "_now", lambda: drivers.wall)
        patch.setattr(driver_process.Driver, "lives", lambda driver: None)
        patch.setattr(threading.Thread, "start", lambda thread: None)
        patch.setattr(threading.Thread, "join", lambda thread, timeout: None)
        for one, *more in events:
            if isinstance(one, int):
                drivers.write(one, *more)
            else:
                drivers.run([(one, *more)])
        for token in {*drivers.written}:
            own = [place for place, writer in enumerate(drivers.written) if writer == token]
            assert own[-1] - own[0] == len(own) - 1, drivers.written
    return drivers
