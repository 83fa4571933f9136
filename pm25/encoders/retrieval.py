"""RANGE's location encoder in float64: image features of similar and near places, and SatCLIP's vector."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25 import unpacking
from pm25.encoders.base import Source, checked_places, embed_distinct
from pm25.encoders.checkpoints import first_line, read
from pm25.encoders.satclip import LocationNetwork
from pm25.errors import InputError
from pm25.limits import MOST_FILE_BYTES, MOST_NPY_HEADER

MODELS = ("RANGE", "RANGE+")

SIMILAR = {"RANGE": 15.0, "RANGE+": 12.0}
"""Published temperatures of the similarity of SatCLIP's vectors, by model."""

NEAR = 40.0
"""Published temperature of the nearness on the sphere, of RANGE+."""

ROWS = 4096
"""Rows of the database that are weighted at a time."""

PUBLISHED = "give range_db_med.npz or range_db_large.npz as it was published"


class Range:
    """RANGE and RANGE+ (Dhakal et al. 2025, arXiv 2502.19781), 1280 values with the published files.

    `checkpoint` is a SatCLIP checkpoint, microsoft/SatCLIP-ViT16-L40 in the published model, and `database`
    an .npz file of the data set mvrl/RANGE-database on the Hugging Face hub. The package `rangegeo` has the
    MIT licence; github.com/mvrl/RANGE states none for the data set.

        s = SatCLIP(place) / |SatCLIP(place)|;  similar = softmax(t s . S) V;  near = softmax(40 x . X) V
        RANGE: [similar, s] with t = 15;  RANGE+: [beta similar + (1 - beta) near, s] with t = 12

    S, V and X are the database: SatCLIP's vectors of unit length, image features, and positions on the unit
    sphere. `rangegeo` itself is not imported, because it unpickles both files. The published code takes
    (lon, lat); everything here takes latitude first, in degrees.

    Compared with `rangegeo` 0.1.0 on files of the published format with random values, not on the published
    files.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        checkpoint, database, size = source.other
        self._model: str = source.numbers["model"]
        self._beta: float = source.numbers.get("beta", 1.0)
        self._network = LocationNetwork(source.content[:size], str(checkpoint))
        arrays = _arrays(source.content[size:], str(database))
        keys, places = (arrays[name].astype(np.float64) for name in ("satclip_embeddings", "locs"))
        self._features, rows = arrays["image_embeddings"], len(keys)
        for name, array, width in (
            ("satclip_embeddings", keys, self._network.dim),
            ("image_embeddings", self._features, None),
            ("locs", places, 2),
        ):
            if array.ndim != 2 or len(array) != rows or width not in (None, array.shape[1]) or not array.size:
                problem = f"shape is {array.shape}, not ({rows}, {width or 'any'})"
                raise InputError(str(database), name, problem, PUBLISHED)
            if not np.isfinite(array).all():
                raise InputError(str(database), name, "contains values that are not finite", PUBLISHED)
        lengths = np.linalg.norm(keys, axis=1, keepdims=True)
        if not lengths.all():
            raise InputError(str(database), "satclip_embeddings", "contains a vector of zeros", PUBLISHED)
        self._keys = keys / lengths
        self._points = _on_sphere(checked_places(places[:, 1], places[:, 0], f"{database} locs"))
        self.dim = self._features.shape[1] + self._network.dim

    @staticmethod
    def source(
        checkpoint: str | Path, database: str | Path, model: str = "RANGE+", beta: float | None = None
    ) -> Source:
        """Check the options and read the files. Raises InputError."""
        if model not in MODELS:
            fix = f"choose {' or '.join(MODELS)}"
            raise InputError("encoder range", "model", f"{model!r} is unknown", fix)
        if beta is not None and (model != "RANGE+" or isinstance(beta, bool) or not 0 <= beta <= 1):
            fix = "give RANGE+ a number from 0 to 1, and RANGE none"
            raise InputError("encoder range", "beta", f"{beta!r} is given for {model}", fix)
        numbers: dict[str, Any] = {"model": model}
        if model == "RANGE+":
            numbers["beta"] = 0.5 if beta is None else beta
        weights, vectors = read(checkpoint), read(database)
        return Source("range", numbers, weights + vectors, (str(checkpoint), str(database), len(weights)))

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim)."""
        return embed_distinct(lat, lon, self.dim, self._forward)

    def _forward(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Embed places (n, 2) -> (n, dim)."""
        own = self._network.embed(*places.T)
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        mean = self._weighted(own, self._keys, SIMILAR[self._model])
        if self._model == "RANGE+":
            near = self._weighted(_on_sphere(places), self._points, NEAR)
            mean = self._beta * mean + (1 - self._beta) * near
        return np.concatenate([mean, own], axis=1)

    def _weighted(
        self, queries: NDArray[np.float64], keys: NDArray[np.float64], temperature: float
    ) -> NDArray[np.float64]:
        """Average the image features with weights exp(temperature q . k), for unit vectors q and k.

        The exponent is at most 40, so that no maximum has to be subtracted.
        """
        total = np.zeros((len(queries), self._features.shape[1]))
        weight = np.zeros((len(queries), 1))
        for first in range(0, len(keys), ROWS):
            rows = slice(first, first + ROWS)
            factors = np.exp(temperature * (queries @ keys[rows].T))
            total += factors @ self._features[rows].astype(np.float64)
            weight += factors.sum(axis=1, keepdims=True)
        return total / weight


def _on_sphere(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (n, 3) on the unit sphere of places (n, 2) as (lat, lon) in degrees."""
    north, east = np.deg2rad(places).T
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)


def _arrays(database: bytes, origin: str) -> dict[str, NDArray[np.floating]]:
    """Read the arrays of the database; one that is pickled is refused, and so is a file that is too large."""
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(database)) as archive:
            for name in ("satclip_embeddings", "image_embeddings", "locs"):
                member = archive.getinfo(f"{name}.npy")
                opened = functools.partial(archive.open, member)
                content = unpacking.read(opened, member.compress_size, MOST_FILE_BYTES)
                array = np.load(io.BytesIO(content), allow_pickle=False, max_header_size=MOST_NPY_HEADER)
                if array.dtype.kind != "f":
                    raise InputError(origin, name, f"type is {array.dtype}, not float", PUBLISHED)
                found[name] = array
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, unpacking.TooLarge) as error:
        problem = f"cannot be read as .npz without pickled objects ({first_line(error)})"
        raise InputError(origin, "", problem, PUBLISHED) from error
    return found
