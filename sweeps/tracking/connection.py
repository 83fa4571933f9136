"""Connections to a tracking store: place of its artifacts, speed of SQLite, and errors."""

import contextlib
import logging
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from pm25.errors import InputError

logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow").setLevel(logging.WARNING)


class Unreachable(InputError):
    """A tracking server that does not answer; the view can be written later."""


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, _: Any) -> None:
    """Let SQLite return before its data are on the disk, which saves 90 of the 110 ms that a run takes.

    The database survives a killed process. After a power failure it may be damaged; then delete it, and
    `sweep sync` creates it again. WAL mode would be faster, but does not work on network file systems.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@contextlib.contextmanager
def input_errors(uri: str) -> Iterator[None]:
    """Convert errors of MLflow, its database or its server to InputError or Unreachable."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # errors of requests are OSErrors
        raise _input_error(uri, error) from error


def _input_error(uri: str, error: Exception) -> InputError:
    reason = short_reason(error)
    problem = f"{uri} cannot be opened ({reason})"
    if not uri.startswith("http"):
        damaged = "malformed" in reason
        fix = (
            f"delete {uri.rpartition(':///')[2]} and run `sweep sync`, which creates it again"
            if damaged
            else ""
        )
        return InputError("tracking", "", problem, fix)
    if re.search(r"\b40[13]\b", reason):
        fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return InputError("tracking", "", f"{uri} refuses this user", fix)
    return Unreachable("tracking", "", problem)


def short_reason(error: Exception) -> str:
    """Describe an error in one line of at most 300 characters."""
    text = error.problem if isinstance(error, InputError) else str(error)
    return " ".join(text.split())[:300].rstrip(".")


def artifacts_uri(storage: str, uri: str) -> str | None:
    """Choose the folder for the artifacts of an experiment; None if a server chooses it.

    For a database, MLflow itself would choose a folder in the current directory.
    """
    if uri.startswith("http"):
        return None
    if "://" not in storage:
        return Path(storage).resolve().joinpath("mlflow-artifacts").as_uri()
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///")).resolve().with_name("mlflow-artifacts").as_uri()
    return f"{storage.partition('?')[0].rstrip('/')}/mlflow-artifacts"
