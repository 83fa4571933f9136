"""A tracking store that cannot be used is reported in one line within ten seconds, and is not changed."""

import contextlib
import hashlib
import logging
import os
import shlex
import sqlite3
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from pm25.errors import InputError, SettingError
from sweeps.spec import tracking_address
from sweeps.store.records import Store
from tests.sweeps.tracking import broken

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sweeps.tracking import mlflow_internals, readiness
    from sweeps.tracking.connection import Unreachable
    from sweeps.tracking.mlflow_view import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow with an experiment."""
    folder = tmp_path_factory.mktemp("schema")
    Tracker(Store(str(folder), "toy"), None)
    return folder / "mlflow.db"


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Expect no output and no record of a logger."""
    with caplog.at_level(logging.WARNING):
        yield
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits in the same order: one answer before all checks together."""
    assert (readiness.ANSWERS_S, readiness.DEADLINE_S) == (5, 7), "ten seconds with what else is done"
    monkeypatch.setattr(readiness, "ANSWERS_S", 2)
    monkeypatch.setattr(readiness, "DEADLINE_S", 3.0)


def state(folder: Path) -> dict[str, str]:
    """Every file with a digest of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refusal(store: Store, uri: str | None = None) -> InputError:
    """The error of a store that must be refused within ten seconds, or sooner with shorter waits."""
    with broken.within(readiness.DEADLINE_S + 3), pytest.raises(InputError) as raised:
        Tracker(store, uri)
    error = raised.value
    assert "\n" not in str(error)
    assert len(str(error)) < 600
    assert error.fix
    for noise in ("sqlalche.me", "sqlite3.", "HTTPConnectionPool", "urllib3", "Traceback", "api/2.0"):
        assert noise not in str(error)
    return error


@pytest.mark.parametrize("kind", broken.DATABASES)
def test_a_broken_database_is_reported_and_kept(kind: str, schema: Path, tmp_path: Path, quiet: None) -> None:
    file = broken.copied(schema, tmp_path)
    change, says = broken.DATABASES[kind]
    change(file)
    before = state(tmp_path)
    error = refusal(Store(str(tmp_path), "toy"))
    assert state(tmp_path) == before
    assert str(file) in error.problem
    assert says in error.problem
    assert not isinstance(error, Unreachable), "waiting does not help"
    assert "sweep sync" in error.fix or "--set tracking" in error.fix


def test_the_command_of_the_fix_rebuilds_the_view(schema: Path, tmp_path: Path) -> None:
    folder = tmp_path / "our results"
    broken._cut(0.3)(broken.copied(schema, folder))
    error = refusal(Store(str(folder), "toy"))
    command = error.fix.split("`")[1]
    move, _, sync = command.partition(" && ")
    assert sync == "sweep sync STUDY"
    subprocess.run(shlex.split(move), check=True)
    assert Tracker(Store(str(folder), "toy"), None).sync([]) == 0


def test_a_locked_database_may_be_written_later(
    schema: Path, tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "ANSWERS_S", 3)  # a second for the lock
    file = broken.copied(schema, tmp_path)
    with broken.locked(file):
        error = refusal(Store(str(tmp_path), "toy"))
    assert isinstance(error, Unreachable)
    assert f"{file} is locked" in error.problem
    Tracker(Store(str(tmp_path), "toy"), None)


def test_a_short_lock_is_waited_for(schema: Path, tmp_path: Path) -> None:
    file = broken.copied(schema, tmp_path)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(1, lambda: other.execute("COMMIT"))
        timer.start()
        readiness.check(f"sqlite:///{file}", "toy")
        timer.join()


def test_a_database_that_cannot_be_written_is_reported(schema: Path, tmp_path: Path, quiet: None) -> None:
    file = broken.copied(schema, tmp_path)
    error = refusal(Store(str(tmp_path), "toy"), f"sqlite:///file:{file}?mode=ro&uri=true")
    assert "cannot be written" in error.problem
    assert str(file) in error.problem


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to every file")
@pytest.mark.parametrize("name", [".", "mlflow.db"])
def test_a_file_without_permission_is_reported(name: str, schema: Path, tmp_path: Path) -> None:
    file = broken.copied(schema, tmp_path)
    (tmp_path / name).chmod(0o500)
    error = refusal(Store(str(tmp_path), "toy"))
    (tmp_path / name).chmod(0o700)
    assert str(file) in error.problem
    assert "writable" in error.fix


def test_a_place_that_cannot_be_a_folder_is_reported(tmp_path: Path, quiet: None) -> None:
    (tmp_path / "file").touch()
    error = refusal(Store(str(tmp_path), "toy"), f"sqlite:///{tmp_path}/file/mlflow.db")
    assert str(tmp_path) in error.problem


def test_tables_that_another_process_creates_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SETTLES_S", 0.01)
    newest, *_, oldest = mlflow_internals.revisions()
    few, every = frozenset({"experiments"}), frozenset(mlflow_internals.tables())
    seen = iter([(few, None), (few | {"runs"}, None), (every, oldest), (every, newest)])
    readiness._check_schema("sqlite:////folder/mlflow.db", lambda: next(seen))
    assert not [*seen]


@pytest.mark.parametrize("kind", broken.ANSWERS)
def test_an_answer_that_is_not_one_of_mlflow_is_reported(kind: str, tmp_path: Path, quiet: None) -> None:
    answer, says = broken.ANSWERS[kind]
    with broken.answering(*answer) as uri:
        error = refusal(Store(str(tmp_path), "toy"), uri)
    assert uri in error.problem
    assert says in f"{error.problem} {error.fix}"
    assert isinstance(error, Unreachable) == (answer[0] == 429 or answer[0] >= 500)


@pytest.mark.parametrize(
    ("reply", "slowly"),
    [
        (None, False),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b" " * 50, True),
        (b"", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False),
    ],
    ids=["hangs", "trickles", "closes", "another protocol"],
)
@pytest.mark.parametrize("scheme", ["http", "https", "postgresql+psycopg2"])
@pytest.mark.usefixtures("impatient")
def test_a_server_that_hangs_is_reported(
    scheme: str, reply: bytes | None, slowly: bool, tmp_path: Path, quiet: None
) -> None:
    with broken.listening(reply, slowly=slowly) as port:
        uri = f"{scheme}://127.0.0.1:{port}"
        error = refusal(Store(str(tmp_path), "toy"), uri)
    assert uri in error.problem


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql+psycopg2"])
@pytest.mark.parametrize(("host", "says"), [("127.0.0.1:9", "refused"), ("nowhere.invalid:5000", "")])
def test_a_server_that_is_down_may_answer_later(
    scheme: str, host: str, says: str, tmp_path: Path, quiet: None
) -> None:
    error = refusal(Store(str(tmp_path), "toy"), f"{scheme}://ana:secret@{host}/mlflow")
    assert isinstance(error, Unreachable)
    assert host in error.problem
    assert says in error.problem
    assert "secret" not in str(error)
    assert "sweep sync STUDY" in error.fix


def test_a_driver_that_is_missing_is_named(tmp_path: Path, quiet: None) -> None:
    error = refusal(Store(str(tmp_path), "toy"), "mysql+pymysql://host/mlflow")
    assert "python -m pip install PyMySQL" in error.fix


@pytest.mark.slow
def test_a_postgresql_database_is_examined(postgres: "object", tmp_path: Path, quiet: None) -> None:
    uri = postgres.create().replace("postgresql:", "postgresql+psycopg2:")  # type: ignore[attr-defined]
    store = Store(str(tmp_path), "toy")
    Tracker(store, uri)
    name = uri.rpartition("/")[2]
    for change, says in (
        ("UPDATE alembic_version SET version_num = 'ffffffffffff'", "newer MLflow"),
        ("UPDATE alembic_version SET version_num = '451aebb31d03'", "older MLflow"),
        ("DELETE FROM alembic_version", "older MLflow"),
    ):
        postgres.sql(name, change)  # type: ignore[attr-defined]
        error = refusal(store, uri)
        assert says in error.problem
        assert postgres.password not in str(error)  # type: ignore[attr-defined]
    other = postgres.create().replace("postgresql:", "postgresql+psycopg2:")  # type: ignore[attr-defined]
    postgres.sql(other.rpartition("/")[2], "CREATE TABLE monitors (site text)")  # type: ignore[attr-defined]
    assert "monitors" in refusal(store, other).problem
    assert "exist" in refusal(store, f"{uri}_absent").problem
    assert "user" in refusal(store, uri.replace("mlflow:", "nobody:")).problem


GOOD = [
    *("http://localhost:5000", "https://host/mlflow", "http://[::1]:5000", "http://ana:p@ss/1@host:5000"),
    *("sqlite:////a/mlflow.db", "sqlite:///mlflow.db", "sqlite:////a b/ä?x.db"),
    *("postgresql://ana@host/db", "postgresql+psycopg2://ana:p@host/db", "mysql+pymysql://host/db"),
]
BAD = {
    "foo": "http://HOST:5000",
    "mlruns": "sqlite:////",
    "htp://host:5000": "http://host:5000",
    "htps://host": "https://host",
    "HTTP://host:5000": "http://host:5000",
    "http:/host:5000": "http://host:5000",
    "http:host": "http://host",
    "http://": "HOST:PORT",
    "http": "http://HOST:5000",
    "http://host:99999": "65535",
    "http://host:5000/#/experiments/3": "http://host:5000/",
    "localhost:5000": "http://localhost:5000",
    "10.0.0.1:5000/ml": "http://10.0.0.1:5000/ml",
    "postgres://ana:secret@host/db": "postgresql://ana:***@host/db",
    "sqlite://mlflow.db": "sqlite:////",
    "sqlite:mlflow.db": "sqlite:////",
    "sqlite3:////a/mlflow.db": "sqlite:////a/mlflow.db",
    "sqlite:///:memory:": "sqlite:////",
    "/a/mlflow.db": "sqlite:////a/mlflow.db",
    "s3://bucket/mlflow": "http://HOST:5000",
    "databricks": "http://HOST:5000",
    " http://host:5000": "blanks",
    "http://host:5000\n": "blanks",
}


@pytest.mark.parametrize("address", GOOD)
def test_a_good_address_is_accepted(address: str) -> None:
    tracking_address.check(address)


@pytest.mark.parametrize("address", BAD)
def test_a_bad_address_is_corrected(address: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as raised:
        tracking_address.check(address)
    error = raised.value
    assert BAD[address] in error.fix
    assert "secret" not in str(error)
    assert error.field == "tracking"
    refusal(Store(str(tmp_path), "toy"), address)
