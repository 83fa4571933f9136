"""Converts the columns of an Arrow table to NumPy arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_numeric(kind: pa.DataType) -> bool:
    """Tell whether a column of this type is read as numbers; bool is, and so is a column of nulls."""
    return bool(
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
    )


def unparsed_rows(column: pa.ChunkedArray, kind: pa.DataType) -> np.ndarray:
    """Rows (from 1) whose value, as a string, cannot be converted to the type `kind`."""
    encoded = pc.dictionary_encode(pc.cast(column, pa.string())).combine_chunks()

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
    """Convert a column to float64, with NaN for null."""
    return pc.cast(column, pa.float64(), safe=False).to_numpy()


def as_text(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to an array of str, with an empty string for null."""
    encoded = pc.dictionary_encode(pc.fill_null(pc.cast(column, pa.string()), "")).combine_chunks()
    return np.array(encoded.dictionary.to_pylist(), dtype=str)[encoded.indices.to_numpy()]


def as_days(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to days since 1970-01-01 (int64), with 0 for null. Raises pa.ArrowException."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        raise pa.ArrowInvalid("the column contains numbers")
    day = pc.cast(pc.cast(column, pa.date32(), safe=False), pa.int32())
    return pc.fill_null(day, 0).to_numpy().astype(np.int64)


def site_codes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each row's site, and the names of the sites, ascending."""
    encoded = pc.dictionary_encode(pc.cast(table["site_id"], pa.string())).combine_chunks()
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
