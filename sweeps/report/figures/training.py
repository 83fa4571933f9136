"""Figures of training: learning curves, importance of inputs, and searches."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pm25.text import counted
from sweeps.analysis.artifacts import Curves
from sweeps.report.figures.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    WIDTH,
    Figure,
    arm_legend,
    arm_looks,
    dodge,
    finish,
    hide_unused,
    house_style,
    legend,
    panel_grid,
    plain_axes,
)


def learning(curves: Curves, arms: Sequence[str] = ()) -> Figure | None:
    """Draw validation RMSE by epoch, a panel per split, a line per arm with the range over its cells."""
    frame = curves.frame
    if frame.empty:
        return None
    looks = arm_looks(frame["arm"], arms)
    drawn = list(dict.fromkeys(frame["split"]))
    down, across = panel_grid(len(drawn))
    with house_style():
        canvas = Canvas(figsize=(WIDTH, 2.3 * down + 0.5), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False)
        for ax, split in zip(axes.flat, drawn, strict=False):
            for label, selected in frame[frame["split"] == split].groupby("arm", sort=False):
                marker, colour = looks[str(label)]
                ax.fill_between(
                    selected["epoch"], selected["low"], selected["high"], color=colour, alpha=0.05, lw=0
                )
                for end in ("low", "high"):
                    ax.plot(selected["epoch"], selected[end], color=colour, lw=0.5, alpha=0.6)
                every = max(1, len(selected) // 8)
                ax.plot(
                    selected["epoch"],
                    selected["mean"],
                    f"{marker}-",
                    color=colour,
                    ms=3.2,
                    lw=1.1,
                    markevery=every,
                )
            ax.set_title(split)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            plain_axes(ax, "y")
        hide_unused(axes, len(drawn))
        canvas.supxlabel("epoch", fontsize=8)
        canvas.supylabel("validation RMSE (µg/m³)", fontsize=8)
        arm_legend(canvas, looks)
        cells = (
            f"all {counted(curves.done, 'cell')}"
            if curves.read == curves.done
            else f"the first {curves.read:,} of {curves.done:,} cells, by seed"
        )
        return finish(
            canvas,
            "learning",
            "Learning curves: validation RMSE by epoch, arm by arm",
            f"Validation RMSE (µg/m³) by epoch over {cells}: mean and range over the folds and seeds of an "
            "arm. A curve covers the epochs that at least half of its cells reached. Validation sites are "
            "in the training region.",
        )


def permutations(importance: pd.DataFrame, arms: Sequence[str] = (), most: int = 15) -> Figure | None:
    """Draw the rise of the test RMSE when one input is permuted, for the `most` important inputs."""
    frame = importance[importance["rmse_increase"].notna()]
    if frame.empty:
        return None
    looks = arm_looks(frame["arm"], arms)
    drawn = list(dict.fromkeys(frame["split"]))
    order = (
        frame.groupby("what", sort=False)["rmse_increase"].max().sort_values(ascending=False, kind="stable")
    )
    names = list(order.index[:most])
    down, across = panel_grid(len(drawn))
    with house_style():
        canvas = Canvas(
            figsize=(min(WIDTH, 2.6 + 2.3 * across), (0.6 + 0.24 * len(names)) * down + 0.6),
            layout="constrained",
        )
        axes = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for ax, split in zip(axes.flat, drawn, strict=False):
            there = list(dict.fromkeys(frame.loc[frame["split"] == split, "arm"]))
            for i, label in enumerate(there):
                selected = frame[
                    (frame["split"] == split) & (frame["arm"] == label) & frame["what"].isin(names)
                ]
                y = selected["what"].map(names.index) + dodge(i, len(there))
                marker, colour = looks[label]
                sd = selected["sd"].fillna(0)
                ax.hlines(
                    y,
                    selected["rmse_increase"] - sd,
                    selected["rmse_increase"] + sd,
                    color=colour,
                    lw=1,
                    alpha=0.6,
                )
                ax.plot(selected["rmse_increase"], y, marker, color=colour, ms=4, mec="white", mew=0.4)
            ax.axvline(0, color=INK, lw=0.7)
            ax.set_title(split)
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
            plain_axes(ax, "x")
        hide_unused(axes, len(drawn))
        canvas.supxlabel("rise of the test RMSE when the input is permuted (µg/m³)", fontsize=8)
        arm_legend(canvas, looks)
        some = (
            f" Shown are the {len(names)} most important of {len(order)} inputs."
            if len(order) > len(names)
            else ""
        )
        return finish(
            canvas,
            "importance",
            "Permutation importance of the inputs, by arm",
            "Rise of the test RMSE (µg/m³) when the values of one input are permuted among the samples, "
            f"mean ± standard deviation.{some} Correlated inputs share their importance.",
        )


def search_history(trials: pd.DataFrame) -> Figure | None:
    """Draw the trials of each search and the best score so far, a panel per arm and objective."""
    if not trials["value"].notna().any():
        return None
    panels = list(dict.fromkeys(zip(trials["objective"], trials["arm"], strict=True)))
    down, across = panel_grid(len(panels))
    with house_style():
        canvas = Canvas(figsize=(WIDTH, 1.75 * down + 0.5), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True)
        for ax, (objective, label) in zip(axes.flat, panels, strict=False):
            selected = trials[(trials["arm"] == label) & (trials["objective"] == objective)].sort_values(
                "number"
            )
            done = selected[selected["state"] == "done"]
            for _, own in done.groupby(done["fold"], sort=False):  # a nested search has one for each fold
                best = own["value"].cummin() if own["smaller_is_better"].all() else own["value"].cummax()
                ax.step(own["number"], best, where="post", color=ORANGE, lw=1.1)
            ax.plot(done["number"], done["value"], "o", color=BLUE, ms=3, mec="none", alpha=0.8)
            for state, marker in (("pruned", "|"), ("failed", "x")):
                at = selected.loc[selected["state"] == state, "number"]
                ax.plot(at, [0.03] * len(at), marker, color=INK, ms=4, transform=ax.get_xaxis_transform())
            ax.margins(y=0.14)
            ax.set_title(label)
            ax.set_ylabel(objective)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            plain_axes(ax, "y")
        hide_unused(axes, len(panels))
        canvas.supxlabel("trial", fontsize=8)
        marks = [("o", BLUE, "", "trial"), ("", ORANGE, "-", "best so far")]
        marks += [
            (marker, INK, "", state)
            for state, marker in (("pruned", "|"), ("failed", "x"))
            if (trials["state"] == state).any()
        ]
        handles = [Line2D([], [], marker=m, color=c, ls=ls, ms=4, label=name) for m, c, ls, name in marks]
        legend(canvas, handles)
        return finish(
            canvas,
            "search-history",
            "Trials of each search, with the best score so far",
            "Validation score of every trial of each search, with the best score so far.",
        )


def parameter_importance(parameters: pd.DataFrame, arms: Sequence[str] = ()) -> Figure | None:
    """Draw the share of a search's variance that each setting explains, by arm.

    `parameters` has the columns arm, parameter and importance.
    """
    frame = parameters[parameters["importance"].notna()]
    if frame.empty:
        return None
    looks = arm_looks(frame["arm"], arms)
    names = list(
        frame.groupby("parameter", sort=False)["importance"]
        .mean()
        .sort_values(ascending=False, kind="stable")
        .index
    )
    with house_style():
        canvas = Canvas(figsize=(5.2, 0.32 * len(names) + 1.1), layout="constrained")
        ax = canvas.subplots()
        for i, (label, (marker, colour)) in enumerate(looks.items()):
            selected = frame[frame["arm"] == label]
            y = selected["parameter"].map(names.index) + dodge(i, len(looks))
            ax.plot(selected["importance"], y, marker, color=colour, ms=4.5, mec="white", mew=0.4)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(-0.02, 1.02)
        for edge in range(1, len(names)):
            ax.axhline(edge - 0.5, color=FAINT, lw=0.7)
        ax.set_xlabel("share of the variance of the trials' scores")
        plain_axes(ax, "x")
        arm_legend(canvas, looks)
        return finish(
            canvas,
            "search-importance",
            "Importance of the tuned settings, by arm",
            "Share of the variance of the trials' validation scores that each setting explains, by arm "
            "(fANOVA; Hutter et al. 2014). The estimate is rough with few trials.",
        )
