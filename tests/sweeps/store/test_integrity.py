"""Records that prove themselves: no single change of a stored file becomes another number."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pm25.errors import InputError
from sweeps.analysis import artifacts
from sweeps.bench import engine
from sweeps.cli import cli
from sweeps.engine import worker
from sweeps.state import StudyState
from sweeps.store import declarations, fsck, integrity
from sweeps.store.fencing import LockLost
from sweeps.store.integrity import DamagedFile
from sweeps.store.lock import StudyLock
from sweeps.store.records import FOLDERS, Record, StorageFault, Store
from tests.errors import refuses

CELLS = 3


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    """A study of three cells without training, each with its tables."""
    state = engine.study(tmp_path_factory.mktemp("stored"), CELLS)
    for key, cell in state.cells.items():
        engine.trivial(cell, key, state.panel, state.store)
    return state


@pytest.fixture
def copy(stored: StudyState, tmp_path: Path) -> Iterator[Path]:
    """The folder of the study's cells in a storage of its own, which `stored` reads meanwhile."""
    original = stored.store
    yield copied(stored, tmp_path, original)
    stored.store = original


def copied(state: StudyState, folder: Path, original: Store) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(original.storage) / "engine", folder / "engine")
    state.store = Store(str(folder), "engine")
    return folder / "engine" / "cells"


def record_of(cells: Path, key: str) -> Record:
    found: Record = json.loads((cells / key / "result.json").read_text())
    return found


def unseal(cells: Path, key: str, /, **changes: Any) -> None:
    """Write a record as version 0.1.0 did, with some fields changed."""
    record = {n: value for n, value in record_of(cells, key).items() if n not in integrity.SEAL} | changes
    (cells / key / "result.json").write_text(json.dumps(record, indent=1))


# The format


def test_another_program_can_verify_a_record(stored: StudyState) -> None:
    """The rule of the reference: zeros in place of the digest, then SHA-256 of the bytes."""
    import hashlib

    cells = Path(stored.store.storage) / "engine" / "cells"
    for path in cells.glob("*/result.json"):
        content = path.read_bytes()
        record = json.loads(content)
        zeroed = content.replace(record["sha256"].encode(), b"0" * 64, 1)
        assert hashlib.sha256(zeroed).hexdigest() == record["sha256"]
        assert (record["format"], record["key"]) == (2, path.parent.name)
        assert {*record["files"]} == {"predictions.parquet", "history.parquet"}
        for name, sha256 in record["files"].items():
            assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == sha256


def test_what_is_read_is_what_was_written(stored: StudyState) -> None:
    for key, record in stored.store.records(stored.cells, "all").items():
        assert (record["key"], record["state"]) == (key, "done")
        assert not {"format", "sha256"} & {*record}


# Attacks


def numbers(state: StudyState) -> dict[str, Any]:
    """Every number that a report shows of each cell: its row, and the sums over its predictions."""
    rows = state.rows(state.records("tables")).set_index("key")
    sums = artifacts.predictions(state.store, rows.reset_index())
    found: dict[str, Any] = {}
    for key, row in rows.iterrows():
        if row["state"] == "done":
            assert sums is not None
            by_site = sums.of(str(key))
            assert by_site is not None
            found[str(key)] = row.dropna().to_dict(), [part.tolist() for part in by_site]
        else:
            assert row["state"] in ("damaged", "missing")
            assert row.filter(regex="^(test|wr|val)_").isna().all()
    return found


def flip(path: Path, at: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(bytes(content))


METRICS = ("test_rmse", "val_rmse", "test_r2", "wr_mae")
VALUES = (0.001, math.nan, math.inf, "x", None, True, [], {}, -1e308)
FILES = ("result.json", "predictions.parquet", "history.parquet")


def edited(path: Path, change: Callable[[Record], Any]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record, indent=1))


ATTACKS = st.one_of(
    st.tuples(st.just("flip"), st.sampled_from(FILES), st.floats(0, 1), st.integers(0, 7)),
    st.tuples(st.just("truncate"), st.sampled_from(FILES), st.floats(0, 1)),
    st.tuples(st.just("append"), st.sampled_from(FILES), st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("metric"), st.sampled_from(METRICS), st.sampled_from(VALUES)),
    st.tuples(st.just("drop"), st.sampled_from(("metrics", "counts", "audit", "cell", "sha256", "format"))),
    st.tuples(st.just("drop metric"), st.sampled_from(METRICS)),
    st.tuples(st.just("folder"), st.sampled_from(FILES)),
    st.tuples(st.just("delete"), st.sampled_from(FILES)),
    st.tuples(st.just("swap"), st.sampled_from((*FILES, ""))),
    st.tuples(st.just("copy"), st.sampled_from(FILES)),
    st.tuples(st.just("nested"), st.integers(100, 100_000)),
    st.tuples(st.just("key"), st.text(max_size=20)),
    st.tuples(st.just("cell of another"), st.booleans()),
)


def attack(cells: Path, first: str, second: str, kind: str, *how: Any) -> None:
    """Change one stored file of the first cell, or exchange something with the second."""
    result = cells / first / "result.json"
    if kind == "flip":
        flip(cells / first / how[0], *how[1:])
    elif kind == "truncate":
        path = cells / first / how[0]
        os.truncate(path, int(how[1] * (path.stat().st_size - 1)))
    elif kind == "append":
        with (cells / first / how[0]).open("ab") as file:
            file.write(how[1])
    elif kind == "metric":
        edited(result, lambda record: record["metrics"].__setitem__(*how))
    elif kind == "drop":
        edited(result, lambda record: record.pop(how[0]))
    elif kind == "drop metric":
        edited(result, lambda record: record["metrics"].pop(how[0]))
    elif kind == "folder":
        (cells / first / how[0]).unlink()
        (cells / first / how[0]).mkdir()
    elif kind == "delete":
        (cells / first / how[0]).unlink()
    elif kind == "swap":
        a, b = cells / first / how[0], cells / second / how[0]
        a.rename(cells / "aside")
        b.rename(a)
        (cells / "aside").rename(b)
    elif kind == "copy":
        shutil.copyfile(cells / second / how[0], cells / first / how[0])
    elif kind == "nested":
        result.write_text('{"cell": ' * how[0] + "1" + "}" * how[0])
    elif kind == "key":
        edited(result, lambda record: record.__setitem__("key", how[0]))
    else:  # an honest digest of another cell's settings
        record = record_of(cells, first) | {"cell": record_of(cells, second)["cell"]}
        result.write_bytes(integrity.seal(record, record["files"]))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ATTACKS)
def test_no_change_of_a_file_becomes_another_number(
    stored: StudyState, tmp_path_factory: pytest.TempPathFactory, how: tuple[Any, ...]
) -> None:
    original, before = stored.store, numbers(stored)
    first, second, _ = stored.cells
    folder = tmp_path_factory.getbasetemp() / "attacked"
    try:
        cells = copied(stored, folder, original)
        kept = {path: path.read_bytes() for path in cells.glob("*/*")}
        attack(cells, first, second, *how)
        same = {path: path.read_bytes() for path in cells.glob("*/*") if path.is_file()} == kept
        after = numbers(stored)
        assert {key: before[key] for key in after} == after
        assert (first in after) == same
        checked = fsck.check(stored.store, fsck.listing(stored.store))
        assert checked.intact == (same or how == ("delete", "result.json"))
    finally:
        stored.store = original


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"test_rmse": math.nan, "val_rmse": 1.0}},
        {"metrics": {"test_rmse": "x", "val_rmse": 1.0}},
        {"metrics": {"test_rmse": 1.0}},
        {"metrics": {"test_rmse": None, "val_rmse": 1.0}},
        {"counts": {"n_test": 1.5}},
        {"counts": {"n_test": -1}},
        {"audit": []},
        {"seconds": -1.0},
        {"state": "pruned"},
        {"key": "0" * 20},
        {"data": "another table"},
        {"numerics": 77},
    ],
)
def test_an_unsealed_record_is_checked_as_far_as_possible(
    stored: StudyState, copy: Path, change: dict[str, Any]
) -> None:
    first, *_ = stored.cells
    unseal(copy, first)
    assert stored.records("tables")[first]["state"] == "done"
    assert stored.unsealed == 1
    unseal(copy, first, **change)
    assert stored.records()[first]["state"] == "damaged"
    assert stored.unsealed == 0


def test_missing_predictions_are_not_silent(stored: StudyState, copy: Path) -> None:
    first, second, _ = stored.cells
    unseal(copy, second)
    for key in (first, second):
        (copy / key / "predictions.parquet").unlink()
    assert {record["state"] for record in stored.records().values()} == {"done"}
    records = stored.records("tables")
    assert [record["state"] for record in records.values()] == ["damaged", "damaged", "done"]
    assert "predictions.parquet is missing" in integrity.describe(records[first])
    with refuses("predictions.parquet", "", "missing", kind=DamagedFile):
        stored.store.read_table(first, "predictions")


@pytest.mark.parametrize("name", ["predictions", "history"])
def test_a_table_that_changes_after_its_check_is_checked_again(
    stored: StudyState, copy: Path, name: Literal["predictions", "history"]
) -> None:
    first, second, _ = stored.cells
    store, file = stored.store, f"{name}.parquet"
    assert {record["state"] for record in stored.records("tables").values()} == {"done"}
    own = (copy / first / file).read_bytes()
    for wrong in (own[:-1], own[:50] + bytes([own[50] ^ 1]) + own[51:], b"x" + own):
        (copy / first / file).write_bytes(wrong)
        with refuses(file, "", "SHA-256", kind=DamagedFile):
            store.read_result(first, name)
    (copy / first / file).unlink()
    with refuses(file, "", "missing", kind=DamagedFile):
        store.read_result(first, name)

    new = store.read_result(second, name).slice(0, 1)
    record = store.record(first) or {}
    store.write_record(record, record["files"] | {file: store.write_table(first, name, new)})
    assert store.read_result(first, name).equals(new)


def test_weights_may_be_deleted_and_not_changed(stored: StudyState, copy: Path) -> None:
    key = next(iter(stored.cells))
    record = stored.store.record(key) or {}
    files = record["files"] | {"weights.pt": stored.store.write_file(key, "weights.pt", b"weights")}
    stored.store.write_record(record, files)
    assert stored.store.read_recorded(key, "weights.pt") == b"weights"
    (copy / key / "weights.pt").write_bytes(b"Weights")
    with refuses("weights.pt", "", "SHA-256", kind=DamagedFile):
        stored.store.read_recorded(key, "weights.pt")
    assert [(stored.store.record(key, files) or {})["state"] for files in ("tables", "all")] == [
        "done",
        "damaged",
    ]
    (copy / key / "weights.pt").unlink()
    assert stored.store.read_recorded(key, "weights.pt") is None
    assert (stored.store.record(key, "all") or {})["state"] == "done"


# Commands


def command(state: StudyState, *words: str) -> tuple[int, str]:
    """Run a command in this process; returns its exit status and what it printed."""
    study = str(Path(state.study.storage) / "engine.yaml")
    words = tuple(study if word == "STUDY" else word for word in words)
    sets = ("--set", f"storage={state.store.storage}") if study in words else ()
    ended = CliRunner().invoke(cli, [*words, *sets], standalone_mode=False)
    if ended.exception is not None:
        assert isinstance(ended.exception, ValueError), ended.exception
        assert "\n" not in str(ended.exception)
    return ended.return_value or 0, ended.output


def test_damage_is_counted_named_and_retried_on_request(
    stored: StudyState, copy: Path, tmp_path: Path
) -> None:
    first, second, third = stored.cells
    edited(copy / first / "result.json", lambda record: record["metrics"].update(test_rmse=0.001))
    kept = (copy / first / "result.json").read_bytes()
    _, text = command(stored, "status", "STUDY", "--json")
    content = json.loads(text[text.index("{") :])
    assert content["cells"] == {"total": 3, "done": 2, "failed": 0, "missing": 0, "damaged": 1}
    assert [one["key"] for one in content["damaged"]] == [first]
    _, text = command(stored, "status", "STUDY", "--cells")
    assert "2 of 3 cells done, 0 failed, 0 missing, 1 damaged" in text
    assert [line.split()[-2:] for line in text.splitlines() if first in line and "│" in line]
    _, text = command(stored, "why", "STUDY", first[:8])
    assert f"{first} none random fold 0 seed 0: damaged" in text
    assert "SHA-256" in text
    assert f"sweep retry {stored.study.storage}/engine.yaml" in text
    assert "STUDY" not in text
    command(stored, "export", "STUDY", str(tmp_path / "cells.csv"))
    rows = pd.read_csv(tmp_path / "cells.csv").set_index("key")
    assert rows["state"].to_dict() == {first: "damaged", second: "done", third: "done"}
    assert np.isnan(rows.loc[first, "test_rmse"])
    status, text = command(stored, "fsck", str(stored.store.storage))
    assert status == 1
    assert f"{copy / first / 'result.json'}: " in text
    assert (copy / first / "result.json").read_bytes() == kept
    _, text = command(stored, "retry", "STUDY", "--damaged")
    assert "1 damaged cell and 0 damaged search trials moved to" in text
    (aside,) = (copy.parent / "damaged" / "cells").iterdir()
    assert (aside / "result.json").read_bytes() == kept
    assert [*stored.records()] == [second, third]
    status, text = command(stored, "fsck", str(stored.store.storage))
    assert (status, "nothing is damaged" in text) == (0, True)
    _, text = command(stored, "retry", "STUDY", "--damaged")
    assert "nothing to move aside" in text


@pytest.mark.parametrize("words", [("retry", "STUDY", "--damaged"), ("seal", "STUDY")])
def test_a_command_that_lost_the_lock_changes_no_record(
    stored: StudyState, copy: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = stored.cells
    edited(copy / first / "result.json", lambda record: record["metrics"].update(test_rmse=0.001))
    unseal(copy, second)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    named = copy.parent / "driver.json"
    enter = StudyLock.__enter__

    def lose(lock: StudyLock) -> StudyLock:
        enter(lock)
        driver = json.loads(named.read_bytes())
        named.write_text(json.dumps(driver | {"id": "another", "number": 2}))
        return lock

    monkeypatch.setattr(StudyLock, "__enter__", lose)
    study = str(Path(stored.study.storage) / "engine.yaml")
    line = [study if word == "STUDY" else word for word in words]
    ended = CliRunner().invoke(cli, [*line, "--set", f"storage={stored.store.storage}"])
    assert isinstance(ended.exception, LockLost)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_old_records_are_sealed(stored: StudyState, copy: Path) -> None:
    for key in stored.cells:
        unseal(copy, key)
    before = numbers(stored)
    status, text = command(stored, "fsck", stored.store.storage, "--json")
    content = json.loads(text)
    assert (status, content["unsealed"], content["sealed"], content["damaged"]) == (0, 3, 0, 0)
    _, text = command(stored, "status", "STUDY")
    (line,) = [line for line in text.splitlines() if "unsealed" in line]
    assert line.startswith("  3 cells unsealed")
    assert f"`sweep seal {stored.study.storage}/engine.yaml" in line
    _, text = command(stored, "seal", stored.store.storage)
    assert "engine: 3 records sealed, of 3" in text
    assert "unsealed" not in command(stored, "status", "STUDY")[1]
    assert numbers(stored) == before
    assert stored.unsealed == 0
    (copy / next(iter(stored.cells)) / "history.parquet").unlink()
    status, text = command(stored, "fsck", stored.store.storage, "--json")
    assert (status, json.loads(text)["sealed"]) == (1, 2)


@pytest.mark.parametrize(
    ("path", "content", "intact"),
    [
        ("declarations.json", b"{", False),
        ("driver.json", b"{}", False),
        ("running/abc.json", b"{}", False),
        ("optuna.journal", b'{"a": 1}\nhalf', True),
        ("optuna.journal", b"no\n", False),
        ("cells/abc/checkpoint.pt", b'{"sha256": "00"}\nstate', False),
        ("cells/abc/.result.json.1234.part", b"half", True),
        ("search/abc/begun.json", b"{}", False),
        ("cells/note.txt", b"mine", True),
        ("channels.json", b"[1]", False),
        ("channels.json", None, False),  # a folder
        ("declarations.json", None, False),
        ("driver.json", None, False),
        ("optuna.journal", None, False),
    ],
)
def test_fsck_checks_the_other_files_of_a_study(
    stored: StudyState, copy: Path, path: str, content: bytes | None, intact: bool
) -> None:
    file = copy.parent / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        file.unlink(missing_ok=True)
        file.mkdir()
    else:
        file.write_bytes(content)
    checked = fsck.check(stored.store, fsck.listing(stored.store))
    assert [finding.path for finding in checked.findings] == [str(file)]
    assert checked.intact == intact
    assert "Fix: " in checked.findings[0].line
    assert command(stored, "fsck", stored.store.storage)[0] == int(not intact)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_changed_start_file_is_named_and_its_trial_still_read(
    stored: StudyState, copy: Path, sealed: bool
) -> None:
    """A flipped bit that leaves JSON with other settings, and a file that is gone."""
    store = stored.store.search
    point = "p" * 20
    start = {"kind": "trial", "arm": "none", "number": 0, "params": {"train.decay": 0.25}, "point": point}
    key = integrity.trial_key(point, 0)
    spent = {"reported": [1.0], "epochs": 1, "seconds": 2.0}
    draft = start | {"key": key, "state": "pruned", **spent}
    store.write_file(key, integrity.STARTED_FILE, integrity.start_file(start))
    worker.end_trial(draft, store)
    folder = copy.parent / "search" / key
    if not sealed:
        edited(folder / "result.json", lambda record: [record.pop(name) for name in integrity.SEAL])
    file = folder / integrity.STARTED_FILE

    def found() -> list[str]:
        checked = fsck.check(stored.store, fsck.listing(stored.store))
        return [finding.path for finding in checked.findings if finding.damage]

    content = file.read_bytes()
    assert json.loads(content) == start
    assert found() == []
    file.write_bytes(content.replace(b"0.25", b"0.65"))
    assert found() == [str(file)]
    assert (store.record(key, "tables") or {})["state"] == "pruned"
    file.unlink()
    assert found() == ([str(file)] if sealed else [])
    assert (store.record(key, "tables") or {})["state"] == "pruned"
    assert (store.record(key, "all") or {})["state"] == ("damaged" if sealed else "pruned")
    if not sealed:
        file.write_bytes(content)
        assert store.seal(key)
        file.unlink()
        assert found() == [str(file)]


def test_fsck_counts_records_and_files_in_words_of_their_own(stored: StudyState, copy: Path) -> None:
    first, second, third = stored.cells
    for name in ("predictions.parquet", "history.parquet"):
        (copy / first / name).unlink()
    flip(copy / second / "result.json", 0.5, 0)
    unseal(copy, third)
    _, text = command(stored, "fsck", stored.store.storage)
    words = "1 study, 3 records (0 sealed, 1 unsealed, 2 damaged): 3 files damaged or missing"
    assert text.splitlines()[-1] == f"{stored.store.storage}: {words}"
    command(stored, "retry", "STUDY", "--damaged")
    _, text = command(stored, "fsck", stored.store.storage)
    assert text.splitlines()[-1].endswith("1 study, 1 record (0 sealed, 1 unsealed): nothing is damaged")


def test_a_damaged_record_that_cannot_be_moved_aside_is_a_fault_of_the_storage(
    stored: StudyState, copy: Path
) -> None:
    (copy.parent / "damaged").write_text("not a folder")
    with pytest.raises(StorageFault, match="written"):
        stored.store.set_aside(next(iter(stored.cells)))


def test_seal_of_a_name_that_nothing_has_says_so(stored: StudyState, tmp_path: Path) -> None:
    with refuses("nowhere", "", "nothing is stored there") as caught:
        CliRunner().invoke(cli, ["seal", "nowhere"], standalone_mode=False, catch_exceptions=False)
    assert "demo" not in str(caught.value)


def test_fsck_leaves_a_running_study_alone(stored: StudyState, copy: Path) -> None:
    with StudyLock(stored.store):
        assert command(stored, "fsck", stored.store.storage)[0] == 0


@pytest.mark.parametrize("scores", [{}, {"wr": {}}])
def test_unsealed_trial_without_scores_is_damaged_and_not_sealed(tmp_path: Path, scores: Any) -> None:
    trials = Store(str(tmp_path), "old").search
    key = integrity.trial_key("point", 0)
    record = {"key": key, "state": "done", "arm": "none", "number": 0, "params": {}, "point": "point"}
    record |= {
        "kind": "trial",
        "seconds": 1.0,
        "reported": [1.0],
        "scores": scores,
        "epochs": 1,
        "ended": "2026-01-01T00:00:00+00:00",
    }
    trials.write_file(key, "result.json", json.dumps(record).encode())
    found = trials.record(key)
    assert found is not None
    assert found["state"] == "damaged"
    assert found["damage"]["problem"].startswith("scores")
    assert not trials.seal(key)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=5)
"""Texts with halves of surrogate pairs, as a traceback may have them."""
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(text=ANY_TEXT, more=ANY_JSON)
def test_every_json_value_is_read_as_it_was_written(text: str, more: Any) -> None:
    error = {"type": "Diverged", "message": text}
    record = {"key": "a", "state": "failed", "error": error, "more": more}
    found = integrity.check(json.dumps(record).encode(), "a", "cells").record
    assert repr(found) == repr(record)  # which tells 1 from 1.0, and 0.0 from -0.0


# Files and folders that are exchanged


def refusals(state: StudyState, folder: Path) -> dict[str, list[str]]:
    """Lines with a fix of every quick command that reads or writes the store, by command."""
    study = str(Path(state.study.storage) / "engine.yaml"), f"--set=storage={state.store.storage}"
    found = {}
    for words in (
        ("status", *study),
        ("list", state.store.storage),
        ("why", *study, next(iter(state.cells))),
        ("export", *study, str(folder / "cells.csv")),
        ("retry", *study, "--damaged"),
        ("seal", state.store.storage),
        ("fsck", state.store.storage),
    ):
        ended = CliRunner().invoke(cli, words, standalone_mode=False)
        assert ended.exception is None or isinstance(ended.exception, InputError)
        lines = [*ended.output.splitlines(), *([str(ended.exception)] if ended.exception else [])]
        found[words[0]] = [line for line in lines if "Fix: " in line]
    return found


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("declarations.json", set[str]()),
        ("origin.json", set[str]()),
        ("channels.json", {"status", "why", "export", "retry"}),
        ("driver.json", {"status", "list", "retry", "seal"}),
    ],
)
def test_a_folder_in_place_of_a_file_of_a_study_is_named(
    stored: StudyState, copy: Path, tmp_path: Path, name: str, readers: set[str]
) -> None:
    path = copy.parent / name
    path.unlink(missing_ok=True)
    path.mkdir()
    found = refusals(stored, tmp_path)
    assert {command for command, lines in found.items() if lines} == readers | {"fsck"}
    for line in (line for lines in found.values() for line in lines):
        assert line.startswith(f"{path}: {name} is a folder. Fix: move it away"), line
    with refuses(str(path), "", "is a folder", "move it away"):
        {"origin.json": declarations.origin}.get(name, lambda store: store.own_file(name))(stored.store)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_place_of_a_folder_of_a_study_is_named(
    stored: StudyState, copy: Path, tmp_path: Path, name: str
) -> None:
    path = copy.parent / name
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("")
    found = refusals(stored, tmp_path)
    assert found["fsck"]
    if name == "cells":
        assert all(found.values()), found
    for line in (line for lines in found.values() for line in lines):
        assert line.startswith(f"{path}: "), line
        assert "a file in place of a folder" in line
        assert "move it away" in line
    with refuses(str(path), "", "written", "a file in place of a folder", "move it away"):
        stored.store.prepare() if name in integrity.ENDED else stored.store.write_file(f"../{name}", "a", b"")


def test_a_file_in_place_of_the_folder_of_a_study_is_named(stored: StudyState, copy: Path) -> None:
    shutil.rmtree(copy.parent)
    copy.parent.write_text("")
    for act in (stored.store.prepare, stored.store.keys, StudyLock(stored.store).__enter__):
        with refuses(str(copy.parent), "", "a file in place of a folder", "move it away"):
            act()


@pytest.mark.parametrize("name", integrity.TABLES)
def test_a_sealed_record_names_both_of_its_tables(stored: StudyState, copy: Path, name: str) -> None:
    key = next(iter(stored.cells))
    record = record_of(copy, key)
    files = {other: sha256 for other, sha256 in record["files"].items() if other != name}
    (copy / key / "result.json").write_bytes(integrity.seal(record, files))
    found = stored.store.record(key)
    assert found is not None
    assert found["state"] == "damaged"
    assert name in found["damage"]["problem"]
    assert not stored.store.seal(key)
    unseal(copy, key)
    (copy / key / name).unlink()
    assert not stored.store.seal(key)  # nothing proves a record of an earlier version without its tables
