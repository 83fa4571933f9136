"""Maps of the monitors: their roles in a split, their errors, and differences in errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from pm25 import splits
from pm25.geo import CONUS, EARTH_KM
from pm25.metrics import METRICS
from pm25.text import counted
from sweeps.analysis import labels
from sweeps.analysis.artifacts import Predicted
from sweeps.analysis.results import SplitMap
from sweeps.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    WIDTH,
    Figure,
    finish,
    hide_unused,
    house_style,
    legend,
    panel_grid,
    slug,
)

Grid = splits.CheckerboardSplit | splits.CheckerboardsSplit | splits.BlocksSplit
"""Splits whose test regions are squares of a grid."""

_ROLES = {
    "train": (".", BLUE, "training"),
    "validation": ("^", SKY, "validation"),
    "wr": ("s", GREEN, "held out in region (WR test)"),
    "test": ("D", ORANGE, "held-out region (OoR test)"),
}


def split_map(cut: SplitMap, outlines: Sequence[np.ndarray] = ()) -> Figure | None:
    """Draw the monitors by their role in a split, a panel per fold; None if the split has no roles.

    The squares of a checkerboard or of blocks are drawn below the monitors.
    """
    if not cut.roles:
        return None
    down, across = panel_grid(len(cut.roles), 2)
    every = pd.concat(cut.roles.values())
    with house_style():
        canvas = Canvas(figsize=(WIDTH, 2.55 * down + 0.25), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False)
        for ax, (fold, roles) in zip(axes.flat, cut.roles.items(), strict=False):
            if isinstance(cut.split, Grid):
                _draw_squares(ax, cut.split, fold, roles[roles["role"] == "test"])
            _draw_borders(ax, outlines)
            for role, (marker, colour, _) in _ROLES.items():
                selected = roles[roles["role"] == role]
                x, y = _albers(selected["lat"], selected["lon"])
                size = 4.4 if role == "train" else 2.4
                ax.plot(x, y, marker, color=colour, ms=size, mec="white", mew=0.15, label=role)
            counts = roles["role"].value_counts()
            held = labels.held_out(cut.split.label, fold)
            if isinstance(cut.split, splits.GroupSplit):
                held = f"{cut.split.values[fold]} held out"  # noqa: PD011
            ax.set_title(f"{held}: {counts.get('test', 0):,} of {len(roles):,} sites")
            _frame_conus(ax, every["lat"], every["lon"])
        hide_unused(axes, len(cut.roles))
        handles = [
            Line2D([], [], ls="", marker=marker, color=colour, ms=6 if marker == "." else 4, label=name)
            for role, (marker, colour, name) in _ROLES.items()
            if (every["role"] == role).any()
        ]
        legend(canvas, handles)
        some = len(cut.roles) != cut.split.n_folds
        folds = f" Shown are {len(cut.roles)} of {cut.split.n_folds} folds." if some else ""
        squares = " Shaded squares are held out." if isinstance(cut.split, Grid) else ""
        return finish(
            canvas,
            f"split-{slug(cut.split.label)}",
            f"Map of the monitors by their role in the split {cut.split.label}",
            f"Monitors by their role in {cut.split.label}, one panel per held-out region.{squares}{folds} "
            "The projection is Albers equal-area.",
            "png",
        )


def map_limits(frames: Iterable[pd.DataFrame]) -> tuple[float, float]:
    """Return the 98th percentiles of |bias| and RMSE (ug/m3) over all maps, to share colour scales."""
    frames = list(frames)
    limits = []
    for column in ("bias", "rmse"):
        limits.append(_robust_limit(*(frame[column] for frame in frames)))
    return limits[0], limits[1]


def error_maps(
    predicted: Predicted, split_names: Sequence[str], outlines: Sequence[np.ndarray] = ()
) -> list[Figure]:
    """Draw the errors of every arm by site on the splits, all on one colour scale."""
    frames = {
        (arm, split): predicted.site_errors(arm, split)
        for split in split_names
        for arm in predicted.arms(split)
    }
    limits = map_limits(frames.values())
    return [error_map(frame, arm, split, limits, outlines) for (arm, split), frame in frames.items()]


def error_map(
    frame: pd.DataFrame,
    arm: str,
    split: str,
    limits: tuple[float, float] | None = None,
    outlines: Sequence[np.ndarray] = (),
) -> Figure:
    """Draw two maps of the sites in `frame` (site_id, lat, lon, n, bias, rmse): bias and RMSE in ug/m3.

    `limits` are the `map_limits` of all maps to compare, by default those of this map.
    """
    most_bias, most_rmse = limits or map_limits([frame])
    seen = frame[frame[["lat", "lon", "bias", "rmse"]].notna().all(axis=1)]
    # Large errors are drawn last, on top. The order does not depend on that of the table.
    seen = seen.sort_values(["rmse", "site_id"], kind="stable")
    with house_style():
        canvas = Canvas(figsize=(WIDTH, 3.0), layout="constrained")
        axes = canvas.subplots(1, 2)
        bias = {"cmap": "RdBu_r", "vmin": -most_bias, "vmax": most_bias}
        _site_map(canvas, axes[0], seen, "bias", "bias: predicted − observed (µg/m³)", "both", bias, outlines)
        rmse = {"cmap": "cividis_r", "vmin": 0, "vmax": most_rmse}
        _site_map(canvas, axes[1], seen, "rmse", "RMSE (µg/m³)", "max", rmse, outlines)
        canvas.suptitle(f"{arm}, {split} ({counted(len(seen), 'site')})", fontsize=8.5, x=0.01, ha="left")
        return finish(
            canvas,
            f"errors-{slug(split)}-{slug(arm)}",
            f"Map of site errors: {arm}, {split}",
            f"Errors of '{arm}' by monitor on the test sets of {split}, pooled over folds and seeds. All "
            "error maps share their colour scales, which end at the 98th percentile over all sites and "
            "arms.",
            "png",
        )


def difference_map(
    predicted: Predicted,
    arm: str,
    split_names: Sequence[str],
    outlines: Sequence[np.ndarray] = (),
    metric: str = "rmse",
) -> Figure | None:
    """Draw the site RMSE of `arm` minus that of 'none', a panel per split; None without sites."""
    frames = {split: predicted.site_differences(arm, labels.BASELINE, split) for split in split_names}
    frames = {split: frame for split, frame in frames.items() if len(frame)}
    if not frames:
        return None
    most = _robust_limit(*(frame["difference"] for frame in frames.values()))
    with house_style():
        # One map takes half the width, so that all maps have the same size.
        canvas = Canvas(figsize=(WIDTH * len(frames) / 2, 3.15), layout="constrained")
        axes = canvas.subplots(1, len(frames), squeeze=False)
        for ax, (split, frame) in zip(axes.flat, frames.items(), strict=True):
            order = frame["difference"].abs().argsort(kind="stable")
            name = f"RMSE: {arm} minus none (µg/m³)"
            scale = {"cmap": "PuOr_r", "vmin": -most, "vmax": most}
            _site_map(canvas, ax, frame.iloc[order], "difference", name, "both", scale, outlines)
            share, middle = (frame["difference"] < 0).mean(), frame["difference"].median()
            ax.set_title(
                f"{split}: lower at {share:.0%} of {len(frame):,} sites,\nmedian {_signed(middle)} µg/m³"
            )
        return finish(
            canvas,
            f"difference-{slug(arm)}",
            f"Map of the difference in site RMSE between {arm} and none",
            f"RMSE of '{arm}' minus RMSE of 'none' by monitor, pooled over the folds and seeds of both. "
            f"Violet sites have a lower RMSE with '{arm}', orange sites a higher one. Colours end at the "
            f"98th percentile. '{arm}' is the encoder arm with the best mean {METRICS[metric].name} on "
            f"{split_names[-1]}.",
            "png",
        )


def _signed(value: float) -> str:
    """Return a number with its sign, such as '+0.25' or '−0.25'."""
    return f"{value:+z.2f}".replace("-", "−")


def _robust_limit(*columns: pd.Series) -> float:
    """Return the 98th percentile of the absolute finite values; 1 if all are zero or there are none."""
    values = np.concatenate([column.to_numpy(dtype="float64") for column in columns] or [np.empty(0)])
    values = np.abs(values[np.isfinite(values)])
    return (float(np.quantile(values, 0.98)) if values.size else 0.0) or 1.0


def _site_map(
    canvas: Canvas,
    ax: Any,
    sites: pd.DataFrame,
    column: str,
    label: str,
    extend: str,
    scale: Mapping[str, Any],
    outlines: Sequence[np.ndarray],
) -> None:
    """Draw the sites as dots in their order, over the state borders, with a colour bar below."""
    _draw_borders(ax, outlines)
    x, y = _albers(sites["lat"], sites["lon"])
    # Dots of equal size are stored once in an SVG.
    area = 9 if len(sites) > 300 else 16
    dots = ax.scatter(x, y, s=area, c=sites[column], edgecolors="#555555", linewidths=0.2, zorder=3, **scale)
    bar = canvas.colorbar(
        dots, ax=ax, label=label, extend=extend, orientation="horizontal", shrink=0.8, aspect=34, pad=0.02
    )
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(width=0.5)
    _frame_conus(ax, sites["lat"], sites["lon"])


def _albers(lat: Any, lon: Any) -> tuple[np.ndarray, np.ndarray]:
    """Project degrees to kilometres east and north in the Albers equal-area conic, on the mean sphere.

    Standard parallels are 29.5 and 45.5, the origin 37.5 N 96 W (Snyder, Map Projections, 1987, p. 100).
    """
    lat, lon = (np.radians(np.asarray(values, np.float64)) for values in (lat, lon))
    first, second, origin = np.radians([29.5, 45.5, 37.5])
    n = (math.sin(first) + math.sin(second)) / 2
    c = math.cos(first) ** 2 + 2 * n * math.sin(first)
    rho, rho0 = (EARTH_KM * np.sqrt(c - 2 * n * np.sin(at)) / n for at in (lat, origin))
    theta = n * (lon + math.radians(96))
    return rho * np.sin(theta), rho0 - rho * np.cos(theta)


def _draw_borders(ax: Any, outlines: Sequence[np.ndarray]) -> None:
    """Draw the state borders."""
    rings = [np.stack(_albers(ring[:, 1], ring[:, 0]), axis=1) for ring in outlines]
    ax.add_collection(LineCollection(rings, colors="#9a9a9a", linewidths=0.4, zorder=2), autolim=False)


def _frame_conus(ax: Any, lat: Any, lon: Any) -> None:
    """Frame CONUS with its graticule, or a larger area if a site is outside: no site is cut off."""
    lines = [
        np.stack(_albers(np.linspace(24, 50, 30), np.full(30, at)), axis=1) for at in range(-120, -69, 10)
    ]
    lines += [
        np.stack(_albers(np.full(60, at), np.linspace(-126, -66, 60)), axis=1) for at in range(25, 51, 5)
    ]
    ax.add_collection(LineCollection(lines, colors="#dddddd", linewidths=0.4, zorder=0), autolim=False)
    for meridian in range(-110, -79, 10):
        x, y = _albers(23.8, meridian)
        _map_label(ax, x, y, f"{-meridian}°W", ha="center", va="top")
    for parallel, off_shore in ((30, -119), (35, -122.5), (40, -125.2), (45, -125.2)):
        x, y = _albers(parallel, off_shore)
        _map_label(ax, x, y, f"{parallel}°N", ha="right", va="bottom")
    x, y = _albers(lat, lon)
    ax.set_xlim(min([-2850, *(x - 60)]), max([2380, *(x + 60)]))
    ax.set_ylim(min([-1720, *(y - 60)]), max([1600, *(y + 60)]))
    ax.set_aspect("equal")
    ax.axis("off")


def _map_label(ax: Any, x: Any, y: Any, text: str, **alignment: Any) -> None:
    """Label a line of the graticule, without changing the layout."""
    ax.text(x, y, text, fontsize=7, color=GREY, in_layout=False, **alignment)


def _draw_squares(ax: Any, split: Grid, fold: int, tested: pd.DataFrame) -> None:
    """Draw the squares of a grid inside the CONUS box, with a tint where they are held out.

    Squares of a checkerboard are held out by their colour, and blocks by their `tested` sites.
    """
    west, south, east, north = CONUS
    position = split.position(fold)
    shift = splits.shift(split, position.repeat)
    shift_east, shift_north = shift or (0.0, 0.0)
    lon_edges, lat_edges = (
        _edges(low, high, shift, split.degrees)
        for low, high, shift in ((west, east, shift_east), (south, north, shift_north))
    )
    shapes: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for left, right in itertools.pairwise(lon_edges):
        for low, high in itertools.pairwise(lat_edges):
            if isinstance(split, splits.BlocksSplit):
                inside = tested["lon"].between(left, right) & tested["lat"].between(low, high)
                held_out = bool(inside.any())
            else:
                middle = np.array((low + high) / 2), np.array((left + right) / 2)
                colour = splits.checkerboard(*middle, split.degrees, shift)
                held_out = int(colour) == position.region
            along, up = np.linspace(left, right, 24), np.linspace(low, high, 24)
            lon = np.concatenate([along, np.full(24, right), along[::-1], np.full(24, left)])
            lat = np.concatenate([np.full(24, low), up, np.full(24, high), up[::-1]])
            shapes[held_out].append(np.stack(_albers(lat, lon), axis=1))
    for held_out, some in shapes.items():
        tint = "#f8e3d6" if held_out else "none"
        ax.add_collection(
            PolyCollection(some, facecolors=tint, edgecolors="#777777", linewidths=0.6, zorder=1)
        )


def _edges(low: float, high: float, shift: float, degrees: float) -> np.ndarray:
    """Return the grid lines inside a box (degrees), and the two ends of the box."""
    first = low + shift - degrees * math.ceil(shift / degrees)
    lines = np.arange(first, high + degrees, degrees)
    return np.array([low, *lines[(lines > low + 1e-9) & (lines < high - 1e-9)], high])
