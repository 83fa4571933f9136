"""Run one study: train what is missing, and keep the MLflow view and Optuna's journal up to date.

`train` is what `sweep run` does, in this order:

1. `declarations.declare` stores what the study declares, and `running.clear` deletes the progress files of a
   killed run, unless nothing is trained. `WeightRetention.tidy` deletes stored weights of cells that are not
   the winners of their arm.
2. `TrackingProcess` starts the process that writes to MLflow. Ray is imported meanwhile.
3. The tracking process receives earlier records and the grid (`plan`); `OptunaJournal.write` adds trials.
4. `ray_tune.run` trains the search trials and cells that the `Scheduler` returns, until none is left.
5. `_Observer.ended` passes each new record to MLflow, to the journal, and to the weights' retention.
6. `StudyState.refresh` reads the store again; journal, weights, checkpoints and grid are brought up to date.
7. `TrackingProcess` receives the summary (`describe`) and the best model of each arm (`register`).
8. Leaving the `with` block waits until MLflow has everything; `_notices` returns what the user must know.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pm25.errors import InputError
from pm25.text import counted
from sweeps.engine import worker
from sweeps.engine.progress import RunProgress
from sweeps.engine.scheduler import Scheduler
from sweeps.spec.tracking_address import without_password
from sweeps.state import StudyState
from sweeps.store import channel_orders, declarations, integrity, running
from sweeps.store.records import Record, intact
from sweeps.tracking.process import TrackingProcess
from sweeps.tracking.winners import WeightRetention

if TYPE_CHECKING:
    from sweeps.engine.optuna_study import OptunaJournal
    from sweeps.report.data import ReportData


class EndedRun(NamedTuple):
    """Result of a run, for the user."""

    notices: list[str]
    """Sentences on why it stopped early, what is incomplete, and how many cells failed."""
    report: "ReportData"
    """Data of the summary, which MLflow shows as well."""
    cells: Mapping[str, int]
    """Numbers of cells by state (`StudyState.cell_counts`)."""


def train(
    state: StudyState,
    scheduler: Scheduler,
    address: str | None = None,
    *,
    wait_for_nodes: bool = False,
    needs_tracking: bool = False,
    train_cell: Callable[..., Record] = worker.train_and_record,
    search_trial: type[worker.SearchTrial] = worker.SearchTrial,
) -> EndedRun:
    """Train everything that the scheduler returns, and return what the user is to read.

    `state` is brought up to date. An interrupt loses no finished training, since each is recorded when it
    ends. `address` and `wait_for_nodes` are those of `ray_tune.run`. With `needs_tracking`, a tracking server
    that does not answer at the start raises InputError; so does any other input that cannot be used.
    """
    if scheduler.total:
        declarations.declare(state.study, state.store)
        if state.study.data.channels is None:
            channel_orders.record_order(state.panel, state.store)
        running.clear(state.store)
    records = intact(state.records())
    retention = WeightRetention(state.study, state.store)
    retention.tidy(state.cells, records)
    recorded = [*records.values(), *state.trials()]
    process = TrackingProcess(state.store, state.study.tracking, recorded, state.data())
    del records, recorded  # they need much memory; the tracking process drops its reference too
    # These import Ray while the tracking process imports MLflow.
    from sweeps.analysis import artifacts
    from sweeps.engine import ray_tune
    from sweeps.engine.optuna_study import OptunaJournal
    from sweeps.report import data, write
    from sweeps.tracking import winners

    journal = OptunaJournal(state.store)
    with process as tracking:
        tracking.plan(state)
        journal.write(state.searches.values())
        if scheduler.total:
            read = functools.partial(running.running, state.store)
            with _Observer(scheduler, tracking, journal, retention, needs_tracking, read) as observer:
                ray_tune.run(
                    scheduler,
                    state.panel,
                    state.store,
                    state.study,
                    observer,
                    address=address,
                    wait_for_nodes=wait_for_nodes,
                    train_cell=train_cell,
                    search_trial=search_trial,
                )
        state.refresh()
        journal.write(state.searches.values())
        records = state.records("tables")
        recorded_now = intact(records)
        retention.tidy(state.cells, recorded_now)
        running.clear(state.store)
        worker.delete_checkpoints(state.store, recorded_now)
        worker.delete_checkpoints(state.store.search, [record["key"] for record in state.trials()])
        tracking.plan(state)
        rows = state.rows(records)
        sums = artifacts.predictions(state.store, rows, degrees=state.study.analysis.block_degrees)
        report = data.gather_report_data(state, records=records, rows=rows, predicted=sums, brief=True)
        tracking.describe(write.markdown_summary(report))
        for winner in winners.winners(state, records, sums):
            tracking.register(winner, winners.example(state, winner))
    behind = {"MLflow": tracking.behind, "Optuna's journal": journal.behind}
    notices = [*_notices(scheduler, behind, records), *integrity.notices(state.damaged)]
    return EndedRun(notices, report, state.cell_counts(records))


def sync(state: StudyState) -> tuple[int, str]:
    """Rebuild the MLflow view and Optuna's journal; return the number of written runs and MLflow's address.

    Raises InputError if one of them cannot be written.
    """
    from sweeps.analysis import artifacts
    from sweeps.engine.optuna_study import OptunaJournal
    from sweeps.report import data, write
    from sweeps.tracking import parent_metrics, winners
    from sweeps.tracking.mlflow_view import Tracker

    tracker = Tracker(state.store, state.study.tracking, state.data())
    records = state.records("tables")
    rows = state.rows(records)
    written = tracker.sync([*intact(records).values(), *state.trials()])
    searches: parent_metrics.Aggregates = {
        (arm, None): dict(counts) for arm, counts in state.search_summaries()
    }
    sums = artifacts.predictions(state.store, rows, degrees=state.study.analysis.block_degrees)
    statuses = state.declared(records).contrasts
    analysis = state.study.analysis
    covered = parent_metrics.covered_by_region(rows, analysis, sums)
    declared = analysis, state.study.claims, state.study.design.looks, sums, statuses, covered
    tracker.answer(parent_metrics.of_rows(rows, *declared) | searches)
    tracker.show(parent_metrics.pictures(state.store, rows, *declared))
    brief = data.gather_report_data(state, records=records, rows=rows, predicted=sums, brief=True)
    tracker.describe(write.markdown_summary(brief))
    for winner in winners.winners(state, records, sums):
        tracker.register(winner, winners.example(state, winner))
    journal = OptunaJournal(state.store)
    journal.write(state.searches.values())
    if journal.behind:
        raise InputError("Optuna's journal", "", f"the searches cannot be written ({journal.behind})")
    return written, without_password(tracker.uri)


def _notices(scheduler: Scheduler, behind: Mapping[str, str], records: Mapping[str, Record]) -> Iterator[str]:
    """Describe why the run stopped early, which views are incomplete, and how many cells failed."""
    if scheduler.stopped:
        yield f"stopped: {scheduler.stopped}"
    for arm, reason in scheduler.blocked.items():
        cells = f"its {scheduler.waiting[arm]} cells cannot be run"
        yield f"{arm.label}: {reason}, so {cells}; widen search.space"
    for arm, count in scheduler.damaged.items():
        yield f"{arm.label}: {counted(count, 'search trial')} damaged, so its search and its cells wait"
    for view, reason in behind.items():
        if reason:
            then = "" if "sweep sync STUDY" in reason else "; `sweep sync STUDY` completes it"
            yield f"{view} is incomplete ({reason}){then}"
    failed = [record["error"] for record in records.values() if record["state"] == "failed"]
    if failed:
        first = f"{failed[0]['type']}: {failed[0]['message']}"
        yield f"{len(failed)} cells failed, the first with {first}; `sweep status` groups them"


class _Observer(RunProgress):
    """Show the progress, and pass on each record of a training that has ended."""

    def __init__(
        self,
        scheduler: Scheduler,
        tracking: TrackingProcess,
        journal: "OptunaJournal",
        retention: WeightRetention,
        needs_tracking: bool,
        read: Callable[[Sequence[str]], Sequence[running.Progress]],
    ) -> None:
        super().__init__(scheduler.total, scheduler.trials, read=read)
        self._scheduler, self._tracking = scheduler, tracking
        self._journal, self._retention = journal, retention
        self._needs_tracking = needs_tracking

    def check_ready(self) -> None:
        """Check the tracking store before anything is trained; raises InputError if waiting will not help."""
        self._tracking.opened(needed=self._needs_tracking)

    def ended(self, kind: str, record: Record) -> None:
        """Pass a record on, and update the number of tasks, which a finished task can change."""
        self._tracking.add(record)
        if kind == "cell":
            self._retention.ended(record)
        else:
            self._journal.write(self._scheduler.searches.values())
        self.total = self._scheduler.total
        super().ended(kind, record)
