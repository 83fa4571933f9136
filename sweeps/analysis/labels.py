"""Names of arms, splits and metrics in every table, and rows whose unfinished cells hold no number."""

from __future__ import annotations

import math

import pandas as pd

from pm25.metrics import METRICS, SCORES
from pm25.settings import CONTROLS
from sweeps.analysis import labels

BASELINE = "none"
WR, OOR, GAP = "WR", "OoR", "OoR − WR"


def merit(values: pd.Series, metric: str) -> pd.Series:
    """More is better: R2 as it is, the errors negated, the bias by its size."""
    return values if METRICS[metric].better == "higher" else -values.abs()


def whole(means: pd.DataFrame) -> pd.DataFrame:
    """Lines of ``inference.means``, of one split and part, whose cells all have a number; the best first."""
    lines = means[(means["n"] == means["n_expected"]) & (means["n"] > 0)]
    if lines.empty:
        return lines
    order = merit(lines["mean"], str(lines["metric"].iloc[0])).sort_values(ascending=False, kind="stable")
    return lines.loc[order.index]


_VARIANTS = {
    "latlon": "lat/lon",
    "sincos": "sin/cos",
    "geoclip": "GeoCLIP",
    "satclip": "SatCLIP",
    "shuffled": "shuffled GeoCLIP",
}
_FUSIONS = {"hadamard": "Hadamard"}


def arm(variant: str, fusion: str | float | None) -> str:
    """The label of an arm: 'none', 'lat/lon', 'GeoCLIP · Hadamard'. A fusion of None or NaN is no fusion.

    'none' with a fusion has an encoder arm's layers, fed a constant: the matched head.
    """
    name = _VARIANTS.get(variant, variant)
    if variant == BASELINE and isinstance(fusion, str) and fusion:
        return f"none · matched {_FUSIONS.get(fusion, fusion)}"
    return f"{name} · {_FUSIONS.get(fusion, fusion)}" if isinstance(fusion, str) and fusion else name


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """A copy of the rows in which only a done cell has finite scores (``test_*``, ``wr_*``); others are NaN.

    Raises ValueError when two rows are the same arm, split, fold and seed: their mean would mean nothing.
    """
    cells = rows.copy()
    place = ["variant", "fusion", "split", "fold", "seed"]
    if (twice := cells.duplicated(place)).any():
        raise ValueError(f"two rows for one cell: {cells.loc[twice, place].iloc[0].to_dict()}")
    for text in ("marked", "unfair", "tuned"):
        cells[text] = cells[text].astype("object").fillna("").astype("str") if text in cells else ""
    scores = [f"{prefix}_{metric}" for prefix in ("test", "wr") for metric in SCORES]
    scores += [
        column for column in map(str, cells) if column not in scores and column.startswith(("test_", "wr_"))
    ]
    for column in scores:
        number = (
            cells[column].astype("float64") if column in cells else pd.Series(math.nan, index=cells.index)
        )
        cells[column] = number.where((cells["state"] == "done") & (number.abs() < math.inf))
    return cells


def with_arm(rows: pd.DataFrame) -> pd.DataFrame:
    """``measured(rows)`` with a column ``arm``."""
    cells = measured(rows)
    labels = [arm(v, f) for v, f in zip(cells["variant"], cells["fusion"], strict=True)]
    return cells.assign(arm=pd.Series(labels, index=cells.index, dtype="str"))


def directions(rows: pd.DataFrame) -> pd.DataFrame:
    """The OoR rows with each held-out region as a split of its own."""
    cells = rows.loc[rows["regime"] == OOR]
    labels = [direction(split, fold) for split, fold in zip(cells["split"], cells["fold"], strict=True)]
    cells = cells.assign(split=pd.Series(labels, index=cells.index, dtype="str"))
    return cells.iloc[sorted(range(len(cells)), key=lambda i: int(cells["fold"].iloc[i]))]


def direction(split: str, fold: int) -> str:
    """What ``directions`` calls one."""
    return f"{split} · {held_out(split, fold)}"


def held_out(split: str, fold: int) -> str:
    """What a fold of an OoR split holds out: one colour of a checkerboard, or a region."""
    return f"{'colour' if split.startswith('checkerboard') else 'region'} {fold} held out"


def number(value: float, metric: str, sign: bool = False) -> str:
    """A value in the metric's digits; '–' where there is none."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 1e5:  # a training that ran away
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    digits = METRICS[metric].digits
    return f"{value:+z.{digits}f}" if sign else f"{value:z.{digits}f}"


def is_control(arm: str, means: pd.DataFrame) -> bool:
    """Whether an arm is none that anyone would use: its encoder says nothing, or there is none behind it."""
    (line,) = means[means["arm"] == arm].head(1).to_dict("records")
    matched = line["variant"] == labels.BASELINE and arm != labels.BASELINE
    return line["variant"] in CONTROLS or matched
