"""The GPU share of each training: with `gpu: auto`, as many share a GPU as its memory holds."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from pm25.cell import Cell
from pm25.network_shape import NetworkShape, stack_kind
from pm25.panel import Panel
from sweeps.engine.cluster import Cluster
from sweeps.engine.scheduler import Scheduler, Task
from sweeps.plan import packing
from sweeps.plan.packing import Footprint, Packing
from sweeps.spec.design import Arm
from sweeps.spec.search_space import Space, active, settings_at
from sweeps.spec.study import Study
from sweeps.store.records import Record, Store


class GpuShares:
    """CPUs and GPU share of each training: as the study declares, or by the memory of its network shape."""

    def __init__(self, study: Study, panel: Panel, cluster: Cluster) -> None:
        self._study, self._panel, self._cluster = study, panel, cluster
        declared = study.resources.gpu
        self.cpu = study.resources.cpu
        self.whole = (1.0 if cluster.has_gpus else 0.0) if declared == "auto" else declared
        """Share of a GPU used where no network shape was measured."""
        self._packing: Packing | None = None
        self._stacks: dict[NetworkShape, int] = {}
        self._shapes: dict[Any, NetworkShape] = {}

    def gpu(self, task: Task) -> float:
        """Share of a GPU for a task; a stack has a GPU of its own, and a reference has none."""
        if any(cell.is_reference for cell in task.cells):
            return 0.0
        if task.also:
            return 1.0
        return self.whole if self._packing is None else self._packing.share(map(self._shape, task.cells))

    def stack(self, cell: Cell) -> int:
        """Return how many cells like this one are to be trained in one stack; 1 for a training alone."""
        return self._stacks.get(self._shape(cell), 1) if self.stack_kind(cell) is not None else 1

    def stack_kind(self, cell: Cell) -> Hashable | None:
        """Return what cells of one stack share; None for a cell that cannot be stacked."""
        return stack_kind(cell, self._panel)

    def learn(self, task: Task, record: Record) -> None:
        """Note the memory that an ended task has recorded."""
        if self._packing is not None and "gpu_memory_mb" in record and "stacked" not in record:
            self._packing.learn(map(self._shape, task.cells), record)

    def measure(
        self,
        scheduler: Scheduler,
        store: Store,
        footprints: Callable[[Mapping[NetworkShape, Cell]], Iterable[Footprint]],
        notice: Callable[[str], None],
    ) -> None:
        """With `gpu: auto`, measure the memory of each network shape to come, and set shares by it.

        `footprints` measures the shapes that the store does not know yet; the store keeps the results.
        Raises InputError.
        """
        if self._study.resources.gpu != "auto" or not self.whole:
            return
        wanted = self._shapes_to_come(scheduler)
        known = {found.shape: found for found in packing.read(store)}
        missing = {shape: cell for shape, cell in wanted.items() if shape not in known}
        if missing:
            notice(f"measuring the GPU memory and the speed of {len(missing)} shapes of network, once")
        for found in footprints(missing):
            known[found.shape] = found
            packing.write(store, known.values())
        own = [known[shape] for shape in wanted]
        if not own:
            return
        smallest = [self._cluster.gpu_mb] if self._cluster.gpu_mb is not None else []
        device_mb = min(*smallest, *(found.gpu_mb for found in own))
        spread = math.ceil(scheduler.total / max(1.0, self._cluster.gpus))  # use all GPUs
        most = min(math.floor(self._cluster.cpus_per_gpu / self.cpu + 1e-9), spread)
        context_mb = max(found.context_mb for found in own)
        held_mb = {found.shape: found.memory_mb for found in own}
        self._packing = Packing(device_mb, most, held_mb, context_mb)
        held, shares = [f.memory_mb / 1000 for f in own], [self._packing.share([f.shape]) for f in own]
        notice(
            f"{len(own)} shapes hold {min(held):.1f} to {max(held):.1f} GB of a GPU's "
            f"{device_mb / 1000:.0f}: {_range(1 / max(shares), 1 / min(shares))} to a GPU"
        )
        for why in sorted({found.stacks_failed for found in own} - {""}):
            notice(f"a stack of trainings failed on the GPU, so it is not used: {why}")
        for found in own:
            size = found.stack_size(round(1 / self._packing.share([found.shape])))
            if size > 1:
                self._stacks[found.shape] = size
        if self._stacks:
            gains = [found.stacked[1] for found in own if found.shape in self._stacks]
            notice(
                f"{len(self._stacks)} of them train in stacks of {_range(*_ends(self._stacks.values()))}, "
                f"measured {min(gains):.1f} to {max(gains):.1f} times as fast as one alone"
            )

    def _shapes_to_come(self, scheduler: Scheduler) -> dict[NetworkShape, Cell]:
        """One cell of each shape to come; in an arm that is still searched, the largest cell of its space."""
        found: dict[NetworkShape, Cell] = {}
        for cell in scheduler.to_come():
            if cell.is_reference:
                continue
            trials = scheduler.searches.get(self._study.scope(cell))
            one = (
                cell if trials is None else largest(self._study, trials.arm, trials.space, cell, self._shape)
            )
            found.setdefault(self._shape(one), one)
        return found

    def _shape(self, cell: Cell) -> NetworkShape:
        batch = cell.train.batch_size, cell.train.precision
        what = (cell.variant, cell.fusion, cell.head, cell.model, *batch)
        if what not in self._shapes:
            self._shapes[what] = NetworkShape.of(cell, self._panel, self._study.encoders.random.dim)
        return self._shapes[what]


def _ends(values: Iterable[float]) -> tuple[float, float]:
    """Return the smallest and the largest value."""
    found = [*values]
    return min(found), max(found)


def _range(low: float, high: float) -> str:
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


def largest(study: Study, arm: Arm, space: Space, cell: Cell, shape: Callable[[Cell], NetworkShape]) -> Cell:
    """Return the cell at the point of the arm's space at which its network is largest.

    Each parameter is set in turn to the end of its range, or the choice, at which weights times windows of a
    batch are most.
    """
    point: dict[str, Any] = {}

    def at(trial: Mapping[str, Any]) -> Cell:
        model, train = settings_at(arm, active(space, trial), study.model, study.train)
        return cell.model_copy(update={"model": model, "train": train})

    def size(trial: Mapping[str, Any]) -> tuple[int, int, bool]:
        found = shape(at(trial))
        return found.parameters * found.batch_size, found.parameters, found.precision == "fp32"

    for name, parameter in space.items():
        point[name] = max(parameter.ends(), key=lambda value: size({**point, name: value}))
    return at(point)
