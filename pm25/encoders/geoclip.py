"""GeoCLIP's location encoder, computed in float64 from the weights of the `geoclip` wheel."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.encoders.base import Source, embed_distinct
from pm25.errors import InputError

if TYPE_CHECKING:
    import torch

# Equal Earth map projection, Savric, Patterson and Jenny (2018), doi 10.1080/13658816.2018.1504949.
A1, A2, A3, A4 = 1.340264, -0.081106, 0.000893, 0.003796


class GeoCLIP:
    """GeoCLIP's location encoder (Vivanco Cepeda, Nayak and Shah 2023, arXiv 2309.16020), 512 values.

    With p the Equal Earth projection of the place, scaled to about (-1, 1), and a Gaussian B per scale:

        e(p) = sum over 3 scales of MLP([cos(2 pi B p), sin(2 pi B p)])

    The MLP is 512 - 1024 - 1024 - 1024 - 512 with ReLU between its layers. B has a standard deviation of 1,
    16 and 256: features as wide as a continent, a state, a city. Weights come from the installed `geoclip`
    wheel. Its code is never imported, because it would import torchvision and transformers.
    """

    dim = 512
    trained_on_target = False

    def __init__(self, source: Source) -> None:
        import torch

        self.fingerprint = source.fingerprint
        state = torch.load(io.BytesIO(source.content), weights_only=True, map_location="cpu")
        self._state: dict[str, torch.Tensor] = {key: value.double() for key, value in state.items()}

    @classmethod
    def with_weights(cls, state: Mapping[str, NDArray[np.float64]]) -> GeoCLIP:
        """Build the encoder with other weights, by the names of its state; it has no fingerprint."""
        import torch

        encoder = cls.__new__(cls)
        encoder._state = {name: torch.from_numpy(weights) for name, weights in state.items()}
        return encoder

    @classmethod
    def source(cls) -> Source:
        """Read the installed weights. Raises InputError if `geoclip` is not installed."""
        return Source("geoclip", {}, cls.weights_file().read_bytes())

    @staticmethod
    def weights_file() -> Path:
        """Path of the weights in the installed wheel."""
        # For a top-level name find_spec only looks for the folder; it does not run the package.
        spec = importlib.util.find_spec("geoclip")
        for folder in (spec and spec.submodule_search_locations) or ():
            file = Path(folder) / "model" / "weights" / "location_encoder_weights.pth"
            if file.is_file():
                return file
        raise InputError("encoder geoclip", "", "its weights are not installed", "pip install geoclip")

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, 512)."""
        import torch

        def forward(places: NDArray[np.float64]) -> NDArray[np.float64]:
            with torch.inference_mode():
                vectors: NDArray[np.float64] = self._forward(torch.from_numpy(places)).numpy()
            return vectors

        return embed_distinct(lat, lon, self.dim, forward)

    def _forward(self, places: torch.Tensor) -> torch.Tensor:
        """Map places (n, 2) as (lat, lon) in degrees to embeddings (n, 512), both float64."""
        import torch
        from torch.nn.functional import linear

        projected = equal_earth(places) * (66.50336 / 180)  # GeoCLIP's own scale
        total = torch.zeros(len(places), self.dim, dtype=torch.float64)
        for scale in range(3):
            capsule = f"LocEnc{scale}.capsule"
            phase = 2 * math.pi * projected @ self._state[f"{capsule}.0.b"].T
            hidden = torch.cat([phase.cos(), phase.sin()], dim=1)
            for layer in (f"{capsule}.1", f"{capsule}.3", f"{capsule}.5"):
                hidden = linear(hidden, self._state[f"{layer}.weight"], self._state[f"{layer}.bias"]).relu()
            head = f"LocEnc{scale}.head.0"
            total += linear(hidden, self._state[f"{head}.weight"], self._state[f"{head}.bias"])
        return total


def equal_earth(places: torch.Tensor) -> torch.Tensor:
    """Project (lat, lon) in degrees to Equal Earth (x east, y north) on the unit sphere, both (n, 2)."""
    import torch

    lat, lon = torch.deg2rad(places).unbind(dim=1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(lat))
    y = A1 * theta + A2 * theta**3 + A3 * theta**7 + A4 * theta**9
    slope = A1 + 3 * A2 * theta**2 + 7 * A3 * theta**6 + 9 * A4 * theta**8  # dy / dtheta
    x = 2 / math.sqrt(3) * lon * torch.cos(theta) / slope
    return torch.stack([x, y], dim=1)
