"""Permutation importance of channels and of the embedding, blocked by site."""

from dataclasses import dataclass

import numpy as np
import torch

from pm25.cell import Cell
from pm25.metrics import scores
from pm25.panel import Panel
from pm25.trial import Prepared, prepare


@dataclass(frozen=True)
class Importance:
    what: str
    """A channel, 'place' (all place channels at once), or 'embedding' (the whole vector at once)."""
    rmse_increase: float
    """Mean over repeats of RMSE with it permuted, minus RMSE as it is (ug/m3); larger matters more."""
    sd: float
    """Over the repeats; NaN of a single one."""


def importance(
    cell: Cell,
    panel: Panel,
    weights: dict[str, torch.Tensor],
    *,
    embedding: np.ndarray | None = None,
    repeats: int = 5,
    max_samples: int = 20_000,
    seed: int = 0,
    device: str = "cpu",
) -> list[Importance]:
    """On the test samples (at most `max_samples` of them) of a trained cell; most important first.

    Breiman's permutation (2001), in blocks: a site gets the whole series of another test site, shifted by a
    random number of days, so that a permuted channel keeps its course in time and channels that all
    sites share (the calendar) are permuted too. Nothing is trained again.
    """
    made = prepare(cell, panel, embedding=embedding, device=device)
    made.model.load_state_dict(weights)
    rng = np.random.default_rng(seed)
    flat = made.parts.test
    if len(flat) > max_samples:
        flat = np.sort(rng.choice(flat, max_samples, replace=False))
    truth = panel.target.reshape(-1)[flat]
    base = scores(truth, made.predict(flat))["rmse"]
    found = []
    for what in made.inputs.permutable:
        rmse = []
        for _ in range(repeats):
            with made.inputs.permuted(what, *_exchange(made, rng)):
                rmse.append(scores(truth, made.predict(flat))["rmse"])
        sd = float(np.std(rmse, ddof=1)) if repeats > 1 else float("nan")
        found.append(Importance(what, float(np.mean(rmse)) - base, sd))
    return sorted(found, key=lambda i: -i.rmse_increase)


def _exchange(made: Prepared, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """For every site the site that it takes its values from, and a shift in days."""
    days = len(made.panel.dates)
    source = np.arange(len(made.panel.site_id))
    sites = np.unique(made.parts.test // days)
    source[sites] = rng.permutation(sites)
    return source, int(rng.integers(days))
