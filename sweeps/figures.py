"""The report's figures: the frames of ``sweeps.tables`` in, the bytes of a picture out.

The only module that imports matplotlib. It draws on Figure objects (no pyplot, no display, no global
state), with its default style, a fixed salt and no date, so that the same frame gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sweeps import tables

# Okabe and Ito (2008): told apart with any colour vision. Markers differ as well, for print.
_BLUE, _ORANGE, _INK, _GREY = "#0072B2", "#D55E00", "#222222", "#8a8a8a"
_FOLD_STYLES = [
    ("o", _BLUE),
    ("^", _ORANGE),
    ("s", "#009E73"),
    ("D", "#CC79A7"),
    ("v", "#56B4E9"),
    ("P", "#E69F00"),
]
_STYLE = {
    "svg.hashsalt": "pm25-sweeps",
    "svg.fonttype": "path",
    "font.size": 9.0,
    "figure.facecolor": "white",
}
_ASPECT = 1 / math.cos(math.radians(39))  # a degree of latitude is this much longer at CONUS' mid-latitude


def points(rows: pd.DataFrame, metric: str = "rmse") -> str | None:
    """SVG: one panel per split (WR, then OoR), one line per arm, one dot per cell, a bar at the mean.

    Panels of one regime share their axis. An arm without all its cells says so. None without any number.
    """
    cells, compared = tables.with_arm(rows), tables.comparison(rows, metric)
    heads = [head for head in tables.columns(compared) if head[0] != tables.GAP]
    if not cells[f"test_{metric}"].notna().any():
        return None
    arms = list(dict.fromkeys(cells["arm"]))
    # One row while it is legible; otherwise rows of three, and OoR starts a row of its own.
    regimes = [[head for head in heads if head[0] == regime] for regime in (tables.WR, tables.OOR)]
    across = len(heads) if len(heads) <= 4 else 3
    rows_of = [heads] if len(heads) <= 4 else [r[i : i + 3] for r in regimes for i in range(0, len(r), 3)]
    down = len(rows_of)
    places = {head: (i, j) for i, row in enumerate(rows_of) for j, head in enumerate(row)}
    with _style():
        figure = Figure(
            figsize=(1.6 + (2.25 if down == 1 else 3) * across, (0.75 + 0.3 * len(arms)) * down + 0.6),
            layout="constrained",
        )
        axes = figure.subplots(down, across, squeeze=False, sharey=True)
        shared: dict[str, Any] = {}
        for (regime, split, prefix), place in places.items():
            ax = axes[place]
            lines = compared[compared["split"] == split].set_index("arm")
            mine = cells[cells["split"] == split]
            value = mine[f"{prefix or 'test_'}{metric}"]
            # A seed keeps its height in every panel: dots do not hide each other, nothing is drawn by chance.
            seeds = {seed: i for i, seed in enumerate(sorted(cells["seed"].unique()))}
            height = {
                s: 0.0 if len(seeds) < 2 else 0.36 * (i / (len(seeds) - 1) - 0.5) for s, i in seeds.items()
            }
            y = mine["arm"].map({label: i for i, label in enumerate(arms)}) + mine["seed"].map(height)
            directed = mine["regime"].eq(tables.OOR).all()
            for fold in _folds(mine) if directed else [0]:
                marker, colour = _fold_style(fold)
                of_fold = mine["fold"].eq(fold) if directed else mine["fold"].notna()
                ax.plot(value[of_fold], y[of_fold], marker, color=colour, ms=4, alpha=0.75, mec="none")
            for i, label in enumerate(arms):
                line = lines.loc[label] if label in lines.index else None
                n = 0 if line is None else int(line[f"{prefix}n"])
                if line is not None and n:
                    ax.plot([line[f"{prefix}mean"]] * 2, [i - 0.36, i + 0.36], color=_INK, lw=1.6)
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
            ax.set_title(f"{regime}: {split}", fontsize=9, loc="left")
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.set_yticks(range(len(arms)), arms)
            ax.margins(x=0.12)
            if regime in shared:
                ax.sharex(shared[regime])
            shared.setdefault(regime, ax)
            _plain(ax, "x")
        for place in set(np.ndindex(down, across)) - set(places.values()):
            axes[place].set_visible(False)
        figure.supxlabel(tables.title(metric), fontsize=9)
        if any(regime == tables.OOR for regime, *_ in heads):
            _fold_legend(figure, axes.flat[0], cells, "")
        return _svg(figure)


def gap(rows: pd.DataFrame, metric: str = "rmse") -> str | None:
    """SVG: for each checkerboard and arm, lines from WR to OoR of one cell. None where no cell has both."""
    cells = tables.with_arm(rows)
    cells = cells[
        (cells["regime"] == tables.OOR) & cells[[f"test_{metric}", f"wr_{metric}"]].notna().all(axis=1)
    ]
    if cells.empty:
        return None
    arms = list(dict.fromkeys(tables.with_arm(rows)["arm"]))
    splits = list(dict.fromkeys(cells["split"]))
    with _style():
        figure = Figure(figsize=(1.2 + 1.25 * len(arms), 0.5 + 2.7 * len(splits)), layout="constrained")
        axes = figure.subplots(len(splits), 1, squeeze=False, sharex=True, sharey=True)
        for ax, split in zip(axes.flat, splits, strict=True):
            mine = cells[cells["split"] == split]
            for i, label in enumerate(arms):
                of_arm = mine[mine["arm"] == label]
                for fold in _folds(of_arm):
                    marker, colour = _fold_style(fold)
                    pairs = (
                        of_arm.loc[of_arm["fold"] == fold, [f"wr_{metric}", f"test_{metric}"]].to_numpy().T
                    )
                    if pairs.size:
                        ax.plot(
                            [i - 0.22, i + 0.22], pairs, f"{marker}-", color=colour, ms=4, lw=1, alpha=0.75
                        )
                if of_arm.empty:
                    ax.annotate(
                        "no cell",
                        (i, 0.5),
                        xycoords=("data", "axes fraction"),
                        ha="center",
                        color=_ORANGE,
                        fontsize=8,
                    )
                ax.axvline(i + 0.5, color="#e4e4e4", lw=0.8)
            ax.set_title(f"{split}: left WR, right OoR, one line per cell", fontsize=9, loc="left")
            ax.set_xlim(-0.5, len(arms) - 0.5)
            ax.set_xticks(range(len(arms)), [label.replace(" · ", "\n") for label in arms])
            ax.set_ylabel(tables.title(metric))
            _plain(ax, "y")
        _fold_legend(figure, axes.flat[0], cells, "-")
        return _svg(figure)


def map_limits(frames: Iterable[pd.DataFrame]) -> tuple[float, float]:
    """(|bias|, rmse) in ug/m3 below which 98 % of all sites lie: one colour scale for maps to be compared."""
    frames = list(frames)
    limits = []
    for column in ("bias", "rmse"):
        values = np.concatenate(
            [frame[column].to_numpy(dtype="float64") for frame in frames] or [np.empty(0)]
        )
        values = np.abs(values[np.isfinite(values)])
        limits.append(float(np.quantile(values, 0.98)) if values.size else 0.0)
    return limits[0] or 1.0, limits[1] or 1.0


def error_map(frame: pd.DataFrame, title: str, limits: tuple[float, float] | None = None) -> bytes:
    """PNG: two maps of the sites in ``frame`` (site_id, lat, lon, n, bias, rmse), bias and RMSE in ug/m3.

    Equirectangular, true at 39 degrees north. A dot's area grows with its n. ``limits``: ``map_limits`` of
    all maps that will be compared, by default of this one.
    """
    most_bias, most_rmse = limits or map_limits([frame])
    seen = frame[frame[["lat", "lon", "bias", "rmse"]].notna().all(axis=1)]
    # Large errors last, on top; the order is a property of the values, not of the table.
    seen = seen.sort_values(["rmse", "site_id"], kind="stable")
    n = seen["n"].to_numpy(dtype="float64")
    area = 7 + 23 * n / n.max() if len(n) and n.max() > 0 else np.full(len(n), 12.0)
    if len(n) > 300:
        area = area * max(0.4, 300 / len(n))
    with _style():
        figure = Figure(figsize=(10, 3.7), layout="constrained")
        figure.suptitle(f"{title} (sites: {len(seen)})", fontsize=10, x=0.01, ha="left")
        panels: tuple[tuple[str, str, dict[str, Any], str], ...] = (
            (
                "bias",
                "bias: predicted − observed",
                {"cmap": "RdBu_r", "vmin": -most_bias, "vmax": most_bias},
                "both",
            ),
            ("rmse", "RMSE", {"cmap": "cividis_r", "vmin": 0, "vmax": most_rmse}, "max"),
        )
        for ax, (column, name, scale, extend) in zip(figure.subplots(1, 2), panels, strict=True):
            dots = ax.scatter(
                seen["lon"],
                seen["lat"],
                s=area,
                c=seen[column],
                edgecolors="#555555",
                linewidths=0.25,
                **scale,
            )
            figure.colorbar(
                dots,
                ax=ax,
                label=f"{name} (µg/m³)",
                extend=extend,
                orientation="horizontal",
                shrink=0.75,
                aspect=32,
                pad=0.02,
            )
            ax.set_aspect(_ASPECT)
            ax.set_xlim(*_window(seen["lon"], -125.5, -66.0))
            ax.set_ylim(*_window(seen["lat"], 24.0, 50.0))
            ax.set_xticks(range(-120, -69, 10), [f"{-lon}°W" for lon in range(-120, -69, 10)])
            ax.set_yticks(range(25, 51, 5), [f"{lat}°N" for lat in range(25, 51, 5)])
            ax.tick_params(labelsize=7, length=0, labelcolor=_GREY)
            ax.grid(color="#dddddd", lw=0.6)
            ax.set_axisbelow(True)
            ax.spines[:].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _window(values: pd.Series, low: float, high: float) -> tuple[float, float]:
    """CONUS, or more where a site lies outside it: no site is cut off."""
    return (min(low, values.min() - 1), max(high, values.max() + 1)) if len(values) else (low, high)


def _folds(cells: pd.DataFrame) -> list[int]:
    return sorted(int(fold) for fold in cells["fold"].unique())


def _fold_style(fold: int) -> tuple[str, str]:
    """Marker and colour; they repeat where there are more regions than anyone tells apart."""
    return _FOLD_STYLES[fold % len(_FOLD_STYLES)]


def _fold_legend(figure: Figure, ax: Any, cells: pd.DataFrame, line: str) -> None:
    outside = cells[cells["regime"] == tables.OOR]
    boards = outside["split"].str.startswith("checkerboard").all()
    word = tables.held_out("checkerboard" if boards else "", 0).split()[0]
    for fold in _folds(outside)[: len(_FOLD_STYLES)]:
        marker, colour = _fold_style(fold)
        ax.plot([], [], f"{marker}{line}", color=colour, ms=4, mec="none", label=f"{word} {fold} held out")
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's matplotlibrc says; restored afterwards."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def _plain(ax: Any, grid: str) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color="#e4e4e4", lw=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(length=2)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
