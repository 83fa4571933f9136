"""The figure of a predicted day: its panels, its hatched cells, and the same bytes twice."""

import re
from types import SimpleNamespace
from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from pm25.grids.cells import conus_cells
from pm25.grids.predicted import PredictedDay
from sweeps.report.figures import day_maps
from sweeps.report.figures.day_maps import ArmDay, Monitors, day_map
from sweeps.report.figures.style import NARROW, Figure

LAT, LON = conus_cells(2.5)
MONITORS = Monitors(np.array([40.0, 35.0]), np.array([-100.0, -90.0]), np.array([12.0, np.nan]))


def covariates(lat: np.ndarray = LAT, origin: str = "covariates from grid.parquet") -> Any:
    return SimpleNamespace(name="grid.parquet", origin=origin, lat=lat, lon=LON)


def arm(label: str = "lat/lon", models: int = 5, shift: float = 0.0, truth: bool = True) -> ArmDay:
    """Predictions from 5 to 80 ug/m3; every fourth cell is outside, and the first has no prediction."""
    true = np.linspace(5, 80, len(LAT)).astype(np.float32)
    mean = true + shift
    mean[0] = np.nan
    inside = np.arange(len(LAT)) % 4 > 0
    spread = np.full(len(LAT), 2.0 if models > 1 else np.nan, np.float32)
    date = np.datetime64("2021-08-15")
    return ArmDay(
        label,
        models,
        PredictedDay(
            date, mean, spread, true / 10, inside, true if truth else None, np.zeros(len(inside), bool)
        ),
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """Every canvas that a figure was drawn on, which is not rendered."""
    found: list[matplotlib.figure.Figure] = []

    def finish(canvas: matplotlib.figure.Figure, name: str, alt: str, caption: str, *embed: Any) -> Figure:
        found.append(canvas)
        return Figure(name, b"", b"", "png", alt, caption)

    monkeypatch.setattr(day_maps, "finish", finish)
    return found


def panels(canvas: matplotlib.figure.Figure) -> list[Any]:
    return [ax for ax in canvas.axes if ax.get_title(loc="left")]


def titles(canvas: matplotlib.figure.Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in panels(canvas)]


def hatched(ax: Any) -> int:
    """Number of cells that are hatched, once in white and once in black."""
    white, black = (len(one.get_path()) // 5 for one in ax.patches if one.get_hatch())
    assert white == black
    return white


OUTSIDE = sum(cell % 4 == 0 for cell in range(1, len(LAT)))


def test_one_arm_with_truth(drawn: list[matplotlib.figure.Figure]) -> None:
    figure = day_map([arm(shift=3.0)], covariates(), MONITORS)
    wide, narrow = drawn
    first, truth, spread, error = titles(wide)
    assert re.search(r"mean of 5 models: 25% outside", first)
    assert (truth, "5 models" in spread) == ("truth", True)
    assert "RMSE 3.0 µg/m³, inside 3.0" in error
    assert [hatched(ax) for ax in panels(wide)] == [OUTSIDE, 0, OUTSIDE, OUTSIDE]
    assert titles(narrow) == titles(wide)
    assert narrow.get_figwidth() == NARROW
    assert len({ax.get_subplotspec().colspan.start for ax in panels(narrow)}) == 1  # one panel in a row
    assert all(text in figure.alt for text in ("2021-08-15", "lat/lon", "covariates from grid.parquet"))
    assert "25%" in figure.caption


def test_without_truth_the_observations_are_beside(drawn: list[matplotlib.figure.Figure]) -> None:
    day_map([arm(models=1, truth=False)], covariates(), MONITORS)
    title, other = titles(drawn[0])
    assert "one model" in title
    assert other == "observed at the monitors"
    mapped, observed = (ax.collections[0] for ax in panels(drawn[0]))
    assert observed.get_array().tolist() == [12.0]
    assert observed.norm.vmax == mapped.norm.vmax
    assert not panels(drawn[0])[1].patches
    drawn.clear()
    nothing = MONITORS._replace(observed=np.full(2, np.nan))
    day_map([arm(models=1, truth=False)], covariates(), nothing)
    assert len(titles(drawn[0])) == 1


def test_two_arms_and_their_difference(drawn: list[matplotlib.figure.Figure]) -> None:
    made = [arm("lat/lon", shift=3.0), arm("none", shift=-1.0)]
    day_map(made, covariates(), MONITORS)
    one, other, truth, difference = panels(drawn[0])
    assert "RMSE 3.0" in one.get_title(loc="left")
    assert "RMSE 1.0" in other.get_title(loc="left")
    assert truth.get_title(loc="left") == "truth"
    assert difference.get_title(loc="left") == "lat/lon − none"
    values = difference.collections[0].get_array()
    np.testing.assert_allclose(values.compressed(), 4.0, rtol=1e-5)
    scales = {one.collections[0].norm.vmax, other.collections[0].norm.vmax, truth.collections[0].norm.vmax}
    assert len(scales) == 1
    drawn.clear()
    day_map([arm("a", truth=False), arm("b", truth=False)], covariates(), MONITORS)
    assert titles(drawn[0])[2:] == ["a − b", "observed at the monitors"]


def test_the_title_says_that_covariates_are_interpolated(drawn: list[matplotlib.figure.Figure]) -> None:
    day_map([arm(truth=False)], covariates(origin="covariates interpolated from monitors"), MONITORS)
    assert all("covariates interpolated from monitors" in canvas.get_suptitle() for canvas in drawn)


def test_places_on_no_grid_are_dots(drawn: list[matplotlib.figure.Figure]) -> None:
    lat = LAT + np.random.default_rng(0).uniform(-1, 1, len(LAT))
    day_map([arm(truth=False)], covariates(lat), MONITORS)
    ax = panels(drawn[0])[0]
    assert np.isfinite(ax.collections[0].get_array()).sum() == len(LAT) - 1
    assert not ax.patches
    crosses = next(line for line in ax.lines if line.get_marker() == "x")
    assert len(crosses.get_xdata()) == OUTSIDE


def test_a_cell_is_drawn_at_its_place(drawn: list[matplotlib.figure.Figure]) -> None:
    """The corners of the cell around 38.75 N 96.25 W, in the projection whose origin is 37.5 N 96 W."""
    day_map([arm(truth=False)], covariates(), MONITORS)
    mesh = panels(drawn[0])[0].collections[0]
    value = arm().day.mean[(LAT == 38.75) & (LON == -96.25)]
    row, column = np.argwhere(mesh.get_array() == value)[0]
    x, y = mesh.get_coordinates()[row : row + 2, column : column + 2].reshape(4, 2).T
    assert x.min() == pytest.approx(-130, abs=3)  # 1.5 degrees of longitude west
    assert x.max() == pytest.approx(87, abs=3)
    assert y.min() == pytest.approx(0, abs=3)
    assert y.max() == pytest.approx(278, rel=0.02)  # 2.5 degrees of latitude


def test_the_same_bytes_twice() -> None:
    made = arm(models=1, truth=False)
    one, two = (day_map([made], covariates(), MONITORS) for _ in range(2))
    assert (one.png, one.svg, one.small) == (two.png, two.svg, two.small)
    assert one.small.startswith(b"<?xml")
    assert one.small != one.svg


def test_a_map_without_variation_is_drawn(drawn: list[matplotlib.figure.Figure]) -> None:
    made = arm()
    made.day.mean[:] = 0
    made.day.truth[:] = 0
    day_map([made], covariates(), MONITORS)
    norm = panels(drawn[0])[0].collections[0].norm
    assert 0 < norm.vmin < norm.vmax
