"""What a study will cost: from shapes, measured speeds and records to hours, each with its range."""

import heapq
import math
import platform
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from pm25 import neighbours, splits
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.neighbours import NeighbourSettings
from pm25.network_shape import NetworkShape
from pm25.panel import Panel
from pm25.protocol import Protocol
from pm25.settings import Settings, TrainSettings
from pm25.splits import Split, SplitIndices
from sweeps.spec.design import Arm
from sweeps.spec.study import Study
from sweeps.state import StudyState
from sweeps.store import search_trials
from sweeps.store.records import Record


class Bounds(NamedTuple):
    """A number that is not known: the least, the expected and the most that it may be."""

    low: float
    expected: float
    high: float

    def plus(self, other: "Bounds") -> "Bounds":
        """The sum, as if both were low, or both high: cells share the error of a speed."""
        return Bounds(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, other: "Bounds | float") -> "Bounds":
        """The product, end by end; nothing is negative here."""
        factors = other if isinstance(other, Bounds) else (other, other, other)
        return Bounds(*(a * b for a, b in zip(self, factors, strict=True)))


NOTHING = Bounds(0, 0, 0)

FEW = 5
"""Of so many recorded values the quantiles are taken; of fewer the ends, and these widened by:"""
OF_FEW = Bounds(0.8, 1, 1.25)
CALIBRATED = Bounds(0.85, 1, 1.4)
"""What a calibration of seconds, alone on its machine, leaves open in a run of hours, side by side.

On 2 cores two trainings of `quick` took as long side by side as one alone, 27 to 31 s; of more cores that
share their memory and caches nothing was measured.
"""
TRAIN_PASSES = 4
"""The work of a training window in that of a scored one: forward, backward as much as twice that, update.

3.4 was measured at the published width and 4.4 at width 32, on one CPU thread. It matters only where the
cells that are done had other numbers of samples than those to come.
"""
SUSTAINED_FLOPS = Bounds(15e12, math.sqrt(15 * 2) * 1e12, 2e12)
"""Per second, of a GPU with LSTMs of a few hundred units: far below what is written on it."""
LAUNCH_S = Bounds(5e-6, 15e-6, 40e-6)
"""What a day takes in one LSTM layer, direction and pass on a GPU, however little there is to compute."""
SCORING_BATCH = 1024
"""`pm25.fit.SCORING_BATCH`, whose module needs torch."""
UNMEASURED_FIXED_S = Bounds(0.3, 0.5, 5)
"""Of a cell beside its network (`SplitShape`); 0.2 to 0.5 s were measured with 350,000 samples."""
STORED_BYTES = Bounds(6, 8, 12)
"""Of a stored prediction; 7.2 to 8.4 were measured."""
STORED_CELL_BYTES = 6e3
"""Of a cell's record and history."""
PROCESSORS = frozenset({"x86_64", "AMD64", "aarch64", "arm64", "ppc64le"})
"""A record's device is one of these, which `platform.machine` says, or the name of a GPU."""


class Capacity(NamedTuple):
    """What the plan is for, and what one cell takes of it."""

    cpus: float
    gpus: float
    cpu: float
    gpu: float

    @classmethod
    def of(cls, study: Study, cpus: float, gpus: float) -> "Capacity":
        """Raises InputError when not one cell fits."""
        cpu, gpu = study.resources.cpu, study.resources.gpu
        if gpu == "auto":
            gpu = 1.0 if gpus else 0.0
        if cpu > cpus or gpu > gpus:
            raise InputError(
                f"resources: a cell wants {cpu:g} CPU and {gpu:g} GPU, and the plan is for {cpus:g} CPU and "
                f"{gpus:g} GPU; give --cpus and --gpus, or --set resources.cpu=1 --set resources.gpu=0"
            )
        return cls(cpus, gpus, cpu, gpu)

    @property
    def slots(self) -> int:
        """Cells side by side."""
        by_cpu = math.floor(self.cpus / self.cpu + 1e-9)
        return min(by_cpu, math.floor(self.gpus / self.gpu + 1e-9)) if self.gpu else by_cpu

    @property
    def unit(self) -> str:
        """What is scarce."""
        return "GPU-hours" if self.gpu else "CPU-hours"

    @property
    def threads(self) -> int:
        """Of one cell, as `sweeps.engine.ray_tune` sets them."""
        return max(1, int(self.cpu))


class SplitShape(Settings):
    """What decides how long a cell takes beside its network: cut, scaling, audit, metrics, storing."""

    split: Split
    window: int
    protocol: Protocol
    neighbours: NeighbourSettings | None
    data: str

    @classmethod
    def of(cls, cell: Cell, panel: Panel) -> "SplitShape":
        return cls(
            split=cell.split,
            window=cell.window,
            protocol=cell.protocol,
            neighbours=cell.neighbours,
            data=panel.fingerprint,
        )


class NetworkTime(Settings):
    """What was measured of a shape."""

    shape: NetworkShape
    step_s: tuple[float, ...]
    """Seconds of a training step, one value for each epoch that was timed."""
    scored_s: float
    """Seconds of a scored window."""
    memory_mb: float
    """The most that the process took until then; of a GPU what it held, CUDA's context included."""
    date: str


class SplitTime(Settings):
    """What was measured of a cut."""

    cut: SplitShape
    fixed_s: float
    date: str


class Calibration(Settings):
    """What was measured on one device."""

    device: Literal["cpu", "cuda"]
    name: str
    """Of the processor, or of the GPU."""
    threads: int
    shapes: tuple[NetworkTime, ...] = ()
    cuts: tuple[SplitTime, ...] = ()


class Speed(NamedTuple):
    """Of one shape, in seconds, and where that comes from."""

    step: Bounds
    scored: Bounds
    """Of one window."""
    fixed: Bounds
    """Of a cell, beside its network."""
    source: str


class Samples(NamedTuple):
    """How many one training has."""

    train: int
    validation: int
    """Scored after every epoch."""
    scored: int
    """Once, at the end; the validation samples too."""
    stored: int
    """Whose predictions are kept."""


class PlannedTask(NamedTuple):
    """What a worker takes at a time: a grid cell, or a search trial with all its trainings."""

    arm: Arm
    cells: tuple[Cell, ...]
    levels: Mapping[str, str]
    """By factor of the design; a search trial has its arm's alone."""
    trial: bool = False
    waits: bool = False
    """For the search of its arm."""


class Level(NamedTuple):
    """What of a study goes without one level of one factor."""

    factor: str
    level: str
    jobs: int
    worker_hours: Bounds | None


Keep = Mapping[str, Sequence[str]]
"""By factor, the levels that stay; all of a factor that is not named."""
EVERYTHING: Keep = MappingProxyType({})


class Subset(NamedTuple):
    """A balanced part of the design: every arm and split, with the first seeds and the first folds."""

    seeds: int
    folds: int
    """Of every split; all of one that has fewer."""
    cells: int
    """Those too that are done."""
    wall_hours: Bounds
    """Until what is missing of it is done."""
    keep: Keep


def spread(values: Sequence[float]) -> Bounds:
    """The mean between the tenth and the ninetieth of a hundred; of fewer than `FEW`, the ends widened."""
    mean = statistics.mean(values)
    if len(values) < FEW:
        return Bounds(min(values), mean, max(values)).times(OF_FEW)
    low, high = np.quantile(values, [0.1, 0.9]).tolist()
    return Bounds(min(low, mean), mean, max(high, mean))


def epochs_of(train: TrainSettings, recorded: Sequence[int]) -> Bounds:
    """How many a training takes: by those `recorded` where there are a few, else what patience allows."""
    least = min(train.patience + 1, train.max_epochs)
    if len(recorded) >= FEW and least < train.max_epochs:
        return spread(recorded)
    return Bounds(least, (least + train.max_epochs) / 2, train.max_epochs)


def samples(cell: Cell, parts: SplitIndices, panel: Panel) -> Samples:
    """How many a training has; `parts` is the cut of its split and fold."""
    train, validation, limits = parts.train, parts.validation, cell.train
    tested = [len(part) for part in (parts.test, parts.wr) if part is not None]
    nested = cell.tuning.split if cell.tuning is not None else None
    if cell.tuning is not None and nested is not None:  # cut as pm25.trial does
        side = np.sort(np.concatenate([train, validation]))
        inside = replace(panel, target=neighbours.usable(panel, side, cell.window))
        inner = splits.cut(nested, cell.tuning.fold, inside, cell.window)
        train, validation = inner.train, inner.validation
        tested = [len(part) for part in (inner.test, inner.wr) if part is not None]
    n_train = min(len(train), limits.max_windows or len(train))
    n_validation = min(len(validation), limits.max_validation_windows or len(validation))
    if cell.tuning is not None and nested is None:
        tested = [n_validation]
    n_scored = n_validation + sum(tested)
    return Samples(n_train, n_validation, n_scored, 0 if cell.tuning is not None else sum(tested))


def wall(
    jobs: Sequence[PlannedTask], seconds: Sequence[float], slots: int, together: int | None = None
) -> float:
    """Seconds until all jobs are done, `slots` side by side, begun in the order of `sweeps.engine.scheduler`.

    Cells begin in their order. An arm with a search keeps one of its trials running, and more (at most
    `together`) only while no cell is ready; its own cells are ready when its last trial has ended.
    """
    trials: dict[Arm, deque[int]] = defaultdict(deque)
    held: dict[Arm, list[int]] = defaultdict(list)
    ready: list[int] = []  # a heap
    for i, job in enumerate(jobs):
        if job.trial:
            trials[job.arm].append(i)
        elif job.waits:
            held[job.arm].append(i)
        else:
            ready.append(i)
    running: list[tuple[float, int]] = []
    flying: Counter[Arm] = Counter()

    def release(arm: Arm) -> None:
        for i in held.pop(arm, []):
            heapq.heappush(ready, i)

    def following() -> int | None:
        for arm in sorted(trials, key=lambda arm: flying[arm]):
            if trials[arm] and flying[arm] < (together or slots) and not (flying[arm] and ready):
                flying[arm] += 1
                return trials[arm].popleft()
        return heapq.heappop(ready) if ready else None

    for arm in [arm for arm in held if arm not in trials]:
        release(arm)
    now = 0.0
    while True:
        while len(running) < slots and (begun := following()) is not None:
            heapq.heappush(running, (now + seconds[begun], begun))
        if not running:
            return now
        now, ended = heapq.heappop(running)
        if jobs[ended].trial:
            arm = jobs[ended].arm
            flying[arm] -= 1
            if not trials[arm] and not flying[arm]:
                del trials[arm]
                release(arm)


class Estimate:
    """What is left of a study, and what that costs."""

    def __init__(
        self,
        state: StudyState,
        records: Mapping[str, Record],
        parts: Mapping[tuple[str, int], SplitIndices],
        room: Capacity,
        calibration: Calibration | None = None,
    ) -> None:
        """`records` and `parts` are the state's own; `calibration` is of the device that `room` speaks of."""
        self.room, self._study, self._panel, self._parts = room, state.study, state.panel, parts
        self._calibration = calibration
        self._shape_times = {t.shape: t for t in calibration.shapes} if calibration else {}
        self._cut_times = {t.cut: t.fixed_s for t in calibration.cuts} if calibration else {}
        self._shapes: dict[Any, NetworkShape] = {}
        self._samples: dict[Any, Samples] = {}
        self._done = [(state.cells[key], r) for key, r in records.items() if r["state"] == "done"]
        self._read_records()
        self.jobs = _jobs(state, records)
        self._grid_levels = [_levels(state.study, cell) for cell in state.grid]
        self._seeds = tuple(dict.fromkeys(cell.seed for cell in state.grid))
        """Of adaptive seeds, those that the study has so far."""
        known: dict[Any, Bounds | None] = {}
        self._each: list[Bounds | None] = []
        """Seconds of every job."""
        for job in self.jobs:
            first = job.cells[0]
            what = (job.arm, job.trial, first.model, first.train, first.split, first.fold)
            if what not in known:
                known[what] = self._seconds(job)
            self._each.append(known[what])

    def shape(self, cell: Cell) -> NetworkShape:
        what = (cell.variant, cell.fusion, cell.model, cell.train.batch_size)
        if what not in self._shapes:
            self._shapes[what] = NetworkShape.of(cell, self._panel, self._study.encoders.random.dim)
        return self._shapes[what]

    def samples(self, cell: Cell) -> Samples:
        what = (cell.split, cell.fold, cell.tuning, cell.train.max_windows, cell.train.max_validation_windows)
        if what not in self._samples:
            place = (cell.split.label, cell.fold)
            if cell.tuning is None:
                parts = self._parts[place]
            else:  # of a split of the search, which the grid need not have
                parts = splits.cut(cell.split, cell.fold, self._panel, cell.window)
            self._samples[what] = samples(cell, parts, self._panel)
        return self._samples[what]

    # What is known of the speed

    def uncalibrated(self) -> tuple[dict[NetworkShape, Cell], dict[SplitShape, Cell]]:
        """What neither a record nor the calibration speaks of, each with a cell that has it."""
        shapes: dict[NetworkShape, Cell] = {}
        cuts: dict[SplitShape, Cell] = {}
        for cell in (cell for job in self.jobs for cell in job.cells):
            shape = self.shape(cell)
            if shape in self._rates:
                continue
            if shape not in self._shape_times:
                shapes.setdefault(shape, cell)
            if cell.tuning is None and (cut := SplitShape.of(cell, self._panel)) not in self._cut_times:
                cuts.setdefault(cut, cell)
        return shapes, cuts

    def _read_records(self) -> None:
        """Epochs, and seconds for the work of one scored window, of the cells that are done."""
        self._rates: dict[NetworkShape, dict[str, list[float]]] = {}
        self._epochs: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
        ours = Counter(record["device"] for _, record in self._done if self._is_ours(record))
        self._device = ours.most_common(1)[0][0] if ours else ""
        for cell, record in self._done:
            label, epochs = cell.split.label, record["counts"]["epochs"]
            self._epochs[cell.train.max_epochs, cell.train.patience].append((label, epochs))
            if self._is_ours(record) and record["device"] == self._device:
                shape, n = self.shape(cell), self.samples(cell)
                trained = shape.batch_size * math.ceil(n.train / shape.batch_size)
                passes = epochs * (TRAIN_PASSES * trained + n.validation) + n.scored
                rates = self._rates.setdefault(shape, {}).setdefault(label, [])
                rates.append(record["seconds"] / passes)

    def _is_ours(self, record: Record) -> bool:
        """Whether a record was made on the kind of device that the plan is for."""
        if self.room.gpu:
            return record["device"] not in PROCESSORS
        return bool(record["device"] == platform.machine() and record["threads"] == self.room.threads)

    def speed(self, cell: Cell) -> Speed | None:
        """By done cells of its shape, of its split where there are any; calibrated; by operation counts."""
        shape = self.shape(cell)
        if shape in self._rates:
            by_split = self._rates[shape]
            rates = by_split.get(cell.split.label) or [r for rates in by_split.values() for r in rates]
            scored = spread(rates)
            step = scored.times(TRAIN_PASSES * shape.batch_size)
            return Speed(step, scored, NOTHING, f"measured in done cells on {self._device}")
        fixed = UNMEASURED_FIXED_S
        if self._cut_times:  # a split of the search alone takes what the others take
            mean = statistics.mean(self._cut_times.values())
            fixed = CALIBRATED.times(self._cut_times.get(SplitShape.of(cell, self._panel), mean))
        # Cells that share a GPU may have to wait for each other.
        shared = Bounds(1, 1, max(1.0, 1 / self.room.gpu)) if self.room.gpu else Bounds(1, 1, 1)
        if self._calibration is not None and shape in self._shape_times:
            found = self._shape_times[shape]
            # The quickest is the network's own: whatever else the machine does only slows.
            steps = Bounds(min(found.step_s), min(found.step_s), max(found.step_s))
            margin = CALIBRATED.times(shared)
            return Speed(
                steps.times(margin), margin.times(found.scored_s), fixed, _where(self._calibration, found)
            )
        if not self.room.gpu:
            return None
        forward = Bounds(*(shape.flops / flops for flops in SUSTAINED_FLOPS))
        launches = LAUNCH_S.times(2 * len(shape.units) * shape.window)
        return Speed(
            forward.times(shape.batch_size).plus(launches).times(3).times(shared),
            forward.plus(launches.times(1 / SCORING_BATCH)).times(shared),
            fixed,
            f"NOT measured: operation counts at {SUSTAINED_FLOPS.high / 1e12:g} to "
            f"{SUSTAINED_FLOPS.low / 1e12:g} TFLOP/s; `sweep plan` on a machine with such a GPU measures",
        )

    def epochs(self, cell: Cell) -> Bounds:
        """By the done cells of its split where there are a few, else of the study, else by patience."""
        recorded = self._epochs[cell.train.max_epochs, cell.train.patience]
        own = [epochs for label, epochs in recorded if label == cell.split.label]
        return epochs_of(cell.train, own if len(own) >= FEW else [epochs for _, epochs in recorded])

    def _seconds(self, job: PlannedTask) -> Bounds | None:
        """Of a worker, one training after the other; None where a speed is not known."""
        total = NOTHING
        for cell in job.cells:
            speed, n = self.speed(cell), self.samples(cell)
            if speed is None:
                return None
            epochs, work = self.epochs(cell), Bounds(1, 1, 1)
            if job.trial or job.waits:
                epochs, work = self._untuned(job, cell)
            epoch = speed.step.times(math.ceil(n.train / cell.train.batch_size))
            epoch = epoch.plus(speed.scored.times(n.validation))
            network = epoch.times(epochs).plus(speed.scored.times(n.scored))
            total = total.plus(network.times(work)).plus(speed.fixed)
        return total

    def _untuned(self, job: PlannedTask, cell: Cell) -> tuple[Bounds, Bounds]:
        """Epochs of a training whose settings are still searched for, and its work over the study's own.

        Between the least and the greatest values that the space holds. A trial may be pruned, and the
        trials of an arm end with `search.epochs`.
        """
        declared, study = self._study.search, self._study
        assert declared is not None
        ends = []
        for end in (min, max):
            point = {
                name: end(parameter.ends())
                for name, parameter in declared.space_of(job.arm, study.model, study.train).items()
                if all(isinstance(value, int | float) for value in parameter.ends())
            }
            ends.append(study.cell(job.arm, cell.split, cell.fold, cell.seed, point))
        low, high = (self.shape(end).flops / self.shape(cell).flops for end in ends)
        epochs = self.epochs(cell)
        if any(end.train.max_epochs != cell.train.max_epochs for end in ends):
            short, long = (epochs_of(end.train, []) for end in ends)
            epochs = Bounds(short.low, (short.low + long.high) / 2, long.high)
        if job.trial and declared.pruner is not None:
            first = min(declared.pruner.first_epoch, epochs.low)
            epochs = Bounds(first, (first + epochs.expected) / 2, epochs.high)
        if job.trial and declared.epochs is not None:
            most = declared.epochs / (declared.trials * declared.trainings)
            epochs = Bounds(*(min(most, n) for n in epochs))
        return epochs, Bounds(low, math.sqrt(low * high), high)

    def sources(self) -> dict[str, int]:
        """Where speeds come from, with the number of jobs that go by each; unknown ones are not there."""
        speeds = (self.speed(job.cells[0]) for job in self.jobs)
        return Counter(speed.source for speed in speeds if speed is not None)

    @property
    def memory_mb(self) -> float | None:
        """What the largest of the shapes takes, where one was calibrated."""
        shapes = {self.shape(cell) for job in self.jobs for cell in job.cells}
        found = [time.memory_mb for shape, time in self._shape_times.items() if shape in shapes]
        return max(found, default=None)

    # What the study takes; None where a speed is not known

    def worker_hours(self, of: tuple[str, str] | None = None, keep: Keep = EVERYTHING) -> Bounds | None:
        """Of all jobs one after the other, or of those at one level of a factor."""
        total = NOTHING
        for job, seconds in self._kept(keep):
            if of is None or job.levels.get(of[0]) == of[1]:
                if seconds is None:
                    return None
                total = total.plus(seconds)
        return total.times(1 / 3600)

    def wall_hours(self, keep: Keep = EVERYTHING) -> Bounds | None:
        """Until all jobs are done."""
        kept = self._kept(keep)
        known = [seconds for _, seconds in kept if seconds is not None]
        if len(known) < len(kept):
            return None
        together = self._study.search.concurrent if self._study.search is not None else None
        jobs = [job for job, _ in kept]
        ends = (wall(jobs, [s[end] for s in known], self.room.slots, together) for end in range(3))
        return Bounds(*ends).times(1 / 3600)

    def levels(self, keep: Keep = EVERYTHING) -> list[Level]:
        """What goes without each level, of the factors that keep several."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for levels in self._grid_levels:
            for factor, level in levels.items():
                if level in keep.get(factor, (level,)):
                    counts[factor][level] += 0
        for job, _ in self._kept(keep):
            for factor, level in job.levels.items():
                counts[factor][level] += 1
        return [
            Level(factor, level, n, self.worker_hours((factor, level), keep))
            for factor, found in counts.items()
            if len(found) > 1
            for level, n in found.items()
        ]

    def _kept(self, keep: Keep) -> list[tuple[PlannedTask, Bounds | None]]:
        """Jobs with their seconds; a search's trials have no seed, split or fold, and are kept with any."""
        return [
            (job, seconds)
            for job, seconds in zip(self.jobs, self._each, strict=True)
            if all(job.levels.get(factor) in (None, *levels) for factor, levels in keep.items())
        ]

    def disk_mb(self, stored_bytes: int) -> Bounds:
        """What the cells will store; `stored_bytes` is what those take that are done."""
        per_window, per_cell = STORED_BYTES, STORED_CELL_BYTES
        done, total = [cell for cell, _ in self._done], NOTHING
        to_run = [cell for job in self.jobs if not job.trial for cell in job.cells]
        weights = self._weights(done)
        windows = sum(self.samples(cell).stored for cell, _ in self._done)
        if windows:
            per_window, per_cell = OF_FEW.times(max(0, stored_bytes - weights) / windows), 0.0
        for cell in to_run:
            total = total.plus(per_window.times(self.samples(cell).stored))
        whole = len(to_run) * per_cell + max(0, self._weights([*done, *to_run]) - weights)
        return total.plus(Bounds(whole, whole, whole)).times(1e-6)

    def _weights(self, cells: Iterable[Cell]) -> int:
        """Bytes of the weights that are left of `cells` in the end."""
        kept = [cell for cell in cells if self._study.keeps_weights(cell)]
        if self._study.keep_weights == "winners":
            kept = [*{Arm.of(cell): cell for cell in kept}.values()]
        return sum(4 * self.shape(cell).parameters for cell in kept)

    # What fits a budget

    def subset(self, seeds: int, folds: int) -> Subset:
        """The first `seeds` and `folds`, with the searches. Raises InputError where a speed is not known."""
        keep = {
            "seed": [str(seed) for seed in self._seeds[:seeds]],
            "fold": [str(place) for place in range(1, folds + 1)],
        }
        cells = sum(all(levels[name] in keep[name] for name in keep) for levels in self._grid_levels)
        hours = self.wall_hours(keep)
        if hours is None:
            raise InputError("--budget: no speed is known to judge by; plan without --no-calibrate")
        return Subset(seeds, folds, cells, hours, keep)

    def largest(self, wall_hours: float) -> Subset | None:
        """The subset with the most cells that is expected to end in time; None where there is none.

        Of subsets with as many cells, that which keeps the most even shares of seeds and of folds.
        """
        design = self._study.design
        n_seeds, n_folds = len(self._seeds), max(len(factor.folds) for factor in design.split)
        rounds = [(s, f) for s in range(1, n_seeds + 1) for f in range(1, n_folds + 1)]

        def size(seeds: int, folds: int) -> tuple[int, float]:
            per_seed = sum(min(folds, len(factor.folds)) for factor in design.split)
            return seeds * per_seed, min(seeds / n_seeds, folds / n_folds)

        for seeds, folds in sorted(rounds, key=lambda one: size(*one), reverse=True):
            found = self.subset(seeds, folds)
            if found.wall_hours.expected <= wall_hours:
                return found
        return None

    def overrides(self, subset: Subset) -> list[str]:
        """What `--set` takes to make the study this subset."""
        design = self._study.design
        found = []
        if subset.seeds < len(self._seeds):
            found.append(f"design.seed={list(self._seeds[: subset.seeds])}")
        if any(len(factor.folds) > subset.folds for factor in design.split):
            plain = [
                factor.split.model_dump(mode="json", exclude_defaults=True)
                | {"kind": factor.split.kind, "fold": list(factor.folds[: subset.folds])}
                for factor in design.split
            ]
            text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False).strip()
            found.append(f"design.split={text}")
        return found

    def content(self, stored_bytes: int, budget: float | None = None) -> dict[str, Any]:
        """All of it as JSON values: an estimate is low, expected and high, or null where unknown.

        `stored_bytes` as for `disk_mb`; `budget` in wall hours.
        """
        room, workers = self.room, self.worker_hours()
        whole = len(self._grid_levels)
        epochs: dict[str, Any] = {}
        for cell in (cell for job in self.jobs if not job.trial for cell in job.cells):
            epochs.setdefault(cell.split.label, _plain(self.epochs(cell)))
        found: dict[str, Any] = {
            "room": {**room._asdict(), "side_by_side": room.slots},
            "jobs": len(self.jobs),
            "search_trials": sum(job.trial for job in self.jobs),
            "epochs": epochs,
            "speeds": self.sources(),
            "memory_mb": self.memory_mb,
            "wall_hours": _plain(self.wall_hours()),
            "cpu_hours": _plain(workers and workers.times(room.cpu)),
            "gpu_hours": _plain(workers and workers.times(room.gpu)),
            "disk_mb": _plain(self.disk_mb(stored_bytes)),
            "without": {"unit": room.unit, "levels": self._without(self.levels())},
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
        """Levels with their CPU-hours, or GPU-hours where the plan has GPUs."""
        share = self.room.gpu or self.room.cpu
        return [
            {
                "factor": level.factor,
                "level": level.level,
                "jobs": level.jobs,
                "hours": _plain(level.worker_hours and level.worker_hours.times(share)),
            }
            for level in levels
        ]


def _jobs(state: StudyState, recorded: Mapping[str, Record]) -> list[PlannedTask]:
    """The grid's cells that have no record, in its order, after the trials of the searches they wait for."""
    waiting, keys = {*state.waiting}, {cell: key for key, cell in state.cells.items()}
    waited_for = {Arm.of(cell) for cell in waiting}
    found = []
    for arm, trials in state.searches.items():
        if arm in waited_for and not trials.over:
            job = PlannedTask(
                arm, tuple(search_trials.trainings(state.study, arm, {})), _arm_levels(arm), trial=True
            )
            found += [job] * (trials.search.trials - len(trials.ended))
    for cell in state.grid:
        if cell in waiting or keys[cell] not in recorded:
            levels = _levels(state.study, cell)
            found.append(PlannedTask(Arm.of(cell), (cell,), levels, waits=cell in waiting))
    return found


def _levels(study: Study, cell: Cell) -> dict[str, str]:
    """By factor; that of the fold is its place in the split's list, from 1."""
    folds = next(factor.folds for factor in study.design.split if factor.split.label == cell.split.label)
    place = folds.index(cell.fold) + 1
    return _arm_levels(Arm.of(cell)) | {
        "split": cell.split.label,
        "fold": str(place),
        "seed": str(cell.seed),
    }


def _arm_levels(arm: Arm) -> dict[str, str]:
    levels: dict[str, str] = {"variant": arm.variant}
    if arm.fusion is not None:
        levels["fusion"] = arm.fusion
    if arm.variant == "none":
        levels["head"] = arm.head or "plain"
    return levels


def _where(calibration: Calibration, found: NetworkTime) -> str:
    threads = ""
    if calibration.device == "cpu":
        threads = f", {calibration.threads} thread{'s' if calibration.threads > 1 else ''}"
    return f"calibrated on {calibration.name}{threads}, {found.date}"


def _plain(value: Bounds | None) -> dict[str, float] | None:
    """Four digits of each end."""
    if value is None:
        return None
    return {name: float(f"{number:.4g}") for name, number in value._asdict().items()}
