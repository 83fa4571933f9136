"""The nodes of a Ray cluster: how many trainings they hold, and whether they see the driver's storage."""

import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs
import tenacity
import yaml

from pm25.encoders import Embedded
from pm25.errors import InputError, one_line
from pm25.panel import Panel
from pm25.text import counted
from pm25.uri import without_secrets
from sweeps.exit_status import RAY_LOST
from sweeps.plan import calibration
from sweeps.spec.limits import MOST_GPU_GB
from sweeps.spec.study import Resources
from sweeps.store.records import StorageError, Store, read, write

PRETEND = "SWEEP_PRETEND_GPUS"
"""Environment variable: the GPUs that Ray counts are pretended, each with this many GB of memory.

Trainings then run on the CPU. For benchmarks and tests of the scheduling. Without the variable, a GPU that
torch cannot use is an error, and training never falls back to the CPU.
"""

PREFIX = ".seen-by-nodes-"
"""Beginning of the name of a probe file in the storage."""

SEEN_WITHIN_S = 5.0
"""Longest time to wait for a probe file, as a network file system may show a new file late."""

COUNT_EVERY_S = 5.0
"""Time between two counts of the nodes of a joined cluster."""

NAMED = 8
"""Largest number of nodes that one line lists."""

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()
"""The file that `ray up` writes on the head, with the node types that the autoscaler may start.

Ray documents neither the file nor its place; without it, only the nodes that are there count.
"""


class RayLost(InputError):
    """Ray is gone: the cluster's head, or a process of a local Ray. Everything that was recorded stays."""

    status = RAY_LOST


class Node(NamedTuple):
    """A node that is alive."""

    id: str
    address: str
    resources: Mapping[str, float]
    """Resources as Ray counts them: CPU, GPU and others."""

    @property
    def outline(self) -> str:
        """Address, CPUs and GPUs in a few words."""
        gpus = f", {self.resources['GPU']:g} GPU" if self.resources.get("GPU") else ""
        return f"{self.address} ({self.resources.get('CPU', 0):g} CPU{gpus})"


class Cluster:
    """The nodes of a run. Everything that Ray does comes in as functions (`sweeps.engine.node_calls`)."""

    def __init__(
        self,
        alive: Callable[[], list[Node]],
        ask_nodes: Callable[..., list[Any]],
        notice: Callable[[str], None],
        *,
        joined: bool,
        wait_for_nodes: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count the nodes that are there.

        `alive()` lists the nodes. `ask_nodes(nodes, call, *arguments)` returns the result of a call on each
        node, None for a node that has left. `notice` shows the user a line. `joined` says that others started
        the cluster, and `wait_for_nodes` that nodes may still have to come. `clock` returns seconds.
        """
        self._alive, self._ask_nodes, self._notice = alive, ask_nodes, notice
        self._joined, self._wait_for_nodes = joined, wait_for_nodes
        self._clock = clock
        self._nodes, self._counted = alive(), clock()
        self._types = node_types() if joined else []
        own = calibration.devices() if self.has_gpus and not joined else []
        self.gpu_mb = pretended_mb() or min((device.memory_mb for device in own), default=None)
        """Memory of the smallest GPU in MB; None where no node has reported it."""

    @property
    def autoscales(self) -> bool:
        """True if further nodes may join when there is work for them."""
        return self._wait_for_nodes or bool(self._types)

    @property
    def outline(self) -> str:
        """The first nodes and the number of the others, in one line."""
        listed = ", ".join(node.outline for node in self._nodes[:NAMED])
        return (
            f"{listed} and {len(self._nodes) - NAMED} more" if len(self._nodes) > NAMED else listed or "none"
        )

    @property
    def has_gpus(self) -> bool:
        """True if a node, or a type of node that the autoscaler may start, has a GPU."""
        return any(resources.get("GPU", 0) >= 1 for resources in self._all())

    @property
    def gpus(self) -> float:
        """Number of GPUs of the nodes that are there."""
        return sum(node.resources.get("GPU", 0) for node in self._nodes)

    @property
    def cpus_per_gpu(self) -> float:
        """CPUs per GPU on the node with GPUs that has the fewest; 1 without GPUs."""
        own = [resources for resources in self._all() if resources.get("GPU", 0) >= 1]
        return min((resources.get("CPU", 0) / resources["GPU"] for resources in own), default=1.0)

    def holds(self, cpu: float, gpu: float) -> int:
        """Number of trainings with these shares that the nodes can hold side by side."""
        asked = {"CPU": cpu, "GPU": gpu}
        return sum(
            min(int(node.resources.get(name, 0) / each + 1e-9) for name, each in asked.items() if each)
            for node in self._nodes
        )

    def count(self) -> None:
        """Count the nodes of a joined cluster again, every `COUNT_EVERY_S`, and notice changes."""
        if not self._joined or self._clock() - self._counted < COUNT_EVERY_S:
            return
        before = {node.id: node for node in self._nodes}
        self._nodes, self._counted = self._alive(), self._clock()
        now = {node.id: node for node in self._nodes}
        for verb, some in (("joined", now.keys() - before.keys()), ("left", before.keys() - now.keys())):
            for node_id in some:
                self._notice(
                    f"node {(before | now)[node_id].outline} {verb}; {counted(len(now), 'node')} now"
                )

    def check(self, resources: Resources) -> None:
        """Check that a node, or one that the autoscaler may start, can hold a training. Raises InputError."""
        cpu, gpu = resources.cpu, resources.gpu
        if gpu == "auto":
            if self._wait_for_nodes and not self.has_gpus:
                raise InputError(
                    "study file",
                    "resources.gpu",
                    "auto cannot know whether the nodes that the run waits for have GPUs",
                    "--set resources.gpu=1, or --set resources.gpu=0",
                )
            gpu = 1.0 if self.has_gpus else 0.0
        if self._wait_for_nodes or any(
            r.get("CPU", 0) >= cpu and r.get("GPU", 0) >= gpu for r in self._all()
        ):
            return
        sizes = dict.fromkeys(f"{r.get('CPU', 0):g} CPU {r.get('GPU', 0):g} GPU" for r in self._all())
        raise InputError(
            "study file",
            "resources",
            f"a training needs {cpu:g} CPU and {gpu:g} GPU, and no node has as many ({', '.join(sizes)})",
            "--set resources.cpu=1 --set resources.gpu=0",
        )

    def without_bf16(self, gpu: bool) -> str:
        """Name the kinds of processors, or of GPUs, that have no bfloat16 instructions."""
        find = calibration.without_bf16
        found = self._ask_nodes(self._nodes, find, gpu) if self._joined else [find(gpu)]
        return ", ".join(sorted({name for name in found if name}))

    def check_storage(self, probe: "StorageProbe") -> None:
        """Check that every node sees the driver's storage, and note the GPUs' memory. Raises InputError."""
        start = self._clock()
        reports: list[Report | None] = self._ask_nodes(self._nodes, report, probe)
        memory_mb = []
        for node, found in zip(self._nodes, reports, strict=True):
            if found is None:
                continue
            if found.problem:
                raise refusal(node.address, found.host, found.problem)
            if node.resources.get("GPU"):
                memory_mb += [device.memory_mb for device in found.gpus]
        self.gpu_mb = pretended_mb() or min(memory_mb, default=None)
        took = self._clock() - start
        where = without_secrets(probe.store.storage)
        self._notice(f"{counted(len(self._nodes), 'node')} with {where} ({took:.1f} s): {self.outline}")

    def spread(
        self, receive: Callable[..., None], shared: Any, panel: Panel, embeddings: Mapping[str, Embedded]
    ) -> None:
        """Copy the panel and the embeddings to every node, before its workers ask for them.

        `shared` is the reference to both in Ray's object store, and `receive` a function that takes it.
        """
        start = self._clock()
        self._ask_nodes(self._nodes, receive, shared)
        table = (panel.features.nbytes + panel.target.nbytes) / 1e6
        vectors = sum(embedded.vectors.nbytes for embedded in embeddings.values()) / 1e6
        took = self._clock() - start
        what = f"panel ({table:.1f} MB) and embeddings ({vectors:.1f} MB)"
        self._notice(f"{what} on {counted(len(self._nodes), 'node')} ({took:.1f} s)")

    def _all(self) -> list[Mapping[str, float]]:
        return [node.resources for node in self._nodes] + self._types


def node_types() -> list[Mapping[str, float]]:
    """Resources of the node types that the cluster's autoscaler may start, from the head's `BOOTSTRAP` file.

    Only a driver on the head finds the file. Types without written resources are left out.
    """
    try:
        content = yaml.safe_load(BOOTSTRAP.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return []
    types = content.get("available_node_types") if isinstance(content, dict) else None
    found = [kind for kind in (types or {}).values() if kind.get("max_workers", 1) and kind.get("resources")]
    return [kind["resources"] for kind in found]


class Report(NamedTuple):
    """Host name and GPUs of a node, and why it cannot work for the study."""

    host: str
    gpus: tuple[calibration.Device, ...]
    problem: str
    """Why the node cannot work for the study; empty if it can."""


@dataclass(frozen=True)
class StorageProbe:
    """A file that the driver keeps in the store while it runs; a node that finds it sees the same storage."""

    store: Store
    name: str

    @classmethod
    def put(cls, store: Store) -> "StorageProbe":
        """Write the file, and delete those of dead drivers. Raises InputError."""
        probe = cls(store, f"{PREFIX}{secrets.token_hex(6)}")
        system, path = store.location(probe.name)
        folder = path.rsplit("/", 1)[0]
        try:
            for info in system.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True)):
                if info.base_name.startswith(PREFIX):
                    with store.fenced():
                        system.delete_file(info.path)
            write(system, path, probe.name.encode(), store.fenced)
        except StorageError as error:
            raise store.refusal("written", error) from None
        return probe

    def remove(self) -> None:
        """Delete the file. If that fails, the next driver deletes it."""
        try:
            system, path = self.store.location(self.name)
            with self.store.fenced():
                system.delete_file(path)
        except (*StorageError, InputError):
            return

    def problem(self) -> str:
        """Why this process does not see the driver's storage, or cannot write to it; empty if it can."""
        storage = without_secrets(self.store.storage)
        try:
            system, path = self.store.location(self.name)
            self._find(system, path)
            own = f"{path}-{secrets.token_hex(6)}"
            write(system, own, b"probe", self.store.fenced)
            system.delete_file(own)
        except FileNotFoundError:
            return f"{storage} is another folder than the driver's (it lacks a file that the driver wrote)"
        except StorageError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            return f"{storage} cannot be used ({reason})"
        except InputError as error:
            return one_line(error.where, error.field, error.problem, "")
        return ""

    @staticmethod
    def _find(system: pyarrow.fs.FileSystem, path: str) -> None:
        """Read the file. Raises FileNotFoundError if it does not appear within `SEEN_WITHIN_S`."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(FileNotFoundError),
            wait=tenacity.wait_fixed(0.5),
            stop=tenacity.stop_after_delay(SEEN_WITHIN_S),
            reraise=True,
        )
        retrying(read, system, path)


def report(probe: StorageProbe) -> Report:
    """Describe the node that this function runs on, and check the storage from there."""
    return Report(socket.gethostname(), tuple(calibration.devices(hidden=True)), probe.problem())


def refusal(node: str, host: str, problem: str) -> InputError:
    """Return the error for a node that cannot use the storage."""
    return InputError(
        f"node {node} ({host})",
        "storage",
        problem,
        "--set storage= a folder that all nodes share, or a URI such as s3://bucket/results",
    )


def pretended_mb() -> float | None:
    """Memory of each pretended GPU in MB; None where GPUs are real. Raises InputError."""
    value = os.environ.get(PRETEND)
    if not value:
        return None
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes <= MOST_GPU_GB:
        raise InputError(
            PRETEND,
            problem=f"{value!r} is not a number of GB from 0 to {MOST_GPU_GB:,}",
            fix=f"give the memory of each pretended GPU in GB, such as {PRETEND}=16",
        )
    return gigabytes * 1000
