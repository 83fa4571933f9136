"""A trial is a pure function: same bytes again, blind to the test set, and able to learn what is there."""

import random
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pm25
from pm25 import encoders, splits, trial
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.fit import Diverged, Epoch, fit, predict
from pm25.inputs import Inputs, Windows
from pm25.metrics import scores
from pm25.model import BiLSTMAttention, initialise
from pm25.panel import Panel
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import CheckerboardSplit, RandomSplit, SpatialSplit
from pm25.trial import Result

SITES, DAYS, WINDOW = 12, 30, 5
SPLITS = [
    RandomSplit(folds=3),
    SpatialSplit(folds=3, validation=0.2),
    CheckerboardSplit(degrees=30, validation=0.3),
]
EMBEDDING = np.eye(SITES, dtype=np.float32)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, and no fight for the cores: these networks have a few hundred weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def world(target: str = "noise", seed: int = 0) -> Panel:
    """Six sites in each half of the country; no value is missing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(SITES, DAYS, 2)).astype(np.float32)
    lat = np.tile(np.linspace(28, 47, SITES // 2), 2)
    lon = np.concatenate([np.linspace(-120, -100, SITES // 2), np.linspace(-90, -70, SITES // 2)])
    made = {
        "noise": 9 + rng.normal(0, 3, (SITES, DAYS)),
        "channel": 9 + 3 * features[:, :, 0] + rng.normal(0, 0.3, (SITES, DAYS)),
        "site": np.repeat(9 + 0.5 * (lat[:, None] - 37) + 0.1 * (lon[:, None] + 95), DAYS, axis=1),
    }[target]
    return Panel(
        features=features,
        target=made.astype(np.float32),
        lat=lat,
        lon=lon,
        site_id=np.array([f"s{i:02}" for i in range(SITES)]),
        dates=np.datetime64("2021-01-01") + np.arange(DAYS),
        channels=("a", "b"),
        name="toy",
    )


def with_target(panel: Panel, target: np.ndarray) -> Panel:
    return Panel(
        panel.features, target, panel.lat, panel.lon, panel.site_id, panel.dates, panel.channels, panel.name
    )


def cell(variant: str = "none", fusion: str | None = None, **changes: Any) -> Cell:
    """A small cell: two epochs of eight steps."""
    train = {"batch_size": 32, "max_epochs": 2, "learning_rate": 0.01, **changes.pop("train", {})}
    values = {
        "split": SPLITS[0],
        "fold": 0,
        "seed": 3,
        "window": WINDOW,
        "model": ModelSettings(width=4, depth=2, attention_units=4),
        **changes,
    }
    return Cell(variant=variant, fusion=fusion, train=TrainSettings(**train), **values)


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


def test_an_embedding_handed_in_is_the_encoders_own():
    panel = world()
    own = trial.run(cell("geoclip", "hadamard"), panel)
    given = encoders.load("geoclip").embed(panel.lat, panel.lon)
    assert same_bytes(own, trial.run(cell("geoclip", "hadamard"), panel, embedding=given))
    other = trial.run(cell("geoclip", "hadamard"), panel, embedding=given[::-1].copy())
    assert not same_weights(own, other)


GOLDEN_RMSE = {
    ("none", None, "random"): 2.3540696,
    ("latlon", None, "spatial"): 2.9550856,
    ("sincos", None, "random"): 2.5610545,
    ("geoclip", "hadamard", "checkerboard"): 3.0148458,
    ("geoclip", "concat", "random"): 2.5380202,
}
"""Test RMSE of the tiny cells on the tiny panel, made with pm25.NUMERICS = 1."""


@pytest.mark.parametrize(("variant", "fusion", "kind"), GOLDEN_RMSE)
def test_golden(variant, fusion, kind):
    (split,) = (s for s in SPLITS if s.kind == kind)
    got = trial.run(
        cell(variant, fusion, split=split), world("channel"), embedding=EMBEDDING if fusion else None
    )
    # Processors differ in the last digits.
    assert got.metrics["test_rmse"] == pytest.approx(GOLDEN_RMSE[variant, fusion, kind], rel=1e-5), (
        "the numbers of a trial have moved; if that is meant, raise pm25.NUMERICS, so that no stored result "
        f"passes for a new one, and store {got.metrics['test_rmse']:.7f} here"
    )
    assert pm25.NUMERICS == 1, "NUMERICS was raised: say so here"


# --- What training cannot see ------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.kind)
@pytest.mark.parametrize(("variant", "fusion"), [("latlon", None), ("geoclip", "hadamard")])
def test_training_cannot_see_test_targets(split, variant, fusion):
    panel = world()
    parts = splits.cut(split, 0, panel, WINDOW)
    hidden = parts.test if parts.within is None else np.concatenate([parts.test, parts.within])
    target = panel.target.copy()
    target.reshape(-1)[hidden] = 500 - 7 * target.reshape(-1)[hidden]
    embedding = EMBEDDING if fusion else None
    one, other = (
        trial.run(cell(variant, fusion, split=split), p, embedding=embedding)
        for p in (panel, with_target(panel, target))
    )
    assert same_weights(one, other)
    assert one.history == other.history
    assert np.array_equal(one.predictions["prediction"], other.predictions["prediction"])
    seen = {name for name in one.metrics if one.metrics[name] == other.metrics[name]}
    assert seen == {"val_rmse", "val_r2", "val_mae", "val_mbe"}


@pytest.mark.parametrize("split", SPLITS[1:], ids=lambda s: s.kind)
def test_training_cannot_see_held_out_sites(split):
    panel = world()
    parts = splits.cut(split, 0, panel, WINDOW)
    hidden = np.unique(parts.test // DAYS)
    features, lat = panel.features.copy(), panel.lat.copy()
    features[hidden] = 100 - 3 * features[hidden]
    lat[hidden] += 0.5
    moved = Panel(
        features, panel.target, lat, panel.lon, panel.site_id, panel.dates, panel.channels, panel.name
    )
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
        assert trial.run(cell(), with_target(panel, target)).history != base.history


# --- The training loop -------------------------------------------------------------------------------


def fitted(**changes: Any) -> tuple[list[Epoch], float]:
    """The history of a fit, and the validation loss of the model that it leaves."""
    panel, settings = world(), cell(train=changes).train
    parts = splits.cut(SPLITS[0], 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "none", None, torch.device("cpu"))

    def windows(flat: np.ndarray) -> Windows:
        return Windows(inputs, flat, (panel.target.reshape(-1)[flat] - 9) / 3)

    model = BiLSTMAttention(2, ModelSettings(width=4, depth=1, attention_units=4))
    initialise(model, torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        order = torch.Generator().manual_seed(0)
        history = fit(model, windows(parts.train), windows(parts.validation), settings, order)
    predicted, target = map(torch.from_numpy, predict(model, windows(parts.validation)))
    return history, float(nn.HuberLoss(delta=settings.huber_delta)(predicted, target))


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
    # With so large a delta the Huber loss is half the squared error, so that losses tell RMSEs.
    got = trial.run(cell(train={"huber_delta": 1e6, "max_epochs": 40, "patience": 3}), world())
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


def test_every_epoch_is_told_as_it_ends():
    told: list[Epoch] = []
    got = trial.run(cell(train={"max_epochs": 3}), world(), on_epoch=told.append)
    assert told == got.history
    assert len(told) == 3


def test_a_listener_can_end_a_training():
    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        trial.run(cell(), world(), on_epoch=stop)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_no_number_is_a_failure():
    with pytest.raises(Diverged, match=r"^loss is (nan|inf) .*at epoch 1; lower train\.learning_rate$"):
        trial.run(cell(train={"learning_rate": 1e38, "clip_norm": None}), world())


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
        changed = Panel(
            features, panel.target, panel.lat, panel.lon, panel.site_id, panel.dates, panel.channels, "toy"
        )
        if not same_weights(got, trial.run(tiny, changed)):
            moved.append(site)
    assert 1 <= len(moved) <= 3


# --- The result --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.kind)
def test_a_result_holds_what_it_says(split):
    panel = world()
    parts = splits.cut(split, 0, panel, WINDOW)
    got = trial.run(cell(split=split), panel)
    scored = {"test": parts.test} if parts.within is None else {"test": parts.test, "wr": parts.within}
    assert set(got.metrics) == {f"{p}_{m}" for p in ("val", *scored) for m in ("rmse", "r2", "mae", "mbe")}
    assert got.counts == {
        "n_train": len(parts.train),
        "n_val": len(parts.validation),
        **{f"n_{part}": len(flat) for part, flat in scored.items()},
        "epochs": 2,
        "best_epoch": got.counts["best_epoch"],
    }
    assert got.audit == splits.audit(parts, panel, WINDOW)
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
        for name, value in scores(rows["truth"][own], rows["prediction"][own]).items():
            assert got.metrics[f"{part}_{name}"] == value


def test_the_weights_of_a_result_are_the_model_that_was_scored():
    made, panel = cell("latlon"), world()
    got = trial.run(made, panel)
    model = BiLSTMAttention(4, made.model)
    model.load_state_dict(got.weights)
    parts = splits.cut(made.split, 0, panel, WINDOW)
    inputs = Inputs(panel, parts.train, WINDOW, "latlon", None, torch.device("cpu"))
    fitted_on = panel.target.reshape(-1)[parts.train].astype(np.float64)
    predicted, _ = predict(model, Windows(inputs, parts.test, np.zeros(len(parts.test))))
    np.testing.assert_allclose(
        predicted * fitted_on.std() + fitted_on.mean(), got.predictions["prediction"], rtol=1e-6
    )


def test_a_result_has_no_path_and_no_device():
    assert {f.name for f in fields(Result)} == {
        "metrics", "counts", "history", "predictions", "audit", "weights", "seconds",
    }  # fmt: skip
    got = trial.run(cell(), world())
    assert all(type(value) is float for value in got.metrics.values())
    assert all(type(value) is int for value in got.counts.values())
    assert {value.device.type for value in got.weights.values()} == {"cpu"}


def test_a_panel_too_short_for_its_window_is_refused():
    with pytest.raises(InputError, match="leaves its train part empty"):
        trial.run(cell(window=DAYS + 1), world())


def test_a_constant_target_is_predicted_and_its_r2_is_missing():
    got = trial.run(
        cell(train={"max_epochs": 1}), with_target(world(), np.full((SITES, DAYS), 7, np.float32))
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
