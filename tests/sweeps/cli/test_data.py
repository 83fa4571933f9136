"""`sweep data`: making and checking tables."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pm25.sources import synthetic
from tests.sweeps.cli.commands import Sweep, check_refused, tree


def check_shown(text: str, *values: object) -> None:
    """Expect one line of output that shows each of the values."""
    assert len(text.splitlines()) == 1
    for value in values:
        assert str(value) in text


def test_synth_writes_the_panel(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "panel.parquet"
    ended = sweep("data", "synth", out, "--sites", "9", "--days", "25", "--seed", "3")
    frame = synthetic.synthesize(sites=9, days=25, seed=3)
    observed = int(frame["pm25"].notna().sum())
    assert (ended.status, ended.err) == (0, "")
    check_shown(ended.out, out, "9 sites", "25 days", f"{observed} observed")
    pd.testing.assert_frame_equal(pd.read_parquet(out), frame, check_dtype=False)
    assert [*tree(tmp_path)] == ["panel.parquet"]


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("panel.csv", [], ("panel.csv: ", "panel.parquet")),
        ("panel.parquet", ["--sites", "7"], ("sites", "7")),
        ("panel.parquet", ["--days", "20"], ("days", "20", "21")),
        ("missing/panel.parquet", ["--sites", "8", "--days", "21"], ("missing/panel.parquet: ",)),
    ],
)
def test_synth_refuses(
    sweep: Sweep, tmp_path: Path, name: str, options: list[str], values: tuple[str, ...]
) -> None:
    if (tmp_path / name).parent.is_dir():
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    check_refused(sweep("data", "synth", tmp_path / name, *options), *values)
    assert tree(tmp_path) == before


def test_check_of_a_good_table(sweep: Sweep, toy: Path) -> None:
    table = toy.parent / "panel.parquet"
    ended = sweep("data", "check", table)
    assert (ended.status, ended.err) == (0, "")
    content = json.loads(sweep("data", "check", table, "--json").out)
    assert content["problems"] == []
    assert (content["counts"]["sites"], content["counts"]["days"], content["counts"]["rows"]) == (12, 40, 480)


def test_check_of_no_table(sweep: Sweep, tmp_path: Path) -> None:
    check_refused(sweep("data", "check", tmp_path / "no.parquet"), "no.parquet: ")
    check_refused(sweep("data", "check", tmp_path), f"{tmp_path}: ")


AQS = (
    '"State Code","County Code","Site Num","Parameter Code","POC","Latitude","Longitude","Sample Duration",'
    '"Date Local","Units of Measure","Event Type","Arithmetic Mean"\n'
)


def aqs_file(path: Path, days: int = 3) -> Path:
    lines = [
        f'"01","073","0023","88101",1,33.55,-86.81,"24 HOUR","2021-01-{day:02}",'
        f'"Micrograms/cubic meter (LC)","None",{day}.5\n'
        for day in range(1, days + 1)
    ]
    path.write_text(AQS + "".join(lines))
    return path


def test_aqs_builds_a_panel(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "panel.parquet"
    ended = sweep("data", "aqs", aqs_file(tmp_path / "daily_88101_2021.csv"), "-o", out)
    assert ended.status == 0
    check_shown(ended.out, out, "1 sites", "3 days", "3 observed")
    frame = pd.read_parquet(out)
    assert frame["site_id"].tolist() == ["01-073-0023"] * 3
    assert frame["pm25"].tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], ("data aqs: ", "FILES")),
        (["missing.zip"], ("missing.zip: ",)),
        (["--year", "2021"], ("data aqs: ", "--year", "--fetch")),
        (["--fetch", "raw"], ("data aqs: ", "--fetch", "--year")),
        (["words.csv"], ("words.csv: ", "State Code")),
        (["broken.zip"], ("broken.zip: ",)),
    ],
)
def test_aqs_refuses_and_keeps_the_old_panel(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], values: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("no,table\n")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "panel.parquet").write_text("mine")
    before = tree(tmp_path)
    check_refused(sweep("data", "aqs", *words, "-o", "panel.parquet"), *values)
    assert tree(tmp_path) == before
