"""The columns of a table, and the problems that a check of it finds."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pm25.errors import InputError, one_line
from pm25.limits import MOST_COLUMNS, MOST_DAYS, MOST_VALUES

REQUIRED = ("site_id", "date", "lat", "lon", "pm25")
"""Columns that every table must have."""
NEVER_CHANNELS = (*REQUIRED, "param", "county_fips")
"""Columns that are never default channels."""
CALENDAR = ("day_cos", "day_sin", "month_cos", "month_sin")
"""Channels computed from the date if the table has no column of that name."""
MIN_DAYS = 21
"""Fewest days of a table: one window of the default length."""
MISSING_BECOMES = "mean of the training windows"
"""Value in place of a missing one (`pm25.scaling`). In protocol paper, it is the middle of the range."""
MAX_DAYS = MOST_DAYS
"""Most days of a table: a century. A longer table has a mistyped year, and all days between need memory."""

LEAVE_EMPTY = "leave it empty where the value is missing"
"""Fix for a value that is not a number."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem in a table, with every row that has it."""

    column: str
    """Name of the column, or of several, separated by a comma."""
    what: str
    """Problem with the value that was found."""
    fix: str = ""
    """Instruction for the user; empty for a notice."""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows, counted from 1 for the first row of data; empty if the problem concerns the complete column."""

    @property
    def problem(self) -> str:
        """Description of the problem, with the first of its rows."""
        shown = ", ".join(map(str, self.rows[:5]))
        dots = f", ... {len(self.rows)} rows in all" if len(self.rows) > 5 else ""
        return f"{self.what} (row {shown}{dots})" if len(self.rows) else self.what

    def __str__(self) -> str:
        return one_line("", self.column, self.problem, self.fix)


@dataclass(frozen=True)
class ChannelSummary:
    """A channel with its range, and with the share of its values that are missing."""

    name: str
    source: str
    """`column`, or `date` for a channel that is computed from the date."""
    lowest: float | None
    """Smallest value; None for a channel of the date, and for a column without any value."""
    highest: float | None
    missing: float
    """Share of the panel's sites and days without a value; a day without a row has none."""

    @property
    def missing_becomes(self) -> str:
        """Value that takes the place of a missing one; empty if none is missing."""
        return MISSING_BECOMES if self.missing else ""


@dataclass(frozen=True)
class Check:
    """Problems and counts of a table."""

    problems: list[Problem]
    """Problems; a table with any of them cannot be used."""
    notices: list[Problem]
    """Facts that the user should know; they do not prevent the table's use."""
    counts: dict[str, int | float | str]
    """Counts and ranges, such as sites, days and observed values."""
    numbering: str = ""
    """Sentence that says what the row numbers count; empty for a table made in memory."""
    channels: list[ChannelSummary] = field(default_factory=list)
    """Channels that are used, in order; empty if the table is too bad to tell."""
    left_out: list[Problem] = field(default_factory=list)
    """Columns of numbers that are no default channels, with the reasons; also in the notices."""
    doubts: list[Problem] = field(default_factory=list)
    """Columns and values that are probably wrong, of the channels and the target; also in the notices."""
    table: pa.Table | None = None
    """Table as it was checked: without unnamed columns, and with text such as NA as missing values."""


def format_number(value: float) -> str:
    """Format a number of a table: all digits of a whole number, else six digits."""
    if value == round(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.6g}"


def refuse_large(where: str, rows: int, columns: int) -> None:
    """Raise InputError for more columns or values than are read."""
    if columns > MOST_COLUMNS:
        what = f"{columns:,} columns, but at most {MOST_COLUMNS:,} are allowed"
        raise InputError(where, "", what, "name the needed ones with data.channels, or leave the others out")
    if rows * columns > MOST_VALUES:
        what = f"{rows:,} rows x {columns:,} columns, but at most {MOST_VALUES:,} values are allowed"
        raise InputError(where, "", what, "give fewer rows or columns")
