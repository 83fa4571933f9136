"""The panel: daily PM2.5 and covariates as arrays over site, day and channel."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from pm25 import uri
from pm25.errors import InputError, one_line
from pm25.geo import CONUS, inside_conus

REQUIRED = ("site_id", "date", "lat", "lon", "pm25")
"""Columns that every table must have."""
CALENDAR = ("day_cos", "day_sin", "month_cos", "month_sin")
"""Channels computed from the date if the table has no column of that name."""
MIN_DAYS = 21
"""Fewest days of a table: one window of the default length."""
MAX_DAYS = 36_525
"""Most days of a table: a century. A longer table has a mistyped year, and all days between need memory."""

LEAVE_EMPTY = "leave it empty where the value is missing"
"""Fix for a value that is not a number."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Arrays of one table. A sample is a pair (site, day); its window is gathered only when it is needed."""

    features: np.ndarray
    """(sites, days, channels) float32, NaN where missing."""
    target: np.ndarray
    """(sites, days) float32, PM2.5 in ug/m3, NaN where unobserved."""
    lat: np.ndarray
    """(sites,) float64, degrees north."""
    lon: np.ndarray
    """(sites,) float64, degrees east."""
    site_id: np.ndarray
    """(sites,) str, ascending."""
    dates: np.ndarray
    """(days,) datetime64[D], every day from the first to the last."""
    channels: tuple[str, ...]
    """Names of the channels, in the order of `features`."""
    name: str
    """Name of the data in reports: a file name."""
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Group of each site, (sites,) str, for each column that a split uses; keyed by column name."""
    fingerprint: str = field(init=False)
    """Hash of the content; it does not depend on the order of rows or the file format."""

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.features, self.target, self.lat, self.lon):
            # Every NaN gets the same bit pattern, and negative zero becomes zero.
            part = np.where(np.isnan(part), np.float32("nan"), part + 0).astype(part.dtype)
            digest.update(repr((part.shape, part.dtype.str)).encode())
            digest.update(np.ascontiguousarray(part).data)
        names = (self.site_id.tolist(), str(self.dates[0]), self.channels)
        digest.update(repr(names).encode())
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def fingerprint_by(self, group: str | None) -> str:
        """Compute a hash of the content and of one group column, on which a split by that column depends.

        Groups are not part of `fingerprint`, so that a new split by a group changes no other cell's key.
        """
        if group is None:
            return self.fingerprint
        groups = repr((group, self.groups[group].tolist())).encode()
        return hashlib.blake2b(self.fingerprint.encode() + groups, digest_size=16).hexdigest()

    @property
    def observed(self) -> int:
        """Number of site-days with a target."""
        return int(np.isfinite(self.target).sum())

    def samples(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the sites and days (both int32, site-major) of observed targets that end a complete window."""
        site, day = np.nonzero(np.isfinite(self.target[:, window - 1 :]))
        return site.astype(np.int32), (day + window - 1).astype(np.int32)


def read(path: Path | str, channels: Sequence[str] | None = None, groups: Sequence[str] = ()) -> Panel:
    """Read a Parquet or CSV table with one row per site and day, at a path or a URI.

    `channels` names the columns to feed to the model, in order. None means every numeric column except
    the required ones, then the calendar. `groups` names columns that group sites, such as their state. They
    are read as strings, and are not channels unless `channels` names them. Raises InputError for the first
    problem that `check` finds.
    """
    return from_table(read_table(path, channels, groups), str(path), channels, groups)


def read_table(
    path: Path | str, channels: Sequence[str] | None = None, groups: Sequence[str] = ()
) -> pa.Table:
    """Read the table without checking it. With `channels`, read only the columns that they and `groups` need.

    Raises InputError if the file cannot be read.
    """
    name, file = uri.file_name(path), _opener(path)
    try:
        if name.endswith(".csv"):
            # Strings keep the leading zeros of a site_id; an empty string is a missing value.
            kinds = dict.fromkeys(["site_id", *(c for c in groups if c not in REQUIRED)], pa.string())
            text = pyarrow.csv.ConvertOptions(column_types=kinds, strings_can_be_null=True)
            table = pyarrow.csv.read_csv(file(), convert_options=text)
            return table.rename_columns(table.column_names)  # raises UnicodeDecodeError unless they are UTF-8
        columns = None
        if channels is not None:
            present = set(pyarrow.parquet.read_schema(file()).names)
            needed = {*REQUIRED, *channels, *groups} - (set(CALENDAR) - present)
            if needed <= present:  # else all columns are read, so that the error can list them
                columns = list(needed)
        return pyarrow.parquet.read_table(file(), columns=columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        problem = f"cannot be read as {Path(name).suffix[1:] or 'parquet'} ({reason})"
        raise InputError(str(path), "", problem, "write it again") from None


def _opener(path: Path | str) -> Callable[[], Any]:
    """Return a function whose value pyarrow can read, each time from the beginning."""
    give = f"give a Parquet or CSV file with columns {', '.join(REQUIRED)}"
    missing = InputError(str(path), "", "no such table", give)
    if not uri.is_uri(path):
        if not Path(path).is_file():
            raise missing
        return lambda: path
    try:
        content = uri.read(path)
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise uri.unreadable(path, error) from None
    return lambda: pa.BufferReader(content)


@dataclass(frozen=True)
class Problem:
    """One kind of problem in a table, with every row that has it."""

    column: str
    """Name of the column, or of several, separated by a comma."""
    what: str
    """Problem with the value that was found."""
    fix: str = ""
    """Instruction for the user; empty for a notice."""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows, counted from 1 for the first row of data; empty if the problem concerns the complete column."""

    @property
    def problem(self) -> str:
        """Description of the problem, with the first of its rows."""
        shown = ", ".join(map(str, self.rows[:5]))
        dots = f", ... {len(self.rows)} rows in all" if len(self.rows) > 5 else ""
        return f"{self.what} (row {shown}{dots})" if len(self.rows) else self.what

    def __str__(self) -> str:
        return one_line("", self.column, self.problem, self.fix)


@dataclass(frozen=True)
class Check:
    """Problems and counts of a table."""

    problems: list[Problem]
    """Problems; a table with any of them cannot be used."""
    notices: list[Problem]
    """Facts that the user should know; they do not prevent the table's use."""
    counts: dict[str, int | float | str]
    """Counts and ranges, such as sites, days and observed values."""


def channels_of(table: pa.Table, groups: Sequence[str] = ()) -> list[str]:
    """Default channels: all numeric columns except places, dates, targets, identifiers and groups."""
    taken = {*REQUIRED, "param", "county_fips", *groups}
    numeric = [f.name for f in table.schema if f.name not in taken and _is_numeric(f.type)]
    return numeric + [name for name in CALENDAR if name not in numeric]


def check(
    table: pa.Table, name: str, channels: Sequence[str] | None = None, groups: Sequence[str] = ()
) -> Check:
    """Find every problem of `table`. Without `channels`, every column is checked as a possible channel."""
    notices: list[Problem] = []
    counts: dict[str, int | float | str] = {"table": name, "rows": table.num_rows}
    problems = _check_columns(table)
    if problems:
        return Check(problems, notices, counts)
    problems += _check_numbers(table, channels, groups, notices)
    problems += _check_keys(table)
    if problems:
        return Check(problems, notices, counts)

    day = _days(table["date"])
    code, sites = _site_codes(table)
    lat, lon, target = (_float(table[c]) for c in ("lat", "lon", "pm25"))
    misplaced = _check_places(lat, lon)
    problems += misplaced
    problems += _check_moves(lat, lon, code, sites)
    problems += _check_groups(table, groups, code, sites)
    problems += _check_days(day, code, sites)
    observed = np.isfinite(target)
    first, last = (np.datetime64(int(end), "D") for end in (day.min(), day.max()))
    counts |= {
        "sites": len(sites),
        "days": int(day.max() - day.min()) + 1,
        "first_day": str(first),
        "last_day": str(last),
        "observed": int(observed.sum()),
    }
    if not observed.any():
        problems.append(Problem("pm25", "all values are null", "give the target in ug/m3"))
        return Check(problems, notices, counts)

    negative = observed & (target < 0)
    counts |= {
        "pm25_mean": round(float(target[observed].mean()), 2),
        "pm25_max": round(float(target[observed].max()), 2),
        "negative": int(negative.sum()),
    }
    if negative.any():
        what = f"{int(negative.sum())} negative values, the lowest {target[negative].min():g}, are kept"
        notices.append(
            Problem("pm25", f"{what}; monitors read slightly below zero in clean air", rows=_rows(negative))
        )
    silent = len(sites) - len(np.unique(code[observed]))
    if silent:
        notices.append(Problem("pm25", f"{silent} sites have no observation and are not used"))
    outside = ~inside_conus(lat, lon)
    if outside.any() and not misplaced:
        what = f"{len(np.unique(code[outside]))} sites outside CONUS are left out of checkerboards and blocks"
        notices.append(Problem("lat, lon", what))
    return Check(problems, notices, counts)


def from_table(
    table: pa.Table, source: str, channels: Sequence[str] | None = None, groups: Sequence[str] = ()
) -> Panel:
    """Convert a table to arrays. Raises InputError, which names `source`, for the first problem found."""
    name = uri.file_name(source)
    found = check(table, name, channels, groups)
    if found.problems:
        first, more = found.problems[0], len(found.problems) - 1
        rest = f"; run `sweep data check {source}` to see {more} more" if more else ""
        raise InputError(source, first.column, first.problem, first.fix + rest)
    channels = list(channels) if channels is not None else channels_of(table, groups)
    code, sites = _site_codes(table)
    day = _days(table["date"])
    start, days = int(day.min()), int(day.max() - day.min()) + 1
    dates = np.arange(start, start + days).astype("datetime64[D]")
    day = day - start
    target = np.full((len(sites), days), np.nan, np.float32)
    target[code, day] = _float(table["pm25"])
    features = np.full((len(sites), days, len(channels)), np.nan, np.float32)
    for index, channel in enumerate(channels):
        if channel in table.column_names:
            features[code, day, index] = _float(table[channel])
        else:
            features[:, :, index] = _calendar(channel, dates)
    rows = _first_of(code, len(sites))
    lat, lon = (_float(table[c])[rows] for c in ("lat", "lon"))
    grouped = {column: _text(table[column].take(pa.array(rows))) for column in groups}
    return Panel(features, target, lat, lon, sites, dates, tuple(channels), name, grouped)


def _check_columns(table: pa.Table) -> list[Problem]:
    """Find missing and repeated columns, and a table without rows."""
    has = ", ".join(table.column_names)
    missing = [column for column in REQUIRED if column not in table.column_names]
    problems = [Problem(column, "column is missing", f"add it; the table has {has}") for column in missing]
    for column in dict.fromkeys(table.column_names):
        if table.column_names.count(column) > 1:
            problems.append(Problem(column, "two columns have this name", "keep one of them"))
    if table.num_rows == 0:
        fix = f"give {MIN_DAYS} or more days of one site"
        problems.append(Problem("site_id", "the table has no rows", fix))
    return problems


def _check_keys(table: pa.Table) -> list[Problem]:
    """Find sites and dates that are missing, and dates that cannot be read."""
    problems = []
    for column in ("site_id", "date"):
        null = _rows(pc.is_null(table[column]))
        if len(null):
            problems.append(Problem(column, "value is missing", "fill it in or drop the row", null))
    try:
        _days(table["date"])
    except pa.ArrowException as error:
        text = _unparsed_rows(table["date"], pa.date32())
        what = f"{table['date'][int(text[0]) - 1].as_py()!r}" if len(text) else str(error).splitlines()[0]
        problems.append(Problem("date", f"not a date ({what})", "write dates as YYYY-MM-DD", text))
    return problems


def _check_moves(lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: np.ndarray) -> list[Problem]:
    """Find sites with more than one place."""
    first = _first_of(code, len(sites))
    moved = (lat != lat[first][code]) | (lon != lon[first][code])
    if not moved.any():
        return []
    names = ", ".join(dict.fromkeys(sites[code[moved]][:1000]))[:80]
    fix = "give each place a site_id of its own"
    return [Problem("lat, lon", f"several places for site {names}", fix, _rows(moved))]


def _check_days(day: np.ndarray, code: np.ndarray, sites: np.ndarray) -> list[Problem]:
    """Find repeated site-days, and a table of too few or too many days."""
    problems = []
    order = np.lexsort((np.arange(len(code)), day, code))
    again = np.zeros(len(code), bool)
    again[order[1:]] = (np.diff(code[order]) == 0) & (np.diff(day[order]) == 0)
    if again.any():
        row = int(np.argmax(again))
        first = f"{sites[code[row]]} {np.datetime64(int(day[row]), 'D')}"
        what = f"{int(again.sum())} duplicate site-days, the first {first}"
        problems.append(Problem("site_id, date", what, "keep one row for each site and day", _rows(again)))
    span = int(day.max() - day.min()) + 1
    if span < MIN_DAYS:
        problems.append(Problem("date", f"only {span} days", f"give {MIN_DAYS} or more, for one window"))
    if span > MAX_DAYS:
        ends = " to ".join(str(np.datetime64(int(end), "D")) for end in (day.min(), day.max()))
        what = f"{span} days, {ends}, but at most {MAX_DAYS} are allowed"
        problems.append(Problem("date", what, "fix the year that is wrong"))
    return problems


def _check_numbers(
    table: pa.Table, channels: Sequence[str] | None, groups: Sequence[str], notices: list[Problem]
) -> list[Problem]:
    """Find strings, infinities and missing values in columns of numbers; add notices to `notices`."""
    problems = []
    if channels is None:
        others = [c for c in table.column_names if c not in REQUIRED and c not in groups]
    else:
        others = [c for c in channels if c in table.column_names or c not in CALENDAR]
        for column in sorted({*channels} & {*REQUIRED}):
            what = "the target, the place and the date cannot be channels"
            problems.append(Problem(column, what, "leave it out of data.channels"))
            others.remove(column)
    for column in ("lat", "lon", "pm25", *others):
        if column not in table.column_names:
            fix = f"choose data.channels among {', '.join(channels_of(table))}"
            problems.append(Problem(column, "the table has no such channel", fix))
        elif not _is_numeric(table[column].type):
            text = _unparsed_rows(table[column], pa.float64())
            must = channels is not None or column in REQUIRED
            if len(text) and (must or len(text) <= 0.5 * table.num_rows):
                value = table[column][int(text[0]) - 1].as_py()
                problems.append(Problem(column, f"{value!r} is not a number", LEAVE_EMPTY, text))
            elif channels is None:
                notices.append(Problem(column, "not numeric, so not a channel"))
        else:
            bad = np.flatnonzero(np.isinf(_float(table[column]))) + 1
            if len(bad):
                problems.append(Problem(column, "value is infinite", LEAVE_EMPTY, bad))
    for column in ("lat", "lon"):
        if _is_numeric(table[column].type):
            null = np.flatnonzero(np.isnan(_float(table[column]))) + 1
            if len(null):
                problems.append(
                    Problem(column, "value is missing", "give every row its place in degrees", null)
                )
    return problems


def _check_groups(
    table: pa.Table, groups: Sequence[str], code: np.ndarray, sites: np.ndarray
) -> list[Problem]:
    """Find group columns without exactly one value for each site."""
    problems = []
    first = _first_of(code, len(sites))
    for column in groups:
        if column not in table.column_names:
            fix = f"group by one of {', '.join(table.column_names)}"
            problems.append(Problem(column, "group column is missing", fix))
            continue
        value = _text(table[column])
        empty = value == ""
        varies = (value != value[first][code]) & ~empty & ~empty[first][code]
        if empty.any():
            who = sites[code[empty][0]]
            fix = "give every site its group, on each of its rows"
            problems.append(Problem(column, f"value is missing for site {who}", fix, _rows(empty)))
        if varies.any():
            row = int(np.argmax(varies))
            both = f"{str(value[first][code[row]])!r} and {str(value[row])!r}"
            fix = "give a site the same group on all its days"
            problems.append(Problem(column, f"site {sites[code[row]]} has both {both}", fix, _rows(varies)))
    return problems


def _check_places(lat: np.ndarray, lon: np.ndarray) -> list[Problem]:
    """Find coordinates outside the globe, and latitude swapped with longitude."""
    west, south, east, north = CONUS
    swapped = (lon > south) & (lon < north) & (lat > west) & (lat < east)
    if swapped.any():
        what = f"lat {lat[swapped][0]:g}, lon {lon[swapped][0]:g} look swapped"
        return [Problem("lat, lon", what, "store latitude, -90..90, in the column lat", _rows(swapped))]
    problems = []
    for column, value, limit in (("lat", lat, 90), ("lon", lon, 180)):
        out = np.abs(value) > limit
        if out.any():
            what = f"{value[out][0]:g} is out of range"
            problems.append(Problem(column, what, f"give degrees in -{limit}..{limit}", _rows(out)))
    return problems


def _is_numeric(kind: pa.DataType) -> bool:
    """Tell whether a column of this type is read as numbers; bool is, and so is a column of nulls."""
    return bool(
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
    )


def _unparsed_rows(column: pa.ChunkedArray, kind: pa.DataType) -> np.ndarray:
    """Rows (from 1) whose value, as a string, cannot be converted to the type `kind`."""
    encoded = pc.dictionary_encode(pc.cast(column, pa.string())).combine_chunks()

    def is_bad(value: pa.StringScalar) -> bool:
        try:
            value.cast(kind)
        except pa.ArrowInvalid:
            return True
        return False

    bad = np.array([*map(is_bad, encoded.dictionary), False])
    return _rows(bad[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)])


def _rows(mask: np.ndarray | pa.ChunkedArray) -> np.ndarray:
    """Rows (from 1) where `mask` is true."""
    mask = mask if isinstance(mask, np.ndarray) else pc.fill_null(mask, False).to_numpy()
    return np.flatnonzero(mask) + 1


def _float(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to float64, with NaN for null."""
    return pc.cast(column, pa.float64(), safe=False).to_numpy()


def _text(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to an array of str, with an empty string for null."""
    encoded = pc.dictionary_encode(pc.fill_null(pc.cast(column, pa.string()), "")).combine_chunks()
    return np.array(encoded.dictionary.to_pylist(), dtype=str)[encoded.indices.to_numpy()]


def _days(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to days since 1970-01-01 (int64), with 0 for null. Raises pa.ArrowException."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        raise pa.ArrowInvalid("the column contains numbers")
    day = pc.cast(pc.cast(column, pa.date32(), safe=False), pa.int32())
    return pc.fill_null(day, 0).to_numpy().astype(np.int64)


def _site_codes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each row's site, and the names of the sites, ascending."""
    encoded = pc.dictionary_encode(pc.cast(table["site_id"], pa.string())).combine_chunks()
    names = np.array(encoded.dictionary.to_pylist(), dtype=str)
    order = np.argsort(names, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], names[order]


def _first_of(code: np.ndarray, sites: int) -> np.ndarray:
    """Return the first row (from 0) of each site."""
    first = np.empty(sites, np.int64)
    first[code[::-1]] = np.arange(len(code))[::-1]
    return first


def is_calendar(channel: str, values: np.ndarray, dates: np.ndarray) -> bool:
    """Return True if `values` (sites, days) are those that the date gives for a channel of this name."""
    return channel in CALENDAR and bool((values == _calendar(channel, dates).astype(np.float32)).all())


def _calendar(channel: str, dates: np.ndarray) -> np.ndarray:
    """Sine or cosine of the day of the year or of the month, (days,)."""
    if channel.startswith("day"):
        turn = (dates - dates.astype("datetime64[Y]")).astype(int) / 365.25
    else:
        turn = dates.astype("datetime64[M]").astype(int) % 12 / 12
    wave = np.cos if channel.endswith("cos") else np.sin
    return wave(2 * np.pi * turn)
