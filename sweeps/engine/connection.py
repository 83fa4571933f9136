"""The connection to Ray: start an own instance or join a cluster, and watch the cluster's head."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import grpc
import ray

import pm25
import sweeps
from pm25.errors import InputError
from pm25.panel import Panel
from pm25.scratch import scratch
from sweeps.engine import cluster, ray_internals, temp_folder
from sweeps.engine.cluster import HeadLost
from sweeps.engine.ray_internals import Head

HEAD_ANSWERS_S = 10.0
"""Longest time to wait for the head's first answer."""

HEAD_EVERY_S = 3.0
"""Time between two questions to the head, and longest time to wait for each answer."""

HEAD_SILENT_S = 20.0
"""Silence after which a head counts as lost; a busy or restarted head may be silent for some seconds."""

HEAD_FIX = "give the head's HOST:6379"


@contextlib.contextmanager
def connected(address: str | None, panel: Panel) -> Iterator[Path]:
    """Start a Ray of this process's own, or join the cluster at `address`, and leave it at the end.

    Yields a private temporary folder. A Ray of this process's own has its files there; it listens on the
    loopback address only, and accepts only processes that know its token.

    Raises InputError when no cluster of this Ray version answers, and HeadLost when its head dies meanwhile.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch(temp_folder.choose()[0] if address is None else None))
        if address is None:
            stack.enter_context(ray_internals.private_token(folder))
        yield from _connected(address, panel, folder)


def _connected(address: str | None, panel: Panel, folder: Path) -> Iterator[Path]:
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
        with ray_internals.loopback_only() if address is None else contextlib.nullcontext():
            ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
    except (OSError, ValueError, RuntimeError) as error:  # such as a cluster of another Python
        reason, verb = " ".join(str(error).split()), "start" if address is None else "connect"
        fix = "" if address is None else HEAD_FIX
        raise InputError(where, problem=f"Ray cannot {verb} ({reason})", fix=fix) from None
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        with _HeadWatch(address) if address is not None else contextlib.nullcontext():
            yield folder
    except HeadLost:
        raise  # without ray.shutdown, which would wait for the lost head
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


class _HeadWatch:
    """Raises HeadLost in the main thread when the head stops answering; used as a context.

    Ray itself would wait for a minute and then end the process without running any Python. Where Ray blocks
    the main thread, the watch ends the process with the same message and exit status.
    """

    def __init__(self, address: str) -> None:
        self._address, self._lost = address, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._lost:
            raise self._error from None
        signal.signal(signal.SIGUSR2, self._before)

    @property
    def _error(self) -> HeadLost:
        return HeadLost(
            f"--address {self._address}",
            problem=f"the head has not answered for {HEAD_SILENT_S:g} s",
            fix="start the cluster again and repeat the command; it continues with what is missing",
        )

    def _watch(self) -> None:
        head = Head(ray.get_runtime_context().gcs_address)
        since = time.monotonic()
        while not self._stop.wait(HEAD_EVERY_S):
            try:
                head.ray_version(HEAD_EVERY_S)
                since = time.monotonic()
            except grpc.RpcError:
                if time.monotonic() - since > HEAD_SILENT_S:
                    self._lost = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
                    if not self._stop.wait(HEAD_EVERY_S):
                        click.echo(f"sweep: {self._error}", err=True)
                        os._exit(HeadLost.status)
                    return


def _environment() -> dict[str, Any]:
    """Ray's `runtime_env` for the workers of a joined cluster: some variables, and the project's code."""
    names = [name for name in os.environ if name in (cluster.PRETEND, ray_internals.FORWARDED)]
    found: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in names}}
    if not ray_internals.is_submitted_job():
        found["py_modules"] = [str(Path(str(package.__file__)).parent) for package in (pm25, sweeps)]
        found["excludes"] = ["**/__pycache__"]
    return found
