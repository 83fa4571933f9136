"""The first screen of the report: a verdict for every arm and estimand, and the forest plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pm25.metrics import METRICS
from sweeps.analysis import estimands, labels
from sweeps.report import summary, tables
from sweeps.report.sections.section import Section, legend, pictures
from sweeps.report.summary import Line
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData


def verdicts(report: ReportData) -> Section:
    """Verdict table of arms against 'none', and the forest plot."""
    table = verdict_table(report)
    found = [table] if table.lines else []
    return Section("verdicts", "Verdicts", "", found, pictures(report, f"forest-{report.metric}"))


def verdict_table(report: ReportData) -> Table:
    """Return a table with a line per arm and a column per split, under its estimand."""
    frame = report.contrasts[report.metric]
    frame = frame[frame["part"] == "test"]
    lines = summary.against_none_by_place(frame)
    places = list(dict.fromkeys((line["regime"], line["estimand"], line["split"]) for line in lines))
    places.sort(key=lambda place: place[0] == labels.OOR)  # within region first
    by_place = {(line["arm"], line["split"]): line for line in lines}
    rows = [
        (arm, [_entry(by_place.get((arm, split)), lines) for _, _, split in places])
        for arm in dict.fromkeys(line["arm"] for line in lines)
    ]
    heads = [(f"{regime}: {estimand}", split) for regime, estimand, split in places]
    caption = f"Is an arm better than 'none'? {METRICS[report.metric].title}, arm minus 'none'."
    notes = [*_glossary(report), *_words(report, lines), *legend(report, frame, ranked=False)]
    notes = [note for note in notes if not note.startswith(tables.SIGNIFICANT)]  # verdicts have no such mark
    kinds = dict(zip(report.rows["split"], report.rows["kind"], strict=True))
    for *_, split in places:
        notes += _tested(split, kinds[split], [line for line in lines if line["split"] == split])
    return Table("arm", heads, rows, caption, notes, stacked=True)


def _entry(line: Mapping[Any, Any] | None, lines: Sequence[Line]) -> Entry:
    """Return the verdict of one contrast with its difference, interval and p."""
    if line is None:
        return Entry("not planned", absent=True)
    word = summary.verdict(line)
    if not line["n_pairs"]:
        return Entry(word, absent=True)
    metric = str(line["metric"])
    amount = tables.minus(labels.number(line["diff"], metric, sign=True))
    if line["verdict"] == "too few":
        return Entry(word, amount, source=str(line["untested"]), verdict=word)
    spread = tables.interval(line["low"], line["high"], metric, sign=True)
    p = line["p_adjusted"] if math.isfinite(line["p_adjusted"]) else line["p"]
    numbers = f"{amount} {spread}, p {tables.p_value(p)}"
    if places := summary.other_places(line, lines):
        numbers += f"; {places}"
    marks = tables.doubts(line)
    units = estimands.counted_units(int(line["n_units"]), line["unit"])
    source = f"{line['test']}; {units}, df {tables.degrees_of_freedom(line['df'])}"
    source += f"; beside it: {line['sensitivity']}" if line["sensitivity"] else ""
    place = int(word == "better")
    return Entry(word, numbers, marks=marks, place=place, source=source, verdict=word)


def _glossary(report: ReportData) -> list[str]:
    """Return what a stranger has to know of the words in the table."""
    metric = METRICS[report.metric]
    better = "a value nearer to zero" if metric.better == "nearer zero" else f"a {metric.better} value"
    meaning = f"{metric.meaning}, so {better} is better"
    return [
        "Arm: a way of giving the model the location. 'none' is the same model without location.",
        "WR, within region: monitors near those of the test were used for training. OoR, out of region: "
        "whole regions were left out of the training.",
        f"{metric.name}: {meaning}.",
    ]


def _words(report: ReportData, lines: Sequence[Line]) -> list[str]:
    """Return what the verdicts in the table mean."""
    margin = f"{report.analysis.rope:.3g}"
    if METRICS[report.metric].relative_rope:
        margin = f"{report.analysis.rope:.3g} times the {METRICS[report.metric].name} of 'none'"
    meanings = {
        "equivalent": f"Equivalent: the difference is smaller than {margin}.",
        "undecided": "Undecided: neither a difference nor its absence is shown.",
        "exploratory": "Exploratory: not declared. Its p is not adjusted, and it has no verdict.",
    }
    words = {summary.verdict(line) for line in lines}
    found = [meaning for word, meaning in meanings.items() if word in words]
    if any(math.isfinite(line["p_adjusted"]) for line in lines):
        found.insert(0, "p: adjusted by Holm's method over the declared comparisons.")
    return found


def _tested(split: str, kind: str, lines: Sequence[Line]) -> list[str]:
    """Return the test of a split with its units and degrees of freedom, or why there is none."""
    tested = [line for line in lines if line["test"]]
    if not tested:
        reasons = dict.fromkeys(line["untested"] for line in lines if line["n_pairs"])
        # `legend` has the reason for a checkerboard.
        return [f"{split}: {'; '.join(reasons)}."] if reasons and kind != "checkerboard" else []
    units, df = ([line[name] for line in tested] for name in ("n_units", "df"))
    counts = estimands.counted_units(int(max(units)), tested[0]["unit"])
    if min(units) < max(units):
        counts = f"{min(units):,} to {counts}"
    ends = dict.fromkeys(tables.degrees_of_freedom(value) for value in (min(df), max(df)))
    test = estimands.of(kind).test
    of_test = " of the test with the larger p" if test.startswith("larger p") else ""
    return [f"{split}: {test}; {counts}, df {' to '.join(ends)}{of_test}."]
