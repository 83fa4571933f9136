"""References: hand-computed values, equal bytes, and nothing but training targets."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform

import pm25
from pm25 import references, splits, trial
from pm25.cell import Cell, Tuning
from pm25.errors import SettingError
from pm25.geo import great_circle_km
from pm25.neighbours import NeighbourSettings, known_targets
from pm25.panel import Panel
from pm25.references import boosting, monitors
from pm25.settings import REFERENCES, ModelSettings, Reference, TrainSettings
from pm25.splits import (
    AnySplit,
    BlocksSplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    ClusterSplit,
    GroupSplit,
    KNNDMSplit,
    RandomSplit,
    RollingSplit,
    SpatialSplit,
    TemporalSplit,
)
from tests import worlds
from tests.errors import refuses, unwrapped

pytestmark = pytest.mark.usefixtures("one_thread", "few_trees")

NAN = float("nan")
WINDOW = 5
KM = 6371.0088 * np.pi / 180  # a degree of the equator


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """Boosting with a tenth of its trees, which is enough for what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(boosting.SETTINGS, "max_iter", 20)
        yield


def on_the_equator(target: list[list[float]], degrees: list[float]) -> Panel:
    shape = (*np.shape(target), 1)
    return worlds.panel(np.zeros(shape), target, np.zeros(len(degrees)), degrees)


def predicted(name: Reference, known: Panel, *samples: tuple[int, int]) -> list[float]:
    flat = np.array([site * len(known.dates) + day for site, day in samples])
    found = references.predict(name, known, np.empty(0, int), flat, window=1)
    assert found.dtype == np.float32
    return found.tolist()


# --- Hand-computed values ----------------------------------------------------------------------------


def test_idw_by_hand():
    # Twelve monitors east of 0 at 1 to 12 degrees; the farthest three are left out of the nine.
    values = [float(i) for i in range(1, 13)]
    known = on_the_equator([[NAN, NAN, NAN]] + [[v, NAN, v] for v in values], list(range(13)))
    nine = sum(v / v**2 for v in values[:9]) / sum(1 / v**2 for v in values[:9])
    assert predicted("idw", known, (0, 0)) == pytest.approx([nine], rel=1e-6)
    # On day 1 nobody reports: the mean of all, which is that of each day.
    assert predicted("idw", known, (0, 1)) == [6.5]


def test_climatology_by_hand():
    #         day 0  day 1  day 2
    known = on_the_equator(
        [
            [10, 20, NAN],  # deviations from the day means 6 and 16: 4, 4
            [2, 12, NAN],  # -4, -4
            [NAN, NAN, NAN],
        ],
        [0, 1, 2],
    )
    assert predicted("climatology", known, (0, 0), (1, 1), (2, 1)) == [10, 12, 16]
    # The mean of all four is 11 where no monitor reports.
    assert predicted("climatology", known, (0, 2), (2, 2)) == [15, 11]


def test_persistence_by_hand():
    known = on_the_equator([[5, NAN, 7, NAN], [NAN, 9, NAN, NAN]], [0, 1])
    samples = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert predicted("persistence", known, *samples) == [5, 5, 7, 9, 9]
    # Nothing is known before: the mean of the day, and of all where the day has none.
    assert predicted("persistence", known, (1, 0), (0, 0)) == [5, 5]
    assert predicted("persistence", on_the_equator([[NAN, 6], [NAN, 8]], [0, 1]), (0, 0)) == [7]


def test_kriging_solves_the_system_with_its_multiplier():
    """The textbook form: semivariances, bordered with ones, whose weights add up to 1."""
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(30, 45, 12), rng.uniform(-110, -90, 12)
    lat[1], lon[1] = lat[0], lon[0]  # two monitors at one place
    target = np.where(rng.random((12, 6)) < 0.2, NAN, rng.gamma(4, 2, (12, 6)))
    target[11] = NAN
    known = worlds.panel(np.zeros((12, 6, 1)), target, lat, lon)
    km = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    fitted = monitors.fit_variogram(known.target[:11].astype(float), km[:11, :11])
    for day in range(6):
        has = np.flatnonzero(np.isfinite(target[:, day]))
        system = np.ones((len(has) + 1, len(has) + 1))
        system[:-1, :-1] = fitted.semivariance(km[np.ix_(has, has)])
        system[np.diag_indices_from(system)] = 0  # of a measurement and itself
        *weights, _ = np.linalg.solve(system, [*fitted.semivariance(km[has, 11]), 1])
        assert sum(weights) == pytest.approx(1)
        assert predicted("kriging", known, (11, day)) == pytest.approx([weights @ known.target[has, day]])


def test_kriging_by_hand(monkeypatch):
    """One of two monitors has the weight 1/2 + (c1 - c2) / (2 (1 - a)): c to the place, a between them."""
    monkeypatch.setattr(monitors, "fit_variogram", lambda *_: monitors.Variogram(0.0, 1.0, 5 * KM))
    known = on_the_equator([[NAN], [4], [8]], [0, -1, 2])
    a, c1, c2 = np.exp(-3 / 5), np.exp(-1 / 5), np.exp(-2 / 5)
    weight = 0.5 + (c1 - c2) / (2 * (1 - a))
    assert predicted("kriging", known, (0, 0)) == pytest.approx([4 * weight + 8 * (1 - weight)])


def test_kriging_without_a_second_monitor_or_without_a_monitor_is_a_mean():
    known = on_the_equator([[NAN, NAN], [4, NAN], [NAN, NAN]], [0, 1, 2])
    assert predicted("kriging", known, (0, 0), (0, 1), (2, 0)) == [4, 4, 4]


def test_the_variogram_of_a_known_field_is_found():
    rng = np.random.default_rng(1)
    lat, lon = rng.uniform(30, 45, 150), rng.uniform(-110, -90, 150)
    km = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    field = np.linalg.cholesky(9 * np.exp(-km / 300) + 1e-9 * np.eye(150)) @ rng.normal(size=(150, 400))
    target = field + rng.normal(0, 1, field.shape) + rng.normal(0, 20, 400)  # days differ more than places
    found = monitors.fit_variogram(np.where(rng.random(target.shape) < 0.1, NAN, target), km)
    assert found.nugget == pytest.approx(1, abs=0.3)
    assert found.sill == pytest.approx(9, rel=0.15)
    assert found.range_km == pytest.approx(300, rel=0.2)


def test_a_variogram_of_few_pairs():
    assert monitors.fit_variogram(np.array([[1.0]]), np.zeros((1, 1))) == (1, 0, 1)
    assert monitors.fit_variogram(np.ones((3, 2)), squareform([1.0, 2.0, 3.0])) == (1, 0, 1)
    assert monitors.fit_variogram(np.array([[1.0], [3.0]]), squareform([5.0])).nugget > 0


def test_the_inputs_of_boosting_by_hand():
    features = np.array([[[1, NAN], [2, NAN], [6, 5]], [[1, NAN], [1, NAN], [1, NAN]]], np.float32)
    panel = worlds.panel(features, np.zeros((2, 3)), [30, 40], [-100, -90])
    got = boosting.inputs(panel, np.array([2, 5]), 3, place=True)
    expected = [[6, 5, 3, 5, 30, -100], [1, NAN, 1, NAN, 40, -90]]
    np.testing.assert_array_equal(got, np.array(expected, np.float32))
    got = boosting.inputs(panel, np.array([2]), 2, place=False)
    np.testing.assert_array_equal(got, np.array([[6, 5, 4, 5]], np.float32))


def test_boosting_learns_from_channels_and_the_other_from_the_place():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 40, 2)).astype(np.float32)
    lat, lon = worlds.two_halves(40)
    target = 9 + 3 * features[:, :, 0] + 4 * (lon[:, None] > -95) + rng.normal(0, 0.3, (40, 40))
    panel = worlds.panel(features, target, lat, lon)
    rmse = {
        name: trial.run(reference(name, RandomSplit(folds=3)), panel).metrics["test_rmse"]
        for name in ("boosting", "boosting-place")
    }
    assert rmse["boosting-place"] < 1.2 < rmse["boosting"] < 2.8 < target.std()


# --- Equal bytes -------------------------------------------------------------------------------------


def reference(name: str, split: AnySplit, **changes: Any) -> Cell:
    fields = {"fold": 0, "seed": 3, "window": WINDOW, **changes}
    return Cell(variant=name, split=split, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["boosting", "boosting-place"])
def test_boosting_gives_the_same_bytes_on_any_number_of_threads(name, monkeypatch):
    monkeypatch.setitem(references.MOST_WINDOWS, name, 500)  # subsampled
    panel = worlds.synthetic_panel(sites=40, days=60)
    made = [trial.run(reference(name, RandomSplit(), seed=seed), panel) for seed in (3, 3, 4)]
    torch.set_num_threads(3)
    made.append(trial.run(reference(name, RandomSplit()), panel))
    torch.set_num_threads(1)
    bytes_of = [result.predictions["prediction"].tobytes() for result in made]
    assert bytes_of[0] == bytes_of[1] == bytes_of[3] != bytes_of[2]
    assert made[0].counts["n_train"] == 500


# --- What a reference cannot see ---------------------------------------------------------------------

EVERY_SPLIT: list[AnySplit] = [
    RandomSplit(folds=3),
    TemporalSplit(test_from=date(2021, 1, 21)),
    RollingSplit(folds=5),
    SpatialSplit(folds=3, validation=0.2),
    SpatialSplit(folds=3, validation=0.2, buffer_km=20),
    CheckerboardSplit(degrees=30, validation=0.3),
    CheckerboardsSplit(degrees=30, validation=0.3),
    CheckerboardsSplit(degrees=30, validation=0.3, holdout="rotate"),
    BlocksSplit(degrees=20, folds=3),
    ClusterSplit(folds=2, validation=0.3),
    GroupSplit(column="state", values=("a", "b"), validation=0.3),
    KNNDMSplit(folds=3, validation=0.2, max_share=0.9),
]


def test_every_kind_of_split_is_tried():
    assert {type(split) for split in EVERY_SPLIT} == {*get_args(AnySplit)}


def world(seed: int, missing: float) -> Panel:
    rng = np.random.default_rng(seed)
    lat, lon = rng.uniform(26, 49, 24), rng.uniform(-124, -67, 24)
    target = worlds.without(rng.gamma(2, 4, (24, 30)), missing, rng)
    groups = {"state": np.array(list("ab" * 12))}
    return worlds.panel(rng.normal(size=(24, 30, 2)), target, lat, lon, groups=groups)


@pytest.mark.parametrize("split", EVERY_SPLIT, ids=lambda s: s.label)
@given(seed=st.integers(0, 10**6), missing=st.sampled_from([0.0, 0.3]), data=st.data())
@settings(max_examples=8, deadline=None)
def test_only_known_training_targets_change_a_prediction(split, seed, missing, data):
    """All other targets are replaced, so that a prediction that used one of them would move."""
    panel = world(seed, missing)
    allowed = [n for n in REFERENCES if n != "persistence" or split.kind in ("random", "temporal", "rolling")]
    name = data.draw(st.sampled_from(allowed))
    cell = reference(name, split)
    parts = splits.cut(split, 0, panel, WINDOW)
    known = np.isfinite(known_targets(panel, parts.train, WINDOW))
    moved = np.where(known, panel.target, 300 - 7 * panel.target)
    one, other = (trial.run(cell, p) for p in (panel, replace(panel, target=moved)))
    assert np.array_equal(one.predictions["prediction"], other.predictions["prediction"])
    assert np.isfinite(one.predictions["prediction"]).all()
    assert not np.array_equal(one.predictions["truth"], other.predictions["truth"])
    assert one.audit["failed"] == []


@pytest.mark.parametrize("name", REFERENCES)
def test_training_targets_do_change_the_predictions(name):
    # What the test above would miss if nothing were used at all.
    panel = world(0, 0.3)
    cell = reference(name, RandomSplit(folds=3))
    parts = splits.cut(cell.split, 0, panel, WINDOW)
    target = panel.target.copy()
    target.reshape(-1)[parts.train] += np.linspace(0, 9, len(parts.train), dtype=np.float32)
    one, other = (
        trial.run(cell, p).predictions["prediction"] for p in (panel, replace(panel, target=target))
    )
    assert (one != other).mean() > 0.9


# --- The result --------------------------------------------------------------------------------------


def test_a_reference_has_the_samples_of_an_arm():
    panel = world(0, 0.3)
    for split in (CheckerboardSplit(degrees=30, validation=0.3), RandomSplit(folds=3)):
        arm = trial.run(worlds.cell(split=split), panel)
        found = trial.run(reference("idw", split), panel)
        for column in ("part", "site_id", "date", "truth"):
            assert np.array_equal(arm.predictions[column], found.predictions[column])
        assert arm.metrics.keys() == found.metrics.keys()
        assert found.counts == {n: arm.counts[n] for n in arm.counts if not n.endswith(("epochs", "epoch"))}
        assert (found.history, found.weights, found.scaling) == ([], {}, {})
        assert found.seconds > 0
        fitted = {name for name in arm.audit if name.startswith("fitted_")}
        assert found.audit.keys() == arm.audit.keys() - fitted | {"fitted_reference_test"}


def test_protocol_paper_gives_a_reference_its_samples_and_not_its_leaks():
    panel = world(0, 0.0)
    cell = reference("idw", SpatialSplit(folds=3), protocol="paper")
    arm = trial.run(worlds.cell(split=SpatialSplit(folds=3), protocol="paper"), panel)
    found = trial.run(cell, panel)
    assert np.array_equal(found.predictions["truth"], arm.predictions["truth"])
    assert found.audit["fitted_reference_test"] == 0 < arm.audit["fitted_scalers_test"]


def test_a_leaking_channel_is_one_of_the_references_that_use_channels():
    panel = replace(world(0, 0.0), channels=("knnidw_pm25", "b"))
    failed = {
        name: trial.run(reference(name, SpatialSplit(folds=3), protocol="paper"), panel).audit["failed"]
        for name in ("idw", "boosting")
    }
    assert "channel_knnidw_pm25" in failed["boosting"]
    assert "channel_knnidw_pm25" not in failed["idw"]


# --- The cell ----------------------------------------------------------------------------------------


def test_the_key_holds_nothing_of_a_network(monkeypatch):
    cell = reference("idw", SpatialSplit())
    assert {*cell.resolved()} == {"variant", "split", "fold", "seed", "window", "protocol"}
    before = cell.key("d" * 32)
    assert before == "9a551303c0c33a1f0255"
    for name in ("NUMERICS", "HUBER_NUMERICS"):
        monkeypatch.setattr(pm25, name, 99)
    assert cell.key("d" * 32) == before
    monkeypatch.setattr(pm25, "REFERENCE_NUMERICS", 2)
    assert cell.key("d" * 32) != before


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_a_cell_comes_back_from_its_record_and_its_worker(name, protocol):
    cell = reference(name, RandomSplit(), protocol=protocol)
    assert Cell.model_validate(json.loads(json.dumps(cell.resolved()))) == cell
    assert Cell.model_validate_json(cell.model_dump_json()) == cell
    assert cell.is_reference
    assert cell.label == f"{name} random fold 0 seed 3"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ModelSettings(width=8)),
        ("train", TrainSettings(patience=1)),
        ("neighbours", NeighbourSettings()),
        ("tuning", Tuning()),
        ("fusion", "concat"),
        ("head", "matched"),
    ],
)
def test_what_a_reference_does_not_use_is_refused(field, value):
    with refuses(None, field, "idw", kind=SettingError), unwrapped():
        reference("idw", SpatialSplit(), **{field: value})


def test_persistence_needs_earlier_days_of_the_test_sites():
    for split in EVERY_SPLIT:
        if split.kind in ("random", "temporal", "rolling"):
            reference("persistence", split)
        else:
            with refuses(None, "variant", "persistence", split.label, kind=SettingError), unwrapped():
                reference("persistence", split)


def test_an_arm_is_no_reference():
    with pytest.raises(ValueError, match="none"):
        trial.run_reference(worlds.cell(), world(0, 0.0))
