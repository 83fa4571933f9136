"""The tasks that a study is missing, and the time until all of them are done side by side."""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pm25.cell import Cell
from sweeps.spec.design import Arm, FoldArm, Scope, arm_of
from sweeps.spec.study import Study
from sweeps.state import StudyState
from sweeps.store import search_trials
from sweeps.store.records import Record

POSITION = "position"
"""Factor of a cell beside those of the design: the position of its fold in the split's list, from 0."""


class PlannedTask(NamedTuple):
    """A task of one worker: a grid cell, or a search trial with all its trainings."""

    arm: Arm
    cells: tuple[Cell, ...]
    levels: Mapping[str, str]
    """Level of each design factor; a search trial has only those of its arm."""
    trial: bool = False
    """True for a search trial."""
    waits: bool = False
    """True for a grid cell that waits for the search of its arm."""
    fold: FoldArm | None = None
    """Fold whose nested search the task is of, or waits for; None where the search is that of the arm."""

    @property
    def scope(self) -> Scope:
        """Cells whose search the task is of, or waits for."""
        return self.fold or self.arm


def planned_tasks(state: StudyState, recorded: Mapping[str, Record]) -> list[PlannedTask]:
    """List the grid cells without a record, in the grid's order, after the search trials to come."""
    waiting, keys = {*state.waiting}, {cell: key for key, cell in state.cells.items()}
    waited_for = {*map(state.study.scope, waiting)}
    found = []
    for scope, trials in state.searches.items():
        if scope in waited_for and not trials.finished:
            cells = tuple(search_trials.trainings(state.study, scope, {}))
            levels = _arm_levels(trials.arm)
            if trials.fold is not None:
                own = levels_of(state.study, cells[0])
                levels |= {factor: own[factor] for factor in ("split", "fold", POSITION)}
            task = PlannedTask(trials.arm, cells, levels, trial=True, fold=trials.fold)
            found += [task] * (trials.search.trials - len(trials.ended))
    for cell in state.grid:
        if cell in waiting or keys[cell] not in recorded:
            levels = levels_of(state.study, cell)
            scope = state.study.scope(cell)
            fold = scope if isinstance(scope, FoldArm) else None
            found.append(PlannedTask(arm_of(scope), (cell,), levels, waits=cell in waiting, fold=fold))
    return found


def levels_of(study: Study, cell: Cell) -> dict[str, str]:
    """Level of each design factor, and the position of the fold in the split's list (`POSITION`)."""
    folds = next(factor.folds for factor in study.design.split if factor.split.label == cell.split.label)
    return _arm_levels(Arm.of(cell)) | {
        "split": cell.split.label,
        "fold": str(cell.fold),
        POSITION: str(folds.index(cell.fold)),
        "seed": str(cell.seed),
    }


def _arm_levels(arm: Arm) -> dict[str, str]:
    levels: dict[str, str] = {"variant": arm.variant}
    if arm.fusion is not None:
        levels["fusion"] = arm.fusion
    if arm.variant == "none":
        levels["head"] = arm.head or "plain"
    return levels


def wall(
    tasks: Sequence[PlannedTask], seconds: Sequence[float], slots: int, concurrent: int | None = None
) -> float:
    """Return the seconds until all tasks are done, `slots` side by side, in the order of `engine.scheduler`.

    Cells start in their order. An arm with a search keeps one trial running, and more (at most `concurrent`)
    only while no cell is ready. Its cells become ready when its last trial has ended.
    """
    trials: dict[Scope, deque[int]] = defaultdict(deque)
    waiting: dict[Scope, list[int]] = defaultdict(list)
    ready: list[int] = []  # a heap
    for i, task in enumerate(tasks):
        if task.trial:
            trials[task.scope].append(i)
        elif task.waits:
            waiting[task.scope].append(i)
        else:
            ready.append(i)
    running: list[tuple[float, int]] = []
    in_flight: Counter[Scope] = Counter()

    def release(scope: Scope) -> None:
        for i in waiting.pop(scope, []):
            heapq.heappush(ready, i)

    def following() -> int | None:
        for scope in sorted(trials, key=lambda scope: in_flight[scope]):
            busy = in_flight[scope]
            if trials[scope] and busy < (concurrent or slots) and not (busy and ready):
                in_flight[scope] += 1
                return trials[scope].popleft()
        return heapq.heappop(ready) if ready else None

    for scope in [scope for scope in waiting if scope not in trials]:
        release(scope)
    now = 0.0
    while True:
        while len(running) < slots and (started := following()) is not None:
            heapq.heappush(running, (now + seconds[started], started))
        if not running:
            return now
        now, ended = heapq.heappop(running)
        if tasks[ended].trial:
            scope = tasks[ended].scope
            in_flight[scope] -= 1
            if not trials[scope] and not in_flight[scope]:
                del trials[scope]
                release(scope)
