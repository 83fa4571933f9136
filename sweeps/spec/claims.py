"""Claims of a study: how arms are compared, which differences are declared, and published values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from pm25 import suggest
from pm25.errors import SettingError
from pm25.settings import UNTRAINED, Fusion, Settings, Share, Variant
from sweeps.spec.design import Arm, Design, Head, Levels, listed
from sweeps.spec.limits import MOST_LISTED, MOST_TEXT

MetricName = Literal["rmse", "r2", "mae"]
ClaimMetric = Literal["rmse", "r2", "mae", "site_rmse"]
Part = Literal["test", "wr"]
"""Evaluation set of a cell: the fold held out, or the held-out sites within its training region."""


NONE = Arm("none", None)
"""The arm without location, which the others are compared with."""

Text = Annotated[str, Field(min_length=1, max_length=MOST_TEXT)]


class Analysis(Settings):
    """Statistical settings of the comparison of two arms."""

    metric: MetricName = "rmse"
    """Primary metric, tested where the study declares no claims."""
    alpha: Share = 0.05
    """Family-wise error rate of all declared tests together; confidence intervals have level 1 - alpha."""
    rope: NonNegativeFloat = 0.01
    """Half-width of the region of practical equivalence: a fraction of the other arm's RMSE or MAE, or an
    absolute difference of R2."""
    block_degrees: PositiveFloat = 8.0
    """Edge in degrees of the blocks of monitors that the test of a spatial split leaves out one by one.
    Errors should be correlated over less than this."""
    coverage: Annotated[float, Field(ge=0.5, le=0.99)] = 0.9
    """Share of the days that prediction intervals are to hold, from 0.5 to 0.99. Intervals are calibrated on
    regions of `block_degrees`; 0.9 needs 10 regions, and 0.95 needs 20."""
    outlines: Path | None = None
    """GeoJSON file of outlines to draw on maps. Default: none."""
    monitor_columns: Annotated[tuple[Text, ...], BeforeValidator(listed), Field(max_length=MOST_LISTED)] = ()
    """Column of the table, or a list of columns, that divides the monitors into groups in the report, such as
    `setting`. Default: none; the report also has groups by region, distance and density."""

    @model_validator(mode="before")
    @classmethod
    def _without_former_keys(cls, value: Any) -> Any:
        """Refuse the keys that version 0.1.0 had."""
        for name in ("test", "bootstrap"):
            if isinstance(value, Mapping) and name in value:
                problem = "not a key any more, because the kind of a split fixes its test and interval"
                raise SettingError(name, problem, f"remove analysis.{name}")
        return value


class Contrast(NamedTuple):
    """One test: `arm` minus `other` on one evaluation set, paired by fold and seed."""

    arm: Arm
    other: Arm
    split: str
    """Label of the split."""
    part: str
    """Evaluation set: 'test' or 'wr'; tables of results have 'gap' too, test minus wr."""
    fold: int | None
    """One fold of the split; None for all of them."""
    metric: str
    """A key of `pm25.metrics.METRICS`."""


class ArmChoice(Settings):
    """Reference to an arm of the design."""

    variant: Variant
    """Variant of the arm."""
    fusion: Fusion | None = None
    """Fusion of the arm; none for a variant without an encoder."""
    head: Head | None = None
    """Head of the arm: `matched`, or null for the plain head."""

    @property
    def arm(self) -> Arm:
        """The arm itself."""
        return Arm(self.variant, self.fusion, self.head)


class EvaluationPlace(Settings):
    """Reference to the evaluation sets of a split: all folds, or one fold."""

    split: Text
    """Label of the split, such as `checkerboard-16`, or its kind if only one split of the design has it."""
    part: Part = "test"
    """Evaluation set: `test`, or `wr` for the held-out sites within the training region."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Fold of the split, counted from 0. Default: all folds."""


class Claim(Settings):
    """Statement, declared before the run, that one arm is better than another on one evaluation set."""

    claim: Text
    """Text of the claim, as reports show it."""
    better: ArmChoice
    """Arm that is claimed to be better."""
    than: ArmChoice
    """Arm that it is compared with."""
    on: EvaluationPlace
    """Evaluation sets of the comparison."""
    metric: ClaimMetric
    """Metric of the comparison. `site_rmse` is the mean over monitors of each monitor's RMSE."""
    truth: bool | None = None
    """True or false if the truth is known, as with a synthetic panel; reports show it beside the verdict.
    Default: not known."""

    @property
    def contrast(self) -> Contrast:
        """Test that decides the claim."""
        return Contrast(
            self.better.arm, self.than.arm, self.on.split, self.on.part, self.on.fold, self.metric
        )


class PublishedValue(ArmChoice, EvaluationPlace):
    """Value that a paper reports for an arm on an evaluation set; the design need not contain either."""

    metric: MetricName
    """Metric of the value."""
    value: float
    """Published value, in the unit of the metric."""
    sd: NonNegativeFloat | None = None
    """Published standard deviation. Default: not reported."""


class Published(Settings):
    """Values of a paper, shown next to the study's own and never mixed with them."""

    source: Text
    """Citation of the paper."""
    values: Annotated[tuple[PublishedValue, ...], *Levels]
    """Published values."""


def declared(
    claims: Sequence[Claim], analysis: Analysis, arms_on: Mapping[str, Sequence[Arm]]
) -> tuple[Contrast, ...]:
    """Return the family of contrasts that are tested together; `arms_on` gives the arms of each split label.

    The family has one contrast for each distinct claim. Without claims, every arm is compared with the arm
    `none` on the test set of every split, but not the draws of untrained encoders. A contrast of an arm
    without cells on the split is left out.
    """
    if claims:
        contrasts = dict.fromkeys(claim.contrast for claim in claims)
    else:
        contrasts = dict.fromkeys(
            Contrast(arm, NONE, split, "test", None, analysis.metric)
            for split, arms in arms_on.items()
            for arm in arms
            if arm != NONE and not UNTRAINED.fullmatch(arm.variant)
        )
    return tuple(one for one in contrasts if {one.arm, one.other} <= {*arms_on.get(one.split, ())})


class NotOfDesign(SettingError):
    """A claim about an arm or a split that the design does not contain."""


def of_design(
    claims: Sequence[Claim], arms: Sequence[Arm], design: Design, *, narrowed: bool = False
) -> tuple[Claim, ...]:
    """Return the claims with the labels of their splits in place of kinds.

    With `narrowed`, claims about arms or splits that the design does not contain are left out. Otherwise they
    raise NotOfDesign. Other faults raise SettingError.
    """
    found = []
    texts: dict[str, int] = {}
    for i, claim in enumerate(claims):
        name = f"claims.{i}"
        if claim.claim in texts:
            raise SettingError(
                f"{name}.claim", f"same text as claims.{texts[claim.claim]}", "remove one of the two"
            )
        texts[claim.claim] = i
        if claim.better.arm == claim.than.arm:
            raise SettingError(
                f"{name}.than", f"{claim.than.arm.label} is compared with itself", "name another arm"
            )
        try:
            for field, arm in (("better", claim.better.arm), ("than", claim.than.arm)):
                if arm not in arms:
                    raise NotOfDesign(
                        f"{name}.{field}",
                        f"arm {arm.label} is not in the design",
                        suggest.fix(arm.label, [own.label for own in arms]),
                    )
            label = _label(f"{name}.on", claim.on, design)
        except NotOfDesign:
            if not narrowed:
                raise
            continue
        kinds = {factor.split.label: factor.split.kind for factor in design.split}
        if claim.metric == "site_rmse" and kinds[label] == "random":
            raise SettingError(
                f"{name}.metric",
                f"site_rmse has no value for a day, the unit of the test on {label}",
                "use rmse or mae, or a split that holds out monitors",
            )
        found.append(claim.model_copy(update={"on": claim.on.model_copy(update={"split": label})}))
    return tuple(found)


def _label(name: str, place: EvaluationPlace, design: Design) -> str:
    """Return the label of the split that `place` refers to; `name` is its dotted key."""
    splits = {factor.split.label: factor.split for factor in design.split}
    label = place.split
    if label not in splits:
        of_kind = [known for known, split in splits.items() if split.kind == label]
        if len(of_kind) > 1:
            raise SettingError(
                f"{name}.split",
                f"{label} is the kind of {len(of_kind)} splits",
                suggest.use_one_of(of_kind),
            )
        if not of_kind:
            raise NotOfDesign(
                f"{name}.split", f"split {label} is not in the design", suggest.fix(label, [*splits])
            )
        label = of_kind[0]
    split = splits[label]
    if place.part == "wr" and split.regime != "OoR":
        raise SettingError(
            f"{name}.part", f"wr needs a split of regions, and {label} is within region", "use test"
        )
    if place.fold is not None and place.fold >= split.n_folds:
        raise SettingError(
            f"{name}.fold",
            f"{place.fold} is not a fold of split {label}",
            f"use folds from 0 to {split.n_folds - 1}",
        )
    return label
