"""Size and power of the report's tests, from simulated studies on the positions of real monitors.

Each study has two arms. An arm is a ridge regression on columns that are smooth in space, as an encoder's
are. Under the null hypothesis the columns of both arms are drawn from one distribution, so neither arm is
better. The size of a test is the share of these studies that it rejects. Under the alternative, one arm also
knows a part of the truth. The splits are cut by `pm25.splits`, and the tests are made by `estimands.compare`,
as in a report.

The target of a site is smooth in space, with an exponential correlation of a given range. Heavy tails
multiply it by a smooth lognormal scale, so that few regions hold most of the squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pm25 import splits
from pm25.geo import great_circle_km
from pm25.panel import Panel
from pm25.splits import AnySplit
from sweeps.analysis import estimands
from sweeps.analysis.estimands import Sample, Totals
from sweeps.analysis.units import Array
from sweeps.bench.harness import Measurement

RANGES_KM = (100, 200, 400)
"""Ranges of the exponential correlation: at this distance it is 1 / e."""
ALPHA = 0.05
SITES = 1200
"""Sites of the synthetic network that is used without a table."""
COLUMNS = 16
"""Columns of an arm, as smooth as the target."""
RIDGE = 10.0
"""Penalty of the regression."""
NOISE = 0.5
"""Standard deviation of the target around its smooth part, from site to site."""
DAILY = 1.0
"""Standard deviation of the daily values around the site's mean, which no arm predicts."""
SAMPLES = 200
"""Samples of a site."""
KNOWN = 0.5
"""Share of the standard deviation of the target that one arm knows under the alternative."""

DAYS, DAY_SITES, DAY_COLUMNS = 150, 150, 5
"""Size of a study of the random and rolling splits, whose columns are redrawn by day."""
PERSISTENCE = 0.8
"""Autocorrelation of the daily fields from one day to the next."""


class Scenario(NamedTuple):
    """World of the simulated studies."""

    range_km: float
    heavy: bool = False
    dominated: bool = False
    """True if a single region of the east has values three times as large."""
    site_effect: bool = False
    """True if the target is independent from site to site."""

    @property
    def name(self) -> str:
        """Name of the row, such as `200 km, heavy`."""
        tails = "heavy" if self.heavy else "light"
        more = ", one dominating region" * self.dominated + ", site effects" * self.site_effect
        return f"{self.range_km:g} km, {tails}{more}"


SCENARIOS = (
    *(Scenario(range_km, heavy) for range_km in RANGES_KM for heavy in (False, True)),
    Scenario(200, dominated=True),
    Scenario(200, site_effect=True),
)


class Rate(NamedTuple):
    """Share of studies that a test rejects."""

    split: str
    test: str
    decides: bool
    """True for the result that the report calls a test, False for the tests beside it."""
    scenario: str
    rejected: int
    studies: int

    @property
    def share(self) -> float:
        """Rejected studies over all studies."""
        return self.rejected / self.studies

    @property
    def bounds(self) -> tuple[float, float]:
        """Wilson interval of the share, of level 95 %."""
        found = stats.binomtest(self.rejected, self.studies).proportion_ci(0.95, "wilson")
        return float(found.low), float(found.high)


SITE_SPLITS: tuple[AnySplit, ...] = (
    splits.SpatialSplit(folds=10),
    splits.CheckerboardsSplit(degrees=16, origins=15),
    splits.BlocksSplit(degrees=8, folds=10, deals=3),
    splits.ClusterSplit(folds=10),
)
"""Splits whose test sets are sites."""
DAY_SPLITS: tuple[AnySplit, ...] = (splits.RandomSplit(folds=5), splits.RollingSplit(folds=5))


def simulate(
    studies: int,
    lat: Array,
    lon: Array,
    *,
    gain: bool,
    scenarios: tuple[Scenario, ...] = SCENARIOS,
    kinds: tuple[AnySplit, ...] = SITE_SPLITS + DAY_SPLITS,
) -> Iterator[Rate]:
    """Yield the rate at which each test rejects, for every split and scenario.

    `lat` and `lon` are the monitors' positions in degrees (sites,). With `gain` one arm is truly better, and
    the rates are powers; otherwise they are sizes. The same arguments give the same rates.
    """
    for scenario in scenarios:
        by_site = [split for split in kinds if split in SITE_SPLITS]
        by_day = [split for split in kinds if split in DAY_SPLITS]
        if by_site:
            yield from _rates(_SiteWorld(scenario, lat, lon, by_site), studies, gain)
        if by_day and not scenario.site_effect and not scenario.dominated:
            yield from _rates(_DayWorld(scenario, lat, lon, by_day), studies, gain)


def positions(table: Path | None) -> tuple[Array, Array]:
    """Read the monitors' positions from a table, or make those of a synthetic network."""
    from pm25 import panel
    from pm25.sources import synthetic

    if table is not None:
        read = panel.read(table)
        return read.lat, read.lon
    made = synthetic.synthesize(sites=SITES, days=21).drop_duplicates("site_id")
    return made["lat"].to_numpy(), made["lon"].to_numpy()


def _rates(world: _SiteWorld | _DayWorld, studies: int, gain: bool) -> Iterator[Rate]:
    """Simulate the studies of a world, and count the rejections of every test."""
    rejected: dict[tuple[str, str, bool], int] = {}
    for study in range(studies):
        rng = np.random.default_rng([study, int(gain)])
        for sample in world.study(rng, gain):
            found = estimands.compare(sample)
            tests = [("decides", found.result, True), *((one.name, one, False) for one in found.sensitivity)]
            for name, test, decides in tests:
                place = sample.kind, name, decides
                better = not gain or test.estimate < 0
                rejected[place] = rejected.get(place, 0) + int(test.p <= ALPHA and better)
    for (kind, name, decides), count in rejected.items():
        label = estimands.of(kind).test if decides else name
        yield Rate(kind, label, decides, world.scenario.name, count, studies)


class _SiteWorld:
    """Studies whose columns belong to sites: an arm predicts the mean of a site."""

    def __init__(self, scenario: Scenario, lat: Array, lon: Array, kinds: list[AnySplit]) -> None:
        self.scenario, self._lat, self._lon = scenario, lat, lon
        self._factor = _cholesky(lat, lon, scenario.range_km)
        panel = _panel(lat, lon, days=1)
        self._folds = {split: _folds(split, panel) for split in kinds}

    def study(self, rng: np.random.Generator, gain: bool) -> Iterator[Sample]:
        """Simulate one study, and yield the scores on every split."""
        sites = len(self._lat)
        smooth = self._factor @ rng.standard_normal((sites, 2 * COLUMNS + 3))
        truth = rng.standard_normal(sites) if self.scenario.site_effect else smooth[:, 0]
        truth = truth + NOISE * rng.standard_normal(sites)
        known = smooth[:, 1]
        truth = truth + KNOWN * known if gain else truth
        if self.scenario.heavy:
            truth = truth * np.exp(1.2 * smooth[:, 2])
        if self.scenario.dominated:
            truth = truth * np.where((self._lon > -82) & (self._lat > 38), 3.0, 1.0)
        columns = [smooth[:, 3 : 3 + COLUMNS], smooth[:, 3 + COLUMNS :]]
        if gain:
            columns[0] = np.column_stack([columns[0][:, 1:], known])
        for split, folds in self._folds.items():
            yield _sample(split, folds, partial(self._totals, truth, columns), self._lat, self._lon)

    def _totals(self, truth: Array, columns: list[Array], arm: int, train: Array, test: Array) -> Totals:
        predicted = _ridge(columns[arm], truth, train, test)
        error = predicted - truth[test]
        totals = np.zeros((len(truth), 6))
        totals[test] = SAMPLES * np.stack(
            [
                np.ones(len(test)),
                error,
                np.abs(error),
                error**2 + DAILY**2,
                truth[test],
                truth[test] ** 2 + DAILY**2,
            ],
            axis=1,
        )
        return Totals(totals, np.zeros((0, 6)))


class _DayWorld:
    """Studies whose columns are redrawn by day, so that no arm knows a site."""

    def __init__(self, scenario: Scenario, lat: Array, lon: Array, kinds: list[AnySplit]) -> None:
        some = np.random.default_rng(0).permutation(len(lat))[:DAY_SITES]
        self.scenario, self._lat, self._lon = scenario, lat[some], lon[some]
        self._factor = _cholesky(self._lat, self._lon, scenario.range_km)
        panel = _panel(self._lat, self._lon, DAYS)
        self._folds = {split: _folds(split, panel) for split in kinds}

    def study(self, rng: np.random.Generator, gain: bool) -> Iterator[Sample]:
        """Simulate one study, and yield the scores on every split."""
        fields = rng.standard_normal((DAYS, len(self._lat), 2 * DAY_COLUMNS + 2))
        for day in range(1, DAYS):
            fields[day] = PERSISTENCE * fields[day - 1] + np.sqrt(1 - PERSISTENCE**2) * fields[day]
        smooth = np.matmul(self._factor, fields).swapaxes(0, 1)  # (sites, days, columns)
        truth = smooth[..., 0] + NOISE * rng.standard_normal(smooth.shape[:2])
        truth = truth + 0.3 * smooth[..., 2] if gain else truth
        if self.scenario.heavy:
            truth = truth * np.exp(1.2 * smooth[..., 1])
        flat = smooth.reshape(-1, smooth.shape[2])
        columns = [flat[:, 2 : 2 + DAY_COLUMNS], flat[:, 2 + DAY_COLUMNS :]]
        for split, folds in self._folds.items():
            yield _sample(split, folds, partial(self._totals, truth, columns), self._lat, self._lon)

    def _totals(self, truth: Array, columns: list[Array], arm: int, train: Array, test: Array) -> Totals:
        flat = truth.reshape(-1)
        predicted, true = _ridge(columns[arm], flat, train, test), flat[test]
        error = predicted - true
        site, day = np.divmod(test, DAYS)
        weights = (None, error, np.abs(error), error**2, true, true**2)
        by_site, by_day = (
            np.stack([np.bincount(place, w, size).astype(np.float64) for w in weights], axis=1)
            for place, size in ((site, len(truth)), (day, DAYS))
        )
        return Totals(by_site, by_day)


def _sample(split: AnySplit, folds: list[tuple[Array, Array]], totals: Any, lat: Array, lon: Array) -> Sample:
    """Train both arms on every fold, and collect their differences and totals."""
    values, sums = [], []
    for train, test in folds:
        pair = [totals(arm, train, test) for arm in (0, 1)]
        scores = [float(np.sqrt(one.by_site[:, 3].sum() / one.by_site[:, 0].sum())) for one in pair]
        values.append(scores[0] - scores[1])
        sums.append(pair)
    arm, other = (
        Totals(sum(one.by_site for one in side), sum(one.by_day for one in side))
        for side in zip(*sums, strict=True)
    )
    unit = np.array([split.unit(fold) for fold in range(len(folds))])
    return Sample(split.kind, unit, int(split.folds), np.array(values), "rmse", lat, lon, arm, other)


def _ridge(columns: Array, truth: Array, train: Array, test: Array) -> Array:
    """Predict the test samples by a ridge regression with an intercept on the training samples."""
    x, y = columns[train], truth[train]
    centre, mean = x.mean(axis=0), y.mean()
    x = x - centre
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - mean))
    predicted: Array = (columns[test] - centre) @ weights + mean
    return predicted


def _folds(split: AnySplit, panel: Panel) -> list[tuple[Array, Array]]:
    """Cut the panel: training (with validation) and test samples of every fold."""
    found = []
    for fold in range(split.n_folds):
        cut = splits.cut(split, fold, panel, window=1)
        held_out = [] if cut.wr is None else [cut.wr]
        found.append((np.concatenate([cut.train, cut.validation, *held_out]), cut.test))
    return found


def _panel(lat: Array, lon: Array, days: int) -> Panel:
    """Make a panel of these positions with a value on every day."""
    values = np.zeros((len(lat), days), np.float32)
    return Panel(
        features=values[..., None],
        target=values,
        lat=lat,
        lon=lon,
        site_id=np.array([f"{i:06d}" for i in range(len(lat))]),
        dates=np.datetime64("2021-01-01") + np.arange(days),
        channels=("none",),
        name="calibration",
    )


def _cholesky(lat: Array, lon: Array, range_km: float) -> Array:
    """Factor of the exponential correlation of the positions: (sites, sites)."""
    km = great_circle_km(lat[:, None], lon[:, None], lat[None], lon[None])
    factor = np.linalg.cholesky(np.exp(-km / range_km) + 1e-8 * np.eye(len(lat)))
    return np.asarray(factor, np.float64)


def run(table: Path | None, studies: int) -> Iterator[Measurement]:
    """Measure the size, then the power, of every test: shares of studies in percent, with their bounds."""
    lat, lon = positions(table)
    for gain, what in ((False, "size"), (True, "power")):
        for rate in simulate(studies, lat, lon, gain=gain):
            low, high = rate.bounds
            role = "decides" if rate.decides else "beside it"
            yield Measurement(
                f"{what}: {rate.split}, {rate.test}, {rate.scenario}",
                100 * rate.share,
                "%",
                100 * ALPHA if rate.decides and not gain else math.inf,
                f"{role}; {rate.rejected} of {rate.studies} studies, 95 % bounds {low:.1%} to {high:.1%}",
            )
