"""Prediction domain: the places for which a map would be made.

By default it is the land of the contiguous US. Distances from its places to the monitors say how far a map
extends beyond them.
"""

import numpy as np

from pm25.errors import InputError
from pm25.geo import CONUS

SPACING_DEG = 0.5
"""Distance between neighbouring places in degrees of latitude, 56 km; there are about 2,600 on land."""


def conus_land(spacing: float = SPACING_DEG) -> np.ndarray:
    """Return places on the land of the contiguous US, each for an equal area; (m, 2) latitudes, longitudes.

    Rows are `spacing` degrees apart. In a row, places are as far apart in km as rows are.
    """
    from pm25.sources.synthetic import inside_outline

    west, south, east, north = CONUS
    rows = []
    for lat in np.arange(south + spacing / 2, north, spacing):
        step = spacing / np.cos(np.radians(lat))
        lon = np.arange(west + step / 2, east, step)
        rows.append(np.stack([np.full(len(lon), lat), lon], axis=1))
    places = np.concatenate(rows)
    return np.asarray(places[inside_outline(*places.T)])


def read_places(path: str) -> np.ndarray:
    """Read a table of places with the columns lat and lon in degrees: Parquet or text; (m, 2).

    `path` is a path or an address. Raises InputError for a table that cannot be read, without places, or with
    a place that is missing or out of range.
    """
    import pyarrow as pa

    from pm25.tables.columns import as_float, refuse_repeated
    from pm25.tables.reading import read_table

    try:
        table = read_table(path)
    except InputError as error:
        fix = "give data.domain a table with the columns lat and lon"
        raise InputError(path, "", error.problem, fix) from None
    columns = []
    refuse_repeated(path, ("lat", "lon"), table.column_names)
    for name, limit in (("lat", 90), ("lon", 180)):
        if name not in table.column_names:
            have = ", ".join(table.column_names[:20])
            raise InputError(path, name, f"no such column; it has {have}", "give the columns lat and lon")
        try:
            values = as_float(table[name])
        except pa.ArrowException:
            raise InputError(path, name, "has values that are no numbers", "give degrees") from None
        wrong = ~(np.abs(values) <= limit)  # NaN is wrong, too
        if wrong.any():
            row = int(np.argmax(wrong))
            problem = f"{values[row]:g} in row {row + 1} is not in -{limit}..{limit}"
            raise InputError(path, name, problem, "give degrees north and east, or leave the row out")
        columns.append(values)
    if not len(columns[0]):
        raise InputError(path, "", "has no rows", "give at least one place")
    return np.stack(columns, axis=1)
