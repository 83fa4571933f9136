"""kNNDM folds: the published numbers of CAST, a dozen sites by hand, and properties over random sites."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.geo import great_circle_km, nearest_km
from pm25.limits import MOST_MATCHED_SITES
from pm25.panel import Panel
from pm25.splits import KNNDMSplit, SpatialSplit, cut, matched
from pm25.splits.knndm import match, matched_folds, merged, random_folds, to_other_folds
from tests import worlds
from tests.errors import refuses

WINDOW = 3

CAST_SITES = np.array([(1, 1), (1, 2), (2, 2), (2, 3), (1, 4), (5, 4)], float)
"""Sites (x, y) of tests/testthat/test-knndm.R of CAST, in the square from 0 to 10."""

S2_EARTH_KM = 6371.01
"""Radius of the Earth in the library S2, with which CAST's distances were computed."""


def r_uniform(seed: int, n: int) -> np.ndarray:
    """R's `set.seed(seed); runif(n)`: the Mersenne Twister, seeded by a linear congruential generator."""
    words = np.empty(675, np.uint32)
    for i in range(675):
        seed = (69069 * seed + 1) % 2**32
        words[i] = seed
    state = np.random.RandomState()
    state.set_state(("MT19937", words[51:], 624))
    return state.randint(0, 2**32, n, dtype=np.uint32) * 2.3283064365386963e-10


def regular(size: int) -> np.ndarray:
    """Points (x, y) of `set.seed(1); sf::st_sample(square, size, type = "regular")`."""
    step = np.sqrt(100 / size)
    x, y = (start % step + step * np.arange(100) for start in 10 * r_uniform(1, 2))
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return points[(points <= 10).all(axis=1)]


def planar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(a[:, None] - b, axis=2))


def test_r_uniform_is_that_of_r() -> None:
    assert r_uniform(1, 4).round(7).tolist() == [0.2655087, 0.3721239, 0.5728534, 0.9082078]


@pytest.mark.parametrize(("size", "places", "w"), [(20, 20, 1.091896), (1000, 992, 1.200384)])
def test_the_published_w_of_cast_in_the_plane(size: int, places: int, w: float) -> None:
    # "works without crs and prediction points" 1.091896, "works with modeldomain and no crs" 1.2004.
    domain = regular(size)
    assert len(domain) == places
    own, to_domain = planar(CAST_SITES, CAST_SITES), planar(domain, CAST_SITES).min(axis=1)
    random = random_folds(6, 2, 0)
    found = match(own, to_domain, CAST_SITES, folds=2, max_share=0.8, random=random)
    assert found is not None
    assert found.clusters == 3
    assert found.w_km == pytest.approx(w, abs=5e-7)
    assert found.fold.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("size", "w_m"), [(20, 121095.2), (1000, 133187.4275)])
def test_the_published_w_of_cast_on_the_globe(size: int, w_m: float) -> None:
    # "works with geographical coordinates and prediction points", and "... modeldomain and geographical ...".
    lon, lat = CAST_SITES.T
    domain = regular(size)[:, ::-1]
    found = matched_folds(lat, lon, domain, folds=2, max_share=0.8, seed=0)
    assert found.clusters == 3
    digits = len(str(w_m).partition(".")[2])
    assert round(found.w_km * 1000 * S2_EARTH_KM / 6371.0088, digits) == w_m


def test_cast_keeps_random_folds_where_no_clustering_is_present() -> None:
    sites = 10 * r_uniform(1, 20).reshape(2, 10).T  # "works when no clustering is present"
    to_domain = planar(regular(20), sites).min(axis=1)
    random = random_folds(10, 2, 0)
    found = match(planar(sites, sites), to_domain, sites, folds=2, max_share=0.8, random=random)
    assert found is not None
    assert found.clusters is None
    assert found.fold.tolist() == random.tolist()
    assert found.w_km == found.w_random_km


TOWNS = np.concatenate([np.arange(4.0), 100 + np.arange(4.0), 200 + np.arange(4.0)])
"""Twelve sites on a line, in three towns."""


def test_a_dozen_sites_by_hand() -> None:
    distance, places = np.abs(TOWNS[:, None] - TOWNS), np.stack([0 * TOWNS, TOWNS], axis=1)
    # To the nearest site of another town: 100 99 98 97, 97 98 98 97 and 97 98 99 100.
    far = np.repeat([97.0, 98, 99, 100], [4, 4, 2, 2])
    random = np.arange(12) % 3  # the nearest site of another fold is the next one
    found = match(distance, far, places, folds=3, max_share=0.5, random=random)
    assert found is not None
    assert found.clusters == 3
    assert found.fold.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.w_km == 0
    assert found.w_random_km == pytest.approx((4 * 97 + 4 * 98 + 2 * 99 + 2 * 100) / 12 - 1)
    # The domain is as near to the sites as they are to each other.
    near = match(distance, np.ones(12), places, folds=3, max_share=0.5, random=random)
    assert near is not None
    assert (near.clusters, near.w_km, near.p) == (None, 0, 1)
    # With two folds, one of them has two of the three towns: two thirds of the sites.
    assert match(distance, far, places, folds=2, max_share=0.99, random=random % 2) is not None
    two = match(distance, far, places, folds=2, max_share=0.55, random=random % 2)
    assert two is not None
    assert np.bincount(two.fold).max() <= 6


def test_large_clusters_are_folds_of_their_own() -> None:
    # Clusters 0 to 4 have 1, 6, 1, 2 and 2 sites of 12, and are ordered 3, 0, 1, 4, 2.
    cluster = np.array([0, 1, 1, 1, 1, 1, 1, 2, 3, 3, 4, 4])
    position = np.array([2.0, 3, 3, 3, 3, 3, 3, 9, 1, 1, 4, 4])
    # Cluster 1 has 1/3 or more. The others are dealt to the folds 1 and 2 in turn: 3, 0, 4, 2.
    assert merged(cluster, position, 3).tolist() == [2, 0, 0, 0, 0, 0, 0, 2, 1, 1, 1, 1]
    assert merged(np.arange(4), np.arange(4.0)[::-1], 4).tolist() == [3, 2, 1, 0]


def towns(seed: int, sites: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Sites around a few towns in CONUS; `spread` in degrees."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform([30, -118], [46, -80], (6, 2))[rng.integers(0, 6, sites)]
    lat, lon = (centre + rng.normal(size=(sites, 2)) * spread).T
    return lat, lon


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(20, 120), st.integers(2, 10), st.floats(0.05, 8), st.floats(0.55, 0.9)
)
def test_properties(seed: int, sites: int, folds: int, spread: float, max_share: float) -> None:
    lat, lon = towns(seed, sites, spread)
    domain = np.random.default_rng(seed).uniform([28, -120], [48, -75], (200, 2))
    found = matched_folds(lat, lon, domain, folds=folds, max_share=max_share, seed=seed)
    size = np.bincount(found.fold, minlength=folds)
    assert size.sum() == sites
    assert len(size) == folds
    assert size.min() > 0
    assert size.max() <= max_share * sites
    assert found.w_km <= found.w_random_km
    assert (found.clusters is None) or folds <= found.clusters <= sites - 2
    # W is the area between the two cumulative curves.
    distance = great_circle_km(lat[:, None], lon[:, None], lat, lon)
    to_domain = nearest_km(*domain.T, lat, lon)
    assert to_domain == pytest.approx(great_circle_km(*domain.T[:, :, None], lat, lon).min(axis=1))
    to_folds = to_other_folds(distance, found.fold)
    for i in range(0, sites, 7):
        assert to_folds[i] == distance[i, found.fold != found.fold[i]].min()
    ends = np.sort(np.concatenate([to_folds, to_domain]))
    share = [np.searchsorted(np.sort(v), ends[:-1], side="right") / len(v) for v in (to_folds, to_domain)]
    assert found.w_km == pytest.approx(float((np.abs(share[0] - share[1]) * np.diff(ends)).sum()))
    # The same arguments give the same folds, also in another process, which has kept nothing.
    again = matched_folds(lat + 0, lon + 0, domain, folds=folds, max_share=max_share, seed=seed)
    assert again.fold.tolist() == found.fold.tolist()


def clustered(domain: np.ndarray | None = None) -> Panel:
    lat, lon = towns(5, 60, 0.3)
    rng = np.random.default_rng(0)
    target = rng.gamma(2, 4, (60, 10))
    target[7] = np.nan  # a site without samples is in no fold
    return replace(worlds.panel(rng.normal(size=(60, 10, 1)), target, lat, lon), domain=domain)


def test_the_cut_of_clustered_monitors() -> None:
    panel, split = clustered(), KNNDMSplit(folds=4)
    tested = [np.unique(cut(split, fold, panel, WINDOW).test // 10) for fold in range(4)]
    assert sorted(np.concatenate(tested).tolist()) == [i for i in range(60) if i != 7]
    sites = np.sort(np.concatenate(tested))
    found = matched(split, panel, sites)
    assert found.clusters is not None
    assert found.w_km < 0.5 * found.w_random_km
    for fold in range(4):
        indices = cut(split, fold, panel, WINDOW)
        parts = [np.unique(flat // 10) for flat in (indices.train, indices.validation, indices.test)]
        assert sorted(np.concatenate(parts).tolist()) == sites.tolist()
        assert indices.wr is None
        assert len(parts[1]) == round(0.1 * (59 - len(parts[2])))
    apart = cut(KNNDMSplit(folds=4, buffer_km=30), 1, panel, WINDOW)
    test, near = (np.unique(flat // 10) for flat in (apart.test, apart.train))
    assert test.tolist() == tested[1].tolist()
    lat, lon = panel.lat, panel.lon
    assert nearest_km(lat[near], lon[near], lat[test], lon[test]).min() >= 30


def test_folds_follow_the_domain() -> None:
    # Where the map ends at the monitors, folds are random: those of a spatial split with the same seed.
    panel = clustered()
    at_monitors = clustered(np.stack([panel.lat, panel.lon], axis=1) + 1e-3)
    for fold in range(3):
        own = cut(KNNDMSplit(folds=3, seed=4), fold, at_monitors, WINDOW)
        other = cut(SpatialSplit(folds=3, seed=4), fold, at_monitors, WINDOW)
        assert own.test.tolist() == other.test.tolist()
        assert own.train.tolist() == other.train.tolist()
    assert cut(KNNDMSplit(folds=3), 0, panel, WINDOW).test.tolist() != own.test.tolist()


def test_bad_input() -> None:
    lat, lon = towns(0, 11, 1.0)
    domain = np.array([[40.0, -100.0]])
    with refuses("toy", "sites", "11 sites", "12 to"):
        matched_folds(lat, lon, domain, folds=10, max_share=0.5, seed=0, where="toy")
    many = np.zeros(MOST_MATCHED_SITES + 1)
    with refuses("toy", "sites", "blocks"):
        matched_folds(many, many, domain, folds=10, max_share=0.5, seed=0, where="toy")
    with refuses("toy", "max_share", 0.3):
        matched_folds(
            np.array([40, 40, 40, 40, 45.0, 45]),
            np.array([-90.0, -90, -90, -90, -100, -100]),
            np.array([[30.0, -80], [48, -120]]),
            folds=4,
            max_share=0.3,
            seed=0,
            where="toy",
        )
