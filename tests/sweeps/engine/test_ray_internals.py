"""Contract with Ray: the private names of `engine/ray_internals.py` exist and take the same arguments."""

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_service_pb2
from ray.dashboard.modules.job import job_supervisor
from ray.dashboard.modules.version import VersionResponse
from ray.job_submission import JobSubmissionClient
from ray.tune.execution.tune_controller import TrialRunnerWrapper, TuneController
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.utils.callback import _create_default_callbacks

from sweeps.engine import ray_internals


def changed(name: str) -> str:
    return f"Ray {ray.__version__} changed {name}: see engine/ray_internals.py"


@pytest.mark.parametrize("name", ray_internals.ENVIRONMENT)
def test_ray_reads_the_environment_variable(name: str) -> None:
    module = importlib.import_module(ray_internals.ENVIRONMENT[name].module)
    assert name in inspect.getsource(module), changed(name)


def test_ray_reads_how_long_a_stopped_job_may_take() -> None:
    assert ray_internals.JOB_STOP_WAIT in inspect.getsource(job_supervisor), changed(
        ray_internals.JOB_STOP_WAIT
    )


def test_a_submitted_job_is_known_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.runtime_env import constants

    assert not ray_internals.is_submitted_job()
    monkeypatch.setenv(constants.RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert ray_internals.is_submitted_job(), changed("RAY_JOB_CONFIG_JSON_ENV_VAR")


def test_variables_that_the_user_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for name in ray_internals.ENVIRONMENT.keys() - {"TUNE_MAX_PENDING_TRIALS_PG"}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    ray_internals.set_environment()
    found = {name: ray_internals.os.environ[name] for name in ray_internals.ENVIRONMENT}
    expected = {name: variable.value for name, variable in ray_internals.ENVIRONMENT.items()}
    assert found == expected | {"TUNE_MAX_PENDING_TRIALS_PG": "7"}
    assert ray_internals.os.environ["OMP_WAIT_POLICY"] == "passive"


def test_errors_that_ray_publishes_are_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray._private import worker

    name = "ray._private.worker.print_to_stdstream"
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages), changed(name)
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_internals.print_no_errors()
    worker.print_to_stdstream({"lines": ["dead"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")


def test_an_address_resolves() -> None:
    name = "ray._private.services.canonicalize_bootstrap_address"
    assert str(ray_internals.head_address("10.0.0.1:6379")) == "10.0.0.1:6379", changed(name)


def test_a_head_can_be_asked_for_its_version() -> None:
    head = ray_internals.Head("127.0.0.1:1")
    assert "ray_version" in gcs_service_pb2.CheckAliveReply.DESCRIPTOR.fields_by_name, changed(
        "CheckAliveReply in ray.core.generated.gcs_service_pb2"
    )
    with pytest.raises(grpc.RpcError) as raised:  # nobody listens there
        head.ray_version(timeout_s=5)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE, changed("ray._private.grpc_utils")


def test_draining_nodes_can_be_asked_for() -> None:
    asked = ray._private.state.state.get_draining_nodes
    assert not inspect.signature(asked).parameters, changed("ray._private.state.get_draining_nodes")


def test_the_controller_s_collections_of_trials() -> None:
    source = inspect.getsource(TuneController.__init__)
    for name in (*ray_internals.CONTROLLER_LISTS, *ray_internals.CONTROLLER_SETS):
        assert f"self.{name}" in source, changed(f"TuneController.{name}")
    wrapper = inspect.getsource(TrialRunnerWrapper.__init__)
    assert "self._tune_controller = tune_controller" in wrapper, changed("TrialRunnerWrapper")


def test_ended_trials_are_forgotten() -> None:
    trial, other = object(), object()
    controller = SimpleNamespace(_trials=[trial, other])
    for name in ray_internals.CONTROLLER_SETS:
        setattr(controller, name, {trial, other})
    ray_internals.forget_trials(SimpleNamespace(_tune_controller=controller), [trial])  # type: ignore[list-item]
    assert controller._trials == [other]
    assert all(getattr(controller, name) == {other} for name in ray_internals.CONTROLLER_SETS)


def test_no_reporter_takes_the_place_of_tune_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    given: dict[str, Any] = {"air_verbosity": None, "metric": "ended"}
    default = _create_default_callbacks([], **given)
    assert [type(one) for one in default] == [TrialProgressCallback], changed("_create_default_callbacks")
    own = ray_internals.NoReporter()
    assert _create_default_callbacks([own], **given) == [own], changed("TrialProgressCallback")
    for method in ("log_result", "on_trial_complete"):
        assert hasattr(TrialProgressCallback, method), changed(f"TrialProgressCallback.{method}")


def test_a_trial_s_error_is_in_a_file() -> None:
    assert isinstance(getattr(Trial, "pickled_error_file", None), property), changed(
        "Trial.pickled_error_file"
    )
    assert ray_internals.trial_error(SimpleNamespace(pickled_error_file=None)) is None  # type: ignore[arg-type]


def test_every_request_of_the_job_client_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = inspect.signature(JobSubmissionClient._do_request).parameters
    assert [*asked][:3] == ["self", "method", "endpoint"], changed("JobSubmissionClient._do_request")
    assert inspect.Parameter.VAR_KEYWORD in {p.kind for p in asked.values()}, changed(
        "JobSubmissionClient._do_request"
    )
    assert "ray_version" in inspect.signature(VersionResponse).parameters, changed("/api/version")
    seen = []
    monkeypatch.setattr(
        "requests.request",
        lambda *given, **more: (
            seen.append(more["timeout"])
            or SimpleNamespace(status_code=200, text="", json=lambda: {"ray_version": "9.9", "version": "4"})
        ),
    )
    client = ray_internals.JobClient.__new__(ray_internals.JobClient)
    client._timeout_s = (1.0, 2.0)
    client._address, client._cookies, client._headers, client._verify = "http://head:8265", {}, {}, True
    assert client.ray_version() == "9.9"
    assert seen == [(1.0, 2.0)]


def test_ray_s_own_address_is_the_loopback_address_for_the_moment() -> None:
    from ray._private import services

    outside = services.get_node_ip_address()
    with ray_internals.loopback_only():
        assert services.get_node_ip_address() == "127.0.0.1", changed("ray_constants.ENABLE_RAY_CLUSTER")
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    assert services.get_node_ip_address() == outside
    assert "ENABLE_RAY_CLUSTERS_ENV_VAR" in inspect.getsource(ray._private.ray_constants)
