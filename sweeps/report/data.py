"""Everything that a report shows, gathered from a study and its store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import SCORES, TAIL_SCORES
from pm25.settings import CONTROLS
from sweeps.analysis import inference, labels
from sweeps.analysis.resampling import Resampled, Sums
from sweeps.analysis.sequential import outcome, rule
from sweeps.spec.claims import Analysis, Claim, Contrast, Published
from sweeps.store.records import Record

if TYPE_CHECKING:
    from sweeps.report.figures import Figure as Picture
    from sweeps.state import StudyState


@dataclass(frozen=True)
class ReportData:
    """Everything that the report is made of."""

    rows: pd.DataFrame
    """One per cell (`results.rows`)."""
    facts: Mapping[str, Any]
    """Where they come from (`results.facts`)."""
    analysis: Analysis
    metric: str
    """The answer's: the study's own, or the claims' where no claim is about that."""
    means: Mapping[str, pd.DataFrame]
    """By metric (`inference.means`)."""
    contrasts: Mapping[str, pd.DataFrame]
    """By metric (`inference.contrasts`): against 'none', of the claims, and those of `pairs`."""
    directions: Mapping[str, pd.DataFrame]
    """By metric the means of every region held out, as a split of its own (`labels.directions`)."""
    direction_contrasts: Mapping[str, pd.DataFrame]
    """By metric the contrasts with 'none' in every region held out; of one test set each, so none is "
    "tested."""
    tail: Mapping[str, pd.DataFrame]
    """By score of the tail that there is (`TAIL_SCORES`), its means."""
    claims: pd.DataFrame
    ranking: pd.DataFrame
    pairs: Mapping[str, Sequence[Contrast]] = field(default_factory=dict)
    """Contrasts of the fusion and encoder ablations and of the controls."""
    published: Published | None = None
    seeds: Sequence[Mapping[str, Any]] = ()
    """How adaptive seeds were settled (`adaptive.outcome`)."""
    rule: str = ""
    """The stopping rule in words."""
    searches: pd.DataFrame | None = None
    """Of every arm the budget spent (`results.searches`)."""
    parameters: pd.DataFrame | None = None
    """Importance of the tuned settings (`results.search_parameters`)."""
    pictures: Sequence[Picture] = ()


def gather_report_data(
    state: StudyState,
    *,
    records: Mapping[str, Record] | None = None,
    rows: pd.DataFrame | None = None,
    predicted: Sums | None = None,
    brief: bool = False,
) -> ReportData:
    """The material of a study as its store is now; `brief` has what `brief` and `terminal` show."""
    from sweeps.analysis import results

    study = state.study
    records = state.records() if records is None else records
    more: dict[str, Any] = {}
    if not brief:
        more["seeds"] = outcome(study, records)
    if not brief and state.searches:
        more["searches"] = results.searches(state.searches)
        more["parameters"] = results.search_parameters(state.searches)
    return build_report_data(
        state.rows(records) if rows is None else rows,
        state.facts(records),
        study.analysis,
        study.claims,
        sums=predicted,
        looks=study.design.looks,
        records=records,
        brief=brief,
        published=study.published,
        rule=rule(study),
        **more,
    )


def build_report_data(
    rows: pd.DataFrame,
    facts: Mapping[str, Any],
    analysis: Analysis | None = None,
    claims: Sequence[Claim] = (),
    *,
    sums: Sums | None = None,
    looks: Sequence[int] = (),
    records: Mapping[str, Record] | None = None,
    brief: bool = False,
    **more: Any,
) -> ReportData:
    """The material of rows; `more` are further fields of it."""
    analysis = analysis or Analysis()
    about = list(dict.fromkeys(claim.metric for claim in claims))
    metric = analysis.metric if analysis.metric in about or not about else about[0]
    metrics = list(dict.fromkeys([metric, *about])) if brief else SCORES
    pairs = {} if brief else _pairs(rows)
    regions = labels.directions(rows)
    tail = {} if brief else _tail(rows, analysis)
    drawn = {name: Resampled(rows, analysis, name, sums) for name in metrics}
    contrasts = {
        name: inference.contrasts(
            rows, analysis, claims, name, drawn[name], looks, records, _specs(rows, pairs, name)
        )
        for name in metrics
    }
    return ReportData(
        rows=rows,
        facts=facts,
        analysis=analysis,
        metric=metric,
        means={name: inference.means(rows, analysis, name, drawn[name]) for name in metrics},
        contrasts=contrasts,
        directions={} if brief else {m: inference.means(regions, analysis, m, drawn[m]) for m in metrics},
        direction_contrasts={}
        if brief
        else {
            m: inference.contrasts(regions, analysis, (), m, drawn[m], (), records).assign(
                declared=False, p_adjusted=float("nan")
            )
            for m in metrics
        },
        tail=tail,
        claims=inference.claims_of(contrasts, claims),
        ranking=inference.ranking(rows, analysis, metric),
        pairs=pairs,
        **more,
    )


def _pairs(rows: pd.DataFrame) -> dict[str, list[Contrast]]:
    """Which arms are set against each other beside 'none', on the test part of every split that has both."""
    cells = labels.with_arm(rows)
    arms = cells[["arm", "variant", "fusion"]].drop_duplicates("arm").to_dict("records")
    encoders = [arm for arm in arms if isinstance(arm["fusion"], str) and arm["variant"] != labels.BASELINE]
    real = [arm for arm in encoders if arm["variant"] not in CONTROLS]
    raw = [arm for arm in arms if arm["variant"] in ("latlon", "sincos")]
    controls = [
        arm
        for arm in arms
        if isinstance(arm["fusion"], str) and labels.is_control(arm["arm"], pd.DataFrame(arms))
    ]
    found = {
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
        for name, pairs in found.items()
    }


def _specs(rows: pd.DataFrame, pairs: Mapping[str, Sequence[Contrast]], metric: str) -> list[Contrast]:
    """The pairs on every split that has cells of both."""
    arms_of = {split: {*group["arm"]} for split, group in labels.with_arm(rows).groupby("split", sort=False)}
    every = dict.fromkeys(spec for specs in pairs.values() for spec in specs)
    return [
        spec._replace(split=str(split), metric=metric)
        for split, arms in arms_of.items()
        for spec in every
        if {labels.of_arm(spec.arm), labels.of_arm(spec.other)} <= arms
    ]


def _tail(rows: pd.DataFrame, analysis: Analysis) -> dict[str, pd.DataFrame]:
    """Means of the tail's scores that any cell has."""
    found = {}
    for name in TAIL_SCORES:
        if f"test_{name}" not in rows or not rows[f"test_{name}"].notna().any():
            continue
        inside = f"wr_{name}"
        cells = rows if inside in rows else rows.assign(**{inside: float("nan")})
        means = inference.means(cells, analysis, name)
        found[name] = means[means["part"] == "test"].reset_index(drop=True)
    return found
