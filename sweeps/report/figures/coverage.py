"""Figure of the coverage of prediction intervals by region."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from sweeps.analysis import coverage
from sweeps.report.figures.style import (
    GREY,
    INK,
    NARROW,
    WIDTH,
    Figure,
    arm_looks,
    finish,
    hide_unused,
    house_style,
    legend,
    places_of,
    plain_axes,
)


def coverage_by_region(table: pd.DataFrame, arms: Sequence[str] = ()) -> Figure | None:
    """Draw the coverage of every region, a panel for each evaluation set of a split and a row for each arm.

    `table` is that of `coverage.coverage`. Returns None without a measured coverage.
    """
    found = table[table["coverage"].notna()]
    if found.empty:
        return None
    wide, small = (_draw(found, arms, narrow) for narrow in (False, True))
    return wide._replace(small=small.svg)


def _draw(table: pd.DataFrame, arms: Sequence[str], narrow: bool) -> Figure:
    """Draw the panels beside each other, or below each other on a `narrow` screen."""
    places = places_of(table)
    level = float(table["level"].iloc[0])
    looks = arm_looks(table["arm"], arms)
    across = 1 if narrow else min(len(places), 2)
    down = -(-len(places) // across)
    most = max(table.loc[_at(table, place), "arm"].nunique() for place in places)
    least = min(float(table["coverage"].min()), level - 0.05)
    with house_style():
        size = NARROW if narrow else WIDTH, (0.55 + 0.24 * most) * down + 0.75
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True)
        for number, (ax, place) in enumerate(zip(axes.flat, places, strict=False)):
            own = table[_at(table, place)]
            names = list(dict.fromkeys(own["arm"]))
            ax.axvline(100 * level, color=INK, lw=0.8, ls="--", zorder=1)
            for y, arm in enumerate(names):
                of_arm = own[own["arm"] == arm]
                regions = of_arm[of_arm["region"] != coverage.ALL]
                colour = looks[arm][1]
                shares = 100 * regions["coverage"]
                ax.plot(shares, [y] * len(shares), "o", color=colour, ms=4.5, alpha=0.4, mew=0)
                (line,) = coverage.overall(of_arm).to_dict("records")
                ends = [100 * line["low"], 100 * line["high"]]
                ax.plot(ends, [y, y], color=INK, lw=1.4, zorder=3)
                ax.plot(100 * line["coverage"], y, "|", color=INK, ms=9, mew=1.6, zorder=4)
            ax.set_yticks(range(len(names)), names if narrow or number % across == 0 else [""] * len(names))
            ax.set_ylim(len(names) - 0.4, -0.6)
            ax.set_xlim(100 * (least - 0.02), 100.5)
            ax.set_title(coverage.set_name(*place))
            plain_axes(ax, "x")
        hide_unused(axes, len(places))
        canvas.supxlabel("days whose interval holds the measured value (%)", fontsize=8)
        legend(
            canvas,
            [
                Line2D([], [], ls="", marker="o", color=GREY, alpha=0.6, ms=5, label="a region"),
                Line2D([], [], ls="-", marker="|", color=INK, ms=8, mew=1.6, label="mean of the regions"),
                Line2D([], [], ls="--", color=INK, lw=0.8, label=f"nominal, {level:.0%}"),
            ],
        )
        return finish(
            canvas,
            "coverage-by-region",
            f"Share of days whose {level:.0%} interval holds the measured value, by region and arm",
            f"Coverage of the {level:.0%} prediction intervals. A point is a region. A bar is the mean of "
            "the regions with its interval. In regions left of the dashed line the intervals are too narrow. "
            "They are calibrated on the errors of other regions.",
        )


def _at(table: pd.DataFrame, place: tuple[str, str, str]) -> pd.Series:
    """Return which lines belong to a (regime, split, part)."""
    regime, split, part = place
    return (table["regime"] == regime) & (table["split"] == split) & (table["part"] == part)
