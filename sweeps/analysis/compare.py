"""Comparison of two studies: cells that differ, their causes, and conclusions that changed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from pm25.errors import InputError
from pm25.metrics import METRICS
from pm25.text import counted
from sweeps.analysis import comparability, labels
from sweeps.spec.study import Study
from sweeps.store.records import Record, Store

PLACE = ["arm", "split", "regime", "fold", "seed"]
"""Columns that match the cells of two studies, whatever their keys."""

EQUAL, WITHIN, DIFFERS = "equal", "within tolerance", "differs"
PAIRED = (EQUAL, WITHIN, DIFFERS)
"""Outcomes of a cell that is done in both studies."""
FAILED = ("failed in A", "failed in B", "damaged in A", "damaged in B")
"""Outcomes of a cell that failed or is damaged in one study, and is done in the other."""
ONE = ("only A", "only B")
"""Outcomes of a cell that the other study has not run, or does not ask for."""

CELLS_SHOWN = 12
CAUSES_SHOWN = 3
CHANGES_SHOWN = 3

_CONTRAST = ["arm", "other", "split", "part", "regime", "metric", "fold"]
_TEST_VALUES = ["estimand", "unit", "n_units", "df", "test"]
_CONTRAST_VALUES = ["diff", "low", "high", "p_adjusted", "declared", "n_pairs", *_TEST_VALUES, "verdict"]
_CLAIM_VALUES = ["split", "part", "metric", "diff", "p_adjusted", "n_pairs", *_TEST_VALUES, "verdict"]


class Inferred(NamedTuple):
    """Conclusions of a study."""

    metric: str
    """Metric of its contrasts."""
    contrasts: pd.DataFrame
    """Contrasts with 'none', and those of the claims (`inference.contrasts`)."""
    claims: pd.DataFrame
    """Verdicts on the claims (`inference.claims`)."""


class StudyResults(NamedTuple):
    """Rows, records and conclusions of one study."""

    name: str
    rows: pd.DataFrame
    """Table of results, one row per cell (`results.rows`)."""
    records: Mapping[str, Record]
    """Records of the cells that have ended, by key (`StudyState.records`)."""
    inferred: Inferred


@dataclass(frozen=True)
class Comparison:
    """Result of comparing study A with study B; in pairs of values, A's is first."""

    names: tuple[str, str]
    metric: str
    tolerance: float
    """Largest difference in RMSE (ug/m3) that is tolerated."""
    cells: pd.DataFrame
    """Cells side by side (`cells`)."""
    conclusions: pd.DataFrame
    """Contrasts side by side (`conclusions`)."""
    claims: pd.DataFrame
    """Claims side by side (`claims`)."""
    ranks: pd.DataFrame
    """Ranks of the arms (`ranks`)."""

    @property
    def changed(self) -> bool:
        """True if a cell differs by more than the tolerance or failed in one study, or a verdict changed."""
        worse = self.cells["outcome"].isin([DIFFERS, *FAILED])
        return bool(worse.any() or self.conclusions["changed"].any() or self.claims["changed"].any())

    @property
    def verdicts(self) -> list[str]:
        """Verdicts that changed, in words, those on claims first."""
        claims = self.claims[self.claims["changed"]]
        said = [f"claim '{line.claim}': {line.verdict_a} -> {line.verdict_b}" for line in claims.itertuples()]
        for line in self.conclusions[self.conclusions["changed"]].to_dict("records"):
            said.append(f"{_contrast(line)}: {line['verdict_a']} -> {line['verdict_b']}")
        return said

    def causes(self, *outcomes: str) -> list[str]:
        """Summarise what differs between the records of pairs with these outcomes, one line per name."""
        return comparability.summary(list(self.cells.loc[self.cells["outcome"].isin(outcomes), "apart"]))

    @property
    def headline(self) -> str:
        """The comparison in one line."""
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
        count = f"{counted(len(changed), 'conclusion')} changed"
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
        """The comparison as a JSON object."""
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


def inferred(study: Study, rows: pd.DataFrame, store: Store) -> Inferred:
    """Draw the conclusions of a study from its rows and predictions, by its own analysis settings."""
    from sweeps.analysis import artifacts, declarations, inference
    from sweeps.store import declarations as stored

    analysis, declared = study.analysis, study.claims
    how = artifacts.predictions(store, rows), study.design.looks
    done = int((rows["state"] == "done").sum())
    statuses = declarations.history(stored.read(store), stored.content(study), done, 0).contrasts
    contrasts = inference.contrasts(
        rows, analysis, declared, analysis.metric, *how, statuses=statuses, sensitivity=False
    )
    claims = inference.claims(rows, analysis, declared, *how, statuses=statuses)
    return Inferred(analysis.metric, contrasts, claims)


def compare(a: StudyResults, b: StudyResults, tolerance: float = 0.0) -> Comparison:
    """Compare two studies; `tolerance` is in ug/m3 of RMSE.

    Raises InputError if they have no cell in common, or are judged by different metrics.
    """
    metrics = a.inferred.metric, b.inferred.metric
    both = f"{a.name}, {b.name}"
    if metrics[0] != metrics[1]:
        problem = f"study {a.name} is judged by {metrics[0]}, study {b.name} by {metrics[1]}"
        fix = f"give both studies one metric with --set analysis.metric={metrics[0]}"
        raise InputError(both, "analysis.metric", problem, fix)
    pairs = cells(a, b, tolerance)
    if not pairs["outcome"].isin([*PAIRED, *FAILED]).any():
        problem = "no cell, matched by arm, split, fold and seed, has ended in both studies"
        raise InputError(both, "", problem, "run both studies with `sweep run`")
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
    """Match the cells of two studies: one row per place, those of A in its order, then those of B alone.

    Columns, beside those of `PLACE`:

    - outcome of a cell done in both studies: 'equal' if every metric that both have is bitwise equal;
      'within tolerance' if the test and WR RMSE differ by at most `tolerance` (ug/m3); else 'differs'.
    - outcome of other cells: 'failed in A' or 'failed in B' if the cell is done in the other study, and
      likewise 'damaged in A' or 'damaged in B'; 'only A' or 'only B' if it is done there, and not run in the
      other; else 'neither'.
    - same_key, key_a, key_b; error_a, error_b; state_a, state_b: 'done', 'failed', 'missing', 'damaged', 'not
      planned'.
    - differ: the metrics that differ. apart: what differs between the two records. Both are joined by '; '.
    - of every metric the two values and `<metric>_diff`, B - A.
    """
    metrics = dict.fromkeys(
        name for side in (a, b) for record in side.records.values() for name in record.get("metrics", {})
    )
    values = ["key", "state", "error", *metrics]
    frame = _side_by_side(labels.with_arm(a.rows), labels.with_arm(b.rows), PLACE, values)
    for side in ("a", "b"):
        frame[f"state_{side}"] = frame[f"state_{side}"].fillna("not planned")
        key = frame[f"key_{side}"]
        frame[f"key_{side}"] = key.where(key.ne(""))  # a cell that waits for its arm's search has no key
    frame = frame.astype({"fold": "int64", "seed": "int64"})
    lines = [_compare_cell(a, b, line, tolerance) for line in frame.to_dict("records")]
    found = pd.DataFrame(lines, columns=["outcome", "same_key", "differ", "apart"], index=frame.index)
    moved = {f"{name}_diff": frame[f"{name}_b"] - frame[f"{name}_a"] for name in metrics}
    frame = pd.concat([frame, found, pd.DataFrame(moved)], axis="columns")
    first = ["outcome", "same_key"]
    sides = [f"{name}_{side}" for name in ("key", "state", "error") for side in ("a", "b")]
    values = [f"{name}_{which}" for name in metrics for which in ("a", "b", "diff")]
    return frame[[*PLACE, *first, *sides, "differ", "apart", *values]]


def _compare_cell(
    a: StudyResults, b: StudyResults, line: Mapping[Any, Any], tolerance: float
) -> tuple[str, bool, str, str]:
    """Compare one cell: outcome, same_key, differ and apart (`cells`)."""
    states = line["state_a"], line["state_b"]
    same = bool(line["key_a"] == line["key_b"])
    if states != ("done", "done"):
        return _unpaired(*states), same, "", ""
    first, second = a.records[line["key_a"]], b.records[line["key_b"]]
    differ = _unequal(first["metrics"], second["metrics"])
    outcome = EQUAL
    if differ:
        moved = [abs(line[f"{name}_a"] - line[f"{name}_b"]) for name in differ if name in _JUDGED]
        # A score that is undefined in one study alone is NaN here; no tolerance covers it.
        outcome = WITHIN if tolerance and all(move <= tolerance for move in moved) else DIFFERS
    return outcome, same, "; ".join(differ), "; ".join(apart(first, second))


_JUDGED = ("test_rmse", "wr_rmse")
"""Metrics that the tolerance applies to."""


def _unpaired(state_a: str, state_b: str) -> str:
    """Name the outcome of a cell that is not done in both studies."""
    if "done" not in (state_a, state_b):
        return "neither"
    other_state, done, other = (state_b, "A", "B") if state_a == "done" else (state_a, "B", "A")
    return f"{other_state} in {other}" if other_state in ("failed", "damaged") else f"only {done}"


def _unequal_cell(line: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert a line of `cells` to a JSON object, with the metrics that differ."""
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
    """List the metrics of both that are not bitwise equal; `repr` of a float reads back as the same bits."""
    return [name for name in a if name in b and repr(a[name]) != repr(b[name])]


def apart(a: Record, b: Record) -> list[str]:
    """List what differs between the records of two done cells, as 'torch 2.12.0 against 2.13.0'.

    Causes come first: settings (tuned ones too), data, encoder, numerics, device, threads, versions. Then
    the commit, and last the consequences: sample counts and measurements of the audit.
    """
    found = comparability.differences(a, b)
    texts = [*found.undeclared, *found.tuned]
    follows = [text for text in texts if text.startswith(_FOLLOWS)]
    commits = [_commit(record) for record in (a, b)]
    code = [f"commit {commits[0]} against {commits[1]}"] if commits[0] != commits[1] else []
    return [_FINGERPRINT.sub(r"\1", t) for t in [*(t for t in texts if t not in follows), *code, *follows]]


_FOLLOWS = ("audit", "n_")
"""Beginnings of names that describe samples, which are a consequence of settings and data."""

_FINGERPRINT = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")
"""Hexadecimal digests, which are shortened to their first digits."""


def _commit(record: Record) -> str:
    if "commit" not in record:
        return "not recorded"
    return record["commit"][:12] + (" with changed files" if record.get("dirty") else "")


def conclusions(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Put the contrasts of both studies side by side, one line for each that either has.

    Columns: arm, other, split, part, regime, metric, fold. Then diff (arm - other), low, high, p_adjusted,
    declared, n_pairs, estimand, unit, n_units, df, test and verdict, of A (`_a`) and of B (`_b`); a study
    without the contrast has none.
    changed: both studies have a verdict, and they differ. turned: the differences have opposite signs.
    """
    frame = _side_by_side(a, b, _CONTRAST, _CONTRAST_VALUES)
    turned = frame["diff_a"].astype("float64") * frame["diff_b"].astype("float64") < 0
    return frame.assign(changed=_changed(frame), turned=turned)


def claims(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Put the claims of both studies side by side, matched by text; columns as in `conclusions`."""
    a, b = (frame.reindex(columns=["claim", *_CLAIM_VALUES]) for frame in (a, b))
    a, b = (frame.assign(nth=frame.groupby("claim").cumcount()) for frame in (a, b))
    frame = _side_by_side(a, b, ["claim", "nth"], _CLAIM_VALUES).drop(columns="nth")
    return frame.assign(changed=_changed(frame))


def ranks(pairs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rank the arms by their mean over the cells that are done in both studies, per split and evaluation set.

    Columns: split, part ('test'; 'wr' for out-of-region splits), arm, n (cells), mean_a, mean_b, rank_a,
    rank_b (1 the best), changed. Only arms that have every cell that any arm of the split has are ranked.
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
                order = labels.merit(means[f"mean_{side}"], metric).rank(method="min", ascending=False)
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
        console.width = 120  # a log has no width
    for line in _lines(found):
        console.print(Text(line), soft_wrap=True)
    for grid in _grids(found):
        console.print(grid)


def _lines(found: Comparison) -> Iterator[str]:
    yield found.headline
    cells = found.cells
    states = ("done", "failed", "missing", "damaged")
    for side, name in zip("ab", found.names, strict=True):
        yield f"  {side.upper()}  {name}: {_counted(cells[f'state_{side}'], states)}"
    for outcome in (*ONE, *FAILED):
        some = cells[cells["outcome"] == outcome]
        if len(some):
            other = "b" if outcome in ("only A", "failed in B", "damaged in B") else "a"
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
    moved = found.conclusions
    moved = moved[moved["changed"] | (moved["diff_a"].fillna(math.inf) != moved["diff_b"].fillna(math.inf))]
    if len(moved):
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
                for line in moved.to_dict("records")
            ],
            moved["changed"].tolist(),
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
    """Name a contrast: 'GeoCLIP · Hadamard against none on random (test)'."""
    fold = "" if pd.isna(line["fold"]) else f" fold {line['fold']}"
    return f"{line['arm']} against {line['other']} on {line['split']}{fold} ({line['part']})"


def _side_by_side(a: pd.DataFrame, b: pd.DataFrame, on: list[str], values: list[str]) -> pd.DataFrame:
    """Match lines by `on`, with the columns `values` as `_a` and `_b`; lines of A come first, in order."""
    a, b = (frame.reindex(columns=[*on, *values]).astype(dict.fromkeys(on, "object")) for frame in (a, b))
    both = a.assign(line=range(len(a))).merge(
        b.assign(line=range(len(b))), on=on, how="outer", suffixes=("_a", "_b"), validate="one_to_one"
    )
    return both.sort_values(["line_a", "line_b"]).drop(columns=["line_a", "line_b"]).reset_index(drop=True)


def _changed(frame: pd.DataFrame) -> pd.Series:
    in_both = frame["verdict_a"].notna() & frame["verdict_b"].notna()
    return in_both & (frame["verdict_a"] != frame["verdict_b"])


def _listed(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """Convert the lines to JSON objects, with null for missing values."""
    return frame.astype("object").where(frame.notna(), None).to_dict("records")


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - CAUSES_SHOWN} more arms" if len(names) > CAUSES_SHOWN else ""
    return ", ".join(names[:CAUSES_SHOWN]) + more


def _number(value: Any, metric: str, sign: bool = False) -> str:
    return labels.number(math.nan if pd.isna(value) else float(value), metric, sign)


def _small(value: float) -> str:
    """Format a difference, however small, with two significant digits."""
    return "–" if math.isnan(value) else f"{value:+.2g}" if value else "0"


def _text(value: Any) -> str:
    return "–" if pd.isna(value) else str(value)
