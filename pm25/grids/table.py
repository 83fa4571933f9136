"""Covariates on a grid, read from a table a few days at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pm25 import panel, uri
from pm25.errors import InputError
from pm25.grids.cells import MOST_CELLS, Block
from pm25.suggest import nearest
from pm25.tables.column_map import NO_MAP, ColumnMap, read_unmapped, with_source
from pm25.tables.columns import as_float, is_numeric, refuse_repeated
from pm25.tables.dates import read_days
from pm25.tables.plain import plain_table
from pm25.tables.schema import CALENDAR

TRUTH = "pm25_true"
"""Column with the true PM2.5 of a synthetic world, in ug/m3."""

KEYS = ("lat", "lon", "date")
"""Columns that name a cell and a day."""

LISTED = 30
"""Most columns of the table that an error lists."""

BATCH = 1 << 18
"""Rows that are read at once while the places and the days of a file are listed."""


class _Piece(NamedTuple):
    """Rows that are read together: a row group of a Parquet file, or a table in memory."""

    number: int
    first: int
    """First and last day of its rows, in days since 1970."""
    last: int


class GridTable:
    """Covariates from a table with one row for each cell and day, in any order.

    The columns are lat, lon (degrees, the centre of the cell), date, `channels`, and perhaps `TRUTH`. Their
    names in the file may be others (`columns`). Channels of the calendar are computed from the date. Of one
    Parquet file, only the row groups with the wanted days are read. A table in another form, or in several
    files, is read at once.

    `needs` says what needs the channels. Raises InputError for a table that cannot be used.
    """

    far: np.ndarray | None = None

    def __init__(
        self, path: Path | str, channels: Sequence[str], *, columns: ColumnMap = NO_MAP, needs: str
    ) -> None:
        self.name, self.origin = uri.file_name(path), f"covariates from {uri.file_name(path)}"
        self.channels = tuple(channels)
        self._path, self._file, self._table = path, _single_parquet(path), None
        if self._file is None:
            self._table = read_unmapped(path)
            names = self._table.column_names
        else:
            names = self._file.schema_arrow.names
        refuse_repeated(path, [*KEYS, *channels, TRUTH, *columns.values()], [*names])
        # A grid has no sites and no targets, so a study's map may name columns that it lacks.
        self._columns = {name: column for name, column in columns.items() if column in names}
        wanted = [*dict.fromkeys([*KEYS, *channels, TRUTH])]
        self._wanted = [name for name in wanted if self._columns.get(name, name) in names]
        missing = [name for name in wanted if name not in (*self._wanted, *CALENDAR, TRUTH)]
        if missing:
            raise self._lacks(missing, names, needs)
        self._scan()

    def read(self, first: np.datetime64, last: np.datetime64) -> Block:
        """Read the days from `first` to `last`. Raises InputError for values that cannot be used."""
        begin, end = (int(day.astype("datetime64[D]").astype(int)) for day in (first, last))
        found = []
        for piece in self._pieces:
            if piece.last < begin or piece.first > end:
                continue
            for rows in self._rows(piece, self._wanted):
                day = read_days(rows["date"]).day
                found.append(rows.filter(pa.array((day >= begin) & (day <= end))))
        table = pa.concat_tables(found)
        cell = np.searchsorted(self._codes, _codes(as_float(table["lat"]), as_float(table["lon"])))
        source = f"{self._path}, {first} to {last}"
        return block_of(table, cell, len(self.lat), self.channels, begin, end, source)

    def _lacks(self, missing: Sequence[str], names: Sequence[str], needs: str) -> InputError:
        """Make the error for columns that the file does not have."""
        field = ", ".join(with_source(name, self._columns) for name in missing)
        are, them = ("column is", "it") if len(missing) == 1 else ("columns are", "them")
        problem = f"the {are} missing, and {needs} needs {them}; the table has {', '.join(names[:LISTED])}"
        problem += f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        near = nearest(missing[0], names)
        fix = f"add {them}, in the unit of the study's table"
        fix += f"; if {near} is {missing[0]}, rename the column" if near is not None else ""
        return InputError(str(self._path), field, problem, fix)

    def _rows(self, piece: _Piece, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of a piece, with the names of this package."""
        own = [self._columns.get(name, name) for name in names]
        if self._table is not None:
            yield self._table.select(own).rename_columns([*names])
            return
        assert self._file is not None
        try:
            for batch in self._file.iter_batches(BATCH, row_groups=[piece.number], columns=own):
                yield plain_table(pa.Table.from_batches([batch])).select(own).rename_columns([*names])
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(str(self._path), "", f"cannot be read ({reason})", "write it again") from None

    def _scan(self) -> None:
        """List the cells and the days, and the days of each piece."""
        groups = 1 if self._file is None else self._file.num_row_groups
        self._pieces, codes, days = [], np.empty(0, np.complex128), np.empty(0, np.int64)
        for number in range(groups):
            own = np.empty(0, np.int64)
            for rows in self._rows(_Piece(number, 0, 0), KEYS):
                if not len(rows):
                    continue
                for name in ("lat", "lon"):
                    self._check_places(name, rows[name])
                codes = np.union1d(codes, _codes(as_float(rows["lat"]), as_float(rows["lon"])))
                own = np.union1d(own, self._read_days(rows["date"]))
                if len(codes) > MOST_CELLS:
                    problem = f"more than {MOST_CELLS:,} places"
                    raise InputError(str(self._path), "lat, lon", problem, "give a coarser grid")
            if len(own):
                self._pieces.append(_Piece(number, int(own[0]), int(own[-1])))
                days = np.union1d(days, own)
        if not self._pieces:
            raise InputError(str(self._path), "", "the table has no rows", "give one for each cell and day")
        self._codes, self.days = codes, days.astype("datetime64[D]")
        self.lat, self.lon = codes.real.copy(), codes.imag.copy()

    def _read_days(self, column: pa.ChunkedArray) -> np.ndarray:
        """Read the distinct days of a column."""
        fix = "write dates as YYYY-MM-DD"
        try:
            found = read_days(column)
        except pa.ArrowException as error:
            problem = f"not a date ({str(error).splitlines()[0]})"
            raise InputError(str(self._path), "date", problem, fix) from None
        if found.unread.any() or column.null_count:
            raise InputError(str(self._path), "date", "a value is missing or is not a date", fix)
        return np.unique(found.day)

    def _check_places(self, name: str, column: pa.ChunkedArray) -> None:
        most = 90 if name == "lat" else 180
        values = as_float(column) if is_numeric(column.type) else np.array([np.nan])
        wrong = ~(np.abs(values) <= most)
        if wrong.any():
            problem = f"{values[wrong][0]:g} is not in -{most}..{most}"
            if np.isnan(values[wrong][0]):
                problem = "a value is missing or is not a number"
            fix = "give degrees" + (", west of Greenwich below 0" if name == "lon" else "")
            raise InputError(str(self._path), name, problem, fix)


def block_of(
    table: pa.Table, cell: np.ndarray, cells: int, channels: Sequence[str], begin: int, end: int, source: str
) -> Block:
    """Convert the rows of a table to a block, with the checks of a study's table (`pm25.panel.from_table`).

    `cell` is the index of each row's cell, and `begin` and `end` are days since 1970. A cell without a row on
    a day has missing values there. Raises InputError, which names `source`, for the first problem.
    """
    truth = table[TRUTH] if TRUTH in table.column_names else pa.nulls(len(table), pa.float32())
    named = pa.table(
        {
            "site_id": pa.array(np.char.mod("%07d", cell)),
            "pm25": truth,
            **{name: table[name] for name in table.column_names if name != TRUTH},
        }
    )
    read = panel.from_table(named, source, channels, grid=True)
    site, day = read.site_id.astype(np.int64), (read.dates.astype(np.int64) - begin)
    features = np.full((cells, end - begin + 1, len(channels)), np.nan, np.float32)
    features[site[:, None], day] = read.features
    known = np.full(features.shape[:2], np.nan, np.float32)
    known[site[:, None], day] = read.target
    return Block(features, known if TRUTH in table.column_names else None)


def _codes(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Places as complex numbers, rounded to about 0.1 m: they are sorted by latitude, then by longitude."""
    return np.round(lat, 6) + 1j * np.round(lon, 6)


def _single_parquet(path: Path | str) -> pyarrow.parquet.ParquetFile | None:
    """Open one local Parquet file; None for tables in another form."""
    if uri.is_uri(path) or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        if file.read(4) != b"PAR1":
            return None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError):
        return None  # the reader of other tables says what is wrong
