"""A file that is no table, or a table under a wrong name, is refused with what it is and what to do."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pm25.panel import read
from pm25.tables.check import check
from pm25.tables.column_map import read_mapped
from pm25.tables.notes import notes_of
from pm25.tables.reading import read_table
from tests.errors import refuses
from tests.pm25.tables.test_forms import frame, to_text

COLUMNS = "site_id, date, lat, lon, pm25"


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as out:
        for name in names:
            out.writestr(name, "x")
    return content.getvalue()


def parquet() -> bytes:
    content = io.BytesIO()
    frame().to_parquet(content, index=False)
    return content.getvalue()


CSV = to_text(frame()).encode()
LINES = to_text(frame()).splitlines()
DONA = to_text(frame().assign(county="Doña"))


def instead(line: int, *lines: str) -> bytes:
    """The table with other lines in place of one, counted from 0 for the header."""
    return "\n".join([*LINES[:line], *lines, *LINES[line + 1 :]]).encode()


def row_names(quote: str, delimiter: str) -> bytes:
    """The table as R's write.table writes it: a name before each row, and none for them in the header."""
    named = (f"{quote}{i}{quote},{line}" for i, line in enumerate(LINES[1:], 1))
    return "\n".join([LINES[0], *named]).replace(",", delimiter).encode()


WRONG: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "parquet as csv": ("t.csv", parquet(), ("parquet", ".csv", "t.parquet")),
    "parquet as tsv": ("t.TSV", parquet(), ("parquet", "t.parquet")),
    "csv as parquet": ("t.parquet", CSV, ("text", "t.csv")),
    "gzip as csv": ("t.csv", gzip.compress(CSV), ("gzip", "t.csv.gz")),
    "gzip as parquet": ("t.parquet", gzip.compress(parquet()), ("gzip", "t.parquet.gz")),
    "csv as gzip": ("t.csv.gz", CSV, ("not compressed", "t.csv")),
    "zip": ("t.zip", archive("a.csv", "__MACOSX/a.csv"), ("zip", "a.csv")),
    "zip as csv": ("t.csv", archive("a.csv", "b.csv", "c.csv", "d.csv"), ("zip", "a.csv, b.csv, c.csv, ...")),
    "damaged zip": ("t.csv", archive("a.csv")[:30], ("zip", "damaged")),
    "Excel": ("t.xlsx", archive("[Content_Types].xml", "xl/workbook.xml"), ("Excel", ".csv")),
    "Excel as csv": ("t.csv", archive("xl/workbook.xml"), ("Excel", ".csv")),
    "old Excel": ("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), ("Excel",)),
    "HTML": ("t.csv", b"\n<!DOCTYPE html>\n<title>404 Not\nFound</title>", ("HTML", "404 Not Found")),
    "HTML as parquet": ("t.parquet", b"<html>", ("HTML",)),
    "HTML as gzip": ("t.csv.gz", b"<html>", ("HTML",)),
    "XML": ("t.csv", b"<?xml version='1.0'?><Error/>", ("XML",)),
    "JSON": ("t.csv", b'\xef\xbb\xbf[{"site_id": "1"}]', ("JSON",)),
    "YAML": ("t.yaml", b"study: quick\ndata: {}\n", ("YAML", "data.table", COLUMNS)),
    "Feather": ("t.feather", b"ARROW1\0\0", ("Feather", ".parquet")),
    "netCDF": ("t.nc", b"\x89HDF\r\n\x1a\n", ("netCDF",)),
    "row names": ("t.tsv", row_names("", "\t"), ("row.names = FALSE",)),
    "quoted row names": ("t.csv", row_names('"', ","), ("row.names = FALSE",)),
    "Git LFS": ("t.parquet", b"version https://git-lfs.github.com/spec/v1\n", ("Git LFS", "git lfs pull")),
    "empty": ("t.csv", b"", ("empty", COLUMNS)),
    "empty parquet": ("t.parquet", b"", ("empty", COLUMNS)),
    "empty gzip": ("t.csv.gz", gzip.compress(b""), ("empty", COLUMNS)),
    "blank": ("t.csv", b" \n\r\n", ("blanks", COLUMNS)),
    "comments": ("t.csv", b"# a\n\n# b", ("comments", COLUMNS)),
    "cut gzip": ("t.csv.gz", gzip.compress(CSV)[:-20], ("gzip", "cut short")),
    "bytes": ("t.csv", bytes(range(256)) * 4, ("neither text nor parquet", COLUMNS)),
    "bytes as parquet": ("t.parquet", bytes(range(256)) * 4, ("PAR1",)),
    "NUL": ("t.csv", CSV.replace(b"20.0", b"2\0.0"), ("NUL", "line 2")),
    "Shift-JIS": ("t.csv", CSV + "02-001,東京\n".encode("shift-jis"), ("line 50", "UTF-8")),
    "Macintosh": ("t.csv", DONA.encode("mac-roman"), ("0x96", "line 2", "UTF-8")),
    "mixed": ("t.csv", DONA.encode() + b"# \xf1\n", ("line 50", "UTF-8")),
    "cut UTF-16": ("t.csv", CSV.decode().encode("utf-16")[:-1], ("UTF-16",)),
    "short row": ("t.csv", instead(7, "# a", "", "07001,2021"), ("row 7", "2 values", "7 columns")),
    "long row": ("t.csv", instead(3, LINES[3] + ",5"), ("row 3", "8 values", "7 columns")),
    "decimal commas": ("t.csv", CSV.replace(b".", b","), ("row 1", "decimal points")),
    "open quotation": ("t.csv", instead(3, '"' + LINES[3]), ("row 3", "quotation mark")),
    "blanks between": ("t.txt", CSV.replace(b",", b"  "), ("site_id date lat", "commas")),
}  # fmt: skip
"""Files by name: the file's own name, its content, and values that the error shows."""


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_cannot_be_read_is_named_as_what_it_is(what: str, tmp_path: Path) -> None:
    name, content, values = WRONG[what]
    path = tmp_path / name
    path.write_bytes(content)
    with refuses(str(path), "", *values) as refused:
        read_table(path)
    assert refused.value.fix
    with refuses(str(path), "", *values):
        read(path, ["wind"])
    assert path.read_bytes() == content


def test_folders_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    with refuses(str(tmp_path), "", "folder", COLUMNS):
        read_table(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "T.CSV.gz").write_bytes(gzip.compress(CSV))
    with refuses(str(tmp_path), "", "1 text file", f"{tmp_path}/sub/T.CSV.gz"):
        read_table(tmp_path)
    (tmp_path / "a.parquet").write_bytes(parquet())
    assert read(tmp_path).observed
    (tmp_path / "b.parquet").write_bytes(parquet()[:200])
    with refuses(f"{tmp_path}/b.parquet", "", "parquet"):
        read_table(tmp_path)


def test_files_of_a_folder_whose_types_differ_are_named(tmp_path: Path) -> None:
    frame()[:24].to_parquet(tmp_path / "a.parquet")
    frame()[24:].assign(wind="calm").to_parquet(tmp_path / "b.parquet")
    with refuses(str(tmp_path), "wind", "double in a.parquet", "string in b.parquet"):
        read_table(tmp_path)


def test_latin1_and_decimal_commas_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(to_text(frame().assign(county="Doña Ana"), ";", ",").encode("latin-1"))
    found = check(read_table(path), "t", groups=["county"])
    assert found.problems == []
    latin, comma = (n.what for n in found.notices if not n.column)
    assert "'Doña'" in latin
    assert "'35,5'" in comma
    assert set(read(path, groups=["county"]).groups["county"]) == {"Doña Ana"}


@pytest.mark.parametrize("decimal", [True, False], ids=["decimals beside it", "whole numbers beside it"])
def test_commas_between_thousands_are_no_decimal_commas(decimal: bool, tmp_path: Path) -> None:
    df = frame() if decimal else frame().assign(lat=35, lon=-100, pm25=5, tmax=1, wind=2, site_id="1")
    path = tmp_path / "t.csv"
    path.write_text(to_text(df.assign(people="1,234"), ";"))
    found = check(read_table(path), "t")
    assert "people" in [n.column for n in found.notices]
    assert not any("comma" in n.what for n in found.notices)


def test_site_ids_keep_their_zeros_in_every_file(tmp_path: Path) -> None:
    for name in ("t.csv", "t.tsv", "t.csv.gz", "T.CSV"):
        content = to_text(frame(), "\t" if "tsv" in name else ",").encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert read(tmp_path / name).site_id.tolist() == ["06001", "07001"], name
    pd.DataFrame(frame()).to_parquet(tmp_path / "h", partition_cols=["site_id"])
    assert read(tmp_path / "h").site_id.tolist() == ["06001", "07001"]


def test_a_mapped_table_keeps_the_notes_and_the_days_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    other = frame().rename(columns={"date": "Día", "pm25": "PM2.5"})
    other["Día"] = [f"{day:%Y-%m-%d}T20:00:00-08:00" for day in pd.to_datetime(other["Día"])]
    path.write_bytes(other.to_csv(index=False).encode("latin-1"))
    columns = {"date": "Día", "pm25": "PM2.5"}
    table = read_mapped(path, columns=columns)
    found = check(table, "t", columns=columns)
    assert found.problems == []
    assert found.numbering == "row 1 is line 2"
    assert any("'Día'" in notice.what for notice in found.notices)
    assert found.counts["first_day"] == frame()["date"].min().strftime("%Y-%m-%d")


def test_notes_of_a_folder_follow_the_renamed_columns(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    frame().rename(columns={"pm25": "PM2.5"}).to_parquet(tmp_path / "h" / "a.parquet")
    later = frame().assign(site_id="08001").drop(columns=["pm25"])
    later.to_parquet(tmp_path / "h" / "b.parquet")
    table = read_mapped(tmp_path / "h", columns={"pm25": "PM2.5"})
    ((column, what),) = notes_of(table).notices
    assert column == "pm25"
    assert "1 of 2 files" in what


def test_text_for_a_missing_value_beside_decimal_commas(tmp_path: Path) -> None:
    df = frame()
    df.to_csv(tmp_path / "point.csv", index=False)
    text = df.astype({"tmax": str})
    text["tmax"] = text["tmax"].str.replace(".", ",")
    text.loc[3, "tmax"] = "-"
    text.to_csv(tmp_path / "comma.csv", index=False, sep=";", decimal=",")
    point, comma = (read(tmp_path / f"{name}.csv") for name in ("point", "comma"))
    assert comma.channels == point.channels
    tmax = comma.channels.index("tmax")
    missing = np.isnan(comma.features[..., tmax])
    assert missing.sum() == 1
    assert (comma.features[..., tmax][~missing] == point.features[..., tmax][~missing]).all()


def test_left_out_columns_and_doubts_have_the_names_of_the_file(tmp_path: Path) -> None:
    df = frame().sort_values(["site_id", "date"]).rename(columns={"pm25": "PM2.5"}).assign(row=range(48))
    df.to_csv(tmp_path / "t.csv", index=False)
    made = read(tmp_path / "t.csv", columns={"pm25": "PM2.5", "number": "row"})
    assert [note.split(":")[0] for note in made.left_out] == ["number (row)"]
