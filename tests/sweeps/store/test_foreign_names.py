"""Files of a storage with names that no study writes, or in place of its folders."""

import os
from pathlib import Path

import pytest

from pm25.errors import InputError
from sweeps.store import fsck
from sweeps.store.records import Store
from tests import worlds


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


@pytest.mark.parametrize("what", ["a pipe", "a device", "a link to nothing", "a link to itself"])
@pytest.mark.parametrize("name", ["result.json", "checkpoint.pt"])
def test_what_is_no_regular_file_is_damaged_and_never_waited_for(
    tmp_path: Path, what: str, name: str
) -> None:
    key = "a" * 20
    path = tmp_path / "study" / "cells" / key / name
    path.parent.mkdir(parents=True)
    if what == "a pipe":
        os.mkfifo(path)
    else:
        target = {"a device": "/dev/zero", "a link to nothing": "nothing", "a link to itself": path}
        path.symlink_to(target[what])
    store = Store(str(tmp_path), "study")
    found = fsck.check(store, fsck.listing(store))
    assert [finding.path for finding in found.findings if finding.damage] == [str(path)]
    if name == "result.json":
        assert store.records([key])[key]["state"] == "damaged"
    elif what in ("a pipe", "a device"):
        with pytest.raises(InputError, match=r"not a regular file|Invalid argument"):
            store.read_file(key, name)


def test_file_name_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "study" / "cells"
    folder.mkdir(parents=True)
    os.mkdir(os.fsencode(folder) + b"/a\xff")
    store = Store(str(tmp_path), "study")
    for read in (store.keys, lambda: fsck.listing(store)):
        with pytest.raises(InputError, match=r"a\\\\xff' is not UTF-8.*Fix: rename it") as error:
            read()
        assert "\n" not in str(error.value)


def test_fsck_lists_the_keys_of_a_study_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One listing for each record took hours for 100,000 of them."""
    store = Store(str(tmp_path), "study")
    for i in range(5):
        store.write_record(worlds.record(f"key-{i}", "failed", error=worlds.error("RuntimeError", "broken")))
    listed: list[str] = []
    keys = Store.keys
    monkeypatch.setattr(Store, "keys", lambda self: listed.append(self.folder) or keys(self))
    found = fsck.check(store, fsck.listing(store))
    assert found.sealed + found.damaged == 5
    assert len(listed) <= 2
