"""References in a study: their cells and keys, their records, their cost, and their rows in the report."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from pm25.network_shape import stack_kind
from sweeps.analysis import inference, labels, results
from sweeps.cli.plan_text import plan_content, plan_lines
from sweeps.engine import worker
from sweeps.engine.cluster import Cluster
from sweeps.engine.gpu_packing import GpuShares
from sweeps.engine.scheduler import Scheduler, Task
from sweeps.plan.bounds import Bounds
from sweeps.plan.capacity import Capacity
from sweeps.plan.cost import Estimate
from sweeps.report import data, summary, tables
from sweeps.report.sections.results import wr_columns
from sweeps.spec import study_file
from sweeps.spec.claims import Analysis
from sweeps.spec.design import Arm
from sweeps.state import StudyState
from sweeps.store import filters, integrity
from sweeps.store.integrity import Damaged
from sweeps.tracking import parent_metrics
from tests.errors import refuses
from tests.sweeps.report.test_tables import cell, frame

pytestmark = pytest.mark.usefixtures("one_thread")

STUDY = """\
study: toy
data: {synthetic: {sites: 30, days: 40}}
design:
  variant: [none, latlon]
  split: [{kind: random, folds: 3}, {kind: spatial, folds: 2}]
  seed: [4, 5]
references: [idw, persistence, climatology]
model: {width: 4, depth: 1, attention_units: 2}
train: {max_epochs: 2}
"""
ONE_CPU = Capacity(cpus=1, gpus=0, cpu=1, gpu=0)


@pytest.fixture
def toy(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(STUDY)
    return str(path)


@pytest.fixture
def trained(toy: str) -> StudyState:
    """The study with a record for each reference on the random split."""
    state = StudyState(toy)
    for key, one in state.cells.items():
        if one.is_reference and one.split.kind == "random":
            worker.train_and_record(one, key, state.panel, state.store, keep_weights=True)
    return state


# Cells and keys


def test_a_reference_has_one_cell_on_every_fold_that_allows_it(toy: str) -> None:
    study = study_file.load(toy)
    arms, references = study.cells()[:20], study.cells()[20:]
    assert not any(one.is_reference for one in arms)  # 2 arms x 5 folds x 2 seeds
    assert [(one.variant, one.split.label, one.fold, one.seed) for one in references] == [
        *((name, "random", fold, 4) for fold in range(3) for name in ("idw", "persistence", "climatology")),
        *((name, "spatial", fold, 4) for fold in range(2) for name in ("idw", "climatology")),
    ]
    assert study.arms() == [Arm("none", None), Arm("latlon", None)]
    assert {one.arm for one in study.contrasts()} == {Arm("latlon", None)}


def test_keys_of_references_do_not_depend_on_the_network_nor_those_of_arms_on_references(toy: str) -> None:
    base, others = (
        [one.key("data") for one in study_file.load(toy, overrides).cells()]
        for overrides in (
            [],
            ["model.width=8", "train.patience=3", "design.split=[{kind: random, folds: 3}]"],
        )
    )
    assert {*base[20:29]} == {*others[12:]}
    assert {*base[:20]}.isdisjoint(others)
    without = [one.key("data") for one in study_file.load(toy, ["references=[]"]).cells()]
    assert without == base[:20]
    with_feature = study_file.load(toy, ["neighbours={k: 3}"])
    assert [one.key("data") for one in with_feature.cells()][20:] == base[20:]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("references=[idw, idw]", ["idw", "[idw]"]),
        ("references=nearest", ["idw"]),
        ("design.split=[{kind: spatial}]", ["persistence", "random"]),
    ],
)
def test_references_that_no_split_allows_or_that_do_not_exist_are_refused(
    toy: str, override: str, values: list[str]
) -> None:
    with refuses(None, None, *values) as raised:
        study_file.load(toy, [override])
    assert raised.value.field.startswith("references")


def test_a_reference_is_no_variant_of_the_design(toy: str) -> None:
    with refuses(None, "design.variant.1"):
        study_file.load(toy, ["design.variant=[none, idw]"])


def test_references_follow_the_origins_that_are_added(tmp_path: Path) -> None:
    text = STUDY.replace(
        "split: [{kind: random, folds: 3}, {kind: spatial, folds: 2}]",
        "split: [{kind: checkerboards, degrees: 16, origins: {start: 5, max: 7}}]",
    ).replace("persistence, ", "")
    (tmp_path / "toy.yaml").write_text(text.replace("seed: [4, 5]", "seed: 0"))
    state = StudyState(str(tmp_path / "toy.yaml"))
    counts = [sum(one.is_reference == kind for one in state.grid) for kind in (False, True)]
    assert counts == [2 * 10, 2 * 10]  # arms or references, times two colours of five origins
    assert state.further == 2 * (2 * 2 + 2 * 2)  # two origins more, both arms and both references
    assert state.looks is not None
    assert all(state.looks.may_ask_for(one) for one in state.study.cells())


# Records


def test_the_record_of_a_reference_proves_itself(trained: StudyState) -> None:
    (key, one), *_ = [(k, c) for k, c in trained.cells.items() if c.variant == "idw"]
    record = trained.records("all")[key]
    assert record["state"] == "done"
    assert record["cell"] == one.resolved()
    assert {*record["counts"]} == {"n_train", "n_val", "n_test"}
    assert {*record["files"]} == {"predictions.parquet", "history.parquet"}
    history = trained.store.read_table(key, "history", record=record)
    assert (len(history), str(history.schema.field("validation_rmse").type)) == (0, "double")
    assert worker.differences(one, key, trained.panel, trained.store) == []


def test_a_changed_prediction_of_a_reference_is_found(trained: StudyState) -> None:
    (key, one), *_ = [(k, c) for k, c in trained.cells.items() if c.variant == "climatology"]
    (other,) = [k for k, c in trained.cells.items() if c == one.model_copy(update={"variant": "idw"})]
    content = trained.store.read_file(other, "predictions.parquet")
    assert content is not None
    trained.store.write_file(key, "predictions.parquet", content)
    assert worker.differences(one, key, trained.panel, trained.store) == ["predictions"]


def test_a_reference_with_epochs_and_an_arm_without_are_damaged(trained: StudyState) -> None:
    (key, _), *_ = [(k, c) for k, c in trained.cells.items() if c.variant == "idw"]
    record = trained.store.record(key)
    assert record is not None
    integrity.check(integrity.seal(record, record["files"]), key, "cells")
    changed = record | {"counts": record["counts"] | {"epochs": 1, "best_epoch": 1}}
    with pytest.raises(Damaged, match=r"counts\.(epochs|best_epoch)"):
        integrity.check(integrity.seal(changed, {}), key, "cells")
    arm = json.loads(json.dumps(record)) | {"cell": record["cell"] | {"variant": "none"}}
    with pytest.raises(Damaged, match=r"counts\.epochs is missing"):
        integrity.check(integrity.seal(arm, {}), key, "cells")


def test_a_failure_of_a_reference_is_a_record(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pm25 import trial

    def fails(*_: Any) -> None:
        raise ArithmeticError("no")

    monkeypatch.setattr(trial, "run_reference", fails)
    state = StudyState(toy)
    key, one = next((k, c) for k, c in state.cells.items() if c.is_reference)
    record = worker.train_and_record(one, key, state.panel, state.store)
    assert (record["state"], record["error"]["type"]) == ("failed", "ArithmeticError")


def test_a_filter_and_the_scheduler_know_references(trained: StudyState) -> None:
    chosen = filters.parse("variant=idw,split=spatial", [*trained.cells.values()])
    scheduler = Scheduler(trained, selects=chosen.matches)
    tasks = [scheduler.next(), scheduler.next()]
    assert [task and task.cells[0].label for task in tasks] == [
        "idw spatial fold 0 seed 4",
        "idw spatial fold 1 seed 4",
    ]
    assert scheduler.next() is None
    assert scheduler.encoders() == set()


def test_a_reference_has_no_gpu_and_is_never_stacked(toy: str) -> None:
    state = StudyState(toy)
    shares = GpuShares(state.study, state.panel, cast(Cluster, SimpleNamespace(gpus=1.0, has_gpus=True)))
    arm, reference = state.grid[0], state.grid[-1]
    tasks = [Task("cell", "", Arm.of(one), (one,), {}) for one in (arm, reference)]
    assert [shares.gpu(task) for task in tasks] == [shares.whole, 0.0]
    assert stack_kind(reference, state.panel) is None
    assert stack_kind(arm, state.panel) is not None


# The plan


def test_the_plan_counts_references_and_their_time(trained: StudyState) -> None:
    records = trained.records()
    plan = Estimate(trained, records, trained.split_indices(), ONE_CPU)
    shapes, cuts = plan.uncalibrated()
    assert not any(one.is_reference for one in [*shapes.values(), *cuts.values()])
    by_label = {level.level: level for level in plan.levels() if level.factor == "variant"}
    took = [r["seconds"] for r in records.values() if r["cell"]["variant"] == "idw"]
    hours = by_label["idw"].worker_hours
    assert by_label["idw"].tasks == 2
    assert hours is not None
    assert 2 * 0.8 * min(took) <= 3600 * hours.low <= 3600 * hours.high <= 2 * 2 * max(took)
    assert by_label["none"].worker_hours is None  # not calibrated
    content = plan_content(trained, records, trained.split_indices(), plan, None)
    assert content["references"] == {
        "idw": {"cells": 5, "done": 3},
        "persistence": {"cells": 3, "done": 3},
        "climatology": {"cells": 5, "done": 3},
    }
    text = "\n".join(plan_lines(content, ""))
    assert "2 arms, 33 cells, 24 to run" in text
    assert "idw, persistence, climatology: 13 cells, 9 done" in text
    assert "4 tasks: references: measured in done cells" in text
    assert "20 tasks: unknown" in text


def test_references_without_a_record_have_an_estimate(toy: str) -> None:
    state = StudyState(toy, ["references=boosting"])
    plan = Estimate(state, {}, state.split_indices(), ONE_CPU)
    hours = plan.worker_hours(("variant", "boosting"))
    assert hours is not None
    per_cell = Bounds(*(3600 / 5 * end for end in hours))
    assert 0 < per_cell.low < per_cell.expected < per_cell.high < 10


# The report


@pytest.fixture
def rows() -> pd.DataFrame:
    """Two folds of 20 test samples. Squares of RMSE: idw 4 and 16, mean 10; none 9 and 25, mean 17."""
    return frame(
        cell("none", "random", 0, 0, 3.0),
        cell("none", "random", 0, 1, 3.0),
        cell("none", "random", 1, 0, 5.0),
        cell("none", "random", 1, 1, 5.0),
        cell("latlon", "random", 0, 0, 1.0),
        cell("latlon", "random", 0, 1, 1.0),
        cell("latlon", "random", 1, 0, 2.0),
        cell("latlon", "random", 1, 1, 3.0),
        cell("idw", "random", 0, 0, 2.0),
        cell("idw", "random", 1, 0, 4.0),
        cell("boosting", "random", 0, 0, 6.0),
        cell("boosting", "random", 1, 0, 6.0),
        cell("kriging", "random", 0, 0, 0.5),
        cell("kriging", "random", 1, 0, state="missing"),
    )


LATLON = 1 - (1 + 1 + 4 + 9) / 4 / 10


def test_skill_by_hand(rows: pd.DataFrame) -> None:
    found = inference.means(rows, Analysis(), "rmse").set_index("arm")["skill"]
    assert found["none"] == pytest.approx(1 - 17 / 10)
    assert found["lat/lon"] == pytest.approx(LATLON)
    assert found["reference: inverse distance"] == 0
    assert found["reference: boosting"] == pytest.approx(1 - 36 / 10)
    assert math.isnan(found["reference: kriging"])  # a fold is missing, so it is not the best either
    assert inference.means(rows, Analysis(), "mae")["skill"].isna().all()
    assert inference.means(labels.without_references(rows), Analysis())["skill"].isna().all()


def test_skill_weighs_folds_by_their_samples(rows: pd.DataFrame) -> None:
    rows.loc[rows["fold"] == 1, "n_test"] = 60.0
    found = inference.means(rows, Analysis(), "rmse").set_index("arm")["skill"]
    assert found["none"] == pytest.approx(1 - (9 + 3 * 25) / (4 + 3 * 16))


def test_references_are_rows_with_a_skill_and_without_a_rank(rows: pd.DataFrame) -> None:
    means = inference.means(rows, Analysis(), "rmse")
    table = tables.of_means(means, wr_columns(means))
    assert table.heads == [("", "random, at these monitors"), ("", "skill")]
    lines = dict(table.lines)
    assert [*lines] == [
        *("none", "lat/lon", "reference: inverse distance", "reference: boosting", "reference: kriging")
    ]
    assert [lines[label][1].text for label in lines] == ["−0.70", "0.62", "0.00", "−2.60", "–"]
    assert [lines[label][0].place for label in lines] == [2, 1, 0, 0, 0]
    assert "| reference: inverse distance |" in tables.in_markdown(table)


def test_references_are_neither_compared_nor_confounded(rows: pd.DataFrame) -> None:
    found = inference.contrasts(rows, Analysis(), (), "rmse")
    assert {*found["arm"]} == {"lat/lon"}
    alone = inference.contrasts(labels.without_references(rows), Analysis(), (), "rmse")
    pd.testing.assert_frame_equal(found, alone)


def test_the_summary_says_what_the_best_reference_reaches(rows: pd.DataFrame) -> None:
    worse = rows.assign(split="spatial", kind="spatial", key=rows["key"] + "s")
    worse.loc[worse["variant"] == "latlon", ["test_rmse"]] = 9.0
    report = data.build_report_data(pd.concat([rows, worse], ignore_index=True), {"study": "toy"}, brief=True)
    first, second = summary.references(report)
    assert "on random, inverse distance reaches 3.00 and 'lat/lon' 1.75" in first
    assert "on spatial, inverse distance reaches 3.00 and 'none' 4.00" in first
    assert second == "The best arm is worse than a reference on spatial."
    assert [first, second] == summary.cautions(report)[:2]
    without = data.build_report_data(labels.without_references(rows), {"study": "toy"}, brief=True)
    assert summary.references(without) == []


def test_rows_of_a_store_have_references(trained: StudyState) -> None:
    rows = trained.rows()
    assert rows["variant"].tolist()[-13:] == [one.variant for one in trained.grid[-13:]]
    done = rows[rows["state"] == "done"]
    assert {*done["variant"]} == {"idw", "persistence", "climatology"}
    assert done["epochs"].isna().all()
    assert (done["unfair"] == "").all()
    facts = results.facts(trained.study, trained.panel, trained.records())
    assert facts["settings"]["references"] == "idw, persistence, climatology"


def test_parents_in_mlflow_have_the_skill_and_references_are_parents(rows: pd.DataFrame) -> None:
    found = parent_metrics.of_rows(rows, Analysis())
    assert found["lat/lon", "random"]["skill"] == 0.625
    assert found["reference: inverse distance", "random"]["wr_rmse_mean"] == 3.0
    assert "diff_rmse" not in found["reference: inverse distance", "random"]
