"""Vectors of TESSERA and AlphaEarth, from stand-ins with the methods and arguments of the readers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import encoders
from pm25.sources import satellite_embeddings
from tests.errors import refuses
from tests.processes import call_sweep

PLACES = [(40.0, -105.0), (34.5, -118.25), (34.5, -84.0)]
"""Latitude and longitude of the sites, of which the last one comes first in the table."""

DAYS = [f"2021-01-{day:02d}" for day in range(1, 22)]


@pytest.fixture
def panel(tmp_path: Path) -> Path:
    return write_panel(tmp_path / "panel.parquet", [PLACES[i] for i in (2, 0, 1)])


def write_panel(path: Path, places: list[tuple[float, float]]) -> Path:
    rows = [(f"s{i}", *place, day, 8.0 + j) for i, place in enumerate(places) for j, day in enumerate(DAYS)]
    pd.DataFrame(rows, columns=["site_id", "lat", "lon", "date", "pm25"]).to_parquet(path)
    return path


@dataclass
class GeoTessera:
    """Stand-in for the class of geotessera: 128 values, NaN east of 90 W."""

    embeddings_dir: Path

    def sample_embeddings_at_points(self, points: list[tuple[float, float]], year: int) -> np.ndarray:
        assert Path(self.embeddings_dir).is_dir()
        assert all(isinstance(point, tuple) for point in points)
        found = np.full((len(points), 128), np.nan, np.float32)
        for i, (lon, lat) in enumerate(points):
            if lon < -90:
                found[i] = [lon, lat, year, *range(125)]
        return found


@dataclass
class Image:
    """Stand-in for a mosaic of Earth Engine; a place east of 90 W has no feature."""

    year: int
    requests: list[int] = field(default_factory=list)

    def sampleRegions(self, collection: Sequence[Any], properties: list[str], scale: float) -> Any:
        assert (properties, scale) == (["place"], 10)
        self.requests.append(len(collection))
        bands = {f"A{i:02d}": i / 64 for i in range(2, 64)}
        features = [
            {"properties": {"A00": lon, "A01": lat, "place": own["place"]} | bands}
            for (lon, lat), own in reversed(collection)  # in any order
            if lon < -90
        ]
        return SimpleNamespace(getInfo=lambda: {"features": features})


class EarthEngine:
    """Stand-in for the module ee."""

    def __init__(self) -> None:
        self.projects: list[str | None] = []
        self.images: list[Image] = []
        self.Geometry = SimpleNamespace(Point=tuple)
        self.Feature = lambda point, properties: (point, properties)
        self.FeatureCollection = list

    def Initialize(self, project: str | None = None) -> None:
        self.projects.append(project)

    def ImageCollection(self, name: str) -> Any:
        assert name == "GOOGLE/SATELLITE_EMBEDDING/V1/ANNUAL"

        def filter_date(first: str, end: str) -> Any:
            assert (first, end) == ("2021-01-01", "2022-01-01")
            self.images.append(Image(int(first[:4])))
            return SimpleNamespace(mosaic=lambda: self.images[-1])

        return SimpleNamespace(filterDate=filter_date)


@pytest.fixture
def earth_engine(monkeypatch: pytest.MonkeyPatch) -> EarthEngine:
    found = EarthEngine()
    monkeypatch.setitem(sys.modules, "ee", found)  # type: ignore[arg-type]
    return found


def test_tessera(panel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = SimpleNamespace(GeoTessera=GeoTessera)
    monkeypatch.setitem(sys.modules, "geotessera", module)  # type: ignore[arg-type]
    out = tmp_path / "vectors.parquet"
    said, _ = call_sweep(
        tmp_path, "data", "embeddings", "--from", "tessera", "--panel", str(panel), "--year", "2021",
        "-o", str(out),
    )  # fmt: skip
    assert "2 places, 128 dimensions; 1 place of the panel without a vector" in said
    frame = pd.read_parquet(out)
    assert [*frame.columns] == ["lat", "lon", *(f"v{i}" for i in range(128))]
    assert frame[["lat", "lon"]].to_numpy().tolist() == [[34.5, -118.25], [40.0, -105.0]]  # by latitude
    assert frame[["v0", "v1", "v2"]].to_numpy().tolist() == [[-118.25, 34.5, 2021], [-105.0, 40.0, 2021]]

    encoder = encoders.load("table", path=str(out))
    lat, lon = np.array([40.0, 34.5]), np.array([-105.0, -118.25])
    assert encoder.embed(lat, lon)[:, :2].tolist() == [[-105.0, 40.0], [-118.25, 34.5]]


def test_alphaearth(panel: Path, earth_engine: EarthEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(satellite_embeddings, "REQUEST_PLACES", 2)
    frame, missing = satellite_embeddings.embeddings("alphaearth", panel, 2021, project="mine")
    assert earth_engine.projects == ["mine"]
    assert earth_engine.images[0].requests == [2, 1]
    assert (missing, frame.shape) == (1, (2, 66))
    assert frame[["v0", "v1"]].to_numpy().tolist() == [[-118.25, 34.5], [-105.0, 40.0]]
    assert frame["v63"].tolist() == [np.float32(63 / 64)] * 2
    assert {str(kind) for kind in frame.dtypes[2:]} == {"float32"}


def test_a_reader_that_is_not_installed_or_fails(
    panel: Path, earth_engine: EarthEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "geotessera", None)  # type: ignore[arg-type]
    with refuses("tessera", "", "pip install geotessera"):
        satellite_embeddings.embeddings("tessera", panel, 2021)

    def fail(project: str | None = None) -> None:
        raise RuntimeError("Please authorize access\nto your account")

    monkeypatch.setattr(earth_engine, "Initialize", fail)
    with refuses("alphaearth", "", "Please authorize access"):
        satellite_embeddings.embeddings("alphaearth", panel, 2021)


@pytest.mark.parametrize("shape", [(3,), (2, 128), (5, 128), (3, 0), (3, 2, 2), ()])
def test_a_reader_that_returns_another_shape(
    shape: tuple[int, ...], panel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = type("GeoTessera", (GeoTessera,), {})
    monkeypatch.setattr(reader, "sample_embeddings_at_points", lambda *_, **__: np.zeros(shape))
    monkeypatch.setitem(sys.modules, "geotessera", SimpleNamespace(GeoTessera=reader))  # type: ignore[arg-type]
    with refuses("tessera", "", shape, "geotessera"):
        satellite_embeddings.embeddings("tessera", panel, 2021)


def test_no_place_with_a_vector(tmp_path: Path, earth_engine: EarthEngine) -> None:
    path = write_panel(tmp_path / "east.parquet", [(40.0, -75.0)])
    with refuses("alphaearth", "year", "2021"):
        satellite_embeddings.embeddings("alphaearth", path, 2021)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), "VECTORS, --from"),
        (("v.npy", "--from", "tessera"), "VECTORS, --from"),
        (("v.npy", "--year", "2021"), "--year"),
        (("--from", "tessera", "--year", "2021"), "--panel"),
        (("--from", "tessera", "--panel", "p.parquet"), "--year"),
        (("--from", "tessera", "--panel", "p", "--year", "2021", "--project", "x"), "--project"),
        (("--from", "alphaearth", "--panel", "p", "--year", "2021", "--tiles", "x"), "--tiles"),
        (("--from", "alphaearth", "--panel", "p", "--year", "2016"), "--year"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: tuple[str, ...], shown: str) -> None:
    out = str(tmp_path / "v.parquet")
    _, said = call_sweep(tmp_path, "data", "embeddings", *options, "-o", out, status=2)
    assert shown in said
    assert not Path(out).exists()
