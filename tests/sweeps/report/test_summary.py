"""The answer's sentences, from contrasts whose differences are known: no more than the test says."""

import math
from typing import Any

import pandas as pd
import pytest

from sweeps.report import data, write
from sweeps.spec.claims import Analysis, ArmChoice, Claim, EvaluationPlace

WOBBLE = (0.1, -0.1, 0.05, -0.05, 0.0)
"""By fold, what an arm's difference is off by: zero on average."""
GEOCLIP = ArmChoice(variant="geoclip", fusion="hadamard")


def study(
    shift: float = -0.5, split: str = "random", lost: dict[str, int] | None = None, seeds: int = 2
) -> pd.DataFrame:
    """'none', and GeoCLIP so far from it, on five folds or two colours; so many of an arm's cells failed."""
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
    return write.answer(data.build_report_data(rows, {"study": "toy"}, Analysis(**analysis), claims))


def test_a_declared_contrast_without_all_its_cells_is_told_with_its_pairs() -> None:
    within, rest = answer(study(lost={"geoclip": 1}), claim())
    assert "'GeoCLIP · Hadamard' is better than 'none' by more than the margin" in within
    assert within.endswith("5 test sets; 9 of 10 pairs have a number).")
    assert "exploratory" not in within
    assert rest == "Open: of 20 cells 1 failed, and an arm without all its cells is not ranked."


def test_one_test_set_is_too_few() -> None:
    within, _ = answer(study(lost={"geoclip": 8}), claim())
    assert "nothing is tested, for 1 test set is too few: 'GeoCLIP · Hadamard'" in within


def test_a_declared_contrast_that_lost_its_test_sets_is_too_few() -> None:
    within, rest = answer(study(lost={"geoclip": 6}), claim())
    assert within == (
        "Within region, on random nothing is tested, for 2 test sets are too few: 'GeoCLIP · Hadamard' "
        "against 'none', its RMSE is 0.53 µg/m³ lower (better in 4 of 4 pairs; 4 of 10 pairs have a number)."
    )
    assert rest.startswith("Open: with too few test sets for a test: 'GeoCLIP · Hadamard' on random;")


def test_contrasts_of_single_folds_are_no_contrasts_of_all() -> None:
    board = "checkerboard-16"
    _, out, rest = answer(study(split=board), claim(board, fold=0), claim(board, fold=1))
    assert out.startswith(
        "Out of region, on checkerboard-16 contrasts with 'none' are declared of single folds; over all of "
        "them, nothing is tested, for 2 test sets are too few: 'GeoCLIP · Hadamard' against 'none', its RMSE "
    )
    assert rest == (
        "Open: with too few test sets for a test: 'GeoCLIP · Hadamard' on checkerboard-16, colour 0 held "
        "out, 'GeoCLIP · Hadamard' on checkerboard-16, colour 1 held out; all 8 cells are done."
    )
    within, _ = answer(study(), claim(fold=0))
    assert (
        "are declared of single folds; over all of them, exploratory, 'GeoCLIP · Hadamard' against" in within
    )
    assert "not adjusted" in within


def test_of_several_metrics_the_open_ones_are_told_by_name() -> None:
    _, rest = answer(study(shift=-0.09), claim(metric="rmse"), claim(metric="mae"))
    assert rest == (
        "Open: undecided: 'GeoCLIP · Hadamard' on random by RMSE, 'GeoCLIP · Hadamard' on random by MAE; all "
        "20 cells are done."
    )


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        (-0.5, "is better than 'none' by more than the margin of 0.10 µg/m³: its RMSE is 0.50 µg/m³ lower"),
        (0.5, "is worse than 'none' by more than the margin of 0.10 µg/m³: its RMSE is 0.50 µg/m³ higher"),
        (-0.1, "it is undecided whether 'GeoCLIP · Hadamard' differs from 'none' by more than the margin of"),
    ],
)
def test_the_verdict_in_words(shift: float, said: str) -> None:
    within, rest = answer(study(shift), claim())
    assert said in within
    assert rest.startswith("Open: undecided" if shift == -0.1 else "Nothing is open")


def test_practically_equal_needs_a_margin_that_holds_the_interval() -> None:
    within, _ = answer(study(-0.02), claim(), rope=0.05)
    assert "'GeoCLIP · Hadamard' and 'none' are practically equal, within the margin of 0.50 µg/m³" in within
    within, _ = answer(study(-0.02), claim(), rope=0.01)
    assert "it is undecided" in within


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (study(), "Nothing is open: the test decides the one declared contrast, and all 20 cells are done."),
        (study().iloc[:10], "Nothing is declared, so nothing was tested; all 10 cells are done."),
        (study().iloc[:1], "Nothing is declared, so nothing was tested; its one cell is done."),
        (study().iloc[:0], "Nothing is declared, so nothing was tested; it has no cell."),
    ],
)
def test_what_is_open_of_few_cells(rows: pd.DataFrame, said: str) -> None:
    assert answer(rows.reset_index(drop=True))[-1] == said


def test_wilcoxon_cannot_decide_five_test_sets() -> None:
    within, _ = answer(study(), claim(), test="wilcoxon")
    assert "nothing is tested, for 5 test sets are too few" in within
    assert "p =" not in within
