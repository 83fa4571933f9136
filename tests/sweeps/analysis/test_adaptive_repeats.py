"""Origins and deals that a study adds where its tests leave something open, beside seeds or alone."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import ValidationError
from scipy import stats

from pm25.cell import Cell
from pm25.errors import SettingError
from sweeps.analysis import estimands, inference, judgement, labels, next_look, results, sequential
from sweeps.analysis.estimands import Evidence, Sample
from sweeps.analysis.next_look import State
from sweeps.analysis.sequential import Looks
from sweeps.cli import plan_text
from sweeps.engine.scheduler import Scheduler
from sweeps.plan import cost
from sweeps.plan.bounds import NOTHING
from sweeps.plan.capacity import Capacity
from sweeps.report.sections import methods
from sweeps.spec.claims import Analysis, Contrast
from sweeps.spec.design import NO_LADDERS, Arm, Ladders, SplitLadder
from sweeps.spec.study import Study, Synthetic
from sweeps.state import StudyState
from sweeps.store.records import Record, Store
from tests import worlds
from tests.errors import refuses

NONE, LATLON = Arm("none", None), Arm("latlon", None)
BOARDS = {"kind": "checkerboards", "degrees": 16, "origins": {"start": 5, "max": 15, "until": "decided"}}
BLOCKS = {"kind": "blocks", "degrees": 8, "folds": 4, "deals": {"start": 1, "max": 3}}
BOTH = {"start": 2, "max": 8}
"""Seeds that are added beside origins."""
STUDY: dict[str, Any] = {
    "study": "toy",
    "data": {"synthetic": {"sites": 12, "days": 30}},
    "design": {"variant": ["none", "latlon"], "split": [BOARDS], "seed": 0},
}
EMPTY = Store(str(Path(__file__).parent / "nowhere"), "toy")
"""A store without predictions, which the tests of origins and deals do not need."""
CONTRAST = Contrast(LATLON, NONE, "checkerboards-16", "test", None, "rmse")

Value = Callable[[Cell], float]


def declared(**changes: Any) -> Study:
    content = STUDY | changes | {"design": STUDY["design"] | changes.get("design", {})}
    content["data"] = {"synthetic": Synthetic(**content["data"]["synthetic"])}
    return Study.model_validate(content)


def record(cell: Cell, value: float) -> Record:
    metrics = {"test_rmse": value, "test_r2": value / 10, "wr_rmse": value, "wr_r2": value / 10}
    metrics["val_rmse"] = value
    return worlds.cell_record(cell.label, cell, metrics=metrics)


def run(of: Study, value: Value, order: random.Random | None = None) -> tuple[Looks, list[Cell]]:
    """Everything that is asked for, one cell after the other."""
    looks, grid = Looks(of, EMPTY), of.cells()
    ended: list[int] = []
    left = asked = [i for i, cell in enumerate(grid) if looks.asks_for(cell)]
    while left:
        ended.append(order.choice(left) if order else left[0])
        left.remove(ended[-1])
        cell = grid[ended[-1]]
        if looks.add(cell, record(cell, value(cell))):
            asked = [i for i, cell in enumerate(grid) if looks.asks_for(cell)]
            left = sorted({*asked} - {*ended})
    asked = [i for i, cell in enumerate(grid) if looks.asks_for(cell)]
    assert sorted(ended) == asked
    return looks, [grid[i] for i in ended]


def noise(spread: float, of_seeds: float, of_arm: float = 0.0, draw: int = 0) -> Value:
    """RMSEs of 5 whose arm `latlon` differs from origin to origin, and from seed to seed."""

    def value(cell: Cell) -> float:
        if cell.variant == "none":
            return 5.0
        repeat = cell.split.position(cell.fold).repeat
        by_origin = random.Random(f"{draw} {repeat}").gauss(0, spread)
        return 5 + of_arm + by_origin + random.Random(f"{draw} {cell.label}").gauss(0, of_seeds)

    return value


def path(looks: Looks) -> list[State]:
    (schedule,) = looks.schedules
    return schedule.path


# The study file


@pytest.mark.parametrize(
    ("split", "name", "most", "folds"), [(BOARDS, "origins", 15, 30), (BLOCKS, "deals", 3, 12)]
)
def test_a_split_has_the_most_repeats_and_its_cells_those_of_a_fixed_number(
    split: dict[str, Any], name: str, most: int, folds: int
) -> None:
    of, fixed = declared(design={"split": split}), declared(design={"split": split | {name: most}})
    (factor,) = of.design.split
    assert (getattr(factor.split, name), len(factor.folds)) == (most, folds)
    assert factor.repeats is not None
    assert (factor.repeats.start, factor.repeats.max) == (split[name]["start"], most)
    assert of.cells() == fixed.cells()
    key, key_of_fixed = (one.keys(worlds.synthetic_panel()) for one in (of, fixed))
    assert [key(cell) for cell in of.cells()] == [key_of_fixed(cell) for cell in fixed.cells()]
    assert fixed.design.split[0].repeats is None


def test_ladders_double_until_the_most() -> None:
    design = declared(
        design={"split": [BOARDS, BLOCKS, {"kind": "clusters", "folds": 3}], "seed": BOTH}
    ).design
    assert design.looks == Ladders((2, 4, 8), (("checkerboards-16", (5, 10, 15)), ("blocks-8", (1, 2, 3))))
    assert design.looks.of("checkerboards-16").looks == 5  # each look after the first is one step
    assert design.looks.of("clusters-3") == SplitLadder((), (2, 4, 8))
    assert design.looks.of("clusters-3").looks == 3
    assert declared().design.looks.of("clusters-3").looks == 1
    assert not declared(design={"split": BOARDS | {"origins": 5}}).design.looks.adaptive


@pytest.mark.parametrize(
    ("split", "at"),
    [
        (BOARDS | {"origins": {"start": 5, "max": 5}}, ("origins",)),
        (BOARDS | {"origins": {"start": 5}}, ("origins", "max")),
        (BOARDS | {"origins": {"start": 0, "max": 5}}, ("origins", "start")),
        (BOARDS | {"origins": {"start": 5, "max": "many"}}, ("origins", "max")),
        (BOARDS | {"origins": {"start": 5, "max": 15, "step": 1}}, ("origins", "step")),
        (BOARDS | {"deals": {"start": 1, "max": 3}}, ("split", "checkerboards", "deals")),
        ({"kind": "random", "origins": {"start": 5, "max": 15}}, ("split", "random", "origins")),
        (BOARDS | {"fold": [0, 1]}, ()),
    ],
)
def test_faults_are_told_at_their_key(split: dict[str, Any], at: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as raised:
        declared(design={"split": [split]})
    assert [fault["loc"] for fault in raised.value.errors()] == [("design", "split", 0, *at)]


def test_adaptive_repeats_need_a_test() -> None:
    with pytest.raises(ValidationError) as raised:
        declared(design={"variant": ["latlon"]})
    (fault,) = raised.value.errors()
    cause = fault["ctx"]["error"]
    assert isinstance(cause, SettingError)
    assert cause.field == "design.split"


def test_a_search_has_no_adaptive_origins() -> None:
    search = {"trials": 1, "space": {"train.learning_rate": {"float": [0.001, 1.0]}}, "split": [BOARDS]}
    with pytest.raises(ValidationError) as raised:
        declared(search=search)
    assert raised.value.errors()[0]["loc"][-1] == "origins"


# The choice of the next step


def evidence_of(differences: np.ndarray, units: np.ndarray, kind: str, parts: int, level: float) -> Evidence:
    sample = Sample(kind, units, parts, differences.mean(axis=1), "rmse")
    return estimands.compare(sample, level=level, sensitivity=False)


def step(
    state: State,
    ladder: SplitLadder,
    differences: np.ndarray,
    kind: str = "checkerboards",
    folds: int = 2,
    analysis: Analysis | None = None,
    family: int = 1,
) -> State | str:
    """The step after a look at `differences (folds, seeds)`, with the numbers of an arm that scores 8."""
    analysis = analysis or Analysis(rope=0)
    units = np.arange(len(differences)) // (2 if kind == "checkerboards" else 1)
    scores = judgement.paired_scores(CONTRAST, 8 + differences, np.full_like(differences, 8), analysis)
    evidence = evidence_of(differences, units, kind, folds, 1 - analysis.alpha / ladder.looks)
    return next_look.following(
        CONTRAST, state, ladder, kind, folds, units, scores, evidence, analysis, family
    )


def undecided(repeats: int, seeds: int, of_units: float, of_seeds: float, folds: int = 2) -> np.ndarray:
    """Differences (folds, seeds) with a mean of zero whose estimated variances are these two."""
    units = repeats * (1 if folds == 2 else folds)
    centre = np.linspace(-1, 1, units)
    centre *= math.sqrt(max(of_units + of_seeds / seeds, 1e-12) / np.var(centre, ddof=1))
    within = np.linspace(-1, 1, seeds) if seeds > 1 else np.zeros(1)
    within *= math.sqrt(of_seeds / np.var(within, ddof=1)) if seeds > 1 else 0
    by_unit = centre[:, None] + within
    return np.repeat(by_unit, 2, axis=0) if folds == 2 else by_unit


@pytest.mark.parametrize("of_seeds", [0.01, 0.3, 1.0, 1.5, 2.0, 3.0, 5.0, 20.0])
@pytest.mark.parametrize(
    ("state", "kind"),
    [(State(5, 2), "checkerboards"), (State(10, 2), "checkerboards"), (State(1, 2), "blocks")],
)
def test_what_shrinks_the_interval_most_per_training_is_bought(
    state: State, kind: str, of_seeds: float
) -> None:
    ladder = SplitLadder((5, 10, 15) if kind == "checkerboards" else (1, 2, 3), (2, 4, 8))
    folds, family = (2, 3) if kind == "checkerboards" else (4, 3)
    assert state.repeats is not None

    def log_width(repeats: int, seeds: int) -> float:
        units = repeats if kind == "checkerboards" else 4 * repeats
        shared = 1.0 if kind == "checkerboards" else 1 / 3
        quantile = stats.t.ppf(1 - 0.05 / (5 * family) / 2, units - 1)
        return float(np.log(quantile) + np.log((1 / units + shared) * (1 + of_seeds / seeds)) / 2)

    now = log_width(state.repeats, 2)
    larger = next(r for r in ladder.repeats if r > state.repeats)
    gain_of_repeats = (now - log_width(larger, 2)) / (2 * (larger - state.repeats))
    gain_of_seeds = (now - log_width(state.repeats, 4)) / (2 * state.repeats)
    wanted = State(larger, 2) if gain_of_repeats >= gain_of_seeds else State(state.repeats, 4)
    differences = undecided(state.repeats, 2, 1.0, of_seeds, folds)
    assert step(state, ladder, differences, kind, folds, family=family) == wanted


def test_both_steps_are_chosen_somewhere() -> None:
    ladder = SplitLadder((5, 10, 15), (2, 4, 8))
    assert step(State(10, 2), ladder, undecided(10, 2, 1, 0.01)) == State(15, 2)
    assert step(State(10, 2), ladder, undecided(10, 2, 0.1, 20)) == State(10, 4)


def test_repeats_come_first_where_the_variance_of_seeds_is_not_known() -> None:
    ladder = SplitLadder((5, 10, 15), (1, 2, 4))
    assert step(State(5, 1), ladder, undecided(5, 1, 1, 0)) == State(10, 1)
    assert step(State(15, 1), ladder, undecided(15, 1, 1, 0)) == State(15, 2)
    assert step(State(15, 4), ladder, undecided(15, 4, 1, 1)) == next_look.UNDECIDED_REPEATS


def test_differences_without_spread_buy_repeats() -> None:
    """All differences are zero: neither better nor worse, and no interval to shrink."""
    assert step(State(5, 2), SplitLadder((5, 10), (2, 4)), np.zeros((10, 2))) == State(10, 2)


def test_a_decided_contrast_buys_nothing() -> None:
    ladder = SplitLadder((5, 10), (2, 4))
    differences = undecided(5, 2, 1, 1)
    assert step(State(5, 2), ladder, differences + 100) == next_look.DECIDED
    assert step(State(5, 2), ladder, differences, analysis=Analysis(rope=100)) == next_look.DECIDED


def test_too_few_units_buy_repeats_and_never_seeds() -> None:
    few = undecided(3, 2, 0.1, 20) + 100
    assert step(State(3, 2), SplitLadder((3, 6), (2, 4)), few) == State(6, 2)
    assert step(State(3, 2), SplitLadder((3,), (2, 4)), few) == next_look.TOO_FEW


# A study


def test_origins_are_bought_with_listed_seeds() -> None:
    of = declared(design={"seed": [7, 3]})
    looks = Looks(of, EMPTY)
    assert sum(map(looks.asks_for, of.cells())) == 2 * 10 * 2  # arms x folds x seeds
    assert looks.further == 2 * 20 * 2
    assert all(map(looks.may_ask_for, of.cells()))
    looks, ended = run(of, noise(1, 1))
    assert path(looks) == [State(5, None), State(10, None), State(15, None)]
    assert (len(ended), looks.further) == (2 * 30 * 2, 0)
    assert looks.schedules[0].stopped == next_look.UNDECIDED_REPEATS


def test_a_decided_contrast_keeps_its_first_origins() -> None:
    looks, ended = run(declared(), noise(0.1, 0.1, of_arm=-3))
    assert path(looks) == [State(5, None)]
    assert {cell.fold for cell in ended} == {*range(10)}
    assert looks.schedules[0].stopped == next_look.DECIDED
    assert looks.further == 0


def test_the_arms_of_another_contrast_get_nothing() -> None:
    three = {"variant": ["none", "latlon", "sincos"], "split": [BOARDS, {"kind": "clusters", "folds": 3}]}

    def value(cell: Cell) -> float:
        return 9.0 + 0.01 * cell.fold if cell.variant == "sincos" else noise(1, 0)(cell)

    _, ended = run(declared(design=three), value)
    counts = Counter((cell.variant, cell.split.kind) for cell in ended)
    assert counts == {
        **{(arm, "checkerboards"): 30 for arm in ("none", "latlon")},
        ("sincos", "checkerboards"): 10,
        **{(arm, "clusters"): 3 for arm in ("none", "latlon", "sincos")},
    }


def test_seed_noise_buys_seeds_and_noise_of_origins_buys_origins() -> None:
    of = declared(design={"seed": BOTH})

    def value(cell: Cell) -> float:
        opposite = (2, -2)[cell.seed % 2] if cell.variant == "latlon" else 0
        return noise(0.3, 0)(cell) + opposite

    looks, ended = run(of, value)
    assert path(looks) == [State(5, 2), State(10, 2), State(10, 4), State(10, 8), State(15, 8)]
    assert len(ended) == 2 * 30 * 8
    looks, _ = run(of, noise(2, 0.01))
    assert path(looks)[:3] == [State(5, 2), State(10, 2), State(15, 2)]


def test_deals_are_bought() -> None:
    looks, ended = run(declared(design={"split": BLOCKS}), noise(1, 1))
    assert path(looks) == [State(1, None), State(2, None), State(3, None)]
    assert {cell.fold for cell in ended} == {*range(12)}


def test_too_few_origins_at_the_start_are_no_reason_to_stop() -> None:
    looks, _ = run(
        declared(design={"split": BOARDS | {"origins": {"start": 2, "max": 6}}}), noise(0.1, 0, -3)
    )
    assert path(looks) == [State(2, None), State(4, None), State(6, None)]
    assert looks.schedules[0].stopped == next_look.DECIDED
    few = declared(design={"split": BOARDS | {"origins": {"start": 2, "max": 4}}})
    looks, ended = run(few, noise(0.1, 0, -3))
    assert (looks.schedules[0].stopped, len(ended)) == (next_look.TOO_FEW, 2 * 4)


@pytest.mark.parametrize("order", range(2))
def test_the_order_in_which_cells_end_changes_nothing(order: int) -> None:
    boards = BOARDS | {"origins": {"start": 5, "max": 8}}
    blocks = BLOCKS | {"deals": {"start": 1, "max": 2}}
    of = declared(design={"split": [boards, blocks], "seed": {"start": 2, "max": 3}})
    plain, cells = run(of, noise(0.5, 1.5, draw=order))
    shuffled, same = run(of, noise(0.5, 1.5, draw=order), random.Random(order))
    again = Looks(of, EMPTY, [(c, record(c, noise(0.5, 1.5, draw=order)(c))) for c in of.cells()])
    assert {*same} == {*cells} == {cell for cell in of.cells() if again.asks_for(cell)}
    for one in (shuffled, again):
        assert [(s.path, s.stopped) for s in one.schedules] == [(s.path, s.stopped) for s in plain.schedules]


@pytest.mark.parametrize("draw", range(6))
def test_the_report_shows_the_look_at_which_a_contrast_stopped(draw: int) -> None:
    """The report uses the cells of that look, although another contrast has bought more cells of 'none'."""
    of = declared(design={"variant": ["none", "latlon", "sincos"], "seed": {"start": 2, "max": 4}})
    gain = (-3.0, -0.8, 0.0)[draw % 3]

    def value(cell: Cell) -> float:
        return noise(0.3, 0.8, gain if cell.variant == "latlon" else 0, draw)(cell)

    looks, ended = run(of, value)
    records = {cell.label: record(cell, value(cell)) for cell in ended}
    rows = results.rows({cell.label: cell for cell in ended}, records)
    frame = inference.contrasts(rows, of.analysis, (), looks=of.design.looks)
    for schedule in looks.schedules:
        line = frame[(frame["part"] == "test") & (frame["arm"] == labels.of_arm(schedule.contrast.arm))].iloc[
            0
        ]
        assert (line["n_units"], line["n_seeds"], line["looks"]) == (*schedule.state, 4)
        repeats, seeds = schedule.state
        assert repeats is not None
        assert seeds is not None
        of_look = [c for c in ended if c.variant == schedule.contrast.arm.variant]
        of_look = [c for c in of_look if c.fold < 2 * repeats and c.seed < seeds]
        assert line["diff"] == pytest.approx(np.mean([value(c) - 5 for c in of_look]))
        decided = line["verdict"] != "undecided"
        assert decided == (schedule.stopped == next_look.DECIDED)


def test_what_is_not_declared_has_its_largest_complete_look() -> None:
    of = declared(design={"seed": BOTH})
    cells = [cell for cell in of.cells() if cell.fold < 20 and cell.seed < 4]
    records = {cell.label: record(cell, noise(1, 1)(cell)) for cell in cells}
    whole = results.rows({cell.label: cell for cell in cells}, records)
    frame = inference.contrasts(whole, of.analysis, (), looks=of.design.looks)
    wr = frame[frame["part"] == "wr"].iloc[0]
    assert (wr["n_units"], wr["n_seeds"]) == (10, 4)
    missing = [cell for cell in cells if not (cell.fold >= 10 and cell.seed == 3 and cell.variant == "none")]
    frame = inference.contrasts(
        results.rows({c.label: c for c in cells}, {c.label: records[c.label] for c in missing}),
        of.analysis,
        (),
        looks=of.design.looks,
    )
    wr = frame[frame["part"] == "wr"].iloc[0]
    assert (wr["n_units"] * wr["n_seeds"], wr["n_pairs"]) == (20, 40)


def test_an_arm_with_fewer_origins_has_an_interval_too() -> None:
    of = declared(design={"variant": ["none", "latlon", "sincos"]})

    def value(cell: Cell) -> float:
        return noise(0.5, 0.1)(cell) if cell.variant != "sincos" else 9 + cell.fold / 100

    _, ended = run(of, value)
    rows = results.rows(
        {cell.label: cell for cell in ended}, {cell.label: record(cell, value(cell)) for cell in ended}
    )
    means = inference.means(rows, of.analysis).query("part == 'test'").set_index("variant")
    assert means["n"].to_dict() == {"none": 30, "latlon": 30, "sincos": 10}
    assert means["low"].notna().all()
    part = inference.means(rows[(rows["fold"] != 3) | (rows["variant"] != "sincos")], of.analysis)
    assert part.query("part == 'test'").set_index("variant")["low"].isna().to_dict()["sincos"]


# What is shown


def test_the_outcome_names_what_was_bought() -> None:
    of = declared(design={"seed": {"start": 1, "max": 2}})
    _, ended = run(of, noise(1, 1))
    records = {cell.label: record(cell, noise(1, 1)(cell)) for cell in ended}
    (found,) = sequential.outcome(of, EMPTY, records)
    assert found["repeated_by"] == "origins"
    assert found["repeats"] == [5, 10, 15, 15]
    assert found["looks"] == [1, 1, 1, 2]
    assert (found["max_repeats"], found["max"], found["stopped"]) == (15, 2, next_look.UNDECIDED_REPEATS)
    assert methods._looks(found) == "5 × 1, 10 × 1, 15 × 1, 15 × 2 origins × seeds"
    assert methods._bought(found) == "15 of 15 origins, 2 of 2 seeds"


def test_the_report_multiplies_by_the_looks_of_each_split() -> None:
    family = pd.DataFrame({"split": ["a", "a", "b"], "looks": [5, 5, 1]})
    assert methods._numbers_of_looks(family) == "5 on a, 1 on b"
    assert methods._numbers_of_looks(family[:2]) == "5"
    assert methods._looks({"looks": [3, 6]}) == "3, 6"
    assert methods._bought({"seeds": 6, "max": 12}) == "6 of 12"


def test_the_rule_names_origins_deals_and_the_looks_of_each_split() -> None:
    words = sequential.rule(declared(design={"split": [BOARDS, BLOCKS], "seed": {"start": 1, "max": 2}}))
    for shown in ("5 origins on checkerboards-16", "1 deals on blocks-8", "10, then 15", "per training"):
        assert shown in words
    assert "4 looks" in words
    words = sequential.rule(declared(design={"split": [BOARDS, {"kind": "clusters", "folds": 3}]}))
    assert "3 on checkerboards-16" in words
    assert "1 on clusters-3" in words
    assert "seeds (" not in words


# In a store


def state(folder: Path, **changes: Any) -> StudyState:
    synthetic = {"data": {"synthetic": {"sites": 120, "days": 40}}}
    content = STUDY | synthetic | changes | {"design": STUDY["design"] | changes.get("design", {})}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content | {"storage": str(folder / "results"), "window": 3}))
    return StudyState(str(path))


def test_a_run_trains_the_origins_that_its_looks_ask_for(tmp_path: Path) -> None:
    of = state(tmp_path)
    assert (len(of.cells), of.further) == (20, 40)
    scheduler = Scheduler(of)
    assert scheduler.outline == "20 cells, 0 recorded, 20 to run; up to 40 more if undecided"
    folds = []
    while (work := scheduler.next()) is not None:
        cell = work.cells[0]
        folds.append(cell.fold)
        own = {"key": work.key, "data": of.panel.fingerprint, "numerics": cell.numerics}
        made = record(cell, noise(1, 1)(cell)) | own
        of.store.write_record(made, worlds.empty_tables(of.store, work.key))
        scheduler.ended(work, made)
    assert Counter(folds) == dict.fromkeys(range(30), 2)
    of.refresh()
    assert (len(of.cells), of.further, Scheduler(of).total) == (60, 0, 0)


def test_a_plan_shows_what_may_be_added(tmp_path: Path) -> None:
    of = state(tmp_path)
    estimate = cost.Estimate(of, {}, of.split_indices(), Capacity.of(of.study, 1, 0))
    assert len(estimate.tasks) == 20
    content = plan_text.plan_content(of, {}, of.split_indices(), estimate, None)
    assert content["further"] == 40
    assert content["repeats"] == {
        "checkerboards-16": {"of": "origins", "start": 5, "max": 15, "until": "decided"}
    }
    lines = [line.split() for line in plan_text.plan_lines(content, "toy")]
    # A smaller part of what is trained now, and of no later origins.
    assert estimate.overrides(cost.Subset(1, 10, 20, NOTHING, {})) == []
    (override,) = estimate.overrides(cost.Subset(1, 4, 8, NOTHING, {}))
    assert declared(design=written(override)).design.split[0].folds == (0, 1, 2, 3)
    assert ["origins", "checkerboards-16:", "5,", "up", "to", "15", "if", "undecided"] in lines


def written(override: str) -> dict[str, Any]:
    """The content of an override of one key of the design."""
    name, _, text = override.partition("=")
    return {name.removeprefix("design."): yaml.safe_load(text)}


def test_a_wrong_key_is_told_by_its_name_in_the_file(tmp_path: Path) -> None:
    with refuses("toy.yaml", "design.split.0.origins.max", 5):
        state(tmp_path, design={"split": [BOARDS | {"origins": {"start": 5, "max": 5}}]})
    with refuses("toy.yaml", "design.split.0.fold", "origins"):
        state(tmp_path, design={"split": [BOARDS | {"fold": [0, 1]}]})
    with refuses("toy.yaml", "design.split.0.origins"):
        state(tmp_path, design={"split": [{"kind": "random", "origins": {"start": 5, "max": 15}}]})


# Size: a study under the null hypothesis rejects in at most 5 % of cases


def test_the_view_process_gets_the_ladders_as_json() -> None:
    looks = declared(design={"split": [BOARDS, BLOCKS], "seed": BOTH}).design.looks
    sent = Ladders(*json.loads(json.dumps(looks)))
    for label in ("checkerboards-16", "blocks-8", "clusters-3"):
        assert sent.of(label).looks == looks.of(label).looks
        assert next_look.states(sent.of(label)) == next_look.states(looks.of(label))
    assert Ladders() == NO_LADDERS


class Null:
    """Differences of two equal arms, by origin, half and seed.

    What all origins share, because they have one network of monitors, has the variance of an origin. This is
    the most that the factor 1/R + 1 of the test allows for.
    """

    def __init__(self, draw: int, of_seeds: float) -> None:
        rng = np.random.default_rng(draw)
        origins = np.repeat(rng.normal(size=15), 2)[:, None]
        self.differences = rng.normal() + origins + math.sqrt(2 * of_seeds) * rng.normal(size=(30, 4))

    def at(self, now: State) -> np.ndarray:
        assert now.repeats is not None
        return self.differences[: 2 * now.repeats, : now.seeds]


def rejects(world: Null, ladder: SplitLadder, looks: int) -> bool:
    """True if a study stops with a difference at one of its looks, at a level of alpha over `looks`."""
    now: State | str = next_look.first(ladder)
    analysis = Analysis(rope=0, alpha=0.05 * ladder.looks / looks)
    while isinstance(now, State):
        now = step(now, ladder, world.at(now), analysis=analysis)
    return now == next_look.DECIDED


STUDIES = 1000
MOST = int(stats.binom.ppf(0.999, STUDIES, 0.05))
"""A test of size 5 % rejects more of the studies with a probability of 0.1 %."""


@pytest.mark.parametrize(
    ("ladder", "of_seeds"),
    [
        (SplitLadder((5, 10, 15), ()), 0.0),
        (SplitLadder((5, 10, 15), (1, 2, 4)), 0.0),
        (SplitLadder((5, 10, 15), (2, 4)), 0.5),
    ],
)
def test_adaptive_origins_keep_the_size_of_the_test(ladder: SplitLadder, of_seeds: float) -> None:
    count = sum(rejects(Null(draw, of_seeds), ladder, ladder.looks) for draw in range(STUDIES))
    assert count <= MOST


def test_looks_that_cost_nothing_would_not_keep_it() -> None:
    """The simulation sees what it has to: the same studies, each look at the level of a single one."""
    ladder = SplitLadder((5, 10, 15), (1, 2, 4))
    assert sum(rejects(Null(draw, 0.0), ladder, 1) for draw in range(STUDIES)) > MOST
