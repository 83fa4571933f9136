"""The settings blocks of a cell, their defaults and their bounds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Variant = Literal["none", "latlon", "sincos", "geoclip", "satclip", "table", "random", "shuffled"]
"""How the place is given: not at all, raw coordinates, their sines and cosines, or a frozen embedding.

`random` and `shuffled` are controls: a vector that names the place and says nothing else of it, and
GeoCLIP's vectors dealt out to the wrong places.
"""

Fusion = Literal["hadamard", "concat", "film", "gated"]
"""How a location embedding meets the attention output: element by element product, concatenation,
feature-wise linear modulation (Perez et al. 2018), or a learned gate (Arevalo et al. 2017)."""

ENCODERS: frozenset[str] = frozenset({"geoclip", "satclip", "table", "random", "shuffled"})
"""The variants whose place is a frozen embedding; these alone have a fusion."""

CONTROLS: frozenset[str] = frozenset({"random", "shuffled"})

Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """Base of every settings block: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelSettings(Settings):
    """The network. The defaults are the published one (Karimzadeh, Wang, Crooks 2025)."""

    width: int = Field(256, ge=2, multiple_of=2)
    """Units per direction of the first Bi-LSTM layer; the layers after it have half as many."""
    depth: PositiveInt = 3
    attention_units: PositiveInt = 256
    """Units of the attention output, and of the dense layers around the fusion."""
    dropout: float = Field(0.2, ge=0, lt=1)
    initialiser: Literal["torch"] | None = None
    """Keras' initial weights; with torch, torch's own, and both of its biases trained."""
    projection: Literal["norm_tanh"] | None = None
    """The embedding goes through Dense(ReLU); with norm_tanh through LayerNorm and Dense(tanh), SatCLIP's."""

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
    target: Literal["log1p"] | None = None
    """The target is standardised; with log1p, after sign(y) log(1 + |y|), which tames the smoke tail."""
    huber_delta: PositiveFloat = 1.0
    """In standard deviations of the training target."""
    clip_norm: PositiveFloat | None = 1.0
    max_windows: PositiveInt | None = None
    """Train on a subsample of at most so many windows, drawn with the cell's seed."""
    max_validation_windows: PositiveInt | None = None
