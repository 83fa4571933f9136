"""The network is fed what a plain slice of the panel holds, scaled by training windows and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pm25.panel import Panel
from pm25.scaling import Scaler
from pm25.windows import Inputs, Windows
from tests import worlds
from tests.errors import refuses

SITES, DAYS, WINDOW = 5, 12, 4
CPU = torch.device("cpu")


def world(seed: int = 0, missing: float = 0.2) -> Panel:
    rng = np.random.default_rng(seed)
    features = rng.normal([3, -50, 0.01], [1, 20, 0.001], (SITES, DAYS, 3)).astype(np.float32)
    features = worlds.without(features, missing, rng)
    target = rng.gamma(2, 4, (SITES, DAYS))
    lat, lon = rng.uniform(26, 49, SITES), rng.uniform(-124, -67, SITES)
    return worlds.panel(features, target, lat, lon, start=worlds.EPOCH)


def flat(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array([site * DAYS + day for site, day in pairs])


def window_of(panel: Panel, index: int) -> np.ndarray:
    """The raw window (T, C) of a sample, by plain slicing."""
    site, day = divmod(int(index), DAYS)
    return panel.features[site, day - WINDOW + 1 : day + 1]


def inputs(
    panel: Panel, train: np.ndarray, variant: str = "none", embedding: np.ndarray | None = None
) -> Inputs:
    return Inputs(panel, train, WINDOW, variant, CPU, embedding=embedding)


def batch(made: Inputs, index: np.ndarray) -> np.ndarray:
    return made.batch(torch.from_numpy(index))[0].numpy()


ALL = np.array([s * DAYS + d for s in range(SITES) for d in range(WINDOW - 1, DAYS)])
TRAIN = flat((0, 3), (0, 5), (0, 6), (1, 11), (2, 3), (2, 4))

training_sets = st.lists(st.sampled_from(ALL.tolist()), min_size=3, max_size=20, unique=True).map(
    lambda chosen: np.sort(np.array(chosen))
)


@given(st.integers(0, 1000), training_sets)
@settings(max_examples=40, deadline=None)
def test_a_batch_is_the_slice_of_the_panel_scaled_by_the_training_windows(seed, train):
    panel = world(seed, missing=0.1)
    gathered = np.concatenate([window_of(panel, i) for i in train]).astype(np.float64)  # with all repeats
    assume(not np.isnan(gathered).all(axis=0).any())
    mean, std = np.nanmean(gathered, axis=0), np.nanstd(gathered, axis=0)
    std[std <= 1e-6 * np.maximum(1, np.abs(mean))] = 1
    got = batch(inputs(panel, train), ALL)
    expected = np.nan_to_num((np.stack([window_of(panel, i) for i in ALL]) - mean) / std)
    assert got.dtype == np.float32
    assert got.shape == (len(ALL), WINDOW, 3)
    np.testing.assert_allclose(
        got, expected, rtol=2e-4, atol=2e-4
    )  # float32 of a value of 50 at a deviation of 20


def test_a_day_counts_once_for_every_training_window_that_holds_it():
    panel = world(missing=0)
    panel.features[:] = 0
    panel.features[0, 3] = 8  # in three windows of the four: those of days 3, 5 and 6
    got = batch(inputs(panel, flat((0, 3), (0, 5), (0, 6), (1, 11))), flat((0, 3)))[0, :, 0]
    # 16 values, of which 3 are 8: mean 1.5, variance 3/16 * 64 - 1.5^2 = 9.75.
    np.testing.assert_allclose(got, np.array([-1.5, -1.5, -1.5, 6.5]) / np.sqrt(9.75), rtol=1e-6)


@given(st.integers(0, 1000), training_sets, st.floats(-1e6, 1e6, width=32))
@settings(max_examples=40, deadline=None)
def test_nothing_outside_the_training_windows_moves_the_scaler(seed, train, value):
    panel, changed = world(seed), world(seed)
    used = np.zeros((SITES, DAYS), bool)
    for index in train:
        site, day = divmod(int(index), DAYS)
        used[site, day - WINDOW + 1 : day + 1] = True
    changed.features[~used] = value
    changed.target[:] = value
    assume(np.isfinite(panel.features[used]).any(axis=0).all())
    assert np.array_equal(batch(inputs(panel, train), train), batch(inputs(changed, train), train))


def test_a_value_inside_the_training_windows_moves_the_scaler():
    panel, changed = world(), world()
    changed.features[1, 9, 0] += 1  # in the window of (1, 11)
    other = flat((3, 5))
    before, after = batch(inputs(panel, TRAIN), other), batch(inputs(changed, TRAIN), other)
    assert (before[:, :, 0] != after[:, :, 0]).any()
    assert np.array_equal(before[:, :, 1:], after[:, :, 1:])


def test_a_missing_value_becomes_the_training_mean():
    panel = world()
    panel.features[3, 4:6, 1] = np.nan
    got = batch(inputs(panel, TRAIN), flat((3, 6)))[0, :, 1]
    assert got[1] == got[2] == 0
    assert np.isfinite(batch(inputs(panel, TRAIN), ALL)).all()


@given(st.floats(-180, 180), st.lists(st.integers(0, 21), min_size=2, max_size=50))
@settings(max_examples=50, deadline=None)
@example(40.1, [3, 7, 11])
def test_a_constant_channel_keeps_its_unit(value, weight):
    # Degrees are float64: their mean stands an ulp beside them, and a deviation of 1e-14 is none.
    assume(any(weight))
    values = np.full((len(weight), 1), value)
    scaler = Scaler.fit(values, np.array(weight))
    assert scaler.std.tolist() == [1.0]
    assert np.abs(scaler.transform(values)).max() <= 1e-6 * max(1, abs(value))


def test_a_channel_without_a_value_in_training_is_refused():
    panel = world()
    panel.features[:, :, 1] = np.nan
    panel.features[4, 0, 1] = 7.0  # known, but in no training window
    with refuses("toy", "b", "data.channels"):
        inputs(panel, TRAIN)


def test_scaler_by_hand():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [7.0, 9.0], [np.inf, 1.0]])
    scaler = Scaler.fit(values, np.array([3, 1, 0, 0]))
    assert scaler.mean.tolist() == [1.5, 5.0]
    assert scaler.std.tolist() == [np.sqrt(0.75), 1.0]  # one value has no deviation


def test_latlon_are_two_more_channels_scaled_over_training_samples():
    panel = world(missing=0)
    made = inputs(panel, TRAIN, "latlon")
    assert made.width == 5
    got = batch(made, ALL)
    assert np.array_equal(got[:, :, :3], batch(inputs(panel, TRAIN), ALL))
    samples = TRAIN // DAYS  # each sample counts its site once
    for index, degrees in ((3, panel.lat), (4, panel.lon)):
        expected = (degrees - degrees[samples].mean()) / degrees[samples].std()
        expected = np.repeat(expected[ALL // DAYS][:, None], WINDOW, axis=1)
        np.testing.assert_allclose(got[:, :, index], expected, rtol=1e-4, atol=1e-4)


def test_sincos_are_four_more_channels():
    panel = world(missing=0)
    made = inputs(panel, TRAIN, "sincos")
    assert made.width == 7
    got = batch(made, ALL)[:, 0, 3:]
    lat, lon = np.radians(panel.lat), np.radians(panel.lon)
    raw = np.stack([np.sin(lat), np.cos(lat), np.sin(lon), np.cos(lon)], axis=1)
    samples = TRAIN // DAYS
    expected = (raw - raw[samples].mean(axis=0)) / raw[samples].std(axis=0)
    np.testing.assert_allclose(got, expected[ALL // DAYS], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["latlon", "sincos"])
def test_places_without_a_training_sample_move_no_place_channel(variant):
    panel = world()
    lat, lon = np.append(panel.lat[:3], [-89.0, 89.0]), np.append(panel.lon[:3], [170.0, -170.0])
    moved = replace(panel, lat=lat, lon=lon)
    for one, other in zip(
        *(inputs(p, TRAIN, variant).batch(torch.from_numpy(TRAIN)) for p in (panel, moved)), strict=True
    ):
        assert one is other is None or torch.equal(one, other)


def test_the_embedding_of_a_sample_is_its_sites_row():
    panel = world()
    embedding = np.arange(SITES * 2, dtype=np.float32).reshape(SITES, 2)
    made = inputs(panel, TRAIN, "geoclip", embedding)
    assert (made.width, made.embedding_dim) == (3, 2)
    window, got = made.batch(torch.from_numpy(flat((4, 5), (0, 3), (4, 11))))
    assert window.shape == (3, WINDOW, 3)
    assert got.tolist() == [[8, 9], [0, 1], [8, 9]]  # as the encoder gave it: not scaled
    assert inputs(panel, TRAIN).batch(torch.from_numpy(TRAIN))[1] is None


def test_an_embedding_that_changes_with_the_month_is_that_of_the_samples_day():
    panel = replace(world(), dates=np.datetime64("2020-12-26") + np.arange(DAYS))  # January from day 6 on
    embedding = np.arange(SITES * 12 * 2, dtype=np.float32).reshape(SITES, 12, 2)
    made = inputs(panel, TRAIN, "table", embedding)
    assert (made.width, made.embedding_dim) == (3, 2)
    # The window of (4, 6) begins in December; the day of the target decides.
    _, got = made.batch(torch.from_numpy(flat((4, 5), (4, 6), (0, 11))))
    assert got.tolist() == [embedding[4, 11].tolist(), embedding[4, 0].tolist(), embedding[0, 0].tolist()]


def test_every_month_of_a_year_has_its_vector():
    dates = np.datetime64("1969-11-15") + 31 * np.arange(DAYS)  # one day of each month, before 1970 too
    panel = replace(world(), dates=dates)
    embedding = np.tile(np.arange(12, dtype=np.float32)[:, None], (SITES, 1, 1))
    made = inputs(panel, TRAIN, "table", embedding)
    _, got = made.batch(torch.from_numpy(flat(*((2, day) for day in range(WINDOW - 1, DAYS)))))
    expected = [int(str(day)[5:7]) - 1 for day in dates[WINDOW - 1 :]]
    assert got[:, 0].tolist() == expected


def test_further_channels_stand_after_the_panels_and_are_scaled_like_them():
    panel = world(missing=0)
    whole = batch(inputs(panel, TRAIN, "latlon"), ALL)
    first = replace(panel, features=panel.features[:, :, :1], channels=("a",))
    more = {"b": panel.features[:, :, 1], "c": panel.features[:, :, 2]}
    made = Inputs(first, TRAIN, WINDOW, "latlon", CPU, more=more)
    assert made.channels == ("a", "b", "c")
    assert made.width == 5
    assert np.array_equal(batch(made, ALL), whole)
    with refuses("toy", "c", "neighbours.exclusion_km"):
        Inputs(first, TRAIN, WINDOW, "none", CPU, more=more | {"c": np.full((SITES, DAYS), np.nan)})


def test_what_can_be_permuted_is_what_the_network_is_fed():
    embedding = np.zeros((SITES, 2), np.float32)
    assert inputs(world(), TRAIN).permutable == ["a", "b", "c"]
    assert inputs(world(), TRAIN, "sincos").permutable == ["a", "b", "c", "place"]
    assert inputs(world(), TRAIN, "geoclip", embedding).permutable == ["a", "b", "c", "embedding"]


def test_windows_hand_out_their_own_targets_and_no_other():
    panel = world(missing=0)
    made = inputs(panel, TRAIN)
    own = flat((1, 5), (3, 7), (4, 11))
    windows = Windows(made, own, np.array([1.5, -2.0, 0.25]))
    assert len(windows) == 3
    window, embedding, target = windows.batch(torch.tensor([2, 0]))
    assert target.tolist() == [0.25, 1.5]
    assert target.dtype == torch.float32
    assert embedding is None
    assert np.array_equal(window.numpy(), batch(made, own[[2, 0]]))
    with pytest.raises(IndexError):
        windows.batch(torch.tensor([3]))


def test_inputs_and_windows_hold_no_other_target():
    panel = world(missing=0)
    panel.target[:] = 123456.0
    windows = Windows(inputs(panel, TRAIN), TRAIN, np.zeros(len(TRAIN)))
    held = [*vars(windows).values(), *vars(windows._inputs).values()]
    assert not any(isinstance(value, Panel) for value in held)
    for tensor in (v for v in held if isinstance(v, torch.Tensor)):
        assert not (tensor == 123456).any()
