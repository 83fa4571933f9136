"""Frozen location encoders: a place in, a fixed vector out.

* `load("geoclip").embed(lat, lon)`: float32 array (n, 512)
* `load("satclip", model="microsoft/SatCLIP-ViT16-L40")`: 256 values
* `load("sinr", checkpoint="model.pt")`, `"climplicit"`, `"torchspatial"`, `"range"`: other published models
* `load("table", path="vectors.parquet")`: precomputed vectors, perhaps one per month
* `load("random", dim=512, seed=0)`: a control with a vector per place, and no geography
* `load("untrained", of="geoclip", seed=0)`: the architecture of an encoder with fresh weights
* `load("shuffled", of="geoclip", seed=0)`: a control with real vectors at the wrong places

Latitude comes first, in degrees, whatever order a model was trained with. Vectors are returned as the model
gives them. They are NOT of unit length (GeoCLIP over CONUS: 0.19 to 0.41), so scale them downstream.

Everything is computed on the CPU in float64 and rounded to float32 once. The vector of a place must depend
neither on the machine nor on the other places of a batch. GeoCLIP's fastest Fourier features reach 700 turns
over CONUS. Float32 phases, as in its own code, would move a value (0.013 RMS) by up to 1.5e-5.
Only `shuffled` depends on the set of places: embed all places of a study at once.

Importing this package loads neither torch nor geoclip; planning a study needs fingerprints only.

Other packages register encoders as entry points; `pm25/encoders/README.md` shows how.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pm25.encoders.base import ENCODERS, Encoder, Source, checked_places, label, source
from pm25.encoders.climplicit import Climplicit
from pm25.encoders.controls import Random, Shuffled
from pm25.encoders.geoclip import GeoCLIP
from pm25.encoders.retrieval import Range
from pm25.encoders.satclip import SatCLIP
from pm25.encoders.sinr import SINR
from pm25.encoders.table import Table
from pm25.encoders.torchspatial import TorchSpatial
from pm25.encoders.untrained import Untrained
from pm25.settings import trained_encoder

__all__ = [
    "Embedded",
    "Encoder",
    "Source",
    "Table",
    "checked_places",
    "embed",
    "fingerprint",
    "label",
    "load",
    "lookup_keys",
    "source",
]

BY_PLACE_ALONE = frozenset({"geoclip", "satclip", "sinr", "torchspatial", "range", "random"})
"""Encoders whose vector of a place depends on nothing else."""

ENCODERS.update(
    geoclip=GeoCLIP,
    satclip=SatCLIP,
    sinr=SINR,
    climplicit=Climplicit,
    torchspatial=TorchSpatial,
    range=Range,
    table=Table,
    random=Random,
    shuffled=Shuffled,
    untrained=Untrained,
)


def load(name: str, /, **options: Any) -> Encoder:
    """Load the frozen encoder `name`. Raises InputError for an unknown name or option, or bad weights."""
    # The fingerprint covers the very bytes that are loaded, even if the file is replaced meanwhile.
    return source(name, **options).encoder()


def fingerprint(name: str, /, **options: Any) -> str:
    """Return the fingerprint of `load(name, **options)` from options and files alone, without torch.

    It covers every option that changes a number, defaults filled in, and the bytes of a file, not its path.
    """
    return source(name, **options).fingerprint


def lookup_keys(name: str, /, **options: Any) -> tuple[str, ...]:
    """Values on which a vector depends besides the place: 'month', 'site_id', both or none."""
    by_place = trained_encoder(name) in BY_PLACE_ALONE
    return () if by_place else getattr(load(name, **options), "lookup_keys", ())


class Embedded(NamedTuple):
    """Vectors of all places of a study, computed once for all cells of an encoder."""

    vectors: np.ndarray
    """(sites, d), or (sites, 12, d) by month."""
    fingerprint: str
    trained_on_target: bool


def embed(
    name: str, options: dict[str, Any], lat: np.ndarray, lon: np.ndarray, site_id: np.ndarray
) -> Embedded:
    """Embed places with the encoder that `load(name, **options)` returns."""
    encoder = load(name, **options)
    return Embedded(encoder.embed(lat, lon, site_id), encoder.fingerprint, encoder.trained_on_target)
