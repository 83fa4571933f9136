"""The order of a run: which grid cell or search trial is handed out next, and when the run stops."""

import heapq
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pm25.cell import Cell
from pm25.settings import embeds
from sweeps.spec.design import Arm, Scope, arm_of
from sweeps.state import StudyState
from sweeps.store import failures, integrity, search_trials
from sweeps.store.records import Record
from sweeps.store.search_trials import ArmTrials


@dataclass(frozen=True)
class Task:
    """A grid cell or a search trial, as it is handed to a worker."""

    kind: Literal["cell", "trial"]
    key: str
    arm: Arm
    cells: tuple[Cell, ...]
    """The grid cell, or the trainings of the search trial."""
    more: Mapping[str, Any]
    """Fields that the record gets besides those of the training."""
    optuna_number: int = -1
    """Number of the search trial in its arm's Optuna study; -1 for a grid cell."""
    scope: Scope | None = None
    """Scope of the search trial; None for a grid cell."""
    also: tuple["Task", ...] = ()
    """Further grid cells of a stack, which one worker trains in lockstep with this one."""

    @property
    def members(self) -> tuple["Task", ...]:
        """Tasks of a stack, each with its own record; the task alone if it is not a stack."""
        return (replace(self, also=()), *self.also)

    @staticmethod
    def joined(members: Sequence["Task"]) -> "Task":
        """Join grid cells to one task."""
        first, *others = members
        return replace(first, also=tuple(others))


class SearchPoints(Protocol):
    """Proposes the points of one arm's search and learns from their results: `optuna_study.ArmStudy`."""

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Draw the next point; returns its number and the point."""

    def tell(self, number: int, record: Record) -> None:
        """Report the record of the point's trial."""

    def prunes(self, number: int, reported: Sequence[float | None]) -> bool:
        """Return whether to end a trial that has reported these validation RMSEs, one per epoch."""


def _arm_study(trials: ArmTrials) -> SearchPoints:
    """Build the arm's Optuna study. Optuna is imported here, so that `--dry-run` does not wait for it."""
    from sweeps.engine.optuna_study import ArmStudy

    return ArmStudy(trials)


LAST_CELLS = 2
"""Number of ready cells for each running one, at or below which the longest cells come first."""


class Scheduler:
    """Hands out the tasks of one `sweep run`.

    An arm's search comes before its grid. While grid cells are ready, each arm runs one search trial at a
    time; otherwise, as many as workers ask for. The cells of an arm are released when its search is over, or
    at once if it has none, first folds and seeds first. Cells of a later look are released when the last cell
    of the look before has ended. The last ready cells come in the order of their expected time, the longest
    first, so that the workers end at about the same time. It is the mean time of ended cells of the same arm
    and split.
    """

    def __init__(
        self,
        state: StudyState,
        *,
        selects: Callable[[Cell], bool] | None = None,
        limit: int | None = None,
        stopped: Callable[[], str] = lambda: "",
        search_points: Callable[[ArmTrials], SearchPoints] = _arm_study,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Schedule what the study's store lacks.

        `selects` chooses grid cells, and `limit` bounds the number of tasks that are started. `stopped`
        returns why the run has to stop, or "". `search_points` opens the search of an arm. `clock` returns
        seconds.
        """
        self._state, self._limit, self._asks_stop = state, limit, stopped
        self._search_points, self._studies = search_points, dict[Scope, SearchPoints]()
        self._selects = selects = selects or (lambda cell: True)
        self._clock, self._start = clock, clock()
        self._breaker = failures.Breaker(state.study.max_equal_failures or sys.maxsize)
        self.stopped = ""
        """Why no further task is started; empty while the run continues."""
        self.blocked: dict[Scope, str] = {}
        """Arms whose search ended without a single score, and why."""
        self.copied: list[Record] = []
        """Records of search trials that took an earlier result; the caller of `next` removes them."""
        self.handed = 0
        """Number of tasks handed out."""
        self._in_flight: dict[Scope, set[int]] = {}
        self._tuning: dict[tuple[Arm, str, int], dict[str, Any]] = {}
        self._ready: list[tuple[int, str, Cell]] = []
        records = state.records()
        self._recorded, self._cells_in_flight = len(records), 0
        self._gpu_seconds = sum(map(_gpu_seconds, [*records.values(), *state.trials()]))
        self._took: dict[tuple[Arm, str], tuple[float, int]] = {}
        for key, record in records.items():
            self._learn_time(state.cells[key], record)
        grid = state.study.cells(search_trials.tuned(state.searches))
        position = {cell: i for i, cell in enumerate(grid)}
        for key, cell in state.cells.items():
            if key not in records and selects(cell):
                heapq.heappush(self._ready, (position[cell], key, cell))
        self.damaged = {
            scope: len(trials.damaged) for scope, trials in state.searches.items() if trials.damaged
        }
        """Numbers of damaged trials, by scope; its search and its cells wait until they are retried."""
        held_back = [
            cell for cell in state.waiting if selects(cell) and state.study.scope(cell) not in self.damaged
        ]
        self.waiting = Counter(map(state.study.scope, held_back))
        """Number of selected cells, by scope, that wait for their search."""
        self.searches: dict[Scope, ArmTrials] = {
            scope: trials for scope, trials in state.searches.items() if self.waiting[scope]
        }
        self.cells = len(self._ready) + len(held_back)
        """Number of grid cells to train."""
        self.trials = sum(trials.remaining for trials in self.searches.values())
        """Number of search trials to run, as counted at the start."""
        self._later: list[tuple[int, Cell]] = []
        """Selected cells of later looks with their positions in the grid, except in arms that wait."""
        self.further = 0
        """Number of selected cells of later looks, as counted at the start; trained if nothing is decided."""
        if state.looks is not None:
            now, waiting = {*state.grid}, {*map(state.study.scope, state.waiting)}
            later = [cell for cell in grid if cell not in now and selects(cell)]
            self.further = sum(map(state.looks.may_ask_for, later))
            self._later = [(position[cell], cell) for cell in later if state.study.scope(cell) not in waiting]
        for scope in self.searches:
            self._in_flight[scope] = set()
            if self.searches[scope].finished:
                self._settle(scope)

    @property
    def total(self) -> int:
        """Number of cells and search trials that the run will start, at most `limit`."""
        return min(self.cells + self.trials, self._limit or self.cells + self.trials)

    @property
    def outline(self) -> str:
        """Counts of cells and search trials, in one line."""
        state = self._state
        text = (
            f"{len(state.cells) + len(state.waiting)} cells, {self._recorded} recorded, {self.cells} to run"
        )
        if self.searches:
            text += f"; {len(self.searches)} {self._scopes} to search first, {self.trials} trials"
        if self.further:
            text += f"; up to {self.further} more if undecided"
        return text if self._limit is None else f"{text}; at most {self._limit} now"

    @property
    def _scopes(self) -> str:
        """Name of what a search tunes, in the plural."""
        search = self._state.study.search
        return "folds of arms" if search is not None and search.nested else "arms"

    def lines(self) -> Iterator[str]:
        """Describe each search and each ready cell, one line each, in the order in which they will start."""
        for scope, trials in self.searches.items():
            each = f" of {trials.search.trainings} trainings" if trials.search.trainings > 1 else ""
            yield f"search  {scope.label}: {trials.remaining} trials{each}, then {self.waiting[scope]} cells"
        for _, key, cell in sorted(self._ready)[: self._limit]:
            yield f"cell    {cell.label} ({key})"

    def encoders(self) -> set[str]:
        """Names of the encoders whose embeddings the cells need, those of later looks included."""
        looks = self._state.looks
        later = (cell for _, cell in self._later if looks is not None and looks.may_ask_for(cell))
        arms = [
            *map(arm_of, self.searches),
            *(Arm.of(cell) for _, _, cell in self._ready),
            *map(Arm.of, later),
        ]
        return {arm.variant for arm in arms if embeds(arm.variant)}

    def to_come(self) -> Iterator[Cell]:
        """Iterate over the cells that may be trained, those of later looks included.

        Cells of an arm that is still searched have the settings that the study declares.
        """
        yield from (cell for _, _, cell in self._ready)
        yield from (cell for _, cell in self._later)
        yield from (cell for cell in self._state.waiting if self._selects(cell))

    def stop(self, why: str) -> None:
        """Start no further task. The first reason given is kept."""
        self.stopped = self.stopped or why

    def next(self) -> Task | None:
        """Return the task to start now; None if there is none at the moment.

        A search may propose a point that was tried before. Its trial takes that result: the record is
        appended to `copied`, and the search goes to its next point.
        """
        self._check_stop()
        if self.stopped or (self._limit is not None and self.handed >= self._limit):
            return None
        # Among idle arms the furthest goes first: it is over sooner, and its cells run beside the others.
        order = sorted(
            self.searches, key=lambda scope: (len(self._in_flight[scope]), -len(self.searches[scope].ended))
        )
        startable = [scope for scope in order if self._can_start(scope)]
        for scope in startable:
            if not self._in_flight[scope] or not self._ready:
                while (task := self._trial(scope)) is None and self._can_start(scope):
                    pass  # the point had a result already
                if task is not None:
                    self.handed += 1
                    return task
        return self._cell_task(*self._pop()) if self._ready else None

    def stack(self, task: Task, most: int, kind: Callable[[Cell], Hashable]) -> Task:
        """Add ready cells of the same `kind` to a grid cell that `next` returned, at most `most` together.

        Neither the limit nor the budget of cells is exceeded.
        """
        wanted = kind(task.cells[0])
        members = [task]
        for one in sorted(one for one in self._ready if kind(one[2]) == wanted):
            self._check_stop()
            if len(members) >= most or self.stopped or self.handed == self._limit:
                break
            self._ready.remove(one)
            members.append(self._cell_task(one[1], one[2]))
        heapq.heapify(self._ready)
        return Task.joined(members)

    def ready(self, kind: Callable[[Cell], Hashable], cell: Cell) -> int:
        """Return the number of ready cells of the same `kind` as a cell."""
        wanted = kind(cell)
        return sum(kind(one) == wanted for _, _, one in self._ready)

    def _cell_task(self, key: str, cell: Cell) -> Task:
        """Hand out a grid cell."""
        self.handed += 1
        self._cells_in_flight += 1
        place = Arm.of(cell), cell.split.label, cell.fold
        if place not in self._tuning:  # equal for all seeds, as the search is over
            self._tuning[place] = self._state.tuning(cell)
        return Task("cell", key, place[0], (cell,), self._tuning[place])

    def prunes(self, task: Task, reported: Sequence[float | None]) -> bool:
        """Return whether to end a search trial that has reported these RMSEs, one per epoch.

        False for a grid cell, which is never pruned.
        """
        return task.kind == "trial" and self._study(_scope(task)).prunes(task.optuna_number, reported)

    def ended(self, task: Task, record: Record) -> None:
        """Count a task that has ended with `record`, and release what waited for it."""
        self._gpu_seconds += _gpu_seconds(record)
        if record["state"] == "damaged":  # between its writing and its reading
            self._damaged(task, record)
            return
        if task.kind == "cell":
            self._recorded, self._cells_in_flight = self._recorded + 1, self._cells_in_flight - 1
            self._learn_time(task.cells[0], record)
            if self._state.looks is not None and self._state.looks.add(task.cells[0], record):
                self._extend()
        # A search point at which training diverges is a result of the search, not a fault.
        is_result = task.kind == "trial" and record.get("error", {}).get("type") == "Diverged"
        if record["state"] == "failed" and not is_result:
            self._breaker.failed(failures.signature_of(record))
        if task.kind == "trial":
            scope = _scope(task)
            self._study(scope).tell(task.optuna_number, record)
            self._in_flight[scope].discard(record["number"])
            self._add(scope, record)

    def _pop(self) -> tuple[str, Cell]:
        """Remove the next cell from the ready ones: the first of the grid or, among the last, the longest."""
        first = heapq.heappop(self._ready)
        if len(self._ready) < LAST_CELLS * self._cells_in_flight:
            longest = max(self._ready, key=lambda one: (self._expected_s(one[2]), -one[0]), default=first)
            if self._expected_s(longest[2]) > self._expected_s(first[2]):
                self._ready.remove(longest)
                self._ready.append(first)
                heapq.heapify(self._ready)
                first = longest
        return first[1], first[2]

    def _expected_s(self, cell: Cell) -> float:
        """Mean seconds of the ended cells of the same arm and split; 0 if none has ended."""
        total, number = self._took.get((Arm.of(cell), cell.split.label), (0.0, 1))
        return total / number

    def _learn_time(self, cell: Cell, record: Record) -> None:
        """Note the seconds of a cell that has ended; a failed one took less than the others."""
        if record["state"] == "done":
            place = Arm.of(cell), cell.split.label
            total, number = self._took.get(place, (0.0, 0))
            self._took[place] = total + record["seconds"], number + 1

    def _damaged(self, task: Task, record: Record) -> None:
        """Count a task whose record is damaged; nothing that waited for it is released."""
        if task.kind == "cell":
            self._recorded, self._cells_in_flight = self._recorded + 1, self._cells_in_flight - 1
            return
        scope, number = _scope(task), task.more["number"]
        self._in_flight[scope].discard(number)
        trials = self.searches[scope]
        trials.started = [(known, point) for known, point in trials.started if known != number]
        trials.damaged.append(record)

    def _check_stop(self) -> None:
        """Set `stopped` if the caller, the number of equal failures or a budget says so."""
        if self.stopped:
            return
        budget = self._state.study.budget
        hours, gpu_hours = (self._clock() - self._start) / 3600, self._gpu_seconds / 3600
        if reason := self._asks_stop() or self._breaker.reason:
            self.stopped = reason
        elif budget.wall_hours is not None and hours >= budget.wall_hours:
            self.stopped = f"budget.wall_hours {budget.wall_hours:g} is used up"
        elif budget.gpu_hours is not None and gpu_hours >= budget.gpu_hours:
            self.stopped = f"budget.gpu_hours {budget.gpu_hours:g} is used up ({gpu_hours:.2f} recorded)"
        elif budget.cells is not None and self._recorded + self._cells_in_flight >= budget.cells:
            self.stopped = f"budget.cells {budget.cells} is used up"

    def _can_start(self, scope: Scope) -> bool:
        trials = self.searches[scope]
        running = self._in_flight[scope]
        below_limit = trials.search.concurrent is None or len(running) < trials.search.concurrent
        return below_limit and (not trials.exhausted or len(trials.started) > len(running))

    def _study(self, scope: Scope) -> SearchPoints:
        """The search of a scope, opened at its first use."""
        if scope not in self._studies:
            self._studies[scope] = self._search_points(self.searches[scope])
        return self._studies[scope]

    def _trial(self, scope: Scope) -> Task | None:
        """Start the scope's next search trial; None if its point has a result already, which is copied."""
        state, trials = self._state, self.searches[scope]
        optuna_number, point = self._study(scope).ask()
        running = self._in_flight[scope]
        started = [n for n, known in trials.started if known == point and n not in running]
        number = started[0] if started else trials.next_number
        cells = tuple(search_trials.trainings(state.study, scope, point))
        digest = search_trials.digest([state.key(cell) for cell in cells])
        key = integrity.trial_key(digest, number)
        where = search_trials.place(scope)
        start = {"kind": "trial", **where, "number": number, "params": point, "point": digest}
        sha256 = state.store.search.write_file(key, integrity.STARTED_FILE, integrity.start_file(start))
        if not started:
            trials.started.append((number, point))
        for old in trials.ended:
            if old["point"] == digest and old["state"] != "pruned":
                copy = {**old, **start, "key": key, "same_as": old["key"], "epochs": 0, "seconds": 0.0}
                copy = state.store.search.write_record(copy, {integrity.STARTED_FILE: sha256})
                self._study(scope).tell(optuna_number, copy)
                self.copied.append(copy)
                self._add(scope, copy)
                return None
        running.add(number)
        return Task("trial", key, arm_of(scope), cells, start, optuna_number, scope)

    def _add(self, scope: Scope, record: Record) -> None:
        trials = self.searches[scope]
        trials.add(record)
        if trials.finished and not self._in_flight[scope]:
            self._settle(scope)

    def _settle(self, scope: Scope) -> None:
        """Release the cells of a scope whose search is over."""
        point = self.searches[scope].chosen_point()
        if point is None:
            self.cells -= self.waiting[scope]
            self.blocked[scope] = f"none of {len(self.searches[scope].ended)} trials has a score"
            return
        study, arm = self._state.study, arm_of(scope)
        looks, arms = self._state.looks, study.arms()
        of_arm = enumerate(study.cells({scope: point}, arm))
        cells = ((i, cell) for i, cell in of_arm if study.scope(cell) == scope)
        # The grid alternates between arms, each with its cells in the same order.
        positioned = ((i * len(arms) + arms.index(arm), cell) for i, cell in cells)
        own = [(position, cell) for position, cell in positioned if self._selects(cell)]
        now = [(i, cell) for i, cell in own if looks is None or looks.asks_for(cell)]
        self._later += [(i, cell) for i, cell in own if looks is not None and not looks.asks_for(cell)]
        self.cells += self._release(now) - len(now)  # cells with the same settings may have records
        self._extend()

    def _extend(self) -> None:
        """Release the cells of later looks that the looks ask for now."""
        looks = self._state.looks
        while looks is not None and (now := [one for one in self._later if looks.asks_for(one[1])]):
            self._later = [one for one in self._later if not looks.asks_for(one[1])]
            self.cells += self._release(now)

    def _release(self, cells: Iterable[tuple[int, Cell]]) -> int:
        """Make the cells without a record ready and return their number; each comes with its position."""
        keyed = [(position, self._state.key(cell), cell) for position, cell in cells]
        records, ready = self._state.store.records(key for _, key, _ in keyed), 0
        for position, key, cell in keyed:
            record = records.get(key)
            if record is None:
                heapq.heappush(self._ready, (position, key, cell))
                ready += 1
                continue
            self._recorded += 1
            self._gpu_seconds += _gpu_seconds(record)
            if self._state.looks is not None and record["state"] != "damaged":
                self._state.looks.add(cell, record)
        return ready


def _scope(task: Task) -> Scope:
    """Scope of a search trial."""
    assert task.scope is not None
    return task.scope


def _gpu_seconds(record: Record) -> float:
    """GPU-seconds that a record accounts for."""
    return float(record.get("share", {}).get("gpu", 0.0)) * float(record.get("seconds", 0.0))
