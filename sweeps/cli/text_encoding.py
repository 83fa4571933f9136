"""Encoding of texts: UTF-8 for files and names of files, and the terminal's own for what is printed."""

import os
import sys
from io import TextIOWrapper


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if its locale has another encoding.

    Names of files could not be passed to other processes, to pyarrow and to MLflow otherwise. The mode holds
    for all processes that this one starts. Characters that the terminal cannot show are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not _is_utf8(stream.encoding):
            stream.reconfigure(errors="backslashreplace")
    if not _is_utf8(sys.stdout.encoding or "utf-8"):
        os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:backslashreplace"
    if not _is_utf8(sys.getfilesystemencoding()) and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8")
