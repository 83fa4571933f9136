"""How many trainings share a GPU: by the memory of their networks, measured or estimated."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import Field, ValidationError

from pm25.errors import InputError
from pm25.network_shape import NetworkShape
from pm25.panel import Panel
from pm25.settings import Settings
from sweeps.plan import calibration
from sweeps.plan.calibration import Calibration
from sweeps.plan.capacity import Capacity
from sweeps.plan.speed import SCORING_BATCH
from sweeps.state import StudyState
from sweeps.store import records as files
from sweeps.store.records import Record, Store

MARGIN = 1.15
"""Factor on measured memory: allocators fragment, and validation batches of two trainings may coincide."""
SPARE = 0.03
"""Fraction of a GPU's memory that stays free."""

ASSUMED_GPU_MB = 80_000.0
"""Memory of a GPU that nobody has measured: an NVIDIA A100 or H100."""
ASSUMED_CPUS = 12
"""CPUs for each GPU of a machine that nobody has described; AWS p4d.24xlarge has 12, GCP a3-highgpu-8g 26."""
CONTEXT_MB = 600.0
"""Estimated memory of the CUDA context and of the workspace of cuBLAS; not measured."""


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
    rates: dict[int, float] = Field(default_factory=dict)
    """Training windows per second of this many trainings in one stack; 1 is a training alone."""
    stacks_failed: str = ""
    """Error with which the GPU failed to train a stack; empty without one."""

    @property
    def stacked(self) -> tuple[int, float]:
        """Number of stacked trainings with the highest rate, and that rate over that of one alone."""
        best = max(self.rates, key=lambda size: self.rates[size], default=1)
        return (best, self.rates[best] / self.rates[1]) if best > 1 else (1, 1.0)

    def stack_size(self, packed: int) -> int:
        """Return how many trainings to stack; 1 where `packed` processes on a GPU are expected to be faster.

        Processes that share a GPU are expected to gain the square root of their number, as in a plan.
        """
        size, gain = self.stacked
        return size if gain > math.sqrt(packed) else 1


class _Footprints(Settings):
    """The content of a study's `footprints.json`."""

    footprints: tuple[Footprint, ...]


class PackingPlan(NamedTuple):
    """Number of trainings that share a GPU in a plan, and what that number depends on."""

    per_gpu: int
    """Number of processes on a GPU; 1 if they are replaced by a stack."""
    memory_mb: float
    """Most memory of a training."""
    gpu_mb: float
    """Memory of the GPU."""
    source: str
    """Origin of the two memories, for the reader of the plan."""
    bound: str
    """Resource that limits the number: memory, CPUs or tasks."""
    stack: int = 1
    """Smallest number of trainings in a stack, if all shapes are faster in stacks; else 1."""
    gain: float = 1.0
    """Smallest measured speed of a stack over that of one training alone."""


def plan_packing(
    state: StudyState,
    records: Mapping[str, Record],
    capacity: Capacity,
    shapes: Iterable[NetworkShape],
    known: Calibration | None,
) -> PackingPlan | None:
    """Plan the packing of `gpu: auto` as `engine.gpu_packing` does it; None for another plan.

    The memory of a network shape is that of the footprints that a run has stored, else that of the
    calibration `known`, else an estimate. All shapes get the share of the largest one.
    """
    missing = sum(key not in records for key in state.cells) + len(state.waiting)
    missing += sum(trials.remaining for trials in state.searches.values())
    if state.study.resources.gpu != "auto" or not capacity.gpus or not missing:
        return None
    footprints = {found.shape: found for found in read(state.store)}
    calibrated = {time.shape: time.memory_mb for time in known.shapes} if known is not None else {}
    wanted, held, sources = {*shapes}, [CONTEXT_MB], set()
    for shape in wanted:
        if shape in footprints:
            held.append(footprints[shape].memory_mb)
            sources.add("measured by a run")
        elif shape in calibrated:
            held.append(calibrated[shape])
            sources.add("calibrated")
        else:
            held.append(estimated_memory_mb(shape, state.panel))
            sources.add("NOT measured: estimated memory")
    here = [device.memory_mb for device in calibration.devices()]
    there = [found.gpu_mb for found in footprints.values()]
    gpu_mb = min([*there, *here], default=ASSUMED_GPU_MB)
    if not there and not here:
        sources.add(f"GPUs of {ASSUMED_GPU_MB / 1000:g} GB assumed")
    limits = {
        "memory": Packing(gpu_mb, missing, {}).fit(max(held)),
        "CPUs": math.floor(capacity.cpus / capacity.gpus / capacity.cpu + 1e-9),
        "tasks": math.ceil(missing / capacity.gpus),
    }
    bound = min(limits, key=lambda name: limits[name])
    per_gpu, source = max(1, limits[bound]), "; ".join(sorted(sources))
    own = [footprints[shape] for shape in wanted if shape in footprints]
    stacks = [found.stacked for found in own if found.stack_size(per_gpu) > 1]
    if len(stacks) == len(wanted):
        size, gain = (min(values) for values in zip(*stacks, strict=True))
        return PackingPlan(1, max(held), gpu_mb, source, "stacks", size, gain)
    return PackingPlan(per_gpu, max(held), gpu_mb, source, bound)


def estimated_memory_mb(shape: NetworkShape, panel: Panel) -> float:
    """Estimate the GPU memory of a training in MB.

    Counted are the panel, five copies of the parameters (weights, gradients, two moments of Adam, best
    weights), and the context. Each LSTM layer keeps its inputs, gates, cells and states of a training batch,
    and a scoring batch has two layers' inputs and outputs.
    """
    values = panel.features.size + 5 * shape.parameters
    values += shape.batch_size * shape.window * sum(i + 2 * 6 * u for i, u in shape.layers)
    values += 2 * SCORING_BATCH * shape.window * max(i + 2 * u for i, u in shape.layers)
    return CONTEXT_MB + 4 * values / 1e6


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


def write(store: Store, footprints: Iterable[Footprint]) -> None:
    """Write the measured footprints of a study. Raises InputError."""
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
        for count in sorted({self.fit(mb) for mb in measured.values()}):
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
        count = self.fit(math.fsum(need for need in needs if need is not None))
        level = self._level(count)
        return math.floor(10_000 / level) / 10_000  # Ray counts in ten-thousandths

    def _level(self, count: int) -> int:
        """Round `count` trainings per GPU down to a known level, unless half of the GPU would stay unused."""
        below = max((level for level in self._levels if level <= count), default=0)
        if count < 2 * below:
            return below
        self._levels.append(count)
        return count

    def fit(self, need_mb: float) -> int:
        """Return the number of trainings of this memory that share a GPU."""
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
    if larger.precision == "bf16" and smaller.precision == "fp32":  # whose activations are twice as large
        return False
    if len(larger.units) < len(smaller.units):
        return False
    pairs = zip(larger.units, smaller.units, strict=False)
    sizes = ("channels", "attention_units", "embedding_dim", "batch_size")
    return all(a >= b for a, b in pairs) and all(
        getattr(larger, name) >= getattr(smaller, name) for name in sizes
    )
