"""Progress of trainings under way: written by workers, read by `sweep status`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sweeps.store import running
from sweeps.store.records import Store
from sweeps.store.running import Progress, ProgressWriter

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def first(key: str = "a", **more: Any) -> Progress:
    place = {"label": f"cell {key}", "host": "here", "process": 1, "started": NOW, "updated": NOW}
    return Progress(key=key, max_epochs=8, **{**place, **more})


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path), "toy")
    return Store(f"{request.getfixturevalue('objects').bucket()}/results", "toy")


def test_what_a_writer_writes_is_read_and_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.running(store) == []
    writer = ProgressWriter(store, first())
    assert running.running(store) == [first()]
    writer.epoch(1, 9.0, 8.0)  # too soon
    assert running.running(store) == [first()]
    monkeypatch.setattr(running, "WRITE_EVERY_S", 0.0)
    writer.epoch(2, 7.5, 7.25)
    (found,) = running.running(store, ["a", "b"])
    assert (found.epoch, found.rmse, found.best_rmse, found.share) == (2, 7.5, 7.25, 0.25)
    assert found.updated > NOW
    writer.epoch(3, float("inf"), 7.25)
    assert running.running(store)[0].rmse is None
    running.ended(store, "a")
    running.ended(store, "a")
    assert running.running(store) == []


def test_the_oldest_comes_first_and_all_are_cleared(store: Store) -> None:
    running.clear(store)
    for key, hour in (("a", 3), ("b", 1), ("c", 2)):
        ProgressWriter(store, first(key, started=NOW.replace(hour=hour)))
    assert [one.key for one in running.running(store)] == ["b", "c", "a"]
    running.clear(store)
    assert running.running(store) == []


def test_damaged_files_are_left_out(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    ProgressWriter(store, first())
    good = (tmp_path / "toy" / "running" / "a.json").read_text()
    for name, text in (
        ("empty", ""),
        ("cut", good[:40]),
        ("list", "[]"),
        ("negative", json.dumps({**json.loads(good), "epoch": -1})),
        ("missing", json.dumps({"key": "x"})),
    ):
        (tmp_path / "toy" / "running" / f"{name}.json").write_text(text)
    assert running.running(store) == [first()]


def test_a_storage_that_fails_does_not_end_a_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ProgressWriter(Store(str(tmp_path / "file"), "toy"), first()).epoch(1, 1.0, 1.0)
