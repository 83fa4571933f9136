"""The measurements: each is made, and of what it says."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pm25.cell import Cell
from pm25.sources import synthetic
from pm25.splits import RandomSplit
from sweeps.analysis import results
from sweeps.bench import engine, mirror, report, trial
from sweeps.bench.engine import trivial
from sweeps.bench.harness import FinishedProcess, peak_mb
from sweeps.store.records import Store

UNDRAWN = """
from sweeps.report.figures import style
style.FigureCanvasAgg.print_png = lambda self, file, **_: file.write(b"PNG")
style.FigureCanvasSVG.print_svg = lambda self, file, **_: file.write(b"<svg></svg>")
"""
"""Code that makes figures without drawing them, which takes most of a report's time."""


def test_a_small_child_of_a_large_process_is_small() -> None:
    large = bytearray(400 * 2**20)
    large[::4096] = b"x" * len(large[::4096])
    assert peak_mb() > 400
    code = "large = bytearray(100 * 2**20); del large; print(peak_mb())"
    code = f"from sweeps.bench.harness import peak_mb; {code}"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 100 < float(child.stdout) < 400


def test_a_trivial_cell_leaves_what_a_trained_one_does(tmp_path: Path) -> None:
    store, panel = Store(str(tmp_path), "toy"), SimpleNamespace(fingerprint="f")
    cell = Cell(variant="none", split=RandomSplit(), fold=0, seed=0)
    record = trivial(cell, "k", panel, store, more={"share": {"cpu": 1}})  # type: ignore[arg-type]
    assert store.record("k") == record
    assert len(record["metrics"]) + len(record["audit"]) - 1 > 20, "as many as plain Ray Tune is given"
    assert record["share"] == {"cpu": 1}
    (row,) = results.rows({"k": cell}, {"k": record}).to_dict("records")
    assert row["state"] == "done"
    assert row["test_rmse"] == record["metrics"]["test_rmse"]
    assert store.read_table("k", "history").num_rows == 2
    assert store.read_table("k", "predictions").num_rows == engine.ROWS


def test_the_engine_is_measured_beside_plain_ray_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Medians of the pairs, with processes that report chosen times and memory."""
    seconds = {"own": iter((3.0, 9.0, 4.0)), "plain": iter((2.0, 3.0, 4.0))}

    def process(name: str, cells: int, folder: Path) -> FinishedProcess:
        assert folder.name.startswith(f"{name}-{cells}-")
        return FinishedProcess(next(seconds[name]), "200" if name == "own" else "300")

    waits = iter((5.0, 7.0, 6.0))
    monkeypatch.setattr(engine, "_run_engine", process)
    monkeypatch.setattr(engine, "_restart", lambda folder, cells: next(waits))
    monkeypatch.setattr(engine, "PAIRS", 3)
    monkeypatch.setattr(engine, "LISTED", 12)
    monkeypatch.setattr(engine.harness, "run_sweep", lambda *arguments: FinishedProcess(0.5, ""))
    found = {row.what: row.value for row in engine.run((2,), tmp_path)}
    assert found == {
        "engine over plain Ray Tune, 2 cells": 1.5,
        "driver's memory, 2 cells": 200,
        "restart on 2 finished cells": 6,
        "sweep status, 12 finished cells": 0.5,
        "sweep export, 12 finished cells": 0.5,
    }
    assert len(list((tmp_path / "many" / "engine" / "cells").glob("*/result.json"))) == 12


@pytest.mark.slow
def test_the_processes_of_both_engines_end(tmp_path: Path) -> None:
    """Each finishes its cells in MLflow, or `_run_engine` raises."""
    assert engine._run_engine("plain", 2, tmp_path / "plain").last_number > 100
    assert engine._restart(tmp_path / "own", 2) > 0
    assert len(list((tmp_path / "own" / "engine" / "cells").glob("*/result.json"))) == 2


@pytest.mark.slow
def test_the_report_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = report.Size(100, 50, 60, 2048)
    monkeypatch.setattr(report, "SITES", 60)
    monkeypatch.setattr(report, "SIZES", (size, size._replace(cells=200, predictions=0)))
    monkeypatch.setattr(report, "REPORT", UNDRAWN + report.REPORT)
    found = {row.what: row for row in report.run(tmp_path)}
    assert [*found] == [
        "report of 100 cells with 50 predictions each",
        "report's memory, 100 cells with 50 predictions each",
        "report of 200 cells without predictions",
        "report's memory, 200 cells without predictions",
    ]
    assert all(row.value > 0 for row in found.values())
    assert (tmp_path / "report-100" / "out" / "figures" / "density-checkerboard-4.svg").exists()
    assert not list((tmp_path / "report-200" / "out" / "figures").glob("density*"))


@pytest.mark.slow
def test_a_trial_is_measured_beside_a_bare_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUNDS", "CALLS", "EPOCHS"):
        monkeypatch.setattr(trial, name, 1)
    table = tmp_path / "panel.parquet"
    synthetic.synthesize(sites=40, days=80).to_parquet(table, index=False)
    found: list[Any] = trial.run(table, tmp_path / "results")
    assert [row.what for row in found] == [
        "trial over a bare PyTorch loop",
        "resident memory of a trial",
        "sweep --help",
        "sweep plan",
        "sweep status",
    ]
    assert all(row.value > 0 for row in found)


@pytest.mark.slow
def test_mirrored_cells_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "CELLS", 12)
    (found,) = mirror.run(tmp_path)
    assert found.what == "a cell mirrored to SQLite"
    assert found.value > 0
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        kinds = database.execute("select value, count(*) from tags where key = 'kind' group by value")
        assert dict(kinds.fetchall()) == {"cell": 12, "arm": 8}
