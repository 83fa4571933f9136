"""A file is written completely, or the old one stays."""

from pathlib import Path

import pytest

from pm25.files import write_atomically


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("table.csv", "old")]
    write_atomically(path, lambda unfinished: unfinished.write_text("new"))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("table.csv", "new")]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "table.csv", lambda unfinished: unfinished.write_text("new"))
