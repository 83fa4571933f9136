"""What is handed to Ray Tune, and what becomes of a training whose worker or memory was lost."""

from typing import Any

import pytest
from ray.tune.search import Searcher

from pm25.cell import Cell
from pm25.splits import RandomSplit
from sweeps import runner
from sweeps.agenda import Work
from sweeps.design import Arm
from sweeps.runner import LOSSES_BORNE, StudyQueue
from sweeps.store import Record, Store

CELLS = [Cell(variant="none", split=RandomSplit(), fold=0, seed=seed) for seed in range(2)]


class Agenda:
    """Two cells, one after the other."""

    stopped = ""
    searches: dict[Arm, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.left = [Work("cell", f"k{i}", Arm.of(cell), (cell,), {}) for i, cell in enumerate(CELLS)]
        self.told: list[Record] = []

    def next(self, asker: object) -> Work | None:
        return self.left.pop(0) if self.left else None

    def ended(self, work: Work, record: Record) -> None:
        self.told.append(record)


def long_agenda() -> Agenda:
    agenda = Agenda()
    agenda.left = [Work("cell", f"k{i}", Arm.of(CELLS[0]), (CELLS[0],), {}) for i in range(20)]
    return agenda


class Observer:
    def begins(self) -> None: ...

    def started(self, key: str, kind: str) -> None: ...

    def ended(self, kind: str, record: Record) -> None: ...


def queue(agenda: Agenda, gpu: float = 0.0) -> StudyQueue:
    store, share = Store("nowhere", "study"), {"cpu": 1.0, "gpu": gpu}
    return StudyQueue(agenda, store, share, Observer(), grows=False)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two nodes with room for four, or for four to a GPU."""
    found = [{"NodeID": name, "Resources": {"CPU": 2.0, "GPU": 1.0}} for name in ("n1", "n2")]
    monkeypatch.setattr(runner, "_nodes", lambda: found)
    return found


def test_everything_is_handed_out_once_and_the_end_comes_after_the_last() -> None:
    agenda = Agenda()
    made = queue(agenda)
    configs = [made.suggest("a"), made.suggest("b")]
    assert [config["key"] for config in configs] == ["k0", "k1"]  # type: ignore[index, call-overload]
    assert Cell.model_validate_json(configs[0]["cells"][0]) == CELLS[0]  # type: ignore[index, call-overload]
    assert made.suggest("c") is None  # one of them may still come back
    made.ended("a", {"key": "k0"})
    assert made.suggest("c") is None
    made.ended("b", {"key": "k1"})
    assert made.suggest("c") == Searcher.FINISHED
    assert agenda.told == [{"key": "k0"}, {"key": "k1"}]


def test_a_worker_that_dies_too_often_on_living_nodes_is_given_up() -> None:
    made = queue(Agenda())
    for attempt in range(LOSSES_BORNE):
        assert made.suggest(f"t{attempt}")["key"] == "k0"  # type: ignore[index, call-overload]
        assert made.lost(f"t{attempt}", frozenset({"n1", "n2"}))
    made.suggest("last")
    assert not made.lost("last", frozenset({"n1", "n2"}))
    assert made.work("last").key == "k0"  # the caller records it
    made.ended("last", {"key": "k0"})


def test_the_loss_of_a_node_is_not_counted() -> None:
    made = queue(Agenda())
    alive = {"head", *(f"spot-{i}" for i in range(10))}
    for attempt in range(10):  # every time the node of the worker dies with it, as is found out later
        made.suggest(f"t{attempt}")
        assert made.lost(f"t{attempt}", frozenset(alive)), f"given up after {attempt} lost nodes"
        alive.remove(f"spot-{attempt}")
    assert made.suggest("again")["key"] == "k0"  # type: ignore[index, call-overload]


def test_on_a_full_shared_gpu_it_is_tried_again_on_a_whole_one() -> None:
    made = queue(Agenda(), gpu=0.25)
    first = made.suggest("a")
    assert first["gpu"] == 0.25  # type: ignore[index, call-overload]
    made.alone("a")
    again = made.suggest("b")
    assert again == {**first, "gpu": 1.0}  # type: ignore[dict-item]
    assert runner._resources({"cpu": 1.0}, again).required_resources == {"CPU": 1.0, "GPU": 1.0}  # type: ignore[arg-type]
    assert made.suggest("c")["gpu"] == 0.25  # type: ignore[index, call-overload]


def test_what_was_lost_is_not_begun_again_after_a_stop() -> None:
    agenda = Agenda()
    made = queue(agenda)
    made.suggest("a")
    made.lost("a", frozenset())
    agenda.stopped, agenda.left = "budget.cells 1 is used up", []
    assert made.suggest("b") == Searcher.FINISHED


@pytest.mark.parametrize(("gpu", "raised"), [(0.0, False), (0.25, True), (1.0, False)])
def test_only_a_shared_gpu_excuses_memory_that_runs_out(gpu: float, raised: bool) -> None:
    trainable = runner.StudyTrainable.__new__(runner.StudyTrainable)
    trainable.config = {"gpu": gpu}
    assert bool(trainable._to_retry) is raised


@pytest.mark.parametrize(
    ("cpu", "gpu", "holds"), [(1.0, 0.0, 4), (2.0, 0.0, 2), (0.5, 0.25, 8), (1.0, 1.0, 2)]
)
def test_one_more_is_handed_out_than_the_nodes_hold(cpu: float, gpu: float, holds: int) -> None:
    store, share = Store("nowhere", "study"), {"cpu": cpu, "gpu": gpu}
    made = StudyQueue(long_agenda(), store, share, Observer(), grows=False)  # type: ignore[arg-type]
    assert sum(made.suggest(f"t{i}") is not None for i in range(20)) == holds
    for i in range(holds):
        made.started(f"t{i}")
    assert made.suggest("more") is not None
    assert made.suggest("after") is None
    made.ended("t0", {"key": "k0"})
    assert made.suggest("after") is None, "one that waits for a worker has the free one taken from it"
    made.started("more")
    assert made.suggest("after") is not None


def test_a_worker_that_is_being_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A free worker goes to what comes next, unless the cluster seems to have no room for what waits."""
    made = queue(long_agenda())
    for name in ("quick", "slow"):
        made.suggest(name)
    made.started("quick")
    made.ended("quick", {"key": "k0"})
    assert made.suggest("next") is not None
    made.started("next")
    made.ended("next", {"key": "k2"})
    monkeypatch.setattr(runner, "WORKER_STARTS_S", -1.0)
    assert made.suggest("after") is None
    made.lost("slow", frozenset())
    assert made.suggest("after")["key"] == "k1"  # type: ignore[index, call-overload]


def test_a_cluster_that_grows_is_looked_at_again(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, share = Store("nowhere", "study"), {"cpu": 1.0, "gpu": 0.0}
    made = StudyQueue(long_agenda(), store, share, Observer(), grows=True)  # type: ignore[arg-type]
    assert sum(made.suggest(f"t{i}") is not None for i in range(20)) == 4
    nodes.append({"NodeID": "n3", "Resources": {"CPU": 2.0}})
    monkeypatch.setattr(runner, "NODES_EVERY_S", -1.0)
    assert sum(made.suggest(f"u{i}") is not None for i in range(20)) == 2
