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

from pm25.metrics import METRICS
from sweeps.analysis.labels import merit, number, whole, with_arm

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
    value = merit(lines["mean"].round(METRICS[metric].digits), metric)
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
    corner = METRICS[str(means["metric"].iloc[0])].title if len(means) else ""
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
    corner = f"arm minus '{others[0]}'" if alone else METRICS[str(contrasts["metric"].iloc[0])].title
    return Table(corner, [column[:2] for column in columns], found, caption, notes)


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


def flat(column: Any) -> str:
    """One string for a column name, grouped or not."""
    return " · ".join(map(str, column)) if isinstance(column, tuple) else str(column)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no HTML, no table cell, no emphasis."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _ordered(labels: Iterable[str]) -> pd.Index:
    return pd.Index(list(dict.fromkeys(labels)), dtype="str")
