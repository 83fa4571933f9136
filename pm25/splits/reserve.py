"""Sites that are reserved for hyperparameter search: a search is trained and validated there alone."""

from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import model_validator

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.settings import Degrees, Seed, Settings, Share
from pm25.splits.cutting import BLOCK_ROWS, SplitIndices
from pm25.splits.grids import grid_square

RESERVE_STREAM = 3
"""Number that keeps the draw of reserved blocks apart from the draws of splits with the same seed."""


class Reserve(Settings):
    """Share of the sites, in whole blocks, for the search alone: no result is tested there.

    The reserved sites are equal for all splits, folds and arms. They may train the cells of the grid.
    """

    share: Share
    """Share of the sites that is reserved."""
    degrees: Degrees = 8.0
    """Edge of a block in degrees."""
    seed: Seed = 0
    """Seed of the draw of blocks."""

    @model_validator(mode="before")
    @classmethod
    def _by_share(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"share": value} if is_number else value


def reserved_sites(reserve: Reserve, panel: Panel, window: int) -> np.ndarray:
    """Return True for each reserved site; (sites,). It depends on the sites that have samples alone.

    All sites of a block are reserved, or none. Blocks are drawn in random order. A block is passed over if
    the number of reserved sites would then be further from the share.

    Raises InputError if every block is too large, or if no block is left to be tested.
    """
    column, row = grid_square(panel.lat, panel.lon, reserve.degrees)
    block = column.astype(np.int64) * BLOCK_ROWS + row.astype(np.int64)
    has_samples = np.isfinite(panel.target[:, window - 1 :]).any(axis=1)
    blocks, size = np.unique(block[has_samples], return_counts=True)
    wanted, number, drawn = reserve.share * size.sum(), 0, []
    for i in np.random.default_rng([reserve.seed, RESERVE_STREAM]).permutation(len(blocks)):
        if abs(number + size[i] - wanted) < abs(number - wanted):
            number += size[i]
            drawn.append(blocks[i])
    if not 0 < len(drawn) < len(blocks):
        raise InputError(
            panel.name,
            "search.reserve",
            f"a share of {reserve.share:g} is {'none' if not drawn else 'all'} of {len(blocks)} blocks of "
            f"{reserve.degrees:g} degrees",
            "give smaller blocks (degrees), or another share",
        )
    return np.isin(block, drawn)


def leave_untested(
    indices: SplitIndices, reserve: Reserve | None, panel: Panel, window: int, where: str
) -> SplitIndices:
    """Remove the samples of reserved sites from the test set and from the within-region test set.

    `where` names the split and the fold in an error. Raises InputError if a set is then empty.
    """
    if reserve is None:
        return indices
    reserved, days = reserved_sites(reserve, panel, window), len(panel.dates)

    def tested(flat: np.ndarray, name: str) -> np.ndarray:
        kept = flat[~reserved[flat // days]]
        if not len(kept):
            raise InputError(
                panel.name,
                where,
                f"search.reserve has all sites of its {name} part",
                "give another seed of search.reserve, or a smaller share",
            )
        return kept

    wr = indices.wr
    return replace(indices, test=tested(indices.test, "test"), wr=None if wr is None else tested(wr, "wr"))


def only_reserved(reserve: Reserve, panel: Panel, window: int) -> Panel:
    """Return the panel with the targets of reserved sites alone."""
    reserved = reserved_sites(reserve, panel, window)
    return replace(
        panel,
        target=np.where(reserved[:, None], panel.target, np.float32("nan")),
        name=f"{panel.name}, reserved sites",
    )
