"""The searches of a study: what the store holds of their trials, and which settings they chose."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pm25.cell import Cell, Tuning
from pm25.errors import InputError
from sweeps.spec.design import Arm
from sweeps.spec.search_space import Point, Search, Space, within
from sweeps.spec.study import Study
from sweeps.store.records import Record, Store


@dataclass
class ArmTrials:
    """The trials of one arm, as far as they belong to the study as it is declared now."""

    arm: Arm
    search: Search
    space: Space
    first: list[dict[str, Any]]
    """Points to try first."""
    ended: list[Record] = field(default_factory=list)
    """Records in the order of their numbers, at most `search.trials`."""
    begun: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Numbers and points of the trials that were begun and have not ended."""

    @property
    def epochs(self) -> int:
        """Trained by the ended trials together."""
        return sum(record["epochs"] for record in self.ended)

    @property
    def spent(self) -> bool:
        """Whether no further trial is to be started beside those begun."""
        search = self.search
        return len(self.ended) + len(self.begun) >= search.trials or (
            search.epochs is not None and self.epochs >= search.epochs
        )

    @property
    def over(self) -> bool:
        return self.spent and not self.begun

    @property
    def left(self) -> int:
        """How many trials have not ended; with a budget of epochs there may be fewer to come."""
        return len(self.begun) if self.spent else self.search.trials - len(self.ended)

    @property
    def numbers(self) -> set[int]:
        """Of the trials that were begun, ended or not."""
        return {record["number"] for record in self.ended} | {number for number, _ in self.begun}

    @property
    def next_number(self) -> int:
        used = self.numbers
        return next(number for number in range(len(used) + 1) if number not in used)

    def best(self) -> Record | None:
        """The trial that the search chose so far; None where none has a score."""
        done = [record for record in self.ended if record["state"] == "done"]
        front = pareto([self.losses(record) for record in done])
        if not front:
            return None
        among = [done[i] for i in front]
        return among[pick([self.losses(record) for record in among], self.search)]

    def values(self, record: Record) -> list[float]:
        """The objectives of a trial that is done, in the metric's unit."""
        return [record["scores"][regime][self.search.metric] for regime in self.search.objective]

    def losses(self, record: Record) -> tuple[float, ...]:
        """The objectives, smaller being better."""
        sign = 1 if self.search.smaller_is_better else -1
        return tuple(sign * value for value in self.values(record))

    def settled(self) -> dict[str, Any] | None:
        """The settings of the arm's grid: None until the search is over, or if no trial of it succeeded."""
        best = self.best() if self.over else None
        return None if best is None else dict(best["params"])

    @property
    def outline(self) -> str:
        """How far it is and what it chose, in one line."""
        states = [record["state"] for record in self.ended]
        text = f"{self.arm.label}: {len(states)} of {self.search.trials} trials"
        told = [f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states]
        text += f" ({', '.join(told)})" if told else ""
        text += f", {self.epochs} epochs"
        if (best := self.best()) is None:
            return text
        point = ", ".join(f"{name} {_short(value)}" for name, value in best["params"].items())
        values = zip(self.search.objective, self.values(best), strict=True)
        scores = ", ".join(f"{regime} {value:.3f}" for regime, value in values)
        chose = "chose" if self.over else "best so far"
        return f"{text}; {chose} {point} (validation {self.search.metric}: {scores})"

    def add(self, record: Record) -> None:
        """A trial has ended."""
        self.begun = [(number, point) for number, point in self.begun if number != record["number"]]
        self.ended = sorted([*self.ended, record], key=lambda r: r["number"])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pareto(losses: list[tuple[float, ...]]) -> list[int]:
    """Positions of those that no other is at least as good as in all objectives, and better in one."""

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    among = [min(losses)] if losses and len(losses[0]) == 1 else losses  # of one objective the best will do
    return [i for i, own in enumerate(losses) if not any(beats(other, own) for other in among)]


def pick(front: list[tuple[float, ...]], search: Search) -> int:
    """The position of the trial to take from a Pareto front (`Search.pick`); of equals the first."""
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


def trainings(study: Study, arm: Arm, point: Point) -> list[Cell]:
    """What one trial trains: every placement's folds with every seed of the search."""
    assert study.search is not None
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
    """What a point is on this data: a hash of its trainings' keys."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]


def trial_key(point: str, number: int) -> str:
    """Name of a trial's record: the point (`digest`), and which of the arm's trials it is."""
    return hashlib.sha256(f"{point}/{number}".encode()).hexdigest()[:20]


def read(study: Study, store: Store, key: Callable[[Cell], str]) -> dict[Arm, ArmTrials]:
    """The searches of the study's arms, in their order; none where the study declares none.

    A stored trial counts when its point, trained as the study is declared now, has the keys it had:
    other data, placements, seeds or fixed settings are another search. `key` names a cell.
    """
    if study.search is None:
        return {}
    found = {}
    for arm in study.arms():
        space = study.search.space_of(arm, study.model, study.train)
        first = study.search.first_points(arm, space, study.model, study.train)
        found[arm] = ArmTrials(arm, study.search, space, first)
    by_label = {arm.label: trials for arm, trials in found.items()}
    begun, ended = begun_and_ended(store)
    # What has ended comes first: a space that was narrowed and widened again may hold a number twice.
    for name, trial in sorted(begun.items(), key=lambda item: (item[0] not in ended, item[1]["number"])):
        trials = by_label.get(trial["arm"])
        if (
            trials is None
            or trial["number"] >= study.search.trials
            or trial["number"] in trials.numbers
            or not within(trials.space, trial["params"])
        ):
            continue
        keys = [key(cell) for cell in trainings(study, trials.arm, trial["params"])]
        if name != trial_key(digest(keys), trial["number"]):
            continue
        if name in ended:
            trials.ended.append(ended[name])
        else:
            trials.begun.append((trial["number"], trial["params"]))
    return found


def begun_and_ended(store: Store) -> tuple[dict[str, Any], dict[str, Record]]:
    """All trials in the store by key: how they began, and the records of those that have ended."""
    trials = store.search
    keys = sorted(trials.keys())
    begun = {}
    for key in keys:
        content = trials.read_file(key, BEGUN)
        if content is None:
            continue
        try:
            trial = json.loads(content)
        except ValueError:
            trial = None
        if not isinstance(trial, dict) or not {"arm", "number", "params"} <= trial.keys():
            _, path = trials.location(trials.folder, key, BEGUN)
            raise InputError(
                f"{path}: not what a trial began with; delete the file, and the trial runs again"
            )
        begun[key] = trial
    return begun, trials.records(keys)


BEGUN = "begun.json"
"""Written when a trial is handed out: its arm, number and params."""


def tuned(searches: Mapping[Arm, ArmTrials]) -> dict[Arm, dict[str, Any]]:
    """The settings that the searches chose, of the arms whose search is over."""
    settled = {arm: trials.settled() for arm, trials in searches.items()}
    return {arm: point for arm, point in settled.items() if point is not None}
