"""The design of a study: the factors that are crossed, its arms, and its seeds."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from pm25.cell import Cell
from pm25.errors import SettingError
from pm25.settings import Fusion, Seed, Settings, Variant
from pm25.splits import Split

Head = Literal["matched"]


def listed(value: Any) -> Any:
    """Make a tuple of a single level; lists, tuples and None are returned unchanged."""
    return value if isinstance(value, list | tuple) or value is None else (value,)


Levels = (BeforeValidator(listed), Field(min_length=1))
"""Metadata of a field that takes one level or a list of at least one."""


class SplitFactor(Settings):
    """One split of the design, and the folds of it that are run."""

    split: Split
    """How sites and days are divided into training, validation and test sets."""
    fold: Annotated[tuple[int, ...], BeforeValidator(listed)] = ()
    """Fold to run, or a list of folds, counted from 0. Default: all folds of the split."""

    @model_validator(mode="before")
    @classmethod
    def _fold_beside_split(cls, value: Any) -> Any:
        """Separate `fold` from the keys of the split, which the study file writes in one mapping."""
        if isinstance(value, Mapping):
            value = dict(value)
            return {"fold": value.pop("fold", ()), "split": value}
        return value

    @model_validator(mode="after")
    def _folds_exist(self) -> "SplitFactor":
        for fold in self.fold:
            if not 0 <= fold < self.split.folds:
                last = self.split.folds - 1
                raise SettingError(
                    "fold",
                    f"{fold} is not a fold of split {self.split.label}",
                    f"use folds from 0 to {last}" if last else "use fold 0",
                )
        return self

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds to run: the ones that the study names, or all folds of the split."""
        return self.fold or tuple(range(self.split.folds))


class AdaptiveSeeds(Settings):
    """Seeds 0, 1, ... that are added where the declared tests have not decided yet.

    The tests are run with `start` seeds, then with twice as many each time, and at last with `max` seeds.
    """

    start: PositiveInt
    """Number of seeds that every arm gets on every split."""
    max: PositiveInt
    """Largest number of seeds, above `start`."""
    until: Literal["decided"] = "decided"
    """Condition that ends the addition of seeds: each declared test has a result, or `max` is reached."""

    @model_validator(mode="after")
    def _grows(self) -> "AdaptiveSeeds":
        if self.max <= self.start:
            raise SettingError(
                "max", f"{self.max} is not above start, {self.start}", "increase max, or list the seeds"
            )
        return self

    @property
    def looks(self) -> tuple[int, ...]:
        """Number of seeds at each interim analysis (look), in order."""
        looks = [self.start]
        while looks[-1] < self.max:
            looks.append(min(2 * looks[-1], self.max))
        return tuple(looks)


ADAPTIVE, LISTED = "adaptive", "listed"
"""Tags of the two forms of `design.seed`; pydantic puts them into the location of an error."""

Seeds = Annotated[
    Annotated[AdaptiveSeeds, Tag(ADAPTIVE)] | Annotated[tuple[Seed, ...], *Levels, Tag(LISTED)],
    Discriminator(lambda value: ADAPTIVE if isinstance(value, Mapping | AdaptiveSeeds) else LISTED),
]


class Design(Settings):
    """The factors that a study crosses.

    A variant without an encoder has no fusion and makes one arm. `head: [plain, matched]` adds arms of the
    variant `none` that have the layers of an encoder arm, one for each fusion.
    """

    variant: Annotated[tuple[Variant, ...], *Levels]
    """Location encodings to compare, one name or a list."""
    fusion: Annotated[tuple[Fusion, ...], *Levels] = ("hadamard",)
    """Ways to fuse a location embedding with the network, one name or a list. Default: `hadamard`."""
    head: Annotated[tuple[Literal["plain", "matched"], ...], *Levels] = ("plain",)
    """Network heads of the variant `none`: `plain`, or `matched`, with the layers of an encoder arm and one
    constant vector for every place. Default: `plain`."""
    split: Annotated[tuple[SplitFactor, ...], *Levels]
    """Splits to evaluate on, each with its `kind` and, optionally, the folds to run."""
    seed: Seeds
    """Training seed, a list of seeds, or `{start: N, max: M}` for seeds that are added while tests are
    undecided."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds that may be run; with adaptive seeds, 0 to `max` - 1."""
        return tuple(range(self.seed.max)) if isinstance(self.seed, AdaptiveSeeds) else self.seed

    @property
    def looks(self) -> tuple[int, ...]:
        """Number of seeds at each look of adaptive seeds; empty where the seeds are listed."""
        return self.seed.looks if isinstance(self.seed, AdaptiveSeeds) else ()

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """Seeds that every arm runs on every split."""
        return tuple(range(self.seed.start)) if isinstance(self.seed, AdaptiveSeeds) else self.seed

    @model_validator(mode="after")
    def _splits_differ(self) -> "Design":
        seen: dict[str, Split] = {}
        for factor in self.split:
            label = factor.split.label
            if label in seen:
                equal = seen[label] == factor.split
                raise SettingError(
                    "split",
                    f"{label} is listed twice" if equal else f"{label} is listed twice, with other settings",
                    "name all its folds in one entry" if equal else "declare two studies",
                )
            seen[label] = factor.split
        return self


class Arm(NamedTuple):
    """A location encoding with its fusion and head: the unit that is compared, and tuned separately."""

    variant: Variant
    fusion: Fusion | None
    head: Head | None = None

    @classmethod
    def of(cls, cell: Cell) -> "Arm":
        """Return the arm that a cell belongs to."""
        return cls(cell.variant, cell.fusion, cell.head)

    @property
    def label(self) -> str:
        """Name such as `none`, `geoclip-hadamard` or `none-matched-concat`."""
        return "-".join(filter(None, (self.variant, self.head, self.fusion)))

    @property
    def fused(self) -> bool:
        """True if the network has the layers that project and fuse an embedding."""
        return self.fusion is not None
