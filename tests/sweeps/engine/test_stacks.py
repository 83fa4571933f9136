"""Cells that a worker trains in lockstep: each has its own record, whatever happens to the others."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pm25.cell import Cell
from pm25.fit import Diverged
from pm25.network_shape import NetworkShape, stack_kind
from pm25.panel import Panel
from pm25.settings import ModelSettings, TrainSettings
from pm25.splits import RandomSplit
from sweeps.bench import busy
from sweeps.engine import worker
from sweeps.plan import packing
from sweeps.plan.packing import Footprint
from sweeps.state import StudyState
from sweeps.store import running
from sweeps.store.records import StorageFault, Store
from tests import worlds
from tests.processes import NO_IDLE_WORKERS, wait_for

TRAIN = TrainSettings(max_epochs=3, batch_size=32, max_windows=96, max_validation_windows=50)
STUDY: dict[str, Any] = {
    "study": "stacked",
    "data": {"synthetic": {"sites": 40, "days": 60}},
    "design": {"variant": ["none", "latlon"], "split": [{"kind": "random", "folds": 4}], "seed": [0, 1]},
    "model": {"width": 4, "depth": 2, "attention_units": 4},
    "train": {"max_epochs": 60, "patience": 2, "batch_size": 64, "max_windows": 640},
    "storage": "results",
    "checkpoint_seconds": 0,
}


def cell(seed: int = 0, **changes: Any) -> Cell:
    given: dict[str, Any] = {"variant": "latlon", "split": RandomSplit(), "fold": 0, "seed": seed}
    model = ModelSettings(width=4, depth=2, attention_units=4)
    return Cell(**given | {"model": model, "train": TRAIN} | changes)


@pytest.fixture(scope="module")
def panel() -> Panel:
    return worlds.synthetic_panel()


def stack(panel: Panel, store: Store, *cells: Cell, slots: int = 2, **more: Any) -> worker.Stack:
    """A stack whose keys are k0, k1 and so on."""
    members = [(one, f"k{i}", {"share": {"cpu": 1.0, "gpu": 1.0}}) for i, one in enumerate(cells)]
    options: dict[str, Any] = {"slots": slots, "keeps_weights": lambda cell: cell.seed == 1} | more
    return worker.Stack(members, panel, store, **options)


def ended(one: worker.Stack) -> list[dict[str, Any]]:
    records = []
    while not one.finished:
        records += one.advance()
    return records


@pytest.mark.usefixtures("one_thread")
def test_each_cell_of_a_stack_has_the_record_of_its_training_alone(panel: Panel, tmp_path: Path) -> None:
    cells = [cell(seed) for seed in range(3)]
    store, alone = Store(str(tmp_path), "stacked"), Store(str(tmp_path), "alone")
    records = ended(stack(panel, store, *cells))
    assert {record["key"] for record in records} == {"k0", "k1", "k2"}
    for i, one in enumerate(cells):
        record = store.record(f"k{i}", "all")
        assert record is not None
        assert (record["state"], record["stacked"], record["share"]["gpu"]) == ("done", 2, 1.0)
        other = worker.train_and_record(one, f"k{i}", panel, alone, keep_weights=one.seed == 1)
        assert {*record} - {"stacked", "share"} == {*other}
        assert {*record["files"]} == {*other["files"]}
        assert record["counts"] == other["counts"]
        assert record["metrics"]["test_rmse"] == pytest.approx(other["metrics"]["test_rmse"], rel=1e-3)
        assert worker.differences(one, f"k{i}", panel, store) == []
    assert running.running(store) == []


@pytest.mark.usefixtures("one_thread")
def test_a_changed_result_of_a_stack_is_found(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "stacked")
    (record, _) = ended(stack(panel, store, cell(0), cell(1)))
    metrics = record["metrics"] | {"test_rmse": 1.05 * record["metrics"]["test_rmse"]}
    counts = record["counts"] | {"n_train": 95}
    store.write_record(record | {"metrics": metrics, "counts": counts}, record["files"])
    assert worker.differences(cell(0), "k0", panel, store) == ["counts", "test_rmse"]


@pytest.mark.usefixtures("one_thread")
def test_a_failure_is_that_of_one_cell(panel: Panel, tmp_path: Path) -> None:
    diverges = cell(1, train=TRAIN.model_copy(update={"learning_rate": 1e30, "clip_norm": None}))
    store = Store(str(tmp_path), "stacked")
    records = {record["key"]: record for record in ended(stack(panel, store, cell(0), diverges, cell(2)))}
    assert [records[key]["state"] for key in ("k0", "k1", "k2")] == ["done", "failed", "done"]
    assert records["k1"]["error"]["type"] == Diverged.__name__
    raising = stack(
        panel,
        Store(str(tmp_path), "raised"),
        diverges,
        cell(0),
        raises=lambda error: isinstance(error, Diverged),
    )
    with pytest.raises(Diverged):
        ended(raising)


@pytest.mark.usefixtures("one_thread")
def test_recorded_cells_are_not_trained_again(panel: Panel, tmp_path: Path) -> None:
    store = Store(str(tmp_path), "stacked")
    first = stack(panel, store, cell(0), cell(1), cell(2), slots=1)
    while not (records := first.advance()):
        pass
    assert [record["key"] for record in records] == ["k0"]
    again = stack(panel, store, cell(0), cell(1), cell(2))
    assert sorted(record["key"] for record in ended(again)) == ["k1", "k2"]
    assert stack(panel, store, cell(0), cell(1), cell(2)).finished


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_cell_resumes_in_a_stack_and_not_alone(panel: Panel, tmp_path: Path) -> None:
    cells = [cell(seed) for seed in range(3)]
    whole = {record["key"]: record for record in ended(stack(panel, Store(str(tmp_path), "whole"), *cells))}
    store = Store(str(tmp_path), "interrupted")
    first = stack(panel, store, *cells, checkpoint_seconds=0)
    first.advance()
    first.advance()
    assert store.holding(worker.CHECKPOINT) == {"k0", "k1"}
    for i in range(2):
        kept = store.read_file(f"k{i}", worker.CHECKPOINT)
        assert kept is not None
        alone = Store(str(tmp_path), "alone")
        alone.write_file(f"k{i}", worker.CHECKPOINT, kept)
        assert "resumed" not in worker.train_and_record(cells[i], f"k{i}", panel, alone)
    again = {record["key"]: record for record in ended(stack(panel, store, *cells, checkpoint_seconds=0))}
    assert [again[key].get("resumed") for key in ("k0", "k1", "k2")] == [2, 2, None]
    for key, record in again.items():
        assert (record["metrics"], record["counts"]) == (whole[key]["metrics"], whole[key]["counts"])
    assert store.holding(worker.CHECKPOINT) == set()


@pytest.mark.usefixtures("one_thread")
def test_the_last_cell_of_a_stack_is_one_of_a_stack(panel: Panel, tmp_path: Path) -> None:
    """After a loss, the other cells may be recorded already."""
    store = Store(str(tmp_path), "stacked")
    (record,) = ended(stack(panel, store, cell(1)))
    assert record["stacked"] == 1
    assert worker.differences(cell(1), "k0", panel, store) == []


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_that_cannot_be_continued_fails_its_cell_alone(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell(seed) for seed in range(3)]
    store = Store(str(tmp_path), "stacked")
    stack(panel, store, *cells, checkpoint_seconds=0).advance()
    found = worker.Stack._checkpoint

    def broken(one: worker.Stack, made: Cell) -> Any:
        state = found(one, made)
        if made == cells[0]:
            del state["fit"]["finite"]
        return state

    monkeypatch.setattr(worker.Stack, "_checkpoint", broken)
    records = {record["key"]: record for record in ended(stack(panel, store, *cells))}
    assert {key: record["state"] for key, record in records.items()} == {
        "k0": "failed",
        "k1": "done",
        "k2": "done",
    }
    assert records["k1"]["resumed"] == 1


@pytest.mark.usefixtures("one_thread")
def test_a_storage_that_fails_to_give_a_checkpoint_is_no_failure_of_a_cell(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path), "stacked")
    one = stack(panel, store, cell(0), cell(1))

    def fails(*_: Any) -> None:
        raise StorageFault(str(tmp_path), "", "it cannot be read", "mount it")

    monkeypatch.setattr(Store, "read_file", fails)
    with pytest.raises(StorageFault):
        one.advance()
    assert store.records(["k0", "k1"]) == {}


def test_what_can_be_stacked(panel: Panel) -> None:
    kind = stack_kind(cell(), panel)
    rate = TRAIN.model_copy(update={"learning_rate": 0.5, "patience": 2, "clip_norm": None})
    for alike in (cell(3), cell(fold=2), cell(split=RandomSplit(folds=4)), cell(train=rate)):
        assert stack_kind(alike, panel) == kind
    wider = ModelSettings(width=6, depth=2, attention_units=4)
    for other in (
        cell(variant="none"),
        cell(model=wider),
        cell(train=TRAIN.model_copy(update={"loss": "absolute"})),
        cell(train=TRAIN.model_copy(update={"batch_size": 16})),
        cell(train=TRAIN.model_copy(update={"precision": "bf16"})),
    ):
        assert stack_kind(other, panel) != kind
    assert stack_kind(cell(protocol="paper"), panel) is None


def write_study(folder: Path) -> StudyState:
    """Write the study, and footprints of a GPU on which stacks of three trainings are fastest."""
    (folder / "stacked.yaml").write_text(yaml.safe_dump(STUDY | {"storage": str(folder / "results")}))
    state = StudyState(str(folder / "stacked.yaml"))
    state.store.prepare()
    shapes = dict.fromkeys(NetworkShape.of(one, state.panel, 512) for one in state.grid)
    own: Any = {"memory_mb": 700, "context_mb": 0, "gpu": "pretended", "gpu_mb": 16_000}
    packing.write(state.store, [Footprint(shape=one, rates={1: 1.0, 3: 9.0}, **own) for one in shapes])
    return state


@pytest.mark.slow
def test_a_run_trains_stacks_and_survives_the_loss_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "GPUS", 2)  # each starts a worker, which imports PyTorch
    state, environment = write_study(tmp_path), {**busy._environment(), **NO_IDLE_WORKERS}
    with busy._cluster(environment) as address:
        words = [sys.executable, "-m", "sweeps", "run", "stacked.yaml", "--address", address]
        log = tmp_path / "run.log"
        with log.open("w") as file:
            run = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=file, stderr=file)

            def partly_recorded() -> list[running.Progress]:
                """Two cells or more with a checkpoint, whose worker has recorded another one."""
                workers = {record["process"] for record in state.records().values()}
                found = running.running(state.store, state.store.holding(worker.CHECKPOINT))
                found = [one for one in found if one.process in workers]
                same = [one for one in found if one.process == found[0].process]
                return same if len(same) > 1 else []

            lost = wait_for(partly_recorded, log.read_text, seconds=240)
            before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("cells/*/result.json")}
            os.kill(lost[0].process, signal.SIGKILL)
            assert run.wait(300) == 0, log.read_text()
    assert "train in stacks of 3" in log.read_text()
    records = state.records("all")
    assert [record["state"] for record in records.values()] == ["done"] * 16
    assert {path: path.read_bytes() for path in before} == before  # none was trained again
    assert any("resumed" in records[one.key] for one in lost)
    assert "stacked" in next(iter(records.values()))
    for key in [*records][:2]:
        assert worker.differences(state.cells[key], key, state.panel, state.store) == []
