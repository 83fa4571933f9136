"""Reads text such as NA in a column of numbers as a missing value."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pm25.tables.columns import as_strings, rows_of
from pm25.tables.plain import is_text
from pm25.tables.schema import NEVER_CHANNELS, REQUIRED, Problem
from pm25.text import counted

MISSING = frozenset(
    [
        *("", "na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nan", "null", "none", "nil", "nat"),
        *("-", "--", "---", ".", "..", "?", "missing", "no data", "nodata", "not available"),
    ]
)
"""Text, in lower case and without blanks around it, that can only mean a missing value."""


def read_missing_text(
    table: pa.Table, channels: Sequence[str] | None, groups: Sequence[str]
) -> tuple[pa.Table, list[Problem]]:
    """Convert columns of numbers in which some text stands for a missing value; return notices with the text.

    Columns of labels, and numbers that begin with zeros as codes do, stay as they are unless a channel is
    wanted from them.
    """
    notices = []
    for place, column in enumerate(table.column_names):
        wanted = column in ("lat", "lon", "pm25") or (channels is not None and column in channels)
        kept = column in (*REQUIRED[:2], *groups) or (column in NEVER_CHANNELS and not wanted)
        if kept or not is_text(table.field(place).type) or (channels is not None and not wanted):
            continue
        text = as_strings(table.column(place))
        forms = pa.array(sorted(MISSING), text.type)
        is_missing = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(text)), forms)
        if not pc.any(is_missing).as_py():
            continue
        rest = pc.if_else(is_missing, None, text)
        is_coded = bool(pc.any(pc.match_substring_regex(rest, r"^[+-]?0\d")).as_py())
        if is_coded and not wanted:
            table = table.set_column(place, column, rest)
            continue
        try:
            numbers = pc.cast(rest, pa.float64())
        except pa.ArrowInvalid:  # the check of numbers reports what is neither a number nor missing
            table = table.set_column(place, column, rest)
            continue
        table = table.set_column(place, column, numbers)
        rows = rows_of(is_missing)
        found = [*dict.fromkeys(text.take(pa.array(rows - 1)).to_pylist())][:3]
        verb = "is" if len(found) == 1 else "are"
        what = f"{', '.join(map(repr, found))} {verb} read as a missing value in {counted(len(rows), 'row')}"
        notices.append(Problem(column, what, rows=rows))
    return table, notices
