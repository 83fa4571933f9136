"""The Ray Tune run: hands out the cells that are missing; the only module that imports ray."""

import contextlib
import functools
import json
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a cell with 0 GPUs sees none
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our store and MLflow view replace them
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the run at once: nothing done is lost
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE", "1")  # else Tune begins it again behind us
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")  # its snapshots are never restored
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000000")  # workers start side by side
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

if "mlflow" not in sys.modules:
    # Ray's MLflow callback, which Tune imports to count the callbacks of each kind, does without it; so the
    # driver is spared its import: 40 MB, and 0.6 s of every start.
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    import ray.air.integrations.mlflow

    del sys.modules["mlflow"]

import click
import grpc
import ray
from ray import cloudpickle, tune
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import pm25
import sweeps
from pm25 import encoders
from pm25.cell import Cell
from pm25.encoders import Embedded
from pm25.errors import InputError
from pm25.network_shape import NetworkShape
from pm25.panel import Panel
from sweeps.engine import cluster as nodes
from sweeps.engine import measure, worker
from sweeps.engine.cluster import Cluster, HeadLost, Node, StorageProbe
from sweeps.engine.gpu_packing import Footprint, GpuShares
from sweeps.engine.scheduler import Scheduler, Task
from sweeps.spec.design import Arm
from sweeps.spec.study import Study
from sweeps.store.records import Record, Store
from sweeps.store.search_trials import ArmTrials

# A trial that ends in an error is recorded and reported by ourselves.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

LOSSES_BORNE = 3
"""How often a training whose worker died is started again before that counts as its failure.

The loss of a whole node is nobody's fault and is not counted.
"""


class Observer(Protocol):
    """What a caller hears while the run goes on, in the driver's process; `kind` is cell or trial."""

    def begins(self) -> None:
        """Ray is up, and nothing is handed out yet; what this raises ends the run."""

    def notice(self, text: str) -> None:
        """What the user should know of the cluster."""

    def started(self, key: str, kind: str) -> None: ...

    def ended(self, kind: str, record: Record) -> None: ...


def run(
    agenda: Scheduler,
    panel: Panel,
    store: Store,
    study: Study,
    observer: Observer,
    *,
    address: str | None = None,
    waits: bool = False,
    train_cell: Callable[..., Record] = worker.run_and_record,
    search_trial: type[worker.SearchTrial] = worker.SearchTrial,
) -> None:
    """Train what the agenda hands out, and record each in the store as it ends.

    Starts a Ray of its own, or joins the one at `address`. The panel and the embeddings are put into the
    object store once, and every node's workers share one read-only copy. With `waits` nodes that can hold a
    training may still have to come. `train_cell` is called for grid cells as `work.run_and_record` is, and
    search trials are `search_trial`s. Raises InputError when no node can hold a training, or one does not
    see the storage.
    """
    joined = address is not None
    with _connected(address, panel), contextlib.ExitStack() as ending:
        cluster = Cluster(_nodes, _everywhere, observer.notice, joined=joined, waits=waits)
        cluster.check(study.resources)
        mark = None
        if joined:
            mark = StorageProbe.put(store)
            ending.callback(mark.remove)
            cluster.look(mark)
        observer.begins()
        used = sorted(agenda.encoders())
        embeddings = _embed({name: study.encoder_options(name) for name in used}, panel)
        shared = ray.put((panel, embeddings))
        if joined:
            cluster.spread(_arrived, shared, panel, embeddings)
        shares = GpuShares(study, panel, cluster)
        shares.measure(agenda, store, partial(_footprints, shared), observer.notice)
        trainable = tune.with_resources(
            tune.with_parameters(
                StudyTrainable,
                shared={"panel and embeddings": shared},  # in a dict, a reference stays one
                store=store,
                keeps_weights=study.keeps_weights,
                checkpoint_seconds=study.checkpoint_seconds,
                train_cell=train_cell,
                mark=mark,
                pretended=nodes.pretended_mb() is not None,
                search_trial=search_trial,
            ),
            partial(_resources, study.resources.cpu),
        )
        queue = StudyQueue(agenda, store, shares, observer, cluster)
        with tempfile.TemporaryDirectory(prefix="sweep-tune-") as scratch:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=queue,
                    scheduler=ArmPruning(queue),
                    num_samples=-1,
                    reuse_actors=True,
                    metric="ended",
                    mode="max",
                ),
                run_config=tune.RunConfig(
                    name=store.study,
                    storage_path=scratch,  # Tune's own record is not kept: the store is the truth
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    callbacks=[TuneEvents(queue, store, observer, panel), NoReporter()],
                ),
            )
            try:
                tuner.fit()
            except tune.TuneError as error:  # what a storage that is gone makes our callbacks raise
                if isinstance(error.__context__, InputError):
                    raise error.__context__ from None
                raise
        if queue.refused:
            raise InputError(queue.refused)


class StudyQueue(Searcher):
    """Hands grid cells and search trials to Tune as the agenda releases them: one run, no barrier.

    As many as the nodes hold, and one more when each of them has its worker, so that a free worker has its
    next at once, an autoscaler sees that there is work, and a search is asked for no point earlier than it
    must be. Not before: Tune gives a free worker to what waits, and ends the one that was being started for
    it, so that the first workers would do all trainings that are shorter than a worker's start. (Of 3 s, with
    room for 8: all 8 train; 5 where one more waits from the beginning, 2 where they are handed out singly.)

    What a lost worker had is handed out once more. Tune's own retries are not used: it gives up a trial
    whose worker dies between two trials.
    """

    def __init__(
        self, agenda: Scheduler, store: Store, shares: GpuShares, observer: Observer, cluster: Cluster
    ) -> None:
        super().__init__(metric="ended", mode="max")
        self._agenda, self._store, self._shares, self._observer = agenda, store, shares, observer
        self._cluster, self._last_share = cluster, shares.whole
        self._said = -math.inf
        self.refused = ""
        """Why the study cannot go on with this cluster; empty while it can."""
        self._arms = {arm: _ArmQueue(trials) for arm, trials in agenda.searches.items()}
        self._again: deque[tuple[Task, dict[str, Any]]] = deque()
        self._running: dict[str, tuple[Task, dict[str, Any]]] = {}
        self._waiting: dict[str, float] = {}  # of these, without a worker: since when, the oldest first
        self._losses: defaultdict[str, list[frozenset[str]]] = defaultdict(list)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next training's config; None while more may come; FINISHED."""
        if not self._has_room():
            return None
        if self._again and not self._agenda.stopped:
            work_, config = self._again.popleft()
        else:
            found = self._agenda.next(self)
            if found is None:
                more = self._running or (self._again and not self._agenda.stopped)
                return None if more else Searcher.FINISHED
            config = {"kind": found.kind, "key": found.key, "gpu": self._shares.gpu(found)}
            work_ = found
            config["cells"] = [cell.model_dump_json() for cell in found.cells]
            config["more"] = json.dumps(dict(found.more))
        self._last_share = config["gpu"]
        self._running[trial_id] = work_, config
        self._waiting[trial_id] = time.monotonic()
        return config

    def _has_room(self) -> bool:
        self._cluster.count()
        self._say_what_waits()
        counted = Counter(config["gpu"] for _, config in self._running.values())
        holds = {
            share: self._cluster.holds(self._shares.cpu, share) for share in {*counted, self._last_share}
        }
        if self._cluster.autoscales and len(self._waiting) < max(8, holds[self._last_share]):
            return True  # an autoscaler brings as many nodes as what waits would fill
        if not all(holds.values()):
            return not self._waiting
        taken = math.fsum(number / holds[share] for share, number in counted.items())
        if not self._waiting:
            return taken < 1 + 1e-9
        overdue = time.monotonic() - next(iter(self._waiting.values())) > WORKER_STARTS_S
        return taken < 1 - 1e-9 and not overdue

    def _say_what_waits(self) -> None:
        """Where nothing trains, and no worker comes."""
        now = time.monotonic()
        if not self._waiting or len(self._waiting) < len(self._running) or now - self._said < SAID_EVERY_S:
            return
        trial_id, since = next(iter(self._waiting.items()))
        if now - since > WORKER_STARTS_S:
            self._said = now
            gpu = self._running[trial_id][1]["gpu"]
            self._observer.notice(
                f"{len(self._waiting)} trainings wait for a node with {self._shares.cpu:g} CPU, {gpu:g} GPU; "
                f"there are {self._cluster.outline}"
            )

    def started(self, trial_id: str) -> None:
        """It has a worker; one whose node's loss was announced gets another from Tune itself."""
        self._waiting.pop(trial_id, None)

    def ask(self, arm: Arm) -> tuple[str, dict[str, Any]]:
        """A point of the arm's space that Optuna wants to know of next."""
        return self._arms[arm].ask()

    def tell(self, arm: Arm, asked: str, record: Record) -> None:
        """What came of a point."""
        self._arms[arm].tell(asked, record)
        if "same_as" in record:  # it was tried before, and no worker heard of it
            self._observer.ended("trial", record)

    def prunes(self, trial_id: str, reported: Sequence[float]) -> bool:
        """A search trial has told of another epoch: whether it is to be ended."""
        work_, _ = self._running[trial_id]
        return work_.kind == "trial" and self._arms[work_.arm].prunes(work_.asked, reported)

    def ended(self, trial_id: str, record: Record) -> None:
        """It is recorded."""
        work_, _ = self._pop(trial_id)
        self._shares.learn(work_, record)
        if work_.kind == "trial":
            self.tell(work_.arm, work_.asked, record)
        self._agenda.ended(work_, record)

    def lost(self, trial_id: str, nodes: frozenset[str], *, announced: bool = False) -> bool:
        """The worker died and left no record: whether it is tried again, or given up.

        `announced` says that its node was to go, as a spot instance that is taken back. Else `nodes`, those
        that live, must tell: Ray says of a worker only that it is gone, and of its node a while later; so a
        loss is forgiven when a node that lived then lives no more.
        """
        losses = self._losses[self._running[trial_id][0].key]
        if not announced:
            losses.append(nodes)
        if sum(then <= nodes for then in losses) > LOSSES_BORNE:
            return False
        self._again.append(self._pop(trial_id))
        return True

    def alone(self, trial_id: str) -> None:
        """It ran out of a shared GPU's memory: it is tried again on a whole one."""
        work_, config = self._pop(trial_id)
        self._again.append((work_, config | {"gpu": float(math.ceil(max(config["gpu"], 0.5)))}))

    def refuse(self, trial_id: str, why: str) -> None:
        """A node cannot work for the study, and says why: nothing more is begun, what runs is finished."""
        self._again.append(self._pop(trial_id))
        self.refused = self.refused or why
        self._agenda.stop(why)

    def work(self, trial_id: str) -> Task:
        return self._running[trial_id][0]

    def _pop(self, trial_id: str) -> tuple[Task, dict[str, Any]]:
        self._waiting.pop(trial_id, None)
        return self._running.pop(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to learn here: `ended` tells it with the record."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a restart makes everything afresh from the store."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given for a restore that we never make."""
        return {}


class _ArmQueue:
    """An arm's `OptunaSearch`, spoken to by the numbers that the study gives its trials."""

    def __init__(self, trials: ArmTrials) -> None:
        from sweeps.engine.optuna_study import Optimiser

        self._trials = trials
        self._optimiser = Optimiser(trials)
        objectives = list(trials.search.objective)
        mode = "min" if trials.search.smaller_is_better else "max"
        two = len(objectives) > 1
        self._search = OptunaSearch(
            self._optimiser.suggest,
            metric=objectives if two else objectives[0],
            mode=[mode] * 2 if two else mode,
            sampler=self._optimiser.sampler,
            storage=self._optimiser.storage,
            study_name=self._optimiser.name,
        )
        self._numbers: dict[str, int] = {}
        self._reported: Counter[str] = Counter()

    def ask(self) -> tuple[str, dict[str, Any]]:
        asked = f"ask-{len(self._numbers)}"
        point = self._search.suggest(asked)
        self._numbers[asked] = point.pop("number")
        return asked, point

    def prunes(self, asked: str, reported: Sequence[float | None]) -> bool:
        """Tell Optuna of the epochs that it has not heard of; whether it ends the trial at one of them."""
        if not self._trials.search.reports:
            return False
        begin, self._reported[asked] = self._reported[asked], len(reported)
        for epoch, rmse in enumerate(reported[begin:], begin + 1):
            if rmse is None or not math.isfinite(rmse):  # where log1p is undone it may be infinite
                continue
            told = {self._trials.search.objective[0]: rmse, TRAINING_ITERATION: epoch}
            self._search.on_trial_result(asked, told)
            if self._optimiser.prunes(self._numbers[asked]):  # at this epoch, not at the last of several
                return True
        return False

    def tell(self, asked: str, record: Record) -> None:
        """A trial that was pruned is told as pruned, with what it reported; never as if it were done."""
        if record["state"] == "done":
            self.prunes(asked, record["reported"])  # the last epochs: others are compared with them
            values = self._trials.values(record)
            told = dict(zip(self._trials.search.objective, values, strict=True))
            self._search.on_trial_complete(asked, told)
        else:
            self._search.on_trial_complete(asked, error=record["state"] == "failed")


class ArmPruning(FIFOScheduler):
    """Ends search trials that are worse than others of their own arm; grid cells always go on.

    It also makes Tune forget what has ended: 12 kB each, and all of it written and read once more at the end.
    """

    def __init__(self, queue: StudyQueue) -> None:
        super().__init__()
        self._queue = queue
        self._over: set[Trial] = set()

    def __getstate__(self) -> dict[str, Any]:
        """As of the queue."""
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: a free worker takes what is handed out next, and what waits for its own gets that.

        FIFO would name what has waited longest, which then takes the free worker (see `StudyQueue`).
        """
        controller = tune_controller._tune_controller
        for trial in self._over:  # what it does with them is done since its last step
            controller._trials.remove(trial)
            for kept in (
                controller._live_trials,
                controller._stopped_trials,
                controller._failed_trials,
                controller._trials_to_cache,
            ):
                kept.discard(trial)
        self._over.clear()

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._over.add(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._over.add(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        pruned = self._queue.prunes(trial.trial_id, result["reported"])
        return str(self.STOP if pruned else self.CONTINUE)


class StudyTrainable(tune.Trainable):
    """Trains one grid cell in one step, or an epoch or more of a search trial in each.

    The worker keeps its process, its imports and the panel from one to the next.
    """

    def setup(
        self,
        config: dict[str, Any],
        shared: dict[str, ray.ObjectRef],
        store: Store,
        keeps_weights: Callable[[Cell], bool],
        checkpoint_seconds: float,
        train_cell: Callable[..., Record],
        mark: StorageProbe | None,
        pretended: bool,
        search_trial: type[worker.SearchTrial],
    ) -> None:
        import torch

        torch.set_num_threads(max(1, int(self.trial_resources.required_resources.get("CPU", 1))))
        self._store = store
        self._keeps_weights, self._checkpoint_seconds = keeps_weights, checkpoint_seconds
        self._train_cell, self._search_trial = train_cell, search_trial
        self._gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
        self._device = "cuda" if self._gpus and not pretended else "cpu"
        self._trial: worker.SearchTrial | None = None
        self._joined = mark is not None
        self._refusal = ""
        if self._device == "cuda" and not torch.cuda.is_available():
            self._refusal = (
                f"node {ray.util.get_node_ip_address()}: Ray gives a GPU that torch {torch.__version__} "
                "cannot use; install the CUDA build of torch there, or --set resources.gpu=0"
            )
        elif mark is not None and (problem := mark.problem()):  # of a node that joined later
            self._refusal = str(nodes.refusal(ray.util.get_node_ip_address(), socket.gethostname(), problem))
        else:
            self._panel, self._embeddings = ray.get(shared["panel and embeddings"])

    def step(self) -> dict[str, Any]:
        import torch

        if self._refusal:
            return {"state": REFUSED, "why": self._refusal, "ended": 1, "done": True}
        begins = self._trial is None
        if begins and self._joined and ray.get_runtime_context().get_node_id() in _draining():
            ray.actor.exit_actor()  # else Tune would give it one piece after another, to the node's end
        # A worker may be lost after it recorded and before Tune heard of it.
        if self._trial is not None or self._records.record(self.config["key"]) is None:
            try:
                ended = self._cell() if self.config["kind"] == "cell" else self._epochs()
            except torch.cuda.OutOfMemoryError:
                self._trial = None
                torch.cuda.empty_cache()
                return {"state": SHARED_GPU_IS_FULL, "ended": 1, "done": True}
            if not ended:
                assert self._trial is not None
                draft = self._trial.draft
                return {"reported": draft["reported"], "draft": json.dumps(draft), "ended": 0, "done": False}
        self._trial = None
        return {"state": "recorded", "ended": 1, "done": True}

    @property
    def _records(self) -> Store:
        return self._store if self.config["kind"] == "cell" else self._store.search

    @property
    def _to_retry(self) -> tuple[type[Exception], ...]:
        """On a GPU that others share, memory that runs out is no failure yet."""
        import torch

        return (torch.cuda.OutOfMemoryError,) if 0 < self.config["gpu"] < 1 else ()

    def _told(self) -> tuple[list[Cell], dict[str, Any], dict[str, Any]]:
        """The cells, what their record is to say besides, and how they are trained."""
        cells = [Cell.model_validate_json(cell) for cell in self.config["cells"]]
        share = self.trial_resources.required_resources
        more = json.loads(self.config["more"])
        more["share"] = {"cpu": share.get("CPU", 0.0), "gpu": share.get("GPU", 0.0)}
        more["placement"] = {"node": ray.util.get_node_ip_address(), "gpus": self._gpus}
        how = {
            "embedded": self._embeddings.get(cells[0].variant),
            "device": self._device,
            "checkpoint_seconds": self._checkpoint_seconds,
        }
        return cells, more, how

    def _cell(self) -> bool:
        (cell,), more, how = self._told()
        self._train_cell(
            cell,
            self.config["key"],
            self._panel,
            self._store,
            keep_weights=self._keeps_weights(cell),
            more=more,
            raises=self._to_retry,
            **how,
        )
        return True

    def _epochs(self) -> bool:
        """Whether the trial has ended with them."""
        cells, more, how = self._told()
        key = self.config["key"]
        draft: Record = {"key": key, **more, **worker.NOTHING_SPENT}
        try:
            if self._trial is None:
                self._trial = self._search_trial(cells, key, self._panel, self._records, more=more, **how)
            draft = self._trial.draft
            begin = time.monotonic()
            while not self._trial.finished:
                self._trial.epoch()
                if time.monotonic() - begin >= TOLD_EVERY_S:
                    break
            if not self._trial.finished:
                return False
            self._trial.record()
        except Exception as error:
            if isinstance(error, self._to_retry):
                raise
            worker.end_trial(draft, self._records, error)
        return True

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = None
        return True


TOLD_EVERY_S = 0.5
"""Shorter epochs of a search trial are told several at a time: a report costs Tune some 10 ms."""

NODE_ANSWERS_S = 120.0
"""A node makes the code's environment first, and starts a process that imports it."""

WORKER_STARTS_S = 60.0
"""What waits longer, in a cluster that others use too, takes the next worker that is free."""

SAID_EVERY_S = 300.0
"""How often, while nothing trains, it is said what is waited for."""

SHARED_GPU_IS_FULL = "shared GPU is full"

REFUSED = "refused"
"""By the worker's node, which cannot work for the study."""


class NoReporter(TrialProgressCallback):
    """In the place of Tune's own, which prints nothing here either but keeps every trial to its end."""

    def log_result(self, trial: Trial, result: dict[str, Any], error: bool = False) -> None:
        pass

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        pass


class TuneEvents(tune.Callback):
    """Passes on what happens, and sends back what a lost worker had."""

    def __init__(self, queue: StudyQueue, store: Store, observer: Observer, panel: Panel) -> None:
        self._queue, self._store, self._observer = queue, store, observer
        self._data = {"data": panel.fingerprint, "numerics": pm25.NUMERICS}

    def __getstate__(self) -> dict[str, Any]:
        """As of the queue."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._queue.started(trial.trial_id)
        self._observer.started(trial.config["key"], trial.config["kind"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result = trial.last_result
        if result.get("state") == SHARED_GPU_IS_FULL:
            self._queue.alone(trial.trial_id)
            return
        if result.get("state") == REFUSED:
            self._queue.refuse(trial.trial_id, result["why"])
            return
        record = self._records(trial).record(trial.config["key"])
        if record is None:  # ended by the scheduler
            draft = {**json.loads(result["draft"]), "state": "pruned"}
            record = worker.end_trial(draft, self._records(trial))
        self._ended(trial, record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        records = self._records(trial)
        record = records.record(trial.config["key"])
        if record is None:
            living = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
            announced = bool(getattr(_error(trial), "preempted", False) or _draining())
            if self._queue.lost(trial.trial_id, living, announced=announced):
                return
            begun = self._queue.work(trial.trial_id)
            own = {"cell": begun.cells[0].resolved()} if begun.kind == "cell" else worker.NOTHING_SPENT
            draft = {"key": begun.key, **own, **self._data, **begun.more}
            reason = str(_error(trial) or "its worker died").strip()
            record = worker.record_loss(draft, records, reason.splitlines()[-1])
        self._ended(trial, record)

    def _records(self, trial: Trial) -> Store:
        return self._store if trial.config["kind"] == "cell" else self._store.search

    def _ended(self, trial: Trial, record: Record) -> None:
        self._queue.ended(trial.trial_id, record)
        self._observer.ended(trial.config["kind"], record)


def _error(trial: Trial) -> BaseException | None:
    """What Tune knows of a lost trial; its own way to it looks where nothing is uploaded to."""
    if trial.pickled_error_file is None:
        return None
    with open(trial.pickled_error_file, "rb") as file:
        found: BaseException = cloudpickle.load(file)
    return found


def _resources(cpu: float, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    return _bundle(cpu, config["gpu"])


@functools.cache
def _bundle(cpu: float, gpu: float) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([{"CPU": cpu, "GPU": gpu}])


_embed_places = ray.remote(num_cpus=1, max_retries=3)(encoders.embed)


def _embed(encoders: Mapping[str, dict[str, Any]], panel: Panel) -> dict[str, Embedded]:
    """Every place once, in a worker, so that the driver needs no torch."""
    places = panel.lat, panel.lon, panel.site_id
    tasks = {name: _embed_places.remote(name, options, *places) for name, options in encoders.items()}
    try:
        return {name: ray.get(task) for name, task in tasks.items()}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


def _nodes() -> list[Node]:
    """Those that live and are to stay."""
    leave = _draining()
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leave
    ]


def _draining() -> set[str]:
    """Nodes that were told that they will go, such as spot instances that are taken back."""
    return {*ray._private.state.state.get_draining_nodes()}


def _everywhere(living: Sequence[Node], call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a call answers on each node, None of one that has left. Raises InputError for a silent one."""
    asked = {}
    for node in living:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(call)
        asked[task.remote(*arguments)] = node
    _, silent = ray.wait([*asked], num_returns=len(asked), timeout=NODE_ANSWERS_S)
    if silent:
        raise InputError(
            f"node {asked[silent[0]].outline} does not answer within {NODE_ANSWERS_S:g} s; fix it or stop it"
        )
    found = []
    for task, node in asked.items():
        try:
            found.append(ray.get(task))
        except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
            found.append(None)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"node {node.outline} runs no task ({reason}); fix it or stop it") from None
    return found


def _arrived(shared: Any) -> None:
    """Ray brings a task's arguments to its node first."""


@ray.remote(num_gpus=1, max_calls=1, max_retries=3)  # its process ends with it, and gives the GPU back
def _footprint(
    shared: tuple[Panel, Any], cell: Cell, shape: NetworkShape, pretended_mb: float | None
) -> Footprint:
    """Measured on a whole GPU."""
    import torch

    if pretended_mb is not None:
        held, name = measure.footprint_mb(cell, shape, shared[0], "cpu"), "pretended"
        return Footprint(shape=shape, memory_mb=held, context_mb=0, gpu=name, gpu_mb=pretended_mb)
    held, name = measure.footprint_mb(cell, shape, shared[0], "cuda"), torch.cuda.get_device_name()
    whole_mb, context_mb = torch.cuda.mem_get_info()[1] / 1e6, worker.context_mb()
    return Footprint(shape=shape, memory_mb=held, context_mb=context_mb, gpu=name, gpu_mb=whole_mb)


def _footprints(shared: ray.ObjectRef, kinds: Mapping[NetworkShape, Cell]) -> Iterator[Footprint]:
    """Of each shape, as many side by side as there are GPUs."""
    tasks = {
        _footprint.remote(shared, cell, shape, nodes.pretended_mb()): cell for shape, cell in kinds.items()
    }
    left = [*tasks]
    while left:
        (done,), left = ray.wait(left, num_returns=1)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:
            reason = str(getattr(error, "cause", error)).strip().splitlines()[-1]
            raise InputError(
                f"resources.gpu: auto could not measure {tasks[done].label} ({reason}); --set resources.gpu=1"
            ) from None


@contextlib.contextmanager
def _connected(address: str | None, panel: Panel) -> Iterator[None]:
    if address is None:
        # Room for the panel, the embeddings and Tune's own objects; not Ray's third of all memory.
        room = 256 * 2**20 + 2 * (panel.features.nbytes + panel.target.nbytes)
        options: dict[str, Any] = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": room,
        }
    else:
        if "://" in address:
            raise InputError(
                f"--address {address}: give the head's HOST:6379, or auto on a machine of the cluster; from "
                "elsewhere `sweep submit STUDY --address http://HOST:8265`"
            )
        _check_answers(address)
        options = {"address": address, "runtime_env": _environment()}
    ends = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:  # of another Python, for one
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"--address {address}: no Ray cluster answers there ({reason})") from None
    signal.signal(signal.SIGTERM, ends)
    try:
        with _Watch(address) if address is not None else contextlib.nullcontext():
            yield
    except HeadLost:
        raise  # where nobody answers, nobody can be told that this driver leaves
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


class _Watch:
    """Raises HeadLost in the main thread when the head answers no more; used as a context.

    Ray itself waits for a minute, then ends the process without any Python. Where it keeps the main thread
    waiting, the process is ended here, with the same line and status: what was recorded stays.
    """

    def __init__(self, address: str) -> None:
        self._address, self._lost = address, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="head", daemon=True)

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._lost:
            raise self._error from None
        signal.signal(signal.SIGUSR2, self._before)

    @property
    def _error(self) -> HeadLost:
        return HeadLost(
            f"--address {self._address}: the head has not answered for {HEAD_SILENT_S:g} s; start the "
            "cluster again, and the same command goes on with what is missing"
        )

    def _look(self) -> None:
        head = _head(ray.get_runtime_context().gcs_address)
        since = time.monotonic()
        while not self._stop.wait(HEAD_EVERY_S):
            try:
                head.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=HEAD_EVERY_S)
                since = time.monotonic()
            except grpc.RpcError:
                if time.monotonic() - since > HEAD_SILENT_S:
                    self._lost = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
                    if not self._stop.wait(HEAD_EVERY_S):
                        click.echo(f"sweep: {self._error}", err=True)
                        os._exit(HeadLost.status)
                    return


HEAD_EVERY_S = 3.0
HEAD_SILENT_S = 20.0
"""A head that is busy, or started again with its memory kept, may be silent for some seconds."""


def _head(address: str) -> Any:
    return gcs_service_pb2_grpc.NodeInfoGcsServiceStub(init_grpc_channel(address))


def _environment() -> dict[str, Any]:
    """Of the workers in a cluster that others started: our code, and no GPU where none was asked for."""
    names = [name for name in os.environ if name in (nodes.PRETEND, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")]
    made: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in names}}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has brought its code
        made["py_modules"] = [str(Path(str(package.__file__)).parent) for package in (pm25, sweeps)]
        made["excludes"] = ["**/__pycache__"]
    return made


def _check_answers(address: str) -> None:
    """That a cluster of this Ray version answers, and to our token; Ray itself tries and warns for 20 s.

    Raises InputError.
    """
    found = services.canonicalize_bootstrap_address(address)
    if found is None:
        raise InputError(f"--address {address}: no Ray runs on this machine; give the head's HOST:6379")
    try:
        answer = _head(found).CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=HEAD_ANSWERS_S)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise InputError(
                f"--address {address}: the cluster refuses the token, or the lack of one; set "
                "RAY_AUTH_MODE=token and the cluster's own RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"
            ) from None
        reason = str(error.details()).rpartition("last error: ")[2].strip().rstrip(".")
        raise InputError(
            f"--address {address}: no Ray head answers there ({reason}); give the head's HOST:6379"
        ) from None
    if answer.ray_version != ray.__version__:
        raise InputError(
            f"--address {address}: the cluster has Ray {answer.ray_version} and this process "
            f"{ray.__version__}; install the same on both"
        )


HEAD_ANSWERS_S = 10.0
