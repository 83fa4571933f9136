"""Samples of a cell: its training, validation and held-out sets, and the targets that it may know."""

from dataclasses import replace

import numpy as np

from pm25 import neighbours, protocol, splits
from pm25.cell import Cell
from pm25.panel import Panel


def cut_cell(cell: Cell, panel: Panel) -> tuple[Panel, splits.SplitIndices]:
    """Cut the samples, and return them with the panel whose targets the cell may know.

    In a search without a split of its own, the test set is the validation set. Raises InputError if a set is
    empty.
    """
    reserve = cell.reserve
    if reserve is not None and cell.tuning is not None:
        panel = splits.only_reserved(reserve, panel, cell.window)
    if cell.protocol == "paper":
        return panel, protocol.paper_cut(cell.split, cell.fold, panel, cell.window)
    indices = splits.cut(cell.split, cell.fold, panel, cell.window)
    if cell.tuning is None:
        where = f"split {cell.split.label} fold {cell.fold}"
        return panel, splits.leave_untested(indices, reserve, panel, cell.window, where)
    # A search must not know the samples on which its arm will be tested, so all targets outside the
    # training side are removed first. Targets before the first possible sample belong to no sample.
    side = np.sort(np.concatenate([indices.train, indices.validation]))
    panel = replace(
        panel,
        target=neighbours.known_targets(panel, side, cell.window),
        name=f"{panel.name}, training side of {cell.split.label} fold {cell.fold}",
    )
    if cell.tuning.split is not None:
        return panel, splits.cut(cell.tuning.split, cell.tuning.fold, panel, cell.window)
    return panel, splits.SplitIndices(indices.train, indices.validation, test=indices.validation, wr=None)


def trained_or_scored(cell: Cell, panel: Panel) -> np.ndarray:
    """Return the samples (flat indices, ascending) whose targets a training of a search uses."""
    _, indices = cut_cell(cell, panel)
    parts = [indices.train, indices.validation, indices.test]
    return np.unique(np.concatenate(parts if indices.wr is None else [*parts, indices.wr]))
