"""What a study crosses, and what it tunes: the design and the search as its file declares them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    model_validator,
)

from pm25.cell import Cell
from pm25.settings import Fusion, Seed, Settings, Variant
from pm25.splits import Split

Head = Literal["matched"]


def listed(value: Any) -> Any:
    """A single level is a list of one."""
    return value if isinstance(value, list | tuple) or value is None else (value,)


Levels = (BeforeValidator(listed), Field(min_length=1))


class SplitFactor(Settings):
    """One split of the design with the folds to run; all of them where the study names none."""

    split: Split
    fold: Annotated[tuple[int, ...], BeforeValidator(listed)] = ()

    @model_validator(mode="before")
    @classmethod
    def _fold_beside_split(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = dict(value)
            return {"fold": value.pop("fold", ()), "split": value}
        return value

    @model_validator(mode="after")
    def _folds_exist(self) -> "SplitFactor":
        for fold in self.fold:
            if not 0 <= fold < self.split.folds:
                raise ValueError(
                    f"fold {fold} does not exist: {self.split.label} has folds 0 to {self.split.folds - 1}"
                )
        return self

    @property
    def folds(self) -> tuple[int, ...]:
        return self.fold or tuple(range(self.split.folds))


class AdaptiveSeeds(Settings):
    """Seeds 0, 1, ... of every arm: `start` of them, and more where the declared tests have not decided.

    What is tested is looked at with `start` seeds, then with twice as many each time, and last with `max`.
    """

    start: PositiveInt
    max: PositiveInt
    until: Literal["decided"] = "decided"

    @model_validator(mode="after")
    def _grows(self) -> "AdaptiveSeeds":
        if self.max <= self.start:
            raise ValueError(f"max {self.max} is to be above start {self.start}; else list the seeds")
        return self

    @property
    def looks(self) -> tuple[int, ...]:
        """How many seeds each look has."""
        looks = [self.start]
        while looks[-1] < self.max:
            looks.append(min(2 * looks[-1], self.max))
        return tuple(looks)


ADAPTIVE, LISTED = "adaptive", "listed"
"""Stand in the place of a fault in `design.seed`, and are not told."""

Seeds = Annotated[
    Annotated[AdaptiveSeeds, Tag(ADAPTIVE)] | Annotated[tuple[Seed, ...], *Levels, Tag(LISTED)],
    Discriminator(lambda value: ADAPTIVE if isinstance(value, Mapping | AdaptiveSeeds) else LISTED),
]


class Design(Settings):
    """The crossed factors. A variant without an encoder has no fusion, and is one arm.

    `head: [plain, matched]` adds a second `none`: with an encoder arm's layers, for each fusion.
    """

    variant: Annotated[tuple[Variant, ...], *Levels]
    fusion: Annotated[tuple[Fusion, ...], *Levels] = ("hadamard",)
    head: Annotated[tuple[Literal["plain", "matched"], ...], *Levels] = ("plain",)
    split: Annotated[tuple[SplitFactor, ...], *Levels]
    seed: Seeds

    @property
    def seeds(self) -> tuple[int, ...]:
        """All that may be run."""
        return tuple(range(self.seed.max)) if isinstance(self.seed, AdaptiveSeeds) else self.seed

    @property
    def looks(self) -> tuple[int, ...]:
        """How many seeds each look at adaptive seeds has; none where the seeds are listed."""
        return self.seed.looks if isinstance(self.seed, AdaptiveSeeds) else ()

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """Those of every arm on every split."""
        return tuple(range(self.seed.start)) if isinstance(self.seed, AdaptiveSeeds) else self.seed

    @model_validator(mode="after")
    def _splits_differ(self) -> "Design":
        seen: dict[str, Split] = {}
        for factor in self.split:
            label = factor.split.label
            if label in seen:
                same = seen[label] == factor.split
                fix = "name its folds in one entry" if same else "settings differ: make it two studies"
                raise ValueError(f"split {label} stands there twice; {fix}")
            seen[label] = factor.split
        return self


class Arm(NamedTuple):
    """A way of giving the place: what the study compares, and what is tuned by itself."""

    variant: Variant
    fusion: Fusion | None
    head: Head | None = None

    @classmethod
    def of(cls, cell: Cell) -> "Arm":
        return cls(cell.variant, cell.fusion, cell.head)

    @property
    def label(self) -> str:
        """`none`, `geoclip-hadamard`, `none-matched-concat`."""
        return "-".join(filter(None, (self.variant, self.head, self.fusion)))

    @property
    def fused(self) -> bool:
        """Whether it has the layers that project and fuse an embedding."""
        return self.fusion is not None
