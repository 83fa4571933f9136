"""Figures of predicted against observed PM2.5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.colors
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from pm25.metrics import EXCEEDANCE_UGM3
from sweeps.analysis.artifacts import BEND_UGM3, DENSITY_EDGES, Predicted
from sweeps.report.figures.style import (
    INK,
    ORANGE,
    WIDTH,
    Figure,
    arm_looks,
    finish,
    hide_unused,
    house_style,
    label_counts,
    panel_grid,
    plain_axes,
    slug,
)

FEWEST = 100
"""Fewest samples of a calibration bin that is drawn; a single day of smoke yields many samples at once."""


def density(predicted: Predicted, split: str) -> Figure | None:
    """Draw observed against predicted PM2.5 as a density of the pooled test samples, a panel per arm."""
    counts = {arm: predicted.density(arm, split) for arm in predicted.arms(split)}
    if not counts:
        return None
    total = sum(counts.values())
    assert not isinstance(total, int)
    used = np.flatnonzero(total.sum(axis=0) + total.sum(axis=1))
    low, high = DENSITY_EDGES[used[0]], DENSITY_EDGES[used[-1] + 1]
    most = max(int(count.max()) for count in counts.values())
    down, across = panel_grid(len(counts))
    with house_style():
        canvas = Canvas(figsize=(WIDTH, 2.3 * down + 0.4), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for ax, (label, count) in zip(axes.flat, counts.items(), strict=False):
            mesh = ax.pcolormesh(
                DENSITY_EDGES,
                DENSITY_EDGES,
                np.ma.masked_equal(count.T, 0),
                cmap="viridis_r",
                norm=matplotlib.colors.LogNorm(1, max(most, 2)),
                rasterized=True,
            )
            ax.plot([low, high], [low, high], color=INK, lw=0.8)
            for line in (ax.axhline, ax.axvline):
                line(EXCEEDANCE_UGM3, color=ORANGE, lw=0.6, ls=":")
            _bent_axes(ax, low, high, "xy")
            ax.set_aspect("equal")
            ax.set_title(f"{label}\n{_pooled_scores(predicted, label, split)}")
            plain_axes(ax, "both")
        hide_unused(axes, len(counts))
        bar = canvas.colorbar(mesh, ax=axes, label="samples", shrink=0.75, aspect=30, pad=0.01)
        label_counts(bar.ax.yaxis)
        canvas.supxlabel("observed PM2.5 (µg/m³)", fontsize=8)
        canvas.supylabel("predicted PM2.5 (µg/m³)", fontsize=8)
        return finish(
            canvas,
            f"density-{slug(split)}",
            f"Observed against predicted PM2.5 on {split}, by arm",
            f"Observed against predicted daily PM2.5 (µg/m³) on the test sets of {split}, pooled over folds "
            "and seeds. The scores above are those of all these samples together, so they may differ from "
            f"means over cells. On the solid line both are equal; dotted lines mark {EXCEEDANCE_UGM3} µg/m³. "
            "The axes are linear near zero and logarithmic above.",
            "png",
        )


def _pooled_scores(predicted: Predicted, arm: str, split: str) -> str:
    """Return RMSE, R2 and n of the pooled test samples, on one line."""
    n, _, _, squared, y, y2 = predicted.totals(arm, split)
    scatter = y2 - y * y / n
    r2 = f", R² {1 - squared / scatter:.2f}" if scatter > 1e-12 * n else ""
    return f"RMSE {math.sqrt(squared / n):.2f}{r2}, n {int(n):,}"


def tail(predicted: Predicted, split: str, arms: Sequence[str] = ()) -> Figure | None:
    """Draw calibration by predicted value, and the share of exceedances that were predicted, by arm."""
    shares = {arm: predicted.tail(arm, split) for arm in predicted.arms(split)}
    if not shares:
        return None
    looks = arm_looks(shares, arms)
    frames = {arm: predicted.calibration(arm, split) for arm in shares}
    shown = {arm: frame[frame["n"] >= FEWEST] for arm, frame in frames.items()}
    with house_style():
        canvas = Canvas(figsize=(WIDTH, max(3.0, 0.9 + 0.3 * len(shares))), layout="constrained")
        grid = canvas.add_gridspec(2, 2, height_ratios=(3, 1), width_ratios=(1.15, 1))
        ax = canvas.add_subplot(grid[0, 0])
        below = canvas.add_subplot(grid[1, 0], sharex=ax)
        right = canvas.add_subplot(grid[:, 1])
        values = [frame[name] for frame in shown.values() for name in ("observed", "predicted")]
        ends = np.concatenate([np.array([0.0, EXCEEDANCE_UGM3 * 1.2]), *values])
        low, high = float(ends.min()) - 0.5, float(ends.max()) * 1.1
        ax.plot([low, high], [low, high], color=INK, lw=0.8)
        for line in (ax.axhline, ax.axvline, below.axvline):
            line(EXCEEDANCE_UGM3, color=ORANGE, lw=0.6, ls=":")
        for arm, frame in shown.items():
            marker, colour = looks[arm]
            ax.plot(frame["predicted"], frame["observed"], f"{marker}-", color=colour, ms=3.5, lw=0.9)
            every = frames[arm]
            below.plot(every["predicted"], every["n"], f"{marker}-", color=colour, ms=2.5, lw=0.8)
        _bent_axes(ax, low, high, "xy")
        _bent_axes(below, low, high, "x")
        below.set_yscale("log")
        label_counts(below.yaxis)
        ax.tick_params(labelbottom=False)
        ax.set_ylabel("mean observed (µg/m³)")
        below.set_xlabel("mean predicted, by bin (µg/m³)")
        below.set_ylabel("samples")
        ax.set_title("Calibration")
        for i, (arm, found) in enumerate(shares.items()):
            marker, colour = looks[arm]
            share = 100 * found.both / found.observed if found.observed else math.nan
            right.plot([0, share], [i, i], color=colour, lw=2.2, alpha=0.5)
            right.plot(share, i, marker, color=colour, ms=5)
            false_alarms = found.predicted - found.both
            words = f"{found.both:,} of {found.observed:,} predicted, {false_alarms:,} false alarms"
            right.text(0.99, i - 0.33, words, transform=right.get_yaxis_transform(), ha="right", fontsize=7)
        right.set_yticks(range(len(shares)), list(shares))
        right.set_ylim(len(shares) - 0.4, -0.75)
        right.set_xlim(0, max(5.0, 1.15 * right.get_xlim()[1]))
        right.set_xlabel("predicted as such (%)")
        right.set_title(f"Days at or above {EXCEEDANCE_UGM3} µg/m³")
        for each in (ax, below, right):
            plain_axes(each, "x" if each is right else "both")
        canvas.suptitle(f"The tail on {split}", fontsize=8.5, x=0.01, ha="left")
        return finish(
            canvas,
            f"tail-{slug(split)}",
            f"Calibration and detection of high PM2.5 on {split}, by arm",
            f"Left: mean observed PM2.5 by bin of predicted PM2.5, for bins with {FEWEST} or more samples; "
            "the number of samples is below. A calibrated model follows the line. Right: share of the "
            f"days at or above {EXCEEDANCE_UGM3} µg/m³ (AQI 'unhealthy for sensitive groups') that were "
            f"predicted as such, with the number of false alarms. Test sets of {split}, pooled over folds "
            "and seeds.",
        )


def _bent_axes(ax: Any, low: float, high: float, axis_names: str) -> None:
    """Scale axes like the grid of the density: linear near zero, logarithmic above."""
    ticks = [tick for tick in (-5, 0, 5, 10, 20, 50, 100, 300) if low <= tick <= high]
    for name in axis_names:
        getattr(ax, f"set_{name}scale")("asinh", linear_width=BEND_UGM3)
        axis = getattr(ax, f"{name}axis")
        axis.set_ticks(ticks)
        axis.set_ticks([], minor=True)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        getattr(ax, f"set_{name}lim")(low, high)
