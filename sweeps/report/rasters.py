"""Maps as files of other programs: GeoTIFF by rasterio, and NetCDF with CF conventions by h5netcdf.

Both libraries come with `pip install pm25-sweeps[maps]`. NetCDF is written day by day, so that a year needs
no more memory than a day. That is why h5netcdf is used: xarray cannot append days to a file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pm25.errors import InputError
from pm25.grids.cells import Covariates, RegularGrid
from pm25.grids.predicted import PredictedDay

INSTALL = "pip install 'pm25-sweeps[maps]'"
"""Command that installs the libraries for maps."""

EPSG = 4326
"""Coordinate reference system of all files: latitude and longitude on WGS 84."""

_LIBRARY = {".tif": "rasterio", ".nc": "h5netcdf"}


class _Variable(NamedTuple):
    """A variable of a file, with its attributes by the CF conventions."""

    name: str
    long_name: str
    units: str
    more: Mapping[str, Any] = {}


_PM25 = {"standard_name": "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air"}
_VARIABLES = (
    _Variable("pm25", "predicted PM2.5, mean of the models", "ug m-3", _PM25),
    _Variable(
        "pm25_spread", "standard deviation of the models' predictions of PM2.5, sample (n - 1)", "ug m-3"
    ),
    _Variable("dissimilarity_index", "dissimilarity index of Meyer and Pebesma (2021)", "1"),
    _Variable(
        "inside",
        "inside the area of applicability",
        "1",
        {"flag_values": np.array([0, 1], np.int8), "flag_meanings": "outside_area inside_area"},
    ),
    _Variable("pm25_true", "true PM2.5 of the synthetic world", "ug m-3", _PM25),
)
"""Variables of a NetCDF file; the last one is only written where the truth is known."""

NO_FLAG = -1
"""Value of `inside` for a cell without a prediction, and outside the grid's cells."""


def refuse_without_library(out: Path) -> None:
    """Raise InputError if the library that writes a file with this suffix is not installed."""
    library = _LIBRARY.get(out.suffix)
    if library is None:
        return
    try:
        importlib.import_module(library)
    except ModuleNotFoundError:
        problem = f"a file with the suffix {out.suffix} needs {library}, which is not installed"
        raise InputError(str(out), "", problem, f"`{INSTALL}`") from None


def regular(covariates: Covariates, out: Path) -> RegularGrid:
    """Find the grid of the cells. Raises InputError, which names `out`, if they are on no regular one."""
    grid = RegularGrid.of(covariates.lat, covariates.lon)
    if grid is None:
        problem = f"the {len(covariates.lat):,} places of {covariates.name} are on no regular grid of degrees"
        fix = f"name the map {out.with_suffix('.nc').name} or {out.with_suffix('.png').name}"
        raise InputError(str(out), "", f"{problem}, which a raster needs", fix)
    return grid


def write_geotiff(out: Path, day: PredictedDay, grid: RegularGrid, attributes: Mapping[str, str]) -> None:
    """Write one day as a GeoTIFF with the bands mean, spread, dissimilarity index and inside.

    Where the truth is known, it is a fifth band. All bands are 32-bit floats, and NaN is a cell without a
    prediction. The first row is the northernmost.
    """
    import rasterio
    from rasterio.transform import from_origin

    height, width = grid.step
    bands = {
        "mean": (day.mean, "ug m-3"),
        "spread": (day.spread, "ug m-3"),
        "dissimilarity index": (day.dissimilarity, "1"),
        "inside": (np.where(day.predicted, day.inside, np.nan), "1"),
    }
    if day.truth is not None:
        bands["truth"] = day.truth, "ug m-3"
    profile = {
        "driver": "GTiff",
        "height": len(grid.lat),
        "width": len(grid.lon),
        "count": len(bands),
        "dtype": "float32",
        "crs": f"EPSG:{EPSG}",
        "transform": from_origin(grid.lon[0] - width / 2, grid.lat[0] + height / 2, width, height),
        "nodata": np.nan,
        "compress": "deflate",
    }
    with rasterio.open(out, "w", **profile) as file:
        for number, (name, (values, unit)) in enumerate(bands.items(), start=1):
            file.write(grid.fill(values.astype(np.float32)), number)
            file.set_band_description(number, name)
            file.set_band_unit(number, unit)
        file.update_tags(date=str(day.date), **attributes)


def write_netcdf(
    out: Path,
    days: Iterable[PredictedDay],
    dates: np.ndarray,
    covariates: Covariates,
    attributes: Mapping[str, str],
) -> None:
    """Write days as NetCDF by the CF conventions 1.11, each as soon as it is predicted.

    On a regular grid, the variables have the dimensions time, lat and lon; on other places, time and cell.
    """
    import h5netcdf

    grid = RegularGrid.of(covariates.lat, covariates.lon)
    axes = {"lat": grid.lat, "lon": grid.lon} if grid else {"lat": covariates.lat, "lon": covariates.lon}
    sizes = {name: len(values) for name, values in axes.items()} if grid else {"cell": len(axes["lat"])}
    with h5netcdf.File(out, "w") as file:
        file.dimensions = {"time": len(dates), **sizes}
        file.attrs.update({"Conventions": "CF-1.11", **attributes})
        time = file.create_variable("time", ("time",), np.int32)
        time[:] = np.asarray(dates, "datetime64[D]").astype(np.int32)
        time.attrs.update({"standard_name": "time", "units": "days since 1970-01-01", "calendar": "standard"})
        time.attrs["axis"] = "T"
        for (name, values), full, unit, axis in zip(
            axes.items(), ("latitude", "longitude"), ("degrees_north", "degrees_east"), "YX", strict=True
        ):
            place = file.create_variable(name, (name if grid else "cell",), np.float64, data=values)
            place.attrs.update({"standard_name": full, "units": unit} | ({"axis": axis} if grid else {}))
        crs = file.create_variable("crs", (), np.int32)
        crs.attrs.update(
            {
                "grid_mapping_name": "latitude_longitude",
                "semi_major_axis": 6378137.0,
                "inverse_flattening": 298.257223563,
                "epsg_code": f"EPSG:{EPSG}",
            }
        )
        written: dict[str, Any] = {}
        for at, day in enumerate(days):
            found = _values(day)
            for variable in (one for one in _VARIABLES if one.name in found):
                if variable.name not in written:
                    written[variable.name] = _create(file, variable, ("time", *sizes), bool(grid))
                missing = NO_FLAG if variable.name == "inside" else np.nan
                values = found[variable.name]
                written[variable.name][at] = grid.fill(values, missing) if grid else values


def _values(day: PredictedDay) -> dict[str, np.ndarray]:
    """Values of a day's variables by name, (cells,) each."""
    found = {
        "pm25": day.mean,
        "pm25_spread": day.spread,
        "dissimilarity_index": day.dissimilarity,
        "inside": np.where(day.predicted, day.inside, NO_FLAG).astype(np.int8),
    }
    return found if day.truth is None else found | {"pm25_true": day.truth}


def _create(file: Any, variable: _Variable, dimensions: tuple[str, ...], regular: bool) -> Any:
    """Create a compressed variable whose chunks are single days."""
    flag = variable.name == "inside"
    kind, missing = (np.int8, np.int8(NO_FLAG)) if flag else (np.float32, np.float32("nan"))
    chunks = (1, *(file.dimensions[name].size for name in dimensions[1:]))
    made = file.create_variable(
        variable.name, dimensions, kind, fillvalue=missing, chunks=chunks, compression="gzip", shuffle=True
    )
    made.attrs.update({"long_name": variable.long_name, "units": variable.units, **variable.more})
    made.attrs["grid_mapping"] = "crs"
    if not regular:
        made.attrs["coordinates"] = "lat lon"
    return made
