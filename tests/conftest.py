"""Fixtures for both packages: S3 object storage and a single thread for PyTorch; and Ctrl-C in a test."""

import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import hypothesis
import pytest
import requests

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")  # `--hypothesis-profile default` draws new examples

if "PYTEST_XDIST_WORKER" in os.environ:
    # Deaf to Ctrl-C, and what they start would be so too; tests interrupt themselves and others.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `nohup make test` ignores SIGHUP, and the servers of tests would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect the tests without the garbage collector, which takes a third of the time and frees nothing.

    What exists then is left out of its later searches: thousands of tests and what they import.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


class Objects:
    """moto's S3 on a free port: what it was asked, and what it is to refuse."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                """A test that fails would show them all."""

        self.asked: list[str] = []
        """Methods and paths, with their queries."""
        self.refused: Callable[[str], bool] = lambda request: False
        """True if a request gets a 403 instead of an answer."""
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._numbers = itertools.count(1)

    def _answer(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        query = environment["QUERY_STRING"]
        asked = f"{environment['REQUEST_METHOD']} {environment['PATH_INFO']}{'?' if query else ''}{query}"
        self.asked.append(asked)
        if self.refused(asked):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        answer: Iterable[bytes] = self._moto(environment, start)
        return answer

    def bucket(self) -> str:
        """The address of a new bucket."""
        name = f"bucket-{next(self._numbers)}"
        requests.put(f"{self.url}/{name}", timeout=20).raise_for_status()
        return f"s3://{name}"

    def put(self, address: str, content: bytes) -> None:
        path = address.removeprefix("s3://")
        requests.put(f"{self.url}/{path}", data=content, timeout=20).raise_for_status()

    def checks_users(self, yes: bool) -> None:
        """Make the server check credentials, of which it knows none, or accept all."""
        requests.post(f"{self.url}/moto-api/reset-auth", data="0" if yes else "inf", timeout=20)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="session")
def _objects() -> Iterator[Objects]:
    server = Objects()
    yield server
    server.stop()


@pytest.fixture
def objects(_objects: Objects, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """Object storage, with an environment in which pyarrow and child processes find it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _objects.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _objects.asked.clear()
    monkeypatch.setattr(_objects, "refused", lambda request: False)
    return _objects


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make figures without drawing them, for tests of reports that look at none."""
    from sweeps.report.figures import style

    def write(content: bytes) -> Callable[..., int]:
        return lambda self, file, **_: file.write(content)

    monkeypatch.setattr(style.FigureCanvasAgg, "print_png", write(b"PNG"))
    monkeypatch.setattr(style.FigureCanvasSVG, "print_svg", write(b"<svg></svg>"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for PyTorch: sums have one order, and tests that run side by side do not share cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
