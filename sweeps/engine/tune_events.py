"""Tune's events in the driver: pruning, and the end of each task, passed to the queue and the observer."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from pm25.errors import InputError
from pm25.panel import Panel
from sweeps.engine import ray_internals, worker
from sweeps.engine.study_queue import Observer, StudyQueue
from sweeps.engine.trainable import FAULT, REFUSED, SHARED_GPU_IS_FULL
from sweeps.store.records import Record, Store


class ArmPruning(FIFOScheduler):
    """Ends search trials that are worse than others of their arm, and makes Tune forget ended trials."""

    def __init__(self, queue: StudyQueue) -> None:
        super().__init__()
        self._queue = queue
        self._over: set[Trial] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing. Tune pickles its scheduler for a restore, which this project never does."""
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none, so that a free worker takes the task handed out next (see `StudyQueue`).

        FIFO would choose the task that has waited longest, and cancel the worker that is starting for it.
        """
        # Tune has done everything with these trials since its last step.
        ray_internals.forget_trials(tune_controller, self._over)
        self._over.clear()

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Note a trial to forget."""
        self._over.add(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Note a trial to forget."""
        self._over.add(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """End a search trial if the queue prunes it after the epochs that it reports."""
        pruned = self._queue.prunes(trial.trial_id, result["reported"])
        return str(self.STOP if pruned else self.CONTINUE)


class TuneEvents(tune.Callback):
    """Records what Tune says of each task, and passes it to the queue and the observer."""

    def __init__(
        self,
        queue: StudyQueue,
        store: Store,
        observer: Observer,
        panel: Panel,
        check_ray: Callable[[], None],
    ) -> None:
        """`check_ray` raises an error if Ray itself has died, which ends all workers."""
        self._queue, self._store, self._observer = queue, store, observer
        self._data, self._check_ray = panel.fingerprint, check_ray

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing. Tune pickles its callbacks for a restore, which this project never does."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the run if an event met a fault. Tune passes on an exception from here, and only from here."""
        if self._queue.fault is not None:
            raise self._queue.fault

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Pass on that a worker has started a task."""
        with self._faults():
            self._queue.started(trial.trial_id)
            for task in self._queue.task(trial.trial_id).members:
                self._observer.started(task.key, task.kind)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Pass on the records of the cells of a stack that have ended, while others go on."""
        if self._queue.fault is None and result.get("recorded") and not result.get("done"):
            with self._faults():
                self._members_ended(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Pass on the record of a task, or why it has none yet; record a search trial that was pruned."""
        if self._queue.fault is not None:
            return
        with self._faults():
            self._complete(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Queue the task of a lost worker again, or record its failure if it was lost too often."""
        if self._queue.fault is not None:
            return
        with self._faults():
            self._check_ray()
            self._lost(trial)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Keep an exception for `on_step_end`. Tune would count it as a failure of the trial."""
        try:
            yield
        except Exception as error:
            self._queue.end(error)

    def _complete(self, trial: Trial) -> None:
        result = trial.last_result
        if result.get("state") == SHARED_GPU_IS_FULL:
            self._queue.retry_alone(trial.trial_id)
            return
        if result.get("state") == FAULT:
            self._queue.end(result["why"])
            return
        if result.get("state") == REFUSED:
            self._queue.refuse(trial.trial_id, InputError(*result["why"]))
            return
        self._members_ended(trial)
        record = self._records(trial).record(self._queue.task(trial.trial_id).key)
        if record is None:  # pruned by the driver
            draft = {**json.loads(result["draft"]), "state": "pruned"}
            record = worker.end_trial(draft, self._records(trial))
        self._ended(trial, record)

    def _members_ended(self, trial: Trial) -> None:
        """Pass on the records of the cells of a stack, except that of the last cell of the task."""
        for task in self._queue.task(trial.trial_id).members:
            if len(self._queue.task(trial.trial_id).members) == 1:
                return
            if (record := self._store.record(task.key)) is not None:
                self._queue.member_ended(trial.trial_id, record)
                self._observer.ended(task.kind, record)

    def _lost(self, trial: Trial) -> None:
        self._members_ended(trial)
        task, records = self._queue.task(trial.trial_id), self._records(trial)
        record = records.record(task.key)
        if record is None:
            error = ray_internals.trial_error(trial)
            alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
            announced = bool(getattr(error, "preempted", False) or ray_internals.draining_nodes())
            reason = str(error or "its worker died").strip().splitlines()[-1]
            if self._queue.lost(trial.trial_id, alive, announced=announced, why=reason):
                return
            for one in task.members:
                own = {"cell": one.cells[0].resolved()} if one.kind == "cell" else worker.NOTHING_SPENT
                known = {"data": self._data, "numerics": one.cells[0].numerics}
                worker.record_loss({"key": one.key, **own, **known, **one.more}, records, reason)
            self._members_ended(trial)
            record = records.record(self._queue.task(trial.trial_id).key)
        assert record is not None
        self._ended(trial, record)

    def _records(self, trial: Trial) -> Store:
        return self._store if trial.config["kind"] == "cell" else self._store.search

    def _ended(self, trial: Trial, record: Record) -> None:
        self._queue.ended(trial.trial_id, record)
        self._observer.ended(trial.config["kind"], record)
