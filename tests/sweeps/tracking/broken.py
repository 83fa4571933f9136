"""Tracking stores that cannot be used: damaged, foreign, old and locked databases, and servers that fail."""

import contextlib
import itertools
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def _sql(*statements: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with contextlib.closing(sqlite3.connect(file)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return change


def _cut(share: float) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return change


def _fill(share: float, value: int) -> Callable[[Path], None]:
    """Overwrite the page at a share of the file's length."""

    def change(file: Path) -> None:
        content, page = bytearray(file.read_bytes()), 4096
        start = int(len(content) * share) // page * page
        content[start : start + page] = bytes([value]) * page
        file.write_bytes(content)

    return change


def _text(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None


def _foreign(*statements: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        _sql(*statements)(file)

    return change


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DATABASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "text": (_text(b"these are notes, not a database\n" * 20), "not an SQLite database"),
    "zeros": (_text(bytes(40_000)), "not an SQLite database"),
    "another format": (_text(b"PK\x03\x04" + bytes(range(256)) * 40), "not an SQLite database"),
    **{f"cut at {share}": (_cut(share), "damaged") for share in (0.02, 0.3, 0.7, 0.95)},
    **{
        f"page of {value:#x} at {share}": (_fill(share, value), "")
        for share, value in itertools.product((0.0, 0.1, 0.5, 0.9), (0x00, 0x5A, 0xFF))
    },
    "revision of a newer MLflow": (
        _sql("UPDATE alembic_version SET version_num = 'ffffffffffff'"),
        "newer MLflow",
    ),
    "revision of an older MLflow": (
        _sql("UPDATE alembic_version SET version_num = '451aebb31d03'"),
        "older MLflow",
    ),
    "no revision": (_sql("DELETE FROM alembic_version"), "older MLflow"),
    "no table of the revision": (_sql("DROP TABLE alembic_version"), "older MLflow"),
    "missing table": (_sql("DROP TABLE metrics"), ""),
    "half created": (
        _foreign("CREATE TABLE experiments (experiment_id INT)", "CREATE TABLE runs (run_uuid TEXT)"),
        "not created completely",
    ),
    "tables of an old MLflow with a run": (
        _foreign(
            *(f"CREATE TABLE {name} (x TEXT)" for name in ("experiments", "runs", "metrics", "params")),
            "INSERT INTO runs VALUES ('a')",
        ),
        "older MLflow",
    ),
    "tables of a notebook": (_foreign("CREATE TABLE monitors (site TEXT)"), "monitors"),
    "tables of Optuna": (
        _foreign(
            "CREATE TABLE studies (study_id INT)",
            "CREATE TABLE trials (trial_id INT)",
            "CREATE TABLE alembic_version (version_num TEXT)",
            "INSERT INTO alembic_version VALUES ('v3.2.0.a')",
        ),
        "studies",
    ),
    "folder": (_folder, "folder"),
}
"""Ways to break a database of MLflow, and what the error must say."""


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let another process hold an exclusive lock."""
    code = (
        "import sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(file)], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            process.communicate()


Answer = tuple[int, str, str]
"""Status, type and content."""

JSON = "application/json"
HTML = "text/html; charset=utf-8"

ANSWERS: dict[str, tuple[Answer, str]] = {
    "401": ((401, HTML, "You are not authenticated."), "MLFLOW_TRACKING_USERNAME"),
    "403 of the server": (
        (403, JSON, '{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'),
        "MLFLOW_TRACKING_PASSWORD",
    ),
    "403 for the host name": (
        (403, "text/plain", "Invalid Host header - possible DNS rebinding attack detected"),
        "MLFLOW_SERVER_ALLOWED_HOSTS",
    ),
    "404 of another server": ((404, HTML, "<html><title>Not Found</title></html>"), "not an MLflow server"),
    "404 in JSON": ((404, JSON, '{"detail": "Not Found"}'), "not an MLflow server"),
    "page of a proxy": ((200, HTML, "<html><title>Log in</title>" + "x" * 9000 + "</html>"), "Log in"),
    "empty page": ((200, "text/plain", ""), "not an MLflow server"),
    "429": ((429, HTML, "slow down"), "429"),
    "500": ((500, JSON, '{"error_code": "INTERNAL_ERROR", "message": "disk is full"}'), "disk is full"),
    "500 with a page": ((500, HTML, "<html><title>Internal Server Error</title></html>"), "500"),
    "502": ((502, HTML, "<html><title>Bad Gateway</title></html>"), "Bad Gateway"),
    "503": ((503, HTML, "down for maintenance"), "maintenance"),
}
"""Answers that are not those of a working MLflow server, and what the error must say."""


@contextlib.contextmanager
def answering(status: int, kind: str, content: str) -> Iterator[str]:
    """Serve one answer to every request; the value is the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Retry-After", "3600")
            self.end_headers()
            self.wfile.write(content.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """A test that fails would show them all."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def listening(reply: bytes | None, *, slowly: bool = False) -> Iterator[int]:
    """Accept connections and send `reply`, byte by byte if `slowly`; None never answers. Yields the port."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        kept: list[socket.socket] = []

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    kept.append(connection)
                    if slowly:
                        threading.Thread(target=trickle, args=[connection], daemon=True).start()
                    elif reply is not None:
                        connection.sendall(reply)
                        connection.close()

        def trickle(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                for byte in reply or b"":
                    connection.sendall(bytes([byte]))
                    if ended.wait(0.5):
                        break

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            ended.set()
            thread.join()
            for connection in kept:
                connection.close()


def copied(schema: Path, folder: Path) -> Path:
    """Copy a database of MLflow into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(schema, folder / "mlflow.db")
    return folder / "mlflow.db"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Expect the block to end within a time."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds
