"""Predictions of an arm on a grid: the mean of its models, their spread, and where both may be believed.

`predict_days` reads and predicts one day after another, so the memory that it needs does not depend on the
number of days.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pm25.applicability import Applicability, window_predictors
from pm25.errors import InputError
from pm25.fit import SCORING_BATCH
from pm25.grids.cells import MOST_BLOCK_DAYS, Block, Covariates, refuse_days
from pm25.predictor import Predictor
from pm25.tables.schema import CALENDAR, format_number

MOST_BLOCK = 64_000_000
"""Most values of covariates that are in memory at a time, 256 MB; windows of one day may have more."""

PART = 16 * SCORING_BATCH
"""Cells that are predicted together; a multiple of the batches of `Predictor.predict`."""

BEYOND = 0.25
"""Share of a channel's range in training by which covariates may leave it without a notice."""

NARROW = 0.02
"""Share of a channel's range in training below which the range of covariates is another unit's."""


@dataclass(frozen=True)
class Area:
    """Area of applicability of an arm's models, for input windows."""

    fitted: Applicability
    means: np.ndarray
    """Value of each channel that takes the place of a missing one, (channels,)."""
    with_place: bool
    """True if latitude and longitude are among the predictors."""
    weighted: bool
    """True if the predictors are weighted by their permutation importance."""

    def dissimilarity(self, windows: np.ndarray, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        """Compute the dissimilarity index of windows (n, days, channels) at places (n,) in degrees."""
        place = np.stack([lat, lon], axis=1) if self.with_place else None
        return self.fitted.dissimilarity(window_predictors(windows, missing=self.means, place=place))


@dataclass(frozen=True)
class PredictedDay:
    """Predictions of one day, with one value for each cell."""

    date: np.datetime64
    mean: np.ndarray
    """Mean of the models' predictions in ug/m3, float32, NaN for a cell without covariates."""
    spread: np.ndarray
    """Standard deviation of the models' predictions (n - 1) in ug/m3, float32; NaN for a single model."""
    dissimilarity: np.ndarray
    """Dissimilarity index, float32."""
    inside: np.ndarray
    """True for cells inside the area of applicability."""
    truth: np.ndarray | None
    """True PM2.5 in ug/m3, float32, where it is known."""
    gaps: np.ndarray
    """True for cells without covariates on an earlier day of their window, which are never inside."""

    @property
    def predicted(self) -> np.ndarray:
        """True for cells that have a prediction."""
        return np.isfinite(self.mean)


def predict_days(
    predictors: Sequence[Predictor],
    area: Area,
    covariates: Covariates,
    first: np.datetime64,
    last: np.datetime64,
) -> Iterator[PredictedDay]:
    """Predict the days from `first` to `last` with all models of an arm, one day after another.

    The covariates have the channels of the models, in their order. Raises InputError for days without the
    days of their windows, and for covariates that cannot be used.
    """
    window = predictors[0].cell.window
    refuse_days(covariates, first, last, window)
    if "site_id" in predictors[0].columns:
        problem = "the vectors of its encoder are found by site_id, and the cells of a grid have none"
        raise InputError(predictors[0].cell.label, "", problem, "take a table of vectors with lat and lon")
    lat, lon = covariates.lat, covariates.lon
    vectors = predictors[0].embed(lat, lon)  # the models of an arm have one encoder
    by_day = len(lat) * len(covariates.channels)
    step = min(MOST_BLOCK_DAYS, max(1, MOST_BLOCK // by_day - window + 1))
    for begin in np.arange(first, last + 1, step):
        end = min(begin + step - 1, last)
        block = covariates.read(begin - (window - 1), end)
        for at, day in enumerate(np.arange(begin, end + 1)):
            windows = block.features[:, at : at + window]
            truth = None if block.truth is None else block.truth[:, at + window - 1]
            yield _predict_day(predictors, area, covariates, vectors, windows, day, truth)


def _predict_day(
    predictors: Sequence[Predictor],
    area: Area,
    covariates: Covariates,
    vectors: np.ndarray | None,
    windows: np.ndarray,
    day: np.datetime64,
    truth: np.ndarray | None,
) -> PredictedDay:
    """Predict one day from the windows of all cells, (cells, days, channels)."""
    cells = len(windows)
    mean, spread, index = np.full((3, cells), np.nan, np.float32)
    month = int(day.astype("datetime64[M]").astype(int)) % 12 + 1
    for start in range(0, cells, PART):
        here = slice(start, start + PART)
        lat, lon, part = covariates.lat[here], covariates.lon[here], windows[here]
        months = np.full(len(part), month)
        own = None if vectors is None else vectors[here]
        each = np.stack([one.predict(part, lat, lon, month=months, vectors=own) for one in predictors])
        mean[here] = each.mean(axis=0, dtype=np.float64)
        if len(each) > 1:
            spread[here] = each.std(axis=0, ddof=1, dtype=np.float64)
        index[here] = area.dissimilarity(part, lat, lon)
    measured = [place for place, name in enumerate(covariates.channels) if name not in CALENDAR]
    missing = np.isnan(windows[:, :, measured]).all(axis=2) & bool(measured)  # (cells, days)
    for values in (mean, spread, index):
        values[missing[:, -1]] = np.nan
    # Training means in place of whole days make a window look like the training samples.
    gaps = missing.any(axis=1) & ~missing[:, -1]
    inside = (index <= area.fitted.threshold) & ~gaps
    if covariates.far is not None:
        inside &= ~covariates.far
    return PredictedDay(day, mean, spread, index, inside, truth, gaps)


class RangeNotices(Covariates):
    """Covariates that report channels whose range is not that of the training, each channel once.

    `training` has the lowest and the highest value of each channel of the monitors, and `notice` gets a line.
    """

    def __init__(
        self,
        covariates: Covariates,
        training: Mapping[str, tuple[float, float]],
        notice: Callable[[str], None],
    ) -> None:
        self.name, self.origin, self.channels = covariates.name, covariates.origin, covariates.channels
        self.lat, self.lon, self.days, self.far = (
            covariates.lat,
            covariates.lon,
            covariates.days,
            covariates.far,
        )
        self._source, self._training, self._notice = covariates, dict(training), notice

    def read(self, first: np.datetime64, last: np.datetime64) -> Block:
        """Read the days from `first` to `last`, and compare their ranges."""
        block = self._source.read(first, last)
        for place, name in enumerate(self.channels):
            values = block.features[:, :, place]
            if name not in self._training:
                continue
            if np.isnan(values).all():
                days = f"{first} to {last}"
                self._notice(f"{self.name}: {name}: no value on {days}, so its training mean is used")
                del self._training[name]
                continue
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            if _differs((low, high), self._training[name]):
                here, there = (
                    " to ".join(map(format_number, one)) for one in ((low, high), self._training[name])
                )
                self._notice(
                    f"{self.name}: {name}: {here} on the grid, but {there} at the monitors in training; "
                    "check the unit"
                )
                del self._training[name]
        return block


def _differs(grid: tuple[float, float], training: tuple[float, float]) -> bool:
    """Return True if a range leaves that of the training, or is that of a smaller unit."""
    width = training[1] - training[0]
    outside = grid[0] < training[0] - BEYOND * width or grid[1] > training[1] + BEYOND * width
    return outside or 0 < grid[1] - grid[0] < NARROW * width
