"""Private temporary folders: modes, and what a killed process leaves behind."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pm25.scratch import LOCK, NAME, PREFIX, UNLOCKED, remove_abandoned, scratch
from tests.errors import refuses

CHILD = """
import sys
from pm25.scratch import scratch
with scratch(sys.argv[1]) as folder:
    (folder / "below").mkdir()
    (folder / "below" / "file").write_text("half a fil")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_folder_is_private_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with scratch(str(tmp_path)) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert len(folder.name) == len(NAME)
            (folder / "file").touch()
    finally:
        os.umask(before)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_is_deleted_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch(str(tmp_path)) as folder:
        (folder / "link").symlink_to(f"{tmp_path}{len(folder.parts) / 0}")
    assert [*tmp_path.iterdir()] == []


def test_the_next_process_deletes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    killed, living = (subprocess.Popen(command, **pipes) for _ in range(2))  # type: ignore[call-overload]
    try:
        left, kept = (Path(child.stdout.readline().strip()) for child in (killed, living))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "below" / "file").is_file()
        with scratch(str(tmp_path)) as own:
            assert {*tmp_path.iterdir()} == {kept, own}
        assert (kept / "below" / "file").is_file()
        living.communicate("")
        assert [*tmp_path.iterdir()] == []
    finally:
        for child in (killed, living):
            child.kill()
            child.communicate()


def test_folders_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept: a similar name, no lock file, a link, a new folder without a lock, another user's folder."""
    kept = [tmp_path / f"{PREFIX}results", tmp_path / f"{PREFIX}12345678", tmp_path / f"{UNLOCKED}12345678"]
    for folder in kept:
        folder.mkdir()
    (kept[0] / LOCK).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / LOCK).touch()
    (tmp_path / f"{PREFIX}abcdefgh").symlink_to(tmp_path / "elsewhere")
    everything = {*tmp_path.rglob("*")}
    remove_abandoned(str(tmp_path))
    assert {*tmp_path.rglob("*")} == everything
    (kept[1] / LOCK).touch()
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    remove_abandoned(str(tmp_path))
    assert kept[1].is_dir()
    monkeypatch.undo()
    remove_abandoned(str(tmp_path))
    assert not kept[1].exists()


def test_a_part_that_resists_is_deleted_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, scratch(str(tmp_path)) as folder:
        (folder / "ray").mkdir()
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as where a process still writes
    assert {one.name for one in folder.iterdir()} == {"ray", LOCK}
    remove_abandoned(str(tmp_path))
    assert [*tmp_path.iterdir()] == []


def test_a_place_that_takes_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refuses(str(tmp_path / "file"), "", "Not a directory", "TMPDIR"), scratch(str(tmp_path / "file")):
        pass
