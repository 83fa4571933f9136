"""Metrics of the parent runs: means, intervals and differences to 'none', by arm and split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sweeps.analysis import inference, labels
from sweeps.spec.claims import Analysis, Claim
from sweeps.store.records import Store

Aggregates = dict[tuple[str, str | None], dict[str, float]]
"""Metrics by arm (its label) and split; the split None is the arm's search."""

_NAMES = {"WR": "wr_{}_mean", "OoR": "oor_{}_mean", "gap": "gap_{}"}
"""Name of a mean's metric, by regime."""


def aggregates(means: pd.DataFrame, contrasts: pd.DataFrame) -> Aggregates:
    """Collect `wr_rmse_mean`, `wr_rmse_ci_low`, `gap_rmse`, `diff_rmse`, `n` and so on; only finite numbers.

    `means` has a line per arm, split, part and metric, with mean, low, high, n, n_expected and n_failed.
    `contrasts` has a line per pair of arms too, with diff, low, high, p and p_adjusted; `fold` is set if the
    contrast is about one fold. Only contrasts with 'none' over all folds are used. The counts of a split are
    those of its test part; if metrics differ in n, those of the first metric.
    """
    found: Aggregates = {}
    for line in means.to_dict("records"):
        metrics = found.setdefault((line["arm"], line["split"]), {})
        name = _NAMES[line["regime"]].format(line["metric"])
        metrics |= _numbers({name: line["mean"], **_interval(name.removesuffix("_mean"), line)})
        if line["part"] == "test" and "n" not in metrics:
            metrics |= {count: float(line[count]) for count in ("n", "n_expected", "n_failed")}
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
    """Aggregate the rows of a study (`results.rows`), with the analysis and claims that it declares."""
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
    """Draw the report's figures that need no predictions, as PNG by file name."""
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
    """Keep finite numbers, rounded to four digits, since the UI shows all digits that it receives."""
    return {name: float(f"{value:.4g}") for name, value in values.items() if math.isfinite(value)}
