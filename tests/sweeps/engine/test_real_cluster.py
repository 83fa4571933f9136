"""Sweeps on Ray clusters of several nodes: GPUs shared, nodes that join, are drained, killed and cut off."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import processes
from tests.processes import wait_for

pytestmark = pytest.mark.slow

HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}
"""A node that was killed is missed after some seconds, and not only after half a minute; one that is slow to
answer, on a busy machine, is not."""

RAY = Path(sys.executable).with_name("ray")

STUDY = {
    "study": "nodes",
    "data": {"synthetic": {"sites": 24, "days": 60}},
    "design": {
        "variant": ["none", "latlon"],
        "split": [{"kind": "random", "folds": 2, "fold": 0}],
        "seed": [*range(8)],
    },
    "model": {"width": 4, "depth": 1, "attention_units": 4},
    "resources": {"cpu": 1, "gpu": 0},
    "checkpoint_seconds": 0,
}


class Node:
    """One Ray node: `ray start --block` and all that it starts; its address identifies it."""

    def __init__(
        self, ip: str, arguments: Sequence[str], log: Path, env: dict[str, str], within: Sequence[str]
    ):
        self.ip, self._log = ip, log
        command = [*within, RAY, "start", "--block", "--disable-usage-stats", "--node-ip-address", ip]
        command += ["--object-store-memory", "100000000", "--min-worker-port", "0", "--max-worker-port", "0"]
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
        """Ray's id of the node, from its raylet's command line."""
        for process in self.processes():
            if process.name() == "raylet":
                return next(a.partition("=")[2] for a in process.cmdline() if a.startswith("--node_id="))
        raise AssertionError(f"node {self.ip} has no raylet")

    def workers(self) -> list[psutil.Process]:
        """The processes that train, or are about to."""
        return processes.workers_of(self._process.pid)

    def kill(self) -> None:
        """Kill all processes at once, as when a machine is switched off."""
        doomed = self.processes()
        for process in doomed:
            process.suspend()  # nobody restarts or reports anybody
        for process in doomed:
            process.kill()
        self._process.wait(20)
        psutil.wait_procs(doomed, timeout=20)


class Cluster:
    """A head that trains nothing, and nodes on addresses of their own."""

    def __init__(self, ip: str, free_port: Callable[[], int], **env: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pm25-ray-", dir="/tmp"))  # sockets: a short path
        self.env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **env}
        self.env.pop("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", None)  # a cluster of somebody else's
        self.ip, self.port, self._free_port = ip, free_port(), free_port
        self.nodes: list[Node] = []
        self._started = 0
        self.start_head()

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    def start_head(self) -> None:
        arguments = ["--head", "--port", str(self.port), "--num-cpus", "0", "--num-gpus", "0"]
        arguments += ["--include-dashboard", "false", "--dashboard-port", str(self._free_port())]
        arguments += ["--ray-client-server-port", str(self._free_port())]
        self.head = self._start(self.ip, arguments, ()).ready()

    def start(self, ip: str, cpus: int = 1, gpus: int = 0, within: Sequence[str] = ()) -> Node:
        """A node that need not be ready yet."""
        arguments = ["--address", self.address, "--num-cpus", str(cpus), "--num-gpus", str(gpus)]
        self.nodes.append(self._start(ip, arguments, within))
        return self.nodes[-1]

    def add(self, *ips: str, cpus: int = 1, gpus: int = 0) -> list[Node]:
        return [node.ready() for node in [self.start(ip, cpus, gpus) for ip in ips]]

    def _start(self, ip: str, arguments: Sequence[str], within: Sequence[str]) -> Node:
        self._started += 1
        # Nodes that start side by side in one folder would choose the same names for their sockets.
        folder = self.folder / str(self._started)
        folder.mkdir()
        return Node(ip, [*arguments, "--temp-dir", str(folder)], folder / "log", self.env, within)

    def drain(self, node: Node, seconds: int) -> None:
        """Tell the cluster that a node is about to be taken away, as a cloud does of its spot machines."""
        words = [RAY, "drain-node", "--address", self.address, "--node-id", node.id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", str(seconds)]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def clear(self) -> None:
        """Kill all nodes but the head."""
        while self.nodes:
            self.nodes.pop().kill()

    def stop(self) -> None:
        self.clear()
        self.head.kill()
        shutil.rmtree(self.folder)


NOTED = """
import functools, json, os, pathlib, time
import sweeps.cli, sweeps.driver
def noted(cell, key, panel, store, **how):
    import ray, torch
    from sweeps.engine import worker
    seen = {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "gpus": ray.get_gpu_ids()}
    seen |= {"node": ray.util.get_node_ip_address(), "began": time.time(), "device": how["device"]}
    how["device"] = "cpu"
    here, until = pathlib.Path(FOLDER), time.monotonic() + 60
    (here / key).touch()
    while sum(1 for path in here.iterdir() if not path.suffix) < CROWD and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)  # were there room for more, they would come now
    record = worker.train_and_record(cell, key, panel, store, **how)
    pathlib.Path(FOLDER, key + ".json").write_text(json.dumps({**seen, "ended": time.time()}))
    return record
sweeps.driver.train = functools.partial(sweeps.driver.train, train_cell=noted)
sweeps.cli.main()
"""
"""The real command, whose workers note what they see; with fake GPUs the training itself is the CPU's.

The first trainings wait until a CROWD is there, for a worker's start takes longer than they do.
"""


class Sweep:
    """A study in a folder, run by the real command line in processes of its own."""

    def __init__(self, folder: Path, cluster: Cluster, **changes: object) -> None:
        self.folder, self._cluster = folder, cluster
        self.first: dict[Path, bytes] = {}
        (folder / "nodes.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))

    def start(self, *arguments: str, code: str | None = None) -> "subprocess.Popen[str]":
        python = ("-c", code) if code else processes.SWEEP
        place = ["--address", self._cluster.address] if arguments[0] == "run" else []
        words = [*arguments[:1], "nodes.yaml", *place, *arguments[1:]]
        env = {**self._cluster.env, "SWEEP_PRETEND_GPUS": "16"}
        return processes.sweep(self.folder, *words, python=python, env=env)

    def __call__(self, *arguments: str, status: int = 0, code: str | None = None) -> str:
        """Standard error's text."""
        return self.end(self.start(*arguments, code=code), status)

    def end(self, driver: "subprocess.Popen[str]", status: int = 0, seconds: float = 120) -> str:
        _, err = processes.end(driver, status, seconds)
        assert "Traceback" not in err
        return err

    def look(self) -> dict[str, dict[str, Any]]:
        """The records by key; none is another than when it was first seen."""
        for path in self.folder.glob("results/nodes/cells/*/result.json"):
            now = path.read_bytes()
            assert self.first.setdefault(path, now) == now, f"{path} was written again"
        return {path.parent.name: json.loads(content) for path, content in self.first.items()}

    def done(self, count: int) -> list[dict[str, Any]]:
        """Check that there are so many records, all of done cells, and nothing left over."""
        records = self.look()
        assert Counter(r["state"] for r in records.values()) == {"done": count}
        assert not list(self.folder.glob("results/nodes/cells/*/checkpoint.pt"))
        return [*records.values()]

    def verify(self) -> str:
        """Train what is recorded again, here and undisturbed: the bytes must be equal."""
        return processes.run_sweep(self.folder, "verify", "nodes.yaml")[0]

    def checkpoints(self) -> dict[Path, int]:
        found = {}
        for path in self.folder.glob("results/nodes/cells/*/checkpoint.pt"):
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # its training has ended
        return found

    def moves(self) -> bool:
        """True while a training is storing an epoch."""
        before = self.checkpoints()
        time.sleep(0.3)
        return any(before.get(path, when) != when for path, when in self.checkpoints().items())


@pytest.fixture(scope="module")
def cluster(free_port: Callable[[], int]) -> Iterator[Cluster]:
    made = Cluster("127.0.0.10", free_port, **HEALTH)
    yield made
    made.stop()


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; what nodes a test adds go with it."""
    yield cluster
    cluster.clear()


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


def test_trainings_share_gpus_and_each_sees_its_own(nodes: Cluster, tmp_path: Path) -> None:
    """Four nodes; one has CPUs for four quarters of its GPU, and the last has no GPU."""
    sizes = {"127.0.0.11": (4, 1), "127.0.0.12": (1, 1), "127.0.0.13": (1, 1), "127.0.0.14": (1, 0)}
    for node in [nodes.start(ip, *size) for ip, size in sizes.items()]:
        node.ready()
    sweep = Sweep(tmp_path, nodes, train={"max_epochs": 2})
    err = sweep("run", "--set", "resources.gpu=2", status=2)  # the cluster has three, and no node
    assert "2 GPU" in err.strip().splitlines()[-1]
    assert not sweep.look()

    def noted(gpu: float, crowd: int, count: int) -> list[dict[str, Any]]:
        folder = tmp_path / f"gpu-{gpu}"
        folder.mkdir()
        code = NOTED.replace("FOLDER", repr(str(folder))).replace("CROWD", str(crowd))
        sweep("run", "--limit", str(count), "--set", f"resources.gpu={gpu}", code=code)
        return [json.loads(path.read_text()) for path in folder.glob("*.json")]

    quarter = noted(0.25, crowd=6, count=8)
    assert len(quarter) == 8
    assert all(note["visible"] == str(*note["gpus"]) for note in quarter)
    most = crowds(quarter)
    assert most == {("127.0.0.11", 0): 4, ("127.0.0.12", 0): 1, ("127.0.0.13", 0): 1}  # as many as CPUs

    (none,) = noted(0, crowd=1, count=1)
    assert (none["visible"], none["gpus"]) == ("", [])
    placed = [(r["placement"], r["share"]) for r in sweep.done(9)]
    assert Counter(share["gpu"] for _, share in placed) == {0.25: 8, 0.0: 1}
    assert {place["node"] for place, share in placed if share["gpu"]} == {*sizes} - {"127.0.0.14"}
    assert all(len(place["gpus"]) == bool(share["gpu"]) for place, share in placed)


def test_a_training_whose_node_dies_goes_on_elsewhere(nodes: Cluster, tmp_path: Path) -> None:
    """From its last epoch, twice."""
    nodes.add("127.0.0.21", "127.0.0.22")
    sweep = Sweep(tmp_path, nodes, train={"max_epochs": 500, "patience": 500})
    driver = sweep.start("run", "--limit", "1")
    for ip in ("127.0.0.23", "127.0.0.24"):  # how often that may be, the queue's own tests say
        doomed = wait_for(
            lambda: sweep.moves() and next((n for n in nodes.nodes if n.workers()), None), "trains"
        )
        nodes.start(ip)
        nodes.nodes.remove(doomed)
        doomed.kill()
    sweep.end(driver)
    (record,) = sweep.done(1)
    assert record["resumed"] > 0
    assert "bitwise equal" in sweep.verify()


def test_a_node_that_joins_takes_work_and_one_that_is_drained_leaves_it(
    nodes: Cluster, tmp_path: Path
) -> None:
    (old,) = nodes.add("127.0.0.31")
    sweep = Sweep(tmp_path, nodes, train={"max_epochs": 300, "patience": 300})
    driver = sweep.start("run", "--limit", "13")
    wait_for(sweep.look, "the first record")
    new, third = nodes.add("127.0.0.32", "127.0.0.33")

    def done_by(node: Node) -> list[dict[str, Any]]:
        return [r for r in sweep.look().values() if r["placement"]["node"] == node.ip]

    wait_for(lambda: done_by(new) and done_by(third), "the new nodes' first records")
    nodes.drain(old, seconds=60)
    told, before = datetime.now(UTC), len(done_by(new))
    wait_for(lambda: len(done_by(new)) > before, "another record of the new node, which begins the next")
    nodes.drain(new, seconds=60)
    nodes.nodes.remove(new)
    new.kill()  # before its training is done, which was announced
    sweep.end(driver)
    records = sweep.done(13)
    assert any(r.get("resumed") and r["placement"]["node"] == third.ip for r in records)
    late = [r for r in records if datetime.fromisoformat(r["started"]) > told]
    assert old.ip not in {r["placement"]["node"] for r in late}, "a node that is to go got new work"


def test_a_head_that_dies_ends_the_run_and_the_same_command_goes_on(
    free_port: Callable[[], int], tmp_path: Path
) -> None:
    cluster = Cluster("127.0.0.40", free_port)
    try:
        cluster.add("127.0.0.41")
        sweep = Sweep(tmp_path, cluster, train={"max_epochs": 40, "patience": 40})
        driver = sweep.start("run", "--limit", "8")
        wait_for(sweep.look, "the first record")
        began = time.monotonic()
        cluster.head.kill()
        _, err = driver.communicate(timeout=100)
        assert time.monotonic() - began < 60
        assert driver.returncode == 3, err
        assert err.strip().splitlines()[-1].startswith("sweep: --address ")
        assert "Traceback" not in err
        cluster.clear()
        kept = len(sweep.look())
        cluster.start_head()
        cluster.add("127.0.0.42")
        sweep("run", "--limit", str(8 - kept))
        sweep.done(8)
    finally:
        cluster.stop()


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
    """Its training is done elsewhere; what it does itself, later, on the storage that both share, is void."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2")
    with network() as (net, machine):
        # Of a node that is cut off every question waits for its whole time.
        cluster = Cluster(f"{net}.1", free_port, **HEALTH | {"RAY_health_check_timeout_ms": "3000"})
        try:
            machines = {f"{net}.{last}": machine(last) for last in ("2", "3")}
            for ip, (within, _) in machines.items():
                cluster.start(ip, within=within)
            for node in cluster.nodes:
                node.ready()
            sweep = Sweep(tmp_path, cluster, train={"max_epochs": 200, "patience": 200})
            driver = sweep.start("run", "--limit", "1")
            lost = wait_for(
                lambda: sweep.moves() and next((n for n in cluster.nodes if n.workers()), None), "trains"
            )
            (orphan,) = lost.workers()
            orphan.suspend()  # so that it is the later of the two
            _, cable = machines[lost.ip]
            subprocess.run(["ip", "link", "set", cable, "down"], check=True)
            sweep.end(driver)
            (record,) = sweep.done(1)
            assert record["resumed"] > 0
            assert record["process"] != orphan.pid
            orphan.resume()
            spent = orphan.cpu_times().user
            wait_for(
                lambda: not orphan.is_running() or orphan.cpu_times().user > spent + 0.5,
                "the orphan continues",
            )
            wait_for(lambda: not sweep.moves(), "the orphan's training ends")
            assert sweep.look()[record["key"]] == record
            assert "bitwise equal" in sweep.verify()
        finally:
            cluster.stop()


def test_a_storage_that_one_node_cannot_reach_is_said_before_anything_starts(
    nodes: Cluster, tmp_path: Path
) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mount namespaces take root and util-linux")
    (tmp_path / "results").mkdir()
    hidden = f'mount -t tmpfs none {tmp_path / "results"} && exec "$@"'
    nodes.start("127.0.0.61")
    nodes.start("127.0.0.62", within=["unshare", "-m", "sh", "-c", hidden, "sh"])
    for node in nodes.nodes:
        node.ready()
    sweep = Sweep(tmp_path, nodes, train={"max_epochs": 2})
    err = sweep("run", status=2)
    assert "127.0.0.62" in err.strip().splitlines()[-1]
    assert "127.0.0.61" not in err.strip().splitlines()[-1]
    assert not sweep.look()
