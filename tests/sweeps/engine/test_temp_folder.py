"""The folder of Ray's temporary files: chosen, replaced, or refused at once."""

import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.scratch import scratch
from sweeps.engine import connection, temp_folder
from tests.errors import refuses
from tests.odd_names import names


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in temp_folder.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short() -> "os.PathLike[str]":
    """A folder with a short name; those of pytest are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        yield Path(folder)


def test_the_variable_that_ray_reads_first_counts(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    monkeypatch.setenv("RAY_TMPDIR", str(short / "new"))
    assert temp_folder.choose() == (str(short / "new"), "")
    assert [*(short / "new").iterdir()] == []


@pytest.mark.parametrize("name", temp_folder.VARIABLES)
@pytest.mark.parametrize("folder", ["/proc/nowhere", "{file}", "{file}/below"])
def test_a_folder_without_write_access_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, folder: str
) -> None:
    (tmp_path / "file").touch()
    folder = folder.format(file=tmp_path / "file")
    monkeypatch.setenv(name, folder)
    begin = time.monotonic()
    with refuses(f"{name}={folder}", "", "TMPDIR", "RAY_TMPDIR"):
        temp_folder.choose()
    with refuses(f"{name}={folder}", "", "TMPDIR"), connection.connected(None, None):  # type: ignore[arg-type]
        pass
    assert time.monotonic() - begin < 1


def test_a_full_disk_is_refused(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    with refuses(f"TMPDIR={short}", "", "3 MB", "64 MB"):
        temp_folder.choose()


def test_a_disk_that_takes_no_byte_is_full(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(Path, "write_bytes", write)
    with refuses(f"TMPDIR={short}", "", "0 MB"):
        temp_folder.choose()


@settings(max_examples=60, deadline=None)
@given(st.lists(names, min_size=1, max_size=3))
def test_ray_gets_a_folder_that_it_can_use(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as root, pytest.MonkeyPatch.context() as patch:
        given_folder = Path(root, *parts)
        patch.setenv("TMPDIR", str(given_folder))
        folder, notice = temp_folder.choose()
        assert re.fullmatch(r"[A-Za-z0-9/._+=,@-]+", folder)
        with scratch(folder) as private:
            path = private / temp_folder.RAY / temp_folder.SOCKET
            assert len(os.fsencode(path)) <= temp_folder.SOCKET_BYTES
        assert (folder == str(given_folder)) == (not notice)
        assert not notice or f"TMPDIR={given_folder}" in notice


def test_a_socket_may_have_the_longest_path_and_no_longer_one(tmp_path: Path) -> None:
    for excess in (0, 1):
        name = "s" * (temp_folder.SOCKET_BYTES - len(str(tmp_path)) - 1 + excess)
        with socket.socket(socket.AF_UNIX) as server:
            if excess:
                with pytest.raises(OSError, match="too long"):
                    server.bind(str(tmp_path / name))
            else:
                server.bind(str(tmp_path / name))


@pytest.mark.parametrize("address", ["nowhere", "", " ", "nowhere:port", "http://head:8265"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with refuses(f"--address {address}", "", "HOST:6379"):
        connection.check_answers(address)
