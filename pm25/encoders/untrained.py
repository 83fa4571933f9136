"""Encoders with the architecture of GeoCLIP or SatCLIP and fresh weights, which no training has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.encoders.base import Source, embed_distinct, whole_number
from pm25.encoders.geoclip import GeoCLIP
from pm25.encoders.satclip import LocationNetwork, SatCLIP
from pm25.errors import InputError

SIGMAS = (1.0, 16.0, 256.0)
"""Standard deviations of GeoCLIP's random Fourier features, one for each scale."""

FEATURES = 256
"""Random Fourier features of each scale of GeoCLIP; each has a cosine and a sine."""

UNITS = 1024
"""Units of the hidden layers of GeoCLIP."""

Arrays = dict[str, NDArray[np.float64]]


class Untrained:
    """Architecture of the encoder `of` with weights that are drawn from `seed`, as before its training.

    GeoCLIP's frequencies are normal, with the standard deviations of its three scales. Its layers have
    PyTorch's default of a uniform distribution with bounds 1 / sqrt(n) for n inputs (weights and biases).
    SatCLIP's sine layers have the bounds 1 / n in the first layer, and sqrt(6 / n) in the others (Sitzmann et
    al. 2020, arXiv 2006.09661). Its sizes are those of the checkpoint, whose weights are not used.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        rng = np.random.default_rng(source.numbers["seed"])
        self._network: GeoCLIP | LocationNetwork
        if source.numbers["of"] == "geoclip":
            self._network = GeoCLIP.with_weights(geoclip_weights(rng))
        else:
            self._network = LocationNetwork(source.content, str(source.other)).redrawn(rng)
        self.dim = self._network.dim

    @staticmethod
    def source(
        of: str = "geoclip", seed: int = 0, checkpoint: str | Path | None = None, model: str | None = None
    ) -> Source:
        """Check the options; `checkpoint` and `model` are those of `satclip`. Raises InputError."""
        numbers = {"of": of, "seed": whole_number("untrained", "seed", seed, 0)}
        if of == "geoclip" and (checkpoint, model) != (None, None):
            fix = "leave checkpoint and model out"
            raise InputError(
                "encoder untrained", "checkpoint", "is given, and GeoCLIP's sizes are known", fix
            )
        if of == "geoclip":
            return Source("untrained", numbers)
        if of != "satclip":
            raise InputError("encoder untrained", "of", f"{of!r} is not accepted", "give geoclip or satclip")
        trained = SatCLIP.source(checkpoint, model)
        return Source("untrained", numbers, trained.content, other=trained.other)

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim)."""
        network = self._network
        if isinstance(network, GeoCLIP):
            return network.embed(lat, lon)
        return embed_distinct(lat, lon, self.dim, lambda places: network.embed(*places.T))


def geoclip_weights(rng: np.random.Generator) -> Arrays:
    """Draw the weights of GeoCLIP's location encoder, by the names of its state."""
    state: Arrays = {}
    for scale, sigma in enumerate(SIGMAS):
        capsule = f"LocEnc{scale}.capsule"
        state[f"{capsule}.0.b"] = rng.normal(0, sigma, (FEATURES, 2))
        widths = {f"{capsule}.1": 2 * FEATURES, f"{capsule}.3": UNITS, f"{capsule}.5": UNITS}
        for name, inputs in widths.items():
            state |= _linear(rng, name, inputs, UNITS)
        state |= _linear(rng, f"LocEnc{scale}.head.0", UNITS, GeoCLIP.dim)
    return state


def _linear(rng: np.random.Generator, name: str, inputs: int, outputs: int) -> Mapping[str, Any]:
    """Draw a layer with PyTorch's default bounds."""
    bound = 1 / math.sqrt(inputs)
    return {
        f"{name}.weight": rng.uniform(-bound, bound, (outputs, inputs)),
        f"{name}.bias": rng.uniform(-bound, bound, outputs),
    }
