"""A table of a grid is read by days, whatever the order of its rows and its form."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pm25.grids.table import GridTable
from tests.errors import refuses

CHANNELS = ("a", "b", "day_cos")
DAYS = pd.date_range("2021-03-01", "2021-04-09", unit="us")
LAT, LON = np.array([40.25, 39.75, 40.25]), np.array([-99.5, -98.5, -98.5])


def frame() -> pd.DataFrame:
    """Three cells and 40 days; channel a is 1000 cells + day, and b its negative."""
    cell, day = np.repeat(np.arange(3), 40), np.tile(np.arange(40), 3)
    made = {"lat": LAT[cell], "lon": LON[cell], "date": DAYS.to_numpy()[day]}
    return pd.DataFrame(made | {"a": 1000.0 * cell + day, "b": -1000.0 * cell - day - 0.5})


def span(first: str, last: str) -> tuple[np.datetime64, np.datetime64]:
    return np.datetime64(first), np.datetime64(last)


MARCH = span("2021-03-05", "2021-03-07")


def opened(path: Path, **columns: str) -> GridTable:
    return GridTable(path, CHANNELS, columns=columns, needs="arm latlon")


def check(grid: GridTable) -> None:
    """The cells are sorted from the south-west, and each has its own values."""
    assert (grid.lat.tolist(), grid.lon.tolist()) == ([39.75, 40.25, 40.25], [-98.5, -99.5, -98.5])
    np.testing.assert_array_equal(grid.days, DAYS.to_numpy().astype("datetime64[D]"))
    block = grid.read(*MARCH)
    assert block.features.shape == (3, 3, 3)
    np.testing.assert_array_equal(
        block.features[:, :, 0], [[1004, 1005, 1006], [4, 5, 6], [2004, 2005, 2006]]
    )
    np.testing.assert_array_equal(block.features[:, :, 1], -block.features[:, :, 0] - 0.5)
    turn = 2 * np.pi * (31 + 28 + np.array([4, 5, 6])) / 365.25
    np.testing.assert_allclose(block.features[0, :, 2], np.cos(turn), atol=1e-6)


@pytest.mark.parametrize("form", ["parquet", "csv", "folder"])
def test_forms_and_order_of_rows(form: str, tmp_path: Path) -> None:
    made = frame().sample(frac=1, random_state=0)
    path = tmp_path / f"grid.{form}"
    if form == "csv":
        made.to_csv(path, index=False)
    elif form == "parquet":
        made.to_parquet(path, index=False, row_group_size=7)
    else:
        path.mkdir()
        for number, part in enumerate((made[:50], made[50:])):
            part.to_parquet(path / f"{number}.parquet", index=False)
    grid = opened(path)
    check(grid)
    assert grid.read(*MARCH).truth is None


def test_the_truth_and_other_names(tmp_path: Path) -> None:
    made = frame().assign(pm25_true=lambda f: f["a"] + 7)
    made.rename(columns={"lat": "latitude", "a": "A"}).to_parquet(tmp_path / "grid.parquet")
    # The study's map also names columns that a grid does not have.
    grid = opened(tmp_path / "grid.parquet", lat="latitude", a="A", pm25="PM2.5", site_id="station")
    check(grid)
    block = grid.read(*MARCH)
    np.testing.assert_array_equal(block.truth, block.features[:, :, 0] + 7)


def test_only_the_row_groups_of_the_days_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = frame().sort_values(["date", "lat", "lon"])
    made.to_parquet(tmp_path / "grid.parquet", index=False, row_group_size=15)  # five days each
    grid = opened(tmp_path / "grid.parquet")
    asked: list[int] = []
    own = pq.ParquetFile.iter_batches

    def spy(self, *arguments, row_groups, **options):
        asked.extend(row_groups)
        return own(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    check(grid)
    assert asked == [0, 1]  # days 5 to 7 are in the first two of eight groups


def test_a_missing_row_is_missing_covariates(tmp_path: Path) -> None:
    made = frame()
    gone = (made["lat"] == 39.75) & (made["date"] == "2021-03-06")
    made[~gone].to_parquet(tmp_path / "grid.parquet", index=False)
    features = opened(tmp_path / "grid.parquet").read(*MARCH).features
    assert np.isnan(features[0, 1, :2]).all()
    assert np.isnan(features).sum() == 2  # the calendar is known


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        ({"b": None}, "b", ("arm latlon needs it", "lat, lon, date, a")),
        ({"a": None, "b": None}, "a, b", ("arm latlon needs them",)),
        ({"lat": None}, "lat", ("the table has",)),
        ({"lon": 200.0}, "lon", ("200 is not in -180..180",)),
        ({"lat": "north"}, "lat", ("not a number",)),
        ({"date": "someday"}, "date", ("YYYY-MM-DD",)),
        ({"a": "many"}, "a", ("'many'",)),
        ({"a": np.inf}, "a", ("infinite",)),
    ],
)
def test_bad_tables_are_refused(change: dict, field: str, values: tuple[str, ...], tmp_path: Path) -> None:
    made = frame().drop(columns=[name for name, value in change.items() if value is None])
    made = made.assign(**{name: value for name, value in change.items() if value is not None})
    path = tmp_path / "grid.parquet"
    made.to_parquet(path, index=False)
    with refuses(None, field, *values) as raised:
        opened(path).read(*MARCH)
    assert str(path) in raised.value.where


def test_repeated_rows_are_refused(tmp_path: Path) -> None:
    made = frame()
    pd.concat([made, made[5:6]]).to_parquet(tmp_path / "grid.parquet", index=False)
    with refuses(f"{MARCH[0]} to {MARCH[1]}", "site_id, date", "2021-03-06"):
        opened(tmp_path / "grid.parquet").read(*MARCH)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    frame()[:0].to_parquet(tmp_path / "grid.parquet", index=False)
    with refuses("grid.parquet", "", "no rows"):
        opened(tmp_path / "grid.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with refuses("other.parquet", "lat, lon, date, b"):
        opened(tmp_path / "other.parquet")
