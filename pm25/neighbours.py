"""The neighbour feature: what training monitors around a place measured on the same day, without a leak."""

from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from pm25.geo import great_circle_km
from pm25.panel import Panel
from pm25.settings import Settings

FLOOR_KM = 1.0
"""Nearer neighbours weigh as if they stood here: two monitors on one roof differ by their noise alone."""

BLOCK = 1 << 18
"""Site-days worked on at once: 2 MB for each float64 array, which stays in a processor's cache."""


class NeighbourSettings(Settings):
    """Inverse-distance mean of the nearest training monitors. k is the published one (KNN-IDW, k = 9)."""

    k: PositiveInt = 9
    power: float = Field(2.0, ge=0, le=10)
    """Of the inverse distance; 0 is the plain mean."""
    exclusion_km: NonNegativeFloat = 0.0
    """Neighbours nearer than this are used for no site, whatever its part."""
    hide: Literal["test_distance"] | None = None
    """Hide near neighbours from training sites, so that they stand as far away as at test sites."""
    distance: bool = False
    """Give the model the neighbours' mean distance too."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of what `feature` makes, in its order."""
        return ("neighbours_pm25", "neighbours_km") if self.distance else ("neighbours_pm25",)


def feature(
    panel: Panel,
    train: np.ndarray,
    test_sites: np.ndarray,
    window: int,
    settings: NeighbourSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """(sites, days, channels) float32, the `settings.channels`; NaN where a site-day has no neighbour.

    `train` are the training samples (flat), `test_sites` the sites of the test samples: of these the places
    are looked at, never a target. A site's own values are no part of its feature. neighbours_km is
    log(1 + mean km of the neighbours used).

    `hide`: trained among near monitors, a model with this feature scored R2 -0.5 on the 16-degree
    checkerboard of 2021: where monitors are far, the same number means less. So each training site draws
    once, with `rng`, from the test sites' distances to their nearest training site, and sees no neighbour
    nearer than what it drew. All other sites (test, validation, within-region test) see every training
    monitor, as they would in use. Where a test site is a training site too (a random split), training and
    test already share their distances, and nothing is hidden.
    """
    lat, lon = panel.lat, panel.lon
    exclusion = np.full(len(lat), settings.exclusion_km)
    train_sites = np.unique(train // len(panel.dates))
    if settings.hide is not None and not np.isin(test_sites, train_sites).any():
        nearest = nearest_monitor_km(lat, lon, np.unique(test_sites), train_sites, settings.exclusion_km)
        exclusion[train_sites] = rng.choice(nearest, len(train_sites))
    mean, km = _means(
        usable(panel, train, window),
        lat,
        lon,
        k=settings.k,
        power=settings.power,
        exclusion_km=exclusion,
        floor_km=FLOOR_KM,
    )
    return np.stack([mean, np.log1p(km)] if settings.distance else [mean], axis=2)


def usable(panel: Panel, train: np.ndarray, window: int) -> np.ndarray:
    """(sites, days) float32: the targets that training may know, NaN elsewhere.

    They are the targets of the training samples, and those before the first day that can be a sample's
    (day < window - 1) at sites with a training sample: no part holds them, and without them the first
    windows would have no neighbours. A site without a training sample gives nothing.
    """
    known = np.zeros(panel.target.shape, bool)
    known.reshape(-1)[train] = True
    known[known.any(axis=1), : window - 1] = True
    return np.where(known, panel.target, np.float32("nan"))


def nearest_monitor_km(
    lat: np.ndarray, lon: np.ndarray, sites: np.ndarray, others: np.ndarray, exclusion_km: float = 0.0
) -> np.ndarray:
    """(len(sites),) km from each of `sites` to the nearest of `others` that is another site and not nearer
    than `exclusion_km`; inf where there is none. `sites` and `others` are indices."""
    return _distances(lat, lon, sites, others, np.full(len(sites), exclusion_km)).min(axis=1, initial=np.inf)


def inverse_distance(
    values: np.ndarray,
    lat: np.ndarray,
    lon: np.ndarray,
    *,
    k: int,
    power: float,
    exclusion_km: float | np.ndarray = 0.0,
    floor_km: float = FLOOR_KM,
) -> np.ndarray:
    """(sites, days) float32: sum(w v) / sum(w) of each day's k nearest sites, w = max(km, floor_km)^-power.

    `values` (sites, days) are NaN where they must not be used. A neighbour is another site with a value that
    day, not nearer than `exclusion_km` (one number, or (sites,) by the site that looks); of two at one
    distance the one that stands first goes first. With fewer than k all are taken; NaN where there is none.
    """
    return _means(values, lat, lon, k=k, power=power, exclusion_km=exclusion_km, floor_km=floor_km)[0]


def _means(
    values: np.ndarray,
    lat: np.ndarray,
    lon: np.ndarray,
    *,
    k: int,
    power: float,
    exclusion_km: float | np.ndarray,
    floor_km: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse-distance means, and the plain mean distance (km) of the neighbours used."""
    sites, days = values.shape
    exclusion = np.broadcast_to(np.asarray(exclusion_km, np.float64), (sites,))
    has = np.isfinite(values)
    others = np.flatnonzero(has.any(axis=1))
    has = has[others]
    value = np.where(has, values[others], np.float32(0))
    mean, mean_km = np.full((2, sites, days), np.nan, np.float32)
    for start in range(0, sites, max(1, BLOCK // days)):
        block = np.arange(start, min(sites, start + max(1, BLOCK // days)))
        km = _distances(lat, lon, block, others, exclusion[block])
        # What a site-day can have at most: with it the walk knows where to stop. Whole numbers, so exact.
        need = np.minimum(k, np.isfinite(km).astype(np.float32) @ has.astype(np.float32)).astype(np.int32)
        order = np.argsort(km, axis=1, kind="stable")
        km = np.take_along_axis(km, order, axis=1)
        weight = np.maximum(km, floor_km) ** -power
        count = np.zeros((len(block), days), np.int32)
        top, bottom, far = np.zeros((3, len(block), days))
        open_ = np.flatnonzero(need.any(axis=1))
        for rank in range(len(others)):
            if not len(open_):
                break
            other = order[open_, rank]
            take = has[other] & (count[open_] < need[open_])
            count[open_] += take
            w = weight[open_, rank, None] * take
            top[open_] += w * value[other]
            bottom[open_] += w
            far[open_] += km[open_, rank, None] * take
            open_ = open_[(count[open_] < need[open_]).any(axis=1)]
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a site-day without a neighbour
            mean[block], mean_km[block] = top / bottom, far / count
    return mean, mean_km


def _distances(
    lat: np.ndarray, lon: np.ndarray, sites: np.ndarray, others: np.ndarray, exclusion_km: np.ndarray
) -> np.ndarray:
    """(len(sites), len(others)) km, inf for the site itself and for what is nearer than its exclusion."""
    km = great_circle_km(lat[sites, None], lon[sites, None], lat[others], lon[others])
    km[(km < exclusion_km[:, None]) | (sites[:, None] == others)] = np.inf
    return km
