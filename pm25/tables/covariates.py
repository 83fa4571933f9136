"""Finds columns of numbers that are no covariate, such as row numbers, identifiers and empty columns."""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pm25.tables.columns import as_days, as_float, site_codes
from pm25.tables.plain import plain_type
from pm25.tables.schema import Problem, format_number
from pm25.tables.values import distinct_values, is_missing_code

MOSTLY_EMPTY = 0.95
"""Share of missing values from which a column is left out of the default channels."""
HALF_EMPTY = 0.5
"""Share of missing values from which a notice names the column. Satellite columns lack 60 to 80 %."""

MIN_ROWS = 20
"""Fewest rows in which values that grow from row to row show a counter; 2 / 20! by chance."""
MIN_SHUFFLED = 100
"""Fewest rows in which different whole numbers show a shuffled counter."""
SPREAD = 10
"""Largest range of a shuffled counter, in rows.

With 252 rows, whole numbers from that range all differ with a chance of 3 in a million."""
STEADY = 0.9
"""Smallest share of steps by one of a counter that starts again at each site or file."""
MIN_SITES = 5
"""Fewest sites whose numbers are compared; three elevations are in order by chance, or next to each other."""
MIN_ORDERED = 8
"""Fewest sites of an identifier that grows with the sites' names; 2 / 8! by chance."""

LEFT_BY_PANDAS = re.compile(r"unnamed: ?\d+.*|__index_level_\d+__|\.\.\.\d+", re.IGNORECASE)
"""Names that pandas, pyarrow and R's readr give to a column that has none."""
OF_ROWS = re.compile(
    r"index|idx|level_\d|rows?|row_?(id|no|num|number|names?|index)|obs|records?|recno|line_?(no|number)?"
    r"|seq|sequence|counter|serial|[of]?_?fid|object_?id|ogc_fid|x",
    re.IGNORECASE,
)
"""Names that row numbers often have; the values decide."""

ALWAYS_CODES = frozenset(
    (
        "fips",
        "wban",
        "wmo",
        "usaf",
        "geoid",
        "zip",
        "zipcode",
        "zcta",
        "poc",
        "id",
        "ids",
    )
)
"""Words in the name of a code, whatever its values."""
CODED_THINGS = frozenset(
    (
        "parameter",
        "param",
        "method",
        "state",
        "county",
        "site",
        "qualifier",
        "unit",
        "duration",
        "pollutant",
        "aqs",
    )
)
"""Words that make a column with `code` in its name a code of AirData or AQS."""
OF_SITES = re.compile(
    r"(aqs|ghcn|site|station|stn|sensor|monitor|loc|location|county|state|tract|pixel|device|parameter|param|method)"
    r"(id|no|num|number|nr|code|index|idx)?s?|codes?|number|nr|identifier|key|uid|id|ids"
)
"""Words in the name of an identifier, if the column has one whole number for each site."""
CLASSES = frozenset(("type", "class", "zone", "nlcd", "lc", "lulc", "landcover", "landuse", "land", "koppen"))
"""Words in the name of a class of sites, such as `nlcd_code` and `location_type`, which names no site."""
MEASURED = frozenset(
    (
        "elev",
        "elevation",
        "alt",
        "altitude",
        "height",
        "dem",
        "terrain",
        "slope",
        "aspect",
        "relief",
        "pop",
        "population",
        "people",
        "persons",
        "density",
        "dens",
        "dist",
        "distance",
        "km",
        "km2",
        "near",
        "nearest",
        "road",
        "roads",
        "highway",
        "traffic",
        "count",
        "counts",
        "area",
        "share",
        "frac",
        "fraction",
        "pct",
        "percent",
        "cover",
        "forest",
        "urban",
        "temp",
        "temperature",
        "tmax",
        "tmin",
        "precip",
        "prcp",
        "rain",
        "snow",
        "wind",
        "pressure",
        "rh",
        "humidity",
        "ndvi",
        "evi",
        "aod",
        "fire",
        "fires",
        "smoke",
        "emission",
        "emissions",
        "emis",
        "income",
        "households",
        "vehicles",
        "m",
        "ft",
    )
)
"""Words in the name of a measured quantity. Elevations and populations, too, differ between most sites."""


@dataclass(frozen=True)
class _Sites:
    """Two orders of the rows that do not depend on the file's, and what is known about the sites and days."""

    names: np.ndarray
    order: np.ndarray
    """Rows, by site and day."""
    by_day: np.ndarray
    """Rows, by day and site."""
    starts: np.ndarray
    """Position in `order` of each site's first row."""
    lat: np.ndarray
    lon: np.ndarray
    day: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "_Sites":
        code, names = site_codes(table)
        day = as_days(table["date"])
        order, by_day = np.lexsort((day, code)), np.lexsort((code, day))
        starts = np.searchsorted(code[order], np.arange(len(names)))
        lat, lon = (as_float(table[column])[order[starts]] for column in ("lat", "lon"))
        return cls(names, order, by_day, starts, lat, lon, day)

    def constants(self, values: np.ndarray) -> np.ndarray | None:
        """Value of each site, NaN where it has none; None if a site has several."""
        by_site = values[self.order]
        low, high = (extreme.reduceat(by_site, self.starts) for extreme in (np.fmin, np.fmax))
        return low if bool(np.all((low == high) | np.isnan(low))) else None


def find_no_covariates(table: pa.Table, columns: list[str]) -> tuple[list[Problem], list[Problem]]:
    """Find columns that are no covariate, and columns that may be none; every site and date must be given."""
    sites = _Sites.of(table)
    certain, doubtful = [], []
    for column in columns:
        values = as_float(table[column])
        if why := _no_covariate(
            column, values, sites, logical=pa.types.is_boolean(plain_type(table[column].type))
        ):
            certain.append(Problem(column, why))
        elif why := _doubt(column, values, sites, pa.types.is_integer(plain_type(table[column].type))):
            doubtful.append(Problem(column, why))
    return certain, doubtful


def find_unnamed(table: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """Leave out columns without a name, which a spreadsheet or a comma at the end of a line leaves."""
    nameless = [place for place, name in enumerate(table.column_names) if not name.strip()]
    named = table.select([place for place in range(table.num_columns) if place not in nameless])
    found = []
    for place in nameless:
        is_empty = table.column(place).null_count == table.num_rows
        what = f"not a channel: it has no name{' and no value' if is_empty else ''}"
        found.append(Problem(f"column {place + 1}", what))
    return named, found


def _no_covariate(column: str, values: np.ndarray, sites: _Sites, logical: bool) -> str:
    """Say why a column is not a covariate; empty if it may be one."""
    known = np.isfinite(values)
    count = int(known.sum())
    if not count:
        return "it has no value"
    finite = values[known]
    low, high = float(finite.min()), float(finite.max())
    if low == high and low:  # a column of zeros may count events, such as fires, that this period lacks
        code = ", probably a missing code" if is_missing_code(low) else ""
        return f"its only value is {format_number(low)}{code}"
    if LEFT_BY_PANDAS.fullmatch(column):
        return "pandas or a spreadsheet made its name, so it holds row numbers or has lost its name"
    if count <= (1 - MOSTLY_EMPTY) * len(values):
        return f"only {count:,} of {len(values):,} rows have a value"
    if logical:
        return ""
    each = sites.constants(values)
    if each is not None and (repeated := _repeated_place(each, sites)):
        return f"it repeats the column {repeated}"
    if not _is_whole(finite):
        return ""
    span = f"{format_number(low)} to {format_number(high)}"
    if each is None:
        if len(sites.names) > 1 and any(
            _numbers_rows(column, values[rows], sites.day[rows])
            for rows in (order[known[order]] for order in (sites.order, sites.by_day))
        ):
            return f"it numbers the rows ({span})"
        return f"it holds codes ({span})" if _is_code(column) else ""
    if _names_sites(column, each, sites):
        return f"it names the sites ({span})"
    return ""


def _doubt(column: str, values: np.ndarray, sites: _Sites, integer: bool) -> str:
    """Say why a column is probably no covariate; empty if nothing speaks against it."""
    known = np.isfinite(values)
    missing = 1 - known.sum() / len(values)
    if missing > HALF_EMPTY:
        return f"{missing:.0%} of its values are missing"
    finite = values[known]
    if not finite.any():
        return "its only value is 0"
    if not _is_whole(finite):
        return ""
    each = sites.constants(values)
    if each is not None:
        each = each[np.isfinite(each)]
        if len(each) >= MIN_SITES and len(distinct_values(each)[0]) == len(each) and not _is_measured(column):
            return "it may name the sites: each has another whole number"
    elif integer and len(finite) >= MIN_SHUFFLED and len(distinct_values(finite)[0]) == len(finite):
        return "it may name the rows: each has another whole number"
    return ""


def _words(column: str) -> list[str]:
    """Words of a name, in lower case: `stationNumber` and `station_number` have two."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", column)]


def _is_measured(column: str) -> bool:
    return not MEASURED.isdisjoint(_words(column))


def _is_code(column: str) -> bool:
    """Tell if the name alone shows that a column holds codes."""
    words = set(_words(column))
    agency = "code" in words and not CODED_THINGS.isdisjoint(words)
    return not _is_measured(column) and (agency or not ALWAYS_CODES.isdisjoint(words))


def _is_whole(finite: np.ndarray) -> bool:
    """Tell if all values are whole numbers; the first thousand settle it for most columns."""
    return all(bool((part == np.rint(part)).all()) for part in (finite[:1000], finite))


def _numbers_rows(column: str, values: np.ndarray, day: np.ndarray) -> bool:
    """Tell if whole numbers count the rows: in one run, shuffled, or in a run for each site or file."""
    count = len(values)
    if count < MIN_ROWS:
        return False
    step = np.diff(values)
    if (step > 0).all() or (step < 0).all():
        return True
    distinct, _ = distinct_values(values)
    if count >= MIN_SHUFFLED and len(distinct) == count and distinct[-1] - distinct[0] <= SPREAD * count:
        return True
    rising = max((step > 0).mean(), (step < 0).mean())
    if rising < STEADY or _is_of_the_date(values, day):
        return False
    if OF_ROWS.fullmatch(column):
        return True
    for direction in (1, -1):
        restart = np.flatnonzero(step != direction) + 1
        if len(restart) <= (1 - STEADY) * count:
            starts = values[[0, *restart]] if direction == 1 else values[[*(restart - 1), -1]]
            if (starts == starts[0]).all() and starts[0] in (0, 1):
                return True
    return False


def _is_of_the_date(values: np.ndarray, day: np.ndarray) -> bool:
    """Tell if all sites have the same value on a day, as the day of the year has."""
    order = np.argsort(day, kind="stable")
    return bool((np.diff(values[order])[np.diff(day[order]) == 0] == 0).all())


def _names_sites(column: str, each: np.ndarray, sites: _Sites) -> bool:
    """Tell if whole numbers, one for each site, are identifiers and not a measured quantity."""
    if _is_measured(column):
        return False
    words = _words(column)
    if _is_code(column) or (CLASSES.isdisjoint(words) and any(map(OF_SITES.fullmatch, words))):
        return True
    known = np.isfinite(each)
    value = each[known]
    if len(value) < 2:
        return False
    if all(map(_is_part_of, value, sites.names[known])):
        return True
    distinct, _ = distinct_values(value)
    if len(value) < MIN_SITES or len(distinct) < len(value):
        return False
    if distinct[-1] - distinct[0] == len(value) - 1:
        return True
    if len(value) < MIN_ORDERED:
        return False
    step = np.diff(value)
    return bool((step > 0).all() or (step < 0).all())


def _is_part_of(value: float, site: str) -> bool:
    """Tell if a number is the site's name, or a part of it such as 1103 of 06-037-1103."""
    parts = re.findall(r"\d+", site)
    return int(value) in {int(part) for part in (*parts, "".join(parts)) if part}


def _repeated_place(each: np.ndarray, sites: _Sites) -> str:
    """Name the coordinate that a column repeats, in whatever unit; empty if it repeats none."""
    known = np.isfinite(each)
    for name, place in (("lat", sites.lat), ("lon", sites.lon)):
        a, b = each[known], place[known]
        if not np.isfinite(b).all() or np.ptp(b) == 0:
            continue
        if np.abs(a - b).max() <= 1e-3:
            return name
        if len(a) >= MIN_SITES and np.ptp(a) > 0 and abs(np.corrcoef(a, b)[0, 1]) > 1 - 1e-9:
            return name
    return ""
