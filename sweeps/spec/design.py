"""The design of a study: the factors that are crossed, its arms, and its seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from pm25.cell import Cell
from pm25.errors import SettingError
from pm25.settings import (
    REFERENCES,
    UNTRAINED,
    UNTRAINED_FACTORS,
    CellVariant,
    Fusion,
    Seed,
    Settings,
    Variant,
)
from pm25.splits import AnySplit, Split
from sweeps.spec.limits import MOST_DRAWS, MOST_LISTED, MOST_SEEDS

Head = Literal["matched"]

DRAWS = 19
"""Default number of draws of an untrained encoder."""


def listed(value: Any) -> Any:
    """Make a tuple of a single level; lists, tuples and None are returned unchanged."""
    return value if isinstance(value, list | tuple) or value is None else (value,)


def refuse_repeated(field: str, levels: Sequence[Any]) -> None:
    """Raise SettingError for a level that is listed twice."""
    left = dict.fromkeys(levels)
    if len(left) < len(levels):
        level = next(level for level, number in Counter(levels).items() if number > 1)
        raise SettingError(field, f"{level} is listed twice", f"write [{', '.join(map(str, left))}]")


Levels = (BeforeValidator(listed), Field(min_length=1, max_length=MOST_LISTED))
"""Metadata of a field that takes one level, or a list of 1 to `MOST_LISTED`."""


class Adaptive(Settings):
    """A number that grows where the declared tests have not decided yet.

    The tests are run with `start`, then with twice as many each time, and at last with `max`.
    """

    start: PositiveInt
    """Number that every arm begins with."""
    max: int = Field(ge=1, le=MOST_SEEDS)
    """Largest number, above `start`."""
    until: Literal["decided"] = "decided"
    """Condition that ends the addition: each declared test has a result, or `max` is reached."""

    @model_validator(mode="after")
    def _grows(self) -> "Adaptive":
        if self.max <= self.start:
            raise SettingError(
                "max", f"{self.max} is not above start, {self.start}", "increase max, or give a fixed number"
            )
        return self

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers at which the tests may be run, in order."""
        looks = [self.start]
        while looks[-1] < self.max:
            looks.append(min(2 * looks[-1], self.max))
        return tuple(looks)


class AdaptiveSeeds(Adaptive):
    """Seeds 0, 1, ... that are added where the declared tests have not decided yet.

    The tests are run with `start` seeds, then with twice as many each time, and at last with `max` seeds.
    """


class AdaptiveRepeats(Adaptive):
    """Origins or deals that are added where the declared tests have not decided yet.

    Where seeds may be added too, each step adds what is predicted to shrink the interval most per training.
    """


class SplitLadder(NamedTuple):
    """Numbers of repeats and of seeds at which the contrasts of one split may be looked at."""

    repeats: Sequence[int] = ()
    """Numbers of origins or deals, in order; empty if their number is fixed."""
    seeds: Sequence[int] = ()
    """Numbers of seeds, in order; empty if the seeds are listed."""

    @property
    def looks(self) -> int:
        """Largest number of looks at one contrast: each look after the first adds repeats or seeds."""
        return max(len(self.repeats), 1) + max(len(self.seeds), 1) - 1


class Ladders(NamedTuple):
    """Numbers of seeds and repeats at which the contrasts of a study may be looked at."""

    seeds: Sequence[int] = ()
    """Numbers of seeds, in order; empty if the seeds are listed."""
    repeats: Sequence[tuple[str, Sequence[int]]] = ()
    """Labels of the splits with adaptive origins or deals, each with its numbers of them in order."""

    @property
    def adaptive(self) -> bool:
        """True if seeds or repeats may be added."""
        return bool(self.seeds or self.repeats)

    def of(self, split: str) -> SplitLadder:
        """Return the numbers that apply to the split with this label."""
        return SplitLadder(dict(self.repeats).get(split, ()), self.seeds)


_REPEATED_BY: dict[str, str] = {
    kind.model_fields["kind"].default: kind.repeated_by for kind in get_args(AnySplit) if kind.repeated_by
}
"""Key with the number of repeats, by the kinds of splits that have them."""


NO_LADDERS = Ladders()
"""Those of a study whose seeds and repeats are fixed."""


class SplitFactor(Settings):
    """One split of the design, and the folds of it that are run.

    `origins` and `deals`, the numbers of repeats of kinds `checkerboards` and `blocks`, may be
    `{start: N, max: M}`. They are then added while tests are undecided.
    """

    split: Split
    """How sites and days are divided into training, validation and test sets."""
    fold: Annotated[tuple[int, ...], BeforeValidator(listed)] = ()
    """Fold to run, or a list of folds, counted from 0. Default: all folds of the split."""
    origins: AdaptiveRepeats | None = None
    """Origins of kind `checkerboards` that are added while tests are undecided. Default: a fixed number."""
    deals: AdaptiveRepeats | None = None
    """Deals of kind `blocks` that are added while tests are undecided. Default: a fixed number."""

    @model_validator(mode="before")
    @classmethod
    def _fold_beside_split(cls, value: Any) -> Any:
        """Separate `fold` from the keys of the split, which the study file writes in one mapping.

        The split has the largest number of its adaptive repeats, so that it has all folds that may be run.
        """
        if not isinstance(value, Mapping):
            return value
        split = dict(value)
        found = {"fold": split.pop("fold", ()), "split": split}
        name = _REPEATED_BY.get(str(split.get("kind")), "")
        if isinstance(split.get(name), Mapping):
            found[name] = split.pop(name)
            if isinstance(most := found[name].get("max"), int):
                split[name] = most
        return found

    @model_validator(mode="after")
    def _folds_exist(self) -> "SplitFactor":
        for fold in self.fold:
            if not 0 <= fold < self.split.n_folds:
                last = self.split.n_folds - 1
                raise SettingError(
                    "fold",
                    f"{fold} is not a fold of split {self.split.label}",
                    f"use folds from 0 to {last}" if last else "use fold 0",
                )
        refuse_repeated("fold", self.fold)
        if self.fold and self.repeats is not None:
            raise SettingError(
                "fold",
                f"has a list, and the {self.split.repeated_by} of split {self.split.label} are adaptive",
                f"leave fold out, or give a number of {self.split.repeated_by}",
            )
        return self

    @property
    def repeats(self) -> AdaptiveRepeats | None:
        """Adaptive origins or deals; None if their number is fixed."""
        return self.origins or self.deals

    @property
    def folds(self) -> Sequence[int]:
        """Folds to run: the ones that the study names, or all folds of the split."""
        return self.fold or range(self.split.n_folds)


ADAPTIVE, LISTED = "adaptive", "listed"
"""Tags of the two forms of `design.seed`; pydantic puts them into the location of an error."""

SeedLevels = (BeforeValidator(listed), Field(min_length=1, max_length=MOST_SEEDS))
"""Metadata of a field that takes one seed, or a list of 1 to `MOST_SEEDS`."""

Seeds = Annotated[
    Annotated[AdaptiveSeeds, Tag(ADAPTIVE)] | Annotated[tuple[Seed, ...], *SeedLevels, Tag(LISTED)],
    Discriminator(lambda value: ADAPTIVE if isinstance(value, Mapping | AdaptiveSeeds) else LISTED),
]


class Design(Settings):
    """The factors that a study crosses.

    A variant without an encoder has no fusion and makes one arm. `head: [plain, matched]` adds arms of the
    variant `none` that have the layers of an encoder arm, one for each fusion.
    """

    variant: Annotated[tuple[Variant, ...], *Levels]
    """Location encodings to compare, one name or a list."""
    draws: int = Field(DRAWS, ge=1, le=MOST_DRAWS)
    """Number of draws of fresh weights that `untrained_geoclip` and `untrained_satclip` each stand for. Every
    draw is a variant of its own. Default: 19, the fewest with which p can be 5 %."""
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
    def looks(self) -> Ladders:
        """Numbers of seeds and of repeats at which contrasts are looked at; empty without adaptive ones."""
        seeds = self.seed.looks if isinstance(self.seed, AdaptiveSeeds) else ()
        factors = ((factor.split.label, factor.repeats) for factor in self.split)
        return Ladders(seeds, tuple((label, own.looks) for label, own in factors if own is not None))

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """Seeds that every arm runs on every split."""
        return tuple(range(self.seed.start)) if isinstance(self.seed, AdaptiveSeeds) else self.seed

    @model_validator(mode="before")
    @classmethod
    def _draws_are_variants(cls, value: Any) -> Any:
        """Replace the names of untrained encoders by those of their draws."""
        levels = listed(value.get("variant")) if isinstance(value, Mapping) else None
        if not isinstance(levels, list | tuple):
            return value
        names = [str(level) for level in levels]
        if not any(name in UNTRAINED_FACTORS or UNTRAINED.fullmatch(name) for name in names):
            if "draws" in value:
                fix = f"leave it out, or add one of {', '.join(UNTRAINED_FACTORS)} to variant"
                raise SettingError("draws", "is given, and no variant is untrained", fix)
            return value
        draws = value.get("draws", DRAWS)
        if not isinstance(draws, int) or not 1 <= draws <= MOST_DRAWS:
            raise SettingError("draws", f"{draws!r} is not accepted", f"give a number from 1 to {MOST_DRAWS}")
        drawn = {name: [f"{name}_{draw}" for draw in range(draws)] for name in UNTRAINED_FACTORS}
        found = [one for level in levels for one in drawn.get(str(level), [level])]
        return {**value, "variant": found, "draws": draws}

    @model_validator(mode="after")
    def _levels_differ(self) -> "Design":
        """Refuse a level that is listed twice: its cells would be equal, not two."""
        seeds = () if isinstance(self.seed, AdaptiveSeeds) else self.seed
        factors: dict[str, Sequence[Any]] = {"variant": self.variant, "fusion": self.fusion}
        for name, levels in (factors | {"head": self.head, "seed": seeds}).items():
            refuse_repeated(name, levels)
        return self

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
    """A location encoding with its fusion and head: the unit that is compared, and tuned separately.

    The cells of a reference have an arm too, which is neither compared nor tuned.
    """

    variant: CellVariant
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
    def is_reference(self) -> bool:
        """True for a reference, which the design does not cross."""
        return self.variant in REFERENCES

    @property
    def fused(self) -> bool:
        """True if the network has the layers that project and fuse an embedding."""
        return self.fusion is not None


class FoldArm(NamedTuple):
    """An arm on one fold of a split, which a nested search tunes by itself."""

    arm: Arm
    split: str
    """Label of the split."""
    fold: int

    @property
    def label(self) -> str:
        """Name such as `geoclip-hadamard random fold 0`."""
        return f"{self.arm.label} {self.split} fold {self.fold}"


Scope = Arm | FoldArm
"""Cells whose settings one search chooses: those of an arm, or those of an arm on one fold."""


def arm_of(scope: Scope) -> Arm:
    """Return the arm of a scope."""
    return scope.arm if isinstance(scope, FoldArm) else scope
