"""What a study crosses, and what it tunes: the design and the search as its file declares them."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from pm25.cell import Cell
from pm25.metrics import METRICS
from pm25.settings import Fusion, ModelSettings, Seed, Settings, TrainSettings, Variant
from pm25.splits import Split

Head = Literal["matched"]
Point = Mapping[str, Any]
"""Values of tuned settings by their dotted names, such as `train.learning_rate`."""


def listed(value: Any) -> Any:
    """A single level is a list of one."""
    return value if isinstance(value, list | tuple) or value is None else (value,)


Levels = (BeforeValidator(listed), Field(min_length=1))

ExactInt = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""As far as a float counts in ones, which is how Optuna counts."""


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


def _check_scalar(value: Any, where: str = "") -> None:
    """Raises ValueError for what no setting can be."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value):
        raise ValueError(f"{where}YAML reads {value} as a text; write it with a point, such as 1.0e-3")
    if not isinstance(value, str | int | float | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"{where}{value!r} is no number, no text and not null")


ConditionValues = Annotated[
    tuple[Any, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1),
]
"""Values of one parameter beside which another means something."""


class Parameter(Settings):
    """The values that one setting may take: `float` or `int` between two ends, or a `choice`.

    `when` names another parameter and the values of it with which this one means anything.
    """

    float_: Annotated[tuple[float, float] | None, Field(alias="float")] = None
    int_: Annotated[tuple[ExactInt, ExactInt] | None, Field(alias="int")] = None
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    log: bool = False
    step: Annotated[float | None, Field(gt=0)] = None
    when: Annotated[dict[str, ConditionValues], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Parameter":
        ends = self.float_ or self.int_
        if sum(kind is not None for kind in (self.float_, self.int_, self.choice)) != 1:
            raise ValueError("give one of float: [LOW, HIGH], int: [LOW, HIGH] and choice: [A, B]")
        if ends is None:
            if self.log or self.step is not None:
                raise ValueError("log and step are for float and int, not for a choice")
            for value in self.choice or ():
                _check_scalar(value)
            return self
        low, high = ends
        if not low < high:
            raise ValueError(f"the low end comes first, and below the high one; got [{low:g}, {high:g}]")
        if self.log and (low <= 0 or self.step is not None):
            raise ValueError("log needs ends above 0, and takes no step")
        if self.step is not None:
            if (Fraction(str(high)) - Fraction(str(low))) % Fraction(str(self.step)):  # as Optuna has it
                raise ValueError(f"{high:g} is no whole number of steps of {self.step:g} above {low:g}")
            if self.int_ and self.step != int(self.step):
                raise ValueError(f"step {self.step:g} of an int is a whole number")
        return self

    def holds(self, value: Any) -> bool:
        """Whether it can take a value."""
        if self.choice is not None:
            return any(same(value, known) for known in self.choice)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        ends = self.float_ or self.int_
        assert ends is not None
        if not ends[0] <= value <= ends[1]:
            return False
        if self.int_ is not None:
            return (value - ends[0]) % (self.step or 1) == 0
        steps = (value - ends[0]) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def ends(self) -> tuple[Any, ...]:
        """The ends of its range, or all its choices."""
        return self.choice or self.float_ or self.int_ or ()


def _dotted(value: Any) -> Any:
    """A block in place of names in it is the likeliest slip."""
    for name in value if isinstance(value, Mapping) else ():
        if not isinstance(name, str) or name in ("model", "train"):
            raise ValueError(f"{name}: write settings as train.learning_rate or model.width")
    return value


Space = Annotated[dict[str, Parameter], BeforeValidator(_dotted)]


class ArmSearch(Settings):
    """What is particular to the search of some arms: parameters and first points of their own."""

    variant: Variant
    fusion: Fusion | None = None
    head: Head | None = None
    space: Space = Field(default_factory=dict)
    """Joins the shared space, and replaces its parameters of the same names."""
    enqueue: tuple[Literal["study", "published"] | dict[str, Any], ...] = ()

    def of(self, arm: Arm) -> bool:
        """Whether it speaks of an arm; a fusion that is not given is any."""
        return self.variant == arm.variant and self.head == arm.head and self.fusion in (None, arm.fusion)

    @property
    def label(self) -> str:
        return Arm(self.variant, self.fusion, self.head).label


class Placement(SplitFactor):
    """Where a search trial is trained and validated: the training side of a split's folds, and no more.

    It is scored on the split's own validation samples, which lie within region. With `inner`, a split of
    that training side, it is scored on what `inner_fold` of that holds out: within region (WR), or both in
    and out of region (OoR) where `inner` is a checkerboard or another split of regions.
    """

    inner: Split | None = None
    inner_fold: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fold_beside_split(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        own = {name: value[name] for name in ("fold", "inner", "inner_fold") if name in value}
        return {**own, "split": {name: v for name, v in value.items() if name not in own}}

    @model_validator(mode="after")
    def _inner_fold_exists(self) -> "Placement":
        if self.inner is None and self.inner_fold:
            raise ValueError("inner_fold is a fold of inner, which is not given")
        if self.inner is not None and self.inner_fold >= self.inner.folds:
            raise ValueError(f"inner_fold: {self.inner.label} has folds 0 to {self.inner.folds - 1}")
        return self

    @property
    def regimes(self) -> tuple[str, ...]:
        """What its validation scores speak of."""
        return ("wr", "oor") if self.inner is not None and self.inner.regime == "OoR" else ("wr",)


class Pruner(Settings):
    """Ends a trial of an arm early that is worse than its other trials were after as many epochs.

    `median` (worse than their median), `asha` (asynchronous successive halving, Li et al. 2020: of every
    rung the best 1/`factor` go on), `hyperband` (several such brackets).
    """

    kind: Literal["median", "asha", "hyperband"]
    first_epoch: PositiveInt = 1
    """No trial is ended before."""
    factor: int = Field(3, ge=2)
    trials: PositiveInt = 5
    """`median` compares only when so many trials of the arm have ended."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Search(Settings):
    """Tunes every arm by itself, with the same number of trials, on validation samples only.

    A trial is one point of the space, trained on every placement of `split` with every `seed`; its
    score is the mean of `metric` over them.
    """

    trials: PositiveInt
    """Of every arm."""
    epochs: PositiveInt | None = None
    """Of every arm: no trial is started once its trials have trained so many epochs together."""
    space: Space = Field(default_factory=dict)
    per_arm: tuple[ArmSearch, ...] = ()
    split: Annotated[tuple[Placement, ...], *Levels]
    seed: Annotated[tuple[Seed, ...], *Levels] = (1000,)
    """Training seeds of the trials; none of the grid's."""
    objective: Annotated[tuple[Literal["wr", "oor"], ...], *Levels] = ("wr",)
    """Validation within region, out of region, or both: then the best trade-offs are looked for."""
    metric: Literal["rmse", "r2", "mae"] = "rmse"
    pick: Literal["balanced", "wr", "oor"] = "balanced"
    """Of the trials that no other beats in both objectives: `balanced` takes the one nearest to the best
    values of both, each counted in the range of those trials; `wr` and `oor` the best in that objective."""
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "random"] = "tpe"
    sampler_seed: Seed = 0
    pruner: Pruner | None = None
    concurrent: PositiveInt | None = None
    """Trials of one arm at a time; as many as there is room for without it."""
    enqueue: tuple[Literal["study", "published"] | dict[str, Any], ...] = ()
    """Points to try first: settings by name (the others are sampled), the `study`'s own, the `published`."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Search":
        places = [
            (placement.split, fold, placement.inner, placement.inner_fold)
            for placement in self.split
            for fold in placement.folds
        ]
        twice: tuple[tuple[str, Sequence[Any]], ...] = (
            ("objective", self.objective),
            ("split", places),
            ("seed", self.seed),
        )
        for name, levels in twice:
            if len(set(levels)) < len(levels):
                raise ValueError(f"{name}: one stands there twice; leave it out")
        offered = {regime for placement in self.split for regime in placement.regimes}
        if missing := [regime for regime in self.objective if regime not in offered]:
            raise ValueError(
                f"objective: nothing in search.split validates {missing[0]}; give a placement "
                "inner: {kind: checkerboard, degrees: 8}"
            )
        two = len(self.objective) > 1
        if self.pruner is not None and not self.reports:
            raise ValueError(
                "pruner: an epoch tells the validation RMSE within region, so the objective must be "
                "[wr] and the metric rmse; leave the pruner out"
            )
        if two and self.sampler == "cmaes":
            raise ValueError("sampler: cmaes has one objective; take nsga2, tpe, gp or random")
        if not two and self.pick != "balanced":
            raise ValueError("pick: is for two objectives; leave it out")
        if self.sampler == "cmaes" and any(
            parameter.choice is not None
            for space in (self.space, *(own.space for own in self.per_arm))
            for parameter in space.values()
        ):
            raise ValueError("sampler: cmaes has no choices; take tpe, gp or random")
        return self

    @property
    def reports(self) -> bool:
        """Whether what an epoch tells, validation RMSE within region, is the objective on the way."""
        return self.objective == ("wr",) and self.metric == "rmse"

    @property
    def trainings(self) -> int:
        """Of one trial: placements x folds x seeds."""
        return len(self.seed) * sum(len(placement.folds) for placement in self.split)

    @property
    def smaller_is_better(self) -> bool:
        return METRICS[self.metric].better == "lower"

    def space_of(self, arm: Arm, model: ModelSettings, train: TrainSettings) -> Space:
        """The parameters of an arm. Raises ValueError for one that is no setting, or not all allowed."""
        space = dict(self.space)
        for own in self.per_arm:
            if own.of(arm):
                space |= own.space
        if not arm.fused:
            space = _without_projection(space)
        if not space:
            raise ValueError(f"search.space: arm {arm.label} has nothing to tune")
        for name, parameter in space.items():
            space[name] = _allowed(arm, name, parameter, model, train)
        for name, parameter in space.items():
            for other, values in (parameter.when or {}).items():
                if other not in space or other == name:
                    raise ValueError(f"search.space.{name}.when: {other} is no other parameter")
                if bad := [value for value in values if not space[other].holds(value)]:
                    raise ValueError(f"search.space.{name}.when: {other} is never {bad[0]!r}")
        space = _in_order(space)
        for point in self.first_points(arm, space, model, train):
            for name, value in point.items():
                if not space[name].holds(value):
                    raise ValueError(
                        f"search.enqueue: {name} {value!r} is outside of its space in arm {arm.label}"
                    )
        return space

    def first_points(
        self, arm: Arm, space: Space, model: ModelSettings, train: TrainSettings
    ) -> list[dict[str, Any]]:
        """The points to try first, without names that mean nothing in the arm or beside their others."""
        listed = [*self.enqueue, *(point for own in self.per_arm if own.of(arm) for point in own.enqueue)]
        known = {*self.space, *(name for own in self.per_arm for name in own.space)}
        points: list[dict[str, Any]] = []
        for given in listed:
            if isinstance(given, str):
                blocks = {"model": model, "train": train}
                if given == "published":
                    blocks = {"model": ModelSettings(), "train": TrainSettings()}
                point = {name: getattr(blocks[name[:5]], name[6:]) for name in space}
            else:
                if unknown := [name for name in given if name not in known]:
                    raise ValueError(f"search.enqueue: {unknown[0]} is not in search.space")
                point = {name: given[name] for name in space if name in given}
                for name, value in point.items():
                    _check_scalar(value, f"search.enqueue: {name}: ")
            if (point := active(space, point)) and point not in points:
                points.append(point)
        return points


def active(space: Space, point: Point) -> dict[str, Any]:
    """The parameters that mean something at a point, without those whose `when` is not met."""
    kept: dict[str, Any] = {}
    for name, parameter in _in_order(space).items():
        if name in point and is_active(parameter, kept):
            kept[name] = point[name]
    return kept


def is_active(parameter: Parameter, point: Point) -> bool:
    """Whether a parameter means something beside the values of those that it hangs on."""
    return all(
        other in point and any(same(point[other], value) for value in values)
        for other, values in (parameter.when or {}).items()
    )


def within(space: Space, point: Point) -> bool:
    """Whether a point is one of the space: every parameter that means something, and no other."""
    return (
        all(name in space and space[name].holds(value) for name, value in point.items())
        and active(space, point) == dict(point)
        and all(name in point for name, parameter in space.items() if is_active(parameter, point))
    )


def settings_at(
    arm: Arm, point: Point, model: ModelSettings, train: TrainSettings
) -> tuple[ModelSettings, TrainSettings]:
    """The settings of an arm at a point. Raises ValueError for a name or a value that is not allowed."""
    blocks: dict[str, dict[str, Any]] = {"model": model.model_dump(), "train": train.model_dump()}
    for name, value in point.items():
        block, _, setting = name.partition(".")
        if block not in blocks or setting not in blocks[block]:
            raise ValueError(f"search.space: {name} is no setting; {_near(name)}")
        blocks[block][setting] = value
    if not arm.fused:
        blocks["model"]["projection"] = None  # nothing is projected
    try:
        return ModelSettings.model_validate(blocks["model"]), TrainSettings.model_validate(blocks["train"])
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = next((n for n in point if n.endswith(f".{fault['loc'][0]}")), str(fault["loc"][0]))
        raise ValueError(f"search.space.{name}: {fault['msg'].lower()}, got {fault['input']!r}") from None


def same(a: Any, b: Any) -> bool:
    """Whether two values of a setting are one; yes is not 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _allowed(
    arm: Arm, name: str, parameter: Parameter, model: ModelSettings, train: TrainSettings
) -> Parameter:
    """The parameter with its choices as the setting holds them. Raises ValueError for what it cannot be."""
    block, _, setting = name.partition(".")
    held = []
    values = parameter.ends()
    if parameter.int_ is not None:  # a setting may have to be a multiple of something
        values += (values[0] + int(parameter.step or 1),)
    for value in values:
        at = dict(zip(("model", "train"), settings_at(arm, {name: value}, model, train), strict=True))
        held.append(getattr(at[block], setting))
    if parameter.float_ is not None and isinstance(held[0], int):
        raise ValueError(f"search.space.{name}: it is a whole number; write int in place of float")
    if parameter.choice is None:
        return parameter
    for i, value in enumerate(held):
        if any(same(value, other) for other in held[:i]):
            raise ValueError(f"search.space.{name}: choice holds {value!r} twice")
    return parameter.model_copy(update={"choice": tuple(held)})


def _without_projection(space: Space) -> Space:
    """The space of an arm that projects no embedding, without what hangs on a projection."""
    gone, left = {"model.projection"}, dict(space)
    while gone:
        space, left = {name: parameter for name, parameter in left.items() if name not in gone}, {}
        for name, parameter in space.items():
            when = dict(parameter.when or {})
            if None in when.get("model.projection", ()):  # which is what it has
                del when["model.projection"]
                parameter = parameter.model_copy(update={"when": when or None})
            left[name] = parameter
        gone = {
            name for name, parameter in left.items() if any(other in gone for other in parameter.when or {})
        }
    return left


def _near(name: str) -> str:
    known = [f"model.{n}" for n in ModelSettings.model_fields] + [
        f"train.{n}" for n in TrainSettings.model_fields
    ]
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _in_order(space: Space) -> Space:
    """Every parameter after those that it hangs on. Raises ValueError for a circle."""
    ordered: Space = {}
    while len(ordered) < len(space):
        ready = [
            name
            for name, parameter in space.items()
            if name not in ordered and all(other in ordered for other in parameter.when or {})
        ]
        if not ready:
            raise ValueError("search.space: parameters hang on each other in a circle")
        ordered |= {name: space[name] for name in ready}
    return ordered
