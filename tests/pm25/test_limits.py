"""Sizes of files: a small file that becomes a large one is refused before it fills the memory."""

import bz2
import gzip
import io
import json
import lzma
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25 import errors, files, panel, text, unpacking
from pm25.limits import MOST_COLUMNS, MOST_NESTED, MOST_ROW_BYTES, MOST_SHOWN
from pm25.sources import agency_files, aqs, synthetic, uscrn
from pm25.tables import schema
from pm25.tables.reading import read_table
from tests.errors import refuses


@given(st.integers(1, 3000), st.sampled_from(("[]", '{"a":}')))
def test_json_is_parsed_up_to_a_nesting_and_never_ends_the_process(levels: int, kind: str) -> None:
    content = kind[:-1] * levels + "1" + kind[-1] * levels
    if levels <= MOST_NESTED:
        assert text.parse_json(content) == json.loads(content)
    else:
        with pytest.raises(ValueError, match="nested"):
            text.parse_json(content)


@given(st.text(), st.text(), st.text(), st.text())
def test_an_error_is_one_line_of_bounded_length(where: str, field: str, problem: str, fix: str) -> None:
    parts = [part * 1000 for part in (where, field, problem, fix)]
    line = errors.one_line(*parts)
    assert len(line.splitlines()) <= 1
    assert len(line) <= 4 * (MOST_SHOWN + 20)


def test_a_long_error_keeps_both_ends() -> None:
    line = errors.one_line("a" + "x" * 10_000 + "b", "", "wrong", "")
    assert line.startswith("axx")
    assert line.endswith("xxb: wrong")


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test reaches with a few kilobytes."""
    monkeypatch.setattr(unpacking, "RATIO_FROM", 100_000)
    monkeypatch.setattr(agency_files, "MOST_UNPACKED_BYTES", 300_000)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("suffix", PACK)
def test_a_compressed_table_that_grows_beyond_the_ratio_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table.csv.{suffix}"
    path.write_bytes(PACK[suffix](b"0" * 1_000_000))
    with refuses(path.name, "", "200"):
        read_table(path)
    rows = synthetic.synthesize(sites=8, days=21).to_csv(index=False).encode()
    path.write_bytes(PACK[suffix](rows))
    assert read_table(path).num_rows == 8 * 21


def members(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.mark.usefixtures("small_limits")
def test_a_zip_that_unpacks_beyond_a_limit_is_refused(tmp_path: Path) -> None:
    noise = os.urandom(200_000)
    for name, content, value in (
        ("ratio", {"a.csv": b"0" * 250_000}, "200 times"),
        ("one", {"a.csv": noise + noise}, "300,000"),
        ("together", {"a.csv": noise, "b.csv": noise}, "300,000"),
    ):
        with refuses(f"{name}.zip", "", value):
            [*agency_files.contents(members(tmp_path / f"{name}.zip", content), r".*\.csv", "table", "")]
    kept = members(tmp_path / "kept.zip", {"a.csv": noise, "b.txt": noise + noise})
    assert [len(content) for _, content in agency_files.contents(kept, r".*\.csv", "table", "")]


def test_a_zip_with_too_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agency_files, "MOST_MEMBERS", 3)
    path = members(tmp_path / "many.zip", {f"{i}.csv": b"a" for i in range(4)})
    with refuses("many.zip", "", "4 members"):
        [*agency_files.contents(path, r".*\.csv", "table", "")]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_too_many_columns_is_refused_before_it_is_read(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"wide.{suffix}"
    names = [f"c{i}" for i in range(MOST_COLUMNS + 1)]
    if suffix == "csv":
        path.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    else:
        pd.DataFrame([range(len(names))], columns=names).to_parquet(path)
    monkeypatch.delattr(pyarrow.csv, "read_csv")
    monkeypatch.delattr(pyarrow.parquet.ParquetFile, "read")
    with refuses(path.name, "", "10,001 columns"):
        read_table(path)


@pytest.mark.parametrize("quoted", [True, False])
def test_a_row_beyond_the_limit_is_refused_in_words_of_its_own(tmp_path: Path, quoted: bool) -> None:
    path = tmp_path / "long.csv"
    field = b"x" * (3 * MOST_ROW_BYTES)
    path.write_bytes(b"site_id,date\n" + (b'"' + field + b'"' if quoted else field) + b",2020-01-01\n")
    with refuses("long.csv", "", "a row has more than 1,048,576 bytes"):
        read_table(path)
    epa = tmp_path / "epa.csv"
    names = ",".join(aqs.COLUMNS).encode()
    epa.write_bytes(names + b"\n" + field + b"," * (len(aqs.COLUMNS) - 1) + b"\n")
    with refuses("epa.csv", "", "a row has more than 1,048,576 bytes"):
        aqs.build([epa], [])
    noaa = tmp_path / "CRN.txt"
    noaa.write_bytes(field + b" 1" * (len(uscrn.COLUMNS) - 1) + b"\n")
    with refuses("CRN.txt", "", "a row has more than 1,048,576 bytes"):
        uscrn.load([noaa])


def test_a_panel_of_too_many_values_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.Table.from_pandas(synthetic.synthesize(sites=8, days=21), preserve_index=False)
    channels = len(panel.from_table(table, "toy").channels)
    from pm25.tables import check

    monkeypatch.setattr(check, "MOST_VALUES", 8 * 21 * channels)
    panel.from_table(table, "toy")
    monkeypatch.setattr(check, "MOST_VALUES", 8 * 21 * channels - 1)
    with refuses("toy", "site_id, date", "8 sites x 21 days"):
        panel.from_table(table, "toy")


def test_more_values_than_are_read_are_refused() -> None:
    schema.refuse_large("t", 1_000_000, 2_000)
    with refuses("t", "", "1,000,001 rows"):
        schema.refuse_large("t", 1_000_001, 2_000)


def test_a_synthetic_panel_beyond_the_limit_is_refused() -> None:
    with refuses("synthetic", "sites, days", "100,000 sites x 36,525 days"):
        synthetic.synthesize(sites=100_000, days=36_525)


def test_devices_pipes_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            files.read_bytes(path)
    (tmp_path / "file").write_bytes(b"1234")
    assert files.read_bytes(tmp_path / "file", 4) == b"1234"
    with pytest.raises(OSError, match="4 bytes"):
        files.read_bytes(tmp_path / "file", 3)


def test_unpacking_stops_at_the_limit() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with pytest.raises(unpacking.TooLarge):
        unpacking.read(Endless, 1 << 40, 10 << 20)


@pytest.mark.parametrize(("most", "ratio_from"), [(60 << 20, 1 << 40), (1 << 40, 4 << 20)])
def test_a_refused_file_needs_little_memory(
    monkeypatch: pytest.MonkeyPatch, most: int, ratio_from: int
) -> None:
    """64 KiB of gzip unpack to 64 MiB, of which at most 4 MiB are kept."""
    monkeypatch.setattr(unpacking, "RATIO_FROM", ratio_from)
    monkeypatch.setattr(unpacking, "KEPT_BYTES", 4 << 20)
    packed = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(unpacking.TooLarge):
            unpacking.read(lambda: gzip.GzipFile(fileobj=io.BytesIO(packed)), len(packed), most)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(1, 50))
def test_content_that_is_read_twice_is_the_same(content: bytes, kept: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "KEPT_BYTES", kept)
        patch.setattr(unpacking, "CHUNK", chunk)
        assert unpacking.read(lambda: io.BytesIO(content), len(content), 300) == content


def test_a_password_is_replaced_before_the_middle_of_a_part_is_cut() -> None:
    for blanks in range(0, MOST_SHOWN, 7):
        address = "x" * blanks + " http://user:" + "SECRET" * 60 + "@host/path " + "y" * MOST_SHOWN
        assert "SECRET" not in errors.one_line(address, "", address, address)
