"""Lock of a study: one driver at a time on any storage, with takeover from a driver that has died.

No decision compares two clocks. A process is known by its id and its start in ticks since the boot. A dead
driver elsewhere is known by its heartbeats, which are counted.
"""

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Any, Self

import click
import psutil
from pydantic import ValidationError

from pm25.errors import InputError
from sweeps.store import driver_process, fencing
from sweeps.store.driver_process import Driver
from sweeps.store.fencing import LockLost
from sweeps.store.records import StorageError, StorageFault, Store, write

BEAT_S = 10.0
"""Seconds between two heartbeats."""
STALE_S = 60.0
"""Seconds without a new heartbeat after which a driver elsewhere counts as dead; a process that wants the
study observes them itself. By default, a network file system shows an old file for at most 60 s too."""
SETTLE_S = 2.0
"""Longest time in seconds that a write may take of a driver that starts at the same time, on storage without
file locks."""
STOPS_S = 15.0
"""Longest time in seconds for a run that has lost its study to stop its workers; then the process ends."""


class StudyLock:
    """Context manager that makes this process the study's only driver.

    `<storage>/<study>/driver.json` names the driver, and a thread renews its heartbeat (`beats`). A second
    driver gets an InputError that names the first one. It takes over if the first driver is dead. On the same
    machine it looks for the process; elsewhere it waits until the heartbeat has stopped.

    If several drivers start together, exactly one of them succeeds on a file system with locks. On other
    storage the last writer succeeds.

    `store` carries the token of this driver. After a take-over, each write through it raises LockLost, from
    this process and from every other that received the store. So does the end of the block.
    """

    def __init__(self, store: Store, *, interrupts: bool = False) -> None:
        """`interrupts` ends the block at once when the lock is lost; for a block in the main thread."""
        self.store = store
        """Store with the token of this driver, once the block has started."""
        self._system, self._path = store.location(driver_process.FILE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._lost: LockLost | None = None
        self._last_error = ""
        self._failing_since: float | None = None
        self._interrupts, self._signals = interrupts, threading.Lock()
        self._handler: Any = None

    def __enter__(self) -> Self:
        """Take the lock. Raises InputError if another driver runs the study, or for a storage that fails."""
        now = _now()
        self._me = Driver(
            id=secrets.token_hex(8),
            host=socket.gethostname(),
            process=os.getpid(),
            start_ticks=driver_process.start_ticks(),
            process_started=psutil.Process().create_time(),
            process_space=driver_process.process_space(),
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
            raise self.store.refusal("written", error) from None
        self.store = replace(self.store, token=self._me.token)
        if self._interrupts:
            self._handler = signal.signal(signal.SIGUSR1, _interrupt)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock. Raises LockLost, also in the place of an error, if another driver has the study.

        Raises StorageFault if the study's folder is gone and the block raised no error.

        If the file cannot be deleted, it is stale once this process has ended.
        """
        self._stop.set()
        if self._interrupts:
            with self._signals:
                self._interrupts = False
            signal.signal(signal.SIGUSR1, self._handler)
        self._thread.join(BEAT_S)
        if not self._thread.is_alive():  # else the thread waits for a storage that does not answer
            try:
                with contextlib.suppress(*StorageError), self.store.fenced():
                    self._system.delete_file(self._path)
            except LockLost as lost:
                self._lost = self._lost or lost
            except StorageFault:
                if error is None:
                    raise
        ends = error is None or isinstance(error, (Exception, KeyboardInterrupt))
        if self._lost is not None and ends and not isinstance(error, LockLost):
            raise self._lost from error

    @property
    def lost(self) -> str:
        """Reason to stop: the lock was lost or cannot be renewed. Empty while this process has the lock."""
        if self._lost is not None:
            return self._lost.problem
        since = self._failing_since
        # Others can have seen no heartbeat for STALE_S by then.
        if since is not None and time.monotonic() - since > STALE_S - BEAT_S:
            reason = self._last_error or "it does not answer"
            return f"storage: {self._path} could not be renewed for {STALE_S:g} s ({reason})"
        return ""

    def _beat(self) -> None:
        """Renew the heartbeat until the lock is released or lost."""
        while not self._stop.wait(BEAT_S):
            self._failing_since = self._failing_since or time.monotonic()
            try:
                self._renew()
            except LockLost as lost:
                self._lost = lost
                self._interrupt()
                return
            except Exception as error:  # any error is reported, unless a later heartbeat succeeds in time
                self._last_error = " ".join(str(error).split()).rstrip(".")
            else:
                self._failing_since, self._last_error = None, ""

    def _renew(self) -> None:
        """Write a new heartbeat. Raises LockLost if another driver has the lock."""
        self._me = self._me.model_copy(update={"beats": self._me.beats + 1, "beat": _now()})
        write(self._system, self._path, self._content, self.store.fenced)

    def _interrupt(self) -> None:
        """Interrupt the main thread; if it does not end the block within `STOPS_S`, end the process."""
        with self._signals:
            if not self._interrupts:
                return
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not self._stop.wait(STOPS_S):
            click.echo(f"sweep: {self._lost}", err=True)
            os._exit(LockLost.status)

    def _wait_until_dead(self, other: Driver) -> None:
        """Return when `other` is dead or has released the lock. Raises InputError if it is running."""
        alive = other.lives()
        if alive:
            raise self._refused(other)
        if alive is False:
            return
        click.echo(
            f"sweep: {other.name} ran study {self.store.study} at {utc(other.beat)}; "
            f"waiting up to {STALE_S:.0f} s for its next heartbeat",
            err=True,
        )
        observed, last = 0.0, time.monotonic()
        while observed < STALE_S:
            time.sleep(BEAT_S / 10)
            seen, now = self._read(), time.monotonic()
            # If this process was suspended meanwhile, it may have been suspended together with the driver.
            observed, last = observed + min(now - last, BEAT_S), now
            if seen is None or seen.token != other.token:
                return
            if seen != other:
                raise self._refused(other)

    def _replace(self, other: Driver | None) -> bool:
        """Write this driver in place of `other`; return False if the file has changed since it was read."""
        folder = self._path.rsplit("/", 1)[0]
        with fencing.locked(self._system, folder, alone=True) as has_file_lock:
            if self._read() != other:
                return False
            self._me = self._me.model_copy(update={"number": 1 + (other.number if other else 0)})
            write(self._system, self._path, self._content)
        if has_file_lock:
            return True
        time.sleep(SETTLE_S)
        seen = self._read()
        return seen is not None and seen.token == self._me.token

    def _read(self) -> Driver | None:
        return driver(self.store)

    @property
    def _content(self) -> bytes:
        return self._me.model_dump_json(indent=1).encode()

    def _refused(self, other: Driver) -> InputError:
        """Return the error of a lock that another driver has."""
        return InputError(
            self._path,
            "",
            f"{other.name} has been running study {self.store.study} since {utc(other.since)}",
            "stop that process, or wait until it has ended",
        )


def driver(store: Store) -> Driver | None:
    """Return the driver that the study's `driver.json` names; None without the file. Raises InputError.

    A driver that was killed leaves the file.
    """
    try:
        content = store.driver_file()
        return None if content is None else Driver.model_validate_json(content)
    except StorageError as error:
        raise store.refusal("read", error) from None
    except ValidationError:
        raise InputError(
            store.location(driver_process.FILE)[1],
            "",
            f"does not name the process that runs study {store.study}",
            "delete the file if no process runs the study",
        ) from None


def _now() -> datetime:
    """Return the time that `driver.json` shows."""
    return datetime.now(UTC)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handle the signal of the heartbeat's thread like Ctrl-C; Ray turns any other error into this one."""
    raise KeyboardInterrupt


def utc(moment: datetime) -> str:
    """Format a time for messages."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
