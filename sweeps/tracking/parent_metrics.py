"""Metrics of the parent runs: means, intervals and differences to 'none', by arm and split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd

from sweeps.analysis import coverage, inference, labels
from sweeps.analysis.declarations import Status
from sweeps.analysis.inference import Sums
from sweeps.spec.claims import Analysis, Claim, Contrast
from sweeps.spec.design import NO_LADDERS, Ladders
from sweeps.store.records import Store

Aggregates = dict[tuple[str, str | None], dict[str, float | str]]
"""Metrics, and tags as texts, by arm (its label) and split; the split None is the arm's search."""

_VERDICTS = {"better": 1.0, "equal": 0.0, "worse": -1.0}
"""Verdict as a number, for the UI can compare numbers alone; undecided contrasts have none."""

FIRST = "eval_rmse"
"""Name of the RMSE on a split's test samples, in either regime.

The compare page of the UI opens on the first metric that its runs share, in the order of the database: that
of writing or of names. So this one is written first, and its name precedes all other shared ones.
"""

_NAMES = {"WR": "wr_{}_mean", "OoR": "oor_{}_mean", "gap": "gap_{}"}
"""Name of a mean's metric, by regime."""


def aggregates(
    means: pd.DataFrame, contrasts: pd.DataFrame, covered: pd.DataFrame | None = None
) -> Aggregates:
    """Collect `wr_rmse_mean`, `wr_rmse_ci_low`, `gap_rmse`, `skill`, `diff_rmse` and so on; finite numbers.

    `means` has a line per arm, split, part and metric, with mean, low, high, n, n_expected and n_failed.
    `contrasts` has a line per pair of arms too, with diff, low, high, se, df, n_units, p and p_adjusted;
    `fold` is set if the contrast is about one fold. Only contrasts with 'none' over all folds are used. The
    counts of a split are those of its test part; if metrics differ in n, those of the first metric.

    `covered` has the coverage of prediction intervals (`sweeps.analysis.coverage`): `coverage`,
    `coverage_width`, `coverage_high` and `coverage_worst`, with the prefix `wr_` for the within-region set.

    Texts are the tags `estimand`, `unit`, `test` and `verdict`, those of the test part and the first metric.
    """
    found: Aggregates = {}
    for line in means.to_dict("records"):
        metrics = found.setdefault((line["arm"], line["split"]), {})
        if (line["part"], line["metric"]) == ("test", "rmse"):
            metrics |= _numbers({FIRST: line["mean"]})
        metrics |= _numbers({f"{'wr_' if line['part'] == 'wr' else ''}skill": line["skill"]})
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
                f"{name}_df": line["df"],
                f"{name}_units": line["n_units"] if line["test"] else math.nan,
                f"{name}_p": line["p"],
                f"{name}_p_adjusted": line["p_adjusted"],
                f"{name}_verdict": _VERDICTS.get(line["verdict"], math.nan) if line["declared"] else math.nan,
            }
        )
        if line["part"] == "test":
            for arm in (line["arm"], line["other"]):
                about = found.get((arm, line["split"]), {})
                about |= {name: line[name] for name in ("estimand", "unit") if name not in about}
            tags = found[line["arm"], line["split"]]
            if "verdict" not in tags:
                tags |= {"test": line["test"] or line["untested"], "verdict": judged(line)}
    for line in [] if covered is None else coverage.overall(covered).to_dict("records"):
        name = f"{'wr_' if line['part'] == 'wr' else ''}coverage"
        found[line["arm"], line["split"]] |= _numbers(
            {
                name: line["coverage"],
                **_interval(name, line),
                f"{name}_width": line["width"],
                f"{name}_high": line["coverage_high"],
                f"{name}_worst": line["worst"],
            }
        )
    return found


def judged(line: Mapping[Any, Any]) -> str:
    """Return the verdict of a contrast with 'none' in the words of the report."""
    from sweeps.report import summary

    return summary.verdict(line)


def covered_by_region(rows: pd.DataFrame, analysis: Analysis, sums: Sums | None) -> pd.DataFrame | None:
    """Measure the coverage of prediction intervals (`coverage.coverage`); None without stored predictions."""
    from sweeps.analysis import artifacts

    return coverage.coverage(sums, rows, analysis) if isinstance(sums, artifacts.Predicted) else None


def of_rows(
    rows: pd.DataFrame,
    analysis: Analysis,
    claims: Sequence[Claim] = (),
    looks: Ladders = NO_LADDERS,
    sums: Sums | None = None,
    statuses: Mapping[Contrast, Status] = MappingProxyType({}),
    covered: pd.DataFrame | None = None,
) -> Aggregates:
    """Aggregate the rows of a study (`results.rows`), with the analysis and claims that it declares.

    `sums` are the stored predictions, from which the tests within region are made. `statuses` tell when the
    contrasts were declared (`declarations.history`). `covered` is the table of `covered_by_region`.
    """
    metrics = ("rmse", "r2", "mae", "site_rmse")
    rows = inference.with_site_rmse(rows, sums)
    return aggregates(
        pd.concat([inference.means(rows, analysis, metric, sums) for metric in metrics]),
        pd.concat(
            [
                inference.contrasts(
                    rows, analysis, claims, metric, sums, looks, statuses=statuses, sensitivity=False
                )
                for metric in metrics
            ]
        ),
        covered,
    )


def pictures(
    store: Store,
    rows: pd.DataFrame,
    analysis: Analysis,
    claims: Sequence[Claim] = (),
    looks: Ladders = NO_LADDERS,
    sums: Sums | None = None,
    statuses: Mapping[Contrast, Status] = MappingProxyType({}),
    covered: pd.DataFrame | None = None,
) -> dict[str, bytes]:
    """Draw the report's figures that need neither the panel nor single predictions, as PNG by file name."""
    from sweeps.analysis import artifacts
    from sweeps.report import figures

    metric = analysis.metric
    drawn = figures.draw(
        rows,
        metric,
        contrasts=inference.contrasts(
            rows, analysis, claims, metric, sums, looks, statuses=statuses, sensitivity=False
        ),
        means=inference.means(rows, analysis, metric, sums),
        curves=artifacts.curves(store, rows),
        coverage=covered,
    )
    return {f"{figure.name}.png": figure.png for figure in drawn}


def _interval(name: str, line: Mapping[Any, Any]) -> dict[str, Any]:
    return {f"{name}_ci_low": line["low"], f"{name}_ci_high": line["high"]}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Keep finite numbers, rounded to four digits, since the UI shows all digits that it receives."""
    return {name: float(f"{value:.4g}") for name, value in values.items() if math.isfinite(value)}
