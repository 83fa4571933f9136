"""The study's experiment in MLflow, kept equal to its store."""

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from pm25.scratch import scratch
from sweeps.store import declarations
from sweeps.store.records import Record, Store, default_tracking, failed_checks
from sweeps.tracking import mlflow_internals, readiness
from sweeps.tracking.connection import artifacts_uri, input_errors
from sweeps.tracking.parent_metrics import Aggregates
from sweeps.tracking.run_content import (
    NOTE,
    PARENT_TAGS,
    VIEW,
    dataset_input,
    milliseconds,
    parent_content,
    run_content,
    run_status,
)
from sweeps.tracking.ui_views import pages

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.tracking.winners import Winner

PAGE = 1000
"""Runs fetched, and metrics logged, per request."""
WRITERS = 8
"""Threads that write runs to a server, which waits 40 ms per request for a delayed acknowledgement.

A server has as many workers as processors. SQLite allows only one writer at a time.
"""
PARENTS = {"cell": "arm", "trial": "search"}
"""Kind of the parent run of each kind of run."""


@dataclass
class _Parent:
    """Run above all cells of an arm on a split, or above all trials of an arm's search."""

    run_id: str
    status: str
    end: int | None
    metrics: dict[str, float]
    artifacts: str
    tags: dict[str, str]
    last: int = 0
    """Time at which the last of its runs ended (ms)."""
    children: int = 0

    @classmethod
    def of(cls, run: Run) -> "_Parent":
        info, data = run.info, run.data
        metrics, tags = dict(data.metrics), dict(data.tags)
        return cls(info.run_id, info.status, info.end_time, metrics, info.artifact_uri, tags)


class Tracker:
    """Experiment of one study, with a run for each finished cell and search trial.

    The tag `key` identifies a run. Above the runs there is a parent run for each arm and split, and for each
    arm's search. While a study runs, no other process may write to the experiment.

    `data` describes the panel (`StudyState.data`). Raises InputError if the tracking store cannot be opened
    or refuses the user, and its subclass `Unreachable` if a server does not answer.

    If the store has the token of a driver, a run is written only while that driver has the study. Otherwise
    LockLost is raised.
    """

    def __init__(self, store: Store, uri: str | None, data: Mapping[str, Any] | None = None) -> None:
        self._store = store
        self._data = data
        self._parents: dict[tuple[str, str | None], _Parent] | None = None
        self._datasets: set[str] = set()
        """Fingerprints of the data sets that the server already has."""
        self.uri = uri or default_tracking(store.storage)
        store.check_lock()
        readiness.check(self.uri, store.study)
        artifacts = artifacts_uri(store.storage, self.uri)
        with input_errors(self.uri), mlflow_internals.default_artifacts(artifacts):
            self._client = MlflowClient(tracking_uri=self.uri)
            experiment = self._client.get_experiment_by_name(store.study)
            if experiment is None:
                tags = mlflow_internals.EXPERIMENT_TAGS
                self.experiment_id = self._client.create_experiment(store.study, artifacts, tags)
                experiment = self._client.get_experiment(self.experiment_id)
            elif experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(experiment.experiment_id)
            self.experiment_id = experiment.experiment_id
            self._tags = dict(experiment.tags)

    def describe(self, markdown: str) -> None:
        """Show a text, such as the comparison of the arms, on the experiment's page."""
        with input_errors(self.uri):
            self._tag(NOTE, markdown)

    def _tag(self, name: str, value: str) -> None:
        if self._tags.get(name) != value:
            self._store.check_lock()
            self._client.set_experiment_tag(self.experiment_id, name, value)
            self._tags[name] = value

    def sync(self, records: Iterable[Record]) -> int:
        """Make the runs equal to the records; return the number of runs written.

        Removed are runs that are incomplete, duplicate, older than their record, or without a record. Parents
        that are duplicate or have no runs are removed too. Runs with a wrong parent are moved.

        Runs of all records in the store stay, whichever file of the study they belong to. So do the runs that
        another store wrote to the same experiment.
        """
        with input_errors(self.uri):
            return self._sync(records)

    def _sync(self, records: Iterable[Record]) -> int:
        runs: dict[str, list[Run]] = {}
        parents: dict[tuple[str, str | None], list[Run]] = {}
        for run in self._own_runs():
            tags = run.data.tags
            if tags["kind"] in PARENTS.values():
                parents.setdefault((tags["arm"], tags.get("split")), []).append(run)
            else:
                runs.setdefault(tags.get("key", ""), []).append(run)
        self._parents = {}
        for place, found in parents.items():
            current = [run for run in found if run.data.tags.get("view") == VIEW]
            first = min(current, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
            for run in found:
                if run is not first:
                    self._remove(run)
            if first is not None:
                self._parents[place] = _Parent.of(first)
        absent = []
        for record in records:
            if not self._keep_one(runs.pop(record["key"], []), record):
                absent.append(record)
        for key, rest in runs.items():  # of records that were not passed, such as those of another run
            store = self._store.search if rest[0].data.tags["kind"] == "trial" else self._store
            stored = store.record(key)
            self._keep_one(rest, None if stored is None or stored["state"] == "damaged" else stored)
        self._write_all(absent)
        for place, parent in [*self._parents.items()]:
            if not parent.children:
                self._client.delete_run(parent.run_id)
                del self._parents[place]
        return len(absent)

    def _keep_one(self, runs: list[Run], record: Record | None) -> bool:
        """Keep one run that matches the record, below its parent, and remove the others."""
        matching = [run for run in runs if record is not None and _matches(run, record)]
        for run in runs:
            if run not in matching[:1]:
                self._remove(run)
        if record is not None and matching:
            self._move_to_parent(matching[0], record)
        return bool(matching)

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

    @cached_property
    def _origin(self) -> dict[str, str]:
        """Tag of the runs that this store wrote, with its identity; empty without a declaration."""
        found = declarations.origin(self._store)
        return {"origin": found} if found else {}

    def _own_runs(self, condition: str = "tags.kind LIKE '%'") -> Iterator[Run]:
        """Yield all runs except those of another store that shares the study's name and the server."""
        own = self._origin.get("origin")
        for run in self._runs(condition):
            origin = run.data.tags.get("origin")
            if origin in (None, own):
                yield run

    def _remove(self, run: Run) -> None:
        self._store.check_lock()
        if run.info.status == "RUNNING":
            self._client.set_terminated(run.info.run_id, "KILLED")
        self._client.delete_run(run.info.run_id)

    def _move_to_parent(self, run: Run, record: Record) -> None:
        parent = self._parent(record)
        if run.data.tags.get("mlflow.parentRunId") != parent.run_id:
            self._store.check_lock()
            self._client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.run_id)

    def _parent(self, record: Record) -> _Parent:
        """Find the parent of a record's run, or create it."""
        if self._parents is None:
            found = [run for kind in PARENTS.values() for run in self._own_runs(f"tags.kind = '{kind}'")]
            places = [(run.data.tags["arm"], run.data.tags.get("split")) for run in found]
            self._parents = {place: _Parent.of(run) for place, run in zip(places, found, strict=True)}
        child = run_content(record).tags
        place = child["arm"], child.get("split")
        if place not in self._parents:
            self._store.check_lock()
            shared = {name: child[name] for name in PARENT_TAGS if name in child}
            tags = {"kind": PARENTS[child["kind"]], "view": VIEW, **self._origin, **shared}
            name, tags[NOTE] = parent_content(child)
            run = self._client.create_run(
                self.experiment_id, milliseconds(record.get("started") or record["ended"]), tags, name
            )
            self._parents[place] = _Parent.of(run)
            # The compare page of the UI draws parameters, but no tags.
            params = [Param(name, value) for name, value in shared.items() if name != "arm"]
            self._client.log_batch(run.info.run_id, params=params)
        parent = self._parents[place]
        parent.last = max(parent.last, milliseconds(record["ended"]))
        parent.children += 1
        return parent

    def write(self, records: Iterable[Record]) -> None:
        """Write one run for each record, after its parent; on a server several at a time."""
        with input_errors(self.uri):
            self._write_all(records)

    def _write_all(self, records: Iterable[Record]) -> None:
        jobs = [(record, self._parent(record).run_id) for record in records if self._is_intact(record)]
        if not self.uri.startswith("http"):
            for record, parent in jobs:
                self._write(record, parent)
            return
        # A server adds a data set with its first run: two such runs at the same time would collide.
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

    def _is_intact(self, record: Record) -> bool:
        """Return False for a cell whose tables are damaged; the driver names it at the end of the run."""
        if run_content(record).tags["kind"] != "cell":
            return True
        stored = self._store.record(record["key"], "tables")
        return stored is None or stored["state"] != "damaged"

    def _write(self, record: Record, parent: str) -> None:
        """Write a run in five requests: tags, numbers, data set, predictions, end.

        The end comes last: `sync` replaces a run without it, so that no incomplete run is kept.
        """
        self._store.check_lock()
        content = run_content(record)
        tags = {**content.tags, **self._origin, "mlflow.parentRunId": parent}
        start, end = (milliseconds(record[stamp]) for stamp in ("started", "ended"))
        run = self._client.create_run(self.experiment_id, start, tags, content.name)
        run_id = run.info.run_id
        steps = [*content.metrics]
        if tags["kind"] == "cell" and record["state"] == "done":
            history = self._store.read_result(record["key"], "history", record).to_pylist()
            steps += [(epoch.pop("epoch"), epoch) for epoch in history]
        points = [
            Metric(name, value, end, step)
            for step, values in steps
            for name, value in values.items()
            if value is not None
        ]
        params = [Param(name, value) for name, value in content.params.items()]
        self._client.log_batch(run_id, params=params, metrics=points[: PAGE - len(params)])
        for start_ in range(PAGE - len(params), len(points), PAGE):
            self._client.log_batch(run_id, metrics=points[start_ : start_ + PAGE])
        if self._data is not None and "data" in record:  # a trial that failed at its start has no data
            self._client.log_inputs(run_id, [dataset_input(record["data"], self._data)])
        if tags["kind"] == "cell" and record["state"] == "done":
            self._attach_predictions(run.info.artifact_uri, record["key"])
        self._client.set_terminated(run_id, run_status(record), end)

    def _attach_predictions(self, artifacts: str, key: str) -> None:
        name = "predictions.parquet"
        system, path = self._store.location(self._store.folder, key, name)
        if "://" not in self._store.storage and artifacts.startswith("file:"):
            # A hard link instead of MLflow's copy needs no space, and a tenth of the time.
            folder = Path(unquote(urlsplit(artifacts).path))
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, folder / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, folder / name)
        elif "://" not in self._store.storage:
            mlflow_internals.upload_file(artifacts, path, self.uri)
        else:
            with scratch() as folder, system.open_input_stream(path) as stream:
                file = folder / name
                file.write_bytes(stream.read())
                mlflow_internals.upload_file(artifacts, str(file), self.uri)

    def answer(self, aggregates: Aggregates) -> None:
        """Write the changed aggregates of arms to the parent runs, and save the views of the UI.

        Metrics have step 0, so that the UI draws bars instead of lines. A metric that no longer exists
        becomes NaN. Texts become tags. A parent is finished if none of its cells is missing.
        """
        with input_errors(self.uri):
            for place, numbers in aggregates.items():
                parent = (self._parents or {}).get(place)
                if parent is not None:  # else none of its cells has ended
                    self._update_parent(parent, numbers)
            for key, page in pages().items():
                self._tag(mlflow_internals.view_tag(key), mlflow_internals.view_value(page.name, page.state))

    def _update_parent(self, parent: _Parent, content: Mapping[str, float | str]) -> None:
        self._store.check_lock()
        numbers = {name: value for name, value in content.items() if not isinstance(value, str)}
        for name, text in content.items():
            if isinstance(text, str) and parent.tags.get(name) != text:
                self._client.set_tag(parent.run_id, name, text)
                parent.tags[name] = text
        complete = numbers["n"] + numbers["n_failed"] >= numbers["n_expected"]
        if not numbers["n"] and not complete:
            numbers = {}  # the compare page opens on the metric that was written first: not on a count
        gone = {name: math.nan for name, value in parent.metrics.items() if not math.isnan(value)}
        wanted = {**gone, **numbers}
        now = round(time.time() * 1000)
        changed = {name: value for name, value in wanted.items() if parent.metrics.get(name) != value}
        if changed:
            points = [Metric(name, value, now, 0) for name, value in changed.items()]
            self._client.log_batch(parent.run_id, metrics=points)
            parent.metrics |= changed
        if complete and (parent.status, parent.end) != ("FINISHED", parent.last):
            self._client.set_terminated(parent.run_id, "FINISHED", parent.last)
            parent.status, parent.end = "FINISHED", parent.last
        elif not complete and parent.status != "RUNNING":
            self._client.update_run(parent.run_id, "RUNNING")
            parent.status = "RUNNING"

    def show(self, figures: Mapping[str, bytes]) -> None:
        """Attach figures, by file name, to the parent runs of all arms; they replace earlier ones."""
        if not figures:
            return
        with input_errors(self.uri), scratch() as private:
            folder = private / "figures"
            folder.mkdir()
            for name, content in figures.items():
                (folder / name).write_bytes(content)
            for (_, split), parent in (self._parents or {}).items():
                if split is not None:
                    self._store.check_lock()
                    mlflow_internals.upload_folder(parent.artifacts, str(folder), "figures", self.uri)

    def register(self, winner: "Winner", example: "pd.DataFrame") -> str | None:
        """Register an arm's model as `<study>.<arm>`, with its card, and give it the alias `winner`.

        Returns the new version, or None if the model of this very training is registered already. `example`
        is a row that the model accepts.
        """
        from sweeps.tracking import model_registry

        name = f"{self._store.study}.{winner.name}"
        with input_errors(self.uri):
            self._store.check_lock()
            summary = f"The best of {winner.arm} in the study {self._store.study}."
            model_registry.create_model(self._client, name, summary)
            version = model_registry.find_version(self._client, name, winner)
            created = None
            if version is None:
                (run,) = self._own_runs(f"tags.key = '{winner.key}'")
                created = model_registry.create_version(self._client, name, winner, run, example, self.uri)
            model_registry.set_winner(self._client, name, created or str(version))
        return created

    def links(self) -> dict[str, str]:
        """Addresses of the UI's pages, without the server, by what they show."""
        with input_errors(self.uri):
            found = {
                page.name: mlflow_internals.view_address(self.experiment_id, key, page.mode)
                for key, page in pages().items()
                if mlflow_internals.view_tag(key) in self._tags
            }
            splits: dict[str, list[str]] = {}
            parents = self._runs("tags.kind = 'arm'")
            for run in sorted(parents, key=lambda run: (run.info.start_time, run.info.run_name)):
                splits.setdefault(run.data.tags["split"], []).append(run.info.run_id)
        for split, run_ids in splits.items():
            address = mlflow_internals.compare_address(self.experiment_id, run_ids)
            found[f"Arms side by side on {split}"] = address
        return {**found, "Every run": mlflow_internals.runs_address(self.experiment_id)}


def _matches(run: Run, record: Record) -> bool:
    """Return True if a run is complete, and of this attempt at the cell and of its failed checks."""
    tags = run.data.tags
    same = tags.get("ended") == record["ended"] and tags.get("view") == VIEW
    same = same and tags.get("marked", "") == "; ".join(failed_checks(record))[:5000]
    return same and run.info.status == run_status(record)
