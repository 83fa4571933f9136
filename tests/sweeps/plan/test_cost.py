"""The estimate: hand-computed operations, schedules, costs of levels and budgets."""

import itertools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25 import model, trial
from pm25.network_shape import NetworkShape
from pm25.settings import Fusion, ModelSettings, TrainSettings
from pm25.sources import synthetic
from sweeps.plan import cost
from sweeps.plan.bounds import Bounds, spread
from sweeps.plan.calibration import Calibration, NetworkTime, SplitShape, SplitTime
from sweeps.plan.capacity import Capacity
from sweeps.plan.cost import Estimate
from sweeps.plan.schedule import PlannedTask, wall
from sweeps.plan.speed import CALIBRATED, epochs_of
from sweeps.spec import study_file
from sweeps.spec.design import Arm, Design
from sweeps.state import StudyState
from sweeps.store import search_trials
from tests import worlds
from tests.errors import refuses

STUDY = """\
study: toy
data: {table: panel.parquet}
design:
  variant: [none, latlon, geoclip]
  fusion: [hadamard, concat]
  split: [{kind: random, folds: 3}, {kind: checkerboard, degrees: 16}]
  seed: [0, 1]
model: {width: 4, depth: 1, attention_units: 2}
train: {max_epochs: 5, patience: 30, batch_size: 64, max_windows: 100, max_validation_windows: 10}
"""
ONE_CPU = Capacity(cpus=1, gpus=0, cpu=1, gpu=0)
ONE_GPU = Capacity(cpus=4, gpus=1, cpu=1, gpu=1)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic.synthesize(sites=40, days=40)


@pytest.fixture
def toy(tmp_path: Path, table: pd.DataFrame) -> Callable[..., StudyState]:
    """The state of a study with these overrides."""
    table.to_parquet(tmp_path / "panel.parquet", index=False)
    (tmp_path / "toy.yaml").write_text(STUDY)
    return lambda *overrides: StudyState(str(tmp_path / "toy.yaml"), overrides)


def measured(
    state: StudyState, step_s: float = 1.0, scored_s: float = 0.0, fixed_s: float = 0.0, device: Any = "cpu"
) -> Calibration:
    """A calibration in which every shape of the study is equally fast."""
    cells = [*state.cells.values(), *state.waiting]
    for arm in state.searches:
        cells += search_trials.trainings(state.study, arm, {})
    shapes = {NetworkShape.of(cell, state.panel, state.study.encoders.random.dim) for cell in cells}
    cuts = {SplitShape.of(cell, state.panel) for cell in cells}
    return Calibration(
        device=device,
        name="Abacus",
        threads=1,
        shapes=tuple(
            NetworkTime(shape=s, step_s=(step_s,), scored_s=scored_s, memory_mb=100, date="2026-01-01")
            for s in shapes
        ),
        cuts=tuple(SplitTime(cut=cut, fixed_s=fixed_s, date="2026-01-01") for cut in cuts),
    )


def of(
    state: StudyState, capacity: Capacity = ONE_CPU, calibration: Calibration | None = None, **records: Any
) -> Estimate:
    return Estimate(state, records, state.split_indices(), capacity, calibration)


def done(state: StudyState, key: str, seconds: float, epochs: int = 5, **more: Any) -> dict[str, Any]:
    """A record as `sweeps.engine.worker` makes it, as far as an estimate looks."""
    place = {"device": platform.machine(), "threads": 1}
    return worlds.record(key, seconds=seconds, counts={"epochs": epochs}) | place | more


# Operations and parameters


def shape(**other: Any) -> NetworkShape:
    tiny = {
        "channels": 3,
        "window": 2,
        "units": (1,),
        "attention_units": 2,
        "fusion": None,
        "embedding_dim": 0,
        "projection": None,
        "masked": False,
        "batch_size": 8,
    }
    return NetworkShape(**(tiny | other))


def test_operations_of_a_tiny_network() -> None:
    # Products: 2 days x 2 directions x 4 gates of 1 unit x (3 inputs + 1 state) = 64; attention over
    # 2 features: 2 days x 2x2 for W h_s, 2 days x 2 for the scores, 2 days x 2 for the context = 16, its
    # vector 4 x 2 = 8; the output 2. A multiply and an add each.
    assert shape().flops == 2 * (64 + 16 + 8 + 2)
    # The place of 5 values onto 2 units, and the Dense(2) after the product, or after 2 + 2 side by side.
    assert shape(fusion="hadamard", embedding_dim=5).flops == 2 * (90 + 10 + 4)
    assert shape(fusion="concat", embedding_dim=5).flops == 2 * (90 + 10 + 8)
    # A second layer of 3 units per direction: 2 inputs a day; attention over 6 features.
    two = 2 * 2 * 4 * (1 * (3 + 1) + 3 * (2 + 3)) + (2 * 36 + 2 * 6 + 2 * 6) + 12 * 2 + 2
    assert shape(units=(1, 3)).flops == 2 * two


@pytest.mark.parametrize("fusion", [None, *get_args(Fusion)])
@pytest.mark.parametrize("projection", [None, "norm_tanh"])
def test_parameters_are_the_networks(fusion: Fusion | None, projection: Any) -> None:
    settings = ModelSettings(width=6, depth=2, attention_units=5, projection=projection if fusion else None)
    dim = 7 if fusion else 0
    network = model.build(4, settings, fusion, dim)
    made = shape(
        channels=4,
        units=settings.units,
        attention_units=5,
        fusion=fusion,
        embedding_dim=dim,
        projection=settings.projection,
    )
    assert made.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_a_shape_is_what_the_network_is_fed(toy: Callable[..., StudyState]) -> None:
    more = [
        "design.head=[plain, matched]",
        "neighbours={k: 3, distance: true}",
        "design.variant=[none, sincos, geoclip]",
    ]
    state = toy(*more)
    for cell in state.study.cells():
        given = None
        if cell.encoder:
            given = 0.5 * pd.DataFrame(1.0, index=range(40), columns=range(512)).to_numpy()
        made = trial.prepare(cell, state.panel, embedding=given)
        found = NetworkShape.of(cell, state.panel, state.study.encoders.random.dim)
        assert (found.channels, found.embedding_dim) == (made.inputs.width, made.inputs.embedding_dim)
        assert found.parameters == sum(parameter.numel() for parameter in made.model.parameters())


def test_what_changes_no_speed_is_no_shape(toy: Callable[..., StudyState]) -> None:
    plain, other = (
        toy(f"train.learning_rate={rate}", f"model.dropout={drop}") for rate, drop in ((0.1, 0), (0.2, 0.5))
    )
    shapes = [{of(state).speeds.shape(cell) for cell in state.cells.values()} for state in (plain, other)]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 4


# Samples and epochs


SEARCH = (
    "search={trials: 3, split: [{kind: random, folds: 3, fold: 0}, "
    "{kind: checkerboard, degrees: 16, fold: 1, inner: {kind: checkerboard, degrees: 8}}], "
    "space: {model.width: {int: [2, 8], step: 2}, train.learning_rate: {float: [0.001, 0.1], log: true}}}"
)


def test_samples_are_those_of_the_trial(toy: Callable[..., StudyState]) -> None:
    state = toy(SEARCH, "train.max_windows=150")
    arm = Arm("none", None)
    cells = [*state.study.cells(), *search_trials.trainings(state.study, arm, {})]
    assert sum(cell.tuning is not None for cell in cells) == 2
    whole = of(state)
    for cell in cells:
        if cell.variant == "none":
            made = trial.prepare(cell, state.panel)
            scored = [len(flat) for flat in made.scored.values()]
            kept = 0 if cell.tuning else sum(scored[1:])
            expected = (len(made.train), len(made.validation), sum(scored), kept)
            assert whole.speeds.samples(cell) == expected, cell.label


def test_epochs_lie_between_patience_and_the_last() -> None:
    assert epochs_of(TrainSettings(max_epochs=100, patience=30), []) == (31, 65.5, 100)
    assert epochs_of(TrainSettings(max_epochs=8, patience=30), []) == (8, 8, 8)
    assert epochs_of(TrainSettings(max_epochs=31, patience=30), []) == (31, 31, 31)


def test_a_few_recorded_trainings_tell_the_epochs() -> None:
    train = TrainSettings(max_epochs=100, patience=30)
    assert epochs_of(train, [40, 50, 60, 70]) == (31, 65.5, 100)  # four are too few
    low, expected, high = epochs_of(train, [40, 50, 60, 70, 80])
    assert (low, expected, high) == pytest.approx((44, 60, 76))  # tenths between the ordered values


def test_the_spread_of_few_values_is_widened() -> None:
    assert spread([2.0]) == pytest.approx((1.6, 2, 2.5))
    assert spread([1.0, 3.0]) == pytest.approx((0.8, 2, 3.75))
    assert spread([1.0] * 9 + [100.0]) == pytest.approx((1, 10.9, 10.9))  # never below its mean


def test_epochs_are_those_of_the_split_where_it_has_some(toy: Callable[..., StudyState]) -> None:
    state = toy("train.max_epochs=100", "train.patience=3")
    keys: dict[str, list[str]] = {"random": [], "checkerboard-16": []}
    for key, cell in state.cells.items():
        keys[cell.split.label].append(key)
    records = {key: done(state, key, 1.0, epochs=20) for key in keys["random"][:5]}
    records |= {key: done(state, key, 1.0, epochs=40) for key in keys["checkerboard-16"][:4]}
    whole = of(state, **records)
    assert whole.speeds.epochs(state.cells[keys["random"][0]]) == (20, 20, 20)
    # Too few of its own: those of all nine.
    assert whole.speeds.epochs(state.cells[keys["checkerboard-16"][0]]).expected == pytest.approx(260 / 9)


# Schedules


def tasks_of(*arms: str) -> list[PlannedTask]:
    """Cells that are ready (`a`), the trials of an arm (`A?`), and the cells that wait for it (`A!`)."""
    return [
        PlannedTask(Arm(name[0], None), (), {}, trial=name.endswith("?"), waits=name.endswith("!"))  # type: ignore[arg-type]
        for name in arms
    ]


def test_a_free_worker_takes_the_next_cell() -> None:
    cells = tasks_of("a", "a", "a", "a")
    assert wall(cells, [3, 3, 2, 2], 2) == 5
    assert wall(cells, [1, 1, 1, 4], 2) == 5  # in the grid's order, not the longest first
    assert wall(cells, [4, 1, 1, 1], 2) == 4
    assert wall(cells, [3, 3, 2, 2], 1) == 10
    assert wall(cells, [3, 3, 2, 2], 9) == 3
    assert wall([], [], 4) == 0


def test_cells_wait_for_the_search_of_their_arm() -> None:
    # 0-1 A?, 0-2 b; 1-2 A?; 2-3 A?, 2-4 b; 3-4 A!; 4-5 A!
    assert wall(tasks_of("A?", "A?", "A?", "A!", "A!", "b", "b"), [1, 1, 1, 1, 1, 2, 2], 2) == 5
    assert wall(tasks_of("A?", "A!", "A!"), [5, 1, 1], 8) == 6
    # 0-2 A?, 0-1 b, 1-2 b; 2-4 A?; 4-6 A!: one trial at a time beside cells, and never none.
    assert wall(tasks_of("A?", "A?", "A!", "b", "b"), [2, 2, 2, 1, 1], 2) == 6
    assert wall(tasks_of("A!", "A!"), [1, 1], 1) == 2  # its search is over


def test_trials_run_side_by_side_where_no_cell_is_ready() -> None:
    trials = tasks_of("A?", "A?", "A?", "A?")
    assert wall(trials, [1] * 4, 4) == 1
    assert wall(trials, [1] * 4, 4, concurrent=1) == 4
    assert wall(trials, [1] * 4, 4, concurrent=2) == 2
    # Two arms: each keeps one going.
    assert wall(tasks_of("A?", "A?", "B?", "B?"), [1] * 4, 2) == 2


@given(st.lists(st.floats(0, 100), max_size=30), st.integers(1, 6))
def test_a_schedule_is_within_its_bounds(seconds: list[float], slots: int) -> None:
    found = wall(tasks_of(*["a"] * len(seconds)), seconds, slots)
    longest = max(seconds, default=0)
    assert found >= max(sum(seconds) / slots, longest) - 1e-9
    assert found <= sum(seconds) / slots + longest + 1e-9  # Graham's bound


def test_room_for_cells(toy: Callable[..., StudyState]) -> None:
    assert Capacity.of(toy("resources.cpu=2").study, 7, 0).slots == 3
    assert Capacity.of(toy().study, 32, 8).slots == 8
    assert Capacity.of(toy("resources={cpu: 0.1, gpu: 0.1}").study, 4, 3).slots == 30
    assert Capacity.of(toy("resources={cpu: 4, gpu: 0.5}").study, 16, 8).slots == 4
    assert Capacity.of(toy("resources.gpu=0").study, 4, 8).gpu == 0
    with refuses("study file", "resources", "1 GPU", "4 CPU, 0 GPU", "--gpus", "--set resources.gpu=0"):
        Capacity.of(toy("resources.gpu=1").study, 4, 0)


# Speeds


def test_a_calibrated_study_by_hand(toy: Callable[..., StudyState]) -> None:
    state = toy("design.variant=[none, latlon]", "design.split={kind: random, folds: 3}", "design.seed=0")
    whole = of(state, calibration=measured(state, step_s=2.0, scored_s=0.5, fixed_s=3.0))
    tested = [len(parts.test) for parts in state.split_indices().values()]
    # 100 windows in steps of 64 are 2 steps; 10 are scored after each of 5 epochs and once again at the end.
    each = [5 * (2 * 2.0 + 10 * 0.5) + (10 + n) * 0.5 + 3.0 for n in tested]
    total = 2 * sum(each) / 3600
    assert whole.worker_hours() == pytest.approx(tuple(total * margin for margin in CALIBRATED))
    assert whole.wall_hours() == pytest.approx(whole.worker_hours())
    assert whole.sources() == {"calibrated on Abacus, 1 thread, 2026-01-01": 6}
    assert whole.memory_mb == 100
    two = of(state, ONE_CPU._replace(cpus=2), measured(state, 2.0, 0.5, 3.0))
    assert two.wall_hours() == pytest.approx(tuple(sum(each) / 3600 * margin for margin in CALIBRATED))


def test_the_range_holds_every_epoch_that_was_timed(toy: Callable[..., StudyState]) -> None:
    state = toy("design.seed=0")
    plain = measured(state)
    timed = tuple(t.model_copy(update={"step_s": (2.0, 1.0, 6.0)}) for t in plain.shapes)
    whole = of(state, calibration=plain.model_copy(update={"shapes": timed}))
    speed = whole.speeds.speed(whole.tasks[0].cells[0])
    assert speed is not None
    assert speed.step == pytest.approx((CALIBRATED.low * 1, 1, CALIBRATED.high * 6))


def test_without_a_speed_nothing_is_said(toy: Callable[..., StudyState]) -> None:
    state = toy()
    whole = of(state)
    assert whole.worker_hours() is whole.wall_hours() is None
    assert whole.sources() == {}
    assert {level.worker_hours for level in whole.levels()} == {None}
    content = whole.content(0)
    assert content["wall_hours"] is content["cpu_hours"] is content["memory_mb"] is None
    shapes, cuts = whole.uncalibrated()
    assert (len(shapes), len(cuts)) == (5, 2)  # one shape in the other precision too
    with refuses("--budget", "", "--no-calibrate"):
        whole.largest(1)


def test_a_record_tells_the_cells_like_it(toy: Callable[..., StudyState]) -> None:
    state = toy("design.variant=none")
    (first, cell), *_ = state.cells.items()
    whole = of(state, **{first: done(state, first, 12.0)})
    assert [*whole.sources()] == [f"measured in done cells on {platform.machine()}"]
    assert whole.uncalibrated() == ({}, {})
    alike = [job for job in whole.tasks if (job.cells[0].split, job.cells[0].fold) == (cell.split, cell.fold)]
    assert [job.cells[0].seed for job in alike] == [1]
    seconds = whole._task_seconds[whole.tasks.index(alike[0])]
    assert seconds == pytest.approx((0.8 * 12, 12, 1.25 * 12))


def test_a_record_goes_before_a_calibration_and_its_split_before_others(
    toy: Callable[..., StudyState],
) -> None:
    state = toy("design.variant=none")
    by_label = {cell.split.label: key for key, cell in reversed(state.cells.items())}
    records = {
        key: done(state, key, seconds) for key, seconds in zip(by_label.values(), (7.0, 30.0), strict=True)
    }
    whole = of(state, calibration=measured(state), **records)
    for key, record in records.items():
        cell = state.cells[key]
        n, speed = whole.speeds.samples(cell), whole.speeds.speed(cell)
        assert speed is not None
        took = 5 * (2 * speed.step.expected + n.validation * speed.scored.expected)
        assert took + n.scored * speed.scored.expected == pytest.approx(record["seconds"])


@pytest.mark.parametrize("other", [{"device": "NVIDIA H200"}, {"threads": 4}])
def test_a_record_of_another_device_tells_no_speed(
    toy: Callable[..., StudyState], other: dict[str, Any]
) -> None:
    state = toy("design.variant=none")
    first = next(iter(state.cells))
    assert of(state, **{first: done(state, first, 12.0, **other)}).worker_hours() is None


def test_records_of_a_gpu_plan_gpus(toy: Callable[..., StudyState]) -> None:
    state = toy("design.variant=none")
    first = next(iter(state.cells))
    whole = of(state, ONE_GPU, **{first: done(state, first, 12.0, device="NVIDIA H200")})
    assert [*whole.sources()] == ["measured in done cells on NVIDIA H200"]
    assert "NOT measured" in next(iter(of(state, ONE_GPU, **{first: done(state, first, 12.0)}).sources()))


def test_gpus_that_nobody_measured_by_operation_counts(toy: Callable[..., StudyState]) -> None:
    state = toy("design.variant=none")
    whole = of(state, ONE_GPU)
    cell = whole.tasks[0].cells[0]
    flops, speed = whole.speeds.shape(cell).flops, whole.speeds.speed(cell)
    assert speed is not None
    # One layer in two directions over 21 days; forward, and twice that backward; 64 windows a step.
    for step, rate, launch in zip(
        speed.step, (15e12, math.sqrt(30) * 1e12, 2e12), (5e-6, 15e-6, 40e-6), strict=True
    ):
        assert step == pytest.approx(3 * (64 * flops / rate + 2 * 21 * launch))
    assert speed.source.startswith("NOT measured: operation counts at 2 to 15 TFLOP/s")
    low, expected, high = whole.worker_hours() or ()
    assert 0 < low < expected < high
    assert whole.content(0)["gpu_hours"] == whole.content(0)["cpu_hours"]


def test_references_use_no_gpu(toy: Callable[..., StudyState]) -> None:
    plans = [
        of(toy("design.variant=[none, latlon]", f"references={names}"), ONE_GPU).content(0)
        for names in ("[]", "[idw, climatology]")
    ]
    assert plans[0]["gpu_hours"] == plans[1]["gpu_hours"]
    assert plans[0]["cpu_hours"]["low"] < plans[1]["cpu_hours"]["low"]
    hours = {level["level"]: level["hours"] for level in plans[1]["without"]["levels"]}
    assert hours["idw"] == {"low": 0, "expected": 0, "high": 0}
    assert hours["none"]["low"] > 0


def test_cells_that_share_a_gpu_may_wait_for_each_other(toy: Callable[..., StudyState]) -> None:
    state = toy("design.variant=none")
    calibration = measured(state, device="cuda")
    alone = of(state, ONE_GPU, calibration).worker_hours()
    shared = of(state, ONE_GPU._replace(gpu=0.25), calibration).worker_hours()
    assert alone is not None
    assert shared == pytest.approx((alone.low, 2 * alone.expected, 4 * alone.high))


# Searches


def test_a_search_by_hand(toy: Callable[..., StudyState]) -> None:
    state = toy(SEARCH, "design.variant=none", "design.seed=0", "design.split={kind: random, folds: 3}")
    whole = of(state, calibration=measured(state))
    assert [job.trial for job in whole.tasks] == [True] * 3 + [False] * 3
    assert all(job.waits for job in whole.tasks[3:])
    space = [shape_of_width(whole, width) for width in (2, 8)]
    low, high = (s.flops / whole.speeds.shape(whole.tasks[0].cells[0]).flops for s in space)
    # Two placements, each 2 steps of a second in 5 epochs; a grid cell is one.
    work = Bounds(low * CALIBRATED.low, math.sqrt(low * high), high * CALIBRATED.high)
    assert whole._task_seconds[0] == pytest.approx(work.times(20))
    assert whole._task_seconds[3] == pytest.approx(work.times(10))
    assert whole.content(0)["search_trials"] == 3


def shape_of_width(whole: Estimate, width: int) -> NetworkShape:
    cell = whole.tasks[0].cells[0]
    return whole.speeds.shape(
        cell.model_copy(update={"model": cell.model.model_copy(update={"width": width})})
    )


def test_pruning_and_the_budget_of_epochs_shorten_trials_alone(toy: Callable[..., StudyState]) -> None:
    flat = SEARCH.replace("model.width: {int: [2, 8], step: 2}, ", "")
    one = flat.replace(
        ", {kind: checkerboard, degrees: 16, fold: 1, inner: {kind: checkerboard, degrees: 8}}",
        "",
    )
    base = ("design.variant=none", "design.seed=0")

    def seconds(declared: str) -> list[tuple[float, ...]]:
        state = toy(declared, *base)
        whole = of(state, calibration=measured(state))
        return [
            tuple(s.times(Bounds(*(1 / m for m in CALIBRATED))))
            for s in (whole._task_seconds[0], whole._task_seconds[-1])
            if s
        ]

    assert seconds(one) == [pytest.approx((10, 10, 10))] * 2
    pruned, cell = seconds(one.replace("trials: 3", "trials: 3, pruner: {kind: asha, first_epoch: 1}"))
    assert pruned == pytest.approx((2, 6, 10))  # 1, 3 and 5 epochs of 2 steps
    assert cell == pytest.approx((10, 10, 10))
    # 6 epochs for 3 trials of one training each.
    assert seconds(one.replace("trials: 3", "trials: 3, epochs: 6")) == [pytest.approx((4, 4, 4)), cell]


# Levels


def test_what_a_level_costs_by_hand(toy: Callable[..., StudyState]) -> None:
    state = toy()
    whole = of(state, calibration=measured(state, step_s=360.0))  # 2 steps x 5 epochs: an hour a cell
    found = {(level.factor, level.level): (level.tasks, level.worker_hours) for level in whole.levels()}
    counts = {
        ("variant", "none"): 10,  # 5 folds of both splits, 2 seeds
        ("variant", "latlon"): 10,
        ("variant", "geoclip"): 20,
        ("fusion", "hadamard"): 10,
        ("fusion", "concat"): 10,
        ("split", "random"): 24,
        ("split", "checkerboard-16"): 16,
        ("fold", "0"): 16,
        ("fold", "1"): 16,
        ("fold", "2"): 8,
        ("seed", "0"): 20,
        ("seed", "1"): 20,
    }
    assert {name: jobs for name, (jobs, _) in found.items()} == counts
    for jobs, hours in found.values():
        assert hours == pytest.approx(tuple(jobs * margin for margin in CALIBRATED))
    # With every record there, nothing goes without it.
    records = {key: done(state, key, 1.0) for key in state.cells}
    assert {level.tasks for level in of(state, **records).levels()} == {0}


def test_levels_of_the_matched_head_and_of_a_search(toy: Callable[..., StudyState]) -> None:
    state = toy(SEARCH, "design.head=[plain, matched]")
    found = {(level.factor, level.level): level.tasks for level in of(state).levels()}
    # Ten cells and three trials of each arm: none, two with a matched head, latlon, two of geoclip.
    assert found["variant", "none"] == 39
    assert found["head", "matched"] == found["variant", "geoclip"] == 26
    assert found["head", "plain"] == 13
    assert found["fusion", "concat"] == 26
    assert found["seed", "0"] == 30  # no trial has a seed of the grid


def test_cells_with_a_record_cost_nothing(toy: Callable[..., StudyState]) -> None:
    state = toy()
    first, second, *_ = state.cells
    records = {first: done(state, first, 1.0), second: {"key": second, "state": "failed"}}
    assert len(of(state, **records).tasks) == len(of(state).tasks) - 2


# Disk


def test_disk_by_hand(toy: Callable[..., StudyState]) -> None:
    design = ("design.variant=none", "design.split={kind: random, folds: 3}", "design.seed=0")
    state = toy(*design, "keep_weights=false")
    tested = sum(len(parts.test) for parts in state.split_indices().values())
    whole = of(state)
    assert whole.disk_mb(0).expected == pytest.approx((8 * tested + 3 * 6e3) / 1e6)
    weights = 4 * whole.speeds.shape(whole.tasks[0].cells[0]).parameters
    for keep, n in (("true", 3), ("winners", 1), ("folds", 3)):
        found = of(toy(*design, f"keep_weights={keep}")).disk_mb(0).expected
        assert found == pytest.approx((8 * tested + 3 * 6e3 + n * weights) / 1e6)


def test_disk_of_winners_weights_counts_every_arm_once(toy: Callable[..., StudyState]) -> None:
    splits = "design.split=[{kind: checkerboard, degrees: 30}, {kind: random, folds: 2}]"
    design = ("design.variant=[none, latlon]", splits, "design.seed=0")
    state, without = toy(*design), toy(*design, "keep_weights=false")
    sizes = {job.arm: 4 * of(state).speeds.shape(job.cells[0]).parameters for job in of(state).tasks}
    assert len(sizes) == 2
    more = of(state).disk_mb(0).expected - of(without).disk_mb(0).expected
    assert more == pytest.approx(sum(sizes.values()) / 1e6)
    # An arm whose candidate is done has its weights in what is stored; other splits' cells never have any.
    for fold_of, left in (("random", sizes[Arm("latlon", None)]), ("checkerboard-30", sum(sizes.values()))):
        key = next(
            key for key, cell in state.cells.items() if cell.variant == "none" and cell.split.label == fold_of
        )
        record = {key: done(state, key, 1.0)}
        stored = 100_000
        kept = sum(sizes.values()) - left
        more = of(state, **record).disk_mb(stored + kept).expected
        assert more - of(without, **record).disk_mb(stored).expected == pytest.approx(left / 1e6)


def test_disk_by_what_the_done_cells_take(toy: Callable[..., StudyState]) -> None:
    design = ("design.variant=none", "design.split={kind: random, folds: 3}", "design.seed=0")
    state = toy(*design, "keep_weights=false")
    first = next(iter(state.cells))
    sizes = [len(parts.test) for parts in state.split_indices().values()]
    whole = of(state, **{first: done(state, first, 1.0)})
    expected = 1000 / sizes[0] * sum(sizes[1:]) / 1e6
    assert whole.disk_mb(1000) == pytest.approx((0.8 * expected, expected, 1.25 * expected))


# Budgets


def test_the_largest_subset_is_that_of_brute_force(toy: Callable[..., StudyState]) -> None:
    state = toy("design.seed=[3, 1, 2]")
    design = state.study.design
    capacity = ONE_CPU._replace(cpus=3)
    some = {key: done(state, key, 1.0) for key in [*state.cells][:7]}
    for records, hours in itertools.product(({}, some), (0.5, 2, 4, 6.5, 9, 13, 17, 25)):
        whole = of(state, capacity, measured(state, step_s=360.0), **records)
        # Done cells tell a speed too, which is not what is looked at here.
        whole._task_seconds = [Bounds(0.5, 1 + 0.1 * (i % 3), 3).times(3600) for i in range(len(whole.tasks))]
        fitting = []
        for seeds, folds in itertools.product((1, 2, 3), (1, 2, 3)):
            chosen = [
                (job, s.expected)
                for job, s in zip(whole.tasks, whole._task_seconds, strict=True)
                if s is not None
                and job.cells[0].seed in design.seed[:seeds]
                and job.cells[0].fold in [*range(folds)]
            ]
            if wall([job for job, _ in chosen], [s for _, s in chosen], capacity.slots) <= hours * 3600:
                fitting.append(4 * seeds * (min(folds, 3) + min(folds, 2)))
        found = whole.largest(hours)
        assert (found.cells if found else 0) == max(fitting, default=0), hours
        if found is not None:
            assert found.wall_hours.expected <= hours


def test_of_equal_subsets_the_even_one_is_taken(toy: Callable[..., StudyState]) -> None:
    state = toy("design.seed=[0, 1, 2, 3]", "design.split={kind: random, folds: 4}", "design.variant=none")
    whole = of(state, calibration=measured(state, step_s=360.0))
    found = whole.largest(4.5)
    assert found is not None
    assert (found.seeds, found.folds, found.cells) == (2, 2, 4)  # and not one seed on four folds


def test_what_is_done_is_free(toy: Callable[..., StudyState]) -> None:
    state = toy("design.variant=none", "design.split={kind: random, folds: 3}")
    keys = {(cell.seed, cell.fold): key for key, cell in state.cells.items()}
    first = {keys[0, fold]: done(state, keys[0, fold], 1.0) for fold in range(3)}
    whole = of(state, **first)
    whole._task_seconds = [Bounds(1, 1, 1).times(3600)] * 3
    found = whole.largest(2)
    assert found is not None
    assert (found.seeds, found.folds, found.cells, found.wall_hours.expected) == (2, 2, 4, 2)


def test_the_search_is_part_of_every_subset(toy: Callable[..., StudyState]) -> None:
    state = toy(SEARCH, "design.variant=none", "design.split={kind: random, folds: 3}")
    whole = of(state, calibration=measured(state))
    whole._task_seconds = [Bounds(1, 1, 1).times(3600)] * len(whole.tasks)
    assert [whole.subset(1, folds).wall_hours.expected for folds in (1, 2, 3)] == [4, 5, 6]  # 3 trials each


@pytest.mark.parametrize(("seeds", "folds"), [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3)])
def test_the_overrides_make_the_subset(
    toy: Callable[..., StudyState], seeds: int, folds: int, tmp_path: Path
) -> None:
    state = toy("design.seed=[7, 5]")
    whole = of(state, calibration=measured(state))
    subset = whole.subset(seeds, folds)
    overrides = whole.overrides(subset)
    assert len(overrides) == (seeds < 2) + (folds < 3)
    smaller = toy("design.seed=[7, 5]", *overrides)
    assert len(smaller.cells) == subset.cells
    assert {*smaller.cells} == {
        key for key, cell in state.cells.items() if cell.seed in (7, 5)[:seeds] and cell.fold < folds
    }


def test_a_split_of_any_kind_can_be_typed_again(tmp_path: Path) -> None:
    splits = [
        {"kind": "random", "folds": 4, "fold": [3, 1]},
        {"kind": "spatial", "buffer_km": 50.0},
        {"kind": "temporal", "test_from": "2021-12-01"},
        {"kind": "checkerboard", "degrees": 8, "origin": [1.5, 2], "seed": 3},
        {"kind": "clusters", "folds": 2},
    ]
    state = StudyState(
        "demo", ["data.synthetic={sites: 40, days: 60}", f"storage={tmp_path}", "design.variant=none"]
    )
    declared = state.study.model_copy(
        update={"design": Design(variant=("none",), split=splits, seed=(0,))}  # type: ignore[arg-type]
    )
    state.study = declared
    whole = Estimate.__new__(Estimate)
    whole._study, whole._seeds = declared, (0,)
    (text,) = whole.overrides(cost.Subset(1, 1, 5, Bounds(0, 0, 0), {}))
    again = study_file.load("demo", [text])
    assert [factor.split for factor in again.design.split] == [
        factor.split for factor in declared.design.split
    ]
    assert [factor.folds for factor in again.design.split] == [(3,), (0,), (0,), (0,), (0,)]


def test_the_json_of_a_budget(toy: Callable[..., StudyState]) -> None:
    state = toy()
    whole = of(state, ONE_CPU._replace(cpus=4), measured(state, step_s=360.0))
    assert "budget" not in whole.content(0)
    part = whole.content(0, 5.0)["budget"]
    assert (part["fits"], part["cells"], part["of"]) == ("part", 20, 40)
    assert part["wall_hours"]["expected"] == 5
    everything = whole.content(0, 10.0)["budget"]
    assert (everything["fits"], everything["cells"], everything["set"]) == ("all", 40, [])
    none = whole.content(0, 1.0)["budget"]
    assert (none["fits"], none["cells"], none["seeds"], none["folds"]) == ("none", 8, 1, 1)
    dear = {(one["factor"], one["level"]): one["hours"]["expected"] for one in none["without"]}
    assert dear["variant", "geoclip"] == 4
    assert dear["split", "random"] == 4
    assert not {factor for factor, _ in dear} & {"seed", "fold"}  # a round has one of each
