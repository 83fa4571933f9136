"""Figures of means and of paired differences between arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from pm25.metrics import METRICS
from pm25.text import counted
from sweeps.analysis import labels
from sweeps.report.figures.style import (
    BLUE,
    GOLD,
    GREY,
    INK,
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
    "not declared": ("d", "white", GREY),
}


def forest(contrasts: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """Draw paired differences to 'none': a panel per split and evaluation set, a line per arm.

    Returns None without any difference.
    """
    frame = contrasts[
        (contrasts["other"] == labels.BASELINE)
        & (contrasts["metric"] == metric)
        & (contrasts["part"] != "gap")
        & contrasts["fold"].isna()
        & contrasts["diff"].notna()
        & contrasts["verdict"].isin([*_VERDICTS])
    ]
    if frame.empty:
        return None
    arms = list(dict.fromkeys(contrasts.loc[contrasts["other"] == labels.BASELINE, "arm"]))
    tested = frame["declared"] | (frame["verdict"] == "too few")
    frame = frame.assign(verdict=frame["verdict"].where(tested, "not declared"))
    places = places_of(frame)
    down, across = panel_grid(len(places))
    with house_style():
        canvas = Canvas(figsize=(WIDTH, (0.55 + 0.21 * len(arms)) * down + 0.75), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for ax, (regime, split, part) in zip(axes.flat, places, strict=False):
            selected = frame[(frame["split"] == split) & (frame["part"] == part)]
            rope = float(selected["rope"].max())
            if math.isfinite(rope):
                ax.axvspan(-rope, rope, color="#ececec", lw=0, zorder=0)
            ax.axvline(0, color=INK, lw=0.7, zorder=1)
            for line in selected.to_dict("records"):
                y = arms.index(line["arm"])
                ax.plot([line["low"], line["high"]], [y, y], color="#b5b5b5", lw=3, zorder=2)
                ax.plot([line["boot_low"], line["boot_high"]], [y, y], color=INK, lw=0.8, zorder=3)
                marker, face, edge = _VERDICTS[line["verdict"]]
                ax.plot(line["diff"], y, marker, mfc=face, mec=edge, mew=0.8, ms=5, zorder=4)
                ax.annotate(
                    f"{line['n_units']}",
                    (1, y),
                    (3, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                    color=GREY,
                )
            ax.set_title(f"{regime}: {split}")
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.set_yticks(range(len(arms)), arms)
            plain_axes(ax, "x")
        hide_unused(axes, len(places))
        better = METRICS[metric].better
        canvas.supxlabel(
            f"{METRICS[metric].title}: arm minus 'none', paired ({better} is better)", fontsize=8
        )
        seen = [verdict for verdict in _VERDICTS if (frame["verdict"] == verdict).any()]
        handles = [
            Line2D([], [], ls="", marker=m, mfc=face, mec=edge, ms=5, label=verdict)
            for verdict, (m, face, edge) in ((verdict, _VERDICTS[verdict]) for verdict in seen)
        ]
        if frame["low"].notna().any():
            handles.append(Line2D([], [], color="#b5b5b5", lw=3, label="interval over test sets"))
        if frame["boot_low"].notna().any():
            handles.append(Line2D([], [], color=INK, lw=0.8, label="bootstrap over sites or blocks"))
        legend(canvas, handles)
        return finish(
            canvas,
            f"forest-{metric}",
            f"Forest plot of paired {METRICS[metric].name} differences to 'none', by split and arm",
            f"Differences in {METRICS[metric].title} between each arm and 'none', paired by split, fold "
            "and seed. Thick lines are intervals over independent test sets. Thin lines are bootstrap "
            "intervals over sites (WR) or blocks of sites (OoR). Arms are practically equal within the "
            "grey band. The number at the right is the number of independent test sets. Hollow marks have "
            "too few of them for a test, or their contrast was not declared.",
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
            # Only the left panel has the diagonal: the distance from it is the gap.
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
            "worse out of region. With three or more test sets, the interval is over test sets and paired. "
            "With fewer, it is a bootstrap interval over sites or blocks, which includes variation that all "
            "arms share. To compare arms, see the paired differences.",
        )


def _interval(line: pd.Series) -> tuple[float, float] | None:
    """Return the interval over test sets, or else the bootstrap interval, or None."""
    for low, high in (("low", "high"), ("boot_low", "boot_high")):
        if np.isfinite([line[low], line[high]]).all():
            return float(line[low]), float(line[high])
    return None


def ranks(ranking: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """Draw critical-difference diagrams (Demsar 2006): mean ranks, bars over arms that may be equal.

    Returns None unless some split ranks two arms.
    """
    frame = ranking[(ranking["metric"] == metric) & ranking["mean_rank"].notna()]
    places = list(dict.fromkeys(zip(frame["split"], frame["part"], strict=True)))
    places = [p for p in places if ((frame["split"] == p[0]) & (frame["part"] == p[1])).sum() > 1]
    if not places:
        return None
    down, across = panel_grid(len(places), 2)
    most = int(frame.groupby(["split", "part"]).size().max())
    with house_style():
        canvas = Canvas(figsize=(WIDTH, (0.95 + 0.09 * most) * down + 0.2), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False)
        for ax, (split, part) in zip(axes.flat, places, strict=False):
            selected = frame[(frame["split"] == split) & (frame["part"] == part)].sort_values(
                ["mean_rank", "arm"], kind="stable"
            )
            _critical_difference(ax, selected)
            words = f"{split}{' (WR sites)' if part == 'wr' else ''}"
            ax.set_title(f"{words}: {counted(int(selected['n_units'].iloc[0]), 'test set')}{_p(selected)}")
        hide_unused(axes, len(places))
        return finish(
            canvas,
            f"ranks-{metric}",
            f"Mean ranks of the arms by {METRICS[metric].name}, with critical differences",
            f"Mean ranks over independent test sets by {METRICS[metric].name}; 1 is best. Arms that share "
            "a bar differ by less than Nemenyi's critical difference (CD). p is that of Friedman's test.",
        )


def _p(selected: pd.DataFrame) -> str:
    """Return the p-value of Friedman's test for a panel's title, or ''."""
    p = float(selected["friedman_p"].iloc[0])
    return f", p = {p:.2g}" if math.isfinite(p) else ""


def _critical_difference(ax: Any, selected: pd.DataFrame) -> None:
    """Draw one diagram: an axis of ranks, and the names of the arms at both sides below it."""
    rank = selected["mean_rank"].to_numpy()
    critical = float(selected["critical_difference"].iloc[0])
    worst, half = max(len(rank), math.ceil(rank.max())), (len(rank) + 1) // 2
    groups: list[tuple[int, int]] = []
    if math.isfinite(critical):
        for i in range(len(rank)):
            j = int(np.flatnonzero(rank <= rank[i] + critical)[-1])
            if j > i and not any(j <= last for _, last in groups):
                groups.append((i, j))
    # The bars are drawn between the axis and the first name.
    depth = 0.55 + 0.35 * len(groups)
    ax.plot([1, worst], [0, 0], color=INK, lw=0.9)
    for tick in range(1, worst + 1):
        ax.plot([tick, tick], [0, 0.15], color=INK, lw=0.9)
        ax.text(tick, 0.25, str(tick), ha="center", va="bottom", fontsize=7)
    span = worst - 1
    for i, (label, value) in enumerate(zip(selected["arm"], rank, strict=True)):
        left = i < half
        row = i if left else len(rank) - 1 - i
        y, edge = -depth - 0.75 * row, 1 - 0.04 * span if left else worst + 0.04 * span
        ax.plot([value, value, edge], [0, y, y], color=GREY, lw=0.8)
        ax.plot(value, 0, "o", color=INK, ms=3)
        ax.text(
            edge + (-0.02 if left else 0.02) * span,
            y,
            f"{label} ({value:.2f})",
            ha="right" if left else "left",
            va="center",
            fontsize=7,
        )
    for k, (i, j) in enumerate(groups):
        y = -0.3 - 0.35 * k
        ax.plot(
            [rank[i] - 0.02 * span, rank[j] + 0.02 * span], [y, y], color=INK, lw=2.6, solid_capstyle="butt"
        )
    if math.isfinite(critical) and critical <= span:
        ax.plot([1, 1 + critical], [1.25, 1.25], color=INK, lw=1.2, marker="|", ms=5)
        ax.text(1 + critical, 1.25, f"  CD {critical:.2f}", va="center", fontsize=7)
    elif math.isfinite(critical):
        ax.text(1, 1.25, f"CD {critical:.2f}, wider than the range of ranks", va="center", fontsize=7)
    else:
        ax.text(1, 1.25, "too few test sets for a test", va="center", fontsize=7)
    ax.set_xlim(1 - 0.85 * span, worst + 0.85 * span)
    ax.set_ylim(-depth - 0.75 * half, 1.7)
    ax.axis("off")
