"""The gap of a rotating holdout: both of its scores are those of the same samples, taken together."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import metrics
from pm25.panel import Panel
from pm25.splits import CheckerboardsSplit, cut
from sweeps.analysis import inference
from sweeps.spec.claims import Analysis
from tests import worlds

ORIGINS = 5
BOARDS = CheckerboardsSplit(degrees=16, origins=ORIGINS, holdout="rotate")
ANALYSIS = Analysis()
Model = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Predictions of the samples of one fold, from their truth."""


@pytest.fixture(scope="module")
def panel() -> Panel:
    """Monitors with very different errors, as smoke makes them."""
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(26, 48, 90), rng.uniform(-122, -69, 90)
    level = rng.lognormal(1.5, 0.8, (90, 1))
    return worlds.panel(np.zeros((90, 30, 1)), level * rng.lognormal(0, 0.4, (90, 30)), lat, lon)


def rows(panel: Panel, out: Model, inside: Model) -> pd.DataFrame:
    """Rows of one arm, whose predictions are `out` out of region and `inside` within it."""
    target, lines = panel.target.reshape(-1).astype(np.float64), []
    for fold in range(BOARDS.n_folds):
        indices = cut(BOARDS, fold, panel, 1)
        assert indices.wr is not None
        line: dict[str, Any] = {"key": f"k{fold}", "variant": "none", "fusion": None, "fold": fold, "seed": 0}
        line |= {"split": BOARDS.label, "kind": "checkerboards", "regime": "OoR", "folds": 2, "state": "done"}
        line |= {"unit": BOARDS.unit(fold), "marked": "", "unfair": "", "tuned": ""}
        for part, model in (("test", out), ("wr", inside)):
            truth = target[getattr(indices, part)]
            found = metrics.scores(truth, model(truth, np.random.default_rng(fold)))
            line |= {f"{part}_{name}": value for name, value in found.items()}
            line[f"n_{part}"] = len(truth)
        lines.append(line)
    return pd.DataFrame(lines)


def gap(cells: pd.DataFrame, metric: str) -> pd.Series:
    means = inference.means(cells, ANALYSIS, metric).set_index("part")
    return means.loc["gap"]


def by_half(share: float) -> Model:
    """Predictions that miss a share of the truth, without any chance in them."""
    return lambda truth, rng: (1 - share) * truth


@pytest.mark.parametrize("metric", ["rmse", "r2", "mae", "mbe"])
def test_a_model_that_is_as_good_from_outside_has_no_gap(metric: str, panel: Panel) -> None:
    found = gap(rows(panel, by_half(0.5), by_half(0.5)), metric)
    assert found["mean"] == pytest.approx(0, abs=1e-9)
    assert found["n"] == BOARDS.n_folds


@pytest.mark.parametrize("metric", ["rmse", "r2", "mae", "mbe"])
def test_the_gap_is_the_difference_of_the_scores_of_each_colour(metric: str, panel: Panel) -> None:
    found = gap(rows(panel, by_half(0.5), by_half(0.3)), metric)
    by_hand = []
    for origin in range(ORIGINS):
        for colour in (0, 1):
            test = cut(BOARDS, 10 * origin + 5 * colour, panel, 1).test
            truth = panel.target.reshape(-1)[test].astype(np.float64)
            out, inside = (metrics.scores(truth, (1 - share) * truth)[metric] for share in (0.5, 0.3))
            by_hand.append(out - inside)
    assert found["mean"] == pytest.approx(np.mean(by_hand))


def test_a_colour_without_one_of_its_parts_has_no_gap(panel: Panel) -> None:
    cells = rows(panel, by_half(0.5), by_half(0.3))
    cells.loc[3, ["test_rmse", "wr_rmse", "n_test", "n_wr"]] = math.nan
    cells.loc[3, "state"] = "failed"
    found = gap(cells, "rmse")
    assert found["n"] == BOARDS.n_folds - 10  # part 3 is of one side of each colour of the origin
    less = gap(cells[cells["fold"] % 5 != 3], "rmse")
    assert less["n"] == 0
    assert math.isnan(less["mean"])
