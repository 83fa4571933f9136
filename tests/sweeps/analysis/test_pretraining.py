"""What a gain comes from: a Monte Carlo p over draws by hand, and each of the findings."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.analysis import labels, pretraining
from sweeps.analysis.pretraining import Comparison

NONE, MATCHED, NAMED = 8.0, 7.95, 7.9


def means(trained: float, draws: list[float], *, metric: str = "rmse", **others: float) -> pd.DataFrame:
    """Lines of means on one split; `others` replace the scores of none, random and matched."""
    found = {"none": NONE, "random": NAMED, "matched": MATCHED} | others
    arms = [
        ("none", None, found["none"]),
        ("none", "hadamard", found["matched"]),
        ("random", "hadamard", found["random"]),
        ("geoclip", "hadamard", trained),
        *((f"untrained_geoclip_{i}", "hadamard", score) for i, score in enumerate(draws)),
    ]
    return pd.DataFrame(
        {
            "arm": labels.arm(variant, fusion),
            "variant": variant,
            "fusion": fusion,
            "split": "spatial",
            "part": "test",
            "regime": "WR",
            "metric": metric,
            "mean": score,
            "n": 5,
            "n_expected": 5,
        }
        for variant, fusion, score in arms
    )


def only(frame: pd.DataFrame) -> Comparison:
    (found,) = pretraining.compare(frame, 0.05)
    return found


def test_p_counts_the_draws_that_are_at_least_as_good() -> None:
    found = only(means(7.0, [6.9, 7.0, 7.1, 7.2]))
    assert found.p == (1 + 2) / (4 + 1)
    assert found.arm == "GeoCLIP · Hadamard"
    assert sorted(found.draws) == [6.9, 7.0, 7.1, 7.2]
    assert (found.trained, found.none, found.random, found.matched) == (7.0, NONE, NAMED, MATCHED)


@given(st.integers(0, 40), st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_p_is_that_of_the_rank_whether_lower_or_higher_is_better(trained: int, draws: list[int]) -> None:
    rank = 1 + sum(draw <= trained for draw in draws)
    assert only(means(trained / 10, [draw / 10 for draw in draws])).p == rank / (len(draws) + 1)
    higher = only(means(1 - trained / 40, [1 - draw / 40 for draw in draws], metric="r2"))
    assert higher.p == rank / (len(draws) + 1)


DRAWS = [7.1, 7.2, 7.3, *[7.4] * 16]


@pytest.mark.parametrize(
    ("trained", "draws", "others", "finding"),
    [
        (7.0, DRAWS, {}, "pretraining"),
        (7.15, DRAWS, {}, "position"),
        (7.15, DRAWS, {"random": 7.4}, "name"),
        (7.15, DRAWS, {"random": 7.4, "matched": 7.3}, "capacity"),
        (7.15, DRAWS, {"random": math.nan, "matched": math.nan}, "position"),
        (8.0, DRAWS, {}, "no gain"),
        (7.0, DRAWS[:18], {}, "too few draws"),
        (7.0, DRAWS[:18], {"none": math.nan}, "too few draws"),
    ],
)
def test_the_finding_is_the_least_that_explains_the_gain(
    trained: float, draws: list[float], others: dict[str, float], finding: str
) -> None:
    found = only(means(trained, draws, **others))
    assert found.finding == finding
    text = pretraining.sentence(found, 0.05)
    assert text.startswith("GeoCLIP · Hadamard, split spatial: ")
    assert text.endswith(").")
    assert ("19 draws are needed" in text) == (finding == "too few draws")


def test_an_incomplete_arm_is_compared_with_nothing() -> None:
    frame = means(7.0, [7.1, 7.2])
    frame.loc[frame["variant"] == "untrained_geoclip_1", "n"] = 4
    assert only(frame).draws == (7.1,)
    frame.loc[frame["variant"] == "geoclip", "n"] = 4
    assert pretraining.compare(frame, 0.05) == []


def test_its_size_is_the_level_when_the_trained_encoder_is_one_more_draw() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(7, 0.1, (400, 20))
    rejected = [only(means(own[0], own[1:].tolist(), none=9.0)).finding == "pretraining" for own in scores]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.03)
