"""Files on the local disk, written completely or not at all, and read within limits."""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pm25.limits import MOST_FILE_BYTES


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path in the same folder, and rename the file that it writes to `path`.

    A failure keeps the old file at `path`. Raises OSError if the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def check_folder(folder: Path) -> None:
    """Raise OSError unless files can be written to a folder, or to the one that it would be created in."""
    existing = folder.absolute()
    while True:
        try:
            existing.stat()
        except FileNotFoundError:
            existing = existing.parent
        else:
            break
    tempfile.TemporaryFile(dir=existing).close()  # has no name on most file systems


def read_bytes(path: Path, most: int = MOST_FILE_BYTES) -> bytes:
    """Read a complete file of at most `most` bytes.

    Raises OSError for a larger file, and for a device or a pipe, which may never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, but at most {most:,} are allowed", str(path))
    return path.read_bytes()
