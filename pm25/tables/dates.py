"""Reads the days of a date column: dates, timestamps, text or numbers of the form yyyymmdd."""

import re
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pm25.tables.plain import is_text, plain, type_name

_EPOCH = date(1970, 1, 1).toordinal()
_TIME = r"(?:[01]\d|2[0-3]):?[0-5]\d(?::?[0-5]\d(?:[.,]\d+)?)?"
_ZONE = r"(?![AP]M\b)[A-Za-z][\w/+-]*|[+-]\d\d(?::?\d\d)?"
_TEXT = re.compile(
    rf"\s*(\d{{4}})([-/]?)(\d\d)\2(\d\d)(?:\.0+)?(?:[T ]\s*({_TIME})\s*({_ZONE})?)?\s*", re.ASCII
)


class Days(NamedTuple):
    """Days of a column."""

    day: np.ndarray
    """Days since 1970-01-01, int64; 0 where the value is null or is not a date."""
    unread: np.ndarray
    """True where the value is not a date."""
    cut: np.ndarray
    """True where the value has a time of day other than midnight, which is left out."""
    zone: str
    """Time zone of the values; empty if they have none."""


def read_days(column: pa.ChunkedArray) -> Days:
    """Read the day of each value, as it is written or shown in its own time zone.

    Raises pa.ArrowException if the column's type cannot contain dates, or if its time zone is unknown.
    """
    column = plain(column)
    kind = column.type
    none = np.zeros(len(column), bool)
    if pa.types.is_null(kind):
        return Days(np.zeros(len(column), np.int64), none, none, "")
    if pa.types.is_date(kind):
        return Days(_numbers(pc.cast(column, pa.date32(), safe=False)), none, none, "")
    if pa.types.is_timestamp(kind):
        local = pc.local_timestamp(column) if kind.tz else column
        day = pc.cast(local, pa.date32(), safe=False)
        cut = pc.fill_null(pc.not_equal(local, pc.cast(day, local.type)), False).to_numpy()
        return Days(_numbers(day), none, cut, kind.tz or "")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _read_numbers(pc.cast(column, pa.float64(), safe=False).to_numpy())
    if is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _read_text(column)
    raise pa.ArrowInvalid(f"the column contains {type_name(kind)}")


def _numbers(day: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.cast(day, pa.int32()), 0).to_numpy().astype(np.int64)


def _read_numbers(value: np.ndarray) -> Days:
    """Read numbers of the form yyyymmdd; NaN is a missing value."""
    missing = np.isnan(value)
    inside = np.where((value >= 1000_01_01) & (value <= 9999_12_31), value, 0)
    whole = np.where(inside == np.floor(inside), inside, 0).astype(np.int64)
    year, month, day = whole // 10_000, whole // 100 % 100, whole % 100
    first = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    found = first.astype("datetime64[D]") + (day - 1)
    good = (whole > 0) & (month >= 1) & (month <= 12) & (day >= 1) & (found.astype("datetime64[M]") == first)
    return Days(np.where(good, found.astype(np.int64), 0), ~good & ~missing, np.zeros(len(value), bool), "")


def _read_text(column: pa.ChunkedArray) -> Days:
    """Read text in ISO 8601, with or without a time, or of the form yyyymmdd or yyyy/mm/dd."""
    encoded = pc.dictionary_encode(pc.cast(column, pa.large_string())).combine_chunks()
    day, unread, cut = [], [], []
    zones: dict[str, None] = {}
    for text in encoded.dictionary.to_pylist():
        found = _TEXT.fullmatch(text)
        try:
            ordinal = date(*(int(found[part]) for part in (1, 3, 4))).toordinal() - _EPOCH if found else None
        except ValueError:
            ordinal = None
        day.append(ordinal or 0)
        unread.append(ordinal is None)
        cut.append(bool(found and found[5] and found[5].strip("0:.,")))
        if found and found[6]:
            zones[found[6]] = None
    index = pc.fill_null(encoded.indices, len(day)).to_numpy(zero_copy_only=False)
    zone = next(iter(zones), "") + (f" and {len(zones) - 1} more" if len(zones) > 1 else "")
    return Days(
        np.array([*day, 0], np.int64)[index],
        np.array([*unread, False])[index],
        np.array([*cut, False])[index],
        zone,
    )
