"""Neighbour feature: mean PM2.5 of the nearest training monitors on the same day.

Only targets that training may know are used, and never those of the site itself.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from pm25.geo import great_circle_km
from pm25.limits import MOST_KM, MOST_SITES
from pm25.panel import Panel
from pm25.settings import Settings

FLOOR_KM = 1.0
"""Smallest distance in the weights: two monitors on one roof only differ by their noise."""

BLOCK = 1 << 18
"""Site-days computed at once: 2 MB for each float64 array, which fits into a processor's cache."""


class NeighbourSettings(Settings):
    """Settings of the inverse-distance mean. The default k = 9 is the published one (KNN-IDW)."""

    k: int = Field(9, gt=0, le=MOST_SITES)
    """Largest number of neighbours."""
    power: float = Field(2.0, ge=0, le=10)
    """Exponent of the inverse distance; 0 gives the plain mean."""
    exclusion_km: float = Field(0.0, ge=0, le=MOST_KM)
    """Distance below which a monitor is not used as a neighbour, for any site."""
    hide: Literal["test_distance"] | None = None
    """`test_distance` gives training sites neighbours as far away as those of test sites (see `feature`)."""
    distance: bool = False
    """Add the neighbours' mean distance as a channel."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of `feature`, in order."""
        return ("neighbours_pm25", "neighbours_km") if self.distance else ("neighbours_pm25",)


def feature(
    panel: Panel,
    train: np.ndarray,
    test_sites: np.ndarray,
    window: int,
    settings: NeighbourSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """Compute the neighbour channels (sites, days, channels) float32, with NaN without a neighbour.

    The channels are `settings.channels`. `train` are the training samples (flat indices). `test_sites` are
    the sites of the test samples, of which only the places are used. A site's own targets are not used for
    its feature. The channel neighbours_km is log(1 + mean distance in km) of the neighbours used.

    With `settings.hide`, each training site draws one of the test sites' distances to their nearest
    training site, with `rng`. It then has no neighbour nearer than this. The reason is that the feature is
    less accurate far from monitors: a model trained with near neighbours scored R2 -0.5 on the 16-degree
    checkerboard of 2021. All other sites use every training monitor, as in an application. Nothing is
    hidden if a test site is also a training site, because then the distances already agree.
    """
    lat, lon = panel.lat, panel.lon
    exclusion = np.full(len(lat), settings.exclusion_km)
    train_sites = np.unique(train // len(panel.dates))
    if settings.hide is not None and not np.isin(test_sites, train_sites).any():
        nearest = nearest_monitor_km(lat, lon, np.unique(test_sites), train_sites, settings.exclusion_km)
        exclusion[train_sites] = rng.choice(nearest, len(train_sites))
    mean, km = inverse_distance(
        known_targets(panel, train, window),
        lat,
        lon,
        k=settings.k,
        power=settings.power,
        exclusion_km=exclusion,
    )
    return np.stack([mean, np.log1p(km)] if settings.distance else [mean], axis=2)


def known_targets(panel: Panel, train: np.ndarray, window: int) -> np.ndarray:
    """Return the targets that training may know, with NaN elsewhere; (sites, days) float32.

    These are the targets of the training samples, and those of days before window - 1 at the same sites.
    No sample ends on these days, so they are in no set. Without them the first windows would have no
    neighbours.
    """
    known = np.zeros(panel.target.shape, bool)
    known.reshape(-1)[train] = True
    known[known.any(axis=1), : window - 1] = True
    return np.where(known, panel.target, np.float32("nan"))


def nearest_monitor_km(
    lat: np.ndarray, lon: np.ndarray, sites: np.ndarray, others: np.ndarray, exclusion_km: float = 0.0
) -> np.ndarray:
    """Distance (km) from each of `sites` to the nearest other site among `others`; (len(sites),).

    Both are indices. Sites nearer than `exclusion_km` are left out. The distance is inf if no site is left.
    """
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
) -> tuple[np.ndarray, np.ndarray]:
    """Return the inverse-distance mean of each day's k nearest sites, and their mean distance in km.

    Both are (sites, days) float32. The mean is sum(w v) / sum(w) with w = max(km, floor_km)^-power. `values
    (sites, days)` is NaN where a value must not be used. A neighbour is another site with a value on that
    day. Neighbours nearer than `exclusion_km` are left out; it is one number, or (sites,) with one for each
    site that gets the mean. At equal distances the first site is taken. Fewer than k neighbours are all
    used; without any the mean is NaN.
    """
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
        # Number of neighbours that each site-day gets. float32 is exact for these whole numbers.
        need = np.minimum(k, np.isfinite(km).astype(np.float32) @ has.astype(np.float32)).astype(np.int32)
        order = np.argsort(km, axis=1, kind="stable")
        km = np.take_along_axis(km, order, axis=1)
        weight = np.maximum(km, floor_km) ** -power
        count = np.zeros((len(block), days), np.int32)
        top, bottom, far = np.zeros((3, len(block), days))
        unfinished = np.flatnonzero(need.any(axis=1))
        for rank in range(len(others)):
            if not len(unfinished):
                break
            other = order[unfinished, rank]
            take = has[other] & (count[unfinished] < need[unfinished])
            count[unfinished] += take
            w = weight[unfinished, rank, None] * take
            top[unfinished] += w * value[other]
            bottom[unfinished] += w
            far[unfinished] += km[unfinished, rank, None] * take
            unfinished = unfinished[(count[unfinished] < need[unfinished]).any(axis=1)]
        with np.errstate(invalid="ignore"):  # 0 / 0 gives NaN for a site-day without a neighbour
            mean[block], mean_km[block] = top / bottom, far / count
    return mean, mean_km


def _distances(
    lat: np.ndarray, lon: np.ndarray, sites: np.ndarray, others: np.ndarray, exclusion_km: np.ndarray
) -> np.ndarray:
    """Distances (km), inf for the site itself and below its exclusion; (len(sites), len(others))."""
    km = great_circle_km(lat[sites, None], lon[sites, None], lat[others], lon[others])
    km[(km < exclusion_km[:, None]) | (sites[:, None] == others)] = np.inf
    return km
