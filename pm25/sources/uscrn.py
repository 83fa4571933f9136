"""NOAA USCRN daily01 station files, interpolated to places by inverse squared distance."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pyarrow import csv

from pm25.errors import InputError
from pm25.geo import great_circle_km
from pm25.limits import MOST_ROW_BYTES
from pm25.sources import agency_files
from pm25.sources.agency_files import AGAIN

# fmt: off
COLUMNS = [  # all columns of the format, in order
    "WBANNO", "LST_DATE", "CRX_VN", "LONGITUDE", "LATITUDE",
    "T_DAILY_MAX", "T_DAILY_MIN", "T_DAILY_MEAN", "T_DAILY_AVG", "P_DAILY_CALC", "SOLARAD_DAILY",
    "SUR_TEMP_DAILY_TYPE", "SUR_TEMP_DAILY_MAX", "SUR_TEMP_DAILY_MIN", "SUR_TEMP_DAILY_AVG",
    "RH_DAILY_MAX", "RH_DAILY_MIN", "RH_DAILY_AVG",
    "SOIL_MOISTURE_5_DAILY", "SOIL_MOISTURE_10_DAILY", "SOIL_MOISTURE_20_DAILY", "SOIL_MOISTURE_50_DAILY",
    "SOIL_MOISTURE_100_DAILY", "SOIL_TEMP_5_DAILY", "SOIL_TEMP_10_DAILY", "SOIL_TEMP_20_DAILY",
    "SOIL_TEMP_50_DAILY", "SOIL_TEMP_100_DAILY",
]
# fmt: on

VARIABLES = {
    "crn_tmax_c": "T_DAILY_MAX",
    "crn_tmin_c": "T_DAILY_MIN",
    "crn_tavg_c": "T_DAILY_AVG",  # not T_DAILY_MEAN, which is (max + min) / 2
    "crn_prcp_mm": "P_DAILY_CALC",
    "crn_solar_mj_m2": "SOLARAD_DAILY",
    "crn_rh_avg": "RH_DAILY_AVG",
    "crn_rh_min": "RH_DAILY_MIN",
    "crn_surf_avg_c": "SUR_TEMP_DAILY_AVG",
}
"""Panel column -> USCRN field."""

RANGES = {
    "T_DAILY_MAX": (-90.0, 70.0),
    "T_DAILY_MIN": (-90.0, 70.0),
    "T_DAILY_AVG": (-90.0, 70.0),
    "P_DAILY_CALC": (0.0, 2000.0),
    "SOLARAD_DAILY": (-5.0, 100.0),
    "RH_DAILY_AVG": (0.0, 110.0),
    "RH_DAILY_MIN": (0.0, 110.0),
    "SUR_TEMP_DAILY_AVG": (-90.0, 100.0),
}
"""Lowest and highest accepted value of each field that is used; NOAA's solar radiation is up to 61."""

MISSING = tuple(1 - 10.0**digits for digits in range(2, 10))
"""Codes of a missing value: -99, -999, ... NOAA writes -9999.0 or -99.000, by the width of the field."""

STATION_FILE = r"CRND.*\.txt(\.gz)?"
"""Regular expression of the names of daily01 files."""

MIN_DISTANCE_KM = 5.0
"""Smallest distance used in a weight. Positions are given to 0.01 degrees (about 1 km). A station at the
place itself must neither divide by zero nor make the weights of the other stations negligible."""


def parse(data: bytes, name: str) -> pd.DataFrame:
    """Read the rows of one station file: WBANNO, date, LONGITUDE, LATITUDE and the fields of `VARIABLES`.

    Codes of missing values become NaN: -9999.0, -99.000 and all others of nines. Lines with the names of the
    columns are left out. Units are those of the file: degrees C, mm, MJ/m2, %. Raises InputError, which names
    `name` and the line, for a wrong number of columns, a bad number, date or position, and an impossible
    value.
    """
    wanted = ["WBANNO", "LST_DATE", "LONGITUDE", "LATITUDE", *VARIABLES.values()]
    lines = _Lines(name, data)
    try:
        table = csv.read_csv(
            pa.BufferReader(lines.rows),
            read_options=csv.ReadOptions(use_threads=False, block_size=MOST_ROW_BYTES, column_names=COLUMNS),
            parse_options=csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=csv.ConvertOptions(
                include_columns=wanted,
                column_types={c: pa.string() if c == "LST_DATE" else pa.float64() for c in wanted},
                null_values=[],
            ),
        )
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        if "straddl" in reason:  # pyarrow has read no end of a row in a block
            raise lines.error(None, "", f"a row has more than {MOST_ROW_BYTES:,} bytes") from None
        number = re.search(r"Row #(\d+): ", reason)
        problem = f"not a USCRN daily01 file of {len(COLUMNS)} columns ({reason[:200]})"
        raise lines.error(int(number[1]) - 1 if number else None, "", problem) from error
    frame: pd.DataFrame = table.to_pandas()
    dates = pd.to_datetime(frame["LST_DATE"], format="%Y%m%d", errors="coerce")
    if dates.isna().any():
        row = int(np.argmax(dates.isna()))
        raise lines.error(row, "LST_DATE", f"{frame['LST_DATE'].iloc[row]!r} is not a date YYYYMMDD")
    bad = ~(frame["LATITUDE"].abs().le(90) & frame["LONGITUDE"].abs().le(180))
    if bad.any():
        row = int(np.argmax(bad))
        place = (float(frame["LATITUDE"].iloc[row]), float(frame["LONGITUDE"].iloc[row]))
        raise lines.error(row, "LATITUDE, LONGITUDE", f"{place} is not a place on Earth")
    fields = list(VARIABLES.values())
    frame[fields] = frame[fields].mask(frame[fields].isin(MISSING))
    for field, (low, high) in RANGES.items():
        bad = (frame[field] < low) | (frame[field] > high)
        if bad.any():
            row = int(np.argmax(bad))
            problem = f"{frame[field].iloc[row]:g} is not between {low:g} and {high:g}"
            raise lines.error(row, field, problem, "write -9999.0 for a missing value")
    frame["LST_DATE"] = dates
    return frame.rename(columns={"LST_DATE": "date"})


class _Lines:
    """Lines of a station file with single blanks, and their numbers for errors."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.rows = re.sub(rb"(?m)^ +| +$", b"", re.sub(rb"[ \t]+", b" ", agency_files.with_newlines(data)))
        if b"WBANNO" in self.rows:
            self.rows = re.sub(rb"(?m)^WBANNO .*$", b"", self.rows)

    def error(self, row: int | None, field: str, problem: str, fix: str = AGAIN) -> InputError:
        """Error that names the file and the line of a row, counted from 0; Arrow counts no empty lines."""
        if row is None:
            return InputError(self.name, field, problem, fix)
        numbers = [i for i, line in enumerate(self.rows.split(b"\n"), 1) if line]
        return InputError(f"{self.name}: line {numbers[row]}", field, problem, fix)


def load(paths: Sequence[Path]) -> pd.DataFrame:
    """Read all station files in `paths`: files, folders of CRND*.txt (at any depth), and zips of them.

    If a station-day is repeated, the last one read is used. Raises InputError for a path that is missing,
    unreadable or contains no station file.
    """
    frame = pd.concat([parse(data, name) for path in paths for name, data in _station_files(Path(path))])
    return frame.drop_duplicates(["WBANNO", "date"], keep="last", ignore_index=True)


def inverse_distance(
    km: NDArray[np.float64], values: NDArray[np.float32], *, max_km: float, stations: int
) -> NDArray[np.float32]:
    """Compute means (N, D, V) at N places, weighted by 1 / km^2, from `km` (N, S) and `values` (S, D, V).

    Distances below `MIN_DISTANCE_KM` are replaced by it. Each place, day and variable uses the nearest
    `stations` stations within `max_km` that report a value (not NaN). The mean is NaN if there is none.
    """
    out = np.full((km.shape[0], *values.shape[1:]), np.nan, np.float32)
    for place, distances in enumerate(km):  # a loop, so that an array (N, S, D, V) is never in memory
        near = np.argsort(distances, kind="stable")[: np.count_nonzero(distances <= max_km)]
        reported = ~np.isnan(values[near])
        used = reported & (np.cumsum(reported, axis=0) <= stations)
        weights = used / np.maximum(distances[near], MIN_DISTANCE_KM)[:, None, None] ** 2
        total = weights.sum(axis=0)
        mean = (weights * np.where(used, values[near], 0)).sum(axis=0)
        np.divide(mean, total, out=out[place], where=total > 0, casting="same_kind")
    return out


def at_places(
    weather: pd.DataFrame,
    lat: ArrayLike,
    lon: ArrayLike,
    dates: pd.DatetimeIndex,
    *,
    max_station_km: float,
    stations: int,
) -> pd.DataFrame:
    """Interpolate to N places x D dates: `crn_nearest_km` and the columns of `VARIABLES`, N * D rows.

    All dates of a place come before the next place. `weather` is the result of `load`. `crn_nearest_km` is
    the distance to the nearest station with a row on any of the dates, without a limit. A station that moved
    has the position of its last row.
    """
    weather = weather[weather["date"].isin(dates)].sort_values(["WBANNO", "date"])
    places = weather.groupby("WBANNO")[["LATITUDE", "LONGITUDE"]].last()
    values = np.full((len(places), len(dates), len(VARIABLES)), np.nan, np.float32)
    rows = places.index.get_indexer(pd.Index(weather["WBANNO"]))
    days = dates.get_indexer(pd.DatetimeIndex(weather["date"]))
    values[rows, days] = weather[list(VARIABLES.values())].to_numpy(np.float32)
    km = great_circle_km(
        np.asarray(lat)[:, None], np.asarray(lon)[:, None], places["LATITUDE"], places["LONGITUDE"]
    )
    means = inverse_distance(km, values, max_km=max_station_km, stations=stations)
    frame = pd.DataFrame(means.reshape(-1, len(VARIABLES)), columns=list(VARIABLES))
    frame.insert(0, "crn_nearest_km", np.repeat(km.min(axis=1), len(dates)))
    return frame


def _station_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each station file at `path`."""
    fix = "give CRND0103-YEAR-STATION.txt files, a folder of them or a zip of them"
    if not path.exists():
        raise InputError(str(path), "", "no such file or folder", fix)
    if not path.is_dir():
        yield from agency_files.contents(path, STATION_FILE, "CRND*.txt", fix)
        return
    found = sorted(file for file in path.rglob("*") if re.fullmatch(STATION_FILE, file.name, re.IGNORECASE))
    if not found:
        raise InputError(str(path), "", "no CRND*.txt in this folder", fix)
    for file in found:
        yield from agency_files.contents(file, STATION_FILE, "CRND*.txt", fix)
