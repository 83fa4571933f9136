"""The study's answer in three sentences made from its numbers, and what the reader must mind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import METRICS
from sweeps.analysis import comparability, labels
from sweeps.analysis.labels import is_control
from sweeps.report import tables

if TYPE_CHECKING:
    from sweeps.report.data import ReportData

TESTS = {"corrected t": "corrected resampled t-test", "Wilcoxon": "Wilcoxon's signed-rank test"}
_FLIPPED = {"better": "worse", "worse": "better"}
SHOWN = 4
"""Contrasts that a sentence names at most; it counts the others."""

Line = Mapping[Any, Any]
"""Of `inference.contrasts`, by column."""


def sentences(material: ReportData) -> list[str]:
    """Within region; out of region; what is open. A regime that the study has not has no sentence."""
    means = material.means[material.metric]
    within = _splits(means, labels.WR, "test")
    places = [(split, "test") for split in within] or [
        (split, "wr") for split in _splits(means, labels.OOR, "test")
    ]
    outside = [(split, "test") for split in _splits(means, labels.OOR, "test")]
    found = []
    for name, mine in (("Within region", places), ("Out of region", outside)):
        if mine:
            found.append(f"{name}, {'; '.join(_at(material, split, part) for split, part in mine)}.")
    return [*found, _open(material)]


def cautions(material: ReportData) -> list[str]:
    """What stands against the numbers: failed audits, unfair contrasts, settings that searches chose."""
    found = []
    means = material.means[material.metric]
    own = means[means["part"] == "test"]
    if marked := int(own["n_marked"].sum()):
        found.append(
            f"{_count(marked, 'cell')} failed the leakage audit: {tables.MARK} stands at every mean that "
            "holds one."
        )
    contrasts = material.contrasts[material.metric]
    paired = contrasts[(contrasts["n_pairs"] > 0) & (contrasts["part"] == "test") & contrasts["fold"].isna()]
    if unfair := int((paired["unfair"] != "").sum()):
        found.append(
            f"{unfair} of {_count(len(paired), 'contrast')} are unfair, for more differs than the declared "
            f"factor: {tables.UNFAIR} stands at their differences."
        )
    if tuned := comparability.by_name(labels.measured(material.rows)["tuned"]):
        found.append(f"Tuned by a search, arm by arm, and not as in 'none': {', '.join(sorted(tuned))}.")
    return found


def declared(material: ReportData) -> pd.DataFrame:
    """The contrasts that are tested, of every metric that claims are about."""
    frames = [frame[frame["declared"]] for frame in material.contrasts.values()]
    return pd.concat(frames, ignore_index=True)


def _splits(means: pd.DataFrame, regime: str, part: str) -> list[str]:
    return list(dict.fromkeys(means.loc[(means["regime"] == regime) & (means["part"] == part), "split"]))


def _at(material: ReportData, split: str, part: str) -> str:
    """One place: of the declared contrasts with 'none' the best, or else the best of all of them.

    Arms with all their cells come first; a declared contrast without them is told all the same, with the
    pairs that it has.
    """
    metric = material.metric
    means = material.means[metric]
    means = means[(means["split"] == split) & (means["part"] == part)]
    where = f"on {split}" if part == "test" else f"on held-out sites inside the training regions of {split}"
    whole = labels.whole(means)
    frame = material.contrasts[metric]
    frame = frame[(frame["split"] == split) & (frame["part"] == part)]
    lines = [line for line in against_none(frame[frame["fold"].isna()].to_dict("records")) if line["n_pairs"]]
    complete = [line for line in lines if {line["arm"], line["other"]} <= {*whole["arm"]}]
    tested = [line for line in lines if line["declared"]]
    among = [line for line in tested if line in complete] or tested or complete
    among = [line for line in among if not is_control(line["arm"], means)] or among
    if not among:
        return f"{where} {_lowest(whole, means, metric)}"
    sign = 1 if METRICS[metric].better == "higher" else -1
    best = max(among, key=lambda line: sign * line["diff"])
    words = f", the best of {len(among)} such arms," if len(among) > 1 else ""
    pairs = ""
    if best not in complete:
        planned = int(means.loc[means["arm"].isin([best["arm"], best["other"]]), "n_expected"].min())
        pairs = f"; {best['n_pairs']} of {planned} pairs have a number"
    said = _said(best, material.analysis.alpha, words, pairs)
    if tested:
        return f"{where} {said}{_rest(tested)}"
    folds = frame["declared"] & (frame[["arm", "other"]] == labels.BASELINE).any(axis=1)
    aside = "" if best["verdict"] == "too few" else "no contrast with 'none' is declared; exploratory, "
    if folds.any():
        aside = "contrasts with 'none' are declared of single folds; over all of them, "
        aside += "" if best["verdict"] == "too few" else "exploratory, "
    return f"{where} {aside}{said}"


def against_none(lines: Iterable[Line]) -> list[Line]:
    """Every arm of one place against 'none' once; a claim that 'none' is better is turned round."""
    found: dict[str, Line] = {}
    for line in lines:
        if line["arm"] == labels.BASELINE:
            line = _turned(line)
        elif line["other"] != labels.BASELINE:
            continue
        if line["declared"] or line["arm"] not in found:
            found[line["arm"]] = line
    return list(found.values())


def _turned(line: Line) -> Line:
    """The other arm minus this one."""
    swapped = {
        a: line[b]
        for pair in (("arm", "other"), ("mean_arm", "mean_other"), ("keys_arm", "keys_other"))
        for a, b in (pair, pair[::-1])
    }
    return {
        **line,
        **swapped,
        "diff": -line["diff"],
        **{f"{kind}low": -line[f"{kind}high"] for kind in ("", "boot_")},
        **{f"{kind}high": -line[f"{kind}low"] for kind in ("", "boot_")},
        "p_better": line["p_worse"],
        "p_worse": line["p_better"],
        "n_better": line["n_pairs"] - line["n_better"],
        "verdict": _FLIPPED.get(line["verdict"], line["verdict"]),
    }


def _said(line: Line, alpha: float, among: str, pairs: str) -> str:
    """What the test says of a contrast, and no more: with difference, interval, test and n.

    `among` stands behind the arm, `pairs` behind the numbers.
    """
    metric, arm, other = str(line["metric"]), f"'{line['arm']}'", f"'{line['other']}'"
    name, verdict = METRICS[metric].name, line["verdict"]
    mark = tables.UNFAIR if line["unfair"] else ""
    differs = f"its {name} is {_apart(line['diff'], metric)}{mark}"
    margin = f"the margin of {_with_unit(line['rope'], metric)}"
    if verdict == "too few":
        boot = ""
        if math.isfinite(line["boot_low"]):
            kind = "blocks of other sites in the same regions" if line["regime"] == labels.OOR else "sites"
            bounds = tables.interval(line["boot_low"], line["boot_high"], metric, sign=True)
            boot = f"; {1 - alpha:.0%} bootstrap interval over {kind} {bounds}, given these trainings"
        better = f"better in {line['n_better']} of {line['n_pairs']} pairs"
        n = int(line["n_units"])
        few = f"{_count(n, 'test set')} {'is' if n == 1 else 'are'} too few"
        return (
            f"nothing is tested, for {few}: {arm}{among} against {other}, {differs} ({better}{pairs}{boot})"
        )
    numbers = (
        f"{1 - alpha:.0%} interval {tables.interval(line['low'], line['high'], metric, sign=True)}; "
        f"{TESTS[line['test']]}, {_p(line)}; {_count(int(line['n_units']), 'test set')}{pairs}"
    )
    if not line["declared"]:
        return f"{arm}{among} against {other}, {differs} ({numbers})"
    if verdict in ("better", "worse"):
        return f"{arm}{among} is {verdict} than {other} by more than {margin}: {differs} ({numbers})"
    if verdict == "equal":
        return f"{arm}{among} and {other} are practically equal, within {margin}: {differs} ({numbers})"
    return (
        f"it is undecided whether {arm}{among} differs from {other} by more than {margin}: {differs} "
        f"({numbers})"
    )


def _rest(tested: Sequence[Line]) -> str:
    """How all declared contrasts with 'none' of one place came out, where there are several."""
    if len(tested) < 2:
        return ""
    verdicts = [str(line["verdict"]) for line in tested]
    words = {"equal": "practically equal", "too few": "with too few test sets"}
    kinds = ("better", "worse", "equal", "undecided", "too few")
    counts = [f"{n} {words.get(kind, kind)}" for kind in kinds if (n := verdicts.count(kind))]
    return f" – of {len(tested)} declared contrasts with 'none', {', '.join(counts)}"


def _lowest(whole: pd.DataFrame, means: pd.DataFrame, metric: str) -> str:
    """Where nothing can be compared with 'none'."""
    if whole.empty:
        return "no arm has all its cells"
    top = whole.iloc[0]
    side = "highest" if METRICS[metric].better == "higher" else "lowest"
    value = _with_unit(top["mean"], metric)
    cells = _count(int(top["n"]), "cell")
    text = f"'{top['arm']}' has the {side} mean {METRICS[metric].name}, {value} ({cells})"
    if len(means) == 1:
        return f"{text}, the only arm"
    why = "no other arm has all its cells"
    if len(whole) > 1:
        here = labels.BASELINE in {*means["arm"]}
        why = "'none' has not all its cells" if here else "the study has no arm 'none'"
    return f"{text}; {why}, so nothing is compared here"


def _open(material: ReportData) -> str:
    """What is undecided, has too few test sets, or is missing."""
    family = declared(material)
    several = len({*family["metric"]}) > 1
    parts = []
    for verdict, text in (
        ("undecided", "undecided"),
        ("too few", "with too few test sets for a test"),
    ):
        lines = family[(family["verdict"] == verdict) & (family["n_pairs"] > 0)].to_dict("records")
        if lines:
            parts.append(f"{text}: {_named(lines, several)}")
    if lines := family[family["n_pairs"] == 0].to_dict("records"):
        parts.append(f"without a pair of cells: {_named(lines, several)}")
    counts = material.rows["state"].value_counts()
    absent = [f"{counts[state]} {state}" for state in ("failed", "missing") if counts.get(state, 0)]
    total = len(material.rows)
    done = (
        f"all {total} cells are done" if total > 1 else "its one cell is done" if total else "it has no cell"
    )
    if absent:
        done = f"of {_count(total, 'cell')} {' and '.join(absent)}"
        done += ", and an arm without all its cells is not ranked"
    if family.empty:
        return f"Nothing is declared, so nothing was tested; {done}."
    if parts or absent:
        return f"Open: {'; '.join([*parts, done])}."
    decided = f"all {len(family)} declared contrasts" if len(family) > 1 else "the one declared contrast"
    return f"Nothing is open: the test decides {decided}, and {done}."


def _named(lines: Sequence[Line], several: bool) -> str:
    """The contrasts by place, as far as a sentence holds them, and how many seeds would decide them.

    The metric is told where the family has several.
    """
    by_place: dict[str, list[str]] = {}
    for line in lines:
        more = line["more_seeds"]
        seeds: str = "" if pd.isna(more) else f" (about {_count(int(more), 'more seed')} would decide it)"
        against = "" if line["other"] == labels.BASELINE else f" against '{line['other']}'"
        place = f"on {line['split']}"
        if not pd.isna(line["fold"]):
            outside = line["regime"] == labels.OOR or line["part"] == "wr"
            fold = labels.held_out(line["split"], line["fold"]) if outside else f"fold {line['fold']}"
            place += f", {fold}"
        place += "" if line["part"] == "test" else " inside the training region"
        place += f" by {METRICS[line['metric']].name}" if several else ""
        by_place.setdefault(place, []).append(f"'{line['arm']}'{against}{seeds}")
    texts = [
        f"{', '.join(arms[:SHOWN])}{f' and {len(arms) - SHOWN} more' * (len(arms) > SHOWN)} {place}"
        for place, arms in by_place.items()
    ]
    return ", ".join(texts)


def _p(line: Line) -> str:
    if not line["declared"]:
        return f"p = {tables.p_value(line['p'])}, not adjusted".replace("= <", "< ")
    return f"p = {tables.p_value(line['p_adjusted'])} after Holm".replace("= <", "< ")


def _apart(value: float, metric: str) -> str:
    """'0.39 µg/m³ lower'."""
    if float(labels.number(value, metric)) == 0:
        return f"the same to {_with_unit(10.0 ** -METRICS[metric].digits, metric)}"
    return f"{_with_unit(abs(value), metric)} {'lower' if value < 0 else 'higher'}"


def _with_unit(value: float, metric: str) -> str:
    return f"{labels.number(value, metric)} {METRICS[metric].unit}".strip()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
