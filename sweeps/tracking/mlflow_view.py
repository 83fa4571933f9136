"""The MLflow view of the store; the only module that imports mlflow."""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own patience, minutes for each request, would hold up the end of a run.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# The end of a run on a server is printed otherwise, and asked for twice to do so.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

import pm25
from pm25.cell import Cell
from pm25.errors import InputError
from sweeps.analysis import labels
from sweeps.store.records import Record, Store, default_tracking
from sweeps.tracking.parent_metrics import Aggregates
from sweeps.tracking.ui_views import pages

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.tracking.winners import Winner

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)

PAGE = 1000
"""Runs fetched, and metrics logged, per request."""
WRITERS = 8
"""Runs written to a server side by side: a request to one with several workers waits 40 ms for a delayed
acknowledgement, and its workers are as many as its processors. SQLite takes one writer at a time."""
VIEW = "2"
"""Raised when runs are written in another way: `sync` writes those of an earlier way again."""
PARENTS = {"cell": "arm", "trial": "search"}
"""The kind of the parent of a kind of run."""


@event.listens_for(Engine, "connect")
def _without_waiting_for_the_disk(connection: Any, _: Any) -> None:
    """Of the 110 ms that a run in SQLite cost, 90 were spent on five waits for the disk.

    A killed process still leaves the database whole. A power failure may not; then it is deleted, and `sweep
    sync` makes it again. The quicker WAL would not do on the network file systems of clusters.
    """
    if isinstance(connection, sqlite3.Connection):
        for setting in ("synchronous=OFF", *_SETTINGS):
            connection.execute(f"PRAGMA {setting}")


_SETTINGS = ("foreign_keys=ON", "busy_timeout=20000", "case_sensitive_like=true")
"""What MLflow sets at the start of every session; there are eight to a run."""


def _settle(client: MlflowClient) -> None:
    """Spare MLflow its settings at the start of every session on SQLite, a sixth of a run's time.

    An internal, and only a saving: where it is gone, runs are written as before.
    """
    store = client._tracking_client.store
    if not hasattr(store, "ManagedSessionMaker") or store.engine.dialect.name != "sqlite":
        return
    make = sessionmaker(bind=store.engine)

    @contextlib.contextmanager
    def session(read_only: bool = True) -> Iterator[Session]:
        with make() as made:
            yield made
            made.commit()  # what does not come so far is rolled back

    store.ManagedSessionMaker = session


@contextlib.contextmanager
def _told_in_one_line(uri: str) -> Iterator[None]:
    """Raises InputError for what MLflow, its database or its server raises."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # requests' errors are of the last kind
        raise _refusal(uri, error) from error


def artifacts_uri(storage: str, uri: str) -> str | None:
    """Where the artifacts of an experiment go; None where a server says so.

    MLflow itself would put those of a database into the folder that the process stands in.
    """
    if uri.startswith("http"):
        return None
    if "://" not in storage:
        return Path(storage).resolve().joinpath("mlflow-artifacts").as_uri()
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///")).resolve().with_name("mlflow-artifacts").as_uri()
    return f"{storage.partition('?')[0].rstrip('/')}/mlflow-artifacts"


class Unreachable(InputError):
    """A tracking server that does not answer; the view can be written later."""


@dataclass
class _Parent:
    """The run above all cells of an arm on a split, or above all trials of its search."""

    run_id: str
    status: str
    start: int
    end: int | None
    metrics: dict[str, float]
    artifacts: str
    last: int = 0
    """When the last of its runs ended (ms)."""
    children: int = field(default=0)

    @classmethod
    def of(cls, run: Run) -> "_Parent":
        info = run.info
        return cls(
            info.run_id,
            info.status,
            info.start_time,
            info.end_time,
            dict(run.data.metrics),
            info.artifact_uri,
        )


class Tracker:
    """One experiment per study: a run per ended cell and search trial, found by its tag `key`, below a
    parent run per arm and split, or per arm's search.

    Only this process writes to the experiment while a study runs. `data` tells of the panel what a run's
    data set shows (`State.data`). Raises InputError when the tracking store cannot be opened or refuses
    the user, and its child Unreachable when a server does not answer.
    """

    def __init__(self, store: Store, uri: str | None, data: Mapping[str, Any] | None = None) -> None:
        self._store = store
        self._data = data
        self._parents: dict[tuple[str, str | None], _Parent] | None = None
        self._datasets: set[str] = set()
        """Fingerprints of the data sets that the server is known to have."""
        self.uri = uri or default_tracking(store.storage)
        artifacts = artifacts_uri(store.storage, self.uri)
        with _told_in_one_line(self.uri):
            self._client = MlflowClient(tracking_uri=self.uri)
            experiment = self._client.get_experiment_by_name(store.study)
            if experiment is None:
                # Without the tag the UI opens the experiment in its GenAI face.
                self.experiment_id = self._client.create_experiment(
                    store.study, artifacts, {"mlflow.experimentKind": "custom_model_development"}
                )
                experiment = self._client.get_experiment(self.experiment_id)
            elif experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(experiment.experiment_id)
            self.experiment_id = experiment.experiment_id
            self._tags = dict(experiment.tags)
            _settle(self._client)

    def describe(self, markdown: str) -> None:
        """Put the comparison on the experiment's page."""
        with _told_in_one_line(self.uri):
            self._tag("mlflow.note.content", markdown)

    def _tag(self, name: str, value: str) -> None:
        if self._tags.get(name) != value:
            self._client.set_experiment_tag(self.experiment_id, name, value)
            self._tags[name] = value

    def sync(self, records: Iterable[Record]) -> int:
        """Make the experiment say what the records say; returns the number of runs written.

        A run that was never ended, stands twice, tells of a cell's earlier attempt, or of a cell without a
        record is removed; so is a parent that stands twice or has no runs. A run finds its parent again.
        """
        with _told_in_one_line(self.uri):
            return self._sync(records)

    def _sync(self, records: Iterable[Record]) -> int:
        runs: dict[str, list[Run]] = {}
        parents: dict[tuple[str, str | None], list[Run]] = {}
        for run in self._runs():
            tags = run.data.tags
            if tags["kind"] in PARENTS.values():
                parents.setdefault((tags["arm"], tags.get("split")), []).append(run)
            else:
                runs.setdefault(tags.get("key", ""), []).append(run)
        self._parents = {}
        for place, found in parents.items():
            ours = [run for run in found if run.data.tags.get("view") == VIEW]
            first = min(ours, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
            for run in found:
                if run is not first:
                    self._remove(run)
            if first is not None:
                self._parents[place] = _Parent.of(first)
        absent = []
        for record in records:
            good, *spare = sorted(runs.pop(record["key"], []), key=lambda r: not _tells(r, record)) or [None]
            if good is not None and not _tells(good, record):
                spare, good = [good, *spare], None
            for run in spare:
                self._remove(run)
            if good is None:
                absent.append(record)
            else:
                self._adopt(good, record)
        for key, rest in runs.items():
            store = self._store.search if rest[0].data.tags["kind"] == "trial" else self._store
            now = store.record(key)
            told = [run for run in rest if now is not None and _tells(run, now)]
            for run in rest:
                if run not in told[:1]:
                    self._remove(run)
            if now is not None and told:
                self._adopt(told[0], now)
        self._write_all(absent)
        for place, parent in [*self._parents.items()]:
            if not parent.children:
                self._client.delete_run(parent.run_id)
                del self._parents[place]
        return len(absent)

    def _runs(self, condition: str = "tags.kind LIKE '%'") -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], condition, max_results=PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _remove(self, run: Run) -> None:
        if run.info.status == "RUNNING":
            self._client.set_terminated(run.info.run_id, "KILLED")
        self._client.delete_run(run.info.run_id)

    def _adopt(self, run: Run, record: Record) -> None:
        """See to it that a run stands below its parent."""
        parent = self._parent(record)
        if run.data.tags.get("mlflow.parentRunId") != parent.run_id:
            self._client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.run_id)

    def _parent(self, record: Record) -> _Parent:
        """The parent of a record's run, made where there is none."""
        if self._parents is None:
            found = [run for kind in PARENTS.values() for run in self._runs(f"tags.kind = '{kind}'")]
            places = [(run.data.tags["arm"], run.data.tags.get("split")) for run in found]
            self._parents = {place: _Parent.of(run) for place, run in zip(places, found, strict=True)}
        told = _told(record)
        place = told.tags["arm"], told.tags.get("split")
        if place not in self._parents:
            own = {name: told.tags[name] for name in _PARENT_TAGS if name in told.tags}
            tags = {"kind": PARENTS[told.tags["kind"]], "view": VIEW, **own}
            name = f"{place[0]} | {place[1] or 'search'}"
            run = self._client.create_run(self.experiment_id, _milliseconds(record["started"]), tags, name)
            self._parents[place] = _Parent.of(run)
            # Parameters besides, for the compare page draws nothing of tags.
            params = [Param(name, value) for name, value in own.items() if name != "arm"]
            self._client.log_batch(run.info.run_id, params=params)
        parent = self._parents[place]
        parent.last = max(parent.last, _milliseconds(record["ended"]))
        parent.children += 1
        return parent

    def write(self, records: Iterable[Record]) -> None:
        """One run for each, its parents first; on a server several at a time."""
        with _told_in_one_line(self.uri):
            self._write_all(records)

    def _write_all(self, records: Iterable[Record]) -> None:
        jobs = [(record, self._parent(record).run_id) for record in records]
        if not self.uri.startswith("http"):
            for record, parent in jobs:
                self._write(record, parent)
            return
        # The server adds a data set at its first run: two at once would both, and one would fail.
        first = {record["data"]: (record, parent) for record, parent in reversed(jobs) if "data" in record}
        alone = [job for data, job in first.items() if data not in self._datasets]
        for record, parent in alone:
            self._write(record, parent)
            self._datasets.add(record["data"])
        with ThreadPoolExecutor(WRITERS) as pool:
            futures = [pool.submit(self._write, *job) for job in jobs if job not in alone]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # each would wait for the server that failed
                raise

    def _write(self, record: Record, parent: str) -> None:
        """A run in five requests: its tags, numbers, data set and predictions, then its end.

        It counts for `sync` when it has ended, so that a part of one is never taken for the whole.
        """
        told = _told(record)
        tags = {**told.tags, "mlflow.parentRunId": parent}
        start, end = (_milliseconds(record[stamp]) for stamp in ("started", "ended"))
        run = self._client.create_run(self.experiment_id, start, tags, told.name)
        run_id = run.info.run_id
        steps = [*told.metrics]
        if told.tags["kind"] == "cell" and record["state"] == "done":
            history = self._store.read_table(record["key"], "history").to_pylist()
            steps += [(epoch.pop("epoch"), epoch) for epoch in history]
        points = [
            Metric(name, value, end, step)
            for step, values in steps
            for name, value in values.items()
            if value is not None
        ]
        params = [Param(name, str(value)[:6000]) for name, value in _flat(told.params)]
        self._client.log_batch(run_id, params=params, metrics=points[: PAGE - len(params)])
        for at in range(PAGE - len(params), len(points), PAGE):
            self._client.log_batch(run_id, metrics=points[at : at + PAGE])
        if self._data is not None and "data" in record:  # a trial that failed at its very beginning has none
            self._client.log_inputs(run_id, [_dataset(record["data"], self._data)])
        if told.tags["kind"] == "cell" and record["state"] == "done":
            self._attach_predictions(run.info.artifact_uri, record["key"])
        self._client.set_terminated(run_id, _status(record), end)

    def _attach_predictions(self, artifacts: str, key: str) -> None:
        name = "predictions.parquet"
        system, path = self._store.location(self._store.folder, key, name)
        if "://" not in self._store.storage and artifacts.startswith("file:"):
            # MLflow would copy it; a second name costs no room and a tenth of the time.
            folder = Path(unquote(urlsplit(artifacts).path))
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, folder / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, folder / name)
            return
        if "://" not in self._store.storage:
            self._upload(artifacts, path)
            return
        with system.open_input_stream(path) as stream:
            self._attach(artifacts, name, stream.read())

    def _attach(self, artifacts: str, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(content)
            self._upload(artifacts, str(file))

    def _upload(self, artifacts: str, path: str) -> None:
        # What `MlflowClient.log_artifact` does, without the request that asks for the run's own address.
        get_artifact_repository(artifacts, tracking_uri=self.uri).log_artifact(path)

    def answer(self, aggregates: Aggregates) -> None:
        """Put what an arm's cells say together on its parents, as far as it has changed.

        Metrics of step 0, so that the UI draws bars of them, and not lines; a number that is no more is
        NaN. A parent has finished when no cell of it is missing.
        """
        with _told_in_one_line(self.uri):
            self._answer(aggregates)

    def show(self, figures: Mapping[str, bytes]) -> None:
        """Put figures, by file name, on every arm's parents: in place of those of before."""
        if not figures:
            return
        with _told_in_one_line(self.uri), tempfile.TemporaryDirectory() as folder:
            for name, content in figures.items():
                Path(folder, name).write_bytes(content)
            for (_, split), parent in (self._parents or {}).items():
                if split is not None:
                    repository = get_artifact_repository(parent.artifacts, tracking_uri=self.uri)
                    repository.log_artifacts(folder, "figures")

    def _answer(self, aggregates: Aggregates) -> None:
        for place, numbers in aggregates.items():
            parent = (self._parents or {}).get(place)
            if parent is None:  # none of its cells has ended
                continue
            gone = {name: math.nan for name, value in parent.metrics.items() if not math.isnan(value)}
            wanted = {**gone, **numbers}
            now = round(time.time() * 1000)
            changed = {name: value for name, value in wanted.items() if parent.metrics.get(name) != value}
            if changed:
                points = [Metric(name, value, now, 0) for name, value in changed.items()]
                self._client.log_batch(parent.run_id, metrics=points)
                parent.metrics |= changed
            whole = numbers["n"] + numbers["n_failed"] >= numbers["n_expected"]
            if whole and (parent.status, parent.end) != ("FINISHED", parent.last):
                self._client.set_terminated(parent.run_id, "FINISHED", parent.last)
                parent.status, parent.end = "FINISHED", parent.last
            elif not whole and parent.status != "RUNNING":
                self._client.update_run(parent.run_id, "RUNNING")
                parent.status = "RUNNING"
        for key, page in pages().items():
            envelope = {"name": page.name, "createdAt": 0, "state": json.dumps(page.state)}
            self._tag(f"mlflow.sharedViewState.{key}", json.dumps(envelope))

    def register(self, winner: "Winner", example: "pd.DataFrame") -> str | None:
        """Register an arm's model as `<study>.<arm>`, its card as its description; returns the new version.

        The newest has the alias `winner`. None where that is this very training's. `example` is a row that
        the model takes.
        """
        with _told_in_one_line(self.uri):
            return self._register(winner, example)

    def _register(self, winner: "Winner", example: "pd.DataFrame") -> str | None:
        from sweeps.engine.worker import WEIGHTS

        name = f"{self._store.study}.{winner.name}"
        weights = hashlib.sha256(self._store.read_file(winner.key, WEIGHTS) or b"").hexdigest()
        tags = {**winner.tags, "key": winner.key, "weights": weights}
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(
                name, description=f"The best of {winner.arm} in the study {self._store.study}."
            )
        for version in self._client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("key") == winner.key and version.tags.get("weights") == weights:
                if version.description != winner.card:
                    self._client.update_model_version(name, version.version, winner.card)
                self._name_winner(name, version.version)
                return None
        (run,) = self._runs(f"tags.key = '{winner.key}'")
        with tempfile.TemporaryDirectory() as folder:
            _save_model(Path(folder), winner, example)
            repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)
            repository.log_artifacts(f"{folder}/model", "model")
        made = self._client.create_model_version(
            name, f"{run.info.artifact_uri}/model", run.info.run_id, tags, description=winner.card
        )
        self._name_winner(name, made.version)
        return str(made.version)

    def _name_winner(self, name: str, version: str) -> None:
        if str(self._client.get_registered_model(name).aliases.get("winner")) != str(version):
            self._client.set_registered_model_alias(name, "winner", str(version))

    def links(self) -> dict[str, str]:
        """Pages of the UI, after its address: what each shows, and where it is."""
        with _told_in_one_line(self.uri):
            return self._links()

    def _links(self) -> dict[str, str]:
        page = f"/#/experiments/{self.experiment_id}/runs"
        # The parameter chooses the UI's face for model training; it opens the one for GenAI otherwise.
        face = "workflowType=machine_learning"
        found = {
            shown.name: f"{page}?{face}&viewStateShareKey={key}&compareRunsMode={shown.mode}"
            for key, shown in pages().items()
            if f"mlflow.sharedViewState.{key}" in self._tags
        }
        splits: dict[str, list[Run]] = {}
        for run in sorted(
            self._runs("tags.kind = 'arm'"), key=lambda r: (r.info.start_time, r.info.run_name)
        ):
            splits.setdefault(run.data.tags["split"], []).append(run)
        for split, parents in splits.items():
            runs = quote(json.dumps([run.info.run_id for run in parents], separators=(",", ":")))
            experiments = quote(json.dumps([self.experiment_id]))
            # `runs` has to be the first.
            found[f"Arms side by side on {split}"] = (
                f"/#/compare-runs?runs={runs}&experiments={experiments}&{face}"
            )
        return {**found, "Every run": f"{page}?{face}"}


def _save_model(folder: Path, winner: "Winner", example: "pd.DataFrame") -> None:
    """Write `folder/model`: the training, the code that reads it, and what they need; no run is opened."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from sweeps.tracking.winners import requirements

    winner.write(folder / "training")
    kinds = {kind: DataType[kind] for kind in ("double", "long", "string")}
    kinds["array"] = Array(DataType.double)
    inputs = [ColSpec(kinds[kind], column) for column, kind in winner.inputs.items()]
    pyfunc.save_model(
        str(folder / "model"),
        loader_module="pm25.predictor",
        data_path=str(folder / "training"),
        code_paths=[str(Path(pm25.__file__).parent)],
        pip_requirements=requirements(),
        signature=ModelSignature(Schema(inputs), Schema([ColSpec(DataType.float, "pm25_ugm3")])),
        input_example=example,
    )


class _Told(NamedTuple):
    """What a run says, but for the epochs of a cell."""

    name: str
    tags: dict[str, str]
    params: Mapping[str, Any]
    metrics: list[tuple[int, Mapping[str, Any]]]
    """By step."""


_PARENT_TAGS = ("arm", "variant", "fusion", "head", "split", "regime")


def _told(record: Record) -> _Told:
    told = (_trial if record.get("kind") == "trial" else _cell)(record)
    if record["state"] == "failed":
        error = record["error"]
        told.tags["error"] = f"{error['type']}: {error['message']}"[:5000]
        told.tags["mlflow.note.content"] = f"```\n{error.get('traceback', '')[-7900:]}\n```"
    return told


def _cell(record: Record) -> _Told:
    cell = Cell.model_validate(record["cell"])
    tags = {
        **_place(record, "cell"),
        **_factors(cell.variant, cell.fusion, cell.head),
        "split": cell.split.label,
        "regime": cell.split.regime,
        "fold": str(cell.fold),
        "seed": str(cell.seed),
    }
    if record.get("encoder"):
        tags["encoder"] = record["encoder"]
    audit = dict(record.get("audit", {}))
    if failed := audit.pop("failed", []):
        tags["marked"] = "; ".join(failed)[:5000]  # a marked result never looks like another
    metrics: list[tuple[int, Mapping[str, Any]]] = []
    if record["state"] == "done":
        metrics = [(0, {**record["metrics"], **record["counts"], **audit, "seconds": record["seconds"]})]
    return _Told(cell.label, tags, record["cell"], metrics)


def _trial(record: Record) -> _Told:
    """A search trial's run: the point, its validation scores, and the RMSE after every epoch."""
    variant, *rest = record["arm"].split("-")  # `Arm.label`
    factors = _factors(variant, rest[-1] if rest else None, rest[0] if len(rest) > 1 else None)
    tags = {**_place(record, "trial"), **factors, "state": record["state"]}
    scores = {
        f"val_{regime}_{name}": value
        for regime, values in record.get("scores", {}).items()
        for name, value in values.items()
    }
    spent = {"epochs": record["epochs"], "seconds": record["seconds"]}
    curve = [(step, {"validation_rmse": value}) for step, value in enumerate(record["reported"], 1)]
    name = f"search {record['arm']} trial {record['number']}"
    return _Told(name, tags, record["params"], [(0, {**scores, **spent}), *curve])


def _factors(variant: str, fusion: str | None, head: str | None) -> dict[str, str]:
    """The arm's; the UI groups a run without a tag under no name, so no fusion is a value as well."""
    factors = {"arm": labels.arm(variant, fusion), "variant": variant, "fusion": fusion or "-"}
    return factors | ({"head": head} if head else {})


def _place(record: Record, kind: str) -> dict[str, str]:
    """What and where it was trained."""
    tags = {name: str(record.get(name, "?")) for name in ("host", "device", "data", "numerics")}
    tags |= {"mlflow.source.name": "sweep run", "mlflow.source.type": "LOCAL"}
    if "commit" in record:
        tags |= {"commit": record["commit"], "dirty": str(record["dirty"]).lower()}
        tags["mlflow.source.git.commit"] = record["commit"]
    return {"key": record["key"], "kind": kind, "ended": record["ended"], "view": VIEW, **tags}


def _dataset(fingerprint: str, data: Mapping[str, Any]) -> DatasetInput:
    """MLflow finds a data set by its name and digest, of at most 36 characters."""
    told = {name: json.dumps(data[name]) for name in ("source", "schema", "profile")}
    uri = data["source"].get("uri")
    kind = "code" if uri is None else uri.partition("://")[0] if "://" in uri else "local"
    dataset = Dataset(data["name"], fingerprint[:36], kind, **told)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _status(record: Record) -> str:
    """A trial that was pruned has ended as it should."""
    return "FAILED" if record["state"] == "failed" else "FINISHED"


def _tells(run: Run, record: Record) -> bool:
    """Whether a run is the whole story of this very attempt at the cell."""
    tags = run.data.tags
    same = tags.get("ended") == record["ended"] and tags.get("view") == VIEW
    return same and run.info.status == _status(record)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _milliseconds(stamp: str) -> int:
    return round(datetime.fromisoformat(stamp).timestamp() * 1000)


def _refusal(uri: str, error: Exception) -> InputError:
    """Why a tracking store cannot be used; a server that only does not answer may do so later."""
    reason = " ".join(str(error).split())[:300].rstrip(".")
    if not uri.startswith("http"):
        fix = (
            f"; delete {uri.rpartition(':///')[2]}, and `sweep sync` makes it again"
            if "malformed" in reason
            else ""
        )
        return InputError(f"tracking: {uri} cannot be opened ({reason}){fix}")
    if re.search(r"\b40[13]\b", reason):
        return InputError(
            f"tracking: {uri} refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return Unreachable(f"tracking: {uri} cannot be opened ({reason})")
