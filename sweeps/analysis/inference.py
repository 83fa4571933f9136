"""What a study's cells say: means with intervals, paired contrasts with tests, ranks and claims, as frames.

Everything is over units (see `sweeps.analysis.statistics`): seeds are averaged within their fold first. Rows
are those of `sweeps.analysis.results.rows`. *Declared* contrasts are tested as one family, Holm's: those of
the claims, or without any every arm against 'none' on every split's test set. Others have exploratory
intervals and p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from pm25.metrics import METRICS
from sweeps.analysis import comparability, labels, statistics
from sweeps.spec.claims import Analysis, Claim
from sweeps.store.records import Record

PARTS = {"test": "test_", "wr": "wr_", "gap": "gap_"}
GAP = "gap"
SEED = 0
"""Of the bootstrap: the same store gives the same bytes."""
CHUNK = 64
"""Trainings resampled at a time: 50 MB with 1,400 sites and 1,000 resamples."""

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


class Sums(Protocol):
    """Sums over stored predictions by cell, part and site (`sweeps.analysis.artifacts.Predicted`)."""

    lat: np.ndarray
    lon: np.ndarray

    def of(self, key: str, part: str = "test") -> tuple[np.ndarray, np.ndarray] | None: ...


class Grid(NamedTuple):
    """A split's cells as arrays; metrics are (arms, folds, seeds), NaN where a cell has no number."""

    split: str
    regime: str
    overlap: float
    arms: list[str]
    folds: list[int]
    seeds: list[int]
    row: np.ndarray
    """Position of each cell's row, -1 where the study has none."""
    rows: pd.DataFrame

    def column(self, name: str, fill: Any) -> np.ndarray:
        values = self.rows[name].to_numpy()
        return np.where(self.row >= 0, values[self.row], fill)

    def values(self, part: str, metric: str) -> np.ndarray:
        if part == GAP:
            return self.values("test", metric) - self.values("wr", metric)
        return self.column(f"{PARTS[part]}{metric}", math.nan).astype(np.float64)

    @property
    def parts(self) -> list[str]:
        return ["test", "wr", GAP] if self.regime == labels.OOR else ["test"]


class Spec(NamedTuple):
    """What one contrast is about: labels of arms and of the split."""

    arm: str
    other: str
    split: str
    part: str
    metric: str
    fold: int | None = None


def has_merit(part: str, metric: str) -> bool:
    """Whether less, or more, is better: a bias has two sides, and a model that is bad everywhere no gap."""
    return part != GAP and metric != "mbe"


def regime_of(regime: str, part: str) -> str:
    """WR, OoR or gap: of a part of a split of the given regime."""
    return GAP if part == GAP else labels.WR if part == "wr" else regime


def grids(rows: pd.DataFrame) -> dict[str, Grid]:
    """The splits of a study in the order of its rows."""
    cells = labels.with_arm(rows)
    found = {}
    for split, group in cells.groupby("split", sort=False):
        group = group.reset_index(drop=True)
        arms, folds, seeds = (_ordered(group["arm"]), sorted(set(group["fold"])), sorted(set(group["seed"])))
        place = np.full((len(arms), len(folds), len(seeds)), -1)
        place[
            group["arm"].map({arm: i for i, arm in enumerate(arms)}),
            np.searchsorted(folds, group["fold"]),
            np.searchsorted(seeds, group["seed"]),
        ] = np.arange(len(group))
        overlap = 1 / max(int(group["folds"].iloc[0]) - 1, 1)
        regime = str(group["regime"].iloc[0])
        found[str(split)] = Grid(str(split), regime, overlap, arms, folds, seeds, place, group)
    return found


def means(
    rows: pd.DataFrame, analysis: Analysis, metric: str = "rmse", sums: Sums | Resampled | None = None
) -> pd.DataFrame:
    """One line per arm x split x part, in the order of the rows; numbers in the metric's unit.

    mean and sd (ddof 1) are over the `n` cells that have a number. low and high respect the pairing
    (`statistics.paired_intervals`, level 1 - alpha) over the arms that have all their cells; iqm is the
    interquartile mean of cells; rank the mean rank over units, 1 the best. boot_low and boot_high are
    percentiles of the mean over resampled sites, out of region over blocks of them.
    """
    resampled = sums if isinstance(sums, Resampled) else Resampled(rows, analysis, metric, sums)
    lines: list[dict[str, Any]] = []
    for grid in grids(rows).values():
        state, marked = grid.column("state", ""), grid.column("marked", "")
        for part in grid.parts:
            values = grid.values(part, metric)
            seen, planned = np.isfinite(values), grid.row >= 0
            units = _unit_means(values)
            whole = _whole(seen, planned)
            bounds = np.full((len(grid.arms), 2), math.nan)
            bounds[whole] = statistics.paired_intervals(units[whole], grid.overlap, 1 - analysis.alpha)
            rank = np.full(len(grid.arms), math.nan)
            if whole.any() and part != GAP:
                rank[whole] = statistics.ranks(_losses(units[whole].T, metric)).mean
            for i, arm in enumerate(grid.arms):
                own = values[i][seen[i]]
                first = grid.rows.iloc[grid.row[i][planned[i]][0]]
                keys = grid.column("key", "")[i][seen[i]]
                lines.append(
                    {
                        "arm": arm,
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
                        "n_marked": int((marked[i] != "").sum()),
                        "rank": rank[i],
                        **_bounds(resampled.mean(keys, part), analysis.alpha),
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
    also: Sequence[Spec] = (),
) -> pd.DataFrame:
    """One line per contrast: every arm against 'none' on every part of every split, and those of the claims.

    After them those of `also`, which are declared by nobody.

    diff is arm - other, over (fold, seed) pairs, seeds averaged within folds; low and high its interval of
    level 1 - alpha by the study's test; p that of no difference; p_adjusted Holm's over the declared family,
    NaN where it is not declared. The family is that of the plan: a contrast whose test sets are enough, but
    not those with a number, has its place in it. verdict speaks of arm against a region of practical
    equivalence as wide as `rope`: better, worse, equal, undecided, or too few units to say; '' of gaps and
    biases, of which less is not better: they have no rope either. p_better, p_equal and p_worse are posterior
    probabilities (`statistics.posterior`). more_seeds: so many further ones would decide it at its present
    mean (<NA>: it is decided, no number of seeds would, or one seed cannot tell). With adaptive seeds `looks`
    are how many seeds each look has: a contrast is judged where its seeds stopped, or at the last look that
    is whole, p times the number of looks. boot_low and boot_high are percentiles of the difference over
    resampled sites or blocks, NaN of a single one. n_better counts pairs, of a bias by its size. unfair and
    tuned say what else differs in the pairs (`fairness.summary`): of pairs without 'none' from their
    `records` by key, or without these from how either differs from 'none'.
    """
    found = grids(rows)
    declared = _declared(found, analysis, claims)
    every = [
        Spec(arm, labels.BASELINE, grid.split, part, metric)
        for grid in found.values()
        if labels.BASELINE in grid.arms
        for part in grid.parts
        for arm in grid.arms
        if arm != labels.BASELINE
    ]
    specs = list(dict.fromkeys([*every, *declared, *also]))
    judged = [
        _judge(spec, found[spec.split], analysis, looks, len(declared) if spec in declared else 0)
        for spec in specs
    ]
    _settle([line for line in judged if line["spec"] in declared and line["planned"]], analysis, family=True)
    for line in judged:
        if line["spec"] not in declared:
            _settle([line], analysis, family=False)
        if not has_merit(line["spec"].part, line["spec"].metric):
            line["verdict"], line["more_seeds"] = "", None
    resampled = sums if isinstance(sums, Resampled) else Resampled(rows, analysis, metric, sums)
    texts = _texts(rows, records)
    lines = []
    for line in judged:
        spec: Spec = line["spec"]
        if spec.metric != metric:
            continue
        pairs = line["pairs"]
        weights = line["weights"]
        drawn = resampled.difference(pairs, weights, spec.part)
        apart = [texts(pair) for pair in pairs]
        unfair, tuned = ([text[i] for text in apart] for i in (0, 1))
        lines.append(
            line
            | spec._asdict()
            | {"regime": regime_of(found[spec.split].regime, spec.part), "declared": spec in declared}
            | _bounds(drawn, analysis.alpha)
            | {"n_clusters": resampled.clusters(pairs, spec.part)}
            | {
                "unfair": "; ".join(comparability.summary(unfair)),
                "tuned": "; ".join(comparability.summary(tuned)),
            }
            | {"keys_arm": "; ".join(a for a, _ in pairs), "keys_other": "; ".join(b for _, b in pairs)}
        )
    frame = pd.DataFrame(lines, columns=list(_CONTRASTS))
    return frame.astype(_CONTRASTS)


def claims(
    rows: pd.DataFrame,
    analysis: Analysis,
    declared: Sequence[Claim],
    sums: Sums | None = None,
    looks: Sequence[int] = (),
    records: Mapping[str, Record] | None = None,
) -> pd.DataFrame:
    """One line per claim: its text, and its contrast (`contrasts`).

    The verdict is on the claim: 'supported' (better), 'refuted' (worse, or practically equal), 'undecided',
    'too few' or 'no cells'.
    """
    by_metric: dict[str, pd.DataFrame] = {
        metric: contrasts(rows, analysis, declared, metric, sums, looks, records)
        for metric in dict.fromkeys(claim.metric for claim in declared)
    }
    return claims_of(by_metric, declared)


def claims_of(by_metric: Mapping[str, pd.DataFrame], declared: Sequence[Claim]) -> pd.DataFrame:
    """`claims` of contrasts that are there already, by metric."""
    outcomes = {"better": "supported", "worse": "refuted", "equal": "refuted"}
    lines = []
    for claim in declared:
        frame, spec = by_metric[claim.metric], _spec(claim)
        same = (frame[["arm", "other", "split", "part"]] == [*spec[:4]]).all(axis=1)
        same &= frame["fold"].isna() if spec.fold is None else frame["fold"].eq(spec.fold).fillna(False)
        line = frame[same]
        if line.empty or not line["n_pairs"].iloc[0]:
            lines.append({**_absent(spec), "claim": claim.claim, "verdict": "no cells"})
            continue
        first: dict[str, Any] = {str(name): value for name, value in line.iloc[0].items()}
        verdict = outcomes.get(first["verdict"], first["verdict"])
        lines.append({**first, "claim": claim.claim, "verdict": verdict})
    kinds = {"claim": "str", **_CONTRASTS}
    return pd.DataFrame(lines, columns=list(kinds)).astype(kinds)


def ranking(rows: pd.DataFrame, analysis: Analysis, metric: str = "rmse") -> pd.DataFrame:
    """Mean ranks over units of the arms with all their cells, with Nemenyi's critical difference."""
    lines = []
    for grid in grids(rows).values():
        for part in [part for part in grid.parts if part != GAP]:
            values = grid.values(part, metric)
            whole = _whole(np.isfinite(values), grid.row >= 0)
            if whole.sum() < 2:
                continue
            units = _unit_means(values)[whole]
            found = statistics.ranks(_losses(units.T, metric), analysis.alpha)
            for arm, rank in zip(np.array(grid.arms)[whole], found.mean, strict=True):
                lines.append(
                    {
                        "split": grid.split,
                        "part": part,
                        "regime": regime_of(grid.regime, part),
                        "metric": metric,
                        "arm": arm,
                        "mean_rank": rank,
                        "critical_difference": found.critical_difference,
                        "friedman_p": found.friedman_p,
                        "n_units": units.shape[1],
                    }
                )
    return pd.DataFrame(lines, columns=list(_RANKING)).astype(_RANKING)


def _declared(found: Mapping[str, Grid], analysis: Analysis, declared: Sequence[Claim]) -> dict[Spec, None]:
    """The family, in its order."""
    if declared:
        specs = [_spec(claim) for claim in declared]
        return {
            spec: None
            for spec in specs
            if spec.split in found and {spec.arm, spec.other} <= {*found[spec.split].arms}
        }
    return {
        Spec(arm, labels.BASELINE, grid.split, "test", analysis.metric): None
        for grid in found.values()
        if labels.BASELINE in grid.arms
        for arm in grid.arms
        if arm != labels.BASELINE
    }


def _spec(claim: Claim) -> Spec:
    arm, other = (labels.arm(choice.variant, choice.fusion) for choice in (claim.better, claim.than))
    return Spec(arm, other, claim.on.split, claim.on.part, claim.metric, claim.on.fold)


def _absent(spec: Spec) -> dict[str, Any]:
    numbers = {name: math.nan for name, kind in _CONTRASTS.items() if kind == "float64"}
    counts = {name: 0 for name, kind in _CONTRASTS.items() if kind == "int64"}
    texts = {name: "" for name, kind in _CONTRASTS.items() if kind == "str"}
    return numbers | counts | texts | spec._asdict() | {"declared": True}


def _judge(spec: Spec, grid: Grid, analysis: Analysis, looks: Sequence[int], family: int) -> dict[str, Any]:
    """The contrast by itself; what hangs on the family is added by `_settle`.

    With `looks`, one of a `family` is judged where its seeds stopped (`statistics.stopped`), others at the
    last look that is whole.
    """
    a, b = grid.arms.index(spec.arm), grid.arms.index(spec.other)
    at = slice(None) if spec.fold is None else [f for f, fold in enumerate(grid.folds) if fold == spec.fold]
    values = grid.values(spec.part, spec.metric)
    arm, other = values[a][at], values[b][at]
    rows_arm, rows_other = grid.row[a][at], grid.row[b][at]
    if looks:
        ended = np.isin(grid.column("state", ""), ["done", "failed"])
        both = (ended[a][at] & ended[b][at]).all(axis=0)
        size = looks[0]
        for size in (size for size in looks if size <= both.size and both[:size].all()):
            made = _paired(spec, arm[:, :size], other[:, :size], analysis)
            how = (grid.overlap, made.rope, analysis.alpha, len(looks), family, analysis.test)
            if family and statistics.stopped(made.differences, *how):
                break
        arm, other, rows_arm, rows_other = (x[:, :size] for x in (arm, other, rows_arm, rows_other))
    differences, mean_arm, mean_other, rope = _paired(spec, arm, other, analysis)
    paired = np.isfinite(differences)
    units = statistics.unit_means(differences)
    keys = grid.rows["key"].to_numpy()
    weights = (paired / np.maximum(paired.sum(axis=1, keepdims=True), 1))[paired] / max(len(units), 1)
    better = differences > 0 if spec.metric == "r2" else differences < 0
    if spec.metric == "mbe" and spec.part != GAP:
        better = np.abs(arm) < np.abs(other)
    both_planned = ((rows_arm >= 0) & (rows_other >= 0)).any(axis=1)
    alpha = analysis.alpha / max(len(looks), 1)
    line: dict[str, Any] = {
        "spec": spec,
        "n_pairs": int(paired.sum()),
        "n_units": len(units),
        "n_seeds": int(paired.any(axis=0).sum()),
        "n_better": int(better[paired].sum()),
        "mean_arm": mean_arm,
        "mean_other": mean_other,
        "diff": float(units.mean()) if len(units) else math.nan,
        "test": TESTS[analysis.test],
        "rope": rope,
        "looks": max(len(looks), 1),
        "planned": statistics.enough_units(int(both_planned.sum()), alpha, analysis.test),
        "pairs": [*zip(keys[rows_arm[paired]], keys[rows_other[paired]], strict=True)],
        "weights": weights,
    }
    return line | _tested(spec, differences, units, grid.overlap, rope, analysis, line["looks"])


class _Paired(NamedTuple):
    differences: np.ndarray
    """(folds, seeds), NaN where one of the two has no number."""
    mean_arm: float
    mean_other: float
    rope: float


def _paired(spec: Spec, arm: np.ndarray, other: np.ndarray, analysis: Analysis) -> _Paired:
    differences = arm - other
    sides = (np.where(np.isfinite(differences), side, math.nan) for side in (arm, other))
    means = [statistics.unit_means(side) for side in sides]
    mean_arm, mean_other = (float(side.mean()) if len(side) else math.nan for side in means)
    rope = analysis.rope if spec.metric == "r2" else analysis.rope * abs(mean_other)
    if not has_merit(spec.part, spec.metric):
        rope = math.nan
    return _Paired(differences, mean_arm, mean_other, rope)


def _tested(
    spec: Spec,
    differences: np.ndarray,
    units: np.ndarray,
    overlap: float,
    rope: float,
    analysis: Analysis,
    looks: int,
) -> dict[str, Any]:
    nothing = dict.fromkeys(("low", "high", "p", "p_adjusted", "p_better", "p_equal", "p_worse"), math.nan)
    alpha = analysis.alpha / looks
    if not statistics.enough_units(len(units), alpha, analysis.test):
        return nothing | {"shifted": None, "verdict": "too few", "more_seeds": None}
    test = statistics.corrected_t(units, overlap)
    if analysis.test == "wilcoxon":
        low, high = statistics.walsh_interval(units, 1 - alpha)
        p = statistics.wilcoxon(units)
    else:
        low, high = statistics.interval(test, 1 - alpha)
        p = test.p
    interval = {"low": low, "high": high, "p": min(1.0, looks * p)}
    if not has_merit(spec.part, spec.metric):
        return nothing | interval | {"shifted": None, "verdict": "", "more_seeds": None}
    below, inside, above = statistics.posterior(test, rope)
    better, worse = (above, below) if spec.metric == "r2" else (below, above)
    return (
        nothing
        | interval
        | {
            "p_better": better,
            "p_equal": inside,
            "p_worse": worse,
            "shifted": statistics.shifted(units, overlap, rope, analysis.test),
            "verdict": "",
            "matrix": differences,
            "overlap": overlap,
            "more_seeds": None,
        }
    )


def _settle(lines: list[dict[str, Any]], analysis: Analysis, *, family: bool) -> None:
    """Verdicts, with p adjusted over the lines, and in a family p_adjusted."""
    tested = [line for line in lines if line["shifted"] is not None]
    rest = [1.0] * (len(lines) - len(tested))  # cells that failed make no family smaller
    beyond, inside, adjusted = (
        statistics.holm([*p, *rest])[: len(tested)]
        for p in (
            [min(1.0, 2 * line["looks"] * min(line["shifted"][:2])) for line in tested],
            [min(1.0, line["looks"] * line["shifted"].inside) for line in tested],
            [line["p"] for line in tested],
        )
    )
    for line, beyond_p, inside_p, p in zip(tested, beyond, inside, adjusted, strict=True):
        spec, found = line["spec"], line["shifted"]
        below, above = (beyond_p / 2, 1.0) if found.below < found.above else (1.0, beyond_p / 2)
        line["verdict"] = statistics.decided(
            below, above, inside_p, analysis.alpha, smaller_is_better=spec.metric != "r2"
        )
        if family:
            line["p_adjusted"] = p
        if line["verdict"] == "undecided" and analysis.test == "corrected_t":
            level = analysis.alpha / line["looks"] / len(lines)
            line["more_seeds"] = statistics.more_seeds(line["matrix"], line["overlap"], line["rope"], level)


class Resampled:
    """One metric of single trainings on resampled clusters; in place of sums it serves many frames."""

    def __init__(self, rows: pd.DataFrame, analysis: Analysis, metric: str, sums: Sums | None) -> None:
        self._sums, self._metric, self._resamples = sums, metric, analysis.bootstrap
        if sums is None:
            return
        block = np.floor(np.stack([sums.lat, sums.lon]) / analysis.block_degrees)
        _, blocks = np.unique(block, axis=1, return_inverse=True)
        self._of = {labels.WR: np.arange(len(sums.lat)), labels.OOR: blocks.reshape(-1)}
        regimes = dict(zip(rows["key"], rows["regime"], strict=True))
        self._done = {
            (key, part): self._of[regime_of(regimes[key], part)]
            for key in rows.loc[rows["state"] == "done", "key"]
            for part in ("test", "wr")
            if sums.of(key, part) is not None
        }
        self._made: dict[tuple[str, str], np.ndarray] = {}
        for stream, cluster in enumerate(self._of.values()):
            places = [place for place, own in self._done.items() if own is cluster]
            if places:
                self._draw(places, cluster, stream)

    def _draw(self, places: list[tuple[str, str]], cluster: np.ndarray, stream: int) -> None:
        """Sites and blocks are drawn by themselves: a gap is one minus the other."""
        assert self._sums is not None
        number = int(cluster.max()) + 1
        weights = statistics.bootstrap_weights(number, self._resamples, (SEED, stream))
        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            totals = np.stack([self._totals(place, cluster, number) for place in some])
            drawn = statistics.cluster_bootstrap(weights, totals, self._metric)
            self._made |= dict(zip(some, drawn, strict=True))

    def _totals(self, place: tuple[str, str], cluster: np.ndarray, number: int) -> np.ndarray:
        assert self._sums is not None
        found = self._sums.of(*place)
        assert found is not None
        return statistics.cluster_totals(cluster[found[0]], found[1], number)

    def mean(self, keys: Iterable[str], part: str) -> np.ndarray | None:
        """(resamples,) of the mean over cells; None where a cell has no predictions."""
        keys = list(keys)
        return self._weighted([(key, 1 / len(keys)) for key in keys], part)

    def difference(
        self, pairs: Sequence[tuple[str, str]], weights: Sequence[float], part: str
    ) -> np.ndarray | None:
        """(resamples,) of the difference over pairs of cells."""
        terms = [
            (key, sign * weight)
            for pair, weight in zip(pairs, weights, strict=True)
            for key, sign in zip(pair, (1, -1), strict=True)
        ]
        return self._weighted(terms, part)

    def _weighted(self, terms: list[tuple[str, float]], part: str) -> np.ndarray | None:
        if self._sums is None or not terms:
            return None
        if part == GAP:
            outside, inside = (self._weighted(terms, own) for own in ("test", "wr"))
            return None if outside is None or inside is None else outside - inside
        number = self._number([key for key, _ in terms], part)
        if number is None or number < 2:  # which have no spread
            return None
        total = np.zeros(self._resamples)
        for key, weight in terms:
            total += weight * self._made[key, part]
        return total

    def clusters(self, pairs: Sequence[tuple[str, str]], part: str) -> int | None:
        """How many clusters the pairs' test samples lie in."""
        return self._number([key for key, _ in pairs], "test" if part == GAP else part)

    def _number(self, keys: Sequence[str], part: str) -> int | None:
        if self._sums is None or not keys or any((key, part) not in self._made for key in keys):
            return None
        seen = [self._done[key, part][self._sums.of(key, part)[0]] for key in keys]  # type: ignore[index]
        return len(np.unique(np.concatenate(seen)))


def _bounds(drawn: np.ndarray | None, alpha: float) -> dict[str, float]:
    """Percentiles; resamples without a sample of some training are left out, up to half of them."""
    if drawn is None or np.isfinite(drawn).mean() < 0.5:
        return {"boot_low": math.nan, "boot_high": math.nan}
    low, high = np.quantile(drawn[np.isfinite(drawn)], [alpha / 2, 1 - alpha / 2])
    return {"boot_low": float(low), "boot_high": float(high)}


def _texts(rows: pd.DataFrame, records: Mapping[str, Record] | None) -> Any:
    """(unfair, tuned) of a pair of keys."""
    known = {
        key: (unfair, tuned)
        for key, unfair, tuned in zip(
            rows["key"], rows["unfair"].fillna(""), rows["tuned"].fillna(""), strict=True
        )
    }
    plain = set(rows.loc[(rows["variant"] == labels.BASELINE) & rows["fusion"].isna(), "key"])

    def of(pair: tuple[str, str]) -> tuple[str, str]:
        if pair[1] in plain:
            return known[pair[0]]
        if records is None:
            (unfair, tuned), (their_unfair, their_tuned) = (known[key] for key in pair)
            return _between(unfair, their_unfair), _between(tuned, their_tuned)
        found = comparability.differences(records[pair[0]], records[pair[1]])
        return "; ".join(found.undeclared), "; ".join(found.tuned)

    return of


def _between(mine: str, theirs: str) -> str:
    """How two cells differ, from how either differs from the same third: 'name value against value; ...'."""
    own, other = (
        {
            name: values.rpartition(" against ")
            for name, _, values in (text.partition(" ") for text in side.split("; ") if text)
        }
        for side in (mine, theirs)
    )
    texts = []
    for name in sorted(own.keys() | other.keys()):
        a = own[name][0] if name in own else other[name][2]
        b = other[name][0] if name in other else own[name][2]
        if a != b:
            texts.append(f"{name} {a} against {b}")
    return "; ".join(texts)


def _whole(seen: np.ndarray, planned: np.ndarray) -> np.ndarray:
    """(arms,): which have a number in every cell, and cells in every fold; both are (arms, folds, seeds)."""
    arms = len(planned)
    missing = (planned & ~seen).reshape(arms, -1)
    every_fold: np.ndarray = np.all(np.any(planned, axis=2), axis=1)
    return ~np.any(missing, axis=1) & every_fold


def _unit_means(values: np.ndarray) -> np.ndarray:
    """(arms, folds, seeds) -> (arms, folds), NaN without a number."""
    seen = np.isfinite(values)
    count = seen.sum(axis=2)
    total = np.where(seen, values, 0).sum(axis=2)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _losses(values: np.ndarray, metric: str) -> np.ndarray:
    """Smaller is better."""
    return -values if METRICS[metric].better == "higher" else np.abs(values)


def _ordered(labels: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(labels))
