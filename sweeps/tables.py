"""The study's cells in, the tables of a paper out: pure functions over a frame with one row per cell.

Words: a *cell* is one training (arm x split x fold x seed); WR is within region, OoR out of region; a
checkerboard cell is scored twice with one model, on OoR sites (``test_*``) and on held-out sites inside its
training region (``wr_*``), so its gap OoR - WR is paired. A cell that is not done has no number, whatever
its metric columns hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from sweeps import fairness

BASELINE = "none"
METRICS = ("rmse", "r2", "mae", "mbe")
NAMES = {"rmse": "RMSE", "r2": "R²", "mae": "MAE", "mbe": "MBE"}
UNITS = {"rmse": "µg/m³", "r2": "", "mae": "µg/m³", "mbe": "µg/m³"}
DECIMALS = {"rmse": 2, "r2": 3, "mae": 2, "mbe": 2}
WR, OOR, GAP = "WR", "OoR", "OoR − WR"

# An exact paired test on n pairs (sign flips, Wilcoxon) cannot go below p = 2 / 2**n, two-sided:
# 0.0625 for 5 pairs, 0.031 for 6.
MIN_PAIRS = 6
NOTE = (
    "Mean ± sample standard deviation over folds x seeds; n counts cells. The spread is not a confidence "
    "interval: folds share training data. n=3/4 means that one of four cells has no number. "
    "Bold: the best mean among the arms that have all their cells. Differences are paired: the same split, "
    "fold and seed, arm minus 'none'. No significance test is made; below "
    f"{MIN_PAIRS} pairs n is too small for one (the smallest two-sided p of an exact paired test is 2/2ⁿ)."
)

MARK = "†"
"""Stands at every mean that holds a cell whose audit failed."""

UNFAIR = "‡"
"""Stands at every paired difference whose arms differ in more than the declared factor."""

_VARIANTS = {
    "latlon": "lat/lon",
    "sincos": "sin/cos",
    "geoclip": "GeoCLIP",
    "satclip": "SatCLIP",
    "shuffled": "shuffled GeoCLIP",
}
_FUSIONS = {"hadamard": "Hadamard"}
_COLUMNS = {
    **dict.fromkeys(("arm", "variant", "fusion", "split", "regime", "metric"), "str"),
    **dict.fromkeys(("mean", "sd"), "float64"),
    **dict.fromkeys(("n", "n_expected", "n_failed", "n_missing", "n_marked"), "int64"),
    **dict.fromkeys(("diff_mean", "diff_sd"), "float64"),
    **dict.fromkeys(("n_pairs", "n_better"), "int64"),
    **dict.fromkeys(("wr_mean", "wr_sd"), "float64"),
    "wr_n": "int64",
    **dict.fromkeys(("wr_diff_mean", "wr_diff_sd"), "float64"),
    **dict.fromkeys(("wr_n_pairs", "wr_n_better"), "int64"),
    **dict.fromkeys(("gap_mean", "gap_sd"), "float64"),
    **dict.fromkeys(("gap_n", "n_unfair"), "int64"),
    **dict.fromkeys(("unfair", "tuned"), "str"),
}


def arm(variant: str, fusion: str | float | None) -> str:
    """The label of an arm: 'none', 'lat/lon', 'GeoCLIP · Hadamard'. A fusion of None or NaN is no fusion.

    'none' with a fusion has an encoder arm's layers, fed a constant: the matched head.
    """
    name = _VARIANTS.get(variant, variant)
    if variant == BASELINE and isinstance(fusion, str) and fusion:
        return f"none · matched {_FUSIONS.get(fusion, fusion)}"
    return f"{name} · {_FUSIONS.get(fusion, fusion)}" if isinstance(fusion, str) and fusion else name


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """A copy of the rows in which only a done cell has finite metrics; every other metric is NaN.

    Raises ValueError when two rows are the same arm, split, fold and seed: their mean would mean nothing.
    """
    cells = rows.copy()
    place = ["variant", "fusion", "split", "fold", "seed"]
    if (twice := cells.duplicated(place)).any():
        raise ValueError(f"two rows for one cell: {cells.loc[twice, place].iloc[0].to_dict()}")
    for text in ("marked", "unfair", "tuned"):
        cells[text] = cells[text].astype("object").fillna("").astype("str") if text in cells else ""
    for column in (f"{prefix}_{metric}" for prefix in ("test", "wr") for metric in METRICS):
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


def comparison(rows: pd.DataFrame, metric: str = "rmse") -> pd.DataFrame:
    """One line per arm x split, both in the order of their first appearance in ``rows``.

    mean, sd (ddof=1, NaN for n < 2) and n are over the cells of all folds and seeds that have a number;
    n_expected, n_failed and n_missing count cells. diff_* are over the (split, fold, seed) cells that both
    the arm and 'none' have, arm minus 'none'; n_better of those n_pairs are better than 'none'. For
    checkerboards wr_* are the same numbers on the WR sites, and gap_* = OoR - WR of the same cell.
    n_unfair counts the pairs that differ in more than the declared factor, unfair says in what; tuned, in
    which settings that a search chose ('; ' between the lines of ``fairness.summary``).
    Units: those of the metric (ug/m3, or 1 for r2).
    """
    cells = with_arm(rows)
    cells["own"] = cells[f"test_{metric}"]
    # The WR sites of a WR split are its test sites: they are counted once, as mean.
    cells["wr"] = cells[f"wr_{metric}"].where(cells["regime"] == OOR)
    cells["gap"] = cells["own"] - cells["wr"]
    place = ["split", "fold", "seed"]
    none = cells.loc[cells["arm"] == BASELINE, [*place, "own", "wr"]]
    cells = cells.merge(none, on=place, how="left", suffixes=("", "_none"), validate="many_to_one")
    for column in ("own", "wr"):
        other = cells[f"{column}_none"]
        cells[f"{column}_diff"] = cells[column] - other
        cells[f"{column}_better"] = _merit(cells[column], metric) > _merit(other, metric)  # False for NaN

    lines: list[dict[str, Any]] = []
    groups = dict(iter(cells.groupby(["arm", "split"], sort=False)))
    splits = list(cells["split"].unique())
    for label in cells["arm"].unique():
        for split in splits:
            group = groups.get((label, split))
            if group is None:
                continue  # the study does not plan it
            first = group.iloc[0]
            line: dict[str, Any] = {
                "arm": label,
                "variant": first["variant"],
                "fusion": first["fusion"],
                "split": split,
                "regime": first["regime"],
                "metric": metric,
                "n_expected": len(group),
                "n_failed": int((group["state"] == "failed").sum()),
                "n_missing": int((~group["state"].isin(["done", "failed"])).sum()),
                "n_marked": int(group["marked"].ne("").sum()),
            }
            for column, prefix in (("own", ""), ("wr", "wr_")):
                line |= _spread(group[column], f"{prefix}mean", f"{prefix}sd", f"{prefix}n")
                line |= _spread(
                    group[f"{column}_diff"], f"{prefix}diff_mean", f"{prefix}diff_sd", f"{prefix}n_pairs"
                )
                line[f"{prefix}n_better"] = int(group[f"{column}_better"].sum())
            line |= _spread(group["gap"], "gap_mean", "gap_sd", "gap_n")
            pairs = group[group[["own_diff", "wr_diff"]].notna().any(axis=1)]
            line["n_unfair"] = int(pairs["unfair"].ne("").sum())
            line |= {kind: "; ".join(fairness.summary(list(pairs[kind]))) for kind in ("unfair", "tuned")}
            lines.append(line)
    return pd.DataFrame(lines, columns=list(_COLUMNS)).astype(_COLUMNS)


def directions(rows: pd.DataFrame) -> pd.DataFrame:
    """The OoR rows with each held-out region as a split of its own, for ``comparison`` and ``wide``."""
    cells = rows.loc[rows["regime"] == OOR]
    labels = [
        f"{split} · {held_out(split, fold)}"
        for split, fold in zip(cells["split"], cells["fold"], strict=True)
    ]
    cells = cells.assign(split=pd.Series(labels, index=cells.index, dtype="str"))
    return cells.iloc[sorted(range(len(cells)), key=lambda i: int(cells["fold"].iloc[i]))]


def held_out(split: str, fold: int) -> str:
    """What a fold of an OoR split holds out: one colour of a checkerboard, or a region."""
    return f"{'colour' if split.startswith('checkerboard') else 'region'} {fold} held out"


def columns(compared: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The columns for people, as (regime, split, prefix of the columns of ``comparison``).

    WR: every WR split, then the WR sites of the checkerboards. OoR: the checkerboards. Then their gaps.
    """
    pairs = compared[["split", "regime"]].drop_duplicates().itertuples(index=False)
    regimes = {str(split): str(regime) for split, regime in pairs}
    outer = [split for split, regime in regimes.items() if regime == OOR]
    return [
        *((WR, split, "") for split, regime in regimes.items() if regime != OOR),
        *((WR, split, "wr_") for split in outer),
        *((OOR, split, "") for split in outer),
        *((GAP, split, "gap_") for split in outer),
    ]


def wide(compared: pd.DataFrame) -> pd.DataFrame:
    """``comparison`` for people: one row per arm, columns (regime, split), cells '7.42 ± 0.31 (n=4)'.

    A column group each for WR, OoR and their gap. Where nothing is there, the cell says which it is:
    'missing (0/4)', 'failed (2/4)', 'undefined (0/4)' (done, but the metric is not a number).
    """
    return _layout(compared, _cell, "not planned")


def differences(compared: pd.DataFrame) -> pd.DataFrame:
    """Laid out like ``wide``: the paired difference to 'none', '-0.30 ± 0.12 (better in 4 of 4)'.

    An unfair one carries its mark: '-0.30 ± 0.12‡ (better in 4 of 4)'.
    """
    frame = _layout(compared.loc[compared["arm"] != BASELINE], _difference, "not planned")
    return frame[[column for column in frame.columns if column[0] != GAP]]


def unfair(compared: pd.DataFrame) -> pd.DataFrame:
    """What makes differences to 'none' unfair: arm, splits, and one reason a line."""
    found: dict[tuple[str, str], list[str]] = {}
    for label, split, reasons in zip(compared["arm"], compared["split"], compared["unfair"], strict=True):
        for text in filter(None, reasons.split("; ")):
            found.setdefault((label, text), []).append(split)
    lines = [(label, ", ".join(splits), text) for (label, text), splits in found.items()]
    return pd.DataFrame(lines, columns=["arm", "split", "difference to 'none'"], dtype="str")


def best(compared: pd.DataFrame) -> pd.DataFrame:
    """A mask shaped like ``wide``: True for the best mean of a WR or OoR column, as far as it is shown.

    Only arms with all their cells compete, for a mean without the hard cells is no better mean; a column
    with fewer than two of them has no best. The gap has none either: a model bad everywhere has no gap.
    """
    mask = _layout(compared, lambda line, prefix: False, False).astype(bool)
    for regime, split, prefix in columns(compared):
        whole = complete(compared, split, prefix)
        if regime == GAP or len(whole) < 2:
            continue
        merit = _merit(whole[f"{prefix}mean"].round(DECIMALS[str(whole["metric"].iloc[0])]), _metric(whole))
        mask.loc[list(whole["arm"][merit == merit.max()]), (regime, split)] = True
    return mask


def complete(compared: pd.DataFrame, split: str, prefix: str = "") -> pd.DataFrame:
    """The lines of a split whose cells all have a number, best mean first."""
    lines = compared[(compared["split"] == split) & (compared[f"{prefix}n"] == compared["n_expected"])]
    if lines.empty:
        return lines
    order = _merit(lines[f"{prefix}mean"], _metric(lines)).sort_values(ascending=False, kind="stable")
    return lines.loc[order.index]


def completeness(rows: pd.DataFrame) -> pd.DataFrame:
    """Arm x split: how many cells are done, failed and missing, as '3 done, 1 failed'."""
    cells = with_arm(rows)
    frame = pd.DataFrame(
        "not planned", index=_ordered(cells["arm"]), columns=_ordered(cells["split"]), dtype="object"
    )
    for (label, split), group in cells.groupby(["arm", "split"], sort=False):
        counts = group["state"].value_counts()
        frame.loc[label, split] = ", ".join(
            f"{counts[state]} {state}" for state in ("done", "failed", "missing") if counts.get(state, 0)
        )
    return frame


def sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Split x (training, validation, test, WR test samples, epochs): the range over the done cells."""
    names = {"n_train": "training", "n_val": "validation", "n_test": "test", "n_wr": "WR test"}
    frame = pd.DataFrame("–", index=_ordered(rows["split"]), columns=list(names.values()), dtype="object")
    for split, group in rows[rows["state"] == "done"].groupby("split", sort=False):
        for column, name in names.items():
            counts = group[column].dropna()
            counts = counts[counts > 0]
            if len(counts):
                low, high = int(counts.min()), int(counts.max())
                frame.loc[split, name] = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return frame


def markdown(frame: pd.DataFrame, bold: pd.DataFrame | None = None) -> str:
    """A GitHub table. Grouped columns become 'WR · random'; cells where ``bold`` is True are bold."""
    texts = frame.astype("str").map(escape)
    if bold is not None:
        texts = texts.where(~bold, "**" + texts + "**")
    texts.columns = pd.Index([escape(flat(column)) for column in frame.columns])
    corner = escape(str(frame.index.name or ""))
    texts.index = pd.Index([escape(str(label)) for label in frame.index], name=corner)
    return texts.to_markdown(disable_numparse=True)


def csv(frame: pd.DataFrame) -> str:
    """Comma-separated, with a header, without the index; a number is written so that it reads back equal."""
    return frame.to_csv(index=False, lineterminator="\n")


def title(metric: str) -> str:
    """The metric's name and unit: 'RMSE (µg/m³)'."""
    return f"{NAMES[metric]} ({UNITS[metric]})" if UNITS[metric] else NAMES[metric]


def flat(column: Any) -> str:
    """One string for a column name, grouped or not."""
    return " · ".join(map(str, column)) if isinstance(column, tuple) else str(column)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no HTML, no table cell, no emphasis."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


def number(value: float, metric: str, sign: bool = False) -> str:
    """A value in the metric's digits; '–' where there is none."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 1e5:  # a training that ran away
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    digits = DECIMALS[metric]
    return f"{value:+z.{digits}f}" if sign else f"{value:z.{digits}f}"


def _merit(values: pd.Series, metric: str) -> pd.Series:
    """More is better: R2 as it is, the errors negated, the bias by its size."""
    return values if metric == "r2" else -values.abs()


def _metric(lines: pd.DataFrame) -> str:
    return str(lines["metric"].iloc[0])


def _spread(values: pd.Series, mean: str, sd: str, n: str) -> dict[str, float]:
    values = values.dropna()
    return {mean: float(values.mean()), sd: float(values.std(ddof=1)), n: len(values)}  # NaN where too few


def _ordered(labels: Iterable[str]) -> pd.Index:
    return pd.Index(list(dict.fromkeys(labels)), dtype="str")


def _layout(compared: pd.DataFrame, cell: Callable[[pd.Series, str], Any], empty: Any) -> pd.DataFrame:
    """Rows arms, columns (regime, split), values ``cell(line, prefix)``; ``empty`` where no line is."""
    heads = columns(compared)
    index = pd.MultiIndex.from_arrays(
        [[head[i] for head in heads] for i in (0, 1)], names=["regime", "split"]
    )
    frame = pd.DataFrame(empty, index=_ordered(compared["arm"]), columns=index, dtype="object")
    lines = {(str(line["arm"]), str(line["split"])): line for _, line in compared.iterrows()}
    for label in frame.index:
        for regime, split, prefix in heads:
            if (label, split) in lines:
                frame.loc[label, (regime, split)] = cell(lines[label, split], prefix)
    return frame


def _cell(line: pd.Series, prefix: str) -> str:
    n, expected = line[f"{prefix}n"], line["n_expected"]
    if n == 0:
        if line["n_failed"]:
            return f"failed ({line['n_failed']}/{expected})"
        return f"missing (0/{expected})" if line["n_missing"] else f"undefined (0/{expected})"
    sign = prefix == "gap_"
    mean = number(line[f"{prefix}mean"], line["metric"], sign)
    spread = number(line[f"{prefix}sd"], line["metric"])
    mark = MARK if line["n_marked"] else ""
    return f"{mean} ± {spread}{mark} (n={n if n == expected else f'{n}/{expected}'})"


def _difference(line: pd.Series, prefix: str) -> str:
    if prefix == "gap_":
        return ""
    pairs = line[f"{prefix}n_pairs"]
    if pairs == 0:
        return "no pairs"
    mean = number(line[f"{prefix}diff_mean"], line["metric"], sign=True)
    spread = number(line[f"{prefix}diff_sd"], line["metric"])
    mark = UNFAIR if line["n_unfair"] else ""
    return f"{mean} ± {spread}{mark} (better in {line[f'{prefix}n_better']} of {pairs})"
