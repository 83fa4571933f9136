"""The notebook's face: what `sweeps.open` returns, and what it refuses."""

import hashlib
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import sweeps
from pm25.errors import InputError
from pm25.sources import synthetic
from sweeps import cli, notebook
from sweeps.engine import worker
from sweeps.notebook import CELL_COLUMNS, PREDICTION_COLUMNS, OpenStudy
from sweeps.report.study_report import write_study_report
from sweeps.spec import study_file as studies
from sweeps.store.records import Store
from tests.errors import refuses

STUDY = """\
study: toy
data: {table: panel.parquet}
design:
  variant: [none, latlon]
  split: [{kind: random, folds: 2}, {kind: checkerboard, degrees: 16, fold: 0}]
  seed: 0
model: {width: 4, attention_units: 4}
train: {max_epochs: 1, batch_size: 64}
claims:
  - claim: Coordinates help
    better: {variant: latlon}
    than: {variant: none}
    on: {split: random}
    metric: rmse
"""
FAILED = 3
"""Position of the cell whose worker died, in the order of the grid."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six cells: five done; lat/lon on the checkerboard failed."""
    folder = tmp_path_factory.mktemp("open")
    synthetic.synthesize(sites=12, days=40).to_parquet(folder / "panel.parquet", index=False)
    (folder / "toy.yaml").write_text(STUDY)
    toy = studies.load(str(folder / "toy.yaml"))
    panel = toy.panel()
    store = Store(toy.storage, "toy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keys = toy.keys(panel)
    train = getattr(worker, "train_and_record", None) or worker.run_and_record
    for position, cell in enumerate(toy.cells()):
        if position == FAILED:
            worker.record_loss({"key": keys(cell), "cell": cell.resolved()}, store, "the worker died")
        else:
            assert train(cell, keys(cell), panel, store)["state"] == "done"
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def toy(folder: Path) -> OpenStudy:
    return sweeps.open(folder / "toy.yaml")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_import_is_lazy() -> None:
    heavy = "('pandas', 'torch', 'ray', 'mlflow', 'numpy', 'yaml', 'pydantic')"
    code = f"import sys, sweeps; print(sweeps.open.__name__, *(n for n in {heavy} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["open"]


def test_opening_loads_no_cluster_and_no_tracker(folder: Path) -> None:
    code = (
        f"import sys, sweeps; sweeps.open({str(folder / 'toy.yaml')!r}).contrasts();"
        "print(*(n for n in ('ray', 'mlflow', 'matplotlib.pyplot') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_results_have_one_row_per_cell(toy: OpenStudy, folder: Path) -> None:
    found = toy.results()
    assert found["state"].tolist() == ["done"] * 3 + ["failed"] + ["done"] * 2
    assert found.columns[:8].tolist() == [
        "key",
        "arm",
        "variant",
        "fusion",
        "split",
        "regime",
        "fold",
        "seed",
    ]
    assert {*found["arm"]} == {"none", "lat/lon"}
    record = Store(toy.study.storage, "toy").record(found.loc[0, "key"])
    assert record is not None
    assert found.loc[0, "test_rmse"] == record["metrics"]["test_rmse"]
    assert np.isnan(found.loc[FAILED, "test_rmse"])
    assert "toy" in repr(toy)
    assert str(len(found)) in repr(toy)


def test_results_are_those_of_the_store_now(toy: OpenStudy, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    copy = sweeps.open(str(tmp_path / "copy" / "toy.yaml"))
    key = copy.results().loc[FAILED, "key"]
    Store(copy.study.storage, "toy").forget(key)
    assert copy.results()["state"].tolist() == ["done"] * 3 + ["missing"] + ["done"] * 2


def test_contrasts_by_metric(toy: OpenStudy) -> None:
    rows, found = toy.results(), toy.contrasts()
    assert {*found["metric"]} == {"rmse"}
    line = found[(found["split"] == "random") & (found["part"] == "test")].iloc[0]
    assert (line["arm"], line["other"], line["n_pairs"], line["declared"]) == ("lat/lon", "none", 2, True)
    means = rows[rows["split"] == "random"].groupby("arm")["test_rmse"].mean()
    assert line["diff"] == pytest.approx(means["lat/lon"] - means["none"], abs=0.05)  # it is pooled
    assert (line["estimand"], line["unit"]) == ("other days at these monitors", "day")
    assert line["verdict"] == "too few"  # 40 days
    assert line["untested"]
    assert np.isnan([line["low"], line["df"]]).all()
    assert {*toy.contrasts(metric="r2")["metric"]} == {"r2"}
    with refuses("contrasts", "metric", "'rsme'", "rmse"):
        toy.contrasts(metric="rsme")


def test_claims_have_verdicts(toy: OpenStudy, folder: Path) -> None:
    found = toy.claims()
    assert found["claim"].tolist() == ["Coordinates help"]
    assert found.loc[0, "verdict"] in {"supported", "refuted", "undecided", "too few"}
    assert found.loc[0, "diff"] == toy.contrasts().query("declared")["diff"].item()
    assert len(sweeps.open(folder / "toy.yaml", claims=[]).claims()) == 0


def test_predictions_by_key_and_field(toy: OpenStudy) -> None:
    rows = toy.results()
    every = toy.predictions()
    assert every.columns.tolist() == CELL_COLUMNS + PREDICTION_COLUMNS
    assert {*every["key"]} == {*rows.loc[rows["state"] == "done", "key"]}
    one = toy.predictions(rows.loc[0, "key"][:10])
    error = one["prediction"] - one["truth"]
    assert np.sqrt((error**2).mean()) == pytest.approx(rows.loc[0, "test_rmse"], rel=1e-6)
    assert one["site_id"].map(type).eq(str).all()
    some = toy.predictions(variant="latlon", split=["random"], fold=[0, 1], fusion=None)
    assert {*some["arm"]} == {"lat/lon"}
    assert {*some["fold"]} == {0, 1}
    assert {*toy.predictions(variant="none", split="checkerboard")["part"]} == {"test", "wr"}
    none = toy.predictions(variant="latlon", split="checkerboard")
    assert len(none) == 0
    assert none.columns.tolist() == CELL_COLUMNS + PREDICTION_COLUMNS


def test_predictions_refuse_what_no_cell_is(toy: OpenStudy) -> None:
    with refuses("toy", "key", "'zz'", "results()"):
        toy.predictions("zz")
    with refuses("toy", "key", "failed"):
        toy.predictions(toy.results().loc[FAILED, "key"])
    with pytest.raises(InputError, match="geoclip"):
        toy.predictions(variant="geoclip")
    with pytest.raises(InputError, match="place"):
        toy.predictions(place="random")


@pytest.mark.usefixtures("undrawn")
def test_the_report_is_that_of_the_command(
    toy: OpenStudy, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = toy.report(tmp_path / "notebook")
    assert files[0] == tmp_path / "notebook" / "index.html"
    monkeypatch.setattr(
        sys, "argv", ["sweep", "report", str(folder / "toy.yaml"), "-o", str(tmp_path / "cli")]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    assert digests(tmp_path / "notebook") == digests(tmp_path / "cli")
    assert "figures/cells-rmse.svg" in digests(tmp_path / "cli")
    stored, covered = pd.read_csv(tmp_path / "cli" / "coverage.csv"), toy.coverage()
    assert [*stored] == [*covered]
    assert stored["arm"].tolist() == covered["arm"].tolist()
    assert (stored["untested"].fillna("") == covered["untested"]).all()
    assert stored["untested"].str.contains("are needed for 90% intervals").any()


def test_coverage_is_that_of_stored_predictions(folder: Path) -> None:
    toy = sweeps.open(folder / "toy.yaml", **{"analysis.coverage": 0.6, "analysis.block_degrees": 6})
    covered = toy.coverage()
    overall = covered[(covered["region"] == "all regions") & (covered["untested"] == "")]
    assert set(overall["level"]) == {0.6}
    assert set(overall["split"]) == {"random"}
    cells = toy.results()
    for _, line in overall.iterrows():
        own = cells[(cells["arm"] == line["arm"]) & (cells["split"] == line["split"])]
        assert line["n"] == own["n_test"].sum()
        assert 0.4 < line["coverage"] < 0.8
        assert line["width"] > 0


def test_a_report_needs_a_folder(toy: OpenStudy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refuses("file/report", "", "another folder"):
        write_study_report(toy.state, tmp_path / "file" / "report")


@pytest.mark.parametrize(
    "value",
    [
        0,
        1e-05,
        0.001,
        True,
        None,
        "none",
        "1e-3",
        "a: b",
        "x" * 500,
        [0, 1],
        {"kind": "random", "folds": 2},
        date(2021, 9, 1),
    ],
)
def test_overrides_are_values(value: object) -> None:
    text = notebook._yaml("a.b", value)
    assert yaml.safe_load(text) == value
    assert type(yaml.safe_load(text)) is type(value)


def test_overrides_may_be_paths_tuples_and_numpy() -> None:
    assert yaml.safe_load(notebook._yaml("a", Path("x/y"))) == "x/y"
    assert yaml.safe_load(notebook._yaml("a", (1, Path("z")))) == [1, "z"]
    assert yaml.safe_load(notebook._yaml("a", range(2))) == [0, 1]
    assert yaml.safe_load(notebook._yaml("a", np.float64(0.5))) == 0.5
    assert yaml.safe_load(notebook._yaml("a", np.arange(2))) == [0, 1]
    with refuses("sweeps.open", "a.b", "object"):
        notebook._yaml("a.b", object())


def test_overrides_reach_the_study(folder: Path, tmp_path: Path) -> None:
    table = folder / "panel.parquet"
    quick = sweeps.open(
        folder / "toy.yaml",
        **{"data.table": table, "design.seed": (0, 1), "storage": tmp_path, "train": {"max_epochs": 2}},
    )
    assert quick.study.data.table == table
    assert quick.study.design.seed == (0, 1)
    assert quick.study.train.max_epochs == 2
    assert quick.results()["state"].eq("missing").all()
    assert isinstance(quick.predictions(), pd.DataFrame)
    with pytest.raises(InputError, match=r"train\.max_epochs"):
        sweeps.open(folder / "toy.yaml", **{"train.max_epochs": 0})
    with pytest.raises(InputError, match=r"unknown\.yaml"):
        sweeps.open("unknown.yaml")
