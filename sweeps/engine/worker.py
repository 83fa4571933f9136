"""Run one cell and record what came of it; the seam that a Ray worker, or a debugger, calls."""

import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import platform
import resource
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import pm25
from pm25.cell import Cell
from pm25.encoders import Embedded
from pm25.metrics import SCORES
from pm25.panel import Panel
from sweeps.store import failures
from sweeps.store.records import Record, Store

if TYPE_CHECKING:
    import torch

    from pm25.trial import Result, Training


COMMIT = "SWEEP_COMMIT"
"""The environment variable that tells code which came without its checkout what `commit` said of it."""

WEIGHTS = "weights.pt"
"""`weights` and `scaling` of a `pm25.trial.Result`."""


def run_and_record(
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
    raises: type[Exception] | tuple[type[Exception], ...] = (),
) -> Record:
    """Train the cell and store what came of it, last of all the record. A failure is a record too.

    The training is stored after the first epoch that ends `checkpoint_seconds` after it was stored last;
    it goes on from there where it is found. `more` joins the record. What `raises` names is not recorded
    but raised.
    """
    import torch

    from pm25 import trial

    record: Record = {
        "key": key,
        "state": "done",
        "cell": cell.resolved(),
        "encoder": embedded.fingerprint if embedded else None,
        **_place(panel, device),
        **more,
    }
    checkpoints = _Checkpoints(store, key, record, checkpoint_seconds)
    _forget_held(device)
    try:
        training = trial.Training(
            cell, panel, **trial_arguments(embedded), device=device, state=checkpoints.found
        )
        if training.history:
            record["resumed"] = len(training.history)
        while not training.finished:
            training.epoch()
            if not training.finished:
                checkpoints.offer(training.state)
        result = training.result()
        record["metrics"] = {name: _finite(value) for name, value in result.metrics.items()}
        if record["metrics"]["test_rmse"] is None:
            raise ArithmeticError(f"test RMSE is {result.metrics['test_rmse']}")
        record |= {"counts": result.counts, "audit": result.audit, "seconds": round(result.seconds, 3)}
        record |= _held(device)
    except Exception as error:
        if isinstance(error, raises):
            raise
        return _record_failure(record, store, error)
    if (first := store.record(key)) is not None:  # as in `_end`, and its files are not to be replaced
        store.delete_file(key, CHECKPOINT)
        return first
    store.write_table(key, "predictions", predictions_table(result))
    names = [field.name for field in dataclasses.fields(trial.Epoch)]
    store.write_table(key, "history", {name: [getattr(e, name) for e in result.history] for name in names})
    if keep_weights:
        buffer = io.BytesIO()
        torch.save({"weights": result.weights, "scaling": result.scaling}, buffer)
        store.write_file(key, WEIGHTS, buffer.getvalue())
    return _end(record, store)


class SearchTrial:
    """One point of an arm's search space, trained on all its placements side by side, epoch by epoch.

    So that after every epoch there is one number for the point, and not one for its first placement.
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
        self.draft: Record = {"key": key, "state": "running", **_place(panel, device), **more}
        """What its record would say if it ended now."""
        self._store, self._panel = store, panel
        self._checkpoints = _Checkpoints(store, key, self.draft, checkpoint_seconds)
        found = self._checkpoints.found or {"trainings": [None] * len(cells), "seconds": 0.0, "reported": []}
        self._begin = [*zip(cells, found["trainings"], strict=True)]
        self._how = {**trial_arguments(embedded), "device": device}
        self._trainings: list[Training] = []
        _forget_held(device)
        if found["reported"]:
            self.draft["resumed"] = len(found["reported"])
        self.draft |= {name: found[name] for name in ("reported", "seconds")} | {"epochs": 0}

    @property
    def finished(self) -> bool:
        return bool(self._trainings) and all(training.finished for training in self._trainings)

    def epoch(self) -> None:
        """Train one epoch of every training that is not finished, and report on all of them.

        Raises what a training raises, the first time what its preparation raises too.
        """
        with self._at_work():
            self._prepare()
            for training in self._trainings:
                if not training.finished:
                    training.epoch()
            best = [min(epoch.validation_rmse for epoch in training.history) for training in self._trainings]
        self.draft["reported"].append(math.fsum(best) / len(best))
        if not self.finished:
            self._checkpoints.offer(self._state)

    def record(self) -> Record:
        """Score the finished trainings on their validation samples, and record the trial."""
        with self._at_work():
            results = [training.result() for training in self._trainings]
        scores: dict[str, dict[str, float]] = {}
        for regime in ("wr", "oor"):
            told = [r.metrics for r in results if f"val_{regime}_rmse" in r.metrics]
            for name in SCORES if told else ():
                mean = math.fsum(metrics[f"val_{regime}_{name}"] for metrics in told) / len(told)
                if not math.isfinite(mean):
                    raise ArithmeticError(f"validation {name} ({regime}) is {mean}")
                scores.setdefault(regime, {})[name] = mean
        scored = {"state": "done", "scores": scores, **_held(self._how["device"])}
        return end_trial(self.draft | scored, self._store)

    def _prepare(self) -> None:
        from pm25 import trial

        while self._begin:
            cell, state = self._begin[0]
            self._trainings.append(trial.Training(cell, self._panel, **self._how, state=state))
            del self._begin[0]

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Count the time and the epochs that this takes, however it ends."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.draft["seconds"] = round(self.draft["seconds"] + time.perf_counter() - begin, 3)
            self.draft["epochs"] = sum(len(training.history) for training in self._trainings)

    def _state(self) -> dict[str, Any]:
        states = [training.state() for training in self._trainings]
        return {"trainings": states, **{name: self.draft[name] for name in ("seconds", "reported")}}


def end_trial(record: Record, store: Store, error: Exception | None = None) -> Record:
    """Record that a search trial has ended: done, pruned, or failed with `error`."""
    if error is not None:
        return _record_failure(record, store, error)
    return _end(record, store)


CHECKPOINT = "checkpoint.pt"

NOTHING_SPENT: Record = {"epochs": 0, "seconds": 0.0, "reported": []}
"""Of a search trial that never got so far as to say more."""


class _Checkpoints:
    """A training's last stored epoch; it goes on only where its numbers stay what they would have been."""

    def __init__(self, store: Store, key: str, record: Record, seconds: float) -> None:
        self._store, self._key, self._seconds = store, key, seconds
        self._place = {name: record[name] for name in ("device", "threads", "versions")}
        self._last = time.monotonic()
        self.found = self._read()

    def _read(self) -> dict[str, Any] | None:
        import torch

        content = self._store.read_file(self._key, CHECKPOINT)
        if content is None:
            return None
        header, _, state = content.partition(b"\n")
        if header != self._header(state):
            return None  # from elsewhere, or damaged: time is lost, and no number
        found: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
        return found

    def _header(self, state: bytes) -> bytes:
        """Its first line: where it was trained, and a hash, for torch reads over a flipped bit."""
        return json.dumps({**self._place, "sha256": hashlib.sha256(state).hexdigest()}).encode()

    def offer(self, state: Callable[[], dict[str, Any]]) -> None:
        """Store the state if it is time."""
        import torch

        if time.monotonic() - self._last < self._seconds:
            return
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        content = buffer.getvalue()
        self._store.write_file(self._key, CHECKPOINT, self._header(content) + b"\n" + content)
        self._last = time.monotonic()


def _place(panel: Panel, device: str) -> dict[str, Any]:
    """Where and with what a training runs."""
    import torch

    return {
        "data": panel.fingerprint,
        "numerics": pm25.NUMERICS,
        **commit(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "started": _now(),
    }


def held_mb(device: str) -> float:
    """The most memory until now: of this process, or of a GPU what PyTorch reserved, and CUDA's context."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 1e6 + context_mb()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def context_mb() -> float:
    """What CUDA itself holds of a GPU that no other process uses; another's memory would count as ours."""
    import torch

    free, whole = torch.cuda.mem_get_info()
    return max(whole - free - torch.cuda.memory_reserved(), 0) / 1e6


def _forget_held(device: str) -> None:
    """A worker trains one cell after another: what one held is not the next one's."""
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _held(device: str) -> dict[str, float]:
    """What PyTorch reserved of the GPU at most, without CUDA's context: of a shared one that is not known."""
    import torch

    return {"gpu_memory_mb": round(torch.cuda.max_memory_reserved() / 1e6, 1)} if device == "cuda" else {}


@functools.cache
def commit() -> dict[str, Any]:
    """The commit of the checkout that this code runs from, and whether files differ from it.

    Of code that was sent to a cluster, what the sender found (`COMMIT`). Empty where there is none, as in an
    installed wheel; `sweeps` versions are told by the package then.
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
    """Train a recorded cell again, with as many threads, and name what is not bitwise what is stored."""
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
    stored_metrics, absent = record["metrics"], "absent"  # which is not the same as undefined, None
    names = dict.fromkeys([*metrics, *stored_metrics])
    found += [name for name in names if metrics.get(name, absent) != stored_metrics.get(name, absent)]
    try:
        stored = store.read_table(key, "predictions")
        same = predictions_table(result).cast(stored.schema).equals(stored)
    except (OSError, ValueError):  # the file is lost, damaged or has other columns
        same = False
    found += [] if same else ["predictions"]
    kept = stored_weights(key, store)
    if kept is not None:
        weights, scaling = kept
        same = weights.keys() == result.weights.keys() and scaling == result.scaling
        same = same and all(torch.equal(weights[name], result.weights[name]) for name in weights)
        found += [] if same else ["weights"]
    return found


def stored_weights(key: str, store: Store) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]] | None:
    """Weights and scaling of a cell, or None where they are not kept."""
    import torch

    content = store.read_file(key, WEIGHTS)
    if content is None:
        return None
    found = torch.load(io.BytesIO(content), weights_only=True)
    return found["weights"], found["scaling"]


def trial_arguments(embedded: Embedded | None) -> dict[str, Any]:
    """What `trial.run` is told of an encoder's vectors."""
    if embedded is None:
        return {}
    return {"embedding": embedded.vectors, "trained_on_target": embedded.trained_on_target}


def predictions_table(result: "Result") -> pa.Table:
    """As it is stored: texts that repeat are dictionary-encoded."""
    predictions = pa.table(result.predictions)
    for name in ("part", "site_id"):
        column = predictions.schema.get_field_index(name)
        predictions = predictions.set_column(column, name, predictions[name].dictionary_encode())
    return predictions


def record_loss(record: Record, store: Store, reason: str) -> Record:
    """Record a cell or a trial whose worker died before it could say why."""
    return _record_failure({**record, "started": _now()}, store, RuntimeError(reason))


def _record_failure(record: Record, store: Store, error: Exception) -> Record:
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "message": " ".join(str(error).split()),
        "signature": failures.signature(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    record = {k: v for k, v in record.items() if k != "metrics"} | {
        "state": "failed",
        "error": described,
    }
    return _end(record, store)


def _end(record: Record, store: Store) -> Record:
    first = store.record(record["key"])
    if first is not None and first["state"] != "failed":  # an orphan of a killed run was quicker
        store.delete_file(record["key"], CHECKPOINT)
        return first
    record = record | {"ended": _now()}
    if "reported" in record:  # where log1p is undone an RMSE may be infinite: no number in JSON, nor a score
        record["reported"] = [_finite(value) for value in record["reported"]]
    store.write_record(record)
    store.delete_file(record["key"], CHECKPOINT)
    return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
