"""Sections of the report, in order: headed tables, figures and text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeps.report.sections.believed import believed
from sweeps.report.sections.claims import claims, published_values
from sweeps.report.sections.methods import search, testing, training
from sweeps.report.sections.provenance import (
    audit,
    comparability,
    completeness,
    failures,
    provenance,
    settings,
)
from sweeps.report.sections.results import (
    ablations,
    by_monitor,
    differences,
    errors,
    gap,
    leverage,
    maps,
    out_of_region,
    pretraining,
    tail,
    within_region,
)
from sweeps.report.sections.section import Section
from sweeps.report.sections.verdicts import verdicts
from sweeps.report.tables import Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData


def sections(report: ReportData) -> list[Section]:
    """Return the sections that have something to show, in the report's order; verdicts come first."""
    found = [
        verdicts(report),
        within_region(report),
        out_of_region(report),
        gap(report),
        differences(report),
        *ablations(report),
        pretraining(report),
        tail(report),
        leverage(report),
        by_monitor(report),
        believed(report),
        search(report),
        claims(report),
        published_values(report),
        errors(report),
        maps(report),
        training(report),
        audit(report),
        comparability(report),
        completeness(report),
        failures(report),
        testing(report),
        settings(report),
        provenance(report),
    ]
    return [section for section in found if section.tables or section.pictures or section.paragraphs]


def paper(report: ReportData) -> dict[str, list[Table]]:
    """Return the tables for a paper, by the name of their file."""
    found = {
        "verdicts": verdicts(report).tables,
        "wr": within_region(report).tables,
        "oor": out_of_region(report).tables,
        "gap": gap(report).tables,
        "contrasts": differences(report).tables,
        "claims": claims(report).tables,
        "published": published_values(report).tables,
    }
    return {name: list(content) for name, content in found.items() if content}
