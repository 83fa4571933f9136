"""What training could have known of the test set, measured from the cut itself."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pm25.panel import Panel
from pm25.splits import (
    AnySplit,
    RandomSplit,
    RegionSplit,
    SplitIndices,
    TemporalSplit,
    nearest_site_km,
    regions,
)

PLACE_DEGREES = 1e-4
"""Coordinates that round to the same multiple are one place: about 10 m."""


def audit(
    split: AnySplit,
    parts: SplitIndices,
    panel: Panel,
    window: int,
    *,
    fitted: Mapping[str, np.ndarray],
    encoder_trained_on_target: bool,
) -> dict[str, Any]:
    """Measure what the parts share, and hold it against what the split promises; flat JSON values.

    Every split: `train_sites`, `test_sites`; `shared_samples` of two parts; `shared_sites` and
    `shared_places`, test sites that train or whose place does; `shared_sites_validation`, validation sites
    that are held out; `overlapping_test_windows`, test samples with an input day of a training sample's at
    the same site; `duplicate_rows`, held-out samples (test and within-region test) whose features and
    targets are, all the window long, those of a training sample; `nearest_km_min` and `nearest_km_median`,
    over test sites, to the nearest training site; `encoder_trained_on_target`. `fitted` names the flat
    samples that something was fitted on: `fitted_<name>_test` of them are held out.

    Only where they mean something: `shared_sites_within`, within-region test sites that train;
    `shared_regions`, regions of test sites that any other part holds too; `buffer_km_min`, from training
    and validation to test sites; `gap_days`, between the last day that trains or validates and the test.

    `failed` names the values that break the split's promise. A random split promises no sample twice, and
    a temporal one its gap; the others promise sites of one part only.
    """
    days = len(panel.dates)
    held_out = parts.test if parts.wr is None else np.concatenate([parts.test, parts.wr])
    train_sites, validation_sites, test_sites, held_out_sites = (
        np.unique(flat // days) for flat in (parts.train, parts.validation, parts.test, held_out)
    )
    times = np.bincount(np.concatenate([parts.train, parts.validation, held_out]))
    places = np.rint(np.stack([panel.lat, panel.lon]) / PLACE_DEGREES).astype(np.int64)
    place = places[0] * 10_000_000 + places[1]
    nearest = distance_to_training_km(parts, panel)[test_sites]
    content = _window_hashes(panel, window)
    found: dict[str, Any] = {
        "train_sites": len(train_sites),
        "test_sites": len(test_sites),
        "shared_samples": int((times > 1).sum()),
        "shared_sites": int(np.isin(test_sites, train_sites).sum()),
        "shared_places": int(np.isin(place[test_sites], place[train_sites]).sum()),
        "shared_sites_validation": int(np.isin(validation_sites, held_out_sites).sum()),
        "overlapping_test_windows": _overlapping_windows(parts, panel, window),
        "duplicate_rows": int(np.isin(content[held_out], content[parts.train]).sum()),
        "nearest_km_min": round(float(nearest.min()), 3),
        "nearest_km_median": round(float(np.median(nearest)), 3),
        "encoder_trained_on_target": bool(encoder_trained_on_target),
    }
    never = {"shared_samples", "encoder_trained_on_target"}

    is_held_out = np.zeros(panel.target.size, bool)
    is_held_out[held_out] = True
    for name, flat in fitted.items():
        found[f"fitted_{name}_test"] = int(is_held_out[np.unique(flat)].sum())
        never.add(f"fitted_{name}_test")

    kept = []
    if isinstance(split, TemporalSplit):
        seen = int((np.concatenate([parts.train, parts.validation]) % days).max())
        found["gap_days"] = int((parts.test % days).min()) - seen - 1
        kept.append(("gap_days", found["gap_days"] >= max(window - 1, split.gap_days or 0)))
        never |= {"overlapping_test_windows", "duplicate_rows"}
    elif not isinstance(split, RandomSplit):
        never |= {"shared_sites", "shared_places", "shared_sites_validation"}
        never |= {"overlapping_test_windows", "duplicate_rows"}
        seen_sites = np.union1d(train_sites, validation_sites)
        if isinstance(split, RegionSplit):
            within_sites = np.setdiff1d(held_out_sites, test_sites)
            found["shared_sites_within"] = int(np.isin(within_sites, train_sites).sum())
            taking_part = np.flatnonzero(np.isfinite(panel.target[:, window - 1 :]).any(axis=1))
            region = np.full(len(panel.site_id), -1)
            region[taking_part] = regions(split, panel, taking_part)
            others = np.union1d(seen_sites, within_sites)
            found["shared_regions"] = len(np.intersect1d(region[test_sites], region[others]))
            never |= {"shared_sites_within", "shared_regions"}
        if split.buffer_km is not None:
            closest = float(nearest_site_km(panel, seen_sites, test_sites).min())
            found["buffer_km_min"] = round(closest, 3)
            kept.append(("buffer_km_min", closest >= split.buffer_km))
    broken = [name for name in found if name in never and found[name]]
    return found | {"failed": broken + [name for name, keeps in kept if not keeps]}


def audited(
    split: AnySplit,
    parts: SplitIndices,
    panel: Panel,
    window: int,
    *,
    fitted: Mapping[str, np.ndarray],
    encoder_trained_on_target: bool,
) -> dict[str, Any]:
    """`audit`, where one that cannot be made counts as failed and ends no trial."""
    try:
        return audit(
            split,
            parts,
            panel,
            window,
            fitted=fitted,
            encoder_trained_on_target=encoder_trained_on_target,
        )
    except Exception as error:
        return {"failed": [f"audit: {type(error).__name__}: {error}"]}


def distance_to_training_km(parts: SplitIndices, panel: Panel) -> np.ndarray:
    """(sites,) great-circle km from each site of the panel to the nearest training site; 0 for these."""
    train_sites = np.unique(parts.train // len(panel.dates))
    return nearest_site_km(panel, np.arange(len(panel.site_id)), train_sites)


def _overlapping_windows(parts: SplitIndices, panel: Panel, window: int) -> int:
    days = len(panel.dates)
    trained = np.zeros(panel.target.shape, bool)
    trained.reshape(-1)[parts.train] = True
    site, day = parts.test // days, parts.test % days
    # A training sample within window - 1 days at the same site shares input days with a test sample.
    total = np.pad(np.cumsum(trained, axis=1), ((0, 0), (1, 0)))
    near = total[site, np.minimum(day + window, days)] - total[site, np.maximum(day - window + 1, 0)]
    return int((near > 0).sum())


def _window_hashes(panel: Panel, window: int) -> np.ndarray:
    """(sites * days,) uint64: equal for samples whose features and targets are equal on every window day.

    The targets of all the days, because the last one alone is rounded to 0.1 ug/m3: two sites with the
    weather of one station would often agree by chance.
    """
    row = np.zeros(panel.target.shape, np.uint64)
    for values in (*np.moveaxis(panel.features, 2, 0), panel.target):
        # One bit pattern for NaN, and none for negative zero.
        bits = np.where(np.isnan(values), np.float32("nan"), values + 0).astype(np.float32).view(np.uint32)
        row ^= bits
        row *= np.uint64(0x9E3779B97F4A7C15)  # odd multipliers, as in splitmix64 and PCG
        row ^= row >> np.uint64(29)
    whole = row.copy()
    for back in range(1, window):
        whole[:, back:] += row[:, :-back] * np.uint64(pow(6364136223846793005, back, 2**64))
    return whole.reshape(-1)
