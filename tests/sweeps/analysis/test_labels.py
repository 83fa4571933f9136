"""Labels of arms and splits, digits of numbers, and rows in which only done cells have scores."""

import math
import re

import pandas as pd
import pytest

from pm25.metrics import SCORES
from sweeps.analysis import inference, labels
from sweeps.spec.claims import Analysis
from sweeps.spec.design import Arm

NAN = math.nan
BOARD = "checkerboard-16"


def cell(variant, split, fold, seed, test=NAN, wr=NAN, *, state="done", fusion=None):
    """A row of the table of results whose metrics are the same number."""
    row = {
        "key": f"{variant}{fusion}{split}{fold}{seed}",
        "variant": variant,
        "fusion": fusion,
        "split": split,
        "regime": "OoR" if split.startswith("checkerboard") else "WR",
        "fold": fold,
        "folds": 2,
        "kind": split.split("-")[0],
        "unit": 0,
        "seed": seed,
        "state": state,
    }
    row |= {f"test_{metric}": test for metric in SCORES}
    row |= {f"wr_{metric}": wr for metric in SCORES}
    return row | {"marked": "", "unfair": "", "tuned": ""}


@pytest.fixture
def rows():
    return pd.DataFrame(
        [
            cell("none", "random", 0, 0, 4.0),
            cell("none", BOARD, 0, 0, 10.0, 7.0),
            cell("none", BOARD, 1, 0, 12.0, 8.0),
            cell("geoclip", "random", 0, 0, 3.0, fusion="hadamard"),
            # It failed with a number left behind, which does not count.
            cell("geoclip", "random", 1, 0, 0.001, fusion="hadamard", state="failed"),
            cell("latlon", "random", 0, 0, state="missing"),
            cell("latlon", BOARD, 0, 0, math.inf),
        ]
    )


def test_labels():
    assert labels.arm("none", None) == "none"
    assert labels.arm("latlon", NAN) == "lat/lon"
    assert labels.arm("sincos", None) == "sin/cos"
    assert labels.arm("geoclip", "hadamard") == "GeoCLIP · Hadamard"
    assert labels.arm("satclip", "concat") == "SatCLIP · concat"
    assert labels.arm("shuffled", "film") == "shuffled GeoCLIP · film"
    assert labels.arm("none", "hadamard") == "none · matched Hadamard"
    assert labels.arm("none", "gated") == "none · matched gated"
    assert labels.arm("none", "") == "none"


@pytest.mark.parametrize(
    "arm", [Arm("none", None), Arm("latlon", None), Arm("geoclip", "film"), Arm("none", "gated", "matched")]
)
def test_an_arm_is_found_again_from_its_row(arm):
    assert labels.arm_of(arm.variant, arm.fusion) == arm
    assert labels.arm_of(arm.variant, arm.fusion or NAN) == arm
    assert labels.of_arm(arm) == labels.arm(arm.variant, arm.fusion)


def test_only_a_done_cell_has_a_number(rows):
    found = labels.measured(rows)
    assert found["test_rmse"].isna().tolist() == [False] * 4 + [True] * 3
    assert found["wr_r2"].notna().sum() == 2
    assert rows["test_rmse"].isna().sum() == 1, "the rows themselves stay as they are"
    assert list(labels.with_arm(rows)["arm"][:4]) == [*["none"] * 3, "GeoCLIP · Hadamard"]


def test_one_cell_twice_is_refused(rows):
    with pytest.raises(ValueError, match="'split': 'random'"):
        labels.measured(pd.concat([rows, rows.iloc[:1]], ignore_index=True))


def test_digits_belong_to_the_metric():
    assert labels.number(-0.0004, "r2") == "0.000"
    assert labels.number(-0.0004, "mbe", sign=True) == "+0.00"
    assert labels.number(3.2e7, "rmse") == "3.20e+07"
    assert labels.number(NAN, "rmse") == "–"


def test_each_direction_on_its_own(rows):
    found = inference.means(labels.directions(rows), Analysis()).set_index(["arm", "split", "part"])
    held_out = f"{BOARD} · colour 1 held out"
    assert found.loc[("none", held_out, "test"), "mean"] == 12.0
    assert found.loc[("none", held_out, "wr"), "mean"] == 8.0
    assert labels.direction(BOARD, 1) == held_out


@pytest.mark.parametrize(
    ("split", "fold", "numbers"),
    [
        ("checkerboards-16", 7, [3, 1]),
        ("checkerboards-16-rotate", 37, [3, 1, 2]),
        ("checkerboards-16-rotate-buffer100km", 37, [3, 1, 2]),
        ("blocks-8", 12, [12]),
        ("clusters-5", 4, [4]),
    ],
)
def test_a_held_out_region_has_its_numbers(split, fold, numbers):
    assert [int(number) for number in re.findall(r"\d+", labels.held_out(split, fold))] == numbers
