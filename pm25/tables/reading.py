"""Reads a file as an Arrow table, without checking its content."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pm25 import uri
from pm25.errors import InputError
from pm25.tables.schema import CALENDAR, REQUIRED


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
