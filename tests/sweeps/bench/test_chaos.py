"""The faults that `sweep bench --only chaos` draws, and its referee, which must find every planted loss."""

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sweeps.bench import chaos, chaos_damage, chaos_faults, chaos_referee, chaos_study
from sweeps.bench.chaos import Bad, Sight, Tally, plan
from sweeps.bench.chaos_damage import Damage
from sweeps.bench.chaos_faults import ACTIONS
from sweeps.bench.chaos_referee import CELLS, TRIALS, Ending, Outcome, Place, Referee, Start
from sweeps.cli import cli
from sweeps.store import integrity, search_trials
from sweeps.store.records import Store


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study and, in its storage, the records of two cells and two search trials."""
    folder = tmp_path_factory.mktemp("chaos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(chaos_study.LEDGER, str(folder / "ledger"))
        patch.setattr(chaos_study, "seconds", lambda cell: 0.0)
        referee = Referee(chaos_study.write(folder, seeds=1))
        study, store = referee.study, Store(referee.study.storage, referee.study.study)
        panel = study.panel()
        for cell in study.cells()[:2]:
            chaos_study.train_cell(cell, referee.key(cell), panel, store, keep_weights=True)
        for number in range(2):
            scope = next(iter(study.scopes()))
            point = {"train.learning_rate": 0.001 * (1 + number)}
            cells = search_trials.trainings(study, scope, point)
            digest = search_trials.digest([referee.key(cell) for cell in cells])
            key = integrity.trial_key(digest, number)
            place = search_trials.place(scope)
            start = {"kind": "trial", **place, "number": number, "params": point, "point": digest}
            store.search.write_file(key, integrity.STARTED_FILE, json.dumps(start).encode())
            trial = chaos_study.ChaosTrial(cells, key, panel, store.search, more=start)
            while not trial.finished:
                trial.epoch()
            trial.record()
    return folder


@pytest.fixture
def referee(stored: Path, tmp_path: Path) -> Referee:
    """A referee that has seen the records, in a copy of the folder."""
    folder = shutil.copytree(stored, tmp_path / "study")
    found = Referee(folder / chaos_study.FILE)
    assert found.look() == []
    assert sorted(place.folder for place in found.seen) == [CELLS, CELLS, TRIALS, TRIALS]
    return found


def first(referee: Referee, folder: str = CELLS) -> tuple[Place, Path]:
    return next((place, path) for place, path in referee.paths().items() if place.folder == folder)


def kinds(outcomes: list[Outcome]) -> list[str]:
    return [outcome.kind for outcome in outcomes]


def rows(referee: Referee) -> list[dict[str, Any]]:
    """Rows of `export` for the recorded cells."""
    records = [
        json.loads(path.read_text()) for place, path in referee.paths().items() if place.folder == CELLS
    ]
    return [{"key": record["key"], "state": "done", **record["metrics"]} for record in records]


# Faults


def test_equal_seeds_draw_equal_faults() -> None:
    assert plan(7, 3, root=True) == plan(7, 3, root=True)
    assert len({tuple(plan(seed, number, root=True)) for seed in range(3) for number in range(3)}) == 9


def test_every_round_ends_without_faults_and_an_ending_fault_is_the_last_of_its_run() -> None:
    for number in range(100):
        episodes = plan(1, number, root=True)
        assert episodes[-1] == chaos.Episode()
        for episode in episodes[:-1]:
            assert bool(episode.faults) != bool(episode.damages)
            assert not any(ACTIONS[fault.kind].ends for fault in episode.faults[:-1])


def test_every_kind_of_fault_is_drawn_and_none_that_is_impossible() -> None:
    drawn = {root: [e for n in range(200) for e in plan(1, n, root=root)] for root in (True, False)}
    live = {root: {f.kind for e in episodes for f in e.faults} for root, episodes in drawn.items()}
    assert live[True] == {*ACTIONS} - {"storage without permission"}
    assert live[False] == {name for name, one in ACTIONS.items() if not (one.needs_root or one.needs_disk)}
    damages = {damage.kind for episode in drawn[True] for damage in episode.damages}
    targets = {*chaos_damage.OF_TASKS, *chaos_damage.OF_THE_STUDY}
    assert damages == {
        f"{operation} {target}"
        for operation in chaos_damage.OPERATIONS
        for target in targets
        if chaos_damage.possible(operation, target)
    }


@pytest.mark.parametrize(
    ("operation", "target"),
    [
        (operation, target)
        for operation in chaos_damage.OPERATIONS
        for target in chaos_damage.OF_TASKS
        if chaos_damage.possible(operation, target) and target != "checkpoint"
    ],
)
def test_damage_changes_a_file_and_the_referee_knows_its_content(
    referee: Referee, operation: str, target: str
) -> None:
    folder, name = chaos_damage.OF_TASKS[target]
    before = {path: path.read_bytes() for path in referee.paths(name=name).values()}
    changed = chaos_damage.do(Damage(operation, target, 5), referee)
    assert len(changed) == (2 if operation == "swapped" else 1)
    for path in changed:
        assert not path.exists() if operation == "deleted" else path.read_bytes() != before[path]
        assert referee.damaged[Place(folder, path.parent.name)] == {name: before[path]}
    again = chaos_damage.do(Damage("deleted", target, 5), referee)
    assert not {*again} & {*changed}, "a file was damaged twice"
    assert referee.look() == [], "what was damaged on purpose is not lost"


def test_a_study_without_the_file_is_not_damaged(referee: Referee) -> None:
    assert chaos_damage.do(Damage("deleted", "driver.json", 0), referee) == []
    assert chaos_damage.do(Damage("truncated", "checkpoint", 0), referee) == []
    (referee.root / "driver.json").write_text("{}")
    assert chaos_damage.do(Damage("deleted", "driver.json", 0), referee) == [referee.root / "driver.json"]


# The referee


def test_the_truth_is_a_function_of_the_cell(referee: Referee) -> None:
    a, b, *_ = referee.study.cells()
    assert chaos_study.truth(a, ["test_rmse", "val_rmse"]) == chaos_study.truth(a, ["test_rmse", "val_rmse"])
    assert chaos_study.truth(a, ["test_rmse"]) != chaos_study.truth(b, ["test_rmse"])
    assert 1 <= chaos_study.truth(a, ["test_rmse"])["test_rmse"] <= 9


@pytest.mark.parametrize("folder", [CELLS, TRIALS])
def test_a_lost_record_is_found_once(referee: Referee, folder: str) -> None:
    place, path = first(referee, folder)
    path.unlink()
    (found,) = referee.look()
    assert found.kind == "lost"
    assert place.key in found.what
    assert referee.look() == []


def test_a_second_record_is_found(referee: Referee) -> None:
    _, path = first(referee)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"ended": "2030-01-01T00:00:00+00:00"}, indent=1))
    assert kinds(referee.look()) == ["doubled"]


def test_a_training_that_starts_after_its_record_is_found(referee: Referee) -> None:
    place, _ = first(referee)
    recorded = referee.seen[place].time
    assert referee.doubled([Start(place.key, 1, recorded - 5), Start("of another study", 1, 0)]) == []
    assert kinds(referee.doubled([Start(place.key, 1, recorded + 5)])) == ["doubled"]
    referee.damage(referee.root / place.name / "history.parquet", b"")
    assert referee.doubled([Start(place.key, 1, recorded + 5)]) == [], "it was damaged, so it must train"


def test_the_ledger_lists_the_starts(referee: Referee, stored: Path) -> None:
    found = chaos_referee.starts(stored / "ledger")
    assert {start.key for start in found} == {place.key for place in referee.seen}
    assert chaos_referee.starts(stored / "absent") == []


def edited(record: dict[str, Any]) -> None:
    record["metrics"]["test_rmse"] -= 1


def of_another_cell(record: dict[str, Any]) -> None:
    record["cell"]["seed"] += 1


def without_a_metric(record: dict[str, Any]) -> None:
    del record["metrics"]["val_rmse"]


@pytest.mark.parametrize("edit", [edited, of_another_cell, without_a_metric])
def test_a_wrong_record_is_found(
    stored: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    referee = Referee(shutil.copytree(stored, tmp_path / "study") / chaos_study.FILE)
    _, path = first(referee)
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    assert kinds(referee.look()) == ["believed"]


def test_a_wrong_score_of_a_trial_is_found(stored: Path, tmp_path: Path) -> None:
    referee = Referee(shutil.copytree(stored, tmp_path / "study") / chaos_study.FILE)
    _, path = first(referee, TRIALS)
    record = json.loads(path.read_text())
    record["scores"]["wr"]["rmse"] += 0.001
    path.write_text(json.dumps(record))
    (found,) = referee.look()
    assert found.kind == "believed"
    assert "val_wr_rmse" in found.what


def test_a_failed_record_is_blamed_on_the_world_once(referee: Referee) -> None:
    place, path = first(referee)
    referee.damage(path, path.read_bytes())
    failed = json.loads(path.read_text()) | {
        "state": "failed",
        "error": {"type": "OSError", "message": "gone"},
    }
    referee.damaged.clear()
    referee.seen.clear()
    path.write_text(json.dumps(failed))
    assert [one for one in kinds(referee.look()) if one == "blamed"] == ["blamed"]
    assert referee.failed == {place: "OSError: gone"}
    assert referee.look() == []
    path.unlink()  # `sweep retry`
    assert referee.look() == []
    assert not referee.failed


def test_true_rows_are_believed(referee: Referee) -> None:
    assert referee.shown(rows(referee)) == []


def test_rows_that_are_not_the_truth_are_found(referee: Referee) -> None:
    wrong, other = rows(referee)
    wrong["test_mae"] += 1e-9
    unknown = {**other, "key": "0" * 20}
    hidden = {**other, "state": "missing"}
    empty = {**other, "test_rmse": None}
    waiting = {"key": None, "state": "waits for its search"}
    found = referee.shown([wrong, unknown, hidden, empty, waiting])
    assert kinds(found) == ["believed", "believed", "lost", "believed"]
    assert "test_mae" in found[0].what


def test_damaged_trials_must_not_count_as_done(referee: Referee) -> None:
    cells = {"total": 2, "done": 2, "failed": 0, "missing": 0}
    content = {"each": rows(referee), "cells": cells, "search": {"total": 8, "done": 2, "failed": 0}}
    assert referee.status(content) == []
    _, path = first(referee, TRIALS)
    referee.damage(path, path.read_bytes())
    assert kinds(referee.status(content)) == ["believed"]
    content["cells"] = cells | {"missing": 1}
    assert kinds(referee.status(content)) == ["unclear", "believed"]


def test_files_that_fsck_does_not_name_are_found(referee: Referee) -> None:
    (a,) = chaos_damage.do(Damage("edited", "predictions", 1), referee)
    (b,) = chaos_damage.do(Damage("flipped byte in", "start file of a trial", 1), referee)
    (deleted,) = chaos_damage.do(Damage("deleted", "record of a cell", 1), referee)
    assert not deleted.exists()
    named = f"{a}: the content has changed\n{b}: the content has changed\n"
    assert referee.fsck(Ending("sweep fsck", 1, named, "")) == []
    (found,) = referee.fsck(Ending("sweep fsck", 1, f"{a}: the content has changed", ""))
    assert found.kind == "undetected"
    assert b.parent.name in found.what


def test_the_store_is_taken_up_after_a_retry(referee: Referee) -> None:
    (kept,) = chaos_damage.do(Damage("truncated", "predictions", 1), referee)
    before = referee.damaged[Place(CELLS, kept.parent.name)]["predictions.parquet"]
    (forgotten,) = chaos_damage.do(Damage("truncated", "record of a trial", 1), referee)
    shutil.rmtree(forgotten.parent)
    referee.settle()
    assert kept.read_bytes() == before, "a damage that is not detected does not spread"
    assert referee.look() == [], "a forgotten record is not lost"
    assert len(referee.seen) == 3


def test_runs_of_mlflow_are_counted(referee: Referee, tmp_path: Path) -> None:
    keys = [place.key for place in referee.seen if place.folder == TRIALS]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table runs (run_uuid, status, lifecycle_stage)")
        database.execute("create table tags (run_uuid, key, value)")
        for run, (key, status) in enumerate(
            [(keys[0], "FINISHED"), (keys[0], "FINISHED"), (keys[1], "RUNNING")]
        ):
            database.execute("insert into runs values (?, ?, 'active')", [run, status])
            database.execute("insert into tags values (?, 'key', ?), (?, 'kind', 'trial')", [run, key, run])
    found = referee._mlflow(tmp_path / "mlflow.db", "trial", TRIALS)
    assert kinds(found) == ["doubled", "orphaned", "lost"]
    assert keys[0] in found[0].what
    assert keys[1] in found[1].what
    assert keys[1] in found[2].what


FULL = "sweep: /storage: storage: cannot be written (no space). Fix: free some space"


@pytest.mark.parametrize(
    ("status", "errors", "allowed", "problem"),
    [
        (0, "chaos: storage /s\n3/8 done, 1 running, 0 failed\n", {0}, ""),
        (2, f"chaos: storage /s\n{FULL}\n", {0, 2}, ""),
        (-signal.SIGKILL, "", {-signal.SIGKILL}, ""),
        (1, "sweep: 3 cells failed\n", {0}, "exit status 1 instead of 0"),
        (None, "", {0}, "does not end"),
        (2, f"Traceback (most recent call last):\n{FULL}\n", {2}, "traceback"),
        (2, f"(raylet) a core dump\n{FULL}\n", {2}, "unexpected line '(raylet) a core dump'"),
        (2, "3/8 done, 1 running, 0 failed\n", {2}, "no line explains the end"),
        (2, f"{FULL}\n{FULL}\n", {2}, "more than one line explains the end"),
    ],
)
def test_an_unclear_end_is_found(status: int | None, errors: str, allowed: set[int], problem: str) -> None:
    found = chaos_referee.unclear(Ending("sweep run", status, "", errors), allowed)
    assert [outcome.what.startswith(f"sweep run: {problem}") for outcome in found] == [True] * bool(problem)


# The table


def tally() -> Tally:
    bad = Bad(Outcome("lost", "cells/3f had a valid record, and has none"), 4, 2, ("SIGINT",), "/tmp/c/r4")
    seen = [
        Sight("SIGINT", 130, "sweep: interrupted"),
        Sight("SIGINT", 0, ""),
        Sight("driver killed", -9, ""),
    ]
    return Tally(11, sights=seen, bad=[bad], rounds=4, runs=9, seconds=600, impossible=("storage full",))


def test_the_table_counts_faults_and_outcomes() -> None:
    killed, interrupted = sorted(tally().table(), key=lambda row: row["count"])
    assert interrupted["statuses"] == {"0": 1, "130": 1}
    assert interrupted["bad"] == {"lost": 1}
    assert interrupted["line"] == "sweep: interrupted"
    assert killed["statuses"] == {"SIGKILL": 1}
    values = {row.what: (row.value, row.limit) for row in tally().measurements()}
    assert values["faults"] == (3, float("inf"))
    assert values["lost"] == (1, 0)
    assert values["doubled"] == (0, 0)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_the_table_and_fails_after_a_bad_outcome(
    monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr(chaos, "run", lambda minutes, seed, only_round, say: tally())
    words = ["bench", "--only", "chaos", "--minutes", "1", "--seed", "11"]
    ended = CliRunner().invoke(cli, [*words, *(["--json"] if as_json else [])], standalone_mode=False)
    assert ended.return_value == 1
    if as_json:
        content = json.loads(ended.stdout)
        assert content["chaos"]["bad"][0]["what"] == "cells/3f had a valid record, and has none"
        assert content["measurements"][0]["value"] == 3
        assert content["measurements"][0]["limit"] is None
    else:
        assert "sweep bench --only chaos --seed 11 --round 4" in ended.stdout
        assert "not possible for this process: storage full" in ended.stdout


def test_an_error_of_the_bench_ends_the_rounds_and_keeps_what_was_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def __init__(self, folder: Path, number: int, found: chaos.Tally, *, mounts: bool) -> None:
            self.tally, self.number, self.episode = found, number, 0

        def __enter__(self) -> "Broken":
            return self

        def __exit__(self, *_: object) -> None: ...

        def do(self, episode: chaos.Episode) -> None:
            if self.number:
                raise OSError("mount point is busy")
            self.tally.runs += 1

    monkeypatch.setattr(chaos, "Round", Broken)
    words = ["bench", "--only", "chaos", "--minutes", "1", "--seed", "11"]
    ended = CliRunner().invoke(cli, words, standalone_mode=False)
    assert ended.return_value == 1
    assert "1 complete rounds and" in ended.stdout
    assert "the rounds ended early, in round 1: OSError: mount point is busy" in ended.stdout


def test_without_mounts_no_fault_of_a_file_system_is_drawn() -> None:
    assert not chaos_faults.possible("storage full", root=False)
    assert chaos_faults.possible("storage without permission", root=False)
    assert not chaos_faults.possible("storage without permission", root=True)
