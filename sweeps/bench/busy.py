"""How busy a run keeps four GPUs, over work of uneven length with search and grid mixed."""

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
from pm25.metrics import SCORES
from pm25.panel import Panel
from sweeps.bench.engine import trivial
from sweeps.bench.trial import Measurement
from sweeps.engine import worker
from sweeps.state import StudyState
from sweeps.store.records import Record, Store

GPUS = 4
"""As many as Ray is told that the machine has; what runs on them sleeps."""
ARMS = ("none", "latlon", "sincos")
TRIALS, FOLDS, SEEDS = 6, 7, 2
"""Of each arm: 18 search trials and 42 cells, 60 pieces of work."""
SHORTEST_S, LONGEST_S = 1.0, 8.0
SPREAD = 0.64
"""Of the logarithms of the seconds: that of 77 trainings of `quick`, which took 16 to 222 s."""
FILE = "busy.yaml"
EPOCHS = 5
"""Of a search trial."""
STARTS_S = 60.0
"""Ray's own start may take so long."""


class Piece(NamedTuple):
    """A cell or a search trial that has ended; times are seconds since 1970."""

    kind: str
    worker: int
    begin: float
    end: float
    gpu: float
    """What it had of its GPU, less for a trial that waited between its epochs for what Tune has to say."""


class Timeline(NamedTuple):
    """What became of the GPUs' time."""

    warm: float
    """When all of them had begun their first piece; seconds after the first did."""
    busy: float
    """Share of the GPUs' time from then until the last piece began: until there was nothing left to begin."""
    busy_to_the_end: float
    gaps: tuple[float, ...]
    """Between the end of a piece and the beginning of the next on the same GPU, sorted; after the warm-up."""
    wall: float
    """From the warm-up to the end."""


def run(folder: Path) -> Iterator[Measurement]:
    """A whole `sweep run` that joins a Ray of its own with four pretended GPUs."""
    pieces = _pieces(folder / "busy")
    seen = timeline(pieces, GPUS)
    lengths = sorted(piece.end - piece.begin for piece in pieces)
    kinds = [piece.kind for piece in pieces]
    words = (
        f"{kinds.count('trial')} search trials and {kinds.count('cell')} cells of {lengths[0]:.1f} to "
        f"{lengths[-1]:.1f} s (median {statistics.median(lengths):.1f}), from when all GPUs had begun to the "
        f"last beginning; a trial's waits between epochs count as idle; between two pieces on one GPU "
        f"{1000 * statistics.median(seen.gaps):.0f} ms (median), {seen.gaps[-1]:.2f} s at most"
    )
    yield Measurement("busy share of four GPUs", seen.busy, "", 0.95, words, at_least=True)
    words = f"{seen.wall:.0f} s, the last pieces included, when fewer than four are left"
    yield Measurement("the same to the very end", seen.busy_to_the_end, "", 0.85, words, at_least=True)


def timeline(pieces: Sequence[Piece], gpus: int) -> Timeline:
    """Of pieces that ran on so many GPUs, each of whose workers keeps its GPU."""
    lanes: defaultdict[int, list[Piece]] = defaultdict(list)
    for piece in sorted(pieces, key=lambda piece: piece.begin):
        lanes[piece.worker].append(piece)
    firsts = sorted(lane[0].begin for lane in lanes.values())
    warm, last = firsts[gpus - 1], max(piece.begin for piece in pieces)
    end = max(piece.end for piece in pieces)

    def busy(until: float) -> float:
        spent = (max(0.0, min(p.end, until) - max(p.begin, warm)) * p.gpu for p in pieces)
        return sum(spent) / (gpus * (until - warm))

    pairs = [pair for lane in lanes.values() for pair in pairwise(lane)]
    gaps = sorted(after.begin - before.end for before, after in pairs if before.end >= warm)
    return Timeline(warm - firsts[0], busy(last), busy(end), tuple(gaps), end - warm)


def seconds(name: str) -> float:
    """How long a piece takes: heavy-tailed, always the same for one name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    drawn = np.random.default_rng(seed).lognormal(np.log(2 * SHORTEST_S), SPREAD)
    return float(np.clip(drawn, SHORTEST_S, LONGEST_S))


def sleeping_cell(
    cell: Cell,
    key: str,
    panel: Panel,
    store: Store,
    *,
    more: Mapping[str, Any] = MappingProxyType({}),
    **_: Any,
) -> Record:
    """In the place of `worker.train_and_record`: takes its time, and leaves what a trivial cell does."""
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    time.sleep(seconds(cell.label))
    return trivial(cell, key, panel, store, more={**more, "started": began, "process": os.getpid()})


class SleepingTrial(worker.SearchTrial):
    """A search trial whose training takes its time and nothing else; the rest of it is real."""

    def _prepare(self) -> None:
        if self._to_prepare:
            training: Any = _Nap(f"{self.draft['arm']} trial {self.draft['number']}")
            self._trainings, self._to_prepare = [training], []


class _Nap:
    """As much of a `pm25.trial.Training` as a search trial asks for."""

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
        names = SCORES
        return SimpleNamespace(metrics={f"val_wr_{name}": self._rmse for name in names})


def study(folder: Path) -> StudyState:
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
    file.write_text(yaml.safe_dump(declared))
    return StudyState(str(file))


def _pieces(folder: Path) -> list[Piece]:
    """Run the study in a process of its own, and read back what its records tell."""
    state, environment = study(folder), _environment()
    with _cluster(environment) as address:
        command = [sys.executable, "-W", "ignore", "-m", "sweeps.bench.busy", str(folder), address]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(answer.stderr[-2000:])
    state.refresh()
    ended = [("cell", record) for record in state.records().values()]
    ended += [("trial", record) for record in state.trials()]
    if failed := [record for _, record in ended if record["state"] != "done"]:
        raise RuntimeError(failed[0]["error"]["traceback"])
    return [_piece(kind, record) for kind, record in ended]


def _piece(kind: str, record: Record) -> Piece:
    begin, end = _at(record["started"]), _at(record["ended"])
    at_work = record["seconds"] / (end - begin) if kind == "trial" else 1.0
    return Piece(kind, record["process"], begin, end, record["share"]["gpu"] * at_work)


def _at(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _environment() -> dict[str, str]:
    """Of the cluster and of the run: the GPUs are pretended, each with so many GB."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    return {**os.environ, **token, "SWEEP_PRETEND_GPUS": "16", "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def _cluster(environment: Mapping[str, str]) -> Iterator[str]:
    """The address of a Ray of its own on this machine, with pretended GPUs; it ends with the context."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--num-gpus={GPUS}", f"--num-cpus={GPUS}", "--include-dashboard=false"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={scratch}"]
        command += [f"--dashboard-agent-listen-port={_free_port()}", f"--object-store-memory={2**28}"]
        with tempfile.TemporaryFile("w+") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                until = time.monotonic() + STARTS_S
                while "Ray runtime started" not in _told(log):
                    if head.poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"ray start: {_told(log)[-2000:]}")
                    time.sleep(0.2)
                yield f"127.0.0.1:{port}"
            finally:
                head.terminate()
                head.wait(STARTS_S)


def _told(log: Any) -> str:
    log.seek(0)
    return str(log.read())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own(folder: Path, address: str) -> None:
    """A `sweep run` whose trainings sleep."""
    from sweeps.driver import train
    from sweeps.engine.scheduler import Scheduler
    from sweeps.store.lock import StudyLock

    state = StudyState(str(folder / FILE))
    state.store.prepare()
    with StudyLock(state.store):
        how: dict[str, Any] = {"train_cell": sleeping_cell, "search_trial": SleepingTrial}
        notices = train(state, Scheduler(state), address, **how)
    if notices:
        raise RuntimeError("; ".join(notices))


if __name__ == "__main__":
    # Workers import this module by its name, and not as the main program.
    from sweeps.bench import busy as bench_busy

    bench_busy._own(Path(sys.argv[1]), sys.argv[2])
