"""State outlines for the maps: of a user's GeoJSON file, or of the package bokeh-sampledata.

That package (`pip install pm25-sweeps[maps]`) ships the Census Bureau's TIGER/Line boundaries in its wheel.
Cartopy and geodatasets fetch theirs when they are used, and a report needs no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pm25.errors import InputError

BOX = (-128.0, 23.0, -65.0, 51.0)
"""West, south, east, north in degrees: a ring that leaves it (Alaska, Hawaii, Puerto Rico) is not drawn."""

_DECIMALS = 3
"""Of a degree, about 100 m: finer than any printed map."""


def read(file: Path | None) -> list[np.ndarray]:
    """Rings as (k, 2) arrays of longitude, latitude in degrees, of the contiguous US.

    Without a file those of bokeh-sampledata; none where it is not installed. Raises InputError for a file
    that is no GeoJSON with polygons or lines.
    """
    if file is None:
        return [ring for ring in _packaged() if _drawn(ring)]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rings = [np.asarray(ring, np.float64)[:, :2] for ring in _rings(content)]
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); name a GeoJSON file of outlines"
        ) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        rings = []
    if not rings:
        raise InputError(f"{file}: not a GeoJSON file with polygons or lines; name one with state outlines")
    return [ring for ring in rings if _drawn(ring)]


def _rings(item: dict[str, Any]) -> Iterator[list[Any]]:
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


def _packaged() -> Iterator[np.ndarray]:
    try:
        from bokeh_sampledata.us_states import data
    except ModuleNotFoundError:
        return
    for state in data.values():
        lines = np.round(np.stack([state["lons"], state["lats"]], axis=1), _DECIMALS)
        gaps = np.flatnonzero(np.isnan(lines[:, 0]))  # NaN stands between a state's rings
        for ring in np.split(lines, gaps):
            ring = ring[~np.isnan(ring[:, 0])]
            if len(ring):
                yield ring


def _drawn(ring: np.ndarray) -> bool:
    west, south, east, north = BOX
    lon, lat = ring.T
    return bool(((lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)).all())
