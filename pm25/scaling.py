"""The scale on which the network sees PM2.5."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TargetScale:
    """(t(y) - shift) / scale, where t is the identity or sign(y) log(1 + |y|)."""

    shift: float
    scale: float
    log1p: bool = False

    @classmethod
    def standard(cls, train: np.ndarray, log1p: bool) -> "TargetScale":
        """Mean 0 and deviation 1 over the training targets (ug/m3)."""
        values = _log1p(train) if log1p else train
        return cls(float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) or 1.0, log1p)

    @classmethod
    def largest(cls, values: np.ndarray) -> "TargetScale":
        """The published scale: divided by the maximum of `values` (ug/m3)."""
        return cls(0.0, float(values.max()))

    def scaled(self, pm25_ugm3: np.ndarray) -> np.ndarray:
        return ((_log1p(pm25_ugm3) if self.log1p else pm25_ugm3) - self.shift) / self.scale

    def ugm3(self, scaled: np.ndarray) -> np.ndarray:
        values = scaled * self.scale + self.shift
        return np.sign(values) * np.expm1(np.abs(values)) if self.log1p else values


def _log1p(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))
