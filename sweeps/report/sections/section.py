"""A section of the report, the notes under its tables, and selections of results that sections share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from pm25.settings import REFERENCES
from sweeps.analysis import estimands, labels
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
    notes = []
    if "diff" in frame:
        if frame["low"].notna().any():
            notes.append(
                f"In brackets after a difference: {level} interval of the test that decides, not adjusted."
            )
        return [*notes, *_contrast_marks(report, frame), *split_notes(report, frame["split"])]
    if frame["skill"].notna().any():
        notes.append("skill: 1 − MSE / MSE of the best reference; below 0, the reference is better.")
    if frame["variant"].isin(REFERENCES).any():
        notes.append(
            "reference: predicted without a network from training samples; neither ranked nor tested."
        )
    if ranked:
        notes.append("Bold: best mean. Underlined: second-best mean. Only complete arms are ranked.")
    if frame["low"].notna().any():
        notes.append(
            f"In brackets after a mean: {level} interval of one arm. Arms share most of its variation, so "
            "compare them by their differences."
        )
    if (frame["low"].isna() & frame["sd"].notna()).any():
        notes.append("±: standard deviation over cells, where the units are too few for an interval.")
    has_pooled = bool(frame["pooled"].any())
    if has_pooled:
        notes.append("Scores of random, spatial and knndm splits are pooled over all test samples.")
    if (~frame["pooled"]).any():
        notes.append(f"{'Other scores' if has_pooled else 'Scores'} are means over cells.")
    notes.append("n: number of cells, each one training; 3/4 means that one of four cells has no score.")
    if (frame["n_marked"] > 0).any():
        notes.append(f"{tables.AUDIT_FAILED} Includes a cell that failed the leakage audit.")
    return [*notes, *split_notes(report, frame["split"])]


def split_notes(report: ReportData, splits: pd.Series) -> list[str]:
    """Return what a reader has to know about the random splits and the checkerboards of one origin."""
    kinds = dict(zip(report.rows["split"], report.rows["kind"], strict=True))
    found = {kinds.get(split) for split in splits}
    notes = []
    if "random" in found:
        notes.append(tables.RANDOM_SPLIT)
    if "checkerboard" in found:
        notes.append(
            "Checkerboard: the two colours are halves of one origin, so differences are shown without a "
            f"test. The split {estimands.of('checkerboards').design} has one."
        )
    return notes


def _contrast_marks(report: ReportData, frame: pd.DataFrame) -> list[str]:
    """Return the notes on the marks of differences."""
    alpha = report.analysis.alpha
    notes = []
    if (frame["declared"] & (frame["p_adjusted"] <= alpha)).any():
        notes.append(
            f"{tables.SIGNIFICANT} Differs from zero: p ≤ {alpha:g} after Holm's correction over the "
            f"declared contrasts."
        )
    if "marked" in frame and (frame["marked"] != "").any():
        notes.append(f"{tables.AUDIT_FAILED} Includes a cell that failed the leakage audit.")
    if (frame["unfair"] != "").any():
        notes.append(f"{tables.CONFOUNDED} Confounded: the arms differ in more than the declared factor.")
    return notes


def columns_of(
    means: pd.DataFrame, group: str, regime: str, part: str = "test"
) -> list[tuple[str, str, str, str]]:
    """Return a column (group, head, split, part) for every split of a regime and an evaluation set."""
    return [(group, labels.split_title(split), split, part) for split, part in splits_of(means, regime, part)]


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
