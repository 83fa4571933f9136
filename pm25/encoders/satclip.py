"""SatCLIP's location encoder in float64: spherical harmonics of a place, then a sine network.

Klemmer, Rolf, Robinson, Mackey and Russwurm (2023), arXiv 2311.17179. The harmonics and the sine network are
those of Russwurm et al. (2024), arXiv 2310.06743. The published code takes (lon, lat); everything here takes
latitude first, in degrees.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.encoders.base import Source, embed_distinct, is_whole
from pm25.encoders.checkpoints import block, first_line, plain, read
from pm25.errors import InputError

if TYPE_CHECKING:
    import torch

KINDS = ("analytic", "closed-form")
"""Published definitions of the spherical harmonics."""

MAX_DEGREES = 100
"""Largest number of degrees accepted from a checkpoint; the published ones have 10 or 40."""

MAX_UNITS, MAX_LAYERS = 1 << 16, 1 << 8
"""Largest layer width and number of hidden layers accepted from a checkpoint."""

W0_FIRST, W0 = 30.0, 1.0
"""Frequencies of the first sine layer and of the others; a checkpoint does not contain them."""

MODELS = tuple(
    f"microsoft/SatCLIP-{tower}-L{L}" for tower in ("ResNet18", "ResNet50", "ViT16") for L in (10, 40)
)
"""Published models on the Hugging Face hub."""

UNCHANGED = "give a SatCLIP checkpoint as it was published"
"""Fix for a file that is not a SatCLIP checkpoint."""


class SatCLIP:
    """SatCLIP's location encoder (Klemmer et al. 2023, arXiv 2311.17179), 256 values in the published models.

    `checkpoint` is a file in the published format, at a path or a URI; `model` is one of `MODELS` on the
    Hugging Face hub.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self._network = LocationNetwork(source.content, str(source.other))
        self.dim = self._network.dim

    @staticmethod
    def source(checkpoint: str | Path | None = None, model: str | None = None) -> Source:
        """Read the checkpoint. Raises InputError if it cannot be read or downloaded."""
        content = checkpoint_bytes(checkpoint, model)
        return Source("satclip", {}, content, other=checkpoint if model is None else model)

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim)."""
        return embed_distinct(lat, lon, self.dim, lambda places: self._network.embed(*places.T))


def harmonics(lat: ArrayLike, lon: ArrayLike, L: int, kind: str = "analytic") -> NDArray[np.float64]:
    """Real spherical harmonics of degrees 0..L-1 at lat (n,) and lon (n,) in degrees -> float64 (n, L*L).

    Column `l*l + l + m` contains degree l and order `m = -l..l`; `phi = lon + 180`, `theta = lat + 90`.
    Its factor in phi is `cos(m phi)` for m > 0 and `sin(|m| phi)` for m < 0.

    Two kinds are published. The kind 'closed-form' is orthonormal and has the Condon-Shortley phase (-1)^m.
    The kind 'analytic' has no phase, and its m = 0 terms are pi times too large. The published generator has
    `sqrt((2l + 1) / 4 * pi)` by mistake, in place of `sqrt((2l + 1) / (4 pi))`. The pretrained weights were
    trained on those values, so they are kept.

    The normalised associated Legendre functions come from the recurrence in l at fixed m. It needs no
    factorials and loses no digits (Holmes and Featherstone 2002, doi 10.1007/s00190-002-0216-2, eq. 11).
    The published polynomials lose some: they agree to 1e-12 at L = 10, to about 1e-5 over CONUS at L = 40.

    Raises InputError for an unknown kind.
    """
    if kind not in KINDS:
        raise InputError(
            "spherical harmonics", "kind", f"{kind!r} is unknown", f"choose {' or '.join(KINDS)}"
        )
    north, phi = np.deg2rad(np.asarray(lat, np.float64)), np.deg2rad(np.asarray(lon, np.float64) + 180)
    cos_theta, sin_theta = -np.sin(north)[:, None], np.cos(north)[:, None]  # theta = lat + 90
    turns = phi[:, None] * np.arange(1, L)
    cosines, sines = math.sqrt(2) * np.cos(turns), math.sqrt(2) * np.sin(turns)
    phase = -1.0 if kind == "closed-form" else 1.0
    zonal = math.pi if kind == "analytic" else 1.0

    values = np.empty((len(phi), L * L))
    legendre = np.full((len(phi), 1), math.sqrt(1 / (4 * math.pi)))  # (n, l + 1): orders 0..l of degree l
    before = np.empty((len(phi), 0))  # the same for degree l - 1
    for degree in range(L):
        if degree:
            m = np.arange(degree)
            rise = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            grown = rise * cos_theta * legendre
            m = m[:-1]  # degree l - 2 has one order fewer
            grown[:, :-1] -= (
                rise[:-1] * np.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1)) * before
            )
            corner = phase * math.sqrt(1 + 1 / (2 * degree)) * sin_theta * legendre[:, -1:]
            before, legendre = legendre, np.concatenate([grown, corner], axis=1)
        centre = degree * degree + degree
        values[:, centre] = zonal * legendre[:, 0]
        values[:, centre + 1 : centre + degree + 1] = legendre[:, 1:] * cosines[:, :degree]
        values[:, centre - degree : centre] = (legendre[:, 1:] * sines[:, :degree])[:, ::-1]
    return values


def checkpoint_bytes(checkpoint: str | Path | None, model: str | None) -> bytes:
    """Read a checkpoint: a file at a path or a URI, or one of `MODELS` from the hub or its cache.

    Raises InputError unless exactly one of the arguments is given and the file can be read.
    """
    if (checkpoint is None) == (model is None):
        problem = "neither is given" if model is None else "both are given"
        fix = "give one of checkpoint=FILE and model=HUB_NAME"
        raise InputError("encoder satclip", "checkpoint, model", problem, fix)
    path = checkpoint if checkpoint is not None else _from_hub(str(model))
    return read(path)


def _from_hub(model: str) -> Path:
    """Path of a published checkpoint in the hub's cache; it is downloaded if it is not there."""
    if model not in MODELS:
        problem, known = f"unknown model {model!r}", ", ".join(MODELS)
        raise InputError("encoder satclip", "model", problem, f"choose one of {known}")
    fix = "download the file elsewhere and pass checkpoint=FILE"
    try:
        import huggingface_hub
    except ImportError as error:
        problem = f"{model} needs the package huggingface_hub, which is not installed"
        raise InputError("encoder satclip", "model", problem, fix) from error
    file = model.split("/")[1].lower() + ".ckpt"
    try:
        # The cache comes first: no network for a cached file, and the same file for every cell of a study.
        return Path(huggingface_hub.hf_hub_download(model, file, local_files_only=True))
    except Exception:  # whatever is wrong with the cache, the hub may still have the file
        pass
    huggingface_hub.logging.set_verbosity_error()  # it logs each of its retries; the last error is raised
    try:
        return Path(huggingface_hub.hf_hub_download(model, file))
    except Exception as error:  # errors of the hub, httpx, requests and the disk
        problem = f"cannot download {file} of {model} from the Hugging Face hub ({first_line(error)})"
        raise InputError("encoder satclip", "model", problem, fix) from error


class LocationNetwork:
    """The location network of a SatCLIP checkpoint.

        h0 = harmonics;  h1 = sin(30 (W h0 + b));  h = sin(W h + b) for further layers;  last: W h + b

    `checkpoint` is the content of a file in the published format. It is read as plain tensors and values: a
    file with pickled code is refused, and none of that code runs. Raises InputError, which names `origin`,
    for any file that is not such a checkpoint.
    """

    def __init__(self, checkpoint: bytes, origin: str) -> None:
        state, settings = _open(checkpoint, origin)
        for key, known, default in (
            ("le_type", ("sphericalharmonics",), "sphericalharmonics"),
            ("pe_type", ("siren",), "siren"),
            ("harmonics_calculation", KINDS, None),
        ):
            if (value := settings.get(key, default)) not in known:
                problem, fix = f"{value!r} is not supported", f"give a model with {' or '.join(known)}"
                raise InputError(origin, f"hyper_parameters.{key}", problem, fix)
        self.kind = str(settings["harmonics_calculation"])
        self.L = _size(settings, "legendre_polys", MAX_DEGREES, origin)
        self.dim = _size(settings, "embed_dim", MAX_UNITS, origin)
        capacity = _size(settings, "capacity", MAX_UNITS, origin)
        depth = _size(settings, "num_hidden_layers", MAX_LAYERS, origin)
        names = [*(f"layers.{i}" for i in range(depth)), "last_layer"]
        widths = [self.L**2, *[capacity] * depth, self.dim]
        # The same weights are repeated under model.nnet.*, because the published module registers them twice.
        extra = f"model.location.nnet.layers.{depth}.weight"
        if extra in state:
            problem = f"not expected, because hyper_parameters.num_hidden_layers is {depth}"
            raise InputError(origin, extra, problem, UNCHANGED)
        self._layers = [
            (
                _weights(state, f"model.location.nnet.{name}.weight", (wide, narrow), origin),
                _weights(state, f"model.location.nnet.{name}.bias", (wide,), origin),
            )
            for name, (narrow, wide) in zip(names, pairwise(widths), strict=True)
        ]

    def redrawn(self, rng: np.random.Generator) -> LocationNetwork:
        """Return a network of the same sizes with fresh weights (Sitzmann et al. 2020, arXiv 2006.09661).

        Weights and biases are uniform. Their bound is 1 / n in the first layer of n inputs, and sqrt(6 / n)
        in the others, whose frequency is 1.
        """
        fresh = copy.copy(self)
        bounds = [1 / self.L**2, *(math.sqrt(6 / weight.shape[1]) for weight, _ in self._layers[1:])]
        fresh._layers = [
            (rng.uniform(-bound, bound, weight.shape), rng.uniform(-bound, bound, bias.shape))
            for (weight, bias), bound in zip(self._layers, bounds, strict=True)
        ]
        return fresh

    def embed(self, lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float64]:
        """Embed places (n,) in degrees -> float64 (n, dim)."""
        hidden = harmonics(lat, lon, self.L, self.kind)
        for i, (weight, bias) in enumerate(self._layers[:-1]):
            hidden = np.sin((W0 if i else W0_FIRST) * (hidden @ weight.T + bias))
        weight, bias = self._layers[-1]
        return hidden @ weight.T + bias


def _open(checkpoint: bytes, origin: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read `state_dict` and `hyper_parameters` of a checkpoint without running any code in it."""
    content = plain(checkpoint, origin, UNCHANGED)
    state, settings = (block(content, key, origin, UNCHANGED) for key in ("state_dict", "hyper_parameters"))
    return state, settings


def _size(settings: dict[str, Any], key: str, most: int, origin: str) -> int:
    """Read one of the network's sizes, a whole number from 1 to `most`."""
    value: Any = settings.get(key)
    if not is_whole(value, 1, most):
        problem = f"{value!r} is not a whole number in 1..{most}"
        raise InputError(origin, f"hyper_parameters.{key}", problem, UNCHANGED)
    return int(value)


def _weights(state: dict[str, Any], key: str, shape: tuple[int, ...], origin: str) -> NDArray[np.float64]:
    """Read one weight or bias of the network."""
    import torch

    value: torch.Tensor | None = state.get(key)
    if not isinstance(value, torch.Tensor):
        raise InputError(origin, key, "missing", UNCHANGED)
    if tuple(value.shape) != shape:
        problem = f"shape is {tuple(value.shape)}, but hyper_parameters ask for {shape}"
        raise InputError(origin, key, problem, UNCHANGED)
    weights = value.detach().double().numpy()
    if not np.isfinite(weights).all():
        raise InputError(origin, key, "contains values that are not finite", UNCHANGED)
    return weights
