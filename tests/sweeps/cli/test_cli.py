"""The command line: what each command prints and writes, and how bad input ends."""

import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
import torch

import sweeps.analysis
from pm25 import encoders
from pm25.metrics import SCORES
from pm25.panel import Panel
from pm25.sources import synthetic
from sweeps import cli
from sweeps.engine import measure, worker
from sweeps.engine.scheduler import Scheduler
from sweeps.spec import study
from sweeps.store.records import Store

STUDY = """\
study: toy
data: {table: panel.parquet}
design:
  variant: [none, latlon]
  split: [{kind: random, fold: 0}, {kind: checkerboard, degrees: 16, fold: 0}]
  seed: 0
model: {width: 4, attention_units: 4}
train: {max_epochs: 1, batch_size: 64}
"""
ON_A_STUDY = ("plan", "status", "run", "retry", "export", "report")


class Ended:
    """What came of a command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Sweep = Callable[..., Ended]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sweep:
    """`sweep` with these arguments, in this process."""

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ended(int(left.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def table() -> pd.DataFrame:
    return synthetic.synthesize(sites=12, days=40)


@pytest.fixture(scope="module")
def finished(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, its table and its store: two cells done, one failed, one missing."""
    folder = tmp_path_factory.mktemp("finished")
    table.to_parquet(folder / "panel.parquet", index=False)
    (folder / "toy.yaml").write_text(STUDY)
    toy = study.load(str(folder / "toy.yaml"))
    panel = toy.panel()
    store = Store(toy.storage, "toy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first, second, third, _ = toy.keyed(panel).items()
    for key, cell in (first, second):
        assert worker.train_and_record(cell, key, panel, store)["state"] == "done"
    torch.set_num_threads(threads)
    worker.record_loss({"key": third[0], "cell": third[1].resolved()}, store, "the worker died")
    return folder


@pytest.fixture
def toy(finished: Path, tmp_path: Path) -> Path:
    """The study file of a copy that a test may change."""
    shutil.copytree(finished, tmp_path / "toy")
    return tmp_path / "toy" / "toy.yaml"


def tree(folder: Path) -> dict[str, str]:
    """Every file with a digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def arguments(command: str, reference: str | Path, folder: Path, *overrides: str) -> list[str]:
    """A command on a study with whatever else it must be given."""
    more = {"export": [str(folder / "out.csv")], "report": ["-o", str(folder / "report")]}
    sets = [part for override in overrides for part in ("--set", override)]
    return [command, str(reference), *more.get(command, []), *sets]


def check_refused(ended: Ended, *said: str) -> None:
    """Exit status 2 and one line that says `said`."""
    assert ended.status == 2, ended.err
    assert ended.out == ""
    assert ended.err.startswith("sweep: ")
    assert len(ended.err.splitlines()) == 1
    assert "Traceback" not in ended.err
    for part in said:
        assert part in ended.err


# What is loaded


def loaded_by(*commands: list[str]) -> set[str]:
    code = f"""
import sys
from sweeps.cli import main
for command in {list(commands)!r}:
    sys.argv = ["sweep", *command]
    try:
        main()
    except SystemExit as left:
        assert not left.code, left.code
print("LOADED", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.rsplit("LOADED", 1)[1].split()}


def test_help_loads_nothing_that_takes_time() -> None:
    loaded = loaded_by(["--help"], ["--version"], ["run", "--help"], ["data", "--help"])
    assert "click" in loaded
    assert not loaded & {"numpy", "pandas", "pyarrow", "pydantic", "yaml", "torch", "ray", "mlflow", "rich"}


def test_plan_and_status_load_no_trainer_no_cluster_and_no_tracker(toy: Path) -> None:
    # With an encoder variant, whose weights are part of the keys.
    more = ["--set", "design.variant=[none, geoclip]"]
    key = toy_keys(toy)[0]
    commands = (["plan"], ["status"], ["retry", "--where", "error=RuntimeError"], ["why", key])
    loaded = loaded_by(*([command, str(toy), *more, *rest] for command, *rest in commands))
    assert "pyarrow" in loaded
    assert not loaded & {"torch", "ray", "mlflow", "matplotlib", "sklearn"}


# Good input


def toy_keys(toy: Path) -> list[str]:
    """The keys of the study's four cells: two done, one failed, one missing."""
    toy_study = study.load(str(toy))
    return [*toy_study.keyed(toy_study.panel())]


def fail(toy: Path, key: str, message: str, kind: str = "RuntimeError", host: str = "alpha") -> None:
    """Record a cell of the study as failed."""
    toy_study = study.load(str(toy))
    store = Store(toy_study.storage, "toy")
    cell = toy_study.keyed(toy_study.panel())[key]
    store.forget(key)
    record = worker.record_loss({"key": key, "cell": cell.resolved(), "host": host}, store, message)
    error = record["error"] | {"type": kind, "signature": f"{kind}: {message}"}
    store.write_record(record | {"error": error})


def test_status_as_json_has_exactly_this_shape(sweep: Sweep, toy: Path) -> None:
    ended = sweep("status", toy, "--json")
    assert (ended.status, ended.err) == (0, "")
    assert len(ended.out.splitlines()) == 1
    content = json.loads(ended.out)
    assert content.pop("failures") == [
        {
            "cells": 1,
            "where": {"variant": "none", "split": "checkerboard-16"},
            "error": "RuntimeError",
            "message": "the worker died",
            "signature": "RuntimeError: the worker died",
            "hosts": [],
            "key": toy_keys(toy)[2],
        }
    ]
    assert content == {
        "study": "toy",
        "cells": {"total": 4, "done": 2, "failed": 1, "missing": 1},
        "search": {"total": 0, "done": 0, "failed": 0},
    }
    sweep("retry", toy)
    assert {*json.loads(sweep("status", toy, "--json").out)} == {"study", "cells", "search"}


def test_status_names_what_failed(sweep: Sweep, toy: Path) -> None:
    key = toy_keys(toy)[2]
    ended = sweep("status", toy)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "toy: 2 of 4 cells done, 1 failed, 1 missing",
        f"  1 cell: variant=none,split=checkerboard-16, RuntimeError: the worker died ({key})",
        f"  `sweep why {toy} {key[:8]}` tells more of the first; `sweep retry {toy}` lets them run again",
    ]


def test_status_puts_equal_failures_in_one_line(sweep: Sweep, toy: Path) -> None:
    for key in toy_keys(toy):
        fail(toy, key, "CUDA out of memory", "MemoryError", "beta" if key < "8" else "alpha")
    first = toy_keys(toy)[0]
    hosts = ", ".join(sorted({"beta" if key < "8" else "alpha" for key in toy_keys(toy)}))
    lines = sweep("status", toy).out.splitlines()
    assert lines[:2] == [
        "toy: 0 of 4 cells done, 4 failed, 0 missing",
        f"  4 cells: MemoryError: CUDA out of memory ({first} on {hosts})",
    ]
    assert len(lines) == 3


def test_status_stays_short(sweep: Sweep, toy: Path) -> None:
    many = ["--set", "design.seed=[0, 1, 2]"]
    toy_study = study.load(str(toy), many[1:])
    store = Store(toy_study.storage, "toy")
    for number, (key, cell) in enumerate(toy_study.keyed(toy_study.panel()).items()):
        kind = "abcdefghij"[max(0, number - 2)]  # three a, and nine others
        store.forget(key)
        worker.record_loss({"key": key, "cell": cell.resolved()}, store, kind)
    lines = sweep("status", toy, *many).out.splitlines()
    assert lines[0] == "toy: 0 of 12 cells done, 12 failed, 0 missing"
    assert [line.split(" RuntimeError: ")[1][0] for line in lines[1:9]] == [*"abcdefgh"]
    assert lines[1].startswith("  3 cells: seed=0, RuntimeError: a (")
    assert lines[9] == "  and 2 more, with 2 other errors"
    assert len(lines) == 11


def test_status_of_a_study_that_never_ran(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    ended = sweep("status", toy, "--set", f"storage={tmp_path / 'nowhere'}")
    assert ended.out == "toy: 0 of 4 cells done, 0 failed, 4 missing\n"
    assert not (tmp_path / "nowhere").exists()  # asking makes nothing


HERE = ("--cpus", "2", "--gpus", "0")


def test_plan_tells_what_is_to_come(sweep: Sweep, toy: Path) -> None:
    ended = sweep("plan", toy, *HERE)
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "toy: 2 arms, 4 cells, 1 to run"
    assert "panel.parquet: 12 sites x 40 days" in lines[1]
    assert "  arm     none: 2 cells, 1 done" in lines
    assert "  arm     latlon: 2 cells, 1 done" in lines
    cut = [line for line in lines if line.startswith("  split   checkerboard-16 fold 0: train ")]
    assert len(cut) == 1
    assert "wr" in cut[0]
    assert "  epochs  1 (checkerboard-16)" in lines
    assert f"  speed   of 1: measured in done cells on {platform.machine()}" in lines
    assert "  on      2 CPUs, 0 GPUs: 2 side by side, each with 1 CPU and 0 GPU" in lines
    said = dict(line.strip().split(None, 1) for line in lines if line.startswith("  "))
    for name in ("CPU", "wall", "disk"):
        assert re.match(r"[\d.]+ (s )?\([\d.]+ to [\d.]+\)", said[name]), said[name]
    assert any(re.match(r"    variant   latlon: 1, [\d.]+ s \(", line) for line in lines)
    assert "    variant   none: 0, 0 s" in lines


def test_plan_of_a_finished_study_is_short(sweep: Sweep, toy: Path) -> None:
    more = ("--set", "design.split={kind: random, fold: 0}")
    ended = sweep("plan", toy, *HERE, *more, "--budget", "1h")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == "toy: 2 arms, 2 cells, 0 to run"
    assert ended.out.splitlines()[-1] == "  seeds   0"
    found = json.loads(sweep("plan", toy, *HERE, *more, "--json").out)
    assert found["wall_hours"] == {"low": 0, "expected": 0, "high": 0}
    assert (found["cpu_hours_left"], found["disk_mb_left"]) == (0, 0)


def test_plan_measures_once_what_no_record_tells(
    sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = measure.in_child
    began: list[str] = []

    def counted(reference: str, overrides: Sequence[str], room: Any) -> None:
        began.append(reference)
        measures(reference, overrides, room)

    monkeypatch.setattr(measure, "in_child", counted)
    more = (*HERE, "--set", "model.width=8", "--set", "design.variant=none")
    calibrations = toy.parent / "results" / "toy" / "calibration"
    nothing = json.loads(sweep("plan", toy, "--json", "--no-calibrate", *more).out)
    assert nothing["wall_hours"] is nothing["cpu_hours_left"] is None  # nothing to judge by is no zero
    assert "  speed   of 2 not known" in sweep("plan", toy, "--no-calibrate", *more).out
    assert not began
    assert not calibrations.exists()
    measured = sweep("plan", toy, *more)
    assert (measured.status, began) == (0, [str(toy)])
    assert "  speed   of 2: calibrated on " in measured.out
    assert re.search(r"^  memory  [01]\.\d GB a cell$", measured.out, re.MULTILINE)
    before = tree(calibrations)
    assert len(before) == 1
    again = sweep("plan", toy, *more)
    assert (again.out, len(began)) == (measured.out, 1)
    assert tree(calibrations) == before
    assert sweep("plan", toy, *more, "--no-calibrate").out == measured.out


def test_plan_names_a_broken_calibration(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    broken = toy.parent / "results" / "toy" / "calibration" / "a.json"
    broken.parent.mkdir()
    broken.write_text('{"device": "cpu"')
    before = tree(tmp_path)
    check_refused(sweep("plan", toy, *HERE), f"{broken}: not a calibration", "delete the file")
    assert tree(tmp_path) == before


def test_plan_for_gpus_that_nobody_measured(sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.plan.calibration.devices", list)
    ended = sweep("plan", toy, "--gpus", "8", "--cpus", "32")
    assert (ended.status, ended.err) == (0, "")
    assert "  speed   of 1: NOT measured: operation counts at 2 to 15 TFLOP/s" in ended.out
    assert "  on      32 CPUs, 8 GPUs: 8 side by side, each with 1 CPU and 1 GPU" in ended.out
    found = json.loads(sweep("plan", toy, "--gpus", "8", "--cpus", "32", "--json").out)
    assert 0 < found["gpu_hours"]["low"] < found["gpu_hours"]["expected"] < found["gpu_hours"]["high"]
    assert found["without"]["unit"] == "GPU-hours"
    bare = sweep("plan", toy, "--gpus", "0", "--cpus", "2", "--set", "resources.gpu=1")
    check_refused(bare, "resources: a cell wants 1 CPU and 1 GPU", "--gpus")


def test_plan_proposes_what_fits_a_budget(sweep: Sweep, toy: Path) -> None:
    grown = ("--set", "design.seed=[0, 1, 2]", "--set", "design.split={kind: random, fold: [1, 0, 2, 3]}")
    whole = json.loads(sweep("plan", toy, *HERE, *grown, "--json", "--budget", "2d").out)
    assert (whole["budget"]["fits"], whole["budget"]["cells"], whole["budget"]["set"]) == ("all", 24, [])
    minutes = f"{60 * whole['wall_hours']['expected'] / 2:.8f}m"
    part = json.loads(sweep("plan", toy, *HERE, *grown, "--json", "--budget", minutes).out)["budget"]
    assert part["fits"] == "part"
    text = sweep("plan", toy, *HERE, *grown, "--budget", minutes).out.splitlines()
    typed = shlex.split(text[-1])
    assert typed == [word for override in part["set"] for word in ("--set", override)]
    smaller = json.loads(sweep("plan", toy, *HERE, *grown, *typed, "--json").out)
    assert smaller["cells"]["total"] == part["cells"] < 24
    assert smaller["wall_hours"] == part["wall_hours"]
    none = sweep("plan", toy, *HERE, *grown, "--budget", "0.000001m").out
    assert "do not hold one round" in none
    assert none.splitlines()[-1].startswith("    variant   ")


@pytest.mark.parametrize("budget", ["40", "forty", "-1h", "0h", "1y", "1h30m"])
def test_a_budget_is_a_duration(sweep: Sweep, toy: Path, budget: str) -> None:
    ended = sweep("plan", toy, f"--budget={budget}")
    assert (ended.status, ended.out) == (2, "")
    assert "is no duration; write it as 90m, 40h or 2d" in ended.err


def test_plan_tells_the_two_heads_of_none_apart(sweep: Sweep, toy: Path) -> None:
    heads = ["--set", "design.head=[plain, matched]", "--set", "design.fusion=[hadamard, film]"]
    plan = json.loads(sweep("plan", toy, "--json", "--no-calibrate", *heads).out)
    assert plan["arms"] == {
        "none": {"cells": 2, "done": 1},
        "none-matched-hadamard": {"cells": 2, "done": 0},
        "none-matched-film": {"cells": 2, "done": 0},
        "latlon": {"cells": 2, "done": 1},
    }


def test_plan_counts_the_samples_of_the_protocol(sweep: Sweep, toy: Path, table: pd.DataFrame) -> None:
    table.assign(pm25=table["pm25"] - table["pm25"].median()).to_parquet(toy.parent / "panel.parquet")
    toy_study = study.load(str(toy), ["protocol=paper"])
    panel = toy_study.panel()
    positive = int((panel.target[:, 20:] > 0).sum())
    unmeasured = ("--json", "--no-calibrate")
    strict, paper = (
        json.loads(sweep("plan", toy, *unmeasured, "--set", f"protocol={name}").out)["splits"][0]
        for name in ("strict", "paper")
    )
    parts = ("train", "validation", "test")
    assert sum(paper[part] for part in parts) == positive < sum(strict[part] for part in parts)
    (key, cell), *_ = toy_study.keyed(panel).items()
    store = Store(toy_study.storage, "toy")
    counts = worker.train_and_record(cell, key, panel, store)["counts"]
    assert [paper[part] for part in parts] == [counts[f"n_{part}"] for part in ("train", "val", "test")]


def test_plan_as_json(sweep: Sweep, toy: Path) -> None:
    plan = json.loads(sweep("plan", toy, *HERE, "--json").out)
    assert plan["arms"] == {"none": {"cells": 2, "done": 1}, "latlon": {"cells": 2, "done": 1}}
    random, checkerboard = plan["splits"]
    assert set(random) == {"split", "fold", "train", "validation", "test"}
    assert set(checkerboard) == {*random, "wr"}
    samples = study.load(str(toy)).panel().samples(21)[0]
    assert random["train"] + random["validation"] + random["test"] == len(samples)
    assert plan["seeds"] == [0]
    assert plan["cells"] == {"total": 4, "done": 2, "failed": 1, "missing": 1}
    assert plan["cpu_hours_left"] == plan["cpu_hours"]["expected"] > 0
    assert plan["disk_mb_left"] == plan["disk_mb"]["expected"] > 0
    assert plan["room"] == {"cpus": 2, "gpus": 0, "cpu": 1, "gpu": 0, "side_by_side": 2}
    assert (plan["jobs"], plan["search_trials"], plan["gpu_hours"]["high"]) == (1, 0, 0)
    fresh = json.loads(sweep("plan", toy, *HERE, "--json", "--no-calibrate", "--set", "model.width=8").out)
    assert fresh["cells"]["missing"] == 4
    assert fresh["cpu_hours_left"] is fresh["wall_hours"] is None  # nothing to judge by is no zero


def test_more_levels_only_add_cells(sweep: Sweep, toy: Path) -> None:
    more = json.loads(sweep("status", toy, "--json", "--set", "design.seed=[0, 1]").out)
    assert more["cells"] == {"total": 8, "done": 2, "failed": 1, "missing": 5}
    other = json.loads(sweep("status", toy, "--json", "--set", "window=14").out)
    assert other["cells"] == {"total": 4, "done": 0, "failed": 0, "missing": 4}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_export_has_a_row_for_each_cell(sweep: Sweep, toy: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"cells.{suffix}"
    ended = sweep("export", toy, out)
    assert (ended.status, ended.out) == (0, f"{out}: 4 cells, 2 done\n")
    frame = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    named = [
        "key",
        "variant",
        "fusion",
        "split",
        "regime",
        "fold",
        "seed",
        "state",
        "n_train",
        "n_val",
        "n_test",
    ]
    assert list(frame.columns)[: len(named)] == named
    metrics = [f"{part}_{name}" for part in ("test", "wr") for name in SCORES]
    assert {*metrics} <= {*frame.columns}
    assert frame["state"].tolist() == ["done", "done", "failed", "missing"]
    assert frame["variant"].tolist() == ["none", "latlon"] * 2
    assert frame["split"].tolist() == ["random"] * 2 + ["checkerboard-16"] * 2
    assert frame.loc[:1, ["test_rmse", "test_r2", "n_test"]].notna().all(axis=None)
    assert frame.loc[2:, [*metrics, "n_train", "n_test", "seconds"]].isna().all(axis=None)
    assert frame.loc[2, "error"] == "RuntimeError: the worker died"
    toy_study = study.load(str(toy))
    record = Store(toy_study.storage, "toy").record(frame.loc[0, "key"])
    assert record is not None
    assert frame.loc[0, "test_rmse"] == pytest.approx(record["metrics"]["test_rmse"], rel=1e-12)


def test_report_writes_its_files(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    ended = sweep("report", toy, "-o", out)
    assert (ended.status, ended.err) == (0, "")
    files = ["index.html", "report.md", "cells.csv", "means.csv", "contrasts.csv"]
    files += [f"latex/{name}.tex" for name in ("wr", "oor", "gap", "contrasts", "all")]
    assert ended.out.splitlines() == [str(out / name) for name in files]
    assert all((out / name).stat().st_size for name in files)
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert {"cells-rmse.svg", "cells-rmse.png", "learning.svg", "split-checkerboard-16.png"} <= drawn
    assert {name.split(".")[0] for name in drawn if name.endswith("svg")} == {
        name.split(".")[0] for name in drawn if name.endswith("png")
    }
    assert pd.read_csv(out / "cells.csv")["state"].tolist() == ["done", "done", "failed", "missing"]


def test_report_refuses_outlines_that_are_none(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "states.geojson"
    file.write_text("{}")
    ended = sweep("report", toy, "-o", tmp_path / "out", "--outlines", file)
    assert (ended.status, ended.out) == (2, "")
    assert (
        ended.err
        == f"sweep: {file}: not a GeoJSON file with polygons or lines; name one with state outlines\n"
    )
    assert not (tmp_path / "out").exists()


def test_retry_forgets_failed_cells_and_no_others(sweep: Sweep, toy: Path) -> None:
    cells = toy.parent / "results" / "toy" / "cells"
    before = tree(cells)
    ended = sweep("retry", toy)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("1 failed cells will run again")
    (forgotten,) = before.keys() - tree(cells).keys()
    assert forgotten.endswith("result.json")
    assert tree(cells).items() <= before.items()
    counts = json.loads(sweep("status", toy, "--json").out)["cells"]
    assert counts == {"total": 4, "done": 2, "failed": 0, "missing": 2}
    assert sweep("retry", toy).out.startswith("0 failed cells")


@pytest.mark.parametrize(
    ("text", "forgotten"),
    [
        ("variant=latlon", [3]),
        ("error=RuntimeError", [2]),
        ("host=alpha", [3]),
        ("split=checkerboard", [2, 3]),
        ("signature=memory", [3]),
        ("split=checkerboard-16,error=MemoryError|RuntimeError", [2, 3]),
    ],
)
def test_retry_where(sweep: Sweep, toy: Path, text: str, forgotten: list[int]) -> None:
    keys = toy_keys(toy)
    fail(toy, keys[3], "CUDA out of memory", "MemoryError")
    ended = sweep("retry", toy, "--where", text)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == (
        f"{len(forgotten)} failed cells will run again with `sweep run {toy}`; "
        f"{2 - len(forgotten)} others stay failed\n"
    )
    cells = toy.parent / "results" / "toy" / "cells"
    left = [i for i, key in enumerate(keys) if (cells / key / "result.json").exists()]
    assert left == [i for i in range(4) if i not in forgotten]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variant=latlon", "no failed cell has variant 'latlon'; known are none"),
        ("variant=non", "no failed cell has variant 'non'; did you mean none?"),
        ("eror=RuntimeError", "there is no field 'eror'; did you mean error?"),
        ("variant=none,split=random", "no failed cell has split 'random'; known are checkerboard-16"),
        ("variant", "write it as FIELD=VALUE"),
    ],
)
def test_a_filter_that_chooses_nothing_forgets_nothing(sweep: Sweep, toy: Path, text: str, said: str) -> None:
    before = tree(toy.parent)
    check_refused(sweep("retry", toy, "--where", text), f"filter '{text}': {said}")
    assert tree(toy.parent) == before


# Why


def test_why_of_every_state(sweep: Sweep, toy: Path) -> None:
    done, _, failed, missing = toy_keys(toy)
    before = tree(toy.parent)

    def lines(key: str, *more: str) -> list[str]:
        ended = sweep("why", toy, key, *more)
        assert (ended.status, ended.err) == (0, "")
        return ended.out.splitlines()

    said = lines(done[:8])
    assert said[0] == f"{done} none random fold 0 seed 0: done, as the study asks for it"
    assert said[1].startswith("  ended   20")
    said = lines(failed)
    assert said[0] == f"{failed} none checkerboard-16 fold 0 seed 0: failed"
    assert "  error   RuntimeError: the worker died" in said
    again = f"`sweep retry {toy} --where arm=none,split=checkerboard-16,fold=0,seed=0`"
    assert said[-1] == f"  {again} lets it run again"
    assert lines(missing) == [
        f"{missing} latlon checkerboard-16 fold 0 seed 0: missing",
        f"  nearest stored: {failed} none checkerboard-16 fold 0 seed 0 (failed)",
        "  what differs",
        "    variant: none -> latlon",
        f"  `sweep run {toy}` runs it",
    ]
    width = ["--set", "model.width=8"]
    assert lines(done, *width)[2:] == [
        f"  nearest in the grid: {study_keys(toy, width)[0]} none random fold 0 seed 0 (missing)",
        "  to have it asked for again, change back",
        "    model.width: 8 -> 4",
    ]
    assert tree(toy.parent) == before


def study_keys(toy: Path, sets: list[str]) -> list[str]:
    toy_study = study.load(str(toy), sets[1::2])
    return [*toy_study.keyed(toy_study.panel())]


def test_the_retry_that_why_proposes_chooses_that_cell(sweep: Sweep, toy: Path) -> None:
    keys = toy_keys(toy)
    fail(toy, keys[3], "CUDA out of memory")
    proposed = sweep("why", toy, keys[3]).out.splitlines()[-1].split("`")[1]
    assert sweep(*shlex.split(proposed)[1:]).out.startswith("1 failed cells will run again")
    counts = json.loads(sweep("status", toy, "--json").out)["cells"]
    assert counts == {"total": 4, "done": 2, "failed": 1, "missing": 1}
    assert "missing" in sweep("why", toy, keys[3]).out


def test_why_as_json(sweep: Sweep, toy: Path) -> None:
    ended = sweep("why", toy, toy_keys(toy)[3], "--json")
    assert (ended.status, ended.err) == (0, "")
    assert len(ended.out.splitlines()) == 1
    content = json.loads(ended.out)
    assert (content["state"], content["stored"]) == ("missing", None)
    (difference,) = content["relative"]["differences"]
    assert difference == {"part": "variant", "stored": "none", "asked": "latlon", "tuned": False}


def test_why_of_no_cell_is_refused(sweep: Sweep, toy: Path) -> None:
    check_refused(sweep("why", toy, "zzz"), "key 'zzz': no cell of toy or its store has it")


# A run, with toys in the places of Ray and MLflow


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Cells run in this process, one by one; handed out is the list of the keys that MLflow heard of."""
    heard: list[str] = []

    def run(agenda: Scheduler, panel: Panel, store: Store, of: study.Study, observer: Any, **_: Any) -> None:
        while (found := agenda.next()) is not None:
            key, (cell,) = found.key, found.cells
            observer.started(key, "cell")
            embedded = None
            if cell.encoder is not None:
                options = of.encoder_options(cell.encoder)
                embedded = encoders.embed(cell.encoder, options, panel.lat, panel.lon, panel.site_id)
            record = worker.train_and_record(
                cell, key, panel, store, embedded=embedded, keep_weights=of.keeps_weights(cell)
            )
            agenda.ended(found, record)
            observer.ended("cell", record)

    class TrackingProcess:
        behind = ""

        def __init__(self, store: Store, uri: str | None, recorded: Any, data: dict[str, Any]) -> None:
            assert data["profile"]["sites"] > 0

        def plan(self, state: Any) -> None:
            """The arms are compared elsewhere."""

        def register(self, winner: Any, example: Any) -> None:
            """So are models."""

        def add(self, record: dict[str, Any]) -> None:
            heard.append(record["key"])

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to wait for."""

        def describe(self, markdown: str) -> None:
            assert "RMSE" in markdown

    for name, toy in (
        ("engine.ray_tune", SimpleNamespace(run=run)),
        ("tracking.process", SimpleNamespace(TrackingProcess=TrackingProcess)),
    ):
        room, _, module = name.partition(".")
        monkeypatch.setitem(sys.modules, f"sweeps.{name}", toy)
        monkeypatch.setattr(import_module(f"sweeps.{room}"), module, toy, raising=False)
    monkeypatch.delitem(sys.modules, "sweeps.driver", raising=False)  # it holds on to the real ones
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield heard
    torch.set_num_threads(threads)


def test_a_run_does_what_is_missing_and_nothing_else(sweep: Sweep, toy: Path, here: list[str]) -> None:
    before = tree(toy.parent)
    ended = sweep("run", toy)
    assert ended.status == 1  # the cell that had failed is still a failure
    assert ended.err.splitlines()[-1] == (
        "sweep: 1 cells failed, the first with RuntimeError: the worker died; `sweep status` groups them"
    )
    assert "3 of 4 cells done, 1 failed, 0 missing" in ended.out
    assert len(here) == 1
    after = tree(toy.parent)
    assert before.items() <= after.items()
    assert {Path(name).parent.name for name in after.keys() - before.keys()} == {*here}
    assert sweep("run", toy).status == 1
    assert len(here) == 1
    assert tree(toy.parent) == after
    sweep("retry", toy)
    ended = sweep("run", toy)
    assert ended.status == 0
    assert "4 of 4 cells done, 0 failed, 0 missing" in ended.out
    assert len(here) == 2


def test_a_limit_is_kept_and_missing_cells_are_no_failure(sweep: Sweep, toy: Path, here: list[str]) -> None:
    fresh = ["--set", "storage=" + str(toy.parent / "fresh")]
    ended = sweep("run", toy, "--limit", "1", *fresh)
    assert (ended.status, len(here)) == (0, 1)
    assert "1 of 4 cells done, 0 failed, 3 missing" in ended.out
    assert "4 cells, 0 recorded, 4 to run; at most 1 now" in ended.err


def test_a_failing_cell_is_exit_1_and_a_result(sweep: Sweep, toy: Path, here: list[str]) -> None:
    ended = sweep("run", toy, "--set", "train.learning_rate=1e30", "--set", "design.variant=none")
    assert ended.status == 1
    assert "0 of 2 cells done, 2 failed, 0 missing" in ended.out
    assert ended.err.splitlines()[-1].startswith("sweep: 2 cells failed, the first with Diverged: ")
    assert "Traceback" not in ended.err


def test_an_interrupt_is_130_and_loses_nothing(
    sweep: Sweep, toy: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(toy.parent)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["sweeps.engine.ray_tune"], "run", interrupt)
    ended = sweep("run", toy)
    assert ended.status == 130
    assert ended.err.splitlines()[-1].startswith("sweep: interrupted; the same command goes on")
    assert tree(toy.parent) == before


ADAPTIVE = (
    *("--set", "design.split=[{kind: random, folds: 3}, {kind: checkerboard, degrees: 16, fold: 0}]"),
    *("--set", "design.seed={start: 1, max: 3}"),
)


def test_plan_and_status_say_how_many_cells_may_come_besides(sweep: Sweep, toy: Path) -> None:
    lines = sweep("plan", toy, "--no-calibrate", *ADAPTIVE).out.splitlines()
    assert lines[0] == "toy: 2 arms, 8 cells, 7 to run"
    assert "  seeds   0; up to 12 more cells if undecided" in lines
    content = json.loads(sweep("plan", toy, "--no-calibrate", "--json", *ADAPTIVE).out)
    assert (content["seeds"], content["cells"]["total"], content["further"]) == ([0], 8, 12)
    told = sweep("status", toy, *ADAPTIVE).out.splitlines()[0]
    assert told == "toy: 0 of 8 cells done, 1 failed, 7 missing; up to 12 more if undecided"
    content = json.loads(sweep("status", toy, "--json", *ADAPTIVE).out)
    assert (content["cells"]["total"], content["further"]) == (8, 12)
    listed = json.loads(sweep("status", toy, "--json").out)
    assert "further" not in listed  # of which it would mean nothing


def test_a_run_adds_seeds_to_what_is_undecided(
    sweep: Sweep, toy: Path, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stopped(differences: np.ndarray, **_: Any) -> bool:
        seen.append(differences.shape)
        return differences.shape[1] == 2

    monkeypatch.setattr(sweeps.analysis, "statistics", SimpleNamespace(stopped=stopped), raising=False)
    of = (*ADAPTIVE, "--set", f"storage={tmp_path / 'fresh'}")
    ended = sweep("run", toy, *of)
    assert (ended.status, len(here)) == (0, 8 + 6)
    assert "14 of 14 cells done" in ended.out
    assert ended.err.splitlines()[0].endswith("8 cells, 0 recorded, 8 to run; up to 12 more if undecided")
    assert ended.err.splitlines()[-1].startswith("14/14 done")  # it was 8 at the beginning
    assert {*seen} == {(3, 1), (3, 2)}
    assert sweep("status", toy, *of).out == "toy: 14 of 14 cells done, 0 failed, 0 missing\n"
    out = tmp_path / "cells.csv"
    assert sweep("export", toy, out, *of).out == f"{out}: 14 cells, 14 done\n"
    frame = pd.read_csv(out)
    assert frame.groupby(["split", "seed"]).size().to_dict() == {
        ("checkerboard-16", 0): 2,
        ("random", 0): 6,
        ("random", 1): 6,
    }
    sweep("run", toy, *of)
    assert len(here) == 14


# Cells run again


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def done_keys(toy: Path) -> list[str]:
    toy_study = study.load(str(toy))
    records = Store(toy_study.storage, "toy").records(toy_study.keyed(toy_study.panel()))
    return [key for key, record in records.items() if record["state"] == "done"]


@pytest.mark.usefixtures("one_thread")
def test_verify_finds_what_was_stored(sweep: Sweep, toy: Path) -> None:
    before = tree(toy.parent)
    ended = sweep("verify", toy)
    assert (ended.status, ended.err) == (0, "")
    first, second = done_keys(toy)
    assert ended.out.splitlines() == [
        f"  {first} none random fold 0 seed 0: bitwise equal",
        f"  {second} latlon random fold 0 seed 0: bitwise equal",
    ]
    assert tree(toy.parent) == before


@pytest.mark.usefixtures("one_thread")
def test_verify_names_the_cell_that_differs(sweep: Sweep, toy: Path) -> None:
    first, second = done_keys(toy)
    path = toy.parent / "results" / "toy" / "cells" / second / "result.json"
    record = json.loads(path.read_text())
    record["metrics"]["test_mae"] += 1e-9
    record["counts"]["epochs"] += 1
    path.write_text(json.dumps(record))
    ended = sweep("verify", toy)
    assert (ended.status, ended.err) == (1, "")
    assert ended.out.splitlines() == [
        f"  {first} none random fold 0 seed 0: bitwise equal",
        f"  {second} latlon random fold 0 seed 0: differs in counts, test_mae",
    ]
    whole = ended.out.splitlines()
    ended = sweep("verify", toy, "--sample", "1")
    (drawn,) = ended.out.splitlines()
    assert drawn in whole
    assert ended.status == int("differs" in drawn)
    assert sweep("verify", toy, "--sample", "1").out == ended.out  # the same draw again
    assert len(sweep("verify", toy, "--sample", "9").out.splitlines()) == 2


@pytest.mark.parametrize("sample", range(1, 9))
def test_a_sample_is_as_large_as_was_asked(
    sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    first, _ = done_keys(toy)
    cells = toy.parent / "results" / "toy" / "cells"
    seeds = [f"design.seed=[{', '.join(map(str, range(4)))}]", "design.split={kind: random, fold: 0}"]
    toy_study = study.load(str(toy), seeds)
    for key in toy_study.keyed(toy_study.panel()):
        if key != first:
            shutil.copytree(cells / first, cells / key, dirs_exist_ok=True)
    monkeypatch.setattr(worker, "differences", lambda *_, **__: [])
    ended = sweep("verify", toy, "--sample", str(sample), *(p for s in seeds for p in ("--set", s)))
    assert (ended.status, len(set(ended.out.splitlines()))) == (0, sample)  # of 8
    if sample == 4:  # arms take turns in the grid: every second cell would be of one arm
        assert {line.split()[1] for line in ended.out.splitlines()} == {"none", "latlon"}


def test_verify_of_nothing_is_refused(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    check_refused(
        sweep("verify", toy, "--set", "window=14"), f"{toy}: no cell is done, so there is nothing to verify"
    )
    assert sweep("verify", toy, "--sample", "0").status == 2
    assert tree(tmp_path) == before


@pytest.fixture
def kept(toy: Path, here: list[str], sweep: Sweep) -> list[str]:
    """What names a study with the weights of its only cell, an encoder's, in the store; then the key."""
    overrides = (
        *("keep_weights=true", "design.variant=random", "encoders.random.dim=4"),
        *("design.split={kind: random, fold: 0}", "data.channels=[elev_m, crn_tmax_c, day_sin]"),
    )
    sets = [part for override in overrides for part in ("--set", override)]
    assert sweep("run", toy, *sets).status == 0
    return [*sets, here[-1]]


def test_importance_lists_every_channel_and_the_embedding(sweep: Sweep, toy: Path, kept: list[str]) -> None:
    *sets, key = kept
    before = tree(toy.parent)
    ended = sweep("importance", toy, key[:8], "--repeats", "3", *sets)
    assert (ended.status, ended.err) == (0, "")
    head, *lines = ended.out.splitlines()
    assert head.startswith("random-hadamard random fold 0 seed 0: RMSE without it, minus RMSE (ug/m3, ")
    assert "of 3 permutations" in head
    found = [re.fullmatch(r"  (\S+) +([+-]\d+\.\d{3}) ± (\d+\.\d{3})", line) for line in lines]
    assert all(found)
    parts = [match.groups() for match in found if match]
    assert {what for what, _, _ in parts} == {"elev_m", "crn_tmax_c", "day_sin", "embedding"}
    increase = [float(value) for _, value, _ in parts]
    assert increase == sorted(increase, reverse=True)
    assert any(increase)
    assert sweep("importance", toy, key, "--repeats", "3", *sets).out == ended.out
    stored = toy.parent / "results" / "toy" / "cells" / key / "importance.parquet"
    frame = pd.read_parquet(stored)
    assert [*frame] == ["what", "rmse_increase", "sd", "repeats"]
    assert frame["what"].tolist() == [what for what, _, _ in parts]
    assert [f"{value:+.3f}" for value in frame["rmse_increase"]] == [value for _, value, _ in parts]
    assert frame["repeats"].tolist() == [3] * 4
    stored.unlink()
    assert tree(toy.parent) == before


def test_importance_without_a_key_is_of_the_winners(sweep: Sweep, toy: Path, here: list[str]) -> None:
    sets = ("--set", "design.split={kind: random, folds: 2}", "--set", "data.channels=[elev_m, crn_tmax_c]")
    check_refused(sweep("importance", toy, *sets), "no arm has a winner yet; `sweep run ")
    assert sweep("run", toy, *sets).status == 0
    best: dict[str, tuple[float, str]] = {}
    for path in (toy.parent / "results" / "toy" / "cells").glob("*/result.json"):
        record = json.loads(path.read_text())
        if record["key"] in here:
            variant, mine = record["cell"]["variant"], (record["metrics"]["val_rmse"], record["key"])
            best[variant] = min(mine, best.get(variant, mine))
    store = Store(str(toy.parent / "results"), "toy")
    winners = {key for _, key in best.values()}
    assert (len(here), len(winners)) == (4, 2)
    assert store.holding("weights.pt") == winners
    ended = sweep("importance", toy, "--repeats", "2", *sets)
    assert (ended.status, ended.err) == (0, "")
    assert store.holding("importance.parquet") == winners
    heads = [line for line in ended.out.splitlines() if "permutations" in line]
    assert [line.split()[0] for line in heads] == ["none", "latlon"]
    loser = next(key for key in here if key not in winners)
    said = f"{loser}: no weights are stored; set keep_weights: true before the cell is run (cells that have "
    check_refused(sweep("importance", toy, loser, *sets), said, *winners)
    # A winner that was trained without keeping its weights is named, and the others are done.
    key = best["none"][1]
    store.delete_file(key, "weights.pt")
    ended = sweep("importance", toy, "--repeats", "2", *sets)
    assert ended.status == 0
    assert ended.err.startswith("sweep: none random fold ")
    assert f"{key}: no weights are stored" in ended.err
    assert "latlon" in ended.out


@pytest.mark.usefixtures("one_thread")
def test_verify_says_which_cells_have_weights(sweep: Sweep, toy: Path, kept: list[str]) -> None:
    *sets, key = kept
    label = f"  {key} random-hadamard random fold 0 seed 0: "
    assert sweep("verify", toy, *sets).out == f"{label}bitwise equal, with weights\n"
    store = Store(str(toy.parent / "results"), "toy")
    found = torch.load(io.BytesIO(store.read_file(key, "weights.pt") or b""), weights_only=True)
    found["weights"]["output.bias"] += 1e-6
    buffer = io.BytesIO()
    torch.save(found, buffer)
    store.write_file(key, "weights.pt", buffer.getvalue())
    ended = sweep("verify", toy, *sets)
    assert (ended.status, ended.out) == (1, f"{label}differs in weights, with weights\n")


def test_importance_needs_one_cell_and_its_weights(sweep: Sweep, toy: Path) -> None:
    before = tree(toy.parent)
    check_refused(sweep("importance", toy, "xyz"), "xyz: names 0 cells of", "`sweep export` lists the keys")
    # Of 17 keys in hexadecimal two begin alike.
    more = [f"design.seed=[{', '.join(map(str, range(17)))}]", "design.split={kind: random, fold: 0}"]
    toy_study = study.load(str(toy), more)
    starts = [key[0] for key in toy_study.keyed(toy_study.panel())]
    often = max(starts, key=starts.count)
    sets = [part for override in more for part in ("--set", override)]
    said = f"{often}: names {starts.count(often)} cells of"
    assert starts.count(often) > 1
    check_refused(sweep("importance", toy, often, *sets), said, "`sweep export` lists the keys")
    first, _ = done_keys(toy)
    said = f"{first}: no weights are stored; set keep_weights: true before the cell is run"
    check_refused(sweep("importance", toy, first), said)
    assert sweep("importance", toy).status == 2
    assert sweep("importance", toy, first, "--repeats", "1").status == 2
    assert tree(toy.parent) == before


# Bad studies


@pytest.mark.parametrize("command", ON_A_STUDY)
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modle.width=8", "modle: unknown key; did you mean model?"),
        ("model.widht=8", "model.widht: unknown key; did you mean model.width?"),
        ("design.seed=-1", "design.seed.0: "),
        ("design.split={kind: random, fold: 5}", "fold 5 does not exist: random has folds 0 to 4"),
        ("train.learning_rate=.inf", "train.learning_rate: input should be a finite number"),
        ("data.channels=[elev]", "elev: channel is missing from the table; set data.channels"),
        ("data.table=nowhere.parquet", "nowhere.parquet: no such table"),
        ("storage=foo://bar", "storage: foo://bar cannot be opened"),
    ],
)
def test_a_bad_study_is_refused_and_touches_nothing(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str, override: str, said: str
) -> None:
    before = tree(tmp_path)
    check_refused(sweep(*arguments(command, toy, tmp_path, override)), said)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_split_that_leaves_a_part_empty_is_refused(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str
) -> None:
    before = tree(tmp_path)
    override = "design.split={kind: checkerboard, degrees: 100}"
    check_refused(sweep(*arguments(command, toy, tmp_path, override)), "checkerboard-100 fold", "part empty")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ON_A_STUDY)
def test_an_unknown_study_is_refused(sweep: Sweep, tmp_path: Path, command: str) -> None:
    check_refused(sweep(*arguments(command, "demoo", tmp_path)), "demoo: no such study", "did you mean demo?")
    check_refused(sweep(*arguments(command, "quick", tmp_path)), "--set data.table=PANEL.parquet")
    assert tree(tmp_path) == {}


# Bad tables


Frame = pd.DataFrame


def at(frame: Frame, row: int, column: str, value: Any) -> Frame:
    """The table with another value in one row, counted from 1."""
    frame = frame.copy()
    frame.loc[row - 1, column] = value
    return frame


BAD_TABLES: dict[str, tuple[Callable[[Frame], Frame], str]] = {
    "no lat": (lambda f: f.drop(columns="lat"), "lat: column is missing"),
    "no target": (lambda f: f.drop(columns="pm25"), "pm25: column is missing"),
    "duplicates": (
        lambda f: pd.concat([f, f.iloc[:3]]),
        "site_id, date: 3 duplicate site-days, the first S00000 2021-01-01 (row 481, 482, 483)",
    ),
    "swapped": (lambda f: f.rename(columns={"lat": "lon", "lon": "lat"}), "look swapped"),
    "lat out of range": (lambda f: f.assign(lat=95.0), "lat: 95 is out of range"),
    "lon from 0 to 360": (lambda f: f.assign(lon=f["lon"] + 360), "is out of range"),
    "a site that moves": (lambda f: at(f, 6, "lat", 40.5), "lat, lon: site S00000 moves (row 6)"),
    "no lat in a row": (lambda f: at(f, 6, "lat", np.nan), "lat: empty (row 6)"),
    "no target at all": (lambda f: f.assign(pm25=np.nan), "pm25: all values are null"),
    "text": (
        lambda f: at(f.astype({"elev_m": "str"}), 8, "elev_m", "high"),
        "elev_m: text 'high' in a numeric channel (row 8)",
    ),
    "infinite": (lambda f: at(f, 3, "crn_rh_avg", np.inf), "crn_rh_avg: infinite (row 3)"),
    "20 days": (lambda f: f[f["date"] < "2021-01-21"], "date: only 20 days; a window needs at least 21"),
    "no rows": (lambda f: f.iloc[:0], "the table has no rows"),
    "no date": (lambda f: f.assign(date="soon"), "date: not a date"),
}


@pytest.fixture(scope="module")
def bad_tables(table: Frame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, (spoil, _) in BAD_TABLES.items():
        spoil(table).to_parquet(folder / f"{name}.parquet", index=False)
    return folder


@pytest.mark.parametrize("command", ["plan", "status", "run", "export"])
@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_and_touches_nothing(
    sweep: Sweep, toy: Path, tmp_path: Path, bad_tables: Path, name: str, command: str
) -> None:
    bad = bad_tables / f"{name}.parquet"
    before = tree(tmp_path)
    ended = sweep(*arguments(command, toy, tmp_path, f"data.table={bad}"))
    check_refused(ended, f"{bad}: ", BAD_TABLES[name][1])
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", BAD_TABLES)
def test_check_names_every_problem(sweep: Sweep, bad_tables: Path, name: str) -> None:
    ended = sweep("data", "check", bad_tables / f"{name}.parquet")
    assert ended.status == 2
    assert ended.err.startswith("problem: ")
    assert BAD_TABLES[name][1] in ended.err
    assert "no problem found" not in ended.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.parquet", "cut"),
        ("words.parquet", b"these are words, and no table"),
        ("empty.parquet", b""),
        ("damaged.parquet", "damaged"),
        ("empty.csv", b""),
        ("ragged.csv", b"site_id,date\n1,2,3\n"),
        ("latin.csv", b"site_id,\xff\n1,2\n"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "check"])
def test_a_corrupt_table_is_refused(
    sweep: Sweep, toy: Path, tmp_path: Path, command: str, name: str, content: bytes | str
) -> None:
    if isinstance(content, str):
        good = (toy.parent / "panel.parquet").read_bytes()
        content = good[: len(good) // 2] if content == "cut" else good[:300] + bytes(600) + good[900:]
    bad = tmp_path / name
    bad.write_bytes(content)
    before = tree(tmp_path)
    if command == "check":
        ended = sweep("data", "check", bad)
    else:
        ended = sweep(command, toy, "--set", f"data.table={bad}")
    check_refused(ended, f"{bad}: cannot be read as {bad.suffix[1:]}")
    assert tree(tmp_path) == before


# Bad places


@pytest.mark.parametrize(
    "place", ["{folder}/file", "{folder}/file/below", "/proc/results", "file:///proc/results"]
)
def test_a_run_without_a_place_for_results_is_refused(
    sweep: Sweep, toy: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    place = place.format(folder=tmp_path)
    before = tree(tmp_path)
    ended = sweep("run", toy, "--set", f"storage={place}")
    check_refused(ended, f"storage: {place} cannot be written", "--set storage=FOLDER")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["plan", "status", "retry", "export", "report"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_empty_store(sweep: Sweep, toy: Path, tmp_path: Path, command: str, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    ended = sweep(*arguments(command, toy, tmp_path, f"storage={tmp_path / place}"))
    check_refused(ended, f"storage: {tmp_path / place} cannot be read")
    assert tree(tmp_path) == before


def test_a_broken_record_is_named_and_kept(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    broken = sorted((toy.parent / "results").rglob("result.json"))[0]
    broken.write_text(broken.read_text()[:100])
    before = tree(tmp_path)
    for command in ON_A_STUDY:
        check_refused(sweep(*arguments(command, toy, tmp_path)), f"{broken}: not a cell's record")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["cells.xlsx", "cells", "cells.csv.gz"])
def test_export_knows_two_formats(sweep: Sweep, toy: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    out.write_text("mine")
    check_refused(sweep("export", toy, out), f"{out}: no format has suffix", "name it .parquet or .csv")
    assert out.read_text() == "mine"


@pytest.mark.parametrize("out", ["missing/cells.csv", "missing/cells.parquet", "file/cells.csv"])
def test_export_to_no_place(sweep: Sweep, toy: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    check_refused(sweep("export", toy, tmp_path / out), f"{tmp_path / out}: cannot be written")
    assert tree(tmp_path) == before


def test_report_to_no_place(sweep: Sweep, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "report"
    check_refused(sweep("report", toy, "-o", out), f"{out}: cannot be written", "give another folder with -o")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_keeps_the_old_export(
    sweep: Sweep, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cells.csv"
    assert sweep("export", toy, out).status == 0
    before = tree(tmp_path)

    def full(frame: Frame, path: Path, **_: Any) -> None:
        path.write_text("key,")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    check_refused(sweep("export", toy, out), f"{out}: cannot be written (No space left on device)")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "demo", "--bogus"],
        ["bogus"],
        ["run", "demo", "--limit", "0"],
        ["export", "demo"],
        ["data", "synth", "x.parquet", "--seed", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = sweep(*words)
    assert (ended.status, ended.out) == (2, "")
    assert "Error: " in ended.err
    assert "Traceback" not in ended.err
    assert tree(tmp_path) == {}


# Data


def test_synth_writes_the_panel(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "panel.parquet"
    ended = sweep("data", "synth", out, "--sites", "9", "--days", "25", "--seed", "3")
    frame = synthetic.synthesize(sites=9, days=25, seed=3)
    observed = int(frame["pm25"].notna().sum())
    assert ended.out == f"{out}: 9 sites, 25 days, {observed} observed\n"
    pd.testing.assert_frame_equal(pd.read_parquet(out), frame, check_dtype=False)
    assert [*tree(tmp_path)] == ["panel.parquet"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("panel.csv", [], "it is written as Parquet; name it panel.parquet"),
        ("panel.parquet", ["--sites", "7"], "sites 7: too few"),
        ("panel.parquet", ["--days", "20"], "days 20: shorter than one 21-day window"),
        ("missing/panel.parquet", ["--sites", "8", "--days", "21"], "cannot be written"),
    ],
)
def test_synth_refuses(sweep: Sweep, tmp_path: Path, name: str, options: list[str], said: str) -> None:
    if (tmp_path / name).parent.is_dir():
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    check_refused(sweep("data", "synth", tmp_path / name, *options), said)
    assert tree(tmp_path) == before


def test_check_of_a_good_table(sweep: Sweep, toy: Path) -> None:
    table = toy.parent / "panel.parquet"
    ended = sweep("data", "check", table)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "no problem found"
    content = json.loads(sweep("data", "check", table, "--json").out)
    assert content["problems"] == []
    assert (content["counts"]["sites"], content["counts"]["days"], content["counts"]["rows"]) == (12, 40, 480)


def test_check_as_json_names_every_row(sweep: Sweep, bad_tables: Path) -> None:
    ended = sweep("data", "check", bad_tables / "duplicates.parquet", "--json")
    assert (ended.status, ended.err) == (2, "")
    (problem,) = json.loads(ended.out)["problems"]
    assert (problem["column"], problem["rows"]) == ("site_id, date", [481, 482, 483])


def test_check_of_no_table(sweep: Sweep, tmp_path: Path) -> None:
    check_refused(sweep("data", "check", tmp_path / "no.parquet"), "no.parquet: no such table")
    check_refused(sweep("data", "check", tmp_path), "no such table")


AQS = (
    '"State Code","County Code","Site Num","Parameter Code","POC","Latitude","Longitude","Sample Duration",'
    '"Date Local","Units of Measure","Event Type","Arithmetic Mean"\n'
)


def aqs_file(path: Path, days: int = 3) -> Path:
    lines = [
        f'"01","073","0023","88101",1,33.55,-86.81,"24 HOUR","2021-01-{day:02}",'
        f'"Micrograms/cubic meter (LC)","None",{day}.5\n'
        for day in range(1, days + 1)
    ]
    path.write_text(AQS + "".join(lines))
    return path


def test_aqs_builds_a_panel(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "panel.parquet"
    ended = sweep("data", "aqs", aqs_file(tmp_path / "daily_88101_2021.csv"), "-o", out)
    assert (ended.status, ended.out) == (0, f"{out}: 1 sites, 3 days, 3 observed\n")
    frame = pd.read_parquet(out)
    assert frame["site_id"].tolist() == ["01-073-0023"] * 3
    assert frame["pm25"].tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "data aqs: no files"),
        (["missing.zip"], "missing.zip: no such file"),
        (["--year", "2021"], "--year and --fetch go together"),
        (["--fetch", "raw"], "--year and --fetch go together"),
        (["words.csv"], "words.csv: no column 'State Code'"),
        (["broken.zip"], "broken.zip: a damaged zip"),
    ],
)
def test_aqs_refuses_and_keeps_the_old_panel(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("no,table\n")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "panel.parquet").write_text("mine")
    before = tree(tmp_path)
    check_refused(sweep("data", "aqs", *words, "-o", "panel.parquet"), said)
    assert tree(tmp_path) == before


# The installed command


def test_the_installed_command_ends_with_the_same_status(toy: Path) -> None:
    command = Path(sys.executable).with_name("sweep")
    if not command.is_file():
        pytest.skip("the project is not installed in this environment")
    ended = subprocess.run(
        [str(command), "status", str(toy), "--set", "modle=1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    check_refused(
        Ended(ended.returncode, ended.stdout, ended.stderr), "modle: unknown key; did you mean model?"
    )
