"""`sweep run` stores what the study declares before its first training, and reports say what changed."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import sweeps
from pm25.sources import synthetic
from sweeps.engine import worker
from sweeps.report import data, summary, write
from sweeps.report.sections.claims import claims as claims_section
from sweeps.report.sections.verdicts import verdict_table
from sweeps.spec import study_file
from sweeps.state import StudyState
from sweeps.store import declarations
from sweeps.store.declarations import FILE, Declaration
from sweeps.store.records import Store
from sweeps.tracking import parent_metrics
from tests.sweeps.cli.commands import Sweep, by_key, check_refused

STUDY = """\
study: toy
data: {table: panel.parquet}
design: {variant: [none, latlon], split: {kind: clusters, folds: 3}, seed: 0}
model: {width: 4, attention_units: 4}
train: {max_epochs: 1, batch_size: 64}
"""
CELLS = 6
HELP = """\
claims:
  - claim: Coordinates help
    better: {variant: latlon}
    than: {variant: none}
    on: {split: clusters}
    metric: rmse
"""
HARM = HELP.replace("better: {variant: latlon}", "better: {variant: none}")
HARM = HARM.replace("than: {variant: none}", "than: {variant: latlon}")
BY_MAE = """\
  - claim: Coordinates help by MAE
    better: {variant: latlon}
    than: {variant: none}
    on: {split: clusters}
    metric: mae
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study without its claims, its table, and a store with all cells."""
    folder = tmp_path_factory.mktemp("declared")
    synthetic.synthesize(sites=24, days=40).to_parquet(folder / "panel.parquet", index=False)
    (folder / "toy.yaml").write_text(STUDY)
    study = study_file.load(str(folder / "toy.yaml"))
    panel, store = study.panel(), Store(study.storage, "toy")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for key, cell in by_key(study, panel).items():
        assert worker.train_and_record(cell, key, panel, store)["state"] == "done"
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def old(trained: Path, tmp_path: Path) -> Path:
    """Study file beside a store with all cells, written before declarations were."""
    shutil.copytree(trained, tmp_path / "toy")
    (tmp_path / "toy" / "toy.yaml").write_text(STUDY + HELP)
    return tmp_path / "toy" / "toy.yaml"


@pytest.fixture
def done(old: Path) -> Path:
    """Study file beside a store that has all cells, and the declaration from before the first one."""
    shutil.move(old.parent / "results", old.parent / "aside")
    study = study_file.load(str(old))
    declarations.declare(study, Store(study.storage, "toy"))
    shutil.copytree(old.parent / "aside", old.parent / "results", dirs_exist_ok=True)
    return old


@pytest.fixture
def new(old: Path) -> Path:
    """Study file without a store."""
    shutil.rmtree(old.parent / "results")
    return old


def stored(toy: Path) -> list[Declaration]:
    return declarations.read(Store(str(toy.parent / "results"), "toy"))


def report_of(toy: Path, *overrides: str) -> data.ReportData:
    return data.gather_report_data(StudyState(str(toy), overrides))


def test_runs_declare_before_the_first_result(sweep: Sweep, new: Path, here: list[str]) -> None:
    assert sweep("run", new, "--dry-run").status == 0
    assert sweep("status", new).status == 0
    assert stored(new) == []
    assert sweep("run", new, "--limit", "1").status == 0
    (found,) = stored(new)
    assert (found.first, len(here)) == (True, 1)
    assert sweep("run", new, "--limit", "1").status == 0
    assert (stored(new), len(here)) == ([found], 2)
    new.write_text(STUDY + HARM)
    assert sweep("run", new, "--limit", "1").status == 0
    assert stored(new)[:-1] == [found]
    assert (stored(new)[-1].cells, stored(new)[-1].trials) == (2, 0)


def test_a_run_with_nothing_to_train_declares_nothing(sweep: Sweep, done: Path, here: list[str]) -> None:
    before = stored(done)
    assert len(before) == 1
    done.write_text(STUDY + HARM)
    assert sweep("run", done).status == 0
    assert (stored(done), here) == (before, [])


def test_what_did_not_change_is_said(done: Path) -> None:
    report = report_of(done)
    assert report.declarations is not None
    assert report.declarations.changes == ()
    time = stored(done)[0].time
    (sentence, *_) = summary.cautions(report)
    assert time[:10] in sentence
    (line,) = sweeps.open(done).claims().to_dict("records")
    assert (line["declared"], line["declared_at"], line["changed"]) == (True, time, "")
    assert line["verdict"] in ("supported", "refuted", "undecided")


def test_a_reversed_claim_is_said_everywhere(done: Path, tmp_path: Path) -> None:
    done.write_text(STUDY + HARM)
    (line,) = sweeps.open(done).claims().to_dict("records")
    assert (line["declared"], line["verdict"]) == (False, "exploratory")
    assert f"reversed after {CELLS} results" in line["changed"]

    report = report_of(done)
    (sentence, *_) = summary.cautions(report)
    assert "'Coordinates help' was reversed" in sentence
    (table,) = claims_section(report).tables
    ((text, entries),) = table.lines
    assert text == "Coordinates help"
    by_head = dict(zip([head for _, head in table.heads], entries, strict=True))
    assert by_head["verdict"].text == "exploratory"
    assert by_head["declared"].text == line["changed"]

    write.write(report, tmp_path / "report")
    written = pd.read_csv(tmp_path / "report" / "contrasts.csv")
    written = written[(written["metric"] == "rmse") & written["changed"].notna()].set_index("arm")
    assert written["declared"].to_dict() == {"lat/lon": True, "none": False}
    assert "withdrawn" in written.loc["lat/lon", "changed"]
    assert written.loc["lat/lon", "declared_at"] == stored(done)[0].time
    assert "reversed" in written.loc["none", "changed"]
    for name in ("index.html", "report.md"):
        assert "was reversed" in (tmp_path / "report" / name).read_text()


def test_an_added_claim_is_exploratory(done: Path) -> None:
    done.write_text(STUDY + HELP + BY_MAE)
    found = sweeps.open(done).claims().set_index("claim")
    added = "Coordinates help by MAE"
    assert found["declared"].to_dict() == {"Coordinates help": True, added: False}
    assert found.loc[added, "verdict"] == "exploratory"
    assert f"added after {CELLS} results" in found.loc[added, "changed"]


def test_tests_of_another_metric_look_exploratory(done: Path) -> None:
    """A study without claims is tested by the metric of its settings."""
    done.write_text(STUDY)
    study = study_file.load(str(done))
    store = Store(study.storage, "toy")
    system, path = store.location(FILE)
    system.delete_file(path)
    shutil.move(done.parent / "results", done.parent / "with-cells")
    declarations.declare(study, store)
    shutil.copytree(done.parent / "with-cells", done.parent / "results", dirs_exist_ok=True)

    def looks(*overrides: str) -> tuple[str, bool, bool]:
        """Verdict on the first screen, and whether MLflow has the adjusted p, and the verdict."""
        state = StudyState(str(done), overrides)
        statuses = state.declared(state.records()).contrasts
        study = state.study
        how = study.analysis, study.claims, study.design.looks, None, statuses
        numbers = parent_metrics.of_rows(state.rows(), *how)["lat/lon", "clusters-3"]
        metric = state.study.analysis.metric
        assert f"diff_{metric}_p" in numbers
        ((_, (entry,)),) = verdict_table(report_of(done, *overrides)).lines
        return entry.text, f"diff_{metric}_p_adjusted" in numbers, f"diff_{metric}_verdict" in numbers

    assert looks()[0] != "exploratory"
    assert looks()[1]
    assert looks("analysis.metric=mae") == ("exploratory", False, False)


def test_a_changed_rope_is_said(done: Path) -> None:
    report = report_of(done, "analysis.rope=0.2")
    (sentence, *_) = summary.cautions(report)
    assert all(value in sentence for value in ("analysis.rope", "0.01", "0.2"))
    assert report.claims["verdict"].tolist() == ["exploratory"]
    assert report_of(done).claims["verdict"].tolist() != ["exploratory"]


def test_an_old_store_says_that_nothing_was_declared(old: Path) -> None:
    report = report_of(old)
    assert report.declarations is not None
    assert report.declarations.reference is None
    (sentence, *_) = summary.cautions(report)
    assert "No declaration was stored" in sentence
    (line,) = sweeps.open(old).claims().to_dict("records")
    assert (line["declared"], line["changed"]) == (True, "no declaration was stored")
    state = StudyState(str(old))
    declarations.declare(state.study, state.store)
    again = report_of(old)
    assert again.declarations is not None
    assert not any(status.exploratory for status in again.declarations.contrasts.values())
    assert summary.cautions(again)[0] != sentence


def test_a_damaged_file_ends_a_command(sweep: Sweep, done: Path, here: list[str], tmp_path: Path) -> None:
    path = done.parent / "results" / "toy" / FILE
    path.write_text(json.dumps({"a": 1}))
    check_refused(sweep("report", done, "-o", tmp_path / "report"), path)
    ended = sweep("run", done, "--set", "design.seed=1")
    assert ended.status == 2
    assert str(path) in ended.err.splitlines()[-1]
    assert here == []
    assert sweep("status", done).status == 0
