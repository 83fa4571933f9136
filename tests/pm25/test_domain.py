"""Prediction domain: the land of CONUS, and tables of places that can and cannot be used."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pm25.domain import conus_land, read_places
from pm25.geo import great_circle_km, inside_conus
from tests.errors import refuses


def test_the_land_of_conus() -> None:
    land = conus_land()
    # 7.66 million km2 of land (8.08 with inland water), of which a place has (0.5 degrees)^2 = 3,091 km2.
    assert 7.5e6 < len(land) * 3091 < 8.2e6
    assert inside_conus(*land.T).all()

    def near(lat: float, lon: float) -> float:
        return float(great_circle_km(lat, lon, *land.T).min())

    assert near(39.7, -105.0) < 40  # Denver
    assert near(37.0, -130.0) > 400  # the Pacific
    assert near(26.0, -92.0) > 200  # the Gulf of Mexico
    # A row of the north has fewer places than an equally long one of the south; each has the same area.
    south, north = (
        np.diff(np.sort(land[land[:, 0] == lat, 1])).min() for lat in np.unique(land[:, 0])[[14, 44]]
    )
    assert north / south == pytest.approx(
        np.cos(np.radians(np.unique(land[:, 0])[14])) / np.cos(np.radians(np.unique(land[:, 0])[44]))
    )


def test_tables_of_places(tmp_path: Path) -> None:
    csv, parquet = tmp_path / "points.csv", tmp_path / "points.parquet"
    csv.write_text("name,lon,lat\na,-100,40\nb,-90.5,30\n")
    pq.write_table(pa.table({"lat": [40.0, 30.0], "lon": [-100.0, -90.5]}), parquet)
    for path in (csv, parquet):
        assert read_places(str(path)).tolist() == [[40, -100], [30, -90.5]]


@pytest.mark.parametrize(
    ("text", "field", "shown"),
    [
        ("lat,longitude\n40,-100\n", "lon", "longitude"),
        ("lat,lon\n40,-100\n,-90\n", "lat", "row 2"),
        ("lat,lon\n40,-100\n40,260\n", "lon", 260),
        ("lat,lon\nnorth,-100\n", "lat", "numbers"),
        ("lat,lon\n", "", "no rows"),
        ("lat,lon,lat\n40,-100,40\n", "lat", "2 columns"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, field: str, shown: object) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with refuses("points.csv", field, shown):
        read_places(str(path))
