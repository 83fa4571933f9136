"""Stores, MLflow databases and keys of version 0.1.0: later versions open, report and resume them."""

import hashlib
import sqlite3
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from pm25.cell import Cell
from sweeps.cli import cli
from sweeps.spec import study_file
from sweeps.spec.study import Study
from sweeps.state import StudyState
from sweeps.store import search_trials
from sweeps.store.records import TUNED_ON_TEST
from tests import processes
from tests.errors import refuses

STORE = Path(__file__).parent / "data" / "store-0.1.0.tar.xz"
"""A study of 12 cells and 6 search trials with its MLflow database, written by commit 77b705a.

It holds `panel.parquet`, `tiny.yaml`, the study's folder `tiny/`, `mlflow.db`, and the tables that
`sweep report` (means, contrasts, claims, cells) and `sweep export` wrote then.
"""
WRITTEN_IN = "/tmp/old/results"
"""Folder in which the store was written; MLflow keeps it in its database."""

HUBER = "train.loss=huber"
"""The loss of 0.1.0, which had no other. The default has changed since."""

REAL = Path(__file__).parents[2] / "shared" / "data" / "conus_daily_2021.parquet"

KEYS = {
    "demo": (35, "108cd9505d22d704b982718353bea7825f6e6a5c1b94d0cf50a752d1324211f4"),
    "quick": (60, "af94b27846363d9be167732374aa23b68e71c46a0228f2809a3d59f62e490c13"),
    "paper2025": (910, "c981380d6c29268f275be9432f1d076d0948250b64a37c9683808b57c22a0671"),
}
"""Number and hash of a study's keys, with 'data' and 'encoder' as the fingerprints of data and encoder."""

_TEN_FOLDS = "{kind: random, folds: 10}, {kind: spatial, folds: 10}"
_BOARDS = ", ".join(f"{{kind: checkerboard, degrees: {degrees}}}" for degrees in (8, 16, 30))
DESIGNS = {
    "demo": [
        "design.variant=[none, latlon, sincos, geoclip]",
        "design.fusion=[hadamard, concat]",
        "design.split=[{kind: random, folds: 5, fold: [0]}, {kind: checkerboard, degrees: 16}]",
        "design.seed=[0, 1]",
        "model={width: 32, attention_units: 32}",
        "train={learning_rate: 0.003, max_epochs: 8, max_windows: 4000, max_validation_windows: 1000}",
        HUBER,
        "claims=[]",
    ],
    "quick": [
        "design.split=[{kind: random}, {kind: spatial}, {kind: checkerboard, degrees: 16}]",
    ],
    "paper2025": [f"design.split=[{_TEN_FOLDS}, {_BOARDS}]", "design.seed=[0, 1, 2, 3, 4]"],
}
"""Designs of 0.1.0, whose checkerboards had a single origin, as overrides."""


def every_cell(study: Study) -> list[Cell]:
    """The grid's cells, then the trainings of each arm's first search trial at the study's own settings."""
    searched = study.arms() if study.search is not None else []
    return [*study.cells(), *(cell for arm in searched for cell in search_trials.trainings(study, arm, {}))]


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_of_0_1_0(name: str) -> None:
    overrides = [
        HUBER,
        "references=[]",
        "search.reserve=null" if name == "demo" else "data.table=panel.parquet",
    ]
    study = study_file.load(name, [*overrides, *DESIGNS.get(name, [])])
    keys = [cell.key("data", "encoder") for cell in every_cell(study)]
    assert (len(keys), hashlib.sha256("\n".join(keys).encode()).hexdigest()) == KEYS[name]


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_keys_on_the_table_of_2021_are_those_of_0_1_0() -> None:
    study = study_file.load("quick", [f"data.table={REAL}", HUBER, "references=[]", *DESIGNS["quick"]])
    key = study.keys(study.panel())
    keys = "\n".join(map(key, study.cells()))
    assert (
        hashlib.sha256(keys.encode()).hexdigest()
        == "c2660cc85930694702d077eeaf57038bd0ee44569e008bb01d9a5f8003f8054c"
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The unpacked store, with its new folder in its MLflow database.

    Its study file has a key of 0.1.0 that is refused today, and says so.
    """
    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    study = tmp_path / "tiny.yaml"
    with refuses("tiny.yaml", "analysis.bootstrap", "remove"):
        study_file.load(str(study))
    study.write_text(study.read_text().replace("analysis: {bootstrap: 100}\n", ""))
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


_ARMS = ["split", "part", "regime", "metric"]
SAME = {
    "means": ["arm", *_ARMS, "mean", "sd", "iqm", "n", "n_expected", "n_failed", "n_missing"],
    "contrasts": ["arm", "other", *_ARMS, "diff", "n_pairs", "n_seeds", "keys_arm", "keys_other"],
}
"""Columns of the report whose meaning is that of 0.1.0."""


def sweep(*arguments: str) -> None:
    """Run a command in this process, where warnings are errors."""
    ended = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert not ended.exit_code, ended.output


def test_an_old_store_is_complete(old: Path) -> None:
    state = StudyState(str(old / "tiny.yaml"), [HUBER])
    assert {record["state"] for record in state.records().values()} == {"done"}
    assert len(state.records()) == len(state.grid) == 12
    assert len(state.trials()) == 6


def test_an_old_store_has_no_cell_of_the_new_loss(old: Path) -> None:
    state = StudyState(str(old / "tiny.yaml"))
    assert {cell.train.loss for cell in state.grid} == {"squared"}
    assert not state.records()
    assert not state.trials()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_an_old_store_reports_the_same_numbers(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    sweep("report", "tiny.yaml", "--set", HUBER, "-o", "report")
    names = ("means", "contrasts", "claims", "cells")
    before = {name: pd.read_csv(old / f"{name}.csv") for name in names}
    after = {name: pd.read_csv(old / "report" / f"{name}.csv") for name in names}
    columns = before["cells"].columns.drop("marked")
    pd.testing.assert_frame_equal(before["cells"][columns], after["cells"][columns], rtol=1e-9)
    # Its search has used test samples, which the audit of 0.1.0 did not ask.
    assert set(after["cells"]["marked"].dropna()) == {TUNED_ON_TEST}
    # Scores within region are now those of all predictions together, and the unpaired gap is gone.
    for name in ("means", "contrasts"):
        was, now = (
            frame[(frame["part"] != "gap") & frame["metric"].isin(before[name]["metric"])].reset_index(
                drop=True
            )
            for frame in (before[name], after[name])
        )
        same = [column for column in SAME[name] if column not in ("mean", "diff")]
        pd.testing.assert_frame_equal(was[same], now[same], rtol=1e-9)
        board = was["split"] == "checkerboard-16"
        score = "mean" if name == "means" else "diff"
        pd.testing.assert_series_equal(was.loc[board, score], now.loc[board, score], rtol=1e-9)
    board = after["contrasts"]["split"] == "checkerboard-16"
    assert board.any()
    verdicts = after["contrasts"].loc[board, "verdict"].dropna()  # a bias has none
    assert set(verdicts) == {"too few"}, "one origin is no test"
    assert after["contrasts"].loc[board, "untested"].str.contains("{kind: checkerboards", regex=False).all()
    assert list(after["claims"]["claim"]) == list(before["claims"]["claim"])
    assert list(after["claims"]["verdict"]) == ["tuned on test"]
    sweep("export", "tiny.yaml", "cells_now.csv", "--set", HUBER)
    was, now = (pd.read_csv(old / name) for name in ("export.csv", "cells_now.csv"))
    pd.testing.assert_frame_equal(was[columns := was.columns.drop("marked")], now[columns], rtol=1e-12)


@pytest.mark.slow
def test_an_old_store_and_its_mlflow_database_resume(old: Path) -> None:
    """One cell's record is deleted: the next run trains it alone, and MLflow gets no second run of a cell."""
    cells = sorted((old / "results" / "tiny" / "cells").iterdir())
    kept = {path: (path / "result.json").read_bytes() for path in cells[1:]}
    (cells[0] / "result.json").unlink()
    processes.run_sweep(old, "run", "tiny.yaml", "--set", HUBER, python=("-W", "error", "-m", "sweeps"))
    state = StudyState(str(old / "tiny.yaml"), [HUBER])
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
