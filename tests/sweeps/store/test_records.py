"""The store: a record is complete or absent even if its writer is killed, and errors name the storage."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sweeps.store import integrity
from sweeps.store import records as files_
from sweeps.store.records import PART_BYTES, StorageFault, Store
from tests.errors import refuses

RECORD = {"key": "k1", "state": "done", "metrics": {"test_rmse": 1.5, "test_r2": None}}


class Elsewhere(Store):
    """The same folder as a storage that is not a local folder: all goes through pyarrow."""

    def location(self, *parts: str) -> tuple[pyarrow.fs.FileSystem, str]:
        system, path = super().location(*parts)
        return pyarrow.fs.SubTreeFileSystem("/", system), path


@pytest.fixture(params=["folder", "uri", "elsewhere"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = tmp_path / "results"
    kind = Elsewhere if request.param == "elsewhere" else Store
    return kind(place.as_uri() if request.param == "uri" else str(place), "toy")


@pytest.fixture(params=["folder", "uri", "elsewhere", "bucket"])
def any_store(request: pytest.FixtureRequest) -> Store:
    if request.param == "bucket":
        return Store(f"{request.getfixturevalue('objects').bucket()}/results", "toy")
    place: Path = request.getfixturevalue("tmp_path") / "results"
    kind = Elsewhere if request.param == "elsewhere" else Store
    return kind(place.as_uri() if request.param == "uri" else str(place), "toy")


@pytest.fixture
def bucket_store(objects: Any) -> Store:
    store = Store(f"{objects.bucket()}/results", "toy")
    store.location()[0].get_file_info("meet")  # pyarrow asks first who it is that answers
    objects.asked.clear()
    return store


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read_again(store: Store, tmp_path: Path) -> None:
    assert store.record("k1") is None
    assert store.keys() == set()
    assert store.records(["k1"]) == {}
    store.write_record(RECORD)
    assert store.record("k1") == RECORD
    assert store.keys() == {"k1"}
    assert files(tmp_path) == ["results/toy/cells/k1/result.json"]


def test_a_second_record_replaces_the_first(store: Store, tmp_path: Path) -> None:
    store.write_record(RECORD)
    store.write_record({"key": "k1", "state": "failed"})
    assert store.record("k1") == {"key": "k1", "state": "failed"}
    assert files(tmp_path) == ["results/toy/cells/k1/result.json"]


def test_a_forgotten_cell_has_not_ended(any_store: Store) -> None:
    for key in ("k1", "k2"):
        any_store.write_table(key, "history", {"epoch": [1]})
        any_store.write_record(RECORD | {"key": key})
    any_store.forget("k1")
    assert any_store.record("k1") is None
    assert [*any_store.records(["k1", "k2"])] == ["k2"]


def test_nothing_of_a_forgotten_cell_is_left(any_store: Store) -> None:
    any_store.write_record(RECORD | {"state": "failed"})
    any_store.write_file("k1", "checkpoint.pt", b"epoch 3")
    any_store.write_file("k2", "checkpoint.pt", b"epoch 1")
    any_store.forget("k1")
    assert any_store.keys() == {"k2"}
    assert any_store.read_file("k1", "checkpoint.pt") is None
    any_store.forget("k2")  # which has no record
    any_store.forget("k3")  # nor anything else
    assert any_store.keys() == set()


def test_a_cell_half_forgotten_has_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path), "toy")
    store.write_record(RECORD)
    store.write_file("k1", "history.parquet", b"")
    system, _ = store.location()

    class Refuses:
        delete_file = system.delete_file

        def delete_dir(self, path: str) -> None:
            raise OSError(16, "Device or resource busy")

    location = Store.location
    monkeypatch.setattr(Store, "location", lambda self, *parts: (Refuses(), location(self, *parts)[1]))
    with pytest.raises(StorageFault, match="busy"):
        store.forget("k1")
    monkeypatch.undo()
    assert files(tmp_path) == ["toy/cells/k1/history.parquet"]


def test_files_come_and_go(any_store: Store) -> None:
    assert any_store.read_file("k1", "checkpoint.pt") is None
    any_store.delete_file("k1", "checkpoint.pt")
    for content in (b"epoch 1", b"", b"epoch 2\0"):
        any_store.write_file("k1", "checkpoint.pt", content)
        assert any_store.read_file("k1", "checkpoint.pt") == content
    any_store.write_record(RECORD)
    any_store.delete_file("k1", "checkpoint.pt")
    assert any_store.read_file("k1", "checkpoint.pt") is None
    assert any_store.record("k1") == RECORD


def test_search_trials_lie_beside_the_cells(store: Store, tmp_path: Path) -> None:
    store.write_record(RECORD)
    trial = {"key": "t1", "kind": "trial", "state": "pruned"}
    store.search.write_record(trial)
    store.search.write_file("t2", "checkpoint.pt", b"epoch 1")
    assert files(tmp_path / "results" / "toy") == [
        "cells/k1/result.json",
        "search/t1/result.json",
        "search/t2/checkpoint.pt",
    ]
    assert store.keys() == {"k1"}
    assert store.search.keys() == {"t1", "t2"}
    assert store.search.records(["t1", "t2", "k1"]) == {"t1": trial}
    assert store.search.search == store.search == type(store)(store.storage, "toy", "search")


def test_what_another_process_does_is_seen(store: Store, tmp_path: Path) -> None:
    cells = tmp_path / "results" / "toy" / "cells"
    for key in ("k1", "k2"):
        store.write_record(RECORD | {"key": key})
    assert [*store.records(["k1", "k2", "k3"])] == ["k1", "k2"]
    before = (cells / "k2" / "result.json").stat()
    (cells / "k1" / "result.json").unlink()
    (cells / "k2" / "result.json").write_bytes(integrity.seal(RECORD | {"key": "k2", "seen": 1}, {}))
    os.utime(cells / "k2" / "result.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    (cells / "k3").mkdir()
    (cells / "k3" / "result.json").write_bytes(integrity.seal(RECORD | {"key": "k3"}, {}))
    found = store.records(["k1", "k2", "k3"])
    assert [*found] == ["k2", "k3"]
    assert found["k2"]["seen"] == 1


def test_tables_keep_their_columns(any_store: Store) -> None:
    any_store.write_table("k1", "history", {"epoch": [1, 2], "train_loss": [0.5, 0.25]})
    table = pa.table({"part": pa.array(["test", "wr", "test"]).dictionary_encode()})
    any_store.write_table("k1", "predictions", table)
    assert any_store.read_table("k1", "history").to_pydict() == {"epoch": [1, 2], "train_loss": [0.5, 0.25]}
    assert any_store.read_table("k1", "history", ["epoch"]).column_names == ["epoch"]
    assert any_store.read_table("k1", "predictions")["part"].to_pylist() == ["test", "wr", "test"]


def test_beginnings_are_no_record(store: Store, tmp_path: Path) -> None:
    store.write_table("k1", "predictions", {"truth": [1.0]})
    cells = tmp_path / "results" / "toy" / "cells"
    (cells / "k1" / ".result.json.77.part").write_text(json.dumps(RECORD))
    (cells / "stray.txt").write_text("no cell")
    assert store.keys() == {"k1"}
    assert store.record("k1") is None
    assert store.records(["k1"]) == {}


def test_records_come_in_the_order_asked_for(any_store: Store) -> None:
    names = [f"k{i}" for i in range(40)]
    for name in names:
        any_store.write_record(RECORD | {"key": name})
    asked = [*reversed(names[:30]), "unknown", *names[35:]]
    found = any_store.records(asked)
    assert [*found] == [name for name in asked if name != "unknown"]
    assert all(record["key"] == key for key, record in found.items())


def test_only_this_study_s_cells(tmp_path: Path) -> None:
    store, other = (Store(str(tmp_path), name) for name in ("toy", "other"))
    store.write_record(RECORD)
    assert other.keys() == set()
    assert other.record("k1") is None


def test_the_size_is_that_of_the_cells_asked_for(store: Store, tmp_path: Path) -> None:
    store.write_record(RECORD)
    store.write_table("k1", "history", {"epoch": [1]})
    store.write_record(RECORD | {"key": "k2", "more": "x" * 1000})
    cells = tmp_path / "results" / "toy" / "cells"
    first = sum(path.stat().st_size for path in (cells / "k1").iterdir())
    (cells / "k1" / ".history.parquet.77.part").write_text("half")
    assert store.size(["k1"]) == first
    assert store.size(["k1", "k2"]) == first + (cells / "k2" / "result.json").stat().st_size
    assert store.size(["k1", "unknown"]) == first
    assert store.size([]) == 0


def test_nothing_incomplete_is_left_beside_a_record_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may be killed at any moment, and nothing looks for parts once a cell has ended."""
    store, folder = Store(str(tmp_path), "toy"), tmp_path / "toy" / "cells" / "k1"
    store.write_file("k1", "checkpoint.pt", b"state")
    (folder / ".checkpoint.pt.77.part").write_text("half")
    seen, write_file = [], Store.write_file

    def written(self: Store, key: str, name: str, content: bytes) -> str:
        sha256 = write_file(self, key, name, content)
        seen.append({path.name for path in folder.iterdir()})
        return sha256

    monkeypatch.setattr(Store, "write_file", written)
    store.write_record(RECORD)
    assert seen == [{"checkpoint.pt", "result.json"}]


def test_who_holds_a_file(any_store: Store) -> None:
    assert any_store.holding("weights.pt") == set()
    for key in ("k1", "k2"):
        any_store.write_file(key, "weights.pt", b"weights")
    any_store.write_file("k3", ".weights.pt.77.part", b"half")
    any_store.search.write_file("k4", "weights.pt", b"weights")
    any_store.write_file("k5", "result.json", b"{}")
    assert any_store.holding("weights.pt") == {"k1", "k2"}
    assert any_store.search.holding("weights.pt") == {"k4"}


def test_a_store_travels_as_a_value(any_store: Store) -> None:
    any_store.write_record(RECORD)
    assert pickle.loads(pickle.dumps(any_store)).record("k1") == RECORD
    assert any_store == type(any_store)(any_store.storage, "toy")


@settings(deadline=None)  # a disk takes its time
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P", "S", "Z", "C"])).map("x{}".format),
        st.floats(allow_nan=False, allow_infinity=False)
        | st.integers()
        | st.text()
        | st.booleans()
        | st.none(),
    )
)
@example({"xhost": "no such file: \udcff.parquet"})
@example({"xtest_rmse": 5e-324, "xtest_r2": -0.0})
def test_a_record_is_read_to_the_last_bit(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, record = Store(folder, "toy"), {**content, "key": "k1", "state": "done"}
        store.write_record(record)
        assert repr(store.record("k1")) == repr(record)


def test_no_number_but_a_finite_one(any_store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        any_store.write_record(RECORD | {"metrics": {"test_rmse": float("nan")}})
    assert any_store.record("k1") is None


# Whole or not at all


_DIES = """
import builtins, os, signal, sys
from sweeps import store as files_
from sweeps.store.records import PART_BYTES, Store

class File:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

class System:
    def __init__(self, system): self.system = system
    def __getattr__(self, name): return getattr(self.system, name)
    def open_output_stream(self, path): return File(self.system.open_output_stream(path))

class Elsewhere(Store):
    def location(self, *parts):
        system, path = super().location(*parts)
        return System(system), path

opened = open
builtins.open = lambda *args: File(opened(*args)) if "wb" in args else opened(*args)
store = {"folder": Store, "elsewhere": Elsewhere}[sys.argv[2]](sys.argv[1], "toy")
store.write_record({"key": "k1", "state": "failed", "text": "x" * 100_000})
"""


@pytest.mark.parametrize("kind", ["folder", "elsewhere"])
@pytest.mark.parametrize("before", [None, RECORD], ids=["new", "over an old one"])
def test_a_writer_killed_half_way_leaves_no_half_record(
    tmp_path: Path, before: dict[str, Any] | None, kind: str
) -> None:
    store = Store(str(tmp_path), "toy")
    if before:
        store.write_record(before)
    command = [sys.executable, "-c", _DIES, str(tmp_path), kind]
    dead = subprocess.run(command, check=False, capture_output=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    (half,) = [name for name in files(tmp_path) if name.endswith(".part")]
    assert 0 < (tmp_path / half).stat().st_size < 100_000  # it did die half way
    assert store.record("k1") == before
    assert store.keys() == {"k1"}
    store.write_record(RECORD)  # the next attempt is not in its way, and clears it away
    assert store.record("k1") == RECORD
    assert files(tmp_path) == ["toy/cells/k1/result.json"]


def test_a_record_clears_away_its_own_beginnings_only(store: Store, tmp_path: Path) -> None:
    for key in ("k1", "k2"):
        store.write_file(key, "checkpoint.pt", b"epoch 1")
        (tmp_path / "results" / "toy" / "cells" / key / ".checkpoint.pt.77.part").write_text("half")
    store.write_record(RECORD)
    assert files(tmp_path / "results" / "toy" / "cells") == [
        "k1/checkpoint.pt",
        "k1/result.json",
        "k2/.checkpoint.pt.77.part",
        "k2/checkpoint.pt",
    ]


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure may otherwise keep the name and lose the content."""
    store, synced, sync = Store(str(tmp_path), "toy"), [], os.fsync

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        synced.append((os.fstat(descriptor).st_size, store.record("k1")))

    monkeypatch.setattr(os, "fsync", fsync)
    store.write_record(RECORD)
    size = (tmp_path / "toy" / "cells" / "k1" / "result.json").stat().st_size
    assert synced == [(size, None)]


def test_a_full_disk_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path), "toy")
    store.write_record(RECORD)
    system, path = store.location("cells", "k1")

    class Full:
        type_name, create_dir = system.type_name, system.create_dir
        move, delete_file, get_file_info = system.move, system.delete_file, system.get_file_info

        def open_output_stream(self, path: str) -> Any:
            Path(path).write_text("{")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "location", lambda self, *parts: (Full(), path))
    with pytest.raises(StorageFault, match="No space left"):
        store.write_record(RECORD | {"state": "failed"})
    monkeypatch.undo()
    assert store.record("k1") == RECORD
    assert files(tmp_path) == ["toy/cells/k1/result.json"]  # which gives the room back


# In a bucket


def test_a_file_in_a_bucket_is_one_request(bucket_store: Store, objects: Any) -> None:
    """Without a part and its copy, without an object for each folder, without a look around."""
    bucket = bucket_store.storage.removeprefix("s3:/").removesuffix("/results")
    place = f"{bucket}/results/toy/cells/k1"
    bucket_store.write_table("k1", "history", {"epoch": [1]})
    bucket_store.write_record(RECORD)
    assert objects.asked == [f"PUT {place}/history.parquet", f"PUT {place}/result.json"]
    objects.asked.clear()
    bucket_store.delete_file("k1", "checkpoint.pt")
    record = bucket_store.record("k1")
    assert record == RECORD
    assert bucket_store.read_table("k1", "history", record=record).num_rows == 1
    assert objects.asked == [
        f"HEAD {place}/checkpoint.pt",
        *(
            f"{verb} {place}/{name}"
            for name in ("result.json", "history.parquet")
            for verb in ("HEAD", "GET")
        ),
    ]


def test_a_look_at_a_bucket_s_cells_is_one_request(bucket_store: Store, objects: Any) -> None:
    """For a thousand objects."""
    keys = [f"k{number}" for number in range(30)]
    for key in keys:
        bucket_store.write_record(RECORD | {"key": key})
        bucket_store.write_file(key, "weights.pt", b"weights")
    content = bucket_store.read_file("k7", "result.json") or b""
    bucket_store.keys()  # which meets it for the first time
    for look in (bucket_store.keys, lambda: bucket_store.holding("weights.pt")):
        objects.asked.clear()
        assert look() == {*keys}
        assert len(objects.asked) == 1
    objects.asked.clear()
    assert bucket_store.size(["k7"]) == len(content) + len(b"weights")
    assert len(objects.asked) == 1
    assert [*bucket_store.records(["k7", "k29", "unknown"])] == ["k7", "k29"]
    assert len(objects.asked) == 1 + 1 + 2 * 2  # who there is, then size and content of each


class Interrupted:
    """A bucket while whose object is written somebody presses Ctrl-C."""

    type_name = "s3"

    def __init__(self, system: pyarrow.fs.FileSystem) -> None:
        self._system = system

    def open_output_stream(self, path: str) -> Any:
        stream = self._system.open_output_stream(path)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)  # the interpreter's main thread hears of it
        return stream


def test_what_is_interrupted_is_whole_in_a_bucket(bucket_store: Store) -> None:
    system, path = bucket_store.location("cells", "k1", "result.json")
    with pytest.raises(KeyboardInterrupt):
        files_.write(Interrupted(system), path, b"all of it")
    while system.get_file_info(path).type == pyarrow.fs.FileType.NotFound:  # the upload continues by itself
        time.sleep(0.05)
    assert files_.read(system, path) == b"all of it"


@pytest.mark.parametrize("before", [None, b"old"], ids=["new", "over an old one"])
@pytest.mark.parametrize(
    ("size", "fails"),
    [(1000, "PUT"), (PART_BYTES, "?uploads"), (PART_BYTES, "?partNumber=1"), (PART_BYTES, "POST")],
    ids=["at once", "parts not started", "a part", "parts not ended"],
)
def test_an_object_that_cannot_be_written_is_none(
    bucket_store: Store, objects: Any, before: bytes | None, size: int, fails: str
) -> None:
    """pyarrow leaves an empty one where an upload that it could send at once fails to begin in parts."""
    if before is not None:
        bucket_store.write_file("k1", "weights.pt", before)
    begins = "?uploads" in fails
    objects.refused = lambda request: fails in request and (begins or "?uploads" not in request)
    with pytest.raises(StorageFault, match="ACCESS_DENIED"):
        bucket_store.write_file("k1", "weights.pt", b"x" * size)
    objects.refused = lambda request: False
    assert bucket_store.read_file("k1", "weights.pt") == before


def test_a_large_object_is_whole(bucket_store: Store) -> None:
    for size in (PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 5):
        bucket_store.write_file("k1", "weights.pt", content := os.urandom(size))
        assert bucket_store.read_file("k1", "weights.pt") == content


def test_a_missing_bucket_is_named(objects: Any) -> None:
    store = Store("s3://nobodys/results", "toy")
    for call, what in (
        (store.prepare, "written"),
        (store.keys, "read"),
        (lambda: store.records(["k"]), "read"),
    ):
        with refuses("s3://nobodys/results", "storage", what, "does not exist", "bucket") as caught:
            call()
        assert "Request ID" not in str(caught.value)


def test_wrong_credentials_are_named(bucket_store: Store, objects: Any) -> None:
    objects.checks_users(True)
    try:
        for call in (bucket_store.prepare, bucket_store.keys, lambda: bucket_store.record("k1")):
            with refuses(bucket_store.storage, "storage", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                call()
    finally:
        objects.checks_users(False)


def test_storage_that_does_not_answer_is_reported_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    begin = time.monotonic()
    with refuses("s3://unanswered/results", "storage", "written", "AWS_ENDPOINT_URL", "http://127.0.0.1:9"):
        Store("s3://unanswered/results", "toy").prepare()
    assert time.monotonic() - begin < 10


def test_a_prepared_bucket_can_be_used(bucket_store: Store) -> None:
    bucket_store.prepare()
    assert bucket_store.keys() == bucket_store.search.keys() == set()
    bucket_store.write_record(RECORD)
    bucket_store.prepare()
    assert bucket_store.keys() == {"k1"}


# Bad places and bad content


@pytest.mark.parametrize(
    "text",
    ["", '{"key": "k1", "sta', "[1]", "5", "null", "{}", '{"state": "happy"}', '{"state": "pruned"}', "\0"],
)
def test_a_broken_record_is_damaged(tmp_path: Path, text: str) -> None:
    store = Store(str(tmp_path), "toy")
    store.write_record(RECORD)
    broken = tmp_path / "toy" / "cells" / "k1" / "result.json"
    broken.write_text(text)
    for found in (store.record("k1"), store.records(["k1"])["k1"]):
        assert found is not None
        assert {*found} == {"key", "state", "damage"}
        assert (found["state"], found["damage"]["file"]) == ("damaged", str(broken))


def test_a_broken_trial_is_damaged(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "toy").search
    store.write_file("t1", "result.json", b"{")
    found = store.record("t1")
    assert found is not None
    assert found["state"] == "damaged"


def test_a_folder_in_place_of_a_record_is_damage(store: Store, tmp_path: Path) -> None:
    (tmp_path / "results" / "toy" / "cells" / "k1" / "result.json").mkdir(parents=True)
    for found in (store.record("k1"), store.records(["k1"])["k1"]):
        assert found is not None
        assert (found["state"], found["damage"]["problem"]) == ("damaged", "result.json is a folder")


def test_a_record_that_is_a_link_to_itself_is_damage(store: Store, tmp_path: Path) -> None:
    record = tmp_path / "results" / "toy" / "cells" / "k1" / "result.json"
    record.parent.mkdir(parents=True)
    record.symlink_to("result.json")
    found = store.record("k1")
    assert found is not None
    assert (found["state"], found["damage"]["problem"]) == ("damaged", "result.json is a link to itself")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_record_that_cannot_be_read_names_the_storage(store: Store, tmp_path: Path) -> None:
    store.write_record(RECORD)
    (tmp_path / "results" / "toy" / "cells" / "k1" / "result.json").chmod(0)
    with refuses(store.storage, "storage", "read"):
        store.record("k1")


PLACES = {
    "a file": "{folder}/file",
    "below a file": "{folder}/file/below",
    "proc": "/proc/results",
    "proc as a URI": "file:///proc/results",
    "a name that is too long": "{folder}/" + "x" * 300,
    "a bucket without a name": "s3://",
    "no file system": "foo://bar",
    "no URI": "file://a b",
}


def bad_place(folder: Path, kind: str) -> str:
    (folder / "file").write_text("mine")
    return PLACES[kind].format(folder=folder)


@pytest.mark.parametrize("kind", PLACES)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, kind: str) -> None:
    place = bad_place(tmp_path, kind)
    with refuses(place, "storage"):
        Store(place, "toy").prepare()
    assert files(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "kind", ["a file", "below a file", "a name that is too long", "a bucket without a name"]
)
def test_a_place_that_cannot_be_read_is_not_an_empty_store(tmp_path: Path, kind: str) -> None:
    place = bad_place(tmp_path, kind)
    with refuses(place, "storage", "s3://BUCKET/PATH" if "://" in place else "read"):
        Store(place, "toy").records(["k1"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with refuses("locked", "storage", "written"):
        Store(str(tmp_path / "locked"), "toy").prepare()


def test_preparing_leaves_nothing_but_the_folder(store: Store, tmp_path: Path) -> None:
    store.prepare()
    store.write_record(RECORD)
    store.prepare()
    assert files(tmp_path) == ["results/toy/cells/k1/result.json"]
    assert (tmp_path / "results" / "toy" / "search").is_dir()


def test_a_relative_folder_is_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("results/../mine/", "toy").write_record(RECORD)
    assert files(tmp_path) == ["mine/toy/cells/k1/result.json"]
