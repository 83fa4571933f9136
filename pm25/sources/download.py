"""A year of EPA AirData and NOAA USCRN files, downloaded so that an interrupted download goes on."""

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

from pm25.errors import InputError
from pm25.sources import uscrn

if TYPE_CHECKING:
    from rich.console import Console

PARAMETERS = ("88101", "88502", "TEMP", "WIND", "RH_DP", "PRESS")
EPA = "https://aqs.epa.gov/aqsweb/airdata"
NOAA = "https://www.ncei.noaa.gov/pub/data/uscrn/products/daily01"

FAR_STATIONS = ("AK", "HI", "SA")  # SA: Siberia. Ontario stays: it is within 300 km of sites in NY, MI and PA
TIMEOUT_S = (10, 60)  # to connect, between two bytes
ATTEMPTS = 8
WAIT = tenacity.wait_exponential_jitter(initial=1, max=60)
CHUNK = 1 << 14  # bytes; a connection that breaks loses the chunk that it breaks in

Progress = Callable[[str, int, int | None], None]
"""progress(file name, bytes so far, bytes in all or None); so far == in all when the file is complete."""


@dataclass(frozen=True)
class Fetched:
    """The files of a year, as `pm25.sources.aqs.build(files, weather)` takes them."""

    files: tuple[Path, ...]
    weather: tuple[Path, ...]


class _TryAgain(Exception):
    """A fault that may be gone next time."""


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

    A file that is there and sound is not asked for again. Others grow as NAME.part, go on from where they
    broke off (HTTP Range, as long as the server still has the same file), are verified and renamed.
    Raises InputError when the year is not published, or when a file cannot be had in `ATTEMPTS` attempts;
    `wait` is the pause between them.
    """
    stations_folder = folder / "uscrn" / str(year)
    try:
        stations_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: not a folder to write to ({error}); choose another") from error
    report = progress or (lambda name, done, total: None)
    with requests.Session() as session:
        # the length and the ranges of a compressed transfer would be those of the compressed bytes
        session.headers["Accept-Encoding"] = "identity"
        again = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=wait,
            retry=tenacity.retry_if_exception_type(_TryAgain),
            retry_error_callback=_give_up,
        )

        def one(url: str, path: Path, verify: Callable[[Path], str | None]) -> Path:
            if path.exists() and verify(path) is None:
                size = path.stat().st_size
                report(path.name, size, size)
            else:
                again(_download, session, url, path, year, verify, report)
            return path

        files = [
            one(f"{epa}/{name}", folder / name, _zip_fault)
            for name in (f"daily_{parameter}_{year}.zip" for parameter in parameters)
        ]
        index = f"{noaa}/{year}/"
        names = _stations(again(_page, session, index, year), year)
        if not names:
            raise InputError(f"{index}: lists no station file CRND0103-{year}-*.txt; choose another year")
        weather = [one(f"{index}{name}", stations_folder / name, _station_fault) for name in names]
    return Fetched(tuple(files), tuple(weather))


@contextmanager
def live(console: "Console | None" = None) -> Iterator[Progress]:
    """Progress bars on a terminal, one plain line for each finished file elsewhere; to stderr by default."""
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
            for other in [n for n in tasks if n != name]:  # one at a time: 150 bars are no overview
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
    """One attempt. What arrived stays in NAME.part, and what it is a part of in NAME.part.validator."""
    part = path.with_name(path.name + ".part")
    note = path.with_name(path.name + ".part.validator")
    done = part.stat().st_size if part.exists() else 0
    validator = note.read_text() if note.exists() else ""
    asked = {"Range": f"bytes={done}-", "If-Range": validator} if done and validator else {}

    with _get(session, url, year, asked) as response:
        if response.status_code == 206:
            start, total = _content_range(response, url)
            if start != done:
                part.unlink()
                raise _TryAgain(f"{url}: sent bytes from {start}, asked from {done}")
        elif response.status_code == 416:  # the .part is no beginning of what the server has now
            part.unlink()
            raise _TryAgain(f"{url}: HTTP 416 for bytes from {done}")
        else:  # the server ignores Range, or has another file by now
            done, total = 0, _length(response.headers)
            part.write_bytes(b"")  # before the note: an old part must never meet a new validator
            note.write_text(_validator(response.headers))
        try:
            with part.open("ab") as out:
                for chunk in response.iter_content(CHUNK):
                    out.write(chunk)
                    done += len(chunk)
                    if done != total:
                        report(path.name, done, total)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _TryAgain(f"{url}: broken off after {done} bytes of {total}: {_reason(error)}") from error
    if total is not None and done < total:
        raise _TryAgain(f"{url}: {done} bytes of {total}")
    if fault := verify(part):
        part.unlink()
        raise _TryAgain(f"{url}: {fault}")
    part.replace(path)
    note.unlink(missing_ok=True)
    report(path.name, done, done)


def _page(session: requests.Session, url: str, year: int) -> str:
    with _get(session, url, year, {}) as response:
        try:
            return response.text
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _TryAgain(f"{url}: {_reason(error)}") from error


def _get(session: requests.Session, url: str, year: int, headers: dict[str, str]) -> requests.Response:
    """An open response with status 200, 206 or (only where `headers` ask for a range) 416."""
    try:
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _TryAgain(f"{url}: {_reason(error)}") from error
    except requests.RequestException as error:
        raise InputError(f"{url}: {_reason(error)}; give another address") from error
    status = response.status_code
    if status in (200, 206) or (status == 416 and headers):
        return response
    response.close()
    if status == 429 or status >= 500:
        raise _TryAgain(f"{url}: HTTP {status}")
    if status == 404:
        raise InputError(
            f"{url}: HTTP 404: year {year} is not published at this address; choose another year or parameter"
        )
    raise InputError(f"{url}: HTTP {status}; open the address in a browser to see what it wants")


def _give_up(state: tenacity.RetryCallState) -> NoReturn:
    error = state.outcome.exception() if state.outcome else None
    raise InputError(
        f"{error} (attempt {state.attempt_number}, the last); run the same command again later, it goes on "
        "from here"
    ) from error


def _stations(index: str, year: int) -> list[str]:
    """Station file names of an index page, without those of `FAR_STATIONS`."""
    found = set(re.findall(rf"CRND0103-{year}-[A-Z]{{2}}_[^\"'<>/\s]+?\.txt", index))
    return sorted(name for name in found if name.split("-")[2][:2] not in FAR_STATIONS)


def _zip_fault(path: Path) -> str | None:
    """What is wrong with a zip, or None when every member's CRC is right."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except uscrn.DAMAGED_ZIP as error:
        return f"a damaged zip ({error})"
    return bad and f"a damaged zip (CRC of {bad})"


def _station_fault(path: Path) -> str | None:
    """What is wrong with a station file, or None when it is whole lines of all columns, a year at most."""
    data = path.read_bytes()
    lines = data.count(b"\n")
    if not 1 <= lines <= 366 or not data.endswith(b"\n"):
        return f"{lines} whole lines of 1 to 366"
    try:
        uscrn.parse(data, "contents")
    except InputError as error:
        return str(error)
    return None


def _content_range(response: requests.Response, url: str) -> tuple[int, int | None]:
    text = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text.strip())
    if match is None:
        raise _TryAgain(f"{url}: HTTP 206 with Content-Range {text!r}")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _length(headers: CaseInsensitiveDict[str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _validator(headers: CaseInsensitiveDict[str]) -> str:
    """What If-Range may carry: a strong ETag or else Last-Modified (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
