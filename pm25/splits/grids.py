"""Square grids over CONUS, the colours of checkerboards, and shifts that give a grid other borders."""

import numpy as np

from pm25.geo import CONUS, inside_conus

PLASTIC = 1.32471795724474602596
"""Real root of g^3 = g + 1, from which the R2 sequence takes its steps."""


def checkerboard(
    lat: np.ndarray, lon: np.ndarray, degrees: float, origin: tuple[float, float] | None = None
) -> np.ndarray:
    """Return the colour of each place, (column + row) mod 2 of its square cell, and -1 outside CONUS.

    `lat` and `lon` are in degrees and have any shape. The grid starts at the south-west corner of the CONUS
    box. `origin` moves the grid, but not the box, by degrees of (longitude, latitude).
    """
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    column, row = grid_square(lat, lon, degrees, origin)
    return np.where(inside_conus(lat, lon), (column + row) % 2, -1).astype(int)


def checkerboards(lat: np.ndarray, lon: np.ndarray, degrees: float, origins: int) -> np.ndarray:
    """Return the colours of `checkerboard` on the first `origins` grids of `grid_origin`; (origins, ...).

    Origin 0 is the published grid. The colours at an origin do not depend on the number of origins.
    """
    return np.stack([checkerboard(lat, lon, degrees, grid_origin(i, degrees)) for i in range(origins)])


def grid_origin(index: int, degrees: float) -> tuple[float, float]:
    """Return the shift (longitude, latitude) in degrees of grid `index`, in [0, degrees) on both axes.

    The shifts are the R2 sequence (Roberts 2018), which fills the unit square evenly for any number of
    points. It starts at (0, 0). A shift by `degrees` on one axis returns the same squares with the colours
    of a checkerboard swapped. So the shifts below `degrees` give all grids.
    """
    return index / PLASTIC % 1 * degrees, index / PLASTIC**2 % 1 * degrees


def grid_square(
    lat: np.ndarray, lon: np.ndarray, degrees: float, origin: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the column and the row (floats without fraction) of the square that each place is in.

    Both are 0 at the south-west corner of the CONUS box, which `origin` moves as in `checkerboard`.
    """
    east, north = origin or (0.0, 0.0)
    west, south = CONUS[0] + east, CONUS[1] + north
    return np.floor((lon - west) / degrees), np.floor((lat - south) / degrees)
