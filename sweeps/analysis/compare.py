"""Two studies cell by cell: what differs, what set it apart, and whether a conclusion changed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from pm25.errors import InputError
from pm25.metrics import METRICS
from sweeps.analysis import comparability, labels
from sweeps.spec.study import Study
from sweeps.store.records import Record

PLACE = ["arm", "split", "regime", "fold", "seed"]
"""What a cell is, whatever its key: cells of two studies with the same place are a pair."""

EQUAL, WITHIN, DIFFERS = "equal", "within tolerance", "differs"
PAIRED = (EQUAL, WITHIN, DIFFERS)
"""Outcomes of a pair that is done in both studies."""
FAILED = ("failed in A", "failed in B")
"""Of one that is done in the other."""
ONE = ("only A", "only B")
"""Of a cell that the other has not run, or does not ask for."""

CELLS_SHOWN = 12
CAUSES_SHOWN = 3
CHANGES_SHOWN = 3

_CONTRAST = ["arm", "other", "split", "part", "regime", "metric", "fold"]
_OF_A_CONTRAST = ["diff", "low", "high", "p_adjusted", "declared", "n_pairs", "verdict"]
_OF_A_CLAIM = ["split", "part", "metric", "diff", "p_adjusted", "n_pairs", "verdict"]


class Inferred(NamedTuple):
    """What a study concludes."""

    metric: str
    """The one that its contrasts are about."""
    contrasts: pd.DataFrame
    """Arms against 'none', and the pairs of the claims (`inference.contrasts`)."""
    claims: pd.DataFrame
    """The verdict on every claim (`inference.claims`)."""


class StudyResults(NamedTuple):
    """One of the two studies."""

    name: str
    rows: pd.DataFrame
    """One row per cell (`results.rows`)."""
    records: Mapping[str, Record]
    """Of the cells that have ended, by key (`State.records`)."""
    inferred: Inferred


@dataclass(frozen=True)
class Comparison:
    """What came of comparing study A with study B; values are A's, then B's."""

    names: tuple[str, str]
    metric: str
    tolerance: float
    """In ug/m3, of the RMSE."""
    cells: pd.DataFrame
    """`cells`."""
    conclusions: pd.DataFrame
    """`conclusions`."""
    claims: pd.DataFrame
    """`claims`."""
    ranks: pd.DataFrame
    """`ranks`."""

    @property
    def changed(self) -> bool:
        """Whether a cell differs by more than the tolerance, failed in one study, or a verdict changed."""
        worse = self.cells["outcome"].isin([DIFFERS, *FAILED])
        return bool(worse.any() or self.conclusions["changed"].any() or self.claims["changed"].any())

    @property
    def verdicts(self) -> list[str]:
        """Every verdict that changed, in words, those on claims first."""
        claims = self.claims[self.claims["changed"]]
        said = [f"claim '{line.claim}': {line.verdict_a} -> {line.verdict_b}" for line in claims.itertuples()]
        for line in self.conclusions[self.conclusions["changed"]].to_dict("records"):
            said.append(f"{_contrast(line)}: {line['verdict_a']} -> {line['verdict_b']}")
        return said

    def causes(self, *outcomes: str) -> list[str]:
        """What sets the pairs of these outcomes apart, a line for each part of their records."""
        return comparability.summary(list(self.cells.loc[self.cells["outcome"].isin(outcomes), "apart"]))

    @property
    def headline(self) -> str:
        """The whole in one line."""
        counts = self.cells["outcome"].value_counts()
        equal, within, differ = (int(counts.get(outcome, 0)) for outcome in PAIRED)
        said = f"{equal} of {equal + within + differ} cells equal to the last digit"
        if within:
            more = "differs" if within == 1 else "differ"
            said += f", {within} {more} by no more than {self.tolerance:g} µg/m³ in RMSE"
        if differ:
            said += f", {differ} {'differs' if differ == 1 else 'differ'}"
            said += " by more" if self.tolerance else ""
        if within + differ:
            said += f": {self._briefly(WITHIN, DIFFERS)}"
        for outcome in FAILED:
            if failed := int(counts.get(outcome, 0)):
                said += f"; {failed} {outcome} only"
        changed = self.verdicts
        if not changed:
            return f"{said}; no conclusion changed"
        more = f"; and {len(changed) - CHANGES_SHOWN} more" if len(changed) > CHANGES_SHOWN else ""
        count = f"{len(changed)} conclusion{'s' * (len(changed) > 1)} changed"
        return f"{said}; {count}: {'; '.join(changed[:CHANGES_SHOWN])}{more}"

    def _briefly(self, *outcomes: str) -> str:
        pairs = self.cells.loc[self.cells["outcome"].isin(outcomes), "apart"]
        texts = [found[0] for found in comparability.by_name(pairs).values()]
        texts = [text for text in texts if not text.startswith(_FOLLOWS)] or texts
        if not texts:
            return "nothing that is recorded sets them apart"
        more = f" and {len(texts) - CAUSES_SHOWN} more" if len(texts) > CAUSES_SHOWN else ""
        return ", ".join(texts[:CAUSES_SHOWN]) + more

    @property
    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        cells = self.cells
        counts = cells["outcome"].value_counts().to_dict()
        unequal = _listed(cells[cells["outcome"] != EQUAL])
        return {
            "a": self.names[0],
            "b": self.names[1],
            "metric": self.metric,
            "tolerance_ugm3": self.tolerance,
            "changed": self.changed,
            "headline": self.headline,
            "cells": {
                "total": len(cells),
                "done_in_both": int(cells["outcome"].isin(PAIRED).sum()),
                "same_key": int(cells["same_key"].sum()),
                "outcomes": counts,
            },
            "apart": {outcome: found for outcome in PAIRED if (found := self.causes(outcome))},
            "unequal": [_unequal_cell(line) for line in unequal],
            "verdicts_changed": self.verdicts,
            "conclusions": _listed(self.conclusions),
            "claims": _listed(self.claims),
            "ranks": _listed(self.ranks),
        }


def inferred(study: Study, rows: pd.DataFrame) -> Inferred:
    """What a study's own analysis concludes from its rows."""
    from sweeps.analysis import inference

    analysis, declared, looks = study.analysis, study.claims, study.design.looks
    contrasts = inference.contrasts(rows, analysis, declared, analysis.metric, looks=looks)
    return Inferred(analysis.metric, contrasts, inference.claims(rows, analysis, declared, looks=looks))


def compare(a: StudyResults, b: StudyResults, tolerance: float = 0.0) -> Comparison:
    """Compare two studies; `tolerance` is in ug/m3 of RMSE.

    Raises InputError where they have nothing in common, or judge by different metrics.
    """
    metrics = a.inferred.metric, b.inferred.metric
    if metrics[0] != metrics[1]:
        fix = f"give both one with --set analysis.metric={metrics[0]}"
        raise InputError(f"analysis.metric: {metrics[0]} in {a.name}, {metrics[1]} in {b.name}; {fix}")
    pairs = cells(a, b, tolerance)
    if not pairs["outcome"].isin([*PAIRED, *FAILED]).any():
        raise InputError(
            f"{a.name}, {b.name}: no cell has ended in both, by arm, split, fold and seed; `sweep run` them"
        )
    return Comparison(
        (a.name, b.name),
        metrics[0],
        tolerance,
        pairs,
        conclusions(a.inferred.contrasts, b.inferred.contrasts),
        claims(a.inferred.claims, b.inferred.claims),
        ranks(pairs, metrics[0]),
    )


def cells(a: StudyResults, b: StudyResults, tolerance: float = 0.0) -> pd.DataFrame:
    """One row per place of either study: those of A in its order, then those of B alone.

    Columns: those of `PLACE`; outcome ('equal': every metric that both have is bitwise equal; 'within
    tolerance': the test and WR RMSE are equal or differ by no more than `tolerance`, in ug/m3; 'differs';
    'failed in A' or 'failed in B', done in the other; 'only A' or 'only B' is done; 'neither'); same_key,
    key_a, key_b; state_a and state_b ('done', 'failed', 'missing', 'not planned'); error_a, error_b; differ
    (the metrics that do) and apart (what sets the two records apart, A's value against B's), joined by
    '; '; then of every metric its two values and, as `<metric>_diff`, B - A.
    """
    metrics = dict.fromkeys(
        name for side in (a, b) for record in side.records.values() for name in record.get("metrics", {})
    )
    told = ["key", "state", "error", *metrics]
    frame = _beside(labels.with_arm(a.rows), labels.with_arm(b.rows), PLACE, told)
    for side in ("a", "b"):
        frame[f"state_{side}"] = frame[f"state_{side}"].fillna("not planned")
        key = frame[f"key_{side}"]
        frame[f"key_{side}"] = key.where(key.ne(""))  # of an arm that is still searched
    frame = frame.astype({"fold": "int64", "seed": "int64"})
    lines = [_pair(a, b, line, tolerance) for line in frame.to_dict("records")]
    found = pd.DataFrame(lines, columns=["outcome", "same_key", "differ", "apart"], index=frame.index)
    moved = {f"{name}_diff": frame[f"{name}_b"] - frame[f"{name}_a"] for name in metrics}
    frame = pd.concat([frame, found, pd.DataFrame(moved)], axis="columns")
    first = ["outcome", "same_key"]
    sides = [f"{name}_{side}" for name in ("key", "state", "error") for side in ("a", "b")]
    values = [f"{name}_{which}" for name in metrics for which in ("a", "b", "diff")]
    return frame[[*PLACE, *first, *sides, "differ", "apart", *values]]


def _pair(
    a: StudyResults, b: StudyResults, line: Mapping[Any, Any], tolerance: float
) -> tuple[str, bool, str, str]:
    states = line["state_a"], line["state_b"]
    same = bool(line["key_a"] == line["key_b"])
    if states != ("done", "done"):
        return _unpaired(*states), same, "", ""
    first, second = a.records[line["key_a"]], b.records[line["key_b"]]
    differ = _unequal(first["metrics"], second["metrics"])
    outcome = EQUAL
    if differ:
        moved = [abs(line[f"{name}_a"] - line[f"{name}_b"]) for name in differ if name in _JUDGED]
        # Undefined on one side only is NaN here, and no difference that a tolerance covers.
        outcome = WITHIN if tolerance and all(move <= tolerance for move in moved) else DIFFERS
    return outcome, same, "; ".join(differ), "; ".join(apart(first, second))


_JUDGED = ("test_rmse", "wr_rmse")


def _unpaired(state_a: str, state_b: str) -> str:
    if "done" not in (state_a, state_b):
        return "neither"
    other, mine, theirs = (state_b, "A", "B") if state_a == "done" else (state_a, "B", "A")
    return f"failed in {theirs}" if other == "failed" else f"only {mine}"


def _unequal_cell(line: Mapping[Any, Any]) -> dict[str, Any]:
    """A line of `cells` as JSON has it, with the metrics that differ."""
    sides = [f"{name}_{side}" for name in ("key", "state", "error") for side in ("a", "b")]
    return {
        **{name: line[name] for name in (*PLACE, "outcome", "same_key", *sides)},
        "apart": line["apart"].split("; ") if line["apart"] else [],
        "metrics": {
            name: {side: line[f"{name}_{side}"] for side in ("a", "b")}
            for name in (line["differ"].split("; ") if line["differ"] else [])
        },
    }


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Metrics of both that are not bitwise equal: `repr` of a float reads back as the same bits."""
    return [name for name in a if name in b and repr(a[name]) != repr(b[name])]


def apart(a: Record, b: Record) -> list[str]:
    """What sets the records of two done cells apart, as 'torch 2.12.0 against 2.13.0'.

    Causes first: settings (those that a search chose too), data, encoder, numerics, device, threads,
    versions; then the commit; then what follows from them, sample counts and the audit's findings.
    """
    found = comparability.differences(a, b)
    texts = [*found.undeclared, *found.tuned]
    follows = [text for text in texts if text.startswith(_FOLLOWS)]
    commits = [_commit(record) for record in (a, b)]
    code = [f"commit {commits[0]} against {commits[1]}"] if commits[0] != commits[1] else []
    return [_FINGERPRINT.sub(r"\1", t) for t in [*(t for t in texts if t not in follows), *code, *follows]]


_FOLLOWS = ("audit", "n_")
"""What a record says of its samples: a consequence of settings and data."""

_FINGERPRINT = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")
"""Long hexadecimal digests are told by their first digits."""


def _commit(record: Record) -> str:
    if "commit" not in record:
        return "not recorded"
    return record["commit"][:12] + (" with changed files" if record.get("dirty") else "")


def conclusions(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The contrasts of both studies side by side, one line for each that either has.

    Columns: arm, other, split, part, regime, metric, fold; diff (arm - other), low, high, p_adjusted,
    declared, n_pairs and verdict of A (`_a`) and of B (`_b`), empty where a study has no such contrast;
    changed: both have it with other verdicts; turned: the differences have opposite signs.
    """
    frame = _beside(a, b, _CONTRAST, _OF_A_CONTRAST)
    turned = frame["diff_a"].astype("float64") * frame["diff_b"].astype("float64") < 0
    return frame.assign(changed=_changed(frame), turned=turned)


def claims(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The claims of both studies side by side; columns as of `conclusions`, by the claim's words."""
    a, b = (frame.reindex(columns=["claim", *_OF_A_CLAIM]) for frame in (a, b))
    a, b = (frame.assign(nth=frame.groupby("claim").cumcount()) for frame in (a, b))
    frame = _beside(a, b, ["claim", "nth"], _OF_A_CLAIM).drop(columns="nth")
    return frame.assign(changed=_changed(frame))


def ranks(pairs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Arms by their mean over the cells that are done in both studies, best first, per split and part.

    Columns: split, part ('test'; 'wr' of out-of-region splits), arm, n (cells), mean_a, mean_b, rank_a,
    rank_b, changed. Only arms that have every cell of the split that any arm has are ranked.
    """
    lines = []
    for part in ("test", "wr"):
        if f"{part}_{metric}_diff" not in pairs:
            continue
        both = pairs[pairs[f"{part}_{metric}_diff"].notna()]
        if part == "wr":
            both = both[both["regime"] == labels.OOR]
        for split, group in both.groupby("split", sort=False):
            places = len(group[["fold", "seed"]].drop_duplicates())
            means = group.groupby("arm", sort=False).agg(
                n=("fold", "size"),
                mean_a=(f"{part}_{metric}_a", "mean"),
                mean_b=(f"{part}_{metric}_b", "mean"),
            )
            means = means[means["n"] == places]
            for side in ("a", "b"):
                order = means[f"mean_{side}"].rank(method="min", ascending=metric != "r2")
                means[f"rank_{side}"] = order.astype("int64")
            lines.append(means.reset_index().assign(split=split, part=part))
    names = ["split", "part", "arm", "n", "mean_a", "mean_b", "rank_a", "rank_b"]
    frame = pd.concat(lines)[names] if lines else pd.DataFrame(columns=names)
    return frame.assign(changed=frame["rank_a"] != frame["rank_b"]).reset_index(drop=True)


def terminal(found: Comparison) -> None:
    """Print the headline, what sets the cells apart, then tables of what is not equal."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 120  # a log has no width of its own
    for line in _lines(found):
        console.print(Text(line), soft_wrap=True)
    for grid in _grids(found):
        console.print(grid)


def _lines(found: Comparison) -> Iterator[str]:
    yield found.headline
    cells = found.cells
    for side, name in zip("ab", found.names, strict=True):
        yield f"  {side.upper()}  {name}: {_counted(cells[f'state_{side}'], ('done', 'failed', 'missing'))}"
    for outcome in (*ONE, *FAILED):
        some = cells[cells["outcome"] == outcome]
        if len(some):
            other = "b" if outcome in ("only A", "failed in B") else "a"
            reasons = some[f"{'error' if outcome in FAILED else 'state'}_{other}"]
            there = "" if outcome in FAILED else f" in {other.upper()}"
            arms = _shortened([*dict.fromkeys(some["arm"])])
            yield f"  {outcome}: {arms} ({_counted(reasons, reasons.unique())}{there})"
    done = cells[cells["outcome"].isin(PAIRED)]
    same = int(done["same_key"].sum())
    yield f"  {same} of {len(done)} pairs have one key: equal settings, data, encoder and numerics"
    for outcomes, said in (((WITHIN, DIFFERS), "differ"), ((EQUAL,), "are equal")):
        if causes := found.causes(*outcomes):
            yield f"  between the pairs that {said}"
            yield from (f"    {cause}" for cause in causes)
    turned = int((found.conclusions["turned"] & ~found.conclusions["changed"]).sum())
    if turned:
        yield f"  differences between arms with another sign, and the same verdict: {turned}"


def _counted(values: pd.Series, of: Iterable[str]) -> str:
    counts = values.value_counts()
    return ", ".join(f"{counts[value]} {value}" for value in of if value in counts)


def _grids(found: Comparison) -> Iterator[Any]:
    from rich.table import Table
    from rich.text import Text

    def grid(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]], bold: Sequence[bool]) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold")
        for head in heads:
            made.add_column(head)
        for line, strong in zip(lines, bold, strict=True):
            made.add_row(*(Text(text) for text in line), style="bold" if strong else "")
        return made

    cells = found.cells[found.cells["outcome"].isin([WITHIN, DIFFERS])]
    if len(cells):
        order = cells["test_rmse_diff"].abs().sort_values(ascending=False, kind="stable").index
        shown = cells.loc[order[:CELLS_SHOWN]].to_dict("records")
        within = "wr_rmse_diff" in cells and cells["wr_rmse_diff"].notna().any()
        yield grid(
            f"Cells that differ, the farthest first ({len(shown)} of {len(cells)}): test RMSE, µg/m³",
            ["arm", "split", "fold", "seed", "A", "B", "B − A", *(["WR B − A"] if within else [])],
            [
                (
                    *(str(line[name]) for name in ("arm", "split", "fold", "seed")),
                    *(_number(line[f"test_rmse_{side}"], "rmse") for side in ("a", "b")),
                    _small(line["test_rmse_diff"]),
                    *([_small(line["wr_rmse_diff"])] if within else []),
                )
                for line in shown
            ],
            [line["outcome"] == DIFFERS for line in shown],
        )
    told = found.conclusions
    told = told[told["changed"] | (told["diff_a"].fillna(math.inf) != told["diff_b"].fillna(math.inf))]
    if len(told):
        metric = found.metric
        yield grid(
            f"Differences between arms that are not equal: {METRICS[metric].title}",
            ["arm", "against", "split", "part", "A", "B", "verdict A", "verdict B"],
            [
                (
                    *(str(line[name]) for name in ("arm", "other")),
                    line["split"] if pd.isna(line["fold"]) else f"{line['split']} fold {line['fold']}",
                    line["part"],
                    *(_number(line[f"diff_{side}"], metric, sign=True) for side in ("a", "b")),
                    *(_text(line[f"verdict_{side}"]) for side in ("a", "b")),
                )
                for line in told.to_dict("records")
            ],
            told["changed"].tolist(),
        )
    if len(found.claims):
        yield grid(
            "Claims",
            ["claim", "A", "B"],
            [
                (line["claim"], *(_text(line[f"verdict_{side}"]) for side in ("a", "b")))
                for line in found.claims.to_dict("records")
            ],
            found.claims["changed"].tolist(),
        )
    moved = found.ranks[found.ranks["changed"]]
    if len(moved):
        yield grid(
            f"Ranks that changed: mean {METRICS[found.metric].title} of the cells done in both",
            ["split", "part", "arm", "A", "B", "rank A", "rank B"],
            [
                (
                    *(str(line[name]) for name in ("split", "part", "arm")),
                    *(_number(line[f"mean_{side}"], found.metric) for side in ("a", "b")),
                    *(str(line[f"rank_{side}"]) for side in ("a", "b")),
                )
                for line in moved.to_dict("records")
            ],
            [False] * len(moved),
        )


def _contrast(line: Mapping[Any, Any]) -> str:
    """'GeoCLIP · Hadamard against none on random (test)'."""
    fold = "" if pd.isna(line["fold"]) else f" fold {line['fold']}"
    return f"{line['arm']} against {line['other']} on {line['split']}{fold} ({line['part']})"


def _beside(a: pd.DataFrame, b: pd.DataFrame, on: list[str], told: list[str]) -> pd.DataFrame:
    """Lines that agree in `on` side by side, columns `told` as `_a` and `_b`: A's in order, then B's."""
    a, b = (frame.reindex(columns=[*on, *told]).astype(dict.fromkeys(on, "object")) for frame in (a, b))
    both = a.assign(line=range(len(a))).merge(
        b.assign(line=range(len(b))), on=on, how="outer", suffixes=("_a", "_b"), validate="one_to_one"
    )
    return both.sort_values(["line_a", "line_b"]).drop(columns=["line_a", "line_b"]).reset_index(drop=True)


def _changed(frame: pd.DataFrame) -> pd.Series:
    there = frame["verdict_a"].notna() & frame["verdict_b"].notna()
    return there & (frame["verdict_a"] != frame["verdict_b"])


def _listed(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """The lines as JSON has them: what is not there is null."""
    return frame.astype("object").where(frame.notna(), None).to_dict("records")


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - CAUSES_SHOWN} more arms" if len(names) > CAUSES_SHOWN else ""
    return ", ".join(names[:CAUSES_SHOWN]) + more


def _number(value: Any, metric: str, sign: bool = False) -> str:
    return labels.number(math.nan if pd.isna(value) else float(value), metric, sign)


def _small(value: float) -> str:
    """A difference, however small, with its order of magnitude."""
    return "–" if math.isnan(value) else f"{value:+.2g}" if value else "0"


def _text(value: Any) -> str:
    return "–" if pd.isna(value) else str(value)
