"""Location encoders of TorchSpatial in float64: fixed features of a place, then a small network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.encoders.base import Source, embed_distinct, is_whole
from pm25.encoders.checkpoints import MAX_UNITS, Linear, Residual, Weights, block, plain, read, wrapped
from pm25.errors import InputError

Array = NDArray[np.float64]

PUBLISHED = "give a model of TorchSpatial as it was published, such as model_fmow_xyz_....pth.tar"

LAYER_NORM_EPS = 1e-5
"""Number added to the variance, PyTorch's default."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leakyrelu": lambda x: np.where(x < 0, 0.2 * x, x),
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "tanh": np.tanh,
}

NERF_FREQUENCIES = 16
"""Number of frequencies of kind NeRF; the published code ignores the setting."""


class TorchSpatial:
    """Encoders of TorchSpatial (Wu et al. 2024, arXiv 2406.15658), 256 values in most published models.

    `checkpoint` is a file as github.com/seai-lab/TorchSpatial writes it: `state_dict` and `params`, which
    names the kind:

    * `Space2Vec-grid` and `Space2Vec-theory` (Mai et al. 2020, arXiv 2003.00824);
    * `Sphere2Vec-sphereC`, `-sphereC+`, `-sphereM`, `-sphereM+` and `-dfs` (Mai et al. 2023, arXiv
      2306.17624);
    * `xyz`, `NeRF`, `wrap_ffn` and `wrap` (Mac Aodha et al. 2019, arXiv 1906.05272).

    The code has the MIT licence. The published models have CC BY-NC 4.0, so none is part of this package.
    The published code takes (lon, lat); everything here takes latitude first, in degrees.

    Compared with the published code on published models of fMoW and YFCC; the tests use random weights.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self._origin = origin = str(source.other)
        content = plain(source.content, origin, PUBLISHED)
        self._settings = block(content, "params", origin, PUBLISHED)
        state = block(content, "state_dict", origin, PUBLISHED)
        weights = Weights(state, origin, PUBLISHED)
        kind = self._settings.get("spa_enc_type")
        if kind == "wrap":
            self._require("loc_encode", "encode_cos_sin")
            self._require("use_date_feats", False)
            network = Residual(weights, inputs=4)
            self.dim, self._forward = network.dim, lambda places: network(wrapped(places))
            return
        if kind not in FEATURES:
            fix = f"give a model of {', '.join([*FEATURES, 'wrap'])}"
            raise InputError(origin, "params.spa_enc_type", f"{kind!r} is not supported", fix)
        features, frequencies = FEATURES[kind], self._frequencies(kind)
        inputs = features(np.zeros((1, 2)), frequencies).shape[1]
        layers = _Layers(weights, inputs, self._activation(), self._flag("skip_connection"))
        if layers.normalised != [self._flag("use_layn")] * (len(layers.normalised) - 1) + [False]:
            problem = f"{self._settings['use_layn']}, and the weights differ"
            raise InputError(origin, "params.use_layn", problem, PUBLISHED)
        self.dim, self._forward = layers.dim, lambda places: layers(features(places, frequencies))

    @staticmethod
    def source(checkpoint: str | Path) -> Source:
        """Read the checkpoint. Raises InputError if it cannot be read."""
        return Source("torchspatial", {}, read(checkpoint), other=str(checkpoint))

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim)."""
        return embed_distinct(lat, lon, self.dim, self._forward)

    def _require(self, key: str, value: Any) -> None:
        """Raise InputError for a setting that is not the one value that is supported."""
        found = self._settings.get(key)
        if found != value or type(found) is not type(value):
            raise InputError(self._origin, f"params.{key}", f"{found!r} is not supported", PUBLISHED)

    def _flag(self, key: str) -> bool:
        if not isinstance(value := self._settings.get(key), bool):
            raise InputError(self._origin, f"params.{key}", f"{value!r} is not a truth value", PUBLISHED)
        return value

    def _activation(self) -> Callable[[Array], Array]:
        if (name := self._settings.get("spa_f_act")) not in ACTIVATIONS:
            fix = f"give a model with one of {', '.join(ACTIVATIONS)}"
            raise InputError(self._origin, "params.spa_f_act", f"{name!r} is not supported", fix)
        return ACTIVATIONS[str(name)]

    def _frequencies(self, kind: str) -> Array:
        """Return the factors of the angles, which the published code computes from three settings.

        Two kinds use another progression than the others: it begins at 1, and `min_radius` has no effect.
        With `max_radius` 1, as in published models, all of its factors are 1.
        """
        if kind in ("xyz", "wrap_ffn"):
            return np.ones(0)
        if kind == "NeRF":
            return np.pi * np.exp2(np.arange(NERF_FREQUENCIES))
        self._require("freq_init", "geometric")
        count: Any = self._settings.get("frequency_num")
        if not is_whole(count, 2, MAX_UNITS):
            problem = f"{count!r} is not a whole number from 2"
            raise InputError(self._origin, "params.frequency_num", problem, PUBLISHED)
        bounds: list[Any] = [self._settings.get(key) for key in ("min_radius", "max_radius")]
        for key, bound in zip(("min_radius", "max_radius"), bounds, strict=True):
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < np.inf:
                raise InputError(self._origin, f"params.{key}", f"{bound!r} is not a length", PUBLISHED)
        least, most = map(float, bounds)
        steps = np.arange(count) / (count - 1)
        if kind in ("Sphere2Vec-sphereM+", "Sphere2Vec-dfs"):
            return most**-steps
        return 1 / (least * np.exp(steps * np.log(most / least)))


class _Layers:
    """Fully connected layers: linear, activation, plus the input where it has the same length, layer norm.

    The last layer has neither the input added nor a norm. Raises InputError for weights that are missing or
    do not fit together.
    """

    def __init__(
        self, weights: Weights, inputs: int, activation: Callable[[Array], Array], skip: bool
    ) -> None:
        self._activation, self._skip = activation, skip
        self._layers: list[tuple[Linear, tuple[Array, Array] | None]] = []
        self.dim = inputs
        while (name := f"spa_enc.ffn.layers.{len(self._layers)}") + ".linear.weight" in weights:
            linear = weights.linear(f"{name}.linear", self.dim)
            self.dim = linear.outputs
            norm = None
            if f"{name}.layernorm.weight" in weights:
                gain, shift = (
                    weights.take(f"{name}.layernorm.{part}", self.dim) for part in ("weight", "bias")
                )
                norm = gain, shift
            self._layers.append((linear, norm))
        if not self._layers:
            weights.linear("spa_enc.ffn.layers.0.linear", inputs)  # raises: it is missing

    @property
    def normalised(self) -> list[bool]:
        """True for each layer that has a layer norm."""
        return [norm is not None for _, norm in self._layers]

    def __call__(self, x: Array) -> Array:
        """Map (n, inputs) -> (n, dim)."""
        for i, (linear, norm) in enumerate(self._layers, 1):
            hidden = self._activation(linear(x))
            added = self._skip and linear.inputs == linear.outputs and i < len(self._layers)
            x = hidden + x if added else hidden
            if norm is not None:
                centred = x - x.mean(axis=1, keepdims=True)
                variance = np.square(centred).mean(axis=1, keepdims=True)
                x = centred / np.sqrt(variance + LAYER_NORM_EPS) * norm[0] + norm[1]
        return x


def _flat(*parts: Array) -> Array:
    """Interleave arrays (n, F): for each frequency one value of each part -> (n, F * parts)."""
    return np.stack(parts, axis=2).reshape(len(parts[0]), -1)


def _grid(places: Array, frequencies: Array) -> Array:
    """Space2Vec-grid: sine and cosine of every multiple of lon, then of lat, in degrees -> (n, 4 F)."""
    angles = [places[:, [axis]] * frequencies for axis in (1, 0)]
    return np.concatenate([_flat(np.sin(one), np.cos(one)) for one in angles], axis=1)


def _theory(places: Array, frequencies: Array) -> Array:
    """Space2Vec-theory: sine and cosine along three directions, 120 degrees apart -> (n, 6 F)."""
    directions = np.deg2rad([0, 120, 240])
    along = places[:, ::-1] @ np.stack([np.cos(directions), np.sin(directions)])
    angles = [along[:, [i]] * frequencies for i in range(3)]
    return _flat(*(wave(one) for one in angles for wave in (np.sin, np.cos)))


def _waves(places: Array, frequencies: Array) -> tuple[Array, Array, Array, Array]:
    """Return sin lat, cos lat, sin lon and cos lon of the multiples of the angles, each (n, F)."""
    north, east = (np.deg2rad(places[:, [axis]]) * frequencies for axis in (0, 1))
    return np.sin(north), np.cos(north), np.sin(east), np.cos(east)


def _sphere_c(places: Array, frequencies: Array) -> Array:
    """Sphere2Vec-sphereC -> (n, 3 F)."""
    sin_lat, cos_lat, sin_lon, cos_lon = _waves(places, frequencies)
    return _flat(sin_lat, cos_lat * cos_lon, cos_lat * sin_lon)


def _sphere_c_plus(places: Array, frequencies: Array) -> Array:
    """Sphere2Vec-sphereC+ -> (n, 6 F)."""
    waves = _waves(places, frequencies)
    _, cos_lat, sin_lon, cos_lon = waves
    return _flat(*waves, cos_lat * cos_lon, cos_lat * sin_lon)


def _mixed(places: Array, frequencies: Array) -> tuple[Array, Array, Array, Array]:
    """Return the products of a multiple of one angle with the other angle itself, each (n, F)."""
    _, cos_lat, sin_lon, cos_lon = _waves(places, frequencies)
    _, one_cos_lat, one_sin_lon, one_cos_lon = _waves(places, np.ones(1))
    return cos_lat * one_cos_lon, one_cos_lat * cos_lon, cos_lat * one_sin_lon, one_cos_lat * sin_lon


def _sphere_m(places: Array, frequencies: Array) -> Array:
    """Sphere2Vec-sphereM -> (n, 5 F)."""
    return _flat(_waves(places, frequencies)[0], *_mixed(places, frequencies))


def _sphere_m_plus(places: Array, frequencies: Array) -> Array:
    """Sphere2Vec-sphereM+ -> (n, 8 F)."""
    return _flat(*_waves(places, frequencies), *_mixed(places, frequencies))


def _dfs(places: Array, frequencies: Array) -> Array:
    """Sphere2Vec-dfs: products of all waves of lon with all of lat, then the waves -> (n, 4 F (F + 1))."""
    sin_lat, cos_lat, sin_lon, cos_lon = waves = _waves(places, frequencies)
    east, north = np.concatenate([sin_lon, cos_lon], axis=1), np.concatenate([sin_lat, cos_lat], axis=1)
    products = (east[:, :, None] * north[:, None, :]).reshape(len(places), -1)
    return np.concatenate([products, _flat(*waves)], axis=1)


def _xyz(places: Array, frequencies: Array) -> Array:
    """Position on the unit sphere -> (n, 3)."""
    sin_lat, cos_lat, sin_lon, cos_lon = _waves(places, np.ones(1))
    return np.concatenate([cos_lat * cos_lon, cos_lat * sin_lon, sin_lat], axis=1)


def _nerf(places: Array, frequencies: Array) -> Array:
    """NeRF: sines of the multiples of x, y and z, then cosines -> (n, 6 F)."""
    angles = (_xyz(places, frequencies)[:, :, None] * frequencies).reshape(len(places), -1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


FEATURES: dict[str, Callable[[Array, Array], Array]] = {
    "Space2Vec-grid": _grid,
    "Space2Vec-theory": _theory,
    "Sphere2Vec-sphereC": _sphere_c,
    "Sphere2Vec-sphereC+": _sphere_c_plus,
    "Sphere2Vec-sphereM": _sphere_m,
    "Sphere2Vec-sphereM+": _sphere_m_plus,
    "Sphere2Vec-dfs": _dfs,
    "xyz": _xyz,
    "NeRF": _nerf,
    "wrap_ffn": lambda places, frequencies: wrapped(places),
}
"""Features of places (n, 2) as (lat, lon) in degrees, with the factors (F,) of the angles, by kind."""
