"""A whole study in a bucket: held by one driver, killed with all its processes, resumed, and read again."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs
import pytest
from click.testing import CliRunner

from pm25.errors import InputError
from sweeps.cli import cli
from sweeps.store import lock
from sweeps.store.fencing import LockLost
from sweeps.store.lock import StudyLock
from sweeps.store.records import Store
from tests import processes
from tests.errors import refuses
from tests.processes import wait_for

SMALLER = (
    "data.synthetic={sites: 40, days: 50, seed: 0}",
    "search.trials=2",
    "model={width: 8, attention_units: 8}",
    "train={learning_rate: 0.003, max_epochs: 8, max_windows: 600, max_validation_windows: 200}",
    "design.variant=[none, latlon]",
    "design.split=[{kind: random, folds: 5, fold: [0]}, {kind: checkerboard, degrees: 16}]",
    "design.seed=0",
    "references=[]",
    "search.reserve=null",
    "claims=[]",
    "checkpoint_seconds=0",
)
ARMS, CELLS = 2, 6
RECORDS = ARMS * 2 + CELLS


class Demo:
    """The shipped study `demo` in a bucket, smaller than it is."""

    def __init__(self, objects: Any, folder: Path) -> None:
        self.folder, self.store = folder, Store(f"{objects.bucket()}/results", "demo")
        self.tracking = f"sqlite:///{folder / 'tracking' / 'mlflow.db'}"
        (folder / "tracking").mkdir()
        settings = (*SMALLER, f"storage={self.store.storage}", f"tracking={self.tracking}")
        self.study = ["demo", *(word for text in settings for word in ("--set", text))]

    def start(self) -> "subprocess.Popen[str]":
        return processes.sweep(self.folder, "run", *self.study, log=self.folder / "log")

    def run(self, command: str, *more: str) -> str:
        """Output of a command in this process."""
        ended = CliRunner().invoke(cli, [command, *self.study, *more], catch_exceptions=False)
        assert not ended.exit_code
        return ended.output

    def objects(self, name: str) -> dict[str, tuple[int, Any]]:
        """Size and time of the objects of a name, by path."""
        system, root = self.store.location()
        selector = pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = [info for info in system.get_file_info(selector) if info.base_name == name]
        return {info.path: (info.size, info.mtime_ns) for info in found}

    def unfinished(self) -> set[str]:
        """Trainings with a checkpoint and no record."""
        began = {path.rsplit("/", 1)[0] for path in self.objects("checkpoint.pt")}
        return began - {path.rsplit("/", 1)[0] for path in self.objects("result.json")}

    def said(self) -> str:
        return (self.folder / "log").read_text()[-3000:]


def kill(driver: "subprocess.Popen[str]") -> int:
    """The driver and its Ray, all at once; how many processes that were."""
    all_ = [process := psutil.Process(driver.pid), *process.children(recursive=True)]
    for one in all_:
        one.kill()
    driver.wait()
    return len(all_)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_demo_in_a_bucket_is_killed_and_resumed(
    objects: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    demo = Demo(objects, tmp_path)
    before: dict[str, tuple[int, Any]] = {}
    for _ in range(4):  # until one is killed amid a training that it had stored
        driver, until = demo.start(), time.monotonic() + 240
        while len(demo.objects("result.json")) < len(before) + 2 or not demo.unfinished():
            assert driver.poll() is None, demo.said()
            assert time.monotonic() < until, demo.said()
            time.sleep(0.05)
        assert kill(driver) > 3
        before = demo.objects("result.json")
        if left := demo.unfinished():
            break
    assert 2 <= len(before) < RECORDS
    assert left

    assert demo.start().wait(timeout=300) == 0, demo.said()
    after = demo.objects("result.json")
    assert {path: after[path] for path in before} == before, "a finished record was written again"
    assert len(after) == RECORDS
    ended = demo.store.records(demo.store.keys()), demo.store.search.records(demo.store.search.keys())
    assert [len(records) for records in ended] == [CELLS, RECORDS - CELLS]
    records = [*ended[0].values(), *ended[1].values()]
    assert {record["state"] for record in records} <= {"done", "pruned"}
    assert any("resumed" in record for record in records), "no training went on from its checkpoint"
    assert not demo.objects("checkpoint.pt")
    assert len(demo.objects("weights.pt")) == ARMS  # the winners'
    assert not demo.objects("driver.json")

    counted = json.loads(demo.run("status", "--json"))
    assert counted["cells"] == {"total": CELLS, "done": CELLS, "failed": 0, "missing": 0, "damaged": 0}
    assert counted["search"] == {"total": ARMS * 2, "done": ARMS * 2, "failed": 0, "damaged": 0}
    assert f"{CELLS} cells, {CELLS} done" in demo.run("export", "cells.csv")
    assert {"report/index.html", "report/means.csv"} <= {*demo.run("report", "-o", "report").split()}
    assert "density-random.svg" in {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    # MLflow's artifacts are beside its database, and the driver's working folder has nothing else.
    assert {path.name for path in tmp_path.iterdir()} == {"tracking", "log", "cells.csv", "report"}
    assert {path.name for path in (tmp_path / "tracking").iterdir()} == {"mlflow.db", "mlflow-artifacts"}


def test_one_driver_holds_a_study_in_a_bucket(objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 0.1)
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    store = Store(f"{objects.bucket()}/results", "demo")
    system, path = store.location("driver.json")
    with refuses("driver.json", "", "was deleted", kind=LockLost), StudyLock(store) as first:
        with pytest.raises(InputError) as raised, StudyLock(store):
            pass
        assert "driver.json" in str(raised.value)
        assert str(os.getpid()) in str(raised.value)
        beats = lock.driver(store)
        wait_for(lambda: lock.driver(store) != beats, "a heartbeat")
        assert not first.lost
        system.delete_file(path)
        wait_for(lambda: first.lost, "the loss")
    with StudyLock(store):  # which is free again
        pass
    assert system.get_file_info(path).type == pyarrow.fs.FileType.NotFound
