"""The results of a study as tables: a row per cell of the grid, done or not, and what describes them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pm25 import splits
from pm25.cell import Cell
from pm25.metrics import METRICS, SCORES
from pm25.panel import Panel
from pm25.settings import REFERENCES
from pm25.splits import AnySplit
from sweeps.analysis import comparability, labels
from sweeps.spec.design import Scope
from sweeps.spec.search_space import Search
from sweeps.spec.study import Study
from sweeps.store import integrity
from sweeps.store.records import Record, failed_checks
from sweeps.store.search_trials import ArmTrials

SCORE_COLUMNS = [f"{part}_{name}" for part in ("test", "wr", "val") for name in SCORES]
COUNTS = ["n_train", "n_val", "n_test", "n_wr", "epochs", "best_epoch"]

_TYPES = {bool: "boolean", int: "Int64", float: "float64"}
"""Column types of audit measurements, so that a cell without a number does not change them."""


def rows(
    cells: Mapping[str, Cell], records: Mapping[str, Record], waiting: Iterable[Cell] = ()
) -> pd.DataFrame:
    """Make one row per cell, in the grid's order; only done cells have numbers.

    After them come the cells `waiting` for their arm's search, which are missing and have no key yet.

    Columns: key, variant, fusion, split, regime, fold, seed, state ('done', 'failed', 'missing', 'damaged'),
    sample counts, metrics in ug/m3 (`test_*`; splits with paired sites also `wr_*`), seconds and error. The
    column marked lists the checks that the cell failed (`records.failed_checks`), '' for none. The next two
    list how the cell differs from the 'none' that it is paired with, undeclared and tuned
    (`comparability.differences`). Then come folds, the number of folds of the split in one origin or deal;
    kind, the kind of the split; unit, the independent unit of its fold (`pm25.splits`); further metrics, and
    the measurements of the audit.
    """
    lines, more = [], dict.fromkeys(SCORE_COLUMNS, "float64")
    against_none = _against_none(cells, records)
    for key, cell in [*cells.items(), *(("", cell) for cell in waiting)]:
        record: Mapping[str, Any] = records.get(key, {"state": "missing"})
        line = {
            "key": key,
            "variant": cell.variant,
            "fusion": cell.fusion,
            "split": cell.split.label,
            "regime": cell.split.regime,
            "fold": cell.fold,
            "seed": cell.seed,
            "state": record["state"],
            "marked": "",
            "unfair": "",
            "tuned": "",
            "folds": cell.split.folds,
            "kind": cell.split.kind,
            "unit": cell.split.unit(cell.fold),
        }
        if record["state"] == "done":
            audit = {name: value for name, value in record["audit"].items() if name != "failed"}
            line["marked"] = "; ".join(failed_checks(record))
            if key in against_none:
                undeclared, tuned = against_none[key]
                line |= {"unfair": "; ".join(undeclared), "tuned": "; ".join(tuned)}
            line |= {**record["counts"], **record["metrics"], **audit, "seconds": record["seconds"]}
            more |= dict.fromkeys(record["metrics"], "float64")
            for name, value in audit.items():
                kind = _TYPES[type(value)]
                more[name] = kind if more.get(name, kind) == kind else "float64"
        elif record["state"] == "failed":
            line["error"] = f"{record['error']['type']}: {record['error']['message']}"
        elif record["state"] == "damaged":
            line["error"] = integrity.describe(record)
        lines.append(line)
    first = ["key", "variant", "fusion", "split", "regime", "fold", "seed", "state"]
    columns = [*first, *COUNTS, *SCORE_COLUMNS, "seconds", "error", "marked", "unfair", "tuned"]
    columns += ["folds", "kind", "unit"]
    frame = pd.DataFrame(lines, columns=[*columns, *sorted(more.keys() - {*SCORE_COLUMNS})])
    return frame.astype(dict.fromkeys(COUNTS, "Int64") | more)


def _against_none(
    cells: Mapping[str, Cell], records: Mapping[str, Record]
) -> dict[str, comparability.ArmDifference]:
    """Compare every done cell with the done 'none' of its split, fold and seed, by key."""
    done = {
        key: cell
        for key, cell in cells.items()
        if key in records and records[key]["state"] == "done" and not cell.is_reference
    }
    places = {key: (cell.split.label, cell.fold, cell.seed) for key, cell in done.items()}
    plain = {
        places[key]: records[key]
        for key, cell in done.items()
        if labels.arm(cell.variant, cell.fusion) == labels.BASELINE
    }
    return {
        key: comparability.differences(records[key], plain[place])
        for key, place in places.items()
        if place in plain
    }


def facts(
    study: Study,
    panel: Panel,
    records: Mapping[str, Record],
    overlap_with_search: Mapping[tuple[str, int], float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Collect where the numbers come from, as the report prints it.

    `overlap_with_search` is that of `StudyState`: the share of each test set that the search has used.
    """
    done = [record for record in records.values() if record["state"] == "done"]
    trained = [record for record in done if record["cell"]["variant"] not in REFERENCES]
    versions = {(name, version) for record in done for name, version in record["versions"].items()}
    tuned: dict[str, dict[str, set[str]]] = {}
    for record in done:
        label = labels.arm(record["cell"]["variant"], record["cell"].get("fusion"))
        for name, value in record.get("tuned", {}).items():
            tuned.setdefault(label, {}).setdefault(name, set()).add(comparability.shown(value))
    return {
        "study": study.study,
        "title": study.title,
        "question": study.question,
        "protocol": study.protocol,
        "table": panel.name,
        **({"synthetic": study.data.synthetic.model_dump()} if study.data.synthetic else {}),
        "data_fingerprint": panel.fingerprint,
        "sites": len(panel.site_id),
        "days": len(panel.dates),
        "observed": panel.observed,
        "first_day": str(panel.dates[0]),
        "last_day": str(panel.dates[-1]),
        "encoders": dict(sorted({(r["cell"]["variant"], r["encoder"]) for r in done if r["encoder"]})),
        "numerics": ", ".join(sorted({str(r.get("numerics", "?")) for r in trained})),
        "commits": _commits(done),
        "settings": {
            "channels": ", ".join(panel.channels),
            "window": study.window,
            "model": study.model.model_dump(mode="json"),
            "train": study.train.model_dump(mode="json"),
            **({"neighbours": study.neighbours.model_dump(mode="json")} if study.neighbours else {}),
            "split": {f.split.label: f.split.model_dump(mode="json") for f in study.design.split},
            **({"references": ", ".join(study.references)} if study.references else {}),
            **({"search": _search(study.search, overlap_with_search)} if study.search else {}),
        },
        "tuned": {
            label: {name: ", ".join(sorted(values)) for name, values in sorted(chosen.items())}
            for label, chosen in sorted(tuned.items())
        },
        "versions": {
            name: ", ".join(sorted(v for n, v in versions if n == name)) for name in sorted(dict(versions))
        },
    }


def _commits(done: Sequence[Record]) -> dict[str, str]:
    """Count the cells trained by each commit; + marks a commit with changed files."""
    named = Counter(f"{r['commit']}{'+' * bool(r.get('dirty'))}" for r in done if r.get("commit"))
    found = {name: f"{n} cells" for name, n in sorted(named.items())}
    if found and (unknown := len(done) - sum(named.values())):
        found["not recorded"] = f"{unknown} cells"
    return found


def _search(search: Search, known: Mapping[tuple[str, int], float]) -> dict[str, Any]:
    """Describe how the arms were tuned, and how much of each test set the search has used."""
    declared = search.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    # A split at its defaults has no key, not even its kind.
    placements = search.model_dump(mode="json", by_alias=True, include={"split"}, exclude_none=True)
    of_split: dict[str, dict[int, float]] = {}
    for (split, fold), share in known.items():
        of_split.setdefault(split, {})[fold] = share
    shares = {split: _shares(of_fold) for split, of_fold in of_split.items()}
    return {**declared, **placements, "test samples used by the search": shares}


def _shares(of_fold: Mapping[int, float]) -> str:
    """List shares by fold; one share alone if all folds have it."""
    texts = {fold: f"{share:.0%}" for fold, share in sorted(of_fold.items())}
    if len({*texts.values()}) == 1:
        return f"{next(iter(texts.values()))} in each fold"
    return ", ".join(f"fold {fold}: {text}" for fold, text in texts.items())


class SplitMap(NamedTuple):
    """A split of regions on the panel's sites."""

    split: AnySplit
    roles: dict[int, pd.DataFrame]
    """Frames by fold, with site_id, lat, lon, role: 'train', 'validation', 'wr' (held out inside the training
    region) or 'test'."""


def cuts(study: Study, panel: Panel) -> list[SplitMap]:
    """Cut the panel by the study's out-of-region splits, the first folds with two test sets of each."""
    found = []
    for factor in study.design.split:
        if factor.split.regime != "OoR":
            continue
        roles = {}
        first: dict[Any, int] = {}  # several folds of a rotating holdout have one test set
        for fold in factor.folds:
            first.setdefault(factor.split.position(fold)[:2], fold)
        for fold in [*first.values()][:2]:
            roles[fold] = _roles(panel, study.cut(factor.split, fold, panel))
        found.append(SplitMap(factor.split, roles))
    return found


def _roles(panel: Panel, parts: splits.SplitIndices) -> pd.DataFrame:
    """List the sites that have samples; a site of several sets has the last role of train to test."""
    role = np.full(len(panel.site_id), "", "U10")
    for name in ("train", "validation", "wr", "test"):
        part = getattr(parts, name)
        if part is not None:
            role[np.unique(part // len(panel.dates))] = name
    seen = role != ""
    return pd.DataFrame(
        {"site_id": panel.site_id[seen], "lat": panel.lat[seen], "lon": panel.lon[seen], "role": role[seen]}
    )


def search_trials(searches: Mapping[Scope, ArmTrials]) -> pd.DataFrame:
    """Make one line per ended trial and objective.

    Columns: arm, number, state, objective, value, smaller_is_better, fold. The value is a validation score in
    the metric's unit; NaN if the trial has none. The fold is '' unless the search is nested.
    """
    columns = ["arm", "number", "state", "objective", "value", "smaller_is_better", "fold"]
    lines = []
    for trials in searches.values():
        search, label = trials.search, labels.arm(trials.arm.variant, trials.arm.fusion)
        fold = "" if trials.fold is None else f"{trials.fold.split} fold {trials.fold.fold}"
        for record in trials.ended:
            values = (
                trials.values(record) if record["state"] == "done" else [math.nan] * len(search.objective)
            )
            for regime, value in zip(search.objective, values, strict=True):
                name = f"{labels.OOR if regime == 'oor' else labels.WR} {METRICS[search.metric].title}"
                lines.append(
                    (label, record["number"], record["state"], name, value, search.smaller_is_better, fold)
                )
    return pd.DataFrame(lines, columns=columns)


def searches(found: Mapping[Scope, ArmTrials]) -> pd.DataFrame:
    """Make one line per arm: trials, those pruned and failed, epochs, time, scores of the chosen trial."""
    columns = ["arm", "trials", "pruned", "failed", "epochs", "time (h:min:s)", "best"]
    lines = []
    for trials in found.values():
        states = [record["state"] for record in trials.ended]
        seconds = round(sum(record.get("seconds") or 0.0 for record in trials.ended))
        best = trials.best()
        scores = "–"
        if best is not None:
            metric = trials.search.metric
            values = zip(trials.search.objective, trials.values(best), strict=True)
            names = {"wr": labels.WR, "oor": labels.OOR}
            scores = ", ".join(f"{names[regime]} {labels.number(value, metric)}" for regime, value in values)
            scores = f"{METRICS[metric].name} {scores} (trial {best['number']})"
        count = f"{len(states)} of {trials.search.trials}"
        time = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        ended = (states.count("pruned"), states.count("failed"), trials.epochs, time, scores)
        label = labels.of_arm(trials.arm)
        if trials.fold is not None:
            label += f", {trials.fold.split} fold {trials.fold.fold}"
        lines.append((label, count, *ended))
    return pd.DataFrame(lines, columns=columns)


def search_parameters(searches: Mapping[Scope, ArmTrials]) -> pd.DataFrame:
    """Make one line per arm and tuned setting: arm, parameter, importance.

    The importance is the share of the variance of validation scores that the setting explains. Those of an
    arm add up to 1 (`search_importance.importances`). With two objectives the first is explained.
    """
    lines = []
    if searches:
        from sweeps.analysis import search_importance  # and Optuna, which no other table needs

        for trials in searches.values():
            label = labels.arm(trials.arm.variant, trials.arm.fusion)
            lines += [(label, name, share) for name, share in search_importance.importances(trials).items()]
    return pd.DataFrame(lines, columns=["arm", "parameter", "importance"])
