"""Files of a storage with names that no study writes, or in place of its folders."""

import os
from pathlib import Path

import pytest

from pm25.errors import InputError
from sweeps.store import fsck
from sweeps.store.records import Store


@pytest.mark.parametrize("name", ["cells", "search", "damaged"])
def test_file_in_place_of_a_folder_is_damage(tmp_path: Path, name: str) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / name).write_text("x")
    store = Store(str(tmp_path), "study")
    found = fsck.check(store, fsck.listing(store))
    assert not found.intact
    (finding,) = found.findings
    assert finding.line.endswith(
        f"/{name}: a file in place of a folder. Fix: move it away, and restore the folder."
    )


def test_file_name_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "study" / "cells"
    folder.mkdir(parents=True)
    os.mkdir(os.fsencode(folder) + b"/a\xff")
    store = Store(str(tmp_path), "study")
    for read in (store.keys, lambda: fsck.listing(store)):
        with pytest.raises(InputError, match=r"a\\\\xff' is not UTF-8.*Fix: rename it") as error:
            read()
        assert "\n" not in str(error.value)
