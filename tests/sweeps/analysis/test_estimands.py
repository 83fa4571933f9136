"""Tests of one comparison on every kind of split, against numbers that were worked out by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter
from scipy import stats

from pm25.geo import CONUS
from pm25.splits import AnySplit, Split
from sweeps.analysis import estimands, statistics
from sweeps.analysis.estimands import ESTIMANDS, Evidence, Sample, Totals
from sweeps.analysis.statistics import TestResult
from sweeps.bench import calibration

SITES, DAYS = 60, 90
# Sites on a regular grid, a mean of 2.5 of them in each of the 24 blocks of 8 degrees.
LAT, LON = (x.ravel() for x in np.meshgrid(np.linspace(26, 48, 5), np.linspace(-122, -69, 12), indexing="ij"))
NO_DAYS = np.zeros((0, 6))


def sums(n: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Totals (units, 6) with n samples of mean squared error `squares`, and no bias."""
    totals = np.zeros((len(n), 6))
    totals[:, statistics.N], totals[:, statistics.E2] = n, n * squares
    totals[:, statistics.ABS_E] = n * np.sqrt(squares)
    return totals


def sample(kind: str, values: Any, **more: Any) -> Sample:
    """Differences of the folds of a split; each fold is a unit, and one deal has all of them."""
    values = np.array(values, np.float64)
    of = {"unit": np.arange(len(values)), "parts": len(values), "metric": "rmse", "lat": LAT, "lon": LON}
    return Sample(kind=kind, values=values, **of | more)


def student(found: TestResult, estimate: float, se: float, df: float) -> None:
    """Assert the test and interval of Student's t at level 95 %."""
    half = float(stats.t.ppf(0.975, df)) * se
    assert found.estimate == pytest.approx(estimate)
    assert (found.se, found.df) == pytest.approx((se, df))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(estimate) / se, df))
    assert (found.low, found.high) == pytest.approx((estimate - half, estimate + half))


def untested(found: Evidence, units: int, *said: str) -> None:
    assert (found.tests, found.sensitivity, found.units) == ((), (), units)
    assert all(math.isnan(value) for value in found.result[1:6])
    for text in said:
        assert text in found.untested


VALUES = np.array([-0.4, -0.3, -0.5, -0.2, -0.6, -0.4, -0.1, -0.7])
VARIANCE = float(np.var(VALUES, ddof=1))


# Folds, periods and origins


@pytest.mark.parametrize("kind", ["clusters", "group"])
def test_regions_are_tested_by_the_corrected_t_over_folds(kind: str) -> None:
    found = estimands.compare(sample(kind, VALUES))
    student(found.result, -0.4, math.sqrt((1 / 8 + 1 / 7) * VARIANCE), 7)
    assert (found.units, found.tests, found.untested) == (8, (found.result,), "")
    assert (ESTIMANDS[kind].unit, ESTIMANDS[kind].name) == ("region", "other regions")
    untested(estimands.compare(sample(kind, VALUES[:2])), 2, "2 regions", "3", "{kind: clusters, folds: 10}")


def test_blocks_count_every_fold_of_every_deal() -> None:
    """Two deals of four folds: the folds of a deal share three of its four parts, so the overlap is 1/3."""
    found = estimands.compare(sample("blocks", VALUES, parts=4))
    student(found.result, -0.4, math.sqrt((1 / 8 + 1 / 3) * VARIANCE), 7)
    assert found.units == 8


@pytest.mark.parametrize("kind", ["rolling", "temporal"])
def test_test_periods_are_independent(kind: str) -> None:
    found = estimands.compare(sample(kind, VALUES))
    student(found.result, -0.4, math.sqrt(VARIANCE / 8), 7)
    assert found.units == 8
    assert found.result.p == pytest.approx(float(stats.ttest_1samp(VALUES, 0).pvalue))
    untested(estimands.compare(sample(kind, VALUES[:4])), 4, "4 test periods", "5", "{kind: rolling")


def boards(values: Any, folds: int = 2, **more: Any) -> Sample:
    return sample("checkerboards", values, unit=np.arange(len(values)) // folds, parts=2, **more)


MEANS = np.array([-0.4, -0.3, -0.5, -0.2, -0.6, -0.4])
COLOURS = np.stack([MEANS + 1, MEANS - 1], axis=1).ravel()
"""Halves that differ far more within an origin than their means do between origins."""


def decided(found: Evidence, means: np.ndarray, halves: np.ndarray) -> None:
    """Both tests of checkerboards are those of `means (R,)` and `halves (2 R,)`, and the larger p decides."""
    by_origin, by_half = found.tests
    r, j = len(means), len(halves)
    student(by_origin, float(means.mean()), math.sqrt((1 / r + 1) * np.var(means, ddof=1)), r - 1)
    student(by_half, float(means.mean()), math.sqrt((1 / j + 0.75) * np.var(halves, ddof=1)), j - 1)
    larger = max(found.tests, key=lambda test: test.p)
    assert (found.result.p, found.result.name) == (larger.p, larger.name)
    low, high = min(test.low for test in found.tests), max(test.high for test in found.tests)
    assert (found.result.low, found.result.high) == (low, high)
    assert not found.sensitivity
    assert found.units == r


def test_checkerboards_are_tested_by_their_origins_and_by_their_halves() -> None:
    apart = estimands.compare(boards(COLOURS))
    decided(apart, MEANS, COLOURS)
    assert apart.result.df == 11
    alike = np.repeat(MEANS, 2)
    together = estimands.compare(boards(alike))
    decided(together, MEANS, alike)
    assert together.result.df == 5
    assert together.untested == ""


def test_an_origin_counts_with_all_its_folds() -> None:
    gone = COLOURS.copy()
    gone[3] = math.nan
    found = estimands.compare(boards(gone))
    kept = np.delete(MEANS, 1)
    decided(found, kept, np.delete(COLOURS, [2, 3]))
    gone[0] = math.nan
    untested(estimands.compare(boards(gone)), 4, "4 origins", "5", "{kind: checkerboards")


def test_a_single_checkerboard_is_not_tested() -> None:
    """Its two halves are one origin, whatever they say."""
    found = estimands.compare(sample("checkerboard", [-1.0, -1.001], unit=np.zeros(2, int)))
    untested(found, 1, "{kind: checkerboards, degrees: 16, origins: 15}")
    assert found.result.estimate == pytest.approx(-1.0005)


def rotated(within: np.ndarray) -> Sample:
    """Origins x 2 colours x 5 parts, with the given means of origins and parts that differ widely."""
    parts = np.array([3.0, -1, 0, -1, -1])
    values = (within[:, None, None] + np.array([1.0, -1])[:, None] + parts).ravel()
    return boards(values, folds=10)


@pytest.mark.parametrize("part", ["test", "wr", "gap"])
def test_a_rotation_is_tested_by_its_origins_on_every_part(part: str) -> None:
    found = estimands.compare(rotated(MEANS), part)
    decided(found, MEANS, COLOURS)
    assert estimands.of("checkerboards", part).unit == "origin"
    untested(estimands.compare(rotated(MEANS[:4]), part), 4, "4 origins", "5", "{kind: checkerboards")


def test_sites_within_regions_are_tested_by_folds() -> None:
    found = estimands.compare(sample("clusters", VALUES), "wr")
    student(found.result, -0.4, math.sqrt((1 / 8 + 1) * VARIANCE), 7)
    assert estimands.of("clusters", "wr").units == "folds"
    untested(estimands.compare(sample("clusters", VALUES[:4]), "wr"), 4, "4 folds", "5")


# Days


def daily(rng: np.random.Generator, gain: float) -> tuple[Totals, Totals]:
    """Two arms with one sample a day whose losses persist from day to day; the arm is better by `gain`."""
    shock = rng.gamma(2, size=(3, DAYS))
    smooth = np.stack([np.convolve(line, np.ones(7) / 7, "same") for line in shock])
    losses = 4 + smooth[0] + smooth[1], 4 + smooth[0] + smooth[2] + gain
    arm, other = (sums(np.ones(DAYS), loss) for loss in losses)
    # The pooled score is the same over sites: everything at the first of them.
    at = (np.vstack([one.sum(axis=0), np.zeros((SITES - 1, 6))]) for one in (arm, other))
    return Totals(next(at), arm), Totals(next(at), other)


def diebold_mariano(arm: Totals, other: Totals) -> tuple[float, float]:
    """Pooled difference of the RMSE and its standard error, from its daily influence, lag by lag."""
    series, roots = 0.0, []
    for sign, one in ((1, arm), (-1, other)):
        loss = one.by_day[:, statistics.E2] / one.by_day[:, statistics.N]
        root = math.sqrt(loss.mean())
        roots.append(root)
        series = series + sign * (root + (loss - root**2) / (2 * root))
    centred = series - series.mean()
    variance = centred @ centred / DAYS
    for lag in range(1, 15):
        variance += 2 * (centred[lag:] @ centred[:-lag]) / DAYS
    h = 15
    correction = (DAYS + 1 - 2 * h + h * (h - 1) / DAYS) / DAYS
    return roots[0] - roots[1], math.sqrt(variance / DAYS / correction)


CLOSE, WIDE = [-0.31, -0.3, -0.29, -0.3, -0.3], [-0.9, 0.3, -0.2, -0.5, -0.1]


@pytest.mark.parametrize(("folds", "decides"), [(CLOSE, 0), (WIDE, 1)])
def test_random_takes_the_larger_p_of_days_and_folds(folds: list[float], decides: int) -> None:
    arm, other = daily(np.random.default_rng(3), 0.5)
    found = estimands.compare(sample("random", folds, arm=arm, other=other))
    difference, se = diebold_mariano(arm, other)
    by_day, by_fold = found.tests
    student(by_day, difference, se, DAYS - 1)
    student(by_fold, float(np.mean(folds)), math.sqrt((1 / 5 + 1 / 4) * np.var(folds, ddof=1)), 4)
    assert found.result.p == max(by_day.p, by_fold.p) == found.tests[decides].p
    assert found.result.low == min(by_day.low, by_fold.low)
    assert found.result.high == max(by_day.high, by_fold.high)
    assert found.result.estimate == pytest.approx(difference), "of all predictions together"
    assert (found.units, found.untested, found.sensitivity) == (DAYS, "", ())
    assert (ESTIMANDS["random"].unit, ESTIMANDS["random"].name) == ("day", "other days at these monitors")


def test_days_and_folds_that_point_apart_show_nothing() -> None:
    arm, other = daily(np.random.default_rng(3), 1.5)
    found = estimands.compare(sample("random", [-x for x in CLOSE], arm=arm, other=other))
    assert max(test.p for test in found.tests) < 0.05
    assert found.result.p == 1


def test_random_needs_days_and_folds() -> None:
    arm, other = daily(np.random.default_rng(3), 1.5)
    few = (one._replace(by_day=one.by_day[:55]) for one in (arm, other))
    untested(estimands.compare(sample("random", CLOSE, arm=next(few), other=next(few))), 55, "55 days", "56")
    two = estimands.compare(sample("random", CLOSE[:2], arm=arm, other=other))
    untested(two, 2, "2 folds", "3")
    assert two.result.estimate == pytest.approx(diebold_mariano(arm, other)[0])


# Blocks of monitors


def placed(rng: np.random.Generator, gain: float) -> tuple[Totals, Totals]:
    """Two arms on the grid of sites, with 1 to 20 samples a site."""
    n, shared = rng.integers(1, 21, SITES), rng.gamma(2, 2, SITES)
    losses = shared + rng.gamma(1, size=SITES), shared + rng.gamma(1, size=SITES) + gain
    arm, other = (Totals(sums(n, loss), NO_DAYS) for loss in losses)
    return arm, other


def rmse(*kept: np.ndarray) -> float:
    """Pooled RMSE of the first arm, minus that of the second if there is one."""
    roots = [math.sqrt(one[:, statistics.E2].sum() / one[:, statistics.N].sum()) for one in kept]
    return roots[0] - roots[1] if len(roots) == 2 else roots[0]


def by_blocks(*arms: np.ndarray, degrees: float, east: float, north: float) -> tuple[float, float]:
    """Standard error and degrees of freedom of leaving out each block, on a grid moved by these degrees."""
    west, south = CONUS[0] - east, CONUS[1] - north
    column, line = (np.floor((x - start) / degrees) for x, start in ((LON, west), (LAT, south)))
    names = {*zip(column.tolist(), line.tolist(), strict=True)}
    inside = [(column == c) & (line == r) for c, r in names]
    changes = [rmse(*(arm[~block] for arm in arms)) - rmse(*arms) for block in inside]
    w = np.array([arms[0][block, statistics.N].sum() for block in inside])
    k = len(names)
    return math.sqrt((k - 1) / k * sum(x**2 for x in changes)), float(w.sum() ** 2 / (w**2).sum()) - 1


@pytest.mark.parametrize("paired", [True, False], ids=["two arms", "one arm"])
@pytest.mark.parametrize("seed", [5, 14])  # the first grid has the wider interval, then the moved one
def test_spatial_jackknifes_blocks_of_monitors(seed: int, paired: bool) -> None:
    arm, other = placed(np.random.default_rng(seed), 0.7)
    arms = (arm.by_site, other.by_site) if paired else (arm.by_site,)
    given = sample("spatial", VALUES, arm=arm, other=other if paired else None)
    found = estimands.compare(given, sensitivity=paired)
    pooled = rmse(*arms)
    grids = [by_blocks(*arms, degrees=8, east=east, north=north) for east in (0, 4) for north in (0, 4)]
    t = [(2 * stats.t.sf(abs(pooled) / se, df), df) for se, df in grids]
    assert found.result.p == pytest.approx(max(t)[0])
    if max(t)[0] > 0:  # the p of one arm's score may be zero on several grids
        assert found.result.df == pytest.approx(max(t)[1])
        assert found.units == min(int(df) + 1 for _, df in t)  # whichever grid has the largest p
    halves = [stats.t.ppf(0.975, df) * se for se, df in grids]
    assert found.result.estimate == pytest.approx(pooled) == estimands.pooled(given)
    assert (found.result.low, found.result.high) == pytest.approx(
        (pooled - max(halves), pooled + max(halves))
    )
    if paired:
        assert [test.name for test in found.sensitivity] == ["Hering-Genton", "corrected t over folds"]
        student(found.sensitivity[1], -0.4, math.sqrt((1 / 8 + 1 / 7) * VARIANCE), 7)
        assert found.sensitivity[0].estimate == pytest.approx(pooled)


def test_blocks_are_counted_on_the_grid_with_the_fewest() -> None:
    """Pairs of monitors on both sides of a border are two blocks, and one of a grid moved by half a block."""
    lon = CONUS[0] + 8 * np.arange(6) + np.array([7, 1, 7, 1, 7, 1.0])
    lat, samples = np.full(6, CONUS[1] + 6.0), np.ones(6)
    assert len(set(statistics.blocks(lat, lon, 8).tolist())) == 6
    assert estimands.blocks_of_monitors(lat, lon, samples, 8) == 3
    assert estimands.blocks_of_monitors(lat, lon, samples * (np.arange(6) < 2), 8) == 1
    assert estimands.blocks_of_monitors(lat, lon, 0 * samples, 8) == 0


def test_spatial_needs_blocks() -> None:
    """All monitors within 16 degrees of a corner: at most four blocks of 8 degrees, or nine moved ones."""
    arm, other = placed(np.random.default_rng(5), 0.7)
    near = (LAT - LAT[0]) / 2, (LON - LON[0]) / 4
    given = sample("spatial", VALUES, arm=arm, other=other, lat=26 + near[0], lon=-122 + near[1])
    found = estimands.compare(given)
    assert 2 <= found.units < 8
    untested(found, found.units, f"{found.units} blocks of monitors", "8", "{kind: spatial, folds: 10}")
    assert found.result.estimate == pytest.approx(rmse(arm.by_site, other.by_site))


@pytest.mark.parametrize(("kind", "degrees"), [("checkerboards", 16), ("blocks", 10), ("clusters", 10)])
def test_beside_regions_larger_blocks_are_jackknifed(kind: str, degrees: float) -> None:
    arm, other = placed(np.random.default_rng(5), 0.7)
    given = sample(kind, COLOURS, unit=np.arange(12) // 2, arm=arm, other=other)
    found = estimands.compare(given).sensitivity
    expected = statistics.block_jackknife_of_totals(
        arm.by_site, other.by_site, LAT, LON, degrees=degrees, metric="rmse", offsets=4
    )
    assert found == (expected,)
    assert estimands.compare(given, sensitivity=False).sensitivity == ()


# One arm


def test_one_arm_has_an_interval_around_its_pooled_score() -> None:
    arm, _ = daily(np.random.default_rng(3), 0)
    pooled = rmse(arm.by_site[:1])
    folds = np.array([2.2, 2.4, 2.3, 2.5, 2.1])
    given = sample("random", folds, arm=arm)
    found = estimands.compare(given, sensitivity=False)
    assert found.result.estimate == pytest.approx(pooled) == estimands.pooled(given)
    by_day, by_fold = found.tests
    assert by_day.estimate == pytest.approx(pooled)
    student(by_fold, 2.3, math.sqrt((1 / 5 + 1 / 4) * 0.025), 4)
    assert (found.result.low, found.result.high) == (
        min(by_day.low, by_fold.low),
        max(by_day.high, by_fold.high),
    )
    assert found.result.low < pooled < found.result.high
    assert math.isnan(estimands.pooled(sample("clusters", folds, arm=arm))), "that is a mean over folds"


# Predictions that are missing


@pytest.mark.parametrize("kind", ["random", "spatial"])
def test_missing_predictions_are_said(kind: str) -> None:
    found = estimands.compare(sample(kind, VALUES))
    untested(found, 0, "predictions")
    assert found.result.estimate == pytest.approx(-0.4), "the mean over folds is known all the same"
    nothing = estimands.compare(sample(kind, np.full(5, math.nan)))
    untested(nothing, 0, f"0 {ESTIMANDS[kind].units}", str(ESTIMANDS[kind].needed))
    assert "predictions" not in nothing.untested, "cells that have not ended lack more than predictions"
    assert math.isnan(nothing.result.estimate)


# Names and designs


def test_every_kind_of_split_has_an_estimand() -> None:
    kinds = {kind.model_fields["kind"].default for kind in AnySplit.__args__}
    assert set(ESTIMANDS) == kinds
    for kind in kinds:
        for part in ("test", "wr", "gap"):
            assert estimands.of(kind, part).needed >= 3


@pytest.mark.parametrize("kind", ESTIMANDS)
def test_the_split_that_is_advised_has_enough_units(kind: str) -> None:
    estimand = ESTIMANDS[kind]
    split = TypeAdapter(Split).validate_python(yaml.safe_load(estimand.design))
    assert ESTIMANDS[split.kind] == estimand
    folds = np.arange(split.n_folds)
    found = estimands.compare(
        sample(
            split.kind,
            folds % 7 - 3.0,
            unit=np.array([split.unit(fold) for fold in folds]),
            parts=split.folds,
            **({"arm": both[0], "other": both[1]} if (both := _predicted(split.kind)) else {}),
        )
    )
    assert found.untested == ""
    assert found.units >= estimand.needed


def _predicted(kind: str) -> tuple[Totals, Totals] | None:
    make: dict[str, Callable[..., tuple[Totals, Totals]]] = {
        "random": daily,
        "spatial": placed,
        "knndm": placed,
    }
    return make[kind](np.random.default_rng(0), 0.1) if kind in make else None


def test_the_level_is_that_of_the_interval() -> None:
    for level in (0.8, 0.99):
        found = estimands.compare(boards(np.repeat(MEANS, 2)), level=level)
        half = stats.t.ppf((1 + level) / 2, 5) * found.result.se
        assert found.result.high - found.result.low == pytest.approx(2 * half)


# Size: studies with nothing to find


STUDIES = 60
MOST = int(stats.binom.ppf(0.999, STUDIES, calibration.ALPHA))
"""Most rejections of 60 studies: a true rate of 5 % exceeds it once in a thousand times."""


@pytest.fixture(scope="module")
def network() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(20261128)
    west, south, east, north = CONUS
    return rng.uniform(south, north, 150), rng.uniform(west, east, 150)


def rates(network: tuple[np.ndarray, np.ndarray]) -> dict[str, calibration.Rate]:
    """Rejections of null studies by the tests that decide, by split."""
    kinds = tuple(split for split in calibration.SITE_SPLITS if split.kind in ("spatial", "checkerboards"))
    scenario = calibration.Scenario(400)
    found = calibration.simulate(STUDIES, *network, gain=False, scenarios=(scenario,), kinds=kinds)
    return {rate.split: rate for rate in found if rate.decides}


def test_the_tests_that_decide_keep_their_size_and_an_uncorrected_t_does_not(
    network: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same null studies twice, with a correlation range of 400 km; the second time a t-test is broken."""
    found = rates(network)
    assert found["spatial"].rejected <= MOST
    assert found["checkerboards"].rejected <= MOST

    def uncorrected(differences: np.ndarray, overlap: float, *, level: float = 0.95) -> TestResult:
        return corrected(differences, 0.0, level=level)

    corrected = statistics.corrected_t
    monkeypatch.setattr(statistics, "corrected_t", uncorrected)
    broken = rates(network)
    assert broken["checkerboards"].rejected > MOST
    low, _ = broken["checkerboards"].bounds
    assert low > 4 * calibration.ALPHA, "more than a third of the studies are rejected"
    assert broken["spatial"] == found["spatial"], "the jackknife uses no t-test over folds"
