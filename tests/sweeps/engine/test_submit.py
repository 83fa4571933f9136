"""A run as a job: what is sent, how it is followed, what is refused; and on a real head with a token."""

import asyncio
import contextlib
import gc
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import requests
import yaml
from aiohttp import web

from sweeps import cli
from sweeps.engine import submit, worker
from sweeps.engine.submit import JobClient
from sweeps.spec import study_file as study
from tests import processes
from tests.processes import wait_for

# Of Ray's client: it asks aiohttp in a way that is going away, and leaves a stream that broke unclosed.
pytestmark = [
    pytest.mark.xdist_group("submit"),  # one cluster for all of its slow tests
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning"),
]

ROOT = Path(__file__).parents[3]
TOY = {
    "study": "toy",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "latlon", "sincos"],
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": [0],
    },
    "model": {"width": 8, "depth": 1, "attention_units": 8},
    "train": {"max_epochs": 20, "patience": 20},
    "keep_weights": False,
}
CELLS = 3
LONG = {**TOY, "study": "long", "train": {"max_epochs": 100_000, "patience": 100_000}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client's folder, with two studies in it."""
    for content in (TOY, LONG):
        (tmp_path / f"{content['study']}.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`sweep submit` with these arguments, in this process: status, output, errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sweep", "submit", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return call


# What is sent


def test_the_code_and_the_study_are_sent_and_nothing_else(here: Path, tmp_path: Path) -> None:
    for stray in ("panel.parquet", ".git", "results", ".venv"):
        (here / stray).mkdir()
    overrides = ["design.variant=[none, latlon]", "storage=mine"]
    declared, content = study.resolve("demo", overrides)
    with submit.staged(declared, content) as (folder, shipment):
        sent = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        found = study.load(str(folder / "demo.yaml"))
        assert (shipment.files, shipment.bytes) == (
            len(sent),
            sum((folder / name).stat().st_size for name in sent),
        )
        assert (folder / "sweeps" / "cli" / "__init__.py").read_bytes() == Path(cli.__file__).read_bytes()
    assert not folder.exists()
    shipped = {
        path.relative_to(ROOT).as_posix()
        for package in ("pm25", "sweeps")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert sent == {"demo.yaml"} | shipped, "as in the wheel"
    assert found == declared
    assert found.storage == str(here / "mine")


def test_the_job_s_command_passes_on_what_chooses_cells() -> None:
    demo = study.load("demo")
    plain = "python -m sweeps run demo.yaml --address auto --require-tracking"
    assert submit.command(demo) == plain
    chosen = submit.command(demo, only="variant=none|latlon", limit=3, wait_for_nodes=True)
    assert chosen == f"{plain} --wait-for-nodes --only 'variant=none|latlon' --limit 3"


def test_a_job_has_of_the_environment_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setattr(worker, "commit", lambda: {"commit": "a" * 40, "dirty": True})
    plain = submit.environment([])
    assert json.loads(plain.pop("SWEEP_COMMIT")) == {"commit": "a" * 40, "dirty": True}
    assert [*plain] == ["RAY_JOB_STOP_WAIT_TIME_S"]
    assert submit.environment(["AWS_SECRET_ACCESS_KEY"])["AWS_SECRET_ACCESS_KEY"] == "hidden"
    monkeypatch.setattr(worker, "commit", dict)
    assert "SWEEP_COMMIT" not in submit.environment([])


# What is refused: one line, nothing sent


class Toy:
    """A small job server that notes its requests, and breaks its streams as `streams` says."""

    def __init__(self) -> None:
        self.version: Any = {"version": "4", "ray_version": ray.__version__}
        self.log = "first\nsecond\nthird\n"
        self.streams: list[tuple[int, str]] = []
        """For each stream: how many characters it sends, and its end (break, end, hang, interrupt)."""
        self.end: dict[str, Any] = {"status": "FAILED", "driver_exit_code": 1}
        """Fields of the job after its last stream."""
        self.dead = False
        self.jobs: list[dict[str, Any]] = []
        self.refusal = ""
        self.asked: list[str] = []
        self.sent: dict[str, Any] = {}
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, status: str, code: int | None = None, storage: str = "") -> None:
        self.jobs.append(
            {
                "type": "SUBMISSION",
                "submission_id": f"toy-{len(self.jobs)}",
                "status": status,
                "entrypoint": "",
                "message": "told\nat length",
                "metadata": {"study": "toy", "storage": storage or f"{Path.cwd()}/results"},
                "start_time": 1_000 * len(self.jobs),
                "driver_exit_code": code,
            }
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.asked.append(f"{request.method} {path}")
        if self.dead:
            assert request.transport is not None
            request.transport.abort()
        if path == "/api/version":
            known = isinstance(self.version, dict)
            return web.json_response(self.version) if known else web.Response(text=self.version)
        if path == "/api/jobs/" and request.method == "POST":
            if self.refusal:
                return web.Response(status=500, text=self.refusal)
            self.sent = await request.json()
            return web.json_response({"job_id": "", "submission_id": self.sent["submission_id"]})
        if path == "/api/jobs/":
            return web.json_response(self.jobs)
        if path.endswith("/logs/tail"):
            return await self.stream(request)
        if path.endswith("/logs"):
            return web.json_response({"logs": self.log})
        if path.endswith("/stop"):
            self.jobs[-1]["status"] = "STOPPED"
            return web.json_response({"stopped": True})
        if path.startswith("/api/jobs/"):
            if not self.streams and self.jobs[-1]["status"] == "RUNNING":  # the last is over
                self.jobs[-1] |= self.end
            return web.json_response(self.jobs[-1])
        return web.Response()  # a package, which is there

    async def stream(self, request: web.Request) -> web.StreamResponse:
        told, ends = self.streams.pop(0)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(self.log[:3])
        await socket.send_str(self.log[3:told])
        if ends in ("break", "die"):
            self.dead = ends == "die"
            assert request.transport is not None
            request.transport.abort()
        elif ends in ("hang", "interrupt"):
            if ends == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.5)
        return socket


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect the streams that Ray's client leaves, while the warning about them is ignored."""
    yield
    gc.collect()


@pytest.fixture
def toy(collected: None) -> Iterator[Toy]:
    served, loop, ready = Toy(), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", served.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        served.port = runner.addresses[0][1]
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    yield served
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1:8265", "http://HOST:8265"),
        ("ray://127.0.0.1:10001", "http://HOST:8265"),
        ("auto", "http://HOST:8265"),
        ("http://", "http://HOST:8265"),
        ("http://127.0.0.1:99999", "http://HOST:8265"),
        ("http://[::1", "http://HOST:8265"),
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://no-such-host.invalid:8265", "8265 by default"),
    ],
)
def test_an_address_where_nothing_is(sweep: Any, here: Path, address: str, shown: str) -> None:
    status, out, err = sweep("toy.yaml", "--address", address)
    assert (status, out) == (2, "")
    assert err.startswith(f"sweep: --address {address}: ")
    assert shown in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("page", ["<html>a page</html>", {"version": "4"}, {"ray_version": "?"}])
def test_an_address_where_something_else_answers(sweep: Any, here: Path, toy: Toy, page: Any) -> None:
    toy.version = page
    status, _, err = sweep("toy.yaml", "--address", toy.address)
    assert status == 2
    assert err.startswith(f"sweep: --address {toy.address}: ")
    assert "dashboard" in err
    assert err.count("\n") == 1


def test_an_address_where_nobody_says_anything(
    sweep: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "TIMEOUT_S", (0.2, 0.2))
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        status, _, err = sweep("toy.yaml", "--address", f"http://127.0.0.1:{deaf.getsockname()[1]}")
    assert status == 2
    assert "0.2 s" in err


def test_the_address_that_is_given_is_the_one(here: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client prefers these variables, which are set on machines of a cluster."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert JobClient(f"{toy.address}/").address == toy.address
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


def test_another_version_of_ray_is_sent_nothing(sweep: Any, here: Path, toy: Toy) -> None:
    toy.version["ray_version"] = "2.31.0"
    status, _, err = sweep("toy.yaml", "--address", toy.address, "--follow")
    assert status == 2
    assert err.startswith(f"sweep: --address {toy.address}: ")
    assert f"Ray {ray.__version__}" in err
    assert "pip install 'ray[default,tune]==2.31.0'" in err
    assert err.count("\n") == 1
    assert {ask.split()[0] for ask in toy.asked} == {"GET"}
    assert not any("packages" in ask for ask in toy.asked)
    toy.add("RUNNING")
    assert sweep("toy.yaml", "--address", toy.address, "--stop")[0] == 0, (
        "what runs can be stopped all the same"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "train.max_epoch=3"], "--set train.max_epoch=3: train.max_epoch: "),
        (["--only", "variant=geoclip"], "geoclip"),
        (["--env", "NO_SUCH_VARIABLE"], "--env NO_SUCH_VARIABLE: "),
        (["--status", "--stop"], "give one of --follow, --status and --stop"),
        (["--json"], "--json: "),
        (
            ["--set", "storage=s3://lab/results"],
            "s3://lab/results: tracking: ",
        ),
    ],
)
def test_a_client_finds_what_is_wrong_before_it_asks(
    sweep: Any, here: Path, toy: Toy, more: list[str], said: str
) -> None:
    status, _, err = sweep("toy.yaml", "--address", toy.address, *more)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert toy.asked == []


def test_a_refusal_is_one_line(sweep: Any, here: Path, toy: Toy) -> None:
    toy.refusal = "Traceback (most recent call last):\n  File x\nRuntimeError: no room\n"
    status, _, err = sweep("toy.yaml", "--address", toy.address)
    assert status == 2
    assert err.startswith(f"sweep: --address {toy.address}: ")
    assert "(RuntimeError: no room)" in err
    assert err.count("\n") == 1


# One job at a time


def test_what_a_job_is_sent(sweep: Any, here: Path, toy: Toy) -> None:
    status, out, err = sweep("toy.yaml", "--address", toy.address, "--limit", "2")
    assert status == 0
    name = toy.sent["submission_id"]
    assert err.startswith(f"{name}: submitted with ")
    assert f"{toy.address}/#/jobs/{name}\n" in err
    assert f"  storage  {here}/results\n" in err
    assert f"sweep submit toy.yaml --address {toy.address} --follow" in out
    assert toy.sent["metadata"] == {"study": "toy", "storage": f"{here}/results"}
    assert toy.sent["entrypoint"].endswith(" run toy.yaml --address auto --require-tracking --limit 2")
    assert name.startswith("toy-")
    assert len(name) == len("toy-") + 6


def test_a_second_job_is_refused_and_told_of_the_first(sweep: Any, here: Path, toy: Toy) -> None:
    toy.add("SUCCEEDED", 0)
    toy.add("RUNNING", storage="/elsewhere/results")
    assert sweep("toy.yaml", "--address", toy.address)[0] == 0, "an ended one, and one of another storage"
    toy.add("PENDING")
    status, _, err = sweep("toy.yaml", "--address", toy.address)
    assert status == 2
    assert err.startswith("sweep: toy-2: pending since 1970-01-01 00:00:02 UTC: ")
    assert "--follow" in err
    assert "--stop" in err


def test_status_is_of_the_job_that_runs_or_the_last(sweep: Any, here: Path, toy: Toy) -> None:
    ask = ("toy.yaml", "--address", toy.address, "--status")
    status, _, err = sweep(*ask)
    assert status == 2
    assert f"study toy with storage {here}/results" in err
    toy.add("RUNNING")
    toy.add("FAILED", -9)
    assert sweep(*ask)[1].startswith("toy-0: running since 1970-01-01 00:00:00 UTC;")
    toy.jobs[0] |= {"status": "STOPPED"}
    told = json.loads(sweep(*ask, "--json")[1])
    assert told == {
        "study": "toy",
        "storage": f"{here}/results",
        "id": "toy-1",
        "status": "failed",
        "message": "told",
        "since": "1970-01-01T00:00:01+00:00",
        "ended": None,
        "exit_status": 137,
    }


@pytest.mark.parametrize(
    ("code", "last", "said"),
    [
        (2, "sweep: storage: /x cannot be written", "sweep: storage: /x cannot be written)"),
        (1, "ModuleNotFoundError: No module named 'click'", "'click'; on the head node, start Ray where"),
        (127, "/bin/sh: 1: python: not found", "python: not found; on the head node, start Ray where"),
    ],
)
def test_why_a_job_failed_is_the_last_line_of_its_log(
    sweep: Any, here: Path, toy: Toy, code: int, last: str, said: str
) -> None:
    toy.add("FAILED", code)
    # As Ray words it.
    toy.jobs[0]["message"] = (
        f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 "
        f"chars):\nRunning entrypoint for job toy-0\n{last}\n"
    )
    out = sweep("toy.yaml", "--address", toy.address, "--status")[1]
    assert f"with exit status {code} (" in out
    assert said in out


def test_there_must_be_something_to_stop(sweep: Any, here: Path, toy: Toy) -> None:
    toy.add("FAILED", 1)
    status, _, err = sweep("toy.yaml", "--address", toy.address, "--stop")
    assert status == 2
    assert "runs; toy-0: failed" in err
    toy.add("RUNNING")
    status, out, _ = sweep("toy.yaml", "--address", toy.address, "--stop")
    assert status == 0
    assert out.startswith("toy-1: stopped ")


# A log that is followed


def test_a_log_is_written_once_whatever_breaks(
    sweep: Any, here: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "PAUSE_S", 0.01)
    monkeypatch.setattr(submit, "SILENCE_S", 0.2)
    toy.add("RUNNING")
    toy.streams = [(8, "break"), (4, "end"), (15, "hang"), (15, "break")]
    status, out, err = sweep("toy.yaml", "--address", toy.address, "--follow")
    assert out == toy.log, "the end comes from the job's whole log"
    assert status == 1, "the run's own"
    assert err.startswith("sweep: joined toy-0: running since")
    assert len([ask for ask in toy.asked if ask.endswith("/tail")]) == 4


def test_a_cluster_that_is_gone_is_waited_for_and_then_told(
    sweep: Any, here: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "PATIENCE_S", 0.5)
    toy.add("RUNNING")
    toy.streams = [(8, "die")]
    status, out, err = sweep("toy.yaml", "--address", toy.address, "--follow")
    assert (status, out) == (2, toy.log[:8])
    assert err.splitlines()[-1].startswith(f"sweep: --address {toy.address}: ")
    assert toy.asked.count("GET /api/jobs/toy-0") > 1


def test_ctrl_c_leaves_the_job_alone(sweep: Any, here: Path, toy: Toy) -> None:
    toy.add("RUNNING")
    toy.streams = [(8, "interrupt")]
    # A server or a library that another test started may have left a handler of its own.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status, _, err = sweep("toy.yaml", "--address", toy.address, "--follow")
    assert status == 130
    assert "toy-0" in err
    assert "`sweep submit toy.yaml" in err
    assert not any(ask.endswith("/stop") for ask in toy.asked)


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, None),
        ({"status": "STOPPED"}, 130, "sweep: toy-0: stopped 1970-01-01 00:00:00 UTC with exit status 130"),
        ({"status": "FAILED", "driver_exit_code": -9}, 137, "sweep: toy-0: failed"),
        ({"status": "FAILED"}, 2, "sweep: toy-0: failed 1970-01-01 00:00:00 UTC (told)"),
    ],
)
def test_a_job_ends_as_its_run_did(
    sweep: Any, here: Path, toy: Toy, end: dict[str, Any], status: int, said: str | None
) -> None:
    toy.add("RUNNING")
    toy.streams, toy.end = [(19, "end")], end
    ended, _, err = sweep("toy.yaml", "--address", toy.address, "--follow")
    assert ended == status
    joined, *more = err.splitlines()
    assert joined.startswith("sweep: joined")
    assert len(more) == (said is not None)
    assert not more or more[0].startswith(said)


# A real head, with its dashboard and a token


class Head:
    """`ray start --head` in a folder of its own; whatever it starts is known by the token it has."""

    def __init__(self, free_port: Callable[[], int]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sj"))  # short: it will contain sockets
        self._token = secrets.token_hex(16)
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        ports = {"port": free_port(), "dashboard-port": port, "dashboard-agent-listen-port": free_port()}
        ports |= {"ray-client-server-port": free_port(), "min-worker-port": 0, "max-worker-port": 0}
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
        command += [f"--{name}={number}" for name, number in ports.items()]
        command += ["--num-cpus=1", "--num-gpus=0", f"--object-store-memory={100 * 2**20}"]
        command += ["--no-monitor", "--include-log-monitor=false"]
        command += ["--dashboard-host=127.0.0.1", f"--temp-dir={self._folder}/r", "--disable-usage-stats"]
        # Its `python` is the environment's, and the code that it has installed is not the client's.
        environment = self.environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        # No idle workers: they lack the job's code, so no training could use them.
        environment |= {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
        environment.pop("PYTHONPATH", None)
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def environment(self, **more: str) -> dict[str, str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**known, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token, **more}

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            with contextlib.suppress(requests.RequestException):
                token = {"Authorization": f"Bearer {self._token}"}
                if requests.get(f"{self.address}/api/version", headers=token, timeout=5).ok:
                    return
            time.sleep(0.2)
        raise TimeoutError((self._folder / "log").read_text())

    def processes(self) -> list[psutil.Process]:
        """All that were started by the head, however far down; without clients, which have ended."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_AUTH_TOKEN") == self._token:
                    found.append(process)
        return found

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for process in (left := self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(left, timeout=10)
        shutil.rmtree(self._folder)
        assert not alive


@pytest.fixture(scope="module")
def head(free_port: Callable[[], int]) -> Iterator[Head]:
    started = Head(free_port)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's checkout, whose code is not quite what the cluster has installed."""
    folder = tmp_path_factory.mktemp("checkout")
    for package, globs in submit.SHIPPED.items():
        for path in (path for glob in globs for path in package.glob(glob)):
            target = folder / path.relative_to(package.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    main = folder / "sweeps" / "__main__.py"
    on_cluster = (
        'import os\nif "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:\n    print("the code of the client")\n'
    )
    main.write_text(main.read_text().replace("main()", f"{on_cluster}main()"))
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as sent"]):
        subprocess.run(["git", "-C", str(folder), *who, *words], check=True)
    return folder


@pytest.fixture
def client(head: Head, code: Path, here: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """`sweep submit` in a process of its own, its output in a file that is named first."""

    def start(log: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        (here / log).unlink(missing_ok=True)
        env = head.environment(PYTHONPATH=str(code), PYTHONUNBUFFERED="1", **environment)
        return processes.sweep(here, "submit", *arguments, env=env, log=here / log)

    return start


@pytest.mark.slow
def test_a_job_outlives_its_client_and_is_joined_by_another(
    head: Head, code: Path, here: Path, client: Callable[..., "subprocess.Popen[str]"]
) -> None:
    first = client("first", "toy.yaml", "--address", head.address, "--follow")
    cells = here / "results" / "toy" / "cells"

    def said(log: str) -> str:
        return (here / log).read_text()

    wait_for(
        lambda: [*cells.glob("*/result.json")] or first.poll() is not None,
        lambda: said("first"),
        seconds=240,
    )
    assert first.poll() is None, said("first")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len([*cells.glob("*/result.json")]) < CELLS, "it was half-way"

    ask = client("ask", "toy.yaml", "--address", head.address, "--status", "--json")
    again = client("again", "toy.yaml", "--address", head.address)
    second = client("second", "toy.yaml", "--address", head.address, "--follow")
    assert ask.wait(60) == 0
    assert again.wait(60) == 2
    assert second.wait(240) == 0, said("second")
    answer = json.loads(said("ask"))
    assert (answer["study"], answer["storage"], answer["status"]) == ("toy", f"{here}/results", "running")
    assert said("again").startswith(f"sweep: {answer['id']}: running since ")
    assert said("second").startswith(f"sweep: joined {answer['id']}: running since ")
    assert "the code of the client" in said("second"), "from the log's beginning, and not the installed code"
    assert f"{CELLS} of {CELLS} cells done, 0 failed" in said("second")

    records = [json.loads(path.read_text()) for path in cells.glob("*/result.json")]
    commit = subprocess.run(
        ["git", "-C", str(code), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert len(records) == CELLS
    assert {(record["state"], record["commit"], record["dirty"]) for record in records} == {
        ("done", commit, False)
    }
    ask = client("ask", "toy.yaml", "--address", head.address, "--status", "--json")
    assert ask.wait(60) == 0
    assert json.loads(said("ask")) | {"status": "succeeded", "exit_status": 0} == json.loads(said("ask"))


@pytest.mark.slow
def test_a_job_is_stopped(head: Head, here: Path, client: Callable[..., "subprocess.Popen[str]"]) -> None:
    started = client("long", "long.yaml", "--address", head.address, "--follow")
    holder = here / "results" / "long" / "driver.json"
    wait_for(
        lambda: holder.exists() or started.poll() is not None,
        lambda: (here / "long").read_text(),
        seconds=240,
    )
    assert client("stop", "long.yaml", "--address", head.address, "--stop").wait(60) == 0
    assert (here / "stop").read_text().startswith("long-")
    assert ": stopped " in (here / "stop").read_text()
    assert not [p for p in head.processes() if {"run", "long.yaml"} <= {*p.cmdline()}], (
        "and with it its driver"
    )
    assert not holder.exists(), "which had the time to let go of the study"
    assert started.wait(60) == 130
    assert client("stop", "long.yaml", "--address", head.address, "--stop").wait(60) == 2
    assert "no job of study long" in (here / "stop").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "another token"),
        ({"RAY_AUTH_MODE": "disabled"}, "none was sent"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "no-such-file"}, "no-such-file"),
    ],
)
def test_a_token_is_asked_for(
    head: Head,
    here: Path,
    client: Callable[..., "subprocess.Popen[str]"],
    environment: dict[str, str],
    shown: str,
) -> None:
    assert client("log", "toy.yaml", "--address", head.address, **environment).wait(60) == 2
    answer = (here / "log").read_text()
    assert answer.startswith(f"sweep: --address {head.address}: ")
    assert shown in answer
    assert "export RAY_AUTH_MODE=token" in answer
    assert answer.count("\n") == 1
