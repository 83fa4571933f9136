"""Lock of a study: one driver at a time on any storage, with takeover from a driver that has died."""

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import click
import psutil
import pyarrow.fs
from pydantic import AwareDatetime, BaseModel, ConfigDict, PositiveInt, ValidationError

from pm25.errors import InputError
from sweeps.store.records import StorageError, Store, read, write

BEAT_S = 10.0
"""Seconds between two heartbeats."""
STALE_S = 60.0
"""Seconds without a heartbeat after which a driver counts as dead."""
WATCH_S = 25.0
"""Seconds without a new heartbeat that this process must observe itself before a driver on another machine
counts as dead: two heartbeats and a margin. The observation does not depend on the other machine's clock."""
SETTLE_S = 2.0
"""Longest time in seconds that a write may take of a driver that starts at the same time, on storage without
file locks."""


class Driver(BaseModel):
    """Content of `driver.json`: the process that runs a study."""

    model_config = ConfigDict(frozen=True)

    id: str
    host: str
    process: PositiveInt
    process_started: float
    """Start of the process in seconds since 1970; process ids are reused."""
    process_space: str
    """Scope in which the process id is unique (`_process_space`)."""
    since: AwareDatetime
    beat: AwareDatetime

    @property
    def name(self) -> str:
        """Process and host, for messages."""
        return f"process {self.process} on host {self.host}"

    @property
    def is_here(self) -> bool:
        """True if the process id is valid on this machine, so that `lives` can look for the process."""
        return self.process_space == _process_space()

    def lives(self) -> bool:
        """Return True if the process is running. Valid only within its own process space."""
        try:
            process = psutil.Process(self.process)
            # A tolerance of one second: the start is counted in clock ticks since a rounded boot time.
            same = abs(process.create_time() - self.process_started) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class StudyLock:
    """Context manager that makes this process the study's only driver.

    `<storage>/<study>/driver.json` names the driver, and a thread renews its heartbeat (`beat`). A second
    driver gets an InputError that names the first one. It takes over if the first driver is dead. On the same
    machine it looks for the process; elsewhere it waits until the heartbeat has stopped.

    If several drivers start together, exactly one of them succeeds on a file system with locks. On other
    storage the last writer succeeds. If two drivers pass there nevertheless, all but one are `lost` at their
    next heartbeat.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._system, self._path = store.location("driver.json")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._lost = self._last_error = ""
        self._failing_since: float | None = None

    def __enter__(self) -> Self:
        """Take the lock. Raises InputError if another driver runs the study, or for a storage that fails."""
        now = datetime.now(UTC)
        self._me = Driver(
            id=secrets.token_hex(8),
            host=socket.gethostname(),
            process=os.getpid(),
            process_started=psutil.Process().create_time(),
            process_space=_process_space(),
            since=now,
            beat=now,
        )
        try:
            self._system.create_dir(self._path.rsplit("/", 1)[0], recursive=True)
            while True:
                other = self._read()
                if other is not None:
                    self._wait_until_dead(other)
                if self._replace(other):
                    break
        except StorageError as error:
            raise self._store.refusal("written", error) from None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock. If the file cannot be deleted, it is stale once this process has ended."""
        self._stop.set()
        self._thread.join(BEAT_S)
        if self._thread.is_alive():  # the thread waits for a storage that does not answer
            return
        with contextlib.suppress(*StorageError, InputError):
            seen = self._read()
            if seen is not None and seen.id == self._me.id:
                self._system.delete_file(self._path)

    @property
    def lost(self) -> str:
        """Reason to stop: the lock was lost or cannot be renewed. Empty while this process has the lock."""
        since = self._failing_since
        # Others can have seen no heartbeat for STALE_S by then.
        if not self._lost and since is not None and time.monotonic() - since > STALE_S - BEAT_S:
            reason = self._last_error or "it does not answer"
            self._lost = f"storage: {self._path} could not be renewed for {STALE_S:g} s ({reason})"
        return self._lost

    def _beat(self) -> None:
        """Renew the heartbeat until the lock is released or lost."""
        while not self._stop.wait(BEAT_S) and not self.lost:
            self._failing_since = self._failing_since or time.monotonic()
            try:
                self._renew()
            except Exception as error:  # any error is reported, unless a later heartbeat succeeds in time
                self._last_error = " ".join(str(error).split()).rstrip(".")
            else:
                self._failing_since, self._last_error = None, ""

    def _renew(self) -> None:
        """Write a new heartbeat, or set `_lost` if another driver has the lock."""
        seen = self._read()
        if seen is None:
            self._lost = f"{self._path} was deleted, which ends this run"
        elif seen.id != self._me.id:
            self._lost = f"{seen.name} has taken over study {self._store.study}"
        else:
            self._me = self._me.model_copy(update={"beat": datetime.now(UTC)})
            self._write()

    def _wait_until_dead(self, other: Driver) -> None:
        """Return when `other` is dead or has released the lock. Raises InputError if it is running."""
        if other.is_here:
            if other.lives():
                raise self._refused(other)
            return
        # A comparison of the two clocks may shorten the wait to WATCH_S, and never below.
        silent = max(0.0, (datetime.now(UTC) - other.beat).total_seconds())
        patience = max(WATCH_S, STALE_S - silent)
        click.echo(
            f"sweep: {other.name} ran study {self._store.study} at {utc(other.beat)}; "
            f"waiting up to {patience:.0f} s for its next heartbeat",
            err=True,
        )
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(BEAT_S / 10)
            seen = self._read()
            if seen is None or seen.id != other.id:
                return
            if seen.beat != other.beat:
                raise self._refused(other)

    def _replace(self, other: Driver | None) -> bool:
        """Write this driver in place of `other`; return False if the file has changed since it was read."""
        with self._exclusive() as exclusive:
            if self._read() != other:
                return False
            self._write()
        if exclusive:
            return True
        time.sleep(SETTLE_S)
        seen = self._read()
        return seen is not None and seen.id == self._me.id

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[bool]:
        """Exclude other processes from the same block; yields False on storage without file locks."""
        if not isinstance(self._system, pyarrow.fs.LocalFileSystem):
            yield False
            return
        folder = os.open(self._path.rsplit("/", 1)[0], os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                locked = True
            except OSError:  # a network file system
                locked = False
            yield locked
        finally:
            os.close(folder)  # this releases the file lock, as does the end of the process

    def _read(self) -> Driver | None:
        return driver(self._store)

    def _write(self) -> None:
        write(self._system, self._path, self._me.model_dump_json(indent=1).encode())

    def _refused(self, other: Driver) -> InputError:
        """Return the error of a lock that another driver has."""
        return InputError(
            self._path,
            "",
            f"{other.name} has been running study {self._store.study} since {utc(other.since)}",
            "stop that process, or wait until it has ended",
        )


def driver(store: Store) -> Driver | None:
    """Return the driver that the study's `driver.json` names; None without the file. Raises InputError.

    A driver that was killed leaves the file.
    """
    system, path = store.location("driver.json")
    try:
        return Driver.model_validate_json(read(system, path))
    except FileNotFoundError:
        return None
    except StorageError as error:
        raise store.refusal("read", error) from None
    except ValidationError:
        raise InputError(
            path,
            "",
            f"does not name the process that runs study {store.study}",
            "delete the file if no process runs the study",
        ) from None


def _process_space() -> str:
    """Return the scope in which process ids are unique: one container in one boot of one machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def utc(moment: datetime) -> str:
    """Format a time for messages."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
