"""The arrays of the published study (doi 10.1080/15481603.2025.2594797) as a table of site-days.

A sample of X (N, days, channels) is the window of days that ends at one site's day; y is the PM2.5 of that
day. A day is repeated in every window that contains it. The arrays contain no sites and no dates. Here a site
is a place, and dates are computed from the calendar channels. Their convention is found by trying all that
are in use.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pm25.errors import InputError
from pm25.limits import MOST_NPY_HEADER
from pm25.protocol import PAPER_MASK
from pm25.tables.schema import CALENDAR, MAX_DAYS, REQUIRED

CHANNELS = (
    "aod_047", "aod_055", "day_cos", "day_sin", "daymet_dayl", "lat", "lon", "prcp", "srad", "tmax", "tmin",
    "vp", "dem", "gridmet_th", "gridmet_vs", "knnidw_distance", "knnidw_pm25", "knnidw_pm25_val", "month_cos",
    "month_sin", "ndvi", "wildfire_smoke", "year",
)  # fmt: skip
"""Channels of X in the published order."""

DROPPED = ("knnidw_distance", "knnidw_pm25")
"""Channels that all published runs leave out, and the table too."""

CHUNK = 4096
"""Samples in memory at a time; 8 MB of 21 days x 23 channels in float32."""

PLACE_DECIMALS = 5
"""Decimals of a site's place: 1e-5 degrees or 1 m, which float32 still resolves at 125 degrees west."""

TOLERANCE_DAYS = 0.01
"""Tolerance of an angle, in days. Float32 moves it by 3e-5, and a period of 366 for 365 by up to 1."""

SHARE = 0.999
"""Share of the days that must fit a convention."""

YEARS = range(1900, 2101)
"""Years that are accepted in the channel `year`."""

_JANUARY = np.array([f"{year}-01-01" for year in (*YEARS, YEARS.stop)], "datetime64[D]").astype(np.int64)
_LENGTH = np.diff(_JANUARY)
_MONTH = np.array(["1970-01-01", "1972-01-01"], "datetime64[D]")[:, None] + np.arange(366)
_MONTH = _MONTH.astype("datetime64[M]").astype(np.int64) % 12  # (common year, leap year) x day, from 0
_NO_DAY = np.iinfo(np.int32).max


def to_table(
    x: Path, y: Path, channels: Sequence[str] | None = None, dates: Path | None = None
) -> pd.DataFrame:
    """Build a table with one row for each site-day of any window, by site_id, then date.

    - `x`: .npy, (N, days, channels) float, unscaled. It is memory-mapped, never loaded completely.
    - `y`: .npy, (N,) or (N, 1), ug/m3 on the last day.
    - `channels`: names of the channels of X; None means the published ones.
    - `dates`: .npy, (N,) datetime64, the last days; needed if the calendar channels do not determine them.

    The columns are site_id ('lat,lon'), date, lat, lon (degrees), pm25 (ug/m3), and the channels in X's
    precision, except lat, lon and `DROPPED`. PM2.5 is NaN on days that end no window. Days of only -1 are
    padding and have no row.

    Raises InputError if X is scaled, if windows disagree on a site-day, or if dates are ambiguous.
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
        problem = f"{span} days, {ends_at}, but at most {MAX_DAYS} are allowed"
        raise InputError(str(dates or x), "date", problem, "fix the year that is wrong")
    opening = site * span + (first - start)
    present = np.zeros(len(keys) * span, bool)
    for day in range(days):
        present[opening[real[:, day]] + day] = True
    site_days = np.flatnonzero(present)
    code, date = site_days // span, site_days % span + start

    def where(row: int) -> str:
        """Name a site-day."""
        return f"site {text[code[row]]}, {_day(date[row])}"

    pm25 = np.full(len(site_days), np.nan, target.dtype)
    last = np.searchsorted(site_days, opening + days - 1)
    pm25[last] = target
    apart = (pm25[last] != target) & ~(np.isnan(pm25[last]) & np.isnan(target))
    if apart.any():
        row = last[np.argmax(apart)]
        both = " and ".join(f"{value:g}" for value in (target[np.argmax(apart)], pm25[row]))
        raise InputError(str(y), where(row), f"two samples have {both} ug/m3", "keep the right one")

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
            # The last of equal indices is written; in reverse order, that is the first sample's.
            column[at[new][::-1]] = value[new][::-1]
            odd = _apart(column[at], value)
            if odd.any():
                i = int(np.argmax(odd))
                problem = f"windows contain {column[at[i]]:.7g} and {value[i]:.7g}"
                fix = "make the day the same in every window, and check the dates"
                raise InputError(str(x), f"{where(at[i])}, {name}", problem, fix)

    fixed = {
        "site_id": pd.array(text.tolist(), dtype="str").take(code),
        "date": date.astype("datetime64[D]").astype("datetime64[us]"),
        "lat": keys[code, 0],
        "lon": keys[code, 1],
        "pm25": pm25,
    }
    return pd.DataFrame({**fixed, **columns}, copy=False)


def embeddings(path: Path) -> pd.DataFrame:
    """Convert a published embedding file to a table for the encoder `table`.

    The file is .npy, (N, 2 + d) of lat, lon and the vector. The columns are lat and lon (degrees, rounded as
    in `to_table`), and v0, v1 ... in the file's precision. There is one row for each place, by lat, then lon.
    Raises InputError if a value is not finite, or if a place has two vectors.
    """
    values = _numbers(path, "(N, 2 + d) of lat, lon and the vector", lambda s: len(s) == 2 and s[1] > 2)
    places = _rounded(path, np.asarray(values[:, :2], np.float64))
    keys, first, place = np.unique(places, axis=0, return_index=True, return_inverse=True)
    place = place.reshape(-1)
    vectors = np.asarray(values[first, 2:], values.dtype.newbyteorder("="))
    for rows, chunk in _chunks(values):
        vector = chunk[:, 2:]
        for odd, what, fix in (
            (~np.isfinite(vector), "has a value that is not finite", "compute the vector again"),
            (_apart(vectors[place[rows]], vector), "has two vectors", "keep the right one"),
        ):
            if odd.any():
                i, j = np.argwhere(odd)[0]
                north, east = keys[place[rows][i]]
                problem = f"place ({north:g}, {east:g}) {what}"
                raise InputError(str(path), f"row {rows.start + i}, v{j}", problem, fix)
    table = pd.DataFrame(vectors, columns=[f"v{i}" for i in range(vectors.shape[1])], copy=False)
    table.insert(0, "lat", keys[:, 0])
    table.insert(1, "lon", keys[:, 1])
    return table


def _open(path: Path) -> NDArray:
    """Memory-map the array. Pickles are never loaded, so object arrays are refused."""
    if not path.is_file():
        raise InputError(str(path), "", "no such file", "give an array that numpy.save wrote")
    try:
        _refuse_long_header(path)
        array: NDArray = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy evaluates the header, and names no class of its own for a wrong one
        reason = str(error).splitlines()[0][:120].rstrip(".") or type(error).__name__
        problem = f"cannot be read as .npy ({reason})"
        raise InputError(str(path), "", problem, "save numbers with numpy.save") from None
    return array


def _refuse_long_header(path: Path) -> None:
    """Raise ValueError for a header that numpy would read completely before it refuses its length."""
    with path.open("rb") as file:
        version, _ = np.lib.format.read_magic(file)
        length = int.from_bytes(file.read(2 if version == 1 else 4), "little")
    if length > MOST_NPY_HEADER:
        raise ValueError(f"a header of {length:,} bytes, but at most {MOST_NPY_HEADER:,} are allowed")


def _numbers(path: Path, shape: str, fits: Callable[[tuple[int, ...]], bool]) -> NDArray[np.floating]:
    """Memory-map an array of floats whose shape `fits`; `shape` describes it in errors."""
    array = _open(path)
    if not fits(array.shape) or 0 in array.shape:
        raise InputError(str(path), "shape", f"{array.shape} does not fit", f"give {shape}")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise InputError(str(path), "dtype", f"{array.dtype} is not supported", "give float32 or float64")
    return array


def _windows(x: Path, names: tuple[str, ...], needs_calendar: bool) -> NDArray[np.floating]:
    """Memory-map X and check the names of its channels."""
    needed = ("lat", "lon", *((*CALENDAR, "year") if needs_calendar else ()))
    if lacking := [name for name in needed if name not in names]:
        hint = "" if {"lat", "lon"} & {*lacking} else ", or give dates="
        fix = f"name all channels of X{hint}"
        raise InputError(str(x), ", ".join(lacking), "channel is missing", fix)
    if bad := [name for name in names if names.count(name) > 1 or name in {*REQUIRED} - {"lat", "lon"}]:
        problem = "channel is named twice" if names.count(bad[0]) > 1 else "not allowed as a channel"
        raise InputError(str(x), bad[0], problem, "name each channel of X once")
    windows = _numbers(x, "(samples, days, channels)", lambda s: len(s) == 3)
    if windows.shape[2] != len(names):
        problem = f"{windows.shape} does not fit {len(names)} names of channels"
        raise InputError(str(x), "shape", problem, "name all channels, in order")
    return windows


def _target(y: Path, samples: int, x: Path) -> NDArray[np.floating]:
    """Read the targets, (samples,)."""
    target = _numbers(y, "(N,) or (N, 1)", lambda s: len(s) == 1 or (len(s) == 2 and s[1] == 1))
    if len(target) != samples:
        problem = f"{len(target)} targets for the {samples} samples of {x}"
        raise InputError(str(y), "shape", problem, "give the y that belongs to X")
    flat = np.array(target.reshape(-1), target.dtype.newbyteorder("="))
    if np.isinf(flat).any():
        sample = f"sample {int(np.isinf(flat).argmax())}"
        raise InputError(str(y), sample, "value is infinite", "store NaN where the value is missing")
    return flat


def _ends(dates: Path, samples: int, x: Path) -> NDArray[np.int64]:
    """Read the last days of all samples, as days since 1970-01-01."""
    ends = _open(dates)
    if ends.dtype.kind != "M" or ends.shape != (samples,):
        problem = f"{ends.dtype} of shape {ends.shape} does not fit"
        fix = f"give the last day of each of the {samples} samples of {x}, as datetime64[D]"
        raise InputError(str(dates), "shape, dtype", problem, fix)
    if np.isnat(ends).any():
        sample = f"sample {int(np.isnat(ends).argmax())}"
        raise InputError(str(dates), sample, "date is missing", "fill it in")
    return ends.astype("datetime64[D]").astype(np.int64)


def _scan(
    x: Path, windows: NDArray[np.floating], names: tuple[str, ...], ends: NDArray[np.int64] | None
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Return a mask of the days that are not padding (N, days), and each sample's place and first day.

    Places are (N, 2) as (lat, lon) in degrees; first days (N,) are days since 1970-01-01.
    """
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
            problem = "its last day is padding (-1)"
            raise InputError(str(x), f"sample {sample}", problem, "leave that sample out")
        moves = held & (np.abs(place - place[:, -1:]) > 10**-PLACE_DECIMALS).any(axis=2)
        if moves.any():
            sample = rows.start + int(np.argmax(moves.any(axis=1)))
            problem = "its window contains two places"
            raise InputError(str(x), f"sample {sample}", problem, "give each site its own windows")
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
        problem = (
            f"no calendar convention fits {SHARE:.1%} of the days; the best one, {conventions[best]}, fits "
            f"{share[best]:.1%} (year of sample 0: {year:g})"
        )
        raise InputError(str(x), "date", problem, f"give unscaled X, or {ask}")
    first = firsts[best]
    if (first == _NO_DAY).any():
        sample = int(np.argmax(first == _NO_DAY))
        problem = "its calendar channels fit no date"
        raise InputError(str(x), f"sample {sample}", problem, f"fix them, or {ask}")
    for i in np.flatnonzero(share >= SHARE).tolist():
        differ = (firsts[i] != first) & (firsts[i] != _NO_DAY)
        if differ.any():
            sample = int(np.argmax(differ))
            a, b = (_day(int(firsts[which, sample]) + days - 1) for which in (best, i))
            problem = f"two conventions fit: it ends {a} if {conventions[best]}, {b} if {conventions[i]}"
            raise InputError(str(x), f"sample {sample}", problem, ask)
    return real, places, first.astype(np.int64)


def _refuse_other_years(x: Path, year: NDArray[np.floating], ends: NDArray[np.int64]) -> None:
    """Raise InputError if the dates belong to another array, or X is scaled with places that look valid."""
    given = ends.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64) + 1970
    other = ~(np.abs(year.astype(np.float64) - given) < 0.5)
    if other.any():
        sample = int(np.argmax(other))
        problem = f"year is {year[sample]:g}, but its date is {_day(ends[sample])}"
        fix = "give unscaled X, and the dates that belong to it"
        raise InputError(str(x), f"sample {sample}", problem, fix)


_PERIODS = (None, 365.0, 366.0, 365.25)
"""Periods of the daily angle that are in use; None means the length of the year."""


@dataclass(frozen=True)
class _Convention:
    """Convention of the calendar channels: angle = 2 pi day / period, and 2 pi month / 12."""

    period: float | None
    """Period in days; None means the length of the year."""
    first_day: int
    """Number of January 1, 0 or 1."""
    first_month: int
    """Number of January, 0 or 1."""

    def __str__(self) -> str:
        period = "the year's length" if self.period is None else f"{self.period:g}"
        return f"period {period}, January 1 = {self.first_day}, January = {self.first_month}"


@dataclass(frozen=True)
class _Calendar:
    """Calendar channels as angles, each (n, days)."""

    year: NDArray[np.int64]
    """Year, counted from YEARS.start."""
    day_turn: NDArray[np.float64]
    """Angle of the day in turns, in [0, 1]."""
    month_turn: NDArray[np.float64]
    """Angle of the month in turns, in [0, 1]."""
    valid: NDArray[np.bool_]
    """Mask of days whose channels are sines, cosines and years."""

    @classmethod
    def of(cls, channels: dict[str, NDArray[np.floating]]) -> "_Calendar":
        """Convert the channels `CALENDAR` and `year`, each (n, days)."""
        wide = {name: values.astype(np.float64) for name, values in channels.items()}
        valid = np.ones(wide["year"].shape, bool)
        turns = []
        for name in ("day", "month"):
            cos, sin = wide[f"{name}_cos"], wide[f"{name}_sin"]
            valid &= np.abs(np.hypot(cos, sin) - 1) < 0.01  # scaled channels are off the unit circle
            turns.append(np.arctan2(sin, cos) / (2 * np.pi) % 1)
        year = np.rint(wide["year"])
        valid &= (np.abs(wide["year"] - year) < 0.01) & (year >= YEARS.start) & (year < YEARS.stop)
        day_turn, month_turn = (np.where(valid, turn, 0) for turn in turns)
        year = np.where(valid, year, 2000)
        return cls(year.astype(np.int64) - YEARS.start, day_turn, month_turn, valid)

    def dates(self, convention: _Convention) -> NDArray[np.int32]:
        """Compute days since 1970-01-01, with _NO_DAY where the convention does not fit."""
        length = _LENGTH[self.year]
        period = length if convention.period is None else convention.period
        month = np.rint(self.month_turn * 12)
        exact_month = self.valid & (np.abs(self.month_turn * 12 - month) < 0.01)
        month = (month.astype(np.int64) - convention.first_month) % 12
        dates = np.full(month.shape, _NO_DAY, np.int32)
        # An angle gives the day up to full turns: day 366 of period 365 is day 1, and -0.0 is day 365.
        for turns in (-1, 0, 1):
            exact = (self.day_turn + turns) * period
            day = np.rint(exact)
            fits = exact_month & (np.abs(exact - day) < TOLERANCE_DAYS)
            of_year = day.astype(np.int64) - convention.first_day
            fits &= (of_year >= 0) & (of_year < length)
            fits &= _MONTH[length - 365, np.clip(of_year, 0, 365)] == month
            dates[fits] = (_JANUARY[self.year] + of_year)[fits]
        return dates


def _first_days(dates: NDArray[np.int32], held: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Return the first day of each window (n,), the median over its days, and how many days agree with it."""
    good = held & (dates != _NO_DAY)
    first = np.where(good, dates - np.arange(dates.shape[1], dtype=np.int32), _NO_DAY)
    middle = np.maximum(good.sum(axis=1) - 1, 0) // 2
    median = np.take_along_axis(np.sort(first, axis=1), middle[:, None], axis=1)
    return median[:, 0], int((good & (first == median)).sum())


def _rounded(path: Path, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Check places (n, 2) in degrees, and round them to PLACE_DECIMALS."""
    for name, value, limit in (("lat", places[:, 0], 90), ("lon", places[:, 1], 180)):
        outside = ~(np.abs(value) <= limit)  # true for NaN too
        if outside.any():
            sample = int(np.argmax(outside))
            problem = f"{value[sample]:g} is not in -{limit}..{limit}"
            fix = "give unscaled degrees, latitude before longitude"
            raise InputError(str(path), f"sample {sample}, {name}", problem, fix)
    return np.round(places, PLACE_DECIMALS) + 0.0  # no negative zero


def _chunks(array: NDArray[np.floating]) -> Iterator[tuple[slice, NDArray[np.floating]]]:
    """Yield slices of CHUNK rows, with a copy of each in memory."""
    for start in range(0, len(array), CHUNK):
        rows = slice(start, min(start + CHUNK, len(array)))
        yield rows, np.array(array[rows])


def _apart(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Mask of values that differ by more than float32 noise; NaN equals NaN only."""
    apart = a != b
    apart[apart] = ~np.isclose(a[apart], b[apart], rtol=1e-4, atol=1e-6, equal_nan=True)
    return apart


def _day(day: int) -> np.datetime64:
    """Convert days since 1970-01-01 to a date."""
    return np.datetime64(int(day), "D")
