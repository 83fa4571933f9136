"""Negative control: a training on targets that were exchanged between sites, which must find nothing.

Each site keeps its place and its channels, and receives the complete target series of another site. Nothing
that a model may know then explains a sample better than three facts: the mean of the other sites on the
day, the mean of the site in training, and the site's mean in training on nearby days. The reference is
their best linear combination, fitted on training samples. A model that predicts better than this reference
has used the target of the sample itself.

The control tests the code from the split to the score. A channel that contains the target loses it by the
exchange, so the control cannot find it; `pm25.leak_probes` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from pm25 import trial
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.samples import cut_cell

MARGIN = 0.02
"""Largest skill against the reference that is not a finding."""

ERRORS = 3.0
"""Standard errors by which the skill must exceed the margin.

Of 500 simulated models as good as the reference, with heavy tails and a bias at each site, this finds 0.6 %.
"""

NEARBY_DAYS = 15
"""Largest distance in days of a training sample that counts as nearby."""


@dataclass(frozen=True)
class Control:
    """Result of a negative control on one evaluation set."""

    part: str
    """Name of the evaluation set: 'test', or 'wr' for the one within region."""
    r2: float
    """R2 of the model."""
    reference_r2: float
    """R2 of the reference, on the same samples."""
    skill: float
    """1 - MSE of the model / MSE of the reference; negative if the reference is better."""
    least: float
    """Lower bound of the skill: its logarithmic form less `ERRORS` standard errors."""

    @property
    def found(self) -> bool:
        """True if the model beats the reference by more than the margin and chance."""
        return self.least > MARGIN


def control(
    cell: Cell, panel: Panel, *, seed: int = 0, arguments: Mapping[str, Any] = MappingProxyType({})
) -> list[Control]:
    """Train a cell on exchanged targets, and compare it with the reference on each evaluation set.

    `seed` draws the exchange. `arguments` are further ones of `pm25.trial.run`. Raises `pm25.fit.Diverged`,
    and InputError if a set is empty after the exchange.
    """
    panel = exchanged(panel, np.random.default_rng(seed))
    result = trial.run(cell, panel, **arguments)
    _, indices = cut_cell(cell, panel)
    predicted = reference(panel, indices.train)
    columns = result.predictions
    site = np.searchsorted(panel.site_id, columns["site_id"])
    day = (columns["date"] - panel.dates[0]).astype(np.int64)
    found = []
    for part in dict.fromkeys(columns["part"].tolist()):
        rows = columns["part"] == part
        truth, prediction = (columns[name][rows].astype(np.float64) for name in ("truth", "prediction"))
        found.append(
            compare(part, truth, prediction, predicted[site[rows], day[rows]], site[rows], day[rows])
        )
    return found


def exchanged(panel: Panel, rng: np.random.Generator) -> Panel:
    """Give every observed site the complete target series of another observed site."""
    observed = rng.permutation(np.flatnonzero(np.isfinite(panel.target).any(axis=1)))
    target = panel.target.copy()
    target[observed] = panel.target[np.roll(observed, 1)]
    return replace(panel, target=target, name=f"{panel.name}, targets exchanged between sites")


def reference(panel: Panel, train: np.ndarray) -> np.ndarray:
    """Predict every site-day from the day and from the training samples (flat indices) of its site.

    The result is (sites, days) float64 in ug/m3. The mean of a day uses all other sites, in training or not,
    so no knowledge of the day can be better. A sample's own target is never used for its own prediction.
    """
    target = panel.target.astype(np.float64)
    known = np.isfinite(target)
    trained = np.zeros(target.shape, bool)
    trained.reshape(-1)[train] = True
    value = np.where(known, target, 0.0)
    overall = value[trained].mean()

    others = known.sum(axis=0) - known
    day_mean = np.where(others > 0, (value.sum(axis=0) - value) / np.maximum(others, 1), overall)
    left = np.where(trained, target - day_mean, 0.0)
    count = trained.sum(axis=1, keepdims=True) - trained
    site_mean = (left.sum(axis=1, keepdims=True) - left) / np.maximum(count, 1)
    near, near_count = (_around(array) - array for array in (left, trained.astype(np.float64)))
    near_mean = np.where(near_count > 0, near / np.maximum(near_count, 1), site_mean)

    facts = np.stack([np.ones(target.shape), day_mean, site_mean, near_mean], axis=-1)
    weights, *_ = np.linalg.lstsq(facts[trained], target[trained])
    return np.asarray(facts @ weights)


def compare(
    part: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray,
    site: np.ndarray,
    day: np.ndarray,
) -> Control:
    """Compare predictions (n,) with the reference's, for samples at these sites and days (n,) int.

    The standard error of log(MSE of the reference / MSE of the model) is a jackknife over sites, or over days
    if that is larger. The logarithm and the jackknife allow for few sites that carry most of the error.
    """
    squares, base = (truth - prediction) ** 2, (truth - reference) ** 2
    spread = float(np.square(truth - truth.mean()).sum())
    error = max(_jackknife_error(squares, base, group) for group in (site, day))
    ratio = float(squares.sum() / base.sum())
    return Control(
        part=part,
        r2=1 - float(squares.sum()) / spread,
        reference_r2=1 - float(base.sum()) / spread,
        skill=1 - ratio,
        least=1 - ratio * float(np.exp(min(ERRORS * error, 50.0))),
    )


def _jackknife_error(squares: np.ndarray, base: np.ndarray, group: np.ndarray) -> float:
    """Standard error of log(sum of base / sum of squares), leaving out one group at a time."""
    _, group = np.unique(group, return_inverse=True)
    a, b = np.bincount(group, squares), np.bincount(group, base)
    n = len(a)
    if n < 2:
        return np.inf
    tiny = np.finfo(float).tiny
    left = np.log(np.maximum(b.sum() - b, tiny)) - np.log(np.maximum(a.sum() - a, tiny))
    return float(np.sqrt((n - 1) / n * np.square(left - left.mean()).sum()))


def _around(values: np.ndarray) -> np.ndarray:
    """Sum over the days within `NEARBY_DAYS` of each day; (sites, days)."""
    days = values.shape[1]
    total = np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
    day = np.arange(days)
    return np.asarray(
        total[:, np.minimum(day + NEARBY_DAYS + 1, days)] - total[:, np.maximum(day - NEARBY_DAYS, 0)]
    )
