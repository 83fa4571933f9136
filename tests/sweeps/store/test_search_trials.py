"""Search trials: which of them count, which one is chosen, and that test data have no influence."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25 import trial
from pm25.cell import Cell, Tuning
from pm25.panel import Panel
from pm25.splits import CheckerboardSplit, RandomSplit
from sweeps.engine import worker
from sweeps.spec.design import Arm
from sweeps.spec.search_space import Search
from sweeps.spec.study import Study
from sweeps.store import integrity, search_trials
from sweeps.store.records import Record, Store
from sweeps.store.search_trials import ArmTrials, pareto, pick
from tests import worlds

pytestmark = pytest.mark.usefixtures("one_thread")

NONE, LATLON = Arm("none", None), Arm("latlon", None)
RATE, DEPTH = "train.learning_rate", "model.depth"
STUDY: dict[str, Any] = {
    "study": "toy",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {"variant": ["none", "latlon"], "split": [{"kind": "random", "folds": 2}], "seed": [0, 1]},
    "search": {
        "trials": 3,
        "space": {RATE: {"float": [0.001, 1.0], "log": True}, DEPTH: {"int": [1, 3]}},
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
    },
    "model": {"width": 4, "depth": 1, "attention_units": 4},
    "train": {"max_epochs": 2},
}
INNER = {"kind": "random", "folds": 2, "fold": 0, "inner": {"kind": "checkerboard", "degrees": 16}}
TWO_OBJECTIVES = {"objective": ["wr", "oor"], "split": [INNER]}


def study(**changes: Any) -> Study:
    """The toy study; changes to its search by name, to other blocks as `model={...}`."""
    blocks = {name: changes.pop(name) for name in ("model", "train", "data", "design") if name in changes}
    content = STUDY | {"search": STUDY["search"] | changes}
    return Study.model_validate(content | {name: STUDY[name] | block for name, block in blocks.items()})


def key(cell: Cell, data: str = "data") -> str:
    return cell.key(data)


def point(rate: float = 0.1, depth: int = 1) -> dict[str, Any]:
    return {RATE: rate, DEPTH: depth}


def record(number: int, wr: float = 1.0, oor: float = 1.0, **more: Any) -> Record:
    params = more.pop("params", point(depth=1 + number % 3))
    return worlds.trial_record(number, params, wr, oor, **more)


def failed(number: int, **more: Any) -> Record:
    return record(number, **{"state": "failed", "error": worlds.error("Diverged", ""), **more})


def trials(*ended: Record, started: Any = (), **search_: Any) -> ArmTrials:
    declared = study(**search_).search
    assert declared is not None
    return ArmTrials(NONE, declared, dict(declared.space), [], [*ended], [*started])


def put(
    store: Store, of: Study, number: int, params: dict[str, Any], arm: Arm = NONE, **more: Any
) -> Record | None:
    """Store a trial as the scheduler and a worker do; without `state`, only its start file."""
    cells = search_trials.trainings(of, arm, params)
    digest = search_trials.digest([key(cell, more.pop("data", "data")) for cell in cells])
    name = integrity.trial_key(digest, number)
    start = {"kind": "trial", "arm": arm.label, "number": number, "params": params, "point": digest}
    store.search.write_file(name, integrity.STARTED_FILE, json.dumps(start).encode())
    if "state" not in more:
        return None
    made = record(number) | start | more | {"key": name}
    store.search.write_record(made)
    return made


def read(store: Store, of: Study, data: str = "data") -> dict[Arm, ArmTrials]:
    return search_trials.read(of, store, lambda cell: key(cell, data))


# The Pareto set


@given(st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 2) | st.tuples(st.just(1.0), st.just(2.0))))
def test_pareto_is_what_no_other_dominates(losses: list[tuple[float, ...]]) -> None:
    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and (a[0] < b[0] or a[1] < b[1])

    front = pareto(losses)
    kept = [losses[i] for i in front]
    assert front == sorted(front)
    for i, own in enumerate(losses):
        assert (i in front) == (not any(dominates(other, own) for other in losses))
    for own in losses:  # and whoever is beaten is beaten by one that is kept
        assert own in kept or any(dominates(other, own) for other in kept)


@given(st.lists(st.integers(-5, 5).map(lambda x: (float(x),)), min_size=1))
def test_of_one_objective_the_front_is_the_best(losses: list[tuple[float]]) -> None:
    assert pareto(losses) == [i for i, own in enumerate(losses) if own == min(losses)]


def test_pareto_by_hand() -> None:
    assert pareto([]) == []
    assert pareto([(1.0, 5.0), (2.0, 4.0), (2.0, 5.0), (3.0, 4.5), (1.0, 5.0)]) == [0, 1, 4]


# The pick


def declared(**given_: Any) -> Search:
    found = study(**TWO_OBJECTIVES | given_).search
    assert found is not None
    return found


def test_the_balanced_pick_by_hand() -> None:
    # In the range of the front: (0, 1), (0.25, 0.25), (1, 0): distances 1, 0.354, 1.
    assert pick([(2.0, 50.0), (2.25, 20.0), (3.0, 10.0)], declared()) == 1
    # (0, 1), (0.9, 0.8), (1, 0): 1, 1.204, 1: the first of the equals.
    assert pick([(2.0, 50.0), (2.9, 42.0), (3.0, 10.0)], declared()) == 0
    # (0, 1), (0.5, 0.4), (1, 0): 1, 0.64, 1. In ug/m3 the first, 10 from the best of both, would win.
    assert pick([(0.0, 10.0), (50.0, 4.0), (100.0, 0.0)], declared()) == 1


def test_the_pick_of_one_regime_by_hand() -> None:
    front = [(2.0, 50.0), (2.25, 20.0), (3.0, 10.0)]
    assert pick(front, declared(pick="wr")) == 0
    assert pick(front, declared(pick="oor")) == 2
    assert pick(front[::-1], declared(pick="wr")) == 2
    turned = declared(objective=["oor", "wr"], pick="wr")  # objectives in another order
    assert pick([(50.0, 2.0), (10.0, 3.0)], turned) == 0


@pytest.mark.parametrize("rule", ["balanced", "wr", "oor"])
def test_of_equals_the_first_is_taken(rule: str) -> None:
    assert pick([(1.0, 2.0), (1.0, 2.0)], declared(pick=rule)) == 0
    equal = [record(n, 1.0, 2.0) for n in (2, 0, 1)]
    found = trials(*sorted(equal, key=lambda r: r["number"]), **TWO_OBJECTIVES, pick=rule)
    best = found.best()
    assert best is not None
    assert best["number"] == 0


def test_one_objective_takes_the_smallest_loss() -> None:
    found = trials(record(0, 3.0), record(1, 1.0), record(2, 2.0))
    assert found.chosen_point() == found.ended[1]["params"]
    tied = trials(record(0, 3.0), record(1, 1.0), record(2, 1.0))
    assert tied.chosen_point() == tied.ended[1]["params"]


def test_r2_is_as_large_as_can_be() -> None:
    found = trials(record(0, 3.0), record(1, 1.0), record(2, 2.0), metric="r2")  # r2 is -3, -1, -2
    assert [found.values(r) for r in found.ended] == [[-3.0], [-1.0], [-2.0]]
    assert found.chosen_point() == found.ended[1]["params"]
    assert trials(record(0, 3.0), record(1, 1.0), metric="mae").values(record(0, 3.0)) == [6.0]


def test_two_objectives_in_their_order() -> None:
    front = [record(0, 2.0, 50.0), record(1, 2.25, 20.0), record(2, 3.0, 10.0)]
    worse = record(3, 2.3, 20.0, params=point(0.5))
    for rule, number in (("balanced", 1), ("wr", 0), ("oor", 2)):
        found = trials(*front, worse, **TWO_OBJECTIVES, pick=rule, trials=4)
        assert found.chosen_point() == front[number]["params"]
    turned = trials(*front, **TWO_OBJECTIVES | {"objective": ["oor", "wr"]})
    assert turned.losses(front[0]) == (50.0, 2.0)


@given(st.permutations(range(5)), st.lists(st.floats(0.1, 9), min_size=10, max_size=10))
def test_the_pick_stands_in_the_front_and_needs_no_order(order: list[int], losses: list[float]) -> None:
    pairs = [(losses[i], losses[i + 1]) for i in range(0, 10, 2)]
    ended = [record(n, *pair) for n, pair in enumerate(pairs)]
    found = trials(**TWO_OBJECTIVES, trials=5)
    for n in order:
        found.add(ended[n])
    assert [r["number"] for r in found.ended] == [0, 1, 2, 3, 4]
    best = found.best()
    assert best is not None
    assert best["number"] in pareto(pairs)


# How far it is


def test_nothing_is_settled_before_the_search_is_over() -> None:
    found = trials()
    for number in range(3):
        assert (found.exhausted, found.finished, found.chosen_point()) == (False, False, None)
        assert (found.next_number, found.remaining) == (number, 3 - number)
        found.started.append((number, point()))
        assert found.remaining == 3 - number
        found.add(record(number, 3.0 - number))
    assert (found.exhausted, found.finished, found.remaining) == (True, True, 0)
    assert found.chosen_point() == found.ended[2]["params"]


def test_a_trial_that_runs_keeps_the_search_open() -> None:
    found = trials(record(0), record(1), started=[(2, point())])
    assert (found.exhausted, found.finished, found.chosen_point(), found.remaining) == (True, False, None, 1)
    best = found.best()
    assert best is not None
    assert best["number"] == 0  # so far
    found.add(record(2, 0.5))
    assert found.started == []
    assert found.chosen_point() == found.ended[2]["params"]


def test_a_number_that_is_free_is_taken_first() -> None:
    assert trials(record(0), record(2)).next_number == 1
    assert trials(record(1), started=[(0, point())]).next_number == 2


def test_pruned_and_failed_trials_count_and_are_never_chosen() -> None:
    pruned = failed(0, state="pruned", reported=[0.1])
    found = trials(pruned, failed(1), record(2, 9.0))
    assert found.finished
    assert found.chosen_point() == found.ended[2]["params"]
    assert "3 of 3 trials (1 pruned, 1 failed), 6 epochs; chose" in found.outline


def test_a_search_whose_trials_all_failed_settles_nothing() -> None:
    found = trials(failed(0), failed(1), failed(2, state="pruned"))
    assert found.finished
    assert (found.best(), found.chosen_point()) == (None, None)
    assert found.outline == "none: 3 of 3 trials (1 pruned, 2 failed), 6 epochs"
    assert search_trials.tuned({NONE: found, LATLON: trials(record(0), trials=1)}) == {LATLON: point()}


def test_a_budget_of_epochs() -> None:
    found = trials(record(0, 2.0, epochs=3), epochs=5)
    assert (found.epochs, found.exhausted, found.remaining) == (3, False, 2)
    found.started.append((1, point()))
    found.add(failed(1, epochs=2))  # what a failure trained is spent too
    assert (found.epochs, found.exhausted, found.finished, found.remaining) == (5, True, True, 0)
    assert found.chosen_point() == found.ended[0]["params"]
    running = trials(record(0, epochs=5), started=[(1, point())], epochs=5)
    assert (running.exhausted, running.finished, running.remaining) == (True, False, 1)


def test_the_outline_says_what_was_chosen() -> None:
    ended = [record(0, 2.5, params=point(0.0123456, 2)), record(1, 3.0)]
    assert trials(*ended).outline == (
        "none: 2 of 3 trials, 4 epochs; best so far train.learning_rate 0.01235, model.depth 2 "
        "(validation rmse: wr 2.500)"
    )
    two = trials(record(0, 2.5, 4.0, params={DEPTH: 2}), **TWO_OBJECTIVES, trials=1)
    assert two.outline == (
        "none: 1 of 1 trials, 2 epochs; chose model.depth 2 (validation rmse: wr 2.500, oor 4.000)"
    )


# What a trial trains


def test_a_trial_trains_every_placement_s_folds_with_every_seed() -> None:
    of = study(split=[{"kind": "random", "folds": 3, "fold": [0, 2]}, INNER | {"inner_fold": 1}], seed=[7, 8])
    cells = search_trials.trainings(of, LATLON, point(0.25, 3))
    assert of.search is not None
    assert len(cells) == len({*cells}) == of.search.trainings == 6
    inner = Tuning(split=CheckerboardSplit(degrees=16), fold=1)
    assert [(c.split, c.fold, c.seed, c.tuning) for c in cells] == [
        *((RandomSplit(folds=3), fold, seed, Tuning()) for fold in (0, 2) for seed in (7, 8)),
        *((RandomSplit(folds=2), 0, seed, inner) for seed in (7, 8)),
    ]
    assert {(c.variant, c.train.learning_rate, c.model.depth) for c in cells} == {("latlon", 0.25, 3)}
    assert {c.model.width for c in cells} == {4}  # what is not tuned is the study's
    # None of them is a cell of the grid.
    assert not {*cells} & {*of.cells(), *of.cells({LATLON: point(0.25, 3)})}


def test_a_trial_s_key_tells_its_point_its_data_and_its_number() -> None:
    of = study()

    def name(number: int = 0, params: Any = None, arm: Arm = NONE, data: str = "data") -> str:
        cells = search_trials.trainings(of, arm, params or point())
        return integrity.trial_key(search_trials.digest([key(cell, data) for cell in cells]), number)

    assert name() == name()
    others = [name(1), name(params=point(0.2)), name(arm=LATLON), name(data="other")]
    assert len({name(), *others}) == 5
    assert all(len(one) == 20 for one in others)


# What the store holds of it


def test_trials_are_read_by_arm_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    store, of = Store(str(tmp_path), "toy"), study()
    for number, rate in ((2, 0.3), (0, 0.1), (1, 0.2)):
        put(store, of, number, point(rate), state="done")
    put(store, of, 0, point(0.5), LATLON, state="failed", error=worlds.error("Diverged", ""))
    put(store, of, 1, point(0.6), LATLON)
    found = read(store, of)
    assert [*found] == [NONE, LATLON]
    assert [r["params"][RATE] for r in found[NONE].ended] == [0.1, 0.2, 0.3]
    assert found[NONE].finished
    assert [r["state"] for r in found[LATLON].ended] == ["failed"]
    assert found[LATLON].started == [(1, point(0.6))]
    assert found[LATLON].next_number == 2
    assert search_trials.tuned(found) == {NONE: point(0.1)}


def test_a_study_without_a_search_has_none(tmp_path: Path) -> None:
    of = Study.model_validate({name: block for name, block in STUDY.items() if name != "search"})
    assert read(Store(str(tmp_path), "toy"), of) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": [1001]},
        {"seed": [1000, 1001]},
        {"split": [{"kind": "random", "folds": 2, "fold": 1}]},
        {"split": [{"kind": "random", "folds": 3, "fold": 0}]},
        {"split": [INNER]},
        {"model": {"width": 8}},
        {"train": {"max_epochs": 3}},
        {"space": {RATE: {"float": [0.2, 1.0]}, DEPTH: {"int": [1, 3]}}},
        {"space": {RATE: {"float": [0.001, 1.0]}}},
        {"space": STUDY["search"]["space"] | {"model.dropout": {"float": [0.0, 0.5]}}},
        {"space": STUDY["search"]["space"] | {DEPTH: {"int": [1, 3], "when": {RATE: 0.5}}}},
    ],
)
def test_another_search_s_trials_do_not_count(tmp_path: Path, changes: dict[str, Any]) -> None:
    store = Store(str(tmp_path), "toy")
    put(store, study(), 0, point(0.1), state="done")
    put(store, study(), 1, point(0.1))
    found = read(store, study())[NONE]
    assert (len(found.ended), len(found.started)) == (1, 1)
    found = read(store, study(**changes))[NONE]
    assert (found.ended, found.started, found.next_number) == ([], [], 0)
    assert not found.finished


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": 9},
        {"sampler": "random"},
        {"sampler_seed": 5},
        {"pruner": "median"},
        {"metric": "mae"},
        {"enqueue": ["study"], "model": {"depth": 2}, "train": {"learning_rate": 0.5}},
        {"space": {RATE: {"float": [0.05, 2.0]}, DEPTH: {"choice": [1, 2]}}},
        {"design": {"seed": [5]}},
        {"design": {"variant": ["none", "sincos"]}},
    ],
)
def test_what_changes_no_number_of_a_trial_keeps_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    store = Store(str(tmp_path), "toy")
    put(store, study(), 0, point(0.1), state="done")
    put(store, study(), 1, point(0.2))
    found = read(store, study(**changes))[NONE]
    assert [r["number"] for r in found.ended] == [0]
    assert found.started == [(1, point(0.2))]


def test_other_data_is_another_search(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    put(store, study(), 0, point(0.1), state="done")
    assert read(store, study(), "other")[NONE].ended == []


def test_an_arm_that_is_gone_stays_in_the_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    put(store, study(), 0, point(0.1), LATLON, state="done")
    alone = study(design={"variant": ["none"]})
    assert [*read(store, alone)] == [NONE]
    assert read(store, alone)[NONE].ended == []
    assert len(read(store, study())[LATLON].ended) == 1


def test_fewer_trials_are_the_first_ones_and_more_open_the_search_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    for number, loss in enumerate((3.0, 2.0, 1.0)):
        scores = {"wr": {"rmse": loss}}
        put(store, study(), number, point(0.1 * (number + 1)), state="done", scores=scores)
    assert read(store, study())[NONE].chosen_point() == point(0.1 * 3)
    fewer = read(store, study(trials=2))[NONE]
    assert [r["number"] for r in fewer.ended] == [0, 1]
    assert fewer.chosen_point() == point(0.1 * 2)
    more = read(store, study(trials=4))[NONE]
    assert (more.finished, more.chosen_point(), more.remaining, more.next_number) == (False, None, 1, 3)
    put(store, study(), 3, point(0.9), state="done", scores={"wr": {"rmse": 0.5}})
    assert read(store, study(trials=4))[NONE].chosen_point() == point(0.9)  # another winner
    assert read(store, study())[NONE].chosen_point() == point(0.1 * 3)


def test_a_space_that_is_narrowed_forgets_what_lies_outside_until_it_is_widened(tmp_path: Path) -> None:
    store, wide = Store(str(tmp_path), "toy"), study()
    narrow = study(space={RATE: {"float": [0.2, 1.0]}, DEPTH: {"int": [1, 3]}})
    for number, rate in enumerate((0.1, 0.3, 0.05)):
        put(store, wide, number, point(rate), state="done")
    found = read(store, narrow)[NONE]
    assert [r["number"] for r in found.ended] == [1]
    assert found.next_number == 0
    put(store, narrow, 0, point(0.4), state="done")
    put(store, narrow, 2, point(0.5))
    assert [r["params"][RATE] for r in read(store, narrow)[NONE].ended] == [0.4, 0.3]
    # A number counts once: three trials are three, and ended trials come before those that were only started.
    again = read(store, wide)[NONE]
    assert [r["number"] for r in again.ended] == [0, 1, 2]
    assert again.ended[2]["params"] == point(0.05)
    assert again.started == []
    assert again.finished


def test_a_number_that_was_started_twice_counts_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    for rate in (0.1, 0.2, 0.3):
        put(store, study(), 0, point(rate))
    found = read(store, study())[NONE]
    assert len(found.started) == 1
    assert found.started == read(store, study())[NONE].started
    assert (found.next_number, found.exhausted) == (1, False)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"arm": "none"}', b"\xff"])
def test_a_damaged_start_file_makes_every_search_wait(tmp_path: Path, content: bytes) -> None:
    """The trial may be one of either arm."""
    store = Store(str(tmp_path), "toy")
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        put(store, study(), number, point(rate), state="done")
    assert read(store, study())[NONE].finished
    store.search.write_file("abc", integrity.STARTED_FILE, content)
    found = read(store, study())
    for trials in found.values():
        (damaged,) = trials.damaged
        assert damaged["damage"]["file"].endswith("abc/begun.json")
        assert (trials.finished, trials.remaining) == (False, 0)
    assert search_trials.tuned(found) == {}


def test_a_record_says_itself_which_trial_it_is(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy")
    made = put(store, study(), 0, point(0.1), state="done")
    assert made is not None
    store.search.delete_file(made["key"], integrity.STARTED_FILE)
    assert read(store, study())[NONE].ended == [made]
    store.search.write_file(made["key"], integrity.STARTED_FILE, b"damaged")
    assert read(store, study())[NONE].ended == [made]


def test_a_damaged_trial_blocks_its_own_search_alone(tmp_path: Path) -> None:
    store, of = Store(str(tmp_path), "toy"), study()
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        for arm in (NONE, LATLON):
            made = put(store, of, number, point(rate), arm, state="done")
    assert made is not None
    content = store.search.read_file(made["key"], "result.json") or b""
    store.search.write_file(made["key"], "result.json", content.replace(b'"seconds": 1.0', b'"seconds": 2.0'))
    found = read(store, of)
    assert [record["key"] for record in found[LATLON].damaged] == [made["key"]]
    assert found[NONE].damaged == []
    assert [*search_trials.tuned(found)] == [NONE]
    store.search.set_aside(made["key"])
    found = read(store, of)
    assert (found[LATLON].damaged, found[LATLON].remaining, found[LATLON].next_number) == ([], 1, 2)


# No test has a say


@pytest.fixture(scope="module")
def world() -> Panel:
    return worlds.synthetic_panel(sites=24, days=60)


def test_what_would_be_better_on_the_test_set_is_not_taken(world: Panel, tmp_path: Path) -> None:
    """Real trainings: the point that is best on the test set is not the one that is best on validation."""
    of = study(split=[{"kind": "random", "folds": 2, "fold": 0}], space=STUDY["search"]["space"])
    store, name = Store(str(tmp_path), "toy"), of.keys(world)
    points = [point(0.1, 2), point(0.1, 1), point(0.03, 1)]
    for number, params in enumerate(points):
        cells = search_trials.trainings(of, NONE, params)
        digest = search_trials.digest([name(cell) for cell in cells])
        start = {"kind": "trial", "arm": "none", "number": number, "params": params, "point": digest}
        trial_key = integrity.trial_key(digest, number)
        store.search.write_file(trial_key, integrity.STARTED_FILE, json.dumps(start).encode())
        made = worker.SearchTrial(cells, trial_key, world, store.search, more=start)
        while not made.finished:
            made.epoch()
        made.record()
    (found, _) = search_trials.read(of, store, name).values()
    validation = [found.values(r)[0] for r in found.ended]
    # What the search never sees: the same points in the grid's own cell, scored on its test set.
    grid = [of.cell(NONE, RandomSplit(folds=2), 0, 1000, params) for params in points]
    test = [trial.run(cell, world).metrics["test_rmse"] for cell in grid]
    best_on_validation = min(range(3), key=lambda i: validation[i])
    best_on_test = min(range(3), key=lambda i: test[i])
    assert best_on_validation != best_on_test
    assert found.chosen_point() == points[best_on_validation]
    # And the record has nothing that a test could have said.
    for ended in found.ended:
        text = json.dumps(ended)
        assert "test" not in text
        assert not any(repr(value) in text for value in test)
        assert {*ended["scores"]} == {"wr"}
        assert math.isfinite(ended["scores"]["wr"]["rmse"])


def test_a_search_s_scores_do_not_move_when_the_test_set_does(world: Panel, tmp_path: Path) -> None:
    """The target of every sample that the grid's cell is tested on may be anything."""
    of = study()
    (cell,) = search_trials.trainings(of, NONE, point(0.01, 1))
    held_out = trial.prepare(of.cell(NONE, RandomSplit(folds=2), 0, 1000, point(0.01, 1)), world).indices.test
    target = world.target.copy()
    target.reshape(-1)[held_out] += 100

    def scores(name: str, of_world: Panel) -> Any:
        made = worker.SearchTrial([cell], name, of_world, Store(str(tmp_path), "toy").search)
        while not made.finished:
            made.epoch()
        return made.record()["scores"]

    assert scores("a", world) == scores("b", replace(world, target=target))
