"""The cluster bootstrap of a study's scores, from sums of its stored predictions.

Within region the clusters are sites. Out of region they are square blocks of sites, because the sites of a
block share weather and sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from sweeps.analysis import labels, statistics
from sweeps.analysis.judgement import GAP
from sweeps.spec.claims import Analysis

SEED = 0
"""Seed of the resamples: the same store gives the same bytes."""
CHUNK = 64
"""Trainings resampled at a time: 50 MB with 1,400 sites and 1,000 resamples."""


class Sums(Protocol):
    """Sums over stored predictions by cell, evaluation set and site (`artifacts.Predicted`)."""

    lat: np.ndarray
    lon: np.ndarray

    def of(self, key: str, part: str = "test") -> tuple[np.ndarray, np.ndarray] | None:
        """Look up the sums of one cell: site index (m,) and totals (m, 6)."""


class Resampled:
    """One metric of every training on resampled clusters of its test samples.

    Resamples are drawn once, so all means and differences of a study share them. Without `sums` there are
    none, and every method returns None.
    """

    def __init__(self, rows: pd.DataFrame, analysis: Analysis, metric: str, sums: Sums | None) -> None:
        self._sums, self._metric, self._resamples = sums, metric, analysis.bootstrap
        if sums is None:
            return
        block = np.floor(np.stack([sums.lat, sums.lon]) / analysis.block_degrees)
        _, blocks = np.unique(block, axis=1, return_inverse=True)
        clusters = {labels.WR: np.arange(len(sums.lat)), labels.OOR: blocks.reshape(-1)}
        regimes = dict(zip(rows["key"], rows["regime"], strict=True))
        self._cluster = {
            (key, part): clusters[labels.regime_of(regimes[key], part)]
            for key in rows.loc[rows["state"] == "done", "key"]
            for part in ("test", "wr")
            if sums.of(key, part) is not None
        }
        self._scores: dict[tuple[str, str], np.ndarray] = {}
        for stream, cluster in enumerate(clusters.values()):
            places = [place for place, own in self._cluster.items() if own is cluster]
            if places:
                self._draw(places, cluster, stream)

    def mean(self, keys: Iterable[str], part: str) -> np.ndarray | None:
        """Resample the mean over cells: (resamples,), or None where a cell has no predictions."""
        keys = list(keys)
        return self._weighted([(key, 1 / len(keys)) for key in keys], part)

    def difference(
        self, pairs: Sequence[tuple[str, str]], weights: Sequence[float], part: str
    ) -> np.ndarray | None:
        """Resample the weighted mean difference over pairs of cells: (resamples,), or None as in `mean`."""
        terms = [
            (key, sign * weight)
            for pair, weight in zip(pairs, weights, strict=True)
            for key, sign in zip(pair, (1, -1), strict=True)
        ]
        return self._weighted(terms, part)

    def clusters(self, pairs: Sequence[tuple[str, str]], part: str) -> int | None:
        """Count the clusters that hold test samples of the pairs; None without predictions."""
        return self._number([key for key, _ in pairs], "test" if part == GAP else part)

    def _draw(self, places: list[tuple[str, str]], cluster: np.ndarray, stream: int) -> None:
        """Score every training on the resamples of one kind of cluster.

        Sites and blocks have random streams of their own: a gap is a score on blocks minus one on sites.
        """
        number = int(cluster.max()) + 1
        weights = statistics.bootstrap_weights(number, self._resamples, (SEED, stream))
        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            totals = np.stack([self._totals(place, cluster, number) for place in some])
            drawn = statistics.cluster_bootstrap(weights, totals, self._metric)
            self._scores |= dict(zip(some, drawn, strict=True))

    def _totals(self, place: tuple[str, str], cluster: np.ndarray, number: int) -> np.ndarray:
        site, totals = self._sums_of(place)
        return statistics.cluster_totals(cluster[site], totals, number)

    def _sums_of(self, place: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        assert self._sums is not None
        found = self._sums.of(*place)
        assert found is not None
        return found

    def _weighted(self, terms: list[tuple[str, float]], part: str) -> np.ndarray | None:
        if self._sums is None or not terms:
            return None
        if part == GAP:
            test, wr = (self._weighted(terms, own) for own in ("test", "wr"))
            return None if test is None or wr is None else test - wr
        number = self._number([key for key, _ in terms], part)
        if number is None or number < 2:  # a single cluster has no spread
            return None
        total = np.zeros(self._resamples)
        for key, weight in terms:
            total += weight * self._scores[key, part]
        return total

    def _number(self, keys: Sequence[str], part: str) -> int | None:
        if self._sums is None or not keys or any((key, part) not in self._scores for key in keys):
            return None
        seen = [self._cluster[key, part][self._sums_of((key, part))[0]] for key in keys]
        return len(np.unique(np.concatenate(seen)))


def percentiles(drawn: np.ndarray | None, alpha: float) -> dict[str, float]:
    """Percentile interval of level 1 - alpha, as `boot_low` and `boot_high`; NaN without one.

    A resample that has no sample of some training is left out. The interval needs half of the resamples.
    """
    if drawn is None or np.isfinite(drawn).mean() < 0.5:
        return {"boot_low": math.nan, "boot_high": math.nan}
    low, high = np.quantile(drawn[np.isfinite(drawn)], [alpha / 2, 1 - alpha / 2])
    return {"boot_low": float(low), "boot_high": float(high)}
