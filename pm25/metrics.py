"""Scores of predictions against the truth.

To add a metric:

1. compute it in `scores` (every evaluation set has it) or in `detailed` (it may be undefined);
2. describe it in `METRICS`, so that tables and figures can show it, and list it in `SCORES` or `TAIL_SCORES`;
3. compute it by hand in `tests/pm25/test_metrics.py`, and in `test_detailed_is_the_brute_force`.

Results that are already stored do not have the new metric until their cells are trained again.
"""

from typing import Literal, NamedTuple

import numpy as np


class Metric(NamedTuple):
    """A score of predictions, with its name, its better direction and its format in tables."""

    name: str
    unit: str
    """Unit, empty for a number without unit."""
    better: Literal["lower", "higher", "nearer zero"]
    digits: int
    """Decimal places in tables."""
    meaning: str
    """Meaning of the score, in words."""

    @property
    def title(self) -> str:
        """Name and unit, such as 'RMSE (µg/m³)'."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def relative_rope(self) -> bool:
        """True if `analysis.rope` is a share of the other arm's value; without a unit it is absolute."""
        return bool(self.unit)


METRICS: dict[str, Metric] = {
    "rmse": Metric("RMSE", "µg/m³", "lower", 2, "the typical error (root mean squared error)"),
    "r2": Metric("R²", "", "higher", 3, "the share of the variance that is predicted"),
    "mae": Metric("MAE", "µg/m³", "lower", 2, "the mean absolute error"),
    "mbe": Metric("MBE", "µg/m³", "nearer zero", 2, "the mean error, predicted minus observed"),
    "site_rmse": Metric("RMSE by monitor", "µg/m³", "lower", 2, "the mean over monitors of their RMSE"),
    "tail_rmse": Metric("RMSE of the tail", "µg/m³", "lower", 1, "the RMSE of the samples with high PM2.5"),
    "tail_recall": Metric("recall", "", "higher", 3, "the share of high samples that are predicted so high"),
    "tail_precision": Metric("precision", "", "higher", 3, "the share of predictions so high that are right"),
}
"""Scores that tables and figures show, by the name of their column.

`site_rmse` is the mean over monitors of each monitor's RMSE. It is computed from stored predictions
(`sweeps.analysis.inference.with_site_rmse`), so results of every age have it.
"""

SCORES = ("rmse", "r2", "mae", "mbe")
"""Metrics of every evaluation set, as `scores` returns them."""

TAIL_SCORES = ("tail_rmse", "tail_recall", "tail_precision")
"""Metrics of high concentrations, which `detailed` returns where they are defined."""

EXCEEDANCE_UGM3 = 35.5
"""Lower limit of the AQI's "unhealthy for sensitive groups" for a 24-hour mean, in ug/m3.

AQI 100 ends at 35.4 by EPA's rule of 2012 (78 FR 3086, 40 CFR 58 appendix G). The rule of 2024 (89 FR 16202)
kept this limit and moved others.
"""

MAPE_FROM_UGM3 = 1.0
"""Smallest truth (ug/m3) in the percentage error. In clean air monitors measure values around zero."""

SITE_SAMPLES = 20
"""Fewest samples with which a site gets an R2, and an RMSE of its own in `site_rmse`."""

KM_EDGES: tuple[int, ...] = (0, 25, 50, 100, 250)
"""Lower edges of the bins of distance to the nearest training site, in km."""


def scores(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Compute RMSE, MAE and MBE (mean of prediction - truth) in ug/m3, and R2 = 1 - SSE / SST.

    `truth` and `prediction` are (n,), n >= 1. R2 is NaN if the truth has no variance.
    """
    truth, prediction = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    error = prediction - truth
    total = float(np.sum((truth - truth.mean()) ** 2))
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": 1 - float(np.sum(error**2)) / total if total > 0 else float("nan"),
        "mae": float(np.mean(np.abs(error))),
        "mbe": float(np.mean(error)),
    }


def detailed(
    truth: np.ndarray, prediction: np.ndarray, site: np.ndarray, nearest_km: np.ndarray | None = None
) -> dict[str, float]:
    """Compute scores of high concentrations, of time and space, and by distance to training sites.

    `truth`, `prediction` (ug/m3, finite) and `site` (any labels; integers are fastest) are (n,), n >= 1.
    `nearest_km (n,)` is each sample's distance to the nearest training site; NaN is in no bin. An undefined
    score is absent, never NaN. Counts are always present.

    - `n_tail`: number of exceedances, samples with truth >= 35.5.
    - `tail_rmse`, `tail_mbe`: RMSE and mean of prediction - truth of the exceedances.
    - `tail_recall`: share of the exceedances that are predicted >= 35.5 (probability of detection).
    - `tail_precision`: share of the predictions >= 35.5 that are exceedances (1 - false alarm ratio; Wilks,
      Statistical Methods in the Atmospheric Sciences, 8.2).
    - `site_r2_median`: median over sites of R2 = 1 - SSE / SST, for sites with >= 20 samples.
    - `temporal_r2`: R2 after subtracting each site's means from its truth and its prediction.
    - `spatial_r2`: R2 of the site means, for at least 2 sites.
    - `mape`: 100 mean(|prediction - truth| / truth) of the `n_mape` samples with truth >= 1 ug/m3.
    - `rmse_km_0_25`, `rmse_km_25_50`, `rmse_km_50_100`, `rmse_km_100_250`, `rmse_km_250_`: RMSE in bins of
      `nearest_km`, including the lower edge.

    An R2 is undefined if the truth is constant up to rounding (standard deviation below 1e-6 ug/m3).
    """
    truth, prediction = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    error = prediction - truth
    found: dict[str, float] = {}

    tail, predicted = truth >= EXCEEDANCE_UGM3, prediction >= EXCEEDANCE_UGM3
    found["n_tail"] = float(tail.sum())
    if tail.any():
        found["tail_rmse"] = float(np.sqrt(np.mean(error[tail] ** 2)))
        found["tail_mbe"] = float(np.mean(error[tail]))
        found["tail_recall"] = float(np.mean(predicted[tail]))
    if predicted.any():
        found["tail_precision"] = float(np.mean(tail[predicted]))

    _, code = np.unique(site, return_inverse=True)
    n = np.bincount(code)
    mean_truth, mean_error = np.bincount(code, truth) / n, np.bincount(code, error) / n
    anomaly = truth - mean_truth[code]
    sst = np.bincount(code, anomaly**2)
    own = (n >= SITE_SAMPLES) & _varies(sst, n)
    if own.any():
        found["site_r2_median"] = float(np.median(1 - np.bincount(code, error**2)[own] / sst[own]))
    if _varies(sst.sum(), n.sum()):
        found["temporal_r2"] = 1 - float(np.sum((error - mean_error[code]) ** 2) / sst.sum())
    between = float(np.sum((mean_truth - mean_truth.mean()) ** 2))
    if _varies(between, len(n)):
        found["spatial_r2"] = 1 - float(np.sum(mean_error**2)) / between

    large = truth >= MAPE_FROM_UGM3
    found["n_mape"] = float(large.sum())
    if large.any():
        found["mape"] = 100 * float(np.mean(np.abs(error[large]) / truth[large]))

    if nearest_km is not None:
        nearest_km = np.asarray(nearest_km, np.float64)
        for low, high in zip(KM_EDGES, (*KM_EDGES[1:], None), strict=True):
            near = nearest_km >= low
            if high is not None:
                near &= nearest_km < high
            if near.any():
                found[f"rmse_km_{low}_{high or ''}"] = float(np.sqrt(np.mean(error[near] ** 2)))
    return found


def _varies(sst: np.ndarray | float, n: np.ndarray | int) -> np.ndarray:
    """Return True where a sum of squares over `n` values is larger than rounding errors."""
    return np.asarray(sst > n * 1e-12)
