"""What an arm's parent run says of a split: means, intervals and differences to 'none' as metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sweeps.analysis import inference, labels
from sweeps.spec.claims import Analysis, Claim
from sweeps.store.records import Store

Aggregates = dict[tuple[str, str | None], dict[str, float]]
"""By arm (its label) and split; None is the arm's search."""

_NAMES = {"WR": "wr_{}_mean", "OoR": "oor_{}_mean", "gap": "gap_{}"}
"""Of a mean, by the regime of its split and part."""


def aggregates(means: pd.DataFrame, contrasts: pd.DataFrame) -> Aggregates:
    """`wr_rmse_mean`, `wr_rmse_ci_low`, `gap_rmse`, `diff_rmse`, `n` and so on, finite numbers only.

    `means` has a line per arm, split, part and metric, with mean, low, high, n, n_expected and n_failed;
    `contrasts` one per pair of arms besides, with diff, low, high, p and p_adjusted, and `fold` where it is
    about that fold alone. Only contrasts with 'none' over all folds are taken. A split's counts are those
    of its test part; where metrics differ in n, the first one's.
    """
    found: Aggregates = {}
    for line in means.to_dict("records"):
        told = found.setdefault((line["arm"], line["split"]), {})
        name = _NAMES[line["regime"]].format(line["metric"])
        told |= _numbers({name: line["mean"], **_interval(name.removesuffix("_mean"), line)})
        if line["part"] == "test" and "n" not in told:
            told |= {count: float(line[count]) for count in ("n", "n_expected", "n_failed")}
    for line in contrasts.to_dict("records"):
        if line["other"] != labels.BASELINE or not pd.isna(line["fold"]) or line["part"] == "gap":
            continue
        name = f"{'' if line['part'] == 'test' else 'wr_'}diff_{line['metric']}"
        found[line["arm"], line["split"]] |= _numbers(
            {
                name: line["diff"],
                **_interval(name, line),
                f"{name}_p": line["p"],
                f"{name}_p_adjusted": line["p_adjusted"],
            }
        )
    return found


def of_rows(
    rows: pd.DataFrame, analysis: Analysis, claims: Sequence[Claim] = (), looks: Sequence[int] = ()
) -> Aggregates:
    """Of the rows of a study (`results.rows`), judged as it declares."""
    metrics = ("rmse", "r2", "mae")
    return aggregates(
        pd.concat([inference.means(rows, analysis, metric) for metric in metrics]),
        pd.concat([inference.contrasts(rows, analysis, claims, metric, looks=looks) for metric in metrics]),
    )


def pictures(
    store: Store,
    rows: pd.DataFrame,
    analysis: Analysis,
    claims: Sequence[Claim] = (),
    looks: Sequence[int] = (),
) -> dict[str, bytes]:
    """The report's figures that need no predictions, as PNG by file name."""
    from sweeps.analysis import artifacts
    from sweeps.report import figures

    metric = analysis.metric
    drawn = figures.draw(
        rows,
        metric,
        contrasts=inference.contrasts(rows, analysis, claims, metric, looks=looks),
        means=inference.means(rows, analysis, metric),
        ranking=inference.ranking(rows, analysis, metric),
        curves=artifacts.curves(store, rows),
    )
    return {f"{figure.name}.png": figure.png for figure in drawn}


def _interval(name: str, line: Mapping[Any, Any]) -> dict[str, Any]:
    return {f"{name}_ci_low": line["low"], f"{name}_ci_high": line["high"]}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Rounded: the UI shows the digits that it is given, and the report has the others."""
    return {name: float(f"{value:.4g}") for name, value in values.items() if math.isfinite(value)}
