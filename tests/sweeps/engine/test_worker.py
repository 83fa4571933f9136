"""One cell or search trial, run and recorded: what is stored, in which order, and what a failure leaves."""

import dataclasses
import hashlib
import io
import json
import math
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import pm25
from pm25 import encoders, fit, trial
from pm25.cell import Cell, Tuning
from pm25.encoders import Embedded
from pm25.errors import InputError
from pm25.fit import Diverged
from pm25.metrics import SCORES, scores
from pm25.panel import Panel
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps.analysis import results
from sweeps.engine import worker
from sweeps.store import records, running
from sweeps.store.fencing import LockLost
from sweeps.store.lock import StudyLock
from sweeps.store.records import Record, StorageFault, Store
from tests import worlds
from tests.errors import refuses
from tests.sweeps.store.test_lock import take_over

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "any"
"""A name that no hash has: one folder for whichever cell or trial a test records."""
FAILED_FILES = ["result.json"]
DONE_FILES = ["history.parquet", "predictions.parquet", "result.json"]


def cell(**changes: Any) -> Cell:
    given: dict[str, Any] = {
        "variant": "latlon",
        "split": CheckerboardSplit(degrees=16),
        "fold": 0,
        "seed": 0,
        "model": ModelSettings(width=4, attention_units=4),
        "train": TrainSettings(max_epochs=2, batch_size=32),
    }
    return Cell(**given | changes)


@pytest.fixture(scope="module")
def panel() -> Panel:
    return worlds.synthetic_panel()


@pytest.fixture(scope="module")
def done(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Record]:
    store = Store(str(tmp_path_factory.mktemp("work")), "toy")
    return store, worker.train_and_record(cell(), KEY, panel, store)


def embedded(panel: Panel) -> Embedded:
    vectors = np.random.default_rng(0).normal(size=(len(panel.site_id), 8)).astype(np.float32)
    return Embedded(vectors, "weights", trained_on_target=False)


def folder(store: Store) -> Path:
    return Path(store.storage) / "toy" / "cells" / KEY


def listed(store: Store) -> list[str]:
    return sorted(path.name for path in folder(store).iterdir())


def test_the_record_tells_the_whole_story(done: tuple[Store, Record], panel: Panel) -> None:
    store, record = done
    assert store.record(KEY) == record  # what is handed back is what is stored
    assert [*record] == [
        *("key", "state", "cell", "encoder", "data", "numerics", *worker.commit()),
        *("host", "process", "device", "threads"),
        *("versions", "started", "metrics", "counts", "audit", "seconds", "ended", "files"),
    ]
    assert record["files"] == {
        name: hashlib.sha256((folder(store) / name).read_bytes()).hexdigest()
        for name in ("predictions.parquet", "history.parquet")
    }
    assert (record["key"], record["state"]) == (KEY, "done")
    assert Cell.model_validate(record["cell"]) == cell()
    assert record["data"] == panel.fingerprint
    assert record["encoder"] is None
    assert {*record["versions"]} == {"python", "torch", "numpy"}
    assert 0 < record["seconds"] < 60
    started, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
    assert started.utcoffset() is not None
    assert 0 <= (ended - started).total_seconds() < 60
    scores = {f"{part}_{name}" for part in ("val", "test", "wr") for name in SCORES}
    assert scores <= {*record["metrics"]}
    further = {*record["metrics"]} - scores
    assert {
        f"{part}_{name}" for part in ("test", "wr") for name in ("n_tail", "mape", "temporal_r2")
    } <= further
    assert not [name for name in further if not name.startswith(("test_", "wr_"))]
    assert all(math.isfinite(value) for value in record["metrics"].values())
    assert record["counts"]["epochs"] == 2
    assert {"train_sites", "shared_sites", "nearest_km_min"} <= {*record["audit"]}
    assert record["audit"]["failed"] == []


@pytest.mark.parametrize(("loss", "numerics"), [("squared", pm25.NUMERICS), ("huber", pm25.HUBER_NUMERICS)])
def test_the_numerics_are_those_of_the_key(loss: Any, numerics: int, panel: Panel, tmp_path: Path) -> None:
    store, made = Store(str(tmp_path), "toy"), cell(train=TrainSettings(loss=loss, max_epochs=1))
    assert worker.train_and_record(made, KEY, panel, store)["numerics"] == numerics
    trial_cell = made.model_copy(update={"tuning": Tuning()})
    assert worker.SearchTrial([trial_cell], KEY, panel, store).draft["numerics"] == numerics


def test_predictions_stand_beside_the_panel_s_truth(done: tuple[Store, Record], panel: Panel) -> None:
    store, record = done
    table = store.read_table(KEY, "predictions")
    assert table.column_names == ["part", "site_id", "lat", "lon", "date", "truth", "prediction"]
    frame = table.to_pandas()
    counts = frame["part"].astype("str").value_counts()
    assert counts["test"] == record["counts"]["n_test"]
    assert counts["wr"] == record["counts"]["n_wr"]
    site = np.searchsorted(panel.site_id, frame["site_id"].astype("str").to_numpy(dtype=str))
    day = (frame["date"].to_numpy().astype("datetime64[D]") - panel.dates[0]).astype(int)
    np.testing.assert_array_equal(frame["truth"], panel.target[site, day])
    np.testing.assert_array_equal(frame["lat"], panel.lat[site])
    np.testing.assert_array_equal(frame["lon"], panel.lon[site])
    assert (day >= 20).all()  # a whole window before each
    assert not frame.duplicated(["site_id", "date"]).any()
    assert not {*frame["site_id"][frame["part"] == "test"]} & {*frame["site_id"][frame["part"] == "wr"]}
    for part in ("test", "wr"):
        error = (frame["prediction"].astype("float64") - frame["truth"])[frame["part"] == part]
        assert record["metrics"][f"{part}_rmse"] == pytest.approx(math.sqrt((error**2).mean()), rel=1e-5)
        assert record["metrics"][f"{part}_mbe"] == pytest.approx(error.mean(), rel=1e-4, abs=1e-5)


def test_names_are_stored_once(done: tuple[Store, Record]) -> None:
    table = done[0].read_table(KEY, "predictions")
    for name in ("part", "site_id"):
        assert pa.types.is_dictionary(table.schema.field(name).type)


def test_history_has_a_row_for_each_epoch(done: tuple[Store, Record]) -> None:
    history = done[0].read_table(KEY, "history").to_pydict()
    assert [*history] == ["epoch", "train_loss", "validation_loss", "learning_rate", "validation_rmse"]
    assert history["epoch"] == [1, 2]
    assert history["learning_rate"] == [1e-3, 1e-3]
    assert all(0 < loss < 10 for loss in history["train_loss"] + history["validation_loss"])
    best = 1 + min((0, 1), key=lambda epoch: history["validation_loss"][epoch])
    assert done[1]["counts"]["best_epoch"] == best
    kept = history["validation_rmse"][best - 1]  # the weights of that epoch
    assert kept == pytest.approx(done[1]["metrics"]["val_rmse"], rel=1e-6)


def test_the_same_cell_gives_the_same_numbers(
    done: tuple[Store, Record], panel: Panel, tmp_path: Path
) -> None:
    store = Store(str(tmp_path), "toy")
    again = worker.train_and_record(cell(), KEY, panel, store)
    for name in ("cell", "metrics", "counts", "audit", "data"):
        assert again[name] == done[1][name]
    assert (folder(store) / "predictions.parquet").read_bytes() == (
        folder(done[0]) / "predictions.parquet"
    ).read_bytes()


def test_an_encoder_is_recorded_for_its_own_variants_only(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    short = TrainSettings(max_epochs=1)
    placed = cell(variant="geoclip", fusion="concat", train=short)
    record = worker.train_and_record(placed, "a", panel, store, embedded=embedded(panel))
    assert (record["state"], record["encoder"]) == ("done", "weights")
    assert record["audit"]["encoder_trained_on_target"] is False
    record = worker.train_and_record(cell(train=short), "b", panel, store)
    assert (record["state"], record["encoder"]) == ("done", None)
    record = worker.train_and_record(cell(train=short), KEY, panel, store, embedded=embedded(panel))
    assert record["state"] == "failed"
    assert record["error"]["message"].startswith("variant latlon ")


def test_a_matched_head_needs_no_encoder(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    matched = cell(variant="none", head="matched", fusion="concat", train=TrainSettings(max_epochs=1))
    record = worker.train_and_record(matched, KEY, panel, store)
    assert (record["state"], record["encoder"]) == ("done", None)
    (row,) = results.rows({KEY: matched}, store.records([KEY])).to_dict("records")
    assert (row["variant"], row["fusion"], row["marked"]) == ("none", "concat", "")


def test_an_encoder_that_saw_pm25_marks_the_cell(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    placed = cell(variant="table", fusion="concat", train=TrainSettings(max_epochs=1))
    leaking = embedded(panel)._replace(trained_on_target=True)
    record = worker.train_and_record(placed, KEY, panel, store, embedded=leaking)
    assert record["audit"]["failed"] == ["encoder_trained_on_target"]
    (row,) = results.rows({KEY: placed}, store.records([KEY])).to_dict("records")
    assert row["marked"] == "encoder_trained_on_target"
    assert worker.differences(placed, KEY, panel, store, embedded=leaking) == []
    assert worker.differences(placed, KEY, panel, store, embedded=embedded(panel)) == ["audit"]


def test_embedding_places(panel: Panel, tmp_path: Path) -> None:
    places = panel.lat, panel.lon, panel.site_id
    made = encoders.embed("random", {"dim": 8, "seed": 3}, *places)
    assert isinstance(made, Embedded)
    assert (made.vectors.shape, made.vectors.dtype) == ((len(panel.site_id), 8), np.float32)
    assert made.fingerprint == encoders.fingerprint("random", dim=8, seed=3)
    assert made.trained_on_target is False
    path = tmp_path / "vectors.parquet"
    pd.DataFrame({"site_id": panel.site_id, "a": panel.lat, "b": 1.0}).to_parquet(path, index=False)
    made = encoders.embed("table", {"path": path, "trained_on_target": True}, *places)
    np.testing.assert_array_equal(made.vectors[:, 0], panel.lat.astype(np.float32))
    assert (made.fingerprint, made.trained_on_target) == (encoders.fingerprint("table", path=path), True)


def test_an_encoder_that_cannot_embed_is_bad_input(panel: Panel, tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    few = pd.DataFrame({"site_id": panel.site_id[1:], "a": 1.0})
    few.to_parquet(path, index=False)
    with pytest.raises(InputError) as raised:
        encoders.embed("table", {"path": path}, panel.lat, panel.lon, panel.site_id)
    assert str(panel.site_id[0]) in str(raised.value)
    with pytest.raises(InputError) as raised:
        encoders.embed("satclip", {"checkpoint": tmp_path / "lost.ckpt"}, panel.lat, panel.lon, panel.site_id)
    assert "lost.ckpt" in str(raised.value)


def test_vectors_of_another_panel_are_a_failure(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    placed = cell(variant="geoclip", fusion="concat")
    short = embedded(panel)._replace(vectors=embedded(panel).vectors[:-1])
    record = worker.train_and_record(placed, KEY, panel, store, embedded=short)
    check_failure(store, record, record["error"]["type"], "out of range")
    assert record["encoder"] == "weights"
    # A variant with an encoder that nobody could load, in the worker itself.
    lost = cell(variant="table", fusion="concat")
    store.forget(KEY)
    check_failure(store, worker.train_and_record(lost, KEY, panel, store), "InputError", "give path=")


# Weights


def test_weights_are_stored_on_request_only(done: tuple[Store, Record], panel: Panel, tmp_path: Path) -> None:
    assert listed(done[0]) == DONE_FILES
    assert done[0].read_file(KEY, "weights.pt") is None
    store = Store(str(tmp_path), "toy")
    again = worker.train_and_record(cell(), KEY, panel, store, keep_weights=True)
    assert listed(store) == sorted([*DONE_FILES, "weights.pt"])
    assert again["metrics"] == done[1]["metrics"]
    content = store.read_file(KEY, "weights.pt")
    assert content is not None
    weights = torch.load(io.BytesIO(content), weights_only=True)["weights"]
    # They are the trained ones: a network that holds them predicts what was stored.
    made = trial.prepare(cell(), panel)
    made.model.load_state_dict(weights)
    stored = store.read_table(KEY, "predictions").to_pandas()
    tested = stored.loc[stored["part"] == "test", "prediction"]
    np.testing.assert_array_equal(made.predict(made.indices.test), tested)


def test_stored_weights_are_told_with_their_scaling(
    done: tuple[Store, Record], panel: Panel, tmp_path: Path
) -> None:
    assert worker.stored_weights(KEY, done[0]) is None
    store = Store(str(tmp_path), "toy")
    worker.train_and_record(cell(), KEY, panel, store, keep_weights=True)
    kept = worker.stored_weights(KEY, store)
    assert kept is not None
    weights, scaling = kept
    result = trial.run(cell(), panel)
    assert scaling == result.scaling
    assert all(torch.equal(weights[name], value) for name, value in result.weights.items())
    assert worker.differences(cell(), KEY, panel, store) == []
    for changed in ({"weights": {**weights, "output.bias": weights["output.bias"] + 1}, "scaling": scaling},
                    {"weights": weights, "scaling": {**scaling, "channels": []}}):  # fmt: skip
        buffer = io.BytesIO()
        torch.save(changed, buffer)
        store.write_file(KEY, "weights.pt", buffer.getvalue())
        assert worker.differences(cell(), KEY, panel, store) == ["weights"]


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "checkout" / "sweeps"
    package.mkdir(parents=True)
    code = package / "work.py"
    code.write_text("first\n")
    monkeypatch.setattr(worker, "__file__", str(code))
    asked = worker.commit.__wrapped__
    monkeypatch.delenv("SWEEP_COMMIT", raising=False)
    assert asked() == {}, "no repository"
    sent = {"commit": "a" * 40, "dirty": True}
    monkeypatch.setenv("SWEEP_COMMIT", json.dumps(sent))
    assert asked() == sent, "what the sender of the code found"
    monkeypatch.delenv("SWEEP_COMMIT")

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path / "checkout"), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert asked() == {}, "a repository that does not hold the code, such as one around an installation"
    git("add", "-A")
    git("commit", "-qm", "first")
    assert asked() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "checkout" / "results.csv").write_text("untracked")
    assert asked()["dirty"] is False
    code.write_text("second\n")
    monkeypatch.setenv("SWEEP_COMMIT", json.dumps(sent))
    assert asked() == {"commit": git("rev-parse", "HEAD"), "dirty": True}, "the checkout itself knows better"


# Differences


@pytest.fixture
def copied(done: tuple[Store, Record], panel: Panel, tmp_path: Path) -> Store:
    """The store of the finished cell, to be spoilt."""
    store = Store(str(tmp_path), "toy")
    for name in DONE_FILES:
        store.write_file(KEY, name, (folder(done[0]) / name).read_bytes())
    return store


def test_an_untouched_cell_differs_in_nothing(done: tuple[Store, Record], panel: Panel) -> None:
    before = {path.name: path.read_bytes() for path in folder(done[0]).iterdir()}
    threads = torch.get_num_threads()
    assert worker.differences(cell(), KEY, panel, done[0]) == []
    assert torch.get_num_threads() == threads
    assert {path.name: path.read_bytes() for path in folder(done[0]).iterdir()} == before


_KEPT = """
import sys
from pathlib import Path
import torch
from sweeps.engine import worker
if sys.argv[1] == "prepared":
    worker.prepare_process(1)
def pages():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
before = pages()
torch.empty(2**24)  # 64 MB, which are freed at once
print((pages() - before) * 4096)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_prepared_process_keeps_the_memory_that_it_frees() -> None:
    def kept(how: str) -> int:
        command = [sys.executable, "-c", _KEPT, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert kept("prepared") > 2**25
    assert kept("as it is") < 2**24


def test_it_trains_with_as_many_threads_as_were_recorded(
    copied: Store, panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = copied.record(KEY)
    assert record is not None
    copied.write_record(record | {"threads": 2}, record["files"])
    run, seen = trial.run, []

    def watch(*args: Any, **options: Any) -> trial.Result:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(1)  # the numbers are those of one thread
        return run(*args, **options)

    monkeypatch.setattr(trial, "run", watch)
    assert worker.differences(cell(), KEY, panel, copied) == []
    assert (seen, torch.get_num_threads()) == ([2], 1)


@pytest.mark.parametrize(
    ("block", "name", "change", "said"),
    [
        ("metrics", "test_rmse", lambda v: math.nextafter(v, 99), "test_rmse"),
        ("metrics", "wr_mape", lambda v: None, "wr_mape"),
        ("metrics", "test_n_tail", None, "test_n_tail"),
        ("metrics", "test_of_another_version", lambda v: 1.0, "test_of_another_version"),
        ("counts", "n_train", lambda v: v - 1, "counts"),
        ("audit", "shared_sites", lambda v: v + 1, "audit"),
        ("audit", "failed", lambda v: ["shared_sites"], "audit"),
    ],
)
def test_an_altered_record_differs(
    copied: Store, panel: Panel, block: str, name: str, change: Any, said: str
) -> None:
    record = copied.record(KEY)
    assert record is not None
    value = record[block].pop(name, None)
    if change is not None:
        record[block][name] = change(value)
    copied.write_record(record, record["files"])
    assert worker.differences(cell(), KEY, panel, copied) == [said]


def test_altered_predictions_differ(copied: Store, panel: Panel) -> None:
    stored = copied.read_table(KEY, "predictions")
    values = stored["prediction"].to_numpy().copy()
    values[-1] = np.nextafter(values[-1], np.float32(99))
    place = stored.schema.get_field_index("prediction")
    one_off = stored.set_column(place, "prediction", pa.array(values))
    swapped = stored.take([1, 0, *range(2, len(stored))])
    for spoilt in (one_off, stored.slice(0, len(stored) - 1), swapped, stored.drop_columns(["lat"])):
        copied.write_table(KEY, "predictions", spoilt)
        assert worker.differences(cell(), KEY, panel, copied) == ["predictions"]
    copied.write_file(KEY, "predictions.parquet", b"PAR1 and no more")
    assert worker.differences(cell(), KEY, panel, copied) == ["predictions"]
    (folder(copied) / "predictions.parquet").unlink()
    assert worker.differences(cell(), KEY, panel, copied) == ["predictions"]


def test_everything_that_differs_is_named(copied: Store, panel: Panel) -> None:
    found = worker.differences(cell(train=TrainSettings(max_epochs=1, batch_size=32)), KEY, panel, copied)
    assert found[0] == "counts"  # it had one epoch more
    assert {"val_rmse", "test_rmse", "wr_rmse", "predictions"} <= {*found}
    assert "audit" not in found  # the same cut
    assert len(found) == len({*found})


def test_the_record_is_written_last(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Store.write_file

    def watch(self: Store, key: str, name: str, content: Any) -> None:
        assert self.record(key) is None
        write(self, key, name, content)
        written.append(name)

    monkeypatch.setattr(Store, "write_file", watch)
    worker.train_and_record(cell(), KEY, panel, Store(str(tmp_path), "toy"), keep_weights=True)
    assert sorted(written) == sorted([*DONE_FILES, "weights.pt"])
    assert written[-1] == "result.json"


@pytest.mark.parametrize("table", ["predictions", "history"])
def test_a_disk_that_fills_up_leaves_no_record(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    store = Store(str(tmp_path), "toy")
    write = records.write

    def fail(system: Any, path: str, content: Any, *fenced: Any) -> None:
        if path.endswith(f"{table}.parquet"):
            raise OSError(28, "No space left on device")
        write(system, path, content, *fenced)

    monkeypatch.setattr(records, "write", fail)
    with pytest.raises(StorageFault, match="No space left"):
        worker.train_and_record(cell(), KEY, panel, store)
    assert store.record(KEY) is None
    monkeypatch.undo()
    assert worker.train_and_record(cell(), KEY, panel, store)["state"] == "done"
    assert listed(store) == DONE_FILES


# Failures


def check_failure(store: Store, record: Record, kind: str, message: str) -> None:
    """The failure is stored with its reason, and without metrics."""
    assert store.record(KEY) == record
    assert (record["key"], record["state"]) == (KEY, "failed")
    assert record["error"]["type"] == kind
    assert message in record["error"]["message"]
    assert "\n" not in record["error"]["message"]
    assert record["error"]["signature"].startswith(kind)
    assert f"{kind}: " in record["error"]["traceback"]
    assert not {"metrics", "counts", "audit", "seconds"} & {*record}
    assert listed(store) == FAILED_FILES
    of_cell = Cell.model_validate(record["cell"])
    (row,) = results.rows({KEY: of_cell}, store.records([KEY])).to_dict("records")
    assert row["state"] == "failed"
    assert row["error"] == f"{kind}: {record['error']['message']}"
    frame = results.rows({KEY: of_cell}, store.records([KEY]))
    numbers = [*results.SCORE_COLUMNS, *results.COUNTS, "seconds"]
    assert {*numbers} < {*frame.columns}
    assert not [name for name in frame.columns if name.startswith(("test_site", "shared_", "nearest_"))]
    assert frame[numbers].isna().all(axis=None)
    assert row["marked"] == ""


def test_a_training_that_diverges_is_a_failure(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    record = worker.train_and_record(cell(train=TrainSettings(learning_rate=1e30)), KEY, panel, store)
    check_failure(store, record, "Diverged", "lower train.learning_rate")
    trace = record["error"]["traceback"]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "pm25/fit.py" in trace
    assert Cell.model_validate(record["cell"]).train.learning_rate == 1e30
    other = cell(seed=1, train=TrainSettings(learning_rate=1e31))
    again = worker.train_and_record(other, "another", panel, store)["error"]
    assert again["message"] != record["error"]["message"]
    assert again["signature"] == record["error"]["signature"]
    assert again["signature"].startswith("Diverged: ")
    assert "[pm25/fit.py:" in again["signature"]


def test_a_channel_without_a_value_is_a_failure(tmp_path: Path) -> None:
    panel = worlds.synthetic_panel()
    features = panel.features.copy()
    features[..., panel.channels.index("elev_m")] = math.nan
    panel = dataclasses.replace(panel, features=features)
    store = Store(str(tmp_path), "toy")
    check_failure(store, worker.train_and_record(cell(), KEY, panel, store), "InputError", "elev_m")


def test_a_split_with_an_empty_part_is_a_failure(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    whole = cell(split=CheckerboardSplit(degrees=100))  # one square holds the CONUS
    check_failure(store, worker.train_and_record(whole, KEY, panel, store), "InputError", "part empty")


@pytest.mark.parametrize("rmse", [math.nan, math.inf])
def test_an_rmse_that_is_no_number_is_a_failure(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rmse: float
) -> None:
    store = Store(str(tmp_path), "toy")
    scored = trial.Training.result

    def broken(self: trial.Training) -> trial.Result:
        result = scored(self)
        return trial.Result(**vars(result) | {"metrics": result.metrics | {"test_rmse": rmse}})

    monkeypatch.setattr(trial.Training, "result", broken)
    check_failure(
        store, worker.train_and_record(cell(), KEY, panel, store), "ArithmeticError", f"test RMSE is {rmse}"
    )


def test_an_r2_without_variance_is_missing_and_no_failure(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), "toy")
    scored = trial.Training.result

    def flat(self: trial.Training) -> trial.Result:
        result = scored(self)
        return trial.Result(**vars(result) | {"metrics": result.metrics | {"test_r2": math.nan}})

    monkeypatch.setattr(trial.Training, "result", flat)
    record = worker.train_and_record(cell(), KEY, panel, store)
    assert (record["state"], record["metrics"]["test_r2"]) == ("done", None)
    frame = results.rows({KEY: cell()}, store.records([KEY]))
    assert frame["test_r2"].isna().all()
    assert frame["test_rmse"].notna().all()


def test_a_message_of_many_lines_becomes_one(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: trial.Training) -> trial.Epoch:
        raise RuntimeError("first\n  second\n")

    monkeypatch.setattr(trial.Training, "epoch", fail)
    store = Store(str(tmp_path), "toy")
    check_failure(store, worker.train_and_record(cell(), KEY, panel, store), "RuntimeError", "first second")


def test_an_interrupt_is_no_result(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: trial.Training) -> trial.Epoch:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial.Training, "epoch", interrupt)
    store = Store(str(tmp_path), "toy")
    with pytest.raises(KeyboardInterrupt):
        worker.train_and_record(cell(), KEY, panel, store)
    assert store.keys() == set()


def test_a_lost_worker_is_a_failure_like_any_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    record = worker.record_loss({"key": KEY, "cell": cell().resolved()}, store, "the worker died")
    check_failure(store, record, "RuntimeError", "the worker died")
    assert record["error"]["signature"] == "RuntimeError: the worker died"
    assert {"started", "ended"} <= {*record}


def test_failures_and_successes_replace_each_other(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    short = cell(split=RandomSplit(), train=TrainSettings(max_epochs=1))
    worker.record_loss({"key": KEY, "cell": short.resolved()}, store, "lost")
    store.forget(KEY)
    worker.train_and_record(short, KEY, panel, store)
    record = store.record(KEY)
    assert record is not None
    assert record["state"] == "done"
    assert "error" not in record
    assert "wr_rmse" not in record["metrics"]  # a random split has no second test set
    assert {*store.read_table(KEY, "predictions")["part"].to_pylist()} == {"test"}


# Checkpoints

LONG = TrainSettings(max_epochs=4, batch_size=32)


@pytest.fixture(scope="module")
def whole(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Record]:
    """A training that nobody disturbed."""
    store = Store(str(tmp_path_factory.mktemp("whole")), "toy")
    return store, worker.train_and_record(cell(train=LONG), KEY, panel, store)


class Killed(BaseException):
    """No Exception: whoever is killed records nothing."""


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int, error: BaseException) -> None:
    """The epoch after so many, of all trainings together, ends in an error."""
    train, calls = trial.Training.epoch, []

    def epoch(self: trial.Training) -> trial.Epoch:
        if len(calls) == epochs:
            raise error
        calls.append(self)
        return train(self)

    monkeypatch.setattr(trial.Training, "epoch", epoch)


def count_epochs(monkeypatch: pytest.MonkeyPatch) -> list[trial.Training]:
    train, calls = trial.Training.epoch, []

    def epoch(self: trial.Training) -> trial.Epoch:
        calls.append(self)
        return train(self)

    monkeypatch.setattr(trial.Training, "epoch", epoch)
    return calls


def killed(panel: Panel, folder: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> Store:
    """A store in which a training was killed after so many epochs."""
    store = Store(str(folder), "toy")
    with monkeypatch.context() as patch:
        stop_after(patch, epochs, Killed())
        with pytest.raises(Killed):
            worker.train_and_record(cell(train=LONG), KEY, panel, store, checkpoint_seconds=0)
    assert listed(store) == ["checkpoint.pt"]
    return store


def check_same(store: Store, record: Record, whole: tuple[Store, Record]) -> None:
    """In every number, and nothing is left behind."""
    for name in ("state", "metrics", "counts", "audit"):
        assert record[name] == whole[1][name]
    for name in ("predictions.parquet", "history.parquet"):
        assert store.read_file(KEY, name) == whole[0].read_file(KEY, name)
    assert listed(store) == DONE_FILES


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_killed_training_goes_on_where_it_stood(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Store, Record], epochs: int
) -> None:
    store = killed(panel, tmp_path, monkeypatch, epochs)
    calls = count_epochs(monkeypatch)
    record = worker.train_and_record(cell(train=LONG), KEY, panel, store, checkpoint_seconds=0)
    assert len(calls) == 4 - epochs
    assert record["resumed"] == epochs
    check_same(store, record, whole)
    assert "resumed" not in whole[1]


def test_a_training_that_is_killed_again_and_again_ends_all_the_same(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Store, Record]
) -> None:
    store = killed(panel, tmp_path, monkeypatch, 1)
    for _ in range(2):
        killed(panel, tmp_path, monkeypatch, 1)
    calls = count_epochs(monkeypatch)
    record = worker.train_and_record(cell(train=LONG), KEY, panel, store)
    assert (len(calls), record["resumed"]) == (1, 3)
    check_same(store, record, whole)


@pytest.mark.parametrize("place", ["device", "threads"])
def test_a_checkpoint_from_elsewhere_is_not_gone_on_from(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Store, Record], place: str
) -> None:
    store = killed(panel, tmp_path, monkeypatch, 2)
    if place == "device":
        monkeypatch.setattr(worker.platform, "machine", lambda: "abacus")
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    calls = count_epochs(monkeypatch)
    record = worker.train_and_record(cell(train=LONG), KEY, panel, store)
    assert record[place] in ("abacus", 7)
    assert len(calls) == 4
    assert "resumed" not in record
    check_same(store, record, whole)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no checkpoint",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: flipped(content, len(content) // 2),  # which torch would read over
        lambda content: flipped(content, 3),
        lambda content: content.partition(b"\n")[2],
        lambda content: content.partition(b"\n")[0],
    ],
)
def test_a_damaged_checkpoint_costs_time_and_no_number(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Store, Record], damage: Any
) -> None:
    store = killed(panel, tmp_path, monkeypatch, 2)
    content = store.read_file(KEY, "checkpoint.pt")
    assert content is not None
    store.write_file(KEY, "checkpoint.pt", damage(content))
    record = worker.train_and_record(cell(train=LONG), KEY, panel, store)
    assert "resumed" not in record
    check_same(store, record, whole)


def test_a_checkpoint_is_written_when_its_time_has_come(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now, written = Store(str(tmp_path), "toy"), [0.0], []
    write, train = Store.write_file, trial.Training.epoch

    def watch(self: Store, key: str, name: str, content: Any) -> None:
        if name == "checkpoint.pt":
            written.append(now[0])
        write(self, key, name, content)

    def epoch(self: trial.Training) -> trial.Epoch:
        now[0] += 10
        return train(self)

    monkeypatch.setattr(Store, "write_file", watch)
    monkeypatch.setattr(trial.Training, "epoch", epoch)
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    long = cell(train=TrainSettings(max_epochs=7, batch_size=32))
    worker.train_and_record(long, KEY, panel, store, checkpoint_seconds=20)
    assert written == [20, 40, 60]
    worker.train_and_record(long, "b", panel, store, checkpoint_seconds=70)
    assert written == [20, 40, 60]  # after the last epoch there is nothing to go on with


def test_a_failure_leaves_no_checkpoint(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = killed(panel, tmp_path, monkeypatch, 2)
    stop_after(monkeypatch, 1, RuntimeError("a broken step"))
    record = worker.train_and_record(cell(train=LONG), KEY, panel, store, checkpoint_seconds=0)
    assert record["resumed"] == 2
    check_failure(store, record, "RuntimeError", "a broken step")


def test_what_is_not_to_be_recorded_is_raised_and_goes_on_later(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Store, Record]
) -> None:
    store = Store(str(tmp_path), "toy")
    with monkeypatch.context() as patch:
        stop_after(patch, 2, MemoryError())
        with pytest.raises(MemoryError):
            worker.train_and_record(
                cell(train=LONG),
                KEY,
                panel,
                store,
                checkpoint_seconds=0,
                raises=lambda error: isinstance(error, MemoryError),
            )
    assert listed(store) == ["checkpoint.pt"]
    record = worker.train_and_record(cell(train=LONG), KEY, panel, store)
    assert record["resumed"] == 2
    check_same(store, record, whole)


def test_more_joins_the_record(panel: Panel, tmp_path: Path) -> None:
    short = cell(train=TrainSettings(max_epochs=1))
    more = {"share": {"cpu": 1.0, "gpu": 0.0}, "tuned": {"model.depth": 2}}
    store = Store(str(tmp_path), "toy")
    assert worker.train_and_record(short, KEY, panel, store, more=more).items() >= more.items()
    failing = cell(train=TrainSettings(learning_rate=1e30))
    assert worker.train_and_record(failing, "b", panel, store, more=more).items() >= more.items()


# Search trials

RANDOM, INNER = RandomSplit(folds=2), CheckerboardSplit(degrees=16)
START = {"kind": "trial", "arm": "latlon", "number": 5, "params": {"model.depth": 1}, "point": "x"}
OF_THE_MOMENT = ("started", "ended", "seconds", "process", "resumed")


def placements(**train: Any) -> list[Cell]:
    """A random fold's own validation, and a checkerboard within its training side; with two seeds."""
    settings = TrainSettings(**{"max_epochs": 4, "patience": 1, "batch_size": 32} | train)
    model = ModelSettings(width=4, depth=1, attention_units=4)
    given: dict[str, Any] = {"split": RANDOM, "fold": 0, "model": model, "train": settings}
    return [
        cell(**given, seed=seed, tuning=tuning)
        for tuning in (Tuning(), Tuning(split=INNER))
        for seed in (1000, 1001)
    ]


def search_store(folder: Path) -> Store:
    return Store(str(folder), "toy").search


def search_trial(panel: Panel, store: Store, cells: list[Cell], **options: Any) -> worker.SearchTrial:
    return worker.SearchTrial(cells, KEY, panel, store, more=START, **options)


def trained(made: worker.SearchTrial) -> Record:
    while not made.finished:
        made.epoch()
    return made.record()


def numbers_of(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in OF_THE_MOMENT}


@pytest.fixture(scope="module")
def undisturbed(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Record]:
    store = search_store(tmp_path_factory.mktemp("search"))
    return store, trained(search_trial(panel, store, placements()))


def test_a_trial_s_score_is_the_mean_over_its_trainings(
    undisturbed: tuple[Store, Record], panel: Panel
) -> None:
    store, record = undisturbed
    assert store.record(KEY) == record
    assert [path.name for path in (Path(store.storage) / "toy" / "search" / KEY).iterdir()] == ["result.json"]
    assert record.items() >= (START | {"state": "done", "key": KEY, "data": panel.fingerprint}).items()
    start = json.dumps(START, indent=1).encode()  # the start file as the driver writes it
    assert record["files"] == {"begun.json": hashlib.sha256(start).hexdigest()}
    results = [trial.run(one, panel) for one in placements()]
    plain, inner = results[:2], results[2:]
    for name in SCORES:
        within = [r.metrics[f"val_wr_{name}"] for r in results]
        outside = [r.metrics[f"val_oor_{name}"] for r in inner]
        assert record["scores"]["wr"][name] == pytest.approx(sum(within) / 4, rel=1e-12)
        assert record["scores"]["oor"][name] == pytest.approx(sum(outside) / 2, rel=1e-12)
        assert not any(f"val_oor_{name}" in r.metrics for r in plain)
    assert {*record["scores"]} == {"wr", "oor"}
    # An epoch reports the mean of the best RMSE of every training, ended ones included.
    curves = [[epoch.validation_rmse for epoch in r.history] for r in results]
    lengths = [len(curve) for curve in curves]
    assert len({*lengths}) > 1
    assert record["epochs"] == sum(lengths)
    by_hand = [sum(min(curve[:n]) for curve in curves) / 4 for n in range(1, max(lengths) + 1)]
    assert record["reported"] == pytest.approx(by_hand, rel=1e-12)
    assert 0 < record["seconds"] < 60


def test_without_an_inner_split_a_trial_speaks_of_within_region_alone(panel: Panel, tmp_path: Path) -> None:
    record = trained(search_trial(panel, search_store(tmp_path), placements()[:2]))
    assert {*record["scores"]} == {"wr"}


def names_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(name for part in value.values() for name in names_in(part))]
    return [name for part in value for name in names_in(part)] if isinstance(value, list) else []


def test_a_trial_s_record_has_no_number_of_a_test(undisturbed: tuple[Store, Record]) -> None:
    record = undisturbed[1]
    assert not {"metrics", "counts", "audit"} & {*record}
    assert not [name for name in names_in(record) if "test" in name or "predict" in name]


@pytest.mark.parametrize("calls", [4, 7, 9])
def test_a_killed_trial_goes_on_where_it_stood(
    panel: Panel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: tuple[Store, Record],
    calls: int,
) -> None:
    store = search_store(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, calls, Killed())
        with pytest.raises(Killed):
            trained(search_trial(panel, store, placements(), checkpoint_seconds=0))
    assert store.record(KEY) is None
    again = count_epochs(monkeypatch)
    record = trained(search_trial(panel, store, placements(), checkpoint_seconds=0))
    assert record["resumed"] >= 1
    assert len(again) < record["epochs"]
    assert numbers_of(record) == numbers_of(undisturbed[1])
    assert store.read_file(KEY, "checkpoint.pt") is None


def test_seconds_of_a_trial_add_up_over_its_lives(panel: Panel, tmp_path: Path) -> None:
    store = search_store(tmp_path)
    first = search_trial(panel, store, placements(), checkpoint_seconds=0)
    first.epoch()
    spent = first.draft["seconds"]
    second = search_trial(panel, store, placements(), checkpoint_seconds=0)
    assert second.draft["seconds"] == spent > 0
    assert second.draft["reported"] == first.draft["reported"]
    second.epoch()
    assert second.draft["seconds"] > spent


def test_a_trial_that_diverges_is_a_failure_with_what_it_spent(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = search_store(tmp_path)
    stop_after(monkeypatch, 5, Diverged("training loss is nan"))
    made = search_trial(panel, store, placements(), checkpoint_seconds=0)
    made.epoch()
    with pytest.raises(Diverged) as caught:
        made.epoch()
    record = worker.end_trial(made.draft, store, caught.value)
    assert store.record(KEY) == record
    assert record.items() >= (START | {"state": "failed", "epochs": 5}).items()
    assert len(record["reported"]) == 1
    assert record["error"]["type"] == "Diverged"
    assert "scores" not in record
    assert store.read_file(KEY, "checkpoint.pt") is None


@pytest.mark.parametrize("kind", ["cell", "trial"])
def test_a_worker_that_is_killed_after_its_record_leaves_a_checkpoint_to_delete(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store = Store(str(tmp_path), "toy") if kind == "cell" else search_store(tmp_path)
    store.write_file("unfinished", worker.CHECKPOINT, b"epoch 1")

    def train() -> Record:
        if kind == "cell":
            return worker.train_and_record(cell(), KEY, panel, store, checkpoint_seconds=0)
        return trained(search_trial(panel, store, placements(), checkpoint_seconds=0))

    def die(self: Store, key: str, name: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_file", die)
        with pytest.raises(Killed):
            train()
    assert store.record(KEY) is not None
    assert store.holding(worker.CHECKPOINT) == {KEY, "unfinished"}
    worker.delete_checkpoints(store, [KEY, "never checkpointed"])
    assert store.holding(worker.CHECKPOINT) == {"unfinished"}


@pytest.mark.parametrize("kind", ["cell", "trial"])
def test_a_study_that_was_taken_over_fails_no_training(panel: Panel, tmp_path: Path, kind: str) -> None:
    """Its driver has lost the study between two epochs: no checkpoint, no record, and no failure."""
    file = tmp_path / "toy" / "driver.json"

    def lose(*_: Any) -> None:
        take_over(file)

    with refuses(kind=LockLost), StudyLock(Store(str(tmp_path), "toy")) as own:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running.ProgressWriter, "epoch", lose)
            with refuses("driver.json", "", "process 1 on host node7", kind=LockLost):
                if kind == "cell":
                    worker.train_and_record(cell(), KEY, panel, own.store, checkpoint_seconds=0)
                else:
                    trained(search_trial(panel, own.store.search, placements(), checkpoint_seconds=0))
        for store in (own.store, own.store.search):
            assert store.record(KEY) is None
            assert store.read_file(KEY, worker.CHECKPOINT) is None


def test_a_point_at_which_training_diverges_at_once(panel: Panel, tmp_path: Path) -> None:
    store = search_store(tmp_path)
    made = search_trial(panel, store, placements(learning_rate=1e30))
    with pytest.raises(Diverged) as caught:
        made.epoch()
    record = worker.end_trial(made.draft, store, caught.value)
    assert (record["state"], record["epochs"], record["reported"]) == ("failed", 0, [])
    assert not made.finished


def test_a_trial_that_cannot_be_prepared_says_where_that_was(panel: Panel, tmp_path: Path) -> None:
    store = search_store(tmp_path)
    cells = [one.model_copy(update={"split": CheckerboardSplit(degrees=100)}) for one in placements()]
    made = search_trial(panel, store, cells)
    with pytest.raises(InputError) as caught:
        made.epoch()
    record = worker.end_trial(made.draft, store, caught.value)
    assert {"host", "started", "ended", "device", "data"} <= {*record}
    assert (record["state"], record["epochs"], record["reported"]) == ("failed", 0, [])


def test_a_pruned_trial_keeps_what_it_reported(panel: Panel, tmp_path: Path) -> None:
    store = search_store(tmp_path)
    made = search_trial(panel, store, placements(), checkpoint_seconds=0)
    made.epoch()
    record = worker.end_trial({**made.draft, "state": "pruned"}, store)
    assert store.record(KEY) == record
    assert record.items() >= (START | {"state": "pruned", "epochs": 4}).items()
    assert record["reported"] == made.draft["reported"]
    assert "scores" not in record
    assert store.read_file(KEY, "checkpoint.pt") is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_never_becomes_a_score(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    scored, epoch = trial.Training.result, trial.Training.epoch

    def broken(self: trial.Training) -> trial.Result:
        result = scored(self)
        if "val_oor_rmse" not in result.metrics:
            return result
        return trial.Result(**vars(result) | {"metrics": result.metrics | {"val_oor_rmse": bad}})

    def wild(self: trial.Training) -> trial.Epoch:
        if not self.history:  # as where a logarithm's target is undone
            monkeypatch.setattr(fit, "scores", lambda truth, predicted: {"rmse": math.inf})
        ended = epoch(self)
        monkeypatch.setattr(fit, "scores", scores)
        return ended

    monkeypatch.setattr(trial.Training, "result", broken)
    monkeypatch.setattr(trial.Training, "epoch", wild)
    store = search_store(tmp_path)
    made = search_trial(panel, store, placements(patience=9, max_epochs=2), checkpoint_seconds=0)
    with pytest.raises(ArithmeticError, match=rf"validation rmse \(oor\) is {bad}") as caught:
        trained(made)
    record = worker.end_trial(made.draft, store, caught.value)
    assert store.record(KEY) == record
    assert record["state"] == "failed"
    assert "scores" not in record
    first, second = record["reported"]
    assert first is None
    assert 0 < second < 100
