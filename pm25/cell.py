"""A cell: one training as a frozen, fully resolved value, and the key that names it for machines."""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

import pm25

Variant = Literal["none", "latlon", "sincos", "geoclip"]
"""How the place is given: not at all, raw coordinates, their sines and cosines, or a frozen embedding."""

Fusion = Literal["hadamard", "concat"]
"""How a location embedding meets the attention output: element by element product, or concatenation."""

ENCODERS: frozenset[str] = frozenset({"geoclip"})
"""The variants whose place is a frozen embedding; these alone have a fusion."""

Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """Base of every settings block: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RandomSplit(Settings):
    """k-fold over samples: a test sample's site and neighbouring days stand in training too."""

    regime: ClassVar = "WR"
    kind: Literal["random"] = "random"
    folds: int = Field(5, ge=2)
    validation: Share = 0.1
    seed: Seed = 0

    @property
    def label(self) -> str:
        return "random"


class SpatialSplit(Settings):
    """k-fold over sites: a test site gave no sample to training, its neighbours did."""

    regime: ClassVar = "WR"
    kind: Literal["spatial"] = "spatial"
    folds: int = Field(5, ge=2)
    validation: Share = 0.1
    seed: Seed = 0

    @property
    def label(self) -> str:
        return "spatial"


class CheckerboardSplit(Settings):
    """Square cells of `degrees` in two colours: fold 0 or 1 is the colour held out (out of region).

    `holdout` is the share of the training colour's sites kept back as the paired within-region test.
    """

    regime: ClassVar = "OoR"
    folds: ClassVar[int] = 2
    kind: Literal["checkerboard"] = "checkerboard"
    degrees: PositiveFloat
    holdout: Share = 0.2
    validation: Share = 0.1
    seed: Seed = 0

    @property
    def label(self) -> str:
        return f"checkerboard-{self.degrees:g}"


Split = Annotated[RandomSplit | SpatialSplit | CheckerboardSplit, Field(discriminator="kind")]


class ModelSettings(Settings):
    """The network. The defaults are the published one (Karimzadeh, Wang, Crooks 2025)."""

    width: int = Field(256, ge=2, multiple_of=2)
    """Units per direction of the first Bi-LSTM layer; the layers after it have half as many."""
    depth: PositiveInt = 3
    attention_units: PositiveInt = 256
    """Units of the attention output, and of the dense layers around the fusion."""
    dropout: float = Field(0.2, ge=0, lt=1)

    @property
    def units(self) -> tuple[int, ...]:
        return (self.width, *[self.width // 2] * (self.depth - 1))


class TrainSettings(Settings):
    """The optimisation: Huber loss on the standardised target, Adam, staircase decay, early stopping."""

    learning_rate: PositiveFloat = 1e-3
    decay: float = Field(0.8, gt=0, le=1)
    decay_steps: PositiveInt = 30_000
    batch_size: PositiveInt = 256
    max_epochs: PositiveInt = 100
    patience: PositiveInt = 30
    """Epochs without a lower validation loss before training stops; the best weights are kept."""
    huber_delta: PositiveFloat = 1.0
    """In standard deviations of the training target."""
    clip_norm: PositiveFloat | None = 1.0
    max_windows: PositiveInt | None = None
    """Train on a subsample of at most so many windows, drawn with the cell's seed."""
    max_validation_windows: PositiveInt | None = None


class Cell(Settings):
    """One training. Everything that can change its numbers is here, and nothing that cannot."""

    variant: Variant
    fusion: Fusion | None = None
    split: Split
    fold: int = Field(ge=0)
    seed: Seed
    window: PositiveInt = 21
    """Days of input; the target is the last day's."""
    protocol: Literal["strict"] = "strict"
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _fields_mean_something(self) -> "Cell":
        if (self.variant in ENCODERS) != (self.fusion is not None):
            need = "needs" if self.variant in ENCODERS else "takes no"
            raise ValueError(f"variant {self.variant} {need} fusion")
        if self.fold >= self.split.folds:
            raise ValueError(
                f"fold {self.fold} does not exist: {self.split.label} has 0..{self.split.folds - 1}"
            )
        return self

    @property
    def arm(self) -> tuple[str, str | None]:
        return self.variant, self.fusion

    @property
    def encoder(self) -> str | None:
        """The name that `pm25.encoders.load` knows, for the variants that have one."""
        return self.variant if self.variant in ENCODERS else None

    @property
    def label(self) -> str:
        """For people; the key is for machines."""
        fusion = f"-{self.fusion}" if self.fusion else ""
        return f"{self.variant}{fusion} {self.split.label} fold {self.fold} seed {self.seed}"

    def resolved(self) -> dict[str, Any]:
        """The cell as plain JSON values; fields that mean nothing for it are absent."""
        return self.model_dump(mode="json", exclude_none=True)

    def key(self, data_fingerprint: str, encoder_fingerprint: str | None = None) -> str:
        """Name of this training's result: a hash of all that can change its numbers (20 hex digits)."""
        identity = {"cell": self.resolved(), "data": data_fingerprint, "numerics": pm25.NUMERICS}
        if self.variant in ENCODERS:
            identity["encoder"] = encoder_fingerprint
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]
