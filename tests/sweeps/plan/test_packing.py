"""How many trainings share a GPU: by hand, by what was measured, and in a plan."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm25.network_shape import NetworkShape
from sweeps.plan import calibration, packing
from sweeps.plan.calibration import Calibration, Device, NetworkTime
from sweeps.plan.capacity import Capacity
from sweeps.plan.packing import Footprint, Packing, PackingPlan, covers, plan_packing
from sweeps.state import StudyState


def shape(units: tuple[int, ...] = (32,), **more: Any) -> NetworkShape:
    same = {"channels": 12, "window": 21, "attention_units": 32, "fusion": None, "embedding_dim": 0}
    return NetworkShape(
        **same | {"projection": None, "masked": False, "batch_size": 256, "units": units} | more
    )


SMALL, LARGE = shape((32,)), shape((256, 128))


def test_as_many_as_the_memory_holds_with_its_margin() -> None:
    # 97 % of 16 GB are 15.52; 2 GB with 15 % are 2.3: six of them, which are 13.8.
    assert Packing(16_000, 99, {SMALL: 2000}).share([SMALL]) == 0.1666
    assert Packing(16_000, 4, {SMALL: 2000}).share([SMALL]) == 0.25  # the CPUs feed no more
    assert Packing(16_000, 99, {SMALL: 20_000}).share([SMALL]) == 1.0


def test_trainings_side_by_side_in_one_worker_need_as_much_together() -> None:
    assert Packing(16_000, 99, {SMALL: 2000}).share([SMALL, SMALL]) == 0.3333


def test_shapes_of_about_the_same_need_take_equal_shares() -> None:
    found = Packing(16_000, 99, {SMALL: 2000, LARGE: 3000})  # six, and four
    assert (found.share([SMALL]), found.share([LARGE])) == (0.25, 0.25)
    found = Packing(16_000, 99, {SMALL: 1000, LARGE: 3000})  # thirteen, and four
    assert (found.share([SMALL]), found.share([LARGE])) == (0.0769, 0.25)


def test_what_was_not_measured_takes_what_a_larger_one_takes_or_a_whole_gpu() -> None:
    found = Packing(16_000, 99, {LARGE: 3000})
    assert found.share([shape((128, 128))]) == 0.25
    assert found.share([shape((256, 129))]) == 1.0
    assert found.share([shape(fusion="concat", embedding_dim=512)]) == 1.0


def test_a_training_tells_what_its_shape_holds() -> None:
    """PyTorch's own part is recorded; what CUDA holds beside it was measured on a GPU of its own."""
    found = Packing(16_000, 99, {LARGE: 3000}, context_mb=500)
    found.learn([SMALL], {"gpu_memory_mb": 500.0})
    assert found.share([SMALL]) == 0.0769  # 1,000 MB: 13 of them
    found.learn([SMALL], {"gpu_memory_mb": 1300.0})
    found.learn([SMALL], {"gpu_memory_mb": 600.0})
    assert found.share([SMALL]) == 0.25  # the most that was seen, 1,800 MB: seven, at the level of four
    found.learn([SMALL], {})  # on a CPU
    found.learn([shape((16,)), shape((16,))], {"gpu_memory_mb": 700.0})
    assert found.share([shape((16,))]) == 0.0909  # no more than both together


@given(
    device=st.floats(1e3, 2e5),
    most=st.integers(1, 64),
    held=st.lists(st.floats(50, 3e5), min_size=1, max_size=8, unique=True),
)
def test_what_shares_a_gpu_fits_into_it(device: float, most: int, held: list[float]) -> None:
    shapes = {shape((i + 1,)): mb for i, mb in enumerate(held)}
    found = Packing(device, most, shapes)
    for one, mb in shapes.items():
        share = found.share([one])
        count = math.floor(1 / share)
        assert 1 <= count <= most
        assert count == 1 or count * mb * packing.MARGIN <= device
        assert count * share <= 1  # what Ray would refuse otherwise
        assert share == round(share, 4)


def test_one_network_covers_another_in_everything_or_not() -> None:
    assert covers(LARGE, LARGE)
    assert covers(LARGE, SMALL)
    assert not covers(SMALL, LARGE)
    assert not covers(LARGE, shape(batch_size=512))
    assert not covers(LARGE, shape(masked=True))
    assert covers(LARGE, shape(precision="bf16"))
    assert not covers(shape((256, 128), precision="bf16"), SMALL)


STUDY = """
study: toy
data: {table: panel.parquet, channels: [elev_m]}
storage: results
design:
  variant: [none, geoclip]
  fusion: hadamard
  split: {kind: random, folds: 5}
  seed: [0, 1]
model: {width: 4, depth: 1, attention_units: 2}
"""
FOUR_GPUS = Capacity(cpus=32, gpus=4, cpu=1, gpu=1)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudyState]:
    """The state of a study of 20 cells with these overrides, on a machine without a GPU."""
    from pm25.sources import synthetic

    monkeypatch.setattr(calibration, "devices", list)
    table: pd.DataFrame = synthetic.synthesize(sites=40, days=40)
    table.to_parquet(tmp_path / "panel.parquet", index=False)
    (tmp_path / "toy.yaml").write_text(STUDY)
    return lambda *overrides: StudyState(str(tmp_path / "toy.yaml"), overrides)


def shapes_of(state: StudyState) -> list[NetworkShape]:
    return [*dict.fromkeys(NetworkShape.of(cell, state.panel, 512) for cell in state.grid)]


def planned(state: StudyState, capacity: Capacity = FOUR_GPUS, known: Any = None, **more: Any) -> PackingPlan:
    found = plan_packing(state, more.get("records", {}), capacity, shapes_of(state), known)
    assert found is not None
    return found


def calibrated(state: StudyState, memory_mb: float) -> Calibration:
    times = [
        NetworkTime(shape=one, step_s=(1.0,), scored_s=0.0, memory_mb=memory_mb, date="2026-01-01")
        for one in shapes_of(state)
    ]
    return Calibration(device="cuda", name="Abacus", threads=1, shapes=tuple(times))


def test_a_plan_is_limited_by_memory_cpus_or_tasks(toy: Callable[..., StudyState]) -> None:
    state = toy()
    # 97 % of 80 GB are 77.6; 20 GB with 15 % are 23: three.
    found = planned(state, known=calibrated(state, 20_000))
    assert (found.per_gpu, found.bound, found.source) == (3, "memory", "GPUs of 80 GB assumed; calibrated")
    assert planned(state, known=calibrated(state, 200_000)).per_gpu == 1
    few = FOUR_GPUS._replace(cpus=17)  # 4.25 for each GPU
    assert planned(state, few, calibrated(state, 500))[0::4] == (4, "CPUs")
    assert planned(state, few._replace(cpu=2), calibrated(state, 500))[0::4] == (2, "CPUs")
    # 20 cells and 4 GPUs: with more than five on one, another would have none.
    assert planned(state, known=calibrated(state, 500))[0::4] == (5, "tasks")
    recorded = dict.fromkeys([*state.cells][:11])
    assert planned(state, known=calibrated(state, 500), records=recorded)[0::4] == (3, "tasks")


def test_footprints_of_a_run_come_before_a_calibration(
    toy: Callable[..., StudyState], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = toy()
    state.store.prepare()
    own = [
        Footprint(shape=one, memory_mb=6000, context_mb=400, gpu="H200", gpu_mb=16_000)
        for one in shapes_of(state)
    ]
    packing.write(state.store, own)
    found = planned(state, known=calibrated(state, 500))
    assert found == PackingPlan(2, 6000, 16_000, "measured by a run", "memory")
    monkeypatch.setattr(calibration, "devices", lambda: [Device("small", 8_000)])
    assert planned(state)[:3] == (1, 6000, 8_000)


def test_without_any_measurement_the_plan_says_so(toy: Callable[..., StudyState]) -> None:
    found = planned(toy())
    assert found.source == "GPUs of 80 GB assumed; NOT measured: estimated memory"
    assert packing.CONTEXT_MB < found.memory_mb < packing.CONTEXT_MB + 20


def test_the_estimated_memory_by_hand() -> None:
    one = shape((2,), channels=3, window=2, batch_size=8)
    panel: Any = type("Panel", (), {"features": pd.Series(range(10))})
    # 8 windows of 2 days, each with 3 inputs and 24 values of the layer; 1,024 of 3 + 4 values, twice.
    values = 10 + 5 * one.parameters + 8 * 2 * 27 + 2 * 1024 * 2 * 7
    assert packing.estimated_memory_mb(one, panel) == pytest.approx(packing.CONTEXT_MB + 4 * values / 1e6)


def test_nothing_is_packed_that_shares_no_gpu(toy: Callable[..., StudyState]) -> None:
    for state, capacity, records in (
        (toy("resources.gpu=0.5"), FOUR_GPUS, {}),
        (toy(), FOUR_GPUS._replace(gpus=0), {}),
        (toy(), FOUR_GPUS, dict.fromkeys(toy().cells)),
    ):
        assert plan_packing(state, records, capacity, shapes_of(state), None) is None


@given(st.integers(1, 200))
def test_the_share_of_a_packed_cell_is_one_that_ray_can_count(per_gpu: int) -> None:
    packed = Capacity(cpus=1e4, gpus=3, cpu=1, gpu=1).packed(per_gpu)
    assert packed.gpu == round(packed.gpu, 4)
    assert packed.gpu * per_gpu <= 1
    assert packed.slots >= 3 * per_gpu


def rated(state: StudyState, *rates: dict[int, float]) -> list[Footprint]:
    """Footprints of the study's two shapes with these rates."""
    own: Any = {"memory_mb": 6000, "context_mb": 400, "gpu": "H200", "gpu_mb": 80_000}
    pairs = zip(shapes_of(state), rates, strict=True)
    return [Footprint(shape=one, rates=rate, **own) for one, rate in pairs]


def test_a_stack_is_used_where_it_is_faster_than_processes_are_expected_to_be(
    toy: Callable[..., StudyState],
) -> None:
    state = toy()
    found = rated(state, {1: 100.0, 4: 390.0, 8: 400.0}, {})
    assert [one.stacked for one in found] == [(8, 4.0), (1, 1.0)]
    assert [one.stack_size(15) for one in found] == [8, 1]
    assert [one.stack_size(16) for one in found] == [1, 1]  # 16 processes are expected to be 4 times as fast


def test_a_plan_has_stacks_if_every_shape_is_faster_in_stacks(toy: Callable[..., StudyState]) -> None:
    state = toy()
    state.store.prepare()
    packing.write(state.store, rated(state, {1: 100.0, 8: 700.0}, {1: 100.0, 4: 300.0}))
    found = planned(state)
    assert found == PackingPlan(1, 6000, 80_000, "measured by a run", "stacks", 4, 3.0)
    packing.write(state.store, rated(state, {1: 100.0, 8: 700.0}, {1: 100.0, 4: 200.0}))
    assert planned(state)[0::4] == (5, "tasks")
