"""Private temporary folders; a folder that a killed process left behind is deleted by the next process."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pm25.errors import InputError

PREFIX = "pm25-sweeps-"
"""First letters of the name of a folder whose process holds, or has held, the lock in it."""

UNLOCKED = ".pm25-sweeps-"
"""First letters of the name of a folder until its process has the lock."""

LOCK = ".pm25-sweeps.lock"
"""File in each folder that its process locks as long as it lives; it is deleted last."""

NAME = f"{PREFIX}12345678"
"""A name of the same length as all others."""


@contextlib.contextmanager
def scratch(parent: str | None = None) -> Iterator[Path]:
    """Create a folder that only this user can open, and delete it at the end.

    `parent` is by default the one for temporary files. Folders that killed processes of this user left there
    are deleted first. Raises InputError if a folder cannot be created or locked.
    """
    with contextlib.ExitStack() as cleanup:
        try:
            parent = parent or tempfile.gettempdir()
            remove_abandoned(parent)
            made = tempfile.mkdtemp(prefix=UNLOCKED, dir=parent)
            folder = Path(parent, PREFIX + os.path.basename(made).removeprefix(UNLOCKED))
            lock = cleanup.enter_context(open(os.path.join(made, LOCK), "wb"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(made, folder)
        except OSError as error:
            problem = f"a temporary folder cannot be created there ({error.strerror})"
            fix = "set TMPDIR to a folder that can be written"
            raise InputError(parent or "temporary files", "", problem, fix) from None
        try:
            yield folder
        finally:
            _delete(folder)


def remove_abandoned(parent: str) -> None:
    """Delete the folders of this user's processes that have ended; those of living processes are locked."""
    with os.scandir(parent) as entries:
        found = [one for one in entries if one.name.startswith(PREFIX) and len(one.name) == len(NAME)]
    for entry in found:
        # A folder without the file is not of this program; another process may delete the same one now.
        with contextlib.suppress(OSError):
            if (
                entry.is_dir(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_uid == os.getuid()
            ):
                _remove_unlocked(Path(entry.path))


def _remove_unlocked(folder: Path) -> None:
    """Delete a folder; raises OSError if it has no file to lock, or if a process has locked it."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _delete(folder)
    finally:
        os.close(lock)


def _delete(folder: Path) -> None:
    """Delete a folder; a part that a process still writes stays, with the lock file, for the next process."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != LOCK:
                os.unlink(entry.path)
        if os.listdir(folder) == [LOCK]:
            os.unlink(folder / LOCK)
            os.rmdir(folder)
