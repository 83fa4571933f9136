"""Standard streams that the shell has closed, as with `sweep status STUDY >&-`."""

import os
import sys


def open_closed() -> None:
    """Open the null device in place of each standard stream that is closed.

    Otherwise the first file that is opened, such as a database, gets the number of the stream. What any
    program prints would then be written into this file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is that of the stream
            os.set_inheritable(number, True)
        stream = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115 (until the end)
        setattr(sys, name, stream)
