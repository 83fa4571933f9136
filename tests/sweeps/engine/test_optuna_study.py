"""Optuna's part: its study is made again from the records, its pruners end the worse, its journal follows."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pm25.settings import ModelSettings, TrainSettings
from sweeps.analysis.search_importance import as_optuna_trial, distribution
from sweeps.engine.optuna_study import ArmStudy, OptunaJournal
from sweeps.spec.design import Arm
from sweeps.spec.search_space import Search, within
from sweeps.store.records import Record, Store
from sweeps.store.search_trials import ArmTrials
from tests import worlds

pytestmark = pytest.mark.usefixtures("one_thread")

NONE, LATLON = Arm("none", None), Arm("latlon", None)
RATE, DEPTH = "train.learning_rate", "model.depth"
SPACE: dict[str, Any] = {RATE: {"float": [0.001, 1.0], "log": True}, DEPTH: {"int": [1, 4]}}
INNER = {"kind": "random", "inner": {"kind": "checkerboard", "degrees": 8}}
TWO = {"objective": ["wr", "oor"], "split": [INNER]}
CONDITIONAL: dict[str, Any] = {
    RATE: {"float": [0.001, 1.0], "log": True},
    DEPTH: {"int": [1, 5], "step": 2},
    "model.width": {"int": [4, 256], "step": 4},
    "model.dropout": {"float": [0.0, 0.5], "step": 0.1},
    "train.target": {"choice": [None, "log1p"]},
    "train.clip_norm": {"float": [0.5, 2.0], "when": {"train.target": "log1p"}},
    "train.patience": {"int": [1, 40], "log": True, "when": {DEPTH: [1, 3]}},
}


@pytest.fixture(autouse=True)
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Optuna says nothing of its own; that no warning is raised, pytest itself sees to."""
    yield
    assert capfd.readouterr() == ("", "")


def arm_trials(*ended: Record, arm: Arm = NONE, started: Any = (), **given_: Any) -> ArmTrials:
    content = {"trials": 100, "space": SPACE, "split": [{"kind": "random"}]} | given_
    search = Search.model_validate(content)
    model, train = ModelSettings(), TrainSettings()
    space = search.space_of(arm, model, train)
    first = search.first_points(arm, space, model, train)
    return ArmTrials(arm, search, space, first, [*ended], [*started])


def record(number: int, params: dict[str, Any], wr: float = 1.0, oor: float = 1.0, **more: Any) -> Record:
    fields = {"reported": [3 * wr, 2 * wr, wr], "epochs": 3, "seconds": 1.5, "host": "here"}
    fields |= {name: f"2026-01-02T03:04:0{i}.500+00:00" for i, name in enumerate(("started", "ended"))}
    return worlds.trial_record(number, params, wr, oor, **fields | more)


def point(rate: float = 0.1, depth: int = 1) -> dict[str, Any]:
    return {RATE: rate, DEPTH: depth}


def study_of(made: ArmStudy) -> optuna.Study:
    """Optuna's own study behind it."""
    return made._asks


def asked(made: ArmStudy, count: int) -> list[dict[str, Any]]:
    return [made.ask()[1] for _ in range(count)]


def grow(trials: ArmTrials, count: int, loss: Callable[[dict[str, Any]], float]) -> None:
    """One run: ask, train and tell, with one `ArmStudy` for all of it."""
    made = ArmStudy(trials)
    for _ in range(count):
        number, params = made.ask()
        ended = record(trials.next_number, params, loss(params), 2 - loss(params))
        made.tell(number, ended)
        trials.add(ended)


# Made again from the records

ENDED = [
    record(0, point(0.1, 1), 5.0),
    record(1, point(0.2, 2), state="pruned", reported=[9.0, 8.0]),
    record(2, point(0.3, 3), state="failed", reported=[7.0]),
    record(3, point(0.4, 4), 4.0),
]
EVERY_WAY = [{}, {"sampler": "nsga2"}, {"pruner": "median"}, {"pruner": "asha"}, {"pruner": "hyperband"}]


@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_study_knows_what_the_records_say(way: dict[str, Any]) -> None:
    study = study_of(ArmStudy(arm_trials(*ENDED, **way)))
    assert [trial.state for trial in study.trials] == [
        *(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE)
    ]
    assert [trial.params for trial in study.trials] == [r["params"] for r in ENDED]
    assert [study.trials[i].values for i in (0, 3)] == [[5.0], [4.0]]
    assert study.best_trial.number == 3
    assert [trial.intermediate_values for trial in study.trials] == [
        {1: 15.0, 2: 10.0, 3: 5.0},
        {1: 9.0, 2: 8.0},
        {1: 7.0},
        {1: 12.0, 2: 8.0, 3: 4.0},
    ]
    for trial in study.trials:
        assert trial.distributions == {
            RATE: optuna.distributions.FloatDistribution(0.001, 1.0, log=True),
            DEPTH: optuna.distributions.IntDistribution(1, 4),
        }


def test_numbers_that_are_missing_from_a_curve_are_left_out() -> None:
    wild = record(0, point(), reported=[None, 3.0, None])
    assert as_optuna_trial(wild, arm_trials()).intermediate_values == {2: 3.0}


def test_an_objective_that_no_epoch_tells_has_no_curve() -> None:
    for given_ in ({"metric": "r2"}, TWO):
        assert as_optuna_trial(record(0, point()), arm_trials(**given_)).intermediate_values == {}


def test_directions() -> None:
    minimise, maximise = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    for given_, directions in (
        ({}, [minimise]),
        ({"metric": "mae"}, [minimise]),
        ({"metric": "r2"}, [maximise]),
        (TWO, [minimise] * 2),
    ):
        assert study_of(ArmStudy(arm_trials(**given_))).directions == directions
    r2 = ArmStudy(arm_trials(record(0, point(0.1), 2.0), record(1, point(0.2), 1.0), metric="r2"))
    assert study_of(r2).best_trial.params[RATE] == 0.2  # r2 is -2 and -1


def test_distributions() -> None:
    space = arm_trials(space=CONDITIONAL).space
    assert {name: distribution(parameter) for name, parameter in space.items()} == {
        RATE: optuna.distributions.FloatDistribution(0.001, 1.0, log=True),
        DEPTH: optuna.distributions.IntDistribution(1, 5, step=2),
        "model.width": optuna.distributions.IntDistribution(4, 256, step=4),
        "model.dropout": optuna.distributions.FloatDistribution(0.0, 0.5, step=0.1),
        "train.target": optuna.distributions.CategoricalDistribution([None, "log1p"]),
        "train.clip_norm": optuna.distributions.FloatDistribution(0.5, 2.0),
        "train.patience": optuna.distributions.IntDistribution(1, 40, log=True),
    }


# What is tried first


@pytest.mark.parametrize("way", EVERY_WAY)
def test_what_was_begun_comes_first_and_then_the_points_to_try(way: dict[str, Any]) -> None:
    enqueue = [point(0.5, 3), point(0.6, 4)]
    started = [(4, point(0.7, 2)), (5, point(0.8, 1))]
    made = ArmStudy(arm_trials(*ENDED, started=started, enqueue=enqueue, **way))
    assert asked(made, 4) == [point(0.7, 2), point(0.8, 1), *enqueue]
    (sampled,) = asked(made, 1)
    assert sampled not in [*enqueue, *(known for _, known in started)]


def test_a_point_to_try_that_was_tried_is_not_tried_again() -> None:
    enqueue = [point(0.4, 4), point(0.7, 2), point(0.5, 3), {DEPTH: 4}, {DEPTH: 2, RATE: 0.9}]
    made = ArmStudy(arm_trials(*ENDED, started=[(4, point(0.7, 2))], enqueue=enqueue))
    assert asked(made, 3) == [point(0.7, 2), point(0.5, 3), point(0.9, 2)]


def test_of_a_part_of_a_point_the_rest_is_sampled() -> None:
    trials = arm_trials(space=CONDITIONAL, enqueue=[{"train.target": "log1p", "train.clip_norm": 1.25}])
    (params,) = asked(ArmStudy(trials), 1)
    assert (params["train.target"], params["train.clip_norm"]) == ("log1p", 1.25)
    assert within(trials.space, params)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2", "cmaes"])
def test_a_restart_does_not_repeat_the_first_draws(sampler: str) -> None:
    first = asked(ArmStudy(arm_trials(sampler=sampler)), 3)
    started = arm_trials(sampler=sampler, started=[*enumerate(first)])
    resumed = asked(ArmStudy(started), 6)
    assert resumed[:3] == first  # they are finished
    assert not [params for params in resumed[3:] if params in first]
    ended = arm_trials(*(record(n, params) for n, params in enumerate(first)), sampler=sampler)
    assert not [params for params in asked(ArmStudy(ended), 3) if params in first]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2", "cmaes"])
def test_the_same_records_and_seed_ask_the_same(sampler: str) -> None:
    def of(count: int, **given_: Any) -> list[dict[str, Any]]:
        ended = [record(n, point(0.01 * (n + 1), 1 + n % 4), abs(n - 7.0)) for n in range(count)]
        return asked(ArmStudy(arm_trials(*ended, sampler=sampler, **given_)), 3)

    assert of(12) == of(12)
    assert of(0) == of(0)
    assert of(0) != of(0, sampler_seed=1)
    assert of(0) != of(0, arm=LATLON)  # every arm draws its own


# Samplers

LOSSES: dict[str, Callable[[dict[str, Any]], float]] = {
    "far": lambda params: abs(math.log10(params[RATE]) + 1.5),
    "flat": lambda params: 1.0,
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("sampler", "given_"),
    [
        *((sampler, {"space": CONDITIONAL}) for sampler in ("random", "tpe", "gp", "nsga2")),
        *((sampler, {"space": CONDITIONAL} | TWO) for sampler in ("random", "tpe", "gp", "nsga2")),
        ("cmaes", {}),
        ("cmaes", {"space": {RATE: SPACE[RATE]}}),
        ("cmaes", {"space": SPACE | {"model.dropout": {"float": [0.0, 0.5], "when": {DEPTH: [1, 2]}}}}),
        *((sampler, {"space": {DEPTH: {"choice": [2]}}}) for sampler in ("random", "tpe", "gp", "nsga2")),
    ],
)
def test_every_sampler_asks_for_points_of_the_space(sampler: str, given_: Any, loss: str) -> None:
    trials = arm_trials(sampler=sampler, **given_)
    of = LOSSES[loss] if RATE in trials.space else LOSSES["flat"]
    # The first ten are drawn at random; a Gaussian process takes long for each one after them.
    counts = (12, 2) if sampler == "gp" else (14, 4)
    for count in counts:  # and so does one that is made again
        grow(trials, count, of)
    assert len(trials.ended) == sum(counts)
    for made in trials.ended:
        assert within(trials.space, made["params"])
        assert within(trials.space, json.loads(json.dumps(made["params"])))  # also from the store


def late_loss(sampler: str, seed: int) -> float:
    """The median loss of the last ten of 40 trials, of which every run asks for four."""
    space = {RATE: SPACE[RATE], "model.dropout": {"float": [0.0, 0.9]}}
    trials = arm_trials(sampler=sampler, space=space, trials=40, sampler_seed=seed)

    def loss(params: dict[str, Any]) -> float:
        return abs(math.log10(params[RATE]) + 1.5) + params["model.dropout"]

    for _ in range(10):
        grow(trials, 4, loss)
    return statistics.median(loss(made["params"]) for made in trials.ended[-10:])


def test_samplers_learn_across_restarts() -> None:
    late = {
        sampler: statistics.mean(late_loss(sampler, seed) for seed in range(3))
        for sampler in ("random", "tpe", "cmaes", "nsga2")
    }
    assert max(late["tpe"], late["cmaes"], late["nsga2"]) < 1 < late["random"]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize(("trials", "by_chance"), [(8, 3), (15, 5), (100, 10)])
def test_a_small_budget_is_not_all_left_to_chance(sampler: str, trials: int, by_chance: int) -> None:
    for count, models in ((by_chance - 1, False), (by_chance, True)):
        ended = [record(n, point(0.01 * (n + 1), 1 + n % 4), float(n)) for n in range(count)]
        made = ArmStudy(arm_trials(*ended, sampler=sampler, trials=trials))
        number, _ = made.ask()
        assert bool(made._open[number].relative_params) == models


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2"])
def test_a_population_goes_on_after_a_restart(sampler: str) -> None:
    trials = arm_trials(sampler=sampler, trials=20)  # nsga2: 5 a generation
    grow(trials, 17, LOSSES["far"])

    def generation(made: ArmStudy) -> int:
        number, _ = made.ask()
        notes = study_of(made).trials[number].system_attrs
        return next((value for name, value in notes.items() if name.endswith(":generation")), 0)

    assert generation(ArmStudy(trials)) >= 2
    assert generation(ArmStudy(arm_trials(sampler=sampler, trials=20))) == 0


# The same points as ever: values from before the scheduler spoke to Optuna itself


PINNED_SPACE = {**SPACE, "model.dropout": {"float": [0.0, 0.5], "when": {DEPTH: [1, 2]}}}
PINNED: dict[tuple[str, str], list[tuple[float, ...]]] = {
    ("tpe", "hyperband"): [
        *((0.7, 3), (0.009996, 3), (0.002044, 4), (0.003677, 1, 0.291002), (0.051933, 1, 0.402696)),
        *((0.001102, 2, 0.015055), (0.021987, 1, 0.488383), (0.891865, 1, 0.474458)),
        *((0.04099, 2, 0.185945), (0.00343, 1, 0.278908), (0.031826, 2, 0.162642), (0.139705, 2, 0.279568)),
    ],
    ("random", "median"): [
        *((0.7, 3), (0.009996, 3), (0.001326, 3), (0.301438, 3), (0.011829, 2, 0.293148), (0.36584, 3)),
        *((0.03352, 3), (0.067013, 2, 0.157482), (0.022846, 1, 0.049721), (0.148523, 3)),
        *((0.304074, 2, 0.246652), (0.160033, 4)),
    ],
    ("nsga2", "asha"): [
        *((0.7, 3), (0.009996, 3), (0.001326, 3), (0.301438, 3), (0.011829, 2, 0.293148), (0.36584, 3)),
        *((0.009996, 3), (0.062346, 2, 0.30436), (0.011211, 2, 0.226467), (0.009996, 3)),
        *((0.002118, 2, 0.049721), (0.148523, 3)),
    ],
}
"""Points by sampler and pruner: learning rate, depth and, where it is active, dropout."""


@pytest.mark.parametrize(("sampler", "pruner"), PINNED)
def test_points_of_a_seed_and_a_history(sampler: str, pruner: str) -> None:
    """Four trials have ended, one has started; then twelve are asked for, two side by side."""
    states = ("done", "pruned", "failed", "done")
    ended = [
        record(
            n,
            point(0.1 * (n + 1), 3 + n % 2),
            4.0 - n,
            state=state,
            reported=[12.0 - n - k / 10 for k in range(9)],
        )
        for n, state in enumerate(states)
    ]
    started, way = [(4, point(0.7, 3))], {"sampler": sampler, "pruner": pruner}
    made = ArmStudy(arm_trials(*ended, started=started, space=PINNED_SPACE, trials=16, **way))
    points, running = [], []
    for n in range(5, 17):
        number, params = made.ask()
        points.append(params)
        loss = abs(math.log10(params[RATE]) + 1.5)
        reported = [loss * (3 - k / 4) for k in range(9)]
        pruned = any(made.prunes(number, reported[:epoch]) for epoch in (1, 2))
        state = "pruned" if pruned else "failed" if n == 8 else "done"
        running.append((number, record(n, params, loss, 2 - loss, state=state, reported=reported)))
        if n % 2 == 0:
            for one in running:
                made.tell(*one)
            running = []
    for found, expected in zip(points, PINNED[sampler, pruner], strict=True):
        assert [*found.values()] == pytest.approx(expected, rel=1e-3)
        assert [*found] == [RATE, DEPTH, "model.dropout"][: len(expected)]


# Pruners


def curve(loss: float) -> list[float]:
    """Validation RMSE of nine epochs, from three times the loss down to it."""
    return [loss * (3 - epoch / 4) for epoch in range(9)]


def pruned_after(made: ArmStudy, reported: list[float]) -> int | None:
    """The epoch at which a trial that reports these is ended; None for never."""
    number, params = made.ask()
    for epoch in range(1, len(reported) + 1):
        if made.prunes(number, reported[:epoch]):
            made.tell(number, record(number, params, state="pruned", reported=reported[:epoch]))
            return epoch
    made.tell(number, record(number, params, reported[-1], reported=reported))
    return None


def six(**given_: Any) -> ArmTrials:
    """Trials with losses 1 to 6, recorded by an earlier run."""
    ended = [record(n, point(0.1 * (n + 1)), n + 1.0, reported=curve(n + 1.0)) for n in range(6)]
    return arm_trials(*ended, **given_)


def test_the_median_by_hand() -> None:
    def of(**given_: Any) -> ArmStudy:
        return ArmStudy(six(pruner={"kind": "median", **given_}))

    # After one epoch the others had 3, 6, .. 18: their median is 10.5.
    assert pruned_after(of(), [10.6]) == 1
    assert pruned_after(of(), [10.4]) is None
    assert pruned_after(of(first_epoch=3), curve(6.0)) == 3
    assert pruned_after(of(trials=7), curve(60.0)) is None  # six have ended
    assert pruned_after(of(trials=6), curve(60.0)) == 1


@pytest.mark.parametrize("kind", ["median", "asha", "hyperband"])
def test_the_worse_are_ended_and_the_best_never(kind: str) -> None:
    for _ in range(3):
        made = ArmStudy(six(pruner=kind))
        assert [pruned_after(made, curve(0.5 - 0.01 * n)) for n in range(8)] == [None] * 8
        ended = [pruned_after(made, curve(50.0 + n)) for n in range(8)]
        assert None not in ended


def test_asha_by_hand_also_after_a_restart() -> None:
    """Rungs after 1, 3 and 9 epochs, at which the best third continues; the rungs come from the store."""
    asha = {"kind": "asha", "factor": 3}
    # Of the six at the first rung, and itself, the best 7 // 3 = 2 go on: those with 3 and 6.
    assert pruned_after(ArmStudy(six(pruner=asha)), [5.9, 5.8, 5.7]) == 3
    assert pruned_after(ArmStudy(six(pruner=asha)), [6.1]) == 1
    assert pruned_after(ArmStudy(six(pruner=asha)), curve(0.9)) is None
    assert pruned_after(ArmStudy(six(pruner=asha | {"first_epoch": 4})), curve(60.0)) == 4
    assert pruned_after(ArmStudy(arm_trials(pruner=asha)), curve(60.0)) is None  # the first of its arm


@pytest.mark.parametrize("kind", ["median", "asha", "hyperband"])
def test_arms_are_not_compared(kind: str) -> None:
    good, other = ArmStudy(six(pruner=kind)), ArmStudy(arm_trials(pruner=kind, arm=LATLON))
    assert pruned_after(other, curve(60.0)) is None
    assert pruned_after(good, curve(60.0)) is not None


def test_without_a_pruner_nothing_is_ended() -> None:
    assert pruned_after(ArmStudy(six()), curve(600.0)) is None


# The journal


def opened(view: OptunaJournal) -> dict[str, optuna.Study]:
    """The studies that another program reads in the journal."""
    assert view.path is not None
    storage = JournalStorage(JournalFileBackend(str(view.path)))
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def view_in(folder: Path) -> OptunaJournal:
    (folder / "toy").mkdir(exist_ok=True)
    return OptunaJournal(Store(str(folder), "toy"))


def check_same(view: OptunaJournal, *searches: ArmTrials) -> None:
    """The journal says what the records say, no less and no more."""
    assert view.behind == ""
    found = opened(view)
    assert {*found} == {f"toy/{trials.arm.label}" for trials in searches}
    for trials in searches:
        study = found[f"toy/{trials.arm.label}"]
        there = {trial.user_attrs["key"]: trial for trial in study.trials}
        assert len(there) == len(study.trials) == len(trials.ended)
        for made in trials.ended:
            trial = there[made["key"]]
            expected = as_optuna_trial(made, trials)
            times = ("datetime_start", "datetime_complete")
            for name in ("state", "values", "params", "distributions", "intermediate_values", "user_attrs"):
                assert getattr(trial, name) == getattr(expected, name)
            told = [datetime.fromisoformat(made[name]).timestamp() for name in ("started", "ended")]
            assert [getattr(trial, name).timestamp() for name in times] == told
            assert trial.state.is_finished()
            assert trial.user_attrs["number"] == made["number"]


def test_the_journal_says_what_the_records_say(tmp_path: Path) -> None:
    view, other = view_in(tmp_path), arm_trials(arm=LATLON, space=CONDITIONAL)
    grow(other, 3, LOSSES["far"])
    view.write([])
    assert view.path is not None
    assert not view.path.exists()  # a study without a search has none
    trials = arm_trials(*ENDED[:2], started=[(9, point())])
    view.write([trials, other])
    check_same(view, trials, other)  # a started trial is not there, and none is running
    for made in ENDED[2:]:
        trials.add(made)
        view.write([trials, other])
        check_same(view, trials, other)


def test_the_best_of_the_journal_is_the_one_that_the_search_chose(tmp_path: Path) -> None:
    view, trials = view_in(tmp_path), arm_trials(*ENDED)
    view.write([trials])
    best = trials.best()
    assert best is not None
    assert opened(view)["toy/none"].best_trial.user_attrs["key"] == best["key"]


def test_two_objectives_in_the_journal(tmp_path: Path) -> None:
    view, trials = view_in(tmp_path), arm_trials(**TWO)
    grow(trials, 5, LOSSES["far"])
    view.write([trials])
    check_same(view, trials)


def test_writing_again_changes_no_byte(tmp_path: Path) -> None:
    view, trials = view_in(tmp_path), arm_trials(*ENDED)
    view.write([trials])
    assert view.path is not None
    before = view.path.read_bytes()
    view.write([trials])
    view_in(tmp_path).write([trials])
    assert view.path.read_bytes() == before


def test_another_process_goes_on_with_it(tmp_path: Path) -> None:
    trials = arm_trials(*ENDED[:2])
    view_in(tmp_path).write([trials])
    view = view_in(tmp_path)
    assert view.path is not None
    before = view.path.read_bytes()
    trials.add(ENDED[2])
    view.write([trials])
    assert view.path.read_bytes().startswith(before)  # nothing is written twice
    check_same(view, trials)


def foreign(folder: Path, study: str = "toy/none", **given_: Any) -> optuna.Study:
    path = str(folder / "toy" / "optuna.journal")
    return optuna.create_study(storage=JournalStorage(JournalFileBackend(path)), study_name=study, **given_)


def running(folder: Path) -> None:
    foreign(folder).ask()


def strange(folder: Path) -> None:
    foreign(folder).add_trial(optuna.trial.create_trial(value=1.0))


def elsewhere(folder: Path) -> None:
    foreign(folder, "mine")


def turned(folder: Path) -> None:
    foreign(folder, direction="maximize")


def of_old_records(folder: Path) -> None:
    view_in(folder).write([arm_trials(record(0, point(), key="gone"))])


def twice(folder: Path) -> None:
    study = foreign(folder)
    for _ in range(2):
        study.add_trial(as_optuna_trial(ENDED[0], arm_trials()))


def text(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "toy" / "optuna.journal").write_bytes(content) and None


def cut(folder: Path) -> None:
    """Killed in the middle of a line."""
    view = view_in(folder)
    view.write([arm_trials(*ENDED[:2])])
    assert view.path is not None
    view.path.write_bytes(view.path.read_bytes()[:-7])


@pytest.mark.parametrize(
    "was",
    [
        *(running, strange, elsewhere, turned, of_old_records, twice, cut),
        *(text(b"no journal"), text(b"{}\n"), text(b"[1]\n[2]\n"), text(b"\xff\xfe\n\n"), text(b"\n")),
        text(b'{"op_code": 99, "worker_id": "x"}\n'),
    ],
)
def test_a_file_that_says_anything_else_is_made_afresh(tmp_path: Path, was: Callable[[Path], None]) -> None:
    view = view_in(tmp_path)
    was(tmp_path)
    trials = arm_trials(*ENDED)
    view.write([trials])
    check_same(view, trials)


def test_an_arm_that_is_gone_is_gone_from_the_journal(tmp_path: Path) -> None:
    trials, other = arm_trials(*ENDED), arm_trials(arm=LATLON)
    view_in(tmp_path).write([trials, other])
    view = view_in(tmp_path)
    view.write([trials])
    check_same(view, trials)


def test_an_arm_of_another_file_stays_in_the_journal(tmp_path: Path) -> None:
    trials, other = arm_trials(*ENDED), arm_trials(*ENDED, arm=LATLON)
    view = view_in(tmp_path)
    view._store.prepare()
    for ended in other.ended:
        view._store.search.write_record(ended)
    view.write([trials, other])
    view = view_in(tmp_path)
    view.write([trials])
    check_same(view, trials, other)


def test_a_lock_that_a_killed_run_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    view, trials = view_in(tmp_path), arm_trials(*ENDED)
    assert view.path is not None
    os.symlink(view.path, f"{view.path}.lock")
    begin = time.monotonic()
    view.write([trials])
    assert time.monotonic() - begin < 10  # Optuna's own patience is half a minute
    check_same(view, trials)
    assert [path.name for path in view.path.parent.iterdir()] == ["optuna.journal"]


@pytest.mark.parametrize("written", [False, True])
def test_a_file_that_cannot_be_written_is_told_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    view, trials = view_in(tmp_path), arm_trials(*ENDED[:2])
    view.write([trials])
    append = JournalFileBackend.append_logs

    def full(self: Any, logs: Any) -> None:
        if written:  # and only then does the disk say so
            append(self, logs)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", full)
        trials.add(ENDED[2])
        view.write([trials])
        assert view.behind == f"{view.path}: No space left on device"
    trials.add(ENDED[3])
    view.write([trials])
    check_same(view, trials)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    view = OptunaJournal(Store(str(tmp_path), "nowhere"))
    view.write([arm_trials(*ENDED)])
    assert view.behind == f"{view.path}: No such file or directory"


def test_a_storage_that_is_no_folder_has_no_journal() -> None:
    view = OptunaJournal(Store("s3://bucket/results", "toy"))
    view.write([arm_trials(*ENDED)])
    assert (view.path, view.behind) == (None, "")


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(["done", "pruned", "failed", "again"]), max_size=12),
    st.lists(st.floats(0.1, 9), min_size=12, max_size=12),
)
def test_whatever_happens_the_journal_follows(
    tmp_path_factory: pytest.TempPathFactory, states: list[str], losses: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    view, trials = view_in(folder), arm_trials()
    for number, state in enumerate(states):
        if state == "again":  # the run was killed, and another one resumes
            view = view_in(folder)
        else:
            trials.add(record(number, point(0.01 * (number + 1)), losses[number], state=state))
        view.write([trials])
    view.write([trials])
    check_same(view, trials)
