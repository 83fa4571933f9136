"""A panel table from EPA AirData daily files and the weather of NOAA USCRN stations."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from pm25.errors import InputError
from pm25.limits import MOST_ROW_BYTES
from pm25.sources import agency_files, uscrn
from pm25.sources.agency_files import AGAIN

PM25 = ("88101", "88502")
"""PM2.5 parameters in order of preference: FRM/FEM is used if a site-day has both."""

UNITS = {
    "88101": "Micrograms/cubic meter (LC)",
    "88502": "Micrograms/cubic meter (LC)",
    "62101": "Degrees Fahrenheit",
    "61103": "Knots",
    "61104": "Degrees Compass",
    "62201": "Percent relative humidity",
    "62103": "Degrees Fahrenheit",
    "64101": "Millibars",
}
"""AQS parameter code -> the only accepted unit."""

USED, EXCLUDED = "used", "excluded"
EVENTS = {
    **dict.fromkeys(("", "none", "nan", "no events", "no event"), USED),
    **dict.fromkeys(("included", "events included", "event included", "inclusive"), USED),
    **dict.fromkeys(("excluded", "events excluded", "event excluded"), EXCLUDED),
    **dict.fromkeys(("concurred events excluded", "concurred excluded"), EXCLUDED),
    **dict.fromkeys(("events with concurrence excluded", "with concurrence excluded"), EXCLUDED),
}
"""Labels of Event Type in AirData files, AQS reports and the AQS API, in lower case without punctuation.

A day with an exceptional event has a row with the event and a row without it, and only the first is used."""

PM25_DURATIONS = ("24 HOUR", "24-HR BLK AVG")
WEATHER_DURATIONS = ("1 HOUR", "24 HOUR", "24-HR BLK AVG")
"""Sample durations that are used; rows with others are left out."""

DURATIONS = {
    **dict.fromkeys(("24 hour", "24 hours", "24 hr", "24h"), "24 HOUR"),
    "24 hr blk avg": "24-HR BLK AVG",
    **dict.fromkeys(("1 hour", "1 hr", "1h"), "1 HOUR"),
}
"""Sample durations by their spelling in lower case without punctuation."""

CONUS_STATES = frozenset(f"{fips:02d}" for fips in range(1, 57)) - {"02", "15"}
"""FIPS codes of the 48 states and DC; EPA's files also contain AK, HI, territories, Canada and Mexico."""

COLUMNS = (
    "State Code",
    "County Code",
    "Site Num",
    "Parameter Code",
    "POC",
    "Sample Duration",
    "Date Local",
    "Units of Measure",
    "Event Type",
    "Latitude",
    "Longitude",
    "Arithmetic Mean",
)
NUMBERS = COLUMNS[-3:]

HEADER_BYTES = 1 << 16
"""Bytes in which a header must end."""

FIRST_DAY = pd.Timestamp("1957-01-01")
"""First day of AQS; an earlier date is an error."""

MISSING_CODE = -99.0
"""Arithmetic means down from here are codes for a missing value: no monitor reads so far below zero."""


def build(
    files: Sequence[Path], weather: Sequence[Path] = (), *, max_station_km: float = 300.0, stations: int = 3
) -> pd.DataFrame:
    """Build a table with one row for each CONUS site that measured PM2.5 and each day.

    `files` are AirData daily summaries of PM2.5 (88101, 88502) and optionally of TEMP, WIND, RH_DP and PRESS:
    .csv, .csv.gz or .zip, with any number of CSV files in a zip and of tables in a CSV file. `weather` are
    USCRN daily01 station files, folders of them or zips of them. Days are all those from the first to the
    last with PM2.5. Rows are sorted by site_id, then date. The columns are:

    - site_id ('SS-CCC-NNNN'), date, lat, lon (degrees)
    - pm25 (ug/m3, NaN = unobserved), param (the parameter code of pm25)
    - for each parameter in `files`, the site's own measurements: aqs_temp_c, aqs_wind_speed_ms,
      aqs_wind_dir_sin, aqs_wind_dir_cos, aqs_rh (%), aqs_dewpoint_c, aqs_press_hpa
    - with `weather`, crn_nearest_km and the columns of `uscrn.VARIABLES`

    A site-day is the mean over its instruments (POC). Rows whose Event Type excludes events (`EVENTS`) are
    left out, and the row of the same day that includes them is kept. EPA gives positions in WGS84, NAD83 or
    NAD27. All are read as WGS84 (less than 100 m apart in CONUS). A site listed at several positions gets the
    most frequent one.
    EPA's daily wind direction is an arithmetic mean of hourly degrees, wrong for days that straddle north.
    Here only the mean over instruments is circular (mean sine and mean cosine, not renormalised).

    Raises InputError for files that cannot be read in this way.
    """
    if not max_station_km > 0:
        problem = f"{max_station_km} is out of range"
        raise InputError("weather", "max_station_km", problem, "give a distance above 0 km")
    if stations < 1:
        raise InputError("weather", "stations", f"{stations} is out of range", "give 1 or more")
    sources = [source for path in files for source in _read(Path(path))]
    rows = pd.concat([source.rows for source in sources]) if sources else pd.DataFrame({"param": []})
    pm_rows = rows[rows["param"].isin(PM25)]
    names = ", ".join(str(path) for path in files) or "no files"
    if not any(source.params & set(PM25) for source in sources):
        raise InputError(names, "", "no PM2.5", "add daily_88101_YEAR.zip or daily_88502_YEAR.zip")
    if pm_rows.empty:
        durations = sorted(frozenset[str]().union(*(source.durations for source in sources)))
        problem = (
            "no usable PM2.5 row; needed are one of the 48 states or DC, a Sample Duration of "
            f"{' or '.join(map(repr, PM25_DURATIONS))}, an Event Type that is not of excluded events, and an "
            f"Arithmetic Mean; found are durations {', '.join(map(repr, durations)) or 'of no row'}"
        )
        raise InputError(names, "", problem, "give complete AirData daily files")

    dates = pd.date_range(pm_rows["date"].min(), pm_rows["date"].max(), freq="D")
    for source in sources:
        # A file with a header and no rows is allowed: nothing was measured.
        if source.params and source.params.isdisjoint(PM25) and not source.rows["date"].isin(dates).any():
            raise _no_overlap(source.name, source.rows["date"], dates)

    places = _places(pm_rows, names)
    index = pd.MultiIndex.from_product([places.index, dates], names=["site_id", "date"])
    table = pd.DataFrame(index=index)
    table["lat"] = np.repeat(places["lat"].to_numpy(), len(dates))
    table["lon"] = np.repeat(places["lon"].to_numpy(), len(dates))
    by_param = [_site_days(pm_rows[pm_rows["param"] == param], index) for param in PM25]
    table["pm25"] = by_param[0].fillna(by_param[1])
    table["param"] = pd.Series(
        np.select([by_param[0].notna(), by_param[1].notna()], PM25, default=""), index, dtype="str"
    ).replace("", None)

    given = set().union(*(source.params for source in sources))
    for name, column in _epa_weather(rows[~rows["param"].isin(PM25)], given).items():
        table[name] = _site_days(column, index)
    table = table.reset_index()

    if weather:
        crn = uscrn.load(weather)
        if not crn["date"].isin(dates).any():
            raise _no_overlap(", ".join(map(str, weather)), crn["date"], dates)
        at_sites = uscrn.at_places(
            crn, places["lat"], places["lon"], dates, max_station_km=max_station_km, stations=stations
        )
        table = pd.concat([table, at_sites], axis=1)
    return table


@dataclass(frozen=True)
class _Source:
    """Content of one AirData table: a file, a member of a zip, or the part below a repeated header."""

    name: str
    params: frozenset[str]
    """All parameters in the table, including those of rows that were left out."""
    durations: frozenset[str]
    """All sample durations of PM2.5 rows, as they are written."""
    rows: pd.DataFrame
    """Rows that `build` uses: site_id, date, param, poc, lat, lon, value."""


def _read(path: Path) -> Iterator[_Source]:
    """Read and check the tables of one AirData file."""
    fix = "give AirData files such as daily_88101_2021.zip"
    if path.is_dir():
        raise InputError(str(path), "", "a folder, not a file", fix)
    for name, data in agency_files.contents(path, r".*\.csv(\.gz)?", ".csv file", fix):
        for first_line, part in _parts(data):
            yield _Table(name, first_line, part).source()


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tables of concatenated files, each from its header on, with the line number of its header."""
    content = data.lstrip(b"\n")
    start = len(data) - len(content)
    starts = [start]
    for key in {content[: content.find(b"\n") + 1], b"State Code"} - {b""}:
        at = data.find(key, start + 1)
        while at >= 0:
            begin = data.rfind(b"\n", 0, at) + 1
            if begin > start and not (set(COLUMNS) - set(_header(data[begin:]).names)):
                starts.append(begin)
            at = data.find(key, at + 1)
    starts = [*sorted({*starts}), len(data)]
    line = 1 + data[:start].count(b"\n")
    for begin, end in pairwise(starts):
        part = data[begin:end]
        yield line, part.removeprefix(b"\xef\xbb\xbf")
        line += part.count(b"\n")


class _Header(NamedTuple):
    """First line of a table."""

    names: list[str]
    """Names of the columns; those of `COLUMNS` as they are spelled there."""
    separator: str


def _header(data: bytes) -> _Header:
    """Read the header. R and the AQS API write names such as `State.Code` and `site_number`."""
    line = data[:HEADER_BYTES].partition(b"\n")[0].decode("utf-8-sig", "replace")
    separator = max(",;\t|", key=line.count)
    known = {_plain(name): name for name in COLUMNS} | {"site number": "Site Num"}
    names = [name.strip().strip('"') for name in line.split(separator)]
    return _Header([known.get(_plain(name), name) for name in names], separator)


def _plain(label: str) -> str:
    """Label in lower case, with single blanks between its words."""
    return " ".join(re.findall(r"[^\W_]+", label)).casefold()


class _Table:
    """One table of an AirData file, whose errors name the file and the line."""

    def __init__(self, name: str, first_line: int, data: bytes) -> None:
        self.name, self.first_line, self.data = name, first_line, data
        self.raw = self._parsed()

    def source(self) -> _Source:
        """Check every column and keep the rows that `build` uses."""
        raw = self.raw
        state = self._each("State Code", _state, "give the state's FIPS code, or CC for Canada")
        county = self._each("County Code", partial(_code, digits=3), "give the county's FIPS code")
        number = self._each("Site Num", partial(_code, digits=4), "give the site's number in its county")
        params = self._each(
            "Parameter Code",
            _parameter,
            "leave this file out, or remove the rows of this parameter",
            f"is not one of {', '.join(UNITS)}",
        )
        dates = self._dates()
        events = self._each(
            "Event Type",
            lambda text: EVENTS.get(_plain(text)),
            "use None, Included or Excluded",
            "is not a known label",
        )
        raw["param"] = self._spread("Parameter Code", params)
        self._check_units()
        self._check_numbers()
        durations = self._labels("Sample Duration").map(_duration)
        of_pm25 = raw["param"].isin(PM25).to_numpy()
        daily = np.where(
            of_pm25,
            self._spread("Sample Duration", durations.isin(PM25_DURATIONS)),
            self._spread("Sample Duration", durations.isin(WEATHER_DURATIONS)),
        )
        keep = (
            daily
            & self._spread("State Code", state.isin(CONUS_STATES))
            & self._spread("Event Type", events != EXCLUDED)
            & raw["Arithmetic Mean"].notna().to_numpy()
        )
        rows = pd.DataFrame(
            {
                "site_id": (
                    self._spread("State Code", state.astype(object) + "-")
                    + self._spread("County Code", county.astype(object) + "-")
                    + self._spread("Site Num", number.astype(object))
                ),
                "date": self._spread("Date Local", dates),
                "param": raw["param"],
                "poc": self._spread("POC", self._labels("POC").map(_number).str.lstrip("0")),
                "lat": raw["Latitude"],
                "lon": raw["Longitude"],
                "value": raw["Arithmetic Mean"],
            }
        )[keep]
        written = frozenset(raw["Sample Duration"][of_pm25].unique())
        return _Source(self.name, frozenset(params), written, rows)

    def _parsed(self) -> pd.DataFrame:
        """Read `COLUMNS`: `NUMBERS` as float64, the others as categories of strings."""
        names, separator = _header(self.data)
        fix = "give an AirData daily summary as it was published"
        if not self.data.strip():
            raise self._error(None, "", "empty", AGAIN)
        if missing := [name for name in COLUMNS if name not in names]:
            raise self._error(None, ", ".join(missing), "column is missing", fix)
        if separator != ",":
            problem = f"columns are separated by {separator!r}"
            raise self._error(None, "", problem, "separate them by commas, or " + AGAIN)
        if repeated := [name for name in COLUMNS if names.count(name) > 1]:
            raise self._error(None, repeated[0], "two columns have this name", "remove one of the two")
        text = pa.dictionary(pa.int32(), pa.string())
        unique = [name if name in COLUMNS else f"{i} {name}" for i, name in enumerate(names)]
        try:
            table = csv.read_csv(
                pa.BufferReader(self.data),
                # A row must fit into a block; EPA's rows have about 370 bytes.
                read_options=csv.ReadOptions(
                    use_threads=False, block_size=MOST_ROW_BYTES, column_names=unique, skip_rows=1
                ),
                convert_options=csv.ConvertOptions(
                    include_columns=COLUMNS,
                    column_types={c: pa.float64() if c in NUMBERS else text for c in COLUMNS},
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            raise self._not_csv(str(error), names) from error
        frame: pd.DataFrame = table.unify_dictionaries().to_pandas()
        return frame

    def _not_csv(self, reason: str, names: Sequence[str]) -> InputError:
        """Error for a row that Arrow cannot read."""
        row, column = re.search(r"Row #(\d+): ", reason), re.search(r"CSV column #(\d+): ", reason)
        number = int(row[1]) if row else None
        value = re.search(r"invalid value '(.*)'", reason, re.DOTALL)
        if number is not None and column is not None and value is not None:
            problem, fix = f"{value[1]!r} is not a number", f"correct that line, or {AGAIN}"
            return self._error(number - 2, names[int(column[1])], problem, fix)
        short = reason.splitlines()[0][:200]
        if "straddl" in short:  # pyarrow has read no end of a row in a block
            return self._error(None, "", f"a row has more than {MOST_ROW_BYTES:,} bytes", AGAIN)
        return self._error(
            None if number is None else number - 2, "", f"cannot be read as CSV ({short})", AGAIN
        )

    def _dates(self) -> "pd.Series[pd.Timestamp]":
        """Read the dates; Excel's are refused, because month and day may be exchanged in them."""
        labels = self._labels("Date Local")
        dates = pd.to_datetime(labels, format="%Y-%m-%d", errors="coerce")
        last = pd.Timestamp.now() + pd.Timedelta(days=1)
        for text, date in dates.items():
            if date is pd.NaT:
                problem = f"{text!r} is not a date YYYY-MM-DD"
            elif not FIRST_DAY <= date <= last:
                problem = f"no monitor measured on {text}"
            else:
                continue
            raise self._error_at("Date Local", str(text), problem, f"correct that line, or {AGAIN}")
        return dates

    def _check_units(self) -> None:
        units = self.raw[["param", "Units of Measure"]].drop_duplicates()
        for row, param, unit in units.itertuples():
            if " ".join(str(unit).lower().split()) != UNITS[param].lower():
                problem, fix = f"parameter {param} is in {unit!r}", f"give it in {UNITS[param]!r}"
                raise self._error(row, "Units of Measure", problem, fix)

    def _check_numbers(self) -> None:
        """Refuse numbers that are no measurement and no place."""
        bad = {
            "Latitude": (self.raw["Latitude"].abs() > 90, "is not a latitude"),
            "Longitude": (self.raw["Longitude"].abs() > 180, "is not a longitude"),
            "Arithmetic Mean": (
                (self.raw["Arithmetic Mean"] <= MISSING_CODE) | np.isinf(self.raw["Arithmetic Mean"]),
                "is not a measurement",
            ),
        }
        for column, (rows, problem) in bad.items():
            if rows.any():
                row = int(np.argmax(rows))
                value = float(self.raw[column].iloc[row])
                raise self._error(row, column, f"{value:g} {problem}", "leave it empty, or remove the row")

    def _each(
        self, column: str, read: Callable[[str], str | None], fix: str, problem: str = "is not a code"
    ) -> "pd.Series[str]":
        """Read every different label of a column; raise InputError for one that `read` makes None of."""
        labels = self._labels(column)
        found = labels.map(read)
        for text, value in found.items():
            if not isinstance(value, str):
                raise self._error_at(column, str(text), f"{text!r} {problem}", fix)
        return found.astype("str")

    def _labels(self, column: str) -> "pd.Series[str]":
        """Different labels of a column without blanks around them; the index has them as they are."""
        return self.raw[column].cat.categories.to_series().str.strip()

    def _spread(self, column: str, per_label: pd.Series) -> np.ndarray:
        """Return a value for every row from one for each label of a column."""
        return per_label.to_numpy()[self.raw[column].cat.codes]

    def _error_at(self, column: str, value: str, problem: str, fix: str) -> InputError:
        return self._error(int(np.argmax(self.raw[column] == value)), column, problem, fix)

    def _error(self, row: int | None, field: str, problem: str, fix: str) -> InputError:
        """Error that names the file and the line of a row, counted from 0 below the header."""
        where = self.name if row is None else f"{self.name}: line {self._line(row)}"
        return InputError(where, field, problem, fix)

    def _line(self, row: int) -> int:
        """Line of a row in the file. Arrow does not count empty lines."""
        lines = (i for i, line in enumerate(self.data.split(b"\n")) if line)
        return self.first_line + next(islice(lines, row + 1, None), row + 1)


def _number(text: str) -> str:
    """Code without the `.0` that a spreadsheet or pandas appends."""
    return re.sub(r"\.0*$", "", text)


def _code(text: str, digits: int) -> str | None:
    """Code with leading zeros; None if it is not a number of at most so many digits."""
    code = _number(text).lstrip("0").zfill(digits)
    return code if code.isascii() and code.isdigit() and len(code) == digits and text else None


def _state(text: str) -> str | None:
    """FIPS code of a state, or CC, EPA's code of Canada."""
    return "CC" if text == "CC" else _code(text, 2)


def _parameter(text: str) -> str | None:
    """Code of a parameter that `build` uses; None for any other."""
    code = _code(text, 5)
    return code if code in UNITS else None


def _duration(label: str) -> str:
    """Sample duration as `PM25_DURATIONS` spell it; other durations are returned unchanged."""
    return DURATIONS.get(_plain(label), label)


def _places(rows: pd.DataFrame, names: str) -> pd.DataFrame:
    """Return lat, lon of each site: its most frequent position, the south-westernmost if several are."""
    counts = rows.groupby(["site_id", "lat", "lon"]).size().rename("n").reset_index()
    counts = counts[(counts["lat"] != 0) | (counts["lon"] != 0)]  # 0, 0 in the Atlantic means unknown
    counts = counts.sort_values(["site_id", "n", "lat", "lon"], ascending=[True, False, True, True])
    places = counts.drop_duplicates("site_id").set_index("site_id")[["lat", "lon"]]
    if lost := sorted(set(rows["site_id"]) - set(places.index)):
        problem = f"site {lost[0]} has no position"
        raise InputError(names, "Latitude, Longitude", problem, "fill it in, or remove its rows")
    return places


def _site_days(rows: pd.DataFrame, index: pd.MultiIndex) -> pd.Series:
    """Compute the mean over instruments of each site-day in `index`, float32, NaN if there is none.

    Values of one instrument are averaged first, because EPA repeats a row for each Pollutant Standard.
    """
    by_poc = rows.groupby(["site_id", "date", "poc"])["value"].mean()
    return by_poc.groupby(["site_id", "date"]).mean().reindex(index).astype(np.float32)


def _epa_weather(rows: pd.DataFrame, given: set[str]) -> dict[str, pd.DataFrame]:
    """Convert weather rows to the panel's units, by column name, for the parameters that were given."""

    def of(param: str) -> pd.DataFrame:
        return rows[rows["param"] == param]

    def celsius(param: str) -> pd.DataFrame:
        return of(param).assign(value=lambda r: (r["value"] - 32) * (5 / 9))

    columns = {
        "62101": lambda: {"aqs_temp_c": celsius("62101")},
        "61103": lambda: {
            "aqs_wind_speed_ms": of("61103").assign(value=lambda r: r["value"] * (1852 / 3600))
        },
        "61104": lambda: {
            "aqs_wind_dir_sin": of("61104").assign(value=lambda r: np.sin(np.radians(r["value"]))),
            "aqs_wind_dir_cos": of("61104").assign(value=lambda r: np.cos(np.radians(r["value"]))),
        },
        "62201": lambda: {"aqs_rh": of("62201")},
        "62103": lambda: {"aqs_dewpoint_c": celsius("62103")},
        "64101": lambda: {"aqs_press_hpa": of("64101")},
    }
    return {
        name: frame for param, make in columns.items() if param in given for name, frame in make().items()
    }


def _no_overlap(path: object, dates: "pd.Series[pd.Timestamp]", panel: pd.DatetimeIndex) -> InputError:
    """Error for weather of other days than the PM2.5 files."""
    days = f"{dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}" if len(dates) else "no day"
    problem = f"weather is of {days}, PM2.5 of {panel[0]:%Y-%m-%d} to {panel[-1]:%Y-%m-%d}"
    return InputError(str(path), "Date", problem, "give weather of the same days")
