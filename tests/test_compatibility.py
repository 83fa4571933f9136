"""Stores, MLflow databases and keys of version 0.1.0: later versions open, report and resume them."""

import hashlib
import sqlite3
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from pm25.cell import Cell
from sweeps.cli import cli
from sweeps.spec import study_file
from sweeps.spec.study import Study
from sweeps.state import StudyState
from sweeps.store import search_trials
from tests import processes

STORE = Path(__file__).parent / "data" / "store-0.1.0.tar.xz"
"""A study of 12 cells and 6 search trials with its MLflow database, written by commit 77b705a.

It holds `panel.parquet`, `tiny.yaml`, the study's folder `tiny/`, `mlflow.db`, and the tables that
`sweep report` (means, contrasts, claims, cells) and `sweep export` wrote then.
"""
WRITTEN_IN = "/tmp/old/results"
"""Folder in which the store was written; MLflow keeps it in its database."""

REAL = Path(__file__).parents[2] / "shared" / "data" / "conus_daily_2021.parquet"

KEYS = {
    "demo": (35, "108cd9505d22d704b982718353bea7825f6e6a5c1b94d0cf50a752d1324211f4"),
    "quick": (60, "af94b27846363d9be167732374aa23b68e71c46a0228f2809a3d59f62e490c13"),
    "paper2025": (910, "c981380d6c29268f275be9432f1d076d0948250b64a37c9683808b57c22a0671"),
}
"""Number and hash of a study's keys, with 'data' and 'encoder' as the fingerprints of data and encoder."""


def every_cell(study: Study) -> list[Cell]:
    """The grid's cells, then the trainings of each arm's first search trial at the study's own settings."""
    searched = study.arms() if study.search is not None else []
    return [*study.cells(), *(cell for arm in searched for cell in search_trials.trainings(study, arm, {}))]


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_of_0_1_0(name: str) -> None:
    overrides = [] if name == "demo" else ["data.table=panel.parquet"]
    keys = [cell.key("data", "encoder") for cell in every_cell(study_file.load(name, overrides))]
    assert (len(keys), hashlib.sha256("\n".join(keys).encode()).hexdigest()) == KEYS[name]


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_keys_on_the_table_of_2021_are_those_of_0_1_0() -> None:
    study = study_file.load("quick", [f"data.table={REAL}"])
    key = study.keys(study.panel())
    keys = "\n".join(map(key, study.cells()))
    assert (
        hashlib.sha256(keys.encode()).hexdigest()
        == "c2660cc85930694702d077eeaf57038bd0ee44569e008bb01d9a5f8003f8054c"
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The unpacked store, whose MLflow database is told its new folder."""
    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    results = tmp_path / "results"
    results.mkdir()
    for name in ("tiny", "mlflow.db"):
        (tmp_path / name).rename(results / name)
    with sqlite3.connect(results / "mlflow.db") as database:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            database.execute(
                f"update {table} set {column} = replace({column}, ?, ?)", (WRITTEN_IN, str(results))
            )
    database.close()
    return tmp_path


def sweep(*arguments: str) -> None:
    """Run a command in this process, where warnings are errors."""
    ended = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert not ended.exit_code, ended.output


def test_an_old_store_is_complete(old: Path) -> None:
    state = StudyState(str(old / "tiny.yaml"))
    assert {record["state"] for record in state.records().values()} == {"done"}
    assert len(state.records()) == len(state.grid) == 12
    assert len(state.trials()) == 6


@pytest.mark.slow
def test_an_old_store_reports_the_same_numbers(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"<svg></svg>"))  # takes most
    sweep("report", "tiny.yaml", "-o", "report")
    for name in ("means", "contrasts", "claims", "cells"):
        before, after = pd.read_csv(old / f"{name}.csv"), pd.read_csv(old / "report" / f"{name}.csv")
        pd.testing.assert_frame_equal(before, after[before.columns], rtol=1e-9)
    sweep("export", "tiny.yaml", "cells_now.csv")
    before, after = pd.read_csv(old / "export.csv"), pd.read_csv(old / "cells_now.csv")
    pd.testing.assert_frame_equal(before, after, rtol=1e-12)


@pytest.mark.slow
def test_an_old_store_and_its_mlflow_database_resume(old: Path) -> None:
    """One cell's record is deleted: the next run trains it alone, and MLflow gets no second run of a cell."""
    cells = sorted((old / "results" / "tiny" / "cells").iterdir())
    kept = {path: (path / "result.json").read_bytes() for path in cells[1:]}
    (cells[0] / "result.json").unlink()
    processes.run_sweep(old, "run", "tiny.yaml", python=("-W", "error", "-m", "sweeps"))
    state = StudyState(str(old / "tiny.yaml"))
    assert state.cell_counts(state.records())["done"] == 12
    assert {path: (path / "result.json").read_bytes() for path in kept} == kept
    with sqlite3.connect(old / "results" / "mlflow.db") as database:
        keys = database.execute(
            "select tags.value from tags join runs using (run_uuid) "
            "where tags.key = 'key' and runs.lifecycle_stage = 'active'"
        ).fetchall()
    database.close()
    assert sorted(keys) == sorted({*keys}), "one run of each cell and search trial"
    assert {path.name for path in cells} <= {key for (key,) in keys}
