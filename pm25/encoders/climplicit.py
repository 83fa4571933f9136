"""Climplicit's location encoder in float64: a sine network on a place and a month."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.encoders.base import Source, embed_distinct
from pm25.encoders.checkpoints import read, safe_tensors
from pm25.errors import InputError

W0_FIRST = 30.0
"""Frequency of the first sine layer; that of the others is 1. A checkpoint does not contain them."""

MONTHS = {"seasons": (3, 6, 9, 12), "each": tuple(range(1, 13))}
"""Months that are embedded, by the option `months`."""

PUBLISHED = "give model.safetensors of Climplicit as it was published"


class Climplicit:
    """Climplicit (Dollinger et al. 2025, arXiv 2504.05089), 256 values for a month.

    `checkpoint` is the file `model.safetensors` of the model Jobedo/climplicit on the Hugging Face hub.
    Neither github.com/ecovision-uzh/climplicit nor the page of the model states a licence.

    With `months="seasons"`, as published, a place has 1024 values: March, June, September and December. With
    `months="each"`, a place has 256 values for each of the twelve months, and a sample takes those of its
    own month.

    The input x is [lon / 180, lat / 90, sin(2 pi m / 12), cos(2 pi m / 12)] for month m.

        first layer:  g = W x + b;                    h = sin(30 sinh(2 g))
        next layers:  g = (W h + b + g before) / 2;   h = sin(g)
        last layer:   W h + b

    The published code takes (lon, lat); everything here takes latitude first, in degrees.

    Tested on files of the published format with random weights, not on the published weights.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self._months = np.array(MONTHS[source.numbers["months"]])
        self.lookup_keys = ("month",) if source.numbers["months"] == "each" else ()
        weights = safe_tensors(source.content, str(source.other), PUBLISHED)
        layers = "location_encoder.layers"
        self._layers = [weights.linear(f"{layers}.0", 4)]
        width = self._layers[0].outputs
        while (name := f"{layers}.{len(self._layers)}") + ".weight" in weights:
            self._layers.append(weights.linear(name, width, width))
        self._last = weights.linear("location_encoder.last_layer", width)
        self.dim = self._last.outputs * (1 if self.lookup_keys else len(self._months))

    @staticmethod
    def source(checkpoint: str | Path, months: str = "seasons") -> Source:
        """Check the options and read the checkpoint. Raises InputError."""
        if months not in MONTHS:
            fix = f"choose {' or '.join(MONTHS)}"
            raise InputError("encoder climplicit", "months", f"{months!r} is unknown", fix)
        return Source("climplicit", {"months": months}, read(checkpoint), other=str(checkpoint))

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim), or (n, 12, dim) with months `each`."""
        vectors = embed_distinct(lat, lon, len(self._months) * self._last.outputs, self._forward)
        return vectors.reshape(len(vectors), 12, self.dim) if self.lookup_keys else vectors

    def _forward(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Embed places (n, 2) -> (n, months * values), month by month."""
        turns = 2 * np.pi * self._months / 12
        n, months = len(places), len(turns)
        inputs = np.empty((n, months, 4))
        inputs[:, :, 0], inputs[:, :, 1] = places[:, [1]] / 180, places[:, [0]] / 90
        inputs[:, :, 2], inputs[:, :, 3] = np.sin(turns), np.cos(turns)
        before = self._layers[0](inputs.reshape(n * months, 4))
        hidden = np.sin(W0_FIRST * np.sinh(2 * before))
        for layer in self._layers[1:]:
            before = (layer(hidden) + before) / 2
            hidden = np.sin(before)
        return self._last(hidden).reshape(n, -1)
