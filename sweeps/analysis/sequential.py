"""How many seeds every arm has on every fold, where a study adds seeds only to what its tests leave open."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pm25.cell import Cell
from sweeps.spec.claims import Analysis, Contrast
from sweeps.spec.design import AdaptiveSeeds, Arm
from sweeps.spec.study import Study
from sweeps.store.records import Record

Position = tuple[Arm, str, int]
"""An arm, the label of a split, and a fold of it."""

DECIDED, TOO_FEW, UNDECIDED = "decided", "too few test sets", "undecided at the most seeds"


class SeedSchedule:
    """One contrast on its way from look to look."""

    def __init__(self, contrast: Contrast, folds: tuple[int, ...], overlap: float) -> None:
        self.contrast, self.folds, self.overlap = contrast, folds, overlap
        self.at: tuple[Position, ...] = tuple(
            (arm, contrast.split, fold) for arm in (contrast.arm, contrast.other) for fold in folds
        )
        self.look = 0
        """Its place among the looks, from 0."""
        self.ended = ""
        """Why it asks for no further seeds; empty while cells of its look are missing."""


class Looks:
    """The looks at every declared contrast, as far as the records go: a function of them alone.

    Each contrast goes from look to look by itself, and is judged at each with the seeds of that look and no
    others, so that neither the order of the records nor the seeds that another contrast asked for matter.
    When all its cells of a look have ended and `statistics.stopped` does not stop it, both of its arms get
    the next look's seeds on its folds. More seeds make no more test sets: a contrast with too few of them
    has the first look alone.
    """

    def __init__(self, study: Study, ended: Iterable[tuple[Cell, Record]] = ()) -> None:
        """`ended` are cells with their records; of cells that no look asks for they change nothing."""
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
        self.ladders: list[SeedSchedule] = []
        self._of: dict[Position, list[SeedSchedule]] = defaultdict(list)
        for contrast in study.contrasts():
            factor = factors[contrast.split]
            folds = tuple(fold for fold in factor.folds if contrast.fold in (None, fold))
            ladder = SeedSchedule(contrast, folds, 1 / max(factor.split.folds - 1, 1))
            if too_few(len(folds), self._analysis, len(self._looks)):
                ladder.ended = TOO_FEW
            self.ladders.append(ladder)
            for at in ladder.at:
                self._of[at].append(ladder)
        for cell, record in ended:
            self._keep(cell, record)
        for ladder in self.ladders:
            self._advance(ladder)

    def asks_for(self, cell: Cell) -> bool:
        """Whether a cell of the grid with all seeds is one of the study as it is now."""
        return cell.seed < self._seeds[_at(cell)]

    def may_ask_for(self, cell: Cell) -> bool:
        """Whether it is, or may become one."""
        return cell.seed < self._most(_at(cell))

    @property
    def further(self) -> int:
        """How many cells will be added if nothing more is decided."""
        return sum(self._most(at) - seeds for at, seeds in self._seeds.items())

    def add(self, cell: Cell, record: Record) -> bool:
        """A cell has ended: whether more cells are asked for now than before."""
        self._keep(cell, record)
        grown = [self._advance(ladder) for ladder in self._of[_at(cell)]]
        return any(grown)

    def _most(self, at: Position) -> int:
        """How many seeds it has if nothing more is decided."""
        open_ = any(not ladder.ended for ladder in self._of[at])
        return self._looks[-1] if open_ else self._seeds[at]

    def _keep(self, cell: Cell, record: Record) -> None:
        scores = record["metrics"] if record["state"] == "done" else {}  # a failure has no number
        self._scores[_at(cell)][cell.seed] = scores

    def _advance(self, ladder: SeedSchedule) -> bool:
        """Go to the look whose cells are still missing, or to the end; whether more seeds were given."""
        grown = False
        while not ladder.ended:
            seeds = self._looks[ladder.look]
            if not all(seed in self._scores[at] for at in ladder.at for seed in range(seeds)):
                break
            ladder.ended = self._judged(ladder, seeds)
            if ladder.ended:
                break
            if seeds == self._looks[-1]:
                ladder.ended = UNDECIDED
                break
            ladder.look += 1
            for at in ladder.at:
                if self._seeds[at] < self._looks[ladder.look]:
                    self._seeds[at] = self._looks[ladder.look]
                    grown = True
        return grown

    def _judged(self, ladder: SeedSchedule, seeds: int) -> str:
        """Why no further seeds are asked for; empty where the test leaves it open."""
        from sweeps.analysis import statistics  # and scipy, which no other command on the store needs

        contrast, analysis = ladder.contrast, self._analysis
        arm, other = (self._matrix(ladder, seeds, which) for which in (contrast.arm, contrast.other))
        paired = np.isfinite(arm) & np.isfinite(other)
        units = paired.any(axis=1)  # a fold none of whose pairs has a number is no unit
        if too_few(int(units.sum()), analysis, len(self._looks)):
            return TOO_FEW
        rope = analysis.rope
        if contrast.metric != "r2":
            rope *= float(_means(other[units], paired[units]).mean())
        differences = np.where(paired, arm, math.nan) - other
        stopped = statistics.stopped(
            differences,
            overlap=ladder.overlap,
            rope=rope,
            alpha=analysis.alpha,
            looks=len(self._looks),
            family=len(self.ladders),
            test=analysis.test,
        )
        return DECIDED if stopped else ""

    def _matrix(self, ladder: SeedSchedule, seeds: int, arm: Arm) -> np.ndarray:
        """The contrast's metric of one arm (folds, seeds); NaN where a cell has none."""
        name = f"{ladder.contrast.part}_{ladder.contrast.metric}"
        scores = (self._scores[arm, ladder.contrast.split, fold] for fold in ladder.folds)
        values = [[of_fold[seed].get(name, math.nan) for seed in range(seeds)] for of_fold in scores]
        return np.array(values, float)


def too_few(units: int, analysis: Analysis, looks: int) -> bool:
    """Whether so many test sets decide nothing in any of `looks`, however many seeds each has."""
    if analysis.test == "wilcoxon":
        return 2 / 2**units > analysis.alpha / looks  # the smallest p-value that there is
    return units < 3


def outcome(study: Study, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """How the seeds of every declared contrast were settled; nothing where they are listed in the study.

    `records` are those of the study's cells. Of each contrast: the claims that it is of, variant and fusion
    of `arm` and `other` with their labels, split, part, fold (None for all), metric, `looks` (how many seeds
    each look had that was come to), `seeds` (those of the last of them), `max` and `stopped`: why no further
    seeds are asked for, or '' while cells of the last look are missing.
    """
    if not isinstance(study.design.seed, AdaptiveSeeds):
        return []
    looks = Looks(study, ((Cell.model_validate(r["cell"]), r) for r in records.values()))
    sizes = study.design.seed.looks
    return [
        {
            "claims": [claim.claim for claim in study.claims if claim.contrast == ladder.contrast],
            "arm": ladder.contrast.arm.label,
            "variant": ladder.contrast.arm.variant,
            "fusion": ladder.contrast.arm.fusion,
            "other": ladder.contrast.other.label,
            "other_variant": ladder.contrast.other.variant,
            "other_fusion": ladder.contrast.other.fusion,
            "split": ladder.contrast.split,
            "part": ladder.contrast.part,
            "fold": ladder.contrast.fold,
            "metric": ladder.contrast.metric,
            "looks": list(sizes[: ladder.look + 1]),
            "seeds": sizes[ladder.look],
            "max": sizes[-1],
            "stopped": ladder.ended,
        }
        for ladder in looks.ladders
    ]


def rule(study: Study) -> str:
    """The stopping rule in words; empty where the seeds are listed in the study."""
    if not isinstance(study.design.seed, AdaptiveSeeds):
        return ""
    first, *later = study.design.seed.looks
    family = len(study.contrasts())
    return (
        f"Every arm has {first} seeds. Both arms of a declared contrast get more on its folds, "
        f"{', then '.join(map(str, later))} in all, as long as its test does not decide it; each contrast is "
        f"judged by itself, at a level of {study.analysis.alpha:g} over {family} contrasts and "
        f"{len(later) + 1} looks. Contrasts with too few test sets have the first {first} seeds alone: more "
        "seeds make no more test sets."
    )


def _at(cell: Cell) -> Position:
    return Arm.of(cell), cell.split.label, cell.fold


def _means(values: np.ndarray, paired: np.ndarray) -> np.ndarray:
    """Of every row, over the entries that count: (units, seeds) to (units,)."""
    return np.where(paired, values, 0.0).sum(axis=1) / paired.sum(axis=1)
