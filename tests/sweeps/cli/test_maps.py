"""`sweep map` writes maps of a small trained study, and refuses what cannot be mapped in one line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
import xarray

from pm25.grids.cells import conus_cells
from pm25.predictor import Predictor
from pm25.sources import synthetic
from sweeps.engine import worker
from sweeps.engine.worker import WEIGHTS
from sweeps.state import StudyState
from tests.sweeps.cli.commands import Sweep, check_refused, tree

STUDY = """\
study: tiny
data:
  synthetic: {sites: 16, days: 30, seed: 1}
  channels: [elev_m, crn_tmax_c, wind_speed_ms, day_cos]
design:
  variant: [none, latlon, random]
  split: [{kind: random, folds: 2}]
  seed: 0
encoders: {random: {dim: 3}}
keep_weights: folds
model: {width: 4, depth: 1, attention_units: 4}
train: {max_epochs: 2, batch_size: 64}
"""
DAY = "2021-01-25"
GRID = ("--date", DAY, "--grid", "4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two arms and a control, with the weights of both folds of each."""
    folder = tmp_path_factory.mktemp("maps")
    (folder / "tiny.yaml").write_text(STUDY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    state = StudyState(str(folder / "tiny.yaml"))
    for key, cell in state.cells.items():
        embedded = state.embedded(cell)
        record = worker.train_and_record(
            cell, key, state.panel, state.store, embedded=embedded, keep_weights=True
        )
        assert record["state"] == "done", record.get("error")
    torch.set_num_threads(threads)
    return folder / "tiny.yaml"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Covariates of the cells of 4 degrees, in the world of the study."""
    lat, lon = conus_cells(4)
    made = synthetic.synthesize_grid(lat, lon, "2021-01-01", "2021-01-30", days=30, seed=1)
    made.drop(columns="pm25_true").to_parquet(tmp_path / "grid.parquet", index=False)
    return tmp_path / "grid.parquet"


def changed(table: Path, **columns: object) -> Path:
    """The table of the grid with some columns replaced, or left out (None)."""
    made = pd.read_parquet(table)
    made = made.drop(columns=[name for name, value in columns.items() if value is None])
    made.assign(**{name: value for name, value in columns.items() if value is not None}).to_parquet(table)
    return table


def predictors(study: Path, variant: str) -> list[Predictor]:
    state = StudyState(str(study))
    found = []
    for key, cell in state.cells.items():
        if cell.variant == variant:
            kept = worker.stored_weights(key, state.store)
            assert kept is not None
            found.append(Predictor(cell, *kept))
    return found


def test_a_geotiff_of_the_world_of_the_study(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    """The bands are what the predictors of both folds say of the same windows, at the cells' places."""
    out = tmp_path / "map.tif"
    ended = sweep("map", trained, "--arm", "latlon", *GRID, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    lat, lon = conus_cells(4)
    first, line = ended.out.splitlines()
    assert all(text in first for text in (str(out), DAY, f"{len(lat)} cells", "synthetic world"))
    made = synthetic.synthesize_grid(lat, lon, "2021-01-05", DAY, days=30, seed=1)
    turn = 2 * np.pi * (pd.DatetimeIndex(made["date"]).day_of_year - 1) / 365.25
    channels = [made["elev_m"], made["crn_tmax_c"], made["wind_speed_ms"], np.cos(turn)]
    windows = np.stack(channels, axis=1).astype(np.float32).reshape(len(lat), 21, 4)
    one, other = (model.predict(windows, lat, lon).astype(float) for model in predictors(trained, "latlon"))
    with rasterio.open(out) as file:
        found = np.array([*file.sample(zip(lon, lat, strict=True))])
        tags = file.tags()
    np.testing.assert_allclose(found[:, 0], (one + other) / 2, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], np.abs(one - other) / np.sqrt(2), rtol=1e-2, atol=1e-5)
    np.testing.assert_array_equal(found[:, 4], made["pm25_true"].to_numpy().reshape(len(lat), 21)[:, -1])
    outside = int((found[:, 3] == 0).sum())
    assert f"mean of 2 models; {outside} cells ({outside / len(lat):.1%}) outside the area" in line
    assert "weighted equally" in line
    assert len(tags["models"].split(", ")) == 2


def test_days_of_a_table_as_netcdf(sweep: Sweep, trained: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.nc"
    arguments = ("map", trained, "--arm", "none", "--covariates", table)
    ended = sweep(*arguments, "--from", "2021-01-21", "--to", "2021-01-30", "-o", out)
    assert ended.status == 0
    # Sixteen monitors are neither on mountains nor in storms.
    assert [line.split(": ")[2] for line in ended.err.splitlines()] == ["elev_m", "wind_speed_ms"]
    assert "2021-01-21 to 2021-01-30" in ended.out
    assert sweep(*arguments, "--date", DAY, "-o", tmp_path / "day.tif").status == 0
    lat, lon = conus_cells(4)
    with xarray.open_dataset(out, engine="h5netcdf") as days, rasterio.open(tmp_path / "day.tif") as day:
        assert days.sizes["time"] == 10
        assert "pm25_true" not in days
        assert days["pm25"].attrs["units"] == "ug m-3"
        assert "grid.parquet" in days.attrs["source"]
        for place, band in zip(
            zip(lon, lat, strict=True), day.sample(zip(lon, lat, strict=True)), strict=True
        ):
            here = days["pm25"].sel(lon=place[0], lat=place[1], time=DAY)
            assert float(here) == pytest.approx(float(band[0]), rel=1e-5)


def test_two_arms_as_a_figure_whose_bytes_repeat(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    arguments = ("map", trained, "--arm", "latlon", "--against", "none", *GRID)
    ended = sweep(*arguments, "-o", one)
    assert (ended.status, ended.err) == (0, "")
    assert [line.partition(":")[0] for line in ended.out.splitlines()[1:]] == ["lat/lon", "none"]
    sweep(*arguments, "-o", two)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes().startswith(b"\x89PNG")


def test_interpolated_covariates_are_said_to_be(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.nc"
    ended = sweep("map", trained, "--arm", "none", "--interpolate", *GRID, "-o", out)
    assert ended.status == 0
    assert "covariates interpolated from monitors" in ended.out
    with xarray.open_dataset(out, engine="h5netcdf") as file:
        assert "covariates interpolated from monitors" in file.attrs["source"]
        assert (file["inside"] == 0).any()  # cells far from the 16 monitors


def test_weights_by_importance(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    state = StudyState(str(trained))
    key = next(key for key, cell in state.cells.items() if cell.variant == "none")
    what = ["elev_m", "crn_tmax_c", "wind_speed_ms", "day_cos"]
    state.store.write_table(
        key, "importance", {"what": what, "rmse_increase": [0.0, 1.0, -0.1, 0.0], "sd": [0.1] * 4}
    )
    try:
        ended = sweep("map", trained, "--arm", "none", *GRID, "-o", tmp_path / "map.tif")
    finally:
        state.store.delete_file(key, "importance.parquet")
    assert ended.status == 0
    assert "weighted by permutation importance" in ended.out


@pytest.mark.parametrize(
    "columns",
    [
        {"what": ["elev_m"], "rmse_increase": ["high"], "sd": [0.1]},
        {"what": ["elev_m"], "rmse_increase": [np.nan], "sd": [0.1]},
        {"input": ["elev_m"], "rmse_increase": [1.0], "sd": [0.1]},
        b"",
    ],
)
def test_a_damaged_importance_is_one_line(
    columns: dict[str, Any] | bytes, sweep: Sweep, trained: Path, tmp_path: Path
) -> None:
    state = StudyState(str(trained))
    key = next(key for key, cell in state.cells.items() if cell.variant == "none")
    if isinstance(columns, bytes):
        state.store.write_file(key, "importance.parquet", columns)
    else:
        state.store.write_table(key, "importance", columns)
    try:
        ended = refused(sweep, trained, tmp_path / "map.tif", *GRID, arm="none")
    finally:
        state.store.delete_file(key, "importance.parquet")
    check_refused(ended, "importance.parquet", "sweep importance")


def test_a_fold_whose_weights_are_lost_is_said(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    state = StudyState(str(trained))
    *_, key = (key for key, cell in state.cells.items() if cell.variant == "latlon")
    content = state.store.read_file(key, WEIGHTS)
    assert content is not None
    state.store.delete_file(key, WEIGHTS)
    try:
        ended = sweep("map", trained, "--arm", "latlon", *GRID, "-o", tmp_path / "map.tif")
    finally:
        state.store.write_file(key, WEIGHTS, content)
    assert "1 fold left out, whose weights are missing" in ended.out


def test_a_map_does_not_replace_its_own_table(
    sweep: Sweep, trained: Path, table: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.nc"
    own.write_bytes(table.read_bytes())
    ended = refused(sweep, trained, own, "--date", DAY, "--covariates", own)
    check_refused(ended, "-o", "--covariates")
    assert own.read_bytes() == table.read_bytes()


def refused(sweep: Sweep, study: Path, out: Path, *arguments: object, arm: str = "latlon") -> object:
    return sweep("map", study, "--arm", arm, *map(str, arguments), "-o", out)


def test_a_grid_without_a_channel_is_refused(
    sweep: Sweep, trained: Path, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map.tif"
    ended = refused(sweep, trained, out, "--date", DAY, "--covariates", changed(table, wind_speed_ms=None))
    check_refused(ended, table, "wind_speed_ms", "arm latlon needs it")
    assert not out.exists()


def test_another_unit_is_a_notice_with_both_ranges(
    sweep: Sweep, trained: Path, table: Path, tmp_path: Path
) -> None:
    kelvin = pd.read_parquet(table)["crn_tmax_c"] + 273.15
    out = tmp_path / "map.tif"
    ended = refused(sweep, trained, out, "--date", DAY, "--covariates", changed(table, crn_tmax_c=kelvin))
    assert ended.status == 0
    (line,) = [line for line in ended.err.splitlines() if "crn_tmax_c" in line]
    trained_on = StudyState(str(trained)).panel.features[:, :, 1]
    assert line.startswith("sweep: grid.parquet: crn_tmax_c: ")
    assert f"{trained_on.min():g} to {trained_on.max():g}" in line
    assert out.exists()


@pytest.mark.parametrize("day", ["2021-01-20", "2020-12-31", "2021-01-31"])
def test_a_day_without_its_window_is_refused(
    day: str, sweep: Sweep, trained: Path, table: Path, tmp_path: Path
) -> None:
    for more in (("--covariates", table), ("--grid", 4), ("--grid", 4, "--interpolate")):
        ended = refused(sweep, trained, tmp_path / "map.tif", "--date", day, *more)
        check_refused(ended, "date", "2021-01-21 to 2021-01-30")


def test_an_arm_without_weights_names_the_command_that_keeps_them(
    sweep: Sweep, trained: Path, tmp_path: Path
) -> None:
    state = StudyState(str(trained))
    kept = {
        key: state.store.read_file(key, WEIGHTS)
        for key, cell in state.cells.items()
        if cell.variant == "latlon"
    }
    for key in kept:
        state.store.delete_file(key, WEIGHTS)
    try:
        ended = refused(sweep, trained, tmp_path / "map.tif", *GRID)
    finally:
        for key, content in kept.items():
            state.store.write_file(key, WEIGHTS, content)
    check_refused(ended, "latlon", f"sweep run {trained} --set keep_weights=folds --set storage=FOLDER")
    other = ("--set", f"storage={tmp_path / 'empty'}")
    check_refused(refused(sweep, trained, tmp_path / "map.tif", *GRID, *other), "latlon", "sweep run ")


def test_a_control_and_an_unknown_arm_are_refused(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    check_refused(refused(sweep, trained, out, *GRID, arm="latlom"), "--arm", "latlom", "use latlon")
    check_refused(refused(sweep, trained, out, *GRID, arm="random-hadamard"), "control")


@pytest.mark.parametrize(
    ("name", "arguments", "values"),
    [
        ("map.jpg", GRID, ("'.jpg'", "map.png, map.tif, map.nc")),
        ("map", GRID, ("map.png",)),
        ("no/map.png", GRID, ("mkdir -p",)),
        ("map.png", (), ("--date",)),
        ("map.png", (*GRID, "--from", DAY, "--to", DAY), ("--date",)),
        ("map.nc", ("--from", DAY), ("--from", "--to is missing")),
        ("map.nc", ("--from", DAY, "--to", "2021-01-22"), ("--to", "2021-01-22")),
        ("map.tif", ("--from", "2021-01-21", "--to", DAY), (".tif", "map.nc")),
        ("map.tif", (*GRID, "--against", "none"), ("--against", "map.png")),
        ("map.png", (*GRID, "--covariates", "grid.parquet"), ("--grid",)),
        ("map.png", ("--date", DAY, "--interpolate", "--covariates", "grid.parquet"), ("--interpolate",)),
        ("map.png", ("--date", "someday"), ("--date", "someday")),
        ("map.png", ("--date", DAY, "--grid", "0"), ("--grid",)),
        ("map.png", ("--date", DAY, "--covariates", "none.parquet"), ("none.parquet",)),
    ],
)
def test_options_that_cannot_be_mapped(
    name: str,
    arguments: tuple[str, ...],
    values: tuple[str, ...],
    sweep: Sweep,
    trained: Path,
    tmp_path: Path,
) -> None:
    before = tree(trained.parent)
    check_refused(refused(sweep, trained, tmp_path / name, *arguments), *values)
    assert tree(trained.parent) == before
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_refused(refused(sweep, trained, tmp_path / "file" / "map.png", *GRID), "file")


def test_a_study_of_monitors_needs_covariates(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    synthetic.synthesize(sites=16, days=30, seed=1).to_parquet(tmp_path / "panel.parquet", index=False)
    (tmp_path / "own.yaml").write_text(
        STUDY.replace("synthetic: {sites: 16, days: 30, seed: 1}", "table: panel.parquet")
    )
    # The store of the synthetic study has the same cells: keys do not depend on where the panel is from.
    sets = ("--set", f"storage={trained.parent / 'results'}")
    study = tmp_path / "own.yaml"
    check_refused(refused(sweep, study, tmp_path / "map.tif", *GRID, *sets), "--covariates", "--interpolate")
    assert refused(sweep, study, tmp_path / "map.tif", *GRID, "--interpolate", *sets).status == 0


def test_places_on_no_grid_have_no_geotiff(sweep: Sweep, trained: Path, table: Path, tmp_path: Path) -> None:
    lat = pd.read_parquet(table)["lat"]
    changed(table, lat=lat + 0.3 * (lat > 45))
    arguments = ("--date", DAY, "--covariates", table)
    check_refused(refused(sweep, trained, tmp_path / "map.tif", *arguments), "regular grid", "map.nc")
    assert refused(sweep, trained, tmp_path / "map.nc", *arguments).status == 0
    assert refused(sweep, trained, tmp_path / "map.png", *arguments).status == 0


def test_a_missing_library_is_one_line(
    sweep: Sweep, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    check_refused(refused(sweep, trained, tmp_path / "map.tif", *GRID), "pip install 'pm25-sweeps[maps]'")


def test_the_grid_of_a_world_is_a_table(sweep: Sweep, trained: Path, tmp_path: Path) -> None:
    """`data synth --grid` writes the covariates that a study on the synthetic panel has by itself."""
    grid = tmp_path / "grid.parquet"
    ended = sweep("data", "synth", grid, "--grid", "4", "--days", "30", "--seed", "1")
    assert (ended.status, ended.out) == (0, f"{grid}: {len(conus_cells(4)[0])} cells, 30 days\n")
    maps = []
    for name, more in (("own", ("--grid", "4")), ("table", ("--covariates", grid))):
        out = tmp_path / f"{name}.tif"
        assert refused(sweep, trained, out, "--date", DAY, *more).status == 0
        with rasterio.open(out) as file:
            maps.append(file.read())
    np.testing.assert_array_equal(*maps)
