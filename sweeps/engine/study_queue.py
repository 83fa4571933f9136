"""The Tune searcher: hands Tune one task after the other, and takes back what a lost worker had."""

import json
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.tune.search import Searcher

from pm25.errors import InputError
from sweeps.engine.cluster import Cluster
from sweeps.engine.gpu_packing import GpuShares
from sweeps.engine.scheduler import Scheduler, Task
from sweeps.store.records import Record

LOSSES_FORGIVEN = 3
"""Number of times that a task whose worker died is started again before it counts as failed.

Losses of complete nodes are not counted, and neither are losses before the training has started.
"""

STARTS_FORGIVEN = 10
"""Number of workers in a row that may die while they start; with one more, the run ends."""

WORKER_STARTS_S = 60.0
"""Time after which a waiting task takes the next free worker, as in a cluster that others use too."""

STACK_ROUNDS = 3
"""Cells that a stack gets for each of its places."""

NOTICE_EVERY_S = 300.0
"""Time between two notices about waiting tasks while nothing trains."""


class Observer(Protocol):
    """Receives the events of a run, in the driver's process; `kind` is "cell" or "trial"."""

    def check_ready(self) -> None:
        """Check what the run needs, after Ray has started and before any task. An exception ends the run."""

    def notice(self, text: str) -> None:
        """Show the user a line about the cluster."""

    def started(self, key: str, kind: str) -> None:
        """A worker has started a task."""

    def ended(self, kind: str, record: Record) -> None:
        """A task has ended and is recorded."""


class StudyQueue(Searcher):
    """Hands grid cells and search trials to Tune as the scheduler releases them, in one run.

    The queue hands out as many tasks as the nodes can hold. When each of these has its worker, it hands out
    one more. So a free worker has its next task at once, and an autoscaler sees that there is work. A search
    is asked for a point no earlier than necessary. The extra task must not come at once. Tune would give the
    first free worker to it, and cancel the worker that is being started for it. The first workers would then
    do all trainings that are shorter than the start of a worker. Measured with trainings of 3 s and 8 places:
    8 busy workers this way, 5 with an extra task at once, 2 with one task at a time.

    A task whose worker was lost is handed out again. Tune's own retries are not used, because Tune gives up a
    trial whose worker dies between two trials.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        shares: GpuShares,
        observer: Observer,
        cluster: Cluster,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(metric="ended", mode="max")
        self._clock = clock
        self._scheduler, self._shares, self._observer = scheduler, shares, observer
        self._cluster, self._last_share = cluster, shares.whole
        self._noticed = -math.inf
        self.refused: InputError | None = None
        """Why a node cannot work for the study; None while all can."""
        self.fault: BaseException | None = None
        """Why the run ends at once, without waiting for the running tasks; None while it continues."""
        self._failed_starts = 0
        self._again: deque[tuple[Task, dict[str, Any]]] = deque()
        self._running: dict[str, tuple[Task, dict[str, Any]]] = {}
        self._waiting: dict[str, float] = {}  # running tasks without a worker: since when, the oldest first
        self._losses: defaultdict[str, list[frozenset[str]]] = defaultdict(list)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next task's config, None while more may come, or `Searcher.FINISHED`."""
        if not self._has_capacity():
            return None
        if self._again and not self._scheduler.stopped:
            task, config = self._again.popleft()
        else:
            found = self._scheduler.next()
            while self._scheduler.copied:
                self._observer.ended("trial", self._scheduler.copied.pop(0))
            if found is None:
                more = self._running or (self._again and not self._scheduler.stopped)
                return None if more else Searcher.FINISHED
            task = self._stacked(found) if found.kind == "cell" else found
            config = self._config(task)
        self._last_share = config["gpu"]
        self._running[trial_id] = task, config
        self._waiting[trial_id] = self._clock()
        return config

    def _stacked(self, task: Task) -> Task:
        """Add the cells that a worker trains in lockstep with this one, if that is faster.

        A stack gets some cells for each of its places, because a place is free again when its training has
        ended. It gets no more than its GPU's part of the cells that are ready.
        """
        size = self._shares.stack(task.cells[0])
        if size == 1:
            return task
        ready = 1 + self._scheduler.ready(self._shares.stack_kind, task.cells[0])
        most = min(STACK_ROUNDS * size, math.ceil(ready / max(1.0, self._cluster.gpus)))
        return self._scheduler.stack(task, most, self._shares.stack_kind)

    def _config(self, task: Task) -> dict[str, Any]:
        """Return the config of a Tune trial, which Tune passes to the worker."""
        config: dict[str, Any] = {"kind": task.kind, "key": task.key, "gpu": self._shares.gpu(task)}
        if task.also:
            config["slots"] = min(self._shares.stack(task.cells[0]), len(task.members))
            config["keys"] = [one.key for one in task.members]
            config["cells"] = [one.cells[0].model_dump_json() for one in task.members]
            config["more"] = json.dumps([dict(one.more) for one in task.members])
        else:
            config["cells"] = [cell.model_dump_json() for cell in task.cells]
            config["more"] = json.dumps(dict(task.more))
        return config

    def _has_capacity(self) -> bool:
        self._cluster.count()
        self._notice_waiting()
        counted = Counter(config["gpu"] for _, config in self._running.values())
        holds = {
            share: self._cluster.holds(self._shares.cpu, share) for share in {*counted, self._last_share}
        }
        if self._cluster.autoscales and len(self._waiting) < max(8, holds[self._last_share]):
            return True  # an autoscaler starts as many nodes as the waiting tasks would fill
        if not all(holds.values()):
            return not self._waiting
        used = math.fsum(number / holds[share] for share, number in counted.items())
        if not self._waiting:
            return used < 1 + 1e-9
        overdue = self._clock() - next(iter(self._waiting.values())) > WORKER_STARTS_S
        return used < 1 - 1e-9 and not overdue

    def _notice_waiting(self) -> None:
        """Tell the user now and then what is waited for, while nothing trains."""
        now = self._clock()
        if not self._waiting or len(self._waiting) < len(self._running):
            return
        if now - self._noticed < NOTICE_EVERY_S:
            return
        trial_id, since = next(iter(self._waiting.items()))
        if now - since > WORKER_STARTS_S:
            self._noticed = now
            gpu = self._running[trial_id][1]["gpu"]
            self._observer.notice(
                f"{len(self._waiting)} trainings wait for a node with {self._shares.cpu:g} CPU, {gpu:g} GPU; "
                f"there are {self._cluster.outline}"
            )

    def task(self, trial_id: str) -> Task:
        """Return the task of a Tune trial that has not ended."""
        return self._running[trial_id][0]

    def started(self, trial_id: str) -> None:
        """Mark a task as started. Tune restarts a task itself if the loss of its node was announced."""
        self._waiting.pop(trial_id, None)
        self._failed_starts = 0

    def prunes(self, trial_id: str, reported: Sequence[float | None]) -> bool:
        """Return whether to end a task that has reported these validation RMSEs, one per epoch."""
        return self._scheduler.prunes(self.task(trial_id), reported)

    def ended(self, trial_id: str, record: Record) -> None:
        """Pass the record of an ended task to the scheduler."""
        task, _ = self._pop(trial_id)
        self._shares.learn(task, record)
        self._scheduler.ended(task, record)

    def member_ended(self, trial_id: str, record: Record) -> None:
        """Pass on the record of one cell of a stack, whose other cells go on."""
        task, config = self._running[trial_id]
        members = {one.key: one for one in task.members}
        member = members.pop(record["key"])
        self._running[trial_id] = Task.joined([*members.values()]), config
        self._scheduler.ended(member, record)

    def lost(self, trial_id: str, nodes: frozenset[str], *, announced: bool = False, why: str = "") -> bool:
        """Queue a task again whose worker died without a record; False if it has been lost too often.

        `announced` says that the loss of its node was announced, as for a spot instance that is taken back.
        Otherwise `nodes`, the ids of those alive, decide: Ray reports the loss of a worker before that of its
        node. A loss is therefore forgiven once a node that was alive at that time is gone. A worker that dies
        while it starts is not the task's loss; if too many do, the run ends, with Ray's reason `why`.
        """
        if trial_id in self._waiting:
            self._failed_starts += not announced
            if self._failed_starts > STARTS_FORGIVEN:
                self.end(_no_worker_starts(self._failed_starts, why))
            self._queue_again(trial_id)
            return True
        losses = self._losses[self.task(trial_id).key]
        if not announced:
            losses.append(nodes)
        if sum(then <= nodes for then in losses) > LOSSES_FORGIVEN:
            return False
        self._queue_again(trial_id)
        return True

    def _queue_again(self, trial_id: str) -> None:
        """Queue a task again, with the same share; of a stack, the cells that have not ended."""
        task, config = self._pop(trial_id)
        self._again.append((task, self._config(task) | {"gpu": config["gpu"]}))

    def retry_alone(self, trial_id: str) -> None:
        """Queue a task again that ran out of a GPU's memory, each cell for a GPU of its own."""
        task, config = self._pop(trial_id)
        gpu = float(math.ceil(max(config["gpu"], 0.5)))
        self._again += [(one, self._config(one) | {"gpu": gpu}) for one in task.members]

    def refuse(self, trial_id: str, error: InputError) -> None:
        """Stop because a node cannot work for the study; running tasks finish, and this one stays missing."""
        self._queue_again(trial_id)
        self.refused = self.refused or error
        self._scheduler.stop(str(error))

    def end(self, fault: BaseException) -> None:
        """End the run at once; its tasks stay missing. The first fault is kept."""
        self.fault = self.fault or fault

    def _pop(self, trial_id: str) -> tuple[Task, dict[str, Any]]:
        self._waiting.pop(trial_id, None)
        return self._running.pop(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: `ended` passes on the record."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing. Tune calls it; a restarted run reads the store instead."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing. Tune pickles its searcher for a restore, which this project never does."""
        return {}


def _no_worker_starts(number: int, why: str) -> InputError:
    """Return the error of a run whose workers die before they train."""
    problem = f"{number} workers in a row died while they started{f' ({why})' if why else ''}"
    fix = "free memory, or run fewer trainings side by side with a larger resources.cpu"
    return InputError("Ray", "", problem, f"{fix}; then run the same command again")
