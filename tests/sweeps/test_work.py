"""One cell, run and recorded: what is stored, in which order, and what a failure leaves behind."""

import io
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pm25 import encoders, synth, trial
from pm25 import panel as panels
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.panel import Panel
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps import results, work
from sweeps.store import Record, Store
from sweeps.work import Embedded

KEY = "0123456789abcdef0123"
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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads than free cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def panel() -> Panel:
    table = pa.Table.from_pandas(synth.synthesize(sites=12, days=40), preserve_index=False)
    return panels.from_table(table, "toy")


@pytest.fixture(scope="module")
def done(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Record]:
    store = Store(str(tmp_path_factory.mktemp("work")), "toy")
    return store, work.run_and_record(cell(), KEY, panel, store)


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
        *("key", "state", "cell", "encoder", "data", "numerics", "host", "process", "device", "threads"),
        *("versions", "started", "metrics", "counts", "audit", "seconds", "ended"),
    ]
    assert (record["key"], record["state"]) == (KEY, "done")
    assert Cell.model_validate(record["cell"]) == cell()
    assert record["data"] == panel.fingerprint
    assert record["encoder"] is None
    assert {*record["versions"]} == {"python", "torch", "numpy"}
    assert 0 < record["seconds"] < 60
    started, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
    assert started.utcoffset() is not None
    assert 0 <= (ended - started).total_seconds() < 60
    scores = {f"{part}_{name}" for part in ("val", "test", "wr") for name in ("rmse", "r2", "mae", "mbe")}
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
    assert history["validation_rmse"][best - 1] == done[1]["metrics"]["val_rmse"]  # its weights are kept


def test_the_same_cell_gives_the_same_numbers(
    done: tuple[Store, Record], panel: Panel, tmp_path: Path
) -> None:
    store = Store(str(tmp_path), "toy")
    again = work.run_and_record(cell(), KEY, panel, store)
    for name in ("cell", "metrics", "counts", "audit", "data"):
        assert again[name] == done[1][name]
    assert (folder(store) / "predictions.parquet").read_bytes() == (
        folder(done[0]) / "predictions.parquet"
    ).read_bytes()


def test_an_encoder_is_recorded_for_its_own_variants_only(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    short = TrainSettings(max_epochs=1)
    placed = cell(variant="geoclip", fusion="concat", train=short)
    record = work.run_and_record(placed, "a", panel, store, embedded=embedded(panel))
    assert (record["state"], record["encoder"]) == ("done", "weights")
    assert record["audit"]["encoder_trained_on_target"] is False
    record = work.run_and_record(cell(train=short), "b", panel, store)
    assert (record["state"], record["encoder"]) == ("done", None)
    record = work.run_and_record(cell(train=short), KEY, panel, store, embedded=embedded(panel))
    assert record["state"] == "failed"
    assert record["error"]["message"] == "variant latlon takes no embedding"


def test_a_matched_head_needs_no_encoder(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    matched = cell(variant="none", head="matched", fusion="concat", train=TrainSettings(max_epochs=1))
    record = work.run_and_record(matched, KEY, panel, store)
    assert (record["state"], record["encoder"]) == ("done", None)
    (row,) = results.rows({KEY: matched}, store.records([KEY])).to_dict("records")
    assert (row["variant"], row["fusion"], row["marked"]) == ("none", "concat", "")


def test_an_encoder_that_saw_pm25_marks_the_cell(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    placed = cell(variant="table", fusion="concat", train=TrainSettings(max_epochs=1))
    leaking = embedded(panel)._replace(trained_on_target=True)
    record = work.run_and_record(placed, KEY, panel, store, embedded=leaking)
    assert record["audit"]["failed"] == ["encoder_trained_on_target"]
    (row,) = results.rows({KEY: placed}, store.records([KEY])).to_dict("records")
    assert row["marked"] == "encoder_trained_on_target"
    assert work.differences(placed, KEY, panel, store, embedded=leaking) == []
    assert work.differences(placed, KEY, panel, store, embedded=embedded(panel)) == ["audit"]


def test_embedding_places(panel: Panel, tmp_path: Path) -> None:
    places = panel.lat, panel.lon, panel.site_id
    made = work.embed("random", {"dim": 8, "seed": 3}, *places)
    assert isinstance(made, Embedded)
    assert (made.vectors.shape, made.vectors.dtype) == ((len(panel.site_id), 8), np.float32)
    assert made.fingerprint == encoders.fingerprint("random", dim=8, seed=3)
    assert made.trained_on_target is False
    path = tmp_path / "vectors.parquet"
    pd.DataFrame({"site_id": panel.site_id, "a": panel.lat, "b": 1.0}).to_parquet(path, index=False)
    made = work.embed("table", {"path": path, "trained_on_target": True}, *places)
    np.testing.assert_array_equal(made.vectors[:, 0], panel.lat.astype(np.float32))
    assert (made.fingerprint, made.trained_on_target) == (encoders.fingerprint("table", path=path), True)


def test_an_encoder_that_cannot_embed_is_bad_input(panel: Panel, tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    few = pd.DataFrame({"site_id": panel.site_id[1:], "a": 1.0})
    few.to_parquet(path, index=False)
    with pytest.raises(InputError, match=f"1 of the places have no vector: {panel.site_id[0]}"):
        work.embed("table", {"path": path}, panel.lat, panel.lon, panel.site_id)
    with pytest.raises(InputError, match=r"lost\.ckpt"):
        work.embed("satclip", {"checkpoint": tmp_path / "lost.ckpt"}, panel.lat, panel.lon, panel.site_id)


def test_vectors_of_another_panel_are_a_failure(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    placed = cell(variant="geoclip", fusion="concat")
    short = embedded(panel)._replace(vectors=embedded(panel).vectors[:-1])
    record = work.run_and_record(placed, KEY, panel, store, embedded=short)
    check_failure(store, record, record["error"]["type"], "out of range")
    assert record["encoder"] == "weights"
    # A variant with an encoder that nobody could load, in the worker itself.
    lost = cell(variant="table", fusion="concat")
    store.forget(KEY)
    check_failure(store, work.run_and_record(lost, KEY, panel, store), "InputError", "give path=")


# Weights


def test_weights_are_stored_on_request_only(done: tuple[Store, Record], panel: Panel, tmp_path: Path) -> None:
    assert listed(done[0]) == DONE_FILES
    assert done[0].read_file(KEY, "weights.pt") is None
    store = Store(str(tmp_path), "toy")
    again = work.run_and_record(cell(), KEY, panel, store, keep_weights=True)
    assert listed(store) == sorted([*DONE_FILES, "weights.pt"])
    assert again["metrics"] == done[1]["metrics"]
    content = store.read_file(KEY, "weights.pt")
    assert content is not None
    weights = torch.load(io.BytesIO(content), weights_only=True)
    # They are the trained ones: a network that holds them predicts what was stored.
    made = trial.prepare(cell(), panel)
    made.model.load_state_dict(weights)
    stored = store.read_table(KEY, "predictions").to_pandas()
    tested = stored.loc[stored["part"] == "test", "prediction"]
    np.testing.assert_array_equal(made.predict(made.parts.test), tested)


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
    assert work.differences(cell(), KEY, panel, done[0]) == []
    assert torch.get_num_threads() == threads
    assert {path.name: path.read_bytes() for path in folder(done[0]).iterdir()} == before


def test_it_trains_with_as_many_threads_as_were_recorded(
    copied: Store, panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = copied.record(KEY)
    assert record is not None
    copied.write_record(record | {"threads": 2})
    run, seen = trial.run, []

    def watch(*args: Any, **options: Any) -> trial.Result:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(1)  # the numbers are those of one thread
        return run(*args, **options)

    monkeypatch.setattr(trial, "run", watch)
    assert work.differences(cell(), KEY, panel, copied) == []
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
    copied.write_record(record)
    assert work.differences(cell(), KEY, panel, copied) == [said]


def test_altered_predictions_differ(copied: Store, panel: Panel) -> None:
    stored = copied.read_table(KEY, "predictions")
    values = stored["prediction"].to_numpy().copy()
    values[-1] = np.nextafter(values[-1], np.float32(99))
    place = stored.schema.get_field_index("prediction")
    one_off = stored.set_column(place, "prediction", pa.array(values))
    swapped = stored.take([1, 0, *range(2, len(stored))])
    for spoilt in (one_off, stored.slice(0, len(stored) - 1), swapped, stored.drop_columns(["lat"])):
        copied.write_table(KEY, "predictions", spoilt)
        assert work.differences(cell(), KEY, panel, copied) == ["predictions"]
    copied.write_file(KEY, "predictions.parquet", b"PAR1 and no more")
    assert work.differences(cell(), KEY, panel, copied) == ["predictions"]
    (folder(copied) / "predictions.parquet").unlink()
    assert work.differences(cell(), KEY, panel, copied) == ["predictions"]


def test_everything_that_differs_is_named(copied: Store, panel: Panel) -> None:
    found = work.differences(cell(train=TrainSettings(max_epochs=1, batch_size=32)), KEY, panel, copied)
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
    work.run_and_record(cell(), KEY, panel, Store(str(tmp_path), "toy"), keep_weights=True)
    assert sorted(written) == sorted([*DONE_FILES, "weights.pt"])
    assert written[-1] == "result.json"


@pytest.mark.parametrize("table", ["predictions", "history"])
def test_a_disk_that_fills_up_leaves_no_record(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    store = Store(str(tmp_path), "toy")
    write = Store.write_table

    def fail(self: Store, key: str, name: str, columns: Any) -> None:
        if name == table:
            raise OSError(28, "No space left on device")
        write(self, key, name, columns)

    monkeypatch.setattr(Store, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        work.run_and_record(cell(), KEY, panel, store)
    assert store.record(KEY) is None
    monkeypatch.undo()
    assert work.run_and_record(cell(), KEY, panel, store)["state"] == "done"
    assert listed(store) == DONE_FILES


# Failures


def check_failure(store: Store, record: Record, kind: str, message: str) -> None:
    """It is stored with its reason, and no number comes of it."""
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
    numbers = [*results.METRICS, *results.COUNTS, "seconds"]
    assert {*numbers} < {*frame.columns}
    assert not [name for name in frame.columns if name.startswith(("test_site", "shared_", "nearest_"))]
    assert frame[numbers].isna().all(axis=None)
    assert row["marked"] == ""


def test_a_training_that_diverges_is_a_failure(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    record = work.run_and_record(cell(train=TrainSettings(learning_rate=1e30)), KEY, panel, store)
    check_failure(store, record, "Diverged", "lower train.learning_rate")
    trace = record["error"]["traceback"]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "pm25/fit.py" in trace
    assert Cell.model_validate(record["cell"]).train.learning_rate == 1e30
    other = cell(seed=1, train=TrainSettings(learning_rate=1e31))
    again = work.run_and_record(other, "another", panel, store)["error"]
    assert again["message"] != record["error"]["message"]
    assert again["signature"] == record["error"]["signature"]
    assert again["signature"].startswith("Diverged: ")
    assert "[pm25/fit.py:" in again["signature"]


def test_a_channel_without_a_value_is_a_failure(tmp_path: Path) -> None:
    made = synth.synthesize(sites=12, days=40).assign(elev_m=math.nan)
    panel = panels.from_table(pa.Table.from_pandas(made, preserve_index=False), "toy")
    store = Store(str(tmp_path), "toy")
    check_failure(
        store, work.run_and_record(cell(), KEY, panel, store), "InputError", "channel elev_m has no value"
    )


def test_a_split_with_an_empty_part_is_a_failure(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    whole = cell(split=CheckerboardSplit(degrees=100))  # one square holds the CONUS
    check_failure(store, work.run_and_record(whole, KEY, panel, store), "InputError", "part empty")


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
        store, work.run_and_record(cell(), KEY, panel, store), "ArithmeticError", f"test RMSE is {rmse}"
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
    record = work.run_and_record(cell(), KEY, panel, store)
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
    check_failure(store, work.run_and_record(cell(), KEY, panel, store), "RuntimeError", "first second")


def test_an_interrupt_is_no_result(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: trial.Training) -> trial.Epoch:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial.Training, "epoch", interrupt)
    store = Store(str(tmp_path), "toy")
    with pytest.raises(KeyboardInterrupt):
        work.run_and_record(cell(), KEY, panel, store)
    assert store.keys() == set()


def test_a_lost_worker_is_a_failure_like_any_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    record = work.record_loss({"key": KEY, "cell": cell().resolved()}, store, "the worker died")
    check_failure(store, record, "RuntimeError", "the worker died")
    assert record["error"]["signature"] == "RuntimeError: the worker died"
    assert {"started", "ended"} <= {*record}


def test_failures_and_successes_replace_each_other(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    short = cell(split=RandomSplit(), train=TrainSettings(max_epochs=1))
    work.record_loss({"key": KEY, "cell": short.resolved()}, store, "lost")
    store.forget(KEY)
    work.run_and_record(short, KEY, panel, store)
    record = store.record(KEY)
    assert record is not None
    assert record["state"] == "done"
    assert "error" not in record
    assert "wr_rmse" not in record["metrics"]  # a random split has no second test set
    assert {*store.read_table(KEY, "predictions")["part"].to_pylist()} == {"test"}
