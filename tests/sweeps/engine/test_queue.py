"""Tasks that the queue hands to Ray Tune, and takes back when a worker or its memory is lost."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ray.tune.search import Searcher

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.splits import RandomSplit
from sweeps.engine import cluster as nodes
from sweeps.engine import ray_tune, study_queue
from sweeps.engine.cluster import Cluster, Node
from sweeps.engine.scheduler import Task
from sweeps.engine.study_queue import LOSSES_FORGIVEN, STARTS_FORGIVEN, StudyQueue
from sweeps.engine.trainable import StudyTrainable
from sweeps.spec.design import Arm
from sweeps.store.records import Record
from tests.errors import refuses

CELLS = [Cell(variant="none", split=RandomSplit(), fold=0, seed=seed) for seed in range(2)]


class TwoCells:
    """Two cells, one after the other."""

    stopped = ""

    def __init__(self) -> None:
        self.copied: list[Record] = []
        self.left = [Task("cell", f"k{i}", Arm.of(cell), (cell,), {}) for i, cell in enumerate(CELLS)]
        self.reported: list[Record] = []

    def next(self) -> Task | None:
        return self.left.pop(0) if self.left else None

    def ended(self, task: Task, record: Record) -> None:
        self.reported.append(record)

    def ready(self, kind: Any, cell: Cell) -> int:
        return len(self.left)

    def stack(self, task: Task, most: int, kind: Any) -> Task:
        taken, self.left = self.left[: most - 1], self.left[most - 1 :]
        return Task.joined([task, *taken])

    def stop(self, why: str) -> None:
        self.stopped = why


def long_scheduler() -> TwoCells:
    scheduler = TwoCells()
    scheduler.left = [Task("cell", f"k{i}", Arm.of(CELLS[0]), (CELLS[0],), {}) for i in range(20)]
    return scheduler


class Observer:
    def check_ready(self) -> None: ...

    def notice(self, text: str) -> None: ...

    def started(self, key: str, kind: str) -> None: ...

    def ended(self, kind: str, record: Record) -> None: ...


class Shares:
    """The same for all, unless a key has its own."""

    def __init__(self, cpu: float, gpu: float, **own: float) -> None:
        self.cpu, self.whole, self.own = cpu, gpu, own
        self.learnt: list[Record] = []
        self.stacked = 1

    def gpu(self, task: Task) -> float:
        return self.own.get(task.key, self.whole)

    def learn(self, task: Task, record: Record) -> None:
        self.learnt.append(record)

    def stack(self, cell: Cell) -> int:
        return self.stacked

    def stack_kind(self, cell: Cell) -> str:
        return "same"


@pytest.fixture
def there() -> list[Node]:
    """Two nodes with room for four, or for four to a GPU."""
    return [Node(name, name, {"CPU": 2.0, "GPU": 1.0}) for name in ("n1", "n2")]


@pytest.fixture
def queue(there: list[Node]) -> Callable[..., StudyQueue]:
    def make(
        scheduler: TwoCells,
        gpu: float = 0.0,
        cpu: float = 1.0,
        *,
        joined: bool = False,
        wait_for_nodes: bool = False,
        **own: float,
    ) -> StudyQueue:
        cluster = Cluster(
            lambda: [*there], lambda *_: [], print, joined=joined, wait_for_nodes=wait_for_nodes
        )
        shares: Any = Shares(cpu, gpu, **own)
        return StudyQueue(scheduler, shares, Observer(), cluster)  # type: ignore[arg-type]

    return make


Make = Callable[..., StudyQueue]


def test_every_task_is_handed_out_once_and_then_the_queue_is_finished(queue: Make) -> None:
    scheduler = TwoCells()
    made = queue(scheduler)
    configs = [made.suggest("a"), made.suggest("b")]
    assert [config["key"] for config in configs] == ["k0", "k1"]  # type: ignore[index, call-overload]
    assert Cell.model_validate_json(configs[0]["cells"][0]) == CELLS[0]  # type: ignore[index, call-overload]
    assert made.suggest("c") is None  # one of them may still come back
    made.ended("a", {"key": "k0"})
    assert made.suggest("c") is None
    made.ended("b", {"key": "k1"})
    assert made.suggest("c") == Searcher.FINISHED
    assert scheduler.reported == [{"key": "k0"}, {"key": "k1"}]


def test_a_worker_that_dies_too_often_on_living_nodes_is_given_up(queue: Make) -> None:
    made = queue(TwoCells())
    for attempt in range(LOSSES_FORGIVEN):
        assert made.suggest(f"t{attempt}")["key"] == "k0"  # type: ignore[index, call-overload]
        made.started(f"t{attempt}")
        assert made.lost(f"t{attempt}", frozenset({"n1", "n2"}))
    made.suggest("last")
    made.started("last")
    assert not made.lost("last", frozenset({"n1", "n2"}))
    assert made.task("last").key == "k0"  # the caller records it
    made.ended("last", {"key": "k0"})


def test_the_loss_of_a_node_is_not_counted(queue: Make) -> None:
    made = queue(TwoCells())
    alive = {"head", *(f"spot-{i}" for i in range(10))}
    for attempt in range(10):  # every time the node of the worker dies with it, as is found out later
        made.suggest(f"t{attempt}")
        made.started(f"t{attempt}")
        assert made.lost(f"t{attempt}", frozenset(alive)), f"given up after {attempt} lost nodes"
        alive.remove(f"spot-{attempt}")
    assert made.suggest("again")["key"] == "k0"  # type: ignore[index, call-overload]


def test_a_loss_that_was_announced_is_not_counted(queue: Make) -> None:
    made = queue(TwoCells())
    for attempt in range(10):
        made.suggest(f"t{attempt}")
        made.started(f"t{attempt}")
        assert made.lost(f"t{attempt}", frozenset({"n1", "n2"}), announced=True)
    made.suggest("t")
    made.started("t")
    assert made.lost("t", frozenset({"n1", "n2"}))


def test_a_worker_that_dies_while_it_starts_is_not_counted(queue: Make) -> None:
    made = queue(TwoCells())
    alive = frozenset({"n1", "n2"})
    for attempt in range(2 * STARTS_FORGIVEN):  # every other worker starts, and its training is lost
        made.suggest(f"t{attempt}")
        if attempt % 2 and attempt < 2 * LOSSES_FORGIVEN:
            made.started(f"t{attempt}")
        assert made.lost(f"t{attempt}", alive)
    made.suggest("last")
    made.started("last")
    assert not made.lost("last", alive), "the losses of trainings that had started are counted"


def test_workers_that_never_start_end_the_run(queue: Make) -> None:
    made = queue(TwoCells())
    for attempt in range(STARTS_FORGIVEN + 1):
        assert made.fault is None
        made.suggest(f"t{attempt}")
        assert made.lost(f"t{attempt}", frozenset({"n1"}), why="killed by the OOM killer")
    with refuses("Ray", "", STARTS_FORGIVEN + 1, "OOM killer", "resources.cpu"):
        raise made.fault  # type: ignore[misc]
    assert made.suggest("t")["key"] == "k0"  # type: ignore[index, call-overload]


def test_a_worker_that_starts_forgives_those_that_did_not(queue: Make) -> None:
    made = queue(long_scheduler())
    for attempt in range(3 * STARTS_FORGIVEN):
        made.suggest(f"t{attempt}")
        if attempt % STARTS_FORGIVEN == 0:
            made.started(f"t{attempt}")
            made.ended(f"t{attempt}", {})
        else:
            made.lost(f"t{attempt}", frozenset({"n1"}))
    assert made.fault is None


def test_a_task_that_fills_a_shared_gpu_is_retried_on_a_gpu_of_its_own(queue: Make) -> None:
    made = queue(TwoCells(), gpu=0.25)
    first = made.suggest("a")
    assert first["gpu"] == 0.25  # type: ignore[index, call-overload]
    made.retry_alone("a")
    again = made.suggest("b")
    assert again == {**first, "gpu": 1.0}  # type: ignore[dict-item]
    assert ray_tune._resources(1.0, again).required_resources == {"CPU": 1.0, "GPU": 1.0}  # type: ignore[arg-type]
    assert made.suggest("c")["gpu"] == 0.25  # type: ignore[index, call-overload]


def test_a_lost_task_is_not_started_again_after_a_stop(queue: Make) -> None:
    scheduler = TwoCells()
    made = queue(scheduler)
    made.suggest("a")
    made.lost("a", frozenset())
    scheduler.stopped, scheduler.left = "budget.cells 1 is used up", []
    assert made.suggest("b") == Searcher.FINISHED


FULL = [
    torch.cuda.OutOfMemoryError("of a version with another text"),
    RuntimeError("Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA driver error: out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
@pytest.mark.parametrize(("gpu", "retried"), [(0.0, False), (0.25, True), (1.0, False)])
def test_only_a_shared_gpu_excuses_memory_that_runs_out(gpu: float, retried: bool, error: Exception) -> None:
    trainable = StudyTrainable.__new__(StudyTrainable)
    trainable.config = {"gpu": gpu}
    assert trainable._is_retried(error) is retried
    for other in (RuntimeError("CUDA error: misaligned address"), ValueError("CUDA error: out of memory")):
        assert not trainable._is_retried(other)


@pytest.mark.parametrize(
    ("cpu", "gpu", "holds"), [(1.0, 0.0, 4), (2.0, 0.0, 2), (0.5, 0.25, 8), (1.0, 1.0, 2)]
)
def test_one_more_is_handed_out_than_the_nodes_hold(queue: Make, cpu: float, gpu: float, holds: int) -> None:
    made = queue(long_scheduler(), gpu, cpu)
    assert sum(made.suggest(f"t{i}") is not None for i in range(20)) == holds
    for i in range(holds):
        made.started(f"t{i}")
    assert made.suggest("more") is not None
    assert made.suggest("after") is None
    made.ended("t0", {"key": "k0"})
    assert made.suggest("after") is None, "one that waits for a worker has the free one taken from it"
    made.started("more")
    assert made.suggest("after") is not None


def test_a_worker_that_is_being_started_is_waited_for(queue: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free worker goes to what comes next, unless the cluster seems to have no room for what waits."""
    made = queue(long_scheduler())
    for name in ("quick", "slow"):
        made.suggest(name)
    made.started("quick")
    made.ended("quick", {"key": "k0"})
    assert made.suggest("next") is not None
    made.started("next")
    made.ended("next", {"key": "k2"})
    monkeypatch.setattr(study_queue, "WORKER_STARTS_S", -1.0)
    assert made.suggest("after") is None
    made.lost("slow", frozenset())
    assert made.suggest("after")["key"] == "k1"  # type: ignore[index, call-overload]


def test_a_cluster_that_grows_is_looked_at_again(
    queue: Make, there: list[Node], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = queue(long_scheduler(), joined=True)
    assert sum(made.suggest(f"t{i}") is not None for i in range(20)) == 4
    there.append(Node("n3", "10.0.0.3", {"CPU": 2.0}))
    monkeypatch.setattr(nodes, "COUNT_EVERY_S", -1.0)
    assert sum(made.suggest(f"u{i}") is not None for i in range(20)) == 2
    assert capsys.readouterr().out == "node 10.0.0.3 (2 CPU) joined; 3 nodes now\n"
    del there[0]
    assert made.suggest("v") is None
    assert capsys.readouterr().out == "node n1 (2 CPU, 1 GPU) left; 2 nodes now\n"


def test_unequal_shares_fill_what_the_nodes_have(queue: Make) -> None:
    """Two GPUs: one whole, and two halves of the other; then two waiting quarters would be too many."""
    scheduler = long_scheduler()
    made = queue(scheduler, 0.5, 0.1, k0=1.0)
    handed = [made.suggest(f"t{i}") for i in range(5)]
    assert [config and config["gpu"] for config in handed] == [1.0, 0.5, 0.5, None, None]  # type: ignore[index, call-overload]
    made.ended("t0", {"key": "k0"})
    assert [made.suggest(f"u{i}") is not None for i in range(3)] == [True, True, False]


def test_an_autoscaler_is_shown_what_there_is_to_do(queue: Make, there: list[Node]) -> None:
    """An autoscaler starts nodes for waiting tasks, also while it has no nodes."""
    there.clear()
    made = queue(long_scheduler(), 1.0, wait_for_nodes=True)
    assert sum(made.suggest(f"t{i}") is not None for i in range(20)) == 8


def test_waiting_tasks_are_noticed_now_and_then(queue: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = queue(TwoCells(), 4.0, wait_for_nodes=True), []
    monkeypatch.setattr(made._observer, "notice", said.append)
    made.suggest("a"), made.suggest("b"), made.suggest("c")
    assert not said
    monkeypatch.setattr(study_queue, "WORKER_STARTS_S", -1.0)
    made.suggest("c"), made.suggest("c")
    assert said == [
        "2 trainings wait for a node with 1 CPU, 4 GPU; there are n1 (2 CPU, 1 GPU), n2 (2 CPU, 1 GPU)"
    ]
    monkeypatch.setattr(study_queue, "NOTICE_EVERY_S", -1.0)
    made.started("a")
    made.suggest("c")
    assert len(said) == 1  # something trains


def test_a_node_that_cannot_work_ends_the_run_and_its_cell_stays_missing(queue: Make) -> None:
    scheduler = TwoCells()
    made = queue(scheduler)
    made.suggest("a"), made.suggest("b")
    error = InputError("node n1", problem="Ray assigns a GPU that torch cannot use")
    made.refuse("a", error)
    scheduler.left = []
    assert made.suggest("c") is None  # the other one is finished
    made.ended("b", {"key": "k1"})
    assert made.suggest("c") == Searcher.FINISHED
    assert made.refused is error
    assert scheduler.stopped == str(error)
    assert scheduler.reported == [{"key": "k1"}]


def test_an_ended_task_reports_its_memory(queue: Make) -> None:
    made = queue(TwoCells())
    made.suggest("a")
    made.ended("a", {"key": "k0", "gpu_memory_mb": 900.0})
    assert made._shares.learnt == [{"key": "k0", "gpu_memory_mb": 900.0}]  # type: ignore[attr-defined]


def test_a_search_trial_that_took_an_earlier_result_is_observed(queue: Make) -> None:
    scheduler, seen = TwoCells(), []
    made = queue(scheduler)
    made._observer.ended = lambda kind, record: seen.append((kind, record))  # type: ignore[method-assign]
    scheduler.copied = [{"key": "t1"}, {"key": "t2"}]
    made.suggest("a")
    assert seen == [("trial", {"key": "t1"}), ("trial", {"key": "t2"})]
    assert scheduler.copied == []


# Stacks


def stacks(queue: Make, size: int, cells: int = 20) -> tuple[TwoCells, StudyQueue]:
    """A queue for two nodes with one GPU each, on which stacks of `size` trainings are fastest."""
    scheduler = long_scheduler()
    scheduler.left = scheduler.left[:cells]
    made = queue(scheduler, gpu=1.0)
    made._shares.stacked = size  # type: ignore[attr-defined]
    return scheduler, made


def test_a_stack_has_cells_for_three_rounds_but_no_more_than_its_gpu_s_part(queue: Make) -> None:
    _, made = stacks(queue, size=2)
    config: Any = made.suggest("a")
    assert config["keys"] == [f"k{i}" for i in range(6)]
    assert (config["key"], config["slots"], config["gpu"]) == ("k0", 2, 1.0)
    assert [Cell.model_validate_json(cell) for cell in config["cells"]] == [CELLS[0]] * 6
    assert json.loads(config["more"]) == [{}] * 6
    _, made = stacks(queue, size=8, cells=5)
    config = made.suggest("a")
    assert (config["keys"], config["slots"]) == (["k0", "k1", "k2"], 3)  # two GPUs share five cells
    config = made.suggest("b")
    assert "keys" not in config  # one of the two that are left is trained alone
    assert config["key"] == "k3"


def test_members_of_a_stack_end_one_by_one(queue: Make) -> None:
    scheduler, made = stacks(queue, size=2, cells=6)
    made.suggest("a")
    made.started("a")
    assert [one.key for one in made.task("a").members] == ["k0", "k1", "k2"]
    made.member_ended("a", {"key": "k0"})
    made.member_ended("a", {"key": "k2"})
    assert [one.key for one in made.task("a").members] == ["k1"]
    made.ended("a", {"key": "k1"})
    assert scheduler.reported == [{"key": "k0"}, {"key": "k2"}, {"key": "k1"}]


def test_after_the_loss_of_its_worker_a_stack_has_the_cells_that_had_not_ended(queue: Make) -> None:
    _, made = stacks(queue, size=2, cells=6)
    made.suggest("a")
    made.started("a")
    made.member_ended("a", {"key": "k0"})
    assert made.lost("a", frozenset({"n1", "n2"}))
    again: Any = made.suggest("b")
    assert (again["key"], again["keys"], again["gpu"]) == ("k1", ["k1", "k2"], 1.0)
    made.started("b")
    made.member_ended("b", {"key": "k1"})
    assert made.lost("b", frozenset({"n1", "n2"}))
    alone: Any = made.suggest("c")
    assert (alone["key"], "keys" in alone) == ("k2", False)


def test_a_stack_that_does_not_fit_is_trained_one_by_one(queue: Make) -> None:
    _, made = stacks(queue, size=2, cells=4)
    made.suggest("a")
    made.started("a")
    made.retry_alone("a")
    configs: Any = [made.suggest("b"), made.suggest("c")]
    assert [(config["key"], config["gpu"], "keys" in config) for config in configs] == [
        ("k0", 1.0, False),
        ("k1", 1.0, False),
    ]
