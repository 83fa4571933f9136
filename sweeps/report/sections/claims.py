"""Sections that compare the results with claims and with published values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pm25.metrics import METRICS
from sweeps.analysis import labels
from sweeps.report import tables
from sweeps.report.sections.section import Section, legend
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData


def claims(report: ReportData) -> Section:
    """Verdicts on the declared claims."""
    frame = report.claims
    if frame.empty:
        return Section("claims", "Claims", "")
    lines = []
    for line in frame.to_dict("records"):
        metric = str(line["metric"])
        difference = tables.difference(line, report.analysis.alpha)
        contrast = f"{line['arm']} − {line['other']}"
        where = line["split"] + ("" if pd.isna(line["fold"]) else f", fold {line['fold']}")
        where += ", WR sites" if line["part"] == "wr" else ""
        entries = [Entry(str(line["verdict"])), Entry(contrast), Entry(where), Entry(METRICS[metric].name)]
        entries += [difference._replace(n="")]
        entries += [Entry(str(line["n_units"])), Entry(tables.p_value(line["p_adjusted"]))]
        lines.append((str(line["claim"]), entries))
    heads = ("verdict", "contrast", "on", "metric", "difference", "test sets", "p (Holm)")
    text = (
        "Claims are declared before the run. Supported: better by more than the margin. Refuted: worse by "
        "more than the margin, or practically equal. claims.csv lists the keys of the cells behind each "
        "claim; cells.csv has the cells."
    )
    table = Table(
        "claim",
        [("", head) for head in heads],
        lines,
        "Claims.",
        legend(report, frame, ranked=False),
    )
    return Section("claims", "Claims", text, [table])


def published_values(report: ReportData) -> Section:
    """Values from publications beside those of the study."""
    published = report.published
    if published is None:
        return Section("published", "Published values", "")
    lines = []
    for value in published.values:  # noqa: PD011
        label = labels.arm(value.variant, value.fusion)
        split = value.split if value.fold is None else labels.direction(value.split, value.fold)
        means = (report.means if value.fold is None else report.directions)[value.metric]
        means = means[(means["arm"] == label) & (means["split"] == split) & (means["part"] == value.part)]
        number = f"{value.value:g}"  # in the digits that were published
        if value.sd is not None:
            number += f" ± {value.sd:g}"
        their_value = Entry(tables.minus(number), marks=tables.SECOND_HAND)
        if means.empty:
            our_value, difference = Entry("not in this study", absent=True), Entry(tables.ABSENT)
        else:
            line = means.iloc[0].to_dict()
            our_value = tables.mean(line)
            gap = line["mean"] - value.value
            difference = Entry(tables.minus(labels.number(gap, value.metric, sign=True)))
        where = split + (", WR sites" if value.part == "wr" else "")
        lines.append(
            (label, [Entry(where), Entry(METRICS[value.metric].title), their_value, our_value, difference])
        )
    heads = ("on", "metric", "published (second-hand)", "ours", "ours minus published")
    text = (
        f"{published.source}: second-hand values ({tables.SECOND_HAND}) beside ours. They enter no mean and "
        "no test. Data, features, samples and protocol may differ, so a difference does not test a method."
    )
    notes = [f"{tables.SECOND_HAND} {published.source}."]
    notes += legend(report, report.means[report.metric], ranked=False)
    caption = "Published values, second-hand, beside ours."
    table = Table("arm", [("", head) for head in heads], lines, caption, notes)
    return Section("published", "Published values", text, [table])
