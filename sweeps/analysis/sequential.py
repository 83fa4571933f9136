"""Cells that a study asks for, where it adds seeds or repeats only to contrasts that are undecided."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pm25.cell import Cell
from sweeps.analysis import judgement, next_look
from sweeps.analysis.next_look import DECIDED, TOO_FEW, UNDECIDED, State
from sweeps.spec.claims import Contrast
from sweeps.spec.design import Arm, SplitFactor
from sweeps.spec.study import Study
from sweeps.store.records import Record, Store, intact

__all__ = ["DECIDED", "TOO_FEW", "UNDECIDED", "Looks", "Schedule", "outcome", "rule"]

Position = tuple[Arm, str, int]
"""An arm, the label of a split, and a fold of it."""


class Schedule:
    """The looks at one contrast: what it has had so far, and why it gets no more."""

    def __init__(self, contrast: Contrast, factor: SplitFactor, path: list[State]) -> None:
        self.contrast, self.factor = contrast, factor
        self.path = path
        """States at the looks so far, the present one last."""
        self.stopped = ""
        """Why the contrast gets nothing more; empty while cells of the present look are missing."""

    @property
    def state(self) -> State:
        """State of the present look."""
        return self.path[-1]

    def folds(self, repeats: int | None) -> tuple[int, ...]:
        """Return the folds of the first origins or deals; None for all of them."""
        position = self.factor.split.position
        return tuple(
            fold
            for fold in self.factor.folds
            if self.contrast.fold in (None, fold) and (repeats is None or position(fold).repeat < repeats)
        )

    def positions(self, repeats: int | None) -> list[Position]:
        """Return the positions of both arms on these folds."""
        contrast = self.contrast
        return [(a, contrast.split, f) for a in (contrast.arm, contrast.other) for f in self.folds(repeats)]


class Looks:
    """The looks at every declared contrast, as a function of the records alone.

    Each contrast goes from look to look by itself, and each look is judged with its own cells. So neither the
    order of the records nor the cells of another contrast matter. A look is judged when all its cells have
    ended. If `next_look.following` does not stop the contrast, both of its arms get what it buys.
    """

    def __init__(self, study: Study, store: Store, ended: Iterable[tuple[Cell, Record]] = ()) -> None:
        """Judge the contrasts of `study` from `ended`, cells with their records, and their predictions.

        Records of cells that no look asks for change nothing.
        """
        self._store = store
        self._analysis, self._ladders = study.analysis, study.design.looks
        self._all_seeds = study.design.seeds
        self._rank = {seed: i for i, seed in enumerate(self._all_seeds)}
        factors = {factor.split.label: factor for factor in study.design.split}
        begin = {label: next_look.first(self._ladders.of(label)) for label in factors}
        self._seeds: dict[Position, int] = {
            (arm, label, fold): self._number(begin[label]) if _among(factor, fold, begin[label]) else 0
            for arm in study.arms()
            for label, factor in factors.items()
            for fold in factor.folds
        }
        """Number of seeds that each position has."""
        self._arms = study.arms()
        self._references = Counter((cell.split.label, cell.fold) for cell in study.reference_cells())
        self._ended: dict[Position, dict[int, tuple[Cell, Record]]] = defaultdict(dict)
        self.schedules: list[Schedule] = []
        self._schedules_at: dict[Position, list[Schedule]] = defaultdict(list)
        for contrast in study.contrasts():
            factor = factors[contrast.split]
            schedule = Schedule(contrast, factor, [begin[contrast.split]])
            units = np.array([factor.split.unit(fold) for fold in schedule.folds(None)])
            if not judgement.may_be_tested(factor.split.kind, contrast.part, units):
                schedule.stopped = TOO_FEW
            self.schedules.append(schedule)
            for position in schedule.positions(None):
                self._schedules_at[position].append(schedule)
        for cell, record in ended:
            if not cell.is_reference:
                self._ended[_position(cell)][cell.seed] = cell, record
        for schedule in self.schedules:
            self._advance(schedule)

    def asks_for(self, cell: Cell) -> bool:
        """Return True if the cell is among those that the interim analyses (looks) have requested.

        The cell of a reference is among them if a cell of an arm on its fold is.
        """
        if cell.is_reference:
            return any(self._seeds[at] for at in self._positions_on(cell.split.label, cell.fold))
        return self._rank[cell.seed] < self._seeds[_position(cell)]

    def may_ask_for(self, cell: Cell) -> bool:
        """Return True if the cell is requested already, or may be at a later look."""
        if cell.is_reference:
            return any(map(self._most_seeds, self._positions_on(cell.split.label, cell.fold)))
        return self._rank[cell.seed] < self._most_seeds(_position(cell))

    @property
    def further(self) -> int:
        """Number of cells that are added if nothing more is decided."""
        later = sum(self._most_seeds(position) - seeds for position, seeds in self._seeds.items())
        for (split, fold), references in self._references.items():
            positions = self._positions_on(split, fold)
            if not any(self._seeds[at] for at in positions) and any(map(self._most_seeds, positions)):
                later += references
        return later

    def add(self, cell: Cell, record: Record) -> bool:
        """Add the record of a cell that has ended; return whether the study now asks for more cells."""
        if cell.is_reference:
            return False
        self._ended[_position(cell)][cell.seed] = cell, record
        grown = [self._advance(schedule) for schedule in self._schedules_at[_position(cell)]]
        return any(grown)

    def _positions_on(self, split: str, fold: int) -> list[Position]:
        """Return the positions of all arms on a fold."""
        return [(arm, split, fold) for arm in self._arms]

    def _number(self, state: State) -> int:
        """Number of seeds of a state."""
        return len(self._all_seeds) if state.seeds is None else state.seeds

    def _most_seeds(self, position: Position) -> int:
        """Number of seeds at a position if nothing more is decided."""
        undecided = any(not schedule.stopped for schedule in self._schedules_at[position])
        return len(self._all_seeds) if undecided else self._seeds[position]

    def _advance(self, schedule: Schedule) -> bool:
        """Advance to the look whose cells are missing, or stop; return whether more cells are asked for."""
        grown = False
        while not schedule.stopped:
            state = schedule.state
            positions, seeds = schedule.positions(state.repeats), self._all_seeds[: self._number(state)]
            if not all(seed in self._ended[at] for at in positions for seed in seeds):
                break
            found = self._following(schedule, [self._ended[at][seed] for at in positions for seed in seeds])
            if isinstance(found, str):
                schedule.stopped = found
                break
            schedule.path.append(found)
            for position in schedule.positions(found.repeats):
                if self._seeds[position] < self._number(found):
                    self._seeds[position] = self._number(found)
                    grown = True
        return grown

    def _following(self, schedule: Schedule, ended: list[tuple[Cell, Record]]) -> State | str:
        """Judge the present look from all its cells (`next_look.following`)."""
        from sweeps.analysis import artifacts, inference, results  # load pandas and scipy

        contrast, analysis, split = schedule.contrast, self._analysis, schedule.factor.split
        ladder = self._ladders.of(contrast.split)
        cells = {record["key"]: cell for cell, record in ended}
        rows = results.rows(cells, {record["key"]: record for _, record in ended})
        sums = artifacts.predictions(self._store, rows)
        scores, evidence = inference.evidence(contrast, rows, analysis, ladder.looks, sums)
        return next_look.following(
            contrast,
            schedule.state,
            ladder,
            split.kind,
            int(split.folds),
            np.array([split.unit(fold) for fold in schedule.folds(schedule.state.repeats)]),
            scores,
            evidence,
            analysis,
            len(self.schedules),
        )


def outcome(study: Study, store: Store, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """List how the looks at every declared contrast ended; empty if the study adds nothing.

    `records` are those of the study's cells. Each item has the texts of the contrast's `claims`, both arms,
    split, part, fold (None for all) and metric. `looks` are the numbers of seeds at each look so far; `seeds`
    is the last of them. `max` is the number of seeds at the last possible look. `stopped` says why the
    contrast gets nothing more; it is '' while cells of its look are missing. On a split with adaptive
    repeats, `repeated_by` names them ('origins' or 'deals'). `repeats` are their numbers at each look, and
    `max_repeats` is the largest.
    """
    if not study.design.looks.adaptive:
        return []
    ended = intact(records).values()
    found = Looks(study, store, ((Cell.model_validate(record["cell"]), record) for record in ended))
    every = len(study.design.seeds)
    items: list[dict[str, Any]] = []
    for schedule in found.schedules:
        contrast, repeats = schedule.contrast, schedule.factor.repeats
        seeds = [every if state.seeds is None else state.seeds for state in schedule.path]
        items.append(
            {
                "claims": [claim.claim for claim in study.claims if claim.contrast == contrast],
                "arm": contrast.arm.label,
                "variant": contrast.arm.variant,
                "fusion": contrast.arm.fusion,
                "other": contrast.other.label,
                "other_variant": contrast.other.variant,
                "other_fusion": contrast.other.fusion,
                "split": contrast.split,
                "part": contrast.part,
                "fold": contrast.fold,
                "metric": contrast.metric,
                "looks": seeds,
                "seeds": seeds[-1],
                "max": every,
                "stopped": schedule.stopped,
            }
        )
        if repeats is not None:
            items[-1] |= {
                "repeated_by": schedule.factor.split.repeated_by,
                "repeats": [state.repeats for state in schedule.path],
                "max_repeats": repeats.max,
            }
    return items


def rule(study: Study) -> str:
    """Explain the stopping rule in words; empty if the study adds nothing."""
    ladders = study.design.looks
    if not ladders.adaptive:
        return ""
    family = len(study.contrasts())
    begin, grow = [], []
    if ladders.seeds:
        begin.append(f"{ladders.seeds[0]} seeds")
        grow.append(f"seeds ({_then(ladders.seeds)})")
    for factor in study.design.split:
        if factor.repeats is not None:
            name, on = factor.split.repeated_by, factor.split.label
            begin.append(f"{factor.repeats.start} {name} on {on}")
            grow.append(f"{name} on {on} ({_then(factor.repeats.looks)})")
    number = {label: ladders.of(label).looks for label in (f.split.label for f in study.design.split)}
    counts = f"{max(number.values())} looks"
    if len({*number.values()}) > 1:
        counts = "its looks (" + ", ".join(f"{n} on {label}" for label, n in number.items()) + ")"
    choice = (
        "Where both may be added, a look adds what is predicted to shrink the interval most per training. "
        if ladders.seeds and ladders.repeats
        else ""
    )
    last = f"the first {ladders.seeds[0]} seeds" if ladders.seeds else "the first look"
    return (
        f"Every arm begins with {' and '.join(begin)}. Both arms of a declared contrast get more on its "
        f"folds, as long as its test does not decide it: {' or '.join(grow)}. {choice}Each contrast is "
        f"judged by itself, at a level of {study.analysis.alpha:g} over {family} contrasts and "
        f"{counts}. Contrasts with too few units have {last} alone: more seeds do not make more units."
    )


def _then(numbers: Iterable[int]) -> str:
    first, *later = map(str, numbers)
    return f"{first}, {', then '.join(later)} in all"


def _among(factor: SplitFactor, fold: int, state: State) -> bool:
    """Return True if a fold is of the first repeats that a state has."""
    return state.repeats is None or factor.split.position(fold).repeat < state.repeats


def _position(cell: Cell) -> Position:
    return Arm.of(cell), cell.split.label, cell.fold
