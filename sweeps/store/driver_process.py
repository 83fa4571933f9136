"""The process that runs a study, as `driver.json` names it, and whether it is still running."""

import os
import socket
from pathlib import Path

import psutil
from pydantic import AwareDatetime, BaseModel, ConfigDict, NonNegativeInt, PositiveInt

FILE = "driver.json"
"""File in the folder of a study that names its driver."""


class Driver(BaseModel):
    """Content of `driver.json`: the process that runs a study.

    No decision depends on a clock: `since` and `beat` are shown to the user, and `beats` is compared.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    number: NonNegativeInt = 0
    """Position among the drivers that took the study from each other, counted from 1; 0 in files of 0.1."""
    host: str
    process: PositiveInt
    start_ticks: NonNegativeInt | None = None
    """Start of the process in clock ticks since the boot; None outside Linux, and in files of version 0.1."""
    process_started: float
    """Start of the process in seconds since 1970, which changes when the clock is set."""
    process_space: str
    """Scope in which the process id and its start are unique (`process_space`)."""
    since: AwareDatetime
    beats: NonNegativeInt = 0
    """Number of heartbeats so far."""
    beat: AwareDatetime
    """Time of the last heartbeat."""

    @property
    def name(self) -> str:
        """Process and host, for messages."""
        return f"process {self.process} on host {self.host}"

    @property
    def token(self) -> str:
        """Fencing token: it differs between any two drivers, and every write of this driver carries it."""
        return f"{self.number}-{self.id}"

    def lives(self) -> bool | None:
        """Return whether the process is running; None if only its heartbeats can show it.

        This is so on another machine, in another container, and for a process that this user may not see. It
        is also so if only the start time differs, since the clock may have been set.
        """
        own = process_space()
        if self.process_space not in (own, " ".join(own.split(" ")[:2])):  # version 0.1 wrote two parts
            return None
        if own == _space_without_proc():
            return self._lives_by_time()
        try:
            found = _stat(self.process)
        except PermissionError:  # /proc is mounted with hidepid=1
            return None
        if found is None:
            return None if _is_hidden(self.process) else False
        state, ticks = found
        if state in "ZXx":  # dead, though its parent has not asked for its exit status
            return False
        return self._lives_by_time() if self.start_ticks is None else ticks == self.start_ticks

    def _lives_by_time(self) -> bool | None:
        """Return what `lives` does, from the start time alone."""
        try:
            process = psutil.Process(self.process)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # A tolerance of one second: the start is counted in clock ticks since a rounded boot time.
            return True if abs(process.create_time() - self.process_started) < 1 else None
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return None


def start_ticks() -> int | None:
    """Return the start of this process in clock ticks since the boot; None on systems other than Linux."""
    found = _stat(os.getpid())
    return None if found is None else found[1]


def process_space() -> str:
    """Return the scope in which a process id and its start are unique.

    On Linux, this is one boot of one machine with the namespaces of process ids and of time.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        kinds = [kind for kind in ("pid", "time") if os.path.lexists(f"/proc/self/ns/{kind}")]
        return " ".join([boot, *(os.readlink(f"/proc/self/ns/{kind}") for kind in kinds)])
    except OSError:
        return _space_without_proc()


def _space_without_proc() -> str:
    """Return the scope on systems other than Linux; a set clock changes it, and heartbeats decide then."""
    return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _stat(process: int) -> tuple[str, int] | None:
    """Return the state of a process and its start in clock ticks since the boot; None if it is not found.

    Raises PermissionError for a process that this user may not see.
    """
    try:
        content = Path(f"/proc/{process}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = content.rpartition(b")")[2].split()  # the name before may contain anything
    return fields[0].decode(), int(fields[22 - 3])


def _is_hidden(process: int) -> bool:
    """Return True if a process exists that /proc does not show, as with hidepid=2."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
