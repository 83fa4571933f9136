"""The scheduler: searches before the grids that wait for them, every task once, and where a run stops."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pm25 import splits
from pm25.cell import Cell, Tuning
from pm25.panel import Panel
from pm25.splits import RandomSplit
from sweeps.analysis import inference
from sweeps.engine.scheduler import Scheduler, SearchPoints, Task
from sweeps.report import tables
from sweeps.report.data import build_report_data
from sweeps.report.summary import cautions
from sweeps.spec.design import Arm, FoldArm
from sweeps.spec.study import Study, Synthetic
from sweeps.state import StudyState
from sweeps.store import integrity, search_trials
from sweeps.store.records import TUNED_ON_TEST, Record, Store, failed_checks
from sweeps.store.search_trials import ArmTrials
from tests import worlds
from tests.errors import refuses

NONE, LATLON = Arm("none", None), Arm("latlon", None)
RATE = "train.learning_rate"
STUDY: dict[str, Any] = {
    "study": "toy",
    "data": {"synthetic": {"sites": 12, "days": 30}},
    "design": {"variant": ["none", "latlon"], "split": [{"kind": "random", "folds": 2}], "seed": [0, 1]},
    "search": {
        "trials": 3,
        "space": {RATE: {"float": [0.001, 1.0]}},
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
    },
}


@pytest.fixture(scope="module")
def world() -> Panel:
    data = STUDY["data"] | {"synthetic": Synthetic(**STUDY["data"]["synthetic"])}
    return Study.model_validate(STUDY | {"data": data}).panel()


@pytest.fixture(autouse=True)
def same_world(world: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one panel for all tests."""
    monkeypatch.setattr(Study, "panel", lambda self: world)


def state(folder: Path, **changes: Any) -> StudyState:
    """The toy study in a folder; changes to its search by name, to other blocks as `budget={...}`."""
    blocks = {n: changes.pop(n) for n in ("design", "budget", "max_equal_failures") if n in changes}
    search = {name: value for name, value in (STUDY["search"] | changes).items() if value is not None}
    content = STUDY | {"search": search}
    for name, block in blocks.items():
        content[name] = STUDY.get(name, {}) | block if isinstance(block, dict) else block
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content | {"storage": str(folder / "results")}))
    return StudyState(str(path))


def of_study(folder: Path, **content: Any) -> StudyState:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content | {"storage": str(folder / "results")}))
    return StudyState(str(path))


class Points:
    """In the place of Optuna: declared points of every arm, then ever smaller ones."""

    def __init__(self, points: dict[Arm, list[float]] | None = None, count: int = 0) -> None:
        self.declared = {arm: [*rates] for arm, rates in (points or {}).items()}
        self._count = count
        self.reported: list[tuple[Arm, int, Record]] = []

    def of_arm(self, trials: ArmTrials) -> SearchPoints:
        """An arm's search; points of trials that started earlier come first."""
        arm, started = trials.arm, [point for _, point in trials.started]

        def ask() -> tuple[int, dict[str, Any]]:
            self._count += 1
            if started:
                return self._count, started.pop(0)
            if self.declared.get(arm):
                return self._count, {RATE: self.declared[arm].pop(0)}
            return self._count, {RATE: 1 / (1 + self._count)}

        made: Any = SimpleNamespace(
            ask=ask,
            tell=lambda number, record: self.reported.append((arm, number, record)),
            prunes=lambda number, reported: (arm, number, reported) == (NONE, 1, [9.0]),
        )
        return cast(SearchPoints, made)


def result(task: Task, loss: float = 1.0, **more: Any) -> Record:
    """The record that a worker would leave."""
    if task.kind == "cell":
        made = worlds.cell_record(task.key, task.cells[0], numerics=task.cells[0].numerics)
    else:
        made = worlds.record(task.key, epochs=4, reported=[], scores={"wr": {"rmse": loss}})
    return made | dict(task.more) | more


def failure(task: Task, kind: str = "RuntimeError", message: str = "broken") -> Record:
    made = result(task, state="failed", error=worlds.error(kind, message))
    made.pop("scores", None)
    return made


def end(scheduler: Scheduler, of: StudyState, task: Task, record: Record) -> None:
    """Record a task as a worker does, and report its end."""
    record = record | {"data": of.panel.fingerprint}
    is_cell = task.kind == "cell"
    (of.store if is_cell else of.store.search).write_record(record, worlds.FILES if is_cell else {})
    scheduler.ended(task, record)


def name(task: Task | None) -> str | None:
    if task is None:
        return None
    if task.kind == "trial":
        assert task.scope is not None
        return f"{task.scope.label} trial {task.more['number']}"
    cell = task.cells[0]
    return f"{task.arm.label} cell {cell.fold} {cell.seed}"


class Run:
    """A scheduler with declared points; what it hands out is named."""

    def __init__(self, of: StudyState, points: dict[Arm, list[float]] | None = None, **options: Any) -> None:
        self.state, self.points = of, Points(points)
        self.scheduler = Scheduler(of, search_points=lambda trials: self.points.of_arm(trials), **options)
        self.tasks: dict[str, Task] = {}

    def next(self, count: int | None = None) -> Any:
        """The names of the next so many; of one without a count."""
        if count is not None:
            return [self.next() for _ in range(count)]
        task = self.scheduler.next()
        if task is not None:
            self.tasks[str(name(task))] = task
        return name(task)

    def end(self, one: str, loss: float = 1.0, **more: Any) -> None:
        task = self.tasks[one]
        end(self.scheduler, self.state, task, result(task, loss, **more))

    def fail(self, one: str, kind: str = "RuntimeError", message: str = "broken") -> None:
        task = self.tasks[one]
        end(self.scheduler, self.state, task, failure(task, kind, message))

    def all(self, loss: Any = lambda task: 1.0) -> list[str]:
        """Everything that comes, one after the other, each ended at once."""
        names = []
        while (one := self.next()) is not None:
            names.append(one)
            self.end(one, loss(self.tasks[one]))
        return names


def cells_of(arm: Arm) -> list[str]:
    """In the grid's order: first folds and seeds first."""
    return [f"{arm.label} cell {fold} {seed}" for seed in (0, 1) for fold in (0, 1)]


# The order


def test_without_a_search_the_cells_come_at_once_in_the_grid_s_order(tmp_path: Path) -> None:
    content = {block: value for block, value in STUDY.items() if block != "search"}
    run = Run(of_study(tmp_path, **content))
    assert (run.scheduler.total, run.scheduler.trials) == (8, 0)
    assert run.all() == [
        f"{arm} cell {fold} {seed}" for seed in (0, 1) for fold in (0, 1) for arm in ("none", "latlon")
    ]
    assert run.next() is None
    assert run.scheduler.stopped == ""


def test_the_last_cells_come_in_the_order_of_their_expected_time(tmp_path: Path) -> None:
    content = {block: value for block, value in STUDY.items() if block != "search"}
    run = Run(of_study(tmp_path, **content))
    assert run.next(2) == ["none cell 0 0", "latlon cell 0 0"]
    run.end("none cell 0 0", seconds=1.0)
    run.end("latlon cell 0 0", seconds=3.0)
    # Six cells are ready, and none or one runs: the order is that of the grid.
    assert run.next(2) == ["none cell 1 0", "latlon cell 1 0"]
    # Four are ready and two run: latlon takes longer.
    assert run.next(2) == ["latlon cell 0 1", "latlon cell 1 1"]
    run.end("none cell 1 0", seconds=9.0)  # so `none` takes 5 s on average
    assert run.next(3) == ["none cell 0 1", "none cell 1 1", None]


def test_the_seconds_of_an_earlier_run_order_the_last_cells(tmp_path: Path) -> None:
    content = {block: value for block, value in STUDY.items() if block != "search"}
    run = Run(of_study(tmp_path, **content))
    assert run.next(3) == ["none cell 0 0", "latlon cell 0 0", "none cell 1 0"]
    for one, seconds in (("none cell 0 0", 1.0), ("latlon cell 0 0", 2.0), ("none cell 1 0", 1.0)):
        run.end(one, seconds=seconds)
    again = Run(StudyState(str(tmp_path / "toy.yaml")))
    assert again.next(5) == [
        *("latlon cell 1 0", "none cell 0 1", "latlon cell 0 1", "latlon cell 1 1", "none cell 1 1")
    ]


def by_variant(cell: Cell) -> str:
    return cell.variant


def test_a_stack_takes_ready_cells_of_its_kind_in_the_grid_s_order(tmp_path: Path) -> None:
    content = {block: value for block, value in STUDY.items() if block != "search"}
    run = Run(of_study(tmp_path, **content))
    first = run.scheduler.next()
    assert first is not None
    assert run.scheduler.ready(by_variant, first.cells[0]) == 3
    stack = run.scheduler.stack(first, 3, by_variant)
    assert [name(one) for one in stack.members] == ["none cell 0 0", "none cell 1 0", "none cell 0 1"]
    assert [one.also for one in stack.members] == [(), (), ()]
    assert run.scheduler.handed == 3
    assert sorted(run.all()) == sorted([*cells_of(LATLON), "none cell 1 1"])
    assert run.scheduler.handed == 8


def test_a_stack_exceeds_neither_the_limit_nor_the_budget(tmp_path: Path) -> None:
    content = {block: value for block, value in STUDY.items() if block != "search"}
    run = Run(of_study(tmp_path, **content), limit=2)
    first = run.scheduler.next()
    assert first is not None
    assert len(run.scheduler.stack(first, 9, by_variant).members) == 2
    assert run.next() is None
    run = Run(of_study(tmp_path, **content, budget={"cells": 3}))
    first = run.scheduler.next()
    assert first is not None
    assert len(run.scheduler.stack(first, 9, by_variant).members) == 3
    assert run.scheduler.stopped == "budget.cells 3 is used up"


def test_a_search_comes_before_its_grid_and_no_arm_waits_for_another(tmp_path: Path) -> None:
    run = Run(state(tmp_path), {NONE: [0.1, 0.2, 0.3]})
    assert (run.scheduler.total, run.scheduler.cells, run.scheduler.trials) == (14, 8, 6)
    assert run.next(2) == ["none trial 0", "latlon trial 0"]  # one of each arm
    run.end("none trial 0", 3.0)
    assert run.next() == "none trial 1"
    run.end("none trial 1", 1.0)
    assert run.next() == "none trial 2"
    run.end("none trial 2", 2.0)
    # The search of none is over: its cells come beside the one trial of latlon.
    assert run.next(4) == cells_of(NONE)
    for one in cells_of(NONE):
        assert run.tasks[one].cells[0].train.learning_rate == 0.2  # which had the smallest loss
    # No cell is ready: latlon may have as many as there is room for.
    assert run.next(3) == ["latlon trial 1", "latlon trial 2", None]
    for number in (2, 0, 1):
        run.end(f"latlon trial {number}", float(number))
    assert run.next(5) == [*cells_of(LATLON), None]
    assert run.tasks["latlon cell 0 0"].cells[0].train.learning_rate == pytest.approx(
        run.tasks["latlon trial 0"].more["params"][RATE]
    )
    assert run.scheduler.handed == 14


def test_while_no_cell_is_ready_every_arm_has_as_many_trials_as_there_is_room_for(tmp_path: Path) -> None:
    run = Run(state(tmp_path))
    assert run.next(7) == [
        *("none trial 0", "latlon trial 0", "none trial 1", "latlon trial 1"),
        *("none trial 2", "latlon trial 2", None),
    ]


def test_beside_cells_an_arm_has_one_trial_at_a_time(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=2))
    assert run.next(2) == ["none trial 0", "latlon trial 0"]
    run.end("none trial 0")
    assert run.next() == "none trial 1"
    run.end("none trial 1")
    assert run.next() == "none cell 0 0"
    run.end("latlon trial 0")
    assert run.next(3) == ["latlon trial 1", "none cell 1 0", "none cell 0 1"]


def test_concurrent_bounds_the_trials_of_an_arm(tmp_path: Path) -> None:
    run = Run(state(tmp_path, concurrent=1))
    assert run.next(3) == ["none trial 0", "latlon trial 0", None]
    run.end("latlon trial 0")
    assert run.next(2) == ["latlon trial 1", None]
    (tmp_path / "two").mkdir()
    run = Run(state(tmp_path / "two", concurrent=2))
    assert run.next(5)[-1] is None
    assert Counter(task.arm for task in run.tasks.values()) == {NONE: 2, LATLON: 2}


def test_of_arms_that_wait_the_furthest_goes_first(tmp_path: Path) -> None:
    run = Run(state(tmp_path))
    run.next(2)
    run.end("latlon trial 0")
    # None of them runs, then one of each: of latlon one more has ended.
    assert run.next(2) == ["latlon trial 1", "latlon trial 2"]


def test_the_task_of_a_search_trial(tmp_path: Path) -> None:
    of = state(tmp_path, seed=[7, 8])
    run = Run(of, {NONE: [0.25]})
    run.next()
    task = run.tasks["none trial 0"]
    assert task.cells == tuple(search_trials.trainings(of.study, NONE, {RATE: 0.25}))
    digest = search_trials.digest([of.key(cell) for cell in task.cells])
    assert task.key == integrity.trial_key(digest, 0)
    start = {"kind": "trial", "arm": "none", "number": 0, "params": {RATE: 0.25}, "point": digest}
    assert dict(task.more) == start
    content = of.store.search.read_file(task.key, integrity.STARTED_FILE)
    assert content is not None
    assert json.loads(content) == start  # written before the task is handed out
    assert (task.kind, task.arm, task.optuna_number) == ("trial", NONE, 1)


def test_a_cell_says_which_search_chose_its_settings(tmp_path: Path) -> None:
    run = Run(state(tmp_path), {NONE: [0.5, 0.25, 0.125]})
    run.all(lambda task: task.more["params"][RATE] if task.kind == "trial" else 0.0)
    more = run.tasks["none cell 0 0"].more
    assert more["tuned"] == {RATE: 0.125}
    assert more["searched"]["trial"] == run.tasks["none trial 2"].key
    assert (more["searched"]["trials"], more["searched"]["epochs"]) == (3, 12)
    assert run.state.store.record(run.tasks["none cell 0 0"].key) is not None


def test_search_trials_are_pruned_and_cells_never(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=1))
    run.next(2)
    task = run.tasks["none trial 0"]
    assert run.scheduler.prunes(task, [9.0])
    assert not run.scheduler.prunes(task, [8.0])
    assert not run.scheduler.prunes(run.tasks["latlon trial 0"], [9.0])
    run.end("none trial 0")
    assert run.next() == "none cell 0 0"
    assert not run.scheduler.prunes(run.tasks["none cell 0 0"], [9.0])


def test_every_arm_has_the_same_budget(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=5))
    run.all()
    trials = [task for task in run.tasks.values() if task.kind == "trial"]
    assert Counter(task.arm for task in trials) == {NONE: 5, LATLON: 5}


def test_a_budget_of_epochs_ends_a_search(tmp_path: Path) -> None:
    run = Run(state(tmp_path, epochs=8))  # a trial takes 4
    names = run.all()
    assert [one for one in names if "trial" in one] == [
        *("none trial 0", "none trial 1", "latlon trial 0", "latlon trial 1")
    ]
    assert [one for one in names if "cell" in one] == [
        f"{arm} cell {fold} {seed}" for seed in (0, 1) for fold in (0, 1) for arm in ("none", "latlon")
    ]
    assert Run(state(tmp_path, epochs=8)).scheduler.total == 0


# What was there before


def test_what_is_recorded_is_not_run_again(tmp_path: Path) -> None:
    first = Run(state(tmp_path))
    for _ in range(6):
        first.end(first.next())
    assert [one for one in first.tasks if "cell" in one] == []
    one_more = first.next()
    first.end(one_more)
    second = Run(state(tmp_path))
    assert (second.scheduler.cells, second.scheduler.trials) == (7, 0)
    assert sorted([*second.all(), one_more]) == sorted([*cells_of(NONE), *cells_of(LATLON)])
    assert Run(state(tmp_path)).scheduler.total == 0


def test_trials_that_did_not_end_come_first_with_their_numbers(tmp_path: Path) -> None:
    first = Run(state(tmp_path), {NONE: [0.1, 0.2, 0.3]})
    assert first.next(4) == ["none trial 0", "latlon trial 0", "none trial 1", "latlon trial 1"]
    first.end("none trial 0")
    keys = {one: task.key for one, task in first.tasks.items()}
    second = Run(state(tmp_path), {NONE: [0.9], LATLON: [0.7, 0.8]})
    assert second.scheduler.trials == 2 + 3
    assert second.next(2) == ["none trial 1", "latlon trial 0"]
    assert second.next(3) == ["none trial 2", "latlon trial 1", "latlon trial 2"]
    for one in ("none trial 1", "latlon trial 0", "latlon trial 1"):
        assert second.tasks[one].key == keys[one]  # and so their checkpoints are found
    assert second.tasks["none trial 1"].more["params"] == {RATE: 0.2}
    assert second.tasks["none trial 2"].more["params"] == {RATE: 0.9}


def test_started_trials_are_finished_when_the_budget_of_epochs_is_spent(tmp_path: Path) -> None:
    first = Run(state(tmp_path, epochs=4))
    first.next(4)
    first.end("none trial 0")
    second = Run(state(tmp_path, epochs=4))
    assert second.next(3) == ["none trial 1", "latlon trial 0", "latlon trial 1"]


def test_more_trials_open_the_search_again_and_the_same_winner_runs_no_cell_again(tmp_path: Path) -> None:
    points = {NONE: [0.1, 0.2, 0.3], LATLON: [0.4, 0.5, 0.6]}
    first = Run(state(tmp_path), points)
    first.all(lambda task: task.more["params"][RATE] if task.kind == "trial" else 0.0)
    more = Run(state(tmp_path, trials=4), {NONE: [0.01], LATLON: [0.7]})
    assert (more.scheduler.cells, more.scheduler.trials) == (8, 2)
    names = more.all(lambda task: task.more["params"][RATE] if task.kind == "trial" else 0.0)
    # none has a new winner and new cells; latlon's stays, and so do its cells.
    assert names == ["none trial 3", "latlon trial 3", *cells_of(NONE)]
    assert more.tasks["none cell 0 0"].cells[0].train.learning_rate == 0.01
    assert more.scheduler.cells == 4


def test_a_cell_that_only_started_is_run(tmp_path: Path) -> None:
    first = Run(state(tmp_path))
    first.all(lambda task: 1.0)
    key = first.tasks["none cell 0 0"].key
    first.state.store.delete_file(key, "result.json")
    first.state.store.write_file(key, "checkpoint.pt", b"x")
    assert Run(state(tmp_path)).all() == ["none cell 0 0"]
    # Also where the cells are released during the run.
    first.state.store.delete_file(key, "result.json")
    again = Run(state(tmp_path, trials=4), {NONE: [0.9], LATLON: [0.9]})
    assert again.all(lambda task: 2.0) == ["none trial 3", "latlon trial 3", "none cell 0 0"]


# A search of each fold

NESTED: dict[str, Any] = {"nested": True, "split": None}


def test_every_fold_of_an_arm_has_a_search_of_its_own(tmp_path: Path) -> None:
    of = state(tmp_path, **NESTED)
    scopes = [FoldArm(arm, "random", fold) for arm in (NONE, LATLON) for fold in (0, 1)]
    assert [*of.searches] == scopes
    run = Run(of)
    assert (
        run.scheduler.outline == "8 cells, 0 recorded, 8 to run; 4 folds of arms to search first, 12 trials"
    )
    assert run.next(4) == [f"{scope.label} trial 0" for scope in scopes]
    tasks = [run.tasks[f"{scope.label} trial 0"] for scope in scopes]
    for scope, task in zip(scopes, tasks, strict=True):
        (cell,) = task.cells
        assert (Arm.of(cell), cell.split.label, cell.fold) == scope
        assert (cell.seed, cell.tuning, cell.reserve) == (1000, Tuning(), None)
        assert (task.more["arm"], task.more["split"], task.more["fold"]) == (
            scope.arm.label,
            "random",
            scope.fold,
        )


def test_equal_points_of_two_folds_are_two_trials(tmp_path: Path) -> None:
    run = Run(state(tmp_path, **NESTED), {NONE: [0.1, 0.1]})
    assert run.next(2) == ["none random fold 0 trial 0", "none random fold 1 trial 0"]
    first, second = run.tasks.values()
    assert first.more["params"] == second.more["params"]
    assert first.key != second.key
    assert first.more["point"] != second.more["point"]


def test_a_fold_s_cells_start_when_its_own_search_is_over_with_its_own_winner(tmp_path: Path) -> None:
    run = Run(state(tmp_path, **NESTED))
    scopes = [*run.state.searches]
    own: dict[Any, dict[float, float]] = {scope: {} for scope in scopes}
    released: dict[Any, int] = {}
    while (one := run.next()) is not None:
        task = run.tasks[one]
        if task.kind == "cell":
            scope = run.state.study.scope(task.cells[0])
            assert len(own[scope]) == 3
            released[scope] = released.get(scope, 0) + 1
            best = min(own[scope], key=own[scope].__getitem__)
            assert task.cells[0].train.learning_rate == best
            assert task.more["tuned"] == {RATE: best}
            run.end(one)
            continue
        rate = task.more["params"][RATE]
        assert task.scope is not None
        own[task.scope][rate] = rate if task.cells[0].fold else 1 - rate  # the folds prefer opposite rates
        run.end(one, own[task.scope][rate])
    assert released == dict.fromkeys(scopes, 2)
    chosen = {scope: trials.chosen_point() for scope, trials in state(tmp_path, **NESTED).searches.items()}
    assert chosen == {scope: {RATE: min(own[scope], key=own[scope].__getitem__)} for scope in scopes}
    after = state(tmp_path, **NESTED)
    assert after.waiting == []
    assert {record["tuned"][RATE] for record in after.records().values()} == {
        point[RATE] for point in chosen.values() if point
    }
    assert Scheduler(after).total == 0


def test_cells_of_a_fold_do_not_wait_for_another_fold(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=1, **NESTED), selects=lambda cell: cell.variant == "none")
    assert run.next(2) == ["none random fold 0 trial 0", "none random fold 1 trial 0"]
    run.end("none random fold 1 trial 0")
    assert run.next(3) == ["none cell 1 0", "none cell 1 1", None]
    run.fail("none random fold 0 trial 0", "Diverged")
    assert run.scheduler.blocked == {FoldArm(NONE, "random", 0): "none of 1 trials has a score"}
    assert run.next() is None


def test_trials_of_a_nested_search_are_resumed_in_their_fold(tmp_path: Path) -> None:
    first = Run(state(tmp_path, **NESTED), {NONE: [0.1, 0.2]})
    first.next(4)
    keys = {one: task.key for one, task in first.tasks.items()}
    second = Run(state(tmp_path, **NESTED))
    assert second.scheduler.trials == 12
    assert second.next(4) == [*keys]
    assert {one: task.key for one, task in second.tasks.items()} == keys
    # A search of the complete arm has none of them.
    assert Run(state(tmp_path)).state.searches[NONE].numbers == set()


def test_no_search_of_a_fold_uses_its_test_set(tmp_path: Path) -> None:
    assert state(tmp_path, **NESTED).overlap_with_search() == {("random", 0): 0.0, ("random", 1): 0.0}
    assert state(tmp_path).overlap_with_search() == {("random", 0): 0.0, ("random", 1): 1.0}


# Tuning and the test sets

BOARDS = {"kind": "checkerboards", "degrees": 16, "origins": 5}
EXAMPLE: dict[str, Any] = STUDY | {
    "data": {"synthetic": {"sites": 80, "days": 25, "seed": 3}},
    "window": 3,
    "design": {
        "variant": ["none", "latlon"],
        "split": [{"kind": "random", "folds": 5}, {"kind": "spatial", "folds": 2}, BOARDS],
        "seed": 0,
    },
    "claims": [
        {
            "claim": name,
            "better": {"variant": "latlon"},
            "than": {"variant": "none"},
            "on": on,
            "metric": "rmse",
        }
        for name, on in (
            ("on the fold of the search", {"split": "random", "fold": 0}),
            ("on all folds", {"split": "random"}),
            ("out of region", {"split": "checkerboards"}),
        )
    ],
}
"""Three splits, and a search on fold 0 of one of them."""
SEARCHED = {"split": [{"kind": "random", "folds": 5, "fold": 0}]}


def ran(folder: Path, monkeypatch: pytest.MonkeyPatch, **search: Any) -> StudyState:
    """The example, run to its end by declared points; latlon is better everywhere."""
    made = worlds.synthetic_panel(80, 25)
    monkeypatch.setattr(Study, "panel", lambda self: made)
    declared = {"trials": 2, "space": STUDY["search"]["space"], "objective": "wr", **search}
    of = of_study(folder, **EXAMPLE | {"search": declared})
    run = Run(of)
    while (one := run.next()) is not None:
        task = run.tasks[one]
        if task.kind == "trial":
            run.end(one)
            continue
        rmse = {"none": 7.0, "latlon": 6.0}[task.arm.variant] + 0.01 * task.cells[0].fold % 0.03
        metrics = {f"{part}_rmse": rmse for part in ("test", "wr", "val")}
        known = {"data": made.fingerprint, "numerics": task.cells[0].numerics}
        record = worlds.cell_record(task.key, task.cells[0], metrics=metrics, **known) | dict(task.more)
        end(run.scheduler, of, task, record)
    of.refresh()
    assert of.waiting == []
    return of


def test_results_whose_test_samples_the_search_used_fail_their_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = ran(tmp_path, monkeypatch, **SEARCHED)
    untouched = {*splits.cut(RandomSplit(folds=5), 0, of.panel, 3).test.tolist()}
    shares = of.overlap_with_search()
    assert {fold: shares["random", fold] for fold in range(5)} == {0: 0.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    for (label, fold), parts in of.split_indices().items():
        parts_used = [
            len({*part.tolist()} - untouched) / len(part)
            for part in (parts.test, parts.wr)
            if part is not None
        ]
        assert shares[label, fold] == max(parts_used)
    rows = of.rows()
    marked = rows["marked"] == TUNED_ON_TEST
    assert (marked == ((rows["split"] != "random") | (rows["fold"] != 0))).all()
    assert set(rows.loc[~marked, "marked"]) == {""}

    frame = inference.contrasts(rows, of.study.analysis, of.study.claims)
    declared = frame[frame["declared"]]
    assert [(line["split"], line["fold"]) for _, line in declared.iterrows()] == [("random", 0)]
    boards = frame[(frame["split"] == "checkerboards-16") & (frame["part"] == "test")].iloc[0]
    assert (boards["p"] < 0.05, math.isnan(boards["p_adjusted"]), boards["marked"]) == (
        True,
        True,
        TUNED_ON_TEST,
    )
    claims = inference.claims(rows, of.study.analysis, of.study.claims)
    assert claims["verdict"].tolist() == ["too few", "tuned on test", "tuned on test"]
    means = inference.means(rows, of.study.analysis)
    assert (means["n_marked"] == means["n"] - (means["split"] == "random")).all()
    by_place = {(line["split"], line["part"]): line for line in frame.to_dict("records")}
    assert tables.difference(by_place["checkerboards-16", "test"], 0.05).marks == tables.AUDIT_FAILED
    assert tables.mean(means.to_dict("records")[0]).marks == tables.AUDIT_FAILED
    report = build_report_data(rows, of.facts(of.records()), of.study.analysis, of.study.claims, brief=True)
    assert any(str(int(marked.sum())) in line and "search.reserve" in line for line in cautions(report))


@pytest.mark.parametrize("search", [SEARCHED | {"reserve": {"share": 0.3, "degrees": 4}}, {"nested": True}])
def test_a_search_without_test_samples_leaves_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: dict[str, Any]
) -> None:
    of = ran(tmp_path, monkeypatch, **search)
    assert set(of.overlap_with_search().values()) == {0.0}
    rows = of.rows()
    assert set(rows["marked"]) == {""}
    assert (rows["state"] == "done").all()
    frame = inference.contrasts(rows, of.study.analysis, of.study.claims)
    assert frame["declared"].sum() == 3
    assert set(frame["marked"]) == {""}
    claims = inference.claims(rows, of.study.analysis, of.study.claims)
    assert claims["verdict"].tolist()[-1] == "supported"
    assert "tuned on test" not in set(claims["verdict"])


def test_a_reserve_that_the_search_cannot_divide_is_refused_before_the_run(tmp_path: Path) -> None:
    boards = {"kind": "checkerboard", "degrees": 30, "fold": 0}
    of = state(tmp_path, reserve={"share": 0.1, "degrees": 1}, split=[boards])
    with refuses(f"{of.panel.name}, reserved sites", "split checkerboard-30 fold 0"):
        of.overlap_with_search()


def test_a_store_of_an_earlier_version_is_marked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = ran(tmp_path, monkeypatch, **SEARCHED)
    for key in of.cells:
        record = of.store.record(key)
        assert record is not None
        assert (
            record["searched"].pop("test_share")
            == of.overlap_with_search()[of.cells[key].split.label, of.cells[key].fold]
        )
        of.store.forget(key)
        of.store.write_record(record, worlds.FILES)
    assert (of.rows()["marked"] == TUNED_ON_TEST).sum() == 2 * (4 + 2 + 10)


def test_a_study_without_a_search_has_no_such_mark(tmp_path: Path) -> None:
    of = of_study(tmp_path, **{name: block for name, block in EXAMPLE.items() if name != "search"})
    assert of.overlap_with_search() == {}
    assert failed_checks(worlds.cell_record("a", {})) == []


# Points that were tried before


def test_a_point_that_was_tried_has_its_result_at_once(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=4), {NONE: [0.1, 0.1, 0.1, 0.2]})
    assert run.next(2) == ["none trial 0", "latlon trial 0"]
    run.end("none trial 0", 5.0, share={"cpu": 1, "gpu": 1})
    assert run.next() == "none trial 3"  # 1 and 2 were at the point of 0
    copies = [record for arm, _, record in run.points.reported[1:] if arm == NONE]
    assert run.scheduler.copied == copies
    assert [record["number"] for record in copies] == [1, 2]
    for record in copies:
        assert (record["state"], record["scores"]) == ("done", {"wr": {"rmse": 5.0}})
        assert (record["epochs"], record["seconds"]) == (0, 0.0)  # nothing was trained
        assert record["params"] == {RATE: 0.1}
        assert run.state.store.search.record(record["key"]) == record
    original = run.tasks["none trial 0"].key
    assert copies[0]["same_as"] == original
    assert run.state.store.search.record(copies[1]["same_as"]) is not None
    assert len({original, *(record["key"] for record in copies)}) == 3
    assert [r["number"] for r in run.scheduler.searches[NONE].ended] == [0, 1, 2]
    assert run.scheduler.handed == 3
    # A restart sees the same.
    assert [r["number"] for r in state(tmp_path, trials=4).searches[NONE].ended] == [0, 1, 2]


def test_a_search_may_end_with_points_that_were_tried(tmp_path: Path) -> None:
    run = Run(state(tmp_path), {NONE: [0.1, 0.1, 0.1], LATLON: [0.2, 0.2, 0.2]})
    assert run.all() == [
        *("none trial 0", "latlon trial 0"),
        *(f"{arm} cell {fold} {seed}" for seed in (0, 1) for fold in (0, 1) for arm in ("none", "latlon")),
    ]
    assert len(run.points.reported) == 6


@pytest.mark.parametrize(("ended", "copied"), [("failed", True), ("pruned", False)])
def test_a_failed_point_fails_again_and_a_pruned_one_has_another_chance(
    tmp_path: Path, ended: str, copied: bool
) -> None:
    run = Run(state(tmp_path, trials=2), {NONE: [0.1, 0.1]})
    run.next()
    if ended == "failed":
        run.fail("none trial 0", "Diverged", "training loss is nan")
    else:
        run.end("none trial 0", state="pruned")
    run.next()
    assert ("none trial 1" not in run.tasks) == copied
    if copied:
        assert [r["state"] for r in run.scheduler.searches[NONE].ended] == ["failed", "failed"]
        assert NONE in run.scheduler.blocked


def test_a_point_that_is_being_tried_is_tried_twice(tmp_path: Path) -> None:
    run = Run(state(tmp_path), {NONE: [0.1, 0.1, 0.3]})
    assert run.next(3) == ["none trial 0", "latlon trial 0", "none trial 1"]
    assert run.tasks["none trial 0"].key != run.tasks["none trial 1"].key


# Less than everything


def test_selected_cells_and_the_searches_they_wait_for(tmp_path: Path) -> None:
    run = Run(state(tmp_path), selects=lambda cell: cell.variant == "latlon" and cell.fold == 1)
    assert (run.scheduler.cells, run.scheduler.trials) == (2, 3)
    assert run.scheduler.waiting == {LATLON: 2}
    assert run.all() == [
        *("latlon trial 0", "latlon trial 1", "latlon trial 2", "latlon cell 1 0", "latlon cell 1 1")
    ]
    # Of a search that is over only the cells.
    after = Run(state(tmp_path), selects=lambda cell: cell.seed == 1 and cell.variant == "latlon")
    assert (after.scheduler.trials, after.all()) == (0, ["latlon cell 0 1"])


def test_a_limit_counts_started_tasks(tmp_path: Path) -> None:
    run = Run(state(tmp_path), limit=4)
    assert run.scheduler.total == 4
    assert len(run.all()) == 4
    assert run.next() is None
    assert run.scheduler.stopped == ""
    said = "8 cells, 0 recorded, 8 to run; 2 arms to search first, 6 trials; at most 4 now"
    assert Scheduler(state(tmp_path, seed=5), limit=4).outline == said
    assert Run(state(tmp_path), limit=100).scheduler.total == 10


def test_the_outline_and_the_lines_of_a_run(tmp_path: Path) -> None:
    of = state(tmp_path, seed=[7, 8])
    scheduler = Scheduler(of)
    assert scheduler.outline == "8 cells, 0 recorded, 8 to run; 2 arms to search first, 6 trials"
    assert [*scheduler.lines()] == [
        "search  none: 3 trials of 2 trainings, then 4 cells",
        "search  latlon: 3 trials of 2 trainings, then 4 cells",
    ]
    assert scheduler.encoders() == set()
    first = Run(of)
    first.all(lambda task: 1.0)
    key = first.tasks["none cell 1 0"].key
    of.store.forget(key)
    after = Scheduler(state(tmp_path, seed=[7, 8]))
    assert after.outline == "8 cells, 7 recorded, 1 to run"
    assert [*after.lines()] == [f"cell    none random fold 1 seed 0 ({key})"]


def test_the_encoders_that_are_needed(tmp_path: Path) -> None:
    of = state(tmp_path, design={"variant": ["none", "geoclip", "random"], "fusion": ["concat"]})
    assert Scheduler(of).encoders() == {"geoclip", "random"}
    only = Scheduler(of, selects=lambda cell: cell.variant == "random")
    assert only.encoders() == {"random"}


# Where it stops


def test_a_budget_of_cells_is_never_exceeded(tmp_path: Path) -> None:
    run = Run(state(tmp_path, budget={"cells": 3}))
    for _ in range(6):
        run.end(run.next())
    assert run.next(4) == ["none cell 0 0", "latlon cell 0 0", "none cell 1 0", None]
    assert run.scheduler.stopped == "budget.cells 3 is used up"
    run.end("none cell 0 0")
    assert run.next() is None
    again = Run(state(tmp_path, budget={"cells": 3}))
    assert again.next(3) == ["latlon cell 0 0", "none cell 1 0", None]
    assert Run(state(tmp_path, budget={"cells": 1})).next() is None


def test_a_budget_of_gpu_hours_counts_shares_of_trials_and_cells(tmp_path: Path) -> None:
    half = {"share": {"cpu": 1, "gpu": 0.5}, "seconds": 3600.0}  # half a GPU hour
    run = Run(state(tmp_path, budget={"gpu_hours": 1.5}))
    for _ in range(3):
        one = run.next()
        assert one is not None
        run.end(one, **half)
    assert run.next() is None
    assert run.scheduler.stopped == "budget.gpu_hours 1.5 is used up (1.50 recorded)"
    again = Run(state(tmp_path, budget={"gpu_hours": 1.5}))
    assert again.next() is None  # of earlier runs too
    more = Run(state(tmp_path, budget={"gpu_hours": 10}))
    for _ in range(3):
        more.end(more.next(), share={"cpu": 4, "gpu": 0.0}, seconds=36000.0)  # which costs none
    assert more.next() is not None


def test_a_budget_of_wall_time_is_of_one_run(tmp_path: Path) -> None:
    now = [100.0]
    run = Run(state(tmp_path, budget={"wall_hours": 2}), clock=lambda: now[0])
    assert run.next() == "none trial 0"
    now[0] += 7199
    assert run.next() == "latlon trial 0"
    now[0] += 1
    assert run.next() is None
    assert run.scheduler.stopped == "budget.wall_hours 2 is used up"
    run.end("none trial 0")  # what runs may end
    assert Run(state(tmp_path, budget={"wall_hours": 2})).next() is not None


def test_the_caller_may_stop_it(tmp_path: Path) -> None:
    reasons = iter(["", "the hold was taken over"])
    run = Run(state(tmp_path), stopped=lambda: next(reasons))
    assert run.next(2) == ["none trial 0", None]
    assert run.scheduler.stopped == "the hold was taken over"
    assert run.next() is None  # it is not asked again


def test_equal_failures_stop_it(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=1, max_equal_failures=3))
    for _ in range(2):
        run.end(run.next())
    for message in ("site 1 has no value", "site 22 has no value", "another", "site 333 has no value"):
        assert run.scheduler.stopped == ""
        run.fail(run.next(), message=message)
    assert run.next() is None
    assert run.scheduler.stopped.startswith("3 equal failures in this run, RuntimeError: site # has no value")
    # They are of this run: the next one tries.
    assert Run(state(tmp_path, max_equal_failures=3)).next() is not None


def test_failures_of_trials_trip_it_too_but_divergence_is_an_answer(tmp_path: Path) -> None:
    diverging = Run(state(tmp_path, trials=9, max_equal_failures=2))
    for _ in range(8):
        diverging.fail(diverging.next(), "Diverged", "training loss is nan")
    assert diverging.scheduler.stopped == ""
    broken = Run(state(tmp_path, trials=9, max_equal_failures=2))
    for _ in range(2):
        broken.fail(broken.next())
    assert broken.next() is None
    assert broken.scheduler.stopped.startswith("2 equal failures")


def test_a_grid_s_divergence_is_a_failure(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=1, max_equal_failures=2))
    for _ in range(2):
        run.end(run.next())
    for _ in range(2):
        run.fail(run.next(), "Diverged", "training loss is nan")
    assert run.next() is None


def test_without_a_limit_of_failures_all_is_tried(tmp_path: Path) -> None:
    run = Run(state(tmp_path, trials=1, max_equal_failures=None))
    for _ in range(2):
        run.end(run.next())
    for _ in range(8):
        run.fail(run.next())
    assert (run.next(), run.scheduler.stopped) == (None, "")


def test_an_arm_whose_trials_all_failed_is_blocked_and_the_others_go_on(tmp_path: Path) -> None:
    run = Run(state(tmp_path))
    names = []
    while (one := run.next()) is not None:
        names.append(one)
        if one.startswith("none"):
            run.fail(one, "Diverged")
        else:
            run.end(one)
    assert [one for one in names if "cell" in one] == cells_of(LATLON)
    assert run.scheduler.blocked == {NONE: "none of 3 trials has a score"}
    assert run.scheduler.waiting[NONE] == 4
    # There is nothing to run then, and Ray need not start for it.
    again = Run(state(tmp_path))
    assert again.scheduler.blocked == run.scheduler.blocked
    assert (again.scheduler.total, again.next()) == (0, None)
    # More trials may help.
    more = Run(state(tmp_path, trials=4))
    assert (more.scheduler.cells, more.scheduler.trials) == (4 + 4, 1 + 1)


# Everything once


def slots(run: Run, count: int, rng: random.Random, dies: int | None) -> Iterator[tuple[Task, Record]]:
    """A pool of workers that end in any order; the run is killed after so many have ended."""
    running: list[Task] = []
    while True:
        while len(running) < count and (task := run.scheduler.next()) is not None:
            running.append(task)
        if not running or dies == 0:
            return
        task = running.pop(rng.randrange(len(running)))
        outcome = rng.random()
        if task.kind == "cell":
            record = result(task) if outcome < 0.8 else failure(task)
        elif outcome < 0.6:
            record = result(task, rng.choice([1.0, 2.0, rng.random()]))
        elif outcome < 0.8:
            record = result(task, state="pruned")
            del record["scores"]
        else:
            record = failure(task, "Diverged")
        end(run.scheduler, run.state, task, record)
        yield task, record
        dies = None if dies is None else dies - 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 6),
    kills=st.lists(st.integers(0, 9), max_size=3),
    concurrent=st.sampled_from([None, 1, 2]),
    nested=st.booleans(),
)
def test_every_cell_and_every_trial_is_done_once(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    workers: int,
    kills: list[int],
    concurrent: int | None,
    nested: bool,
) -> None:
    folder, rng = tmp_path_factory.mktemp("once"), random.Random(seed)
    declared = {"concurrent": concurrent, "max_equal_failures": None, "trials": 4}
    declared |= NESTED if nested else {}
    ended: list[tuple[Task, Record]] = []
    for begin, dies in enumerate([*kills, None]):
        run = Run(state(folder, **declared))
        run.points = Points(count=100 * begin + rng.randrange(3))
        if begin and rng.random() < 0.5:  # the sampler may well ask for a point again
            old = [record["params"][RATE] for record in next(iter(run.state.searches.values())).ended]
            run.points.declared = {NONE: old}
        ended += slots(run, workers, rng, dies)
        if concurrent is not None:
            assert all(len(of_arm) <= concurrent for of_arm in run.scheduler._in_flight.values())
    after = state(folder, **declared)
    assert Counter(task.key for task, _ in ended).most_common(1)[0][1] == 1
    assert len(after.searches) == (4 if nested else 2)
    for scope, trials in after.searches.items():
        assert [record["number"] for record in trials.ended] == [0, 1, 2, 3]  # each arm has had its budget
        assert trials.started == []
        own = {record["key"] for task, record in ended if task.kind == "trial" and task.scope == scope}
        assert own == {r["key"] for r in trials.ended if "same_as" not in r}
        done = (task.cells[0] for task, _ in ended if task.kind == "cell")
        cells = [cell for cell in done if after.study.scope(cell) == scope]
        chosen = trials.chosen_point()
        if chosen is None:
            assert cells == []
        else:  # every cell of the grid once, with the settings that were chosen
            grid = [c for c in after.study.cells({scope: chosen}) if after.study.scope(c) == scope]
            assert sorted(cells, key=Cell.model_dump_json) == sorted(grid, key=Cell.model_dump_json)
    assert Scheduler(after).total == 0


def test_a_store_of_another_study_is_left_alone(tmp_path: Path) -> None:
    Store(str(tmp_path / "results"), "other").search.write_file("abc", integrity.STARTED_FILE, b"{}")
    assert len(Run(state(tmp_path)).all()) == 14
