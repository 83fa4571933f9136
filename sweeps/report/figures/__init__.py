"""The report's figures: frames in, the bytes of pictures out.

The only module that imports matplotlib. It draws on Figure objects (no pyplot, no display, no global
state), with its default style, a fixed salt and no date, so that the same frames give the same bytes.
Sizes are those of a printed page: 7.2 inches are two columns of a journal, and no letter is below 7 points.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib.colors
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pm25 import splits
from pm25.geo import CONUS, EARTH_KM
from pm25.metrics import EXCEEDANCE_UGM3, KM_EDGES, METRICS
from sweeps.analysis import inference, labels
from sweeps.analysis.artifacts import BEND_UGM3, DENSITY_EDGES, Curves, Predicted
from sweeps.analysis.results import SplitMap
from sweeps.spec.claims import Analysis

WIDTH = 7.2
DPI = 160
"""Of the PNG: as many pixels as the page is wide; for print there is the SVG."""
MANY = 1000
"""Cells, more than which are pixels in an SVG too: a mark for each would make it megabytes."""
FEWEST = 100
"""Samples that a mean of a calibration bin needs to be drawn: a day of smoke is many of them at once."""

# Okabe and Ito (2008): told apart with any colour vision. Markers differ as well, for print.
_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _GOLD = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
_INK, _GREY, _FAINT = "#222222", "#8a8a8a", "#e4e4e4"
_LOOKS = [("o", _BLUE), ("^", _ORANGE), ("s", _GREEN), ("D", _PINK), ("v", _SKY), ("P", _GOLD)]
_STYLE = {
    "svg.hashsalt": "pm25-sweeps",
    "svg.fonttype": "path",
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.facecolor": "white",
}
_VERDICTS = {
    # A verdict's marker, its face and its edge: no two alike without colour.
    "better": ("o", _BLUE, _BLUE),
    "worse": ("X", _ORANGE, _ORANGE),
    "equal": ("s", _GREY, _INK),
    "undecided": ("D", _GOLD, _INK),
    "too few": ("o", "white", _INK),
    "not declared": ("d", "white", _GREY),
}
_ROLES = {
    "train": (".", _BLUE, "training"),
    "validation": ("^", _SKY, "validation"),
    "wr": ("s", _GREEN, "held out inside (WR test)"),
    "test": ("D", _ORANGE, "held out region (OoR test)"),
}


class Figure(NamedTuple):
    """One picture, as a vector graphic and in pixels."""

    name: str
    """Of its files, without the suffix."""
    svg: bytes
    png: bytes
    embed: Literal["svg", "png"]
    """Which of them is small enough for a page: pixels where there is a mark for every site."""
    alt: str
    caption: str


def draw(
    rows: pd.DataFrame,
    metric: str = "rmse",
    *,
    contrasts: pd.DataFrame | None = None,
    means: pd.DataFrame | None = None,
    ranking: pd.DataFrame | None = None,
    predicted: Predicted | None = None,
    curves: Curves | None = None,
    importance: pd.DataFrame | None = None,
    trials: pd.DataFrame | None = None,
    parameters: pd.DataFrame | None = None,
    cuts: Sequence[SplitMap] = (),
    outlines: Sequence[np.ndarray] = (),
) -> list[Figure]:
    """Every figure that there is data for, in the report's order.

    `contrasts`, `means` and `ranking` as `sweeps.analysis.inference` makes them, of one metric or of several,
    `rows` as `results.rows`, `predicted`, `curves` and `importance` as `artifacts`,
    `trials` and `parameters` as `results.search_trials` and `search_parameters`, `cuts` as `results.cuts`,
    and `outlines` as `outlines.read`. `metric` is the primary one, by which the best encoder is chosen.
    """
    arms = list(dict.fromkeys(labels.with_arm(rows)["arm"]))  # one look in all figures
    found: list[Figure | None] = []
    if contrasts is not None:
        found += [forest(contrasts, name) for name in dict.fromkeys(contrasts["metric"])]
    if means is not None:
        found += [within_against_outside(means, name, arms) for name in dict.fromkeys(means["metric"])]
    if ranking is not None:
        found += [ranks(ranking, name) for name in dict.fromkeys(ranking["metric"])]
    for name in ("rmse", "r2"):
        found += [points(rows, name), gap(rows, name)]
    found += [distances(rows, part) for part in ("test", "wr")]
    found += [split_map(cut, outlines) for cut in cuts]
    if predicted is not None:
        best = best_encoder(rows, metric)
        if best is not None:
            found.append(difference_map(predicted, best, first_splits(rows), outlines, metric))
        found += error_maps(predicted, first_splits(rows)[-1:], outlines)
        for split in first_splits(rows):
            found += [density(predicted, split), tail(predicted, split, arms=arms)]
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
    """The first split within region and the first out of region, as far as there are any."""
    return [
        str(of_regime["split"].iloc[0])
        for regime in (labels.WR, labels.OOR)
        if len(of_regime := rows[rows["regime"] == regime])
    ]


def best_encoder(rows: pd.DataFrame, metric: str = "rmse") -> str | None:
    """The arm with an encoder that is best on the last of `first_splits`; None where none has all its cells.

    The controls (`none`, `random` and `shuffled` vectors) are no candidates.
    """
    chosen = first_splits(rows)[-1:]
    if not chosen:
        return None
    means = inference.means(rows, Analysis(), metric)
    whole = labels.whole(means[(means["split"] == chosen[0]) & (means["part"] == "test")])
    encoders = whole[
        whole["fusion"].notna() & ~whole["variant"].isin([labels.BASELINE, "random", "shuffled"])
    ]
    return str(encoders["arm"].iloc[0]) if len(encoders) else None


def forest(contrasts: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """Paired differences to 'none': a panel per split and part, a line per arm. None without a difference."""
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
    places = _places(frame)
    down, across = _grid(len(places))
    with _style():
        canvas = Canvas(figsize=(WIDTH, (0.55 + 0.21 * len(arms)) * down + 0.75), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for ax, (regime, split, part) in zip(axes.flat, places, strict=False):
            mine = frame[(frame["split"] == split) & (frame["part"] == part)]
            rope = float(mine["rope"].max())
            if math.isfinite(rope):
                ax.axvspan(-rope, rope, color="#ececec", lw=0, zorder=0)
            ax.axvline(0, color=_INK, lw=0.7, zorder=1)
            for line in mine.to_dict("records"):
                y = arms.index(line["arm"])
                ax.plot([line["low"], line["high"]], [y, y], color="#b5b5b5", lw=3, zorder=2)
                ax.plot([line["boot_low"], line["boot_high"]], [y, y], color=_INK, lw=0.8, zorder=3)
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
                    color=_GREY,
                )
            ax.set_title(f"{regime}: {split}")
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.set_yticks(range(len(arms)), arms)
            _plain(ax, "x")
        _hide(axes, len(places))
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
            handles.append(Line2D([], [], color="#b5b5b5", lw=3, label="interval over folds"))
        if frame["boot_low"].notna().any():
            handles.append(Line2D([], [], color=_INK, lw=0.8, label="bootstrap over sites or blocks"))
        _legend(canvas, handles)
        return _finish(
            canvas,
            f"forest-{metric}",
            f"Forest plot of paired {METRICS[metric].name} differences to 'none', by split and arm",
            f"Paired differences in {METRICS[metric].title} to 'none': the same split, fold and "
            "seed. A thick line is the interval over independent test sets, a thin one the bootstrap over "
            "sites (WR) or blocks of sites (OoR); within the grey band arms count as equal. The number at "
            "the right counts the independent test sets; hollow: too few of them for a test.",
        )


def within_against_outside(
    means: pd.DataFrame, metric: str = "rmse", arms: Sequence[str] = ()
) -> Figure | None:
    """WR against OoR of the same models, an arm a mark, a panel per split of regions. None without both."""
    frame = means[(means["metric"] == metric) & means["mean"].notna()]
    outer = list(dict.fromkeys(frame.loc[frame["regime"] == labels.OOR, "split"]))
    both = {}
    for split in outer:
        mine = frame[frame["split"] == split]
        wr, oor = (mine[mine["part"] == part].set_index("arm") for part in ("wr", "test"))
        if len(paired := [arm for arm in oor.index if arm in wr.index]):
            both[split] = wr.loc[paired], oor.loc[paired]
    if not both:
        return None
    looks = _looks((arm for wr, _ in both.values() for arm in wr.index), arms)
    with _style():
        canvas = Canvas(figsize=(WIDTH, 2.6 * len(both) + 0.4), layout="constrained")
        axes = canvas.subplots(len(both), 2, squeeze=False)
        for (whole, close), (split, (wr, oor)) in zip(axes, both.items(), strict=True):
            for label in wr.index:
                marker, colour = looks[label]
                x, y = wr.loc[label], oor.loc[label]
                if (ends := _interval(x)) is not None:
                    whole.plot(ends, [y["mean"]] * 2, color=colour, lw=0.8, alpha=0.7)
                if (ends := _interval(y)) is not None:
                    whole.plot([x["mean"]] * 2, ends, color=colour, lw=0.8, alpha=0.7)
                for ax in (whole, close):
                    ax.plot(
                        x["mean"], y["mean"], marker, color=colour, ms=5.5, mec="white", mew=0.5, zorder=4
                    )
            # The diagonal belongs to the picture of the whole: the distance from it is the gap.
            low, high = (f(*whole.get_xlim(), *whole.get_ylim()) for f in (min, max))
            whole.plot([low, high], [low, high], color=_GREY, lw=0.8, ls="--", zorder=1)
            whole.set_title(f"{split}: means with intervals")
            close.margins(0.2)
            close.set_title(f"{split}: the means alone")
            for ax in (whole, close):
                ax.set_xlabel(f"WR {METRICS[metric].title}")
                ax.set_ylabel(f"OoR {METRICS[metric].title}")
                _plain(ax, "both")
        _arm_legend(canvas, looks)
        return _finish(
            canvas,
            f"wr-oor-{metric}",
            f"{METRICS[metric].name} within region against out of region, by arm and split",
            f"{METRICS[metric].title} of the same models on held-out sites inside the training region (WR) "
            "and in the region held out (OoR), means with intervals (right: without). On the dashed line "
            f"both are equal; {'above' if metric != 'r2' else 'below'} it a model is worse out of region. "
            "Of three test sets or more the interval is over them, paired; of fewer it is the bootstrap's "
            "over sites or blocks, which holds what all arms share: for differences see the paired ones.",
        )


def ranks(ranking: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """Critical-difference diagrams (Demsar 2006): mean ranks, and bars over arms that are not told apart."""
    frame = ranking[(ranking["metric"] == metric) & ranking["mean_rank"].notna()]
    places = list(dict.fromkeys(zip(frame["split"], frame["part"], strict=True)))
    places = [p for p in places if ((frame["split"] == p[0]) & (frame["part"] == p[1])).sum() > 1]
    if not places:
        return None
    down, across = _grid(len(places), 2)
    most = int(frame.groupby(["split", "part"]).size().max())
    with _style():
        canvas = Canvas(figsize=(WIDTH, (0.95 + 0.09 * most) * down + 0.2), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False)
        for ax, (split, part) in zip(axes.flat, places, strict=False):
            mine = frame[(frame["split"] == split) & (frame["part"] == part)].sort_values(
                ["mean_rank", "arm"], kind="stable"
            )
            _critical_difference(ax, mine)
            words = f"{split}{' (WR sites)' if part == 'wr' else ''}"
            ax.set_title(f"{words}: {_counted(int(mine['n_units'].iloc[0]), 'test set')}{_p(mine)}")
        _hide(axes, len(places))
        return _finish(
            canvas,
            f"ranks-{metric}",
            f"Mean ranks of the arms by {METRICS[metric].name}, with critical differences",
            f"Mean rank over independent test sets by {METRICS[metric].name}, 1 the best. Arms under one bar "
            "differ by less than the critical difference (CD, Nemenyi); p is Friedman's.",
        )


def _p(mine: pd.DataFrame) -> str:
    p = float(mine["friedman_p"].iloc[0])
    return f", p = {p:.2g}" if math.isfinite(p) else ""


def _critical_difference(ax: Any, mine: pd.DataFrame) -> None:
    """One diagram: an axis of ranks above, the arms' names at both sides below it."""
    rank = mine["mean_rank"].to_numpy()
    critical = float(mine["critical_difference"].iloc[0])
    worst, half = max(len(rank), math.ceil(rank.max())), (len(rank) + 1) // 2
    groups: list[tuple[int, int]] = []
    if math.isfinite(critical):
        for i in range(len(rank)):
            j = int(np.flatnonzero(rank <= rank[i] + critical)[-1])
            if j > i and not any(j <= last for _, last in groups):
                groups.append((i, j))
    # Bars lie between the axis and the first name.
    depth = 0.55 + 0.35 * len(groups)
    ax.plot([1, worst], [0, 0], color=_INK, lw=0.9)
    for tick in range(1, worst + 1):
        ax.plot([tick, tick], [0, 0.15], color=_INK, lw=0.9)
        ax.text(tick, 0.25, str(tick), ha="center", va="bottom", fontsize=7)
    span = worst - 1
    for i, (label, value) in enumerate(zip(mine["arm"], rank, strict=True)):
        left = i < half
        row = i if left else len(rank) - 1 - i
        y, edge = -depth - 0.75 * row, 1 - 0.04 * span if left else worst + 0.04 * span
        ax.plot([value, value, edge], [0, y, y], color=_GREY, lw=0.8)
        ax.plot(value, 0, "o", color=_INK, ms=3)
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
            [rank[i] - 0.02 * span, rank[j] + 0.02 * span], [y, y], color=_INK, lw=2.6, solid_capstyle="butt"
        )
    if math.isfinite(critical) and critical <= span:
        ax.plot([1, 1 + critical], [1.25, 1.25], color=_INK, lw=1.2, marker="|", ms=5)
        ax.text(1 + critical, 1.25, f"  CD {critical:.2f}", va="center", fontsize=7)
    elif math.isfinite(critical):
        ax.text(1, 1.25, f"CD {critical:.2f}, more than all ranks", va="center", fontsize=7)
    else:
        ax.text(1, 1.25, "too few test sets for a test", va="center", fontsize=7)
    ax.set_xlim(1 - 0.85 * span, worst + 0.85 * span)
    ax.set_ylim(-depth - 0.75 * half, 1.7)
    ax.axis("off")


def points(rows: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """One panel per split (WR, then OoR), one line per arm, one dot per cell, a bar at the mean.

    Panels of one regime share their axis. An arm without all its cells says so. None without any number.
    """
    cells, means = labels.with_arm(rows), inference.means(rows, Analysis(), metric)
    heads = [place for place in _places(means) if place[2] != inference.GAP]
    if not cells[f"test_{metric}"].notna().any():
        return None
    arms = list(dict.fromkeys(cells["arm"]))
    # One row while it is legible; otherwise rows of three, and OoR starts a row of its own.
    regimes = [[head for head in heads if head[0] == regime] for regime in (labels.WR, labels.OOR)]
    across = len(heads) if len(heads) <= 3 else 3
    rows_of = [heads] if len(heads) <= 3 else [r[i : i + 3] for r in regimes for i in range(0, len(r), 3)]
    down = len(rows_of)
    places = {head: (i, j) for i, row in enumerate(rows_of) for j, head in enumerate(row)}
    with _style():
        canvas = Canvas(figsize=(WIDTH, (0.6 + 0.24 * len(arms)) * down + 0.6), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharey=True)
        shared: dict[str, Any] = {}
        for (regime, split, part), place in places.items():
            ax = axes[place]
            lines = means[(means["split"] == split) & (means["part"] == part)].set_index("arm")
            mine = cells[cells["split"] == split]
            value = mine[f"{part}_{metric}"]
            # A seed keeps its height in every panel: dots do not hide each other, nothing is drawn by chance.
            seeds = {seed: i for i, seed in enumerate(sorted(cells["seed"].unique()))}
            height = {
                s: 0.0 if len(seeds) < 2 else 0.36 * (i / (len(seeds) - 1) - 0.5) for s, i in seeds.items()
            }
            y = mine["arm"].map({label: i for i, label in enumerate(arms)}) + mine["seed"].map(height)
            directed = mine["regime"].eq(labels.OOR).all()
            for fold in _folds(mine) if directed else [0]:
                marker, colour = _fold_style(fold)
                of_fold = mine["fold"].eq(fold) if directed else mine["fold"].notna()
                dots = {"ms": 3.5, "alpha": 0.75, "mec": "none", "rasterized": len(cells) > MANY}
                ax.plot(value[of_fold], y[of_fold], marker, color=colour, **dots)
            for i, label in enumerate(arms):
                line = lines.loc[label] if label in lines.index else None
                n = 0 if line is None else int(line["n"])
                if line is not None and n:
                    ax.plot([line["mean"]] * 2, [i - 0.36, i + 0.36], color=_INK, lw=1.6)
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
                        color=_ORANGE,
                    )
            ax.set_title(f"{regime}: {split}")
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.set_yticks(range(len(arms)), arms)
            ax.margins(x=0.12)
            if regime in shared:
                ax.sharex(shared[regime])
            shared.setdefault(regime, ax)
            _plain(ax, "x")
        for place in set(np.ndindex(down, across)) - set(places.values()):
            axes[place].set_visible(False)
        canvas.supxlabel(METRICS[metric].title, fontsize=8)
        if any(regime == labels.OOR for regime, *_ in heads):
            _fold_legend(canvas, axes.flat[0], cells, "")
        return _finish(
            canvas,
            f"cells-{metric}",
            f"{METRICS[metric].name} of every cell by arm and split, with its mean",
            f"{METRICS[metric].title} of every cell, one dot each; a bar is the mean of its row.",
            "png" if len(cells) > MANY else "svg",
        )


def gap(rows: pd.DataFrame, metric: str = "rmse") -> Figure | None:
    """For each split of regions and arm, lines from WR to OoR of one cell. None where no cell has both."""
    cells = labels.with_arm(rows)
    cells = cells[
        (cells["regime"] == labels.OOR) & cells[[f"test_{metric}", f"wr_{metric}"]].notna().all(axis=1)
    ]
    if cells.empty:
        return None
    many = len(cells) > MANY
    arms = list(dict.fromkeys(labels.with_arm(rows)["arm"]))
    drawn = list(dict.fromkeys(cells["split"]))
    with _style():
        canvas = Canvas(
            figsize=(min(WIDTH, 1.2 + 1.1 * len(arms)), 0.5 + 2.1 * len(drawn)), layout="constrained"
        )
        axes = canvas.subplots(len(drawn), 1, squeeze=False, sharex=True, sharey=True)
        for ax, split in zip(axes.flat, drawn, strict=True):
            mine = cells[cells["split"] == split]
            for i, label in enumerate(arms):
                of_arm = mine[mine["arm"] == label]
                for fold in _folds(of_arm):
                    marker, colour = _fold_style(fold)
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
                        color=_ORANGE,
                        fontsize=7,
                    )
                ax.axvline(i + 0.5, color=_FAINT, lw=0.8)
            ax.set_title(f"{split}: left WR, right OoR, one line per cell")
            ax.set_xlim(-0.5, len(arms) - 0.5)
            ax.set_xticks(range(len(arms)), [label.replace(" · ", "\n") for label in arms])
            ax.set_ylabel(METRICS[metric].title)
            _plain(ax, "y")
        _fold_legend(canvas, axes.flat[0], cells, "-")
        return _finish(
            canvas,
            f"gap-{metric}",
            f"{METRICS[metric].name} of every out-of-region cell within and out of region",
            f"{METRICS[metric].title} of every out-of-region cell, one line from WR to OoR each.",
            "png" if many else "svg",
        )


def distances(rows: pd.DataFrame, part: str = "test") -> Figure | None:
    """RMSE by distance to the nearest training monitor, by arm: a panel per split with two bins or more."""
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
    looks = _looks(cells["arm"])
    down, across = _grid(len(drawn))
    with _style():
        canvas = Canvas(figsize=(min(WIDTH, 1 + 3.1 * across), 2.3 * down + 0.5), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharey=True)
        for ax, split in zip(axes.flat, drawn, strict=False):
            mine = cells["split"] == split
            arms = list(dict.fromkeys(cells.loc[mine, "arm"]))
            there = np.flatnonzero(values[mine].notna().any())
            for i, label in enumerate(arms):
                marker, colour = looks[label]
                own = values[mine & (cells["arm"] == label)].iloc[:, there]
                x = np.arange(len(there)) + _dodge(i, len(arms))
                ax.vlines(x, own.min(), own.max(), color=colour, lw=1, alpha=0.55)
                ax.plot(x, own.mean(), marker, color=colour, ms=4, mec="white", mew=0.4)
            names = [f"{low}–{high}" if high else f"≥ {low}" for low, high in (bins[i] for i in there)]
            ax.set_xticks(range(len(there)), names)
            for edge in range(1, len(there)):
                ax.axvline(edge - 0.5, color=_FAINT, lw=0.7)
            ax.set_xlim(-0.5, len(there) - 0.5)
            regime = labels.WR if part == "wr" else cells.loc[mine, "regime"].iloc[0]
            ax.set_title(f"{regime}: {split}")
            _plain(ax, "y")
        _hide(axes, len(drawn))
        canvas.supxlabel("distance to the nearest training monitor (km)", fontsize=8)
        canvas.supylabel("RMSE (µg/m³)", fontsize=8)
        _arm_legend(canvas, looks)
        return _finish(
            canvas,
            "distance" if part == "test" else f"distance-{part}",
            "RMSE by distance to the nearest training monitor, arm by arm"
            + (" (WR sites of the out-of-region splits)" if part == "wr" else ""),
            "RMSE (µg/m³) of the test samples by their site's distance to the nearest training monitor: a "
            "mark is the mean over an arm's cells that have such samples, a line their range. A bin's sites "
            "are others in every fold, and few where it is far from most.",
        )


def learning(curves: Curves, arms: Sequence[str] = ()) -> Figure | None:
    """Validation RMSE by epoch, a panel per split, a line per arm with the range of its cells."""
    frame = curves.frame
    if frame.empty:
        return None
    looks = _looks(frame["arm"], arms)
    drawn = list(dict.fromkeys(frame["split"]))
    down, across = _grid(len(drawn))
    with _style():
        canvas = Canvas(figsize=(WIDTH, 2.3 * down + 0.5), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False)
        for ax, split in zip(axes.flat, drawn, strict=False):
            for label, mine in frame[frame["split"] == split].groupby("arm", sort=False):
                marker, colour = looks[str(label)]
                ax.fill_between(mine["epoch"], mine["low"], mine["high"], color=colour, alpha=0.05, lw=0)
                for end in ("low", "high"):
                    ax.plot(mine["epoch"], mine[end], color=colour, lw=0.5, alpha=0.6)
                every = max(1, len(mine) // 8)
                ax.plot(
                    mine["epoch"], mine["mean"], f"{marker}-", color=colour, ms=3.2, lw=1.1, markevery=every
                )
            ax.set_title(split)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            _plain(ax, "y")
        _hide(axes, len(drawn))
        canvas.supxlabel("epoch", fontsize=8)
        canvas.supylabel("validation RMSE (µg/m³)", fontsize=8)
        _arm_legend(canvas, looks)
        cells = (
            f"all {_counted(curves.done, 'cell')}"
            if curves.read == curves.done
            else f"the first {curves.read:,} of {curves.done:,} cells, by seed"
        )
        return _finish(
            canvas,
            "learning",
            "Learning curves: validation RMSE by epoch, arm by arm",
            f"Validation RMSE (µg/m³) by epoch over {cells}: mean and range over an arm's folds and seeds, "
            "as far as half of them were trained. Validation lies within the training region.",
        )


def split_map(cut: SplitMap, outlines: Sequence[np.ndarray] = ()) -> Figure | None:
    """The monitors by their part in a split, a panel per fold, with a checkerboard's cells."""
    if not cut.roles:
        return None
    board = isinstance(cut.split, splits.CheckerboardSplit)
    down, across = _grid(len(cut.roles), 2)
    every = pd.concat(cut.roles.values())
    with _style():
        canvas = Canvas(figsize=(WIDTH, 2.55 * down + 0.25), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False)
        for ax, (fold, roles) in zip(axes.flat, cut.roles.items(), strict=False):
            if isinstance(cut.split, splits.CheckerboardSplit):
                _cells(ax, cut.split, fold)
            _outlines(ax, outlines)
            for role, (marker, colour, _) in _ROLES.items():
                mine = roles[roles["role"] == role]
                x, y = _albers(mine["lat"], mine["lon"])
                size = 4.4 if role == "train" else 2.4
                ax.plot(x, y, marker, color=colour, ms=size, mec="white", mew=0.15, label=role)
            counts = roles["role"].value_counts()
            held = labels.held_out(cut.split.label, fold)
            if isinstance(cut.split, splits.GroupSplit):
                held = f"{cut.split.values[fold]} held out"  # noqa: PD011
            ax.set_title(f"{held}: {counts.get('test', 0):,} of {len(roles):,} sites")
            _frame(ax, every["lat"], every["lon"])
        _hide(axes, len(cut.roles))
        handles = [
            Line2D([], [], ls="", marker=marker, color=colour, ms=6 if marker == "." else 4, label=name)
            for role, (marker, colour, name) in _ROLES.items()
            if (every["role"] == role).any()
        ]
        _legend(canvas, handles)
        folds = (
            "" if len(cut.roles) == cut.split.folds else f" The first {len(cut.roles)} of {cut.split.folds}."
        )
        cells = " Shaded: the cells held out." if board else ""
        return _finish(
            canvas,
            f"split-{_slug(cut.split.label)}",
            f"Map of the monitors by their part in the split {cut.split.label}",
            f"Monitors by their part in {cut.split.label}, by what is held out.{cells}{folds} "
            "Albers equal-area projection.",
            "png",
        )


def map_limits(frames: Iterable[pd.DataFrame]) -> tuple[float, float]:
    """(|bias|, rmse) in ug/m3 below which 98 % of all sites lie: one colour scale for maps to be compared."""
    frames = list(frames)
    limits = []
    for column in ("bias", "rmse"):
        limits.append(_most(*(frame[column] for frame in frames)))
    return limits[0], limits[1]


def error_maps(
    predicted: Predicted, of: Sequence[str], outlines: Sequence[np.ndarray] = (), part: str = "test"
) -> list[Figure]:
    """Every arm's errors by site on the splits, all on one colour scale."""
    frames = {
        (arm, split): predicted.site_errors(arm, split, part)
        for split in of
        for arm in predicted.arms(split, part)
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
    """Two maps of the sites in `frame` (site_id, lat, lon, n, bias, rmse): bias and RMSE in ug/m3.

    `limits`: `map_limits` of all maps that will be compared, by default of this one.
    """
    most_bias, most_rmse = limits or map_limits([frame])
    seen = frame[frame[["lat", "lon", "bias", "rmse"]].notna().all(axis=1)]
    # Large errors last, on top; the order is a property of the values, not of the table.
    seen = seen.sort_values(["rmse", "site_id"], kind="stable")
    with _style():
        canvas = Canvas(figsize=(WIDTH, 3.0), layout="constrained")
        axes = canvas.subplots(1, 2)
        bias = {"cmap": "RdBu_r", "vmin": -most_bias, "vmax": most_bias}
        _site_map(canvas, axes[0], seen, "bias", "bias: predicted − observed (µg/m³)", "both", bias, outlines)
        rmse = {"cmap": "cividis_r", "vmin": 0, "vmax": most_rmse}
        _site_map(canvas, axes[1], seen, "rmse", "RMSE (µg/m³)", "max", rmse, outlines)
        canvas.suptitle(f"{arm}, {split} ({_counted(len(seen), 'site')})", fontsize=8.5, x=0.01, ha="left")
        return _finish(
            canvas,
            f"errors-{_slug(split)}-{_slug(arm)}",
            f"Map of site errors: {arm}, {split}",
            f"Errors of '{arm}' by monitor on the test sets of {split}, pooled over folds and seeds. Colours "
            "end where 98 % of all sites of all arms lie; all these maps share their scales.",
            "png",
        )


def difference_map(
    predicted: Predicted,
    arm: str,
    of: Sequence[str],
    outlines: Sequence[np.ndarray] = (),
    metric: str = "rmse",
) -> Figure | None:
    """Where `arm` is better and worse than 'none': the difference of the sites' RMSE, a panel per split."""
    frames = {split: predicted.site_differences(arm, labels.BASELINE, split) for split in of}
    frames = {split: frame for split, frame in frames.items() if len(frame)}
    if not frames:
        return None
    most = _most(*(frame["difference"] for frame in frames.values()))
    with _style():
        # Two panels wide even for one map, so that all maps have one size.
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
        return _finish(
            canvas,
            f"difference-{_slug(arm)}",
            f"Map of the difference in site RMSE between {arm} and none",
            f"RMSE of '{arm}' minus that of 'none' by monitor, pooled over the folds and seeds that both "
            "have: violet where the place helps, orange where it harms; colours end where 98 % of the sites "
            f"lie. '{arm}' is the encoder arm with the best mean {METRICS[metric].name} on {list(of)[-1]}.",
            "png",
        )


def density(predicted: Predicted, split: str, part: str = "test") -> Figure | None:
    """Observed against predicted, a panel per arm: how many of the pooled samples lie where."""
    counts = {arm: predicted.density(arm, split, part) for arm in predicted.arms(split, part)}
    if not counts:
        return None
    total = sum(counts.values())
    assert not isinstance(total, int)
    used = np.flatnonzero(total.sum(axis=0) + total.sum(axis=1))
    low, high = DENSITY_EDGES[used[0]], DENSITY_EDGES[used[-1] + 1]
    most = max(int(count.max()) for count in counts.values())
    down, across = _grid(len(counts))
    with _style():
        canvas = Canvas(figsize=(WIDTH, 2.15 * down + 0.4), layout="constrained")
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
            ax.plot([low, high], [low, high], color=_INK, lw=0.8)
            for line in (ax.axhline, ax.axvline):
                line(EXCEEDANCE_UGM3, color=_ORANGE, lw=0.6, ls=":")
            _bent(ax, low, high, "xy")
            ax.set_aspect("equal")
            frame = _pooled(predicted, label, split, part)
            ax.set_title(label)
            ax.text(0.03, 0.97, frame, transform=ax.transAxes, va="top", fontsize=7)
            _plain(ax, "both")
        _hide(axes, len(counts))
        canvas.colorbar(mesh, ax=axes, label="samples", shrink=0.75, aspect=30, pad=0.01)
        canvas.supxlabel("observed PM2.5 (µg/m³)", fontsize=8)
        canvas.supylabel("predicted PM2.5 (µg/m³)", fontsize=8)
        return _finish(
            canvas,
            f"density-{_slug(split)}",
            f"Observed against predicted PM2.5 on {split}, by arm",
            f"Observed against predicted daily PM2.5 (µg/m³) on the test sets of {split}, pooled over folds "
            f"and seeds. On the line both are equal; dotted: {EXCEEDANCE_UGM3} µg/m³. Axes are linear near "
            "zero and logarithmic above.",
            "png",
        )


def tail(predicted: Predicted, split: str, part: str = "test", arms: Sequence[str] = ()) -> Figure | None:
    """Calibration by predicted value, and the exceedances that were predicted, by arm."""
    shares = {arm: predicted.tail(arm, split, part) for arm in predicted.arms(split, part)}
    if not shares:
        return None
    looks = _looks(shares, arms)
    frames = {arm: predicted.calibration(arm, split, part) for arm in shares}
    shown = {arm: frame[frame["n"] >= FEWEST] for arm, frame in frames.items()}
    with _style():
        canvas = Canvas(figsize=(WIDTH, max(3.0, 0.9 + 0.3 * len(shares))), layout="constrained")
        grid = canvas.add_gridspec(2, 2, height_ratios=(3, 1), width_ratios=(1.15, 1))
        ax = canvas.add_subplot(grid[0, 0])
        below = canvas.add_subplot(grid[1, 0], sharex=ax)
        right = canvas.add_subplot(grid[:, 1])
        values = [frame[name] for frame in shown.values() for name in ("observed", "predicted")]
        ends = np.concatenate([np.array([0.0, EXCEEDANCE_UGM3 * 1.2]), *values])
        low, high = float(ends.min()) - 0.5, float(ends.max()) * 1.1
        ax.plot([low, high], [low, high], color=_INK, lw=0.8)
        for line in (ax.axhline, ax.axvline, below.axvline):
            line(EXCEEDANCE_UGM3, color=_ORANGE, lw=0.6, ls=":")
        for arm, frame in shown.items():
            marker, colour = looks[arm]
            ax.plot(frame["predicted"], frame["observed"], f"{marker}-", color=colour, ms=3.5, lw=0.9)
            every = frames[arm]
            below.plot(every["predicted"], every["n"], f"{marker}-", color=colour, ms=2.5, lw=0.8)
        _bent(ax, low, high, "xy")
        _bent(below, low, high, "x")
        below.set_yscale("log")
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
            words = f"{found.both:,} of {found.observed:,} seen, {found.predicted - found.both:,} false"
            right.text(0.99, i - 0.33, words, transform=right.get_yaxis_transform(), ha="right", fontsize=7)
        right.set_yticks(range(len(shares)), list(shares))
        right.set_ylim(len(shares) - 0.4, -0.75)
        right.set_xlim(0, max(5.0, 1.15 * right.get_xlim()[1]))
        right.set_xlabel("predicted as such (%)")
        right.set_title(f"Days at or above {EXCEEDANCE_UGM3} µg/m³")
        for each in (ax, below, right):
            _plain(each, "x" if each is right else "both")
        canvas.suptitle(f"The tail on {split}", fontsize=8.5, x=0.01, ha="left")
        return _finish(
            canvas,
            f"tail-{_slug(split)}",
            f"Calibration and detection of high PM2.5 on {split}, by arm",
            f"Left: mean observed PM2.5 by bin of the predicted (bins with {FEWEST} samples or more, counts "
            f"below), on the line where the model is calibrated. Right: share of the days at or above "
            f"{EXCEEDANCE_UGM3} µg/m³ (AQI 'unhealthy for sensitive groups') that were predicted so, and how "
            f"many were predicted in vain. Test sets of {split}, pooled over folds and seeds.",
        )


def permutations(importance: pd.DataFrame, arms: Sequence[str] = (), most: int = 15) -> Figure | None:
    """Rise of the RMSE when one input is permuted, by arm: the `most` that matter most."""
    frame = importance[importance["rmse_increase"].notna()]
    if frame.empty:
        return None
    looks = _looks(frame["arm"], arms)
    drawn = list(dict.fromkeys(frame["split"]))
    order = (
        frame.groupby("what", sort=False)["rmse_increase"].max().sort_values(ascending=False, kind="stable")
    )
    names = list(order.index[:most])
    down, across = _grid(len(drawn))
    with _style():
        canvas = Canvas(
            figsize=(min(WIDTH, 2.6 + 2.3 * across), (0.6 + 0.24 * len(names)) * down + 0.6),
            layout="constrained",
        )
        axes = canvas.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for ax, split in zip(axes.flat, drawn, strict=False):
            there = list(dict.fromkeys(frame.loc[frame["split"] == split, "arm"]))
            for i, label in enumerate(there):
                mine = frame[(frame["split"] == split) & (frame["arm"] == label) & frame["what"].isin(names)]
                y = mine["what"].map(names.index) + _dodge(i, len(there))
                marker, colour = looks[label]
                sd = mine["sd"].fillna(0)
                ax.hlines(
                    y, mine["rmse_increase"] - sd, mine["rmse_increase"] + sd, color=colour, lw=1, alpha=0.6
                )
                ax.plot(mine["rmse_increase"], y, marker, color=colour, ms=4, mec="white", mew=0.4)
            ax.axvline(0, color=_INK, lw=0.7)
            ax.set_title(split)
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
            _plain(ax, "x")
        _hide(axes, len(drawn))
        canvas.supxlabel("rise of the test RMSE when the input is permuted (µg/m³)", fontsize=8)
        _arm_legend(canvas, looks)
        left = f" The {len(names)} largest of {len(order)}." if len(order) > len(names) else ""
        return _finish(
            canvas,
            "importance",
            "Permutation importance of the inputs, by arm",
            "Rise of the test RMSE (µg/m³) when one input's values are permuted among the samples, mean ± "
            f"standard deviation.{left} Inputs that say the same share what they are worth.",
        )


def search_history(trials: pd.DataFrame) -> Figure | None:
    """The searches trial by trial with the best so far, a panel per arm and objective."""
    if not trials["value"].notna().any():
        return None
    panels = list(dict.fromkeys(zip(trials["objective"], trials["arm"], strict=True)))
    down, across = _grid(len(panels))
    with _style():
        canvas = Canvas(figsize=(WIDTH, 1.75 * down + 0.5), layout="constrained")
        axes = canvas.subplots(down, across, squeeze=False, sharex=True)
        for ax, (objective, label) in zip(axes.flat, panels, strict=False):
            mine = trials[(trials["arm"] == label) & (trials["objective"] == objective)].sort_values("number")
            done = mine[mine["state"] == "done"]
            best = done["value"].cummin() if done["smaller_is_better"].all() else done["value"].cummax()
            ax.step(done["number"], best, where="post", color=_ORANGE, lw=1.1)
            ax.plot(done["number"], done["value"], "o", color=_BLUE, ms=3, mec="none", alpha=0.8)
            for state, marker in (("pruned", "|"), ("failed", "x")):
                at = mine.loc[mine["state"] == state, "number"]
                ax.plot(at, [0.03] * len(at), marker, color=_INK, ms=4, transform=ax.get_xaxis_transform())
            ax.margins(y=0.14)
            ax.set_title(label)
            ax.set_ylabel(objective)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            _plain(ax, "y")
        _hide(axes, len(panels))
        canvas.supxlabel("trial", fontsize=8)
        marks = [("o", _BLUE, "", "trial"), ("", _ORANGE, "-", "best so far")]
        marks += [
            (marker, _INK, "", state)
            for state, marker in (("pruned", "|"), ("failed", "x"))
            if (trials["state"] == state).any()
        ]
        handles = [Line2D([], [], marker=m, color=c, ls=ls, ms=4, label=name) for m, c, ls, name in marks]
        _legend(canvas, handles)
        return _finish(
            canvas,
            "search-history",
            "The searches trial by trial, with the best so far",
            "What each arm's search found on validation data, trial by trial, and its best so far.",
        )


def parameter_importance(parameters: pd.DataFrame, arms: Sequence[str] = ()) -> Figure | None:
    """Share of a search's variance that a setting explains, by arm; columns arm, parameter, importance."""
    frame = parameters[parameters["importance"].notna()]
    if frame.empty:
        return None
    looks = _looks(frame["arm"], arms)
    names = list(
        frame.groupby("parameter", sort=False)["importance"]
        .mean()
        .sort_values(ascending=False, kind="stable")
        .index
    )
    with _style():
        canvas = Canvas(figsize=(5.2, 0.32 * len(names) + 1.1), layout="constrained")
        ax = canvas.subplots()
        for i, (label, (marker, colour)) in enumerate(looks.items()):
            mine = frame[frame["arm"] == label]
            y = mine["parameter"].map(names.index) + _dodge(i, len(looks))
            ax.plot(mine["importance"], y, marker, color=colour, ms=4.5, mec="white", mew=0.4)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(-0.02, 1.02)
        for edge in range(1, len(names)):
            ax.axhline(edge - 0.5, color=_FAINT, lw=0.7)
        ax.set_xlabel("share of the variance of the trials' scores")
        _plain(ax, "x")
        _arm_legend(canvas, looks)
        return _finish(
            canvas,
            "search-importance",
            "Importance of the tuned settings, by arm",
            "How much of the variance of the trials' validation scores each setting explains (Optuna; Hutter "
            "et al. 2014), by arm. From few trials it is rough.",
        )


def _places(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(regime, split, part) of a frame: WR first, in the order of first appearance otherwise."""
    places = dict.fromkeys(zip(frame["regime"], frame["split"], frame["part"], strict=True))
    return sorted(places, key=lambda place: (place[0] != labels.WR, place[2] == "wr"))


def _interval(line: pd.Series) -> tuple[float, float] | None:
    """The interval over units, else that of the bootstrap."""
    for low, high in (("low", "high"), ("boot_low", "boot_high")):
        if np.isfinite([line[low], line[high]]).all():
            return float(line[low]), float(line[high])
    return None


def _pooled(predicted: Predicted, arm: str, split: str, part: str) -> str:
    """RMSE, R2 and n of the pooled samples, as a text of three lines."""
    n, _, _, squared, y, y2 = predicted.totals(arm, split, part)
    scatter = y2 - y * y / n
    r2 = f"\nR² {1 - squared / scatter:.2f}" if scatter > 1e-12 * n else ""
    return f"RMSE {math.sqrt(squared / n):.2f}{r2}\nn {int(n):,}"


def _most(*columns: pd.Series) -> float:
    """What 98 % of the finite values lie below, by size; 1 where there are none but zeros."""
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
    """Dots of the sites in their order, over the outlines, with a colour bar below."""
    _outlines(ax, outlines)
    x, y = _albers(sites["lat"], sites["lon"])
    # All of one size: an SVG holds such a dot once.
    area = 9 if len(sites) > 300 else 16
    dots = ax.scatter(x, y, s=area, c=sites[column], edgecolors="#555555", linewidths=0.2, zorder=3, **scale)
    bar = canvas.colorbar(
        dots, ax=ax, label=label, extend=extend, orientation="horizontal", shrink=0.8, aspect=34, pad=0.02
    )
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(width=0.5)
    _frame(ax, sites["lat"], sites["lon"])


def _albers(lat: Any, lon: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kilometres east and north in the Albers equal-area conic of CONUS maps, on the mean sphere.

    Standard parallels 29.5 and 45.5, origin 37.5 N 96 W (Snyder, Map Projections, 1987, p. 100).
    """
    lat, lon = (np.radians(np.asarray(values, np.float64)) for values in (lat, lon))
    first, second, origin = np.radians([29.5, 45.5, 37.5])
    n = (math.sin(first) + math.sin(second)) / 2
    c = math.cos(first) ** 2 + 2 * n * math.sin(first)
    rho, rho0 = (EARTH_KM * np.sqrt(c - 2 * n * np.sin(at)) / n for at in (lat, origin))
    theta = n * (lon + math.radians(96))
    return rho * np.sin(theta), rho0 - rho * np.cos(theta)


def _outlines(ax: Any, outlines: Sequence[np.ndarray]) -> None:
    rings = [np.stack(_albers(ring[:, 1], ring[:, 0]), axis=1) for ring in outlines]
    ax.add_collection(LineCollection(rings, colors="#9a9a9a", linewidths=0.4, zorder=2), autolim=False)


def _frame(ax: Any, lat: pd.Series, lon: pd.Series) -> None:
    """CONUS with its graticule, or more where a site lies outside it: no site is cut off."""
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


def _map_label(ax: Any, x: Any, y: Any, text: str, **where: Any) -> None:
    ax.text(x, y, text, fontsize=7, color=_GREY, in_layout=False, **where)


def _cells(ax: Any, split: splits.CheckerboardSplit, fold: int) -> None:
    """A checkerboard's cells inside the CONUS box: edges, and a tint where the colour is held out."""
    west, south, east, north = CONUS
    shift_east, shift_north = split.origin or (0.0, 0.0)
    lon_edges, lat_edges = (
        _edges(low, high, shift, split.degrees)
        for low, high, shift in ((west, east, shift_east), (south, north, shift_north))
    )
    shapes: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for left, right in itertools.pairwise(lon_edges):
        for low, high in itertools.pairwise(lat_edges):
            middle = np.array((low + high) / 2), np.array((left + right) / 2)
            held_out = int(splits.checkerboard(*middle, split.degrees, split.origin)) == fold
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
    """The grid's lines within a box, and the box's own ends."""
    first = low + shift - degrees * math.ceil(shift / degrees)
    lines = np.arange(first, high + degrees, degrees)
    return np.array([low, *lines[(lines > low + 1e-9) & (lines < high - 1e-9)], high])


def _bent(ax: Any, low: float, high: float, which: str) -> None:
    """An axis that is linear near zero and logarithmic above, as the density's grid is."""
    ticks = [tick for tick in (-5, 0, 5, 10, 20, 50, 100, 300) if low <= tick <= high]
    for name in which:
        getattr(ax, f"set_{name}scale")("asinh", linear_width=BEND_UGM3)
        axis = getattr(ax, f"{name}axis")
        axis.set_ticks(ticks)
        axis.set_ticks([], minor=True)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        getattr(ax, f"set_{name}lim")(low, high)


def _looks(of: Iterable[str], arms: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Marker and colour of every arm, by its place among all `arms`; 'none' is black.

    Looks repeat where nobody tells more apart.
    """
    of = dict.fromkeys(of)
    found = {}
    others = [arm for arm in dict.fromkeys([*arms, *of]) if arm != labels.BASELINE]
    for arm in of:
        if arm == labels.BASELINE:
            found[arm] = "h", _INK
        else:
            i = others.index(arm)
            marker = _LOOKS[(i + i // len(_LOOKS)) % len(_LOOKS)][0]
            found[arm] = marker, _LOOKS[i % len(_LOOKS)][1]
    return found


def _dodge(i: int, of: int) -> float:
    """Where the i-th of so many marks stands beside its place, in [-0.32, 0.32]."""
    return 0.0 if of < 2 else 0.64 * (i / (of - 1) - 0.5)


def _grid(panels: int, most: int = 3) -> tuple[int, int]:
    """Rows and columns of so many panels; four are two by two."""
    across = min(panels, 2 if panels == 4 else most)
    return -(-panels // across), across


def _hide(axes: Any, used: int) -> None:
    """Leave the last panels out; the ones above them are the lowest of their columns then."""
    down, across = axes.shape
    for i in range(used, down * across):
        axes.flat[i].set_visible(False)
        if down > 1:
            axes[down - 2, i % across].tick_params(labelbottom=True)


def _arm_legend(canvas: Canvas, looks: Mapping[str, tuple[str, str]]) -> None:
    handles = [
        Line2D([], [], ls="", marker=marker, color=colour, ms=4.5, label=label)
        for label, (marker, colour) in looks.items()
    ]
    _legend(canvas, handles)


def _legend(canvas: Canvas, handles: Sequence[Line2D]) -> None:
    """Above the panels, in as few lines as the canvas is wide."""
    widths = [0.38 + 0.066 * len(str(handle.get_label())) for handle in handles]  # inches at 7.5 points
    room = canvas.get_figwidth()
    across = len(handles) if sum(widths) < room else max(1, int(room / max(widths)))
    canvas.legend(
        handles=handles, loc="outside upper left", ncols=across, handletextpad=0.3, columnspacing=1.2
    )


def _signed(value: float) -> str:
    return f"{value:+z.2f}".replace("-", "−")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _slug(text: str) -> str:
    """A label as part of a file's name: 'geoclip-hadamard'."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower().replace("/", "")).split())


def _folds(cells: pd.DataFrame) -> list[int]:
    return sorted(int(fold) for fold in cells["fold"].unique())


def _fold_style(fold: int) -> tuple[str, str]:
    """Marker and colour; they repeat where there are more regions than anyone tells apart."""
    return _LOOKS[fold % len(_LOOKS)]


def _fold_legend(canvas: Canvas, ax: Any, cells: pd.DataFrame, line: str) -> None:
    outside = cells[cells["regime"] == labels.OOR]
    boards = outside["split"].str.startswith("checkerboard").all()
    word = labels.held_out("checkerboard" if boards else "", 0).split()[0]
    for fold in _folds(outside)[: len(_LOOKS)]:
        marker, colour = _fold_style(fold)
        ax.plot([], [], f"{marker}{line}", color=colour, ms=4, mec="none", label=f"{word} {fold} held out")
    canvas.legend(loc="outside upper right", ncols=3)


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's matplotlibrc says; restored afterwards."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def _plain(ax: Any, grid: str) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color=_FAINT, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=2)


def _finish(
    canvas: Canvas, name: str, alt: str, caption: str, embed: Literal["svg", "png"] = "svg"
) -> Figure:
    svg, png = io.BytesIO(), io.BytesIO()
    canvas.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    canvas.set_layout_engine("none")  # it stands as it was laid out: once is enough
    canvas.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    return Figure(name, svg.getvalue(), png.getvalue(), embed, alt, caption)
