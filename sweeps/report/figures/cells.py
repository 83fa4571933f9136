"""Figures of the scores of single cells: by split, from WR to OoR, and by distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas

from pm25.metrics import KM_EDGES, METRICS
from sweeps.analysis import inference, labels
from sweeps.report.figures.style import (
    FAINT,
    INK,
    MANY,
    ORANGE,
    WIDTH,
    Figure,
    arm_legend,
    arm_looks,
    broken,
    dodge,
    finish,
    fold_legend,
    fold_look,
    folds_of,
    hide_unused,
    house_style,
    panel_grid,
    places_of,
    plain_axes,
)
from sweeps.spec.claims import Analysis


def points(rows: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """Draw the score of every cell: a panel per split (WR, then OoR), a line per arm, a bar at the mean.

    Panels of one regime share their x axis. A label counts the cells of an incomplete arm.
    Returns None without any score.
    """
    cells, means = labels.with_arm(rows), inference.means(rows, Analysis(), metric)
    heads = [place for place in places_of(means) if place[2] != inference.GAP]
    if not cells[f"test_{metric}"].notna().any():
        return None
    arms = list(dict.fromkeys(cells["arm"]))
    # Up to three panels share one row. More take rows of three, and OoR starts a new row.
    regimes = [[head for head in heads if head[0] == regime] for regime in (labels.WR, labels.OOR)]
    across = len(heads) if len(heads) <= 3 else 3
    rows_of = [heads] if len(heads) <= 3 else [r[i : i + 3] for r in regimes for i in range(0, len(r), 3)]
    down = len(rows_of)
    places = {head: (i, j) for i, row in enumerate(rows_of) for j, head in enumerate(row)}
    with house_style():
        canvas = Canvas(figsize=(WIDTH, (0.6 + 0.24 * len(arms)) * down + 0.6), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharey=True)
        shared: dict[str, Any] = {}
        for (regime, split, part), place in places.items():
            ax = axes[place]
            lines = means[(means["split"] == split) & (means["part"] == part)].set_index("arm")
            selected = cells[cells["split"] == split]
            value = selected[f"{part}_{metric}"]
            # Each seed has the same offset in every panel: no dot hides another, and no jitter is random.
            seeds = {seed: i for i, seed in enumerate(sorted(cells["seed"].unique()))}
            height = {
                s: 0.0 if len(seeds) < 2 else 0.36 * (i / (len(seeds) - 1) - 0.5) for s, i in seeds.items()
            }
            y = selected["arm"].map({label: i for i, label in enumerate(arms)}) + selected["seed"].map(height)
            directed = selected["regime"].eq(labels.OOR).all()
            for fold in folds_of(selected) if directed else [0]:
                marker, colour = fold_look(split, fold)
                of_fold = selected["fold"].eq(fold) if directed else selected["fold"].notna()
                dots = {"ms": 3.5, "alpha": 0.75, "mec": "none", "rasterized": len(cells) > MANY}
                ax.plot(value[of_fold], y[of_fold], marker, color=colour, **dots)
            for i, label in enumerate(arms):
                line = lines.loc[label] if label in lines.index else None
                n = 0 if line is None else int(line["n"])
                if line is not None and n:
                    ax.plot([line["mean"]] * 2, [i - 0.36, i + 0.36], color=INK, lw=1.6)
                if line is not None and n < line["n_expected"]:
                    word = (
                        "failed " if line["n_failed"] else "missing " if line["n_missing"] else "undefined "
                    )
                    text = f"{word if n == 0 else 'n='}{n}/{line['n_expected']}"
                    ax.annotate(
                        text,
                        (1, i),
                        (-2, 0),
                        xycoords=("axes fraction", "data"),
                        textcoords="offset points",
                        ha="right",
                        va="center",
                        fontsize=7,
                        color=ORANGE,
                    )
            ax.set_title(f"{regime}: {labels.split_title(split)}")
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.set_yticks(range(len(arms)), arms)
            ax.margins(x=0.12)
            if regime in shared:
                ax.sharex(shared[regime])
            shared.setdefault(regime, ax)
            plain_axes(ax, "x")
        for place in set(np.ndindex(down, across)) - set(places.values()):
            axes[place].set_visible(False)
        canvas.supxlabel(METRICS[metric].title, fontsize=8)
        if any(regime == labels.OOR for regime, *_ in heads):
            fold_legend(canvas, axes.flat[0], cells, "")
        return finish(
            canvas,
            f"cells-{metric}",
            f"{METRICS[metric].name} of every cell by arm and split, with its mean",
            f"{METRICS[metric].title} of every cell, a dot per cell. Bars are means over the cells of an "
            "arm. The tables pool random, spatial and knndm splits over their samples, so their values may "
            "differ.",
            "png" if len(cells) > MANY else "svg",
        )


def wr_to_oor(rows: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """Draw a line from the WR to the OoR score of each cell, by OoR split and arm.

    Returns None if no cell has both.
    """
    cells = labels.with_arm(rows)
    cells = cells[
        (cells["regime"] == labels.OOR) & cells[[f"test_{metric}", f"wr_{metric}"]].notna().all(axis=1)
    ]
    if cells.empty:
        return None
    many = len(cells) > MANY
    arms = list(dict.fromkeys(labels.with_arm(rows)["arm"]))
    drawn = list(dict.fromkeys(cells["split"]))
    with house_style():
        canvas = Canvas(
            figsize=(min(WIDTH, 1.2 + 1.1 * len(arms)), 0.5 + 2.1 * len(drawn)), layout="constrained"
        )
        axes = canvas.subplots(len(drawn), 1, squeeze=False, sharex=True, sharey=True)
        for ax, split in zip(axes.flat, drawn, strict=True):
            selected = cells[cells["split"] == split]
            for i, label in enumerate(arms):
                of_arm = selected[selected["arm"] == label]
                for fold in folds_of(of_arm):
                    marker, colour = fold_look(split, fold)
                    pairs = (
                        of_arm.loc[of_arm["fold"] == fold, [f"wr_{metric}", f"test_{metric}"]].to_numpy().T
                    )
                    x = np.broadcast_to([[i - 0.22], [i + 0.22]], pairs.shape)
                    lines = LineCollection(
                        [*np.stack([x, pairs], axis=2).transpose(1, 0, 2)],
                        colors=colour,
                        linewidths=1,
                        alpha=0.75,
                    )
                    lines.set_rasterized(many)
                    ax.add_collection(lines)
                    ends = {"ms": 3.5, "alpha": 0.75, "mec": "none", "rasterized": many}
                    ax.plot(x.ravel(), pairs.ravel(), marker, color=colour, **ends)
                if of_arm.empty:
                    ax.annotate(
                        "no cell",
                        (i, 0.5),
                        xycoords=("data", "axes fraction"),
                        ha="center",
                        color=ORANGE,
                        fontsize=7,
                    )
                ax.axvline(i + 0.5, color=FAINT, lw=0.8)
            ax.set_title(f"{split}: left WR, right OoR, one line per cell")
            ax.set_xlim(-0.5, len(arms) - 0.5)
            ax.set_xticks(range(len(arms)), [broken(label) for label in arms])
            ax.set_ylabel(METRICS[metric].title)
            plain_axes(ax, "y")
        fold_legend(canvas, axes.flat[0], cells, "-")
        return finish(
            canvas,
            f"wr-to-oor-{metric}",
            f"{METRICS[metric].name} of every out-of-region cell within and out of region",
            f"{METRICS[metric].title} of every out-of-region cell: a line from its WR to its OoR score. The "
            "monitors of the two scores differ, so the length of a line is not a gap.",
            "png" if many else "svg",
        )


def distances(rows: pd.DataFrame, part: str = "test") -> Figure | None:
    """Draw RMSE by distance to the nearest training monitor: a panel per split, a mark per arm.

    Only splits with two or more bins of distance are drawn. `part` is the evaluation set,
    "test" or "wr". Returns None without such a split.
    """
    cells = labels.with_arm(rows)
    bins = [*zip(KM_EDGES, (*KM_EDGES[1:], None), strict=True)]
    columns = [f"{part}_rmse_km_{low}_{'' if high is None else high}" for low, high in bins]
    values = cells.reindex(columns=columns).astype("float64").where(cells["state"] == "done")
    drawn = [
        split
        for split in dict.fromkeys(cells["split"])
        if (values[cells["split"] == split].notna().any().sum()) > 1
    ]
    if not drawn:
        return None
    looks = arm_looks(cells["arm"])
    samples = "held-out sites of the training region" if part == "wr" else "the test samples"
    down, across = panel_grid(len(drawn))
    with house_style():
        canvas = Canvas(figsize=(min(WIDTH, 1 + 3.1 * across), 2.3 * down + 0.5), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharey=True)
        for ax, split in zip(axes.flat, drawn, strict=False):
            selected = cells["split"] == split
            arms = list(dict.fromkeys(cells.loc[selected, "arm"]))
            there = np.flatnonzero(values[selected].notna().any())
            for i, label in enumerate(arms):
                marker, colour = looks[label]
                own = values[selected & (cells["arm"] == label)].iloc[:, there]
                x = np.arange(len(there)) + dodge(i, len(arms))
                ax.vlines(x, own.min(), own.max(), color=colour, lw=1, alpha=0.55)
                ax.plot(x, own.mean(), marker, color=colour, ms=4, mec="white", mew=0.4)
            names = [f"{low}–{high}" if high else f"≥ {low}" for low, high in (bins[i] for i in there)]
            ax.set_xticks(range(len(there)), names)
            for edge in range(1, len(there)):
                ax.axvline(edge - 0.5, color=FAINT, lw=0.7)
            ax.set_xlim(-0.5, len(there) - 0.5)
            regime = labels.WR if part == "wr" else cells.loc[selected, "regime"].iloc[0]
            ax.set_title(f"{regime}: {labels.split_title(split)}")
            plain_axes(ax, "y")
        hide_unused(axes, len(drawn))
        canvas.supxlabel("distance to the nearest training monitor (km)", fontsize=8)
        canvas.supylabel("RMSE (µg/m³)", fontsize=8)
        arm_legend(canvas, looks)
        return finish(
            canvas,
            "distance" if part == "test" else f"distance-{part}",
            "RMSE by distance to the nearest training monitor, arm by arm"
            + (" (WR sites of the out-of-region splits)" if part == "wr" else ""),
            f"RMSE (µg/m³) of {samples} by the distance from their site to the nearest training monitor. A "
            "mark is the mean over the cells of an arm, and a line is their range. Each fold has other sites "
            "in a bin; few sites are far from all training monitors.",
        )
