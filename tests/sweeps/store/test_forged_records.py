"""Records with a changed field and an honest digest: no command ends with an error of Python."""

import json
import math
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps import explain
from sweeps.analysis import artifacts, compare, results
from sweeps.bench import engine
from sweeps.engine import worker
from sweeps.plan import calibration
from sweeps.plan.capacity import Capacity
from sweeps.plan.cost import Estimate
from sweeps.state import StudyState
from sweeps.store import failures, filters, fsck, integrity
from sweeps.store.integrity import DamagedFile
from sweeps.store.records import Record, Store, intact
from sweeps.tracking import winners
from sweeps.tracking.run_content import milliseconds, run_content
from tests.errors import refuses
from tests.test_compatibility import HUBER, STORE

DELETED = object()

VALUES = (
    DELETED,
    None,
    True,
    0,
    -1,
    1.5,
    2**70,
    10**400,
    "",
    "x",
    "a\0b",
    [],
    ["a"],
    [None],
    {},
    {"a": [{}]},
)
"""Values of every type of JSON, with some that a table, a file name or a set cannot hold."""


def paths(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field, at any depth."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*at, name)
        yield from paths(inner, (*at, name))


def forge(path: Path, field: tuple[str, ...], value: Any) -> None:
    """Change or delete one field of a record, and give the record the digest of its new content."""
    record = json.loads(path.read_bytes())
    block, files = record, record.get("files", {})
    for name in field[:-1]:
        block = block[name]
    if value is DELETED:
        del block[field[-1]]
    else:
        block[field[-1]] = value
    path.write_bytes(integrity.seal(record, files))


def read_cells(state: StudyState, key: str) -> dict[Any, Any]:
    """Read as status, export, report, why, plan, compare and sync do; returns the row of a cell."""
    records = state.records("tables")
    state.cell_counts(records)
    failures.groups(state.cells, records)
    failed = {key: record for key, record in records.items() if record["state"] == "failed"}
    if failed:
        filters.parse("variant=none", [state.cells[key] for key in failed], [*failed.values()])
    rows = state.rows(records)
    state.facts(records)
    found = explain.explain(state, key)
    json.dumps(found.content)
    capacity = Capacity.of(state.study, 1, 0)
    Estimate(state, records, state.split_indices(), capacity, calibration.read(state.store, capacity))
    winners.best(state.study, state.cells, records)
    own = intact(records)
    for record in own.values():
        run_content(record)
        milliseconds(record.get("started") or record["ended"])
    done = [record for record in own.values() if record["state"] == "done"]
    for record in done:
        compare.apart(record, done[0])
    assert not any("\n" in line for line in integrity.notices(state.damaged))
    return dict(rows.set_index("key").loc[key])


def read_trials(state: StudyState) -> None:
    """Read the searches as status, export, report and sync do."""
    state.refresh()
    state.trial_counts()
    state.retried_trials()
    state.search_summaries()
    for trials in state.searches.values():
        assert trials.outline
        for record in trials.ended:
            run_content(record)
    for table in (results.search_trials, results.searches, results.search_parameters):
        table(state.searches)
    assert not any("\n" in line for line in integrity.notices(state.damaged))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    """Three cells without training, of which the last has failed."""
    state = engine.study(tmp_path_factory.mktemp("cells"), 3)
    *done, failed = state.cells
    for key in done:
        engine.trivial(state.cells[key], key, state.panel, state.store)
    draft = {"key": failed, "cell": state.cells[failed].resolved(), "data": state.panel.fingerprint}
    worker.record_loss(draft | {"numerics": state.cells[failed].numerics}, state.store, "it died")
    return state


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    """The study of version 0.1.0 with its searches, sealed."""
    folder = tmp_path_factory.mktemp("searched")
    with tarfile.open(STORE) as archive:
        archive.extractall(folder, filter="data")
    study = folder / "tiny.yaml"
    study.write_text(study.read_text().replace("analysis: {bootstrap: 100}\n", ""))
    (folder / "results").mkdir()
    (folder / "tiny").rename(folder / "results" / "tiny")
    state = StudyState(str(study), [HUBER])
    for store in (state.store, state.store.search):
        assert all(store.seal(key) for key in sorted(store.keys()))
    return state


def forged(state: StudyState, kind: str, key: str, data: st.DataObject, folder: Path) -> None:
    """Make a copy of a study's store the store of the study, and forge a field of one record."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(state.store.storage) / state.store.study, folder / state.store.study)
    state.store = Store(str(folder), state.store.study)
    path = folder / state.store.study / kind / key / "result.json"
    field = data.draw(st.sampled_from([*paths(json.loads(path.read_bytes()))]))
    forge(path, field, data.draw(st.sampled_from(VALUES)))


MANY = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(st.data(), st.sampled_from([0, 2]))
def test_a_forged_cell_is_read_or_damaged(
    cells: StudyState, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, which: int
) -> None:
    original, key = cells.store, [*cells.cells][which]
    try:
        forged(cells, "cells", key, data, tmp_path_factory.getbasetemp() / "forged")
        row = read_cells(cells, key)
        if row["state"] != "done":
            scores = [value for name, value in row.items() if name.startswith(("test_", "wr_", "val_"))]
            assert all(value != value for value in scores)  # NaN
    finally:
        cells.store = original


@MANY
@given(st.data())
def test_a_forged_trial_is_read_or_damaged(
    searched: StudyState, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = searched.store
    key = data.draw(st.sampled_from(sorted(original.search.keys())))
    try:
        forged(searched, "search", key, data, tmp_path_factory.getbasetemp() / "forged")
        read_trials(searched)
    finally:
        searched.store = original
        searched.refresh()


def _replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.chunked_array([values]))


def _first(value: Any) -> Callable[[pa.Table, str], pa.Table]:
    """Replace the first value of a column."""

    def change(table: pa.Table, name: str) -> pa.Table:
        kind = table[name].type
        return _replaced(table, name, pa.array([value, *table[name].to_pylist()[1:]], kind))

    return change


def _cast(kind: pa.DataType) -> Callable[[pa.Table, str], pa.Table]:
    return lambda table, name: _replaced(table, name, pa.array([None] * table.num_rows, kind))


TABLE_CHANGES: tuple[Callable[[pa.Table, str], pa.Table], ...] = (
    lambda table, name: table.drop_columns(name),
    lambda table, name: table.rename_columns([{name: "else"}.get(n, n) for n in table.column_names]),
    lambda table, name: table.append_column(name, table[name]),
    lambda table, name: _replaced(table, name, pa.array([str(value) for value in table[name].to_pylist()])),
    lambda table, name: _replaced(table, name, pa.array([[1.0]] * table.num_rows)),
    lambda table, name: _replaced(table, name, pa.array([{"a": 1}] * table.num_rows)),
    lambda table, name: table.slice(0, 0),
    lambda table, name: pa.concat_tables([table, table]),
    *(_cast(kind) for kind in (pa.null(), pa.float64(), pa.string(), pa.bool_(), pa.timestamp("us"))),
)
NUMBER_CHANGES = tuple(_first(value) for value in (None, math.nan, math.inf, -math.inf, 1e30))
TEXT_CHANGES = tuple(_first(value) for value in (None, "", "val", "a\0b", "x" * 10_000))
DATE_CHANGES = tuple(_first(value) for value in (None, date.min, date.max))


@MANY
@given(st.data(), st.sampled_from(integrity.TABLES))
def test_a_forged_table_with_an_honest_digest_is_read_or_damaged(
    cells: StudyState, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    original, key = cells.store, next(iter(cells.cells))
    folder = tmp_path_factory.getbasetemp() / "forged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(original.storage) / original.study, folder / original.study)
    path = folder / original.study / "cells" / key / name
    table = pyarrow.parquet.read_table(path)
    column = data.draw(st.sampled_from(table.column_names))
    kind = table[column].type
    own = TEXT_CHANGES if pa.types.is_string(kind) else DATE_CHANGES if pa.types.is_date(kind) else ()
    own = NUMBER_CHANGES if pa.types.is_floating(kind) else own
    pyarrow.parquet.write_table(data.draw(st.sampled_from([*TABLE_CHANGES, *own]))(table, column), path)
    record = json.loads(path.with_name("result.json").read_bytes())
    files = record["files"] | {name: integrity.digest(path.read_bytes())}
    path.with_name("result.json").write_bytes(integrity.seal(record, files))
    try:
        cells.store = Store(str(folder), original.study)
        read_cells(cells, key)
        rows = cells.rows(cells.records("tables"))
        state = rows.set_index("key").loc[key, "state"]
        found, curves = artifacts.predictions(cells.store, rows), artifacts.curves(cells.store, rows)
        assert found is not None
        assert (state == "done") == (curves.read == 2)
        sums = found.of(key)
        assert sums is None if state == "damaged" else sums is None or not np.isnan(sums[1]).any()
        with refuses(name, "", kind=DamagedFile) if state == "damaged" else nullcontext():
            cells.store.read_result(key, "history" if name.startswith("history") else "predictions")
        assert (state == "damaged") == any(
            finding.damage for finding in fsck.check(cells.store, fsck.listing(cells.store)).findings
        )
    finally:
        cells.store = original


def sealed(state: StudyState, which: int) -> tuple[str, Record]:
    key = [*state.cells][which]
    content = state.store.read_file(key, "result.json")
    assert content is not None
    return key, json.loads(content)


@pytest.mark.parametrize(
    "name", ["metrics", "counts", "cell", "audit", "versions", "encoder", "data", "seconds", "ended"]
)
def test_a_sealed_record_without_a_field_is_damaged(cells: StudyState, name: str) -> None:
    key, record = sealed(cells, 0)
    del record[name]
    with pytest.raises(integrity.Damaged, match=f"^{name} is missing$"):
        integrity.check(integrity.seal(record, record["files"]), key, "cells")


@pytest.mark.parametrize("name", ["test_rmse", "val_rmse"])
def test_a_negative_rmse_of_a_cell_is_damage(cells: StudyState, name: str) -> None:
    key, record = sealed(cells, 0)
    record["metrics"][name] = -0.5
    with pytest.raises(integrity.Damaged, match=rf"^metrics\.{name} is -0\.5$"):
        integrity.check(integrity.seal(record, record["files"]), key, "cells")


def test_a_negative_rmse_of_a_trial_is_damage(searched: StudyState) -> None:
    done = next(
        one for trials in searched.searches.values() for one in trials.ended if one["state"] == "done"
    )
    content = searched.store.search.read_file(done["key"], "result.json")
    assert content is not None
    record = json.loads(content)
    regime = next(iter(record["scores"]))
    record["scores"][regime]["rmse"] = -0.5
    with pytest.raises(integrity.Damaged, match=r"^scores\."):
        integrity.check(integrity.seal(record, record["files"]), done["key"], "search")


@pytest.mark.parametrize(
    ("block", "name"),
    [("metrics", "test_rmse"), ("metrics", "val_rmse"), ("counts", "n_val"), ("cell", "split")],
)
def test_a_part_of_a_field_is_named(cells: StudyState, block: str, name: str) -> None:
    key, record = sealed(cells, 0)
    del record[block][name]
    with pytest.raises(integrity.Damaged, match=f"^{block}.{name} is missing$"):
        integrity.check(integrity.seal(record, record["files"]), key, "cells")


def test_a_cell_that_says_it_is_of_groups_needs_the_settings_that_are_asked_for(
    cells: StudyState, tmp_path: Path
) -> None:
    """A key of a split by groups cannot be computed from the record."""
    original = cells.store
    shutil.copytree(Path(original.storage) / original.study, tmp_path / original.study)
    key, _ = sealed(cells, 0)
    try:
        cells.store = Store(str(tmp_path), original.study)
        path = tmp_path / original.study / "cells" / key / "result.json"
        forge(path, ("cell", "split", "kind"), "group")
        assert cells.records()[key]["damage"]["problem"] == "its cell is that of another key"
    finally:
        cells.store = original
