"""Answer of the study in at most three sentences made from its numbers, and cautions for the reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import METRICS
from pm25.settings import REFERENCES
from pm25.text import counted
from sweeps.analysis import comparability, estimands, labels
from sweeps.analysis.declarations import History, shown_time
from sweeps.analysis.labels import is_control
from sweeps.report import tables
from sweeps.store.records import TUNED_ON_TEST

if TYPE_CHECKING:
    from sweeps.report.data import ReportData

AT_THESE_MONITORS = estimands.of("random").name
"""Estimand of the random split, whose result says nothing about places without a monitor."""
_OTHER_PLACES = estimands.of("spatial").name
_FLIPPED = {"better": "worse", "worse": "better"}
_FIRST = (_OTHER_PLACES, AT_THESE_MONITORS, estimands.of("checkerboards").name)
"""Estimands that a sentence is about, the most telling one first; others come later."""
WORDS = {"equal": "equivalent", "too few": "not tested"}
"""Verdicts whose word in texts is another one than in files."""
NO_SPATIAL = "spatial: not planned"
"""Text beside a result at these monitors in a study without a spatial split."""
Line = Mapping[Any, Any]
"""Row of `inference.contrasts`, by column."""


def answer(report: ReportData) -> list[str]:
    """Return the answer in at most three sentences: within region, out of region, and what is open."""
    lines = [line for line in against_none_by_place(report.contrasts[report.metric]) if _is_test(line)]
    found = []
    for regime, title in ((labels.WR, "Within region"), (labels.OOR, "Out of region")):
        if of_regime := [line for line in lines if line["regime"] == regime]:
            found.append(_regime(title, of_regime, report))
    if not lines and len(report.rows):
        found.append(_nothing_to_compare(report))
    return [*found, _open(report)]


def _is_test(line: Line) -> bool:
    return bool(line["part"] == "test")


def _regime(title: str, lines: Sequence[Line], report: ReportData) -> str:
    """Return a sentence on the best arm of a regime; its numbers are in brackets."""
    paired = [line for line in lines if line["n_pairs"]]
    if not paired:
        return f"{title}, no two arms can be compared yet."
    tested = [line for line in paired if line["verdict"] != "too few"] or paired
    preferred = [line for line in tested if line["declared"]] or tested
    means = report.means[report.metric]
    preferred = [line for line in preferred if not is_control(line["arm"], means)] or preferred
    place = min(preferred, key=lambda line: _order(line["estimand"]))["split"]
    candidates = [line for line in preferred if line["split"] == place]
    best = max(candidates, key=lambda line: (line["verdict"] == "better", _gain(line)))
    beside = [
        f"{labels.split_title(line['split'])}: {verdict(line)}"
        for line in paired
        if line["arm"] == best["arm"] and line["split"] != place
    ]
    if other_places(best, lines) == NO_SPATIAL:
        beside.append(NO_SPATIAL)
    numbers = f"{place}: {_numbers(best, report.analysis.alpha)}"
    return f"{_finding(best)} ({'; '.join([numbers, *beside])})."


def _order(estimand: str) -> int:
    return _FIRST.index(estimand) if estimand in _FIRST else len(_FIRST)


def _gain(line: Line) -> float:
    """Return by how much the arm is better; for a bias, the difference that is nearer to zero."""
    better = METRICS[str(line["metric"])].better
    if better == "nearer zero":
        return abs(line["mean_other"]) - abs(line["mean_arm"])
    return float(line["diff"] if better == "higher" else -line["diff"])


def _finding(line: Line) -> str:
    """Return the verdict of a contrast as a sentence without its numbers."""
    arm, predictions = f"'{line['arm']}'", f"predictions for {line['estimand']}"
    if line["verdict"] == "too few":
        word = "better" if _gain(line) > 0 else "worse"
        return f"With {arm}, {predictions} are {word} than without location so far, and this was not tested"
    said = {
        "better": f"With {arm}, {predictions} are better than without location",
        "worse": f"With {arm}, {predictions} are worse than without location",
        "equal": f"With {arm}, {predictions} are as good as without location",
    }.get(str(line["verdict"]), f"It is undecided whether {predictions} are better with {arm}")
    return said if line["declared"] else f"{said}, in a comparison that was not declared"


def other_places(line: Line, lines: Iterable[Line]) -> str:
    """Return what the spatial splits say about an arm that is better at these monitors; empty otherwise.

    A random split has training samples of every monitor. An arm can be better on it by knowing the monitor.
    """
    if line["estimand"] != AT_THESE_MONITORS or line["verdict"] != "better":
        return ""
    found = [
        f"{one['split']}: {verdict(one)} {_signed(one)}"
        for one in lines
        if one["estimand"] == _OTHER_PLACES
        and (one["arm"], one["other"], one["metric"]) == (line["arm"], line["other"], line["metric"])
    ]
    return ", ".join(dict.fromkeys(found)) or NO_SPATIAL


def _signed(line: Line) -> str:
    return tables.minus(labels.number(line["diff"], str(line["metric"]), sign=True))


def verdict(line: Line) -> str:
    """Return the word for a contrast's verdict; a tested contrast that was not declared is exploratory."""
    if not line["n_pairs"]:
        return "no pairs"
    if line["verdict"] != "too few" and not line["declared"]:
        return "exploratory"
    return WORDS.get(line["verdict"], str(line["verdict"]))


def against_none_by_place(frame: pd.DataFrame) -> list[Line]:
    """Return the contrasts of every arm with 'none' over all folds, by split and evaluation set."""
    frame = frame[frame["fold"].isna() & (frame["part"] != "gap")]
    return [
        line
        for _, group in frame.groupby(["split", "part"], sort=False)
        for line in against_none(group.to_dict("records"))
    ]


def cautions(report: ReportData) -> list[str]:
    """Return what a reader must know: references, declarations, failed audits, confounded contrasts."""
    found = [*references(report), *_declarations(report.declarations)]
    means = report.means[report.metric]
    test_means = means[means["part"] == "test"]
    if audit_failed := int(test_means["n_marked"].sum()):
        found.append(
            f"{counted(audit_failed, 'cell')} failed the leakage audit; {tables.AUDIT_FAILED} marks every "
            "mean that includes one."
        )
    if tuned_on_test := int(report.rows["marked"].str.contains(TUNED_ON_TEST, regex=False).sum()):
        found.append(
            f"The search of {counted(tuned_on_test, 'cell')} used samples of their test sets. Comparisons of "
            "these cells are exploratory, and claims about them are not judged. search.reserve or "
            "search.nested prevents it."
        )
    contrasts = report.contrasts[report.metric]
    paired = contrasts[(contrasts["n_pairs"] > 0) & (contrasts["part"] == "test") & contrasts["fold"].isna()]
    if confounded := int((paired["unfair"] != "").sum()):
        found.append(
            f"{confounded} of {counted(len(paired), 'contrast')} are confounded ({tables.CONFOUNDED}): their "
            "arms differ in more than the declared factor."
        )
    if changed := [line for line in declared(report).to_dict("records") if changes(line)]:
        words = [
            f"'{line['arm']}' against '{line['other']}' on {line['split']} by {METRICS[line['metric']].name} "
            f"({_word(line['verdict'])}, then {_word(line['without_verdict'])}, without {line['without']})"
            for line in changed
        ]
        found.append(
            f"Without the most influential episode, {counted(len(changed), 'declared comparison')} would "
            f"have another verdict: {'; '.join(words)}."
        )
    if tuned := comparability.by_name(labels.measured(report.rows)["tuned"]):
        found.append(
            f"A search chose these settings for each arm, so they may differ from those of 'none': "
            f"{', '.join(sorted(tuned))}."
        )
    return [*found, *_known_truth(report)]


def references(report: ReportData) -> list[str]:
    """Return what the best reference and the best arm reach, and where no arm is better than a reference.

    Only arms and references with all their cells on a split are compared. Empty without such a reference.
    """
    means = report.means[report.metric]
    if not means["variant"].isin(REFERENCES).any():
        return []
    reached, lost = [], []
    for split, lines in means[means["part"] == "test"].groupby("split", sort=False):
        ranked = labels.complete(lines)
        arms = labels.without_references(ranked)
        others = ranked.drop(arms.index)
        if arms.empty or others.empty:
            continue
        best, other = arms.iloc[0], others.iloc[0]
        numbers = (labels.number(one["mean"], report.metric) for one in (other, best))
        name, (first, second) = str(other["arm"]).removeprefix("reference: "), map(tables.minus, numbers)
        reached.append(f"on {split}, {name} reaches {first} and '{best['arm']}' {second}")
        value = labels.merit(pd.Series([best["mean"], other["mean"]]), report.metric)
        lost += [str(split)] if value[0] < value[1] else []
    if not reached:
        return []
    metric = METRICS[report.metric]
    unit = f" ({metric.unit})" if metric.unit else ""
    found = [f"{metric.name}{unit} of the best reference and of the best arm: {'; '.join(reached)}."]
    return found + ([f"The best arm is worse than a reference on {', '.join(lost)}."] if lost else [])


def _known_truth(report: ReportData) -> list[str]:
    """Return the sentence that compares the verdicts with the truth of the claims whose truth is known."""
    truths = {claim.claim: claim.truth for claim in report.declared if claim.truth is not None}
    if not truths or report.claims.empty:
        return []
    frame = report.claims[report.claims["claim"].isin(list(truths))]
    right = {True: "supported", False: "refuted"}
    agrees = sum(right[truths[line["claim"]]] == line["verdict"] for line in frame.to_dict("records"))
    against = int(frame["verdict"].isin([*right.values()]).sum()) - agrees
    still_open = len(frame) - agrees - against
    return [
        f"The truth of {counted(len(frame), 'claim')} is known. Of the verdicts, {agrees} agree with it, "
        f"{against} contradict it, and {still_open} leave it open."
    ]


def data_line(report: ReportData) -> str:
    """Return the data of the study in one line; empty if they are not known."""
    facts = report.facts
    if "observed" not in facts:
        return ""
    name = "a synthetic panel" if facts.get("synthetic") else str(facts["table"])
    return (
        f"Data: {name}, {counted(facts['sites'], 'site')}, {facts['first_day']} to {facts['last_day']}, "
        f"{facts['observed']:,} daily observations."
    )


CHANGES_SHOWN = 3
"""Most changes that the sentence about declarations lists; the table of claims has all of them."""


def _declarations(history: History | None) -> list[str]:
    """Return the sentence on when the comparisons were declared, and on what changed since."""
    if history is None or not history.results:
        return []
    if history.reference is None:
        return [
            "No declaration was stored before the first result, so it is not known whether these comparisons "
            "were declared before."
        ]
    when = shown_time(history.reference.time)
    start = f"Comparisons and analysis settings were declared before the first result ({when})"
    if not history.reference.first:
        start = (
            f"The first declaration was stored after results ({when}), so it is not known whether these "
            "comparisons were declared before"
        )
    if not history.changes:
        return [f"{start}."]
    more = len(history.changes) - CHANGES_SHOWN
    changes = "; ".join(history.changes[:CHANGES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    exploratory = sum(status.exploratory for status in history.contrasts.values())
    effect = f" Exploratory for this reason: {counted(exploratory, 'comparison')}." if exploratory else ""
    return [f"{start}. Changed since: {changes}.{effect}"]


def changes(line: Line) -> bool:
    """Return True if a contrast has another verdict without its most influential episode."""
    return bool(line["without"]) and line["without_verdict"] != line["verdict"]


def _word(verdict: Any) -> str:
    return WORDS.get(verdict, str(verdict))


def declared(report: ReportData) -> pd.DataFrame:
    """Return the declared contrasts, for every metric that claims are about."""
    frames = [frame[frame["declared"]] for frame in report.contrasts.values()]
    return pd.concat(frames, ignore_index=True)


def splits_of(means: pd.DataFrame, regime: str, part: str) -> list[str]:
    """Return the splits of a regime that have an evaluation set, by first appearance."""
    return list(dict.fromkeys(means.loc[(means["regime"] == regime) & (means["part"] == part), "split"]))


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
        "low": -line["high"],
        "high": -line["low"],
        "p_better": line["p_worse"],
        "p_worse": line["p_better"],
        "n_better": line["n_pairs"] - line["n_better"],
        "verdict": _FLIPPED.get(line["verdict"], line["verdict"]),
        "without_diff": -line["without_diff"],
        "without_low": -line["without_high"],
        "without_high": -line["without_low"],
        "without_verdict": _FLIPPED.get(line["without_verdict"], line["without_verdict"]),
    }


def _numbers(line: Line, alpha: float) -> str:
    """Return the difference of a contrast in words, with its interval, p and margin of equivalence."""
    metric = str(line["metric"])
    mark = tables.CONFOUNDED if line["unfair"] else ""
    share = ""
    if METRICS[metric].relative_rope and line["mean_other"]:
        share = f" or {abs(line['diff'] / line['mean_other']):.1%}"
    found = [f"{METRICS[metric].name} {_amount(line['diff'], metric, share)}{mark}"]
    if line["verdict"] != "too few":
        interval = tables.interval(line["low"], line["high"], metric, sign=True)
        found += [f"{1 - alpha:.0%} interval {interval}", _p(line)]
    else:
        found.append(str(line["untested"]))
    if line["verdict"] == "equal":
        found.append(f"margin {_with_unit(line['rope'], metric)}")
    return ", ".join(found)


def _nothing_to_compare(report: ReportData) -> str:
    arms = list(dict.fromkeys(labels.with_arm(labels.without_references(report.rows))["arm"]))
    if labels.BASELINE in arms:
        return "The study has no arm besides 'none', so there is nothing to compare."
    return "The study has no arm 'none', so it cannot say whether the location helps."


def _open(report: ReportData) -> str:
    """Return a sentence with the number of declared comparisons by verdict, and of cells that are missing."""
    family = declared(report)
    cells = _cells(report.rows["state"])
    if family.empty:
        return f"No comparison was declared, so every result is exploratory ({cells})."
    counts = family["verdict"].value_counts()
    kinds = ("better", "worse", "equal", "undecided", "too few")
    listed = [f"{counts[kind]} {WORDS.get(kind, kind)}" for kind in kinds if counts.get(kind, 0)]
    if without := len(family) - sum(counts.get(kind, 0) for kind in kinds):
        listed.append(f"{without} without a better direction")
    decided = sum(int(counts.get(kind, 0)) for kind in kinds[:3])
    be = "is" if decided == 1 else "are"
    return f"{decided} of {len(family)} declared comparisons {be} decided ({', '.join(listed)}; {cells})."


def _cells(states: pd.Series) -> str:
    """Return the cells by state."""
    counts, total = states.value_counts(), len(states)
    absent = [
        f"{counts[state]} {state}" for state in ("failed", "missing", "damaged") if counts.get(state, 0)
    ]
    done = f"{counts.get('done', 0)} of {counted(total, 'cell')} done"
    return ", ".join([done, *absent])


def _p(line: Line) -> str:
    """Return the p-value of a contrast, and its adjustment."""
    if not line["declared"]:
        return f"p = {tables.p_value(line['p'])}, not adjusted".replace("= <", "< ")
    return f"p = {tables.p_value(line['p_adjusted'])} after Holm".replace("= <", "< ")


def _amount(value: float, metric: str, share: str = "") -> str:
    """Return a difference in words, such as "0.39 µg/m³ lower"."""
    if float(labels.number(value, metric)) == 0:
        return f"the same to {_with_unit(10.0 ** -METRICS[metric].digits, metric)}"
    return f"{_with_unit(abs(value), metric)}{share} {'lower' if value < 0 else 'higher'}"


def _with_unit(value: float, metric: str) -> str:
    return f"{labels.number(value, metric)} {METRICS[metric].unit}".strip()
