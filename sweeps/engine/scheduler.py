"""What a run does next: which grid cell or search trial, in which order, and when it stops."""

import heapq
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pm25.cell import Cell
from pm25.settings import ENCODERS
from sweeps.spec.design import Arm
from sweeps.state import StudyState
from sweeps.store import failures, search_trials
from sweeps.store.records import Record
from sweeps.store.search_trials import ArmTrials


@dataclass(frozen=True)
class Task:
    """One thing to hand to a worker."""

    kind: Literal["cell", "trial"]
    key: str
    arm: Arm
    cells: tuple[Cell, ...]
    """The cell, or the trainings of the search trial."""
    more: Mapping[str, Any]
    """What the record is to say besides."""
    asked: str = ""
    """Under which name a search trial's point was asked for."""


class Asker(Protocol):
    """Where the points of a search come from, and where their fate is told."""

    def ask(self, arm: Arm) -> tuple[str, dict[str, Any]]: ...

    def tell(self, arm: Arm, asked: str, record: Record) -> None: ...


class Scheduler:
    """The work of one `sweep run`.

    An arm's search comes first, for its grid waits for it; one trial of an arm at a time as long as there
    are cells to train beside it, as many as there is room for otherwise. The cells of an arm are released
    when its search is over, those of an arm without one at once, first folds and seeds first; seeds that the
    study adds to what is undecided, as soon as the last cell of a look has ended.
    """

    def __init__(
        self,
        state: StudyState,
        *,
        selects: Callable[[Cell], bool] | None = None,
        limit: int | None = None,
        stopped: Callable[[], str] = lambda: "",
    ) -> None:
        """`selects` chooses grid cells; `limit` counts what is begun; `stopped` says why to stop."""
        self._state, self._limit, self._asks_stop = state, limit, stopped
        self._selects = selects = selects or (lambda cell: True)
        self._begin = time.monotonic()
        self._breaker = failures.Breaker(state.study.max_equal_failures or sys.maxsize)
        self.stopped = ""
        """Why nothing more is begun; empty while that is not so."""
        self.blocked: dict[Arm, str] = {}
        """Arms whose search ended without a single score."""
        self.handed = 0
        self._in_flight: dict[Arm, set[int]] = {}
        self._tuning: dict[Arm, dict[str, Any]] = {}
        self._ready: list[tuple[int, str, Cell]] = []
        records = state.records()
        self._recorded, self._cells_in_flight = len(records), 0
        self._gpu_seconds = sum(map(_gpu_seconds, [*records.values(), *state.trials()]))
        grid = state.study.cells(search_trials.tuned(state.searches))
        place = {cell: i for i, cell in enumerate(grid)}
        for key, cell in state.cells.items():
            if key not in records and selects(cell):
                heapq.heappush(self._ready, (place[cell], key, cell))
        held_back = [cell for cell in state.waiting if selects(cell)]
        self.waiting = Counter(Arm.of(cell) for cell in held_back)
        """How many selected cells wait for the search of their arm."""
        self.searches: dict[Arm, ArmTrials] = {
            arm: trials for arm, trials in state.searches.items() if self.waiting[arm]
        }
        self.cells = len(self._ready) + len(held_back)
        """To train when the run begins; so many search trials:"""
        self.trials = sum(trials.left for trials in self.searches.values())
        self._held: list[tuple[int, Cell]] = []
        """Selected cells that no look asks for yet, with their places in the grid; not of arms that wait."""
        self.further = 0
        """How many selected cells will come besides if nothing more is decided, as of the begin."""
        if state.looks is not None:
            now, waiting = {*state.grid}, {Arm.of(cell) for cell in state.waiting}
            later = [cell for cell in grid if cell not in now and selects(cell)]
            self.further = sum(map(state.looks.may_ask_for, later))
            self._held = [(place[cell], cell) for cell in later if Arm.of(cell) not in waiting]
        for arm in self.searches:
            self._in_flight[arm] = set()
            if self.searches[arm].over:
                self._settle(arm)

    @property
    def total(self) -> int:
        """Of cells and search trials, as far as the limit lets them begin."""
        return min(self.cells + self.trials, self._limit or self.cells + self.trials)

    @property
    def outline(self) -> str:
        """How much there is to do."""
        state = self._state
        text = (
            f"{len(state.cells) + len(state.waiting)} cells, {self._recorded} recorded, {self.cells} to run"
        )
        if self.searches:
            text += f"; {len(self.searches)} arms to search first, {self.trials} trials"
        if self.further:
            text += f"; up to {self.further} more if undecided"
        return text if self._limit is None else f"{text}; at most {self._limit} now"

    def lines(self) -> Iterator[str]:
        """What is to be done, in its order as far as that is known; for people."""
        for arm, trials in self.searches.items():
            each = f" of {trials.search.trainings} trainings" if trials.search.trainings > 1 else ""
            yield f"search  {arm.label}: {trials.left} trials{each}, then {self.waiting[arm]} cells"
        for _, key, cell in sorted(self._ready)[: self._limit]:
            yield f"cell    {cell.label} ({key})"

    def encoders(self) -> set[str]:
        """The encoders whose vectors are needed."""
        looks = self._state.looks
        later = (cell for _, cell in self._held if looks is not None and looks.may_ask_for(cell))
        arms = [*self.searches, *(Arm.of(cell) for _, _, cell in self._ready), *map(Arm.of, later)]
        return {arm.variant for arm in arms if arm.variant in ENCODERS}

    def to_come(self) -> Iterator[Cell]:
        """The cells that may be trained, those too that no look asks for yet.

        Of an arm that is searched with the study's own settings.
        """
        yield from (cell for _, _, cell in self._ready)
        yield from (cell for _, cell in self._held)
        yield from (cell for cell in self._state.waiting if self._selects(cell))

    def stop(self, why: str) -> None:
        """Nothing more is begun."""
        self.stopped = self.stopped or why

    def next(self, asker: Asker) -> Task | None:
        """What to begin now; None where there is nothing, or not yet."""
        self._judge()
        if self.stopped or (self._limit is not None and self.handed >= self._limit):
            return None
        # Of those that wait, the furthest first: it is over the sooner, and its cells come beside the others.
        order = sorted(
            self.searches, key=lambda arm: (len(self._in_flight[arm]), -len(self.searches[arm].ended))
        )
        begin = [arm for arm in order if self._can_begin(arm)]
        for arm in begin:
            if not self._in_flight[arm] or not self._ready:
                while (work := self._trial(arm, asker)) is None and self._can_begin(arm):
                    pass  # a point that was tried before has its record at once
                if work is not None:
                    self.handed += 1
                    return work
        if self._ready:
            _, key, cell = heapq.heappop(self._ready)
            arm = Arm.of(cell)
            self.handed += 1
            self._cells_in_flight += 1
            if arm not in self._tuning:  # whose search is over: all its cells say the same of it
                self._tuning[arm] = self._state.tuning(arm)
            return Task("cell", key, arm, (cell,), self._tuning[arm])
        return None

    def ended(self, work: Task, record: Record) -> None:
        """It is recorded."""
        self._gpu_seconds += _gpu_seconds(record)
        if work.kind == "cell":
            self._recorded, self._cells_in_flight = self._recorded + 1, self._cells_in_flight - 1
            if self._state.looks is not None and self._state.looks.add(work.cells[0], record):
                self._extend()
        # A point at which the training diverges is an answer of the search, and no fault.
        answer = work.kind == "trial" and record.get("error", {}).get("type") == "Diverged"
        if record["state"] == "failed" and not answer:
            self._breaker.failed(failures.signature_of(record))
        if work.kind == "trial":
            self._in_flight[work.arm].discard(record["number"])
            self._add(work.arm, record)

    def _judge(self) -> None:
        if self.stopped:
            return
        budget = self._state.study.budget
        hours, gpu_hours = (time.monotonic() - self._begin) / 3600, self._gpu_seconds / 3600
        if reason := self._asks_stop() or self._breaker.open:
            self.stopped = reason
        elif budget.wall_hours is not None and hours >= budget.wall_hours:
            self.stopped = f"budget.wall_hours {budget.wall_hours:g} is used up"
        elif budget.gpu_hours is not None and gpu_hours >= budget.gpu_hours:
            self.stopped = f"budget.gpu_hours {budget.gpu_hours:g} is used up ({gpu_hours:.2f} recorded)"
        elif budget.cells is not None and self._recorded + self._cells_in_flight >= budget.cells:
            self.stopped = f"budget.cells {budget.cells} is used up"

    def _can_begin(self, arm: Arm) -> bool:
        trials = self.searches[arm]
        running = self._in_flight[arm]
        room = trials.search.concurrent is None or len(running) < trials.search.concurrent
        return room and (not trials.spent or len(trials.begun) > len(running))

    def _trial(self, arm: Arm, asker: Asker) -> Task | None:
        """The arm's next trial; None where its point has a result already, which is recorded for it too."""
        state, trials = self._state, self.searches[arm]
        asked, point = asker.ask(arm)
        running = self._in_flight[arm]
        again = [n for n, known in trials.begun if known == point and n not in running]
        number = again[0] if again else trials.next_number
        cells = tuple(search_trials.trainings(state.study, arm, point))
        digest = search_trials.digest([state.key(cell) for cell in cells])
        key = search_trials.trial_key(digest, number)
        begun = {"kind": "trial", "arm": arm.label, "number": number, "params": point, "point": digest}
        state.store.search.write_file(key, search_trials.BEGUN, json.dumps(begun, indent=1).encode())
        if not again:
            trials.begun.append((number, point))
        for old in trials.ended:
            if old["point"] == digest and old["state"] != "pruned":
                copy = {**old, **begun, "key": key, "same_as": old["key"], "epochs": 0, "seconds": 0.0}
                state.store.search.write_record(copy)
                asker.tell(arm, asked, copy)
                self._add(arm, copy)
                return None
        running.add(number)
        return Task("trial", key, arm, cells, begun, asked)

    def _add(self, arm: Arm, record: Record) -> None:
        trials = self.searches[arm]
        trials.add(record)
        if trials.over and not self._in_flight[arm]:
            self._settle(arm)

    def _settle(self, arm: Arm) -> None:
        """The arm's search is over: release its cells."""
        point = self.searches[arm].settled()
        if point is None:
            self.cells -= self.waiting[arm]
            self.blocked[arm] = f"none of {len(self.searches[arm].ended)} trials has a score"
            return
        looks, arms = self._state.looks, self._state.study.arms()
        cells = enumerate(self._state.study.cells({arm: point}, arm))
        # Every arm's cells have the same order, and stand side by side in the grid.
        placed = ((i * len(arms) + arms.index(arm), cell) for i, cell in cells)
        own = [(place, cell) for place, cell in placed if self._selects(cell)]
        now = [(i, cell) for i, cell in own if looks is None or looks.asks_for(cell)]
        self._held += [(i, cell) for i, cell in own if looks is not None and not looks.asks_for(cell)]
        self.cells += self._take_up(now) - len(now)  # the same settings may have been chosen before
        self._extend()

    def _extend(self) -> None:
        """Take up the cells that were held and that the looks ask for now."""
        looks = self._state.looks
        while looks is not None and (now := [one for one in self._held if looks.asks_for(one[1])]):
            self._held = [one for one in self._held if not looks.asks_for(one[1])]
            self.cells += self._take_up(now)

    def _take_up(self, cells: Iterable[tuple[int, Cell]]) -> int:
        """Make those of the cells ready that have no record; how many they are. Each with its place."""
        keyed = [(place, self._state.key(cell), cell) for place, cell in cells]
        records, ready = self._state.store.records(key for _, key, _ in keyed), 0
        for place, key, cell in keyed:
            record = records.get(key)
            if record is None:
                heapq.heappush(self._ready, (place, key, cell))
                ready += 1
                continue
            self._recorded += 1
            self._gpu_seconds += _gpu_seconds(record)
            if self._state.looks is not None:
                self._state.looks.add(cell, record)
        return ready


def _gpu_seconds(record: Record) -> float:
    return float(record.get("share", {}).get("gpu", 0.0)) * float(record.get("seconds", 0.0))
