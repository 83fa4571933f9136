"""Whole sweeps: a real Ray, a real MLflow database, and processes that are killed."""

import json
import os
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests import disks, processes
from tests.processes import paused, wait_for, workers_of

pytestmark = pytest.mark.slow

STUDY = {
    "study": "tiny",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "latlon", "geoclip"],
        "fusion": ["hadamard"],
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": [0, 1],
    },
    "model": {"width": 4, "depth": 1, "attention_units": 4},
    "train": {"max_epochs": 2},
}


class Sweep:
    """A study in a folder, run by the real command line in processes of its own."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.file = folder / "tiny.yaml"
        self.file.write_text(yaml.safe_dump({**STUDY, **changes}))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return processes.sweep(self.folder, *arguments)

    def __call__(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Standard output and error."""
        apart = arguments[0] == "run" and "--dry-run" not in arguments
        command = processes.run_sweep if apart else processes.call_sweep
        return command(self.folder, *arguments, status=status)

    def refusal(self, *arguments: str) -> str:
        """Standard error of a command that ends with status 2 before it starts Ray, in this process."""
        return processes.call_sweep(self.folder, *arguments, status=2)[1]

    def counts(self) -> dict[str, int]:
        return dict(json.loads(self("status", "tiny.yaml", "--json")[0])["cells"])

    def records(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in self.folder.glob("results/tiny/cells/*/result.json")}

    def weights(self) -> set[str]:
        """Keys of the cells whose weights are stored."""
        return {path.parent.name for path in self.folder.glob("results/tiny/cells/*/weights.pt")}

    def winners(self) -> set[str]:
        """Keys of each arm's winner: the first fold of the seed with the lowest pooled validation error."""
        seeds: dict[tuple[str, str | None], dict[int, list[tuple[int, str, int, float]]]] = {}
        for record in map(json.loads, self.records().values()):
            cell = record["cell"]
            one = cell["fold"], record["key"], record["counts"]["n_val"], record["metrics"]["val_rmse"]
            of_arm = seeds.setdefault((cell["variant"], cell.get("fusion")), {})
            of_arm.setdefault(cell["seed"], []).append(one)
        best = [
            min(
                of_arm.values(),
                key=lambda folds: sum(n * v**2 for *_, n, v in folds) / sum(n for *_, n, _ in folds),
            )
            for of_arm in seeds.values()
        ]
        return {min(folds)[1] for folds in best}

    def runs(self) -> list[tuple[str, str]]:
        """(key, status) of every run in MLflow's database that is not deleted."""
        with sqlite3.connect(self.folder / "results" / "mlflow.db") as database:
            return sorted(
                database.execute(
                    "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
                    "where t.key = 'key' and r.lifecycle_stage = 'active'"
                )
            )


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of processes, with a name that is short enough for Ray."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.mark.usefixtures("undrawn")
def test_a_study_is_killed_in_every_way_resumes_grows_and_reports(tmp_path: Path, temporary: Path) -> None:
    long = {"train": {"max_epochs": 30, "patience": 30}, "checkpoint_seconds": 0}
    seeds = [*range(5)]
    sweep = Sweep(tmp_path, **long, design={**STUDY["design"], "seed": seeds[:4]})  # type: ignore[dict-item]
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: sweep.records())
    with paused(workers_of(driver.pid)):
        err = sweep.refusal("run", "tiny.yaml")  # a second driver
    assert f"process {driver.pid} on host" in err.strip().splitlines()[-1]
    wait_for(lambda: list(tmp_path.glob("results/tiny/cells/*/checkpoint.pt")))
    listens = processes.listening(driver.pid)
    assert {"gcs_server", "raylet", "ray::DashboardAgent"} <= listens.keys()
    assert set.union(*listens.values()) == {"127.0.0.1"}, listens
    for worker in workers_of(driver.pid):
        worker.kill()
    before = sweep.records()
    wait_for(lambda: len(sweep.records()) > len(before))  # the run goes on
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert err.strip()
    assert "Traceback" not in err

    interrupted = sweep.records()
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: len(sweep.records()) > len(interrupted))
    workers = workers_of(driver.pid)
    with paused(workers):  # for they would end the study while their driver dies
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=60)
    # Ray's workers end with their driver, so the restart does not race with them.
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert [*temporary.glob("pm25-sweeps-*/token")], "nothing of the killed run is left to delete"
    killed = sweep.records()
    assert {path: killed[path] for path in interrupted} == interrupted, "a recorded cell ran again"
    assert len(killed) < 12

    grown = Sweep(tmp_path, **long, design={**STUDY["design"], "seed": seeds})  # type: ignore[dict-item]
    out, err = grown("run", "tiny.yaml")  # at once, for the driver that has the lock is dead
    assert "warning" not in (out + err).lower()
    assert "15 of 15 cells done" in out
    assert not [*temporary.glob("*pm25-sweeps-*")], "the killed run's files, or those of its successor"
    after = grown.records()
    assert len(after) == 15
    assert {path: after[path] for path in killed} == killed, "a recorded cell ran again"
    assert grown.counts() == {"total": 15, "done": 15, "failed": 0, "missing": 0, "damaged": 0}
    assert grown.runs() == [(path.parent.name, "FINISHED") for path in sorted(after)]
    assert len(grown.weights()) == 3  # arms
    assert grown.weights() == grown.winners()
    assert any(json.loads(text).get("resumed", 0) > 0 for text in after.values())
    assert not list(tmp_path.glob("results/tiny/cells/*/checkpoint.pt"))
    # Resumed or not, in another process: the same seed gives the same bytes.
    assert grown("verify", "tiny.yaml")[0].count("bitwise equal") == 15

    out, _ = grown("run", "tiny.yaml")  # nothing is left to do
    assert "15 of 15 cells done" in out
    assert grown.records() == after
    assert len(grown.runs()) == 15
    grown("report", "tiny.yaml", "-o", "report")
    assert "GeoCLIP" in (tmp_path / "report" / "index.html").read_text()


def test_equal_failures_end_the_run_and_are_retried_on_request(tmp_path: Path) -> None:
    design = {**STUDY["design"], "variant": ["none", "latlon"], "seed": [*range(12)]}  # type: ignore[dict-item]
    wild = {"max_epochs": 1, "learning_rate": 1e30, "clip_norm": None}
    sweep = Sweep(tmp_path, design=design, train=wild, max_equal_failures=3)
    out, err = sweep("run", "tiny.yaml", status=1)
    assert "stopped: 3 equal failures in this run, Diverged: training loss" in err
    counts = sweep.counts()
    failed = counts["failed"]
    assert 3 <= failed < 24
    assert counts == {"total": 24, "done": 0, "failed": failed, "missing": 24 - failed, "damaged": 0}
    assert f"{failed} failed" in out
    assert [status for _, status in sweep.runs()] == ["FAILED"] * failed
    out, _ = sweep("run", "tiny.yaml", "--dry-run")
    assert len(out.splitlines()) == 1 + 24 - failed, "a failure is not tried again unasked"

    assert f"{failed} failed cells" in sweep("retry", "tiny.yaml")[0]
    assert sweep.counts()["missing"] == 24
    sweep("run", "tiny.yaml", "--limit", "2", status=1)
    assert [status for _, status in sweep.runs()] == ["FAILED"] * 2, "an earlier attempt is still in MLflow"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's
def test_part_of_a_study_within_a_budget_and_without_a_tracking_server(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, tracking="http://127.0.0.1:9", budget={"cells": 1})
    out, _ = sweep("run", "tiny.yaml", "--only", "variant=latlon", "--dry-run")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["latlon"] * 2
    assert not sweep.records()
    assert "latlon" in sweep.refusal("run", "tiny.yaml", "--only", "variant=latlo")

    _, err = sweep("run", "tiny.yaml", "--only", "variant=latlon")
    assert "budget.cells 1 is used up" in err
    assert "sweep sync" in err
    counts = sweep.counts()
    assert 1 <= counts["done"] <= 2
    assert counts["failed"] == 0
    assert {json.loads(text)["cell"]["variant"] for text in sweep.records().values()} == {"latlon"}
    assert len(sweep.refusal("sync", "tiny.yaml").strip().splitlines()) == 1
    uri = f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"
    for _ in range(2):  # the second finds nothing to do
        sweep("sync", "tiny.yaml", "--set", f"tracking={uri}")
        assert [status for _, status in sweep.runs()] == ["FINISHED"] * counts["done"]


def test_more_than_any_node_has_is_said_before_anything_starts(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, resources={"cpu": 1, "gpu": 64})
    _, err = sweep("run", "tiny.yaml", status=2)
    assert "64 GPU" in err.strip().splitlines()[-1]
    assert not sweep.records()


LAST_SEARCH_WAITS = """
import pathlib, sweeps.cli
from sweeps.engine.scheduler import Scheduler

can_start = Scheduler._can_start

def after_a_cell(self, scope):
    waits = scope.variant == "geoclip" and not [*pathlib.Path("results/tiny/cells").glob("*/result.json")]
    return not waits and can_start(self, scope)

Scheduler._can_start = after_a_cell
sweeps.cli.main()
"""


def test_search_and_grid_are_one_run_without_a_barrier(tmp_path: Path) -> None:
    arms = ("none", "latlon", "sincos", "geoclip-hadamard")  # more than are searched side by side
    design = {
        "variant": [arm.split("-")[0] for arm in arms],
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": [0, 1, 2],
    }
    search = {
        "trials": 4,
        "space": {
            "train.learning_rate": {"float": [1e-3, 1e-2], "log": True},
            "model.width": {"choice": [4, 8]},
        },
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": 100,
        "enqueue": [{"model.width": 8}],
    }
    more: dict[str, object] = {"design": design, "train": {"max_epochs": 6}, "keep_weights": False}
    short = Sweep(tmp_path, search={**search, "trials": 2}, **more)
    # No barrier: free workers train cells while the last arm's search waits until a cell has ended.
    driver = processes.sweep(tmp_path, "run", "tiny.yaml", python=("-c", LAST_SEARCH_WAITS))
    wait_for(lambda: short.records())
    driver.terminate()  # as a batch system ends a job
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 143, err
    before = {p: p.read_bytes() for p in tmp_path.glob("results/tiny/*/*/result.json")}
    old = set(short.records())

    # More trials: those that are there stay, and only arms that choose otherwise run their cells again.
    sweep = Sweep(tmp_path, search=search, **more)
    out, err = sweep("run", "tiny.yaml")
    assert "warning" not in (out + err).lower()
    assert {p: p.read_bytes() for p in before} == before
    trials = [json.loads(p.read_text()) for p in tmp_path.glob("results/tiny/search/*/result.json")]
    status = json.loads(sweep("status", "tiny.yaml", "--json")[0])
    assert status["search"] == {"total": 16, "done": 16, "failed": 0, "damaged": 0}
    assert status["cells"] == {"total": 12, "done": 12, "failed": 0, "missing": 0, "damaged": 0}

    cells = {path: json.loads(text) for path, text in sweep.records().items()}
    for arm in arms:
        own = sorted((t for t in trials if t["arm"] == arm), key=lambda t: t["number"])
        assert [t["number"] for t in own] == [0, 1, 2, 3]
        assert own[0]["params"]["model.width"] == 8
        best = min(own, key=lambda t: t["scores"]["wr"]["rmse"])["params"]
        grid = {
            path: c
            for path, c in cells.items()
            if (c["cell"]["variant"], c["cell"].get("fusion")) == _variant(arm) and c["tuned"] == best
        }
        assert len(grid) == 3
        assert all(c["cell"]["model"]["width"] == best["model.width"] for c in grid.values())
        new = [c["started"] for path, c in grid.items() if path not in old]
        assert max(t["ended"] for t in own) <= min(new, default="9"), "a cell came before its settings"


def _variant(arm: str) -> tuple[str, str | None]:
    variant, _, fusion = arm.partition("-")
    return variant, fusion or None


def test_seeds_that_a_look_asks_for_are_run_in_the_same_run(tmp_path: Path) -> None:
    """The last cell of a look may be the last that runs: there is more to hand out after it."""
    design = {
        "variant": ["none", "latlon", "sincos"],
        "split": [{"kind": "clusters", "folds": 3}],
        "seed": {"start": 1, "max": 3},
    }
    claim = {"claim": "it helps", "better": {"variant": "latlon"}, "than": {"variant": "none"}}
    claim |= {"on": {"split": "clusters"}, "metric": "rmse"}
    sweep = Sweep(tmp_path, design=design, claims=[claim], keep_weights=False)
    undecided = (
        "import sweeps.cli, sweeps.analysis.judgement\n"
        "sweeps.analysis.judgement.stops = lambda *contrast: False\n"
        "sweeps.cli.main()"
    )
    out, err = processes.run_sweep(tmp_path, "run", "tiny.yaml", python=("-c", undecided))
    assert "9 cells, 0 recorded, 9 to run; up to 12 more if undecided" in err
    assert "21 of 21 cells done" in out
    assert len(sweep.records()) == len(sweep.runs()) == 21


def test_a_study_meets_a_full_disk_and_a_dead_ray_and_then_finishes(tmp_path: Path) -> None:
    with disks.small_disk(tmp_path / "results", "16m") as disk:
        _meet_faults(tmp_path, disk)


def _meet_faults(folder: Path, disk: Path) -> None:
    design = {**STUDY["design"], "variant": ["none", "latlon"], "seed": [*range(4)]}  # type: ignore[dict-item]
    long = {"max_epochs": 60, "patience": 60}
    sweep = Sweep(folder, design=design, train=long, checkpoint_seconds=0, keep_weights=False)

    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: sweep.records())
    with paused(workers_of(driver.pid)):  # on a busy machine the disk fills slowly
        disks.fill(disk)
    _, err = processes.end(driver, status=2)
    *_, line = err.splitlines()
    assert line.startswith(f"sweep: {disk}: storage: ")
    assert "No space left on device" in line
    assert "Traceback" not in err
    full = sweep.records()
    assert {json.loads(text)["state"] for text in full.values()} == {"done"}
    assert len(full) < 8

    disks.remount(disk, "size=256m")
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: len(sweep.records()) > len(full))
    below = psutil.Process(driver.pid).children(recursive=True)
    (raylet,) = [process for process in below if process.name() == "raylet"]
    raylet.kill()
    _, err = processes.end(driver, status=3)
    *_, line = err.splitlines()
    assert line.startswith("sweep: Ray: ")
    assert "raylet" in line
    assert "Traceback" not in err
    assert psutil.wait_procs(below, timeout=30)[1] == [], "processes of Ray are left"
    lost = sweep.records()
    assert {json.loads(text)["state"] for text in lost.values()} == {"done"}

    out, err = sweep("run", "tiny.yaml")
    assert "8 of 8 cells done, 0 failed" in out
    after = sweep.records()
    assert {path: after[path] for path in full} == full, "a recorded cell ran again"
    assert {path: after[path] for path in lost} == lost, "a recorded cell ran again"
    assert sweep.runs() == [(path.parent.name, "FINISHED") for path in sorted(after)]
