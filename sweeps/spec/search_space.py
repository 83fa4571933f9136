"""The search as a study file declares it: tuned settings, their ranges, and the points to try first."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from pm25 import suggest
from pm25.errors import SettingError
from pm25.metrics import METRICS
from pm25.settings import Counted, Fusion, ModelSettings, Seed, Settings, TrainSettings, Variant
from pm25.splits import Reserve, Split
from sweeps.spec.design import Arm, Head, Levels, SeedLevels, SplitFactor, listed
from sweeps.spec.limits import MOST_LISTED, MOST_TRAININGS, MOST_TRIALS

Point = Mapping[str, Any]
"""Values of tuned settings by their dotted names, such as `train.learning_rate`."""

LOSS, HUBER_DELTA = "train.loss", "train.huber_delta"
"""Names of the loss, and of the setting that only one loss has."""

ExactInt = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""Integer that a float represents exactly; Optuna computes with floats."""


def _check_scalar(field: str, value: Any) -> None:
    """Raise SettingError for a value that no setting can have."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value):
        raise SettingError(field, f"YAML reads {value} as a text", "write it with a point, such as 1.0e-3")
    if not isinstance(value, str | int | float | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise SettingError(field, f"got {value!r}", "use a finite number, a text, true, false or null")


ConditionValues = Annotated[
    tuple[Any, ...],
    BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
    Field(min_length=1),
]
"""Values of one parameter at which another parameter is active."""


class Parameter(Settings):
    """The values that one setting may take: a `float` range, an `int` range, or a `choice`."""

    float_: Annotated[tuple[float, float] | None, Field(alias="float")] = None
    """Lowest and highest value of a real setting, both included."""
    int_: Annotated[tuple[ExactInt, ExactInt] | None, Field(alias="int")] = None
    """Lowest and highest value of an integer setting, both included."""
    choice: Annotated[
        Annotated[tuple[Any, ...], Field(min_length=1, max_length=MOST_LISTED)] | None,
        BeforeValidator(listed),
    ] = None
    """Values of a categorical setting, or its only value."""
    log: bool = False
    """Sample the range on a logarithmic scale."""
    step: Annotated[float | None, Field(gt=0)] = None
    """Distance between two values of the range. Default: 1 for `int`; every value for `float`."""
    when: Annotated[dict[str, ConditionValues], Field(min_length=1)] | None = None
    """Condition: other tuned settings by name, each with the values at which this setting is tuned. Default:
    always."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Parameter":
        ends = self.float_ or self.int_
        given = [name for name, kind in self._kinds().items() if kind is not None]
        if len(given) != 1:
            raise SettingError(
                "",
                f"got {' and '.join(given) or 'none'} of float, int and choice",
                "use one of float: [LOW, HIGH], int: [LOW, HIGH] and choice: [A, B]",
            )
        if ends is None:
            for name, used in (("log", self.log), ("step", self.step is not None)):
                if used:
                    raise SettingError(name, "does not apply to a choice", f"remove {name}")
            for value in self.choice or ():
                _check_scalar("choice", value)
            return self
        low, high = ends
        if not low < high:
            raise SettingError(given[0], f"{low:g} is not below {high:g}", "write [LOW, HIGH]")
        if self.log and low <= 0:
            raise SettingError(given[0], f"{low:g} has no logarithm", "increase the low end, or remove log")
        if self.log and self.step is not None:
            raise SettingError("step", "does not apply to a logarithmic range", "remove step or log")
        if self.step is not None:
            # Optuna counts steps in the same decimal arithmetic.
            if (Fraction(str(high)) - Fraction(str(low))) % Fraction(str(self.step)):
                raise SettingError(
                    "step",
                    f"{high:g} is not a multiple of {self.step:g} above {low:g}",
                    "change the step or an end",
                )
            if self.int_ and self.step != int(self.step):
                raise SettingError("step", f"{self.step:g} is not an integer", "use an integer for an int")
        return self

    def _kinds(self) -> dict[str, tuple[Any, ...] | None]:
        return {"float": self.float_, "int": self.int_, "choice": self.choice}

    def holds(self, value: Any) -> bool:
        """Return True if the parameter can take `value`."""
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
        """Lowest and highest value of the range, or all values of a choice."""
        return self.choice or self.float_ or self.int_ or ()


def _dotted(value: Any) -> Any:
    """Raise SettingError for a block such as `train: {...}` in place of dotted names."""
    for name in value if isinstance(value, Mapping) else ():
        if not isinstance(name, str) or name in ("model", "train"):
            raise SettingError(
                str(name),
                "is not the dotted name of a setting",
                "write settings as train.learning_rate or model.width",
            )
    return value


Space = Annotated[dict[str, Parameter], BeforeValidator(_dotted)]
"""Parameters by the dotted names of their settings."""


Points = Annotated[
    tuple[Literal["study", "published"] | dict[str, Any], ...],
    BeforeValidator(listed),
    Field(max_length=MOST_LISTED),
]
"""Points of a search space, one or a list."""


class ArmSearch(Settings):
    """Additions to the search for some arms: parameters and first points of their own."""

    variant: Variant
    """Variant of the arms."""
    fusion: Fusion | None = None
    """Fusion of the arms. Default: any fusion."""
    head: Head | None = None
    """Head of the arms: `matched`, or null for the plain head."""
    space: Space = Field(default_factory=dict)
    """Parameters that are added to the shared space; one of the same name replaces the shared one."""
    enqueue: Points = ()
    """Points that these arms try first, after the shared ones."""

    def of(self, arm: Arm) -> bool:
        """Return True if these additions apply to `arm`."""
        return self.variant == arm.variant and self.head == arm.head and self.fusion in (None, arm.fusion)

    @property
    def label(self) -> str:
        """Name of the arms, as `Arm.label`; without a fusion where any fusion is meant."""
        return Arm(self.variant, self.fusion, self.head).label


class Placement(SplitFactor):
    """Training and validation samples of a search trial, taken from the training side of a split's folds.

    A trial is scored on the validation samples of the split, which are within region (WR). With `inner`, a
    split of that training side, it is scored on the test samples of `inner_fold` instead. These are within
    region, or both within and out of region (OoR) where `inner` is a split of regions such as a checkerboard.
    """

    inner: Split | None = None
    """Split of the training side that gives the validation samples. Default: the split's own validation
    samples."""
    inner_fold: int = Field(0, ge=0)
    """Fold of `inner` whose held-out samples give the score, counted from 0."""

    @model_validator(mode="before")
    @classmethod
    def _fold_beside_split(cls, value: Any) -> Any:
        """Separate the placement's own keys from the keys of its split."""
        if not isinstance(value, Mapping):
            return value
        own = {name: value[name] for name in ("fold", "inner", "inner_fold") if name in value}
        return {**own, "split": {name: v for name, v in value.items() if name not in own}}

    @model_validator(mode="after")
    def _inner_fold_exists(self) -> "Placement":
        if self.inner is None and self.inner_fold:
            raise SettingError(
                "inner_fold", f"{self.inner_fold} has no split inner", "declare inner, or remove inner_fold"
            )
        if self.inner is not None and self.inner_fold >= self.inner.n_folds:
            raise SettingError(
                "inner_fold",
                f"{self.inner_fold} is not a fold of split {self.inner.label}",
                f"use folds from 0 to {self.inner.n_folds - 1}",
            )
        return self

    @property
    def regimes(self) -> tuple[str, ...]:
        """Regimes that the validation scores cover: `wr`, or `wr` and `oor`."""
        return ("wr", "oor") if self.inner is not None and self.inner.regime == "OoR" else ("wr",)


class Pruner(Settings):
    """Rule that stops a trial early if it is worse than earlier trials of its arm at the same epoch.

    `median` stops a trial that is worse than the median. `asha` is asynchronous successive halving (Li et
    al. 2020): the best 1/`factor` of the trials pass each rung. `hyperband` runs several such brackets.
    """

    kind: Literal["median", "asha", "hyperband"]
    """Pruning rule."""
    first_epoch: Counted = 1
    """First epoch after which a trial may be stopped."""
    factor: int = Field(3, ge=2, le=MOST_LISTED)
    """Reduction factor of `asha` and `hyperband`: one in `factor` trials passes each rung."""
    trials: Counted = 5
    """Number of finished trials of the arm before `median` stops any trial."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


def _or_nothing(value: Any) -> Any:
    """Return an empty tuple for null, with which `--set search.split=null` removes the placements."""
    return () if value is None else value


class Search(Settings):
    """Hyperparameter search: tunes every arm separately, with equal numbers of trials, on validation data.

    A trial is one point of the space, trained on every placement of `split` with every `seed`. Its score is
    the mean of `metric` over these trainings.
    """

    trials: int = Field(ge=1, le=MOST_TRIALS)
    """Number of trials of each arm."""
    epochs: Counted | None = None
    """Epochs that the trials of one arm may train together; no trial is started after that. Default: no
    limit."""
    space: Space = Field(default_factory=dict)
    """Settings to tune in every arm, by dotted name, such as `train.learning_rate`."""
    per_arm: Annotated[tuple[ArmSearch, ...], BeforeValidator(listed), Field(max_length=MOST_LISTED)] = ()
    """Parameters and first points of single arms."""
    split: Annotated[
        tuple[Placement, ...],
        BeforeValidator(listed),
        BeforeValidator(_or_nothing),
        Field(max_length=MOST_LISTED),
    ] = ()
    """Splits whose training side is used to train and validate a trial. Required, unless the search is
    nested."""
    nested: bool = False
    """Search once for each fold of the design's splits, on the training side of that fold. Its cells have the
    settings that this search chose. The number of trials is multiplied by the number of folds."""
    reserve: Reserve | None = None
    """Share of the sites, in blocks of 8 degrees, on which trials are trained and validated, and no result is
    tested; or a block with `share`, `degrees` and `seed`. Default: none, so that results whose test samples a
    trial has used fail their audit."""
    seed: Annotated[tuple[Seed, ...], *SeedLevels] = (1000,)
    """Training seeds of each trial; none may be a seed of the design. Default: 1000."""
    objective: Annotated[tuple[Literal["wr", "oor"], ...], *Levels] = ("wr",)
    """Score to optimise: validation within region (`wr`), out of region (`oor`), or both for a Pareto
    front. Default: `wr`."""
    metric: Literal["rmse", "r2", "mae"] = "rmse"
    """Metric of the score: RMSE or MAE in µg/m³, or R2."""
    pick: Literal["balanced", "wr", "oor"] = "balanced"
    """Choice from the Pareto front of two objectives: the best in `wr` or `oor`, or `balanced`, the nearest
    to the best values of both, each scaled by its range on the front."""
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "random"] = "tpe"
    """Optuna sampler that proposes the points."""
    sampler_seed: Seed = 0
    """Seed of the sampler."""
    pruner: Pruner | None = None
    """Rule that stops bad trials early, by name or with its settings. Default: none."""
    concurrent: Counted | None = None
    """Largest number of trials of one arm that run at the same time. Default: as many as the cluster fits."""
    enqueue: Points = ()
    """Points to try first: settings by name, `study` (the study's own settings) or `published` (the
    defaults). Settings that a point does not name are sampled."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Search":
        self._has_samples()
        if self.trainings > MOST_TRAININGS:
            raise SettingError(
                "split",
                f"{self.trainings:,} trainings of each trial, but at most {MOST_TRAININGS:,} are allowed",
                "name fewer folds with fold, or fewer seeds",
            )
        placements = [
            (placement.split, fold, placement.inner, placement.inner_fold)
            for placement in self.split
            for fold in placement.folds
        ]
        lists: tuple[tuple[str, Sequence[Any]], ...] = (
            ("objective", self.objective),
            ("split", placements),
            ("seed", self.seed),
        )
        for name, levels in lists:
            if len(set(levels)) < len(levels):
                repeated = next(level for level, number in Counter(levels).items() if number > 1)
                shown = "an entry" if name == "split" else repeated
                raise SettingError(name, f"{shown} is listed twice", "remove one of the two")
        offered = {regime for placement in self.split for regime in placement.regimes}
        if self.nested:
            offered = {"wr"}
        if missing := [regime for regime in self.objective if regime not in offered]:
            raise SettingError(
                "objective",
                f"no placement of search.split validates {missing[0]}",
                "use objective: wr"
                if self.nested
                else "add inner: {kind: checkerboard, degrees: 8} to a placement",
            )
        two = len(self.objective) > 1
        if self.pruner is not None and not self.reports:
            raise SettingError(
                "pruner",
                f"an epoch reports the validation rmse within region, not {self.metric} of "
                f"[{', '.join(self.objective)}]",
                "remove the pruner, or use objective: [wr] and metric: rmse",
            )
        if two and self.sampler == "cmaes":
            raise SettingError(
                "sampler", "cmaes optimises a single objective", "use nsga2, tpe, gp or random"
            )
        if not two and self.pick != "balanced":
            raise SettingError("pick", f"{self.pick} needs two objectives", "remove pick")
        if self.sampler == "cmaes" and any(
            parameter.choice is not None
            for space in (self.space, *(own.space for own in self.per_arm))
            for parameter in space.values()
        ):
            raise SettingError("sampler", "cmaes cannot sample a choice", "use tpe, gp or random")
        return self

    def _has_samples(self) -> None:
        """Check that the search has samples from one source: placements, or the folds of the design."""
        if self.nested and self.split:
            raise SettingError(
                "split", "a nested search has the splits of the design", "remove search.split, or nested"
            )
        if self.nested and self.reserve is not None:
            raise SettingError(
                "reserve", "a nested search has no sample of its fold's test set", "remove reserve, or nested"
            )
        if not self.nested and not self.split:
            raise SettingError("split", "missing", "name a split, such as {kind: random, fold: [0]}")

    @property
    def reports(self) -> bool:
        """True if the value that each epoch reports, validation RMSE within region, is the objective."""
        return self.objective == ("wr",) and self.metric == "rmse"

    @property
    def trainings(self) -> int:
        """Number of trainings of one trial: placements x folds x seeds."""
        return len(self.seed) * (1 if self.nested else sum(len(placement.folds) for placement in self.split))

    @property
    def smaller_is_better(self) -> bool:
        """True if a smaller value of the metric is better."""
        return METRICS[self.metric].better == "lower"

    def space_of(self, arm: Arm, model: ModelSettings, train: TrainSettings) -> Space:
        """Return the parameters of an arm, each after the parameters that it depends on.

        `model` and `train` are the study's own settings. Raises SettingError for a parameter that is not a
        setting, for a range with values that the setting refuses, and for points outside the space.
        """
        space = dict(self.space)
        for own in self.per_arm:
            if own.of(arm):
                space |= own.space
        if not arm.fused:
            space = _without_projection(space)
        if not space:
            raise SettingError(
                "search.space", f"arm {arm.label} has no parameter to tune", "add one, or remove search"
            )
        for name, parameter in space.items():
            base = _with_huber(space, train) if name == HUBER_DELTA else train
            space[name] = _allowed(arm, name, parameter, model, base)
        for name, parameter in space.items():
            for other, values in (parameter.when or {}).items():
                field = f"search.space.{name}.when"
                others = [known for known in space if known != name]
                if other not in others:
                    raise SettingError(field, f"{other} is not another parameter", suggest.fix(other, others))
                if bad := [value for value in values if not space[other].holds(value)]:
                    raise SettingError(
                        field, f"{other} is never {bad[0]!r}", f"use a value of search.space.{other}"
                    )
        space = _in_order(space)
        for point in self.first_points(arm, space, model, train):
            for name, value in point.items():
                if not space[name].holds(value):
                    raise SettingError(
                        "search.enqueue",
                        f"{name} {value!r} is outside its space in arm {arm.label}",
                        f"change the point, or widen search.space.{name}",
                    )
        return space

    def first_points(
        self, arm: Arm, space: Space, model: ModelSettings, train: TrainSettings
    ) -> list[dict[str, Any]]:
        """Return the points that an arm tries first, each without the parameters that are not active.

        Raises SettingError for a name that is not in any space, and for a value that no setting can have.
        """
        enqueued = [*self.enqueue, *(point for own in self.per_arm if own.of(arm) for point in own.enqueue)]
        known = {*self.space, *(name for own in self.per_arm for name in own.space)}
        points: list[dict[str, Any]] = []
        for given in enqueued:
            if isinstance(given, str):
                blocks = {"model": model, "train": train}
                if given == "published":
                    fixed = {} if LOSS in space else {"loss": train.loss}
                    blocks = {"model": ModelSettings(), "train": TrainSettings.model_validate(fixed)}
                point = {name: getattr(blocks[name[:5]], name[6:]) for name in space}
            else:
                if unknown := [name for name in given if name not in known]:
                    raise SettingError(
                        "search.enqueue",
                        f"{unknown[0]} is not in search.space",
                        suggest.fix(unknown[0], sorted(known)),
                    )
                point = {name: given[name] for name in space if name in given}
                for name, value in point.items():
                    _check_scalar(f"search.enqueue.{name}", value)
            if (point := active(space, point)) and point not in points:
                points.append(point)
        return points


def active(space: Space, point: Point) -> dict[str, Any]:
    """Return the values of a point whose parameters are active at it."""
    kept: dict[str, Any] = {}
    for name, parameter in _in_order(space).items():
        if name in point and is_active(parameter, kept):
            kept[name] = point[name]
    return kept


def is_active(parameter: Parameter, point: Point) -> bool:
    """Return True if the point has the values that the parameter's condition (`when`) names."""
    return all(
        other in point and any(same(point[other], value) for value in values)
        for other, values in (parameter.when or {}).items()
    )


def within(space: Space, point: Point) -> bool:
    """Return True if a point has an allowed value for every active parameter, and no other value."""
    return (
        all(name in space and space[name].holds(value) for name, value in point.items())
        and active(space, point) == dict(point)
        and all(name in point for name, parameter in space.items() if is_active(parameter, point))
    )


def settings_at(
    arm: Arm, point: Point, model: ModelSettings, train: TrainSettings
) -> tuple[ModelSettings, TrainSettings]:
    """Return the settings of an arm with the values of a point in place of the study's own.

    Raises SettingError for a name that is not a setting, and for a value that the setting refuses.
    """
    blocks: dict[str, dict[str, Any]] = {"model": model.model_dump(), "train": train.model_dump()}
    for name, value in point.items():
        block, _, setting = name.partition(".")
        if block not in blocks or setting not in blocks[block]:
            known = [f"{block}.{setting}" for block, own in blocks.items() for setting in own]
            raise SettingError(f"search.space.{name}", "is not a setting", suggest.fix(name, known))
        blocks[block][setting] = value
    if not arm.fused:
        blocks["model"]["projection"] = None  # without an embedding there is nothing to project
    if HUBER_DELTA not in point and blocks["train"]["loss"] != train.loss:
        blocks["train"]["huber_delta"] = None  # the study's delta is that of the study's loss
    try:
        return ModelSettings.model_validate(blocks["model"]), TrainSettings.model_validate(blocks["train"])
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        cause = fault.get("ctx", {}).get("error")
        setting = cause.field if isinstance(cause, SettingError) else str(fault["loc"][0])
        name = next((n for n in point if n.endswith(f".{setting}")), f"train.{setting}")
        if isinstance(cause, SettingError):
            raise SettingError(f"search.space.{name}", cause.problem, cause.fix) from None
        raise SettingError(
            f"search.space.{name}",
            f"{fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}",
            "change the range or the choice",
        ) from None


def same(a: Any, b: Any) -> bool:
    """Return True if two values of a setting are equal; a boolean is never equal to a number."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _allowed(
    arm: Arm, name: str, parameter: Parameter, model: ModelSettings, train: TrainSettings
) -> Parameter:
    """Return the parameter with its choices in the setting's own type.

    Raises SettingError for an end or a choice that the setting refuses.
    """
    block, _, setting = name.partition(".")
    converted = []
    values = parameter.ends()
    if parameter.int_ is not None:  # a setting may have to be a multiple of something
        values += (values[0] + int(parameter.step or 1),)
    for value in values:
        at = dict(zip(("model", "train"), settings_at(arm, {name: value}, model, train), strict=True))
        converted.append(getattr(at[block], setting))
    if parameter.float_ is not None and isinstance(converted[0], int):
        raise SettingError(f"search.space.{name}", "the setting is an integer", "use int in place of float")
    if parameter.choice is None:
        return parameter
    for i, value in enumerate(converted):
        if any(same(value, other) for other in converted[:i]):
            raise SettingError(
                f"search.space.{name}.choice", f"{value!r} is listed twice", "remove one of the two"
            )
    return parameter.model_copy(update={"choice": tuple(converted)})


def _with_huber(space: Space, train: TrainSettings) -> TrainSettings:
    """Return the settings at which the delta is tuned. Raises SettingError for another loss than `huber`."""
    losses: Sequence[Any] = space[LOSS].ends() if LOSS in space else (train.loss,)
    losses = (space[HUBER_DELTA].when or {}).get(LOSS, losses)
    if {*losses} != {"huber"}:
        fix = f"add when: {{{LOSS}: huber}}" if LOSS in space else "set train.loss: huber, or remove it"
        raise SettingError(f"search.space.{HUBER_DELTA}", "only the loss huber has a delta", fix)
    return settings_at(Arm("none", None), {LOSS: "huber"}, ModelSettings(), train)[1]


def _without_projection(space: Space) -> Space:
    """Return the space of an arm without an embedding: no projection, and nothing that depends on one."""
    removed, left = {"model.projection"}, dict(space)
    while removed:
        space, left = {name: parameter for name, parameter in left.items() if name not in removed}, {}
        for name, parameter in space.items():
            when = dict(parameter.when or {})
            if None in when.get("model.projection", ()):  # the projection of such an arm is None
                del when["model.projection"]
                parameter = parameter.model_copy(update={"when": when or None})
            left[name] = parameter
        removed = {
            name
            for name, parameter in left.items()
            if any(other in removed for other in parameter.when or {})
        }
    return left


def _in_order(space: Space) -> Space:
    """Return the parameters sorted so that each follows those that it depends on.

    Raises SettingError for a circle of conditions.
    """
    ordered: Space = {}
    while len(ordered) < len(space):
        ready = [
            name
            for name, parameter in space.items()
            if name not in ordered and all(other in ordered for other in parameter.when or {})
        ]
        if not ready:
            circle = [name for name in space if name not in ordered]
            raise SettingError(
                "search.space",
                f"the conditions of {', '.join(circle)} depend on each other",
                "remove one of their when",
            )
        ordered |= {name: space[name] for name in ready}
    return ordered
