"""Sections about training, search and statistical tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pm25.metrics import METRICS
from pm25.text import counted
from sweeps.analysis import labels
from sweeps.report import summary, tables
from sweeps.report.sections.section import Section, pictures, plain_number
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
        arms = list(dict.fromkeys(labels.with_arm(report.rows)["arm"]))
        names = sorted({name for settings in chosen.values() for name in settings})
        lines = [(arm, [Entry(chosen.get(arm, {}).get(name, "not tuned")) for name in names]) for arm in arms]
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
        "Settings that the search of each arm chose on validation data; no search sees a test score. Section "
        "Settings has the values that were not tuned. Importance is the share of the variance of the trials' "
        "scores that a setting explains (fANOVA; Hutter et al. 2014). The estimate is rough with few trials."
    )
    return Section("search", "Search", text, found, pictures(report, "search-"))


def testing(report: ReportData) -> Section:
    """Description of the statistical tests and intervals."""
    analysis = report.analysis
    family = summary.declared(report)
    level = f"{1 - analysis.alpha:.0%}"
    looks = int(family["looks"].max()) if len(family) else 1
    if analysis.test == "corrected_t":
        test = (
            "Test: the corrected resampled t-test of Nadeau and Bengio (2003, Machine Learning 52, 239-281). "
            "The training sets of k folds overlap, so folds are not independent. The variance of the mean "
            "difference over n test sets is therefore (1/n + 1/(k - 1)) times their variance, instead of 1/n "
            f"times. Intervals of differences ({level}) belong to the same test."
        )
    else:
        test = (
            "Test: Wilcoxon's exact signed-rank test over test sets. It treats test sets as independent, "
            f"although training sets overlap. Intervals of differences ({level}) contain the Walsh averages "
            "that the test does not reject."
        )
    paragraphs = [
        "Unit: an independent test set, which is one fold of a split, such as one colour of a "
        "checkerboard or one region. Seeds of a fold share its test set, so they are averaged first. More "
        "seeds reduce the noise of a unit; they do not add units. A test needs at least three units. "
        "Wilcoxon's test needs n units with 2/2ⁿ below the level.",
        test,
        "Intervals of means exclude the variation between test sets that all arms share (Cousineau 2005, "
        "corrected by Morey 2008). They show which arms differ. They do not show how much a mean would "
        "change on other data.",
        f"Family: {counted(len(family), 'declared contrast')}"
        + (
            " (those of the claims)"
            if len(report.claims)
            else f" (every arm against 'none' on every split's test sets, by {METRICS[report.metric].name})"
        )
        + ". Their p-values, for the hypothesis of no difference, are adjusted by Holm's method (1979). The "
        f"probability of one or more false positives is at most {analysis.alpha:g}. Contrasts with too few "
        "test sets take no part in the adjustment. Undeclared contrasts are exploratory and not tested.",
        "Verdict: two arms are practically equal if they differ by less than a margin (region of "
        f"practical equivalence). The margin is {analysis.rope:.3g} times the other arm's RMSE or MAE, or "
        f"{analysis.rope:.3g} for R². Better or worse: the test finds the difference beyond the margin. "
        "Equal: two one-sided tests find it within the margin. Undecided: neither. Holm's method limits "
        f"each of these two kinds of error to {analysis.alpha:g} over the family. P better, P equal and P "
        "worse are posterior probabilities by the Bayesian correlated t-test (Corani and Benavoli 2015). "
        "They are not adjusted for multiple contrasts.",
        f"Bootstrap ({tables.BOOTSTRAP}): {analysis.bootstrap:,} resamples of the stored predictions. Units "
        f"are sites within region, and blocks of {analysis.block_degrees:g}° out of region; both arms have "
        "the same weights. The interval shows how much a number would change on other sites of the same "
        "regions, for the trained models at hand. It does not cover other regions or other trainings, and it "
        "is not a test.",
    ]
    if report.rule:
        paragraphs.append(
            f"Stopping rule: {report.rule} Each p is multiplied by {looks}, the number of looks at the data."
        )
    found = []
    if report.seeds:
        lines = [
            (
                f"{labels.arm(one['variant'], one['fusion'])} − "
                f"{labels.arm(one['other_variant'], one['other_fusion'])}",
                [
                    Entry(one["split"] + (", WR sites" if one["part"] == "wr" else "")),
                    Entry(METRICS[one["metric"]].name),
                    Entry(", ".join(map(str, one["looks"]))),
                    Entry(f"{one['seeds']} of {one['max']}"),
                    Entry(one["stopped"] or "cells of this look are missing"),
                ],
            )
            for one in report.seeds
        ]
        heads = ("on", "metric", "looks at", "seeds", "stopped")
        found.append(
            Table(
                "contrast",
                [("", head) for head in heads],
                lines,
                "Seeds that were added, and why adding stopped.",
            )
        )
    return Section("testing", "How it was tested", "", found, (), paragraphs)
