"""A panel table from EPA AirData daily files and the weather of NOAA USCRN stations."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from pm25.errors import InputError
from pm25.sources import uscrn

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

PM25_DURATIONS = ("24 HOUR", "24-HR BLK AVG")
WEATHER_DURATIONS = ("1 HOUR", "24 HOUR", "24-HR BLK AVG")
"""Sample durations that are used; rows with others are left out."""

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


def build(
    files: Sequence[Path], weather: Sequence[Path] = (), *, max_station_km: float = 300.0, stations: int = 3
) -> pd.DataFrame:
    """Build a table with one row for each CONUS site that measured PM2.5 and each day.

    `files` are AirData daily summaries, .csv or .zip, of PM2.5 (88101, 88502) and optionally of TEMP, WIND,
    RH_DP and PRESS. `weather` are USCRN daily01 station files, folders of them or zips of them. Days are all
    those from the first to the last with PM2.5. Rows are sorted by site_id, then date. The columns are:

    - site_id ('SS-CCC-NNNN'), date, lat, lon (degrees)
    - pm25 (ug/m3, NaN = unobserved), param (the parameter code of pm25)
    - for each parameter in `files`, the site's own measurements: aqs_temp_c, aqs_wind_speed_ms,
      aqs_wind_dir_sin, aqs_wind_dir_cos, aqs_rh (%), aqs_dewpoint_c, aqs_press_hpa
    - with `weather`, crn_nearest_km and the columns of `uscrn.VARIABLES`

    A site-day is the mean over its instruments (POC). Rows of 'Excluded' events are left out, and the
    'Included' row of the same day is kept. EPA gives positions in WGS84, NAD83 or NAD27. All are read as
    WGS84 (less than 100 m apart in CONUS). A site listed at several positions gets the most frequent one.
    EPA's daily wind direction is an arithmetic mean of hourly degrees, wrong for days that straddle north.
    Here only the mean over instruments is circular (mean sine and mean cosine, not renormalised).

    Raises InputError for files that cannot be read in this way.
    """
    if not max_station_km > 0:
        problem = f"{max_station_km} is out of range"
        raise InputError("weather", "max_station_km", problem, "give a distance above 0 km")
    if stations < 1:
        raise InputError("weather", "stations", f"{stations} is out of range", "give 1 or more")
    sources = [_read(Path(path)) for path in files]
    rows = pd.concat([source.rows for source in sources]) if sources else pd.DataFrame({"param": []})
    pm_rows = rows[rows["param"].isin(PM25)]
    names = ", ".join(str(path) for path in files) or "no files"
    if not any(source.params & set(PM25) for source in sources):
        raise InputError(names, "", "no PM2.5", "add daily_88101_YEAR.zip or daily_88502_YEAR.zip")
    if pm_rows.empty:
        problem = (
            "no usable PM2.5 row; needed are one of the 48 states or DC, a Sample Duration of "
            f"{' or '.join(map(repr, PM25_DURATIONS))}, an Event Type other than 'Excluded', "
            "and an Arithmetic Mean"
        )
        raise InputError(names, "", problem, "give complete AirData daily files")

    dates = pd.date_range(pm_rows["date"].min(), pm_rows["date"].max(), freq="D")
    for source in sources:
        # A file with a header and no rows is allowed: nothing was measured.
        if source.params and source.params.isdisjoint(PM25) and not source.rows["date"].isin(dates).any():
            raise _no_overlap(source.path, source.rows["date"], dates)

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
    """Content of one AirData file."""

    path: Path
    params: frozenset[str]
    """All parameters in the file, including those of rows that were left out."""
    rows: pd.DataFrame
    """Rows that `build` uses: site_id, date, param, poc, lat, lon, value."""


def _read(path: Path) -> _Source:
    """Read and check one AirData file."""
    with _open(path) as stream:
        raw = _read_csv(stream, path)

    def labels(column: str) -> pd.Series:
        return raw[column].cat.categories.to_series().str.strip()

    def spread(column: str, per_label: pd.Series) -> np.ndarray:
        return per_label.to_numpy()[raw[column].cat.codes]

    def line(column: str, value: str) -> str:
        """Name the file and the line of the first occurrence of `value`; the header is line 1."""
        return f"{path}: line {int(np.argmax(raw[column] == value)) + 2}"

    params = labels("Parameter Code").str.lstrip("0")
    for text, param in params.items():
        if param not in UNITS:
            problem = f"{text!r} is not one of {', '.join(UNITS)}"
            where = line("Parameter Code", str(text))
            raise InputError(where, "Parameter Code", problem, "leave this file out")
    dates = pd.to_datetime(labels("Date Local"), format="%Y-%m-%d", errors="coerce")
    for text, date in dates.items():
        if date is pd.NaT:
            problem, fix = f"{text!r} is not a date YYYY-MM-DD", f"fix that line, or {uscrn.AGAIN}"
            raise InputError(line("Date Local", str(text)), "Date Local", problem, fix)
    raw["param"] = spread("Parameter Code", params)
    for param, unit in raw[["param", "Units of Measure"]].drop_duplicates().itertuples(index=False):
        if str(unit).strip().lower() != UNITS[param].lower():
            problem, fix = f"parameter {param} is in {unit!r}", f"give it in {UNITS[param]!r}"
            raise InputError(line("Units of Measure", unit), "Units of Measure", problem, fix)

    state = labels("State Code").str.zfill(2)
    durations = np.where(
        raw["param"].isin(PM25),
        spread("Sample Duration", labels("Sample Duration").isin(PM25_DURATIONS)),
        spread("Sample Duration", labels("Sample Duration").isin(WEATHER_DURATIONS)),
    )
    keep = (
        durations
        & spread("State Code", state.isin(CONUS_STATES))
        & spread("Event Type", labels("Event Type") != "Excluded")
        & raw["Arithmetic Mean"].notna().to_numpy()
    )
    rows = pd.DataFrame(
        {
            "site_id": (
                spread("State Code", state.astype(object) + "-")
                + spread("County Code", labels("County Code").str.zfill(3).astype(object) + "-")
                + spread("Site Num", labels("Site Num").str.zfill(4).astype(object))
            ),
            "date": spread("Date Local", dates),
            "param": raw["param"],
            "poc": spread("POC", labels("POC").str.lstrip("0")),
            "lat": raw["Latitude"],
            "lon": raw["Longitude"],
            "value": raw["Arithmetic Mean"],
        }
    )[keep]
    return _Source(path, frozenset(params), rows)


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader | zipfile.ZipExtFile]:
    """Open the CSV, directly in its zip if it is zipped."""
    if not path.is_file():
        fix = "give AirData files such as daily_88101_2021.zip"
        raise InputError(str(path), "", "no such file", fix)
    if path.suffix.lower() != ".zip":
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.lower().endswith(".csv")]
            if len(members) != 1:
                problem = f"zip contains {len(members)} .csv files"
                raise InputError(str(path), "", problem, "give AirData's own zips, with one CSV in each")
            with archive.open(members[0]) as member:
                yield cast(zipfile.ZipExtFile, member)
    except uscrn.DAMAGED_ZIP as error:
        raise InputError(str(path), "", f"damaged zip ({error})", uscrn.AGAIN) from error


def _read_csv(stream: io.BufferedReader | zipfile.ZipExtFile, path: Path) -> pd.DataFrame:
    """Read `COLUMNS` of the file: `NUMBERS` as float64, the others as categories of strings."""
    buffered = (
        stream if isinstance(stream, io.BufferedReader | zipfile.ZipExtFile) else io.BufferedReader(stream)
    )
    header = buffered.peek(4096).split(b"\n")[0].decode("utf-8-sig", "replace")
    names = [name.strip().strip('"') for name in header.split(",")]
    if missing := [name for name in COLUMNS if name not in names]:
        fix = "give an AirData daily summary as it was published"
        raise InputError(str(path), ", ".join(missing), "column is missing", fix)
    text = pa.dictionary(pa.int32(), pa.string())
    try:
        table = csv.read_csv(
            stream,
            # A row must fit into a block; EPA's rows have about 370 bytes.
            read_options=csv.ReadOptions(use_threads=False, block_size=1 << 20),
            convert_options=csv.ConvertOptions(
                include_columns=COLUMNS,
                column_types={c: pa.float64() if c in NUMBERS else text for c in COLUMNS},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise InputError(str(path), "", f"cannot be read as CSV ({reason})", uscrn.AGAIN) from error
    frame: pd.DataFrame = table.unify_dictionaries().to_pandas()
    return frame


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
