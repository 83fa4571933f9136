"""Coverage of prediction intervals that are calibrated on the errors of held-out regions.

The samples of a region in one test fold get intervals from the errors of the arm's other test folds in all
other regions. So neither the models behind these errors nor the errors themselves are about the region that
is judged. Test sets out of region are calibrated out of region, and those within region within it.

Days of one region are alike, so regions are the exchangeable units and not days. Each region counts once,
whatever its number of samples: the radius is a quantile of the mean of the regions' distributions of scores
(Dunn, Wasserman and Ramdas 2023, "pooling CDFs"). Its level is calibrated too. It is the smallest level at
which the intervals of every calibration region, made from the other ones, cover the nominal share on average.
Without this step, intervals cover too little where regions differ much. The infinite score of hierarchical
conformal prediction (Lee, Barber and Willett 2023) guarantees coverage instead. Its intervals cover 92 to
95 % with 20 simulated regions, and are about 17 to 50 % wider. `sweeps.bench.coverage` simulates what is used
here.

Errors of different folds come from different models, as with cross-conformal prediction and the CV+ of Barber
et al. (2021), whose worst case is 2 x coverage - 1. MAPIE and crepes calibrate on samples or on given
categories, not on groups that count once, so the quantile is computed here.

Scores are counted in bins, each 2.3 % wide. A radius is the upper edge of its bin. So a radius is at most
2.3 % too large, and the coverage of its intervals is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pm25.intervals import Calibration, Radius
from pm25.text import counted
from sweeps.analysis import labels
from sweeps.analysis.held_out_errors import EDGES, HeldOutErrors
from sweeps.analysis.units import Array

if TYPE_CHECKING:
    from sweeps.analysis.artifacts import Predicted
    from sweeps.spec.claims import Analysis

ALL = "all regions"
"""Name of the line over all regions in `coverage`."""

REACH = 0.95
"""Share of a split's test monitors that are within its reach."""

COLUMNS = (
    "arm",
    "split",
    "part",
    "regime",
    "level",
    "region",
    "lat",
    "lon",
    "n",
    "coverage",
    "low",
    "high",
    "width",
    "n_high",
    "coverage_high",
    "regions",
    "worst",
    "worst_region",
    "folds",
    "folds_expected",
    "untested",
)
"""Columns of `coverage`."""

_STEPS = 14
"""Halvings that find a level, to 1 in 16,384."""

_NEAR = 1e-9
"""Slack of a comparison of sums of shares with a level."""


class Measured(NamedTuple):
    """Coverage of the intervals of an arm's test samples, by region."""

    n: np.ndarray
    """(regions,) predictions."""
    covered: np.ndarray
    """(regions,) predictions whose interval holds the measured value."""
    width: Array
    """(regions,) sum of the widths, in ug/m3."""
    n_high: np.ndarray
    """(regions,) predictions of days from 35.5 ug/m3 on."""
    covered_high: np.ndarray
    """(regions,) predictions of such days whose interval holds the measured value."""

    @property
    def by_region(self) -> Array:
        """(regions,) coverage of each region."""
        found: Array = self.covered / self.n
        return found

    @property
    def coverage(self) -> float:
        """Mean coverage of the regions, each of which counts once."""
        return float(self.by_region.mean())

    def interval(self, level: float) -> tuple[float, float]:
        """Return the t interval of the mean coverage over regions, within 0 and 1; NaN for one region."""
        from scipy import stats

        if len(self.n) < 2:
            return math.nan, math.nan
        error = self.by_region.std(ddof=1) / math.sqrt(len(self.n))
        half = float(stats.t.ppf((1 + level) / 2, len(self.n) - 1) * error)
        return max(0.0, self.coverage - half), min(1.0, self.coverage + half)

    @property
    def coverage_high(self) -> float:
        """Share of the days from 35.5 ug/m3 on that their intervals hold; NaN without such days."""
        n = self.n_high.sum()
        return float(self.covered_high.sum() / n) if n else math.nan


class TooFew(NamedTuple):
    """Reason why a coverage was not measured."""

    why: str


Chooser = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""Function of counts (regions, bins), sets of regions (sets, regions) and a level: a bin for each set."""


def needed_regions(level: float) -> int:
    """Return the fewest regions of intervals of a level.

    One region is judged, and the others calibrate. With fewer than `level / (1 - level)` of these, no finite
    interval holds a new region's value with that probability, whatever the errors are.
    """
    return math.ceil(1 / (1 - level) - _NEAR)


def measure(errors: HeldOutErrors, level: float, choose: Chooser | None = None) -> Measured | TooFew:
    """Measure the coverage of intervals that are calibrated on other folds and other regions.

    `choose` finds the bin of the radius; by default, regions count once (`radius_bins`).
    """
    choose = radius_bins if choose is None else choose
    folds, regions = errors.folds, errors.regions
    if len(folds) < 2:
        return TooFew("one fold, and a second one is needed to calibrate on")
    counts, spreads = errors.counts(), errors.spreads()
    n = counts.sum(axis=3)
    of_others = counts[:, :, 0].sum(axis=0) - counts[:, :, 0]
    fewest = int((of_others.sum(axis=2) > 0).sum(axis=1).min())
    if fewest < needed_regions(level):
        return TooFew(_too_few(fewest, level, errors.degrees))
    covered = np.zeros((len(folds), len(regions), 2), np.int64)
    width = np.zeros((len(folds), len(regions)))
    edges = np.append(EDGES, np.inf)
    cumulated = counts.cumsum(axis=3)
    for fold, other in enumerate(of_others):
        used = np.flatnonzero(other.sum(axis=1))
        judged = np.flatnonzero(n[fold, :, 0])
        sets = used[None] != judged[:, None]  # all regions with errors but the one that is judged
        bins = choose(other[used], sets, level)
        covered[fold, judged] = cumulated[fold, judged, :, bins]
        width[fold, judged] = 2 * edges[bins] * spreads[fold, judged]
    if not np.isfinite(width).all():
        return TooFew(f"a score above {EDGES[-1]:g} is needed to cover {level:.0%} of the days")
    total = n.sum(axis=0)
    found = covered.sum(axis=0)
    return Measured(total[:, 0], found[:, 0], width.sum(axis=0), total[:, 1], found[:, 1])


def calibrate(errors: HeldOutErrors, level: float) -> tuple[float, int] | TooFew:
    """Return the radius of the intervals of a new region from all errors, and the number of their regions."""
    counts = errors.counts()[:, :, 0].sum(axis=0)
    if len(counts) + 1 < needed_regions(level):
        return TooFew(_too_few(len(counts), level, errors.degrees))
    (bin_,) = radius_bins(counts, np.ones((1, len(counts)), bool), level)
    if bin_ == len(EDGES):
        return TooFew(f"a score above {EDGES[-1]:g} is needed to cover {level:.0%} of the days")
    return float(EDGES[bin_]), len(counts)


def radius_bins(counts: np.ndarray, sets: np.ndarray, level: float) -> np.ndarray:
    """Find the bin of the radius that each set of regions calibrates; (sets,).

    `counts` (regions, bins) are the scores by region, and `sets` (sets, regions) is True for the regions of a
    set. The bin is `len(EDGES)` where no finite radius covers enough.

    The level of the quantile is calibrated by leaving out every region of the set in turn.
    """
    cdf = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
    cdf = cdf[:, : len(EDGES)]
    size = sets.sum(axis=1)
    total = sets.astype(np.float64) @ cdf  # (sets, bins)
    low, high = np.zeros(len(sets)), np.ones(len(sets))
    region = np.arange(len(cdf))[None]
    one = np.arange(len(sets))[:, None]
    padded = np.concatenate([cdf, np.ones((len(cdf), 1))], axis=1)
    for _ in range(_STEPS):
        tried = (low + high) / 2
        wanted = (tried * (size - 1))[:, None] - _NEAR
        bins = _first_bin(lambda at: total[one, at] - cdf[region, at], wanted, sets.shape)
        coverage = np.where(sets, padded[region, bins], 0).sum(axis=1) / size
        enough = coverage >= level - _NEAR
        low, high = np.where(enough, low, tried), np.where(enough, tried, high)
    place = np.arange(len(sets))
    return _first_bin(lambda at: total[place, at], high * size - _NEAR, size.shape)


def _first_bin(values: Callable[[np.ndarray], Array], wanted: Array, shape: tuple[int, ...]) -> np.ndarray:
    """Find the first bin where ascending values reach what is wanted; `len(EDGES)` if none does."""
    low, high = np.zeros(shape, np.int64), np.full(shape, len(EDGES))
    for _ in range(len(EDGES).bit_length()):
        middle = (low + high) // 2
        enough = values(np.minimum(middle, len(EDGES) - 1)) >= wanted
        enough |= middle == len(EDGES)
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return high


def coverage(sums: Predicted, rows: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """Measure the coverage of every arm's intervals on every evaluation set of a split.

    The result has the columns `COLUMNS`. The line `ALL` of an arm and evaluation set has the mean coverage of
    its regions with its interval of level 1 - alpha. It has the mean width of all intervals in ug/m3, and the
    lowest coverage of a region too. The other lines are those of its regions, with their centres in degrees.
    `n_high` and `coverage_high` are about days from 35.5 ug/m3 on. `untested` says why a line has no number.

    The mean over regions is near the nominal share by construction, because the same regions calibrate each
    other. The findings are how the regions differ, and the coverage of high days.
    """
    lines: list[dict[str, object]] = []
    cells = labels.with_arm(rows)
    for split in dict.fromkeys(cells["split"].tolist()):
        own = cells[cells["split"] == split]
        regime = str(own["regime"].iloc[0])
        for part in ("wr", "test"):
            for arm in sums.arms(split, part):
                expected = own.loc[own["arm"] == arm, "fold"].nunique()
                errors = sums.held_out_errors(arm, split, part)
                first = {"arm": arm, "split": split, "part": part, "level": analysis.coverage}
                first["regime"] = labels.WR if part == "wr" else regime
                found = measure(errors, analysis.coverage)
                folds = {"folds": len(errors.folds), "folds_expected": expected}
                lines += [{**first, **line} for line in _lines(errors, found, 1 - analysis.alpha, folds)]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of `coverage` over all regions."""
    return table[table["region"] == ALL]


def calibration(
    sums: Predicted | None,
    arm: str,
    splits: Mapping[str, str],
    nearest_km: Mapping[str, np.ndarray],
    level: float,
    lowest_ugm3: float,
    monitors: Sequence[tuple[float, float]],
) -> Calibration:
    """Calibrate the intervals of an arm's model on the test errors of all its folds, split by split.

    `splits` has the regime of each split by its label. `nearest_km` has the distances of its test monitors to
    the training monitors (sites,), and NaN for other monitors. `monitors` are the places of the model's own
    training monitors.
    """
    radii, why = [], []
    for split, regime in splits.items():
        if sums is None or arm not in sums.arms(split):
            continue
        found = calibrate(sums.held_out_errors(arm, split, "test"), level)
        if isinstance(found, TooFew):
            why.append(f"{split}: {found.why}")
            continue
        km = nearest_km[split]
        reach = float(np.quantile(km[np.isfinite(km)], REACH))
        radii.append(Radius(split, regime, round(reach, 3), round(found[0], 6), found[1]))
    radii.sort(key=lambda one: one.reach_km)
    absent = "" if radii else "; ".join(why) or "the store has no predictions of its arm"
    return Calibration(level, lowest_ugm3, tuple(monitors), tuple(radii), absent)


def set_name(regime: str, split: str, part: str) -> str:
    """Return the name of an evaluation set, such as 'OoR, checkerboards-16' or 'WR of checkerboards-16'."""
    return f"{regime} of {split}" if part == "wr" else f"{regime}, {split}"


def region_name(lat: float, lon: float, degrees: float) -> str:
    """Return the name of a region from its centre, such as '24.5 to 32.5 °N, 125 to 117 °W'."""
    half = degrees / 2
    north = f"{_degrees(lat - half)} to {_degrees(lat + half)} °N"
    west, east = lon - half, lon + half
    if east <= 0:
        return f"{north}, {_degrees(-west)} to {_degrees(-east)} °W"
    return f"{north}, {_degrees(west)} to {_degrees(east)} °E"


def _degrees(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _lines(
    errors: HeldOutErrors, found: Measured | TooFew, level: float, folds: dict[str, int]
) -> list[dict[str, object]]:
    """Return the line over all regions, then that of every region."""
    if isinstance(found, TooFew):
        total = int(errors.counts()[:, :, 0].sum())
        regions = len(errors.regions)
        return [{"region": ALL, "n": total, "regions": regions, **folds, "untested": found.why}]
    names, places = [], []
    for region in errors.regions:
        places.append(errors.centre(region))
        names.append(region_name(*places[-1], errors.degrees))
    by_region = found.by_region
    worst = int(by_region.argmin())
    low, high = found.interval(level)
    lines: list[dict[str, object]] = [
        {
            "region": ALL,
            "n": int(found.n.sum()),
            "coverage": found.coverage,
            "low": low,
            "high": high,
            "width": float(found.width.sum() / found.n.sum()),
            "n_high": int(found.n_high.sum()),
            "coverage_high": found.coverage_high,
            "regions": len(names),
            "worst": float(by_region[worst]),
            "worst_region": names[worst],
            **folds,
            "untested": "",
        }
    ]
    for number, name in enumerate(names):
        n, n_high = int(found.n[number]), int(found.n_high[number])
        lines.append(
            {
                "region": name,
                "lat": places[number][0],
                "lon": places[number][1],
                "n": n,
                "coverage": float(by_region[number]),
                "width": float(found.width[number] / n),
                "n_high": n_high,
                "coverage_high": float(found.covered_high[number] / n_high) if n_high else math.nan,
                "untested": "",
            }
        )
    return lines


def _too_few(regions: int, level: float, degrees: float) -> str:
    """Return why there are no intervals of a level."""
    return (
        f"{counted(regions, 'region')} of {degrees:g} degrees, and {needed_regions(level)} are needed for "
        f"{level:.0%} intervals; lower analysis.block_degrees or analysis.coverage"
    )
