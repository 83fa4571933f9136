"""The store: records of the cells and search trials that have ended, on any file system of pyarrow."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import tenacity

from pm25 import uri
from pm25.errors import InputError
from sweeps.store import database, driver_process, fencing, integrity
from sweeps.store.fencing import LockLost
from sweeps.store.integrity import Damaged, DamagedFile

Record = dict[str, Any]
"""Content of a `result.json`: `key`, `state` ('done', 'failed', or 'pruned' for search trials), the `cell` or
the trial's `params`, and the results. `files` has the SHA-256 of each file beside it.

A record that fails a check of `sweeps.store.integrity` is replaced by one with the state 'damaged', which has
no results, and `damage`: its `file` and its `problem`.
"""

TUNED_ON_TEST = "tuned on its own test samples"
"""Failed check of a cell whose test samples were trained on, or scored, by the search of its settings."""


def failed_checks(record: Mapping[str, Any]) -> list[str]:
    """Return the checks that a cell failed: those of its leakage audit, and that of its search.

    A cell that is not done has no audit, and has failed none.
    """
    if "audit" not in record:
        return []
    failed = list(record["audit"].get("failed", []))
    if record.get("searched", {}).get("test_share", 0.0) > 0:
        failed.append(TUNED_ON_TEST)
    return failed


def intact(records: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records that are not damaged."""
    return {key: record for key, record in records.items() if record["state"] != "damaged"}


StorageError = (OSError, pa.ArrowException, UnicodeDecodeError)
"""Errors that a file system raises; the last one is for a file name that is not UTF-8."""


class NotRegular(OSError):
    """Pipe, device or socket in place of a file, whose reader might wait for ever."""


class StorageFault(InputError):
    """Storage that is full, read-only, gone, not permitted, or does not answer.

    It ends a run, and it is never the failure of the cell that met it.
    """


_SPACE = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space, or raise the quota"}
_FIX = {
    **_SPACE,
    errno.EROFS: "mount it with write access",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user access to the files"),
    **dict.fromkeys(
        (errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT),
        "check the disk, and mount it again",
    ),
}
"""Instruction for the user, by the number of the error of a storage that worked before."""

_NO_FOLDER = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL}
"""Errors of a storage that never was a folder."""

AGAIN = "then run the same command again"
OTHER_STORAGE = "use another storage, --set storage=FOLDER"

READERS = 16
"""Number of records that are read at the same time from object storage, where each takes a request."""

Files = Literal["none", "tables", "all"]
"""Files of a record whose digests are checked: none, its tables, or its weights and its start file too."""

PART_BYTES = 10 * 2**20
"""Size from which pyarrow uploads an object to S3 in parts of this size; smaller objects take one request."""

DAMAGED_FOLDER = "damaged"
"""Folder of a study to which `Store.set_aside` moves damaged records with their files."""

RUNNING_FOLDER = "running"
"""Folder of a study with the progress of its trainings."""

CALIBRATION_FOLDER = "calibration"
"""Folder of a study with the measured speed of its trainings."""

FOLDERS = (*integrity.ENDED, DAMAGED_FOLDER, RUNNING_FOLDER, CALIBRATION_FOLDER)
"""Folders of a study."""

MOVE_AWAY = f"move it away, {AGAIN}"
"""Fix of a file in place of a folder, or of a folder in place of a file."""

SMALL_TABLE_BYTES = 16_384
"""Size below which a table is stored plainly; that of a history takes a fifth of the time to read."""


@dataclass(frozen=True)
class Store:
    """Files of a study's cells, `<storage>/<study>/cells/<key>/`, or of its search trials, under `search`.

    A `result.json` in a key's folder means that the cell has ended. A store consists of four strings, and of
    the digests of the tables that it has checked, so it can be sent to any worker. Methods raise StorageFault
    if the storage cannot be read or written. Methods that write or delete also raise LockLost (`fenced`).

    Parameters
    ----------
    storage : str
        Folder or address, such as s3://bucket/results.
    study : str
        Name of the study.
    folder : {"cells", "search"}
        Files of cells, or of search trials.
    token : str
        Token of the driver that writes (`Driver.token`); empty without a driver, and nothing is checked then.
    """

    storage: str
    study: str
    folder: Literal["cells", "search"] = "cells"
    token: str = ""
    _tables: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """SHA-256 of tables that were checked with their record, by key and name; they are read once more."""

    @property
    def search(self) -> "Store":
        """Store of the search trials of the same study."""
        return replace(self, folder="search")

    def location(self, *parts: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """Return the file system and the path of `parts` below the study's folder. Raises InputError."""
        if "://" in self.storage:
            try:
                system, root = uri.open_system(self.storage)
            except StorageError as error:
                raise self.refusal("opened", error) from None
        else:
            system, root = pyarrow.fs.LocalFileSystem(), os.path.abspath(self.storage)
        return system, "/".join([root.rstrip("/"), self.study, *parts])

    def refusal(self, what: str, error: Exception, fix: str = "") -> StorageFault:
        """Return the error of a storage that cannot be `what`: 'opened', 'read' or 'written'.

        `fix` is what the user can do; by default the likely fix for this storage and `error`.
        """
        number = getattr(error, "errno", None) or 0
        if what != "opened" and (path := self._file_in_place_of_folder()):
            return StorageFault(path, "", f"cannot be {what} (a file in place of a folder)", MOVE_AWAY)
        if isinstance(error, UnicodeDecodeError):
            name = error.object.decode(errors="backslashreplace")
            problem = f"cannot be {what} (the file name {name!r} is not UTF-8)"
            return StorageFault(uri.without_secrets(self.storage), "storage", problem, f"rename it, {AGAIN}")
        if not fix and (what == "opened" or number in _NO_FOLDER):
            fix = uri.advice(self.storage, error) or OTHER_STORAGE
        elif not fix:
            advice = uri.advice(self.storage, error) or _FIX.get(number, "check the storage")
            fix = f"{advice}, {AGAIN}"
        reason = os.strerror(number) if number in _FIX else uri.reason(error)
        return StorageFault(uri.without_secrets(self.storage), "storage", f"cannot be {what} ({reason})", fix)

    def _file_in_place_of_folder(self) -> str | None:
        """Return the path of a file that stands where the study has a folder, on a local disk; or None."""
        system, root = self.location()
        if not self.study or not isinstance(system, pyarrow.fs.LocalFileSystem):
            return None
        paths = (root, *(f"{root}/{name}" for name in FOLDERS))
        return next((path for path in paths if os.path.lexists(path) and not os.path.isdir(path)), None)

    @contextlib.contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        """Convert the errors of the file system to StorageFault; `what` is 'read' or 'written'."""
        try:
            yield
        except StorageError as error:
            raise self.refusal(what, error) from error

    @contextlib.contextmanager
    def fenced(self) -> Iterator[None]:
        """Run a block that writes to the study, if the driver with `token` still has it. Raises LockLost.

        On a file system with file locks, no other driver can take the study during the block. Elsewhere the
        check comes immediately before the block. It costs a small read, or one request to object storage.
        """
        if not self.token:
            yield
            return
        system, path = self.location(driver_process.FILE)
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(fencing.locked(system, path.rsplit("/", 1)[0]))
            except FileNotFoundError as error:  # the study's folder was deleted or unmounted
                raise self.refusal("written", error) from None
            fencing.check(self.token, self.driver_file(), path, self.study)
            yield

    @tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: getattr(error, "errno", None) == errno.ESTALE),
        stop=tenacity.stop_after_attempt(5),
        reraise=True,
    )
    def driver_file(self) -> bytes | None:
        """Read `driver.json`; None if it does not exist. Raises StorageFault for a folder in its place.

        On NFS, a file that another machine replaces is stale for a process that has just opened it.
        """
        return self._own_file(driver_process.FILE)

    def own_file(self, name: str) -> bytes | None:
        """Read a file in the folder of the study, such as `declarations.json`; None if it does not exist.

        Raises StorageFault, also for a folder in its place.
        """
        with self._faults("read"):
            return self._own_file(name)

    def _own_file(self, name: str) -> bytes | None:
        system, path = self.location(name)
        try:
            return read_intact(system, path)
        except Damaged as error:
            raise StorageFault(path, "", str(error), MOVE_AWAY) from None

    def check_lock(self) -> None:
        """Raise LockLost if the driver with `token` does not have the study any more."""
        with self.fenced():
            return

    def prepare(self) -> None:
        """Create the study's folders and test that files can be written there. Raises InputError."""
        for name in integrity.ENDED:
            system, folder = self.location(name)
            probe = f"{folder}/.probe-{secrets.token_hex(4)}"
            try:
                uri.check_server(self.storage, folder)
                write(system, probe, b"probe")
                system.delete_file(probe)
            except StorageError as error:
                used_before = getattr(error, "errno", None) in _SPACE
                fix = "" if used_before else uri.advice(self.storage, error) or OTHER_STORAGE
                raise self.refusal("written", error, fix) from None

    def keys(self) -> set[str]:
        """Return the keys that have any files: records, or files of unfinished work. Raises InputError."""
        system, folder = self.location(self.folder)
        try:
            uri.check_server(self.storage, folder)
            found = system.get_file_info(pyarrow.fs.FileSelector(folder))
            return {info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory}
        except FileNotFoundError:
            return set()
        except StorageError as error:
            raise self.refusal("read", error) from None

    def records(self, keys: Iterable[str], files: Files = "none") -> dict[str, Record]:
        """Read the records of those of `keys` that have ended, in the order of `keys`. Raises InputError.

        `files` are those whose digests are checked too. A record with a damaged file is damaged.
        """
        return {key: record for key, (record, _) in self.checked(keys, files).items()}

    def checked(self, keys: Iterable[str], files: Files = "none") -> dict[str, integrity.Checked]:
        """Read records as `records` does, each with whether it is sealed; a damaged one is not."""
        present = self.keys()
        wanted = [key for key in keys if key in present]
        system, folder = self.location(self.folder)

        def record(key: str) -> integrity.Checked | None:
            return self._checked(system, f"{folder}/{key}", key, files)

        if isinstance(system, pyarrow.fs.LocalFileSystem):  # threads do not make reads faster
            found = [record(key) for key in wanted]
        else:
            with ThreadPoolExecutor(READERS) as pool:
                found = [*pool.map(record, wanted)]
        return {key: one for key, one in zip(wanted, found, strict=True) if one is not None}

    def record(self, key: str, files: Files = "none") -> Record | None:
        """Return one record, or None if the cell has not ended. Raises InputError."""
        found = self.checked_one(key, files)
        return None if found is None else found.record

    def checked_one(self, key: str, files: Files = "none") -> integrity.Checked | None:
        """Read one record as `record` does, with whether it is sealed; no other keys are listed."""
        return self._checked(*self.location(self.folder, key), key, files)

    def _checked(
        self, system: pyarrow.fs.FileSystem, folder: str, key: str, files: Files
    ) -> integrity.Checked | None:
        """Read and check the record in the folder of a key; every reader of records calls this method."""
        path = f"{folder}/result.json"
        try:
            content = read_intact(system, path)
            if content is None:
                return None
            found = integrity.check(content, key, self.folder)
            if files != "none":
                for name in integrity.files_of(found, all_files=files == "all"):
                    file = read_intact(system, f"{folder}/{name}")
                    integrity.check_file(name, file, found.record)
                    if name in integrity.TABLES and (sha256 := integrity.file_digest(found.record, name)):
                        self._tables[key, name] = sha256
        except Damaged as error:
            return integrity.Checked(integrity.damaged(key, path, str(error)), False)
        except StorageError as error:
            raise self.refusal("read", error) from None
        return found

    def write_record(self, record: Record, files: Mapping[str, str] = MappingProxyType({})) -> Record:
        """Record that a cell has ended, and return the record as it is read again.

        `files` are the digests of its files by name, which `write_file` and `write_table` return. The record
        is the last file of a cell and is written atomically. Incomplete files of writers that were killed are
        deleted before it, because nothing looks for them once a cell has ended.
        """
        sealed = integrity.seal(record, files)
        self._delete_parts(record["key"])
        self.write_file(record["key"], "result.json", sealed)
        written = {name: value for name, value in record.items() if name not in integrity.SEAL}
        return written | ({"files": dict(files)} if files else {})

    def _delete_parts(self, key: str) -> None:
        """Delete the incomplete files of a cell, which no living writer has."""
        system, folder = self.location(self.folder, key)
        if _writes_atomically(system):  # files are not written under temporary names there
            return
        with self._faults("written"):
            for info in system.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True)):
                if is_part(info.base_name):
                    with contextlib.suppress(FileNotFoundError), self.fenced():
                        system.delete_file(info.path)

    def forget(self, key: str) -> None:
        """Delete a record and all other files of its key, so that the next run starts the cell again."""
        # The record is deleted first: if the rest fails, no record is left without its files.
        self.delete_file(key, "result.json")
        system, folder = self.location(self.folder, key)
        with self._faults("written"), contextlib.suppress(FileNotFoundError), self.fenced():
            system.delete_dir(folder)

    def set_aside(self, key: str) -> str:
        """Move a damaged record with its files to the folder `damaged` of the study, and return its new path.

        The files stay as evidence, and the next run starts the cell again.
        """
        system, source = self.location(self.folder, key)
        _, target = self.location(DAMAGED_FOLDER, self.folder, f"{key}-{secrets.token_hex(4)}")
        with self._faults("written"):
            self._move(system, source, target)
        return target

    def _move(self, system: pyarrow.fs.FileSystem, source: str, target: str) -> None:
        """Move a folder of a key within the study."""
        with self.fenced():
            system.create_dir(target.rsplit("/", 1)[0], recursive=True)
            if not _writes_atomically(system):
                system.move(source, target)
                return
        # A bucket has no folders to move. The record goes last: until then the cell stays damaged.
        found = [
            info.path[len(source) + 1 :]
            for info in system.get_file_info(pyarrow.fs.FileSelector(source, recursive=True))
            if info.type == pyarrow.fs.FileType.File
        ]
        for name in sorted(found, key=lambda name: name == "result.json"):
            with self.fenced():
                system.copy_file(f"{source}/{name}", f"{target}/{name}")
                system.delete_file(f"{source}/{name}")
        with contextlib.suppress(FileNotFoundError), self.fenced():
            system.delete_dir(source)

    def size(self, keys: Iterable[str]) -> int:
        """Return the total size in bytes of the files of `keys`, without files that are being written."""
        system, folder = self.location(self.folder)
        wanted = {*keys}
        # One listing: on object storage a request lists a thousand files, and each cell has three.
        selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        with self._faults("read"):
            found = system.get_file_info(selector)
        return sum(
            info.size or 0
            for info in found
            if not is_part(info.base_name) and info.path.rsplit("/", 2)[1] in wanted
        )

    def holding(self, name: str) -> set[str]:
        """Return the keys that have a file called `name`."""
        system, folder = self.location(self.folder)
        selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        with self._faults("read"):
            paths = [info.path.rsplit("/", 2) for info in system.get_file_info(selector)]
        return {key for _, key, found in paths if found == name}

    def write_table(self, key: str, name: str, columns: Mapping[str, Any] | pa.Table) -> str:
        """Write a table or a mapping of columns to `<key>/<name>.parquet`, atomically; return its SHA-256."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
        sink = pa.BufferOutputStream()
        small = table.nbytes < SMALL_TABLE_BYTES
        pyarrow.parquet.write_table(
            table,
            sink,
            use_dictionary=not small,
            compression="none" if small else "zstd",
            write_page_checksum=name == "importance",  # protects a table that no record names
        )
        return self.write_file(key, f"{name}.parquet", sink.getvalue())

    def seal(self, key: str) -> bool:
        """Add digests to a record that has none; returns False for a sealed, a damaged or a missing one."""
        found = self._checked(*self.location(self.folder, key), key, "all")
        if found is None or found.sealed or found.record["state"] == "damaged":
            return False
        contents = {name: self.read_file(key, name) for name in integrity.SEALED_FILES}
        if contents[integrity.STARTED_FILE] != integrity.start_file(found.record):  # fsck compares its fields
            del contents[integrity.STARTED_FILE]
        files = {name: integrity.digest(one) for name, one in contents.items() if one is not None}
        self.write_record(found.record, files)
        return True

    def read_table(
        self, key: str, name: str, columns: list[str] | None = None, record: Record | None = None
    ) -> pa.Table:
        """Read `<key>/<name>.parquet` as `read_recorded` does, all columns or the given ones.

        Raises FileNotFoundError for a missing file that the record does not name.
        """
        content = self.read_recorded(key, f"{name}.parquet", record)
        if content is None:
            raise FileNotFoundError(self.location(self.folder, key, f"{name}.parquet")[1])
        return _table(content, columns)

    def read_result(
        self, key: str, name: Literal["predictions", "history"], record: Record | None = None
    ) -> pa.Table:
        """Read a table of a cell as `read_table` does, and check its columns, types and values.

        Raises DamagedFile also for a table that no cell stores, whose digest was forged.
        """
        file = f"{name}.parquet"
        checked = self._tables.get((key, file))
        try:
            content = self.read_file(key, file) if checked else None
            if content is not None and integrity.digest(content) == checked:
                return _table(content)
            table = self.read_table(key, name, record=record)
            integrity.check_table(file, table)
        except Damaged as error:
            problem = str(error)
        except pa.ArrowException:
            problem = f"{file} is not a readable table"
        else:
            return table
        _, path = self.location(self.folder, key, file)
        raise DamagedFile(path, "", f"damaged: {problem}", integrity.RETRY)

    def read_file(self, key: str, name: str, sha256: str | None = None) -> bytes | None:
        """Read one file of a cell; None if it does not exist.

        With `sha256`, its digest in the record, DamagedFile is raised for other content.
        """
        system, path = self.location(self.folder, key, name)
        with self._faults("read"):
            try:
                content = read(system, path)
            except FileNotFoundError:
                return None
        if sha256 is not None and integrity.digest(content) != sha256:
            problem = "damaged: its SHA-256 is not the one in its record"
            raise DamagedFile(path, "", problem, integrity.RETRY)
        return content

    def read_recorded(self, key: str, name: str, record: Record | None = None) -> bytes | None:
        """Read one file of a recorded cell, checked with the digest in its record; None if it is missing.

        The record is read first, unless it is given. Raises DamagedFile for other content, and for a missing
        file that the record names.
        """
        sha256 = integrity.file_digest(self.record(key) if record is None else record, name)
        content = self.read_file(key, name, sha256)
        if content is None and sha256 is not None and name not in integrity.MAY_BE_ABSENT:
            _, path = self.location(self.folder, key, name)
            raise DamagedFile(path, "", "damaged: it is missing", integrity.RETRY)
        return content

    def write_file(self, key: str, name: str, content: bytes | pa.Buffer) -> str:
        """Write one file of a cell atomically, and return its SHA-256."""
        system, path = self.location(self.folder, key, name)
        with self._faults("written"):
            if system.type_name == "s3" and len(content) >= PART_BYTES:
                # The upload in parts is opened before the content is sent. If it were opened with the first
                # part and that part failed, pyarrow would leave an empty object.
                system, _ = uri.open_system(self.storage, at_once=False)
            write(system, path, content, self.fenced)
        return integrity.digest(content)

    def delete_file(self, key: str, name: str) -> None:
        """Delete one file of a cell, if it exists."""
        system, path = self.location(self.folder, key, name)
        with self._faults("written"), contextlib.suppress(FileNotFoundError), self.fenced():
            system.delete_file(path)


def read(system: pyarrow.fs.FileSystem, path: str) -> bytes:
    """Read a file. Raises FileNotFoundError, or another StorageError."""
    if isinstance(system, pyarrow.fs.LocalFileSystem):  # ten times faster than through pyarrow
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a folder fails at once
            raise NotRegular(errno.EINVAL, "not a regular file", path)
        with open(path, "rb") as file:
            return file.read()
    with system.open_input_stream(path) as stream:
        return bytes(stream.read())


def _table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file."""
    # `ParquetFile` is twice as fast for a small file as `read_table`, which makes a data set of it.
    return pyarrow.parquet.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)


def read_intact(system: pyarrow.fs.FileSystem, path: str) -> bytes | None:
    """Read a file; None if it is missing.

    Raises Damaged for a folder or an endless link in its place, and StorageError.
    """
    name = path.rsplit("/", 1)[1]
    try:
        return read(system, path)
    except NotRegular:
        raise Damaged(f"{name} is not a regular file") from None
    except FileNotFoundError:
        if isinstance(system, pyarrow.fs.LocalFileSystem) and os.path.islink(path):
            raise Damaged(f"{name} is a link to a file that does not exist") from None
        return None
    except StorageError as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            raise Damaged(f"{name} is a link to itself") from None
        if system.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            raise Damaged(f"{name} is a folder") from None
        raise


def write(
    system: pyarrow.fs.FileSystem,
    path: str,
    content: bytes | pa.Buffer,
    fenced: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Write a file atomically: readers see the old content or the new one. Missing folders are created.

    Whatever becomes visible does so inside a block `fenced()`, that of the store (`Store.fenced`).
    """
    if _writes_atomically(system):
        # After an exception, pyarrow completes the object with the bytes it has so far. Ctrl-C can raise
        # anywhere, but only in the main thread, so another thread writes.
        with fenced(), ThreadPoolExecutor(1) as pool:
            pool.submit(_put, system, path, content).result()
        return
    folder, name = path.rsplit("/", 1)
    part = f"{folder}/.{name}.{secrets.token_hex(4)}.part"
    with fenced():
        system.create_dir(folder, recursive=True)
    try:
        if isinstance(system, pyarrow.fs.LocalFileSystem):
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or a power failure may leave an empty file
        else:
            _put(system, part, content)
        with fenced():
            system.move(part, path)
    except (*StorageError, LockLost):
        with contextlib.suppress(*StorageError):  # the disk may be full
            system.delete_file(part)
        raise


def _put(system: pyarrow.fs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Write a file through pyarrow."""
    with system.open_output_stream(path) as stream:
        stream.write(content)


def studies(storage: str) -> list[str]:
    """Return the names of the studies of a storage, in order. Raises InputError."""
    any_study = Store(storage, "")
    system, root = any_study.location()
    root = root.rstrip("/")
    try:
        uri.check_server(storage, root)
        names = [info.base_name for info in system.get_file_info(pyarrow.fs.FileSelector(root))]
        parts = {
            name: system.get_file_info([f"{root}/{name}/{kind}" for kind in integrity.ENDED])
            for name in names
        }
    except FileNotFoundError:
        raise InputError(
            storage, "storage", "no such folder, so no study has run there", "give the storage of a study"
        ) from None
    except NotADirectoryError:
        raise InputError(storage, "storage", "a file, not a folder", "give the storage of a study") from None
    except StorageError as error:
        raise any_study.refusal("read", error) from None
    missing = pyarrow.fs.FileType.NotFound  # a file in place of a folder is damage, which readers name
    return sorted(name for name, infos in parts.items() if any(info.type != missing for info in infos))


def default_tracking(storage: str) -> str:
    """Return the address of MLflow's database, `<storage>/mlflow.db`.

    The path is absolute, because a relative one depends on the current folder of each process. Raises
    InputError if the storage is not a folder.
    """
    if "://" in storage:
        raise InputError(
            storage,
            "tracking",
            "the default, an SQLite file, cannot be kept on this storage",
            "add --set tracking=http://HOST:5000, or --set tracking=sqlite:////FOLDER/mlflow.db "
            "for a folder of the driver's machine",
        )
    return database.address(os.path.join(os.path.realpath(storage), "mlflow.db"))


def _writes_atomically(system: pyarrow.fs.FileSystem) -> bool:
    """Return True if a file becomes visible only when it is complete, and folders need not be created.

    This holds for S3 and Google Cloud Storage. On Azure, pyarrow creates an empty file before it writes.
    """
    return system.type_name in ("s3", "gcs")


def is_part(name: str) -> bool:
    """Return True for the temporary name of a file that `write` has not completed."""
    return name.startswith(".") and name.endswith(".part")
