"""Random changes of a good table: `sweep data check` accepts it or says what is wrong."""

import gzip
import io
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import fuzzing
from tests.sweeps.cli.commands import Sweep

EXAMPLES = 300
"""Examples of each form of a table, unless FUZZ_EXAMPLES sets another number."""
DAYS = 22


def good() -> pd.DataFrame:
    """Three sites of 22 days."""
    site, day = np.divmod(np.arange(3 * DAYS), DAYS)
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "site_id": np.array(["06-001", "07-001", "08-001"])[site],
            "date": np.datetime64("2021-02-20") + day,
            "lat": 35.25 + site,
            "lon": -100.5 + 2 * site,
            "pm25": rng.gamma(4, 2, len(site)).round(2),
            "tmax": 20.0 - 0.25 * day + site,
            "wind": rng.random(len(site)).round(3),
            "county": np.array(["Adair", "Doña Ana", "Ada"])[site],
        }
    )


def change_names(rng: random.Random, names: list[str]) -> list[str]:
    """Replace, repeat or exchange names of columns."""
    names, at, other = [*names], rng.randrange(len(names)), rng.randrange(len(names))
    change = rng.randrange(4)
    if change == 0:
        names[at] = rng.choice(fuzzing.BAD_VALUES)
    elif change == 1:
        names[at] = names[other]
    elif change == 2:
        names[at], names[other] = names[other], names[at]
    else:
        names[at] = rng.choice((names[at].upper(), f" {names[at]}", f"\ufeff{names[at]}", f'"{names[at]}'))
    return names


def text_file(rng: random.Random) -> bytes:
    """A delimited file with changes of its columns, cells, lines or bytes."""
    frame = good()
    if rng.random() < 0.3:
        frame.columns = change_names(rng, [*frame.columns])
    if rng.random() < 0.2:
        frame = frame.iloc[:, rng.sample(range(frame.shape[1]), rng.randint(1, frame.shape[1]))]
    out, separator = io.StringIO(), rng.choice(",,,;\t|")
    frame.to_csv(out, index=rng.random() < 0.1, sep=separator, decimal=rng.choice("...,"))
    text = out.getvalue()
    for _ in range(rng.randint(0, 3)):
        if rng.random() < 0.7 and text.strip():
            lines = text.splitlines()
            at = rng.randrange(len(lines))
            fields = lines[at].split(separator)
            fields[rng.randrange(len(fields))] = rng.choice(fuzzing.BAD_VALUES)
            text = "\n".join([*lines[:at], separator.join(fields), *lines[at + 1 :]]) + "\n"
        else:
            text = fuzzing.change_lines(rng, text)
    data = fuzzing.encoded(rng, text)
    if rng.random() < 0.3:
        data = fuzzing.change_bytes(rng, data)
    if rng.random() < 0.2:
        data = gzip.compress(data)
        data = fuzzing.change_bytes(rng, data) if rng.random() < 0.3 else data
    return data


def other_column(rng: random.Random, rows: int) -> pa.Array:
    """A column of a random type, with nulls in some of its rows."""
    kind, values = rng.choice(
        (
            (pa.list_(pa.float64()), [[1.5], []]),
            (pa.struct([("a", pa.int8())]), [{"a": 1}]),
            (pa.map_(pa.string(), pa.int8()), [[("a", 1)]]),
            (pa.binary(), [b"\xff\x00", b"06"]),
            (pa.decimal128(38, 10), [1, 2]),
            (pa.decimal256(76, 0), [10**70, 0]),
            (pa.float16(), [1.5, float("nan"), float("inf")]),
            (pa.float64(), [1e300, -1e300, 5e-324, -0.0, float("-inf")]),
            (pa.int64(), [2**63 - 1, -(2**63), 20210220, 0]),
            (pa.uint64(), [2**64 - 1, 1]),
            (pa.bool_(), [True, False]),
            (pa.null(), [None]),
            (pa.date32(), [2**31 - 1, 18_678]),
            (pa.date64(), [86_400_000]),
            (pa.timestamp("us", "America/Chicago"), [2**63 - 1, -(2**63), 0, 1_613_800_000_000_000]),
            (pa.timestamp("ns", "Mars/Olympus"), [0]),
            (pa.time64("us"), [5]),
            (pa.duration("ns"), [5]),
            (pa.string(), [*fuzzing.BAD_VALUES]),
            (pa.string_view(), ["2021-02-20", "06"]),
            (pa.dictionary(pa.int8(), pa.string()), ["06-001", "2021-02-20"]),
        )
    )
    chosen = [rng.choice([*values, None] if rng.random() < 0.2 else values) for _ in range(rows)]
    if pa.types.is_temporal(kind):
        width = pa.int32() if kind == pa.date32() else pa.int64()
        return pa.array(chosen, width).view(kind)
    return pa.array(chosen, kind)


def parquet_file(rng: random.Random, rows: slice = slice(None)) -> bytes:
    """A Parquet file of some rows, with changes of its columns, types, rows or bytes."""
    table = pa.Table.from_pandas(good()[rows], preserve_index=rng.random() < 0.1)
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(table.num_columns)
        change = rng.randrange(6)
        if change <= 2:
            table = table.set_column(at, table.column_names[at], other_column(rng, table.num_rows))
        elif change == 3:
            table = table.append_column(rng.choice(("odd", "", "tmax2")), other_column(rng, table.num_rows))
        elif change == 4:
            table = table.rename_columns(change_names(rng, table.column_names))
        else:
            start = rng.randrange(table.num_rows + 1)
            table = table.slice(start, rng.choice((0, 1, DAYS, table.num_rows)))
    out = io.BytesIO()
    pq.write_table(table, out, compression=rng.choice(("none", "snappy", "zstd")))
    return fuzzing.change_bytes(rng, out.getvalue()) if rng.random() < 0.4 else out.getvalue()


NAMES = ("t.csv", "t.csv", "t.csv", "T.TSV", "t.csv.gz", "t.parquet", "t.parquet", "t", "t.yaml", "t.xlsx")


@pytest.mark.parametrize("form", ["text", "parquet", "folder"])
def test_no_change_of_a_table_breaks_the_check(form: str, sweep: Sweep, tmp_path: Path) -> None:
    statuses = {0: 0, 2: 0}
    for seed in range(fuzzing.count(EXAMPLES if form != "folder" else EXAMPLES // 5)):
        rng = random.Random(f"{form} {seed}")
        path = tmp_path / f"{form}{seed}"
        path.mkdir()
        if form == "folder":
            for part in range(2):
                rows = slice(part * DAYS, (1 + 2 * part) * DAYS)
                (path / f"{part}.parquet").write_bytes(parquet_file(rng, rows))
        else:
            data = text_file(rng) if form == "text" else parquet_file(rng)
            usual = (
                ("t.parquet",)
                if form == "parquet"
                else ("t.csv.gz",)
                if data[:2] == b"\x1f\x8b"
                else ("t.csv",)
            )
            path = path / rng.choice(usual if rng.random() < 0.9 else NAMES)
            path.write_bytes(data)
        try:
            ended = sweep("data", "check", path)
        except BaseException as error:
            error.add_note(f"the table {path}")
            raise
        assert ended.status in statuses, path
        statuses[ended.status] += 1
        lines = ended.err.splitlines()
        assert bool(lines) == (ended.status == 2), path
        assert all(line.startswith(("sweep: ", "problem: ")) for line in lines), (path, lines)
    assert min(statuses.values()) > 0, "some changes do no harm, and others do"
