"""Run one cell and record what came of it; the seam that a Ray worker, or a debugger, calls."""

import math
import os
import platform
import socket
import traceback
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

import pm25
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.settings import ENCODERS
from sweeps.store import Record, Store


def run_and_record(
    cell: Cell,
    key: str,
    panel: Panel,
    store: Store,
    *,
    embedding: np.ndarray | None = None,
    encoder_fingerprint: str | None = None,
    device: str = "cpu",
) -> Record:
    """Train the cell and store predictions, history and, last, the record. A failure is a record too."""
    import torch

    from pm25 import trial

    record: Record = {
        "key": key,
        "state": "done",
        "cell": cell.resolved(),
        "data": panel.fingerprint,
        "encoder": encoder_fingerprint if cell.variant in ENCODERS else None,
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
        result = trial.run(cell, panel, embedding=embedding, device=device)
        record["metrics"] = {
            name: value if math.isfinite(value) else None for name, value in result.metrics.items()
        }
        if record["metrics"]["test_rmse"] is None:
            raise ArithmeticError(f"test RMSE is {result.metrics['test_rmse']}")
        record |= {"counts": result.counts, "audit": result.audit, "seconds": round(result.seconds, 3)}
    except Exception as error:
        return _record_failure(record, store, error)
    predictions = pa.table(result.predictions)
    for name in ("part", "site_id"):
        column = predictions.schema.get_field_index(name)
        predictions = predictions.set_column(column, name, predictions[name].dictionary_encode())
    store.write_table(key, "predictions", predictions)
    names = ("epoch", "train_loss", "validation_loss", "learning_rate")
    store.write_table(key, "history", {name: [getattr(e, name) for e in result.history] for name in names})
    record["ended"] = _now()
    store.write_record(record)
    return record


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
