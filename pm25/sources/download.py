"""Download a year of EPA AirData and NOAA USCRN files; an interrupted download resumes."""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import requests
import tenacity
from requests.structures import CaseInsensitiveDict

from pm25.errors import InputError, one_line
from pm25.limits import MOST_DOWNLOAD_BYTES, MOST_PAGE_BYTES, MOST_UNPACKED_BYTES
from pm25.sources import agency_files, uscrn

if TYPE_CHECKING:
    from rich.console import Console

PARAMETERS = ("88101", "88502", "TEMP", "WIND", "RH_DP", "PRESS")
EPA = "https://aqs.epa.gov/aqsweb/airdata"
NOAA = "https://www.ncei.noaa.gov/pub/data/uscrn/products/daily01"

FAR_STATIONS = ("AK", "HI", "SA")
"""Regions to leave out; SA is Siberia. Ontario is kept: it is within 300 km of sites in NY, MI and PA."""
TIMEOUT_S = (10, 60)
"""Seconds to connect, and between two bytes."""
ATTEMPTS = 8
WAIT = tenacity.wait_exponential_jitter(initial=1, max=60)
CHUNK = 1 << 14
"""Bytes written at a time; a broken connection loses only the chunk in progress."""
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
"""Errors of a connection that breaks during a transfer."""

Progress = Callable[[str, int, int | None], None]
"""Function of file name, bytes so far, and total bytes or None; a file is complete when the two are equal."""


@dataclass(frozen=True)
class Fetched:
    """Files of a year: the arguments of `pm25.sources.aqs.build(files, weather)`."""

    files: tuple[Path, ...]
    weather: tuple[Path, ...]


class _TryAgain(Exception):
    """Temporary failure of a request; the next attempt may succeed."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(url, problem)
        self.url, self.problem = url, problem


def fetch(
    year: int,
    folder: Path,
    *,
    parameters: Sequence[str] = PARAMETERS,
    epa: str = EPA,
    noaa: str = NOAA,
    progress: Progress | None = None,
    wait: tenacity.wait.WaitBaseT = WAIT,
) -> Fetched:
    """Download the year's AirData zips to `folder` and its USCRN station files to `folder`/uscrn/`year`.

    A file that exists and is valid is not requested again. Others are written to NAME.part, verified, and
    renamed. An interrupted download resumes (HTTP Range) if the server still has the same file. `wait` is the
    pause between attempts. Raises InputError if the year is not published, or if a file cannot be downloaded
    in `ATTEMPTS` attempts.
    """
    stations_folder = folder / "uscrn" / str(year)
    try:
        stations_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be used as a folder ({error.strerror})"
        raise InputError(str(folder), "", problem, "choose another") from error
    report = progress or (lambda name, done, total: None)
    with requests.Session() as session:
        # Length and ranges of a compressed transfer would count compressed bytes.
        session.headers["Accept-Encoding"] = "identity"
        with_retries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=wait,
            retry=tenacity.retry_if_exception_type(_TryAgain),
            retry_error_callback=_give_up,
        )

        def ensure(url: str, path: Path, verify: Callable[[Path], str | None]) -> Path:
            if path.exists() and verify(path) is None:
                size = path.stat().st_size
                report(path.name, size, size)
            else:
                with_retries(_download, session, url, path, year, verify, report)
            return path

        files = [
            ensure(f"{epa}/{name}", folder / name, _zip_problem)
            for name in (f"daily_{parameter}_{year}.zip" for parameter in parameters)
        ]
        index = f"{noaa}/{year}/"
        names = _stations(with_retries(_page, session, index, year), year)
        if not names:
            problem = f"lists no station file CRND0103-{year}-*.txt"
            raise InputError(index, "", problem, "choose another year")
        weather = [ensure(f"{index}{name}", stations_folder / name, _station_problem) for name in names]
    return Fetched(tuple(files), tuple(weather))


@contextmanager
def live(console: "Console | None" = None) -> Iterator[Progress]:
    """Show progress bars on a terminal, or a plain line per finished file elsewhere; by default on stderr."""
    from rich import console as rich_console
    from rich import filesize
    from rich import progress as rich_progress

    console = console or rich_console.Console(stderr=True)
    if not console.is_terminal:

        def line(name: str, done: int, total: int | None) -> None:
            if done == total:
                console.print(
                    f"{name} {filesize.decimal(done)}", markup=False, highlight=False, soft_wrap=True
                )

        yield line
        return

    with rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
        console=console,
    ) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def bar(name: str, done: int, total: int | None) -> None:
            for other in [n for n in tasks if n != name]:  # one bar at a time: 150 would be unreadable
                bars.remove_task(tasks.pop(other))
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield bar


def _download(
    session: requests.Session,
    url: str,
    path: Path,
    year: int,
    verify: Callable[[Path], str | None],
    report: Progress,
) -> None:
    """Make one attempt to download `url` to `path`. Raises _TryAgain if it fails.

    Received bytes are kept in NAME.part. The validator of the file that they belong to is kept in
    NAME.part.validator.
    """
    part = path.with_name(path.name + ".part")
    note = path.with_name(path.name + ".part.validator")
    done = part.stat().st_size if part.exists() else 0
    validator = note.read_text(encoding="utf-8") if note.exists() else ""
    asked = {"Range": f"bytes={done}-", "If-Range": validator} if done and validator else {}

    with _get(session, url, year, asked) as response:
        if response.status_code == 206:
            start, total = _content_range(response, url)
            if start != done:
                part.unlink()
                raise _TryAgain(url, f"server sent bytes from {start}, not from {done}")
        elif response.status_code == 416:  # the .part is not the beginning of the server's file
            part.unlink()
            raise _TryAgain(url, f"HTTP 416 for bytes from {done}")
        else:  # the server ignores Range, or now has another file
            done, total = 0, _length(response.headers)
            part.write_bytes(b"")  # before the validator, which must never belong to another part
            note.write_text(_validator(response.headers), encoding="utf-8")
        try:
            with part.open("ab") as out:
                for chunk in response.iter_content(CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    if done > MOST_DOWNLOAD_BYTES:
                        size = f"more than {MOST_DOWNLOAD_BYTES:,} bytes"
                        raise InputError(url, "", size, f"delete {part}, and give another address")
                    if done != total:
                        report(path.name, done, total)
        except BROKEN as error:
            raise _TryAgain(url, f"interrupted after {done} bytes of {total} ({_reason(error)})") from error
    if total is not None and done < total:
        raise _TryAgain(url, f"only {done} bytes of {total} received")
    if problem := verify(part):
        part.unlink()
        raise _TryAgain(url, problem)
    part.replace(path)
    note.unlink(missing_ok=True)
    report(path.name, done, done)


def _page(session: requests.Session, url: str, year: int) -> str:
    """Download a page of text. Raises _TryAgain if the attempt fails."""
    with _get(session, url, year, {}) as response:
        try:
            content = b""
            for chunk in response.iter_content(CHUNK):
                content += chunk
                if len(content) > MOST_PAGE_BYTES:
                    raise InputError(url, "", f"more than {MOST_PAGE_BYTES:,} bytes", "give another address")
            return content.decode(errors="replace")
        except BROKEN as error:
            raise _TryAgain(url, _reason(error)) from error


def _get(session: requests.Session, url: str, year: int, headers: dict[str, str]) -> requests.Response:
    """Open a response with status 200, 206 or, if `headers` ask for a range, 416.

    Raises _TryAgain for a temporary failure and InputError for a permanent one.
    """
    try:
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _TryAgain(url, _reason(error)) from error
    except requests.RequestException as error:
        raise InputError(url, "", _reason(error), "give another address") from error
    status = response.status_code
    if status in (200, 206) or (status == 416 and headers):
        return response
    response.close()
    if status == 429 or status >= 500:
        raise _TryAgain(url, f"HTTP {status}")
    if status == 404:
        problem = f"HTTP 404: year {year} is not published here"
        raise InputError(url, "", problem, "choose another year or parameter")
    raise InputError(url, "", f"HTTP {status}", "open the address in a browser to see the reason")


def _give_up(state: tenacity.RetryCallState) -> NoReturn:
    """Raise the InputError of the last attempt's failure."""
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, _TryAgain)
    problem = f"{error.problem} (attempt {state.attempt_number}, the last)"
    fix = "run the same command again later; the download resumes"
    raise InputError(error.url, "", problem, fix) from error


def _stations(index: str, year: int) -> list[str]:
    """Names of the station files on an index page, without those of `FAR_STATIONS`."""
    found = set(re.findall(rf"CRND0103-{year}-[A-Z]{{2}}_[^\"'<>/\s]+?\.txt", index))
    return sorted(name for name in found if name.split("-")[2][:2] not in FAR_STATIONS)


def _zip_problem(path: Path) -> str | None:
    """Describe the problem of a zip, or return None if the CRC of every member is right."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MOST_UNPACKED_BYTES:
                return f"unpacks to {size:,} bytes, more than {MOST_UNPACKED_BYTES:,}"
            if problem := agency_files.encrypted(archive.infolist()):
                return problem
            bad = archive.testzip()
    except agency_files.DAMAGED_ZIP as error:
        return f"damaged zip ({error})"
    return bad and f"damaged zip (CRC of {bad})"


def _station_problem(path: Path) -> str | None:
    """Describe the problem of a station file, or return None if it is 1 to 366 complete lines."""
    data = path.read_bytes()
    lines = data.count(b"\n")
    if not 1 <= lines <= 366 or not data.endswith(b"\n"):
        return f"{lines} complete lines, not 1 to 366"
    try:
        uscrn.parse(data, "content")
    except InputError as error:
        return one_line(error.where, error.field, error.problem, "")
    return None


def _content_range(response: requests.Response, url: str) -> tuple[int, int | None]:
    """Return first byte and total size from the header Content-Range; the size is None if it is unknown."""
    text = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text.strip())
    if match is None:
        raise _TryAgain(url, f"HTTP 206 with Content-Range {text!r}")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _length(headers: CaseInsensitiveDict[str]) -> int | None:
    """Return the size of a file, None if the server does not give it."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _validator(headers: CaseInsensitiveDict[str]) -> str:
    """Return a value for If-Range: a strong ETag, or else Last-Modified (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _reason(error: Exception) -> str:
    """Format an error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
