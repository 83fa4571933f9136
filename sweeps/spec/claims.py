"""What a study is to settle: how differences are judged, which are claimed, and what a paper published."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pm25.settings import Fusion, Settings, Share, Variant
from sweeps.spec.design import Arm, Design, Head

Metric = Literal["rmse", "r2", "mae"]
Part = Literal["test", "wr"]
"""Of a cell's two test sets: the fold held out, or the held-out sites inside its training region."""

NONE = Arm("none", None)
"""The arm without location, which the others are compared with."""

Text = Annotated[str, Field(min_length=1)]


class Analysis(Settings):
    """How a difference between two arms is judged."""

    metric: Metric = "rmse"
    """The primary one: what is tested where the study claims nothing."""
    alpha: Share = 0.05
    """Level of all tests of declared contrasts together; intervals are of level 1 - alpha."""
    rope: NonNegativeFloat = 0.01
    """Practically equal is what differs by less: a share of the other arm's RMSE or MAE; R2 as it is."""
    test: Literal["corrected_t", "wilcoxon"] = "corrected_t"
    """The t-test with the variance of overlapping training sets (Nadeau and Bengio 2003), or signed ranks,
    which take folds for independent and so find too much where they are not (`statistics.wilcoxon`)."""
    bootstrap: PositiveInt = 1000
    """Resamples of sites, or out of region of blocks."""
    block_degrees: PositiveFloat = 4.0
    """Edge of a block."""
    outlines: Path | None = None
    """A GeoJSON file of outlines to draw on the maps."""


class Contrast(NamedTuple):
    """The difference `arm` minus `other` in one place, paired by fold and seed: the subject of one test."""

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
    """Names an arm of the design."""

    variant: Variant
    fusion: Fusion | None = None
    head: Head | None = None

    @property
    def arm(self) -> Arm:
        return Arm(self.variant, self.fusion, self.head)


class EvaluationPlace(Settings):
    """Names the test sets of a split, or one of them."""

    split: Text
    """Its label, such as checkerboard-16. A claim may name the kind, where one split of the design has it;
    in a `Study` the label stands there."""
    part: Part = "test"
    fold: Annotated[int, Field(ge=0)] | None = None
    """One of the split's; all of them without it."""


class Claim(Settings):
    """One arm is better than another in some place by some metric, as it is declared before the run."""

    claim: Text
    better: ArmChoice
    than: ArmChoice
    on: EvaluationPlace
    metric: Metric

    @property
    def contrast(self) -> Contrast:
        return Contrast(
            self.better.arm, self.than.arm, self.on.split, self.on.part, self.on.fold, self.metric
        )


class PublishedValue(ArmChoice, EvaluationPlace):
    """A number that a paper reports of an arm in some place, which the design need not have."""

    metric: Metric
    value: float
    sd: NonNegativeFloat | None = None


class Published(Settings):
    """Numbers of a paper, to be shown beside ours and never mixed with them."""

    source: Text
    values: Annotated[tuple[PublishedValue, ...], Field(min_length=1)]


def declared(
    claims: Sequence[Claim], analysis: Analysis, arms_on: Mapping[str, Sequence[Arm]]
) -> tuple[Contrast, ...]:
    """List the family of contrasts that are tested together; `arms_on` are the arms on each split, by label.

    The family is that of the claims. Without claims, it is every arm against `none` on every split's test
    set. A contrast of an arm that has no cell on the split is left out.
    """
    if claims:
        contrasts = dict.fromkeys(claim.contrast for claim in claims)
    else:
        contrasts = dict.fromkeys(
            Contrast(arm, NONE, split, "test", None, analysis.metric)
            for split, arms in arms_on.items()
            for arm in arms
            if arm != NONE
        )
    return tuple(one for one in contrasts if {one.arm, one.other} <= {*arms_on.get(one.split, ())})


class NotOfDesign(ValueError):
    """A claim about an arm or a split that the design has not."""


def of_design(
    claims: Sequence[Claim], arms: Sequence[Arm], design: Design, *, narrowed: bool = False
) -> tuple[Claim, ...]:
    """The claims with their splits' labels. Raises ValueError for one that the design does not fit.

    Where the design was `narrowed`, claims about what went with that are left out.
    """
    found = []
    texts: dict[str, int] = {}
    for i, claim in enumerate(claims):
        name = f"claims.{i}"
        if claim.claim in texts:
            raise ValueError(f"{name}.claim: claims.{texts[claim.claim]} has the same text; leave one out")
        texts[claim.claim] = i
        if claim.better.arm == claim.than.arm:
            raise ValueError(
                f"{name}.than: {claim.than.arm.label} is no better than itself; name another arm"
            )
        try:
            for field, arm in (("better", claim.better.arm), ("than", claim.than.arm)):
                if arm not in arms:
                    near = _nearest(arm.label, [own.label for own in arms])
                    raise NotOfDesign(f"{name}.{field}: the design has no arm {arm.label}; {near}")
            label = _label(f"{name}.on", claim.on, design)
        except NotOfDesign:
            if not narrowed:
                raise
            continue
        found.append(claim.model_copy(update={"on": claim.on.model_copy(update={"split": label})}))
    return tuple(found)


def _label(name: str, place: EvaluationPlace, design: Design) -> str:
    """Of the place's split."""
    splits = {factor.split.label: factor.split for factor in design.split}
    label = place.split
    if label not in splits:
        of_kind = [known for known, split in splits.items() if split.kind == label]
        if len(of_kind) > 1:
            raise ValueError(
                f"{name}.split: {label} is the kind of several; give one of {', '.join(of_kind)}"
            )
        if not of_kind:
            near = _nearest(label, [*splits])
            raise NotOfDesign(f"{name}.split: the design has no split {label}; {near}")
        label = of_kind[0]
    split = splits[label]
    if place.part == "wr" and split.regime != "OoR":
        raise ValueError(f"{name}.part: wr is of a split of regions; the test of {label} is within region")
    if place.fold is not None and place.fold >= split.folds:
        raise ValueError(
            f"{name}.fold: fold {place.fold} does not exist: {label} has folds 0 to {split.folds - 1}"
        )
    return label


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
