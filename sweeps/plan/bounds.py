"""Quantities that are not known exactly: a low, an expected and a high value."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bounds(NamedTuple):
    """The lowest, the expected and the highest value of an uncertain quantity."""

    low: float
    expected: float
    high: float

    def plus(self, other: "Bounds") -> "Bounds":
        """Add end by end: both are low, or both high, because cells share the error of a speed."""
        return Bounds(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, other: "Bounds | float") -> "Bounds":
        """Multiply end by end; no value is negative."""
        factors = other if isinstance(other, Bounds) else (other, other, other)
        return Bounds(*(a * b for a, b in zip(self, factors, strict=True)))


NOTHING = Bounds(0, 0, 0)

FEW = 5
"""Fewest recorded values for which quantiles are used; with fewer, the extremes are widened by `OF_FEW`."""
OF_FEW = Bounds(0.8, 1, 1.25)
"""Factors on the extremes of fewer than `FEW` values."""


def spread(values: Sequence[float]) -> Bounds:
    """Return the mean of some values between their 10 % and 90 % quantiles, or between widened extremes."""
    mean = statistics.mean(values)
    if len(values) < FEW:
        return Bounds(min(values), mean, max(values)).times(OF_FEW)
    low, high = np.quantile(values, [0.1, 0.9]).tolist()
    return Bounds(min(low, mean), mean, max(high, mean))
