"""Connections to a tracking store: place of its artifacts, speed of SQLite, and errors."""

import contextlib
import logging
import os
import re
import shlex
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from pm25 import uri as uris
from pm25.errors import InputError
from pm25.redaction import redacted
from sweeps.spec.tracking_address import without_password
from sweeps.store import database

# Each failure is reported in one line; these would add its traceback and every retry.
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

SYNC = "sweep sync STUDY"
"""Command that writes the view again; the command line replaces STUDY."""


class Unreachable(InputError):
    """A tracking store that does not answer now; the view can be written later."""


class DamagedDatabase(InputError):
    """A database that is damaged or incomplete. It can be moved aside and written again from the store."""


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, _: Any) -> None:
    """Let SQLite return before its data are on the disk, which saves 90 of the 110 ms that a run takes.

    The database survives a killed process. After a power failure it may be damaged; then move it away, and
    `sweep sync` creates it again. WAL mode would be faster, but does not work on network file systems.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@contextlib.contextmanager
def input_errors(uri: str) -> Iterator[None]:
    """Convert errors of MLflow, its database or its server to InputError or Unreachable."""
    try:
        yield
    except InputError:
        raise
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        raise _input_error(uri, error) from error  # errors of requests are OSErrors


def is_server(uri: str) -> bool:
    """Return True for the address of an MLflow server, False for that of a database."""
    return uri.startswith("http")


def sqlite_file(uri: str) -> Path:
    """Return the file of an SQLite address."""
    return Path(database.path(uri) or (make_url(uri).database or "").removeprefix("file:"))


def rebuild(uri: str) -> str:
    """Describe how a database that cannot be used is replaced by one that `sweep sync` writes."""
    if uri.startswith("sqlite"):
        file = str(sqlite_file(uri))
        move = shlex.join(["mv", file, f"{file}.old"])
        return f"move it away and write it again from the store: `{move} && {SYNC}`"
    return f"set tracking to an empty database, and write it from the store with `{SYNC}`"


def move_aside(file: Path) -> Path:
    """Rename an SQLite file and its journals, and return the new name. Raises OSError."""
    aside = file.with_name(f"{file.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    for suffix in ("-journal", "-wal", "-shm"):  # SQLite would apply them to the next file of this name
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{file}{suffix}", f"{aside}{suffix}")
    file.rename(aside)
    return aside


_OF_SQLITE: tuple[tuple[str, str, str], ...] = (
    ("not a database", "is not an SQLite database", "rebuild"),
    ("malformed", "is damaged", "rebuild"),
    ("no such (table|column)", "lacks tables of MLflow", "rebuild"),
    ("locked|busy", "is locked by another process", "unlock"),
    ("readonly|read-only|permission denied|unable to open|not permitted", "cannot be written", "permit"),
    ("full|no space|quota", "cannot be written, because the disk is full", "space"),
    ("not a directory|file exists|is a directory", "cannot be created, because of another file", "place"),
    ("i/o error|input/output|locking protocol", "cannot be read and written on this disk", "place"),
)
"""Pattern of the error of an SQLite file, the problem, and the kind of its fix."""

_OF_DATABASE: tuple[tuple[str, str, str], ...] = (
    (
        "refused|timeout|timed out|translate host|name or service|no route|closed|starting up|shutting down"
        "|too many|unreachable|lost connection|can't connect|canceling statement",
        "does not answer",
        "start",
    ),
    ("authentication|password|pg_hba|access denied|role .* does not exist", "refuses this user", "password"),
    ("database .* does not exist|unknown database", "does not exist", "create"),
    ("permission denied|read-only|must be owner", "does not let this user write", "grant"),
    (
        "no such table|undefinedtable|undefinedcolumn|relation .* does not exist",
        "lacks tables of MLflow",
        "rebuild",
    ),
)
"""The same of another database."""  # fmt: skip


_PACKAGES = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "PyMySQL",
}
"""Packages of pip, by the module of a database driver."""


def _input_error(uri: str, error: Exception) -> InputError:
    if is_server(uri):
        return _server_error(uri, error)
    shown, reason = without_password(uri), short_reason(error)
    file = str(sqlite_file(uri)) if uri.startswith("sqlite") else ""
    if isinstance(error, ImportError):
        package = _PACKAGES.get(error.name or "", error.name or "a driver of this database")
        fix = f"python -m pip install {package}"
        if error.name == "psycopg":
            fix = f"write postgresql+psycopg2:// if psycopg2 is installed, otherwise {fix}"
        return InputError("tracking", "", f"{shown} needs a package that is missing ({reason})", fix)
    for pattern, problem, kind in _OF_SQLITE if file else _OF_DATABASE:
        if re.search(pattern, reason, re.IGNORECASE):
            fix = {
                "rebuild": rebuild(uri),
                "unlock": f"end the other process (`fuser {shlex.quote(file)}` shows it), then run `{SYNC}`",
                "permit": "make the file and its folder writable, or choose another file with "
                "--set tracking=sqlite:////FOLDER/mlflow.db",
                "space": f"free some space, then run `{SYNC}`",
                "place": "choose another file with --set tracking=sqlite:////FOLDER/mlflow.db",
                "start": f"start the server, or correct host and port; `{SYNC}` then writes the view",
                "password": "set the user in the address, and the password in PGPASSWORD or ~/.pgpass",
                "create": "create the empty database, or correct its name",
                "grant": "let this user own the database",
            }[kind]
            temporary = kind in ("unlock", "space", "start")
            made = Unreachable if temporary else DamagedDatabase if kind == "rebuild" else InputError
            return made("tracking", "", f"{file or shown} {problem} ({reason})", fix)
    return InputError("tracking", "", f"{file or shown} cannot be used ({reason})", rebuild(uri))


def _server_error(uri: str, error: Exception) -> InputError:
    shown, reason = without_password(uri), short_reason(error)
    cause = _network_cause(error)
    if cause is not None:
        return no_answer(uri, cause)
    if re.search(r"\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED", reason):
        return refused(uri)
    problem = f"{shown} does not do what MLflow asks ({reason})"
    return Unreachable("tracking", "", problem, f"look at its log, then run `{SYNC}`")


def no_answer(uri: str, cause: str) -> Unreachable:
    """Build the error of a server that does not answer."""
    fix = f"start the server, or correct the address; `{SYNC}` then writes the view"
    return Unreachable("tracking", "", f"{without_password(uri)} does not answer ({cause})", fix)


def refused(uri: str, answer: str = "") -> InputError:
    """Build the error of a server that answers with 401 or 403."""
    fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user of this server"
    if "host" in answer.lower():
        fix = "add the host name to MLFLOW_SERVER_ALLOWED_HOSTS of the server"
    return InputError(
        "tracking", "", f"{without_password(uri)} refuses this user{f' ({answer})' if answer else ''}", fix
    )


def _network_cause(error: BaseException) -> str | None:
    """Find the error of the network behind an error of MLflow; None if the server did answer."""
    found = [*_chain(error)]
    names = {type(one).__name__ for one in found}
    for one in found:
        if isinstance(one, ssl.SSLError):
            hint = ", so it may be an http:// server" if "WRONG_VERSION" in str(one) else ""
            return f"TLS fails: {getattr(one, 'reason', None) or one}{hint}"
        if isinstance(one, socket.gaierror):
            return "its host name is unknown"
        if isinstance(one, ConnectionRefusedError):
            return "connection refused"
    if names & {"ReadTimeout", "ConnectTimeout", "ReadTimeoutError", "ConnectTimeoutError", "TimeoutError"}:
        return "no answer in time"
    if names & {"ConnectionResetError", "RemoteDisconnected", "ProtocolError", "BadStatusLine"}:
        return "it closes the connection without an answer of HTTP"
    for one in found:
        if isinstance(one, OSError) and one.strerror:
            return one.strerror.lower()
    return "no connection" if names & {"ConnectionError", "ProxyError", "MaxRetryError"} else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors behind it: causes, contexts, and those that are kept as arguments."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        behind = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        waiting += [other for other in behind if isinstance(other, BaseException)]


def short_reason(error: BaseException) -> str:
    """Describe an error in one line of at most 300 characters."""
    text = error.problem if isinstance(error, InputError) else str(error)
    text = re.sub(r"\(Background on this error at: \S+\)|\[SQL: .*", "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*\([\w.]+(Error|Exception)\)\s*", "", text)
    return redacted(" ".join(text.split()))[:300].rstrip(". ")


def artifacts_uri(storage: str, uri: str) -> str | None:
    """Choose the folder for the artifacts of an experiment; None if a server chooses it.

    For a database, MLflow itself would choose a folder in the current directory.
    """
    if is_server(uri):
        return None
    if "://" not in storage:
        return Path(storage).resolve().joinpath("mlflow-artifacts").as_uri()
    if (file := database.path(uri)) is not None:
        return Path(file).resolve().with_name("mlflow-artifacts").as_uri()
    bucket = uris.without_secrets(uris.escaped(storage))
    return f"{bucket.partition('?')[0].rstrip('/')}/mlflow-artifacts"
