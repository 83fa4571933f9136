"""Models in MLflow's registry: one per arm, whose versions are the winners so far."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient, pyfunc
from mlflow.entities import Run
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

import pm25
from pm25.intervals import OUTPUTS, Calibration
from pm25.scratch import scratch
from sweeps.engine.worker import WEIGHTS
from sweeps.tracking.mlflow_internals import upload_folder
from sweeps.tracking.winners import requirements

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.tracking.winners import Winner


def find_version(client: MlflowClient, name: str, winner: "Winner") -> str | None:
    """Find the version of this very training and calibration of intervals, and bring its card up to date."""
    wanted = _identity(winner)
    for version in client.search_model_versions(f"name = '{name}'"):
        if wanted.items() <= version.tags.items():
            if version.description != winner.card:
                client.update_model_version(name, version.version, winner.card)
            return str(version.version)
    return None


def create_version(
    client: MlflowClient, name: str, winner: "Winner", run: Run, example: "pd.DataFrame", tracking_uri: str
) -> str:
    """Upload the winner's model to its run, and register it as a new version; return the version."""
    with scratch() as folder:
        _save_model(folder, winner, example)
        upload_folder(run.info.artifact_uri, f"{folder}/model", "model", tracking_uri)
    tags = {**winner.tags, **_identity(winner)}
    source = f"{run.info.artifact_uri}/model"
    made = client.create_model_version(name, source, run.info.run_id, tags, description=winner.card)
    return str(made.version)


def create_model(client: MlflowClient, name: str, description: str) -> None:
    """Register a model without versions, unless it exists."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=description)


def set_winner(client: MlflowClient, name: str, version: str) -> None:
    """Move the alias `winner` to a version."""
    if str(client.get_registered_model(name).aliases.get("winner")) != version:
        client.set_registered_model_alias(name, "winner", version)


def _identity(winner: "Winner") -> dict[str, str]:
    """Return the tags that tell a version from the others: its cell, its weights and its intervals."""
    contents = {
        "weights": winner.store.read_file(winner.key, WEIGHTS) or b"",
        "intervals": winner.intervals.encode(),
    }
    return {"key": winner.key} | {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }


def _save_model(folder: Path, winner: "Winner", example: "pd.DataFrame") -> None:
    """Write `folder/model`: the weights, the code that reads them, and its requirements."""
    winner.write(folder / "training")
    kinds = {kind: DataType[kind] for kind in ("double", "long", "string")}
    kinds["array"] = Array(DataType.double)
    inputs = [ColSpec(kinds[kind], column) for column, kind in winner.inputs.items()]
    names = OUTPUTS if Calibration.from_json(winner.intervals).radii else OUTPUTS[:1]
    outputs = [ColSpec(DataType.float, name) for name in names]
    pyfunc.save_model(
        str(folder / "model"),
        loader_module="pm25.predictor",
        data_path=str(folder / "training"),
        code_paths=[str(Path(pm25.__file__).parent)],
        pip_requirements=requirements(),
        signature=ModelSignature(Schema(inputs), Schema(outputs)),
        input_example=example,
    )
