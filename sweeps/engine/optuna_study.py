"""Optuna's part in a search; the only module that imports optuna."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeps.analysis.search_importance import directions, frozen
from sweeps.spec.design import Arm
from sweeps.spec.search_space import Parameter, Search, is_active
from sweeps.store.records import Record, Store
from sweeps.store.search_trials import ArmTrials

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Optimiser:
    """An arm's Optuna study in memory: the trials that have ended, and what to try next.

    It is made afresh from the store for every run, so that nothing of it can be lost or stay behind.
    """

    def __init__(self, trials: ArmTrials) -> None:
        self.name = trials.arm.label
        self.storage = InMemoryStorage()
        self.sampler = sampler(trials)
        self._trials = trials
        self._study = optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            sampler=self.sampler,
            pruner=pruner(trials.search),
            directions=directions(trials.search),
        )
        self._recall(trials.ended)
        for _, point in trials.begun:
            self._study.enqueue_trial(point)
        known = [record["params"] for record in trials.ended] + [point for _, point in trials.begun]
        for point in trials.first:
            if not any(all(old.get(name) == value for name, value in point.items()) for old in known):
                self._study.enqueue_trial(point)

    def ask(self) -> optuna.Trial:
        """The next trial, whose point `suggest` draws."""
        return self._study.ask()

    def suggest(self, trial: optuna.Trial) -> dict[str, int]:
        """The space as Optuna's define-by-run function; what it returns says which trial was asked."""
        point: dict[str, Any] = {}
        for name, parameter in self._trials.space.items():
            if is_active(parameter, point):
                point[name] = _suggested(trial, name, parameter)
        return {"number": trial.number}

    def prunes(self, number: int) -> bool:
        """Whether the trial is to be ended, by what it and the arm's others have reported."""
        return self._study.pruner.prune(self._study, self._study.get_trials(deepcopy=False)[number])

    def _recall(self, records: Iterable[Record]) -> None:
        """Let the study know the trials of earlier runs.

        Populations and rungs live in notes that samplers and pruners leave beside a trial. To have them
        again the trials are asked for and told once more; where nobody needs them they are only added.
        """
        search = self._trials.search
        populations = search.sampler in ("cmaes", "nsga2")
        if not populations and search.pruner is None:
            for record in records:
                self._study.add_trial(frozen(record, self._trials))
            return
        for record in records:
            self._study.enqueue_trial(record["params"])
            trial = self._study.ask()
            if populations:
                begun = self._study.get_trials(deepcopy=False)[trial.number]
                space = self.sampler.infer_relative_search_space(self._study, begun)
                self.sampler.sample_relative(self._study, begun, space)
            self.suggest(trial)
            known = frozen(record, self._trials)
            for step, value in known.intermediate_values.items():
                trial.report(value, step)
                trial.should_prune()
            self._study.tell(trial, known.values, known.state)


def sampler(trials: ArmTrials) -> BaseSampler:
    """Seeded by study, arm and the number of trials begun: a restart does not repeat its first draws."""
    search = trials.search
    words = [search.sampler_seed, *trials.arm.label.encode(), len(trials.numbers)]
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    # By chance at first: Optuna's ten, but no more than a third of a small budget.
    startup = max(3, min(10, search.trials // 3))
    made: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(
            seed=seed,
            n_startup_trials=startup,
            multivariate=True,
            group=True,
            constant_liar=True,  # one that runs is bad for the moment, so that no other tries the same place
        ),
        "gp": lambda: GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False),
        "cmaes": lambda: CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "nsga2": lambda: NSGAIISampler(seed=seed, population_size=max(2, min(50, search.trials // 4))),
        "random": lambda: RandomSampler(seed=seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return made[search.sampler]()


def pruner(search: Search) -> BasePruner:
    """As the study declares it; the steps are epochs."""
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

    A view of the store, as MLflow's: it holds trials that have ended, so that none stays behind as
    running, and it is made afresh where it holds something else. A storage that is no folder has none.
    """

    def __init__(self, store: Store) -> None:
        self.behind = ""
        """Why it does not say what the store says; empty where it does."""
        self._study = store.study
        self.path = None if "://" in store.storage else Path(store.storage, store.study, "optuna.journal")
        self._written: dict[Arm, tuple[optuna.Study, set[str]]] | None = None
        """The arms' studies with the keys of the trials in them; None where the file is not known."""

    def write(self, searches: Iterable[ArmTrials]) -> None:
        """Make the file say what the records say; a file that cannot be written costs no training."""
        searches = list(searches)
        if self.path is None or not searches:
            return
        self.behind = ""
        try:
            if self._written is None:
                self._written = self._open(self.path, searches)
            for trials in searches:
                study, there = self._written[trials.arm]
                for record in trials.ended:
                    if record["key"] not in there:
                        study.add_trial(frozen(record, trials))
                        there.add(record["key"])
        except OSError as error:
            self.behind, self._written = f"{self.path}: {error.strerror}", None

    def _open(self, path: Path, searches: list[ArmTrials]) -> dict[Arm, tuple[optuna.Study, set[str]]]:
        # Only this process writes while the study runs, and a lock would outlive it when it is killed.
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        try:
            found = self._studies(path, searches)
        except OSError:
            raise
        except Exception:  # Optuna has many words for a file that it cannot read
            found = None
        if found is None:
            path.unlink()
            found = self._studies(path, searches)
            assert found is not None
        return found

    def _studies(
        self, path: Path, searches: list[ArmTrials]
    ) -> dict[Arm, tuple[optuna.Study, set[str]]] | None:
        """The file's studies; None where it holds something that does not belong there."""
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            return None  # whoever wrote it was killed, and what is appended would join half a line
        storage = JournalStorage(JournalFileBackend(str(path)))
        names = {trials.arm: f"{self._study}/{trials.arm.label}" for trials in searches}
        known = optuna.get_all_study_names(storage)
        if not {*known} <= {*names.values()}:
            return None
        found = {}
        for trials in searches:
            name = names[trials.arm]
            if name in known:
                study = optuna.load_study(study_name=name, storage=storage)
            else:
                study = optuna.create_study(
                    study_name=name, storage=storage, directions=directions(trials.search)
                )
            there = [trial.user_attrs.get("key") for trial in study.get_trials(deepcopy=False)]
            own = {record["key"] for record in trials.ended}
            if study.directions != directions(trials.search) or not own.issuperset(there):
                return None
            if len({*there}) < len(there):
                return None
            found[trials.arm] = study, own.intersection(there)
        return found
