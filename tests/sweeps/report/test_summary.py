"""The answer of the report, from contrasts whose numbers are known.

`ANSWERS` is the only place that pins complete sentences; other tests assert the facts in them.
"""

import itertools
import math
import re
from typing import Any

import pandas as pd
import pytest

from sweeps.analysis import estimands
from sweeps.report import summary
from sweeps.report.data import ReportData
from sweeps.spec.claims import Analysis

GEOCLIP = "GeoCLIP · Hadamard"
KINDS = {"random": "random", "spatial": "spatial", "checkerboard-16": "checkerboard"}
KINDS |= {"checkerboards-16-15": "checkerboards", "blocks-8": "blocks", "rolling-5": "rolling"}
DESIGN = "{kind: checkerboards, degrees: 16, origins: 15}"
LEGACY = f"the two halves of one origin have no test; {DESIGN} has one"


def contrast(split: str, verdict: str = "better", diff: float = -0.5, **more: Any) -> dict[str, Any]:
    """One line of `inference.contrasts`: GeoCLIP against 'none', 0.5 µg/m³ lower, p = 0.01."""
    about = estimands.of(KINDS[split])
    few = verdict == "too few"
    nan = math.nan
    line = {"arm": GEOCLIP, "other": "none", "split": split, "part": "test", "metric": "rmse"}
    line |= {"regime": "OoR" if about.name.startswith("regions") else "WR", "fold": None}
    line |= {"estimand": about.name, "unit": about.unit, "n_pairs": 10, "n_units": 15, "n_better": 9}
    line |= {"mean_arm": 8.0 + diff, "mean_other": 8.0, "diff": diff, "rope": 0.08, "declared": True}
    line |= {"low": nan if few else diff - 0.1, "high": nan if few else diff + 0.1, "p": nan if few else 0.01}
    line |= {"df": nan if few else 14.0, "test": "" if few else about.test, "p_adjusted": line["p"]}
    line |= {"verdict": verdict, "untested": LEGACY if few else "", "sensitivity": "", "unfair": ""}
    line |= dict.fromkeys(("keys_arm", "keys_other", "without", "without_verdict"), "")
    line |= dict.fromkeys(("without_diff", "without_low", "without_high", "without_p_adjusted"), nan)
    line |= dict.fromkeys(("p_better", "p_equal", "p_worse"), nan)
    return line | more


def report(*lines: dict[str, Any], arms: tuple[str, ...] = ("none", "geoclip"), **more: Any) -> ReportData:
    """Data of a report with these contrasts, 4 of whose 5 cells are done."""
    fusion = {"geoclip": "hadamard", "random": "hadamard"}
    rows = pd.DataFrame(
        [
            {"variant": arm, "fusion": fusion.get(arm), "split": "random", "fold": i, "seed": 0}
            | {"state": "failed" if i == 4 else "done", "marked": "", "unfair": "", "tuned": ""}
            for arm in arms
            for i in range(5)
        ]
    )
    labels = {"none": "none", "geoclip": GEOCLIP, "random": "random · Hadamard", "latlon": "lat/lon"}
    means = pd.DataFrame(
        [{"arm": labels[arm], "variant": arm, "part": "test", "n_marked": 0} for arm in arms]
    )
    frame = pd.DataFrame(lines, columns=list(contrast("random")))
    return ReportData(
        rows=rows.iloc[: 5 if lines else len(rows)],
        facts={},
        analysis=Analysis(),
        metric="rmse",
        means={"rmse": means},
        contrasts={"rmse": frame.astype({"declared": bool})},
        directions={},
        direction_contrasts={},
        tail={},
        claims=pd.DataFrame(),
        **more,
    )


NUMBERS = "RMSE 0.50 µg/m³ or 6.2% lower, 95% interval [−0.60, −0.40], p = 0.010 after Holm"
ANSWERS = {
    "within and out of region": (
        report(
            contrast("random"),
            contrast("spatial", "undecided", -0.05),
            contrast("checkerboards-16-15"),
        ),
        [
            "It is undecided whether predictions for other places inside the network are better with "
            "'GeoCLIP · Hadamard' (spatial: RMSE 0.05 µg/m³ or 0.6% lower, 95% interval [−0.15, +0.05], "
            "p = 0.010 after Holm; random, at these monitors: better).",
            "With 'GeoCLIP · Hadamard', predictions for regions without monitors are better than without "
            f"location (checkerboards-16-15: {NUMBERS}).",
            "2 of 3 declared comparisons are decided (2 better, 1 undecided; 4 of 5 cells done, 1 failed).",
        ],
    ),
    "random alone": (
        report(contrast("random")),
        [
            "With 'GeoCLIP · Hadamard', predictions for other days at these monitors are better than "
            f"without location (random: {NUMBERS}; spatial: not planned).",
            "1 of 1 declared comparisons is decided (1 better; 4 of 5 cells done, 1 failed).",
        ],
    ),
    "one origin": (
        report(contrast("checkerboard-16", "too few")),
        [
            "With 'GeoCLIP · Hadamard', predictions for regions without monitors are better than without "
            "location so far, and this was not tested (checkerboard-16: RMSE 0.50 µg/m³ or 6.2% lower, "
            f"{LEGACY}).",
            "0 of 1 declared comparisons are decided (1 not tested; 4 of 5 cells done, 1 failed).",
        ],
    ),
    "equivalent": (
        report(contrast("spatial", "equal", 0.001)),
        [
            "With 'GeoCLIP · Hadamard', predictions for other places inside the network are as good as "
            "without location (spatial: RMSE the same to 0.01 µg/m³, 95% interval [−0.10, +0.10], p = 0.010 "
            "after Holm, margin 0.08 µg/m³).",
            "1 of 1 declared comparisons is decided (1 equivalent; 4 of 5 cells done, 1 failed).",
        ],
    ),
    "not declared": (
        report(contrast("spatial", "worse", 0.5, declared=False, p_adjusted=math.nan)),
        [
            "With 'GeoCLIP · Hadamard', predictions for other places inside the network are worse than "
            "without location, in a comparison that was not declared (spatial: RMSE 0.50 µg/m³ or 6.2% "
            "higher, 95% interval [+0.40, +0.60], p = 0.010, not adjusted).",
            "No comparison was declared, so every result is exploratory (4 of 5 cells done, 1 failed).",
        ],
    ),
    "one arm": (
        report(arms=("none",)),
        [
            "The study has no arm besides 'none', so there is nothing to compare.",
            "No comparison was declared, so every result is exploratory (4 of 5 cells done, 1 failed).",
        ],
    ),
    "no 'none'": (
        report(arms=("geoclip",)),
        [
            "The study has no arm 'none', so it cannot say whether the location helps.",
            "No comparison was declared, so every result is exploratory (4 of 5 cells done, 1 failed).",
        ],
    ),
    "nothing done": (
        report(contrast("random", "too few", n_pairs=0)),
        [
            "Within region, no two arms can be compared yet.",
            "0 of 1 declared comparisons are decided (1 not tested; 4 of 5 cells done, 1 failed).",
        ],
    ),
}
"""Report and the expected answer of each case."""


@pytest.mark.parametrize("case", ANSWERS)
def test_complete_answers(case: str) -> None:
    found, expected = ANSWERS[case]
    assert summary.answer(found) == expected


VERDICTS = ("better", "worse", "equal", "undecided", "too few")


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("split", KINDS)
def test_at_most_three_sentences_of_at_most_25_words_with_the_numbers_in_brackets(
    split: str, declared: bool
) -> None:
    for verdict, beside in itertools.product(VERDICTS, VERDICTS):
        other = "checkerboards-16-15" if split != "checkerboards-16-15" else "spatial"
        lines = (
            contrast(place, one, declared=declared) for place, one in ((split, verdict), (other, beside))
        )
        sentences = summary.answer(report(*lines))
        assert len(sentences) <= 3
        for sentence in sentences:
            plain = re.sub(r" \(.*\)", "", sentence)
            assert len(plain.split()) <= 25, plain
            assert plain.count(".") == 1, plain
            assert sentence == sentences[-1] or not re.search(r"\d", plain), plain


@pytest.mark.parametrize("verdict", ["better", "undecided", "too few"])
def test_beside_a_better_result_at_these_monitors_stands_the_spatial_one(verdict: str) -> None:
    random, spatial = contrast("random"), contrast("spatial", verdict)
    assert summary.other_places(random, [random, spatial]) == f"spatial: {summary.verdict(spatial)} −0.50"
    assert summary.other_places(random, [random]) == summary.NO_SPATIAL
    another = {**spatial, "arm": "lat/lon"}
    assert summary.other_places(random, [random, another]) == summary.NO_SPATIAL
    for other in ("worse", "equal", "undecided", "too few"):
        assert summary.other_places(contrast("random", other), [spatial]) == ""
    assert summary.other_places(spatial, [random, spatial]) == ""
    said = summary.answer(report(random, spatial))[0]
    assert "random, at these monitors: better" in said or "spatial: not tested" in said


def test_the_words_of_a_verdict() -> None:
    words = {"better": "better", "equal": "equivalent", "too few": "not tested"}
    for verdict, word in words.items():
        assert summary.verdict(contrast("spatial", verdict)) == word
        undeclared = contrast("spatial", verdict, declared=False)
        assert summary.verdict(undeclared) == ("not tested" if verdict == "too few" else "exploratory")
    assert summary.verdict(contrast("spatial", n_pairs=0)) == "no pairs"


def test_a_control_is_not_the_answer() -> None:
    control = contrast("spatial", "better", -2.0, arm="random · Hadamard")
    (within, _) = summary.answer(report(control, contrast("spatial"), arms=("none", "geoclip", "random")))
    assert within.startswith("With 'GeoCLIP · Hadamard',")
    (within, _) = summary.answer(report(control, arms=("none", "geoclip", "random")))
    assert within.startswith("With 'random · Hadamard',")


def test_the_best_arm_is_the_one_that_is_better_then_the_one_with_the_largest_gain() -> None:
    undecided = contrast("spatial", "undecided", -2.0, arm="lat/lon")
    arms = ("none", "geoclip", "latlon")
    (within, _) = summary.answer(report(undecided, contrast("spatial"), arms=arms))
    assert within.startswith("With 'GeoCLIP · Hadamard',")
    (within, _) = summary.answer(report(undecided, contrast("spatial", "undecided"), arms=arms))
    assert "'lat/lon'" in within
    r2 = [contrast("spatial", diff=d, metric="r2", arm=arm) for d, arm in ((0.1, GEOCLIP), (0.2, "lat/lon"))]
    assert summary.answer(report(*r2, arms=arms))[0].startswith("With 'lat/lon',")


def test_a_claim_that_none_is_better_is_reversed() -> None:
    (line,) = summary.against_none([contrast("spatial", arm="none", other="lat/lon")])
    assert (line["arm"], line["other"], line["verdict"], line["diff"]) == ("lat/lon", "none", "worse", 0.5)
    assert (line["low"], line["high"], line["n_better"]) == (pytest.approx(0.4), pytest.approx(0.6), 1)


def test_a_confounded_difference_is_marked() -> None:
    found = report(contrast("spatial", unfair="in every pair: torch"))
    assert "6.2% lower‡," in summary.answer(found)[0]
    assert "1 of 1 contrast" in summary.cautions(found)[0]
