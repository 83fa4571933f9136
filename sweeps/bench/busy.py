"""Share of time for which a run keeps four GPUs busy, with tasks of uneven length."""

import contextlib
import hashlib
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import yaml

from pm25.cell import Cell
from pm25.encoders import Embedded
from pm25.metrics import SCORES
from pm25.panel import Panel
from pm25.scratch import scratch
from sweeps.bench import harness
from sweeps.bench.engine import trivial
from sweeps.bench.harness import Measurement
from sweeps.engine import ray_internals, temp_folder, worker
from sweeps.state import StudyState
from sweeps.store.records import Record, Store

GPUS = 4
"""Number of GPUs that Ray is configured with; none exists, since the trainings only sleep."""
ARMS = ("none", "latlon", "sincos")
TRIALS, FOLDS, SEEDS = 6, 7, 2
"""Search trials, folds and seeds of each arm: 18 search trials and 42 cells, 60 tasks in all."""
SHORTEST_S, LONGEST_S = 1.0, 8.0
"""Range of the seconds that a task takes."""
SPREAD = 0.64
"""Standard deviation of the log of the seconds; 77 trainings of `quick`, of 16 to 222 s, had this one."""
FILE = "busy.yaml"
"""Name of the study file."""
EPOCHS = 5
"""Epochs of a search trial."""
STARTS_S = 60.0
"""Longest time that the start of Ray may take."""


class Task(NamedTuple):
    """A cell or a search trial that has ended; times are seconds since 1970."""

    kind: str
    worker: int
    begin: float
    end: float
    gpu: float
    """Share of its GPU that it used; smaller for a trial that waited for Tune between its epochs."""


class Timeline(NamedTuple):
    """Use of the GPUs over time."""

    warm: float
    """Seconds from the start of the first task until every GPU had started one."""
    busy: float
    """Share of the GPUs' time from the warm-up to the start of the last task, when no task is left."""
    busy_to_the_end: float
    """Share of the GPUs' time from the warm-up to the end."""
    gaps: tuple[float, ...]
    """Sorted seconds from the end of a task to the next start on the same GPU, after the warm-up."""
    wall: float
    """Seconds from the warm-up to the end."""


def run(folder: Path) -> Iterator[Measurement]:
    """Measure a complete `sweep run` that joins a local Ray cluster with four pretended GPUs."""
    tasks = _run_tasks(folder / "busy")
    seen = timeline(tasks, GPUS)
    lengths = sorted(task.end - task.begin for task in tasks)
    kinds = [task.kind for task in tasks]
    words = (
        f"{kinds.count('trial')} search trials and {kinds.count('cell')} cells of {lengths[0]:.1f} to "
        f"{lengths[-1]:.1f} s (median {statistics.median(lengths):.1f}), from when all GPUs had started "
        f"to the last start; a trial's waits between epochs count as idle; between two tasks on one GPU "
        f"{1000 * statistics.median(seen.gaps):.0f} ms (median), {seen.gaps[-1]:.2f} s at most"
    )
    yield Measurement("busy share of four GPUs", seen.busy, "", 0.95, words, at_least=True)
    words = f"{seen.wall:.0f} s, including the last tasks, when fewer than four are left"
    yield Measurement("the same to the very end", seen.busy_to_the_end, "", 0.85, words, at_least=True)


def timeline(tasks: Sequence[Task], gpus: int) -> Timeline:
    """Summarize tasks that ran on this number of GPUs; each worker keeps one GPU."""
    lanes: defaultdict[int, list[Task]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.begin):
        lanes[task.worker].append(task)
    firsts = sorted(lane[0].begin for lane in lanes.values())
    warm, last = firsts[gpus - 1], max(task.begin for task in tasks)
    end = max(task.end for task in tasks)

    def busy(until: float) -> float:
        used = (max(0.0, min(t.end, until) - max(t.begin, warm)) * t.gpu for t in tasks)
        return sum(used) / (gpus * (until - warm))

    pairs = [pair for lane in lanes.values() for pair in pairwise(lane)]
    gaps = sorted(after.begin - before.end for before, after in pairs if before.end >= warm)
    return Timeline(warm - firsts[0], busy(last), busy(end), tuple(gaps), end - warm)


def seconds(name: str) -> float:
    """Draw how long a task takes, from a heavy-tailed distribution; equal names give equal values."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    drawn = np.random.default_rng(seed).lognormal(np.log(2 * SHORTEST_S), SPREAD)
    return float(np.clip(drawn, SHORTEST_S, LONGEST_S))


def sleeping_cell(
    cell: Cell,
    key: str,
    panel: Panel,
    store: Store,
    *,
    embedded: Embedded | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
    **_: Any,
) -> Record:
    """Replace `worker.train_and_record`: sleep, and store what a trivial cell stores."""
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    time.sleep(seconds(cell.label))
    known = {**more, "started": began, "process": os.getpid()}
    return trivial(cell, key, panel, store, embedded=embedded, more=known)


class SleepingTrial(worker.SearchTrial):
    """Search trial whose training only sleeps; everything else is real."""

    def _prepare(self) -> None:
        if self._to_prepare:
            training: Any = _Nap(f"{self.draft['arm']} trial {self.draft['number']}")
            self._trainings, self._to_prepare = [training], []


class _Nap:
    """The part of `pm25.trial.Training` that a search trial uses."""

    def __init__(self, name: str) -> None:
        self._epoch_s, self._rmse = seconds(name) / EPOCHS, 5 + seconds(name) / LONGEST_S
        self.history: list[SimpleNamespace] = []

    @property
    def finished(self) -> bool:
        return len(self.history) == EPOCHS

    def epoch(self) -> None:
        time.sleep(self._epoch_s)
        self.history.append(SimpleNamespace(validation_rmse=self._rmse + 1 / len([*self.history, None])))

    def result(self) -> SimpleNamespace:
        return SimpleNamespace(metrics={f"val_wr_{name}": self._rmse for name in SCORES})


def study(folder: Path) -> StudyState:
    """Write the study into `folder`, and open it."""
    folder.mkdir(exist_ok=True)
    file = folder / FILE
    declared = {
        "study": "busy",
        "data": {"synthetic": {"sites": 24, "days": 60}},
        "design": {
            "variant": [*ARMS],
            "split": [{"kind": "random", "folds": FOLDS}],
            "seed": list(range(SEEDS)),
        },
        "search": {
            "trials": TRIALS,
            "space": {"train.learning_rate": {"float": [0.001, 0.02], "log": True}},
            "split": [{"kind": "random", "folds": FOLDS, "fold": [0]}],
            "seed": SEEDS,
        },
        "storage": str(folder),
        "resources": {"cpu": 1, "gpu": 1},
        "keep_weights": False,
        "checkpoint_seconds": 3600,
    }
    file.write_text(yaml.safe_dump(declared), encoding="utf-8")
    return StudyState(str(file))


def _run_tasks(folder: Path) -> list[Task]:
    """Run the study in a new process, and read its records."""
    state, environment = study(folder), _environment()
    with _cluster(environment) as address:
        harness.run_python("-m", "sweeps.bench.busy", folder, address, environment=environment)
    state.refresh()
    ended = [("cell", record) for record in state.records().values()]
    ended += [("trial", record) for record in state.trials()]
    if failed := [record for _, record in ended if record["state"] != "done"]:
        raise RuntimeError(failed[0]["error"]["traceback"])
    return [_task(kind, record) for kind, record in ended]


def _task(kind: str, record: Record) -> Task:
    begin, end = _timestamp(record["started"]), _timestamp(record["ended"])
    trained = record["seconds"] / (end - begin) if kind == "trial" else 1.0
    return Task(kind, record["process"], begin, end, record["share"]["gpu"] * trained)


def _timestamp(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _environment() -> dict[str, str]:
    """Build the environment of the cluster and the run; each pretended GPU has 16 GB."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    private = {**token, **ray_internals.LOOPBACK_ONLY}
    return {**os.environ, **private, "SWEEP_PRETEND_GPUS": "16", "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def _cluster(environment: Mapping[str, str]) -> Iterator[str]:
    """Start a local Ray cluster with pretended GPUs, and yield its address; it stops with the context."""
    port = _free_port()
    with scratch() as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--num-gpus={GPUS}", f"--num-cpus={GPUS}", "--include-dashboard=false"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder / temp_folder.RAY}"]
        command += [f"--dashboard-agent-listen-port={_free_port()}", f"--object-store-memory={2**28}"]
        with tempfile.TemporaryFile("w+") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                until = time.monotonic() + STARTS_S
                while "Ray runtime started" not in _text(log):
                    if head.poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"ray start: {_text(log)[-2000:]}")
                    time.sleep(0.2)
                yield f"127.0.0.1:{port}"
            finally:
                head.terminate()
                head.wait(STARTS_S)


def _text(log: Any) -> str:
    log.seek(0)
    return str(log.read())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own(folder: Path, address: str) -> None:
    """Do what `sweep run` does, with trainings that sleep."""
    from sweeps.driver import train
    from sweeps.engine.scheduler import Scheduler
    from sweeps.store.lock import StudyLock

    state = StudyState(str(folder / FILE))
    state.store.prepare()
    with StudyLock(state.store) as lock:
        state.store = lock.store
        how: dict[str, Any] = {"train_cell": sleeping_cell, "search_trial": SleepingTrial}
        notices = train(state, Scheduler(state), address, **how).notices
    if notices:
        raise RuntimeError("; ".join(notices))


if __name__ == "__main__":
    # Workers must import this module under its own name, not as `__main__`.
    from sweeps.bench import busy as bench_busy

    bench_busy._own(Path(sys.argv[1]), sys.argv[2])
