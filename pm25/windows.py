"""Batches of input windows, gathered from the scaled panel when they are needed.

A sample is a flat index `site * days + day`. Its window ends on that day. Windows are never stored, because
neighbouring windows share all but one of their days.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.scaling import Scaler, windows_per_day
from pm25.settings import CellVariant


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
        variant: CellVariant,
        device: torch.device,
        *,
        embedding: np.ndarray | None = None,
        more: Mapping[str, np.ndarray] | None = None,
        by_range: bool = False,
    ) -> None:
        sites, days = panel.target.shape
        self.days, self.window, self.device = days, window, device
        self.channels = (*panel.channels, *(more or {}))
        self.shared = panel.features.reshape(sites * days, -1)
        """Unscaled channels of the panel, (sites * days, channels)."""
        self.own = [channel.reshape(sites * days, 1) for channel in (more or {}).values()]
        """Unscaled channels of `more`, each (sites * days, 1)."""
        values = self._values()
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
        self._offsets = torch.arange(1 - window, 1, device=device)
        per_site = np.bincount(fitted // days, minlength=sites)
        place = place_channels(panel.lat, panel.lon, variant)
        self.place: torch.Tensor | None = None
        """Scaled place channels, (sites, channels)."""
        if place is not None:
            self.place_scaler = fit(place, per_site)
            self.place = torch.from_numpy(self.place_scaler.transform(place)).to(device)
        self.month: torch.Tensor | None = None
        """Month of each day from 0, (days,), if the embedding changes with it."""
        self._vectors, self.embedding_dim = embedding, 0
        if embedding is not None:
            self.embedding_dim = embedding.shape[-1]
            if embedding.ndim == 3:
                month = panel.dates.astype("datetime64[M]").astype(int) % 12
                self.month = torch.from_numpy(month).to(device)
        self.width = len(self.channels) + (0 if self.place is None else self.place.shape[1])

    # Not made before they are used: members of a stack gather from one copy (`StackedInputs`).
    @cached_property
    def features(self) -> torch.Tensor:
        """Scaled channels, (sites * days, channels)."""
        with torch.inference_mode(False):  # the first use may be a prediction
            return torch.from_numpy(self.scaler.transform(self._values())).to(self.device)

    @cached_property
    def embedding(self) -> torch.Tensor | None:
        """Embeddings, (sites, d) or (sites, 12, d)."""
        if self._vectors is None:
            return None
        with torch.inference_mode(False):
            return torch.from_numpy(np.array(self._vectors, np.float32)).to(self.device)

    def _values(self) -> np.ndarray:
        """Concatenate the unscaled channels, (sites * days, channels)."""
        return np.concatenate([self.shared, *self.own], axis=1) if self.own else self.shared

    @property
    def permutable(self) -> list[str]:
        """Names that `permuted` accepts."""
        place = ["place"] if self.place is not None else []
        return [*self.channels, *place, *(["embedding"] if self.embedding is not None else [])]

    @contextmanager
    def permuted(self, what: str, source: np.ndarray, shift: int) -> Iterator[None]:
        """Give each site the values `what` of site `source[site]` inside the context.

        A channel is also shifted by `shift` days. Names are those of `permutable`.
        """
        sites = torch.from_numpy(source).to(self.device)
        if what in ("place", "embedding"):
            kept = getattr(self, what)
            setattr(self, what, kept[sites])
            try:
                yield
            finally:
                setattr(self, what, kept)
        else:
            at = self.channels.index(what)
            series = self.features[:, at].view(-1, self.days)
            kept = series.clone()
            series.copy_(kept[sites].roll(shift, dims=1))
            try:
                yield
            finally:
                series.copy_(kept)

    def batch(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gather the windows (B, T, width) and embeddings (B, d), or None, of the samples `flat (B,)`."""
        rows = flat[:, None] + self._offsets
        window = self.features.index_select(0, rows.flatten()).view(*rows.shape, -1)
        site = flat // self.days
        if self.place is not None:
            place = self.place.index_select(0, site)[:, None].expand(-1, rows.shape[1], -1)
            window = torch.cat([window, place], dim=2)
        if self.embedding is None:
            return window, None
        if self.month is not None:
            return window, self.embedding[site, self.month[flat % self.days]]
        return window, self.embedding.index_select(0, site)


class StackedInputs:
    """Inputs of several trainings on one panel, which share its channels and the embeddings.

    Slot `m` has the scalers, place channels and further channels of the training that `load` put there.
    Channels are scaled after they are gathered, by the operations of `Scaler.transform`, so the windows are
    bitwise equal to those of the training's own `Inputs`. `first` are the inputs of any of the trainings.
    """

    def __init__(self, first: Inputs, slots: int) -> None:
        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(slots, *shape, device=first.device)

        self._days, self.window = first.days, first.window
        self._offsets = torch.arange(1 - first.window, 1, device=first.device)
        self._shared = torch.tensor(first.shared, device=first.device)
        self._own = empty(len(first.shared), len(first.own)) if first.own else None
        self._mean, self._std = empty(len(first.channels)), empty(len(first.channels)) + 1
        self._place = None if first.place is None else empty(*first.place.shape)
        self._embedding, self._month = first.embedding, first.month

    def load(self, slot: int, inputs: Inputs) -> None:
        """Put the scales and channels of a training into a slot, in place."""
        self._mean[slot].copy_(torch.from_numpy(inputs.scaler.mean))
        self._std[slot].copy_(torch.from_numpy(inputs.scaler.std))
        if self._own is not None:
            self._own[slot].copy_(torch.from_numpy(np.concatenate(inputs.own, axis=1)))
        if self._place is not None and inputs.place is not None:
            self._place[slot].copy_(inputs.place)

    def batch(
        self, flat: torch.Tensor, slots: torch.Tensor | slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gather windows (M, B, T, width) and embeddings (M, B, d), or None, of the samples `flat (M, B)`.

        Row i of `flat` belongs to slot `slots[i]`; by default there is a row for each slot.
        """
        rows = flat[..., None] + self._offsets
        window = self._shared.index_select(0, rows.flatten()).view(*rows.shape, -1)
        if self._own is not None:
            days = rows.flatten(1)[..., None].expand(-1, -1, self._own.shape[2])
            window = torch.cat([window, self._own[slots].gather(1, days).view(*rows.shape, -1)], dim=3)
        mean, std = self._mean[slots], self._std[slots]
        window = ((window - mean[:, None, None]) / std[:, None, None]).nan_to_num()
        site = flat // self._days
        if self._place is not None:
            place = self._place[slots]
            place = place.gather(1, site[..., None].expand(-1, -1, place.shape[2]))
            window = torch.cat([window, place[:, :, None].expand(-1, -1, rows.shape[2], -1)], dim=3)
        if self._embedding is None:
            return window, None
        if self._month is not None:
            return window, self._embedding[site, self._month[flat % self._days]]
        return window, self._embedding.index_select(0, site.flatten()).view(*site.shape, -1)


class Windows:
    """A set of samples with their scaled targets. Targets of other samples cannot be reached from it."""

    def __init__(self, inputs: Inputs, flat: np.ndarray, target: np.ndarray) -> None:
        self._inputs = inputs
        self.flat = torch.from_numpy(flat).to(inputs.device)
        """Samples as flat indices, (n,)."""
        self.target = torch.from_numpy(target.astype(np.float32)).to(inputs.device)
        """Scaled targets, (n,) float32."""

    def __len__(self) -> int:
        return len(self.flat)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Return the windows (B, T, F), embeddings (B, D) or None, and targets (B,) of these rows.

        `rows (B,)` are on the device of the inputs.
        """
        return *self._inputs.batch(self.flat[rows]), self.target[rows]


def place_channels(lat: np.ndarray, lon: np.ndarray, variant: CellVariant) -> np.ndarray | None:
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
