"""Other programs open the rasters, and find each cell's values at its place."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray

from pm25.grids.cells import RegularGrid, conus_cells
from pm25.grids.predicted import PredictedDay
from sweeps.report import rasters
from tests.errors import refuses

LAT, LON = conus_cells(2.0)
FIRST = np.datetime64("2021-08-14")
ATTRIBUTES = {"title": "Predicted PM2.5, lat/lon", "models": "abc"}


def covariates(lat: np.ndarray = LAT, lon: np.ndarray = LON) -> Any:
    return SimpleNamespace(name="grid.parquet", lat=lat, lon=lon)


def day(number: int = 0, truth: bool = True) -> PredictedDay:
    """Values that name their cell; the first cell has no prediction, and every third one is outside."""
    cell = np.arange(len(LAT), dtype=np.float32)
    mean = cell + 1000 * number
    mean[0] = np.nan
    inside, no_gaps = np.arange(len(LAT)) % 3 > 0, np.zeros(len(LAT), bool)
    true = 2 * cell if truth else None
    return PredictedDay(FIRST + number, mean, cell / 8, cell / 4, inside, true, no_gaps)


def grid() -> RegularGrid:
    found = RegularGrid.of(LAT, LON)
    assert found is not None
    return found


def test_a_geotiff_has_each_value_at_its_place(tmp_path: Path) -> None:
    rasters.write_geotiff(tmp_path / "map.tif", day(), grid(), ATTRIBUTES)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs.to_epsg() == 4326
        assert file.descriptions == ("mean", "spread", "dissimilarity index", "inside", "truth")
        assert file.units == ("ug m-3", "ug m-3", "1", "1", "ug m-3")
        assert np.isnan(file.nodatavals).all()
        assert file.res == (2.0, 2.0)
        assert file.bounds == (LON.min() - 1, LAT.min() - 1, LON.max() + 1, LAT.max() + 1)
        assert file.tags()["title"] == ATTRIBUTES["title"]
        assert file.tags()["date"] == "2021-08-14"
        found = np.array([*file.sample(zip(LON, LAT, strict=True))])
        sea = next(file.sample([(LON.min(), LAT.min())]))
    cell = np.arange(len(LAT), dtype=np.float32)
    np.testing.assert_array_equal(
        found[1:], np.stack([cell, cell / 8, cell / 4, cell % 3 > 0, 2 * cell], 1)[1:]
    )
    assert np.isnan(found[0, [0, 3]]).all()
    assert np.isnan(sea).all()


def test_a_geotiff_without_truth_has_four_bands(tmp_path: Path) -> None:
    rasters.write_geotiff(tmp_path / "map.tif", day(truth=False), grid(), ATTRIBUTES)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.count == 4


def test_netcdf_has_each_value_at_its_place_and_day(tmp_path: Path) -> None:
    days = [day(0), day(1), day(2)]
    dates = FIRST + np.arange(3)
    rasters.write_netcdf(tmp_path / "map.nc", days, dates, covariates(), ATTRIBUTES)
    with xarray.open_dataset(tmp_path / "map.nc", engine="h5netcdf") as file:
        assert file.attrs == {"Conventions": "CF-1.11", **ATTRIBUTES}
        np.testing.assert_array_equal(file["time"].values.astype("datetime64[D]"), dates)
        assert [*file.sizes.items()] == [("time", 3), ("lat", len(grid().lat)), ("lon", len(grid().lon))]
        assert file["pm25"].attrs["units"] == "ug m-3"
        assert file["pm25"].attrs["grid_mapping"] == "crs"
        assert file["lat"].attrs["standard_name"] == "latitude"
        assert file["crs"].attrs["grid_mapping_name"] == "latitude_longitude"
        for cell in (1, 40, len(LAT) - 1):
            here = file.sel(lat=LAT[cell], lon=LON[cell])
            assert here["pm25"].values.tolist() == [cell, cell + 1000, cell + 2000]
            assert here["pm25_spread"].values.tolist() == [cell / 8] * 3
            assert here["dissimilarity_index"].values.tolist() == [cell / 4] * 3
            assert here["inside"].values.tolist() == [cell % 3 > 0] * 3
            assert here["pm25_true"].values.tolist() == [2 * cell] * 3
        assert np.isnan(file["pm25"].sel(lat=LAT[0], lon=LON[0])).all()
        assert int(np.isfinite(file["pm25"]).sum()) == 3 * (len(LAT) - 1)
        with pytest.raises(KeyError):
            file.sel(lat=0.0, lon=0.0)


def test_places_on_no_grid_are_cells(tmp_path: Path) -> None:
    lat, lon = LAT.copy(), LON.copy()
    lat[3] += 0.3
    rasters.write_netcdf(tmp_path / "map.nc", [day()], FIRST + np.arange(1), covariates(lat, lon), ATTRIBUTES)
    with xarray.open_dataset(tmp_path / "map.nc", engine="h5netcdf") as file:
        assert dict(file.sizes) == {"time": 1, "cell": len(LAT)}
        assert {"lat", "lon"} <= {*file["pm25"].coords}
        np.testing.assert_array_equal(file["lat"], lat)
        np.testing.assert_array_equal(file["pm25"][0, 1:], np.arange(1, len(LAT)))
    with refuses("map.tif", "", f"{len(LAT)} places", "map.nc"):
        rasters.regular(covariates(lat, lon), tmp_path / "map.tif")


def test_a_day_is_written_before_the_next_one_is_predicted(tmp_path: Path) -> None:
    out, seen = tmp_path / "map.nc", []

    def stream() -> Iterator[PredictedDay]:
        for number in range(3):
            seen.append(number)
            made = day(number, truth=False)
            yield made
            # The writer has copied the day: what it needs of it is not kept.
            made.mean[:] = -1

    rasters.write_netcdf(out, stream(), FIRST + np.arange(3), covariates(), ATTRIBUTES)
    with xarray.open_dataset(out, engine="h5netcdf") as file:
        assert "pm25_true" not in file
        assert (file["pm25"] == -1).sum() == 0
        assert file["pm25"].encoding["chunksizes"] == (1, len(grid().lat), len(grid().lon))


@pytest.mark.parametrize(("suffix", "library"), [(".tif", "rasterio"), (".nc", "h5netcdf")])
def test_a_missing_library_is_named_with_its_command(
    suffix: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with refuses(f"map{suffix}", "", library, "pip install 'pm25-sweeps[maps]'"):
        rasters.refuse_without_library(Path(f"map{suffix}"))
    rasters.refuse_without_library(Path("map.png"))
