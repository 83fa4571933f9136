"""Figures of the report: tables of results in, SVG and PNG bytes out.

Only this package imports matplotlib. It draws on Figure objects, without pyplot, a display or global state.
A fixed style, a fixed salt and no date make the bytes of a figure depend on its data alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sweeps.analysis import inference, labels
from sweeps.analysis.artifacts import Curves, Predicted
from sweeps.analysis.reach import Distances
from sweeps.analysis.results import SplitMap
from sweeps.report.figures.cells import distances, points, wr_to_oor
from sweeps.report.figures.contrasts import by_monitor, forest, wr_against_oor
from sweeps.report.figures.maps import difference_map, error_maps, split_map
from sweeps.report.figures.predictions import density, tail
from sweeps.report.figures.reach import distance_curves
from sweeps.report.figures.style import Figure
from sweeps.report.figures.training import learning, parameter_importance, permutations, search_history
from sweeps.spec.claims import Analysis

__all__ = ["Figure", "best_encoder", "draw", "first_splits"]


def draw(
    rows: pd.DataFrame,
    metric: str = "rmse",
    *,
    contrasts: pd.DataFrame | None = None,
    means: pd.DataFrame | None = None,
    predicted: Predicted | None = None,
    curves: Curves | None = None,
    importance: pd.DataFrame | None = None,
    trials: pd.DataFrame | None = None,
    parameters: pd.DataFrame | None = None,
    monitors: pd.DataFrame | None = None,
    cuts: Sequence[SplitMap] = (),
    reach: Distances | None = None,
    outlines: Sequence[np.ndarray] = (),
) -> list[Figure]:
    """Draw every figure that has data, in the order of the report.

    `rows` has one row per cell (`results.rows`); `metric`, the primary one, selects the best encoder.
    `contrasts` and `means` are tables of `sweeps.analysis.inference`, for one or more metrics.
    `predicted`, `curves` and `importance` come from `sweeps.analysis.artifacts`.
    `monitors` is the table of `sweeps.analysis.by_monitor.differences`.
    `trials`, `parameters` and `cuts` come from `sweeps.analysis.results`: `search_trials`,
    `search_parameters` and `cuts`. `reach` are the distances of `sweeps.analysis.reach`. `outlines` are the
    state borders of `sweeps.report.borders.read`.
    """
    arms = list(dict.fromkeys(labels.with_arm(rows)["arm"]))  # an arm looks the same in all figures
    found: list[Figure | None] = []
    if contrasts is not None:
        found += [forest(contrasts, name) for name in dict.fromkeys(contrasts["metric"])]
    if means is not None:
        found += [wr_against_oor(means, name, arms) for name in dict.fromkeys(means["metric"])]
    for name in ("rmse", "r2"):
        found += [points(rows, name), wr_to_oor(rows, name)]
    found += [distances(rows, part) for part in ("test", "wr")]
    if reach is not None:
        found.append(distance_curves(reach))
    found += [split_map(cut, outlines) for cut in cuts]
    best = best_encoder(rows, metric)
    if monitors is not None and best is not None:
        found.append(by_monitor(monitors, best, first_splits(rows)))
    if predicted is not None:
        if best is not None:
            found.append(difference_map(predicted, best, first_splits(rows), outlines, metric))
        found += error_maps(predicted, first_splits(rows)[-1:], outlines)
        for split in first_splits(rows):
            found += [density(predicted, split), tail(predicted, split, arms)]
    if curves is not None:
        found.append(learning(curves, arms))
    if importance is not None:
        found.append(permutations(importance, arms))
    if trials is not None:
        found.append(search_history(trials))
    if parameters is not None:
        found.append(parameter_importance(parameters, arms))
    return [figure for figure in found if figure is not None]


def first_splits(rows: pd.DataFrame) -> list[str]:
    """Return the first within-region split and the first out-of-region split that the rows have."""
    return [
        str(of_regime["split"].iloc[0])
        for regime in (labels.WR, labels.OOR)
        if len(of_regime := rows[rows["regime"] == regime])
    ]


def best_encoder(rows: pd.DataFrame, metric: str = "rmse") -> str | None:
    """Return the best encoder arm on the last of `first_splits`, or None if no encoder arm is complete.

    The controls (`none`, `random` and `shuffled` vectors, and untrained encoders) are not candidates.
    """
    splits = first_splits(rows)[-1:]
    if not splits:
        return None
    means = inference.means(rows, Analysis(), metric)
    complete = labels.complete(means[(means["split"] == splits[0]) & (means["part"] == "test")])
    controls = [labels.is_control(arm, complete) for arm in complete["arm"]]
    encoders = complete[complete["fusion"].notna() & ~np.array(controls, bool)]
    return str(encoders["arm"].iloc[0]) if len(encoders) else None
