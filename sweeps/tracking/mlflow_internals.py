"""Interfaces of MLflow that its public documentation does not describe, in one place.

All were run with MLflow 3.17.2. `test_mlflow_internals.py` checks them with the installed version.

- Tag `mlflow.experimentKind`. Without it, the UI opens an experiment in its mode for generative AI. Public
  alternative: none; users would choose the mode by hand.
- Tags `mlflow.sharedViewState.<id>`, which hold the saved views of the UI. Public alternative: none; users
  would save each view by hand with the button "Share".
- Parameters of the UI's addresses: `workflowType`, `viewStateShareKey`, `compareRunsMode`, and the address of
  the compare page. Public alternative: none; links could open only the list of all runs.
- `get_artifact_repository`. Public alternative: `MlflowClient.log_artifact`, with one more request per file,
  which asks the server for the address of the run's artifacts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of a new experiment, so that the UI opens it in its mode for model training."""

_MODE = "workflowType=machine_learning"
"""Parameter of an address that opens the UI in its mode for model training."""


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
