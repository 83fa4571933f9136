"""Random mutations of agency files: a table with possible values, or an error of one line."""

import gzip
import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pm25.errors import InputError
from pm25.sources import aqs, uscrn
from tests import fuzzing
from tests.pm25.sources.agency import HEADER, row, station

EXAMPLES = 100
"""Examples of each kind of file."""

SEED = 20260101


def airdata(rng: random.Random) -> str:
    """A good file with several instruments, durations, parameters and labels of events."""
    lines = [HEADER]
    for day in range(1, rng.randint(2, 5)):
        date = f"2021-01-{day:02d}"
        lines.append(row(rng.randint(0, 40), date=date, param=rng.choice(aqs.PM25)))
        lines.append(
            row(9.5, date=date, site="06-001-0007", poc=2, duration="24-HR BLK AVG", event="Included")
        )
        lines.append(
            row(1.5, date=date, site="06-001-0007", poc=2, duration="24-HR BLK AVG", event="Excluded")
        )
        lines.append(row(50, date=date, param="62101", duration="1 HOUR"))
    return "\n".join(lines) + "\n"


def change_field(rng: random.Random, text: str, separator: str) -> str:
    """Replace one field of one line by a bad value."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    fields = lines[at].split(separator)
    fields[rng.randrange(len(fields))] = rng.choice(fuzzing.BAD_VALUES)
    return "\n".join([*lines[:at], separator.join(fields), *lines[at + 1 :]]) + "\n"


def changed(rng: random.Random, text: str, separator: str) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.random()
        if change < 0.5 and text.strip():
            text = change_field(rng, text, separator)
        elif change < 0.75:
            text = fuzzing.change_lines(rng, text)
        elif change < 0.8:
            text += text
        elif change < 0.83:
            text = text.replace(separator, rng.choice((";", "\t", "|", ", ", "")))
    data = fuzzing.encoded(rng, text)
    return fuzzing.change_bytes(rng, data) if rng.random() < 0.3 else data


def packed(rng: random.Random, name: str, data: bytes) -> tuple[str, bytes]:
    """Name and content of a file that holds `data`: plain, gzipped, or in a zip with other members."""
    form = rng.choice(("plain", "plain", "gzip", "zip", "wrong suffix"))
    if form == "plain":
        return name, data
    if form == "wrong suffix":
        return rng.choice((name + ".zip", name + ".gz", name.upper(), "x")), data
    if form == "gzip":
        name, data = name + ".gz", gzip.compress(data, mtime=0)
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
            if rng.random() < 0.5:
                archive.writestr(f"__MACOSX/._{name}", b"\x00\x05\x16\x07")
            if rng.random() < 0.3:
                archive.writestr(f"more/{name}", data)
        name, data = name + ".zip", buffer.getvalue()
    return name, fuzzing.change_bytes(rng, data) if rng.random() < 0.3 else data


def check(files: list[Path], weather: list[Path]) -> bool:
    """Build a table; True if it was built, with possible values, and False for an error of one line."""
    try:
        table = aqs.build(files, weather)
    except InputError as error:
        found = error
    else:
        assert_possible(table)
        return True
    assert "\n" not in str(found)
    assert found.problem
    assert str(files[0].parent) in str(found)
    return False


def assert_possible(table: pd.DataFrame) -> None:
    assert table["lat"].between(-90, 90).all()
    assert table["lon"].between(-180, 180).all()
    assert not np.isinf(table.select_dtypes("number").to_numpy(float)).any()
    assert not (table["pm25"] <= aqs.MISSING_CODE).any()
    assert not table.duplicated(["site_id", "date"]).any()
    assert table["site_id"].str.fullmatch(r"\d\d-\d{3}-\d{4}").all()


@pytest.mark.parametrize("kind", ["AirData", "USCRN"])
def test_a_changed_file_makes_a_table_or_an_error_of_one_line(kind: str, tmp_path: Path) -> None:
    made = 0
    for example in range(fuzzing.count(EXAMPLES)):
        rng = random.Random(f"{SEED} {kind} {example}")
        if kind == "AirData":
            name, data = packed(rng, "daily.csv", changed(rng, airdata(rng), ","))
            path = tmp_path / name
            files, weather = [path], []
        else:
            good = tmp_path / "good.csv"
            good.write_text("\n".join([HEADER, row(5), row(6, date="2021-01-02")]) + "\n")
            text = station(1, 40, days=3, T_DAILY_MAX=10.0)
            name, data = packed(rng, "CRND0103-2021-AL_X_1_N.txt", changed(rng, text, " "))
            path = tmp_path / name
            files, weather = [good], [path]
        path.write_bytes(data)
        try:
            made += check(files, weather)
        except Exception as error:
            error.add_note(f"example {example} of {kind}, {name}: {data[:3000]!r}")
            raise
        path.unlink()
    assert 0 < made < fuzzing.count(EXAMPLES), "both outcomes occur"


def test_unchanged_files_make_a_table(tmp_path: Path) -> None:
    files = [tmp_path / "daily.csv"]
    files[0].write_text(airdata(random.Random(SEED)))
    weather = [tmp_path / "CRN.txt"]
    weather[0].write_text(station(1, 40, days=3, T_DAILY_MAX=10.0))
    assert check(files, weather)
    table = aqs.build(files, weather)
    assert set(table["pm25"][table["site_id"] == "06-001-0007"]) == {9.5}  # never the mean with 1.5
    assert pd.notna(table["crn_tmax_c"]).all()
    assert set(uscrn.VARIABLES) <= {*table.columns}
