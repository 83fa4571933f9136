"""Maps have the predictions of `Predictor.predict`, their mean and spread, and the memory of a few days."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pm25 import encoders, trial
from pm25.applicability import Applicability, window_predictors
from pm25.grids import predicted
from pm25.grids.cells import Block
from pm25.grids.predicted import Area, PredictedDay, RangeNotices, predict_days
from pm25.panel import Panel
from pm25.predictor import Predictor
from tests import worlds
from tests.errors import refuses

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW, CELLS, DAYS = 5, 40, 30
START = np.datetime64("2021-01-01")


class Toy:
    """Random covariates of some cells, which note the days that are read."""

    name, origin, channels = "grid.parquet", "random covariates", ("a", "b")

    def __init__(self, seed: int = 1, far: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.lat, self.lon = rng.uniform(30, 45, CELLS), rng.uniform(-120, -75, CELLS)
        self.days = START + np.arange(DAYS)
        self.features = rng.normal(size=(CELLS, DAYS, 2)).astype(np.float32)
        self.truth = rng.gamma(2, 4, (CELLS, DAYS)).astype(np.float32)
        self.far = far
        self.asked: list[tuple[int, int]] = []

    def read(self, first: np.datetime64, last: np.datetime64) -> Block:
        begin, end = ((day - START).astype(int) for day in (first, last))
        self.asked.append((begin, end))
        here = slice(begin, end + 1)
        return Block(self.features[:, here], self.truth[:, here])


@pytest.fixture(scope="module")
def panel() -> Panel:
    rng = np.random.default_rng(0)
    return worlds.panel(rng.normal(size=(12, DAYS, 2)), rng.normal(9, 3, (12, DAYS)), *worlds.two_halves(12))


def models(panel: Panel, variant: str, fusion: str | None, folds: int) -> list[Predictor]:
    source = None if variant != "geoclip" else encoders.source("geoclip")
    made = []
    for fold in range(folds):
        cell = worlds.cell(variant, fusion, fold=fold)
        result = trial.run(cell, panel)
        made.append(Predictor(cell, result.weights, result.scaling, source))
    return made


@pytest.fixture(scope="module")
def three(panel: Panel) -> list[Predictor]:
    return models(panel, "latlon", None, 3)


def area(panel: Panel, one: Predictor, with_place: bool = True) -> Area:
    flat = trial.training_samples(one.cell, panel)
    _, windows = trial.raw_windows(one.cell, panel, flat)
    site = flat // DAYS
    place = np.stack([panel.lat[site], panel.lon[site]], axis=1) if with_place else None
    fitted = Applicability.fit(window_predictors(windows, missing=one.means, place=place))
    return Area(fitted, one.means, with_place, False)


def mapped(three: list[Predictor], panel: Panel, toy: Toy, first: int, last: int) -> list[PredictedDay]:
    return [*predict_days(three, area(panel, three[0]), toy, START + first, START + last)]


def test_mean_and_spread_by_hand(three: list[Predictor], panel: Panel) -> None:
    toy = Toy()
    days = mapped(three, panel, toy, 4, 6)
    assert [day.date for day in days] == [*(START + np.arange(4, 7))]
    for at, day in enumerate(days):
        windows = toy.features[:, at : at + WINDOW]
        one, two, other = (model.predict(windows, toy.lat, toy.lon).astype(float) for model in three)
        mean = (one + two + other) / 3
        spread = np.sqrt(((one - mean) ** 2 + (two - mean) ** 2 + (other - mean) ** 2) / 2)
        np.testing.assert_allclose(day.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(day.spread, spread, rtol=1e-4)
        np.testing.assert_array_equal(day.truth, toy.truth[:, 4 + at])


def test_one_model_is_its_predictions_bit_for_bit(three: list[Predictor], panel: Panel) -> None:
    toy = Toy()
    (day,) = mapped(three[:1], panel, toy, 9, 9)
    np.testing.assert_array_equal(day.mean, three[0].predict(toy.features[:, 5:10], toy.lat, toy.lon))
    assert np.isnan(day.spread).all()


def test_an_encoder_embeds_the_cells_once(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = models(panel, "geoclip", "hadamard", 1)
    toy, calls = Toy(), []
    own = Predictor.embed
    monkeypatch.setattr(Predictor, "embed", lambda self, *places: calls.append(1) or own(self, *places))
    days = mapped([one], panel, toy, 4, 6)
    assert len(calls) == 1
    monkeypatch.undo()
    for at, day in enumerate(days):
        wanted = one.predict(toy.features[:, at : at + WINDOW], toy.lat, toy.lon)
        np.testing.assert_array_equal(day.mean, wanted)


def test_cells_in_parts_are_the_same_cells(
    three: list[Predictor], panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy()
    (together,) = mapped(three, panel, toy, 8, 8)
    monkeypatch.setattr(predicted, "PART", 7)
    (parts,) = mapped(three, panel, toy, 8, 8)
    np.testing.assert_allclose(parts.mean, together.mean, rtol=1e-5)
    np.testing.assert_allclose(parts.dissimilarity, together.dissimilarity, rtol=1e-5)


def test_the_area_by_hand(three: list[Predictor], panel: Panel) -> None:
    """A cell far from the training data in one channel is outside, and one that is far away by itself."""
    toy = Toy(far=np.arange(CELLS) == 7)
    toy.features[3] += 50
    found = area(panel, three[0])
    (day,) = predict_days(three, found, toy, START + 4, START + 4)
    place = np.stack([toy.lat, toy.lon], axis=1)
    wanted = found.fitted.dissimilarity(window_predictors(toy.features[:, :5], place=place))
    np.testing.assert_allclose(day.dissimilarity, wanted, rtol=1e-6)
    assert day.dissimilarity[3] > 10 * np.median(day.dissimilarity)
    inside = wanted <= found.fitted.threshold
    inside[7] = False
    np.testing.assert_array_equal(day.inside, inside)
    assert not day.inside[3]


def test_a_cell_without_covariates_has_no_prediction(three: list[Predictor], panel: Panel) -> None:
    toy = Toy()
    toy.features[5] = np.nan
    toy.features[6, :, 0] = np.nan
    (day,) = mapped(three, panel, toy, 4, 4)
    assert np.flatnonzero(~day.predicted).tolist() == [5]
    assert not day.inside[5]
    assert np.isnan([day.mean[5], day.spread[5], day.dissimilarity[5]]).all()


def test_a_cell_with_a_missing_day_is_outside(three: list[Predictor], panel: Panel) -> None:
    """Training means in place of whole days would make its window look like the training samples."""
    toy = Toy()
    toy.features[5, 3] = np.nan  # an earlier day of the window
    toy.features[6, 4] = np.nan  # the day itself
    toy.features[7, 3, 0] = np.nan  # one channel alone
    (day,) = mapped(three, panel, toy, 4, 4)
    assert np.flatnonzero(~day.predicted).tolist() == [6]
    assert np.flatnonzero(day.gaps).tolist() == [5]
    assert not day.inside[[5, 6]].any()
    assert np.isfinite(day.mean[5])


def test_days_are_read_a_few_at_a_time(
    three: list[Predictor], panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day is handed out before the days of the next block are read, and no block is longer."""
    monkeypatch.setattr(predicted, "MOST_BLOCK_DAYS", 4)
    toy = Toy()
    stream: Iterator[PredictedDay] = predict_days(three, area(panel, three[0]), toy, START + 4, START + 13)
    reads = []
    for _ in stream:
        reads.append(len(toy.asked))
    assert reads == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert toy.asked == [(0, 7), (4, 11), (8, 13)]
    # Of many cells, a block has fewer days: here two windows of five days would be too many.
    monkeypatch.setattr(predicted, "MOST_BLOCK", CELLS * 2 * (WINDOW + 1))
    toy = Toy()
    one_by_one = [*predict_days(three, area(panel, three[0]), toy, START + 4, START + 7)]
    assert toy.asked == [(0, 5), (2, 7)]
    in_one = mapped(three, panel, Toy(), 4, 7)
    for a, b in zip(one_by_one, in_one, strict=True):
        np.testing.assert_array_equal(a.mean, b.mean)


def test_days_without_their_window_are_refused(three: list[Predictor], panel: Panel) -> None:
    toy = Toy()
    with refuses("grid.parquet", "date", "2020-12-31"):
        mapped(three, panel, toy, 3, 6)
    with refuses("grid.parquet", "date", "2021-01-31 is missing"):
        mapped(three, panel, toy, 20, 30)
    assert toy.asked == []


def noticed(values: Any, training: tuple[float, float]) -> list[str]:
    found: list[str] = []
    features = np.broadcast_to(np.asarray(values, np.float32), (3, len(values)))[:, :, None]
    source: Any = SimpleNamespace(
        name="grid.parquet", origin="", channels=("a",), lat=None, lon=None, days=None, far=None
    )
    source.read = lambda first, last: Block(features, None)
    covariates = RangeNotices(source, {"a": training}, found.append)
    for _ in range(2):
        assert covariates.read(START, START).features is features
    return found


def test_a_channel_without_any_value_is_reported_once() -> None:
    (line,) = noticed([np.nan, np.nan], (0, 1))
    assert "grid.parquet: a: no value on " in line


def test_another_range_is_reported_once_with_both_ranges() -> None:
    (line,) = noticed([253, 310], (-20, 42))  # kelvin on the grid, degrees Celsius at the monitors
    assert all(text in line for text in ("grid.parquet: a: ", "253 to 310", "-20 to 42"))
    assert len(noticed([0.05, 0.98], (8, 100))) == 1  # a fraction, and per cent
    assert len(noticed([0, 4100], (-10, 2300))) == 1
    assert noticed([-24, 45], (-20, 42)) == []  # a little beyond is not another unit
    assert noticed([0, 0], (0, 3)) == []  # a channel may be constant, such as smoke in winter
    assert noticed([7, 7], (0, 3)) != []
