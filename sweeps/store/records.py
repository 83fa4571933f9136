"""The store: the truth about which cells are done, on any file system that pyarrow opens."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from pm25 import uri
from pm25.errors import InputError

Record = dict[str, Any]
"""The content of a `result.json`: `key`, `state` ('done' or 'failed'; a search trial may be 'pruned'), the
`cell` or the trial's `params`, then what came of it."""

StorageError = (OSError, pa.ArrowException)
"""What a file system raises when it cannot do what it is asked."""

READERS = 16
"""Records read at a time where each takes a request."""

PART_BYTES = 10 * 2**20
"""From here on pyarrow uploads an object to S3 in parts of so much, and less in one request."""

_ENDED = {"cells": ("done", "failed"), "search": ("done", "failed", "pruned")}


@dataclass(frozen=True)
class Store:
    """`<storage>/<study>/cells/<key>/` with `result.json`, whose presence means that the cell has ended.

    Search trials lie beside the cells in the same way, under `search`. A store is three strings, so that it
    travels to any worker as a value. Methods raise what the file system raises (`StorageError`) where
    nothing else is said.
    """

    storage: str
    study: str
    folder: Literal["cells", "search"] = "cells"

    @property
    def search(self) -> "Store":
        """The same study's search trials."""
        return replace(self, folder="search")

    def location(self, *parts: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """File system and path of something below the study's folder. Raises InputError."""
        if "://" in self.storage:
            try:
                system, root = uri.open_system(self.storage)
            except StorageError as error:
                raise self.refusal("opened", error) from None
        else:
            system, root = pyarrow.fs.LocalFileSystem(), os.path.abspath(self.storage)
        return system, "/".join([root.rstrip("/"), self.study, *parts])

    def refusal(self, what: str, error: Exception, fix: str | None = None) -> InputError:
        """That the storage cannot be `what` ('read', 'written')."""
        if fix is None:
            fix = uri.fix(self.storage, error) or "; --set storage=FOLDER"
        return InputError(f"storage: {self.storage} cannot be {what} ({uri.reason(error)}){fix}")

    def prepare(self) -> None:
        """Make the study's folders and prove that they can be written. Raises InputError."""
        for name in _ENDED:
            system, folder = self.location(name)
            probe = f"{folder}/.probe-{secrets.token_hex(4)}"
            try:
                uri.meet(self.storage, folder)
                write(system, probe, b"probe")
                system.delete_file(probe)
            except StorageError as error:
                raise self.refusal("written", error) from None

    def keys(self) -> set[str]:
        """Keys of all that have a record or the beginnings of one. Raises InputError."""
        system, folder = self.location(self.folder)
        try:
            uri.meet(self.storage, folder)
            found = system.get_file_info(pyarrow.fs.FileSelector(folder))
        except FileNotFoundError:
            return set()
        except StorageError as error:
            raise self.refusal("read", error) from None
        return {info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory}

    def records(self, keys: Iterable[str]) -> dict[str, Record]:
        """The records of those of `keys` that have ended, in the order of `keys`. Raises InputError."""
        present = self.keys()
        wanted = [key for key in keys if key in present]
        system, folder = self.location(self.folder)
        paths = [f"{folder}/{key}/result.json" for key in wanted]

        def record(path: str) -> Record | None:
            return self._record(system, path)

        if isinstance(system, pyarrow.fs.LocalFileSystem):  # where threads only wait for each other
            found = [record(path) for path in paths]
        else:
            with ThreadPoolExecutor(READERS) as pool:
                found = [*pool.map(record, paths)]
        return {key: record for key, record in zip(wanted, found, strict=True) if record is not None}

    def record(self, key: str) -> Record | None:
        """One record, or None where the cell has not ended. Raises InputError."""
        return self._record(*self.location(self.folder, key, "result.json"))

    def _record(self, system: pyarrow.fs.FileSystem, path: str) -> Record | None:
        try:
            content = read(system, path)
        except FileNotFoundError:
            return None
        except StorageError as error:
            raise self.refusal("read", error) from None
        try:
            record = json.loads(content)
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.get("state") not in _ENDED[self.folder]:
            one = "cell" if self.folder == "cells" else "trial"
            raise InputError(
                f"{path}: not a {one}'s record in JSON; delete the file, and the {one} runs again"
            )
        return record

    def write_record(self, record: Record) -> None:
        """Record that a cell has ended; the last thing written of it, and whole or not at all.

        What killed writers began of it before is cleared away.
        """
        text = json.dumps(record, indent=1, allow_nan=False)
        self.write_file(record["key"], "result.json", text.encode())
        system, folder = self.location(self.folder, record["key"])
        if _keeps_whole_objects(system):  # where nothing is begun under another name
            return
        for info in system.get_file_info(pyarrow.fs.FileSelector(folder)):
            if _is_part(info.base_name):
                with contextlib.suppress(FileNotFoundError):
                    system.delete_file(info.path)

    def forget(self, key: str) -> None:
        """Drop a record and all that lies beside it: the next run starts the cell from nothing."""
        # The record first: whatever stops the rest, there is none without its files.
        self.delete_file(key, "result.json")
        system, folder = self.location(self.folder, key)
        with contextlib.suppress(FileNotFoundError):
            system.delete_dir(folder)

    def size(self, keys: Iterable[str]) -> int:
        """Bytes that the files of `keys` take, without those that are being written."""
        system, folder = self.location(self.folder)
        wanted = {*keys}
        # One listing: on object storage a request brings a thousand files, and there are three a cell.
        selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        return sum(
            info.size or 0
            for info in system.get_file_info(selector)
            if not _is_part(info.base_name) and info.path.rsplit("/", 2)[1] in wanted
        )

    def holding(self, name: str) -> set[str]:
        """Keys of all that have a file of that name."""
        system, folder = self.location(self.folder)
        selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        paths = (info.path.rsplit("/", 2) for info in system.get_file_info(selector))
        return {key for _, key, found in paths if found == name}

    def write_table(self, key: str, name: str, columns: Mapping[str, Any] | pa.Table) -> None:
        """Write `<key>/<name>.parquet`."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd")
        self.write_file(key, f"{name}.parquet", sink.getvalue())

    def read_table(self, key: str, name: str, columns: list[str] | None = None) -> pa.Table:
        system, path = self.location(self.folder, key, f"{name}.parquet")
        if isinstance(system, pyarrow.fs.LocalFileSystem):
            return pyarrow.parquet.read_table(path, columns=columns)
        # Whole: that takes two requests, and a table of some kB column by column five.
        return pyarrow.parquet.read_table(pa.BufferReader(read(system, path)), columns=columns)

    def read_file(self, key: str, name: str) -> bytes | None:
        """One of a cell's files, or None where there is none."""
        try:
            return read(*self.location(self.folder, key, name))
        except FileNotFoundError:
            return None

    def write_file(self, key: str, name: str, content: bytes | pa.Buffer) -> None:
        """Write one of a cell's files, whole or not at all."""
        system, path = self.location(self.folder, key, name)
        if system.type_name == "s3" and len(content) >= PART_BYTES:
            # In parts, and begun before the content is sent: of one that begins with the first part and
            # fails at that, pyarrow leaves an empty object.
            system, _ = uri.open_system(self.storage, at_once=False)
        write(system, path, content)

    def delete_file(self, key: str, name: str) -> None:
        """Drop one of a cell's files, if it is there."""
        system, path = self.location(self.folder, key, name)
        with contextlib.suppress(FileNotFoundError):
            system.delete_file(path)


def read(system: pyarrow.fs.FileSystem, path: str) -> bytes:
    """A whole file."""
    if isinstance(system, pyarrow.fs.LocalFileSystem):  # ten times as quick as through pyarrow
        with open(path, "rb") as file:
            return file.read()
    with system.open_input_stream(path) as stream:
        return bytes(stream.read())


def write(system: pyarrow.fs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all, and its folder where there are such."""
    if _keeps_whole_objects(system):
        # pyarrow ends an object also when it leaves by an exception, with what it has by then. Ctrl-C raises
        # one anywhere, but in the main thread only.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_put, system, path, content).result()
        return
    folder, name = path.rsplit("/", 1)
    part = f"{folder}/.{name}.{secrets.token_hex(4)}.part"
    system.create_dir(folder, recursive=True)
    try:
        if isinstance(system, pyarrow.fs.LocalFileSystem):
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power failure may leave the name without the content
        else:
            _put(system, part, content)
        system.move(part, path)
    except StorageError:
        with contextlib.suppress(*StorageError):  # a full disk needs the room
            system.delete_file(part)
        raise


def _put(system: pyarrow.fs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    with system.open_output_stream(path) as stream:
        stream.write(content)


def default_tracking(storage: str) -> str:
    """MLflow's `<storage>/mlflow.db`, absolute: a relative SQLite address is another file in every process.

    Raises InputError where the storage is no folder.
    """
    if "://" in storage:
        raise InputError(
            f"tracking: storage {storage} cannot hold a SQLite file; --set tracking=http://HOST:5000, "
            "or sqlite:////FOLDER/mlflow.db on the driver's machine"
        )
    return f"sqlite:///{os.path.join(os.path.realpath(storage), 'mlflow.db')}"


def _keeps_whole_objects(system: pyarrow.fs.FileSystem) -> bool:
    """Whether a file appears with its last byte, and a folder is but a name.

    So it is on S3 and Google's storage. On Azure's pyarrow makes an empty file before it writes.
    """
    return system.type_name in ("s3", "gcs")


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")
