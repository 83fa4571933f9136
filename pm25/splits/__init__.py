"""Splits of a panel's samples into training, validation and test sets.

`kinds` has the settings of every kind of split, `grids` the squares over CONUS, and `cutting` the sets.
`reserve` has the sites that only a search uses.
"""

from pm25.splits.cutting import SplitIndices, cut, matched, nearest_site_km, regions, shift, site_folds
from pm25.splits.grids import checkerboard, checkerboards, grid_origin
from pm25.splits.kinds import (
    HOLDOUT_PARTS,
    MOST_REPEATS,
    AnySplit,
    BlocksSplit,
    CheckerboardSplit,
    CheckerboardsSplit,
    ClusterSplit,
    FoldPosition,
    GroupSplit,
    KNNDMSplit,
    PeriodSplit,
    RandomSplit,
    RegionSplit,
    RollingSplit,
    SiteSplit,
    SpatialSplit,
    Split,
    SplitSettings,
    TemporalSplit,
)
from pm25.splits.knndm import MatchedFolds
from pm25.splits.reserve import Reserve, leave_untested, only_reserved, reserved_sites

__all__ = [
    "HOLDOUT_PARTS",
    "MOST_REPEATS",
    "AnySplit",
    "BlocksSplit",
    "CheckerboardSplit",
    "CheckerboardsSplit",
    "ClusterSplit",
    "FoldPosition",
    "GroupSplit",
    "KNNDMSplit",
    "MatchedFolds",
    "PeriodSplit",
    "RandomSplit",
    "RegionSplit",
    "Reserve",
    "RollingSplit",
    "SiteSplit",
    "SpatialSplit",
    "Split",
    "SplitIndices",
    "SplitSettings",
    "TemporalSplit",
    "checkerboard",
    "checkerboards",
    "cut",
    "grid_origin",
    "leave_untested",
    "matched",
    "nearest_site_km",
    "only_reserved",
    "regions",
    "reserved_sites",
    "shift",
    "site_folds",
]
