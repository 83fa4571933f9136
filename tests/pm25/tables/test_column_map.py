"""A table whose columns have other names is the same table, and an error says what to type."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.panel import read
from pm25.tables import column_map
from pm25.tables.schema import REQUIRED
from tests.errors import refuses

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="\r\n\"'\0"),
    min_size=1,
    max_size=12,
).filter(lambda name: name.strip() == name)


def frame(sites: int = 4, days: int = 24) -> pd.DataFrame:
    site, day = np.divmod(np.arange(sites * days), days)
    return pd.DataFrame(
        {
            "site_id": np.array([f"0{6 + s}001" for s in range(sites)])[site],
            "date": (np.datetime64("2021-02-20") + day).astype("datetime64[s]"),
            "lat": 31.2345 + 3.1 * site,
            "lon": -118.4321 + 9.7 * site,
            "pm25": 5.0 + site + 0.5 * (day % 7),
            "wind": np.sin(np.arange(sites * days) * 1.7),
            "state": np.array(["01", "02", "01", "03"])[site],
            "day_cos": 0.5,
        }
    )


def write(df: pd.DataFrame, path):
    df.to_csv(path, index=False) if path.suffix == ".csv" else df.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("channels", [None, ("wind", "day_cos", "day_sin"), ("wind",)])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_mapped_table_is_the_renamed_table(data, suffix, channels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    names = [*REQUIRED, "wind", "state", "day_cos"]
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    other = data.draw(
        st.lists(
            NAMES.filter(lambda n: n not in names), min_size=len(chosen), max_size=len(chosen), unique=True
        )
    )
    columns = dict(zip(chosen, other, strict=True))
    plain = write(frame(), folder / f"plain{suffix}")
    renamed = write(frame().rename(columns=columns), folder / f"renamed{suffix}")
    one = read(plain, channels, ["state"])
    two = read(renamed, channels, ["state"], columns)
    assert two.fingerprint == one.fingerprint
    assert two.fingerprint_by("state") == one.fingerprint_by("state")
    assert two.channels == one.channels
    assert two.site_id.tolist() == ["06001", "07001", "08001", "09001"]  # zeros stay in a CSV file


def test_an_empty_map_is_no_map(tmp_path):
    path = write(frame(), tmp_path / "t.csv")
    assert read(path, columns={}).fingerprint == read(path).fingerprint
    assert read(path, columns={"pm25": "pm25"}).fingerprint == read(path).fingerprint


def test_names_may_be_exchanged(tmp_path):
    path = write(frame().rename(columns={"lat": "lon", "lon": "lat"}), tmp_path / "t.parquet")
    expected = read(write(frame(), tmp_path / "plain.parquet"))
    assert read(path, columns={"lat": "lon", "lon": "lat"}).fingerprint == expected.fingerprint


def test_a_column_whose_name_is_taken_is_left_out(tmp_path):
    df = frame().assign(corrected=lambda d: d.pm25 * 0.5)
    path = write(df, tmp_path / "t.parquet")
    made = read(path, columns={"pm25": "corrected"})
    assert made.target[0, 0] == 2.5
    assert made.channels[:2] == ("wind", "day_cos")
    (notice,) = column_map.notices_of([*df.columns], {"pm25": "corrected"})
    assert (notice.column, "corrected" in notice.what) == ("pm25", True)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("columns", "field", "values"),
    [
        ({"pm25": "PM25x"}, "pm25", ("'PM25x'", "use pm25")),
        ({"pm25": "nowhere"}, "pm25", ("'nowhere'", "use one of site_id")),
        ({"wind": "lat", "gust": "lat"}, "gust", ("'lat'", "wind")),
        ({"wind": "site_id2"}, "wind", ("site_id2", "use site_id")),
    ],
)
def test_a_wrong_map_is_refused(columns, field, values, suffix, tmp_path):
    path = write(frame(), tmp_path / f"t{suffix}")
    with refuses(str(path), field, *values):
        read(path, columns=columns)


def test_a_reversed_map_is_named(tmp_path):
    path = write(frame().rename(columns={"site_id": "station"}), tmp_path / "t.csv")
    with refuses(str(path), "station", "site_id=station"):
        read(path, columns={"station": "site_id"})


def test_errors_name_the_column_of_the_file(tmp_path):
    df = frame().rename(columns={"pm25": "PM2.5"})
    df["PM2.5"] = "bad"
    path = write(df, tmp_path / "t.csv")
    with refuses(str(path), "pm25 (PM2.5)", "'bad'"):
        read(path, columns={"pm25": "PM2.5"})


# --- Suggestions -------------------------------------------------------------------------------------

SPELLINGS = {
    "site_id": ["station", "Station ID", "SITE-ID", "site", "monitor", "AQS_ID", "SiteId", "Location"],
    "date": ["Date Local", "DATE", "day", "date_local", "Sample Date", "timestamp"],
    "lat": ["latitude", "LATITUDE", "Lat.", "SITE_LATITUDE", "site_lat", "y"],
    "lon": ["longitude", "LONGITUDE", "Lng", "long", "SITE_LONGITUDE", "site_lon", "x"],
    "pm25": [
        "PM2.5",
        "pm2_5",
        "Arithmetic Mean",
        "PM 2.5 (ug/m3)",
        "Daily Mean PM2.5 Concentration",
        "value",
    ],
}


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_the_error_says_to_type_reads_the_table(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder")
    missing = data.draw(st.lists(st.sampled_from(REQUIRED), min_size=1, unique=True))
    columns = {name: data.draw(st.sampled_from(SPELLINGS[name])) for name in missing}
    df = frame().rename(columns=columns)
    path = write(df[data.draw(st.permutations([*df.columns]))], folder / "t.csv")
    with refuses(str(path), ", ".join(n for n in REQUIRED if n in columns)) as refused:
        read(path)
    command, study, option = re.findall(r"`(.*?)`", refused.value.fix)
    words = shlex.split(command)
    assert words[:4] == ["sweep", "data", "check", str(path)]
    assert words[4::2] == ["--map"] * len(missing)
    typed = dict(word.split("=", 1) for word in words[5::2])
    assert typed == columns
    assert yaml.safe_load(study) == {"data": {"columns": columns}}
    name, _, value = shlex.split(option)[1].partition("=")
    assert (name, yaml.safe_load(value)) == ("data.columns", columns)
    expected = read(write(frame(), folder / "plain.csv"), ["wind"]).fingerprint
    assert read(path, ["wind"], columns=typed).fingerprint == expected


def test_the_suggestion_keeps_what_was_mapped_before(tmp_path):
    df = frame().rename(columns={"pm25": "PM2.5", "site_id": "station"})
    path = write(df, tmp_path / "t.csv")
    with refuses(str(path), "pm25", "--map site_id=station --map pm25=PM2.5"):
        read(path, columns={"site_id": "station"})


@pytest.mark.parametrize("name", ["pm25_flag", "PM25 unit", "pm25_count", "AQI", "country", "elevation"])
def test_columns_of_another_meaning_are_not_suggested(name):
    assert column_map.suggestions(["pm25", "site_id"], [name]) == {}


def test_a_column_that_nothing_resembles(tmp_path):
    path = write(frame().rename(columns={"pm25": "zzz"}), tmp_path / "t.csv")
    with refuses(str(path), "pm25", "add it", "--map pm25=COLUMN", "zzz"):
        read(path)


def test_an_epa_file_is_recognised(tmp_path):
    df = frame().rename(columns={"pm25": "Arithmetic Mean", "date": "Date Local"})
    df = df.drop(columns="site_id").assign(**{"State Code": "06", "County Code": "001", "Site Num": "0007"})
    path = write(df, tmp_path / "part.csv")
    with refuses(str(path), None, "join the numbers of state, county and site", "site_id=COLUMN") as raised:
        read(path)
    assert "sweep data aqs" not in str(raised.value), "which needs columns that this table lacks"
    path = write(df.assign(**{"Sample Duration": "24 HOUR", "Event Type": "None"}), tmp_path / "daily.csv")
    with refuses(str(path), None, f"sweep data aqs {path}"):
        read(path)


# --- Text --------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(REQUIRED), st.text(min_size=1), min_size=1))
@settings(deadline=None)
def test_a_map_is_valid_yaml_and_shell(columns):
    assert column_map.with_source("wind", columns) == "wind"
    assert yaml.safe_load(column_map.yaml_flow(columns)) == columns
    words = shlex.split(column_map.flags(columns))
    assert dict(word.split("=", 1) for word in words[1::2]) == columns
