"""The two protocols: `strict`, and `paper`, which repeats the published choices including their leaks.

`paper` (Karimzadeh, Wang, Crooks 2025) makes these choices:

- samples with PM2.5 <= 0 are dropped;
- the last 5 % of the training rows are the validation set, at whatever site or day;
- feature scalers are fitted on training, validation and test samples alike;
- the target is divided by its maximum over all samples, which turns the Huber loss into the squared error;
- the neighbour feature also uses the values of held-out monitors;
- the weights of the last epoch are scored, not those of the best;
- days whose features are all -1 are masked, as Keras' Masking does;
- SatCLIP's projection is LayerNorm and tanh, GeoCLIP's is ReLU.

Settings that a study gives itself (layers, patience, clipping, folds) are not changed. Every result names
its protocol, and its audit lists the leaks.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.splits import SplitIndices

Protocol = Literal["strict", "paper"]
"""Name of a protocol."""

LEAKING_CHANNELS = ("knnidw_pm25", "knnidw_pm25_val")
"""Published neighbour features, computed from the PM2.5 of all monitors, including the test set."""

PAPER_VALIDATION = 0.05
"""Share of the training rows that protocol paper uses for validation."""

PAPER_MASK = -1.0
"""Value of every feature on a day that protocol paper masks."""


def refuse_leaks(panel: Panel, protocol: Protocol) -> None:
    """Raise InputError if protocol `strict` is used with a channel that leaks the test set."""
    for channel in panel.channels:
        if protocol == "strict" and channel in LEAKING_CHANNELS:
            raise InputError(
                panel.name,
                channel,
                "the channel contains the PM2.5 of held-out monitors",
                "leave it out of data.channels and set neighbours, or set protocol: paper",
            )


def paper_indices(indices: SplitIndices, panel: Panel) -> SplitIndices:
    """Change a split to the published one: positive targets only, and the last rows for validation.

    Raises InputError if one of the sets is empty afterwards.
    """
    target = panel.target.reshape(-1)

    def positive(flat: np.ndarray) -> np.ndarray:
        return flat[target[flat] > 0]

    rest = positive(np.sort(np.concatenate([indices.train, indices.validation])))
    last = max(1, round(PAPER_VALIDATION * len(rest)))
    changed = replace(
        indices,
        train=rest[:-last],
        validation=rest[-last:],
        test=positive(indices.test),
        wr=None if indices.wr is None else positive(indices.wr),
    )
    for name in ("train", "validation", "test", "wr"):
        flat = getattr(changed, name)
        if flat is not None and not len(flat):
            raise InputError(
                panel.name,
                "protocol",
                f"paper only keeps samples with PM2.5 above 0, which leaves the {name} part empty",
                "take another split, or set protocol: strict",
            )
    return changed
