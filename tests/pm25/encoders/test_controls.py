"""Control encoders: random vectors know no geography, and shuffled vectors are real ones at other places."""

import time

import numpy as np
import pandas as pd
import pytest

from pm25 import encoders
from tests.errors import refuses


def test_a_random_vector_depends_on_its_place_and_seed_only():
    rng = np.random.default_rng(1)
    lat, lon = rng.uniform(25, 49, 50), rng.uniform(-124, -67, 50)
    encoder = encoders.load("random", dim=16, seed=3)
    together = encoder.embed(lat, lon)
    assert (together.shape, together.dtype, encoder.dim) == ((50, 16), np.float32, 16)
    alone = np.concatenate([encoder.embed(lat[i : i + 1], lon[i : i + 1]) for i in range(50)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(encoder.embed(lat[::-1], lon[::-1]), together[::-1])
    np.testing.assert_array_equal(encoder.embed(lat.round(6), lon.round(6)), together)
    assert not np.isin(encoder.embed(lat + 2e-6, lon), together).any()
    assert not np.isin(encoders.load("random", dim=16, seed=4).embed(lat, lon), together).any()
    assert not np.isin(encoder.embed([40.0], [30.0]), encoder.embed([30.0], [40.0])).any()


def test_random_vectors_are_the_same_bytes_on_every_machine():
    vector = encoders.load("random", dim=4).embed([40.0], [-100.0])[0]
    np.testing.assert_allclose(vector, [0.004652301, 0.176681921, -0.240544736, -0.024438851], rtol=1e-6)


def test_random_vectors_have_the_length_of_geoclips():
    lat, lon = (grid.ravel() for grid in np.meshgrid(np.linspace(26, 48, 20), np.linspace(-122, -70, 20)))
    ours = encoders.load("random").embed(lat, lon)
    theirs = np.linalg.norm(encoders.load("geoclip").embed(lat, lon), axis=1)
    assert np.linalg.norm(ours, axis=1).mean() == pytest.approx(0.25, rel=0.01)
    assert np.linalg.norm(ours, axis=1).mean() == pytest.approx(theirs.mean(), rel=0.2)
    assert np.linalg.norm(encoders.load("random", dim=64).embed(lat, lon), axis=1).mean() == pytest.approx(
        0.25, rel=0.02
    )
    assert abs(np.corrcoef(ours[:, 0], lat)[0, 1]) < 0.15  # no geography: 3 standard errors of 400


def test_random_vectors_of_all_monitors_take_less_than_a_second():
    rng = np.random.default_rng(1)
    started = time.perf_counter()
    encoders.load("random").embed(rng.uniform(25, 49, 1414), rng.uniform(-124, -67, 1414))
    assert time.perf_counter() - started < 1


def rows(vectors: np.ndarray) -> list[bytes]:
    return sorted(vector.tobytes() for vector in vectors)


@pytest.mark.parametrize("of", ["geoclip", "random"])
def test_shuffled_vectors_are_the_same_vectors_at_other_places(of):
    rng = np.random.default_rng(2)
    lat, lon = rng.uniform(25, 49, 40), rng.uniform(-124, -67, 40)
    own = encoders.load(of).embed(lat, lon)
    encoder = encoders.load("shuffled", of=of, seed=5)
    shuffled = encoder.embed(lat, lon)
    assert encoder.dim == own.shape[1]
    assert rows(shuffled) == rows(own)
    assert not (shuffled == own).all(axis=1).any()
    np.testing.assert_array_equal(encoders.load("shuffled", of=of, seed=5).embed(lat, lon), shuffled)
    assert (encoders.load("shuffled", of=of, seed=6).embed(lat, lon) != shuffled).any()
    # Rows in another order, and places that repeat, change nothing.
    again = rng.integers(0, 40, 200)
    again[:40] = np.arange(40)[::-1]
    np.testing.assert_array_equal(encoder.embed(lat[again], lon[again]), shuffled[again])


def test_shuffling_one_place_or_none_leaves_it():
    encoder = encoders.load("shuffled", of="random", dim=3)
    own = encoders.load("random", dim=3).embed([40.0], [-100.0])
    np.testing.assert_array_equal(encoder.embed([40.0], [-100.0]), own)
    assert encoder.embed([], []).shape == (0, 3)


def test_a_shuffled_table_permutes_sites_even_where_two_share_a_place(tmp_path):
    sites = {
        "site_id": ["a", "b", "c", "x"],
        "lat": [34.1, 33.8, 40.8, 34.1],
        "lon": [-118.2, -118.1, -73.9, -118.2],
    }
    frame = pd.DataFrame(sites).assign(v=[1.0, 2.0, 3.0, 4.0], w=[10, 20, 30, 10])
    path = tmp_path / "t.parquet"
    frame.merge(pd.DataFrame({"month": range(1, 13)}), how="cross").to_parquet(path)
    own = encoders.load("table", path=path).embed(frame.lat, frame.lon, frame.site_id)
    shuffled = encoders.load("shuffled", of="table", path=path).embed(frame.lat, frame.lon, frame.site_id)
    assert shuffled.shape == (4, 12, 2)
    assert rows(shuffled) == rows(own)
    assert not (shuffled == own).all(axis=(1, 2)).any()
    with refuses("encoder shuffled", "site_id"):
        encoders.load("shuffled", of="table", path=path).embed(frame.lat, frame.lon)


def test_fingerprints_of_controls_cover_their_options_with_defaults_filled_in():
    print_of = encoders.fingerprint
    assert print_of("random") == print_of("random", dim=512, seed=0) == encoders.load("random").fingerprint
    assert print_of("shuffled") == print_of("shuffled", of="geoclip", seed=0)
    different = {
        print_of("geoclip"),
        print_of("random"),
        print_of("random", dim=8),
        print_of("random", seed=1),
        print_of("shuffled"),
        print_of("shuffled", seed=1),
        print_of("shuffled", of="random"),
        print_of("shuffled", of="random", dim=8),
    }
    assert len(different) == 8
    assert encoders.load("shuffled", of="random", dim=8).fingerprint in different
