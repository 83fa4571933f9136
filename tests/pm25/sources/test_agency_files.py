"""Agency files as they are found: labels of events, packed and repeated tables, codes of missing values."""

import csv
import gzip
import io
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.sources import aqs, uscrn
from tests.errors import refuses
from tests.pm25.sources.agency import HEADER, row, station, write

# Labels of Event Type: those of AirData, of the AQS API, and of the AQS code table EDT.
WITHOUT = ["None", "", "No Events", "NO EVENTS"]
INCLUDED = ["Included", "Events Included", "EVENTS INCLUDED"]
EXCLUDED = [
    "Excluded",
    "Events Excluded",
    "EVENTS EXCLUDED",
    "Concurred Events Excluded",
    "EVENTS WITH CONCURRENCE EXCLUDED",
    "Concurred Excluded",
]


@st.composite
def spelled(draw: st.DrawFn, labels: list[str]) -> str:
    """A label in any case, with blanks around it and more than one between its words."""
    label = draw(st.sampled_from(labels))
    case: Callable[[str], str] = draw(st.sampled_from([str, str.upper, str.lower, str.title, str.swapcase]))
    label = case(label).replace(" ", draw(st.sampled_from([" ", "  ", "_", "-"])))
    return draw(st.sampled_from(["", " "])) + label + draw(st.sampled_from(["", " ", "  "]))


@settings(deadline=None, max_examples=30)
@given(included=spelled(INCLUDED), excluded=spelled(EXCLUDED), without=spelled(WITHOUT), first=st.booleans())
def test_excluded_rows_are_left_out_however_the_label_is_spelled(
    tmp_path_factory: pytest.TempPathFactory, included: str, excluded: str, without: str, first: bool
) -> None:
    day = [row(300.0, date="2021-01-02", event=included), row(10.0, date="2021-01-02", event=excluded)]
    lines = [row(10.0, event=without), *(day if first else day[::-1])]
    table = aqs.build([write(tmp_path_factory.mktemp("events") / "a.csv", *lines)])
    assert table["pm25"].tolist() == [10.0, 300.0]


@settings(deadline=None, max_examples=30)
@given(label=st.text(st.characters(codec="ascii", categories=["L", "N", "Zs"]), min_size=1, max_size=30))
def test_every_other_label_of_events_is_refused_with_its_line(
    tmp_path_factory: pytest.TempPathFactory, label: str
) -> None:
    known = {re.sub(r"\W+", " ", one).strip().lower() for one in [*WITHOUT, *INCLUDED, *EXCLUDED]}
    if " ".join(label.lower().split()) in {*known, *aqs.EVENTS}:
        return
    path = write(tmp_path_factory.mktemp("events") / "a.csv", row(10.0), row(300.0, event=label))
    with refuses("a.csv: line 3", "Event Type", repr(label), "Included", "Excluded"):
        aqs.build([path])


# Packed and concatenated files


def rows(days: range, year: int = 2021) -> list[str]:
    return [row(float(day), date=f"{year}-01-{day:02d}") for day in days]


def text_of(*lines: str, header: str = HEADER) -> str:
    return "\n".join([header, *lines]) + "\n"


def zipped(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def reordered(text: str, seed: int = 0) -> str:
    """The same table with its columns in another order."""
    table = list(csv.reader(io.StringIO(text)))
    order = list(range(len(table[0])))
    random.Random(seed).shuffle(order)
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
        [line[i] for i in order] for line in table
    )
    return buffer.getvalue()


ONE, TWO = text_of(*rows(range(1, 4))), text_of(*rows(range(4, 7)))
ALL = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

FORMS: dict[str, Callable[[Path], Path]] = {
    "two CSVs in a zip": lambda t: zipped(t / "a.zip", {"b.csv": TWO, "a.csv": ONE}),
    "folders in a zip, and what macOS adds": lambda t: zipped(
        t / "a.zip",
        {"x/": "", "x/a.csv": ONE, "x/B.CSV": TWO, "__MACOSX/x/._a.csv": b"\0\5\x16\7", "x/._a.csv": b"\0"},
    ),
    "a readme in a zip": lambda t: zipped(t / "a.zip", {"readme.txt": "hello", "a.csv": ONE, "b.csv": TWO}),
    "gzipped members": lambda t: zipped(t / "a.zip", {"a.csv.gz": gzip.compress((ONE + TWO).encode())}),
    "a repeated header": lambda t: text(t / "a.csv", ONE + TWO),
    "a repeated header with other columns first": lambda t: text(t / "a.csv", ONE + reordered(TWO)),
    "a repeated header with a mark": lambda t: text(t / "a.csv", "\ufeff" + ONE + "\ufeff" + TWO),
    "a repeated header below empty lines": lambda t: text(t / "a.csv", "\n\n" + ONE + "\n\n\n" + TWO + "\n"),
    "gzip": lambda t: content(t / "a.csv.gz", gzip.compress((ONE + TWO).encode())),
    "gzip without its suffix": lambda t: content(t / "a.csv", gzip.compress((ONE + TWO).encode())),
    "a zip without its suffix": lambda t: zipped(t / "a.csv", {"a.csv": ONE + TWO}),
    "UTF-16": lambda t: content(t / "a.csv", (ONE + TWO).encode("utf-16")),
    "a capital suffix": lambda t: text(t / "A.CSV", ONE + TWO),
    "lines of Windows": lambda t: text(t / "a.csv", (ONE + TWO).replace("\n", "\r\n")),
    "lines of old Macs": lambda t: text(t / "a.csv", (ONE + TWO).replace("\n", "\r")),
    "names as R writes them": lambda t: text(t / "a.csv", named(ONE + TWO, ".")),
    "names as the AQS API has them": lambda t: text(
        t / "a.csv", named(ONE + TWO, "_").lower().replace("site_num", "site_number")
    ),
}


def text(path: Path, written: str) -> Path:
    return content(path, written.encode())


def content(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def named(written: str, separator: str) -> str:
    """The file with another separator between the words of its column names."""
    for name in aqs.COLUMNS:
        written = written.replace(f'"{name}"', f'"{name.replace(" ", separator)}"')
    return written


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_in_every_form(form: str, tmp_path: Path) -> None:
    table = aqs.build([FORMS[form](tmp_path)])
    assert table["pm25"].tolist() == ALL
    assert table["site_id"].unique().tolist() == ["01-073-0023"]


def test_several_years_in_one_zip(tmp_path: Path) -> None:
    members: dict[str, str | bytes] = {
        f"daily_88101_{year}.csv": text_of(row(year - 2000, date=f"{year}-01-01")) for year in (2020, 2021)
    }
    table = aqs.build([zipped(tmp_path / "years.zip", members)])
    assert len(table) == 367
    assert table["pm25"].dropna().tolist() == [20.0, 21.0]


@settings(deadline=None, max_examples=40)
@given(
    tables=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    empty=st.integers(0, 3),
    column=st.sampled_from(aqs.COLUMNS),
    packed=st.booleans(),
    data=st.data(),
)
def test_a_bad_value_is_named_with_its_line_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory,
    tables: list[int],
    empty: int,
    column: str,
    packed: bool,
    data: st.DataObject,
) -> None:
    lines = []
    for count in tables:
        lines += [*[""] * empty, HEADER, *rows(range(1, count + 1))]
    bad = data.draw(st.sampled_from([i for i, line in enumerate(lines) if line and line != HEADER]))
    fields = next(csv.reader([lines[bad]]))
    at = next(csv.reader([HEADER])).index(column)
    if column in ("POC", "Sample Duration"):
        return  # every text is allowed
    fields[at] = "sotto voce"
    lines[bad] = ",".join(f'"{field}"' for field in fields)
    folder = tmp_path_factory.mktemp("lines")
    if packed:
        path = zipped(folder / "a.zip", {"good.csv": ONE, "bad.csv": "\n".join(lines) + "\n"})
        where = f"a.zip:bad.csv: line {bad + 1}"
    else:
        path = text(folder / "a.csv", "\n".join(lines) + "\n")
        where = f"a.csv: line {bad + 1}"
    with refuses(where, column, "sotto voce"):
        aqs.build([path])


BAD: dict[str, tuple[Callable[[Path], Path], str, str, tuple[object, ...]]] = {
    "a web page": (
        lambda t: text(t / "a.csv", "<!DOCTYPE html>\n<html>503</html>"),
        "a.csv",
        "",
        ("web page",),
    ),
    "a web page named zip": (lambda t: text(t / "a.zip", "\n <HTML>busy"), "a.zip", "", ("web page",)),
    "a web page in a zip": (
        lambda t: zipped(t / "a.zip", {"a.csv": ONE, "b.csv": "<html>"}),
        "a.zip:b.csv",
        "",
        ("web page",),
    ),
    "a folder": (lambda t: t, "", "", ("folder",)),
    "a cut gzip": (
        lambda t: content(t / "a.csv.gz", gzip.compress(ONE.encode())[:-9]),
        "a.csv.gz",
        "",
        ("gzip",),
    ),
    "an encrypted zip": (lambda t: encrypted(t / "a.zip"), "a.zip", "", ("'a.csv'", "password")),
    "zips in a zip": (
        lambda t: zipped(t / "a.zip", {"2020.zip": b"PK", "2021.zip": b"PK"}),
        "a.zip",
        "",
        (".csv", "2020.zip, 2021.zip", "unpack"),
    ),
    "semicolons": (lambda t: text(t / "a.csv", ONE.replace(",", ";")), "a.csv", "", ("';'",)),
    "two columns of a name": (
        lambda t: text(t / "a.csv", ONE.replace('"Datum"', '"POC"')),
        "a.csv",
        "POC",
        (),
    ),
    "a missing code": (
        lambda t: text(t / "a.csv", text_of(row(5), row(-999))),
        "a.csv: line 3",
        "Arithmetic Mean",
        (-999,),
    ),
    "a latitude": (
        lambda t: text(t / "a.csv", text_of(row(5, lat=400))),
        "a.csv: line 2",
        "Latitude",
        (400,),
    ),
    "no county": (
        lambda t: text(t / "a.csv", text_of(row(5, site="01--0001"))),
        "a.csv: line 2",
        "County Code",
        (),
    ),
    "a day to come": (
        lambda t: text(t / "a.csv", text_of(row(5), row(5, date="2921-01-01"))),
        "a.csv: line 3",
        "Date Local",
        ("2921-01-01",),
    ),
    "only hours": (
        lambda t: text(t / "a.csv", text_of(row(5, duration="1 HOUR"), row(5, duration="3 HOURS"))),
        "a.csv",
        "",
        ("'1 HOUR'", "'3 HOURS'", "24 HOUR"),
    ),
}


def encrypted(path: Path) -> Path:
    """A zip whose member is marked as encrypted."""
    zipped(path, {"a.csv": ONE})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(signature) + offset] |= 1
    return content(path, bytes(data))


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_named(case: str, tmp_path: Path) -> None:
    make, where, field, values = BAD[case]
    with refuses(where, field, *values):
        aqs.build([make(tmp_path)])


def test_durations_instruments_and_parameters_that_are_spelled_in_other_ways(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        row(4.0, duration="24 Hour "),
        row(8.0, duration="24-hr blk avg", poc=2),
        row(99.0, duration="1 hour"),
        row(6.0, date="2021-01-02", duration="24 HOURS", param="088502", unit=aqs.UNITS["88502"]),
        row(7.0, date="2021-01-03", param="88101.0", unit="Micrograms/Cubic  Meter (LC)", site="1-73.0-23"),
    )
    table = aqs.build([path])
    assert table["pm25"].tolist() == [6.0, 6.0, 7.0]
    assert table["param"].tolist() == ["88101", "88502", "88101"]
    assert table["site_id"].unique().tolist() == ["01-073-0023"]


# USCRN

MISSING = ["-99", "-99.0", "-99.000", "-999", "-999.0", "-9999", "-9999.", "-9999.0", "-9999.00", "-99999"]


@settings(deadline=None, max_examples=30)
@given(
    code=st.sampled_from(MISSING),
    field=st.sampled_from([*uscrn.VARIABLES.values()]),
    day=st.integers(0, 2),
    blank=st.sampled_from([" ", "   ", "\t"]),
    heading=st.booleans(),
)
def test_a_missing_value_is_empty_however_its_code_is_spelled(
    code: str, field: str, day: int, blank: str, heading: bool
) -> None:
    values = dict.fromkeys(uscrn.VARIABLES.values(), 7.5)
    lines = station(1, 40, days=3, **values).splitlines()
    fields = lines[day].split()
    fields[uscrn.COLUMNS.index(field)] = code
    lines[day] = blank.join(fields)
    if heading:
        lines.insert(0, " ".join(uscrn.COLUMNS))
    frame = uscrn.parse(("\n".join(lines) + "\n").encode(), "CRN.txt")
    assert np.flatnonzero(frame[field].isna()).tolist() == [day]
    others = [name for name in values if name != field]
    assert (frame[others] == 7.5).all(axis=None)
    assert frame[field].dropna().tolist() == [7.5, 7.5]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("T_DAILY_MAX", "-998.0"),
        ("T_DAILY_MIN", "9999.0"),
        ("RH_DAILY_AVG", "-5.0"),
        ("P_DAILY_CALC", "99999"),
    ],
)
def test_an_impossible_value_is_named_with_its_line(field: str, value: str) -> None:
    lines = station(1, 40, days=3).splitlines()
    fields = lines[1].split()
    fields[uscrn.COLUMNS.index(field)] = value
    lines[1] = " ".join(fields)
    with refuses("CRN.txt: line 3", field, f"{float(value):g}"):
        uscrn.parse(("\n" + "\n".join(lines)).encode(), "CRN.txt")


@pytest.mark.parametrize("keep", [1, 5, 27])
def test_a_line_that_is_cut_is_named(keep: int) -> None:
    lines = station(1, 40, days=3).splitlines()
    lines[2] = " ".join(lines[2].split()[:keep])
    with refuses("CRN.txt: line 3", "", "28", keep):
        uscrn.parse("\n".join(lines).encode(), "CRN.txt")


def test_station_files_in_a_folder_a_zip_and_gzipped(tmp_path: Path) -> None:
    pm = write(tmp_path / "pm.csv", row(5, date="2021-01-01"))
    folder = tmp_path / "crn"
    folder.mkdir()
    files = {f"CRND0103-2021-AL_{n}.txt": station(n, 40 + n / 10, T_DAILY_MAX=10.0 * n) for n in (1, 2, 3)}
    (one, first), (two, second), (three, third) = files.items()
    (folder / one.upper()).write_text(first)
    (folder / f"{two}.gz").write_bytes(gzip.compress(second.encode()))
    (folder / f"._{one}").write_bytes(b"\0\5")
    archive = zipped(tmp_path / "crn.zip", {f"x/{three}": third, f"__MACOSX/x/._{three}": b"\0\5"})
    assert sorted(uscrn.load([folder, archive])["T_DAILY_MAX"]) == [10.0, 20.0, 30.0]
    assert aqs.build([pm], [folder, archive], stations=1)["crn_tmax_c"].tolist() == [10.0]
    page = text(tmp_path / "CRND0103-2021-AL_4.txt", "<!doctype html><title>Service Unavailable</title>")
    with refuses(page.name, "", "web page"):
        uscrn.load([page])
