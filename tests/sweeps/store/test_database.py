"""Addresses of SQLite databases in folders with any name."""

import tempfile
from pathlib import Path

import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.store import database
from sweeps.store.records import default_tracking
from tests.odd_names import names


@given(st.lists(names, min_size=1, max_size=3))
def test_an_address_leads_back_to_its_path(parts: list[str]) -> None:
    path = "/" + "/".join([*parts, "mlflow.db"])
    assert database.path(database.address(path)) == path


@settings(max_examples=60, deadline=None)
@given(names)
def test_the_database_is_written_to_its_path_and_nothing_else_is(name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        storage = Path(root, name)
        storage.mkdir()
        engine = sqlalchemy.create_engine(default_tracking(str(storage)))
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("create table here (x integer)"))
        engine.dispose()
        assert [*Path(root).iterdir()] == [storage]
        assert [path.name for path in storage.iterdir()] == ["mlflow.db"]


def test_a_plain_path_has_a_plain_address() -> None:
    assert database.address("/data/a b/mlflow.db") == "sqlite:////data/a b/mlflow.db"


def test_a_server_has_no_path() -> None:
    assert database.path("http://host:5000") is None
    assert database.path("postgresql://u:p@host/mlflow") is None
