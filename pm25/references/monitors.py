"""References from known targets alone: interpolation between monitors, means, and the last value.

Every function takes a panel whose unknown targets are NaN, and the sites and days (n,) to predict. It returns
(n,) float64 in ug/m3, with NaN for a sample without a basis.
"""

from typing import NamedTuple

import numpy as np

from pm25.geo import great_circle_km
from pm25.neighbours import inverse_distance
from pm25.panel import Panel

NEAREST = 9
"""Monitors of the inverse-distance mean, the published number (KNN-IDW)."""

POWER = 2.0
"""Exponent of the inverse distance."""

LAGS = 15
"""Classes of distance in which the variogram is estimated."""


def inverse_distance_mean(known: Panel, site: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Predict the inverse-distance mean of the `NEAREST` monitors with a known target on the day."""
    mean, _ = inverse_distance(known.target, known.lat, known.lon, k=NEAREST, power=POWER)
    return mean[site, day].astype(np.float64)


def climatology(known: Panel, site: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Predict the mean of the day plus the site's mean deviation from the means of its days.

    A site without a known target has no deviation, and a day without one has the mean of all targets.
    """
    target = known.target.astype(np.float64)
    of_day = _mean(target, axis=0)
    deviation = np.nan_to_num(_mean(target - of_day, axis=1))
    return np.where(np.isnan(of_day), np.nanmean(target), of_day)[day] + deviation[site]


def persistence(known: Panel, site: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Predict the last known target of the site before the day."""
    days = np.arange(len(known.dates))
    last = np.maximum.accumulate(np.where(np.isfinite(known.target), days, -1), axis=1)
    before = np.where(day > 0, last[site, day - 1], -1)
    return np.where(before < 0, np.nan, known.target[site, before].astype(np.float64))


def or_mean(predicted: np.ndarray, target: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Replace NaN with the mean of the day's known targets or, without one, with that of all targets."""
    target = target.astype(np.float64)
    of_day = _mean(target, axis=0)
    of_day = np.where(np.isnan(of_day), np.nanmean(target), of_day)
    return np.where(np.isnan(predicted), of_day[day], predicted)


class Variogram(NamedTuple):
    """Exponential variogram: nugget + sill * (1 - exp(-km / range_km)) for a distance above 0."""

    nugget: float
    """Variance of a measurement about the field, in (ug/m3)^2."""
    sill: float
    """Variance of the field, in (ug/m3)^2."""
    range_km: float
    """Distance at which the correlation of the field is 1 / e."""

    def semivariance(self, km: np.ndarray) -> np.ndarray:
        """Return half the mean squared difference of two measurements at this distance."""
        return self.nugget + self.sill - self.covariance(km)

    def covariance(self, km: np.ndarray) -> np.ndarray:
        """Return the covariance of the field between two places at this distance."""
        return np.asarray(self.sill * np.exp(-km / self.range_km))


def fit_variogram(target: np.ndarray, km: np.ndarray) -> Variogram:
    """Fit an exponential variogram to the differences of `target` (sites, days) within each day.

    The differences of all days are pooled in `LAGS` classes of distance, up to half the largest distance in
    `km` (sites, sites). The fit weights each class by its pairs over the squared variogram (Cressie 1985).
    Without differences, the nugget is everything, so that kriging gives the mean of the day.
    """
    from scipy.optimize import least_squares

    has = np.isfinite(target).astype(np.float64)
    # A common shift leaves the differences as they are; without it, the squares would lose digits.
    value = np.where(has > 0, target - np.nan_to_num(_mean(target, axis=0)), 0.0)
    cross = value**2 @ has.T
    squares = cross + cross.T - 2 * value @ value.T
    pairs = has @ has.T
    above = np.triu(pairs > 0, 1)
    km, pairs, squares = km[above], pairs[above], squares[above]
    largest = float(km.max(initial=0.0))
    if not largest or not squares.sum() > 0:
        return Variogram(1.0, 0.0, 1.0)
    edges = np.geomspace(largest / 200, largest / 2, LAGS)[:-1]
    near = km <= largest / 2 if (km <= largest / 2).any() else km <= largest
    lag = np.searchsorted(edges, km[near])
    number = np.bincount(lag, pairs[near], LAGS)
    filled = number > 0
    number = number[filled]
    distance = np.bincount(lag, pairs[near] * km[near], LAGS)[filled] / number
    half = 0.5 * np.bincount(lag, squares[near], LAGS)[filled] / number
    scale = float(half @ number / number.sum())

    def misfit(values: np.ndarray) -> np.ndarray:
        model = Variogram(*values).semivariance(distance / largest)
        return np.sqrt(number / number.sum()) * (half / scale / model - 1)

    # The variances are in units of their mean, and the range is in units of the largest distance.
    found = least_squares(misfit, (0.2, 0.8, 0.2), bounds=((1e-3, 0.0, 1e-3), (np.inf, np.inf, 1.0)))
    nugget, sill, reach = found.x
    return Variogram(float(nugget * scale), float(sill * scale), float(reach * largest))


def kriging(known: Panel, site: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Predict each day by ordinary kriging from all its known targets, with one variogram for all days.

    The nugget is the variance of a measurement, so two monitors may be at one place. The system is solved in
    its covariance form, with C the covariance of the measurements z. The mean is m = 1' C^-1 z / (1' C^-1 1).
    The prediction is m + c' C^-1 (z - m). One Cholesky factor serves all places of a day.

    PyKrige 1.7 solves the same system, but also computes the distances and an inverse for each day. That
    took ten seconds a day with 1,000 monitors on a busy core, and the factor takes a third of a second.
    """
    from scipy.linalg import cho_factor, cho_solve

    target = known.target.astype(np.float64)
    monitors = np.flatnonzero(np.isfinite(target).any(axis=1))
    lat, lon = known.lat, known.lon
    between = great_circle_km(lat[monitors, None], lon[monitors, None], lat[monitors], lon[monitors])
    variogram = fit_variogram(target[monitors], between)
    places, place = np.unique(site, return_inverse=True)
    towards = great_circle_km(lat[places, None], lon[places, None], lat[monitors], lon[monitors])
    covariance, covariance_to = variogram.covariance(between), variogram.covariance(towards)
    covariance[np.diag_indices_from(covariance)] += variogram.nugget
    predicted = np.full(len(site), np.nan)
    for one in np.unique(day):
        z = target[monitors, one]
        has = np.flatnonzero(np.isfinite(z))
        if not len(has):
            continue
        factor = cho_factor(covariance[np.ix_(has, has)], lower=True, overwrite_a=True, check_finite=False)
        of_z, of_one = cho_solve(factor, np.stack([z[has], np.ones(len(has))], axis=1), check_finite=False).T
        mean = of_z.sum() / of_one.sum()
        wanted = np.flatnonzero(day == one)
        predicted[wanted] = mean + covariance_to[np.ix_(place[wanted], has)] @ (of_z - mean * of_one)
    return predicted


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are not NaN, in float64; NaN if all are."""
    has = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(np.where(has, values, 0.0).sum(axis=axis, dtype=np.float64) / has.sum(axis=axis))
