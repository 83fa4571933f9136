"""The MLflow view of the store; the only module that imports mlflow."""

import logging
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own patience, minutes for each request, would hold up the end of a run.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.store import Record, Store

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)

PAGE = 1000
"""Runs fetched, and metrics logged, per request."""


def default_uri(storage: str) -> str:
    """`<storage>/mlflow.db`, absolute: a relative SQLite address is another file in every process."""
    if "://" in storage:
        raise InputError(f"tracking: storage {storage} is no folder; --set tracking=URI of an MLflow server")
    return f"sqlite:///{Path(storage).resolve() / 'mlflow.db'}"


class Unreachable(InputError):
    """A tracking server that does not answer; the view can be written later."""


class Tracker:
    """One experiment per study, one run per ended cell and search trial, found by its tag `key`.

    Only this process writes to the experiment while a study runs. Raises InputError when the tracking
    store cannot be opened, and its child Unreachable when a server does not answer.
    """

    def __init__(self, store: Store, uri: str | None) -> None:
        self._store = store
        self.uri = uri or default_uri(store.storage)
        artifacts = None if uri else Path(store.storage).resolve().joinpath("mlflow-artifacts").as_uri()
        try:
            self._client = MlflowClient(tracking_uri=self.uri)
            experiment = self._client.get_experiment_by_name(store.study)
            if experiment is None:
                self.experiment_id = self._client.create_experiment(store.study, artifacts)
                # Without it the UI opens the experiment in its GenAI face.
                self._client.set_experiment_tag(
                    self.experiment_id, "mlflow.experimentKind", "custom_model_development"
                )
            else:
                self.experiment_id = experiment.experiment_id
        except (MlflowException, OSError) as error:
            kind = Unreachable if self.uri.startswith("http") else InputError
            raise kind(f"tracking: {self.uri} cannot be opened ({_reason(error)})") from None

    def describe(self, markdown: str) -> None:
        """Put the comparison on the experiment's page."""
        self._client.set_experiment_tag(self.experiment_id, "mlflow.note.content", markdown)

    def sync(self, records: Iterable[Record]) -> int:
        """Make the experiment say what the records say; returns the number of runs written.

        A run that was never ended, stands twice, tells of a cell's earlier attempt, or of a cell without a
        record is removed.
        """
        runs: dict[str, list[Run]] = {}
        for run in self._runs():
            runs.setdefault(run.data.tags.get("key", ""), []).append(run)
        written = 0
        for record in records:
            good, *spare = sorted(runs.pop(record["key"], []), key=lambda r: not _tells(r, record)) or [None]
            if good is not None and not _tells(good, record):
                spare, good = [good, *spare], None
            for run in spare:
                self._remove(run)
            if good is None:
                self.write(record)
                written += 1
        for key, rest in runs.items():
            for run in rest:
                store = self._store.search if run.data.tags["kind"] == "trial" else self._store
                now = store.record(key)
                if now is None or not _tells(run, now):
                    self._remove(run)
        return written

    def _runs(self) -> Iterable[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], "tags.kind LIKE '%'", max_results=PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _remove(self, run: Run) -> None:
        if run.info.status == "RUNNING":
            self._client.set_terminated(run.info.run_id, "KILLED")
        self._client.delete_run(run.info.run_id)

    def write(self, record: Record) -> None:
        """One run in few requests: created with its tags, then parameters and metrics together, its end."""
        name, tags, params, metrics = (_trial if record.get("kind") == "trial" else self._cell)(record)
        if record["state"] == "failed":
            tags["error"] = f"{record['error']['type']}: {record['error']['message']}"[:5000]
        start, end = (_milliseconds(record[stamp]) for stamp in ("started", "ended"))
        run = self._client.create_run(self.experiment_id, start, tags, name)
        run_id = run.info.run_id
        points = [
            Metric(metric, value, end, step)
            for step, values in metrics
            for metric, value in values.items()
            if value is not None
        ]
        logged = [Param(param, str(value)[:6000]) for param, value in _flat(params)]
        self._client.log_batch(run_id, params=logged, metrics=points[:PAGE])
        for at in range(PAGE, len(points), PAGE):
            self._client.log_batch(run_id, metrics=points[at : at + PAGE])
        self._client.set_terminated(run_id, _status(record), end)

    def _cell(self, record: Record) -> "_Run":
        cell = Cell.model_validate(record["cell"])
        tags = {
            **_place(record, "cell"),
            "variant": cell.variant,
            "fusion": cell.fusion or "-",
            "split": cell.split.label,
            "regime": cell.split.regime,
            "fold": str(cell.fold),
            "seed": str(cell.seed),
        }
        audit = dict(record.get("audit", {}))
        if failed := audit.pop("failed", []):
            tags["marked"] = "; ".join(failed)[:5000]  # a marked result never looks like another
        metrics: list[tuple[int, Mapping[str, Any]]] = []
        if record["state"] == "done":
            metrics = [(0, {**record["metrics"], **record["counts"], **audit, "seconds": record["seconds"]})]
            history = self._store.read_table(record["key"], "history").to_pylist()
            metrics += [(epoch.pop("epoch"), epoch) for epoch in history]
        return cell.label, tags, record["cell"], metrics


_Run = tuple[str, dict[str, str], Mapping[str, Any], list[tuple[int, Mapping[str, Any]]]]
"""Name, tags, params, and metrics by step."""


def _trial(record: Record) -> _Run:
    """A search trial's run: the point, its validation scores, and the RMSE after every epoch."""
    tags = {**_place(record, "trial"), "arm": record["arm"], "state": record["state"]}
    scores = {
        f"val_{regime}_{name}": value
        for regime, values in record.get("scores", {}).items()
        for name, value in values.items()
    }
    spent = {"epochs": record["epochs"], "seconds": record["seconds"]}
    curve = [(step, {"validation_rmse": value}) for step, value in enumerate(record["reported"], 1)]
    name = f"search {record['arm']} trial {record['number']}"
    return name, tags, record["params"], [(0, {**scores, **spent}), *curve]


def _place(record: Record, kind: str) -> dict[str, str]:
    told = {name: str(record.get(name, "?")) for name in ("host", "device", "data")}
    return {"key": record["key"], "kind": kind, "ended": record["ended"], **told}


def _status(record: Record) -> str:
    """A trial that was pruned has ended as it should."""
    return "FAILED" if record["state"] == "failed" else "FINISHED"


def _tells(run: Run, record: Record) -> bool:
    """Whether a run is the whole story of this very attempt at the cell."""
    return run.info.status == _status(record) and run.data.tags.get("ended") == record["ended"]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _milliseconds(stamp: str) -> int:
    return round(datetime.fromisoformat(stamp).timestamp() * 1000)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
