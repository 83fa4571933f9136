"""Permutation importance of channels and of the embedding, in blocks of sites."""

from dataclasses import dataclass

import numpy as np
import torch

from pm25.cell import Cell
from pm25.metrics import scores
from pm25.panel import Panel
from pm25.trial import Prepared, prepare


@dataclass(frozen=True)
class Importance:
    """Importance of one input."""

    what: str
    """Name of a channel, 'place' (all place channels together), or 'embedding' (all its values together)."""
    rmse_increase: float
    """Mean over repeats of the RMSE with the input permuted, minus the RMSE without (ug/m3)."""
    sd: float
    """Standard deviation over the repeats (ug/m3); NaN for one repeat."""


def importance(
    cell: Cell,
    panel: Panel,
    weights: dict[str, torch.Tensor],
    *,
    embedding: np.ndarray | None = None,
    repeats: int = 5,
    max_samples: int = 20_000,
    seed: int = 0,
) -> list[Importance]:
    """Measure the importance of every input on the test samples of a trained cell, most important first.

    Breiman's permutation importance (2001) in blocks: each test site gets the complete series of another
    test site, shifted by a random number of days. A permuted channel keeps its autocorrelation, and
    channels that are equal at all sites (the calendar) are permuted too. The model is not trained again.

    `weights` are those of a `pm25.trial.Result`. At most `max_samples` test samples are used.
    """
    prepared = prepare(cell, panel, embedding=embedding)
    prepared.model.load_state_dict(weights)
    rng = np.random.default_rng(seed)
    flat = prepared.indices.test
    if len(flat) > max_samples:
        flat = np.sort(rng.choice(flat, max_samples, replace=False))
    truth = panel.target.reshape(-1)[flat]
    base = scores(truth, prepared.predict(flat))["rmse"]
    found = []
    for what in prepared.inputs.permutable:
        increases = []  # of an input without effect all are zero, and so is their mean
        for _ in range(repeats):
            with prepared.inputs.permuted(what, *_exchange(prepared, rng)):
                increases.append(scores(truth, prepared.predict(flat))["rmse"] - base)
        sd = float(np.std(increases, ddof=1)) if repeats > 1 else float("nan")
        found.append(Importance(what, float(np.mean(increases)), sd))
    return sorted(found, key=lambda i: -i.rmse_increase)


def _exchange(prepared: Prepared, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Draw, for every site, the site whose values it gets, and a shift in days."""
    days = len(prepared.panel.dates)
    source = np.arange(len(prepared.panel.site_id))
    sites = np.unique(prepared.indices.test // days)
    source[sites] = rng.permutation(sites)
    return source, int(rng.integers(days))
