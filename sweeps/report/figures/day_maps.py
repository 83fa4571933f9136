"""Maps of one predicted day: an arm beside its spread and the truth, or two arms and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from pm25.grids.cells import Covariates, RegularGrid
from pm25.grids.predicted import PredictedDay
from sweeps.report.figures.maps import _albers, _draw_borders, _frame_conus
from sweeps.report.figures.style import (
    INK,
    NARROW,
    WIDTH,
    Figure,
    finish,
    hide_unused,
    house_style,
    panel_grid,
    slug,
)

PM25 = "PM2.5 (µg/m³)"
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Ticks of the logarithmic scale of concentrations."""
_LOWEST = 1.0
"""Lowest end of that scale in ug/m3, below which differences are those of instruments."""
MANY = 400
"""Monitors above which their dots are smaller."""
_HATCH = "//////"
_ENDS = (0.002, 0.998)
"""Quantiles at which the scale of concentrations ends, so that a plume of a few cells is seen."""
_LIMIT = 0.98
"""Quantile at which other colours end."""


class ArmDay(NamedTuple):
    """Predictions of one arm on one day."""

    label: str
    models: int
    """Number of models whose mean is shown."""
    day: PredictedDay


class Monitors(NamedTuple):
    """Monitors of the study, drawn as dots."""

    lat: np.ndarray
    lon: np.ndarray
    observed: np.ndarray
    """Observed PM2.5 of the day in ug/m3, NaN where there is none."""


class _Panel(NamedTuple):
    """One map: a value for each cell, and its colours."""

    title: str
    values: np.ndarray
    outside: np.ndarray
    """True for cells that are hatched."""
    label: str
    colours: str
    norm: Normalize
    extend: str
    with_monitors: bool = False
    at_monitors: bool = False
    """True if the values are those of the monitors, not of the cells."""


def day_map(
    arms: Sequence[ArmDay],
    covariates: Covariates,
    monitors: Monitors,
    outlines: Sequence[np.ndarray] = (),
) -> Figure:
    """Draw one arm, with its spread, the truth and the error if they are known, or two arms.

    Two arms are drawn with their difference, the first minus the second, and with the truth if it is known.
    Cells outside the area of applicability are hatched. Without a truth, the observations of the monitors
    are drawn beside. The monitors are dots on the map of the error, of the spread or of the difference.
    """
    day = arms[0].day
    observed = monitors.observed if day.truth is None else None
    panels = _arm_panels(arms[0], observed) if len(arms) == 1 else _pair_panels(arms[0], arms[1], observed)
    if day.truth is None and np.isfinite(monitors.observed).any():
        nothing = np.zeros(len(monitors.observed), bool)
        first = panels[0]._replace(
            title="observed at the monitors", values=monitors.observed, outside=nothing
        )
        panels.append(first._replace(at_monitors=True))
    title = f"PM2.5 on {day.date}, {' and '.join(arm.label for arm in arms)}: {covariates.origin}"
    drawn = [_draw(panels, title, covariates, monitors, outlines, width) for width in (WIDTH, NARROW)]
    outside = " and ".join(f"{_share(arm.day):.0%}" for arm in arms)
    name = f"map-{day.date}-{'-'.join(slug(arm.label) for arm in arms)}"
    caption = (
        f"Daily PM2.5 on {day.date}, {covariates.origin}. Hatched cells ({outside}) are outside the area of "
        "applicability, where the models were not trained on anything similar. Dots are the monitors. The "
        "colours of concentrations are logarithmic; other colours end at the 98th percentile. The projection "
        "is Albers equal-area."
    )
    with house_style():
        figure = finish(drawn[0], name, f"Map of {title}", caption, "png")
        small = finish(drawn[1], name, "", "").svg
    return figure._replace(small=small)


def _arm_panels(arm: ArmDay, observed: np.ndarray | None) -> list[_Panel]:
    """Panels of one arm: predictions, truth, spread and error, as far as they are known.

    The colours of concentrations reach those of `observed` (monitors,) too.
    """
    day, outside = arm.day, _outside(arm.day)
    nothing = np.zeros(len(outside), bool)
    scale = _concentrations(day.mean, day.truth, observed)
    of = f"mean of {arm.models} models" if arm.models > 1 else "one model"
    share = f"{_share(day):.0%} outside the area"
    panels = [_Panel(f"predicted, {of}: {share}", day.mean, outside, PM25, "magma_r", scale, "max")]
    if day.truth is not None:
        panels.append(_Panel("truth", day.truth, nothing, PM25, "magma_r", scale, "max"))
    if arm.models > 1:
        most = _limit(day.spread)
        title = f"spread: standard deviation of {arm.models} models"
        scale = Normalize(0, most)
        panels.append(_Panel(title, day.spread, outside, PM25, "viridis_r", scale, "max", day.truth is None))
    if day.truth is not None:
        error = day.mean - day.truth
        title = f"predicted − truth: RMSE {_rms(error):.1f} µg/m³, inside {_rms(error[day.inside]):.1f}"
        panels.append(_Panel(title, error, outside, PM25, "RdBu_r", _about_zero(error), "both", True))
    return panels


def _pair_panels(one: ArmDay, other: ArmDay, observed: np.ndarray | None) -> list[_Panel]:
    """Panels of two arms: both, the truth if it is known, and the first minus the second.

    The colours of concentrations reach those of `observed` (monitors,) too.
    """
    days, truth = (one.day, other.day), one.day.truth
    scale = _concentrations(one.day.mean, other.day.mean, truth, observed)
    panels = []
    for arm in (one, other):
        share = f"{_share(arm.day):.0%} outside the area"
        rmse = "" if truth is None else f", RMSE {_rms(arm.day.mean - truth):.1f} µg/m³"
        title = f"{arm.label}: {share}{rmse}"
        panels.append(_Panel(title, arm.day.mean, _outside(arm.day), PM25, "magma_r", scale, "max"))
    if truth is not None:
        panels.append(_Panel("truth", truth, np.zeros(len(truth), bool), PM25, "magma_r", scale, "max"))
    difference = one.day.mean - other.day.mean
    outside = _outside(days[0]) | _outside(days[1])
    title = f"{one.label} − {other.label}"
    scale = _about_zero(difference)
    return [*panels, _Panel(title, difference, outside, PM25, "PuOr_r", scale, "both", True)]


def _outside(day: PredictedDay) -> np.ndarray:
    """Cells with a prediction outside the area of applicability."""
    return day.predicted & ~day.inside


def _share(day: PredictedDay) -> float:
    """Share of the cells with a prediction that are outside."""
    return float(_outside(day).sum() / max(1, day.predicted.sum()))


def _rms(values: np.ndarray) -> float:
    found = values[np.isfinite(values)].astype(np.float64)
    return float(np.sqrt((found**2).mean())) if len(found) else float("nan")


def _limit(values: np.ndarray) -> float:
    """Quantile `_LIMIT` of the absolute finite values; 1 if all are zero or there are none."""
    found = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(found, _LIMIT)) if len(found) else 0.0) or 1.0


def _concentrations(*columns: np.ndarray | None) -> Normalize:
    """Scale on which smoke and clean air are both seen: the colours go with the logarithm."""
    found = [values[np.isfinite(values)] for values in columns if values is not None]
    ends = np.array([np.quantile(values, _ENDS) for values in found if len(values)] or [(1, 10)])
    low = max(_LOWEST, float(ends[:, 0].min()))
    return LogNorm(low, max(2 * low, float(ends[:, 1].max())), clip=True)


def _about_zero(values: np.ndarray) -> Normalize:
    most = _limit(values)
    return Normalize(-most, most)


def _draw(
    panels: Sequence[_Panel],
    title: str,
    covariates: Covariates,
    monitors: Monitors,
    outlines: Sequence[np.ndarray],
    width: float,
) -> Canvas:
    """Draw the panels on a canvas of this width in inches, two in a row, or one on a small screen."""
    down, across = (len(panels), 1) if width <= NARROW else panel_grid(len(panels), 2)
    corners = _Corners.of(covariates)
    with house_style():
        canvas = Canvas(figsize=(width, (width / across * 0.86) * down + 0.45), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False)
        for ax, panel in zip(axes.flat, panels, strict=False):
            _draw_panel(canvas, ax, panel, covariates, corners, monitors, outlines)
        hide_unused(axes, len(panels))
        dot = Line2D([], [], ls="", marker="o", mfc=INK, mec="white", ms=2.6, mew=0.3, label="monitor")
        hatch = Patch(fc="none", ec=INK, hatch=_HATCH, lw=0.3, label="outside the area of applicability")
        handles = [hatch, dot] if any(panel.outside.any() for panel in panels) else [dot]
        canvas.legend(handles=handles, loc="outside lower left", handlelength=2, ncols=2)
        canvas.suptitle(title, fontsize=8.5, x=0.01, ha="left", wrap=True)
    return canvas


def _draw_panel(
    canvas: Canvas,
    ax: Any,
    panel: _Panel,
    covariates: Covariates,
    corners: _Corners | None,
    monitors: Monitors,
    outlines: Sequence[np.ndarray],
) -> None:
    outside = panel.outside & np.isfinite(panel.values)
    few = len(monitors.lat) <= MANY
    look: dict[str, Any] = {"cmap": panel.colours, "norm": panel.norm, "rasterized": True}
    if panel.at_monitors:
        seen = np.isfinite(panel.values)
        x, y = _albers(monitors.lat[seen], monitors.lon[seen])
        edge = {"edgecolors": "#555555", "linewidths": 0.2}
        drawn = ax.scatter(x, y, s=14 if few else 7, c=panel.values[seen], **edge, **look)
    elif corners is None:
        x, y = _albers(covariates.lat, covariates.lon)
        drawn = ax.scatter(x, y, s=5, c=panel.values, linewidths=0, plotnonfinite=False, **look)
        ax.plot(x[outside], y[outside], "x", color=INK, ms=2, mew=0.3, rasterized=True)
    else:
        values = np.ma.masked_invalid(corners.grid.fill(panel.values))
        drawn = ax.pcolormesh(corners.x, corners.y, values, **look)
        # One path for all cells: a hatch for each would take seconds.
        outline = corners.path(outside)
        for colour, width in (("white", 1.1), (INK, 0.45)):  # seen on light and on dark colours
            hatch = PathPatch(outline, fc="none", ec=colour, lw=0, hatch=_HATCH, rasterized=True)
            hatch.set_hatch_linewidth(width)
            ax.add_patch(hatch)
    _draw_borders(ax, outlines)
    if panel.with_monitors:
        dots = {"ms": 2.6 if few else 1.5, "mfc": INK, "mec": "white", "mew": 0.3 if few else 0.15}
        ax.plot(*_albers(monitors.lat, monitors.lon), "o", **dots, rasterized=True)
    logarithmic = isinstance(panel.norm, LogNorm)
    bar = canvas.colorbar(
        drawn,
        ax=ax,
        label=panel.label,
        extend=panel.extend,
        orientation="horizontal",
        shrink=0.8,
        aspect=34,
        pad=0.02,
    )
    if logarithmic:
        low, high = panel.norm.vmin or 0, panel.norm.vmax or 0
        bar.set_ticks([tick for tick in _TICKS if low <= tick <= high])
        bar.ax.xaxis.set_major_formatter("{x:g}")
        bar.minorticks_off()
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(width=0.5)
    ax.set_title(panel.title)
    _frame_conus(ax, covariates.lat, covariates.lon)


class _Corners(NamedTuple):
    """Corners of the cells of a regular grid in the projection, (rows + 1, columns + 1) km."""

    grid: RegularGrid
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, covariates: Covariates) -> _Corners | None:
        """Project the corners; None for places on no regular grid."""
        grid = RegularGrid.of(covariates.lat, covariates.lon)
        if grid is None:
            return None
        height, width = grid.step
        lat = np.append(grid.lat + height / 2, grid.lat[-1] - height / 2)
        lon = np.append(grid.lon - width / 2, grid.lon[-1] + width / 2)
        return cls(grid, *_albers(*np.meshgrid(lat, lon, indexing="ij")))

    def path(self, cells: np.ndarray) -> Path:
        """Outline some of the cells, True in `cells`, in one path."""
        row, column = self.grid.row[cells], self.grid.column[cells]
        around = [(row, column), (row, column + 1), (row + 1, column + 1), (row + 1, column), (row, column)]
        corners = np.stack([np.stack([self.x[at], self.y[at]], axis=1) for at in around], axis=1)
        codes = np.array([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], np.uint8)
        return Path(corners.reshape(-1, 2), np.tile(codes, len(row)))
