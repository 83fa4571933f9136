"""The tasks that a study is missing, and the time until all of them are done side by side."""

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pm25.cell import Cell
from sweeps.spec.design import Arm
from sweeps.spec.study import Study
from sweeps.state import StudyState
from sweeps.store import search_trials
from sweeps.store.records import Record


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


def planned_tasks(state: StudyState, recorded: Mapping[str, Record]) -> list[PlannedTask]:
    """List the grid cells without a record, in the grid's order, after the search trials to come."""
    waiting, keys = {*state.waiting}, {cell: key for key, cell in state.cells.items()}
    waited_for = {Arm.of(cell) for cell in waiting}
    found = []
    for arm, trials in state.searches.items():
        if arm in waited_for and not trials.finished:
            task = PlannedTask(
                arm, tuple(search_trials.trainings(state.study, arm, {})), _arm_levels(arm), trial=True
            )
            found += [task] * (trials.search.trials - len(trials.ended))
    for cell in state.grid:
        if cell in waiting or keys[cell] not in recorded:
            levels = levels_of(state.study, cell)
            found.append(PlannedTask(Arm.of(cell), (cell,), levels, waits=cell in waiting))
    return found


def levels_of(study: Study, cell: Cell) -> dict[str, str]:
    """Level of each design factor; the level of a fold is its position in the split's list, from 1."""
    folds = next(factor.folds for factor in study.design.split if factor.split.label == cell.split.label)
    position = folds.index(cell.fold) + 1
    return _arm_levels(Arm.of(cell)) | {
        "split": cell.split.label,
        "fold": str(position),
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
    trials: dict[Arm, deque[int]] = defaultdict(deque)
    waiting: dict[Arm, list[int]] = defaultdict(list)
    ready: list[int] = []  # a heap
    for i, task in enumerate(tasks):
        if task.trial:
            trials[task.arm].append(i)
        elif task.waits:
            waiting[task.arm].append(i)
        else:
            ready.append(i)
    running: list[tuple[float, int]] = []
    in_flight: Counter[Arm] = Counter()

    def release(arm: Arm) -> None:
        for i in waiting.pop(arm, []):
            heapq.heappush(ready, i)

    def following() -> int | None:
        for arm in sorted(trials, key=lambda arm: in_flight[arm]):
            if trials[arm] and in_flight[arm] < (concurrent or slots) and not (in_flight[arm] and ready):
                in_flight[arm] += 1
                return trials[arm].popleft()
        return heapq.heappop(ready) if ready else None

    for arm in [arm for arm in waiting if arm not in trials]:
        release(arm)
    now = 0.0
    while True:
        while len(running) < slots and (started := following()) is not None:
            heapq.heappush(running, (now + seconds[started], started))
        if not running:
            return now
        now, ended = heapq.heappop(running)
        if tasks[ended].trial:
            arm = tasks[ended].arm
            in_flight[arm] -= 1
            if not trials[arm] and not in_flight[arm]:
                del trials[arm]
                release(arm)
