"""Finds every problem of a table."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pm25.geo import inside_conus
from pm25.limits import MOST_VALUES
from pm25.tables.channels import find_non_numbers, numeric_columns, summarise, with_calendar
from pm25.tables.column_map import NO_MAP, ColumnMap, find_missing
from pm25.tables.columns import as_days, as_float, as_strings, rows_of, shown, site_codes
from pm25.tables.coordinates import find_whole_degrees, find_wrong_places
from pm25.tables.covariates import find_no_covariates, find_unnamed
from pm25.tables.dates import read_days
from pm25.tables.missing_text import read_missing_text
from pm25.tables.notes import notes_of
from pm25.tables.plain import plain, plain_type, type_name
from pm25.tables.schema import CALENDAR, MAX_DAYS, MIN_DAYS, REQUIRED, Check, Problem
from pm25.tables.sites import (
    find_moved_sites,
    find_shared_places,
    find_similar_ids,
    find_wrong_groups,
)
from pm25.tables.values import PM25_LOWEST, find_wrong_pm25, find_wrong_values
from pm25.text import counted


def check(
    table: pa.Table,
    name: str,
    channels: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    *,
    source: str | None = None,
    columns: ColumnMap = NO_MAP,
    grid: bool = False,
) -> Check:
    """Find every problem of `table`. Without `channels`, every column is checked as a possible channel.

    `source` is the table's path or address, and `columns` the map that has renamed its columns; they are
    part of the commands that a fix proposes. With `grid`, the sites are the cells of a grid. The table then
    needs no target, and may have any number of days.
    """
    read = notes_of(table)
    notices = [Problem(column, what) for column, what in read.notices]
    counts: dict[str, int | float | str] = {"table": name, "rows": table.num_rows}
    table, unnamed = find_unnamed(table)
    problems = find_missing(table.column_names, source or name, columns) + find_repeated_columns(table)
    if problems:
        return Check(problems, notices, counts, read.numbering)
    table, doubts = read_missing_text(table, channels, groups)
    problems += find_non_numbers(table, channels, groups, notices)
    problems += find_missing_keys(table, notices)
    problems += find_unreadable_text(table, groups)
    if problems:
        return Check(problems, [*doubts, *notices], counts, read.numbering)

    used, left_out = _used_channels(table, channels, groups, [] if grid else problems, doubts)
    left_out += unnamed if channels is None else []
    day = as_days(table["date"])
    code, sites = site_codes(table)
    lat, lon, target = (as_float(table[c]) for c in ("lat", "lon", "pm25"))
    misplaced = find_wrong_places(lat, lon, code, sites, notices)
    if not misplaced:  # else the places are not known
        misplaced += find_moved_sites(lat, lon, code, sites, notices)
        misplaced += find_whole_degrees(table, lat, lon, code, sites, notices)
    problems += misplaced
    problems += find_similar_ids(lat, lon, code, sites, notices)
    problems += find_wrong_groups(table, groups, code, sites)
    problems += find_wrong_days(day, code, sites, fewest=1 if grid else MIN_DAYS)
    observed = np.isfinite(target)
    first, last = (np.datetime64(int(end), "D") for end in (day.min(), day.max()))
    counts |= {
        "sites": len(sites),
        "days": int(day.max() - day.min()) + 1,
        "first_day": str(first),
        "last_day": str(last),
        "observed": int(observed.sum()),
    }
    problems += _find_large_panel(len(sites), int(counts["days"]), len(used))
    listed = summarise(table, used, len(sites) * int(counts["days"]))

    def complete() -> Check:
        found = [*left_out, *doubts, *notices]
        return Check(problems, found, counts, read.numbering, listed, left_out, doubts, table)

    for column in used:
        if column in table.column_names and not pa.types.is_boolean(plain_type(table[column].type)):
            _extend(problems, doubts, find_wrong_values(column, as_float(table[column])))
    if not observed.any():
        if grid:
            return complete()
        problems.append(Problem("pm25", "all values are null", "give the target in ug/m3"))
        return complete()
    _extend(problems, doubts, find_wrong_pm25(target))

    negative = observed & (target < 0)
    counts |= {
        "pm25_mean": round(float(target[observed].mean()), 2),
        "pm25_max": round(float(target[observed].max()), 2),
        "negative": int(negative.sum()),
    }
    if negative.any() and not any(problem.column == "pm25" for problem in problems):
        lowest = target[negative].min()
        count = int(negative.sum())
        what = (
            f"{counted(count, 'negative value')}, the lowest {lowest:g}, {'is' if count == 1 else 'are'} kept"
        )
        if lowest >= PM25_LOWEST:
            what += "; monitors read slightly below zero in clean air"
        notices.append(Problem("pm25", what, rows=rows_of(negative)))
    silent = len(sites) - len(np.unique(code[observed]))
    if silent:
        notices.append(Problem("pm25", f"{silent} sites have no observation and are not used"))
    if not misplaced:
        notices += find_shared_places(lat, lon, code, sites, observed)
    outside = ~inside_conus(lat, lon)
    if outside.any() and not misplaced:
        what = f"{len(np.unique(code[outside]))} sites outside CONUS are left out of checkerboards and blocks"
        notices.append(Problem("lat, lon", what))
    return complete()


def _used_channels(
    table: pa.Table,
    channels: Sequence[str] | None,
    groups: Sequence[str],
    problems: list[Problem],
    doubts: list[Problem],
) -> tuple[list[str], list[Problem]]:
    """Return the channels that are used, and the columns of numbers that are left out of the default ones.

    An unfit column that `channels` names is added to `problems` if it has no value, and to
    `doubts` otherwise.
    """
    numeric = numeric_columns(table, groups) if channels is None else [*channels]
    asked = [c for c in numeric if c in table.column_names and c not in (*CALENDAR, *REQUIRED)]
    without, doubtful = find_no_covariates(table, asked)
    doubts += doubtful
    if channels is None:
        unfit = {problem.column for problem in without}
        kept = with_calendar([c for c in numeric if c not in unfit])
        return kept, [replace(problem, what=f"not a channel: {problem.what}") for problem in without]
    empty = [problem for problem in without if not _has_value(table, problem.column)]
    fix = "leave it out of data.channels"
    problems += [replace(problem, fix=fix) for problem in empty]
    doubts += [replace(problem, fix=fix) for problem in without if problem not in empty]
    return numeric, []


def _has_value(table: pa.Table, column: str) -> bool:
    return bool(np.isfinite(as_float(table[column])).any())


def _extend(
    problems: list[Problem], doubts: list[Problem], found: tuple[list[Problem], list[Problem]]
) -> None:
    problems += found[0]
    doubts += found[1]


def _find_large_panel(sites: int, days: int, channels: int) -> list[Problem]:
    """Find a panel that is too large for the memory: every site has a value for each day and channel."""
    if sites * days * channels <= MOST_VALUES:
        return []
    what = (
        f"{sites:,} sites x {days:,} days x {channels:,} channels, but at most {MOST_VALUES:,} values are "
        "allowed"
    )
    return [Problem("site_id, date", what, "give fewer sites, days or channels, or fix a wrong year")]


def find_repeated_columns(table: pa.Table) -> list[Problem]:
    """Find repeated columns, and a table without rows."""
    problems = []
    for column in dict.fromkeys(table.column_names):
        if table.column_names.count(column) > 1:
            problems.append(Problem(column, "two columns have this name", "keep one of them"))
    if table.num_rows == 0:
        fix = f"give {MIN_DAYS} or more days of one site"
        problems.append(Problem("site_id", "the table has no rows", fix))
    return problems


def find_missing_keys(table: pa.Table, notices: list[Problem]) -> list[Problem]:
    """Find sites and dates that are missing, and dates that cannot be read; add notices to `notices`."""
    problems = []
    for column in ("site_id", "date"):
        null = rows_of(pc.is_null(plain(table[column])))
        if len(null):
            problems.append(Problem(column, "value is missing", "fill it in or drop the row", null))
    fix = "write dates as YYYY-MM-DD"
    try:
        days = read_days(table["date"])
    except pa.ArrowException as error:
        problems.append(Problem("date", f"not a date ({str(error).splitlines()[0]})", fix))
        return problems
    unread, cut = rows_of(days.unread), rows_of(days.cut)
    if len(unread):
        value = shown(table["date"], int(unread[0]))
        problems.append(Problem("date", f"not a date ({value})", fix, unread))
    if len(cut):
        zone = f", zone {days.zone}" if days.zone else ""
        what = f"times of day are left out, the first of {shown(table['date'], int(cut[0]))}{zone}"
        notices.append(Problem("date", f"{what}; the day is the one written", rows=cut))
    return problems


def find_unreadable_text(table: pa.Table, groups: Sequence[str]) -> list[Problem]:
    """Find sites and groups that cannot be read as text, such as lists or text in another encoding."""
    problems = []
    for column in dict.fromkeys(["site_id", *(c for c in groups if c in table.column_names)]):
        try:
            as_strings(table[column])
        except pa.ArrowException as error:
            what = f"values of type {type_name(table[column].type)} cannot be read as text"
            reason = " (they are not UTF-8)" if isinstance(error, pa.ArrowInvalid) else ""
            problems.append(Problem(column, what + reason, "write the column as text in UTF-8"))
    return problems


def find_wrong_days(
    day: np.ndarray, code: np.ndarray, sites: np.ndarray, fewest: int = MIN_DAYS
) -> list[Problem]:
    """Find repeated site-days, and a table of too few or too many days."""
    problems = []
    order = np.lexsort((np.arange(len(code)), day, code))
    again = np.zeros(len(code), bool)
    again[order[1:]] = (np.diff(code[order]) == 0) & (np.diff(day[order]) == 0)
    if again.any():
        row = int(np.argmax(again))
        first = f"{sites[code[row]]} {np.datetime64(int(day[row]), 'D')}"
        what = f"{int(again.sum())} duplicate site-days, the first {first}"
        problems.append(Problem("site_id, date", what, "keep one row for each site and day", rows_of(again)))
    span = int(day.max() - day.min()) + 1
    if span < fewest:
        problems.append(Problem("date", f"only {span} days", f"give {fewest} or more, for one window"))
    if span > MAX_DAYS:
        ends = " to ".join(str(np.datetime64(int(end), "D")) for end in (day.min(), day.max()))
        what = f"{span} days, {ends}, but at most {MAX_DAYS} are allowed"
        problems.append(Problem("date", what, "fix the year that is wrong"))
    return problems
