"""Control encoders: vectors without geography, and real vectors at the wrong places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.encoders.base import (
    Source,
    checked_places,
    checked_site_ids,
    embed_distinct,
    source,
    whole_number,
)
from pm25.encoders.table import Table
from pm25.errors import InputError

RANDOM_NORM = 0.25
"""RMS length of `random` vectors; GeoCLIP's at the 1,414 monitors of CONUS in 2021: RMS 0.253, mean 0.250."""


class Random:
    """Control without geography: a fixed normal vector of `dim` values for each place.

    Each value is N(0, RANDOM_NORM^2 / dim), so that vectors are about as long as GeoCLIP's for every `dim`.
    The generator is seeded with (seed, lat, lon), degrees rounded to 1e-6. The vector of a place therefore
    does not depend on the other places, and neighbouring places have unrelated vectors.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self.dim: int = source.numbers["dim"]
        self._seed: int = source.numbers["seed"]

    @staticmethod
    def source(dim: int = 512, seed: int = 0) -> Source:
        """Check the options. Raises InputError unless dim >= 1 and seed >= 0."""
        dim, seed = whole_number("random", "dim", dim, 1), whole_number("random", "seed", seed, 0)
        return Source("random", {"dim": dim, "seed": seed})

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim)."""

        def forward(places: NDArray[np.float64]) -> NDArray[np.float64]:
            shifted = places + np.array([90, 180])  # seeds cannot be negative
            keys = np.rint(shifted * 1e6).astype(np.int64).tolist()
            normal = [np.random.default_rng([self._seed, *key]).standard_normal(self.dim) for key in keys]
            return np.stack(normal) * (RANDOM_NORM / math.sqrt(self.dim))

        return embed_distinct(lat, lon, self.dim, forward)


class Shuffled:
    """Control with the vectors of encoder `of`, permuted over the places given.

    The permutation is one random cycle through the distinct places in sorted order. No place keeps its own
    vector unless it is alone, and the order of the rows does not matter. The result depends on the set of
    places. Options other than `of` and `seed` are passed to the encoder `of`.
    """

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self._seed: int = source.numbers["seed"]
        self._inner = source.other.encoder()
        self.dim = self._inner.dim
        self.trained_on_target = self._inner.trained_on_target

    @staticmethod
    def source(of: str = "geoclip", seed: int = 0, **options: Any) -> Source:
        """Check the options of both encoders. Raises InputError."""
        if of == "shuffled":
            raise InputError(
                "encoder shuffled", "of", "'shuffled' would shuffle twice", "name another encoder"
            )
        inner = source(of, **options)
        numbers = {"of": inner.fingerprint, "seed": whole_number("shuffled", "seed", seed, 0)}
        return Source("shuffled", numbers, other=inner)

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed all places of a study at once: (n,) in degrees -> float32 (n, dim) or (n, 12, dim)."""
        places = checked_places(lat, lon)
        if isinstance(self._inner, Table) and self._inner.by_site:  # two monitors may share a place
            site_id = checked_site_ids(site_id, len(places), "encoder shuffled")
            _, first, inverse = np.unique(site_id, return_index=True, return_inverse=True)
            north, east = places[first].T
            vectors = self._inner.embed(north, east, site_id[first])
        else:
            _, first, inverse = np.unique(places, axis=0, return_index=True, return_inverse=True)
            vectors = self._inner.embed(*places[first].T)
        cycle = np.random.default_rng(self._seed).permutation(len(first))
        taken = np.empty_like(cycle)
        taken[cycle] = np.roll(cycle, 1)
        return vectors[taken][inverse.reshape(-1)]
