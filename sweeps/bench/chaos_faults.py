"""Faults of a living run: killed processes, signals, rivals, stolen locks, failing storage and MLflow."""

import contextlib
import functools
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import tenacity

from pm25.errors import InputError
from sweeps.bench import chaos_referee, chaos_study
from sweeps.bench.chaos_referee import RECORD, Ending, Outcome, Referee, Start
from sweeps.engine.cluster import RayLost
from sweeps.engine.study_queue import LOSSES_FORGIVEN
from sweeps.engine.worker import CHECKPOINT
from sweeps.store import lock
from sweeps.store.fencing import LockLost

Found = TypeVar("Found")

DONE, BAD_INPUT, TERMINATED, INTERRUPTED = 0, 2, 143, 130
RUN_S = 420.0
"""Longest time that a run may take."""
LOCK_S = lock.BEAT_S + 5
"""Longest time for which a run may start further tasks after it lost the lock."""
WRITES_S = 1.0
"""Longest time for which a record may be written after that, since each write is checked."""
COMMAND_S = 120.0
"""Longest time that any other command may take."""
TRIGGER_S = 60.0
"""Longest time to wait for the moment of a fault."""
GONE_S = 60.0
"""Longest time that processes of a run may live after its end, except Ray's agents."""
AGENTS_S = 120.0
"""Longest time that Ray's agents may live; after a killed head they try to reach it for a minute."""
CACHES = ("ray", "torchinductor_")
"""Beginnings of the names of temporary folders that Ray and PyTorch keep."""
DISK_BYTES = 32 * 2**20
"""Size of the file system in memory on which storages are filled up."""


class Fault(NamedTuple):
    """Fault that was drawn, and is still to be done."""

    kind: str
    after: int
    """Number of tasks that must start first."""
    seed: int


@dataclass(frozen=True)
class Setting:
    """Folders and abilities of one round."""

    folder: Path
    """Folder of the study file."""
    disk: Path | None
    """File system in memory on which the storage is; None if none can be mounted."""

    @property
    def storage(self) -> Path:
        """Folder of the storage."""
        return (self.disk or self.folder) / "results"

    @property
    def ledger(self) -> Path:
        """File that lists the tasks that were started."""
        return self.folder / "ledger"

    @property
    def temporary(self) -> Path:
        """Folder for the temporary files of every process."""
        return self.folder / "t"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every process."""
        own = {chaos_study.LEDGER: str(self.ledger), "TMPDIR": str(self.temporary), "COLUMNS": "400"}
        dropped = ("RAY_TMPDIR", "RAY_ADDRESS")
        return {name: value for name, value in os.environ.items() if name not in dropped} | own


def can_mount() -> bool:
    """Return whether this process may mount file systems and create namespaces, as root may."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "chaos", tempfile.gettempdir()]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system in memory at `folder`, and unmount it at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", folder)
    try:
        yield folder
    finally:
        _call("umount", "-l", folder)


def run_command(
    setting: Setting, *arguments: str, module: str = "sweeps", prefix: Sequence[str] = ()
) -> Ending:
    """Run a command of `sweep`, or another module, in the folder of the study, and return its end."""
    name = f"sweep {arguments[0]}"
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", module, *arguments],
        cwd=setting.folder,
        env=setting.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=COMMAND_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return Ending(name, None, output, errors)
    return Ending(name, process.returncode, output, errors)


class Driver:
    """A `sweep run` of the study, its processes, and what the referee has found meanwhile."""

    def __init__(self, setting: Setting, referee: Referee) -> None:
        self.setting, self.referee = setting, referee
        self.outcomes: list[Outcome] = []
        self.blind = False
        """True while the storage cannot be read, so that the referee does not look."""
        self.killed: Counter[str] = Counter()
        """Number of killed workers by the key of their task; "" for workers that had none yet."""
        self.answer: Ending | None = None
        """End of the second run that the last fault has started."""
        self.lock_taken: float | None = None
        """Time at which the lock was taken from the run on purpose, in seconds since 1970."""
        self._began = len(self.starts())
        self._logs = [setting.folder / "run.out", setting.folder / "run.err"]
        self._children: dict[int, psutil.Process] = {}
        self._ended = 0.0
        self._looked = 0.0
        setting.temporary.mkdir(exist_ok=True)
        with self._logs[0].open("wb") as out, self._logs[1].open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", chaos_study.__name__, chaos_study.FILE],
                cwd=setting.folder,
                env=setting.environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._until = time.monotonic() + RUN_S

    @property
    def pid(self) -> int:
        """Process id of the driver."""
        return self._process.pid

    def starts(self) -> list[Start]:
        """Return the tasks that were started in this round."""
        return chaos_referee.starts(self.setting.ledger)

    def own_starts(self) -> list[Start]:
        """Return the tasks that this run has started."""
        return self.starts()[self._began :]

    def alive(self) -> bool:
        """Return whether the driver is running; notes its processes and lets the referee look."""
        now = time.monotonic()
        if now - self._looked > 0.5:
            self._looked = now
            self._children |= {child.pid: child for child in self.children()}
            if not self.blind:
                self.outcomes += self.referee.look()
        return self._process.poll() is None and now < self._until

    def children(self) -> list[psutil.Process]:
        """Return the living processes below the driver."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def named(self, text: str) -> list[psutil.Process]:
        """Return the living processes below the driver whose command line contains `text`."""
        found = []
        for child in self.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if text in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def wait_for(
        self, condition: Callable[[], Found | None], seconds: float = TRIGGER_S, pause: float = 0.05
    ) -> Found | None:
        """Return the first true value of `condition`; None if the run ends first or after `seconds`."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(pause)
        return None

    def wait_for_starts(self, number: int) -> bool:
        """Wait until so many further tasks have started; False if the run ends first."""
        before = len(self.own_starts())
        # The first task waits for the start of Ray, which takes long on a busy machine.
        seconds = TRIGGER_S if before else RUN_S
        return bool(self.wait_for(lambda: len(self.own_starts()) >= before + number, seconds))

    def training(self) -> dict[str, int]:
        """Return the processes that train now, by the key of their task."""
        latest = {start.process: start.key for start in self.own_starts()}
        ended = {place.key for place in self.referee.paths()}
        return {key: pid for pid, key in latest.items() if key not in ended and psutil.pid_exists(pid)}

    def may_lose(self, key: str) -> bool:
        """Return whether a task may lose one more worker without being recorded as failed."""
        return self.killed[key] + self.killed[""] < LOSSES_FORGIVEN

    def kill_worker(self, key: str, process: int) -> bool:
        """Kill a worker and count the loss of its task; False if it has ended already."""
        killed = _kill(process)
        self.killed[key] += killed
        return killed

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the driver."""
        self._process.send_signal(number)

    def end(self, allowed: set[int]) -> Ending:
        """Wait until the run has ended, and compare its end with the allowed exit statuses."""
        while self.alive():
            time.sleep(0.1)
        hangs = self._process.poll() is None
        if hangs:
            self._process.kill()
        status = self._process.wait()
        output, errors = (log.read_text(encoding="utf-8", errors="replace") for log in self._logs)
        ending = Ending("sweep run", None if hangs else status, output, errors)
        self.outcomes += chaos_referee.unclear(ending, allowed)
        self.outcomes += self._orphans(killed=status == -signal.SIGKILL)
        self.outcomes += self.referee.look() + self.referee.doubled(self.own_starts())
        if self.lock_taken is not None:
            self.outcomes += self._after_loss(self.lock_taken)
        return ending

    def _after_loss(self, lost: float) -> Iterator[Outcome]:
        """Yield what the run did although another process had taken its lock."""
        started = max((start.time for start in self.own_starts()), default=0.0) - lost
        if started > LOCK_S:
            yield Outcome("unclear", f"sweep run: starts a task {started:.0f} s after it lost the lock")
        written = max((seen.time for seen in self.referee.seen.values()), default=0.0) - lost
        if written > WRITES_S:
            yield Outcome("unclear", f"sweep run: writes a record {written:.1f} s after it lost the lock")

    def kill(self) -> None:
        """End the driver and its processes, if they are running."""
        self._children |= {child.pid: child for child in self.children()}
        self._process.kill()
        for child in self._children.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait()

    def agents(self, *, end: bool = False) -> list[Outcome]:
        """Return the agents of Ray that live too long after the end of the run; `end` ends all of them."""
        found = []
        for child in filter(_lives, self._children.values()):
            if self._ended and time.monotonic() - self._ended > AGENTS_S:
                found.append(_orphan(child, AGENTS_S))
            if end or found:
                child.kill()
        return found

    def _orphans(self, *, killed: bool) -> list[Outcome]:
        """Return processes and temporary folders of the run that are left, and end them."""
        self._ended = time.monotonic()
        end = self._ended + GONE_S

        def living() -> list[psutil.Process]:
            return [child for child in self._children.values() if _lives(child) and not _is_agent(child)]

        while (left := living()) and time.monotonic() < end:
            time.sleep(0.2)
        found = [_orphan(child, GONE_S) for child in left]
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if not killed:  # a killed driver cannot delete its folders
            names = [path.name for path in self.setting.temporary.glob("ray/sweep-tune-*")]
            others = (path.name for path in self.setting.temporary.iterdir())
            names += [name for name in others if not name.startswith(CACHES)]
            found += [Outcome("orphaned", f"the temporary file {name} is left") for name in names]
        shutil.rmtree(self.setting.temporary, ignore_errors=True)
        return found


def _command_line(process: psutil.Process) -> str:
    """Return the command line of a process; empty if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(" ".join(process.cmdline()).split())
    return ""


def _is_agent(process: psutil.Process) -> bool:
    """Return whether a process is an agent of Ray's raylet, or another of Ray's that waits for a dead GCS."""
    line = _command_line(process)
    helpers = ("/ray/_private/", "/ray/dashboard/", "/ray/autoscaler/")
    is_helper = any(folder in line for folder in helpers) and "default_worker.py" not in line
    return is_helper or line.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))


def _orphan(process: psutil.Process, seconds: float) -> Outcome:
    return Outcome(
        "orphaned", f"process {_command_line(process)[:80]!r} lives {seconds:g} s longer than its run"
    )


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# Each function does one fault and returns whether it was done; a run that ends too early prevents it.


def kill_worker_in_training(driver: Driver, rng: random.Random) -> bool:
    """Kill a worker whose training has a checkpoint and no record, and so will be resumed."""

    def stopped() -> tuple[str, int] | None:
        for key, pid in sorted(driver.training().items(), key=lambda item: rng.random()):
            if not driver.may_lose(key) or not any(driver.referee.root.glob(f"*/{key}/{CHECKPOINT}")):
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # so that the training cannot end before it is killed
                if any(driver.referee.root.glob(f"*/{key}/{CHECKPOINT}")) and key in driver.training():
                    return key, pid
                os.kill(pid, signal.SIGCONT)
        return None

    time.sleep(rng.uniform(0, 0.5))
    found = driver.wait_for(stopped)
    return found is not None and driver.kill_worker(*found)


def kill_worker_in_writing(driver: Driver, rng: random.Random) -> bool:
    """Kill a worker between its first file and its record, or between two checkpoints."""

    def writing() -> tuple[str, int] | None:
        for key, pid in driver.training().items():
            folder = driver.referee.root / "cells" / key
            files = [path.name for path in folder.iterdir()] if folder.exists() else []
            has_started = "predictions.parquet" in files or any(name.endswith(".part") for name in files)
            if has_started and RECORD not in files and driver.may_lose(key):
                return key, pid
        return None

    found = driver.wait_for(writing, pause=0.001)
    return found is not None and driver.kill_worker(*found)


def kill_worker_in_start(driver: Driver, rng: random.Random) -> bool:
    """Kill a worker in training, and then the worker that starts in its place, before it trains."""
    if driver.killed[""] or any(count > 1 for count in driver.killed.values()):
        return False
    before = {child.pid for child in driver.named("Trainable")}
    if not kill_worker_in_training(driver, rng):
        return False
    trained = {start.process for start in driver.own_starts()}

    def starting() -> psutil.Process | None:
        new = [child for child in driver.named("Trainable") if child.pid not in before | trained]
        return new[0] if new else None

    found = driver.wait_for(starting)
    return found is not None and driver.kill_worker("", found.pid)


def kill_tracking(driver: Driver, rng: random.Random) -> bool:
    """Kill the process that writes to MLflow."""
    found = driver.named("sweeps.tracking.process")
    return bool(found) and _kill(found[0].pid)


def kill_named(text: str, driver: Driver, rng: random.Random) -> bool:
    """Kill a process of Ray."""
    found = [child for child in driver.children() if text in child.name()]
    return bool(found) and _kill(found[0].pid)


def signal_driver(number: signal.Signals, driver: Driver, rng: random.Random) -> bool:
    """Send a signal to the driver at a random moment."""
    time.sleep(rng.uniform(0, 1))
    if not driver.alive():
        return False
    driver.send(number)
    return True


def rival(driver: Driver, rng: random.Random, prefix: Sequence[str] = ()) -> bool:
    """Start a second run of the study, which must be refused while the first one lives."""
    ending = run_command(driver.setting, chaos_study.FILE, module=chaos_study.__name__, prefix=prefix)
    if not driver.alive():
        return False
    driver.answer = ending
    driver.outcomes += chaos_referee.unclear(ending, {BAD_INPUT})
    if ending.status == BAD_INPUT and f"process {driver.pid} " not in ending.last_line:
        driver.outcomes.append(
            Outcome("unclear", f"a second run does not name the first: {ending.last_line[:200]}")
        )
    return True


def rival_of_a_stopped_driver(driver: Driver, rng: random.Random) -> bool:
    """Stop the driver, start a second run, which must be refused, and let the driver continue."""
    driver.send(signal.SIGSTOP)
    try:
        return rival(driver, rng)
    finally:
        driver.send(signal.SIGCONT)


def rival_with_another_clock(driver: Driver, rng: random.Random) -> bool:
    """Start a second run that sees another boot time, as after a step of the clock; it must be refused."""
    stat = driver.setting.folder / "stat"
    step = rng.choice((-1, 1)) * rng.randrange(5, 100_000)
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    changed = [
        f"btime {int(line.split()[1]) + step}" if line.startswith("btime ") else line for line in lines
    ]
    stat.write_text("\n".join(changed) + "\n", encoding="utf-8")
    mounts = f'mount --bind {stat} /proc/stat && exec "$@"'
    return rival(driver, rng, ["unshare", "-m", "sh", "-c", mounts, "sh"])


def steal_lock(driver: Driver, rng: random.Random) -> bool:
    """Replace `driver.json` by that of another living process; the run must stop and keep the file."""
    path = driver.referee.root / "driver.json"
    if not path.exists():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    thief = found | {"id": secrets.token_hex(8), "process": os.getpid()}
    _replace(path, json.dumps(thief, indent=1))
    driver.lock_taken = time.time()
    while driver.alive():
        time.sleep(0.1)
    if not path.exists() or thief["id"] not in path.read_text(encoding="utf-8"):
        words = "sweep run: replaced or deleted the lock of the process that had taken the study over"
        driver.outcomes.append(Outcome("unclear", words))
    path.unlink(missing_ok=True)
    return True


def delete_lock(driver: Driver, rng: random.Random) -> bool:
    """Delete `driver.json`; the run must stop."""
    path = driver.referee.root / "driver.json"
    if not path.exists():
        return False
    path.unlink()
    driver.lock_taken = time.time()
    return True


def fill_storage(driver: Driver, rng: random.Random) -> bool:
    """Fill the storage's file system for some seconds."""
    disk = driver.setting.disk
    assert disk is not None
    ballast = disk / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
        _pause(driver, rng.uniform(1, 5))
    finally:
        ballast.unlink(missing_ok=True)
    return True


def make_storage_readonly(driver: Driver, rng: random.Random) -> bool:
    """Mount the storage read-only for some seconds; False if a file is open for writing all the time."""
    storage = driver.setting.storage
    _call("mount", "--bind", storage, storage)
    try:
        for attempt in tenacity.Retrying(wait=tenacity.wait_fixed(0.05), stop=tenacity.stop_after_delay(5)):
            with attempt:
                _call("mount", "-o", "remount,bind,ro", storage)
        _pause(driver, rng.uniform(1, 5))
    except tenacity.RetryError:
        return False
    finally:
        _call("umount", "-l", storage)
    return True


def cover_storage(driver: Driver, rng: random.Random) -> bool:
    """Put an empty folder in the place of the storage for some seconds, as if its disk were unmounted."""
    driver.blind = True
    storage = driver.setting.storage
    _call("mount", "-t", "tmpfs", "chaos", storage)
    try:
        _pause(driver, rng.uniform(1, 5))
    finally:
        _call("umount", "-l", storage)
        driver.blind = False
    return True


def move_storage(driver: Driver, rng: random.Random) -> bool:
    """Move the storage away for some seconds; a folder that was created meanwhile is replaced."""
    driver.blind = True
    storage = driver.setting.storage
    away = storage.with_name("moved-away")
    storage.rename(away)
    try:
        _pause(driver, rng.uniform(1, 5))
    finally:
        while True:
            shutil.rmtree(storage, ignore_errors=True)
            try:
                away.rename(storage)
                break
            except OSError:  # created again at this moment
                continue
        driver.blind = False
    return True


def own_storage_by_another(driver: Driver, rng: random.Random) -> bool:
    """Take the permission to write from the study's folders for some seconds."""
    folders = [driver.referee.root, *(driver.referee.root / name for name in ("cells", "search"))]
    for folder in folders:
        folder.chmod(0o555)
    try:
        _pause(driver, rng.uniform(1, 5))
    finally:
        for folder in folders:
            folder.chmod(0o755)
    return True


def lock_database(driver: Driver, rng: random.Random) -> bool:
    """Lock MLflow's database for some seconds."""
    with contextlib.closing(sqlite3.connect(_database(driver), timeout=30)) as database:
        try:
            database.execute("begin exclusive")
        except sqlite3.Error:  # an earlier fault has damaged it
            return False
        _pause(driver, rng.uniform(1, 8))
        database.rollback()
    return True


def close_database(driver: Driver, rng: random.Random) -> bool:
    """Refuse every write to MLflow's database for some seconds, as if it were read-only, also for root."""
    tables = ("runs", "tags", "params", "metrics", "latest_metrics", "experiment_tags")
    names = [
        (f"shut_{table}_{verb}", verb, table) for table in tables for verb in ("insert", "update", "delete")
    ]
    path = _database(driver)
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
            for name, verb, table in names:
                database.execute(
                    f"create trigger {name} before {verb} on {table} "
                    "begin select raise(abort, 'attempt to write a readonly database'); end"
                )
            database.commit()
    except sqlite3.Error:  # an earlier fault has damaged it
        return False
    try:
        _pause(driver, rng.uniform(2, 8))
    finally:
        with (
            contextlib.suppress(sqlite3.DatabaseError),
            contextlib.closing(sqlite3.connect(path, timeout=60)) as db,
        ):
            for name, _, _ in names:
                db.execute(f"drop trigger {name}")
            db.commit()
    return True


def delete_database(driver: Driver, rng: random.Random) -> bool:
    """Delete MLflow's database."""
    path = _database(driver)
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed


def truncate_database(driver: Driver, rng: random.Random) -> bool:
    """Truncate MLflow's database at a random length."""
    path = _database(driver)
    if not path.exists() or not path.stat().st_size:
        return False
    os.truncate(path, rng.randrange(path.stat().st_size))
    return True


def _database(driver: Driver) -> Path:
    return driver.setting.storage / "mlflow.db"


def _pause(driver: Driver, seconds: float) -> None:
    """Wait for some seconds, or until the run has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and driver.alive():
        time.sleep(0.05)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _replace(path: Path, content: str) -> None:
    """Replace a file atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(content, encoding="utf-8")
    part.replace(path)


def _call(*arguments: object) -> None:
    """Run a command of the system. Raises InputError if it fails."""
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(" ".join(map(str, arguments)), "", f"failed ({' '.join(done.stderr.split())})")


class Action(NamedTuple):
    """How a kind of fault is done, and which exit statuses it allows besides 0."""

    do: Callable[[Driver, random.Random], bool]
    statuses: tuple[int, ...] = ()
    ends: bool = False
    """True if it is the last fault of its run."""
    needs_root: bool = False
    needs_disk: bool = False


ACTIONS: Mapping[str, Action] = {
    "worker killed in training": Action(kill_worker_in_training),
    "worker killed while writing": Action(kill_worker_in_writing),
    "worker killed while starting": Action(kill_worker_in_start),
    "tracking process killed": Action(kill_tracking),
    "MLflow's database locked": Action(lock_database),
    "MLflow's database closed to writers": Action(close_database),
    "MLflow's database deleted in a run": Action(delete_database),
    "MLflow's database truncated in a run": Action(truncate_database),
    "second driver": Action(rival),
    "second driver while the first is stopped": Action(rival_of_a_stopped_driver),
    "second driver with another boot time": Action(rival_with_another_clock, needs_root=True),
    "storage full": Action(fill_storage, (BAD_INPUT,), needs_disk=True),
    "storage read-only": Action(make_storage_readonly, (BAD_INPUT,), needs_root=True),
    "storage unmounted": Action(cover_storage, (BAD_INPUT, LockLost.status), needs_root=True),
    "storage moved away": Action(move_storage, (BAD_INPUT, LockLost.status)),
    "storage without permission": Action(own_storage_by_another, (BAD_INPUT,)),
    "lock stolen": Action(steal_lock, (LockLost.status,), ends=True),
    "lock deleted": Action(delete_lock, (LockLost.status,), ends=True),
    "raylet killed": Action(functools.partial(kill_named, "raylet"), (RayLost.status,), ends=True),
    "GCS killed": Action(functools.partial(kill_named, "gcs_server"), (RayLost.status,), ends=True),
    "driver killed": Action(functools.partial(signal_driver, signal.SIGKILL), (-signal.SIGKILL,), ends=True),
    "SIGTERM": Action(functools.partial(signal_driver, signal.SIGTERM), (TERMINATED,), ends=True),
    "SIGINT": Action(functools.partial(signal_driver, signal.SIGINT), (INTERRUPTED,), ends=True),
}
"""Kinds of faults of a living run. The others leave a run that ends with 0."""


def possible(kind: str, *, root: bool) -> bool:
    """Return whether a kind of fault can be done by this process."""
    action = ACTIONS[kind]
    if kind == "storage without permission":
        return not root  # permissions do not bind root
    return root or not (action.needs_root or action.needs_disk)
