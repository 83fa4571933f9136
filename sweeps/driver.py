"""One `sweep run`: the training, with the views of the store kept in step beside it."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from sweeps.engine import worker
from sweeps.engine.progress import RunProgress
from sweeps.engine.scheduler import Scheduler
from sweeps.state import StudyState
from sweeps.store.records import Record
from sweeps.tracking.process import TrackingProcess
from sweeps.tracking.winners import WeightRetention

if TYPE_CHECKING:
    from sweeps.engine.optuna_study import OptunaJournal


def train(
    state: StudyState,
    agenda: Scheduler,
    address: str | None = None,
    *,
    waits: bool = False,
    needs_tracking: bool = False,
    train_cell: Callable[..., Record] = worker.train_and_record,
    search_trial: type[worker.SearchTrial] = worker.SearchTrial,
) -> list[str]:
    """Do what is on the agenda, and say what the user should know of it.

    Nothing is lost where it is interrupted: what has ended is recorded. `state` is brought up to date.
    `waits` is as of `runner.run`. Raises InputError; with `needs_tracking` also for a tracking server that
    does not answer at the begin.
    """
    records = state.records()
    keeper = WeightRetention(state.study, state.store)
    keeper.tidy(state.cells, records)
    recorded = [*records.values(), *state.trials()]
    writer = TrackingProcess(state.store, state.study.tracking, recorded, state.data())
    del records, recorded  # `TrackingProcess` lets go of them too, once it has sent them
    from sweeps.engine import ray_tune
    from sweeps.engine.optuna_study import OptunaJournal
    from sweeps.report import data, write
    from sweeps.tracking import winners  # Ray, while the writer's process imports MLflow

    journal = OptunaJournal(state.store)
    with writer as mlflow:
        mlflow.plan(state)
        journal.write(state.searches.values())
        if agenda.total:
            with _Observer(agenda, mlflow, journal, keeper, needs_tracking) as observer:
                ray_tune.run(
                    agenda,
                    state.panel,
                    state.store,
                    state.study,
                    observer,
                    address=address,
                    waits=waits,
                    train_cell=train_cell,
                    search_trial=search_trial,
                )
        state.refresh()
        journal.write(state.searches.values())
        records = state.records()
        keeper.tidy(state.cells, records)
        mlflow.plan(state)
        mlflow.describe(write.brief(data.gather_report_data(state, records=records, brief=True)))
        for winner in winners.winners(state, records):
            mlflow.register(winner, winners.example(state, winner))
    return list(_notices(agenda, {"MLflow": mlflow.behind, "Optuna's journal": journal.behind}, records))


def _notices(agenda: Scheduler, behind: Mapping[str, str], records: Mapping[str, Record]) -> Iterator[str]:
    if agenda.stopped:
        yield f"stopped: {agenda.stopped}"
    for arm, why in agenda.blocked.items():
        yield f"{arm.label}: {why}, so its {agenda.waiting[arm]} cells cannot be run; widen search.space"
    for name, reason in behind.items():
        if reason:
            yield f"{name} is behind the store ({reason}); `sweep sync` makes up for it"
    failed = [record["error"] for record in records.values() if record["state"] == "failed"]
    if failed:
        first = f"{failed[0]['type']}: {failed[0]['message']}"
        yield f"{len(failed)} cells failed, the first with {first}; `sweep status` groups them"


class _Observer(RunProgress):
    """Shows the progress, and hands on what has ended."""

    def __init__(
        self,
        agenda: Scheduler,
        mlflow: TrackingProcess,
        journal: "OptunaJournal",
        keeper: WeightRetention,
        needs_tracking: bool,
    ) -> None:
        super().__init__(agenda.total, agenda.trials)
        self._agenda, self._mlflow, self._journal, self._keeper = agenda, mlflow, journal, keeper
        self._needs_tracking = needs_tracking

    def begins(self) -> None:
        """Raises InputError for a tracking store that no waiting will open: before anything is trained."""
        self._mlflow.opened(needed=self._needs_tracking)

    def ended(self, kind: str, record: Record) -> None:
        self._mlflow.add(record)
        if kind == "cell":
            self._keeper.ended(record)
        else:
            self._journal.write(self._agenda.searches.values())
        self.total = self._agenda.total  # what has ended may bring more cells, or leave none to others
        super().ended(kind, record)
