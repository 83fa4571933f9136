"""A tracking server that dies for a third of a sweep: nothing lost, nothing twice, and no training waits."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import requests
import yaml

from sweeps.driver import sync
from sweeps.state import StudyState
from tests import processes

pytestmark = pytest.mark.slow

BEFORE, DURING, CELLS = 6, 10, 24
"""Cells that end before the server dies; while it is down; in all."""
STUDY = {
    "study": "outage",
    "data": {"synthetic": {"sites": 16, "days": 40}},
    "design": {
        "variant": ["none", "latlon"],
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": [*range(CELLS // 2)],
    },
    "model": {"width": 8, "depth": 1, "attention_units": 8},
    "train": {"max_epochs": 40, "patience": 40},
}


class Server:
    """`mlflow server` on SQLite, which can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self.uri = f"http://127.0.0.1:{port}"
        self.start()
        self.wait()

    def start(self) -> None:
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/served.db"]
        command += ["--artifacts-destination", str(self._folder / "served")]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )

    def wait(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.uri}/health", timeout=5).text == "OK":
                    return
            time.sleep(0.1)
        raise AssertionError("no server within two minutes")

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    made = Server(tmp_path, free_port())
    yield made
    made.kill()


def ended(folder: Path) -> list[dict[str, object]]:
    """The cells' records, in the order of their ends."""
    found = [json.loads(path.read_text()) for path in folder.glob("results/outage/cells/*/result.json")]
    return sorted(found, key=lambda record: record["ended"])


def runs(server: Server) -> list[tuple[str, str, str]]:
    """(kind, key or arm, status) of all that are not deleted."""
    ask = f"{server.uri}/api/2.0/mlflow"
    experiment = requests.get(
        f"{ask}/experiments/get-by-name", {"experiment_name": "outage"}, timeout=20
    ).json()
    ids = [experiment["experiment"]["experiment_id"]]
    body = {"experiment_ids": ids, "max_results": 1000}
    found = []
    for run in requests.post(f"{ask}/runs/search", json=body, timeout=20).json()["runs"]:
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        found.append((tags["kind"], tags.get("key", tags["arm"]), run["info"]["status"]))
    return sorted(found)


def test_a_server_that_dies_for_a_third_of_a_sweep(server: Server, tmp_path: Path) -> None:
    study = tmp_path / "outage.yaml"
    study.write_text(yaml.safe_dump({**STUDY, "tracking": server.uri, "storage": str(tmp_path / "results")}))
    driver = processes.sweep(tmp_path, "run", study.name, log=tmp_path / "log")

    def until_ended(count: int) -> float:
        while len(list(tmp_path.glob("results/outage/cells/*/result.json"))) < count:
            assert driver.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.02)
        return time.time()

    until_ended(BEFORE)
    server.kill()
    down = time.time()
    back = until_ended(BEFORE + DURING)
    server.start()
    assert driver.wait(180) == 0, (tmp_path / "log").read_text()[-3000:]
    server.wait()
    sync(StudyState(str(study)))

    records = ended(tmp_path)
    assert {record["state"] for record in records} == {"done"}
    arms = [("arm", arm, "FINISHED") for arm in ("lat/lon", "none")]
    cells = [("cell", str(record["key"]), "FINISHED") for record in records]
    assert len(cells) == CELLS
    assert runs(server) == sorted([*arms, *cells])

    stamps = [datetime.fromisoformat(str(record["ended"])).timestamp() for record in records]
    gaps = {b: b - a for a, b in itertools.pairwise(stamps)}
    during = [gap for stamp, gap in gaps.items() if down < stamp < back]
    assert len(during) > DURING // 2
    assert max(during) < max(5, (back - down) / 2), "a pause as long as the outage"
