"""Independent units of the tests: how many of each kind are enough, and means over seeds.

A *unit* is what counts as one piece of independent evidence: an origin of checkerboards, a block of monitors,
a day, a fold. Trainings that share it are not independent, so seeds are averaged before anything is tested.
The module needs numpy alone, because the commands that only ask which seeds to run do not load scipy.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_UNITS = 3
"""Fewest units of a t-test; with two, the interval is 12.7 standard errors wide on either side."""
MIN_FOLDS = MIN_UNITS
"""Fewest folds that are tested."""
MIN_ORIGINS = 5
"""Fewest origins of checkerboards that are tested."""
MIN_BLOCKS = 8
"""Fewest effective blocks of monitors that are tested by the jackknife."""
MIN_PERIODS = 5
"""Fewest test periods of a rolling split that are tested."""

BY_SITE = ("spatial", "knndm")
"""Kinds of splits that test each monitor in one fold; blocks of monitors are their unit."""


def unit_means(values: Array) -> Array:
    """Average over seeds: `values (units, seeds)` with NaN for missing pairs -> (units with a value,)."""
    values = np.asarray(values, np.float64)
    seen = np.isfinite(values)
    some = seen.any(axis=1)
    total = np.where(seen, values, 0).sum(axis=1)
    means: Array = total[some] / seen.sum(axis=1)[some]
    return means


def overlap(folds: int) -> float:
    """Ratio n_test / n_train of a split into `folds` parts, 1 / (folds - 1).

    Trainings of different folds share training samples. The corrected t-test needs this ratio
    (Nadeau and Bengio 2003).
    """
    return 1 / max(folds - 1, 1)
