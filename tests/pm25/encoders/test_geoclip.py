"""GeoCLIP's encoder gives the published vectors, latitude first, and its fingerprint follows the weights."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pm25 import encoders
from pm25.encoders import base
from pm25.encoders.geoclip import GeoCLIP, equal_earth

FIXTURE = Path(__file__).parents[3].parent / "shared" / "fixtures" / "geoclip_mexicali.csv"


@pytest.fixture(scope="module")
def geoclip() -> encoders.Encoder:
    return encoders.load("geoclip")


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
    x, y = equal_earth(points).T
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
    monkeypatch.setattr(base, "CHUNK", 4)
    np.testing.assert_allclose(geoclip.embed(lat, lon), whole, rtol=0, atol=1e-8)


def test_no_places_give_no_vectors(geoclip):
    assert geoclip.embed([], []).shape == (0, 512)


def test_fingerprint_follows_weights_and_code_version(geoclip, monkeypatch, tmp_path):
    assert encoders.fingerprint("geoclip") == geoclip.fingerprint
    assert len(geoclip.fingerprint) == 64
    monkeypatch.setattr(base, "CODE_VERSION", base.CODE_VERSION + 1)
    assert encoders.fingerprint("geoclip") != geoclip.fingerprint
    monkeypatch.undo()
    other = tmp_path / "weights.pth"
    other.write_bytes(GeoCLIP.weights_file().read_bytes() + b"\0")
    monkeypatch.setattr(GeoCLIP, "weights_file", staticmethod(lambda: other))
    assert encoders.fingerprint("geoclip") != geoclip.fingerprint


def test_the_fingerprint_of_geoclip_is_what_it_was_before_there_were_others():
    weights = GeoCLIP.weights_file().read_bytes()
    assert encoders.fingerprint("geoclip") == hashlib.sha256(b"geoclip 1\n" + weights).hexdigest()
