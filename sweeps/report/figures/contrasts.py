"""Figures of means and of paired differences between arms."""

from __future__ import annotations

import itertools
import math
import operator
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from pm25.metrics import METRICS
from sweeps.analysis import labels
from sweeps.report import summary
from sweeps.report.figures.style import (
    BLUE,
    GOLD,
    GREY,
    INK,
    NARROW,
    ORANGE,
    WIDTH,
    Figure,
    arm_legend,
    arm_looks,
    finish,
    hide_unused,
    house_style,
    legend,
    panel_grid,
    places_of,
    plain_axes,
)

_VERDICTS = {
    # Marker, face and edge of each verdict; all differ without colour as well.
    "better": ("o", BLUE, BLUE),
    "worse": ("X", ORANGE, ORANGE),
    "equal": ("s", GREY, INK),
    "undecided": ("D", GOLD, INK),
    "too few": ("o", "white", INK),
    "exploratory": ("d", "white", GREY),
}


def forest(contrasts: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """Draw paired differences to 'none' on test samples, as the verdict table has them.

    There is a panel per split and a line per arm. On a small screen, the panels are below each other.
    Returns None without any difference.
    """
    wide, narrow = (_forest(contrasts, metric, narrow=narrow) for narrow in (False, True))
    return wide and narrow and wide._replace(small=narrow.svg)


def _forest(contrasts: pd.DataFrame, metric: str, *, narrow: bool) -> Figure | None:
    """Draw the forest plot for a page or for a small screen."""
    own = contrasts[(contrasts["metric"] == metric) & (contrasts["part"] == "test")]
    every = pd.DataFrame(summary.against_none_by_place(own), columns=contrasts.columns)
    frame = every[every["diff"].notna() & every["verdict"].isin([*_VERDICTS])]
    if frame.empty:
        return None
    arms = list(dict.fromkeys(every["arm"]))
    tested = frame["declared"] | (frame["verdict"] == "too few")
    frame = frame.assign(verdict=frame["verdict"].where(tested, "exploratory"))
    places = places_of(frame)
    down, across = panel_grid(len(places), 1) if narrow else panel_grid(len(places))
    with house_style():
        width = NARROW if narrow else WIDTH
        canvas = Canvas(figsize=(width, (0.7 + 0.21 * len(arms)) * down + 0.75), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        small: dict[str, Any] = {"fontsize": 7, "color": GREY}
        characters = 36 if narrow else {1: 60, 2: 44}.get(across, 30)  # that a panel's width has room for
        for ax, (regime, split, part) in zip(axes.flat, places, strict=False):
            selected = frame[(frame["split"] == split) & (frame["part"] == part)]
            ax.annotate(
                "units", (1, 1), (3, 3), xycoords="axes fraction", textcoords="offset points", **small
            )
            rope = float(selected["rope"].max())
            if math.isfinite(rope):
                ax.axvspan(-rope, rope, color="#ececec", lw=0, zorder=0)
            ax.axvline(0, color=INK, lw=0.7, zorder=1)
            for line in selected.to_dict("records"):
                y = arms.index(line["arm"])
                marker, face, edge = _VERDICTS[line["verdict"]]
                ax.plot([line["low"], line["high"]], [y, y], color=edge, lw=1.6, zorder=2)
                ax.plot(line["diff"], y, marker, mfc=face, mec=edge, mew=0.8, ms=5, zorder=4)
                ax.annotate(
                    f"{line['n_units']}",
                    (1, y),
                    (3, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    **small,
                )
            estimand = str(selected["estimand"].iloc[0])
            ax.set_title("\n".join([*textwrap.wrap(f"{regime}: {estimand}", characters), split]))
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.set_yticks(range(len(arms)), arms)
            plain_axes(ax, "x")
        hide_unused(axes, len(places))
        better = METRICS[metric].better
        canvas.supxlabel(f"{METRICS[metric].title}: arm minus 'none' ({better} is better)", fontsize=8)
        seen = [verdict for verdict in _VERDICTS if (frame["verdict"] == verdict).any()]
        handles = [
            Line2D(
                [], [], ls="", marker=m, mfc=face, mec=edge, ms=5, label=summary.WORDS.get(verdict, verdict)
            )
            for verdict, (m, face, edge) in ((verdict, _VERDICTS[verdict]) for verdict in seen)
        ]
        legend(canvas, handles)
        return finish(
            canvas,
            f"forest-{metric}",
            f"Forest plot of paired {METRICS[metric].name} differences to 'none', by split and arm",
            f"Differences in {METRICS[metric].title} between each arm and 'none', paired by split, fold "
            "and seed. A line is the interval of the test that decides. An arm whose interval is inside the "
            "grey band is equivalent. The number at the right counts the independent units. Hollow marks are "
            "differences without a test, or of contrasts that were not declared.",
        )


def by_monitor(frame: pd.DataFrame, arm: str, split_names: Sequence[str]) -> Figure | None:
    """Draw the differences of one arm and 'none' by group of monitors, a panel per split.

    `frame` is that of `sweeps.analysis.by_monitor.differences`. On a small screen, the panels are below each
    other. Returns None without any group.
    """
    wide, narrow = (_by_monitor(frame, arm, split_names, narrow=narrow) for narrow in (False, True))
    return wide and narrow and wide._replace(small=narrow.svg)


def _by_monitor(frame: pd.DataFrame, arm: str, split_names: Sequence[str], *, narrow: bool) -> Figure | None:
    """Draw the groups of monitors for a page or for a small screen."""
    own = frame[(frame["arm"] == arm) & frame["split"].isin(split_names)]
    if own.empty:
        return None
    found = list(dict.fromkeys(own["split"]))
    # A line per group: the thirds of a factor differ between splits, so each panel has its own.
    lines = {split: own[own["split"] == split].to_dict("records") for split in found}
    most = max(len(of_split) + len({line["factor"] for line in of_split}) for of_split in lines.values())
    down, across = panel_grid(len(found), 1 if narrow else 2)
    with house_style():
        size = NARROW if narrow else WIDTH, (0.5 + 0.19 * most) * down + 0.35
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True)
        for ax, (split, of_split) in zip(axes.flat, lines.items(), strict=False):
            names: list[str] = []
            for factor, groups in itertools.groupby(of_split, key=operator.itemgetter("factor")):
                names.append(f"{factor}:")
                for line in groups:
                    y = len(names)
                    names.append(f"{line['group']} ({line['monitors']:,})")
                    ax.plot([line["low"], line["high"]], [y, y], color=BLUE, lw=1.6, zorder=2)
                    face = BLUE if math.isfinite(line["low"]) else "white"
                    ax.plot(line["diff"], y, "o", mfc=face, mec=BLUE, mew=0.8, ms=4.5, zorder=4)
            ax.axvline(0, color=INK, lw=0.7, zorder=1)
            ax.set_title(split)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.set_yticks(range(len(names)), names)
            for label in ax.get_yticklabels():
                if label.get_text().endswith(":"):
                    label.set_fontweight("bold")
            plain_axes(ax, "x")
        hide_unused(axes, len(found))
        canvas.supxlabel("RMSE (µg/m³): arm minus 'none' (lower is better)", fontsize=8)
        return finish(
            canvas,
            "monitors",
            f"Differences of the RMSE of {arm} and 'none' by group of monitors and split",
            f"{arm} minus 'none', by group of monitors. The number of monitors is in brackets. A line is the "
            "interval over blocks of monitors or, out of region, over origins. A hollow mark has too few of "
            "them.",
        )


def wr_against_oor(means: pd.DataFrame, metric: str = "rmse", arms: Sequence[str] = ()) -> Figure | None:
    """Draw WR against OoR means of the same models: two panels per OoR split, a mark per arm.

    The left panel has intervals and the diagonal, the right one only the means. Returns None without both.
    """
    frame = means[(means["metric"] == metric) & means["mean"].notna()]
    oor_splits = list(dict.fromkeys(frame.loc[frame["regime"] == labels.OOR, "split"]))
    both = {}
    for split in oor_splits:
        selected = frame[frame["split"] == split]
        wr, oor = (selected[selected["part"] == part].set_index("arm") for part in ("wr", "test"))
        if len(paired := [arm for arm in oor.index if arm in wr.index]):
            both[split] = wr.loc[paired], oor.loc[paired]
    if not both:
        return None
    better = METRICS[metric].better
    looks = arm_looks((arm for wr, _ in both.values() for arm in wr.index), arms)
    with house_style():
        canvas = Canvas(figsize=(WIDTH, 2.6 * len(both) + 0.4), layout="constrained")
        axes = canvas.subplots(len(both), 2, squeeze=False)
        for (full, close), (split, (wr, oor)) in zip(axes, both.items(), strict=True):
            for label in wr.index:
                marker, colour = looks[label]
                x, y = wr.loc[label], oor.loc[label]
                if (ends := _interval(x)) is not None:
                    full.plot(ends, [y["mean"]] * 2, color=colour, lw=0.8, alpha=0.7)
                if (ends := _interval(y)) is not None:
                    full.plot([x["mean"]] * 2, ends, color=colour, lw=0.8, alpha=0.7)
                for ax in (full, close):
                    ax.plot(
                        x["mean"], y["mean"], marker, color=colour, ms=5.5, mec="white", mew=0.5, zorder=4
                    )
            # Only the left panel has the diagonal, which may be far from the means.
            low, high = (f(*full.get_xlim(), *full.get_ylim()) for f in (min, max))
            full.plot([low, high], [low, high], color=GREY, lw=0.8, ls="--", zorder=1)
            full.set_title(f"{split}: means with intervals")
            close.margins(0.2)
            close.set_title(f"{split}: means only")
            for ax in (full, close):
                ax.set_xlabel(f"WR {METRICS[metric].title}")
                ax.set_ylabel(f"OoR {METRICS[metric].title}")
                plain_axes(ax, "both")
        arm_legend(canvas, looks)
        return finish(
            canvas,
            f"wr-oor-{metric}",
            f"{METRICS[metric].name} within region against out of region, by arm and split",
            f"Mean {METRICS[metric].title} of the same models on held-out sites of the training region (WR) "
            "and in the held-out region (OoR). The left panel shows intervals, the right one only the means. "
            f"On the dashed line both are equal; {'below' if better == 'higher' else 'above'} it a model is "
            "worse out of region. The monitors of the two scores differ, so the distance from the line is "
            "not a gap. Intervals are those of one arm and include variation that all arms share. To compare "
            "arms, see the paired differences.",
        )


def _interval(line: pd.Series) -> tuple[float, float] | None:
    """Return the interval of a mean, or None."""
    ends = float(line["low"]), float(line["high"])
    return ends if np.isfinite(ends).all() else None
