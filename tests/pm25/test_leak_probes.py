"""The probes find channels that contain the target under any name, and pass honest ones."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pm25 import leak_probes
from pm25.leak_probes import find
from pm25.neighbours import inverse_distance
from pm25.panel import Panel, read
from tests import worlds
from tests.errors import refuses

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "conus_daily_2021.parquet"
WORLD = worlds.synthetic_panel(sites=40, days=150)
TARGET = WORLD.target.astype(np.float64)


def with_channel(values: np.ndarray, panel: Panel = WORLD, name: str = "wind_gust") -> Panel:
    """The panel with one more channel."""
    more = values.astype(np.float32)[:, :, None]
    features = np.concatenate([panel.features, more], axis=2)
    return replace(panel, features=features, channels=(*panel.channels, name))


def hits(values: np.ndarray, panel: Panel = WORLD) -> list[str]:
    return [leak.channel for leak in find(with_channel(values, panel))]


def lagged(lag: int) -> np.ndarray:
    moved = np.full_like(TARGET, np.nan)
    if lag > 0:
        moved[:, lag:] = TARGET[:, :-lag]
    else:
        moved[:, :lag] = TARGET[:, -lag:]
    return moved


def rolling(length: int) -> np.ndarray:
    """Mean of the days up to the sample's own, all known."""
    return np.stack([lagged(lag) if lag else TARGET for lag in range(length)]).mean(axis=0)


def test_honest_channels_pass():
    assert find(WORLD) == []
    assert find(worlds.synthetic_panel()) == []  # 12 sites, 40 days
    rng = np.random.default_rng(0)
    assert hits(rng.normal(size=TARGET.shape)) == []
    assert hits(np.full(TARGET.shape, 3.0)) == []
    assert hits(np.full(TARGET.shape, np.nan)) == []


def test_a_related_covariate_passes_and_its_figure_is_given():
    """A model of the air with half of the target's variance is no copy."""
    rng = np.random.default_rng(1)
    spread = np.nanstd(TARGET)
    panel = with_channel(TARGET + rng.normal(0, spread, TARGET.shape))
    assert find(panel) == []
    figures = leak_probes.channel_correlations(panel, "wind_gust")
    assert 0.5 < figures["the target on the same day"] < leak_probes.LIMIT


ALL_MONITORS = np.where(
    np.isfinite(TARGET),
    (TARGET + inverse_distance(TARGET, WORLD.lat, WORLD.lon, k=9, power=2)[0] / 100) / 1.01,
    inverse_distance(TARGET, WORLD.lat, WORLD.lon, k=9, power=2)[0],
)
HIDDEN = {
    "copy": TARGET,
    "other unit": TARGET / 1000,
    "affine": 32 - 1.8 * TARGET,
    "log": np.log1p(np.maximum(TARGET, 0)),
    "rank": stats.rankdata(TARGET, nan_policy="omit").reshape(TARGET.shape),
    "by site": (TARGET - np.nanmean(TARGET, 1, keepdims=True)) / np.nanstd(TARGET, 1, keepdims=True),
    "by day": (TARGET - np.nanmean(TARGET, 0)) / np.nanstd(TARGET, 0),
    "rounded": np.round(TARGET),
    "class": np.digitize(TARGET, [4, 8, 12, 20, 35, 55]),
    "own lag 1": lagged(1),
    "own lag 20": lagged(20),
    "lead 1": lagged(-1),
    "log of lag 2": np.log1p(np.maximum(lagged(2), 0)),
    "change in a day": TARGET - lagged(1),
    "mean of 3 days": rolling(3),
    "mean of 7 days": rolling(7),
    "nearest": inverse_distance(TARGET, WORLD.lat, WORLD.lon, k=1, power=2)[0],
    "k 9": inverse_distance(TARGET, WORLD.lat, WORLD.lon, k=9, power=2)[0],
    "k 5": inverse_distance(TARGET, WORLD.lat, WORLD.lon, k=5, power=1)[0],
    "all sites": inverse_distance(TARGET, WORLD.lat, WORLD.lon, k=39, power=2)[0],
    "all monitors": ALL_MONITORS,
    "mean at the site": np.broadcast_to(np.nanmean(TARGET, 1, keepdims=True), TARGET.shape),
    "median at the site": np.broadcast_to(np.nanmedian(TARGET, 1, keepdims=True), TARGET.shape),
    "mean of the day": np.broadcast_to(np.nanmean(TARGET, 0), TARGET.shape),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_hidden_target_is_found(name):
    values = np.where(np.isfinite(TARGET), HIDDEN[name], np.nan) if name == "class" else HIDDEN[name]
    assert hits(values) == ["wind_gust"]


def test_a_channel_filled_with_some_targets_is_found():
    """Too few samples for a correlation: weather at nine sites in ten, and the target at the tenth."""
    weather = WORLD.features[:, :, 1].astype(np.float64)
    filled = np.where(np.arange(40)[:, None] % 5 == 0, TARGET, weather)
    (found,) = find(with_channel(filled))
    assert (found.channel, found.measure) == ("wind_gust", "share of equal values")
    assert 0.15 < found.figure < 0.25


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(1e-4, 1e4),
    offset=st.floats(-1e3, 1e3),
    sign=st.sampled_from([-1, 1]),
    power=st.sampled_from([None, 0.0, 0.5, 1.0]),
    noise=st.floats(0, 0.25),
    missing=st.floats(0, 0.5),
    lag=st.integers(-20, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_disguised_copy_is_found(scale, offset, sign, power, noise, missing, lag, seed):
    """Unit, sign, monotone change, noise, missing values and shift in any combination."""
    rng = np.random.default_rng(seed)
    copy = lagged(lag) if lag else TARGET
    positive = np.maximum(copy, 0) + 1
    copy = copy if power is None else np.log(positive) if power == 0 else positive**power
    spread = np.nanstd(copy - np.nanmean(copy, 1, keepdims=True))
    copy = copy + noise * spread * rng.normal(size=copy.shape)
    copy = np.where(rng.random(copy.shape) < missing, np.nan, sign * scale * copy + offset)
    assert hits(copy) == ["wind_gust"]


def test_the_figure_names_the_lag():
    (found,) = find(with_channel(lagged(3)))
    assert found.signal == "the target 3 days before"
    assert found.figure == pytest.approx(1, abs=1e-4)
    (found,) = find(with_channel(lagged(-1)))
    assert found.signal == "the target 1 day after"


def test_calendar_channels_are_known():
    """A season may follow the target of every day; a channel of that name that is no calendar may not."""
    day = WORLD.channels.index("day_cos")
    wave = np.cos(2 * np.pi * np.arange(150) / 365.25)
    seasonal = replace(WORLD, target=np.where(np.isfinite(WORLD.target), 10 + 5 * wave, np.nan).astype("f4"))
    assert "day_cos" not in [leak.channel for leak in find(seasonal)]
    features = WORLD.features.copy()
    features[:, :, day] = WORLD.target
    assert [leak.channel for leak in find(replace(WORLD, features=features))] == ["day_cos"]


def test_refusal_names_the_channel_the_figure_and_the_key():
    panel = with_channel(lagged(1), with_channel(TARGET, name="aod"))
    with refuses(
        "t.parquet", "aod", "1.000", "wind_gust", "data.channels", "data.harmless: [aod, wind_gust]"
    ):
        leak_probes.refuse(panel, "t.parquet", ())
    with refuses("t.parquet", "wind_gust", "1 day before", "data.harmless: [wind_gust]"):
        leak_probes.refuse(panel, "t.parquet", ("aod",))
    leak_probes.refuse(panel, "t.parquet", ("aod", "wind_gust"))
    with refuses("t.parquet", "data.harmless", "ozone", "wind_gust"):
        leak_probes.refuse(panel, "t.parquet", ("ozone",))


def test_a_long_table_is_compared_in_periods(monkeypatch):
    assert [*leak_probes._periods(150)] == [slice(0, 150)]
    monkeypatch.setattr(leak_probes, "MAX_DAYS", 120)
    monkeypatch.setattr(leak_probes, "MAX_SITES", 25)
    assert [*leak_probes._periods(150)] == [slice(0, 40), slice(55, 95), slice(110, 150)]
    assert hits(lagged(1)) == ["wind_gust"]
    assert hits(HIDDEN["k 9"]) == ["wind_gust"]
    assert find(WORLD) == []


def test_means_of_neighbours_are_those_of_the_neighbour_feature():
    found = leak_probes._neighbour_means(TARGET, WORLD.lat, WORLD.lon, np.arange(40))
    for mean, (k, power) in zip(found, [(9, 2), (1, 0), (30, 0)], strict=True):
        expected, _ = inverse_distance(TARGET, WORLD.lat, WORLD.lon, k=k, power=power)
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_ranks_are_those_of_scipy():
    rng = np.random.default_rng(0)
    values = worlds.without(rng.integers(0, 6, (7, 30)).astype(float), 0.2, rng)
    expected = stats.rankdata(values, axis=1, nan_policy="omit") / np.isfinite(values).sum(1, keepdims=True)
    np.testing.assert_allclose(leak_probes._ranks(values), expected)


def test_moving_means_by_hand():
    values = np.array([[1.0, np.nan, 5.0, 9.0]])
    np.testing.assert_allclose(leak_probes._moving_mean(values, 1, 0), [[1, 1, 5, 7]])
    np.testing.assert_allclose(leak_probes._moving_mean(values, 2, -1), [[np.nan, 1, 1, 5]])


def test_correlations_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x, y = (worlds.without(rng.normal(size=(n, 9, 400)), 0.3, rng) for n in (2, 3))
    found = leak_probes._pearson(leak_probes._moments(x.astype("f4"), y.astype("f4")))
    for i, j in np.ndindex(2, 3):
        both = np.isfinite(x[i]) & np.isfinite(y[j])
        assert found[i, j] == pytest.approx(np.corrcoef(x[i][both], y[j][both])[0, 1], abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real table is not in this checkout")
def test_real_covariates_pass():
    panel = read(REAL)
    start = time.perf_counter()
    assert find(panel) == []
    assert time.perf_counter() - start < 30
    largest = {
        name: max(map(abs, leak_probes.channel_correlations(panel, name).values()))
        for name in ("crn_tavg_c", "crn_solar_mj_m2", "ncg_prcp_mm")
    }
    assert max(largest.values()) < 0.4
