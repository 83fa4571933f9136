"""Checkerboards at several origins, dealt blocks and rolling test periods: by hand, and as properties."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.cell import Cell, Tuning
from pm25.geo import inside_conus
from pm25.panel import Panel
from pm25.splits import (
    HOLDOUT_PARTS,
    AnySplit,
    BlocksSplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    RollingSplit,
    SplitIndices,
    TemporalSplit,
    checkerboard,
    checkerboards,
    cut,
    grid_origin,
    regions,
)
from tests import worlds
from tests.errors import refuses

WEST, SOUTH, EAST, NORTH = -124.706553, 25.120779, -66.979601, 49.383625
DAYS, WINDOW = 12, 4
WORLDS = st.integers(0, 1000)
"""Seeds of random panels."""


def conus(sites: int = 60, seed: int = 0, days: int = DAYS, outside: int = 2) -> Panel:
    """Random places in the box, and a few in Hawaii; a fifth of the values is missing."""
    rng = np.random.default_rng(seed)
    lat = np.append(rng.uniform(SOUTH, NORTH, sites), rng.uniform(19, 22, outside))
    lon = np.append(rng.uniform(WEST, EAST, sites), rng.uniform(-160, -155, outside))
    target = worlds.without(rng.gamma(2, 4, (len(lat), days)), 0.2, rng)
    features = rng.normal(size=(len(lat), days, 2))
    return worlds.panel(features, target, lat, lon, start=worlds.EPOCH)


def sites(flat: np.ndarray, days: int = DAYS) -> set[int]:
    return set((flat // days).tolist())


def days_of(flat: np.ndarray, days: int) -> list[int]:
    return sorted(set((flat % days).tolist()))


def sets(indices: SplitIndices) -> list[np.ndarray]:
    found = [indices.train, indices.validation, indices.test]
    return found if indices.wr is None else [*found, indices.wr]


def equal(one: SplitIndices, other: SplitIndices) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(sets(one), sets(other), strict=True))


def taking_part(panel: Panel) -> set[int]:
    """Sites inside CONUS with at least one sample."""
    seen = np.isfinite(panel.target[:, WINDOW - 1 :]).any(axis=1)
    return set(np.flatnonzero(inside_conus(panel.lat, panel.lon) & seen).tolist())


def key(split: Any, fold: int, **fields: Any) -> str:
    return Cell(variant="none", split=split, fold=fold, seed=0, **fields).key("d" * 32)


# --- Origins -----------------------------------------------------------------------------------------


def test_the_origins_are_the_r2_sequence():
    # 1 / 1.3247179572 and 1 / 1.7548776662, the published steps of the sequence (Roberts 2018).
    assert grid_origin(0, 16) == (0.0, 0.0)
    assert grid_origin(1, 1) == pytest.approx((0.7548776662, 0.5698402910), abs=1e-10)
    assert grid_origin(2, 10) == pytest.approx((5.0975533249, 1.3968058199), abs=1e-8)


def test_fifteen_origins_fill_the_cell_evenly():
    origins = np.array([grid_origin(i, 16) for i in range(15)])
    assert origins.min() >= 0
    assert origins.max() < 16
    apart = (origins[:, None] - origins[None] + 8) % 16 - 8  # a move by a cell is the same grid
    distance = np.hypot(*np.moveaxis(apart, 2, 0))
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 2.5  # 15 points on a square lattice are 4.1 degrees apart
    assert np.histogram2d(*origins.T, bins=2, range=[[0, 16]] * 2)[0].min() >= 3


@given(WORLDS, st.floats(1, 30), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_the_colours_of_an_origin_do_not_depend_on_their_number(seed, degrees, few, more):
    panel = conus(seed=seed)
    colours = checkerboards(panel.lat, panel.lon, degrees, few + more)
    assert colours.shape == (few + more, len(panel.lat))
    assert np.array_equal(colours[:few], checkerboards(panel.lat, panel.lon, degrees, few))
    assert np.array_equal(colours[0], checkerboard(panel.lat, panel.lon, degrees))
    outside = ~inside_conus(panel.lat, panel.lon)
    assert (colours[:, outside] == -1).all()
    assert np.isin(colours[:, ~outside], (0, 1)).all()


# --- Checkerboards -----------------------------------------------------------------------------------


@given(WORLDS, st.integers(0, 9), st.sampled_from([0.2, 0.4, "rotate"]))
@settings(max_examples=30, deadline=None)
def test_every_origin_tests_every_site_from_outside_and_keeps_all_sets_apart(seed, origin, holdout):
    panel = conus(seed=seed)
    split = CheckerboardsSplit(degrees=16, holdout=holdout, seed=seed)
    folds = range(2 * split.parts * origin, 2 * split.parts * (origin + 1))
    colour = checkerboards(panel.lat, panel.lon, 16, origin + 1)[origin]
    tested = np.zeros(len(panel.lat), int)
    for fold in folds:
        indices = cut(split, fold, panel, WINDOW)
        groups = [sites(flat) for flat in sets(indices)]
        assert sum(map(len, groups)) == len(set.union(*groups)) == len(taking_part(panel))
        assert split.position(fold).repeat == split.unit(fold) == origin
        assert {int(colour[site]) for site in groups[2]} == {split.position(fold).region}
        tested[list(groups[2])] += 1
    assert set(np.flatnonzero(tested).tolist()) == taking_part(panel)
    assert set(tested[list(taking_part(panel))].tolist()) == {split.parts}


@pytest.mark.parametrize("fold", [0, 1])
def test_origin_0_is_the_published_checkerboard(fold):
    panel, changes = conus(), {"degrees": 16, "seed": 3, "buffer_km": 80, "validation": 0.2}
    one = cut(CheckerboardSplit(**changes), fold, panel, WINDOW)
    assert equal(one, cut(CheckerboardsSplit(**changes), fold, panel, WINDOW))


@given(WORLDS, st.integers(0, 9), st.floats(0.05, 0.4))
@settings(max_examples=30, deadline=None)
def test_a_rotating_holdout_predicts_every_site_once_from_within(seed, origin, validation):
    panel = conus(90, seed)
    split = CheckerboardsSplit(degrees=16, holdout="rotate", seed=seed, validation=validation)
    assert (split.parts, split.n_folds) == (HOLDOUT_PARTS, 150)
    within = np.zeros(len(panel.lat), int)
    for colour in (0, 1):
        sizes, tests = [], set()
        for part in range(5):
            fold = (2 * origin + colour) * 5 + part
            assert split.position(fold) == (origin, colour, part)
            indices = cut(split, fold, panel, WINDOW)
            within[list(sites(indices.wr))] += 1
            sizes.append((len(sites(indices.train)), len(sites(indices.wr))))
            tests.add(frozenset(sites(indices.test)))
        assert len(tests) == 1
        assert np.ptp(sizes, axis=0).max() <= 1
    assert set(within[list(taking_part(panel))].tolist()) == {1}
    assert within.sum() == len(taking_part(panel))


def test_rotation_draws_by_seed_origin_and_colour():
    panel = conus(90)
    split = CheckerboardsSplit(degrees=16, holdout="rotate")
    every = range(0, split.n_folds, 5)
    assert len({frozenset(sites(cut(split, fold, panel, WINDOW).wr)) for fold in every}) == len(every)
    other = split.model_copy(update={"seed": 1})
    assert sites(cut(split, 0, panel, WINDOW).wr) != sites(cut(other, 0, panel, WINDOW).wr)


def test_a_buffer_leaves_both_test_sets_of_a_rotation_unchanged():
    panel = conus(90)
    plain = CheckerboardsSplit(degrees=16, holdout="rotate")
    near = plain.model_copy(update={"buffer_km": 300})
    for fold in (0, 7, 13):
        one, other = (cut(split, fold, panel, WINDOW) for split in (plain, near))
        assert np.array_equal(one.test, other.test)
        assert np.array_equal(one.wr, other.wr)
        assert sites(other.train) < sites(one.train)


# --- Blocks ------------------------------------------------------------------------------------------


@given(WORLDS, st.integers(0, 6), st.sampled_from([4.0, 6.0, 8.0]), st.integers(2, 10))
@settings(max_examples=30, deadline=None)
def test_every_deal_tests_every_site_once_in_complete_blocks(seed, deal, degrees, folds):
    panel = conus(seed=seed)
    split = BlocksSplit(degrees=degrees, folds=folds, seed=seed)
    east, north = grid_origin(deal, degrees)
    column, row = (
        np.floor((panel.lon - WEST - east) / degrees),
        np.floor((panel.lat - SOUTH - north) / degrees),
    )
    tested, blocks = np.zeros(len(panel.lat), int), []
    for fold in range(deal * folds, (deal + 1) * folds):
        indices = cut(split, fold, panel, WINDOW)
        groups = [sites(flat) for flat in sets(indices)]
        assert sum(map(len, groups)) == len(set.union(*groups)) == len(taking_part(panel))
        assert (split.position(fold).repeat, split.unit(fold)) == (deal, fold)
        tested[list(groups[2])] += 1
        blocks.append({(column[site], row[site]) for site in groups[2]})
        assert not blocks[-1] & {(column[site], row[site]) for site in set.union(*groups) - groups[2]}
    assert set(np.flatnonzero(tested).tolist()) == taking_part(panel)
    assert tested.max() == 1
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert sum(map(len, blocks)) == len(set.union(*blocks))


def test_deals_differ_by_grid_and_by_draw():
    panel = conus(90)
    every = np.arange(len(panel.lat))
    deals = [regions(BlocksSplit(folds=4), panel, every, deal) for deal in range(3)]
    assert len({deal.tobytes() for deal in deals}) == 3
    assert not np.array_equal(deals[0], regions(BlocksSplit(folds=4, seed=1), panel, every))
    assert (deals[0] == -1).sum() == 2


def test_more_folds_than_blocks_are_refused():
    panel = worlds.panel(np.zeros((6, 8, 1)), np.ones((6, 8)), np.full(6, 40.0), np.linspace(-100, -80, 6))
    # 24.7 to 44.7 degrees east of the corner of the box: columns 3, 4 and 5 of blocks of 8 degrees.
    with refuses("toy", "split blocks-8", 3, 4):
        cut(BlocksSplit(folds=4), 0, panel, WINDOW)
    assert sorted(regions(BlocksSplit(folds=3), panel, np.arange(6)).tolist()) != [0] * 6


# --- Numbers of origins and deals --------------------------------------------------------------------

REPEATED: list[tuple[AnySplit, AnySplit]] = [
    (CheckerboardsSplit(degrees=16, origins=5), CheckerboardsSplit(degrees=16, origins=40)),
    (
        CheckerboardsSplit(degrees=16, origins=5, holdout="rotate"),
        CheckerboardsSplit(degrees=16, origins=40, holdout="rotate"),
    ),
    (BlocksSplit(folds=4, deals=2), BlocksSplit(folds=4, deals=40)),
]


@pytest.mark.parametrize(("few", "many"), REPEATED, ids=["share", "rotate", "blocks"])
def test_a_fold_is_the_same_whatever_the_number_of_origins_or_deals(few, many):
    panel = conus(90)
    for fold in {0, few.n_folds // 2, few.n_folds - 1}:
        assert equal(cut(few, fold, panel, WINDOW), cut(many, fold, panel, WINDOW))
        assert few.position(fold) == many.position(fold)
        one, other = (Cell(variant="none", split=split, fold=fold, seed=0) for split in (few, many))
        assert one == other
        assert hash(one) == hash(other)
        assert one.resolved() == other.resolved()
        assert few.repeated_by not in one.resolved()["split"]
        nested = [Tuning(split=split, fold=fold) for split in (few, many)]
        assert nested[0] == nested[1]
        assert key(few, 0, tuning=nested[0]) == key(many, 0, tuning=nested[1])
    assert few != many
    assert few.label == many.label


@pytest.mark.parametrize("split", [pair[1] for pair in REPEATED], ids=["share", "rotate", "blocks"])
def test_a_cell_of_any_fold_survives_its_json(split):
    last = Cell(variant="none", split=split, fold=split.n_folds - 1, seed=0)
    for again in (
        Cell.model_validate(json.loads(json.dumps(last.resolved()))),
        Cell.model_validate_json(last.model_dump_json()),
    ):
        assert again == last
        assert again.key("d" * 32) == last.key("d" * 32)
    assert len({key(split, fold) for fold in range(split.n_folds)}) == split.n_folds


def test_equal_blocks_have_one_key_however_they_are_written():
    assert key({"kind": "blocks", "degrees": 8}, 0) == key(BlocksSplit(), 0)
    assert key({"kind": "checkerboards", "degrees": 16}, 3) == key(CheckerboardsSplit(degrees=16.0), 3)


# --- Rolling test periods ----------------------------------------------------------------------------


def test_a_rolling_cut_by_hand():
    # 43 days and windows of 4. Half of them, 22, come first; 21 days make 5 periods of 4, from day 23 on.
    panel = conus(5, days=43)
    panel.target[:] = 1
    split = RollingSplit(validation=0.25)
    for fold in range(5):
        indices = cut(split, fold, panel, WINDOW)
        start = 23 + 4 * fold
        assert days_of(indices.test, 43) == list(range(start, start + 4))
        last = start - 4  # three days of gap
        first = last + 1 - round((last - 3 + 1) / 4)
        assert days_of(indices.validation, 43) == list(range(first, last + 1))
        assert days_of(indices.train, 43) == list(range(3, first - 3))


@given(WORLDS, st.integers(5, 8), st.floats(0.3, 0.8), st.none() | st.integers(3, 6), st.integers(60, 100))
@settings(max_examples=30, deadline=None)
def test_rolling_periods_are_equal_and_follow_growing_trainings(seed, folds, start, gap, days):
    panel = conus(12, seed, days)
    split = RollingSplit(folds=folds, start=start, gap_days=gap)
    cuts = [cut(split, fold, panel, WINDOW) for fold in range(folds)]
    tested = [days_of(indices.test, days) for indices in cuts]
    for indices, test in zip(cuts, tested, strict=True):
        used = [days_of(flat, days) for flat in sets(indices)]
        assert used[0][-1] < used[1][0] - (3 if gap is None else gap)
        assert used[1][-1] < test[0] - (3 if gap is None else gap)
        same = TemporalSplit(test_from=panel.dates[test[0]].item(), gap_days=gap)
        one = cut(same, 0, panel, WINDOW)
        assert np.array_equal(one.train, indices.train)
        assert np.array_equal(one.validation, indices.validation)
        assert np.array_equal(np.intersect1d(one.test, indices.test), indices.test)
    assert [*itertools.chain(*tested)] == list(range(tested[0][0], days))
    assert len({len(test) for test in tested}) == 1
    assert tested[0][0] >= round(start * days)
    # A period of one day can go to validation alone.
    assert all(set(a.train) <= set(b.train) for a, b in itertools.pairwise(cuts))
    last = [int(days_of(indices.validation, days)[-1]) for indices in cuts]
    assert all(a < b for a, b in itertools.pairwise(last))
    assert len(cuts[0].train) < len(cuts[-1].train)


def test_rolling_periods_that_cannot_be_cut_are_refused():
    panel = conus(12, days=40)
    with refuses("toy", "split rolling-5-gap2", 2, 3):
        cut(RollingSplit(gap_days=2), 0, panel, WINDOW)
    with refuses("toy", "split rolling-21 fold 0", "test"):
        cut(RollingSplit(folds=21), 0, panel, WINDOW)
    with refuses("toy", "split rolling-5 fold 0", "train"):
        cut(RollingSplit(start=0.1), 0, panel, WINDOW)
