from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pm25 import neighbours, splits
from pm25.errors import InputError
from pm25.geo import great_circle_km
from pm25.neighbours import NeighbourSettings, feature, inverse_distance, known_targets, nearest_monitor_km
from pm25.panel import Panel
from tests import worlds

WINDOW = 5
NAN = float("nan")
KM = 6371.0088 * np.pi / 180  # a degree of the equator


def world(seed: int = 0, sites: int = 16, days: int = 24, missing: float = 0.3) -> Panel:
    rng = np.random.default_rng(seed)
    target = worlds.without(rng.gamma(2, 4, (sites, days)), missing, rng)
    lat, lon = rng.uniform(26, 49, sites), rng.uniform(-124, -67, sites)
    lat[1], lon[1] = lat[0], lon[0]  # two monitors on one roof
    return worlds.panel(np.zeros((sites, days, 1)), target, lat, lon, start=worlds.EPOCH)


def made(panel: Panel, parts: splits.SplitIndices, block: NeighbourSettings, seed: int = 0) -> np.ndarray:
    test_sites = np.unique(parts.test // len(panel.dates))
    return feature(panel, parts.train, test_sites, WINDOW, block, np.random.default_rng(seed))


def on_the_equator(*degrees: float) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(degrees)), np.array(degrees)


def test_the_two_nearest_by_hand():
    lat, lon = on_the_equator(0, 1, 3, 7)
    values = np.array([[100.0, NAN], [8.0, NAN], [20.0, NAN], [5.0, 6.0]])
    got, _ = inverse_distance(values, lat, lon, k=2, power=2)
    # From 0 the first two stand at 1 and 3 degrees: (8 + 20/9) / (1 + 1/9) = 9.2. On day 1 there is one
    # value, and its own site has none.
    expected = [
        [9.2, 6],
        [(100 + 20 / 4) / 1.25, 6],
        [(8 / 4 + 100 / 9) / (1 / 4 + 1 / 9), 6],
        [(20 / 16 + 8 / 36) / (1 / 16 + 1 / 36), NAN],
    ]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(inverse_distance(values, lat, lon, k=2, power=0)[0][0], [14, 6])
    np.testing.assert_allclose(inverse_distance(values, lat, lon, k=1, power=2)[0][0], [8, 6])


def test_a_missing_day_lets_the_next_site_in():
    lat, lon = on_the_equator(0, 1, 2, 4)
    values = np.array([[NAN] * 3, [10, NAN, 10], [20, 20, NAN], [30, 30, 30]])
    got = inverse_distance(values, lat, lon, k=1, power=1)[0][0]
    assert got.tolist() == [10, 20, 10]


def test_a_site_on_the_same_roof_stands_at_the_floor():
    lat, lon = on_the_equator(0, 0, 2 / KM)
    values = np.array([[50.0], [10.0], [40.0]])
    # Weights 1 and 1/4 at 0 and 2 km with a floor of 1 km; 1/9 each with a floor of 3 km.
    assert inverse_distance(values, lat, lon, k=9, power=2)[0][0, 0] == pytest.approx(16)
    assert inverse_distance(values, lat, lon, k=9, power=2, floor_km=3)[0][0, 0] == pytest.approx(25)


def test_what_is_nearer_than_the_exclusion_is_never_used():
    lat, lon = on_the_equator(0, 0, 1, 2)
    values = np.array([[1.0], [10.0], [20.0], [30.0]])
    by_site = np.array([0, 50, 1.5 * KM, 1000])
    got = inverse_distance(values, lat, lon, k=1, power=2, exclusion_km=by_site)[0][:, 0]
    np.testing.assert_array_equal(got, np.array([10, 20, NAN, NAN], np.float32))
    one = inverse_distance(values, lat, lon, k=1, power=2, exclusion_km=1.5 * KM)[0][:, 0]
    np.testing.assert_array_equal(one, np.array([30, 30, NAN, 1], np.float32))


def brute(
    values: np.ndarray, km: np.ndarray, k: int, power: float, exclusion: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    mean, far = np.full((2, *values.shape), np.nan)
    for site in range(len(values)):
        for day in range(values.shape[1]):
            near = sorted(
                (km[site, other], other)
                for other in range(len(values))
                if other != site and np.isfinite(values[other, day]) and km[site, other] >= exclusion[site]
            )[:k]
            if near:
                weight = np.array([max(d, 1.0) ** -power for d, _ in near])
                mean[site, day] = np.sum(weight * [values[o, day] for _, o in near]) / weight.sum()
                far[site, day] = np.mean([d for d, _ in near])
    return mean, far


@given(
    st.integers(0, 10**6),
    st.integers(1, 14),
    st.integers(1, 12),
    st.sampled_from([0.0, 1.0, 2.0, 7.5]),
    st.sampled_from([0.1, 0.6, 0.95]),
    st.sampled_from([1, 20, 1 << 18]),
)
@settings(max_examples=100, deadline=None)
def test_every_block_is_the_brute_force(seed, sites, k, power, missing, block):
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(30, 40, sites), rng.uniform(-100, -90, sites)
    same = rng.integers(0, sites, 2)
    lat[same[0]], lon[same[0]] = lat[same[1]], lon[same[1]]
    values = rng.normal(8, 5, (sites, 7)).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    exclusion = np.where(rng.random(sites) < 0.5, 0, rng.uniform(0, 600, sites))
    km = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        got, far = inverse_distance(values, lat, lon, k=k, power=power, exclusion_km=exclusion)
    expected, expected_far = brute(values.astype(float), km, k, power, exclusion)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(far, expected_far, rtol=1e-5, atol=1e-5)


def test_usable_is_the_training_targets_and_the_days_before_any_sample():
    panel = world(missing=0)
    days = len(panel.dates)
    got = known_targets(panel, np.array([2 * days + 7, 2 * days + 9, 4 * days + 4]), WINDOW)
    expected = np.zeros(panel.target.shape, bool)
    expected[[2, 4], :4] = True
    expected[[2, 2, 4], [7, 9, 4]] = True
    assert np.array_equal(np.isfinite(got), expected)
    assert np.array_equal(got[expected], panel.target[expected])


SPLITS = [
    splits.RandomSplit(folds=4, validation=0.2),
    splits.SpatialSplit(folds=4, validation=0.2),
    splits.CheckerboardSplit(degrees=10, holdout=0.3, validation=0.2),
]


@given(
    st.integers(0, 10**6),
    st.sampled_from(SPLITS),
    st.sampled_from([None, "test_distance"]),
    st.sampled_from(["noise", "missing", "huge"]),
)
@settings(max_examples=120, deadline=None)
def test_no_target_but_trainings_own_ever_changes_the_feature(seed, split, hide, change):
    panel = world(seed)
    try:
        parts = splits.cut(split.model_copy(update={"seed": seed}), seed % 2, panel, WINDOW)
    except InputError:
        assume(False)
    days = len(panel.dates)
    known = np.zeros(panel.target.shape, bool)
    known.reshape(-1)[parts.train] = True
    known[np.unique(parts.train // days), : WINDOW - 1] = True
    for part in (parts.validation, parts.test, parts.wr):  # what the property must cover
        assert part is None or not known.reshape(-1)[part].any()
    if not isinstance(split, splits.RandomSplit):
        for part in (parts.validation, parts.test, parts.wr):
            assert part is None or not known[part // days].any()
    rng = np.random.default_rng(seed)
    other = {
        "noise": panel.target + rng.normal(0, 50, panel.target.shape),
        "missing": np.full(panel.target.shape, np.nan),
        "huge": np.full(panel.target.shape, 1e30),
    }[change]
    changed = replace(panel, target=np.where(known, panel.target, other).astype(np.float32))
    assert changed.fingerprint != panel.fingerprint
    block = NeighbourSettings(k=3, hide=hide, distance=True)
    assert made(panel, parts, block).tobytes() == made(changed, parts, block).tobytes()


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.kind)
def test_a_site_is_never_its_own_neighbour_but_others_see_it(split):
    panel = world(3)
    parts = splits.cut(split, 0, panel, WINDOW)
    site = parts.train[0] // len(panel.dates)
    target = panel.target.copy()
    target[site] += 100
    before, after = (
        made(p, parts, NeighbourSettings(distance=True)) for p in (panel, replace(panel, target=target))
    )
    assert np.array_equal(before[site], after[site], equal_nan=True)
    assert (np.delete(before, site, 0) != np.delete(after, site, 0))[..., 0].any()
    assert np.array_equal(before[..., 1], after[..., 1], equal_nan=True)


def test_the_channels_and_the_mean_distance():
    panel = replace(world(missing=0, sites=4), lat=np.zeros(4), lon=np.array([0.0, 1, 3, 90]))
    train, test = np.arange(3 * 24)[np.arange(3 * 24) % 24 >= WINDOW - 1], np.array([3])
    rng = np.random.default_rng(0)
    one = feature(panel, train, test, WINDOW, NeighbourSettings(), rng)
    two = feature(panel, train, test, WINDOW, NeighbourSettings(distance=True), rng)
    assert (one.shape, two.shape, two.dtype) == ((4, 24, 1), (4, 24, 2), np.float32)
    assert NeighbourSettings().channels == ("neighbours_pm25",)
    assert NeighbourSettings(distance=True).channels == ("neighbours_pm25", "neighbours_km")
    assert np.array_equal(one[..., 0], two[..., 0])
    np.testing.assert_allclose(
        two[:, :, 1].T, np.log1p([[2 * KM, 1.5 * KM, 2.5 * KM, (90 - 4 / 3) * KM]] * 24)
    )


def test_exclusion_holds_for_every_site_hidden_or_not():
    panel = replace(world(missing=0, sites=4), lat=np.zeros(4), lon=np.array([0.0, 1, 3, 5]))
    train = np.arange(3 * 24)[np.arange(3 * 24) % 24 >= WINDOW - 1]
    for hide in (None, "test_distance"):
        block = NeighbourSettings(exclusion_km=2.5 * KM, distance=True, hide=hide)
        got = feature(panel, train, np.array([3]), WINDOW, block, np.random.default_rng(0))
        # The test site at 5 sees 1 and 0. Its nearest usable one is 4 degrees away: further than any training
        # site has one.
        nearest = [3, NAN, 3, 4.5] if hide is None else [NAN, NAN, NAN, 4.5]
        np.testing.assert_allclose(np.expm1(got[:, 0, 1]) / KM, nearest, rtol=1e-5)


def test_hidden_training_sites_see_what_test_sites_see():
    panel = world(1, sites=60, missing=0)
    parts = splits.cut(splits.CheckerboardSplit(degrees=16), 0, panel, WINDOW)
    train, test = (np.unique(part // 24) for part in (parts.train, parts.test))
    near = {
        hide: np.expm1(made(panel, parts, NeighbourSettings(k=1, hide=hide, distance=True))[:, 0, 1])
        for hide in (None, "test_distance")
    }
    rest = np.setdiff1d(np.arange(60), train)
    assert np.array_equal(near[None][rest], near["test_distance"][rest])  # validation and tests see all
    drawn = nearest_monitor_km(panel.lat, panel.lon, test, train)
    draws = np.random.default_rng(0).choice(drawn, len(train))
    expected = [
        min(
            (
                d
                for o, d in zip(
                    train,
                    great_circle_km(panel.lat[s], panel.lon[s], panel.lat[train], panel.lon[train]),
                    strict=True,
                )
                if o != s and d >= draw
            ),
            default=NAN,
        )
        for s, draw in zip(train, draws, strict=True)
    ]
    np.testing.assert_allclose(near["test_distance"][train], expected, rtol=1e-4)
    assert np.nanmedian(near["test_distance"][train]) > 1.5 * np.median(near[None][train])


def test_hiding_follows_its_seed():
    panel = world(1, sites=60)
    parts = splits.cut(splits.CheckerboardSplit(degrees=16), 0, panel, WINDOW)
    block = NeighbourSettings(hide="test_distance")
    assert made(panel, parts, block, 7).tobytes() == made(panel, parts, block, 7).tobytes()
    assert made(panel, parts, block, 7).tobytes() != made(panel, parts, block, 8).tobytes()


def test_nothing_is_hidden_where_test_sites_train_too():
    panel = world(2)
    parts = splits.cut(splits.RandomSplit(), 0, panel, WINDOW)
    hidden, plain = (made(panel, parts, NeighbourSettings(hide=hide)) for hide in ("test_distance", None))
    assert hidden.tobytes() == plain.tobytes()


def test_nearest_km_by_hand():
    lat, lon = on_the_equator(0, 0, 1, 3)
    every = np.arange(4)
    np.testing.assert_allclose(nearest_monitor_km(lat, lon, every, every) / KM, [0, 0, 1, 2])
    np.testing.assert_allclose(nearest_monitor_km(lat, lon, every, every, 1.5 * KM) / KM, [3, 3, 2, 2])
    assert nearest_monitor_km(lat, lon, np.array([2]), np.array([2])).tolist() == [np.inf]
    assert nearest_monitor_km(lat, lon, np.array([2]), np.array([], int)).tolist() == [np.inf]


@pytest.mark.parametrize("wrong", [{"k": 0}, {"power": -1}, {"exclusion_km": -1}, {"hide": "all"}, {"K": 3}])
def test_settings_have_bounds(wrong):
    with pytest.raises(ValidationError):
        NeighbourSettings(**wrong)
