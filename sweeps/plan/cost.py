"""The cost of what a study is missing: hours, disk, the price of each level, and what fits a budget."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import yaml

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.network_shape import NetworkShape
from pm25.settings import Precision
from pm25.splits import SplitIndices
from sweeps.plan.bounds import NOTHING, OF_FEW, Bounds
from sweeps.plan.calibration import Calibration, SplitShape
from sweeps.plan.capacity import Capacity
from sweeps.plan.schedule import POSITION, PlannedTask, levels_of, planned_tasks, wall
from sweeps.plan.speed import Speeds, epochs_of
from sweeps.spec.design import Arm, SplitFactor
from sweeps.state import StudyState
from sweeps.store.records import Record

STORED_BYTES = Bounds(6, 8, 12)
"""Bytes of a stored prediction; 7.2 to 8.4 were measured."""
STORED_CELL_BYTES = 6e3
"""Bytes of a cell's record and history."""


class Level(NamedTuple):
    """The part of a plan that belongs to one level of one factor."""

    factor: str
    level: str
    tasks: int
    worker_hours: Bounds | None


Keep = Mapping[str, Sequence[str]]
"""Levels to keep, by factor; all levels of a factor that is not named."""
EVERYTHING: Keep = MappingProxyType({})


class Subset(NamedTuple):
    """A balanced part of the design: every arm and split, with the first seeds and the first folds."""

    seeds: int
    folds: int
    """Folds of every split; all folds of a split that has fewer."""
    cells: int
    """Number of cells, done ones included."""
    wall_hours: Bounds
    """Time until the missing cells are done."""
    keep: Keep


def _is_kept(levels: Mapping[str, str], keep: Keep) -> bool:
    """Return True if each level is kept; a search trial has no seed, split or fold, and is kept."""
    return all(levels.get(factor) in (None, *kept) for factor, kept in keep.items())


class Estimate:
    """The tasks that a study is missing, and what they cost."""

    def __init__(
        self,
        state: StudyState,
        records: Mapping[str, Record],
        split_indices: Mapping[tuple[str, int], SplitIndices],
        capacity: Capacity,
        calibration: Calibration | None = None,
    ) -> None:
        """Estimate every missing task.

        `records` and `split_indices` are the state's own. `capacity` is the machine or cluster, and
        `calibration` is of its device.
        """
        self.capacity, self._study = capacity, state.study
        self._done = [(state.cells[key], r) for key, r in records.items() if r["state"] == "done"]
        self.speeds = Speeds(state, self._done, split_indices, capacity, calibration)
        self.tasks = planned_tasks(state, records)
        self._grid_levels = [levels_of(state.study, cell) for cell in state.grid]
        self._seeds = tuple(dict.fromkeys(cell.seed for cell in state.grid))
        """Seeds of the grid; of adaptive seeds, those that the study has so far."""
        known: dict[Any, Bounds | None] = {}
        self._task_seconds: list[Bounds | None] = []
        """Seconds of every task; None where a speed is not known."""
        for task in self.tasks:
            first = task.cells[0]
            what = (task.arm, task.trial, first.model, first.train, first.split, first.fold)
            if what not in known:
                known[what] = self._seconds(task)
            self._task_seconds.append(known[what])

    @property
    def shapes(self) -> set[NetworkShape]:
        """Shapes of the networks to train."""
        cells = (cell for task in self.tasks for cell in task.cells)
        return {self.speeds.shape(cell) for cell in cells if not cell.is_reference}

    def uncalibrated(self) -> tuple[dict[NetworkShape, Cell], dict[SplitShape, Cell]]:
        """Shapes and splits that are to be measured, each with a cell that has it.

        These are all without a record or a calibration. `precision_pair` is measured unless records have the
        speed of its network.
        """
        shapes, cuts = self.speeds.uncalibrated(cell for task in self.tasks for cell in task.cells)
        return {**shapes, **self.speeds.untimed(self.precision_pair)}, cuts

    @property
    def precision_pair(self) -> tuple[Cell, ...]:
        """The cell of the grid with the largest network, and the same cell in the other precision.

        Empty if no cell is left, or if the study has cells of both precisions.
        """
        cells = [task.cells[0] for task in self.tasks if not task.trial and not task.arm.is_reference]
        if not cells or len(self._study.precisions) > 1:
            return ()
        own = max(cells, key=lambda cell: self.speeds.shape(cell).flops)
        (other,) = {*get_args(Precision)} - {own.train.precision}
        return own, own.model_copy(update={"train": own.train.model_copy(update={"precision": other})})

    def other_precision(self) -> dict[str, Any] | None:
        """Time of a training step in the other precision over that in the study's; None if not measured."""
        timed = [(cell, self.speeds.timed_step(cell)) for cell in self.precision_pair]
        known = [(cell, seconds) for cell, seconds in timed if seconds is not None]
        if len(known) < 2:
            return None
        (own, own_s), (other, other_s) = known
        ratio = float(f"{other_s / own_s:.2g}")
        return {"precision": other.train.precision, "step": ratio, "arm": Arm.of(own).label}

    def _seconds(self, task: PlannedTask) -> Bounds | None:
        """Seconds of a task, one training after the other; None where a speed is not known."""
        total = NOTHING
        for cell in task.cells:
            speed, n = self.speeds.speed(cell), self.speeds.samples(cell)
            if speed is None:
                return None
            epochs, work = self.speeds.epochs(cell), Bounds(1, 1, 1)
            if task.trial or task.waits:
                epochs, work = self._untuned(task, cell)
            epoch = speed.step.times(math.ceil(n.train / cell.train.batch_size))
            epoch = epoch.plus(speed.scored.times(n.validation))
            network = epoch.times(epochs).plus(speed.scored.times(n.scored))
            total = total.plus(network.times(work)).plus(speed.fixed)
        return total

    def _untuned(self, task: PlannedTask, cell: Cell) -> tuple[Bounds, Bounds]:
        """Epochs of a training with searched settings, and its work over that of the declared settings.

        Both lie between those of the least and the greatest values of the space. A trial may be pruned, and
        `search.epochs` bounds the trials of an arm together.
        """
        declared, study = self._study.search, self._study
        assert declared is not None
        ends = []
        for end in (min, max):
            point = {
                name: end(parameter.ends())
                for name, parameter in declared.space_of(task.arm, study.model, study.train).items()
                if all(isinstance(value, int | float) for value in parameter.ends())
            }
            ends.append(study.cell(task.arm, cell.split, cell.fold, cell.seed, point))
        low, high = (self.speeds.shape(end).flops / self.speeds.shape(cell).flops for end in ends)
        epochs = self.speeds.epochs(cell)
        if any(end.train.max_epochs != cell.train.max_epochs for end in ends):
            short, long = (epochs_of(end.train, []) for end in ends)
            epochs = Bounds(short.low, (short.low + long.high) / 2, long.high)
        if task.trial and declared.pruner is not None:
            first = min(declared.pruner.first_epoch, epochs.low)
            epochs = Bounds(first, (first + epochs.expected) / 2, epochs.high)
        if task.trial and declared.epochs is not None:
            most = declared.epochs / (declared.trials * declared.trainings)
            epochs = Bounds(*(min(most, n) for n in epochs))
        return epochs, Bounds(low, math.sqrt(low * high), high)

    def sources(self) -> dict[str, int]:
        """Number of tasks by the origin of their speed, without tasks of unknown speed."""
        speeds = (self.speeds.speed(task.cells[0]) for task in self.tasks)
        return Counter(speed.source for speed in speeds if speed is not None)

    @property
    def memory_mb(self) -> float | None:
        """Most memory of the calibrated shapes in MB; None if none is calibrated."""
        return self.speeds.memory_mb(cell for task in self.tasks for cell in task.cells)

    # Times; None where a speed is not known

    def worker_hours(
        self, of: tuple[str, str] | None = None, keep: Keep = EVERYTHING, *, on_gpu: bool = False
    ) -> Bounds | None:
        """Hours of all tasks one after the other, or of those at one level (factor, level).

        With `on_gpu`, references do not count, because they use no GPU.
        """
        total = NOTHING
        for task, seconds in self._kept(keep):
            if on_gpu and task.arm.is_reference:
                continue
            if of is None or task.levels.get(of[0]) == of[1]:
                if seconds is None:
                    return None
                total = total.plus(seconds)
        return total.times(1 / 3600)

    def wall_hours(self, keep: Keep = EVERYTHING) -> Bounds | None:
        """Hours until all tasks are done."""
        kept = self._kept(keep)
        known = [seconds for _, seconds in kept if seconds is not None]
        if len(known) < len(kept):
            return None
        concurrent = self._study.search.concurrent if self._study.search is not None else None
        tasks = [task for task, _ in kept]
        ends = (wall(tasks, [s[end] for s in known], self.capacity.slots, concurrent) for end in range(3))
        return Bounds(*ends).times(1 / 3600)

    def levels(self, keep: Keep = EVERYTHING) -> list[Level]:
        """Tasks and hours of each level, for the factors of which several levels are kept."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for levels in self._grid_levels:
            if _is_kept(levels, keep):
                for factor, level in levels.items():
                    counts[factor][level] += 0
        for task, _ in self._kept(keep):
            for factor, level in task.levels.items():
                counts[factor][level] += 1
        counts.pop(POSITION, None)
        on_gpu = self.capacity.gpu > 0
        return [
            Level(factor, level, n, self.worker_hours((factor, level), keep, on_gpu=on_gpu))
            for factor, found in counts.items()
            if len(found) > 1
            for level, n in found.items()
        ]

    def _kept(self, keep: Keep) -> list[tuple[PlannedTask, Bounds | None]]:
        """Kept tasks and their seconds; search trials have no seed, split or fold, and are always kept."""
        return [
            (task, seconds)
            for task, seconds in zip(self.tasks, self._task_seconds, strict=True)
            if _is_kept(task.levels, keep)
        ]

    def disk_mb(self, stored_bytes: int) -> Bounds:
        """Megabytes that the cells to come will store; `stored_bytes` is the size of the done ones."""
        per_window, per_cell = STORED_BYTES, STORED_CELL_BYTES
        done, total = [cell for cell, _ in self._done], NOTHING
        to_run = [cell for task in self.tasks if not task.trial for cell in task.cells]
        weights = self._weights(done)
        windows = sum(self.speeds.samples(cell).stored for cell, _ in self._done)
        if windows:
            per_window, per_cell = OF_FEW.times(max(0, stored_bytes - weights) / windows), 0.0
        for cell in to_run:
            total = total.plus(per_window.times(self.speeds.samples(cell).stored))
        fixed = len(to_run) * per_cell + max(0, self._weights([*done, *to_run]) - weights)
        return total.plus(Bounds(fixed, fixed, fixed)).times(1e-6)

    def _weights(self, cells: Iterable[Cell]) -> int:
        """Bytes of the weights of `cells` that are kept in the end."""
        kept = [cell for cell in cells if self._study.keeps_weights(cell)]
        if isinstance(self._study.keep_weights, str):
            by_fold = self._study.keep_weights == "folds"
            kept = [*{(Arm.of(cell), cell.fold if by_fold else None): cell for cell in kept}.values()]
        return sum(4 * self.speeds.shape(cell).parameters for cell in kept)

    # The part that fits a budget

    def subset(self, seeds: int, folds: int) -> Subset:
        """Keep the first seeds and folds, and all searches. Raises InputError if a speed is not known."""
        keep = {
            "seed": [str(seed) for seed in self._seeds[:seeds]],
            POSITION: [str(position) for position in range(folds)],
        }
        cells = sum(all(levels[name] in keep[name] for name in keep) for levels in self._grid_levels)
        hours = self.wall_hours(keep)
        if hours is None:
            raise InputError(
                "--budget", problem="the speed of a network is not known", fix="plan without --no-calibrate"
            )
        return Subset(seeds, folds, cells, hours, keep)

    def largest(self, wall_hours: float) -> Subset | None:
        """Return the subset with most cells that is expected to end in time; None if there is none.

        Among subsets of equal size, the one with the most even shares of seeds and of folds is chosen.
        """
        present = [self._folds_of(factor) for factor in self._study.design.split]
        n_seeds, n_folds = len(self._seeds), max(present)
        rounds = [(s, f) for s in range(1, n_seeds + 1) for f in range(1, n_folds + 1)]

        def size(seeds: int, folds: int) -> tuple[int, float]:
            per_seed = sum(min(folds, number) for number in present)
            return seeds * per_seed, min(seeds / n_seeds, folds / n_folds)

        for seeds, folds in sorted(rounds, key=lambda one: size(*one), reverse=True):
            found = self.subset(seeds, folds)
            if found.wall_hours.expected <= wall_hours:
                return found
        return None

    def _folds_of(self, factor: SplitFactor) -> int:
        """Return the number of folds that the grid has of a split, fewer than all with adaptive repeats."""
        if factor.repeats is None:
            return len(factor.folds)
        label = factor.split.label
        return 1 + max(int(levels[POSITION]) for levels in self._grid_levels if levels["split"] == label)

    def overrides(self, subset: Subset) -> list[str]:
        """List the arguments of `--set` that reduce the study to a subset."""
        design = self._study.design
        found = []
        if subset.seeds < len(self._seeds):
            found.append(f"design.seed={list(self._seeds[: subset.seeds])}")
        if any(self._folds_of(factor) > subset.folds for factor in design.split):
            plain = [
                factor.split.model_dump(mode="json", exclude_defaults=True)
                | {"kind": factor.split.kind, "fold": list(factor.folds[: subset.folds])}
                for factor in design.split
            ]
            text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False).strip()
            found.append(f"design.split={text}")
        return found

    def content(self, stored_bytes: int, budget: float | None = None) -> dict[str, Any]:
        """Return the plan as JSON values; an estimate is low, expected and high, or null if unknown.

        `stored_bytes` is as in `disk_mb`, and `budget` is in wall hours.
        """
        capacity, workers = self.capacity, self.worker_hours()
        on_gpu = self.worker_hours(on_gpu=True)
        whole = len(self._grid_levels)
        epochs: dict[str, Any] = {}
        of_grid = (cell for task in self.tasks if not task.trial for cell in task.cells)
        for cell in (cell for cell in of_grid if not cell.is_reference):
            epochs.setdefault(cell.split.label, _plain(self.speeds.epochs(cell)))
        found: dict[str, Any] = {
            "room": {**capacity._asdict(), "side_by_side": capacity.slots},
            "jobs": len(self.tasks),
            "search_trials": sum(task.trial for task in self.tasks),
            "epochs": epochs,
            "speeds": self.sources(),
            "memory_mb": self.memory_mb,
            "other_precision": self.other_precision(),
            "wall_hours": _plain(self.wall_hours()),
            "cpu_hours": _plain(workers and workers.times(capacity.cpu)),
            "gpu_hours": _plain(on_gpu and on_gpu.times(capacity.gpu)),
            "disk_mb": _plain(self.disk_mb(stored_bytes)),
            "without": {"unit": capacity.unit, "levels": self._without(self.levels())},
        }
        if budget is not None:
            one, best = self.subset(1, 1), self.largest(budget)
            shown = best or one
            found["budget"] = {
                "hours": budget,
                "fits": "none" if best is None else "all" if best.cells == whole else "part",
                "cells": shown.cells,
                "of": whole,
                "seeds": shown.seeds,
                "folds": shown.folds,
                "wall_hours": _plain(shown.wall_hours),
                "set": self.overrides(shown),
                "without": self._without(self.levels(shown.keep)),
            }
        return found

    def _without(self, levels: Sequence[Level]) -> list[dict[str, Any]]:
        """Levels with their CPU-hours, or GPU-hours if the plan has GPUs."""
        share = self.capacity.gpu or self.capacity.cpu
        return [
            {
                "factor": level.factor,
                "level": level.level,
                "jobs": level.tasks,
                "hours": _plain(level.worker_hours and level.worker_hours.times(share)),
            }
            for level in levels
        ]


def _plain(value: Bounds | None) -> dict[str, float] | None:
    """Round each end to four digits, as a JSON object."""
    if value is None:
        return None
    return {name: float(f"{number:.4g}") for name, number in value._asdict().items()}
