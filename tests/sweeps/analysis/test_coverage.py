"""Radii and coverage of prediction intervals, against slow loops, hand-computed numbers and simulations."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.geo import CONUS
from pm25.intervals import spread
from sweeps.analysis import artifacts, coverage
from sweeps.analysis.coverage import Measured, TooFew
from sweeps.analysis.held_out_errors import EDGES, HeldOutErrors
from sweeps.bench import coverage as simulation
from sweeps.spec import study_file
from sweeps.spec.claims import Analysis
from sweeps.store.records import Store
from tests.errors import refuses
from tests.sweeps.analysis.test_artifacts import BOARD, PLACES, predict, rows

DEGREES = 2.0
WEST, SOUTH = CONUS[:2]


def place(region: int) -> tuple[float, float]:
    """A place in the middle of a region of a row of regions, from the west."""
    return SOUTH + 1, WEST + 1 + DEGREES * region


def add(errors: HeldOutErrors, fold: int, region: int, scores: np.ndarray, level: float = 12.0) -> None:
    """Samples with these scores: 12 ug/m3 predicted, so the spread is 13."""
    lat, lon = (np.full(len(scores), value) for value in place(region))
    prediction = np.full(len(scores), level)
    errors.add(fold, lat, lon, prediction + scores * spread(prediction), prediction)


def study(rng: np.random.Generator, folds: int = 3, regions: int = 12, days: int = 30) -> HeldOutErrors:
    errors = HeldOutErrors(DEGREES)
    for region in range(regions):
        size = math.exp(rng.normal())
        for fold in range(folds):
            add(errors, fold, region, size * np.abs(rng.normal(size=days)))
    return errors


def measured(errors: HeldOutErrors, level: float = 0.9) -> Measured:
    found = coverage.measure(errors, level)
    assert isinstance(found, Measured), found
    return found


def counts_of(scores: list[np.ndarray]) -> np.ndarray:
    """Counts (regions, bins), each score in the first bin whose edge is not below it."""
    found = np.zeros((len(scores), len(EDGES) + 1), int)
    for line, own in zip(found, scores, strict=True):
        np.add.at(line, np.searchsorted(EDGES, own), 1)
    return found


def slow_radius_bin(scores: list[np.ndarray], level: float) -> int:
    """The definition in loops: the lowest level at which left-out regions are covered, then its quantile."""

    shares = np.array([[np.mean(values <= edge) for edge in EDGES] for values in scores])

    def quantile(own: np.ndarray, share: float) -> int:
        for at, mean in enumerate(own.mean(axis=0)):
            if mean >= share - 1e-9:
                return at
        return len(EDGES)

    def covers(share: float) -> float:
        found = []
        for left_out, own in enumerate(shares):
            at = quantile(np.delete(shares, left_out, axis=0), share)
            found.append(1.0 if at == len(EDGES) else own[at])
        return float(np.mean(found))

    low, high = 0.0, 1.0
    for _ in range(14):
        tried = (low + high) / 2
        low, high = (low, tried) if covers(tried) >= level - 1e-9 else (tried, high)
    return quantile(shares, high)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), regions=st.integers(3, 7), level=st.sampled_from([0.5, 0.8, 0.9]))
def test_the_radius_is_that_of_the_definition(seed: int, regions: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    scores = [np.exp(rng.normal()) * np.abs(rng.normal(size=rng.integers(1, 30))) for _ in range(regions + 1)]
    counts = counts_of(scores)
    sets = np.array([[True] * regions + [False], [False] + [True] * regions])
    found = coverage.radius_bins(counts, sets, level)
    assert found.tolist() == [slow_radius_bin(scores[:-1], level), slow_radius_bin(scores[1:], level)]


def test_alike_regions_have_the_quantile_of_their_scores() -> None:
    """Scores 0.1 to 1.0 in every region: at 90 % the radius is 0.9, at most one bin more."""
    counts = counts_of([np.arange(1, 11) / 10] * 12)
    (at,) = coverage.radius_bins(counts, np.ones((1, 12), bool), 0.9)
    assert 0.9 <= EDGES[at] <= 0.9 * EDGES[1] / EDGES[0]
    assert EDGES[1] / EDGES[0] < 1.0231


def test_a_region_counts_once_whatever_its_number_of_samples() -> None:
    many = [np.full(5000 if region == 0 else 10, 0.1 if region == 0 else 1.0) for region in range(12)]
    (at,) = coverage.radius_bins(counts_of(many), np.ones((1, 12), bool), 0.9)
    assert EDGES[at] >= 1.0
    (of_days,) = simulation.day_bins(counts_of(many), np.ones((1, 12), bool), 0.9)
    assert EDGES[of_days] < 0.11


def test_samples_are_counted_once_and_coverage_is_exact() -> None:
    rng = np.random.default_rng(0)
    errors, samples = HeldOutErrors(DEGREES), []
    for region in range(11):
        for fold in range(2):
            scores = np.abs(rng.normal(size=40)) * (1 + region / 10)
            add(errors, fold, region, scores)
            samples += [(fold, region, score) for score in scores]
    found = measured(errors)
    fold, region, score = np.array(samples).T
    for judged in range(11):
        covered, width = 0, 0.0
        for own in range(2):
            others = [score[(fold != own) & (region == other)] for other in range(11) if other != judged]
            radius = EDGES[slow_radius_bin(others, 0.9)]
            mine = score[(fold == own) & (region == judged)]
            covered += int((mine <= radius).sum())
            width += len(mine) * 2 * 13 * radius  # the spread of 12 ug/m3 is 13
        assert (found.n[judged], found.covered[judged]) == (80, covered)
        assert found.width[judged] == pytest.approx(width)
    assert found.coverage == pytest.approx(np.mean(found.covered / 80))


def test_no_error_of_the_judged_region_or_fold_calibrates() -> None:
    def made(factor: float, of_region: int, of_fold: int) -> HeldOutErrors:
        rng, errors = np.random.default_rng(1), HeldOutErrors(DEGREES)
        for region in range(12):
            for fold in range(3):
                scores = np.abs(rng.normal(size=30))
                if region == 11 and fold != 0:
                    continue  # the last region is tested in the first fold alone
                changed = region == of_region or fold == of_fold
                add(errors, fold, region, scores * (factor if changed else 1))
        return errors

    before = measured(made(1, -1, -1))
    region = measured(made(5, 3, -1))
    assert region.width[3] == before.width[3]
    assert region.covered[3] < before.covered[3] / 2
    assert (np.delete(region.width, 3) > np.delete(before.width, 3)).any()
    fold = measured(made(5, -1, 0))
    assert fold.width[11] == before.width[11]
    assert fold.covered[11] < before.covered[11] / 2
    assert (fold.width[:11] > before.width[:11]).all()


def test_seeds_add_up_and_do_not_depend_on_their_order() -> None:
    rng = np.random.default_rng(2)
    batches = [(int(rng.integers(3)), int(rng.integers(12)), np.abs(rng.normal(size=20))) for _ in range(90)]
    one, other = HeldOutErrors(DEGREES), HeldOutErrors(DEGREES)
    for batch in batches:
        add(one, *batch)
    for batch in reversed(batches):
        add(other, *batch)
    assert np.array_equal(one.counts(), other.counts())
    assert one.counts()[:, :, 0].sum() == 90 * 20
    np.testing.assert_allclose(one.spreads(), other.spreads())


def test_high_days_are_counted_apart() -> None:
    errors = study(np.random.default_rng(3))
    lat, lon = (np.array([value, value]) for value in place(0))
    # 35.5 itself is high. The first error is 1, and the second one 5,000.
    errors.add(0, lat, lon, np.array([35.5, 5000.0]), np.array([34.5, 0.0]))
    before, found = measured(study(np.random.default_rng(3))), measured(errors)
    assert (found.n_high - before.n_high).tolist() == [2] + [0] * 11
    assert (found.covered_high - before.covered_high)[0] == 1


def test_values_that_are_not_numbers_are_not_covered() -> None:
    errors = study(np.random.default_rng(4))
    before = measured(errors)
    lat, lon = (np.full(3, value) for value in place(2))
    errors.add(1, lat, lon, np.full(3, 5.0), np.array([np.nan, np.inf, -np.inf]))
    found = coverage.measure(errors, 0.9)
    assert isinstance(found, TooFew) or found.n[2] == before.n[2] + 3
    if isinstance(found, Measured):
        assert found.covered[2] <= before.covered[2]


@pytest.mark.parametrize(("level", "needed"), [(0.5, 2), (0.8, 5), (0.9, 10), (0.95, 20), (0.99, 100)])
def test_a_level_needs_enough_regions(level: float, needed: int) -> None:
    rng = np.random.default_rng(5)
    assert coverage.needed_regions(level) == needed
    if needed <= 20:
        enough, few = study(rng, regions=needed), study(rng, regions=needed - 1)
        assert isinstance(coverage.measure(enough, level), Measured)
        found = coverage.measure(few, level)
        assert isinstance(found, TooFew)
        assert f"{needed} are needed for {level:.0%} intervals" in found.why
        assert f"{needed - 1} region" in found.why
        calibrated = coverage.calibrate(study(rng, regions=needed - 1), level)
        assert not isinstance(calibrated, TooFew), "one more region than the calibration has is judged"


def test_one_fold_has_nothing_to_calibrate_on() -> None:
    found = coverage.measure(study(np.random.default_rng(6), folds=1), 0.9)
    assert found == TooFew("one fold, and a second one is needed to calibrate on")


def test_errors_beyond_all_bins_have_no_interval() -> None:
    errors = HeldOutErrors(DEGREES)
    for region in range(12):
        for fold in range(2):
            add(errors, fold, region, np.full(5, 100.0))
    for found in (coverage.measure(errors, 0.9), coverage.calibrate(errors, 0.9)):
        assert isinstance(found, TooFew)
        assert "above 20" in found.why


def test_new_regions_are_covered_by_what_a_served_model_stores() -> None:
    """250 new regions with errors of different size: nominal 90 %, within 3 standard errors."""
    rng, found = np.random.default_rng(7), []
    for _ in range(250):
        size = np.exp(0.5 * rng.normal(size=13))
        scores = size[:, None] * np.abs(rng.normal(size=(13, 60)))
        (at,) = coverage.radius_bins(counts_of([*scores[:12]]), np.ones((1, 12), bool), 0.9)
        found.append((scores[12] <= EDGES[at]).mean())
    error = np.std(found) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(0.9, abs=3 * error)
    assert error < 0.012


def network(sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Sites in the CONUS box, dense in the east and sparse in the west."""
    rng = np.random.default_rng(8)
    lon = CONUS[2] - (CONUS[2] - CONUS[0]) * rng.beta(1, 3, sites)
    return rng.uniform(CONUS[1], CONUS[3], sites), lon


def test_simulated_regions_are_covered_and_single_days_cover_too_little() -> None:
    """Spatially correlated errors that are larger where monitors are few."""
    worlds = (simulation.World("exchangeable", 0.5), simulation.World("sparse", 0.5))
    exchangeable, sparse = simulation.simulate(12, *network(150), worlds)
    for found in (exchangeable, sparse):
        error = found.mean[:, 0].std(ddof=1) / math.sqrt(12)
        assert found.mean[:, 0].mean() == pytest.approx(0.9, abs=max(3 * error, 0.01))
    of_days = sparse.mean[:, 1]
    assert of_days.mean() + 3 * of_days.std(ddof=1) / math.sqrt(12) < 0.88
    assert sparse.poor[:, 1].mean() > 1.3 * sparse.poor[:, 0].mean()


# From a store

SITES = {f"s{number:02d}": place(number) for number in range(12)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two folds of twelve regions; the second arm has one fold, and the third one has four regions."""
    for name, where in SITES.items():
        monkeypatch.setitem(PLACES, name, where)
    store, rng = Store(str(tmp_path), "toy"), np.random.default_rng(9)
    for key, sites in (("k0", 12), ("k1", 12), ("k2", 12), ("k3", 4), ("k4", 4)):
        lines = [
            (part, f"s{site:02d}", float(truth), 10.0)
            for site in range(sites)
            for part in ("test", "wr")
            for truth in 10 + rng.normal(0, 2 + (part == "test") + site / 4, 40)
        ]
        predict(store, key, *lines)
    return store


CELLS = rows(
    ("k0", "none", BOARD, 0),
    ("k1", "none", BOARD, 1),
    ("k2", "latlon", BOARD, 0),
    ("k3", "sincos", BOARD, 0),
    ("k4", "sincos", BOARD, 1),
    ("k5", "none", BOARD, 2),
)


def table(store: Store, cells: pd.DataFrame = CELLS) -> pd.DataFrame:
    sums = artifacts.predictions(store, cells, degrees=DEGREES)
    assert sums is not None
    return coverage.coverage(sums, cells, Analysis(block_degrees=DEGREES))


def test_the_table_has_every_arm_and_evaluation_set(store: Store) -> None:
    found = table(store)
    assert [*found] == [*coverage.COLUMNS]
    overall = coverage.overall(found)
    assert [*zip(overall["arm"], overall["part"], overall["regime"], strict=True)] == [
        (arm, part, regime)
        for part, regime in (("wr", "WR"), ("test", "OoR"))
        for arm in ("none", "lat/lon", "sin/cos")
    ]
    none = found[(found["arm"] == "none") & (found["part"] == "test")]
    line, regions = none.iloc[0], none.iloc[1:]
    assert (line["n"], line["folds"], line["folds_expected"], line["untested"]) == (960, 2, 3, "")
    assert len(regions) == line["regions"] == 12
    assert regions["coverage"].mean() == pytest.approx(line["coverage"])
    assert np.average(regions["width"], weights=regions["n"]) == pytest.approx(line["width"])
    assert line["worst"] == regions["coverage"].min()
    assert line["worst_region"] == regions["region"].iloc[regions["coverage"].argmin()]
    t = 2.2009851600916  # Student's t of 11 degrees of freedom, 97.5 %
    half = t * regions["coverage"].std() / math.sqrt(12)
    assert [line["low"], line["high"]] == pytest.approx(
        [line["coverage"] - half, min(1, line["coverage"] + half)]
    )
    assert regions["lat"].iloc[0] == pytest.approx(SOUTH + 1)
    assert regions["region"].iloc[0] == "25.12 to 27.12 °N, 124.71 to 122.71 °W"


def test_each_evaluation_set_is_calibrated_on_its_own_errors(store: Store) -> None:
    """Errors out of region are larger here, so intervals are wider there, and both cover."""
    overall = coverage.overall(table(store)).set_index(["arm", "part"])
    assert overall.loc[("none", "test"), "width"] > 1.1 * overall.loc[("none", "wr"), "width"]
    for part in ("test", "wr"):
        assert overall.loc[("none", part), "coverage"] == pytest.approx(0.9, abs=0.03)


def test_what_cannot_be_measured_has_a_reason_and_no_number(store: Store) -> None:
    overall = coverage.overall(table(store)).set_index(["arm", "part"])
    latlon, sincos = overall.loc[("lat/lon", "test")], overall.loc[("sin/cos", "test")]
    assert latlon["untested"] == "one fold, and a second one is needed to calibrate on"
    assert sincos["untested"] == (
        "4 regions of 2 degrees, and 10 are needed for 90% intervals; lower analysis.block_degrees or "
        "analysis.coverage"
    )
    for line in (latlon, sincos):
        assert line[["coverage", "low", "high", "width", "coverage_high", "worst"]].isna().all()


@pytest.mark.parametrize("share", [0.49, 0.995, 1, 90, "high"])
def test_a_share_out_of_bounds_is_refused(share: float | str) -> None:
    with refuses(None, "analysis.coverage"):
        study_file.load("demo", [f"analysis.coverage={share}"])
