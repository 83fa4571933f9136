"""Data of the report, computed from a study and its store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import SCORES, TAIL_SCORES
from pm25.settings import CONTROLS, UNTRAINED
from sweeps.analysis import inference, labels
from sweeps.analysis.comparability import Comparisons
from sweeps.analysis.declarations import History
from sweeps.analysis.inference import Sums
from sweeps.analysis.sequential import outcome, rule
from sweeps.spec.claims import Analysis, Claim, Contrast, Published
from sweeps.spec.design import NO_LADDERS, Ladders
from sweeps.store.records import Record

if TYPE_CHECKING:
    from sweeps.analysis.reach import Reach
    from sweeps.report.figures.style import Figure as Picture
    from sweeps.state import StudyState


@dataclass(frozen=True)
class ReportData:
    """Tables and facts that the report shows."""

    rows: pd.DataFrame
    """One row per cell (`results.rows`)."""
    facts: Mapping[str, Any]
    """Provenance of the rows (`results.facts`)."""
    analysis: Analysis
    metric: str
    """Primary metric: that of the study, or that of the first claim if no claim is about the former."""
    means: Mapping[str, pd.DataFrame]
    """Means by metric (`inference.means`)."""
    contrasts: Mapping[str, pd.DataFrame]
    """Contrasts by metric (`inference.contrasts`): with 'none', of the claims, and of `pairs`."""
    directions: Mapping[str, pd.DataFrame]
    """Means by metric with each held-out region as a separate split (`labels.directions`)."""
    direction_contrasts: Mapping[str, pd.DataFrame]
    """Contrasts with 'none' by metric in each held-out region; not tested, because each has one test set."""
    tail: Mapping[str, pd.DataFrame]
    """Means by score of the tail (`TAIL_SCORES`), for the scores that cells have."""
    claims: pd.DataFrame
    """Verdicts on the claims (`inference.claims`)."""
    declared: Sequence[Claim] = ()
    """Claims of the study file."""
    leverage: pd.DataFrame | None = None
    """Shares of the squared error that few samples hold (`artifacts.Leverage`), by arm and split."""
    monitors: pd.DataFrame | None = None
    """Differences with 'none' by group of monitors (`by_monitor.differences`)."""
    coverage: pd.DataFrame | None = None
    """Coverage of prediction intervals by arm, split and region (`coverage.coverage`)."""
    pairs: Mapping[str, Sequence[Contrast]] = field(default_factory=dict)
    """Contrasts of the ablations, by section: "fusion", "encoder" and "controls"."""
    published: Published | None = None
    seeds: Sequence[Mapping[str, Any]] = ()
    """Seeds and repeats of each contrast, and why adding them stopped (`sequential.outcome`)."""
    rule: str = ""
    """Stopping rule in words."""
    declarations: History | None = None
    """Stored declarations, compared with what the study declares; None for rows without a store."""
    searches: pd.DataFrame | None = None
    """Budget and best score of each search (`results.searches`)."""
    parameters: pd.DataFrame | None = None
    """Importance of the tuned settings (`results.search_parameters`)."""
    reach: Reach | None = None
    """Distances to the prediction domain, and the area of applicability; None for rows without a store."""
    pictures: Sequence[Picture] = ()


def gather_report_data(
    state: StudyState,
    *,
    records: Mapping[str, Record] | None = None,
    rows: pd.DataFrame | None = None,
    predicted: Sums | None = None,
    brief: bool = False,
) -> ReportData:
    """Compute the data of a study from its store; `brief` limits it to what the summaries show.

    The records are read unless they are given. `rows` are given with `predicted`, which is None if no
    predictions are stored; without `rows`, both are read.
    """
    from sweeps.analysis import artifacts, by_monitor, coverage, results

    study = state.study
    records = state.records("tables") if records is None else records
    more: dict[str, Any] = {}
    if not brief:
        more["seeds"] = outcome(study, state.store, records)
    if not brief and state.searches:
        more["searches"] = results.searches(state.searches)
        more["parameters"] = results.search_parameters(state.searches)
    if rows is None:
        rows = state.rows(records)
        predicted = artifacts.predictions(state.store, rows, degrees=study.analysis.block_degrees)
    if not brief and isinstance(predicted, artifacts.Predicted):
        found = by_monitor.monitors(state.panel, study.monitor_columns(), state.split_indices())
        more["monitors"] = by_monitor.differences(predicted, rows, study.analysis, found)
        more["coverage"] = coverage.coverage(predicted, rows, study.analysis)
    return build_report_data(
        rows,
        state.facts(records),
        study.analysis,
        study.claims,
        sums=predicted,
        looks=study.design.looks,
        records=records,
        brief=brief,
        published=study.published,
        rule=rule(study),
        declarations=state.declared(records),
        **more,
    )


def build_report_data(
    rows: pd.DataFrame,
    facts: Mapping[str, Any],
    analysis: Analysis | None = None,
    claims: Sequence[Claim] = (),
    *,
    sums: Sums | None = None,
    looks: Ladders = NO_LADDERS,
    records: Mapping[str, Record] | None = None,
    declarations: History | None = None,
    brief: bool = False,
    **more: Any,
) -> ReportData:
    """Compute the data of the report from rows; `more` are further fields of `ReportData`."""
    analysis = analysis or Analysis()
    claimed = list(dict.fromkeys(claim.metric for claim in claims))
    metric = analysis.metric if analysis.metric in claimed or not claimed else claimed[0]
    stored = [] if sums is None else ["site_rmse"]
    metrics = list(dict.fromkeys([metric, *claimed] if brief else [*SCORES, *stored, *claimed]))
    if "site_rmse" in metrics:
        rows = inference.with_site_rmse(rows, sums)
    pairs = {} if brief else _pairs(rows)
    regions = labels.directions(rows)
    tail = {} if brief else _tail(rows, analysis)
    statuses = declarations.contrasts if declarations is not None else {}
    compared = None if records is None else Comparisons(records)
    contrasts = {
        name: inference.contrasts(
            rows,
            analysis,
            claims,
            name,
            sums,
            looks,
            compared,
            _contrasts(rows, pairs, name),
            statuses=statuses,
            episode=not brief,
        )
        for name in metrics
    }
    return ReportData(
        rows=rows,
        facts=facts,
        analysis=analysis,
        metric=metric,
        means={name: inference.means(rows, analysis, name, sums) for name in metrics},
        contrasts=contrasts,
        directions={} if brief else {m: inference.means(regions, analysis, m, sums) for m in metrics},
        direction_contrasts={}
        if brief
        else {
            m: inference.contrasts(regions, analysis, (), m, sums, compared=compared).assign(
                declared=False, p_adjusted=float("nan")
            )
            for m in metrics
        },
        tail=tail,
        claims=inference.claims_of(contrasts, claims),
        leverage=sums.leverage() if isinstance(sums, inference.StoredPredictions) and not brief else None,
        declared=claims,
        pairs=pairs,
        declarations=declarations,
        **more,
    )


def _pairs(rows: pd.DataFrame) -> dict[str, list[Contrast]]:
    """Return the pairs of arms that the ablations compare on test sets, by section."""
    cells = labels.with_arm(rows)
    found = cells[["arm", "variant", "fusion"]].drop_duplicates("arm").to_dict("records")
    # Every draw of an untrained encoder is an arm, and `pretraining.compare` compares all draws at once.
    arms = [arm for arm in found if UNTRAINED.fullmatch(arm["variant"]) is None]
    encoders = [arm for arm in arms if isinstance(arm["fusion"], str) and arm["variant"] != labels.BASELINE]
    real = [arm for arm in encoders if arm["variant"] not in CONTROLS]
    raw = [arm for arm in arms if arm["variant"] in ("latlon", "sincos")]
    controls = [
        arm
        for arm in arms
        if isinstance(arm["fusion"], str) and labels.is_control(arm["arm"], pd.DataFrame(arms))
    ]
    every = {
        "fusion": [
            (a, b) for i, b in enumerate(encoders) for a in encoders[i + 1 :] if a["variant"] == b["variant"]
        ],
        "encoder": [
            *((a, b) for i, b in enumerate(real) for a in real[i + 1 :] if a["fusion"] == b["fusion"]),
            *((a, b) for a in real for b in raw),
        ],
        "controls": [(a, b) for a in real for b in controls if a["fusion"] == b["fusion"]],
    }
    arm_of = {arm["arm"]: labels.arm_of(arm["variant"], arm["fusion"]) for arm in arms}
    return {
        name: [Contrast(arm_of[a["arm"]], arm_of[b["arm"]], "", "test", None, "") for a, b in pairs]
        for name, pairs in every.items()
    }


def _contrasts(rows: pd.DataFrame, pairs: Mapping[str, Sequence[Contrast]], metric: str) -> list[Contrast]:
    """Return the contrasts of the pairs on every split that has cells of both arms."""
    arms_of = {split: {*group["arm"]} for split, group in labels.with_arm(rows).groupby("split", sort=False)}
    every = dict.fromkeys(contrast for found in pairs.values() for contrast in found)
    return [
        contrast._replace(split=str(split), metric=metric)
        for split, arms in arms_of.items()
        for contrast in every
        if {labels.of_arm(contrast.arm), labels.of_arm(contrast.other)} <= arms
    ]


def _tail(rows: pd.DataFrame, analysis: Analysis) -> dict[str, pd.DataFrame]:
    """Return the means of the tail scores that any cell has."""
    found = {}
    for name in TAIL_SCORES:
        if f"test_{name}" not in rows or not rows[f"test_{name}"].notna().any():
            continue
        wr = f"wr_{name}"
        cells = rows if wr in rows else rows.assign(**{wr: float("nan")})
        means = inference.means(cells, analysis, name)
        found[name] = means[means["part"] == "test"].reset_index(drop=True)
    return found
