"""Exit statuses of `sweep`, and how a signal becomes one."""

from typing import Any

BAD_INPUT = 2
RAY_LOST = 3
"""The head of the cluster, or Ray on this machine, is gone; the same command resumes."""
LOCK_LOST = 4
"""Another process has taken over the study; nothing more was written."""
BUG = 70
"""An exception that no command expects; the number is that of `EX_SOFTWARE` in sysexits.h."""
OUTPUT_CLOSED = 141
"""The reader of the output has closed it; the number is that of SIGPIPE in a shell."""

_signals: list[int] = []
"""Signals with which a batch system asked this process to end."""


def end_on_signal(number: int, _: Any) -> None:
    """Handle SIGTERM like Ctrl-C, and remember it for `interrupted`."""
    _signals.append(number)
    raise KeyboardInterrupt  # Ray turns any other error into this one


def interrupted() -> int:
    """Exit status of a process that was interrupted: 143 after SIGTERM, 130 after Ctrl-C."""
    return 143 if _signals else 130
