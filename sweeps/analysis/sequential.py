"""Number of seeds of every arm and fold, where a study adds seeds only to contrasts that are undecided."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pm25.cell import Cell
from sweeps.analysis import judgement, units
from sweeps.spec.claims import Contrast
from sweeps.spec.design import AdaptiveSeeds, Arm
from sweeps.spec.study import Study
from sweeps.store.records import Record

Position = tuple[Arm, str, int]
"""An arm, the label of a split, and a fold of it."""

DECIDED, TOO_FEW, UNDECIDED = "decided", "too few test sets", "undecided at the most seeds"


class SeedSchedule:
    """The looks of one contrast: how many seeds it has had so far, and why it gets no more."""

    def __init__(self, contrast: Contrast, folds: tuple[int, ...], overlap: float) -> None:
        self.contrast, self.folds, self.overlap = contrast, folds, overlap
        self.positions: tuple[Position, ...] = tuple(
            (arm, contrast.split, fold) for arm in (contrast.arm, contrast.other) for fold in folds
        )
        self.look = 0
        """Index of the present look, from 0."""
        self.stopped = ""
        """Why the contrast gets no further seeds; empty while cells of the present look are missing."""


class Looks:
    """The looks at every declared contrast, as a function of the records alone.

    Each contrast goes from look to look by itself, and each look is judged with its own seeds. So neither the
    order of the records nor the seeds of another contrast matter. A look is judged when all its cells have
    ended. If `statistics.stopped` does not stop the contrast, both of its arms get more seeds on its folds.
    More seeds do not make more test sets, so a contrast with too few of them has the first look alone.
    """

    def __init__(self, study: Study, ended: Iterable[tuple[Cell, Record]] = ()) -> None:
        """Judge the contrasts of `study` from `ended`, cells with their records.

        Records of cells that no look asks for change nothing.
        """
        assert isinstance(study.design.seed, AdaptiveSeeds)
        self._analysis, self._looks = study.analysis, study.design.seed.looks
        factors = {factor.split.label: factor for factor in study.design.split}
        self._seeds: dict[Position, int] = {
            (arm, label, fold): self._looks[0]
            for arm in study.arms()
            for label, factor in factors.items()
            for fold in factor.folds
        }
        self._scores: dict[Position, dict[int, Mapping[str, float]]] = defaultdict(dict)
        self.schedules: list[SeedSchedule] = []
        self._schedules_at: dict[Position, list[SeedSchedule]] = defaultdict(list)
        for contrast in study.contrasts():
            factor = factors[contrast.split]
            folds = tuple(fold for fold in factor.folds if contrast.fold in (None, fold))
            schedule = SeedSchedule(contrast, folds, units.overlap(factor.split.folds))
            if judgement.too_few(len(folds), self._analysis, len(self._looks)):
                schedule.stopped = TOO_FEW
            self.schedules.append(schedule)
            for position in schedule.positions:
                self._schedules_at[position].append(schedule)
        for cell, record in ended:
            self._add_scores(cell, record)
        for schedule in self.schedules:
            self._advance(schedule)

    def asks_for(self, cell: Cell) -> bool:
        """Return True if the cell's seed is among those that the interim analyses (looks) have requested."""
        return cell.seed < self._seeds[_position(cell)]

    def may_ask_for(self, cell: Cell) -> bool:
        """Return True if the cell's seed is requested already, or may be at a later look."""
        return cell.seed < self._most_seeds(_position(cell))

    @property
    def further(self) -> int:
        """Number of cells that are added if nothing more is decided."""
        return sum(self._most_seeds(position) - seeds for position, seeds in self._seeds.items())

    def add(self, cell: Cell, record: Record) -> bool:
        """Add the record of a cell that has ended; return whether the study now asks for more cells."""
        self._add_scores(cell, record)
        grown = [self._advance(schedule) for schedule in self._schedules_at[_position(cell)]]
        return any(grown)

    def _most_seeds(self, position: Position) -> int:
        """Number of seeds at a position if nothing more is decided."""
        undecided = any(not schedule.stopped for schedule in self._schedules_at[position])
        return self._looks[-1] if undecided else self._seeds[position]

    def _add_scores(self, cell: Cell, record: Record) -> None:
        scores = record["metrics"] if record["state"] == "done" else {}  # a failed cell has no number
        self._scores[_position(cell)][cell.seed] = scores

    def _advance(self, schedule: SeedSchedule) -> bool:
        """Advance to the look whose cells are missing, or stop; return whether more seeds were given."""
        grown = False
        while not schedule.stopped:
            seeds = self._looks[schedule.look]
            if not all(seed in self._scores[at] for at in schedule.positions for seed in range(seeds)):
                break
            schedule.stopped = self._reason_to_stop(schedule, seeds)
            if schedule.stopped:
                break
            if seeds == self._looks[-1]:
                schedule.stopped = UNDECIDED
                break
            schedule.look += 1
            for position in schedule.positions:
                if self._seeds[position] < self._looks[schedule.look]:
                    self._seeds[position] = self._looks[schedule.look]
                    grown = True
        return grown

    def _reason_to_stop(self, schedule: SeedSchedule, seeds: int) -> str:
        """Judge a contrast with `seeds` per fold; the result is empty if its test leaves it undecided."""
        contrast, analysis, looks = schedule.contrast, self._analysis, len(self._looks)
        arm, other = (self._score_matrix(schedule, seeds, which) for which in (contrast.arm, contrast.other))
        scores = judgement.paired_scores(contrast, arm, other, analysis)
        if judgement.too_few(len(scores.units), analysis, looks):
            return TOO_FEW
        stops = judgement.stops(scores, schedule.overlap, analysis, looks, len(self.schedules))
        return DECIDED if stops else ""

    def _score_matrix(self, schedule: SeedSchedule, seeds: int, arm: Arm) -> np.ndarray:
        """Arrange the scores of one arm as (folds, seeds); NaN where a cell has no finite number."""
        name = f"{schedule.contrast.part}_{schedule.contrast.metric}"
        by_fold = (self._scores[arm, schedule.contrast.split, fold] for fold in schedule.folds)
        scores = np.array([[of[seed].get(name, math.nan) for seed in range(seeds)] for of in by_fold], float)
        return np.where(np.isfinite(scores), scores, math.nan)


def outcome(study: Study, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """List how the seeds of every declared contrast were settled; empty if the study lists its seeds.

    `records` are those of the study's cells. Each item has the texts of the contrast's `claims`, both arms,
    split, part, fold (None for all) and metric. `looks` are the numbers of seeds at each look so far; `seeds`
    is the last of them. `max` is the number of seeds at the last possible look. `stopped` says why the
    contrast gets no further seeds; it is '' while cells of its look are missing.
    """
    if not isinstance(study.design.seed, AdaptiveSeeds):
        return []
    looks = Looks(study, ((Cell.model_validate(r["cell"]), r) for r in records.values()))
    sizes = study.design.seed.looks
    return [
        {
            "claims": [claim.claim for claim in study.claims if claim.contrast == schedule.contrast],
            "arm": schedule.contrast.arm.label,
            "variant": schedule.contrast.arm.variant,
            "fusion": schedule.contrast.arm.fusion,
            "other": schedule.contrast.other.label,
            "other_variant": schedule.contrast.other.variant,
            "other_fusion": schedule.contrast.other.fusion,
            "split": schedule.contrast.split,
            "part": schedule.contrast.part,
            "fold": schedule.contrast.fold,
            "metric": schedule.contrast.metric,
            "looks": list(sizes[: schedule.look + 1]),
            "seeds": sizes[schedule.look],
            "max": sizes[-1],
            "stopped": schedule.stopped,
        }
        for schedule in looks.schedules
    ]


def rule(study: Study) -> str:
    """Explain the stopping rule in words; empty if the study lists its seeds."""
    if not isinstance(study.design.seed, AdaptiveSeeds):
        return ""
    first, *later = study.design.seed.looks
    family = len(study.contrasts())
    return (
        f"Every arm has {first} seeds. Both arms of a declared contrast get more on its folds, "
        f"{', then '.join(map(str, later))} in all, as long as its test does not decide it. Each contrast is "
        f"judged by itself, at a level of {study.analysis.alpha:g} over {family} contrasts and "
        f"{len(later) + 1} looks. Contrasts with too few test sets have the first {first} seeds alone: "
        "more seeds do not make more test sets."
    )


def _position(cell: Cell) -> Position:
    return Arm.of(cell), cell.split.label, cell.fold
