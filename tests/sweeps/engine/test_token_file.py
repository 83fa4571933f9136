"""The file with a cluster's token: closed to others, or refused."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._raylet import AuthenticationTokenLoader

from sweeps.engine import ray_internals, token_file
from tests.errors import refuses


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ray_internals.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["home", "variable"])
def file(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = home / ".ray" / "auth_token"
    if request.param == "variable":
        path = home / "elsewhere"
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    path.parent.mkdir(exist_ok=True)
    path.write_text("0" * 64)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_that_others_can_read_is_closed_with_a_notice(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert token_file.protect() == (
        f"{file}: others could read the token (mode {mode:o}); its mode is now 600"
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token_file.protect() == ""


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_token_that_others_can_change_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with refuses(str(file), "", f"{mode:o}", "600"):
        token_file.protect()


def test_a_token_of_another_user_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = SimpleNamespace(st_uid=os.getuid() + 1, st_mode=0o100600)
    monkeypatch.setattr(Path, "stat", lambda self: owned)
    with refuses(str(file), "", f"id {os.getuid() + 1}", "600"):
        token_file.protect()


def test_the_administrator_s_token_stays_as_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    monkeypatch.setattr(Path, "stat", lambda self: SimpleNamespace(st_uid=0, st_mode=0o100440))
    assert token_file.protect() == ""


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN=x", "RAY_AUTH_MODE=disabled"])
def test_a_file_that_ray_does_not_read_is_left_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(*variable.split("="))
    file.chmod(0o644)
    assert token_file.protect() == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_run_s_own_token_is_new_and_private(
    home: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the cluster's")
    before, tokens = os.umask(umask), []
    try:
        for name in ("first", "second"):
            folder = home / name
            folder.mkdir()
            with ray_internals.private_token(folder):
                assert os.environ["RAY_AUTH_MODE"] == "token"
                assert "RAY_AUTH_TOKEN" not in os.environ
                file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
                assert file.parent == folder
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                tokens.append(file.read_text())
                assert AuthenticationTokenLoader.instance().get_raw_token() == tokens[-1]
    finally:
        os.umask(before)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert os.environ["RAY_AUTH_TOKEN"] == "the cluster's"
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert len({*tokens}) == 2
    assert all(len(token) == 64 for token in tokens)
    assert not (home / ".ray").exists()
