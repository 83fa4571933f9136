"""Interfaces of MLflow that its public documentation does not describe, in one place.

All were run with MLflow 3.17.2. `test_mlflow_internals.py` checks them with the installed version.

- Tag `mlflow.experimentKind`. Without it, the UI opens an experiment in its mode for generative AI. Public
  alternative: none; users would choose the mode by hand.
- Tags `mlflow.sharedViewState.<id>`, which hold the saved views of the UI. Public alternative: none; users
  would save each view by hand with the button "Share".
- Parameters of the UI's addresses: `workflowType`, `viewStateShareKey`, `compareRunsMode`, and the address of
  the compare page. Public alternative: none; links could open only the list of all runs.
- Variable `_MLFLOW_SERVER_ARTIFACT_ROOT` of the environment. Public alternative: none. MLflow's experiment
  `Default` would have its artifacts below the current folder, whose path MLflow writes into SQL as it is.
- `get_artifact_repository`. Public alternative: `MlflowClient.log_artifact`, with one more request per file,
  which asks the server for the address of the run's artifacts.
- `http_request` and `get_default_host_creds`, which send one request with the user's password and TLS
  settings. Public alternative: `MlflowClient`, which retries for minutes and hides the server's answer.
- `ScriptDirectory` of MLflow's migrations, and `Base.metadata`, which name the revisions and the tables of a
  database. Public alternative: none; MLflow migrates a database, or adds its tables, when it opens it.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import requests
from alembic.script import ScriptDirectory
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db import utils
from mlflow.store.db.base_sql_model import Base
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of a new experiment, so that the UI opens it in its mode for model training."""

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
"""Variable of the environment: address of the artifacts of experiments that do not have their own."""

_MODE = "workflowType=machine_learning"
"""Parameter of an address that opens the UI in its mode for model training."""


@contextlib.contextmanager
def default_artifacts(artifacts: str | None) -> Iterator[None]:
    """Set the address of artifacts, if it is given, for a database that is created in the `with` block.

    The default is a path below the current folder, and MLflow cannot store a path with a quote or a colon.
    """
    before = os.environ.get(ARTIFACT_ROOT)
    if artifacts is not None and before is None:
        os.environ[ARTIFACT_ROOT] = artifacts
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ARTIFACT_ROOT, None)


def view_tag(view_id: str) -> str:
    """Name of the experiment's tag that holds a saved view."""
    return f"mlflow.sharedViewState.{view_id}"


def view_value(name: str, state: Mapping[str, Any]) -> str:
    """Value of the tag of a saved view, whose page state is `state` (`ui_views`)."""
    return json.dumps({"name": name, "createdAt": 0, "state": json.dumps(state)})


def runs_address(experiment_id: str) -> str:
    """Address of the list of runs, without the server."""
    return f"/#/experiments/{experiment_id}/runs?{_MODE}"


def view_address(experiment_id: str, view_id: str, mode: str) -> str:
    """Address of a saved view, without the server; `mode` is TABLE or CHART."""
    return f"{runs_address(experiment_id)}&viewStateShareKey={view_id}&compareRunsMode={mode}"


def compare_address(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Address of the page that compares runs, without the server; the UI needs `runs` as first parameter."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return f"/#/compare-runs?runs={runs}&experiments={experiments}&{_MODE}"


def upload_file(artifacts: str, path: str, tracking_uri: str) -> None:
    """Copy a file to the artifacts of a run, whose address is `artifacts`."""
    get_artifact_repository(artifacts, tracking_uri=tracking_uri).log_artifact(path)


def upload_folder(artifacts: str, folder: str, name: str, tracking_uri: str) -> None:
    """Copy the files of a folder to the folder `name` of a run's artifacts."""
    get_artifact_repository(artifacts, tracking_uri=tracking_uri).log_artifacts(folder, name)


def get(server: str, endpoint: str, query: Mapping[str, str], seconds: float) -> requests.Response:
    """Send one GET request to a server, without retries, and return its answer, whatever its status."""
    return http_request(
        get_default_host_creds(server),
        endpoint,
        "GET",
        max_retries=0,
        timeout=seconds,
        raise_on_status=False,
        params=query,
    )


def revisions() -> list[str]:
    """Revisions of the database schema that the installed MLflow knows, the newest first."""
    script = ScriptDirectory.from_config(utils._get_alembic_config(db_url=""))
    return [revision.revision for revision in script.walk_revisions()]


def tables() -> set[str]:
    """Names of the tables of the newest schema."""
    return {*Base.metadata.tables}
