"""How many trainings share a GPU: by hand, and by what was measured, kept and learnt."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from pm25.cell import Cell
from pm25.network_shape import NetworkShape
from sweeps.engine import gpu_packing
from sweeps.engine.cluster import Cluster, Node
from sweeps.engine.gpu_packing import Footprint, GpuShares, Packing, covers
from sweeps.engine.scheduler import Scheduler
from sweeps.state import StudyState
from tests.errors import refuses


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
        assert count == 1 or count * mb * gpu_packing.MARGIN <= device
        assert count * share <= 1  # what Ray would refuse otherwise
        assert share == round(share, 4)


def test_one_network_covers_another_in_everything_or_not() -> None:
    assert covers(LARGE, LARGE)
    assert covers(LARGE, SMALL)
    assert not covers(SMALL, LARGE)
    assert not covers(LARGE, shape(batch_size=512))
    assert not covers(LARGE, shape(masked=True))


STUDY: dict[str, Any] = {
    "study": "toy",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "geoclip"],
        "fusion": "hadamard",
        "split": [{"kind": "random", "folds": 2}],
        "seed": [0, 1],
    },
    "model": {"width": 8, "attention_units": 8},
}
SEARCH: dict[str, Any] = {
    "trials": 3,
    "space": {
        "model.width": {"int": [8, 64], "step": 8},
        "train.batch_size": {"choice": [64, 512, 128]},
        "train.learning_rate": {"float": [0.001, 0.01]},
        "model.depth": {"int": [1, 3]},
    },
    "split": [{"kind": "random", "folds": 2, "fold": 0}],
}


class World:
    """A study on a cluster of two nodes, each with eight CPUs and two GPUs of 16 GB."""

    def __init__(self, folder: Path, gpu_mb: float | None = 16_000, **more: Any) -> None:
        self.measured: list[Cell] = []
        self.said: list[str] = []
        self.folder, self.gpu_mb = folder, gpu_mb
        (folder / "toy.yaml").write_text(yaml.safe_dump({**STUDY, **more}))
        self.state = StudyState(str(folder / "toy.yaml"))

    def shares(self) -> GpuShares:
        there = [Node(name, name, {"CPU": 8.0, "GPU": 2.0}) for name in ("a", "b")]
        cluster = Cluster(lambda: there, lambda *_: [], self.said.append, joined=True)
        cluster.gpu_mb = self.gpu_mb
        made = GpuShares(self.state.study, self.state.panel, cluster)
        made.measure(Scheduler(self.state), self.state.store, self._footprints, self.said.append)
        return made

    def _footprints(self, kinds: Mapping[NetworkShape, Cell]) -> Iterable[Footprint]:
        for found, cell in kinds.items():
            self.measured.append(cell)
            yield Footprint(shape=found, memory_mb=6000, context_mb=400, gpu="H200", gpu_mb=140_000)

    def gpu(self, shares: GpuShares, cell: Cell) -> float:
        return shares.gpu(SimpleNamespace(cells=(cell,)))  # type: ignore[arg-type]


def test_each_shape_is_measured_once_and_what_was_found_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    shares = world.shares()
    assert [cell.variant for cell in world.measured] == ["none", "geoclip"]
    # 6,000 MB and their margin: two to the smallest GPU of 16 GB, not to the one that was measured on.
    assert {world.gpu(shares, cell) for cell in world.state.grid} == {0.5}
    assert world.said[0] == "measuring the GPU memory of 2 shapes of network, once"
    assert world.said[1] == "2 shapes hold 6.0 to 6.0 GB of a GPU's 16: 2 to a GPU"
    assert world.shares().whole == 1.0
    assert len(world.measured) == 2
    file = tmp_path / "results" / "toy" / gpu_packing.FILE
    kept = json.loads(file.read_text())
    assert [found["gpu"] for found in kept["footprints"]] == ["H200"] * 2
    file.write_text('{"footprints": 3}')
    with refuses("footprints.json", "", "delete the file"):
        world.shares()


def test_few_cells_are_not_heaped_on_one_gpu(tmp_path: Path) -> None:
    world = World(tmp_path, design={**STUDY["design"], "seed": 0, "variant": ["none"]})  # 2 cells, 4 GPUs
    assert world.gpu(world.shares(), world.state.grid[0]) == 1.0


def test_of_an_arm_that_is_searched_the_largest_network_is_measured(tmp_path: Path) -> None:
    world = World(tmp_path, search=SEARCH)
    world.shares()
    assert [(c.model.width, c.model.depth, c.train.batch_size) for c in world.measured] == [(64, 3, 512)] * 2


def test_what_the_study_says_is_not_measured(tmp_path: Path) -> None:
    for gpu in (0.25, 0, 2):
        world = World(tmp_path, resources={"gpu": gpu})
        shares = world.shares()
        assert world.gpu(shares, world.state.grid[0]) == shares.whole == gpu
    assert not world.measured
