"""Converts columns of every Arrow type to the few types that the checks read."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pm25.text import parse_json

_PERIOD = "pandas.period"
"""Extension type of pandas.Period. Arrow knows it only after pandas is imported."""


def plain_table(table: pa.Table) -> pa.Table:
    """Convert all columns of a table that was read from a file.

    A column of text that is not UTF-8 becomes a binary column. Raises pa.ArrowInvalid if a column is damaged.
    """
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        metadata = field.metadata or {}
        if metadata.get(b"ARROW:extension:name") == _PERIOD.encode():
            column = _period_text(column, metadata.get(b"ARROW:extension:metadata", b"{}"))
        columns.append(plain(_valid(column)))
    return pa.Table.from_arrays(columns, names=table.column_names, metadata=table.schema.metadata)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column to a type without dictionary, view, extension or run-end encoding.

    Decimals and half floats become float64 and float32, and pandas.Period becomes its text.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == _PERIOD:
            return _period_text(_storage(column), kind.__arrow_ext_serialize__())
        if kind.extension_name == "arrow.uuid":
            return pa.chunked_array([pa.array([v and str(v) for v in column.to_pylist()], pa.string())])
        return plain(_storage(column))
    if pa.types.is_run_end_encoded(kind):
        return plain(pa.chunked_array([pc.run_end_decode(c) for c in column.chunks], kind.value_type))
    if pa.types.is_dictionary(kind):
        chunks = [chunk.dictionary_decode() for chunk in column.chunks]
        return plain(pa.chunked_array(chunks, kind.value_type))
    if pa.types.is_decimal(kind):
        # Arrow's own conversion multiplies by powers of ten; the text gives the nearest float, as in a CSV.
        return pc.cast(pc.cast(column, pa.string()), pa.float64())
    if pa.types.is_float16(kind):
        return pc.cast(column, pa.float32())
    if kind == pa.string_view():
        return pc.cast(column, pa.large_string())
    if kind == pa.binary_view():
        return pc.cast(column, pa.large_binary())
    return column


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Type that `plain` gives to a column of this type, apart from the width of its values."""
    if isinstance(kind, pa.BaseExtensionType):
        text = kind.extension_name in (_PERIOD, "arrow.uuid")
        return pa.string() if text else plain_type(kind.storage_type)
    if pa.types.is_run_end_encoded(kind) or pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    return pa.float64() if pa.types.is_decimal(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column of this type contains text."""
    kind = plain_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def type_name(kind: pa.DataType) -> str:
    """Name of a type in messages, at most 60 characters long."""
    name = str(kind).replace("large_", "")
    return name if len(name) <= 60 else f"{name[:57]}..."


def _valid(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column, or a binary one if it is text that is not UTF-8.

    Raises pa.ArrowInvalid if it is damaged.
    """
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if not is_text(column.type):
            raise
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks])
        column = pc.cast(column, pa.large_binary())
        column.validate(full=True)
    return column


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values of an extension type, as the type that stores them."""
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)


def _period_text(ordinals: pa.ChunkedArray, metadata: bytes) -> pa.ChunkedArray:
    """Text of pandas.Period values, such as 2021-02-20 for a day."""
    import pandas as pd

    if isinstance(ordinals.type, pa.BaseExtensionType):
        ordinals = _storage(ordinals)
    null = pc.is_null(ordinals).to_numpy()
    known = pc.fill_null(ordinals, 0).to_numpy().astype(np.int64)
    kind = pd.PeriodDtype(parse_json(metadata)["freq"])
    text = pd.PeriodIndex(pd.arrays.PeriodArray(known, dtype=kind)).astype(str)
    return pa.chunked_array([pa.array(text.to_numpy(object), pa.string(), mask=null)])
