"""The audit counts what the parts share, and fails where a split's promise is broken."""

import json
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.leakage import audit, audit_or_failure, distance_to_training_km
from pm25.panel import Panel, read
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
    SplitIndices,
    TemporalSplit,
    cut,
)
from tests import worlds

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "conus_daily_2021.parquet"
KM_PER_DEGREE = 6371.0088 * np.pi / 180
DAYS, WINDOW = 12, 4
WEST, SOUTH, EAST, NORTH = -124.706553, 25.120779, -66.979601, 49.383625


def world(lat: np.ndarray, lon: np.ndarray, seed: int = 0, days: int = DAYS, **changes: Any) -> Panel:
    """No value is missing; every other site is in group 'a', the rest in 'b'."""
    rng = np.random.default_rng(seed)
    features, target = rng.normal(size=(len(lat), days, 2)), rng.gamma(2, 4, (len(lat), days))
    half = np.array(["a", "b"])[np.arange(len(lat)) % 2]
    made = worlds.panel(features, target, lat, lon, start=worlds.EPOCH, groups={"half": half})
    return replace(made, **changes)


def meridian(*lat: float, **changes: Any) -> Panel:
    return world(np.array(lat), np.full(len(lat), -100.0), **changes)


def conus(sites: int = 60, seed: int = 0, days: int = DAYS) -> Panel:
    rng = np.random.default_rng(seed)
    return world(rng.uniform(SOUTH, NORTH, sites), rng.uniform(WEST, EAST, sites), seed, days)


Pairs = list[tuple[int, int]]


def flat(pairs: Pairs) -> np.ndarray:
    return np.sort(np.array([site * DAYS + day for site, day in pairs], np.int64))


def parts_of(train: Pairs, test: Pairs, validation: Pairs = (), wr: Pairs | None = None) -> SplitIndices:
    return SplitIndices(flat(train), flat(validation), flat(test), None if wr is None else flat(wr))


def look(
    split: AnySplit, parts: SplitIndices, panel: Panel, window: int = WINDOW, **changes: Any
) -> dict[str, Any]:
    options = {"fold": 0, "fitted": {"scalers": parts.train}, "encoder_trained_on_target": False, **changes}
    return audit(split, parts, panel, window, **options)


SPLITS: list[AnySplit] = [
    RandomSplit(),
    TemporalSplit(test_from=date(1970, 2, 1)),
    SpatialSplit(),
    SpatialSplit(buffer_km=100),
    CheckerboardSplit(degrees=16),
    CheckerboardSplit(degrees=16, origin=(8, 4), buffer_km=100),
    GroupSplit(column="half", values=("a", "b")),
    ClusterSplit(folds=3, buffer_km=100),
    CheckerboardsSplit(degrees=16, origins=4),
    CheckerboardsSplit(degrees=16, origins=4, holdout="rotate", buffer_km=100),
    BlocksSplit(folds=4, deals=3),
    RollingSplit(),
    KNNDMSplit(folds=3, buffer_km=100),
]


# --- By hand -----------------------------------------------------------------------------------------


def test_by_hand():
    panel = meridian(40, 41, 43, 47)
    train = [(0, 3), (0, 4), (1, 9)]
    test = [(0, 7), (0, 8), (1, 5), (1, 6), (1, 11), (2, 3), (3, 9)]
    # Windows of 4 days overlap at 3 days or less: (0, 7) and (0, 4); (1, 6), (1, 11) and (1, 9).
    assert look(RandomSplit(), parts_of(train, test, [(0, 11)]), panel) == {
        "train_sites": 2,
        "test_sites": 4,
        "shared_samples": 0,
        "shared_sites": 2,
        "shared_places": 2,
        "shared_sites_validation": 1,
        "overlapping_test_windows": 3,
        "duplicate_rows": 0,
        "nearest_km_min": 0.0,
        "nearest_km_median": round(KM_PER_DEGREE, 3),  # of 0, 0, 2 and 6 degrees
        "encoder_trained_on_target": False,
        "fitted_scalers_test": 0,
        "failed": [],
    }
    apart = look(SpatialSplit(), parts_of([(0, 3), (1, 9)], [(2, 3), (3, 9), (3, 10)]), panel)
    assert apart["shared_sites"] == apart["overlapping_test_windows"] == 0
    assert apart["nearest_km_min"] == pytest.approx(2 * KM_PER_DEGREE, abs=1e-3)
    assert apart["nearest_km_median"] == pytest.approx(4 * KM_PER_DEGREE, abs=1e-3)
    assert apart["failed"] == []


def test_distance_along_a_parallel_is_the_great_circle():
    panel = world(np.array([40.0, 40.0]), np.array([-100.0, -99.0]))
    # sin(c / 2) = cos 40 sin 0.5: 85.18 km, where a flat map says 111.2 or, scaled by cos 40, also 85.18.
    expected = 2 * 6371.0088 * np.arcsin(np.cos(np.radians(40)) * np.sin(np.radians(0.5)))
    assert expected == pytest.approx(85.18, abs=0.01)
    got = look(SpatialSplit(), parts_of([(0, 5)], [(1, 5)]), panel)
    assert got["nearest_km_min"] == round(expected, 3)


def test_nearest_km_of_every_site():
    panel = meridian(40, 41, 43, 47)
    got = distance_to_training_km(parts_of([(1, 5), (3, 5), (3, 6)], [(0, 5)]), panel)
    assert got == pytest.approx(np.array([1, 0, 2, 0]) * KM_PER_DEGREE)
    assert got[1] == got[3] == 0


@given(st.integers(0, 10_000), st.integers(1, DAYS), st.floats(0.05, 0.9))
@settings(max_examples=40, deadline=None)
def test_by_brute_force(seed, window, share):
    panel = conus(8, seed)
    rng = np.random.default_rng(seed)
    every = rng.permutation(8 * DAYS)
    some = np.sort(every[: max(2, int(share * len(every)))])
    train, test = some[::2], some[1::2]
    parts = SplitIndices(train, train[:0], test, None)
    got = look(RandomSplit(), parts, panel, window)

    def days_of(flat: int) -> set[int]:
        return {flat // DAYS * 1000 + d for d in range(flat % DAYS - window + 1, flat % DAYS + 1)}

    def sites(flat: np.ndarray) -> set[int]:
        return set((flat // DAYS).tolist())

    used = set().union(*(days_of(int(f)) for f in train))
    assert got["overlapping_test_windows"] == sum(bool(used & days_of(int(f))) for f in test)
    assert got["shared_sites"] == len(sites(train) & sites(test))
    assert (got["train_sites"], got["test_sites"]) == (len(sites(train)), len(sites(test)))

    def unit(site: int) -> np.ndarray:
        lat, lon = np.radians(panel.lat[site]), np.radians(panel.lon[site])
        return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

    def km(a: int, b: int) -> float:
        return 2 * 6371.0088 * np.arcsin(np.linalg.norm(unit(a) - unit(b)) / 2)

    nearest = [min(km(a, b) for b in sites(train)) for a in range(8)]
    assert distance_to_training_km(parts, panel) == pytest.approx(nearest, abs=2e-3)
    tested = [nearest[a] for a in sorted(sites(test))]
    assert got["nearest_km_min"] == pytest.approx(min(tested), abs=2e-3)
    assert got["nearest_km_median"] == pytest.approx(np.median(tested), abs=2e-3)


# --- Duplicates --------------------------------------------------------------------------------------


def copied(*, but: tuple[str, int] | None = None) -> Panel:
    """Sites 0 and 1 have the same rows on days 2 to 7, except where `but` (feature or target, day) says."""
    made = meridian(40, 42, 44)
    features, target = made.features.copy(), made.target.copy()
    features[1, 2:8], target[1, 2:8] = features[0, 2:8], target[0, 2:8]
    features[:2, 4, 0], target[:2, 3] = np.nan, np.nan  # missing on both sides is equal
    features[1, 4, 0] = np.array(0xFFC00001, np.uint32).view(np.float32)  # another NaN
    features[0, 5, 1], features[1, 5, 1] = 0.0, -0.0
    if but is not None:
        (features if but[0] == "feature" else target)[1, but[1]] += 1
    return meridian(40, 42, 44, features=features, target=target)


@pytest.mark.parametrize(
    ("but", "duplicates"),
    [(None, 3), (("feature", 7), 2), (("target", 7), 2), (("feature", 6), 1), (("target", 2), 2)],
)
def test_a_copied_site_is_found(but, duplicates):
    # Windows of 4 days that lie in days 2 to 7 end on day 5, 6 or 7.
    parts = parts_of([(0, d) for d in range(3, 12)], [(1, d) for d in range(3, 12)])
    got = look(SpatialSplit(), parts, copied(but=but))
    assert got["duplicate_rows"] == duplicates
    assert got["failed"] == ["duplicate_rows"]
    assert look(RandomSplit(), parts, copied(but=but))["failed"] == []


def test_a_copy_must_end_on_the_day_of_a_training_sample_and_counts_within_too():
    train = [(0, 5), (0, 6)]
    assert look(SpatialSplit(), parts_of(train, [(1, 7)]), copied())["duplicate_rows"] == 0
    found = look(SpatialSplit(), parts_of(train, [(2, 5)], wr=[(1, 6)]), copied())
    assert found["duplicate_rows"] == 1


def test_the_order_of_days_and_channels_matters():
    made = meridian(40, 42)
    features, target = made.features.copy(), made.target.copy()
    features[1], target[1] = features[0, ::-1], target[0, ::-1]
    every = parts_of([(0, d) for d in range(3, 12)], [(1, d) for d in range(3, 12)])
    assert look(SpatialSplit(), every, meridian(40, 42, features=features, target=target))["failed"] == []
    features[1], target[1] = features[0, :, ::-1], target[0]
    assert look(SpatialSplit(), every, meridian(40, 42, features=features, target=target))["failed"] == []
    features[1] = features[0]
    got = look(SpatialSplit(), every, meridian(40, 42, features=features, target=target))
    assert got["duplicate_rows"] == 9


# --- Promises ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.label)
def test_every_cut_keeps_its_splits_promise(split):
    panel = conus(80, days=60)
    for fold in {0, min(1, split.n_folds - 1), split.n_folds - 1}:
        got = look(split, cut(split, fold, panel, WINDOW), panel, fold=fold)
        assert got["failed"] == []
        assert json.loads(json.dumps(got, allow_nan=False)) == got
        assert all(isinstance(v, bool | int | float) for name, v in got.items() if name != "failed")


def test_what_each_kind_of_split_shares():
    panel = conus()
    random, spatial, board = (look(s, cut(s, 0, panel, WINDOW), panel) for s in SPLITS[:1] + SPLITS[2:5:2])
    assert random["shared_sites"] == random["test_sites"] > 40
    assert random["overlapping_test_windows"] > 0
    assert random["nearest_km_min"] == 0
    for held_out in (spatial, board):
        assert held_out["shared_sites"] == held_out["overlapping_test_windows"] == 0
        assert held_out["nearest_km_min"] > 0
    assert board["nearest_km_median"] > spatial["nearest_km_median"]


FAR = [30.0, 30.0001, 45.0, 45.2]
APART = {"train": [(0, 5)], "test": [(2, 5)], "validation": [(1, 9)]}


@pytest.mark.parametrize("kind", ["spatial", "checkerboard", "group", "clusters"])
@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, []),
        ({"train": [(0, 5), (2, 11)]}, ["shared_sites", "shared_places"]),
        ({"train": [(0, 5), (2, 8)]}, ["shared_sites", "shared_places", "overlapping_test_windows"]),
        ({"validation": [(2, 11)]}, ["shared_sites_validation"]),
        ({"validation": [(2, 5)]}, ["shared_samples", "shared_sites_validation"]),
    ],
)
def test_a_site_in_two_parts_breaks_the_promise_of_places(kind, change, failed):
    panel = meridian(*FAR, groups={"half": np.array(["s", "s", "n", "n"])})
    split = {
        "spatial": SpatialSplit(),
        "checkerboard": CheckerboardSplit(degrees=16),
        "group": GroupSplit(column="half", values=("n",)),
        "clusters": ClusterSplit(folds=2),
    }[kind]
    within = None if kind == "spatial" else [(1, 3)] if "validation" in change else []
    parts = parts_of(**(APART | change), wr=within)
    if within:  # site 1 is within here, so that validation may stand elsewhere
        parts = parts_of(**(APART | change), wr=within)
    region = [] if kind == "spatial" or not failed else ["shared_regions"]
    assert look(split, parts, panel)["failed"] == failed + region


def test_the_within_region_test_must_not_train():
    panel = meridian(*FAR)
    good = parts_of([(0, 5)], [(2, 5)], wr=[(1, 5)])
    bad = parts_of([(0, 5), (1, 11)], [(2, 5)], wr=[(1, 5)])
    assert look(CheckerboardSplit(degrees=16), good, panel)["failed"] == []
    assert look(CheckerboardSplit(degrees=16), bad, panel)["failed"] == ["shared_sites_within"]
    seen = parts_of([(0, 5)], [(2, 5)], [(1, 9)], wr=[(1, 5)])
    assert look(CheckerboardSplit(degrees=16), seen, panel)["failed"] == ["shared_sites_validation"]


def test_a_region_must_not_stand_on_both_sides():
    panel = meridian(*FAR, groups={"half": np.array(["s", "n", "n", "n"])})
    parts = parts_of([(0, 5)], [(2, 5), (3, 5)], [(1, 5)], wr=[])
    for split, failed in [
        (GroupSplit(column="half", values=("n",)), ["shared_regions"]),
        (CheckerboardSplit(degrees=16), []),
        (ClusterSplit(folds=2), []),
    ]:
        assert look(split, parts, panel)["failed"] == failed


def test_two_monitors_at_one_place_are_told():
    panel = meridian(40, 40.00001, 45)
    got = look(SpatialSplit(), parts_of([(0, 5)], [(1, 5), (2, 5)]), panel)
    assert (got["shared_sites"], got["shared_places"]) == (0, 1)
    assert got["failed"] == ["shared_places"]
    assert look(SpatialSplit(), parts_of([(0, 5)], [(2, 5)]), panel)["failed"] == []


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_buffer_must_be_kept_by_both(part):
    panel = meridian(40, 41, 43, 47)
    pairs = {"train": [(0, 5)], "validation": [(0, 6)], "test": [(3, 5)]} | {part: [(2, 5)]}
    got = look(SpatialSplit(buffer_km=444), parts_of(**pairs), panel)
    assert got["buffer_km_min"] == round(4 * KM_PER_DEGREE, 3)  # 444.78
    assert got["failed"] == []
    assert look(SpatialSplit(buffer_km=445), parts_of(**pairs), panel)["failed"] == ["buffer_km_min"]
    assert "buffer_km_min" not in look(SpatialSplit(), parts_of(**pairs), panel)


@pytest.mark.parametrize(
    ("train", "validation", "gap", "failed"),
    [
        ([(0, 3)], [(0, 6), (1, 6)], 3, []),
        ([(0, 3)], [(1, 7)], 2, ["gap_days"]),
        ([(1, 7)], [(0, 5)], 2, ["gap_days"]),
        ([(0, 8)], [(1, 5)], 1, ["overlapping_test_windows", "gap_days"]),
        ([(0, 5), (0, 9)], [(1, 10)], -1, ["overlapping_test_windows", "gap_days"]),
    ],
)
def test_a_temporal_split_promises_its_gap(train, validation, gap, failed):
    split = TemporalSplit(test_from=date(1970, 1, 11))
    got = look(split, parts_of(train, [(0, 10), (1, 11)], validation), meridian(40, 41))
    assert got["gap_days"] == gap
    assert got["failed"] == failed
    wide = split.model_copy(update={"gap_days": 4})
    assert "gap_days" in look(wide, parts_of(train, [(0, 10)], validation), meridian(40, 41))["failed"]


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.label)
def test_nothing_is_fitted_on_held_out_samples_and_no_encoder_on_the_target(split):
    panel = conus(80, days=60)
    parts = cut(split, 0, panel, WINDOW)
    held_out = parts.test[-1:] if parts.wr is None else parts.wr[:1]
    fitted = {"scalers": np.concatenate([parts.train, held_out, held_out]), "neighbours": parts.train}
    got = look(split, parts, panel, fitted=fitted)
    assert (got["fitted_scalers_test"], got["fitted_neighbours_test"]) == (1, 0)
    assert got["failed"] == ["fitted_scalers_test"]
    every = look(split, parts, panel, fitted={"scalers": np.arange(panel.target.size)})
    assert every["fitted_scalers_test"] == sum(len(p) for p in (parts.test, parts.wr) if p is not None)
    encoder = look(split, parts, panel, encoder_trained_on_target=True)
    assert encoder["encoder_trained_on_target"] is True
    assert encoder["failed"] == ["encoder_trained_on_target"]


def test_an_audit_that_cannot_be_made_has_failed():
    panel, nothing = meridian(40, 41), np.empty(0, np.int64)
    parts = parts_of([(0, 5)], [(1, 5)])
    options = {"fold": 0, "fitted": {}, "encoder_trained_on_target": False}
    assert audit_or_failure(SpatialSplit(), parts, panel, WINDOW, **options) == audit(
        SpatialSplit(), parts, panel, WINDOW, **options
    )
    (said,) = audit_or_failure(
        SpatialSplit(), SplitIndices(parts.train, nothing, nothing, None), panel, WINDOW, **options
    )["failed"]
    assert said.startswith("audit: ValueError: ")
    beyond = audit_or_failure(
        SpatialSplit(), parts, panel, WINDOW, **(options | {"fitted": {"scalers": np.array([99])}})
    )
    assert [*beyond] == ["failed"]
    assert beyond["failed"][0].startswith("audit: IndexError: ")


# --- The real table ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason="no real table here")
def test_the_real_table_is_audited_within_a_second():
    # 1,414 sites x 365 days; about 0.25 s each on one core. Every channel of the table: the slowest case.
    panel = read(REAL, None, ("state",))
    real: list[AnySplit] = [
        RandomSplit(),
        SpatialSplit(buffer_km=50),
        CheckerboardSplit(degrees=16, origin=(4, 8), buffer_km=100),
        GroupSplit(column="state", values=("California",)),
        ClusterSplit(),
        TemporalSplit(test_from=date(2021, 10, 1)),
    ]
    for split in real:
        parts = cut(split, 0, panel, 21)
        started = time.process_time()
        got = look(split, parts, panel, 21)
        assert time.process_time() - started < 1
        assert got["failed"] == []
        assert got["train_sites"] > 200
