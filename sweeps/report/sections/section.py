"""A section of the report, the notes under its tables, and selections of results that sections share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from sweeps.report import summary, tables
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData
    from sweeps.report.figures.style import Figure as Picture


class Section(NamedTuple):
    """A heading with its text, tables and figures."""

    anchor: str
    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    paragraphs: Sequence[str] = ()

    @property
    def notes(self) -> list[str]:
        """Notes of all its tables, each once."""
        return list(dict.fromkeys(note for table in self.tables if table.lines for note in table.notes))


def legend(report: ReportData, frame: pd.DataFrame, *, ranked: bool = True) -> list[str]:
    """Return the notes under a table of means or of contrasts: its marks and intervals, and its test."""
    level = f"{1 - report.analysis.alpha:.0%}"
    interval = f"In brackets: {level} interval over test sets"
    notes = []
    if "diff" in frame:
        if frame["low"].notna().any():
            notes.append(f"{interval}.")
        return [*notes, *_bootstrap_note(frame, level), *_contrast_marks(report, frame)]
    if ranked:
        notes.append("Bold: best mean. Underlined: second-best mean. Only complete arms are ranked.")
    if frame["low"].notna().any():
        notes.append(f"{interval}, without the variation that all arms share.")
    notes += _bootstrap_note(frame, level)
    no_interval = frame["low"].isna() & frame["boot_low"].isna() & frame["sd"].notna()
    if no_interval.any():
        notes.append("±: standard deviation over cells, where an interval would need more test sets.")
    notes.append("n: number of cells; 3/4 means that one of four cells has no score.")
    if (frame["n_marked"] > 0).any():
        notes.append(f"{tables.AUDIT_FAILED} Includes a cell that failed the leakage audit.")
    return notes


def _bootstrap_note(frame: pd.DataFrame, level: str) -> list[str]:
    """Return the note on bootstrap intervals, if the table has any."""
    if not (frame["low"].isna() & frame["boot_low"].notna()).any():
        return []
    return [
        f"{tables.BOOTSTRAP} {level} bootstrap interval over sites (WR) or blocks of sites (OoR), for the "
        "trained models at hand. It is not a test, because there are too few test sets."
    ]


def _contrast_marks(report: ReportData, frame: pd.DataFrame) -> list[str]:
    """Return the notes on the marks of differences."""
    alpha = report.analysis.alpha
    notes = []
    if (frame["declared"] & (frame["p_adjusted"] <= alpha)).any():
        test = summary.TESTS[str(frame["test"].iloc[0])]
        notes.append(
            f"{tables.SIGNIFICANT} Differs from zero: {test}, p ≤ {alpha:g} after Holm's correction over the "
            "declared contrasts."
        )
    if (frame["unfair"] != "").any():
        notes.append(f"{tables.CONFOUNDED} Confounded: the arms differ in more than the declared factor.")
    return notes


def splits_of(means: pd.DataFrame, regime: str, part: str) -> list[tuple[str, str]]:
    """Return every (split, part) of a regime and an evaluation set, by first appearance."""
    return [(split, part) for split in summary.splits_of(means, regime, part)]


def over_all_folds(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return the contrasts over all folds, without those of a single fold."""
    return contrasts[contrasts["fold"].isna()]


def pictures(report: ReportData, *prefixes: str) -> list[Picture]:
    """Return the figures whose name starts with one of the prefixes."""
    return [picture for picture in report.pictures if picture.name.startswith(prefixes)]


def plain_number(value: float) -> Entry:
    """Return a number with two decimals as an entry; a dash for NaN."""
    return Entry(tables.ABSENT if math.isnan(value) else f"{value:.2f}")
