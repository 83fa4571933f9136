"""Scores of predictions against the truth, in the target's unit."""

from typing import Literal, NamedTuple

import numpy as np


class Metric(NamedTuple):
    """A score of predictions: how it is named, which direction is better, and how it is printed."""

    name: str
    unit: str
    """Empty for a share."""
    better: Literal["lower", "higher", "nearer zero"]
    digits: int
    """Decimals in tables."""

    @property
    def title(self) -> str:
        """Name and unit, such as 'RMSE (µg/m³)'."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def relative_rope(self) -> bool:
        """Whether `analysis.rope` is a share of the other arm's value; without a unit it is absolute."""
        return bool(self.unit)


METRICS: dict[str, Metric] = {
    "rmse": Metric("RMSE", "µg/m³", "lower", 2),
    "r2": Metric("R²", "", "higher", 3),
    "mae": Metric("MAE", "µg/m³", "lower", 2),
    "mbe": Metric("MBE", "µg/m³", "nearer zero", 2),
    "tail_rmse": Metric("RMSE of the tail", "µg/m³", "lower", 1),
    "tail_recall": Metric("recall", "", "higher", 3),
    "tail_precision": Metric("precision", "", "higher", 3),
}
"""Every score that tables and figures show, by the name of its column."""

SCORES = ("rmse", "r2", "mae", "mbe")
"""Metrics of every evaluation set, as `scores` returns them."""
TAIL_SCORES = ("tail_rmse", "tail_recall", "tail_precision")

EXCEEDANCE_UGM3 = 35.5
"""Where the AQI of a 24-hour mean becomes "unhealthy for sensitive groups" (100 ends at 35.4): EPA's rule of
2012 (78 FR 3086, 40 CFR 58 appendix G), kept by that of 2024 (89 FR 16202), which moved other breakpoints."""

MAPE_FROM_UGM3 = 1.0
"""Below, a percentage is noise: in clean air monitors read about zero, and under it."""

SITE_SAMPLES = 20
"""The fewest that give a site an R2 of its own."""

KM_EDGES: tuple[int, ...] = (0, 25, 50, 100, 250)


def scores(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """RMSE, MAE and MBE (mean of prediction - truth) in ug/m3, and R2 = 1 - SSE / SST.

    `truth` and `prediction` are (n,), n >= 1. R2 is NaN where the truth has no variance.
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
    """Where the errors lie: in the tail, in time or in space, and by distance from training.

    `truth`, `prediction` (ug/m3, finite) and `site` (any labels; integers are fastest) are (n,), n >= 1.
    `nearest_km (n,)` is each sample's distance to the nearest training site; a NaN is in no bin.
    What is undefined is absent, never NaN; counts are always there.

    - `n_tail`: samples with truth >= 35.5, the exceedances. Over them `tail_rmse` and `tail_mbe` (mean of
      prediction - truth), and `tail_recall`, the share also predicted >= 35.5 (probability of detection).
      `tail_precision`: the share observed >= 35.5 of those predicted so (1 - false alarm ratio; Wilks,
      Statistical Methods in the Atmospheric Sciences, 8.2).
    - `site_r2_median`: median of R2 = 1 - SSE / SST by site, over sites with >= 20 samples.
    - `temporal_r2`: R2 after each site's means are taken from its truth and its prediction: days told apart.
    - `spatial_r2`: R2 of the site means, each site once: sites told apart. From 2 sites on.
    - `mape`: 100 mean(|prediction - truth| / truth) over the `n_mape` samples with truth >= 1 ug/m3.
    - `rmse_km_0_25`, `rmse_km_25_50`, `rmse_km_50_100`, `rmse_km_100_250`, `rmse_km_250_`: RMSE by
      `nearest_km`, the lower edge included.

    An R2 is undefined where the truth does not vary: a deviation below 1e-6 ug/m3 is rounding.
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

    whole = truth >= MAPE_FROM_UGM3
    found["n_mape"] = float(whole.sum())
    if whole.any():
        found["mape"] = 100 * float(np.mean(np.abs(error[whole]) / truth[whole]))

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
    """Whether a sum of squares over `n` is more than rounding."""
    return np.asarray(sst > n * 1e-12)
