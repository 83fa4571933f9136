"""Published checkpoints, read as plain values and tensors: no code that a file contains is ever run."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pm25 import uri
from pm25.errors import InputError

MAX_UNITS = 1 << 16
"""Largest layer width accepted from a checkpoint."""


def read(path: str | Path) -> bytes:
    """Read a file at a path or an address. Raises InputError if that fails."""
    try:
        return uri.read(path)
    except OSError as error:
        raise uri.unreadable(path, error) from error


def plain(content: bytes, origin: str, fix: str) -> Any:
    """Read the content of a file that torch wrote. Raises InputError for pickled code and for other files."""
    import torch

    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # errors of pickle, zipfile and torch: the file is not a checkpoint
        problem = f"not a checkpoint of plain tensors ({first_line(error)})"
        raise InputError(origin, "", problem, f"{fix}; one that contains pickled code is refused") from error


def safe_tensors(content: bytes, origin: str, fix: str) -> Weights:
    """Read the content of a safetensors file. Raises InputError for another file."""
    import safetensors.numpy

    try:
        return Weights(safetensors.numpy.load(content), origin, fix)
    except Exception as error:  # the library's own error, and those of a header that is cut short
        problem = f"not a safetensors file ({first_line(error)})"
        raise InputError(origin, "", problem, fix) from error


def block(content: Any, key: str, origin: str, fix: str) -> dict[str, Any]:
    """Return a mapping in a checkpoint. Raises InputError if it is missing."""
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, dict):
        raise InputError(origin, key, "missing", fix)
    return value


def first_line(error: Exception) -> str:
    """Type and first line of an error, shortened."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {textwrap.shorten(text, 160, placeholder=' ...')}".rstrip(": ")


class Weights:
    """Named tensors of a checkpoint, checked when they are taken."""

    def __init__(self, state: Mapping[str, Any], origin: str, fix: str) -> None:
        self.origin, self._state, self._fix = origin, state, fix

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def take(self, name: str, *shape: int | None) -> NDArray[np.float64]:
        """Return a tensor of this shape, where None is any length from 1 to `MAX_UNITS`.

        Raises InputError for a tensor that is missing, has another shape or is not finite.
        """
        value = self._state.get(name)
        if value is not None and not isinstance(value, np.ndarray):
            import torch

            dense = isinstance(value, torch.Tensor) and value.layout is torch.strided
            value = value.detach().double().numpy() if dense and value.is_floating_point() else None
        if value is None or value.dtype.kind != "f":
            raise InputError(self.origin, name, "missing, or not a tensor of real numbers", self._fix)
        wrong = len(value.shape) != len(shape) or any(
            not 1 <= found <= MAX_UNITS or wanted not in (None, found)
            for found, wanted in zip(value.shape, shape, strict=False)
        )
        if wrong:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise InputError(self.origin, name, f"shape is {tuple(value.shape)}, not ({wanted})", self._fix)
        weights = value.astype(np.float64)
        if not np.isfinite(weights).all():
            raise InputError(self.origin, name, "contains values that are not finite", self._fix)
        return weights

    def linear(self, name: str, inputs: int, outputs: int | None = None) -> Linear:
        """Return a linear layer with its bias. Raises InputError as `take` does."""
        weight = self.take(f"{name}.weight", outputs, inputs)
        return Linear(weight, self.take(f"{name}.bias", len(weight)))


class Linear:
    """A linear layer, x -> W x + b."""

    def __init__(self, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        self._weight, self._bias = weight, bias
        self.outputs, self.inputs = weight.shape

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (n, inputs) -> (n, outputs)."""
        return x @ self._weight.T + self._bias


def wrapped(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Encode (lat, lon) in degrees as [sin x, sin y, cos x, cos y].

    Here x = pi lon / 180 and y = pi lat / 90, so that both poles have one code. This is the published
    encoding of Mac Aodha, Cole and Perona (2019).
    """
    north, east = places.T
    turns = np.stack([np.pi * east / 180, np.pi * north / 90], axis=1)
    return np.concatenate([np.sin(turns), np.cos(turns)], axis=1)


class Residual:
    """Residual network of Mac Aodha, Cole and Perona (2019), arXiv 1906.05272, without its classifier.

        h = relu(W x + b);  h = h + relu(W2 relu(W1 h + b1) + b2) for each block

    Raises InputError for weights that are missing or do not fit together.
    """

    def __init__(self, weights: Weights, inputs: int) -> None:
        self._first = weights.linear("feats.0", inputs)
        self.dim = self._first.outputs
        self._blocks: list[tuple[Linear, Linear]] = []
        while f"feats.{(i := len(self._blocks) + 2)}.w1.weight" in weights:
            one, two = (weights.linear(f"feats.{i}.{name}", self.dim, self.dim) for name in ("w1", "w2"))
            self._blocks.append((one, two))

    @property
    def depth(self) -> int:
        """Number of residual blocks."""
        return len(self._blocks)

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (n, inputs) -> (n, dim)."""
        hidden = np.maximum(self._first(x), 0)
        for one, two in self._blocks:
            hidden = hidden + np.maximum(two(np.maximum(one(hidden), 0)), 0)
        return hidden
