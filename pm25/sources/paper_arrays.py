"""The arrays of the published study (doi 10.1080/15481603.2025.2594797) as a table of site-days.

A sample of X (N, days, channels) is the window of days that ends at one site's day; y is that day's PM2.5.
Each day stands in as many windows as hold it, and no site or date is written down: a site is a place, and
dates follow from the calendar channels, whose convention is found by trying each that is in use.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pm25.errors import InputError
from pm25.panel import CALENDAR, MAX_DAYS, REQUIRED
from pm25.protocol import PAPER_MASK

CHANNELS = (
    "aod_047", "aod_055", "day_cos", "day_sin", "daymet_dayl", "lat", "lon", "prcp", "srad", "tmax", "tmin",
    "vp", "dem", "gridmet_th", "gridmet_vs", "knnidw_distance", "knnidw_pm25", "knnidw_pm25_val", "month_cos",
    "month_sin", "ndvi", "wildfire_smoke", "year",
)  # fmt: skip
"""The published order of X."""

DROPPED = ("knnidw_distance", "knnidw_pm25")
"""Every published run leaves them out, and so does the table."""

CHUNK = 4096
"""Samples in memory at a time: 8 MB of 21 days x 23 channels in float32."""

PLACE_DECIMALS = 5
"""A site is a place rounded to 1e-5 degrees, 1 m; float32 still tells that apart at 125 degrees west."""

TOLERANCE_DAYS = 0.01
"""How far an angle may lie from a whole day: float32 moves it by 3e-5, a period of 366 for 365 by up to 1."""

SHARE = 0.999
"""Of the days must fit a convention."""

YEARS = range(1900, 2101)

_JANUARY = np.array([f"{year}-01-01" for year in (*YEARS, YEARS.stop)], "datetime64[D]").astype(np.int64)
_LENGTH = np.diff(_JANUARY)
_MONTH = np.array(["1970-01-01", "1972-01-01"], "datetime64[D]")[:, None] + np.arange(366)
_MONTH = _MONTH.astype("datetime64[M]").astype(np.int64) % 12  # (no leap year, leap year) x day, from 0
_NO_DAY = np.iinfo(np.int32).max


def to_table(
    x: Path, y: Path, channels: Sequence[str] | None = None, dates: Path | None = None
) -> pd.DataFrame:
    """One row for each site-day of any window, by site_id, then date.

    `x`: .npy, (N, days, channels) float, unscaled; `channels` names its channels, None for the published
    ones. `y`: .npy, (N,) or (N, 1), ug/m3 on the last day. `dates`: .npy, (N,) datetime64, the last days,
    where the calendar channels do not tell them. X is mapped, never loaded whole.

    Columns: site_id ('lat,lon'), date, lat, lon (degrees), pm25 (ug/m3, NaN on days that end no window),
    then the channels but lat, lon and DROPPED, in X's precision. A day of only -1 is padding, and no row.

    Raises InputError where X is scaled, windows disagree on a site-day, or dates cannot be told.
    """
    names = tuple(CHANNELS if channels is None else channels)
    windows = _windows(x, names, needs_calendar=dates is None)
    target = _target(y, len(windows), x)
    ends = None if dates is None else _ends(dates, len(windows), x)
    real, places, first = _scan(x, windows, names, ends)

    keys, site = np.unique(places, axis=0, return_inverse=True)
    text = np.array([f"{lat:.{PLACE_DECIMALS}f},{lon:.{PLACE_DECIMALS}f}" for lat, lon in keys])
    order = np.argsort(text)
    rank = np.argsort(order)
    keys, text, site = keys[order], text[order], rank[site.reshape(-1)]

    days = windows.shape[1]
    start, span = int(first.min()), int(first.max() - first.min()) + days
    if span > MAX_DAYS:
        ends_at = f"{_day(start)} to {_day(start + span - 1)}"
        raise InputError(f"{dates or x}: {span} days, {ends_at}; fix the year that cannot be")
    opening = site * span + (first - start)
    present = np.zeros(len(keys) * span, bool)
    for day in range(days):
        present[opening[real[:, day]] + day] = True
    site_days = np.flatnonzero(present)
    code, date = site_days // span, site_days % span + start

    def where(row: int) -> str:
        return f"site {text[code[row]]}, {_day(date[row])}"

    pm25 = np.full(len(site_days), np.nan, target.dtype)
    last = np.searchsorted(site_days, opening + days - 1)
    pm25[last] = target
    apart = (pm25[last] != target) & ~(np.isnan(pm25[last]) & np.isnan(target))
    if apart.any():
        row = last[np.argmax(apart)]
        both = " and ".join(f"{value:g}" for value in (target[np.argmax(apart)], pm25[row]))
        raise InputError(f"{y}: {where(row)}: two samples have {both} ug/m3; keep the right one")

    kept = [name for name in names if name not in ("lat", "lon", *DROPPED)]
    columns = {name: np.empty(len(site_days), windows.dtype.newbyteorder("=")) for name in kept}
    seen = np.zeros(len(site_days), bool)
    for rows, chunk in _chunks(windows):
        held = real[rows]
        at = np.searchsorted(site_days, (opening[rows, None] + np.arange(days))[held])
        new = ~seen[at]
        seen[at] = True
        for name, column in columns.items():
            value = chunk[:, :, names.index(name)][held]
            # Of equal indices the last is written; reversed, that is the first sample's.
            column[at[new][::-1]] = value[new][::-1]
            odd = _apart(column[at], value)
            if odd.any():
                i = int(np.argmax(odd))
                both = f"{column[at[i]]:.7g} and {value[i]:.7g}"
                fix = "a day must be the same in every window; are the dates right?"
                raise InputError(f"{x}: {where(at[i])}, {name}: windows hold {both}; {fix}")

    fixed = {
        "site_id": pd.array(text.tolist(), dtype="str").take(code),
        "date": date.astype("datetime64[D]").astype("datetime64[us]"),
        "lat": keys[code, 0],
        "lon": keys[code, 1],
        "pm25": pm25,
    }
    return pd.DataFrame({**fixed, **columns}, copy=False)


def embeddings(path: Path) -> pd.DataFrame:
    """A published embedding file, .npy (N, 2 + d) of lat, lon and the vector, as an encoder's table.

    Columns lat, lon (degrees, rounded as `to_table` does), v0 ... in the file's precision; one row for each
    place, by lat, then lon. InputError where a value is no number or a place has two vectors.
    """
    values = _numbers(path, "(N, 2 + d) of lat, lon and the vector", lambda s: len(s) == 2 and s[1] > 2)
    places = _rounded(path, np.asarray(values[:, :2], np.float64))
    keys, first, place = np.unique(places, axis=0, return_index=True, return_inverse=True)
    place = place.reshape(-1)
    vectors = np.asarray(values[first, 2:], values.dtype.newbyteorder("="))
    for rows, chunk in _chunks(values):
        vector = chunk[:, 2:]
        for odd, what in (
            (~np.isfinite(vector), "holds no number; make the vector again"),
            (_apart(vectors[place[rows]], vector), "has two vectors; keep the right one"),
        ):
            if odd.any():
                i, j = np.argwhere(odd)[0]
                north, east = keys[place[rows][i]]
                raise InputError(f"{path}: row {rows.start + i}, place ({north:g}, {east:g}), v{j}: {what}")
    table = pd.DataFrame(vectors, columns=[f"v{i}" for i in range(vectors.shape[1])], copy=False)
    table.insert(0, "lat", keys[:, 0])
    table.insert(1, "lon", keys[:, 1])
    return table


def _open(path: Path) -> NDArray:
    """Map the array. Pickles, object arrays among them, are never read."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an array that numpy.save wrote")
    try:
        array: NDArray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, OverflowError) as error:
        reason = str(error).splitlines()[0][:120].rstrip(".")
        raise InputError(f"{path}: cannot be read as .npy ({reason}); save numbers with numpy.save") from None
    return array


def _numbers(path: Path, shape: str, fits: Callable[[tuple[int, ...]], bool]) -> NDArray[np.floating]:
    array = _open(path)
    if not fits(array.shape) or 0 in array.shape:
        raise InputError(f"{path}: its shape is {array.shape}; {shape} is needed")
    if array.dtype.kind != "f" or array.dtype.itemsize < 4:
        raise InputError(f"{path}: holds {array.dtype}; float32 or float64 is needed")
    return array


def _windows(x: Path, names: tuple[str, ...], needs_calendar: bool) -> NDArray[np.floating]:
    needed = ("lat", "lon", *((*CALENDAR, "year") if needs_calendar else ()))
    if lacking := [name for name in needed if name not in names]:
        hint = "" if {"lat", "lon"} & {*lacking} else ", or give dates="
        raise InputError(f"{x}: channels lack {', '.join(lacking)}; name all channels of X{hint}")
    if bad := [name for name in names if names.count(name) > 1 or name in {*REQUIRED} - {"lat", "lon"}]:
        raise InputError(f"{x}: channel {bad[0]} stands twice or is no channel; name each channel of X once")
    windows = _numbers(x, "(samples, days, channels)", lambda s: len(s) == 3)
    if windows.shape[2] != len(names):
        raise InputError(
            f"{x}: its shape is {windows.shape}, but {len(names)} channels are named; name them in order"
        )
    return windows


def _target(y: Path, samples: int, x: Path) -> NDArray[np.floating]:
    target = _numbers(y, "(N,) or (N, 1)", lambda s: len(s) == 1 or (len(s) == 2 and s[1] == 1))
    if len(target) != samples:
        raise InputError(f"{y}: {len(target)} targets for the {samples} samples of {x}; give its own y")
    flat = np.array(target.reshape(-1), target.dtype.newbyteorder("="))
    if np.isinf(flat).any():
        raise InputError(f"{y}: sample {int(np.isinf(flat).argmax())} is infinite; NaN is missing")
    return flat


def _ends(dates: Path, samples: int, x: Path) -> NDArray[np.int64]:
    """Last days as days since 1970-01-01."""
    ends = _open(dates)
    if ends.dtype.kind != "M" or ends.shape != (samples,):
        raise InputError(
            f"{dates}: holds {ends.dtype} of shape {ends.shape}; the last day of each of the {samples} "
            f"samples of {x} is needed, datetime64[D]"
        )
    if np.isnat(ends).any():
        raise InputError(f"{dates}: sample {int(np.isnat(ends).argmax())} has no date; fill it in")
    return ends.astype("datetime64[D]").astype(np.int64)


def _scan(
    x: Path, windows: NDArray[np.floating], names: tuple[str, ...], ends: NDArray[np.int64] | None
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Which days are no padding (N, days), the place (N, 2) and the first day (N,) of each sample."""
    samples, days, _ = windows.shape
    real = np.empty((samples, days), bool)
    places = np.empty((samples, 2))
    conventions = [_Convention(*which) for which in product(_PERIODS, (0, 1), (0, 1))] if ends is None else []
    firsts = np.empty((len(conventions), samples), np.int32)
    fitting = np.zeros(len(conventions), np.int64)
    for rows, chunk in _chunks(windows):
        real[rows] = held = (chunk != PAPER_MASK).any(axis=2)
        place = chunk[:, :, [names.index("lat"), names.index("lon")]].astype(np.float64)
        places[rows] = place[:, -1]
        if not held[:, -1].all():
            sample = rows.start + int(np.argmin(held[:, -1]))
            raise InputError(f"{x}: sample {sample}: its last day is padding (-1); leave that sample out")
        moves = held & (np.abs(place - place[:, -1:]) > 10**-PLACE_DECIMALS).any(axis=2)
        if moves.any():
            sample = rows.start + int(np.argmax(moves.any(axis=1)))
            raise InputError(f"{x}: sample {sample}: its window is of two places; give each site its own")
        if conventions:
            calendar = _Calendar.of({name: chunk[:, :, names.index(name)] for name in (*CALENDAR, "year")})
        for i, convention in enumerate(conventions):
            firsts[i, rows], count = _first_days(calendar.dates(convention), held)
            fitting[i] += count
    places = _rounded(x, places)
    if ends is not None:
        if "year" in names:
            _refuse_other_years(x, windows[:, -1, names.index("year")], ends)
        return real, places, ends - (days - 1)

    share = fitting / real.sum()
    best = int(np.argmax(share))
    ask = "give dates=, an .npy of each sample's last day"
    if share[best] < SHARE:
        year = float(windows[0, -1, names.index("year")])
        raise InputError(
            f"{x}: no convention gives dates to {SHARE:.1%} of the days: {conventions[best]} fits "
            f"{share[best]:.1%} (year of sample 0: {year:g}); X must be unscaled, or {ask}"
        )
    first = firsts[best]
    if (first == _NO_DAY).any():
        sample = int(np.argmax(first == _NO_DAY))
        raise InputError(f"{x}: sample {sample}: its calendar fits no date; fix it, or {ask}")
    for i in np.flatnonzero(share >= SHARE).tolist():
        differ = (firsts[i] != first) & (firsts[i] != _NO_DAY)
        if differ.any():
            sample = int(np.argmax(differ))
            one, other = (_day(int(firsts[which, sample]) + days - 1) for which in (best, i))
            raise InputError(
                f"{x}: sample {sample} ends {one} if {conventions[best]}, {other} if {conventions[i]}, "
                f"and both fit; {ask}"
            )
    return real, places, first.astype(np.int64)


def _refuse_other_years(x: Path, year: NDArray[np.floating], ends: NDArray[np.int64]) -> None:
    """The dates are another array's, or X is scaled and its places look like degrees."""
    given = ends.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64) + 1970
    other = ~(np.abs(year.astype(np.float64) - given) < 0.5)
    if other.any():
        sample = int(np.argmax(other))
        raise InputError(
            f"{x}: sample {sample} has year {year[sample]:g}, its date {_day(ends[sample])}; "
            "give unscaled X and its own dates"
        )


_PERIODS = (None, 365.0, 366.0, 365.25)


@dataclass(frozen=True)
class _Convention:
    """angle = 2 pi day / period, and 2 pi month / 12."""

    period: float | None
    """Days; None for the length of the year."""
    first_day: int
    """The number of January 1."""
    first_month: int
    """The number of January."""

    def __str__(self) -> str:
        period = "the year's length" if self.period is None else f"{self.period:g}"
        return f"period {period}, January 1 = {self.first_day}, January = {self.first_month}"


@dataclass(frozen=True)
class _Calendar:
    """Calendar channels as angles, each (n, days)."""

    year: NDArray[np.int64]
    """Counted from YEARS.start."""
    day_turn: NDArray[np.float64]
    """Turns in [0, 1]."""
    month_turn: NDArray[np.float64]
    valid: NDArray[np.bool_]

    @classmethod
    def of(cls, channels: dict[str, NDArray[np.floating]]) -> "_Calendar":
        wide = {name: values.astype(np.float64) for name, values in channels.items()}
        valid = np.ones(wide["year"].shape, bool)
        turns = []
        for name in ("day", "month"):
            cos, sin = wide[f"{name}_cos"], wide[f"{name}_sin"]
            valid &= np.abs(np.hypot(cos, sin) - 1) < 0.01  # a scaled channel lies on no circle
            turns.append(np.arctan2(sin, cos) / (2 * np.pi) % 1)
        year = np.rint(wide["year"])
        valid &= (np.abs(wide["year"] - year) < 0.01) & (year >= YEARS.start) & (year < YEARS.stop)
        day_turn, month_turn = (np.where(valid, turn, 0) for turn in turns)
        year = np.where(valid, year, 2000)
        return cls(year.astype(np.int64) - YEARS.start, day_turn, month_turn, valid)

    def dates(self, convention: _Convention) -> NDArray[np.int32]:
        """Days since 1970-01-01, _NO_DAY where the convention does not fit."""
        length = _LENGTH[self.year]
        period = length if convention.period is None else convention.period
        month = np.rint(self.month_turn * 12)
        whole = self.valid & (np.abs(self.month_turn * 12 - month) < 0.01)
        month = (month.astype(np.int64) - convention.first_month) % 12
        dates = np.full(month.shape, _NO_DAY, np.int32)
        # An angle says the day but for whole turns: day 366 of period 365 is day 1, and -0.0 is day 365.
        for turns in (-1, 0, 1):
            exact = (self.day_turn + turns) * period
            day = np.rint(exact)
            fits = whole & (np.abs(exact - day) < TOLERANCE_DAYS)
            of_year = day.astype(np.int64) - convention.first_day
            fits &= (of_year >= 0) & (of_year < length)
            fits &= _MONTH[length - 365, np.clip(of_year, 0, 365)] == month
            dates[fits] = (_JANUARY[self.year] + of_year)[fits]
        return dates


def _first_days(dates: NDArray[np.int32], held: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """First day of each window (n,), by the median of its days, and how many days agree with it."""
    good = held & (dates != _NO_DAY)
    first = np.where(good, dates - np.arange(dates.shape[1], dtype=np.int32), _NO_DAY)
    middle = np.maximum(good.sum(axis=1) - 1, 0) // 2
    median = np.take_along_axis(np.sort(first, axis=1), middle[:, None], axis=1)
    return median[:, 0], int((good & (first == median)).sum())


def _rounded(path: Path, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places (n, 2) to PLACE_DECIMALS."""
    for name, value, limit in (("lat", places[:, 0], 90), ("lon", places[:, 1], 180)):
        outside = ~(np.abs(value) <= limit)  # NaN is outside too
        if outside.any():
            sample = int(np.argmax(outside))
            fix = "give unscaled degrees, latitude before longitude"
            raise InputError(
                f"{path}: sample {sample}: {name} {value[sample]:g} is not in -{limit}..{limit}; {fix}"
            )
    return np.round(places, PLACE_DECIMALS) + 0.0  # no negative zero


def _chunks(array: NDArray[np.floating]) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Slices of CHUNK rows with a copy of each in memory."""
    for start in range(0, len(array), CHUNK):
        rows = slice(start, min(start + CHUNK, len(array)))
        yield rows, np.array(array[rows])


def _apart(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where two values are more than float32 noise apart; NaN is like NaN alone."""
    apart = one != other
    apart[apart] = ~np.isclose(one[apart], other[apart], rtol=1e-4, atol=1e-6, equal_nan=True)
    return apart


def _day(day: int) -> np.datetime64:
    return np.datetime64(int(day), "D")
