"""SINR's location encoder in float64: a residual network on the sines and cosines of a place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.encoders.base import Source, embed_distinct
from pm25.encoders.checkpoints import Residual, Weights, block, plain, read, wrapped
from pm25.errors import InputError

PUBLISHED = "give a checkpoint of SINR with input_enc sin_cos, as it was published"


class SINR:
    """SINR (Cole et al. 2023, arXiv 2306.02564), 256 values in the published models.

    `checkpoint` is a file as github.com/elijahcole/sinr writes it (code under the MIT licence): `state_dict`
    and `params`. The embedding is the last hidden layer, before the species. The published code takes
    (lon, lat); everything here takes latitude first, in degrees. Models with environmental inputs
    (`input_enc: env` or `sin_cos_env`) are refused, because they need a raster beside the checkpoint.

    Tested on files of the published format with random weights, not on the published weights.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        origin = str(source.other)
        content = plain(source.content, origin, PUBLISHED)
        settings = block(content, "params", origin, PUBLISHED)
        for key, known in (("model", "ResidualFCNet"), ("input_enc", "sin_cos")):
            if settings.get(key) != known:
                problem = f"{settings.get(key)!r} is not supported"
                raise InputError(origin, f"params.{key}", problem, PUBLISHED)
        state = block(content, "state_dict", origin, PUBLISHED)
        self._network = Residual(Weights(state, origin, PUBLISHED), inputs=4)
        for key, found in (("depth", self._network.depth), ("num_filts", self._network.dim)):
            if settings.get(key) != found:
                problem = f"{settings.get(key)!r}, but the weights have {found}"
                raise InputError(origin, f"params.{key}", problem, PUBLISHED)
        self.dim = self._network.dim

    @staticmethod
    def source(checkpoint: str | Path) -> Source:
        """Read the checkpoint. Raises InputError if it cannot be read."""
        return Source("sinr", {}, read(checkpoint), other=str(checkpoint))

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim)."""
        return embed_distinct(lat, lon, self.dim, lambda places: self._network(wrapped(places)))
