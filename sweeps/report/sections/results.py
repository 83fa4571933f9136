"""Sections with the results: means, paired differences, ablations, ranks and other scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import EXCEEDANCE_UGM3, METRICS
from sweeps.analysis import labels
from sweeps.report import summary, tables
from sweeps.report.sections.section import Section, legend, over_all_folds, pictures, plain_number, splits_of
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData

DIRECTIONS = 4
"""Most held-out regions with columns in a table; means.csv has the numbers of all regions."""
_VERDICTS = {"equal": "practically equal", "too few": "too few sets"}


def shown(report: ReportData) -> list[str]:
    """Return the metrics of the main tables: that of the study, and RMSE or R2."""
    return list(dict.fromkeys([report.metric, "rmse", "r2"]))[:2]


def within_region(report: ReportData) -> Section:
    """Means within region."""
    columns = wr_columns(report.means[report.metric])
    text = (
        "Test sets from the region that the model was trained in. Columns under 'OoR splits' show the models "
        "of the out-of-region splits on held-out sites of their training region."
    )
    found = [
        tables.of_means(
            report.means[metric],
            columns,
            f"Within region: {METRICS[metric].title}.",
            legend(report, report.means[metric]),
        )
        for metric in shown(report)
        if columns
    ]
    return Section("wr", "Within region (WR)", text, found, pictures(report, "cells-"))


def wr_columns(means: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the columns (group, head, split, part) of the WR splits, then of the WR sites of OoR splits."""
    wr_splits, oor_splits = splits_of(means, labels.WR, "test"), splits_of(means, labels.WR, "wr")
    group = {"test": "WR splits" if oor_splits else "", "wr": "OoR splits"}
    return [(group[part], split, split, part) for split, part in [*wr_splits, *oor_splits]]


def out_of_region(report: ReportData) -> Section:
    """Means out of region, by split and by held-out region, and differences to 'none'."""
    found = []
    for metric in shown(report):
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
        "Test sets from a region that the model never saw. A checkerboard holds out one colour in turn; "
        "'all' is the mean over both. The name of a checkerboard ends with the size of its squares in "
        "degrees."
    )
    return Section("oor", "Out of region (OoR)", text, found)


def oor_columns(means: pd.DataFrame, directions: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the columns (group, head, split, part): each OoR split, then each of its held-out regions."""
    found = []
    for split, part in splits_of(means, labels.OOR, "test"):
        found.append((split, "all", split, part))
        regions = [name for name in dict.fromkeys(directions["split"]) if name.startswith(f"{split} · ")]
        if 1 < len(regions) <= DIRECTIONS:
            found += [
                (split, name.partition(" · ")[2].removesuffix(" held out"), name, part) for name in regions
            ]
    return found


def gap(report: ReportData) -> Section:
    """Gap between the OoR and the WR score of the same model, by arm."""
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
                means, columns, f"Gap OoR − WR of the same model: {name}.", notes, sign=True, ranked=False
            )
        )
        contrasts = over_all_folds(report.contrasts[metric])
        contrasts = contrasts[contrasts["part"] == "gap"]
        if len(contrasts):
            found.append(_differences(report, contrasts, columns, f"Difference of the gaps, paired: {name}."))
    text = (
        "How much worse a model is out of its region than on held-out sites of its region. The gap has no "
        "best value, because a model that is bad everywhere may have a gap of zero. The sites differ, so "
        "a gap can be negative. Compare the gaps of the arms."
    )
    return Section("gap", "The gap from WR to OoR", text, found, pictures(report, "wr-oor-", "gap-"))


def differences(report: ReportData) -> Section:
    """Differences to 'none' in the metric of the study, with tests and verdicts."""
    frame = against_none(report.contrasts[report.metric])
    found = []
    if len(frame):
        name = METRICS[report.metric].title
        found.append(_contrast_table(report, frame, f"Paired differences, arm minus 'none': {name}."))
    text = (
        "Arm minus 'none' on the same split, fold and seed; seeds are averaged within their test set. Only "
        "declared contrasts are tested, as one family. The other lines are exploratory: their p is not "
        "adjusted, and they have no verdict."
    )
    if report.rows.empty or labels.BASELINE not in set(labels.with_arm(report.rows)["arm"]):
        return Section("differences", "Paired differences", "", paragraphs=("The study has no arm 'none'.",))
    return Section("differences", "Paired differences", text, found, pictures(report, "forest-"))


def against_none(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return the contrasts of every arm with 'none' over all folds, without gaps (`summary.against_none`)."""
    frame = over_all_folds(contrasts)
    frame = frame[frame["part"] != "gap"]
    lines = [
        line
        for _, group in frame.groupby(["split", "part"], sort=False)
        for line in summary.against_none(group.to_dict("records"))
    ]
    return pd.DataFrame(lines, columns=frame.columns).astype(frame.dtypes.to_dict())


def _contrast_table(report: ReportData, frame: pd.DataFrame, caption: str) -> Table:
    """Table of contrasts with their tests, a line each, under a heading for each split and evaluation set."""
    alpha = report.analysis.alpha
    has_posterior = frame["p_better"].notna().any()
    has_seeds = frame["more_seeds"].notna().any()
    names = ["difference", "better in", "test sets", "p", "p (Holm)"]
    names += ["P better", "P equal", "P worse"] if has_posterior else []
    names += ["verdict", *(["more seeds"] if has_seeds else [])]
    several = len(dict.fromkeys(frame["other"])) > 1
    lines: list[tuple[str, list[Entry]]] = []
    for (regime, split, part), group in frame.groupby(["regime", "split", "part"], sort=False):
        sites = ", held-out sites of the training region" if part == "wr" else ""
        lines.append((f"{regime}: {split}{sites}", []))
        for line in group.to_dict("records"):
            first = tables.difference(line, alpha)._replace(n="")
            entries = [first]
            if line["n_pairs"]:
                p = [tables.p_value(line[key]) for key in ("p", "p_adjusted")]
                entries += [Entry(f"{line['n_better']} of {line['n_pairs']}"), Entry(str(line["n_units"]))]
                entries += [Entry(text) for text in p]
                if has_posterior:
                    entries += [Entry(_share(line[f"p_{kind}"])) for kind in ("better", "equal", "worse")]
                entries.append(Entry(verdict(line)))
                if has_seeds:
                    more = line["more_seeds"]
                    entries.append(Entry(tables.ABSENT if pd.isna(more) else str(int(more))))
            else:
                entries += [Entry("")] * (len(names) - 1)
            label = f"{line['arm']} − {line['other']}" if several else line["arm"]
            lines.append((label, entries))
    return Table(
        f"{METRICS[str(frame['metric'].iloc[0])].title}",
        [("", name) for name in names],
        lines,
        caption,
        legend(report, frame, ranked=False),
    )


def verdict(line: Mapping[Any, Any]) -> str:
    """Return the verdict in words: "not declared" for undeclared contrasts with enough test sets."""
    if line["verdict"] == "too few":
        return _VERDICTS["too few"]
    if not line["declared"]:
        return "not declared"
    return _VERDICTS.get(line["verdict"], line["verdict"])


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
    columns = wr_columns(report.means[report.metric])
    columns = [(labels.WR, *column[1:]) for column in columns if column[3] == "test"]
    columns += [
        (labels.OOR, split, split, part)
        for split, part in splits_of(report.means[report.metric], labels.OOR, "test")
    ]
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
    return tables.of_differences(contrasts, columns, report.analysis.alpha, caption, notes)


def tail(report: ReportData) -> Section:
    """Scores of the samples with high PM2.5."""
    found = []
    for metric, means in report.tail.items():
        columns = [(labels.WR, split, split, part) for split, part in splits_of(means, labels.WR, "test")] + [
            (labels.OOR, split, split, part) for split, part in splits_of(means, labels.OOR, "test")
        ]
        found.append(
            tables.of_means(
                means,
                columns,
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


def ranks(report: ReportData) -> Section:
    """Mean ranks of the arms with critical differences."""
    frame = report.ranking
    found = []
    if len(frame):
        lines: list[tuple[str, list[Entry]]] = []
        arms = list(dict.fromkeys(frame["arm"]))
        places = list(dict.fromkeys(zip(frame["split"], frame["part"], strict=True)))
        rank = {(a, s, p): r for a, s, p, r in frame[["arm", "split", "part", "mean_rank"]].to_numpy()}
        for arm in arms:
            values = [rank.get((arm, *place), math.nan) for place in places]
            lines.append((arm, [plain_number(value) for value in values]))
        first = frame.drop_duplicates(["split", "part"])
        lines.append(("critical difference", [plain_number(x) for x in first["critical_difference"]]))
        lines.append(("Friedman's p", [Entry(tables.p_value(p)) for p in first["friedman_p"]]))
        lines.append(("test sets", [Entry(str(n)) for n in first["n_units"]]))
        heads = [("WR sites" if part == "wr" else "test sites", split) for split, part in places]
        found.append(Table("mean rank", heads, lines, f"Mean ranks by {METRICS[report.metric].name}."))
    text = (
        "Mean rank of the complete arms over test sets; 1 is best. Two arms differ if their mean ranks "
        "differ by more than the critical difference (Friedman's and Nemenyi's tests; Demšar 2006). The "
        "tests need at least three test sets and three arms."
    )
    return Section("ranks", "Ranks", text, found, pictures(report, "ranks-"))


def errors(report: ReportData) -> Section:
    """Mean absolute error and mean bias."""
    found = []
    for metric in ("mae", "mbe"):
        means = report.means[metric]
        columns = [
            (regime, split, split, part)
            for regime in (labels.WR, labels.OOR)
            for split, part in splits_of(means, regime, "test")
        ]
        if columns:
            found.append(tables.of_means(means, columns, f"{METRICS[metric].title}.", legend(report, means)))
    text = "MBE is predicted minus observed; positive values are too high. The best MBE is nearest to zero."
    return Section("errors", "MAE and mean bias", text, found, pictures(report, "distance-"))


def maps(report: ReportData) -> Section:
    """Maps of the monitors and of their errors."""
    text = "Monitors by their role in a split, and errors by monitor."
    return Section("maps", "Maps", text, (), pictures(report, "split-", "difference-", "errors-"))
