"""Reads a file or a folder as an Arrow table, without checking its content."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

from pm25 import unpacking, uri
from pm25.errors import InputError
from pm25.limits import MOST_FILE_BYTES
from pm25.tables import formats
from pm25.tables.delimited import read_delimited
from pm25.tables.folders import read_folder
from pm25.tables.notes import attach
from pm25.tables.plain import plain_table
from pm25.tables.schema import CALENDAR, REQUIRED, refuse_large

_GIVE = f"give a .parquet or .csv table with columns {', '.join(REQUIRED)}"


def read_table(
    path: Path | str, channels: Sequence[str] | None = None, groups: Sequence[str] = ()
) -> pa.Table:
    """Read the table without checking it. With `channels`, read only the columns that they and `groups` need.

    The table is a Parquet file, a folder of Parquet files, or delimited text, which may be compressed. Its
    columns have the types of `plain_table`, and the notes of its schema say how it was read. Raises
    InputError if it cannot be read.
    """
    where = str(path)
    # Strings keep the leading zeros of a site_id, and a date keeps its time zone.
    text_columns = ["site_id", "date", *(c for c in groups if c not in REQUIRED)]

    def wanted(present: Sequence[str]) -> list[str] | None:
        """Choose the columns to read; None means all, so that an error can list them."""
        if channels is None:
            return None
        needed = {*REQUIRED, *channels, *groups} - (set(CALENDAR) - {*present})
        return [name for name in dict.fromkeys(present) if name in needed] if needed <= {*present} else None

    try:
        folder = _open_folder(path)
        if folder is not None:
            return read_folder(*folder, where, wanted, text_columns)
        file, name = _unpack(_open_file(path), uri.file_name(path), where)
        if _is_parquet(file, name, where):
            parquet = pyarrow.parquet.ParquetFile(file)
            columns = wanted(parquet.schema_arrow.names)
            width = len(parquet.schema_arrow.names if columns is None else columns)
            refuse_large(where, parquet.metadata.num_rows, width)
            table = parquet.read(columns=columns)
            return attach(plain_table(table), "row 1 is the first row of data")
        return plain_table(read_delimited(file.read(), where, text_columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        fix = "write it again as .parquet or .csv"
        raise InputError(where, "", f"cannot be read as a table ({reason})", fix) from None


def _open_folder(path: Path | str) -> tuple[pyarrow.fs.FileSystem, str] | None:
    """Return the file system and the path of a folder, or None if `path` is not a folder."""
    if not str(path).strip():
        raise InputError("table", "", "its path is empty", _GIVE)
    if not uri.is_uri(path):
        system, folder = pyarrow.fs.LocalFileSystem(), str(path)
        return (system, _below_root(folder, path)) if Path(path).is_dir() else None
    try:
        system, folder = uri.open_system(str(path))
        uri.check_server(str(path), folder)
        is_folder = system.get_file_info(folder).type == pyarrow.fs.FileType.Directory
    except (OSError, pa.ArrowException) as error:
        raise uri.unreadable(path, OSError(errno.EIO, uri.reason(error))) from None
    return (system, _below_root(folder, path)) if is_folder else None


def _below_root(folder: str, path: Path | str) -> str:
    """Return a folder without slashes at its end. Raises InputError for the root of the file system."""
    if not folder.rstrip("/"):
        raise InputError(str(path), "", "the root of the file system, not a table", _GIVE)
    return folder.rstrip("/")


def _open_file(path: Path | str) -> pa.NativeFile:
    """Open a file to read. Raises InputError if there is none."""
    missing = InputError(str(path), "", "no such table", _GIVE)
    if not uri.is_uri(path):
        if not Path(path).exists():
            raise missing
        if not Path(path).is_file():
            raise InputError(str(path), "", "not a regular file", _GIVE)
        return pa.OSFile(str(path))
    try:
        return pa.BufferReader(uri.read(path))
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise uri.unreadable(path, error) from None


def _unpack(file: pa.NativeFile, name: str, where: str) -> tuple[pa.NativeFile, str]:
    """Decompress the file if it is compressed, and return it with its name without the suffix for it.

    Raises InputError if the file is empty or damaged, or if its suffix is wrong.
    """
    method = formats.packing(_head(file))
    inner, suffix = formats.strip_packing(name)
    if method is None:
        if suffix and file.size() and formats.foreign(_head(file)) is None:
            fix = f"rename it to {inner}"
            raise InputError(where, "", f"the file is not compressed, despite its suffix {suffix}", fix)
    elif not suffix and name.lower().endswith((*formats.PARQUET, *formats.TEXT)):
        fix = f"rename it to {name}{method.suffix}"
        raise InputError(where, "", f"the file is compressed with {method.name}, despite its suffix", fix)
    else:
        try:
            file = pa.BufferReader(formats.unpack(file.read(), method.name))
        except unpacking.TooLarge as error:
            fix = "give the table that it contains, or write it again"
            raise InputError(where, "", f"the {method.name} file {error}", fix) from None
        except formats.UnpackError as error:
            what = f"the {method.name} file is damaged or cut short ({error})"
            raise InputError(where, "", what, "download or write it again") from None
    if not file.size():
        raise InputError(where, "", "the file is empty", _GIVE)
    if file.size() > MOST_FILE_BYTES and not _head(file).startswith(b"PAR1"):
        what = f"{file.size():,} bytes of text, but at most {MOST_FILE_BYTES:,} are allowed"
        raise InputError(where, "", what, "write it as .parquet")
    return file, inner


def _is_parquet(file: pa.NativeFile, name: str, where: str) -> bool:
    """Tell whether a file is Parquet and not text. Raises InputError for others, and for a wrong suffix."""
    head = _head(file)
    parquet, stem, suffix = head.startswith(b"PAR1"), Path(name).stem, Path(name).suffix.lower()
    if suffix in (".yaml", ".yml") and not parquet:
        fix = f"{_GIVE}; a study file names it with data.table"
        raise InputError(where, "", "a YAML file, not a table", fix)
    other = formats.foreign(head if not head.startswith(b"PK") else _all(file))
    if other is not None:
        raise InputError(where, "", f"the file is {other[0]}", other[1])
    if parquet and suffix in formats.TEXT:
        fix = f"rename it to {stem}.parquet"
        raise InputError(where, "", f"the file contains parquet, despite its suffix {suffix}", fix)
    if not parquet and suffix in formats.PARQUET:
        if formats.is_likely_text(head):
            fix = f"rename it to {stem}.csv"
            raise InputError(
                where, "", f"the file contains text, not parquet, despite its suffix {suffix}", fix
            )
        what = "not a parquet file: it does not begin with PAR1"
        raise InputError(where, "", what, "write it again")
    if not parquet and not formats.is_likely_text(head):
        raise InputError(where, "", "the file is neither text nor parquet", _GIVE)
    return parquet


def _head(file: pa.NativeFile) -> bytes:
    """First 64 KiB of a file."""
    file.seek(0)
    head = bytes(file.read(1 << 16))
    file.seek(0)
    return head


def _all(file: pa.NativeFile) -> bytes:
    """All bytes of a file."""
    content = bytes(file.read())
    file.seek(0)
    return content
