"""File with the token of a Ray cluster: readable by its owner only."""

import os
import stat
from pathlib import Path

from pm25.errors import InputError

FIX = "remove it, and write the cluster's token to a new file of mode 600"


def protect() -> str:
    """Close the file from which Ray would read this user's token to others; return a notice if it was open.

    The notice is empty if the file is closed, or if none is read. Raises InputError for a file that another
    user owns or could have written; the administrator's is accepted.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        found = file.stat()
    except OSError:
        return ""  # Ray reports a token that is missing
    if found.st_uid not in (os.getuid(), 0):
        raise InputError(str(file), "", f"the token belongs to another user (id {found.st_uid})", FIX)
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        raise InputError(str(file), "", f"others may change the token (mode {mode:03o})", FIX)
    if not mode & 0o077 or found.st_uid != os.getuid():
        return ""
    try:
        file.chmod(0o600)
    except OSError as error:
        problem = f"others may read the token (mode {mode:03o}), and the mode cannot be changed"
        raise InputError(str(file), "", f"{problem} ({error.strerror})", FIX) from None
    return f"{file}: others could read the token (mode {mode:03o}); its mode is now 600"
