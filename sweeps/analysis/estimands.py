"""Estimands of the splits, and the tests that decide a comparison.

A split carries its result over to something: other days at the same monitors, other places inside the
network, regions without monitors, or later days. That is its *estimand*. It fixes the unit that is
independent evidence and with it the test. `compare` makes the tests of one comparison; the report and the
calibration both call it.

Every test compares an estimate with its standard error on Student's t. Where the result is "the larger p of"
two tests, its interval is the union of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from pm25.text import counted
from sweeps.analysis import statistics
from sweeps.analysis.statistics import TestResult
from sweeps.analysis.units import BY_SITE, MIN_BLOCKS, MIN_FOLDS, MIN_ORIGINS, MIN_PERIODS, Array, overlap

Kind = Literal[
    "random",
    "temporal",
    "rolling",
    "spatial",
    "knndm",
    "checkerboard",
    "checkerboards",
    "blocks",
    "clusters",
    "group",
]
"""Kind of a split, as `pm25.splits` names it."""

LAG_DAYS = 14
"""Lag window of the Diebold-Mariano test: weather and smoke last for up to two weeks."""
MIN_DAYS = 4 * LAG_DAYS
"""Fewest days of a Diebold-Mariano test."""

GRIDS = 4
"""Number of grids of blocks of monitors, moved by half a block, of which the largest p decides."""
JACKKNIFE_DEGREES = 8.0
"""Edge of the blocks of monitors within region, in degrees."""
_FAR_DEGREES = {"checkerboards": 16.0, "blocks": 10.0}
"""Edge of the blocks of monitors in the jackknife beside a test out of region, in degrees."""
BOARDS = ("checkerboard", "checkerboards")


class Estimand(NamedTuple):
    """Meaning of a result on one kind of split."""

    name: str
    """Situation that the result is carried over to, such as "other places inside the network"."""
    unit: str
    """Independent unit of the test, in the singular."""
    units: str
    needed: int
    """Fewest units that can be tested."""
    test: str
    """Name of the test."""
    design: str
    """Split that has enough units, as a study file writes it."""


_LATER = Estimand(
    "later days at these monitors",
    "test period",
    "test periods",
    MIN_PERIODS,
    "Diebold-Mariano test over test periods",
    "{kind: rolling, folds: 5}",
)
_REGIONS = Estimand(
    "regions without monitors",
    "origin",
    "origins",
    MIN_ORIGINS,
    "larger p of the corrected repeated t-tests over origins and over their halves",
    "{kind: checkerboards, degrees: 16, origins: 15}",
)
_OTHER_REGIONS = Estimand(
    "other regions",
    "region",
    "regions",
    MIN_FOLDS,
    "corrected t-test over regions",
    "{kind: clusters, folds: 10}",
)
ESTIMANDS: dict[str, Estimand] = {
    "random": Estimand(
        "other days at these monitors",
        "day",
        "days",
        MIN_DAYS,
        "larger p of the Diebold-Mariano test over days and the corrected t-test over folds",
        "{kind: random, folds: 5}",
    ),
    "temporal": _LATER,
    "rolling": _LATER,
    "spatial": Estimand(
        "other places inside the network",
        "block of monitors",
        "blocks of monitors",
        MIN_BLOCKS,
        "jackknife over blocks of monitors",
        "{kind: spatial, folds: 10}",
    ),
    "knndm": Estimand(
        "places of the prediction domain",
        "block of monitors",
        "blocks of monitors",
        MIN_BLOCKS,
        "jackknife over blocks of monitors",
        "{kind: knndm, folds: 10}",
    ),
    "checkerboard": _REGIONS,
    "checkerboards": _REGIONS,
    "blocks": Estimand(
        "regions without monitors, with denser training",
        "fold of a deal",
        "folds of all deals",
        MIN_FOLDS,
        "corrected repeated t-test over folds and deals",
        "{kind: blocks, degrees: 8, folds: 10, deals: 3}",
    ),
    "clusters": _OTHER_REGIONS,
    "group": _OTHER_REGIONS,
}
"""Estimand of the test set of each kind of split."""

WITHIN = Estimand(
    "places inside the training regions",
    "origin",
    "origins",
    MIN_ORIGINS,
    "larger p of the corrected repeated t-tests over origins and over their halves",
    "{kind: checkerboards, degrees: 16, origins: 15}",
)
"""Estimand of the within-region set of a split of regions."""
_PLURALS = {one.unit: one.units for one in (*ESTIMANDS.values(), WITHIN)}
GAP_ESTIMAND = WITHIN._replace(name="out of region minus within region at the same monitors")
"""Estimand of the paired gap, which needs `holdout: rotate`."""


class Totals(NamedTuple):
    """Sums over the predictions of one arm, added up over the folds and seeds that are compared.

    Their columns are those of `statistics.score`: N, E, ABS_E, E2, Y, Y2. For the metric site_rmse `by_site`
    has one sample per monitor (`statistics.one_per_monitor`), and `by_day` is empty.
    """

    by_site: Array
    """(sites, 6); zero where a site has no prediction."""
    by_day: Array
    """(days, 6); zero where a day has no prediction."""


class Sample(NamedTuple):
    """Scores on one evaluation set of a split: one arm's, or the differences of two."""

    kind: str
    """Kind of the split."""
    unit: np.ndarray
    """(folds,), the independent unit that each fold belongs to (`pm25.splits`)."""
    parts: int
    """Folds that one deal divides the samples into: the overlap of training sets is 1 / (parts - 1)."""
    values: Array
    """(folds,), scores averaged over seeds, arm minus other; NaN without a number."""
    metric: str
    lat: Array | None = None
    """(sites,), degrees; None without predictions."""
    lon: Array | None = None
    arm: Totals | None = None
    """Totals of the arm; None without predictions."""
    other: Totals | None = None
    """Totals of the other arm; None if the scores are those of one arm."""
    block_degrees: float = JACKKNIFE_DEGREES
    """Edge of the blocks of monitors of a spatial split."""


class Evidence(NamedTuple):
    """Result of one comparison, in the metric's unit."""

    result: TestResult
    """Test that decides; its numbers but `estimate` are NaN where nothing could be tested."""
    tests: tuple[TestResult, ...]
    """Tests of which the result has the larger p; empty where nothing could be tested."""
    sensitivity: tuple[TestResult, ...]
    """Other tests of the same difference, which decide nothing."""
    units: int
    """Number of independent units, blocks of monitors counted by their effective number."""
    untested: str
    """Why nothing could be tested; empty otherwise."""


def of(kind: str, part: str = "test") -> Estimand:
    """Return the estimand of one evaluation set ('test', 'wr' or 'gap') of a kind of split."""
    if part == "gap":
        return GAP_ESTIMAND
    if part == "test":
        return ESTIMANDS[kind]
    if kind in BOARDS:
        return WITHIN
    return WITHIN._replace(unit="fold", units="folds", test="corrected t-test over folds, 1/J + 1")


def compare(sample: Sample, part: str = "test", *, level: float = 0.95, sensitivity: bool = True) -> Evidence:
    """Test that the scores of a sample are zero on average, with the test of its estimand.

    The sample of two arms has the differences; the sample of one arm gives the interval of its mean. A result
    without enough units, or without the predictions that its test needs, has NaN and says why. Tests beside
    the one that decides are made with `sensitivity`.
    """
    found = _decide(sample, part, level)
    if not sensitivity or not found.tests:
        return found
    return found._replace(sensitivity=tuple(_beside(sample, part, level)))


def _decide(sample: Sample, part: str, level: float) -> Evidence:
    """Make the tests that decide."""
    kind = sample.kind
    if part != "test" or kind in BOARDS:
        return _over_origins(sample, part, level)
    if kind == "random":
        return _over_days(sample, level)
    if kind in BY_SITE:
        return _over_blocks(sample, level)
    if kind in ("temporal", "rolling"):
        return _over_periods(sample, level)
    return _over_folds(sample, level)


def _over_origins(sample: Sample, part: str, level: float) -> Evidence:
    """Test origins, and their two halves; an origin counts when all its folds have a number.

    An origin is the mean of its folds. The larger p of both tests decides. Where errors are correlated over
    400 km, origins alone reject 7 % of 1,500 null studies at 5 % (`sweeps.bench.calibration`).
    """
    means, _ = _by_unit(sample)
    estimand = of(sample.kind, part)
    if len(means) < MIN_ORIGINS:
        return _untested(sample, len(means), estimand)
    by_unit = statistics.corrected_t(means, 1.0, level=level)
    if sample.kind not in BOARDS:
        result = _named(by_unit, "folds, 1/J + 1")
        return Evidence(result, (result,), (), len(means), "")
    by_half = statistics.corrected_t(_halves(sample), 0.75, level=level)
    tests = _named(by_unit, "origin means, 1/R + 1"), _named(by_half, "halves of origins, 1/J + .75")
    return Evidence(_joined(tests, by_unit.estimate), tests, (), len(means), "")


def _over_days(sample: Sample, level: float) -> Evidence:
    """Test days by Diebold and Mariano, and folds by the corrected t; the larger p decides."""
    if sample.arm is None:
        return _no_predictions(sample)
    days = _influence(sample, "by_day")
    folds = sample.values[np.isfinite(sample.values)]
    seen = int(np.isfinite(days).sum())
    if sample.metric == "site_rmse":
        return _nothing(sample, 0, "the RMSE by monitor has no value for a day")
    if seen < MIN_DAYS:
        return _untested(sample, seen, ESTIMANDS["random"])
    if len(folds) < MIN_FOLDS:
        return _too_few_folds(sample, len(folds))
    by_day = statistics.diebold_mariano(days, lag=LAG_DAYS, level=level)
    tests = by_day, _corrected_t_over_folds(sample, folds, level)
    return Evidence(_joined(tests, by_day.estimate), tests, (), seen, "")


def _over_blocks(sample: Sample, level: float) -> Evidence:
    """Test blocks of monitors by the jackknife of the pooled score."""
    if sample.arm is None:
        return _no_predictions(sample)
    assert sample.lat is not None
    assert sample.lon is not None
    samples = sample.arm.by_site[:, statistics.N]
    if sample.other is not None:
        samples = np.where(sample.other.by_site[:, statistics.N] > 0, samples, 0)
    blocks = blocks_of_monitors(sample.lat, sample.lon, samples, sample.block_degrees)
    if blocks < MIN_BLOCKS:
        return _untested(sample, blocks, ESTIMANDS[sample.kind])
    result = _jackknife(sample, sample.block_degrees, level)
    return Evidence(result, (result,), (), blocks, "")


def far_degrees(kind: str) -> float:
    """Return the edge in degrees of the blocks of monitors of an out-of-region kind of split."""
    return _FAR_DEGREES["checkerboards" if kind in BOARDS else "blocks"]


def blocks_of_monitors(lat: Array, lon: Array, samples: Array, degrees: float) -> int:
    """Count the effective blocks of monitors (n,) with these numbers of samples, on the grid with the fewest.

    The grids are those of the jackknife. The number depends on the monitors alone, so `plan` knows it.
    """
    used = samples > 0
    if not used.any():
        return 0
    lat, lon, samples = lat[used], lon[used], samples[used].astype(np.float64)
    return min(
        int(
            statistics.effective_blocks(
                np.bincount(statistics.blocks(lat, lon, degrees, offset), samples).astype(np.float64)
            )
            + 1e-9
        )
        for offset in statistics.OFFSETS[GRIDS]
    )


def _over_periods(sample: Sample, level: float) -> Evidence:
    """Test the periods of a rolling split by Diebold and Mariano, whose blocks are a unit each."""
    periods = sample.values[np.isfinite(sample.values)]
    if len(periods) < MIN_PERIODS:
        return _untested(sample, len(periods), _LATER)
    result = _named(statistics.diebold_mariano(periods, lag=0, level=level), "Diebold-Mariano, test periods")
    return Evidence(result, (result,), (), len(periods), "")


def _over_folds(sample: Sample, level: float) -> Evidence:
    """Test the folds of regions, of one deal or of several, by the corrected t."""
    folds = sample.values[np.isfinite(sample.values)]
    estimand = ESTIMANDS[sample.kind]
    if len(folds) < MIN_FOLDS:
        return _untested(sample, len(folds), estimand)
    result = _corrected_t_over_folds(sample, folds, level)
    return Evidence(result, (result,), (), len(folds), "")


def _beside(sample: Sample, part: str, level: float) -> Iterator[TestResult]:
    """Yield the tests beside the one that decides."""
    kind, folds = sample.kind, sample.values[np.isfinite(sample.values)]
    if sample.arm is None or part != "test" or kind == "random":
        return
    assert sample.lat is not None
    assert sample.lon is not None
    if kind in BY_SITE:
        yield statistics.hering_genton(_influence(sample, "by_site"), sample.lat, sample.lon, level=level)
        if len(folds) >= MIN_FOLDS:
            yield _corrected_t_over_folds(sample, folds, level)
    elif kind in ("temporal", "rolling"):
        days = _influence(sample, "by_day")
        if np.isfinite(days).sum() >= MIN_DAYS:
            yield statistics.diebold_mariano(days, lag=LAG_DAYS, level=level)
    else:
        yield _jackknife(sample, far_degrees(kind), level)


def _corrected_t_over_folds(sample: Sample, folds: Array, level: float) -> TestResult:
    shared = overlap(sample.parts)
    return _named(statistics.corrected_t(folds, shared, level=level), "corrected t over folds")


def _jackknife(sample: Sample, degrees: float, level: float) -> TestResult:
    """Jackknife the pooled score over blocks of monitors, with four offsets of the grid.

    Two offsets reject 5.3 % of 1,500 null studies whose errors are correlated over 400 km, four 3.7 % of
    1,000, at the same power.
    """
    assert sample.arm is not None
    assert sample.lat is not None
    assert sample.lon is not None
    other = None if sample.other is None else sample.other.by_site
    return statistics.block_jackknife_of_totals(
        sample.arm.by_site,
        other,
        sample.lat,
        sample.lon,
        degrees=degrees,
        metric=sample.metric,
        offsets=GRIDS,
        level=level,
    )


def _by_unit(sample: Sample) -> tuple[Array, Array]:
    """Average the folds of each complete unit: means (units,), and the folds (units, folds of a unit)."""
    units = np.unique(sample.unit)
    rows = [sample.values[sample.unit == unit] for unit in units]
    most = max((len(row) for row in rows), default=0)
    complete = [row for row in rows if len(row) == most and np.isfinite(row).all()]
    folds = np.array(complete, np.float64).reshape(len(complete), most)
    return folds.mean(axis=1) if most else np.empty(0), folds


def _halves(sample: Sample) -> Array:
    """Average the folds of each colour of an origin: (2 x origins,), or (origins,) with one colour alone."""
    _, folds = _by_unit(sample)
    origins, of_origin = folds.shape
    colours = 1 if of_origin % 2 else 2
    halves: Array = folds.reshape(origins * colours, of_origin // colours).mean(axis=1)
    return halves


def _influence(sample: Sample, of: Literal["by_site", "by_day"]) -> Array:
    """Spread the pooled score over sites or days (`statistics.pseudo_values`); without those unseen."""
    assert sample.arm is not None
    other = None if sample.other is None else getattr(sample.other, of)
    return statistics.pseudo_values(getattr(sample.arm, of), other, sample.metric)


def pooled(sample: Sample) -> float:
    """Return the pooled score of one arm, or the difference of two; NaN without predictions."""
    if sample.arm is None or not is_pooled(sample.kind, "test"):
        return math.nan
    value = float(statistics.score(sample.arm.by_site.sum(axis=0), sample.metric))
    if sample.other is not None:
        value -= float(statistics.score(sample.other.by_site.sum(axis=0), sample.metric))
    return value


def is_pooled(kind: str, part: str) -> bool:
    """Return True if the score of a split is that of all its predictions, not a mean over its folds."""
    return part == "test" and kind in ("random", *BY_SITE)


def _joined(tests: tuple[TestResult, ...], estimate: float) -> TestResult:
    return statistics.larger_p(tests)._replace(estimate=estimate)


def _named(test: TestResult, name: str) -> TestResult:
    return test._replace(name=name)


def counted_units(number: int, unit: str) -> str:
    """Format a number of units with their name, such as '1 block of monitors' or '12 blocks of monitors'."""
    return f"{number:,} {unit if number == 1 else _PLURALS.get(unit, f'{unit}s')}"


def _untested(sample: Sample, units: int, estimand: Estimand) -> Evidence:
    if sample.kind == "checkerboard":
        return _nothing(
            sample, units, f"the two halves of one origin have no test; {estimand.design} has one"
        )
    seen = counted_units(units, estimand.unit)
    return _nothing(sample, units, f"{seen}, and {estimand.needed} are needed: {estimand.design}")


def _too_few_folds(sample: Sample, folds: int) -> Evidence:
    return _nothing(sample, folds, f"{counted(folds, 'fold')}, and {MIN_FOLDS} are needed")


def _no_predictions(sample: Sample) -> Evidence:
    if not np.isfinite(sample.values).any():
        return _untested(sample, 0, ESTIMANDS[sample.kind])
    return _nothing(sample, 0, "the store has no predictions of these cells")


def _nothing(sample: Sample, units: int, why: str) -> Evidence:
    """Return the estimate alone."""
    seen = sample.values[np.isfinite(sample.values)]
    estimate = pooled(sample)
    if math.isnan(estimate) and len(seen):
        estimate = float(seen.mean())
    nan = math.nan
    return Evidence(TestResult(estimate, nan, nan, nan, nan, nan, ""), (), (), units, why)
