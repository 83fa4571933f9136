"""Columns of numbers that are no covariate are no default channels, and the check says why."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.panel import from_table, read
from pm25.sources import synthetic
from pm25.tables.check import check
from tests.errors import refuses
from tests.pm25.tables.frames import frame, table

CALENDAR = ["day_cos", "day_sin", "month_cos", "month_sin"]
SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def channels(df: pd.DataFrame) -> list[str]:
    """Default channels without those of the date; no problem may be found."""
    found = check(table(df), "toy")
    assert found.problems == []
    names = [channel.name for channel in found.channels]
    assert names[-4:] == CALENDAR
    return names[:-4]


GOOD = ["tmax_c", "rain", "elev_m"]


def test_measured_columns_are_channels():
    assert channels(frame()) == GOOD
    found = check(table(frame()), "toy")
    assert found.left_out == found.doubts == []


@given(
    kind=st.sampled_from(["as it is", "filtered", "reversed", "shuffled", "restarted", "gaps"]),
    start=st.sampled_from([0, 1, 1000]),
    dtype=st.sampled_from(["int32", "int64", "uint16", "float32", "float64"]),
    name=st.sampled_from(["Unnamed: 0", "__index_level_0__", "index", "row", "n", "wind"]),
    by_date=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_row_numbers_are_no_channel(kind, start, dtype, name, by_date):
    df = frame().sort_values(["date", "site_id"], ignore_index=True) if by_date else frame()
    number = np.arange(len(df)) + start
    if kind == "restarted":
        number = np.concatenate([np.arange(150), np.arange(len(df) - 150)])
    df[name] = number.astype(dtype)
    if kind == "filtered":
        df = df[np.random.default_rng(1).random(len(df)) < 0.7]
    elif kind == "reversed":
        df = df[::-1]
    elif kind == "shuffled":
        df = df.sample(frac=1, random_state=2)
    elif kind == "gaps":
        df[name] = df[name].where(np.arange(len(df)) % 7 != 3).astype("float64")
    assert channels(df) == GOOD
    (left_out,) = check(table(df), "toy").left_out
    assert left_out.column == name
    assert "row" in left_out.what
    assert from_table(table(df), "toy").left_out == (str(left_out),)


@given(order=st.permutations(range(225)), by_date=st.booleans())
@settings(max_examples=10, deadline=None)
def test_the_default_channels_do_not_depend_on_the_order_of_rows(order, by_date):
    df = frame().sort_values(["date", "site_id"] if by_date else ["site_id", "date"], ignore_index=True)
    rows, day = np.arange(len(df)), (df.date - df.date.min()).dt.days
    columns = {
        "filtered": rows * 37,  # as of a table of a hundred times as many rows
        "of_site": df.groupby("site_id").cumcount() + 1 + df.site_id.eq(df.site_id.min()) * day.eq(24),
        "obs": df.groupby("site_id").cumcount() + df.site_id.factorize()[0],
        "ordered": df.site_id.factorize(sort=True)[0] * 50,
        "as_found": df.site_id.factorize()[0] ** 2 * 50,
    }
    df = df.assign(**columns)
    assert channels(df.iloc[[*order]]) == channels(df)
    first, other = (check(table(one), "toy").left_out for one in (df, df.iloc[[*order]]))
    assert [*map(str, other)] == [*map(str, first)]


@pytest.mark.parametrize("form", ["to_csv", "trailing comma", "two commas", "preserved index"])
def test_columns_without_a_name_are_no_channel(form, tmp_path):
    df, path = frame(), tmp_path / "t.csv"
    if form == "to_csv":
        df.to_csv(path)
    elif form == "preserved index":
        path = tmp_path / "t.parquet"
        df[df.index % 3 > 0].to_parquet(path)
    else:
        more = "," * (1 if form == "trailing comma" else 2)
        path.write_text("".join(f"{line}{more}\n" for line in df.to_csv(index=False).splitlines()))
    made = read(path)
    assert [*made.channels] == [*GOOD, *CALENDAR]
    assert len(made.left_out) == (2 if form == "two commas" else 1)


def test_a_day_counter_stays_a_channel():
    df = frame()
    df["doy"] = df.date.dt.day_of_year
    df["since_start"] = (df.date - df.date.min()).dt.days
    assert channels(df) == [*GOOD, "doy", "since_start"]
    assert channels(df.sort_values("date")) == [*GOOD, "doy", "since_start"]


IDENTIFIERS = {
    "station": [72494, 23234, 3812, 94728, 14732, 53136, 64758, 4725, 13743],
    "StationNumber": [11, 5, 5, 8, 94, 71, 3, 4, 12],
    "fips": [6037, 8037, 36061, 12086, 48201, 17031, 53033, 4013, 32003],
    "aqs_site_code": [60371103, 80310026, 360610128, 120861016, 482011039, 170310057, 1, 2, 3],
    "n": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "q7": [14, 11, 12, 10, 13, 18, 17, 16, 15],
    "ordered": [3, 9, 27, 28, 40, 77, 81, 90, 600],
    "last_part": [1103 + 7 * s for s in range(9)],
    "sensor_index": [131075, 5212, 9913, 71, 88, 1020, 4, 3, 2],
}
"""Identifiers by name of the column, one number for each site."""


@pytest.mark.parametrize("dtype", ["int64", "float32", "float64"])
@pytest.mark.parametrize("name", IDENTIFIERS)
def test_identifiers_are_no_channel(name, dtype):
    df = frame()
    df[name] = np.repeat(IDENTIFIERS[name], 25).astype(dtype)
    assert channels(df) == GOOD
    (left_out,) = check(table(df), "toy").left_out
    assert left_out.column == name
    assert "names the sites" in left_out.what


STATIC = {
    "elevation": [3, 9, 27, 28, 40, 77, 81, 90, 600],
    "alt": [0, 1, 2, 3, 4, 5, 6, 7, 8],
    "pop_10km": [1103, 50120, 7, 0, 128842, 99, 12, 7777, 18],
    "stations_within_km": [4, 2, 2, 1, 0, 0, 3, 3, 9],
    "nlcd_code": [21, 22, 23, 24, 41, 42, 21, 81, 95],
    "location_type": [1, 2, 3, 1, 1, 2, 2, 3, 1],
    "slope": [0.1, 2.5, 3.25, 1.5, 0.75, 8.5, 2.0, 1.25, 0.5],
}


@pytest.mark.parametrize("name", STATIC)
def test_measured_properties_of_sites_are_channels(name):
    df = frame()
    df[name] = np.repeat(STATIC[name], 25)
    assert channels(df) == [*GOOD, name]
    assert check(table(df), "toy").doubts == []


def test_a_number_of_each_site_without_a_telling_name_is_kept_and_noticed():
    df = frame().assign(z=np.repeat([72494, 23234, 3812, 94728, 14732, 53136, 64758, 4725, 13743], 25))
    found = check(table(df), "toy")
    assert found.left_out == []
    (doubt,) = found.doubts
    assert doubt.column == "z"
    assert "may name the sites" in doubt.what
    assert from_table(table(df), "toy").doubts == (str(doubt),)


@pytest.mark.parametrize("change", [lambda x: x, np.radians, lambda x: x + 360, lambda x: x.round(6)])
@pytest.mark.parametrize("column", ["lat", "lon"])
def test_a_copy_of_a_coordinate_is_no_channel(column, change):
    df = frame()
    df["y"] = change(df[column])
    assert channels(df) == GOOD
    assert check(table(df), "toy").left_out[0].what.endswith(f"it repeats the column {column}")


EMPTY = {
    "no value": (np.full(225, np.nan), "no value"),
    "nulls": (np.full(225, None), "no value"),
    "constant": (np.full(225, 2021), "2021"),
    "constant with gaps": (np.where(np.arange(225) % 3, 0.25, np.nan), "0.25"),
    "one code": (np.full(225, -9999.0), "missing code"),
    "all true": (np.full(225, True), "only value"),
    "mostly empty": (np.where(np.arange(225) % 45 == 0, np.arange(225) / 7, np.nan), "5 of 225"),
}


@pytest.mark.parametrize("what", EMPTY)
def test_columns_without_content_are_no_channel(what):
    values, shown = EMPTY[what]
    df = frame().assign(more=values)
    assert channels(df) == GOOD
    (left_out,) = check(table(df), "toy").left_out
    assert left_out.column == "more"
    assert shown in left_out.what


def test_zeros_and_half_empty_columns_are_kept_and_noticed():
    half = np.where(np.arange(225) % 3 == 0, np.arange(225) % 13 / 7, np.nan)
    df = frame().assign(smoke=0.0, aod=half)
    assert channels(df) == [*GOOD, "smoke", "aod"]
    smoke, aod = check(table(df), "toy").doubts
    assert (smoke.column, aod.column) == ("smoke", "aod")
    assert "67%" in aod.what


def test_a_channel_without_a_value_is_refused_where_it_is_asked_for():
    df = frame().assign(rh=np.nan)
    with refuses("toy", "rh", "no value", "data.channels"):
        from_table(table(df), "toy", ["tmax_c", "rh"])
    assert from_table(table(df), "toy", ["tmax_c"]).channels == ("tmax_c",)


@pytest.mark.parametrize(("name", "values"), [("n", np.arange(225)), ("year", 2021), ("fips", 6037)])
def test_another_column_that_is_no_covariate_is_noticed_where_it_is_asked_for(name, values):
    df = frame().assign(**{name: values})
    made = from_table(table(df), "toy", ["tmax_c", name])
    assert made.channels == ("tmax_c", name)
    (doubt,) = made.doubts
    assert doubt.startswith(f"{name}: it")
    assert "leave it out of data.channels" in doubt
    assert made.left_out == ()


def test_the_summary_of_the_channels_counts_what_the_model_lacks():
    df = frame().drop(index=[3, 4])  # two days of a site without a row
    df.loc[10:12, "tmax_c"] = np.nan
    tmax, rain, *rest = check(table(df), "toy").channels
    assert (tmax.name, tmax.lowest, tmax.highest) == ("tmax_c", df.tmax_c.min(), df.tmax_c.max())
    assert tmax.missing == pytest.approx(5 / 225)
    assert rain.missing == pytest.approx(2 / 225)
    assert tmax.missing_becomes == "mean of the training windows"
    assert [channel.source for channel in rest] == ["column", *["date"] * 4]
    assert rest[-1].missing_becomes == ""


@pytest.mark.parametrize(("sites", "days"), [(8, 21), (12, 40), (40, 90)])
def test_the_synthetic_panel_keeps_its_channels(sites, days):
    made = synthetic.synthesize(sites=sites, days=days)
    found = check(table(made), "synthetic")
    numeric = [name for name in made.columns if name not in ("site_id", "date", "lat", "lon", "pm25")]
    assert found.problems == found.left_out == []
    assert [channel.name for channel in found.channels] == [*numeric, *CALENDAR]
    assert {doubt.what for doubt in found.doubts} <= {"its only value is 0"}


@pytest.mark.parametrize("name", ["conus_daily_2021.parquet", "conus_daily_2021_fire.parquet"])
def test_the_real_tables_keep_their_channels(name):
    if not (SHARED / name).exists():
        pytest.skip(f"no shared table {name}")
    real = pq.read_table(SHARED / name)
    found = check(real, name)
    assert found.problems == found.left_out == found.doubts == []
    places = ("site_id", "date", "lat", "lon", "pm25")
    numbers = [f.name for f in real.schema if pa.types.is_floating(f.type) and f.name not in places]
    assert [channel.name for channel in found.channels] == [*numbers, *CALENDAR]
