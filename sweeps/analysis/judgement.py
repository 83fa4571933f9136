"""Judgement of one contrast: its pairs, its verdict, and when its seeds stop.

Two rooms of code ask the same questions about a contrast. `inference` reports it from a table of results, and
`sequential` decides from the records whether it gets more seeds. Both call the functions below, so a contrast
stops on the numbers that are reported. The module loads neither pandas nor scipy until a test is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pm25.metrics import METRICS
from sweeps.analysis.units import (
    BY_SITE,
    MIN_FOLDS,
    MIN_ORIGINS,
    MIN_PERIODS,
    overlap,
    unit_means,
)
from sweeps.spec.claims import Analysis, Contrast

if TYPE_CHECKING:
    from sweeps.analysis.estimands import Evidence

GAP = "gap"
"""Evaluation set of a contrast that is about OoR minus WR at the same monitors."""

BOARDS = ("checkerboard", "checkerboards")
"""Kinds of splits whose unit is an origin."""
PERIODS = ("temporal", "rolling")
"""Kinds of splits whose unit is a test period."""

Verdict = Literal["better", "worse", "equal", "undecided", "too few"]


class PairedScores(NamedTuple):
    """Scores of the two arms of a contrast, paired by fold and seed."""

    differences: np.ndarray
    """(folds, seeds), arm minus other; NaN where one of the two has no number."""
    mean_arm: float
    """Score of the first arm, over the pairs alone; NaN without pairs."""
    mean_other: float
    rope: float
    """Half-width of the region of practical equivalence, in the metric's unit; NaN where no direction is
    better."""


def has_direction(part: str, metric: str) -> bool:
    """Return True if the metric has a better direction.

    A bias has none, because it is best near zero. A gap has none, because a model that is bad everywhere
    has a small gap.
    """
    return part != GAP and METRICS[metric].better != "nearer zero"


def paired_scores(contrast: Contrast, arm: np.ndarray, other: np.ndarray, analysis: Analysis) -> PairedScores:
    """Pair the scores `arm` and `other`, both (folds, seeds) with NaN for missing numbers.

    The two means are over folds, each with its seeds averaged.
    """
    differences = arm - other
    paired = np.isfinite(differences)
    mean_arm, mean_other = (_mean(unit_means(np.where(paired, scores, np.nan))) for scores in (arm, other))
    return with_means(contrast, PairedScores(differences, 0, 0, 0), mean_arm, mean_other, analysis)


def with_means(
    contrast: Contrast, scores: PairedScores, mean_arm: float, mean_other: float, analysis: Analysis
) -> PairedScores:
    """Set the scores of both arms, and the region of practical equivalence that belongs to them.

    The region is `analysis.rope` itself for a metric without a unit, such as R2. For a metric with a unit,
    such as RMSE, it is that share of the other arm's score.
    """
    rope = analysis.rope
    if METRICS[contrast.metric].relative_rope:
        rope *= abs(mean_other)
    if not has_direction(contrast.part, contrast.metric):
        rope = np.nan
    return PairedScores(scores.differences, mean_arm, mean_other, rope)


def may_be_tested(kind: str, part: str, units: np.ndarray) -> bool:
    """Return True if a contrast on folds of these `units (folds,)` has enough units to be tested.

    `kind` is that of the split. Blocks of monitors and days are counted when the predictions are there.
    """
    if part != "test" or kind in BOARDS:
        return complete_units(units) >= MIN_ORIGINS
    needed = {**dict.fromkeys(BY_SITE, 1), "temporal": MIN_PERIODS, "rolling": MIN_PERIODS}.get(
        kind, MIN_FOLDS
    )
    return len(units) >= needed


def complete_units(units: np.ndarray) -> int:
    """Count the units that have the most folds; an origin with fewer folds than others is not tested."""
    folds = np.unique(units, return_counts=True)[1]
    return int((folds == folds.max()).sum()) if len(folds) else 0


def shared_variance(kind: str, part: str, folds: int) -> float:
    """Return the part of a unit's variance that no number of units removes, for tests of folds and origins.

    It is the term beside 1 / n in the variance factor of the first test of `estimands`. `folds` are those of
    one deal.
    """
    if part != "test" or kind in BOARDS:
        return 1.0
    return 0.0 if kind in PERIODS else overlap(folds)


def verdict(contrast: Contrast, difference: float, p: float, inside: float, alpha: float) -> Verdict:
    """Make the verdict on a contrast from its adjusted p-values.

    `p` is the two-sided p-value of no difference. `inside` is that of a difference of at least the region of
    practical equivalence (two one-sided tests, Schuirmann 1987). 'equal': the difference is inside the
    region. 'better' and 'worse': the difference is not zero, and not known to be inside the region. The
    chance of a false verdict of each kind is at most alpha.
    """
    if inside <= alpha:
        return "equal"
    if not p <= alpha or not has_direction(contrast.part, contrast.metric):  # a NaN decides nothing
        return "undecided"
    return "better" if (difference < 0) == (METRICS[contrast.metric].better == "lower") else "worse"


def stops(
    contrast: Contrast, scores: PairedScores, evidence: Evidence, analysis: Analysis, looks: int, family: int
) -> bool:
    """Return True if a contrast needs no further seeds: the stopping rule of adaptive seeds.

    The contrast is judged by itself at level alpha / (looks x family), so that no contrast waits for another.
    `family` is the number of declared contrasts. A contrast that cannot be tested stops at once, because more
    seeds do not make more units.

    Reported p-values are multiplied by `looks` and then adjusted by Holm's method. This is valid for any
    stopping rule. The chance that p falls to x / looks at one of the looks is at most x, the sum of the
    chances at each. So `looks` times the p at the stop is a valid p-value, and Holm's method needs no more.
    The first step of Holm's method has the level used here, and its other steps are milder. So a contrast
    that stopped here is decided in the report.
    """
    if not evidence.tests:
        return True
    from sweeps.analysis import statistics  # loads scipy, which no other command on the store needs

    result = evidence.result
    inside = statistics.equivalence(evidence.tests, scores.rope)
    level = analysis.alpha / (looks * family)
    return verdict(contrast, result.estimate, result.p, inside, level) != "undecided"


def more_seeds(
    kind: str,
    part: str,
    units: np.ndarray,
    folds: int,
    differences: np.ndarray,
    rope: float,
    level: float,
) -> int | None:
    """Predict how many further seeds would decide a contrast if its mean stayed (`statistics.more_seeds`).

    `units (folds,)` are the units of the folds, `folds` those of one deal, and `differences` is (folds,
    seeds). The result is None where the unit of the test is neither a fold nor an origin.
    """
    if part == "test" and kind in ("random", *BY_SITE):
        return None
    from sweeps.analysis import statistics

    return statistics.more_seeds(*by_unit(kind, part, units, folds, differences), rope, level)


def by_unit(
    kind: str, part: str, units: np.ndarray, folds: int, differences: np.ndarray
) -> tuple[np.ndarray, float]:
    """Average `differences (folds, seeds)` over the folds of a unit: (units, seeds), and their overlap.

    For the tests whose unit is a fold or an origin; `folds` are those of one deal.
    """
    shared = shared_variance(kind, part, folds)
    if kind not in BOARDS and part == "test":
        return differences, shared
    rows = [differences[units == unit] for unit in np.unique(units)]
    return np.array([row.mean(axis=0) for row in rows]), shared  # NaN where a fold of the unit is missing


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan
