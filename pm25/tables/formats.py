"""Finds the format of a file from its first bytes, and unpacks compressed files."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa

from pm25 import unpacking
from pm25.limits import MOST_FILE_BYTES

PARQUET = (".parquet", ".pq", ".parq")
"""Suffixes of Parquet files."""
TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".psv")
"""Suffixes of delimited text."""
_PACKED = {
    b"\x1f\x8b": ("gzip", ".gz"),
    b"BZh": ("bz2", ".bz2"),
    b"\xfd7zXZ\x00": ("xz", ".xz"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst"),
}
"""First bytes of compressed files, with the method and its suffix."""
_FOREIGN = {
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "save its sheet as .csv"),
    b"ARROW1": ("an Arrow (Feather) file", "write the table as .parquet"),
    b"ORC": ("an ORC file", "write the table as .parquet"),
    b"Obj\x01": ("an Avro file", "write the table as .parquet"),
    b"\x89HDF": ("an HDF5 or netCDF file", "write its table as .parquet or .csv"),
    b"CDF\x01": ("a netCDF file", "write its table as .parquet or .csv"),
    b"CDF\x02": ("a netCDF file", "write its table as .parquet or .csv"),
    b"SQLite format 3": ("an SQLite database", "export its table as .csv"),
    b"\x93NUMPY": ("a NumPy array", "write it as .parquet with named columns"),
    b"\x80\x04\x95": ("a Python pickle", "write the table as .parquet"),
    b"\x80\x05\x95": ("a Python pickle", "write the table as .parquet"),
    b"%PDF": ("a PDF document", "give its table as .csv"),
    b"\x89PNG": ("a PNG image", "give a .parquet or .csv table"),
    b"PARE": ("a Parquet file with an encrypted footer", "decrypt it and write it as .parquet"),
    b"version https://git-lfs": ("a Git LFS pointer, not the table itself", "run `git lfs pull`"),
}
"""First bytes of files that are no table that can be read, with what they are and what to do."""


class Packing(NamedTuple):
    """Compression method and its suffix."""

    name: str
    suffix: str


class UnpackError(ValueError):
    """Compressed file that is damaged or cut short."""


def packing(head: bytes) -> Packing | None:
    """Return the compression method of a file, or None if it is not compressed."""
    return next((Packing(*found) for magic, found in _PACKED.items() if head.startswith(magic)), None)


def strip_packing(name: str) -> tuple[str, str]:
    """Split the suffix of a compression method from a name: PANEL.CSV.GZ gives PANEL.CSV and .GZ."""
    for _, suffix in _PACKED.values():
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return name, ""


_OPEN: dict[str, Callable[[io.BytesIO], Any]] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}


def unpack(content: bytes, method: str) -> bytes:
    """Decompress a file. Raises UnpackError, and unpacking.TooLarge for one beyond the limits."""
    try:
        open_: Callable[[io.BytesIO], Any] = _OPEN.get(
            method, lambda file: pa.CompressedInputStream(file, method)
        )
        return unpacking.read(lambda: open_(io.BytesIO(content)), len(content), MOST_FILE_BYTES)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise UnpackError(" ".join(str(error).split())) from None


def foreign(content: bytes) -> tuple[str, str] | None:
    """Return what a file of another format is and what to do, or None if it may be a table."""
    for magic, found in _FOREIGN.items():
        if content.startswith(magic):
            return found
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(content)
    start = content[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        title = re.search(rb"<title[^>]*>\s*([^<]*)", content[:65_536], re.IGNORECASE)
        said = " ".join(title[1].decode(errors="replace").split())[:60] if title else ""
        return (
            f"an HTML page{f' ({said!r})' if said else ''}, not a table",
            "download the .parquet or .csv file again",
        )
    if start.startswith(b"<"):
        return "an XML document, not a table", "give a .parquet or .csv table"
    if start.startswith((b"{", b"[")):
        return "a JSON document, not a table", "write the table as .parquet or .csv"
    return None


def is_likely_text(head: bytes) -> bool:
    """Tell whether these bytes are text in any encoding: no control characters except NULs."""
    return not re.search(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]", head)


def _archive(content: bytes) -> tuple[str, str]:
    """Describe a zip archive or an Excel workbook, which is one."""
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return "a zip archive that is damaged or cut short", "download it again, unpack it and give its table"
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook", "save its sheet as .csv"
    if any(name.startswith("content.xml") for name in names):
        return "an OpenDocument file", "save its sheet as .csv"
    files = [name for name in names if not name.endswith("/") and not name.startswith("__MACOSX")]
    more = ", ..." if len(files) > 3 else ""
    return f"a zip archive of {', '.join(files[:3]) or 'no file'}{more}", "unpack it and give its table"
