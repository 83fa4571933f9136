"""Measure how fast, and with how much memory, this machine trains the networks of a study."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.network_shape import NetworkShape, stack_kind
from pm25.panel import Panel
from pm25.scratch import scratch
from pm25.settings import ModelSettings, embeds
from sweeps.engine import worker
from sweeps.plan import calibration
from sweeps.plan.calibration import Calibration, NetworkTime, SplitTime
from sweeps.plan.capacity import Capacity
from sweeps.plan.cost import Estimate
from sweeps.plan.speed import Speeds
from sweeps.state import StudyState
from sweeps.store.records import Store

STEPS = (2, 16)
"""Training steps of a timed epoch; the second number is used if such an epoch takes less than `LONG_S`."""
LONG_S = 0.25
"""Duration from which an epoch of the fewest steps is long enough to be timed."""
TIMED_S = 1.0
"""Total time after which a call is not timed again."""
FOOTPRINT_STEPS = 3
"""Training steps of an epoch whose memory is measured; later steps need no further memory."""
STACK_SIZES = (4, 8, 16, 32, 64)
"""Numbers of stacked trainings whose rates are measured."""
STACK_STEPS = 16
"""Training steps of an epoch whose rate is measured."""
VALIDATED = 256
"""Windows scored after each epoch of a measurement."""
PROBE = {"model": ModelSettings(width=2, depth=1, attention_units=1)}
"""A network so small that a cell with it takes only the time that every cell takes beside its network."""
PROBE_TRAIN = {"max_epochs": 1, "batch_size": 4096}
"""Training settings of a cell with the `PROBE` network."""
PROBE_WINDOWS = 20_000
"""Training windows of a cell with the `PROBE` network, at most."""


def in_child(study: str, overrides: Sequence[str], capacity: Capacity) -> None:
    """Measure in a process of its own, which may load torch, and store the results. Raises InputError.

    The child's InputError comes back with its fields; `study` and `overrides` are those of the command line.
    """
    arguments = json.dumps({"study": study, "overrides": list(overrides), "capacity": capacity})
    command = [sys.executable, "-m", "sweeps.engine.measure"]
    # Through a pipe, because everybody can read the arguments of a process.
    environment = {**worker.LIBRARIES, **os.environ}  # as the workers of a run
    ended = subprocess.run(
        command, input=arguments, stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    if ended.returncode:
        where, field, problem, fix = "calibration", "", f"it ended with status {ended.returncode}", ""
        if ended.stdout:
            where, field, problem, fix = json.loads(ended.stdout)
        skip = "--no-calibrate plans without measuring"
        raise InputError(where, field, problem, f"{fix}; or {skip}" if fix else skip)


def measure(state: StudyState, capacity: Capacity, say: Callable[[str], None]) -> None:
    """Measure the speeds that no record and no calibration has, and store each as soon as it is known."""
    worker.prepare_process(capacity.threads)
    known = calibration.read(state.store, capacity)
    device = "cuda" if capacity.gpu else "cpu"
    plan = Estimate(state, state.records(), state.split_indices(), capacity, known)
    shapes, cuts = plan.uncalibrated()
    found = known or Calibration(
        device=device, name=calibration.device_name(capacity), threads=capacity.threads
    )
    count, number = len(shapes) + len(cuts), itertools.count(1)
    for shape, cell in shapes.items():
        say(f"calibrating {next(number)} of {count}: a few batches of {cell.label}{_precision(cell)}")
        timed = time_shape(cell, shape, plan.speeds.samples(cell).train, state.panel, device)
        found = found.model_copy(update={"shapes": (*found.shapes, timed)})
        calibration.write(state.store, found)
    for cut, cell in cuts.items():
        say(f"calibrating {next(number)} of {count}: a cell of {cell.split.label} without its network")
        fixed_s = time_cut(cell, state.panel, device, plan.speeds)
        found = found.model_copy(
            update={"cuts": (*found.cuts, SplitTime(cut=cut, fixed_s=fixed_s, date=_today()))}
        )
        calibration.write(state.store, found)


def time_shape(cell: Cell, shape: NetworkShape, n_train: int, panel: Panel, device: str) -> NetworkTime:
    """Time a cell's training steps and its scoring, on the panel, with constant embeddings.

    `n_train` is its number of training samples.
    """

    from pm25 import trial
    from pm25.fit import SCORING_BATCH

    worker.reset_peak_memory(device)
    embedding = _vectors(cell, shape, panel)
    for steps in STEPS:
        windows = min(steps * shape.batch_size, n_train)
        training = trial.Training(_shortened(cell, windows), panel, embedding=embedding, device=device)
        training.epoch()  # the first is slower: it allocates memory and selects kernels
        epochs = _timed(training.epoch)
        if min(epochs) > LONG_S:
            break
    prepared = trial.prepare(_shortened(cell, shape.batch_size), panel, embedding=embedding, device=device)
    flat = prepared.indices.train[:SCORING_BATCH]
    prepared.predict(flat)
    scored_s = min(_timed(lambda: prepared.predict(flat))) / len(flat)
    validation_s = scored_s * len(prepared.validation)
    batches = math.ceil(windows / shape.batch_size)
    return NetworkTime(
        shape=shape,
        step_s=tuple(max(s - validation_s, 0.1 * s) / batches for s in epochs),
        scored_s=scored_s,
        memory_mb=worker.peak_memory_mb(device),
        date=_today(),
    )


def footprint_mb(cell: Cell, shape: NetworkShape, panel: Panel, device: str) -> float:
    """Measure the peak memory of a training of this shape in MB; on a GPU, CUDA's context included."""
    from pm25 import trial

    short = _shortened(cell, FOOTPRINT_STEPS * shape.batch_size)
    train = short.train.model_copy(update={"max_epochs": 2})  # the first allocates the optimiser's state
    cell = short.model_copy(update={"train": train})
    trial.run(cell, panel, embedding=_vectors(cell, shape, panel), device=device)
    return worker.peak_memory_mb(device)


def stack_rates(cell: Cell, shape: NetworkShape, panel: Panel, device: str) -> dict[int, float]:
    """Measure the training windows per second of a shape, alone (key 1) and in stacks of `STACK_SIZES`.

    The measurement ends with the first size that does not fit into the memory, or that is not faster than the
    one before. Cells that cannot be stacked have no rates. Raises RuntimeError if the GPU fails.
    """

    from pm25 import stacked, trial

    if stack_kind(cell, panel) is None:
        return {}
    windows = STACK_STEPS * shape.batch_size
    short, vectors = _shortened(cell, windows), _vectors(cell, shape, panel)
    training = trial.Training(short, panel, embedding=vectors, device=device)
    training.epoch()
    rates = {1: windows / min(_timed(training.epoch))}
    for size in STACK_SIZES:
        members = [short.model_copy(update={"seed": seed}) for seed in range(size)]
        try:
            stack = stacked.StackedTraining(members, panel, size=size, embedding=vectors, device=device)
            stack.advance()
            rate = size * windows / min(_timed(stack.advance))
        except RuntimeError as error:
            if not worker.lacks_gpu_memory(error):
                raise
            break
        if rate < max(rates.values()):
            break
        rates[size] = rate
    return rates


def reason(error: Exception) -> str:
    """Return the line of an error that names it: of a traceback the last one, and else the first.

    CUDA's errors have hints for developers after it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
    return (named[-1:] or lines[:1] or ["no message"])[0]


def _shortened(cell: Cell, windows: int) -> Cell:
    """Return the cell with this many training windows, a learning rate of 1e-6, and no early stopping."""
    settings = {"max_epochs": 1_000_000, "patience": 1_000_000, "learning_rate": 1e-6}
    limits = {"max_windows": windows, "max_validation_windows": VALIDATED}
    return cell.model_copy(update={"train": cell.train.model_copy(update=settings | limits)})


def _precision(cell: Cell) -> str:
    return "" if cell.train.precision == "fp32" else f", {cell.train.precision}"


def _vectors(cell: Cell, shape: NetworkShape, panel: Panel) -> np.ndarray | None:
    """Constant embeddings (site, dim) in the place of an encoder's; None for a variant without one."""
    if not embeds(cell.variant):
        return None
    return np.ones((len(panel.site_id), shape.embedding_dim), np.float32)


def time_cut(cell: Cell, panel: Panel, device: str, speeds: Speeds) -> float:
    """Time what a cell takes beside its network: a complete cell, storing included, with a tiny network."""
    train = cell.train.model_copy(
        update=PROBE_TRAIN | {"max_windows": min(PROBE_WINDOWS, cell.train.max_windows or PROBE_WINDOWS)}
    )
    place = {"variant": "none", "fusion": None, "head": None}
    probe = cell.model_copy(update={**place, **PROBE, "train": train})
    n = speeds.samples(probe)
    network = time_shape(probe, speeds.shape(probe), n.train, panel, device)
    with scratch() as folder:
        start = time.perf_counter()
        record = worker.train_and_record(
            probe, "probe", panel, Store(str(folder), calibration.FOLDER), device=device
        )
        total_s = time.perf_counter() - start
    if record["state"] == "failed":
        error = record["error"]
        raise InputError(
            "calibration", problem=f"{probe.label} failed with {error['type']}: {error['message']}"
        )
    steps = math.ceil(n.train / train.batch_size)
    network_s = steps * min(network.step_s) + (n.validation + n.scored) * network.scored_s
    return max(total_s - network_s, 0.1 * total_s)


def _timed(call: Callable[[], object]) -> list[float]:
    """Time a call in seconds: at least twice, at most ten times, and not again after `TIMED_S`."""
    found: list[float] = []
    while len(found) < 2 or (sum(found) < TIMED_S and len(found) < 10):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _today() -> str:
    return time.strftime("%Y-%m-%d")


def main() -> None:
    """Measure what standard input names; an InputError is printed as JSON, and ends with status 2."""
    given = json.load(sys.stdin)
    live = sys.stderr.isatty()

    def say(line: str) -> None:
        print(f"\r\033[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    try:
        measure(StudyState(given["study"], given["overrides"]), Capacity(*given["capacity"]), say)
    except InputError as error:
        print(json.dumps([error.where, error.field, error.problem, error.fix]))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
