"""The one seam at which a training runs: `train_and_record` calls `pm25.trial` and records the result.

The path from the command line: `sweeps.cli` -> `sweeps.driver.train` -> `engine.ray_tune.run` ->
`engine.trainable.StudyTrainable` -> `engine.worker.train_and_record` -> `pm25.trial.Training`. A debugger can
call `train_and_record` in its own process; it needs neither Ray nor MLflow. `SearchTrial` is the same seam
for a search trial, which trains several cells side by side, epoch by epoch.
"""

import ctypes
import dataclasses
import functools
import gc
import hashlib
import io
import json
import math
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pm25.cell import Cell
from pm25.encoders import Embedded
from pm25.metrics import SCORES
from pm25.panel import Panel
from pm25.redaction import redacted
from sweeps.store import failures, integrity, running
from sweeps.store.fencing import LockLost
from sweeps.store.integrity import CHECKPOINT as CHECKPOINT
from sweeps.store.integrity import DamagedFile
from sweeps.store.records import Record, StorageFault, Store
from sweeps.store.running import Progress, ProgressWriter

if TYPE_CHECKING:
    import torch

    from pm25.trial import Result, Training


COMMIT = "SWEEP_COMMIT"
"""Environment variable with the result of `commit`, for code that was sent without its checkout."""

WEIGHTS = "weights.pt"
"""File with `weights` and `scaling` of a `pm25.trial.Result`."""


STACKED_STATE = 1
"""Version of a state of `pm25.stacked`; a checkpoint of another version is not used."""

BOOSTED = frozenset({"boosting", "boosting-place"})
"""References that scikit-learn computes, whose version is recorded."""

LIBRARIES = {"OMP_WAIT_POLICY": "passive", "CUBLAS_WORKSPACE_CONFIG": ":4096:2"}
"""Variables that libraries read when torch is loaded.

OpenMP's threads sleep at a barrier: one that spins keeps others from the core. The workspace of cuBLAS makes
LSTM layers on a GPU give the same bytes again (torch.nn.LSTM).
"""

MALLOPT_TRIM, MALLOPT_MMAP = -1, -3
"""Numbers of glibc's malloc parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h)."""


def prepare_process(threads: int) -> None:
    """Set the CPU threads of this process, and let it keep the memory that a training step frees.

    By default glibc returns large arrays to the system, which clears each page again in the next step. Other
    C libraries are left as they are. On a GPU, products of float32 use TF32, in stacks and alone.
    """
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MALLOPT_MMAP, 2**30)
        libc.mallopt(MALLOPT_TRIM, 2**31 - 1)


def train_and_record(
    cell: Cell,
    key: str,
    panel: Panel,
    store: Store,
    *,
    embedded: Embedded | None = None,
    keep_weights: bool = False,
    device: str = "cpu",
    checkpoint_seconds: float = math.inf,
    more: Mapping[str, Any] = MappingProxyType({}),
    raises: Callable[[Exception], bool] = lambda error: False,
) -> Record:
    """Train a cell and store its predictions, its history and, last, its record. A failure is a record too.

    A checkpoint is stored after the first epoch that ends `checkpoint_seconds` after the one before, and a
    training resumes from a stored checkpoint. A reference is computed on the CPU, without epochs.

    `more` are further fields of the record. Exceptions for which `raises` returns True are raised instead of
    recorded. So are StorageFault and LockLost: the cell stays missing.
    """
    from pm25 import trial

    device = "cpu" if cell.is_reference else device
    record: Record = {
        "key": key,
        "state": "done",
        "cell": cell.resolved(),
        "encoder": embedded.fingerprint if embedded else None,
        **_place(cell, panel, device),
        **more,
    }
    progress = _progress(record, cell.label, 1 if cell.is_reference else cell.train.max_epochs, store)
    reset_peak_memory(device)
    try:
        if cell.is_reference:
            result = trial.run_reference(cell, panel)
        else:
            checkpoints = _Checkpoints(store, key, record, checkpoint_seconds)
            training = trial.Training(
                cell, panel, **trial_arguments(embedded), device=device, state=checkpoints.found
            )
            if training.history:
                record["resumed"] = len(training.history)
            while not training.finished:
                training.epoch()
                rmse = [epoch.validation_rmse for epoch in training.history]
                progress.epoch(len(rmse), rmse[-1], min(rmse))
                if not training.finished:
                    checkpoints.offer(training.state)
            result = training.result()
        record |= _outcome(result, device)
    except (StorageFault, LockLost):  # raised where a checkpoint is stored
        raise
    except Exception as error:
        if raises(error):
            raise
        return _record_failure(record, store, error)
    return _record_result(record, result, store, keep_weights=keep_weights)


def _outcome(result: "Result", device: str) -> Record:
    """Return the fields of a record that a result has. Raises ArithmeticError without a test RMSE."""
    metrics = {name: _finite(value) for name, value in result.metrics.items()}
    if metrics["test_rmse"] is None:
        raise ArithmeticError(f"test RMSE is {result.metrics['test_rmse']}")
    stacked = _peak_memory(device) if result.stacked is None else {"stacked": result.stacked}
    own = {"counts": result.counts, "audit": result.audit, "seconds": round(result.seconds, 3)}
    return {"metrics": metrics, **own, **stacked}


def _record_result(record: Record, result: "Result", store: Store, *, keep_weights: bool) -> Record:
    """Store the predictions and the history of a training, its weights on request, and last its record."""
    import torch

    from pm25.fit import Epoch

    key = record["key"]
    if (first := store.record(key)) is not None:  # as in `_end`; its files stay as they are
        _delete_progress(key, store)
        return first
    names = [field.name for field in dataclasses.fields(Epoch)]
    columns = {name: [getattr(epoch, name) for epoch in result.history] for name in names}
    # Types are named for a reference, whose history is empty.
    types = {name: pa.int64() if name == "epoch" else pa.float64() for name in names}
    history = pa.table(columns, pa.schema(types))
    files = {
        "predictions.parquet": store.write_table(key, "predictions", predictions_table(result)),
        "history.parquet": store.write_table(key, "history", history),
    }
    if keep_weights and result.weights:  # a reference has none
        buffer = io.BytesIO()
        torch.save({"weights": result.weights, "scaling": result.scaling}, buffer)
        files[WEIGHTS] = store.write_file(key, WEIGHTS, buffer.getvalue())
    return _end(record, store, files)


class Stack:
    """Grid cells of one arm that a worker trains in lockstep on one device, each with a record of its own.

    Parameters
    ----------
    members : sequence of (Cell, str, mapping)
        Each cell with its key and further fields of its record. Cells that have a record are not trained.
    slots : int
        Number of cells that train at the same time.
    keeps_weights : callable
        Returns True for a cell whose weights are stored.
    raises : callable
        Returns True for an exception that is raised instead of recorded.

    Each cell has its own checkpoints, as in `train_and_record`. A cell that was interrupted in a stack
    resumes in a stack of any size. A training alone does not, because its numbers would be others.
    """

    def __init__(
        self,
        members: Sequence[tuple[Cell, str, Mapping[str, Any]]],
        panel: Panel,
        store: Store,
        *,
        slots: int,
        keeps_weights: Callable[[Cell], bool],
        embedded: Embedded | None = None,
        device: str = "cpu",
        checkpoint_seconds: float = math.inf,
        raises: Callable[[Exception], bool] = lambda error: False,
    ) -> None:
        from pm25 import stacked

        self._store, self._keeps_weights, self._device = store, keeps_weights, device
        self._raises = raises
        recorded = store.records([key for _, key, _ in members])
        self._drafts: dict[Cell, Record] = {
            cell: {
                "key": key,
                "state": "done",
                "cell": cell.resolved(),
                "encoder": embedded.fingerprint if embedded else None,
                **_place(cell, panel, device),
                **more,
            }
            for cell, key, more in members
            if key not in recorded
        }
        self._progress: dict[Cell, ProgressWriter] = {}
        self._checkpoint_seconds = checkpoint_seconds
        self._checkpoints: dict[Cell, _Checkpoints] = {}
        reset_peak_memory(device)
        self._training: stacked.StackedTraining | None = None
        if self._drafts:
            how = {**trial_arguments(embedded), "device": device, "found": self._checkpoint}
            self._training = stacked.StackedTraining([*self._drafts], panel, size=slots, **how)

    @property
    def finished(self) -> bool:
        """True when every cell has a record."""
        return self._training is None or self._training.finished

    def advance(self) -> list[Record]:
        """Train until an epoch of a cell ends, and record the cells that have ended."""
        if self._training is None:
            return []
        ended = [self._record(cell, outcome) for cell, outcome in self._training.advance()]
        for cell, history in self._training.running:
            if cell not in self._progress:
                self._drafts[cell]["started"] = _now()
                most = cell.train.max_epochs
                self._progress[cell] = _progress(self._drafts[cell], cell.label, most, self._store)
            if history:
                rmse = [epoch.validation_rmse for epoch in history]
                self._progress[cell].epoch(len(rmse), rmse[-1], min(rmse))
        for cell in self._training.between_epochs:
            self._checkpoints[cell].offer(functools.partial(self._training.state, cell))
        return ended

    def _checkpoint(self, cell: Cell) -> dict[str, Any] | None:
        """Read the checkpoint from which a cell resumes when it gets its slot."""
        draft = self._drafts[cell]
        own = _Checkpoints(self._store, draft["key"], draft, self._checkpoint_seconds, stacked=True)
        self._checkpoints[cell] = own
        found, own.found = own.found, None  # not kept for as long as the stack lives
        if found is not None:
            draft["resumed"] = len(found["fit"]["history"])
        return found

    def _record(self, cell: Cell, outcome: "Result | Exception") -> Record:
        """Record a cell that has ended: its result, or the exception that its training raised."""
        draft = self._drafts[cell]
        self._checkpoints.pop(cell, None)
        if isinstance(outcome, Exception):
            if self._raises(outcome):
                raise outcome
            return _record_failure(draft, self._store, outcome)
        try:
            draft = draft | _outcome(outcome, self._device)
        except ArithmeticError as error:
            return _record_failure(draft, self._store, error)
        return _record_result(draft, outcome, self._store, keep_weights=self._keeps_weights(cell))


class SearchTrial:
    """One point of an arm's search space, trained on all its placements side by side, epoch by epoch.

    So there is one number for the complete point after every epoch, which a pruner can compare.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        key: str,
        panel: Panel,
        store: Store,
        *,
        embedded: Embedded | None = None,
        device: str = "cpu",
        checkpoint_seconds: float = math.inf,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.draft: Record = {"key": key, "state": "running", **_place(cells[0], panel, device), **more}
        """The record that the trial would have if it ended now."""
        self._store, self._panel = store, panel
        self._checkpoints = _Checkpoints(store, key, self.draft, checkpoint_seconds)
        found = self._checkpoints.found or {"trainings": [None] * len(cells), "seconds": 0.0, "reported": []}
        self._to_prepare = [*zip(cells, found["trainings"], strict=True)]
        self._how = {**trial_arguments(embedded), "device": device}
        self._trainings: list[Training] = []
        name = f"{more['arm']} search trial {more['number']}" if "number" in more else cells[0].label
        most = max(cell.train.max_epochs for cell in cells)
        self._progress = _progress(self.draft, name, most, store)
        reset_peak_memory(device)
        if found["reported"]:
            self.draft["resumed"] = len(found["reported"])
        self.draft |= {name: found[name] for name in ("reported", "seconds")} | {"epochs": 0}

    @property
    def finished(self) -> bool:
        """True when every training has ended."""
        return bool(self._trainings) and all(training.finished for training in self._trainings)

    def epoch(self) -> None:
        """Train one epoch of every unfinished training, and report the mean of their best RMSEs so far.

        Raises the exceptions of the trainings and, in the first epoch, of their preparation.
        """
        with self._counted():
            self._prepare()
            for training in self._trainings:
                if not training.finished:
                    training.epoch()
            best = [min(epoch.validation_rmse for epoch in training.history) for training in self._trainings]
        reported = self.draft["reported"]
        reported.append(math.fsum(best) / len(best))
        self._progress.epoch(len(reported), reported[-1], min(reported))
        if not self.finished:
            self._checkpoints.offer(self._state)

    def record(self) -> Record:
        """Score the finished trainings on their validation samples, and record the trial."""
        with self._counted():
            results = [training.result() for training in self._trainings]
        scores: dict[str, dict[str, float]] = {}
        for regime in ("wr", "oor"):
            found = [r.metrics for r in results if f"val_{regime}_rmse" in r.metrics]
            for name in SCORES if found else ():
                mean = math.fsum(metrics[f"val_{regime}_{name}"] for metrics in found) / len(found)
                if not math.isfinite(mean):
                    raise ArithmeticError(f"validation {name} ({regime}) is {mean}")
                scores.setdefault(regime, {})[name] = mean
        scored = {"state": "done", "scores": scores, **_peak_memory(self._how["device"])}
        return end_trial(self.draft | scored, self._store)

    def _prepare(self) -> None:
        from pm25 import trial

        while self._to_prepare:
            cell, state = self._to_prepare[0]
            self._trainings.append(trial.Training(cell, self._panel, **self._how, state=state))
            del self._to_prepare[0]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Add the time and the epochs of a block to the draft, also if the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.draft["seconds"] = round(self.draft["seconds"] + time.perf_counter() - start, 3)
            self.draft["epochs"] = sum(len(training.history) for training in self._trainings)

    def _state(self) -> dict[str, Any]:
        states = [training.state() for training in self._trainings]
        return {"trainings": states, **{name: self.draft[name] for name in ("seconds", "reported")}}


def end_trial(record: Record, store: Store, error: Exception | None = None) -> Record:
    """Record that a search trial has ended: done, pruned, or failed with `error`."""
    if error is not None:
        return _record_failure(record, store, error)
    return _end(record, store)


NOTHING_SPENT: Record = {"epochs": 0, "seconds": 0.0, "reported": []}
"""Fields of the record of a search trial that ended before its first epoch."""


class _Checkpoints:
    """The stored state of a training after its last checkpointed epoch.

    A checkpoint is used only on the same device, number of threads and versions, so that the results equal
    those of an uninterrupted training. That of a `stacked` training is used only in a stack.
    """

    def __init__(
        self, store: Store, key: str, record: Record, seconds: float, *, stacked: bool = False
    ) -> None:
        self._store, self._key, self._seconds = store, key, seconds
        self._place = {name: record[name] for name in ("device", "threads", "versions")}
        self._place |= {"stacked": STACKED_STATE} if stacked else {}
        self._last = time.monotonic()
        self.found = self._read()

    def _read(self) -> dict[str, Any] | None:
        import torch

        content = self._store.read_file(self._key, CHECKPOINT)
        if content is None:
            return None
        header, _, state = content.partition(b"\n")
        if header != self._header(state):
            return None  # another machine, or a damaged file: the training starts from its first epoch
        found: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
        return found

    def _header(self, state: bytes) -> bytes:
        """First line of the file: place of the training, and a hash, as torch misses a flipped bit."""
        return json.dumps({**self._place, "sha256": hashlib.sha256(state).hexdigest()}).encode()

    def offer(self, state: Callable[[], dict[str, Any]]) -> None:
        """Store the state if `checkpoint_seconds` have passed since the last one."""
        import torch

        if time.monotonic() - self._last < self._seconds:
            return
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        content = buffer.getvalue()
        self._store.write_file(self._key, CHECKPOINT, self._header(content) + b"\n" + content)
        self._last = time.monotonic()


def delete_checkpoints(store: Store, ended: Iterable[str]) -> None:
    """Delete the checkpoints of trainings that have a record.

    A worker that is killed after it wrote the record leaves its checkpoint, and no later run resumes it.
    """
    for key in store.holding(CHECKPOINT) & {*ended}:
        store.delete_file(key, CHECKPOINT)


def _place(cell: Cell, panel: Panel, device: str) -> dict[str, Any]:
    """Fields of a record on where the training runs, and with which versions."""
    import torch

    return {
        "data": panel.fingerprint,
        "numerics": cell.numerics,
        **commit(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            **({"scikit-learn": version("scikit-learn")} if cell.variant in BOOSTED else {}),
        },
        "started": _now(),
    }


def peak_memory_mb(device: str) -> float:
    """Peak memory of this process in MB; on a GPU, what PyTorch reserved, plus CUDA's context."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 1e6 + context_mb()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def lacks_gpu_memory(error: Exception) -> bool:
    """Return True for an error with which a full GPU answers: one of PyTorch, CUDA, cuBLAS or cuDNN.

    Only PyTorch's allocator has a type for it, which another process can pass on as text alone.
    """
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    full = r"CUDA (driver )?(error: )?out of memory|CUBLAS_\w*_ALLOC_FAILED|CUDNN_\w*_ALLOC(ATION)?_FAILED"
    return isinstance(error, RuntimeError) and re.search(full, str(error)) is not None


def context_mb() -> float:
    """GPU memory of the CUDA context in MB, on a GPU that no other process uses."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return max(total - free - torch.cuda.memory_reserved(), 0) / 1e6


def reset_peak_memory(device: str) -> None:
    """Free the GPU memory of the trainings before, and reset its peak."""
    import torch

    if device == "cuda":
        gc.collect()  # a stack and what trains it refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: str) -> dict[str, float]:
    """Peak GPU memory that PyTorch reserved, without CUDA's context, which a shared GPU does not show."""
    import torch

    return {"gpu_memory_mb": round(torch.cuda.max_memory_reserved() / 1e6, 1)} if device == "cuda" else {}


@functools.cache
def commit() -> dict[str, Any]:
    """The commit of the checkout that this code runs from, and whether files differ from it.

    For code that was sent to a cluster, the result is the sender's (`COMMIT`). For an installed wheel it is
    empty.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not some repository around an installation
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        found: dict[str, Any] = json.loads(os.environ.get(COMMIT, "{}"))
        return found


def differences(
    cell: Cell, key: str, panel: Panel, store: Store, *, embedded: Embedded | None = None
) -> list[str]:
    """Train a recorded cell again, with as many threads, and name the results that are not bitwise equal.

    For a cell that was trained in a stack, the counts, the audit and the RMSEs are compared. The RMSEs may
    differ by `pm25.stacked.TOLERANCE`, relative to the stored ones.
    """
    import torch

    from pm25 import trial

    record = store.record(key)
    assert record is not None, f"cell {key} has no record"
    threads = torch.get_num_threads()
    torch.set_num_threads(record["threads"])
    try:
        result = trial.run(cell, panel, **trial_arguments(embedded))
    finally:
        torch.set_num_threads(threads)
    found = [name for name in ("counts", "audit") if record[name] != getattr(result, name)]
    metrics = {name: _finite(value) for name, value in result.metrics.items()}
    if "stacked" in record:
        return _stack_differences(record, result.counts, result.audit, metrics)
    stored_metrics, absent = record["metrics"], "absent"  # None is an undefined metric
    names = dict.fromkeys([*metrics, *stored_metrics])
    found += [name for name in names if metrics.get(name, absent) != stored_metrics.get(name, absent)]
    try:
        stored = store.read_result(key, "predictions")
        same = predictions_table(result).cast(stored.schema).equals(stored)
    except (OSError, ValueError):  # the file is missing, is damaged (DamagedFile) or has other columns
        same = False
    found += [] if same else ["predictions"]
    try:
        kept = stored_weights(key, store)
    except DamagedFile:
        return [*found, "weights"]
    if kept is not None:
        weights, scaling = kept
        same = weights.keys() == result.weights.keys() and scaling == result.scaling
        same = same and all(torch.equal(weights[name], result.weights[name]) for name in weights)
        found += [] if same else ["weights"]
    return found


def _stack_differences(
    record: Record, counts: Mapping[str, int], audit: Mapping[str, Any], metrics: Mapping[str, float | None]
) -> list[str]:
    """Name the results of a stacked training that differ from those of the same training alone.

    Early stopping may end the two at different epochs, so these two counts are not compared.
    """
    from pm25.stacked import TOLERANCE

    sizes = {name: count for name, count in counts.items() if name not in ("epochs", "best_epoch")}
    found = [] if all(record["counts"].get(name) == size for name, size in sizes.items()) else ["counts"]
    found += [] if record["audit"] == audit else ["audit"]
    for name in metrics:
        stored, own = record["metrics"].get(name), metrics[name]
        if name.endswith("_rmse") and stored is not None and own is not None:
            found += [] if abs(own - stored) <= TOLERANCE * stored else [name]
    return found


def stored_weights(key: str, store: Store) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]] | None:
    """Return the weights and the scaling of a cell; None if its weights are not kept.

    Raises DamagedFile for a file that was changed, or that torch cannot read.
    """
    import torch

    content = store.read_recorded(key, WEIGHTS)
    if content is None:
        return None
    try:
        found = torch.load(io.BytesIO(content), weights_only=True)
        return found["weights"], found["scaling"]
    except MemoryError:
        raise
    except Exception:  # torch names no class of its own for content that it cannot read
        _, path = store.location(store.folder, key, WEIGHTS)
        raise DamagedFile(path, "", "damaged: torch cannot read it", integrity.RETRY) from None


def trial_arguments(embedded: Embedded | None) -> dict[str, Any]:
    """Return the keyword arguments of `pm25.trial.run` for an encoder's vectors."""
    if embedded is None:
        return {}
    return {"embedding": embedded.vectors, "trained_on_target": embedded.trained_on_target}


def predictions_table(result: "Result") -> pa.Table:
    """Return the predictions as they are stored, with repeated texts dictionary-encoded."""
    predictions = pa.table(result.predictions)
    for name in ("part", "site_id"):
        column = predictions.schema.get_field_index(name)
        predictions = predictions.set_column(column, name, predictions[name].dictionary_encode())
    return predictions


def record_loss(record: Record, store: Store, reason: str) -> Record:
    """Record the failure of a cell or a search trial whose worker died; `reason` is Ray's."""
    return _record_failure({**record, "started": _now()}, store, RuntimeError(reason))


def _record_failure(record: Record, store: Store, error: Exception) -> Record:
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "message": redacted(" ".join(str(error).split())),
        "signature": redacted(failures.signature(error)),
        "traceback": redacted("".join(traceback.format_exception(error))),
    }
    record = {k: v for k, v in record.items() if k != "metrics"} | {
        "state": "failed",
        "error": described,
    }
    return _end(record, store)


def _end(record: Record, store: Store, files: Mapping[str, str] = MappingProxyType({})) -> Record:
    """Write the record, whose `files` have these digests, unless another worker has recorded the training.

    The digest of a search trial's start file is that of what the driver has written, not of what is stored.
    """
    first = store.record(record["key"])
    if first is not None and first["state"] != "failed":  # a worker of a killed run has recorded it first
        _delete_progress(record["key"], store)
        return first
    record = record | {"ended": _now()}
    if "reported" in record:  # infinite where undoing log1p overflows, which JSON cannot hold
        record["reported"] = [_finite(value) for value in record["reported"]]
    if record.get("kind") == "trial":
        files = {integrity.STARTED_FILE: integrity.digest(integrity.start_file(record))}
    record = store.write_record(record, files)
    _delete_progress(record["key"], store)
    return record


def _delete_progress(key: str, store: Store) -> None:
    """Delete the checkpoint and the progress of a training that has a record."""
    store.delete_file(key, CHECKPOINT)
    running.ended(store, key)


def _progress(record: Record, label: str, max_epochs: int, store: Store) -> ProgressWriter:
    """Start to write the progress of the training that `record` describes."""
    place = {name: record[name] for name in ("key", "host", "process", "started")}
    first = Progress(**place, label=label, updated=record["started"], max_epochs=max_epochs)
    return ProgressWriter(store, first)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
