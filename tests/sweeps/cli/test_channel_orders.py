"""A table with its columns in another order has the cells that were trained before."""

from pathlib import Path

import pandas as pd
import pytest

from sweeps.bench import engine
from sweeps.state import StudyState
from sweeps.store import channel_orders
from sweeps.store.records import Store
from tests.errors import refuses
from tests.sweeps.cli.commands import STUDY, Sweep


@pytest.fixture
def toy(table: pd.DataFrame, tmp_path: Path) -> Path:
    table.to_parquet(tmp_path / "panel.parquet", index=False)
    (tmp_path / "toy.yaml").write_text(STUDY)
    return tmp_path / "toy.yaml"


def reverse(toy: Path) -> None:
    frame = pd.read_parquet(toy.parent / "panel.parquet")
    frame[frame.columns[::-1]].to_parquet(toy.parent / "panel.parquet", index=False)


def test_columns_in_another_order_keep_every_key(toy: Path) -> None:
    before = StudyState(str(toy))
    assert not before.reordered
    channel_orders.record_order(before.panel, before.store)
    reverse(toy)
    after = StudyState(str(toy))
    assert after.reordered
    assert after.panel.channels == before.panel.channels
    assert after.panel.fingerprint == before.panel.fingerprint
    assert [*after.cells] == [*before.cells]


def test_without_a_stored_order_the_table_decides(toy: Path) -> None:
    before = StudyState(str(toy))
    reverse(toy)
    after = StudyState(str(toy))
    assert not after.reordered
    assert after.panel.channels != before.panel.channels
    assert {*after.cells}.isdisjoint(before.cells)


def test_named_channels_decide_their_own_order(toy: Path) -> None:
    channels = ["elev_m", "crn_tmax_c"]
    first = StudyState(str(toy), [f"data.channels=[{', '.join(channels)}]"])
    channel_orders.record_order(first.panel, first.store)
    named = StudyState(str(toy), [f"data.channels=[{', '.join(channels[::-1])}]"])
    assert named.panel.channels == ("crn_tmax_c", "elev_m")
    assert not named.reordered


def test_another_set_of_channels_has_an_order_of_its_own(toy: Path, table: pd.DataFrame) -> None:
    first = StudyState(str(toy))
    channel_orders.record_order(first.panel, first.store)
    reverse(toy)
    frame = pd.read_parquet(toy.parent / "panel.parquet")
    frame.assign(extra=frame["crn_tmax_c"] ** 2).to_parquet(toy.parent / "panel.parquet", index=False)
    more = StudyState(str(toy))
    assert not more.reordered
    channel_orders.record_order(more.panel, more.store)
    table.to_parquet(toy.parent / "panel.parquet", index=False)
    again = StudyState(str(toy))
    assert again.panel.fingerprint == first.panel.fingerprint
    channel_orders.record_order(again.panel, again.store)
    assert len((toy.parent / "results" / "toy" / "channels.json").read_text().split("[")) == 4


def test_seal_stores_the_order_of_a_study_that_has_results(sweep: Sweep, toy: Path) -> None:
    """A store of version 0.1.0 has no such file; after it is sealed, its table may be reordered."""
    file = toy.parent / "results" / "toy" / "channels.json"
    before = StudyState(str(toy))
    assert "order" not in sweep("seal", toy).out
    assert not file.exists()
    key, cell = next(iter(before.cells.items()))
    engine.trivial(cell, key, before.panel, before.store)
    assert "the order of the channels is stored" in sweep("seal", toy).out
    reverse(toy)
    after = StudyState(str(toy))
    assert after.reordered
    assert [*after.records()] == [key]
    (toy.parent / "panel.parquet").unlink()
    ended = sweep("seal", toy)
    assert ended.status == 0
    assert "0 records sealed, of 1; the order of the channels is not stored" in ended.out


def test_seal_stores_no_order_that_made_every_cell_stale(sweep: Sweep, toy: Path) -> None:
    before = StudyState(str(toy))
    key, cell = next(iter(before.cells.items()))
    engine.trivial(cell, key, before.panel, before.store)
    reverse(toy)
    assert "order" not in sweep("seal", toy).out
    assert not (toy.parent / "results" / "toy" / "channels.json").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[[1]]", "[" * 100_000])
def test_a_damaged_file_is_refused(toy: Path, content: str) -> None:
    state = StudyState(str(toy))
    channel_orders.record_order(state.panel, state.store)
    (toy.parent / "results" / "toy" / "channels.json").write_text(content)
    with refuses("channels.json", "", "delete"):
        channel_orders.stored_order(state.panel, Store(state.study.storage, "toy"))


def test_commands_say_that_the_order_is_another(toy: Path, sweep: Sweep) -> None:
    state = StudyState(str(toy))
    channel_orders.record_order(state.panel, state.store)
    assert sweep("status", toy).err == ""
    reverse(toy)
    (line,) = sweep("status", toy).err.splitlines()
    assert line.startswith("toy: ")


def test_rows_format_text_columns_and_wider_floats_change_no_key(toy: Path, table: pd.DataFrame) -> None:
    before = StudyState(str(toy))
    floats = dict.fromkeys(table.select_dtypes("float32").columns, "float64")
    others = {
        "rows.parquet": table.sample(frac=1, random_state=0),
        "text.parquet": table.assign(station_name="a text"),
        "wide.parquet": table.astype(floats),
        "table.csv": table,
    }
    for name, frame in others.items():
        path = toy.parent / name
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
        state = StudyState(str(toy), [f"data.table={path}"])
        assert state.panel.fingerprint == before.panel.fingerprint, name


def test_another_column_of_numbers_is_another_channel(toy: Path, table: pd.DataFrame) -> None:
    before = StudyState(str(toy))
    table.assign(extra=table["crn_tmax_c"] ** 2).to_parquet(toy.parent / "panel.parquet", index=False)
    after = StudyState(str(toy))
    assert {*after.panel.channels} == {*before.panel.channels, "extra"}
    assert {*after.cells}.isdisjoint(before.cells)
