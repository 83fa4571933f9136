"""Converts the columns of an Arrow table to NumPy arrays."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pm25.errors import InputError
from pm25.tables.dates import read_days
from pm25.tables.plain import is_text, plain, plain_type, type_name


def refuse_repeated(path: Path | str, wanted: Iterable[str], names: Sequence[str]) -> None:
    """Raise InputError if one of the wanted columns exists more than once among the names of a table."""
    for name in dict.fromkeys(wanted):
        if names.count(name) > 1:
            problem = f"{names.count(name)} columns have this name"
            raise InputError(str(path), name, problem, "rename all but one")


def is_numeric(kind: pa.DataType) -> bool:
    """Tell whether a column of this type is read as numbers; bool is, and so is a column of nulls."""
    kind = plain_type(kind)
    return bool(
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
    )


def unparsed_rows(column: pa.ChunkedArray, kind: pa.DataType) -> np.ndarray:
    """Rows (from 1) whose value, as a string, cannot be converted to the type `kind`.

    These are all rows with a value if the column does not contain text, such as a column of lists.
    """
    if not is_text(column.type):
        return rows_of(pc.is_valid(plain(column)))
    encoded = pc.dictionary_encode(pc.utf8_trim_whitespace(as_strings(column))).combine_chunks()

    def is_bad(value: pa.StringScalar) -> bool:
        try:
            value.cast(kind)
        except pa.ArrowInvalid:
            return True
        return False

    bad = np.array([*map(is_bad, encoded.dictionary), False])
    return rows_of(bad[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)])


def rows_of(mask: np.ndarray | pa.ChunkedArray) -> np.ndarray:
    """Rows (from 1) where `mask` is true."""
    mask = mask if isinstance(mask, np.ndarray) else pc.fill_null(mask, False).to_numpy()
    return np.flatnonzero(mask) + 1


def as_float(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to float64, with NaN for null. Raises pa.ArrowException if it has other values."""
    column = plain(column)
    if column.null_count == len(column):
        return np.full(len(column), np.nan)
    if is_text(column.type):
        column = pc.utf8_trim_whitespace(column)
    return pc.cast(column, pa.float64(), safe=False).to_numpy()


def as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column to Arrow strings. Raises pa.ArrowException for lists, maps and other encodings."""
    return pc.cast(plain(column), pa.large_string())


def as_text(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to an array of str, with an empty string for null. Raises pa.ArrowException."""
    encoded = pc.dictionary_encode(pc.fill_null(as_strings(column), "")).combine_chunks()
    return np.array(encoded.dictionary.to_pylist(), dtype=str)[encoded.indices.to_numpy()]


def as_days(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to days since 1970-01-01 (int64), with 0 for null. Raises pa.ArrowException."""
    days = read_days(column)
    if days.unread.any():
        raise pa.ArrowInvalid("the column contains other values than dates")
    return days.day


def shown(column: pa.ChunkedArray, row: int) -> str:
    """Value in a row (from 1) as an error shows it: in one line of at most 60 characters."""
    try:
        text = repr(column[row - 1].as_py())
    except (ValueError, OverflowError, NotImplementedError):  # text in another encoding, or a year past 9999
        text = f"a value of type {type_name(column.type)}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def site_codes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each row's site, and the names of the sites, ascending."""
    encoded = pc.dictionary_encode(as_strings(table["site_id"])).combine_chunks()
    names = np.array(encoded.dictionary.to_pylist(), dtype=str)
    order = np.argsort(names, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], names[order]


def first_rows(code: np.ndarray, sites: int) -> np.ndarray:
    """Return the first row (from 0) of each site."""
    first = np.empty(sites, np.int64)
    first[code[::-1]] = np.arange(len(code))[::-1]
    return first
