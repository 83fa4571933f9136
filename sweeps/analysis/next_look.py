"""The next look at a contrast: whether it stops, and what is bought for it otherwise.

A study may add seeds, and origins or deals (repeats), to contrasts that its tests leave undecided. The state
of a contrast is its number of repeats and of seeds. `following` judges one look and chooses the next state.
`sequential` asks it which cells to run. `inference` repeats the same path from the stored cells, and reports
the look at which the contrast stopped.

A step buys repeats or seeds, whichever is predicted to shrink the logarithm of the interval's width most per
training. The prediction needs variances alone, never the mean. So the data choose how precise a look is, and
not which difference it finds. Each look after the first is one step of the two ladders, so a contrast has at
most as many looks as `SplitLadder.looks`. Its level is divided by that number, and its p multiplied with it.
A path is chosen among several, so the bound is not exact. Simulated sizes were well below alpha.

The module loads neither pandas nor scipy until a choice is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sweeps.analysis import judgement
from sweeps.analysis.judgement import PairedScores
from sweeps.spec.claims import Analysis, Contrast
from sweeps.spec.design import SplitLadder

if TYPE_CHECKING:
    from sweeps.analysis.estimands import Evidence

DECIDED, TOO_FEW, UNDECIDED = "decided", "too few units", "undecided at the most seeds"
UNDECIDED_REPEATS = "undecided, and nothing more can be added"
"""Reason of a split with adaptive repeats."""


class State(NamedTuple):
    """Cells of a contrast at one look."""

    repeats: int | None
    """Number of origins or deals; None for all, where their number is fixed."""
    seeds: int | None
    """Number of seeds; None for all, where the seeds are listed."""


def first(ladder: SplitLadder) -> State:
    """Return the state of the first look."""
    return State(next(iter(ladder.repeats), None), next(iter(ladder.seeds), None))


def states(ladder: SplitLadder) -> list[State]:
    """List all states that a look may have, the smallest first."""
    return [State(r, s) for r in ladder.repeats or (None,) for s in ladder.seeds or (None,)]


def following(
    contrast: Contrast,
    state: State,
    ladder: SplitLadder,
    kind: str,
    folds: int,
    units: np.ndarray,
    scores: PairedScores,
    evidence: Evidence,
    analysis: Analysis,
    family: int,
) -> State | str:
    """Judge a contrast at one look: return its next state, or why it gets no more.

    Parameters
    ----------
    state : State
        State of this look, of which `scores` and `evidence` are.
    ladder : SplitLadder
        Numbers that may be bought.
    kind, folds : str, int
        Kind of the split, and the number of folds of one origin or deal (`Sample.parts`).
    units : array (folds,)
        Unit of each fold of the state.
    family : int
        Number of declared contrasts.
    """
    looks = ladder.looks
    if evidence.tests and judgement.stops(contrast, scores, evidence, analysis, looks, family):
        return DECIDED
    more_repeats = state._replace(repeats=_after(state.repeats, ladder.repeats))
    more_seeds = state._replace(seeds=_after(state.seeds, ladder.seeds))
    if not evidence.tests:  # more seeds do not make more units
        return TOO_FEW if more_repeats.repeats is None else more_repeats
    if more_repeats.repeats is None and more_seeds.seeds is None:
        return UNDECIDED_REPEATS if ladder.repeats else UNDECIDED
    if more_repeats.repeats is None:
        return more_seeds
    if more_seeds.seeds is None:
        return more_repeats
    level = analysis.alpha / (looks * family)
    width = _width(contrast.part, kind, folds, units, state, scores.differences, level)
    if width is None:  # no variance, or a single seed, which does not show that between seeds
        return more_repeats
    per_training = [
        (math.log(width(state)) - math.log(width(then))) / (_product(then) - _product(state))
        for then in (more_repeats, more_seeds)
    ]
    return more_seeds if per_training[1] > per_training[0] else more_repeats


class _Width(NamedTuple):
    """Predicted half-width of a contrast's interval, as a function of its state."""

    units: float
    """Number of units of one origin or deal."""
    overlap: float
    """Share of the variance of a unit that no number of units removes."""
    of_units: float
    """Variance between units without that of the seeds."""
    of_seeds: float
    """Variance between the seeds of one unit."""
    level: float

    def __call__(self, state: State) -> float:
        """Return the half-width that a state would have."""
        from scipy import special

        assert state.repeats is not None
        assert state.seeds is not None
        number = self.units * state.repeats
        quantile = float(special.stdtrit(number - 1, 1 - self.level / 2))
        variance = self.of_units + self.of_seeds / state.seeds
        return quantile * math.sqrt((1 / number + self.overlap) * variance)


def _width(
    part: str,
    kind: str,
    folds: int,
    units: np.ndarray,
    state: State,
    differences: np.ndarray,
    level: float,
) -> _Width | None:
    """Estimate the two variances from `differences (folds, seeds)`; None if they cannot be separated."""
    from sweeps.analysis import statistics

    by_unit, shared = judgement.by_unit(kind, part, units, folds, differences)
    found = statistics.variances(by_unit)
    if found is None or not sum(found) > 0:
        return None
    assert state.repeats is not None
    return _Width(len(by_unit) / state.repeats, shared, *found, level)


def _after(number: int | None, ladder: Sequence[int]) -> int | None:
    """Return the next number of a ladder; None at its end."""
    return next((larger for larger in ladder if number is not None and larger > number), None)


def _product(state: State) -> int:
    """Count the trainings of a state, as multiples of those of one repeat with one seed."""
    return (state.repeats or 1) * (state.seeds or 1)
