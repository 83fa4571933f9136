"""Reach of the tests: how like the places of a map, and how like the training samples, test samples are.

A score carries over to a map if the test monitors are as far from training as the map's places are from the
monitors (`Distances`). Besides, the inputs of test samples must be like those of training (`Reach.inside`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pm25.applicability import (
    Applicability,
    evenly_spaced,
    monitor_folds,
    predictor_weights,
    window_predictors,
)
from pm25.geo import great_circle_km, nearest_km
from pm25.panel import Panel
from pm25.splits import SplitIndices, nearest_site_km
from sweeps.analysis import labels
from sweeps.analysis.artifacts import Predicted
from sweeps.spec.study import Study

SAMPLES = 500
"""Most training samples of a fold whose inputs are compared."""

TESTED = 5000
"""Most test samples of a fold whose inputs are compared, and whose errors are averaged."""

FEWEST = 30
"""Fewest predictions whose RMSE is shown."""

CHANNELS, WITH_PLACE = "channels", "channels and place"
"""Inputs that are compared: those of an arm without the place, and those of an arm with it."""

COLUMNS = (
    "split",
    "inputs",
    "weights",
    "samples",
    "inside",
    "arm",
    "n_inside",
    "n_outside",
    "rmse_inside",
    "rmse_outside",
)
"""Columns of `Reach.inside`; `inside` is a share of the samples."""


class Distances(NamedTuple):
    """Great-circle distances in km to the nearest monitor."""

    domain: np.ndarray
    """From each place of the prediction domain to the nearest monitor, (m,)."""
    monitors: np.ndarray
    """From each monitor to the nearest other one, (sites,)."""
    splits: Mapping[str, np.ndarray]
    """From each test monitor to the nearest training monitor, by label of the split.

    They are over the folds of the first origin or deal, or of the first part of a rotating holdout.
    """

    def w_km(self, split: str) -> float:
        """Return the Wasserstein distance in km of a split's distances to those of the domain."""
        from scipy.stats import wasserstein_distance  # slow to import

        return float(wasserstein_distance(self.splits[split], self.domain))


class Reach(NamedTuple):
    """Distances of a study, and shares of its test samples inside the area of applicability."""

    distances: Distances
    inside: pd.DataFrame
    """Lines by split and by the inputs that are compared, with the columns `COLUMNS`."""


def measure(
    study: Study,
    panel: Panel,
    indices: Mapping[tuple[str, int], SplitIndices],
    importance: pd.DataFrame,
    predicted: Predicted | None,
    best: str | None,
) -> Reach:
    """Measure the reach of a study's tests.

    `indices` are the samples by split label and fold. `importance` is the table of
    `sweeps.analysis.artifacts.importance`, and `best` the arm with the place whose errors are shown beside
    those of 'none'; None for the first one.
    """
    folds = _first_folds(study)
    arms = [(CHANNELS, labels.BASELINE)]
    with_place = [labels.of_arm(arm) for arm in study.arms() if arm.variant != labels.BASELINE]
    if with_place:
        arms.append((WITH_PLACE, best or with_place[0]))
    lines = []
    for split, numbers in folds.items():
        found = [indices[split, fold] for fold in numbers]
        for inputs, arm in arms:
            line = _inside(study, panel, found, inputs, arm, importance)
            if line is None:
                continue
            keys = _first_seeds(predicted, arm, split, numbers)
            errors = _errors(panel, line, predicted, arm, keys)
            lines.append({"split": split, "inputs": inputs, **line.summary(), **errors})
    return Reach(
        _distances(panel, study.window, {s: [indices[s, f] for f in n] for s, n in folds.items()}),
        pd.DataFrame(lines, columns=list(COLUMNS)),
    )


def _first_folds(study: Study) -> dict[str, list[int]]:
    """Return the folds of the first repeat and part of every split, by label."""
    found = {}
    for factor in study.design.split:
        first = factor.split.position(factor.folds[0])
        found[factor.split.label] = [
            fold
            for fold in factor.folds
            if (at := factor.split.position(fold)).repeat == first.repeat and at.part == first.part
        ]
    return found


def _distances(panel: Panel, window: int, folds: Mapping[str, Sequence[SplitIndices]]) -> Distances:
    sites = np.unique(panel.samples(window)[0])
    lat, lon, days = panel.lat[sites], panel.lon[sites], len(panel.dates)
    apart = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    np.fill_diagonal(apart, np.inf)
    of_splits = {
        split: np.concatenate(
            [
                nearest_site_km(panel, np.unique(one.test // days), np.unique(one.train // days))
                for one in found
            ]
        )
        for split, found in folds.items()
    }
    monitors, places = apart.min(axis=1), panel.prediction_places
    return Distances(
        nearest_km(places[:, 0], places[:, 1], lat, lon), monitors[np.isfinite(monitors)], of_splits
    )


class _Tested(NamedTuple):
    """Test samples of the folds of a split, and which of them are inside the area of applicability."""

    weights: str
    flat: Sequence[np.ndarray]
    """Samples (flat indices) of each fold."""
    inside: Sequence[np.ndarray]

    def summary(self) -> dict[str, str | int | float]:
        every = np.concatenate(self.inside)
        return {"weights": self.weights, "samples": len(every), "inside": float(every.mean())}


def _inside(
    study: Study,
    panel: Panel,
    folds: Sequence[SplitIndices],
    inputs: str,
    arm: str,
    importance: pd.DataFrame,
) -> _Tested | None:
    """Compare the test samples of each fold with its training samples; None if too few differ."""
    days = len(panel.dates)
    weights = _weights(panel, inputs, importance[importance["arm"] == arm])
    flat, inside = [], []
    for one in folds:
        train = one.train[evenly_spaced(len(one.train), SAMPLES)]
        test = one.test[evenly_spaced(len(one.test), TESTED)]
        windows = [_windows(panel, part, study.window) for part in (train, test)]
        with np.errstate(invalid="ignore"):  # a channel without any value
            count = np.isfinite(windows[0]).sum(axis=(0, 1))
            missing = np.where(count > 0, np.nansum(windows[0], axis=(0, 1)) / np.maximum(count, 1), 0)
        own, new = (
            window_predictors(
                of_part,
                missing=missing,
                place=np.stack([panel.lat, panel.lon], axis=1)[part // days]
                if inputs == WITH_PLACE
                else None,
            )
            for part, of_part in zip((train, test), windows, strict=True)
        )
        groups = monitor_folds(train // days)
        weighed = np.ptp(own, axis=0) > 0 if weights is None else (np.ptp(own, axis=0) > 0) & (weights > 0)
        if groups.max() == 0 or not weighed.any():
            return None
        flat.append(test)
        inside.append(Applicability.fit(own, weights, groups).inside(new))
    return _Tested("equal" if weights is None else "importance", flat, inside)


def _windows(panel: Panel, flat: np.ndarray, window: int) -> np.ndarray:
    """Gather the unscaled windows of samples: (n, window, channels)."""
    days = len(panel.dates)
    return panel.features[(flat // days)[:, None], flat[:, None] % days + np.arange(1 - window, 1)]


def _weights(panel: Panel, inputs: str, importance: pd.DataFrame) -> np.ndarray | None:
    """Return the weights from the stored importances of an arm; None without any that is positive."""
    means = importance.groupby("what")["rmse_increase"].mean()
    known = {str(name): float(value) for name, value in means.items()}
    if not {*panel.channels} <= {*known}:
        return None
    weights = predictor_weights(panel.channels, known, with_place=inputs == WITH_PLACE)
    return weights if (weights > 0).any() else None


def _errors(
    panel: Panel, tested: _Tested, predicted: Predicted | None, arm: str, keys: Mapping[int, str]
) -> dict[str, str | int | float]:
    """Return the RMSE of an arm inside and outside the area; `keys` are cells by the position of the fold.

    It is NaN for fewer than `FEWEST` predictions.
    """
    square, within = [np.empty(0)], [np.empty(0, bool)]
    for at, key in keys.items():
        assert predicted is not None
        site, day = np.divmod(tested.flat[at], len(panel.dates))
        dates = panel.dates.astype("datetime64[D]").astype(np.int64)
        square.append(predicted.squared_errors(key, panel.site_id[site], dates[day]))
        within.append(tested.inside[at])
    error, inside = np.concatenate(square), np.concatenate(within)
    inside, outside = (error[chosen & np.isfinite(error)] for chosen in (inside, ~inside))
    rmse = [float(np.sqrt(own.mean())) if len(own) >= FEWEST else np.nan for own in (inside, outside)]
    counts = {"n_inside": len(inside), "n_outside": len(outside)}
    return {"arm": arm, **counts, "rmse_inside": rmse[0], "rmse_outside": rmse[1]}


def _first_seeds(predicted: Predicted | None, arm: str, split: str, folds: Sequence[int]) -> dict[int, str]:
    """Return the cell of an arm with the first seed that has predictions, by position of the fold."""
    keys = {} if predicted is None else predicted.keys(arm, split)
    first: dict[int, str] = {}
    for (fold, _), key in sorted(keys.items()):
        if fold in folds:
            first.setdefault(folds.index(fold), key)
    return first
