"""Tables of the report as values, and as Markdown and CSV.

A cell is one training: arm x split x fold x seed. WR is within region, OoR is out of region. A cell of a
checkerboard has two scores of the same model: on OoR sites (`test_*`) and on held-out sites of its training
region (`wr_*`). Its gap OoR - WR is therefore paired. A cell that is not done has no score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pm25.metrics import METRICS
from pm25.text import counted
from sweeps.analysis import estimands
from sweeps.analysis.labels import complete, merit, number, with_arm, without_references

AUDIT_FAILED = "†"
"""Mark of a mean or a difference that includes a cell that failed the leakage audit."""

CONFOUNDED = "‡"
"""Mark of a paired difference whose arms differ in more than the declared factor."""

SIGNIFICANT = "*"
"""Mark of a declared difference that differs from zero by its adjusted test."""

EXPLORATORY = "○"
"""Mark of a tested difference that was not declared."""

SECOND_HAND = "¶"
"""Mark of a number taken from a publication."""

RANDOM_SPLIT = (
    "Random split: training and test samples share days and monitors, often the next day of the same one. "
    "Its scores are about gaps in records, not about new places or later days."
)
"""Note under tables with numbers of a random split."""

FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
"""Characters with which a spreadsheet's formula begins."""

ABSENT = "–"
"""Text of an entry without a number."""


class Entry(NamedTuple):
    """Content of one table cell."""

    text: str
    interval: str = ""
    n: str = ""
    """Number of cells: '4', or '3/4' if one of four has no score."""
    marks: str = ""
    place: int = 0
    """Rank in its column if it is 1 or 2; otherwise 0."""
    absent: bool = False
    """True if the entry has no number; the text is the reason."""
    source: str = ""
    """Files and rows with the numbers behind it."""
    verdict: str = ""
    """Verdict that the entry shows, such as 'better' or 'not tested'; empty if it shows none."""

    def line(self) -> str:
        """Return the entry on one line, such as '7.42† [7.10, 7.74] (n=5)'."""
        n = f"(n={self.n})" if self.n else ""
        return " ".join(filter(None, [self.text + self.marks, self.interval, n]))


class Table(NamedTuple):
    """Lines of entries under heads; `corner` is the head of their labels."""

    corner: str
    heads: Sequence[tuple[str, str]]
    """Pairs (group, head); the group is '' if heads are not grouped."""
    lines: Sequence[tuple[str, Sequence[Entry]]]
    """Pairs (label, entries); a line without entries is a heading of the lines below."""
    caption: str = ""
    notes: Sequence[str] = ()
    stacked: bool = False
    """True if the entries of a line are below each other on a small screen."""


def plain(frame: pd.DataFrame, corner: str, caption: str = "") -> Table:
    """Return a table of the values of a frame as texts."""
    lines = [
        (str(label), [Entry(str(value)) for value in values])
        for label, values in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return Table(corner, [("", str(column)) for column in frame.columns], lines, caption)


def mean(line: Mapping[Any, Any], *, sign: bool = False) -> Entry:
    """Return the entry for a row of `inference.means`: mean, interval and n, or why the mean is missing.

    Without an interval, the standard deviation over cells is shown.
    """
    metric, n, expected = str(line["metric"]), int(line["n"]), int(line["n_expected"])
    source = f"cells.csv: arm {line['arm']}, {_cells(line)}; means.csv"
    if n == 0:
        word = "failed" if line["n_failed"] else "missing" if line["n_missing"] else "undefined"
        count = f"{line['n_failed']}/{expected}" if word == "failed" else f"0/{expected}"
        return Entry(f"{word} ({count})", absent=True, source=source)
    spread = ""
    if line["low"] < line["high"]:  # equal values show no spread, which would look like certainty
        spread = interval(line["low"], line["high"], metric, sign)
    elif not math.isfinite(line["low"]) and line["sd"] > 0:
        spread = f"± {number(line['sd'], metric)}"
    sets = counted(line["n_units"], "fold")
    source = f"{n} of {expected} cells, {sets}, {counted(line['n_seeds'], 'seed')} ({source})"
    marks = AUDIT_FAILED if line["n_marked"] else ""
    count = str(n) if n == expected else f"{n}/{expected}"
    return Entry(minus(number(line["mean"], metric, sign)), spread, count, marks, source=source)


def difference(line: Mapping[Any, Any], alpha: float, *, exploratory: bool = False) -> Entry:
    """Return the entry for a row of `inference.contrasts`: paired difference, interval and n.

    With `exploratory`, a tested difference that was not declared has a mark.
    """
    metric, pairs = str(line["metric"]), int(line["n_pairs"])
    if not pairs:
        return Entry("no pairs", absent=True)
    spread = ""
    if math.isfinite(line["low"]):
        spread = interval(line["low"], line["high"], metric, sign=True)
    marks = SIGNIFICANT if line["declared"] and line["p_adjusted"] <= alpha else ""
    marks += EXPLORATORY if exploratory and spread and not line["declared"] else ""
    marks += doubts(line)
    units = estimands.counted_units(int(line["n_units"]), line["unit"])
    source = (
        f"{pairs} pairs, {units}; better in {line['n_better']} of {pairs} (contrasts.csv: arm {line['arm']}, "
        f"other {line['other']}, split {line['split']}, part {line['part']}; cells.csv: its keys)"
    )
    return Entry(minus(number(line["diff"], metric, sign=True)), spread, str(pairs), marks, source=source)


def doubts(line: Mapping[Any, Any]) -> str:
    """Return the marks of a contrast whose cells failed their audit, or whose arms are confounded."""
    return (AUDIT_FAILED if line.get("marked") else "") + (CONFOUNDED if line["unfair"] else "")


def _cells(line: Mapping[Any, Any]) -> str:
    """Return the filter of cells.csv for a row of `inference.means`; a held-out region is a fold."""
    split, _, region = str(line["split"]).partition(" · ")
    fold = f", fold {region.split()[1]}" if region else ""
    return f"split {split}{fold}, part {line['part']}"


def interval(low: float, high: float, metric: str, sign: bool = False) -> str:
    """Format an interval, such as '[7.10, 7.74]'."""
    return minus(f"[{number(low, metric, sign)}, {number(high, metric, sign)}]")


def minus(text: str) -> str:
    """Replace hyphens by minus signs."""
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """Format a p-value: '0.012', '<0.001', or '–' for NaN."""
    if math.isnan(p):
        return ABSENT
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def degrees_of_freedom(df: float) -> str:
    """Format degrees of freedom: '14', '11.3', or '–' for NaN."""
    return ABSENT if math.isnan(df) else f"{df:.1f}".removesuffix(".0")


def places(means: pd.DataFrame) -> dict[str, int]:
    """Return the arms that are best (1) or second (2) on one split and evaluation set, at shown precision.

    References are not ranked. Only complete arms are, because a mean without the hard cells looks better.
    Nothing is ranked if there are fewer than two complete arms, or if all are equal. Equal arms share their
    rank, and two best arms leave no second.
    """
    lines = complete(without_references(means))
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
    """Return a table with a line per arm; `columns` are (group, head, split, part) of `means`.

    A column of skill follows each column of which `means` has it.
    """
    lines = {(line["arm"], line["split"], line["part"]): line for line in means.to_dict("records")}
    arms = list(dict.fromkeys(means["arm"]))
    best = {
        (split, part): places(means[(means["split"] == split) & (means["part"] == part)]) if ranked else {}
        for _, _, split, part in columns
    }
    known = means[means["skill"].notna()]
    skilled = {*zip(known["split"], known["part"], strict=True)}
    heads = [
        head
        for group, name, split, part in columns
        for head in [(group, name), *([(group, "skill")] if (split, part) in skilled else [])]
    ]
    found = []
    for label in arms:
        entries = []
        for _, _, split, part in columns:
            line = lines.get((label, split, part))
            entry = Entry("not planned", absent=True) if line is None else mean(line, sign=sign)
            entries.append(entry._replace(place=best[split, part].get(label, 0)))
            if (split, part) in skilled:
                entries.append(_skill(math.nan if line is None else line["skill"]))
        found.append((label, entries))
    corner = METRICS[str(means["metric"].iloc[0])].title if len(means) else ""
    return Table(corner, heads, found, caption, notes)


def _skill(value: float) -> Entry:
    """Return the entry for a skill, or a dash for NaN."""
    return Entry(ABSENT, absent=True) if math.isnan(value) else Entry(minus(f"{value:z.2f}"))


def of_differences(
    contrasts: pd.DataFrame,
    columns: Sequence[tuple[str, str, str, str]],
    alpha: float,
    caption: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """Return a table with a line per pair of arms, in the order of `contrasts`, which is not empty."""
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
            entries.append(
                Entry("not planned", absent=True)
                if line is None
                else difference(line, alpha, exploratory=True)
            )
        found.append((label if alone else f"{label} − {other}", entries))
    corner = f"arm minus '{others[0]}'" if alone else METRICS[str(contrasts["metric"].iloc[0])].title
    return Table(corner, [column[:2] for column in columns], found, caption, notes)


def completeness(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of cells by state, arm and split, such as '3 done, 1 failed'."""
    cells = with_arm(rows)
    frame = pd.DataFrame(
        "not planned", index=_ordered(cells["arm"]), columns=_ordered(cells["split"]), dtype="object"
    )
    for (label, split), group in cells.groupby(["arm", "split"], sort=False):
        counts = group["state"].value_counts()
        frame.loc[label, split] = ", ".join(
            f"{counts[state]} {state}"
            for state in ("done", "failed", "missing", "damaged")
            if counts.get(state, 0)
        )
    return frame


def sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of training, validation, test and WR test samples by split, over the done cells.

    References are left out, because boosting is fitted on a subsample.
    """
    rows = without_references(rows)
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


def in_markdown(table: Table) -> str:
    """Return a GitHub table: the best entry of a column is bold, the second italic; headings are bold."""
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
    """Return the notes for a Markdown table, in which the second-best entry is italic."""
    return escape(" ".join(notes)).replace("Underlined", "Italic")


def csv(frame: pd.DataFrame) -> str:
    """Return the frame as CSV with a header and without the index; numbers are written exactly.

    A spreadsheet would run a text that begins like a formula, so such a text gets an apostrophe (OWASP, "CSV
    injection").
    """
    safe = frame.rename(columns=_no_formula)
    for name in safe.select_dtypes(exclude=["number", "bool", "datetime"]):
        safe[name] = pd.Series(map(_no_formula, safe[name]), safe.index, "object")
    return safe.to_csv(index=False, lineterminator="\n")


def _no_formula(value: Any) -> Any:
    """Put an apostrophe before a text that begins like a formula and is not a number."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # pandas puts no quotes around a \r alone
    if not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def escape(text: str) -> str:
    """Escape a text for Markdown, on one line: no HTML, no table cell, no emphasis."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _ordered(labels: Iterable[str]) -> pd.Index:
    return pd.Index(list(dict.fromkeys(labels)), dtype="str")
