"""Splits cut what they say: colours and places by hand, partitions, buffers, gaps, groups and clusters."""

from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pm25.cell import Cell
from pm25.errors import InputError, SettingError
from pm25.geo import great_circle_km
from pm25.panel import Panel, from_table, read
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
    Split,
    SplitIndices,
    TemporalSplit,
    checkerboard,
    cut,
    regions,
)
from tests import worlds
from tests.errors import refuses

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "conus_daily_2021.parquet"

WEST, SOUTH, EAST, NORTH = -124.706553, 25.120779, -66.979601, 49.383625
KM_PER_DEGREE = 6371.0088 * np.pi / 180
DAYS, WINDOW = 12, 4
STATES = ("Ohio", "Utah", "New York")


def world(lat: np.ndarray, lon: np.ndarray, seed: int = 0, days: int = DAYS, missing: float = 0.2) -> Panel:
    rng = np.random.default_rng(seed)
    target = worlds.without(rng.gamma(2, 4, (len(lat), days)), missing, rng)
    features = rng.normal(size=(len(lat), days, 2))
    state = np.array(STATES)[rng.permutation(np.arange(len(lat)) % len(STATES))]
    return worlds.panel(features, target, lat, lon, start=worlds.EPOCH, groups={"state": state})


def conus(sites: int = 40, seed: int = 0, days: int = DAYS) -> Panel:
    rng = np.random.default_rng(seed)
    return world(rng.uniform(SOUTH, NORTH, sites), rng.uniform(WEST, EAST, sites), seed, days)


def samples(panel: Panel) -> np.ndarray:
    site, day = panel.samples(WINDOW)
    return site.astype(int) * panel.target.shape[1] + day


def sites(flat: np.ndarray) -> set[int]:
    return set((flat // DAYS).tolist())


def all_parts(parts: SplitIndices) -> list[np.ndarray]:
    named = [parts.train, parts.validation, parts.test]
    return named if parts.wr is None else [*named, parts.wr]


# --- The checkerboard --------------------------------------------------------------------------------

PLACES = {  # lat, lon, colours at 8, 16, 30 degrees, from (column + row) mod 2 worked out by hand
    "Los Angeles": (34.05, -118.24, 1, 0, 0),  # 6.5 E 8.9 N of the corner: (0, 1), (0, 0), (0, 0)
    "New York": (40.71, -74.00, 1, 1, 1),  # 50.7, 15.6: (6, 1), (3, 0), (1, 0)
    "Chicago": (41.85, -87.75, 0, 1, 1),  # 37.0, 16.7: (4, 2), (2, 1), (1, 0)
    "Miami": (25.80, -80.27, 1, 0, 1),  # 44.4, 0.7: (5, 0), (2, 0), (1, 0)
    "Denver": (39.74, -104.99, 1, 1, 0),  # 19.7, 14.6: (2, 1), (1, 0), (0, 0)
    "Honolulu": (21.31, -157.86, -1, -1, -1),
    "Anchorage": (61.22, -149.90, -1, -1, -1),
}


@pytest.mark.parametrize(("index", "degrees"), [(2, 8), (3, 16), (4, 30)])
def test_colours_of_cities(index, degrees):
    lat, lon = (np.array([p[i] for p in PLACES.values()]) for i in (0, 1))
    colour = checkerboard(lat, lon, degrees)
    assert dict(zip(PLACES, colour.tolist(), strict=True)) == {n: p[index] for n, p in PLACES.items()}
    assert np.issubdtype(colour.dtype, np.integer)


def test_the_edges_of_the_box_are_inside_and_the_next_number_is_not():
    corners = [
        (SOUTH, WEST, 0),
        (SOUTH, EAST, 1),
        (NORTH, WEST, 1),
        (NORTH, EAST, 0),
    ]  # columns 0, 7, rows 0, 3
    for lat, lon, colour in corners:
        assert checkerboard(lat, lon, 8) == colour
    for lat, lon in [
        (np.nextafter(SOUTH, 0), -100),
        (np.nextafter(NORTH, 90), -100),
        (40, np.nextafter(WEST, -180)),
        (40, np.nextafter(EAST, 0)),
        (np.nan, -100),
    ]:
        assert checkerboard(lat, lon, 8) == -1


def test_a_cell_holds_its_western_and_southern_edge():
    lon = WEST + 8 * np.arange(1, 8)
    assert checkerboard(np.full(7, SOUTH), lon + 1e-9, 8).tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert checkerboard(np.full(7, SOUTH), lon - 1e-9, 8).tolist() == [0, 1, 0, 1, 0, 1, 0]
    lat = SOUTH + 8 * np.arange(1, 4)
    assert checkerboard(lat + 1e-9, np.full(3, WEST), 8).tolist() == [1, 0, 1]
    assert checkerboard(lat - 1e-9, np.full(3, WEST), 8).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("degrees", "columns", "rows"), [(8, 8, 4), (16, 4, 2), (30, 2, 1)])
def test_cells_of_the_published_study(degrees, columns, rows):
    def runs(colour: np.ndarray) -> int:
        return 1 + sum(a != b for a, b in pairwise(colour.tolist()))

    lat, lon = np.linspace(SOUTH, NORTH, 2000), np.linspace(WEST, EAST, 2000)
    assert runs(checkerboard(np.full(2000, SOUTH), lon, degrees)) == columns
    assert runs(checkerboard(lat, np.full(2000, WEST), degrees)) == rows


def test_thirty_degrees_are_a_western_and_an_eastern_half():
    panel = conus(500)
    assert np.array_equal(checkerboard(panel.lat, panel.lon, 30), (panel.lon >= WEST + 30).astype(int))


@given(st.floats(SOUTH, NORTH), st.floats(WEST, EAST), st.floats(1, 30))
@settings(max_examples=100, deadline=None)
def test_a_step_of_one_cell_changes_the_colour(lat, lon, degrees):
    assume(lon + degrees <= EAST)
    from_corner = (lon - WEST) / degrees  # away from the edge, where rounding decides
    assume(1e-6 < from_corner % 1 < 1 - 1e-6)
    assert checkerboard(lat, lon, degrees) + checkerboard(lat, lon + degrees, degrees) == 1


# --- The cut -----------------------------------------------------------------------------------------

SPLITS = [
    RandomSplit(folds=4),
    SpatialSplit(folds=4),
    CheckerboardSplit(degrees=16),
    CheckerboardsSplit(degrees=16),
    CheckerboardsSplit(degrees=16, holdout="rotate"),
    BlocksSplit(folds=4),
    KNNDMSplit(folds=4),
]


@given(
    st.sampled_from(["random", "spatial", "checkerboard"]),
    st.integers(0, 1),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.floats(0.1, 0.5),
)
@settings(max_examples=40, deadline=None)
def test_parts_are_disjoint_ascending_and_made_of_samples(kind, fold, split_seed, world_seed, share):
    panel = conus(60, world_seed)
    split = {
        "random": RandomSplit(seed=split_seed, validation=share),
        "spatial": SpatialSplit(seed=split_seed, validation=share),
        "checkerboard": CheckerboardSplit(degrees=16, seed=split_seed, validation=share),
    }[kind]
    parts = cut(split, fold, panel, WINDOW)
    for part in all_parts(parts):
        assert (np.diff(part) > 0).all()
    together = np.sort(np.concatenate(all_parts(parts)))
    assert np.array_equal(together, samples(panel))  # nothing twice, nothing lost, nothing else
    assert (parts.wr is None) == (kind != "checkerboard")


@pytest.mark.parametrize("split", SPLITS[:2])
def test_the_test_sets_of_the_folds_partition_the_samples(split):
    panel = conus()
    tests = [cut(split, fold, panel, WINDOW).test for fold in range(4)]
    assert np.array_equal(np.sort(np.concatenate(tests)), samples(panel))
    if isinstance(split, SpatialSplit):
        groups = [sites(test) for test in tests]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 40
        assert [len(g) for g in groups] == [10] * 4
    else:
        assert max(map(len, tests)) - min(map(len, tests)) <= 1


def test_validation_is_the_named_share_of_the_rest():
    panel = conus()
    parts = cut(RandomSplit(folds=4, validation=0.3), 1, panel, WINDOW)
    rest = len(samples(panel)) - len(parts.test)
    assert len(parts.validation) == round(0.3 * rest)
    parts = cut(SpatialSplit(folds=4, validation=0.3), 1, panel, WINDOW)
    assert len(sites(parts.validation)) == 9  # of 30
    board = CheckerboardSplit(degrees=16, holdout=0.25, validation=0.3)
    parts = cut(board, 1, panel, WINDOW)
    region = int((checkerboard(panel.lat, panel.lon, 16) == 0).sum())
    assert len(sites(parts.wr)) == round(0.25 * region)
    assert len(sites(parts.validation)) == round(0.3 * (region - round(0.25 * region)))


def test_a_random_cut_mixes_sites_and_days():
    parts = cut(RandomSplit(), 0, conus(), WINDOW)
    assert sites(parts.test) <= sites(parts.train)
    assert sites(parts.validation) <= sites(parts.train)
    assert len({int(f) % DAYS for f in parts.validation}) == DAYS - WINDOW + 1  # not the last rows, say


@pytest.mark.parametrize("split", SPLITS[1:])
@pytest.mark.parametrize("fold", [0, 1])
def test_sites_stand_in_one_part_only(split, fold):
    groups = [sites(part) for part in all_parts(cut(split, fold, conus(), WINDOW))]
    assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.parametrize("degrees", [8, 16, 30])
def test_a_checkerboard_tests_one_colour_and_all_else_has_the_other(degrees):
    panel = conus(60)
    colour = checkerboard(panel.lat, panel.lon, degrees)
    both = [cut(CheckerboardSplit(degrees=degrees), fold, panel, WINDOW) for fold in (0, 1)]
    for fold, parts in enumerate(both):
        assert {int(colour[s]) for s in sites(parts.test)} == {fold}
        training_side = sites(parts.train) | sites(parts.validation) | sites(parts.wr)
        assert {int(colour[s]) for s in training_side} == {1 - fold}
    # Swapped: what one direction tests is the other's training side.
    for parts, other in (both, both[::-1]):
        side = np.concatenate([other.train, other.validation, other.wr])
        assert np.array_equal(parts.test, np.sort(side))


def test_sites_outside_the_box_take_no_part_in_a_checkerboard():
    inside = conus(30)
    panel = world(np.append(inside.lat, [21.31, 61.22]), np.append(inside.lon, [-157.86, -149.9]))
    parts = cut(CheckerboardSplit(degrees=16), 0, panel, WINDOW)
    assert set.union(*map(sites, all_parts(parts))) == set(range(30))
    assert {30, 31} <= set.union(*map(sites, all_parts(cut(SpatialSplit(), 0, panel, WINDOW))))


@pytest.mark.parametrize("split", SPLITS)
def test_the_cut_knows_places_and_gaps_but_no_value(split):
    panel = conus()
    first = cut(split, 1, panel, WINDOW)
    np.random.default_rng().random()
    changed = replace(
        panel,
        features=panel.features * 3 + 1,
        target=np.where(np.isnan(panel.target), np.nan, 100 - panel.target).astype(np.float32),
        dates=panel.dates + 400,
        channels=("c", "d"),
        name="other",
        groups={},
    )
    again = cut(split, 1, changed, WINDOW)
    for a, b in zip(all_parts(first), all_parts(again), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("split", SPLITS)
def test_another_split_seed_is_another_cut(split):
    panel = conus()
    first, other = (cut(split.model_copy(update={"seed": s}), 0, panel, WINDOW) for s in (0, 1))
    assert not np.array_equal(first.validation, other.validation)
    if isinstance(split, CheckerboardSplit | CheckerboardsSplit):
        assert np.array_equal(first.test, other.test)  # its test set is a matter of geography
        assert not np.array_equal(first.wr, other.wr)
    else:
        assert not np.array_equal(first.test, other.test)


def test_folds_draw_their_validation_apart():
    panel, places = conus(60), set()
    for fold in range(4):
        parts = cut(SpatialSplit(folds=4, validation=0.2), fold, panel, WINDOW)
        training_side = sorted(sites(parts.train) | sites(parts.validation))
        assert len(training_side) == 45
        # Where the validation sites stand among those that could be drawn.
        places.add(tuple(training_side.index(site) for site in sorted(sites(parts.validation))))
    assert len(places) == 4


def test_sites_without_a_sample_take_no_part():
    panel = conus(12)
    panel.target[5] = np.nan
    panel.target[6, WINDOW - 1 :] = np.nan  # observed, but never with a whole window before it
    groups = [cut(SpatialSplit(folds=5), fold, panel, WINDOW) for fold in range(5)]
    assert set.union(*(sites(p.test) for p in groups)) == set(range(12)) - {5, 6}
    assert [len(sites(p.test)) for p in groups] == [2] * 5


@pytest.mark.parametrize(
    ("split", "fold", "panel", "part"),
    [
        (SpatialSplit(folds=5, validation=0.3), 4, conus(4), "test"),
        (SpatialSplit(folds=2), 0, conus(4), "validation"),  # a tenth of two sites
        (RandomSplit(), 0, world(np.full(2, 40.0), np.full(2, -100.0), days=WINDOW - 1), "train"),
        (CheckerboardSplit(degrees=30), 0, world(np.full(9, 40.0), np.full(9, -80.0)), "test"),
        (CheckerboardSplit(degrees=30), 1, world(np.full(9, 40.0), np.full(9, -80.0)), "train"),
        (CheckerboardSplit(degrees=30, holdout=0.01), 0, conus(20), "wr"),
    ],
)
def test_an_empty_part_is_refused(split, fold, panel, part):
    with refuses("toy", f"split {split.label} fold {fold}", part):
        cut(split, fold, panel, WINDOW)


# --- Settings and labels -----------------------------------------------------------------------------

JUNE = date(2021, 6, 1)
LABELS = {
    "random": RandomSplit(),
    "spatial": SpatialSplit(),
    "spatial-buffer50km": SpatialSplit(buffer_km=50),
    "spatial-buffer0.5km": SpatialSplit(buffer_km=0.5),
    "checkerboard-16": CheckerboardSplit(degrees=16),
    "checkerboard-16-shift4x0": CheckerboardSplit(degrees=16, origin=(4, 0)),
    "checkerboard-16-shift0x4.5-buffer100km": CheckerboardSplit(degrees=16, origin=(0, 4.5), buffer_km=100),
    "group-state-Ohio": GroupSplit(column="state", values=("Ohio",)),
    "group-state-Ohio+Utah": GroupSplit(column="state", values=("Ohio", "Utah")),
    "group-state-4-buffer9km": GroupSplit(column="state", values=("a", "b", "c", "d"), buffer_km=9),
    "clusters-5": ClusterSplit(),
    "clusters-10-buffer50km": ClusterSplit(folds=10, buffer_km=50),
    "checkerboards-16": CheckerboardsSplit(degrees=16, origins=3),
    "checkerboards-16-rotate-buffer100km": CheckerboardsSplit(degrees=16, holdout="rotate", buffer_km=100),
    "blocks-8": BlocksSplit(deals=2),
    "blocks-4.5-buffer50km": BlocksSplit(degrees=4.5, buffer_km=50),
    "knndm-5": KNNDMSplit(),
    "knndm-8-max0.25-buffer50km": KNNDMSplit(folds=8, max_share=0.25, buffer_km=50),
    "rolling-5": RollingSplit(),
    "rolling-6-gap30": RollingSplit(folds=6, gap_days=30),
    "temporal-2021-06-01": TemporalSplit(test_from=JUNE),
    "temporal-2021-06-01-gap30": TemporalSplit(test_from=JUNE, gap_days=30),
}
KEYS: dict[str, dict[str, Any]] = {
    "spatial": {"buffer_km": 50},
    "checkerboard": {"buffer_km": 50, "origin": (4, 0)},
    "group": {"column": "county", "values": ("Utah", "Ohio"), "holdout": 0.3, "buffer_km": 1.0, "seed": 1},
    "clusters": {"folds": 6, "holdout": 0.3, "validation": 0.2, "buffer_km": 1.0, "seed": 1},
    "temporal": {"test_from": date(2021, 6, 2), "gap_days": 20, "validation": 0.2},
    "checkerboards": {"degrees": 9.0, "holdout": "rotate", "validation": 0.2, "buffer_km": 1.0, "seed": 1},
    "blocks": {"degrees": 9.0, "folds": 6, "holdout": 0.3, "validation": 0.2, "buffer_km": 1.0, "seed": 1},
    "rolling": {"folds": 6, "start": 0.4, "gap_days": 20, "validation": 0.2},
    "knndm": {"folds": 6, "max_share": 0.4, "validation": 0.2, "buffer_km": 1.0, "seed": 1},
}
BASES: list[AnySplit] = [
    SpatialSplit(),
    CheckerboardSplit(degrees=8),
    GroupSplit(column="state", values=("Ohio", "Utah")),
    ClusterSplit(),
    TemporalSplit(test_from=JUNE),
    CheckerboardsSplit(degrees=8),
    BlocksSplit(),
    RollingSplit(),
    KNNDMSplit(),
]


def key(split: AnySplit) -> str:
    return Cell(variant="none", split=split, fold=0, seed=0).key("d" * 32)


@pytest.mark.parametrize("label", LABELS)
def test_a_label_says_what_tells_two_splits_apart(label):
    assert LABELS[label].label == label


def test_regimes_and_folds():
    properties = {s.kind: (s.regime, s.folds, s.repeats, s.n_folds) for s in [RandomSplit(), *BASES]}
    assert properties == {
        "random": ("WR", 5, 1, 5),
        "spatial": ("WR", 5, 1, 5),
        "temporal": ("WR", 1, 1, 1),
        "checkerboard": ("OoR", 2, 1, 2),
        "group": ("OoR", 2, 1, 2),
        "clusters": ("OoR", 5, 1, 5),
        "checkerboards": ("OoR", 2, 15, 30),
        "blocks": ("OoR", 10, 3, 30),
        "rolling": ("WR", 5, 1, 5),
        "knndm": ("WR", 5, 1, 5),
    }


@pytest.mark.parametrize("split", BASES, ids=lambda s: s.kind)
def test_every_setting_changes_the_key_and_a_split_survives_its_json(split):
    others = [split.model_copy(update={name: value}) for name, value in KEYS[split.kind].items()]
    keys = [key(s) for s in [split, *others]]
    assert len(set(keys)) == len(keys)
    for one in [split, *others]:
        adapter: TypeAdapter[Any] = TypeAdapter(Split)
        assert adapter.validate_json(adapter.dump_json(one)) == one
        assert hash(one) is not None


def test_settings_that_are_not_given_are_not_in_the_key():
    for split in BASES:
        resolved = Cell(variant="none", split=split, fold=0, seed=0).resolved()["split"]
        assert not {"buffer_km", "origin", "gap_days"} & {*resolved}


def test_no_shift_has_one_spelling():
    zeros = [(0, 0), (0.0, -0.0), (-0.0, -0.0), [0, 0]]
    assert {CheckerboardSplit(degrees=8, origin=z) for z in zeros} == {CheckerboardSplit(degrees=8)}
    one, other = (CheckerboardSplit(degrees=8, origin=(x, 4)) for x in (0.0, -0.0))
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("kind", "values", "fault", "field"),
    [
        (CheckerboardSplit, {"degrees": 8, "origin": (8, 0)}, "value_error", "origin"),
        (CheckerboardSplit, {"degrees": 8, "origin": (0, -1)}, "greater_than_equal", "origin.1"),
        (CheckerboardSplit, {"degrees": 8, "buffer_km": 0}, "greater_than", "buffer_km"),
        (CheckerboardSplit, {"degrees": 8, "folds": 3}, "extra_forbidden", "folds"),
        (GroupSplit, {"column": "state"}, "missing", "values"),
        (GroupSplit, {"column": "state", "values": ()}, "too_short", "values"),
        (GroupSplit, {"column": "state", "values": ("a", "b", "a")}, "value_error", "values"),
        (GroupSplit, {"column": "state", "values": ("",)}, "string_too_short", "values.0"),
        (ClusterSplit, {"folds": 1}, "greater_than_equal", "folds"),
        (CheckerboardsSplit, {"degrees": 8, "origins": 0}, "greater_than_equal", "origins"),
        (CheckerboardsSplit, {"degrees": 8, "holdout": "rotates"}, "value_error", "holdout"),
        (CheckerboardsSplit, {"degrees": 8, "holdout": 1.0}, "value_error", "holdout"),
        (CheckerboardsSplit, {"degrees": 8, "holdout": 0}, "value_error", "holdout"),
        (CheckerboardsSplit, {"degrees": 8, "origins": 1001}, "less_than_equal", "origins"),
        (CheckerboardsSplit, {"degrees": 8, "origin": (1, 1)}, "extra_forbidden", "origin"),
        (BlocksSplit, {"deals": 0}, "greater_than_equal", "deals"),
        (BlocksSplit, {"holdout": "rotate"}, "float_parsing", "holdout"),
        (KNNDMSplit, {"folds": 2}, "value_error", "max_share"),
        (KNNDMSplit, {"folds": 5, "max_share": 0.2}, "value_error", "max_share"),
        (KNNDMSplit, {"holdout": 0.2}, "extra_forbidden", "holdout"),
        (RollingSplit, {"folds": 4}, "greater_than_equal", "folds"),
        (RollingSplit, {"start": 1}, "less_than", "start"),
        (RollingSplit, {"seed": 1}, "extra_forbidden", "seed"),
        (TemporalSplit, {"test_from": JUNE, "gap_days": -1}, "greater_than_equal", "gap_days"),
        (TemporalSplit, {"test_from": "June"}, "date_from_datetime_parsing", "test_from"),
        (TemporalSplit, {"test_from": JUNE, "seed": 1}, "extra_forbidden", "seed"),
        (RandomSplit, {"buffer_km": 10}, "extra_forbidden", "buffer_km"),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, values, fault, field):
    with pytest.raises(ValidationError) as raised:
        kind(**values)
    (error,) = raised.value.errors()
    own = getattr(error.get("ctx", {}).get("error"), "field", "")
    assert (error["type"], ".".join(map(str, error["loc"])) or own) == (fault, field)


def test_a_setting_error_shows_the_value():
    with pytest.raises(ValidationError) as raised:
        CheckerboardSplit(degrees=8, origin=(9.5, 0))
    error = raised.value.errors()[0]["ctx"]["error"]
    assert isinstance(error, SettingError)
    assert "9.5" in error.problem
    assert "8" in error.fix
    with pytest.raises(ValidationError) as raised:
        GroupSplit(column="state", values=("Utah", "Ohio", "Utah"))
    assert "'Utah'" in raised.value.errors()[0]["ctx"]["error"].problem


# --- Shifted checkerboards ---------------------------------------------------------------------------


def test_a_shifted_grid_by_hand():
    # Los Angeles is 6.5 east and 8.9 north of the corner; cells of 8 degrees.
    at = np.array([34.05]), np.array([-118.24])
    assert checkerboard(*at, 8).tolist() == [1]  # (0, 1)
    assert checkerboard(*at, 8, (4, 0)).tolist() == [1]  # 2.5, 8.9: (0, 1)
    assert checkerboard(*at, 8, (7, 0)).tolist() == [0]  # -0.5, 8.9: (-1, 1)
    assert checkerboard(*at, 8, (0, 1)).tolist() == [0]  # 6.5, 7.9: (0, 0)
    assert checkerboard(*at, 8, (7, 1)).tolist() == [1]  # -0.5, 7.9: (-1, 0)
    assert checkerboard(np.array([21.31]), np.array([-157.86]), 8, (4, 4)).tolist() == [-1]


def test_a_shift_moves_the_test_region():
    panel = conus(60)
    cuts = [cut(CheckerboardSplit(degrees=16, origin=o), 0, panel, WINDOW) for o in (None, (8, 0), (0, 8))]
    tests = [frozenset(sites(parts.test)) for parts in cuts]
    assert len(set(tests)) == 3
    lon = CheckerboardSplit(degrees=16, origin=(8, 0))
    colour = checkerboard(panel.lat, panel.lon - 8, 16)  # a place 8 degrees further west, in the old grid
    inside = panel.lon - 8 >= WEST
    assert np.array_equal(regions(lon, panel, np.flatnonzero(inside)), colour[inside])


# --- Buffers -----------------------------------------------------------------------------------------


def by_place(kind: str, **changes: Any) -> AnySplit:
    return {
        "spatial": lambda: SpatialSplit(**changes),
        "checkerboard": lambda: CheckerboardSplit(degrees=16, **changes),
        "group": lambda: GroupSplit(column="state", values=STATES, **changes),
        "clusters": lambda: ClusterSplit(folds=3, **changes),
    }[kind]()


def cut_or_none(split: AnySplit, fold: int, panel: Panel, window: int) -> SplitIndices | None:
    """None where a part is empty: a far buffer, for one, can leave nothing to train on."""
    try:
        return cut(split, fold, panel, window)
    except InputError as error:
        if error.field != f"split {split.label} fold {fold}":
            raise
        return None


KINDS = ["spatial", "checkerboard", "group", "clusters"]


@given(
    st.sampled_from(KINDS),
    st.integers(0, 1),
    st.integers(0, 1000),
    st.floats(1, 400),
    st.floats(0.1, 0.4),
    st.tuples(st.floats(0, 15), st.floats(0, 15)),
)
@settings(max_examples=40, deadline=None)
def test_a_buffer_by_brute_force(kind, fold, seed, km, share, origin):
    panel = conus(70, seed)
    more = {"origin": origin} if kind == "checkerboard" else {}
    split = by_place(kind, seed=seed, validation=share, **more)
    whole, parts = (
        cut_or_none(s, fold, panel, WINDOW) for s in (split, split.model_copy(update={"buffer_km": km}))
    )
    assume(whole is not None and parts is not None)
    for a, b in zip(all_parts(whole)[2:], all_parts(parts)[2:], strict=True):
        assert np.array_equal(a, b)  # test and within-region test stay as they were
    tested = sites(parts.test)

    def km_to_test(site: int) -> float:
        at = sorted(tested)
        return float(great_circle_km(panel.lat[site], panel.lon[site], panel.lat[at], panel.lon[at]).min())

    for name in ("train", "validation"):
        kept, before = sites(getattr(parts, name)), sites(getattr(whole, name))
        assert kept <= before
        assert all(km_to_test(site) >= km for site in kept)
        assert all(km_to_test(site) < km for site in before - kept)


@given(st.sampled_from(KINDS), st.integers(0, 1), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_parts_by_place_share_no_site_and_lose_none(kind, fold, seed):
    panel = conus(50, seed)
    split = by_place(kind, seed=seed)
    parts = cut(split, fold, panel, WINDOW)
    groups = [sites(part) for part in all_parts(parts)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert np.array_equal(np.sort(np.concatenate(all_parts(parts))), samples(panel))
    assert all((np.diff(part) > 0).all() for part in all_parts(parts))
    assert (parts.wr is None) == (kind == "spatial")
    if parts.wr is not None:
        side = set.union(*groups) - groups[2]
        assert len(groups[3]) == round(0.2 * len(side))
        assert len(groups[1]) == round(0.1 * (len(side) - len(groups[3])))


def test_a_buffer_keeps_the_held_out_sites_of_the_training_region():
    # Ten sites just west of the border of the 30-degree halves, ten just east of it, and thirty far west.
    lat = np.concatenate([np.linspace(30, 45, n) for n in (10, 10, 30)])
    panel = world(lat, np.repeat([WEST + 29.5, WEST + 30.5, -120.0], [10, 10, 30]))
    split = CheckerboardSplit(degrees=30, holdout=0.5, validation=0.3, buffer_km=200)
    parts = cut(split, 1, panel, WINDOW)
    assert sites(parts.test) == set(range(10, 20))
    assert sites(parts.train) | sites(parts.validation) <= set(range(20, 50))
    assert sites(parts.wr) & set(range(10))
    with refuses("toy", "split checkerboard-30-buffer5000km fold 1", "train"):
        cut(split.model_copy(update={"buffer_km": 5000}), 1, panel, WINDOW)


# --- Groups ------------------------------------------------------------------------------------------


def test_a_fold_is_a_group_in_the_order_listed():
    panel = conus(30)
    state = panel.groups["state"]
    split = GroupSplit(column="state", values=("Utah", "Ohio"))  # New York is listed nowhere
    for fold, value in enumerate(split.values):
        parts = cut(split, fold, panel, WINDOW)
        assert {str(state[s]) for s in sites(parts.test)} == {value}
        assert len(sites(parts.test)) == 10
        rest = sites(parts.train) | sites(parts.validation) | sites(parts.wr)
        assert {str(state[s]) for s in rest} == {*STATES} - {value}
        assert len(rest) == 20
    one = GroupSplit(column="state", values=("Ohio",))
    assert np.array_equal(cut(one, 0, panel, WINDOW).test, cut(split, 1, panel, WINDOW).test)
    assert GroupSplit(column="state", values="Ohio") == one


@pytest.mark.parametrize(
    ("column", "values", "shown"),
    [
        ("county", ("a",), ["group-county-a", "groups=('county',)"]),
        ("state", ("Ohio", "Yuta"), ["group-state-Ohio+Yuta", "'Yuta'", "New York, Ohio, Utah"]),
    ],
)
def test_a_group_that_is_not_there_is_named(column, values, shown):
    with refuses("toy", column, *shown):
        cut(GroupSplit(column=column, values=values), 0, conus(), WINDOW)


def table(**columns: list[Any]) -> pa.Table:
    """Sites 02, 01 with 21 days each; a column is given per site, or per row."""
    days = [(np.datetime64("2021-01-01") + d).item() for d in range(21)]
    rows: dict[str, list[Any]] = {
        "site_id": ["02"] * 21 + ["01"] * 21,
        "date": days * 2,
        "lat": [40.0] * 21 + [41.0] * 21,
        "lon": [-100.0] * 42,
        "pm25": [float(d) for d in range(42)],
        "tmax": [1.0] * 42,
    }
    for name, values in columns.items():
        rows[name] = values if len(values) == 42 else [v for v in values for _ in range(21)]
    return pa.table(rows)


def test_groups_are_read_where_they_are_asked_for(tmp_path):
    made = table(state=["Utah", "Ohio"], fips=["01", "49"], zone=[7, 12])
    plain, grouped = from_table(made, "toy"), from_table(made, "toy", groups=("zone", "state"))
    assert plain.groups == {}
    assert {n: v.tolist() for n, v in grouped.groups.items()} == {
        "state": ["Ohio", "Utah"],  # sites in their own order: 01, 02
        "zone": ["12", "7"],
    }
    # A number that groups is no channel unless it is asked for as one.
    assert "zone" in plain.channels
    assert [c for c in plain.channels if c != "zone"] == [*grouped.channels]
    assert from_table(made, "toy", ["zone"], ["zone"]).channels == ("zone",)
    for name, write in (("t.parquet", pq.write_table), ("t.csv", pyarrow.csv.write_csv)):
        write(made, tmp_path / name)
        for channels in (None, ["tmax"]):
            got = read(tmp_path / name, channels, ("fips", "zone"))
            assert got.groups["fips"].tolist() == ["49", "01"]  # zeros and all, from a CSV too
            assert got.groups["zone"].tolist() == ["12", "7"]
            assert got.fingerprint == from_table(made, "toy", got.channels, ("zone", "fips")).fingerprint
            assert "fips" not in got.channels
    coded = made.set_column(6, "state", made["state"].dictionary_encode())
    assert from_table(coded, "toy", ["tmax"], ("state",)).groups["state"].tolist() == ["Ohio", "Utah"]


def test_a_panel_without_groups_has_the_fingerprint_it_had():
    ones, lat, lon = np.ones((2, 3)), [40.0, 41.0], [-100.0, -90.0]
    made = worlds.panel(
        ones[:, :, None], ones, lat, lon, channels=["c"], start=worlds.EPOCH, sites=["a", "b"]
    )
    # Every key of every stored result holds one of these.
    assert made.fingerprint == "70343b0a5887ac33ff4bd04ae4c1cc7f"


def test_a_group_is_in_the_fingerprint_of_the_splits_that_go_by_it_only():
    made, other = table(state=["Utah", "Ohio"]), table(state=["Iowa", "Ohio"])
    one, two = (from_table(t, "toy", groups=("state",)) for t in (made, other))
    assert one.fingerprint == two.fingerprint == from_table(made, "toy").fingerprint
    assert one.fingerprint_by(None) == one.fingerprint
    assert len({one.fingerprint, one.fingerprint_by("state"), two.fingerprint_by("state")}) == 3


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (None, ["site_id, date"]),
        (["Utah", None], ["site 01", "22", "21"]),
        (["Utah", ""], ["site 01", "22"]),
        (["Utah"] * 41 + [None], ["site 01", "42"]),
        (["Utah"] * 41 + ["Ohio"], ["site 01", "'Utah'", "'Ohio'", "42"]),
    ],
)
def test_a_group_that_is_no_group_is_refused(state, shown):
    made = table() if state is None else table(state=state)
    assert from_table(made, "toy", ["tmax"]).groups == {}  # nobody asked
    for channels in (None, ["tmax"]):
        with pytest.raises(InputError) as raised:
            from_table(made, "toy", channels, ("state",))
        assert str(raised.value).startswith("toy: state: ")
        assert all(value in str(raised.value) for value in shown), str(raised.value)


def test_a_table_on_disk_without_the_group_says_what_it_has(tmp_path):
    pq.write_table(table(), tmp_path / "t.parquet")
    with pytest.raises(InputError) as raised:
        read(tmp_path / "t.parquet", ["tmax"], ("state",))
    assert "t.parquet: state: " in str(raised.value)
    assert "tmax" in str(raised.value)


# --- Clusters ----------------------------------------------------------------------------------------


def test_clusters_that_anyone_would_see_are_found_from_west_to_east():
    rng = np.random.default_rng(0)
    centres = [(40, -75), (35, -118), (41, -95), (47, -121)]
    which = np.repeat(np.arange(4), 8)
    lat, lon = (np.array(c)[which] + rng.normal(0, 0.3, 32) for c in zip(*centres, strict=True))
    panel = world(lat, lon)
    for seed in range(5):
        found = regions(ClusterSplit(folds=4, seed=seed), panel, np.arange(32))
        assert found.tolist() == np.array([3, 1, 2, 0])[which].tolist()


@given(st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_folds_of_clusters_partition_the_sites_into_nearest_centres(folds, seed):
    panel = conus(60, seed)
    split = ClusterSplit(folds=folds, seed=seed)
    tests = [cut(split, fold, panel, WINDOW).test for fold in range(folds)]
    assert np.array_equal(np.sort(np.concatenate(tests)), samples(panel))
    groups = [sites(test) for test in tests]
    assert sum(map(len, groups)) == len(set.union(*groups))
    lat, lon = np.radians(panel.lat), np.radians(panel.lon)
    unit = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    centre = np.array([unit[sorted(g)].mean(axis=0) for g in groups])
    for number, group in enumerate(groups):
        away = np.linalg.norm(unit[sorted(group)][:, None] - centre, axis=2)
        assert (away.argmin(axis=1) == number).all()
    west = [panel.lon[sorted(g)].mean() for g in groups]
    assert west == sorted(west)


def test_clusters_need_as_many_places():
    few = world(np.repeat([30.0, 40.0], 4), np.repeat([-80.0, -100.0], 4))
    with refuses("toy", "split clusters-3", 8, 3, "folds"):
        cut(ClusterSplit(folds=3), 0, few, WINDOW)
    assert len(sites(cut(ClusterSplit(folds=2, validation=0.4), 0, few, WINDOW).test)) == 4


# --- Time --------------------------------------------------------------------------------------------


def days_of(flat: np.ndarray, days: int) -> set[int]:
    return set((flat % days).tolist())


def test_a_temporal_cut_by_hand():
    # 40 days from 1970-01-01, windows of 4 days; test from day 30 on, so the training side ends at 26.
    panel = world(np.full(3, 40.0), np.linspace(-100, -99, 3), days=40, missing=0)
    parts = cut(TemporalSplit(test_from=date(1970, 1, 31), validation=0.25), 0, panel, WINDOW)
    assert days_of(parts.test, 40) == set(range(30, 40))
    assert days_of(parts.validation, 40) == set(range(21, 27))  # 6 of the days 3 to 26
    assert days_of(parts.train, 40) == set(range(3, 18))  # 3 days before the validation, again
    assert len(parts.test) == 3 * 10
    assert parts.wr is None
    tight = TemporalSplit(test_from=date(1970, 1, 31), gap_days=3, validation=0.25)
    assert np.array_equal(cut(tight, 0, panel, WINDOW).train, parts.train)
    with refuses("toy", "split temporal-1970-01-31-gap2", "gap_days 2", "4 days", "at least 3"):
        cut(tight.model_copy(update={"gap_days": 2}), 0, panel, WINDOW)
    wide = cut(TemporalSplit(test_from=date(1970, 1, 31), gap_days=6, validation=0.25), 0, panel, WINDOW)
    assert days_of(wide.validation, 40) == set(range(19, 24))  # 5 of the days 3 to 23
    assert days_of(wide.train, 40) == set(range(3, 13))
    assert np.array_equal(wide.test, parts.test)


@given(
    st.integers(1, 9),
    st.integers(25, 50),
    st.none() | st.integers(0, 12),
    st.floats(0.05, 0.5),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_no_window_of_one_temporal_part_holds_a_day_of_another(window, start, gap, share, seed):
    days = 60
    panel = conus(4, seed, days)
    split = TemporalSplit(test_from=date(1970, 1, 1 + start) if start < 31 else date(1970, 2, start - 30),
                          gap_days=gap, validation=share)  # fmt: skip
    if gap is not None and gap < window - 1:
        with refuses(panel.name, f"split {split.label}", f"gap_days {gap}", f"at least {window - 1}"):
            cut(split, 0, panel, window)
        return
    parts = cut_or_none(split, 0, panel, window)
    assume(parts is not None)
    used = [
        {day - back for day in days_of(part, days) for back in range(window)}
        for part in (parts.train, parts.validation, parts.test)
    ]
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]
    assert max(used[0]) < min(used[1])
    assert max(used[1]) < min(used[2])
    assert min(days_of(parts.test, days)) >= start
    site, day = panel.samples(window)
    flat = site.astype(int) * days + day
    assert np.array_equal(parts.test, flat[day >= start])
    last = start - 1 - (window - 1 if gap is None else gap)
    between = set(flat[day <= last].tolist()) - {*parts.train.tolist(), *parts.validation.tolist()}
    first = min(days_of(parts.validation, days))
    assert {f % days for f in between} <= set(range(max(days_of(parts.train, days)) + 1, first))


@pytest.mark.parametrize(
    ("test_from", "fold", "shown"),
    [
        ("1969-06-01", "", ["test_from 1969-06-01", "1970-01-01", "1970-01-12"]),
        ("1970-01-13", "", ["test_from 1970-01-13", "1970-01-01", "1970-01-12"]),
        ("1970-01-09", " fold 0", ["train", "days"]),
    ],
)
def test_a_date_that_leaves_nothing_is_refused(test_from, fold, shown):
    with refuses("toy", f"split temporal-{test_from}{fold}", *shown):
        cut(TemporalSplit(test_from=date.fromisoformat(test_from)), 0, conus(), WINDOW)


# --- The streams, and the real table -----------------------------------------------------------------


OLD_CUTS = {
    "random": [45392, 4233, 18084],
    "spatial": [42528, 5282, 19899],
    "checkerboard-16": [23039, 3827, 31079, 9764],
    "checkerboards-16": [23039, 3827, 31079, 9764],
    "checkerboards-16-rotate": [19214, 3033, 36630, 8832],
    "blocks-8": [36548, 4904, 15779, 10478],
    "knndm-4": [42528, 5282, 19899],
}
"""Sums of the flat indices of each part. Those of the first three are older than buffers and shifts.

Sites that are not clustered have the kNNDM folds of a spatial split; `test_knndm` has clustered ones.
"""


def test_the_random_streams_are_as_they_were():
    panel = conus()
    sizes = {
        split.label: [int(part.sum()) for part in all_parts(cut(split, 1, panel, WINDOW))] for split in SPLITS
    }
    assert sizes == OLD_CUTS


LATER_CUTS = [
    (CheckerboardsSplit(degrees=16), 7, [165277, 15780, 124979, 47744]),
    (CheckerboardsSplit(degrees=16, holdout="rotate"), 38, [158628, 21953, 124979, 48220]),
    (BlocksSplit(folds=4), 10, [198578, 18919, 83839, 52444]),
]
"""Splits with a fold of a later origin or deal, and the sums of its parts when the kind was new."""


@pytest.mark.parametrize(
    ("split", "fold", "sizes"), LATER_CUTS, ids=lambda value: getattr(value, "label", "")
)
def test_later_origins_and_deals_are_as_they_were(split, fold, sizes):
    # Their number is not a part of a key, so a key may not come to mean another cut.
    assert [int(part.sum()) for part in all_parts(cut(split, fold, conus(90), WINDOW))] == sizes


@pytest.mark.skipif(not REAL.exists(), reason="no real table here")
def test_leaving_california_out_of_the_real_table():
    panel = read(REAL, ["elev_m"], ("state",))
    split = GroupSplit(column="state", values=("California", "Texas"), buffer_km=50)
    parts = cut(split, 0, panel, 21)
    days = len(panel.dates)
    tested = np.unique(parts.test // days)
    assert set(panel.groups["state"][tested].tolist()) == {"California"}
    assert panel.lat[tested].min() > 32.5
    assert panel.lat[tested].max() < 42.1
    assert panel.lon[tested].max() < -114
    rest = np.concatenate([parts.train, parts.validation, parts.wr])
    assert "California" not in panel.groups["state"][np.unique(rest // days)]
    assert len(tested) > 100
