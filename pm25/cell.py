"""The specification of one training as a frozen value, and the key under which its result is stored."""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

import pm25
from pm25.errors import SettingError
from pm25.limits import MOST_DAYS
from pm25.neighbours import NeighbourSettings
from pm25.protocol import Protocol, training_settings, with_paper_defaults
from pm25.settings import (
    CONTROLS,
    REFERENCES,
    CellVariant,
    Fusion,
    ModelSettings,
    Seed,
    Settings,
    TrainSettings,
    embeds,
    leaves,
)
from pm25.splits import AnySplit, PeriodSplit, RandomSplit, Reserve, Split, SplitSettings

CellSplit = Annotated[Split, AfterValidator(lambda split: split.in_cell())]
"""A split without its number of repeats, with which cells of one fold in two studies are equal."""


class Tuning(Settings):
    """Settings of a training that belongs to a hyperparameter search.

    A search only knows the training side of the cell's own split and fold. All held-out samples (test,
    within-region test, sites dropped by a buffer) lose their targets.

    Without `split`, the score is measured on the validation samples of the cell's split. With `split`, the
    training side is split again, and the score is measured on the held-out samples of its fold `fold`
    (nested validation).
    """

    split: CellSplit | None = None
    fold: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fold_exists(self) -> "Tuning":
        if self.split is None and self.fold:
            raise SettingError("fold", f"{self.fold} is given without a split", "set tuning.split as well")
        if self.split is not None:
            _check_fold(self.split, self.fold)
        return self

    @property
    def label(self) -> str:
        """Short description of the samples that are scored."""
        return "validation" if self.split is None else f"{self.split.label} fold {self.fold}"


class Cell(Settings):
    """One training. It holds everything that can change the numbers, and nothing that cannot.

    The cell of a reference has no network, and so no settings of a network, its training or a search.
    """

    variant: CellVariant
    fusion: Fusion | None = None
    split: CellSplit
    fold: int = Field(ge=0)
    seed: Seed
    window: int = Field(21, ge=1, le=MOST_DAYS)
    """Days of input; the target is that of the last day."""
    protocol: Protocol = "strict"
    head: Literal["matched"] | None = None
    """`matched` gives variant `none` the layers of an encoder arm, with one constant vector as embedding."""
    neighbours: NeighbourSettings | None = None
    tuning: Tuning | None = None
    """Set for a training of a search, which is scored on validation samples and has no test set."""
    reserve: Reserve | None = None
    """Sites for the search alone: a search only knows these, and no other cell is tested there."""
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_protocol(cls, value: Any) -> Any:
        """Fill in the training settings that depend on the protocol."""
        if not isinstance(value, Mapping) or value.get("protocol") != "paper":
            return value
        if value.get("variant") in REFERENCES:
            return value
        train = value.get("train", {})
        if isinstance(train, TrainSettings):
            return {**value, "train": training_settings("paper", train)}
        return {**value, "train": with_paper_defaults(train)} if isinstance(train, Mapping) else value

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Cell":
        if self.head is not None and self.variant != "none":
            raise SettingError(
                "head",
                f"{self.head} is only for variant none, and the variant is {self.variant}",
                "leave head out, or set variant: none",
            )
        fused = embeds(self.variant) or self.head is not None
        if fused and self.fusion is None:
            raise SettingError("fusion", f"missing for variant {self.variant}", "give a fusion")
        if not fused and self.fusion is not None:
            raise SettingError(
                "fusion",
                f"{self.fusion} is given, but variant {self.variant} has no embedding",
                "leave fusion out",
            )
        every_split = [self.split, *([self.tuning.split] if self.tuning and self.tuning.split else [])]
        in_time = next((split for split in every_split if isinstance(split, PeriodSplit)), None)
        if self.neighbours is not None and in_time is not None:
            raise SettingError(
                "neighbours",
                f"no training monitor reports on the test days of split {in_time.label}",
                "leave neighbours out, or take another split",
            )
        if self.model.projection is not None and not fused:
            raise SettingError(
                "model.projection",
                f"{self.model.projection} is given, but variant {self.variant} has no embedding to project",
                "leave model.projection out",
            )
        if self.protocol == "paper" and self.train.target is not None:
            raise SettingError(
                "train.target",
                f"{self.train.target} is given, but protocol paper has its own target scale",
                "leave train.target out, or set protocol: strict",
            )
        if self.protocol == "paper" and self.tuning is not None:
            raise SettingError("tuning", "protocol paper has no search", "set protocol: strict")
        if self.protocol == "paper" and self.reserve is not None:
            raise SettingError("reserve", "protocol paper has no search", "set protocol: strict")
        _check_fold(self.split, self.fold)
        self._check_reference()
        return self

    def _check_reference(self) -> None:
        """Raise SettingError for what the cell of a reference cannot have."""
        if not self.is_reference:
            return
        given = {
            "neighbours": self.neighbours is not None,
            "tuning": self.tuning is not None,
            "model": self.model != ModelSettings(),
            "train": self.train != TrainSettings(),
        }
        for name in (name for name, has in given.items() if has):
            raise SettingError(name, f"reference {self.variant} does not use it", f"leave {name} out")
        if not allows(self.split, self.variant):
            raise SettingError(
                "variant",
                f"{self.variant} needs earlier days of test sites, and {self.split.label} has none",
                "take another reference, or a split of kind random, temporal or rolling",
            )

    @property
    def is_reference(self) -> bool:
        """True if the cell predicts without a network (`pm25.references`)."""
        return self.variant in REFERENCES

    @property
    def encoder(self) -> str | None:
        """Name of the encoder for `pm25.encoders.load`; None for variants without one."""
        return self.variant if embeds(self.variant) else None

    @property
    def is_control(self) -> bool:
        """True if the embedding carries no information on the place, so that the model is of no use."""
        return self.variant in CONTROLS or self.head is not None

    @property
    def numerics(self) -> int:
        """Version of the code's numbers in the key, at which those of a cell like this last moved."""
        if self.is_reference:
            return pm25.REFERENCE_NUMERICS
        unmoved = self.protocol == "strict" and self.train.loss == "huber"
        return pm25.HUBER_NUMERICS if unmoved else pm25.NUMERICS

    @property
    def label(self) -> str:
        """Name for readers. Two different cells may share it; the key is unique."""
        arm = "-".join(filter(None, (self.variant, self.head, self.fusion)))
        tuning = f" tuning on {self.tuning.label}" if self.tuning else ""
        return f"{arm} {self.split.label} fold {self.fold} seed {self.seed}{tuning}"

    def resolved(self) -> dict[str, Any]:
        """Return the cell as plain JSON values.

        Optional fields that are not set are left out, and so are numbers of origins and deals. The loss
        `huber` is left out too, because its delta implies it, and so is the precision `fp32`. A reference has
        neither `model` nor `train`.
        """
        plain = _without_unset(self, self.model_dump(mode="json"))
        if self.is_reference:
            del plain["model"], plain["train"]
        return plain

    def key(self, data_fingerprint: str, encoder_fingerprint: str | None = None) -> str:
        """Hash everything that can change the numbers of this training (20 hexadecimal digits)."""
        encoder = {"encoder": encoder_fingerprint} if embeds(self.variant) else {}
        return key_of(self.resolved(), data_fingerprint, self.numerics, **encoder)


def allows(split: AnySplit, variant: CellVariant) -> bool:
    """Return True if a split lets training know what a variant needs.

    Only persistence needs something: earlier days of the test sites.
    """
    return variant != "persistence" or isinstance(split, RandomSplit | PeriodSplit)


def key_of(cell: Mapping[str, Any], data: str, numerics: int, **encoder: str | None) -> str:
    """Hash a resolved cell with the fingerprints of its data and its encoder, and the version of numerics.

    `encoder` is given for variants with an encoder only. Raises ValueError for a number that is not finite.
    """
    identity = {"cell": cell, "data": data, "numerics": numerics, **encoder}
    return hashlib.sha256(_IDENTITY.encode(identity).encode()).hexdigest()[:20]


_IDENTITY = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
"""Encoder of what a key stands for; one is kept, because a study has many keys."""


def _check_fold(split: AnySplit, fold: int) -> None:
    if fold >= split.n_folds:
        raise SettingError(
            "fold", f"fold {fold} does not exist", f"take one of {split.label}, from 0 to {split.n_folds - 1}"
        )


def _without_unset(settings: Settings, plain: dict[str, Any]) -> dict[str, Any]:
    """Delete from `plain` the fields that `Cell.resolved` leaves out, in nested blocks too."""
    if isinstance(settings, SplitSettings) and settings.repeated_by is not None:
        del plain[settings.repeated_by]
    if isinstance(settings, TrainSettings) and settings.loss == "huber":
        del plain["loss"]
    if isinstance(settings, TrainSettings) and settings.precision == "fp32":
        del plain["precision"]  # keys from before there was a choice
    for name, optional in _fields(type(settings)):
        value = getattr(settings, name)
        if isinstance(value, Settings):
            _without_unset(value, plain[name])
        elif value is None and optional:
            del plain[name]
    return plain


@functools.cache
def _fields(kind: type[Settings]) -> tuple[tuple[str, bool], ...]:
    """Names of the fields that are optional or may hold a block, and whether None is the default.

    They are cached, because a grid has thousands of cells.
    """
    return tuple(
        (name, info.default is None)
        for name, info in kind.model_fields.items()
        if info.default is None
        or any(isinstance(leaf, type) and issubclass(leaf, Settings) for leaf in leaves(info.annotation))
    )
