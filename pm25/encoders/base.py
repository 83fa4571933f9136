"""Shared parts of all encoders: the protocol, the source that one is built from, and checks of places."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm25 import plug_ins
from pm25.errors import InputError
from pm25.limits import MOST_UNITS
from pm25.settings import BUILT_IN, FILE_OPTIONS, UNTRAINED
from pm25.text import parse_json

CODE_VERSION = 1
"""Part of every fingerprint; raise it whenever a change of the code moves an embedding."""

CHUNK = 1024
"""Places per matrix product: 8 MB of activations."""

ENCODERS: dict[str, Any] = {}
"""Built-in encoder classes by name; filled by `pm25.encoders`."""


class Encoder(Protocol):
    """Frozen location encoder, as `pm25.encoders.load` returns it."""

    dim: int
    fingerprint: str
    trained_on_target: bool
    """True if the vectors were made with measured air quality; the leakage audit reports it."""

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places: lat (n,) and lon (n,) in degrees -> float32 (n, dim), in the order given.

        An encoder with months gives (n, 12, dim), January first. Only vectors keyed by `site_id` need the
        third argument, n strings. Raises InputError for a coordinate that is missing or outside the globe,
        and for a place that a table lacks.
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
    package: str = ""
    """Name and version of the package that has the encoder; empty for a built-in one."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the name, the code version, the package, the options and the content.

        Options that do not change the vectors are not part of it.
        """
        package = f"{self.package}\n" if self.package else ""
        options = json.dumps(self.numbers, sort_keys=True) + "\n" if self.numbers else ""
        head = f"{self.name} {CODE_VERSION}\n{package}{options}"
        return hashlib.sha256(head.encode() + self.content).hexdigest()

    def encoder(self) -> Encoder:
        """Build the encoder. Raises InputError for bad weights, and for a package that is not installed."""
        if not self.package:
            encoder: Encoder = ENCODERS[self.name](self)
            return encoder
        plug_in = plug_ins.find(self.name, BUILT_IN)
        if plug_in is None or plug_in.package != self.package:
            there = (
                "is not installed" if plug_in is None else f"is needed, and {plug_in.package} is installed"
            )
            where, version = self.package.rsplit(" ", 1)
            fix = f"pip install {where}=={version}"
            raise InputError(f"encoder {self.name}", "", f"package {self.package} {there}", fix)
        return Installed(plug_in, self)

    def write(self, folder: Path) -> None:
        """Write `encoder.json` and the weights or vectors, `encoder.bin`; not supported for `shuffled`."""
        described = {"name": self.name, "numbers": self.numbers, "other": self.other}
        described |= {"package": self.package} if self.package else {}
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

    Raises InputError for an unknown name or option, a missing option, and a file that cannot be read. An
    encoder of another package that does not follow the protocol is an InputError too.
    """
    if drawn := UNTRAINED.fullmatch(name):
        name, options = "untrained", {"of": drawn[1], "seed": int(drawn[2]), **options}
    if name in ENCODERS:
        make: Callable[..., Source] = ENCODERS[name].source
        _check_options(name, make, options)
        return make(**options)
    installed = plug_ins.installed(BUILT_IN)
    if name not in installed:
        fix = f"choose one of {', '.join([*ENCODERS, *installed])}"
        raise InputError("encoder", "", f"unknown name {name!r}", fix)
    return _installed_source(installed[name], options)


def _check_options(name: str, make: Callable[..., Source], options: dict[str, Any]) -> None:
    """Raise InputError for an option that `make` does not know, or that it needs and is missing."""
    known = inspect.signature(make).parameters
    if any(option.kind is option.VAR_KEYWORD for option in known.values()):
        return
    if unknown := sorted(set(options) - set(known)):
        fix = f"use only {', '.join(known)}" if known else "pass no options"
        raise InputError(f"encoder {name}", ", ".join(unknown), "unknown option", fix)
    for option in known.values():
        if option.default is option.empty and option.name not in options:
            raise InputError(f"encoder {name}", option.name, "option is missing", f"give {option.name}=")


def _installed_source(plug_in: plug_ins.PlugIn, options: dict[str, Any]) -> Source:
    """Return the source of an encoder of another package.

    Every option but files is part of its fingerprint, with defaults filled in, even if its class forgets it.
    """
    make = plug_in.load().source
    _check_options(plug_in.name, make, options)
    given = inspect.signature(make).bind(**options)
    given.apply_defaults()
    arguments: dict[str, Any] = {}
    for parameter, value in given.arguments.items():
        several = inspect.signature(make).parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD
        arguments |= value if several else {parameter: value}
    made = _run(plug_in, "source", make, **options)
    if not isinstance(made, Source):
        raise plug_in.error(
            f"source returns {type(made).__name__}", "return a pm25.encoders.Source", "source"
        )
    if not isinstance(made.numbers, dict) or not isinstance(made.content, bytes):
        fix = "give numbers a dict, and content bytes"
        raise plug_in.error("the Source has a field of another type", fix, "source")
    files = [name for name in FILE_OPTIONS if arguments.get(name) is not None]
    if files and not made.content:
        fix = "read the file, and pass its bytes as Source(content=...)"
        raise plug_in.error(f"the Source lacks the content of option {files[0]}", fix, "source")
    numbers = {name: value for name, value in arguments.items() if name not in FILE_OPTIONS} | made.numbers
    try:
        json.dumps(numbers, allow_nan=False)
    except (TypeError, ValueError) as error:
        problem = f"options are not plain numbers, texts and lists ({plug_ins.described(error)})"
        raise plug_in.error(problem, "convert them in source", "source") from error
    return replace(made, name=plug_in.name, numbers=numbers, package=plug_in.package)


def _run(plug_in: plug_ins.PlugIn, what: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call code of another package. Raises InputError, which names the package, if it fails."""
    try:
        return call(*args, **options)
    except InputError:
        raise
    except Exception as error:  # whatever the code of another package raises
        fix = f"report it to the authors of package {plug_in.package}"
        raise plug_in.error(f"fails ({plug_ins.described(error)})", fix, what) from error


class Installed:
    """Encoder of another package; its attributes and each of its results are checked."""

    def __init__(self, plug_in: plug_ins.PlugIn, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self._plug_in = plug_in
        self._encoder = _run(plug_in, "__init__", plug_in.load(), source)
        for name in ("dim", "trained_on_target"):
            if not hasattr(self._encoder, name):
                raise plug_in.error("the attribute is missing", "set it in the class or in __init__", name)
        if not is_whole(self._encoder.dim, 1, MOST_UNITS):
            fix = f"give a whole number from 1 to {MOST_UNITS}"
            raise plug_in.error(f"{self._encoder.dim!r} is not a length of vectors", fix, "dim")
        if not isinstance(self._encoder.trained_on_target, bool):
            problem = f"{self._encoder.trained_on_target!r} is not a truth value"
            raise plug_in.error(problem, "give True or False", "trained_on_target")
        self.dim: int = self._encoder.dim
        self.trained_on_target: bool = self._encoder.trained_on_target
        self.lookup_keys = tuple(getattr(self._encoder, "lookup_keys", ()))

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places (n,) in degrees -> float32 (n, dim) or (n, 12, dim).

        Raises InputError, which names the package, for a result of another type, shape or dimension, and for
        values that are not finite.
        """
        places = checked_places(lat, lon)
        vectors = _run(self._plug_in, "embed", self._encoder.embed, *places.T, site_id)
        if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
            given = vectors.dtype if isinstance(vectors, np.ndarray) else type(vectors).__name__
            raise self._plug_in.error(f"returns {given}", "return an array of float32", "embed")
        months = (12,) if "month" in self.lookup_keys else ()
        if vectors.shape != (shape := (len(places), *months, self.dim)):
            problem = f"returns shape {vectors.shape} for {len(places)} places, and dim is {self.dim}"
            raise self._plug_in.error(problem, f"return shape {shape}", "embed")
        finite = np.isfinite(vectors).reshape(len(places), -1).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            problem = f"returns values that are not finite, the first at {tuple(map(float, places[row]))}"
            raise self._plug_in.error(problem, "return a finite vector for every place", "embed")
        return vectors


def label(name: str) -> str | None:
    """Return the attribute `label` of an encoder of another package; None without one, or if not installed.

    Raises InputError for a label that is not a short text of one line.
    """
    plug_in = None if name in BUILT_IN else plug_ins.find(name, BUILT_IN)
    if plug_in is None:
        return None
    found = getattr(plug_in.load(), "label", None)
    if found is None:
        return None
    if not isinstance(found, str) or not re.fullmatch(r"\w[\w ()+./-]{0,39}", found):
        fix = "use up to 40 letters, digits, blanks and ( ) + . / - _"
        raise plug_in.error(f"{found!r} is not a label for tables", fix, "label")
    return found


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
