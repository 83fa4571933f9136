"""Smallest differences that a study could find, and contrasts that its design cannot test.

The smallest difference found with a power of 80 % is (t(1 - a / 2) + t(0.8)) se. The standard error `se`
comes from the stored cells, projected to the planned units. Without stored cells it comes from `SHIPPED`,
which is rough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from pm25.errors import InputError
from pm25.metrics import METRICS, SITE_SAMPLES
from pm25.panel import Panel
from pm25.splits import AnySplit
from sweeps.analysis import artifacts, estimands, inference, judgement, labels, statistics, units
from sweeps.spec.claims import Contrast
from sweeps.spec.design import SplitFactor
from sweeps.spec.study import Study
from sweeps.state import StudyState
from sweeps.store.records import Record

POWER = 0.8
BLOCK_DEGREES = (8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25)
"""Edges of blocks that `plan` proposes in place of larger ones."""

SHIPPED = {
    "random": 0.007,
    "spatial": 0.012,
    "knndm": 0.015,
    "checkerboards": 0.017,
    "blocks": 0.03,
    "clusters": 0.03,
    "group": 0.03,
    "rolling": 0.02,
}
"""Standard deviation of a difference between units, as a share of the RMSE of 'none', by kind of split.

For random, spatial and knndm splits it is the standard error itself. The values of random, spatial and
checkerboards were measured on the table of 2021 with one seed: GeoCLIP with the Hadamard product
against 'none', five folds, 15 origins. That of checkerboards gives the standard error of the test
with the larger p. The others are assumptions of that size.
"""


class Detectable(NamedTuple):
    """Smallest difference that a contrast detects."""

    contrast: Contrast
    claims: tuple[str, ...]
    """Texts of its claims."""
    estimand: str
    units: int
    """Number of planned units; 0 where they are blocks of monitors or days."""
    difference: float
    """Smallest difference: in the metric's unit if `stored`, otherwise as a share of the RMSE of 'none'."""
    stored: bool
    """True if the variance is that of stored cells."""
    more: Mapping[str, float]
    """The same with one more origin, deal, fold or seed, by its name."""


class Untestable(NamedTuple):
    """A contrast that no number of seeds can decide."""

    contrast: Contrast
    claim: str
    """Text of its first claim; empty if no claim is declared."""
    number: int
    """Position of the claim in the study file, from 0; -1 without claims."""
    problem: str
    fix: str


def detectable(
    state: StudyState, records: Mapping[str, Record], lacking: Iterable[Untestable]
) -> list[Detectable]:
    """Compute what each declared contrast detects, without those of `lacking` (`untestable`)."""
    study = state.study
    refused = {one.contrast for one in lacking}
    rows = state.rows(records)
    sums = artifacts.predictions(state.store, rows)
    factors = {factor.split.label: factor for factor in study.design.split}
    family = study.contrasts()
    found = []
    for contrast in (one for one in family if one not in refused):
        factor = factors[contrast.split]
        looks = study.design.looks.of(contrast.split).looks
        level = study.analysis.alpha / len(family) / looks
        scores, evidence = inference.evidence(contrast, rows, study.analysis, looks, sums)
        folds = sorted({*rows.loc[rows["split"] == contrast.split, "fold"]})  # those of the scores
        spread = _spread(contrast, factor.split, folds, scores, evidence, len(study.design.first_seeds))
        planned = _planned(contrast, factor)
        more = {
            name: _smallest(spread, contrast, factor.split, count, level)
            for name, count in _one_more(factor, planned)
        }
        if spread.seeds is not None:
            more["seed"] = _smallest(spread.with_more_seeds(), contrast, factor.split, planned, level)
        found.append(
            Detectable(
                contrast,
                tuple(claim.claim for claim in study.claims if claim.contrast == contrast),
                estimands.of(factor.split.kind, contrast.part).name,
                planned,
                _smallest(spread, contrast, factor.split, planned, level),
                spread.stored,
                more,
            )
        )
    return found


def untestable(study: Study, panel: Panel) -> Iterator[Untestable]:
    """Yield the declared contrasts that the design cannot decide, with the design that could."""
    factors = {factor.split.label: factor for factor in study.design.split}
    for contrast in study.contrasts():
        factor = factors[contrast.split]
        found = _lack(contrast, factor, study, panel)
        if found is None:
            continue
        number = next((i for i, c in enumerate(study.claims) if c.contrast == contrast), -1)
        claim = study.claims[number].claim if number >= 0 else ""
        yield Untestable(contrast, claim, number, *found)


def refuse_claims(lacking: Iterable[Untestable], where: str) -> None:
    """Raise InputError for the first claim that the design cannot decide; `where` is the study file."""
    for one in lacking:
        if one.number >= 0:
            raise InputError(where, f"claims.{one.number}", f"{one.claim!r}: {one.problem}", one.fix)


def _lack(contrast: Contrast, factor: SplitFactor, study: Study, panel: Panel) -> tuple[str, str] | None:
    """Return what a contrast lacks to be tested, and the design that has it; None if it can be tested."""
    split = factor.split
    about = estimands.of(split.kind, contrast.part)
    if contrast.fold is not None:
        return "a single fold is not independent evidence", "leave fold out, so that all folds are compared"
    folds = np.array([split.unit(fold) for fold in factor.folds])
    if not judgement.may_be_tested(split.kind, contrast.part, folds):
        have = judgement.complete_units(folds)
        # The days of a random split are counted below.
        one, several, needed = about.unit, about.units, about.needed
        if split.kind in ("random", *units.BY_SITE):
            one, several, needed = "fold", "folds", units.MIN_FOLDS
        unit = one if have == 1 else several
        return (
            f"split {split.label} has {have} {unit}, and {needed} are needed",
            f"use the split {about.design}",
        )
    if split.kind in units.BY_SITE and contrast.part == "test":
        return _lacks_blocks(contrast, factor, study, panel)
    if split.kind == "random":
        days = int((_tested(factor, study, panel) > 0).any(axis=0).sum())
        if days < estimands.MIN_DAYS:
            return (
                f"the table has {days} days that are tested, and {estimands.MIN_DAYS} are needed",
                "take a table of more days",
            )
    return None


def _lacks_blocks(
    contrast: Contrast, factor: SplitFactor, study: Study, panel: Panel
) -> tuple[str, str] | None:
    """Return what a contrast on a spatial split lacks, by the blocks of the monitors that are tested."""
    samples = _tested(factor, study, panel).sum(axis=1).astype(np.float64)
    if contrast.metric == "site_rmse":  # every monitor counts once
        samples = (samples >= SITE_SAMPLES).astype(np.float64)
    wanted = study.analysis.block_degrees

    def effective(degrees: float) -> int:
        return estimands.blocks_of_monitors(panel.lat, panel.lon, samples, degrees)

    have = effective(wanted)
    if have >= units.MIN_BLOCKS:
        return None
    enough = (
        degrees for degrees in BLOCK_DEGREES if degrees < wanted and effective(degrees) >= units.MIN_BLOCKS
    )
    if (degrees := next(enough, None)) is None:
        return (
            f"its tested monitors are {have} effective blocks, and {units.MIN_BLOCKS} are needed",
            "take a table of a larger region",
        )
    return (
        f"its tested monitors are {have} effective blocks of {wanted:g} degrees, and {units.MIN_BLOCKS} are "
        "needed",
        f"--set analysis.block_degrees={degrees:g}, if errors are not correlated over more",
    )


def _tested(factor: SplitFactor, study: Study, panel: Panel) -> np.ndarray:
    """Count the test samples of each site-day over the folds of a split: (sites, days)."""
    flat = np.concatenate([study.cut(factor.split, fold, panel).test for fold in factor.folds])
    return np.bincount(flat, minlength=panel.target.size).reshape(panel.target.shape)


class _Spread(NamedTuple):
    """Standard deviation of the difference between units, or its standard error where `direct`."""

    value: float
    df: float
    """Degrees of freedom of a standard error; NaN where they follow from the units."""
    direct: bool
    stored: bool
    seeds: int | None
    """Present number of seeds, None if their part of the variance is not known."""
    of_seeds: float
    """Variance between seeds of one unit."""

    def with_more_seeds(self) -> _Spread:
        """Return the spread with one more seed."""
        assert self.seeds is not None
        less = self.of_seeds / self.seeds - self.of_seeds / (self.seeds + 1)
        return self._replace(value=math.sqrt(max(self.value**2 - less, 0.0)))


def _spread(
    contrast: Contrast,
    split: AnySplit,
    folds: Sequence[int],
    scores: judgement.PairedScores,
    evidence: estimands.Evidence,
    seeds: int,
) -> _Spread:
    """Return the spread of a contrast from its stored cells, else the shipped one."""
    direct = split.kind in ("random", *units.BY_SITE) and contrast.part == "test"
    result = evidence.result
    if not evidence.tests or not math.isfinite(result.se) or result.se == 0:
        shipped = SHIPPED.get(split.kind, max(SHIPPED.values()))
        return _Spread(shipped, 14.0 if direct else math.nan, direct, False, None, 0.0)
    if direct:
        return _Spread(result.se, result.df, True, True, None, 0.0)
    # The first test of a split is the one over its units.
    value = evidence.tests[0].se / _factor(split, contrast.part, evidence.units)
    of = np.array([split.unit(fold) for fold in folds])
    by_unit, _ = judgement.by_unit(split.kind, contrast.part, of, int(split.folds), scores.differences)
    found = statistics.seed_variance(by_unit)
    return _Spread(value, math.nan, False, True, None if found is None else seeds, found or 0.0)


def _planned(contrast: Contrast, factor: SplitFactor) -> int:
    """Count the planned units of a contrast; 0 where they are blocks of monitors or days."""
    split = factor.split
    if split.kind in ("random", *units.BY_SITE) and contrast.part == "test":
        return 0
    return judgement.complete_units(np.array([split.unit(fold) for fold in factor.folds]))


def _one_more(factor: SplitFactor, planned: int) -> Iterator[tuple[str, int]]:
    """Yield the ways to get more units, with their number."""
    split = factor.split
    if split.kind == "checkerboards":
        yield "origin", planned + 1
    elif split.kind == "blocks":
        yield "deal", planned + int(split.folds)
    elif planned:
        yield "fold", planned + 1


def _factor(split: AnySplit, part: str, count: int) -> float:
    """Return the standard error of the mean over `count` units, as a multiple of their spread."""
    shared = judgement.shared_variance(split.kind, part, int(split.folds))
    return math.sqrt(1 / max(count, 1) + shared)


def _smallest(spread: _Spread, contrast: Contrast, split: AnySplit, count: int, level: float) -> float:
    """Return the smallest difference that is found with `POWER` at a two-sided `level`."""
    se = spread.value if spread.direct else spread.value * _factor(split, contrast.part, count)
    df = spread.df if spread.direct else count - 1
    return float((special.stdtrit(df, 1 - level / 2) + special.stdtrit(df, POWER)) * se)


def lines(found: list[Detectable], refused: list[Untestable]) -> Iterator[str]:
    """Format what the contrasts detect as lines of `sweep plan`."""
    for one in found:
        about = one.claims[0] if one.claims else f"{_named(one.contrast)}, {one.estimand}"
        amount = _amount(one, one.difference)
        more = ", ".join(f"one more {name}: {_amount(one, value)}" for name, value in one.more.items())
        source = "stored cells" if one.stored else "shipped variances"
        yield f"  detects {about}: {amount} with {POWER:.0%} power ({source}){f'; {more}' * bool(more)}"
    for lack in refused:
        if lack.number < 0:
            yield f"  untested {_named(lack.contrast)} on {lack.contrast.split}: {lack.problem}; {lack.fix}"


def content(one: Detectable) -> dict[str, Any]:
    """Return what a contrast detects as JSON values."""
    return {
        **one.contrast._asdict(),
        "arm": one.contrast.arm.label,
        "other": one.contrast.other.label,
        "claims": list(one.claims),
        "estimand": one.estimand,
        "units": one.units,
        "difference": one.difference,
        "of_rmse": not one.stored,
        "one_more": dict(one.more),
    }


def _named(contrast: Contrast) -> str:
    return f"{labels.of_arm(contrast.arm)} − {labels.of_arm(contrast.other)}"


def _amount(one: Detectable, value: float) -> str:
    metric = METRICS[one.contrast.metric]
    if not one.stored:  # the shipped variances are those of errors
        return f"{value:.1%} of the {metric.name}" if metric.unit else f"a change of the RMSE by {value:.1%}"
    return labels.number(value, one.contrast.metric)
