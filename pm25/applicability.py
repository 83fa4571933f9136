"""Area of applicability: the places and days that resemble the training samples of a model.

The method is that of Meyer and Pebesma (2021), Methods in Ecology and Evolution 12, 1620-1633,
https://doi.org/10.1111/2041-210X.13650. The rule for the threshold is that of their R package CAST 1.1: the
upper quartile of the dissimilarity plus 1.5 times the interquartile range, but at most the largest one.

`Applicability` works on any table of predictors. `window_predictors` makes one from the windows of samples,
and `predictor_weights` turns the importance of channels into its weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pm25.errors import InputError

MONITOR_FOLDS = 5
"""Number of groups of training monitors from which `monitor_folds` holds out one at a time."""

BLOCK_MB = 128
"""Memory in MB of the distances that are computed together."""

_WHERE = "area of applicability"


@dataclass(frozen=True, eq=False)
class Applicability:
    """Area of applicability of a model, from the predictors of its training samples.

    The dissimilarity index (DI) of a sample is its distance to the nearest training sample, divided by the
    mean distance between two training samples. Predictors are standardised by the training samples, and then
    multiplied by their weights. A sample is inside the area if its DI is at most `threshold`.
    """

    threshold: float
    """Largest DI inside the area, `largest_inside` of `training`."""
    mean_distance: float
    """Mean distance between two training samples, in the space of the weighted predictors."""
    training: np.ndarray
    """DI of each training sample to the training samples of the other folds; (n,)."""
    used: np.ndarray
    """True for each predictor that has a weight, and varies over the training samples; (p,)."""
    _centre: np.ndarray = field(repr=False)
    _factor: np.ndarray = field(repr=False)
    _points: np.ndarray = field(repr=False)

    @classmethod
    def fit(
        cls, predictors: np.ndarray, weights: np.ndarray | None = None, folds: np.ndarray | None = None
    ) -> "Applicability":
        """Fit the area to the predictors (n, p) of the training samples.

        `weights` (p,) are importances, whose unit does not matter; None weighs all predictors equally.
        `folds` (n,) are the numbers of cross-validation folds. The DI that sets the threshold is then that to
        samples of other folds, and without them to all other samples. A predictor that is constant has no
        scale and is left out, like one with weight 0.

        Raises InputError for a missing value, and for a weight that is negative or not finite. It is also
        raised if no predictor is left, and if there are fewer than two samples or folds.
        """
        predictors = np.asarray(predictors, np.float64)
        n, p = _shape(predictors)
        if n < 2:
            raise InputError(_WHERE, "predictors", f"{n} training samples", "give at least two")
        missing = ~np.isfinite(predictors)
        if missing.any():
            row, column = np.argwhere(missing)[0]
            problem = f"{missing.sum()} values are missing, the first in sample {row}, predictor {column}"
            raise InputError(_WHERE, "predictors", problem, "leave these samples out, or fill the values")
        weights = np.ones(p) if weights is None else np.asarray(weights, np.float64)
        if weights.shape != (p,) or not np.isfinite(weights).all() or (weights < 0).any():
            problem = f"need {p} finite numbers of at least 0, got {weights.tolist()}"
            raise InputError(_WHERE, "weights", problem, "set negative importances to 0")
        centre, unit = predictors.mean(axis=0), predictors.std(axis=0, ddof=1)
        used = (weights > 0) & (unit > 1e-12 * np.abs(centre)) & (unit > 0)
        if not used.any():
            fix = "give equal weights (None), or samples that differ"
            raise InputError(_WHERE, "weights", "no predictor both varies and has a weight", fix)
        factor = weights[used] / weights[used].max() / unit[used]
        points = (predictors[:, used] - centre[used]) * factor
        mean, nearest = _compare(points, folds)
        own = nearest / mean
        return cls(largest_inside(own), mean, own, used, centre[used], factor, points)

    def dissimilarity(self, new: np.ndarray) -> np.ndarray:
        """Compute the DI of new samples (m, p); (m,), NaN where a used predictor is missing.

        Raises InputError if the number of predictors differs from that of the training samples.
        """
        new = np.asarray(new, np.float64)
        _, p = _shape(new)
        if p != len(self.used):
            problem = f"{p} predictors, but the training samples have {len(self.used)}"
            raise InputError(_WHERE, "predictors", problem, "give the same predictors in the same order")
        points = (new[:, self.used] - self._centre) * self._factor
        found = np.full(len(new), np.nan)
        known = np.isfinite(points).all(axis=1)
        if known.any():
            found[known] = _to_nearest(self._points, points[known]) / self.mean_distance
        return found

    def inside(self, new: np.ndarray) -> np.ndarray:
        """Return True for each new sample (m, p) whose DI is at most the threshold; False where it is NaN."""
        return np.asarray(self.dissimilarity(new) <= self.threshold)


def largest_inside(training: np.ndarray) -> float:
    """Return the threshold of the DI of training samples (n,): min(Q3 + 1.5 (Q3 - Q1), maximum)."""
    low, high = np.quantile(training, [0.25, 0.75])
    return float(min(high + 1.5 * (high - low), training.max()))


def window_predictors(
    windows: np.ndarray, *, missing: np.ndarray | None = None, place: np.ndarray | None = None
) -> np.ndarray:
    """Summarise the input windows of samples as predictors; (n, 2 * channels), or two more with a place.

    A network reads the whole window (n, days, channels), oldest day first. Its predictors are, for each
    channel, the value on the last day, and then for each channel the mean over the window. `missing`
    (channels,) replaces missing values as in the network, which reads the training mean of the channel. NaN
    stays without it. `place` (n, 2) has latitudes and longitudes, for an arm that knows the place.
    """
    windows = np.asarray(windows, np.float64)
    if missing is not None:
        windows = np.where(np.isfinite(windows), windows, missing)
    parts = [windows[:, -1], windows.mean(axis=1)]
    return np.concatenate(parts if place is None else [*parts, np.asarray(place, np.float64)], axis=1)


def predictor_weights(
    channels: Sequence[str], importance: Mapping[str, float], *, with_place: bool
) -> np.ndarray:
    """Return the weights of `window_predictors` from the permutation importance of each input.

    Both predictors of a channel have the channel's importance. The two coordinates have that of the place or
    of the embedding, whichever is greater. A negative importance is chance, and counts as 0.

    Raises InputError if an input has no importance.
    """
    place = [name for name in ("place", "embedding") if name in importance]
    lacking = [name for name in channels if name not in importance]
    lacking += ["place"] if with_place and not place else []
    if lacking:
        fix = "measure the importance of this cell with `sweep importance`"
        raise InputError(_WHERE, "weights", f"no importance of {', '.join(lacking)}", fix)
    of_channels = [importance[name] for name in channels]
    of_place = [max(importance[name] for name in place)] * 2 if with_place else []
    return np.maximum(np.array([*of_channels, *of_channels, *of_place], np.float64), 0)


def monitor_folds(site: np.ndarray, seed: int = 0, folds: int = MONITOR_FOLDS) -> np.ndarray:
    """Deal the monitors of samples to folds; (n,). All samples of a monitor are in one fold.

    With these folds, the threshold is the dissimilarity that a new monitor among the training ones has.
    `site` (n,) numbers the monitor of each sample.
    """
    sites, code = np.unique(site, return_inverse=True)
    dealt = np.empty(len(sites), np.int64)
    dealt[np.random.default_rng(seed).permutation(len(sites))] = np.arange(len(sites)) % folds
    return np.asarray(dealt[code.reshape(-1)])


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """Return at most `most` indices of n samples, evenly spaced and ascending; nothing is drawn."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)


def _shape(predictors: np.ndarray) -> tuple[int, int]:
    if predictors.ndim != 2 or not predictors.shape[1]:
        problem = f"need a table (samples, predictors), got the shape {predictors.shape}"
        raise InputError(_WHERE, "predictors", problem, "give one row for each sample")
    return predictors.shape[0], predictors.shape[1]


def _compare(points: np.ndarray, folds: np.ndarray | None) -> tuple[float, np.ndarray]:
    """Return the mean distance between two of the points, and that of each point to the nearest other (n,).

    With folds, other points are those of other folds.
    """
    from sklearn.metrics import pairwise_distances_chunked

    n = len(points)
    folds = np.arange(n) if folds is None else np.asarray(folds)
    if folds.shape != (n,) or (folds == folds[0]).all():
        problem = f"need at least two folds over {n} samples, got {len(np.unique(folds))} over {folds.size}"
        raise InputError(_WHERE, "folds", problem, "give the fold of every training sample, or None")

    def reduce(block: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        total = block.sum(axis=1)
        block[folds[start : start + len(block), None] == folds] = np.inf
        return total, block.argmin(axis=1)

    totals, nearest = zip(
        *pairwise_distances_chunked(points, reduce_func=reduce, working_memory=BLOCK_MB), strict=True
    )
    mean = float(np.concatenate(totals).sum() / (n * (n - 1)))
    return mean, _exact_distance(points, points, np.concatenate(nearest))


def _to_nearest(training: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance of each point to the nearest training point; exactly 0 for a training point."""
    from sklearn.metrics import pairwise_distances_chunked

    # A product of matrices for a block of points: a search tree is of no use in many dimensions.
    nearest = pairwise_distances_chunked(
        points, training, reduce_func=lambda block, _: block.argmin(axis=1), working_memory=BLOCK_MB
    )
    return _exact_distance(points, training, np.concatenate([*nearest]))


def _exact_distance(points: np.ndarray, training: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Distance of each point to its nearest training point, without the rounding of scalar products."""
    return np.asarray(np.linalg.norm(points - training[nearest], axis=1))
