"""Sections about the cells behind the numbers: audit, comparability, failures and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.settings import dotted
from sweeps.analysis import labels
from sweeps.report import tables
from sweeps.report.sections.section import Section, over_all_folds
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData

_PROVENANCE = (
    "study",
    "protocol",
    "table",
    "synthetic",
    "data_fingerprint",
    "sites",
    "days",
    "observed",
    "first_day",
    "last_day",
    "encoders",
    "numerics",
    "commits",
)


def audit(report: ReportData) -> Section:
    """Cells that failed the leakage audit."""
    cells = labels.with_arm(report.rows)
    cells = cells[cells["marked"] != ""]
    if cells.empty:
        return Section("audit", "Leakage audit", "")
    counts = cells.groupby(["marked", "arm", "split"], sort=False).size().rename("cells").reset_index()
    text = (
        f"{tables.AUDIT_FAILED} marks every mean and every difference that includes a cell that failed the "
        "leakage audit. Such a mean is not an estimate of error on new data."
    )
    return Section("audit", "Leakage audit", text, [tables.plain(counts.set_index("marked"), "failed check")])


def comparability(report: ReportData) -> Section:
    """Contrasts whose arms differ in more than the declared factor."""
    reasons = confounded(report.contrasts[report.metric])
    text = (
        f"{tables.CONFOUNDED} marks every confounded difference: its two arms differ in more than the "
        "declared factor and its consequences. The differences in this table may also change the score. "
        "Values are those of the arm against those of the other arm."
    )
    found = [tables.plain(reasons.set_index("arm"), "arm")] if len(reasons) else []
    return Section("comparability", "Comparability", text, found)


def confounded(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return the reasons of confounded contrasts: arm, other arm, splits, and one reason per row."""
    frame = over_all_folds(contrasts)
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in frame[(frame["part"] == "test") & (frame["unfair"] != "")].to_dict("records"):
        for text in line["unfair"].split("; "):
            found.setdefault((line["arm"], line["other"], text), []).append(line["split"])
    lines = [(arm, other, ", ".join(splits), text) for (arm, other, text), splits in found.items()]
    return pd.DataFrame(lines, columns=["arm", "against", "split", "other difference"], dtype="str")


def completeness(report: ReportData) -> Section:
    """Number of cells by state, and number of samples by split."""
    text = (
        "Number of cells behind each mean, by state, and the number of samples per split as a range over its "
        "done cells."
    )
    found = [
        tables.plain(tables.completeness(report.rows), "arm"),
        tables.plain(tables.sizes(report.rows), "samples"),
    ]
    return Section("complete", "Completeness", text, found)


def failures(report: ReportData) -> Section:
    """Failed and damaged cells with their errors."""
    failed = labels.with_arm(report.rows.loc[report.rows["state"].isin(["failed", "damaged"])])
    if failed.empty:
        return Section("failures", "Failures", "")
    frame = failed[["arm", "split", "fold", "seed", "error"]].astype("str")
    frame.index = pd.Index(failed["key"].astype("str").str.slice(0, 12))
    text = "Failed cells are counted; they have no score."
    if (failed["state"] == "damaged").any():
        text += " Nor have damaged cells, whose files are not those that were written."
    return Section("failures", "Failures", text, [tables.plain(frame, "key")])


def settings(report: ReportData) -> Section:
    """Settings that all cells share."""
    text = "Settings of every cell, except those that a search chose for each arm."
    found = _pairs(report.facts.get("settings", {}), "setting")
    return Section("settings", "Settings", text, [found] if found.lines else [])


def provenance(report: ReportData) -> Section:
    """Data, versions and files behind the report."""
    facts = {name: report.facts[name] for name in _PROVENANCE if report.facts.get(name) is not None}
    text = (
        "The same cells and the same versions reproduce this report byte for byte. means.csv, contrasts.csv "
        "and claims.csv contain the means, differences and verdicts of the tables; cells.csv contains every "
        "cell with its key. Cells of different numerics, the version of the arithmetic of a training, are "
        "not comparable."
    )
    for name in ("sites", "days", "observed"):
        if isinstance(facts.get(name), int):
            facts[name] = f"{facts[name]:,}"
    packages = _pairs(report.facts.get("versions", {}), "package", "version")
    found = [_pairs(facts, "fact"), packages]
    return Section("provenance", "Provenance", text, [table for table in found if table.lines])


def _pairs(values: Mapping[str, Any], corner: str, head: str = "value") -> Table:
    """Return a table of values by dotted name, such as 'train.max_epochs', sorted by name."""
    lines = []
    for name, value in sorted(dotted(values).items(), key=lambda item: item[0].split(".")):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        lines.append((name, [Entry(text)]))
    return Table(corner, [("", head)], lines)
