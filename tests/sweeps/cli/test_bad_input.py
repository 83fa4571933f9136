"""Bad studies, tables and storages: exit status 2, one line, and no file is changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.sweeps.cli.commands import ON_A_STUDY, Sweep, arguments, check_refused, tree


@pytest.mark.parametrize("command", ON_A_STUDY)
@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("modle.width=8", ("modle: ", "model")),
        ("model.widht=8", ("model.widht: ", "model.width")),
        ("design.seed=-1", ("design.seed.0: ",)),
        ("design.split={kind: random, fold: 5}", ("design.split", "random", "5")),
        ("train.learning_rate=.inf", ("train.learning_rate: ",)),
        ("data.channels=[elev]", ("elev: ", "data.channels")),
        ("data.table=nowhere.parquet", ("nowhere.parquet: ",)),
        ("storage=foo://bar", ("storage: ", "foo://bar")),
    ],
)
def test_a_bad_study_is_refused_and_touches_nothing(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str, override: str, values: tuple[str, ...]
) -> None:
    before = tree(tmp_path)
    check_refused(sweep(*arguments(command, toy, tmp_path, override)), *values)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_split_that_leaves_a_part_empty_is_refused(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str
) -> None:
    before = tree(tmp_path)
    override = "design.split={kind: checkerboard, degrees: 100}"
    check_refused(sweep(*arguments(command, toy, tmp_path, override)), "checkerboard-100", "fold")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ON_A_STUDY)
def test_an_unknown_study_is_refused(sweep: Sweep, tmp_path: Path, command: str) -> None:
    check_refused(sweep(*arguments(command, "demoo", tmp_path)), "demoo: ", "demo")
    check_refused(sweep(*arguments(command, "quick", tmp_path)), "--set data.table=")
    assert tree(tmp_path) == {}


Frame = pd.DataFrame


def at(frame: Frame, row: int, column: str, value: Any) -> Frame:
    """The table with another value in one row, counted from 1."""
    frame = frame.copy()
    frame.loc[row - 1, column] = value
    return frame


BAD_TABLES: dict[str, tuple[Callable[[Frame], Frame], tuple[str, ...]]] = {
    "no lat": (lambda f: f.drop(columns="lat"), ("lat: ",)),
    "no target": (lambda f: f.drop(columns="pm25"), ("pm25: ",)),
    "duplicates": (
        lambda f: pd.concat([f, f.iloc[:3]]),
        ("site_id, date: ", "3", "S00000", "2021-01-01", "481, 482, 483"),
    ),
    "swapped": (lambda f: f.rename(columns={"lat": "lon", "lon": "lat"}), ("lat, lon: ",)),
    "lat out of range": (lambda f: f.assign(lat=95.0), ("lat: ", "95")),
    "lon from 0 to 360": (lambda f: f.assign(lon=f["lon"] + 360), ("lon: ",)),
    "a site that moves": (lambda f: at(f, 6, "lat", 40.5), ("lat, lon: ", "S00000", "row 6")),
    "no lat in a row": (lambda f: at(f, 6, "lat", np.nan), ("lat: ", "row 6")),
    "no target at all": (lambda f: f.assign(pm25=np.nan), ("pm25: ",)),
    "text": (
        lambda f: at(f.astype({"elev_m": "str"}), 8, "elev_m", "high"),
        ("elev_m: ", "'high'", "row 8"),
    ),
    "infinite": (lambda f: at(f, 3, "crn_rh_avg", np.inf), ("crn_rh_avg: ", "row 3")),
    "20 days": (lambda f: f[f["date"] < "2021-01-21"], ("date: ", "20", "21")),
    "no rows": (lambda f: f.iloc[:0], ("rows",)),
    "no date": (lambda f: f.assign(date="soon"), ("date: ",)),
}


@pytest.fixture(scope="module")
def bad_tables(table: Frame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, (spoil, _) in BAD_TABLES.items():
        spoil(table).to_parquet(folder / f"{name}.parquet", index=False)
    return folder


@pytest.mark.parametrize("command", ["plan", "status", "run", "export"])
@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_and_touches_nothing(
    sweep: Sweep, toy: Path, tmp_path: Path, bad_tables: Path, name: str, command: str
) -> None:
    bad = bad_tables / f"{name}.parquet"
    before = tree(tmp_path)
    ended = sweep(*arguments(command, toy, tmp_path, f"data.table={bad}"))
    check_refused(ended, f"{bad}: ", *BAD_TABLES[name][1])
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", BAD_TABLES)
def test_check_names_every_problem(sweep: Sweep, bad_tables: Path, name: str) -> None:
    ended = sweep("data", "check", bad_tables / f"{name}.parquet")
    assert ended.status == 2
    assert ended.err.startswith("problem: ")
    assert any(all(value in line for value in BAD_TABLES[name][1]) for line in ended.err.splitlines())


def test_check_as_json_names_every_row(sweep: Sweep, bad_tables: Path) -> None:
    ended = sweep("data", "check", bad_tables / "duplicates.parquet", "--json")
    assert (ended.status, ended.err) == (2, "")
    (problem,) = json.loads(ended.out)["problems"]
    assert (problem["column"], problem["rows"]) == ("site_id, date", [481, 482, 483])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.parquet", "cut"),
        ("words.parquet", b"these are words, and no table"),
        ("empty.parquet", b""),
        ("damaged.parquet", "damaged"),
        ("empty.csv", b""),
        ("ragged.csv", b"site_id,date\n1,2,3\n"),
        ("damaged.csv", b"site_id,\xff\xff\n1,2\n"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "check"])
def test_a_corrupt_table_is_refused(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str, name: str, content: bytes | str
) -> None:
    if isinstance(content, str):
        good = (toy.parent / "panel.parquet").read_bytes()
        content = good[: len(good) // 2] if content == "cut" else good[:300] + bytes(600) + good[900:]
    bad = tmp_path / name
    bad.write_bytes(content)
    before = tree(tmp_path)
    if command == "check":
        ended = sweep("data", "check", bad)
    else:
        ended = sweep(command, toy, "--set", f"data.table={bad}")
    check_refused(ended, f"{bad}: ", bad.suffix[1:])
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "place", ["{folder}/file", "{folder}/file/below", "/proc/results", "file:///proc/results"]
)
def test_a_run_without_a_place_for_results_is_refused(
    sweep: Sweep, toy: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    place = place.format(folder=tmp_path)
    before = tree(tmp_path)
    ended = sweep("run", toy, "--set", f"storage={place}")
    check_refused(ended, "storage: ", place, "--set storage=")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["plan", "status", "retry", "export", "report"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_empty_store(sweep: Sweep, toy: Path, tmp_path: Path, command: str, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    ended = sweep(*arguments(command, toy, tmp_path, f"storage={tmp_path / place}"))
    check_refused(ended, "storage: ", tmp_path / place)
    assert tree(tmp_path) == before


def test_a_broken_record_is_named_and_kept(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    broken = sorted((toy.parent / "results").rglob("result.json"))[0]
    broken.write_text(broken.read_text()[:100])
    before = tree(toy.parent)
    for command in ("status", "export"):
        ended = sweep(*arguments(command, toy, tmp_path))
        assert ended.status == 0
        assert (
            f"{broken}: damaged: it is not JSON. Fix: run `sweep retry {toy} --damaged`"
            in ended.out + ended.err
        )
    assert tree(toy.parent) == before
