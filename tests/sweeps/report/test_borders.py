"""State borders from a GeoJSON file, from the package, or none."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sweeps.report import borders
from tests.errors import refuses

SQUARE = [[-100.0, 40.0], [-99.0, 40.0], [-99.0, 41.0], [-100.0, 40.0]]
ALASKA = [[-150.0, 60.0], [-149.0, 60.0], [-149.0, 61.0], [-150.0, 60.0]]


def written(folder: Path, content: object) -> Path:
    file = folder / "states.geojson"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon", "coordinates": [SQUARE]},
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [ALASKA]]},
        {"type": "LineString", "coordinates": [[*place, 12.0] for place in SQUARE]},
        {"type": "MultiLineString", "coordinates": [SQUARE, ALASKA]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [SQUARE]}]},
    ],
    ids=lambda geometry: geometry["type"],
)
def test_a_geojson_file(tmp_path: Path, geometry: object) -> None:
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    empty = {"type": "Feature", "properties": {}, "geometry": None}
    file = written(tmp_path, {"type": "FeatureCollection", "features": [feature, empty]})
    (ring,) = borders.read(file)  # Alaska is not drawn
    assert ring.tolist() == SQUARE


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": []},
        {"type": "FeatureCollection", "features": 5},
        {"a": 1},
        [1],
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "LineString", "coordinates": [[1], [2]]},
        {"type": "LineString", "coordinates": [[float("nan"), 40], [-99, 41]]},
        {"type": "LineString", "coordinates": [[None, 40], [-99, 41]]},
        {"type": "LineString", "coordinates": [[10**400, 40], [-99, 41]]},
        {"type": "LineString", "coordinates": [[SQUARE, SQUARE]]},
        {"type": "MultiPolygon", "coordinates": 5},
        {"type": "LineString", "coordinates": []},
        {"type": "LineString", "coordinates": [[-99, 41]]},
        {"type": "Polygon", "coordinates": [[[-99, 41]] * 4]},
        {"type": "MultiLineString", "coordinates": [SQUARE, [[-99, 41]]]},
    ],
)
def test_a_file_without_borders_is_refused(tmp_path: Path, content: object) -> None:
    with refuses("states.geojson", "", "GeoJSON"):
        borders.read(written(tmp_path, content))


@pytest.mark.parametrize(
    "ring",
    [ALASKA, [[lat, lon] for lon, lat in SQUARE], [[lon * 111e3, lat * 111e3] for lon, lat in SQUARE]],
    ids=["elsewhere", "latitude first", "metres"],
)
def test_borders_of_which_none_would_be_drawn_are_refused(tmp_path: Path, ring: object) -> None:
    with refuses("states.geojson", "", "-128 to -65", "longitude first"):
        borders.read(written(tmp_path, {"type": "Polygon", "coordinates": [ring]}))


def test_a_deep_and_a_large_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, {"type": "Polygon", "coordinates": [SQUARE]})
    monkeypatch.setattr(borders, "MOST_BORDER_BYTES", file.stat().st_size - 1)
    with refuses("states.geojson", "", "bytes"):
        borders.read(file)
    file.write_text("[" * 50 + "]" * 50)
    with refuses("states.geojson", "", "GeoJSON"):
        borders.read(file)
    monkeypatch.undo()
    file.write_text('{"type": "Feature", "geometry":' * 2000 + "null" + "}" * 2000)
    with refuses("states.geojson", "", "GeoJSON"):
        borders.read(file)


def test_a_missing_file_and_a_file_that_is_not_json(tmp_path: Path) -> None:
    with refuses("none.geojson", "", "No such file", "GeoJSON"):
        borders.read(tmp_path / "none.geojson")
    file = tmp_path / "x.geojson"
    file.write_bytes(b"\xff{")
    with refuses("x.geojson", "", "GeoJSON"):
        borders.read(file)


def test_without_a_file_the_borders_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bokeh-sampledata, NaN separates the rings of a state."""
    package, states = ModuleType("bokeh_sampledata"), ModuleType("bokeh_sampledata.us_states")
    lon = np.array([-100, -99, -99, np.nan, -90, -89, -89], float)
    lat = np.array([40, 40, 41, np.nan, 30, 30.00049, 31], float)
    states.data = {  # type: ignore[attr-defined]
        "XX": {"name": "X", "lats": lat, "lons": lon},
        "AK": {"name": "Alaska", "lats": lat + 30, "lons": lon - 50},
    }
    monkeypatch.setitem(sys.modules, "bokeh_sampledata", package)
    monkeypatch.setitem(sys.modules, "bokeh_sampledata.us_states", states)
    first, second = borders.read(None)
    assert first.tolist() == [[-100, 40], [-99, 40], [-99, 41]]
    assert second.tolist() == [[-90, 30], [-89, 30], [-89, 31]]


def test_without_file_and_package_there_are_no_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bokeh_sampledata", None)
    monkeypatch.setitem(sys.modules, "bokeh_sampledata.us_states", None)
    assert borders.read(None) == []
