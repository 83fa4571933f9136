"""A panel table from EPA AirData daily files, with the weather of NOAA USCRN stations beside it."""

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

PM25 = ("88101", "88502")  # FRM/FEM first: where a site-day has both, it wins

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
"""AQS parameter code -> the one unit it is accepted in."""

PM25_DURATIONS = ("24 HOUR", "24-HR BLK AVG")
WEATHER_DURATIONS = ("1 HOUR", "24 HOUR", "24-HR BLK AVG")

CONUS = frozenset(f"{fips:02d}" for fips in range(1, 57)) - {"02", "15"}
"""State FIPS codes of the 48 states and DC; EPA's files also hold AK, HI, territories, Canada and Mexico."""

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
    """One row for each CONUS site that measured PM2.5 and each day from the first to the last of the files.

    `files`: AirData daily summaries, .csv or .zip, of PM2.5 (88101, 88502) and, where wanted, TEMP, WIND,
    RH_DP, PRESS. `weather`: USCRN daily01 station files, folders of them or zips of them.

    Columns: site_id ('SS-CCC-NNNN'), date, lat, lon (degrees), pm25 (ug/m3, NaN = unobserved), param (which
    parameter gave pm25); then, each where its parameter was given, the site's own aqs_temp_c,
    aqs_wind_speed_ms, aqs_wind_dir_sin, aqs_wind_dir_cos, aqs_rh (%), aqs_dewpoint_c, aqs_press_hpa; then,
    where `weather` was given, crn_nearest_km and the columns of `uscrn.VARIABLES`. Sorted by site_id, date.

    A site-day is the mean over its instruments (POC); 'Excluded' events are left out (the 'Included' twin
    row of the same day stays). EPA gives positions in WGS84, NAD83 or NAD27: all are taken as WGS84 (less
    than 100 m apart in CONUS). A site listed at several positions is put at the most frequent one.
    EPA's daily direction is an arithmetic mean of hourly degrees, wrong for days that straddle north: here
    only the mean over instruments is circular (mean sine and mean cosine, not renormalised).

    Raises InputError for anything in the files that cannot be read as the above.
    """
    if not max_station_km > 0 or stations < 1:
        raise InputError(
            f"max_station_km={max_station_km}, stations={stations}: give a distance above 0 km and "
            "1 or more stations"
        )
    sources = [_read(Path(path)) for path in files]
    rows = pd.concat([source.rows for source in sources]) if sources else pd.DataFrame({"param": []})
    pm_rows = rows[rows["param"].isin(PM25)]
    names = ", ".join(str(path) for path in files) or "no files"
    if not any(source.params & set(PM25) for source in sources):
        raise InputError(f"{names}: no PM2.5; add daily_88101_YEAR.zip or daily_88502_YEAR.zip")
    if pm_rows.empty:
        raise InputError(
            f"{names}: no PM2.5 row is left of the 48 states and DC with a Sample Duration of "
            f"{' or '.join(map(repr, PM25_DURATIONS))}, an Event Type other than 'Excluded' and an "
            "Arithmetic Mean; give whole AirData daily files"
        )

    dates = pd.date_range(pm_rows["date"].min(), pm_rows["date"].max(), freq="D")
    for source in sources:
        # a header without rows is no fault: nothing was measured
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
    path: Path
    params: frozenset[str]
    """Every parameter in the file, also of rows that were left out."""
    rows: pd.DataFrame
    """site_id, date, param, poc, lat, lon, value; only what `build` uses."""


def _read(path: Path) -> _Source:
    with _open(path) as stream:
        raw = _read_csv(stream, path)

    def labels(column: str) -> pd.Series:
        return raw[column].cat.categories.to_series().str.strip()

    def spread(column: str, per_label: pd.Series) -> np.ndarray:
        return per_label.to_numpy()[raw[column].cat.codes]

    def line(column: str, value: str) -> int:  # of its first occurrence; the header is line 1
        return int(np.argmax(raw[column] == value)) + 2

    params = labels("Parameter Code").str.lstrip("0")
    for text, param in params.items():
        if param not in UNITS:
            raise InputError(
                f"{path}: line {line('Parameter Code', str(text))}: Parameter Code: {text!r} is not one of "
                f"{', '.join(UNITS)}; leave this file out"
            )
    dates = pd.to_datetime(labels("Date Local"), format="%Y-%m-%d", errors="coerce")
    for text, date in dates.items():
        if date is pd.NaT:
            raise InputError(
                f"{path}: line {line('Date Local', str(text))}: Date Local: {text!r} is not a date "
                "YYYY-MM-DD; fix that line or download the file again"
            )
    raw["param"] = spread("Parameter Code", params)
    for param, unit in raw[["param", "Units of Measure"]].drop_duplicates().itertuples(index=False):
        if str(unit).strip().lower() != UNITS[param].lower():
            raise InputError(
                f"{path}: line {line('Units of Measure', unit)}: Units of Measure: parameter {param} is in "
                f"{unit!r}; give it in {UNITS[param]!r}"
            )

    state = labels("State Code").str.zfill(2)
    durations = np.where(
        raw["param"].isin(PM25),
        spread("Sample Duration", labels("Sample Duration").isin(PM25_DURATIONS)),
        spread("Sample Duration", labels("Sample Duration").isin(WEATHER_DURATIONS)),
    )
    keep = (
        durations
        & spread("State Code", state.isin(CONUS))
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
    """The CSV's bytes, straight from the zip."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give AirData files such as daily_88101_2021.zip")
    if path.suffix.lower() != ".zip":
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.lower().endswith(".csv")]
            if len(members) != 1:
                raise InputError(
                    f"{path}: holds {len(members)} .csv files; give AirData's own zips, one CSV in each"
                )
            with archive.open(members[0]) as member:
                yield cast(zipfile.ZipExtFile, member)
    except uscrn.DAMAGED_ZIP as error:
        raise InputError(f"{path}: a damaged zip ({error}); download it again") from error


def _read_csv(stream: io.BufferedReader | zipfile.ZipExtFile, path: Path) -> pd.DataFrame:
    """`COLUMNS` of the file: `NUMBERS` as float64, the others as categories of text."""
    buffered = (
        stream if isinstance(stream, io.BufferedReader | zipfile.ZipExtFile) else io.BufferedReader(stream)
    )
    header = buffered.peek(4096).split(b"\n")[0].decode("utf-8-sig", "replace")
    names = [name.strip().strip('"') for name in header.split(",")]
    if missing := [name for name in COLUMNS if name not in names]:
        raise InputError(
            f"{path}: no column {', '.join(map(repr, missing))}; give an AirData daily summary, unchanged"
        )
    text = pa.dictionary(pa.int32(), pa.string())
    try:
        table = csv.read_csv(
            stream,
            # one row may not straddle a block; EPA's rows are about 370 bytes
            read_options=csv.ReadOptions(use_threads=False, block_size=1 << 20),
            convert_options=csv.ConvertOptions(
                include_columns=COLUMNS,
                column_types={c: pa.float64() if c in NUMBERS else text for c in COLUMNS},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable CSV: {reason}; download it again") from error
    frame: pd.DataFrame = table.unify_dictionaries().to_pandas()
    return frame


def _places(rows: pd.DataFrame, names: str) -> pd.DataFrame:
    """lat, lon of each site: its most frequent position, the south-westernmost of equals."""
    counts = rows.groupby(["site_id", "lat", "lon"]).size().rename("n").reset_index()
    counts = counts[(counts["lat"] != 0) | (counts["lon"] != 0)]  # 0, 0 in the Atlantic means unknown
    counts = counts.sort_values(["site_id", "n", "lat", "lon"], ascending=[True, False, True, True])
    places = counts.drop_duplicates("site_id").set_index("site_id")[["lat", "lon"]]
    if lost := sorted(set(rows["site_id"]) - set(places.index)):
        raise InputError(
            f"{names}: Latitude, Longitude: site {lost[0]} has no position; fill it in or remove its rows"
        )
    return places


def _site_days(rows: pd.DataFrame, index: pd.MultiIndex) -> pd.Series:
    """Mean over instruments of each site-day in `index`, float32, NaN where there is none.

    First within an instrument: EPA repeats a row for each Pollutant Standard, and that is not more weight.
    """
    by_poc = rows.groupby(["site_id", "date", "poc"])["value"].mean()
    return by_poc.groupby(["site_id", "date"]).mean().reindex(index).astype(np.float32)


def _epa_weather(rows: pd.DataFrame, given: set[str]) -> dict[str, pd.DataFrame]:
    """Column name -> its rows in the panel's units, for the parameters that were given."""

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
    days = f"{dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}" if len(dates) else "no day"
    return InputError(
        f"{path}: Date: weather of {days} has no day of the PM2.5 files' {panel[0]:%Y-%m-%d} to "
        f"{panel[-1]:%Y-%m-%d}; give weather of the same year"
    )
