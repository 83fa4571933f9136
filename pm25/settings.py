"""Settings blocks of a cell, with their defaults and bounds."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    model_validator,
)

from pm25 import plug_ins, suggest
from pm25.errors import InputError, SettingError
from pm25.limits import MOST_COUNTED, MOST_KM, MOST_LAYERS, MOST_UNITS

VARIANTS = (
    "none",
    "latlon",
    "sincos",
    "geoclip",
    "satclip",
    "sinr",
    "climplicit",
    "torchspatial",
    "range",
    "table",
    "random",
    "shuffled",
)
"""Names of the built-in variants."""

UNTRAINED = re.compile("untrained_(geoclip|satclip)_(0|[1-9][0-9]?)")
"""Names of the variants whose encoder has fresh weights: the architecture, and the number of the draw."""

UNTRAINED_FACTORS = ("untrained_geoclip", "untrained_satclip")
"""Names in a design that stand for several draws of an untrained encoder."""

Reference = Literal["idw", "climatology", "persistence", "boosting", "boosting-place", "kriging"]
"""Prediction without a network, beside which the arms are read (`pm25.references`)."""

REFERENCES: tuple[Reference, ...] = get_args(Reference)
"""Names of all references, in order."""

BUILT_IN = (*VARIANTS, *REFERENCES)
"""Names that no encoder of another package may have."""


def installed_encoders() -> list[str]:
    """Names of the encoders of other packages. Raises SettingError for a package with a wrong name of one."""
    try:
        return [*plug_ins.installed(BUILT_IN)]
    except InputError as error:
        raise SettingError("", f"{error.where}: {error.field}: {error.problem}", error.fix) from None


def known_variant(name: str) -> str:
    """Return the name of a variant that is built in or installed.

    Raises SettingError for another name. Installed packages are searched only if the name is not built in.
    """
    if name in VARIANTS or UNTRAINED.fullmatch(name):
        return name
    if name not in (installed := installed_encoders()):
        known = [*VARIANTS, *UNTRAINED_FACTORS, *installed]
        near = suggest.nearest(name, known)
        fix = f"use {near}" if near else "use one of these, or install the package that has it"
        raise SettingError("", f"{name!r} is not one of {', '.join(map(repr, known))}", fix)
    return name


Variant = Annotated[str, AfterValidator(known_variant)]
"""How the model receives the location: nothing, raw coordinates, their sines and cosines, or an embedding.

`random` and `shuffled` are controls: a random vector per place, and GeoCLIP's vectors assigned to the wrong
places. Other packages may have more encoders (`pm25.plug_ins`).
"""

CellVariant = Annotated[str, AfterValidator(lambda name: name if name in REFERENCES else known_variant(name))]
"""Variant of a cell, or the reference that it has in the place of one."""

Fusion = Literal["hadamard", "concat", "film", "gated"]
"""How a location embedding is combined with the attention output: element-wise product, concatenation,
feature-wise linear modulation (Perez et al. 2018), or a learned gate (Arevalo et al. 2017)."""

NOT_EMBEDDED: frozenset[str] = frozenset({"none", "latlon", "sincos"})
"""Variants without an encoder."""

ENCODERS: frozenset[str] = frozenset(VARIANTS) - NOT_EMBEDDED
"""Built-in variants that embed the place with a frozen encoder."""

FILE_OPTIONS = ("checkpoint", "database", "path")
"""Options of encoders that are files. Their content is part of a key, and their place is not."""

CONTROLS: frozenset[str] = frozenset({"random", "shuffled"})
"""Variants whose embedding carries no information on where a place is."""


def embeds(variant: str) -> bool:
    """Return True for a variant that embeds the place with a frozen encoder; only these take a fusion.

    The encoder need not be installed, so that the records of its cells can be read anywhere.
    """
    return variant not in NOT_EMBEDDED and variant not in REFERENCES


def trained_encoder(variant: str) -> str:
    """Return the encoder whose architecture and options a variant has: its own, or that of its draw."""
    drawn = UNTRAINED.fullmatch(variant)
    return drawn[1] if drawn else variant


Loss = Literal["squared", "huber", "absolute"]
"""Loss of a training. `squared` is half the squared error, the Huber loss without its linear part."""

Precision = Literal["fp32", "bf16"]
"""Number format of a network's matrix products: 32-bit floats, or bfloat16."""


Counted = Annotated[int, Field(ge=1, le=MOST_COUNTED)]
"""Number of things that are counted, at least one."""

Km = Annotated[float, Field(gt=0, le=MOST_KM)]
"""Distance in km."""

Degrees = Annotated[float, Field(ge=0.001, le=360)]
"""Edge of a square in degrees, from about 100 m to a square around the Earth."""

Share = Annotated[float, Field(gt=0, lt=1)]
"""Fraction of a total, between 0 and 1, both excluded."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """Base of every settings block: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _a_boolean_is_not_a_number(cls, value: Any) -> Any:
        """Refuse true and false for a number, which pydantic would read as 1 and 0."""
        for name, given in value.items() if isinstance(value, Mapping) else ():
            for one in given if isinstance(given, list | tuple) else (given,):
                if isinstance(one, bool) and name in _numbers(cls):
                    raise SettingError(
                        name, f"{str(one).lower()} is a boolean, not a number", "give a number"
                    )
        return value


@functools.cache
def _numbers(block: type[Settings]) -> frozenset[str]:
    """Keys that take numbers, alone or in a list, but neither booleans nor texts."""
    types = {info.alias or name: {*leaves(info.annotation)} for name, info in block.model_fields.items()}
    return frozenset(key for key, own in types.items() if own & {int, float} and not own & {bool, str, Any})


def leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types of an annotation without unions, lists and metadata."""
    inner = get_args(annotation)
    if inner and get_origin(annotation) is not Literal:
        for one in inner[:1] if get_origin(annotation) is Annotated else inner:
            yield from leaves(one)
    else:
        yield annotation


class ModelSettings(Settings):
    """Settings of the network. The defaults are the published ones (Karimzadeh, Wang, Crooks 2025)."""

    width: int = Field(256, ge=2, le=MOST_UNITS, multiple_of=2)
    """Units per direction of the first Bi-LSTM layer; the later layers have half as many."""
    depth: int = Field(3, ge=1, le=MOST_LAYERS)
    """Number of Bi-LSTM layers."""
    attention_units: int = Field(256, ge=1, le=MOST_UNITS)
    """Units of the attention output and of the dense layers around the fusion."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout rate after each Bi-LSTM layer but the last, and after the attention."""
    initialiser: Literal["torch"] | None = None
    """Initial weights: None for Keras' defaults, `torch` for PyTorch's, with both LSTM biases trained."""
    projection: Literal["norm_tanh"] | None = None
    """Projection of the embedding: None for Dense(ReLU), `norm_tanh` for SatCLIP's LayerNorm, Dense(tanh)."""

    @property
    def units(self) -> tuple[int, ...]:
        """Units per direction of each Bi-LSTM layer, first to last."""
        return (self.width, *[self.width // 2] * (self.depth - 1))


class TrainSettings(Settings):
    """Settings of the training: loss on the scaled target, Adam, staircase decay, early stopping.

    The target is scaled by the standard deviation of the training targets, under protocol `paper` by the
    largest target.
    """

    loss: Loss = "squared"
    """Loss of training and early stopping: `squared` (the published objective), `huber` or `absolute`.
    Default: `squared`, or `huber` if `huber_delta` is given or the protocol is `paper`."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the first `decay_steps` steps."""
    decay: float = Field(0.8, gt=0, le=1)
    """Factor applied to the learning rate after every `decay_steps` steps."""
    decay_steps: Counted = 30_000
    """Steps after which the learning rate is multiplied by `decay`."""
    batch_size: Counted = 256
    """Windows of a training batch."""
    max_epochs: Counted = 100
    """Largest number of epochs."""
    patience: Counted = 30
    """Epochs without a lower validation loss after which training stops; the best weights are kept."""
    target: Literal["log1p"] | None = None
    """Transform of the target before it is standardised: None, or sign(y) log(1 + |y|) for smoke peaks."""
    huber_delta: PositiveFloat | None = None
    """Error at which the loss `huber` becomes linear, in units of the scaled target: standard deviations of
    the training targets, or largest targets under protocol `paper`. Default: 1; other losses have none."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null turns clipping off. Default: 1, or null under protocol `paper`."""
    precision: Precision = "fp32"
    """Format of the network's matrix products: `fp32`, or `bf16`, which processors with such instructions
    (AMX, AVX512-BF16, GPUs from Ampere on) compute faster. Weights, optimiser, loss and metrics stay fp32."""
    max_windows: Counted | None = None
    """Most training windows; a larger training set is subsampled with the cell's seed."""
    max_validation_windows: Counted | None = None
    """Most validation windows; a larger validation set is subsampled with the cell's seed."""

    @model_validator(mode="before")
    @classmethod
    def _delta_means_huber(cls, value: Any) -> Any:
        """Fill in the loss of a given delta, and the delta of loss `huber`.

        Cells that were stored before there was a choice of losses have a delta and no loss.
        """
        if not isinstance(value, Mapping):
            return value
        delta = value.get("huber_delta")
        if "loss" not in value and delta is not None:
            return {**value, "loss": "huber"}
        return {**value, "huber_delta": 1.0} if value.get("loss") == "huber" and delta is None else value

    @model_validator(mode="after")
    def _delta_has_its_loss(self) -> "TrainSettings":
        if self.loss != "huber" and self.huber_delta is not None:
            raise SettingError(
                "huber_delta",
                f"{self.huber_delta:g} is given, but loss {self.loss} has no delta",
                "leave huber_delta out, or set loss: huber",
            )
        return self


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping with dotted names, such as 'train.max_epochs'.

    An empty block stays a value.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
