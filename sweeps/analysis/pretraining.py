"""Is it the pretraining? Trained encoders beside fresh networks of their architecture, names and capacity.

Better than 'none' does not mean that the pretraining helps. An arm with an encoder also has more layers, and
every place has a vector of its own. Other arms tell them apart. The *matched head* has the layers alone.
`random` gives each place a name without geography. An *untrained* encoder codes the position as its
architecture does.

The test is a Monte Carlo test over the draws (Davison and Hinkley 1997, eq. 4.11). If k
of M draws are at least as good as the trained encoder, p = (1 + k) / (M + 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from pm25.settings import UNTRAINED, trained_encoder
from pm25.text import counted
from sweeps.analysis import labels

Finding = Literal["pretraining", "position", "name", "capacity", "no gain", "too few draws"]
"""Least that explains the gain over 'none': capacity, a name for each place, its position, or pretraining."""


class Comparison(NamedTuple):
    """Scores of a trained encoder and of what it is compared with, on one split; NaN for a missing arm."""

    arm: str
    split: str
    regime: str
    metric: str
    trained: float
    draws: tuple[float, ...]
    """Scores of the untrained encoder, one for each draw."""
    none: float
    random: float
    """Score of a random vector for each place, with the same fusion."""
    matched: float
    """Score of the matched head of the same fusion."""
    p: float
    """Monte Carlo p that a draw is at least as good."""
    finding: Finding


def compare(means: pd.DataFrame, alpha: float) -> list[Comparison]:
    """Compare every trained encoder with the draws of its architecture, on the test samples of each split.

    `means` are lines of `inference.means` of one metric. Arms without all their cells are left out. The
    finding is 'pretraining' if p is at most `alpha`, and 'too few draws' if no p of so many draws could be.
    """
    return [
        found
        for (split, part), lines in means.groupby(["split", "part"], sort=False)
        if part == "test"
        for found in _on_split(labels.complete(lines), str(split), alpha)
    ]


def _on_split(lines: pd.DataFrame, split: str, alpha: float) -> Iterator[Comparison]:
    """Yield the comparisons on one split, in the order of the encoders' names."""
    scores = dict(zip(lines["arm"], lines["mean"].astype(float), strict=True))
    draws: dict[tuple[str, str], list[float]] = {}
    for variant, fusion, score in zip(lines["variant"], lines["fusion"], lines["mean"], strict=True):
        if UNTRAINED.fullmatch(variant):
            draws.setdefault((trained_encoder(variant), fusion), []).append(float(score))
    for (encoder, fusion), found in sorted(draws.items()):
        arm = labels.arm(encoder, fusion)
        if arm not in scores:
            continue
        metric, regime = str(lines["metric"].iloc[0]), str(lines["regime"].iloc[0])
        others = (labels.arm(labels.BASELINE, None), labels.arm("random", fusion), labels.arm("none", fusion))
        none, random, matched = (scores.get(name, math.nan) for name in others)
        own = Comparison(
            arm, split, regime, metric, scores[arm], tuple(found), none, random, matched, math.nan, "no gain"
        )
        yield _judged(own, alpha)


def _judged(own: Comparison, alpha: float) -> Comparison:
    """Add the p-value and the finding."""
    trained, none, random, matched = _merit(own, own.trained, own.none, own.random, own.matched)
    draws = _merit(own, *own.draws)
    as_good = int((draws >= trained).sum())
    p = (1 + as_good) / (len(draws) + 1)
    finding: Finding = "position"
    if trained <= none:
        finding = "no gain"
    elif p <= alpha:
        finding = "pretraining"
    elif not as_good:
        finding = "too few draws"
    elif matched >= draws.min():
        finding = "capacity"
    elif random >= draws.min():
        finding = "name"
    return own._replace(p=p, finding=finding)


def _merit(own: Comparison, *scores: float) -> np.ndarray:
    """Turn scores into values of which larger ones are better."""
    return labels.merit(pd.Series(scores, dtype=float), own.metric).to_numpy()


def sentence(own: Comparison, alpha: float) -> str:
    """Answer in one sentence whether the pretraining explains a gain."""
    low, high = (labels.number(value, own.metric) for value in (min(own.draws), max(own.draws)))
    reach = f"{low} to {high}" if low != high else low
    drawn = f"{counted(len(own.draws), 'untrained draw')} reached {reach}, p = {own.p:.2g}"
    needed = math.ceil(1 / alpha - 1e-9) - 1
    words: dict[Finding, str] = {
        "pretraining": "the gain comes from geography that the pretraining has learnt",
        "position": "the gain comes from the position, which an untrained network codes as well",
        "name": "the gain is a name for the place: random vectors do as well",
        "capacity": "the gain is capacity: the same layers without a place do as well",
        "no gain": "it does not gain on no location, so nothing is to be explained",
        "too few draws": f"no draw is as good, and {needed} draws are needed to decide",
    }
    return f"{own.arm}, split {own.split}: {words[own.finding]} ({drawn})."
