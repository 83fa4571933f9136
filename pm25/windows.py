"""What the network is fed: windows gathered from the scaled panel when they are needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.settings import Variant


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

    `fitted (n,)` are the flat indices of the samples that the scalers are fitted on: channels over every
    day of every one of their windows, place channels over the samples. `embedding` is (sites, d), or
    (sites, 12, d) where it changes with the month. `more` are further channels, (sites, days, m).
    """

    def __init__(
        self,
        panel: Panel,
        fitted: np.ndarray,
        window: int,
        variant: Variant,
        device: torch.device,
        *,
        embedding: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        sites, days = panel.target.shape
        self.days, self.device = days, device
        self.channels = (*panel.channels, *(more or {}))
        added = [channel[:, :, None] for channel in (more or {}).values()]
        features = np.concatenate([panel.features, *added], axis=2) if added else panel.features
        values = features.reshape(sites * days, -1)
        scaler = Scaler.fit(values, _days_in_windows(fitted, sites, days, window))
        empty = [name for name, mean in zip(self.channels, scaler.mean, strict=True) if np.isnan(mean)]
        if empty:
            fix = "leave it out of data.channels"
            if empty[0] not in panel.channels:
                fix = "training monitors have no neighbours; leave neighbours out, or let nearer ones count"
            raise InputError(f"{panel.name}: channel {empty[0]} has no value in any training window; {fix}")
        self.scaler = scaler
        self.place_scaler: Scaler | None = None
        self._features = torch.from_numpy(scaler.scale(values)).to(device)
        self._offsets = torch.arange(1 - window, 1, device=device)
        per_site = np.bincount(fitted // days, minlength=sites)
        place = place_channels(panel.lat, panel.lon, variant)
        self._place = None
        if place is not None:
            self.place_scaler = Scaler.fit(place, per_site)
            self._place = torch.from_numpy(self.place_scaler.scale(place)).to(device)
        self._embedding = self._month = None
        self.embedding_dim = 0
        if embedding is not None:
            self.embedding_dim = embedding.shape[-1]
            self._embedding = torch.from_numpy(np.array(embedding, np.float32)).to(device)
            if embedding.ndim == 3:
                month = panel.dates.astype("datetime64[M]").astype(int) % 12
                self._month = torch.from_numpy(month).to(device)
        self.width = len(self.channels) + (0 if self._place is None else self._place.shape[1])

    @property
    def permutable(self) -> list[str]:
        """Names that `permuted` takes."""
        place = ["place"] if self._place is not None else []
        return [*self.channels, *place, *(["embedding"] if self._embedding is not None else [])]

    @contextmanager
    def permuted(self, what: str, source: np.ndarray, shift: int) -> Iterator[None]:
        """While it lasts, each site has `what` of site `source[site]`; a channel also `shift` days late."""
        sites = torch.from_numpy(source).to(self.device)
        if what in ("place", "embedding"):
            name = f"_{what}"
            kept = getattr(self, name)
            setattr(self, name, kept[sites])
            try:
                yield
            finally:
                setattr(self, name, kept)
        else:
            at = self.channels.index(what)
            series = self._features[:, at].view(-1, self.days)
            kept = series.clone()
            series.copy_(kept[sites].roll(shift, dims=1))
            try:
                yield
            finally:
                series.copy_(kept)

    def batch(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Window (B, T, width) and embedding (B, d) or None of the samples `flat (B,)`."""
        rows = flat[:, None] + self._offsets
        window = self._features.index_select(0, rows.flatten()).view(*rows.shape, -1)
        site = flat // self.days
        if self._place is not None:
            place = self._place.index_select(0, site)[:, None].expand(-1, rows.shape[1], -1)
            window = torch.cat([window, place], dim=2)
        if self._embedding is None:
            return window, None
        if self._month is not None:
            return window, self._embedding[site, self._month[flat % self.days]]
        return window, self._embedding.index_select(0, site)


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


def place_channels(lat: np.ndarray, lon: np.ndarray, variant: Variant) -> np.ndarray | None:
    """(n, 2) degrees for latlon, (n, 4) sines and cosines for sincos, else None; unscaled.

    `lat` and `lon` are (n,), in degrees.
    """
    if variant == "latlon":
        return np.stack([lat, lon], axis=1)
    if variant == "sincos":
        lat, lon = np.radians(lat), np.radians(lon)
        return np.stack([np.sin(lat), np.cos(lat), np.sin(lon), np.cos(lon)], axis=1)
    return None
