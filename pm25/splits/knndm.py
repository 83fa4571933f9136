"""Folds whose test sites are as far from training as the places of a prediction domain (kNNDM).

It is k-fold nearest-neighbour distance matching, by Linnenbrink, Mila, Ludwig and Meyer (2024). The paper is
Geoscientific Model Development 17, 5897-5912, https://doi.org/10.5194/gmd-17-5897-2024. The rules are those
of their R package CAST 1.1. Distances are great-circle distances, and three distributions of them matter:

- from a place of the prediction domain to the nearest site;
- from a site to the nearest other site;
- from a site to the nearest site of another fold.

The folds are chosen so that the third is like the first. W, the Wasserstein distance of the two in km, is the
area between their cumulative curves.
"""

import functools
from dataclasses import dataclass

import numpy as np

from pm25.errors import InputError
from pm25.geo import great_circle_km, nearest_km
from pm25.limits import MOST_MATCHED_SITES

CONFIGURATIONS = 100
"""Numbers of clusters that are tried, from the number of folds to that of the sites less two."""

LEVEL = 0.05
"""Level of the test that finds the sites more clustered than the domain, without which folds are random."""

_EXACT = 10_000
"""Product of the sample sizes below which the p of the test is exact, as in R."""


@dataclass(frozen=True, eq=False)
class MatchedFolds:
    """Folds of sites, and how well their distances match those of the prediction domain."""

    fold: np.ndarray
    """Fold of each site, counted from 0; (sites,)."""
    clusters: int | None
    """Number of clusters that were merged into the folds; None if the folds are random."""
    w_km: float
    """Wasserstein distance between the distances to other folds and those of the domain."""
    w_random_km: float
    """The same for random folds of equal size, which are those of kind `spatial` with the same seed."""
    p: float
    """p of the Kolmogorov-Smirnov test that sites are no nearer to each other than the domain is to them."""


def matched_folds(
    lat: np.ndarray,
    lon: np.ndarray,
    domain: np.ndarray,
    *,
    folds: int,
    max_share: float,
    seed: int,
    where: str = "knndm",
) -> MatchedFolds:
    """Divide sites (n,) in degrees into folds for the prediction domain (m, 2) of latitudes and longitudes.

    No fold has more than `max_share` of the sites, or one site more in random folds. `where` names the split
    in an error. The result depends on the arguments alone, and the last few are kept.

    Raises InputError if there are too few or too many sites, or no division keeps to `max_share`.
    """
    lat, lon, domain = (np.ascontiguousarray(values, np.float64) for values in (lat, lon, domain))
    if not folds + 2 <= len(lat) <= MOST_MATCHED_SITES:
        fix = "give fewer folds, or a table with more sites"
        if len(lat) > MOST_MATCHED_SITES:
            fix = "use kind blocks or spatial, which compare no pairs of sites"
        needed = f"{folds + 2} to {MOST_MATCHED_SITES:,} are needed for {folds} folds"
        raise InputError(where, "sites", f"{len(lat):,} sites, and {needed}", fix)
    found = _kept(lat.tobytes(), lon.tobytes(), domain.tobytes(), folds, max_share, seed)
    if found is None:
        problem = f"every division of {len(lat)} sites has a fold with more than {max_share:g} of them"
        raise InputError(where, "max_share", problem, "give a larger max_share, or other folds")
    return found


@functools.lru_cache(maxsize=16)
def _kept(
    lat: bytes, lon: bytes, domain: bytes, folds: int, max_share: float, seed: int
) -> MatchedFolds | None:
    places = np.stack([np.frombuffer(lat), np.frombuffer(lon)], axis=1)
    prediction = np.frombuffer(domain).reshape(-1, 2)
    return match(
        great_circle_km(places[:, None, 0], places[:, None, 1], places[:, 0], places[:, 1]),
        nearest_km(*prediction.T, *places.T),
        places,
        folds=folds,
        max_share=max_share,
        random=random_folds(len(places), folds, seed),
    )


def random_folds(n: int, folds: int, seed: int) -> np.ndarray:
    """Deal n sites to folds at random, as kind `spatial` does; (n,)."""
    fold = np.empty(n, np.int64)
    for number, sites in enumerate(np.array_split(np.random.default_rng(seed).permutation(n), folds)):
        fold[sites] = number
    return fold


def match(
    distance: np.ndarray,
    to_domain: np.ndarray,
    places: np.ndarray,
    *,
    folds: int,
    max_share: float,
    random: np.ndarray,
) -> MatchedFolds | None:
    """Choose the folds with the lowest W; None if every division has a fold above `max_share`.

    `distance` (n, n) is between sites, and `to_domain` (m,) from places of the domain to the nearest site.
    `places` (n, 2) are coordinates, whose first principal component orders clusters. The folds `random` (n,)
    are kept if sites are no nearer to each other than the domain is to them. They are also kept if no other
    folds have a lower W, which is an addition to the rule of CAST.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform
    from scipy.stats import ks_2samp, wasserstein_distance

    n = len(distance)

    def w(fold: np.ndarray) -> float:
        return float(wasserstein_distance(to_other_folds(distance, fold), to_domain))

    method = "exact" if n * len(to_domain) < _EXACT else "asymp"
    to_others = to_other_folds(distance, np.arange(n))
    p = float(ks_2samp(to_others, to_domain, alternative="greater", method=method).pvalue)
    best = MatchedFolds(random, None, w(random), w(random), p)
    if p >= LEVEL:
        return best
    tree = linkage(squareform(distance, checks=False), "ward")  # Ward's criterion on distances, R's ward.D2
    numbers = np.unique(np.geomspace(folds, n - 2, CONFIGURATIONS).round().astype(int))
    position = _first_component(places)
    valid = np.bincount(random, minlength=folds).max() <= max_share * n
    lowest = best.w_km if valid else np.inf
    for number, cluster in zip(numbers.tolist(), cut_tree(tree, numbers).T, strict=True):
        fold = merged(cluster, position, folds)
        if np.bincount(fold).max() > max_share * n:
            continue
        own = w(fold)
        if own < lowest:
            valid, lowest = True, own
            best = MatchedFolds(fold, number, own, best.w_random_km, p)
    return best if valid else None


def to_other_folds(distance: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Distance from each site to the nearest site of another fold; (n,)."""
    return np.asarray(np.where(fold[:, None] == fold, np.inf, distance).min(axis=1))


def merged(cluster: np.ndarray, position: np.ndarray, folds: int) -> np.ndarray:
    """Merge clusters of sites (n,) into folds.

    Clusters are ordered by the mean `position` (n,) of their sites. One with a share of 1 / `folds` or more
    is a fold of its own. The others are dealt to the remaining folds in turn.
    """
    size = np.bincount(cluster)
    order = np.argsort(np.bincount(cluster, position) / size, kind="stable")
    large = size[order] * folds >= len(cluster)
    of_cluster = np.empty(len(size), np.int64)
    of_cluster[order[large]] = np.arange(large.sum())
    small = order[~large]
    if len(small):
        of_cluster[small] = large.sum() + np.arange(len(small)) % (folds - large.sum())
    return np.asarray(of_cluster[cluster])


def _first_component(places: np.ndarray) -> np.ndarray:
    """Position of each place (n, 2) along the first principal component, which grows with longitude."""
    centred = places - places.mean(axis=0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    first = components[0]
    return np.asarray(centred @ (first if first[np.abs(first).argmax()] > 0 else -first))
