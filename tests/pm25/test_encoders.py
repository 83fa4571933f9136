"""Frozen location encoders give the published vectors, latitude first, and cost no import before that."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pm25 import encoders
from pm25.errors import InputError

FIXTURE = Path(__file__).parents[2].parent / "shared" / "fixtures" / "geoclip_mexicali.csv"


@pytest.fixture(scope="module")
def geoclip() -> encoders.Encoder:
    return encoders.load("geoclip")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not FIXTURE.exists(), reason=f"no shared fixture {FIXTURE.name}")
def test_geoclip_agrees_with_the_published_code_in_all_512_values(geoclip):
    vector = geoclip.embed([32.6245], [-115.4683])[0]
    np.testing.assert_allclose(vector, np.loadtxt(FIXTURE, delimiter=","), rtol=0, atol=5e-6)


def test_geoclip_gives_the_published_vector_of_mexicali(geoclip):
    # The first four values and the length that geoclip 1.3.0 itself gives.
    vector = geoclip.embed([32.6245], [-115.4683])[0]
    published = [0.0190644953, 0.0123624261, 8.20900314e-05, -0.0246308595]
    np.testing.assert_allclose(vector[:4], published, rtol=0, atol=5e-6)
    assert np.linalg.norm(vector) == pytest.approx(0.29409, abs=1e-5)  # not of unit length


def test_equal_earth_of_known_points():
    import torch

    # Savric et al. 2018: half the equator is 2 pi / (sqrt(3) A1) long, the pole line lies at 1.3173627.
    points = torch.tensor([[0.0, 0.0], [0.0, 180.0], [90.0, 0.0], [-90.0, 0.0]], dtype=torch.float64)
    x, y = encoders._equal_earth(points).T
    equator = 2 * np.pi / np.sqrt(3) / 1.340264
    np.testing.assert_allclose(x, [0, equator, 0, 0], atol=1e-12)
    np.testing.assert_allclose(y, [0, 0, 1.3173627591574, -1.3173627591574], atol=1e-12)


def test_latitude_comes_first(geoclip):
    # Both orders are places on the globe here, so only the order can tell them apart.
    vector, swapped = geoclip.embed([45.0, 80.0], [80.0, 45.0])
    # The published code at (lat, lon) = (45, 80) and (80, 45), in float32.
    np.testing.assert_allclose(vector[:3], [0.01285203, 0.00768513, 0.00687621], rtol=0, atol=5e-6)
    np.testing.assert_allclose(swapped[:3], [0.02034693, -0.01399420, 0.00714316], rtol=0, atol=5e-6)


def test_a_vector_depends_on_its_place_only_and_comes_in_the_order_asked_for(geoclip):
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-90, 90, 40), rng.uniform(-180, 180, 40)
    together = geoclip.embed(lat, lon)
    assert together.shape == (40, geoclip.dim)
    assert together.dtype == np.float32
    again = geoclip.embed(np.tile(lat, 60), np.tile(lon, 60))  # 2400 samples, more than a chunk, 40 places
    np.testing.assert_array_equal(again, np.tile(together, (60, 1)))
    alone = np.concatenate([geoclip.embed(lat[i : i + 1], lon[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together[:5], alone, rtol=0, atol=1e-8)


def test_chunks_join_seamlessly(geoclip, monkeypatch):
    lat, lon = np.linspace(25, 49, 11), np.linspace(-124, -67, 11)
    whole = geoclip.embed(lat, lon)
    monkeypatch.setattr(encoders, "CHUNK", 4)
    np.testing.assert_allclose(geoclip.embed(lat, lon), whole, rtol=0, atol=1e-8)


def test_no_places_give_no_vectors(geoclip):
    assert geoclip.embed([], []).shape == (0, 512)


def test_fingerprint_follows_weights_and_code_version(geoclip, monkeypatch, tmp_path):
    assert encoders.fingerprint("geoclip") == geoclip.fingerprint
    assert len(geoclip.fingerprint) == 64
    monkeypatch.setattr(encoders, "CODE_VERSION", encoders.CODE_VERSION + 1)
    assert encoders.fingerprint("geoclip") != geoclip.fingerprint
    monkeypatch.undo()
    other = tmp_path / "weights.pth"
    other.write_bytes(encoders.GeoCLIP.weights_file().read_bytes() + b"\0")
    monkeypatch.setattr(encoders.GeoCLIP, "weights_file", staticmethod(lambda: other))
    assert encoders.fingerprint("geoclip") != geoclip.fingerprint


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
    ("lat", "lon", "message"),
    [
        ([0.0, 95.0], [0.0, 0.0], "lat 95 at position 1 is not in -90..90"),
        ([-115.4683], [32.6245], "lat -115.468 at position 0 is not in -90..90; are lat and lon swapped"),
        ([32.6], [244.5], "lon 244.5 at position 0 is not in -180..180; subtract 360"),
        ([np.nan], [0.0], "lat nan at position 0"),
        ([0.0], [np.inf], "lon inf at position 0"),
        ([0.0, 1.0], [0.0], "two 1-D arrays of the same length"),
    ],
)
def test_impossible_places_are_named(geoclip, lat, lon, message):
    with pytest.raises(InputError, match=message):
        geoclip.embed(lat, lon)


def test_bad_requests_are_named(monkeypatch):
    with pytest.raises(InputError, match="unknown name 'geoclap'; known: geoclip"):
        encoders.load("geoclap")
    with pytest.raises(InputError, match="encoder geoclip: unknown option checkpoint"):
        encoders.fingerprint("geoclip", checkpoint="x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install geoclip"):
        encoders.load("geoclip")
