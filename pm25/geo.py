"""Distances between places on the Earth, and the bounding box of the contiguous US."""

import numpy as np
from numpy.typing import ArrayLike

CONUS = (-124.706553, 25.120779, -66.979601, 49.383625)
"""West, south, east and north limits in degrees, from the published study (Karimzadeh, Wang, Crooks 2025)."""

EARTH_KM = 6371.0088
"""Mean radius of the Earth (IUGG)."""


def great_circle_km(lat1: ArrayLike, lon1: ArrayLike, lat2: ArrayLike, lon2: ArrayLike) -> np.ndarray:
    """Haversine distance in km between places in degrees, on a sphere of `EARTH_KM`; inputs broadcast."""
    lat1, lon1, lat2, lon2 = (np.radians(np.asarray(v, np.float64)) for v in (lat1, lon1, lat2, lon2))
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.asarray(2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(h, 1))))


def inside_conus(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Tell for each place if it is inside the box `CONUS`, edges included."""
    west, south, east, north = CONUS
    return np.asarray((lon >= west) & (lon <= east) & (lat >= south) & (lat <= north))
