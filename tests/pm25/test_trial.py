"""A trial is a pure function: same bytes again, blind to the test set, and able to learn what is there."""

import io
import random
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

import pm25
from pm25 import encoders, splits, trial
from pm25.cell import Cell, Tuning
from pm25.fit import Diverged, Epoch, Fit, loss_function, predict
from pm25.leakage import audit, distance_to_training_km
from pm25.metrics import SCORES, detailed, scores
from pm25.model import build, initialise
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.settings import Fusion, ModelSettings, TrainSettings
from pm25.splits import (
    BlocksSplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    GroupSplit,
    RandomSplit,
    RollingSplit,
    SpatialSplit,
)
from pm25.trial import Result, Training
from pm25.windows import Inputs, Windows
from tests import worlds
from tests.errors import refuses
from tests.worlds import cell

pytestmark = pytest.mark.usefixtures("one_thread")

SITES, DAYS, WINDOW = 12, 30, 5
SPLITS = [
    RandomSplit(folds=3),
    SpatialSplit(folds=3, validation=0.2),
    CheckerboardSplit(degrees=30, validation=0.3),
]
EMBEDDING = np.eye(SITES, dtype=np.float32)


def world(target: str = "noise", seed: int = 0) -> Panel:
    """Six sites in each half of the country; no value is missing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(SITES, DAYS, 2)).astype(np.float32)
    lat, lon = worlds.two_halves(SITES)
    made = {
        "noise": 9 + rng.normal(0, 3, (SITES, DAYS)),
        "channel": 9 + 3 * features[:, :, 0] + rng.normal(0, 0.3, (SITES, DAYS)),
        "site": np.repeat(9 + 0.5 * (lat[:, None] - 37) + 0.1 * (lon[:, None] + 95), DAYS, axis=1),
    }[target]
    return worlds.panel(features, made, lat, lon)


def bound(made: Cell) -> dict[str, Any]:
    """What a training of the cell is told beside it."""
    return {"embedding": EMBEDDING} if made.encoder else {}


def same_weights(one: Result, other: Result) -> bool:
    assert one.weights.keys() == other.weights.keys()
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def same_bytes(one: Result, other: Result) -> bool:
    assert one.predictions.keys() == other.predictions.keys()
    predicted = all(one.predictions[n].tobytes() == other.predictions[n].tobytes() for n in one.predictions)
    told = [(r.metrics, r.counts, r.history, r.audit) for r in (one, other)]
    return predicted and same_weights(one, other) and told[0] == told[1]


# --- Determinism -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.kind)
@pytest.mark.parametrize(("variant", "fusion"), [("none", None), ("geoclip", "concat")])
def test_the_same_cell_gives_the_same_bytes(split, variant, fusion):
    embedding = EMBEDDING if fusion else None
    one = trial.run(cell(variant, fusion, split=split), world(), embedding=embedding)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        other = trial.run(cell(variant, fusion, split=split), world(), embedding=embedding)
    assert same_bytes(one, other)


@pytest.mark.parametrize(("variant", "fusion"), [("none", None), ("geoclip", "hadamard")])
def test_global_random_states_are_left_as_they_were_found(variant, fusion):
    def state() -> tuple[bytes, str, object]:
        numpy_state = repr(np.random.get_state())  # noqa: NPY002
        return torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()

    before = state()
    trial.run(cell(variant, fusion), world())
    assert state() == before


def test_another_seed_is_another_training():
    one, other = (trial.run(cell(seed=seed), world()) for seed in (3, 4))
    assert not same_weights(one, other)
    assert np.array_equal(one.predictions["truth"], other.predictions["truth"])  # of the same split
    assert one.audit == other.audit


def test_dropout_is_drawn_anew_for_each_seed_only():
    # With one initialisation and order the seeds could differ in dropout alone; it must not be global.
    wet = ModelSettings(width=4, depth=2, attention_units=4, dropout=0.5)
    one, other = (trial.run(cell(model=wet), world()) for _ in range(2))
    dry = trial.run(cell(model=wet.model_copy(update={"dropout": 0.0})), world())
    assert same_bytes(one, other)
    assert not same_weights(one, dry)


@pytest.mark.parametrize(("variant", "fusion", "head"), [("none", None, None), ("latlon", None, None),
                                                         ("none", "concat", "matched")])  # fmt: skip
def test_an_embedding_goes_with_an_encoder_only(variant, fusion, head):
    with pytest.raises(ValueError, match=variant):
        trial.run(cell(variant, fusion, head=head), world(), embedding=EMBEDDING)


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_the_matched_head_is_an_encoder_arm_that_cannot_tell_places_apart(fusion):
    constant = np.ones((SITES, trial.MATCHED_DIM), np.float32)
    matched = trial.run(cell("none", fusion, head="matched"), world())
    assert same_bytes(matched, trial.run(cell("geoclip", fusion), world(), embedding=constant))
    knows = constant.copy()
    knows[:, :SITES] = EMBEDDING
    assert not same_weights(matched, trial.run(cell("geoclip", fusion), world(), embedding=knows))


def test_an_embedding_by_month_is_that_of_the_samples_day():
    panel = replace(world(), dates=np.datetime64("2021-01-15") + np.arange(DAYS))  # to 13 February
    rng = np.random.default_rng(1)
    yearly = rng.normal(size=(SITES, 4)).astype(np.float32)
    monthly = np.repeat(yearly[:, None], 12, axis=1)
    made = cell("table", "concat")
    one = trial.run(made, panel, embedding=yearly)
    assert same_bytes(one, trial.run(made, panel, embedding=monthly))
    monthly[:, 2:] = 9  # months that no sample has
    assert same_bytes(one, trial.run(made, panel, embedding=monthly))

    monthly[:, 1] = rng.normal(size=(SITES, 4))
    ready = trial.prepare(made, panel, embedding=monthly)
    ready.model.load_state_dict(one.weights)
    moved = ready.predict(ready.indices.test) != one.predictions["prediction"]
    february = one.predictions["date"] >= np.datetime64("2021-02-01")
    assert 0 < february.sum() < len(february)
    assert not moved[~february].any()
    assert moved[february].mean() > 0.7  # the ReLUs of a net this small are at rest for some sites


def test_an_embedding_handed_in_is_the_encoders_own():
    panel = world()
    own = trial.run(cell("geoclip", "hadamard"), panel)
    given = encoders.load("geoclip").embed(panel.lat, panel.lon)
    assert same_bytes(own, trial.run(cell("geoclip", "hadamard"), panel, embedding=given))
    other = trial.run(cell("geoclip", "hadamard"), panel, embedding=given[::-1].copy())
    assert not same_weights(own, other)


GOLDEN_RMSE = {
    ("none", None, "random", "squared"): 2.2440972,
    ("latlon", None, "spatial", "squared"): 2.9277905,
    ("geoclip", "hadamard", "checkerboard", "squared"): 3.0309671,
    ("none", None, "random", "absolute"): 2.2734135,
    # Numbers of release 0.1.0, which had no other loss. They do not move with NUMERICS.
    ("none", None, "random", "huber"): 2.3540696,
    ("latlon", None, "spatial", "huber"): 2.9550856,
    ("sincos", None, "random", "huber"): 2.5610545,
    ("geoclip", "hadamard", "checkerboard", "huber"): 3.0148458,
    ("geoclip", "concat", "random", "huber"): 2.5380202,
}
"""Test RMSE of the tiny cells on the tiny panel, made with NUMERICS = 2 and HUBER_NUMERICS = 1 of pm25."""


@pytest.mark.parametrize(("variant", "fusion", "kind", "loss"), GOLDEN_RMSE)
def test_golden(variant, fusion, kind, loss):
    (split,) = (s for s in SPLITS if s.kind == kind)
    made = cell(variant, fusion, split=split, train={"loss": loss})
    got = trial.run(made, world("channel"), embedding=EMBEDDING if fusion else None)
    # Processors differ in the last digits.
    assert got.metrics["test_rmse"] == pytest.approx(GOLDEN_RMSE[variant, fusion, kind, loss], rel=1e-5), (
        "the numbers of a trial have moved; if that is meant, raise pm25.NUMERICS, so that no stored result "
        f"passes for a new one, and store {got.metrics['test_rmse']:.7f} here"
    )
    assert (pm25.NUMERICS, pm25.HUBER_NUMERICS) == (2, 1), "NUMERICS was raised: say so here"


# --- What training cannot see ------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.kind)
@pytest.mark.parametrize(("variant", "fusion"), [("latlon", None), ("geoclip", "hadamard")])
def test_training_cannot_see_test_targets(split, variant, fusion):
    panel = world()
    parts = splits.cut(split, 0, panel, WINDOW)
    hidden = parts.test if parts.wr is None else np.concatenate([parts.test, parts.wr])
    target = panel.target.copy()
    target.reshape(-1)[hidden] = 500 - 7 * target.reshape(-1)[hidden]
    embedding = EMBEDDING if fusion else None
    one, other = (
        trial.run(cell(variant, fusion, split=split), p, embedding=embedding)
        for p in (panel, replace(panel, target=target))
    )
    assert same_weights(one, other)
    assert one.history == other.history
    assert np.array_equal(one.predictions["prediction"], other.predictions["prediction"])
    seen = {name for name in one.metrics if one.metrics[name] == other.metrics.get(name)}
    # How many targets are 1 ug/m3 or more may agree: it says nothing of a training.
    assert seen - {"test_n_mape", "wr_n_mape"} == {"val_rmse", "val_r2", "val_mae", "val_mbe"}


@pytest.mark.parametrize("split", SPLITS[1:], ids=lambda s: s.kind)
def test_training_cannot_see_held_out_sites(split):
    panel = world()
    parts = splits.cut(split, 0, panel, WINDOW)
    hidden = np.unique(parts.test // DAYS)
    features, lat = panel.features.copy(), panel.lat.copy()
    features[hidden] = 100 - 3 * features[hidden]
    lat[hidden] += 0.5
    moved = replace(panel, features=features, lat=lat)
    one, other = (trial.run(cell("latlon", split=split), p) for p in (panel, moved))
    assert same_weights(one, other)
    assert not np.array_equal(one.predictions["prediction"], other.predictions["prediction"])


def test_training_does_see_training_and_validation_targets():
    # What the tests above would miss if nothing were seen at all.
    panel = world()
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    base = trial.run(cell(), panel)
    for part in (parts.train, parts.validation):
        target = panel.target.copy()
        target.reshape(-1)[part[0]] += 50
        assert trial.run(cell(), replace(panel, target=target)).history != base.history


# --- The loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.125 + 4.5) / 2),
        ({"loss": "squared"}, (0.125 + 4.5) / 2),
        ({"loss": "huber"}, (0.125 + 2.5) / 2),
        ({"huber_delta": 2.0}, (0.125 + 4.0) / 2),
        ({"loss": "absolute"}, (0.5 + 3.0) / 2),
    ],
    ids=str,
)
def test_losses_by_hand(settings, expected):
    # Errors of .5 and -3. Huber beyond delta: delta * (|error| - delta / 2).
    predicted, target = torch.tensor([2.5, 1.0]), torch.tensor([2.0, 4.0])
    assert float(loss_function(TrainSettings(**settings))(predicted, target)) == pytest.approx(expected)


def test_squared_is_the_huber_loss_without_its_linear_part():
    # Clipping included, so that the two losses differ in nothing but large errors.
    squared, huber = (trial.run(cell(train=train), world()) for train in ({}, {"huber_delta": 1e6}))
    assert same_bytes(squared, huber)
    assert not same_weights(squared, trial.run(cell(train={"loss": "huber"}), world()))


@pytest.mark.parametrize(
    ("loss", "low", "high"), [("squared", 11, 17), ("huber", 5.5, 11), ("absolute", 4, 6)]
)
def test_a_loss_aims_at_its_own_centre(loss, low, high):
    """A model without information predicts the mean (14), a value between, or the median (5)."""
    rng = np.random.default_rng(0)
    panel = world()
    target = np.where(rng.random(panel.target.shape) < 0.1, 95, 5).astype(np.float32)
    panel = replace(panel, features=np.zeros_like(panel.features), target=target)
    train = {"loss": loss, "max_epochs": 40, "patience": 40, "learning_rate": 0.05}
    got = trial.run(cell(train=train), panel)
    assert low < np.median(got.predictions["prediction"]) < high


# --- The training loop -------------------------------------------------------------------------------


def in_ugm3(standardised: np.ndarray) -> np.ndarray:
    return standardised * 3 + 9


def to_the_end(fit: Fit) -> list[Epoch]:
    while not fit.finished:
        fit.epoch()
    fit.restore_best_weights()
    return fit.history


def fitted(**changes: Any) -> tuple[list[Epoch], float]:
    """The history of a fit, and the validation loss of the model that it leaves."""
    panel, settings = world(), cell(train=changes).train
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "none", torch.device("cpu"))

    def windows(flat: np.ndarray) -> Windows:
        return Windows(inputs, flat, (panel.target.reshape(-1)[flat] - 9) / 3)

    model = build(2, ModelSettings(width=4, depth=1, attention_units=4))
    initialise(model, torch.Generator().manual_seed(0))
    order = torch.Generator().manual_seed(0)
    history = to_the_end(
        Fit(model, windows(parts.train), windows(parts.validation), settings, order, 0, in_ugm3)
    )
    predicted, target = map(torch.from_numpy, predict(model, windows(parts.validation)))
    return history, float(loss_function(settings)(predicted, target))


@pytest.mark.parametrize("patience", [1, 4])
def test_training_stops_for_want_of_patience_and_leaves_its_best_weights(patience):
    history, left = fitted(max_epochs=60, patience=patience, learning_rate=0.05)
    losses = [e.validation_loss for e in history]
    best = int(np.argmin(losses)) + 1
    assert [e.epoch for e in history] == list(range(1, len(history) + 1))
    assert len(history) == best + patience < 60  # on noise it must stop early
    lows = [e for e in range(1, best) if losses[e - 1] == min(losses[:e])] + [best]
    assert all(later - earlier <= patience for earlier, later in pairwise(lows))
    assert left == losses[best - 1] < losses[-1]


def test_training_runs_to_the_end_where_patience_allows():
    history, left = fitted(max_epochs=7, patience=7, learning_rate=0.05)
    assert len(history) == 7
    assert left == min(e.validation_loss for e in history)


def test_the_result_tells_the_best_epoch_and_scores_its_weights():
    # The loss is half the squared error, so that losses tell RMSEs.
    got = trial.run(cell(train={"max_epochs": 40, "patience": 3}), world())
    losses = [e.validation_loss for e in got.history]
    assert got.counts["best_epoch"] == int(np.argmin(losses)) + 1 < got.counts["epochs"] == len(losses)
    parts = splits.cut(SPLITS[0], 0, world(), WINDOW)
    std = world().target.reshape(-1)[parts.train].std(dtype=np.float64)
    assert got.metrics["val_rmse"] == pytest.approx(np.sqrt(2 * min(losses)) * std, rel=1e-5)


def test_the_learning_rate_goes_down_a_staircase():
    history, _ = fitted(max_epochs=4, patience=9, decay=0.5, decay_steps=10, learning_rate=0.08)
    # 312 samples, 208 - 21 = 187 of them in training: 6 steps an epoch, of which the last one (5, 11,
    # 17, 23) tells its rate.
    assert [e.learning_rate for e in history] == [0.08, 0.04, 0.04, 0.02]


def test_the_learning_rate_told_is_the_one_used():
    history, _ = fitted(max_epochs=4, patience=9, decay=1e-30, decay_steps=6)
    losses = [e.validation_loss for e in history]
    assert losses[0] == losses[1] == losses[2] == losses[3]  # after the first epoch no weight moves


def test_every_epoch_is_returned_as_it_ends():
    training = Training(cell(train={"max_epochs": 3}), world())
    epochs = []
    while not training.finished:
        epochs.append(training.epoch())
    assert epochs == training.history == training.result().history
    assert len(epochs) == 3


def test_an_interrupted_epoch_leaves_the_global_random_state(monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    training, before = Training(cell(), world()), torch.get_rng_state()
    monkeypatch.setattr(Windows, "batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.epoch()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_no_number_is_a_failure():
    with pytest.raises(Diverged) as raised:
        trial.run(cell(train={"learning_rate": 1e38, "clip_norm": None}), world())
    for shown in ("step 2", "epoch 1", "1e+38", "train.learning_rate"):
        assert shown in str(raised.value)


class Scripted(nn.Module):
    """Predicts 0, but NaN at the given training step (from 1) or from the given scoring on."""

    def __init__(self, step: int | None = None, scoring: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.bad, self.calls = {True: step, False: scoring}, {True: 0, False: 0}

    def forward(self, window: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        self.calls[self.training] += 1
        value = float("nan") if self.calls[self.training] == self.bad[self.training] else 0.0
        return self.weight + torch.full((len(window),), value)


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        # Six steps an epoch; every target is 2, so the Huber loss of 0 is 1.5. The rate halves every 4 steps.
        ({"step": 1}, ["training loss is nan", "step 1 ", "epoch 1", "rate 1e-30"]),
        ({"step": 3}, ["training loss is nan", "step 3 ", "epoch 1", "rate 1e-30", "1.5"]),
        ({"step": 7}, ["training loss is nan", "step 7 ", "epoch 2", "rate 5e-31", "1.5"]),
        ({"step": 12}, ["training loss is nan", "step 12 ", "epoch 2", "rate 2.5e-31", "1.5"]),
        ({"scoring": 2}, ["validation loss is nan", "step 12 ", "epoch 2", "rate 2.5e-31", "1.5"]),
    ],
    ids=str,
)
def test_a_divergence_says_where_it_happened(script, shown):
    panel = world()
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "none", torch.device("cpu"))
    train, validation = (Windows(inputs, p, np.full(len(p), 2.0)) for p in (parts.train, parts.validation))
    staircase = {"learning_rate": 1e-30, "decay": 0.5, "decay_steps": 4}
    settings = TrainSettings(loss="huber", batch_size=32, max_epochs=5, **staircase)
    order = torch.Generator().manual_seed(0)
    fit = Fit(Scripted(**script), train, validation, settings, order, 0, in_ugm3)
    with pytest.raises(Diverged) as caught:
        to_the_end(fit)
    assert all(value in str(caught.value) for value in [*shown, "train.learning_rate"]), str(caught.value)
    assert ("1.5" in shown) == ("1.5" in str(caught.value))  # before the first step there is no loss
    assert [e.epoch for e in fit.history] == ([1] if "epoch 2" in shown else [])


def test_the_validation_rmse_of_an_epoch_is_in_ugm3():
    # Six weights at rest that predict 0, which is 9 ug/m3, of targets at 2, which are 15.
    panel = world()
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "none", torch.device("cpu"))
    train, validation = (Windows(inputs, p, np.full(len(p), 2.0)) for p in (parts.train, parts.validation))
    settings = TrainSettings(learning_rate=1e-30, max_epochs=1)
    order = torch.Generator().manual_seed(0)
    (epoch,) = to_the_end(Fit(Scripted(), train, validation, settings, order, 0, in_ugm3))
    assert epoch.validation_rmse == 6


@pytest.mark.parametrize(("target", "truth"), [(None, "channel"), ("log1p", "noise")])
def test_the_validation_rmse_of_the_best_epoch_is_that_of_the_result(target, truth):
    got = trial.run(cell(train={"target": target, "max_epochs": 6, "learning_rate": 0.1}), world(truth))
    assert 1 < got.counts["best_epoch"] < 6
    best = got.history[got.counts["best_epoch"] - 1]
    assert best.validation_rmse == pytest.approx(got.metrics["val_rmse"], rel=1e-5)
    assert len({epoch.validation_rmse for epoch in got.history}) == 6


def test_a_training_that_ended_trains_no_more():
    training = Training(cell(), world())
    with pytest.raises(RuntimeError, match="0 epochs"):
        training.result()
    training.epoch()
    with pytest.raises(RuntimeError, match="1 epochs"):
        training.result()
    training.epoch()
    with pytest.raises(RuntimeError, match="epoch 2"):
        training.epoch()


def test_the_training_loss_is_the_mean_over_samples_not_over_batches():
    # A rate of almost 0: the loss stays that of the first weights, and the last batch of 27 counts as 27.
    panel = world()
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "none", torch.device("cpu"))
    target = np.random.default_rng(0).gamma(1, 3, len(parts.train))
    train = Windows(inputs, parts.train, target)
    settings = TrainSettings(learning_rate=1e-30, batch_size=32, max_epochs=1)
    (epoch,) = to_the_end(
        Fit(Scripted(), train, train, settings, torch.Generator().manual_seed(0), 0, in_ugm3)
    )
    assert len(parts.train) % 32
    assert epoch.train_loss == pytest.approx(epoch.validation_loss, rel=1e-6)
    assert epoch.train_loss == pytest.approx((target**2).mean() / 2, rel=1e-6)


# --- Interruptions -----------------------------------------------------------------------------------

WET = ModelSettings(width=4, depth=2, attention_units=4, dropout=0.3)
INTERRUPTED = {
    "none": cell(model=WET, train={"max_epochs": 4}),
    "patience": cell(
        "latlon",
        split=SPLITS[1],
        fold=1,
        model=WET,
        train={"max_epochs": 40, "patience": 3, "learning_rate": 0.05},
    ),
    "staircase": cell(model=WET, train={"max_epochs": 4, "decay": 0.5, "decay_steps": 7}),
    "encoder": cell("geoclip", "hadamard", split=SPLITS[2], model=WET, train={"max_epochs": 4}),
    "bf16": cell("latlon", model=WET, train={"max_epochs": 4, "precision": "bf16"}),
    "last weights": cell(
        "table", "concat", protocol="paper", model=WET, train={"max_epochs": 4, "learning_rate": 0.1}
    ),
    "search": cell(
        model=WET,
        train={"target": "log1p", "max_windows": 100, "max_epochs": 4},
        tuning=Tuning(split=SpatialSplit(folds=3, validation=0.2)),
    ),
}


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a way over a disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def after(epochs: int, made: Cell) -> Training:
    training = Training(made, world("channel"), **bound(made))
    for _ in range(epochs):
        training.epoch()
    return training


def going_on(state: dict[str, Any], made: Cell) -> Training:
    return Training(made, world("channel"), **bound(made), state=state)


def ended(training: Training) -> Result:
    while not training.finished:
        training.epoch()
    return training.result()


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_after_any_epoch_it_ends_as_if_it_had_not_been(name):
    made = INTERRUPTED[name]
    whole = trial.run(made, world("channel"), **bound(made))
    epochs = len(whole.history)
    assert epochs >= 4
    for done in range(epochs + 1):
        training = after(done, made)
        state = stored(training.state())
        if not training.finished:
            training.epoch()  # lost
        again = going_on(state, made)
        assert again.history == whole.history[:done]
        assert again.finished == (done == epochs)
        assert same_bytes(ended(again), whole), done


@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_after_every_epoch_it_ends_as_if_it_had_not_been(name):
    made = INTERRUPTED[name]
    training = after(0, made)
    while not training.finished:
        training.epoch()
        training = going_on(stored(training.state()), made)
    assert same_bytes(training.result(), trial.run(made, world("channel"), **bound(made)))


def test_the_interrupted_trainings_are_worth_interrupting():
    stopped = trial.run(INTERRUPTED["patience"], world("channel"))
    assert 1 < stopped.counts["best_epoch"] == len(stopped.history) - 3 < 37
    last = trial.run(INTERRUPTED["last weights"], world("channel"), embedding=EMBEDDING)
    assert last.counts["best_epoch"] < 4
    assert len({e.learning_rate for e in trial.run(INTERRUPTED["staircase"], world()).history}) == 4


@pytest.mark.parametrize("part", ["model", "optimiser", "order", "dropout", "best_weights", "step"])
def test_no_part_of_a_state_is_idle(part):
    # With one part of the epoch before, the end is another.
    made = INTERRUPTED["staircase" if part == "step" else "patience"]
    whole = trial.run(made, world("channel"))
    done = 2 if part == "step" else whole.counts["best_epoch"]
    before, state = (after(epochs, made).state() for epochs in (done - 1, done))
    assert same_bytes(ended(going_on(state, made)), whole)
    state["fit"][part] = before["fit"][part]
    assert not same_bytes(ended(going_on(state, made)), whole)


def test_a_state_is_a_copy_and_is_only_read():
    made = INTERRUPTED["patience"]
    whole = trial.run(made, world("channel"))
    state = (training := after(2, made)).state()
    assert same_bytes(ended(training), whole)
    assert same_bytes(ended(going_on(state, made)), whole)
    assert same_bytes(ended(going_on(state, made)), whole)


def test_trainings_side_by_side_are_each_as_if_alone():
    alone = [trial.run(made, world("channel"), **bound(made)) for made in INTERRUPTED.values()]
    trainings = [after(0, made) for made in INTERRUPTED.values()]
    while waiting := [training for training in trainings if not training.finished]:
        for training in waiting:
            training.epoch()
    assert all(same_bytes(t.result(), a) for t, a in zip(trainings, alone, strict=True))


def test_no_step_of_a_training_touches_the_global_random_state():
    def undisturbed(do: Any) -> Any:
        before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
        made = do()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (repr(np.random.get_state()), random.getstate()) == before[1:]  # noqa: NPY002
        return made

    made = INTERRUPTED["none"]
    training = undisturbed(lambda: after(0, made))
    undisturbed(training.epoch)
    state = undisturbed(training.state)
    training = undisturbed(lambda: going_on(state, made))
    while not training.finished:
        undisturbed(training.epoch)
    undisturbed(training.result)


def test_a_divergence_after_an_interruption_says_what_it_would_have_said():
    panel = world()
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "none", torch.device("cpu"))
    windows = Windows(inputs, parts.train, np.full(len(parts.train), 2.0))
    settings = TrainSettings(loss="huber", learning_rate=1e-30, batch_size=32, max_epochs=5)

    def scripted(step: int) -> Fit:
        order = torch.Generator().manual_seed(0)
        return Fit(Scripted(step=step), windows, windows, settings, order, 0, in_ugm3)

    first, second = scripted(99), scripted(1)
    first.epoch()
    second.load_state(first.state())
    with pytest.raises(Diverged, match=r"nan at step 7 \(epoch 2, .*1\.5"):
        second.epoch()


def test_a_state_of_another_training_is_refused():
    made, panel = INTERRUPTED["patience"], world("channel")
    state = after(1, made).state()
    others = [
        (made.model_copy(update={"seed": 4}), panel),
        (made.model_copy(update={"train": made.train.model_copy(update={"max_epochs": 41})}), panel),
        (made.model_copy(update={"tuning": Tuning()}), panel),
        (made, world("channel", seed=1)),
    ]
    for other, data in others:
        with pytest.raises(ValueError, match=r"latlon spatial fold 1 .*toy"):
            Training(other, data, state=state)


def test_a_state_of_other_groups_is_refused():
    # The groups of sites are no part of a panel's fingerprint.
    made = cell(split=GroupSplit(column="half", values=("west",), validation=0.3))
    west = np.repeat(["west", "east"], SITES // 2)
    panel, swapped = (replace(world(), groups={"half": half}) for half in (west, west[::-1].copy()))
    assert panel.fingerprint == swapped.fingerprint
    state = Training(made, panel).state()
    Training(made, panel, state=state)
    with pytest.raises(ValueError, match=made.label):
        Training(made, swapped, state=state)


def test_the_seconds_are_those_at_work_in_all_attempts(monkeypatch):
    # A clock that goes one second at each look, so that every piece of work takes one.
    looks = iter(range(10**6))
    monkeypatch.setattr(trial.time, "perf_counter", lambda: float(next(looks)))
    assert trial.run(cell(), world()).seconds == 4  # preparing, two epochs, scoring
    training = Training(cell(), world())
    training.epoch()
    state = training.state()
    assert state["seconds"] == 2
    training.epoch()  # lost, and unknown to the state
    for _ in range(100):
        next(looks)
    again = Training(cell(), world(), state=state)
    assert ended(again).seconds == 2 + 3


def test_a_state_from_another_type_of_device_goes_on():
    made = INTERRUPTED["none"]
    state = after(2, made).state()
    assert all(value.device.type == "cpu" for value in state["fit"]["best_weights"].values())
    state["fit"]["dropout"] = {"cuda": torch.zeros(16, dtype=torch.uint8)}
    again = going_on(state, made)
    assert len(ended(again).history) == 4
    # Its stream is kept for the way back.
    assert set(again.state()["fit"]["dropout"]) == {"cuda", "cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_training_goes_on_bitwise_on_a_gpu_and_closely_elsewhere():
    made, panel = INTERRUPTED["none"], world("channel")
    before = torch.cuda.get_rng_state()
    whole = trial.run(made, panel, device="cuda")
    training = Training(made, panel, device="cuda")
    training.epoch()
    state = stored(training.state())
    assert same_bytes(ended(Training(made, panel, device="cuda", state=state)), whole)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    elsewhere = ended(Training(made, panel, state=state))
    assert elsewhere.history[0] == whole.history[0]
    assert len(elsewhere.history) == 4


# --- Precision ---------------------------------------------------------------------------------------


def test_bf16_is_another_training_with_weights_and_results_in_32_bits():
    panel = world("channel")
    wide = {"model": ModelSettings(width=32, depth=2, attention_units=32, dropout=0.0)}
    settings = {"max_epochs": 30, "patience": 30, "learning_rate": 0.01}
    full, short = (
        trial.run(
            cell("geoclip", "concat", **wide, train={**settings, "precision": p}), panel, embedding=EMBEDDING
        )
        for p in ("fp32", "bf16")
    )
    assert not same_weights(full, short)
    assert {value.dtype for value in short.weights.values()} == {torch.float32}
    assert short.predictions["prediction"].dtype == np.float32
    assert short.metrics["test_rmse"] == pytest.approx(full.metrics["test_rmse"], rel=0.2)
    assert full.metrics["test_r2"] > 0.8


def test_a_checkpoint_of_bf16_is_in_32_bits():
    state = after(1, INTERRUPTED["bf16"]).state()["fit"]
    moments = [part for own in state["optimiser"]["state"].values() for part in own.values()]
    assert {value.dtype for value in (*state["model"].values(), *moments)} == {torch.float32}


# --- Samples -----------------------------------------------------------------------------------------


def drawn(monkeypatch: pytest.MonkeyPatch, made: Cell) -> tuple[np.ndarray, ...]:
    """The samples that training and validation were given."""
    seen: list[np.ndarray] = []

    class Recorded(Windows):
        def __init__(self, inputs: Inputs, flat: np.ndarray, target: np.ndarray) -> None:
            seen.append(flat)
            super().__init__(inputs, flat, target)

    with monkeypatch.context() as patch:
        patch.setattr(trial, "Windows", Recorded)
        trial.run(made, world(), embedding=EMBEDDING if made.encoder else None)
    return seen[0], seen[1]


def test_every_arm_trains_on_the_same_subsample(monkeypatch):
    limits = {"max_windows": 50, "max_validation_windows": 10, "max_epochs": 1}
    arms = [
        ("none", None),
        ("latlon", None),
        ("sincos", None),
        ("geoclip", "hadamard"),
        ("geoclip", "concat"),
    ]
    parts = splits.cut(SPLITS[0], 0, world(), WINDOW)
    draws = [drawn(monkeypatch, cell(*arm, train=limits)) for arm in arms]
    for train, validation in draws:
        assert np.array_equal(train, draws[0][0])
        assert np.array_equal(validation, draws[0][1])
    train, validation = draws[0]
    assert len(train) == 50
    assert len(validation) == 10
    assert (np.diff(train) > 0).all()
    assert set(train) < set(parts.train)
    assert set(validation) < set(parts.validation)
    other = drawn(monkeypatch, cell(seed=4, train=limits))
    assert not np.array_equal(other[0], train)


def test_every_arm_sees_the_samples_in_the_same_order(monkeypatch):
    def order(made: Cell) -> list[list[int]]:
        seen: list[list[int]] = []

        class Recorded(Windows):
            def batch(self, rows: torch.Tensor) -> Any:
                seen.append(rows.tolist())
                return super().batch(rows)

        with monkeypatch.context() as patch:
            patch.setattr(trial, "Windows", Recorded)
            trial.run(made, world(), embedding=EMBEDDING if made.encoder else None)
        return seen

    # Neither what an arm draws for its weights nor what the neighbour feature draws moves the order.
    split, limits = SPLITS[1], {"max_windows": 50}
    hiding = NeighbourSettings(k=3, hide="test_distance")
    one = order(cell(split=split, train=limits))
    for other in (
        cell("latlon", split=split, train=limits),
        cell("geoclip", "film", split=split, train=limits),
        cell("none", "gated", head="matched", split=split, train=limits),
        cell(neighbours=hiding, split=split, train=limits),
    ):
        assert order(other) == one, other.label
    assert sorted(one[0] + one[1]) == list(range(50))
    assert order(cell(seed=4, split=split, train=limits)) != one


def test_a_subsample_draws_nothing_from_the_first_weights():
    whole, few = (trial.prepare(cell(train=limit), world()).model for limit in ({}, {"max_windows": 9}))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), few.parameters(), strict=True))
    other = trial.prepare(cell(seed=4), world()).model
    assert not torch.equal(whole.output.weight, other.output.weight)


def test_a_limit_that_is_not_reached_changes_nothing():
    one = trial.run(cell(), world())
    assert same_bytes(one, trial.run(cell(train={"max_windows": 10_000}), world()))


def test_the_scalers_know_the_subsample_only():
    # One epoch, so that validation has no say in the weights: then only the three drawn windows have one.
    tiny = cell(train={"max_windows": 3, "max_validation_windows": 2, "max_epochs": 1})
    panel = world()
    got = trial.run(tiny, panel)
    test = splits.cut(SPLITS[0], 0, panel, WINDOW).test
    assert (got.counts["n_train"], got.counts["n_val"], got.counts["n_test"]) == (3, 2, len(test))
    moved = []
    for site in range(SITES):
        features = panel.features.copy()
        features[site, : DAYS // 2] += 1000
        features[site, DAYS // 2 :] -= 1000
        if not same_weights(got, trial.run(tiny, replace(panel, features=features))):
            moved.append(site)
    assert 1 <= len(moved) <= 3


# --- The result --------------------------------------------------------------------------------------


REPEATED = [
    (CheckerboardsSplit(degrees=24, validation=0.3, holdout=0.4), 7),
    (CheckerboardsSplit(degrees=24, validation=0.3, holdout="rotate"), 38),
    (BlocksSplit(degrees=12, folds=3, validation=0.3), 5),
    (RollingSplit(), 3),
]
"""Splits with a fold of a later origin, deal or period."""


@pytest.mark.parametrize(("split", "fold"), REPEATED, ids=lambda value: getattr(value, "label", str(value)))
def test_a_later_fold_of_a_repeated_split_passes_its_audit(split, fold):
    panel = world()
    parts = splits.cut(split, fold, panel, WINDOW)
    got = trial.run(cell(split=split, fold=fold), panel)
    assert got.audit["failed"] == []
    assert got.counts["n_test"] == len(parts.test)
    assert ("shared_regions" in got.audit) == ("wr_rmse" in got.metrics) == (split.regime == "OoR")


def test_a_search_on_a_later_origin_passes_its_audit():
    inner = CheckerboardsSplit(degrees=24, validation=0.3, holdout=0.4)
    made = cell(split=RandomSplit(folds=3), tuning=Tuning(split=inner, fold=7))
    assert trial.run(made, world()).audit["failed"] == []


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.kind)
def test_a_result_holds_what_it_says(split):
    panel = world()
    parts = splits.cut(split, 0, panel, WINDOW)
    got = trial.run(cell(split=split), panel)
    scored = {"test": parts.test} if parts.wr is None else {"test": parts.test, "wr": parts.wr}
    plain = {f"{p}_{m}" for p in ("val", *scored) for m in SCORES}
    more = {f"{p}_{m}" for p in scored for m in ("n_tail", "temporal_r2", "n_mape", "mape")}
    assert plain | more | {"test_spatial_r2"} <= set(got.metrics)
    assert {m for m in got.metrics if m.startswith("val_")} == {m for m in plain if m.startswith("val_")}
    km = distance_to_training_km(parts, panel)
    assert got.counts == {
        "n_train": len(parts.train),
        "n_val": len(parts.validation),
        **{f"n_{part}": len(flat) for part, flat in scored.items()},
        "epochs": 2,
        "best_epoch": got.counts["best_epoch"],
    }
    fitted_on = {"scalers": parts.train, "target": parts.train}
    assert got.audit == audit(
        split, parts, panel, WINDOW, fold=0, fitted=fitted_on, encoder_trained_on_target=False
    )
    assert got.audit["failed"] == []
    assert got.seconds > 0

    rows = got.predictions
    assert list(rows) == ["part", "site_id", "lat", "lon", "date", "truth", "prediction"]
    assert rows["part"].tolist() == [part for part, flat in scored.items() for _ in flat]
    flat = np.concatenate(list(scored.values()))
    assert rows["site_id"].tolist() == panel.site_id[flat // DAYS].tolist()
    assert np.array_equal(rows["lat"], panel.lat[flat // DAYS])
    assert np.array_equal(rows["lon"], panel.lon[flat // DAYS])
    assert np.array_equal(rows["date"], panel.dates[flat % DAYS])
    assert np.array_equal(rows["truth"], panel.target.reshape(-1)[flat])
    assert rows["prediction"].dtype == np.float32
    for part in scored:
        own = rows["part"] == part
        told = rows["truth"][own], rows["prediction"][own]
        site = scored[part] // DAYS
        expected = scores(*told) | detailed(*told, site, km[site])
        found = {m.removeprefix(f"{part}_"): v for m, v in got.metrics.items() if m.startswith(f"{part}_")}
        assert found == expected


def test_the_weights_of_a_result_are_the_model_that_was_scored():
    made, panel = cell("latlon"), world()
    got = trial.run(made, panel)
    model = build(4, made.model)
    model.load_state_dict(got.weights)
    parts = splits.cut(made.split, 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "latlon", torch.device("cpu"))
    fitted_on = panel.target.reshape(-1)[parts.train].astype(np.float64)
    predicted, _ = predict(model, Windows(inputs, parts.test, np.zeros(len(parts.test))))
    np.testing.assert_allclose(
        predicted * fitted_on.std() + fitted_on.mean(), got.predictions["prediction"], rtol=1e-5
    )


def test_the_scores_of_the_tail_and_the_distances_are_in_a_result():
    panel = world()
    target = panel.target.copy()
    target[:, ::6] += 40
    got = trial.run(cell(split=SPLITS[1]), replace(panel, target=target)).metrics
    truth = target.reshape(-1)[splits.cut(SPLITS[1], 0, panel, WINDOW).test]
    assert got["test_n_tail"] == (truth >= 35.5).sum() > 0
    assert got["test_tail_mbe"] < -10  # two epochs of noise predict no smoke
    assert got["test_tail_recall"] == 0
    assert any(name.startswith("test_rmse_km_") for name in got)
    assert not any(name.startswith("val_") and name[4:] not in SCORES for name in got)


def test_an_encoder_that_saw_pm25_is_a_failed_check():
    got = [
        trial.run(cell("geoclip", "concat"), world(), embedding=EMBEDDING, trained_on_target=saw)
        for saw in (False, True)
    ]
    assert [r.audit["failed"] for r in got] == [[], ["encoder_trained_on_target"]]
    assert same_weights(*got)


def test_log1p_is_another_training_and_predicts_in_ugm3():
    panel = replace(world(), target=np.exp(world("channel").target / 4))  # right-skewed, 1 to 130
    plain, log = (trial.run(cell(train={"target": t}), panel) for t in (None, "log1p"))
    assert not same_weights(plain, log)
    assert np.array_equal(plain.predictions["truth"], log.predictions["truth"])
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    logs = np.log1p(panel.target.reshape(-1)[parts.train])
    # After two epochs a prediction stays within some deviations of the mean of the logs.
    assert np.abs((np.log1p(log.predictions["prediction"]) - logs.mean()) / logs.std()).max() < 5


def test_a_result_has_no_path_and_no_device():
    assert {f.name for f in fields(Result)} == {
        "metrics", "counts", "history", "predictions", "audit", "weights", "scaling", "seconds",
        "stacked",
    }  # fmt: skip
    got = trial.run(cell(), world())
    assert all(type(value) is float for value in got.metrics.values())
    assert all(type(value) is int for value in got.counts.values())
    assert {value.device.type for value in got.weights.values()} == {"cpu"}


def test_a_panel_too_short_for_its_window_is_refused():
    with refuses("toy", "split random fold 0", "train", "sites"):
        trial.run(cell(window=DAYS + 1), world())


def test_a_constant_target_is_predicted_and_its_r2_is_missing():
    got = trial.run(
        cell(train={"max_epochs": 1}), replace(world(), target=np.full((SITES, DAYS), 7, np.float32))
    )
    assert np.isnan(got.metrics["test_r2"])
    assert got.metrics["test_rmse"] < 3


# --- Learning ----------------------------------------------------------------------------------------

LEARNER = {
    "model": ModelSettings(width=8, depth=1, attention_units=8, dropout=0.0),
    "train": {"max_epochs": 12, "batch_size": 16, "learning_rate": 0.02},
}


def test_a_channel_that_tells_the_target_is_learned():
    got = trial.run(cell(**LEARNER), world("channel"))
    assert got.metrics["test_r2"] > 0.8
    assert got.metrics["test_rmse"] < 1.5  # of a deviation of 3
    assert abs(got.metrics["test_mbe"]) < 0.5


def test_a_site_effect_is_learned_by_those_who_know_the_place():
    panel = world("site")
    arms = [
        ("none", None),
        ("latlon", None),
        ("sincos", None),
        ("geoclip", "hadamard"),
        ("geoclip", "concat"),
    ]
    r2 = {
        arm: trial.run(cell(*arm, **LEARNER), panel, embedding=EMBEDDING if arm[1] else None).metrics[
            "test_r2"
        ]
        for arm in arms
    }
    assert r2.pop(("none", None)) < 0.2
    assert min(r2.values()) > 0.6, r2
