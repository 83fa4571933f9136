"""Means, paired contrasts with their tests, ranks and verdicts on claims, from a study's table of results.

A p-value of `contrasts` comes about in six steps:

1. `grids` arranges the rows of a split (`results.rows`, one per cell) as scores (arms, folds, seeds).
2. `judgement.paired_scores` subtracts the scores of two arms, fold by fold and seed by seed.
3. `units.unit_means` averages the differences over seeds. One number is left per fold, the unit of the test.
4. `statistics.corrected_t` tests that the mean over units is zero, with a variance that is corrected for
   shared training samples (Nadeau and Bengio 2003). `statistics.wilcoxon` is the alternative.
5. With adaptive seeds, `_seeds_judged` takes the seeds of the look at which the contrast stopped. The p-value
   is then multiplied by the number of looks. This is the column `p`.
6. `_adjust` adjusts p by Holm's method (`statistics.holm`) over the declared contrasts (`claims.declared`)
   that have enough planned units. This is `p_adjusted`.

The verdict comes from one-sided tests against a region of practical equivalence (`statistics.shifted` and
`statistics.decided`), adjusted in the same way. Contrasts that nobody declared are exploratory: they have
intervals and p, but no `p_adjusted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pm25.metrics import METRICS
from sweeps.analysis import comparability, judgement, labels, resampling, statistics, units
from sweeps.analysis.judgement import GAP, PairedScores, has_direction
from sweeps.analysis.labels import regime_of
from sweeps.analysis.resampling import Resampled, Sums
from sweeps.spec.claims import NONE, Analysis, Claim, Contrast
from sweeps.spec.claims import declared as declared_contrasts
from sweeps.spec.design import Arm
from sweeps.store.records import Record

_MEANS: dict[str, str] = {
    **dict.fromkeys(("arm", "variant", "fusion", "split", "part", "regime", "metric"), "str"),
    **dict.fromkeys(("mean", "sd", "low", "high", "iqm"), "float64"),
    **dict.fromkeys(("n", "n_units", "n_seeds", "n_expected", "n_failed", "n_missing", "n_marked"), "int64"),
    **dict.fromkeys(("rank", "boot_low", "boot_high"), "float64"),
}
_CONTRASTS: dict[str, str] = {
    **dict.fromkeys(("arm", "other", "split", "part", "regime", "metric"), "str"),
    "fold": "Int64",
    **dict.fromkeys(("n_pairs", "n_units", "n_seeds", "n_better"), "int64"),
    **dict.fromkeys(("mean_arm", "mean_other", "diff", "low", "high"), "float64"),
    "test": "str",
    "p": "float64",
    "declared": "bool",
    **dict.fromkeys(("p_adjusted", "rope", "p_better", "p_equal", "p_worse"), "float64"),
    "verdict": "str",
    "more_seeds": "Int64",
    "looks": "int64",
    **dict.fromkeys(("boot_low", "boot_high"), "float64"),
    "n_clusters": "Int64",
    **dict.fromkeys(("unfair", "tuned", "keys_arm", "keys_other"), "str"),
}
_RANKING: dict[str, str] = {
    **dict.fromkeys(("split", "part", "regime", "metric", "arm"), "str"),
    **dict.fromkeys(("mean_rank", "critical_difference", "friedman_p"), "float64"),
    "n_units": "int64",
}
TESTS = {"corrected_t": "corrected t", "wilcoxon": "Wilcoxon"}


class Grid(NamedTuple):
    """The cells of one split as arrays (arms, folds, seeds)."""

    split: str
    regime: str
    overlap: float
    """Ratio n_test / n_train of the split (`units.overlap`)."""
    arms: list[Arm]
    folds: list[int]
    seeds: list[int]
    row: np.ndarray
    """Position of each cell's row in `rows`; -1 where the study has no such cell."""
    rows: pd.DataFrame

    def column(self, name: str, fill: Any) -> np.ndarray:
        """Arrange one column of the rows, with `fill` where a cell does not exist."""
        values = self.rows[name].to_numpy()
        return np.where(self.row >= 0, values[self.row], fill)

    def scores(self, part: str, metric: str) -> np.ndarray:
        """Arrange the scores of one evaluation set, with NaN where a cell has no number."""
        if part == GAP:
            return self.scores("test", metric) - self.scores("wr", metric)
        return self.column(f"{part}_{metric}", math.nan).astype(np.float64)

    @property
    def parts(self) -> list[str]:
        """Evaluation sets of the split; one of regions has a within-region set, and so a gap, too."""
        return ["test", "wr", GAP] if self.regime == labels.OOR else ["test"]


def grids(rows: pd.DataFrame) -> dict[str, Grid]:
    """Arrange the rows of a study by split, in the order of the rows."""
    cells = labels.with_arm(rows)
    found = {}
    for split, group in cells.groupby("split", sort=False):
        group = group.reset_index(drop=True)
        names, folds, seeds = _ordered(group["arm"]), sorted(set(group["fold"])), sorted(set(group["seed"]))
        first = group.drop_duplicates("arm")
        arms = [labels.arm_of(v, f) for v, f in zip(first["variant"], first["fusion"], strict=True)]
        row = np.full((len(arms), len(folds), len(seeds)), -1)
        row[
            group["arm"].map({name: i for i, name in enumerate(names)}),
            np.searchsorted(folds, group["fold"]),
            np.searchsorted(seeds, group["seed"]),
        ] = np.arange(len(group))
        overlap = units.overlap(int(group["folds"].iloc[0]))
        regime = str(group["regime"].iloc[0])
        found[str(split)] = Grid(str(split), regime, overlap, arms, folds, seeds, row, group)
    return found


def means(
    rows: pd.DataFrame, analysis: Analysis, metric: str = "rmse", sums: Sums | Resampled | None = None
) -> pd.DataFrame:
    """Average every arm on every split and evaluation set: one line each, in the order of the rows.

    Numbers are in the metric's unit. Columns, beside those that name the line:

    - mean, sd (ddof 1), iqm (interquartile mean): over the `n` cells that have a number.
    - n_units, n_seeds: folds and seeds that have a number. n_expected, n_failed, n_missing, n_marked: cells
      of the study, those that failed, those not run, and those whose audit failed.
    - low, high: interval of level 1 - alpha that leaves out what folds do to all arms alike
      (`statistics.paired_intervals`). Only arms that have all their cells have one.
    - rank: mean rank over units among these arms, 1 the best.
    - boot_low, boot_high: percentile interval of the mean over resampled clusters (`resampling.Resampled`).
    """
    resampled = sums if isinstance(sums, Resampled) else Resampled(rows, analysis, metric, sums)
    lines: list[dict[str, Any]] = []
    for grid in grids(rows).values():
        state, audit_failed = grid.column("state", ""), grid.column("marked", "") != ""
        for part in grid.parts:
            scores = grid.scores(part, metric)
            seen, planned = np.isfinite(scores), grid.row >= 0
            by_unit = _unit_means(scores)
            complete = _complete(seen, planned)
            bounds = np.full((len(grid.arms), 2), math.nan)
            bounds[complete] = statistics.paired_intervals(
                by_unit[complete], grid.overlap, 1 - analysis.alpha
            )
            rank = np.full(len(grid.arms), math.nan)
            if complete.any() and part != GAP:
                rank[complete] = statistics.ranks(_losses(by_unit[complete].T, metric)).mean
            for i, arm in enumerate(grid.arms):
                own = scores[i][seen[i]]
                first = grid.rows.iloc[grid.row[i][planned[i]][0]]
                keys = grid.column("key", "")[i][seen[i]]
                lines.append(
                    {
                        "arm": labels.of_arm(arm),
                        "variant": first["variant"],
                        "fusion": first["fusion"],
                        "split": grid.split,
                        "part": part,
                        "regime": regime_of(grid.regime, part),
                        "metric": metric,
                        "mean": own.mean() if len(own) else math.nan,
                        "sd": own.std(ddof=1) if len(own) > 1 else math.nan,
                        "low": bounds[i, 0],
                        "high": bounds[i, 1],
                        "iqm": statistics.interquartile_mean(own),
                        "n": len(own),
                        "n_units": int(seen[i].any(axis=1).sum()),
                        "n_seeds": int(seen[i].any(axis=0).sum()),
                        "n_expected": int(planned[i].sum()),
                        "n_failed": int((state[i] == "failed").sum()),
                        "n_missing": int((planned[i] & ~np.isin(state[i], ["done", "failed"])).sum()),
                        "n_marked": int(audit_failed[i].sum()),
                        "rank": rank[i],
                        **resampling.percentiles(resampled.mean(keys, part), analysis.alpha),
                    }
                )
    return pd.DataFrame(lines, columns=list(_MEANS)).astype(_MEANS)


def contrasts(
    rows: pd.DataFrame,
    analysis: Analysis,
    claims: Sequence[Claim] = (),
    metric: str = "rmse",
    sums: Sums | Resampled | None = None,
    looks: Sequence[int] = (),
    records: Mapping[str, Record] | None = None,
    also: Sequence[Contrast] = (),
) -> pd.DataFrame:
    """Test every arm against 'none' on every evaluation set, then the claims' pairs, then those of `also`.

    The frame has one line per contrast of `metric`. The declared family (`claims.declared`) is adjusted
    together, whatever the metric of its members; a contrast of `also` is not declared. Columns:

    - diff, mean_arm, mean_other: arm minus other over (fold, seed) pairs, seeds averaged within folds, and
      the two means. low, high: interval of `diff` of level 1 - alpha by the study's test.
    - p: two-sided p-value of no difference. p_adjusted: adjusted by Holm's method over the declared family;
      NaN for other contrasts. The family is the planned one: a contrast that lost its cells still counts.
    - rope: half-width of the region of practical equivalence (`judgement.paired_scores`). p_better, p_equal,
      p_worse: posterior probabilities of the three regions (`statistics.posterior`).
    - verdict: 'better', 'worse', 'equal', 'undecided', or 'too few' units. Gaps and biases have '' and no
      rope, because lower is not better for them.
    - more_seeds: fewest further seeds that would decide the contrast at its present mean; <NA> where it is
      decided, where no number of seeds would, and with a single seed.
    - looks: number of looks at the data. `looks`, the argument, gives the seeds at each with adaptive seeds.
      The contrast is judged where its seeds stopped, or at the last complete look.
    - boot_low, boot_high, n_clusters: percentile interval of `diff` over resampled clusters, and how many
      there are; no interval of a single cluster.
    - n_pairs, n_units, n_seeds; n_better: pairs in which the arm is better, for a bias the nearer to zero.
    - tuned, and the column of confounded pairs: what differs in the pairs, among tuned settings and beyond
      the declared factor (`comparability.summary`). Pairs without 'none' are compared by `records`, or
      without these through their differences from 'none'.
    - keys_arm, keys_other: keys of the cells of the pairs.
    """
    splits = grids(rows)
    family = dict.fromkeys(
        declared_contrasts(claims, analysis, {label: grid.arms for label, grid in splits.items()})
    )
    every = dict.fromkeys([*_against_none(splits.values(), metric), *family, *also])
    outcomes = [
        _judge(contrast, splits[contrast.split], analysis, looks, len(family) if contrast in family else 0)
        for contrast in every
    ]
    _adjust([one for one in outcomes if one.contrast in family and one.planned], analysis, family=True)
    for one in outcomes:
        if one.contrast not in family:
            _adjust([one], analysis, family=False)
        if not has_direction(one.contrast.part, one.contrast.metric):
            one.columns |= {"verdict": "", "more_seeds": None}
    resampled = sums if isinstance(sums, Resampled) else Resampled(rows, analysis, metric, sums)
    texts = _texts(rows, records)
    lines = []
    for one in outcomes:
        contrast, pairs = one.contrast, one.pairs
        if contrast.metric != metric:
            continue
        undeclared, tuned = ([found[i] for found in map(texts, pairs)] for i in (0, 1))
        drawn = resampled.difference(pairs, list(one.weights), contrast.part)
        lines.append(
            {
                **_names(contrast),
                "regime": regime_of(splits[contrast.split].regime, contrast.part),
                "declared": contrast in family,
                **one.columns,
                **resampling.percentiles(drawn, analysis.alpha),
                "n_clusters": resampled.clusters(pairs, contrast.part),
                "unfair": "; ".join(comparability.summary(undeclared)),
                "tuned": "; ".join(comparability.summary(tuned)),
                "keys_arm": "; ".join(key for key, _ in pairs),
                "keys_other": "; ".join(key for _, key in pairs),
            }
        )
    return pd.DataFrame(lines, columns=list(_CONTRASTS)).astype(_CONTRASTS)


def claims(
    rows: pd.DataFrame,
    analysis: Analysis,
    declared: Sequence[Claim],
    sums: Sums | None = None,
    looks: Sequence[int] = (),
    records: Mapping[str, Record] | None = None,
) -> pd.DataFrame:
    """Judge every claim: one line each, with its text and the columns of its contrast (`contrasts`).

    The verdict is on the claim: 'supported' (better), 'refuted' (worse, or practically equal), 'undecided',
    'too few' or 'no cells'.
    """
    by_metric: dict[str, pd.DataFrame] = {
        metric: contrasts(rows, analysis, declared, metric, sums, looks, records)
        for metric in dict.fromkeys(claim.metric for claim in declared)
    }
    return claims_of(by_metric, declared)


def claims_of(by_metric: Mapping[str, pd.DataFrame], declared: Sequence[Claim]) -> pd.DataFrame:
    """Judge every claim as `claims` does, from frames of `contrasts` by metric."""
    outcomes = {"better": "supported", "worse": "refuted", "equal": "refuted"}
    lines = []
    for claim in declared:
        frame, names = by_metric[claim.metric], _names(claim.contrast)
        fold = names["fold"]
        same = (frame[["arm", "other", "split", "part"]] == [names[n] for n in _PLACE]).all(axis=1)
        same &= frame["fold"].isna() if fold is None else frame["fold"].eq(fold).fillna(False)
        line = frame[same]
        if line.empty or not line["n_pairs"].iloc[0]:
            lines.append({**_absent(claim.contrast), "claim": claim.claim, "verdict": "no cells"})
            continue
        first: dict[str, Any] = {str(name): value for name, value in line.iloc[0].items()}
        verdict = outcomes.get(first["verdict"], first["verdict"])
        lines.append({**first, "claim": claim.claim, "verdict": verdict})
    kinds = {"claim": "str", **_CONTRASTS}
    return pd.DataFrame(lines, columns=list(kinds)).astype(kinds)


def ranking(rows: pd.DataFrame, analysis: Analysis, metric: str = "rmse") -> pd.DataFrame:
    """Rank the arms that have all their cells, per split and evaluation set.

    Columns: mean_rank over units, 1 the best; Nemenyi's critical_difference; friedman_p, the p-value of
    equal ranks; n_units (`statistics.ranks`).
    """
    lines = []
    for grid in grids(rows).values():
        for part in [part for part in grid.parts if part != GAP]:
            scores = grid.scores(part, metric)
            complete = _complete(np.isfinite(scores), grid.row >= 0)
            if complete.sum() < 2:
                continue
            by_unit = _unit_means(scores)[complete]
            found = statistics.ranks(_losses(by_unit.T, metric), analysis.alpha)
            arms = [arm for arm, every in zip(grid.arms, complete, strict=True) if every]
            for arm, rank in zip(arms, found.mean, strict=True):
                lines.append(
                    {
                        "split": grid.split,
                        "part": part,
                        "regime": regime_of(grid.regime, part),
                        "metric": metric,
                        "arm": labels.of_arm(arm),
                        "mean_rank": rank,
                        "critical_difference": found.critical_difference,
                        "friedman_p": found.friedman_p,
                        "n_units": by_unit.shape[1],
                    }
                )
    return pd.DataFrame(lines, columns=list(_RANKING)).astype(_RANKING)


_PLACE = ("arm", "other", "split", "part")


def _against_none(splits: Iterable[Grid], metric: str) -> list[Contrast]:
    """List every arm against 'none' on every evaluation set of the splits that have it."""
    return [
        Contrast(arm, NONE, grid.split, part, None, metric)
        for grid in splits
        if NONE in grid.arms
        for part in grid.parts
        for arm in grid.arms
        if arm != NONE
    ]


def _names(contrast: Contrast) -> dict[str, Any]:
    """Columns that name a contrast, with the labels of its arms."""
    return contrast._asdict() | {
        "arm": labels.of_arm(contrast.arm),
        "other": labels.of_arm(contrast.other),
    }


def _absent(contrast: Contrast) -> dict[str, Any]:
    """Columns of a declared contrast that has no pair."""
    numbers = {name: math.nan for name, kind in _CONTRASTS.items() if kind == "float64"}
    counts = {name: 0 for name, kind in _CONTRASTS.items() if kind == "int64"}
    texts = {name: "" for name, kind in _CONTRASTS.items() if kind == "str"}
    return numbers | counts | texts | _names(contrast) | {"declared": True}


@dataclass
class _Outcome:
    """One contrast with its pairs and columns; `_adjust` adds what depends on the family."""

    contrast: Contrast
    scores: PairedScores
    pairs: list[tuple[str, str]]
    """Keys of the two cells of every pair."""
    weights: np.ndarray
    """(pairs,), weight of each pair in the mean over units."""
    overlap: float
    looks: int
    planned: bool
    """True if the study asks for enough units to test the contrast."""
    columns: dict[str, Any]
    shifted: statistics.Shifted | None = None
    """One-sided p-values of one look; None without a verdict."""


def _judge(contrast: Contrast, grid: Grid, analysis: Analysis, looks: Sequence[int], family: int) -> _Outcome:
    """Test one contrast by itself; `family` is the size of its family, 0 if it is not declared."""
    a, b = grid.arms.index(contrast.arm), grid.arms.index(contrast.other)
    folds = [i for i, fold in enumerate(grid.folds) if contrast.fold in (None, fold)]
    values = grid.scores(contrast.part, contrast.metric)
    arm, other = values[a][folds], values[b][folds]
    row_arm, row_other = grid.row[a][folds], grid.row[b][folds]
    if looks:
        ended = np.isin(grid.column("state", ""), ["done", "failed"])
        complete = (ended[a][folds] & ended[b][folds]).all(axis=0)
        seeds = _seeds_judged(contrast, arm, other, complete, grid.overlap, analysis, looks, family)
        arm, other, row_arm, row_other = (x[:, :seeds] for x in (arm, other, row_arm, row_other))
    scores = judgement.paired_scores(contrast, arm, other, analysis)
    differences, by_unit = scores.differences, scores.units
    paired = np.isfinite(differences)
    keys = grid.rows["key"].to_numpy()
    better = differences > 0 if METRICS[contrast.metric].better == "higher" else differences < 0
    if METRICS[contrast.metric].better == "nearer zero" and contrast.part != GAP:
        better = np.abs(arm) < np.abs(other)
    planned = int(((row_arm >= 0) & (row_other >= 0)).any(axis=1).sum())
    n_looks = max(len(looks), 1)
    outcome = _Outcome(
        contrast,
        scores,
        pairs=[*zip(keys[row_arm[paired]], keys[row_other[paired]], strict=True)],
        weights=(paired / np.maximum(paired.sum(axis=1, keepdims=True), 1))[paired] / max(len(by_unit), 1),
        overlap=grid.overlap,
        looks=n_looks,
        planned=not judgement.too_few(planned, analysis, n_looks),
        columns={
            "n_pairs": int(paired.sum()),
            "n_units": len(by_unit),
            "n_seeds": int(paired.any(axis=0).sum()),
            "n_better": int(better[paired].sum()),
            "mean_arm": scores.mean_arm,
            "mean_other": scores.mean_other,
            "diff": float(by_unit.mean()) if len(by_unit) else math.nan,
            "test": TESTS[analysis.test],
            "rope": scores.rope,
            "looks": n_looks,
        },
    )
    _test(outcome, analysis)
    return outcome


def _seeds_judged(
    contrast: Contrast,
    arm: np.ndarray,
    other: np.ndarray,
    complete: np.ndarray,
    overlap: float,
    analysis: Analysis,
    looks: Sequence[int],
    family: int,
) -> int:
    """Find how many seeds judge a contrast: those of the look where it stopped, or of the last complete look.

    `complete (seeds,)` says which seeds have ended on every fold in both arms. Only a contrast of a `family`
    stops (`judgement.stops`).
    """
    seeds = looks[0]
    for seeds in (seeds for seeds in looks if seeds <= complete.size and complete[:seeds].all()):
        scores = judgement.paired_scores(contrast, arm[:, :seeds], other[:, :seeds], analysis)
        if family and judgement.stops(scores, overlap, analysis, len(looks), family):
            break
    return seeds


def _test(outcome: _Outcome, analysis: Analysis) -> None:
    """Add the interval, p and the posterior probabilities; NaN where there are too few units."""
    contrast, scores, looks = outcome.contrast, outcome.scores, outcome.looks
    outcome.columns |= dict.fromkeys(
        ("low", "high", "p", "p_adjusted", "p_better", "p_equal", "p_worse"), math.nan
    )
    outcome.columns |= {"verdict": "", "more_seeds": None}
    if judgement.too_few(len(scores.units), analysis, looks):
        outcome.columns["verdict"] = "too few"
        return
    level = 1 - analysis.alpha / looks
    test = statistics.corrected_t(scores.units, outcome.overlap)
    if analysis.test == "wilcoxon":
        low, high = statistics.walsh_interval(scores.units, level)
        p = statistics.wilcoxon(scores.units)
    else:
        low, high = statistics.interval(test, level)
        p = test.p
    outcome.columns |= {"low": low, "high": high, "p": min(1.0, looks * p)}
    if not has_direction(contrast.part, contrast.metric):
        return
    below, inside, above = statistics.posterior(test, scores.rope)
    better, worse = (below, above) if METRICS[contrast.metric].better == "lower" else (above, below)
    outcome.columns |= {"p_better": better, "p_equal": inside, "p_worse": worse}
    outcome.shifted = statistics.shifted(scores.units, outcome.overlap, scores.rope, analysis.test)


def _adjust(outcomes: list[_Outcome], analysis: Analysis, *, family: bool) -> None:
    """Add verdicts by Holm's method over `outcomes`, and for the declared `family` the column p_adjusted.

    Outcomes that cannot be tested count with p = 1: cells that failed do not make the family smaller.
    """
    tested = [(one, one.shifted) for one in outcomes if one.shifted is not None]
    untested = [1.0] * (len(outcomes) - len(tested))
    beyond, inside, adjusted = (
        statistics.holm([*p, *untested])[: len(tested)]
        for p in (
            [min(1.0, 2 * one.looks * min(p.below, p.above)) for one, p in tested],
            [min(1.0, one.looks * p.inside) for one, p in tested],
            [one.columns["p"] for one, _ in tested],
        )
    )
    for (one, p), beyond_p, inside_p, p_adjusted in zip(tested, beyond, inside, adjusted, strict=True):
        below, above = (beyond_p / 2, 1.0) if p.below < p.above else (1.0, beyond_p / 2)
        lower_is_better = METRICS[one.contrast.metric].better == "lower"
        verdict = statistics.decided(
            below, above, inside_p, analysis.alpha, smaller_is_better=lower_is_better
        )
        one.columns["verdict"] = verdict
        if family:
            one.columns["p_adjusted"] = p_adjusted
        if verdict == "undecided" and analysis.test == "corrected_t":
            level = analysis.alpha / one.looks / len(outcomes)
            one.columns["more_seeds"] = statistics.more_seeds(
                one.scores.differences, one.overlap, one.scores.rope, level
            )


def _texts(
    rows: pd.DataFrame, records: Mapping[str, Record] | None
) -> Callable[[tuple[str, str]], tuple[str, str]]:
    """Make the function that lists the undeclared and the tuned differences of a pair of keys."""
    known = {
        key: (undeclared, tuned)
        for key, undeclared, tuned in zip(
            rows["key"], rows["unfair"].fillna(""), rows["tuned"].fillna(""), strict=True
        )
    }
    plain = set(rows.loc[(rows["variant"] == labels.BASELINE) & rows["fusion"].isna(), "key"])

    def of(pair: tuple[str, str]) -> tuple[str, str]:
        if pair[1] in plain:
            return known[pair[0]]
        if records is None:
            (undeclared_a, tuned_a), (undeclared_b, tuned_b) = (known[key] for key in pair)
            return _between(undeclared_a, undeclared_b), _between(tuned_a, tuned_b)
        found = comparability.differences(records[pair[0]], records[pair[1]])
        return "; ".join(found.undeclared), "; ".join(found.tuned)

    return of


def _between(a: str, b: str) -> str:
    """List how cell `a` differs from cell `b`, given how each differs from one third cell.

    All three texts are 'name value against value; ...'.
    """
    of_a, of_b = (
        {
            name: values.rpartition(" against ")
            for name, _, values in (text.partition(" ") for text in side.split("; ") if text)
        }
        for side in (a, b)
    )
    texts = []
    for name in sorted(of_a.keys() | of_b.keys()):
        value_a = of_a[name][0] if name in of_a else of_b[name][2]
        value_b = of_b[name][0] if name in of_b else of_a[name][2]
        if value_a != value_b:
            texts.append(f"{name} {value_a} against {value_b}")
    return "; ".join(texts)


def _complete(seen: np.ndarray, planned: np.ndarray) -> np.ndarray:
    """Select the arms that have a number in every planned cell and a cell in every fold.

    `seen` and `planned` are (arms, folds, seeds); the result is (arms,).
    """
    arms = len(planned)
    missing = (planned & ~seen).reshape(arms, -1)
    every_fold: np.ndarray = np.all(np.any(planned, axis=2), axis=1)
    return ~np.any(missing, axis=1) & every_fold


def _unit_means(scores: np.ndarray) -> np.ndarray:
    """Average over seeds: (arms, folds, seeds) -> (arms, folds), NaN without a number."""
    seen = np.isfinite(scores)
    count = seen.sum(axis=2)
    total = np.where(seen, scores, 0).sum(axis=2)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _losses(scores: np.ndarray, metric: str) -> np.ndarray:
    """Turn scores into losses, of which smaller ones are better."""
    return -scores if METRICS[metric].better == "higher" else np.abs(scores)


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
