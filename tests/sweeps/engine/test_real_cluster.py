"""Sweeps on Ray clusters of several nodes: GPUs shared, nodes that join, are drained, killed and cut off."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sweeps.engine import worker
from sweeps.state import StudyState
from tests.processes import NO_IDLE_WORKERS, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real_cluster")]  # its tests share a cluster

RAY_OPTIONS = {
    # A killed node, whose port refuses connections, is missed within seconds. A slow answer is not a loss.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "4",
    **NO_IDLE_WORKERS,
}
"""Ray's settings for the nodes of a test."""

RAY = Path(sys.executable).with_name("ray")

STUDY = {
    "study": "nodes",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "latlon"],
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": [*range(24)],
    },
    "model": {"width": 4, "depth": 1, "attention_units": 4},
    "train": {"max_epochs": 20, "patience": 20},
    "resources": {"cpu": 1, "gpu": 0},
    "checkpoint_seconds": 0,
    "keep_weights": False,
}


class Node:
    """One Ray node: `ray start --block` and its child processes, with an address of its own."""

    def __init__(
        self, ip: str, arguments: Sequence[str], log: Path, env: dict[str, str], within: Sequence[str]
    ):
        self.ip, self._log = ip, log
        command = [*within, RAY, "start", "--block", "--disable-usage-stats", "--node-ip-address", ip]
        command += ["--object-store-memory", "100000000", "--min-worker-port", "0", "--max-worker-port", "0"]
        command += ["--include-log-monitor", "false"]
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [*command, *arguments], stdout=out, stderr=out, env=env, start_new_session=True
            )

    def ready(self) -> "Node":
        def up() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            return "Ray runtime started" in self._log.read_text()

        try:
            wait_for(up, f"node {self.ip} starts")
        except AssertionError:
            raise AssertionError(f"node {self.ip} does not start: {self._log.read_text()}") from None
        return self

    def processes(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def id(self) -> str:
        """Ray's id of the node, from the command line of its raylet."""
        for process in self.processes():
            if process.name() == "raylet":
                return next(a.partition("=")[2] for a in process.cmdline() if a.startswith("--node_id="))
        raise AssertionError(f"node {self.ip} has no raylet")

    def kill(self) -> None:
        """Kill all processes at once, as when a machine is switched off."""
        doomed = self.processes()
        for process in doomed:
            process.suspend()  # no process restarts or reports another
        for process in doomed:
            process.kill()
        self._process.wait(20)
        psutil.wait_procs(doomed, timeout=20)


class Cluster:
    """A head that trains nothing, nodes with addresses of their own, and a driver process."""

    def __init__(self, ip: str, free_port: Callable[[], int], **env: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pm25-ray-", dir="/tmp"))  # sockets: a short path
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.env = {**os.environ, "SWEEP_PRETEND_GPUS": "16", **token, **RAY_OPTIONS, **env}
        self.env.pop("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", None)  # it may be set for another cluster
        self.ip, self.port, self._free_port = ip, free_port(), free_port
        self.nodes: dict[str, Node] = {}
        self._started = 0
        self._driver: Driver | None = None
        self.start_head()

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    @property
    def driver(self) -> "Driver":
        """The process that runs commands; a new one if the last has ended."""
        if self._driver is not None and self._driver.ended:
            self._driver.kill()
            self._driver = None
        if self._driver is None:
            self._started += 1
            self._driver = Driver(self.folder / f"driver-{self._started}", self.env)
        return self._driver

    def start_head(self) -> None:
        arguments = ["--head", "--port", str(self.port), "--num-cpus", "0", "--num-gpus", "0", "--no-monitor"]
        arguments += ["--include-dashboard", "false", "--dashboard-port", str(self._free_port())]
        arguments += ["--ray-client-server-port", str(self._free_port())]
        self.head = self._start(self.ip, arguments, ()).ready()

    def start(self, ip: str, cpus: int = 1, gpus: int = 0, within: Sequence[str] = ()) -> Node:
        """Start a node; it need not be ready yet."""
        arguments = ["--address", self.address, "--num-cpus", str(cpus), "--num-gpus", str(gpus)]
        self.nodes[ip] = self._start(ip, arguments, within)
        return self.nodes[ip]

    def _start(self, ip: str, arguments: Sequence[str], within: Sequence[str]) -> Node:
        self._started += 1
        # Nodes that start side by side in one folder would choose the same names for their sockets.
        folder = self.folder / str(self._started)
        folder.mkdir()
        return Node(ip, [*arguments, "--temp-dir", str(folder)], folder / "log", self.env, within)

    def have(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Kill the nodes that are not listed, and start those that are missing, with their CPUs and GPUs."""
        for ip in self.nodes.keys() - sizes.keys():
            self.nodes.pop(ip).kill()
        for ip in sizes.keys() - self.nodes.keys():
            self.start(ip, *sizes[ip])
        for node in self.nodes.values():
            node.ready()

    def drain(self, node: Node, seconds: int) -> None:
        """Announce that a node will be taken away, as a cloud does with its spot machines."""
        words = [RAY, "drain-node", "--address", self.address, "--node-id", node.id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", str(seconds)]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        if self._driver is not None:
            self._driver.kill()
        self.have({})
        self.head.kill()
        shutil.rmtree(self.folder)


COMMANDS = """
import functools, json, os, pathlib, sys, time
import sweeps.cli, sweeps.driver
from sweeps.engine import connection

class Untracked:
    behind = ""
    def __init__(self, *_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def __getattr__(self, name): return lambda *_, **__: None

def noted(folder, crowd, pace, cell, key, panel, store, **how):
    import ray
    from pm25 import trial
    from sweeps.engine import worker
    here = pathlib.Path(folder)
    seen = {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "gpus": ray.get_gpu_ids()}
    seen |= {"key": key, "node": ray.util.get_node_ip_address(), "pid": os.getpid(), "began": time.time()}
    note = here / f"{key}-{time.time_ns()}.json"
    def write():
        note.with_suffix(".part").write_text(json.dumps(seen))
        note.with_suffix(".part").rename(note)
    write()
    until = time.monotonic() + 60
    while len([*here.glob("*.json")]) < crowd and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1 if crowd else 0)  # if there were room for more trainings, they would start now
    class Paced(trial.Training):
        def epoch(self):
            time.sleep(pace)
            return super().epoch()
    plain, trial.Training = trial.Training, Paced
    try:
        return worker.train_and_record(cell, key, panel, store, **how)
    finally:
        trial.Training = plain
        seen["ended"] = time.time()
        write()

answers = open(sys.argv[1], "w")
sweeps.driver.TrackingProcess = Untracked
connection.HEAD_SILENT_S = 6.0
train = sweeps.driver.train
for line in sys.stdin:
    command = json.loads(line)
    os.chdir(command["folder"])
    sys.argv = ["sweep", *command["words"]]
    cell = functools.partial(noted, command["notes"], command["crowd"], command["pace"])
    sweeps.driver.train = functools.partial(train, train_cell=cell)
    try:
        sweeps.cli.main()
    except SystemExit as end:
        print(end.code, file=answers, flush=True)
"""
"""A process that runs one command of the real command line after the other, so that it imports Ray once.

Its workers write notes about their trainings. The first trainings wait until there are `crowd` of them, since
the start of a worker takes longer than a training. Before each epoch a training sleeps for `pace` seconds, so
that it lasts without need of a processor. MLflow is left out: other slow tests have it.
"""


class Driver:
    """A process that runs `sweep` commands; its output and their statuses go into files."""

    def __init__(self, log: Path, env: Mapping[str, str]) -> None:
        self._log, self._read = log, 0
        self._answers, self._commands = log.with_suffix(".answers"), 0
        self._answers.touch()
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMANDS, str(self._answers)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                text=True,
                env=env,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def start(self, **command: object) -> None:
        self._read, self._commands = self._log.stat().st_size, self._commands + 1
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def end(self, status: int) -> str:
        """Wait for the command, which must end with `status`; returns what it wrote."""

        def answers() -> list[str]:
            return self._answers.read_text().splitlines()

        wait_for(lambda: self.ended or len(answers()) == self._commands, self._log.read_text, seconds=180)
        # A lost head ends the process at once, without an answer.
        found = int(answers()[-1]) if len(answers()) == self._commands else self._process.returncode
        text = self._log.read_bytes()[self._read :].decode()
        assert found == status, text[-5000:]
        assert "Traceback" not in text
        return text

    def kill(self) -> None:
        """Kill the process if it runs, and close its pipes."""
        self._process.kill()
        self._process.communicate()


class Sweep:
    """A study in a folder, run on a cluster by its driver."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self._cluster, self._driver = folder, cluster, cluster.driver
        self._first: dict[Path, bytes] = {}
        self._notes = folder / "notes"
        self._notes.mkdir()
        self._cells = folder / "results" / "nodes" / "cells"
        (folder / "nodes.yaml").write_text(yaml.safe_dump(STUDY))

    def start(self, *arguments: str, crowd: int = 0, pace: float = 0) -> None:
        words = ["run", "nodes.yaml", "--address", self._cluster.address, *arguments]
        notes = str(self._notes)
        self._driver = self._cluster.driver
        self._driver.start(folder=str(self.folder), words=words, notes=notes, crowd=crowd, pace=pace)

    def end(self, status: int = 0) -> str:
        return self._driver.end(status)

    def refusal(self, *arguments: str) -> str:
        """The last line of a command that must end with status 2, before anything is trained."""
        self.start(*arguments)
        line = self.end(2).strip().splitlines()[-1]
        assert not self.notes()
        assert not self.look()
        return line

    def notes(self, node: str = "") -> list[dict[str, Any]]:
        """The workers' notes, the earliest first, of one node if it is named."""
        found = [json.loads(path.read_text()) for path in self._notes.glob("*.json")]
        found.sort(key=lambda note: note["began"])
        return [note for note in found if node in ("", note["node"])]

    def look(self) -> dict[str, dict[str, Any]]:
        """The records by key; none differs from what it was when it was first seen."""
        for path in self._cells.glob("*/result.json"):
            now = path.read_bytes()
            assert self._first.setdefault(path, now) == now, f"{path} was written again"
        return {path.parent.name: json.loads(content) for path, content in self._first.items()}

    def training(self, node: str) -> dict[str, Any] | None:
        """The note of a training on this node that has stored an epoch and has no record."""
        for note in self.notes(node):
            place = self._cells / note["key"]
            stored = (place / worker.CHECKPOINT).exists() and not (place / "result.json").exists()
            if stored and "ended" not in note:
                return note
        return None

    def suspended(self, node: str) -> dict[str, Any] | None:
        """The note of such a training, whose process is suspended now, so that the training does not end."""
        if (note := self.training(node)) is None:
            return None
        process = psutil.Process(note["pid"])
        process.suspend()
        if self.training(node) == note:
            return note
        process.resume()  # the training has just ended
        return None

    def done(self, count: int) -> dict[str, dict[str, Any]]:
        """The records by key: so many, all of done cells, and nothing left over."""
        records = self.look()
        assert Counter(r["state"] for r in records.values()) == {"done": count}
        assert not [*self._cells.glob(f"*/{worker.CHECKPOINT}")]
        return records

    def differences(self, *keys: str) -> list[str]:
        """Train cells again, in this process and undisturbed, and name the results that are not equal."""
        with contextlib.chdir(self.folder):
            state = StudyState("nodes.yaml")
            found = [worker.differences(state.cells[k], k, state.panel, state.store) for k in keys]
        return [name for names in found for name in names]


@pytest.fixture(scope="module")
def cluster(free_port: Callable[[], int]) -> Iterator[Cluster]:
    made = Cluster("127.0.0.10", free_port)
    yield made
    made.stop()


def test_a_storage_that_one_node_cannot_reach_is_said_before_anything_starts(
    cluster: Cluster, tmp_path: Path
) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mount namespaces take root and util-linux")
    (tmp_path / "results").mkdir()
    hidden = f'mount -t tmpfs none {tmp_path / "results"} && exec "$@"'
    cluster.start("127.0.0.19", within=["unshare", "-m", "sh", "-c", hidden, "sh"])
    cluster.have({"127.0.0.11": (2, 1), "127.0.0.19": (1, 0)})
    line = Sweep(tmp_path, cluster).refusal()
    assert "127.0.0.19" in line
    assert "127.0.0.11" not in line


def crowds(notes: Sequence[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """The most trainings at a time on each device."""
    moments = defaultdict(list)
    for note in notes:
        for gpu in note["gpus"]:
            moments[note["node"], gpu] += [(note["began"], 1), (note["ended"], -1)]
    most = {}
    for device, changes in moments.items():
        count, most[device] = 0, 0
        for _, change in sorted(changes):
            count += change
            most[device] = max(most[device], count)
    return most


def test_trainings_share_gpus_and_each_sees_its_own(cluster: Cluster, tmp_path: Path) -> None:
    """Three nodes: two halves of a GPU and as many CPUs, a GPU and one CPU, and no GPU."""
    sizes = {"127.0.0.11": (2, 1), "127.0.0.12": (1, 1), "127.0.0.13": (1, 0)}
    cluster.have(sizes)
    sweep = Sweep(tmp_path, cluster)
    assert "2 GPU" in sweep.refusal("--set", "resources.gpu=2")  # the cluster has two, and no node
    sweep.start("--limit", "4", "--set", "resources.gpu=0.5", crowd=3)
    sweep.end()
    notes = sweep.notes()
    assert len(notes) == 4
    assert all(note["visible"] == str(*note["gpus"]) for note in notes)
    assert crowds(notes) == {("127.0.0.11", 0): 2, ("127.0.0.12", 0): 1}  # as many as CPUs
    placed = [(r["placement"], r["share"]) for r in sweep.done(4).values()]
    assert {share["gpu"] for _, share in placed} == {0.5}
    assert {place["node"] for place, _ in placed} == {"127.0.0.11", "127.0.0.12"}
    assert all(len(place["gpus"]) == 1 for place, _ in placed)


def test_a_run_survives_the_loss_of_nodes_and_the_next_one_that_of_the_head(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A node dies, one joins, one is drained and then dies, at last the head dies.

    The trainings go on elsewhere from their last epochs.
    """
    doomed, old, new, last = ("127.0.0.13", "127.0.0.11", "127.0.0.14", "127.0.0.15")
    cluster.have({old: (2, 1), doomed: (1, 0)})
    sweep = Sweep(tmp_path, cluster)
    sweep.start(pace=0.2)

    lost = wait_for(lambda: sweep.training(doomed), "a training on the node that dies")
    cluster.start(new)
    cluster.nodes.pop(doomed).kill()
    wait_for(lambda: [r for r in sweep.look().values() if r["placement"]["node"] == new], "a node joins")
    wait_for(lambda: lost["key"] in sweep.look(), "the lost training ends elsewhere")

    held = wait_for(lambda: sweep.suspended(old), "a training on the node that is drained")
    cluster.drain(cluster.nodes[old], seconds=120)
    announced = time.time()
    running = {n["key"] for n in sweep.notes(old) if "ended" not in n} - {held["key"]}
    wait_for(lambda: running <= sweep.look().keys(), "the drained node ends what it trains")
    handed = len(sweep.notes(new))
    wait_for(lambda: len(sweep.notes(new)) > handed, "the next task")
    assert not [n for n in sweep.notes(old) if n["began"] > announced], "a node that is to go got new work"
    cluster.nodes.pop(old).kill()  # which was announced
    wait_for(lambda: held["key"] in sweep.look(), "its training ends elsewhere")

    left = wait_for(lambda: sweep.suspended(new), "a training when the head dies")
    cluster.head.kill()
    began = time.monotonic()
    assert sweep.end(3).strip().splitlines()[-1].startswith("sweep: --address ")
    assert time.monotonic() - began < 60
    cluster.have({})
    kept = len(sweep.look())
    cluster.start_head()
    cluster.have({last: (1, 0)})
    sweep.start("--limit", "2")
    sweep.end()
    records = sweep.done(kept + 2)
    assert Counter(r["placement"]["node"] for r in records.values())[last] == 2
    for note, places in ((lost, {old, new}), (held, {new}), (left, {last})):
        record = records[note["key"]]
        assert record["resumed"] > 0
        assert record["placement"]["node"] in places
    assert not sweep.differences(lost["key"], held["key"], left["key"])
    assert {(n["visible"], *n["gpus"]) for n in sweep.notes()} == {("",)}  # no training sees the GPU


@contextmanager
def network() -> Iterator[tuple[str, Callable[[str], tuple[list[str], str]]]]:
    """A bridge's address, and a function that gives a machine on it: how to run within it, and its cable.

    Its names are its own, and all of it goes at the end, whatever happened.
    """
    name = f"s{secrets.token_hex(3)}"
    net = f"10.{secrets.randbelow(55) + 200}.{secrets.randbelow(256)}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    with ExitStack() as undo:
        ip("link", "add", name, "type", "bridge")
        undo.callback(ip, "link", "del", name)
        ip("addr", "add", f"{net}.1/24", "dev", name)
        ip("link", "set", name, "up")

        def machine(last: str) -> tuple[list[str], str]:
            space, cable = f"{name}-{last}", f"{name}v{last}"
            ip("netns", "add", space)
            undo.callback(ip, "netns", "del", space)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            undo.callback(ip, "link", "del", cable)  # else it stays for as long as a process lives there
            ip("link", "set", cable, "master", name, "up")
            ip("-n", space, "addr", "add", f"{net}.{last}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", space, "link", "set", link, "up")
            return ["ip", "netns", "exec", space], cable

        yield net, machine


def test_a_node_that_the_network_loses_changes_nothing_when_it_goes_on(
    free_port: Callable[[], int], tmp_path: Path
) -> None:
    """Its training is done elsewhere; what it stores itself, later, in the common storage, is void."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2")
    with network() as (net, machine):
        # Each health check of a node that is cut off waits for its complete time.
        cluster = Cluster(f"{net}.1", free_port, RAY_health_check_timeout_ms="3000")
        try:
            machines = {f"{net}.{last}": machine(last) for last in ("2", "3")}
            for ip, (within, _) in machines.items():
                cluster.start(ip, within=within)
            cluster.have(dict.fromkeys(machines, (1, 0)))
            sweep = Sweep(tmp_path, cluster)
            sweep.start("--limit", "1", pace=0.1)
            lost = wait_for(lambda: next(filter(None, map(sweep.suspended, machines)), None), "trains")
            orphan = psutil.Process(lost["pid"])  # it will end after the other
            _, cable = machines[lost["node"]]
            subprocess.run(["ip", "link", "set", cable, "down"], check=True)
            sweep.end()
            ((key, record),) = sweep.done(1).items()
            assert record["resumed"] > 0
            assert record["process"] != orphan.pid
            assert record["placement"]["node"] != lost["node"]
            orphan.resume()
            wait_for(
                lambda: not orphan.is_running() or "ended" in sweep.notes(lost["node"])[0],
                "the orphan's training ends",
            )
            assert sweep.done(1) == {key: record}
            assert not sweep.differences(key)
        finally:
            cluster.stop()
