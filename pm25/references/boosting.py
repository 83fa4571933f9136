"""Gradient boosting on the inputs of the arms, with fixed settings."""

import numpy as np

from pm25.panel import Panel

MOST_WINDOWS = 50_000
"""Largest number of training samples; a larger training set is subsampled with the cell's seed."""

SETTINGS = {
    "learning_rate": 0.1,
    "max_iter": 200,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 20,
    "early_stopping": False,
}
"""Settings of scikit-learn's HistGradientBoostingRegressor: its defaults, with 200 trees instead of 100.

Early stopping is off, because scikit-learn would draw its validation samples from the training samples.
"""


def inputs(panel: Panel, flat: np.ndarray, window: int, *, place: bool) -> np.ndarray:
    """Gather each sample's channels of the last day, then their means over the window; (n, 2 * channels).

    With `place`, latitude and longitude are two more columns. A mean is over the values that are not missing,
    and NaN without one.
    """
    days = len(panel.dates)
    site, day = flat // days, flat % days
    columns = [panel.features[site, day]]
    for channel in np.moveaxis(panel.features, 2, 0):
        has = np.isfinite(channel)
        total, number = (
            np.pad(np.cumsum(values, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
            for values in (np.where(has, channel, 0), has)
        )
        first = day - window + 1
        with np.errstate(invalid="ignore"):  # 0 / 0
            mean = (total[site, day + 1] - total[site, first]) / (number[site, day + 1] - number[site, first])
        columns.append(mean[:, None])
    columns += [panel.lat[site, None], panel.lon[site, None]] if place else []
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind")


def predict(
    known: Panel,
    train: np.ndarray,
    flat: np.ndarray,
    window: int,
    *,
    place: bool,
    seed: int,
    threads: int,
) -> np.ndarray:
    """Fit boosted trees on the samples `train`, and predict the samples `flat`: (n,) float32 in ug/m3."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=threads, user_api="openmp"):
        trees = HistGradientBoostingRegressor(**SETTINGS, random_state=seed)
        trees.fit(inputs(known, train, window, place=place), known.target.reshape(-1)[train])
        return np.asarray(trees.predict(inputs(known, flat, window, place=place)), np.float32)
