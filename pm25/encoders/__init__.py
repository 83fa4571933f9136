"""Frozen location encoders: a place in, a fixed vector out.

    load("geoclip").embed(lat, lon)                       ->  float32 array (n, 512)
    load("satclip", model="microsoft/SatCLIP-ViT16-L40")  ->  256 values
    load("table", path="vectors.parquet")                 ->  precomputed vectors, maybe twelve a place
    load("random", dim=512, seed=0)                       ->  control: a vector per place, no geography
    load("shuffled", of="geoclip", seed=0)                ->  control: real vectors at the wrong places

Latitude comes first, in degrees, whatever order a model was trained with. Vectors are handed out as the
model gives them: they are NOT of unit length (GeoCLIP over CONUS: 0.19 to 0.41), so scale them downstream.

Everything is computed on the CPU in float64 and rounded to float32 once: GeoCLIP's fastest Fourier features
reach 700 turns over CONUS, so float32 phases, as in its own code, move a value (0.013 RMS) by up to 1.5e-5;
and the vector of a place must depend neither on the machine nor on the places beside it in a batch.
`shuffled` alone depends on the set of places: ask for all of a study's places at once.

Nothing here imports torch before a vector is asked for: planning a study needs fingerprints only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pm25 import uri
from pm25.errors import InputError

if TYPE_CHECKING:
    import torch

CODE_VERSION = 1
"""Raise it whenever a change here or in satclip.py moves an embedding; it is part of every fingerprint."""

CHUNK = 1024
"""Places per matrix product: 8 MB of activations."""

TOLERANCE_DEG = 1e-4
"""How far a place may lie from its row in a table keyed by lat and lon: 11 m, the rounding of 4 decimals."""

RANDOM_NORM = 0.25
"""RMS length of `random` vectors; GeoCLIP's at the 1,414 monitors of CONUS in 2021: RMS 0.253, mean 0.250."""

# Equal Earth map projection, Savric, Patterson and Jenny (2018), doi 10.1080/13658816.2018.1504949.
A1, A2, A3, A4 = 1.340264, -0.081106, 0.000893, 0.003796


class Encoder(Protocol):
    """What `load` returns."""

    dim: int
    fingerprint: str
    trained_on_target: bool  # its vectors know measured air quality: an audit must say so

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        """Embed places: lat (n,) and lon (n,) in degrees -> float32 (n, dim), in the order given.

        A table with months gives (n, 12, dim), January first. Only a table keyed by `site_id` looks at the
        third argument, n texts. InputError for a coordinate that is missing or outside the globe, and for a
        place that a table lacks.
        """


def load(name: str, **options: Any) -> Encoder:
    """Load the frozen encoder `name`; InputError for an unknown name or option, or bad weights."""
    # The digest is of the very bytes that are loaded, even if the file is replaced meanwhile.
    return source(name, **options).encoder()


def fingerprint(name: str, **options: Any) -> str:
    """Return what `load(name, **options).fingerprint` would be, from options and files alone (no torch).

    It covers every option that changes a number, defaults filled in; of a file its bytes, not its path.
    """
    return source(name, **options).fingerprint


def source(name: str, **options: Any) -> Source:
    """Return what `load(name, **options)` is made of."""
    return _source(name, options)


@dataclass(frozen=True)
class Source:
    """All that an encoder is made of, its options checked; what `write` put into a folder, `read` gets."""

    name: str
    numbers: dict[str, Any]  # the options that change a number
    content: bytes = b""
    other: Any = None  # what changes no number

    @property
    def fingerprint(self) -> str:
        options = json.dumps(self.numbers, sort_keys=True) + "\n" if self.numbers else ""
        return hashlib.sha256(f"{self.name} {CODE_VERSION}\n{options}".encode() + self.content).hexdigest()

    def encoder(self) -> Encoder:
        """Make the encoder; InputError for bad weights."""
        made: Encoder = _ENCODERS[self.name](self)
        return made

    def write(self, folder: Path) -> None:
        """Write `encoder.json` and the weights or vectors, `encoder.bin`; not for `shuffled`."""
        told = {"name": self.name, "numbers": self.numbers, "other": self.other}
        (folder / "encoder.json").write_text(json.dumps(told, indent=1, default=str))
        (folder / "encoder.bin").write_bytes(self.content)

    @classmethod
    def read(cls, folder: Path) -> Source | None:
        """None where the folder holds no encoder."""
        if not (folder / "encoder.json").is_file():
            return None
        told = json.loads((folder / "encoder.json").read_text())
        return cls(**told, content=(folder / "encoder.bin").read_bytes())


def _source(name: str, options: dict[str, Any]) -> Source:
    if name not in _ENCODERS:
        raise InputError(f"encoder: unknown name {name!r}; known: {', '.join(sorted(_ENCODERS))}")
    make: Callable[..., Source] = _ENCODERS[name].source
    known = inspect.signature(make).parameters
    if not any(option.kind is option.VAR_KEYWORD for option in known.values()):
        if unknown := sorted(set(options) - set(known)):
            takes = ", ".join(known) or "none"
            raise InputError(f"encoder {name}: unknown option {', '.join(unknown)}; it takes {takes}")
        for option in known.values():
            if option.default is option.empty and option.name not in options:
                raise InputError(f"encoder {name}: give {option.name}=")
    return make(**options)


def _whole(encoder: str, option: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"encoder {encoder}: {option} is {value!r}; a whole number from {least} is needed")
    return value


def _each_place_once(
    lat: ArrayLike, lon: ArrayLike, dim: int, forward: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Embed in chunks: a table of samples repeats its places every day."""
    places, inverse = np.unique(checked_places(lat, lon), axis=0, return_inverse=True)
    vectors = np.empty((len(places), dim), np.float32)
    for first in range(0, len(places), CHUNK):
        vectors[first : first + CHUNK] = forward(places[first : first + CHUNK])
    return vectors[inverse.reshape(-1)]


class GeoCLIP:
    """GeoCLIP's location encoder (Vivanco Cepeda, Nayak and Shah 2023, arXiv 2309.16020), 512 values.

    With p the Equal Earth projection of the place, scaled to about (-1, 1), and a Gaussian B per scale:

        e(p) = sum over 3 scales of MLP([cos(2 pi B p), sin(2 pi B p)])

    The MLP is 512 - 1024 - 1024 - 1024 - 512 with ReLU between its layers. B has a standard deviation of 1,
    16 and 256: features as wide as a continent, a state, a city. Weights come from the installed `geoclip`
    wheel; its code is never imported, because that would pull in torchvision and transformers.
    """

    dim = 512
    trained_on_target = False

    def __init__(self, source: Source) -> None:
        import torch

        self.fingerprint = source.fingerprint
        state = torch.load(io.BytesIO(source.content), weights_only=True, map_location="cpu")
        self._state: dict[str, torch.Tensor] = {key: value.double() for key, value in state.items()}

    @classmethod
    def source(cls) -> Source:
        return Source("geoclip", {}, cls.weights_file().read_bytes())

    @staticmethod
    def weights_file() -> Path:
        # For a top-level name find_spec only looks for the folder; it does not run the package.
        spec = importlib.util.find_spec("geoclip")
        for folder in (spec and spec.submodule_search_locations) or ():
            file = Path(folder) / "model" / "weights" / "location_encoder_weights.pth"
            if file.is_file():
                return file
        raise InputError("encoder geoclip: its weights are not installed; fix: pip install geoclip")

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        import torch

        def forward(places: NDArray[np.float64]) -> NDArray[np.float64]:
            with torch.inference_mode():
                vectors: NDArray[np.float64] = self._forward(torch.from_numpy(places)).numpy()
            return vectors

        return _each_place_once(lat, lon, self.dim, forward)

    def _forward(self, places: torch.Tensor) -> torch.Tensor:
        """Map places (n, 2) as (lat, lon) in degrees to embeddings (n, 512), both float64."""
        import torch
        from torch.nn.functional import linear

        projected = _equal_earth(places) * (66.50336 / 180)  # GeoCLIP's own scale
        total = torch.zeros(len(places), self.dim, dtype=torch.float64)
        for scale in range(3):
            capsule = f"LocEnc{scale}.capsule"
            phase = 2 * math.pi * projected @ self._state[f"{capsule}.0.b"].T
            hidden = torch.cat([phase.cos(), phase.sin()], dim=1)
            for layer in (f"{capsule}.1", f"{capsule}.3", f"{capsule}.5"):
                hidden = linear(hidden, self._state[f"{layer}.weight"], self._state[f"{layer}.bias"]).relu()
            head = f"LocEnc{scale}.head.0"
            total += linear(hidden, self._state[f"{head}.weight"], self._state[f"{head}.bias"])
        return total


def _equal_earth(places: torch.Tensor) -> torch.Tensor:
    """Project (lat, lon) in degrees to Equal Earth (x east, y north) on the unit sphere, both (n, 2)."""
    import torch

    lat, lon = torch.deg2rad(places).unbind(dim=1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(lat))
    y = A1 * theta + A2 * theta**3 + A3 * theta**7 + A4 * theta**9
    slope = A1 + 3 * A2 * theta**2 + 7 * A3 * theta**6 + 9 * A4 * theta**8  # dy / dtheta
    x = 2 / math.sqrt(3) * lon * torch.cos(theta) / slope
    return torch.stack([x, y], dim=1)


class SatCLIP:
    """SatCLIP's location encoder (Klemmer et al. 2023, arXiv 2311.17179), 256 values in the published models.

    `checkpoint` is a local file in the published format, `model` one of `satclip.MODELS` on the Hugging Face
    hub. The computation, and a slip in it that must be kept, are described in pm25/encoders/satclip.py.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        from pm25.encoders import satclip

        self.fingerprint = source.fingerprint
        self._network = satclip.LocationNetwork(source.content, f"encoder satclip: {source.other}")
        self.dim = self._network.dim

    @staticmethod
    def source(checkpoint: str | Path | None = None, model: str | None = None) -> Source:
        from pm25.encoders import satclip

        content = satclip.checkpoint_bytes(checkpoint, model)
        return Source("satclip", {}, content, other=checkpoint if model is None else model)

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        return _each_place_once(lat, lon, self.dim, lambda places: self._network.embed(*places.T))


class Table:
    """Precomputed vectors from a Parquet file, keyed by a text column `site_id` or else by `lat` and `lon`.

    The vector is the one list column `embedding`, or all other columns in their order; `lat` and `lon` beside
    a `site_id` are not part of it. A column `month` (1..12) makes it twelve vectors per place. By lat and lon
    the nearest row counts, within `tolerance_deg` (of sqrt(dlat^2 + dlon^2)). Anything missing, doubled or
    not a finite number is an InputError.

    `trained_on_target` says that the vectors were made with measured air quality. PDFM's were: a table that
    says 'pdfm' in its file name, columns or metadata has the flag, whatever the option says.
    """

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        path, self.trained_on_target = source.other
        self._tolerance_deg: float | None = source.numbers.get("tolerance_deg")
        self._file = f"encoder table: {path}"
        self._read(source.content)

    @staticmethod
    def source(
        path: str | Path, tolerance_deg: float | None = None, trained_on_target: bool = False
    ) -> Source:
        import pyarrow.parquet as pq

        file = f"encoder table: {path}"
        if not isinstance(trained_on_target, bool):
            raise InputError(
                f"encoder table: trained_on_target is {trained_on_target!r}; true or false is needed"
            )
        try:
            content = uri.read(path)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from error
        try:
            schema = pq.read_schema(io.BytesIO(content))
        except (ValueError, OSError) as error:
            raise InputError(f"{file}: not a Parquet file: {str(error).splitlines()[0][:120]}") from error
        name, metadata = uri.file_name(path), schema.metadata or {}
        said = [name, *schema.names, *(repr(pair) for pair in metadata.items())]
        other = path, trained_on_target or any("pdfm" in text.lower() for text in said)
        if "site_id" in schema.names:
            if tolerance_deg is not None:
                raise InputError(f"{file}: tolerance_deg means nothing for a table keyed by site_id")
            return Source("table", {}, content, other)
        tolerance = TOLERANCE_DEG if tolerance_deg is None else tolerance_deg
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance <= 1:
            raise InputError(f"encoder table: tolerance_deg is {tolerance!r}; degrees from 0 to 1 are needed")
        return Source("table", {"tolerance_deg": float(tolerance)}, content, other)

    @property
    def asks(self) -> tuple[str, ...]:
        """What of 'month' and 'site_id' has to be known, beside the place, to find a vector."""
        return tuple(n for n, asked in (("month", self.by_month), ("site_id", self.by_site)) if asked)

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        places = checked_places(lat, lon)
        if not self.by_site:
            places, inverse = np.unique(places, axis=0, return_inverse=True)
            found = self._nearest(places)
            rows = found[inverse.reshape(-1)]
            lacking = [f"({north:.4f}, {east:.4f})" for north, east in places[found < 0]]
        else:
            ids = _site_ids(site_id, len(places), self._file)
            rows = np.array([self._row.get(site, -1) for site in ids], np.intp)
            lacking = sorted({site for site, row in zip(ids, rows, strict=True) if row < 0})
        if lacking:
            near = "" if self.by_site else f" within {self._tolerance_deg:g} degrees"
            raise InputError(
                f"{self._file}: {len(lacking)} of the places have no vector{near}: {_first(lacking)};"
                " fix: add them, or leave those sites out"
            )
        return self._vectors[rows]

    def _nearest(self, places: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return each place's row, or -1 where none lies within the tolerance."""
        tolerance = self._tolerance_deg or 0.0
        known = self._known  # sorted by latitude
        first = np.searchsorted(known[:, 0], places[:, 0] - tolerance, side="left")
        last = np.searchsorted(known[:, 0], places[:, 0] + tolerance, side="right")
        rows = np.full(len(places), -1, np.intp)
        for i, (start, stop) in enumerate(zip(first, last, strict=True)):
            if start < stop:
                apart = np.abs(known[start:stop] - places[i])
                apart[:, 1] = np.minimum(apart[:, 1], np.abs(360 - apart[:, 1]))  # across the date line
                distance = np.hypot(*apart.T)
                if distance.min() <= tolerance:
                    rows[i] = start + distance.argmin()
        return rows

    def _read(self, content: bytes) -> None:
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(io.BytesIO(content))
        except (ValueError, OSError) as error:
            raise InputError(f"{self._file}: cannot be read: {str(error).splitlines()[0][:120]}") from error
        # pandas stores an unnamed row index as a column of numbers.
        columns = [name for name in table.column_names if not name.startswith("__index_level_")]
        if len(set(columns)) < len(columns):
            raise InputError(f"{self._file}: two columns have the same name")
        self.by_site = "site_id" in columns
        if not self.by_site and not {"lat", "lon"} <= set(columns):
            raise InputError(
                f"{self._file}: no column site_id, nor lat and lon; its columns: {_first(columns)}"
            )
        if not len(table):
            raise InputError(f"{self._file}: it has no rows")

        if self.by_site:
            ids = table["site_id"]
            if pa.types.is_dictionary(ids.type):
                ids = ids.cast(ids.type.value_type)
            if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)) or ids.null_count:
                raise InputError(
                    f"{self._file}: site_id is {ids.type} with {ids.null_count} missing; text is needed"
                )
            names = ids.to_pylist()
            known, place = np.unique(np.array(names, object), return_inverse=True)
            self._row = {site: row for row, site in enumerate(known)}
        else:
            try:
                keys = checked_places(*(self._numbers(table, key) for key in ("lat", "lon")))
            except InputError as error:
                raise InputError(f"{self._file}: {str(error).removeprefix(f'{self._file}: ')}") from None
            names = [f"({north:.4f}, {east:.4f})" for north, east in keys]
            self._known, place = np.unique(keys, axis=0, return_inverse=True)
        place = place.reshape(-1)

        # A slot is a place, or a place's month.
        months = 12 if "month" in columns else 1
        month = self._numbers(table, "month") if months == 12 else np.ones(len(place))
        if not np.isin(month, np.arange(1, 13)).all():
            bad = month[~np.isin(month, np.arange(1, 13))][0]
            raise InputError(
                f"{self._file}: month {bad:g} at {names[int(np.argmax(month == bad))]} is not 1..12"
            )
        slot = place * months + month.astype(np.intp) - 1
        rows = np.bincount(slot, minlength=months * (place.max() + 1))
        if (rows > 1).any():
            twice = sorted({names[i] for i in np.flatnonzero(rows[slot] > 1)})
            raise InputError(
                f"{self._file}: {len(twice)} places have two rows for one vector: {_first(twice)}"
            )
        if (rows == 0).any():
            lacking = {int(i) for i in np.flatnonzero(rows == 0) // 12}
            short = sorted({names[i] for i in np.flatnonzero(np.isin(place, [*lacking]))})
            raise InputError(f"{self._file}: {len(short)} places lack some of the 12 months: {_first(short)}")

        values = self._values(table, [c for c in columns if c not in ("site_id", "lat", "lon", "month")])
        finite = np.isfinite(values)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise InputError(
                f"{self._file}: {int((~finite).sum())} values are missing or not finite, the first at"
                f" {names[row]}, value {column + 1} of {values.shape[1]}"
            )
        self.dim = values.shape[1]
        vectors = np.empty((len(rows), self.dim), np.float32)
        vectors[slot] = values
        self.by_month = months == 12
        self._vectors = vectors.reshape(-1, 12, self.dim) if self.by_month else vectors

    def _values(self, table: Any, columns: list[str]) -> NDArray[np.float32]:
        import pyarrow.compute as pc

        lists = [
            name
            for name in columns
            if pa.types.is_list(table[name].type)
            or pa.types.is_large_list(table[name].type)
            or pa.types.is_fixed_size_list(table[name].type)
        ]
        if not columns or (lists and columns != ["embedding"]):
            raise InputError(
                f"{self._file}: the vector must be one list column named embedding, or columns of numbers;"
                f" found {_first(columns) or 'neither'}"
            )
        if not lists:
            columns32 = [self._float32(self._numbers(table, name)) for name in columns]
            return np.stack(columns32, axis=1)
        lengths = set(pc.list_value_length(table["embedding"]).to_pylist())
        if len(lengths) > 1 or not min(lengths, key=lambda length: length or 0):
            shown = sorted(str(length) for length in lengths)
            raise InputError(
                f"{self._file}: the lists of embedding differ in length or are missing: {_first(shown)}"
            )
        flat = pa.table({"embedding": pc.list_flatten(table["embedding"])})
        return self._float32(self._numbers(flat, "embedding")).reshape(len(table), -1)

    def _numbers(self, table: Any, name: str) -> NDArray[np.float64]:

        column = table[name]
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise InputError(f"{self._file}: column {name} is {column.type}; numbers are needed")
        return np.asarray(column.to_numpy(), np.float64)  # null becomes NaN

    @staticmethod
    def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # to inf, which is refused with its place
            return values.astype(np.float32)


class Random:
    """A control with no geography in it: a fixed normal vector per place, `dim` values.

    Each value is N(0, RANDOM_NORM^2 / dim), so that vectors are about as long as GeoCLIP's whatever their
    dim. The generator is seeded with (seed, lat, lon), degrees rounded to 1e-6: the same place has the same
    vector whatever other places there are, and a place next door an unrelated one.
    """

    trained_on_target = False

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self.dim: int = source.numbers["dim"]
        self._seed: int = source.numbers["seed"]

    @staticmethod
    def source(dim: int = 512, seed: int = 0) -> Source:
        return Source(
            "random", {"dim": _whole("random", "dim", dim, 1), "seed": _whole("random", "seed", seed, 0)}
        )

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        def forward(places: NDArray[np.float64]) -> NDArray[np.float64]:
            shifted = places + np.array([90, 180])  # a seed is not negative
            keys = np.rint(shifted * 1e6).astype(np.int64).tolist()
            normal = [np.random.default_rng([self._seed, *key]).standard_normal(self.dim) for key in keys]
            return np.stack(normal) * (RANDOM_NORM / math.sqrt(self.dim))

        return _each_place_once(lat, lon, self.dim, forward)


class Shuffled:
    """A control with real vectors at the wrong places: those of encoder `of`, permuted over the places given.

    The permutation is one random cycle through the distinct places in sorted order, so no place keeps its
    own vector unless it is alone, and the order of the rows does not matter. It does depend on the set of
    places. Options other than `of` and `seed` are those of the encoder `of`.
    """

    def __init__(self, source: Source) -> None:
        self.fingerprint = source.fingerprint
        self._seed: int = source.numbers["seed"]
        self._inner = source.other.encoder()
        self.dim = self._inner.dim
        self.trained_on_target = self._inner.trained_on_target

    @staticmethod
    def source(of: str = "geoclip", seed: int = 0, **options: Any) -> Source:
        if of == "shuffled":
            raise InputError("encoder shuffled: of='shuffled' shuffles twice; name another encoder")
        inner = _source(of, options)
        return Source(
            "shuffled", {"of": inner.fingerprint, "seed": _whole("shuffled", "seed", seed, 0)}, other=inner
        )

    def embed(self, lat: ArrayLike, lon: ArrayLike, site_id: ArrayLike | None = None) -> NDArray[np.float32]:
        places = checked_places(lat, lon)
        if isinstance(self._inner, Table) and self._inner.by_site:  # two monitors may share a place
            site_id = _site_ids(site_id, len(places), "encoder shuffled")
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


def _site_ids(site_id: ArrayLike | None, n: int, what: str) -> NDArray[np.object_]:
    if site_id is None:
        raise InputError(f"{what}: keyed by site_id; pass the site_id of each place")
    ids = np.asarray(site_id, object)
    if ids.shape != (n,):
        raise InputError(f"{what}: {n} places, but site_id has shape {ids.shape}")
    if wrong := [site for site in ids.tolist() if not isinstance(site, str)]:
        raise InputError(f"{what}: site_id {wrong[0]!r} is no text")
    return ids


def _first(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def checked_places(lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float64]:
    """Check coordinates in degrees and stack them to (n, 2) as (lat, lon)."""
    north, east = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    if north.ndim != 1 or north.shape != east.shape:
        raise InputError(f"lat {north.shape} and lon {east.shape}: pass two 1-D arrays of the same length")
    for name, values, limit in (("lat", north, 90), ("lon", east, 180)):
        outside = ~(np.abs(values) <= limit)  # NaN is outside too
        if outside.any():
            row = int(outside.argmax())
            hint = "degrees are needed"
            if name == "lat" and abs(north[row]) <= 180 and abs(east[row]) <= 90:
                hint = "are lat and lon swapped? latitude comes first"
            elif name == "lon" and 180 < east[row] <= 360:
                hint = "subtract 360 from longitudes above 180"
            raise InputError(f"{name} {values[row]:g} at position {row} is not in -{limit}..{limit}; {hint}")
    return np.stack([north, east], axis=1)


_ENCODERS: dict[str, Any] = {
    "geoclip": GeoCLIP,
    "satclip": SatCLIP,
    "table": Table,
    "random": Random,
    "shuffled": Shuffled,
}


class Embedded(NamedTuple):
    """The places' vectors, made once for all cells of an encoder."""

    vectors: np.ndarray
    """(sites, d), or (sites, 12, d) by month."""
    fingerprint: str
    trained_on_target: bool


def embed(
    name: str, options: dict[str, Any], lat: np.ndarray, lon: np.ndarray, site_id: np.ndarray
) -> Embedded:
    """Embed places with `pm25.encoders.load(name, **options)`."""
    encoder = load(name, **options)
    return Embedded(encoder.embed(lat, lon, site_id), encoder.fingerprint, encoder.trained_on_target)
