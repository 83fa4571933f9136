"""A table gives the same panel in every form: delimiters, encodings, types, compressed files and folders."""

import bz2
import csv
import decimal
import gzip
import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pm25.panel import from_table, read
from pm25.tables.check import check
from pm25.tables.plain import plain_table
from pm25.tables.reading import read_table

CHANNELS = ["tmax", "wind"]
ROWS = 48
PACK = {"": lambda b: b, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def frame() -> pd.DataFrame:
    """Two sites of 24 days whose numbers have a decimal and are exact in every type of float."""
    site, day = np.divmod(np.arange(ROWS), 24)
    return pd.DataFrame(
        {
            "site_id": np.array(["07001", "06001"])[site],
            "date": np.datetime64("2021-02-20") + day,
            "lat": 35.5 + site,
            "lon": -100.5 + 2 * site,
            "pm25": np.where(day % 7 == 3, np.nan, 5.25 + site + 0.5 * day),
            "tmax": 20.0 - 0.25 * day,
            "wind": np.arange(ROWS) + 0.5,
        }
    )


def arrow() -> pa.Table:
    return pa.Table.from_pandas(frame(), preserve_index=False)


FINGERPRINT = from_table(arrow(), "t", CHANNELS).fingerprint


def to_text(
    df: pd.DataFrame,
    delimiter: str = ",",
    mark: str = ".",
    end: str = "\n",
    quote: int = 0,
    dates: str = "%Y-%m-%d",
) -> str:
    out = io.StringIO()
    df.to_csv(
        out, index=False, sep=delimiter, decimal=mark, lineterminator=end, quoting=quote, date_format=dates
    )
    return out.getvalue()


@st.composite
def text_files(draw: st.DrawFn, df: pd.DataFrame) -> tuple[str, bytes]:
    """Name and bytes of a text file with the content of a frame."""
    delimiter = draw(st.sampled_from([",", ";", "\t", "|"]))
    mark = draw(st.sampled_from(".,"))
    # A comma between numbers with decimal commas is read as text only if it is quoted.
    quote = csv.QUOTE_ALL if mark == delimiter else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    note = draw(st.sampled_from(["", "plain", "a\nb", "x,y;z\t|", "Doña Ana"]))
    df = df.assign(note=note)
    dates = draw(
        st.sampled_from(["%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%Y-%m-%d 00:00:00", "%Y-%m-%dT05:30:00Z"])
    )
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = to_text(df, delimiter, mark, end, quote, dates)
    text = (
        draw(st.sampled_from(["", f"# made by hand{end}# x{delimiter}y{end}", end, f"sep={delimiter}{end}"]))
        + text
    )
    text += draw(st.sampled_from(["", end + end, f"# end{end}"]))
    encoding = draw(
        st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
    )
    pack = draw(st.sampled_from([*PACK]))
    name = draw(st.sampled_from(["t.csv", "T.CSV", "t.tsv", "t.txt", "Panel.Csv", "t"])) + pack
    return name, PACK[pack](text.encode(encoding))


@given(text_files(frame()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_gives_the_same_panel_in_every_form(tmp_path: Path, file: tuple[str, bytes]) -> None:
    path = tmp_path / file[0]
    path.write_bytes(file[1])
    assert read(path, CHANNELS).fingerprint == FINGERPRINT
    assert read(path).channels[:2] == ("tmax", "wind")


@given(st.data(), st.integers(1, ROWS), st.sampled_from(["tmax", "pm25", "date", "lat"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_problem_names_its_row_in_every_form_of_text(
    tmp_path: Path, data: Any, row: int, column: str
) -> None:
    df = frame().astype({column: object})
    df.loc[row - 1, column] = "hot"
    name, content = data.draw(text_files(df))
    path = tmp_path / name
    path.write_bytes(content)
    found = check(read_table(path), name)
    (problem,) = [p for p in found.problems if p.column == column]
    assert problem.rows.tolist() == [row]
    assert "'hot'" in problem.what
    assert found.numbering


def test_a_header_may_be_longer_than_pythons_reader_allows_a_field(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = [f"a_channel_with_a_long_name_{number}" for number in range(5_000)]
    path.write_text(f"site_id,date,{','.join(names)}\ns1,2021-01-01{',1' * len(names)}\n")
    assert read_table(str(path)).num_columns == 2 + len(names)


def test_row_1_is_named_by_its_line(tmp_path: Path) -> None:
    lines = to_text(frame()).splitlines()
    path = tmp_path / "t.csv"
    forms = {2: lines, 4: ["# a", "", *lines], 5: ["# a", lines[0], "", "", *lines[1:]]}
    for line, form in forms.items():
        path.write_text("\n".join(form))
        assert check(read_table(path), "t").numbering.startswith(f"row 1 is line {line}"), form[:5]
        assert form[line - 1] == lines[1]
    path.write_text("\n".join(lines))
    assert check(read_table(path), "t").numbering == "row 1 is line 2"
    path.write_text(to_text(frame().assign(note="a\nb")))
    assert "line breaks" in check(read_table(path), "t").numbering


# --- Arrow types -------------------------------------------------------------------------------------


def ree(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pc.run_end_encode(column.combine_chunks())])


def periods(freq: str) -> Any:
    def convert(column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(pd.PeriodIndex(column.to_pandas().dt.to_period(freq)))])

    return convert


def texts(form: str) -> Any:
    return lambda column: pc.strftime(column, form)


def exact(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    values = [None if v is None or v != v else decimal.Decimal(str(v)) for v in column.to_pylist()]
    return pa.chunked_array([pa.array(values, kind)])


def cast(kind: pa.DataType) -> Any:
    return lambda column: pc.cast(column, kind)


NUMBERS: dict[str, Any] = {
    "double": lambda c: c,
    "float": cast(pa.float32()),
    "half": cast(pa.float16()),
    "decimal128": lambda c: exact(c, pa.decimal128(9, 4)),
    "decimal256": lambda c: exact(c, pa.decimal256(40, 12)),
    "dictionary": lambda c: c.dictionary_encode(),
    "run-end encoded": ree,
    "null for NaN": lambda c: pa.chunked_array([pa.array(c.to_pandas(), from_pandas=True)]),
    "text": cast(pa.string()),
    "padded text": lambda c: pc.binary_join_element_wise(" ", cast(pa.string())(c), " ", ""),
}
TEXTS: dict[str, Any] = {
    "string": lambda c: c,
    "large string": cast(pa.large_string()),
    "string view": cast(pa.string_view()),
    "binary": cast(pa.binary()),
    "large binary": cast(pa.large_binary()),
    "binary view": cast(pa.binary_view()),
    "fixed": lambda c: pc.cast(pc.cast(c, pa.binary()), pa.binary(5)),
    "dictionary": lambda c: c.dictionary_encode(),
    "run-end encoded": ree,
}
DATES: dict[str, Any] = {
    **{f"timestamp {unit}": cast(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
    "date32": cast(pa.date32()),
    "date64": cast(pa.date64()),
    "zone": lambda c: pc.assume_timezone(c, "America/Chicago"),
    "offset": lambda c: pc.assume_timezone(c, "+14:00"),
    "ISO": texts("%Y-%m-%d"),
    "ISO with time": texts("%Y-%m-%dT%H:%M:%SZ"),
    "ISO with offset": texts("%Y-%m-%d 23:30:00-08:00"),
    "slashes": texts("%Y/%m/%d"),
    "digits": texts("%Y%m%d"),
    "integer": lambda c: pc.cast(texts("%Y%m%d")(c), pa.int32()),
    "float": lambda c: pc.cast(texts("%Y%m%d")(c), pa.float64()),
    "dictionary": lambda c: texts("%Y-%m-%d")(c).dictionary_encode(),
    "binary": lambda c: pc.cast(texts("%Y-%m-%d")(c), pa.binary()),
    "Period of days": periods("D"),
    "Period of hours": periods("h"),
}
KINDS = {
    "site_id": TEXTS,
    "date": DATES,
    "lat": NUMBERS,
    "lon": NUMBERS,
    "pm25": NUMBERS,
    "tmax": NUMBERS,
    "wind": NUMBERS,
}


def with_kind(table: pa.Table, column: str, kind: str) -> pa.Table:
    values = KINDS[column][kind](table[column])
    return table.set_column(table.column_names.index(column), column, values)


@pytest.mark.parametrize(("column", "kind"), [(c, k) for c, kinds in KINDS.items() for k in kinds])
def test_a_column_is_read_in_every_type(column: str, kind: str, tmp_path: Path) -> None:
    table = with_kind(arrow(), column, kind)
    assert check(table, "t").problems == []
    assert from_table(table, "t", CHANNELS).fingerprint == FINGERPRINT
    try:
        pq.write_table(table, tmp_path / "t.parquet")
    except pa.ArrowNotImplementedError:
        return  # Parquet has no such type
    assert read(tmp_path / "t.parquet", CHANNELS).fingerprint == FINGERPRINT
    if "text" not in kind:
        assert read(tmp_path / "t.parquet").channels[:2] == ("tmax", "wind")


@given(st.fixed_dictionaries({column: st.sampled_from([*kinds]) for column, kinds in KINDS.items()}))
@settings(max_examples=60, deadline=None)
def test_types_can_be_mixed(kinds: dict[str, str]) -> None:
    table = arrow()
    for column, kind in kinds.items():
        table = with_kind(table, column, kind)
    assert from_table(table, "t", CHANNELS).fingerprint == FINGERPRINT


def test_a_period_is_read_before_pandas_registers_its_type() -> None:
    """The extension type of pandas is a plain integer to a process that has not imported pandas."""
    days = arrow()["date"].cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    metadata = {"ARROW:extension:name": "pandas.period", "ARROW:extension:metadata": '{"freq": "D"}'}
    table = arrow().set_column(1, pa.field("date", pa.int64(), metadata=metadata), days)
    assert from_table(plain_table(table), "t", CHANNELS).fingerprint == FINGERPRINT


def other_columns() -> dict[str, pa.Array]:
    """Columns of types that cannot be channels, each with a value in every row."""
    n = ROWS
    return {
        "list": pa.array([[1.5, 2]] * n),
        "fixed list": pa.array([[1, 2]] * n, pa.list_(pa.int8(), 2)),
        "struct": pa.array([{"a": 1}] * n),
        "map": pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        "binary": pa.array([b"\x01\x01\xff\x00"] * n),
        "fixed binary": pa.array([b"\xff\xfe"] * n, pa.binary(2)),
        "duration": pa.array([5] * n, pa.duration("s")),
        "time": pa.array([5] * n, pa.time32("s")),
        "interval": pa.array([(1, 2, 3)] * n, pa.month_day_nano_interval()),
        "timestamp": pa.array([2**62] * n, pa.timestamp("us")),  # a year that Python does not have
        "date": pa.array([2**30] * n, pa.date32()),
        "text": pa.array(["urban"] * n),
        "uuid": pa.array([bytes(range(16))] * n, pa.uuid()),
        "period": pa.array(pd.period_range("2021-01-01", periods=n, freq="M")),
        "interval of pandas": pa.array(pd.interval_range(0, n)),
        "dense union": pa.UnionArray.from_dense(
            pa.array([0] * n, pa.int8()), pa.array(range(n), pa.int32()), [pa.array(range(n))]
        ),
        "Latin-1": pa.Array.from_buffers(
            pa.string(),
            n,
            [None, pa.py_buffer(np.arange(0, 2 * n + 1, 2, np.int32)), pa.py_buffer(b"\xf1a" * n)],
        ),
    }


@pytest.mark.parametrize("kind", other_columns())
@pytest.mark.parametrize("empty", [0, 3], ids=["full", "with nulls"])
def test_a_column_that_cannot_be_a_channel_is_a_notice(kind: str, empty: int) -> None:
    column = other_columns()[kind]
    if empty and kind != "dense union":  # a union has no nulls of its own
        column = pa.concat_arrays([column[: ROWS // 4], pa.nulls(ROWS - ROWS // 4, column.type)])
    table = plain_table(arrow().append_column("odd", pa.chunked_array([column])))
    found = check(table, "t")
    assert found.problems == []
    assert [(n.column, len(n.rows)) for n in found.notices] == [("odd", 0)]
    assert from_table(table, "t").channels[:2] == ("tmax", "wind")
    (problem,) = check(table, "t", ["wind", "odd"]).problems
    assert problem.column == "odd"
    assert problem.rows.tolist() == [*range(1, (ROWS // 4 if empty and kind != "dense union" else ROWS) + 1)]


NO_TEXT = (
    "list",
    "fixed list",
    "struct",
    "map",
    "interval",
    "interval of pandas",
    "dense union",
    "binary",
    "Latin-1",
)


@pytest.mark.parametrize("kind", other_columns())
@pytest.mark.parametrize("place", ["site_id", "date", "lat", "lon", "pm25", "group"])
def test_a_required_column_of_another_type_is_a_problem_of_one_line(kind: str, place: str) -> None:
    table = arrow().append_column("group", pa.array(["g"] * ROWS))
    column = pa.chunked_array([other_columns()[kind]])
    table = plain_table(table.set_column(table.column_names.index(place), place, column))
    problems = check(table, "t", groups=["group"]).problems
    assert all("\n" not in str(p) and len(str(p)) < 300 for p in problems)
    if place in ("lat", "lon", "pm25") or kind in NO_TEXT:
        assert [p.column for p in problems] == [place]
    elif place == "date" and kind not in ("timestamp", "date"):
        assert [p.column for p in problems] == ["date"]


# --- Times of day ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dates", "cut", "values"),
    [
        (pa.array([0] * ROWS, pa.timestamp("s", "UTC")), [], []),
        (pa.array([21_600] * ROWS, pa.timestamp("s", "UTC")), [*range(1, ROWS + 1)], ["zone UTC"]),
        (pa.array([21_600] * ROWS, pa.timestamp("s", "America/Chicago")), [], []),
        (pa.array(["2021-02-20T00:00"] * ROWS), [], []),
        (
            pa.array(["2021-02-20", "2021-02-20 23:00:00-08:00"] * 24),
            [*range(2, ROWS + 1, 2)],
            ["23:00", "zone -08:00"],
        ),
    ],
)
def test_times_of_day_are_noticed_with_their_zone(dates: pa.Array, cut: list[int], values: list[str]) -> None:
    found = check(arrow().set_column(1, "date", dates), "t")
    notices = [n for n in found.notices if n.column == "date"]
    assert [n.rows.tolist() for n in notices] == ([cut] if cut else [])
    for value in values:
        assert value in notices[0].what


def test_a_day_is_that_of_its_own_zone() -> None:
    """Six in the evening in Chicago is the next day in UTC."""
    late = pc.add(arrow()["date"].cast(pa.timestamp("s")), pa.scalar(18 * 3600, pa.duration("s")))
    table = arrow().set_column(1, "date", pc.assume_timezone(late, "America/Chicago"))
    assert from_table(table, "t", CHANNELS).fingerprint == FINGERPRINT


# --- Folders -----------------------------------------------------------------------------------------


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    df = frame()
    folder = tmp_path / "Panel.parquet"
    (folder / "sub").mkdir(parents=True)
    df[:10].to_parquet(folder / "a.parquet", index=False)
    df[10:30].astype({"wind": "float32"}).to_parquet(folder / "b.PARQUET", index=False)
    df[30:].astype({"site_id": "category"})[[*reversed(df.columns)]].to_parquet(
        folder / "sub" / "c.pq", index=False
    )
    for name in ("_SUCCESS", ".a.parquet.crc", "README.md"):
        (folder / name).write_text("x")
    for path in (folder, f"{folder}/"):
        assert read(path, CHANNELS).fingerprint == FINGERPRINT
        assert read(path).name == "Panel.parquet"
    df.loc[30:30, "lat"] = 99.0
    df[30:].to_parquet(folder / "sub" / "c.pq", index=False)
    found = check(read_table(folder), "t")
    assert [p.rows.tolist() for p in found.problems if p.column == "lat"] == [[31]]
    assert "3 files" in found.numbering


@pytest.mark.parametrize("column", ["site_id", "date", "lat", "wind"])
def test_folders_named_by_a_column_give_it(column: str, tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "t", partition_cols=[column])
    assert read(tmp_path / "t", CHANNELS).fingerprint == FINGERPRINT
    assert {*read(tmp_path / "t").channels[:2]} == {"tmax", "wind"}
    assert read(tmp_path / "t").site_id.tolist() == ["06001", "07001"]


def test_the_place_of_a_file_gives_it_no_column(tmp_path: Path) -> None:
    path = tmp_path / "fold=3" / "t.parquet"
    path.parent.mkdir()
    frame().to_parquet(path, index=False)
    assert read(path).channels[:2] == ("tmax", "wind")
    assert "fold" not in read_table(path).column_names


def test_a_column_that_some_files_lack_is_noticed(tmp_path: Path) -> None:
    frame()[:24].to_parquet(tmp_path / "a.parquet")
    frame()[24:].drop(columns="wind").to_parquet(tmp_path / "b.parquet")
    (notice,) = [n for n in check(read_table(tmp_path), "t").notices if n.column == "wind"]
    assert "b.parquet" in notice.what
    assert np.isnan(read(tmp_path).features[0, :, 1]).all()  # site 06001 is in the second file


def test_a_folder_in_a_bucket_is_read(objects: Any) -> None:
    bucket = objects.bucket()
    for part, df in frame().groupby("site_id"):
        content = io.BytesIO()
        df.drop(columns="site_id").to_parquet(content, index=False)
        objects.put(f"{bucket}/panel/site_id={part}/a.parquet", content.getvalue())
    for address in (f"{bucket}/panel", f"{bucket}/panel/"):
        assert read(address, CHANNELS).fingerprint == FINGERPRINT
    objects.put(f"{bucket}/T.CSV.GZ", gzip.compress(to_text(frame()).encode()))
    assert read(f"{bucket}/T.CSV.GZ", CHANNELS).fingerprint == FINGERPRINT
