"""Means, paired contrasts with their tests, and verdicts on claims, from a study's table of results.

A p-value of `contrasts` comes about in six steps:

1. `grids` arranges the rows of a split (`results.rows`, one per cell) as scores (arms, folds, seeds).
2. `judgement.paired_scores` subtracts the scores of two arms, fold by fold and seed by seed, and averages
   them over seeds. `_sample` adds up the stored predictions of the same cells by monitor and by day.
3. `estimands.compare` makes the tests that belong to the kind of the split.
4. With adaptive seeds or repeats, `_judged` takes the cells of the look at which the contrast stopped. The
   p-value is then multiplied by the number of looks. This is the column `p`.
5. `_adjust` adjusts p by Holm's method (`statistics.holm`) over the declared contrasts (`claims.declared`)
   that have enough planned units. This is `p_adjusted`. Contrasts of cells that were tuned on their own test
   samples are not declared.
6. `judgement.verdict` makes the verdict from `p_adjusted` and from a test of equivalence within the region of
   practical equivalence, adjusted in the same way.

Contrasts that nobody declared are exploratory: they have intervals and p, but no `p_adjusted`. So are those
that were declared after results, and those declared under other settings (`declarations.Status`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from pm25.metrics import METRICS, SITE_SAMPLES, TAIL_SCORES
from pm25.splits import HOLDOUT_PARTS
from sweeps.analysis import comparability, episodes, estimands, judgement, labels, next_look, statistics
from sweeps.analysis.comparability import Comparisons
from sweeps.analysis.declarations import Status
from sweeps.analysis.episodes import CellEpisodes, Episode
from sweeps.analysis.estimands import Evidence, Sample, Totals
from sweeps.analysis.judgement import GAP, PairedScores, has_direction
from sweeps.analysis.labels import regime_of
from sweeps.analysis.next_look import State
from sweeps.spec.claims import NONE, Analysis, Claim, Contrast
from sweeps.spec.claims import declared as declared_contrasts
from sweeps.spec.design import NO_LADDERS, Arm, Ladders, SplitLadder
from sweeps.store.records import TUNED_ON_TEST

_MEANS: dict[str, str] = {
    **dict.fromkeys(("arm", "variant", "fusion", "split", "part", "regime", "metric"), "str"),
    **dict.fromkeys(("mean", "sd", "low", "high", "iqm", "skill"), "float64"),
    **dict.fromkeys(("n", "n_units", "n_seeds", "n_expected", "n_failed", "n_missing", "n_marked"), "int64"),
    "pooled": "bool",
}
_CONTRASTS: dict[str, str] = {
    **dict.fromkeys(("arm", "other", "split", "part", "regime", "metric"), "str"),
    "fold": "Int64",
    **dict.fromkeys(("estimand", "unit"), "str"),
    **dict.fromkeys(("n_pairs", "n_units", "n_seeds", "n_better"), "int64"),
    **dict.fromkeys(("mean_arm", "mean_other", "diff", "low", "high", "se", "df"), "float64"),
    "test": "str",
    "p": "float64",
    "declared": "bool",
    **dict.fromkeys(("declared_at", "changed"), "str"),
    **dict.fromkeys(("p_adjusted", "rope", "p_better", "p_equal", "p_worse"), "float64"),
    **dict.fromkeys(("verdict", "untested", "sensitivity"), "str"),
    "more_seeds": "Int64",
    "looks": "int64",
    **dict.fromkeys(("unfair", "tuned", "marked", "keys_arm", "keys_other"), "str"),
    "without": "str",
    **dict.fromkeys(("without_diff", "without_low", "without_high"), "float64"),
    **dict.fromkeys(("without_p", "without_p_adjusted"), "float64"),
    "without_verdict": "str",
}


class Sums(Protocol):
    """Sums over stored predictions by cell (`artifacts.Predicted`)."""

    lat: np.ndarray
    lon: np.ndarray

    def of(self, key: str, part: str = "test") -> tuple[np.ndarray, np.ndarray] | None:
        """Look up the sums of one cell by site: site index (m,) and totals (m, 6)."""

    def by_day(self, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Look up the sums of one cell by day: days since 1970 (m,) and totals (m, 6)."""


@runtime_checkable
class StoredPredictions(Sums, Protocol):
    """Sums over stored predictions that can be read again without an episode (`artifacts.Predicted`)."""

    def leverage(self) -> pd.DataFrame:
        """Return the shares of the squared error that few samples hold (`artifacts.Leverage`)."""

    def by_episode(
        self, keys: Sequence[str], part: str = "test", *, everywhere: bool
    ) -> dict[str, CellEpisodes] | None:
        """Read the sums of cells by episode; None if a cell has no predictions."""

    def without(self, keys: Sequence[str], episode: Episode, part: str = "test") -> Sums:
        """Read the sums of cells beside an episode."""


class Grid(NamedTuple):
    """The cells of one split as arrays (arms, folds, seeds)."""

    split: str
    regime: str
    kind: str
    """Kind of the split."""
    parts_of_deal: int
    """Folds into which one deal divides the samples."""
    units: np.ndarray
    """(folds,), independent unit of each fold."""
    arms: list[Arm]
    folds: list[int]
    seeds: list[int]
    row: np.ndarray
    """Position of each cell's row in `rows`; -1 where the study has no such cell."""
    rows: pd.DataFrame

    @property
    def repeats(self) -> np.ndarray:
        """(folds,), origin or deal of each fold; 0 in a split without them."""
        if self.kind == "checkerboards":
            return self.units
        deals = np.array(self.folds, np.int64) // self.parts_of_deal
        return deals if self.kind == "blocks" else np.zeros_like(deals)

    def column(self, name: str, fill: Any) -> np.ndarray:
        """Arrange one column of the rows, with `fill` where a cell does not exist."""
        values = self.rows[name].to_numpy()
        return np.where(self.row >= 0, values[self.row], fill)

    def scores(self, part: str, metric: str) -> np.ndarray:
        """Arrange the scores of one evaluation set, with NaN where a cell has no number."""
        if part == GAP:
            return self._gaps(metric)
        name = f"{part}_{metric}"
        if part == "wr" and name not in self.rows:  # a score of high values, without any within region
            return np.full(self.row.shape, math.nan)
        return self.column(name, math.nan).astype(np.float64)

    def _gaps(self, metric: str) -> np.ndarray:
        """Subtract the within-region score from the score out of region, at the same monitors: `row.shape`.

        Five folds test the monitors of a colour. The five folds that train on this colour predict them from
        within, one part each. Both scores are those of the colour as a whole. A mean of
        the scores of five small parts would be another number: the mean RMSE of parts is below their joint
        RMSE. Each fold has the gap of the colour that it tests, and NaN where a fold of either side has no
        number.
        """
        found = np.full(self.row.shape, math.nan)
        half = np.array(self.folds, np.int64) // HOLDOUT_PARTS
        for number in np.unique(half):
            tests, trains = half == number, half == number ^ 1  # the colours of an origin are 2 i and 2 i + 1
            if tests.sum() == trains.sum() == HOLDOUT_PARTS:
                found[:, tests] = self._gap(metric, tests, trains)[:, None]
        return found

    def _gap(self, metric: str, tests: np.ndarray, trains: np.ndarray) -> np.ndarray:
        """Compute the gap of one colour, which the folds `tests` test and the folds `trains` train on.

        The result is (arms, seeds). The variance of the truth is that of the test set, because both sides
        have the same samples. Scores of high values have no gap.
        """

        def pooled(part: str, name: str, folds: np.ndarray, power: int = 1) -> np.ndarray:
            values = self.scores(part, name)[:, folds]
            # Parts of a colour differ by one monitor at most; a mean over monitors counts them alike.
            weight = np.ones_like(values) if name == "site_rmse" else self.counts(f"n_{part}")[:, folds]
            with np.errstate(invalid="ignore"):  # weights of cells that are not done
                mean = (weight * values**power).sum(axis=1) / weight.sum(axis=1)
            return np.asarray(mean ** (1 / power))

        if metric in TAIL_SCORES:
            return np.full((len(self.arms), len(self.seeds)), math.nan)
        if metric != "r2":
            power = 2 if metric == "rmse" else 1
            return pooled("test", metric, tests, power) - pooled("wr", metric, trains, power)
        out, inside = pooled("test", "rmse", tests, 2), pooled("wr", "rmse", trains, 2)
        unexplained = 1 - pooled("test", "r2", tests)
        with np.errstate(invalid="ignore", divide="ignore"):  # predictions without any error
            return unexplained * (inside**2 / out**2 - 1)

    def counts(self, name: str) -> np.ndarray:
        """Arrange numbers of samples, with NaN where a cell has none."""
        values = self.rows[name].to_numpy(np.float64, na_value=math.nan)
        return np.where(self.row >= 0, values[self.row], math.nan)

    @property
    def parts(self) -> list[str]:
        """Evaluation sets of the split; one of regions has a within-region set too."""
        if self.regime != labels.OOR:
            return ["test"]
        # Held-out sites of a rotation are those that other folds test, so their gap is paired.
        rotates = self.kind == "checkerboards" and "-rotate" in self.split
        return ["test", "wr", GAP] if rotates else ["test", "wr"]


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
        unit_of = dict(zip(group["fold"], group["unit"], strict=True))
        found[str(split)] = Grid(
            str(split),
            str(group["regime"].iloc[0]),
            str(group["kind"].iloc[0]),
            int(group["folds"].iloc[0]),
            np.array([int(unit_of[fold]) for fold in folds]),
            arms,
            folds,
            seeds,
            row,
            group,
        )
    return found


def with_site_rmse(rows: pd.DataFrame, sums: Sums | None) -> pd.DataFrame:
    """Add the columns test_site_rmse and wr_site_rmse to a study's rows, unless they are there.

    A cell's score is the mean over monitors of the monitor's RMSE, in ug/m3. Monitors with fewer than 20 test
    samples in the cell (`SITE_SAMPLES`) do not count. It is NaN without such monitors or without predictions.
    """
    if "test_site_rmse" in rows:
        return rows
    scores = {part: [_site_rmse(sums, key, part) for key in rows["key"]] for part in ("test", "wr")}
    return rows.assign(**{f"{part}_site_rmse": values for part, values in scores.items()})


def _site_rmse(sums: Sums | None, key: str, part: str) -> float:
    found = sums.of(key, part) if sums is not None and key else None
    if found is None:
        return math.nan
    return float(
        statistics.score(statistics.one_per_monitor(found[1], SITE_SAMPLES).sum(axis=0), "site_rmse")
    )


def means(
    rows: pd.DataFrame, analysis: Analysis, metric: str = "rmse", sums: Sums | None = None
) -> pd.DataFrame:
    """Average every arm on every split and evaluation set: one line each, in the order of the rows.

    Numbers are in the metric's unit. Columns, beside those that name the line:

    - mean: the score of all predictions together where `pooled` is True, otherwise a mean over cells.
    - skill: of the RMSE, 1 - MSE / MSE of the best reference, over all samples of the cells. NaN without a
      complete reference, for arms that lack cells, and for other metrics.
    - sd (ddof 1), iqm (interquartile mean): over the `n` cells that have a number.
    - n_units, n_seeds: folds and seeds that have a number. n_expected, n_failed, n_missing, n_marked: cells
      of the study, those that failed, those not run, and those whose audit failed.
    - low, high: interval of level 1 - alpha, from the variance that the split's test uses (`estimands`). Only
      arms that have all their cells have one.
    """
    rows = with_site_rmse(rows, sums) if metric == "site_rmse" else rows
    lines: list[dict[str, Any]] = []
    for grid in grids(rows).values():
        state, audit_failed = grid.column("state", ""), grid.column("marked", "") != ""
        every_key = grid.column("key", "")
        for part in grid.parts:
            scores = grid.scores(part, metric)
            seen, planned = np.isfinite(scores), grid.row >= 0
            complete = _complete(seen, planned, grid.repeats)
            skill = _skill(grid, part, metric, scores, complete)
            for i, arm in enumerate(grid.arms):
                own = scores[i][seen[i]]
                first = grid.rows.iloc[grid.row[i][planned[i]][0]]
                mean, pooled, low, high = own.mean() if len(own) else math.nan, False, math.nan, math.nan
                if complete[i]:
                    keys = every_key[i][seen[i]]
                    sample = _sample(grid, part, metric, scores[i], keys, None, sums, analysis.block_degrees)
                    result = estimands.compare(
                        sample, part, level=1 - analysis.alpha, sensitivity=False
                    ).result
                    low, high = result.low, result.high
                    pooled = estimands.is_pooled(grid.kind, part) and sample.arm is not None
                    mean = estimands.pooled(sample) if pooled else mean
                lines.append(
                    {
                        "arm": labels.of_arm(arm),
                        "variant": first["variant"],
                        "fusion": first["fusion"],
                        "split": grid.split,
                        "part": part,
                        "regime": regime_of(grid.regime, part),
                        "metric": metric,
                        "mean": mean,
                        "sd": own.std(ddof=1) if len(own) > 1 else math.nan,
                        "low": low,
                        "high": high,
                        "iqm": statistics.interquartile_mean(own),
                        "skill": skill[i],
                        "n": len(own),
                        "n_units": int(seen[i].any(axis=1).sum()),
                        "n_seeds": int(seen[i].any(axis=0).sum()),
                        "n_expected": int(planned[i].sum()),
                        "n_failed": int((state[i] == "failed").sum()),
                        "n_missing": int((planned[i] & ~np.isin(state[i], ["done", "failed"])).sum()),
                        "n_marked": int(audit_failed[i].sum()),
                        "pooled": pooled,
                    }
                )
    return pd.DataFrame(lines, columns=list(_MEANS)).astype(_MEANS)


def _skill(grid: Grid, part: str, metric: str, scores: np.ndarray, complete: np.ndarray) -> np.ndarray:
    """Return 1 - MSE / MSE of the best complete reference of each arm; (arms,), NaN where it is undefined."""
    references = np.array([arm.is_reference for arm in grid.arms], bool) & complete
    if metric != "rmse" or part == GAP or not references.any():
        return np.full(len(grid.arms), math.nan)
    samples = np.where(np.isfinite(scores), grid.counts(f"n_{part}"), 0.0)
    squares = (samples * np.nan_to_num(scores) ** 2).sum(axis=(1, 2))
    mse = np.where(complete, squares / np.maximum(samples.sum(axis=(1, 2)), 1), math.nan)
    best = mse[references].min()
    return np.asarray(1 - mse / best) if best > 0 else np.full(len(grid.arms), math.nan)


def contrasts(
    rows: pd.DataFrame,
    analysis: Analysis,
    claims: Sequence[Claim] = (),
    metric: str = "rmse",
    sums: Sums | None = None,
    looks: Ladders = NO_LADDERS,
    compared: Comparisons | None = None,
    also: Sequence[Contrast] = (),
    *,
    statuses: Mapping[Contrast, Status] = MappingProxyType({}),
    sensitivity: bool = True,
    episode: bool = False,
) -> pd.DataFrame:
    """Test every arm against 'none' on every evaluation set, then the claims' pairs, then those of `also`.

    References take no part in it.

    The frame has one line per contrast of `metric`. The declared family (`claims.declared`) is adjusted
    together, whatever the metric of its members; a contrast of `also` is not declared. A contrast with a cell
    that was tuned on its own test samples leaves the family and is exploratory. `statuses`
    (`declarations.history`) leave exploratory contrasts out of the family and keep withdrawn ones in it.
    Columns:

    - estimand, unit, n_units: what the difference is carried over to, the independent unit of its test, and
      how many there are (`estimands`).
    - diff, mean_arm, mean_other: arm minus other, and the two means, over the (fold, seed) pairs. The
      difference is that of the pooled scores where these are tested. low, high, se, df, test: interval of
      `diff` of level 1 - alpha, standard error, degrees of freedom and name of the test that decides.
    - p: two-sided p-value of no difference. p_adjusted: adjusted by Holm's method over the declared family;
      NaN for other contrasts. The family is the planned one: a contrast that lost its cells, or that was
      removed from the study after results, still counts.
    - declared: True for the family. declared_at: time of the first declaration with the contrast. changed:
      what changed after results, when, and after how many; '' if it was declared before the first result.
    - sensitivity: other tests of the same difference with their p-values, which decide nothing.
    - rope: half-width of the region of practical equivalence (`judgement.paired_scores`). p_better, p_equal,
      p_worse: posterior probabilities of the three regions (`statistics.posterior`).
    - verdict: 'better', 'worse', 'equal', 'undecided', or 'too few' where nothing could be tested, for the
      reason in `untested`. Gaps and biases have '' and no rope, because lower is not better for them.
    - more_seeds: fewest further seeds that would decide the contrast at its present mean; <NA> where it is
      decided, where no number of seeds would, and with a single seed. It is <NA> too where the unit is
      neither a fold nor an origin.
    - looks: number of looks at the data. `looks`, the argument, has the numbers of seeds and repeats at which
      contrasts may be looked at. The contrast is judged where it stopped, or at its last complete look.
    - n_pairs, n_seeds; n_better: pairs in which the arm is better, for a bias the nearer to zero.
    - tuned, and the column of confounded pairs: what differs in the pairs, among tuned settings and beyond
      the declared factor (`comparability.summary`). Pairs without 'none' are compared by `compared`,
      or without it through their differences from 'none'.
    - marked: the checks that cells of the contrast failed, '' for none.
    - keys_arm, keys_other: keys of the cells of the pairs.
    - without: the most influential episode (`episodes`), by dates and place, of a declared contrast that was
      tested; '' for others, and unless `episode` is True. without_diff, without_low, without_high, without_p,
      without_p_adjusted, without_verdict: the same test of the same cells without this episode. Its p is
      adjusted among the p of the other contrasts, which keep all samples.

    `sums` are the stored predictions (`artifacts.predictions`). Without them, the tests that need monitors or
    days are not made. The tests beside those that decide are made with `sensitivity`.
    """
    asked_for = (metric, *(claim.metric for claim in claims), *(contrast.metric for contrast in statuses))
    rows = labels.without_references(rows)
    if "site_rmse" in asked_for:
        rows = with_site_rmse(rows, sums)
    splits = grids(rows)
    asked = dict.fromkeys(
        [
            *declared_contrasts(claims, analysis, {label: grid.arms for label, grid in splits.items()}),
            *(contrast for contrast in statuses if _has_cells(contrast, splits)),
        ]
    )
    late = {contrast for contrast, status in statuses.items() if status.exploratory}
    marks = {one: _marks(one, splits[one.split]) for one in asked}
    family = {one: None for one in asked if one not in late and TUNED_ON_TEST not in marks[one]}
    # Those whose arm, split or fold was removed after results: the family is as large as it was declared.
    gone = sum(one not in asked and one not in late for one in statuses)
    every = dict.fromkeys([*_against_none(splits.values(), metric), *asked, *also])
    outcomes = [
        _judge(
            contrast,
            splits[contrast.split],
            analysis,
            looks.of(contrast.split),
            len(family) + gone if contrast in family else 0,
            sums,
            sensitivity=sensitivity and contrast.metric == metric,
            episode=episode and contrast.metric == metric and contrast in family,
        )
        for contrast in every
    ]
    planned = [one for one in outcomes if one.contrast in family and one.planned]
    _adjust(planned, analysis, family=True, gone=gone)
    for one in outcomes:
        if one.contrast not in family:
            _adjust([one], analysis, family=False)
        if not has_direction(one.contrast.part, one.contrast.metric):
            one.columns |= {"verdict": "", "more_seeds": None}
    texts = _texts(rows, compared)
    lines = []
    for one in outcomes:
        contrast, pairs = one.contrast, one.pairs
        if contrast.metric != metric:
            continue
        undeclared, tuned = ([found[i] for found in map(texts, pairs)] for i in (0, 1))
        lines.append(
            {
                **_names(contrast),
                "regime": regime_of(splits[contrast.split].regime, contrast.part),
                "declared": contrast in family,
                **_declaration(statuses.get(contrast)),
                **one.columns,
                "unfair": "; ".join(comparability.summary(undeclared)),
                "tuned": "; ".join(comparability.summary(tuned)),
                "marked": "; ".join(_marks(contrast, splits[contrast.split])),
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
    looks: Ladders = NO_LADDERS,
    compared: Comparisons | None = None,
    *,
    statuses: Mapping[Contrast, Status] = MappingProxyType({}),
) -> pd.DataFrame:
    """Judge every claim: one line each, with its text and the columns of its contrast (`contrasts`).

    The verdict is on the claim: 'supported' (better), 'refuted' (worse, or practically equal), 'undecided',
    'too few', 'no cells' or 'tuned on test'. The last one is that of cells that were tuned on their own test
    samples. Another claim that takes no part in the declared family is 'exploratory'.
    """
    by_metric: dict[str, pd.DataFrame] = {
        metric: contrasts(rows, analysis, declared, metric, sums, looks, compared, statuses=statuses)
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
        first: dict[str, Any] = {str(name): v for name, v in line.iloc[0].items()} if len(line) else {}
        if not first.get("n_pairs"):
            known = {name: first[name] for name in ("declared", "declared_at", "changed") if first}
            lines.append({**_absent(claim.contrast), **known, "claim": claim.claim, "verdict": "no cells"})
            continue
        found = {name: outcomes.get(first[name], first[name]) for name in ("verdict", "without_verdict")}
        if TUNED_ON_TEST in first["marked"].split("; "):
            found["verdict"] = "tuned on test"
        elif not first["declared"] and found["verdict"] != "too few":
            found["verdict"] = "exploratory"
        lines.append({**first, "claim": claim.claim, **found})
    kinds = {"claim": "str", **_CONTRASTS}
    return pd.DataFrame(lines, columns=list(kinds)).astype(kinds)


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


def _has_cells(contrast: Contrast, splits: Mapping[str, Grid]) -> bool:
    """Return True if the study has both arms, the fold and the evaluation set of a contrast."""
    grid = splits.get(contrast.split)
    if grid is None or contrast.part not in grid.parts:
        return False
    has_fold = contrast.fold is None or contrast.fold in grid.folds
    return has_fold and {contrast.arm, contrast.other} <= {*grid.arms}


def _declaration(status: Status | None) -> dict[str, Any]:
    """Columns about the declaration of a contrast."""
    if status is None:
        return {"declared_at": "", "changed": ""}
    return {"declared_at": status.declared_at, "changed": status.changed}


def _marks(contrast: Contrast, grid: Grid) -> list[str]:
    """List the checks that cells of a contrast failed, each once."""
    arms = [grid.arms.index(arm) for arm in (contrast.arm, contrast.other)]
    folds = [i for i, fold in enumerate(grid.folds) if contrast.fold in (None, fold)]
    texts = grid.column("marked", "")[np.ix_(arms, folds)].reshape(-1).tolist()
    return _ordered(check for text in texts for check in text.split("; ") if check)


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
    evidence: Evidence
    grid: Grid
    """Grid of the contrast's folds."""
    pairs: list[tuple[str, str]]
    """Keys of the two cells of every pair."""
    looks: int
    planned: bool
    """True if the study asks for enough units to test the contrast."""
    without: tuple[Episode, PairedScores, Evidence] | None
    """The most influential episode, and the pairs and tests without it; None where it was not asked for."""
    columns: dict[str, Any]


class _Pair(NamedTuple):
    """Two arms on the folds of one contrast, as arrays (folds, seeds)."""

    grid: Grid
    """Grid of the contrast's folds alone."""
    arm: np.ndarray
    other: np.ndarray
    keys_arm: np.ndarray
    keys_other: np.ndarray
    planned: np.ndarray
    """True where the study has a cell of both arms."""
    ended: np.ndarray
    """True where both cells have ended."""

    def at(self, state: State) -> _Pair:
        """Return the pair with the cells of one look alone."""
        grid, folds = self.grid, np.arange(len(self.grid.folds))
        if state.repeats is not None:
            folds = np.flatnonzero(grid.repeats < state.repeats)
        grid = grid._replace(folds=[grid.folds[i] for i in folds], units=grid.units[folds])
        return _Pair(grid, *(values[folds, : state.seeds] for values in self[1:]))

    def complete(self, state: State) -> bool:
        """Return True if all cells of a look have ended; the pair is that of the look."""
        lacking = state.repeats is not None and len(np.unique(self.grid.repeats)) < state.repeats
        lacking |= state.seeds is not None and self.ended.shape[1] < state.seeds
        return not lacking and bool(self.ended.all())


def _pair(contrast: Contrast, grid: Grid) -> _Pair:
    a, b = grid.arms.index(contrast.arm), grid.arms.index(contrast.other)
    folds = [i for i, fold in enumerate(grid.folds) if contrast.fold in (None, fold)]
    values, keys = grid.scores(contrast.part, contrast.metric), grid.column("key", "")
    ended = np.isin(grid.column("state", ""), ["done", "failed"])
    return _Pair(
        grid._replace(folds=[grid.folds[i] for i in folds], units=grid.units[folds]),
        values[a][folds],
        values[b][folds],
        keys[a][folds],
        keys[b][folds],
        (grid.row[a][folds] >= 0) & (grid.row[b][folds] >= 0),
        ended[a][folds] & ended[b][folds],
    )


def evidence(
    contrast: Contrast, rows: pd.DataFrame, analysis: Analysis, looks: int, sums: Sums | None
) -> tuple[PairedScores, Evidence]:
    """Test one contrast on all seeds of `rows`, at one of `looks`: its paired scores and the tests."""
    rows = labels.without_references(rows)
    rows = with_site_rmse(rows, sums) if contrast.metric == "site_rmse" else rows
    return _evidence(contrast, _pair(contrast, grids(rows)[contrast.split]), analysis, looks, sums)


def _evidence(
    contrast: Contrast,
    pair: _Pair,
    analysis: Analysis,
    looks: int,
    sums: Sums | None,
    *,
    sensitivity: bool = False,
) -> tuple[PairedScores, Evidence]:
    scores = judgement.paired_scores(contrast, pair.arm, pair.other, analysis)
    paired = np.isfinite(scores.differences)
    a_keys, b_keys = pair.keys_arm[paired], pair.keys_other[paired]
    sample = _sample(
        pair.grid,
        contrast.part,
        contrast.metric,
        scores.differences,
        a_keys,
        b_keys,
        sums,
        analysis.block_degrees,
    )
    if sample.arm is not None and estimands.is_pooled(pair.grid.kind, contrast.part):
        both = (estimands.pooled(sample._replace(arm=one, other=None)) for one in (sample.arm, sample.other))
        scores = judgement.with_means(contrast, scores, next(both), next(both), analysis)
    level = 1 - analysis.alpha / looks
    return scores, estimands.compare(sample, contrast.part, level=level, sensitivity=sensitivity)


def _judged(
    contrast: Contrast,
    every: _Pair,
    analysis: Analysis,
    ladder: SplitLadder,
    family: int,
    sums: Sums | None,
) -> _Pair:
    """Return the cells of the look at which a contrast stopped, or of its last complete look.

    A declared contrast repeats the path that its cells were bought on. Another one has the complete state
    with the most cells.
    """
    if ladder.looks == 1:
        return every
    if not family:
        complete = [state for state in next_look.states(ladder) if every.at(state).complete(state)]
        cells = (every.at(state) for state in complete or [next_look.first(ladder)])
        return max(cells, key=lambda pair: pair.ended.size)
    following: State | str = next_look.first(ladder)
    assert isinstance(following, State)
    pair = every.at(following)
    while isinstance(following, State):
        shown = every.at(following)
        if not shown.complete(following):
            break
        pair, grid = shown, shown.grid
        found = _evidence(contrast, pair, analysis, ladder.looks, sums)
        place = grid.kind, grid.parts_of_deal, grid.units
        following = next_look.following(contrast, following, ladder, *place, *found, analysis, family)
    return pair


def _judge(
    contrast: Contrast,
    grid: Grid,
    analysis: Analysis,
    ladder: SplitLadder,
    family: int,
    sums: Sums | None,
    *,
    sensitivity: bool,
    episode: bool,
) -> _Outcome:
    """Test one contrast by itself; `family` is the size of its family, 0 if it is not declared."""
    n_looks = ladder.looks
    pair = _judged(contrast, _pair(contrast, grid), analysis, ladder, family, sums)
    scores, tested = _evidence(contrast, pair, analysis, n_looks, sums, sensitivity=sensitivity)
    differences, result = scores.differences, tested.result
    paired = np.isfinite(differences)
    better: np.ndarray = differences < 0
    if METRICS[contrast.metric].better == "higher":
        better = differences > 0
    if METRICS[contrast.metric].better == "nearer zero" and contrast.part != GAP:
        better = np.abs(pair.arm) < np.abs(pair.other)
    planned: np.ndarray = np.any(pair.planned, axis=1)
    estimand = estimands.of(grid.kind, contrast.part)
    may_be_tested = judgement.may_be_tested(grid.kind, contrast.part, pair.grid.units[planned])
    untested = tested.untested
    if untested and may_be_tested and paired.sum() < pair.planned.sum():  # the design is large enough
        untested = f"{untested.partition(': {')[0]}; some cells are missing or failed"
    outcome = _Outcome(
        contrast,
        scores,
        tested,
        pair.grid,
        pairs=[*zip(pair.keys_arm[paired], pair.keys_other[paired], strict=True)],
        looks=n_looks,
        planned=judgement.may_be_tested(grid.kind, contrast.part, _most_units(pair.grid, planned, ladder)),
        without=_without(contrast, pair, analysis, n_looks, sums) if episode and tested.tests else None,
        columns={
            "estimand": estimand.name,
            "unit": estimand.unit,
            "n_pairs": int(paired.sum()),
            "n_units": tested.units,
            "n_seeds": int(paired.any(axis=0).sum()),
            "n_better": int(better[paired].sum()),
            "mean_arm": scores.mean_arm,
            "mean_other": scores.mean_other,
            "diff": result.estimate,
            "low": result.low,
            "high": result.high,
            "se": result.se,
            "df": result.df,
            "test": result.name,
            "p": min(1.0, n_looks * result.p) if math.isfinite(result.p) else math.nan,
            "p_adjusted": math.nan,
            "rope": scores.rope,
            "p_better": math.nan,
            "p_equal": math.nan,
            "p_worse": math.nan,
            "verdict": "too few" if untested else "",
            "untested": untested,
            "sensitivity": "; ".join(f"{one.name}: {_shown_p(one.p)}" for one in tested.sensitivity),
            "more_seeds": None,
            "looks": n_looks,
            "without": "",
            **dict.fromkeys((f"without_{name}" for name in ("diff", "low", "high", "p")), math.nan),
            "without_p_adjusted": math.nan,
            "without_verdict": "",
        },
    )
    if tested.tests and has_direction(contrast.part, contrast.metric):
        below, inside, above = statistics.posterior(result, scores.rope)
        lower, higher = ("p_better", "p_worse")[:: 1 if METRICS[contrast.metric].better == "lower" else -1]
        outcome.columns |= {lower: below, "p_equal": inside, higher: above}
    return outcome


def _shown_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _without(
    contrast: Contrast, pair: _Pair, analysis: Analysis, looks: int, sums: Sums | None
) -> tuple[Episode, PairedScores, Evidence] | None:
    """Test a contrast again without its most influential episode; None if there is none to leave out."""
    if contrast.part == GAP or not isinstance(sums, StoredPredictions):
        return None
    paired = np.isfinite(pair.arm - pair.other)
    folds, keys, others = np.nonzero(paired)[0], pair.keys_arm[paired], pair.keys_other[paired]
    kind, part = pair.grid.kind, contrast.part
    everywhere = kind == "random"
    by_episode = sums.by_episode([*keys, *others], part, everywhere=everywhere)
    if by_episode is None:
        return None
    found = episodes.most_influential(
        [
            episodes.Pair(int(fold), by_episode[key], by_episode[other])
            for fold, key, other in zip(folds, keys, others, strict=True)
        ],
        contrast.metric,
        pooled=estimands.is_pooled(kind, part),
        everywhere=everywhere,
    )
    if found is None:
        return None
    rest = sums.without([*keys, *others], found, part)

    def scores(keys: np.ndarray) -> np.ndarray:
        values = np.full(paired.shape, math.nan)
        values[paired] = [_cell_score(rest, key, part, contrast.metric) for key in keys]
        return values

    remaining = pair._replace(arm=scores(keys), other=scores(others))
    return found, *_evidence(contrast, remaining, analysis, looks, rest)


def _cell_score(sums: Sums, key: str, part: str, metric: str) -> float:
    """Score of one cell from its sums; NaN without samples."""
    if metric == "site_rmse":
        return _site_rmse(sums, key, part)
    found = sums.of(key, part)
    return math.nan if found is None else float(statistics.score(found[1].sum(axis=0), metric))


def _most_units(grid: Grid, planned: np.ndarray, ladder: SplitLadder) -> np.ndarray:
    """Return the units of the planned folds (folds,), with those that may still be added."""
    units: np.ndarray = grid.units[planned]
    if not ladder.repeats or not len(units):
        return units
    of_repeat = len(np.unique(units)) // len(np.unique(grid.repeats[planned]))
    return np.arange(of_repeat * ladder.repeats[-1])


def _sample(
    grid: Grid,
    part: str,
    metric: str,
    scores: np.ndarray,
    keys: np.ndarray,
    others: np.ndarray | None,
    sums: Sums | None,
    block_degrees: float,
) -> Sample:
    """Collect the scores (folds, seeds) of one arm, or differences of two, with the sums of their cells."""
    arm = _totals(keys, part, sums)
    other = None if others is None else _totals(others, part, sums)
    lacking = arm is None or (others is not None and other is None)
    if metric == "site_rmse" and len(keys):
        # The sums are over cells, so a monitor has as many samples as in one of them, times their number.
        least = SITE_SAMPLES * _cells_by_site(keys, part, sums)
        arm, other = (
            None if one is None else Totals(statistics.one_per_monitor(one.by_site, least), one.by_day[:0])
            for one in (arm, other)
        )
    return Sample(
        kind=grid.kind,
        unit=grid.units,
        parts=grid.parts_of_deal,
        values=_fold_means(scores),
        metric=metric,
        lat=None if lacking or sums is None else sums.lat,
        lon=None if lacking or sums is None else sums.lon,
        arm=None if lacking else arm,
        other=None if lacking else other,
        block_degrees=block_degrees,
    )


def _cells_by_site(keys: np.ndarray, part: str, sums: Sums | None) -> np.ndarray:
    """Count the cells that have predictions of each site: (sites,)."""
    found = np.zeros(0 if sums is None else len(sums.lat))
    for key in keys:
        of_cell = None if sums is None else sums.of(key, part)
        if of_cell is not None:
            found[of_cell[0]] += 1
    return found


def _totals(keys: np.ndarray, part: str, sums: Sums | None) -> Totals | None:
    """Add up the stored predictions of cells; None if one has none, and for a gap."""
    if sums is None or part == GAP or not len(keys):
        return None
    by_site, days = np.zeros((len(sums.lat), 6)), []
    for key in keys:
        if (found := sums.of(key, part)) is None:
            return None
        by_site[found[0]] += found[1]
        if part == "test" and (of_days := sums.by_day(key)) is not None:
            days.append(of_days)
    if not days:
        return Totals(by_site, np.zeros((0, 6)))
    first = min(int(day[0]) for day, _ in days)
    by_day = np.zeros((max(int(day[-1]) for day, _ in days) - first + 1, 6))
    for day, totals in days:
        by_day[day - first] += totals
    return Totals(by_site, by_day)


def _adjust(outcomes: list[_Outcome], analysis: Analysis, *, family: bool, gone: int = 0) -> None:
    """Add verdicts by Holm's method over `outcomes`, and for the declared `family` the column p_adjusted.

    Outcomes that cannot be tested count with p = 1: cells that failed do not make the family smaller. So do
    those that are `gone`, the number of declared contrasts without cells in the study.
    """
    tested = [one for one in outcomes if one.evidence.tests]
    untested = [1.0] * (len(outcomes) - len(tested) + gone)
    inside = [
        min(1.0, one.looks * statistics.equivalence(one.evidence.tests, one.scores.rope))
        if has_direction(one.contrast.part, one.contrast.metric)
        else 1.0
        for one in tested
    ]
    p_of = [one.columns["p"] for one in tested]
    adjusted = statistics.holm([*p_of, *untested])
    inside_adjusted = statistics.holm([*inside, *untested])
    for at, (one, p, inside_p) in enumerate(zip(tested, adjusted, inside_adjusted, strict=False)):
        verdict = judgement.verdict(one.contrast, one.evidence.result.estimate, p, inside_p, analysis.alpha)
        one.columns["verdict"] = verdict
        if family and one.without is not None:
            one.columns |= _columns_without(one, analysis, [p_of, inside], at, len(untested))
        if family:
            one.columns["p_adjusted"] = p
        if verdict == "undecided":
            level = analysis.alpha / one.looks / (len(outcomes) + gone)
            one.columns["more_seeds"] = judgement.more_seeds(
                one.grid.kind,
                one.contrast.part,
                one.grid.units,
                one.grid.parts_of_deal,
                one.scores.differences,
                one.scores.rope,
                level,
            )


def _columns_without(
    one: _Outcome, analysis: Analysis, families: Sequence[list[float]], at: int, untested: int
) -> dict[str, Any]:
    """Judge a contrast without its episode, in its place `at` in the p-values of the family.

    `families` are the p-values of no difference and those of equivalence; the `untested` ones are 1.
    """
    assert one.without is not None
    episode, scores, found = one.without
    result = found.result
    p = inside = 1.0
    if found.tests:
        p = min(1.0, one.looks * result.p)
        inside = min(1.0, one.looks * statistics.equivalence(found.tests, scores.rope))
    adjusted, inside_adjusted = (
        float(statistics.holm([*values[:at], value, *values[at + 1 :], *[1.0] * untested])[at])
        for values, value in zip(families, (p, inside), strict=True)
    )
    verdict = judgement.verdict(one.contrast, result.estimate, adjusted, inside_adjusted, analysis.alpha)
    return {
        "without": episode.label,
        "without_diff": result.estimate,
        "without_low": result.low,
        "without_high": result.high,
        "without_p": p if found.tests else math.nan,
        "without_p_adjusted": adjusted if found.tests else math.nan,
        "without_verdict": verdict if found.tests else "too few",
    }


def _texts(rows: pd.DataFrame, compared: Comparisons | None) -> Callable[[tuple[str, str]], tuple[str, str]]:
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
        if compared is None:
            (undeclared_a, tuned_a), (undeclared_b, tuned_b) = (known[key] for key in pair)
            return _between(undeclared_a, undeclared_b), _between(tuned_a, tuned_b)
        found = compared.of(pair)
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


def _complete(seen: np.ndarray, planned: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Select the arms that have a number in every planned cell and a cell in every fold of their repeats.

    `seen` and `planned` are (arms, folds, seeds), and `repeats` (folds,) has the origin or deal of each fold.
    The result is (arms,).
    """
    arms = len(planned)
    missing = (planned & ~seen).reshape(arms, -1)
    has_cell: np.ndarray = np.any(planned, axis=2)
    every_fold = np.any(has_cell, axis=1)
    for repeat in np.unique(repeats):
        of_repeat = has_cell[:, repeats == repeat]
        every_fold &= of_repeat.all(axis=1) | ((repeat > 0) & ~of_repeat.any(axis=1))
    return ~np.any(missing, axis=1) & every_fold


def _fold_means(scores: np.ndarray) -> np.ndarray:
    """Average over seeds: (folds, seeds) -> (folds,), NaN without a number."""
    seen = np.isfinite(scores)
    count = seen.sum(axis=1)
    total = np.where(seen, scores, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
