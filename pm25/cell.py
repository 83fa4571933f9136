"""A cell: one training as a frozen, fully resolved value, and the key that names it for machines."""

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

import pm25
from pm25.settings import ENCODERS, Fusion, ModelSettings, Seed, Settings, TrainSettings, Variant
from pm25.splits import Split


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
