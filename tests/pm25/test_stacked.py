"""Members of a stack: each has the numbers of its training alone, whoever is beside it."""

import io
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from pm25 import trial
from pm25.cell import Cell, Tuning
from pm25.errors import InputError
from pm25.fit import Diverged
from pm25.model import build, initialise
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.settings import Fusion, ModelSettings
from pm25.splits import CheckerboardSplit, SpatialSplit
from pm25.stacked import StackedTraining, stackable
from pm25.stacked_model import stack
from pm25.trial import Result, prepare
from pm25.windows import StackedInputs
from tests import worlds
from tests.worlds import cell

pytestmark = pytest.mark.usefixtures("one_thread")

SITES, DAYS, WINDOW = 12, 30, 5
EMBEDDING = np.eye(SITES, dtype=np.float32)
NETWORK = ModelSettings(width=8, depth=3, attention_units=6, dropout=0.3)
FUSIONS: tuple[str | None, ...] = (None, *get_args(Fusion))
ROUNDING = 1e-3
"""Largest difference of a weight, and of a metric. Each step changes weights by about the rate, 0.002."""


def world() -> Panel:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SITES, DAYS, 2)).astype(np.float32)
    target = 9 + 3 * features[:, :, 0] + rng.normal(0, 0.3, (SITES, DAYS))
    return worlds.panel(features, target, *worlds.two_halves(SITES))


def arm(fusion: str | None, seed: int, fold: int, **train: Any) -> Cell:
    """One of an arm's cells, which differ in seed, fold and settings of the training."""
    rates = {"max_epochs": 12, "patience": 2, "learning_rate": 0.002, **train}
    variant = "geoclip" if fusion else "latlon"
    return cell(variant, fusion, model=NETWORK, seed=seed, fold=fold, train=rates)


def stacked(cells: list[Cell], size: int, panel: Panel | None = None, **more: Any) -> dict[Cell, Any]:
    """Results of a stack by cell; a cell's exception is in the place of its result."""
    if cells[0].encoder:
        more["embedding"] = EMBEDDING
    ended = [*StackedTraining(cells, panel or world(), size=size, **more)]
    assert len(ended) == len(cells)
    return dict(ended)


def alone(made: Cell, panel: Panel | None = None) -> Result:
    return trial.run(made, panel or world(), embedding=EMBEDDING if made.encoder else None)


def largest_difference(one: Result, other: Result) -> tuple[float, float]:
    """Return the largest differences of the weights and of the metrics."""
    assert one.weights.keys() == other.weights.keys()
    assert one.metrics.keys() == other.metrics.keys()
    return (
        max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights),
        max(abs(one.metrics[name] - other.metrics[name]) for name in one.metrics),
    )


def assert_equal_up_to_rounding(one: Result, other: Result) -> None:
    assert max(largest_difference(one, other)) < ROUNDING
    assert one.counts == other.counts
    assert one.audit == other.audit
    assert one.scaling == other.scaling
    for name in one.predictions:
        if name != "prediction":
            assert np.array_equal(one.predictions[name], other.predictions[name])
    for a, b in zip(one.history, other.history, strict=True):
        assert (a.epoch, a.learning_rate) == (b.epoch, b.learning_rate)
        assert a.train_loss == pytest.approx(b.train_loss, abs=ROUNDING)
        assert a.validation_rmse == pytest.approx(b.validation_rmse, abs=ROUNDING)


# --- The network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [None, "norm_tanh"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_stacked_network_has_the_predictions_and_gradients_of_its_members(fusion, projection):
    settings = NETWORK.model_copy(update={"projection": projection, "dropout": 0.0})
    members = [build(3, settings, fusion, 7 if fusion else 0) for _ in range(3)]
    for index, member in enumerate(members):
        initialise(member, torch.Generator().manual_seed(index))
    network, _ = stack(members[0], 3, batch=4, days=WINDOW)
    for index, member in enumerate(members):
        with torch.no_grad():
            for name, value in member.state_dict().items():
                network.get_parameter(name)[index].copy_(value)
    rng = torch.Generator().manual_seed(9)
    window = torch.randn(3, 4, WINDOW, 3, generator=rng)
    embedding = torch.randn(3, 4, 7, generator=rng) if fusion else None
    predicted = network(window, embedding)
    predicted.square().sum().backward()
    for index, member in enumerate(members):
        own = member(window[index], None if embedding is None else embedding[index])
        own.square().sum().backward()
        assert torch.allclose(predicted[index], own, atol=1e-5)
        for name, value in member.named_parameters():
            assert value.requires_grad == network.get_parameter(name).requires_grad
            if value.requires_grad:
                assert torch.allclose(network.get_parameter(name).grad[index], value.grad, atol=1e-4), name


def test_masks_are_bitwise_those_of_dropout():
    """A full batch, a short one and a full one again, with other draws of a second member between."""
    model = build(3, NETWORK)
    network, dropout = stack(model, 2, batch=4, days=WINDOW)
    dropout.set_rate(0, 0.3)
    dropout.set_rate(1, 0.6)
    network.train()
    own, other = (torch.Generator().manual_seed(seed) for seed in (5, 6))
    shapes = [(WINDOW, 16), (WINDOW, 8), (6,)]  # 2 U after layers one and two, the attention
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        for samples in (4, 3, 4):
            dropout.draw(0, samples, own)
            dropout.draw(1, 4, other)
            for shape in shapes:
                drawn = dropout(torch.ones(2, 4, *shape))
                expected = nn.functional.dropout(torch.ones(samples, *shape), 0.3)
                assert 0 < (expected == 0).sum() < expected.numel()
                assert torch.equal(drawn[0, :samples], expected)
                assert {*drawn[1].flatten().tolist()} == {0.0, 2.5}  # 1 / (1 - 0.6)
                if shape == shapes[0]:  # 320 draws
                    assert 0.5 < (drawn[1] == 0).float().mean() < 0.7


@pytest.mark.parametrize("monthly", [False, True])
@pytest.mark.parametrize("variant", ["latlon", "geoclip"])
def test_shared_inputs_are_bitwise_those_of_each_training(variant, monthly):
    panel = world()
    features = panel.features.copy()
    features[3, 4:9, 1] = np.nan
    panel = replace(panel, features=features, dates=np.datetime64("2021-01-15") + np.arange(DAYS))
    shape = (SITES, 12, 4) if monthly else (SITES, 4)
    embedding = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    near = NeighbourSettings(k=2)
    fusion, given = ("concat", embedding) if variant == "geoclip" else (None, None)
    trainings = [
        prepare(cell(variant, fusion, fold=fold, seed=fold, neighbours=near), panel, embedding=given)
        for fold in (0, 1)
    ]
    inputs = StackedInputs(trainings[0].inputs, 3)
    for slot, ready in zip((2, 0), trainings, strict=True):
        inputs.load(slot, ready.inputs)
    flat = torch.stack([torch.from_numpy(ready.train[:6]) for ready in trainings])
    window, vectors = inputs.batch(flat, torch.tensor([2, 0]))
    for index, ready in enumerate(trainings):
        own, own_vectors = ready.inputs.batch(flat[index])
        assert torch.equal(window[index], own)
        assert (vectors is None) == (own_vectors is None)
        assert vectors is None or torch.equal(vectors[index], own_vectors)
    assert not torch.equal(*(ready.inputs.batch(flat[0])[0] for ready in trainings))


# --- A member and its training alone -----------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_member_is_its_training_alone(fusion):
    """Five members in two slots: others replace those that end, and training sets differ in size."""
    cells = [
        arm(fusion, seed=1, fold=0),
        arm(fusion, seed=2, fold=1, learning_rate=0.003, clip_norm=None),
        arm(fusion, seed=3, fold=2, clip_norm=0.05, decay_steps=10, decay=0.5),
        arm(fusion, seed=4, fold=0, max_windows=100, max_epochs=3),
        arm(fusion, seed=5, fold=1, max_validation_windows=20, patience=1),
    ]
    found = stacked(cells, size=2)
    for made in cells:
        assert found[made].stacked == 2
        assert_equal_up_to_rounding(found[made], alone(made))
    assert len({found[made].counts["n_train"] for made in cells}) > 1
    assert len({found[made].counts["epochs"] for made in cells}) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "huber", "huber_delta": 0.5},
        {"loss": "absolute"},
        {"target": "log1p"},
        {"batch_size": 7},
    ],
    ids=str,
)
def test_settings_that_members_share(changes):
    cells = [arm("concat", seed=seed, fold=seed, max_epochs=3, **changes) for seed in (0, 1)]
    found = stacked(cells, size=2)
    for made in cells:
        assert_equal_up_to_rounding(found[made], alone(made))


def test_members_of_other_dropout_rates_splits_and_searches():
    base = arm(None, seed=1, fold=0, max_epochs=3)
    cells = [
        base,
        base.model_copy(update={"model": NETWORK.model_copy(update={"dropout": 0.0})}),
        base.model_copy(update={"split": SpatialSplit(folds=3, validation=0.2)}),
        base.model_copy(update={"split": CheckerboardSplit(degrees=30, validation=0.3)}),
        base.model_copy(update={"tuning": Tuning()}),
        base.model_copy(update={"tuning": Tuning(split=SpatialSplit(folds=2))}),
    ]
    found = stacked(cells, size=4)
    for made in cells:
        assert_equal_up_to_rounding(found[made], alone(made))


def test_a_stack_computes_in_bf16():
    """Rounding of bfloat16 differs between kernels as much as from float32, about 0.4 % of a product."""
    cells = [arm("gated", seed, fold=seed, max_epochs=3, precision="bf16") for seed in (1, 2)]
    in_32_bits = [arm("gated", seed, fold=seed, max_epochs=3) for seed in (1, 2)]
    found, full = stacked(cells, size=2), stacked(in_32_bits, size=2)
    for made, other in zip(cells, in_32_bits, strict=True):
        assert {value.dtype for value in found[made].weights.values()} == {torch.float32}
        assert found[made].metrics["test_rmse"] == pytest.approx(alone(made).metrics["test_rmse"], rel=0.02)
        assert largest_difference(found[made], full[other])[0] > 1e-4


def test_initial_weights_of_pytorch_train_both_biases():
    network = NETWORK.model_copy(update={"initialiser": "torch"})
    cells = [arm(None, seed, fold=0, max_epochs=3).model_copy(update={"model": network}) for seed in (1, 2)]
    found = stacked(cells, size=2)
    for made in cells:
        assert_equal_up_to_rounding(found[made], alone(made))


# --- A member and the others -------------------------------------------------------------------------


def same_bytes(one: Result, other: Result) -> bool:
    """True if all numbers are equal. Those of the validation in the history may differ by rounding."""
    same = all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    same = same and one.predictions["prediction"].tobytes() == other.predictions["prediction"].tobytes()
    same = same and (one.metrics, one.counts) == (other.metrics, other.counts)
    for a, b in zip(one.history, other.history, strict=True):
        assert a.validation_loss == pytest.approx(b.validation_loss, rel=1e-5)
        same = same and (a.train_loss, a.learning_rate) == (b.train_loss, b.learning_rate)
    return same


def test_a_members_bytes_do_not_depend_on_the_others():
    made = arm("film", seed=1, fold=0, max_epochs=4)
    first = stacked([made, arm("film", 2, 1, max_epochs=4), arm("film", 3, 2, max_epochs=2)], 3)[made]
    others = [arm("film", seed, 0, max_epochs=1, max_windows=50 + seed) for seed in (7, 8, 9)]
    assert same_bytes(first, stacked([*others, made], 3)[made])  # in a slot that another has left
    diverging = [arm("film", seed, 1, max_epochs=9, learning_rate=1e30) for seed in (7, 8)]
    assert same_bytes(first, stacked([*diverging, made], 3)[made])


def test_a_diverging_member_fails_alone():
    good, bad = arm(None, seed=1, fold=0), arm(None, seed=2, fold=1, learning_rate=1e30)
    with pytest.raises(Diverged) as caught:
        alone(bad)
    found = stacked([bad, good, bad.model_copy(update={"seed": 3})], size=2)
    assert isinstance(found[bad], Diverged)
    assert str(found[bad]) == str(caught.value)
    assert sum(isinstance(result, Diverged) for result in found.values()) == 2
    assert_equal_up_to_rounding(found[good], alone(good))


def test_a_cell_that_cannot_be_prepared_fails_alone():
    good = arm(None, seed=1, fold=0, max_epochs=1)
    bad = good.model_copy(update={"split": CheckerboardSplit(degrees=360)})
    with pytest.raises(InputError) as caught:
        alone(bad)
    found = stacked([bad, good], size=1)
    assert str(found[bad]) == str(caught.value)
    assert isinstance(found[good], Result)


def test_running_members_and_time_are_reported():
    cells = [arm(None, seed, 0, max_epochs=2, max_windows=64 * (1 + seed)) for seed in (0, 1)]
    training = StackedTraining(cells, world(), size=2)
    assert training.running == []
    assert training.advance() == []  # two batches of the first, of four
    assert [(made, len(history)) for made, history in training.running] == [(cells[0], 1), (cells[1], 0)]
    ended = training.advance()
    assert [made for made, _ in ended] == cells[:1]
    assert [(made, len(history)) for made, history in training.running] == [(cells[1], 1)]
    ended += [*training]
    assert training.finished
    assert all(isinstance(result, Result) and 0 < result.seconds < 600 for _, result in ended)


def test_a_stack_leaves_the_global_random_state():
    before = torch.get_rng_state()
    stacked([arm(None, seed, 0, max_epochs=1) for seed in (1, 2)], size=2)
    assert torch.equal(torch.get_rng_state(), before)


# --- Checkpoints ---------------------------------------------------------------------------------------


def interrupted(cells: list[Cell], size: int, after: int) -> tuple[dict[Cell, Any], dict[Cell, Any]]:
    """Train a stack for some advances; the results so far, and the stored states of the other cells."""
    embedding = EMBEDDING if cells[0].encoder else None
    training = StackedTraining(cells, world(), size=size, embedding=embedding)
    ended: dict[Cell, Any] = {}
    states: dict[Cell, Any] = {}
    for _ in range(after):
        ended |= dict(training.advance())
        for made in training.between_epochs:
            buffer = io.BytesIO()
            torch.save(training.state(made), buffer)
            states[made] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return ended, {made: state for made, state in states.items() if made not in ended}


@pytest.mark.parametrize("after", [1, 2, 4, 7, 11])
def test_a_resumed_member_has_the_bytes_of_an_uninterrupted_one(after):
    """Cells that never had a slot, and cells whose first epoch was cut off, start from their first epoch."""
    cells = [
        arm("film", seed=1, fold=0, max_epochs=6, patience=6, learning_rate=0.3),
        arm("film", seed=2, fold=1, max_epochs=6, max_windows=90, decay_steps=4, decay=0.5),
        arm("film", seed=3, fold=2, max_epochs=5, patience=1, clip_norm=None),
        arm("film", seed=4, fold=0, max_epochs=3),
    ]
    whole = stacked(cells, size=2)
    assert whole[cells[0]].counts["best_epoch"] == 2  # its weights are in later states
    found, states = interrupted(cells, 2, after)
    left = [made for made in reversed(cells) if made not in found]  # other slots than before
    epochs = {made: len(state["fit"]["history"]) for made, state in states.items()}
    assert all(epochs.values())
    resumed = StackedTraining(left, world(), size=2, embedding=EMBEDDING, found=states.get)
    found |= dict(resumed)
    assert all(same_bytes(found[made], whole[made]) for made in cells)


def test_a_resumed_member_may_be_in_a_stack_of_another_size():
    cells = [arm(None, seed, fold=0, max_epochs=4) for seed in (1, 2, 3)]
    _, states = interrupted(cells, 3, 2)
    assert len(states) == 3
    (result,) = dict(StackedTraining(cells[:1], world(), size=3, found=states.get)).values()
    assert_equal_up_to_rounding(result, alone(cells[0]))


def test_a_state_of_another_training_fails_its_cell_alone():
    cells = [arm("film", seed, fold=0, max_epochs=2) for seed in (1, 2)]
    _, states = interrupted(cells, 2, 1)
    training = StackedTraining(
        cells, world(), size=2, embedding=EMBEDDING, found=lambda made: states[cells[0]]
    )
    found = dict(training)
    assert isinstance(found[cells[1]], ValueError)
    assert "belongs to another training" in str(found[cells[1]])
    assert same_bytes(found[cells[0]], stacked(cells, size=2)[cells[0]])


def test_there_is_no_state_inside_an_epoch():
    cells = [arm(None, seed, 0, max_epochs=2, max_windows=64 * (1 + seed)) for seed in (0, 1)]
    training = StackedTraining(cells, world(), size=2)
    assert training.between_epochs == []
    training.advance()
    assert training.between_epochs == cells[:1]
    with pytest.raises(RuntimeError, match="inside an epoch"):
        training.state(cells[1])


# --- Which cells ---------------------------------------------------------------------------------------


def test_cells_are_grouped_by_what_a_stack_shares():
    first, second = arm("concat", 1, 0), arm("concat", 2, 1, learning_rate=0.1, clip_norm=None, patience=9)
    others = [
        arm("film", 1, 0),
        arm("concat", 1, 0, loss="absolute"),
        arm("concat", 1, 0, batch_size=16),
        arm("concat", 1, 0, precision="bf16"),
        first.model_copy(update={"window": 4}),
        first.model_copy(update={"model": NETWORK.model_copy(update={"width": 16})}),
        first.model_copy(update={"model": NETWORK.model_copy(update={"initialiser": "torch"})}),
    ]
    paper = cell("geoclip", "concat", model=NETWORK, protocol="paper")
    groups = stackable([first, *others, paper, second], world())
    assert groups == [[first, second], *[[other] for other in others]]


@pytest.mark.parametrize(
    "cells",
    [
        [arm("concat", 1, 0), arm("film", 1, 0)],
        [cell(model=NETWORK, protocol="paper")],
        [],
    ],
    ids=["two arms", "paper", "none"],
)
def test_other_cells_are_refused(cells):
    with pytest.raises(ValueError, match="one stack"):
        StackedTraining(cells, world(), size=2)
