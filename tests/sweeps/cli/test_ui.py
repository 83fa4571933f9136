"""`sweep ui`: the server that it becomes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests import processes
from tests.processes import wait_for

pytestmark = pytest.mark.slow


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).text == "OK"
    except requests.ConnectionError:
        return False


def test_the_server_ends_with_its_terminal(toy: Path, free_port: Callable[[], int]) -> None:
    processes.run_sweep(toy.parent, "sync", toy.name)
    port = free_port()
    log = toy.parent / "ui.log"
    started = processes.sweep(toy.parent, "ui", toy.name, "--port", str(port), log=log)
    try:
        wait_for(lambda: answers(port), log.read_text)
        assert "Warning" not in log.read_text()
        assert set.union(*processes.listening(started.pid).values()) == {"127.0.0.1"}
        os.killpg(started.pid, signal.SIGHUP)  # as a terminal that is closed does
        started.wait(60)
        wait_for(lambda: not answers(port), log.read_text, seconds=60)
    finally:
        started.kill()
        started.wait()
