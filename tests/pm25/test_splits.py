"""Splits cut what they say: colours and distances by hand, partitions, and an audit that counts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.splits import CheckerboardSplit, Parts, RandomSplit, SpatialSplit, audit, checkerboard, cut

WEST, SOUTH, EAST, NORTH = -124.706553, 25.120779, -66.979601, 49.383625
KM_PER_DEGREE = 6371.0088 * np.pi / 180
DAYS, WINDOW = 12, 4


def world(lat: np.ndarray, lon: np.ndarray, seed: int = 0, days: int = DAYS, missing: float = 0.2) -> Panel:
    rng = np.random.default_rng(seed)
    target = rng.gamma(2, 4, (len(lat), days)).astype(np.float32)
    target[rng.random(target.shape) < missing] = np.nan
    return Panel(
        features=rng.normal(size=(len(lat), days, 2)).astype(np.float32),
        target=target,
        lat=np.asarray(lat, np.float64),
        lon=np.asarray(lon, np.float64),
        site_id=np.array([f"s{i:03}" for i in range(len(lat))]),
        dates=np.arange(days).astype("datetime64[D]"),
        channels=("a", "b"),
        name="toy",
    )


def conus(sites: int = 40, seed: int = 0) -> Panel:
    rng = np.random.default_rng(seed)
    return world(rng.uniform(SOUTH, NORTH, sites), rng.uniform(WEST, EAST, sites), seed)


def samples(panel: Panel) -> np.ndarray:
    site, day = panel.samples(WINDOW)
    return site.astype(int) * panel.target.shape[1] + day


def sites(flat: np.ndarray) -> set[int]:
    return set((flat // DAYS).tolist())


def all_parts(parts: Parts) -> list[np.ndarray]:
    named = [parts.train, parts.validation, parts.test]
    return named if parts.within is None else [*named, parts.within]


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

SPLITS = [RandomSplit(folds=4), SpatialSplit(folds=4), CheckerboardSplit(degrees=16)]


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
    assert (parts.within is None) == (kind != "checkerboard")


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
    assert len(sites(parts.within)) == round(0.25 * region)
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
        training_side = sites(parts.train) | sites(parts.validation) | sites(parts.within)
        assert {int(colour[s]) for s in training_side} == {1 - fold}
    # Swapped: what one direction tests is the other's training side.
    for parts, other in (both, both[::-1]):
        side = np.concatenate([other.train, other.validation, other.within])
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
    changed = Panel(
        features=panel.features * 3 + 1,
        target=np.where(np.isnan(panel.target), np.nan, 100 - panel.target).astype(np.float32),
        lat=panel.lat,
        lon=panel.lon,
        site_id=panel.site_id,
        dates=panel.dates + 400,
        channels=("c", "d"),
        name="other",
    )
    again = cut(split, 1, changed, WINDOW)
    for a, b in zip(all_parts(first), all_parts(again), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("split", SPLITS)
def test_another_split_seed_is_another_cut(split):
    panel = conus()
    first, other = (cut(split.model_copy(update={"seed": s}), 0, panel, WINDOW) for s in (0, 1))
    assert not np.array_equal(first.validation, other.validation)
    if isinstance(split, CheckerboardSplit):
        assert np.array_equal(first.test, other.test)  # its test set is a matter of geography
        assert not np.array_equal(first.within, other.within)
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
        (CheckerboardSplit(degrees=30, holdout=0.01), 0, conus(20), "within"),
    ],
)
def test_an_empty_part_is_refused(split, fold, panel, part):
    with pytest.raises(
        InputError, match=rf"^toy: split {split.label} fold {fold} leaves its {part} part empty"
    ):
        cut(split, fold, panel, WINDOW)


# --- The audit ---------------------------------------------------------------------------------------


def parts_of(train: list[tuple[int, int]], test: list[tuple[int, int]]) -> Parts:
    def flat(pairs: list[tuple[int, int]]) -> np.ndarray:
        return np.sort(np.array([site * DAYS + day for site, day in pairs]))

    return Parts(flat(train), np.array([0 * DAYS + 11]), flat(test), None)


def test_audit_by_hand():
    # Sites on one meridian at 40, 41, 43 and 47 degrees north.
    panel = world(np.array([40.0, 41, 43, 47]), np.full(4, -100.0), missing=0)
    train = [(0, 3), (0, 4), (1, 9)]
    test = [(0, 7), (0, 8), (1, 5), (1, 6), (1, 11), (2, 3), (3, 9)]
    # Windows of 4 days overlap at 3 days or less: (0, 7) and (0, 4); (1, 6), (1, 11) and (1, 9).
    assert audit(parts_of(train, test), panel, WINDOW) == {
        "train_sites": 2,
        "test_sites": 4,
        "shared_sites": 2,
        "overlapping_test_windows": 3,
        "nearest_km_min": 0.0,
        "nearest_km_median": round(KM_PER_DEGREE, 3),  # of 0, 0, 2 and 6 degrees
    }
    apart = audit(parts_of([(0, 3), (1, 9)], [(2, 3), (3, 9), (3, 10)]), panel, WINDOW)
    assert apart["shared_sites"] == apart["overlapping_test_windows"] == 0
    assert apart["nearest_km_min"] == pytest.approx(2 * KM_PER_DEGREE, abs=1e-3)
    assert apart["nearest_km_median"] == pytest.approx(4 * KM_PER_DEGREE, abs=1e-3)


def test_distance_along_a_parallel_is_the_great_circle():
    panel = world(np.array([40.0, 40.0]), np.array([-100.0, -99.0]), missing=0)
    # sin(c / 2) = cos 40 sin 0.5: 85.18 km, where a flat map says 111.2 or, scaled by cos 40, also 85.18.
    expected = 2 * 6371.0088 * np.arcsin(np.cos(np.radians(40)) * np.sin(np.radians(0.5)))
    assert expected == pytest.approx(85.18, abs=0.01)
    assert audit(parts_of([(0, 5)], [(1, 5)]), panel, WINDOW)["nearest_km_min"] == round(expected, 3)


@given(st.integers(0, 10_000), st.integers(1, DAYS), st.floats(0.05, 0.9))
@settings(max_examples=40, deadline=None)
def test_audit_by_brute_force(seed, window, share):
    panel = conus(8, seed)
    rng = np.random.default_rng(seed)
    every = rng.permutation(8 * DAYS)
    some = np.sort(every[: max(2, int(share * len(every)))])
    train, test = some[::2], some[1::2]
    got = audit(Parts(train, train[:0], test, None), panel, window)

    def days_of(flat: int) -> set[int]:
        return {flat // DAYS * 1000 + d for d in range(flat % DAYS - window + 1, flat % DAYS + 1)}

    used = set().union(*(days_of(int(f)) for f in train))
    assert got["overlapping_test_windows"] == sum(bool(used & days_of(int(f))) for f in test)
    assert got["shared_sites"] == len(sites(train) & sites(test))
    assert (got["train_sites"], got["test_sites"]) == (len(sites(train)), len(sites(test)))

    def unit(site: int) -> np.ndarray:
        lat, lon = np.radians(panel.lat[site]), np.radians(panel.lon[site])
        return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

    def km(a: int, b: int) -> float:
        return 2 * 6371.0088 * np.arcsin(np.linalg.norm(unit(a) - unit(b)) / 2)

    nearest = [min(km(a, b) for b in sites(train)) for a in sorted(sites(test))]
    assert got["nearest_km_min"] == pytest.approx(min(nearest), abs=2e-3)
    assert got["nearest_km_median"] == pytest.approx(np.median(nearest), abs=2e-3)


def test_what_each_kind_of_split_shares():
    panel = conus(60)
    random, spatial, board = (audit(cut(s, 0, panel, WINDOW), panel, WINDOW) for s in SPLITS)
    assert random["shared_sites"] == random["test_sites"] > 40
    assert random["overlapping_test_windows"] > 0
    assert random["nearest_km_min"] == 0
    for held_out in (spatial, board):
        assert held_out["shared_sites"] == held_out["overlapping_test_windows"] == 0
        assert held_out["nearest_km_min"] > 0
    assert board["nearest_km_median"] > spatial["nearest_km_median"]
