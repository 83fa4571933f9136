"""Contract with MLflow: undocumented interfaces that the installed version must still have."""

import json
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow
    from mlflow import MlflowClient

    from sweeps.tracking import mlflow_internals
    from sweeps.tracking.ui_views import pages

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def ui() -> str:
    """Source of MLflow's UI, as the package contains it."""
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.js")))


def keys(value: object) -> set[str]:
    """Keys of nested dictionaries."""
    if isinstance(value, dict):
        return {*value, *(key for item in value.values() for key in keys(item))}
    if isinstance(value, list):
        return {key for item in value for key in keys(item)}
    return set()


def test_the_ui_reads_the_experiment_kind(ui: str) -> None:
    for name, value in mlflow_internals.EXPERIMENT_TAGS.items():
        assert name in ui
        assert value in ui


def test_the_ui_reads_saved_views_from_tags(ui: str) -> None:
    assert mlflow_internals.view_tag("").rstrip(".") in ui


def test_the_ui_knows_every_key_of_a_view(ui: str) -> None:
    for page in pages().values():
        envelope = json.loads(mlflow_internals.view_value(page.name, page.state))
        assert {*envelope} == {"name", "createdAt", "state"}
        state = {**page.state, "columnWidths": None}  # its keys are the columns of the view
        assert {key for key in keys(state) if key not in ui} == set()


def test_the_ui_reads_the_parameters_of_our_addresses(ui: str) -> None:
    view = mlflow_internals.view_address("7", "arms", "CHART")
    compare = mlflow_internals.compare_address("7", ["a", "b"])
    assert view == (
        "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=arms&compareRunsMode=CHART"
    )
    assert compare.startswith("/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=")
    for name in ("workflowType", "viewStateShareKey", "compareRunsMode", "compare-runs", "machine_learning"):
        assert name in ui


def test_files_arrive_where_the_public_client_finds_them(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("toy", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    (tmp_path / "figures").mkdir()
    file = tmp_path / "figures" / "a.txt"
    file.write_text("content")
    mlflow_internals.upload_file(run.info.artifact_uri, str(file), uri)
    mlflow_internals.upload_folder(run.info.artifact_uri, str(file.parent), "figures", uri)
    assert {found.path for found in client.list_artifacts(run.info.run_id)} == {"a.txt", "figures"}
    assert [found.path for found in client.list_artifacts(run.info.run_id, "figures")] == ["figures/a.txt"]
