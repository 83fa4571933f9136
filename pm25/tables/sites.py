"""Checks the places of a table: sites that move, coordinates that are wrong, and groups of sites."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pm25.geo import CONUS
from pm25.tables.columns import as_text, first_rows, rows_of
from pm25.tables.schema import Problem


def find_moved_sites(lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: np.ndarray) -> list[Problem]:
    """Find sites with more than one place."""
    first = first_rows(code, len(sites))
    moved = (lat != lat[first][code]) | (lon != lon[first][code])
    if not moved.any():
        return []
    names = ", ".join(dict.fromkeys(sites[code[moved]][:1000]))[:80]
    fix = "give each place a site_id of its own"
    return [Problem("lat, lon", f"several places for site {names}", fix, rows_of(moved))]


def find_wrong_places(lat: np.ndarray, lon: np.ndarray) -> list[Problem]:
    """Find coordinates outside the globe, and latitude swapped with longitude."""
    west, south, east, north = CONUS
    swapped = (lon > south) & (lon < north) & (lat > west) & (lat < east)
    if swapped.any():
        what = f"lat {lat[swapped][0]:g}, lon {lon[swapped][0]:g} look swapped"
        return [Problem("lat, lon", what, "store latitude, -90..90, in the column lat", rows_of(swapped))]
    problems = []
    for column, value, limit in (("lat", lat, 90), ("lon", lon, 180)):
        out = np.abs(value) > limit
        if out.any():
            what = f"{value[out][0]:g} is out of range"
            problems.append(Problem(column, what, f"give degrees in -{limit}..{limit}", rows_of(out)))
    return problems


def find_wrong_groups(
    table: pa.Table, groups: Sequence[str], code: np.ndarray, sites: np.ndarray
) -> list[Problem]:
    """Find group columns without exactly one value for each site."""
    problems = []
    first = first_rows(code, len(sites))
    for column in groups:
        if column not in table.column_names:
            fix = f"group by one of {', '.join(table.column_names)}"
            problems.append(Problem(column, "group column is missing", fix))
            continue
        value = as_text(table[column])
        empty = value == ""
        varies = (value != value[first][code]) & ~empty & ~empty[first][code]
        if empty.any():
            who = sites[code[empty][0]]
            fix = "give every site its group, on each of its rows"
            problems.append(Problem(column, f"value is missing for site {who}", fix, rows_of(empty)))
        if varies.any():
            row = int(np.argmax(varies))
            both = f"{str(value[first][code[row]])!r} and {str(value[row])!r}"
            fix = "give a site the same group on all its days"
            problems.append(Problem(column, f"site {sites[code[row]]} has both {both}", fix, rows_of(varies)))
    return problems
