"""Vectors of satellite embeddings at the places of a panel, from the providers' own readers.

TESSERA (Feng et al. 2025, arXiv 2506.20380; CC BY 4.0) has 128 values for each pixel of 10 m and year. Its
reader is the package `geotessera`, which downloads a tile of 0.1 degrees for each place. AlphaEarth
(Brown et al. 2025, arXiv 2507.22291; CC BY 4.0) has 64 values for each pixel of 10 m and year. It is the
collection `COLLECTION` of Google Earth Engine, which the package `earthengine-api` reads with the user's own
account.

Neither reader is a dependency of this package, and neither service is reached by its tests. They replace the
readers with classes that have the same methods and arguments (geotessera 0.7.5, earthengine-api 1.7.50).
"""

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from pm25 import panel
from pm25.errors import InputError
from pm25.plug_ins import described

Provider = Literal["tessera", "alphaearth"]

COLLECTION = "GOOGLE/SATELLITE_EMBEDDING/V1/ANNUAL"
"""Annual AlphaEarth embeddings in Earth Engine, with the bands A00 to A63."""

PIXEL_M = 10
"""Size of a pixel in metres."""

REQUEST_PLACES = 500
"""Places in one request to Earth Engine, which returns at most 5,000 features."""

_READERS = {"tessera": ("geotessera", "geotessera"), "alphaearth": ("ee", "earthengine-api")}
"""Module and package of each provider's reader."""


class Sampled(NamedTuple):
    """Vectors of the places of a panel."""

    vectors: pd.DataFrame
    """Columns lat and lon (degrees), and v0, v1 ... (float32), a row for each place, by lat, then lon."""
    missing: int
    """Number of places without a vector, which have no row."""


def embeddings(
    provider: Provider, table: Path | str, year: int, *, project: str | None = None, tiles: Path | None = None
) -> Sampled:
    """Read the vector of each place of a panel from a provider, for the table encoder.

    `project` is the user's Earth Engine project. `tiles` is a folder that keeps the
    tiles of TESSERA, which are deleted without it. Raises InputError for a wrong panel, for a reader that is
    not installed or reports an error, and if no place has a vector.
    """
    lat, lon = _places(table)
    reader = _reader(provider)
    try:
        if provider == "tessera":
            vectors = _tessera(reader, lat, lon, year, tiles)
        else:
            vectors = _alphaearth(reader, lat, lon, year, project)
    except Exception as error:  # a reader raises errors of its own, and those of its transports
        fix = "check the network, the account and the year, then run the command again"
        raise InputError(provider, "", f"its reader reports {described(error)}", fix) from error
    if vectors.ndim != 2 or len(vectors) != len(lat) or not vectors.shape[1]:
        problem = f"its reader returns the shape {vectors.shape} for {len(lat):,} places"
        _, package = _READERS[provider]
        raise InputError(provider, "", problem, f"install the version of {package} that this package names")
    known = np.isfinite(vectors).all(axis=1)
    if not known.any():
        problem = f"none of the {len(lat):,} places has a vector in {year}"
        raise InputError(provider, "year", problem, "choose a year and places that the provider covers")
    found = pd.DataFrame(vectors[known], columns=[f"v{i}" for i in range(vectors.shape[1])])
    found.insert(0, "lat", lat[known])
    found.insert(1, "lon", lon[known])
    return Sampled(found, int((~known).sum()))


def _places(table: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct places of a panel's sites, by latitude, then longitude."""
    sites = panel.read(table, ["day_cos"])
    lat, lon = np.unique(np.stack([sites.lat, sites.lon], axis=1), axis=0).T
    return lat, lon


def _reader(provider: Provider) -> ModuleType:
    """Import the reader of a provider; raises InputError if it is not installed."""
    module, package = _READERS[provider]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        problem = f"its reader, the package {package}, is not installed"
        raise InputError(provider, "", problem, f"pip install {package}") from error


def _tessera(
    reader: ModuleType, lat: np.ndarray, lon: np.ndarray, year: int, tiles: Path | None
) -> np.ndarray:
    """Sample TESSERA at places: (n, 128) float32, NaN where it has no tile."""
    points = list(zip(lon.tolist(), lat.tolist(), strict=True))  # it takes longitude first
    with tempfile.TemporaryDirectory() as folder:
        source = reader.GeoTessera(embeddings_dir=folder if tiles is None else tiles)
        return np.asarray(source.sample_embeddings_at_points(points, year=year), np.float32)


def _alphaearth(
    reader: ModuleType, lat: np.ndarray, lon: np.ndarray, year: int, project: str | None
) -> np.ndarray:
    """Sample AlphaEarth at places: (n, 64) float32, NaN where it has no pixel."""
    reader.Initialize(project=project)
    images = reader.ImageCollection(COLLECTION).filterDate(f"{year}-01-01", f"{year + 1}-01-01")
    image, bands = images.mosaic(), [f"A{i:02d}" for i in range(64)]
    vectors = np.full((len(lat), len(bands)), np.nan, np.float32)
    points = [
        reader.Feature(reader.Geometry.Point([east, north]), {"place": i})
        for i, (north, east) in enumerate(zip(lat.tolist(), lon.tolist(), strict=True))
    ]
    for start in range(0, len(points), REQUEST_PLACES):
        places = reader.FeatureCollection(points[start : start + REQUEST_PLACES])
        sampled = image.sampleRegions(collection=places, properties=["place"], scale=PIXEL_M)
        for feature in sampled.getInfo()["features"]:  # a place without a pixel has no feature
            values: Mapping[str, float] = feature["properties"]
            vectors[int(values["place"])] = [values[band] for band in bands]
    return vectors
