"""What parent runs say, from frames made by hand."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps import driver
from sweeps.analysis import labels
from sweeps.bench import engine
from sweeps.report import figures
from sweeps.spec.claims import Analysis
from sweeps.tracking import parent_metrics
from sweeps.tracking.mlflow_view import Tracker
from sweeps.tracking.parent_metrics import FIRST, aggregates, of_rows

NAN = math.nan


def mean(
    split: str, part: str, regime: str, value: float, metric: str = "rmse", n: int = 4
) -> dict[str, object]:
    return {
        "arm": "GeoCLIP · Hadamard",
        "split": split,
        "part": part,
        "regime": regime,
        "metric": metric,
        "mean": value,
        "skill": NAN,
        "low": value - 1,
        "high": value + 1,
        "n": n,
        "n_expected": 5,
        "n_failed": 1,
    }


def contrast(
    part: str, other: str = "none", fold: object = pd.NA, p_adjusted: float = NAN, **more: object
) -> dict[str, object]:
    return more | {
        "arm": "GeoCLIP · Hadamard",
        "other": other,
        "split": "random",
        "part": part,
        "metric": "rmse",
        "fold": fold,
        "diff": -0.25,
        "low": -0.5,
        "high": 0.0,
        "df": 4.0,
        "n_units": 56,
        "n_pairs": 5,
        "estimand": "other days at these monitors",
        "unit": "day",
        "test": "a test",
        "untested": "",
        "p": 0.0123456,
        "p_adjusted": p_adjusted,
        "declared": bool(p_adjusted == p_adjusted),
        "verdict": more.get("verdict", "better"),
    }


def test_regimes_parts_and_metrics_have_names_of_their_own() -> None:
    means = [
        mean("random", "test", "WR", 7.0),
        mean("random", "test", "WR", 0.5, metric="r2", n=3),
        mean("checkerboard-16", "test", "OoR", 8.0),
        mean("checkerboard-16", "wr", "WR", 7.5),
        {**mean("checkerboard-16", "gap", "gap", 0.5), "low": NAN, "high": NAN},
    ]
    found = aggregates(pd.DataFrame(means), pd.DataFrame([contrast("test")]))
    counts = {"n": 4, "n_expected": 5, "n_failed": 1}
    difference = {
        "diff_rmse": -0.25,
        "diff_rmse_ci_low": -0.5,
        "diff_rmse_ci_high": 0.0,
        "diff_rmse_p": 0.01235,
        "diff_rmse_df": 4.0,
        "diff_rmse_units": 56.0,
        "estimand": "other days at these monitors",
        "unit": "day",
        "test": "a test",
        "verdict": "exploratory",
    }
    assert found == {
        ("GeoCLIP · Hadamard", "random"): {
            "eval_rmse": 7.0,
            "wr_rmse_mean": 7.0,
            "wr_rmse_ci_low": 6.0,
            "wr_rmse_ci_high": 8.0,
            "wr_r2_mean": 0.5,
            "wr_r2_ci_low": -0.5,
            "wr_r2_ci_high": 1.5,
            **counts,
            **difference,
        },
        ("GeoCLIP · Hadamard", "checkerboard-16"): {
            "eval_rmse": 8.0,
            "oor_rmse_mean": 8.0,
            "oor_rmse_ci_low": 7.0,
            "oor_rmse_ci_high": 9.0,
            "wr_rmse_mean": 7.5,
            "wr_rmse_ci_low": 6.5,
            "wr_rmse_ci_high": 8.5,
            "gap_rmse": 0.5,
            **counts,
        },
    }


def test_coverage_of_intervals_is_beside_the_scores() -> None:
    first = {"arm": "GeoCLIP · Hadamard", "split": "checkerboard-16", "region": "all regions"}
    numbers = {"coverage": 0.9, "low": 0.85, "high": 0.95, "width": 13.5, "coverage_high": 0.2, "worst": 0.7}
    covered = pd.DataFrame(
        [
            {**first, "part": "test", **numbers},
            {**first, "part": "test", "region": "a", "coverage": 0.7},
            {**first, "part": "wr", **dict.fromkeys(numbers, NAN)},
        ]
    )
    means = pd.DataFrame([mean("checkerboard-16", "test", "OoR", 8.0)])
    found = aggregates(means, pd.DataFrame(), covered)["GeoCLIP · Hadamard", "checkerboard-16"]
    assert {name: value for name, value in found.items() if "coverage" in name} == {
        "coverage": 0.9,
        "coverage_ci_low": 0.85,
        "coverage_ci_high": 0.95,
        "coverage_width": 13.5,
        "coverage_high": 0.2,
        "coverage_worst": 0.7,
    }


def test_only_differences_to_none_over_all_folds_are_told() -> None:
    means = pd.DataFrame([mean("random", "test", "WR", 7.0)])
    lines = [
        contrast("test", other="lat/lon", p_adjusted=0.5),
        contrast("test", fold=0, p_adjusted=0.5),
        contrast("gap"),
    ]
    ((_, written),) = aggregates(means, pd.DataFrame(lines)).items()
    assert not [name for name in written if "diff" in name]
    ((_, written),) = aggregates(means, pd.DataFrame([*lines, contrast("wr", p_adjusted=0.02)])).items()
    assert written["wr_diff_rmse"] == -0.25
    assert written["wr_diff_rmse_p_adjusted"] == 0.02
    assert "verdict" not in written  # that of the test samples


@pytest.mark.parametrize(
    ("verdict", "word", "number"),
    [
        ("better", "better", 1),
        ("equal", "equivalent", 0),
        ("worse", "worse", -1),
        ("undecided", "undecided", None),
    ],
)
def test_the_verdict_is_a_number_and_a_word(verdict: str, word: str, number: float | None) -> None:
    means = pd.DataFrame(
        [mean("random", "test", "WR", 7.0), mean("random", "test", "WR", 7.5) | {"arm": "none"}]
    )
    declared = contrast("test", p_adjusted=0.02, verdict=verdict)
    found = aggregates(means, pd.DataFrame([declared, declared | {"metric": "r2", "verdict": "worse"}]))
    written = found["GeoCLIP · Hadamard", "random"]
    assert (written["verdict"], written.get("diff_rmse_verdict")) == (word, number)
    assert (written["test"], written["unit"]) == ("a test", "day")
    baseline = found["none", "random"]
    assert baseline["estimand"] == "other days at these monitors"
    assert "verdict" not in baseline
    undeclared = contrast("test", verdict=verdict)
    ((_, written),) = aggregates(means.iloc[:1], pd.DataFrame([undeclared])).items()
    assert "diff_rmse_verdict" not in written
    assert written["verdict"] == "exploratory"


def test_the_rmse_of_the_test_samples_is_first_by_order_and_by_name() -> None:
    """The compare page opens on the first metric that its runs share; those of 'none' have no difference."""
    means = [mean("random", "test", "WR", 7.0), mean("random", "test", "WR", 5.0, "mae")]
    ((_, written),) = aggregates(pd.DataFrame(means), pd.DataFrame([contrast("gap")])).items()
    assert next(iter(written)) == min(written) == FIRST


def test_rows_become_means_and_paired_differences() -> None:
    place = {"variant": "none", "fusion": None, "split": "checkerboard-16", "regime": "OoR", "state": "done"}
    place |= {"folds": 2, "seed": 0, "marked": "", "unfair": "", "tuned": ""}
    place |= {"kind": "checkerboard", "unit": 0}
    rows = [
        {**place, "key": f"k{fold}", "fold": fold, "test_rmse": 8.0 + fold, "wr_rmse": 7.0 + fold}
        for fold in (0, 1)
    ]
    rows += [{**row, "variant": "latlon", "test_rmse": row["test_rmse"] - 0.5} for row in rows]
    rows[-1]["state"] = "failed"
    found = of_rows(pd.DataFrame(rows), Analysis())
    assert found["none", "checkerboard-16"] == {
        "eval_rmse": 8.5,
        "oor_rmse_mean": 8.5,
        "wr_rmse_mean": 7.5,
        "n": 2,
        "n_expected": 2,
        "n_failed": 0,
        "estimand": "regions without monitors",
        "unit": "origin",
    }
    tags = found["lat/lon", "checkerboard-16"]
    assert tags == {
        "eval_rmse": 7.5,
        "oor_rmse_mean": 7.5,
        "wr_rmse_mean": 7.0,
        "diff_rmse": -0.5,
        "wr_diff_rmse": 0.0,
        "n": 1,
        "n_expected": 2,
        "n_failed": 1,
        "estimand": "regions without monitors",
        "unit": "origin",
        "test": tags["test"],
        "verdict": "not tested",
    }
    assert "{kind: checkerboards, degrees: 16, origins: 15}" in str(tags["test"])


@pytest.mark.filterwarnings("ignore:The ``noload``")
def test_one_table_of_coverage_reaches_the_numbers_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = engine.study(tmp_path, 2)
    for key, cell in state.cells.items():
        engine.trivial(cell, key, state.panel, state.store)
    row = labels.with_arm(state.rows(state.records())).iloc[0]
    line = {"arm": row["arm"], "split": row["split"], "part": "test", "region": "all regions"}
    numbers = {"coverage": 0.9, "low": 0.85, "high": 0.95, "width": 13.5, "coverage_high": 0.2, "worst": 0.7}
    table = pd.DataFrame([line | numbers])
    measured: list[int] = []
    answers: list[Any] = []
    drawn: list[Any] = []

    def covered(*_: Any) -> pd.DataFrame:
        measured.append(1)
        return table

    def draw(*_: Any, coverage: Any, **__: Any) -> list[figures.Figure]:
        drawn.append(coverage)
        return []

    monkeypatch.setattr(parent_metrics, "covered_by_region", covered)
    monkeypatch.setattr(Tracker, "answer", lambda _, found: answers.append(found))
    monkeypatch.setattr(figures, "draw", draw)
    driver.sync(state)
    assert answers[0][row["arm"], row["split"]]["coverage"] == 0.9
    assert drawn[0] is table
    assert len(measured) == 1
