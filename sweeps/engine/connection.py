"""The connection to Ray: start an own instance or join a cluster, and watch what the run depends on."""

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import grpc
import psutil
import ray

import pm25
import sweeps
from pm25.errors import InputError
from pm25.panel import Panel
from pm25.scratch import scratch
from sweeps.engine import cluster, ray_internals, temp_folder
from sweeps.engine.cluster import RayLost
from sweeps.engine.ray_internals import Head

HEAD_ANSWERS_S = 10.0
"""Longest time to wait for the head's first answer."""

HEAD_EVERY_S = 3.0
"""Time between two questions to the head, and longest time to wait for each answer."""

HEAD_SILENT_S = 20.0
"""Silence after which a head counts as lost; a busy or restarted head may be silent for some seconds."""

LOOK_EVERY_S = 0.25
"""Time between two looks at the processes of a local Ray."""

LIST_EVERY_S = 0.5
"""Time between two lists of all processes of a local Ray."""

PROBE_EVERY_S = 3.0
"""Time between two writes to the temporary folder of a local Ray."""

NEEDED = ("gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Processes without which a local Ray cannot continue; raylet ends itself if one of its agents dies."""

HEAD_FIX = "give the head's HOST:6379"


@contextlib.contextmanager
def connected(address: str | None, panel: Panel) -> Iterator["Watch"]:
    """Start a Ray of this process's own, or join the cluster at `address`, and leave it at the end.

    Yields a watch with a private temporary folder. A Ray of this process's own has its files there; it
    listens on the loopback address only, and accepts only processes that know its token.

    Raises InputError when no cluster of this Ray version answers or when the temporary folder is full, and
    RayLost when Ray dies meanwhile.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch(temp_folder.choose()[0] if address is None else None))
        if address is None:
            stack.enter_context(ray_internals.private_token(folder))
        yield from _connected(address, panel, folder)


def _connected(address: str | None, panel: Panel, folder: Path) -> Iterator["Watch"]:
    where = f"--address {address}" if address is not None else "Ray"
    if address is None:
        # For the panel, the embeddings and Tune's own objects; by default Ray takes a third of all memory.
        store_bytes = 256 * 2**20 + 2 * (panel.features.nbytes + panel.target.nbytes)
        options: dict[str, Any] = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": store_bytes,
            "_temp_dir": str(folder / temp_folder.RAY),  # which Ray opens to everybody
        }
    else:
        check_answers(address)
        options = {"address": address, "runtime_env": _environment()}
    on_sigterm = signal.getsignal(signal.SIGTERM)  # which Ray replaces with a handler of its own
    try:
        with Watch(address, folder) as watch:
            ray_internals.print_no_errors()
            own = ray_internals.loopback_only() if address is None else contextlib.nullcontext()
            try:
                with own:
                    ray.init(log_to_driver=False, logging_level="CRITICAL", configure_logging=True, **options)
            except Exception as error:  # Ray raises errors of many types, such as for another Python
                watch.check()
                reason, verb = " ".join(str(error).split()), "start" if address is None else "connect"
                fix = "" if address is None else HEAD_FIX
                raise InputError(where, problem=f"Ray cannot {verb} ({reason})", fix=fix) from error
            signal.signal(signal.SIGTERM, on_sigterm)
            watch.ask_head()
            try:
                yield watch
            except InputError:
                raise
            except Exception:
                watch.check()  # the error may be a consequence
                raise
    except RayLost:
        raise  # without ray.shutdown, which would wait for what is lost
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def check_answers(address: str) -> None:
    """Check that a cluster of this Ray version answers at `address` and accepts this process's token.

    Raises InputError.
    """
    where = f"--address {address}"
    if "://" in address:
        raise InputError(
            where,
            problem="a URL, where the head's own address is expected",
            fix=f"{HEAD_FIX}, or auto on a machine of the cluster; from elsewhere run "
            "`sweep submit STUDY --address http://HOST:8265`",
        )
    try:
        found = ray_internals.head_address(address)
    except (ValueError, OSError):
        raise InputError(where, problem="not an address of the form HOST:PORT", fix=HEAD_FIX) from None
    if found is None:
        raise InputError(where, problem="no Ray runs on this machine", fix=HEAD_FIX)
    try:
        version = Head(found).ray_version(HEAD_ANSWERS_S)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise InputError(
                where,
                problem="the cluster refuses this token, or wants one and none was sent",
                fix="set RAY_AUTH_MODE=token and the cluster's own RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH",
            ) from None
        reason = str(error.details()).rpartition("last error: ")[2].strip().rstrip(".")
        raise InputError(where, problem=f"no Ray head answers there ({reason})", fix=HEAD_FIX) from None
    if version != ray.__version__:
        raise InputError(
            where,
            problem=f"the cluster has Ray {version}, and this process has Ray {ray.__version__}",
            fix="install the same version on both",
        )


class Watch:
    """Ends the run when Ray cannot continue; used as a context.

    It asks the head of a cluster, or the GCS of a local Ray, whether it is alive. Of a local Ray it also
    watches the processes and the temporary folder. Without it, Ray would end this process without running any
    Python: a minute after its head has gone, or 0.1 s after its raylet has. So a local Ray that dies ends
    this process at once, with a line and an exit status. Everything else is raised in the main thread. Where
    Ray blocks that thread, the watch ends the process with the same line and status.
    """

    def __init__(self, address: str | None, folder: Path) -> None:
        """`address` is None for a local Ray, whose files are in the private `folder`."""
        self._address, self.folder = address, folder
        self._error: InputError | None = None
        self._stop, self._failing, self._raised = threading.Event(), threading.Lock(), False
        self._threads: list[threading.Thread] = []
        self._processes: set[psutil.Process] = set()
        self._needed: dict[str, psutil.Process] = {}
        self._ends: list[int] = []
        """Descriptors that become readable when a needed process ends, on systems that have them."""
        self._listed = -math.inf

    def __enter__(self) -> "Watch":
        self._before = signal.signal(signal.SIGUSR2, self._on_signal)
        if self._address is None:
            self._start(self._watch_processes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raised = True
        self._stop.set()
        for thread in self._threads:
            thread.join(HEAD_EVERY_S)  # Ray's processes end next, which is then no fault
        if self._error is not None:
            raise self._error from None
        signal.signal(signal.SIGUSR2, self._before)

    def check(self) -> None:
        """Raise the error now if Ray cannot continue."""
        if self._error is None and self._address is None:
            try:
                self._look()
                temp_folder.check_writable(self.folder)
            except InputError as error:
                self._fail(error)
        if self._error is not None:
            self._raised = True
            raise self._error

    def ask_head(self) -> None:
        """Ask the head from now on, every `HEAD_EVERY_S`, whether it is alive."""
        self._start(self._watch_head)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="Ray", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch_head(self) -> None:
        head = Head(ray.get_runtime_context().gcs_address)
        since = time.monotonic()
        while not self._stop.wait(HEAD_EVERY_S):
            try:
                head.ray_version(HEAD_EVERY_S)
                since = time.monotonic()
            except grpc.RpcError:
                if time.monotonic() - since > HEAD_SILENT_S:
                    who = "its gcs_server" if self._address is None else "the head"
                    self._interrupt(self._lost(f"{who} has not answered for {HEAD_SILENT_S:g} s"))
                    return

    def _watch_processes(self) -> None:
        probed = time.monotonic()
        while True:
            select.select(self._ends, [], [], LOOK_EVERY_S)
            if self._stop.is_set():
                break
            try:
                self._look()
                if time.monotonic() - probed > PROBE_EVERY_S:
                    probed = time.monotonic()
                    temp_folder.check_writable(self.folder)
            except InputError as error:
                self._interrupt(error)
                break
        for descriptor in self._ends:
            os.close(descriptor)

    def _look(self) -> None:
        """Remember Ray's processes. Raises RayLost if a process has died that the run depends on."""
        for name, process in [*self._needed.items()]:  # the other thread may add one
            if not _is_alive(process):
                raise self._lost(f"its process {name} has died")
        if time.monotonic() - self._listed < LIST_EVERY_S:
            return
        self._listed = time.monotonic()
        self._processes = {*filter(_is_alive, self._processes), *_ray_processes()}
        for process in self._processes - {*self._needed.values()}:
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if process.name() in NEEDED:
                    self._needed[process.name()] = process
                    if hasattr(os, "pidfd_open"):
                        self._ends.append(os.pidfd_open(process.pid))

    def _lost(self, problem: str) -> RayLost:
        if self._address is None:
            fix = "free memory if the system has killed it, and repeat the command"
        else:
            fix = "start the cluster again, and repeat the command"
        where = "Ray" if self._address is None else f"--address {self._address}"
        return RayLost(where, problem=problem, fix=f"{fix}; it continues with what is missing")

    def _fail(self, error: InputError) -> bool:
        """Keep the first error, and return True if this is it. A local Ray that is lost ends this process."""
        with self._failing:
            first = self._error is None
            self._error = self._error or error
        if first and isinstance(error, RayLost) and self._address is None:
            for process in self._processes:  # raylet's workers would continue to train
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._exit(error)
        return first

    def _exit(self, error: InputError) -> None:
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar hides it
        click.echo(f"{show_cursor}sweep: {error}", err=True)
        sys.stdout.flush()
        os._exit(getattr(error, "status", 2))

    def _interrupt(self, error: InputError) -> None:
        """Raise an error in the main thread; end this process if that thread does not react."""
        if not self._fail(error):
            return
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        if not self._stop.wait(HEAD_EVERY_S):
            self._exit(error)

    def _on_signal(self, number: int, _: Any) -> None:
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt  # Ray turns any other error into this one


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _ray_processes() -> set[psutil.Process]:
    """Find the processes of a local Ray: children of this one that run Ray's files, and their children."""
    folder, found = str(Path(ray.__file__).parent), dict[int, psutil.Process]()
    for process in psutil.Process().children(recursive=True):  # parents come before their children
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if process.ppid() in found or any(word.startswith(folder) for word in process.cmdline()):
                found[process.pid] = process
    return {*found.values()}


def _environment() -> dict[str, Any]:
    """Ray's `runtime_env` for the workers of a joined cluster: some variables, and the project's code."""
    names = [name for name in os.environ if name in {cluster.PRETEND, *ray_internals.FORWARDED}]
    found: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in names}}
    if not ray_internals.is_submitted_job():
        found["py_modules"] = [str(Path(str(package.__file__)).parent) for package in (pm25, sweeps)]
        found["excludes"] = ["**/__pycache__"]
    return found
