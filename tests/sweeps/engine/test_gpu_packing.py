"""How many trainings of a run share a GPU: by what was measured, kept and learnt."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pm25.cell import Cell
from pm25.network_shape import NetworkShape
from sweeps.engine import measure
from sweeps.engine.cluster import Cluster, Node
from sweeps.engine.gpu_packing import GpuShares
from sweeps.engine.scheduler import Scheduler
from sweeps.plan import packing
from sweeps.plan.packing import Footprint
from sweeps.state import StudyState
from tests.errors import refuses

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
        "train.precision": {"choice": ["bf16", "fp32"]},
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
        self.stacks: dict[str, Any] = {}  # fields of the footprints
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
            own = {"memory_mb": 6000, "context_mb": 400, "gpu": "H200", "gpu_mb": 140_000, **self.stacks}
            yield Footprint(shape=found, **own)

    def gpu(self, shares: GpuShares, cell: Cell) -> float:
        return shares.gpu(SimpleNamespace(cells=(cell,), also=()))  # type: ignore[arg-type]


def test_each_shape_is_measured_once_and_what_was_found_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    shares = world.shares()
    assert [cell.variant for cell in world.measured] == ["none", "geoclip"]
    # 6,000 MB and their margin: two to the smallest GPU of 16 GB, not to the one that was measured on.
    assert {world.gpu(shares, cell) for cell in world.state.grid} == {0.5}
    assert world.said[0] == "measuring the GPU memory and the speed of 2 shapes of network, once"
    assert world.said[1] == "2 shapes hold 6.0 to 6.0 GB of a GPU's 16: 2 to a GPU"
    assert world.shares().whole == 1.0
    assert len(world.measured) == 2
    file = tmp_path / "results" / "toy" / packing.FILE
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
    assert [c.train.precision for c in world.measured] == ["fp32"] * 2


def test_a_gpu_that_fails_to_train_a_stack_trains_cells_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.stacks = {"stacks_failed": "CUDA error: operation not permitted"}
    shares = world.shares()
    assert {shares.stack(cell) for cell in world.state.grid} == {1}
    assert {world.gpu(shares, cell) for cell in world.state.grid} == {0.5}
    assert [line for line in world.said if "operation not permitted" in line] == world.said[2:]
    (tmp_path / "works").mkdir()
    world = World(tmp_path / "works")
    world.stacks = {"rates": {1: 1.0, 4: 9.0}}
    shares = world.shares()
    assert {shares.stack(cell) for cell in world.state.grid} == {4}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Traceback ...\n  x\nValueError: a\ntorch.AcceleratorError: CUDA error: b\nhint c",
            "torch.AcceleratorError: CUDA error: b",
        ),
        ("CUDA error: not permitted\nCompile with TORCH_USE_CUDA_DSA", "CUDA error: not permitted"),
        ("", "no message"),
    ],
)
def test_the_reason_of_an_error_is_one_line(text: str, line: str) -> None:
    assert measure.reason(RuntimeError(text)) == line


def test_what_the_study_says_is_not_measured(tmp_path: Path) -> None:
    for gpu in (0.25, 0, 2):
        world = World(tmp_path, resources={"gpu": gpu})
        shares = world.shares()
        assert world.gpu(shares, world.state.grid[0]) == shares.whole == gpu
    assert not world.measured
