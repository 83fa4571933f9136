"""Frozen location encoders: a place in, a fixed vector out.

    load("geoclip").embed(lat, lon)  ->  float32 array (n, 512)

Latitude comes first, in degrees, whatever order a model was trained with. Vectors are handed out as the
model gives them: they are NOT of unit length (GeoCLIP over CONUS: 0.19 to 0.41), so scale them downstream.

Everything is computed on the CPU in float64 and rounded to float32 once: GeoCLIP's fastest Fourier features
reach 700 turns over CONUS, so float32 phases, as in its own code, move a value (0.013 RMS) by up to 1.5e-5;
and the vector of a place must depend neither on the machine nor on the places beside it in a batch.

Nothing here imports torch before a vector is asked for: planning a study needs fingerprints only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.errors import InputError

if TYPE_CHECKING:
    import torch

CODE_VERSION = 1
"""Raise it whenever a change in this file moves an embedding; it is part of every fingerprint."""

CHUNK = 1024
"""Places per matrix product: 8 MB of activations."""

# Equal Earth map projection, Savric, Patterson and Jenny (2018), doi 10.1080/13658816.2018.1504949.
A1, A2, A3, A4 = 1.340264, -0.081106, 0.000893, 0.003796


class Encoder(Protocol):
    """What `load` returns."""

    dim: int
    fingerprint: str

    def embed(self, lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float32]:
        """Embed places: lat (n,) and lon (n,) in degrees -> float32 (n, dim), in the order given.

        InputError for a coordinate that is missing or outside the globe.
        """


def load(name: str, **options: Any) -> Encoder:
    """Load the frozen encoder `name`; InputError for an unknown name or option, or missing weights."""
    weights = _weights_file(name, options).read_bytes()
    # The digest is of the very bytes that are loaded, even if the file is replaced meanwhile.
    return _ENCODERS[name](weights, _digest(name, weights))


def fingerprint(name: str, **options: Any) -> str:
    """Return what `load(name, **options).fingerprint` would be, from the weights file alone (no torch)."""
    return _digest(name, _weights_file(name, options).read_bytes())


def _digest(name: str, weights: bytes) -> str:
    return hashlib.sha256(f"{name} {CODE_VERSION}\n".encode() + weights).hexdigest()


def _weights_file(name: str, options: dict[str, Any]) -> Path:
    if name not in _ENCODERS:
        raise InputError(f"encoder: unknown name {name!r}; known: {', '.join(sorted(_ENCODERS))}")
    if options:
        raise InputError(f"encoder {name}: unknown option {', '.join(sorted(options))}; it takes none")
    return _ENCODERS[name].weights_file()


class GeoCLIP:
    """GeoCLIP's location encoder (Vivanco Cepeda, Nayak and Shah 2023, arXiv 2309.16020), 512 values.

    With p the Equal Earth projection of the place, scaled to about (-1, 1), and a Gaussian B per scale:

        e(p) = sum over 3 scales of MLP([cos(2 pi B p), sin(2 pi B p)])

    The MLP is 512 - 1024 - 1024 - 1024 - 512 with ReLU between its layers. B has a standard deviation of 1,
    16 and 256: features as wide as a continent, a state, a city. Weights come from the installed `geoclip`
    wheel; its code is never imported, because that would pull in torchvision and transformers.
    """

    dim = 512

    def __init__(self, weights: bytes, fingerprint: str) -> None:
        import torch

        self.fingerprint = fingerprint
        state = torch.load(io.BytesIO(weights), weights_only=True, map_location="cpu")
        self._state: dict[str, torch.Tensor] = {key: value.double() for key, value in state.items()}

    @staticmethod
    def weights_file() -> Path:
        # For a top-level name find_spec only looks for the folder; it does not run the package.
        spec = importlib.util.find_spec("geoclip")
        for folder in (spec and spec.submodule_search_locations) or ():
            file = Path(folder) / "model" / "weights" / "location_encoder_weights.pth"
            if file.is_file():
                return file
        raise InputError("encoder geoclip: its weights are not installed; mend: pip install geoclip")

    def embed(self, lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float32]:
        import torch

        # A table of samples repeats its places every day: embed each place once.
        places, inverse = np.unique(_places(lat, lon), axis=0, return_inverse=True)
        vectors = np.empty((len(places), self.dim), np.float32)
        with torch.inference_mode():
            for first in range(0, len(places), CHUNK):
                chunk = torch.from_numpy(places[first : first + CHUNK])
                vectors[first : first + CHUNK] = self._forward(chunk).numpy()
        return vectors[inverse.reshape(-1)]

    def _forward(self, places: torch.Tensor) -> torch.Tensor:
        """Map places (n, 2) as (lat, lon) in degrees to embeddings (n, 512), both float64."""
        import torch
        from torch.nn.functional import linear

        projected = _equal_earth(places) * (66.50336 / 180)  # GeoCLIP's own scale
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


def _equal_earth(places: torch.Tensor) -> torch.Tensor:
    """Project (lat, lon) in degrees to Equal Earth (x east, y north) on the unit sphere, both (n, 2)."""
    import torch

    lat, lon = torch.deg2rad(places).unbind(dim=1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(lat))
    y = A1 * theta + A2 * theta**3 + A3 * theta**7 + A4 * theta**9
    slope = A1 + 3 * A2 * theta**2 + 7 * A3 * theta**6 + 9 * A4 * theta**8  # dy / dtheta
    x = 2 / math.sqrt(3) * lon * torch.cos(theta) / slope
    return torch.stack([x, y], dim=1)


def _places(lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float64]:
    """Check coordinates in degrees and stack them to (n, 2) as (lat, lon)."""
    north, east = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    if north.ndim != 1 or north.shape != east.shape:
        raise InputError(f"lat {north.shape} and lon {east.shape}: pass two 1-D arrays of the same length")
    for name, values, limit in (("lat", north, 90), ("lon", east, 180)):
        outside = ~(np.abs(values) <= limit)  # NaN is outside too
        if outside.any():
            row = int(outside.argmax())
            hint = "degrees are needed"
            if name == "lat" and abs(north[row]) <= 180 and abs(east[row]) <= 90:
                hint = "are lat and lon swapped? latitude comes first"
            elif name == "lon" and 180 < east[row] <= 360:
                hint = "subtract 360 from longitudes above 180"
            raise InputError(f"{name} {values[row]:g} at position {row} is not in -{limit}..{limit}; {hint}")
    return np.stack([north, east], axis=1)


_ENCODERS = {"geoclip": GeoCLIP}
