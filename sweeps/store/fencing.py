"""Fencing: a driver that has lost its study writes nothing more to it.

Each driver has a token (`Driver.token`), and `Store.fenced` compares it with `driver.json` before each write.
On a file system with file locks, the comparison and the write share a lock that excludes a take-over.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

import pyarrow.fs
from pydantic import ValidationError

from pm25.errors import InputError
from sweeps.exit_status import LOCK_LOST
from sweeps.store.driver_process import Driver

LOCKED_S = 10.0
"""Longest time in seconds that a take-over waits for writers of the study; each has the lock for some ms."""


class LockLost(InputError):
    """Another process has the study now, or `driver.json` was deleted: this process may not write to it.

    The error is never the result of a cell, and it ends the run.
    """

    status = LOCK_LOST


def check(token: str, content: bytes | None, path: str, study: str) -> None:
    """Raise LockLost unless `content`, that of the file `driver.json` at `path`, has the token.

    `content` is None for a file that does not exist.
    """
    again = "run the same command again to resume"
    if content is None:
        problem = f"the file was deleted, and with it this run's lock of study {study}"
        raise LockLost(path, "", problem, again)
    try:
        found = Driver.model_validate_json(content)
    except ValidationError:
        problem = f"the file does not name this run as the driver of study {study} any more"
        raise LockLost(path, "", problem, "delete the file if no process runs the study") from None
    if found.token != token:
        problem = f"{found.name} has taken over study {study}"
        raise LockLost(path, "", problem, f"when that process has ended, {again}")


@contextlib.contextmanager
def locked(system: pyarrow.fs.FileSystem, folder: str, *, alone: bool = False) -> Iterator[bool]:
    """Have the file lock of a study's folder in a block; yields False on storage without file locks.

    Writers share the lock, and a take-over has it `alone`. It ends with the process. Raises
    FileNotFoundError for a folder that does not exist, and TimeoutError if others keep the lock.
    """
    if not isinstance(system, pyarrow.fs.LocalFileSystem):
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock_alone(descriptor, folder) if alone else _lock_shared(descriptor)
    finally:
        os.close(descriptor)  # this releases the lock


def _lock_shared(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError:  # a network file system
        return False
    return True


def _lock_alone(descriptor: int, folder: str) -> bool:
    """Wait at most `LOCKED_S`, since a writer may be suspended while it has the lock."""
    end = time.monotonic() + LOCKED_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                text = f"a process has been writing to {folder} for {LOCKED_S:g} s"
                raise TimeoutError(text) from None
            time.sleep(0.01)
        except OSError:  # a network file system
            return False
        else:
            return True
