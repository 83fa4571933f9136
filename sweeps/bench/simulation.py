"""Simulation of a cluster in which a real run's scheduler and queue decide what is trained next."""

import heapq
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np

from sweeps.engine.cluster import Cluster, Node
from sweeps.engine.gpu_packing import GpuShares
from sweeps.engine.scheduler import Scheduler
from sweeps.engine.study_queue import StudyQueue
from sweeps.state import StudyState
from sweeps.store.records import Record

HANDED_S = 0.02
"""Time from the end of a task to the start of the next on the same GPU (`sweep bench --only busy`)."""
RESUMES_S = 15.0
"""Time from the loss of a worker to the next epoch of its task: new process, imports, checkpoint."""
RETURNS_S = 300.0
"""Time from the loss of a node to its replacement."""
EPOCHS = 8
"""Epochs of a search trial."""

_SHARE = {"cpu": 1.0, "gpu": 1.0}

Span = tuple[float, float]


@dataclass
class Outcome:
    """Result of a simulation; seconds are simulated unless a field says otherwise."""

    gpus: int
    makespan: float = 0.0
    work: float = 0.0
    """Seconds of all tasks, each counted once."""
    last: float = 0.0
    """Time of the first start of the last task; afterwards there are fewer tasks than GPUs."""
    ended: int = 0
    workers_lost: int = 0
    nodes_lost: int = 0
    used: list[Span] = field(default_factory=list)
    """Spans in which a GPU was in use, including work that was lost."""
    lived: list[Span] = field(default_factory=list)
    """Spans in which a node existed."""
    driver: float = 0.0
    """Seconds for which the driver was busy."""
    handed: list[float] = field(default_factory=list)
    """Real CPU seconds to select each task, without those of Tune."""
    finished: list[float] = field(default_factory=list)
    """Real CPU seconds to process the end of each task, without those of Tune."""

    def busy(self, until: float) -> float:
        """Share of the existing GPUs that were in use up to this time."""
        return _within(self.used, until) / (self.gpus * _within(self.lived, until))

    @property
    def over_bound(self) -> float:
        """Ratio of the makespan to its lower bound: all GPUs always busy, nothing lost, no driver."""
        nodes = sum(begin == 0 for begin, _ in self.lived)
        return self.makespan / (self.work / (nodes * self.gpus))


def _within(spans: Iterable[Span], until: float) -> float:
    return sum(max(0.0, min(end, until) - begin) for begin, end in spans)


@dataclass(eq=False)
class _Slot:
    """A GPU with its worker."""

    node: str
    trial: str = ""
    since: float = 0.0
    turn: int = 0
    """Number of its tasks so far; events of earlier tasks are ignored."""


class Simulation:
    """Simulated cluster whose workers finish a task after a drawn time.

    The scheduler, its searches, Optuna and Tune's search algorithm are those of a run. Tune itself is
    replaced by a server that needs `tune_s` for every end of a task. The CPU time of our own code is measured
    and added in simulated time. A lost task resumes from its last checkpoint.
    """

    def __init__(
        self,
        state: StudyState,
        seconds: Callable[[np.random.Generator], float],
        *,
        nodes: int,
        gpus: int,
        tune_s: float,
        worker_hours: float = math.inf,
        node_hours: float = math.inf,
    ) -> None:
        """`seconds` draws the time of a task; `worker_hours` and `node_hours` are mean lifetimes."""
        self.outcome = Outcome(gpus)
        self._state, self._seconds, self._tune_s = state, seconds, tune_s
        self._worker_s, self._node_s = 3600 * worker_hours, 3600 * node_hours
        self._rng = np.random.default_rng(0)
        self._now = self._driver_free = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._nodes: dict[str, tuple[float, list[_Slot]]] = {}
        self._free: deque[_Slot] = deque()
        self._waiting: deque[str] = deque()
        self._config: dict[str, dict[str, Any]] = {}
        self._left: dict[str, float] = {}
        self._finished = False
        for _ in range(nodes):
            self._node_joins()

    def run(self) -> Outcome:
        """Run until the scheduler has no task left."""
        nobody: Any = SimpleNamespace(ended=lambda kind, record: None, notice=lambda text: None)
        scheduler = Scheduler(self._state, clock=self._clock)
        cluster = Cluster(self._alive, lambda *_: [], nobody.notice, joined=True, clock=self._clock)
        shares = GpuShares(self._state.study, self._state.panel, cluster)
        self._queue = StudyQueue(scheduler, shares, nobody, cluster, clock=self._clock)
        self._hand_out()
        while self._config:
            self._now, _, event = heapq.heappop(self._events)
            event()
            self._hand_out()
        if scheduler.stopped or not self._finished:
            raise RuntimeError(f"stopped: {scheduler.stopped}")
        seen = self.outcome
        seen.makespan = max(self._now, self._driver_free)
        seen.lived += [(since, seen.makespan) for since, _ in self._nodes.values()]
        return seen

    def _clock(self) -> float:
        return self._now

    def _alive(self) -> list[Node]:
        resources = {"CPU": 2.0 * self.outcome.gpus, "GPU": float(self.outcome.gpus)}
        return [Node(name, name, resources) for name in self._nodes]

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, event))

    def _drive(self, seconds: float) -> None:
        """Add time to the driver, which does one thing at a time."""
        self._driver_free = max(self._driver_free, self._now) + seconds
        self.outcome.driver += seconds

    def _hand_out(self) -> None:
        """Ask for tasks and give them to free workers, repeatedly while this changes something, like Tune."""
        while self._asked() + self._begun():
            pass

    def _asked(self) -> int:
        before = len(self._config)
        while not self._finished:
            self._serial += 1
            trial = f"trial-{self._serial}"
            begin = time.process_time()
            config = self._queue.suggest(trial)
            took = time.process_time() - begin
            if config is None:
                break
            if isinstance(config, str):
                self._finished = True
                break
            self.outcome.handed.append(took)
            self._drive(took)
            self._config[trial] = config
            self._waiting.append(trial)
        return len(self._config) - before

    def _begun(self) -> int:
        count = 0
        while self._waiting and self._free:
            slot = self._free.popleft()
            if slot.node in self._nodes:
                self._begin(slot, self._waiting.popleft())
                count += 1
        return count

    def _begin(self, slot: _Slot, trial: str) -> None:
        self._queue.started(trial)
        key = self._config[trial]["key"]
        slot.trial, slot.turn = trial, slot.turn + 1
        slot.since = max(self._driver_free, self._now) + HANDED_S
        if key not in self._left:
            self._left[key] = self._seconds(self._rng)
            self.outcome.work += self._left[key]
            self.outcome.last = slot.since
        turn, ends = slot.turn, slot.since + self._left[key]
        dies = slot.since + self._drawn(self._worker_s)
        event = self._worker_dies if dies < ends else self._ends
        self._at(min(dies, ends), lambda: event(slot) if slot.turn == turn and slot.trial else None)

    def _drawn(self, mean: float) -> float:
        return self._rng.exponential(mean) if math.isfinite(mean) else math.inf

    def _ends(self, slot: _Slot) -> None:
        trial = self._released(slot)
        record = self._record(self._config.pop(trial), slot.since)
        self._drive(self._tune_s)
        begin = time.process_time()
        self._queue.ended(trial, record)
        took = time.process_time() - begin
        self._drive(took)
        self.outcome.finished.append(took)
        self.outcome.ended += 1
        self._free.append(slot)

    def _released(self, slot: _Slot) -> str:
        self.outcome.used.append((slot.since, self._now))
        trial, slot.trial = slot.trial, ""
        return trial

    def _record(self, config: dict[str, Any], since: float) -> Record:
        """Build the fields of a worker's record that the driver reads."""
        seconds = self._left.pop(config["key"])
        record = {"key": config["key"], "state": "done", "share": _SHARE, "seconds": seconds}
        if config["kind"] == "cell":
            return record
        more = json.loads(config["more"])
        rmse = 5 + float(self._rng.uniform(0, 1))
        stamps = [datetime.fromtimestamp(when, UTC).isoformat() for when in (since, self._now)]
        record |= {"scores": {"wr": {"rmse": rmse}}, "started": stamps[0], "ended": stamps[1]}
        return {**record, **more, "epochs": EPOCHS, "reported": [rmse + 1 / e for e in range(1, EPOCHS + 1)]}

    def _worker_dies(self, slot: _Slot) -> None:
        self.outcome.workers_lost += 1
        self._lost(slot)
        self._at(self._now + RESUMES_S, lambda: self._free.append(slot))

    def _lost(self, slot: _Slot) -> None:
        trial = self._released(slot)
        key = self._config.pop(trial)["key"]
        trained = max(0.0, self._now - slot.since)
        self._left[key] -= trained - trained % max(self._state.study.checkpoint_seconds, 1e-9)
        if not self._queue.lost(trial, frozenset(self._nodes)):
            raise RuntimeError(f"{key} was lost too often")

    def _node_joins(self) -> None:
        self._serial += 1
        name = f"node-{self._serial}"
        slots = [_Slot(name) for _ in range(self.outcome.gpus)]
        self._nodes[name] = self._now, slots
        self._free.extend(slots)
        if math.isfinite(self._node_s):
            self._at(self._now + self._drawn(self._node_s), lambda: self._node_leaves(name))

    def _node_leaves(self, name: str) -> None:
        """Lose the workers of a node before the node, as Ray reports them in this order."""
        self.outcome.nodes_lost += 1
        for slot in self._nodes[name][1]:
            if slot.trial:
                self._lost(slot)
        since, _ = self._nodes.pop(name)
        self.outcome.lived.append((since, self._now))
        self._at(self._now + RETURNS_S, self._node_joins)
