"""Answer of the study in three paragraphs made from its numbers, and cautions for the reader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import METRICS
from pm25.text import counted
from sweeps.analysis import comparability, labels
from sweeps.analysis.labels import is_control
from sweeps.report import tables

if TYPE_CHECKING:
    from sweeps.report.data import ReportData

TESTS = {"corrected t": "corrected resampled t-test", "Wilcoxon": "Wilcoxon's signed-rank test"}
_FLIPPED = {"better": "worse", "worse": "better"}
SHOWN = 4
"""Most arms that a list names; further ones are counted."""

Line = Mapping[Any, Any]
"""Row of `inference.contrasts`, by column."""


def answer(report: ReportData) -> list[str]:
    """Return the paragraphs of the answer: within region, out of region, and what is open."""
    means = report.means[report.metric]
    wr_splits = splits_of(means, labels.WR, "test")
    oor = [(split, "test") for split in splits_of(means, labels.OOR, "test")]
    wr = [(split, "test") for split in wr_splits] or [(split, "wr") for split, _ in oor]
    found = []
    for regime, places in (("Within region", wr), ("Out of region", oor)):
        findings = [_finding(report, split, part) for split, part in places]
        if findings:
            later = [text[0].upper() + text[1:] for text in findings[1:]]
            found.append(" ".join([f"{regime}, {findings[0]}", *later]))
    return [*found, _open(report)]


def cautions(report: ReportData) -> list[str]:
    """Return warnings about the numbers: failed audits, confounded contrasts, and tuned settings."""
    found = []
    means = report.means[report.metric]
    test_means = means[means["part"] == "test"]
    if audit_failed := int(test_means["n_marked"].sum()):
        found.append(
            f"{counted(audit_failed, 'cell')} failed the leakage audit; {tables.AUDIT_FAILED} marks every "
            "mean that includes one."
        )
    contrasts = report.contrasts[report.metric]
    paired = contrasts[(contrasts["n_pairs"] > 0) & (contrasts["part"] == "test") & contrasts["fold"].isna()]
    if confounded := int((paired["unfair"] != "").sum()):
        found.append(
            f"{confounded} of {counted(len(paired), 'contrast')} are confounded ({tables.CONFOUNDED}): their "
            "arms differ in more than the declared factor."
        )
    if tuned := comparability.by_name(labels.measured(report.rows)["tuned"]):
        found.append(f"Settings that a search chose per arm, unlike in 'none': {', '.join(sorted(tuned))}.")
    return found


def declared(report: ReportData) -> pd.DataFrame:
    """Return the tested contrasts, for every metric that claims are about."""
    frames = [frame[frame["declared"]] for frame in report.contrasts.values()]
    return pd.concat(frames, ignore_index=True)


def splits_of(means: pd.DataFrame, regime: str, part: str) -> list[str]:
    """Return the splits of a regime that have an evaluation set, by first appearance."""
    return list(dict.fromkeys(means.loc[(means["regime"] == regime) & (means["part"] == part), "split"]))


def _finding(report: ReportData, split: str, part: str) -> str:
    """Return the result on one evaluation set: the best declared contrast with 'none', or the best of all.

    Complete arms come first. A declared contrast of an incomplete arm is reported with its number of pairs.
    """
    metric = report.metric
    means = report.means[metric]
    means = means[(means["split"] == split) & (means["part"] == part)]
    where = f"on {split}" if part == "test" else f"on held-out sites of the training regions of {split}"
    complete_arms = labels.complete(means)
    frame = report.contrasts[metric]
    frame = frame[(frame["split"] == split) & (frame["part"] == part)]
    lines = [line for line in against_none(frame[frame["fold"].isna()].to_dict("records")) if line["n_pairs"]]
    complete = [line for line in lines if {line["arm"], line["other"]} <= {*complete_arms["arm"]}]
    tested = [line for line in lines if line["declared"]]
    candidates = [line for line in tested if line in complete] or tested or complete
    candidates = [line for line in candidates if not is_control(line["arm"], means)] or candidates
    if not candidates:
        return f"{where}, {_best_mean(complete_arms, means, metric)}"
    sign = 1 if METRICS[metric].better == "higher" else -1
    best = max(candidates, key=lambda line: sign * line["diff"])
    pairs = ""
    if best not in complete:
        planned = int(means.loc[means["arm"].isin([best["arm"], best["other"]]), "n_expected"].min())
        pairs = f"; {best['n_pairs']} of {planned} pairs have a score"
    sentences = [f"{where}, {_verdict(best)}."]
    if not tested:
        folds = frame["declared"] & (frame[["arm", "other"]] == labels.BASELINE).any(axis=1)
        which = "only contrasts of single folds are" if folds.any() else "no contrast with 'none' is"
        if best["verdict"] != "too few":
            sentences = [f"{where}, {which} declared, so this comparison is exploratory."]
        elif folds.any():
            sentences = [f"{where}, {which} declared; over all folds, {_verdict(best)}."]
    sentences.append(f"{_difference(best, report.analysis.alpha, pairs)}.")
    if len(candidates) > 1:
        kind = "arms with a declared contrast" if tested else "complete arms"
        sentences.append(f"'{best['arm']}' is the best of {len(candidates)} {kind}.")
    if len(tested) > 1:
        sentences.append(f"{_verdict_counts(tested)}.")
    return " ".join(sentences)


def against_none(lines: Iterable[Line]) -> list[Line]:
    """Return one contrast with 'none' for every arm; a claim that 'none' is better is reversed."""
    found: dict[str, Line] = {}
    for line in lines:
        if line["arm"] == labels.BASELINE:
            line = _reversed(line)
        elif line["other"] != labels.BASELINE:
            continue
        if line["declared"] or line["arm"] not in found:
            found[line["arm"]] = line
    return list(found.values())


def _reversed(line: Line) -> Line:
    """Return the contrast of the other arm minus this one."""
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


def _verdict(line: Line) -> str:
    """Return the verdict of a contrast as a clause."""
    arm, other, verdict = f"'{line['arm']}'", f"'{line['other']}'", line["verdict"]
    margin = f"the margin of {_with_unit(line['rope'], str(line['metric']))}"
    if verdict == "too few":
        n = int(line["n_units"])
        return f"nothing is tested, because {counted(n, 'test set')} {'is' if n == 1 else 'are'} too few"
    if verdict in ("better", "worse"):
        return f"{arm} is {verdict} than {other} by more than {margin}"
    if verdict == "equal":
        return f"{arm} and {other} are practically equal, within {margin}"
    return f"it is undecided whether {arm} differs from {other} by more than {margin}"


def _difference(line: Line, alpha: float, pairs: str) -> str:
    """Return the difference of a contrast with its interval, test and n; `pairs` is added to these."""
    metric, level = str(line["metric"]), f"{1 - alpha:.0%}"
    mark = tables.CONFOUNDED if line["unfair"] else ""
    amount = _amount(line["diff"], metric, f"that of '{line['other']}'", mark)
    text = f"The {METRICS[metric].name} of '{line['arm']}' is {amount}"
    if line["verdict"] != "too few":
        interval = tables.interval(line["low"], line["high"], metric, sign=True)
        return (
            f"{text} ({level} interval {interval}; {TESTS[line['test']]}, {_p(line)}; "
            f"{counted(int(line['n_units']), 'test set')}{pairs})"
        )
    boot = ""
    if math.isfinite(line["boot_low"]):
        units = "blocks of sites" if line["regime"] == labels.OOR else "sites"
        interval = tables.interval(line["boot_low"], line["boot_high"], metric, sign=True)
        boot = f"; {level} bootstrap interval over {units} {interval}, for these trained models"
    return f"{text} (better in {line['n_better']} of {line['n_pairs']} pairs{pairs}{boot})"


def _verdict_counts(tested: Sequence[Line]) -> str:
    """Return the number of declared contrasts with 'none' by verdict."""
    verdicts = [str(line["verdict"]) for line in tested]
    words = {"equal": "practically equal", "too few": "with too few test sets"}
    kinds = ("better", "worse", "equal", "undecided", "too few")
    counts = [f"{n} {words.get(kind, kind)}" for kind in kinds if (n := verdicts.count(kind))]
    return f"Of {len(tested)} declared contrasts with 'none': {', '.join(counts)}"


def _best_mean(complete: pd.DataFrame, means: pd.DataFrame, metric: str) -> str:
    """Return the best mean, where nothing can be compared with 'none', and the reason."""
    if complete.empty:
        return "no arm has all its cells."
    top = complete.iloc[0]
    side = "highest" if METRICS[metric].better == "higher" else "lowest"
    value = _with_unit(top["mean"], metric)
    cells = counted(int(top["n"]), "cell")
    text = f"'{top['arm']}' has the {side} mean {METRICS[metric].name}, {value} ({cells})."
    if len(means) == 1:
        return f"{text} It is the only arm."
    reason = "No other arm has all its cells"
    if len(complete) > 1:
        here = labels.BASELINE in {*means["arm"]}
        reason = "'none' does not have all its cells" if here else "The study has no arm 'none'"
    return f"{text} {reason}, so nothing is compared."


def _open(report: ReportData) -> str:
    """Return what is undecided, has too few test sets, or is missing."""
    family = declared(report)
    several = len({*family["metric"]}) > 1
    has_pairs = family["n_pairs"] > 0
    found = [
        f"{title}: {_named(selected.to_dict('records'), several)}."
        for title, selected in (
            ("Undecided", family[(family["verdict"] == "undecided") & has_pairs]),
            ("Too few test sets for a test", family[(family["verdict"] == "too few") & has_pairs]),
            ("Without a pair of cells", family[~has_pairs]),
        )
        if len(selected)
    ]
    cells, all_done = _cells(report.rows["state"])
    if family.empty:
        return f"No contrast is declared, so nothing was tested. {cells}"
    if not found and all_done:
        which = f"all {len(family)} declared contrasts" if len(family) > 1 else "the only declared contrast"
        found = [f"Nothing is open: the test decides {which}."]
    return " ".join([*found, cells])


def _cells(states: pd.Series) -> tuple[str, bool]:
    """Return a sentence on the cells by state, and True if all are done."""
    counts, total = states.value_counts(), len(states)
    failed, missing = int(counts.get("failed", 0)), int(counts.get("missing", 0))
    if failed or missing:
        absent = [f"{failed} failed"] if failed else []
        absent += [f"{missing} {'is' if missing == 1 else 'are'} missing"] if missing else []
        of = f"Of {counted(total, 'cell')}, {' and '.join(absent)}."
        return f"{of} Arms without all their cells are not ranked.", False
    if total == 0:
        return "The study has no cell.", True
    return f"All {total} cells are done." if total > 1 else "The only cell is done.", True


def _named(lines: Sequence[Line], several: bool) -> str:
    """Return the contrasts by evaluation set, with the number of further seeds that would decide them.

    Lists are shortened to `SHOWN` arms. The metric is named if the family has `several`.
    """
    by_place: dict[str, list[str]] = {}
    for line in lines:
        more = line["more_seeds"]
        seeds: str = "" if pd.isna(more) else f" (about {counted(int(more), 'more seed')} would decide it)"
        against = "" if line["other"] == labels.BASELINE else f" against '{line['other']}'"
        place = f"on {line['split']}"
        if not pd.isna(line["fold"]):
            regions = line["regime"] == labels.OOR or line["part"] == "wr"
            fold = labels.held_out(line["split"], line["fold"]) if regions else f"fold {line['fold']}"
            place += f", {fold}"
        place += "" if line["part"] == "test" else ", WR sites"
        place += f" by {METRICS[line['metric']].name}" if several else ""
        by_place.setdefault(place, []).append(f"'{line['arm']}'{against}{seeds}")
    texts = [
        f"{', '.join(arms[:SHOWN])}{f' and {len(arms) - SHOWN} more' * (len(arms) > SHOWN)} {place}"
        for place, arms in by_place.items()
    ]
    return ", ".join(texts)


def _p(line: Line) -> str:
    """Return the p-value of a contrast, and its adjustment."""
    if not line["declared"]:
        return f"p = {tables.p_value(line['p'])}, not adjusted".replace("= <", "< ")
    return f"p = {tables.p_value(line['p_adjusted'])} after Holm".replace("= <", "< ")


def _amount(value: float, metric: str, other: str, mark: str) -> str:
    """Return a difference in words, such as "0.39 µg/m³ lower than that of 'none'"."""
    if float(labels.number(value, metric)) == 0:
        return f"the same as {other} to {_with_unit(10.0 ** -METRICS[metric].digits, metric)}{mark}"
    return f"{_with_unit(abs(value), metric)} {'lower' if value < 0 else 'higher'}{mark} than {other}"


def _with_unit(value: float, metric: str) -> str:
    return f"{labels.number(value, metric)} {METRICS[metric].unit}".strip()
