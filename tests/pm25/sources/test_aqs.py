"""EPA and USCRN files become a panel table: hand-made files, hand-computed numbers, the real year 2021."""

import random
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.geo import EARTH_KM, great_circle_km
from pm25.sources import aqs, uscrn
from tests.errors import refuses
from tests.pm25.sources.agency import HEADER, row, station, write

SHARED = Path(__file__).parents[3].parent / "shared"

DEGREE_KM = np.pi / 180 * EARTH_KM  # along a meridian


def test_a_site_day_is_the_mean_of_its_instruments_and_88101_wins(tmp_path: Path) -> None:
    frm = write(
        tmp_path / "daily_88101_2021.zip",
        # POC 1 is repeated for each standard and is one instrument: (4 + 10) / 2, not (4 + 4 + 10) / 3.
        row(4.0, standard="PM25 24-hour 2012"),
        row(4.0, standard="PM25 Annual 2012"),
        row(10.0, poc=2, duration="24-HR BLK AVG"),
        row(99.0, poc=3, duration="1 HOUR"),
        row(99.0, poc=4, event="Excluded"),
        row(8.0, date="2021-01-04", event="Included"),
        row(9.0, date="2021-01-04", event="Excluded"),
        row(-1.5, site="06-001-0007", date="2021-01-02", lat=37.5, lon=-122.0),
    )
    other = write(
        tmp_path / "daily_88502_2021.csv",
        row(50.0, param="88502"),
        row(6.0, param="88502", date="2021-01-02"),
    )
    table = aqs.build([other, frm])
    assert list(table.columns) == ["site_id", "date", "lat", "lon", "pm25", "param"]
    assert table["site_id"].tolist() == ["01-073-0023"] * 4 + ["06-001-0007"] * 4
    assert table["date"].tolist() == list(pd.date_range("2021-01-01", "2021-01-04")) * 2
    nan = np.nan
    np.testing.assert_array_equal(table["pm25"], np.float32([7, 6, nan, 8, nan, -1.5, nan, nan]))
    assert table["param"].fillna("-").tolist() == ["88101", "88502", "-", "88101", "-", "88101", "-", "-"]
    assert table["lat"].tolist() == [40.0] * 4 + [37.5] * 4
    assert table["lon"].tolist() == [-90.0] * 4 + [-122.0] * 4
    assert table["date"].dtype.kind == "M"
    assert table["pm25"].dtype == np.float32


def test_only_the_48_states_and_dc(tmp_path: Path) -> None:
    outside = [row(5.0, site=f"{s}-001-0001") for s in ("02", "15", "72", "78", "66", "60", "69", "80", "CC")]
    path = write(tmp_path / "a.csv", *outside, row(5.0, site="11-001-0001"), row(5.0, site="56-001-0001"))
    assert aqs.build([path])["site_id"].tolist() == ["11-001-0001", "56-001-0001"]


def test_codes_need_neither_quotes_nor_zeros(tmp_path: Path) -> None:
    plain = HEADER.replace('"', "")
    line = "1,73,23,088101,1,40,-90,WGS84,n,24 HOUR,,2021-01-01,Micrograms/cubic meter (LC),,1,3.5,x"
    table = aqs.build([write(tmp_path / "a.csv", line, row(5.5, param="88101", poc=2), header=plain)])
    assert table["site_id"].tolist() == ["01-073-0023"]
    assert table["pm25"].tolist() == [4.5]


def test_a_site_has_its_most_frequent_position(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        row(1, lat=39.0),
        row(1, date="2021-01-02"),
        row(1, date="2021-01-03"),
        row(1, date="2021-01-04", lat=0, lon=0),
        row(1, date="2021-01-05", lat=0, lon=0),
        row(1, date="2021-01-06", lat=0, lon=0),
        row(1, date="2021-01-07", lat="", lon=""),
    )
    table = aqs.build([path])
    assert set(table["lat"]) == {40.0}
    assert len(table) == 7


def test_weather_of_the_same_site_in_si_units(tmp_path: Path) -> None:
    pm = write(tmp_path / "pm.csv", row(5, date="2021-01-01"), row(5, date="2021-01-02"))
    hour = {"duration": "1 HOUR"}
    others = [
        write(tmp_path / "t.csv", row(50, param="62101", **hour), row(68, param="62101", poc=2)),  # 10, 20 C
        write(
            tmp_path / "w.csv",
            row(10, param="61103", **hour),
            # the circular mean of 350 and 30 degrees points to 10; their plain mean would point to 190
            row(350, param="61104", **hour),
            row(30, param="61104", poc=2, **hour),
        ),
        write(tmp_path / "rh.csv", row(40, param="62201", **hour), row(14, param="62103", **hour)),
        write(
            tmp_path / "p.csv", row(1013, param="64101", **hour), row(900, param="64101", site="06-001-0001")
        ),
    ]
    table = aqs.build([pm, *others])
    assert list(table.columns)[6:] == [
        "aqs_temp_c",
        "aqs_wind_speed_ms",
        "aqs_wind_dir_sin",
        "aqs_wind_dir_cos",
        "aqs_rh",
        "aqs_dewpoint_c",
        "aqs_press_hpa",
    ]
    first, second = table.iloc[0, 6:], table.iloc[1, 6:]
    sin, cos = (np.sin(np.radians(30)) - np.sin(np.radians(10))) / 2, np.cos(np.radians([350, 30])).mean()
    np.testing.assert_allclose(first.to_numpy(float), [15, 5.144444, sin, cos, 40, -10, 1013], rtol=1e-6)
    assert np.degrees(np.arctan2(first["aqs_wind_dir_sin"], first["aqs_wind_dir_cos"])) == pytest.approx(10)
    assert second.isna().all()
    assert set(table["site_id"]) == {"01-073-0023"}  # a site without PM2.5 is no row

    assert list(aqs.build([pm, others[0]]).columns)[6:] == ["aqs_temp_c"]


@pytest.fixture
def pm(tmp_path: Path) -> Path:
    return write(tmp_path / "pm.csv", row(5, date="2021-01-01"), row(5, date="2021-01-02"))


def test_uscrn_is_the_inverse_square_mean_of_the_nearest_reporting(tmp_path: Path, pm: Path) -> None:
    folder = tmp_path / "uscrn"
    folder.mkdir()
    (folder / "readme.txt").write_text("no station\n")
    for number, (lat, tmax) in enumerate([(41, 10.0), (42, 20.0), (42.5, 40.0), (42.6, 60.0), (43, 50.0)]):
        values = {"T_DAILY_MAX": tmax}
        if number == 1:
            values["T_DAILY_AVG"] = -3.0  # the only one in reach
        if number == 4:
            values["P_DAILY_CALC"] = 7.0  # too far: 3 degrees, 334 km
        text = station(number, lat, days=2, **values)
        if number == 0:  # does not report on the second day: the fourth takes its turn
            text = station(0, lat, T_DAILY_MAX=tmax) + station(0, lat, first="20210102")
        (folder / f"CRND0103-2021-AL_Place_{number}_N.txt").write_text(text)
    table = aqs.build([pm], [folder])
    assert list(table.columns)[6:] == ["crn_nearest_km", *uscrn.VARIABLES]
    # weights 1, 1/4, 1/6.25 of the stations at 1, 2, 2.5 degrees
    first = (10 + 20 / 4 + 40 / 6.25) / (1 + 1 / 4 + 1 / 6.25)
    second = (20 / 4 + 40 / 6.25 + 60 / 6.76) / (1 / 4 + 1 / 6.25 + 1 / 6.76)
    np.testing.assert_allclose(table["crn_tmax_c"], [first, second], rtol=1e-6)
    np.testing.assert_allclose(table["crn_tavg_c"], [-3, -3])
    np.testing.assert_allclose(table["crn_nearest_km"], [DEGREE_KM] * 2)
    assert table["crn_prcp_mm"].isna().all()
    assert table["crn_rh_avg"].isna().all()

    one = aqs.build([pm], [folder], stations=1)
    np.testing.assert_allclose(one["crn_tmax_c"], [10, 20])
    near = aqs.build([pm], [folder], max_station_km=1.5 * DEGREE_KM)
    np.testing.assert_allclose(near["crn_tmax_c"], [10, np.nan])
    wide = aqs.build([pm], [folder], max_station_km=400)
    np.testing.assert_allclose(wide["crn_prcp_mm"], [7, 7])


def test_a_station_at_the_very_place(tmp_path: Path, pm: Path) -> None:
    here, there = tmp_path / "here.txt", tmp_path / "there.txt"
    here.write_text(station(1, 40, days=2, T_DAILY_MAX=10.0))
    there.write_text(station(2, 41, days=2, T_DAILY_MAX=20.0))
    table = aqs.build([pm], [here, there])
    assert table["crn_nearest_km"].tolist() == [0, 0]
    far, near = 1 / DEGREE_KM**2, 1 / 5**2
    np.testing.assert_allclose(table["crn_tmax_c"], (10 * near + 20 * far) / (near + far), rtol=1e-6)


def test_stations_in_a_zip_count_once(tmp_path: Path, pm: Path) -> None:
    name = "CRND0103-2021-AL_Place_1_N.txt"
    archive = tmp_path / "crn.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(f"2021/{name}", station(1, 41, days=2, T_DAILY_MAX=10.0))
        out.writestr("2021/headers.txt", "WBANNO LST_DATE\n")
    (tmp_path / name).write_text(station(1, 41, days=2, T_DAILY_MAX=10.0))
    table = aqs.build([pm], [archive, tmp_path / name])
    assert table["crn_tmax_c"].tolist() == [10, 10]


def test_great_circle_of_known_places() -> None:
    # a quarter of a meridian, a degree of the equator across the date line, and the same place
    km = great_circle_km([[90], [0], [12]], [[0], [179.5], [34]], [0, 12], [-179.5, 34])
    quarter = np.pi / 2 * EARTH_KM
    np.testing.assert_allclose([km[0, 0], km[1, 0], km[2, 1]], [quarter, DEGREE_KM, 0], atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), stations=st.integers(1, 4))
def test_a_mean_is_between_the_smallest_and_the_largest_report(seed: int, stations: int) -> None:
    rng = np.random.default_rng(seed)
    km = rng.uniform(0, 500, (4, 6)).round(-1)  # rounded: ties and zeros
    values = np.where(rng.random((6, 3, 2)) < 0.4, np.nan, rng.normal(size=(6, 3, 2))).astype(np.float32)
    out = uscrn.inverse_distance(km, values, max_km=300, stations=stations)
    for place, day, variable in np.ndindex(out.shape):
        order = np.argsort(km[place], kind="stable")
        used = [values[s, day, variable] for s in order if km[place, s] <= 300]
        used = [v for v in used if not np.isnan(v)][:stations]
        got = out[place, day, variable]
        assert np.isnan(got) if not used else min(used) - 1e-5 <= got <= max(used) + 1e-5


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_neither_order_nor_files_nor_repeats_matter(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    instrument = st.tuples(
        st.sampled_from(["01-001-0001", "06-001-0002"]),
        st.integers(1, 4),
        st.sampled_from(aqs.PM25),
        st.integers(1, 3),
    )
    readings = data.draw(st.dictionaries(instrument, st.integers(0, 64).map(lambda n: n / 4), min_size=1))
    rows = [
        row(value, site=site, date=f"2021-01-0{day}", param=param, poc=poc)
        for (site, day, param, poc), value in readings.items()
    ]
    shuffled = rows * 2
    data.draw(st.randoms(use_true_random=False)).shuffle(shuffled)
    cut = data.draw(st.integers(0, len(rows) - 1))
    one = aqs.build([write(folder / "one.csv", *rows)])
    two = aqs.build([write(folder / "a.csv", *shuffled[cut:]), write(folder / "b.zip", *shuffled[:cut])])
    pd.testing.assert_frame_equal(one, two)
    assert len(one) == one["site_id"].nunique() * one["date"].nunique()


def damaged_zip(tmp_path: Path, *, cut: bool) -> Path:
    rng = random.Random(0)
    path = write(tmp_path / "daily_88101_2021.zip", *(row(rng.random()) for _ in range(5000)))
    data = bytearray(path.read_bytes())
    if cut:
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


def no_csv(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "")
    return tmp_path / "none.zip"


BAD_FILES = {
    "missing file": (lambda t: t / "x.zip", "x.zip", "", ()),
    "truncated zip": (lambda t: damaged_zip(t, cut=True), "daily_88101_2021.zip", "", ("zip",)),
    "corrupt zip": (lambda t: damaged_zip(t, cut=False), "daily_88101_2021.zip", "", ("zip",)),
    "no CSV in zip": (no_csv, "none.zip", "", (".csv", "readme.txt")),
    "missing columns": (
        lambda t: write(t / "a.csv", header=HEADER.replace("Arithmetic Mean", "Mean").replace("POC", "P")),
        "a.csv",
        "POC, Arithmetic Mean",
        (),
    ),
    "empty file": (lambda t: write(t / "a.csv", header=""), "a.csv", "", ("empty",)),
    "short row": (lambda t: write(t / "a.csv", row(5), "1,2,3"), "a.csv: line 3", "", ("CSV", 17)),
    "not a number": (
        lambda t: write(t / "a.csv", row("much")),
        "a.csv: line 2",
        "Arithmetic Mean",
        ("'much'",),
    ),
    "unknown parameter": (
        lambda t: write(t / "a.csv", row(5), row(5, param="44201")),
        "a.csv: line 3",
        "Parameter Code",
        ("'44201'", ", ".join(aqs.UNITS)),
    ),
    "another unit": (
        lambda t: write(t / "a.csv", row(5), row(5, unit="Parts per million")),
        "a.csv: line 3",
        "Units of Measure",
        (88101, "'Parts per million'", aqs.UNITS["88101"]),
    ),
    "a bad date": (
        lambda t: write(t / "a.csv", row(5), row(5), row(5, date="2021-02-30")),
        "a.csv: line 4",
        "Date Local",
        ("'2021-02-30'",),
    ),
    "no PM2.5": (lambda t: write(t / "a.csv", row(5, param="62101")), "a.csv", "", ("daily_88101_YEAR.zip",)),
    "nothing left": (
        lambda t: write(t / "a.csv", row(5, duration="1 HOUR")),
        "a.csv",
        "",
        ("Sample Duration", *aqs.PM25_DURATIONS),
    ),
    "no row at all": (lambda t: write(t / "a.csv"), "a.csv", "", ("daily_88101_YEAR.zip",)),
    "no position": (
        lambda t: write(t / "a.csv", row(5, lat=0, lon=0)),
        "a.csv",
        "Latitude, Longitude",
        ("01-073-0023",),
    ),
}
"""Bad files by name: a function that writes the file, and where, field and values of the error."""


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_epa_files_are_refused(case: str, tmp_path: Path) -> None:
    make, where, field, values = BAD_FILES[case]
    with refuses(where, field, *values):
        aqs.build([make(tmp_path)])


def test_wrong_arguments_are_refused() -> None:
    with refuses("no files", "", "daily_88101_YEAR.zip"):
        aqs.build([])
    with refuses("weather", "stations", 0, 1):
        aqs.build([], stations=0)
    with refuses("weather", "max_station_km", "nan", "0 km"):
        aqs.build([], max_station_km=float("nan"))


def test_weather_must_overlap(tmp_path: Path, pm: Path) -> None:
    late = write(tmp_path / "daily_TEMP_2022.csv", row(50, param="62101", date="2022-01-01"))
    with refuses("daily_TEMP_2022.csv", "Date", "2022-01-01", "2021-01-01 to 2021-01-02"):
        aqs.build([pm, late])
    (tmp_path / "CRN.txt").write_text(station(1, 40, first="20220101", days=9))
    with refuses("CRN.txt", "Date", "2022-01-01 to 2022-01-09", "2021-01-01 to 2021-01-02"):
        aqs.build([pm], [tmp_path / "CRN.txt"])


def test_bad_station_files_are_refused(tmp_path: Path, pm: Path) -> None:
    good = station(1, 40, days=2)
    path = tmp_path / "CRN.txt"
    for text, where, field, values in [
        (good + good.rsplit(maxsplit=1)[0] + "\n", "CRN.txt: line 4", "", ("Expected 28", "27")),
        (good.replace("\n", " 1\n"), "CRN.txt: line 1", "", ("28 columns",)),
        (good.replace(" -9999.0", " warm", 1), "CRN.txt: line 1", "", ("warm",)),
        (good.replace("20210102", "20210230"), "CRN.txt: line 2", "LST_DATE", ("'20210230'",)),
        (good.replace("  40.00", "-999.00"), "CRN.txt: line 1", "LATITUDE, LONGITUDE", (-999.0, -90.0)),
        ("", "CRN.txt", "", ()),
    ]:
        path.write_text(text)
        with refuses(where, field, *values):
            aqs.build([pm], [path])
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, where, value in [
        (empty, "empty", "CRND*.txt in this folder"),
        (tmp_path / "nowhere", "nowhere", "CRND0103-YEAR-STATION.txt"),
        (no_csv(tmp_path), "none.zip", "CRND*.txt in this zip"),
        (damaged_zip(tmp_path, cut=True), "daily_88101_2021.zip", "zip"),
    ]:
        with refuses(where, "", value):
            aqs.build([pm], [place])


def test_the_real_year_2021_is_the_reference_table() -> None:
    """Every 88502 site-day and every crn_* value of the table made once before by other code."""
    epa, crn = SHARED / "data/raw/daily_88502_2021.zip", SHARED / "data/raw/uscrn_daily01_2021.zip"
    reference = SHARED / "data/conus_daily_2021.parquet"
    if absent := [path.name for path in (epa, crn, reference) if not path.exists()]:
        pytest.skip(f"shared/data lacks {', '.join(absent)}")
    table = aqs.build([epa], [crn])
    assert (len(table), table["site_id"].nunique(), int(table["pm25"].count())) == (439 * 365, 439, 111562)
    columns = ["site_id", "date", "lat", "lon", "pm25", "param", *uscrn.VARIABLES]
    other = pd.read_parquet(reference, columns=columns).astype({"site_id": str, "param": object})
    both = table.merge(other, on=["site_id", "date"], suffixes=("", "_ref"))
    assert len(both) == len(table)
    np.testing.assert_array_equal(both[["lat", "lon"]], both[["lat_ref", "lon_ref"]])
    for column in uscrn.VARIABLES:
        np.testing.assert_allclose(both[column], both[f"{column}_ref"], rtol=1e-5, atol=1e-5, err_msg=column)
    alone = both[both["param_ref"] == "88502"]
    assert len(alone) == 94469
    np.testing.assert_array_equal(alone["pm25"], alone["pm25_ref"])
    # where the table has another parameter, it is the one that wins
    assert set(both.loc[both["pm25"].notna() & (both["param_ref"] != "88502"), "param_ref"]) == {"88101"}
