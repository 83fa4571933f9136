"""Every private name of Ray that the project uses, each behind one function.

Each function says why it exists and which public alternative there is. `tests/sweeps/engine/
test_ray_internals.py` checks all of them against the installed Ray without starting a cluster; it passes on
Ray 2.54 and 2.60. Complete runs are tested on 2.60.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
import requests
from ray import cloudpickle
from ray._private import ray_constants, services
from ray._private.authentication import authentication_token_setup
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.job_submission import JobSubmissionClient
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

from sweeps.engine.worker import LIBRARIES

# Environment variables


class Variable(NamedTuple):
    """An environment variable of Ray, and the module that reads it."""

    value: str
    module: str


ENVIRONMENT: Mapping[str, Variable] = {
    # Public. Ray reports no usage statistics.
    "RAY_USAGE_STATS_ENABLED": Variable("0", "ray._common.usage.usage_constants"),
    # Not documented, no alternative. A worker with 0 GPUs sees no GPU; otherwise it would see all of them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": Variable("1", "ray._private.accelerators.accelerator"),
    # Public. The store and MLflow replace Tune's CSV, JSON and TensorBoard files.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": Variable("1", "ray.tune.utils.callback"),
    # Public. Ctrl-C ends the run at once; everything that has ended is recorded.
    "TUNE_DISABLE_SIGINT_HANDLER": Variable("1", "ray.tune.tune"),
    # Public. With the new output Tune would ignore `NoReporter`.
    "RAY_AIR_NEW_OUTPUT": Variable("0", "ray.tune.experimental.output"),
    # Not documented for Tune. Otherwise Tune restarts a preempted trial without telling its searcher.
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": Variable("1", "ray.train.constants"),
    # Public. Tune's snapshots are never restored: a run resumes from the store.
    "TUNE_GLOBAL_CHECKPOINT_S": Variable("inf", "ray.tune.execution.tune_controller"),
    # Public. Workers start side by side.
    "TUNE_MAX_PENDING_TRIALS_PG": Variable("1000000", "ray.tune.execution.tune_controller"),
    # Not documented. No warning about the time that a snapshot takes.
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": Variable(
        "0", "ray.tune.execution.experiment_state"
    ),
}
"""Variables that a run sets for Ray and Tune before it starts or joins a cluster."""

FORWARDED = frozenset({"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", *LIBRARIES})
"""Variables of a run that the workers of a joined cluster need as well."""

JOB_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of a job's environment: seconds between asking its driver to end and killing it.

Not documented, no public alternative. Ray's default of 3 s is too short for a driver that closes its views.
"""

_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def set_environment() -> None:
    """Set the variables of `ENVIRONMENT` and `LIBRARIES` that the user has not set."""
    for name, value in {**{n: v.value for n, v in ENVIRONMENT.items()}, **LIBRARIES}.items():
        os.environ.setdefault(name, value)


def is_submitted_job() -> bool:
    """Return whether this process is the driver of a submitted job, whose code the job has brought.

    Public alternative: none; `ray.get_runtime_context().get_job_id()` does not say how a job was started.
    """
    return _IN_A_JOB in os.environ


# A Ray of this process's own

TOKEN_VARIABLES: Mapping[str, str] = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "",
    "RAY_AUTH_TOKEN_PATH": "{file}",
}
"""Variables from which Ray reads its token, and their values for a Ray of this process's own."""


LOOPBACK_ONLY: Mapping[str, str] = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
"""Variable with which a Ray in another process listens on 127.0.0.1 only; see `loopback_only`."""


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let a Ray that starts meanwhile listen on 127.0.0.1 only, with all of its processes.

    Ray takes the address of the network even if `ray.init` is given `_node_ip_address="127.0.0.1"`, and its
    processes then listen on all addresses. This is what Ray does on macOS. Public alternative: none; Ray
    reads the variable of `LOOPBACK_ONLY` when it is imported, and it would count for a joined cluster too.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def private_token(folder: Path) -> Iterator[None]:
    """Let a Ray that starts meanwhile accept only processes that can read a new token in `folder`.

    Without it, Ray writes a token to `~/.ray/auth_token`, which others may be able to read. A user's
    `RAY_AUTH_MODE=disabled` would open the ports to everybody on the machine. Public alternative: the
    variables alone, which Ray reads only once in a process.
    """
    file = folder / "token"
    with open(file, "x", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
        out.write(secrets.token_hex(32))
    before = {name: os.environ.get(name) for name in TOKEN_VARIABLES}
    _set_variables({name: value.format(file=file) for name, value in TOKEN_VARIABLES.items()})
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    """Set variables of the environment, remove those without a value, and let Ray read its token again."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    authentication_token_setup.Config.initialize("")
    authentication_token_setup.AuthenticationTokenLoader.instance().reset_cache()


# What Ray prints


def print_no_errors() -> None:
    """Keep Ray from printing the errors that its processes publish, such as the end of raylet's log.

    They go to standard output, in many lines, also with `log_to_driver=False`. Every fault is reported in one
    line by this project. Public alternative: none.
    """
    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None


# The head of a cluster


class Head:
    """Answers whether a cluster's head node is alive.

    `ray.init` retries and prints warnings for 20 s before it gives up. A running driver is killed a minute
    after its head has gone, and no Python code runs then. Public alternative: none; the command
    `ray health-check` makes the same call.
    """

    def __init__(self, address: str) -> None:
        """`address` is the head's HOST:PORT."""
        self._stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(init_grpc_channel(address))

    def ray_version(self, timeout_s: float) -> str:
        """Ask the head for its Ray version. Raises grpc.RpcError when it does not answer in time."""
        answer = self._stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=timeout_s)
        return str(answer.ray_version)


def head_address(address: str) -> str | None:
    """Resolve "auto", or the address of a head, to HOST:PORT; None for "auto" if no Ray runs here.

    Public alternative: none; `ray.init(address="auto")` resolves and connects in one step.
    """
    found: str | None = services.canonicalize_bootstrap_address(address)
    return found


def draining_nodes() -> set[str]:
    """Return the ids of nodes that are about to go, such as spot instances that are taken back.

    Public alternative: none; `ray.nodes()` lists them as alive.
    """
    return {*ray._private.state.state.get_draining_nodes()}


# Ray Tune

CONTROLLER_LISTS = ("_trials",)
CONTROLLER_SETS = ("_live_trials", "_stopped_trials", "_failed_trials", "_trials_to_cache")


def forget_trials(tune_controller: Any, trials: Iterable[Trial]) -> None:
    """Remove ended trials from Tune's controller, as it is passed to `TrialScheduler.choose_trial_to_run`.

    Tune keeps 12 kB of every ended trial, and writes and reads all of it at the end of the run. Public
    alternative: none.
    """
    controller = tune_controller._tune_controller
    for trial in trials:
        for name in CONTROLLER_LISTS:
            getattr(controller, name).remove(trial)
        for name in CONTROLLER_SETS:
            getattr(controller, name).discard(trial)


class NoReporter(TrialProgressCallback):
    """Takes the place of Tune's progress reporter, which keeps every trial in memory until the run ends.

    Tune adds its own reporter unless one of this class is among the callbacks. Public alternative: none;
    `verbose=0` silences the reporter but does not remove it.
    """

    def log_result(self, trial: Trial, result: dict[str, Any], error: bool = False) -> None:
        """Print nothing."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Print nothing, and keep nothing."""


def trial_error(trial: Trial) -> BaseException | None:
    """Return the exception that ended a trial's worker; None if Tune recorded none.

    Public alternative: `Trial.get_error()`, which looks in the trial's remote folder; errors are not uploaded
    to it in a run without checkpoints.
    """
    if trial.pickled_error_file is None:
        return None
    with open(trial.pickled_error_file, "rb") as file:
        found: BaseException = cloudpickle.load(file)
    return found


# Jobs


class JobClient(JobSubmissionClient):
    """Ray's job client with a timeout for every request.

    The base class waits forever for an address at which packets are dropped. Public alternative: none; it
    has no timeout option.
    """

    def __init__(self, address: str, timeout_s: tuple[float, float]) -> None:
        """`timeout_s` is the time to connect and the time between bytes of an answer."""
        self._timeout_s = timeout_s  # before the base class, which sends a request at once
        super().__init__(address)

    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        answer: requests.Response = super()._do_request(
            method, endpoint, **{"timeout": self._timeout_s, **more}
        )
        return answer

    def ray_version(self) -> str:
        """Return the cluster's Ray version. Public alternative: none; `get_version` is the job API's own."""
        return str(self._do_request("GET", "/api/version").json()["ray_version"])
