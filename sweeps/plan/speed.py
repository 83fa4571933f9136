"""The speed of a study's trainings: from done cells, else from a calibration, else from operation counts."""

import math
import platform
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pm25 import neighbours, splits
from pm25.cell import Cell
from pm25.network_shape import NetworkShape
from pm25.panel import Panel
from pm25.settings import TrainSettings
from pm25.splits import SplitIndices
from pm25.text import counted
from sweeps.plan.bounds import FEW, NOTHING, Bounds, spread
from sweeps.plan.calibration import Calibration, NetworkTime, SplitShape
from sweeps.plan.capacity import Capacity
from sweeps.state import StudyState
from sweeps.store.records import Record

CALIBRATED = Bounds(0.85, 1, 1.4)
"""Factors on calibrated times, which were measured in seconds with nothing else on the machine.

On 2 cores, two trainings of `quick` side by side took as long as one alone, 27 to 31 s. Machines with more
cores, which share memory and caches, were not measured.
"""
TRAIN_PASSES = 4
"""Work of training on a window over that of scoring it: forward, backward (twice as much) and update.

Measured on one CPU thread: 3.4 at the published width and 4.4 at width 32. The factor matters only where done
cells have other numbers of samples than the cells to come.
"""
SUSTAINED_FLOPS = Bounds(15e12, math.sqrt(15 * 2) * 1e12, 2e12)
"""Operations per second of a GPU with LSTMs of a few hundred units, far below its nominal rate."""
LAUNCH_S = Bounds(5e-6, 15e-6, 40e-6)
"""Least time of one day in one LSTM layer, direction and pass on a GPU, whatever the width."""
SCORING_BATCH = 1024
"""Copy of `pm25.fit.SCORING_BATCH`, whose module needs torch."""
REFERENCE_S: Mapping[str, Bounds] = {
    "idw": Bounds(0.5, 1, 3),
    "climatology": Bounds(0.3, 0.5, 2),
    "persistence": Bounds(0.3, 0.5, 2),
    "kriging": Bounds(10, 20, 60),
    "boosting": Bounds(1.5, 3, 8),
    "boosting-place": Bounds(1.5, 3, 8),
}
"""Seconds of a reference beside `UNMEASURED_FIXED_S`, for a panel of `REFERENCE_SITE_DAYS`.

Cells of inverse distance, climatology and boosting took 0.6, 0.4 and 2.7 s (`sweeps/bench/README.md`). The
others were not measured.
"""
REFERENCE_SITE_DAYS = 350_000
"""Site-days of a panel for which `REFERENCE_S` is stated, about those of 2021."""
UNMEASURED_FIXED_S = Bounds(0.3, 0.5, 5)
"""Time of a cell beside its network (`SplitShape`); 0.2 to 0.5 s were measured with 350,000 samples."""
PROCESSORS = frozenset({"x86_64", "AMD64", "aarch64", "arm64", "ppc64le"})
"""Values of a record's device that mean a CPU (`platform.machine`); others are names of GPUs."""


class Speed(NamedTuple):
    """Seconds that one network shape takes, and where they come from."""

    step: Bounds
    """Seconds of a training step."""
    scored: Bounds
    """Seconds of a scored window."""
    fixed: Bounds
    """Seconds of a cell beside its network."""
    source: str
    """Origin of the speed, for the reader of the plan."""


class Samples(NamedTuple):
    """Numbers of samples of one training."""

    train: int
    validation: int
    """Samples that are scored after every epoch."""
    scored: int
    """Samples that are scored once, at the end, the validation samples included."""
    stored: int
    """Samples whose predictions are stored."""


def epochs_of(train: TrainSettings, recorded: Sequence[int]) -> Bounds:
    """Number of epochs of a training: by `recorded` trainings if there are `FEW`, else by its patience."""
    least = min(train.patience + 1, train.max_epochs)
    if len(recorded) >= FEW and least < train.max_epochs:
        return spread(recorded)
    return Bounds(least, (least + train.max_epochs) / 2, train.max_epochs)


def samples(cell: Cell, indices: SplitIndices, panel: Panel) -> Samples:
    """Count the samples of a training; `indices` are those of its split and fold."""
    train, validation, limits = indices.train, indices.validation, cell.train
    tested = [len(found) for found in (indices.test, indices.wr) if found is not None]
    nested = cell.tuning.split if cell.tuning is not None else None
    if cell.tuning is not None and nested is not None:  # cut as pm25.trial does
        side = np.sort(np.concatenate([train, validation]))
        with_targets = replace(panel, target=neighbours.known_targets(panel, side, cell.window))
        inner = splits.cut(nested, cell.tuning.fold, with_targets, cell.window)
        train, validation = inner.train, inner.validation
        tested = [len(found) for found in (inner.test, inner.wr) if found is not None]
    n_train = min(len(train), limits.max_windows or len(train))
    n_validation = min(len(validation), limits.max_validation_windows or len(validation))
    if cell.tuning is not None and nested is None:
        tested = [n_validation]
    n_scored = n_validation + sum(tested)
    return Samples(n_train, n_validation, n_scored, 0 if cell.tuning is not None else sum(tested))


class Speeds:
    """Speeds, epochs and numbers of samples of a study's cells."""

    def __init__(
        self,
        state: StudyState,
        done: Sequence[tuple[Cell, Record]],
        indices: Mapping[tuple[str, int], SplitIndices],
        capacity: Capacity,
        calibration: Calibration | None = None,
    ) -> None:
        """Read the speeds of `done` cells.

        `indices` are those of each split's label and fold. `calibration` is of the device that `capacity`
        describes.
        """
        self._study, self._panel, self._indices, self._capacity = (
            state.study,
            state.panel,
            indices,
            capacity,
        )
        self._calibration = calibration
        self._shape_times = {t.shape: t for t in calibration.shapes} if calibration else {}
        self._split_times = {t.cut: t.fixed_s for t in calibration.cuts} if calibration else {}
        self._shapes: dict[Any, NetworkShape] = {}
        self._samples: dict[Any, Samples] = {}
        self._read_records(done)

    def shape(self, cell: Cell) -> NetworkShape:
        """Shape of a cell's network."""
        what = (cell.variant, cell.fusion, cell.model, cell.train.batch_size, cell.train.precision)
        if what not in self._shapes:
            self._shapes[what] = NetworkShape.of(cell, self._panel, self._study.encoders.random.dim)
        return self._shapes[what]

    def samples(self, cell: Cell) -> Samples:
        """Numbers of samples of a cell."""
        what = (cell.split, cell.fold, cell.tuning, cell.train.max_windows, cell.train.max_validation_windows)
        if what not in self._samples:
            panel = self._panel
            if cell.tuning is None:
                indices = self._indices[cell.split.label, cell.fold]
            else:  # a split of the search, which the grid need not have
                if cell.reserve is not None:
                    panel = splits.only_reserved(cell.reserve, panel, cell.window)
                indices = splits.cut(cell.split, cell.fold, panel, cell.window)
            self._samples[what] = samples(cell, indices, panel)
        return self._samples[what]

    def uncalibrated(self, cells: Iterable[Cell]) -> tuple[dict[NetworkShape, Cell], dict[SplitShape, Cell]]:
        """Shapes and splits without a record or a calibration, each with a cell that has it."""
        shapes: dict[NetworkShape, Cell] = {}
        cuts: dict[SplitShape, Cell] = {}
        for cell in (cell for cell in cells if not cell.is_reference):
            shape = self.shape(cell)
            if shape in self._rates:
                continue
            if shape not in self._shape_times:
                shapes.setdefault(shape, cell)
            if cell.tuning is None and (cut := SplitShape.of(cell, self._panel)) not in self._split_times:
                cuts.setdefault(cut, cell)
        return shapes, cuts

    def untimed(self, cells: Iterable[Cell]) -> dict[NetworkShape, Cell]:
        """Shapes without a calibration, each with a cell that has it; none if records have one of them."""
        found = {self.shape(cell): cell for cell in cells}
        if found.keys() & self._rates.keys():
            return {}
        return {shape: cell for shape, cell in found.items() if shape not in self._shape_times}

    def timed_step(self, cell: Cell) -> float | None:
        """Calibrated seconds of a training step of a cell's shape; None if it was not measured."""
        timed = self._shape_times.get(self.shape(cell))
        return None if timed is None else min(timed.step_s)

    def _read_records(self, done: Sequence[tuple[Cell, Record]]) -> None:
        """Read the epochs of the done cells, and their seconds per unit of work: scoring one window."""
        self._rates: dict[NetworkShape, dict[str, list[float]]] = {}
        self._epochs: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
        self._reference_seconds: dict[str, dict[str, list[float]]] = {}
        for cell, record in ((cell, record) for cell, record in done if cell.is_reference):
            by_split = self._reference_seconds.setdefault(cell.variant, {})
            by_split.setdefault(cell.split.label, []).append(record["seconds"])
        done = [(cell, record) for cell, record in done if not cell.is_reference]
        devices = Counter(record["device"] for _, record in done if self._is_comparable(record))
        self._device = devices.most_common(1)[0][0] if devices else ""
        for cell, record in done:
            label, epochs = cell.split.label, record["counts"]["epochs"]
            self._epochs[cell.train.max_epochs, cell.train.patience].append((label, epochs))
            if self._is_comparable(record) and record["device"] == self._device:
                shape, n = self.shape(cell), self.samples(cell)
                trained = shape.batch_size * math.ceil(n.train / shape.batch_size)
                passes = epochs * (TRAIN_PASSES * trained + n.validation) + n.scored
                rates = self._rates.setdefault(shape, {}).setdefault(label, [])
                rates.append(record["seconds"] / passes)

    def _is_comparable(self, record: Record) -> bool:
        """True if a record was made on the kind of device that the plan is for."""
        if self._capacity.gpu:
            return record["device"] not in PROCESSORS
        return bool(record["device"] == platform.machine() and record["threads"] == self._capacity.threads)

    def speed(self, cell: Cell) -> Speed | None:
        """Speed of a cell; None if it is not known.

        The sources are, in this order: done cells of its shape, and of its split if there are any; the
        calibration; for a GPU, operation counts. A reference has no steps: its time is that of done cells of
        the same reference, and of its split if there are any, else an estimate.
        """
        if cell.is_reference:
            return self._reference(cell)
        shape = self.shape(cell)
        if shape in self._rates:
            by_split = self._rates[shape]
            rates = by_split.get(cell.split.label) or [r for rates in by_split.values() for r in rates]
            scored = spread(rates)
            step = scored.times(TRAIN_PASSES * shape.batch_size)
            return Speed(step, scored, NOTHING, f"measured in done cells on {self._device}")
        fixed = UNMEASURED_FIXED_S
        if self._split_times:  # a split that only the search has takes the mean of the others
            mean = statistics.mean(self._split_times.values())
            fixed = CALIBRATED.times(self._split_times.get(SplitShape.of(cell, self._panel), mean))
        # Cells that share a GPU wait for each other never, always, or by the geometric mean of both.
        gpu, gain = self._capacity.gpu, self._capacity.gain
        sharers = max(1.0, 1 / gpu) if gpu else 1.0
        shared = Bounds(1, math.sqrt(sharers), sharers).times(1 / gain)
        if self._calibration is not None and shape in self._shape_times:
            found = self._shape_times[shape]
            # The quickest epoch is the network's own time: other work on the machine only adds to it.
            steps = Bounds(min(found.step_s), min(found.step_s), max(found.step_s))
            margin = CALIBRATED.times(shared)
            source = _source(self._calibration, found)
            return Speed(steps.times(margin), margin.times(found.scored_s), fixed, source)
        if not gpu:
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

    def _reference(self, cell: Cell) -> Speed:
        """Speed of a reference, whose seconds do not depend on a network."""
        if by_split := self._reference_seconds.get(cell.variant):
            own = by_split.get(cell.split.label) or [s for seconds in by_split.values() for s in seconds]
            return Speed(NOTHING, NOTHING, spread(own), "references: measured in done cells")
        size = self._panel.target.size / REFERENCE_SITE_DAYS
        seconds = REFERENCE_S[cell.variant].times(size).plus(UNMEASURED_FIXED_S)
        return Speed(NOTHING, NOTHING, seconds, "references: estimated from the size of the table")

    def epochs(self, cell: Cell) -> Bounds:
        """Number of epochs: by `FEW` done cells of its split, else of the study, else by patience."""
        recorded = self._epochs[cell.train.max_epochs, cell.train.patience]
        own = [epochs for label, epochs in recorded if label == cell.split.label]
        return epochs_of(cell.train, own if len(own) >= FEW else [epochs for _, epochs in recorded])

    def memory_mb(self, cells: Iterable[Cell]) -> float | None:
        """Most memory of the cells' calibrated shapes in MB; None if none is calibrated."""
        shapes = {self.shape(cell) for cell in cells if not cell.is_reference}
        found = [time.memory_mb for shape, time in self._shape_times.items() if shape in shapes]
        return max(found, default=None)


def _source(calibration: Calibration, found: NetworkTime) -> str:
    threads = ""
    if calibration.device == "cpu":
        threads = f", {counted(calibration.threads, 'thread')}"
    return f"calibrated on {calibration.name}{threads}, {found.date}"
