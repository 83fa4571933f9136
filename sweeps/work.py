"""Run one cell and record what came of it; the seam that a Ray worker, or a debugger, calls."""

import io
import math
import os
import platform
import socket
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

import pm25
from pm25.cell import Cell
from pm25.panel import Panel
from sweeps.store import Record, Store

if TYPE_CHECKING:
    from pm25.trial import Result


class Embedded(NamedTuple):
    """The places' vectors, made once for all cells of an encoder."""

    vectors: np.ndarray
    """(sites, d), or (sites, 12, d) by month."""
    fingerprint: str
    trained_on_target: bool


def embed(
    name: str, options: dict[str, Any], lat: np.ndarray, lon: np.ndarray, site_id: np.ndarray
) -> Embedded:
    """Embed places with `pm25.encoders.load(name, **options)`."""
    from pm25 import encoders

    encoder = encoders.load(name, **options)
    return Embedded(encoder.embed(lat, lon, site_id), encoder.fingerprint, encoder.trained_on_target)


def run_and_record(
    cell: Cell,
    key: str,
    panel: Panel,
    store: Store,
    *,
    embedded: Embedded | None = None,
    keep_weights: bool = False,
    device: str = "cpu",
) -> Record:
    """Train the cell and store what came of it, last of all the record. A failure is a record too."""
    import torch

    from pm25 import trial

    record: Record = {
        "key": key,
        "state": "done",
        "cell": cell.resolved(),
        "data": panel.fingerprint,
        "encoder": embedded.fingerprint if embedded else None,
        "numerics": pm25.NUMERICS,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "started": _now(),
    }
    try:
        result = trial.run(cell, panel, **trial_arguments(embedded), device=device)
        record["metrics"] = {name: _finite(value) for name, value in result.metrics.items()}
        if record["metrics"]["test_rmse"] is None:
            raise ArithmeticError(f"test RMSE is {result.metrics['test_rmse']}")
        record |= {"counts": result.counts, "audit": result.audit, "seconds": round(result.seconds, 3)}
    except Exception as error:
        return _record_failure(record, store, error)
    store.write_table(key, "predictions", predictions_table(result))
    names = ("epoch", "train_loss", "validation_loss", "learning_rate")
    store.write_table(key, "history", {name: [getattr(e, name) for e in result.history] for name in names})
    if keep_weights:
        buffer = io.BytesIO()
        torch.save(result.weights, buffer)
        store.write_file(key, "weights.pt", buffer.getvalue())
    record["ended"] = _now()
    store.write_record(record)
    return record


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
    return found if same else [*found, "predictions"]


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


def record_loss(cell: Cell, key: str, store: Store, reason: str) -> Record:
    """Record a cell whose worker died before it could say why."""
    record = {"key": key, "state": "failed", "cell": cell.resolved(), "started": _now()}
    return _record_failure(record, store, RuntimeError(reason))


def _record_failure(record: Record, store: Store, error: Exception) -> Record:
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "message": " ".join(str(error).split()),
        "traceback": "".join(traceback.format_exception(error)),
    }
    record = {k: v for k, v in record.items() if k != "metrics"} | {
        "state": "failed",
        "error": described,
        "ended": _now(),
    }
    store.write_record(record)
    return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
