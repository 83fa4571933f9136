"""A search's training knows the training side only: what its arm is tested on does not exist for it."""

from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch

from pm25 import splits, trial
from pm25.cell import Cell, Tuning
from pm25.metrics import SCORES, scores
from pm25.neighbours import NeighbourSettings, known_targets
from pm25.panel import Panel
from pm25.splits import (
    AnySplit,
    CheckerboardSplit,
    ClusterSplit,
    GroupSplit,
    RandomSplit,
    SpatialSplit,
    TemporalSplit,
)
from tests import worlds
from tests.errors import refuses

pytestmark = pytest.mark.usefixtures("one_thread")

SITES, DAYS, WINDOW = 40, 24, 3
PLAIN = SCORES
OUTER: list[AnySplit] = [
    RandomSplit(folds=3),
    TemporalSplit(test_from=date(2021, 1, 19)),
    SpatialSplit(folds=4, buffer_km=150),
    CheckerboardSplit(degrees=30),
    CheckerboardSplit(degrees=16, origin=(5, 3), buffer_km=150),
    GroupSplit(column="half", values=("west",)),
    ClusterSplit(folds=2),
]
INNER: list[AnySplit | None] = [
    None,
    RandomSplit(folds=3),
    TemporalSplit(test_from=date(2021, 1, 12)),
    SpatialSplit(folds=3, validation=0.2),
    CheckerboardSplit(degrees=6, validation=0.3),
    GroupSplit(column="parity", values=("even",), validation=0.3),
    ClusterSplit(folds=2, validation=0.3),
]
NEIGHBOURS = {
    "alone": None,
    "neighbours": NeighbourSettings(k=3),
    "hide": NeighbourSettings(k=3, hide="test_distance", distance=True),
}
COMBINATIONS = [
    pytest.param(outer, inner, id=f"{outer.label}-{inner.label if inner else 'validation'}")
    for outer in OUTER
    for inner in INNER
]
every_outer_and_inner = pytest.mark.parametrize(("outer", "inner"), COMBINATIONS)
every_outer_and_inner_with_and_without_neighbours = pytest.mark.parametrize(
    ("outer", "inner", "neighbours"),
    [
        pytest.param(*pair.values, name, id=f"{pair.id}-{name}")
        for pair in COMBINATIONS
        for name, settings in NEIGHBOURS.items()
        # On the days of a temporal split's test no training monitor reports.
        if settings is None or all(split is None or split.kind != "temporal" for split in pair.values)
    ],
)


def world(seed: int = 0) -> Panel:
    """Sites all over the country, one in ten values missing."""
    rng = np.random.default_rng(seed)
    features, target = rng.normal(size=(SITES, DAYS, 2)), 0.5 + rng.gamma(2, 4, (SITES, DAYS))
    features, target = worlds.without(features, 0.1, rng), worlds.without(target, 0.1, rng)
    lon, lat = rng.uniform(-122, -70, SITES), rng.uniform(28, 47, SITES)
    half, parity = np.where(lon < -96, "west", "east"), np.tile(["even", "odd"], SITES // 2)
    return worlds.panel(features, target, lat, lon, groups={"half": half, "parity": parity})


def cell(outer: AnySplit, inner: AnySplit | None = None, fold: int = 0, **changes: Any) -> Cell:
    """A tiny search cell of one epoch, on the first fold of `outer`."""
    fields = {"variant": "latlon", "split": outer, "tuning": Tuning(split=inner, fold=fold), **changes}
    return worlds.tiny_cell(**fields)


def training_side(outer: AnySplit, panel: Panel) -> np.ndarray:
    parts = splits.cut(outer, 0, panel, WINDOW)
    return np.sort(np.concatenate([parts.train, parts.validation]))


def everything(made: Cell, panel: Panel) -> dict[str, bytes]:
    """All that comes of a cell, and all that it is fed, by what it is."""
    ready = trial.prepare(made, panel)
    fed = [
        ready.windows(flat).batch(torch.arange(len(flat))) for flat in (ready.train, *ready.scored.values())
    ]
    got = trial.run(made, panel)
    assert got.predictions == {}
    return {
        "targets": ready.panel.target.tobytes(),
        "samples": b"|".join(f.tobytes() for f in (ready.train, *ready.scored.values())),
        "inputs": b"".join(window.numpy().tobytes() for window, _, _ in fed),
        "scaled targets": b"".join(target.numpy().tobytes() for _, _, target in fed),
        "scale": repr(ready.scale).encode(),
        "weights": b"".join(w.numpy().tobytes() for w in got.weights.values()),
        "told": repr((got.metrics, got.counts, got.history, got.audit)).encode(),
    }


# --- What a search cannot see ------------------------------------------------------------------------


@every_outer_and_inner_with_and_without_neighbours
def test_nothing_that_the_arm_is_tested_on_reaches_a_search(outer, inner, neighbours):
    made = cell(outer, inner, neighbours=NEIGHBOURS[neighbours])
    panel = world()
    before = everything(made, panel)

    # All targets but those of the training side, and its sites' days before any sample.
    side = training_side(outer, panel)
    hidden = np.ones((SITES, DAYS), bool)
    hidden.reshape(-1)[side] = False
    hidden[np.unique(side // DAYS), : WINDOW - 1] = False
    parts = splits.cut(outer, 0, panel, WINDOW)
    for part in (parts.test, parts.wr):
        assert part is None or hidden.reshape(-1)[part].all()
    target = panel.target.copy()
    target[hidden] = 300 - 7 * target[hidden] ** 2  # the same ones are observed, so that the cut is the same
    assert everything(made, replace(panel, target=target)) == before

    # The same check finds the targets of the training side.
    flat = panel.target.reshape(-1).copy()
    flat[side[:: len(side) // 20]] += 30
    after = everything(made, replace(panel, target=flat.reshape(SITES, DAYS)))
    assert {name for name in before if before[name] != after[name]} >= {"targets", "scale", "weights", "told"}


@every_outer_and_inner
def test_all_parts_of_a_search_lie_in_the_training_side(outer, inner):
    panel = world()
    side = training_side(outer, panel)
    for fold in range(inner.folds if inner else 1):
        ready = trial.prepare(cell(outer, inner, fold), panel)
        parts = [
            p for p in (ready.indices.train, ready.indices.validation, ready.indices.test) if p is not None
        ]
        parts += [] if ready.indices.wr is None else [ready.indices.wr]
        assert all(len(part) for part in parts)
        together = np.concatenate(parts if inner else parts[:2])
        assert len(np.unique(together)) == len(together)
        assert np.isin(together, side).all()
        if inner is None or inner.kind in ("random", "spatial", "clusters"):  # which drop no sample
            assert np.array_equal(np.sort(together), side)


def test_a_search_on_validation_trains_as_its_grid_cell_does():
    for outer in OUTER:
        neighbours = None if outer.kind == "temporal" else NEIGHBOURS["neighbours"]
        made = cell(outer, neighbours=neighbours, train={"max_epochs": 3})
        search, grid = (trial.run(c, world()) for c in (made, made.model_copy(update={"tuning": None})))
        assert search.history == grid.history
        assert all(torch.equal(search.weights[name], grid.weights[name]) for name in grid.weights)
        for name in PLAIN:
            same = {
                search.metrics[f"val_{name}"],
                search.metrics[f"val_wr_{name}"],
                grid.metrics[f"val_{name}"],
            }
            assert len(same) == 1


# --- Parts by hand -----------------------------------------------------------------------------------


def without_gaps(panel: Panel) -> Panel:
    target = np.random.default_rng(1).gamma(2, 4, (SITES, DAYS)).astype(np.float32)
    return replace(panel, target=target)


def days_of(flat: np.ndarray) -> list[int]:
    """The days of samples that are the same at every site."""
    days = (flat % DAYS).reshape(SITES, -1)
    assert (days == days[0]).all()
    return days[0].tolist()


def test_a_period_within_the_training_period_by_hand():
    # Windows of 3 days: samples from day 2, gaps of 2 days. Outer: tested from day 18, so that the training
    # side ends with day 15, has 14 days, validates on round(0.25 x 14) = 4 of them and trains to day 9.
    outer = TemporalSplit(test_from=date(2021, 1, 19), validation=0.25)
    panel = without_gaps(world())
    alone = trial.prepare(cell(outer), panel)
    assert days_of(alone.train) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert days_of(alone.validation) == days_of(alone.indices.test) == [12, 13, 14, 15]
    assert alone.indices.wr is None
    seen = np.isfinite(alone.panel.target)
    assert np.flatnonzero(seen[0]).tolist() == [*range(10), 12, 13, 14, 15]
    assert (seen == seen[0]).all()

    # Inner: tested from day 9, so that it ends with day 6, has 5 days, validates on one and trains to day 3.
    inner = TemporalSplit(test_from=date(2021, 1, 10), validation=0.2)
    nested = trial.prepare(cell(outer, inner), panel)
    assert days_of(nested.train) == [2, 3]
    assert days_of(nested.validation) == [6]
    assert days_of(nested.indices.test) == [9, 12, 13, 14, 15]
    assert np.array_equal(nested.panel.target, alone.panel.target, equal_nan=True)


def test_groups_within_a_group_by_hand():
    # The sites of the east are the training side, but for those held out; the odd of them train.
    outer = GroupSplit(column="half", values=("west",), holdout=0.2)
    inner = GroupSplit(column="parity", values=("even", "odd"), holdout=0.3, validation=0.3)
    panel = without_gaps(world())
    half, parity = panel.groups["half"], panel.groups["parity"]
    held_out = splits.cut(outer, 0, panel, WINDOW).wr
    east = np.setdiff1d(np.flatnonzero(half == "east"), held_out // DAYS)
    assert len(east) == (half == "east").sum() - round(0.2 * (half == "east").sum())
    for fold, (tested, trained) in enumerate([("even", "odd"), ("odd", "even")]):
        made = trial.prepare(cell(outer, inner, fold), panel)
        sites = {
            p: np.unique(getattr(made.indices, p) // DAYS) for p in ("train", "validation", "test", "wr")
        }
        assert sites["test"].tolist() == east[parity[east] == tested].tolist()
        rest = [sites[p] for p in ("train", "validation", "wr")]
        assert np.sort(np.concatenate(rest)).tolist() == east[parity[east] == trained].tolist()
        n = (parity[east] == trained).sum()
        assert len(sites["wr"]) == round(0.3 * n)
        assert len(sites["validation"]) == round(0.3 * (n - round(0.3 * n)))
        seen = np.zeros((SITES, DAYS), bool)
        seen[east] = True
        assert np.array_equal(np.isfinite(made.panel.target), seen)


def test_sites_without_a_target_are_no_monitors():
    outer = CheckerboardSplit(degrees=30)
    panel = world()
    made = trial.prepare(cell(outer, SpatialSplit(folds=3), neighbours=NEIGHBOURS["neighbours"]), panel)
    silent = np.isnan(made.panel.target).all(axis=1)
    assert np.array_equal(np.flatnonzero(~silent), np.unique(training_side(outer, panel) // DAYS))
    assert 0 < silent.sum() < SITES
    known = np.isfinite(known_targets(made.panel, made.fitted["neighbours"], WINDOW)).any(axis=1)
    assert np.array_equal(np.flatnonzero(known), np.unique(made.indices.train // DAYS))
    audit = trial.run(made.cell, panel).audit
    assert audit["train_sites"] == known.sum()
    assert audit["train_sites"] + audit["test_sites"] < (~silent).sum()  # the rest validate
    # They have a neighbour feature of their own all the same, as any place has.
    at = made.inputs.channels.index("neighbours_pm25")
    assert made.inputs.features.view(SITES, DAYS, -1)[silent, :, at].std() > 0


def test_the_first_days_of_the_training_side_are_kept_for_neighbours():
    # No sample is of the days before the first whole window, at whose neighbours the first windows look.
    panel = without_gaps(world())
    made = trial.prepare(cell(SpatialSplit(folds=4)), panel)
    sites = np.unique(training_side(SpatialSplit(folds=4), panel) // DAYS)
    assert np.array_equal(made.panel.target[sites], panel.target[sites])
    assert np.isnan(made.panel.target[np.setdiff1d(np.arange(SITES), sites)]).all()


# --- The result --------------------------------------------------------------------------------------


@every_outer_and_inner
def test_a_result_tells_validation_scores_only(outer, inner):
    made, panel = cell(outer, inner), world()
    got, ready = trial.run(made, panel), trial.prepare(made, panel)
    held_out = {"val_wr": ready.validation if inner is None else ready.indices.test}
    if inner is not None and inner.regime == "OoR":
        held_out = {"val_oor": ready.indices.test, "val_wr": ready.indices.wr}
    assert list(got.metrics) == [f"{part}_{name}" for part in ("val", *held_out) for name in PLAIN]
    assert got.counts == {
        "n_train": len(ready.indices.train),
        "n_val": len(ready.indices.validation),
        **{f"n_{part[4:]}": len(flat) for part, flat in held_out.items()},
        "epochs": 1,
        "best_epoch": 1,
    }
    assert got.predictions == {}
    ready.model.load_state_dict(got.weights)
    for part, flat in {"val": ready.validation, **held_out}.items():
        expected = scores(panel.target.reshape(-1)[flat], ready.predict(flat))
        assert {name: got.metrics[f"{part}_{name}"] for name in PLAIN} == expected
    # The split that cut the scored part off keeps its promise.
    assert got.audit["failed"] == []
    assert got.audit["fitted_scalers_test"] == got.audit["fitted_target_test"] == 0
    assert got.audit["test_sites"] == len(np.unique(ready.indices.test // DAYS))


@pytest.mark.parametrize("outer", OUTER, ids=lambda s: s.label)
def test_the_audit_of_a_search_on_validation_finds_what_is_shared(outer, monkeypatch):
    # Validation samples that train: what no split makes, and what its check must see.
    cut = splits.cut

    def leaking(*arguments: Any) -> splits.SplitIndices:
        parts = cut(*arguments)
        return replace(parts, train=np.sort(np.concatenate([parts.train, parts.validation[:3]])))

    monkeypatch.setattr(splits, "cut", leaking)
    failed = trial.run(cell(outer), world()).audit["failed"]
    assert {"shared_samples", "fitted_scalers_test"} <= set(failed)
    assert ("gap_days" in failed) == (outer.kind == "temporal")
    assert ("shared_sites" in failed) == (outer.kind not in ("random", "temporal"))


def test_an_encoder_that_saw_pm25_is_a_failed_check_of_a_search_too():
    made = cell(OUTER[2], INNER[3], variant="table", fusion="concat")
    vectors = np.eye(SITES, dtype=np.float32)
    got = trial.run(made, world(), embedding=vectors, trained_on_target=True)
    assert got.audit["failed"] == ["encoder_trained_on_target"]


def test_limits_of_a_search_are_those_of_its_cell():
    limits = {"max_windows": 30, "max_validation_windows": 7}
    got = trial.run(cell(OUTER[2], train=limits), world())
    assert (got.counts["n_train"], got.counts["n_val"], got.counts["n_wr"]) == (30, 7, 7)
    nested = trial.run(cell(OUTER[2], INNER[3], train=limits), world())
    assert (nested.counts["n_train"], nested.counts["n_val"]) == (30, 7)
    assert nested.counts["n_wr"] > 7


@pytest.mark.parametrize(
    ("outer", "inner", "where", "field", "shown"),
    [
        # The training side of the first colour is the other one.
        (
            CheckerboardSplit(degrees=30),
            CheckerboardSplit(degrees=30),
            "toy, training side of checkerboard-30 fold 0",
            "split checkerboard-30 fold 0",
            ["test", "sites"],
        ),
        (
            TemporalSplit(test_from=date(2021, 1, 12)),
            TemporalSplit(test_from=date(2021, 1, 19)),
            "toy, training side of temporal-2021-01-12 fold 0",
            "split temporal-2021-01-19 fold 0",
            ["validation", 177, 40, "days"],
        ),
        (
            GroupSplit(column="half", values=("west",)),
            GroupSplit(column="half", values=("west", "east")),
            "toy, training side of group-half-west fold 0",
            "split group-half-west+east fold 0",
            ["test"],
        ),
        (
            GroupSplit(column="half", values=("west",)),
            GroupSplit(column="state", values=("06",)),
            "toy, training side of group-half-west fold 0",
            "state",
            ["group-state-06", "groups=('state',)"],
        ),
        (
            SpatialSplit(folds=2),
            ClusterSplit(folds=30),
            "toy, training side of spatial fold 0",
            "split clusters-30",
            [20, 30],
        ),
    ],
    ids=["colour", "period", "group", "column", "clusters"],
)
def test_a_cut_that_leaves_a_part_empty_is_refused(outer, inner, where, field, shown):
    with refuses(where, field, *shown):
        trial.prepare(cell(outer, inner), world())
