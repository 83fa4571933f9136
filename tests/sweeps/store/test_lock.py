"""The lock: one driver at a time. A dead driver is replaced, a running one never, for any clocks."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs
import pytest

from sweeps.store import lock
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store
from tests.errors import refuses

ROOT = Path(__file__).parents[3]


class Elsewhere(Store):
    """The same folder as a storage that is not a local folder: nothing can be created exclusively in it."""

    def location(self, *parts: str) -> tuple[pyarrow.fs.FileSystem, str]:
        system, path = super().location(*parts)
        return pyarrow.fs.SubTreeFileSystem("/", system), path


@pytest.fixture(params=[Store, Elsewhere], ids=["folder", "object storage"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.param(str(tmp_path), "toy")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of the real thing in 0.6 s."""
    for name in ("BEAT_S", "STALE_S", "WATCH_S", "SETTLE_S"):
        monkeypatch.setattr(lock, name, getattr(lock, name) / 100)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "toy").mkdir()
    return tmp_path / "toy" / "driver.json"


def driver(**changes: Any) -> dict[str, Any]:
    """The driver file that this process would write."""
    now = datetime.now(UTC).isoformat()
    return {
        "id": "somebody",
        "host": "node7",
        "process": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "process_space": lock._process_space(),
        "since": "2026-03-01T09:30:00Z",
        "beat": now,
    } | changes


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + 10
    while not (value := true()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return value


def content(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_the_file_names_the_driver_and_goes_with_it(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "toy" / "driver.json"
    with StudyLock(store) as own:
        found = content(file)
        assert found["process"] == os.getpid()
        assert found["process_started"] == psutil.Process().create_time()
        age = datetime.now(UTC) - datetime.fromisoformat(found["since"])
        assert timedelta() <= age < timedelta(seconds=10)
        assert own.lost == ""
    assert [*file.parent.iterdir()] == []
    with pytest.raises(ZeroDivisionError), StudyLock(store):
        raise ZeroDivisionError
    assert [*file.parent.iterdir()] == []


def test_a_second_driver_is_refused_and_names_the_first(store: Store, tmp_path: Path) -> None:
    with StudyLock(store) as own:
        with refuses() as caught, StudyLock(store):
            pass
        since = content(tmp_path / "toy" / "driver.json")["since"][:19].replace("T", " ")
        host = content(tmp_path / "toy" / "driver.json")["host"]
        assert (caught.value.where, caught.value.field) == (f"{tmp_path}/toy/driver.json", "")
        for value in (f"process {os.getpid()} on host {host}", "study toy", f"{since} UTC"):
            assert value in caught.value.problem
        assert own.lost == ""
        with StudyLock(Store(store.storage, "other")):  # another study is another matter
            pass


def test_the_beat_goes_on(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "toy" / "driver.json"
    with StudyLock(store):
        first = content(file)
        second = until(lambda: content(file)["beat"] > first["beat"] and content(file))
        assert second | {"beat": ""} == first | {"beat": ""}


# Dead drivers of this machine

_HOLDS = """
import sys
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store
with StudyLock(Store(sys.argv[1], "toy")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that drives the study."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_killed_driver_is_replaced_at_once(
    tmp_path: Path, other: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path), "toy")
    with refuses("driver.json", "", f"process {other.pid} on host "), StudyLock(store):
        pass
    other.send_signal(signal.SIGKILL)
    until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
    with StudyLock(store):  # nobody has reaped it yet
        pass
    other.wait()
    (tmp_path / "toy" / "driver.json").write_text(json.dumps(driver(process=other.pid)))
    with StudyLock(store):
        assert content(tmp_path / "toy" / "driver.json")["process"] == os.getpid()
    assert capsys.readouterr().err == ""  # nothing was waited for


def test_a_driver_that_ends_lets_go(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    assert other.stdin
    other.stdin.close()
    assert other.wait() == 0
    assert [*(tmp_path / "toy").iterdir()] == []


def test_another_process_with_the_same_id_is_no_driver(store: Store, file: Path) -> None:
    file.write_text(json.dumps(driver(process_started=psutil.Process().create_time() - 100)))
    with StudyLock(store) as own:
        assert content(file)["id"] != "somebody"
        assert own.lost == ""


# Drivers of other machines, whose processes cannot be looked for


def elsewhere(**changes: Any) -> dict[str, Any]:
    return driver(process_space="another boot", process=1, **changes)


@pytest.mark.parametrize("skew", [-3600, 0, 3600], ids=["behind", "right", "ahead"])
def test_a_beating_heart_is_alive_whatever_its_clock_says(
    store: Store, file: Path, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WATCH_S", 10.0)
    stop = threading.Event()
    file.write_text(json.dumps(elsewhere(beat=ago(-skew))))

    def beat() -> None:
        while not stop.wait(lock.BEAT_S):
            part = file.with_name("part")
            part.write_text(json.dumps(elsewhere(beat=ago(-skew))))
            part.replace(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            refuses("driver.json", "", "process 1 on host node7", "2026-03-01 09:30:00 UTC"),
            StudyLock(store),
        ):
            pass
    finally:
        stop.set()
        thread.join()
    assert content(file)["id"] == "somebody"


@pytest.mark.parametrize("seconds", [0, -3600], ids=["just now", "in the future"])
def test_a_driver_without_heartbeats_is_dead(
    store: Store, file: Path, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps(elsewhere(beat=ago(seconds))))
    began = time.monotonic()
    with StudyLock(store):
        assert time.monotonic() - began > lock.STALE_S - 0.1
        assert content(file)["process"] == os.getpid()
    said = capsys.readouterr().err
    assert re.fullmatch(r"sweep: process 1 on host node7 .* study toy .*\n", said)


def test_an_old_heartbeat_shortens_the_wait(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 60.0)
    file.write_text(json.dumps(elsewhere(beat=ago(3600))))
    began = time.monotonic()
    with StudyLock(store):
        assert lock.WATCH_S < time.monotonic() - began < 30


def test_a_driver_that_releases_the_lock_ends_the_wait(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 30)
    file.write_text(json.dumps(elsewhere()))
    threading.Timer(0.1, file.unlink).start()
    began = time.monotonic()
    with StudyLock(store):
        assert time.monotonic() - began < 15
        assert content(file)["process"] == os.getpid()


# A lock that is lost


def test_a_replaced_driver_loses_the_lock_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "toy" / "driver.json"
    with StudyLock(store) as own:
        file.write_text(json.dumps(elsewhere()))
        assert until(lambda: own.lost) == "process 1 on host node7 has taken over study toy"
    assert content(file)["id"] == "somebody"


def test_a_deleted_lock_file_ends_the_run(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "toy" / "driver.json"
    with StudyLock(store) as own:
        file.unlink()
        assert until(lambda: own.lost).startswith(f"{file} ")
    assert not file.exists()


def test_a_storage_that_fails_for_a_while_is_tried_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "toy" / "driver.json"
    asked = []

    def fails(*_: Any) -> None:
        asked.append(time.monotonic())
        raise OSError(5, "Input/output error")

    with StudyLock(store) as own:
        first = content(file)["beat"]
        with monkeypatch.context() as broken:
            broken.setattr(lock, "write", fails)
            until(lambda: len(asked) >= 2)
            assert own.lost == ""
        until(lambda: content(file)["beat"] > first)
        time.sleep(lock.STALE_S)
        assert own.lost == ""


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_lock_that_cannot_be_renewed_is_lost_before_it_is_stale(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    again = threading.Event()

    def bad(*_: Any) -> None:
        if how == "hangs":
            again.wait()
        raise OSError(5, "Input/output error")

    with StudyLock(store) as own:
        began = time.monotonic()
        monkeypatch.setattr(lock, "write", bad)
        lost = until(lambda: own.lost)
        assert time.monotonic() - began > lock.STALE_S - 2 * lock.BEAT_S
        reason = "[Errno 5] Input/output error" if how == "fails" else "it does not answer"
        assert lost.endswith(f"driver.json could not be renewed for 0.6 s ({reason})")
        again.set()


# Several at once


def test_without_locks_the_last_writer_wins(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 1.0)

    def overwrite() -> None:
        until(file.exists)
        file.write_text(json.dumps(driver()))

    thread = threading.Thread(target=overwrite)
    thread.start()
    with (
        refuses("driver.json", "", f"process {os.getpid()} on host node7"),
        StudyLock(Elsewhere(str(tmp_path), "toy")),
    ):
        pass
    thread.join()
    assert content(file)["id"] == "somebody"


_RACES = """
import random, sys, time
import pyarrow.fs
from pm25.errors import InputError
from sweeps.store import lock
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store

class Elsewhere(Store):
    def location(self, *parts):
        system, path = super().location(*parts)
        return pyarrow.fs.SubTreeFileSystem("/", system), path

if sys.argv[2] == "elsewhere":
    Store, lock.SETTLE_S, lock.BEAT_S = Elsewhere, 0.0, 0.05
    write = lock.write
    lock.write = lambda *file: (time.sleep(random.uniform(0, 0.05)), write(*file))
own = None
for line in sys.stdin:
    if line == "go\\n":
        try:
            own = StudyLock(Store(sys.argv[1], "toy"))
            own.__enter__()
            print("won", flush=True)
        except InputError as error:
            own = None
            print(error, flush=True)
    elif line == "lost?\\n":
        print(own.lost if own else "never had it", flush=True)
    else:
        if own:
            own.__exit__(None, None, None)
        print("ended", flush=True)
"""

Ask = Callable[[str], dict[int, str]]


@pytest.fixture(params=["folder", "elsewhere"])
def ask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ask]:
    """Puts a question to four processes at once, and returns their answers by process id."""
    command = [sys.executable, "-c", _RACES, str(tmp_path), request.param]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    def ask(question: str) -> dict[int, str]:
        for process in processes:
            assert process.stdin
            process.stdin.write(question + "\n")
            process.stdin.flush()
        return {p.pid: p.stdout.readline().rstrip("\n") for p in processes if p.stdout}

    yield ask
    for process in processes:
        process.kill()
        process.communicate()


def turns(file: Path, count: int) -> Iterator[int]:
    """In every other one there is a dead driver to replace."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for turn in range(count):
        if turn % 2:
            file.write_text(json.dumps(driver(process=dead.pid)))
        yield turn
        assert [*file.parent.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["folder"], indirect=True)
def test_one_of_several_simultaneous_drivers_wins(file: Path, ask: Ask) -> None:
    for _ in turns(file, 60):
        said = ask("go")
        (winner,) = [pid for pid, word in said.items() if word == "won"]
        assert content(file)["process"] == winner
        refusals = [word for word in said.values() if word != "won"]
        assert all(f"process {winner} on host" in word for word in refusals)
        assert ask("lost?")[winner] == ""
        ask("end")


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["elsewhere"], indirect=True)
def test_without_locks_one_of_several_is_left(file: Path, ask: Ask) -> None:
    """Even where writes are slow and nobody waits for the others'."""
    together = 0
    for _ in turns(file, 10):
        together += [*ask("go").values()].count("won") > 1

        def left() -> list[int]:
            return [pid for pid, word in ask("lost?").items() if word == ""]

        until(lambda: len(left()) == 1)
        (winner,) = left()
        assert content(file)["process"] == winner
        ask("end")
    assert together  # else nothing was shown
