"""Who runs a study: one driver at a time, on any storage, and when another may take its place."""

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
"""Between two heartbeats."""
STALE_S = 60.0
"""A driver that gave no sign of life for so long is taken for dead."""
WATCH_S = 25.0
"""For so long at least nobody's heart was seen to beat before a driver elsewhere is taken for dead: two
beats with a margin. Two machines' clocks may disagree; watching needs only our own."""
SETTLE_S = 2.0
"""Where the storage has no locks: how long a write may take of another who starts at the same time."""


class Driver(BaseModel):
    """The content of a `driver.json`."""

    model_config = ConfigDict(frozen=True)

    id: str
    host: str
    process: PositiveInt
    process_started: float
    """Seconds since 1970: a process id is given out again."""
    process_space: str
    """Where that process id means anything (`_process_space`)."""
    since: AwareDatetime
    beat: AwareDatetime

    @property
    def name(self) -> str:
        return f"process {self.process} on host {self.host}"

    def lives(self) -> bool:
        """Whether the process runs; asked where its id means anything."""
        try:
            process = psutil.Process(self.process)
            # The ends of a second: the start is counted in clock ticks since a rounded boot time.
            same = abs(process.create_time() - self.process_started) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class StudyLock:
    """Makes this process the study's only driver while its `with` block lasts.

    `<storage>/<study>/driver.json` names the driver, and a thread renews its `beat`. A second driver gets an
    InputError that names the first. It takes over from a dead one: at once where the process can be looked
    for, and elsewhere once the beat has stood still. Of several that start together exactly one wins on a
    file system with locks. On other storage it is the last writer; should two ever have got through, all but
    one find themselves `lost` with their next beat.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._system, self._path = store.location("driver.json")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._lost = self._trouble = ""
        self._trying_since: float | None = None

    def __enter__(self) -> Self:
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
                    self._outlive(other)
                if self._replace(other):
                    break
        except StorageError as error:
            raise self._store.refusal("written", error) from None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go. What cannot be removed now is stale as soon as this process has ended."""
        self._stop.set()
        self._thread.join(BEAT_S)
        if self._thread.is_alive():  # it waits for a storage that does not answer
            return
        with contextlib.suppress(*StorageError, InputError):
            seen = self._read()
            if seen is not None and seen.id == self._me.id:
                self._system.delete_file(self._path)

    @property
    def lost(self) -> str:
        """Why this process must stop: it is the study's driver no more, or cannot say so. '' while it is."""
        since = self._trying_since
        # When STALE_S have passed since the last beat that others can have seen.
        if not self._lost and since is not None and time.monotonic() - since > STALE_S - BEAT_S:
            reason = self._trouble or "it does not answer"
            self._lost = f"storage: {self._path} could not be renewed for {STALE_S:g} s ({reason})"
        return self._lost

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S) and not self.lost:
            self._trying_since = self._trying_since or time.monotonic()
            try:
                self._renew()
            except Exception as error:  # whatever it is, it is told unless a later beat succeeds in time
                self._trouble = " ".join(str(error).split()).rstrip(".")
            else:
                self._trying_since, self._trouble = None, ""

    def _renew(self) -> None:
        seen = self._read()
        if seen is None:
            self._lost = f"{self._path} was removed: somebody ended this run"
        elif seen.id != self._me.id:
            self._lost = f"{seen.name} has taken over study {self._store.study}"
        else:
            self._me = self._me.model_copy(update={"beat": datetime.now(UTC)})
            self._write()

    def _outlive(self, other: Driver) -> None:
        """Return when `other` is dead or has gone; raises InputError when it lives."""
        if other.process_space == self._me.process_space:
            if other.lives():
                raise self._held(other)
            return
        # The two clocks are trusted to shorten the wait, never to end it.
        silent = max(0.0, (datetime.now(UTC) - other.beat).total_seconds())
        patience = max(WATCH_S, STALE_S - silent)
        click.echo(
            f"sweep: {other.name} ran study {self._store.study} at {_told(other.beat)}; "
            f"waiting up to {patience:.0f} s for a sign of life",
            err=True,
        )
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(BEAT_S / 10)
            seen = self._read()
            if seen is None or seen.id != other.id:
                return
            if seen.beat != other.beat:
                raise self._held(other)

    def _replace(self, other: Driver | None) -> bool:
        """Take the place of nobody, or of a dead driver; False when it is no longer as it was seen."""
        with self._alone() as alone:
            if self._read() != other:
                return False
            self._write()
        if alone:
            return True
        time.sleep(SETTLE_S)
        seen = self._read()
        return seen is not None and seen.id == self._me.id

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep other processes out of the same block; yields False where the storage has no locks."""
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
            os.close(folder)  # and with it the lock, as when the process is killed

    def _read(self) -> Driver | None:
        try:
            return Driver.model_validate_json(read(self._system, self._path))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise InputError(
                f"{self._path}: does not name the process that runs study {self._store.study}; "
                "if none does, delete the file"
            ) from None

    def _write(self) -> None:
        write(self._system, self._path, self._me.model_dump_json(indent=1).encode())

    def _held(self, other: Driver) -> InputError:
        return InputError(
            f"{self._path}: {other.name} has been running study {self._store.study} since "
            f"{_told(other.since)}; stop that process, or wait until it has ended"
        )


def _process_space() -> str:
    """Where a process id names the same process: one boot of one machine, in it one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _told(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
