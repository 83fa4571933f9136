"""The section on prediction intervals: how often they hold the measured value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pm25.metrics import EXCEEDANCE_UGM3
from sweeps.analysis import coverage as intervals
from sweeps.analysis import labels
from sweeps.report import tables
from sweeps.report.sections.section import Section, pictures
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData


def coverage(report: ReportData) -> Section:
    """Coverage of the prediction intervals by arm and split, and by region."""
    title = "How far off a prediction may be"
    if report.coverage is None or report.coverage.empty:
        return Section("coverage", title, "")
    level = f"{report.analysis.coverage:.0%}"
    overall = intervals.overall(report.coverage).to_dict("records")
    lines: list[tuple[str, list[Entry]]] = []
    for regime in (labels.WR, labels.OOR):
        for place in dict.fromkeys(
            (line["split"], line["part"]) for line in overall if line["regime"] == regime
        ):
            lines.append((intervals.set_name(regime, *place), []))
            for line in overall:
                if (line["regime"], line["split"], line["part"]) == (regime, *place):
                    lines.append((_arm(line), _entries(line)))
    heads = (
        "coverage",
        "mean width (µg/m³)",
        f"coverage from {EXCEEDANCE_UGM3} µg/m³ on",
        "days from there on",
        "worst region",
        "regions",
    )
    caption = f"Share of test samples whose {level} interval holds the measured value (nominal: {level})."
    notes = [
        "Coverage: mean over regions, each of which counts once. In brackets: "
        f"{1 - report.analysis.alpha:.0%} interval of the mean over regions.",
        f"A region is a square of {report.analysis.block_degrees:g} degrees. coverage.csv has each of them.",
        "3/5 folds: only three of five folds have predictions.",
    ]
    if all(line["folds"] == line["folds_expected"] for line in overall):
        notes = notes[:2]
    text = (
        f"A {level} interval is to hold the measured value on {level} of the days. The intervals of a region "
        "are calibrated on the errors of other test sets in other regions, as those of a new region are. The "
        "mean over regions is near the nominal share by construction; single regions are not. An interval is "
        "wider where the prediction is higher. A model that misses the smoke does not widen its interval, so "
        "compare the column about high days."
    )
    table = Table("arm", [("", head) for head in heads], lines, caption, notes, stacked=True)
    sentences = [*_sentences(overall, level)]
    return Section("coverage", title, text, [table], pictures(report, "coverage-"), sentences)


def _arm(line: Mapping[Any, Any]) -> str:
    """Return the arm, with its number of folds if some have no predictions."""
    if line["folds"] == line["folds_expected"]:
        return str(line["arm"])
    return f"{line['arm']} ({int(line['folds'])}/{int(line['folds_expected'])} folds)"


def _entries(line: Mapping[Any, Any]) -> list[Entry]:
    """Return the entries of an arm on one evaluation set, or why it has none."""
    if line["untested"]:
        return [Entry("none", absent=True, source=line["untested"]), *[Entry(tables.ABSENT)] * 5]
    between = f"[{_percent(line['low'])}, {_percent(line['high'])}]"
    return [
        Entry(_percent(line["coverage"]), between),
        Entry(f"{line['width']:.1f}"),
        Entry(_percent(line["coverage_high"])),
        Entry(f"{int(line['n_high']):,}"),
        Entry(f"{_percent(line['worst'])} ({line['worst_region']})"),
        Entry(str(int(line["regions"]))),
    ]


def _sentences(overall: Sequence[Mapping[Any, Any]], level: str) -> Iterator[str]:
    """Yield a sentence for each evaluation set, about its arm with the narrowest intervals."""
    for place in dict.fromkeys((line["regime"], line["split"], line["part"]) for line in overall):
        own = [line for line in overall if (line["regime"], line["split"], line["part"]) == place]
        name = intervals.set_name(*place)
        measured = [line for line in own if not line["untested"]]
        for why in dict.fromkeys(line["untested"] for line in own if line["untested"]):
            yield f"{name}: no intervals: {why}."
        if not measured:
            continue
        best = min(measured, key=lambda line: line["width"])
        sentence = (
            f"{name}: {best['arm']} has the narrowest {level} intervals, {best['width']:.1f} µg/m³ wide on "
            f"average. They hold {_percent(best['coverage'])} of the days in an average region and "
            f"{_percent(best['worst'])} in the worst one"
        )
        if math.isfinite(best["coverage_high"]):
            joint = "but only" if best["coverage_high"] < best["worst"] else "and"
            high = f"{_percent(best['coverage_high'])} of the days from {EXCEEDANCE_UGM3} µg/m³ on"
            sentence += f", {joint} {high}"
        yield f"{sentence}."


def _percent(value: float) -> str:
    return tables.ABSENT if math.isnan(value) else f"{value:.1%}"
