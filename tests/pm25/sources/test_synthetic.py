"""The synthetic panel is reproducible, resembles the real table, and has the truth that it documents."""

import time

import numpy as np
import pandas as pd
import pytest

from pm25.sources import synthetic
from pm25.sources.synthetic import synthesize
from tests.errors import refuses

COLUMNS = ["site_id", "date", "lat", "lon", "pm25", "elev_m", "crn_tmax_c", "crn_tmin_c", "crn_prcp_mm"]
COLUMNS += ["crn_solar_mj_m2", "crn_rh_avg", "wind_speed_ms", "smoke"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthesize(with_truth=True)


def wide(table: pd.DataFrame, column: str) -> np.ndarray:
    """The column as (sites, days)."""
    return table[column].to_numpy(np.float64).reshape(table.site_id.nunique(), -1)


def r2(y: np.ndarray, *columns: np.ndarray) -> float:
    x = np.column_stack([np.ones(y.size), *(column.ravel() for column in columns)])
    residual = y.ravel() - x @ np.linalg.lstsq(x, y.ravel(), rcond=None)[0]
    return float(1 - residual.var() / y.var())


def within_site(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=1, keepdims=True)


def test_one_row_for_every_site_and_day(table):
    assert list(table) == [*COLUMNS, "pm25_true"]
    assert len(table) == 300 * 365
    assert not table.duplicated(["site_id", "date"]).any()
    assert table.date.min() == pd.Timestamp("2021-01-01")
    assert table.date.max() == pd.Timestamp("2021-12-31")
    assert len(table[["site_id", "lat", "lon", "elev_m"]].drop_duplicates()) == 300
    assert table.drop(columns="pm25").notna().all(axis=None)


def test_same_seed_same_bytes_other_seed_other_bytes():
    def content(**changes):
        return synthesize(**({"sites": 8, "days": 21, "seed": 3} | changes)).to_csv()

    assert content() == content()
    assert content() != content(seed=4)


def test_asking_for_the_truth_changes_nothing_else(table):
    pd.testing.assert_frame_equal(synthesize(), table[COLUMNS], check_exact=True)


def test_nothing_global_is_touched():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    synthesize(sites=8, days=21)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_a_default_table_takes_under_two_processor_seconds():
    start = time.process_time()
    synthesize()
    assert time.process_time() - start < 2


def test_values_are_like_those_of_the_real_table_of_2021(table):
    # conus_daily_2021: mean 8.4; quantiles 1.9, 6.8, 18.8, 47.7 at 5, 50, 95, 99.5 %; maximum 685.
    observed = table.pm25.dropna()
    assert observed.mean() == pytest.approx(8.4, abs=1)
    assert observed.quantile([0.05, 0.5, 0.95]).tolist() == pytest.approx([1.9, 6.8, 18.8], rel=0.2)
    assert 40 < observed.quantile(0.995) < 70
    assert 200 < observed.max() < 1000
    assert 0 < (observed < 0).mean() < 0.01
    assert (table.pm25_true > 0).all()


def test_a_fifth_of_the_days_is_missing_and_some_sites_sample_every_third_day(table):
    present = wide(table, "pm25") == wide(table, "pm25")
    assert 1 - present.mean() == pytest.approx(0.2, abs=0.04)
    days = np.flatnonzero(present[present.mean(axis=1) < 0.4].any(axis=0))
    assert 30 < (present.mean(axis=1) < 0.4).sum() < 90
    assert (np.diff(days) % 3 == 0).all()  # on one calendar


def test_channels_are_physical(table):
    assert (table.crn_tmax_c > table.crn_tmin_c).all()
    assert (table.crn_tmin_c > -50).all()
    assert (table.crn_tmax_c < 55).all()
    assert table.crn_rh_avg.between(0, 100).all()
    assert table.crn_solar_mj_m2.between(0, 35).all()
    assert (table.crn_prcp_mm >= 0).all()
    assert (table.wind_speed_ms >= 0).all()
    assert set(table.smoke.unique()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("lat", "lon", "inside"),
    [
        (39.1, -94.6, True),  # Kansas City
        (25.8, -80.27, True),  # Miami
        (47.55, -122.28, True),  # Seattle
        (43.5, -87.0, False),  # Lake Michigan
        (27.0, -90.0, False),  # the Gulf
        (36.0, -124.0, False),  # the Pacific
        (50.5, -100.0, False),  # Canada
        (30.0, -107.0, False),  # Mexico
    ],
)
def test_the_outline_separates_land_from_sea(lat, lon, inside):
    assert synthetic.inside_outline(np.array([lat]), np.array([lon])).tolist() == [inside]


def test_all_sites_are_inside_the_outline_and_most_are_near_a_city():
    sites = synthesize(sites=2000, days=21).drop_duplicates("site_id")
    lat, lon = sites.lat.to_numpy(), sites.lon.to_numpy()
    assert synthetic.inside_outline(lat, lon).all()
    nearest_km = synthetic._distance_km(lat, lon, synthetic.CITIES).min(axis=1)
    assert (nearest_km < 60).mean() == pytest.approx(0.8, abs=0.06)
    assert (nearest_km > 100).mean() > 0.1


def test_place_is_a_tenth_to_a_quarter_of_the_log_variance_and_neighbours_share_it(table):
    observed = table[table.pm25.notna()]
    log = np.log1p(observed.pm25.clip(lower=0))
    assert 0.10 < log.groupby(observed.site_id).transform("mean").var() / log.var() < 0.25

    # Outside the smoke season, a site's mean follows its nearest neighbour, not a site 1500 km away.
    level = np.log(wide(table, "pm25_true")[:, :180]).mean(axis=1)
    sites = table.drop_duplicates("site_id")
    places = sites[["lat", "lon"]].to_numpy()
    distance = synthetic._distance_km(*places.T, places)
    np.fill_diagonal(distance, np.inf)
    far = np.abs(distance - 1500).argmin(axis=1)
    assert np.corrcoef(level, level[distance.argmin(axis=1)])[0, 1] > 0.8
    assert abs(np.corrcoef(level, level[far])[0, 1]) < 0.4


def test_the_days_before_explain_variance_that_today_does_not(table):
    winter = slice(8, 180)  # no smoke
    level = within_site(np.log(wide(table, "pm25_true"))[:, winter])
    wind = np.log(wide(table, "wind_speed_ms"))
    rain = np.minimum(wide(table, "crn_prcp_mm"), 8)
    today = [within_site(x[:, winter]) for x in (wind, rain)]
    before = [
        within_site(np.mean([np.roll(x, lag, axis=1) for lag in range(1, 6)], axis=0)[:, winter])
        for x in (wind, rain)
    ]
    assert r2(level, *today) > 0.1
    assert r2(level, *today, *before) > r2(level, *today) + 0.1


def test_a_gradient_multiplies_clean_air_by_longitude() -> None:
    flat, sloped = (synthesize(sites=40, days=30, gradient=g, with_truth=True) for g in (0.0, 0.6))
    assert flat.drop(columns=["pm25", "pm25_true"]).equals(sloped.drop(columns=["pm25", "pm25_true"]))
    clean = flat["smoke"] == 0
    ratio = np.log(sloped["pm25_true"] / flat["pm25_true"])[clean].groupby(flat["site_id"][clean]).median()
    lon = flat.groupby("site_id")["lon"].first()
    np.testing.assert_allclose(ratio, 0.6 * (lon + 96) / 15, atol=1e-4)


def test_heat_means_more_in_the_east_in_summer_and_less_in_the_west_in_winter(table):
    def slope(sites: np.ndarray, days: np.ndarray) -> float:
        level = np.log(wide(table, "pm25_true"))[sites][:, days]
        heat = wide(table, "crn_tmax_c")[sites][:, days]
        return np.polyfit(within_site(heat).ravel(), within_site(level).ravel(), 1)[0]

    lon = wide(table, "lon")[:, 0]
    assert slope(lon > -95, np.arange(166, 227)) > 0.015
    assert slope(lon < -110, np.r_[0:45, 335:365]) < -0.015


def test_smoke_comes_in_the_fire_season_and_its_class_is_a_clue_not_the_answer(table):
    high = table[table.pm25_true > 100]
    assert high.date.dt.month.isin([7, 8, 9, 10]).all()
    assert (high.lon < -104).mean() > 0.6
    assert (table.loc[table.smoke > 0, "date"].dt.month.isin([7, 8, 9, 10])).all()
    # More smoke, more PM2.5; but heavy plumes pass over clean sites, and clouds hide dirty ones.
    by_class = table.groupby("smoke").pm25_true
    assert by_class.median().is_monotonic_increasing
    assert by_class.min()[3] < 10
    assert by_class.max()[0] > 50


def test_other_years_and_small_panels():
    leap = synthesize(sites=8, days=366, start="2024-01-01")
    assert leap.date.max() == pd.Timestamp("2024-12-31")
    small = synthesize(sites=8, days=21, start="2021-12-20", seed=5)
    assert small.site_id.nunique() == 8
    assert small.date.nunique() == 21
    assert (small.groupby("site_id").pm25.count() > 0).all()


@pytest.mark.parametrize(
    ("option", "value", "values"),
    [
        ("sites", 7, (7, 8)),
        ("days", 20, (20, 21)),
        ("seed", -1, (-1, 0)),
        ("gradient", 2.5, ["-2..2"]),
        ("start", "soon", ("'soon'", "2021-01-01")),
    ],
)
def test_impossible_requests_are_refused(option, value, values):
    with refuses("synthetic", option, *values):
        synthesize(**{option: value})


# The grid of the same world

WORLD = {"days": 60, "seed": 3, "gradient": 0.4, "start": "2021-06-20"}


@pytest.fixture(scope="module")
def sites() -> pd.DataFrame:
    return synthesize(sites=60, with_truth=True, **WORLD)


def at_sites(sites: pd.DataFrame, first: str, last: str, **changes) -> pd.DataFrame:
    """Cells whose centres are the sites of the panel."""
    places = sites.drop_duplicates("site_id")
    lat, lon = places["lat"].to_numpy(), places["lon"].to_numpy()
    return synthetic.synthesize_grid(lat, lon, first, last, **WORLD | changes)


def test_cells_are_in_the_world_of_the_panel(sites):
    """Fields are the same; only what is drawn for each place by itself differs, by its documented share."""
    cells = at_sites(sites, "2021-06-20", "2021-08-18")
    assert [*cells] == ["date", "lat", "lon", *COLUMNS[5:], "pm25_true"]
    np.testing.assert_array_equal(cells["elev_m"], sites["elev_m"])
    np.testing.assert_array_equal(cells["date"], sites["date"])

    def apart(cells):
        return np.log(cells["pm25_true"].to_numpy(float) / sites["pm25_true"].to_numpy(float)).std()

    other = at_sites(sites, "2021-06-20", "2021-08-18", seed=4)
    assert apart(cells) < 0.25 < 0.5 < apart(other)
    warm = np.corrcoef(cells["crn_tmax_c"], sites["crn_tmax_c"])[0, 1]
    assert warm > 0.98
    # The same plumes are at the same places.
    smoky = sites["smoke"] == 3
    assert smoky.sum() > 5
    assert (cells["smoke"][smoky] >= 1).mean() > 0.9


def test_a_cell_is_the_same_whatever_days_are_asked(sites):
    every = at_sites(sites, "2021-06-20", "2021-08-18")
    few = at_sites(sites, "2021-07-10", "2021-07-12")
    same = every[every["date"].between("2021-07-10", "2021-07-12")].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, same, check_exact=True)


def test_cells_are_made_in_blocks(sites, monkeypatch):
    together = at_sites(sites, "2021-07-10", "2021-07-12")
    monkeypatch.setattr(synthetic, "CELLS", 17)
    blocks = at_sites(sites, "2021-07-10", "2021-07-12")
    np.testing.assert_array_equal(blocks["elev_m"], together["elev_m"])
    ratio = blocks["pm25_true"] / together["pm25_true"]
    assert np.log(ratio).std() < 0.25  # the same fields in every block


def test_days_of_another_panel_are_refused(sites):
    with refuses("synthetic", "first, last", "2021-06-19", "2021-08-18"):
        at_sites(sites, "2021-06-19", "2021-06-30")
    with refuses("synthetic", "first, last", "2021-08-19"):
        at_sites(sites, "2021-08-01", "2021-08-19")
