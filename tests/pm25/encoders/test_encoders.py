"""`load` and `fingerprint` name wrong requests, and neither imports torch before a vector is asked for."""

import importlib.util
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import encoders
from tests.errors import refuses


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_no_fingerprint_needs_torch(tmp_path):
    checkpoint, table = tmp_path / "any.ckpt", tmp_path / "t.parquet"
    checkpoint.write_bytes(b"weights")
    pd.DataFrame({"lat": [1.0], "lon": [2.0], "a": [3.0]}).to_parquet(table)
    loaded = run(
        "import sys; from pm25.encoders import fingerprint as f;"
        f"f('satclip', checkpoint={str(checkpoint)!r}); f('table', path={str(table)!r}); f('random');"
        "f('shuffled'); f('shuffled', of='random');"
        f"c = {str(checkpoint)!r}; f('sinr', checkpoint=c); f('torchspatial', checkpoint=c);"
        "f('climplicit', checkpoint=c); f('range', checkpoint=c, database=c);"
        "print([m for m in ('torch', 'geoclip', 'scipy') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_fingerprint_needs_no_torch_and_embedding_no_image_tower():
    loaded = run(
        "import sys; from pm25 import encoders; encoders.fingerprint('geoclip');"
        "before = [m for m in ('torch', 'geoclip') if m in sys.modules];"
        "encoders.load('geoclip').embed([40.0], [-100.0]);"
        "after = [m for m in ('torch', 'geoclip', 'torchvision', 'transformers') if m in sys.modules];"
        "print(before, after)"
    )
    assert loaded.strip() == "[] ['torch']"


@pytest.mark.parametrize(
    ("lat", "lon", "field", "values"),
    [
        ([0.0, 95.0], [0.0, 0.0], "lat", (95, "position 1", "-90..90")),
        ([-115.4683], [32.6245], "lat", (-115.468, "position 0", "swapped")),
        ([32.6], [244.5], "lon", (244.5, "position 0", "-180..180", 360)),
        ([np.nan], [0.0], "lat", ("nan", "position 0")),
        ([0.0], [np.inf], "lon", ("inf", "position 0")),
        ([0.0, 1.0], [0.0], "lat, lon", ((2,), (1,))),
    ],
)
def test_impossible_places_are_refused(lat: Any, lon: Any, field: str, values: tuple[object, ...]) -> None:
    with refuses("places", field, *values):
        encoders.load("random").embed(lat, lon)


def test_bad_requests_are_refused(monkeypatch):
    with refuses("encoder", "", "geoclap", "geoclip", "shuffled"):
        encoders.load("geoclap")
    with refuses("encoder geoclip", "checkpoint"):
        encoders.fingerprint("geoclip", checkpoint="x")
    with refuses("encoder table", "path", "path="):
        encoders.load("table")
    with refuses("encoder random", "size", "dim, seed"):
        encoders.load("random", size=3)
    with refuses("encoder random", "dim", 0, 1):
        encoders.load("random", dim=0)
    with refuses("encoder random", "seed", -1, 0):
        encoders.load("random", seed=-1)
    with refuses("encoder random", "size"):
        encoders.load("shuffled", of="random", size=3)
    with refuses("encoder shuffled", "of", "shuffled"):
        encoders.load("shuffled", of="shuffled")
    with refuses("encoder", "", "nope"):
        encoders.fingerprint("shuffled", of="nope")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refuses("encoder geoclip", "", "pip install geoclip"):
        encoders.load("geoclip")
