"""A table becomes arrays, and a bad table is refused with its column, rows and fix."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.panel import Panel, from_table, read
from pm25.tables import schema
from pm25.tables.check import check
from pm25.tables.reading import read_table
from tests.errors import refuses

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "conus_daily_2021.parquet"
CALENDAR = ("day_cos", "day_sin", "month_cos", "month_sin")


def frame(sites: int = 3, days: int = 24) -> pd.DataFrame:
    """One row for each site and day; row `site * days + day` counts from 0."""
    site, day = np.divmod(np.arange(sites * days), days)
    return pd.DataFrame(
        {
            "site_id": np.array([f"0{7 - s}-001" for s in range(sites)])[site],
            "date": (np.datetime64("2021-02-20") + day).astype("datetime64[s]"),
            "lat": 35.0 + site,
            "lon": -100.0 + 2 * site,
            "pm25": 5.0 + site + 0.5 * day,
            "tmax": 20.0 - 0.25 * day,
            "wind": np.arange(sites * days) + 0.5,
        }
    )


def table(df: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(df, preserve_index=False)


def make(df: pd.DataFrame, channels: list[str] | None = None) -> Panel:
    found = check(table(df), "toy", channels)
    assert found.problems == []
    return from_table(table(df), "toy", channels)


def write(df: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        df.to_csv(path, index=False)
    else:
        df.to_parquet(path, index=False)
    return path


# --- The arrays --------------------------------------------------------------------------------------


def test_values_are_at_their_site_day_and_channel():
    made = make(frame())
    assert made.site_id.tolist() == ["05-001", "06-001", "07-001"]  # ascending: the table's last comes first
    assert made.lat.tolist() == [37, 36, 35]
    assert made.lon.tolist() == [-96, -98, -100]
    assert made.channels == ("tmax", "wind", *CALENDAR)
    assert made.features.shape == (3, 24, 6)
    assert made.features.dtype == made.target.dtype == np.float32
    assert made.dates[0] == np.datetime64("2021-02-20")
    assert made.dates[-1] == np.datetime64("2021-03-15")
    assert made.target[2, 3] == 5 + 0 + 1.5
    assert made.target[0, 3] == 5 + 2 + 1.5
    assert made.features[0, 3].tolist()[:2] == [20 - 0.75, 2 * 24 + 3.5]
    assert made.observed == 72


def test_site_days_that_the_table_lacks_are_missing():
    df = frame().drop(index=[0, 24 + 5])
    df.loc[10, "pm25"] = np.nan
    df.loc[11, "tmax"] = np.nan
    made = make(df)
    missing = np.zeros((3, 24), bool)
    missing[2, 0] = missing[1, 5] = True
    assert np.array_equal(np.isnan(made.features[:, :, 1]), missing)
    missing[2, 10] = True
    assert np.array_equal(np.isnan(made.target), missing)
    assert made.observed == 72 - 3
    assert np.isnan(made.features[2, 11, 0])
    assert not np.isnan(made.features[2, 11, 1])


def test_days_that_no_site_has_are_missing_and_still_count():
    df = frame()
    made = make(df[~df.date.between("2021-02-25", "2021-02-27")])
    assert len(made.dates) == 24
    assert np.diff(made.dates).astype(int).tolist() == [1] * 23
    assert np.isnan(made.target[:, 5:8]).all()
    assert np.isfinite(np.delete(made.target, range(5, 8), axis=1)).all()
    assert np.isfinite(made.features[:, 5:8, 2:]).all()  # the calendar knows every day


def test_calendar_by_hand():
    df = frame()
    df["date"] = (np.datetime64("2020-12-20") + np.arange(len(df)) % 24).astype("datetime64[s]")
    made = make(df, ["month_sin", "day_cos", "day_sin", "month_cos"])
    assert made.channels == ("month_sin", "day_cos", "day_sin", "month_cos")

    def turn(x: float) -> tuple[float, float]:
        return math.cos(2 * math.pi * x), math.sin(2 * math.pi * x)

    # Day 0 is 1 January, and day 12 of this table; 2020 is a leap year, so 20 December is its day 354.
    for index, day, month in [(0, 354, 11), (12, 0, 0), (23, 11, 0)]:
        (dc, ds), (mc, ms) = turn(day / 365.25), turn(month / 12)
        np.testing.assert_allclose(made.features[0, index], [ms, dc, ds, mc], atol=1e-6)


def test_a_calendar_column_of_the_table_is_kept():
    made = make(frame().assign(day_cos=7.0))
    assert made.channels == ("tmax", "wind", "day_cos", "day_sin", "month_cos", "month_sin")
    assert (made.features[:, :, 2] == 7).all()


def test_default_channels_leave_out_text_identifiers_and_the_target():
    some = np.arange(72) % 5 == 0
    df = frame().assign(county_fips=6037, param=88101, land_use="urban", urban=some, count=2**60 * some)
    assert make(df).channels == ("tmax", "wind", "urban", "count", *CALENDAR)
    (notice,) = check(table(df), "toy").notices
    assert notice.column == "land_use"


def test_chosen_channels_are_in_the_order_chosen(tmp_path):
    chosen = ["wind", "day_sin", "tmax"]
    for name in ("t.parquet", "t.csv"):
        made = read(write(frame().assign(text="x"), tmp_path / name), chosen)
        assert made.channels == tuple(chosen)
        assert made.features[0, 0, 0] == 48.5
        assert made.features[0, 0, 2] == 20


def test_only_the_needed_columns_are_read(tmp_path):
    path = write(frame(), tmp_path / "t.parquet")
    assert set(read_table(path, ["wind", "day_cos"]).column_names) == {*schema.REQUIRED, "wind"}


# --- Samples -----------------------------------------------------------------------------------------


def test_a_sample_needs_a_complete_window():
    made = make(frame())
    site, day = made.samples(21)
    assert list(zip(site.tolist(), day.tolist(), strict=True)) == [
        (s, d) for s in range(3) for d in range(20, 24)
    ]
    assert len(made.samples(1)[0]) == 72
    assert len(made.samples(24)[0]) == 3
    assert len(made.samples(25)[0]) == 0
    assert site.dtype == day.dtype == np.int32


@given(st.lists(st.booleans(), min_size=72, max_size=72), st.integers(1, 24))
@settings(max_examples=30, deadline=None)
def test_samples_are_the_observed_days_from_the_end_of_the_first_window(observed, window):
    observed = np.array([*observed[:-1], True])
    made = make(frame().assign(pm25=np.where(observed, 1.0, np.nan)))
    pairs = list(zip(*(a.tolist() for a in made.samples(window)), strict=True))
    rank = {"05-001": 2, "06-001": 1, "07-001": 0}  # position of the site in the table
    expected = [
        (s, d)
        for s, name in enumerate(made.site_id)
        for d in range(24)
        if observed[rank[name] * 24 + d] and d >= window - 1
    ]
    assert pairs == expected


# --- The fingerprint ---------------------------------------------------------------------------------


@given(st.permutations(range(72)))
@settings(max_examples=10, deadline=None)
def test_the_fingerprint_does_not_depend_on_the_order_of_rows(order):
    assert make(frame().iloc[order]).fingerprint == make(frame()).fingerprint


def test_the_fingerprint_does_not_depend_on_the_form_of_the_table(tmp_path):
    df = frame()
    df.loc[3, ["pm25", "tmax"]] = np.nan
    df.loc[4, "tmax"] = 0.0
    expected = make(df).fingerprint
    assert read(write(df, tmp_path / "a.parquet")).fingerprint == expected
    assert read(write(df, tmp_path / "b.csv")).fingerprint == expected  # site 07-001 keeps its leading zero
    forms = {
        "categories": df.assign(site_id=df.site_id.astype("category")),
        "date text": df.assign(date=df.date.dt.strftime("%Y-%m-%d")),
        "hours": df.assign(date=df.date + pd.Timedelta(hours=5)),
        "number text": df.assign(lat=df.lat.astype(str)),
        "float32": df.assign(tmax=df.tmax.astype(np.float32)),
        "negative zero": df.assign(tmax=np.where(df.tmax == 0, -0.0, df.tmax)),
        "columns": df[["wind", "site_id"]].assign(**df.drop(columns=["wind", "site_id"])),
    }
    for what, form in forms.items():
        channels = ["tmax", "wind", *CALENDAR]
        assert make(form, channels).fingerprint == expected, what
    chunks = pa.concat_tables([table(df).slice(40), table(df).slice(0, 40)])
    assert from_table(chunks, "another name").fingerprint == expected


def test_numeric_site_ids_keep_their_zeros_in_a_csv(tmp_path):
    df = frame().assign(site_id=lambda d: d.site_id.str.replace("-", ""))
    assert read(write(df, tmp_path / "t.csv")).site_id.tolist() == ["05001", "06001", "07001"]


@given(st.integers(0, 71), st.sampled_from(["pm25", "tmax", "wind"]), st.sampled_from([0.001, np.nan]))
@settings(max_examples=30, deadline=None)
def test_any_other_value_changes_the_fingerprint(row, column, change):
    df = frame()
    df.loc[row, column] += change
    assert make(df).fingerprint != make(frame()).fingerprint


def test_any_other_content_changes_the_fingerprint():
    df = frame()
    others = {
        "itself": make(df),
        "lat": make(df.assign(lat=df.lat + 1e-9)),
        "lon": make(df.assign(lon=df.lon + 1e-9)),
        "site": make(df.assign(site_id="x" + df.site_id)),
        "date": make(df.assign(date=df.date + pd.Timedelta(days=365)), ["tmax", "wind"]),
        "fewer channels": make(df, ["tmax", "wind"]),
        "other order": make(df, ["wind", "tmax"]),
        "other name": make(df.rename(columns={"wind": "gust"})),
        "a site less": make(df.iloc[24:]),
        "a day more": make(frame(days=25)),
    }
    assert len({p.fingerprint for p in others.values()}) == len(others)


# --- Problems of a table -----------------------------------------------------------------------------


def at(df: pd.DataFrame, row: int, column: str, value: object) -> pd.DataFrame:
    """The frame with another value in one place; `row` counts from 1."""
    df = df.astype({column: object})
    df.loc[row - 1, column] = value
    return df


def missing_but(df: pd.DataFrame, column: str, row: int, value: str) -> pd.DataFrame:
    return at(df.assign(**{column: None}), row, column, value)


ALL = range(1, 73)
BAD = {
    "no lat": (frame().drop(columns="lat"), "lat", (), ("site_id, date, lon, pm25",)),
    "duplicates": (
        pd.concat([frame(), frame().iloc[[9, 3]]]),
        "site_id, date",
        (73, 74),
        (2, "07-001 2021-03-01"),
    ),
    "swapped": (frame().rename(columns={"lat": "lon", "lon": "lat"}), "lat, lon", ALL, (-100, 35, "-90..90")),
    "lat range": (
        frame().assign(lat=lambda d: np.where(d.lat == 37, 92.5, d.lat)),
        "lat",
        range(49, 73),
        (92.5, "-90..90"),
    ),
    "lon range": (frame().assign(lon=lambda d: d.lon + 360), "lon", ALL, (260, "-180..180")),
    "moves": (at(frame(), 30, "lat", 36.5), "lat, lon", (30,), ("06-001",)),
    "no target": (frame().assign(pm25=np.nan), "pm25", (), ()),
    "target of nulls": (frame().assign(pm25=None), "pm25", (), ()),
    "text": (
        missing_but(frame(), "tmax", 7, "high").assign(tmax=lambda d: d.tmax.where(d.index % 2 == 0, "1.5")),
        "tmax",
        (7,),
        ("'high'",),
    ),
    "text in target": (frame().assign(pm25=["bad"] * 72), "pm25", ALL, ("'bad'",)),
    "padded lat": (
        frame().assign(lat=lambda d: d.lat.astype(str).where(d.index != 2, "1_0")),
        "lat",
        (3,),
        ("'1_0'",),
    ),
    "infinite": (at(frame(), 12, "wind", np.inf).astype({"wind": float}), "wind", (12,), ("infinite",)),
    "infinite target": (
        at(frame(), 12, "pm25", -np.inf).astype({"pm25": float}),
        "pm25",
        (12,),
        ("infinite",),
    ),
    "short": (frame(days=20), "date", (), (20, 21)),
    "long": (at(frame(), 1, "date", pd.Timestamp("2201-01-01")), "date", (), (36_525, "2201-01-01")),
    "empty": (frame().iloc[:0], "site_id", (), (21,)),
    "null lat": (at(frame(), 5, "lat", np.nan).astype({"lat": float}), "lat", (5,), ()),
    "no lat at all": (frame().assign(lat=None), "lat", ALL, ()),
    "null site": (at(frame(), 6, "site_id", None), "site_id", (6,), ()),
    "null date": (at(frame(), 4, "date", None), "date", (4,), ()),
    "no date at all": (frame().assign(date=None), "date", ALL, ()),
    "date text": (
        frame().assign(date=lambda d: d.date.dt.strftime("%Y-%m-%d").where(d.index != 8, "2021-02-30")),
        "date",
        (9,),
        ("'2021-02-30'", "YYYY-MM-DD"),
    ),
    "American date": (
        frame().assign(date=lambda d: d.date.dt.strftime("%m/%d/%Y")),
        "date",
        ALL,
        ("'02/20/2021'", "YYYY-MM-DD"),
    ),
    "Excel's number of a day": (frame().assign(date=44_247), "date", ALL, (44247, "YYYY-MM-DD")),
}
"""Bad tables by name: the frame, the column and rows that are reported, and values that the error shows."""


@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_table_is_refused(what, form, tmp_path):
    df, column, rows, values = BAD[what]
    if what == "empty" and form == "parquet":
        df = df.astype({"site_id": object})
    path = write(df, tmp_path / f"bad.{form}")
    (problem,) = check(read_table(path), path.name).problems
    assert problem.column == column
    assert problem.rows.tolist() == [*rows]
    with refuses(str(path), column, *values) as refused:
        read(path)
    assert refused.value.problem == problem.problem
    assert refused.value.fix == problem.fix
    assert problem.fix
    shown = ", ".join(map(str, [*rows][:5]))
    assert f"(row {shown}" in problem.problem if rows else "(row" not in problem.problem
    assert (f"{len(rows)} rows" in problem.problem) == (len(rows) > 5)


def test_all_problems_are_found_and_the_first_is_reported(tmp_path):
    df = at(at(frame(), 3, "tmax", "hot"), 5, "site_id", None)
    df["tmax"] = [None if v is None else str(v) for v in df.tmax]
    path = write(df.assign(lat=np.nan), tmp_path / "bad.parquet")
    found = check(read_table(path), "bad")
    assert {p.column for p in found.problems} == {"tmax", "lat", "site_id"}
    with refuses(str(path), "tmax", "(row 3)", f"`sweep data check {path}`", 2):
        read(path)


def test_an_unknown_channel_is_refused_and_the_known_are_named(tmp_path):
    for name in ("t.parquet", "t.csv"):
        path = write(frame(), tmp_path / name)
        with refuses(
            str(path), "wnid", "data.channels", "tmax, wind, day_cos, day_sin, month_cos, month_sin"
        ):
            read(path, ["wind", "wnid"])


@pytest.mark.parametrize("column", ["pm25", "lat", "lon", "site_id", "date"])
def test_target_and_place_cannot_be_channels(column, tmp_path):
    path = write(frame(), tmp_path / "t.parquet")
    with refuses(str(path), column, "data.channels"):
        read(path, ["wind", column])


def test_a_text_channel_is_refused_only_where_it_is_asked_for():
    df = frame().assign(land=["urban", "rural"] * 36)
    assert check(table(df), "t").problems == []
    assert check(table(df), "t", ["wind"]).problems == []
    (problem,) = check(table(df), "t", ["land"]).problems
    assert problem.column == "land"
    assert problem.rows.tolist() == [*range(1, 73)]
    assert "'urban'" in problem.what


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    df = frame()
    pd.concat([df, df.lat], axis=1).to_csv(path, index=False)
    with refuses(str(path), "lat"):
        read(path)


def test_a_missing_table_is_refused(tmp_path):
    for path in (tmp_path / "none.parquet", tmp_path):
        with refuses(str(path), "", "site_id, date, lat, lon, pm25"):
            read(path)


@pytest.mark.parametrize("channels", [None, ["wind"]])
@pytest.mark.parametrize("damage", ["cut short", "overwritten", "empty", "no table"])
def test_a_corrupt_file_is_refused(damage, channels, tmp_path):
    path = write(frame(), tmp_path / "t.parquet")
    content = path.read_bytes()
    bad = {
        "cut short": content[: len(content) // 2],
        "overwritten": content[:4] + bytes(len(content) // 3) + content[4 + len(content) // 3 :],
        "empty": b"",
        "no table": b"<html>\n",
    }
    path.write_bytes(bad[damage])
    with refuses(str(path), "", "parquet"):
        read(path, channels)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3\n", b"\x89PNG\r\n\x1a\n\x00\xff"])
def test_a_file_that_is_not_a_csv_is_refused(content, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with refuses(str(path)):
        read(path)


def test_notices_do_not_prevent_the_use_of_a_table():
    df = frame()
    df.loc[[3, 30], "pm25"] = -0.5, -2.0
    df.loc[df.lat == 37, "pm25"] = np.nan
    df.loc[df.lat == 35, "lat"] = 21.3
    found = check(table(df), "toy")
    assert found.problems == []
    negative, silent, outside = found.notices
    assert (negative.column, negative.rows.tolist()) == ("pm25", [4, 31])
    assert negative.what.startswith("2 negative values, the lowest -2")
    assert silent.column == "pm25"
    assert silent.what.startswith("1 sites have no observation")
    assert outside.column == "lat, lon"
    assert outside.what.startswith("1 sites outside CONUS")
    assert not any(notice.fix for notice in found.notices)
    assert from_table(table(df), "toy").target[2, 3] == -0.5


def test_counts():
    df = frame().assign(pm25=[4.0, 8.0, -3.0, np.nan] * 18)
    assert check(table(df), "toy").counts == {
        "table": "toy",
        "rows": 72,
        "sites": 3,
        "days": 24,
        "first_day": "2021-02-20",
        "last_day": "2021-03-15",
        "observed": 54,
        "pm25_mean": 3.0,
        "pm25_max": 8.0,
        "negative": 18,
    }


# --- The real table ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason=f"no shared table {REAL.name}")
def test_the_real_table():
    real = pq.read_table(REAL)
    found = check(real, REAL.name)
    assert found.problems == []
    counts = {k: found.counts[k] for k in ("sites", "days", "observed", "rows")}
    assert counts == {"sites": 1414, "days": 365, "observed": 366_298, "rows": 1414 * 365}
    (negative,) = [n for n in found.notices if "negative" in n.what]
    pm25 = real["pm25"].to_numpy()
    assert np.array_equal(negative.rows, np.flatnonzero(pm25 < 0) + 1)
    assert found.counts["negative"] == len(negative.rows) > 0
    made = from_table(real, REAL.name)
    assert made.target.shape == (1414, 365)
    assert made.observed == 366_298
    assert made.channels[-4:] == CALENDAR
    # The table is sorted by site and day, so that its own order checks the arrays.
    assert np.array_equal(made.target.ravel(), pm25.astype(np.float32), equal_nan=True)
    assert made.samples(21)[0].size == int(np.isfinite(pm25.reshape(1414, 365)[:, 20:]).sum())
