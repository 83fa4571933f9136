"""Batches of input windows, gathered from the scaled panel when they are needed.

A sample is a flat index `site * days + day`. Its window ends on that day. Windows are never stored, because
neighbouring windows share all but one of their days.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.scaling import Scaler, windows_per_day
from pm25.settings import Variant


class Inputs:
    """Scaled features, place channels and embeddings of a panel on one device.

    `fitted (n,)` holds the samples (flat indices) on which the scalers are fitted. Channels are fitted on
    all days of these samples' windows, place channels on the samples themselves. `embedding` has the shape
    (sites, d), or (sites, 12, d) if it changes with the month. `more` holds further channels by name, each
    (sites, days). `by_range` scales channels to the range -1 to 1 in place of standardising them.

    Raises InputError if a channel has no value in the windows of `fitted`.
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
        by_range: bool = False,
    ) -> None:
        sites, days = panel.target.shape
        self.days, self.device = days, device
        self.channels = (*panel.channels, *(more or {}))
        added = [channel[:, :, None] for channel in (more or {}).values()]
        features = np.concatenate([panel.features, *added], axis=2) if added else panel.features
        values = features.reshape(sites * days, -1)
        fit = Scaler.fit_range if by_range else Scaler.fit
        scaler = fit(values, windows_per_day(fitted, sites, days, window))
        for name, mean in zip(self.channels, scaler.mean, strict=True):
            if np.isnan(mean):
                problem, fix = "no value in any training window", "leave the channel out of data.channels"
                if name not in panel.channels:
                    problem += ", because no training monitor has a neighbour"
                    fix = "leave neighbours out, or lower neighbours.exclusion_km"
                raise InputError(panel.name, name, problem, fix)
        self.scaler = scaler
        self.place_scaler: Scaler | None = None
        self._features = torch.from_numpy(scaler.transform(values)).to(device)
        self._offsets = torch.arange(1 - window, 1, device=device)
        per_site = np.bincount(fitted // days, minlength=sites)
        place = place_channels(panel.lat, panel.lon, variant)
        self._place = None
        if place is not None:
            self.place_scaler = fit(place, per_site)
            self._place = torch.from_numpy(self.place_scaler.transform(place)).to(device)
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
        """Names that `permuted` accepts."""
        place = ["place"] if self._place is not None else []
        return [*self.channels, *place, *(["embedding"] if self._embedding is not None else [])]

    @contextmanager
    def permuted(self, what: str, source: np.ndarray, shift: int) -> Iterator[None]:
        """Give each site the values `what` of site `source[site]` inside the context.

        A channel is also shifted by `shift` days. Names are those of `permutable`.
        """
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
        """Gather the windows (B, T, width) and embeddings (B, d), or None, of the samples `flat (B,)`."""
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
    """A set of samples with their scaled targets. Targets of other samples cannot be reached from it."""

    def __init__(self, inputs: Inputs, flat: np.ndarray, target: np.ndarray) -> None:
        self._inputs = inputs
        self._flat = torch.from_numpy(flat).to(inputs.device)
        self._target = torch.from_numpy(target.astype(np.float32)).to(inputs.device)

    def __len__(self) -> int:
        return len(self._flat)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Return the windows (B, T, F), embeddings (B, D) or None, and targets (B,) of these rows."""
        rows = rows.to(self._inputs.device)
        return *self._inputs.batch(self._flat[rows]), self._target[rows]


def place_channels(lat: np.ndarray, lon: np.ndarray, variant: Variant) -> np.ndarray | None:
    """Return the unscaled place channels of a variant, or None if it has none.

    Variant latlon has (n, 2) degrees, and sincos (n, 4) sines and cosines. `lat` and `lon` are (n,), in
    degrees.
    """
    if variant == "latlon":
        return np.stack([lat, lon], axis=1)
    if variant == "sincos":
        lat, lon = np.radians(lat), np.radians(lon)
        return np.stack([np.sin(lat), np.cos(lat), np.sin(lon), np.cos(lon)], axis=1)
    return None
