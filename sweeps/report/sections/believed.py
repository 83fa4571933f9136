"""Section about the places for which the scores may be believed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sweeps.analysis import labels
from sweeps.analysis.reach import FEWEST, SAMPLES, TESTED, Distances, Reach
from sweeps.report import tables
from sweeps.report.sections.section import Section, pictures
from sweeps.report.tables import Entry, Table

if TYPE_CHECKING:
    from sweeps.report.data import ReportData

LIKE = 0.9
"""Share of test samples inside the area of applicability below which the text says so."""

_WEIGHTS = {
    ("equal",): "equal",
    ("importance",): "the stored importances (sweep importance)",
    ("equal", "importance"): "the stored importances (sweep importance) of arms with them, otherwise equal",
}
"""Description of the weights, by the kinds of them in the table."""


def believed(report: ReportData) -> Section:
    """Distances of the tests beside those of a map, and the area of applicability."""
    anchor, title = "believed", "Where the answer may be believed"
    if report.reach is None:
        return Section(anchor, title, "")
    found = [_distances(report.reach.distances)]
    if len(report.reach.inside):
        found.append(_inside(report.reach))
    text = (
        "A score is measured at monitors, and a map is made for places between them. The score carries over "
        "to the map under two conditions. The test monitors are as far from training as the map's places are "
        "from the monitors, and their inputs are like those of training samples. " + _answer(report.reach)
    )
    return Section(anchor, title, text, found, pictures(report, "reach"))


def _answer(found: Reach) -> str:
    """Say how far the tests reach, for a reader without statistics."""
    distances = found.distances
    half = float(np.median(distances.domain))
    nearest = min(distances.splits, key=distances.w_km)
    sentences = [
        f"Half of the places of the map are more than {half:,.0f} km from the nearest monitor.",
        f"Of the splits, {nearest} has test distances most like these: half of its test monitors are more "
        f"than {np.median(distances.splits[nearest]):,.0f} km from training.",
    ]
    if easier := [split for split, km in distances.splits.items() if np.median(km) < half / 2]:
        sentences.append(
            f"The test monitors of {', '.join(easier)} are less than half as far from training. A map is "
            "probably less accurate than such a score says."
        )
    lines = found.inside.to_dict("records")
    worst = min(lines, key=lambda line: float(line["inside"]), default=None)
    if worst is not None and worst["inside"] < LIKE:
        sentences.append(
            f"Of the test samples of {worst['split']}, {worst['inside']:.0%} are like the training samples "
            f"in their {worst['inputs']}. For the others, the model extrapolates."
        )
    return " ".join(sentences)


def _distances(distances: Distances) -> Table:
    """Return the quartiles of the distances, with W."""
    by_name = {
        "places of the map": distances.domain,
        "monitors, to the nearest other one": distances.monitors,
        **distances.splits,
    }
    lines = []
    for name, km in by_name.items():
        low, half, high = np.quantile(km, [0.25, 0.5, 0.75])
        w = f"{distances.w_km(name):,.1f}" if name in distances.splits else tables.ABSENT
        lines.append((name, [Entry(f"{half:,.1f}", f"{low:,.1f} to {high:,.1f}", f"{len(km):,}"), Entry(w)]))
    heads = [("", "half within (km)"), ("", "W (km)")]
    notes = (
        "n: places, or test monitors of one set of folds, half of which are within the distance. Below it "
        "are the distances for a quarter and for three quarters. That of a split is to the nearest training "
        "monitor.",
        "W: Wasserstein distance between the distances of a split and those of the map, in km; 0 if they "
        "agree. A split of kind knndm makes it small (Linnenbrink et al. 2024).",
    )
    caption = "Distances to the nearest monitor."
    return Table("from", heads, lines, caption, notes)


def _inside(found: Reach) -> Table:
    """Return the shares of test samples inside the area of applicability, with the errors of an arm."""
    lines: list[tuple[str, list[Entry]]] = []
    for split, own in found.inside.groupby("split", sort=False):
        lines.append((str(split), []))
        for line in own.to_dict("records"):
            rmse = [
                Entry(tables.ABSENT if math.isnan(line[name]) else labels.number(line[name], "rmse"))
                for name in ("rmse_inside", "rmse_outside")
            ]
            share = Entry(f"{line['inside']:.0%}", n=f"{line['samples']:,}")
            lines.append((f"{line['inputs']} ({line['arm']})", [share, *rmse]))
    heads = [("", "inside"), ("RMSE", "inside"), ("RMSE", "outside")]
    notes = (
        "Inside: the dissimilarity of a sample is at most that of new monitors among the training ones "
        "(Meyer and Pebesma 2021). It is the distance of its inputs to the nearest training sample, divided "
        "by the mean distance of two training samples.",
        "Inputs: the value of each channel on the day, and its mean over the window; and with the place, the "
        f"coordinates. Of a fold, {TESTED:,} test samples are compared with {SAMPLES:,} training samples, or "
        "all if there are fewer. They are evenly spaced, and of the first origin or deal.",
        f"Weights of the inputs: {_WEIGHTS[tuple(sorted({*found.inside['weights']}))]}.",
        "The RMSE (µg/m³) is that of the arm in brackets, over the cells with the first seed and the "
        f"compared samples (n). It is left out for fewer than {FEWEST} of them.",
    )
    caption = "Test samples inside the area of applicability."
    return Table("inputs", heads, lines, caption, notes)
