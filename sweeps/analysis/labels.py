"""Names of arms, splits and numbers in every table, and rows in which unfinished cells have no number."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from pm25 import encoders
from pm25.metrics import METRICS, SCORES
from pm25.settings import CONTROLS, REFERENCES, UNTRAINED
from pm25.splits import HOLDOUT_PARTS
from sweeps.analysis.judgement import GAP
from sweeps.spec.design import Arm

BASELINE = "none"
WR, OOR = "WR", "OoR"

_VARIANTS: dict[str, str] = {
    "latlon": "lat/lon",
    "sincos": "sin/cos",
    "geoclip": "GeoCLIP",
    "satclip": "SatCLIP",
    "sinr": "SINR",
    "climplicit": "Climplicit",
    "torchspatial": "TorchSpatial",
    "range": "RANGE",
    "shuffled": "shuffled GeoCLIP",
    **{name: f"reference: {name}" for name in REFERENCES},
    "idw": "reference: inverse distance",
    "boosting-place": "reference: boosting with place",
}
_FUSIONS = {"hadamard": "Hadamard"}


def merit(values: pd.Series, metric: str) -> pd.Series:
    """Turn scores into values of which larger ones are better: R2 as it is, errors negated."""
    return values if METRICS[metric].better == "higher" else -values.abs()


def complete(means: pd.DataFrame) -> pd.DataFrame:
    """Select the arms whose cells all have a number, the best first.

    `means` are lines of `inference.means`, of one split and evaluation set.
    """
    lines = means[(means["n"] == means["n_expected"]) & (means["n"] > 0)]
    if lines.empty:
        return lines
    order = merit(lines["mean"], str(lines["metric"].iloc[0])).sort_values(ascending=False, kind="stable")
    return lines.loc[order.index]


def without_references(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of arms, from rows of cells or of means; references are neither ranked nor tested."""
    return rows[~rows["variant"].isin(REFERENCES)]


def arm(variant: str, fusion: str | float | None) -> str:
    """Label an arm: 'none', 'lat/lon', 'GeoCLIP · Hadamard'. A fusion of None or NaN is not a fusion.

    The arm 'none' with a fusion is the matched head: an encoder arm's layers, fed a constant.
    """
    if drawn := UNTRAINED.fullmatch(variant):
        return arm(drawn[1], fusion).replace(
            _VARIANTS[drawn[1]], f"untrained {_VARIANTS[drawn[1]]} {drawn[2]}"
        )
    name = _VARIANTS.get(variant) or encoders.label(variant) or variant
    if not isinstance(fusion, str) or not fusion:
        return name
    fused = _FUSIONS.get(fusion, fusion)
    return f"none · matched {fused}" if variant == BASELINE else f"{name} · {fused}"


def of_arm(one: Arm) -> str:
    """Label an arm of the design as `arm` does."""
    return arm(one.variant, one.fusion)


def arm_of(variant: str, fusion: str | float | None) -> Arm:
    """Find the arm of a row from its columns `variant` and `fusion` (the inverse of `of_arm`)."""
    if not isinstance(fusion, str) or not fusion:
        return Arm(variant, None)
    return Arm(variant, fusion, "matched" if variant == BASELINE else None)  # type: ignore[arg-type]


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Copy the rows with scores (`test_*`, `wr_*`) of done cells alone; others, and infinite ones, are NaN.

    Raises ValueError if two rows are the same arm, split, fold and seed: their mean would mean nothing.
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
    numbers = cells.reindex(columns=scores).astype("float64").to_numpy(copy=True)
    numbers[~np.isfinite(numbers) | (cells["state"] != "done").to_numpy()[:, None]] = math.nan
    cells[scores] = numbers
    return cells


def with_arm(rows: pd.DataFrame) -> pd.DataFrame:
    """Copy the rows as `measured` does, with the label of each row's arm in a column `arm`."""
    cells = measured(rows)
    labels = [arm(v, f) for v, f in zip(cells["variant"], cells["fusion"], strict=True)]
    return cells.assign(arm=pd.Series(labels, index=cells.index, dtype="str"))


def regime_of(regime: str, part: str) -> str:
    """Name the regime of one evaluation set of a split: 'WR', 'OoR', or 'gap' for their difference."""
    return GAP if part == GAP else WR if part == "wr" else regime


def directions(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the OoR rows and make each held-out region a split of its own; not those of repeated splits."""
    cells = rows.loc[(rows["regime"] == OOR) & ~rows["kind"].isin(["checkerboards", "blocks"])]
    labels = [direction(split, fold) for split, fold in zip(cells["split"], cells["fold"], strict=True)]
    cells = cells.assign(split=pd.Series(labels, index=cells.index, dtype="str"))
    return cells.iloc[sorted(range(len(cells)), key=lambda i: int(cells["fold"].iloc[i]))]


def direction(split: str, fold: int) -> str:
    """Label one split of `directions`."""
    return f"{split} · {held_out(split, fold)}"


def held_out(split: str, fold: int) -> str:
    """Name the region that a fold of an OoR split holds out.

    It is a colour on a checkerboard, and a set of blocks in a split of blocks.
    """
    if split.startswith("checkerboards"):
        half, part = divmod(fold, HOLDOUT_PARTS) if "-rotate" in split else (fold, None)
        origin, colour = divmod(half, 2)
        rotated = "" if part is None else f", part {part} within"
        return f"origin {origin}, colour {colour} held out{rotated}"
    kinds = {"checkerboard": "colour", "blocks": "blocks of fold"}
    return f"{kinds.get(split.split('-')[0], 'region')} {fold} held out"


def region(split: str, fold: int) -> tuple[str, int]:
    """Name the kind of region that a fold of an OoR split is about, with its number: ("origin", 3).

    The two halves of an origin have one number, and so have the parts of a rotating holdout.
    """
    if split.startswith("checkerboards"):
        return "origin", fold // (2 * HOLDOUT_PARTS if "-rotate" in split else 2)
    return ("colour" if split.startswith("checkerboard") else "region"), fold


def split_title(split: str) -> str:
    """Name a split in tables and figures; a random split says that its result holds at these monitors."""
    return "random, at these monitors" if split == "random" else split


def number(value: float, metric: str, sign: bool = False) -> str:
    """Format a value with the metric's digits; '–' for NaN."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 1e5:  # a training that diverged
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    digits = METRICS[metric].digits
    return f"{value:+z.{digits}f}" if sign else f"{value:z.{digits}f}"


def is_control(arm: str, means: pd.DataFrame) -> bool:
    """Return True if the arm of this label is a control: one of `CONTROLS`, a matched head, or untrained."""
    (line,) = means[means["arm"] == arm].head(1).to_dict("records")
    matched = line["variant"] == BASELINE and arm != BASELINE
    return line["variant"] in CONTROLS or matched or UNTRAINED.fullmatch(line["variant"]) is not None
