"""Judgement of one contrast: its pairs, its region of practical equivalence, and when its seeds stop.

Two rooms of code ask the same questions about a contrast. `inference` reports it from a table of results, and
`sequential` decides from the records whether it gets more seeds. Both call the functions below, so a contrast
stops on the numbers that are reported. The module loads neither pandas nor scipy until a test is made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pm25.metrics import METRICS
from sweeps.analysis.units import enough_units, unit_means
from sweeps.spec.claims import Analysis, Contrast

GAP = "gap"
"""Evaluation set of a contrast that is about OoR minus WR of the same training."""


class PairedScores(NamedTuple):
    """Scores of the two arms of a contrast, paired by fold and seed."""

    differences: np.ndarray
    """(folds, seeds), arm minus other; NaN where one of the two has no number."""
    units: np.ndarray
    """(units,), means of the differences over the seeds of each fold that has a pair."""
    mean_arm: float
    """Mean over units of the first arm, over the pairs alone; NaN without pairs."""
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

    The region of practical equivalence is `analysis.rope` itself for a metric without a unit, such as R2.
    For a metric with a unit, such as RMSE, it is that share of the other arm's mean.
    """
    differences = arm - other
    paired = np.isfinite(differences)
    mean_arm, mean_other = (_mean(unit_means(np.where(paired, scores, np.nan))) for scores in (arm, other))
    rope = analysis.rope
    if METRICS[contrast.metric].relative_rope:
        rope *= abs(mean_other)
    if not has_direction(contrast.part, contrast.metric):
        rope = np.nan
    return PairedScores(differences, unit_means(differences), mean_arm, mean_other, rope)


def too_few(units: int, analysis: Analysis, looks: int) -> bool:
    """Return True if this many units cannot decide anything at any of `looks`, with any number of seeds."""
    return not enough_units(units, analysis.alpha / looks, analysis.test)


def stops(scores: PairedScores, overlap: float, analysis: Analysis, looks: int, family: int) -> bool:
    """Apply the stopping rule of adaptive seeds (`statistics.stopped`) at one of `looks`.

    `family` is the number of declared contrasts; `overlap` is that of the split (`units.overlap`). A contrast
    with too few units stops at once.
    """
    if too_few(len(scores.units), analysis, looks):
        return True
    from sweeps.analysis import statistics  # loads scipy, which no other command on the store needs

    return statistics.stopped(
        scores.differences,
        overlap=overlap,
        rope=scores.rope,
        alpha=analysis.alpha,
        looks=looks,
        family=family,
        test=analysis.test,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan
