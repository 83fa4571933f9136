"""Every private name of Ray that the project uses, each behind one function.

Each function says why it exists and which public alternative there is. `tests/sweeps/engine/
test_ray_internals.py` checks all of them against the installed Ray without starting a cluster; it passes on
Ray 2.54 and 2.60. Complete runs are tested on 2.60.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ray
import requests
from ray import cloudpickle
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.job_submission import JobSubmissionClient
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback

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

FORWARDED = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""Variable of `ENVIRONMENT` that the workers of a joined cluster need as well."""

JOB_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of a job's environment: seconds between asking its driver to end and killing it.

Not documented, no public alternative. Ray's default of 3 s is too short for a driver that closes its views.
"""

_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def set_environment() -> None:
    """Set the variables of `ENVIRONMENT` that the user has not set."""
    for name, variable in ENVIRONMENT.items():
        os.environ.setdefault(name, variable.value)


def is_submitted_job() -> bool:
    """Return whether this process is the driver of a submitted job, whose code the job has brought.

    Public alternative: none; `ray.get_runtime_context().get_job_id()` does not say how a job was started.
    """
    return _IN_A_JOB in os.environ


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
