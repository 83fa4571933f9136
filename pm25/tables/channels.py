"""Chooses the default channels of a table, and checks its columns of numbers."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pm25.tables.columns import as_float, as_strings, is_numeric, rows_of, shown, unparsed_rows
from pm25.tables.plain import is_text
from pm25.tables.schema import (
    CALENDAR,
    LEAVE_EMPTY,
    NEVER_CHANNELS,
    REQUIRED,
    ChannelSummary,
    Problem,
    format_number,
)
from pm25.tables.values import FLOAT32_MAX


def numeric_columns(table: pa.Table, groups: Sequence[str] = ()) -> list[str]:
    """Columns of numbers except places, dates, targets, identifiers and groups."""
    taken = {*NEVER_CHANNELS, *groups}
    return [f.name for f in table.schema if f.name not in taken and is_numeric(f.type)]


def with_calendar(columns: Sequence[str]) -> list[str]:
    """Add the channels of the date that are no columns."""
    return [*columns, *(name for name in CALENDAR if name not in columns)]


def summarise(table: pa.Table, channels: Sequence[str], site_days: int) -> list[ChannelSummary]:
    """Describe each channel; `site_days` is the number of sites times days of the panel."""
    found = []
    for name in channels:
        if name not in table.column_names:
            found.append(ChannelSummary(name, "date", None, None, 0.0))
            continue
        values = as_float(table[name])
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
        found.append(ChannelSummary(name, "column", low, high, max(0, site_days - len(known)) / site_days))
    return found


def find_non_numbers(
    table: pa.Table, channels: Sequence[str] | None, groups: Sequence[str], notices: list[Problem]
) -> list[Problem]:
    """Find strings, infinities and missing places in columns of numbers; add notices to `notices`."""
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
                problems.append(_text_problem(table[column], column, text))
            elif must:
                problems += _find_too_large(table[column], column)
            else:
                numbers = ", but numbers as text" if values and not len(text) else ""
                notices.append(Problem(column, f"not numeric{numbers}, so not a channel"))
        else:
            problems += _find_too_large(table[column], column)
    if absent:
        own = ", ".join(with_calendar(numeric_columns(table, groups)))
        fix = f"add --set data.channels=null for all covariates among {own}, or choose among these"
        problems.insert(0, Problem(", ".join(absent), "the table has no such channel", fix))
    for column in ("lat", "lon"):
        if is_numeric(table[column].type):
            null = np.flatnonzero(np.isnan(as_float(table[column]))) + 1
            if len(null):
                problems.append(
                    Problem(column, "value is missing", "give every row its place in degrees", null)
                )
    return problems


def _find_too_large(values: pa.ChunkedArray, column: str) -> list[Problem]:
    """Find numbers, or numbers as text, that are infinite or that a 32-bit float cannot hold."""
    number = as_float(values)
    infinite = np.isinf(number)
    over = ~infinite & (np.abs(number) > FLOAT32_MAX)
    problems = []
    if infinite.any():
        problems.append(Problem(column, "value is infinite", LEAVE_EMPTY, rows_of(infinite)))
    if over.any():
        what = f"{format_number(number[over][0])} does not fit a 32-bit number"
        problems.append(Problem(column, what, LEAVE_EMPTY, rows_of(over)))
    return problems


def _text_problem(values: pa.ChunkedArray, column: str, rows: np.ndarray) -> Problem:
    """Describe values that are not numbers: of text, the first three kinds, each with its count."""
    if not is_text(values.type):
        return Problem(column, f"{shown(values, int(rows[0]))} is not a number", LEAVE_EMPTY, rows)
    texts = as_strings(values).take(pa.array(rows - 1)).to_pylist()
    counts = Counter(texts)
    first = dict(zip(reversed(texts), reversed(rows.tolist()), strict=True))
    kinds = [shown(values, first[text]) for text in [*counts][:3]]
    if len(counts) > 1:
        kinds = [f"{kind} ({count} times)" for kind, count in zip(kinds, counts.values(), strict=False)]
    more = f" and {len(counts) - 3} others" if len(counts) > 3 else ""
    fix = LEAVE_EMPTY
    if any(text.strip().startswith(("<", ">")) for text in counts):
        fix = "give a number for a value beyond a limit, such as half the detection limit, or leave it empty"
    verb = "is not a number" if len(counts) == 1 else "are not numbers"
    return Problem(column, f"{', '.join(kinds)}{more} {verb}", fix, rows)
