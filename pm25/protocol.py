"""The two protocols: `strict`, and `paper`, which repeats the published choices including their leaks.

`paper` (Karimzadeh, Wang, Crooks 2025) makes these choices:

- samples with PM2.5 <= 0 are dropped;
- splits `random` and `spatial` have one fixed test set. Samples or sites are dealt to `folds` + 1 parts: the
  last part is the test set of all models, and the model of a fold trains without the part of its number;
- the last 5 % of the training rows are the validation set, at whatever site or day;
- features are scaled to -1 .. 1 by their ranges over training, validation and test samples alike;
- the target is divided by its maximum over all samples;
- the loss is Huber with delta 1. That is half the squared error, because the delta is the largest target;
- the gradient is not clipped;
- the neighbour feature also uses the values of held-out monitors;
- the weights of the last epoch are scored, not those of the best;
- days whose features are all -1 are masked, as Keras' Masking does;
- SatCLIP's projection is LayerNorm and tanh, GeoCLIP's is ReLU.

Settings that a study gives itself (layers, patience, loss, clipping) are not changed. The paper has ten
folds. The share of its test set is not known; here it is 1/11 with ten folds. Every result names its
protocol, and its audit lists the leaks.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.settings import TrainSettings
from pm25.splits import AnySplit, RandomSplit, SpatialSplit, SplitIndices, cut

Protocol = Literal["strict", "paper"]
"""Name of a protocol."""

LEAKING_CHANNELS = ("knnidw_pm25", "knnidw_pm25_val")
"""Published neighbour features, computed from the PM2.5 of all monitors, including the test set."""

PAPER_VALIDATION = 0.05
"""Share of the training rows that protocol paper uses for validation."""

FIXED_TEST_SET = (RandomSplit, SpatialSplit)
"""Kinds of splits of which protocol paper tests the models of all folds on one set."""

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


def training_settings(protocol: Protocol, train: TrainSettings) -> TrainSettings:
    """Return the settings of a training under a protocol: `paper` has defaults of its own."""
    if protocol == "strict":
        return train
    given = train.model_dump(include=train.model_fields_set)
    return TrainSettings.model_validate(with_paper_defaults(given))


def with_paper_defaults(train: Mapping[str, Any]) -> dict[str, Any]:
    """Add the published loss and clipping to training settings that do not have their own."""
    own_loss = "loss" in train or train.get("huber_delta") is not None
    return {"clip_norm": None, **({} if own_loss else {"loss": "huber"}), **train}


def paper_cut(split: AnySplit, fold: int, panel: Panel, window: int) -> SplitIndices:
    """Split the panel's samples as published. Raises InputError if one of the sets is empty.

    The models of all folds of a `random` or `spatial` split share one test set. The spread of their scores is
    that over training sets.
    """
    if not isinstance(split, FIXED_TEST_SET):
        return paper_indices(cut(split, fold, panel, window), panel)
    dealt = split.model_copy(update={"folds": split.folds + 1})
    indices = cut(dealt, split.folds, panel, window)
    left_out = cut(dealt, fold, panel, window).test
    train, validation = (
        np.setdiff1d(flat, left_out, assume_unique=True) for flat in (indices.train, indices.validation)
    )
    return paper_indices(replace(indices, train=train, validation=validation), panel)


def paper_indices(indices: SplitIndices, panel: Panel) -> SplitIndices:
    """Change sets to the published ones: positive targets only, and the last rows for validation.

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
