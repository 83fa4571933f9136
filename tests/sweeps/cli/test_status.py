"""`sweep status` and `sweep list`."""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine import worker
from sweeps.spec import study_file
from sweeps.store.driver_process import Driver
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store
from sweeps.store.running import Progress, ProgressWriter
from tests.sweeps.cli.commands import Sweep, by_key, check_refused, fail, toy_keys, tree


def test_status_as_json_has_exactly_this_shape(sweep: Sweep, toy: Path) -> None:
    ended = sweep("status", toy, "--json")
    assert (ended.status, ended.err) == (0, "")
    assert len(ended.out.splitlines()) == 1
    content = json.loads(ended.out)
    assert content.pop("failures") == [
        {
            "cells": 1,
            "where": {"variant": "none", "split": "checkerboard-16"},
            "error": "RuntimeError",
            "message": "the worker died",
            "signature": "RuntimeError: the worker died",
            "hosts": [],
            "key": toy_keys(toy)[2],
        }
    ]
    assert content == {
        "study": "toy",
        "storage": str(toy.parent / "results"),
        "cells": {"total": 4, "done": 2, "failed": 1, "missing": 1, "damaged": 0},
        "search": {"total": 0, "done": 0, "failed": 0, "damaged": 0},
    }
    sweep("retry", toy)
    assert {*json.loads(sweep("status", toy, "--json").out)} == {"study", "storage", "cells", "search"}


def test_status_names_what_failed(sweep: Sweep, toy: Path) -> None:
    key = toy_keys(toy)[2]
    ended = sweep("status", toy)
    assert (ended.status, ended.err) == (0, "")
    head, group, hint = ended.out.splitlines()
    assert head.startswith("toy: 2 of 4 cells done, 1 failed, 1 missing")
    for value in ("1 cell", "variant=none,split=checkerboard-16", "RuntimeError: the worker died", key):
        assert value in group
    assert f"`sweep why {toy} {key[:8]}`" in hint
    assert f"`sweep retry {toy}`" in hint


def test_status_puts_equal_failures_in_one_line(sweep: Sweep, toy: Path) -> None:
    for key in toy_keys(toy):
        fail(toy, key, "CUDA out of memory", "MemoryError", "beta" if key < "8" else "alpha")
    first = toy_keys(toy)[0]
    hosts = ", ".join(sorted({"beta" if key < "8" else "alpha" for key in toy_keys(toy)}))
    lines = sweep("status", toy).out.splitlines()
    assert all(value in lines[1] for value in ("4 cells", "MemoryError: CUDA out of memory", first, hosts))
    assert len(lines) == 3


def test_status_stays_short(sweep: Sweep, toy: Path) -> None:
    many = ["--set", "design.seed=[0, 1, 2]"]
    toy_study = study_file.load(str(toy), many[1:])
    store = Store(toy_study.storage, "toy")
    for number, (key, cell) in enumerate(by_key(toy_study, toy_study.panel()).items()):
        kind = "abcdefghij"[max(0, number - 2)]  # three a, and nine others
        store.forget(key)
        worker.record_loss({"key": key, "cell": cell.resolved()}, store, kind)
    lines = sweep("status", toy, *many).out.splitlines()
    assert [line.split(" RuntimeError: ")[1][0] for line in lines[1:9]] == [*"abcdefgh"]
    assert "3 cells: seed=0" in lines[1]
    assert re.findall(r"\d+", lines[9]) == ["2", "2"]  # cells, and errors
    assert len(lines) == 11


def test_status_of_a_study_that_never_ran(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    ended = sweep("status", toy, "--set", f"storage={tmp_path / 'nowhere'}")
    assert re.findall(r"\d+", ended.out) == ["0", "4", "0", "4"]  # done, of all, failed, missing
    assert not (tmp_path / "nowhere").exists()  # asking makes nothing


@pytest.fixture
def store(toy: Path) -> Store:
    return Store(str(toy.parent / "results"), "toy")


def train(store: Store, key: str) -> Progress:
    """Begin to write the progress of a training."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    place: dict[str, Any] = {"host": "alpha", "process": 7, "started": now, "updated": now}
    scores = {"epoch": 3, "max_epochs": 8, "rmse": 7.5, "best_rmse": 7.25}
    first = Progress(key=key, label="none random fold 0 seed 0", **place, **scores)
    ProgressWriter(store, first)
    return first


def test_status_during_a_run_shows_its_process_and_its_trainings(
    sweep: Sweep, toy: Path, store: Store
) -> None:
    missing = toy_keys(toy)[3]
    first = train(store, missing)
    assert "epoch" not in sweep("status", toy).out, "nothing runs, so a killed run left the file"
    with StudyLock(store):
        lines = sweep("status", toy).out.splitlines()
        content = json.loads(sweep("status", toy, "--json", "--cells").out)
    assert re.fullmatch(rf"  running since 20.*UTC: process {os.getpid()} on host \S+", lines[1])
    assert lines[2] == f"  training {first.line}, on host alpha since 2026-01-01 12:00:00 UTC"
    assert "epoch 3 of 8, validation RMSE 7.50, lowest 7.25" in lines[2]
    assert (content["run"]["alive"], content["run"]["process"]) == (True, os.getpid())
    assert [one["key"] for one in content["training"]] == [missing]
    assert [one["state"] for one in content["each"] if one["key"] == missing] == ["epoch 3 of 8"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_status_after_a_run_was_killed(sweep: Sweep, toy: Path, store: Store, elsewhere: bool) -> None:
    with StudyLock(store):
        path = toy.parent / "results" / "toy" / "driver.json"
        driver = Driver.model_validate_json(path.read_text())
    change = {"process_space": "elsewhere"} if elsewhere else {"start_ticks": 1}
    path.write_text(driver.model_copy(update=change).model_dump_json())
    train(store, toy_keys(toy)[3])
    line, *others = sweep("status", toy).out.splitlines()[1:]
    if elsewhere:  # only its heartbeat is known
        assert re.search(r"running since .* last heartbeat at 20.* UTC", line)
        assert "epoch 3 of 8" in others[0]
    else:
        assert "was killed" in line
        assert "`sweep run` resumes" in line
        assert not any("epoch" in other for other in others)
    alive = json.loads(sweep("status", toy, "--json").out)["run"]["alive"]
    assert alive is (None if elsewhere else False)


def test_status_of_a_driver_file_that_is_damaged(sweep: Sweep, toy: Path) -> None:
    (toy.parent / "results" / "toy" / "driver.json").write_text("{")
    check_refused(sweep("status", toy), "driver.json", "delete the file")


def test_status_names_unfinished_trainings_of_stale_cells(sweep: Sweep, toy: Path) -> None:
    """The first cell is of the study, and a next run resumes it."""
    store = Store(str(toy.parent / "results"), "toy")
    wanted = toy_keys(toy)[3]
    stale = "0123456789" * 2
    for key in (wanted, stale):
        store.write_file(key, "checkpoint.pt", b"epoch 1")
    content = json.loads(sweep("status", toy, "--json").out)
    assert content["stale_unfinished"] == [stale]
    (line,) = [line for line in sweep("status", toy).out.splitlines() if "unfinished training" in line]
    assert line.startswith(f"  1 unfinished training of stale cells: {stale[:8]}; ")
    assert str(toy.parent / "results" / "toy" / "cells") in line
    store.forget(stale)
    assert "unfinished training" not in sweep("status", toy).out


def test_status_names_stale_cells(sweep: Sweep, toy: Path) -> None:
    narrow = ["--set", "design.variant=latlon"]
    content = json.loads(sweep("status", toy, "--json", *narrow).out)
    stored = {path.parent.name for path in toy.parent.glob("results/toy/cells/*/result.json")}
    kept = {one["key"] for one in json.loads(sweep("status", toy, "--json", "--cells", *narrow).out)["each"]}
    assert content["stale"] == sorted(stored - kept)
    assert content["stale"]
    (line,) = [line for line in sweep("status", toy, *narrow).out.splitlines() if "stale" in line]
    assert f"{len(content['stale'])} stored cells are stale" in line
    assert f"sweep why {toy}" in line
    assert content["stale"][0][:8] in line


def test_every_cell_has_a_row(sweep: Sweep, toy: Path) -> None:
    cells = json.loads(sweep("status", toy, "--json", "--cells").out)["each"]
    assert [one["key"] for one in cells] == toy_keys(toy)
    assert [one["state"] for one in cells] == ["done", "done", "failed", "missing"]
    for one in cells[:2]:
        path = toy.parent / "results" / "toy" / "cells" / one["key"] / "result.json"
        record = json.loads(path.read_text())
        assert one["test_rmse"] == record["metrics"]["test_rmse"]
        assert one["seconds"] == record["seconds"]
    assert {one["test_rmse"] for one in cells[2:]} == {None}
    text = sweep("status", toy, "--cells").out
    for one in cells:
        assert one["key"] in text
    assert f"{cells[0]['test_rmse']:.2f}" in text
    assert "None" not in text


def test_list_shows_every_study_of_a_storage(sweep: Sweep, toy: Path, store: Store) -> None:
    results = toy.parent / "results"
    (results / "no study").mkdir()
    (results / "mlflow.db").write_text("")
    Store(str(results), "other").prepare()
    before = tree(results)
    with StudyLock(store):
        content = json.loads(sweep("list", results, "--json").out)
        text = sweep("list", results).out
    newest = max(json.loads(path.read_text())["ended"] for path in results.glob("toy/cells/*/result.json"))
    other, mine = content["studies"]
    assert other == {
        "study": "other",
        "done": 0,
        "failed": 0,
        "damaged": 0,
        "search trials": 0,
        "newest result": None,
        "run": None,
    }
    assert (mine["study"], mine["done"], mine["failed"]) == ("toy", 2, 1)
    assert mine["newest result"].startswith(newest[:19].replace("T", " "))
    assert f"process {os.getpid()}" in mine["run"]
    assert all(word in text for word in ("toy", "other", "newest result", mine["run"]))
    assert "no study" not in text
    assert tree(results) == before


def test_list_of_a_bucket(sweep: Sweep, objects: Any) -> None:
    storage = f"{objects.bucket()}/results"
    check_refused(sweep("list", storage), storage, "no such folder")
    Store(storage, "toy").write_record({"key": "a", "state": "done", "ended": "2026-01-01T12:00:00+00:00"})
    (one,) = json.loads(sweep("list", storage, "--json").out)["studies"]
    assert (one["study"], one["done"]) == ("toy", 1)


def test_list_of_a_folder_without_studies(sweep: Sweep, tmp_path: Path) -> None:
    check_refused(sweep("list", tmp_path / "nowhere"), "nowhere", "no such folder")
    file = tmp_path / "mine.yaml"
    file.touch()
    check_refused(sweep("list", file), "mine.yaml", "not a folder")
    assert "has no study" in sweep("list", tmp_path).out


@pytest.mark.parametrize(("ended", "damaged"), [({}, 0), ({"ended": "yesterday"}, 1)])
def test_list_needs_no_time_of_a_record(
    sweep: Sweep, tmp_path: Path, ended: dict[str, str], damaged: int
) -> None:
    results = tmp_path / "results"
    for key, time in (("a", {"ended": "2026-01-02T03:04:05+00:00"}), ("b", ended)):
        Store(str(results), "one").write_record({"key": key, "state": "done", **time})
    (one,) = json.loads(sweep("list", results, "--json").out)["studies"]
    assert (one["done"], one["damaged"]) == (2 - damaged, damaged)
    assert one["newest result"] == "2026-01-02 03:04:05 UTC"


def test_status_says_that_nothing_is_stored_only_where_that_is_so(sweep: Sweep, toy: Path) -> None:
    storage = toy.parent / "elsewhere"
    given = ("status", toy, "--set", f"storage={storage}")
    assert "nothing is stored there" in sweep(*given).out
    Store(str(storage), "toy").write_record(
        {"key": "a" * 20, "state": "done", "ended": "2026-01-01T12:00:00+00:00"}
    )
    text = sweep(*given).out
    assert "1 stored cells are stale" in text
    assert "nothing is stored there" not in text
