"""`sweep plan`: its JSON, and the values in its text."""

import json
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps.engine import measure, worker
from sweeps.spec import study_file
from sweeps.store.records import Store
from tests.sweeps.cli.commands import HERE, Sweep, by_key, check_refused, said, tree


def test_plan_shows_arms_splits_speeds_and_costs(sweep: Sweep, toy: Path) -> None:
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
    assert platform.machine() in said(lines, "speed")
    assert said(lines, "on").startswith("2 CPUs, 0 GPUs: 2 ")
    for name in ("CPU", "wall", "disk"):
        assert re.match(r"[\d.]+ (s )?\([\d.]+ to [\d.]+\)", said(lines, name)), said(lines, name)
    assert any(re.match(r"    variant   latlon: 1 task, [\d.]+ s \(", line) for line in lines)
    assert "    variant   none: 0 tasks, 0 s" in lines


def test_plan_shows_the_match_of_knndm_folds(sweep: Sweep, toy: Path) -> None:
    (toy.parent / "points.csv").write_text("lat,lon\n30,-120\n49,-70\n")
    changes = ["--set", "design.split=[{kind: knndm, folds: 3}, {kind: spatial, folds: 3}]"]
    changes += ["--set", f"data.domain={toy.parent / 'points.csv'}", "--no-calibrate"]
    match = json.loads(sweep("plan", toy, *changes, "--json").out)["matched"]
    assert list(match) == ["knndm-3"]
    assert match["knndm-3"]["places"] == 2
    assert 0 < match["knndm-3"]["w_km"] <= match["knndm-3"]["w_random_km"]
    shown = sweep("plan", toy, *changes).out
    assert f"2 prediction places: {match['knndm-3']['w_km']:.1f} km" in shown
    assert f"random folds {match['knndm-3']['w_random_km']:.1f} km" in shown


def test_plan_of_a_finished_study_is_short(sweep: Sweep, toy: Path) -> None:
    more = ("--set", "design.split={kind: random, fold: 0}")
    ended = sweep("plan", toy, *HERE, *more, "--budget", "1h")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == "toy: 2 arms, 2 cells, 0 to run"
    assert ended.out.splitlines()[-2] == "  seeds   0"
    assert "1 fold, and 3 are needed" in ended.out.splitlines()[-1]
    found = json.loads(sweep("plan", toy, *HERE, *more, "--json").out)
    assert found["wall_hours"] == {"low": 0, "expected": 0, "high": 0}
    assert (found["cpu_hours_left"], found["disk_mb_left"]) == (0, 0)


def test_plan_measures_unknown_speeds_once(sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measures = measure.in_child
    began: list[str] = []

    def counted(reference: str, overrides: Sequence[str], capacity: Any) -> None:
        began.append(reference)
        measures(reference, overrides, capacity)

    monkeypatch.setattr(measure, "in_child", counted)
    more = (*HERE, "--set", "model.width=8", "--set", "design.variant=none")
    calibrations = toy.parent / "results" / "toy" / "calibration"
    nothing = json.loads(sweep("plan", toy, "--json", "--no-calibrate", *more).out)
    assert nothing["wall_hours"] is nothing["cpu_hours_left"] is None  # nothing to judge by is no zero
    unmeasured = sweep("plan", toy, "--no-calibrate", *more).out.splitlines()
    assert said(unmeasured, "speed").startswith("2 tasks: ")
    assert "--no-calibrate" in said(unmeasured, "speed")
    assert not began
    assert not calibrations.exists()
    measured = sweep("plan", toy, *more)
    assert (measured.status, began) == (0, [str(toy)])
    assert said(measured.out.splitlines(), "speed").startswith("2 tasks: ")
    assert re.match(r"[01]\.\d GB", said(measured.out.splitlines(), "memory"))
    other = said(measured.out.splitlines(), "bf16")
    expected = (
        r"--set train\.precision=bf16: a training step takes [\d.]+ times as long, measured here on none"
    )
    assert re.fullmatch(expected, other)
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
    check_refused(sweep("plan", toy, *HERE), f"{broken}: ")
    assert tree(tmp_path) == before


def test_plan_for_gpus_that_nobody_measured(sweep: Sweep, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.plan.calibration.devices", list)
    ended = sweep("plan", toy, "--gpus", "8", "--cpus", "32")
    assert (ended.status, ended.err) == (0, "")
    assert "2 to 15 TFLOP/s" in said(ended.out.splitlines(), "speed")
    assert said(ended.out.splitlines(), "on").startswith("32 CPUs, 8 GPUs: 8 ")
    grown = ("--set", "design.seed=[0, 1, 2, 3]", "--set", "design.split={kind: random, folds: 5}")
    ended = sweep("plan", toy, "--gpus", "2", *grown)
    assert "24 CPUs (assumed; give --cpus), 2 GPUs: 24 at a time" in said(ended.out.splitlines(), "on")
    packing = said(ended.out.splitlines(), "packing")
    assert packing.startswith("12 trainings on a GPU, limited by CPUs; each training holds 0.6 of 80 GB (")
    found = json.loads(sweep("plan", toy, "--gpus", "8", "--cpus", "32", "--json").out)
    assert found["packing"]["assumed_cpus"] is False
    assert 0 < found["gpu_hours"]["low"] < found["gpu_hours"]["expected"] < found["gpu_hours"]["high"]
    assert found["without"]["unit"] == "GPU-hours"
    bare = sweep("plan", toy, "--gpus", "0", "--cpus", "2", "--set", "resources.gpu=1")
    check_refused(bare, "resources: ", "1 GPU", "--gpus")


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
    assert none.splitlines()[-1].startswith("    variant   ")


@pytest.mark.parametrize("budget", ["40", "forty", "-1h", "0h", "1y", "1h30m"])
def test_a_budget_is_a_duration(sweep: Sweep, toy: Path, budget: str) -> None:
    ended = sweep("plan", toy, f"--budget={budget}")
    assert (ended.status, ended.out) == (2, "")
    assert repr(budget) in ended.err
    assert "--budget" in ended.err
    assert "40h" in ended.err


def test_plan_distinguishes_the_two_heads_of_none(sweep: Sweep, toy: Path) -> None:
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
    toy_study = study_file.load(str(toy), ["protocol=paper"])
    panel = toy_study.panel()
    positive = int((panel.target[:, 20:] > 0).sum())
    unmeasured = ("--json", "--no-calibrate")
    strict, paper = (
        json.loads(sweep("plan", toy, *unmeasured, "--set", f"protocol={name}").out)["splits"][0]
        for name in ("strict", "paper")
    )
    parts = ("train", "validation", "test")
    # One part of the training side is left out by each model that shares the fixed test set.
    assert 0 < sum(paper[part] for part in parts) < positive < sum(strict[part] for part in parts)
    (key, cell), *_ = by_key(toy_study, panel).items()
    store = Store(toy_study.storage, "toy")
    counts = worker.train_and_record(cell, key, panel, store)["counts"]
    assert [paper[part] for part in parts] == [counts[f"n_{part}"] for part in ("train", "val", "test")]


def test_plan_as_json(sweep: Sweep, toy: Path) -> None:
    plan = json.loads(sweep("plan", toy, *HERE, "--json").out)
    assert plan["arms"] == {"none": {"cells": 2, "done": 1}, "latlon": {"cells": 2, "done": 1}}
    random, checkerboard = plan["splits"]
    assert set(random) == {"split", "fold", "train", "validation", "test"}
    assert set(checkerboard) == {*random, "wr"}
    samples = study_file.load(str(toy)).panel().samples(21)[0]
    assert random["train"] + random["validation"] + random["test"] == len(samples)
    assert plan["seeds"] == [0]
    assert plan["cells"] == {"total": 4, "done": 2, "failed": 1, "missing": 1, "damaged": 0}
    assert plan["cpu_hours_left"] == plan["cpu_hours"]["expected"] > 0
    assert plan["disk_mb_left"] == plan["disk_mb"]["expected"] > 0
    assert plan["room"] == {"cpus": 2, "gpus": 0, "cpu": 1, "gpu": 0, "gain": 1, "side_by_side": 2}
    assert (plan["jobs"], plan["search_trials"], plan["gpu_hours"]["high"]) == (1, 0, 0)
    fresh = json.loads(sweep("plan", toy, *HERE, "--json", "--no-calibrate", "--set", "model.width=8").out)
    assert fresh["cells"]["missing"] == 4
    assert fresh["cpu_hours_left"] is fresh["wall_hours"] is None  # nothing to judge by is no zero
