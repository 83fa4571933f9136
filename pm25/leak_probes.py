"""Leak probes: channels that contain the target, found by their values and not by their names.

A probe compares a channel with a signal that is computed from the target itself: the target of the same
day, of days before and after it, its moving means, and means of other monitors. The similarity is a
correlation. Places and days are removed first, so that a common season or a common level is not a hit. Three
versions are compared: the values, their ranks within a site, and their ranks within a day. The ranks find
logarithms and other monotone changes, also those that differ by site or by day.

On the 2021 table no weather channel exceeds 0.34, and no index of nearby fires exceeds 0.62. On the synthetic
panel no channel exceeds 0.48. The limit of 0.9 is reached by a copy of the target whose noise has less than
half the standard deviation of the target.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from pm25.errors import InputError
from pm25.geo import great_circle_km
from pm25.neighbours import FLOOR_KM
from pm25.panel import Panel, is_calendar

LIMIT = 0.9
"""Smallest correlation in site and day that is a hit."""

FLAT_LIMIT = 0.95
"""Smallest correlation of a hit for a channel that is constant in time or in space, with few values."""

EQUAL_SHARE = 0.1
"""Smallest share of samples equal to the target, beyond chance, that is a hit."""

LAGS = 20
"""Days before and after the sample whose targets are compared: those of a 21-day window."""

MIN_PAIRS = 100
"""Fewest samples of a correlation."""

MIN_SITES, MIN_DAYS = 20, 30
"""Fewest sites for a channel that is constant in time, and fewest days for one that is constant in space."""

FLAT_SHARE = 0.95
"""Smallest share of its variance between sites (or days) of a channel that is constant in time (or space)."""

MAX_SITES, MAX_DAYS = 200, 366
"""Most sites and days of the correlations. The days of a longer table are three periods of it."""

CANDIDATES = 150
"""Nearest monitors among which those with a value on a day are sought."""


class Leak(NamedTuple):
    """A channel that contains the target, with the figure that shows it."""

    channel: str
    signal: str
    """Signal that the channel resembles, such as 'the target 1 day before'."""
    figure: float
    """Correlation, or share of equal samples, of the channel and the signal."""
    measure: str
    """Name of the figure: 'correlation' or 'share of equal values'."""

    @property
    def problem(self) -> str:
        """Description of the leak for an error."""
        return f"contains the target: {self.measure} {self.figure:.3f} with {self.signal}"


def find(panel: Panel, harmless: Collection[str] = ()) -> list[Leak]:
    """Find the channels that contain the target, the largest figure first.

    Channels in `harmless`, and calendar channels with the values of the date, are not compared. Equal values
    are counted in all samples. Correlations use at most `MAX_SITES` sites and `MAX_DAYS` days, with the means
    of all other monitors.
    """
    chosen = [
        position
        for position, name in enumerate(panel.channels)
        if name not in harmless and not is_calendar(name, panel.features[:, :, position], panel.dates)
    ]
    if not chosen or not panel.observed:
        return []
    names, correlations = _correlations(panel, chosen)
    leaks = []
    for position, row in zip(chosen, correlations, strict=True):
        name, values = panel.channels[position], panel.features[:, :, position]
        found = _equal(name, values, panel.target) + _flat(name, values, panel.target)
        best = int(np.argmax(np.abs(row)))
        if abs(row[best]) >= LIMIT:
            found.append(Leak(name, names[best], float(row[best]), "correlation"))
        leaks += sorted(found, key=lambda leak: -abs(leak.figure))[:1]
    return sorted(leaks, key=lambda leak: -abs(leak.figure))


def check_harmless(panel: Panel, harmless: Collection[str], source: str, field: str) -> None:
    """Raise InputError if a name in `harmless`, given as `field`, is not a channel."""
    for name in harmless:
        if name not in panel.channels:
            known = f"name channels among {', '.join(panel.channels)}"
            raise InputError(source, field, f"{name} is not a channel", known)


def refuse(panel: Panel, source: str, harmless: Collection[str]) -> None:
    """Raise InputError, which names `source`, if a channel contains the target, or a name is unknown."""
    check_harmless(panel, harmless, source, "data.harmless")
    found = find(panel, harmless)
    if found:
        first, *others = found
        more = f"; so does {', '.join(leak.channel for leak in others)}" if others else ""
        raise InputError(source, first.channel, first.problem + more, fix(found))


def fix(leaks: Collection[Leak]) -> str:
    """Return the instruction for these channels: to leave them out, or to declare them harmless."""
    names = ", ".join(leak.channel for leak in leaks)
    return f"leave it out of data.channels, or declare data.harmless: [{names}] if it is known beforehand"


def channel_correlations(panel: Panel, channel: str) -> dict[str, float]:
    """Return the correlation of a channel with every signal, by the signal's name."""
    names, correlations = _correlations(panel, [panel.channels.index(channel)])
    return dict(zip(names, correlations[0].tolist(), strict=True))


def _correlations(panel: Panel, chosen: list[int]) -> tuple[list[str], np.ndarray]:
    """Largest correlation over the three versions, by channel and signal; (channels, signals) with signs."""
    observed = np.flatnonzero(np.isfinite(panel.target).any(axis=1))
    sites = observed[np.unique(np.linspace(0, len(observed) - 1, MAX_SITES).astype(int))]
    names: list[str] = []
    sums = {version: np.zeros(()) for version in VERSIONS}
    for period in _periods(len(panel.dates)):
        target = panel.target[:, period].astype(np.float64)
        features = panel.features[sites, period].astype(np.float64)[:, :, chosen]
        bases = _bases(target, panel.lat, panel.lon, sites)
        names = [_lag_text(name, lag) for name, _, lags in bases for lag in lags]
        for version, change in VERSIONS.items():
            signals = [(change(values), lags) for _, values, lags in bases]
            shifted = np.stack([_shifted(values, lag) for values, lags in signals for lag in lags])
            channels = np.stack([change(features[:, :, channel]) for channel in range(len(chosen))])
            sums[version] = sums[version] + _moments(channels, shifted)
    each = np.stack([_pearson(moments) for moments in sums.values()])
    best = np.argmax(np.abs(each), axis=0)
    return names, np.take_along_axis(each, best[None], axis=0)[0]


def _bases(
    target: np.ndarray, lat: np.ndarray, lon: np.ndarray, sites: np.ndarray
) -> list[tuple[str, np.ndarray, range]]:
    """Return the names and values (len(sites), days) of the signals, with the lags (days) of each."""
    near, nearest, region = _neighbour_means(target, lat, lon, sites)
    own = target[sites]
    mixed = np.where(np.isfinite(own), (own + near) / 2, near)
    here = range(1)
    return [
        ("the target", own, range(-LAGS, LAGS + 1)),
        ("the inverse-distance mean of other monitors", near, range(-3, 4)),
        ("the inverse-distance mean of all monitors", mixed, here),
        ("the nearest other monitor", nearest, here),
        ("the mean of 30 other monitors", region, here),
        ("the target's change since the day before", own - _shifted(own, 1), here),
        ("the target's mean over 3 days up to its own", _moving_mean(own, 2, 0), here),
        ("the target's mean over 7 days up to its own", _moving_mean(own, 6, 0), here),
        ("the target's mean over 3 days before it", _moving_mean(own, 3, -1), here),
        ("the target's mean over 7 days before it", _moving_mean(own, 7, -1), here),
        ("the target's mean over 7 days around it", _moving_mean(own, 3, 3), here),
        ("the target's mean over 31 days around it", _moving_mean(own, 15, 15), here),
    ]


def _neighbour_means(
    target: np.ndarray, lat: np.ndarray, lon: np.ndarray, sites: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse-distance mean of the 9 nearest monitors of each day, the nearest one, and the mean of 30.

    Each is (len(sites), days) without the site itself. Weights are those of `pm25.neighbours` with power 2.
    """
    known = np.isfinite(target)
    value = np.where(known, target, 0.0)
    others = np.flatnonzero(known.any(axis=1))
    found = np.full((3, len(sites), target.shape[1]), np.nan)
    for place, site in enumerate(sites):
        km = great_circle_km(lat[site], lon[site], lat[others], lon[others])
        km[others == site] = np.inf
        order = np.argsort(km, kind="stable")[: min(CANDIDATES, int(np.isfinite(km).sum()))]
        has = known[others[order]]
        rank = np.cumsum(has, axis=0)
        weight = np.maximum(km[order], FLOOR_KM)[:, None] ** -2.0
        for result, (count, weights) in zip(found, ((9, weight), (1, 1.0), (30, 1.0)), strict=True):
            used = weights * (has & (rank <= count))
            total = used.sum(axis=0)
            mean = (used * value[others[order]]).sum(axis=0) / np.where(total > 0, total, 1.0)
            result[place] = np.where(total > 0, mean, np.nan)
    near, nearest, region = found
    return near, nearest, region


def _lag_text(name: str, lag: int) -> str:
    if not lag:
        return f"{name} on the same day" if name == "the target" else name
    return f"{name} {abs(lag)} day{'s' * (abs(lag) > 1)} {'before' if lag > 0 else 'after'}"


def _periods(days: int) -> Iterator[slice]:
    """Yield the days that are compared: all, or three periods at the start, the middle and the end."""
    if days <= MAX_DAYS:
        yield slice(0, days)
        return
    length = MAX_DAYS // 3
    for start in (0, (days - length) // 2, days - length):
        yield slice(start, start + length)


def _equal(name: str, values: np.ndarray, target: np.ndarray) -> list[Leak]:
    """Compare values with targets of the same sample; chance is the share at the next site."""

    def share(others: np.ndarray) -> float:
        pairs = np.isfinite(values) & np.isfinite(others)
        count = int(pairs.sum())
        if count < MIN_PAIRS:
            return 0.0
        return float((np.abs(values - others)[pairs] <= 0.001 + 1e-4 * np.abs(others[pairs])).sum()) / count

    found = share(target)
    if found - share(np.roll(target, 1, axis=0)) < EQUAL_SHARE:
        return []
    return [Leak(name, "the target on the same day", found, "share of equal values")]


def _flat(name: str, values: np.ndarray, target: np.ndarray) -> list[Leak]:
    """Compare a channel that is constant in time, or constant in space, with the target's means."""
    pairs = np.isfinite(values) & np.isfinite(target)
    if pairs.sum() < MIN_PAIRS:
        return []
    x, y = (np.where(pairs, array, 0.0).astype(np.float64) for array in (values, target))
    x = np.where(pairs, x - x[pairs].mean(), 0.0)
    total = np.square(x).sum()
    found = []
    for axis, signal, least in (
        (1, "the target's mean at each site", MIN_SITES),
        (0, "the target's mean on each day", MIN_DAYS),
    ):
        count = pairs.sum(axis=axis)
        used = count > 0
        a, b = (array.sum(axis=axis)[used] / count[used] for array in (x, y))
        between = (count[used] * a**2).sum()
        if used.sum() < least or not total or between < FLAT_SHARE * total:
            continue
        if axis == 0:  # a season alone correlates levels, but not the changes from day to day
            a, b = np.diff(a), np.diff(b)
        figure = max((_correlation(a, b), _correlation(_ranks(a), _ranks(b))), key=abs)
        if abs(figure) >= FLAT_LIMIT:
            found.append(Leak(name, signal, figure, "correlation"))
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _residuals(values: np.ndarray) -> np.ndarray:
    """Subtract the means of sites and of days (sites, days), and divide by the standard deviation.

    All values are NaN if nothing remains but rounding errors.
    """
    known = np.isfinite(values)
    if not known.any():
        return values
    size = np.std(values[known])
    left = np.where(known, values - values[known].mean(), 0.0)
    by_site, by_day = (np.maximum(known.sum(axis=axis), 1) for axis in (1, 0))
    for _ in range(3):  # with missing values, each step disturbs the means of the other kind a little
        left = np.where(known, left - (left.sum(axis=1) / by_site)[:, None], 0.0)
        left = np.where(known, left - left.sum(axis=0) / by_day, 0.0)
    remaining = np.sqrt(np.square(left).sum() / known.sum())
    if remaining <= 1e-4 * size:
        return np.full_like(values, np.nan)
    return np.where(known, left / remaining, np.nan)


def _site_ranks(values: np.ndarray) -> np.ndarray:
    """Residuals of the ranks within each site."""
    return _residuals(_ranks(values))


def _day_ranks(values: np.ndarray) -> np.ndarray:
    """Residuals of the ranks within each day."""
    return _residuals(np.ascontiguousarray(_ranks(np.ascontiguousarray(values.T)).T))


VERSIONS = {"values": _residuals, "ranks within a site": _site_ranks, "ranks within a day": _day_ranks}
"""Versions in which channels and signals are compared."""


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis as shares of its known values; ties have their mean, NaN stays NaN."""
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    place = np.arange(values.shape[-1])
    starts = np.ones(values.shape, bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = np.ones(values.shape, bool)
    ends[..., :-1] = starts[..., 1:]
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=-1)
    last = np.where(ends, place, values.shape[-1])[..., ::-1]
    last = np.minimum.accumulate(last, axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    known = np.isfinite(values)
    return np.where(known, ranks / np.maximum(known.sum(axis=-1, keepdims=True), 1), np.nan)


def _shifted(values: np.ndarray, lag: int) -> np.ndarray:
    """Values of `lag` days before each day, or after it for a negative lag; NaN beyond the ends."""
    if not lag:
        return values
    moved = np.full_like(values, np.nan)
    if lag > 0:
        moved[:, lag:] = values[:, :-lag]
    else:
        moved[:, :lag] = values[:, -lag:]
    return moved


def _moving_mean(values: np.ndarray, before: int, after: int) -> np.ndarray:
    """Mean of the known values from `before` days before each day to `after` days after it."""
    known = np.isfinite(values)
    days = values.shape[1]
    day = np.arange(days)
    low, high = np.clip(day - before, 0, days), np.clip(day + after + 1, 0, days)
    total, count = (
        np.pad(np.cumsum(array, axis=1), ((0, 0), (1, 0))) for array in (np.where(known, values, 0.0), known)
    )
    n = count[:, high] - count[:, low]
    return np.where(n > 0, (total[:, high] - total[:, low]) / np.maximum(n, 1), np.nan)


def _moments(channels: np.ndarray, signals: np.ndarray) -> np.ndarray:
    """Sums over the samples known in both: n, xx, yy and xy; (4, channels, signals) float64.

    The values are residuals, so their means are zero.
    """
    x, y = (values.reshape(len(values), -1).astype(np.float32) for values in (channels, signals))
    known_x, known_y = (np.isfinite(values).astype(np.float32) for values in (x, y))
    x, y = (np.nan_to_num(values, nan=0.0) for values in (x, y))
    pairs = [(known_x, known_y), (x * x, known_y), (known_x, y * y), (x, y)]
    return np.stack([(a @ b.T).astype(np.float64) for a, b in pairs])


def _pearson(moments: np.ndarray) -> np.ndarray:
    """Correlations from the sums of `_moments`; 0 with fewer than `MIN_PAIRS` samples."""
    n, xx, yy, xy = moments
    enough = (n >= MIN_PAIRS) & (xx * yy > 1e-9 * n * n)
    return np.where(enough, xy / np.sqrt(np.where(enough, xx * yy, 1.0)), 0.0)
