"""The tables of a report as values: cells in, what stands in each place out, and how it is written down.

Words: a *cell* is one training (arm x split x fold x seed); WR is within region, OoR out of region; a
checkerboard cell is scored twice with one model, on OoR sites (``test_*``) and on held-out sites inside its
training region (``wr_*``), so its gap OoR - WR is paired. A cell that is not done has no number, whatever
its metric columns hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

BASELINE = "none"
METRICS = ("rmse", "r2", "mae", "mbe")
TAIL = ("tail_rmse", "tail_recall", "tail_precision")
NAMES = {
    "rmse": "RMSE",
    "r2": "R²",
    "mae": "MAE",
    "mbe": "MBE",
    "tail_rmse": "RMSE of the tail",
    "tail_recall": "recall",
    "tail_precision": "precision",
}
UNITS = {"rmse": "µg/m³", "r2": "", "mae": "µg/m³", "mbe": "µg/m³", "tail_rmse": "µg/m³"}
DECIMALS = {"rmse": 2, "r2": 3, "mae": 2, "mbe": 2, "tail_rmse": 1, "tail_recall": 3, "tail_precision": 3}
UPWARD = ("r2", "tail_recall", "tail_precision")
"""More is better."""
WR, OOR, GAP = "WR", "OoR", "OoR − WR"

MARK = "†"
"""Stands at every mean that holds a cell whose audit failed."""

UNFAIR = "‡"
"""Stands at every paired difference whose arms differ in more than the declared factor."""

BOOTSTRAP = "§"
"""Stands at an interval of the bootstrap, where there are too few test sets for one over them."""

SIGNIFICANT = "*"
"""Stands at every declared difference that its test, adjusted, tells from zero."""

SECOND_HAND = "¶"
"""Stands at every number that a paper published."""

ABSENT = "–"


class Entry(NamedTuple):
    """What stands in one place of a table."""

    text: str
    interval: str = ""
    n: str = ""
    """How many cells: '4', or '3/4' where one has no number."""
    marks: str = ""
    place: int = 0
    """1 the best of its column, 2 the second; 0 otherwise."""
    absent: bool = False
    """It has no number, and says why."""
    source: str = ""
    """Where the numbers behind it are found."""

    def line(self) -> str:
        """'7.42† [7.10, 7.74] (n=5)'."""
        n = f"(n={self.n})" if self.n else ""
        return " ".join(filter(None, [self.text + self.marks, self.interval, n]))


class Table(NamedTuple):
    """Lines of entries under heads; the ``corner`` names what the lines are."""

    corner: str
    heads: Sequence[tuple[str, str]]
    """(group, head); all groups are '' where there are none."""
    lines: Sequence[tuple[str, Sequence[Entry]]]
    """A line without entries is a heading of those below it."""
    caption: str = ""
    notes: Sequence[str] = ()


def plain(frame: pd.DataFrame, corner: str, caption: str = "", notes: Sequence[str] = ()) -> Table:
    """A table of the frame's texts."""
    lines = [
        (str(label), [Entry(str(value)) for value in values])
        for label, values in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return Table(corner, [("", str(column)) for column in frame.columns], lines, caption, notes)


def mean(line: Mapping[Any, Any], *, sign: bool = False) -> Entry:
    """The entry of a line of ``inference.means``: the mean, its interval and n, or why there is none.

    Where too few test sets give no interval it is that of the bootstrap, marked, or the standard deviation
    of the cells.
    """
    metric, n, expected = str(line["metric"]), int(line["n"]), int(line["n_expected"])
    source = f"cells.csv: arm {line['arm']}, {_cells(line)}; means.csv"
    if n == 0:
        word = "failed" if line["n_failed"] else "missing" if line["n_missing"] else "undefined"
        count = f"{line['n_failed']}/{expected}" if word == "failed" else f"0/{expected}"
        return Entry(f"{word} ({count})", absent=True, source=source)
    spread = ""
    if math.isfinite(line["low"]):
        spread = interval(line["low"], line["high"], metric, sign)
    elif math.isfinite(line["boot_low"]):
        spread = interval(line["boot_low"], line["boot_high"], metric, sign) + BOOTSTRAP
    elif math.isfinite(line["sd"]):
        spread = f"± {number(line['sd'], metric)}"
    sets = f"{line['n_units']} test set{'s' * (line['n_units'] != 1)}"
    told = f"{n} of {expected} cells, {sets}, {line['n_seeds']} seed{'s' * (line['n_seeds'] != 1)} ({source})"
    marks = MARK if line["n_marked"] else ""
    whole = str(n) if n == expected else f"{n}/{expected}"
    return Entry(minus(number(line["mean"], metric, sign)), spread, whole, marks, source=told)


def difference(line: Mapping[Any, Any], alpha: float) -> Entry:
    """The entry of a line of ``inference.contrasts``: the paired difference, its interval and n."""
    metric, pairs = str(line["metric"]), int(line["n_pairs"])
    if not pairs:
        return Entry("no pairs", absent=True)
    spread = ""
    if math.isfinite(line["low"]):
        spread = interval(line["low"], line["high"], metric, sign=True)
    elif math.isfinite(line["boot_low"]):
        spread = interval(line["boot_low"], line["boot_high"], metric, sign=True) + BOOTSTRAP
    marks = SIGNIFICANT if line["declared"] and line["p_adjusted"] <= alpha else ""
    marks += UNFAIR if line["unfair"] else ""
    sets = f"{line['n_units']} test set{'s' * (line['n_units'] != 1)}"
    source = (
        f"{pairs} pairs, {sets}; better in {line['n_better']} of {pairs} (contrasts.csv: arm {line['arm']}, "
        f"other {line['other']}, split {line['split']}, part {line['part']}; cells.csv: its keys)"
    )
    return Entry(minus(number(line["diff"], metric, sign=True)), spread, str(pairs), marks, source=source)


def _cells(line: Mapping[Any, Any]) -> str:
    """Where the cells behind a line of ``inference.means`` are found: by a region held out, its fold."""
    split, _, region = str(line["split"]).partition(" · ")
    fold = f", fold {region.split()[1]}" if region else ""
    return f"split {split}{fold}, part {line['part']}"


def interval(low: float, high: float, metric: str, sign: bool = False) -> str:
    """'[7.10, 7.74]'."""
    return minus(f"[{number(low, metric, sign)}, {number(high, metric, sign)}]")


def minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """'0.012', '<0.001', or '–'."""
    if math.isnan(p):
        return ABSENT
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def merit(values: pd.Series, metric: str) -> pd.Series:
    """More is better: R2 as it is, the errors negated, the bias by its size."""
    return values if metric in UPWARD else -values.abs()


def whole(means: pd.DataFrame) -> pd.DataFrame:
    """Lines of ``inference.means``, of one split and part, whose cells all have a number; the best first."""
    lines = means[(means["n"] == means["n_expected"]) & (means["n"] > 0)]
    if lines.empty:
        return lines
    order = merit(lines["mean"], str(lines["metric"].iloc[0])).sort_values(ascending=False, kind="stable")
    return lines.loc[order.index]


def places(means: pd.DataFrame) -> dict[str, int]:
    """Arms that are best (1) or second (2) of one split and part, as far as is shown.

    Only arms with all their cells compete, for a mean without the hard cells is no better mean; of fewer
    than two, or of equals alone, none is best. Equals share their place, and two that are best leave no
    second.
    """
    lines = whole(means)
    if len(lines) < 2:
        return {}
    metric = str(lines["metric"].iloc[0])
    value = merit(lines["mean"].round(DECIMALS[metric]), metric)
    if value.nunique() < 2:
        return {}
    rank = value.rank(method="min", ascending=False)
    return {arm: int(r) for arm, r in zip(lines["arm"], rank, strict=True) if r <= 2}


def of_means(
    means: pd.DataFrame,
    columns: Sequence[tuple[str, str, str, str]],
    caption: str = "",
    notes: Sequence[str] = (),
    *,
    sign: bool = False,
    ranked: bool = True,
) -> Table:
    """An arm a line; ``columns`` are (group, head, split, part), those that ``means`` has."""
    lines = {(line["arm"], line["split"], line["part"]): line for line in means.to_dict("records")}
    arms = list(dict.fromkeys(means["arm"]))
    best = {
        (split, part): places(means[(means["split"] == split) & (means["part"] == part)]) if ranked else {}
        for _, _, split, part in columns
    }
    found = []
    for label in arms:
        entries = []
        for _, _, split, part in columns:
            line = lines.get((label, split, part))
            entry = Entry("not planned", absent=True) if line is None else mean(line, sign=sign)
            entries.append(entry._replace(place=best[split, part].get(label, 0)))
        found.append((label, entries))
    corner = title(str(means["metric"].iloc[0])) if len(means) else ""
    return Table(corner, [column[:2] for column in columns], found, caption, notes)


def of_differences(
    contrasts: pd.DataFrame,
    columns: Sequence[tuple[str, str, str, str]],
    alpha: float,
    caption: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """A pair of arms a line, in the order of ``contrasts``, of which there are some; else as ``of_means``."""
    lines = {
        (line["arm"], line["other"], line["split"], line["part"]): line
        for line in contrasts[contrasts["fold"].isna()].to_dict("records")
    }
    others = list(dict.fromkeys(contrasts["other"]))
    alone = len(others) == 1
    found = []
    for label, other in dict.fromkeys((arm, other) for arm, other, *_ in lines):
        entries = []
        for _, _, split, part in columns:
            line = lines.get((label, other, split, part))
            entries.append(Entry("not planned", absent=True) if line is None else difference(line, alpha))
        found.append((label if alone else f"{label} − {other}", entries))
    corner = f"arm minus '{others[0]}'" if alone else title(str(contrasts["metric"].iloc[0]))
    return Table(corner, [column[:2] for column in columns], found, caption, notes)


_VARIANTS = {
    "latlon": "lat/lon",
    "sincos": "sin/cos",
    "geoclip": "GeoCLIP",
    "satclip": "SatCLIP",
    "shuffled": "shuffled GeoCLIP",
}
_FUSIONS = {"hadamard": "Hadamard"}


def arm(variant: str, fusion: str | float | None) -> str:
    """The label of an arm: 'none', 'lat/lon', 'GeoCLIP · Hadamard'. A fusion of None or NaN is no fusion.

    'none' with a fusion has an encoder arm's layers, fed a constant: the matched head.
    """
    name = _VARIANTS.get(variant, variant)
    if variant == BASELINE and isinstance(fusion, str) and fusion:
        return f"none · matched {_FUSIONS.get(fusion, fusion)}"
    return f"{name} · {_FUSIONS.get(fusion, fusion)}" if isinstance(fusion, str) and fusion else name


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """A copy of the rows in which only a done cell has finite scores (``test_*``, ``wr_*``); others are NaN.

    Raises ValueError when two rows are the same arm, split, fold and seed: their mean would mean nothing.
    """
    cells = rows.copy()
    place = ["variant", "fusion", "split", "fold", "seed"]
    if (twice := cells.duplicated(place)).any():
        raise ValueError(f"two rows for one cell: {cells.loc[twice, place].iloc[0].to_dict()}")
    for text in ("marked", "unfair", "tuned"):
        cells[text] = cells[text].astype("object").fillna("").astype("str") if text in cells else ""
    scores = [f"{prefix}_{metric}" for prefix in ("test", "wr") for metric in METRICS]
    scores += [
        column for column in map(str, cells) if column not in scores and column.startswith(("test_", "wr_"))
    ]
    for column in scores:
        number = (
            cells[column].astype("float64") if column in cells else pd.Series(math.nan, index=cells.index)
        )
        cells[column] = number.where((cells["state"] == "done") & (number.abs() < math.inf))
    return cells


def with_arm(rows: pd.DataFrame) -> pd.DataFrame:
    """``measured(rows)`` with a column ``arm``."""
    cells = measured(rows)
    labels = [arm(v, f) for v, f in zip(cells["variant"], cells["fusion"], strict=True)]
    return cells.assign(arm=pd.Series(labels, index=cells.index, dtype="str"))


def directions(rows: pd.DataFrame) -> pd.DataFrame:
    """The OoR rows with each held-out region as a split of its own."""
    cells = rows.loc[rows["regime"] == OOR]
    labels = [direction(split, fold) for split, fold in zip(cells["split"], cells["fold"], strict=True)]
    cells = cells.assign(split=pd.Series(labels, index=cells.index, dtype="str"))
    return cells.iloc[sorted(range(len(cells)), key=lambda i: int(cells["fold"].iloc[i]))]


def direction(split: str, fold: int) -> str:
    """What ``directions`` calls one."""
    return f"{split} · {held_out(split, fold)}"


def held_out(split: str, fold: int) -> str:
    """What a fold of an OoR split holds out: one colour of a checkerboard, or a region."""
    return f"{'colour' if split.startswith('checkerboard') else 'region'} {fold} held out"


def completeness(rows: pd.DataFrame) -> pd.DataFrame:
    """Arm x split: how many cells are done, failed and missing, as '3 done, 1 failed'."""
    cells = with_arm(rows)
    frame = pd.DataFrame(
        "not planned", index=_ordered(cells["arm"]), columns=_ordered(cells["split"]), dtype="object"
    )
    for (label, split), group in cells.groupby(["arm", "split"], sort=False):
        counts = group["state"].value_counts()
        frame.loc[label, split] = ", ".join(
            f"{counts[state]} {state}" for state in ("done", "failed", "missing") if counts.get(state, 0)
        )
    return frame


def sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Split x (training, validation, test, WR test samples, epochs): the range over the done cells."""
    names = {"n_train": "training", "n_val": "validation", "n_test": "test", "n_wr": "WR test"}
    frame = pd.DataFrame("–", index=_ordered(rows["split"]), columns=list(names.values()), dtype="object")
    for split, group in rows[rows["state"] == "done"].groupby("split", sort=False):
        for column, name in names.items():
            counts = group[column].dropna()
            counts = counts[counts > 0]
            if len(counts):
                low, high = int(counts.min()), int(counts.max())
                frame.loc[split, name] = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return frame


def markdown(frame: pd.DataFrame, bold: pd.DataFrame | None = None) -> str:
    """A GitHub table. Grouped columns become 'WR · random'; cells where ``bold`` is True are bold."""
    texts = frame.astype("str").map(escape)
    if bold is not None:
        texts = texts.where(~bold, "**" + texts + "**")
    texts.columns = pd.Index([escape(flat(column)) for column in frame.columns])
    corner = escape(str(frame.index.name or ""))
    texts.index = pd.Index([escape(str(label)) for label in frame.index], name=corner)
    return texts.to_markdown(disable_numparse=True)


def in_markdown(table: Table) -> str:
    """A GitHub table: the best of a column is bold, the second italic; headings of lines are bold."""
    lines = []
    for label, entries in table.lines:
        if not entries:
            lines.append([f"**{escape(label)}**", *[""] * len(table.heads)])
            continue
        shown = [(escape(entry.line()), entry.place) for entry in entries]
        around = {0: "", 1: "**", 2: "*"}
        lines.append([escape(label), *(f"{around[place]}{text}{around[place]}" for text, place in shown)])
    heads = [escape(" · ".join(filter(None, head))) for head in table.heads]
    frame = pd.DataFrame(np.array(lines, dtype="object").reshape(len(lines), len(heads) + 1))
    frame.columns = pd.Index([escape(table.corner), *heads])
    return frame.to_markdown(index=False, disable_numparse=True)


def notes_in_markdown(notes: Sequence[str]) -> str:
    """Notes under a table ``in_markdown``, which has no underline."""
    return escape(" ".join(notes)).replace("underlined", "italic")


def csv(frame: pd.DataFrame) -> str:
    """Comma-separated, with a header, without the index; a number is written so that it reads back equal."""
    return frame.to_csv(index=False, lineterminator="\n")


def title(metric: str) -> str:
    """The metric's name and unit: 'RMSE (µg/m³)'."""
    return f"{NAMES[metric]} ({UNITS[metric]})" if UNITS.get(metric) else NAMES[metric]


def flat(column: Any) -> str:
    """One string for a column name, grouped or not."""
    return " · ".join(map(str, column)) if isinstance(column, tuple) else str(column)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no HTML, no table cell, no emphasis."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


def number(value: float, metric: str, sign: bool = False) -> str:
    """A value in the metric's digits; '–' where there is none."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 1e5:  # a training that ran away
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    digits = DECIMALS[metric]
    return f"{value:+z.{digits}f}" if sign else f"{value:z.{digits}f}"


def _ordered(labels: Iterable[str]) -> pd.Index:
    return pd.Index(list(dict.fromkeys(labels)), dtype="str")
