"""Shared parts of all encoders: the protocol, the source that one is built from, and checks of places."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25.errors import InputError
from pm25.text import parse_json

CODE_VERSION = 1
"""Part of every fingerprint; raise it whenever a change of the code moves an embedding."""

CHUNK = 1024
"""Places per matrix product: 8 MB of activations."""

ENCODERS: dict[str, Any] = {}
"""Encoder classes by name; filled by `pm25.encoders`."""


class Encoder(Protocol):
    """Frozen location encoder, as `pm25.encoders.load` returns it."""

    dim: int
    fingerprint: str
    trained_on_target: bool
    """True if the vectors were made with measured air quality; the leakage audit reports it."""

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places: lat (n,) and lon (n,) in degrees -> float32 (n, dim), in the order given.

        A table with months gives (n, 12, dim), January first. Only a table keyed by `site_id` uses the third
        argument, n strings. Raises InputError for a coordinate that is missing or outside the globe, and for
        a place that a table lacks.
        """


@dataclass(frozen=True)
class Source:
    """Name, checked options and file content from which an encoder is built."""

    name: str
    numbers: dict[str, Any]
    """Options that change the vectors."""
    content: bytes = b""
    """Content of the file of weights or vectors."""
    other: Any = None
    """Options that do not change the vectors, such as the path of the file."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the name, the code version, the options that change the vectors, and the content."""
        options = json.dumps(self.numbers, sort_keys=True) + "\n" if self.numbers else ""
        return hashlib.sha256(f"{self.name} {CODE_VERSION}\n{options}".encode() + self.content).hexdigest()

    def encoder(self) -> Encoder:
        """Build the encoder. Raises InputError for bad weights."""
        encoder: Encoder = ENCODERS[self.name](self)
        return encoder

    def write(self, folder: Path) -> None:
        """Write `encoder.json` and the weights or vectors, `encoder.bin`; not supported for `shuffled`."""
        described = {"name": self.name, "numbers": self.numbers, "other": self.other}
        (folder / "encoder.json").write_text(json.dumps(described, indent=1, default=str), encoding="utf-8")
        (folder / "encoder.bin").write_bytes(self.content)

    @classmethod
    def read(cls, folder: Path) -> Source | None:
        """Read what `write` stored in `folder`; None if the folder contains no encoder."""
        if not (folder / "encoder.json").is_file():
            return None
        described = parse_json((folder / "encoder.json").read_bytes())
        return cls(**described, content=(folder / "encoder.bin").read_bytes())


def source(name: str, /, **options: Any) -> Source:
    """Check `options` and read the files of the encoder `name`, without building it.

    Raises InputError for an unknown name or option, a missing option, and a file that cannot be read.
    """
    if name not in ENCODERS:
        raise InputError("encoder", "", f"unknown name {name!r}", f"choose one of {', '.join(ENCODERS)}")
    make: Callable[..., Source] = ENCODERS[name].source
    known = inspect.signature(make).parameters
    if not any(option.kind is option.VAR_KEYWORD for option in known.values()):
        if unknown := sorted(set(options) - set(known)):
            fix = f"use only {', '.join(known)}" if known else "pass no options"
            raise InputError(f"encoder {name}", ", ".join(unknown), "unknown option", fix)
        for option in known.values():
            if option.default is option.empty and option.name not in options:
                raise InputError(f"encoder {name}", option.name, "option is missing", f"give {option.name}=")
    return make(**options)


def is_whole(value: Any, least: int, most: float = float("inf")) -> bool:
    """Tell whether `value` is an integer from `least` to `most`; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def whole_number(encoder: str, option: str, value: Any, least: int) -> int:
    """Return the option if it is an integer from `least`; else raise InputError."""
    if not is_whole(value, least):
        raise InputError(
            f"encoder {encoder}", option, f"{value!r} is not accepted", f"give a whole number from {least}"
        )
    return int(value)


def checked_places(lat: ArrayLike, lon: ArrayLike, where: str = "places") -> NDArray[np.float64]:
    """Check coordinates in degrees and stack them to (n, 2) as (lat, lon).

    Raises InputError, which names `where`, for a coordinate that is missing or outside the globe.
    """
    north, east = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    if north.ndim != 1 or north.shape != east.shape:
        problem = f"shapes are {north.shape} and {east.shape}"
        raise InputError(where, "lat, lon", problem, "pass two 1-D arrays of the same length")
    for name, values, limit in (("lat", north, 90), ("lon", east, 180)):
        outside = ~(np.abs(values) <= limit)  # true for NaN too
        if outside.any():
            row = int(outside.argmax())
            fix = "give degrees"
            if name == "lat" and abs(north[row]) <= 180 and abs(east[row]) <= 90:
                fix = "put latitude first; lat and lon look swapped"
            elif name == "lon" and 180 < east[row] <= 360:
                fix = "subtract 360 from longitudes above 180"
            raise InputError(
                where, name, f"{values[row]:g} at position {row} is not in -{limit}..{limit}", fix
            )
    return np.stack([north, east], axis=1)


def checked_site_ids(site_id: ArrayLike | None, n: int, where: str) -> NDArray[np.object_]:
    """Check that `site_id` holds `n` strings. Raises InputError, which names `where`."""
    if site_id is None:
        problem = "missing, but the vectors are keyed by it"
        raise InputError(where, "site_id", problem, "pass the site_id of each place")
    ids = np.asarray(site_id, object)
    if ids.shape != (n,):
        raise InputError(where, "site_id", f"shape is {ids.shape}, for {n} places", "pass one per place")
    if wrong := [site for site in ids.tolist() if not isinstance(site, str)]:
        raise InputError(where, "site_id", f"{wrong[0]!r} is not a string", "pass strings")
    return ids


def embed_distinct(
    lat: ArrayLike, lon: ArrayLike, dim: int, forward: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Embed each distinct place once, in chunks; a table of samples repeats its places every day.

    `forward` maps places (m, 2) as (lat, lon) in degrees to vectors (m, dim).
    """
    places, inverse = np.unique(checked_places(lat, lon), axis=0, return_inverse=True)
    vectors = np.empty((len(places), dim), np.float32)
    for first in range(0, len(places), CHUNK):
        vectors[first : first + CHUNK] = forward(places[first : first + CHUNK])
    return vectors[inverse.reshape(-1)]
