"""SatCLIP's location network in float64: spherical harmonics of a place, then a sine network.

Klemmer, Rolf, Robinson, Mackey and Russwurm (2023), arXiv 2311.17179; the harmonics and the sine network are
those of Russwurm et al. (2024), arXiv 2310.06743. The published code takes (lon, lat); everything here takes
latitude first, in degrees.
"""

from __future__ import annotations

import io
import math
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25 import uri
from pm25.errors import InputError

if TYPE_CHECKING:
    import torch

KINDS = ("analytic", "closed-form")
MAX_DEGREES = 100
"""The recurrence is stable far beyond; a checkpoint that asks for more is not one of these."""

W0_FIRST, W0 = 30.0, 1.0
"""Frequency of the first sine layer and of the others; the checkpoint does not hold them."""

MODELS = tuple(
    f"microsoft/SatCLIP-{tower}-L{L}" for tower in ("ResNet18", "ResNet50", "ViT16") for L in (10, 40)
)


def harmonics(lat: ArrayLike, lon: ArrayLike, L: int, kind: str = "analytic") -> NDArray[np.float64]:
    """Real spherical harmonics of degrees 0..L-1 at lat (n,) and lon (n,) in degrees -> float64 (n, L*L).

    Column l*l + l + m holds degree l and order m = -l..l of phi = lon + 180 and theta = lat + 90: cos(m phi)
    for m > 0, sin(|m| phi) for m < 0. Of the two published kinds, 'closed-form' is orthonormal and has the
    Condon-Shortley phase (-1)^m. 'analytic' has no phase, and its m = 0 terms are pi times too large: in the
    published generator `sqrt((2l + 1) / 4 * pi)` stands for sqrt((2l + 1) / (4 pi)). The pretrained weights
    were trained on those values, so they are kept.

    The normalised associated Legendre functions come from the recurrence in l at fixed m (Holmes and
    Featherstone 2002, doi 10.1007/s00190-002-0216-2, eq. 11), which forms no factorial and loses no digits.
    The published polynomials do lose some: they agree to 1e-12 at L = 10, to about 1e-5 over CONUS at L = 40.
    """
    if kind not in KINDS:
        raise InputError(f"spherical harmonics {kind!r} are not known; known: {', '.join(KINDS)}")
    north, phi = np.deg2rad(np.asarray(lat, np.float64)), np.deg2rad(np.asarray(lon, np.float64) + 180)
    cos_theta, sin_theta = -np.sin(north)[:, None], np.cos(north)[:, None]  # theta = lat + 90
    turns = phi[:, None] * np.arange(1, L)
    cosines, sines = math.sqrt(2) * np.cos(turns), math.sqrt(2) * np.sin(turns)
    phase = -1.0 if kind == "closed-form" else 1.0
    zonal = math.pi if kind == "analytic" else 1.0

    values = np.empty((len(phi), L * L))
    legendre = np.full((len(phi), 1), math.sqrt(1 / (4 * math.pi)))  # (n, l + 1): orders 0..l of degree l
    before = np.empty((len(phi), 0))  # the same of degree l - 1
    for degree in range(L):
        if degree:
            m = np.arange(degree)
            rise = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
            grown = rise * cos_theta * legendre
            m = m[:-1]  # degree l - 2 has one order less
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
    """Read a checkpoint: a file, at a path or an address, or one of MODELS from the hub or its cache."""
    if (checkpoint is None) == (model is None):
        raise InputError("encoder satclip: give one of checkpoint= (a local file) and model= (a hub name)")
    path = checkpoint if checkpoint is not None else _from_hub(str(model))
    try:
        return uri.read(path)
    except OSError as error:
        raise InputError(f"encoder satclip: cannot read checkpoint {path}: {error.strerror}") from error


def _from_hub(model: str) -> Path:
    if model not in MODELS:
        raise InputError(f"encoder satclip: unknown model {model!r}; known: {', '.join(MODELS)}")
    fix = "fix: download it elsewhere and pass checkpoint="
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"encoder satclip: model={model} needs huggingface_hub; {fix}") from error
    file = model.split("/")[1].lower() + ".ckpt"
    try:
        # The cache first: no network for a file at hand, and the same file for every trial of a study.
        return Path(huggingface_hub.hf_hub_download(model, file, local_files_only=True))
    except Exception:  # whatever ails the cache, the hub may still have the file
        pass
    try:
        return Path(huggingface_hub.hf_hub_download(model, file))
    except Exception as error:  # the hub's own, httpx's, requests' and the disk's: one line for each
        raise InputError(
            f"encoder satclip: cannot get {file} of {model} from the hub: {_line(error)}; {fix}"
        ) from error


def _line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {textwrap.shorten(text, 160, placeholder=' ...')}".rstrip(": ")


class LocationNetwork:
    """The location half of a SatCLIP checkpoint: `embed(lat (n,), lon (n,)) -> (n, dim)`, all float64.

        h0 = harmonics;  h1 = sin(30 (W h0 + b));  h = sin(W h + b) for further layers;  last: W h + b

    `checkpoint` is the content of a file in the published format. It is read as plain tensors and values: a
    file that holds pickled code is refused and nothing in it runs. InputError, naming `origin`, for any file
    that is not such a checkpoint.
    """

    def __init__(self, checkpoint: bytes, origin: str) -> None:
        state, settings = _open(checkpoint, origin)
        for key, wanted in (("le_type", "sphericalharmonics"), ("pe_type", "siren")):
            if settings.get(key, wanted) != wanted:
                raise InputError(f"{origin}: {key} is {settings[key]!r}; only {wanted!r} is supported")
        kind = settings.get("harmonics_calculation")
        if kind not in KINDS:
            raise InputError(f"{origin}: harmonics_calculation is {kind!r}; known: {', '.join(KINDS)}")
        self.kind = str(kind)
        self.L = _whole(settings, "legendre_polys", MAX_DEGREES, origin)
        self.dim = _whole(settings, "embed_dim", 1 << 16, origin)
        capacity = _whole(settings, "capacity", 1 << 16, origin)
        depth = _whole(settings, "num_hidden_layers", 1 << 8, origin)
        names = [*(f"layers.{i}" for i in range(depth)), "last_layer"]
        widths = [self.L**2, *[capacity] * depth, self.dim]
        # The same weights stand again under model.nnet.*: the published module registers them twice.
        extra = f"model.location.nnet.layers.{depth}.weight"
        if extra in state:
            raise InputError(f"{origin}: {extra} is there, but num_hidden_layers is {depth}")
        self._layers = [
            (
                _weights(state, f"model.location.nnet.{name}.weight", (wide, narrow), origin),
                _weights(state, f"model.location.nnet.{name}.bias", (wide,), origin),
            )
            for name, (narrow, wide) in zip(names, pairwise(widths), strict=True)
        ]

    def embed(self, lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float64]:
        hidden = harmonics(lat, lon, self.L, self.kind)
        for i, (weight, bias) in enumerate(self._layers[:-1]):
            hidden = np.sin((W0 if i else W0_FIRST) * (hidden @ weight.T + bias))
        weight, bias = self._layers[-1]
        return hidden @ weight.T + bias


def _open(checkpoint: bytes, origin: str) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    try:
        content = torch.load(io.BytesIO(checkpoint), weights_only=True, map_location="cpu")
    except Exception as error:  # pickle's, zip's and torch's own: whatever it says, the file is no checkpoint
        raise InputError(
            f"{origin}: not a checkpoint of plain tensors (truncated, another format, or with pickled code,"
            f" which is not run): {_line(error)}"
        ) from error
    parts = []
    for key in ("state_dict", "hyper_parameters"):
        part = content.get(key) if isinstance(content, dict) else None
        if not isinstance(part, dict):
            raise InputError(
                f"{origin}: no {key} in it; a SatCLIP checkpoint has state_dict and hyper_parameters"
            )
        parts.append(part)
    return parts[0], parts[1]


def _whole(settings: dict[str, Any], key: str, most: int, origin: str) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InputError(f"{origin}: hyper_parameters.{key} is {value!r}; a whole number 1..{most} is needed")
    return value


def _weights(state: dict[str, Any], key: str, shape: tuple[int, ...], origin: str) -> NDArray[np.float64]:
    import torch

    value: torch.Tensor | None = state.get(key)
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{origin}: {key} is missing; the weights of a SatCLIP location encoder are needed")
    if tuple(value.shape) != shape:
        raise InputError(f"{origin}: {key} has shape {tuple(value.shape)}, its hyper_parameters mean {shape}")
    weights = value.detach().double().numpy()
    if not np.isfinite(weights).all():
        raise InputError(f"{origin}: {key} holds values that are not finite")
    return weights
