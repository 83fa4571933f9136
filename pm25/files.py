"""Files on the local disk, written completely or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
