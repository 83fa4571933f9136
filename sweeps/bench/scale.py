"""Load of the one driver process with 100,000 cells on 512 GPUs, measured and simulated."""

import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from sweeps.bench import harness
from sweeps.bench.engine import trivial
from sweeps.bench.harness import Measurement
from sweeps.state import StudyState
from sweeps.store import integrity
from sweeps.store.records import READERS, Record, Store

CELLS = 100_000
"""Number of cells of the study."""
NODES, GPUS = 64, 8
"""Number of nodes, and of GPUs on each."""
TRIALS = 100
"""Search trials of each of five arms."""
TUNED = (500, 2000)
"""Numbers of trivial cells between which the cost of Tune per cell is measured."""
ASKED = (100, 1000, 3000)
"""Numbers of finished trials that Optuna knows when it is asked for one more."""
ASKS = 5
"""Number of times that Optuna is asked."""
WORKER_HOURS, NODE_HOURS = 200.0, 24.0
"""Mean lifetime of a worker and of a node."""
MEDIAN_S, SPREAD, SHORTEST_S, LONGEST_S = 20.1, 0.64, 16.5, 221.6
"""Seconds of 77 recorded trainings of `quick` on CPU cores; the spread is that of their logarithms."""
SERVER_MS = 38
"""Milliseconds per run on an MLflow server; `sweep bench --only mirror --server URI` measures them."""
REQUEST_S = 0.03
"""Assumed time of a request to object storage."""


def run(folder: Path, recorded: Path | None = None) -> Iterator[Measurement]:
    """Measure each part in its own process; `recorded` is a study's folder with seconds of cells."""
    tune = _part("tune", folder / "tune", *TUNED)
    yield from _tune_measurements(tune)
    seen = _part("simulate", folder / "simulate", CELLS, tune["cpu_s"], *([recorded] if recorded else []))
    yield from _simulation_measurements(seen, tune["cpu_s"])
    empty = _part("begin", folder / "empty", CELLS)
    words = f"state and scheduler, nothing finished: {empty['cpu_s']:.1f} s of CPU time; peak"
    yield Measurement(f"driver's memory, {CELLS:,} cells", empty["mb"], "MB", 1000, words)
    yield from _store_measurements(folder / "full")
    yield from _mlflow_measurements(folder, seen["makespan_s"])
    for row in _part("optuna", folder / "optuna", *ASKED)["rows"]:
        words = f"TPE, two settings, median of {ASKS}; the journal takes {row['journal_ms']:.1f} ms a trial"
        yield Measurement(f"Optuna asked after {row['trials']:,} trials", row["ask_ms"], "ms", 1000, words)


def _tune_measurements(tune: dict[str, Any]) -> Iterator[Measurement]:
    first, last = TUNED
    words = (
        f"from {first:,} to {last:,} trivial cells; the driver then has {tune['mb']:.0f} MB; {CELLS:,} "
        f"would add {CELLS / 1000 * tune['mb_per_1000']:,.0f} MB (extrapolated)"
    )
    yield Measurement("memory that 1,000 ended cells leave", tune["mb_per_1000"], "MB", 5, words)
    words = f"{1000 * tune['early_s']:.1f} ms in the first half, {1000 * tune['late_s']:.1f} ms in the second"
    yield Measurement("driver's processor a cell, Tune's", 1000 * tune["cpu_s"], "ms", 15, words)


def _simulation_measurements(seen: dict[str, Any], tune_s: float) -> Iterator[Measurement]:
    gpus = NODES * GPUS
    words = (
        f"simulated: {seen['ended']:,} tasks, {seen['trials']} of them search trials, of "
        f"{seen['mean_s']:.0f} s on average ({seen['source']}), to the last start; "
        f"{seen['busy_to_the_end']:.3f} to the end; "
        f"{seen['workers_lost']} workers and {seen['nodes_lost']} of {NODES} nodes lost"
    )
    yield Measurement(f"busy share of {gpus} GPUs", seen["busy"], "", 0.95, words, at_least=True)
    words = f"{seen['makespan_s'] / 3600:.2f} h, over that of GPUs that are always busy and never lost"
    yield Measurement("makespan over its lower bound", seen["over_bound"], "x", 1.1, words)
    task_s = tune_s + seen["hand_ms"] / 1000 + seen["end_ms"] / 1000
    words = (
        f"simulated with {1000 * tune_s:.1f} ms per task for Tune, {seen['hand_ms']:.2f} ms for its start "
        f"and {seen['end_ms']:.2f} ms for its end, at most {seen['longest_s']:.1f} s when a search ends; "
        f"tasks of {gpus * task_s:.1f} s would keep the driver busy all the time, or of "
        f"{4 * gpus * task_s:.0f} s on {4 * gpus:,} GPUs"
    )
    yield Measurement(f"driver's share of a core, {gpus} GPUs", seen["driver"], "", 0.5, words)


def _store_measurements(folder: Path) -> Iterator[Measurement]:
    _part("fill", folder, CELLS)
    listed = _part("list", folder)
    requests = math.ceil(CELLS / 1000) + CELLS
    far = requests * REQUEST_S / READERS / 60
    words = (
        f"a local folder, {listed['cpu_s']:.1f} s of CPU time, keys alone {listed['keys_s']:.1f} s; "
        f"on object storage {requests:,} requests, {far:.0f} min at {1000 * REQUEST_S:.0f} ms and {READERS} "
        f"at a time (computed)"
    )
    yield Measurement(f"{CELLS:,} records read", listed["records_s"], "s", 30, words)
    took = harness.run_sweep("status", folder / FILE).seconds
    yield Measurement(f"sweep status, {CELLS:,} finished", took, "s", 60, "one call")
    full = _part("begin", folder, CELLS)
    words = (
        f"state, scheduler and the records for MLflow, before Ray is started: {full['cpu_s']:.1f} s of CPU "
        f"time; once"
    )
    yield Measurement(f"restart on {CELLS:,} finished", full["wall_s"], "s", 60, words)
    words = f"peak; {full['kept_mb']:,.0f} MB after the records are freed"
    yield Measurement(f"driver's memory, {CELLS:,} finished", full["mb"], "MB", 2048, words)


def _mlflow_measurements(folder: Path, makespan_s: float) -> Iterator[Measurement]:
    from sweeps.bench import mirror

    mirrored = next(iter(mirror.run(folder)))
    hours = CELLS * mirrored.value / 3.6e6
    words = (
        f"extrapolated from {mirrored.value:.0f} ms per run in SQLite, one process beside the training; "
        f"{CELLS * SERVER_MS / 3.6e6:.1f} h on a server at {SERVER_MS} ms; the training takes "
        f"{makespan_s / 3600:.1f} h"
    )
    yield Measurement(f"{CELLS:,} cells mirrored in MLflow", hours, "h", 3, words)


FILE = "scale.yaml"


def study(folder: Path, cells: int, *, searched: bool) -> StudyState:
    """Write and open a study of five arms on twenty folds of three splits; `cells` is a multiple of 100."""
    folder.mkdir(exist_ok=True, parents=True)
    declared: dict[str, Any] = {
        "study": "scale",
        "data": {"synthetic": {"sites": 24, "days": 60}},
        "design": {
            "variant": ["none", "latlon", "sincos", "geoclip"],
            "fusion": ["hadamard", "concat"],
            "split": [
                {"kind": "random", "folds": 10},
                {"kind": "spatial", "folds": 8},
                {"kind": "checkerboard", "degrees": 16},
            ],
            "seed": list(range(cells // 100)),
        },
        "storage": str(folder),
        "keep_weights": False,
    }
    if searched:
        declared["search"] = {
            "trials": TRIALS,
            "space": {
                "train.learning_rate": {"float": [0.001, 0.02], "log": True},
                "model.dropout": {"float": [0.0, 0.4]},
            },
            "split": [{"kind": "random", "folds": 10, "fold": [0]}],
            "seed": 10**6,
        }
    file = folder / FILE
    file.write_text(yaml.safe_dump(declared), encoding="utf-8")
    return StudyState(str(file))


def _part(name: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """Run a function of this module in a new process, and return its result."""
    process = harness.run_python("-m", "sweeps.bench.scale", name, folder, *arguments)
    result: dict[str, Any] = json.loads(process.output.splitlines()[-1])
    return result


def _simulate(folder: Path, cells: str, tune_s: str, recorded: str = "") -> dict[str, Any]:
    from sweeps.bench.simulation import Simulation

    state = study(folder, int(cells), searched=True)
    state.store.prepare()
    seconds, source = _seconds(recorded)
    hours = {"worker_hours": WORKER_HOURS, "node_hours": NODE_HOURS}
    seen = Simulation(state, seconds, nodes=NODES, gpus=GPUS, tune_s=float(tune_s), **hours).run()
    return {
        "ended": seen.ended,
        "trials": TRIALS * len(state.study.arms()),
        "mean_s": seen.work / seen.ended,
        "source": source,
        "busy": seen.busy(seen.last),
        "busy_to_the_end": seen.busy(seen.makespan),
        "makespan_s": seen.makespan,
        "over_bound": seen.over_bound,
        "driver": seen.driver / seen.makespan,
        "hand_ms": 1000 * statistics.mean(seen.handed),
        "end_ms": 1000 * statistics.mean(seen.finished),
        "longest_s": max(*seen.handed, *seen.finished),
        "workers_lost": seen.workers_lost,
        "nodes_lost": seen.nodes_lost,
    }


def _seconds(recorded: str) -> tuple[Callable[[np.random.Generator], float], str]:
    """Return a function that draws the seconds of a task, and a text that names their source."""
    if not recorded:

        def drawn(rng: np.random.Generator) -> float:
            return float(np.clip(rng.lognormal(math.log(MEDIAN_S), SPREAD), SHORTEST_S, LONGEST_S))

        source = (
            f"lognormal, median {MEDIAN_S:g} s, spread {SPREAD:g}, from {SHORTEST_S:g} to {LONGEST_S:g} s"
        )
        return drawn, source
    store = Store(str(Path(recorded).parent), Path(recorded).name)
    found = [record["seconds"] for record in store.records(store.keys()).values() if "seconds" in record]
    return lambda rng: float(rng.choice(found)), f"drawn from {len(found)} recorded values"


def _begin(folder: Path, cells: str) -> dict[str, Any]:
    """Measure what a run does before it starts Ray."""
    from sweeps.engine.scheduler import Scheduler

    began, cpu = time.perf_counter(), time.process_time()
    state = study(folder, int(cells), searched=False)
    scheduler = Scheduler(state)
    records = state.records()
    took = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    if scheduler.cells + len(records) != int(cells):
        raise RuntimeError(f"{scheduler.cells} cells to run and {len(records)} recorded")
    peak = harness.peak_mb()
    records.clear()
    return {**took, "mb": peak, "kept_mb": harness.resident_mb()}


def _fill(folder: Path, cells: str) -> dict[str, Any]:
    """Store finished cells without tables, and without waiting for the disk."""
    state = study(folder, int(cells), searched=False)

    def write(record: Record, files: Mapping[str, str]) -> Record:
        cell = folder / "scale" / "cells" / record["key"]
        cell.mkdir(parents=True)
        (cell / "result.json").write_bytes(integrity.seal(record, files))
        return record

    store: Any = SimpleNamespace(write_record=write)
    for key, cell in state.cells.items():
        trivial(cell, key, state.panel, store, tables=False)
    return {}


def _list(folder: Path) -> dict[str, Any]:
    """Measure how long the keys and the records of a store take to read."""
    store = Store(str(folder), "scale")
    begin = time.perf_counter()
    keys = store.keys()
    listed, cpu_before = time.perf_counter(), time.process_time()
    store.records(keys)
    cpu = time.process_time() - cpu_before
    return {"keys_s": listed - begin, "records_s": time.perf_counter() - listed, "cpu_s": cpu}


def _optuna(folder: Path, *trials: str) -> dict[str, Any]:
    """Measure how long Optuna takes to suggest a trial, and to write one to its journal."""
    from sweeps.engine.optuna_study import ArmStudy, OptunaJournal

    state = study(folder, 100, searched=True)
    state.store.prepare()
    rng, rows = np.random.default_rng(0), []
    for count in map(int, trials):
        arm, own = next(iter(state.searches.items()))
        own.ended = [_trial_record(number, rng) for number in range(count)]
        arm_study = ArmStudy(own)
        asked = []
        for _ in range(ASKS):
            begin = time.perf_counter()
            arm_study.ask()
            asked.append(time.perf_counter() - begin)
        view = OptunaJournal(state.store)
        view.write([own])
        own.ended += [_trial_record(count + number, rng) for number in range(ASKS)]
        begin = time.perf_counter()
        view.write([own])
        wrote = (time.perf_counter() - begin) / ASKS
        if view.behind:
            raise RuntimeError(f"{arm.label}: {view.behind}")
        rows.append({"trials": count, "ask_ms": 1000 * statistics.median(asked), "journal_ms": 1000 * wrote})
    return {"rows": rows}


def _trial_record(number: int, rng: np.random.Generator) -> Record:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    rmse = float(rng.uniform(5, 6))
    return {
        "key": f"trial-{number}",
        "state": "done",
        "number": number,
        "params": {
            "train.learning_rate": float(np.exp(rng.uniform(math.log(0.001), math.log(0.02)))),
            "model.dropout": float(rng.uniform(0, 0.4)),
        },
        "scores": {"wr": {"rmse": rmse}},
        "reported": [rmse + 1, rmse],
        "epochs": 2,
        "seconds": 1.0,
        "started": now,
        "ended": now,
    }


class _Meter:
    """Observer that notes the driver's memory and CPU time after the given numbers of cells."""

    def __init__(self, at: set[int]) -> None:
        self._at, self._ended = at, 0
        self.seen: dict[int, tuple[float, float]] = {}
        self.kept = 0
        """Number of Tune's trials that are in memory."""

    def check_ready(self) -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def started(self, key: str, kind: str) -> None:
        pass

    def ended(self, kind: str, record: Record) -> None:
        self._ended += 1
        if self._ended in self._at:
            self.seen[self._ended] = harness.resident_mb(), time.process_time()
            self.kept = sum(type(one).__name__ == "Trial" for one in gc.get_objects())


def _tune(folder: Path, first: str, last: str) -> dict[str, Any]:
    """Measure a run of trivial cells without MLflow."""
    from sweeps.bench import engine
    from sweeps.engine import ray_tune
    from sweeps.engine.scheduler import Scheduler

    begin, end = int(first), int(last)
    half = (begin + end) // 2
    state, meter = engine.study(folder, end), _Meter({begin, half, end})
    state.store.prepare()
    ray_tune.run(Scheduler(state), state.panel, state.store, state.study, meter, train_cell=trivial)
    (mb, cpu), (_, middle), (more_mb, more_cpu) = meter.seen.values()
    return {
        "kept": meter.kept,
        "mb": more_mb,
        "mb_per_1000": 1000 * (more_mb - mb) / (end - begin),
        "cpu_s": (more_cpu - cpu) / (end - begin),
        "early_s": (middle - cpu) / (half - begin),
        "late_s": (more_cpu - middle) / (end - half),
    }


if __name__ == "__main__":
    # Workers must import this module under its own name, not as `__main__`.
    from sweeps.bench import scale

    print(json.dumps(getattr(scale, f"_{sys.argv[1]}")(Path(sys.argv[2]), *sys.argv[3:])))
