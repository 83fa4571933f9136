"""Folder for the temporary files of a Ray of this process's own, chosen and tested before Ray starts.

Ray waits for its processes for up to 40 s, or forever, if they cannot open their sockets or logs there.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from pathlib import Path

from pm25 import scratch
from pm25.errors import InputError

VARIABLES = ("RAY_TMPDIR", "TMPDIR")
"""Variables of the environment that name the folder, in Ray's order."""

DEFAULT = "/tmp"
"""Ray's folder if no variable is set."""

SHORT = (DEFAULT, "/var/tmp", "/dev/shm")
"""Folders with short names, for a Ray that cannot use the chosen folder."""

RAY = "ray"
"""Ray's folder in the private folder of a run."""

SOCKET = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket in Ray's folder; its last number is the largest id of a process."""

SOCKET_BYTES = 107
"""Longest path of a socket on Linux."""

PROBE_BYTES = 2**16
"""Size of the file that is written as a test."""

FREE_BYTES = 64 * 2**20
"""Space that Ray's logs and Tune's files need."""

FIX = "set TMPDIR or RAY_TMPDIR to a short folder that can be written"


def choose() -> tuple[str, str]:
    """Return where Ray's temporary folder is created, and a notice for the user, which is usually empty.

    A folder that does not exist is created, as Ray does. A path that is too long for Ray's sockets, or odd
    for its command lines, is replaced by a short one. Raises InputError for any other folder that fails.
    """
    name = next((name for name in VARIABLES if os.environ.get(name)), "")
    folder = os.path.abspath(os.environ[name]) if name else DEFAULT
    where = f"{name}={folder}" if name else folder
    _check(where, folder)
    unsuitable = _unsuitable(folder)
    if not unsuitable:
        return folder, ""
    for short in SHORT:
        with contextlib.suppress(InputError):
            _check(short, short)
            return short, f"Ray uses {short} for temporary files, because {where} {unsuitable}"
    raise InputError(where, "", f"Ray cannot use the folder, because it {unsuitable}", FIX)


def check_writable(folder: Path) -> None:
    """Check that Ray can still write to its folder while it runs. Raises InputError."""
    try:
        _write_probe(str(folder))
    except OSError as error:
        problem = f"Ray's temporary files cannot be written there any more ({error.strerror})"
        space = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise InputError(
            str(folder), "", problem, f"{space} or {FIX}; then run the same command again"
        ) from None


def _check(where: str, folder: str) -> None:
    """Raise InputError if no file can be written to the folder, or if its disk is full."""
    try:
        os.makedirs(folder, exist_ok=True)
        _write_probe(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            problem = f"temporary files cannot be written there ({error.strerror})"
            raise InputError(where, "", problem, FIX) from None
        free = 0
    if free < FREE_BYTES:
        problem = f"its disk is full: {free >> 20} MB are free, and a run needs {FREE_BYTES >> 20} MB"
        raise InputError(where, "", problem, f"free some space, or {FIX}")


def _write_probe(folder: str) -> None:
    probe = Path(folder, f".sweep-{secrets.token_hex(4)}")
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)


def _unsuitable(folder: str) -> str:
    """Return why Ray cannot use a folder that can be written; empty if it can."""
    excess = len(os.fsencode(os.path.join(folder, scratch.NAME, RAY, SOCKET))) - SOCKET_BYTES
    if excess > 0:
        return f"is {excess} bytes too long for its sockets"
    if odd := re.search(r"[^A-Za-z0-9/._+=,@-]", folder):
        return f"contains {odd[0]!r}, which its command lines cannot have"
    return ""
