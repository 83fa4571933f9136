"""Downloads from a real HTTP server that drops connections, ignores ranges, fails, and sends wrong bytes."""

import io
import random
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tenacity
from rich.console import Console

from pm25.sources import aqs, download
from tests.errors import refuses

YEAR = 2021
ZIP = f"daily_88101_{YEAR}.zip"
NOW = tenacity.wait_none()


@dataclass
class World:
    """Files and behaviour of the server; each request uses up one of its `faults`."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every request."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: World

    def do_GET(self) -> None:
        world, asked = self.world, self.headers.get("Range")
        world.asked.append((self.path, asked))
        fault = world.faults.get(self.path, []).pop(0) if world.faults.get(self.path) else ""
        body = world.files.get(self.path)
        if fault.isdigit() or body is None:
            return self.reply(int(fault or 404), b"<html>error</html>", {})
        tag = f'"{hash(body)}"'
        headers = {"ETag": tag} if world.etags else {"Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
        validator = next(iter(headers.values()))
        status = 200
        if asked and world.ranges and self.headers.get("If-Range") in (None, validator):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        if fault == "wrong start":
            headers["Content-Range"] = "bytes 1-2/3"
        return self.reply(status, body, headers, drop=fault == "drop")

    def reply(self, status: int, body: bytes, headers: dict[str, str], *, drop: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if drop:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    world = World()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"world": world}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    world.url = f"http://127.0.0.1:{server.server_port}"
    world.files[f"/epa/{ZIP}"] = archive(1)
    names = ["AL_Fairhope_3_NE", "ON_Egbert_1_W", "AK_Bethel_87_WNW", "HI_Hilo_5_S", "SA_Tiksi_4_SSE"]
    links = [f"CRND0103-{YEAR}-{name}.txt" for name in names] + [f"CRND0103-{YEAR - 1}-AL_Fairhope_3_NE.txt"]
    page = "".join(f'<tr><td><a href="{link}">{link}</a></td></tr>' for link in ["../", *links])
    world.files[f"/noaa/{YEAR}/"] = f"<html>{page}</html>".encode()
    for link in links:
        world.files[f"/noaa/{YEAR}/{link}"] = station_file()
    yield world
    server.shutdown()
    thread.join()
    server.server_close()


def archive(seed: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("daily.csv", random.Random(seed).randbytes(300_000))
    return out.getvalue()


def station_file(days: int = 2) -> bytes:
    start = "63869 202101{:02d}  2.622  -87.88   30.55 "
    return "".join(start.format(d + 1) + "1.0 " * 6 + "C " + "1.0 " * 16 + "\n" for d in range(days)).encode()


def half(body: bytes) -> int:
    """Size of a .part after a drop in the middle: all complete chunks."""
    return len(body) // 2 // download.CHUNK * download.CHUNK


def run(world: World, folder: Path, **options: object) -> download.Fetched:
    arguments = {"parameters": ["88101"], "wait": NOW} | options
    return download.fetch(YEAR, folder, epa=f"{world.url}/epa", noaa=f"{world.url}/noaa", **arguments)


def asked_of_zip(world: World) -> list[str | None]:
    return [asked for path, asked in world.asked if path == f"/epa/{ZIP}"]


def test_a_year_is_the_zips_and_the_stations_near_conus(world: World, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    got = run(world, tmp_path / "new" / "folder", progress=lambda *what: seen.append(what))
    folder = tmp_path / "new" / "folder"
    stations = folder / "uscrn" / str(YEAR)
    names = [f"CRND0103-{YEAR}-{name}.txt" for name in ("AL_Fairhope_3_NE", "ON_Egbert_1_W")]
    assert got == download.Fetched((folder / ZIP,), tuple(stations / name for name in names))
    assert (folder / ZIP).read_bytes() == world.files[f"/epa/{ZIP}"]
    assert got.weather[0].read_bytes() == station_file()
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == sorted([ZIP, *names])
    sizes = {path.name: path.stat().st_size for path in (*got.files, *got.weather)}
    assert [what for what in seen if what[1] == what[2]] == [(n, s, s) for n, s in sizes.items()]

    world.asked.clear()
    assert run(world, folder) == got
    assert world.asked == [(f"/noaa/{YEAR}/", None)]


@pytest.mark.parametrize("etags", [True, False], ids=["ETag", "Last-Modified"])
def test_a_dropped_connection_resumes_where_it_broke(world: World, tmp_path: Path, etags: bool) -> None:
    world.etags = etags
    world.faults[f"/epa/{ZIP}"] = ["drop"]
    run(world, tmp_path)
    whole = world.files[f"/epa/{ZIP}"]
    assert (tmp_path / ZIP).read_bytes() == whole
    assert asked_of_zip(world) == [None, f"bytes={half(whole)}-"]


def test_another_run_resumes_where_one_gave_up(world: World, tmp_path: Path) -> None:
    whole = world.files[f"/epa/{ZIP}"]
    world.faults[f"/epa/{ZIP}"] = ["drop", *["503"] * (download.ATTEMPTS - 1)]
    with refuses(f"/epa/{ZIP}", "", "HTTP 503", f"attempt {download.ATTEMPTS}"):
        run(world, tmp_path)
    assert not (tmp_path / ZIP).exists()
    assert (tmp_path / f"{ZIP}.part").read_bytes() == whole[: half(whole)]
    world.asked.clear()
    run(world, tmp_path)
    assert asked_of_zip(world) == [f"bytes={half(whole)}-"]
    assert (tmp_path / ZIP).read_bytes() == whole


def test_a_file_that_changed_meanwhile_starts_anew(world: World, tmp_path: Path) -> None:
    world.faults[f"/epa/{ZIP}"] = ["drop", *["503"] * (download.ATTEMPTS - 1)]
    with refuses(f"/epa/{ZIP}", "", "HTTP 503"):
        run(world, tmp_path)
    world.files[f"/epa/{ZIP}"] = changed = archive(2)  # it has the time at which it is made
    world.asked.clear()
    run(world, tmp_path)
    assert len(asked_of_zip(world)) == 1
    assert (tmp_path / ZIP).read_bytes() == changed


def test_a_server_without_ranges_starts_anew(world: World, tmp_path: Path) -> None:
    world.ranges = False
    world.faults[f"/epa/{ZIP}"] = ["drop"]
    seen: list[tuple[str, int, int | None]] = []
    run(world, tmp_path, progress=lambda *what: seen.append(what))
    whole = world.files[f"/epa/{ZIP}"]
    assert (tmp_path / ZIP).read_bytes() == whole
    assert max(done for name, done, _ in seen if name == ZIP) == len(whole)
    assert len(asked_of_zip(world)) == 2


def test_a_range_that_is_not_the_one_asked_for_is_not_used(world: World, tmp_path: Path) -> None:
    world.faults[f"/epa/{ZIP}"] = ["drop", "wrong start"]
    run(world, tmp_path)
    assert (tmp_path / ZIP).read_bytes() == world.files[f"/epa/{ZIP}"]
    assert asked_of_zip(world)[-1] is None


def test_a_part_that_is_longer_than_the_file_starts_anew(world: World, tmp_path: Path) -> None:
    body = world.files[f"/epa/{ZIP}"]
    (tmp_path / f"{ZIP}.part").write_bytes(body + b"more")
    (tmp_path / f"{ZIP}.part.validator").write_text(f'"{hash(body)}"')
    run(world, tmp_path)
    assert (tmp_path / ZIP).read_bytes() == body
    assert asked_of_zip(world) == [f"bytes={len(body) + 4}-", None]


@pytest.mark.parametrize("path", [f"/epa/{ZIP}", f"/noaa/{YEAR}/"])
@pytest.mark.parametrize("fault", ["503", "429", "drop"])
def test_faults_that_pass_are_waited_for(world: World, tmp_path: Path, path: str, fault: str) -> None:
    world.faults[path] = [fault, fault]
    got = run(world, tmp_path)
    assert len(got.files) == 1
    assert len(got.weather) == 2
    assert [asked_path for asked_path, _ in world.asked].count(path) == 3


def test_pauses_grow(world: World, tmp_path: Path) -> None:
    attempts: list[int] = []

    def pause(state: tenacity.RetryCallState) -> float:
        attempts.append(state.attempt_number)
        return 0.0

    world.faults[f"/epa/{ZIP}"] = ["503", "503"]
    run(world, tmp_path, wait=pause)
    assert attempts == [1, 2]
    pauses = [download.WAIT(_state(n)) for n in range(1, download.ATTEMPTS)]
    assert all(2 ** (n - 1) <= p <= 2 ** (n - 1) + 1 or p == 60 for n, p in enumerate(pauses, start=1))


def _state(attempt: int) -> tenacity.RetryCallState:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    return state


def test_a_corrupt_zip_is_fetched_again_and_then_refused(world: World, tmp_path: Path) -> None:
    good = world.files[f"/epa/{ZIP}"]
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 0xFF
    world.files[f"/epa/{ZIP}"] = bytes(bad)
    with refuses(f"/epa/{ZIP}", "", "zip", f"attempt {download.ATTEMPTS}"):
        run(world, tmp_path)
    assert len(asked_of_zip(world)) == download.ATTEMPTS
    assert not (tmp_path / ZIP).exists()

    # A damaged file from an earlier run is replaced.
    (tmp_path / ZIP).write_bytes(bad)
    world.files[f"/epa/{ZIP}"] = good
    run(world, tmp_path)
    assert (tmp_path / ZIP).read_bytes() == good


@pytest.mark.parametrize(
    "body", [b"", station_file()[:-30], station_file()[:-2], station_file(367), b"<html>busy</html>\n"]
)
def test_a_station_file_that_is_not_one_is_refused(world: World, tmp_path: Path, body: bytes) -> None:
    name = f"CRND0103-{YEAR}-AL_Fairhope_3_NE.txt"
    world.files[f"/noaa/{YEAR}/{name}"] = body
    with refuses(name, "", f"attempt {download.ATTEMPTS}"):
        run(world, tmp_path)
    assert not (tmp_path / "uscrn" / str(YEAR) / name).exists()


def test_a_year_that_is_not_published(world: World, tmp_path: Path) -> None:
    del world.files[f"/epa/{ZIP}"]
    with refuses(f"/epa/{ZIP}", "", "HTTP 404", YEAR):
        run(world, tmp_path)
    assert len(world.asked) == 1
    del world.files[f"/noaa/{YEAR}/"]
    with refuses("/noaa/2021/", "", "HTTP 404", YEAR):
        run(world, tmp_path, parameters=[])
    world.files[f"/noaa/{YEAR}/"] = b"<html></html>"
    with refuses("/noaa/2021/", "", "CRND0103-2021-*.txt"):
        run(world, tmp_path, parameters=[])


def test_other_refusals(world: World, tmp_path: Path) -> None:
    world.faults[f"/epa/{ZIP}"] = ["403"]
    with refuses(f"/epa/{ZIP}", "", "HTTP 403"):
        run(world, tmp_path)
    with refuses(ZIP, "", f"attempt {download.ATTEMPTS}"):
        download.fetch(YEAR, tmp_path, epa="http://127.0.0.1:9", parameters=["88101"], wait=NOW)
    with refuses(f"nowhere/{ZIP}", "", "nowhere"):
        download.fetch(YEAR, tmp_path, epa="nowhere", parameters=["88101"], wait=NOW)
    (tmp_path / "file").touch()
    with refuses("/file", "", "Not a directory"):
        run(world, tmp_path / "file")


def test_progress_on_a_terminal_and_elsewhere() -> None:
    for terminal in (True, False):
        out = io.StringIO()
        with download.live(Console(file=out, force_terminal=terminal, width=100)) as progress:
            for done in (0, 500_000, 2_500_000):
                progress("a.zip", done, 2_500_000)
            progress("b.txt", 1000, None)
            progress("b.txt", 79_205, 79_205)
        if terminal:
            assert "a.zip" in out.getvalue()
            assert "79.2/79.2 kB" in out.getvalue()
        else:
            assert out.getvalue() == "a.zip 2.5 MB\nb.txt 79.2 kB\n"


def test_what_is_fetched_can_be_built(world: World, tmp_path: Path) -> None:
    out = io.BytesIO()
    header = ",".join(aqs.COLUMNS)
    line = "01,003,0010,88101,1,24 HOUR,2021-01-01,Micrograms/cubic meter (LC),None,30.5,-87.9,6.4"
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("daily_88101_2021.csv", f"{header}\n{line}\n")
    world.files[f"/epa/{ZIP}"] = out.getvalue()
    got = run(world, tmp_path)
    table = aqs.build(got.files, got.weather)
    assert table["pm25"].tolist() == pytest.approx([6.4])
    assert table["crn_tavg_c"].tolist() == [1.0]
