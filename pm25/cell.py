"""A cell: one training as a frozen, fully resolved value, and the key that names it for machines."""

import functools
import hashlib
import json
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

import pm25
from pm25.neighbours import NeighbourSettings
from pm25.protocol import Protocol
from pm25.settings import CONTROLS, ENCODERS, Fusion, ModelSettings, Seed, Settings, TrainSettings, Variant
from pm25.splits import Split


class Tuning(Settings):
    """Marks a search's training: only the training side of the cell's own split and fold exists for it.

    What that split holds out (test, within-region test, what a buffer drops) has no target. The score is
    that of the split's own validation samples; with `split`, that of what its fold `fold` holds out inside
    the training side (nested validation), where the cut is made anew.
    """

    split: Split | None = None
    fold: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fold_exists(self) -> "Tuning":
        if self.split is None and self.fold:
            raise ValueError(f"tuning.fold {self.fold} needs tuning.split")
        if self.split is not None and self.fold >= self.split.folds:
            raise ValueError(
                f"tuning.fold {self.fold} does not exist: {self.split.label} has 0..{self.split.folds - 1}"
            )
        return self

    @property
    def label(self) -> str:
        return "validation" if self.split is None else f"{self.split.label} fold {self.fold}"


class Cell(Settings):
    """One training. Everything that can change its numbers is here, and nothing that cannot."""

    variant: Variant
    fusion: Fusion | None = None
    split: Split
    fold: int = Field(ge=0)
    seed: Seed
    window: PositiveInt = 21
    """Days of input; the target is the last day's."""
    protocol: Protocol = "strict"
    head: Literal["matched"] | None = None
    """Gives variant none the layers of an encoder arm, fed one constant vector for every place."""
    neighbours: NeighbourSettings | None = None
    tuning: Tuning | None = None
    """Of a search's training, which is scored on validation and has no test."""
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _fields_mean_something(self) -> "Cell":
        if self.head is not None and self.variant != "none":
            raise ValueError(f"head {self.head} is for variant none, not {self.variant}")
        fused = self.variant in ENCODERS or self.head is not None
        if fused != (self.fusion is not None):
            raise ValueError(f"variant {self.variant} {'needs' if fused else 'takes no'} fusion")
        cuts = [self.split, *([self.tuning.split] if self.tuning and self.tuning.split else [])]
        if self.neighbours is not None and any(split.kind == "temporal" for split in cuts):
            raise ValueError("neighbours: no training monitor reports on the days of a temporal split's test")
        if self.model.projection is not None and not fused:
            raise ValueError(
                f"variant {self.variant} projects no embedding; model.projection is for encoder arms"
            )
        if self.protocol == "paper" and self.train.target is not None:
            raise ValueError(
                f"train.target {self.train.target}: protocol paper has a target scale of its own"
            )
        if self.protocol == "paper" and self.tuning is not None:
            raise ValueError("tuning: a search needs protocol strict")
        if self.fold >= self.split.folds:
            raise ValueError(
                f"fold {self.fold} does not exist: {self.split.label} has 0..{self.split.folds - 1}"
            )
        return self

    @property
    def encoder(self) -> str | None:
        """The name that `pm25.encoders.load` knows, for the variants that have one."""
        return self.variant if self.variant in ENCODERS else None

    @property
    def is_control(self) -> bool:
        """Whether its place says nothing of where it is: what it predicts is no use to anybody."""
        return self.variant in CONTROLS or self.head is not None

    @property
    def label(self) -> str:
        """For people; the key is for machines."""
        arm = "-".join(filter(None, (self.variant, self.head, self.fusion)))
        tuning = f" tuning on {self.tuning.label}" if self.tuning else ""
        return f"{arm} {self.split.label} fold {self.fold} seed {self.seed}{tuning}"

    def resolved(self) -> dict[str, Any]:
        """The cell as plain JSON values; fields that mean nothing for it are absent."""
        return _meaningful(self)

    def key(self, data_fingerprint: str, encoder_fingerprint: str | None = None) -> str:
        """Name of this training's result: a hash of all that can change its numbers (20 hex digits)."""
        identity = {"cell": self.resolved(), "data": data_fingerprint, "numerics": pm25.NUMERICS}
        if self.variant in ENCODERS:
            identity["encoder"] = encoder_fingerprint
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _meaningful(settings: Settings) -> dict[str, Any]:
    """JSON values of all fields but those whose None is the default: no setting, no field."""
    return _pruned(settings, settings.model_dump(mode="json"))


def _pruned(settings: Settings, plain: dict[str, Any]) -> dict[str, Any]:
    for name, optional in _fields(type(settings)):
        value = getattr(settings, name)
        if isinstance(value, Settings):
            _pruned(value, plain[name])
        elif value is None and optional:
            del plain[name]
    return plain


@functools.cache
def _fields(kind: type[Settings]) -> tuple[tuple[str, bool], ...]:
    """Names, and whether None is the default; a grid asks for them ten thousand times."""
    return tuple((name, info.default is None) for name, info in kind.model_fields.items())
