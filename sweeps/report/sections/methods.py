"""Sections about training, search and statistical tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import METRICS
from pm25.text import counted
from sweeps.analysis import estimands, labels
from sweeps.analysis.declarations import shown_time
from sweeps.report import summary, tables
from sweeps.report.sections.section import Section, pictures, plain_number, split_notes
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData


def training(report: ReportData) -> Section:
    """Learning curves and importance of the inputs."""
    text = "Validation error by epoch, and the inputs that the trained models use."
    return Section("training", "Training", text, (), pictures(report, "learning", "importance"))


def search(report: ReportData) -> Section:
    """Budget and result of each search."""
    found = []
    if report.searches is not None:
        frame = report.searches.set_index("arm").astype("str")
        found.append(tables.plain(frame, "arm", "Budget spent, and best validation score."))
    chosen: Mapping[str, Mapping[str, str]] = report.facts.get("tuned", {})
    if chosen:
        tunable = labels.without_references(report.rows)
        arms = list(dict.fromkeys(labels.with_arm(tunable)["arm"]))
        names = sorted({name for settings in chosen.values() for name in settings})
        lines = [
            (arm, [_tuned(chosen.get(arm, {}).get(name, "not tuned")) for name in names]) for arm in arms
        ]
        found.append(Table("arm", [("", name) for name in names], lines, "Tuned settings."))
    if report.parameters is not None and len(report.parameters):
        wide = report.parameters.pivot_table(
            index="arm", columns="parameter", values="importance", sort=False
        )
        lines = [
            (str(arm), [plain_number(value) for value in values])
            for arm, values in zip(wide.index, wide.to_numpy(), strict=True)
        ]
        found.append(
            Table("arm", [("", str(name)) for name in wide.columns], lines, "Importance of the settings.")
        )
    text = (
        "Settings that the search of each arm chose on validation data; no search sees a test score. Cells "
        f"whose test samples the search used for training or validation have the mark {tables.AUDIT_FAILED}. "
        "Section Settings has the values that were not tuned. Importance is the share of the variance of the "
        "trials' scores that a setting explains (fANOVA; Hutter et al. 2014). The estimate is rough with few "
        "trials."
    )
    return Section("search", "Search", text, found, pictures(report, "search-"))


def _tuned(text: str) -> Entry:
    """Return tuned values as an entry; one number has four significant digits, and all of them on hover."""
    try:
        number = float(text)
    except ValueError:  # a word, or values that differ between folds
        return Entry(text)
    short = text if number.is_integer() else f"{number:.4g}"
    return Entry(short, source=text if short != text else "")


def testing(report: ReportData) -> Section:
    """Description of the statistical tests and intervals."""
    analysis = report.analysis
    family = summary.declared(report)
    level = f"{1 - analysis.alpha:.0%}"
    paragraphs = [
        "Estimand: what a result is carried over to. The kind of the split decides it, and with it the unit "
        "that counts as independent evidence. Seeds are not independent, and neither are folds of one "
        "network of monitors, so more seeds do not add units. The table below lists the estimands of this "
        "study with their tests.",
        f"Interval ({level}): the differences that the test does not reject. Where the larger p of two tests "
        "decides, the interval covers those of both. An interval is not adjusted for the number of "
        "contrasts. Blocks of monitors count by their effective number, which is smaller if few of them "
        "weigh most.",
        "Other tests use the same predictions and decide nothing. Some of them miss more differences, and "
        "that over folds of one network finds too many. The command sweep bench --only calibration measures "
        "how often each test finds a difference where there is none.",
        f"Family: {counted(len(family), 'declared contrast')}"
        + (
            " (those of the claims)"
            if len(report.claims)
            else f" (every arm against 'none' on every split, by {METRICS[report.metric].name})"
        )
        + ". Their p-values, for the hypothesis of no difference, are adjusted by Holm's method (1979). The "
        f"probability of one or more false positives is at most {analysis.alpha:g} if each test keeps its "
        "level. Contrasts whose split "
        "has too few units take no part in the adjustment. Undeclared contrasts are exploratory, and so are "
        "those that were declared or changed after the first result. Withdrawn contrasts stay in the family."
        + _hash(report),
        f"Verdict: better or worse if the adjusted p is at most {analysis.alpha:g}. Arms are equivalent if "
        "they differ by less than a margin (region of practical equivalence), by two one-sided tests. The "
        f"margin is {analysis.rope:.3g} times the other arm's RMSE or MAE, or {analysis.rope:.3g} for R². "
        f"Undecided: neither. Holm's method limits each of these two kinds of error to {analysis.alpha:g} "
        "over the family. P better, P equal and P worse are posterior probabilities beyond and within the "
        "margin. They come from the Bayesian correlated t-test (Corani and Benavoli 2015) with the variance "
        "of the same test, and are not adjusted.",
    ]
    if report.rule:
        paragraphs.append(
            f"Stopping rule: {report.rule} Each p is multiplied by {_numbers_of_looks(family)}, the number "
            "of looks at the data."
        )
    found = [_estimands(report)]
    if report.seeds:
        repeated = any(one.get("repeated_by") for one in report.seeds)
        lines = [
            (
                f"{labels.arm(one['variant'], one['fusion'])} − "
                f"{labels.arm(one['other_variant'], one['other_fusion'])}",
                [
                    Entry(labels.split_title(one["split"]) + (", WR sites" if one["part"] == "wr" else "")),
                    Entry(METRICS[one["metric"]].name),
                    Entry(_looks(one)),
                    Entry(_bought(one)),
                    Entry(one["stopped"] or "cells of this look are missing"),
                ],
            )
            for one in report.seeds
        ]
        heads = ("on", "metric", "looks at", "has" if repeated else "seeds", "stopped")
        found.append(
            Table(
                "contrast",
                [("", head) for head in heads],
                lines,
                "Seeds, origins and deals that were added, and why adding stopped.",
            )
        )
    return Section("testing", "How it was tested", "", found, (), paragraphs)


def _hash(report: ReportData) -> str:
    """Return a sentence with the hash of the declaration that the study is compared with."""
    reference = report.declarations.reference if report.declarations is not None else None
    if reference is None:
        return ""
    return f" SHA-256 of the declaration of {shown_time(reference.time)}: {reference.sha256}."


def _numbers_of_looks(family: pd.DataFrame) -> str:
    """List the numbers of looks at the declared contrasts, by split where they differ."""
    numbers = {line["split"]: int(line["looks"]) for line in family.to_dict("records")}
    if len({*numbers.values()}) > 1:
        return ", ".join(f"{looks} on {split}" for split, looks in numbers.items())
    return str(max(numbers.values(), default=1))


def _looks(one: Mapping[str, Any]) -> str:
    """List the looks at a contrast by their seeds, "3, 6", or as "5 × 1, 10 × 1 origins × seeds"."""
    seeds = list(one["looks"])
    if not one.get("repeated_by"):
        return ", ".join(map(str, seeds))
    both = zip(one["repeats"], seeds, strict=True)
    return f"{', '.join(f'{r} × {s}' for r, s in both)} {one['repeated_by']} × seeds"


def _bought(one: Mapping[str, Any]) -> str:
    """Say what a contrast has of the most: "3 of 12" seeds, or "5 of 15 origins, 1 of 2 seeds"."""
    seeds = f"{one['seeds']} of {one['max']}"
    if not one.get("repeated_by"):
        return seeds
    return f"{one['repeats'][-1]} of {one['max_repeats']} {one['repeated_by']}, {seeds} seeds"


def _estimands(report: ReportData) -> Table:
    """Return the table of the splits' estimands, units and tests."""
    kinds = report.rows.drop_duplicates("split")[["split", "kind"]].to_dict("records")
    lines = []
    for line in kinds:
        about, of_split = estimands.of(line["kind"]), report.rows[report.rows["split"] == line["split"]]
        units = of_split["unit"].nunique()
        planned = f"{units}"
        if about.unit in ("day", "block of monitors"):  # the data decide their number
            planned = _found_units(report, str(line["split"]))
        test = about.test
        if line["kind"] == "checkerboard":
            test = f"none: the two colours are halves of one origin; {about.design} has a test"
        entries = [Entry(text) for text in (about.name, about.unit, f"{about.needed}", planned, test)]
        lines.append((labels.split_title(line["split"]), entries))
    heads = ("carried over to", "unit", "units needed", "units", "test")
    notes = split_notes(report, report.rows["split"])
    return Table("split", [("", head) for head in heads], lines, "Estimands and tests.", notes, stacked=True)


def _found_units(report: ReportData, split: str) -> str:
    """Return the range of the numbers of units that the contrasts with 'none' on a split have."""
    frame = report.contrasts[report.metric]
    lines = summary.against_none_by_place(frame[(frame["split"] == split) & (frame["part"] == "test")])
    numbers = [int(line["n_units"]) for line in lines if line["n_units"]]
    if not numbers:
        return tables.ABSENT
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
