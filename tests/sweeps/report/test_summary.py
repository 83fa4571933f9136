"""The answer of the report, from contrasts whose differences are known.

`ANSWERS` is the only place that pins complete sentences; other tests assert the facts in them.
"""

import math
from typing import Any

import pandas as pd
import pytest

from sweeps.report import data, summary
from sweeps.spec.claims import Analysis, ArmChoice, Claim, EvaluationPlace

WOBBLE = (0.1, -0.1, 0.05, -0.05, 0.0)
"""Deviation of an arm's difference by fold, zero on average."""
GEOCLIP = ArmChoice(variant="geoclip", fusion="hadamard")


def study(
    shift: float = -0.5, split: str = "random", lost: dict[str, int] | None = None, seeds: int = 2
) -> pd.DataFrame:
    """Rows of 'none' and of GeoCLIP, which differs by `shift`, on five folds or two colours.

    `lost` has the number of failed cells by variant.
    """
    board = split.startswith("checkerboard")
    lines: list[dict[str, Any]] = []
    for variant, fusion in (("none", None), ("geoclip", "hadamard")):
        failed = (lost or {}).get(variant, 0)
        for fold in range(2 if board else 5):
            for seed in range(seeds):
                error = 8.0 + fold + (shift + WOBBLE[fold]) * (variant != "none")
                done = failed <= 0
                failed -= 1
                line = {"key": f"k{len(lines)}", "variant": variant, "fusion": fusion, "split": split}
                line |= {"regime": "OoR" if board else "WR", "fold": fold, "folds": 2 if board else 5}
                line |= {
                    "seed": seed,
                    "state": "done" if done else "failed",
                    "error": None if done else "E: x",
                }
                for part, value in (("test", error), ("wr", error - 1 if board else math.nan)):
                    scores = {"rmse": value, "r2": 1 - value / 20, "mae": value / 2, "mbe": value / 9}
                    line |= {f"{part}_{name}": score for name, score in scores.items()}
                lines.append(line | {"marked": "", "unfair": "", "tuned": ""})
    return pd.DataFrame(lines)


def claim(split: str = "random", metric: str = "rmse", fold: int | None = None) -> Claim:
    return Claim.model_validate(
        {
            "claim": f"{split} {metric} {fold}",
            "better": GEOCLIP,
            "than": ArmChoice(variant="none"),
            "on": EvaluationPlace(split=split, fold=fold),
            "metric": metric,
        }
    )


def answer(rows: pd.DataFrame, *claims: Claim, **analysis: Any) -> list[str]:
    return summary.answer(data.build_report_data(rows, {"study": "toy"}, Analysis(**analysis), claims))


BOARD = "checkerboard-16"
ANSWERS = {
    "better": (
        study(),
        [claim()],
        [
            "Within region, on random, 'GeoCLIP · Hadamard' is better than 'none' by more than the margin "
            "of 0.10 µg/m³. The RMSE of 'GeoCLIP · Hadamard' is 0.50 µg/m³ lower than that of 'none' (95% "
            "interval [−0.65, −0.35]; corrected resampled t-test, p < 0.001 after Holm; 5 test sets).",
            "Nothing is open: the test decides the only declared contrast. All 20 cells are done.",
        ],
    ),
    "too few": (
        study(lost={"geoclip": 6}),
        [claim()],
        [
            "Within region, on random, nothing is tested, because 2 test sets are too few. The RMSE of "
            "'GeoCLIP · Hadamard' is 0.53 µg/m³ lower than that of 'none' (better in 4 of 4 pairs; 4 of 10 "
            "pairs have a score).",
            "Too few test sets for a test: 'GeoCLIP · Hadamard' on random. Of 20 cells, 6 failed. Arms "
            "without all their cells are not ranked.",
        ],
    ),
    "single folds": (
        study(split=BOARD),
        [claim(BOARD, fold=0), claim(BOARD, fold=1)],
        [
            "Within region, on held-out sites of the training regions of checkerboard-16, nothing is tested, "
            "because 2 test sets are too few. The RMSE of 'GeoCLIP · Hadamard' is 0.50 µg/m³ lower than that "
            "of 'none' (better in 4 of 4 pairs).",
            "Out of region, on checkerboard-16, only contrasts of single folds are declared; over all "
            "folds, nothing is tested, because 2 test sets are too few. The RMSE of 'GeoCLIP · Hadamard' "
            "is 0.50 µg/m³ lower than that of 'none' (better in 4 of 4 pairs).",
            "Too few test sets for a test: 'GeoCLIP · Hadamard' on checkerboard-16, colour 0 held out, "
            "'GeoCLIP · Hadamard' on checkerboard-16, colour 1 held out. All 8 cells are done.",
        ],
    ),
    "two metrics": (
        study(shift=-0.09),
        [claim(metric="rmse"), claim(metric="mae")],
        [
            "Within region, on random, it is undecided whether 'GeoCLIP · Hadamard' differs from 'none' "
            "by more than the margin of 0.10 µg/m³. The RMSE of 'GeoCLIP · Hadamard' is 0.09 µg/m³ lower "
            "than that of 'none' (95% interval [−0.24, +0.06]; corrected resampled t-test, p = 0.330 "
            "after Holm; 5 test sets).",
            "Undecided: 'GeoCLIP · Hadamard' on random by RMSE, 'GeoCLIP · Hadamard' on random by MAE. "
            "All 20 cells are done.",
        ],
    ),
    "one arm": (
        study().iloc[:10],
        [],
        [
            "Within region, on random, 'none' has the lowest mean RMSE, 10.00 µg/m³ (10 cells). It is the "
            "only arm.",
            "No contrast is declared, so nothing was tested. All 10 cells are done.",
        ],
    ),
    "no cell": (
        study().iloc[:0],
        [],
        ["No contrast is declared, so nothing was tested. The study has no cell."],
    ),
}
"""Rows, claims and the expected answer of each case."""


@pytest.mark.parametrize("case", ANSWERS)
def test_complete_answers(case: str) -> None:
    rows, claims, expected = ANSWERS[case]
    assert answer(rows, *claims) == expected


def test_a_declared_contrast_without_all_its_cells_is_reported_with_its_pairs() -> None:
    within, rest = answer(study(lost={"geoclip": 1}), claim())
    assert "'GeoCLIP · Hadamard' is better than 'none'" in within
    assert "9 of 10 pairs" in within
    assert "exploratory" not in within
    assert "Of 20 cells, 1 failed" in rest


def test_one_test_set_is_too_few() -> None:
    within, _ = answer(study(lost={"geoclip": 8}), claim())
    assert "nothing is tested" in within
    assert "1 test set " in within
    assert "'GeoCLIP · Hadamard'" in within


def test_over_all_folds_a_claim_about_one_fold_is_exploratory() -> None:
    within, _ = answer(study(), claim(fold=0))
    assert "single folds" in within
    assert "exploratory" in within
    assert "not adjusted" in within


@pytest.mark.parametrize(
    ("shift", "verdict", "difference"),
    [
        (-0.5, "is better than", "0.50 µg/m³ lower"),
        (0.5, "is worse than", "0.50 µg/m³ higher"),
        (-0.1, "undecided", "0.10 µg/m³ lower"),
    ],
)
def test_the_verdict_in_words(shift: float, verdict: str, difference: str) -> None:
    within, rest = answer(study(shift), claim())
    assert verdict in within
    assert difference in within
    assert "margin of 0.10 µg/m³" in within
    assert ("Undecided: 'GeoCLIP · Hadamard' on random" in rest) is (verdict == "undecided")
    assert ("Nothing is open" in rest) is (verdict != "undecided")


def test_practically_equal_needs_a_margin_wider_than_the_interval() -> None:
    within, _ = answer(study(-0.02), claim(), rope=0.05)
    assert "'GeoCLIP · Hadamard' and 'none' are practically equal" in within
    assert "margin of 0.50 µg/m³" in within
    within, _ = answer(study(-0.02), claim(), rope=0.01)
    assert "undecided" in within


@pytest.mark.parametrize(("cells", "count"), [(20, "20 cells"), (10, "10 cells"), (1, "only cell")])
def test_the_number_of_cells(cells: int, count: str) -> None:
    assert count in answer(study().iloc[:cells].reset_index(drop=True))[-1]


def test_wilcoxon_cannot_decide_five_test_sets() -> None:
    within, _ = answer(study(), claim(), test="wilcoxon")
    assert "nothing is tested" in within
    assert "5 test sets" in within
    assert "p =" not in within
