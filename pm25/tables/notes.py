"""Facts about how a table was read, stored in the metadata of its schema."""

import json
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa

_KEY = b"pm25.notes"


class Notes(NamedTuple):
    """Facts about how a table was read."""

    numbering: str = ""
    """Sentence that says what the row numbers of problems count; empty for a table made in memory."""
    notices: tuple[tuple[str, str], ...] = ()
    """Column and fact, such as an encoding that was found; the column is empty for the complete file."""


def attach(table: pa.Table, numbering: str, notices: Iterable[tuple[str, str]] = ()) -> pa.Table:
    """Return the table with notes in its metadata, in place of earlier ones."""
    content = json.dumps([numbering, [*notices]]).encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: content})


def notes_of(table: pa.Table) -> Notes:
    """Notes of a table; empty if it was not read from a file."""
    content = (table.schema.metadata or {}).get(_KEY)
    if content is None:
        return Notes()
    numbering, notices = json.loads(content)
    return Notes(numbering, tuple((column, what) for column, what in notices))
