"""`sweep run`, `status`, `retry` and `why`."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps.analysis import judgement
from sweeps.analysis.judgement import PairedScores
from sweeps.engine import worker
from sweeps.engine.scheduler import Scheduler
from sweeps.spec.claims import Contrast
from sweeps.state import StudyState
from tests.sweeps.cli.commands import (
    Sweep,
    check_refused,
    done_keys,
    fail,
    said,
    study_keys,
    toy_keys,
    tree,
)


def test_more_levels_only_add_cells(sweep: Sweep, toy: Path) -> None:
    more = json.loads(sweep("status", toy, "--json", "--set", "design.seed=[0, 1]").out)
    assert more["cells"] == {"total": 8, "done": 2, "failed": 1, "missing": 5, "damaged": 0}
    other = json.loads(sweep("status", toy, "--json", "--set", "window=14").out)
    assert other["cells"] == {"total": 4, "done": 0, "failed": 0, "missing": 4, "damaged": 0}


def test_retry_forgets_failed_cells_and_no_others(sweep: Sweep, toy: Path) -> None:
    cells = toy.parent / "results" / "toy" / "cells"
    before = tree(cells)
    ended = sweep("retry", toy)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.split()[0] == "1"
    assert f"`sweep run {toy}`" in ended.out
    (forgotten,) = before.keys() - tree(cells).keys()
    assert forgotten.endswith("result.json")
    assert tree(cells).items() <= before.items()
    counts = json.loads(sweep("status", toy, "--json").out)["cells"]
    assert counts == {"total": 4, "done": 2, "failed": 0, "missing": 2, "damaged": 0}
    assert sweep("retry", toy).out.split()[0] == "0"


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
    assert ended.out.split()[0] == str(len(forgotten))
    assert f"{2 - len(forgotten)} others" in ended.out
    cells = toy.parent / "results" / "toy" / "cells"
    left = [i for i, key in enumerate(keys) if (cells / key / "result.json").exists()]
    assert left == [i for i in range(4) if i not in forgotten]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("variant=latlon", ("variant", "'latlon'", "none")),
        ("variant=non", ("variant", "'non'", "none")),
        ("eror=RuntimeError", ("eror: ", "error")),
        ("variant=none,split=random", ("split", "'random'", "checkerboard-16")),
        ("variant", ("FIELD=VALUE",)),
    ],
)
def test_a_filter_that_chooses_nothing_forgets_nothing(
    sweep: Sweep, toy: Path, text: str, values: tuple[str, ...]
) -> None:
    before = tree(toy.parent)
    check_refused(sweep("retry", toy, "--where", text), text, *values)
    assert tree(toy.parent) == before


def test_why_of_every_state(sweep: Sweep, toy: Path) -> None:
    done, _, failed, missing = toy_keys(toy)
    before = tree(toy.parent)

    def lines(key: str, *more: str) -> list[str]:
        ended = sweep("why", toy, key, *more)
        assert (ended.status, ended.err) == (0, "")
        return ended.out.splitlines()

    shown = lines(done[:8])
    assert shown[0].startswith(f"{done} none random fold 0 seed 0: done")
    assert said(shown, "ended").startswith("20")
    shown = lines(failed)
    assert shown[0].startswith(f"{failed} none checkerboard-16 fold 0 seed 0: failed")
    assert said(shown, "error") == "RuntimeError: the worker died"
    assert f"`sweep retry {toy} --where arm=none,split=checkerboard-16,fold=0,seed=0`" in shown[-1]
    shown = lines(missing)
    assert shown[0].startswith(f"{missing} latlon checkerboard-16 fold 0 seed 0: missing")
    assert f"{failed} none checkerboard-16 fold 0 seed 0 (failed)" in shown[1]
    assert "    variant: none -> latlon" in shown
    assert f"`sweep run {toy}`" in shown[-1]
    width = ["--set", "model.width=8"]
    shown = lines(done, *width)
    assert f"{study_keys(toy, width)[0]} none random fold 0 seed 0 (missing)" in shown[2]
    assert shown[-1] == "    model.width: 8 -> 4"
    assert tree(toy.parent) == before


def test_the_retry_that_why_proposes_chooses_that_cell(sweep: Sweep, toy: Path) -> None:
    keys = toy_keys(toy)
    fail(toy, keys[3], "CUDA out of memory")
    proposed = sweep("why", toy, keys[3]).out.splitlines()[-1].split("`")[1]
    assert sweep(*shlex.split(proposed)[1:]).out.split()[0] == "1"
    counts = json.loads(sweep("status", toy, "--json").out)["cells"]
    assert counts == {"total": 4, "done": 2, "failed": 1, "missing": 1, "damaged": 0}
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
    check_refused(sweep("why", toy, "zzz"), "zzz", "toy")


def test_a_run_does_what_is_missing_and_nothing_else(sweep: Sweep, toy: Path, here: list[str]) -> None:
    before = tree(toy.parent)
    ended = sweep("run", toy)
    assert ended.status == 1  # the cell that had failed is still a failure
    notice = ended.err.splitlines()[-1]
    assert all(value in notice for value in ("1 cells", "RuntimeError: the worker died", "`sweep status`"))
    assert "3 of 4 cells done, 1 failed, 0 missing" in ended.out
    assert len(here) == 1
    after = tree(toy.parent)
    assert before.items() <= after.items()
    added = {Path(name) for name in after.keys() - before.keys()}
    of_study = {Path(f"results/toy/{name}.json") for name in ("channels", "declarations")}
    assert {path for path in added if path.parent.name not in here} == of_study
    assert sweep("run", toy).status == 1
    assert len(here) == 1
    assert tree(toy.parent) == after
    sweep("retry", toy)
    ended = sweep("run", toy)
    assert ended.status == 0
    assert "4 of 4 cells done, 0 failed, 0 missing" in ended.out
    assert len(here) == 2


def test_a_run_deletes_the_checkpoints_of_what_has_ended(sweep: Sweep, toy: Path, here: list[str]) -> None:
    """A worker that was killed after it wrote a record has left the checkpoint."""
    space = "{train.learning_rate: {float: [0.001, 0.01]}}"
    search = f"search={{trials: 1, space: {space}, split: [{{kind: random}}]}}"
    sets = ("--set", search, "--set", "design.variant=none")
    searched = StudyState(str(toy), sets[1::2])
    task = Scheduler(searched).next()
    assert task is not None
    cells, trials = searched.store, searched.store.search
    worker.record_loss({"key": task.key, **task.more, **worker.NOTHING_SPENT}, trials, "the worker died")
    for store, key in ((cells, done_keys(toy)[0]), (cells, "of-another-study"), (trials, task.key)):
        store.write_file(key, worker.CHECKPOINT, b"epoch 1")
    sweep("run", toy)
    assert cells.holding(worker.CHECKPOINT) == {"of-another-study"}
    assert trials.holding(worker.CHECKPOINT) == {task.key}
    sweep("run", toy, *sets)
    assert trials.holding(worker.CHECKPOINT) == set()
    assert cells.holding(worker.CHECKPOINT) == {"of-another-study"}


def test_a_limit_is_kept_and_missing_cells_are_no_failure(sweep: Sweep, toy: Path, here: list[str]) -> None:
    fresh = ["--set", "storage=" + str(toy.parent / "fresh")]
    ended = sweep("run", toy, "--limit", "1", *fresh)
    assert (ended.status, len(here)) == (0, 1)
    assert "1 of 4 cells done, 0 failed, 3 missing" in ended.out
    assert "at most 1 now" in ended.err


def test_a_failing_cell_is_exit_1_and_a_result(sweep: Sweep, toy: Path, here: list[str]) -> None:
    ended = sweep("run", toy, "--set", "train.learning_rate=1e30", "--set", "design.variant=none")
    assert ended.status == 1
    assert "0 of 2 cells done, 2 failed, 0 missing" in ended.out
    assert "2 cells failed" in ended.err.splitlines()[-1]
    assert "Diverged: " in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


ADAPTIVE = (
    *("--set", "design.split=[{kind: clusters, folds: 3}, {kind: checkerboard, degrees: 16, fold: 0}]"),
    *("--set", "design.seed={start: 1, max: 3}"),
)


def test_plan_and_status_show_how_many_cells_may_be_added(sweep: Sweep, toy: Path) -> None:
    lines = sweep("plan", toy, "--no-calibrate", *ADAPTIVE).out.splitlines()
    assert lines[0] == "toy: 2 arms, 8 cells, 7 to run"
    assert re.findall(r"\d+", said(lines, "seeds")) == ["0", "12"]
    content = json.loads(sweep("plan", toy, "--no-calibrate", "--json", *ADAPTIVE).out)
    assert (content["seeds"], content["cells"]["total"], content["further"]) == ([0], 8, 12)
    head = sweep("status", toy, *ADAPTIVE).out.splitlines()[0]
    assert re.findall(r"\d+", head) == ["0", "8", "1", "7", "12"]
    content = json.loads(sweep("status", toy, "--json", *ADAPTIVE).out)
    assert (content["cells"]["total"], content["further"]) == (8, 12)
    listed = json.loads(sweep("status", toy, "--json").out)
    assert "further" not in listed  # of which it would mean nothing


def test_a_run_adds_seeds_to_what_is_undecided(
    sweep: Sweep, toy: Path, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stops(contrast: Contrast, scores: PairedScores, *_: Any) -> bool:
        seen.append(scores.differences.shape)
        return scores.differences.shape[1] == 2

    monkeypatch.setattr(judgement, "stops", stops)
    of = (*ADAPTIVE, "--set", f"storage={tmp_path / 'fresh'}")
    ended = sweep("run", toy, *of)
    assert (ended.status, len(here)) == (0, 8 + 6)
    assert "14 of 14 cells done" in ended.out
    assert "up to 12 more" in ended.err.splitlines()[0]
    assert ended.err.splitlines()[-1].startswith("14/14 done")  # it was 8 at the beginning
    assert {*seen} >= {(3, 1), (3, 2)}
    assert all(seeds == 1 for folds, seeds in seen if folds < 3)  # seeds add no test to the checkerboard
    assert "14 of 14 cells done" in sweep("status", toy, *of).out
    out = tmp_path / "cells.csv"
    assert sweep("export", toy, out, *of).status == 0
    frame = pd.read_csv(out)
    assert frame.groupby(["split", "seed"]).size().to_dict() == {
        ("checkerboard-16", 0): 2,
        ("clusters-3", 0): 6,
        ("clusters-3", 1): 6,
    }
    sweep("run", toy, *of)
    assert len(here) == 14
