"""The MLflow view in a real database: content of runs, and what `sync` repairs."""

import json
import math
import shutil
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.intervals import Calibration, Radius
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps.bench.engine import trivial
from sweeps.store.fencing import LockLost
from sweeps.store.lock import StudyLock
from sweeps.store.records import Record, Store, default_tracking
from tests.errors import refuses
from tests.sweeps.store.test_lock import take_over

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from sweeps.tracking import mlflow_view
    from sweeps.tracking.connection import Unreachable, artifacts_uri
    from sweeps.tracking.mlflow_view import Tracker
    from sweeps.tracking.run_content import milliseconds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PANEL: Any = SimpleNamespace(fingerprint="0123456789abcdef" * 4)
DATA = {
    "name": "panel.parquet",
    "source": {"uri": "/data/panel.parquet"},
    "schema": {"mlflow_colspec": [{"name": "elev_m", "type": "float"}]},
    "profile": {"num_rows": 12, "sites": 3, "days": 4},
}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without an experiment of ours; its migrations take seconds."""
    folder = tmp_path_factory.mktemp("schema")
    Tracker(Store(str(folder), "another"), None)
    return folder / "mlflow.db"


@pytest.fixture
def store(schema: Path, tmp_path: Path) -> Store:
    shutil.copy(schema, tmp_path)
    made = Store(str(tmp_path), "toy")
    made.prepare()
    return made


@pytest.fixture
def client(store: Store) -> MlflowClient:
    return MlflowClient(default_tracking(store.storage))


@pytest.fixture
def runs(client: MlflowClient) -> Callable[..., list[Run]]:
    """The study's runs, of one kind."""

    def found(kind: str = "cell") -> list[Run]:
        experiment = client.get_experiment_by_name("toy")
        return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'"))

    return found


def opened(store: Store) -> Tracker:
    return Tracker(store, None, DATA)


def stored(store: Store, seed: int = 0, **changes: Any) -> Record:
    """A finished cell."""
    cell = Cell(**{"variant": "none", "split": RandomSplit(), "fold": 0, "seed": seed} | changes)
    more = {"commit": "abc123", "dirty": True}
    return trivial(cell, cell.key(PANEL.fingerprint), PANEL, store, more=more)


def failed(store: Store, seed: int = 0) -> Record:
    record = {name: value for name, value in stored(store, seed).items() if name != "metrics"}
    error = {"type": "Diverged", "message": "loss is nan", "traceback": "Traceback: line 1"}
    record |= {"state": "failed", "error": error}
    store.write_record(record)
    return record


def trial(number: int, **changes: Any) -> Record:
    return {
        "key": f"trial-{number}",
        "kind": "trial",
        "state": "done",
        "arm": "geoclip-hadamard",
        "number": number,
        "params": {"train.learning_rate": 0.001},
        "data": "f",
        "numerics": 1,
        "started": "2026-01-01T00:00:00.000+00:00",
        "ended": f"2026-01-01T00:00:0{number}.000+00:00",
        "scores": {"wr": {"rmse": 5.0}},
        "epochs": 2,
        "seconds": 1.0,
        "reported": [6.0, 5.0],
        **changes,
    }


def test_a_cell_is_written_completely(store: Store, runs: Any, client: MlflowClient, tmp_path: Path) -> None:
    split = CheckerboardSplit(degrees=16)
    record = stored(store, variant="geoclip", fusion="hadamard", split=split, fold=1)
    record["encoder"] = "e" * 64
    assert opened(store).sync([record]) == 1
    (run,), (parent,) = runs(), runs("arm")
    assert (run.info.status, parent.info.status) == ("FINISHED", "RUNNING")
    assert run.info.end_time - run.info.start_time >= 0
    tags = {
        "kind": "cell",
        "key": record["key"],
        "arm": "GeoCLIP · Hadamard",
        "variant": "geoclip",
        "fusion": "hadamard",
        "split": "checkerboard-16",
        "regime": "OoR",
        "fold": "1",
        "seed": "0",
        "data": PANEL.fingerprint,
        "encoder": "e" * 64,
        "numerics": str(record["numerics"]),
        "commit": "abc123",
        "dirty": "true",
        "mlflow.source.git.commit": "abc123",
        "host": record["host"],
        "device": "none",
        "mlflow.parentRunId": parent.info.run_id,
    }
    assert {name: run.data.tags.get(name) for name in tags} == tags
    assert run.data.params["train.learning_rate"] == "0.001"
    assert run.data.metrics["test_rmse"] == record["metrics"]["test_rmse"]
    curve = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.0)]

    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("panel.parquet", PANEL.fingerprint[:36])
    assert json.loads(used.dataset.source) == DATA["source"]
    assert json.loads(used.dataset.profile) == DATA["profile"]
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    (artifact,) = client.list_artifacts(run.info.run_id)
    assert artifact.path == "predictions.parquet"
    copied = Path(client.download_artifacts(run.info.run_id, artifact.path, str(tmp_path)))
    assert copied.read_bytes() == store.read_file(record["key"], "predictions.parquet")

    assert parent.info.run_name == "GeoCLIP · Hadamard | checkerboard-16"
    of_parent = {"kind": "arm", "variant": "geoclip", "fusion": "hadamard", "regime": "OoR"}
    assert {name: parent.data.tags[name] for name in of_parent} == of_parent
    assert parent.data.params["variant"] == "geoclip"


def test_predictions_that_cannot_be_linked_are_copied(
    store: Store, runs: Any, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: Path) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(mlflow_view.os, "link", link)
    opened(store).sync([stored(store)])
    assert [artifact.path for artifact in client.list_artifacts(runs()[0].info.run_id)] == [
        "predictions.parquet"
    ]


def test_a_failure_is_a_run_with_its_traceback(store: Store, runs: Any) -> None:
    opened(store).sync([failed(store)])
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "Diverged: loss is nan"
    assert "Traceback: line 1" in run.data.tags["mlflow.note.content"]
    assert not run.data.metrics


def test_trials_have_their_search_as_parent(store: Store, runs: Any, client: MlflowClient) -> None:
    records = [trial(1), trial(2, state="pruned", scores={})]
    for record in records:
        store.search.write_record(record)
    tracker = opened(store)
    tracker.sync(records)
    (parent,) = runs("search")
    assert parent.info.run_name == "GeoCLIP · Hadamard | search"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs("trial")} == {parent.info.run_id}
    tracker.answer({("GeoCLIP · Hadamard", None): {"n": 2.0, "n_failed": 0.0, "n_expected": 2.0}})
    (parent,) = runs("search")
    assert parent.info.status == "FINISHED"
    assert parent.info.end_time == milliseconds(records[1]["ended"])


def test_aggregates_are_written_to_the_parents(store: Store, runs: Any, client: MlflowClient) -> None:
    record, second = stored(store, 0), stored(store, 1)
    tracker = opened(store)
    tracker.sync([record])
    waiting = {"n": 0.0, "n_failed": 0.0, "n_expected": 2.0}
    tracker.answer({("none", "random"): waiting})
    assert runs("arm")[0].data.metrics == {}  # the compare page opens on the metric that was written first
    some = {"eval_rmse": 5.0, "wr_rmse_mean": 5.0, "diff_rmse": -1.0, **waiting, "n": 1.0}
    words = {"estimand": "other days at these monitors", "verdict": "better"}
    tracker.answer({("none", "random"): some | words, ("lat/lon", "random"): some})
    (parent,) = runs("arm")
    assert parent.info.status == "RUNNING"
    assert parent.data.metrics == some
    assert {name: parent.data.tags.get(name) for name in words} == words
    with sqlite3.connect(Path(store.storage) / "mlflow.db") as database:
        query = "select key from latest_metrics where run_uuid = ? order by rowid limit 1"
        ((first,),) = database.execute(query, (parent.info.run_id,))
    assert first == "eval_rmse"

    tracker.write([second])
    more = {"eval_rmse": 4.0, "wr_rmse_mean": 4.0, "n": 2.0, "n_failed": 0.0, "n_expected": 2.0}
    for again in (tracker, opened(store)):
        again.sync([record, second])
        again.answer({("none", "random"): more | {"verdict": "worse"}})
        again.show({"forest.png": b"png"})
        (parent,) = runs("arm")
        assert (parent.info.status, parent.info.end_time) == (
            "FINISHED",
            max(milliseconds(one["ended"]) for one in (record, second)),
        )
        assert parent.data.tags["verdict"] == "worse"
        assert math.isnan(parent.data.metrics.pop("diff_rmse"))
        assert parent.data.metrics == more
        history = client.get_metric_history(parent.info.run_id, "wr_rmse_mean")
        assert [(point.step, point.value) for point in history] == [(0, 5.0), (0, 4.0)]
    shown = [artifact.path for artifact in client.list_artifacts(parent.info.run_id, "figures")]
    assert shown == ["figures/forest.png"]

    tracker.answer({("none", "random"): more | {"n_expected": 3.0}})  # a seed is added
    assert runs("arm")[0].info.status == "RUNNING"


def test_a_second_sync_finds_nothing_to_do(
    store: Store, runs: Any, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [stored(store, seed) for seed in range(3)] + [failed(store, 3)]
    assert opened(store).sync(records) == 4
    before = runs(), runs("arm")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something is written")

    for name in ("create_run", "log_batch", "set_tag", "set_terminated", "delete_run", "update_run"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    assert opened(store).sync(records) == 0
    after = runs(), runs("arm")
    assert [[run.to_dictionary() for run in side] for side in before] == [
        [run.to_dictionary() for run in side] for side in after
    ]


def test_sync_repairs_what_a_killed_writer_left(store: Store, runs: Any, client: MlflowClient) -> None:
    records = [stored(store, seed) for seed in range(4)]
    opened(store).sync(records)
    experiment = client.get_experiment_by_name("toy").experiment_id
    by_key = {run.data.tags["key"]: run for run in runs()}
    twice, moved, zombie, old = (by_key[record["key"]] for record in records)

    def copy(run: Run, **changes: str) -> None:
        tags = {name: value for name, value in run.data.tags.items() if name != "mlflow.runName"} | changes
        made = client.create_run(experiment, run.info.start_time + 1, tags, run.info.run_name)
        if changes.get("kind") != "arm":
            client.set_terminated(made.info.run_id, run.info.status, run.info.end_time)

    copy(twice)
    client.set_tag(moved.info.run_id, "mlflow.parentRunId", "f" * 32)
    client.update_run(zombie.info.run_id, "RUNNING")
    client.set_tag(old.info.run_id, "view", "1")
    copy(twice, key="gone")
    (parent,) = runs("arm")
    copy(parent, kind="arm")  # the parent twice, one of another arm without runs
    copy(parent, kind="arm", arm="lat/lon")

    tracker = opened(store)
    assert tracker.sync(records) == 2
    (left,) = runs("arm")
    assert left.info.run_id == parent.info.run_id
    found = runs()
    assert sorted(run.data.tags["key"] for run in found) == sorted(record["key"] for record in records)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {parent.info.run_id}
    assert {twice.info.run_id, moved.info.run_id} & {run.info.run_id for run in found}
    assert zombie.info.run_id not in {run.info.run_id for run in found}
    assert tracker.sync(records) == 0


def test_a_forgotten_cell_and_its_parent_are_removed(store: Store, runs: Any) -> None:
    records = [stored(store), stored(store, variant="latlon")]
    opened(store).sync(records)
    store.forget(records[1]["key"])
    opened(store).sync(records[:1])
    assert [run.data.tags["variant"] for run in runs()] == ["none"]
    assert [run.data.tags["variant"] for run in runs("arm")] == ["none"]


def test_nothing_is_written_for_a_driver_that_has_lost_the_study(store: Store, runs: Any) -> None:
    records = [stored(store, seed) for seed in range(3)]
    with refuses(kind=LockLost), StudyLock(store) as own:
        tracker = opened(own.store)
        tracker.sync(records[:1])
        before = [run.to_dictionary() for kind in ("cell", "arm") for run in runs(kind)]
        take_over(Path(store.storage) / "toy" / "driver.json")
        for write in (
            lambda: tracker.write(records[1:]),
            lambda: tracker.sync(records),
            lambda: tracker.describe("RMSE 5"),
            lambda: tracker.answer({("none", "random"): {"n": 1.0, "n_failed": 0.0, "n_expected": 1.0}}),
            lambda: opened(own.store),
        ):
            with refuses("driver.json", "", "process 1 on host node7", kind=LockLost):
                write()
        assert [run.to_dictionary() for kind in ("cell", "arm") for run in runs(kind)] == before


def test_pages_are_saved_and_linked(store: Store, runs: Any, client: MlflowClient) -> None:
    tracker = opened(store)
    tracker.sync([stored(store), stored(store, variant="latlon")])
    tracker.answer({})
    tags = client.get_experiment_by_name("toy").tags
    saved = {name: json.loads(text) for name, text in tags.items() if name.startswith("mlflow.sharedView")}
    assert len(saved) == 2
    assert all(len(text) < 5000 for text in tags.values()), "the longest that MLflow takes"
    for view in saved.values():
        assert json.loads(view["state"])["searchFilter"] == "tags.kind = 'arm'"
    columns = json.loads(saved["mlflow.sharedViewState.arms-by-split"]["state"])["selectedColumns"]
    assert {"tags.`estimand`", "tags.`verdict`", "metrics.`diff_rmse`"} <= {*columns}
    links = opened(store).links()
    assert [*links] == [
        *("Arms, grouped by split", "WR and OoR of every arm"),
        *("Arms side by side on random", "Every run"),
    ]
    compared = parse_qs(links["Arms side by side on random"].partition("?")[2])
    assert set(json.loads(compared["runs"][0])) == {run.info.run_id for run in runs("arm")}
    assert "viewStateShareKey=arms-by-split" in unquote(links["Arms, grouped by split"])


def test_a_deleted_experiment_comes_back(store: Store, runs: Any, client: MlflowClient) -> None:
    tracker = opened(store)
    client.delete_experiment(tracker.experiment_id)
    assert opened(store).sync([stored(store)]) == 1
    assert len(runs()) == 1


@pytest.fixture
def closed_server() -> Iterator[str]:
    """A server that knows nobody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"You are not authenticated.")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_refused_user_is_told_what_to_set(store: Store, closed_server: str) -> None:
    variables = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
    with refuses("tracking", "", closed_server, *variables) as found:
        Tracker(store, closed_server)
    assert not isinstance(found.value, Unreachable)


def test_a_server_that_is_down_may_answer_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with refuses("tracking", "", "http://127.0.0.1:9", kind=Unreachable):
        Tracker(store, "http://127.0.0.1:9")


@pytest.mark.filterwarnings("ignore:no prediction intervals")
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what MLflow's models warn of
def test_a_winner_is_registered_once(store: Store, client: MlflowClient) -> None:
    from mlflow import pyfunc

    from sweeps.engine import worker
    from sweeps.state import StudyState
    from sweeps.tracking import winners

    study = {
        "study": "toy",
        "storage": store.storage,
        "keep_weights": True,
        "data": {"synthetic": {"sites": 12, "days": 40}},
        "design": {"variant": ["none"], "split": [{"kind": "random", "folds": 2, "fold": 0}], "seed": [0, 1]},
        "model": {"width": 4, "depth": 1, "attention_units": 4},
        "train": {"max_epochs": 1},
    }
    file = Path(store.storage) / "toy.yaml"
    file.write_text(json.dumps(study))
    state = StudyState(str(file))
    for key, cell in state.cells.items():
        worker.train_and_record(cell, key, state.panel, store, keep_weights=True)
    records = state.records()
    (winner,) = winners.winners(state, records, None)
    example = winners.example(state, winner)
    tracker = Tracker(store, None, state.data())
    tracker.sync(records.values())

    assert tracker.register(winner, example) == "1"
    version = client.get_model_version_by_alias("toy.none", "winner")
    assert version.description == winner.card
    assert version.tags["key"] == winner.key
    model = pyfunc.load_model(version.source)
    expected = winner.predictor().predict_frame(example)
    found = model.predict(model.input_example)
    assert [*found] == [*expected] == ["pm25_ugm3"]
    assert found["pm25_ugm3"].tolist() == pytest.approx(expected["pm25_ugm3"].tolist())

    for again in (tracker, opened(store)):
        assert again.register(winner, example) is None
    changed = replace(winner, card="another card")
    assert tracker.register(changed, example) is None
    assert client.get_model_version_by_alias("toy.none", "winner").description == "another card"
    radii = Radius("random", "WR", 0.0, 0.5, 12)
    calibrated = replace(winner, intervals=Calibration(0.9, 0.0, ((40.0, -100.0),), (radii,)).to_json())
    assert tracker.register(calibrated, example) == "2", "the same weights, with intervals"
    served = client.get_model_version_by_alias("toy.none", "winner")
    model = pyfunc.load_model(served.source)
    assert [*model.predict(model.input_example)] == ["pm25_ugm3", "lower", "upper"]
    assert model.metadata.get_output_schema().input_names() == ["pm25_ugm3", "lower", "upper"]
    (other,) = state.cells.keys() - {winner.key}
    assert tracker.register(replace(winner, key=other), example) == "3"
    assert str(client.get_model_version_by_alias("toy.none", "winner").version) == "3"
    assert tracker.register(winner, example) is None, "the first again"
    assert str(client.get_model_version_by_alias("toy.none", "winner").version) == "1"


@pytest.mark.parametrize(
    ("storage", "uri", "place"),
    [
        ("/data/results", "sqlite:////data/results/mlflow.db", "file:///data/results/mlflow-artifacts"),
        ("/data/results", "http://host:5000", None),
        ("s3://bucket/results", "http://host:5000", None),
        ("s3://bucket/results", "sqlite:////home/me/mlflow.db", "file:///home/me/mlflow-artifacts"),
        ("s3://bucket/a/?region=eu", "postgresql://host/mlflow", "s3://bucket/a/mlflow-artifacts"),
    ],
)
def test_artifacts_never_go_into_the_current_folder(storage: str, uri: str, place: str | None) -> None:
    assert artifacts_uri(storage, uri) == place


def test_a_bucket_holds_no_database() -> None:
    with pytest.raises(InputError) as found:
        Tracker(Store("s3://b", "toy"), None)
    assert "s3://b" in str(found.value)
    assert "--set tracking=" in str(found.value)
