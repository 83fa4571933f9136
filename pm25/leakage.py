"""Leakage audit: measures, on the samples themselves, what training shares with the test set."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pm25.errors import InputError
from pm25.geo import distance_text, great_circle_km, place_codes
from pm25.panel import Panel
from pm25.splits import (
    AnySplit,
    PeriodSplit,
    RandomSplit,
    RegionSplit,
    SplitIndices,
    nearest_site_km,
    regions,
)
from pm25.tables.sites import ONE_PER_PLACE
from pm25.text import counted


def audit(
    split: AnySplit,
    indices: SplitIndices,
    panel: Panel,
    window: int,
    *,
    fold: int,
    fitted: Mapping[str, np.ndarray],
    encoder_trained_on_target: bool,
) -> dict[str, Any]:
    """Measure what training shares with the test set, and compare it with what the split promises.

    `indices` are those of `fold`. `fitted` holds the samples (flat indices) on which something was fitted, by
    name. The result has JSON values. Held-out samples are those of the test set and of the within-region test
    set. For every split:

    - `train_sites`, `test_sites`: numbers of sites;
    - `shared_samples`: samples in more than one set;
    - `shared_sites`: test sites that are training sites;
    - `shared_places`: test sites at the place of a training site (`pm25.geo.place_codes`), and within-region
      test sites at the place of another site that trains;
    - `shared_sites_validation`: validation sites that are held out;
    - `overlapping_test_windows`: test samples that share an input day with a training sample of their site;
    - `duplicate_rows`: held-out samples with the features and targets of a training sample on all days;
    - `nearest_km_min`, `nearest_km_median`: distance from a test site to the nearest training site;
    - `encoder_trained_on_target`: the argument;
    - `fitted_<name>_test`: held-out samples in `fitted[name]`.

    For some splits only:

    - `shared_sites_within`: within-region test sites that are training sites;
    - `shared_regions`: regions of test sites that also contain other sites;
    - `buffer_km_min`: distance from a training or validation site to the nearest test site;
    - `gap_days`: days between the last training or validation day and the first test day.

    `failed` lists the values that break the split's promise. A random split promises that no sample is in
    two sets, and a split in time promises its gap. All others promise that no site is in two sets.
    """
    days = len(panel.dates)
    held_out = indices.test if indices.wr is None else np.concatenate([indices.test, indices.wr])
    train_sites, validation_sites, test_sites, held_out_sites = (
        np.unique(flat // days) for flat in (indices.train, indices.validation, indices.test, held_out)
    )
    times = np.bincount(np.concatenate([indices.train, indices.validation, held_out]))
    place = place_codes(panel.lat, panel.lon)
    placed = np.union1d(test_sites, np.setdiff1d(held_out_sites, train_sites))
    nearest = distance_to_training_km(indices, panel)[test_sites]
    content = _window_hashes(panel, window)
    found: dict[str, Any] = {
        "train_sites": len(train_sites),
        "test_sites": len(test_sites),
        "shared_samples": int((times > 1).sum()),
        "shared_sites": int(np.isin(test_sites, train_sites).sum()),
        "shared_places": int(np.isin(place[placed], place[train_sites]).sum()),
        "shared_sites_validation": int(np.isin(validation_sites, held_out_sites).sum()),
        "overlapping_test_windows": _overlapping_windows(indices, panel, window),
        "duplicate_rows": int(np.isin(content[held_out], content[indices.train]).sum()),
        "nearest_km_min": round(float(nearest.min()), 3),
        "nearest_km_median": round(float(np.median(nearest)), 3),
        "encoder_trained_on_target": bool(encoder_trained_on_target),
    }
    must_be_zero = {"shared_samples", "encoder_trained_on_target"}

    is_held_out = np.zeros(panel.target.size, bool)
    is_held_out[held_out] = True
    for name, flat in fitted.items():
        found[f"fitted_{name}_test"] = int(is_held_out[np.unique(flat)].sum())
        must_be_zero.add(f"fitted_{name}_test")

    promises = []
    if isinstance(split, PeriodSplit):
        seen = int((np.concatenate([indices.train, indices.validation]) % days).max())
        found["gap_days"] = int((indices.test % days).min()) - seen - 1
        promises.append(("gap_days", found["gap_days"] >= max(window - 1, split.gap_days or 0)))
        must_be_zero |= {"overlapping_test_windows", "duplicate_rows"}
    elif not isinstance(split, RandomSplit):
        must_be_zero |= {"shared_sites", "shared_places", "shared_sites_validation"}
        must_be_zero |= {"overlapping_test_windows", "duplicate_rows"}
        seen_sites = np.union1d(train_sites, validation_sites)
        if isinstance(split, RegionSplit):
            wr_sites = np.setdiff1d(held_out_sites, test_sites)
            found["shared_sites_within"] = int(np.isin(wr_sites, train_sites).sum())
            taking_part = np.flatnonzero(np.isfinite(panel.target[:, window - 1 :]).any(axis=1))
            region = np.full(len(panel.site_id), -1)
            region[taking_part] = regions(split, panel, taking_part, split.position(fold).repeat)
            others = np.union1d(seen_sites, wr_sites)
            found["shared_regions"] = len(np.intersect1d(region[test_sites], region[others]))
            must_be_zero |= {"shared_sites_within", "shared_regions"}
        if split.buffer_km is not None:
            closest = float(nearest_site_km(panel, seen_sites, test_sites).min())
            found["buffer_km_min"] = round(closest, 3)
            promises.append(("buffer_km_min", closest >= split.buffer_km))
    broken = [name for name in found if name in must_be_zero and found[name]]
    return found | {"failed": broken + [name for name, kept in promises if not kept]}


def refuse_shared_places(
    split: AnySplit, indices: SplitIndices, panel: Panel, *, fold: int, source: str
) -> None:
    """Raise InputError, which names `source`, if a held-out site is at the place of a training site.

    It is what `audit` counts as `shared_places` after a training. Splits by sample and by time hold out no
    site, so they are not refused.
    """
    if isinstance(split, RandomSplit | PeriodSplit):
        return
    held_out = indices.test if indices.wr is None else np.concatenate([indices.test, indices.wr])
    train_sites, held_out_sites = (np.unique(flat // len(panel.dates)) for flat in (indices.train, held_out))
    place = place_codes(panel.lat, panel.lon)
    shared = held_out_sites[np.isin(place[held_out_sites], place[train_sites])]
    if not len(shared):
        return
    tested = shared[0]
    trained = train_sites[place[train_sites] == place[tested]][0]
    km = great_circle_km(*(values[site] for site in (tested, trained) for values in (panel.lat, panel.lon)))
    raise InputError(
        source,
        "site_id",
        f"split {split.label} fold {fold} tests on {panel.site_id[tested]} and trains on "
        f"{panel.site_id[trained]}, {distance_text(float(km))} apart, which is one place; "
        f"{counted(len(shared), 'test site')} in all",
        ONE_PER_PLACE,
    )


def audit_or_failure(
    split: AnySplit,
    indices: SplitIndices,
    panel: Panel,
    window: int,
    *,
    fold: int,
    fitted: Mapping[str, np.ndarray],
    encoder_trained_on_target: bool,
) -> dict[str, Any]:
    """Run `audit`; an error in it is returned as a failed audit, so that it cannot end a training."""
    try:
        return audit(
            split,
            indices,
            panel,
            window,
            fold=fold,
            fitted=fitted,
            encoder_trained_on_target=encoder_trained_on_target,
        )
    except Exception as error:
        return {"failed": [f"audit: {type(error).__name__}: {error}"]}


def distance_to_training_km(indices: SplitIndices, panel: Panel) -> np.ndarray:
    """Great-circle distance (km) from each site of the panel to the nearest training site; (sites,).

    The distance of a training site is 0.
    """
    train_sites = np.unique(indices.train // len(panel.dates))
    return nearest_site_km(panel, np.arange(len(panel.site_id)), train_sites)


def _overlapping_windows(indices: SplitIndices, panel: Panel, window: int) -> int:
    """Count the test samples that share an input day with a training sample of the same site."""
    days = len(panel.dates)
    trained = np.zeros(panel.target.shape, bool)
    trained.reshape(-1)[indices.train] = True
    site, day = indices.test // days, indices.test % days
    # A training sample within window - 1 days at the same site shares input days with a test sample.
    total = np.pad(np.cumsum(trained, axis=1), ((0, 0), (1, 0)))
    near = total[site, np.minimum(day + window, days)] - total[site, np.maximum(day - window + 1, 0)]
    return int((near > 0).sum())


def _window_hashes(panel: Panel, window: int) -> np.ndarray:
    """Hash the window of every sample; (sites * days,) uint64.

    Two hashes are equal if features and targets are equal on all days of the window. The targets of all
    days are compared, because a single target is rounded to 0.1 ug/m3. Two sites with the weather of one
    station would often agree on it by chance.
    """
    row = np.zeros(panel.target.shape, np.uint64)
    for values in (*np.moveaxis(panel.features, 2, 0), panel.target):
        # One bit pattern for every NaN, and the same one for both zeros.
        bits = np.where(np.isnan(values), np.float32("nan"), values + 0).astype(np.float32).view(np.uint32)
        row ^= bits
        row *= np.uint64(0x9E3779B97F4A7C15)  # odd multipliers, as in splitmix64 and PCG
        row ^= row >> np.uint64(29)
    combined = row.copy()
    for back in range(1, window):
        combined[:, back:] += row[:, :-back] * np.uint64(pow(6364136223846793005, back, 2**64))
    return combined.reshape(-1)
