"""The report's sections, in order: the material as headed tables, pictures and plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from pm25.metrics import EXCEEDANCE_UGM3, METRICS
from sweeps.analysis import labels
from sweeps.report import summary, tables
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData
    from sweeps.report.figures import Figure as Picture

DIRECTIONS = 4
"""Held-out regions that have a column of their own at most; of more, means.csv has the numbers."""

_PROVENANCE = (
    "study",
    "protocol",
    "table",
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
_VERDICTS = {"equal": "practically equal", "too few": "too few sets"}


class Section(NamedTuple):
    """A heading and what stands under it."""

    anchor: str
    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    paragraphs: Sequence[str] = ()

    @property
    def notes(self) -> list[str]:
        """Those of its tables, each once."""
        return list(dict.fromkeys(note for table in self.tables if table.lines for note in table.notes))


def sections(material: ReportData) -> list[Section]:
    """Those that have something to show, in the report's order."""
    parts = [
        _within(material),
        _outside(material),
        _gap(material),
        _differences(material),
        *_ablations(material),
        _tail(material),
        _ranks(material),
        _search(material),
        _claims(material),
        _published(material),
        _errors(material),
        _maps(material),
        _training(material),
        _audit(material),
        _fairness(material),
        _completeness(material),
        _failures(material),
        _testing(material),
        _settings(material),
        _provenance(material),
    ]
    return [part for part in parts if part.tables or part.pictures or part.paragraphs]


def paper(material: ReportData) -> dict[str, list[Table]]:
    """The tables of a paper by the name of their file."""
    found = {
        "wr": _within(material).tables,
        "oor": _outside(material).tables,
        "gap": _gap(material).tables,
        "contrasts": _differences(material).tables,
        "claims": _claims(material).tables,
        "published": _published(material).tables,
    }
    return {name: list(own) for name, own in found.items() if own}


def shown(material: ReportData) -> list[str]:
    """The study's metric, and R2 or RMSE beside it."""
    return list(dict.fromkeys([material.metric, "rmse", "r2"]))[:2]


def _within(material: ReportData) -> Section:
    columns = within_columns(material.means[material.metric])
    text = (
        "Test sets from where the model was trained. Under 'inside' stand the models of the out-of-region "
        "splits on sites held out inside their training region."
    )
    found = [
        tables.of_means(
            material.means[metric],
            columns,
            f"Within region: {METRICS[metric].title}.",
            legend(material, material.means[metric]),
        )
        for metric in shown(material)
        if columns
    ]
    return Section("wr", "Within region (WR)", text, found, _pictures(material, "cells-"))


def within_columns(means: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """(group, head, split, part) of the WR splits, then of the WR sites of the OoR splits."""
    own = _places(means, labels.WR, "test")
    inside = _places(means, labels.WR, "wr")
    group = {"test": "", "wr": "inside"} if inside else {"test": "", "wr": ""}
    if own and inside:
        group["test"] = "WR splits"
    return [(group[part], split, split, part) for split, part in [*own, *inside]]


def outside_columns(means: pd.DataFrame, directions: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """(group, head, split, part): an OoR split by itself, then each of its held-out regions."""
    found = []
    for split, part in _places(means, labels.OOR, "test"):
        found.append((split, "all", split, part))
        own = [name for name in dict.fromkeys(directions["split"]) if name.startswith(f"{split} · ")]
        if 1 < len(own) <= DIRECTIONS:
            found += [(split, name.partition(" · ")[2].removesuffix(" held out"), name, part) for name in own]
    return found


def _outside(material: ReportData) -> Section:
    found = []
    for metric in shown(material):
        means, directions = material.means[metric], material.directions[metric]
        columns = outside_columns(means, directions)
        if not columns:
            continue
        both = pd.concat([means, directions], ignore_index=True) if len(directions) else means
        found.append(
            tables.of_means(both, columns, f"Out of region: {METRICS[metric].title}.", legend(material, both))
        )
        apart = against_none(
            pd.concat(
                [_plain_contrasts(material.contrasts[metric]), material.direction_contrasts[metric]],
                ignore_index=True,
            )
        )
        apart = apart[(apart["part"] == "test") & (apart["regime"] == labels.OOR)]
        if len(apart):
            caption = f"Out of region, paired differences: {METRICS[metric].title}."
            notes = legend(material, apart, ranked=False)
            found.append(tables.of_differences(apart, columns, material.analysis.alpha, caption, notes))
    text = (
        "Test sets from a region that the model never saw: of a checkerboard one colour, held out in turn "
        "('all' is the mean over them). A split's name ends with the size of its cells in degrees."
    )
    return Section("oor", "Out of region (OoR)", text, found)


def _gap(material: ReportData) -> Section:
    found = []
    for metric in shown(material):
        means = material.means[metric]
        columns = [("", split, split, part) for split, part in _places(means, "gap", "gap")]
        if not columns:
            continue
        name = METRICS[metric].title
        notes = legend(material, means[means["part"] == "gap"], ranked=False)
        found.append(
            tables.of_means(
                means, columns, f"Gap OoR − WR of the same model: {name}.", notes, sign=True, ranked=False
            )
        )
        apart = _plain_contrasts(material.contrasts[metric])
        apart = apart[apart["part"] == "gap"]
        if len(apart):
            found.append(
                tables.of_differences(
                    apart,
                    columns,
                    material.analysis.alpha,
                    f"Difference of the gaps, paired: {name}.",
                    legend(material, apart, ranked=False),
                )
            )
    text = (
        "How much worse one and the same model is out of its region than on held-out sites inside it. It has "
        "no best value: a model that is bad everywhere has no gap. The sites of both differ, so a gap may be "
        "below zero; what counts is how it differs between arms."
    )
    return Section("gap", "The gap from WR to OoR", text, found, _pictures(material, "wr-oor-", "gap-"))


def _differences(material: ReportData) -> Section:
    """Of the study's metric in full, and what else is declared."""
    frame = against_none(material.contrasts[material.metric])
    found = []
    if len(frame):
        name = METRICS[material.metric].title
        found.append(_tested(material, frame, f"Paired differences, arm minus 'none': {name}."))
    text = (
        "The same split, fold and seed, arm minus 'none', seeds averaged within their test set. Declared "
        "contrasts are one family, and only they are tested; the other lines are exploratory: their p is not "
        "adjusted, and they have no verdict."
    )
    if material.rows.empty or labels.BASELINE not in set(labels.with_arm(material.rows)["arm"]):
        return Section("differences", "Paired differences", "", paragraphs=("The study has no arm 'none'.",))
    return Section("differences", "Paired differences", text, found, _pictures(material, "forest-"))


def against_none(contrasts: pd.DataFrame) -> pd.DataFrame:
    """The contrasts with 'none' over all folds, gaps left out (`answer.against_none`)."""
    frame = _plain_contrasts(contrasts)
    frame = frame[frame["part"] != "gap"]
    lines = [
        line
        for _, group in frame.groupby(["split", "part"], sort=False)
        for line in summary.against_none(group.to_dict("records"))
    ]
    return pd.DataFrame(lines, columns=frame.columns).astype(frame.dtypes.to_dict())


def _tested(material: ReportData, frame: pd.DataFrame, caption: str) -> Table:
    """All that is known of contrasts: a line each, under headings by place."""
    alpha = material.analysis.alpha
    probable = frame["p_better"].notna().any()
    hoped = frame["more_seeds"].notna().any()
    names = ["difference", "better in", "test sets", "p", "p (Holm)"]
    names += ["P better", "P equal", "P worse"] if probable else []
    names += ["verdict", *(["more seeds"] if hoped else [])]
    several = len(dict.fromkeys(frame["other"])) > 1
    lines: list[tuple[str, list[Entry]]] = []
    for (regime, split, part), group in frame.groupby(["regime", "split", "part"], sort=False):
        inside = ", inside the training region" if part == "wr" else ""
        lines.append((f"{regime}: {split}{inside}", []))
        for line in group.to_dict("records"):
            first = tables.difference(line, alpha)._replace(n="")
            entries = [first]
            if line["n_pairs"]:
                p = [tables.p_value(line[key]) for key in ("p", "p_adjusted")]
                entries += [Entry(f"{line['n_better']} of {line['n_pairs']}"), Entry(str(line["n_units"]))]
                entries += [Entry(text) for text in p]
                if probable:
                    entries += [Entry(_share(line[f"p_{kind}"])) for kind in ("better", "equal", "worse")]
                entries.append(Entry(verdict(line)))
                if hoped:
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
        legend(material, frame, ranked=False),
    )


def verdict(line: Mapping[Any, Any]) -> str:
    """In words; of what is not declared only that it cannot be tested."""
    if line["verdict"] == "too few":
        return _VERDICTS["too few"]
    if not line["declared"]:
        return "not declared"
    return _VERDICTS.get(line["verdict"], line["verdict"])


def _ablations(material: ReportData) -> Iterator[Section]:
    texts = {
        "fusion": (
            "Fusion ablation",
            "The fusions of one encoder against each other.",
        ),
        "encoder": (
            "Encoder ablation",
            "Encoders of one fusion against each other and against raw coordinates.",
        ),
        "controls": (
            "Controls",
            "Is it the place, or only more layers and a name for every site? 'random' gives every place a "
            "vector that names it and says nothing else, 'shuffled' deals the encoder's vectors out to the "
            "wrong places, and the matched head has the encoder's layers and one constant vector.",
        ),
    }
    frame = _plain_contrasts(material.contrasts[material.metric])
    columns = within_columns(material.means[material.metric])
    columns = [(labels.WR, *column[1:]) for column in columns if column[3] == "test"]
    columns += [
        (labels.OOR, split, split, part)
        for split, part in _places(material.means[material.metric], labels.OOR, "test")
    ]
    pair = list(zip(frame["arm"], frame["other"], strict=True))
    for anchor, (title, text) in texts.items():
        wanted = {
            (labels.of_arm(one.arm), labels.of_arm(one.other)) for one in material.pairs.get(anchor, ())
        }
        mine = frame[pd.Series([own in wanted for own in pair], index=frame.index, dtype=bool)]
        mine = mine[mine["part"] == "test"]
        found = []
        if len(mine):
            found.append(
                tables.of_differences(
                    mine,
                    columns,
                    material.analysis.alpha,
                    f"{title}: {METRICS[material.metric].title}, paired.",
                    legend(material, mine, ranked=False),
                )
            )
        exploratory = " These contrasts are exploratory unless a claim declares them."
        yield Section(anchor, title, text + exploratory, found)


def _tail(material: ReportData) -> Section:
    found = []
    for metric, means in material.tail.items():
        columns = [(labels.WR, split, split, part) for split, part in _places(means, labels.WR, "test")] + [
            (labels.OOR, split, split, part) for split, part in _places(means, labels.OOR, "test")
        ]
        found.append(
            tables.of_means(
                means,
                columns,
                f"The tail, from {EXCEEDANCE_UGM3} µg/m³ on: {METRICS[metric].title}.",
                legend(material, means),
            )
        )
    text = (
        f"Samples of {EXCEEDANCE_UGM3} µg/m³ or more, where the air becomes unhealthy for sensitive groups: "
        "their RMSE; recall, the share of them that is also predicted so; precision, the share of those "
        "predicted so that is. A cell that predicts none has no precision, so its n is smaller."
    )
    return Section("tail", "The tail", text, found, _pictures(material, "tail-", "density-"))


def _ranks(material: ReportData) -> Section:
    frame = material.ranking
    found = []
    if len(frame):
        lines: list[tuple[str, list[Entry]]] = []
        arms = list(dict.fromkeys(frame["arm"]))
        places = list(dict.fromkeys(zip(frame["split"], frame["part"], strict=True)))
        rank = {(a, s, p): r for a, s, p, r in frame[["arm", "split", "part", "mean_rank"]].to_numpy()}
        for arm in arms:
            values = [rank.get((arm, *place), math.nan) for place in places]
            lines.append((arm, [_plain_number(value) for value in values]))
        first = frame.drop_duplicates(["split", "part"])
        lines.append(("critical difference", [_plain_number(x) for x in first["critical_difference"]]))
        lines.append(("Friedman's p", [Entry(tables.p_value(p)) for p in first["friedman_p"]]))
        lines.append(("test sets", [Entry(str(n)) for n in first["n_units"]]))
        heads = [("inside" if part == "wr" else "test", split) for split, part in places]
        found.append(Table("mean rank", heads, lines, f"Mean ranks by {METRICS[material.metric].name}."))
    text = (
        "Mean rank over test sets, 1 the best, of the arms with all their cells. Two arms differ where their "
        "mean ranks are further apart than the critical difference (Friedman's and Nemenyi's tests; Demšar "
        "2006). Fewer than three test sets, or arms, have none."
    )
    return Section("ranks", "Ranks", text, found, _pictures(material, "ranks-"))


def _errors(material: ReportData) -> Section:
    found = []
    for metric in ("mae", "mbe"):
        means = material.means[metric]
        columns = [
            (regime, split, split, part)
            for regime in (labels.WR, labels.OOR)
            for split, part in _places(means, regime, "test")
        ]
        if columns:
            found.append(
                tables.of_means(means, columns, f"{METRICS[metric].title}.", legend(material, means))
            )
    text = "MBE is predicted minus observed: above zero is too much. The best is the one nearest to zero."
    return Section("errors", "MAE and mean bias", text, found, _pictures(material, "distance-"))


def _maps(material: ReportData) -> Section:
    text = "Monitors by their part in a split, and where the errors lie."
    return Section("maps", "Maps", text, (), _pictures(material, "split-", "difference-", "errors-"))


def _training(material: ReportData) -> Section:
    text = "How the validation error fell, and what a trained model uses."
    return Section("training", "Training", text, (), _pictures(material, "learning", "importance"))


def _search(material: ReportData) -> Section:
    found = []
    if material.searches is not None:
        frame = material.searches.set_index("arm").astype("str")
        found.append(tables.plain(frame, "arm", "Budget spent, and the best validation score."))
    chosen: Mapping[str, Mapping[str, str]] = material.facts.get("tuned", {})
    if chosen:
        arms = list(dict.fromkeys(labels.with_arm(material.rows)["arm"]))
        names = sorted({name for settings in chosen.values() for name in settings})
        lines = [(arm, [Entry(chosen.get(arm, {}).get(name, "not tuned")) for name in names]) for arm in arms]
        found.append(Table("arm", [("", name) for name in names], lines, "Tuned settings."))
    if material.parameters is not None and len(material.parameters):
        wide = material.parameters.pivot_table(
            index="arm", columns="parameter", values="importance", sort=False
        )
        lines = [
            (str(arm), [_plain_number(value) for value in values])
            for arm, values in zip(wide.index, wide.to_numpy(), strict=True)
        ]
        found.append(
            Table("arm", [("", str(name)) for name in wide.columns], lines, "Importance of the settings.")
        )
    text = (
        "What each arm's search chose on validation data; no search sees a test score. What was not tuned "
        "has its value under Settings. Importance is the share of the variance of the trials' scores that a "
        "setting explains (fANOVA; Hutter et al. 2014); from few trials it is rough."
    )
    return Section("search", "Search", text, found, _pictures(material, "search-"))


def _claims(material: ReportData) -> Section:
    frame = material.claims
    if frame.empty:
        return Section("claims", "Claims", "")
    lines = []
    for line in frame.to_dict("records"):
        metric = str(line["metric"])
        apart = tables.difference(line, material.analysis.alpha)
        contrast = f"{line['arm']} − {line['other']}"
        where = line["split"] + ("" if pd.isna(line["fold"]) else f", fold {line['fold']}")
        where += ", inside" if line["part"] == "wr" else ""
        entries = [Entry(str(line["verdict"])), Entry(contrast), Entry(where), Entry(METRICS[metric].name)]
        entries += [apart._replace(n="")]
        entries += [Entry(str(line["n_units"])), Entry(tables.p_value(line["p_adjusted"]))]
        lines.append((str(line["claim"]), entries))
    heads = ("verdict", "contrast", "on", "metric", "difference", "test sets", "p (Holm)")
    text = (
        "Declared before the run. Supported: better by more than the margin. Refuted: worse by more than it, "
        "or practically equal. The cells behind each stand in claims.csv, by their keys in cells.csv."
    )
    table = Table(
        "claim",
        [("", head) for head in heads],
        lines,
        "Claims.",
        legend(material, frame, ranked=False),
    )
    return Section("claims", "Claims", text, [table])


def _published(material: ReportData) -> Section:
    published = material.published
    if published is None:
        return Section("published", "Published values", "")
    lines = []
    for value in published.values:  # noqa: PD011
        label = labels.arm(value.variant, value.fusion)
        split = value.split if value.fold is None else labels.direction(value.split, value.fold)
        own = (material.means if value.fold is None else material.directions)[value.metric]
        own = own[(own["arm"] == label) & (own["split"] == split) & (own["part"] == value.part)]
        theirs = f"{value.value:g}"  # in the digits that were published
        if value.sd is not None:
            theirs += f" ± {value.sd:g}"
        theirs_entry = Entry(tables.minus(theirs), marks=tables.SECOND_HAND)
        if own.empty:
            ours, apart = Entry("not in this study", absent=True), Entry(tables.ABSENT)
        else:
            line = own.iloc[0].to_dict()
            ours = tables.mean(line)
            gap = line["mean"] - value.value
            apart = Entry(tables.minus(labels.number(gap, value.metric, sign=True)))
        where = split + (", inside" if value.part == "wr" else "")
        lines.append((label, [Entry(where), Entry(METRICS[value.metric].title), theirs_entry, ours, apart]))
    heads = ("on", "metric", "published (second-hand)", "ours", "ours minus published")
    text = (
        f"{published.source}: second-hand values ({tables.SECOND_HAND}), beside ours and in no mean or test. "
        "The data, the features, the samples and the protocol may differ, so a difference is no test of "
        "anyone."
    )
    notes = [f"{tables.SECOND_HAND} {published.source}."]
    notes += legend(material, material.means[material.metric], ranked=False)
    caption = "Published values, second-hand, beside ours."
    table = Table("arm", [("", head) for head in heads], lines, caption, notes)
    return Section("published", "Published values", text, [table])


def _audit(material: ReportData) -> Section:
    cells = labels.with_arm(material.rows)
    cells = cells[cells["marked"] != ""]
    if cells.empty:
        return Section("audit", "Leakage audit", "")
    counts = cells.groupby(["marked", "arm", "split"], sort=False).size().rename("cells").reset_index()
    text = (
        f"{tables.MARK} marks every mean with a cell whose audit failed: read it as what it is, not as an "
        "error on new data."
    )
    return Section("audit", "Leakage audit", text, [tables.plain(counts.set_index("marked"), "failed check")])


def unfair(contrasts: pd.DataFrame) -> pd.DataFrame:
    """What makes differences unfair: arm, other, splits, and one reason a line."""
    frame = _plain_contrasts(contrasts)
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in frame[(frame["part"] == "test") & (frame["unfair"] != "")].to_dict("records"):
        for text in line["unfair"].split("; "):
            found.setdefault((line["arm"], line["other"], text), []).append(line["split"])
    lines = [(arm, other, ", ".join(splits), text) for (arm, other, text), splits in found.items()]
    return pd.DataFrame(lines, columns=["arm", "against", "split", "what else differs"], dtype="str")


def _fairness(material: ReportData) -> Section:
    reasons = unfair(material.contrasts[material.metric])
    text = (
        f"{tables.UNFAIR} marks every paired difference whose two arms differ in more than the declared "
        "factor and what it implies: what stands here moves the number too. Values are the arm's against "
        "those of the other."
    )
    found = [tables.plain(reasons.set_index("arm"), "arm")] if len(reasons) else []
    return Section("fairness", "Fair comparison", text, found)


def _completeness(material: ReportData) -> Section:
    text = (
        "How many cells each mean could have, and what became of them; samples per split as a range over its "
        "done cells."
    )
    found = [
        tables.plain(tables.completeness(material.rows), "arm"),
        tables.plain(tables.sizes(material.rows), "samples"),
    ]
    return Section("complete", "Completeness", text, found)


def _failures(material: ReportData) -> Section:
    failed = labels.with_arm(material.rows.loc[material.rows["state"] == "failed"])
    if failed.empty:
        return Section("failures", "Failures", "")
    frame = failed[["arm", "split", "fold", "seed", "error"]].astype("str")
    frame.index = pd.Index(failed["key"].astype("str").str.slice(0, 12))
    text = "A failure is counted, and never becomes a number."
    return Section("failures", "Failures", text, [tables.plain(frame, "key")])


def _testing(material: ReportData) -> Section:
    analysis = material.analysis
    family = summary.declared(material)
    level = f"{1 - analysis.alpha:.0%}"
    looks = int(family["looks"].max()) if len(family) else 1
    if analysis.test == "corrected_t":
        test = (
            "Test: the corrected resampled t-test of Nadeau and Bengio (2003, Machine Learning 52, 239-281). "
            "The training sets of k folds overlap, so folds are not independent: the variance of the mean "
            "difference over n test sets is taken as 1/n + 1/(k - 1) times their variance, not 1/n times. "
            f"Intervals of differences ({level}) are those of the same test."
        )
    else:
        test = (
            "Test: Wilcoxon's signed-rank test over test sets, all sign patterns counted. It takes test sets "
            f"as independent, though training sets overlap. Intervals of differences ({level}) are made of "
            "the Walsh averages that the test would not refuse."
        )
    paragraphs = [
        "Unit: an independent test set, which is one fold of a split: one colour of a checkerboard, one "
        "region. Seeds of one fold share its test set, so they are averaged first; more seeds make a unit's "
        "value steadier, and no more units. Below three units nothing is tested (with Wilcoxon: below the "
        "number at which 2/2ⁿ falls under the level).",
        test,
        "Intervals of means leave out what a test set does to all arms alike (Cousineau 2005, corrected by "
        "Morey 2008): they show which arms differ, not how far a mean would move on other data.",
        f"Family: {len(family)} declared contrast{'s' * (len(family) != 1)}"
        + (
            " (those of the claims)"
            if len(material.claims)
            else f" (every arm against 'none' on every split's test sets, by {METRICS[material.metric].name})"
        )
        + ". Their p, of no difference at all, are adjusted together by Holm (1979): the chance that one or "
        f"more arms that do not differ are told apart is {analysis.alpha:g} at most. Those with too few "
        "test sets take no part in it. Nothing else is tested; what is not declared is exploratory.",
        "Verdict: two arms are practically equal where they differ by less than a margin (region of "
        f"practical equivalence): {analysis.rope:.3g} of the other arm's RMSE or MAE, {analysis.rope:.3g} "
        "of R² as it is. Better or worse: the test puts the difference beyond the margin. Equal: two "
        "one-sided tests put it within. Undecided: neither. Each of these two kinds of finding is held to "
        f"{analysis.alpha:g} over the family, by Holm again. P better, P equal and P worse are posterior "
        "probabilities that the difference lies on either side of the margin or within it, by the Bayesian "
        "correlated t-test (Corani and Benavoli 2015); they are not adjusted for several contrasts.",
        f"Bootstrap ({tables.BOOTSTRAP}): {analysis.bootstrap:,} resamples of the stored predictions, by "
        f"site within region and out of region by blocks of {analysis.block_degrees:g}°, with the same "
        "weights for both arms. It says how a number would move on other sites of the same regions, given "
        "these trainings; it knows nothing of other regions or other trainings, and is no test.",
    ]
    if material.rule:
        paragraphs.append(
            f"Stopping rule: {material.rule} Each p is multiplied by the {looks} looks at the data."
        )
    found = []
    if material.seeds:
        lines = [
            (
                f"{labels.arm(one['variant'], one['fusion'])} − "
                f"{labels.arm(one['other_variant'], one['other_fusion'])}",
                [
                    Entry(one["split"] + (", inside" if one["part"] == "wr" else "")),
                    Entry(METRICS[one["metric"]].name),
                    Entry(", ".join(map(str, one["looks"]))),
                    Entry(f"{one['seeds']} of {one['max']}"),
                    Entry(one["stopped"] or "cells of this look are missing"),
                ],
            )
            for one in material.seeds
        ]
        heads = ("on", "metric", "looks at", "seeds", "stopped")
        found.append(
            Table(
                "contrast", [("", head) for head in heads], lines, "Seeds that were added, and why no more."
            )
        )
    return Section("testing", "How it was tested", "", found, (), paragraphs)


def _settings(material: ReportData) -> Section:
    text = "Fixed for every cell, unless the search chose them per arm."
    found = _pairs(material.facts.get("settings", {}), "setting")
    return Section("settings", "Settings", text, [found] if found.lines else [])


def _provenance(material: ReportData) -> Section:
    facts = {name: material.facts[name] for name in _PROVENANCE if material.facts.get(name) is not None}
    text = (
        "The same cells and the same versions make this report again, byte for byte. means.csv, "
        "contrasts.csv and claims.csv beside this page hold every number of the tables; cells.csv every cell "
        "with its key."
    )
    found = [_pairs(facts, "fact"), _pairs(material.facts.get("versions", {}), "package")]
    return Section("provenance", "Provenance", text, [table for table in found if table.lines])


def legend(material: ReportData, frame: pd.DataFrame, *, ranked: bool = True) -> list[str]:
    """Notes under a table of means or contrasts: what stands in it, the test by its name."""
    alpha = material.analysis.alpha
    level = f"{1 - alpha:.0%}"
    contrasts = "diff" in frame
    notes = []
    if ranked and not contrasts:
        notes.append("Bold: the best mean; underlined: the second; among the arms with all their cells.")
    if contrasts:
        if frame["low"].notna().any():
            notes.append(f"In brackets: {level} interval over test sets.")
    elif frame["low"].notna().any():
        notes.append(f"In brackets: {level} interval over test sets, without what they do to all arms alike.")
    boot = frame["low"].isna() & frame["boot_low"].notna()
    if boot.any():
        notes.append(
            f"{tables.BOOTSTRAP} {level} bootstrap interval over sites (WR) or blocks of sites (OoR): other "
            "sites of the same regions, given these trainings; no test, for there are too few test sets."
        )
    if not contrasts:
        alone = frame["low"].isna() & frame["boot_low"].isna() & frame["sd"].notna()
        if alone.any():
            notes.append(
                "±: standard deviation over cells, where there are too few test sets for an interval."
            )
        notes.append("n counts cells; 3/4 means that one of four has no number.")
        if (frame["n_marked"] > 0).any():
            notes.append(f"{tables.MARK} Holds a cell whose leakage audit failed.")
        return notes
    if (frame["declared"] & (frame["p_adjusted"] <= alpha)).any():
        test = summary.TESTS[str(frame["test"].iloc[0])]
        notes.append(
            f"{tables.SIGNIFICANT} Differs from zero: {test}, p ≤ {alpha:g} after Holm over the declared "
            "contrasts."
        )
    if (frame["unfair"] != "").any():
        notes.append(f"{tables.UNFAIR} Unfair: more differs than the declared factor.")
    return notes


def _places(means: pd.DataFrame, regime: str, part: str) -> list[tuple[str, str]]:
    mine = means[(means["regime"] == regime) & (means["part"] == part)]
    return [(split, part) for split in dict.fromkeys(mine["split"])]


def _plain_contrasts(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Those over all folds, of arms against 'none' and others; claims' mirror images included."""
    return contrasts[contrasts["fold"].isna()]


def _pictures(material: ReportData, *prefixes: str) -> list[Picture]:
    return [picture for picture in material.pictures if picture.name.startswith(prefixes)]


def _share(value: float) -> str:
    """A probability, never rounded to certainty."""
    if math.isnan(value):
        return tables.ABSENT
    return "<0.01" if value < 0.01 else ">0.99" if value > 0.99 else f"{value:.2f}"


def _plain_number(value: float) -> Entry:
    return Entry(tables.ABSENT if math.isnan(value) else f"{value:.2f}")


def _pairs(values: Mapping[str, Any], corner: str) -> Table:
    lines = [(name, [Entry(text)]) for name, text in _flattened(values)]
    return Table(corner, [("", "value")], lines)


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """('train.epochs', '100') for every leaf, sorted by name."""
    for name in sorted(values, key=str):
        value = values[name]
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"{prefix}{name}", text
