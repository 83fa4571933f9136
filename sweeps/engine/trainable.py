"""The Tune trainable: trains the task that Tune hands to a worker, and keeps the worker for the next one."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune

from pm25.cell import Cell
from sweeps.engine import cluster, ray_internals, worker
from sweeps.engine.cluster import StorageProbe
from sweeps.store.fencing import LockLost
from sweeps.store.records import Record, StorageFault, Store

REPORT_EVERY_S = 0.5
"""Shortest time between two reports of a search trial; each report costs Tune some 10 ms."""

RECORDED = "recorded"
"""State of a result whose task has its record in the store."""

SHARED_GPU_IS_FULL = "shared GPU is full"
"""State of a result whose task ran out of memory on a GPU that other trainings share."""

FAULT = "fault"
"""State of a result whose task met a storage that cannot be used, or a lost lock; `why` is the error."""

REFUSED = "refused"
"""State of a result from a node that cannot work for the study; `why` has the reason."""


class StudyTrainable(tune.Trainable):
    """Trains a grid cell in one step, or one or more epochs of a search trial in each step.

    The worker keeps its process, its imports and the panel from one task to the next.
    """

    def setup(
        self,
        config: dict[str, Any],
        shared: dict[str, ray.ObjectRef],
        store: Store,
        keeps_weights: Callable[[Cell], bool],
        checkpoint_seconds: float,
        train_cell: Callable[..., Record],
        probe: StorageProbe | None,
        pretended: bool,
        search_trial: type[worker.SearchTrial],
    ) -> None:
        """Fetch what all tasks share, and check that this node can use its GPU and the storage.

        `probe` is the driver's file in the storage, None on the driver's own machine. `pretended` is
        True if the GPUs are simulated for a test or a benchmark (`cluster.PRETEND`).
        """
        import torch

        worker.prepare_process(max(1, int(self.trial_resources.required_resources.get("CPU", 1))))
        self._store = store
        self._keeps_weights, self._checkpoint_seconds = keeps_weights, checkpoint_seconds
        self._train_cell, self._search_trial = train_cell, search_trial
        self._gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
        self._device = "cuda" if self._gpus and not pretended else "cpu"
        self._trial: worker.SearchTrial | None = None
        self._stack: worker.Stack | None = None
        self._joined = probe is not None
        self._refusal: tuple[str, str, str, str] | None = None
        node = ray.util.get_node_ip_address()
        if self._device == "cuda" and not torch.cuda.is_available():
            self._refusal = (
                f"node {node}",
                "",
                f"Ray assigns a GPU that torch {torch.__version__} cannot use",
                "install the CUDA build of torch there, or --set resources.gpu=0",
            )
        elif probe is not None and (problem := probe.problem()):  # a node that joined later
            error = cluster.refusal(node, socket.gethostname(), problem)
            self._refusal = error.where, error.field, error.problem, error.fix
        else:
            self._panel, self._embeddings = ray.get(shared["panel and embeddings"])

    def step(self) -> dict[str, Any]:
        """Train until the task ends, or until a search trial has something to report."""

        if self._refusal is not None:
            return {"state": REFUSED, "why": self._refusal, "ended": 1, "done": True}
        starts = self._trial is None and self._stack is None
        if (
            starts
            and self._joined
            and ray.get_runtime_context().get_node_id() in ray_internals.draining_nodes()
        ):
            ray.actor.exit_actor()  # otherwise Tune would give it further tasks until the node goes
        try:
            if "keys" in self.config:
                return self._train_stack()
            # A worker may have been lost after it recorded and before Tune received its result.
            known = self._trial is None and self._records.record(self.config["key"]) is not None
            if not known and not (self._train() if self.config["kind"] == "cell" else self._search()):
                assert self._trial is not None
                draft = self._trial.draft
                return {"reported": draft["reported"], "draft": json.dumps(draft), "ended": 0, "done": False}
        except StorageFault as fault:
            ended: dict[str, Any] = {"state": FAULT, "why": self._placed(fault)}
        except LockLost as lost:
            ended = {"state": FAULT, "why": lost}
        except RuntimeError as error:
            if not self._is_retried(error):
                raise
            ended = {"state": SHARED_GPU_IS_FULL}
        else:
            ended = {"state": RECORDED}
        self._trial = self._stack = None
        if ended["state"] == SHARED_GPU_IS_FULL:
            worker.reset_peak_memory(self._device)  # not above, where the exception still holds the tensors
        return ended | {"ended": 1, "done": True}

    def _placed(self, fault: StorageFault) -> StorageFault:
        """Add the node to a fault in a cluster, where only one node may have lost the storage."""
        if not self._joined:
            return fault
        node = f"node {ray.util.get_node_ip_address()} ({socket.gethostname()})"
        return type(fault)(f"{node}: {fault.where}", fault.field, fault.problem, fault.fix)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Accept the next task."""
        self._trial = self._stack = None
        return True

    @property
    def _records(self) -> Store:
        return self._store if self.config["kind"] == "cell" else self._store.search

    def _is_retried(self, error: Exception) -> bool:
        """Return True for lack of memory on a shared GPU or in a stack: no failure of the cell."""
        shared = 0 < self.config["gpu"] < 1 or "keys" in self.config
        return shared and worker.lacks_gpu_memory(error)

    def _task(self) -> tuple[list[Cell], dict[str, Any], dict[str, Any]]:
        """The task's cells, further fields of its record, and the keyword arguments of its training."""
        cells = [Cell.model_validate_json(cell) for cell in self.config["cells"]]
        more = {} if "keys" in self.config else json.loads(self.config["more"]) | self._share_and_place()
        how = {
            "embedded": self._embeddings.get(cells[0].variant),
            "device": self._device,
            "checkpoint_seconds": self._checkpoint_seconds,
        }
        return cells, more, how

    def _share_and_place(self) -> dict[str, Any]:
        """Fields of a record on the share of the node that the task has."""
        share = self.trial_resources.required_resources
        return {
            "share": {"cpu": share.get("CPU", 0.0), "gpu": share.get("GPU", 0.0)},
            "placement": {"node": ray.util.get_node_ip_address(), "gpus": self._gpus},
        }

    def _train(self) -> bool:
        """Train and record a grid cell; True, as it has ended then."""
        (cell,), more, how = self._task()
        self._train_cell(
            cell,
            self.config["key"],
            self._panel,
            self._store,
            keep_weights=self._keeps_weights(cell),
            more=more,
            raises=self._is_retried,
            **how,
        )
        return True

    def _train_stack(self) -> dict[str, Any]:
        """Train a stack until one of its cells is recorded, or until all are."""
        if self._stack is None:
            cells, _, how = self._task()
            mores = [more | self._share_and_place() for more in json.loads(self.config["more"])]
            members = [*zip(cells, self.config["keys"], mores, strict=True)]
            own = {"slots": self.config["slots"], "keeps_weights": self._keeps_weights}
            own["raises"] = self._is_retried
            self._stack = worker.Stack(members, self._panel, self._store, **own, **how)
        recorded = 0
        while not recorded and not self._stack.finished:
            recorded = len(self._stack.advance())
        if not self._stack.finished:
            return {"recorded": recorded, "reported": [], "ended": 0, "done": False}
        self._stack = None
        return {"state": RECORDED, "ended": 1, "done": True}

    def _search(self) -> bool:
        """Train a search trial for `REPORT_EVERY_S`; True if it has ended and is recorded."""
        cells, more, how = self._task()
        key = self.config["key"]
        draft: Record = {"key": key, **more, **worker.NOTHING_SPENT}
        try:
            if self._trial is None:
                self._trial = self._search_trial(cells, key, self._panel, self._records, more=more, **how)
            draft = self._trial.draft
            start = time.monotonic()
            while not self._trial.finished:
                self._trial.epoch()
                if time.monotonic() - start >= REPORT_EVERY_S:
                    break
            if not self._trial.finished:
                return False
            self._trial.record()
        except (StorageFault, LockLost):
            raise
        except Exception as error:
            if self._is_retried(error):
                raise
            worker.end_trial(draft, self._records, error)
        return True
