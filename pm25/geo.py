"""Distances between places on the Earth, and the bounding box of the contiguous US."""

import numpy as np
from numpy.typing import ArrayLike

CONUS = (-124.706553, 25.120779, -66.979601, 49.383625)
"""West, south, east and north limits in degrees, from the published study (Karimzadeh, Wang, Crooks 2025)."""

EARTH_KM = 6371.0088
"""Mean radius of the Earth (IUGG)."""

SAME_PLACE_DEG = 1e-4
"""Difference of a coordinate that is rounding: four decimals, about 11 m."""

_SLACK_DEG = 1e-9
"""Rounding error of a difference of two coordinates, 0.1 mm."""


def great_circle_km(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> np.ndarray:
    """Haversine distance in km between places in degrees, on a sphere of `EARTH_KM`; inputs broadcast."""
    lat1, lon1, lat2, lon2 = (np.radians(np.asarray(v, np.float64)) for v in (lat1, lon1, lat2, lon2))
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.asarray(2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(h, 1))))


def nearest_km(lat: np.ndarray, lon: np.ndarray, to_lat: np.ndarray, to_lon: np.ndarray) -> np.ndarray:
    """Great-circle distance (km) from each place (n,) to the nearest of the places `to_lat`, `to_lon` (m,).

    Coordinates are in degrees, and m is at least 1. The distance of a place to itself is 0.
    """
    nearest = np.empty(len(lat), np.int64)
    places, to = unit_vectors(lat, lon), unit_vectors(to_lat, to_lon)
    for start in range(0, len(lat), 1024):  # bounds the memory for very many places
        block = slice(start, start + 1024)
        nearest[block] = (places[block] @ to.T).argmax(axis=1)
    return great_circle_km(lat, lon, to_lat[nearest], to_lon[nearest])


def unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Places in degrees as points on the unit sphere; (n, 3)."""
    lat, lon = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def inside_conus(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Tell for each place if it is inside the box `CONUS`, edges included."""
    west, south, east, north = CONUS
    return np.asarray((lon >= west) & (lon <= east) & (lat >= south) & (lat <= north))


def is_same_place(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> np.ndarray:
    """Tell whether each coordinate differs by `SAME_PLACE_DEG` or less; inputs (degrees) broadcast."""
    lat1, lon1, lat2, lon2 = (np.asarray(v, np.float64) for v in (lat1, lon1, lat2, lon2))
    north = np.abs(lat1 - lat2)
    east = np.abs(lon1 - lon2) % 360
    east = np.minimum(east, 360 - east)  # across the date line
    return np.asarray(np.maximum(north, east) <= SAME_PLACE_DEG + _SLACK_DEG)


def place_codes(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Number the places of points (n,) in degrees.

    Points share a number if both coordinates differ by less than `SAME_PLACE_DEG`, or if other points connect
    them so.
    """
    points, point = np.unique(np.stack([lat, lon], axis=1), axis=0, return_inverse=True)
    place = np.arange(len(points))
    near = _may_be_near(points)
    if len(near):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
        from scipy.spatial import cKDTree

        east = points[near, 1] % 360
        east[east == 360] = 0  # the remainder of a tiny negative number
        tree = cKDTree(np.stack([points[near, 0], east], axis=1), boxsize=[0, 360])
        pairs = tree.query_pairs(SAME_PLACE_DEG - _SLACK_DEG, p=np.inf, output_type="ndarray")
        edges = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(near), len(near)))
        _, part = connected_components(edges, directed=False)
        first = np.full(part.max() + 1, len(points))
        np.minimum.at(first, part, near)
        place[near] = first[part]
    return np.unique(place[point.reshape(-1)], return_inverse=True)[1].reshape(-1)


def _may_be_near(points: np.ndarray) -> np.ndarray:
    """Indices of the distinct points (n, 2) that may be at the place of another one.

    Points are divided wherever a gap in one coordinate is too wide. It spares most tables the search tree.
    """
    east = np.abs((points[:, 1] + 180) % 360 - 180)  # both sides of the date line are near
    part, parts = np.zeros(len(points), np.int64), 0
    while part.max(initial=-1) + 1 > parts:
        parts = part.max(initial=-1) + 1
        for value in (points[:, 0], east):
            order = np.lexsort((value, part))
            new = (np.diff(part[order]) > 0) | (np.diff(value[order]) > SAME_PLACE_DEG)
            part[order] = np.concatenate([[0], np.cumsum(new)])
    return np.flatnonzero(np.bincount(part)[part] > 1)


def place_text(lat: float, lon: float) -> str:
    """Format a place in degrees with up to five decimals, such as `(36.5, -119.5)`."""
    return f"({_degrees_text(lat)}, {_degrees_text(lon)})"


def _degrees_text(value: float) -> str:
    text = f"{value:.5f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def distance_text(km: float) -> str:
    """Format a distance with its unit: km, below 1 km m, and below 1 m cm."""
    for unit, size in (("km", 1.0), ("m", 1e-3), ("cm", 1e-5)):
        if km >= size:
            number = km / size
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return "less than 1 cm" if km > 0 else "0 m"
