"""The panel: daily PM2.5 and covariates as arrays over site, day and channel."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pm25 import uri
from pm25.domain import conus_land
from pm25.errors import InputError
from pm25.tables import column_map
from pm25.tables.check import check
from pm25.tables.column_map import NO_MAP, ColumnMap, read_mapped
from pm25.tables.columns import as_days, as_float, as_text, first_rows, site_codes
from pm25.tables.schema import CALENDAR
from pm25.tables.sites import site_places


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
    left_out: tuple[str, ...] = ()
    """Columns of numbers that are no default channels, with the reasons; empty if the channels were named."""
    doubts: tuple[str, ...] = ()
    """Columns and values of the channels and the target that are probably wrong."""
    domain: np.ndarray | None = None
    """Latitudes and longitudes (m, 2) of the prediction domain; None for the land of CONUS."""
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
    def prediction_places(self) -> np.ndarray:
        """Latitudes and longitudes (m, 2) of the prediction domain."""
        return conus_land() if self.domain is None else self.domain

    def fingerprint_with_domain(self) -> str:
        """Compute a hash of the content and of the prediction domain, on which a kNNDM split depends.

        The domain is not part of `fingerprint`, so that another domain changes no other cell's key.
        """
        if self.domain is None:
            return self.fingerprint
        domain = np.ascontiguousarray(self.domain, np.float64).tobytes()
        return hashlib.blake2b(self.fingerprint.encode() + domain, digest_size=16).hexdigest()

    def with_channel_order(self, channels: Sequence[str]) -> "Panel":
        """Return the same panel with its channels in another order."""
        index = [self.channels.index(channel) for channel in channels]
        return replace(self, features=self.features[:, :, index], channels=tuple(channels))

    @property
    def observed(self) -> int:
        """Number of site-days with a target."""
        return int(np.isfinite(self.target).sum())

    def samples(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the sites and days (both int32, site-major) of observed targets that end a complete window."""
        site, day = np.nonzero(np.isfinite(self.target[:, window - 1 :]))
        return site.astype(np.int32), (day + window - 1).astype(np.int32)


def read(
    path: Path | str,
    channels: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    columns: ColumnMap = NO_MAP,
) -> Panel:
    """Read a table with one row per site and day: Parquet or text, at a path or a URI.

    `channels` names the columns to feed to the model, in order. None means every numeric column that is a
    covariate (the others are in `Panel.left_out`), then the calendar. `groups` names columns that group
    sites, such as their state. They are read as strings, and are not channels unless `channels` names them.
    `columns` renames columns of the file: `{"pm25": "PM2.5"}` reads the column PM2.5 as pm25. Raises
    InputError for the first problem that `check` finds.
    """
    table = read_mapped(path, channels, groups, columns)
    return from_table(table, str(path), channels, groups, columns=columns)


def site_values(path: Path | str, names: Sequence[str], columns: ColumnMap = NO_MAP) -> dict[str, np.ndarray]:
    """Read columns that describe the sites of a table, such as their setting: text by column, (sites,).

    The sites are in the order of `Panel.site_id`. A site without a value has the empty text. Raises
    InputError for a column that the table does not have, and for a site with two values.
    """
    table = read_mapped(path, [], names, columns)
    code, sites = site_codes(table)
    found = {}
    for name in names:
        if name not in table.column_names:
            fix = f"name one of {', '.join(table.column_names)}"
            raise InputError(str(path), name, "no such column", fix)
        value = as_text(table[name])
        order = np.argsort(value == "", kind="stable")  # rows with a value first
        _, first = np.unique(code[order], return_index=True)
        found[name] = own = value[order][first]
        varies = (value != "") & (value != own[code])
        if varies.any():
            row = int(np.argmax(varies))
            problem = f"site {sites[code[row]]} has both {str(own[code[row]])!r} and {str(value[row])!r}"
            raise InputError(str(path), name, problem, "give a site the same value on all its days")
    return found


def from_table(
    table: pa.Table,
    source: str,
    channels: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    *,
    columns: ColumnMap = NO_MAP,
    grid: bool = False,
) -> Panel:
    """Convert a table to arrays. Raises InputError, which names `source`, for the first problem found.

    `columns` is the map that has renamed the table's columns, which errors name as they are in the file.
    With `grid`, the sites are the cells of a grid, which need no target (`check`).
    """
    name = uri.file_name(source)
    found = check(table, name, channels, groups, source=source, columns=columns, grid=grid)
    if found.problems:
        first, more = found.problems[0], len(found.problems) - 1
        command = f"`sweep data check {source}{column_map.flags(columns)}`"
        rest = f"; run {command} to see {more} more" if more and not grid else ""
        field = column_map.with_source(first.column, columns)
        problem = first.what if grid else first.problem  # a block of a grid has row numbers of its own
        raise InputError(source, field, problem, first.fix + rest)
    assert found.table is not None  # it is given if there is no problem
    table, channels = found.table, [channel.name for channel in found.channels]
    code, sites = site_codes(table)
    day = as_days(table["date"])
    start, days = int(day.min()), int(day.max() - day.min()) + 1
    dates = np.arange(start, start + days).astype("datetime64[D]")
    day = day - start
    target = np.full((len(sites), days), np.nan, np.float32)
    target[code, day] = as_float(table["pm25"])
    features = np.full((len(sites), days, len(channels)), np.nan, np.float32)
    for index, channel in enumerate(channels):
        if channel in table.column_names:
            features[code, day, index] = as_float(table[channel])
        else:
            features[:, :, index] = _calendar(channel, dates)
    rows = first_rows(code, len(sites))
    lat, lon = site_places(as_float(table["lat"]), as_float(table["lon"]), code, len(sites))
    grouped = {column: as_text(table[column].take(pa.array(rows))) for column in groups}
    notes = (
        tuple(str(column_map.as_in_file(one, columns)) for one in listed)
        for listed in (found.left_out, found.doubts)
    )
    left_out, doubts = notes
    return Panel(features, target, lat, lon, sites, dates, tuple(channels), name, grouped, left_out, doubts)


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
