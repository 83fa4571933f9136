"""The two protocols: `strict`, and `paper`, which repeats the published choices with their leaks.

`paper` (Karimzadeh, Wang, Crooks 2025), one by one:

- samples with PM2.5 <= 0 are dropped;
- validation is the last 5 % of the training rows, whatever site or day they are;
- feature scalers are fitted on training, validation and test samples alike;
- the target is divided by its maximum over all of them, which makes the Huber loss the squared error;
- the neighbour feature takes its values from held-out monitors too;
- the weights of the last epoch are scored, not those of the best;
- days whose features are all -1 are masked, as Keras' Masking does;
- SatCLIP's projection is LayerNorm and tanh, GeoCLIP's is ReLU.

What a study sets by itself (layers, patience, clipping, folds) is not repeated here. Every result says
which protocol it is of, and its audit names the leaks.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.splits import SplitIndices

Protocol = Literal["strict", "paper"]

LEAKING_CHANNELS = ("knnidw_pm25", "knnidw_pm25_val")
"""Published neighbour features, made from every monitor's PM2.5, the test set's included."""

PAPER_VALIDATION = 0.05
PAPER_MASK = -1.0


def refuse_leaks(panel: Panel, protocol: Protocol) -> None:
    """Raise InputError for a channel that `strict` cannot allow."""
    for channel in panel.channels:
        if protocol == "strict" and channel in LEAKING_CHANNELS:
            raise InputError(
                f"{panel.name}: channel {channel} holds the PM2.5 of held-out monitors; "
                "leave it out of data.channels and set neighbours, or set protocol: paper"
            )


def paper_parts(parts: SplitIndices, panel: Panel) -> SplitIndices:
    """The published cut of the same split: positive targets only, and the last rows for validation."""
    target = panel.target.reshape(-1)

    def positive(flat: np.ndarray) -> np.ndarray:
        return flat[target[flat] > 0]

    rest = positive(np.sort(np.concatenate([parts.train, parts.validation])))
    last = max(1, round(PAPER_VALIDATION * len(rest)))
    made = replace(
        parts,
        train=rest[:-last],
        validation=rest[-last:],
        test=positive(parts.test),
        wr=None if parts.wr is None else positive(parts.wr),
    )
    for name in ("train", "validation", "test", "wr"):
        part = getattr(made, name)
        if part is not None and not len(part):
            raise InputError(
                f"{panel.name}: protocol paper keeps samples with PM2.5 above 0 only, which leaves the "
                f"{name} part empty; take another split, or protocol: strict"
            )
    return made
