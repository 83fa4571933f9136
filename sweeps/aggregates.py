"""What an arm's parent run says of a split: means, their intervals and the differences to 'none' as metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sweeps import tables

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
        if line["other"] != tables.BASELINE or not pd.isna(line["fold"]) or line["part"] == "gap":
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


def of_rows(rows: pd.DataFrame) -> Aggregates:
    """Of the rows of a study (`results.rows`)."""
    return aggregates(*_compared(rows))


def _compared(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and contrasts of `tables.comparison`, which has neither intervals nor tests."""
    means, contrasts = [], []
    for metric in ("rmse", "r2", "mae"):
        for line in tables.comparison(rows, metric).to_dict("records"):
            parts = {"test": ("", line["regime"])}
            if line["regime"] == tables.OOR:
                parts |= {"wr": ("wr_", tables.WR), "gap": ("gap_", "gap")}
            for part, (prefix, regime) in parts.items():
                place = {name: line[name] for name in ("arm", "split")} | {"part": part, "metric": metric}
                counts = {"n": line[f"{prefix}n"]} | {name: line[name] for name in ("n_expected", "n_failed")}
                nothing = dict.fromkeys(("low", "high", "p", "p_adjusted"), math.nan)
                means.append({**place, **counts, **nothing, "regime": regime, "mean": line[f"{prefix}mean"]})
                if part != "gap" and line["arm"] != tables.BASELINE:
                    none = {"other": tables.BASELINE, "fold": pd.NA, "diff": line[f"{prefix}diff_mean"]}
                    contrasts.append({**place, **nothing, **none})
    columns = ["arm", "other", "split", "part", "metric", "fold", "diff", "low", "high", "p", "p_adjusted"]
    return pd.DataFrame(means), pd.DataFrame(contrasts, columns=columns)


def _interval(name: str, line: Mapping[Any, Any]) -> dict[str, Any]:
    return {f"{name}_ci_low": line["low"], f"{name}_ci_high": line["high"]}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Rounded: the UI shows the digits that it is given, and the report has the others."""
    return {name: float(f"{value:.4g}") for name, value in values.items() if math.isfinite(value)}
