"""The section on prediction intervals says what was measured, and why something was not."""

import math
from types import SimpleNamespace
from typing import Any

import pandas as pd

from sweeps.report import tables
from sweeps.report.sections.coverage import coverage
from sweeps.spec.claims import Analysis

NUMBERS = {
    "n": 1000,
    "coverage": 0.9004,
    "low": 0.85,
    "high": 0.95,
    "width": 13.46,
    "n_high": 1234,
    "coverage_high": 0.149,
    "regions": 21,
    "worst": 0.721,
    "worst_region": "25 to 33 °N, 117 to 109 °W",
    "folds": 2,
    "folds_expected": 2,
    "untested": "",
}


def line(arm: str, split: str, regime: str, part: str = "test", **changes: Any) -> dict[str, Any]:
    first = {"arm": arm, "split": split, "regime": regime, "part": part, "region": "all regions"}
    return {**first, **NUMBERS, **changes}


def report(*lines: dict[str, Any]) -> Any:
    frame = pd.DataFrame(lines) if lines else None
    return SimpleNamespace(coverage=frame, analysis=Analysis(), pictures=())


def test_a_study_without_predictions_has_no_section() -> None:
    section = coverage(report())
    assert not section.tables
    assert not section.paragraphs


def test_every_number_is_in_the_table() -> None:
    section = coverage(report(line("none", "random", "WR"), line("lat/lon", "random", "WR", width=12.0)))
    (table,) = section.tables
    assert [label for label, _ in table.lines] == ["WR, random", "none", "lat/lon"]
    texts = [entry.line() for entry in table.lines[1][1]]
    worst = "72.1% (25 to 33 °N, 117 to 109 °W)"
    assert texts == ["90.0% [85.0%, 95.0%]", "13.5", "14.9%", "1,234", worst, "21"]
    assert section.paragraphs == [
        "WR, random: lat/lon has the narrowest 90% intervals, 12.0 µg/m³ wide on average. They hold 90.0% of "
        "the days in an average region and 72.1% in the worst one, "
        "but only 14.9% of the days from 35.5 µg/m³ on."
    ]


def test_evaluation_sets_are_apart_and_within_region_comes_first() -> None:
    board = "checkerboards-16"
    section = coverage(
        report(line("none", board, "OoR"), line("none", board, "WR", "wr"), line("none", "random", "WR"))
    )
    headings = [label for label, entries in section.tables[0].lines if not entries]
    assert headings == ["WR of checkerboards-16", "WR, random", "OoR, checkerboards-16"]


def test_what_was_not_measured_has_a_reason_and_no_number() -> None:
    nothing = dict.fromkeys(("coverage", "low", "high", "width", "coverage_high", "worst"), math.nan)
    why = "4 regions of 8 degrees, and 10 are needed for 90% intervals"
    section = coverage(report(line("none", "random", "WR", **nothing, untested=why)))
    assert [entry.line() for entry in section.tables[0].lines[1][1]] == ["none", *[tables.ABSENT] * 5]
    assert section.paragraphs == [f"WR, random: no intervals: {why}."]


def test_folds_without_predictions_are_counted() -> None:
    section = coverage(report(line("none", "random", "WR", folds=3, folds_expected=5)))
    assert section.tables[0].lines[1][0] == "none (3/5 folds)"
    assert any("3/5" in note for note in section.notes)
    assert not any("3/5" in note for note in coverage(report(line("none", "random", "WR"))).notes)


def test_without_high_days_their_coverage_is_absent() -> None:
    section = coverage(report(line("none", "random", "WR", coverage_high=math.nan, n_high=0)))
    assert section.tables[0].lines[1][1][2].text == tables.ABSENT
    assert section.paragraphs[0].endswith("72.1% in the worst one.")
