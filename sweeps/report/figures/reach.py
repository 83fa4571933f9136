"""Curves of the distances between test and training monitors, and between a map and the monitors."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from sweeps.analysis.reach import Distances
from sweeps.report.figures.style import (
    GREY,
    INK,
    LOOKS,
    NARROW,
    WIDTH,
    Figure,
    finish,
    house_style,
    label_counts,
    legend,
    plain_axes,
)

LEAST_KM = 1.0
"""Distance in km at the left end of the axis, where all smaller ones are drawn."""
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
"""Styles of the lines that splits take in turn, for print."""


def distance_curves(distances: Distances) -> Figure:
    """Draw the cumulative share of places and of test monitors by their distance to the nearest monitor."""
    wide, narrow = (_distance_curves(distances, narrow=narrow) for narrow in (False, True))
    return wide._replace(small=narrow.svg)


def _distance_curves(distances: Distances, *, narrow: bool) -> Figure:
    """Draw the curves for a page or for a small screen."""
    with house_style():
        canvas = Canvas(figsize=(NARROW, 4.0) if narrow else (WIDTH, 3.6), layout="constrained")
        ax = canvas.subplots()
        handles = [
            _curve(ax, distances.domain, "places of the map to the nearest monitor", color=INK, lw=2.4),
            _curve(ax, distances.monitors, "monitors to the nearest other one", color=GREY, lw=2.4),
        ]
        for i, (split, km) in enumerate(distances.splits.items()):
            label = f"{split}, W {distances.w_km(split):,.0f} km"
            style: dict[str, Any] = {
                "color": LOOKS[i % len(LOOKS)][1],
                "ls": STYLES[i % len(STYLES)],
                "lw": 1.4,
            }
            handles.append(_curve(ax, km, label, **style))
        ax.set_xscale("log")
        ax.set_xlim(left=LEAST_KM)
        ax.set_ylim(0, 1.02)
        label_counts(ax.xaxis)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_xlabel("km to the nearest monitor (log scale from 1 km)")
        ax.set_ylabel("share within the distance")
        plain_axes(ax, "both")
        legend(canvas, handles)
        return finish(
            canvas,
            "reach",
            "Cumulative distances from test monitors to training monitors, and from places of the map",
            "Share of test monitors within a distance of the nearest training monitor, by split. The black "
            "curve is the same for the places of the map and all monitors. A split whose curve is near the "
            "black one, with a small W, describes the map best. A curve to the left of it is an easier test "
            "than the map, and one to the right a harder one. Distances below 1 km are drawn at 1 km.",
        )


def _curve(ax: Any, km: np.ndarray, label: str, **style: Any) -> Line2D:
    """Draw the cumulative share of distances in km, and return its line."""
    x = np.sort(np.maximum(km, LEAST_KM))
    share = np.arange(1, len(x) + 1) / len(x)
    line: Line2D
    (line,) = ax.plot(
        np.concatenate([[LEAST_KM], x]),
        np.concatenate([[0], share]),
        drawstyle="steps-post",
        label=label,
        **style,
    )
    return line
