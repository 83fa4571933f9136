"""Recorded search trials as Optuna sees them, and the importance of each tuned setting."""

from datetime import datetime

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.spec.search_space import Parameter, Search
from sweeps.store.records import Record
from sweeps.store.search_trials import ArmTrials

STATES = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}

EXPLAINED = 8
"""Fewest trials whose variance is divided among settings: as many as the study `demo` has."""


def directions(search: Search) -> list[StudyDirection]:
    """Name the direction of every objective of a search."""
    one = StudyDirection.MINIMIZE if search.smaller_is_better else StudyDirection.MAXIMIZE
    return [one] * len(search.objective)


def as_optuna_trial(record: Record, trials: ArmTrials) -> FrozenTrial:
    """Convert a recorded trial to Optuna's: its state, values, times and intermediate values."""
    state = STATES[record["state"]]
    attributes = ("key", "number", "host", "seconds", "epochs")
    reported = record["reported"] if trials.search.reports else []
    trial = create_trial(
        state=state,
        values=trials.values(record) if state == TrialState.COMPLETE else None,
        params=record["params"],
        distributions={name: distribution(trials.space[name]) for name in record["params"]},
        intermediate_values={step: value for step, value in enumerate(reported, 1) if value is not None},
        user_attrs={name: record[name] for name in attributes if name in record},
    )
    # Optuna's times are local and without a zone; its timeline shows them.
    trial.datetime_start, trial.datetime_complete = (
        datetime.fromisoformat(record[stamp]).astimezone().replace(tzinfo=None)
        for stamp in ("started", "ended")
    )
    return trial


def distribution(parameter: Parameter) -> BaseDistribution:
    """Convert the values that a setting may take to Optuna's distribution."""
    if parameter.choice is not None:
        return CategoricalDistribution(parameter.choice)
    if parameter.int_ is not None:
        return IntDistribution(*parameter.int_, log=parameter.log, step=int(parameter.step or 1))
    assert parameter.float_ is not None
    return FloatDistribution(*parameter.float_, log=parameter.log, step=parameter.step)


def importances(trials: ArmTrials) -> dict[str, float]:
    """Compute the share of the first objective's variance that each setting explains, the largest first.

    The method is fANOVA (Hutter, Hoos, Leyton-Brown 2014) over the done trials, for the settings that all of
    them have. The result is empty with fewer than `EXPLAINED` trials, or if all have the same score.
    """
    done = [record for record in trials.ended if record["state"] == "done"]
    if len(done) < EXPLAINED or len({trials.values(record)[0] for record in done}) < 2:
        return {}
    study = optuna.create_study(directions=directions(trials.search))
    for record in done:
        study.add_trial(as_optuna_trial(record, trials))
    evaluator = FanovaImportanceEvaluator(seed=0)
    return get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[0])
