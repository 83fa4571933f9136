"""The Optuna studies behind a search: one per arm that proposes points, and a journal for dashboards."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps.analysis.search_importance import STATES, as_optuna_trial, directions
from sweeps.spec.design import Scope
from sweeps.spec.search_space import Parameter, Search, Space, is_active
from sweeps.store.records import Record, Store
from sweeps.store.search_trials import ArmTrials

optuna.logging.set_verbosity(optuna.logging.ERROR)


class ArmStudy:
    """Optuna study of one arm, in memory: it proposes points and learns from the recorded trials.

    Every run builds it from the store again, and keeps no state of its own.
    """

    def __init__(self, trials: ArmTrials) -> None:
        self._trials = trials
        self._sampler = sampler(trials)
        storage = InMemoryStorage()
        self._study = optuna.create_study(
            storage=storage,
            study_name=trials.scope.label,
            sampler=self._sampler,
            pruner=pruner(trials.search),
            directions=directions(trials.search),
        )
        # With Hyperband, a study may show its sampler only the trials of one bracket. New points are drawn
        # with all trials of the arm in view, and therefore through a second handle without a pruner.
        self._asks = optuna.load_study(
            storage=storage,
            study_name=trials.scope.label,
            sampler=self._sampler,
            pruner=NopPruner(),
        )
        self._open: dict[int, optuna.Trial] = {}
        self._reported: Counter[int] = Counter()
        self._recall(trials.ended)
        for _, point in trials.started:
            self._study.enqueue_trial(point)
        known = [record["params"] for record in trials.ended] + [point for _, point in trials.started]
        for point in trials.first:
            if not any(all(old.get(name) == value for name, value in point.items()) for old in known):
                self._study.enqueue_trial(point)

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Draw the next point; returns its number, as `tell` and `prunes` expect it, and the point."""
        trial = self._asks.ask()
        self._open[trial.number] = trial
        return trial.number, suggest(trial, self._trials.space)

    def tell(self, number: int, record: Record) -> None:
        """Report the record of an ended trial. A pruned trial stays pruned, with the epochs it reported."""
        if record["state"] == "done":
            self.prunes(number, record["reported"])  # later trials are compared with the last epochs too
        trial, state = self._open.pop(number), STATES[record["state"]]
        values = self._trials.values(record) if state == TrialState.COMPLETE else None
        self._asks.tell(trial, values, state)

    def prunes(self, number: int, reported: Sequence[float | None]) -> bool:
        """Report validation RMSEs, one per epoch from the first, and return whether to end the trial.

        Epochs that were reported before are skipped.
        """
        if not self._trials.search.reports:
            return False
        start, self._reported[number] = self._reported[number], len(reported)
        for epoch, rmse in enumerate(reported[start:], start + 1):
            if rmse is None or not math.isfinite(rmse):  # infinite where undoing log1p overflows
                continue
            self._open[number].report(rmse, epoch)
            # Asked after every epoch: the pruner looks at the last one only.
            if self._study.pruner.prune(self._study, self._study.get_trials(deepcopy=False)[number]):
                return True
        return False

    def _recall(self, records: Iterable[Record]) -> None:
        """Add the trials of earlier runs to the study.

        Samplers with populations and pruners with rungs keep their state in a trial's system attributes.
        Replaying the trials writes that state again; where nothing needs it, the trials are only added.
        """
        search = self._trials.search
        populations = search.sampler in ("cmaes", "nsga2")
        if not populations and search.pruner is None:
            for record in records:
                self._study.add_trial(as_optuna_trial(record, self._trials))
            return
        for record in records:
            self._study.enqueue_trial(record["params"])
            trial = self._study.ask()
            if populations:
                asked = self._study.get_trials(deepcopy=False)[trial.number]
                space = self._sampler.infer_relative_search_space(self._study, asked)
                self._sampler.sample_relative(self._study, asked, space)
            suggest(trial, self._trials.space)
            known = as_optuna_trial(record, self._trials)
            for step, value in known.intermediate_values.items():
                trial.report(value, step)
                trial.should_prune()
            self._study.tell(trial, known.values, known.state)


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Draw a value for every active parameter of the space, through Optuna's define-by-run interface."""
    point: dict[str, Any] = {}
    for name, parameter in space.items():
        if is_active(parameter, point):
            point[name] = _suggested(trial, name, parameter)
    return point


def sampler(trials: ArmTrials) -> BaseSampler:
    """Build the arm's sampler.

    Its seed depends on the study, the arm and the number of started trials, so that a restarted run does not
    repeat its first draws.
    """
    search = trials.search
    words = [search.sampler_seed, *trials.scope.label.encode(), len(trials.numbers)]
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    # Random points first: ten, as is Optuna's default, but at most a third of a small budget.
    startup = max(3, min(10, search.trials // 3))
    built: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(
            seed=seed,
            n_startup_trials=startup,
            multivariate=True,
            group=True,
            constant_liar=True,  # running trials count as bad, so that parallel ones try other places
        ),
        "gp": lambda: GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False),
        "cmaes": lambda: CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "nsga2": lambda: NSGAIISampler(seed=seed, population_size=max(2, min(50, search.trials // 4))),
        "random": lambda: RandomSampler(seed=seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return built[search.sampler]()


def pruner(search: Search) -> BasePruner:
    """Build the pruner that the study declares; its steps are epochs."""
    declared = search.pruner
    if declared is None:
        return NopPruner()
    if declared.kind == "median":
        return MedianPruner(n_startup_trials=declared.trials, n_warmup_steps=declared.first_epoch)
    if declared.kind == "asha":
        return SuccessiveHalvingPruner(min_resource=declared.first_epoch, reduction_factor=declared.factor)
    return HyperbandPruner(min_resource=declared.first_epoch, reduction_factor=declared.factor)


def _suggested(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    if parameter.choice is not None:
        return trial.suggest_categorical(name, parameter.choice)
    if parameter.int_ is not None:
        low, high = parameter.int_
        return trial.suggest_int(name, low, high, log=parameter.log, step=int(parameter.step or 1))
    assert parameter.float_ is not None
    return trial.suggest_float(name, *parameter.float_, log=parameter.log, step=parameter.step)


class OptunaJournal:
    """The searches as Optuna studies in `<storage>/<study>/optuna.journal`, for optuna-dashboard.

    The journal is a view of the store, like MLflow's. It contains only ended trials, and a file with any
    other content is replaced. A storage that is not a local folder has no journal.
    """

    def __init__(self, store: Store) -> None:
        self.behind = ""
        """Why the journal differs from the store; empty while they agree."""
        self._store, self._study = store, store.study
        self.path = None if "://" in store.storage else Path(store.storage, store.study, "optuna.journal")
        self._written: dict[Scope, tuple[optuna.Study, set[str]]] | None = None
        """Each arm's study and the keys of its trials in the file; None before the file has been read."""

    def write(self, searches: Iterable[ArmTrials]) -> None:
        """Append the trials that the file lacks. A failed write only sets `behind`; trainings continue.

        Raises LockLost if another driver has the study.
        """
        searches = list(searches)
        if self.path is None or not searches:
            return
        self.behind = ""
        try:
            if self._written is None:
                with self._store.fenced():
                    self._written = self._open(self.path, searches)
            for trials in searches:
                study, there = self._written[trials.scope]
                for record in trials.ended:
                    if record["key"] not in there:
                        with self._store.fenced():
                            study.add_trial(as_optuna_trial(record, trials))
                        there.add(record["key"])
        except OSError as error:
            self.behind, self._written = f"{self.path}: {error.strerror}", None

    def _open(self, path: Path, searches: list[ArmTrials]) -> dict[Scope, tuple[optuna.Study, set[str]]]:
        # The study's lock leaves one writer. A journal lock is the leftover of a process that was killed.
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        try:
            found = self._studies(path, searches)
        except OSError:
            raise
        except Exception:  # Optuna raises many types for a file that it cannot read
            found = None
        if found is None:
            path.unlink()
            found = self._studies(path, searches)
            assert found is not None
        return found

    def _studies(
        self, path: Path, searches: list[ArmTrials]
    ) -> dict[Scope, tuple[optuna.Study, set[str]]] | None:
        """Open the file's studies; None if it is not a complete journal.

        A study with anything that the records do not contain is replaced. Studies of other arms stay, since
        another file of this study may search them.
        """
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            return None  # a killed writer left half a line, which the next one would extend
        storage = JournalStorage(JournalFileBackend(str(path)))
        names = {trials.scope: f"{self._study}/{trials.scope.label}" for trials in searches}
        known = optuna.get_all_study_names(storage)

        def create(trials: ArmTrials) -> optuna.Study:
            name, wanted = names[trials.scope], directions(trials.search)
            return optuna.create_study(study_name=name, storage=storage, directions=wanted)

        others = {*known} - {*names.values()}
        recorded = self._store.search.keys() if others else set()
        for name in others:
            other = optuna.load_study(study_name=name, storage=storage)
            keys = [trial.user_attrs.get("key") for trial in other.get_trials(deepcopy=False)]
            if not keys or not recorded.issuperset(keys):
                optuna.delete_study(study_name=name, storage=storage)
        found = {}
        for trials in searches:
            name = names[trials.scope]
            study = optuna.load_study(study_name=name, storage=storage) if name in known else create(trials)
            there = [trial.user_attrs.get("key") for trial in study.get_trials(deepcopy=False)]
            own = {record["key"] for record in trials.ended}
            differs = study.directions != directions(trials.search) or not own.issuperset(there)
            if differs or len({*there}) < len(there):
                optuna.delete_study(study_name=name, storage=storage)
                study, there = create(trials), []
            found[trials.scope] = study, own.intersection(there)
        return found
