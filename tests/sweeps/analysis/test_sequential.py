"""Seeds that a study adds where its tests leave something open: which, when, and always the same."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from scipy import stats

from pm25.cell import Cell
from pm25.panel import Panel
from sweeps.analysis import judgement, sequential
from sweeps.analysis.estimands import Evidence
from sweeps.analysis.judgement import PairedScores
from sweeps.analysis.sequential import Looks
from sweeps.engine.scheduler import Scheduler, Task
from sweeps.plan import cost
from sweeps.plan.bounds import NOTHING
from sweeps.plan.capacity import Capacity
from sweeps.spec.claims import Analysis, Contrast
from sweeps.spec.design import Arm
from sweeps.spec.study import Study, Synthetic
from sweeps.state import StudyState
from sweeps.store.records import Record, Store
from tests import worlds

NONE, LATLON, SINCOS = Arm("none", None), Arm("latlon", None), Arm("sincos", None)
STUDY: dict[str, Any] = {
    "study": "toy",
    "data": {"synthetic": {"sites": 12, "days": 30}},
    "design": {
        "variant": ["none", "latlon", "sincos"],
        "split": [{"kind": "clusters", "folds": 3}, {"kind": "checkerboard", "degrees": 16}],
        "seed": {"start": 2, "max": 7, "until": "decided"},
    },
}
CLAIM = {
    "claim": "raw coordinates help",
    "better": {"variant": "latlon"},
    "than": {"variant": "none"},
    "on": {"split": "clusters"},
    "metric": "rmse",
}


EMPTY = Store(str(Path(__file__).parent / "nowhere"), "toy")
"""A store without predictions. A split of clusters is tested without them."""


class Judge:
    """Stand-in for `judgement.stops` that stops at a mean difference of 1, and keeps its arguments."""

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, dict[str, Any]]] = []

    def stops(
        self,
        contrast: Contrast,
        scores: PairedScores,
        evidence: Evidence,
        analysis: Analysis,
        looks: int,
        family: int,
    ) -> bool:
        how = {"contrast": contrast, "evidence": evidence, "rope": scores.rope, "alpha": analysis.alpha}
        self.seen.append((scores.differences, how | {"looks": looks, "family": family}))
        return bool(abs(evidence.result.estimate) >= 1)


@pytest.fixture(autouse=True)
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    made = Judge()
    monkeypatch.setattr(judgement, "stops", made.stops)
    return made


def declared(**changes: Any) -> Study:
    content = STUDY | changes | {"design": STUDY["design"] | changes.get("design", {})}
    if isinstance(content["data"]["synthetic"], dict):
        content["data"] = {"synthetic": Synthetic(**content["data"]["synthetic"])}
    return Study.model_validate(content)


Value = Callable[[Cell], float | None]
"""The RMSE of a cell; None where it fails."""


def by_arm(**values: float) -> Value:
    return lambda cell: values[cell.variant]


def record(cell: Cell, value: float | None, key: str = "") -> Record:
    """As a worker would write it; R2 is a tenth of the RMSE, and within region all is twice as much."""
    key = key or cell.label
    if value is None:
        error = worlds.error("RuntimeError", "broken")
        return worlds.record(key, "failed", cell=cell.resolved(), error=error)
    metrics = {
        "val_rmse": value,
        "test_rmse": value,
        "test_r2": value / 10,
        "wr_rmse": 2 * value,
        "wr_r2": value / 5,
    }
    return worlds.cell_record(key, cell, metrics=metrics)


def run(
    of: Study, value: Value, order: random.Random | None = None, store: Store = EMPTY
) -> tuple[Looks, list[Cell]]:
    """Everything that is asked for, one cell after the other."""
    looks, grid, ended = Looks(of, store), of.cells(), cast(list[int], [])

    def asked() -> list[int]:
        return [i for i, cell in enumerate(grid) if looks.asks_for(cell)]

    before = asked()
    while left := [i for i in before if i not in ended]:
        ended.append(order.choice(left) if order else left[0])
        cell = grid[ended[-1]]
        grown = looks.add(cell, record(cell, value(cell)))
        after = asked()
        assert grown == (after != before)
        before = after
    return looks, [grid[i] for i in ended]


def seeds(ended: list[Cell]) -> dict[str, int]:
    """How many each arm has on each split, in all folds alike."""
    counts = Counter((cell.variant, cell.split.label, cell.fold) for cell in ended)
    found: dict[str, set[int]] = {}
    for (variant, label, _), count in counts.items():
        found.setdefault(f"{variant} {label}", set()).add(count)
    assert all(len(each) == 1 for each in found.values())
    return {name: each.pop() for name, each in found.items()}


def stopped(looks: Looks) -> dict[str, str]:
    return {f"{one.contrast.arm.label} {one.contrast.split}": one.stopped for one in looks.schedules}


# The looks


def test_every_arm_begins_with_the_first_look(judge: Judge) -> None:
    of = declared()
    looks = Looks(of, EMPTY)
    asked = [cell for cell in of.cells() if looks.asks_for(cell)]
    assert len(asked) == 3 * (3 + 2) * 2  # arms x folds x seeds
    assert {cell.seed for cell in asked} == {0, 1}
    # Of the clusters alone: 3 arms x 3 folds x 5 more seeds.
    assert looks.further == 45
    assert sum(looks.may_ask_for(cell) for cell in of.cells()) == len(asked) + 45
    assert judge.seen == []


def test_what_is_decided_at_the_first_look_gets_no_more_seeds(judge: Judge) -> None:
    looks, ended = run(declared(), by_arm(none=5, latlon=3, sincos=9))
    assert set(seeds(ended).values()) == {2}
    assert looks.further == 0
    assert [seen.tolist() for seen, _ in judge.seen] == [[[-2, -2]] * 3, [[4, 4]] * 3]


def test_what_is_undecided_gets_more_on_its_split_and_no_other_arm_does(judge: Judge) -> None:
    looks, ended = run(declared(), by_arm(none=5, latlon=3, sincos=5.5))
    assert seeds(ended) == {
        "none clusters-3": 7,
        "sincos clusters-3": 7,
        "latlon clusters-3": 2,
        **{f"{arm} checkerboard-16": 2 for arm in ("none", "latlon", "sincos")},
    }
    assert [seen.shape for seen, _ in judge.seen] == [(3, 2), (3, 2), (3, 4), (3, 7)]
    assert stopped(looks) == {
        "latlon clusters-3": sequential.DECIDED,
        "sincos clusters-3": sequential.UNDECIDED,
        "latlon checkerboard-16": sequential.TOO_FEW,
        "sincos checkerboard-16": sequential.TOO_FEW,
    }
    assert looks.further == 0


def test_a_contrast_that_a_later_look_decides_stops_there() -> None:
    # Two seeds cancel out, four do not.
    def value(cell: Cell) -> float:
        return (
            5.0
            if cell.variant != "sincos" or cell.split.kind != "clusters"
            else 5 + [0.5, 0.5, 3, 3][cell.seed]
        )

    looks, ended = run(declared(design={"variant": ["none", "sincos"]}), value)
    assert seeds(ended)["sincos clusters-3"] == 4
    assert stopped(looks)["sincos clusters-3"] == sequential.DECIDED


def test_a_look_is_judged_with_its_own_seeds_however_many_another_contrast_asked_for(judge: Judge) -> None:
    # Cell by cell in the grid's order, the other contrast has its seeds before this look is complete.
    of, ended = declared(design={"split": [{"kind": "clusters", "folds": 3}]}), cast(list[Cell], [])
    looks = Looks(of, EMPTY)
    last = [cell for cell in of.cells() if cell.variant == "latlon" and looks.asks_for(cell)]
    while left := [c for c in of.cells() if looks.asks_for(c) and c not in (*ended, *last)]:
        ended.append(left[0])
        looks.add(left[0], record(left[0], 5.0))
    assert seeds(ended) == {"none clusters-3": 7, "sincos clusters-3": 7}
    assert len(judge.seen) == 3
    late = {0: 5.0, 1: 5.5, 2: 9.0, 3: 9.0}
    for cell in last:
        looks.add(cell, record(cell, late[cell.seed]))
    assert judge.seen[3][0].tolist() == [[0, 0.5]] * 3
    asked = Counter(cell.variant for cell in of.cells() if looks.asks_for(cell))
    assert asked == {"none": 3 * 7, "sincos": 3 * 7, "latlon": 3 * 4}  # it takes no seeds back
    for cell in [c for c in of.cells() if c.variant == "latlon" and c.seed in (2, 3)]:
        looks.add(cell, record(cell, late[cell.seed]))
    assert judge.seen[4][0].tolist() == [[0, 0.5, 4, 4]] * 3
    assert stopped(looks)["latlon clusters-3"] == sequential.DECIDED


def test_the_rule_gets_the_settings_of_the_analysis(judge: Judge) -> None:
    of = declared(
        analysis={"alpha": 0.1, "rope": 0.02},
        design={"variant": ["none", "latlon"], "seed": {"start": 2, "max": 8}},
    )
    run(of, lambda cell: (5.0 if cell.variant == "none" else 9.0 + cell.fold) + cell.fold + cell.seed)
    ((differences, how),) = judge.seen
    assert differences.tolist() == [[4, 4], [5, 5], [6, 6]]
    # rope: 2 % of the mean RMSE of none, 6.5.
    assert how["rope"] == pytest.approx(0.13)
    assert (how["alpha"], how["looks"], how["family"]) == (0.1, 3, 2)
    assert how["contrast"] == of.contrasts()[0]
    # A third is tested and two thirds are trained on; each of three looks has a third of alpha.
    result, se = how["evidence"].result, np.sqrt((1 / 3 + 1 / 2) * 1)
    assert (result.estimate, result.se, result.df) == pytest.approx((5, se, 2))
    assert result.high - result.estimate == pytest.approx(stats.t.ppf(1 - 0.1 / 6, 2) * se)


def test_the_range_of_practically_equal_r2_is_absolute(judge: Judge) -> None:
    run(declared(analysis={"metric": "r2", "rope": 0.02}), by_arm(none=5, latlon=30, sincos=30))
    assert [how["rope"] for _, how in judge.seen] == [0.02, 0.02]
    assert judge.seen[0][0].mean() == pytest.approx(2.5)


def test_the_folds_of_a_split_overlap_as_it_was_declared_and_not_as_it_is_run(judge: Judge) -> None:
    split = [{"kind": "clusters", "folds": 5, "fold": [0, 2, 4]}]
    run(declared(design={"split": split}), lambda cell: 5.0 + (cell.variant != "none") * (4 + cell.fold))
    differences, how = judge.seen[0]
    assert differences.tolist() == [[4, 4], [6, 6], [8, 8]]
    assert how["evidence"].result.se == pytest.approx(np.sqrt((1 / 3 + 1 / 4) * 4))


# What is declared


def test_only_claimed_contrasts_get_more_seeds(judge: Judge) -> None:
    of = declared(claims=[CLAIM])
    looks, ended = run(of, by_arm(none=5, latlon=5, sincos=5))
    assert seeds(ended) == {
        "none clusters-3": 7,
        "latlon clusters-3": 7,
        "sincos clusters-3": 2,
        **{f"{arm} checkerboard-16": 2 for arm in ("none", "latlon", "sincos")},
    }
    assert {how["family"] for _, how in judge.seen} == {1}
    assert len(looks.schedules) == 1


def test_a_claim_is_better_minus_than_in_its_own_metric_and_part(judge: Judge) -> None:
    clusters = {"kind": "clusters", "folds": 5}
    claim = CLAIM | {"than": {"variant": "sincos"}, "on": {"split": "clusters", "part": "wr"}, "metric": "r2"}
    of = declared(design={"split": [clusters]}, claims=[claim])
    run(of, by_arm(none=0, latlon=30, sincos=5))
    ((differences, _),) = judge.seen
    assert differences == pytest.approx(np.full((5, 2), 5.0))  # a fifth of 30 and of 5


def test_two_claims_of_one_contrast_are_one_test(judge: Judge) -> None:
    of = declared(claims=[CLAIM, CLAIM | {"claim": "said again"}])
    run(of, by_arm(none=5, latlon=9, sincos=5))
    assert [how["family"] for _, how in judge.seen] == [1]
    (found,) = sequential.outcome(of, EMPTY, {})
    assert found["claims"] == ["raw coordinates help", "said again"]


# Too few test sets, and failures


def test_seeds_make_no_test_sets(judge: Judge) -> None:
    """Two colours, and one fold, have the first look alone, whatever it shows."""
    claims = [
        CLAIM | {"claim": "out of region", "on": {"split": "checkerboard"}},
        CLAIM | {"claim": "in one fold", "on": {"split": "clusters", "fold": 1}},
    ]
    looks, ended = run(declared(claims=claims), by_arm(none=5, latlon=5, sincos=5))
    assert set(seeds(ended).values()) == {2}
    assert judge.seen == []
    assert {one.stopped for one in looks.schedules} == {sequential.TOO_FEW}
    assert Looks(declared(claims=claims), EMPTY).further == 0


def test_a_failed_cell_ends_a_look_and_its_pair_has_no_number(judge: Judge) -> None:
    def value(cell: Cell) -> float | None:
        broken = (cell.variant, cell.fold, cell.seed) == ("latlon", 1, 0)
        return (
            None
            if broken
            else (5.0 if cell.variant == "none" else 6.0) + 2 * cell.seed * (cell.variant == "latlon")
        )

    of = declared(design={"variant": ["none", "latlon"], "split": [{"kind": "clusters", "folds": 3}]})
    run(of, value)
    np.testing.assert_array_equal(judge.seen[0][0], [[1, 3], [np.nan, 3], [1, 3]])


def test_a_fold_without_a_pair_is_no_test_set(judge: Judge) -> None:
    def value(cell: Cell) -> float | None:
        return None if (cell.variant, cell.fold) == ("none", 2) else 5.0 + (cell.variant == "latlon") * 4

    of = declared(design={"variant": ["none", "latlon"], "split": [{"kind": "clusters", "folds": 4}]})
    looks, _ = run(of, value)
    np.testing.assert_array_equal(judge.seen[0][0], [[4, 4], [4, 4], [np.nan, np.nan], [4, 4]])
    assert judge.seen[0][1]["rope"] == pytest.approx(0.05)  # of the folds that have a pair
    assert stopped(looks) == {"latlon clusters-4": sequential.DECIDED}
    of = declared(design={"variant": ["none", "latlon"], "split": [{"kind": "clusters", "folds": 3}]})
    looks, ended = run(of, value)
    assert len(judge.seen) == 1
    assert stopped(looks) == {"latlon clusters-3": sequential.TOO_FEW}
    assert set(seeds(ended).values()) == {2}


def test_a_number_that_is_missing_or_infinite_is_no_number(judge: Judge) -> None:
    of = declared(design={"variant": ["none", "latlon"], "split": [{"kind": "clusters", "folds": 3}]})
    cells = [cell for cell in of.cells() if cell.seed < 2]
    records = {cell: record(cell, 5.0 if cell.variant == "none" else 9.0) for cell in cells}
    bad = [record for cell, record in records.items() if cell.variant == "latlon" and cell.seed == 1]
    bad[0]["metrics"]["test_rmse"] = float("inf")
    bad[1]["metrics"]["test_rmse"] = None
    del bad[2]["metrics"]["test_rmse"]
    Looks(of, EMPTY, records.items())
    np.testing.assert_array_equal(judge.seen[0][0], [[4, np.nan]] * 3)


# With predictions


def predict(store: Store, key: str, error: float, days: int) -> None:
    """Four sites, all of them off by `error` on every day."""
    dates = np.repeat(np.datetime64("2021-01-01") + np.arange(days), 4)
    n = len(dates)
    columns = {
        "part": ["test"] * n,
        "site_id": ["abcd"[i % 4] for i in range(n)],
        "lat": np.tile([30.0, 35.0, 40.0, 45.0], days),
        "lon": np.full(n, -100.0),
        "date": dates,
        "truth": np.full(n, 10.0, np.float32),
        "prediction": np.full(n, 10 + error, np.float32),
    }
    store.write_table(key, "predictions", columns)


@pytest.mark.parametrize(("days", "units"), [(60, 60), (55, None), (0, None)])
def test_a_random_split_is_judged_by_the_days_of_its_predictions(
    tmp_path: Path, judge: Judge, days: int, units: int | None
) -> None:
    store = Store(str(tmp_path), "toy")
    of = declared(design={"variant": ["none", "latlon"], "split": [{"kind": "random", "folds": 3}]})
    errors = {"none": 5.0, "latlon": 3.0}
    if days:
        for cell in of.cells():
            predict(store, cell.label, errors[cell.variant] + (cell.fold == 1), days)
    looks, ended = run(of, by_arm(none=5, latlon=4), store=store)
    assert set(seeds(ended).values()) == {2}
    if units is None:
        assert judge.seen == []
        assert stopped(looks) == {"latlon random": sequential.TOO_FEW}
        return
    ((differences, how),) = judge.seen
    assert differences.tolist() == [[-1, -1]] * 3, "the scores of the records"
    assert how["evidence"].units == units
    pooled = [np.sqrt((2 * error**2 + (error + 1) ** 2) / 3) for error in (3, 5)]
    assert how["evidence"].result.estimate == pytest.approx(pooled[0] - pooled[1])
    assert how["rope"] == pytest.approx(0.01 * pooled[1]), "a share of the pooled score"
    assert stopped(looks) == {"latlon random": sequential.DECIDED}


# A function of the records


def noise(cell: Cell) -> float | None:
    """Like that of trainings: of some contrasts the looks decide early, of some late; and some fail."""
    draw = random.Random(cell.label)
    return None if draw.random() < 0.1 else 5 + draw.gauss(0, 2) + (cell.variant == "sincos")


@pytest.mark.parametrize("order", range(8))
def test_the_order_in_which_cells_end_changes_nothing(order: int) -> None:
    of = declared(design={"split": [{"kind": "clusters", "folds": 3}, {"kind": "clusters", "folds": 4}]})
    plain, cells = run(of, noise)
    shuffled, same = run(of, noise, random.Random(order))
    assert {*same} == {*cells}
    assert stopped(shuffled) == stopped(plain)
    again = Looks(of, EMPTY, [(cell, record(cell, noise(cell))) for cell in same])
    assert stopped(again) == stopped(plain)
    assert {c for c in of.cells() if again.asks_for(c)} == {*cells}


def test_records_that_no_look_asks_for_change_nothing() -> None:
    of = declared()
    everything = [(cell, record(cell, noise(cell))) for cell in of.cells()]
    plain, cells = run(of, noise)
    looks = Looks(of, EMPTY, everything)
    assert {c for c in of.cells() if looks.asks_for(c)} == {*cells}
    assert stopped(looks) == stopped(plain)


def test_a_record_that_is_forgotten_takes_back_what_followed_from_it() -> None:
    of = declared()
    _, cells = run(of, by_arm(none=5, latlon=5, sincos=5))
    looks = Looks(of, EMPTY, [(cell, record(cell, 5.0)) for cell in cells[1:]])
    asked = [cell for cell in of.cells() if looks.asks_for(cell)]
    assert cells[0] in asked
    assert {(c.variant, c.split.kind) for c in asked if c.seed > 1} == set()  # it was of none, fold 0


# What the report shows


def test_the_outcome_of_every_contrast() -> None:
    of = declared(
        claims=[CLAIM, CLAIM | {"claim": "there too", "on": {"split": "checkerboard", "part": "wr"}}]
    )
    _, cells = run(of, by_arm(none=5, latlon=5, sincos=5))
    records = {str(i): record(cell, 5.0) for i, cell in enumerate(cells)}
    first, second = sequential.outcome(of, EMPTY, records)
    assert first == {
        "claims": ["raw coordinates help"],
        "arm": "latlon",
        "variant": "latlon",
        "fusion": None,
        "other": "none",
        "other_variant": "none",
        "other_fusion": None,
        "split": "clusters-3",
        "part": "test",
        "fold": None,
        "metric": "rmse",
        "looks": [2, 4, 7],
        "seeds": 7,
        "max": 7,
        "stopped": "undecided at the most seeds",
    }
    assert (second["split"], second["part"], second["looks"], second["stopped"]) == (
        *("checkerboard-16", "wr", [2]),
        "too few units",
    )
    assert json.loads(json.dumps([first, second])) == [first, second]
    waits = sequential.outcome(of, EMPTY, dict(list(records.items())[:-1]))[0]
    assert (waits["looks"], waits["seeds"], waits["stopped"]) == ([2, 4, 7], 7, "")


def test_the_rule_in_words() -> None:
    words = sequential.rule(declared())
    for shown in ("2 seeds", "4, then 7", "a level of 0.05 over 4 contrasts and 3 looks", "first 2 seeds"):
        assert shown in words


def test_listed_seeds_have_no_outcome() -> None:
    of = declared(design={"seed": [0, 1]})
    assert (sequential.outcome(of, EMPTY, {}), sequential.rule(of)) == ([], "")


def test_neither_tables_nor_networks_are_loaded_for_it() -> None:
    code = (
        "import sys, sweeps.analysis.sequential; print({'pandas', 'torch', 'ray', 'scipy'} & {*sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


# In a store


@pytest.fixture(scope="module")
def world() -> Panel:
    return declared().panel()


@pytest.fixture
def same_world(world: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made once for all tests."""
    monkeypatch.setattr(Study, "panel", lambda self: world)


def state(folder: Path, **changes: Any) -> StudyState:
    content = STUDY | changes | {"design": STUDY["design"] | changes.get("design", {})}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content | {"storage": str(folder / "results")}))
    return StudyState(str(path))


def end(scheduler: Scheduler, of: StudyState, task: Task, value: Value) -> None:
    """As the runner does it."""
    cell = task.cells[0]
    # The key is a hash of the data and of the numerics too.
    made = record(cell, value(cell), task.key) | {"data": of.panel.fingerprint, "numerics": cell.numerics}
    of.store.write_record(made, worlds.empty_tables(of.store, task.key))
    scheduler.ended(task, made)


def handed(scheduler: Scheduler) -> Iterator[Task]:
    """What comes, until there is nothing more at the moment."""
    while (task := scheduler.next()) is not None:
        yield task


def name(cell: Cell) -> str:
    return f"{cell.variant} {cell.split.kind} {cell.fold} {cell.seed}"


@pytest.mark.usefixtures("same_world")
def test_new_cells_come_as_soon_as_a_look_is_complete(tmp_path: Path) -> None:
    value = by_arm(none=5, latlon=5, sincos=9)
    of = state(tmp_path)
    scheduler = Scheduler(of)
    assert scheduler.outline == "30 cells, 0 recorded, 30 to run; up to 45 more if undecided"
    begun = [*handed(scheduler)]
    assert len(begun) == scheduler.total == 30
    clusters = [task for task in begun if task.cells[0].split.kind == "clusters"]
    look = [task for task in clusters if task.cells[0].variant in ("none", "latlon")]
    for task in look[:-1]:
        end(scheduler, of, task, value)
    assert scheduler.next() is None
    end(scheduler, of, look[-1], value)  # while those of sincos and of the checkerboard still run
    assert scheduler.total == 30 + 2 * 3 * 2
    more = [name(task.cells[0]) for task in handed(scheduler)]
    assert more == [
        f"{arm} clusters {fold} {seed}" for seed in (2, 3) for fold in range(3) for arm in ("none", "latlon")
    ]
    assert scheduler.next() is None
    for task in (task for task in begun if task not in look):
        end(scheduler, of, task, value)
    assert scheduler.total == 42  # sincos is decided


@pytest.mark.usefixtures("same_world")
def test_a_study_s_cells_are_those_that_its_records_ask_for(tmp_path: Path) -> None:
    value = by_arm(none=5, latlon=5, sincos=9)
    of = state(tmp_path)
    assert (len(of.cells), of.further, of.waiting) == (30, 45, [])
    scheduler = Scheduler(of)
    for task in handed(scheduler):
        end(scheduler, of, task, value)
    of.refresh()
    assert (len(of.cells), of.further) == (30 + 2 * 3 * 5, 0)
    assert [*of.cells.values()] == of.grid == [cell for cell in of.study.cells() if cell in of.grid]
    assert Scheduler(of).outline == "60 cells, 60 recorded, 0 to run"
    assert [one["seeds"] for one in sequential.outcome(of.study, of.store, of.records())] == [7, 2, 2, 2]


@pytest.mark.usefixtures("same_world")
@pytest.mark.parametrize("deaths", [[1], [29, 30, 31], [40], [5, 30, 45, 50]])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, deaths: list[int]) -> None:
    def all_of(folder: Path, deaths: list[int]) -> dict[str, str]:
        folder.mkdir()
        count = 0
        while True:
            of = state(folder)
            scheduler = Scheduler(of)
            for task in handed(scheduler):
                end(scheduler, of, task, noise)
                if (count := count + 1) in deaths:
                    break
            else:
                of.refresh()
                assert not Scheduler(of).total
                return {key: one["state"] for key, one in of.records().items()}

    assert all_of(tmp_path / "killed", deaths) == all_of(tmp_path / "whole", [])


@pytest.mark.usefixtures("same_world")
def test_what_another_study_recorded_is_not_run_again(tmp_path: Path) -> None:
    value = by_arm(none=5, latlon=5, sincos=9)
    listed = state(tmp_path, design={"seed": [2, 3], "split": STUDY["design"]["split"][:1]})
    scheduler = Scheduler(listed)
    for task in handed(scheduler):
        end(scheduler, listed, task, value)
    of = state(tmp_path)
    assert (len(of.cells), of.records()) == (30, {})  # they are seeds of a later look
    scheduler = Scheduler(of)
    names = []
    for task in handed(scheduler):
        names.append(name(task.cells[0]))
        end(scheduler, of, task, value)
    assert {one.split()[-1] for one in names if "clusters" in one} == {"0", "1", "4", "5", "6"}
    assert scheduler.total == len(names) == 30 + 2 * 3 * 3
    of.refresh()
    assert len(of.records()) == 60


@pytest.mark.usefixtures("same_world")
def test_a_part_of_the_study_gets_its_part_of_the_seeds(tmp_path: Path) -> None:
    of = state(tmp_path)
    scheduler = Scheduler(
        of, selects=lambda cell: cell.variant in ("none", "latlon") and cell.split.kind == "clusters"
    )
    assert scheduler.outline == "30 cells, 0 recorded, 12 to run; up to 30 more if undecided"
    for task in handed(scheduler):
        end(scheduler, of, task, by_arm(none=5, latlon=5))
    assert scheduler.total == 42
    assert scheduler.handed == 42


@pytest.mark.usefixtures("same_world")
def test_the_seeds_of_an_arm_wait_for_its_search(tmp_path: Path) -> None:
    search = {
        "trials": 1,
        "space": {"train.learning_rate": {"float": [0.001, 1.0]}},
        "split": [{"kind": "random", "folds": 3, "fold": 0}],
    }
    small = {"variant": ["none", "latlon"], "split": STUDY["design"]["split"][:1]}
    of = state(tmp_path, design=small, search=search)
    assert (len(of.waiting), of.further) == (12, 30)
    points: Any = SimpleNamespace(ask=lambda: (0, {"train.learning_rate": 0.5}), tell=lambda *reported: None)
    scheduler = Scheduler(of, search_points=lambda trials: points)
    assert (scheduler.cells, scheduler.trials, scheduler.further) == (12, 2, 30)
    names = []
    while (task := scheduler.next()) is not None:
        if task.kind == "cell":
            names.append(name(task.cells[0]))
            end(scheduler, of, task, by_arm(none=5, latlon=5))
            continue
        trial = worlds.record(task.key, epochs=1, reported=[], scores={"wr": {"rmse": 1.0}}) | dict(task.more)
        of.store.search.write_record(trial)
        scheduler.ended(task, trial)
    assert len(names) == len({*names}) == scheduler.cells == 2 * 3 * 7
    of.refresh()
    assert (len(of.cells), of.waiting, of.further) == (42, [], 0)
    assert {cell.train.learning_rate for cell in of.cells.values()} == {0.5}
    # With more trials, and the same point chosen, everything is there already but one seed of the last look.
    gone = next(
        key for key, cell in of.cells.items() if (cell.variant, cell.fold, cell.seed) == ("none", 1, 5)
    )
    of.store.forget(gone)
    again = state(tmp_path, design=small, search=search | {"trials": 2})
    scheduler = Scheduler(again, search_points=lambda trials: points)
    assert (scheduler.cells, scheduler.trials) == (12, 2)
    names = []
    while (task := scheduler.next()) is not None:
        if task.kind == "cell":
            names.append(name(task.cells[0]))
            continue
        trial = worlds.record(task.key, epochs=1, reported=[], scores={"wr": {"rmse": 1.0}}) | dict(task.more)
        scheduler.ended(task, trial)
    assert (names, scheduler.cells) == (["none clusters 1 5"], 1)


@pytest.mark.usefixtures("same_world")
def test_vectors_are_made_of_encoders_that_may_get_seeds_later(tmp_path: Path) -> None:
    small = {"variant": ["none", "geoclip"], "split": STUDY["design"]["split"][:1]}
    of = state(tmp_path, design=small)
    scheduler = Scheduler(of)
    for task in handed(scheduler):
        if task.cells[0].variant == "geoclip":
            end(scheduler, of, task, lambda cell: 5.0)
    of.refresh()
    again = Scheduler(of)
    assert {task.arm.variant for task in handed(again)} == {"none"}
    assert again.encoders() == {"geoclip"}


@pytest.mark.usefixtures("same_world")
def test_listed_seeds_cost_no_look_at_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def records(self: Store, keys: Any, files: Any = "none") -> Any:
        raise AssertionError("records were read")

    monkeypatch.setattr(Store, "records", records)
    of = state(tmp_path, design={"seed": [0, 1]})
    assert (len(of.cells), of.further, of.looks) == (30, 0, None)
    with pytest.raises(AssertionError, match="records were read"):
        state(tmp_path)


@pytest.mark.usefixtures("same_world")
def test_a_plan_is_of_the_seeds_that_are_asked_for(tmp_path: Path) -> None:
    of = state(tmp_path, design={"split": STUDY["design"]["split"][:1]})
    capacity = Capacity.of(of.study, 1, 0)

    found = cost.Estimate(of, {}, of.split_indices(), capacity)
    assert len(found.tasks) == 18
    levels = {level.level: level.tasks for level in found.levels() if level.factor == "seed"}
    assert levels == {"0": 9, "1": 9}
    assert found.overrides(cost.Subset(1, 3, 9, NOTHING, {})) == ["design.seed=[0]"]
    assert found.overrides(cost.Subset(2, 3, 18, NOTHING, {})) == []
