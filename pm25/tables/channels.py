"""Chooses the default channels of a table, and checks its columns of numbers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pm25.tables.columns import as_float, is_numeric, rows_of, shown, unparsed_rows
from pm25.tables.plain import is_text
from pm25.tables.schema import CALENDAR, LEAVE_EMPTY, REQUIRED, Problem


def channels_of(table: pa.Table, groups: Sequence[str] = ()) -> list[str]:
    """Default channels: all numeric columns except places, dates, targets, identifiers and groups."""
    taken = {*REQUIRED, "param", "county_fips", *groups}
    numeric = [f.name for f in table.schema if f.name not in taken and is_numeric(f.type)]
    return numeric + [name for name in CALENDAR if name not in numeric]


def find_non_numbers(
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
    absent: list[str] = []
    for column in ("lat", "lon", "pm25", *others):
        if column not in table.column_names:
            absent.append(column)
        elif not is_numeric(table[column].type):
            text = unparsed_rows(table[column], pa.float64())
            must = channels is not None or column in REQUIRED
            values = table.num_rows - table[column].null_count
            mistyped = is_text(table[column].type) and len(text) <= 0.5 * values
            if len(text) and (must or mistyped):
                value = shown(table[column], int(text[0]))
                problems.append(Problem(column, f"{value} is not a number", LEAVE_EMPTY, text))
            elif channels is None and column not in REQUIRED:
                notices.append(Problem(column, "not numeric, so not a channel"))
        else:
            bad = rows_of(np.abs(as_float(table[column])) > np.finfo(np.float32).max)
            if len(bad):
                what = f"value {shown(table[column], int(bad[0]))} is infinite in float32"
                problems.append(Problem(column, what, LEAVE_EMPTY, bad))
    if absent:
        own = ", ".join(channels_of(table, groups))
        fix = f"add --set data.channels=null for all of {own}, or choose among these"
        problems.insert(0, Problem(", ".join(absent), "the table has no such channel", fix))
    for column in ("lat", "lon"):
        if is_numeric(table[column].type):
            null = np.flatnonzero(np.isnan(as_float(table[column]))) + 1
            if len(null):
                problems.append(
                    Problem(column, "value is missing", "give every row its place in degrees", null)
                )
    return problems
