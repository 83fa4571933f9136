"""Reserved sites: whole blocks, equal for every split and fold, of which a search alone is scored."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pm25 import splits, trial
from pm25.cell import Cell, Tuning
from pm25.errors import InputError
from pm25.panel import Panel
from pm25.samples import cut_cell, trained_or_scored
from pm25.splits import (
    AnySplit,
    BlocksSplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    ClusterSplit,
    RandomSplit,
    Reserve,
    RollingSplit,
    SpatialSplit,
    reserved_sites,
)
from tests import worlds
from tests.errors import refuses

pytestmark = pytest.mark.usefixtures("one_thread")

DAYS, WINDOW = 40, 3
SPLITS: list[AnySplit] = [
    RandomSplit(folds=3),
    RollingSplit(folds=5, validation=0.2),
    SpatialSplit(folds=4),
    CheckerboardSplit(degrees=16),
    CheckerboardsSplit(degrees=16, origins=3),
    CheckerboardsSplit(degrees=16, origins=1, holdout="rotate"),
    BlocksSplit(folds=4, deals=2),
    ClusterSplit(folds=2),
]
INNER: list[AnySplit | None] = [None, RandomSplit(folds=3), SpatialSplit(folds=3, validation=0.3)]


def world(sites: int = 60, seed: int = 0) -> Panel:
    """Sites all over the country, in clumps as monitors are, one in ten values missing."""
    rng = np.random.default_rng(seed)
    features, target = rng.normal(size=(sites, DAYS, 2)), 0.5 + rng.gamma(2, 4, (sites, DAYS))
    target = worlds.without(target, 0.1, rng)
    centre = rng.integers(0, 12, sites)
    lon = np.clip(rng.uniform(-122, -70, 12)[centre] + rng.normal(0, 4, sites), -124, -67)
    lat = np.clip(rng.uniform(28, 47, 12)[centre] + rng.normal(0, 3, sites), 25.5, 49)
    return worlds.panel(features, target, lat, lon)


def cell(split: AnySplit, fold: int = 0, **changes: Any) -> Cell:
    return worlds.tiny_cell(split=split, fold=fold, **changes)


def block(panel: Panel, degrees: float = 8.0) -> np.ndarray:
    return np.stack(
        [np.floor((panel.lon + 124.706553) / degrees), np.floor((panel.lat - 25.120779) / degrees)]
    )


reserves = st.builds(
    Reserve,
    share=st.floats(0.1, 0.5),
    degrees=st.sampled_from([4.0, 8.0, 10.0]),
    seed=st.integers(0, 99),
)
panels = st.builds(world, sites=st.integers(40, 120), seed=st.integers(0, 10**6))


# The draw


@settings(max_examples=100, deadline=None)
@given(panel=panels, reserve=reserves)
def test_whole_blocks_are_reserved_and_no_other_block_would_come_nearer_to_the_share(panel, reserve):
    try:
        reserved = reserved_sites(reserve, panel, WINDOW)
    except InputError:
        assume(False)
    square = block(panel, reserve.degrees)
    _, number, size = np.unique(square, axis=1, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    in_block = np.bincount(number, reserved)
    assert set((in_block / size).tolist()) == {0.0, 1.0}
    off = abs(reserved.sum() - reserve.share * len(reserved))
    for left in size[in_block == 0]:
        assert abs(reserved.sum() + left - reserve.share * len(reserved)) >= off


def test_the_draw_by_hand():
    # Four blocks with 1, 2, 3 and 4 sites; 0.3 of ten sites are three.
    lon = np.repeat([-120.0, -110.0, -100.0, -90.0], [1, 2, 3, 4])
    panel = worlds.panel(np.zeros((10, DAYS, 1)), np.ones((10, DAYS)), np.full(10, 30.0), lon)
    found = {
        tuple(np.flatnonzero(reserved_sites(Reserve(share=0.3, seed=s), panel, WINDOW))) for s in range(40)
    }
    # If 1 and 3 are drawn first, four sites are nearer to three than one is; 1 + 4 and 2 + 3 are not.
    assert found == {(0, 1, 2), (3, 4, 5), (0, 3, 4, 5), (6, 7, 8, 9)}


def test_the_draw_is_that_of_the_sites_and_the_seed():
    panel, reserve = world(), Reserve(share=0.2)
    reserved = reserved_sites(reserve, panel, WINDOW)
    order = np.random.default_rng(0).permutation(60)
    shuffled = replace(
        panel,
        features=panel.features[order],
        target=panel.target[order],
        lat=panel.lat[order],
        lon=panel.lon[order],
    )
    assert np.array_equal(reserved_sites(reserve, shuffled, WINDOW), reserved[order])
    others = [reserved_sites(reserve.model_copy(update={"seed": s}), panel, WINDOW) for s in range(1, 9)]
    assert any(not np.array_equal(reserved, other) for other in others)
    changed = replace(panel, target=panel.target * 3 + 1)
    assert np.array_equal(reserved_sites(reserve, changed, WINDOW), reserved)


def test_sites_without_samples_do_not_count():
    panel = world()
    target = panel.target.copy()
    target[::2] = np.nan
    half = replace(panel, target=target)
    seen = np.isfinite(target).any(axis=1)
    reserved = reserved_sites(Reserve(share=0.5, degrees=4), half, WINDOW)
    assert abs(reserved[seen].mean() - 0.5) < 0.1


@pytest.mark.parametrize(("share", "degrees", "shown"), [(0.15, 90, "none"), (0.999, 8, "all")])
def test_a_share_that_no_blocks_have_is_refused(share, degrees, shown):
    with refuses("toy", "search.reserve", shown, f"{share:g}", f"{degrees:g} degrees"):
        reserved_sites(Reserve(share=share, degrees=degrees), world(), WINDOW)


def test_a_number_is_a_share():
    assert Reserve.model_validate(0.15) == Reserve(share=0.15, degrees=8, seed=0)
    for wrong in (0, 1, -0.1, True, "x"):
        with pytest.raises(ValidationError):
            Reserve.model_validate(wrong)


# What is tested, and what tunes


@settings(max_examples=30, deadline=None)
@given(panel=panels, reserve=reserves, split=st.sampled_from(SPLITS), inner=st.sampled_from(INNER))
def test_no_sample_of_a_search_is_a_test_sample_of_any_split(panel, reserve, split, inner):
    try:
        reserved = reserved_sites(reserve, panel, WINDOW)
        used = trained_or_scored(cell(split, tuning=Tuning(split=inner), reserve=reserve), panel)
    except InputError:
        assume(False)
    assert reserved[used // DAYS].all()
    for other in SPLITS:
        for fold in range(other.n_folds):
            try:
                plain = splits.cut(other, fold, panel, WINDOW)
                _, parts = cut_cell(cell(other, fold, reserve=reserve), panel)
            except InputError:  # a region has reserved sites alone
                continue
            for part, before in ((parts.test, plain.test), (parts.wr, plain.wr)):
                if part is None:
                    assert before is None
                    continue
                assert not reserved[part // DAYS].any()
                assert not np.isin(part, used).any()
                assert np.array_equal(part, before[~reserved[before // DAYS]])
            # Reserved sites may train the grid, as before.
            assert np.array_equal(parts.train, plain.train)
            assert np.array_equal(parts.validation, plain.validation)


@pytest.mark.parametrize("inner", INNER, ids=lambda split: split.label if split else "validation")
def test_targets_of_other_sites_do_not_reach_a_search(inner):
    panel, reserve = world(), Reserve(share=0.4)
    made = cell(RandomSplit(folds=3), variant="latlon", tuning=Tuning(split=inner), reserve=reserve)
    reserved = reserved_sites(reserve, panel, WINDOW)
    ready = trial.prepare(made, panel)
    assert not np.isfinite(ready.panel.target[~reserved]).any()
    target = panel.target.copy()
    target[~reserved] = 300 - 7 * target[~reserved]
    first, second = trial.run(made, panel), trial.run(made, replace(panel, target=target))
    assert (first.metrics, first.history, first.audit) == (second.metrics, second.history, second.audit)
    target = panel.target.copy()
    target[reserved] *= 2
    assert trial.run(made, replace(panel, target=target)).metrics != first.metrics


def test_a_cell_of_the_grid_is_scored_without_the_reserved_sites_and_trains_as_before():
    panel, reserve = world(), Reserve(share=0.3)
    reserved = set(panel.site_id[reserved_sites(reserve, panel, WINDOW)].tolist())
    plain = trial.run(cell(CheckerboardSplit(degrees=16)), panel)
    made = trial.run(cell(CheckerboardSplit(degrees=16), reserve=reserve), panel)
    assert made.history == plain.history
    kept = ~np.isin(plain.predictions["site_id"], [*reserved])
    assert 0 < kept.sum() < len(kept)
    for name, values in made.predictions.items():
        assert np.array_equal(values, plain.predictions[name][kept])
    assert (made.audit["reserved_test"], made.audit["failed"]) == (0, [])
    assert "reserved_test" not in plain.audit


def test_the_audit_finds_reserved_sites_that_are_tested(monkeypatch):
    panel = world()
    monkeypatch.setattr(splits, "leave_untested", lambda indices, *_: indices)
    audit = trial.run(cell(SpatialSplit(folds=2), reserve=Reserve(share=0.4)), panel).audit
    assert audit["failed"] == ["reserved_test"]
    assert audit["reserved_test"] > 0


def test_a_test_set_of_reserved_sites_alone_is_refused():
    lon = np.array([-120.0] * 4 + [-100.0] * 8)
    panel = worlds.panel(np.zeros((12, DAYS, 1)), np.ones((12, DAYS)), np.full(12, 30.0), lon)
    reserve = Reserve(share=0.3)
    colour = int(splits.checkerboard(30.0, -120.0, 16))
    with refuses("toy", f"split checkerboard-16 fold {colour}", "test"):
        cut_cell(cell(CheckerboardSplit(degrees=16), colour, reserve=reserve), panel)


# The key


def test_the_key_has_the_reserve_and_is_as_before_without():
    plain = cell(RandomSplit())
    assert "reserve" not in plain.resolved()
    made = cell(RandomSplit(), reserve=Reserve(share=0.2))
    assert made.resolved() == plain.resolved() | {"reserve": {"share": 0.2, "degrees": 8.0, "seed": 0}}
    different = [
        Reserve(share=0.2),
        Reserve(share=0.3),
        Reserve(share=0.2, degrees=4),
        Reserve(share=0.2, seed=1),
    ]
    assert len({cell(RandomSplit(), reserve=one).key("data") for one in [None, *different]}) == 5


def test_protocol_paper_has_no_reserve():
    with pytest.raises(ValidationError, match="reserve"):
        cell(RandomSplit(), protocol="paper", reserve=Reserve(share=0.2))
