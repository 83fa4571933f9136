"""Independent test sets, the units of every test: how many are enough, and their means over seeds.

A *unit* is one test set, a fold of a split. Trainings that share a test set are not independent evidence, so
seeds are averaged within their unit before anything is tested. The module needs numpy alone, because the
commands that only ask which seeds to run do not load scipy.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Test = Literal["corrected_t", "wilcoxon"]

MIN_UNITS = 3
"""Fewest units of a corrected t-test; with two, the interval is 12.7 standard errors wide on either side."""


def enough_units(n: int, alpha: float, test: Test) -> bool:
    """Return True if `n` units can be tested at level `alpha`, however many seeds each has."""
    return wilcoxon_reaches(n, alpha) if test == "wilcoxon" else n >= MIN_UNITS


def wilcoxon_reaches(n: int, alpha: float) -> bool:
    """Return True if a signed rank test of `n` pairs can reject at `alpha`: its smallest p is 2 / 2^n."""
    return n > 0 and 2 / 2**n <= alpha


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
