"""The GPU share of each training: with `gpu: auto`, as many share a GPU as its memory holds."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.network_shape import NetworkShape
from pm25.panel import Panel
from pm25.settings import Settings
from sweeps.engine.cluster import Cluster
from sweeps.engine.scheduler import Scheduler, Task
from sweeps.spec.design import Arm
from sweeps.spec.search_space import Space, active, settings_at
from sweeps.spec.study import Study
from sweeps.store import records as files
from sweeps.store.records import Record, Store

MARGIN = 1.15
"""Factor on measured memory: allocators fragment, and validation batches of two trainings may coincide."""
SPARE = 0.03
"""Fraction of a GPU's memory that stays free."""


class Footprint(Settings):
    """Measured GPU memory of one training."""

    shape: NetworkShape
    memory_mb: float
    """Peak memory of the training, CUDA's context included."""
    context_mb: float
    """Memory of CUDA's context alone."""
    gpu: str
    """Name of the GPU."""
    gpu_mb: float
    """Memory of the GPU."""


class _Footprints(Settings):
    """The content of a study's `footprints.json`."""

    footprints: tuple[Footprint, ...]


class GpuShares:
    """CPUs and GPU share of each training: as the study declares, or by the memory of its network shape."""

    def __init__(self, study: Study, panel: Panel, cluster: Cluster) -> None:
        self._study, self._panel, self._cluster = study, panel, cluster
        declared = study.resources.gpu
        self.cpu = study.resources.cpu
        self.whole = (1.0 if cluster.has_gpus else 0.0) if declared == "auto" else declared
        """Share of a GPU used where no network shape was measured."""
        self._packing: Packing | None = None
        self._shapes: dict[Any, NetworkShape] = {}

    def gpu(self, task: Task) -> float:
        """Share of a GPU for a task."""
        return self.whole if self._packing is None else self._packing.share(map(self._shape, task.cells))

    def learn(self, task: Task, record: Record) -> None:
        """Note the memory that an ended task has recorded."""
        if self._packing is not None:
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
        known = {found.shape: found for found in read(store)}
        missing = {shape: cell for shape, cell in wanted.items() if shape not in known}
        if missing:
            notice(f"measuring the GPU memory of {len(missing)} shapes of network, once")
        for found in footprints(missing):
            known[found.shape] = found
            _write(store, known.values())
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

    def _shapes_to_come(self, scheduler: Scheduler) -> dict[NetworkShape, Cell]:
        """One cell of each shape to come; in an arm that is still searched, the largest cell of its space."""
        found: dict[NetworkShape, Cell] = {}
        for cell in scheduler.to_come():
            trials = scheduler.searches.get(self._study.scope(cell))
            one = (
                cell if trials is None else largest(self._study, trials.arm, trials.space, cell, self._shape)
            )
            found.setdefault(self._shape(one), one)
        return found

    def _shape(self, cell: Cell) -> NetworkShape:
        what = (cell.variant, cell.fusion, cell.head, cell.model, cell.train.batch_size)
        if what not in self._shapes:
            self._shapes[what] = NetworkShape.of(cell, self._panel, self._study.encoders.random.dim)
        return self._shapes[what]


def _range(low: float, high: float) -> str:
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


FILE = "footprints.json"
"""File in the study's folder with the measured footprints."""


def read(store: Store) -> list[Footprint]:
    """Read the footprints that the store keeps. Raises InputError for a file of another content."""
    system, path = store.location(FILE)
    try:
        return [*_Footprints.model_validate_json(files.read(system, path)).footprints]
    except FileNotFoundError:
        return []
    except ValidationError as error:
        what = error.errors(include_url=False)[0]["msg"]
        raise InputError(
            path,
            problem=f"not a list of GPU footprints ({what})",
            fix="delete the file; it is measured again",
        ) from None
    except files.StorageError as error:
        raise store.refusal("read", error) from None


def _write(store: Store, footprints: Iterable[Footprint]) -> None:
    system, path = store.location(FILE)
    content = _Footprints(footprints=tuple(footprints)).model_dump_json(indent=1)
    try:
        files.write(system, path, content.encode())
    except files.StorageError as error:
        raise store.refusal("written", error) from None


class Packing:
    """Share of a GPU that each training takes, by the measured memory of its network shape.

    Ray counts shares without isolating anything, so memory alone decides. Shapes of similar need take equal
    shares: Tune reuses a worker only for a task of equal share, and a new worker takes some seconds.
    """

    def __init__(
        self, device_mb: float, most: int, measured: Mapping[NetworkShape, float], context_mb: float = 0.0
    ) -> None:
        """Set shares for GPUs of `device_mb`, the smallest one's memory, shared by at most `most` trainings.

        `measured` is the memory of each shape in MB, and `context_mb` the CUDA context's part of it.
        """
        self._usable_mb, self._most = device_mb * (1 - SPARE), max(1, most)
        self._bound, self._context_mb = dict(measured), context_mb
        self._exact: dict[NetworkShape, float] = {}
        self._levels: list[int] = []
        for count in sorted({self._fit(mb) for mb in measured.values()}):
            self._level(count)

    def learn(self, shapes: Iterable[NetworkShape], record: Record) -> None:
        """Note the recorded memory of a task; that of several trainings is an upper bound for each."""
        reserved, own = record.get("gpu_memory_mb"), list(shapes)
        if reserved is None:
            return
        held = reserved + self._context_mb
        if len(own) == 1:
            self._exact[own[0]] = max(held, self._exact.get(own[0], 0.0))
        else:
            for shape in own:
                self._bound[shape] = min(held, self._bound.get(shape, math.inf))

    def share(self, shapes: Iterable[NetworkShape]) -> float:
        """Share for trainings side by side in one worker; 1.0 if the memory of one is not known."""
        needs = [self._need(shape) for shape in shapes]
        if None in needs:
            return 1.0
        count = self._fit(math.fsum(need for need in needs if need is not None))
        level = self._level(count)
        return math.floor(10_000 / level) / 10_000  # Ray counts in ten-thousandths

    def _level(self, count: int) -> int:
        """Round `count` trainings per GPU down to a known level, unless half of the GPU would stay unused."""
        below = max((level for level in self._levels if level <= count), default=0)
        if count < 2 * below:
            return below
        self._levels.append(count)
        return count

    def _fit(self, need_mb: float) -> int:
        return max(1, min(self._most, math.floor(self._usable_mb / (need_mb * MARGIN))))

    def _need(self, shape: NetworkShape) -> float | None:
        """Memory of a shape in MB: as recorded, as measured, or that of the smallest shape that covers it."""
        if shape in self._exact:
            return self._exact[shape]
        if shape in self._bound:
            return self._bound[shape]
        return min((mb for known, mb in self._bound.items() if covers(known, shape)), default=None)


def covers(larger: NetworkShape, smaller: NetworkShape) -> bool:
    """Return True if one network has the same parts as another and is at least as large in each."""
    same = ("window", "fusion", "projection", "masked")
    if any(getattr(larger, name) != getattr(smaller, name) for name in same):
        return False
    if len(larger.units) < len(smaller.units):
        return False
    pairs = zip(larger.units, smaller.units, strict=False)
    sizes = ("channels", "attention_units", "embedding_dim", "batch_size")
    return all(a >= b for a, b in pairs) and all(
        getattr(larger, name) >= getattr(smaller, name) for name in sizes
    )


def largest(study: Study, arm: Arm, space: Space, cell: Cell, shape: Callable[[Cell], NetworkShape]) -> Cell:
    """Return the cell at the point of the arm's space at which its network is largest.

    Each parameter is set in turn to the end of its range, or the choice, at which weights times windows of a
    batch are most.
    """
    point: dict[str, Any] = {}

    def at(trial: Mapping[str, Any]) -> Cell:
        model, train = settings_at(arm, active(space, trial), study.model, study.train)
        return cell.model_copy(update={"model": model, "train": train})

    def size(trial: Mapping[str, Any]) -> tuple[int, int]:
        found = shape(at(trial))
        return found.parameters * found.batch_size, found.parameters

    for name, parameter in space.items():
        point[name] = max(parameter.ends(), key=lambda value: size({**point, name: value}))
    return at(point)
