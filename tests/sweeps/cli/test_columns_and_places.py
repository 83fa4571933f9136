"""Tables with other names of columns, and tables with several sites at one place, in commands and studies."""

import json
from pathlib import Path

import pandas as pd
import pytest

import sweeps
from tests.sweeps.cli.commands import Sweep, arguments, check_refused, study_keys, tree

NAMES = {"site_id": "station", "date": "Date Local", "lat": "LATITUDE", "lon": "Lng", "pm25": "PM2.5"}
MAP = [word for name, column in NAMES.items() for word in ("--map", f"{name}={column}")]


@pytest.fixture(scope="module", params=["csv", "parquet"])
def mapped(
    request: pytest.FixtureRequest, table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The table of the study with other names of its columns."""
    path = tmp_path_factory.mktemp("mapped") / f"monitors.{request.param}"
    frame = table.rename(columns=NAMES)
    frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path, index=False)
    return path


def test_check_with_a_map(sweep: Sweep, mapped: Path) -> None:
    ended = sweep("data", "check", mapped, *MAP)
    assert (ended.status, ended.err) == (0, "")
    content = json.loads(sweep("data", "check", mapped, *MAP, "--json").out)
    assert (content["problems"], content["counts"]["sites"]) == ([], 12)
    without = sweep("data", "check", mapped)
    assert without.status == 2
    assert f"sweep data check {mapped} {' '.join(MAP[:2])}" in without.err


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--map", "station"], ("--map", "'station'", "pm25=PM2.5")),
        (["--map", "pm25="], ("--map", "'pm25='")),
        ([*MAP, "--map", "pm25=PM2.5"], ("--map", "pm25")),
        (["--map", "pm25=PM25"], ("pm25", "'PM25'", "use PM2.5")),
    ],
)
def test_a_wrong_map_is_refused(
    sweep: Sweep, mapped: Path, words: list[str], values: tuple[str, ...]
) -> None:
    check_refused(sweep("data", "check", mapped, *words), *values)


def test_a_mapped_table_has_the_keys_of_the_renamed_one(toy: Path, mapped: Path) -> None:
    plain = [part for name in ("data.channels=[elev_m]",) for part in ("--set", name)]
    other = [*plain, "--set", f"data.table={mapped}", "--set", f"data.columns={json.dumps(NAMES)}"]
    if mapped.suffix == ".parquet":
        assert study_keys(toy, other) == study_keys(toy, plain)
    assert len({*study_keys(toy, other)}) == 4
    opened = sweeps.open(toy, **{"data.table": mapped, "data.columns": NAMES})
    assert len(opened.results()) == 4


def test_columns_need_a_table(sweep: Sweep, tmp_path: Path) -> None:
    ended = sweep(*arguments("plan", "demo", tmp_path, "data.columns={pm25: PM2.5}"))
    check_refused(ended, "data.columns", "--set data.columns=")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_split_between_sites_at_one_place_is_refused(
    sweep: Sweep, toy: Path, table: pd.DataFrame, tmp_path: Path, command: str
) -> None:
    twins = table.assign(site_id=table["site_id"] + "-2", elev_m=table["elev_m"] + 1)
    both = tmp_path / "both.parquet"
    pd.concat([table, twins], ignore_index=True).to_parquet(both, index=False)
    checked = sweep("data", "check", both)
    assert checked.status == 0
    assert "12 places have several site_ids, the first S00000, S00000-2" in checked.out
    before = tree(tmp_path)
    sets = [f"data.table={both}", "design.split={kind: spatial, folds: 3, fold: 0}", "design.variant=none"]
    ended = sweep(*arguments(command, toy, tmp_path, *sets))
    check_refused(ended, f"{both}: site_id: ", "spatial", "-2", "one place")
    assert tree(tmp_path) == before


def test_an_unknown_harmless_column_is_refused(sweep: Sweep, toy: Path) -> None:
    ended = sweep("data", "check", toy.parent / "panel.parquet", "--harmless", "nosuch")
    check_refused(ended, "--harmless", "nosuch is not a channel")
