"""What the slow tests share: a PostgreSQL server of their own, from Debian's programs."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def programs() -> Path | None:
    """The newest PostgreSQL's folder of programs, which Debian keeps off the PATH."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


class Postgres:
    """A cluster in a folder, with one superuser and a password; RuntimeError where it does not start."""

    user = "mlflow"

    def __init__(self, bin: Path, folder: Path) -> None:
        self.bin, self.folder, self.port = bin, folder, _free_port()
        self.password = f"p@ss/100%{secrets.token_hex(8)}"  # what an address must escape
        # PostgreSQL refuses to run as root.
        self._account = _account() if os.getuid() == 0 else None
        (folder / "password").write_text(self.password)
        if self._account:
            for path in (folder, folder / "password"):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        self._run("initdb", "-D", "data", "-U", self.user, "-A", "scram-sha-256", "--pwfile=password", "-N")
        options = ["-p", str(self.port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [bin / "postgres", "-D", "data", *options, "-c", "fsync=off"],
                stdout=log,
                stderr=log,
                **self._how(),
            )
        for _ in range(200):
            if self._process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            ready = subprocess.run([bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)])
            if ready.returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("PostgreSQL did not answer within 10 seconds")

    def _how(self) -> dict[str, Any]:
        if self._account is None:
            return {"cwd": self.folder}
        ids = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return {"cwd": self.folder, **ids}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([self.bin / program, *arguments], capture_output=True, text=True, **self._how())
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")

    def create(self) -> str:
        """The URI of a new, empty database."""
        name = f"db_{secrets.token_hex(4)}"
        self.sql("postgres", f"create database {name}")
        return f"postgresql://{self.user}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{name}"

    def sql(self, database: str, statement: str) -> str:
        """What a statement answers, without headers; raises CalledProcessError where it is refused."""
        place = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "-d", database]
        return subprocess.run(
            [self.bin / "psql", *place, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement],
            env={**os.environ, "PGPASSWORD": self.password},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # its clients need not have left
        self._process.wait(20)


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of 127.0.0.1 that nobody listens at, another one for each call."""
    return _free_port


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server on a free port, its sockets and data in a folder that goes with it."""
    bin = programs()
    if bin is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pm25-postgres-"))
    try:
        server = Postgres(bin, folder)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)
