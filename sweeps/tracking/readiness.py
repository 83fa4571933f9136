"""Checks of a tracking store, before MLflow opens it.

MLflow repeats an attempt that fails for two minutes, and adds its tables to any database. So these checks ask
first, once and with a time limit. They write nothing.
"""

import contextlib
import html
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy
from mlflow import __version__ as MLFLOW
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from pm25.errors import InputError
from sweeps.spec import tracking_address
from sweeps.spec.tracking_address import without_password
from sweeps.tracking import mlflow_internals
from sweeps.tracking.connection import (
    SYNC,
    DamagedDatabase,
    Unreachable,
    input_errors,
    is_server,
    no_answer,
    rebuild,
    refused,
    sqlite_file,
)

DEADLINE_S = 7.0
"""Longest time of all checks together."""
ANSWERS_S = 5
"""Longest wait for a server's answer, or for a lock."""
LOOKS_S = 2.0
"""Longest search for damaged pages of an SQLite file."""
SETTLES_S = 1.5
"""Time in which a database that another process creates must change."""
_OWN = {"experiments", "runs", "metrics", "params"}
"""Tables that every version of MLflow has."""
_NOT_OF_MLFLOW = ("alembic_", "_alembic_", "sqlite_")
"""Beginnings of the names of tables that migrations and SQLite add."""

Schema = tuple[frozenset[str], str | None]
"""Names of a database's tables, and its revision in MLflow's migrations."""


def check(uri: str, experiment: str) -> None:
    """Raise InputError if MLflow cannot use a tracking store, and Unreachable if it may later.

    The error comes within `DEADLINE_S`, even if the network or the disk does not answer.
    """
    try:
        tracking_address.check(uri)
    except ValueError as error:
        raise InputError("tracking", "", *error.args[1:]) from None
    if is_server(uri):
        _within_deadline(uri, lambda: _check_server(uri, experiment))
    elif uri.startswith("sqlite"):
        _within_deadline(uri, lambda: _check_sqlite(uri))
    else:
        _within_deadline(uri, lambda: _check_database(uri))


def _within_deadline(uri: str, examine: Callable[[], None]) -> None:
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            with input_errors(uri):
                examine()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    if thread.is_alive():
        raise no_answer(uri, f"no answer within {DEADLINE_S:g} s")
    for error in raised:
        raise error


def _check_server(uri: str, experiment: str) -> None:
    """Ask a server for the experiment, and examine its answer."""
    endpoint = "/api/2.0/mlflow/experiments/get-by-name"
    response = mlflow_internals.get(uri, endpoint, {"experiment_name": experiment}, ANSWERS_S)
    shown, status = without_password(uri), response.status_code
    is_json = "json" in response.headers.get("Content-Type", "")
    said = "" if is_json else _sentence(response.text)
    if response.history:
        start = response.url.partition(endpoint)[0]
        problem = f"{shown} passes requests on to {without_password(start)}"
        fix = f"set tracking to the address of the server itself, such as {without_password(start)}"
        raise InputError("tracking", "", problem, fix)
    if status in (401, 403):
        raise refused(uri, said or _message(response.text))
    if status == 429 or status >= 500:
        said = said or _message(response.text)
        problem = f"{shown} answers with status {status}{f' ({said})' if said else ''}"
        raise Unreachable("tracking", "", problem, f"look at the log of the server, then run `{SYNC}`")
    if not is_json or not ("RESOURCE_DOES_NOT_EXIST" in response.text or status == 200):
        answer = f"status {status}{f': {said}' if said else ''}"
        problem = f"{shown} is not an MLflow server ({answer})"
        raise InputError("tracking", "", problem, "correct host, port and path of the address")


def _message(text: str) -> str:
    """Return the field `message` of an error of MLflow, shortened."""
    found = re.search(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)"', text)
    return _sentence(found[1]) if found else ""


def _sentence(text: str) -> str:
    """Return the title of a web page, or the beginning of a text, in one line."""
    title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    plain = title[1] if title else re.sub(r"<[^>]*>", " ", text)
    return " ".join(html.unescape(plain).split())[:100]


def _check_sqlite(uri: str) -> None:
    file = sqlite_file(uri)
    if file.is_dir():
        fix = f"name a file in it: --set tracking={uri.rstrip('/')}/mlflow.db"
        raise InputError("tracking", "", f"{file} is a folder, not an SQLite file", fix)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file.parent, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise PermissionError("permission denied")
    if not file.exists() or not file.stat().st_size:
        return  # MLflow creates its tables
    _check_schema(uri, lambda: _sqlite_schema(uri))
    with _opened(uri) as database:
        _search_damage(database, file)
        # Writing the value that is there already creates a journal, as every later write does.
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("BEGIN IMMEDIATE")
        database.execute(f"PRAGMA user_version = {version}")
        database.execute("ROLLBACK")


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[sqlite3.Connection]:
    url = make_url(uri)
    (file,), options = url.get_dialect()().create_connect_args(url)
    # SQLite gives up a lock after `timeout`, before the deadline of all checks.
    options = {**options, "timeout": ANSWERS_S - 2, "isolation_level": None, "check_same_thread": True}
    with contextlib.closing(sqlite3.connect(file, **options)) as database:
        yield database


def _sqlite_schema(uri: str) -> Schema:
    with _opened(uri) as database:
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = frozenset(name for (name,) in found)
        if "alembic_version" not in tables:
            return tables, None
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        return tables, row and row[0]


def _search_damage(database: sqlite3.Connection, file: Path) -> None:
    """Read the pages for at most `LOOKS_S`; raises DatabaseError if one is damaged."""
    until = time.monotonic() + LOOKS_S
    database.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        found = "ok"  # a large file, of which the beginning is whole
    finally:
        database.set_progress_handler(None, 0)
    if found != "ok":
        raise sqlite3.DatabaseError(f"malformed: {found}")


def _check_database(uri: str) -> None:
    url = make_url(uri)
    seconds = ANSWERS_S - 1
    options = {
        "postgresql": {"connect_timeout": seconds},
        "mysql": {"connect_timeout": seconds},
        "mssql": {"timeout": seconds},
    }
    kind = url.get_backend_name()
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=options[kind])

    def schema() -> Schema:
        with engine.connect() as connection:
            if kind == "postgresql":
                connection.execute(sqlalchemy.text(f"SET statement_timeout = {ANSWERS_S * 1000}"))
            tables = frozenset(sqlalchemy.inspect(connection).get_table_names())
            if "alembic_version" not in tables:
                return tables, None
            query = sqlalchemy.text("SELECT version_num FROM alembic_version")
            return tables, connection.execute(query).scalar()

    _check_schema(uri, schema)


def _check_schema(uri: str, read: Callable[[], Schema]) -> None:
    """Compare the tables and the revision of a database with those of the installed MLflow."""
    known = mlflow_internals.revisions()
    found = read()
    while True:
        tables, revision = found
        tables = frozenset(
            name for name in tables if not name.startswith(("alembic_", "_alembic_", "sqlite_"))
        )
        if not tables or (revision == known[0] and tables >= mlflow_internals.tables()):
            return
        time.sleep(SETTLES_S)
        before, found = found, read()
        if found == before:  # else another process creates the tables right now
            break
    shown = str(sqlite_file(uri)) if uri.startswith("sqlite") else without_password(uri)
    if uri.startswith("sqlite") and _is_half_created(uri, tables):
        raise DamagedDatabase(
            "tracking", "", f"{shown} was not created completely, and has no run", rebuild(uri)
        )
    if not tables >= _OWN:
        names = ", ".join(sorted(tables)[:3]) + (", ..." if len(tables) > 3 else "")
        problem = f"{shown} is a database of something else (its tables: {names}); it was not changed"
        other = "sqlite:////FOLDER/mlflow.db" if uri.startswith("sqlite") else "an empty database"
        raise InputError("tracking", "", problem, f"set tracking to {other}, then run `{SYNC}`")
    here = f"MLflow {MLFLOW} is installed"
    if revision == known[0]:
        missing = ", ".join(sorted(mlflow_internals.tables() - tables)[:3])
        raise DamagedDatabase("tracking", "", f"{shown} lacks tables of MLflow ({missing})", rebuild(uri))
    if revision is None or revision in known:
        problem = f"{shown} is the database of an older MLflow (revision {revision or 'none'}; {here})"
        upgrade = f"or keep what else it holds: copy it, and run `mlflow db upgrade {without_password(uri)}`"
        raise InputError("tracking", "", problem, f"{rebuild(uri)}; {upgrade}")
    problem = f"{shown} is the database of a newer MLflow (revision {revision}; {here})"
    raise InputError("tracking", "", problem, f"install the newer MLflow; or {rebuild(uri)}")


def _is_half_created(uri: str, tables: frozenset[str]) -> bool:
    """Return whether an SQLite file has some tables of MLflow, as after a kill while it was created."""
    known = mlflow_internals.tables()
    if tables >= known or not tables <= known:
        return False
    with _opened(uri) as database:
        return "runs" not in tables or database.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is None
