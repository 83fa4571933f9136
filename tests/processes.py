"""Processes that slow tests start, watch and wait for."""

import contextlib
import io
import signal
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

Found = TypeVar("Found")
SWEEP = ("-m", "sweeps")
NO_IDLE_WORKERS = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
"""Variables of a cluster that is joined: an idle worker lacks the study's code, so no training uses it."""


def wait_for(
    condition: Callable[[], Found], what: str | Callable[[], str] = "", *, seconds: float = 90
) -> Found:
    """The first true value of `condition`; after `seconds` an AssertionError that shows `what` is missing."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what() if callable(what) else what}"
        time.sleep(0.05)
    return found


def sweep(
    folder: Path,
    *arguments: str,
    python: Sequence[str] = SWEEP,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> "subprocess.Popen[str]":
    """Start the real command line in `folder` and a session of its own; `python` is run instead if given.

    Its output is appended to `log`, or piped if there is none.
    """
    how: dict[str, Any] = {"cwd": folder, "env": env, "text": True, "start_new_session": True}
    command = [sys.executable, *python, *arguments]
    if log is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    with log.open("a") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, **how)


def run_sweep(
    folder: Path,
    *arguments: str,
    status: int = 0,
    python: Sequence[str] = SWEEP,
    env: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Standard output and error of a command that must end with `status` within three minutes."""
    return end(sweep(folder, *arguments, python=python, env=env), status)


def call_sweep(folder: Path, *arguments: str, status: int = 0) -> tuple[str, str]:
    """Standard output and error of a command that this process runs, for one that starts no Ray.

    A process of its own would import everything again, which takes longer than most commands.
    """
    from sweeps import cli

    out, err = io.StringIO(), io.StringIO()
    terminated = signal.getsignal(signal.SIGTERM)
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch.object(sys, "argv", ["sweep", *arguments]),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            signal.signal(signal.SIGTERM, terminated)
    assert code == status, out.getvalue()[-3000:] + err.getvalue()[-3000:]
    return out.getvalue(), err.getvalue()


def end(process: "subprocess.Popen[str]", status: int = 0, seconds: float = 180) -> tuple[str, str]:
    """Standard output and error of a process that must end with `status`."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == status, out[-3000:] + err[-3000:]
    return out, err


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes below the process `driver` that train, or are about to."""
    found = []
    try:
        children = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in children:
        try:
            if "Trainable" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it ended meanwhile
    return found


@contextlib.contextmanager
def paused(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """The `processes` stand still in the block, and those that still live go on after it."""
    stopped = [*processes]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def listening(driver: int) -> dict[str, set[str]]:
    """Addresses at which the process `driver` and those below it listen, by the name of the process.

    Linux lists every socket in /proc/net/tcp, tcp6, udp and udp6, and a process's own in /proc/PID/fd.
    """
    found: dict[str, set[str]] = {}
    for process in (psutil.Process(driver), *psutil.Process(driver).children(recursive=True)):
        try:
            name, sockets = process.name(), process.net_connections("inet")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it ended meanwhile
        addresses = {one.laddr.ip.removeprefix("::ffff:") for one in sockets if not one.raddr and one.laddr}
        found.setdefault(name, set()).update(addresses)
    return found
