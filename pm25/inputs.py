"""What the network is fed: windows gathered from the scaled panel when they are needed."""

from dataclasses import dataclass

import numpy as np
import torch

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.settings import ENCODERS, Variant


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation, of training samples only."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, weight: np.ndarray) -> "Scaler":
        """Of `values (n, channels)`, each row counted `weight (n,)` times, NaN left out.

        A constant channel keeps a deviation of 1. A channel without any value has mean NaN.
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

    def scale(self, values: np.ndarray) -> np.ndarray:
        """float32; a missing value becomes 0, the training mean."""
        scaled = values.astype(np.float32)
        scaled -= self.mean.astype(np.float32)
        scaled /= self.std.astype(np.float32)
        return np.nan_to_num(scaled, copy=False)


class Inputs:
    """The scaled panel on one device.

    `train (n,)` are the flat indices of the samples that the scalers are fitted on: channels over every
    day of every training window, place channels and the target over the training samples.
    `embedding (sites, d)` is needed by the encoder variants and refused by the others.
    """

    def __init__(
        self,
        panel: Panel,
        train: np.ndarray,
        window: int,
        variant: Variant,
        embedding: np.ndarray | None,
        device: torch.device,
    ) -> None:
        if (variant in ENCODERS) != (embedding is not None):
            raise ValueError(f"variant {variant} with{'' if embedding is not None else 'out'} an embedding")
        sites, days, channels = panel.features.shape
        self.days, self.device = days, device
        values = panel.features.reshape(sites * days, channels)
        scaler = Scaler.fit(values, _days_in_windows(train, sites, days, window))
        empty = [name for name, mean in zip(panel.channels, scaler.mean, strict=True) if np.isnan(mean)]
        if empty:
            raise InputError(
                f"{panel.name}: channel {empty[0]} has no value in any training window; "
                "leave it out of data.channels"
            )
        self._features = torch.from_numpy(scaler.scale(values)).to(device)
        self._offsets = torch.arange(1 - window, 1, device=device)
        per_site = np.bincount(train // days, minlength=sites)
        place = _place_channels(panel, variant)
        self._place = None
        if place is not None:
            self._place = torch.from_numpy(Scaler.fit(place, per_site).scale(place)).to(device)
        self._embedding = None
        if embedding is not None:
            self._embedding = torch.from_numpy(np.array(embedding, np.float32)).to(device)
        self.channels = channels + (0 if self._place is None else self._place.shape[1])
        self.embedding_dim = 0 if self._embedding is None else self._embedding.shape[1]

    def batch(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Window (B, T, channels) and embedding (B, d) or None of the samples `flat (B,)`."""
        rows = flat[:, None] + self._offsets
        window = self._features.index_select(0, rows.flatten()).view(*rows.shape, -1)
        site = flat // self.days
        if self._place is not None:
            place = self._place.index_select(0, site)[:, None].expand(-1, rows.shape[1], -1)
            window = torch.cat([window, place], dim=2)
        return window, None if self._embedding is None else self._embedding.index_select(0, site)


class Windows:
    """Some samples with their standardised targets, and no way to any other sample's target."""

    def __init__(self, inputs: Inputs, flat: np.ndarray, target: np.ndarray) -> None:
        self._inputs = inputs
        self._flat = torch.from_numpy(flat).to(inputs.device)
        self._target = torch.from_numpy(target.astype(np.float32)).to(inputs.device)

    def __len__(self) -> int:
        return len(self._flat)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Window (B, T, F), embedding (B, D) or None, target (B,)."""
        rows = rows.to(self._inputs.device)
        return *self._inputs.batch(self._flat[rows]), self._target[rows]


def _days_in_windows(train: np.ndarray, sites: int, days: int, window: int) -> np.ndarray:
    """For each site-day (flat) the number of training windows that hold it."""
    ends = np.bincount(train, minlength=sites * days).reshape(sites, days)
    total = np.pad(np.cumsum(ends, axis=1), ((0, 0), (1, 0)))
    day = np.arange(days)
    return (total[:, np.minimum(day + window, days)] - total[:, day]).reshape(-1)


def _place_channels(panel: Panel, variant: Variant) -> np.ndarray | None:
    """(sites, 2) degrees for latlon, (sites, 4) sines and cosines for sincos, else None."""
    if variant == "latlon":
        return np.stack([panel.lat, panel.lon], axis=1)
    if variant == "sincos":
        lat, lon = np.radians(panel.lat), np.radians(panel.lon)
        return np.stack([np.sin(lat), np.cos(lat), np.sin(lon), np.cos(lon)], axis=1)
    return None
