"""One cell, run and recorded: what is stored, in which order, and what a failure leaves behind."""

import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pm25 import panel as panels
from pm25 import synth, trial
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps import results, work
from sweeps.store import Record, Store

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


def folder(store: Store) -> Path:
    return Path(store.storage) / "toy" / "cells" / KEY


def listed(store: Store) -> list[str]:
    return sorted(path.name for path in folder(store).iterdir())


def test_the_record_tells_the_whole_story(done: tuple[Store, Record], panel: Panel) -> None:
    store, record = done
    assert store.record(KEY) == record  # what is handed back is what is stored
    assert [*record] == [
        *("key", "state", "cell", "data", "encoder", "numerics", "host", "process", "device", "threads"),
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
    assert {*record["metrics"]} == {
        f"{part}_{name}" for part in ("val", "test", "wr") for name in ("rmse", "r2", "mae", "mbe")
    }
    assert all(math.isfinite(value) for value in record["metrics"].values())
    assert record["counts"]["epochs"] == 2
    assert {"train_sites", "shared_sites", "nearest_km_min"} <= {*record["audit"]}


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
    assert [*history] == ["epoch", "train_loss", "validation_loss", "learning_rate"]
    assert history["epoch"] == [1, 2]
    assert history["learning_rate"] == [1e-3, 1e-3]
    assert all(0 < loss < 10 for loss in history["train_loss"] + history["validation_loss"])
    best = 1 + min((0, 1), key=lambda epoch: history["validation_loss"][epoch])
    assert done[1]["counts"]["best_epoch"] == best


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
    vectors = np.random.default_rng(0).normal(size=(len(panel.site_id), 8)).astype(np.float32)
    short = TrainSettings(max_epochs=1)
    placed = cell(variant="geoclip", fusion="concat", train=short)
    record = work.run_and_record(placed, "a", panel, store, embedding=vectors, encoder_fingerprint="weights")
    assert (record["state"], record["encoder"]) == ("done", "weights")
    record = work.run_and_record(cell(train=short), "b", panel, store, encoder_fingerprint="weights")
    assert (record["state"], record["encoder"]) == ("done", None)


def test_the_record_is_written_last(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Store._write

    def watch(self: Store, key: str, name: str, content: Any) -> None:
        assert self.record(key) is None
        write(self, key, name, content)
        written.append(name)

    monkeypatch.setattr(Store, "_write", watch)
    work.run_and_record(cell(), KEY, panel, Store(str(tmp_path), "toy"))
    assert sorted(written) == DONE_FILES
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
    assert f"{kind}: " in record["error"]["traceback"]
    assert not {"metrics", "counts", "audit", "seconds"} & {*record}
    assert listed(store) == FAILED_FILES
    of_cell = Cell.model_validate(record["cell"])
    (row,) = results.rows({KEY: of_cell}, store.records([KEY])).to_dict("records")
    assert row["state"] == "failed"
    assert row["error"] == f"{kind}: {record['error']['message']}"
    numbers = [*results.METRICS, *results.COUNTS, *results.AUDIT, "seconds"]
    assert results.rows({KEY: of_cell}, store.records([KEY]))[numbers].isna().all(axis=None)


def test_a_training_that_diverges_is_a_failure(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    record = work.run_and_record(cell(train=TrainSettings(learning_rate=1e30)), KEY, panel, store)
    check_failure(store, record, "Diverged", "lower train.learning_rate")
    trace = record["error"]["traceback"]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "in fit\n" in trace
    assert Cell.model_validate(record["cell"]).train.learning_rate == 1e30


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
    run = trial.run

    def broken(*args: Any, **options: Any) -> trial.Result:
        result = run(*args, **options)
        return trial.Result(**vars(result) | {"metrics": result.metrics | {"test_rmse": rmse}})

    monkeypatch.setattr(trial, "run", broken)
    check_failure(
        store, work.run_and_record(cell(), KEY, panel, store), "ArithmeticError", f"test RMSE is {rmse}"
    )


def test_an_r2_without_variance_is_missing_and_no_failure(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), "toy")
    run = trial.run

    def flat(*args: Any, **options: Any) -> trial.Result:
        result = run(*args, **options)
        return trial.Result(**vars(result) | {"metrics": result.metrics | {"test_r2": math.nan}})

    monkeypatch.setattr(trial, "run", flat)
    record = work.run_and_record(cell(), KEY, panel, store)
    assert (record["state"], record["metrics"]["test_r2"]) == ("done", None)
    frame = results.rows({KEY: cell()}, store.records([KEY]))
    assert frame["test_r2"].isna().all()
    assert frame["test_rmse"].notna().all()


def test_a_message_of_many_lines_becomes_one(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> trial.Result:
        raise RuntimeError("first\n  second\n")

    monkeypatch.setattr(trial, "run", fail)
    store = Store(str(tmp_path), "toy")
    check_failure(store, work.run_and_record(cell(), KEY, panel, store), "RuntimeError", "first second")


def test_an_interrupt_is_no_result(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> trial.Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "run", interrupt)
    store = Store(str(tmp_path), "toy")
    with pytest.raises(KeyboardInterrupt):
        work.run_and_record(cell(), KEY, panel, store)
    assert store.keys() == set()


def test_a_lost_worker_is_a_failure_like_any_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    record = work.record_loss(cell(), KEY, store, "the worker died")
    check_failure(store, record, "RuntimeError", "the worker died")
    assert {"started", "ended"} <= {*record}


def test_failures_and_successes_replace_each_other(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    short = cell(split=RandomSplit(), train=TrainSettings(max_epochs=1))
    work.record_loss(short, KEY, store, "lost")
    store.forget(KEY)
    work.run_and_record(short, KEY, panel, store)
    record = store.record(KEY)
    assert record is not None
    assert record["state"] == "done"
    assert "error" not in record
    assert "wr_rmse" not in record["metrics"]  # a random split has no second test set
    assert {*store.read_table(KEY, "predictions")["part"].to_pylist()} == {"test"}
