"""The store: the truth about which cells are done, on any file system that pyarrow opens."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from pm25.errors import InputError

Record = dict[str, Any]
"""The content of a `result.json`: `key`, `state` ('done' or 'failed'), `cell`, then what came of it."""


@dataclass(frozen=True)
class Store:
    """`<storage>/<study>/cells/<key>/` with `result.json`, whose presence means that the cell has ended.

    A store is two strings, so that it travels to any worker as a value.
    """

    storage: str
    study: str

    def location(self, *parts: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """File system and path of something below the study's folder."""
        if "://" in self.storage:
            try:
                system, root = pyarrow.fs.FileSystem.from_uri(self.storage)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"storage: {self.storage} cannot be opened ({_reason(error)})") from None
        else:
            system, root = pyarrow.fs.LocalFileSystem(), os.path.abspath(self.storage)
        return system, "/".join([root.rstrip("/"), self.study, *parts])

    def prepare(self) -> None:
        """Make the study's folder and prove that it can be written. Raises InputError."""
        system, folder = self.location("cells")
        probe = f"{folder}/.probe-{os.getpid()}"
        try:
            system.create_dir(folder, recursive=True)
            with system.open_output_stream(probe) as stream:
                stream.write(b"probe")
            system.delete_file(probe)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"storage: {self.storage} cannot be written ({_reason(error)}); --set storage=FOLDER"
            ) from None

    def keys(self) -> set[str]:
        """Keys of all cells that have a record or the beginnings of one. Raises InputError."""
        system, folder = self.location("cells")
        try:
            found = system.get_file_info(pyarrow.fs.FileSelector(folder))
        except FileNotFoundError:
            return set()
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"storage: {self.storage} cannot be read ({_reason(error)}); --set storage=FOLDER"
            ) from None
        return {info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory}

    def records(self, keys: Iterable[str]) -> dict[str, Record]:
        """The records of those of `keys` that have ended, in the order of `keys`."""
        present = self.keys()
        wanted = [key for key in keys if key in present]
        with ThreadPoolExecutor(16) as pool:
            read = zip(wanted, pool.map(self.record, wanted), strict=True)
            return {key: record for key, record in read if record is not None}

    def record(self, key: str) -> Record | None:
        """One cell's record, or None where it has not ended."""
        content = self.read_file(key, "result.json")
        if content is None:
            return None
        try:
            record = json.loads(content)
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.get("state") not in ("done", "failed"):
            _, path = self.location("cells", key, "result.json")
            raise InputError(f"{path}: not a cell's record in JSON; delete the file, and the cell runs again")
        return record

    def write_table(self, key: str, name: str, columns: Mapping[str, Any] | pa.Table) -> None:
        """Write `<key>/<name>.parquet`."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink, compression="zstd")
        self.write_file(key, f"{name}.parquet", sink.getvalue())

    def read_table(self, key: str, name: str, columns: list[str] | None = None) -> pa.Table:
        system, path = self.location("cells", key, f"{name}.parquet")
        return pyarrow.parquet.read_table(path, columns=columns, filesystem=system)

    def write_record(self, record: Record) -> None:
        """Record that a cell has ended; the last thing written of it, and whole or not at all."""
        text = json.dumps(record, indent=1, allow_nan=False)
        self.write_file(record["key"], "result.json", text.encode())

    def forget(self, key: str) -> None:
        """Drop a cell's record, so that it counts as missing."""
        system, path = self.location("cells", key, "result.json")
        system.delete_file(path)

    def size(self, keys: Iterable[str]) -> int:
        """Bytes that the cells take."""
        system, folder = self.location("cells")
        found = (pyarrow.fs.FileSelector(f"{folder}/{key}", allow_not_found=True) for key in keys)
        return sum(info.size or 0 for selector in found for info in system.get_file_info(selector))

    def read_file(self, key: str, name: str) -> bytes | None:
        """One of a cell's files, or None where there is none."""
        system, path = self.location("cells", key, name)
        try:
            with system.open_input_stream(path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write_file(self, key: str, name: str, content: Any) -> None:
        """Write one of a cell's files, whole or not at all."""
        system, folder = self.location("cells", key)
        system.create_dir(folder, recursive=True)
        part = f"{folder}/.{name}.{os.getpid()}.part"
        with system.open_output_stream(part) as stream:
            stream.write(content)
        system.move(part, f"{folder}/{name}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
