"""Finds coordinates that cannot be those of a monitor."""

import re

import numpy as np
import pyarrow as pa

from pm25.geo import CONUS, SAME_PLACE_DEG, inside_conus, place_codes, place_text
from pm25.tables.columns import first_rows, rows_of
from pm25.tables.schema import Problem

US = (-180.0, 17.0, -64.0, 72.0)
"""West, south, east and north limits of the US with Alaska, Hawaii and Puerto Rico."""

WIDE = 20.0
"""Degrees of longitude: no network of one Asian region is as wide and lies inside CONUS without the sign."""

AQS_ID = re.compile(r"\d{2}-\d{3}(-.*)?|\d{9}")
"""Site names of EPA's Air Quality System, such as 06-001-0007."""

FEW_SITES = 4
"""Fewest sites whose whole degrees are not a coincidence."""


def find_wrong_places(
    lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: np.ndarray, notices: list[Problem]
) -> list[Problem]:
    """Find coordinates that are swapped, out of range, zero or without their sign, by row.

    `code` is the site of each row, an index of `sites`. What may be right is added to `notices`.
    """
    swapped = find_swapped(lat, lon)
    if swapped:
        return swapped
    return [
        *find_out_of_range(lat, lon),
        *find_zeros(lat, lon),
        *find_lost_signs(lat, lon, code, sites, notices),
    ]


def find_swapped(lat: np.ndarray, lon: np.ndarray) -> list[Problem]:
    """Find rows with the longitude in the column of the latitude."""
    west, south, east, north = CONUS
    swapped = (lon > south) & (lon < north) & (lat > west) & (lat < east)
    if not swapped.any():
        return []
    what = f"lat {lat[swapped][0]:g}, lon {lon[swapped][0]:g} look swapped"
    fix = "store latitude, -90..90, in the column lat and longitude in the column lon"
    return [Problem("lat, lon", what, fix, rows_of(swapped))]


def find_out_of_range(lat: np.ndarray, lon: np.ndarray) -> list[Problem]:
    """Find coordinates outside the globe, and longitudes that count from 0 to 360."""
    problems = []
    for column, value, limit in (("lat", lat, 90), ("lon", lon, 180)):
        out = np.abs(value) > limit
        if not out.any():
            continue
        what, fix = f"{value[out][0]:g} is out of range", f"give degrees in -{limit}..{limit}"
        if column == "lon" and (value[out] > 0).all() and (value[out] <= 360).all():
            what = f"{value[out][0]:g} counts from 0 to 360"
            fix = "subtract 360 from longitudes above 180, which gives degrees in -180..180"
        if column == "lat" and (np.abs(value[out]) <= 180).all() and (np.abs(lon[out]) <= 90).all():
            fix += ", and the longitude in the column lon if the two are swapped"
        problems.append(Problem(column, what, fix, rows_of(out)))
    return problems


def find_zeros(lat: np.ndarray, lon: np.ndarray) -> list[Problem]:
    """Find places at 0, 0, and among places in CONUS those with one coordinate of 0."""
    zero = (np.abs(lat) <= SAME_PLACE_DEG) & (np.abs(lon) <= SAME_PLACE_DEG)
    if inside_conus(lat, lon).any():
        zero |= (lat == 0) | (lon == 0)
    if not zero.any():
        return []
    what = f"lat {lat[zero][0]:g}, lon {lon[zero][0]:g} is a missing place, not that of a monitor"
    return [Problem("lat, lon", what, "give the site its place, or leave its rows out", rows_of(zero))]


def find_lost_signs(
    lat: np.ndarray, lon: np.ndarray, code: np.ndarray, sites: np.ndarray, notices: list[Problem]
) -> list[Problem]:
    """Find longitudes that would be inside CONUS with a minus sign.

    Sites in northern China are at such places too. The sign is lost if other sites are in the US, or if the
    sites span `WIDE` degrees or have names of EPA. Otherwise it is a notice.
    """
    mirrored, conus = inside_conus(lat, -lon), inside_conus(lat, lon)
    if not mirrored.any():
        return []
    west, south, east, north = US
    in_us = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    elsewhere = ~mirrored & ~in_us & ((lat != 0) | (lon != 0))
    both = mirrored & np.isin(code, code[conus])  # sites that also have the sign
    lost = mirrored if not elsewhere.any() else both
    certain = (
        both.any()
        or in_us.any()
        or np.ptp(lon[mirrored]) >= WIDE
        or all(AQS_ID.fullmatch(site.strip()) for site in sites[np.unique(code[mirrored])])
    )
    if not lost.any():
        return []
    shown = place_text(lat[lost][0], lon[lost][0])
    if certain:
        fix = "write longitudes west of Greenwich as negative numbers"
        what = f"{shown} is in Asia, and in the US with a minus sign"
        return [Problem("lon", what, fix, rows_of(lost))]
    what = f"{shown} is in Asia; longitudes of the US need a minus sign"
    notices.append(Problem("lon", what, rows=rows_of(lost)))
    return []


def find_whole_degrees(
    table: pa.Table,
    lat: np.ndarray,
    lon: np.ndarray,
    code: np.ndarray,
    sites: np.ndarray,
    notices: list[Problem],
) -> list[Problem]:
    """Find coordinates without decimals. They are a problem if several sites share a place because of it."""
    first = first_rows(code, len(sites))
    whole = [
        column
        for column, value in (("lat", lat), ("lon", lon))
        if (value == np.rint(value)).all()
        and (len(sites) >= FEW_SITES or pa.types.is_integer(table[column].type))
    ]
    if not whole:
        return []
    shared = len(sites) - len(np.unique(place_codes(lat[first], lon[first])))
    what = f"all values are whole degrees, such as {place_text(lat[0], lon[0])}; a degree is about 100 km"
    fix = "give degrees with four decimals"
    if len(whole) == 2 and shared:
        what += f", and {shared} sites are at the place of another"
        return [Problem("lat, lon", what, fix)]
    notices.append(Problem(", ".join(whole), what, fix))
    return []
