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
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs
import pytest

from sweeps.store import driver_process, fencing, lock
from sweeps.store.fencing import LockLost
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
    for name in ("BEAT_S", "STALE_S", "SETTLE_S"):
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
        "number": 3,
        "process": os.getpid(),
        "start_ticks": driver_process.start_ticks(),
        "process_started": psutil.Process().create_time(),
        "process_space": driver_process.process_space(),
        "since": "2026-03-01T09:30:00Z",
        "beats": 7,
        "beat": now,
    } | changes


def of_0_1(**changes: Any) -> dict[str, Any]:
    """The driver file that version 0.1 would write for this process."""
    made = driver(process_space=" ".join(driver_process.process_space().split(" ")[:2]))
    return {name: made[name] for name in made if name not in ("number", "start_ticks", "beats")} | changes


def put(file: Path, content: dict[str, Any]) -> None:
    """Replace the driver file atomically."""
    part = file.with_name("part")
    part.write_text(json.dumps(content))
    part.replace(file)


def take_over(file: Path) -> None:
    """Name a driver of another machine."""
    put(file, elsewhere(number=content(file)["number"] + 1))


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
        assert found["start_ticks"] == int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        assert (found["number"], found["beats"]) == (1, 0)
        assert own.store.token == f"1-{found['id']}"
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
        second = until(lambda: content(file)["beats"] > 1 and content(file))
        changing = {"beat": "", "beats": 0}
        assert second | changing == first | changing


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


def test_another_process_with_the_same_id_is_no_driver(
    store: Store, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(file, driver(start_ticks=(driver_process.start_ticks() or 0) - 1))
    with StudyLock(store) as own:
        assert content(file)["id"] != "somebody"
        assert content(file)["number"] == 4
        assert own.lost == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("step", [-1e9, -2.0, 2.0, 1e9])
def test_a_step_of_the_clock_changes_nothing(
    store: Store, file: Path, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the system's clock moves the start of every process, as psutil computes it."""
    put(file, driver(process_started=psutil.Process().create_time() - step))
    with refuses("driver.json", "", f"process {os.getpid()} "), StudyLock(store):
        pass
    file.unlink()
    now = datetime(2020, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(lock, "_now", lambda: now)
    with StudyLock(store) as own:
        until(lambda: content(file)["beats"] > 1)
        assert content(file)["beat"] == "2020-01-01T00:00:00Z"
        now -= timedelta(days=400)
        until(lambda: content(file)["beat"] == "2018-11-27T00:00:00Z")
        with refuses("driver.json", "", f"process {os.getpid()} "), StudyLock(store):
            pass
        assert own.lost == ""


_BOOTED_LATER = """
import sys
from pathlib import Path
import psutil
from pm25.errors import InputError
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store
started = psutil.Process(int(sys.argv[2])).create_time()
print(round(started - float(sys.argv[3])), flush=True)
try:
    StudyLock(Store(sys.argv[1], "toy")).__enter__()
except InputError as error:
    print(error.problem)
"""


def test_a_changed_boot_time_in_proc_stat_changes_nothing(tmp_path: Path) -> None:
    """Linux moves `btime` when its clock is set, and psutil adds it to every start."""
    changed = tmp_path / "stat"
    text = Path("/proc/stat").read_text()
    changed.write_text(re.sub(r"btime (\d+)", lambda found: f"btime {int(found[1]) + 3600}", text))
    mounts = f"mount --bind {changed} /proc/stat && exec "
    shell = ["unshare", "--mount", "sh", "-c"]
    probe = subprocess.run([*shell, f"{mounts} true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no bind mounts: {probe.stderr.strip()}")
    started = psutil.Process().create_time()
    with StudyLock(Store(str(tmp_path), "toy")):
        command = f'{mounts} "$@"'
        python = [sys.executable, "-c", _BOOTED_LATER, str(tmp_path), str(os.getpid()), str(started)]
        ended = subprocess.run(
            [*shell, command, "sh", *python], cwd=ROOT, capture_output=True, text=True, check=True
        )
    moved, refusal = ended.stdout.splitlines()
    assert moved == "3600"
    assert refusal.startswith(f"process {os.getpid()} on host ")


def test_a_driver_of_version_0_1_is_understood(
    store: Store, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(file, of_0_1())
    with refuses("driver.json", "", f"process {os.getpid()} on host node7"), StudyLock(store):
        pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(file, of_0_1(process=dead.pid))
    with StudyLock(store):
        assert content(file)["number"] == 1
    assert capsys.readouterr().err == ""
    put(file, of_0_1(process_space="another boot"))
    with StudyLock(store):
        assert "waiting" in capsys.readouterr().err


@pytest.mark.parametrize("beats", [True, False])
def test_its_start_alone_declares_no_driver_of_version_0_1_dead(
    store: Store, file: Path, beats: bool
) -> None:
    """Its process id may be used again, or the clock may have been set: heartbeats decide."""
    made = of_0_1(process_started=psutil.Process().create_time() - 100)
    put(file, made)
    if not beats:
        with StudyLock(store):
            assert content(file)["process"] == os.getpid()
        return
    timer = threading.Timer(0.1, put, [file, made | {"beat": ago(-1)}])
    timer.start()
    with refuses("driver.json", "", "process "), StudyLock(store):
        pass
    timer.join()


@pytest.mark.parametrize("hides", ["its state", "everything"])
def test_a_process_that_proc_hides_is_not_declared_dead(hides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc that is mounted with hidepid shows other users' processes without their state, or not at all."""
    made = driver_process.Driver.model_validate(driver())

    def hidden(process: int) -> None:
        if hides == "its state":
            raise PermissionError(13, "Permission denied")

    def refuse(process: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(driver_process, "_stat", hidden)
    monkeypatch.setattr(os, "kill", refuse)
    assert made.lives() is None


# Drivers of other machines, whose processes cannot be looked for


def elsewhere(**changes: Any) -> dict[str, Any]:
    return driver(process_space="another boot", **{"process": 1} | changes)


@pytest.mark.parametrize("skew", [-3600, 0, 3600, None], ids=["behind", "right", "ahead", "stopped"])
def test_a_beating_heart_is_alive_whatever_its_clock_says(
    store: Store, file: Path, skew: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 10.0)
    stop, beats = threading.Event(), count()

    def beat() -> None:
        clock = "2026-03-01T09:30:00Z" if skew is None else ago(-skew)
        put(file, elsewhere(beat=clock, beats=next(beats)))
        if not stop.wait(lock.BEAT_S):
            beat()

    put(file, elsewhere(beat=ago(0)))
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


class Clock:
    """A clock of this process that jumps while it sleeps, as after a suspension."""

    def __init__(self, jumps: list[float], during: Callable[[], Any] = lambda: None) -> None:
        self.now, self._jumps, self._during = 0.0, jumps, during
        self.slept = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += self._jumps.pop(0) if self._jumps else seconds
        self.slept += 1
        self._during()


def test_a_suspended_process_has_observed_nothing(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting process may have been suspended together with the driver, whose heartbeats are to come."""
    put(file, elsewhere())
    clock = Clock([1e6], lambda: clock.slept == 3 and put(file, elsewhere(beats=8)))
    monkeypatch.setattr(lock, "time", clock)
    with refuses("driver.json", "", "process 1 on host node7"), StudyLock(store):
        pass
    assert clock.slept == 3


def test_the_wait_is_counted_by_this_process_alone(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(file, elsewhere(beat=ago(1e6)))  # a heartbeat of long ago does not shorten the wait
    clock = Clock([])
    monkeypatch.setattr(lock, "time", clock)
    with StudyLock(store):
        assert lock.STALE_S <= clock.now < lock.STALE_S + lock.BEAT_S + lock.SETTLE_S


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
    with refuses("driver.json", "", "process 1 on host node7", "toy", kind=LockLost), StudyLock(store) as own:
        take_over(file)
        assert until(lambda: own.lost) == "process 1 on host node7 has taken over study toy"
    assert (content(file)["id"], content(file)["number"], content(file)["beats"]) == ("somebody", 2, 7)


def test_a_deleted_lock_file_ends_the_run(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "toy" / "driver.json"
    with refuses("driver.json", "", "study toy", kind=LockLost), StudyLock(store) as own:
        file.unlink()
        until(lambda: own.lost)
    assert not file.exists()


def test_the_end_of_a_run_finds_a_lost_lock(store: Store, tmp_path: Path) -> None:
    """Whatever else has ended it, and before the next heartbeat."""
    file = tmp_path / "toy" / "driver.json"
    for error in (None, ZeroDivisionError(), KeyboardInterrupt()):
        with refuses("driver.json", kind=LockLost) as caught, StudyLock(store):
            take_over(file)
            if error is not None:
                raise error
        assert caught.value.__cause__ is error
        assert content(file)["id"] == "somebody"
        file.unlink()


def test_a_lost_lock_interrupts_the_run_at_once(store: Store, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with refuses("driver.json", kind=LockLost), StudyLock(store, interrupts=True):
        take_over(tmp_path / "toy" / "driver.json")
        time.sleep(60)
    assert signal.getsignal(signal.SIGUSR1) == before


_HANGS = """
import sys, time
from sweeps.store import lock
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store
lock.BEAT_S = lock.STOPS_S = 0.05
with StudyLock(Store(sys.argv[1], "toy"), interrupts=True):
    print("held", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


def test_a_run_that_does_not_stop_its_workers_ends_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HANGS, str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        take_over(tmp_path / "toy" / "driver.json")
        _, said = process.communicate(timeout=20)
    assert process.returncode == LockLost.status == 4
    (line,) = said.splitlines()
    assert re.fullmatch(r"sweep: .*driver\.json: process 1 on host node7 has taken over .*", line)


_WRITES = """
import sys
from sweeps.store import driver_process
from sweeps.store.fencing import LockLost
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store
driver_process.process_space = lambda: "another machine"
try:
    with StudyLock(Store(sys.argv[1], "toy")) as own:
        for line in sys.stdin:
            own.store.write_record({"key": line.strip(), "state": "done"})
            print("written", flush=True)
except LockLost as error:
    print(error, flush=True)
    sys.exit(error.status)
"""


def test_a_driver_that_was_suspended_finds_that_it_lost_the_study_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITES, str(tmp_path)]
    store = Store(str(tmp_path), "toy")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            assert process.stdin
            assert process.stdout
            process.stdin.write("first\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"
            process.send_signal(signal.SIGSTOP)
            until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
            with StudyLock(store) as own:
                assert content(tmp_path / "toy" / "driver.json")["number"] == 2
                process.send_signal(signal.SIGCONT)
                said, _ = process.communicate("second\n", timeout=20)
                assert store.keys() == {"first"}
                own.store.write_record({"key": "own", "state": "done"})
                assert own.lost == ""
        finally:
            process.kill()
    assert process.returncode == LockLost.status
    assert f"process {os.getpid()} on host " in said.splitlines()[-1]


def test_a_suspended_driver_of_this_machine_keeps_the_study(
    tmp_path: Path, other: "subprocess.Popen[str]"
) -> None:
    """The driver is alive, and nothing has to be observed."""
    other.send_signal(signal.SIGSTOP)
    until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_STOPPED)
    try:
        with refuses("driver.json", "", f"process {other.pid} "), StudyLock(Store(str(tmp_path), "toy")):
            pass
    finally:
        other.send_signal(signal.SIGCONT)


def test_a_writer_keeps_the_study_until_it_has_written(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is dead, and one of its workers has started to write: the take-over waits for it."""
    monkeypatch.setattr(fencing, "LOCKED_S", 0.05)
    put(file, driver(start_ticks=1))
    store, old = Store(str(tmp_path), "toy"), Store(str(tmp_path), "toy", token="3-somebody")
    with old.fenced(), refuses(str(tmp_path), "storage", "has been writing"), StudyLock(store):
        pass
    assert content(file)["id"] == "somebody"
    with StudyLock(store), pytest.raises(LockLost):
        old.check_lock()


def test_a_storage_that_fails_for_a_while_is_tried_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "toy" / "driver.json"
    asked = []

    def fails(*_: Any) -> None:
        asked.append(time.monotonic())
        raise OSError(5, "Input/output error")

    with StudyLock(store) as own:
        with monkeypatch.context() as broken:
            broken.setattr(lock, "write", fails)
            until(lambda: own.lost)  # the run starts no further training
            assert len(asked) >= 2
            first = content(file)["beats"]
        until(lambda: content(file)["beats"] > first)
        until(lambda: own.lost == "")


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
from sweeps.store.fencing import LockLost
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
        try:
            if own:
                own.__exit__(None, None, None)
        except LockLost:
            pass
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
