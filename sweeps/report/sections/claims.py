"""Sections that compare the results with claims and with published values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import METRICS
from sweeps.analysis import estimands, inference, labels
from sweeps.analysis.episodes import DAYS, DEGREES
from sweeps.report import summary, tables
from sweeps.report.sections.section import Section, legend
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData


_WORDS = {"too few": "not tested", "no cells": "no pairs yet"}
"""Verdicts on claims whose word in tables is another one than in files."""

_TRUTH = {True: "true", False: "not true", None: tables.ABSENT}


def claims(report: ReportData) -> Section:
    """Verdicts on the declared claims."""
    frame = report.claims
    if frame.empty:
        return Section("claims", "Claims", "")
    has_declarations = report.declarations is not None
    repeated = bool((frame["without"] != "").any())
    lines = []
    truths = {claim.claim: claim.truth for claim in report.declared}
    has_truth = any(truth is not None for truth in truths.values())
    everywhere = [line for one in report.contrasts.values() for line in one.to_dict("records")]
    of_contrast = {_pair(line): line for line in everywhere}
    for line in frame.to_dict("records"):
        metric = str(line["metric"])
        difference = tables.difference(line, report.analysis.alpha)
        contrast = f"{line['arm']} − {line['other']}"
        where = labels.split_title(line["split"])
        where += "" if pd.isna(line["fold"]) else f", fold {line['fold']}"
        where += ", WR sites" if line["part"] == "wr" else ""
        units = estimands.counted_units(int(line["n_units"]), line["unit"]) if line["n_pairs"] else ""
        df = f" (df {tables.degrees_of_freedom(line['df'])})" if line["test"] else ""
        places = summary.other_places(of_contrast.get(_pair(line), line), everywhere)
        word = str(_WORDS.get(line["verdict"], line["verdict"]))
        test = line["test"] or line["untested"] or tables.ABSENT
        entries = [Entry(word, places, verdict=word)]
        entries += [Entry(contrast, f"{METRICS[metric].name} on {where}: {line['estimand']}")]
        entries += [difference._replace(n=""), Entry(tables.p_value(line["p_adjusted"]))]
        entries += [Entry(test, f"{units}{df}")]
        if has_declarations:
            entries += [Entry(line["changed"] or "before the first result")]
        if repeated:
            entries.append(_without_episode(line))
        if has_truth:
            entries.insert(1, Entry(_TRUTH[truths[str(line["claim"])]]))
        lines.append((str(line["claim"]), entries))
    heads = (
        "verdict",
        *["known truth"] * has_truth,
        "contrast",
        "difference",
        "p (Holm)",
        "test",
        *["declared"] * has_declarations,
        *["without the most influential episode"] * repeated,
    )
    text = (
        "Supported: the first arm of the contrast is better, by the adjusted p. Refuted: it is worse, or "
        "equivalent within the margin. Undecided: neither is shown. Tuned on test: the search has used the "
        "test samples, so the claim is not judged. "
        "Exploratory: it was declared or changed after the first result, so its p is not adjusted and it has "
        "no verdict. claims.csv lists the keys of the cells behind each claim; cells.csv has the cells."
    )
    if has_truth:
        text += " Known truth: what the study file says to be so, as it can of a synthetic panel."
    if repeated:
        text += (
            f" An episode is an {DEGREES:g}-degree square in {DAYS} days, or a week of all monitors on a "
            "random split. The most influential one is that without which the difference moves most. The "
            "claim is tested again without its samples, while the other claims keep theirs. This "
            "decides nothing, because the episode is chosen for its effect."
        )
    notes = legend(report, frame, ranked=False)
    table = Table("claim", [("", head) for head in heads], lines, "Claims.", notes, stacked=True)
    return Section("claims", "Claims", text, [table])


def _without_episode(line: Mapping[Any, Any]) -> Entry:
    """Return the verdict, the difference and p without the most influential episode of a claim."""
    if not line["without"]:
        return Entry(tables.ABSENT)
    same = line["without_verdict"] == line["verdict"]
    metric, word = str(line["metric"]), str(line["without_verdict"])
    numbers = tables.minus(labels.number(line["without_diff"], metric, sign=True))
    if math.isfinite(line["without_low"]):
        numbers += f" {tables.interval(line['without_low'], line['without_high'], metric, sign=True)}"
    p = tables.p_value(line["without_p_adjusted"])
    verdict = f"still {word}" if same else f"changes to {word}"
    return Entry(f"{verdict}, without {line['without']}", f"{numbers}, p {p}")


def _pair(line: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Return what names a contrast over all folds; None as the fold is that of such a contrast."""
    fold = None if pd.isna(line["fold"]) else line["fold"]
    return line["arm"], line["other"], line["split"], line["part"], line["metric"], fold


def published_values(report: ReportData) -> Section:
    """Values from publications beside those of the study."""
    published = report.published
    if published is None:
        return Section("published", "Published values", "")
    lines = []
    for value in published.values:  # noqa: PD011
        label = labels.arm(value.variant, value.fusion)
        split = value.split
        means = report.means[value.metric]
        if value.fold is not None:
            split = labels.direction(value.split, value.fold)
            means = inference.means(
                report.rows[(report.rows["split"] == value.split) & (report.rows["fold"] == value.fold)],
                report.analysis,
                value.metric,
            ).assign(split=split)
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
        where = labels.split_title(split) + (", WR sites" if value.part == "wr" else "")
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
