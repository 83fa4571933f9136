"""Scaling of the inputs and of the target, fitted on the training samples."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scaler:
    """Affine scale of each channel of the inputs: (value - mean) / std."""

    mean: np.ndarray
    """Value that becomes 0: the mean, or the middle of the range (`fit_range`); (channels,) float64."""
    std: np.ndarray
    """Unit: the standard deviation, or half of the range (`fit_range`); (channels,) float64."""

    @classmethod
    def fit(cls, values: np.ndarray, weight: np.ndarray) -> "Scaler":
        """Fit on `values (n, channels)`, where row i counts `weight[i]` times and NaN is ignored.

        A constant channel gets the standard deviation 1. A channel without any value has mean NaN.
        """
        used = weight > 0
        values, weight = values[used].astype(np.float64), weight[used, None].astype(np.float64)
        weight = np.where(np.isfinite(values), weight, 0)
        values = np.nan_to_num(values)
        count = weight.sum(axis=0)
        with np.errstate(invalid="ignore"):
            mean = (weight * values).sum(axis=0) / count
            std = np.sqrt((weight * (values - mean) ** 2).sum(axis=0) / count)
        return cls(mean, np.where(std > 1e-6 * np.maximum(1, np.abs(mean)), std, 1.0))

    @classmethod
    def fit_range(cls, values: np.ndarray, weight: np.ndarray) -> "Scaler":
        """Fit a scale to -1 .. 1 on the rows of `values (n, channels)` with a positive weight.

        NaN is ignored. A constant channel becomes -1, as in scikit-learn's MinMaxScaler. A channel without
        any value has mean NaN.
        """
        used = values[weight > 0].astype(np.float64)
        missing = ~np.isfinite(used)
        low = np.where(missing, np.inf, used).min(axis=0, initial=np.inf)
        high = np.where(missing, -np.inf, used).max(axis=0, initial=-np.inf)
        half = np.where(high > low, (high - low) / 2, 0.5)
        return cls(np.where(np.isfinite(low), low + half, np.nan), half)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Scale `values (n, channels)` to float32; a missing value becomes 0, the mean of the scale."""
        scaled = values.astype(np.float32)
        scaled -= self.mean.astype(np.float32)
        scaled /= self.std.astype(np.float32)
        return np.nan_to_num(scaled, copy=False)


@dataclass(frozen=True)
class TargetScale:
    """Affine scale of the target: (t(y) - shift) / scale, with t the identity or sign(y) log(1 + |y|)."""

    shift: float
    scale: float
    log1p: bool = False

    @classmethod
    def fit_standard(cls, train: np.ndarray, log1p: bool) -> "TargetScale":
        """Fit mean 0 and standard deviation 1 on the training targets (ug/m3)."""
        values = _signed_log1p(train) if log1p else train
        return cls(float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) or 1.0, log1p)

    @classmethod
    def fit_maximum(cls, values: np.ndarray) -> "TargetScale":
        """Fit the published scale, division by the maximum of `values` (ug/m3)."""
        return cls(0.0, float(values.max()))

    def transform(self, pm25_ugm3: np.ndarray) -> np.ndarray:
        """Scale targets in ug/m3."""
        return ((_signed_log1p(pm25_ugm3) if self.log1p else pm25_ugm3) - self.shift) / self.scale

    def inverse_transform(self, scaled: np.ndarray) -> np.ndarray:
        """Return scaled targets or predictions to ug/m3."""
        values = scaled * self.scale + self.shift
        return np.sign(values) * np.expm1(np.abs(values)) if self.log1p else values


def windows_per_day(samples: np.ndarray, sites: int, days: int, window: int) -> np.ndarray:
    """Count, for each site-day, the windows of `samples` (flat indices) that contain it; (sites * days,).

    These are the weights with which the channel scaler is fitted.
    """
    ends = np.bincount(samples, minlength=sites * days).reshape(sites, days)
    total = np.pad(np.cumsum(ends, axis=1), ((0, 0), (1, 0)))
    day = np.arange(days)
    return (total[:, np.minimum(day + window, days)] - total[:, day]).reshape(-1)


def _signed_log1p(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))
