"""mlflow/serve.sh on PostgreSQL: who may in, a study that logs through it, its backup and its restoration."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from pm25.cell import Cell
from pm25.splits import RandomSplit
from sweeps.bench.engine import trivial
from sweeps.engine import worker
from sweeps.store.records import Store
from sweeps.tracking.mlflow_view import Tracker
from sweeps.tracking.process import TrackingProcess
from tests import worlds
from tests.errors import refuses
from tests.processes import listening

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server")]  # its tests share a server

FOLDER = Path(__file__).parents[3] / "mlflow"
ADMIN = ("admin", "a password for the tests' 100%")


def settings(**values: str) -> dict[str, str]:
    """The environment of a script: this one's, less what a developer may have set, with the venv's mlflow."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**clean, "PATH": path, **values}


class Server:
    """serve.sh, up and healthy."""

    def __init__(self, database: str, state: Path, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = settings(
            MLFLOW_BACKEND_STORE_URI=database,
            MLFLOW_STATE=str(state),
            MLFLOW_PORT=str(self.port),
            MLFLOW_WORKERS="1",
            MLFLOW_AUTH_ADMIN_PASSWORD=ADMIN[1],
            MLFLOW_FLASK_SERVER_SECRET_KEY="for the tests",
        )
        self.log = state.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [FOLDER / "serve.sh"], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            try:
                if requests.get(f"{self.url}/health", timeout=5).text == "OK":
                    return
            except requests.ConnectionError:
                time.sleep(0.1)
        raise RuntimeError("no health within two minutes: " + self.log.read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def lose_terminal(self) -> None:
        """Send all its processes the signal of a terminal that is closed."""
        os.killpg(self.process.pid, signal.SIGHUP)
        self.process.wait(60)

    def ask(self, call: str, **body: Any) -> Any:
        answer = requests.post(f"{self.url}/api/2.0/mlflow/{call}", json=body, auth=ADMIN, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def runs(self) -> list[dict[str, Any]]:
        """Every run of every experiment, with its params, tags and metrics."""
        found = self.ask("experiments/search", max_results=100)["experiments"]
        ids = [experiment["experiment_id"] for experiment in found]
        runs = self.ask("runs/search", experiment_ids=ids).get("runs", [])
        return sorted(runs, key=lambda run: run["info"]["run_id"])


@pytest.fixture(scope="module")
def server(
    postgres: Any, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    started = Server(postgres.create(), tmp_path_factory.mktemp("server") / "state", free_port())
    yield started
    started.stop()


def authenticate(monkeypatch: pytest.MonkeyPatch, password: str | None = ADMIN[1]) -> None:
    """Set the variables from which MLflow takes a user and a password; neither without a password."""
    for name, value in (("USERNAME", ADMIN[0]), ("PASSWORD", password)):
        if password is None:
            monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
        else:
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", str(value))


def test_a_trial_logs_through_it_and_only_with_a_password(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, panel = Store(str(tmp_path), "toy"), worlds.synthetic_panel()
    cell = worlds.tiny_cell("none")
    key = cell.key(panel.fingerprint)
    authenticate(monkeypatch)
    with TrackingProcess(store, server.url, []) as process:
        process.add(worker.train_and_record(cell, key, panel, store))
    assert process.behind == ""
    runs = server.runs()
    found = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
    ended = [
        (tags["kind"], tags.get("key"), run["info"]["status"]) for tags, run in zip(found, runs, strict=True)
    ]
    assert sorted(ended) == [("arm", None, "RUNNING"), ("cell", key, "FINISHED")]  # the arm is never compared

    for password in (None, "another password"):
        authenticate(monkeypatch, password)
        with refuses("tracking", "", server.url, "MLFLOW_TRACKING_PASSWORD"):
            Tracker(store, server.url)
    assert server.runs() == runs


def test_many_cells_at_once_are_the_first_of_their_data_set(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL two requests that both add a data set would collide."""
    authenticate(monkeypatch)
    store, panel = Store(str(tmp_path), "many"), SimpleNamespace(fingerprint="0123456789abcdef")
    cells = [Cell(variant="none", split=RandomSplit(), fold=0, seed=seed) for seed in range(16)]
    records = [trivial(cell, cell.key(panel.fingerprint), panel, store) for cell in cells]  # type: ignore[arg-type]
    data = {"name": "panel", "source": {"uri": "panel.parquet"}, "schema": {}, "profile": {}}
    before = len(server.runs())
    assert Tracker(store, server.url, data).sync(records) == 16
    inputs = [run["inputs"]["dataset_inputs"] for run in server.runs() if run.get("inputs")]
    assert len(server.runs()) == before + 16 + 1  # and their parent
    assert sum(found[0]["dataset"]["name"] == "panel" for found in inputs if found) == 16


def test_a_stranger_is_refused(server: Server) -> None:
    for path in (
        "/",
        "/version",
        "/api/2.0/mlflow/experiments/search",
        "/api/2.0/mlflow-artifacts/artifacts",
    ):
        assert requests.get(server.url + path, timeout=10).status_code == 401, path
    assert requests.get(server.url, auth=("admin", "password1234"), timeout=10).status_code == 401
    assert requests.get(server.url, auth=ADMIN, timeout=10).status_code == 200


def test_only_health_and_the_pages_files_are_open_to_a_stranger(server: Server) -> None:
    """Every route of MLflow is asked without a password, those of the pages (ajax) and of artifacts too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's code about itself
        from mlflow.server import app
        from mlflow.server.fastapi_app import create_fastapi_app

        native = create_fastapi_app(app).openapi()["paths"]
    routes = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    routes |= {(method.upper(), path) for path, methods in native.items() for method in methods}
    routes |= {("GET", path) for path in ("/metrics", "/docs", "/openapi.json", "/signup", "/account")}
    assert len(routes) > 500
    answered = set()
    with requests.Session() as stranger:
        for method, path in routes:
            address = server.url + re.sub(r"<[^>]+>|\{[^}]+\}", "1", path)
            if method not in ("HEAD", "OPTIONS"):
                answer = stranger.request(method, address, allow_redirects=False, timeout=10)
                answered |= {path} if answer.status_code != 401 else set()
    info = "/3.0/mlflow/server-info"
    assert answered <= {"/health", "/static-files/<path:path>", f"/api{info}", f"/ajax-api{info}"}
    shown = requests.get(f"{server.url}/api{info}", timeout=10).text
    assert ADMIN[1] not in shown
    assert server.environment["MLFLOW_BACKEND_STORE_URI"] not in shown
    assert set.union(*listening(server.process.pid).values()) == {"127.0.0.1"}


def test_an_unknown_host_is_refused(server: Server) -> None:
    for host, status in {"mlflow.example.org": 403, f"localhost:{server.port}": 200}.items():
        answer = requests.get(server.url, headers={"Host": host}, auth=ADMIN, timeout=10)
        assert answer.status_code == status, host


def test_its_files_are_its_owners(server: Server) -> None:
    state = Path(server.environment["MLFLOW_STATE"])
    for path in (state, *state.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert ADMIN[1] not in (state / "basic_auth.ini").read_text()


def test_a_user_reads_everything_and_writes_what_is_theirs_or_granted(server: Server) -> None:
    ana = ("ana", "twelve or more")
    server.ask("users/create", username=ana[0], password=ana[1])
    others = server.ask("experiments/create", name="the administrator's")["experiment_id"]

    def as_ana(call: str, **body: Any) -> requests.Response:
        return requests.post(f"{server.url}/api/2.0/mlflow/{call}", json=body, auth=ana, timeout=10)

    assert as_ana("runs/search", experiment_ids=[others]).status_code == 200
    assert as_ana("runs/create", experiment_id=others).status_code == 403
    hers = as_ana("experiments/create", name="ana's").json()["experiment_id"]
    assert as_ana("runs/create", experiment_id=hers).status_code == 200

    granted = requests.post(
        f"{server.url}/api/3.0/mlflow/users/permissions/grant",
        json={"username": "ana", "resource_type": "experiment", "resource_id": others, "permission": "EDIT"},
        auth=ADMIN,
        timeout=10,
    )
    assert granted.status_code == 200
    assert as_ana("runs/create", experiment_id=others).status_code == 200


def run_script(
    postgres: Any, name: str, *arguments: str | Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    path = f"{postgres.bin}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        [FOLDER / name, *arguments], env={**environment, "PATH": path}, capture_output=True, text=True
    )


def test_a_backup_is_restored_into_an_empty_database(
    server: Server, postgres: Any, free_port: Callable[[], int], tmp_path: Path
) -> None:
    experiment = server.ask("experiments/create", name="backed up")["experiment_id"]
    run = server.ask("runs/create", experiment_id=experiment, tags=[{"key": "seed", "value": "3"}])["run"]
    server.ask("runs/log-metric", run_id=run["info"]["run_id"], key="rmse", value=4.5, timestamp=1, step=7)
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run['info']['run_id']}/artifacts/note.txt"
    requests.put(server.url + artifact, data=b"kept", auth=ADMIN, timeout=10).raise_for_status()
    before = server.runs()

    def script(name: str, folder: Path, **other: str) -> "subprocess.CompletedProcess[str]":
        return run_script(postgres, name, folder, **{**server.environment, **other})

    kept = script("backup.sh", tmp_path)
    assert kept.returncode == 0, kept.stderr
    (backup,) = tmp_path.iterdir()
    assert kept.stdout == f"{backup}\n"
    assert {path.name for path in backup.iterdir()} == {"database.dump", "artifacts.tar", "SHA256SUMS"}
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700

    refused = script("restore.sh", backup)  # over the server that it is of
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "only an empty one is restored into" in refused.stderr

    elsewhere = {"MLFLOW_BACKEND_STORE_URI": postgres.create(), "MLFLOW_STATE": str(tmp_path / "state")}
    restored = script("restore.sh", backup, **elsewhere)
    assert restored.returncode == 0, restored.stderr
    again = Server(elsewhere["MLFLOW_BACKEND_STORE_URI"], tmp_path / "state", free_port())
    try:
        assert again.runs() == before
        assert requests.get(again.url + artifact, auth=ADMIN, timeout=10).content == b"kept"
    finally:
        again.lose_terminal()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{again.url}/health", timeout=5)

    (backup / "artifacts.tar").write_bytes(b"damaged")
    damaged = script("restore.sh", backup, MLFLOW_STATE=str(tmp_path / "third"))
    assert damaged.returncode == 2
    assert not (tmp_path / "third").exists()


DOCKER = """#!/usr/bin/env bash
set -euo pipefail
[[ "$1 $2 $3" == "compose --file "*/compose.yaml ]]
case "${*:4}" in
    "exec -T postgres "*) shift 6 ;;
    "run --rm --no-deps -T --entrypoint "*) set -- "${@:9:1}" "${@:11}" ;;
esac
exec "$@"
"""
"""Runs what compose.yaml's services are asked for, here."""


def test_a_backup_of_the_containers_asks_the_containers(postgres: Any, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    (artifacts / "note.txt").write_text("kept")
    environment = settings(
        PGHOST="127.0.0.1",
        PGPORT=str(postgres.port),
        PGPASSWORD=postgres.password,
        MLFLOW_ARTIFACTS_DESTINATION=str(artifacts),
    )
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    postgres.sql("postgres", "create database mlflow")
    postgres.sql("mlflow", "create table runs as select 7 as seed")
    (tmp_path / "backups").mkdir()

    kept = run_script(postgres, "backup.sh", "--compose", tmp_path / "backups", **environment)
    assert kept.returncode == 0, kept.stderr
    refused = run_script(postgres, "restore.sh", "--compose", kept.stdout.strip(), **environment)
    assert refused.returncode == 2
    assert "the database holds 1 tables" in refused.stderr

    postgres.sql("mlflow", "drop table runs")
    refused = run_script(postgres, "restore.sh", "--compose", kept.stdout.strip(), **environment)
    assert refused.returncode == 2
    assert f"{artifacts} is not empty" in refused.stderr

    (artifacts / "note.txt").unlink()
    restored = run_script(postgres, "restore.sh", "--compose", kept.stdout.strip(), **environment)
    assert restored.returncode == 0, restored.stderr
    assert postgres.sql("mlflow", "select seed from runs") == "7"
    assert (artifacts / "note.txt").read_text() == "kept"
