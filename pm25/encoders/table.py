"""Precomputed vectors, read from a Parquet file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pm25 import uri
from pm25.encoders.base import Source, checked_places, checked_site_ids
from pm25.errors import InputError
from pm25.geo import SAME_PLACE_DEG
from pm25.limits import MOST_UNITS, MOST_VALUES

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MONTHS = np.arange(1, 13)

KEYS = ("site_id", "lat", "lon", "month")
"""Columns that are not part of a vector."""

SHOWN = 5
"""Places or columns that an error lists."""


class Table:
    """Precomputed vectors from a Parquet file, keyed by a string column `site_id` or by `lat` and `lon`.

    The vector is the one list column `embedding`, or all other columns in their order. `lat` and `lon` next
    to a `site_id` are not part of it. A column `month` (1..12) gives twelve vectors per place. A table keyed
    by lat and lon uses the nearest row within `tolerance_deg` (of sqrt(dlat^2 + dlon^2)). Raises InputError
    for any value that is missing, repeated or not finite.

    `trained_on_target` states that the vectors were made with measured air quality. PDFM's were: a table
    with 'pdfm' in its file name, columns or metadata has the flag, whatever the option says.
    """

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        path, self.trained_on_target = source.other
        self._tolerance_deg: float | None = source.numbers.get("tolerance_deg")
        self._file = str(path)
        self._read(source.content)

    @staticmethod
    def source(
        path: str | Path, tolerance_deg: float | None = None, trained_on_target: bool = False
    ) -> Source:
        """Check the options and read the file. Raises InputError."""
        import pyarrow.parquet as pq

        if not isinstance(trained_on_target, bool):
            problem = f"{trained_on_target!r} is not a truth value"
            raise InputError("encoder table", "trained_on_target", problem, "give true or false")
        try:
            content = uri.read(path)
        except OSError as error:
            raise uri.unreadable(path, error) from error
        try:
            schema = pq.read_schema(io.BytesIO(content))
        except (ValueError, OSError) as error:
            raise _not_parquet(str(path), error) from error
        name, metadata = uri.file_name(path), schema.metadata or {}
        texts = [name, *schema.names, *(repr(pair) for pair in metadata.items())]
        other = path, trained_on_target or any("pdfm" in text.lower() for text in texts)
        if "site_id" in schema.names:
            if tolerance_deg is not None:
                problem = f"has no meaning for {path}, which is keyed by site_id"
                raise InputError("encoder table", "tolerance_deg", problem, "leave it out")
            return Source("table", {}, content, other)
        tolerance = SAME_PLACE_DEG if tolerance_deg is None else tolerance_deg
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance <= 1:
            problem = f"{tolerance!r} is out of range"
            raise InputError("encoder table", "tolerance_deg", problem, "give degrees from 0 to 1")
        return Source("table", {"tolerance_deg": float(tolerance)}, content, other)

    @property
    def lookup_keys(self) -> tuple[str, ...]:
        """Values needed to find a vector, in addition to the place: 'month', 'site_id', both or none."""
        return tuple(n for n, asked in (("month", self.by_month), ("site_id", self.by_site)) if asked)

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Look up places (n,) in degrees -> float32 (n, dim), or (n, 12, dim) by month."""
        places = checked_places(lat, lon)
        if not self.by_site:
            places, inverse = np.unique(places, axis=0, return_inverse=True)
            found = self._nearest(places)
            rows = found[inverse.reshape(-1)]
            lacking = [f"({north:.4f}, {east:.4f})" for north, east in places[found < 0]]
        else:
            ids = checked_site_ids(site_id, len(places), self._file)
            rows = np.array([self._row.get(site, -1) for site in ids], np.intp)
            lacking = sorted({site for site, row in zip(ids, rows, strict=True) if row < 0})
        if lacking:
            near = "" if self.by_site else f" within {self._tolerance_deg:g} degrees"
            problem = f"{len(lacking)} of the places have no vector{near}: {_shown(lacking)}"
            raise InputError(self._file, self._key, problem, "add them, or leave those sites out")
        return self._vectors[rows]

    @property
    def _key(self) -> str:
        """Columns that identify a place."""
        return "site_id" if self.by_site else "lat, lon"

    def _nearest(self, places: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the row of each place, or -1 where no row is within the tolerance."""
        tolerance = self._tolerance_deg or 0.0
        known = self._known  # sorted by latitude
        first = np.searchsorted(known[:, 0], places[:, 0] - tolerance, side="left")
        last = np.searchsorted(known[:, 0], places[:, 0] + tolerance, side="right")
        rows = np.full(len(places), -1, np.intp)
        for i, (start, stop) in enumerate(zip(first, last, strict=True)):
            if start < stop:
                apart = np.abs(known[start:stop] - places[i])
                apart[:, 1] = np.minimum(apart[:, 1], np.abs(360 - apart[:, 1]))  # across the date line
                distance = np.hypot(*apart.T)
                if distance.min() <= tolerance:
                    rows[i] = start + distance.argmin()
        return rows

    def _read(self, content: bytes) -> None:
        """Read and check the file; set `dim`, `by_site`, `by_month` and the vectors."""
        import pyarrow.parquet as pq

        try:
            self._refuse_large(pq.read_metadata(io.BytesIO(content)))
            table = pq.read_table(io.BytesIO(content))
        except InputError:
            raise
        except (ValueError, OSError) as error:
            raise _not_parquet(self._file, error) from error
        # pandas stores an unnamed row index as a column of numbers.
        columns = [name for name in table.column_names if not name.startswith("__index_level_")]
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise InputError(self._file, twice[0], "two columns have this name", "rename one of them")
        self.by_site = "site_id" in columns
        if not self.by_site and not {"lat", "lon"} <= set(columns):
            problem = f"no such columns; the table has {_shown(columns)}"
            raise InputError(self._file, "site_id, lat, lon", problem, "add site_id, or lat and lon")
        if not len(table):
            raise InputError(self._file, "", "the table has no rows", "add one row for each place")

        names, place = self._places(table)
        self.by_month = "month" in columns
        slot, slots = self._slots(table, names, place)
        values = self._values(table, [c for c in columns if c not in KEYS])
        if values.shape[1] > MOST_UNITS:
            raise self._too_long(values.shape[1])
        finite = np.isfinite(values)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise InputError(
                self._file,
                f"value {column + 1} of {values.shape[1]}",
                f"{int((~finite).sum())} values are missing or not finite, the first at {names[row]}",
                "fill them in, or leave those places out",
            )
        self.dim = values.shape[1]
        vectors = np.empty((slots, self.dim), np.float32)
        vectors[slot] = values
        self._vectors = vectors.reshape(-1, 12, self.dim) if self.by_month else vectors

    def _refuse_large(self, metadata: pq.FileMetaData) -> None:
        """Raise InputError for a table that is too large, before it is read."""
        if metadata.num_columns > MOST_UNITS + len(KEYS):
            raise self._too_long(metadata.num_columns)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        values = sum(group.column(i).num_values for group in groups for i in range(metadata.num_columns))
        if values > MOST_VALUES:
            problem = f"{values:,} values, but at most {MOST_VALUES:,} are allowed"
            raise InputError(self._file, "", problem, "leave out places that no site has")

    def _too_long(self, length: int) -> InputError:
        problem = f"{length:,} values for each place, but at most {MOST_UNITS:,} are allowed"
        return InputError(self._file, "", problem, "give shorter vectors, such as principal components")

    def _places(self, table: pa.Table) -> tuple[list[str], NDArray[np.intp]]:
        """Return the name of each row's place, and its index among the distinct places."""
        if not self.by_site:
            keys = checked_places(self._numbers(table, "lat"), self._numbers(table, "lon"), self._file)
            self._known, place = np.unique(keys, axis=0, return_inverse=True)
            return [f"({north:.4f}, {east:.4f})" for north, east in keys], place.reshape(-1)
        ids = table["site_id"]
        if pa.types.is_dictionary(ids.type):
            ids = ids.cast(ids.type.value_type)
        if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
            raise InputError(self._file, "site_id", f"type is {ids.type}", "store site_id as strings")
        if ids.null_count:
            raise InputError(self._file, "site_id", f"{ids.null_count} values are missing", "fill them in")
        names = ids.to_pylist()
        known, place = np.unique(np.array(names, object), return_inverse=True)
        self._row = {site: row for row, site in enumerate(known)}
        return names, place.reshape(-1)

    def _slots(
        self, table: pa.Table, names: list[str], place: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], int]:
        """Return the slot of each row, and the number of slots; a slot is a place, or a month of a place."""
        months = 12 if self.by_month else 1
        month = self._numbers(table, "month") if self.by_month else np.ones(len(place))
        wrong = ~np.isin(month, MONTHS)
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(self._file, "month", f"{month[row]:g} at {names[row]}", "give 1 to 12")
        slot = place * months + month.astype(np.intp) - 1
        rows = np.bincount(slot, minlength=months * (place.max() + 1))
        if (rows > 1).any():
            twice = sorted({names[i] for i in np.flatnonzero(rows[slot] > 1)})
            problem = f"{len(twice)} places have two rows for one vector: {_shown(twice)}"
            raise InputError(self._file, self._key, problem, "keep one of the rows")
        if (rows == 0).any():
            lacking = {int(i) for i in np.flatnonzero(rows == 0) // 12}
            short = sorted({names[i] for i in np.flatnonzero(np.isin(place, [*lacking]))})
            problem = f"{len(short)} places lack some of the 12 months: {_shown(short)}"
            raise InputError(self._file, "month", problem, "give all 12 months of each place")
        return slot, len(rows)

    def _values(self, table: pa.Table, columns: list[str]) -> NDArray[np.float32]:
        """Return the vectors of all rows, (rows, dim), of the list column or of the columns of numbers."""
        import pyarrow.compute as pc

        lists = [
            name
            for name in columns
            if pa.types.is_list(table[name].type)
            or pa.types.is_large_list(table[name].type)
            or pa.types.is_fixed_size_list(table[name].type)
        ]
        if not columns or (lists and columns != ["embedding"]):
            problem = (
                f"no vector in the columns {_shown(columns)}" if columns else "no column contains a vector"
            )
            fix = "store the vector as one list column named embedding, or as columns of numbers"
            raise InputError(self._file, "embedding", problem, fix)
        if not lists:
            columns32 = [_float32(self._numbers(table, name)) for name in columns]
            return np.stack(columns32, axis=1)
        lengths = set(pc.list_value_length(table["embedding"]).to_pylist())
        if len(lengths) > 1 or not min(lengths, key=lambda length: length or 0):
            shown = sorted(str(length) for length in lengths)
            problem = f"lists have the lengths {_shown(shown)}"
            raise InputError(self._file, "embedding", problem, "give every row a list of the same length")
        flat = pa.table({"embedding": pc.list_flatten(table["embedding"])})
        return _float32(self._numbers(flat, "embedding")).reshape(len(table), -1)

    def _numbers(self, table: pa.Table, name: str) -> NDArray[np.float64]:
        """Return a column of numbers, with NaN for null."""
        column = table[name]
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise InputError(self._file, name, f"type is {column.type}", "store it as numbers")
        return np.asarray(column.to_numpy(), np.float64)


def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to float32; values beyond its range become infinite, and are refused later."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _not_parquet(file: str, error: Exception) -> InputError:
    """Error for a file that pyarrow cannot read as Parquet."""
    problem = f"cannot be read as Parquet ({str(error).splitlines()[0][:120]})"
    return InputError(file, "", problem, "write it again")


def _shown(names: list[str]) -> str:
    """List the first `SHOWN` names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
