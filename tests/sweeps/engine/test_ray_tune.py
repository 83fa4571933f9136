"""Whole sweeps: a real Ray, a real MLflow database, and processes that are killed."""

import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import psutil
import pytest
import yaml

from tests import processes
from tests.processes import wait_for, workers_of

pytestmark = pytest.mark.slow

STUDY = {
    "study": "tiny",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "latlon", "geoclip"],
        "fusion": ["hadamard", "concat"],
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
        return processes.run_sweep(self.folder, *arguments, status=status)

    def counts(self) -> dict[str, int]:
        return dict(json.loads(self("status", "tiny.yaml", "--json")[0])["cells"])

    def records(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in self.folder.glob("results/tiny/cells/*/result.json")}

    def weights(self) -> set[str]:
        """Keys of the cells whose weights are stored."""
        return {path.parent.name for path in self.folder.glob("results/tiny/cells/*/weights.pt")}

    def winners(self) -> set[str]:
        """Keys of each arm's cell with the lowest validation RMSE."""
        best: dict[tuple[str, str | None], tuple[float, str]] = {}
        for record in map(json.loads, self.records().values()):
            arm = record["cell"]["variant"], record["cell"].get("fusion")
            mine = record["metrics"]["val_rmse"], record["key"]
            best[arm] = min(mine, best.get(arm, mine))
        return {key for _, key in best.values()}

    def runs(self) -> list[tuple[str, str]]:
        """(key, status) of every run in MLflow's database that is not deleted."""
        with sqlite3.connect(self.folder / "results" / "mlflow.db") as database:
            return sorted(
                database.execute(
                    "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
                    "where t.key = 'key' and r.lifecycle_stage = 'active'"
                )
            )


def test_a_study_runs_resumes_grows_and_reports(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    _, err = sweep("run", "tiny.yaml", "--limit", "3")
    assert "warning" not in err.lower()
    assert sweep.counts() == {"total": 8, "done": 3, "failed": 0, "missing": 5}
    first = sweep.records()

    out, err = sweep("run", "tiny.yaml")
    assert "warning" not in (out + err).lower()
    assert "8 of 8 cells done" in out
    after = sweep.records()
    assert len(after) == 8
    assert {path: after[path] for path in first} == first, "a recorded cell ran again"
    keys = sorted(path.parent.name for path in after)
    assert sweep.runs() == [(key, "FINISHED") for key in keys]

    grown = Sweep(tmp_path, design={**STUDY["design"], "seed": [0, 1, 2]})  # type: ignore[dict-item]
    grown("run", "tiny.yaml")
    assert grown.counts() == {"total": 12, "done": 12, "failed": 0, "missing": 0}
    assert {path: grown.records()[path] for path in after} == after
    assert len(grown.runs()) == 12
    assert grown.weights() == grown.winners()
    assert len(grown.weights()) == 4  # arms

    out, _ = grown("run", "tiny.yaml")  # nothing is left to do
    assert "12 of 12 cells done" in out
    assert len(grown.runs()) == 12

    grown("report", "tiny.yaml", "-o", "report")
    assert "GeoCLIP" in (tmp_path / "report" / "index.html").read_text()


def test_same_seed_same_bytes_in_another_run(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sweep = Sweep(tmp_path / name)
        sweep("run", "tiny.yaml", "--limit", "2")
        found.append(
            {path.parent.name: json.loads(text)["metrics"] for path, text in sweep.records().items()}
        )
    assert found[0] == found[1]


def test_a_killed_driver_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, train={"max_epochs": 25, "patience": 25})
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: len(sweep.records()) >= 3)
    workers = workers_of(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    # Ray's workers end with their driver, so the restart does not race with them.
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]
    kept = sweep.records()
    assert 3 <= len(kept) < 8

    sweep("run", "tiny.yaml")
    after = sweep.records()
    assert len(after) == 8
    assert {path: after[path] for path in kept} == kept, "a recorded cell ran again"
    assert sweep.runs() == [(path.parent.name, "FINISHED") for path in sorted(after)]


def test_a_killed_worker_has_its_cell_run_again(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, train={"max_epochs": 25, "patience": 25})
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: sweep.records())
    workers_of(driver.pid)[0].kill()
    out, err = driver.communicate(timeout=180)
    assert driver.returncode == 0, err
    assert "8 of 8 cells done" in out
    assert [status for _, status in sweep.runs()] == ["FINISHED"] * 8


def test_failures_are_results_and_are_retried_on_request(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, train={"max_epochs": 1, "learning_rate": 1e30, "clip_norm": None})
    out, err = sweep("run", "tiny.yaml", "--limit", "2", status=1)
    assert "2 failed" in out
    assert "Diverged" in err
    assert sweep.counts() == {"total": 8, "done": 0, "failed": 2, "missing": 6}
    assert [status for _, status in sweep.runs()] == ["FAILED"] * 2
    before = sweep.records()
    out, _ = sweep("run", "tiny.yaml", "--limit", "1", status=1)
    assert {path: sweep.records()[path] for path in before} == before, "a failure is not tried again unasked"

    assert "3 failed cells" in sweep("retry", "tiny.yaml")[0]
    assert sweep.counts()["missing"] == 8
    sweep("run", "tiny.yaml", "--limit", "3", status=1)
    assert [status for _, status in sweep.runs()] == ["FAILED"] * 3, "an earlier attempt is still in MLflow"


def test_interrupt_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, train={"max_epochs": 25, "patience": 25})
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: sweep.records())
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert err.strip()
    assert "Traceback" not in err
    kept = sweep.records()
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: len(sweep.records()) > len(kept))
    driver.terminate()  # as a batch system ends a job
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 143, err
    sweep("run", "tiny.yaml")
    after = sweep.records()
    assert len(after) == 8
    assert {path: after[path] for path in kept} == kept


def test_a_tracking_server_that_is_down_costs_no_training(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, tracking="http://127.0.0.1:9")
    _, err = sweep("run", "tiny.yaml", "--limit", "2")
    assert "sweep sync" in err
    assert sweep.counts()["done"] == 2
    _, err = sweep("sync", "tiny.yaml", status=2)
    assert len(err.strip().splitlines()) == 1
    uri = f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"
    for _ in range(2):  # the second finds nothing to do
        sweep("sync", "tiny.yaml", "--set", f"tracking={uri}")
        assert [status for _, status in sweep.runs()] == ["FINISHED"] * 2


def test_more_than_any_node_has_is_said_before_anything_starts(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, resources={"cpu": 1, "gpu": 64})
    _, err = sweep("run", "tiny.yaml", status=2)
    assert "64 GPU" in err.strip().splitlines()[-1]
    assert not sweep.records()


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
    sweep = Sweep(tmp_path, design=design, search=search, train={"max_epochs": 6})
    out, err = sweep("run", "tiny.yaml")
    assert "warning" not in (out + err).lower()
    trials = [json.loads(p.read_text()) for p in tmp_path.glob("results/tiny/search/*/result.json")]
    cells = [json.loads(text) for text in sweep.records().values()]
    assert (len(trials), len(cells)) == (16, 12)
    status = json.loads(sweep("status", "tiny.yaml", "--json")[0])
    assert status["search"] == {"total": 16, "done": 16, "failed": 0}

    for arm in arms:
        own = sorted((t for t in trials if t["arm"] == arm), key=lambda t: t["number"])
        assert [t["number"] for t in own] == [0, 1, 2, 3]
        assert own[0]["params"]["model.width"] == 8
        best = min(own, key=lambda t: t["scores"]["wr"]["rmse"])
        grid = [c for c in cells if (c["cell"]["variant"], c["cell"].get("fusion")) == _variant(arm)]
        assert len(grid) == 3
        assert all(c["cell"]["model"]["width"] == best["params"]["model.width"] for c in grid)
        assert all(c["tuned"] == best["params"] for c in grid)
        assert max(t["ended"] for t in own) <= min(c["started"] for c in grid), (
            "a cell came before its settings"
        )
    # No barrier: some arm's cells are done before the last arm's search is over.
    assert min(c["ended"] for c in cells) < max(t["ended"] for t in trials)

    before = {p: p.read_bytes() for p in tmp_path.glob("results/tiny/*/*/result.json")}
    sweep("run", "tiny.yaml")
    assert {p: p.read_bytes() for p in before} == before
    # Two trials more: those that are there stay, and only arms that choose otherwise run their cells again.
    Sweep(tmp_path, design=design, search={**search, "trials": 6}, train={"max_epochs": 6})(
        "run", "tiny.yaml"
    )
    assert {p: p.read_bytes() for p in before} == before
    assert len(list(tmp_path.glob("results/tiny/search/*/result.json"))) == 24


def _variant(arm: str) -> tuple[str, str | None]:
    variant, _, fusion = arm.partition("-")
    return variant, fusion or None


def test_a_second_driver_is_told_who_runs_the_study(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, train={"max_epochs": 40, "patience": 40})
    driver = sweep.start("run", "tiny.yaml")
    wait_for(lambda: sweep.records())
    _, err = sweep("run", "tiny.yaml", status=2)
    assert f"process {driver.pid} on host" in err.strip().splitlines()[-1]
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    assert "8 of 8 cells done" in sweep("run", "tiny.yaml")[0]  # at once, for that process is dead


def test_a_cell_goes_on_from_its_last_epoch_to_the_same_bytes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    settings = {"train": {"max_epochs": 80, "patience": 80}, "checkpoint_seconds": 0}
    Sweep(whole, **settings)("run", "tiny.yaml", "--limit", "1")
    sweep = Sweep(broken, **settings)
    driver = sweep.start("run", "tiny.yaml", "--limit", "1")
    wait_for(lambda: list(broken.glob("results/tiny/cells/*/checkpoint.pt")))
    workers_of(driver.pid)[0].kill()
    _, err = driver.communicate(timeout=180)
    assert driver.returncode == 0, err
    (expected,), (found,) = Sweep(whole).records().values(), sweep.records().values()
    assert json.loads(found)["resumed"] > 0
    assert json.loads(found)["metrics"] == json.loads(expected)["metrics"]
    assert not list(broken.glob("results/tiny/cells/*/checkpoint.pt"))
    predictions = [
        next(d.glob("results/tiny/cells/*/predictions.parquet")).read_bytes() for d in (whole, broken)
    ]
    assert predictions[0] == predictions[1]


def test_equal_failures_end_the_run_and_so_does_a_budget(tmp_path: Path) -> None:
    design = {**STUDY["design"], "seed": [*range(6)]}  # type: ignore[dict-item]
    wild = {"max_epochs": 1, "learning_rate": 1e30, "clip_norm": None}
    sweep = Sweep(tmp_path, design=design, train=wild, max_equal_failures=3)
    _, err = sweep("run", "tiny.yaml", status=1)
    assert "stopped: 3 equal failures in this run, Diverged: training loss" in err
    assert 3 <= sweep.counts()["failed"] < 24
    (tmp_path / "budget").mkdir()
    sweep = Sweep(tmp_path / "budget", budget={"cells": 2})
    _, err = sweep("run", "tiny.yaml")
    assert "budget.cells 2 is used up" in err
    assert 2 <= sweep.counts()["done"] < 8
    assert sweep.counts()["failed"] == 0


def test_only_and_dry_run(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    out, _ = sweep("run", "tiny.yaml", "--only", "variant=latlon", "--dry-run")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["latlon"] * 2
    assert not sweep.records()
    sweep("run", "tiny.yaml", "--only", "variant=latlon")
    assert {json.loads(text)["cell"]["variant"] for text in sweep.records().values()} == {"latlon"}
    assert sweep.counts() == {"total": 8, "done": 2, "failed": 0, "missing": 6}
    _, err = sweep("run", "tiny.yaml", "--only", "variant=latlo", status=2)
    assert "latlon" in err


def test_seeds_that_a_look_asks_for_are_run_in_the_same_run(tmp_path: Path) -> None:
    """The last cell of a look may be the last that runs: there is more to hand out after it."""
    design = {
        "variant": ["none", "latlon", "sincos"],
        "split": [{"kind": "random", "folds": 3}],
        "seed": {"start": 1, "max": 3},
    }
    claim = {"claim": "it helps", "better": {"variant": "latlon"}, "than": {"variant": "none"}}
    claim |= {"on": {"split": "random"}, "metric": "rmse"}
    sweep = Sweep(tmp_path, design=design, claims=[claim])
    undecided = (
        "import sweeps.cli, sweeps.analysis.statistics\n"
        "sweeps.analysis.statistics.stopped = lambda *differences, **how: False\n"
        "sweeps.cli.main()"
    )
    out, err = processes.run_sweep(tmp_path, "run", "tiny.yaml", python=("-c", undecided))
    assert "9 cells, 0 recorded, 9 to run; up to 12 more if undecided" in err
    assert "21 of 21 cells done" in out
    assert len(sweep.records()) == len(sweep.runs()) == 21
