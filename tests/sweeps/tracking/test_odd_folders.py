"""The MLflow view of a storage whose folder has a name with a meaning in addresses or in SQL."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pm25.cell import Cell
from pm25.splits import RandomSplit
from sweeps.bench.engine import trivial
from sweeps.store.records import Record, Store
from tests.odd_names import LISTED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.tracking._tracking_service import utils

    from sweeps.tracking import mlflow_internals
    from sweeps.tracking.connection import artifacts_uri
    from sweeps.tracking.mlflow_view import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PANEL: Any = SimpleNamespace(fingerprint="0123456789abcdef" * 4)


def stored(store: Store) -> Record:
    cell = Cell(variant="none", split=RandomSplit(), fold=0, seed=0)
    return trivial(cell, cell.key(PANEL.fingerprint), PANEL, store)


def check(folder: Path, tracker: Tracker) -> None:
    """Expect the predictions of the only run in the storage, and where MLflow finds them."""
    (run,) = (
        run
        for run in MlflowClient(tracker.uri).search_runs([tracker.experiment_id])
        if run.data.tags["kind"] == "cell"
    )
    found = MlflowClient(tracker.uri).list_artifacts(run.info.run_id)
    assert [item.path for item in found] == ["predictions.parquet"]
    assert len([*folder.glob("results/mlflow-artifacts/*/artifacts/predictions.parquet")]) == 1


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs, in a folder with all odd characters, which is the current folder too."""
    folder = tmp_path_factory.mktemp("schema") / 'it\'s "a:b" 50% #1 ?x=y&z; größe 😀 \\'
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        store = Store(str(folder / "results"), "toy")
        store.prepare()
        tracker = Tracker(store, None)
        tracker.sync([stored(store)])
    check(folder, tracker)
    assert [path.name for path in folder.iterdir()] == ["results"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    plain = tmp_path_factory.mktemp("plain")
    Tracker(Store(str(plain), "another"), None)
    return plain / "mlflow.db"


@pytest.mark.parametrize("name", LISTED)
def test_runs_and_their_files_are_in_the_storage(schema: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "results").mkdir(parents=True)
    shutil.copy(schema, folder / "results")
    store = Store(str(folder / "results"), "toy")
    store.prepare()
    tracker = Tracker(store, None)
    tracker.sync([stored(store)])
    check(folder, tracker)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_artifacts_of_a_bucket_keep_its_whole_path() -> None:
    found = artifacts_uri("s3://bucket/my results#2?region=x", "http://host:5000/")
    assert found is None
    found = artifacts_uri("s3://user:secret@bucket/my results#2?region=x", "postgresql://host/mlflow")
    assert found == "s3://bucket/my%20results%232/mlflow-artifacts"


def test_mlflow_reads_the_variable_of_the_artifacts() -> None:
    assert mlflow_internals.ARTIFACT_ROOT == utils._SERVER_ARTIFACT_ROOT_ENV_VAR
