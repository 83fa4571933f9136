"""Sections with the results: means, paired differences, ablations and other scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pm25.metrics import EXCEEDANCE_UGM3, METRICS
from sweeps.analysis import estimands, labels
from sweeps.analysis.pretraining import compare as found_gains
from sweeps.analysis.pretraining import sentence as gain_sentence
from sweeps.report import summary, tables
from sweeps.report.sections.section import (
    Section,
    columns_of,
    legend,
    over_all_folds,
    pictures,
    splits_of,
)
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData

DIRECTIONS = 4
"""Most held-out regions with columns in a table; means.csv has the numbers of all regions."""


CO_PRIMARY = ("rmse", "site_rmse", "mae")
"""Metrics beside that of the study.

RMSE depends on few samples with large errors. The mean over monitors of their RMSE gives each monitor one
vote, and MAE gives each sample one.
"""


def shown(report: ReportData) -> list[str]:
    """Return the metrics of the main tables: that of the study, and RMSE or R2."""
    return list(dict.fromkeys([report.metric, "rmse", "r2"]))[:2]


def beside(report: ReportData) -> list[str]:
    """Return the further metrics of the main tables: those of `CO_PRIMARY` that cells have."""
    return [
        metric
        for metric in CO_PRIMARY
        if metric not in shown(report)
        and metric in report.means
        and report.means[metric]["mean"].notna().any()
    ]


def within_region(report: ReportData) -> Section:
    """Means within region."""
    columns = wr_columns(report.means[report.metric])
    text = (
        "Test samples from the region that the model was trained in. Columns under 'OoR splits' show the "
        "models of the out-of-region splits on held-out sites of their training region."
    )
    found = [
        tables.of_means(
            report.means[metric],
            columns,
            f"Within region: {METRICS[metric].title}.",
            legend(report, report.means[metric]),
        )
        for metric in [*shown(report), *beside(report)]
        if columns
    ]
    return Section("wr", "Within region (WR)", text, found, pictures(report, "cells-"))


def wr_columns(means: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the columns (group, head, split, part) of the WR splits, then of the WR sites of OoR splits."""
    held_out = columns_of(means, "OoR splits", labels.WR, "wr")
    return [*columns_of(means, "WR splits" if held_out else "", labels.WR), *held_out]


def out_of_region(report: ReportData) -> Section:
    """Means out of region, by split and by held-out region, and differences to 'none'."""
    found = []
    for metric in [*shown(report), *beside(report)]:
        means, directions = report.means[metric], report.directions[metric]
        columns = oor_columns(means, directions)
        if not columns:
            continue
        both = pd.concat([means, directions], ignore_index=True) if len(directions) else means
        found.append(
            tables.of_means(both, columns, f"Out of region: {METRICS[metric].title}.", legend(report, both))
        )
        contrasts = against_none(
            pd.concat(
                [over_all_folds(report.contrasts[metric]), report.direction_contrasts[metric]],
                ignore_index=True,
            )
        )
        contrasts = contrasts[(contrasts["part"] == "test") & (contrasts["regime"] == labels.OOR)]
        if len(contrasts):
            caption = f"Out of region, paired differences: {METRICS[metric].title}."
            found.append(_differences(report, contrasts, columns, caption))
    text = (
        "Test samples from a region that the model never saw. A checkerboard holds out one colour in turn. "
        "'checkerboards' do so on several grids (origins). The number is the size of a square in degrees."
    )
    return Section("oor", "Out of region (OoR)", text, found, pictures(report, "wr-"))


def oor_columns(means: pd.DataFrame, directions: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the columns (group, head, split, part): each OoR split, then each of its held-out regions."""
    found = []
    for split, part in splits_of(means, labels.OOR, "test"):
        regions = [name for name in dict.fromkeys(directions["split"]) if name.startswith(f"{split} · ")]
        has_columns = 1 < len(regions) <= DIRECTIONS
        found.append((split, "all", split, part) if has_columns else ("", split, split, part))
        if has_columns:
            found += [
                (split, name.partition(" · ")[2].removesuffix(" held out"), name, part) for name in regions
            ]
    return found


def gap(report: ReportData) -> Section:
    """Paired gap between the OoR and the WR score at the same monitors, by arm."""
    found = []
    for metric in shown(report):
        means = report.means[metric]
        columns = [("", split, split, part) for split, part in splits_of(means, "gap", "gap")]
        if not columns:
            continue
        name = METRICS[metric].title
        notes = legend(report, means[means["part"] == "gap"], ranked=False)
        found.append(
            tables.of_means(
                means, columns, f"Gap OoR − WR at the same monitors: {name}.", notes, sign=True, ranked=False
            )
        )
        contrasts = over_all_folds(report.contrasts[metric])
        contrasts = contrasts[contrasts["part"] == "gap"]
        if len(contrasts):
            found.append(_differences(report, contrasts, columns, f"Difference of the gaps, paired: {name}."))
    text = (
        "How much worse an arm is at the same monitors when their region is not in its training set. The "
        "monitors of a colour are scored together, from within and from outside. So the gap is not the "
        "difference of the means above, which are over single parts. Over both colours, the training sets "
        "inside and outside are equally large. The gap has no best value, because a model that is bad "
        "everywhere may have a gap of zero. Compare the gaps of the arms."
    )
    return Section("gap", "The gap from WR to OoR", text, found)


def differences(report: ReportData) -> Section:
    """Differences to 'none' in the metric of the study and those beside it, with tests and verdicts."""
    found = []
    for metric in dict.fromkeys([report.metric, *CO_PRIMARY]):
        if metric != report.metric and metric not in [*shown(report), *beside(report)]:
            continue
        frame = against_none(report.contrasts[metric])
        if len(frame):
            caption = f"Paired differences, arm minus 'none': {METRICS[metric].title}."
            found.append(_contrast_table(report, frame, caption))
    text = (
        "Arm minus 'none' on the same split, fold and seed. Each split has the test of its estimand, named "
        "in its heading. Declared contrasts are one family, adjusted together. The other lines are "
        "exploratory: their p is not adjusted, and they have no verdict."
    )
    if report.rows.empty or labels.BASELINE not in set(labels.with_arm(report.rows)["arm"]):
        return Section("differences", "Paired differences", "", paragraphs=("The study has no arm 'none'.",))
    return Section("differences", "Paired differences", text, found)


def against_none(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return the contrasts of every arm with 'none' over all folds, without gaps (`summary.against_none`)."""
    lines = summary.against_none_by_place(contrasts)
    return pd.DataFrame(lines, columns=contrasts.columns).astype(contrasts.dtypes.to_dict())


def _contrast_table(report: ReportData, frame: pd.DataFrame, caption: str) -> Table:
    """Table of contrasts with their tests, a line each, under a heading for each split and evaluation set."""
    alpha = report.analysis.alpha
    has_posterior = bool(frame["p_better"].notna().any())
    has_seeds = frame["more_seeds"].notna().any()
    names = ["difference", "better in", "units", "df", "p", "p (Holm)"]
    names += ["P better", "P equal", "P worse"] if has_posterior else []
    names += ["verdict", *(["more seeds"] if has_seeds else []), "other tests"]
    kinds = dict(zip(report.rows["split"], report.rows["kind"], strict=True))
    several = len(dict.fromkeys(frame["other"])) > 1
    everywhere = frame.to_dict("records")
    lines: list[tuple[str, list[Entry]]] = []
    for (regime, split, part), group in frame.groupby(["regime", "split", "part"], sort=False):
        sites = ", held-out sites of the training region" if part == "wr" else ""
        records = group.to_dict("records")
        test = _test_of(records, estimands.of(kinds[split], str(part)))
        lines.append((f"{regime}: {split}{sites} — {records[0]['estimand']}; {test}", []))
        for line in records:
            first = tables.difference(line, alpha)._replace(n="")
            entries = [first]
            if line["n_pairs"]:
                p = [tables.p_value(line[key]) for key in ("p", "p_adjusted")]
                entries += [Entry(f"{line['n_better']} of {line['n_pairs']}"), Entry(f"{line['n_units']:g}")]
                entries.append(Entry(tables.degrees_of_freedom(line["df"])))
                entries += [Entry(text) for text in p]
                if has_posterior:
                    entries += [Entry(_share(line[f"p_{kind}"])) for kind in ("better", "equal", "worse")]
                places = summary.other_places(line, everywhere)
                entries.append(Entry(summary.verdict(line), places, verdict=summary.verdict(line)))
                if has_seeds:
                    more = line["more_seeds"]
                    entries.append(Entry(tables.ABSENT if pd.isna(more) else str(int(more))))
                entries.append(Entry(line["untested"] or line["sensitivity"] or tables.ABSENT))
            else:
                entries += [Entry("")] * (len(names) - 1)
            label = f"{line['arm']} − {line['other']}" if several else line["arm"]
            lines.append((label, entries))
    return Table(
        f"{METRICS[str(frame['metric'].iloc[0])].title}",
        [("", name) for name in names],
        lines,
        caption,
        [*_columns_in_words(has_posterior), *legend(report, frame, ranked=False)],
    )


def _columns_in_words(has_posterior: bool) -> list[str]:
    """Return what the columns of a table of contrasts mean."""
    words = [
        "Better in: pairs of cells in which the arm has the better score.",
        "Units: independent units of the test. df: degrees of freedom of the test, or of that with the "
        "larger p.",
    ]
    if has_posterior:
        words.append(
            "P better, P equal, P worse: posterior probabilities, explained under How it was tested."
        )
    return [*words, "Other tests: those of the same difference that decide nothing."]


def _test_of(lines: Sequence[Mapping[Any, Any]], estimand: estimands.Estimand) -> str:
    """Return the name of the test of the contrasts on one evaluation set."""
    names = {line["test"] for line in lines if line["test"]}
    if not names:
        return "without a test"
    # Of two tests, a contrast names the one with the larger p.
    return estimand.test if len(names) > 1 or estimand.test.startswith("larger p") else names.pop()


def _test_columns(means: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the columns of all splits, those within region first."""
    return [*columns_of(means, labels.WR, labels.WR), *columns_of(means, labels.OOR, labels.OOR)]


def _share(value: float) -> str:
    """Format a probability, which is never rounded to 0 or 1."""
    if math.isnan(value):
        return tables.ABSENT
    return "<0.01" if value < 0.01 else ">0.99" if value > 0.99 else f"{value:.2f}"


def ablations(report: ReportData) -> Iterator[Section]:
    """Yield the comparisons of fusions, of encoders, and with the controls."""
    texts = {
        "fusion": (
            "Fusion ablation",
            "Fusions of the same encoder, compared with each other.",
        ),
        "encoder": (
            "Encoder ablation",
            "Encoders with the same fusion, compared with each other and with raw coordinates.",
        ),
        "controls": (
            "Controls",
            "Controls show whether the location helps, or only more layers or an identity for every site. "
            "'random' gives every location a random vector. 'shuffled' assigns the encoder's vectors to "
            "wrong locations. The matched head has the encoder's layers and a constant vector.",
        ),
    }
    frame = over_all_folds(report.contrasts[report.metric])
    columns = _test_columns(report.means[report.metric])
    pair = list(zip(frame["arm"], frame["other"], strict=True))
    for anchor, (title, text) in texts.items():
        wanted = {(labels.of_arm(one.arm), labels.of_arm(one.other)) for one in report.pairs.get(anchor, ())}
        selected = frame[pd.Series([arms in wanted for arms in pair], index=frame.index, dtype=bool)]
        selected = selected[selected["part"] == "test"]
        found = []
        if len(selected):
            caption = f"{title}: {METRICS[report.metric].title}, paired."
            found.append(_differences(report, selected, columns, caption))
        exploratory = " These contrasts are exploratory unless a claim declares them."
        yield Section(anchor, title, text + exploratory, found)


def _differences(
    report: ReportData, contrasts: pd.DataFrame, columns: Sequence[tuple[str, str, str, str]], caption: str
) -> Table:
    """Return the table of paired differences with its legend."""
    notes = legend(report, contrasts, ranked=False)
    if (contrasts["low"].notna() & ~contrasts["declared"]).any():
        notes.append(f"{tables.EXPLORATORY} Exploratory: not declared, so it has no verdict.")
    return tables.of_differences(contrasts, columns, report.analysis.alpha, caption, notes)


def pretraining(report: ReportData) -> Section:
    """Trained encoders beside untrained draws of their architecture."""
    alpha, metric = report.analysis.alpha, report.metric
    found = found_gains(report.means[metric], alpha)
    if not found:
        return Section("pretraining", "Is it the pretraining?", "")
    lines: list[tuple[str, list[Entry]]] = []
    for split in dict.fromkeys(own.split for own in found):
        lines.append((split, []))
        for own in (own for own in found if own.split == split):
            draws = np.asarray(own.draws)
            reach = tables.interval(draws.min(), draws.max(), metric)
            entries = [Entry(labels.number(own.trained, metric))]
            entries.append(Entry(labels.number(float(draws.mean()), metric), reach, str(len(draws))))
            entries += [Entry(labels.number(value, metric)) for value in (own.random, own.matched, own.none)]
            lines.append((own.arm, [*entries, Entry(tables.p_value(own.p)), Entry(own.finding)]))
    heads = ("trained", "untrained", "random", "matched head", "none", "p", "gain explained by")
    notes = [
        "In brackets after the mean of the untrained draws: the range of the draws. n: number of draws.",
        "p: share of the draws, with the trained encoder as one of them, that are at least as good.",
    ]
    text = (
        "An untrained encoder has the architecture of the trained one, with fresh weights. Better than "
        "'none' does not mean that the pretraining helps. The layers alone may (matched head), or a name for "
        "each place (random), or its position in an untrained network. The p-values are not adjusted."
    )
    table = Table("arm", [("", head) for head in heads], lines, f"{METRICS[metric].title} by encoder.", notes)
    sentences = [gain_sentence(own, alpha) for own in found]
    return Section("pretraining", "Is it the pretraining?", text, [table], paragraphs=sentences)


def tail(report: ReportData) -> Section:
    """Scores of the samples with high PM2.5."""
    found = []
    for metric, means in report.tail.items():
        found.append(
            tables.of_means(
                means,
                _test_columns(means),
                f"The tail, {EXCEEDANCE_UGM3} µg/m³ or more: {METRICS[metric].title}.",
                legend(report, means),
            )
        )
    text = (
        f"Samples of {EXCEEDANCE_UGM3} µg/m³ or more, where the air becomes unhealthy for sensitive groups. "
        "Recall is the share of these samples that are predicted to be so high. Precision is the share of "
        "the samples predicted so high that are. A cell that predicts none has no precision, so its n is "
        "smaller."
    )
    return Section("tail", "The tail", text, found, pictures(report, "tail-", "density-"))


def leverage(report: ReportData) -> Section:
    """Shares of the squared error that few samples, monitors and days hold."""
    frame = report.leverage
    if frame is None or frame.empty:
        return Section("leverage", "Leverage", "")
    found: dict[str, list[tuple[str, list[Entry]]]] = {}
    for line in frame[frame["part"] == "test"].to_dict("records"):
        shares = ("top_permille", "top_percent", "monitors", "week")
        entries = [Entry(f"{line['n']:,}"), *(Entry(f"{line[name]:.0%}") for name in shares)]
        entries.append(Entry(str(line["week_first"])))
        found.setdefault(str(line["split"]), []).append((str(line["arm"]), entries))
    lines = [one for split, own in found.items() for one in [(split, list[Entry]()), *own]]
    heads = ("predictions", "top 0.1%", "top 1%", "10 monitors", "worst week", "week from")
    text = (
        "Share of the squared error of the test sets, over all folds and seeds, in few places. The top 0.1% "
        "and 1% are the predictions with the largest errors. The 10 monitors and the week are those with "
        "the largest sums. The larger a share is, the fewer samples decide a difference of RMSE. Claims are "
        "tested again without their most influential episode. leverage.csv has the within-region sets too."
    )
    table = Table("arm", [("", head) for head in heads], lines, "Share of the squared error.")
    return Section("leverage", "Leverage", text, [table])


def by_monitor(report: ReportData) -> Section:
    """Differences to 'none' by group of monitors."""
    frame = report.monitors
    found = []
    for split in dict.fromkeys([] if frame is None else frame["split"].tolist()):
        assert frame is not None
        own = frame[frame["split"] == split]
        arms = list(dict.fromkeys(own["arm"].tolist()))
        lines: list[tuple[str, list[Entry]]] = []
        for factor, of_factor in own.groupby("factor", sort=False):
            lines.append((str(factor), []))
            for group, of_group in of_factor.groupby("group", sort=False):
                by_arm = {line["arm"]: line for line in of_group.to_dict("records")}
                first = next(iter(by_arm.values()))
                entries = [Entry(f"{first['monitors']:,}"), Entry(labels.number(first["rmse"], "rmse"))]
                entries += [_of_group(by_arm[arm]) if arm in by_arm else Entry(tables.ABSENT) for arm in arms]
                lines.append((str(group), entries))
        heads = [("", "monitors"), ("", "RMSE of 'none'"), *(("arm minus 'none'", arm) for arm in arms)]
        found.append(
            Table("monitors", heads, lines, f"RMSE by group of monitors: {split}.", NOTES_BY_MONITOR)
        )
    text = (
        "Test samples by the kind of monitor. The groups are exploratory: many are looked at, so some differ "
        "by chance. Regions divide the contiguous US at 39 °N and 98 °W. Distances and numbers of monitors "
        "are divided into thirds. monitors.csv has the number of predictions, and the share of monitors that "
        "gain."
    )
    return Section("monitors", "Who gains", text, found, pictures(report, "monitors"))


NOTES_BY_MONITOR = (
    "In brackets: interval of the jackknife over blocks of monitors. On checkerboards the difference is the "
    "mean over origins, with the interval of the corrected repeated t-test.",
    "A difference without brackets has too few blocks or origins for an interval.",
)
"""Notes under the tables by group of monitors."""


def _of_group(line: Mapping[Any, Any]) -> Entry:
    """Return the entry of a difference in a group of monitors."""
    spread = ""
    if math.isfinite(line["low"]):
        spread = tables.interval(line["low"], line["high"], "rmse", sign=True)
    source = f"{line['gain']:.0%} of the monitors gain; {line['n']:,} predictions (monitors.csv)"
    return Entry(tables.minus(labels.number(line["diff"], "rmse", sign=True)), spread, source=source)


def errors(report: ReportData) -> Section:
    """Mean bias, and the mean absolute error where no other table has it."""
    found = []
    for metric in (name for name in ("mae", "mbe") if name not in [*shown(report), *beside(report)]):
        means = report.means[metric]
        if columns := _test_columns(means):
            found.append(tables.of_means(means, columns, f"{METRICS[metric].title}.", legend(report, means)))
    text = (
        "MBE, the mean bias error, is predicted minus observed; positive values are too high. The best MBE "
        "is nearest to zero."
    )
    return Section("errors", "Bias and distance", text, found, pictures(report, "distance"))


def maps(report: ReportData) -> Section:
    """Maps of the monitors and of their errors."""
    text = "Monitors by their role in a split, and errors by monitor."
    return Section("maps", "Maps", text, (), pictures(report, "split-", "difference-", "errors-"))
