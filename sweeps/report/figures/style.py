"""Look, layout and file formats shared by all figures.

Sizes are those of a printed page: 7.2 inches are two columns of a journal, and text has at least 7 points.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib.style
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from sweeps.analysis import labels

WIDTH = 7.2
"""Largest width of a figure in inches."""
NARROW = 3.5
"""Width in inches of a figure for a small screen."""
DPI = 160
"""Resolution of the PNG, chosen for a screen; the SVG is for print."""
MANY = 1000
"""Most cells whose marks an SVG draws as vectors; more are drawn as pixels, to keep the file small."""

# Colours of Okabe and Ito (2008), distinct with any colour vision. Markers differ as well, for print.
BLUE, ORANGE, GREEN, PINK, SKY, GOLD = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
INK, GREY, FAINT = "#222222", "#8a8a8a", "#e4e4e4"
LOOKS = [("o", BLUE), ("^", ORANGE), ("s", GREEN), ("D", PINK), ("v", SKY), ("P", GOLD)]
"""Markers and colours that arms and folds take in turn."""
SLUG_BYTES = 80
"""Longest part of a file name that is made of a label; a name may have two, and at most 255 bytes."""
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
    "text.parse_math": False,  # labels are text: two dollar signs in a group's name enclose no formula
}


class Figure(NamedTuple):
    """One figure as SVG and as PNG, with its texts."""

    name: str
    """Name of its files, without the suffix."""
    svg: bytes
    png: bytes
    embed: Literal["svg", "png"]
    """Format for the HTML page: PNG for figures with one mark per site or for many cells."""
    alt: str
    caption: str
    small: bytes = b""
    """SVG that replaces the figure in the HTML page on a small screen; empty if none does."""


@contextmanager
def house_style() -> Iterator[None]:
    """Apply matplotlib's defaults and the report's style, independent of the user's matplotlibrc."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def finish(canvas: Canvas, name: str, alt: str, caption: str, embed: Literal["svg", "png"] = "svg") -> Figure:
    """Render the canvas to a `Figure`."""
    svg, png = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        # A box is drawn for a letter that matplotlib's font lacks, such as a Chinese one.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        # `Figure.savefig` would draw everything once more before it writes a file.
        canvas.set_dpi(DPI)
        FigureCanvasAgg(canvas).print_png(png, metadata={"Software": None})
        canvas.set_layout_engine("none")  # the PNG has computed the layout, which the SVG reuses
        FigureCanvasSVG(canvas).print_svg(svg, metadata={"Date": None, "Creator": None})
    return Figure(name, svg.getvalue(), png.getvalue(), embed, alt, caption)


def label_counts(axis: Axis) -> None:
    """Label a logarithmic axis with numbers; matplotlib's default labels are formulas."""
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def plain_axes(ax: Any, grid: str) -> None:
    """Remove the upper and right spines, and draw grid lines along `grid` ("x", "y" or "both")."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=2)


def panel_grid(panels: int, most: int = 3) -> tuple[int, int]:
    """Return rows and columns for a number of panels, at most `most` columns; four panels are 2 x 2."""
    across = min(panels, most, 2 if panels == 4 else panels)
    return -(-panels // across), across


def hide_unused(axes: Any, used: int) -> None:
    """Hide the panels after the first `used`, and label the x axis of the panels above them."""
    down, across = axes.shape
    for i in range(used, down * across):
        axes.flat[i].set_visible(False)
        if down > 1:
            axes[down - 2, i % across].tick_params(labelbottom=True)


def places_of(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return every (regime, split, part) of a frame: WR before OoR, else by first appearance."""
    places = dict.fromkeys(zip(frame["regime"], frame["split"], frame["part"], strict=True))
    return sorted(places, key=lambda place: (place[0] != labels.WR, place[2] == "wr"))


def arm_looks(shown: Iterable[str], arms: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Return marker and colour of each arm in `shown`, by its position among all `arms`.

    The baseline 'none' is black. Combinations repeat after 36 arms.
    """
    shown = dict.fromkeys(shown)
    looks = {}
    others = [arm for arm in dict.fromkeys([*arms, *shown]) if arm != labels.BASELINE]
    for arm in shown:
        if arm == labels.BASELINE:
            looks[arm] = "h", INK
        else:
            i = others.index(arm)
            marker = LOOKS[(i + i // len(LOOKS)) % len(LOOKS)][0]
            looks[arm] = marker, LOOKS[i % len(LOOKS)][1]
    return looks


def broken(label: str) -> str:
    """Break the label of an arm into the lines of a tick."""
    return label.replace(" · ", "\n").replace("reference: ", "reference:\n")


def dodge(i: int, count: int) -> float:
    """Return the offset of the i-th of `count` marks at one position, in [-0.32, 0.32]."""
    return 0.0 if count < 2 else 0.64 * (i / (count - 1) - 0.5)


def folds_of(cells: pd.DataFrame) -> list[int]:
    """Return the folds of the cells in ascending order."""
    return sorted(int(fold) for fold in cells["fold"].unique())


def fold_look(split: str, fold: int) -> tuple[str, str]:
    """Return marker and colour of the region of a fold (`labels.region`); they repeat after six regions."""
    return LOOKS[labels.region(split, fold)[1] % len(LOOKS)]


def legend(canvas: Canvas, handles: Sequence[Line2D]) -> None:
    """Place a legend above the panels, with as many columns as the width of the canvas allows."""
    widths = [0.38 + 0.066 * len(str(handle.get_label())) for handle in handles]  # inches at 7.5 points
    available = canvas.get_figwidth()
    across = len(handles) if sum(widths) < available else max(1, int(available / max(widths)))
    canvas.legend(
        handles=handles, loc="outside upper left", ncols=across, handletextpad=0.3, columnspacing=1.2
    )


def arm_legend(canvas: Canvas, looks: Mapping[str, tuple[str, str]]) -> None:
    """Place a legend of the arms above the panels."""
    handles = [
        Line2D([], [], ls="", marker=marker, color=colour, ms=4.5, label=label)
        for label, (marker, colour) in looks.items()
    ]
    legend(canvas, handles)


def fold_legend(canvas: Canvas, ax: Any, cells: pd.DataFrame, line: str) -> None:
    """Place a legend of the regions of the OoR cells; `line` is the line style of their marks."""
    oor = cells.loc[cells["regime"] == labels.OOR, ["split", "fold"]].drop_duplicates()
    regions = {labels.region(split, int(fold)) for split, fold in oor.itertuples(index=False)}
    alike: dict[tuple[str, int], list[int]] = {}
    for word, number in sorted(regions):
        alike.setdefault((word, number % len(LOOKS)), []).append(number)
    for (word, look), numbers in alike.items():
        marker, colour = LOOKS[look]
        label = f"{word}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
        label += "" if word == "origin" else " held out"  # an origin holds out each of its halves in turn
        ax.plot([], [], f"{marker}{line}", color=colour, ms=4, mec="none", label=label)
    canvas.legend(loc="outside upper right", ncols=3)


def slug(text: str) -> str:
    """Return a label as part of a file name, such as 'geoclip-hadamard'; a long one ends with its hash."""
    name = "-".join("".join(c if c.isalnum() else " " for c in text.lower().replace("/", "")).split())
    if len(name.encode()) <= SLUG_BYTES:
        return name
    start = name.encode()[: SLUG_BYTES - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
