"""State borders for the maps, from a GeoJSON file or from the package bokeh-sampledata.

That package (`pip install pm25-sweeps[maps]`) contains the Census Bureau's TIGER/Line boundaries. Cartopy and
geodatasets download theirs on first use, and a report must not need a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pm25 import files
from pm25.errors import InputError
from pm25.limits import MOST_BORDER_BYTES
from pm25.text import parse_json

BOX = (-128.0, 23.0, -65.0, 51.0)
"""West, south, east and north limits in degrees; rings that leave them (Alaska, Hawaii) are not drawn."""

_DECIMALS = 3
"""Decimals of a degree that are kept: about 100 m, finer than any printed map."""


def read(file: Path | None) -> list[np.ndarray]:
    """Read the borders of the contiguous US as (k, 2) arrays of longitude and latitude in degrees.

    Without a file, the borders are those of bokeh-sampledata, or empty if it is not installed. Raises
    InputError if the file is not a GeoJSON file with polygons or lines, or if none of them is drawn.
    """
    if file is None:
        return [ring for ring in _packaged() if _drawn(ring)]
    try:
        content = parse_json(files.read_bytes(file, MOST_BORDER_BYTES))
        rings = [_places(ring) for ring in _rings(content)]
    except OSError as error:
        raise InputError(
            str(file), "", f"cannot be read ({error.strerror})", "give a GeoJSON file with state borders"
        ) from None
    except (ValueError, TypeError, KeyError, OverflowError):
        rings = []
    if not rings:
        raise InputError(
            str(file),
            "",
            "is not a GeoJSON file with polygons or lines of finite coordinates, two places or more in each",
            "give a GeoJSON file with state borders",
        )
    drawn = [ring for ring in rings if _drawn(ring)]
    if not drawn:
        west, south, east, north = BOX
        box = f"longitudes {west:g} to {east:g} and latitudes {south:g} to {north:g}"
        fix = "give a GeoJSON file with state borders, in degrees and with the longitude first"
        raise InputError(str(file), "", f"no outline is inside {box}, so none would be drawn", fix)
    return drawn


def _rings(item: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield the coordinates of every polygon ring and line in a GeoJSON object."""
    kind = item["type"]
    if kind == "FeatureCollection":
        for feature in item["features"]:
            yield from _rings(feature)
    elif kind == "Feature":
        if item["geometry"] is not None:
            yield from _rings(item["geometry"])
    elif kind == "GeometryCollection":
        for geometry in item["geometries"]:
            yield from _rings(geometry)
    elif kind == "LineString":
        yield item["coordinates"]
    elif kind in ("Polygon", "MultiLineString"):
        yield from item["coordinates"]
    elif kind == "MultiPolygon":
        for polygon in item["coordinates"]:
            yield from polygon


def _places(ring: list[Any]) -> np.ndarray:
    """Convert the coordinates of a ring to (k, 2) longitude and latitude.

    Raises ValueError, also for a ring that has one place only, of which nothing would be drawn.
    """
    places = np.asarray(ring, np.float64)
    if places.ndim != 2 or places.shape[1] < 2 or not np.isfinite(places[:, :2]).all():
        raise ValueError("not a list of places")
    places = places[:, :2]
    if (places == places[0]).all():
        raise ValueError("a single place")
    return places


def _packaged() -> Iterator[np.ndarray]:
    """Yield the rings of bokeh-sampledata, if it is installed."""
    try:
        from bokeh_sampledata.us_states import data
    except ModuleNotFoundError:
        return
    for state in data.values():
        lines = np.round(np.stack([state["lons"], state["lats"]], axis=1), _DECIMALS)
        gaps = np.flatnonzero(np.isnan(lines[:, 0]))  # NaN separates the rings of a state
        for ring in np.split(lines, gaps):
            ring = ring[~np.isnan(ring[:, 0])]
            if len(ring):
                yield ring


def _drawn(ring: np.ndarray) -> bool:
    """Return True if the ring is inside `BOX`."""
    west, south, east, north = BOX
    lon, lat = ring.T
    return bool(((lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)).all())
