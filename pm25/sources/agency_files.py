"""Content of the files that agencies publish: plain, gzipped or zipped, as UTF-8 bytes."""

import functools
import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pm25 import files, unpacking
from pm25.errors import InputError
from pm25.limits import MOST_MEMBERS, MOST_UNPACKED_BYTES

AGAIN = "download the file again"
"""Fix for a damaged file."""

DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    struct.error,
    ValueError,
    OSError,
)
"""Errors that zipfile raises for a zip that is damaged or compressed in an unknown way."""

DAMAGED_GZIP = (gzip.BadGzipFile, zlib.error, EOFError)
"""Errors that gzip raises for a damaged file."""

ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"
"""First bytes of a zip and of a gzip file."""

_ENCRYPTED = 0x1
"""Flag of a zip's member that is encrypted."""

LISTED = 5
"""Most members of a zip that an error names."""


def contents(path: Path, wanted: str, kind: str, fix: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the file at `path`, or of each wanted member if it is a zip.

    The first bytes decide whether a file is a zip or gzipped, so that a wrong suffix does no harm. In a zip,
    members are wanted whose file name matches the regular expression `wanted`, ignoring case. Those that
    macOS adds (`__MACOSX`, `._NAME`) are left out. `kind` names wanted members in an error, and `fix` is the
    error's fix. A byte order mark is removed, UTF-16 is converted, and lines end with newlines.

    Raises InputError for a file that cannot be read or is damaged, and for a web page in place of data. A zip
    must have a wanted member.
    """
    try:
        data = files.read_bytes(path)
    except OSError as error:
        raise InputError(str(path), "", f"cannot be read ({error.strerror})", fix) from error
    if not data.startswith(ZIP) and path.suffix.lower() != ".zip":
        yield str(path), _plain(data, str(path))
    elif is_web_page(data):
        raise _web_page(str(path))
    else:
        for name, content in _members(path, data, wanted, kind, fix):
            yield name, _plain(content, name)


def _members(path: Path, data: bytes, wanted: str, kind: str, fix: str) -> list[tuple[str, bytes]]:
    """Read the wanted members of a zip, in the order of their names."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if len(archive.infolist()) > MOST_MEMBERS:
                problem = f"{len(archive.infolist()):,} members, but at most {MOST_MEMBERS:,} are allowed"
                raise InputError(str(path), "", problem, "unpack it, and give the files that are needed")
            names = sorted(name for name in archive.namelist() if not _of_macos(name))
            chosen = [name for name in names if re.fullmatch(wanted, _base(name), re.IGNORECASE)]
            members = [archive.getinfo(name) for name in chosen]
            if sum(member.file_size for member in members) > MOST_UNPACKED_BYTES:  # of which no more is read
                raise unpacking.TooLarge(f"unpacks to more than {MOST_UNPACKED_BYTES:,} bytes")
            found = []
            if (locked := encrypted(members)) is not None:
                raise InputError(str(path), "", locked, "unpack it with its password, and give its files")
            for member in members:
                opened = functools.partial(archive.open, member)
                content = unpacking.read(opened, member.compress_size, MOST_UNPACKED_BYTES)
                found.append((f"{path}:{member.filename}", content))
    except InputError:
        raise
    except unpacking.TooLarge as error:
        raise InputError(str(path), "", str(error), AGAIN) from None
    except DAMAGED_ZIP as error:
        raise InputError(str(path), "", f"damaged zip ({_reason(error)})", AGAIN) from error
    if not chosen:
        if any(name.lower().endswith(".zip") for name in names):
            fix = "unpack it, and give the zips in it"
        listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
        raise InputError(str(path), "", f"no {kind} in this zip, only {listed or 'nothing'}", fix)
    # A single member is named by its zip alone.
    return [(str(path), content) for _, content in found] if len(found) == 1 else found


def encrypted(members: Iterable[zipfile.ZipInfo]) -> str | None:
    """Describe the first encrypted member of a zip, or return None if there is none."""
    found = next((member.filename for member in members if member.flag_bits & _ENCRYPTED), None)
    return None if found is None else f"its member {found!r} is encrypted"


def _plain(data: bytes, name: str) -> bytes:
    """Decompress a gzipped content, convert UTF-16 to UTF-8, and refuse a web page."""
    if data.startswith(GZIP):
        try:
            opened = functools.partial(_gunzip, data)
            data = unpacking.read(opened, len(data), MOST_UNPACKED_BYTES)
        except unpacking.TooLarge as error:
            raise InputError(name, "", str(error), AGAIN) from None
        except DAMAGED_GZIP as error:
            raise InputError(name, "", f"damaged gzip file ({_reason(error)})", AGAIN) from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise InputError(name, "", f"not valid UTF-16 ({error.reason})", AGAIN) from error
    if is_web_page(data):
        raise _web_page(name)
    return with_newlines(data.removeprefix(b"\xef\xbb\xbf"))


def _gunzip(data: bytes) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=io.BytesIO(data))


def with_newlines(data: bytes) -> bytes:
    """Return the content with the line ends of Windows and of old Macs replaced by newlines."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def is_web_page(data: bytes) -> bool:
    """Return True if the content begins as HTML or XML, such as the error page of a server."""
    return bool(
        re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|\?xml|html|head|body)", data[:1000], re.IGNORECASE)
    )


def _web_page(name: str) -> InputError:
    fix = "open the address in a browser to see what the server says, and download the file again"
    return InputError(name, "", "a web page, not a data file", fix)


def _of_macos(name: str) -> bool:
    return name.startswith("__MACOSX/") or _base(name).startswith("._")


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
