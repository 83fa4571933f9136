"""Trials of a study's searches in the store, and the settings that the searches chose."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from pm25.cell import Cell, Tuning
from pm25.text import parse_json
from sweeps.spec.design import Arm, FoldArm, Scope, arm_of
from sweeps.spec.search_space import Point, Search, Space, within
from sweeps.spec.study import Study
from sweeps.store import integrity
from sweeps.store.integrity import STARTED_FILE, trial_key
from sweeps.store.records import Record, Store, read_intact


@dataclass
class ArmTrials:
    """Trials of one arm that belong to the study as it is declared now."""

    arm: Arm
    search: Search
    space: Space
    """Parameters of the arm."""
    first: list[dict[str, Any]]
    """Points that are tried first."""
    ended: list[Record] = field(default_factory=list)
    """Records of the trials that have ended, by number; at most `search.trials`."""
    started: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Numbers and points of the trials that were started and have not ended."""
    damaged: list[Record] = field(default_factory=list)
    """Damaged records that are, or may be, trials of this search; the search waits until they are retried."""
    fold: FoldArm | None = None
    """Fold of the arm that a nested search tunes; None if the search tunes the complete arm."""

    @property
    def scope(self) -> Scope:
        """Cells whose settings the trials choose."""
        return self.fold or self.arm

    @property
    def epochs(self) -> int:
        """Number of epochs that the ended trials have trained together."""
        return sum(record["epochs"] for record in self.ended)

    @property
    def exhausted(self) -> bool:
        """True if no further trial may be started, as while one is damaged."""
        search = self.search
        return (
            bool(self.damaged)
            or len(self.ended) + len(self.started) >= search.trials
            or (search.epochs is not None and self.epochs >= search.epochs)
        )

    @property
    def finished(self) -> bool:
        """True if the search is finished: no trial is running or damaged, and no further one may start."""
        return self.exhausted and not self.started and not self.damaged

    @property
    def remaining(self) -> int:
        """Largest number of trials that are still to end; a budget of epochs may allow fewer."""
        return len(self.started) if self.exhausted else self.search.trials - len(self.ended)

    @property
    def numbers(self) -> set[int]:
        """Numbers of all trials that were started, ended or not."""
        return {record["number"] for record in self.ended} | {number for number, _ in self.started}

    @property
    def next_number(self) -> int:
        """Lowest number that no trial has."""
        used = self.numbers
        return next(number for number in range(len(used) + 1) if number not in used)

    def best(self) -> Record | None:
        """Return the record of the best trial so far; None if no trial has a score."""
        done = [record for record in self.ended if record["state"] == "done"]
        front = pareto([self.losses(record) for record in done])
        if not front:
            return None
        among = [done[i] for i in front]
        return among[pick([self.losses(record) for record in among], self.search)]

    def unscored(self, record: Record) -> str:
        """Describe an objective that a finished trial lacks; empty if it has all of them."""
        if record["state"] == "done":
            for regime in self.search.objective:
                if self.search.metric not in record["scores"].get(regime, {}):
                    return f"scores.{regime}.{self.search.metric} is missing"
        return ""

    def values(self, record: Record) -> list[float]:
        """Return the objectives of a finished trial, in the unit of the metric."""
        return [record["scores"][regime][self.search.metric] for regime in self.search.objective]

    def losses(self, record: Record) -> tuple[float, ...]:
        """Return the objectives of a finished trial as losses: smaller is better."""
        sign = 1 if self.search.smaller_is_better else -1
        return tuple(sign * value for value in self.values(record))

    def chosen_point(self) -> dict[str, Any] | None:
        """Return the chosen settings for the arm's grid.

        None until the search is finished, or if none of its trials succeeded.
        """
        best = self.best() if self.finished else None
        return None if best is None else dict(best["params"])

    @property
    def outline(self) -> str:
        """Progress of the search and its choice, in one line."""
        states = [record["state"] for record in self.ended]
        text = f"{self.scope.label}: {len(states)} of {self.search.trials} trials"
        others = [f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states]
        text += f" ({', '.join(others)})" if others else ""
        text += f", {self.epochs} epochs"
        if (best := self.best()) is None:
            return text
        point = ", ".join(f"{name} {_short(value)}" for name, value in best["params"].items())
        values = zip(self.search.objective, self.values(best), strict=True)
        scores = ", ".join(f"{regime} {value:.3f}" for regime, value in values)
        chose = "chose" if self.finished else "best so far"
        return f"{text}; {chose} {point} (validation {self.search.metric}: {scores})"

    def add(self, record: Record) -> None:
        """Add the record of a trial that has ended."""
        self.started = [(number, point) for number, point in self.started if number != record["number"]]
        self.ended = sorted([*self.ended, record], key=lambda r: r["number"])


def _short(value: Any) -> str:
    """Format a setting, real numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pareto(losses: list[tuple[float, ...]]) -> list[int]:
    """Return the positions of the Pareto front: points that no other point dominates.

    A point dominates another if it is at least as good in all objectives and better in one.
    """

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    # With one objective, comparison with the best point is enough.
    candidates = [min(losses)] if losses and len(losses[0]) == 1 else losses
    return [i for i, own in enumerate(losses) if not any(dominates(other, own) for other in candidates)]


def pick(front: list[tuple[float, ...]], search: Search) -> int:
    """Return the position of the point to choose from a Pareto front (`Search.pick`), the first of equals."""
    if len(search.objective) > 1 and search.pick != "balanced":
        own = search.objective.index(search.pick)
        return min(range(len(front)), key=lambda i: (front[i][own], front[i]))
    ends = [(min(values), max(values)) for values in zip(*front, strict=True)]

    def distance(losses: tuple[float, ...]) -> float:
        return math.hypot(
            *(
                (x - low) / (high - low) if high > low else 0.0
                for x, (low, high) in zip(losses, ends, strict=True)
            )
        )

    return min(range(len(front)), key=lambda i: distance(front[i]))


def trainings(study: Study, scope: Scope, point: Point) -> list[Cell]:
    """Return the cells of one trial: all folds of every placement, with every seed of the search.

    In a nested search, they are those of the scope's own fold.
    """
    assert study.search is not None
    arm = arm_of(scope)
    if isinstance(scope, FoldArm):
        split = next(one.split for one in study.design.split if one.split.label == scope.split)
        return [study.cell(arm, split, scope.fold, seed, point, Tuning()) for seed in study.search.seed]
    return [
        study.cell(
            arm,
            placement.split,
            fold,
            seed,
            point,
            Tuning(split=placement.inner, fold=placement.inner_fold),
        )
        for placement in study.search.split
        for fold in placement.folds
        for seed in study.search.seed
    ]


def digest(keys: list[str]) -> str:
    """Return a hash of the keys of a point's trainings, which identifies the point on this data."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]


def place(scope: Scope) -> dict[str, Any]:
    """Return the fields of a start file and of a record that name the scope of a trial."""
    fold = {"split": scope.split, "fold": scope.fold} if isinstance(scope, FoldArm) else {}
    return {"arm": arm_of(scope).label, **fold}


def read(study: Study, store: Store, key: Callable[[Cell], str]) -> dict[Scope, ArmTrials]:
    """Read the trials of every scope, in the order of the arms; empty if the study declares no search.

    A stored trial counts if its trainings have the same keys as its point has in the study as it is declared
    now. With other data, placements, seeds or fixed settings it belongs to another search. `key` computes the
    key of a cell. A damaged trial that does not say to which search it belongs counts for every search.
    """
    if study.search is None:
        return {}
    found: dict[Scope, ArmTrials] = {}
    for scope in study.scopes():
        arm, fold = arm_of(scope), scope if isinstance(scope, FoldArm) else None
        space = study.search.space_of(arm, study.model, study.train)
        first = study.search.first_points(arm, space, study.model, study.train)
        found[scope] = ArmTrials(arm, study.search, space, first, fold=fold)
    by_place = {tuple(place(scope).values()): trials for scope, trials in found.items()}
    stored = _stored(store)
    for trial in stored:
        if trial.start is None:
            for trials in found.values():
                trials.damaged += [trial.record] if trial.record is not None else []
    known = [trial for trial in stored if trial.start is not None]
    # Ended trials come first: after a space was narrowed and widened again, two trials may have one number.
    for trial in sorted(known, key=lambda one: (one.record is None, one.number)):
        assert trial.start is not None
        place_of = tuple(trial.start[field] for field in ("arm", "split", "fold") if field in trial.start)
        trials_of, params = by_place.get(place_of), trial.start["params"]
        if (
            trials_of is None
            or trial.number >= study.search.trials
            or trial.number in trials_of.numbers
            or not within(trials_of.space, params)
        ):
            continue
        keys = [key(cell) for cell in trainings(study, trials_of.scope, params)]
        if trial.key != trial_key(digest(keys), trial.number):
            continue
        if trial.record is None:
            trials_of.started.append((trial.number, params))
        elif trial.record["state"] == "damaged":
            trials_of.damaged.append(trial.record)
        elif problem := trials_of.unscored(trial.record):
            _, path = store.search.location("search", trial.key, "result.json")
            trials_of.damaged.append(integrity.damaged(trial.key, path, problem))
        else:
            trials_of.ended.append(trial.record)
    return found


class _Stored(NamedTuple):
    """Files of one trial."""

    key: str
    start: dict[str, Any] | None
    """Fields `arm`, `number` and `params`, and `split` and `fold` of a nested search; None if damaged."""
    record: Record | None
    """Record of an ended trial, or a damaged one."""

    @property
    def number(self) -> int:
        """Number of the trial in its search."""
        return int(self.start["number"]) if self.start is not None else -1


def _stored(store: Store) -> list[_Stored]:
    """Read all trials, in the order of their keys.

    The record of an ended trial says itself which trial it is; the start file names the others. A start
    file that cannot be read makes its trial damaged.
    """
    trials = store.search
    keys = sorted(trials.keys())
    records = trials.records(keys)
    found = []
    for key in keys:
        record = records.get(key)
        if record is not None and record.keys() >= {"arm", "number", "params"}:
            found.append(_Stored(key, record, record))
            continue
        start, problem = started(trials, key)
        if problem:
            _, path = trials.location(trials.folder, key, STARTED_FILE)
            record = record or integrity.damaged(key, path, problem)
        if start is not None or record is not None:
            found.append(_Stored(key, start, record))
    return found


def started(trials: Store, key: str) -> tuple[dict[str, Any] | None, str]:
    """Read the start file of a trial; returns its fields, None without a valid file, and what is wrong."""
    try:
        content = read_intact(*trials.location(trials.folder, key, STARTED_FILE))
    except integrity.Damaged as error:
        return None, str(error)
    if content is None:
        return None, ""
    try:
        start = parse_json(content)
        _Start.model_validate(start)
    except ValueError:
        return None, f"{STARTED_FILE} does not have the arm, the number and the params of a trial"
    if "point" in start and trial_key(start["point"], start["number"]) != key:
        return None, f"{STARTED_FILE} is that of another trial"
    fields: dict[str, Any] = start
    return fields, ""


class _Start(BaseModel):
    """Fields of a start file."""

    model_config = ConfigDict(strict=True)

    arm: str
    number: NonNegativeInt
    params: dict[str, Any]
    point: str = ""
    split: str = ""
    fold: NonNegativeInt = 0


def tuned(searches: Mapping[Scope, ArmTrials]) -> dict[Scope, dict[str, Any]]:
    """Return the settings that the finished searches chose, by scope."""
    chosen = {scope: trials.chosen_point() for scope, trials in searches.items()}
    return {scope: point for scope, point in chosen.items() if point is not None}
